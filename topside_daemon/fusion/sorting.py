"""An index in another order, in bounded memory: runs of it are sorted by themselves, then merged.

For the recordings that need it: rows out of order, a number that is there twice, instants that a reboot or a
step has put before others. A row costs microseconds here, against nanoseconds elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

from topside_daemon.fusion.columns import column_of
from topside_daemon.fusion.index import Block, Index
from topside_daemon.fusion.seqset import SeqSet
from topside_daemon.fusion.spill import Spill

RUN_BLOCKS = 4  # sorted together in memory
MERGED_ROWS = 1024  # of each run that are in memory while they are merged

Keys = Callable[[Block], Iterable[Any]]
Row = tuple[Any, ...]  # key, epoch, at, utc, seq, span, moved

_key = itemgetter(0)
_epoch = itemgetter(1)


def by_clock(block: Block) -> Iterator[Any]:
    """In the order of the recorder's own clock."""
    return ((block.epoch, *row) for row in zip(block.at, block.seq, block.utc, strict=True))


def sorted_rows(index: Index, keys: Keys, scratch: Spill) -> Iterator[Row]:
    """All rows in the order of their keys; those of one key as they were."""
    runs: list[Index] = []
    blocks = index.blocks()
    while some := list(islice(blocks, RUN_BLOCKS)):
        run = Index(scratch)
        fill(run, sorted(chain.from_iterable(_rows(block, keys) for block in some), key=_key), MERGED_ROWS)
        runs.append(run)
    return merge(
        *(chain.from_iterable(_rows(block, keys) for block in run.blocks()) for run in runs), key=_key
    )


def _rows(block: Block, keys: Keys) -> Iterator[Row]:
    moved = block.moved if block.moved is not None else [None] * len(block.at)
    columns = (block.at, block.utc, block.seq, block.span, moved)
    return ((key, block.epoch, *row) for key, *row in zip(keys(block), *columns, strict=True))


def fill(index: Index, rows: Iterable[Row], most: int) -> None:
    """Append rows in blocks of at most so many."""
    for epoch, group in groupby(rows, _epoch):
        while some := list(islice(group, most)):
            _, _, at, utc, seq, span, moved = zip(*some, strict=True)
            columns = [column_of(one) for one in (at, utc, seq, span)]
            if moved[0] is not None:
                columns.append(column_of(moved))
            index.append(epoch, False, *columns)


def first_of_each(rows: Iterable[Row], seen: SeqSet) -> Iterator[Row]:
    """Numbered rows, of those with one number the first."""
    return (row for row in rows if seen.add(row[4]))
