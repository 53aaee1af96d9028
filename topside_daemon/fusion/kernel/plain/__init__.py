"""The inner loops in numpy, where there is no compiled kernel: method by method what `compiled` does."""

import numpy as np

from topside_daemon.fusion.columns import (
    FLAGS_SHIFT,
    MISSING,
    Column,
    Odd,
    Options,
    Placed,
    Rows,
    Tally,
)
from topside_daemon.fusion.kernel import KernelName
from topside_daemon.fusion.kernel.plain.arrays import Ints, ints
from topside_daemon.fusion.kernel.plain.pairing import Matcher
from topside_daemon.fusion.kernel.plain.placing import count, place
from topside_daemon.fusion.kernel.plain.scanning import scan
from topside_daemon.fusion.kernel.plain.table import Loom
from topside_daemon.fusion.spill import Spill


class Plain:
    """The kernel in numpy."""

    name: KernelName = "numpy"

    def scan(
        self, text: bytearray, start: int, stop: int, base: int, ours: bool, check: bool, rows: Rows
    ) -> tuple[list[Odd], int, int]:
        return scan(text, start, stop, base, ours, check, rows)

    def place(
        self,
        at: Column,
        utc: Column,
        moved: Column | None,
        courses: bytearray,
        placed: Placed,
        everything: bool,
    ) -> int:
        return place(at, utc, moved, courses, placed, everything)

    def tally(self, values: Column, tally: Tally) -> None:
        numbers = ints(values)
        count(numbers[numbers != MISSING], tally)

    def tally_intervals(self, values: Column, before: int, tally: Tally) -> int:
        numbers = ints(values)
        intervals = _intervals(numbers, before)
        backward = int(np.count_nonzero(intervals < 0))
        count(intervals[intervals >= 0] if backward else intervals, tally)
        return backward

    def ends(self, values: Column) -> tuple[int, int]:
        numbers = ints(values)
        return int(numbers.min()), int(numbers.max())

    def flags(self, span: Column) -> list[int]:
        counts: list[int] = np.bincount(ints(span) >> FLAGS_SHIFT & 7, minlength=8).tolist()
        return counts

    def shift(self, values: Column, by: int, into: Column) -> None:
        np.add(ints(values), by, out=ints(into))

    def outliers(self, values: Column, before: int, least: int, most: int) -> list[int]:
        intervals = _intervals(ints(values), before)
        found = np.flatnonzero((intervals < least) | (intervals > most)) + (before == MISSING)
        return found.tolist()

    def matcher(self, tolerance_ns: int, spill: Spill) -> Matcher:
        return Matcher(tolerance_ns)

    def loom(self, options: Options) -> Loom:
        return Loom(options)


def _intervals(values: Ints, before: int) -> Ints:
    """Between neighbours; the first from *before*, unless it is MISSING."""
    intervals = values[1:] - values[:-1]
    return intervals if before == MISSING else np.concatenate((values[:1] - before, intervals))
