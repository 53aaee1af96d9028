"""Crash-safe chunk files: append, seal, recover, verify.

One folder holds one stream: `chunk_00000.csv` sealed and immutable, `chunk_00001.tmp` open, and
a manifest that can always be rebuilt from them. Synchronous, and with one owner; only `sync` may run beside
`append`. `python -m common.chunkstore verify|recover DIR`.
"""

import argparse
import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from common.files import Appender, FolderInUse, fsync_folder, read_json
from common.manifest import Manifest, ManifestWriter
from common.messages import Chunk
from common.recording import StreamRecord
from common.recovery import (
    CHUNK_NAME,
    HEAD,
    Verdict,
    chunk_files,
    mend,
    open_name,
    recover,
    scan,
    sealed_chunks,
    sealed_name,
    verify,
)

__all__ = [
    "CHUNK_NAME",
    "HEAD",
    "ROLL_BYTES",
    "ChunkStore",
    "Manifest",
    "Verdict",
    "chunk_files",
    "main",
    "mend",
    "open_name",
    "recover",
    "scan",
    "sealed_chunks",
    "sealed_name",
    "verify",
]

ROLL_BYTES = 2 * 1024 * 1024  # as the replaced recorder rolled


class _Extent(Struct, frozen=True):
    """How far the open chunk has come."""

    size_bytes: int
    rows: int
    first_seq: int | None
    last_seq: int | None
    digest: "hashlib._Hash"
    appends: int

    def grown(self, data: bytes, rows: int, seqs: list[int]) -> "_Extent":
        digest = self.digest.copy()
        digest.update(data)
        first_seq, last_seq = (seqs[0], seqs[-1]) if seqs else (None, self.last_seq)
        return _Extent(
            self.size_bytes + len(data),
            self.rows + rows,
            first_seq if self.first_seq is None else self.first_seq,
            last_seq,
            digest,
            self.appends + 1,
        )


_NOTHING = _Extent(0, 0, None, None, hashlib.sha256(), 0)
_ONLY_HEAD = _Extent(len(HEAD), 0, None, None, hashlib.sha256(HEAD), 0)


class _Append(Struct, frozen=True):
    data: bytes
    rows: int
    seqs: list[int]


