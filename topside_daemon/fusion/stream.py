"""The streaming fuser: two streams of readings in, fused rows out, final behind a watermark.

Live and offline run this same class; offline just knows every exchange before the first row is put on
the axis. No I/O, no clock.
"""

from bisect import bisect_right
from collections import deque
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from common.messages import Reading
from topside_daemon.fusion.matching import Matcher, Pairing
from topside_daemon.fusion.timeline import UNNUMBERED, ClockStatus, Corrected, SegmentState, Timeline

__all__ = ["Corrected", "FusedRow", "Fuser", "SegmentState", "Timeline"]

INWATER, SURFACE = 0, 1  # the two sides; in-water first where times are equal
_END_NS = 1 << 126


class FusedRow(Struct, frozen=True, gc=False):
    """One row of the product: a pair, or a reading of one sensor that found no partner.

    time_ns is the in-water reading's on the common axis, the surface reading's where it stands alone.
    pair_dt_ns = in-water - surface, positive: in-water later. clock_status is empty without in-water.
    """

    time_ns: int
    inwater: Reading | None
    surface: Reading | None
    offset_ns: int | None
    offset_sd_ns: int | None
    pair_dt_ns: int | None
    clock_status: ClockStatus
    offset_low_ns: int | None = None
    offset_high_ns: int | None = None


