"""The streaming fuser: two streams of readings in, fused rows out, final behind a watermark.

For readings as they come, one by one. What it says of a whole session is what the offline fusion says of it,
which knows every exchange before the first row is put on the axis. No I/O, no clock.
"""

from collections import deque
from heapq import heappop, heappush
from itertools import islice
from typing import Literal, NamedTuple

from msgspec import Struct

from common.messages import Reading
from topside_daemon.fusion.columns import INWATER, SURFACE, UNNUMBERED, rank_of
from topside_daemon.fusion.courses import ClockStatus
from topside_daemon.fusion.matching import Decision, Matcher
from topside_daemon.fusion.rhythm import Hold
from topside_daemon.fusion.seqset import SeqSet
from topside_daemon.fusion.timeline import Corrected, Timeline

SurfaceStatus = Literal["fresh", "stale", "missing", ""]

_END_NS = 1 << 126


class FusedRow(Struct, frozen=True, gc=False):
    """One row of the product: a pair, or a reading of one sensor that found no partner.

    time_ns is the in-water reading's on the common axis, the surface reading's where it stands alone.
    pair_dt_ns = in-water - surface, positive: in-water later. clock_status and surface_status are empty
    without in-water.
    """

    time_ns: int
    inwater: Reading | None
    surface: Reading | None
    offset_ns: int | None
    offset_sd_ns: int | None
    pair_dt_ns: int | None
    clock_status: ClockStatus
    surface_status: SurfaceStatus
    offset_low_ns: int | None = None
    offset_high_ns: int | None = None


class _Waiting(NamedTuple):
    """A reading with its place in the order of the axis; n makes the order total."""

    time_ns: int
    rank: int
    seq: int
    n: int
    reading: Reading
    corrected: Corrected | None


