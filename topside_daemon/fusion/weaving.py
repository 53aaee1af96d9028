"""Two sensors' rows become one table: who belongs to whom, then row by row as text, in one pass each."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TypeVar

from topside_daemon.fusion.axis import Axis
from topside_daemon.fusion.columns import (
    OFFSET_SHIFT,
    Column,
    Cursor,
    Options,
    Pairing,
    Placed,
    Side,
    Tally,
    Totals,
    column,
)
from topside_daemon.fusion.kernel import Kernel
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.stock import Stock
from topside_daemon.fusion.texts import Texts

T = TypeVar("T")


def pair(kernel: Kernel, inwater: Axis, surface: Axis, tolerance_ns: int, scratch: Spill) -> Pairing:
    """The pairing of `matching`, of all rows."""
    matcher, window = kernel.matcher(tolerance_ns, scratch), _Window(kernel, surface, None)
    for block in inwater.index.stamps():
        times = inwater.times(block)
        window.reach(times[-1] + tolerance_ns)
        window.leave(matcher.needs)
        matcher.push(times, window.time, window.first)
    matcher.pairing.hold(inwater.index.rows, surface.index.rows)
    return matcher.finish()


class _Window:
    """Neighbouring rows of the surface sensor; with their text, where there are texts."""

    def __init__(self, kernel: Kernel, axis: Axis, texts: Texts | None) -> None:
        self._kernel = kernel
        self._axis = axis
        self._texts = texts
        self._blocks = axis.index.blocks() if texts else axis.index.stamps()
        self._time, self._seq, self._span, self._text = Stock("q"), Stock("q"), Stock("q"), Stock("B")
        self._text_from = 0
        self._ends: deque[tuple[int, int]] = deque()  # of each block: the row and the text behind its last
        self.first = 0
        self.whole = False  # all rows have been in it

    @property
    def time(self) -> Column:
        return self._time.view

    def reach(self, time_ns: int) -> None:
        """Take in rows up to the first that is later, if there is one."""
        while not self.whole and not (self._time and self.time[-1] > time_ns):
            self.grow()

    def grow(self) -> None:
        """Take in one block more, unless that was all."""
        block = next(self._blocks, None)
        if block is None:
            self.whole = True
            return
        rows = len(block.at)
        self._time.more(rows)[:] = self._axis.times(block)
        if self._texts is not None:
            end = self._text_from + len(self._text)
            start, span = self._texts.of(block, self._text)
            self._seq.more(rows)[:] = block.seq
            self._kernel.shift(span, (end - start) << OFFSET_SHIFT, self._span.more(rows))
            self._ends.append((self.first + len(self._time), self._text_from + len(self._text)))

    def leave(self, row: int) -> None:
        """Let go of the rows before one."""
        gone = min(max(row - self.first, 0), len(self._time))
        self.first += gone
        self._time.drop(gone)
        if self._texts is not None:
            self._seq.drop(gone)
            self._span.drop(gone)
            while self._ends and self._ends[0][0] <= self.first:
                _, end = self._ends.popleft()
                self._text.drop(end - self._text_from)
                self._text_from = end

    def side(self, taken: bytearray) -> Side:
        columns = (self.time, self._seq.view, self._span.view)
        return Side(self.first, *columns, self._text.view, self._text_from, taken)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; while one is in use, the next is made."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item


class Weaver:
    """The rows of the table, in order; totals and distances (of pairs, ns) are those of what has been given
    out."""

    def __init__(
        self,
        kernel: Kernel,
        inwater: tuple[Axis, Texts | None],
        surface: tuple[Axis, Texts | None],
        options: Options,
    ) -> None:
        self._kernel = kernel
        self._inwater, self._under = inwater
        self._surface, self._deck = surface
        self._options = options
        self._loom = kernel.loom(options)
        self.totals, self.distances = Totals(), Tally()

    def weave(self, pairing: Pairing, reach_ns: int) -> Iterator[memoryview]:
        """Lines of the table, some at a time; each piece is valid until the next.

        Args:
            reach_ns: how much later than its in-water reading a partner may be.
        """
        cursor, window = Cursor(), _Window(self._kernel, self._surface, self._deck)
        for side, placed in ahead(self._prepared(pairing.inwater)):
            window.reach(placed.time[-1] + reach_ns)
            yield from self._some(side, placed, window.side(pairing.surface), False, cursor)
            window.leave(
                min(cursor.surface - 1, cursor.partner) if not self._options.held else cursor.surface - 1
            )
        nobody = column(0)
        side = Side(self._inwater.index.rows, nobody, nobody, nobody, nobody, 0, pairing.inwater)
        placed = Placed.room(0)
        while not self._options.held:
            yield from self._some(side, placed, window.side(pairing.surface), True, cursor)
            if window.whole:
                break
            window.leave(cursor.surface)
            window.grow()

    def _prepared(self, taken: bytearray) -> Iterator[tuple[Side, Placed]]:
        """The in-water rows, block by block; each is valid until the one after the next is made."""
        for block, text in zip(self._inwater.index.blocks(), cycle((Stock("B"), Stock("B")))):
            placed = self._inwater.place(block)
            assert self._under is not None
            text.clear()
            start, span = self._under.of(block, text)
            yield Side(block.first, placed.time, block.seq, span, text.view, start, taken), placed

    def _some(
        self, inwater: Side, placed: Placed, surface: Side, final: bool, cursor: Cursor
    ) -> Iterator[memoryview]:
        return self._loom.weave(inwater, placed, surface, final, cursor, self.totals, self.distances)
