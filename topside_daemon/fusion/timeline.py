"""Stamps of both machines on one axis: topside time in UTC, ns.

The axis is the topside monotonic clock plus one declared anchor for each boot, so that steps and slews
of a wall clock change nothing. An in-water stamp gets there by the clock model of its segment: one boot
of the Pi against one boot of the topside machine. No I/O, no clock.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from itertools import count, islice
from statistics import median_low
from typing import NamedTuple

from msgspec import Struct, structs

from common.messages import Epoch, Exchange, Reading
from topside_daemon.fusion.bursts import Burst, usable
from topside_daemon.fusion.clockmodel import ClockModel, Estimate, Evidence
from topside_daemon.fusion.columns import INWATER, MISSING, SURFACE, Course
from topside_daemon.fusion.courses import STATUSES, ClockStatus, Courses, either, follow, steady, unknown
from topside_daemon.fusion.ladder import Ladder
from topside_daemon.fusion.tether import LinkMemory

ANCHOR_ROWS = 15  # that stand in for a declared anchor


class Beginning(NamedTuple):
    """Both stamps of one of the first rows of an epoch."""

    epoch: int
    mono_ns: int
    utc_ns: int


class Corrected(Struct, frozen=True, gc=False):
    """An in-water instant on the common axis, and how it got there.

    status: measured (between the first and the last exchange of its segment), held (outside them),
    single (the segment has one burst); without exchanges the rung of the ladder: linear, constant,
    time-sync, or none (time_ns is the Pi's own label). The offset is within 1.96 sd with 95 %, and within
    low_ns .. high_ns for certain; with negative epochs it is one of labels.
    """

    time_ns: int
    offset_ns: int | None
    offset_sd_ns: int | None
    status: ClockStatus
    low_ns: int | None = None
    high_ns: int | None = None


class SegmentState(Struct, frozen=True):
    """The clock model of one segment at one instant of the Pi; refused counts bursts."""

    pi_boot_id: str
    topside_boot_id: str
    pi_mono_ns: int
    first_mono_ns: int
    last_mono_ns: int
    offset_ns: int
    offset_sd_ns: int
    offset_low_ns: int
    offset_high_ns: int
    drift_ppm: float
    drift_sd_ppm: float
    used: int
    refused: int
    delay_min_ns: int


class SegmentProof(SegmentState, frozen=True):
    """The same with the estimates at its first and its last reading or burst, and what they stand on."""

    start_mono_ns: int
    start: Estimate
    end_mono_ns: int
    end: Estimate
    evidence: Evidence


class _Segment:
    """One unbroken run of both clocks: a pair of boots, or what lies between two jumps of a clock."""

    def __init__(self, pi_boot_id: str, topside_boot_id: str, memory: LinkMemory | None) -> None:
        self.pi_boot_id = pi_boot_id
        self.topside_boot_id = topside_boot_id
        self.model = ClockModel(memory)
        self._start: Estimate | None = None
        self._served: tuple[int, int] | None = None

    def serve(self, first_ns: int, last_ns: int) -> None:
        """Readings stand on it from one instant to another."""
        first, last = self._served or (first_ns, last_ns)
        self._served = (min(first, first_ns), max(last, last_ns))

    def _ends(self) -> tuple[int, int]:
        """The first and the last instant that a burst or a reading speaks of."""
        first_ns, last_ns = self.model.span_ns
        served = self._served or (first_ns, last_ns)
        return min(first_ns, served[0]), max(last_ns, served[1])

    def course(self, at_ns: int) -> Course:
        """The model's around an instant, with its status."""
        course = self.model.course(at_ns)
        status: ClockStatus = "single"
        if self.model.used > 1:
            first_ns, last_ns = self.model.span_ns
            status = "measured" if first_ns <= at_ns <= last_ns else "held"
        return course._replace(status=STATUSES.index(status))

    def state(self, pi_mono_ns: int | None = None) -> SegmentState:
        first_ns, last_ns = self.model.span_ns
        at_ns = last_ns if pi_mono_ns is None else pi_mono_ns
        estimate = self.model.at(at_ns)
        return SegmentState(
            pi_boot_id=self.pi_boot_id,
            topside_boot_id=self.topside_boot_id,
            pi_mono_ns=at_ns,
            first_mono_ns=first_ns,
            last_mono_ns=last_ns,
            offset_ns=estimate.offset_ns,
            offset_sd_ns=estimate.sd_ns,
            offset_low_ns=estimate.low_ns,
            offset_high_ns=estimate.high_ns,
            drift_ppm=estimate.drift_ppm,
            drift_sd_ppm=estimate.drift_sd_ppm,
            used=self.model.used,
            refused=self.model.refused,
            delay_min_ns=self.model.delay_min_ns,
        )

    def proof(self, newest: int | None = None) -> SegmentProof:
        """What it stands on; *newest* bounds the work to that many bursts, for a session that runs."""
        first_ns, last_ns = self._ends()
        if self._start is None or newest is None or self.model.used <= newest:
            self._start = self.model.at(first_ns)
        return SegmentProof(
            **structs.asdict(self.state()),
            start_mono_ns=first_ns,
            start=self._start,
            end_mono_ns=last_ns,
            end=self.model.at(last_ns),
            evidence=self.model.evidence(newest),
        )


class TopsideBoot(Struct):
    """began_ns: its earliest wall time, the only clock that survives a boot. first: its first sends, both
    stamps."""

    began_ns: int
    first: list[tuple[int, int]]

    def add(self, mono_ns: int, utc_ns: int) -> None:
        self.began_ns = min(self.began_ns, utc_ns)
        if len(self.first) < ANCHOR_ROWS or mono_ns < self.first[-1][0]:
            self.first = sorted([*self.first, (mono_ns, utc_ns)])[:ANCHOR_ROWS]


class Boots:
    """The boots that exchanges tell of: the topside machine's, and for each of the Pi's the first topside
    instant at which it answered."""

    def __init__(self, exchanges: Iterable[Exchange] = ()) -> None:
        self.topside: dict[str, TopsideBoot] = {}
        self._pi: dict[str, dict[str, int]] = {}
        for exchange in exchanges:
            self.add(exchange)

    def add(self, exchange: Exchange) -> None:
        boot_id, sent = exchange.topside_boot_id, (exchange.t1_ns, exchange.topside_utc_ns)
        if boot_id not in self.topside:
            self.topside[boot_id] = TopsideBoot(exchange.topside_utc_ns, [])
        self.topside[boot_id].add(*sent)
        if exchange.pi_boot_id is not None:
            seen = self._pi.setdefault(exchange.pi_boot_id, {})
            seen[boot_id] = min(seen.get(boot_id, exchange.t1_ns), exchange.t1_ns)

    @property
    def topside_order(self) -> list[str]:
        """In the order of their first exchange."""
        return sorted(self.topside, key=lambda boot_id: (self.topside[boot_id].first[0][1], boot_id))

    @property
    def pi_order(self) -> list[str]:
        """The same of the Pi's."""
        rank = {boot_id: place for place, boot_id in enumerate(self.topside_order)}
        first = {
            pi_boot_id: min((rank[boot_id], t1_ns) for boot_id, t1_ns in seen.items())
            for pi_boot_id, seen in self._pi.items()
        }
        return sorted(first, key=lambda one: (first[one], one))


def complete_pi_epochs(declared: Iterable[Epoch], boots: Boots) -> list[Epoch]:
    """The declared epochs of the Pi, and for every other boot that answered the next free number.

    Boots come in the order of their first exchange. Only number and boot id of the result matter.
    """
    epochs = list(declared)
    known = {epoch.boot_id for epoch in epochs}
    others = [boot_id for boot_id in boots.pi_order if boot_id not in known]
    free = _free_numbers(epochs, len(others))
    return epochs + [Epoch(number, boot_id, 0, 0) for number, boot_id in zip(free, others, strict=True)]


def complete_topside_epochs(
    declared: Iterable[Epoch], surface: Iterable[Beginning], boots: Boots
) -> list[Epoch]:
    """The declared epochs of the topside machine, and an anchor for every other epoch in the record.

    The anchor is the median of (UTC - mono) over the first rows of the epoch, or, without rows, over
    the first exchanges of the boot.
    """
    epochs = list(declared)
    known = {epoch.boot_id for epoch in epochs}
    others = [boot_id for boot_id in boots.topside_order if boot_id not in known]
    named = dict(zip(_free_numbers(epochs, len(others)), others, strict=True))
    by_row: dict[int, list[tuple[int, int]]] = {}
    for epoch, *stamps in surface:
        by_row.setdefault(epoch, []).append((stamps[0], stamps[1]))
    for number in sorted({*named, *by_row} - {epoch.epoch for epoch in epochs}):
        boot_id = named.get(number, f"topside epoch {number}")
        first = by_row[number] if number in by_row else boots.topside[boot_id].first
        epochs.append(Epoch(number, boot_id, 0, _anchor_ns(first)))
    return epochs


def _free_numbers(epochs: Sequence[Epoch], wanted: int) -> list[int]:
    taken = {epoch.epoch for epoch in epochs}
    return list(islice((number for number in count() if number not in taken), wanted))


def _anchor_ns(stamps: Iterable[tuple[int, int]]) -> int:
    """UTC - mono of the first stamps."""
    return median_low(utc_ns - mono_ns for mono_ns, utc_ns in nsmallest(ANCHOR_ROWS, stamps))


class Timeline:
    """Both machines' stamps on the common axis.

    Args:
        topside_epochs: number in the surface rows, boot id, and the anchor (mono_ns, utc_ns) that turns
            that boot's monotonic clock into UTC; the first entry of a number or boot counts.
        pi_epochs: number in the in-water rows and boot id; the rest is not looked at.
        memory: what earlier sessions had shown of this pair of machines.
        ladder: the clock for readings that no exchange speaks for.
        latency_ns: how long before its stamp the light of a reading was averaged, in-water and surface.
    """

    def __init__(
        self,
        topside_epochs: Iterable[Epoch],
        pi_epochs: Iterable[Epoch],
        memory: LinkMemory | None = None,
        ladder: Ladder | None = None,
        latency_ns: Sequence[int] = (0, 0),
    ) -> None:
        self._memory = memory
        self._ladder = ladder
        self._latency_ns = list(latency_ns)
        self._followed: dict[tuple[int, int], Course] = {}  # the last one of a side and an epoch
        self._climbed: dict[int, Courses] = {}  # by epoch, where no exchange speaks
        self._topside_boots: dict[int, str] = {}
        self._pi_boots: dict[int, str] = {}
        self._anchors: dict[str, int] = {}
        self._segments: dict[str, list[_Segment]] = {}  # by boot of the Pi
        self._newest: _Segment | None = None
        self._seen: set[tuple[str, int]] = set()
        self._refused: Counter[str] = Counter()
        self.exchanges = 0  # heard of, used or not
        for epoch in topside_epochs:
            self.add_topside_epoch(epoch)
        for epoch in pi_epochs:
            self.add_pi_epoch(epoch)

    def _forget(self) -> None:
        """What was worked out from less."""
        self._followed.clear()
        self._climbed.clear()

    def add_topside_epoch(self, epoch: Epoch) -> None:
        """Declare a topside epoch and its anchor; a number or boot that is known stays as it is."""
        self._forget()
        self._topside_boots.setdefault(epoch.epoch, epoch.boot_id)
        self._anchors.setdefault(epoch.boot_id, epoch.utc_ns - epoch.mono_ns)

    def add_pi_epoch(self, epoch: Epoch) -> None:
        """Declare an epoch of the Pi; a number that is known stays as it is."""
        self._forget()
        self._pi_boots.setdefault(epoch.epoch, epoch.boot_id)

    @property
    def refused(self) -> Counter[str]:
        """Exchanges not used, by reason; a burst that contradicts its neighbours counts once."""
        models = [segment.model for segment in self._all()]
        return +(
            self._refused
            + Counter({"whole burst contradicts its neighbours": sum(model.refused for model in models)})
            + Counter({"contradicts the model": sum(model.left_out for model in models)})
        )

    @property
    def used(self) -> int:
        """Bursts that the clock models stand on."""
        return sum(segment.model.used for segment in self._all())

    def add_burst(self, exchanges: Sequence[Exchange]) -> bool:
        """Take one burst, in the order of time; False if nothing of it was used."""
        first = exchanges[0]
        if (first.topside_boot_id, first.t1_ns) in self._seen:
            return False
        self._seen.add((first.topside_boot_id, first.t1_ns))
        self._forget()
        self.exchanges += len(exchanges)
        burst = usable(exchanges, self._refused)
        pi_boot_id = next((one.pi_boot_id for one in exchanges if one.pi_boot_id is not None), None)
        if burst is None or pi_boot_id is None:
            return False
        segment = self._segment_for(pi_boot_id, first.topside_boot_id)
        taken = segment.model.take(burst)
        jumped = segment.model.broken
        if jumped:
            segment.model.let_go()
            self._begin(pi_boot_id, first.topside_boot_id, None, jumped)
            taken = True
        return taken

    def _segment_for(self, pi_boot_id: str, topside_boot_id: str) -> _Segment:
        """The newest segment of a pair of boots."""
        for segment in reversed(self._segments.get(pi_boot_id, [])):
            if segment.topside_boot_id == topside_boot_id:
                self._newest = segment
                return segment
        return self._begin(pi_boot_id, topside_boot_id, self._memory, [])

    def _begin(
        self, pi_boot_id: str, topside_boot_id: str, memory: LinkMemory | None, bursts: list[Burst]
    ) -> _Segment:
        segment = _Segment(pi_boot_id, topside_boot_id, memory)
        for burst in bursts:
            segment.model.take(burst)
        self._segments.setdefault(pi_boot_id, []).append(segment)
        self._newest = segment
        return segment

    def set_latency(self, side: int, latency_ns: int) -> None:
        """How long before its stamp the light of a reading was averaged."""
        self._latency_ns[side] = latency_ns
        self._forget()

    def surface_time(self, reading: Reading) -> int:
        """When the light of a surface reading was averaged, ns on the common axis; by its own label where
        nothing anchors its clock."""
        return follow(self._course_of(SURFACE, reading), reading.mono_ns, reading.utc_ns).time_ns

    def inwater_time(self, reading: Reading) -> Corrected:
        """When the light of an in-water reading was averaged: raw - offset on the topside clock, plus its
        anchor, minus the latency."""
        course = self._course_of(INWATER, reading)
        at_ns = reading.utc_ns if reading.epoch < 0 else reading.mono_ns
        found = follow(course, at_ns, reading.utc_ns)
        return Corrected(
            found.time_ns,
            found.offset_ns,
            found.sd_ns,
            STATUSES[course.status],
            found.low_ns,
            found.high_ns,
        )

    def _course_of(self, side: int, reading: Reading) -> Course:
        key = (side, reading.epoch)
        at_ns = reading.utc_ns if reading.epoch < 0 else reading.mono_ns
        course = self._followed.get(key)
        if course is None or not course.since <= at_ns < course.until:
            course = self._followed[key] = self._course(side, reading.epoch, at_ns)
        return course

    def courses(self, side: int, epoch: int, first_ns: int, last_ns: int) -> Iterator[Course]:
        """How the instants of an epoch come to the common axis, from one to another, without a gap."""
        at_ns = first_ns
        while at_ns <= last_ns:
            course = self._course(side, epoch, at_ns)
            yield course
            if side == INWATER:
                self._serve(epoch, at_ns, min(course.until - 1, last_ns))
            at_ns = course.until

    def _serve(self, epoch: int, first_ns: int, last_ns: int) -> None:
        """The ends count: whatever lies in between is of the same segment, or between two."""
        boot = self._pi_boots.get(epoch, "")
        for at_ns in (first_ns, last_ns):
            if anchored := self._anchored(boot):
                min(anchored, key=lambda one: _beyond_ns(one, at_ns)).serve(at_ns, at_ns)

    def _course(self, side: int, epoch: int, at_ns: int) -> Course:
        if side == SURFACE:
            return self._surface_course(epoch)
        anchored = self._anchored(self._pi_boots.get(epoch, ""))
        if not anchored:
            return self._ladder_courses(epoch).at(at_ns)
        found = self._nearest_course(anchored, at_ns) if len(anchored) > 1 else self._own(anchored[0], at_ns)
        return found._replace(shift=found.shift - self._latency_ns[INWATER])

    def _surface_course(self, epoch: int) -> Course:
        anchor_ns = self._anchors.get(self._topside_boots.get(epoch, ""))
        latency_ns = self._latency_ns[SURFACE]
        if epoch < 0 and self._ladder is not None:
            return unknown(-self._ladder.surface_shift_ns(epoch) - latency_ns, "")
        return unknown(-latency_ns, "") if anchor_ns is None else steady(0, anchor_ns - latency_ns)

    def _own(self, segment: _Segment, at_ns: int) -> Course:
        course = segment.course(at_ns)
        return course._replace(shift=self._anchors[segment.topside_boot_id])

    def _nearest_course(self, anchored: Sequence[_Segment], at_ns: int) -> Course:
        """Of the segment whose bursts are nearest. Where a clock has jumped between it and another of the
        same boots, nobody knows when, and either may be right."""
        segment = min(anchored, key=lambda one: _beyond_ns(one, at_ns))
        course = self._own(segment, at_ns)
        for other in anchored:
            if other is segment:
                continue
            first, last = sorted((segment, other), key=lambda one: one.model.span_ns)
            between = (first.model.span_ns[1] + 1, last.model.span_ns[0])
            if between[0] <= at_ns < between[1] and other.topside_boot_id == segment.topside_boot_id:
                course = either(course, other.course(at_ns))
        since, until = course.since, course.until
        for edge_ns in _edges(anchored):
            if edge_ns <= at_ns:
                since = max(since, edge_ns)
            else:
                until = min(until, edge_ns)
        return course._replace(since=since, until=until)

    def _anchored(self, pi_boot_id: str) -> list[_Segment]:
        return [
            segment
            for segment in self._segments.get(pi_boot_id, [])
            if segment.topside_boot_id in self._anchors and segment.model.used
        ]

    def _ladder_courses(self, epoch: int) -> Courses:
        """Where no exchange speaks for an epoch."""
        if epoch not in self._climbed:
            self._climbed[epoch] = Courses(self._climb(epoch))
        return self._climbed[epoch]

    def _climb(self, epoch: int) -> list[Course]:
        found = []
        for foothold, course in self._ladder.courses(epoch) if self._ladder is not None else ():
            anchor_ns = 0
            if epoch >= 0:
                anchor_ns = self._anchors.get(self._topside_boots.get(foothold.topside_epoch or 0, ""), 0)
                if not anchor_ns or course.origin == MISSING:
                    course = unknown(0, since=course.since, until=course.until)
            found.append(course._replace(shift=course.shift + anchor_ns - self._latency_ns[INWATER]))
        return found or [unknown(-self._latency_ns[INWATER])]

    def _all(self) -> Iterator[_Segment]:
        for segments in self._segments.values():
            yield from segments

    def estimate(self, pi_mono_ns: int | None = None) -> SegmentState | None:
        """The newest segment at an instant of the Pi, by default at its last burst; None before any."""
        return self._newest.state(pi_mono_ns) if self._newest and self._newest.model.used else None

    def unsettled_ns(self, ahead_s: float) -> int:
        """What the next comparison of the newest segment may show unforeseen; see ClockModel."""
        return self._newest.model.unsettled_ns(ahead_s) if self._newest else 0

    def describe(self, newest: int | None = None) -> list[SegmentProof]:
        """Every segment and what it stands on; see `_Segment.proof`."""
        return [segment.proof(newest) for segment in self._all() if segment.model.used]

    def learned(self, utc_ns: int) -> LinkMemory | None:
        """What the next session may start from; None if too little was seen."""
        return self._newest.model.learned(utc_ns) if self._newest else None


def _beyond_ns(segment: _Segment, at_ns: int) -> int:
    """How far outside its bursts an instant lies."""
    first_ns, last_ns = segment.model.span_ns
    return max(0, first_ns - at_ns, at_ns - last_ns)


def _edges(segments: Sequence[_Segment]) -> Iterator[int]:
    """The instants from which another of several segments may be the nearest, or others may be right too."""
    spans = [segment.model.span_ns for segment in segments]
    for first_ns, last_ns in spans:
        yield from (first_ns, last_ns + 1)
    for _, last_ns in spans:
        yield from ((last_ns + first_ns) // 2 + 1 for first_ns, _ in spans if first_ns > last_ns)
