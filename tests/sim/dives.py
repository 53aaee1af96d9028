"""Whole sessions drawn from a seed: two clocks, a tether, a schedule of bursts, and what goes wrong.

A `Dive` knows the exchanges as the topside daemon would record them, and the truth behind them. One seed
draws the same clocks and the same tether whatever the plan says of corruption, reboots and wall clocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath

import numpy as np

from common.messages import Epoch, Exchange, Kind, Reading
from tests.sim import MS, US, UTC_0, S, SimSession
from tests.sim.oscillators import Crystal, Ints, pi_crystal, topside_crystal
from tests.sim.paths import USUAL, Habits, Path, draw_path

PROBE_SPACING_NS = 30 * MS
SYNC_ID = "6b1f2c1e-8f0a-4c8e-9d57-0d6a5f1f3c11"
TOPSIDE_BOOT = "70751de0-0000-4000-8000-000000000001"
PI_BOOTS = ("91000000-0000-4000-8000-000000000001", "91000000-0000-4000-8000-000000000002")
SLEW_PER_S = 1 / 8  # what is left of a correction, as the kernel's phase loop takes it at the shortest poll


@dataclass(frozen=True)
class WallChange:
    """Somebody sets a wall clock at a true instant, at once or by a slew."""

    at_s: float
    by_s: float
    slewed: bool = False

    def moved_ns(self, true_ns: Ints) -> Ints:
        since_s = np.maximum(0, true_ns - round(self.at_s * S)) / S
        share = -np.expm1(-since_s * SLEW_PER_S) if self.slewed else since_s > 0
        return np.rint(self.by_s * S * share).astype(np.int64)


@dataclass(frozen=True)
class Boot:
    """One run of one machine: its monotonic and its wall clock as functions of true time in ns."""

    boot_id: str
    epoch: int
    crystal: Crystal
    ahead_ns: int
    wall_error_ns: int = 0
    wall_changes: tuple[WallChange, ...] = ()

    def mono_ns(self, true_ns: Ints) -> Ints:
        return self.crystal.reading_ns(true_ns) + self.ahead_ns

    def true_ns(self, mono_ns: Ints) -> Ints:
        return self.crystal.true_ns(mono_ns - self.ahead_ns)

    def utc_ns(self, true_ns: Ints) -> Ints:
        """In whole microseconds; it runs with the crystal of its machine until somebody sets it."""
        now = self.crystal.reading_ns(true_ns) + (UTC_0 + self.wall_error_ns)
        for change in self.wall_changes:
            now += change.moved_ns(true_ns)
        return now // US * US

    def as_epoch(self, true_ns: int) -> Epoch:
        at = np.array([true_ns])
        return Epoch(self.epoch, self.boot_id, int(self.mono_ns(at)[0]), int(self.utc_ns(at)[0]))


@dataclass(frozen=True)
class Stretch:
    """True time, in ns, during which one boot of a machine records."""

    boot: Boot
    start_ns: int
    end_ns: int

    def times_ns(self, period_ns: int) -> Ints:
        """True instants at which a sensor of this period is heard."""
        return np.arange(self.start_ns, self.end_ns, period_ns)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a session is like before anything is drawn.

    bursts_s: when each begins; the first is START, the last STOP. cold: the first exchange of a burst
    opens a connection. corrupted: share of exchanges whose stamps are wrong. bursts_lost: share of whole
    bursts. reboot_at_s: the Pi goes away for outage_s and comes back as another boot.
    """

    duration_s: float
    bursts_s: tuple[float, ...]
    probes: int = 8
    cold: bool = False
    habits: Habits = USUAL
    corrupted: float = 0.0
    bursts_lost: float = 0.0
    reboot_at_s: float | None = None
    outage_s: float = 25.0
    pi_wall: tuple[WallChange, ...] = ()
    topside_wall: tuple[WallChange, ...] = ()


def every(duration_s: float, cadence_s: float) -> tuple[float, ...]:
    """START at 0, a burst every so often, STOP at the end."""
    return (*np.arange(0.0, duration_s, cadence_s).tolist(), duration_s)


def fast_start(duration_s: float, cadence_s: float = 30.0) -> tuple[float, ...]:
    """As the daemon does by itself: 0, 3, 8, 18, 38, 78 s, then every *cadence_s*."""
    first = (0.0, 3.0, 8.0, 18.0, 38.0)
    return (*first, *np.arange(78.0, duration_s, cadence_s).tolist(), duration_s)


