"""The tether between two machines: what delays a packet each way, how it is lost, and when nothing passes.

Delays are in ns and add to true time. "Out" is topside to Pi, "home" is Pi to topside.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.sim import MS, S
from tests.sim.oscillators import Floats, Ints, log_uniform

Flags = NDArray[np.bool_]

TAIL_LONGEST_NS = 300 * MS


@dataclass(frozen=True)
class Habits:
    """What kind of tether it is; a session draws its own from it.

    asymmetry_sd: of (out - home) / (out + home), the network's part. queue_factor: on all that comes on
    top of the least delay. saturated_s: how long a standing queue lasts in which the session begins.
    cuts_every_s: on average.
    """

    asymmetry_sd: float = 0.10
    queue_factor: float = 1.0
    loss: float = 0.01
    saturated_s: float = 0.0
    cuts_every_s: float = 3600.0


USUAL = Habits()


@dataclass(frozen=True)
class Spells:
    """Stretches of true time, at least one, in order and apart, each with a level of its own."""

    start_ns: Ints
    end_ns: Ints
    level: Floats

    def at(self, true_ns: Ints) -> tuple[Flags, Ints]:
        """Whether each instant lies in a spell, and in which (outside: in some other)."""
        place = np.maximum(0, np.searchsorted(self.start_ns, true_ns, side="right") - 1)
        return (true_ns >= self.start_ns[place]) & (true_ns < self.end_ns[place]), place

    def level_at(self, true_ns: Ints) -> Floats:
        """0 outside."""
        inside, place = self.at(true_ns)
        return np.where(inside, self.level[place], 0.0)


def _ns(seconds: list[float]) -> Ints:
    at_ns: Ints = np.rint(np.array(seconds) * S).astype(np.int64)
    return at_ns


NEVER = Spells(_ns([1e9]), _ns([1e9]), np.zeros(1))


def draw_spells(
    rng: np.random.Generator,
    duration_s: float,
    pause_s: float,
    lasting_s: tuple[float, float],
    level: tuple[float, float] = (1.0, 1.0),
) -> Spells:
    """From a first pause on to the end; pauses are exponential with this mean, the rest is uniform."""
    starts, ends = [], [0.0]
    while ends[-1] < duration_s:
        starts.append(ends[-1] + rng.exponential(pause_s))
        ends.append(starts[-1] + rng.uniform(*lasting_s))
    return Spells(_ns(starts), _ns(ends[1:]), rng.uniform(*level, size=len(starts)))


@dataclass(frozen=True)
class Way:
    """One direction: a least delay that is renegotiated now and then, and what comes on top of it.

    shift_at_ns, least_ns: from the first instant on the first delay holds, and so on.
    """

    shift_at_ns: Ints
    least_ns: Floats
    jitter_ns: float
    queue: Spells
    factor: float

    def least_at(self, true_ns: Ints) -> Floats:
        """The delay of a packet that meets no other."""
        place = np.searchsorted(self.shift_at_ns, true_ns, side="right") - 1
        return self.least_ns[np.maximum(0, place)]

    def delay_ns(self, rng: np.random.Generator, true_ns: Ints) -> Ints:
        """Of packets sent at these instants: least delay, jitter, a heavy tail, a standing queue."""
        shape = true_ns.shape
        tail = np.minimum(TAIL_LONGEST_NS, MS * (1 + rng.pareto(1.5, shape)))
        above = rng.exponential(self.jitter_ns, shape) + np.where(rng.random(shape) < 0.03, tail, 0.0)
        queue = self.queue.level_at(true_ns) * rng.uniform(0.6, 1.0, shape)
        return np.rint(self.least_at(true_ns) + self.factor * (above + queue)).astype(np.int64)


@dataclass(frozen=True)
class Video:
    """A camera's stream on the way home: while it runs, each key frame leaves a queue that drains."""

    running: Spells
    period_ns: int
    drain: float

    def wait_ns(self, true_ns: Ints) -> Ints:
        burst_ns = self.running.level_at(true_ns)
        left = burst_ns - (true_ns % self.period_ns) * self.drain
        return np.rint(np.maximum(0.0, left)).astype(np.int64)


