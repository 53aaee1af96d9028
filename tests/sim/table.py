"""The table as it is defined, a row at a time: what both kernels are held against."""

from collections.abc import Iterable

from common.messages import Reading
from common.rows import format_utc
from topside_daemon.fusion.columns import UNNUMBERED
from topside_daemon.fusion.stream import FusedRow
from topside_daemon.fusion.tables import columns_of

_NO_READING = ",,,,"


def table_of(rows: Iterable[FusedRow], percent: bool = False) -> bytes:
    """The whole file."""
    lines = (format_row(row) + (f",{percent_of(row)}" if percent else "") for row in rows)
    return "".join(f"{line}\n" for line in (",".join(columns_of(percent)), *lines)).encode()


def format_row(row: FusedRow) -> str:
    """One row of COLUMNS, without the line end; what is missing is empty."""
    used = age = ""
    if row.pair_dt_ns is not None:
        used = format_utc(row.time_ns - row.pair_dt_ns)
        age = str((row.pair_dt_ns + 500_000) // 1_000_000)
    raw = format_utc(row.inwater.utc_ns) if row.inwater is not None else ""
    return (
        f"{format_utc(row.time_ns)},{_columns(row.inwater)},{_columns(row.surface)},"
        f"{used},{age},{row.surface_status},{_seq(row.inwater)},{_seq(row.surface)},{raw},"
        f"{_ms(row.offset_ns)},{_ms(row.offset_sd_ns)},{_ms(row.pair_dt_ns)},{row.clock_status},"
        f"{_ms(row.offset_low_ns)},{_ms(row.offset_high_ns)}"
    )


def percent_of(row: FusedRow) -> str:
    """In-water as a percentage of surface light, where the partner is fresh."""
    if row.inwater is None or row.surface is None or row.surface_status != "fresh":
        return ""
    under, deck = float(row.inwater.value), float(row.surface.value)
    return f"{100 * under / deck:.6g}" if deck > 0 else ""


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
