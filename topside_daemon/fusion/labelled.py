"""Rows of the old recorders that are no readings, or are there twice: found in the order of arrival.

What can only be wrong where labels do not rise, or jump, or where a row has fewer columns, is looked for
there alone; the rest of a recording is not touched.
"""

from collections.abc import Sequence
from itertools import compress
from typing import overload

from common.messages import Reading
from topside_daemon.fusion.banner import ESTABLISHED_ROWS, banner_rows
from topside_daemon.fusion.columns import FLAGS_SHIFT, MAY_BE_WHOLE, MISSING, UNNUMBERED, Column, column_of
from topside_daemon.fusion.index import Index
from topside_daemon.fusion.intake import decode_text
from topside_daemon.fusion.kernel import Kernel
from topside_daemon.fusion.texts import Texts

ASTRAY_NS = 60_000_000_000  # outside both neighbours, which are closer together than this
ALONE_NS = 86_400_000_000_000  # from the first or last label to all others: no session waits a day
COMPARED_ROWS = 50_000  # readings that show how many decimals are usual


class Labelled(Sequence[Reading]):
    """The readings of an index of labelled rows, decoded when they are asked for."""

    def __init__(self, index: Index, texts: Texts) -> None:
        self._index = index
        self._texts = texts

    def __len__(self) -> int:
        return self._index.rows

    @overload
    def __getitem__(self, which: int) -> Reading: ...
    @overload
    def __getitem__(self, which: slice) -> list[Reading]: ...
    def __getitem__(self, which: int | slice) -> Reading | list[Reading]:
        if isinstance(which, slice):
            return [self[row] for row in range(*which.indices(len(self)))]
        block = self._index.block_of(which)
        return self.decode(block.span[which - block.first])

    def decode(self, span: int) -> Reading:
        """The reading in the text of one row."""
        return decode_text(self._texts.row(span), UNNUMBERED, UNNUMBERED, 0)


def repeated_rows(index: Index, readings: Labelled) -> list[int]:
    """Rows that are in the file a second time, where labels do not rise.

    A row like the one before it, one of a run, or one behind which labels go on as before it: after a clock
    was set back, a single reading may by chance equal another.
    """
    again = _labels_again(index)
    last: dict[Reading, int] = {}
    lags: dict[int, int] = {}
    passed: set[int] = set()
    latest = MISSING
    for block in index.blocks():
        for row, label in enumerate(block.at, block.first):
            if label in again:
                reading = readings.decode(block.span[row - block.first])
                if reading in last:
                    lags[row] = row - last[reading]
                last[reading] = row
            if label > latest:
                latest = label
                if row - 1 in lags:
                    passed.add(row - 1)
    return [
        row
        for row, lag in lags.items()
        if lag == 1 or row in passed or lag in (lags.get(row - 1), lags.get(row + 1))
    ]


def _labels_again(index: Index) -> set[int]:
    """Labels that a row bears though one of the same or a later label came before it."""
    found: set[int] = set()
    latest = MISSING
    for block in index.blocks():
        for label in block.at:
            if label <= latest:
                found.add(label)
            else:
                latest = label
    return found


def astray_rows(labels_ns: Sequence[int], suspects: Sequence[int]) -> list[int]:
    """Of the rows that come far before or behind the one before them: single labels that lie far outside
    their neighbours', in the order of arrival."""
    found: list[int] = []
    last = len(labels_ns) - 1
    if last < 2:
        return found
    if abs(labels_ns[1] - labels_ns[0]) > ALONE_NS:
        found.append(0)
    for row in suspects:
        if 0 < row < last:
            before, label, after = labels_ns[row - 1 : row + 2]
            low, high = min(before, after), max(before, after)
            if max(low - label, label - high) > ASTRAY_NS > high - low:
                found.append(row)
    if abs(labels_ns[last] - labels_ns[last - 1]) > ALONE_NS:
        found.append(last)
    return found


def boot_rows(index: Index, readings: Labelled, kernel: Kernel) -> list[int]:
    """Rows that hold a number of the sensor's boot text; see `banner`."""
    counts = [0] * 8
    for block in index.blocks():
        counts = [one + more for one, more in zip(counts, kernel.flags(block.span), strict=True)]
    by_columns = [counts[n] + counts[n | MAY_BE_WHOLE] for n in range(3)]
    widest = max((n for n in range(3) if by_columns[n] >= ESTABLISHED_ROWS), default=0)
    if not counts[MAY_BE_WHOLE] and not sum(by_columns[:widest]):
        return []
    narrow, whole = [], []
    for block in index.blocks():
        flags = [span >> FLAGS_SHIFT & 7 for span in block.span]
        narrow += [row for row, one in enumerate(flags, block.first) if one & 3 < widest]
        whole += [row for row, one in enumerate(flags, block.first) if one == MAY_BE_WHOLE]
    compared = range(0, index.rows, -(-index.rows // COMPARED_ROWS))
    return sorted(banner_rows(readings, whole, narrow, compared))


def without(index: Index, dropped: Sequence[int], into: Index) -> Index:
    """A copy of an index without some of its rows."""
    gone = set(dropped)
    for block in index.blocks():
        here = [row not in gone for row in range(block.first, block.first + len(block.at))]
        if all(here):
            into.append(block.epoch, block.straight, block.at, block.utc, block.seq, block.span)
        elif any(here):
            at, utc, seq, span = (_kept(one, here) for one in (block.at, block.utc, block.seq, block.span))
            into.append(block.epoch, block.straight, at, utc, seq, span)
    return into


def _kept(values: Column, here: Sequence[bool]) -> Column:
    return column_of(list(compress(values, here)))
