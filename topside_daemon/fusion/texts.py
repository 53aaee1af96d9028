"""The files of one stream as one long text: read in batches for scanning, and again by place for writing.

Every byte has a place: its offset in the files laid end to end. Text that is not as in the files (a row spelt
otherwise) has a place behind all of them.
"""

import errno
import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from struct import Struct as Layout
from typing import NamedTuple

from msgspec import Struct

from common.manifest import read_manifest
from common.rows import HEADER
from topside_daemon.fusion.columns import LENGTH_MAX, OFFSET_SHIFT, SLACK, Column, column
from topside_daemon.fusion.index import Block
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.stock import Stock

BATCH_BYTES = 1 << 20
WHOLE_BYTES = 4 << 20  # a file no larger is read at once, and its hash known before its rows
REGION_BYTES = 8 << 20  # rows that are out of order are read together from so much text
BEYOND = 1 << 42  # the place of the first text that is in no file; a place has 43 bits

HEADER_START = b"timestamp,"
COMBINED = "session.csv"
_PLACE = Layout("<q")
_CHUNK = re.compile(r"chunk_(\d+)\.(csv|tmp|csv\.tmp)")  # the last is an open chunk of the old Cockpit
_OUR_FIELDS = HEADER.count(",") + 1
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of a file that went through a spreadsheet


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
        place = f"{folder}/" if folder != "." else ""
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
    path: Path
    base: int
    size: int
    kept: FileIO | None  # open, where the file may get another name at any time


def stream_input(folder: Path, root: Path) -> Input:
    """What a `Texts` of the same would have read by now. Raises OSError: it cannot be read."""
    hashes, size = [], 0
    for path in chunk_files(folder):
        with path.open("rb") as file:
            hashes.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
            size += file.tell()
    return Input.of_stream(folder.relative_to(root).as_posix(), hashes, size)


def chunk_files(folder: Path) -> list[Path]:
    """The chunks of a folder in order, or the combined file where there are none."""
    chunks = [
        (int(match[1]), match[2], entry)
        for entry in folder.iterdir()
        if (match := _CHUNK.fullmatch(entry.name))
    ]
    if chunks:
        return [entry for *_, entry in sorted(chunks)]
    combined = folder / COMBINED
    return [combined] if combined.is_file() else []


def is_ours(text: bytearray | bytes) -> bool:
    """Whether rows are as our recorder writes them, by the first line that says something."""
    for line in text[:4096].splitlines():
        content = line.removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
        if content.strip():
            if content.startswith(HEADER_START):
                return content == HEADER.encode("ascii")
            return content.count(b",") + 1 >= _OUR_FIELDS
    return False


