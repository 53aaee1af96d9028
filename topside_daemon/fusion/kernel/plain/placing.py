"""Rows on the common axis, and what their numbers are like."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from topside_daemon.fusion.columns import MISSING, Column, Placed, Tally
from topside_daemon.fusion.courses import NORMAL_95
from topside_daemon.fusion.kernel.plain.arrays import Ints, ints

Floats = NDArray[np.float64]
Numbers = TypeVar("Numbers", Ints, Floats)

_COURSE = np.dtype(
    [
        *((name, "<i8") for name in ("since", "until", "zero", "origin", "shift", "status")),
        ("rate", "<f8"),
        ("offset", "<f8", 4),
        ("variance", "<f8", 7),
        ("low", "<f8", 4),
        ("high", "<f8", 4),
    ]
)
_EXACT_BITS = 53  # of a double
_HEAD_SHIFT = _EXACT_BITS - Tally.KEPT_BITS
_HEAD_OF_BUCKETS = (1023 + Tally.KEPT_BITS - 2) << Tally.KEPT_BITS - 1


def place(
    at: Column, utc: Column, moved: Column | None, courses: bytearray, placed: Placed, everything: bool
) -> int:
    """See `Kernel.place`."""
    instants, labels, table = ints(at), ints(utc), np.frombuffer(courses, _COURSE)
    number, lengths = _stretches(instants, table["since"])
    rows = _rows_on(instants, number, lengths, table["until"])
    if rows < len(instants):
        instants, labels = instants[:rows], labels[:rows]
        number, lengths = _stretches(instants, table["since"])
    lost = table["origin"][number] == MISSING
    if lost.all():
        _keep(_Courses(table[number], lengths), labels, slice(rows), placed, everything)
    elif not lost.any():
        _follow(_Courses(table[number], lengths), instants, slice(rows), placed, everything)
    else:
        rows_lost = np.repeat(lost, lengths)
        here, there = np.flatnonzero(rows_lost), np.flatnonzero(~rows_lost)
        _keep(_Courses(table[number[lost]], lengths[lost]), labels[here], here, placed, everything)
        _follow(_Courses(table[number[~lost]], lengths[~lost]), instants[there], there, placed, everything)
    if moved is not None:
        ints(placed.time)[:rows] += ints(moved)[:rows]
    return rows


def _stretches(instants: Ints, since: Ints) -> tuple[Ints, Ints]:
    """The numbers of the courses on which instants lie, as far as that is told by where they begin, -1 before
    the first; and how many instants lie on each before the next."""
    if (instants[1:] >= instants[:-1]).all():
        first, last = np.searchsorted(since, instants[[0, -1]], "right") if len(instants) else (0, 0)
        bounds = np.searchsorted(instants, since[first:last], "left")
        number, lengths = np.arange(first - 1, last), np.diff(bounds, prepend=0, append=len(instants))
        return number[lengths > 0], lengths[lengths > 0]
    each = np.searchsorted(since, instants, "right") - 1
    starts = np.concatenate(([0], np.flatnonzero(np.diff(each)) + 1))
    return each[starts], np.diff(starts, append=len(instants))


def _rows_on(instants: Ints, number: Ints, lengths: Ints, until: Ints) -> int:
    """How many rows there are before the first that lies behind the end of its course, or on none."""
    if not len(instants):
        return 0
    ends = np.where(number < 0, instants.min(), until[number])
    if (np.maximum.reduceat(instants, np.cumsum(lengths) - lengths) < ends).all():
        return len(instants)
    return int(np.argmax(instants >= np.repeat(ends, lengths)))


class _Courses:
    """Their numbers, for as many rows as lie on each: one where it is the same on all of them, else one for
    each row."""

    def __init__(self, courses: NDArray[np.void], lengths: Ints) -> None:
        self._courses, self._lengths = courses, lengths

    def __getitem__(self, name: str) -> Ints:
        return self._of(self._courses[name])

    def factors(self, name: str) -> list[Floats]:
        """Those of a polynomial; also `rate`, which is one alone."""
        return [self._of(one) for one in self._courses[name].reshape(len(self._courses), -1).T]

    def _of(self, column: Numbers) -> Numbers:
        return column[:1] if (column == column[:1]).all() else np.repeat(column, self._lengths)


def _keep(courses: _Courses, label: Ints, here: slice | Ints, placed: Placed, everything: bool) -> None:
    """Where no offset is known, rows stay at their labels."""
    time, *others = (ints(one) for one in placed[:5])
    time[here] = label + courses["shift"]
    if everything:
        np.frombuffer(placed.status, np.uint8)[here] = courses["status"]
        for one in others:
            one[here] = MISSING


def _follow(courses: _Courses, at: Ints, here: slice | Ints, placed: Placed, everything: bool) -> None:
    """See `courses.follow`."""
    time, offset, sd, low, high = (ints(one) for one in placed[:5])
    origin = courses["origin"]
    s = (at - courses["zero"]) * courses.factors("rate")[0]
    middle = _value(courses.factors("offset"), s)
    below = _line(np.maximum, courses.factors("low"), s)
    above = _line(np.minimum, courses.factors("high"), s)
    apart = below > above
    if apart.any():
        below, above = (
            np.where(apart, np.minimum(above, middle), below),
            np.where(apart, np.maximum(below, middle), above),
        )
    middle = np.minimum(np.maximum(middle, below), above)
    found = _rounded(middle) + origin
    time[here] = at - found + courses["shift"]
    if everything:
        spread = np.sqrt(np.maximum(0.0, _value(courses.factors("variance"), s)))
        most = np.maximum(middle - below, above - middle) / NORMAL_95
        offset[here] = found
        sd[here] = _rounded(np.minimum(spread, most))
        low[here] = _bound(np.floor(below), origin)
        high[here] = _bound(np.ceil(above), origin)
        np.frombuffer(placed.status, np.uint8)[here] = courses["status"]


def _value(powers: list[Floats], s: Floats) -> Floats:
    *lower, found = powers
    for power in lower[::-1]:
        found = found * s + power if found.any() else power  # nothing is the most frequent factor
    return found


def _line(best: np.ufunc, lines: list[Floats], s: Floats) -> Floats:
    """The better of two lines everywhere."""
    if not any(np.isfinite(one).any() for one in (lines[0], lines[2])) and (lines[0] == lines[2]).all():
        return lines[0]
    found: Floats = lines[1] * s
    other = lines[3] * s
    found += lines[0]
    other += lines[2]
    best(found, other, out=found)
    return found


def _rounded(values: Floats) -> Ints:
    """Half up."""
    return np.floor(values + 0.5).astype(np.int64)


def _bound(bound: Floats, origin: Ints) -> Ints:
    known = np.isfinite(bound)
    if known.all():
        return bound.astype(np.int64) + origin
    return np.where(known, origin + np.where(known, bound, 0.0).astype(np.int64), MISSING)


def count(values: Ints, tally: Tally) -> None:
    """Values of 0 and more. A bucket is what the head of a double says: exponent and first bits."""
    if not len(values):
        return
    most = int(values.max())
    whole = values
    if most >> _EXACT_BITS:  # rounding could reach the next bucket
        whole = np.where(values >> _EXACT_BITS, values & -1024, values)
    buckets = (whole.astype(np.float64).view(np.int64) >> _HEAD_SHIFT) - _HEAD_OF_BUCKETS
    small = 1 << Tally.KEPT_BITS - 1
    if int(values.min()) < small:
        buckets = np.where(values < small, values, buckets)
    least = int(buckets.min())
    buckets -= least
    counted = np.bincount(buckets)
    here = slice(least, least + len(counted))
    counts, sums = ints(tally.buckets)[::2], ints(tally.buckets)[1::2]
    counts[here] += counted
    if most * len(values) >> _EXACT_BITS == 0:
        sums[here] += np.bincount(buckets, values).astype(np.int64)
    else:
        upper, lower = np.bincount(buckets, values >> 26), np.bincount(buckets, values & (1 << 26) - 1)
        sums[here] += (upper.astype(np.int64) << 26) + lower.astype(np.int64)
