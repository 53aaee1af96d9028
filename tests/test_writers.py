"""A product is written past the system's cache, where that can be done, and is the same where it cannot."""

import errno
import os
from io import FileIO
from pathlib import Path
from random import Random
from typing import Any

import pytest

from topside_daemon.fusion.writers import BLOCK_BYTES, Sink


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
