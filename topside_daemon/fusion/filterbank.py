"""Offset and drift of two crystals, followed by six Kalman filters at once.

The state is (offset in ns, drift in ns/s); the drift takes a random walk. How strong a walk nobody knows,
so filters from a straight line to a dive run side by side and count by how well each has foretold what
was measured (Bayesian model averaging). Between measurements the estimate is what all of them, before and
after, say of it (Rauch-Tung-Striebel smoother); outside it is a prediction. No I/O, no clock; plain
floats, O(1) per measurement. Times in s from an origin near the data, variances in squared units.

The 2 x 2 algebra is written out, with determinants summed rather than subtracted, so that neither a day
without a measurement nor a perfect line loses digits.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import chain
from math import exp, log
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import astuple

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
        if len(witnesses) == 1:
            return self._given_one(witnesses[0], independence)
        totals = [self.a + one.variance for one in witnesses]
        errors = [one.offset - self.offset for one in witnesses]
        logs = [
            log(one.share) - (error * error / total + log(total)) / 2
            for one, error, total in zip(witnesses, errors, totals, strict=True)
        ]
        most = max(logs)
        likely = [exp(one - most) for one in logs]
        all_likely = sum(likely)
        pull = gain = rest = 0.0
        pulls = []
        for one, error, total, probable in zip(witnesses, errors, totals, likely, strict=True):
            share = probable / all_likely
            pull += share * error / total
            gain += share / total
            rest += share * one.variance / total
            pulls.append((share, error / total))
        spread = sum(share * (one - pull) ** 2 for share, one in pulls)
        evidence = independence * (most + log(all_likely))
        return self._moved(pull, gain - spread, rest + self.a * spread, evidence)

    def _given_one(self, one: Witness, independence: float) -> "_State":
        total, error = self.a + one.variance, one.offset - self.offset
        evidence = independence * -(error * error / total + log(total)) / 2
        return self._moved(error / total, 1 / total, one.variance / total, evidence)

    def _moved(self, pull: float, gain: float, left: float, evidence: float) -> "_State":
        """left: 1 - a gain, without the subtraction."""
        return _State(
            self.offset + self.a * pull,
            self.drift + self.c * pull,
            self.a * left,
            self.c * left,
            self.d - self.c * self.c * gain,
            self.det * left,
            self.evidence + evidence,
        )


STATE_FLOATS = 7  # of a state


class _Ends(NamedTuple):
    """One filter's smoothed states at both ends of an interval: mean and covariance of (offset, drift) at
    the left, then at the right; the covariance as 4 rows."""

    mean: tuple[float, float, float, float]
    covariance: tuple[tuple[float, ...], ...]


class Course(NamedTuple):
    """Offset in ns, its variance in ns^2 and the variance of the drift in (ns/s)^2 as polynomials, lowest
    power first: between two measurements in s, from 0 at the left one to 1 at the right one, h seconds later;
    beyond the outermost in seconds from them, with h = 1."""

    h: float
    offset: tuple[float, float, float, float]
    variance: tuple[float, float, float, float, float, float, float]
    drift_variance: tuple[float, float, float, float, float]

    def at(self, s: float) -> Moments:
        _, c1, c2, c3 = self.offset
        drift = (c1 + s * (2 * c2 + s * 3 * c3)) / self.h
        return Moments(
            _value(self.offset, s),
            max(0.0, _value(self.variance, s)),
            drift,
            max(0.0, _value(self.drift_variance, s)),
        )


COURSE_FLOATS = 17  # of a course

# Hermite: the cubic between two ends and its slope, for h = 1, of what is known there: offset and drift of
# one end, then of the other.
_PLACE = ((1.0, 0.0, -3.0, 2.0), (0.0, 1.0, -2.0, 1.0), (0.0, 0.0, 3.0, -2.0), (0.0, 0.0, -1.0, 1.0))
_SLOPE = ((0.0, -6.0, 6.0), (1.0, -4.0, 3.0), (0.0, 6.0, -6.0), (0.0, -2.0, 3.0))

Product = tuple[int, int, tuple[float, ...]]


def _products(basis: Sequence[Sequence[float]]) -> list[Product]:
    """What each element of a symmetric covariance is multiplied with, as a polynomial."""
    found = []
    for i, one in enumerate(basis):
        for j, other in enumerate(basis[i:], i):
            powers = [0.0] * (2 * len(one) - 1)
            for m, a in enumerate(one):
                for n, b in enumerate(other):
                    powers[m + n] += a * b * (1 + (i != j))
            found.append((i, j, tuple(powers)))
    return found


_PLACES, _SLOPES = _products(_PLACE), _products(_SLOPE)


def _course(h: float, q: float, ends: _Ends) -> Course:
    """The mean is the cubic between both ends, exactly; to the variance of the ends comes that of a walk tied
    at both: q h^3 (s (1-s))^3 / 3, of its rate q h s (1-s) (1 - 3 s (1-s))."""
    m0, m1, m2, m3 = ends.mean
    m1, m3 = m1 * h, m3 * h
    bridge, rate = q * h**3 / 3, q * h
    place = [0.0, 0.0, 0.0, bridge, -3 * bridge, 3 * bridge, -bridge]
    slope = [0.0, rate, -4 * rate, 6 * rate, -3 * rate]
    for i, j, powers in _PLACES:
        scale = ends.covariance[i][j] * h ** (i % 2 + j % 2)
        for n, power in enumerate(powers):
            place[n] += scale * power
    for i, j, powers in _SLOPES:
        scale = ends.covariance[i][j] / h ** (2 - i % 2 - j % 2)
        for n, power in enumerate(powers):
            slope[n] += scale * power
    v0, v1, v2, v3, v4, v5, v6 = place
    d0, d1, d2, d3, d4 = slope
    offset = (m0, m1, 3 * (m2 - m0) - 2 * m1 - m3, 2 * (m0 - m2) + m1 + m3)
    return Course(h, offset, (v0, v1, v2, v3, v4, v5, v6), (d0, d1, d2, d3, d4))


class _Rows:
    """Lists of floats of one length, packed: there are thousands."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._floats = array("d")

    def __len__(self) -> int:
        return len(self._floats) // self._width

    def add(self, floats: Iterable[float]) -> None:
        self._floats.extend(floats)

    def cut(self, length: int) -> None:
        del self._floats[length * self._width :]

    def __getitem__(self, place: int) -> "array[float]":
        return self._floats[place * self._width : (place + 1) * self._width]


