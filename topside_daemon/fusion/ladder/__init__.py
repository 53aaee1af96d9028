"""The seed ladder: a clock for recordings without exchanges, down to none, and how far to trust it.

Old recordings have wall labels, marker rows and one time-sync offset; ours whose exchanges are lost have
markers on both monotonic clocks. Rungs, from the top: linear, constant, time-sync, none. No I/O, no
clock. Everywhere offset = in-water - surface, positive: the in-water clock reads ahead. Instants are int
ns, deviations one sigma.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from common.messages import Reading
from topside_daemon.fusion.ladder.joining import INWATER, SURFACE, Joining, Record, TimeSync
from topside_daemon.fusion.ladder.labels import labels_rung
from topside_daemon.fusion.ladder.oneway import Pair, match_markers, title
from topside_daemon.fusion.ladder.rungs import Quality, Rung, RungName, on_majority
from topside_daemon.fusion.ladder.steps import Pieces, Step

__all__ = ["Ladder", "Offset", "Record", "RungName", "Seed", "TimeSync", "climb"]

UNPLACED = -1  # epoch of unnumbered readings before the first step of their clock; then -2, -3, ...
NORMAL_95 = 1.96

_QUALITIES: tuple[Quality, ...] = ("high", "medium", "low")
_S = 1_000_000_000
_PPM = 1e3  # ns per s


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


class Offset(Struct, frozen=True):
    """Offset and drift at an instant; the 95 % interval is offset_ns +- 1.96 sd_ns.

    sd_ns is None on the rung none, where offset_ns holds nothing but the steps of the in-water clock.
    low_ns .. high_ns: what the order of events proves, None where it proves nothing. topside_epoch: the
    monotonic clock that the offset leads to; None: the surface labels before the first step.
    """

    rung: RungName
    offset_ns: int
    sd_ns: int | None
    drift_ppm: float
    drift_sd_ppm: float
    low_ns: int | None
    high_ns: int | None
    topside_epoch: int | None


class _Foothold(Struct, frozen=True):
    """A rung where it holds; shift_ns: the steps between its labels and the joined ones, home_ns: those
    between its labels and the ones that the rung none leaves as they are."""

    seed: Seed
    rung: Rung
    shift_ns: int = 0
    home_ns: int = 0

    def at(self, at_ns: int) -> Offset:
        line, joined_ns = self.rung.line, at_ns - self.shift_ns
        if line is None:
            return Offset(self.rung.name, self.home_ns, None, 0.0, 0.0, None, None, self.seed.topside_epoch)
        offset_ns, variance = line.at(joined_ns)
        low_ns, high_ns = self.rung.certified(joined_ns)
        if high_ns is not None:
            offset_ns = min(offset_ns, high_ns)
        if low_ns is not None:
            offset_ns = max(offset_ns, low_ns)
        return Offset(
            rung=self.rung.name,
            offset_ns=offset_ns + self.shift_ns,
            sd_ns=round(sqrt(variance)),
            drift_ppm=line.drift / _PPM,
            drift_sd_ppm=sqrt(line.drift_variance) / _PPM,
            low_ns=None if low_ns is None else low_ns + self.shift_ns,
            high_ns=None if high_ns is None else high_ns + self.shift_ns,
            topside_epoch=self.seed.topside_epoch,
        )

    def distance_ns(self, at_ns: int) -> int:
        return abs(at_ns - self.shift_ns - self.rung.line.at_ns) if self.rung.line else 1 << 126


class Ladder:
    """Where every in-water reading of a recording without exchanges belongs."""

    def __init__(self, footholds: Iterable[_Foothold], pieces: tuple[Pieces, Pieces]) -> None:
        self._pieces = pieces
        self._footholds: dict[int, list[_Foothold]] = {}
        for foothold in footholds:
            self._footholds.setdefault(foothold.seed.epoch, []).append(foothold)

    @property
    def seeds(self) -> list[Seed]:
        """One for each piece of old labels, then one for each pair of epochs that has markers."""
        return [one.seed for footholds in self._footholds.values() for one in footholds]

    def at(self, epoch: int, at_ns: int) -> Offset | None:
        """The offset of an in-water reading; None where its epoch has no foothold.

        Args:
            at_ns: its utc_ns where its epoch is negative, else its mono_ns.
        """
        footholds = self._footholds.get(epoch)
        return min(footholds, key=lambda one: one.distance_ns(at_ns)).at(at_ns) if footholds else None

    def surface_ns(self, epoch: int, utc_ns: int) -> int:
        """A surface label of a piece, on the labels that the clock kept before its first step."""
        piece = UNPLACED - epoch
        shifts = self._pieces[SURFACE].shifts_ns
        return utc_ns - shifts[piece] if 0 <= piece < len(shifts) else utc_ns

    def place_inwater(self, readings: Sequence[Reading]) -> list[Reading]:
        """The same readings in the same order, the unnumbered with their piece as epoch."""
        return _placed(readings, self._pieces[INWATER])

    def place_surface(self, readings: Sequence[Reading]) -> list[Reading]:
        """The same readings in the same order, the unnumbered with their piece as epoch."""
        return _placed(readings, self._pieces[SURFACE])


def climb(inwater: Record, surface: Record, time_sync: TimeSync | None = None) -> Ladder:
    """The highest rung that the evidence carries, for each piece of labels and each pair of epochs."""
    joining = Joining(inwater, surface, time_sync)
    return Ladder([*_climb_labels(joining), *_climb_epochs(inwater, surface)], joining.pieces)


def _climb_labels(joining: Joining) -> list[_Foothold]:
    labels_ns, pieces = joining.labels_ns[INWATER], joining.pieces[INWATER]
    footholds: list[_Foothold] = []
    home_ns = pieces.shifts_ns[joining.home()]
    for piece, (first, last) in enumerate(pieces.ranges(len(labels_ns))):
        rung, shift_ns = labels_rung(joining, piece), pieces.shifts_ns[piece]
        instants = [label - shift_ns for label in labels_ns[first:last]]
        seed = _seed(rung, UNPLACED - piece, None, instants, joining.steps)
        footholds.append(_Foothold(seed, rung, shift_ns, shift_ns - home_ns))
    return footholds


def _climb_epochs(inwater: Record, surface: Record) -> list[_Foothold]:
    """Our own markers: the Pi's follows the topside's at once, and keeps when that call was sent."""
    by_epochs: dict[tuple[int, int], list[Pair]] = {}
    numbered = [[one for one in record.markers if one.epoch >= 0] for record in (inwater, surface)]
    matched, complaints = match_markers(*numbered)
    for here, there in matched:
        sent_ns = there.mono_ns if here.t1_ns is None else here.t1_ns
        pair = Pair(title(here), here.mono_ns, sent_ns)
        by_epochs.setdefault((here.epoch, there.epoch), []).append(pair)
    footholds: list[_Foothold] = []
    for (epoch, topside_epoch), pairs in sorted(by_epochs.items()):
        rung = on_majority(sorted(pairs, key=lambda pair: pair.inwater_ns))
        rung = replace(rung, refused=complaints + rung.refused)
        instants = [one.mono_ns for one in inwater.readings if one.epoch == epoch]
        footholds.append(_Foothold(_seed(rung, epoch, topside_epoch, instants, []), rung))
    return footholds


def _seed(
    rung: Rung, epoch: int, topside_epoch: int | None, instants: Sequence[int], steps: list[Step]
) -> Seed:
    """Quality by the worst 95 % half-width against the sensor's period, but no better than the evidence."""
    rank, reason = _QUALITIES.index(rung.ceiling), rung.reason
    if rung.line is not None and instants:
        half_ns = NORMAL_95 * sqrt(max(rung.line.at(end)[1] for end in (min(instants), max(instants))))
        period_ns = median([after - before for before, after in pairwise(instants)] or [_S])
        rank = max(rank, (half_ns > period_ns / 4) + (half_ns > period_ns))
        reason += f"; 95 % within ± {half_ns / 1e6:.1f} ms at worst"
    if steps:
        reason += f"; {len(steps)} step{'s' * (len(steps) > 1)} of a wall clock taken out"
    return Seed(epoch, topside_epoch, rung.name, _QUALITIES[rank], reason, rung.used, rung.refused, steps)


def _placed(readings: Sequence[Reading], pieces: Pieces) -> list[Reading]:
    if len(pieces) == 1:
        return list(readings)
    placed: list[Reading] = []
    index = 0
    for reading in readings:
        old = reading.epoch < 0
        placed.append(replace(reading, epoch=UNPLACED - pieces.of(index)) if old else reading)
        index += old
    return placed
