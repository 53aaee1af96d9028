"""What a recorder did, told on the bus: `<prefix>reading|marker|chunk|status`."""

import logging
from collections import Counter

from common.bus import Publisher
from common.clock import Clock
from common.instrument import Arrival, Instrument
from common.messages import (
    PROTOCOL,
    Chunk,
    ChunkFrame,
    Event,
    Marker,
    MarkerFrame,
    Reading,
    ReadingFrame,
    StatusFrame,
)
from common.recorder import Recorder

log = logging.getLogger(__name__)


class Announcer:
    """A recorder's listener that publishes; also speaks between recordings, with an empty session_id."""

    def __init__(self, publisher: Publisher, prefix: str, clock: Clock) -> None:
        self.recorder: Recorder | None = None
        self.events: Counter[str] = Counter()
        self._publisher = publisher
        self._prefix = prefix
        self._stream = prefix.rstrip("/").rpartition("/")[2]
        self._clock = clock
        self._idle_seq = -1

    @property
    def session_id(self) -> str:
        return self.recorder.record.session_id if self.recorder else ""

    @property
    def _durable_seq(self) -> int:
        return self.recorder.durable_seq if self.recorder else -1

    def idle(self, arrival: Arrival) -> None:
        """Show what the sensor says between recordings; these numbers are of no record."""
        a, self._idle_seq = arrival, self._idle_seq + 1
        stamp = a.stamp
        self._tell(
            [
                Reading(
                    self._idle_seq,
                    0,
                    stamp.mono_ns,
                    stamp.utc_ns,
                    a.sensor_id,
                    a.mode,
                    a.value,
                    a.temp_c,
                    a.vin,
                )
            ]
        )

    def rows(self, readings: list[Reading]) -> None:
        self._tell(readings)

    def _tell(self, readings: list[Reading]) -> None:
        for reading in readings:
            frame = ReadingFrame.of(reading, self.session_id, self._clock.boot_id, self._durable_seq)
            self._publisher.send(f"{self._prefix}reading", frame, reading.utc_ns)

    def marker(self, marker: Marker) -> None:
        frame = MarkerFrame.of(marker, self.session_id, self._clock.boot_id, self._durable_seq)
        self._publisher.send(f"{self._prefix}marker", frame, marker.utc_ns)

    def durable(self) -> None:
        chunk = self.recorder.open_chunk if self.recorder else None
        if chunk is not None:
            self._chunk(chunk.index, chunk.name, chunk.durable_bytes, None)

    def sealed(self, chunk: Chunk) -> None:
        self._chunk(chunk.index, chunk.name, chunk.size_bytes, chunk)

    def _chunk(self, index: int, name: str, size_bytes: int, sealed: Chunk | None) -> None:
        utc_ns = self._clock.utc_ns()
        frame = ChunkFrame(
            v=PROTOCOL,
            session_id=self.session_id,
            t=utc_ns / 1e9,
            utc_ns=utc_ns,
            index=index,
            name=name,
            state="sealed" if sealed else "open",
            size_bytes=size_bytes,
            rows=sealed.rows if sealed else None,
            sha256=sealed.sha256 if sealed else None,
            durable_seq=self._durable_seq,
        )
        self._publisher.send(f"{self._prefix}chunk", frame, utc_ns)

    def note(self, kind: str, detail: str, count: int, instrument: Instrument) -> None:
        """Something happened to the sensor: keep it with the recording, if there is one."""
        if self.recorder is None:
            self._count(kind, detail, count)
            return
        self.recorder.note(kind, detail, count)
        if instrument.config is not None and self.recorder.record.sensor != instrument.describe():
            self.recorder.describe_sensor(instrument)

    def event(self, event: Event) -> None:
        self._count(event.kind, event.detail, event.count)

    def _count(self, kind: str, detail: str, count: int) -> None:
        """All that happens to the stream comes by here, once: it is what the log gets."""
        self.events[kind] += count
        log.info("%s %s: %s", self._stream, kind, detail)

    def status(self, state: str, detail: str) -> None:
        """Publish where the stream stands; to be called once a second."""
        now, recorder = self._clock.stamp(), self.recorder
        frame = StatusFrame(
            v=PROTOCOL,
            session_id=self.session_id,
            boot_id=self._clock.boot_id,
            t=now.utc_ns / 1e9,
            utc_ns=now.utc_ns,
            mono_ns=now.mono_ns,
            state=state,
            detail=detail,
            storage=recorder.trouble if recorder else "",
            dropped=recorder.dropped if recorder else 0,
            rows=recorder.rows if recorder else 0,
            last_seq=recorder.last_seq if recorder else -1,
            durable_seq=self._durable_seq,
            events=self.events.total(),
        )
        self._publisher.send(f"{self._prefix}status", frame, now.utc_ns)
