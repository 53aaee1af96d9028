"""Rows on the common axis, and what their numbers are like."""

import numpy as np
from numpy.typing import NDArray

from topside_daemon.fusion.columns import MISSING, Column, Placed, Tally
from topside_daemon.fusion.courses import NORMAL_95
from topside_daemon.fusion.kernel.plain.arrays import Ints, ints

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
    rows = len(instants)
    if rows and (instants[1:] >= instants[:-1]).all():
        rows = _place_in_order(instants, labels, table, placed, everything)
    elif rows:
        number = np.searchsorted(table["since"], instants, "right") - 1
        outside = (number < 0) | (instants >= table["until"][np.maximum(number, 0)])
        rows = int(np.argmax(outside)) if outside.any() else rows
        for one in np.unique(number[:rows]).tolist():
            here = np.flatnonzero(number[:rows] == one)
            _follow(table[one], instants[here], labels[here], here, placed, everything)
    if moved is not None:
        ints(placed.time)[:rows] += ints(moved)[:rows]
    return rows


def _place_in_order(
    instants: Ints, labels: Ints, table: NDArray[np.void], placed: Placed, everything: bool
) -> int:
    """The same for instants that never fall: those of one course are side by side."""
    done, rows = 0, len(instants)
    number = max(int(np.searchsorted(table["since"], instants[0], "right")) - 1, 0)
    while done < rows and number < len(table) and table["since"][number] <= instants[done]:
        course, next_ = table[number], table["since"][number + 1 : number + 2]
        stop = int(np.searchsorted(instants, min([*next_.tolist(), int(course["until"])]), "left"))
        if stop > done:
            here = slice(done, stop)
            _follow(course, instants[here], labels[here], here, placed, everything)
            done = stop
        elif not len(next_) or next_[0] > instants[done]:
            break
        number += 1
    return done


def _follow(
    course: np.void, at: Ints, label: Ints, here: slice | Ints, placed: Placed, everything: bool
) -> None:
    """See `courses.follow`."""
    time, offset, sd, low, high = (ints(one) for one in placed[:5])
    if everything:
        np.frombuffer(placed.status, np.uint8)[here] = course["status"]
    if course["origin"] == MISSING:
        time[here] = label + course["shift"]
        if everything:
            offset[here] = sd[here] = low[here] = high[here] = MISSING
        return
    s = (at - course["zero"]) * course["rate"]
    middle = _value(course["offset"], s)
    below, above = _line(np.maximum, course["low"], s), _line(np.minimum, course["high"], s)
    apart = below > above
    if apart.any():
        below, above = (
            np.where(apart, np.minimum(above, middle), below),
            np.where(apart, np.maximum(below, middle), above),
        )
    np.maximum(middle, below, out=middle)
    np.minimum(middle, above, out=middle)
    found = _rounded(middle)
    found += course["origin"]
    time[here] = at - found + course["shift"]
    if everything:
        spread = np.sqrt(np.maximum(0.0, _value(course["variance"], s)))
        most = np.maximum(middle - below, above - middle) / NORMAL_95
        offset[here] = found
        sd[here] = _rounded(np.minimum(spread, most))
        low[here] = _bound(np.floor(below), course["origin"])
        high[here] = _bound(np.ceil(above), course["origin"])


def _value(powers: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    highest = int(np.flatnonzero(powers).max(initial=0))  # those above it add nothing
    found: NDArray[np.float64] = np.full_like(s, powers[highest])
    for power in powers[:highest][::-1]:
        found *= s
        found += power
    return found


def _line(best: np.ufunc, lines: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    """The better of two lines everywhere."""
    found: NDArray[np.float64] = lines[1] * s
    other = lines[3] * s
    found += lines[0]
    other += lines[2]
    best(found, other, out=found)
    return found


def _rounded(values: NDArray[np.float64]) -> Ints:
    """Half up."""
    up = values + 0.5
    return np.floor(up, out=up).astype(np.int64)


def _bound(bound: NDArray[np.float64], origin: int) -> Ints:
    known = np.isfinite(bound)
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