@dataclass(frozen=True)
class Path:
    """Both directions and the two ends, for one session."""

    out: Way
    home: Way
    video: Video
    stalls: Spells
    cuts: Spells
    loss: float

    @property
    def floor_ns(self) -> int:
        """The smallest delay there and back as the session begins."""
        return round(float(self.out.least_ns[0] + self.home.least_ns[0]))

    def asymmetry_ns(self, true_ns: Ints) -> Floats:
        """What even the quickest exchange reads too high: half of what the way out takes longer."""
        return (self.out.least_at(true_ns) - self.home.least_at(true_ns)) / 2

    def arrive_ns(self, rng: np.random.Generator, sent_ns: Ints, cold: Flags) -> Ints:
        """When the Pi sees what was sent; a cold connection shakes hands first, a stalled Pi looks later."""
        there_and_back_ns = self.out.least_at(sent_ns) + self.home.least_at(sent_ns)
        shaken = np.rint(there_and_back_ns * rng.uniform(0.8, 1.4, sent_ns.shape)).astype(np.int64)
        begun_ns = sent_ns + np.where(cold, shaken, 0)
        seen_ns = begun_ns + self.out.delay_ns(rng, begun_ns)
        stalled, place = self.stalls.at(seen_ns)
        return np.where(stalled, self.stalls.end_ns[place], seen_ns)

    def return_ns(self, rng: np.random.Generator, answered_ns: Ints) -> Ints:
        """When the answer is back."""
        waited_ns = answered_ns + self.video.wait_ns(answered_ns)
        return waited_ns + self.home.delay_ns(rng, waited_ns)

    def lost(self, rng: np.random.Generator, sent_ns: Ints, back_ns: Ints) -> Flags:
        """By chance on either way, or because a cut came in between."""
        by_chance = rng.random(sent_ns.shape) < 1 - (1 - self.loss) ** 2
        before = np.searchsorted(self.cuts.end_ns, sent_ns, side="right")
        after = np.searchsorted(self.cuts.start_ns, back_ns, side="right")
        return by_chance | (after > before)


def draw_path(rng: np.random.Generator, duration_s: float, habits: Habits) -> Path:
    """One session's tether: 1..5 ms there and back, the daemons' own time (0.4..1.2 ms out, 0.25..0.6 ms
    home), jitter of 0.1..0.3 ms, a path renegotiated every hour, video two thirds of the time, a standing
    queue of 10..40 ms for 1..5 min every half hour, and cuts of minutes."""
    base_ns = rng.uniform(1.0, 5.0) * MS
    tilt = float(np.clip(rng.normal(0.0, habits.asymmetry_sd), -0.8, 0.8))
    slow = log_uniform(rng, 1.0, 3.0)
    out_ns = base_ns / 2 * (1 + tilt) + 0.4 * MS * slow
    home_ns = base_ns / 2 * (1 - tilt) + 0.25 * MS * slow**0.8
    return Path(
        out=_draw_way(rng, duration_s, out_ns, habits.queue_factor, NEVER),
        home=_draw_way(rng, duration_s, home_ns, habits.queue_factor, _draw_queue(rng, duration_s, habits)),
        video=_draw_video(rng, duration_s, habits.queue_factor),
        stalls=draw_spells(rng, duration_s, 20.0, (0.002, 0.05)),
        cuts=_draw_cuts(rng, duration_s, habits.cuts_every_s),
        loss=habits.loss,
    )


def _draw_way(
    rng: np.random.Generator, duration_s: float, least_ns: float, factor: float, queue: Spells
) -> Way:
    """Renegotiated every two hours, so that the path as a whole is every hour."""
    at_s, least = [0.0], [least_ns]
    while (later_s := at_s[-1] + rng.exponential(7200.0)) < duration_s:
        at_s.append(later_s)
        moved_ns = least[-1] + rng.choice((-1.0, 1.0)) * rng.uniform(0.1, 0.6) * MS
        least.append(max(0.3 * MS, moved_ns))
    return Way(_ns(at_s), np.array(least), rng.uniform(0.1, 0.3) * MS, queue, factor)


def _draw_queue(rng: np.random.Generator, duration_s: float, habits: Habits) -> Spells:
    """The standing queue of the way home; without saturated_s a session begins outside of one."""
    drawn = draw_spells(rng, duration_s, 1800.0, (60.0, 300.0), (10.0 * MS, 40.0 * MS))
    if not habits.saturated_s:
        return drawn
    end_ns = round(habits.saturated_s * S)
    return Spells(
        np.concatenate(([0], drawn.start_ns + end_ns)),
        np.concatenate(([end_ns], drawn.end_ns + end_ns)),
        np.concatenate((drawn.level[-1:], drawn.level)),
    )


def _draw_cuts(rng: np.random.Generator, duration_s: float, every_s: float) -> Spells:
    """Not within half a minute of START and STOP: those are pressed by somebody who sees the link is up."""
    drawn = draw_spells(rng, duration_s, every_s, (60.0, 240.0))
    inner = (drawn.start_ns > 30 * S) & (drawn.end_ns < (duration_s - 30) * S)
    if not inner.any():
        return NEVER
    return Spells(drawn.start_ns[inner], drawn.end_ns[inner], drawn.level[inner])


def _draw_video(rng: np.random.Generator, duration_s: float, factor: float) -> Video:
    running = draw_spells(rng, duration_s, 150.0, (150.0, 450.0), (5.0 * MS * factor, 30.0 * MS * factor))
    return Video(running, period_ns=int(rng.integers(500, 2000)) * MS, drain=rng.uniform(0.3, 0.7))
