"""What a fusion leaves: files that are there when they are complete, all together."""

import fcntl
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from errno import EINVAL, EOPNOTSUPP
from io import FileIO
from mmap import mmap
from pathlib import Path
from types import TracebackType

from common.files import fsync_folder

BLOCK_BYTES, BLOCKS = 2 << 20, 3  # one is filled while others are written
PAGE_BYTES = 1 << 12  # of a disk


class Products:
    """Files of one folder that take their places together, when the block is left without an error: a reader,
    or a power cut, sees the old ones or whole new ones.

    Another process that is making the same is waited for.

    Raises:
        OSError: the folder cannot be written; whatever was there is still there.
    """

    def __init__(self, folder: Path, seal: str, replaced: Sequence[str] = ()) -> None:
        """
        Args:
            seal: the file that takes its place last, and so says that the others are whole.
            replaced: files that go when the new ones come.
        """
        self._folder = folder
        self._name = seal
        self._replaced = replaced
        self._sinks: dict[str, Sink] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Products":
        temporary = self._temporary(self._name)
        self._seal = self._open.enter_context(Sink(_locked(temporary)))
        for left in self._folder.glob(self._temporary(f"{Path(self._name).stem}.*").name):
            if left != temporary:
                left.unlink(missing_ok=True)  # of one that was killed
        return self

    def _temporary(self, name: str) -> Path:
        return self._folder / f".{name}.tmp"

    def add(self, name: str) -> "Sink":
        """A file to be written in order."""
        self._sinks[name] = self._open.enter_context(Sink(FileIO(self._temporary(name), "w")))
        return self._sinks[name]

    def seal(self, content: bytes) -> None:
        """All of the others is written; *content* is for the last."""
        self._seal.write(content)
        self._sinks[self._name] = self._seal

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [*(name for name in self._sinks if name != self._name), self._name]
        with self._open:
            try:
                if kind is None:
                    for sink in self._sinks.values():
                        sink.finish()
                    self._withdraw()
                    while left:
                        self._temporary(left[0]).replace(self._folder / left[0])
                        del left[0]
                    fsync_folder(self._folder)
            finally:
                for name in left:  # the seal, which holds the lock, at the end
                    self._temporary(name).unlink(missing_ok=True)

    def _withdraw(self) -> None:
        """The old ones are no longer whole from here on, and those of other formats are of another time."""
        for name in (self._name, *self._replaced):
            (self._folder / name).unlink(missing_ok=True)
        fsync_folder(self._folder)


def _locked(path: Path) -> FileIO:
    """The file at *path*, empty, for one process at a time; whoever had it before may have moved it away."""
    while True:
        file = FileIO(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "w")
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        try:
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                file.truncate()
                return file
        except FileNotFoundError:
            pass
        file.close()


class Sink:
    """A file that one thread writes in blocks while its maker goes on.

    It goes past the system's cache, where the file system knows how: what is written once need not be copied
    there, nor push out what others read again, and little is left to be synced at the end.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.direct = _set_direct(file, True)  # it goes past the cache
        self._blocks = deque(mmap(-1, BLOCK_BYTES) for _ in range(BLOCKS))  # of pages, as such writes want
        self._filled = 0  # bytes of the first of them
        self._writer = ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()
        self.size = 0  # bytes taken
        self.closed = False

    def __enter__(self) -> "Sink":
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        rest = memoryview(data)
        self.size += len(rest)
        while rest:
            some = rest[: BLOCK_BYTES - self._filled]
            self._blocks[0][self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            rest = rest[len(some) :]
            if self._filled == BLOCK_BYTES:
                self._hand_over()

    def _hand_over(self) -> None:
        """Have the first block written; the next has been by now."""
        self._writing.append(self._writer.submit(self._write, self._blocks[0], self._filled))
        self._blocks.rotate(-1)
        self._filled = 0
        if len(self._writing) >= BLOCKS:
            self._writing.popleft().result()

    def _write(self, block: mmap, size: int) -> None:
        if size % PAGE_BYTES:  # the last one
            self.direct = _set_direct(self._file, False)
        rest = memoryview(block)[:size]
        while rest:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                if error.errno not in (EINVAL, EOPNOTSUPP) or not self.direct:
                    raise
                self.direct = _set_direct(self._file, False)  # its pages are larger, or it promised too much

    def end(self) -> None:
        """Nothing more will come: let the rest get to the disk."""
        self._hand_over()
        self._writing.append(self._writer.submit(os.fsync, self._file.fileno()))

    def finish(self) -> None:
        """Have all of it on the disk."""
        self.end()
        while self._writing:
            self._writing.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        with self._file, self._writer:
            pass


def _set_direct(file: FileIO, on: bool) -> bool:
    """Go past the cache from now on, or no longer; whether it does."""
    direct = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(file, fcntl.F_GETFL) & ~direct
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | direct * on)
    except OSError:
        return False
    return bool(direct * on)
