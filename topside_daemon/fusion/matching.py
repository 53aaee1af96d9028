"""One-to-one pairing in order: the most pairs within a tolerance, then the least total distance.

An exact dynamic programme over in-water readings, run as they arrive. A state says which surface
reading was used last; it survives only while no other state used less and scored as much, and states
that the next in-water reading cannot tell apart are one. Their histories form a tree whose root moves
on as soon as all survivors agree, so memory follows the undecided run, not the session. No I/O, no
clock; times are int ns on one axis.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

_PAIR = 1 << 96  # one pair outweighs any total distance in ns
_BEFORE_ALL = -(1 << 127)
_GAP_PERIODS = 1.5  # a longer interval is a gap in the stream, not jitter
_FALLBACK_PERIOD_NS = 1_000_000_000  # of two sensors too short to show one: the slow one's usual period


def period_ns(times_ns: Sequence[int]) -> int | None:
    """Median interval of a sensor, None below two readings."""
    intervals = [after - before for before, after in pairwise(times_ns)]
    return round(median(intervals)) if intervals else None


def tolerance_ns(inwater_times: Sequence[int], surface_times: Sequence[int], clock_sd_ns: int) -> int:
    """How far apart two readings of one moment can be stamped, in ns.

    Half the slower sensor's period, because two free-running samplers are up to that far apart, plus
    the arrival jitter of both (p95 - p5 of the intervals, gaps left out), plus two clock deviations, each
    of these at most another half period: what is paired further apart is not one moment.
    """
    periods = [period for times in (inwater_times, surface_times) if (period := period_ns(times))]
    half_ns = max(periods, default=_FALLBACK_PERIOD_NS) // 2
    jitter_ns = _jitter_ns(inwater_times) + _jitter_ns(surface_times)
    return half_ns + min(jitter_ns, half_ns) + min(2 * clock_sd_ns, half_ns)


def _jitter_ns(times_ns: Sequence[int]) -> int:
    period = period_ns(times_ns)
    if not period:
        return 0
    intervals = (after - before for before, after in pairwise(times_ns))
    regular = sorted(interval for interval in intervals if interval <= _GAP_PERIODS * period)
    last = len(regular) - 1
    return regular[last * 95 // 100] - regular[last * 5 // 100]


class _Node:
    """One decision in the tree of histories: an in-water reading and its partner, None if it has none."""

    __slots__ = ("children", "inwater", "parent", "surface")

    def __init__(self, parent: "_Node | None", inwater: int, surface: int | None) -> None:
        self.parent = parent
        self.inwater = inwater
        self.surface = surface
        self.children: set[_Node] = set()
        if parent is not None:
            parent.children.add(self)


class _State(NamedTuple):
    """Best history in which no surface reading beyond *used* is taken."""

    used: int
    used_ns: int
    score: int
    node: _Node


class _Step(NamedTuple):
    used: int
    used_ns: int
    score: int
    before: _State
    surface: int | None


class Pairing(NamedTuple):
    """A final decision: indices count the readings of each sensor from 0; None: no partner."""

    inwater: int
    surface: int | None


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
        self._inwater: deque[tuple[int, int]] = deque()
        self._surface: deque[tuple[int, int]] = deque()
        self._inwater_count = self._surface_count = self._decided = 0
        self._used = -1  # the last surface reading in a decided pair
        self._root = _Node(None, -1, None)
        self._states = [_State(-1, _BEFORE_ALL, 0, self._root)]

    @property
    def undecided(self) -> int:
        """In-water readings taken and not yet decided."""
        return self._inwater_count - self._decided

    @property
    def settled_surface(self) -> int:
        """No surface reading with an index below this gets a partner beyond those already reported."""
        if self._root.children:
            return self._used + 1
        return self._surface[0][0] if self._surface else self._surface_count

    def add_inwater(self, time_ns: int) -> None:
        """Take the next in-water reading; times never decrease."""
        self._inwater.append((self._inwater_count, time_ns))
        self._inwater_count += 1

    def add_surface(self, time_ns: int) -> None:
        """Take the next surface reading; times never decrease."""
        self._surface.append((self._surface_count, time_ns))
        self._surface_count += 1

    def advance(self, inwater_until_ns: int, surface_until_ns: int) -> list[Pairing]:
        """What is decided now that no reading before these instants will come any more."""
        pairings: list[Pairing] = []
        while self._inwater and self._inwater[0][1] + self.tolerance_ns < surface_until_ns:
            index, time_ns = self._inwater.popleft()
            self._forget_before(time_ns - self.tolerance_ns)
            self._take(index, time_ns)
            self._decide(pairings)
        next_ns = self._inwater[0][1] if self._inwater else inwater_until_ns
        self._forget_before(min(next_ns, inwater_until_ns) - self.tolerance_ns)
        self._decide(pairings)
        return pairings

    def finish(self) -> list[Pairing]:
        """Decide the rest: nothing more will come."""
        end_ns = max((queue[-1][1] for queue in (self._inwater, self._surface) if queue), default=0)
        end_ns = max(end_ns, max(state.used_ns for state in self._states))
        beyond_ns = end_ns + 2 * self.tolerance_ns + 1
        return self.advance(beyond_ns, beyond_ns)

    def _forget_before(self, start_ns: int) -> None:
        """Surface readings before *start_ns* can be used no more: states that differ in them are one.

        States are kept in the order of what they used and of their score, so the last is the best.
        """
        while self._surface and self._surface[0][1] < start_ns:
            self._surface.popleft()
        same = 0
        while same + 1 < len(self._states) and self._states[same + 1].used_ns < start_ns:
            same += 1
        for state in self._states[:same]:
            self._prune(state.node)
        del self._states[:same]

    def _take(self, index: int, time_ns: int) -> None:
        before = self._states
        self._states = [
            _State(step.used, step.used_ns, step.score, _Node(step.before.node, index, step.surface))
            for step in self._undominated(self._steps(time_ns))
        ]
        for state in before:
            self._prune(state.node)

    def _steps(self, time_ns: int) -> list[_Step]:
        """Every way on from the present states: without a partner, or with one from the window."""
        states = self._states
        steps = [_Step(state.used, state.used_ns, state.score, state, None) for state in states]
        best = 0
        for surface, surface_ns in self._surface:
            if surface_ns > time_ns + self.tolerance_ns:
                break
            while best + 1 < len(states) and states[best + 1].used < surface:
                best += 1
            if states[best].used < surface:
                score = states[best].score + _PAIR - abs(time_ns - surface_ns)
                steps.append(_Step(surface, surface_ns, score, states[best], surface))
        return steps

    @staticmethod
    def _undominated(steps: list[_Step]) -> list[_Step]:
        """Only steps that score more than every step using less; of equals the earlier pairing stays."""
        kept: list[_Step] = []
        for step in sorted(steps, key=lambda one: (one.used, -one.score, one.surface is not None)):
            if not kept or step.score > kept[-1].score:
                kept.append(step)
        return kept

    def _prune(self, node: _Node) -> None:
        """Cut a history that no state stands on, up to where it left another."""
        while not node.children and node.parent is not None:
            parent, node.parent = node.parent, None
            parent.children.discard(node)
            node = parent

    def _decide(self, pairings: list[Pairing]) -> None:
        self._move_root(pairings)
        taken = self._inwater_count - len(self._inwater)
        while self._max_lag is not None and taken - self._decided > self._max_lag:
            chosen = self._oldest(self._states[-1])
            lost = [state for state in self._states if self._oldest(state) is not chosen]
            self._states = [state for state in self._states if self._oldest(state) is chosen]
            for state in lost:
                self._prune(state.node)
            self._move_root(pairings)

    def _oldest(self, state: _State) -> _Node:
        node = state.node
        while node.parent is not None and node.parent is not self._root:
            node = node.parent
        return node

    def _move_root(self, pairings: list[Pairing]) -> None:
        while len(self._root.children) == 1:
            self._root = self._root.children.pop()
            self._root.parent = None
            self._decided += 1
            if self._root.surface is not None:
                self._used = self._root.surface
            pairings.append(Pairing(self._root.inwater, self._root.surface))
