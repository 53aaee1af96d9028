"""The table as it is defined, a row at a time: what both kernels are held against."""

import shutil
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from common.messages import Reading
from common.rows import format_utc
from topside_daemon.fusion.columns import UNNUMBERED
from topside_daemon.fusion.fuse import fuse_session, timeline_of
from topside_daemon.fusion.kernel import Kernel, choose_kernel
from topside_daemon.fusion.kernel import build as building
from topside_daemon.fusion.latency import latency_of
from topside_daemon.fusion.readers import read_session
from topside_daemon.fusion.report import Report
from topside_daemon.fusion.rhythm import Hold, Rhythm
from topside_daemon.fusion.stream import FusedRow, Fuser
from topside_daemon.fusion.tables import columns_of, file_name

CC = shutil.which("cc")

_NO_READING = ",,,,"


@cache
def kernels() -> tuple[Kernel, ...]:
    """Both, where there is a compiler."""
    if CC is None:
        return (choose_kernel("numpy"),)
    if building.main():
        raise RuntimeError("the kernel does not compile")
    return choose_kernel("numpy"), choose_kernel("compiled")


def check_table(folder: Path, rng: Random, **otherwise: Any) -> Report:
    """Fuse with either kernel.

    Raises:
        AssertionError: they differ, or the table is not what the fuser says of the readings as they come, or
        a
            reading is not in exactly one row.
    """
    made: list[tuple[Report, bytes]] = []
    for kernel in kernels():
        with TemporaryDirectory() as out:
            report = fuse_session(folder, Path(out), kernel=kernel, **otherwise)
            made.append((report, Path(out, file_name("csv")).read_bytes()))
    report, table = made[0]
    assert all(one == made[0] for one in made), "the kernels differ"
    rows = _by_fuser(folder, report, rng)
    assert table == table_of(rows, report.settings.percent_of_surface), "the fuser differs"
    with read_session(folder) as session:
        streams = (session.inwater, session.surface)
        given = ([row.inwater for row in rows], [row.surface for row in rows])
        for stream, readings in zip(streams, given, strict=True):
            recorded, shown = Counter(stream.readings()), Counter(one for one in readings if one is not None)
            if report.settings.mode == "paired" or stream is session.inwater:
                assert shown == recorded, "a reading is lost, or there twice"
            else:
                assert set(shown) <= set(recorded), "a reading is invented"
    return report


def _by_fuser(folder: Path, report: Report, rng: Random) -> list[FusedRow]:
    """The same rows from readings one by one, in any order of arrival."""
    chosen = report.settings
    hold = Hold.of(chosen, Rhythm(None, 0.0, 0)) if chosen.mode == "inwater" else None
    with read_session(folder) as session:
        timeline = timeline_of(session)
        streams = (session.inwater, session.surface)
        for side, stream in enumerate(streams):
            timeline.set_latency(side, latency_of(stream.sensor, None).total_ns)
        fuser = Fuser(timeline, round(report.tolerance_ms * 1e6), hold=hold)
        waiting = [list(one.readings())[::-1] for one in streams]
        while any(waiting):
            side = rng.randrange(2)
            for _ in range(min(len(waiting[side]), rng.randrange(1, 40))):
                (fuser.push_surface if side else fuser.push_inwater)(waiting[side].pop())
        return fuser.finish()


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
