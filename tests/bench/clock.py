"""`make bench-clock`: the same drawn dives through this clock model and through its peers, side by side.

Every line gives the p95 error of the median session, of the worst 5 % of sessions, and the largest error, in
ms; the share of rows inside the stated 95 % interval and inside the certified one; and the median half-width
of the 95 % interval. Floors know the truth and bound what any two-way exchange can do.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.messages import Epoch, Reading
from tests.bench.peers import PEERS, Answer, Fit, Heard, heard
from tests.sim import S
from tests.sim.dives import Dive, Plan, Stretch, WallChange, draw_dive, every, fast_start, start_stop
from tests.sim.oscillators import Floats, Ints
from tests.sim.paths import Habits
from topside_daemon.fusion.bursts import group_bursts
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.fusion.timeline import Timeline

CHUNK_S = 60
MEMORY_PPM = (1.5, 5.0)  # sd of what an earlier session knew of this one's drift
NORMAL_95 = 1.96
HEAD = f"{'ms':<35}      p95  worst 5%   largest   in 95 % certified half-width    n"
DEAR = 5  # pyxdf fits a whole session anew for every chunk: it gets a fifth of the sessions there

Method = Callable[[Heard], Fit]


@dataclass(frozen=True)
class Stratum:
    """One kind of session, how it is asked about, and what is wanted of it.

    live: rows leave in 60 s chunks with what was heard by then, else all at the end. step_s: between the
    rows asked about. goal: p95 error in ms of the median session and of the worst 5 %, wanted with link
    memory if it is remembering.
    """

    name: str
    title: str
    plan: Plan
    sessions: int
    live: bool = False
    step_s: int = 5
    goal: tuple[float, float] | None = None
    remembering: bool = False


@dataclass(frozen=True)
class Outcome:
    """One method on the rows of one session, in ns."""

    error: Floats
    half: Floats
    low: Floats
    high: Floats

    @property
    def p95(self) -> float:
        return float(np.percentile(np.abs(self.error), 95))


def cold(duration_s: float, cadence_s: float) -> Plan:
    return Plan(duration_s=duration_s, bursts_s=every(duration_s, cadence_s), cold=True)


HALF_HOUR = Plan(duration_s=1800, bursts_s=fast_start(1800))
FOUR_HOURS = Plan(duration_s=14400, bursts_s=fast_start(14400))
FIVE_MINUTES = Plan(duration_s=300, bursts_s=start_stop(300), cold=True)
STEPS = (WallChange(300, -37), WallChange(700, 3600), WallChange(1200, 0.4, slewed=True))
STEPPED = replace(HALF_HOUR, pi_wall=STEPS, topside_wall=STEPS[::-1])
REBOOTED = replace(HALF_HOUR, reboot_at_s=900.0)


def stressed(habits: Habits) -> Plan:
    return replace(HALF_HOUR, habits=habits)


STRATA = (
    Stratum("30min", "30 min, a burst every 120 s", cold(1800, 120), 100, goal=(0.25, 0.65)),
    Stratum("4h", "4 h, a burst every 120 s", cold(14400, 120), 60, step_s=10, goal=(0.45, 0.9)),
    Stratum("4h10", "4 h, a burst every 10 s", cold(14400, 10), 20, step_s=20, goal=(0.5, 0.8)),
    Stratum("24h", "24 h, a burst every 120 s", cold(86400, 120), 16, step_s=60, goal=(1.0, 2.0)),
    Stratum("30min-live", "30 min, default bursts", HALF_HOUR, 60, live=True, goal=(0.3, 0.95)),
    Stratum("4h-live", "4 h, default bursts", FOUR_HOURS, 16, live=True, step_s=20, goal=(0.55, 0.85)),
    Stratum(
        "30min-memory", "30 min, every 120 s", cold(1800, 120), 60, True, goal=(0.4, 1.0), remembering=True
    ),
    Stratum("5min", "5 min, START and STOP", FIVE_MINUTES, 100, step_s=2, goal=(0.3, 0.65), remembering=True),
    Stratum("corrupted", "20 % corrupted", replace(HALF_HOUR, corrupted=0.2), 40, goal=(3.0, 3.0)),
    Stratum("reboot", "the Pi reboots, 25 s away", REBOOTED, 40, goal=(1.0, 1.0)),
    Stratum("lost", "70 % of bursts lost", replace(HALF_HOUR, bursts_lost=0.7), 40),
    Stratum("steps", "wall clocks set and slewed", STEPPED, 40),
    Stratum("asymmetry", "asymmetry 2.5 times the usual", stressed(Habits(asymmetry_sd=0.25)), 40),
    Stratum("delays", "jitter, tails and queues 3 times the usual", stressed(Habits(queue_factor=3.0)), 40),
    Stratum("saturated", "all in a standing queue", stressed(Habits(saturated_s=1e6)), 40),
    Stratum("queued", "3 min of standing queue first", stressed(Habits(saturated_s=180.0)), 20, live=True),
)


def this_model(heard: Heard, memory: LinkMemory | None = None) -> Fit:
    """The way of the daemon and of the offline command: bursts into a timeline, rows out of it."""
    pi = heard.stretch.boot
    timeline = Timeline([heard.dive.topside.as_epoch(0)], [Epoch(pi.epoch, pi.boot_id, 0, 0)], memory)
    taken = 0

    def fit(count: int, at_ns: Ints) -> Answer:
        nonlocal taken
        for burst in heard.bursts[taken:count]:
            for part in group_bursts(burst):
                timeline.add_burst(part)
        taken = max(taken, count)
        return _ask(timeline, pi.epoch, at_ns)

    return fit


def _ask(timeline: Timeline, epoch: int, at_ns: Ints) -> Answer:
    rows = [timeline.inwater_time(Reading(0, epoch, at, 0, "a", "freerun", "1")) for at in at_ns.tolist()]
    found = np.array(
        [
            (row.offset_ns, NORMAL_95 * row.offset_sd_ns, row.low_ns, row.high_ns)
            if row.offset_ns is not None and row.offset_sd_ns is not None
            else (np.nan,) * 4
            for row in rows
        ],
        dtype=np.float64,
    )
    return Answer(*found.T)


def with_memory(heard: Heard) -> Fit:
    """An earlier session had shown the drift to a few ppm, and the smallest delay."""
    rng = np.random.default_rng(heard.pi_ns[0])
    drift_ppm = heard.dive.drift_ppm_at(0.0) + rng.normal(0.0, rng.uniform(*MEMORY_PPM))
    return this_model(heard, LinkMemory(drift_ppm, {"udp": heard.dive.path.floor_ns}))


METHODS: dict[str, Method] = {"this model": this_model, "this model, with memory": with_memory, **PEERS}


def methods_for(stratum: Stratum) -> dict[str, Method]:
    return {name: method for name, method in METHODS.items() if stratum.live or name != "chrony-like"}


def measure(method: Method, dive: Dive, stretch: Stretch, stratum: Stratum) -> Outcome | None:
    """One method on one boot of the Pi; None if nothing was ever heard of it."""
    known = heard(dive, stretch)
    if known is None:
        return None
    true_ns = stretch.times_ns(stratum.step_s * S)
    at_ns = stretch.boot.mono_ns(true_ns)
    truth = at_ns - dive.topside.mono_ns(true_ns)
    fit = method(known)
    answers = [(rows, fit(count, at_ns[rows])) for rows, count in _questions(known, true_ns, stratum.live)]
    parts = [_outcome(answer, truth[rows].astype(np.float64)) for rows, answer in answers]
    return Outcome(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else None


def _questions(known: Heard, true_ns: Ints, live: bool) -> Iterator[tuple[slice, int]]:
    """Rows that leave together, and how many bursts had been heard by then."""
    if not live:
        yield slice(None), len(known.bursts)
        return
    chunk = true_ns // (CHUNK_S * S)
    for number in np.unique(chunk).tolist():
        first, last = np.searchsorted(chunk, (number, number + 1)).tolist()
        count = int(np.searchsorted(known.received_ns, (number + 1) * CHUNK_S * S))
        if count:
            yield slice(first, last), count


def _outcome(answer: Answer, truth: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    nothing = np.full(len(truth), np.nan)
    error, low, high = (
        nothing if column is None else column - truth for column in (answer.offset, answer.low, answer.high)
    )
    return error, nothing if answer.half is None else answer.half, low, high


def line(name: str, outcomes: Sequence[Outcome]) -> str:
    """One method's figures over all its sessions."""
    error, half, low, high = (
        np.concatenate([getattr(one, field) for one in outcomes])
        for field in ("error", "half", "low", "high")
    )
    p95 = np.array([one.p95 for one in outcomes]) / 1e6
    figures = (np.median(p95), np.percentile(p95, 95), np.abs(error).max() / 1e6)
    stated = certain = width = "-"
    if np.isfinite(half).all():
        stated, width = f"{np.mean(np.abs(error) <= half):.1%}", f"{np.median(half) / 1e6:.3f}"
    if np.isfinite(low).all():
        certain = f"{np.mean((low <= 0) & (high >= 0)):.2%}"
    shown = " ".join(f"{figure:9.3f}" for figure in figures)
    return f"  {name:<35}{shown} {stated:>9} {certain:>9} {width:>10} {len(outcomes):4}"


