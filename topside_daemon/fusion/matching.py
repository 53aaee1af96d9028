"""One-to-one pairing in order: the most pairs within a tolerance, then the least total distance.

An exact dynamic programme over in-water readings, run as they arrive. A history says which surface reading
was used last; it survives only while no other used less and scored as much, and histories that the next
in-water reading cannot tell apart are one. What each reading did in each history is a trail that is kept only
until all survivors agree on it, so memory follows the undecided run. No I/O, no clock; times are int ns on
one axis.

The kernel does the same for whole sessions, with the same choices among equals.
"""

from collections import deque
from typing import NamedTuple

_PAIR = 1 << 96  # one pair outweighs any total distance in ns
_NONE = -(1 << 200)  # less than any score


class Decision(NamedTuple):
    """A final decision: indices count the readings of each sensor from 0; None: no partner."""

    inwater: int
    surface: int | None


class _Trace(NamedTuple):
    """What one reading did: for each slot behind it, the slot before it and whether it took that slot's
    surface reading. merged, by: how its slots come from those behind the reading before: slot 0 from slot
    `merged`, every other from the one `by` higher. low: index of the surface reading of slot 1."""

    choices: list[tuple[int, bool]]
    merged: int
    by: int
    low: int


class Matcher:
    """Pairs two streams as they arrive.

    Args:
        tolerance_ns: readings further apart than this are never a pair; may be changed between calls.
        max_lag: most in-water readings to keep undecided once their whole neighbourhood is known; None
            waits for proof and is exact, a number gives the oldest ones the best partner so far.
    """

    def __init__(self, tolerance_ns: int, max_lag: int | None = None) -> None:
        self.tolerance_ns = tolerance_ns
        self._max_lag = max_lag
        self._inwater: deque[int] = deque()
        self._surface: deque[int] = deque()  # from index _low on
        self._low = 0
        # slot 0: nothing from _low on is used; slot n: _low + n - 1 was the last
        self._scores: list[int | None] = [0]
        self._merged = self._by = 0  # since the last reading
        self._trail: deque[_Trace] = deque()
        self._decided = 0
        self._used = -1  # the last surface reading in a decided pair

    @property
    def undecided(self) -> int:
        """In-water readings taken and not yet decided."""
        return len(self._trail) + len(self._inwater)

    @property
    def settled_surface(self) -> int:
        """No surface reading with an index below this gets a partner beyond those already reported."""
        return self._used + 1 if self._trail else max(self._used + 1, self._low)

    def add_inwater(self, time_ns: int) -> None:
        """Take the next in-water reading; times never decrease."""
        self._inwater.append(time_ns)

    def add_surface(self, time_ns: int) -> None:
        """Take the next surface reading; times never decrease."""
        self._surface.append(time_ns)

    def advance(self, inwater_until_ns: int, surface_until_ns: int) -> list[Decision]:
        """What is decided now that no reading before these instants will come any more."""
        pairings: list[Decision] = []
        while self._inwater and self._inwater[0] + self.tolerance_ns < surface_until_ns:
            time_ns = self._inwater.popleft()
            self._slide(time_ns - self.tolerance_ns)
            self._step(time_ns)
            if self._max_lag is not None and len(self._trail) > self._max_lag:
                self._decide(pairings)
                self._insist(pairings)
        next_ns = min(self._inwater[0], inwater_until_ns) if self._inwater else inwater_until_ns
        self._slide(next_ns - self.tolerance_ns)
        self._decide(pairings)
        return pairings

    def finish(self) -> list[Decision]:
        """Decide the rest: nothing more will come."""
        ends = [queue[-1] for queue in (self._inwater, self._surface) if queue]
        beyond_ns = max(ends, default=0) + 2 * self.tolerance_ns + 1
        return self.advance(beyond_ns, beyond_ns)

    def _slide(self, start_ns: int) -> None:
        """Surface readings before *start_ns* can be used no more: histories that differ in them are one, the
        best, which is that of the highest slot."""
        surface, by = self._surface, 0
        while surface and surface[0] < start_ns:
            surface.popleft()
            by += 1
        if not by:
            return
        self._low += by
        scores = self._scores
        best = min(by, len(scores) - 1)
        while best > 0 and scores[best] is None:
            best -= 1
        self._scores = [scores[best], *scores[by + 1 :]]
        if best:
            self._merged = best + self._by
        self._by += by

    def _step(self, time_ns: int) -> None:
        """Every way on for one reading. Of equals, not to pair is preferred, then the earlier partner."""
        before, tolerance_ns = self._scores, self.tolerance_ns
        slots = len(before)
        top = best = _NONE if before[0] is None else before[0]
        scores: list[int | None] = [before[0]]
        choices = [(0, False)]
        source = 0
        for slot, surface_ns in enumerate(self._surface, 1):
            apart_ns = time_ns - surface_ns
            if -apart_ns > tolerance_ns:
                break
            stays = before[slot] if slot < slots else None
            score, choice = best + _PAIR - abs(apart_ns), (source, True)
            if stays is not None:
                if stays >= score:
                    score, choice = stays, (slot, False)
                best, source = stays, slot
            choices.append(choice)
            scores.append(score if score > top else None)
            top = max(top, score)
        self._scores = scores
        self._trail.append(_Trace(choices, self._merged, self._by, self._low))
        self._merged = self._by = 0

    def _back(self, slot: int, merged: int, by: int) -> int:
        """The slot behind the reading before, from one before the next reading."""
        return slot + by if slot else merged

    def _decide(self, pairings: list[Decision]) -> None:
        """Give out what all histories agree on: those that they had become one before."""
        slots, place = {slot for _, slot in self._histories()}, len(self._trail) - 1
        while place >= 0 and len(slots) > 1:
            trace = self._trail[place]
            slots = {self._back(trace.choices[slot][0], trace.merged, trace.by) for slot in slots}
            place -= 1
        if place >= 0:
            self._give_out(slots.pop(), place, pairings)

    def _give_out(self, slot: int, place: int, pairings: list[Decision]) -> None:
        """The readings up to *place* of the trail, as they are seen from a slot behind that one."""
        partners: list[int | None] = []
        for number in range(place, -1, -1):
            trace = self._trail[number]
            before, taken = trace.choices[slot]
            partners.append(trace.low + slot - 1 if taken else None)
            slot = self._back(before, trace.merged, trace.by)
        for partner in reversed(partners):
            if partner is not None:
                self._used = partner
            pairings.append(Decision(self._decided, partner))
            self._decided += 1
            self._trail.popleft()

    def _insist(self, pairings: list[Decision]) -> None:
        """Give the oldest readings what the best history says, and drop the histories that say otherwise."""
        assert self._max_lag is not None
        while len(self._trail) > self._max_lag:
            oldest = [(self._oldest(slot), n) for n, slot in self._histories()]
            chosen = oldest[-1][0]
            for said, n in oldest:
                if said != chosen:
                    self._scores[n] = None
            self._give_out(chosen, 0, pairings)

    def _histories(self) -> list[tuple[int, int]]:
        """Present slot, and the slot behind the last reading, of every history."""
        return [
            (n, self._back(n, self._merged, self._by))
            for n, score in enumerate(self._scores)
            if score is not None
        ]

    def _oldest(self, slot: int) -> int:
        """The slot behind the oldest undecided reading, from one behind the last."""
        for place in range(len(self._trail) - 1, 0, -1):
            trace = self._trail[place]
            slot = self._back(trace.choices[slot][0], trace.merged, trace.by)
        return slot
