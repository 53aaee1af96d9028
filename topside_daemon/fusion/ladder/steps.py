"""Steps of a wall clock in a record that kept no other: found in its labels, and taken out of them.

Rows are looked at in the order of arrival, because a clock that was set back makes labels lie. A sensor
has a rhythm; what the labels move beyond it is the step. No I/O, no clock; instants are int ns.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil, floor, hypot
from statistics import fmean, median
from typing import Literal, Protocol, overload

from msgspec import Struct

from common.rows import format_utc
from topside_daemon.fusion.columns import Summary

SideName = Literal["in-water", "surface"]
SIDES: tuple[SideName, SideName] = ("in-water", "surface")

_USUAL_SPREADS = 3  # an interval further off than this is looked at,
_USUAL_SHARE = 0.05  # or than this share of the usual one
_LEAST_SPREADS = 3  # of its surroundings: smaller jumps are arrival jitter
_WINDOW_ROWS = 12  # of rhythm on either side of a jump
_REACH_ROWS = 3  # whose median places the rhythm; one late or early line does not move it
_FEW_ROWS = 3  # whose absence the rhythm explains
_GAP_PERIODS = 1.5  # a longer interval does not show the period


class Labels(Protocol):
    """Instants of one sensor's rows in the order of arrival; there may be more than fit into memory."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, which: int) -> int: ...
    @overload
    def __getitem__(self, which: slice) -> list[int]: ...
    def part(self, first: int, end: int) -> "Labels":
        """The same of the rows from *first* to before *end*."""

    def ends(self) -> tuple[int, int]:
        """The smallest and the largest."""

    def intervals(self) -> Summary:
        """Those between neighbours that are not negative."""

    def outliers(self, least: int, most: int) -> list[int]:
        """The rows that do not come at least *least* and at most *most* behind the one before them."""

    def first_from(self, at_ns: int) -> int:
        """The first row that is not before an instant, or the last of all."""


class Jump(Struct, frozen=True):
    """Labels that moved by size_ns more than the sensor's period before the reading at *index*.

    certain: they ran backwards, which only a clock that was set does. Otherwise it may be a gap, or a
    sensor that fell out of step.
    """

    index: int
    size_ns: int
    sd_ns: int
    certain: bool
    period_ns: float

    @property
    def in_rhythm(self) -> bool:
        """Whether a row or a few are missing, and the sensor's rhythm goes on behind them."""
        missing = round(self.size_ns / self.period_ns) if self.period_ns else 0
        error_ns = abs(self.size_ns - missing * self.period_ns)
        return 0 < missing <= _FEW_ROWS and error_ns <= 3 * self.sd_ns < self.period_ns / 2


class Step(Struct, frozen=True):
    """A wall clock that was set, positive: forward. at_ns: the first label after it."""

    side: SideName
    at_ns: int
    size_ns: int
    sd_ns: int
    evidence: str

    def __str__(self) -> str:
        size_s, sd_s = self.size_ns / 1e9, self.sd_ns / 1e9
        size = f"{size_s:+.3f} ± {sd_s:.3f} s"
        return f"{self.side} clock set by {size} at {format_utc(self.at_ns)}: {self.evidence}"


class Pieces:
    """One sensor's rows between the steps of its clock; subtracting a piece's shift joins the labels."""

    def __init__(self, jumps: Iterable[Jump]) -> None:
        self.starts, self.shifts_ns, self.variances = [0], [0], [0.0]
        for jump in sorted(jumps, key=lambda one: one.index):
            self.starts.append(jump.index)
            self.shifts_ns.append(self.shifts_ns[-1] + jump.size_ns)
            self.variances.append(self.variances[-1] + float(jump.sd_ns) ** 2)

    def __len__(self) -> int:
        return len(self.starts)

    def ranges(self, rows: int) -> list[tuple[int, int]]:
        """First reading and the one after the last of every piece; none without rows."""
        return list(pairwise([*self.starts, rows])) if rows else []

    def of(self, index: int) -> int:
        """The piece that holds the reading at *index*; the first one for rows that never were."""
        return max(0, bisect_right(self.starts, index) - 1)


def find_jumps(labels_ns: Labels) -> list[Jump]:
    """Where labels, in the order of arrival, left the sensor's rhythm for good."""
    found = labels_ns.intervals()
    longest_ns = _GAP_PERIODS * (found.quantile(0.5) or 0.0)
    period_ns = found.mean(longest_ns) or 0.0
    spread_ns = (found.quantile(0.9, longest_ns) or 0.0) - (found.quantile(0.1, longest_ns) or 0.0)
    near_ns = max(_USUAL_SPREADS * spread_ns, _USUAL_SHARE * period_ns)
    suspects = labels_ns.outliers(max(0, ceil(period_ns - near_ns)), floor(period_ns + near_ns))
    return [jump for index in suspects if (jump := _jump_at(labels_ns, index))]


def _jump_at(labels_ns: Labels, index: int) -> Jump | None:
    before = labels_ns[max(0, index - _WINDOW_ROWS) : index][::-1]
    after = labels_ns[index : index + _WINDOW_ROWS]
    rhythms = [one for one in (_rhythm([-label for label in before]), _rhythm(after)) if one]
    periods, spreads = [one[0] for one in rhythms] or [0.0], [one[1] for one in rhythms]
    period_ns = sum(periods) / len(periods)
    jitter_ns = max(spreads, default=abs(after[0] - before[0]) / 2) + max(periods) - min(periods)
    origin_ns = labels_ns[index]  # floats hold differences only
    from_ns = median(label - origin_ns + n * period_ns for n, label in enumerate(before[:_REACH_ROWS]))
    to_ns = median(label - origin_ns - n * period_ns for n, label in enumerate(after[:_REACH_ROWS]))
    size_ns = to_ns - from_ns - period_ns
    backwards = after[0] < before[0]
    if abs(size_ns) <= _LEAST_SPREADS * jitter_ns or (backwards and size_ns > 0):
        return None
    return Jump(
        index, round(size_ns), round(hypot(jitter_ns / 2, resolution_ns(after))), backwards, period_ns
    )


def _rhythm(labels_ns: Sequence[int]) -> tuple[float, float] | None:
    """Period and spread (p90 - p10) of rising intervals, in ns; None where there are none.

    The period is a mean: quantised arrivals have intervals that no reading really had.
    """
    rising = sorted(after - before for before, after in pairwise(labels_ns) if after > before)
    if not rising:
        return None
    longest_ns = _GAP_PERIODS * median(rising)
    regular = [interval for interval in rising if interval <= longest_ns]
    last = len(regular) - 1
    return fmean(regular), float(regular[round(last * 0.9)] - regular[round(last * 0.1)])


def resolution_ns(labels_ns: Iterable[int]) -> int:
    """1 ms where the labels are whole milliseconds, else 1 us."""
    return 1_000 if any(label % 1_000_000 for label in labels_ns) else 1_000_000
