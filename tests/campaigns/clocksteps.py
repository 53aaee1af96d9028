"""Sessions in which one machine's clock is wrong: set by an hour, booted in 1970, 100 ppm fast or slow."""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.files import read_lines
from common.messages import Event
from common.rows import parse_utc
from tests.campaigns.agreement import (
    ROLL_S,
    Stage,
    agreed,
    conclude,
    p95_of,
    readings_of,
    session_faults,
    staged,
    table_of,
)
from tests.sim.rig import FAKETIME
from tests.sim.talker import Talker

RATE_HZ = 9.0  # libfaketime slows every clock call and makes threads wait for each other
ROWS_A_STEP = 20  # so many readings between two settings of a clock
ROWS = 130  # of a session
ERROR_MS = 5.0  # wanted of 95 % of the readings
OFFSET_MS = 1.0  # both processes run on one clock, so the true offset is 0
DRIFT_PPM = 50.0  # what a quarter of a minute can tell of it
SIZE_S = 0.5  # of a step as told
HOUR_1970 = "@1970-01-01 00:00:00"


@dataclass(frozen=True)
class Scene:
    """What one side's clock does: settings as libfaketime takes them, one after another, or a wrong rate."""

    name: str
    side: str
    settings: tuple[str, ...] = ()
    ppm: int = 0

    @property
    def rate_ppm(self) -> int:
        """How much the Pi gains on the topside machine."""
        return self.ppm if self.side == "Pi" else -self.ppm

    def environment(self, setting: Path) -> dict[str, str]:
        if self.ppm:
            return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"+0 x{1 + self.ppm / 1e6:.6f}"}
        return {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(setting),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else threads that wait for the GIL spin
        }


def scenes() -> list[Scene]:
    return [
        scene
        for side in ("Pi", "topside")
        for scene in (
            Scene(f"{side} set by -1 h, +2 h, -1 h", side, ("+0", "-3600", "+3600", "+0")),
            Scene(f"{side} booted in 1970, then set right", side, (HOUR_1970, "+0")),
            Scene(f"{side} gains 100 ppm", side, ppm=100),
            Scene(f"{side} loses 100 ppm", side, ppm=-100),
        )
    ]


@dataclass(frozen=True)
class Recorded:
    """A session that was recorded with a wrong clock, and what is known of the truth."""

    scene: Scene
    session: Path
    steps_s: list[float]  # true sizes of the settings
    inwater: Talker
    surface: Talker
    clock: list[dict[str, Any]]  # the segments of the report

    @property
    def streams(self) -> tuple[Path, Path]:
        (inwater,), (surface,) = self.session.glob("in-water_*"), self.session.glob("surface_*")
        return inwater, surface


def record(stage: Stage, scene: Scene, folder: Path, rows: int = ROWS) -> Recorded:
    """One session; the clock is set again and again while it runs.

    Raises:
        AssertionError: it did not become complete.
    """
    setting = folder / "setting"
    victim, topside = stage.pi if scene.side == "Pi" else stage.topside, stage.topside
    victim.environment = scene.environment(setting)
    settings, steps_s = scene.settings or ("+0",), []
    setting.write_text(settings[0] + "\n", encoding="ascii")
    started_s = time.time()
    with stage.running():
        topside.post("/session/start", {"mission": "clock"})
        for before, after in pairwise(settings):
            _wait_for_more(stage, ROWS_A_STEP)
            setting.write_text(after + "\n", encoding="ascii")
            steps_s.append(_ahead_s(after, started_s) - _ahead_s(before, started_s))
        _wait_for_more(stage, rows - ROWS_A_STEP * len(steps_s))
        said = agreed(topside)
    return Recorded(
        scene, Path(said["folder"]), steps_s, stage.inwater, stage.surface, said["report"]["clock"]
    )


def _ahead_s(setting: str, started_s: float) -> float:
    """How far a wall clock is ahead that is set so."""
    return -started_s if setting == HOUR_1970 else float(setting)


