"""The live view: readings, fused rows and the clock as they come, for the bus and the status.

Provisional by nature: the record is in the files, and the final fusion reads only those. Runs the
same fuser with a bounded lag, on what is known so far.
"""

from collections import deque
from itertools import pairwise
from typing import Any

from msgspec import to_builtins

from common.bus import CLOCK_MODEL, FUSED_ROW, INWATER, Publisher
from common.clock import Clock
from common.messages import (
    PROTOCOL,
    ClockFrame,
    Epoch,
    Exchange,
    FusedFrame,
    Reading,
    ReadingFrame,
    number,
)
from topside_daemon.deck import View
from topside_daemon.fusion.bursts import group_bursts
from topside_daemon.fusion.columns import INWATER as INWATER_SIDE
from topside_daemon.fusion.columns import SURFACE as SURFACE_SIDE
from topside_daemon.fusion.columns import Summary
from topside_daemon.fusion.latency import latency_of
from topside_daemon.fusion.rhythm import Hold, Rhythm, tolerance_ns
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.stream import FusedRow, Fuser
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.fusion.timeline import SegmentState, Timeline
from topside_daemon.watchers import Watchers

AS_RECORDED = Settings()
SLICE = 20  # readings fused in one go: catching up must not keep the loop from the next stamp
RECENT = 200  # arrivals of each sensor from which the tolerance is learned
NEWEST = 16  # bursts of the proof while a session runs: 5 ms of work in the loop that stamps
LAG = 20  # in-water readings that may wait for a proof of their pairing
SILENCE_NS = 3_000_000_000  # a sensor quiet for longer holds nobody up
STALE_NS = 5_000_000_000  # a value older than this is not shown as current
HOLD_NS = 10_000_000_000  # in-water readings wait this long for the first comparison of the clocks
UNSETTLED_NS = 40_000  # this much unforeseen after
UNSETTLED_AHEAD_S = 30.0  # is a drift that changes
TOLERANCE_NS = 600_000_000  # until the sensors have shown their periods


