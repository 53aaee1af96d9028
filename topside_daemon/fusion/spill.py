"""What does not fit into memory: a heap that moves to the disk when it grows."""

from os import SEEK_END
from pathlib import Path
from tempfile import SpooledTemporaryFile

MEMORY_BYTES = 4 << 20  # kept here before the disk is asked


class Spill:
    """Bytes that are appended and read again by their place; on the disk without a name, gone with the
    process.

    Any method may raise OSError: the disk refuses.
    """

    def __init__(self, folder: Path | None) -> None:
        """*folder*: where it may write, about as much as the recording has; None for the place of the
        system."""
        self._file = SpooledTemporaryFile(MEMORY_BYTES, dir=str(folder) if folder else None)  # noqa: SIM115  closed by close
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append; returns the place."""
        place = self.size
        self._file.seek(0, SEEK_END)
        self._file.write(data)
        self.size += memoryview(data).nbytes
        return place

    def read(self, place: int, length: int) -> bytearray:
        """What was written there."""
        found = bytearray(length)
        self._file.seek(place)
        self._file.readinto(found)
        return found

    def clear(self) -> None:
        """Forget all of it."""
        if self.size:
            self._file.seek(0)
            self._file.truncate()
            self.size = 0

    def close(self) -> None:
        self._file.close()
