"""The table of the offline fusion, row by row what the streaming fuser says, by either kernel, from any
record."""

from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import Reading
from common.rows import encode_row
from tests.sim import HEAD, MS, Machine, S, SimSession, draw_reboots, draw_session
from tests.sim.cockpit import KINDS
from tests.sim.table import table_of
from tests.test_kernel import KERNELS
from topside_daemon.fusion.fuse import fuse_session, timeline_of
from topside_daemon.fusion.kernel import Kernel
from topside_daemon.fusion.latency import latency_of
from topside_daemon.fusion.readers import read_session
from topside_daemon.fusion.report import Report
from topside_daemon.fusion.rhythm import Hold, Rhythm
from topside_daemon.fusion.stream import FusedRow, Fuser
from topside_daemon.fusion.tables import file_name

pytestmark = pytest.mark.heavy

PERIOD_S = 0.111  # of the surface sensor in drawn sessions
HELD = {"mode": "inwater", "fresh_s": 2 * PERIOD_S, "stale_s": 10 * PERIOD_S, "percent_of_surface": True}


def by_fuser(folder: Path, report: Report, rng: Random) -> list[FusedRow]:
    """The same rows from readings one by one, in any order of arrival, with any watermarks."""
    chosen = report.settings
    hold = Hold.of(chosen, Rhythm(None, 0.0, 0)) if chosen.mode == "inwater" else None
    with read_session(folder) as session:
        timeline = timeline_of(session)
        for side, stream in enumerate((session.inwater, session.surface)):
            timeline.set_latency(side, latency_of(stream.sensor, None).total_ns)
        fuser = Fuser(timeline, round(report.tolerance_ms * 1e6), hold=hold)
        waiting = [list(one.readings())[::-1] for one in (session.inwater, session.surface)]
        rows: list[FusedRow] = []
        while any(waiting):
            side = rng.randrange(2)
            for _ in range(min(len(waiting[side]), rng.randrange(1, 40))):
                (fuser.push_surface if side else fuser.push_inwater)(waiting[side].pop())
        return rows + fuser.finish()


def check(folder: Path, rng: Random, **otherwise: Any) -> Report:
    """Both kernels write what the fuser says; every reading of the record is in exactly one row."""
    made: list[tuple[Report, bytes]] = []
    for kernel in KERNELS:
        with TemporaryDirectory() as out:
            report = fuse_session(folder, Path(out), kernel=kernel, **otherwise)
            made.append((report, Path(out, file_name("csv")).read_bytes()))
    report, table = made[0]
    assert all(one == made[0] for one in made)
    rows = by_fuser(folder, report, rng)
    assert table == table_of(rows, report.settings.percent_of_surface)
    with read_session(folder) as session:
        for stream, given_out in (
            (session.inwater, [row.inwater for row in rows]),
            (session.surface, [row.surface for row in rows]),
        ):
            recorded = Counter(stream.readings())
            if report.settings.mode == "paired" or stream is session.inwater:
                assert Counter(one for one in given_out if one is not None) == recorded
            else:
                assert {one for one in given_out if one is not None} <= set(recorded)
    return report


def drawn(rng: Random) -> SimSession:
    topside = Machine("topside-a", ahead_ns=rng.randrange(10**15))
    pi = Machine("pi-a", ahead_ns=rng.randrange(10**15), drift_ppm=rng.uniform(-100, 100))
    return draw_session(rng.randrange(10**6), duration_s=rng.randrange(1, 40), topside=topside, pi=pi)


def thinned(readings: list[Reading], rng: Random) -> list[Reading]:
    """With holes of any length."""
    kept, away = [], 0
    for one in readings:
        away = away - 1 if away else rng.randrange(1, 60) * (rng.random() < 0.03)
        if not away:
            kept.append(one)
    return kept


@pytest.mark.parametrize("mode", [{}, {"percent_of_surface": True}, HELD], ids=["paired", "percent", "held"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_drawn_session_becomes_the_rows_of_the_fuser(mode: dict[str, Any], seed: int) -> None:
    """Numbers, instants, offsets, bounds and digits, to the last byte; with holes, and whatever the
    chunks."""
    rng = Random(seed)
    session = drawn(rng)
    session.inwater[:], session.surface[:] = thinned(session.inwater, rng), thinned(session.surface, rng)
    with TemporaryDirectory() as place:
        folder = session.write(Path(place, "s"))
        _rechunk(folder, rng)
        report = check(folder, rng, **mode)
        assert report.inwater.rows == len(session.inwater)
        assert report.surface.rows == len(session.surface)


def _rechunk(folder: Path, rng: Random) -> None:
    """The same rows cut otherwise, shuffled, some of them twice."""
    for stream in folder.glob("*_*"):
        lines = [
            line
            for chunk in sorted(stream.glob("chunk_*"))
            for line in chunk.read_bytes().splitlines(keepends=True)[1:]
        ]
        for chunk in stream.glob("chunk_*"):
            chunk.unlink()
        if rng.random() < 0.5:
            for _ in range(rng.randrange(5)):
                if lines:
                    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        if rng.random() < 0.3:
            rng.shuffle(lines)
        cuts = sorted(rng.randrange(len(lines) + 1) for _ in range(rng.randrange(4)))
        for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(lines)], strict=True)):
            (stream / f"chunk_{number:05d}.csv").write_bytes(HEAD + b"".join(lines[start:end]))