class ChunkStore:
    """The folder of one stream, open for appending.

    Rows reach the OS in `append` and the disk in `sync`; `durable_seq` and `durable_bytes` move
    only then. Any method may raise OSError; what was acknowledged before stays true, and a half
    row is cut away, so the caller may simply try again, but for `sync`: after that one, `begin_again`.
    """

    def __init__(
        self, folder: Path, session_id: str, started_at: str, roll_interval_s: float, first_index: int = 0
    ) -> None:
        """Recover *folder* (it must exist) and go on after its last chunk, with *first_index* at least."""
        self.verdict = recover(folder)
        self._folder = folder
        self._started_at = started_at
        self._roll_ns = round(roll_interval_s * 1e9)
        self.chunks = self.verdict.chunks
        self.rows = sum(chunk.rows for chunk in self.chunks)
        seqs = [chunk.last_seq for chunk in self.chunks if chunk.last_seq is not None]
        self.last_seq = self.durable_seq = max([*seqs, self.verdict.last_seq])
        self._next_index = max(self.verdict.next_index, first_index)
        self._manifest = ManifestWriter(folder, session_id)
        self._manifest.write(started_at, self.chunks)
        self._clear()

    def _clear(self) -> None:
        self._file: Appender | None = None
        self._written = self._durable = _NOTHING
        self._exposed: list[
            _Append
        ] = []  # written since the last sync began: it may have to be written again
        self._opened_ns = 0

    @property
    def open_index(self) -> int | None:
        """Index of the chunk being written, None between a seal and the next row."""
        return None if self._file is None else self._next_index

    @property
    def durable_bytes(self) -> int:
        """Bytes of the open chunk that are on the disk and will not change any more."""
        return self._durable.size_bytes

    def append(self, rows: list[bytes], seqs: list[int], mono_ns: int) -> None:
        """Hand rows to the OS, in one write; opens a chunk if none is open.

        Args:
            rows: encoded rows, readings and markers in order.
            seqs: the numbers of the readings among them.
            mono_ns: now; the chunk's age counts from its first append.
        """
        file = self._file or self._create(mono_ns)
        data = b"".join(rows)
        file.append(data)
        self._exposed.append(_Append(data, len(rows), seqs))
        self._written = self._written.grown(data, len(rows), seqs)
        self.rows += len(rows)
        if seqs:
            self.last_seq = seqs[-1]

    def sync(self) -> None:
        """Make everything appended before the call durable; more may be appended meanwhile.

        Raises:
            OSError: the disk refused. The OS may have dropped what it could not write, and would call the
                next sync a success: nothing but `begin_again` helps.
        """
        file, reached = self._file, self._written
        if file is None or reached is self._durable:
            return
        file.sync()
        done = reached.appends - self._durable.appends
        self._durable = reached
        del self._exposed[:done]
        if reached.last_seq is not None:
            self.durable_seq = reached.last_seq

    def begin_again(self, mono_ns: int) -> None:
        """After a sync that failed: seal what had been durable, and write the rest anew in another chunk."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
        path = self._folder / open_name(self._next_index)
        if self._durable.rows:
            if path.exists():
                _cut(path, self._durable.size_bytes)
            self._enter_sealed(self._durable)
        else:
            path.unlink(missing_ok=True)
        self._durable = _NOTHING
        self._write_anew(mono_ns)

    def _write_anew(self, mono_ns: int) -> None:
        exposed = self._exposed
        if not exposed:
            return
        rows, seqs = sum(one.rows for one in exposed), [seq for one in exposed for seq in one.seqs]
        again = _Append(b"".join(one.data for one in exposed), rows, seqs)
        self._create(mono_ns).append(again.data)
        self._written = self._written.grown(again.data, rows, seqs)
        self._exposed = [again]
        self.sync()

    def roll_due(self, mono_ns: int) -> bool:
        if self._file is None:
            return False
        return self._written.size_bytes >= ROLL_BYTES or mono_ns - self._opened_ns >= self._roll_ns

    def seal(self) -> Chunk | None:
        """Close the open chunk for ever; None if none is open. Files first, then the manifest.

        Raises:
            OSError: the disk refused. Where that was the sync, `begin_again` must follow.
        """
        file = self._file
        if file is None:
            return None
        self.sync()
        chunk = self._enter_sealed(self._durable)
        file.close()
        self._clear()
        return chunk

    def finish(self) -> None:
        """Put the index in order, for readers who will not look at the files.

        Raises:
            OSError: the disk refuses.
        """
        self._manifest.write(self._started_at, self.chunks)

    def close(self) -> None:
        """Give back what is held; what is open stays for `recover`."""
        self._manifest.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _enter_sealed(self, extent: _Extent) -> Chunk:
        """Name the open chunk as sealed and enter it; done again after a failure, it goes on."""
        index = self._next_index
        path, sealed = self._folder / open_name(index), self._folder / sealed_name(index)
        if path.exists():
            path.rename(sealed)
        fsync_folder(self._folder)
        chunk = Chunk(
            index,
            sealed.name,
            extent.rows,
            extent.size_bytes,
            extent.digest.hexdigest(),
            extent.first_seq,
            extent.last_seq,
        )
        self._manifest.add(self._started_at, [*self.chunks, chunk])
        self.chunks.append(chunk)
        self._next_index += 1
        return chunk

    def _create(self, mono_ns: int) -> Appender:
        path = self._folder / open_name(self._next_index)
        file = Appender(path, size=0)  # of a creation that failed there may be something left
        try:
            file.append(HEAD)
            fsync_folder(self._folder)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        self._file, self._written, self._durable = file, _ONLY_HEAD, _NOTHING
        self._opened_ns = mono_ns
        return file


def _cut(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)
        os.fsync(file.fileno())


def _first_index(folder: Path) -> int:
    try:
        record = read_json(folder / "session.json", StreamRecord)
    except ValueError:
        record = None
    return record.next_chunk if record else 0


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
    holes = sorted(set(range(_first_index(folder), max(indices, default=-1) + 1)) - indices)
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
