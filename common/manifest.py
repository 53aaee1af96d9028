"""What a stream folder holds, for readers who do not want to look themselves: an index of its sealed chunks.

`manifest.json` is whole and is written anew now and then; what was sealed since then is in
`manifest.jsonl`, a line each, because a list that is rewritten for every chunk of a long recording soon
outweighs the chunks. Both are a cache, rebuilt from the chunk files at need; yet the hash that a chunk had
when it was sealed is what tells later damage, so it is never forgotten.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from common.files import Lines, read_json, read_lines, replace
from common.messages import Chunk, to_json

MANIFEST, SINCE = "manifest.json", "manifest.jsonl"
REWRITE_SHARE = 8  # written anew when this part of it is not in it


class Manifest(Struct):
    """`manifest.json`, with the keys that old readers know."""

    session_id: str
    started_at: str
    next_chunk_index: int
    total_rows: int
    total_bytes: int
    chunks: list[Chunk]

    @classmethod
    def of(cls, session_id: str, started_at: str, chunks: list[Chunk]) -> "Manifest":
        return cls(
            session_id=session_id,
            started_at=started_at,
            next_chunk_index=max((chunk.index for chunk in chunks), default=-1) + 1,
            total_rows=sum(chunk.rows for chunk in chunks),
            total_bytes=sum(chunk.size_bytes for chunk in chunks),
            chunks=sorted(chunks, key=lambda chunk: chunk.index),
        )


def digest_of(chunks: Iterable[Chunk]) -> str:
    """One hash over the hashes of all chunks: equal digests are equal recordings."""
    text = "".join(f"{chunk.index} {chunk.sha256}\n" for chunk in chunks)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The whole index of a folder, None where there is none or it is damaged."""
    try:
        manifest = read_json(folder / MANIFEST, Manifest)
    except ValueError:
        manifest = None  # a cache: what it said is found again in the files
    since = list(read_lines(folder / SINCE, Chunk))
    if manifest is None and not since:
        return None
    known = {chunk.index: chunk for chunk in reversed([*(manifest.chunks if manifest else []), *since])}
    session_id, started_at = (manifest.session_id, manifest.started_at) if manifest else (folder.name, "")
    return Manifest.of(session_id, started_at, list(known.values()))


class ManifestWriter:
    """Keeps a folder's index up to date while chunks are sealed."""

    def __init__(self, folder: Path, session_id: str) -> None:
        self._folder = folder
        self._session_id = session_id
        self._since: Lines | None = None
        self._since_count = 0

    def write(self, started_at: str, chunks: list[Chunk]) -> None:
        """Write the index anew.

        Raises:
            OSError: the disk refuses.
        """
        replace(self._folder / MANIFEST, to_json(Manifest.of(self._session_id, started_at, chunks)))
        self.close()
        (self._folder / SINCE).unlink(missing_ok=True)
        self._since_count = 0

    def add(self, started_at: str, chunks: list[Chunk]) -> None:
        """Enter the last of *chunks*, which has just been sealed; *chunks* are all of them.

        Raises:
            OSError: the disk refuses.
        """
        if self._since_count >= len(chunks) // REWRITE_SHARE:
            self.write(started_at, chunks)
            return
        if self._since is None:
            self._since = Lines(self._folder / SINCE)
        self._since.append(chunks[-1])
        self._since_count += 1

    def close(self) -> None:
        if self._since is not None:
            self._since.close()
            self._since = None
