"""The instants of one stream's rows as a sequence that need not fit into memory."""

from collections.abc import Iterator, Sequence
from typing import overload

from topside_daemon.fusion.columns import MISSING, Summary, Tally
from topside_daemon.fusion.index import Index
from topside_daemon.fusion.kernel import Kernel


class Stamps(Sequence[int]):
    """`at` of the rows from *first* to before *end* of an index, in its order."""

    def __init__(self, index: Index, kernel: Kernel, first: int = 0, end: int | None = None) -> None:
        self._index = index
        self._kernel = kernel
        self._first = first
        self._end = index.rows if end is None else end

    def __len__(self) -> int:
        return self._end - self._first

    @overload
    def __getitem__(self, which: int) -> int: ...
    @overload
    def __getitem__(self, which: slice) -> list[int]: ...
    def __getitem__(self, which: int | slice) -> int | list[int]:
        if isinstance(which, slice):
            first, end, step = which.indices(len(self))
            assert step == 1, "in the order of the rows"
            return self._index.instants(self._first + first, self._first + end)
        row = which + len(self) * (which < 0)
        if not 0 <= row < len(self):
            raise IndexError(which)
        return self._index.instants(self._first + row, self._first + row + 1)[0]

    def part(self, first: int, end: int) -> "Stamps":
        """The same of some of the rows."""
        return Stamps(self._index, self._kernel, self._first + first, self._first + end)

    def _columns(self) -> Iterator[tuple[int, "memoryview"]]:
        """Number of the first row and instants, block by block."""
        for block in self._index.blocks_between(self._first, self._end, texts=False):
            first = max(self._first, block.first)
            yield first - self._first, block.at[first - block.first : self._end - block.first]

    def ends(self) -> tuple[int, int]:
        """The smallest and the largest; there must be one."""
        found = [self._kernel.ends(at) for _, at in self._columns()]
        return min(low for low, _ in found), max(high for _, high in found)

    def intervals(self, rising: bool = True) -> Summary:
        """Those between neighbours that are not negative, or, not rising, not positive."""
        tally, before = Tally(), MISSING
        for _, at in self._columns():
            self._kernel.tally_intervals(at, before, tally)
            before = at[-1]
        return tally.summary()

    def outliers(self, least: int, most: int) -> list[int]:
        """The rows that do not come at least *least* and at most *most* behind the row before them."""
        found, before = [], MISSING
        for first, at in self._columns():
            found += [first + row for row in self._kernel.outliers(at, before, least, most)]
            before = at[-1]
        return found

    def first_from(self, at_ns: int) -> int:
        """The first row that is not before an instant, or the last of all; 0 where there is none."""
        for first, at in self._columns():
            if self._kernel.ends(at)[1] >= at_ns:
                return next(first + row for row, one in enumerate(at) if one >= at_ns)
        return max(0, len(self) - 1)
