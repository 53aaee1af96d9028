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

from msgspec import Struct

from common.messages import Epoch, Exchange, Reading
from topside_daemon.fusion.clockmodel import ClockModel, best_of_burst, delay_ns, offset_ns, pi_mono_ns

UNNUMBERED = -1  # epoch and seq of a row whose file kept neither: only its UTC label places it
ANCHOR_ROWS = 15  # that stand in for a declared anchor

_Key = TypeVar("_Key", int, str)

ClockStatus = Literal["measured", "held", "single", "none", ""]


class Corrected(Struct, frozen=True, gc=False):
    """An in-water instant on the common axis, and how it got there.

    status: measured (between the first and the last exchange of its segment), held (outside them),
    single (the segment has one burst), none (no exchange: time_ns is the Pi's own label).
    """

    time_ns: int
    offset_ns: int | None
    offset_sd_ns: int | None
    status: ClockStatus


class SegmentState(Struct, frozen=True):
    """The clock model of one pair of boots at one instant of the Pi; refused counts bursts."""

    pi_boot_id: str
    topside_boot_id: str
    pi_mono_ns: int
    first_mono_ns: int
    last_mono_ns: int
    offset_ns: int
    offset_sd_ns: int
    drift_ppm: float
    drift_sd_ppm: float
    used: int
    refused: int
    delay_min_ns: int


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
    by_row = _anchors((row.epoch, row.mono_ns, row.utc_ns) for row in surface if row.epoch != UNNUMBERED)
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
    """

    def __init__(self, topside_epochs: Iterable[Epoch], pi_epochs: Iterable[Epoch]) -> None:
        self._topside_boots: dict[int, str] = {}
        self._pi_boots: dict[int, str] = {}
        self._anchors: dict[str, int] = {}
        self._segments: dict[str, dict[str, ClockModel]] = {}
        self._newest: tuple[str, str] | None = None
        self._seen: set[tuple[str, int]] = set()
        self._refused: Counter[str] = Counter()
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
        contradicting = sum(model.refused for _, _, model in self._models())
        return self._refused + Counter({"contradicts its neighbours": contradicting})

    @property
    def used(self) -> int:
        """Bursts that the clock models stand on."""
        return sum(model.used for _, _, model in self._models())

    def add_burst(self, exchanges: Sequence[Exchange]) -> Exchange | None:
        """Take one burst, in the order of time; the exchange that was used, None if there was none."""
        best = best_of_burst(exchanges, self._refused)
        if best is None or best.pi_boot_id is None or (best.topside_boot_id, best.t1_ns) in self._seen:
            return None
        self._seen.add((best.topside_boot_id, best.t1_ns))
        models = self._segments.setdefault(best.pi_boot_id, {})
        model = models.setdefault(best.topside_boot_id, ClockModel())
        self._newest = (best.pi_boot_id, best.topside_boot_id)
        return best if model.add(pi_mono_ns(best), offset_ns(best), delay_ns(best)) else None

    def surface_time(self, reading: Reading) -> int:
        """A surface reading on the common axis, ns; its own label where nothing anchors its clock."""
        anchor_ns = self._anchors.get(self._topside_boots.get(reading.epoch, ""))
        return reading.utc_ns if anchor_ns is None else reading.mono_ns + anchor_ns

    def inwater_time(self, reading: Reading) -> Corrected:
        """An in-water reading on the common axis: raw - offset on the topside clock, plus its anchor."""
        segment = self._segment(self._pi_boots.get(reading.epoch, ""), reading.mono_ns)
        if segment is None:
            return Corrected(reading.utc_ns, None, None, "none")
        anchor_ns, model = segment
        estimate = model.at(reading.mono_ns)
        status: ClockStatus = "held" if _beyond_ns(model, reading.mono_ns) else "measured"
        return Corrected(
            time_ns=reading.mono_ns - estimate.offset_ns + anchor_ns,
            offset_ns=estimate.offset_ns,
            offset_sd_ns=estimate.sd_ns,
            status=status if model.used > 1 else "single",
        )

    def _segment(self, pi_boot_id: str, pi_mono_ns: int) -> tuple[int, ClockModel] | None:
        """The anchor and model whose exchanges are nearest to an instant of the Pi."""
        models = self._segments.get(pi_boot_id, {})
        anchored = [(self._anchors[boot], model) for boot, model in models.items() if boot in self._anchors]
        if len(anchored) < 2:
            return anchored[0] if anchored else None
        return min(anchored, key=lambda one: _beyond_ns(one[1], pi_mono_ns))

    def _models(self) -> Iterator[tuple[str, str, ClockModel]]:
        for pi_boot_id, models in self._segments.items():
            for topside_boot_id, model in models.items():
                yield pi_boot_id, topside_boot_id, model

    def estimate(self, pi_mono_ns: int | None = None) -> SegmentState | None:
        """The newest segment at an instant of the Pi, by default at its last burst; None before any."""
        if self._newest is None:
            return None
        pi_boot_id, topside_boot_id = self._newest
        model = self._segments[pi_boot_id][topside_boot_id]
        return _state(pi_boot_id, topside_boot_id, model, pi_mono_ns)

    def describe(self) -> list[SegmentState]:
        """Every segment at its last burst."""
        return [
            _state(pi_boot_id, topside_boot_id, model)
            for pi_boot_id, topside_boot_id, model in self._models()
        ]


def _beyond_ns(model: ClockModel, pi_mono_ns: int) -> int:
    first_ns, last_ns = model.span_ns or (pi_mono_ns, pi_mono_ns)
    return max(0, first_ns - pi_mono_ns, pi_mono_ns - last_ns)


def _state(
    pi_boot_id: str, topside_boot_id: str, model: ClockModel, pi_mono_ns: int | None = None
) -> SegmentState:
    first_ns, last_ns = model.span_ns or (0, 0)
    at_ns = last_ns if pi_mono_ns is None else pi_mono_ns
    estimate = model.at(at_ns)
    return SegmentState(
        pi_boot_id=pi_boot_id,
        topside_boot_id=topside_boot_id,
        pi_mono_ns=at_ns,
        first_mono_ns=first_ns,
        last_mono_ns=last_ns,
        offset_ns=estimate.offset_ns,
        offset_sd_ns=estimate.sd_ns,
        drift_ppm=estimate.drift_ppm,
        drift_sd_ppm=estimate.drift_sd_ppm,
        used=model.used,
        refused=model.refused,
        delay_min_ns=model.delay_min_ns,
    )
