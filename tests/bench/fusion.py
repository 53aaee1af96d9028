"""Offline fusion beside the as-of joins of data frame libraries and engines, on the same files.

Each is a process of its own, in turn, round by round; figures are medians. The peers get the true offset and
drift for nothing, reuse surface readings, and write no uncertainty: this fits the clock, pairs one to one and
writes twice as many columns.
"""

import argparse
import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.measuring import Cost, run
from tests.bench.recordings import OFFSET_NS, SKEW_PPM, Kind
from tests.sim import UTC_0
from topside_daemon.fusion.kernel import choose_kernel

TOLERANCE_MS = 50
WARM, LARGE = 1, 10_000_000


class Program(NamedTuple):
    """needs: what has to be installed. dear: not run on the largest recordings."""

    name: str
    module: str
    arguments: Sequence[str] = ()
    needs: str = ""
    dear: bool = False


OURS, PLAIN = "this, compiled", "this, numpy"
FUSION = "topside_daemon.fusion"
PROGRAMS = (
    Program(OURS, FUSION, ("--kernel", "compiled")),
    Program(PLAIN, FUSION, ("--kernel", "numpy")),
    Program("Polars, streaming", "tests.bench.joins.polars_streaming", needs="polars"),
    Program("Polars, eager", "tests.bench.joins.polars_eager", needs="polars", dear=True),
    Program("DuckDB, nearest", "tests.bench.joins.duckdb_nearest", needs="duckdb"),
    Program("Arrow", "tests.bench.joins.arrow_take", needs="pyarrow", dear=True),
    Program("pandas", "tests.bench.joins.pandas_merge", needs="pandas", dear=True),
)


def installed() -> list[Program]:
    """Those that can run here; tells of the others."""
    found = [one for one in PROGRAMS if not one.needs or importlib.util.find_spec(one.needs)]
    absent = sorted({one.needs for one in PROGRAMS} - {one.needs for one in found})
    if choose_kernel().name != "compiled":
        found = [one for one in found if one.name != OURS]
        print("no compiled kernel here (a C compiler and `make dev` build it)")
    if absent:
        print(f"not installed: {', '.join(absent)} (`make peers` installs them)")
    return found


def execute(program: Program, recording: Path, out: Path) -> Cost:
    """One run."""
    if program.module == FUSION:
        given = ["--tolerance-ms", TOLERANCE_MS, "--force", "--out", out]
        return run(FUSION, recording, *given, *program.arguments)
    truth = [OFFSET_NS // 1000, UTC_0 // 1000, SKEW_PPM / 1e6, TOLERANCE_MS]
    return run(program.module, recording, out / "joined.csv", *truth)


def compare(recording: Path, out: Path, programs: Sequence[Program], rounds: int) -> dict[str, Cost]:
    """What each costs, in the median of the rounds after a first one that does not count."""
    costs: dict[str, list[Cost]] = {one.name: [] for one in programs}
    for number in range(WARM + rounds):
        for program in programs:
            cost = execute(program, recording, out)
            if number >= WARM:
                costs[program.name].append(cost)
    return {name: Cost.typical(found) for name, found in costs.items()}


def show(costs: dict[str, Cost]) -> None:
    """A line for each, with what this takes in its terms."""
    mine = [name for name in (OURS, PLAIN) if name in costs]
    print(f"  {'':<18} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}", *(f"{one}: wall CPU" for one in mine))
    for name, cost in costs.items():
        line = f"  {name:<18} {cost.wall_s:8.2f} {cost.cpu_s:8.2f} {cost.peak_mb:8.0f}"
        for one in mine:
            ratio = costs[one].over(cost)
            line += f"        x {ratio.wall_s:6.2f} {ratio.cpu_s:5.2f}" * (name not in mine)
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fusion", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="readings a side")
    parser.add_argument("--large", action="store_true", help=f"{LARGE} readings a side too: 8 GB of disk")
    parser.add_argument("--kinds", nargs="+", choices=("ours", "cockpit"), default=["cockpit", "ours"])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="programs whose name holds one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="where the files go; by default the system's place")
    given = parser.parse_args()
    programs = [
        one for one in installed() if given.only is None or any(part in one.name for part in given.only)
    ]
    grown: dict[tuple[Kind, int], Cost] = {}
    for rows in [*given.rows, *([LARGE] if given.large else [])]:
        for kind in given.kinds:
            with tempfile.TemporaryDirectory(dir=given.scratch) as place:
                recording, out = Path(place, "recording"), Path(place, "out")
                out.mkdir()
                # In a process of its own: whoever is started later inherits this one's peak of memory.
                run("tests.bench.recordings", recording, "--rows", rows, "--kind", kind)
                chosen = [one for one in programs if not (one.dear and rows >= LARGE)]
                print(f"{rows} + {rows} readings, {kind}, {_megabytes(recording):.0f} MB of CSV", flush=True)
                costs = compare(
                    recording, out, chosen, given.rounds if rows < LARGE else min(3, given.rounds)
                )
                show(costs)
                if OURS in costs:
                    grown[kind, rows] = costs[OURS]
                shutil.rmtree(place)
                Path(place).mkdir()
    _show_growth(grown)


def _megabytes(recording: Path) -> float:
    return sum(path.stat().st_size for path in recording.glob("*/session.csv")) / 1e6


def _show_growth(grown: dict[tuple[Kind, int], Cost]) -> None:
    """Each against the next larger one."""
    for (kind, rows), cost in grown.items():
        more = [other for other in grown if other[0] == kind and other[1] > rows]
        if more:
            larger = min(more, key=lambda other: other[1])
            ratio = grown[larger].over(cost)
            print(
                f"{kind}: {larger[1] / rows:.0f} times the readings: {ratio.wall_s:.1f} times the wall, "
                f"{ratio.cpu_s:.1f} times the CPU, {ratio.peak_mb:.2f} times the memory"
            )


if __name__ == "__main__":
    main()