class Texts:
    """The text of one stream.

    Any method may raise OSError: a file cannot be read.
    """

    def __init__(self, folder: Path, root: Path, spill: Spill) -> None:
        """*root*: what names in messages are relative to. *spill*: for text that is in no file."""
        self._folder = folder
        self._root = root
        self._beyond = spill
        self._files: list[_File] = []
        self._end = 0
        self._hashes: list[tuple[str, Callable[[], str]]] = []  # what gives the hash of each file
        self._hasher = ThreadPoolExecutor(1)
        self._last: FileIO | None = None
        self.changed: list[str] = []  # files that are not as their recorder had sealed them

    @property
    def input(self) -> Input:
        """What was read, once all batches were."""
        hashes = [(name, digest()) for name, digest in self._hashes]
        return Input.of_stream(self._folder.relative_to(self._root).as_posix(), hashes, self._end)

    def batches(self) -> Iterator[Batch]:
        """All lines of all files, in order; to be asked for once."""
        manifest = read_manifest(self._folder)
        known = {chunk.name: chunk.sha256 for chunk in manifest.chunks} if manifest else {}
        buffer, waiting = bytearray(BATCH_BYTES + WHOLE_BYTES + SLACK), _Waiting()
        for path in chunk_files(self._folder):
            file, content = self._open(path)
            try:
                if file.size > WHOLE_BYTES or file.kept:
                    yield from waiting.release(buffer)
                    yield from self._stream(file, content, buffer)
                    continue
                _read_into(content, memoryview(buffer)[waiting.size : waiting.size + file.size], 0)
            finally:
                if not file.kept:
                    content.close()
            ours, proven = self._judge(buffer, waiting.size, file, known)
            yield from waiting.add(buffer, file, ours, proven, self._shown(file.path))
        yield from waiting.release(buffer)

    def _open(self, path: Path) -> tuple[_File, FileIO]:
        """The file and its content; an open chunk may have been sealed since it was listed."""
        try:
            content = FileIO(path)
        except FileNotFoundError:
            path = path.with_suffix(".csv")
            content = FileIO(path)
        size = os.fstat(content.fileno()).st_size
        file = _File(path, self._end, size, content if path.suffix == ".tmp" else None)
        self._files.append(file)
        self._end += size
        return file, content

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    def _judge(self, buffer: bytearray, start: int, file: _File, known: dict[str, str]) -> tuple[bool, bool]:
        """Whether rows are ours, and whether they are as they were sealed."""
        content = memoryview(buffer)[start : start + file.size]
        digest = hashlib.sha256(content).hexdigest()
        self._hashes.append((file.path.name, lambda: digest))
        sealed = known.get(file.path.name)
        if sealed not in (None, digest):
            self.changed.append(self._shown(file.path))
        return is_ours(bytes(content[:4096])), sealed == digest

    def _stream(self, file: _File, content: FileIO, buffer: bytearray) -> Iterator[Batch]:
        """A large file in pieces, or one that is still written."""
        whole = FileIO(file.path)  # now, while it has this name
        done, kept, ours = 0, 0, None
        view, open_end = memoryview(buffer), file.kept is not None
        while done < file.size or kept:
            more = min(BATCH_BYTES, file.size - done)
            _read_into(content, view[kept : kept + more], done)
            done, size = done + more, kept + more
            stop = buffer.rfind(b"\n", 0, size) + 1 if done < file.size else size
            stop = stop or size  # a line that is longer than any row
            if ours is None:
                ours = is_ours(bytes(view[:4096]))
            base = file.base + done - size
            begins, ends = base == file.base, done - size + stop == file.size
            parts = [Part(self._shown(file.path), 0)]
            yield Batch(buffer, stop, base, ours, False, open_end, begins, ends, parts)
            kept = size - stop
            buffer[:kept] = buffer[stop:size]
        self._hashes.append((file.path.name, self._hasher.submit(_hash, whole, file.size).result))

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
        before = bytearray(place - file.base)
        self._read(file.base, memoryview(before))
        return self._shown(file.path), 1 + before.count(b"\n")

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
                _read_into(self._content(file), view[done : done + count], offset)
            done, place = done + max(count, 0), place + 1

    def _content(self, file: _File) -> FileIO:
        if file.kept:
            return file.kept
        if self._last is None or self._last.name != file.path:
            self._let_go()
            self._last = FileIO(file.path)
        return self._last

    def _let_go(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None

    def close(self) -> None:
        self._hasher.shutdown(cancel_futures=True)
        self._let_go()
        for file in self._files:
            if file.kept:
                file.kept.close()
        self._files.clear()


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


def _read_into(content: FileIO, view: memoryview, offset: int) -> None:
    content.seek(offset)
    while view:
        more = content.readinto(view)
        if not more:
            raise OSError(errno.EIO, f"{content.name} has become shorter")
        view = view[more:]


def _hash(content: FileIO, size: int) -> str:
    """While the rows are already at work: only the report waits for it."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(size, BATCH_BYTES)))
    with content:
        for offset in range(0, size, BATCH_BYTES):
            piece = buffer[: size - offset]
            _read_into(content, piece, offset)
            digest.update(piece)
    return digest.hexdigest()


def _start(part: Part) -> int:
    return part.start


def _base(file: _File) -> int:
    return file.base


def _stop(span: int) -> int:
    return (span >> OFFSET_SHIFT) + (span & LENGTH_MAX)
