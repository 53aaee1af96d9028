"""The certified interval: what the brackets alone prove about the offset, whatever the noise was.

It stands on these assumptions only: the stamps in use are true, no packet arrives before it was sent, no
two crystals are 200 ppm apart, and within an hour the rate between them changes by no more than 10 ppm, 2
ppm more for every further hour. No I/O.
"""

from bisect import bisect_left, bisect_right
from math import inf

from msgspec import Struct

WINDOW_S = 3600.0  # over which a mean rate is measured
RATE_ALLOWED = 10_000.0  # ns/s that a rate may change by within the window, and so stray from a mean in it
RATE_GROWTH = 2_000.0  # ns/s more for each hour beyond the window
RATE_LIMIT = 200_000.0  # ns/s: no two crystals are further apart


class Bounds(Struct, frozen=True, gc=False):
    """Lower and upper bound on both sides of one interval between bursts, in ns, and how fast they age.

    left and right are at the interval's ends; rates in ns/s.
    """

    left_low: float
    left_high: float
    right_low: float
    right_high: float
    slowest: float
    fastest: float

    @property
    def contradict(self) -> bool:
        """At one of the ends nothing can be true."""
        return self.left_low > self.left_high or self.right_low > self.right_high

    def at(self, after_s: float, before_s: float) -> tuple[float, float]:
        """Bounds at an instant this long after the left and before the right end."""
        low = max(self.left_low + self.slowest * after_s, self.right_low - self.fastest * before_s)
        high = min(self.left_high + self.fastest * after_s, self.right_high - self.slowest * before_s)
        return low, high


class Certificate:
    """Bounds between any two bursts of one segment, in ns from an integer origin; time in s from another."""

    def __init__(self) -> None:
        self._lows = _Lines()
        self._highs = _Lines()
        self._times: list[float] = []
        self._narrowest = _Narrowest()

    def add(self, low_s: float, low: float, high_s: float, high: float) -> None:
        """One burst: its lower bound and when it held, its upper bound and when; in the order of time."""
        self._lows.add(low_s, low)
        self._highs.add(high_s, high)
        self._times.append((low_s + high_s) / 2)
        self._narrowest.add(high - low)

    def between(self, left: int, left_s: float, right_s: float) -> Bounds:
        """Bounds after burst *left* (-1: before the first), between two instants."""
        times, lows, highs = self._times, self._lows, self._highs
        middle = max(min((left_s + right_s) / 2, times[-1] - WINDOW_S / 2), times[0] + WINDOW_S / 2)
        first = max(0, min(left, bisect_left(times, middle - WINDOW_S / 2)))
        last = min(len(times) - 1, max(left + 1, bisect_right(times, middle + WINDOW_S / 2) - 1))
        reach_s = max(right_s, times[last]) - min(left_s, times[first])
        slowest, fastest = self._rates(first, last, reach_s)
        before, behind = slice(first, left + 1), slice(left + 1, last + 1)
        return Bounds(
            left_low=max(lows.at(left_s, slowest, before), default=-inf),
            left_high=min(highs.at(left_s, fastest, before), default=inf),
            right_low=max(lows.at(right_s, fastest, behind), default=-inf),
            right_high=min(highs.at(right_s, slowest, behind), default=inf),
            slowest=slowest,
            fastest=fastest,
        )

    def _rates(self, first: int, last: int, reach_s: float) -> tuple[float, float]:
        """How slow and how fast the offset can run among these bursts and reach_s long, ns/s."""
        third = max(1, (last - first + 1) // 3)
        early = self._narrowest.among(first, first + third)
        late = self._narrowest.among(last + 1 - third, last + 1)
        (low_s, low), (high_s, high) = self._lows.one(early), self._highs.one(early)
        (late_low_s, late_low), (late_high_s, late_high) = self._lows.one(late), self._highs.one(late)
        if min(late_low_s - high_s, late_high_s - low_s) <= 0:
            return -RATE_LIMIT, RATE_LIMIT
        slowest = (late_low - high) / (late_low_s - high_s)
        fastest = (late_high - low) / (late_high_s - low_s)
        hours = max(0.0, reach_s - WINDOW_S) / 3600
        allowed = RATE_ALLOWED + RATE_GROWTH * hours
        return max(-RATE_LIMIT, slowest - allowed), min(RATE_LIMIT, fastest + allowed)


class _Lines:
    """Bounds of one kind, and when they held; asked for all at once, because there are many."""

    def __init__(self) -> None:
        self._at: list[float] = []
        self._values: list[float] = []

    def add(self, at_s: float, value: float) -> None:
        self._at.append(at_s)
        self._values.append(value)

    def one(self, place: int) -> tuple[float, float]:
        return self._at[place], self._values[place]

    def at(self, at_s: float, rate: float, which: slice) -> list[float]:
        """Some of them, moved to an instant at a rate."""
        some = zip(self._values[which], self._at[which], strict=True)
        return [value + rate * (at_s - there_s) for value, there_s in some]


class _Narrowest:
    """The place of the least of some neighbouring widths, of equal ones the first: in tables of 1, 2, 4, ...
    of them, each ending at its own place, so that another width costs the logarithm of their number."""

    def __init__(self) -> None:
        self._widths: list[float] = []
        self._tables: list[list[int]] = [[]]

    def add(self, width: float) -> None:
        place = len(self._widths)
        self._widths.append(width)
        self._tables[0].append(place)
        for power, table in enumerate(self._tables):
            reach = 1 << power
            if place + 1 < 2 * reach:
                break
            if power + 1 == len(self._tables):
                self._tables.append([-1] * place)
            self._tables[power + 1].append(self._less(table[place - reach], table[place]))

    def _less(self, one: int, other: int) -> int:
        return other if self._widths[other] < self._widths[one] else one

    def among(self, first: int, end: int) -> int:
        power = (end - first).bit_length() - 1
        table = self._tables[power]
        return self._less(table[first + (1 << power) - 1], table[end - 1])