def start_stop(duration_s: float) -> tuple[float, ...]:
    return (0.0, duration_s)


@dataclass(frozen=True)
class Dive:
    """A drawn session. false: positions of the exchanges whose stamps were corrupted."""

    plan: Plan
    topside: Boot
    stretches: tuple[Stretch, ...]
    path: Path
    exchanges: list[Exchange]
    false: frozenset[int]

    def offset_ns_at(self, pi_mono_ns: Ints, stretch: int = 0) -> Ints:
        """The truth, Pi - topside, at instants of the clock of one boot of the Pi; exact to 2 ns."""
        true_ns = self.stretches[stretch].boot.true_ns(pi_mono_ns)
        return pi_mono_ns - self.topside.mono_ns(true_ns)

    def drift_ppm_at(self, true_s: float) -> float:
        return self.stretches[0].boot.crystal.ppm_at(true_s) - self.topside.crystal.ppm_at(true_s)

    @cached_property
    def bursts(self) -> list[list[Exchange]]:
        """The exchanges, burst by burst in the order of time."""
        probes = self.plan.probes
        return [self.exchanges[k : k + probes] for k in range(0, len(self.exchanges), probes)]

    def record(self, period_ns: int = 111 * MS, surface_period_ns: int = 112 * MS) -> SimSession:
        """What both machines would have on file, with a sensor on each side."""
        end_ns = round(self.plan.duration_s * S)
        deck = Stretch(self.topside, 0, end_ns)
        session = SimSession([], [], self.exchanges, [self.topside.as_epoch(0)], [])
        session.surface += _readings("b", deck, surface_period_ns, session.surface_truth_ns)
        for one in self.stretches:
            session.inwater += _readings("a", one, period_ns, session.inwater_truth_ns)
            session.pi_epochs.append(one.boot.as_epoch(one.start_ns))
        return session


def write_session(folder: FilePath, dive: Dive, period_ns: int = 111 * MS) -> SimSession:
    """Lay a dive down as a session folder; what was written, with the true time of each reading."""
    session = dive.record(period_ns, period_ns + MS)
    session.write(folder)
    return session


def draw_dive(seed: int, plan: Plan) -> Dive:
    """The session that this seed makes of a plan."""
    clocks, tether, traffic, lies = np.random.default_rng(seed).spawn(4)
    pi = pi_crystal(clocks, plan.duration_s)
    deck = topside_crystal(clocks, plan.duration_s)
    topside = Boot(TOPSIDE_BOOT, 0, deck, int(clocks.integers(10**12, 10**15)), 0, plan.topside_wall)
    wall_error_ns = int(clocks.normal(0.0, 3.0) * S)
    stretches = _stretches(plan, pi, int(clocks.integers(10**10, 10**13)), wall_error_ns)
    path = draw_path(tether, plan.duration_s, plan.habits)
    stamps = _exchange(traffic, plan, path, topside, stretches)
    false = stamps.corrupt(lies, plan.corrupted)
    return Dive(plan, topside, stretches, path, stamps.exchanges(plan, topside, stretches), false)


def _stretches(plan: Plan, crystal: Crystal, ahead_ns: int, wall_error_ns: int) -> tuple[Stretch, ...]:
    end_ns = round(plan.duration_s * S)
    first = Boot(PI_BOOTS[0], 0, crystal, ahead_ns, wall_error_ns, plan.pi_wall)
    if plan.reboot_at_s is None:
        return (Stretch(first, 0, end_ns),)
    down_ns = round(plan.reboot_at_s * S)
    up_ns = down_ns + round(plan.outage_s * S)
    since_boot_ns = 15 * S - int(crystal.reading_ns(np.array([up_ns]))[0])
    second = Boot(PI_BOOTS[1], 1, crystal, since_boot_ns, wall_error_ns, plan.pi_wall)
    return (Stretch(first, 0, down_ns), Stretch(second, up_ns, end_ns))


