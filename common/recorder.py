"""Arrivals in, numbered rows on disk, readings out: the same on both sides.

A row reaches the OS before anybody is told of it, so a number is never used twice. Disk work runs on two
threads of its own, because a card may take seconds to sync; the event loop only moves lists.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from common.chunkstore import ChunkStore, open_name
from common.clock import Clock, begin_epoch
from common.disk import Disk
from common.files import Lines, Reserve, is_full, make_folder, read_json, replace, why
from common.gaps import GapWatch
from common.insistence import Insistence
from common.instrument import Arrival, Instrument
from common.markerbook import MarkerBook
from common.messages import Chunk, Event, Marker, Reading, to_json
from common.recording import Listener, OpenChunk, StreamRecord
from common.recovery import last_reading, set_aside_untold
from common.rows import encode_marker_row, encode_row, format_utc

SYNC_S = 0.8  # between syncs: with a quick disk no row is exposed to a power cut for longer than a second
WAITING_ROWS = 60_000  # kept in memory while the disk refuses: four minutes at 250 readings/s
PUBLISHED_MAX = 10_000  # readings that may have been published but not fsynced when power failed
CLOSE_S = 1.2  # how long a closing or stopping recorder waits for a disk that refuses
FLUSH_LOOK_S = 0.02
RESERVE = ".reserve"


class RecordingEnded(Exception):
    """The recorder has been stopped or closed: nothing can be written any more."""


class DiskRefuses(OSError):
    """The disk does not take what waits in memory; the recording goes on."""


class Recorder:
    """Records one stream into one folder until stopped (for ever) or closed (to be resumed)."""

    def __init__(
        self, folder: Path, record: StreamRecord, clock: Clock, listener: Listener, sync_s: float | None
    ) -> None:
        """Not called directly: see `create` and `resume`."""
        self.folder = folder
        self.record = record
        self.dropped = 0
        self._turns = 0
        self._clock = clock
        self._listener = listener
        self.sync_s = sync_s
        self._disk, self._syncer = Disk("disk"), Disk("sync")
        self._reserve = Reserve(folder / RESERVE)
        self._insistence = Insistence(clock, self.note, self._reserve.release, "readings")
        self._last_taken = -1
        self._waiting: list[Reading | Marker] = []
        self._book = MarkerBook(folder)
        self._events: list[Event] = []
        self._events_written = False  # and not yet synced
        self._wake, self._sync_now = asyncio.Event(), asyncio.Event()
        self._appending, self._syncing = asyncio.Lock(), asyncio.Lock()  # the first within the second
        self._loop = asyncio.get_running_loop()
        self._closing = self._stopping = False
        self._ended = asyncio.Event()
        self._record_changed = self._resumes = False
        self._open_files: list[Callable[[], None]] = []
        self._epochs_before = list(record.epochs)
        self._after: list[Arrival] = []  # came while a stop was under way
        self._refusal: DiskRefuses | None = None  # why the last stop came to nothing
        self._overflow: int | None = None  # the first number that found no room in memory
        self._gaps = GapWatch()
        self._before: Reading | None = None  # the last one of the run before this one
        self._epoch = 0
        self._next_seq = 0

    @classmethod
    async def create(
        cls, folder: Path, record: StreamRecord, clock: Clock, listener: Listener, sync_s: float | None = None
    ) -> "Recorder":
        """Begin a new recording in *folder*.

        Args:
            sync_s: between syncs, None for the default.

        Raises:
            OSError: the disk refuses.
        """
        number = record.epochs[-1].epoch + 1 if record.epochs else 0
        record.epochs = [*record.epochs, begin_epoch(number, clock)]
        recorder = cls(folder, record, clock, listener, sync_s)
        try:
            await recorder._disk.do(make_folder, folder)
            await recorder._disk.do(recorder._save_record)  # first, so that a start cut short can be taken up
            await recorder._begin()
        except OSError:
            recorder._let_go()
            raise
        return recorder

    @classmethod
    async def resume(
        cls, folder: Path, clock: Clock, listener: Listener, sync_s: float | None = None
    ) -> "Recorder":
        """Go on with the recording in *folder* after a restart of the daemon or of the machine.

        Raises:
            ValueError: session.json is missing or damaged.
            OSError: the disk refuses.
        """
        record = await asyncio.to_thread(read_json, folder / "session.json", StreamRecord)
        if record is None or not record.epochs:
            raise ValueError(f"{folder}: no session.json, or one without its clock's epochs")
        recorder = cls(folder, record, clock, listener, sync_s)
        recorder._resumes = True
        try:
            await recorder._begin()
        except OSError:
            recorder._let_go()
            raise
        return recorder

    def _let_go(self) -> None:
        """Give back the threads; what is open is closed with them."""
        self._disk.post(self._close_files)
        self._disk.close()
        self._syncer.close()

    def _close_files(self) -> None:
        for close in self._open_files:
            with suppress(OSError):
                close()
        self._open_files.clear()

    async def _begin(self) -> None:
        try:
            await self._disk.do(self._open)
        except OSError as error:  # on a full disk, what was held back for the end lets it begin
            if not is_full(error) or not await self._disk.do(self._reserve.release):
                raise
            await self._disk.do(self._open)
        events, self._events = self._events, []
        for event in events:
            self._listener.event(event)

    def _open(self) -> None:
        record = self.record
        self._close_files()  # of a try before this one
        self._events, record.epochs = [], list(self._epochs_before)
        self._store = ChunkStore(
            self.folder, record.session_id, record.started_at, record.roll_interval_s, record.next_chunk
        )
        self._open_files.append(self._store.close)
        self._before = last_reading(self.folder, self._store.chunks)
        self._book.load()
        self._open_files.append(self._book.close)
        events = self.folder / "events.jsonl"
        self._event_file = Lines(events)
        self._open_files.append(self._event_file.close)
        self._next_seq = max(self._store.last_seq + 1, record.next_seq)
        self._enter_epoch()
        told = events.read_bytes() + "\n".join(self._store.verdict.damage).encode()
        for damage in [*self._store.verdict.damage, *set_aside_untold(self.folder, told)]:
            self._events.append(self._event("damage", damage))
        self._complete_markers()
        if self._resumes:
            end = "had ended in order" if record.closed else "had been killed"
            resumed = f"after seq {self._next_seq - 1}: the recording {end}"
            self._events.append(self._event("resumed", resumed))
        self._event_file.append(*self._events, sync=True)
        record.next_seq, record.closed = self._next_seq, False
        self._save_record()
        with suppress(OSError):  # it is only for the end
            self._reserve.take()

    def _complete_markers(self) -> None:
        last_seq = self._store.last_seq  # beyond it, readings were lost with the row
        missing = [
            msgspec.structs.replace(marker, after_seq=min(marker.after_seq, last_seq))
            for marker in self._book.without_row(self._store.chunks)
        ]
        if missing:
            self._book.amend(missing)
            rows = [encode_marker_row(marker, self.record.sensor_id) for marker in missing]
            self._store.append(rows, [], self._clock.mono_ns())
            self._events.append(self._event("markers_completed", "their rows were missing", len(missing)))

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
            if self._stopping and len(self._after) < WAITING_ROWS:
                self._after.append(arrival)
            return  # after the end, unless the disk refuses that
        a, at = arrival, arrival.stamp
        reading = Reading(
            self._next_seq, self._epoch, at.mono_ns, at.utc_ns, a.sensor_id, a.mode, a.value, a.temp_c, a.vin
        )
        self._next_seq += 1
        away_s = self._gaps.take(at.mono_ns)
        if self._before is not None:
            self._tell_gap(self._before, reading)
        elif away_s is not None:
            self.note("gap", f"no reading for {away_s:.3f} s before seq {reading.seq}: see what came before")
        if len(self._waiting) >= WAITING_ROWS:
            self._drop(reading)
            return
        self._tell_dropped(reading.seq - 1)
        self._last_taken = reading.seq
        self._waiting.append(reading)
        self._wake.set()

    def _tell_gap(self, before: Reading, first: Reading) -> None:
        """Say how long nothing was recorded around a restart."""
        self._before = None
        if first.epoch == before.epoch:
            away_s, clock = (first.mono_ns - before.mono_ns) / 1e9, ""
        else:
            away_s, clock = (first.utc_ns - before.utc_ns) / 1e9, " by the wall clock"
        self.note("gap", f"no reading for {away_s:.3f} s{clock}, seq {before.seq} to {first.seq}: a restart")

    def _drop(self, reading: Reading) -> None:
        if self._overflow is None:
            self._overflow = reading.seq
            self.note("memory_full", f"readings are being lost, from seq {reading.seq} on")
        self.dropped += 1  # the hole in the numbers says where

    def _tell_dropped(self, last: int) -> None:
        if self._overflow is not None:
            first, self._overflow = self._overflow, None
            self.note("readings_dropped", f"seq {first} to {last}: memory was full", last - first + 1)

    async def mark(self, marker: Marker) -> tuple[Marker, bool]:
        """Write a marker among the rows; returns when it is on the disk.

        Returns:
            The marker as recorded, and whether it was new: a repeated key gives the first one.

        Raises:
            RecordingEnded: it came too late.
        """
        first, pending = self._book.recorded(marker.key), self._book.waited_for(marker.key)
        if first is not None:
            return first, False
        if pending is not None:
            return await asyncio.shield(pending), False
        if self._closing:
            raise RecordingEnded(f"session {self.record.session_id} has ended")
        placed = msgspec.structs.replace(marker, epoch=self._epoch, after_seq=self._next_seq - 1)
        answer = self._book.ask(placed)
        self._sync_now.set()
        return await asyncio.shield(answer), True

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
        ended = False
        while not ended:
            writing = asyncio.create_task(self._write())
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                self._stopping = False
                self._close()
                await writing
                raise
            finally:
                ended = await self._finish()
                self._ended.set()
            if not ended:
                self._go_on()
        self._release()

    async def stop(self) -> None:
        """End the recording for ever; returns when its last chunk is sealed and all of it is on the disk.

        Raises:
            DiskRefuses: the disk does not take it; the recording goes on.
        """
        if not self._closing:
            await self._flush()
        self._stopping, self._refusal = True, None
        self._close()
        await self._ended.wait()
        if self._refusal is not None:
            raise self._refusal

    def _go_on(self) -> None:
        """The disk has refused the end: it has not come, and what came meanwhile is recorded."""
        self._refusal = DiskRefuses(self._insistence.errno, self.trouble)
        self._closing = self._stopping = False
        self._record_changed = True  # whatever the disk has of it by now
        self._ended.clear()
        self._insistence.go_on()
        after, self._after = self._after, []
        for arrival in after:
            self.take(arrival)

    async def _flush(self) -> None:
        """Until all that has been taken by now is durable."""
        taken, deadline_ns = self._last_taken, self._clock.mono_ns() + round(CLOSE_S * 1e9)
        self._insistence.hurry()
        while self.durable_seq < taken or not self._book.idle:
            self._sync_now.set()
            if self.trouble and self._clock.mono_ns() > deadline_ns:
                self._insistence.go_on()
                raise DiskRefuses(self._insistence.errno, self.trouble)
            await asyncio.sleep(FLUSH_LOOK_S)

    def _close(self) -> None:
        self._closing = True
        self._insistence.hurry(CLOSE_S)
        self._wake.set()

    async def _write(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._append_all(), name="append")
            group.create_task(self._sync_all(), name="sync")

    async def _append_all(self) -> None:
        while not (self._closing and not self._waiting):
            await self._wake.wait()
            self._wake.clear()
            self._turns += 1
            batch, self._waiting = self._waiting, []
            if self._events:  # what they tell must not be lost while the rows behind it are kept
                await self._insistence.do(self._disk, self._write_events)
            if batch and not await self._append(batch):
                self._waiting[:0] = batch
                break
            if self._store.roll_due(self._clock.mono_ns()) and not await self._roll():
                break
        self._closing = True
        self._sync_now.set()

    async def _append(self, batch: list[Reading | Marker]) -> bool:
        sensor_id = self.record.sensor_id
        rows = [encode_row(r) if isinstance(r, Reading) else encode_marker_row(r, sensor_id) for r in batch]
        readings = [row for row in batch if isinstance(row, Reading)]
        seqs, now_ns = [reading.seq for reading in readings], self._clock.mono_ns()
        async with self._appending:
            if not await self._insistence.do(self._disk, lambda: self._store.append(rows, seqs, now_ns)):
                return False
        if readings:
            self._listener.rows(readings)
        if len(readings) < len(batch):
            self._book.written([row for row in batch if isinstance(row, Marker)])
            self._sync_now.set()
        return True

    async def _sync_all(self) -> None:
        """Sync when it is time, and at once for a marker; appending goes on meanwhile."""
        due_s = self._loop.time() + (self.sync_s or SYNC_S)
        while not self._closing:
            try:
                async with asyncio.timeout_at(due_s):
                    await self._sync_now.wait()
            except TimeoutError:
                pass
            self._sync_now.clear()
            due_s = self._loop.time() + (self.sync_s or SYNC_S)
            self._wake.set()  # a chunk may be due to be rolled though nothing comes in
            async with self._syncing:
                if not await self._commit():
                    break

    async def _commit(self) -> bool:
        """Make durable what has been appended; within `_syncing`."""
        new = self._book.take_new()
        if new and not await self._insistence.do(self._syncer, lambda: self._book.enter(new)):
            self._book.put_back(new)
            return False
        self._waiting += new
        self._wake.set()
        markers = self._book.take_written()
        if not await self._sync_rows() or not await self._insistence.do(self._syncer, self._keep):
            return False
        self._book.answer(markers)
        for marker in markers:
            self._listener.marker(marker)
        self._listener.durable()
        return True

    async def _sync_rows(self) -> bool:
        try:
            await self._syncer.do(self._store.sync)
        except OSError as error:
            self.note("sync_failed", f"{why(error)}: rows since the last sync are written again")
            async with self._appending:
                again = self._store.begin_again
                return await self._insistence.do(self._disk, lambda: again(self._clock.mono_ns()))
        return True

    def _keep(self) -> None:
        if self._record_changed:
            self._save_record()
            self._record_changed = False
        if self._events_written:
            self._event_file.append(sync=True)
            self._events_written = False

    def _write_events(self) -> None:
        events = self._events[:]  # the loop may add to it meanwhile
        self._event_file.append(*events)
        del self._events[: len(events)]
        self._events_written = True

    async def _roll(self) -> bool:
        """Seal the open chunk."""
        async with self._syncing:
            return await self._sync_rows() and await self._insistence.do(self._disk, self._seal)

    def _seal(self) -> None:
        chunk = self._store.seal()
        if chunk is not None:
            self._loop.call_soon_threadsafe(self._listener.sealed, chunk)

    async def _finish(self) -> bool:
        """Write all there is; False if a stop must not be, because the disk does not take that."""
        if self._stopping and self._waiting:
            return False
        markers: list[Reading | Marker] = [row for row in self._waiting if isinstance(row, Marker)]
        self._give_up_waiting()
        self._tell_dropped(self._next_seq - 1)
        if markers:
            await self._append(markers)
        async with self._syncing:
            kept = await self._commit() and await self._insistence.do(self._disk, self._seal)
        kept = kept and await self._insistence.do(self._disk, self._store.finish)
        record, state = self.record, self.record.state
        record.closed = kept
        if self._stopping and kept:
            record.state, record.stopped_at = "stopped", format_utc(self._clock.utc_ns())
        for work in (self._save_record, self._write_events, self._keep):
            kept = await self._insistence.do(self._disk, work) and kept
        if self._stopping and not kept:
            record.state, record.stopped_at, record.closed = state, None, False
            return False
        self._book.refuse(RecordingEnded(self.trouble or "the recording ended before it was written"))
        return True

    def _release(self) -> None:
        if self.record.state == "stopped":
            self._disk.post(self._give_back)
        self._let_go()

    def _give_back(self) -> None:
        with suppress(OSError):
            self._reserve.release()

    def _give_up_waiting(self) -> None:
        """What the disk would not take in time was never published: its numbers will be given out again."""
        readings = [row for row in self._waiting if isinstance(row, Reading)]
        if readings:
            self.dropped += len(readings)
            lost = f"seq {readings[0].seq} to {readings[-1].seq}: {self.trouble}"
            self.note("readings_lost", lost, len(readings))
        self._waiting.clear()

    @property
    def trouble(self) -> str:
        """Why rows are waiting in memory, and the cure; "" when they are not."""
        return self._insistence.trouble

    @property
    def turns(self) -> int:
        """Grows as long as writing makes progress, or tries to."""
        return self._turns + self._insistence.attempts

    @property
    def waiting(self) -> int:
        """Rows that the disk has not taken yet."""
        return len(self._waiting)

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