class _Numbers:
    """A set of seqs that costs memory by its holes, not by its size."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, number: int) -> bool:
        """False if it was there."""
        at = bisect_right(self._starts, number)
        if at and number < self._ends[at - 1]:
            return False
        joins_left = bool(at) and self._ends[at - 1] == number
        joins_right = at < len(self._starts) and self._starts[at] == number + 1
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_left:
            self._ends[at - 1] = number + 1
        elif joins_right:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._ends.insert(at, number + 1)
        return True


class _Waiting(NamedTuple):
    """A reading with its place in the order of the axis; n makes the order total."""

    time_ns: int
    epoch: int
    seq: int
    n: int
    reading: Reading
    corrected: Corrected | None


class Fuser:
    """Two streams in, fused rows out, each reading in exactly one row.

    The same pushes give the same rows however advance cuts them, as long as max_lag is None and no
    reading comes behind its own watermark.

    Args:
        timeline: asked once for each reading, when it is pushed.
        tolerance_ns: see `matching.tolerance_ns`.
        max_lag: None is exact; a number bounds the in-water readings that wait for a proof (live).
    """

    def __init__(self, timeline: Timeline, tolerance_ns: int, max_lag: int | None = None) -> None:
        self._timeline = timeline
        self._matcher = Matcher(tolerance_ns, max_lag)
        self._coming: tuple[list[_Waiting], list[_Waiting]] = ([], [])
        self._seen = (_Numbers(), _Numbers())
        self._until = [-_END_NS, -_END_NS]
        self._pushed = 0
        self._inwater: deque[_Waiting] = deque()
        self._surface: deque[tuple[int, _Waiting]] = deque()
        self._taken_surface = 0
        self._rows: list[tuple[int, int, int, int, int, FusedRow]] = []
        self.duplicates = 0  # readings with a seq that their sensor has had
        self.late = 0  # readings behind their own watermark: they become rows, but never pairs

    def retune(self, tolerance_ns: int) -> None:
        """Change the tolerance from here on; for the live fuser, which learns the periods as it runs."""
        self._matcher.tolerance_ns = tolerance_ns

    def push_inwater(self, reading: Reading, moved_ns: int = 0) -> int | None:
        """Take one in-water reading; a seq that came before is counted and dropped.

        Args:
            moved_ns: how much later than its stamp it would have come without jitter.

        Returns:
            Its time on the common axis, ns; None if it was dropped.
        """
        if not self._is_new(INWATER, reading):
            return None
        corrected = self._timeline.inwater_time(reading)
        self._push(INWATER, reading, corrected.time_ns + moved_ns, corrected)
        return corrected.time_ns + moved_ns

    def push_surface(self, reading: Reading, moved_ns: int = 0) -> None:
        """Take one surface reading, in the same way."""
        if self._is_new(SURFACE, reading):
            self._push(SURFACE, reading, self._timeline.surface_time(reading) + moved_ns, None)

    def _is_new(self, side: int, reading: Reading) -> bool:
        new = reading.seq == UNNUMBERED or self._seen[side].add(reading.seq)
        self.duplicates += not new
        return new

    def _push(self, side: int, reading: Reading, time_ns: int, corrected: Corrected | None) -> None:
        self._pushed += 1
        waiting = _Waiting(time_ns, reading.epoch, reading.seq, self._pushed, reading, corrected)
        if time_ns < self._until[side]:
            self.late += 1
            self._emit(waiting)
        else:
            heappush(self._coming[side], waiting)

    def advance(self, inwater_until_ns: int, surface_until_ns: int) -> list[FusedRow]:
        """Rows in the order of time that are final now that nothing older than this will come.

        Args:
            inwater_until_ns: no in-water reading before this instant of the common axis is still out.
            surface_until_ns: the same for the surface sensor. A silent sensor must not hold this back.
        """
        self._until = [
            max(self._until[INWATER], inwater_until_ns),
            max(self._until[SURFACE], surface_until_ns),
        ]
        self._release()
        for pairing in self._matcher.advance(self._until[INWATER], self._until[SURFACE]):
            self._settle(pairing)
        while self._surface and self._surface[0][0] < self._matcher.settled_surface:
            self._emit(self._surface.popleft()[1])
        undecided = [self._until[INWATER], self._until[SURFACE]]
        undecided += [waiting.time_ns for waiting in islice(self._inwater, 1)]
        undecided += [waiting.time_ns for _, waiting in islice(self._surface, 1)]
        return self._final(min(undecided))

    def finish(self) -> list[FusedRow]:
        """The rest: nothing more will come."""
        return self.advance(_END_NS, _END_NS)

    def _release(self) -> None:
        inwater, surface = self._coming
        while inwater and inwater[0].time_ns < self._until[INWATER]:
            self._inwater.append(heappop(inwater))
            self._matcher.add_inwater(self._inwater[-1].time_ns)
        while surface and surface[0].time_ns < self._until[SURFACE]:
            waiting = heappop(surface)
            self._surface.append((self._taken_surface, waiting))
            self._taken_surface += 1
            self._matcher.add_surface(waiting.time_ns)

    def _settle(self, pairing: Pairing) -> None:
        inwater = self._inwater.popleft()
        partner: _Waiting | None = None
        while pairing.surface is not None and partner is None:
            index, surface = self._surface.popleft()
            if index == pairing.surface:
                partner = surface
            else:
                self._emit(surface)
        self._emit(inwater, partner)

    def _emit(self, first: _Waiting, partner: _Waiting | None = None) -> None:
        corrected = first.corrected
        row = FusedRow(
            time_ns=first.time_ns,
            inwater=first.reading if corrected else None,
            surface=(partner.reading if partner else None) if corrected else first.reading,
            offset_ns=corrected.offset_ns if corrected else None,
            offset_sd_ns=corrected.offset_sd_ns if corrected else None,
            offset_low_ns=corrected.low_ns if corrected else None,
            offset_high_ns=corrected.high_ns if corrected else None,
            pair_dt_ns=first.time_ns - partner.time_ns if partner else None,
            clock_status=corrected.status if corrected else "",
        )
        side = INWATER if corrected else SURFACE
        heappush(self._rows, (first.time_ns, side, first.epoch, first.seq, first.n, row))

    def _final(self, before_ns: int) -> list[FusedRow]:
        rows: list[FusedRow] = []
        while self._rows and self._rows[0][0] < before_ns:
            rows.append(heappop(self._rows)[-1])
        return rows
