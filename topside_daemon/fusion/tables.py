"""The table of a fusion in its formats: lines of CSV go in, files come out."""

import sys
from typing import Literal, Protocol

from msgspec import Struct

from topside_daemon.fusion.writers import Sink

Format = Literal["csv", "parquet"]

UNIFIED = "unified_session"
COLUMNS = (
    "timestamp",
    *(f"inwater_{name}" for name in ("sensor_id", "mode", "value", "TempC", "Vin")),
    *(f"surface_{name}" for name in ("sensor_id", "mode", "value", "TempC", "Vin")),
    *("surface_timestamp_used", "surface_age_ms", "surface_status"),
    *("inwater_seq", "surface_seq", "inwater_timestamp_raw"),
    *("offset_ms", "offset_sd_ms", "pair_dt_ms", "clock_status", "offset_low_ms", "offset_high_ms"),
)
PERCENT = "percent_of_surface"


class Output(Struct, frozen=True):
    """A file that was made."""

    name: str
    size_bytes: int


class Table(Protocol):
    """One file of the table."""

    def write(self, lines: memoryview) -> None:
        """Add rows, as lines of CSV."""

    def finish(self, provenance: dict[str, bytes]) -> Output:
        """All rows were given. provenance: how the table was made, by name."""


def columns_of(percent: bool) -> list[str]:
    """Names of the columns, in order."""
    return [*COLUMNS, *([PERCENT] if percent else [])]


def file_name(format_: Format) -> str:
    """Of a table in a folder."""
    return f"{UNIFIED}.{format_}"


def pip_install(package: object) -> str:
    """The command that installs it where this program runs."""
    return f"{sys.executable} -m pip install {package}"


class CsvTable:
    """As the lines come."""

    def __init__(self, sink: Sink, percent: bool) -> None:
        self._sink = sink
        sink.write((",".join(columns_of(percent)) + "\n").encode("ascii"))

    def write(self, lines: memoryview) -> None:
        self._sink.write(lines)

    def finish(self, provenance: dict[str, bytes]) -> Output:
        self._sink.end()
        return Output(file_name("csv"), self._sink.size)