class Fuser:
    """Two streams in, fused rows out; in pairs each reading in exactly one row.

    The same pushes give the same rows however advance cuts them, as long as max_lag is None and no
    reading comes behind its own watermark.

    Args:
        timeline: asked once for each reading, when it is pushed.
        tolerance_ns: see `rhythm.tolerance_ns`.
        max_lag: None is exact; a number bounds the in-water readings that wait for a proof (live).
        hold: instead of pairs a row for each in-water reading, with the last surface reading before it.
    """

    def __init__(
        self, timeline: Timeline, tolerance_ns: int, max_lag: int | None = None, hold: Hold | None = None
    ) -> None:
        self._timeline = timeline
        self._matcher = Matcher(tolerance_ns, max_lag)
        self._hold = hold
        self._held: _Waiting | None = None
        self._coming: tuple[list[_Waiting], list[_Waiting]] = ([], [])
        self._seen = (SeqSet(), SeqSet())
        self._until = [-_END_NS, -_END_NS]
        self._pushed = 0
        self._inwater: deque[_Waiting] = deque()
        self._surface: deque[tuple[int, _Waiting]] = deque()
        self._taken_surface = 0
        self._rows: list[tuple[int, int, int, int, int, FusedRow]] = []
        self.duplicates = 0  # readings with a seq that their sensor has had
        self.late = 0  # readings behind their own watermark: they become rows, but never pairs

    def retune(self, tolerance_ns: int, hold: Hold | None = None) -> None:
        """Change the tolerance from here on; for the live fuser, which learns the periods as it runs."""
        self._matcher.tolerance_ns = tolerance_ns
        self._hold = hold

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
        return self._push(INWATER, reading, corrected.time_ns + moved_ns, corrected)

    def push_surface(self, reading: Reading, moved_ns: int = 0) -> int | None:
        """Take one surface reading, in the same way."""
        if not self._is_new(SURFACE, reading):
            return None
        return self._push(SURFACE, reading, self._timeline.surface_time(reading) + moved_ns, None)

    def _is_new(self, side: int, reading: Reading) -> bool:
        new = reading.seq == UNNUMBERED or self._seen[side].add(reading.seq)
        self.duplicates += not new
        return new

    def _push(self, side: int, reading: Reading, time_ns: int, corrected: Corrected | None) -> int:
        self._pushed += 1
        waiting = _Waiting(time_ns, rank_of(reading.epoch), reading.seq, self._pushed, reading, corrected)
        if time_ns >= self._until[side]:
            heappush(self._coming[side], waiting)
        else:
            self.late += 1
            if side == INWATER or self._hold is None:
                self._emit(waiting)
        return time_ns

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
        if self._hold is not None:
            self._advance_held(self._hold)
        else:
            for pairing in self._matcher.advance(self._until[INWATER], self._until[SURFACE]):
                self._settle(pairing)
            while self._surface and self._surface[0][0] < self._matcher.settled_surface:
                self._emit(self._surface.popleft()[1])
        undecided = [self._until[INWATER], self._until[SURFACE]]
        undecided += [waiting.time_ns for waiting in islice(self._inwater, 1)]
        if self._hold is None:
            undecided += [waiting.time_ns for _, waiting in islice(self._surface, 1)]
        return self._final(min(undecided))

    def finish(self) -> list[FusedRow]:
        """The rest: nothing more will come."""
        return self.advance(_END_NS, _END_NS)

    def _release(self) -> None:
        inwater, surface = self._coming
        while inwater and inwater[0].time_ns < self._until[INWATER]:
            self._inwater.append(heappop(inwater))
            if self._hold is None:
                self._matcher.add_inwater(self._inwater[-1].time_ns)
        while surface and surface[0].time_ns < self._until[SURFACE]:
            waiting = heappop(surface)
            self._surface.append((self._taken_surface, waiting))
            self._taken_surface += 1
            if self._hold is None:
                self._matcher.add_surface(waiting.time_ns)

    def _advance_held(self, hold: Hold) -> None:
        while self._inwater and self._inwater[0].time_ns < self._until[SURFACE]:
            inwater = self._inwater.popleft()
            while self._surface and self._surface[0][1].time_ns <= inwater.time_ns:
                self._held = self._surface.popleft()[1]
            age_ns = _END_NS if self._held is None else inwater.time_ns - self._held.time_ns
            if age_ns > hold.stale_ns:
                self._emit(inwater)
            else:
                self._emit(inwater, self._held, "fresh" if age_ns <= hold.fresh_ns else "stale")

    def _settle(self, pairing: Decision) -> None:
        inwater = self._inwater.popleft()
        partner: _Waiting | None = None
        while pairing.surface is not None and partner is None:
            index, surface = self._surface.popleft()
            if index == pairing.surface:
                partner = surface
            else:
                self._emit(surface)
        self._emit(inwater, partner, "missing" if partner is None else "fresh")

    def _emit(
        self, first: _Waiting, partner: _Waiting | None = None, status: SurfaceStatus = "missing"
    ) -> None:
        corrected = first.corrected
        if corrected is None:
            row = FusedRow(first.time_ns, None, first.reading, None, None, None, "", "")
        else:
            row = FusedRow(
                time_ns=first.time_ns,
                inwater=first.reading,
                surface=partner.reading if partner else None,
                offset_ns=corrected.offset_ns,
                offset_sd_ns=corrected.offset_sd_ns,
                pair_dt_ns=first.time_ns - partner.time_ns if partner else None,
                clock_status=corrected.status,
                surface_status=status,
                offset_low_ns=corrected.low_ns,
                offset_high_ns=corrected.high_ns,
            )
        side = INWATER if corrected else SURFACE
        heappush(self._rows, (first.time_ns, side, first.rank, first.seq, first.n, row))

    def _final(self, before_ns: int) -> list[FusedRow]:
        rows: list[FusedRow] = []
        while self._rows and self._rows[0][0] < before_ns:
            rows.append(heappop(self._rows)[-1])
        return rows
