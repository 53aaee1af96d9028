"""A product is written past the system's cache, where that can be done, and is the same where it cannot."""

import errno
import fcntl
import os
import time
from io import FileIO
from pathlib import Path
from random import Random
from typing import Any

import pytest

from topside_daemon.fusion.writers import BLOCK_BYTES, Sink

DIRECT = getattr(os, "O_DIRECT", 0)


def can_go_direct(folder: Path) -> bool:
    """Whether the file system takes such a file."""
    try:
        os.close(os.open(folder / "tried", os.O_WRONLY | os.O_CREAT | DIRECT))
    except OSError:
        return False
    return bool(DIRECT)


class Short(FileIO):
    """Takes a little at a time, as a disk that is nearly full does: what is left no longer fits its pages."""

    def write(self, data: Any) -> int:
        return super().write(memoryview(data)[:100_001])


class Stubborn(FileIO):
    """Refuses whatever goes past the cache, though it said that it would take it."""

    def write(self, data: Any) -> int:
        if len(data) == BLOCK_BYTES and not self.refused:
            self.refused = True
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().write(data)

    refused = False


@pytest.mark.parametrize("kind", [FileIO, Short, Stubborn])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_given_is_what_is_written(kind: type[FileIO], seed: int, tmp_path: Path) -> None:
    """In pieces of any size, from nothing to more than a block; each may be used again at once."""
    rng = Random(seed)
    largest = rng.choice([100, 70_000, 3 * BLOCK_BYTES])
    wanted, piece = bytearray(), bytearray()
    with Sink(kind(tmp_path / "out", "w")) as sink:
        for _ in range(rng.choice([0, 1, 40])):
            piece[:] = rng.randbytes(rng.randrange(largest))
            wanted += piece
            sink.write(memoryview(bytes(piece)))
        sink.finish()
        assert (sink.size, (tmp_path / "out").read_bytes()) == (len(wanted), bytes(wanted))


def test_no_block_is_filled_while_it_is_written(tmp_path: Path) -> None:
    """However slow the disk is."""

    class Slow(FileIO):
        def write(self, data: Any) -> int:
            time.sleep(0.02)
            return super().write(data)

    wanted = b"".join(bytes([n]) * (BLOCK_BYTES // 2) for n in range(16))
    with Sink(Slow(tmp_path / "out", "w")) as sink:
        for n in range(16):
            sink.write(wanted[n * BLOCK_BYTES // 2 : (n + 1) * BLOCK_BYTES // 2])
        sink.finish()
    assert (tmp_path / "out").read_bytes() == wanted


def test_it_is_on_the_disk_when_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks past the cache where that can be done, the last one through it, then one sync."""
    told: list[Any] = []
    fsync = os.fsync

    class Watched(FileIO):
        def write(self, data: Any) -> int:
            told.append((len(data), bool(fcntl.fcntl(self, fcntl.F_GETFL) & DIRECT)))
            return super().write(data)

    def synced(fd: int) -> None:
        told.append("synced")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", synced)
    with Sink(Watched(tmp_path / "out", "w")) as sink:
        sink.write(bytes(BLOCK_BYTES + 5))
        direct = sink.direct
        sink.finish()
    assert told == [(BLOCK_BYTES, direct), (5, False), "synced"]
    assert direct == can_go_direct(tmp_path)


def test_a_disk_that_refuses_is_heard_of(tmp_path: Path) -> None:
    """At the latest at the end."""

    class Full(FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for pieces in (1, 20):
        with Sink(Full(tmp_path / "out", "w")) as sink, pytest.raises(OSError, match="No space left"):
            for _ in range(pieces):
                sink.write(bytes(BLOCK_BYTES // 2))
            sink.finish()
