"""Offset and drift of two crystals, followed by six Kalman filters at once.

The state is (offset in ns, drift in ns/s); the drift takes a random walk. How strong a walk nobody knows,
so filters from a straight line to a dive run side by side and count by how well each has foretold what
was measured (Bayesian model averaging). Between measurements the estimate is what all of them, before and
after, say of it (Rauch-Tung-Striebel smoother); outside it is a prediction. No I/O, no clock; plain
floats, O(1) per measurement. Times in s from an origin near the data, variances in squared units.

The 2 x 2 algebra is written out, with determinants summed rather than subtracted, so that neither a day
without a measurement nor a perfect line loses digits.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import exp, log
from typing import NamedTuple

from msgspec import Struct

WANDERS = (1e-18, 1e-17, 1e-16, 1e-15, 1e-14, 1e-13)  # of the drift, in (s/s)^2 per s
UNSEEN = 5e-15  # a dive that begins while nobody measures; no evidence speaks against it
INDEPENDENT_S = 10.0  # measurements closer than this meet the same queue: no two witnesses
_S2 = 1e18  # ns^2 per s^2


class Moments(NamedTuple):
    """ns, ns^2, ns/s, (ns/s)^2."""

    offset: float
    variance: float
    drift: float
    drift_variance: float


class Witness(NamedTuple):
    """One reading of a measurement: the share of cases in which it is the right one, ns, ns^2."""

    share: float
    offset: float
    variance: float


class _State(Struct, gc=False):
    """Mean (offset, drift), covariance (a c; c d) with its determinant, and the log evidence."""

    offset: float
    drift: float
    a: float
    c: float
    d: float
    det: float
    evidence: float

    def after(self, h: float, q: float) -> "_State":
        """The same, h seconds later."""
        return _State(
            self.offset + h * self.drift,
            self.drift,
            self.a + 2 * h * self.c + h * h * self.d + q * h**3 / 3,
            self.c + h * self.d + q * h * h / 2,
            self.d + q * h,
            self.det + q * h * (h * h * self.d / 3 + self.a + h * self.c) + (q * h * h) ** 2 / 12,
            self.evidence,
        )

    def given(self, witnesses: Sequence[Witness], independence: float) -> "_State":
        """Having measured an offset that one of the witnesses tells right.

        Each alone would move the state along its covariance with the offset, (a, c); so does their
        mixture, reduced to its first two moments.
        """
        totals = [self.a + one.variance for one in witnesses]
        errors = [one.offset - self.offset for one in witnesses]
        logs = [
            log(one.share) - (error * error / total + log(total)) / 2
            for one, error, total in zip(witnesses, errors, totals, strict=True)
        ]
        most = max(logs)
        likely = [exp(one - most) for one in logs]
        all_likely = sum(likely)
        shares = [one / all_likely for one in likely]
        pull = sum(w * e / t for w, e, t in zip(shares, errors, totals, strict=True))
        spread = sum(w * (e / t - pull) ** 2 for w, e, t in zip(shares, errors, totals, strict=True))
        gain = sum(w / t for w, t in zip(shares, totals, strict=True)) - spread
        left = (
            sum(w * one.variance / t for w, one, t in zip(shares, witnesses, totals, strict=True))
            + self.a * spread
        )  # 1 - a gain, without the subtraction
        return _State(
            self.offset + self.a * pull,
            self.drift + self.c * pull,
            self.a * left,
            self.c * left,
            self.d - self.c * self.c * gain,
            self.det * left,
            self.evidence + independence * (most + log(all_likely)),
        )


class _Ends(NamedTuple):
    """One filter's smoothed states at both ends of an interval: mean and covariance of (offset, drift) at
    the left, then at the right; the covariance as 4 rows."""

    mean: tuple[float, float, float, float]
    covariance: tuple[tuple[float, ...], ...]


class _Interval(Struct, gc=False):
    """What all filters together say between two measurements; h in s, q in ns^2/s^3."""

    start: float
    h: float
    q: float
    ends: _Ends

    def at(self, t: float) -> Moments:
        """The mean is the cubic between both ends, exactly; to the variance of the ends comes that of a
        walk tied at both: q h^3 (s (1-s))^3 / 3, of its rate q h s (1-s) (1 - 3 s (1-s))."""
        h, s = self.h, (t - self.start) / self.h
        r = 1 - s
        place = ((1 + 2 * s) * r * r, s * r * r * h, s * s * (3 - 2 * s), -s * s * r * h)
        rate = (-6 * s * r / h, r * (1 - 3 * s), 6 * s * r / h, s * (3 * s - 2))
        walk = s * r
        return Moments(
            _dot(place, self.ends.mean),
            _spread(place, self.ends.covariance) + self.q * h**3 * walk**3 / 3,
            _dot(rate, self.ends.mean),
            _spread(rate, self.ends.covariance) + self.q * h * walk * (1 - 3 * walk),
        )


class FilterBank:
    """Measured offsets in the order of time; asked at any time.

    Args:
        drift: prior mean, ns/s.
        drift_sd: its deviation, ns/s.
    """

    def __init__(self, drift: float, drift_sd: float) -> None:
        self._prior = (drift, drift_sd * drift_sd)
        self._times: list[float] = []
        self._before: list[list[_State]] = []  # each measurement, by filter
        self._after: list[list[_State]] = []
        self._forget()

    def __len__(self) -> int:
        return len(self._times)

    def cut(self, length: int) -> None:
        """Forget all but the first measurements."""
        del self._times[length:], self._before[length:], self._after[length:]
        self._forget()

    def take(self, t: float, witnesses: Sequence[Witness]) -> None:
        """One measurement, later than the last one."""
        if not self._times:
            before = states = [self._begin(witnesses)] * len(WANDERS)
        else:
            h = t - self._times[-1]
            before = [one.after(h, w * _S2) for one, w in zip(self._after[-1], WANDERS, strict=True)]
            states = [one.given(witnesses, min(1.0, h / INDEPENDENT_S)) for one in before]
        self._times.append(t)
        self._before.append(before)
        self._after.append(states)
        self._forget()

    def _begin(self, witnesses: Sequence[Witness]) -> _State:
        drift, d = self._prior
        offset = sum(one.share * one.offset for one in witnesses)
        variance = sum(one.share * (one.variance + (one.offset - offset) ** 2) for one in witnesses)
        return _State(offset, drift, variance, 0.0, d, variance * d, 0.0)

    def _forget(self) -> None:
        """What was smoothed with fewer measurements."""
        self._intervals: dict[int, _Interval] = {}
        self._smoothed: list[_State] = []  # at the left end of the earliest interval that is known
        self._weights = self._weigh() if self._times else []

    def _weigh(self) -> list[float]:
        evidence = [state.evidence for state in self._after[-1]]
        most = max(evidence)
        likely = [exp(one - most) for one in evidence]
        total = sum(likely)
        return [one / total for one in likely]

    @property
    def wander(self) -> float:
        """The mean strength of the walk by what has been measured, (s/s)^2 per s."""
        return sum(weight * wander for weight, wander in zip(self._weights, WANDERS, strict=True))

    def at(self, t: float) -> Moments:
        """The estimate at any time, once there is a measurement."""
        if t >= self._times[-1]:
            return self._outside(self._after[-1], t - self._times[-1])
        if t < self._times[0]:
            return self._outside(self._first(), t - self._times[0])
        return self._interval(bisect_right(self._times, t) - 1).at(t)

    def _outside(self, states: Sequence[_State], h: float) -> Moments:
        """h seconds away from the last, or, negative, from the first measurement."""
        means, variances, drifts, drift_variances = [], [], [], []
        for state, wander in zip(states, WANDERS, strict=True):
            q = (wander + UNSEEN) * _S2
            means.append(state.offset + h * state.drift)
            variances.append(state.a + 2 * h * state.c + h * h * state.d + q * abs(h) ** 3 / 3)
            drifts.append(state.drift)
            drift_variances.append(state.d + q * abs(h))
        offset, drift = _dot(self._weights, means), _dot(self._weights, drifts)
        return Moments(
            offset,
            sum(w * (v + (m - offset) ** 2) for w, v, m in zip(self._weights, variances, means, strict=True)),
            drift,
            sum(
                w * (v + (m - drift) ** 2)
                for w, v, m in zip(self._weights, drift_variances, drifts, strict=True)
            ),
        )

    def _first(self) -> list[_State]:
        if len(self._times) == 1:
            return self._after[0]
        self._interval(0)
        return self._smoothed

    def _interval(self, place: int) -> _Interval:
        """Between measurements place and place + 1; smooths back to there and keeps what it finds."""
        while place not in self._intervals:
            right = len(self._times) - 1 - len(self._intervals)
            if right == len(self._times) - 1:
                self._smoothed = self._after[right]
            self._intervals[right - 1] = self._smooth(right - 1)
        return self._intervals[place]

    def _smooth(self, left: int) -> _Interval:
        """One step back: from the smoothed states at the right end to those at the left."""
        h = self._times[left + 1] - self._times[left]
        ends, states = [], []
        for number, wander in enumerate(WANDERS):
            state, joint = _step_back(
                self._after[left][number],
                self._before[left + 1][number],
                self._smoothed[number],
                h,
                wander * _S2,
            )
            states.append(state)
            ends.append(joint)
        self._smoothed = states
        return _Interval(self._times[left], h, (self.wander + UNSEEN) * _S2, _mix(self._weights, ends))


def _step_back(here: _State, foretold: _State, there: _State, h: float, q: float) -> tuple[_State, _Ends]:
    """Rauch, Tung and Striebel (1965): G = P F' P_foretold^-1, its products with the adjugate worked out."""
    a, c, d, det = here.a, here.c, here.d, here.det
    g11 = (det + q * h * (a + h * c / 2)) / foretold.det
    g12 = -h * (det + q * h * (a / 2 + h * c / 6)) / foretold.det
    g21 = q * h * (c + h * d / 2) / foretold.det
    g22 = (det - q * h * h * (c / 2 + h * d / 6)) / foretold.det
    more_offset, more_drift = there.offset - foretold.offset, there.drift - foretold.drift
    da, dc, dd = there.a - foretold.a, there.c - foretold.c, there.d - foretold.d
    state = _State(
        here.offset + g11 * more_offset + g12 * more_drift,
        here.drift + g21 * more_offset + g22 * more_drift,
        max(0.0, a + g11 * (g11 * da + g12 * dc) + g12 * (g11 * dc + g12 * dd)),
        c + g21 * (g11 * da + g12 * dc) + g22 * (g11 * dc + g12 * dd),
        max(0.0, d + g21 * (g21 * da + g22 * dc) + g22 * (g21 * dc + g22 * dd)),
        0.0,
        here.evidence,
    )
    x11, x12 = g11 * there.a + g12 * there.c, g11 * there.c + g12 * there.d
    x21, x22 = g21 * there.a + g22 * there.c, g21 * there.c + g22 * there.d
    ends = _Ends(
        (state.offset, state.drift, there.offset, there.drift),
        (
            (state.a, state.c, x11, x12),
            (state.c, state.d, x21, x22),
            (x11, x21, there.a, there.c),
            (x12, x22, there.c, there.d),
        ),
    )
    return state, ends


def _mix(weights: Sequence[float], ends: Sequence[_Ends]) -> _Ends:
    """Mean and covariance of the mixture, the spread between the filters included."""
    mean = [sum(w * one.mean[i] for w, one in zip(weights, ends, strict=True)) for i in range(4)]
    covariance = tuple(
        tuple(
            sum(
                w * (one.covariance[i][j] + (one.mean[i] - mean[i]) * (one.mean[j] - mean[j]))
                for w, one in zip(weights, ends, strict=True)
            )
            for j in range(4)
        )
        for i in range(4)
    )
    return _Ends((mean[0], mean[1], mean[2], mean[3]), covariance)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))


def _spread(row: Sequence[float], covariance: Sequence[Sequence[float]]) -> float:
    return max(0.0, sum(x * _dot(row, column) for x, column in zip(row, covariance, strict=True)))