@dataclass(frozen=True)
class _Stamps:
    """Exchanges as arrays, bursts by probes: true send time, the stamps, who answered (-1: nobody)."""

    sent_ns: Ints
    t1: Ints
    t2: Ints
    t3: Ints
    t4: Ints
    pi_utc: Ints
    topside_utc: Ints
    stretch: Ints

    def corrupt(self, rng: np.random.Generator, share: float) -> frozenset[int]:
        """Move stamps of some exchanges, in place, by 1 ms..10 s either way; which ones.

        Of three in four both of the Pi's stamps move as one, so that the delay does not betray it.
        """
        shape = self.t1.shape
        hit = rng.random(shape) < share
        amount = rng.choice((-1, 1), shape) * np.exp(rng.uniform(np.log(MS), np.log(10 * S), shape))
        moved = np.where(hit, np.rint(amount), 0).astype(np.int64)
        which = rng.integers(0, 8, shape)
        self.t2[:] += np.where(which != 6, moved, 0)
        self.t3[:] += np.where(which < 6, moved, 0)
        self.t4[:] += np.where(which == 6, moved, 0)
        return frozenset(np.flatnonzero(hit).tolist())

    def exchanges(self, plan: Plan, topside: Boot, stretches: Sequence[Stretch]) -> list[Exchange]:
        count, probes = self.t1.shape
        columns = (self.t1, self.t2, self.t3, self.t4, self.pi_utc, self.topside_utc, self.stretch)
        rows = zip(*(column.ravel().tolist() for column in columns), strict=True)
        found: list[Exchange] = []
        for number, (t1, t2, t3, t4, pi_utc, topside_utc, who) in enumerate(rows):
            burst, probe = divmod(number, probes)
            kind: Kind = "START" if burst == 0 else "STOP" if burst == count - 1 else "PERIODIC"
            asked = (SYNC_ID, kind, burst, probe, topside.boot_id, topside_utc, t1)
            if who >= 0:
                found.append(Exchange(*asked, t2, t3, t4, stretches[who].boot.boot_id, pi_utc))
            else:
                found.append(Exchange(*asked, status="timeout"))
        return found


def _exchange(
    rng: np.random.Generator, plan: Plan, path: Path, topside: Boot, stretches: Sequence[Stretch]
) -> _Stamps:
    """Every probe of every burst over the path; who is away, cut off or unlucky does not answer."""
    bursts_ns = np.rint(np.array(plan.bursts_s) * S).astype(np.int64)
    sent = bursts_ns[:, None] + np.arange(plan.probes) * PROBE_SPACING_NS
    cold = np.zeros(sent.shape, bool)
    cold[:, 0] = plan.cold
    seen = path.arrive_ns(rng, sent, cold)
    answered = seen + rng.integers(20 * US, 200 * US, sent.shape)
    back = path.return_ns(rng, answered)
    lost = path.lost(rng, sent, back)
    lost |= (rng.random(len(bursts_ns)) < plan.bursts_lost)[:, None]
    stretch = np.full(sent.shape, -1)
    t2, t3, utc = np.zeros_like(sent), np.zeros_like(sent), np.zeros_like(sent)
    for number, one in enumerate(stretches):
        last = number == len(stretches) - 1
        here = (seen >= one.start_ns) & (last | (answered < one.end_ns))
        stretch[here & ~lost] = number
        for stamps, clock in ((t2, one.boot.mono_ns(seen)), (t3, one.boot.mono_ns(answered))):
            stamps[here] = clock[here]
        utc[here] = one.boot.utc_ns(seen)[here]
    return _Stamps(
        sent, topside.mono_ns(sent), t2, t3, topside.mono_ns(back), utc, topside.utc_ns(sent), stretch
    )


def _readings(
    sensor_id: str, stretch: Stretch, period_ns: int, truth_ns: dict[int, int]
) -> Iterator[Reading]:
    """A sensor's readings during a stretch, numbered on from what *truth_ns* holds and remembered there."""
    boot, times_ns = stretch.boot, stretch.times_ns(period_ns)
    stamps = (times_ns, boot.mono_ns(times_ns), boot.utc_ns(times_ns))
    for true, mono, utc in zip(*(column.tolist() for column in stamps), strict=True):
        seq = len(truth_ns)
        truth_ns[seq] = true
        value = f"{0.01 + seq * 1e-6:.6f}"
        yield Reading(seq, boot.epoch, mono, utc, sensor_id, "freerun", value, "25.19", "7.494")
