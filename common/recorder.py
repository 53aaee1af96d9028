"""Arrivals in, numbered rows on disk, readings out: the same on both sides.

A row reaches the OS before anybody is told of it, so a number is never used twice. All disk work
runs on one thread of its own; the event loop only moves lists.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import msgspec
from msgspec import Struct

from common.chunkstore import ChunkStore, open_name
from common.clock import Clock, begin_epoch
from common.disk import Disk
from common.files import Lines, make_folder, read_json, read_lines, replace
from common.instrument import Arrival, Instrument
from common.messages import Chunk, Epoch, Event, Marker, Reading, to_json
from common.rows import encode_marker_row, encode_row, format_utc

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SYNC_S = 0.8  # rows are exposed to a power cut this long, plus one fsync
RETRY_S = 1.0  # between attempts while the disk refuses
WAITING_ROWS = 60_000  # kept in memory while the disk refuses: a minute at 1000 readings/s
PUBLISHED_MAX = 10_000  # readings that may have been published but not fsynced when power failed
CLOSE_S = 1.5  # how long a closing recorder waits for a disk that refuses
STAMP_MEANING = "arrival of the line's first byte at the host; mono_ns: CLOCK_MONOTONIC_RAW or perf_counter"


class RecordingEnded(Exception):
    """The recorder has been stopped or closed: nothing can be written any more."""


class StreamRecord(Struct):
    """`session.json` beside the chunks: what this stream is and which clocks stamped it.

    Numbers below next_seq have been given out. closed: it ended in order, so all that were are in the chunks.
    """

    session_id: str
    mission: str
    role: str
    started_at: str
    roll_interval_s: float
    rate_hz: int = 500
    schema_version: int = 1
    state: str = "recording"
    stopped_at: str | None = None
    sensor_id: str = "unknown"
    sensor: dict[str, Any] | None = None
    stamp: str = STAMP_MEANING
    simulated_clock: bool = False
    epochs: list[Epoch] = []
    next_seq: int = 0
    closed: bool = False


class OpenChunk(Struct, frozen=True):
    """The chunk being written; its first durable_bytes will never change."""

    index: int
    name: str
    durable_bytes: int


class Listener(Protocol):
    """Told from the event loop what the recorder did, in order."""

    def rows(self, readings: list[Reading]) -> None:
        """These have reached the OS."""

    def marker(self, marker: Marker) -> None:
        """This has reached the disk."""

    def durable(self) -> None:
        """Rows have reached the disk since the last call."""

    def sealed(self, chunk: Chunk) -> None:
        """This chunk is complete and will never change."""

    def event(self, event: Event) -> None:
        """Something worth a line happened."""


class Recorder:
    """Records one stream into one folder until stopped (for ever) or closed (to be resumed)."""

    def __init__(self, folder: Path, record: StreamRecord, clock: Clock, listener: Listener) -> None:
        """Not called directly: see `create` and `resume`."""
        self.folder = folder
        self.record = record
        self.trouble = ""  # why rows are waiting in memory; "" when they are not
        self.dropped = 0
        self._clock = clock
        self._listener = listener
        self._disk = Disk("disk")
        self._waiting: list[Reading | Marker] = []
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._closing = self._stopping = False
        self._ended = asyncio.Event()
        self._markers: dict[tuple[str, str, int], Marker] = {}
        self._marking: dict[tuple[str, str, int], asyncio.Future[Marker]] = {}
        self._record_changed = self._overflowed = self._sync_asked = False
        self._epoch = 0
        self._next_seq = 0

    @classmethod
    async def create(cls, folder: Path, record: StreamRecord, clock: Clock, listener: Listener) -> "Recorder":
        """Begin a new recording in *folder*.

        Raises:
            OSError: the disk refuses.
        """
        record.epochs = [begin_epoch(0, clock)]
        recorder = cls(folder, record, clock, listener)
        await recorder._disk.do(make_folder, folder)
        await recorder._disk.do(recorder._save_record)  # first, so that a start cut short can be taken up
        await recorder._begin()
        return recorder

    @classmethod
    async def resume(cls, folder: Path, clock: Clock, listener: Listener) -> "Recorder":
        """Go on with the recording in *folder* after a restart of the daemon or of the machine.

        Raises:
            ValueError: session.json is missing or damaged.
        """
        record = await asyncio.to_thread(read_json, folder / "session.json", StreamRecord)
        if record is None or not record.epochs:
            raise ValueError(f"{folder}: no session.json, or one without its clock's epochs")
        recorder = cls(folder, record, clock, listener)
        await recorder._begin()
        recorder.note("resumed", f"after seq {recorder._next_seq - 1}")
        return recorder

    async def _begin(self) -> None:
        await self._disk.do(self._open)
        events, self._events = self._events, []
        for event in events:
            self._listener.event(event)

    def _open(self) -> None:
        record = self.record
        self._store = ChunkStore(self.folder, record.session_id, record.started_at, record.roll_interval_s)
        markers = self.folder / "markers.jsonl"
        self._markers = {marker.key: marker for marker in read_lines(markers, Marker)}
        self._marker_file = Lines(markers)
        self._event_file = Lines(self.folder / "events.jsonl")
        self._next_seq = max(self._store.last_seq + 1, record.next_seq)
        self._enter_epoch()
        for damage in self._store.verdict.damage:
            self._events.append(self._event("damage", damage))
        self._event_file.append(*self._events, sync=True)
        record.next_seq, record.closed = self._next_seq, False
        self._save_record()

    def _enter_epoch(self) -> None:
        last = self.record.epochs[-1]
        now = begin_epoch(last.epoch + 1, self._clock)
        self._epoch = last.epoch
        if now.boot_id == last.boot_id and now.mono_ns >= last.mono_ns:
            return
        self.record.epochs.append(now)
        self._epoch = now.epoch
        self._events.append(self._event("reboot", f"the clock of epoch {last.epoch} has ended"))
        if not self.record.closed:  # what was published after the last fsync is unknown
            first, self._next_seq = self._next_seq, self._next_seq + PUBLISHED_MAX
            skipped = f"power failed: numbers {first} to {self._next_seq - 1} are left out"
            self._events.append(self._event("numbers_skipped", skipped, PUBLISHED_MAX))

    def _save_record(self) -> None:
        replace(self.folder / "session.json", to_json(self.record))

    def take(self, arrival: Arrival) -> None:
        """Number an arrival and queue it for the disk; never waits."""
        if self._closing:
            return  # after the end
        a, at = arrival, arrival.stamp
        reading = Reading(
            self._next_seq, self._epoch, at.mono_ns, at.utc_ns, a.sensor_id, a.mode, a.value, a.temp_c, a.vin
        )
        self._next_seq += 1
        if len(self._waiting) >= WAITING_ROWS:
            if not self._overflowed:
                self.note("readings_dropped", f"memory is full; from seq {reading.seq} on they are lost")
            self._overflowed = True
            self.dropped += 1  # the hole in the numbers says where
            return
        self._overflowed = False
        self._waiting.append(reading)
        self._wake.set()

    async def mark(self, marker: Marker) -> tuple[Marker, bool]:
        """Write a marker among the rows; returns when it is on the disk.

        Returns:
            The marker as recorded, and whether it was new: a repeated key gives the first one.

        Raises:
            RecordingEnded: it came too late.
        """
        first = self._markers.get(marker.key)
        if first is not None:
            return first, False
        pending = self._marking.get(marker.key)
        if pending is not None:
            return await asyncio.shield(pending), False
        if self._closing:
            raise RecordingEnded(f"session {self.record.session_id} has ended")
        written = self._marking[marker.key] = asyncio.get_running_loop().create_future()
        placed = msgspec.structs.replace(marker, epoch=self._epoch, after_seq=self._next_seq - 1)
        self._waiting.append(placed)
        self._wake.set()
        return await asyncio.shield(written), True

    def note(self, kind: str, detail: str, count: int = 1) -> None:
        """Write a line into events.jsonl and tell the listener."""
        event = self._event(kind, detail, count)
        self._events.append(event)
        self._listener.event(event)
        self._wake.set()

    def _event(self, kind: str, detail: str, count: int = 1) -> Event:
        now = self._clock.stamp()
        return Event(kind, now.mono_ns, now.utc_ns, detail, count)

    def describe_sensor(self, instrument: Instrument) -> None:
        """Keep what the sensor says of itself with the recording."""
        self.record.sensor_id, self.record.sensor = instrument.sensor_id, instrument.describe()
        self._record_changed = True

    async def run(self) -> None:
        """Write what comes in until `stop`; cancelled, seal what is open and leave the rest to `resume`."""
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._close()
            await writing
            raise
        finally:
            await self._finish()
            self._ended.set()

    async def stop(self) -> None:
        """End the recording for ever; returns when its last chunk is sealed."""
        self._stopping = True
        self._close()
        await self._ended.wait()

    def _close(self) -> None:
        self._closing = True
        self._wake.set()

    async def _write(self) -> None:
        alarm = self._loop.call_later(SYNC_S, self._ask_to_sync)
        while not (self._closing and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            if batch and not await self._insist(self._append, batch):
                self._waiting[:0] = batch
                break
            if readings := [row for row in batch if isinstance(row, Reading)]:
                self._listener.rows(readings)
            markers = [row for row in batch if isinstance(row, Marker)]
            if markers or self._sync_asked:
                if not await self._insist(self._commit, markers):
                    break
                self._sync_asked = False
                alarm.cancel()
                alarm = self._loop.call_later(SYNC_S, self._ask_to_sync)
                self._tell_durable(markers)
            if self._store.roll_due(self._clock.mono_ns()) and not await self._insist(self._seal):
                break
        alarm.cancel()

    def _ask_to_sync(self) -> None:
        self._sync_asked = True
        self._wake.set()

    def _append(self, batch: list[Reading | Marker]) -> None:
        rows = [
            encode_row(row) if isinstance(row, Reading) else encode_marker_row(row, self.record.sensor_id)
            for row in batch
        ]
        seqs = [row.seq for row in batch if isinstance(row, Reading)]
        self._store.append(rows, seqs, self._clock.mono_ns())

    def _commit(self, markers: list[Marker]) -> None:
        self._store.sync()
        if markers:
            self._marker_file.append(*markers, sync=True)
        if self._record_changed:
            self._record_changed = False
            self._save_record()
        self._write_events()

    def _write_events(self) -> None:
        events = self._events[:]  # the loop may add to it meanwhile
        self._event_file.append(*events)
        del self._events[: len(events)]

    def _tell_durable(self, markers: list[Marker]) -> None:
        for marker in markers:
            self._markers[marker.key] = marker
            self._marking.pop(marker.key).set_result(marker)
            self._listener.marker(marker)
        self._listener.durable()

    def _seal(self) -> None:
        chunk = self._store.seal()
        if chunk is not None:
            self._loop.call_soon_threadsafe(self._listener.sealed, chunk)

    async def _insist(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Do disk work, again and again while the disk refuses; False if closing cuts that short."""
        started_ns = self._clock.mono_ns()
        while True:
            try:
                await self._disk.do(work, *args, **kwargs)
            except OSError as error:
                if not self.trouble:
                    self.note("disk_trouble", f"{error.strerror}: readings wait in memory until it ends")
                self.trouble = error.strerror or str(error)
                if self._closing and self._clock.mono_ns() - started_ns > CLOSE_S * 1e9:
                    return False
                await asyncio.sleep(RETRY_S)
            else:
                if self.trouble:
                    self.trouble = ""
                    self.note("disk_recovered", "readings are being written again")
                return True

    async def _finish(self) -> None:
        self._give_up_waiting()
        self.record.closed = await self._insist(self._seal)
        if self._stopping:
            self.record.state = "stopped"
            self.record.stopped_at = format_utc(self._clock.utc_ns())
        for work in (self._save_record, self._write_events):
            await self._insist(work)
        self._marker_file.close()
        self._event_file.close()
        self._disk.close()

    def _give_up_waiting(self) -> None:
        """What the disk would not take in time was never published: its numbers will be given out again."""
        if self._waiting:
            log.error("%d rows could not be written: %s", len(self._waiting), self.trouble)
            self.dropped += len(self._waiting)
        for written in self._marking.values():
            written.set_exception(RecordingEnded(f"the disk did not take it in time: {self.trouble}"))

    @property
    def open_chunk(self) -> OpenChunk | None:
        index = self._store.open_index
        return None if index is None else OpenChunk(index, open_name(index), self._store.durable_bytes)

    @property
    def chunks(self) -> list[Chunk]:
        """The sealed ones, oldest first."""
        return self._store.chunks

    @property
    def rows(self) -> int:
        """Rows that have reached the OS, markers included."""
        return self._store.rows

    @property
    def last_seq(self) -> int:
        return self._store.last_seq

    @property
    def durable_seq(self) -> int:
        return self._store.durable_seq