class FilterBank:
    """Measured offsets in the order of time; asked at any time.

    Args:
        drift: prior mean, ns/s.
        drift_sd: its deviation, ns/s.
    """

    def __init__(self, drift: float, drift_sd: float) -> None:
        self._prior = (drift, drift_sd * drift_sd)
        self._times = array("d")
        self._states = _Rows(STATE_FLOATS * len(WANDERS))  # after each measurement, filter by filter
        self._last: list[_State] = []
        self._forget()

    def __len__(self) -> int:
        return len(self._times)

    def cut(self, length: int) -> None:
        """Forget all but the first measurements."""
        if length < len(self._times):
            del self._times[length:]
            self._states.cut(length)
            self._last = self._after(length - 1) if length else []
            self._forget()

    def take(self, t: float, witnesses: Sequence[Witness]) -> None:
        """One measurement, later than the last one."""
        if not self._times:
            self._last = [self._begin(witnesses)] * len(WANDERS)
        else:
            h = t - self._times[-1]
            independence = min(1.0, h / INDEPENDENT_S)
            self._last = [
                one.after(h, wander * _S2).given(witnesses, independence)
                for one, wander in zip(self._last, WANDERS, strict=True)
            ]
        self._times.append(t)
        self._states.add(chain.from_iterable(map(astuple, self._last)))
        self._forget()

    def _after(self, place: int) -> list[_State]:
        floats = self._states[place]
        return [_State(*floats[n : n + STATE_FLOATS]) for n in range(0, len(floats), STATE_FLOATS)]

    def _begin(self, witnesses: Sequence[Witness]) -> _State:
        drift, d = self._prior
        offset = sum(one.share * one.offset for one in witnesses)
        variance = sum(one.share * (one.variance + (one.offset - offset) ** 2) for one in witnesses)
        return _State(offset, drift, variance, 0.0, d, variance * d, 0.0)

    def _forget(self) -> None:
        """What was smoothed with fewer measurements."""
        self._courses = _Rows(COURSE_FLOATS)  # from the last interval back
        self._smoothed = self._last  # at the left end of the earliest interval that is known
        self._weights = self._weigh() if self._times else []

    def _weigh(self) -> list[float]:
        evidence = [state.evidence for state in self._last]
        most = max(evidence)
        likely = [exp(one - most) for one in evidence]
        total = sum(likely)
        return [one / total for one in likely]

    @property
    def wander(self) -> float:
        """The mean strength of the walk by what has been measured, (s/s)^2 per s."""
        return _dot(self._weights, WANDERS)

    def at(self, t: float) -> Moments:
        """The estimate at any time, once there is a measurement."""
        times = self._times
        if t >= times[-1]:
            return self.after().at(t - times[-1])
        if t < times[0]:
            return self.before().at(t - times[0])
        place = bisect_right(times, t) - 1
        return self.between(place).at((t - times[place]) / (times[place + 1] - times[place]))

    def after(self) -> Course:
        """From the last measurement on."""
        return self._beyond(self._last, 1)

    def before(self) -> Course:
        """Up to the first measurement."""
        self._smooth_to(0)
        return self._beyond(self._smoothed, -1)

    def between(self, place: int) -> Course:
        """From measurement *place* to the next."""
        self._smooth_to(place)
        h, c0, c1, c2, c3, v0, v1, v2, v3, v4, v5, v6, *rest = self._courses[len(self._times) - 2 - place]
        d0, d1, d2, d3, d4 = rest
        return Course(h, (c0, c1, c2, c3), (v0, v1, v2, v3, v4, v5, v6), (d0, d1, d2, d3, d4))

    def _beyond(self, states: Sequence[_State], sign: int) -> Course:
        """What the filters foretell from their states, seconds later or, with a negative sign, before: the
        mixture of their lines."""
        offset = _dot(self._weights, [state.offset for state in states])
        drift = _dot(self._weights, [state.drift for state in states])
        v0 = v1 = v2 = v3 = d0 = d1 = 0.0
        for weight, state, wander in zip(self._weights, states, WANDERS, strict=True):
            off, faster, q = state.offset - offset, state.drift - drift, sign * (wander + UNSEEN) * _S2
            v0 += weight * (state.a + off * off)
            v1 += weight * 2 * (state.c + off * faster)
            v2 += weight * (state.d + faster * faster)
            v3 += weight * q / 3
            d0 += weight * (state.d + faster * faster)
            d1 += weight * q
        return Course(
            1.0, (offset, drift, 0.0, 0.0), (v0, v1, v2, v3, 0.0, 0.0, 0.0), (d0, d1, 0.0, 0.0, 0.0)
        )

    def _smooth_to(self, place: int) -> None:
        """Keep the courses from the last interval back to this one."""
        for left in range(len(self._times) - 2 - len(self._courses), place - 1, -1):
            course = self._smooth(left)
            self._courses.add((course.h, *course.offset, *course.variance, *course.drift_variance))

    def _smooth(self, left: int) -> Course:
        """One step back: from the smoothed states at the right end to those at the left."""
        h = self._times[left + 1] - self._times[left]
        ends, states = [], []
        for here, there, wander in zip(self._after(left), self._smoothed, WANDERS, strict=True):
            state, joint = _step_back(here, here.after(h, wander * _S2), there, h, wander * _S2)
            states.append(state)
            ends.append(joint)
        self._smoothed = states
        return _course(h, (self.wander + UNSEEN) * _S2, _mix(self._weights, ends))


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
    weighed = list(zip(weights, ends, strict=True))
    m0, m1, m2, m3 = (sum([weight * one.mean[i] for weight, one in weighed]) for i in range(4))
    c00 = c01 = c02 = c03 = c11 = c12 = c13 = c22 = c23 = c33 = 0.0
    for weight, one in weighed:
        d0, d1, d2, d3 = one.mean[0] - m0, one.mean[1] - m1, one.mean[2] - m2, one.mean[3] - m3
        r0, r1, r2, r3 = one.covariance
        c00 += weight * (r0[0] + d0 * d0)
        c01 += weight * (r0[1] + d0 * d1)
        c02 += weight * (r0[2] + d0 * d2)
        c03 += weight * (r0[3] + d0 * d3)
        c11 += weight * (r1[1] + d1 * d1)
        c12 += weight * (r1[2] + d1 * d2)
        c13 += weight * (r1[3] + d1 * d3)
        c22 += weight * (r2[2] + d2 * d2)
        c23 += weight * (r2[3] + d2 * d3)
        c33 += weight * (r3[3] + d3 * d3)
    rows = ((c00, c01, c02, c03), (c01, c11, c12, c13), (c02, c12, c22, c23), (c03, c13, c23, c33))
    return _Ends((m0, m1, m2, m3), rows)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum([x * y for x, y in zip(left, right, strict=True)])


def _value(powers: Sequence[float], s: float) -> float:
    found = 0.0
    for power in reversed(powers):
        found = found * s + power
    return found
