"""The files of one stream as one long text: read in batches for scanning, and again by place for writing.

Every byte has a place: its offset in the files laid end to end. Text that is not as in the files (a row spelt
otherwise) has a place behind all of them.
"""

import errno
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from struct import Struct as Layout
from typing import NamedTuple

from msgspec import Struct

from common.manifest import read_manifest
from common.messages import Chunk
from common.rows import HEADER
from topside_daemon.fusion.columns import LENGTH_MAX, OFFSET_SHIFT, SLACK, Column, column
from topside_daemon.fusion.index import Block
from topside_daemon.fusion.parts import COMBINED, is_ours, parts_of
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.stock import Stock

BATCH_BYTES = 1 << 20
WHOLE_BYTES = 1 << 20  # a file no larger is read at once, and its hash known before its rows
PIECE_BYTES = 2 << 20  # that are hashed in one go
REGION_BYTES = 8 << 20  # rows that are out of order are read together from so much text
BEYOND = 1 << 42  # the place of the first text that is in no file; a place has 43 bits

_PLACE = Layout("<q")
_OUR_HEAD = HEADER.encode("ascii") + b"\r\n"


class Input(Struct, frozen=True):
    """What was read. name: relative to the session. sha256: of the file; of several, of the lines that
    `sha256sum` prints for them in the order of their numbers; of a `session.json`, which its daemon goes on
    writing, of what a fusion looks at in it."""

    name: str
    files: int
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "Input":
        return cls(name, 1, len(content), hashlib.sha256(content).hexdigest())

    @classmethod
    def of_stream(cls, folder: str, hashes: Sequence[tuple[str, str]], size_bytes: int) -> "Input":
        """From name and hash of each of its files."""
        place = f"{shown(folder)}/" if folder != "." else ""
        if len(hashes) == 1:
            [(name, digest)] = hashes
            return cls(place + name, 1, size_bytes, digest)
        listing = "".join(f"{digest}  {name}\n" for name, digest in hashes)
        return cls(place + "chunk_*", len(hashes), size_bytes, hashlib.sha256(listing.encode()).hexdigest())


class Part(NamedTuple):
    """A file, or a piece of one, within a batch: where it starts there."""

    name: str
    start: int


class Batch(NamedTuple):
    """Whole lines at buffer[:size], the places of which begin at base; valid until the next one is asked for.

    proven: the bytes are those of which the recorder kept the hash, so that no row need be checked. open_end:
    of a file that was still being written. begins, ends: with the first, with the last line of a file.
    """

    buffer: bytearray
    size: int
    base: int
    ours: bool
    proven: bool
    open_end: bool
    begins: bool
    ends: bool
    parts: list[Part]

    def where(self, offset: int, lines: int) -> tuple[str, int]:
        """File and line of an offset in the buffer, *lines* of which came before it in the first file."""
        place = bisect_right(self.parts, offset, key=_start) - 1
        part = self.parts[place]
        return part.name, 1 + (self.buffer.count(b"\n", part.start, offset) if place else lines)


class _File(NamedTuple):
    """fd: open, where the file may get another name at any time; else -1. identity: tells it from another one
    of its name."""

    name: str
    base: int
    size: int
    fd: int
    identity: tuple[int, ...]


def stream_input(folder: Path, root: Path) -> Input:
    """What a `Texts` of the same would have read by now. Raises OSError: it cannot be read."""
    hashes, size = [], 0
    for name in parts_of(folder, read_manifest(folder)).names:
        with (folder / name).open("rb") as file:
            hashes.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
            size += file.tell()
    return Input.of_stream(folder.relative_to(root).as_posix(), hashes, size)


