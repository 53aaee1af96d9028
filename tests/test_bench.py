"""The benchmarks run, and what they compare does the same work; how fast, they say themselves."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.fusion import FUSION, PLAIN, Program, execute, installed
from tests.bench.recordings import Kind, write_recording
from tests.sim.rig import ROOT
from topside_daemon.fusion.tables import file_name

pytestmark = pytest.mark.heavy

ROWS = 400
SLIPS = 2  # readings at the edges that a join finds a partner for, or not


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def paired_in(rows: list[dict[str, str]]) -> int:
    return sum(bool(row["inwater_value"] and row["surface_value"]) for row in rows)


@pytest.mark.parametrize("kind", ["cockpit", "ours"])
def test_whoever_is_compared_joins_the_same_rows(tmp_path: Path, kind: Kind) -> None:
    """Each peer that is installed: a row for every in-water reading, as many with a partner as this pairs."""
    write_recording(tmp_path / "recording", ROWS, kind)
    out = tmp_path / "out"
    out.mkdir()
    programs = installed()
    for program in (one for one in programs if one.module == FUSION):
        cost = execute(program, tmp_path / "recording", out)
        assert cost.wall_s > 0 and cost.cpu_s > 0 and cost.peak_mb > 1
    ours = table(out / file_name("csv"))
    for program in (one for one in programs if one.module != FUSION):
        execute(program, tmp_path / "recording", out)
        joined = table(out / "joined.csv")
        assert len(joined) == sum(bool(row["inwater_value"]) for row in ours), program.name
        assert abs(paired_in(joined) - paired_in(ours)) <= SLIPS, program.name


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ("fusion", "--rows", 200, 400, "--rounds", 1, "--kinds", "cockpit", "--only", "this,"),
            (PLAIN, "2 times the readings"),
        ),
        (("store", "--rows", 1000, "--chunks", 1), ("us a row", "us of CPU a seal", "csv.DictWriter")),
    ],
)
def test_a_section_is_run_by_its_name(words: tuple[object, ...], lines: tuple[str, ...]) -> None:
    """`make bench ARGS=...`: every line of the section is there."""
    command = [sys.executable, "-m", "tests.bench", *map(str, words)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert said.stderr == ""
    for line in lines:
        assert line in said.stdout


def test_a_program_that_fails_is_named(tmp_path: Path) -> None:
    """Nothing is compared with what did not run."""
    with pytest.raises(RuntimeError, match="no such folder"):
        execute(Program("this", FUSION), tmp_path / "none", tmp_path)
