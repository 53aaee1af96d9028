"""What a fusion leaves: files that are there when they are complete, all together."""

import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType

from common.files import fsync_folder

BEHIND_BYTES = 8 << 20  # that may be written and not yet on the disk


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
    """A file that is written by one thread and synced by another, while its maker goes on."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._writer, self._syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._syncing: Future[None] | None = None
        self._written = self._synced = 0
        self.size = 0  # bytes taken
        self.closed = False

    def __enter__(self) -> "Sink":
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append; *data* must stay as it is until the next call returns."""
        _wait(self._writing)
        self.size += len(data)
        self._writing = self._writer.submit(self._write, memoryview(data))

    def _write(self, view: memoryview) -> None:
        while view:
            done = self._file.write(view)
            view = view[done:]
            self._written += done
        if self._written - self._synced >= BEHIND_BYTES:
            _wait(self._syncing)
            self._syncing = self._syncer.submit(self._sync, self._synced, self._written)
            self._synced = self._written

    def _sync(self, since: int, until: int) -> None:
        """Have on the disk what was written, and no longer in memory, which others need more."""
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), since, until - since, os.POSIX_FADV_DONTNEED)

    def end(self) -> None:
        """Nothing more will come: let the rest get to the disk."""
        _wait(self._writing)
        self._writing = self._writer.submit(self._write_out)

    def _write_out(self) -> None:
        _wait(self._syncing)
        self._sync(self._synced, self._written)

    def finish(self) -> None:
        """Have all of it on the disk."""
        self.end()
        _wait(self._writing)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        with self._file, self._syncer, self._writer:
            pass


def _wait(work: Future[None] | None) -> None:
    if work is not None:
        work.result()
