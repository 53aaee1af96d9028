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
from typing import Literal, TypeVar

from msgspec import Struct, structs

from common.messages import Epoch, Exchange, Reading
from topside_daemon.fusion.bursts import Burst, usable
from topside_daemon.fusion.clockmodel import ClockModel, Estimate, Evidence
from topside_daemon.fusion.ladder import Ladder
from topside_daemon.fusion.tether import LinkMemory

UNNUMBERED = -1  # epoch and seq of a row whose file kept neither: only its UTC label places it
ANCHOR_ROWS = 15  # that stand in for a declared anchor

_Key = TypeVar("_Key", int, str)

ClockStatus = Literal["measured", "held", "single", "linear", "constant", "time-sync", "none", ""]


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

    def at(self, pi_mono_ns: int) -> Estimate:
        """The estimate for a reading."""
        first_ns, last_ns = self._served or (pi_mono_ns, pi_mono_ns)
        self._served = (min(first_ns, pi_mono_ns), max(last_ns, pi_mono_ns))
        return self.model.at(pi_mono_ns)

    def _ends(self) -> tuple[int, int]:
        """The first and the last instant that a burst or a reading speaks of."""
        first_ns, last_ns = self.model.span_ns
        served = self._served or (first_ns, last_ns)
        return min(first_ns, served[0]), max(last_ns, served[1])

    def beyond_ns(self, pi_mono_ns: int) -> int:
        """How far outside its bursts an instant lies."""
        first_ns, last_ns = self.model.span_ns
        return max(0, first_ns - pi_mono_ns, pi_mono_ns - last_ns)

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


def complete_pi_epochs(declared: Iterable[Epoch], exchanges: Iterable[Exchange]) -> list[Epoch]:
    """The declared epochs of the Pi, and for every other boot that answered the next free number.

    Boots come in the order of their first exchange. Only number and boot id of the result matter.
    """
    epochs = list(declared)
    exchanges = list(exchanges)
    rank = {boot_id: place for place, boot_id in enumerate(_topside_boots(exchanges))}
    first: dict[str, tuple[int, int]] = {}
    for exchange in exchanges:
        if exchange.pi_boot_id is not None:
            seen = (rank[exchange.topside_boot_id], exchange.t1_ns)
            first[exchange.pi_boot_id] = min(first.get(exchange.pi_boot_id, seen), seen)
    known = {epoch.boot_id for epoch in epochs}
    boots = [boot_id for boot_id in sorted(first, key=lambda one: (first[one], one)) if boot_id not in known]
    free = _free_numbers(epochs, len(boots))
    return epochs + [Epoch(number, boot_id, 0, 0) for number, boot_id in zip(free, boots, strict=True)]


def complete_topside_epochs(
    declared: Iterable[Epoch], surface: Iterable[Reading], exchanges: Iterable[Exchange]
) -> list[Epoch]:
    """The declared epochs of the topside machine, and an anchor for every other epoch in the record.

    The anchor is the median of (UTC - mono) over the first rows of the epoch, or, without rows, over
    the first exchanges of the boot.
    """
    epochs = list(declared)
    exchanges = list(exchanges)
    known = {epoch.boot_id for epoch in epochs}
    boots = [boot_id for boot_id in _topside_boots(exchanges) if boot_id not in known]
    named = dict(zip(_free_numbers(epochs, len(boots)), boots, strict=True))
    by_row = _anchors((row.epoch, row.mono_ns, row.utc_ns) for row in surface if row.epoch >= 0)
    by_send = _anchors((one.topside_boot_id, one.t1_ns, one.topside_utc_ns) for one in exchanges)
    for number in sorted({*named, *by_row} - {epoch.epoch for epoch in epochs}):
        boot_id = named.get(number, f"topside epoch {number}")
        anchor_ns = by_row[number] if number in by_row else by_send[boot_id]
        epochs.append(Epoch(number, boot_id, 0, anchor_ns))
    return epochs


def _topside_boots(exchanges: Iterable[Exchange]) -> list[str]:
    """In the order of their first exchange; by wall time, the only clock that survives a boot."""
    first: dict[str, tuple[int, int]] = {}
    for exchange in exchanges:
        seen = (exchange.t1_ns, exchange.topside_utc_ns)
        first[exchange.topside_boot_id] = min(first.get(exchange.topside_boot_id, seen), seen)
    return sorted(first, key=lambda boot_id: (first[boot_id][1], boot_id))


def _free_numbers(epochs: Sequence[Epoch], wanted: int) -> list[int]:
    taken = {epoch.epoch for epoch in epochs}
    return list(islice((number for number in count() if number not in taken), wanted))


