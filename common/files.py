"""Files that survive: replaced whole or appended to, and committed to the disk when it says so.

The five-step commit: a temporary file in the same folder, write, fsync, rename, fsync the folder.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.messages import UNDECODABLE, to_json

T = TypeVar("T")

DAEMON_LEVELS = 3  # a stream folder lies this deep, at most, in the data folder that a daemon holds
NEW = ".new"  # suffix of what a replacement was writing when it was cut short

_CURES = {
    errno.ENOSPC: "disk full: free some space",
    errno.EDQUOT: "disk quota used up: free some space",
    errno.EROFS: "disk read-only: look at the card, then mount it writable",
    errno.EIO: "disk error: look at the card and its contacts",
    errno.EACCES: "no permission: let this user write there",
}


class FolderInUse(RuntimeError):
    """Another process owns this data folder."""


def why(error: OSError) -> str:
    """What a disk's refusal means: one line with the cure, where there is one."""
    return _CURES.get(error.errno or 0) or error.strerror or str(error)


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def fsync_folder(folder: Path) -> None:
    """Commit the folder's entries: without it a new or renamed file may vanish with the power."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create *folder* and its parents, and commit each new entry."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        fsync_folder(created.parent)


def replace(path: Path, content: bytes) -> None:
    """Put *content* at *path* at once: a reader, or a power cut, sees the old file or the new one."""
    temporary = path.with_name(path.name + NEW)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_folder(path.parent)


def set_aside(path: Path, content: bytes, suffix: str) -> Path:
    """Keep *content* beside *path*, under its name with another suffix; never over something else."""
    number, place = 0, path.with_suffix(suffix)
    while place.exists() and place.read_bytes() != content:
        number += 1
        place = path.with_suffix(f"{suffix}{number}")
    replace(place, content)
    return place


def read_json(path: Path, kind: type[T]) -> T | None:
    """The record kept at *path*; None if there is no such file.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except UNDECODABLE as error:
        raise ValueError(f"{path}: {error}") from None


class Appender:
    """A file open for appending, of which everything up to `size` is as it was given.

    What an append that failed has left behind that point, on a disk that would not even cut it off, is
    cut off by the next one: a half line must never be met by another.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        """*size*: what the file has behind it does not count.

        Raises:
            OSError: it cannot be opened.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.size = os.fstat(self._fd).st_size if size is None else size

    def append(self, data: bytes) -> None:
        """All of it or nothing.

        Raises:
            OSError: the disk refuses, or says that it wrote what it did not.
        """
        self._cut_to_size()
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:]) or _stuck()
            if os.fstat(self._fd).st_size != self.size + len(data):
                raise OSError(errno.EIO, "the disk did not write all that it said")
        except OSError:
            with suppress(OSError):
                self._cut_to_size()
            raise
        self.size += len(data)

    def _cut_to_size(self) -> None:
        if os.fstat(self._fd).st_size != self.size:
            os.ftruncate(self._fd, self.size)

    def last_byte(self) -> bytes:
        return os.pread(self._fd, 1, self.size - 1) if self.size else b""

    def sync(self) -> None:
        """What was appended is on the disk when this returns; after an OSError it never may be."""
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _stuck() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Lines:
    """An append-only file of JSON objects, one a line.

    A line torn by a crash is closed off when the file is opened again, so it can never
    run into the next one.
    """

    def __init__(self, path: Path) -> None:
        self._file = Appender(path)
        if self._file.last_byte() not in (b"", b"\n"):
            self._file.append(b"\n")
        fsync_folder(path.parent)

    def append(self, *records: Any, sync: bool = False) -> None:
        if records:
            self._file.append(b"".join(to_json(record) + b"\n" for record in records))
        if sync:
            self._file.sync()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """The records of a `Lines` file, damaged lines left out; nothing if there is no such file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    decoder = msgspec.json.Decoder(kind)
    for line in content.splitlines():
        try:
            yield decoder.decode(line)
        except UNDECODABLE:
            continue


class Reserve:
    """Disk space kept for the end: what waits in memory must still find room on a full disk."""

    SIZE_BYTES = 1024 * 1024
    SHARE = 16  # at most this part of what is free

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Hold the space, as far as there is some.

        Raises:
            OSError: the disk refuses.
        """
        free = os.statvfs(self._path.parent)
        size = min(self.SIZE_BYTES, free.f_bavail * free.f_frsize // self.SHARE)
        with self._path.open("ab") as file:
            if size > file.tell():
                os.posix_fallocate(file.fileno(), 0, size)

    def release(self) -> bool:
        """Give the space back; False if there was none.

        Raises:
            OSError: the disk refuses.
        """
        held = self._path.exists()
        self._path.unlink(missing_ok=True)
        return held


class FolderLock:
    """Holds a folder for this process until closed, or until the process dies.

    Raises:
        FolderInUse: another process holds it.
        OSError: there is no such folder.
    """

    def __init__(self, folder: Path, shared: bool = False) -> None:
        """*shared*: others may hold it so too."""
        self._fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise FolderInUse(f"{folder} is in use by another process: stop that one first") from None

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def away_from_daemons(folder: Path) -> Iterator[None]:
    """Hold *folder* while no daemon has it, nor a data folder that it lies in.

    Raises:
        FolderInUse: one has.
        OSError: there is no such folder.
    """
    place = folder.resolve()
    with ExitStack() as stack:
        stack.callback(FolderLock(place).close)
        for above in place.parents[:DAEMON_LEVELS]:
            with suppress(PermissionError):
                stack.callback(FolderLock(above, shared=True).close)
        yield
