"""Rows on the common axis, and what their numbers are like."""

import numpy as np
from numpy.typing import NDArray

from topside_daemon.fusion.columns import MISSING, Column, Placed, Tally
from topside_daemon.fusion.courses import NORMAL_95
from topside_daemon.fusion.kernel.plain.arrays import Flags, Ints, ints

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


def place(
    at: Column, utc: Column, moved: Column | None, courses: bytearray, placed: Placed, everything: bool
) -> int:
    """See `Kernel.place`."""
    instants, labels, table = ints(at), ints(utc), np.frombuffer(courses, _COURSE)
    rows = len(instants)
    number = np.searchsorted(table["since"], instants, "right") - 1
    outside = (number < 0) | (instants >= table["until"][np.maximum(number, 0)])
    rows = int(np.argmax(outside)) if outside.any() else rows
    for one in np.unique(number[:rows]).tolist():
        some = number[:rows] == one
        here: slice | Flags = slice(*np.flatnonzero(some)[[0, -1]] + (0, 1))
        if not some[here].all():
            here = some
        _follow(table[one], instants[:rows][here], labels[:rows][here], here, placed, everything)
    if moved is not None:
        ints(placed.time)[:rows] += ints(moved)[:rows]
    return rows


def _follow(
    course: np.void, at: Ints, label: Ints, here: slice | Flags, placed: Placed, everything: bool
) -> None:
    """See `courses.follow`."""
    rows = len(placed.time) if isinstance(here, slice) else len(here)
    time = ints(placed.time)[:rows]
    offset, sd, low, high = (ints(one)[:rows] for one in placed[1:5])
    if everything:
        np.frombuffer(placed.status, np.uint8)[:rows][here] = course["status"]
    if course["origin"] == MISSING:
        time[here] = label + course["shift"]
        if everything:
            offset[here] = sd[here] = low[here] = high[here] = MISSING
        return
    s = (at - course["zero"]) * course["rate"]
    middle = _value(course["offset"], s)
    below, above = _lines(np.maximum, course["low"], s), _lines(np.minimum, course["high"], s)
    below, above = (
        np.where(below > above, np.minimum(above, middle), below),
        np.where(below > above, np.maximum(below, middle), above),
    )
    middle = np.minimum(np.maximum(middle, below), above)
    found = course["origin"] + np.floor(middle + 0.5).astype(np.int64)
    time[here] = at - found + course["shift"]
    if everything:
        spread = np.sqrt(np.maximum(0.0, _value(course["variance"], s)))
        most = np.maximum(middle - below, above - middle) / NORMAL_95
        offset[here] = found
        sd[here] = np.floor(np.minimum(spread, most) + 0.5)
        low[here] = _bound(np.floor(below), course["origin"])
        high[here] = _bound(np.ceil(above), course["origin"])


def _value(powers: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.full_like(s, powers[-1])
    for power in powers[-2::-1]:
        found = found * s + power
    return found


def _lines(best: np.ufunc, lines: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = best(lines[0] + lines[1] * s, lines[2] + lines[3] * s)
    return found


def _bound(bound: NDArray[np.float64], origin: int) -> Ints:
    known = np.isfinite(bound)
    return np.where(known, origin + np.where(known, bound, 0.0).astype(np.int64), MISSING)


def count(values: Ints, tally: Tally) -> None:
    """Values of 0 and more."""
    above = np.frexp(values.astype(np.float64))[1]
    above -= (values >> np.maximum(above - 1, 0) == 0) & (above > 0)  # what rounding made one bit longer
    above = np.maximum(above - Tally.KEPT_BITS, 0)
    buckets = (above << Tally.KEPT_BITS - 1) + (values >> above)
    if not len(buckets):
        return
    present, place = np.unique(buckets, return_inverse=True)
    counts, sums = ints(tally.buckets)[::2], ints(tally.buckets)[1::2]
    counts[present] += np.bincount(place)
    halves = (
        np.bincount(place, values >> 26),
        np.bincount(place, values & (1 << 26) - 1),
    )  # exact in a double
    sums[present] += (halves[0].astype(np.int64) << 26) + halves[1].astype(np.int64)
