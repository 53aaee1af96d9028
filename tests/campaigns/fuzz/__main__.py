"""Rubbish at every door: the serial line, the bus, the time responder, the HTTP calls and the session
folders."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.campaigns.fuzz import bus, calls, files, lines
from tests.campaigns.fuzz.outcome import Outcome

FULL_S = 180.0
FULL_SHARE = 0.2  # from here on with what takes its time, however little of the rest
LINES, FRAMES, REQUESTS, SESSIONS = 300_000, 600_000, 20_000, 400  # of a full run


def fuzz_lines(outcome: Outcome, seed: int, share: float, folder: Path) -> None:
    """The serial line."""
    lines.hear_lines(outcome, seed, round(LINES * share))
    lines.measure_memory(outcome, seed)
    lines.hear_on_pty(outcome, seed, 30 * share, folder)


def fuzz_bus(outcome: Outcome, seed: int, share: float, folder: Path) -> None:
    """The bus."""
    bus.fuzz_bus(outcome, seed, round(FRAMES * share), folder, share >= FULL_SHARE)


def fuzz_calls(outcome: Outcome, seed: int, share: float, folder: Path) -> None:
    """The HTTP calls and the time responder."""
    calls.fuzz_calls(outcome, seed, round(REQUESTS * share), folder, share >= FULL_SHARE)


def fuzz_files(outcome: Outcome, seed: int, share: float, folder: Path) -> None:
    """Session folders."""
    files.fuse_rubbish(outcome, seed, round(SESSIONS * share), folder)


DOORS = {"lines": fuzz_lines, "bus": fuzz_bus, "calls": fuzz_calls, "files": fuzz_files}


def main(arguments: list[str] | None = None) -> int:
    """Send rubbish to both daemons; 0 if nothing gave way."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.fuzz", description=main.__doc__)
    parser.add_argument(
        "--seconds", type=float, default=FULL_S, help="about how long; a full run is 180 s on two cores"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed sends the same bytes")
    parser.add_argument("--door", choices=DOORS, action="append", help="only this one; may be repeated")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    outcomes = []
    for name in options.door or DOORS:
        outcome = Outcome(name)
        place = folder / name
        place.mkdir()
        DOORS[name](outcome, options.seed, options.seconds / FULL_S, place)
        outcomes.append(outcome)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    print(f"{'FAILED' if failures else 'PASSED'}: {len(failures)} failures, seed {options.seed}, {folder}")
    if not failures:
        shutil.rmtree(folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