@pytest.mark.parametrize("seed", range(3))
def test_restarts_of_either_machine_change_no_byte(seed: int, tmp_path: Path) -> None:
    """Several epochs on both sides, whose instants overlap or not."""
    check(draw_reboots(seed).write(tmp_path / "s"), Random(seed))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_old_session_becomes_the_rows_of_the_fuser(kind: str, tmp_path: Path) -> None:
    """Rows without numbers, with steps of their clocks, on whatever rung; in both modes."""
    folder = KINDS[kind].write(tmp_path / "s")
    check(folder, Random(kind))
    check(folder, Random(kind), **HELD)


def test_a_sensor_that_spells_otherwise_keeps_its_digits(tmp_path: Path) -> None:
    """Whole seconds, other zones, spaces, signs and exponents: what is not canonical takes the same way."""
    values = ["-0.000", "1e-7", "1E+3", "00.5", "71", "-12.30", "0.10"]
    under = tmp_path / "s" / "in-water_1"
    deck = tmp_path / "s" / "surface_1"
    stamps = ["00.000Z", "01+00:00", "02.5Z", "03.1234Z", "04.1234567Z", "05.000000Z", "06.000Z"]
    for folder in (under, deck):
        folder.mkdir(parents=True)
        rows = [
            f" 2025-11-21T22:34:{stamp} ,s x,freerun, {value} ,25,,"
            for stamp, value in zip(stamps, values, strict=True)
        ]
        (folder / "session.csv").write_text(
            "timestamp,sensor_id,mode,value,TempC,Vin\n" + "\n".join(rows) + "\n"
        )
    report = check(tmp_path / "s", Random(1))
    assert report.inwater.rows == report.surface.rows == len(values)
    for kernel in KERNELS:
        fuse_session(tmp_path / "s", tmp_path / kernel.name, kernel=kernel)
        text = (tmp_path / kernel.name / file_name("csv")).read_text()
        assert all(f",s x,freerun,{value},25,," in text for value in values)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda one: one.name)
def test_a_percentage_is_only_of_what_there_is(kernel: Kernel, tmp_path: Path) -> None:
    """Empty without a partner, with a dark or negative surface, and with a number that is none of a
    double's."""
    values = [
        ("0.5", "2"),
        ("0.5", "0.0"),
        ("0.5", "-1.0"),
        ("1e308", "1e-308"),
        ("-0.25", "0.5"),
        ("0.3", None),
    ]
    for side, name in enumerate(("in-water_1", "surface_1")):
        rows = [
            encode_row(Reading(n, 0, n * S, 1_763_764_000 * S + n * S, "s", "freerun", value))
            for n, pair in enumerate(values)
            if (value := pair[side]) is not None
        ]
        folder = tmp_path / "s" / name
        folder.mkdir(parents=True)
        (folder / "chunk_00000.csv").write_bytes(HEAD + b"".join(rows))
    fuse_session(tmp_path / "s", kernel=kernel, percent_of_surface=True, tolerance_ms=10)
    lines = (tmp_path / "s" / file_name("csv")).read_text().splitlines()
    assert lines[0].endswith(",percent_of_surface")
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["25", "", "", "", "-50", ""]


def test_a_held_value_ages_and_is_dropped(tmp_path: Path) -> None:
    """Mode inwater: fresh, stale, missing, by thresholds in s; a surface reading later than the row is
    none."""
    for name, instants in (("in-water_1", [0, 1, 2, 3, 12, 40]), ("surface_1", [0.5, 1.0, 3.001])):
        folder = tmp_path / "s" / name
        folder.mkdir(parents=True)
        rows = [
            encode_row(Reading(n, 0, at_ns, 1_763_764_000 * S + at_ns, "s", "freerun", f"{n}.5"))
            for n, at_ns in enumerate(round(at_s * 1000) * MS for at_s in instants)
        ]
        (folder / "chunk_00000.csv").write_bytes(HEAD + b"".join(rows))
    report = fuse_session(tmp_path / "s", mode="inwater", fresh_s=10, stale_s=30)
    lines = (tmp_path / "s" / file_name("csv")).read_text().splitlines()[1:]
    assert [(row[8], row[12], row[13]) for row in (line.split(",") for line in lines)] == [
        ("", "", "missing"),
        ("1.5", "0", "fresh"),
        ("1.5", "1000", "fresh"),
        ("1.5", "2000", "fresh"),
        ("2.5", "8999", "fresh"),
        ("", "", "missing"),
    ]
    assert (report.rows, report.paired) == (6, 4)
    check(tmp_path / "s", Random(2), mode="inwater", fresh_s=1, stale_s=30)
