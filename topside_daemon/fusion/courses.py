"""The offset between two clocks, stretch by stretch, as arithmetic: for single readings here, for blocks of
them in the kernel, with the same result to the last bit. No I/O, no clock.
"""

from bisect import bisect_right
from collections.abc import Iterable
from math import ceil, comb, floor, inf, isinf, sqrt
from operator import attrgetter
from typing import Literal, NamedTuple, get_args

from topside_daemon.fusion.columns import MISSING, Course

ClockStatus = Literal[
    "", "measured", "held", "single", "linear", "constant", "time-sync", "none"
]  # the kernel is given them in this order
STATUSES: tuple[ClockStatus, ...] = get_args(ClockStatus)
NORMAL_95 = 1.96
EARLIEST, LATEST = -(1 << 62), 1 << 62


class Followed(NamedTuple):
    """An instant on the common axis, and the offset that put it there; None where none is known."""

    time_ns: int
    offset_ns: int | None
    sd_ns: int | None
    low_ns: int | None
    high_ns: int | None


def follow(course: Course, at_ns: int, label_ns: int) -> Followed:
    """One reading on a course; operation for operation as in the kernel."""
    if course.origin == MISSING:
        return Followed(label_ns + course.shift, None, None, None, None)
    s = (at_ns - course.zero) * course.rate
    c0, c1, c2, c3 = course.offset
    middle = ((c3 * s + c2) * s + c1) * s + c0
    low = max(course.low[0] + course.low[1] * s, course.low[2] + course.low[3] * s)
    high = min(course.high[0] + course.high[1] * s, course.high[2] + course.high[3] * s)
    if low > high:  # evidence that contradicts itself: the truth may be on either side
        low, high = min(high, middle), max(low, middle)
    middle = min(max(middle, low), high)
    offset = course.origin + floor(middle + 0.5)
    v0, v1, v2, v3, v4, v5, v6 = course.variance
    variance = (((((v6 * s + v5) * s + v4) * s + v3) * s + v2) * s + v1) * s + v0
    sd = min(sqrt(max(0.0, variance)), max(middle - low, high - middle) / NORMAL_95)
    return Followed(
        at_ns - offset + course.shift,
        offset,
        floor(sd + 0.5),
        None if isinf(low) else course.origin + floor(low),
        None if isinf(high) else course.origin + ceil(high),
    )


def unknown(
    shift_ns: int, status: ClockStatus = "none", since: int = EARLIEST, until: int = LATEST
) -> Course:
    """Where no offset is known: a label stands, moved by *shift_ns*."""
    return Course(since, until, 0, MISSING, shift_ns, STATUSES.index(status), 0.0, *_NOTHING)


def steady(offset_ns: int, shift_ns: int) -> Course:
    """The same offset for ever, and no doubt about it: the clock of the axis itself."""
    return Course(EARLIEST, LATEST, 0, offset_ns, shift_ns, 0, 0.0, *_NOTHING)


def either(course: Course, rival: Course) -> Course:
    """Where two may be right: the first one's offset, and both within its interval.

    Each must be of the kind beyond the outermost bursts: one line for an offset and for a bound. The bounds
    are chords, which lie outside the lower and the higher of two lines.
    """
    since, until = max(course.since, rival.since), min(course.until, rival.until)
    away_s = (course.zero - rival.zero) * rival.rate
    o0, o1 = rival.offset[0] + rival.offset[1] * away_s, rival.offset[1]
    apart, faster = o0 + (rival.origin - course.origin) - course.offset[0], o1 - course.offset[1]
    variance = [
        one + other for one, other in zip(course.variance, _moved(rival.variance, away_s), strict=True)
    ]
    v0, v1, v2, v3, v4, v5, v6 = variance
    ends_s = [(end - course.zero) * course.rate for end in (since, until)]
    lows = [min(_bounds(course, end)[0], _bounds(rival, end)[0]) - course.origin for end in (since, until)]
    highs = [max(_bounds(course, end)[1], _bounds(rival, end)[1]) - course.origin for end in (since, until)]
    return course._replace(
        since=since,
        until=until,
        variance=(v0 + apart * apart, v1 + 2 * apart * faster, v2 + faster * faster, v3, v4, v5, v6),
        low=(*_chord(ends_s, lows), -inf, 0.0),
        high=(*_chord(ends_s, highs), inf, 0.0),
    )


def _moved(powers: tuple[float, ...], by: float) -> list[float]:
    """The polynomial in s of p(s + by)."""
    return [
        sum(power * comb(m, n) * by ** (m - n) for m, power in enumerate(powers) if m >= n)
        for n in range(len(powers))
    ]


def _bounds(course: Course, at_ns: int) -> tuple[float, float]:
    s = (at_ns - course.zero) * course.rate
    low = max(course.low[0] + course.low[1] * s, course.low[2] + course.low[3] * s)
    high = min(course.high[0] + course.high[1] * s, course.high[2] + course.high[3] * s)
    return course.origin + low, course.origin + high


def _chord(at: list[float], values: list[float]) -> tuple[float, float]:
    slope = (values[1] - values[0]) / (at[1] - at[0])
    return values[0] - slope * at[0], slope


_FLAT = (0.0, 0.0, 0.0, 0.0)
_NOTHING = (_FLAT, (0.0,) * 7, (-inf, 0.0, -inf, 0.0), (inf, 0.0, inf, 0.0))


class Courses:
    """The courses of one epoch in the order of time, without gap or overlap."""

    def __init__(self, courses: Iterable[Course]) -> None:
        self._courses = list(courses)

    def at(self, at_ns: int) -> Course:
        """The one that an instant lies on; they must reach so far."""
        return self._courses[bisect_right(self._courses, at_ns, key=_since) - 1]


def packed(courses: Iterable[Course]) -> bytearray:
    """Courses in the order of time, as the kernel takes them."""
    return bytearray(b"".join(course.pack() for course in courses))


_since = attrgetter("since")
