"""A rung where it holds: its line and its bounds as courses. No I/O, no clock."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import inf
from operator import add, sub

from msgspec import Struct

from topside_daemon.fusion.bursts import FASTEST_PPM
from topside_daemon.fusion.columns import Course
from topside_daemon.fusion.courses import EARLIEST, LATEST, STATUSES, unknown
from topside_daemon.fusion.ladder.oneway import WANDER_PER_S, Line
from topside_daemon.fusion.ladder.rungs import Bound, Rung

_S = 1_000_000_000
_AGEING = FASTEST_PPM * 1e3  # ns per s


class Foothold(Struct, frozen=True):
    """shift_ns: the steps between its labels and the joined ones, home_ns: those between its labels and the
    ones that the rung none leaves as they are. topside_epoch: None where it leads to the surface labels."""

    epoch: int
    topside_epoch: int | None
    rung: Rung
    shift_ns: int = 0
    home_ns: int = 0

    @property
    def middle_ns(self) -> int | None:
        """Where it knows best; None where it knows nothing."""
        return None if self.rung.line is None else self.rung.line.at_ns + self.shift_ns

    def courses(self, since: int, until: int) -> Iterator[Course]:
        """From one instant to before another."""
        line = self.rung.line
        if line is None:
            yield unknown(-self.home_ns, since=since, until=until)
            return
        zero, bounds = line.at_ns + self.shift_ns, _Bounds(self.rung.bounds, line)
        half_ns = round(line.span_s * _S / 2)
        cuts = {since, until, zero - half_ns, zero + half_ns}
        cuts |= {bound.at_ns + self.shift_ns for bound in self.rung.bounds}
        inner = sorted(cut for cut in cuts if since <= cut <= until)
        for first, end in pairwise(inner):
            first_s, last_s = (first - zero) / _S, (end - 1 - zero) / _S
            low, high = bounds.between(first_s, last_s)
            yield Course(
                since=first,
                until=end,
                zero=zero,
                origin=line.offset_ns + self.shift_ns,
                shift=0,
                status=STATUSES.index(self.rung.name),
                rate=1 / _S,
                offset=(0.0, line.drift, 0.0, 0.0),
                variance=_variance(line, first_s, last_s),
                low=low,
                high=high,
            )


Powers = tuple[float, float, float, float, float, float, float]
Lines = tuple[float, float, float, float]


def _variance(line: Line, first_s: float, last_s: float) -> Powers:
    """A measured drift still wanders: see `Line.at`; with k half the span, beyond it (|x| - k)^2 (|x| + k) /
    3."""
    wander, k = WANDER_PER_S * float(_S) ** 2, line.span_s / 2
    v0 = line.level_variance + wander * line.apart_s**3 / 48
    v1, v2, v3 = 0.0, line.drift_variance, 0.0
    if first_s >= k or last_s <= -k:
        side = 1 if first_s >= k else -1
        v0, v1 = v0 + wander * k**3 / 3, -side * wander * k**2 / 3
        v2, v3 = v2 - wander * k / 3, side * wander / 3
    return v0, v1, v2, v3, 0.0, 0.0, 0.0


class _Bounds:
    """What the order of events proves around a line, in ns from its offset: each bound aged by the fastest
    drift there is, of those before an instant the best, and of those behind it."""

    def __init__(self, bounds: Sequence[Bound], line: Line) -> None:
        order = sorted(bounds, key=lambda bound: bound.at_ns)
        self._at = [(bound.at_ns - line.at_ns) / _S for bound in order]
        lows = [-inf if one.low_ns is None else one.low_ns - line.offset_ns - 1.0 for one in order]
        highs = [inf if one.high_ns is None else one.high_ns - line.offset_ns + 1.0 for one in order]
        aged = [_AGEING * x for x in self._at]
        self._low_before = [-inf, *accumulate(map(add, lows, aged), max)]
        self._high_before = [inf, *accumulate(map(sub, highs, aged), min)]
        self._low_behind = [-inf, *accumulate(reversed([*map(sub, lows, aged)]), max)][::-1]
        self._high_behind = [inf, *accumulate(reversed([*map(add, highs, aged)]), min)][::-1]

    def between(self, first_s: float, last_s: float) -> tuple[Lines, Lines]:
        """Between two instants with no bound in between; nothing where bounds contradict each other."""
        place = bisect_right(self._at, first_s)
        low = (self._low_before[place], -_AGEING, self._low_behind[place], _AGEING)
        high = (self._high_before[place], _AGEING, self._high_behind[place], -_AGEING)
        for x in (first_s, last_s):
            lowest = max(low[0] + low[1] * x, low[2] + low[3] * x)
            if lowest > min(high[0] + high[1] * x, high[2] + high[3] * x):
                return (-inf, 0.0, -inf, 0.0), (inf, 0.0, inf, 0.0)
        return low, high


def by_distance(footholds: Sequence[Foothold]) -> Iterator[tuple[Foothold, Course]]:
    """The courses of one epoch, each instant on the foothold that it is nearest to."""
    knowing = sorted((one.middle_ns, n) for n, one in enumerate(footholds) if one.middle_ns is not None)
    order = [footholds[n] for _, n in knowing] or footholds[:1]
    middles = [middle_ns for middle_ns, _ in knowing]
    since = EARLIEST
    for place, one in enumerate(order):
        until = (middles[place] + middles[place + 1]) // 2 + 1 if place + 1 < len(order) else LATEST
        for course in one.courses(since, until):
            yield one, course
        since = until
