"""The table of the offline fusion, row by row what the streaming fuser says, by either kernel, from any
record."""

import csv
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import Reading
from common.rows import encode_row
from tests.sim import HEAD, MS, S, draw_reboots
from tests.sim.cockpit import KINDS
from tests.sim.records import drawn, rechunk
from tests.sim.table import check_table, kernels
from topside_daemon.fusion import axis, intake, readers, sorting, texts
from topside_daemon.fusion.fuse import fuse_session
from topside_daemon.fusion.kernel import Kernel
from topside_daemon.fusion.tables import file_name

pytestmark = pytest.mark.heavy

PERIOD_S = 0.111  # of the surface sensor in drawn sessions
HELD = {"mode": "inwater", "fresh_s": 2 * PERIOD_S, "stale_s": 10 * PERIOD_S, "percent_of_surface": True}


@pytest.mark.parametrize("mode", [{}, {"percent_of_surface": True}, HELD], ids=["paired", "percent", "held"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_drawn_session_becomes_the_rows_of_the_fuser(mode: dict[str, Any], seed: int) -> None:
    """Numbers, instants, offsets, bounds and digits, to the last byte; with holes, and whatever the
    chunks."""
    rng = Random(seed)
    session = drawn(rng)
    with TemporaryDirectory() as place:
        folder = session.write(Path(place, "s"))
        rechunk(folder, rng)
        report = check_table(folder, rng, **mode)
        assert report.inwater.rows == len(session.inwater)
        assert report.surface.rows == len(session.surface)


@pytest.mark.parametrize("seed", range(3))
def test_restarts_of_either_machine_change_no_byte(seed: int, tmp_path: Path) -> None:
    """Several epochs on both sides, whose instants overlap or not."""
    check_table(draw_reboots(seed).write(tmp_path / "s"), Random(seed))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_old_session_becomes_the_rows_of_the_fuser(kind: str, tmp_path: Path) -> None:
    """Rows without numbers, with steps of their clocks, on whatever rung; in both modes."""
    folder = KINDS[kind].write(tmp_path / "s")
    check_table(folder, Random(kind))
    check_table(folder, Random(kind), **HELD)


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
    report = check_table(tmp_path / "s", Random(1))
    assert report.inwater.rows == report.surface.rows == len(values)
    for kernel in kernels():
        fuse_session(tmp_path / "s", tmp_path / kernel.name, kernel=kernel)
        text = (tmp_path / kernel.name / file_name("csv")).read_text()
        assert all(f",s x,freerun,{value},25,," in text for value in values)


@pytest.mark.parametrize("kernel", kernels(), ids=lambda one: one.name)
@pytest.mark.parametrize("name", ['"erial', '6" probe', '"'])
def test_a_name_with_a_quote_spoils_no_row(name: str, kernel: Kernel, tmp_path: Path) -> None:
    """Recorders write names as they are; who reads the table by the rules of CSV finds them again."""
    folder = tmp_path / "in-water_1"
    folder.mkdir()
    rows = [
        f"2025-11-21T22:34:{n:02d}.000Z,{name if n % 3 else 's'},freerun,0.{n:02d},25,7" for n in range(12)
    ]
    (folder / "session.csv").write_text("\n".join(["timestamp,sensor_id,mode,value,TempC,Vin", *rows, ""]))
    assert not fuse_session(tmp_path, kernel=kernel).rejects
    with (tmp_path / file_name("csv")).open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [one["inwater_sensor_id"] for one in found] == [name if n % 3 else "s" for n in range(12)]
    assert [one["inwater_value"] for one in found] == [f"0.{n:02d}" for n in range(12)]


@pytest.mark.parametrize("kernel", kernels(), ids=lambda one: one.name)
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
    check_table(tmp_path / "s", Random(2), mode="inwater", fresh_s=1, stale_s=30)


@pytest.mark.parametrize("seed", range(6))
def test_small_blocks_change_no_byte(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a record is cut in memory, also where its rows have to be sorted and merged from many runs."""
    rng = Random(seed)
    folder = drawn(rng).write(tmp_path / "s")
    rechunk(folder, rng)
    for number in range(2):  # rows of the old recorders among ours
        for stream in folder.glob("*_*"):
            chunk = sorted(stream.glob("chunk_*"))[-1]
            lines = chunk.read_bytes().splitlines(keepends=True)
            lines[1 + number : 1 + number] = [
                line.rpartition(b",")[0] + b"\r\n" for line in lines[-9:]
            ] * number
            chunk.write_bytes(b"".join(lines))
    check_table(folder, rng)
    whole = (fuse_session(folder, tmp_path / "whole"), (tmp_path / "whole" / file_name("csv")).read_bytes())
    for module, name, value in (
        (intake, "BATCH_ROWS", 7),
        (sorting, "RUN_BLOCKS", 2),
        (sorting, "MERGED_ROWS", 3),
        (axis, "BLOCK_ROWS", 5),
        (readers, "BLOCK_ROWS", 5),
        (texts, "REGION_BYTES", 300),
    ):
        monkeypatch.setattr(module, name, value)
    check_table(folder, rng)
    cut = (fuse_session(folder, tmp_path / "cut"), (tmp_path / "cut" / file_name("csv")).read_bytes())
    assert cut == whole


def test_rows_of_one_instant_keep_the_order_of_arrival(tmp_path: Path) -> None:
    """Also where the second belongs to another piece of its clock."""
    old = KINDS["two in one ms"]
    folder = old.write(tmp_path / "s")
    with next(folder.glob("in-water_*/session.csv")).open("r+b") as file:
        file.truncate(10_833)
    check_table(folder, Random(1))
