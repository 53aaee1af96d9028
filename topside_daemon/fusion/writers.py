"""What a fusion leaves: files that are there when they are complete, all together."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType

from common.files import fsync_folder

UNIFIED_HEADER = (
    "timestamp,"
    "inwater_sensor_id,inwater_mode,inwater_value,inwater_TempC,inwater_Vin,"
    "surface_sensor_id,surface_mode,surface_value,surface_TempC,surface_Vin,"
    "surface_timestamp_used,surface_age_ms,surface_status,"
    "inwater_seq,surface_seq,inwater_timestamp_raw,offset_ms,offset_sd_ms,pair_dt_ms,clock_status,"
    "offset_low_ms,offset_high_ms"
)
PERCENT = "percent_of_surface"
BEHIND_BYTES = 8 << 20  # that may be written and not yet on the disk


class Products:
    """Files of one folder that take their places together, when the block is left without an error: a reader,
    or a power cut, sees the old ones or whole new ones.

    Raises:
        OSError: the folder cannot be written; whatever was there is still there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, Path] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Products":
        return self

    def add(self, name: str) -> "Sink":
        """A file to be written in order."""
        temporary = self._folder / f".{name}.{os.getpid()}.tmp"
        self._files[temporary] = self._folder / name
        return self._open.enter_context(Sink(temporary))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._open.__exit__(kind, error, trace)
            if kind is None:
                for temporary, place in self._files.items():
                    temporary.replace(place)
                fsync_folder(self._folder)
        finally:
            for temporary in self._files:
                temporary.unlink(missing_ok=True)


class Sink:
    """A file that is written by one thread and synced by another, while its maker goes on; on the disk when
    it is closed."""

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "w")
        self._writer, self._syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._syncing: Future[None] | None = None
        self._size = self._synced = 0

    def __enter__(self) -> "Sink":
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append; *data* must stay as it is until the next call returns."""
        _wait(self._writing)
        self._writing = self._writer.submit(self._write, memoryview(data))

    def _write(self, view: memoryview) -> None:
        while view:
            done = self._file.write(view)
            view = view[done:]
            self._size += done
        if self._size - self._synced >= BEHIND_BYTES:
            _wait(self._syncing)
            self._syncing = self._syncer.submit(self._sync, self._synced, self._size)
            self._synced = self._size

    def _sync(self, since: int, until: int) -> None:
        """Have on the disk what was written, and no longer in memory, which others need more."""
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), since, until - since, os.POSIX_FADV_DONTNEED)

    def end(self) -> None:
        """Nothing more will come: let the rest get to the disk. It has when the sink is closed."""
        self._writing = self._writer.submit(self._write_out)

    def _write_out(self) -> None:
        _wait(self._syncing)
        self._sync(self._synced, self._size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file, self._syncer, self._writer:
            if kind is None:
                _wait(self._writing)


def header(percent: bool) -> bytes:
    """The first line of the table."""
    return (UNIFIED_HEADER + (f",{PERCENT}" if percent else "") + "\n").encode("ascii")


def _wait(work: Future[None] | None) -> None:
    if work is not None:
        work.result()
