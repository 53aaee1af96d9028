"""The seed ladder: a clock for recordings without exchanges, down to none, and how far to trust it.

Old recordings have wall labels, marker rows and one time-sync offset; ours whose exchanges are lost have
markers on both monotonic clocks. Rungs, from the top: linear, constant, time-sync, none. No I/O, no
clock. Everywhere offset = in-water - surface, positive: the in-water clock reads ahead. Instants are int
ns, deviations one sigma.
"""

from collections.abc import Iterator, Sequence
from math import sqrt

from msgspec import Struct
from msgspec.structs import replace

from topside_daemon.fusion.columns import Course
from topside_daemon.fusion.ladder.foothold import Foothold, by_distance
from topside_daemon.fusion.ladder.joining import INWATER, SURFACE, Joining, Record, TimeSync
from topside_daemon.fusion.ladder.labels import labels_rung
from topside_daemon.fusion.ladder.oneway import Pair, match_markers, title
from topside_daemon.fusion.ladder.rungs import Quality, Rung, RungName, on_majority
from topside_daemon.fusion.ladder.steps import Labels, Pieces, Step

__all__ = ["Ladder", "Record", "RungName", "Seed", "TimeSync", "climb"]

UNPLACED = -1  # epoch of unnumbered readings before the first step of their clock; then -2, -3, ...
NORMAL_95 = 1.96

_QUALITIES: tuple[Quality, ...] = ("high", "medium", "low")
_S = 1_000_000_000


class Seed(Struct, frozen=True):
    """What one in-water epoch stands on and how well. topside_epoch: None where that is labels.

    steps: every step of either wall clock in the recording.
    """

    epoch: int
    topside_epoch: int | None
    rung: RungName
    quality: Quality
    reason: str
    pairs_used: int
    pairs_refused: list[str]
    steps: list[Step]


class Ladder:
    """Where every in-water reading of a recording without exchanges belongs.

    seeds: one for each piece of old labels, then one for each pair of epochs that has markers. pieces: where
    the labels of either side were set, in-water and surface; the epochs of their rows are -1 - piece.
    """

    def __init__(self, footholds: Sequence[tuple[Seed, Foothold]], pieces: tuple[Pieces, Pieces]) -> None:
        self.seeds = [seed for seed, _ in footholds]
        self.pieces = pieces
        self._footholds: dict[int, list[Foothold]] = {}
        for _, foothold in footholds:
            self._footholds.setdefault(foothold.epoch, []).append(foothold)

    def courses(self, epoch: int) -> Iterator[tuple[Foothold, Course]]:
        """Of the in-water instants of an epoch, labels where it is negative, and what each stands on; the
        offset is to the monotonic clock of the foothold's topside epoch, or to the surface labels before
        their first step. Nothing where the epoch has no foothold."""
        return by_distance(self._footholds.get(epoch, []))

    def surface_shift_ns(self, epoch: int) -> int:
        """What to take off the surface labels of a piece, to be on those before its clock's first step."""
        piece = UNPLACED - epoch
        shifts = self.pieces[SURFACE].shifts_ns
        return shifts[piece] if 0 <= piece < len(shifts) else 0


def climb(inwater: Record, surface: Record, time_sync: TimeSync | None = None) -> Ladder:
    """The highest rung that the evidence carries, for each piece of labels and each pair of epochs."""
    joining = Joining(inwater, surface, time_sync)
    return Ladder([*_climb_labels(joining), *_climb_epochs(inwater, surface)], joining.pieces)


def _climb_labels(joining: Joining) -> Iterator[tuple[Seed, Foothold]]:
    labels, pieces = joining.labels_ns[INWATER], joining.pieces[INWATER]
    home_ns = pieces.shifts_ns[joining.home()]
    for piece, (first, last) in enumerate(pieces.ranges(len(labels))):
        rung, shift_ns = labels_rung(joining, piece), pieces.shifts_ns[piece]
        seed = _seed(rung, UNPLACED - piece, None, labels.part(first, last), shift_ns, joining.steps)
        yield seed, Foothold(seed.epoch, None, rung, shift_ns, shift_ns - home_ns)


def _climb_epochs(inwater: Record, surface: Record) -> Iterator[tuple[Seed, Foothold]]:
    """Our own markers: the Pi's follows the topside's at once, and keeps when that call was sent."""
    by_epochs: dict[tuple[int, int], list[Pair]] = {}
    numbered = [[one for one in record.markers if one.epoch >= 0] for record in (inwater, surface)]
    matched, complaints = match_markers(*numbered)
    for here, there in matched:
        sent_ns = there.mono_ns if here.t1_ns is None else here.t1_ns
        pair = Pair(title(here), here.mono_ns, sent_ns)
        by_epochs.setdefault((here.epoch, there.epoch), []).append(pair)
    for (epoch, topside_epoch), pairs in sorted(by_epochs.items()):
        rung = on_majority(sorted(pairs, key=lambda pair: pair.inwater_ns))
        rung = replace(rung, refused=complaints + rung.refused)
        seed = _seed(rung, epoch, topside_epoch, inwater.instants.get(epoch), 0, [])
        yield seed, Foothold(epoch, topside_epoch, rung)


def _seed(
    rung: Rung,
    epoch: int,
    topside_epoch: int | None,
    instants: Labels | None,
    shift_ns: int,
    steps: list[Step],
) -> Seed:
    """Quality by the worst 95 % half-width against the sensor's period, but no better than the evidence."""
    rank, reason = _QUALITIES.index(rung.ceiling), rung.reason
    if rung.line is not None and instants:
        half_ns = NORMAL_95 * sqrt(max(rung.line.at(end - shift_ns)[1] for end in instants.ends()))
        period_ns = instants.intervals().quantile(0.5) or _S
        rank = max(rank, (half_ns > period_ns / 4) + (half_ns > period_ns))
        reason += f"; 95 % within ± {half_ns / 1e6:.1f} ms at worst"
    if steps:
        reason += f"; {len(steps)} step{'s' * (len(steps) > 1)} of a wall clock taken out"
    return Seed(epoch, topside_epoch, rung.name, _QUALITIES[rank], reason, rung.used, rung.refused, steps)