def run(stratum: Stratum, sessions: int, seed: int) -> None:
    dives = [draw_dive(seed + number, stratum.plan) for number in range(sessions)]
    print(f"{stratum.name}: {stratum.title}, {'live' if stratum.live else 'final'}\n  {HEAD}")
    for name, method in methods_for(stratum).items():
        chosen = dives[: -(-sessions // DEAR)] if stratum.live and name == "pyxdf" else dives
        outcomes = [measure(method, dive, stretch, stratum) for dive in chosen for stretch in dive.stretches]
        print(line(name, [one for one in outcomes if one is not None]), flush=True)
    if stratum.goal:
        whose = " with memory" if stratum.remembering else ""
        print(f"  {f'wanted of this model{whose}':<35}{stratum.goal[0]:9.3f} {stratum.goal[1]:9.3f}")
    print()


def arguments() -> argparse.Namespace:
    names = [one.name for one in STRATA]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clock", description=__doc__)
    parser.add_argument("--sessions", type=int, help="of each kind; by default 16 to 100")
    parser.add_argument("--seed", type=int, default=1, help="of the first session; default 1")
    parser.add_argument("--strata", default=",".join(names), help="only these kinds; default %(default)s")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sessions, and no day-long ones")
    given = parser.parse_args()
    given.strata = given.strata.split(",")
    unknown = sorted(set(given.strata) - set(names))
    if unknown:
        parser.error(f"no such kind of session: {', '.join(unknown)}")
    return given


def main() -> None:
    given = arguments()
    print("p95: of the median session; in 95 %: rows in that interval; half-width: the median; n: sessions")
    logging.getLogger("pyxdf").setLevel(logging.ERROR)  # it remarks on every segment it finds
    for stratum in STRATA:
        if stratum.name not in given.strata or (given.quick and stratum.name == "24h"):
            continue
        usual = -(-stratum.sessions // 10) if given.quick else stratum.sessions
        run(stratum, given.sessions or usual, given.seed)


if __name__ == "__main__":
    main()
