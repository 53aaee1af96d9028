"""Crash-safe chunk files: append, seal, recover, verify.

One folder holds one stream: `chunk_00000.csv` sealed and immutable, `chunk_00001.tmp` open,
`manifest.json` a cache that can always be rebuilt from them. Synchronous and single-owner: the
recorder runs it on its own thread. `python -m common.chunkstore verify|recover DIR`.
"""

import argparse
import hashlib
import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from common.files import FolderInUse, FolderLock, append_whole, fsync_folder, read_json, replace
from common.messages import Chunk, to_json
from common.rows import HEADER, check_row

DAEMON_LEVELS = 3  # a stream folder lies this deep, at most, in the data folder that a daemon holds
ROLL_BYTES = 2 * 1024 * 1024  # as the replaced recorder rolled
CHUNK_NAME = re.compile(r"chunk_(\d{5,})\.(csv|tmp)")
_HEAD = HEADER.encode("ascii") + b"\r\n"


class Manifest(Struct):
    """What a folder holds, for readers who do not want to look themselves."""

    session_id: str
    started_at: str
    next_chunk_index: int
    total_rows: int
    total_bytes: int
    chunks: list[Chunk]


class Scan(Struct):
    """The good rows at the head of one chunk file; everything after good_bytes is damage."""

    good_bytes: int
    size_bytes: int
    rows: int
    first_seq: int | None
    last_seq: int | None
    sha256: str

    @property
    def whole(self) -> bool:
        return self.good_bytes == self.size_bytes

    def chunk(self, index: int) -> Chunk:
        name = sealed_name(index)
        return Chunk(index, name, self.rows, self.good_bytes, self.sha256, self.first_seq, self.last_seq)


class Verdict(Struct):
    """What recovery found and did, or what verification found."""

    chunks: list[Chunk]
    unclean: bool = False  # a chunk was open: the last owner was killed or lost power
    damage: list[str] = []


def sealed_name(index: int) -> str:
    return f"chunk_{index:05d}.csv"


def open_name(index: int) -> str:
    return f"chunk_{index:05d}.tmp"


def sealed_chunks(folder: Path) -> list[Path]:
    """The sealed chunks of a stream folder, oldest first."""
    return [path for _, path in _chunk_files(folder) if path.suffix == ".csv"]


def scan(content: bytes) -> Scan:
    """Check a chunk's bytes row by row, up to the first that is torn or spliced."""
    good, rows, first_seq, last_seq = 0, 0, None, None
    if content.startswith(_HEAD):
        good = len(_HEAD)
        for line in content[good:].splitlines(keepends=True):
            if not line.endswith(b"\r\n"):
                break
            try:
                seq_text = check_row(line)[6]
                seq = int(seq_text) if seq_text else last_seq  # a marker has none
            except ValueError:
                break
            first_seq, last_seq = seq if first_seq is None else first_seq, seq
            rows += 1
            good += len(line)
    digest = hashlib.sha256(content[:good]).hexdigest()
    return Scan(good, len(content), rows, first_seq, last_seq, digest)


def recover(folder: Path) -> Verdict:
    """Bring a folder back to sealed chunks only, and say what that took.

    A pure function of the folder's content, idempotent, and itself killable at any point. Sealed
    chunks that the manifest knows are taken at its word (size checked), so the cost is that of the
    last chunk, not of the archive. A damaged tail is set aside in `chunk_N.torn`, never overwritten.
    """
    known = {chunk.name: chunk for chunk in _manifest_chunks(folder)}
    verdict = Verdict(chunks=[])
    for index, path in _chunk_files(folder):
        if path.suffix == ".csv":
            chunk = known.pop(path.name, None)
            if chunk is None or chunk.size_bytes != path.stat().st_size:
                chunk = _examine(path, index, verdict)
            verdict.chunks.append(chunk)
        else:
            verdict.unclean = True
            sealed = _finish(path, index, verdict)
            if sealed is not None:
                verdict.chunks.append(sealed)
    verdict.damage.extend(_vanished(known))
    return verdict


def verify(folder: Path) -> Verdict:
    """Read every byte and compare with the manifest; changes nothing."""
    known = {chunk.name: chunk for chunk in _manifest_chunks(folder)}
    verdict = Verdict(chunks=[])
    for index, path in _chunk_files(folder):
        found = _examine(path, index, verdict)
        verdict.chunks.append(found)
        expected = known.pop(path.name, None)
        if expected is not None and expected.sha256 != found.sha256:
            verdict.damage.append(f"{path.name}: changed since it was sealed")
        verdict.unclean |= path.suffix == ".tmp"
    verdict.damage.extend(_vanished(known))
    return verdict


