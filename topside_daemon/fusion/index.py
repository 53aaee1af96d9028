"""The rows of one stream as columns, in blocks: what fusion passes over again and again, in bounded memory.

A row is where its text lies, when it was stamped, and its number; see `columns`. Blocks are kept in a
spill, and a block is of one epoch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from topside_daemon.fusion.columns import UNNUMBERED, Column, column_of
from topside_daemon.fusion.spill import Spill

CACHED = 4  # blocks that are kept for questions after single rows


class Block(NamedTuple):
    """Rows of one epoch, numbered from `first` in their stream. straight: their text lies in their order in
    the files. moved: how much later than its stamp each would have come without jitter, ns."""

    first: int
    epoch: int
    straight: bool
    at: Column
    utc: Column
    seq: Column
    span: Column
    moved: Column | None

    def beginning(self, rows: int) -> "Block":
        """Its first rows."""
        at, utc, seq, span = (one[:rows] for one in (self.at, self.utc, self.seq, self.span))
        moved = None if self.moved is None else self.moved[:rows]
        return Block(self.first, self.epoch, self.straight, at, utc, seq, span, moved)


class _Entry(NamedTuple):
    """A block, or a part of one that was stored: rows skip to skip + rows of its stored ones."""

    first: int
    rows: int
    epoch: int
    straight: bool
    moved: bool
    place: int
    stored: int
    skip: int = 0


class Index:
    """Appended to once, read from the beginning as often as wanted."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._entries: list[_Entry] = []
        self._cache: dict[int, Block] = {}
        self._unnumbered = column_of([])
        self.rows = 0

    def append(
        self,
        epoch: int,
        straight: bool,
        at: Column,
        utc: Column,
        seq: Column,
        span: Column,
        moved: Column | None = None,
    ) -> None:
        """Add rows of one epoch; see `Block`."""
        place = self._spill.size
        for one in (at, moved, span) if epoch < 0 else (at, utc, moved, seq, span):
            if one is not None:
                self._spill.write(one)
        rows = len(at)
        self._entries.append(_Entry(self.rows, rows, epoch, straight, moved is not None, place, rows))
        self.rows += rows

    def blocks(self) -> Iterator[Block]:
        """All of it, in order."""
        return map(self._load, self._entries)

    def stamps(self) -> Iterator[Block]:
        """The same without numbers and texts, which are most of it."""
        return (self._load(entry, texts=False) for entry in self._entries)

    def blocks_between(self, first: int, end: int, texts: bool = True) -> Iterator[Block]:
        """Those that hold a row from *first* to before *end*."""
        return (
            self._load(one, texts)
            for one in self._entries
            if one.first < end and one.first + one.rows > first
        )

    @property
    def last_seq(self) -> int:
        """Number of the last row; -1 of none."""
        return self._load(self._entries[-1]).seq[-1] if self._entries else -1

    def ranges(self) -> dict[int, tuple[int, int]]:
        """First and end of the rows of every epoch; one that comes back counts from its first row to its
        last."""
        found: dict[int, tuple[int, int]] = {}
        for entry in self._entries:
            first, _ = found.get(entry.epoch, (entry.first, 0))
            found[entry.epoch] = first, entry.first + entry.rows
        return found

    def extend(self, other: "Index") -> None:
        """Take over the rows of another one in the same spill, behind its own."""
        if other._spill is not self._spill:
            for block in other.blocks():
                self.append(*block[1:])
            return
        self._entries += [entry._replace(first=entry.first + self.rows) for entry in other._entries]
        self.rows += other.rows

    def renumber(self, starts: Sequence[tuple[int, int]]) -> None:
        """Give rows another epoch: from each of these rows on the one beside it; not to those before the
        first, nor to numbered rows."""
        found: list[_Entry] = []
        begins = [row for row, _ in starts]
        for entry in self._entries:
            stop = entry.first + entry.rows
            cuts = begins[bisect_right(begins, entry.first) : bisect_left(begins, stop)]
            for first, end in pairwise([entry.first, *cuts, stop]):
                place = bisect_right(begins, first)
                epoch = starts[place - 1][1] if place else entry.epoch
                skip = entry.skip + first - entry.first
                part = entry._replace(first=first, rows=end - first, skip=skip)
                found.append(part._replace(epoch=epoch) if entry.epoch < 0 else part)
        self._entries = found
        self._cache.clear()

    def _load(self, entry: _Entry, texts: bool = True) -> Block:
        numbered = entry.epoch >= 0
        columns = 1 + numbered + entry.moved + texts * (1 + numbered)
        data = memoryview(self._spill.read(entry.place, 8 * entry.stored * columns)).cast("q")
        starts = range(entry.skip, len(data), entry.stored)
        found = [data[start : start + entry.rows] for start in starts]
        at = found.pop(0)
        utc = found.pop(0) if numbered else at
        moved = found.pop(0) if entry.moved else None
        seq = found.pop(0) if numbered and texts else self._no_numbers(entry.rows)
        span = found.pop() if texts else at[:0]
        return Block(entry.first, entry.epoch, entry.straight, at, utc, seq, span, moved)

    def _no_numbers(self, count: int) -> Column:
        if len(self._unnumbered) < count:
            self._unnumbered = column_of([UNNUMBERED] * count)
        return self._unnumbered[:count]

    def instants(self, first: int, end: int) -> list[int]:
        """`at` of the rows from *first* to before *end*; cheap for a few from anywhere."""
        found: list[int] = []
        while first < end:
            entry = self._entries[self._entry_of(first)]
            rows = min(end, entry.first + entry.rows) - first
            place = entry.place + 8 * (entry.skip + first - entry.first)
            found += memoryview(self._spill.read(place, 8 * rows)).cast("q")
            first += rows
        return found

    def _entry_of(self, row: int) -> int:
        return bisect_right(self._entries, row, key=_first) - 1

    def block_of(self, row: int) -> Block:
        """The block that holds a row; cheap for rows near each other."""
        place = self._entry_of(row)
        block = self._cache.pop(place, None)
        if block is None:
            if len(self._cache) >= CACHED:
                del self._cache[next(iter(self._cache))]  # the one that was not asked for longest
            block = self._load(self._entries[place])
        self._cache[place] = block
        return block


def _first(entry: _Entry) -> int:
    return entry.first