def _anchors(stamps: Iterable[tuple[_Key, int, int]]) -> dict[_Key, int]:
    """UTC - mono by key, from (key, mono_ns, utc_ns) in any order."""
    found: dict[_Key, list[tuple[int, int]]] = {}
    for key, mono_ns, utc_ns in stamps:
        found.setdefault(key, []).append((mono_ns, utc_ns - mono_ns))
    return {
        key: median_low(anchor for _, anchor in nsmallest(ANCHOR_ROWS, seen)) for key, seen in found.items()
    }


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
        self.latency_ns = list(latency_ns)
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

    def add_topside_epoch(self, epoch: Epoch) -> None:
        """Declare a topside epoch and its anchor; a number or boot that is known stays as it is."""
        self._topside_boots.setdefault(epoch.epoch, epoch.boot_id)
        self._anchors.setdefault(epoch.boot_id, epoch.utc_ns - epoch.mono_ns)

    def add_pi_epoch(self, epoch: Epoch) -> None:
        """Declare an epoch of the Pi; a number that is known stays as it is."""
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

    def surface_time(self, reading: Reading) -> int:
        """When the light of a surface reading was averaged, ns on the common axis; by its own label where
        nothing anchors its clock."""
        at_ns = reading.utc_ns
        anchor_ns = self._anchors.get(self._topside_boots.get(reading.epoch, ""))
        if reading.epoch < 0 and self._ladder is not None:
            at_ns = self._ladder.surface_ns(reading.epoch, reading.utc_ns)
        elif anchor_ns is not None:
            at_ns = reading.mono_ns + anchor_ns
        return at_ns - self.latency_ns[1]

    def inwater_time(self, reading: Reading) -> Corrected:
        """When the light of an in-water reading was averaged: raw - offset on the topside clock, plus its
        anchor, minus the latency."""
        segment = self._nearest(self._pi_boots.get(reading.epoch, ""), reading.mono_ns)
        if segment is None:
            return self._by_ladder(reading)
        estimate = self._doubting(segment, reading.mono_ns)
        status: ClockStatus = "held" if segment.beyond_ns(reading.mono_ns) else "measured"
        anchor_ns = self._anchors[segment.topside_boot_id]
        return Corrected(
            time_ns=reading.mono_ns - estimate.offset_ns + anchor_ns - self.latency_ns[0],
            offset_ns=estimate.offset_ns,
            offset_sd_ns=estimate.sd_ns,
            status=status if segment.model.used > 1 else "single",
            low_ns=estimate.low_ns,
            high_ns=estimate.high_ns,
        )

    def _doubting(self, segment: _Segment, pi_mono_ns: int) -> Estimate:
        """The estimate of the nearest segment; where a clock has jumped between it and another of the same
        boots, nobody knows when, and either may be right."""
        estimate = segment.at(pi_mono_ns)
        for other in self._segments[segment.pi_boot_id]:
            first_ns, last_ns = sorted((segment.model.span_ns, other.model.span_ns))
            between = first_ns[1] < pi_mono_ns < last_ns[0]
            if other is not segment and other.topside_boot_id == segment.topside_boot_id and between:
                rival = other.model.at(pi_mono_ns)
                apart_ns = abs(rival.offset_ns - estimate.offset_ns)
                estimate = structs.replace(
                    estimate,
                    sd_ns=max(estimate.sd_ns, rival.sd_ns, apart_ns),
                    low_ns=min(estimate.low_ns, rival.low_ns),
                    high_ns=max(estimate.high_ns, rival.high_ns),
                )
        return estimate

    def _by_ladder(self, reading: Reading) -> Corrected:
        labelled = reading.epoch < 0
        at_ns = reading.utc_ns if labelled else reading.mono_ns
        offset = self._ladder.at(reading.epoch, at_ns) if self._ladder is not None else None
        known = offset is not None and offset.sd_ns is not None
        anchor_ns = 0
        if offset is not None and not labelled:
            anchor_ns = self._anchors.get(self._topside_boots.get(offset.topside_epoch or 0, ""), 0)
        if offset is None or not (labelled or (known and anchor_ns)):
            return Corrected(reading.utc_ns - self.latency_ns[0], None, None, "none")
        time_ns = at_ns - offset.offset_ns + anchor_ns - self.latency_ns[0]
        if not known:
            return Corrected(time_ns, None, None, "none")
        return Corrected(time_ns, offset.offset_ns, offset.sd_ns, offset.rung, offset.low_ns, offset.high_ns)

    def _nearest(self, pi_boot_id: str, pi_mono_ns: int) -> _Segment | None:
        """The anchored segment whose bursts are nearest to an instant of the Pi."""
        anchored = [
            segment
            for segment in self._segments.get(pi_boot_id, [])
            if segment.topside_boot_id in self._anchors and segment.model.used
        ]
        if len(anchored) < 2:
            return anchored[0] if anchored else None
        return min(anchored, key=lambda segment: segment.beyond_ns(pi_mono_ns))

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
