"""Files that survive: replaced whole or appended by lines, and committed to the disk when it says so.

The five-step commit: a temporary file in the same folder, write, fsync, rename, fsync the folder.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.messages import to_json

T = TypeVar("T")


class FolderInUse(RuntimeError):
    """Another process owns this data folder."""


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
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_folder(path.parent)


def read_json(path: Path, kind: type[T]) -> T | None:
    """The record kept at *path*; None if there is no such file.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None


def append_whole(fd: int, data: bytes) -> None:
    """Append *data*, all of it or nothing: a half line must never be met by the next one.

    Raises:
        OSError: the disk refuses; the file is as it was.
    """
    size, done = os.fstat(fd).st_size, 0
    try:
        while done < len(data):
            done += os.write(fd, data[done:])
    except OSError:
        os.ftruncate(fd, size)
        raise


class Lines:
    """An append-only file of JSON objects, one a line.

    A line torn by a crash is closed off when the file is opened again, so it can never
    run into the next one.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")
        fsync_folder(path.parent)

    def append(self, *records: Any, sync: bool = False) -> None:
        if records:
            append_whole(self._fd, b"".join(to_json(record) + b"\n" for record in records))
        if sync:
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


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
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue


class FolderLock:
    """Holds a folder for this process until closed, or until the process dies.

    Raises:
        FolderInUse: another process holds it.
        OSError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise FolderInUse(f"{folder} is in use by another process: stop that one first") from None

    def close(self) -> None:
        os.close(self._fd)
