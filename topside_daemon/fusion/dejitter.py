"""When a free-running sensor's readings would have arrived, had each been as late as most.

The sensor sends at an even pace that its crystal lets wander by parts per million; the way to the stamp
(a USB adapter's timer, a busy machine) adds a delay that is never negative and differs from reading to
reading. Arrivals over seq therefore have the sensor's own line as their lower edge, however late some
of them are. That edge is laid through the least late reading of each block, and moved up by the median
lateness, so that dejittering shifts no record against one that was left alone. O(n). No I/O, no clock.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from math import sqrt
from statistics import fmean, median
from typing import NamedTuple

from msgspec import Struct

RUN_MIN = 64  # readings; fewer show no line
BLOCK, BLOCK_S = 64, 30.0  # at least so many readings, and so long, to have one that is nearly in time
PACE_LAG, PACE_ROWS = 16, 128  # a USB adapter's 16 ms are 1 ms over 16 readings
NEAR = 16  # readings that must agree before the sensor is believed to have paused
PAUSE = 0.25  # of a period; a lost pulse or a reboot makes at least one
PASSES = 3
WANDER = 5e-5  # of the time between knots; a real sensor's pace changed by 6e-5 in half an hour
ALL_LATE, ALL_LATE_SHARE = 32, 0.01  # so many in a row above the median come once in 4e9 by chance
FAR_NS = 1 << 63

BROKEN = f"the pace breaks off within {RUN_MIN} readings"
UNEVEN = "the spacing wanders more than that of a free-running sensor"


class Run(Struct, frozen=True):
    """One stretch of readings at an even pace, dejittered.

    late_s: the median lateness, which is left in; the line itself came that much earlier.
    before_rms_s: of the stamps around the smooth instants. after_rms_s: of the smooth instants around the
    truth, as two fits that share no reading disagree; it cannot see what befell both.
    """

    first_seq: int
    last_seq: int
    period_s: float
    late_s: float
    before_rms_s: float
    after_rms_s: float


class Refusal(Struct, frozen=True):
    """Why stamps are left alone."""

    reason: str


class _Knot(NamedTuple):
    """A point of the edge: late_ns against an even pace, `at` periods after the first reading."""

    at: int
    late_ns: float


def dejitter(
    seqs: Sequence[int], stamps_ns: Sequence[int], low_ns: int = -FAR_NS, high_ns: int = FAR_NS
) -> Iterator[tuple[Run | Refusal, list[int]]]:
    """Smooth the instants of one sensor's readings within one epoch, in the order of its clock: run by run.

    Readings are taken in runs of one pace: a hole in seq that agrees with the time that passed is bridged,
    anything else (a pause, a reboot of either side, a jump in the numbers) ends a run. A run that is too
    short, or not of a free-running sampler, keeps its stamps. No instant is later than its stamp by more
    than the median lateness of its run, and none is before that of the reading before.

    Args:
        low_ns: the instant of the reading before these.
        high_ns: the stamp of the one behind them.
    """
    first = 0
    while first < len(seqs):
        end = _end_of_run(seqs, stamps_ns, first)
        run, instants_ns = _smooth(seqs[first:end], stamps_ns[first:end])
        above_ns = stamps_ns[end] if end < len(seqs) else high_ns
        if isinstance(run, Run):
            instants_ns = [min(max(instant_ns, low_ns), above_ns) for instant_ns in instants_ns]
        yield run, instants_ns
        first, low_ns = end, instants_ns[-1]


def _end_of_run(seqs: Sequence[int], stamps_ns: Sequence[int], first: int) -> int:
    """Index behind the run that begins at *first*.

    One reading that comes too early ends it, for none can. One that comes late does not: it does when the
    few that follow are all late too, because the sensor paused, or when one of them is too early, because
    it paused and came back at another pace.
    """
    pace_ns = _pace_ns(seqs[first : first + PACE_ROWS], stamps_ns[first : first + PACE_ROWS])
    pause_ns = PAUSE * pace_ns
    late_ns: list[float] = []
    for i in range(first, len(seqs)):
        late_ns += [
            stamps_ns[j] - stamps_ns[first] - pace_ns * (seqs[j] - seqs[first])
            for j in range(first + len(late_ns), min(i + NEAR, len(seqs)))
        ]
        here = i - first
        line_ns = min(late_ns[max(0, here - NEAR) : here], default=late_ns[here])
        next_ns = min(late_ns[here : here + NEAR])
        paused = late_ns[here] > line_ns + pause_ns and abs(next_ns - line_ns) > pause_ns
        if i > first and (paused or late_ns[here] < line_ns - pause_ns or seqs[i] <= seqs[i - 1]):
            return i
    return len(seqs)


def _pace_ns(seqs: Sequence[int], stamps_ns: Sequence[int]) -> float:
    """Time from number to number, from few readings: the mean of the middle half of what pairs say."""
    pairs = zip(seqs, seqs[PACE_LAG:], stamps_ns, stamps_ns[PACE_LAG:], strict=False)
    paces = sorted((t1 - t0) / (n1 - n0) for n0, n1, t0, t1 in pairs if n1 > n0)
    quarter = len(paces) // 4
    return fmean(paces[quarter : len(paces) - quarter]) if paces else 0.0


def _smooth(seqs: Sequence[int], stamps_ns: Sequence[int]) -> tuple[Run | Refusal, list[int]]:
    """Smooth instants of one run, or its stamps and why."""
    if len(seqs) < RUN_MIN:
        return Refusal(BROKEN), list(stamps_ns)
    at = [seq - seqs[0] for seq in seqs]
    after_ns = [stamp_ns - stamps_ns[0] for stamp_ns in stamps_ns]
    half = len(at) // 2
    pace_ns = median((after_ns[i + half] - after_ns[i]) / (at[i + half] - at[i]) for i in range(half))
    if pace_ns <= 0:
        return Refusal(BROKEN), list(stamps_ns)
    knots = _edge(at, after_ns, pace_ns)
    lates_ns = [x - y for x, y in zip(after_ns, _line(knots, pace_ns, at), strict=True)]
    late_ns = median(lates_ns)
    if not _is_free_running(knots, lates_ns, late_ns, pace_ns):
        return Refusal(UNEVEN), list(stamps_ns)
    run = Run(
        first_seq=seqs[0],
        last_seq=seqs[-1],
        period_s=pace_ns / 1e9,
        late_s=late_ns / 1e9,
        before_rms_s=_rms([one - late_ns for one in lates_ns]) / 1e9,
        after_rms_s=_disagreement_ns(at, after_ns, pace_ns) / 1e9,
    )
    moves_ns = (round(min(late_ns - one, late_ns)) for one in lates_ns)
    return run, [stamp_ns + move_ns for stamp_ns, move_ns in zip(stamps_ns, moves_ns, strict=True)]


def _edge(at: list[int], after_ns: list[int], pace_ns: float) -> list[_Knot]:
    """The lower edge, a knot in each block. Found again from the edge found before: its slope would
    otherwise decide which reading of a block is the earliest."""
    blocks = max(2, round(min(len(at) / BLOCK, at[-1] * pace_ns / (BLOCK_S * 1e9))))
    bounds = [len(at) * i // blocks for i in range(blocks + 1)]
    knots = [_Knot(0, 0.0), _Knot(at[-1], 0.0)]
    for _ in range(PASSES):
        over_ns = [x - y for x, y in zip(after_ns, _line(knots, pace_ns, at), strict=True)]
        lowest = [min(range(first, end), key=over_ns.__getitem__) for first, end in pairwise(bounds)]
        knots = [_Knot(at[i], after_ns[i] - pace_ns * at[i]) for i in lowest]
    return knots


def _line(knots: list[_Knot], pace_ns: float, at: list[int]) -> list[float]:
    """The instants, after the first stamp, of a line through the knots and on beyond the outer ones."""
    instants_ns: list[float] = []
    pieces = pairwise(knots)
    left, right = next(pieces)
    slope = (right.late_ns - left.late_ns) / (right.at - left.at)
    for place in at:
        while place > right.at and right is not knots[-1]:
            left, right = next(pieces)
            slope = (right.late_ns - left.late_ns) / (right.at - left.at)
        instants_ns.append(pace_ns * place + left.late_ns + slope * (place - left.at))
    return instants_ns


def _is_free_running(knots: list[_Knot], lates_ns: list[float], late_ns: float, pace_ns: float) -> bool:
    """Whether the pace is as steady as a crystal's, and no stretch but a stalled machine's is all late."""
    for before, knot, after in zip(knots, knots[1:], knots[2:], strict=False):
        share = (knot.at - before.at) / (after.at - before.at)
        chord_ns = before.late_ns + share * (after.late_ns - before.late_ns)
        if abs(knot.late_ns - chord_ns) > late_ns + WANDER * pace_ns * (after.at - before.at):
            return False
    stretches = (sum(1 for _ in rows) for late, rows in groupby(lates_ns, late_ns.__lt__) if late)
    all_late = sum(rows for rows in stretches if rows >= ALL_LATE)
    return all_late <= ALL_LATE_SHARE * len(lates_ns)


def _disagreement_ns(at: list[int], after_ns: list[int], pace_ns: float) -> float:
    """Half the rms difference, but for a constant, of the edges of the even and of the odd readings."""
    even, odd = (
        _line(_edge(at[part::2], after_ns[part::2], pace_ns), pace_ns, at[:: BLOCK // 4]) for part in (0, 1)
    )
    apart_ns = [x - y for x, y in zip(even, odd, strict=True)]
    mean_ns = fmean(apart_ns)
    return _rms([one - mean_ns for one in apart_ns]) / 2


def _rms(values: list[float]) -> float:
    return sqrt(fmean(value * value for value in values))
