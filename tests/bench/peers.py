"""Other ways to put one clock on another, asked the same questions about the same bursts.

Each takes what was heard of one boot of the Pi and gives a fit: asked with the number of bursts heard by
then, and with instants of the Pi's clock, it answers offsets (Pi - topside). The methods that must not see
the truth do not look at `Heard.dive`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
import pyxdf.pyxdf as xdf

from common.messages import Exchange
from tests.sim import S
from tests.sim.dives import Dive, Stretch
from tests.sim.oscillators import Floats, Ints

NORMAL_95 = 1.96
HOLD_DRIFT_NS_PER_S = 50_000.0  # what a method that knows no drift yet must allow, one sigma
CHRONY_SAMPLES = 64
CHRONY_LEAST = 4
CHRONY_DISTANCE_RATIO = 0.7
CHRONY_RUNS_Z = 1.645  # fewer runs than in 95 % of random sequences: the line does not fit
XDF_INFO = {"info": {"channel_count": ["1"], "nominal_srate": ["9"], "channel_format": ["float32"]}}


@dataclass(frozen=True)
class Answer:
    """In ns at each instant asked about. half: of the 95 % interval; low, high: certified."""

    offset: Floats
    half: Floats | None = None
    low: Floats | None = None
    high: Floats | None = None


Fit = Callable[[int, Ints], Answer]


@dataclass(frozen=True)
class Heard:
    """The answered bursts of one boot of the Pi, in order, and their best exchanges as numbers.

    pi_ns and offset_ns are absolute; received_ns is true time. oneway_ns is Pi arrival minus topside
    send of the first answered exchange, as a marker's two rows would show it.
    """

    dive: Dive
    stretch: Stretch
    bursts: list[list[Exchange]]
    received_ns: Ints
    pi_ns: Ints
    offset_ns: Ints
    delay_ns: Ints
    oneway_ns: Ints
    oneway_pi_ns: Ints
    stopped: bool

    @property
    def pi_s(self) -> Floats:
        """Since the first burst."""
        return self.seconds(self.pi_ns)

    def seconds(self, pi_mono_ns: Ints) -> Floats:
        since_ns = np.array(pi_mono_ns - self.pi_ns[0], dtype=np.float64)
        return since_ns / S

    @property
    def relative_ns(self) -> Floats:
        """Offsets against the first, small enough for floats."""
        return np.array(self.offset_ns - self.offset_ns[0], dtype=np.float64)


def heard(dive: Dive, stretch: Stretch) -> Heard | None:
    """What one boot of the Pi answered; None if nothing."""
    bursts = [burst for burst in dive.bursts if any(_whole(one, stretch) for one in burst)]
    if not bursts:
        return None
    answered = [[_numbers(one) for one in burst if _whole(one, stretch)] for burst in bursts]
    best = np.array([min(burst, key=lambda one: one[2]) for burst in answered])
    first = np.array([burst[0] for burst in answered])
    back = np.array([max(one[5] for one in burst) for burst in answered])
    stopped = bursts[-1][0].kind == "STOP"
    received = dive.topside.true_ns(back)
    pi_ns, offset_ns, delay_ns = best[:, 0], best[:, 1], best[:, 2]
    return Heard(
        dive, stretch, bursts, received, pi_ns, offset_ns, delay_ns, first[:, 3], first[:, 4], stopped
    )


def _whole(one: Exchange, stretch: Stretch) -> bool:
    """Answered by this boot, and with a delay that can be."""
    if one.t2_ns is None or one.t3_ns is None or one.t4_ns is None or one.pi_boot_id != stretch.boot.boot_id:
        return False
    return one.t3_ns >= one.t2_ns and one.t4_ns - one.t1_ns >= one.t3_ns - one.t2_ns


def _numbers(one: Exchange) -> tuple[int, ...]:
    t1, t2, t3, t4 = one.t1_ns, one.t2_ns or 0, one.t3_ns or 0, one.t4_ns or 0
    return (t2 + t3) // 2, ((t2 - t1) + (t3 - t4)) // 2, (t4 - t1) - (t3 - t2), t2 - t1, t2, t4


def asymmetry_floor(heard: Heard) -> Fit:
    """The error nobody can avoid: the path's asymmetry as the session begins."""
    constant = float(heard.dive.path.asymmetry_ns(np.array([0]))[0])
    return lambda count, at_ns: Answer(_truth(heard, at_ns) + constant)


def shifting_floor(heard: Heard) -> Fit:
    """The same of somebody who knows each delay's least part at every instant."""
    path = heard.dive.path
    return lambda count, at_ns: Answer(
        _truth(heard, at_ns) + path.asymmetry_ns(heard.stretch.boot.true_ns(at_ns))
    )


def _truth(heard: Heard, at_ns: Ints) -> Floats:
    true_ns = heard.stretch.boot.true_ns(at_ns)
    return (at_ns - heard.dive.topside.mono_ns(true_ns)).astype(np.float64)