class Live(View):
    """Watches the session that is recording; `tick` publishes what has become final behind it."""

    def __init__(self, clock: Clock, publisher: Publisher, watchers: Watchers) -> None:
        self._clock = clock
        self._publisher = publisher
        self._watchers = watchers
        self._glanced: list[tuple[str | None, int]] = [(None, 0), (None, 0)]
        self.begin("", [], inwater=False, surface=False)

    def begin(
        self,
        session_id: str,
        topside_epochs: list[Epoch],
        inwater: bool,
        surface: bool,
        link: LinkMemory | None = None,
        settings: Settings = AS_RECORDED,
    ) -> None:
        """Forget what was; watch this session, with these sensors and what is known of their link."""
        self._settings = settings
        self._session_id = session_id
        self._timeline = Timeline(topside_epochs, [], link)
        self._fuser = Fuser(self._timeline, TOLERANCE_NS, LAG, self._hold())
        self._anchor_ns = topside_epochs[-1].utc_ns - topside_epochs[-1].mono_ns if topside_epochs else 0
        self._expected = (inwater, surface)
        self._recent: tuple[deque[int], deque[int]] = (deque(maxlen=RECENT), deque(maxlen=RECENT))
        self._held: deque[tuple[int, Reading]] = deque()
        self._boots: dict[int, str] = {}
        self._durable_seq = -1
        # the newest of each, and when it came
        self._last_inwater: tuple[Reading | None, int] = (None, 0)
        self._last_surface: tuple[Reading | None, int] = (None, 0)
        self._last_pair: tuple[FusedRow | None, int] = (None, 0)
        self._proofs: list[dict[str, object]] = []
        self.rows = self.pairs = 0

    def glance(self, inwater: bool, value: str) -> None:
        """A reading between sessions, to be shown and no more."""
        self._glanced[INWATER_SIDE if inwater else SURFACE_SIDE] = value, self._clock.mono_ns()

    def know_sensor(self, inwater: bool, sensor: dict[str, Any] | None) -> None:
        """Learn what is recorded of a sensor: how old the light is at its stamp."""
        chosen = self._settings
        given_ms = chosen.inwater_latency_ms if inwater else chosen.surface_latency_ms
        latency = latency_of(sensor, None if given_ms is None else given_ms / 1e3)
        self._timeline.set_latency(INWATER_SIDE if inwater else SURFACE_SIDE, latency.total_ns)

    def know_epoch(self, epoch: int, boot_id: str, durable_seq: int = -1) -> None:
        """Learn which boot of the Pi its rows belong to, from a live frame or from its record."""
        self._durable_seq = max(self._durable_seq, durable_seq)
        if epoch not in self._boots:
            self._boots[epoch] = boot_id
            self._timeline.add_pi_epoch(Epoch(epoch, boot_id, 0, 0))

    def inwater(self, readings: list[Reading]) -> None:
        """The next in-water readings, none missing: pass them on, and fuse them once the clock is known."""
        now_ns = self._clock.mono_ns()
        for reading in readings:
            boot_id = self._boots.get(reading.epoch, "")
            frame = ReadingFrame.of(reading, self._session_id, boot_id, self._durable_seq)
            self._publisher.send(INWATER + "reading", frame, reading.utc_ns)
            self._held.append((now_ns, reading))
        self._last_inwater = (readings[-1], now_ns)

    def surface(self, readings: list[Reading]) -> None:
        """The next surface readings."""
        for reading in readings:
            time_ns = self._fuser.push_surface(reading)
            if time_ns is not None:
                self._recent[1].append(time_ns)
        self._last_surface = (readings[-1], self._clock.mono_ns())

    def burst(self, exchanges: list[Exchange]) -> None:
        """One more comparison of the clocks, or all of a session that is resumed."""
        for burst in group_bursts(exchanges):
            self._timeline.add_burst(burst)
        self._proofs = to_builtins(self._timeline.describe(NEWEST))

    def unsettled(self) -> bool:
        """The drift is changing, or not yet known: the clocks should be compared more often."""
        return self._timeline.unsettled_ns(UNSETTLED_AHEAD_S) > UNSETTLED_NS

    def tick(self) -> bool:
        """Publish the rows that nothing still to come can change; True if more could be done at once."""
        more = self._release()
        now_ns = self._clock.mono_ns() + self._anchor_ns
        until = [
            max(times[-1] if times else 0, now_ns - SILENCE_NS) if expected else now_ns
            for times, expected in zip(self._recent, self._expected, strict=True)
        ]
        if self._held:
            until[0] = min(until[0], self._recent[0][-1] if self._recent[0] else 0)
        for row in self._fuser.advance(until[0], until[1]):
            self._publish(row)
        return more

    def _release(self) -> bool:
        """Fuse some held readings whose clock is known, or that have waited long enough without."""
        known = self._timeline.estimate() is not None
        oldest_ns = self._clock.mono_ns() - HOLD_NS
        for _ in range(SLICE):
            if not self._held:
                return False
            taken_ns, reading = self._held[0]
            if not (known and reading.epoch in self._boots) and taken_ns > oldest_ns:
                return False
            self._held.popleft()
            time_ns = self._fuser.push_inwater(reading)
            if time_ns is not None:
                self._recent[0].append(time_ns)
        return bool(self._held)

    def _publish(self, row: FusedRow) -> None:
        self.rows += 1
        if row.inwater and row.surface:
            self.pairs += 1
            self._last_pair = (row, self._clock.mono_ns())
        frame = FusedFrame(
            v=PROTOCOL,
            session_id=self._session_id,
            t=row.time_ns / 1e9,
            utc_ns=row.time_ns,
            inwater_seq=row.inwater.seq if row.inwater else None,
            surface_seq=row.surface.seq if row.surface else None,
            inwater_value=number(row.inwater.value if row.inwater else None),
            surface_value=number(row.surface.value if row.surface else None),
            percent_of_surface=_percent(row),
            offset_ms=_ms(row.offset_ns),
            offset_sd_ms=_ms(row.offset_sd_ns),
            pair_dt_ms=_ms(row.pair_dt_ns),
            clock_status=row.clock_status,
        )
        self._publisher.send(FUSED_ROW, frame, row.time_ns)
        self._watchers.tell("row", frame)

    def tell_clock(self) -> None:
        """Publish the clock model and learn the tolerance; to be called once a second."""
        state, now_ns = self._clock_now(), self._clock.utc_ns()
        if all(len(times) > 1 for times in self._recent):
            self._retune(state.offset_sd_ns if state else 0)
        frame = ClockFrame(
            v=PROTOCOL,
            session_id=self._session_id,
            t=now_ns / 1e9,
            utc_ns=now_ns,
            offset_ms=_ms(state.offset_ns) if state else None,
            offset_sd_ms=_ms(state.offset_sd_ns) if state else None,
            drift_ppm=state.drift_ppm if state else None,
            drift_sd_ppm=state.drift_sd_ppm if state else None,
            bursts=self._timeline.used,
            refused=self._timeline.refused.total(),
            delay_min_ms=_ms(state.delay_min_ns) if state else None,
        )
        self._publisher.send(CLOCK_MODEL, frame, now_ns)

    def _retune(self, sd_ns: int) -> None:
        """By the rhythm of the newest readings."""
        inwater, surface = (
            Rhythm.of(Summary.of(after - before for before, after in pairwise(sorted(times))))
            for times in self._recent
        )
        self._fuser.retune(tolerance_ns(self._settings, inwater, surface, sd_ns), self._hold(surface))

    def _hold(self, surface: Rhythm | None = None) -> Hold | None:
        held = self._settings.mode == "inwater"
        return Hold.of(self._settings, surface or Rhythm(None, 0.0, 0)) if held else None

    def _clock_now(self) -> SegmentState | None:
        reading, _ = self._last_inwater
        return self._timeline.estimate(reading.mono_ns if reading else None)

    def status(self) -> dict[str, object]:
        """The newest values, none older than a few seconds, and the clock, for people and scripts."""
        state, now_ns = self._clock_now(), self._clock.mono_ns()
        inwater, surface, pair = (
            one if one is not None and now_ns - seen_ns < STALE_NS else None
            for one, seen_ns in (self._last_inwater, self._last_surface, self._last_pair)
        )
        glanced = [value if now_ns - seen_ns < STALE_NS else None for value, seen_ns in self._glanced]
        return {
            "inwater_value": inwater.value if isinstance(inwater, Reading) else glanced[INWATER_SIDE],
            "surface_value": surface.value if isinstance(surface, Reading) else glanced[SURFACE_SIDE],
            "pair": _pair(pair) if isinstance(pair, FusedRow) else None,
            "live_rows": self.rows,
            "live_pairs": self.pairs,
            "clock": {
                "offset_ms": _ms(state.offset_ns) if state else None,
                "offset_sd_ms": _ms(state.offset_sd_ns) if state else None,
                "offset_low_ms": _ms(state.offset_low_ns) if state else None,
                "offset_high_ms": _ms(state.offset_high_ns) if state else None,
                "drift_ppm": state.drift_ppm if state else None,
                "drift_sd_ppm": state.drift_sd_ppm if state else None,
                "bursts": self._timeline.used,
                "refused": dict(self._timeline.refused),
                "segments": self._proofs,
            },
        }


def _pair(row: FusedRow) -> dict[str, object]:
    return {
        "inwater_value": row.inwater.value if row.inwater else None,
        "surface_value": row.surface.value if row.surface else None,
        "percent_of_surface": _percent(row),
    }


def _ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6


def _percent(row: FusedRow) -> float | None:
    if row.inwater is None or row.surface is None or float(row.surface.value) <= 0:
        return None
    return 100 * float(row.inwater.value) / float(row.surface.value)