def _vanished(known: dict[str, Chunk]) -> list[str]:
    return [f"{name}: in the manifest, not in the folder" for name in known]


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_json(folder / "manifest.json", Manifest)
    except ValueError:
        return None  # a cache: whatever it said is found again in the files


def _manifest_chunks(folder: Path) -> list[Chunk]:
    manifest = _manifest(folder)
    return manifest.chunks if manifest else []


def _chunk_files(folder: Path) -> list[tuple[int, Path]]:
    matches = ((CHUNK_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _examine(path: Path, index: int, verdict: Verdict) -> Chunk:
    found = scan(path.read_bytes())
    if not found.whole:
        verdict.damage.append(
            f"{path.name}: {found.size_bytes - found.good_bytes} bytes after row {found.rows}"
        )
    return found.chunk(index)


def _finish(path: Path, index: int, verdict: Verdict) -> Chunk | None:
    """Seal a chunk that was left open; remove it if it holds no row."""
    content = path.read_bytes()
    found = scan(content)
    if not found.whole:
        tail = content[found.good_bytes :]
        _set_aside(path, tail)
        verdict.damage.append(f"{path.name}: {len(tail)} bytes after row {found.rows} set aside")
    if not found.rows:
        path.unlink()
        fsync_folder(path.parent)
        return None
    with path.open("r+b") as file:
        file.truncate(found.good_bytes)
        os.fsync(file.fileno())
    path.rename(path.with_name(sealed_name(index)))
    fsync_folder(path.parent)
    return found.chunk(index)


def _set_aside(path: Path, tail: bytes) -> None:
    number, torn = 0, path.with_suffix(".torn")
    while torn.exists() and torn.read_bytes() != tail:
        number += 1
        torn = path.with_suffix(f".torn{number}")
    replace(torn, tail)


class ChunkStore:
    """The folder of one stream, open for appending.

    Rows reach the OS in `append` and the disk in `sync`; `durable_seq` and `durable_bytes` move
    only then. Any method may raise OSError; what was acknowledged before stays true, and a half
    row is cut away, so the caller may simply try again.
    """

    def __init__(self, folder: Path, session_id: str, started_at: str, roll_interval_s: float) -> None:
        """Recover *folder* (it must exist) and go on after its last chunk."""
        self.verdict = recover(folder)
        self._folder = folder
        self._session_id = session_id
        self._started_at = started_at
        self._roll_ns = round(roll_interval_s * 1e9)
        self.chunks = self.verdict.chunks
        self.rows = sum(chunk.rows for chunk in self.chunks)
        seqs = [chunk.last_seq for chunk in self.chunks if chunk.last_seq is not None]
        self.last_seq = max(seqs, default=-1)
        self.durable_seq = self.last_seq
        self._next_index = max((chunk.index for chunk in self.chunks), default=-1) + 1
        self._fd: int | None = None
        self._clear_open_chunk()
        self._write_manifest(self.chunks)

    def _clear_open_chunk(self) -> None:
        self._size = self.durable_bytes = self._open_rows = 0
        self._first_seq: int | None = None
        self._open_last_seq: int | None = None
        self._opened_ns = 0
        self._hash = hashlib.sha256()

    @property
    def open_index(self) -> int | None:
        """Index of the chunk being written, None between a seal and the next row."""
        return None if self._fd is None else self._next_index

    def append(self, rows: list[bytes], seqs: list[int], mono_ns: int) -> None:
        """Hand rows to the OS, in one write; opens a chunk if none is open.

        Args:
            rows: encoded rows, readings and markers in order.
            seqs: the numbers of the readings among them.
            mono_ns: now; the chunk's age counts from its first append.
        """
        if self._fd is None:
            self._create(mono_ns)
        data = b"".join(rows)
        self._write(data)
        self._hash.update(data)
        self._open_rows += len(rows)
        self.rows += len(rows)
        if seqs:
            self._first_seq = seqs[0] if self._first_seq is None else self._first_seq
            self._open_last_seq = self.last_seq = seqs[-1]

    def sync(self) -> None:
        """Make everything appended so far durable."""
        if self._fd is None:
            return
        size, last_seq = self._size, self.last_seq
        os.fsync(self._fd)
        self.durable_bytes, self.durable_seq = size, last_seq

    def roll_due(self, mono_ns: int) -> bool:
        if self._fd is None:
            return False
        return self._size >= ROLL_BYTES or mono_ns - self._opened_ns >= self._roll_ns

    def seal(self) -> Chunk | None:
        """Close the open chunk for ever; None if none is open. Files first, then the manifest."""
        if self._fd is None:
            return None
        self.sync()
        index, digest = self._next_index, self._hash.hexdigest()
        path = self._folder / open_name(index)
        if path.exists():  # else a try that the disk cut short has come further
            path.rename(self._folder / sealed_name(index))
        fsync_folder(self._folder)
        chunk = Chunk(
            index,
            sealed_name(index),
            self._open_rows,
            self._size,
            digest,
            self._first_seq,
            self._open_last_seq,
        )
        self._write_manifest([*self.chunks, chunk])
        os.close(self._fd)
        self._fd = None
        self._next_index += 1
        self.chunks.append(chunk)
        self._clear_open_chunk()
        return chunk

    def _create(self, mono_ns: int) -> None:
        path = self._folder / open_name(self._next_index)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._fd, self._opened_ns = fd, mono_ns
        try:
            self._write(_HEAD)
            fsync_folder(self._folder)
        except OSError:
            os.close(fd)
            self._fd = None
            self._clear_open_chunk()
            path.unlink(missing_ok=True)
            raise
        self._hash.update(_HEAD)

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        append_whole(self._fd, data)
        self._size += len(data)

    def _write_manifest(self, chunks: list[Chunk]) -> None:
        manifest = Manifest(
            session_id=self._session_id,
            started_at=self._started_at,
            next_chunk_index=max((chunk.index for chunk in chunks), default=-1) + 1,
            total_rows=sum(chunk.rows for chunk in chunks),
            total_bytes=sum(chunk.size_bytes for chunk in chunks),
            chunks=chunks,
        )
        replace(self._folder / "manifest.json", to_json(manifest))


def mend(folder: Path) -> Verdict:
    """What `recover` does, then a look at every byte, and a manifest that says what is there.

    Raises:
        FolderInUse: a daemon has it, or the data folder it is in.
    """
    place = folder.resolve()
    with ExitStack() as stack:
        for held in (place, *place.parents[:DAEMON_LEVELS]):
            stack.callback(FolderLock(held).close)
        mended = recover(folder)
        found = verify(folder)
        manifest = _manifest(folder) or Manifest(folder.name.rpartition("_")[2], "", 0, 0, 0, [])
        known = {chunk.name: chunk for chunk in manifest.chunks}  # the hash of before tells damage for ever
        manifest.chunks = [known.get(chunk.name, chunk) for chunk in found.chunks]
        manifest.next_chunk_index = max((chunk.index for chunk in found.chunks), default=-1) + 1
        manifest.total_rows = sum(chunk.rows for chunk in manifest.chunks)
        manifest.total_bytes = sum(chunk.size_bytes for chunk in manifest.chunks)
        if manifest.chunks:
            replace(folder / "manifest.json", to_json(manifest))
    damage = mended.damage + [line for line in found.damage if line not in mended.damage]
    return Verdict(found.chunks, mended.unclean, damage)


def main(arguments: list[str] | None = None) -> int:
    """Check or mend one folder of chunks; 0 whole, 3 with loss, 1 unusable."""
    parser = argparse.ArgumentParser(prog="python -m common.chunkstore", description=main.__doc__)
    parser.add_argument("action", choices=("verify", "recover"))
    parser.add_argument("folder", type=Path, help="the folder of one stream, with chunk_*.csv in it")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    try:
        verdict = (verify if options.action == "verify" else mend)(folder)
    except FolderInUse as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{folder}: {error.strerror}: name the folder that holds chunk_00000.csv", file=sys.stderr)
        return 1
    rows = sum(chunk.rows for chunk in verdict.chunks)
    indices = {chunk.index for chunk in verdict.chunks}
    holes = sorted(set(range(max(indices, default=-1) + 1)) - indices)
    verdict.damage += [f"{sealed_name(index)}: missing" for index in holes]
    for line in verdict.damage:
        print(line)
    if not verdict.chunks:
        streams = ", ".join(sorted(path.name for path in folder.glob("*_*") if path.is_dir()))
        hint = f": try {streams}" if streams else ""
        print(f"{folder}: no rows found{hint}", file=sys.stderr)
        return 1
    print(f"{folder}: {len(verdict.chunks)} chunks, {rows} rows, {len(verdict.damage)} damaged")
    return 3 if verdict.damage else 0


if __name__ == "__main__":
    sys.exit(main())
