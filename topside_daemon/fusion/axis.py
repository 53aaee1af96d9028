"""One sensor's rows on the common axis, block by block, and what their rhythm is."""

from collections.abc import Iterator

from topside_daemon.fusion.columns import INWATER, MISSING, Column, Placed, Tally, rank_of
from topside_daemon.fusion.courses import packed
from topside_daemon.fusion.index import Block, Index
from topside_daemon.fusion.kernel import Kernel
from topside_daemon.fusion.rhythm import Rhythm
from topside_daemon.fusion.sorting import fill, sorted_rows
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.stamps import Stamps
from topside_daemon.fusion.timeline import Timeline

BLOCK_ROWS = 16_384  # of rows that had to be sorted
DEVIATIONS = 256  # rows of a block that show how well the clock is known


class Axis:
    """The rows of one side in the order of the axis.

    first_ns, last_ns: the outermost instants, None of no rows. sd_ns: the median deviation of the offsets, 0
    where none is known.
    """

    def __init__(self, side: int, index: Index, timeline: Timeline, kernel: Kernel, scratch: Spill) -> None:
        """Settle the order, and the rhythm. *scratch*: for rows that have to be sorted.

        Raises:
            OSError: the disk refuses.
        """
        self.index = index
        self._side = side
        self._kernel = kernel
        self._tables = {
            epoch: packed(timeline.courses(side, epoch, *Stamps(index, kernel, *rows).ends()))
            for epoch, rows in index.ranges().items()
        }
        self._rooms = [Placed.room(0), Placed.room(0)]
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        rhythm = self._listen()
        if rhythm is None:
            self.index = self._sorted(scratch)
            rhythm = self._listen()
        assert rhythm is not None
        self.rhythm = rhythm

    def times(self, block: Block) -> Column:
        """Of one of its blocks; valid until two more have been asked for."""
        return self._place(block, everything=False).time

    def place(self, block: Block) -> Placed:
        """Times and offsets of one of its blocks, likewise."""
        return self._place(block, everything=True)

    def _place(self, block: Block, everything: bool) -> Placed:
        rows, room = len(block.at), self._rooms.pop(0)
        if rows > len(room.time):
            room = Placed.room(rows)
        self._rooms.append(room)
        placed = room.beginning(rows)
        courses = self._tables[block.epoch]
        done = self._kernel.place(block.at, block.utc, block.moved, courses, placed, everything)
        assert done == rows, f"row {block.first + done} lies on no course"
        return placed

    def _listen(self) -> Rhythm | None:
        """None if rows are not in order."""
        intervals, deviations = Tally(), Tally()
        before = MISSING
        for block in self.index.stamps():
            time = self.times(block)
            if self._kernel.tally_intervals(time, before, intervals):
                return None
            if self._side == INWATER:
                self._kernel.tally(self.place(block.beginning(DEVIATIONS)).sd, deviations)
            self.first_ns = time[0] if before == MISSING else self.first_ns
            self.last_ns = before = time[-1]
        self.sd_ns = deviations.summary().quantile(0.5) or 0.0
        return Rhythm.of(intervals.summary())

    def _sorted(self, scratch: Spill) -> Index:
        """By instant; of equal ones by epoch, number and place in the record."""
        ordered = Index(scratch)
        fill(ordered, sorted_rows(self.index, self._keys, scratch), BLOCK_ROWS)
        return ordered

    def _keys(self, block: Block) -> Iterator[tuple[int, ...]]:
        times = self.times(block).tolist()  # for blocks are merged
        rank = rank_of(block.epoch)
        return ((time, rank, seq) for time, seq in zip(times, block.seq, strict=True))