def old_scheme(heard: Heard) -> Fit:
    """One-way times at START and STOP: their line, and START's offset alone until STOP is there."""

    def fit(count: int, at_ns: Ints) -> Answer:
        first = float(heard.oneway_ns[0])
        if not (heard.stopped and count == len(heard.bursts)) or count == 1:
            return Answer(np.full(len(at_ns), first))
        span_ns = heard.oneway_pi_ns[-1] - heard.oneway_pi_ns[0]
        slope = float(heard.oneway_ns[-1] - heard.oneway_ns[0]) / float(span_ns)
        return Answer(first + slope * (at_ns - heard.oneway_pi_ns[0]))

    return fit


def least_squares(heard: Heard) -> Fit:
    """A straight line through the midpoint of the best of each burst."""

    def fit(count: int, at_ns: Ints) -> Answer:
        return _line(heard, slice(0, count), np.ones(count), at_ns)

    return fit


def weighted_least_squares(heard: Heard) -> Fit:
    """The same, each burst's deviation taken as proportional to its delay."""

    def fit(count: int, at_ns: Ints) -> Answer:
        return _line(heard, slice(0, count), np.maximum(1.0, heard.delay_ns[:count]) ** -2.0, at_ns)

    return fit


def _line(heard: Heard, part: slice, weight: Floats, at_ns: Ints) -> Answer:
    """Weighted line with the interval that its residuals claim; before three points the newest is held."""
    x, y, at = heard.pi_s[part], heard.relative_ns[part], heard.seconds(at_ns)
    origin = float(heard.offset_ns[0])
    if len(x) < 3:
        return _held(x, y, heard.delay_ns[part], origin, at)
    total = weight.sum()
    mean_x, mean_y = (weight @ x) / total, (weight @ y) / total
    sxx = weight @ (x - mean_x) ** 2
    slope = (weight @ ((x - mean_x) * (y - mean_y))) / sxx
    residual = y - mean_y - slope * (x - mean_x)
    variance = (weight @ residual**2) / (len(x) - 2)
    half = NORMAL_95 * np.sqrt(variance * (1 / total + (at - mean_x) ** 2 / sxx))
    return Answer(origin + mean_y + slope * (at - mean_x), half)


def _held(x: Floats, y: Floats, delay: Ints, origin: float, at: Floats) -> Answer:
    slope = (y[-1] - y[0]) / (x[-1] - x[0]) if len(x) == 2 else 0.0
    allowed = HOLD_DRIFT_NS_PER_S if len(x) == 1 else float(delay.sum()) / 2 / (x[-1] - x[0])
    half = delay[-1] / 2 + NORMAL_95 * allowed * np.abs(at - x[-1])
    return Answer(origin + y[-1] + slope * (at - x[-1]), half)


def pyxdf_line(heard: Heard) -> Fit:
    """pyxdf's own clock synchronisation on what LabRecorder would have kept: best-of-8 offsets, no delays."""

    def fit(count: int, at_ns: Ints) -> Answer:
        stream = xdf.StreamData(XDF_INFO)
        stream.clock_times = (heard.pi_ns[:count] / S).tolist()
        stream.clock_values = (-heard.offset_ns[:count] / S).tolist()
        stream.time_stamps = at_ns / S
        xdf._clock_sync({1: stream})
        return Answer(at_ns - stream.time_stamps * S)

    return fit


class ChronyLike:
    """Regression over a window that a runs test shortens, after the description of chrony's sourcestats.

    At most 64 samples; weights 1 / (1 + 0.7 (distance - least) / (mean - least))^2 with distance = delay/2;
    the oldest sample is dropped while the residuals change sign too rarely.
    """

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._seen = 0
        self._first = 0

    def __call__(self, count: int, at_ns: Ints) -> Answer:
        while self._seen < count:
            self._seen += 1
            self._first = max(self._first, self._seen - CHRONY_SAMPLES)
            while self._seen - self._first > CHRONY_LEAST and self._too_few_runs():
                self._first += 1
        window = slice(self._first, count)
        return _line(self._heard, window, self._weight(window), at_ns)

    def _weight(self, window: slice) -> Floats:
        distance = self._heard.delay_ns[window] / 2
        least = distance.min()
        spread = np.clip(distance.mean() - least, 1_000.0, max(1_000.0, least))
        weight: Floats = (1 + CHRONY_DISTANCE_RATIO * (distance - least) / spread) ** -2
        return weight

    def _too_few_runs(self) -> bool:
        window = slice(self._first, self._seen)
        fitted = _line(self._heard, window, self._weight(window), self._heard.pi_ns[window])
        above = self._heard.offset_ns[window] > fitted.offset
        count = len(above)
        changes = int((above[1:] != above[:-1]).sum())
        return changes < count / 2 - CHRONY_RUNS_Z * sqrt(count - 1) / 2


PEERS: dict[str, Callable[[Heard], Fit]] = {
    "floor: constant asymmetry": asymmetry_floor,
    "floor: asymmetry at every instant": shifting_floor,
    "old scheme, one-way": old_scheme,
    "least squares": least_squares,
    "least squares by delay": weighted_least_squares,
    "pyxdf": pyxdf_line,
    "chrony-like": ChronyLike,
}
