"""The certified interval: what the brackets alone prove about the offset, whatever the noise was.

It stands on these assumptions only: the stamps in use are true, no packet arrives before it was sent, no
two crystals are 200 ppm apart, and within an hour the rate between them changes by no more than 10 ppm, 2
ppm more for every further hour. No I/O.
"""

from bisect import bisect_left, bisect_right

from msgspec import Struct

WINDOW_S = 3600.0  # over which a mean rate is measured
RATE_ALLOWED = 10_000.0  # ns/s that a rate may change by within the window, and so stray from a mean in it
RATE_GROWTH = 2_000.0  # ns/s more for each hour beyond the window
RATE_LIMIT = 200_000.0  # ns/s: no two crystals are further apart
_S = 1e9


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
        self._brackets: list[tuple[float, float, float, float]] = []
        self._times: list[float] = []

    def add(self, low_s: float, low: float, high_s: float, high: float) -> None:
        """One burst: its lower bound and when it held, its upper bound and when; in the order of time."""
        self._brackets.append((low_s, low, high_s, high))
        self._times.append((low_s + high_s) / 2)

    def between(self, left: int, left_s: float, right_s: float) -> Bounds:
        """Bounds after burst *left* (-1: before the first), between two instants."""
        middle = max(
            min((left_s + right_s) / 2, self._times[-1] - WINDOW_S / 2), self._times[0] + WINDOW_S / 2
        )
        first = max(0, min(left, bisect_left(self._times, middle - WINDOW_S / 2)))
        last = min(len(self._times) - 1, max(left + 1, bisect_right(self._times, middle + WINDOW_S / 2) - 1))
        reach_s = max(right_s, self._times[last]) - min(left_s, self._times[first])
        slowest, fastest = self._rates(first, last, reach_s)
        infinite = float("inf")
        left_low = right_low = -infinite
        left_high = right_high = infinite
        for place in range(first, last + 1):
            low_s, low, high_s, high = self._brackets[place]
            if place <= left:
                left_low = max(left_low, low + slowest * (left_s - low_s))
                left_high = min(left_high, high + fastest * (left_s - high_s))
            else:
                right_low = max(right_low, low - fastest * (low_s - right_s))
                right_high = min(right_high, high - slowest * (high_s - right_s))
        return Bounds(left_low, left_high, right_low, right_high, slowest, fastest)

    def _rates(self, first: int, last: int, reach_s: float) -> tuple[float, float]:
        """How slow and how fast the offset can run among these bursts and reach_s long, ns/s."""
        third = max(1, (last - first + 1) // 3)
        early = min(range(first, first + third), key=self._width)
        late = min(range(last + 1 - third, last + 1), key=self._width)
        low_s, low, high_s, high = self._brackets[early]
        late_low_s, late_low, late_high_s, late_high = self._brackets[late]
        if min(late_low_s - high_s, late_high_s - low_s) <= 0:
            return -RATE_LIMIT, RATE_LIMIT
        slowest = (late_low - high) / (late_low_s - high_s)
        fastest = (late_high - low) / (late_high_s - low_s)
        hours = max(0.0, reach_s - WINDOW_S) / 3600
        allowed = RATE_ALLOWED + RATE_GROWTH * hours
        return max(-RATE_LIMIT, slowest - allowed), min(RATE_LIMIT, fastest + allowed)

    def _width(self, place: int) -> float:
        _, low, _, high = self._brackets[place]
        return high - low