def _wait_for_more(stage: Stage, count: int) -> None:
    session = stage.topside.session()
    goals = session["inwater_seq"] + count, session["surface_seq"] + count

    def there() -> bool:
        now = stage.topside.session()
        return bool(now["inwater_seq"] >= goals[0] and now["surface_seq"] >= goals[1])

    stage.topside.wait_for(there)


def faults_of(one: Recorded, pi_data: Path) -> list[str]:
    """Everything that a wrong clock has spoilt."""
    faults = session_faults(one.session, pi_data, one.inwater.sent, one.surface.sent)
    for stream in one.streams:
        faults += rolling_faults(stream)
    faults += step_faults(one)
    if (p95 := p95_of(errors_ms(one)[1])) > ERROR_MS:
        faults.append(f"fusion puts 95 % of the readings within {p95:.3f} ms of their stamps only")
    return [*faults, *offset_faults(one.clock, one.scene.rate_ppm)]


def rolling_faults(stream: Path) -> Iterator[str]:
    """Whether chunks were sealed at their pace: what a wall clock does must not hold them up."""
    readings = iter(readings_of(stream))
    for path in sorted(stream.glob("chunk_*.csv")):
        mine = [
            next(readings).mono_ns for line in path.read_bytes().splitlines()[1:] if b",SYNC_" not in line
        ]
        if mine and mine[-1] - mine[0] > (ROLL_S + 1) * 1e9:
            yield f"{stream.name}: {path.name} holds {(mine[-1] - mine[0]) / 1e9:.1f} s instead of {ROLL_S} s"


def step_faults(one: Recorded) -> Iterator[str]:
    """Whether each setting of the clock is an event with its size, and nothing else is."""
    inwater, surface = one.streams
    on_pi = one.scene.side == "Pi"
    for place, true_s in (
        (inwater, one.steps_s if on_pi else []),
        (one.session, [] if on_pi else one.steps_s),
    ):
        told_s = steps_told_s(place)
        if not _alike(told_s, true_s):
            yield f"{place.name}: events tell of steps by {told_s} s, it was set by {true_s} s"
    stamped_s = steps_stamped_s(inwater if on_pi else surface)
    if not _alike(stamped_s, one.steps_s):
        yield f"the wall time of the rows jumps by {stamped_s} s, the clock was set by {one.steps_s} s"


def _alike(found_s: Sequence[float], true_s: Sequence[float]) -> bool:
    """The day of 1970 began when the first process looked, seconds after we wrote it down."""
    slack_s = [SIZE_S if abs(true) < 1e6 else 30.0 for true in true_s]
    return len(found_s) == len(true_s) and all(
        abs(found - true) < slack for found, true, slack in zip(found_s, true_s, slack_s, strict=True)
    )


def steps_told_s(folder: Path) -> list[float]:
    """The sizes of all steps and slews that events.jsonl tells of."""
    events = [
        event for event in read_lines(folder / "events.jsonl", Event) if event.kind.startswith("clock_")
    ]
    sizes = [re.search(r"by ([+-][0-9.]+) s", event.detail) for event in events]
    return [float(size[1]) if size else 0.0 for size in sizes]


def steps_stamped_s(stream: Path) -> list[float]:
    """By how much the wall time of successive rows differs from their monotonic time."""
    ahead_ns = [reading.utc_ns - reading.mono_ns for reading in readings_of(stream)]
    jumps_s = [(after - before) / 1e9 for before, after in pairwise(ahead_ns)]
    return [round(jump, 3) for jump in jumps_s if abs(jump) > SIZE_S]


def offset_faults(clock: list[dict[str, Any]], rate_ppm: int) -> Iterator[str]:
    """Whether the clock model saw what the monotonic clocks did, and that alone."""
    if len(clock) != 1:
        yield f"the clock model has {len(clock)} segments instead of one"
    for segment in clock:
        if abs(segment["drift_ppm"] - rate_ppm) > DRIFT_PPM:
            yield f"drift {segment['drift_ppm']:.1f} ppm, true {rate_ppm} ppm"
        if not rate_ppm and abs(segment["offset_ns"]) / 1e6 > OFFSET_MS:
            yield f"offset {segment['offset_ns'] / 1e6:.3f} ms, true 0 ms"


