"""Fused rows as files."""

import os
from collections.abc import Iterable
from pathlib import Path

from common.files import fsync_folder
from common.messages import Reading
from common.rows import format_utc
from topside_daemon.fusion.stream import FusedRow
from topside_daemon.fusion.timeline import UNNUMBERED

UNIFIED_HEADER = (
    "timestamp,"
    "inwater_sensor_id,inwater_mode,inwater_value,inwater_TempC,inwater_Vin,"
    "surface_sensor_id,surface_mode,surface_value,surface_TempC,surface_Vin,"
    "surface_timestamp_used,surface_age_ms,surface_status,"
    "inwater_seq,surface_seq,inwater_timestamp_raw,offset_ms,offset_sd_ms,pair_dt_ms,clock_status,"
    "offset_low_ms,offset_high_ms"
)
_NO_READING = ",,,,"


def format_row(row: FusedRow) -> str:
    """One row under UNIFIED_HEADER, without the line end; what is missing is empty."""
    used = age = status = ""
    if row.pair_dt_ns is not None:
        used = format_utc(row.time_ns - row.pair_dt_ns)
        age = str((row.pair_dt_ns + 500_000) // 1_000_000)
        status = "fresh"
    elif row.inwater is not None:
        status = "missing"
    raw = format_utc(row.inwater.utc_ns) if row.inwater is not None else ""
    return (
        f"{format_utc(row.time_ns)},{_columns(row.inwater)},{_columns(row.surface)},{used},{age},{status},"
        f"{_seq(row.inwater)},{_seq(row.surface)},{raw},"
        f"{_ms(row.offset_ns)},{_ms(row.offset_sd_ns)},{_ms(row.pair_dt_ns)},{row.clock_status},"
        f"{_ms(row.offset_low_ns)},{_ms(row.offset_high_ns)}"
    )


def _columns(reading: Reading | None) -> str:
    if reading is None:
        return _NO_READING
    r = reading
    return f"{r.sensor_id},{r.mode},{r.value},{r.temp_c or ''},{r.vin or ''}"


def _seq(reading: Reading | None) -> str:
    return "" if reading is None or reading.seq == UNNUMBERED else str(reading.seq)


def _ms(duration_ns: int | None) -> str:
    """Milliseconds with three decimals, rounded half up; integers all the way, so no digit is a float's."""
    if duration_ns is None:
        return ""
    us = (duration_ns + 500) // 1000
    return f"{'-' if us < 0 else ''}{abs(us) // 1000}.{abs(us) % 1000:03d}"


def write_unified(path: Path, rows: Iterable[FusedRow]) -> None:
    """Put the rows at *path* at once: a reader, or a power cut, sees the old file or the whole new one.

    Raises:
        OSError: the folder cannot be written; whatever was at *path* is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(UNIFIED_HEADER + "\n")
            file.writelines(f"{format_row(row)}\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