def shown(name: str) -> str:
    """A name as it can be written in any text: bytes that are none stand as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Texts:
    """The text of one stream.

    Any method may raise OSError: a file cannot be read.
    """

    def __init__(self, folder: Path, root: Path, spill: Spill) -> None:
        """*root*: what names in messages are relative to. *spill*: for text that is in no file."""
        self._folder = folder
        self._shown = folder.relative_to(root).as_posix()
        self._beyond = spill
        self._files: list[_File] = []
        self._end = 0
        self._hashes: list[str] = []  # of each file; "" as long as it is not known
        self._hasher = ThreadPoolExecutor(1)
        self._hashing: Future[None] | None = None
        self._closed = False
        self._last = ("", -1)  # name and descriptor of the file that was read last
        self.changed: list[str] = []  # files that are not as their recorder had sealed them
        self.absent: list[str] = []  # files that it had sealed and that are not here
        self.last_seq = -1  # the highest number that it had sealed
        self.note = ""  # what was found of a combining that broke off
        self.sealed_rows = 0  # rows and markers that its manifest counts, where chunks were combined

    @property
    def input(self) -> Input:
        """What was read, once all batches were."""
        self.hash_ahead().result()
        hashes = [(file.name, digest) for file, digest in zip(self._files, self._hashes, strict=True)]
        return Input.of_stream(self._shown, hashes, self._end)

    @property
    def still_open(self) -> bool:
        """Whether the last chunk was being written, or had been when the recording broke off."""
        return any(file.fd >= 0 for file in self._files)

    def _name(self, file: _File) -> str:
        """As it is told to people."""
        return shown(file.name if self._shown == "." else f"{self._shown}/{file.name}")

    def batches(self) -> Iterator[Batch]:
        """All lines of all files, in order; to be asked for once."""
        manifest = read_manifest(self._folder)
        known = {chunk.name: chunk.sha256 for chunk in manifest.chunks} if manifest else {}
        names, self.note = parts_of(self._folder, manifest)
        if manifest is not None:
            self._look_for(manifest.chunks, names)
        buffer, waiting = bytearray(BATCH_BYTES + WHOLE_BYTES + SLACK), _Waiting()
        view = memoryview(buffer)
        for name in names:
            file, fd = self._open(name)
            try:
                if file.size > WHOLE_BYTES or file.fd >= 0:
                    yield from waiting.release(buffer)
                    yield from self._stream(file, fd, buffer, known.get(name))
                    continue
                content = view[waiting.size : waiting.size + file.size]
                _read_into(fd, content, 0, name)
            finally:
                if file.fd < 0:
                    os.close(fd)
            digest = hashlib.sha256(content).hexdigest()
            self._hashes.append(digest)
            sealed = known.get(name)
            self._hold_against(sealed, file)
            ours = buffer.startswith(_OUR_HEAD, waiting.size, waiting.size + file.size) or is_ours(
                bytes(content[:4096])
            )
            yield from waiting.add(buffer, file, ours, sealed == digest, self._name(file))
        yield from waiting.release(buffer)

    def hash_ahead(self) -> Future[None]:
        """Begin with the hashes that `input` will ask for; others go on meanwhile, best outside of Python."""
        if self._hashing is None:
            self._hashing = self._hasher.submit(self._hash_rest)
        return self._hashing

    def _hash_rest(self) -> None:
        """Of the files with which nothing is compared: only the report, which comes last, waits for it."""
        rest = [place for place, known in enumerate(self._hashes) if not known]
        piece = memoryview(bytearray(PIECE_BYTES * bool(rest)))
        for place in rest:
            self._hashes[place] = self._hash(self._files[place], piece)

    def _hash(self, file: _File, piece: memoryview) -> str:
        fd, digest = file.fd if file.fd >= 0 else self._reopened(file), hashlib.sha256()
        try:
            for done in range(0, file.size, len(piece)):
                if self._closed:
                    break
                more = piece[: file.size - done]
                _read_into(fd, more, done, file.name)
                digest.update(more)
        finally:
            if file.fd < 0:
                os.close(fd)
        return digest.hexdigest()

    def _hold_against(self, sealed: str | None, file: _File) -> None:
        """Whether the file that was read last is as it was sealed."""
        if sealed not in (None, self._hashes[-1]):
            self.changed.append(self._name(file))

    def _look_for(self, chunks: Sequence[Chunk], names: Sequence[str]) -> None:
        """What had been sealed. Old recorders combine their chunks and remove them."""
        self.last_seq = max((one.last_seq for one in chunks if one.last_seq is not None), default=-1)
        here = {Path(name).stem for name in names}
        if COMBINED in names:
            self.sealed_rows = sum(chunk.rows for chunk in chunks)
        else:
            gone = [chunk.name for chunk in chunks if Path(chunk.name).stem not in here]
            self.absent = [name if self._shown == "." else shown(f"{self._shown}/{name}") for name in gone]

    def _open(self, name: str) -> tuple[_File, int]:
        """The file and its descriptor; an open chunk may have been sealed since it was listed."""
        try:
            fd = self._descriptor(name)
        except FileNotFoundError:
            name = f"{name.removesuffix('.tmp').removesuffix('.csv')}.csv"
            fd = self._descriptor(name)
        about = os.fstat(fd)
        kept = fd if name.endswith(".tmp") else -1
        file = _File(name, self._end, about.st_size, kept, _identity(about))
        self._files.append(file)
        self._end += about.st_size
        return file, fd

    def _descriptor(self, name: str) -> int:
        return os.open(f"{self._folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def _stream(self, file: _File, fd: int, buffer: bytearray, sealed: str | None) -> Iterator[Batch]:
        """A large file in pieces, or one that is still written."""
        done, kept, ours = 0, 0, None
        view, digest, open_end = memoryview(buffer), hashlib.sha256(), file.fd >= 0
        at_once = open_end or sealed is not None  # else whoever writes it is gone: there is time
        while done < file.size or kept:
            more = view[kept : kept + min(BATCH_BYTES, file.size - done)]
            _read_into(fd, more, done, file.name)
            if at_once:
                digest.update(more)
            done, size = done + len(more), kept + len(more)
            stop = buffer.rfind(b"\n", 0, size) + 1 if done < file.size else size
            stop = stop or size  # a line that is longer than any row
            if ours is None:
                ours = is_ours(bytes(view[:4096]))
            base = file.base + done - size
            begins, ends = base == file.base, done - size + stop == file.size
            yield Batch(buffer, stop, base, ours, False, open_end, begins, ends, [Part(self._name(file), 0)])
            kept = size - stop
            buffer[:kept] = buffer[stop:size]
        self._hashes.append(digest.hexdigest() if at_once else "")
        self._hold_against(sealed, file)

    def add(self, text: bytes, place: int) -> int:
        """Keep a row that is spelt otherwise in its file, at *place*; returns where it is kept."""
        self._beyond.write(_PLACE.pack(place))
        return BEYOND + self._beyond.write(text)

    def where(self, span: int) -> tuple[str, int]:
        """File and line of a row; slow."""
        place = span >> OFFSET_SHIFT
        if place >= BEYOND:
            [place] = _PLACE.unpack(self._beyond.read(place - BEYOND - _PLACE.size, _PLACE.size))
        file = self._files[bisect_right(self._files, place, key=_base) - 1]
        line, piece = 1, bytearray(BATCH_BYTES)
        for start in range(file.base, place, BATCH_BYTES):
            view = memoryview(piece)[: place - start]
            self._read(start, view)
            line += piece.count(b"\n", 0, len(view))
        return self._name(file), line

    def of(self, block: Block, stock: Stock) -> tuple[int, Column]:
        """Add the text of a block to a stock; returns the place of its first byte, and the spans to look
        with."""
        span = block.span
        if block.straight:
            start = span[0] >> OFFSET_SHIFT
            self._read(start, stock.more(_stop(span[-1]) - start))
            return start, span
        start, stop = min(span) >> OFFSET_SHIFT, max(map(_stop, span))
        if stop <= BEYOND and stop - start <= REGION_BYTES:
            self._read(start, stock.more(stop - start))
            return start, span
        return self._collect(span, stock)

    def _collect(self, span: Column, stock: Stock) -> tuple[int, Column]:
        """Row by row, for rows from everywhere."""
        moved, place = column(len(span)), 0
        for row, one in enumerate(span):
            text = self.row(one)
            stock.more(len(text))[:] = text
            moved[row] = place << OFFSET_SHIFT | one & ((1 << OFFSET_SHIFT) - 1)
            place += len(text)
        return 0, moved

    def row(self, span: int) -> bytearray:
        """The text of one row."""
        start, stop = span >> OFFSET_SHIFT, _stop(span)
        if start >= BEYOND:
            return self._beyond.read(start - BEYOND, stop - start)
        text = bytearray(stop - start)
        self._read(start, memoryview(text))
        return text

    def _read(self, start: int, view: memoryview) -> None:
        """All bytes from a place on."""
        done, place = 0, bisect_right(self._files, start, key=_base) - 1
        while done < len(view):
            file = self._files[place]
            offset = start + done - file.base
            count = min(len(view) - done, file.size - offset)
            if count > 0:
                _read_into(self._content(file), view[done : done + count], offset, file.name)
            done, place = done + max(count, 0), place + 1

    def _content(self, file: _File) -> int:
        if file.fd >= 0:
            return file.fd
        name, fd = self._last
        if name != file.name:
            self._let_go()
            fd = self._reopened(file)
            self._last = (file.name, fd)
        return fd

    def _reopened(self, file: _File) -> int:
        fd = self._descriptor(file.name)
        if _identity(os.fstat(fd)) != file.identity:
            os.close(fd)
            raise OSError(errno.ESTALE, "it has changed while it was fused: fuse again", file.name)
        return fd

    def _let_go(self) -> None:
        if self._last[0]:
            os.close(self._last[1])
            self._last = ("", -1)

    def close(self) -> None:
        self._closed = True
        self._hasher.shutdown(cancel_futures=True)
        self._let_go()
        for file in self._files:
            if file.fd >= 0:
                os.close(file.fd)
        self._files.clear()


def _identity(about: os.stat_result) -> tuple[int, ...]:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


class _Waiting:
    """Small files of one kind that wait in the buffer to become a batch."""

    def __init__(self) -> None:
        self.size = 0
        self._base = 0
        self._kind = (False, False)
        self._parts: list[Part] = []

    def add(self, buffer: bytearray, file: _File, ours: bool, proven: bool, name: str) -> Iterator[Batch]:
        """Take what was read behind the others."""
        if self._parts and self._kind != (ours, proven):
            start = self.size
            yield from self.release(buffer)
            buffer[: file.size] = buffer[start : start + file.size]
        if not self._parts:
            self._base, self._kind = file.base, (ours, proven)
        self._parts.append(Part(name, self.size))
        self.size += file.size
        if self.size >= BATCH_BYTES or (file.size and buffer[self.size - 1] != ord("\n")):
            yield from self.release(buffer)

    def release(self, buffer: bytearray) -> Iterator[Batch]:
        """What has come together."""
        if self._parts:
            batch = Batch(buffer, self.size, self._base, *self._kind, False, True, True, self._parts)
            self.size, self._parts = 0, []
            yield batch


def _read_into(fd: int, view: memoryview, offset: int, name: str) -> None:
    while view:
        more = os.preadv(fd, [view], offset)
        if not more:
            raise OSError(errno.EIO, f"{name} has become shorter")
        view, offset = view[more:], offset + more


def _start(part: Part) -> int:
    return part.start


def _base(file: _File) -> int:
    return file.base


def _stop(span: int) -> int:
    return (span >> OFFSET_SHIFT) + (span & LENGTH_MAX)