def errors_ms(one: Recorded) -> tuple[list[float], list[float]]:
    """How far the fused in-water times are from the instants at which the lines were sent; and how far
    without what the stamps were late: a busy machine is woken late, whatever its clock says.

    The axis of the table is the topside clock, right or wrong: its quickest surface reading tells what it
    showed at a true instant.
    """
    rows = table_of(one.session)
    topside_gains = one.scene.ppm if one.scene.side == "topside" else 0
    seen = [
        (parse_utc(row["surface_timestamp_used"] or row["timestamp"]), one.surface, row["surface_value"])
        for row in rows
        if row["surface_value"]
    ]
    axis_ns = min(_behind_ns(*reading, topside_gains) for reading in seen)
    late_ns = stamped_late_ns(one)
    found = {
        int(row["inwater_seq"]): _behind_ns(
            parse_utc(row["timestamp"]), one.inwater, row["inwater_value"], topside_gains
        )
        for row in rows
        if row["inwater_seq"]
    }
    whole = [abs(behind_ns - axis_ns) / 1e6 for behind_ns in found.values()]
    return whole, [abs(behind_ns - axis_ns - late_ns[seq]) / 1e6 for seq, behind_ns in found.items()]


def stamped_late_ns(one: Recorded) -> dict[int, int]:
    """By how much each in-water stamp is later than that of the quickest, by seq."""
    gains = one.scene.ppm if one.scene.side == "Pi" else 0
    behind_ns = {
        reading.seq: _behind_ns(reading.mono_ns, one.inwater, reading.value, gains)
        for reading in readings_of(one.streams[0])
    }
    return {seq: behind - min(behind_ns.values()) for seq, behind in behind_ns.items()}


def _behind_ns(stamp_ns: int, talker: Talker, value: str, gains_ppm: int) -> int:
    """A stamp minus the true instant, on a clock that gains so much."""
    said_ns = talker.said_at_utc_ns(value)
    return stamp_ns - said_ns - (said_ns - talker.start.utc_ns) * gains_ppm // 1_000_000


def run_scene(folder: Path, scene: Scene) -> list[str]:
    """Record one scene in *folder*, print how it went, and say what was wrong."""
    folder.mkdir()
    try:
        with staged(folder, RATE_HZ) as stage:
            one = record(stage, scene, folder)
            faults = faults_of(one, stage.pi.data)
    except AssertionError as error:
        return [f"{scene.name}: {error}"]
    whole, fused = errors_ms(one)
    told = steps_told_s(one.streams[0] if scene.side == "Pi" else one.session)
    print(
        f"{scene.name:39} readings {len(whole)}, error p95 {p95_of(whole):.3f} ms,"
        f" without late stamps {p95_of(fused):.3f}, drift {one.clock[0]['drift_ppm']:+.1f} ppm,"
        f" steps told {told}",
        flush=True,
    )
    return [f"{scene.name}: {fault}" for fault in faults]


def main(arguments: list[str] | None = None) -> int:
    """Record sessions while one machine's clock is set, or runs at a wrong rate."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.clocksteps", description=main.__doc__)
    parser.add_argument("--only", default="", help="only scenes with this in their name")
    options = parser.parse_args(arguments)
    if not FAKETIME.exists():
        print("libfaketime is not installed: apt install faketime", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="clocksteps-"))
    chosen = [scene for scene in scenes() if options.only in scene.name]
    faults = [
        fault for number, scene in enumerate(chosen) for fault in run_scene(folder / str(number), scene)
    ]
    return conclude(faults, folder, f"tests.campaigns.clocksteps --only '{options.only}'")


if __name__ == "__main__":
    sys.exit(main())
