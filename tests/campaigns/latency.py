"""`make latency`: does a disk that takes 200 ms for every fsync make the stamps late?

Two real Pi daemons record at the same time, one with every fsync on its files delayed by strace, one without;
each row's stamp is held against the instant at which its sensor said it had spoken.
"""

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.campaigns.told import read_folder
from tests.sim.inject import CURE, STRACE, InjectedPi, Injection
from tests.sim.streams import SESSION_ID
from tests.sim.talker import Talker

RATE_HZ = 50
WANTED_MS = 5.0  # 99 % of the stamps are no later
TWICE = 2.0  # on a machine that is late anyway, so much later than without the delay is let pass
FILES = ("session.json.new", "manifest.json.new", "manifest.jsonl", "markers.jsonl", "events.jsonl")


@dataclass(frozen=True)
class Lateness:
    """How late the stamps of one recording were, in ms, and how many fsyncs had been delayed meanwhile."""

    late_ms: tuple[float, ...]
    delayed: int

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.late_ms, percent))

    def __str__(self) -> str:
        shown = ", ".join(f"p{percent} {self.percentile_ms(percent):.2f}" for percent in (50, 95, 99))
        return f"{len(self.late_ms)} stamps late by {shown}, largest {max(self.late_ms):.2f} ms"


def record(folder: Path, seconds: float, delay_us: int) -> Lateness:
    """Record for so long with every fsync of the session delayed."""
    (folder / "pi").mkdir(parents=True)
    files = [SESSION_ID, *(f"{SESSION_ID}/{name}" for name in FILES)]
    files += [f"{SESSION_ID}/chunk_{one:05d}.tmp" for one in range(round(seconds) + 3)]
    delays = [Injection("fsync", f"delay_enter={delay_us}")] if delay_us else []
    with Talker(folder / "sensor", RATE_HZ) as talker:
        with InjectedPi(folder / "pi", files, delays, serial=str(talker.link)) as pi:
            pi.wait_streaming()
            pi.post("/record/start", {"session_id": SESSION_ID, "roll_interval_s": 1})
            time.sleep(seconds)
            pi.post("/record/stop", {"session_id": SESSION_ID})
            delayed = pi.tampered
        start_ns = talker.start.mono_ns
    rows = read_folder(folder / "pi" / SESSION_ID).rows
    return Lateness(tuple((row.mono_ns - start_ns) / 1e6 - 1e3 * float(row.value) for row in rows), delayed)


def verdict(delayed: Lateness, undelayed: Lateness) -> str:
    """What is wrong; "" if the stamps do not feel the disk."""
    if delayed.delayed < 3:
        return f"only {delayed.delayed} fsyncs were delayed: nothing was tried"
    late_ms, anyway_ms = delayed.percentile_ms(99), undelayed.percentile_ms(99)
    if late_ms < max(WANTED_MS, TWICE * anyway_ms):
        return ""
    return f"p99 is {late_ms:.2f} ms, {anyway_ms:.2f} without delay; wanted below {WANTED_MS}"


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m tests.campaigns.latency", description=__doc__)
    flags.add_argument("--seconds", type=float, default=20.0, help="of recording (default %(default)s)")
    flags.add_argument("--delay-ms", type=int, default=200, help="of each fsync (default %(default)s)")
    return flags


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if STRACE is None:
        print(CURE, file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="latency_"))
    print(
        f"recording for {options.seconds:g} s with every fsync delayed by {options.delay_ms} ms, and without"
    )
    with ThreadPoolExecutor(2) as pool:
        ways = (("slow", options.delay_ms * 1000), ("quick", 0))
        running = [pool.submit(record, folder / name, options.seconds, delay_us) for name, delay_us in ways]
        delayed, undelayed = (future.result() for future in running)
    print(f"delayed:   {delayed}; {delayed.delayed} fsyncs")
    print(f"undelayed: {undelayed}")
    if wrong := verdict(delayed, undelayed):
        print(f"FAILED: {wrong}; what was recorded is in {folder}")
        return 1
    shutil.rmtree(folder)
    print("PASSED: the stamps do not wait for the disk")
    return 0


if __name__ == "__main__":
    sys.exit(main())
