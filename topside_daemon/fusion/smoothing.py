"""A stream's instants without the jitter of arrival, piece by piece, kept as a column beside its stamps."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from math import ceil, sqrt
from statistics import fmean

from msgspec import Struct

from topside_daemon.fusion.columns import LENGTH_MAX, OFFSET_SHIFT, column_of
from topside_daemon.fusion.dejitter import FAR_NS, Run, dejitter
from topside_daemon.fusion.index import Block, Index
from topside_daemon.fusion.stock import Stock
from topside_daemon.fusion.texts import Texts

PIECE_ROWS = 1 << 15  # smoothed together: 36 minutes at 15 Hz


class Smoothed(Struct, frozen=True):
    """What dejittering did to one sensor's stamps. rms of the stamps around the sensor's own pace, ms.

    left: readings whose stamps stand as they are, by reason.
    """

    runs: int
    before_rms_ms: float
    left: dict[str, int]


def smooth(index: Index, texts: Texts | None, into: Index) -> tuple[Index, Smoothed]:
    """The same rows with what their instants move by, and what was done."""
    reason = _refusal(index, texts)
    if reason:
        return index, Smoothed(0, 0.0, {reason: index.rows})
    squares: list[float] = []
    left: Counter[str] = Counter()
    for epoch, (first, end) in index.ranges().items():
        pieces = [first + (end - first) * n // _pieces(end - first) for n in range(_pieces(end - first) + 1)]
        low_ns = -FAR_NS
        for start, stop in pairwise(pieces):
            rows = _Piece(index, start, stop)
            high_ns = index.block_of(stop).at[stop - index.block_of(stop).first] if stop < end else FAR_NS
            instants_ns: list[int] = []
            for run, instants in dejitter(rows.seqs, rows.stamps_ns, low_ns, high_ns):
                instants_ns += instants
                if isinstance(run, Run):
                    squares.append(run.before_rms_s**2)
                else:
                    left[run.reason] += len(instants)
            low_ns = instants_ns[-1]
            rows.add_to(into, epoch, instants_ns)
    return into, Smoothed(len(squares), 1e3 * sqrt(fmean(squares)) if squares else 0.0, dict(left))


def _refusal(index: Index, texts: Texts | None) -> str:
    if not index.rows or texts is None:
        return "there are no readings"
    text = Stock("B")
    for block in index.blocks():
        if block.epoch < 0:
            return "the readings have no numbers"
        text.clear()
        start, spans = texts.of(block, text)
        content = bytes(text.view)
        for span in spans:
            first = (span >> OFFSET_SHIFT) - start
            if content[first : first + (span & LENGTH_MAX)].split(b",", 3)[2] != b"freerun":
                return "the sensor was polled: its pace is the poller's"
    return ""


def _pieces(rows: int) -> int:
    return ceil(rows / PIECE_ROWS)


class _Piece:
    """Some rows of one epoch in memory."""

    def __init__(self, index: Index, first: int, end: int) -> None:
        self._blocks = list(_parts(index, first, end))
        self.seqs = [seq for block in self._blocks for seq in block.seq]
        self.stamps_ns = [stamp_ns for block in self._blocks for stamp_ns in block.at]

    def add_to(self, index: Index, epoch: int, instants_ns: list[int]) -> None:
        done = 0
        for block in self._blocks:
            here = slice(done, done + len(block.at))
            moved = column_of([at - stamp for at, stamp in zip(instants_ns[here], block.at, strict=True)])
            index.append(epoch, block.straight, block.at, block.utc, block.seq, block.span, moved)
            done += len(block.at)


def _parts(index: Index, first: int, end: int) -> Iterator[Block]:
    """The parts of blocks between two rows."""
    for block in index.blocks_between(first, end):
        start, stop = max(first, block.first), min(end, block.first + len(block.at))
        here = slice(start - block.first, stop - block.first)
        at, utc, seq, span = (one[here] for one in (block.at, block.utc, block.seq, block.span))
        yield Block(start, block.epoch, block.straight, at, utc, seq, span, None)
