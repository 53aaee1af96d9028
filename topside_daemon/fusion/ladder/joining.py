"""Two records of wall labels, joined across the steps of both clocks.

A step is labels that run backwards, or a gap that markers or the end of the other record belie. It is
taken out by its measured size, with that measurement's deviation; a real gap stays a gap. No I/O, no
clock. Everywhere offset = in-water - surface in ns.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import median
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from common.messages import Marker
from common.rows import format_utc
from topside_daemon.fusion.ladder.oneway import CREDIBLE_PPM, DELAY_SD_NS, LATE_NS, Pair, match_markers, title
from topside_daemon.fusion.ladder.rungs import Anchor
from topside_daemon.fusion.ladder.steps import SIDES, Jump, Labels, Pieces, Step, find_jumps

OVERHANG_NS = 5_000_000_000  # two sensors of one session end closer together than this
ORDER_NS = 6_000_000_000  # that START reads high and STOP low where they are two events each
LARGE_NS = 10_000_000_000  # a step that stands out from that
DOUBT_SHARE = 0.6  # of a doubtful gap as deviation: the 95 % interval holds it whole
DOUBTS_SHOWN = 3  # in one reason
NEAR_TIES = 16  # on either side of a gap are asked what it is: later ones have drifted
AWAY_NS = 30_000_000_000  # a time-sync was taken while both sensors recorded, or nearly so

INWATER, SURFACE = 0, 1


class TimeSync(Struct, frozen=True):
    """One two-way comparison of the wall clocks. bound_ns: half its round trip, and what rounding hid.

    at_ns: surface label when it was made; None if unknown.
    """

    offset_ns: int
    bound_ns: int
    at_ns: int | None = None


class Record(Struct, frozen=True):
    """One sensor's record: its unnumbered rows' labels, in the order of arrival, and the monotonic instants
    of the numbered rows by epoch.

    The after_seq of an unnumbered marker is the index of the last of those before it.
    """

    labels: Labels
    instants: Mapping[int, Labels]
    markers: Sequence[Marker] = ()

    @property
    def labelled_markers(self) -> list[Marker]:
        return [marker for marker in self.markers if marker.epoch < 0]


class _Tie(NamedTuple):
    """Labels of both sides that mean one instant, and the readings they lie at."""

    name: str
    labels_ns: tuple[int, int]
    indices: tuple[int, int]


class Joining:
    """Both sides' labels without the steps of their clocks.

    labels_ns, start_ns (label of the first START marker) and pieces are of the in-water and of the surface
    side; complaints: markers without a match, a time-sync of another time; doubts: gaps that nothing tells
    from a step.
    """

    def __init__(self, inwater: Record, surface: Record, time_sync: TimeSync | None) -> None:
        self.labels_ns = (inwater.labels, surface.labels)
        self.start_ns = (_start_ns(inwater), _start_ns(surface))
        self.steps: list[Step] = []
        self._jumps: tuple[list[Jump], list[Jump]] = ([], [])
        matched, self.complaints = match_markers(inwater.labelled_markers, surface.labelled_markers)
        matched.sort(key=lambda pair: pair[0].after_seq)  # neighbours are cheap to look at
        self._pairs = sorted((self._tie(*pair) for pair in matched), key=lambda tie: tie.indices)
        if time_sync is not None and not self._belongs(time_sync):
            offset_s = time_sync.offset_ns / 1e9
            self.complaints.append(f"time-sync: offset {offset_s:.3f} s lies outside the in-water record")
            time_sync = None
        self._time_sync = time_sync
        self._anchors = [self._place(time_sync)] if time_sync else []
        ties = self._pairs + self._anchors
        self._ties = [sorted(ties, key=lambda tie: tie.indices[side]) for side in (INWATER, SURFACE)]
        self.doubts: list[str] = []
        self._cut()
        self._find_steps()

    def _belongs(self, time_sync: TimeSync) -> bool:
        """Whether the in-water record holds the instant of a time-sync, and any of the surface's."""
        under, deck = self.labels_ns
        spans = [deck.ends()] if deck else []
        spans += [] if time_sync.at_ns is None else [(time_sync.at_ns, time_sync.at_ns)]
        if not under:
            return True
        reach_ns = AWAY_NS + time_sync.bound_ns
        first_ns, last_ns = (end - time_sync.offset_ns for end in under.ends())
        return all(start <= last_ns + reach_ns and end >= first_ns - reach_ns for start, end in spans)

    def _tie(self, here: Marker, there: Marker) -> _Tie:
        under, deck = self.labels_ns
        return _Tie(title(here), (here.utc_ns, there.utc_ns), (_nearest(under, here), _nearest(deck, there)))

    def _place(self, time_sync: TimeSync) -> _Tie:
        under, deck = self.labels_ns
        likely = [time_sync.at_ns, self.start_ns[SURFACE], *deck[:1]]
        likely += [label - time_sync.offset_ns for label in under[:1]]
        at_ns = next((instant for instant in likely if instant is not None), 0)
        labels = (at_ns + time_sync.offset_ns, at_ns)
        return _Tie("time-sync", labels, (under.first_from(labels[0]), deck.first_from(labels[1])))

    def _find_steps(self) -> None:
        doubtful: list[tuple[int, Jump]] = []
        for side in (INWATER, SURFACE):
            jumps = find_jumps(self.labels_ns[side])
            doubtful += [(side, jump) for jump in jumps if not jump.certain]
            self._add([(side, jump) for jump in jumps if jump.certain], "its labels ran backwards")
        while witnessed := self._best_witnessed(doubtful):
            doubtful.remove(witnessed)
            self._add([witnessed], "markers measure a gap of its labels as a step")
        outside = [one for one in doubtful if one[0] == INWATER and self._overhangs(one[1])][:1]
        likely = [(side, replace(jump, sd_ns=_doubt_sd_ns(jump))) for side, jump in outside]
        self._add(likely, "a gap of its labels would put the rest beyond the surface's end")
        self._doubt([one for one in doubtful if one not in outside and self._is_open(*one)])
        self.doubts += [
            f"{self._gap(*one)} is taken for a step, and may be none if the surface ended early"
            for one in outside
        ]

    def _add(self, found: Sequence[tuple[int, Jump]], evidence: str) -> None:
        for side, jump in found:
            at_ns = self.labels_ns[side][jump.index]
            self.steps.append(Step(SIDES[side], at_ns, jump.size_ns, jump.sd_ns, evidence))
            self._jumps[side].append(jump)
        if found:
            self._cut()

    def _cut(self) -> None:
        self.pieces = (Pieces(self._jumps[INWATER]), Pieces(self._jumps[SURFACE]))
        self._offsets_ns = [[self._offset_ns(tie) for tie in ties] for ties in self._ties]

    def joined_ns(self, side: int, label_ns: int, index: int) -> int:
        """A label near the reading at *index*, without the steps before it."""
        pieces = self.pieces[side]
        return label_ns - pieces.shifts_ns[pieces.of(index)]

    def _instants(self, tie: _Tie) -> tuple[int, int]:
        under, deck = (self.joined_ns(side, tie.labels_ns[side], tie.indices[side]) for side in (0, 1))
        return under, deck

    def _offset_ns(self, tie: _Tie) -> int:
        under_ns, deck_ns = self._instants(tie)
        return under_ns - deck_ns

    def _best_witnessed(self, doubtful: Sequence[tuple[int, Jump]]) -> tuple[int, Jump] | None:
        judged = [(miss, n) for n, one in enumerate(doubtful) if (miss := self._miss_ns(*one)) is not None]
        return doubtful[min(judged)[1]] if judged else None

    def _miss_ns(self, side: int, jump: Jump) -> float | None:
        """How far ties before and after a gap are from measuring it as a step; None if they do not."""
        moved = self._moved(side, jump)
        if moved is None:
            return None
        by_ns, allowed_ns, order_ns = moved
        step_ns = jump.size_ns if side == INWATER else -jump.size_ns
        below_ns = step_ns - by_ns
        if order_ns:
            fits = -allowed_ns <= below_ns <= allowed_ns + order_ns and by_ns / step_ns > 0.5
        else:
            fits = abs(by_ns) > allowed_ns and abs(below_ns) <= min(allowed_ns, abs(by_ns) / 2)
        return abs(below_ns) if fits else None

    def _stood_still(self, side: int, jump: Jump) -> bool:
        """Whether ties before and after a gap say that no clock moved meanwhile."""
        moved = self._moved(side, jump)
        if moved is None:
            return False
        by_ns, allowed_ns, order_ns = moved
        return -allowed_ns - order_ns <= by_ns <= allowed_ns and abs(by_ns) < abs(jump.size_ns) / 2

    def _moved(self, side: int, jump: Jump) -> tuple[float, float, float] | None:
        """What the offset moved by across a gap, what it may by delay and drift, and how much lower it may
        read because the markers are two events each; None if unknown."""
        ties = self._ties[side]
        place = bisect_left(ties, jump.index, key=lambda tie: tie.indices[side])
        before, after = ties[max(0, place - NEAR_TIES) : place], ties[place : place + NEAR_TIES]
        if not before or not after:
            return None
        offsets_ns, from_ = self._offsets_ns[side], place - len(before)
        by_ns = median(offsets_ns[place : place + NEAR_TIES]) - median(offsets_ns[from_:place])
        elapsed_ns = abs(after[-1].labels_ns[side] - before[0].labels_ns[side])
        late_ns = min(LATE_NS, abs(jump.size_ns) / 4)
        allowed_ns = late_ns + 4 * DELAY_SD_NS + CREDIBLE_PPM * elapsed_ns / 1e6 + 3 * jump.sd_ns
        return by_ns, allowed_ns, ORDER_NS * (abs(jump.size_ns) >= LARGE_NS)

    def _overhangs(self, jump: Jump) -> bool:
        """Whether the in-water record ends beyond the surface's by about the gap, and by no more."""
        if jump.size_ns <= OVERHANG_NS or self._stood_still(INWATER, jump):
            return False
        beyond_ns = self._beyond_ns(INWATER, jump)
        return beyond_ns is not None and jump.size_ns / 2 < beyond_ns < jump.size_ns + OVERHANG_NS

    def _beyond_ns(self, side: int, jump: Jump) -> float | None:
        """How much later the in-water record ends than the surface's by what ties say before a gap."""
        under, deck = self.labels_ns
        if not under or not deck:
            return None
        before = [tie for tie in self._pairs + self._anchors if tie.indices[side] < jump.index][-NEAR_TIES:]
        begun_ns = under[0] - deck[0]  # without a tie: the records of one session begin together
        offset_ns = median(map(self._offset_ns, before)) if before else begun_ns
        end = _Tie("end", (under[-1], deck[-1]), (len(under) - 1, len(deck) - 1))
        return self._offset_ns(end) - offset_ns

    def _is_open(self, side: int, jump: Jump) -> bool:
        """Whether a gap that is not taken for a step may be one, as far as anyone can tell."""
        if abs(jump.size_ns) <= LATE_NS or jump.in_rhythm or self._stood_still(side, jump):
            return False
        beyond_ns = self._beyond_ns(side, jump)
        if beyond_ns is None or abs(jump.size_ns) <= OVERHANG_NS:
            return True
        return beyond_ns / (jump.size_ns if side == INWATER else -jump.size_ns) >= 0.5

    def _doubt(self, found: Sequence[tuple[int, Jump]]) -> None:
        """Nothing is taken out of the labels, but what lies behind may be off by as much."""
        for side, jump in found:
            self.doubts.append(f"{self._gap(side, jump)} may be a step of the clock, nothing after it tells")
            self._jumps[side].append(replace(jump, size_ns=0, sd_ns=_doubt_sd_ns(jump)))
        self.doubts[DOUBTS_SHOWN:] = [f"{len(found) - DOUBTS_SHOWN} more such gaps"] * (
            len(found) > DOUBTS_SHOWN
        )
        self._cut()

    def _gap(self, side: int, jump: Jump) -> str:
        at, size_s = format_utc(self.labels_ns[side][jump.index]), jump.size_ns / 1e9
        return f"a gap of {size_s:.1f} s in the {SIDES[side]} labels at {at}"

    def pairs(self, piece: int) -> list[Pair]:
        """The marker pairs on the joined labels, as they serve one in-water piece; in order of arrival."""
        return [
            Pair(tie.name, *self._instants(tie), self._carried_ns(tie, piece), ordered=tie.name != "STOP")
            for tie in self._pairs
        ]

    def anchor(self, piece: int) -> Anchor | None:
        """The time-sync on the joined in-water labels, as it serves one in-water piece."""
        if self._time_sync is None:
            return None
        [tie] = self._anchors
        bound_ns = self._time_sync.bound_ns
        return Anchor(
            self._instants(tie)[INWATER], self._offset_ns(tie), bound_ns, self._carried_ns(tie, piece)
        )

    def home(self) -> int:
        """The in-water piece whose labels, left as they are, make both records cover the same time."""
        under, deck = self.labels_ns
        if not under:
            return 0
        last = len(under) - 1
        ends = (under[0], self.joined_ns(INWATER, under[last], last))
        wanted = (deck[0], self.joined_ns(SURFACE, deck[-1], len(deck) - 1)) if deck else ends

        def apart_ns(piece: int) -> int:
            shift_ns = self.pieces[INWATER].shifts_ns[piece]
            return sum(abs(end + shift_ns - want) for end, want in zip(ends, wanted, strict=True))

        return min(range(len(self.pieces[INWATER])), key=apart_ns)

    def _carried_ns(self, tie: _Tie, piece: int) -> float:
        """Sd of the steps between a tie and a piece."""
        under, deck = self.pieces
        here, there = under.of(tie.indices[INWATER]), deck.of(tie.indices[SURFACE])
        return sqrt(abs(under.variances[here] - under.variances[piece]) + deck.variances[there])


def _doubt_sd_ns(jump: Jump) -> int:
    return round(abs(jump.size_ns) * DOUBT_SHARE)


def _start_ns(record: Record) -> int | None:
    return next((one.utc_ns for one in record.labelled_markers if one.kind == "START"), None)


def _nearest(labels_ns: Labels, marker: Marker) -> int:
    """The reading a marker lies at. Batches of readings are written late, so it is the nearest label of
    its two neighbours that tells on which side of a step it is."""
    first = max(0, marker.after_seq)
    apart = [abs(label - marker.utc_ns) for label in labels_ns[first : max(0, marker.after_seq + 2)]]
    return first + apart.index(min(apart)) if apart else 0
