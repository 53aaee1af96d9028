"""Recordings on the Pi: at most one is open; every one on the disk can be found again."""

import asyncio
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from msgspec import Struct

from common.announcer import Announcer
from common.chunkstore import chunk_files, scan
from common.clock import Clock
from common.disk import Disk
from common.files import read_json, why
from common.instrument import Arrival, Instrument
from common.messages import Marker
from common.recorder import Recorder, RecordingEnded
from common.recording import Sequel, StreamRecord
from common.rows import format_utc
from common.service import Supervisor
from common.unfinished import Unfinished
from common.web import Refused
from pi_daemon.config import Config
from pi_daemon.lease import Lease
from pi_daemon.shelf import ROLE, SESSION_ID, SessionState, Shelf, newest

log = logging.getLogger(__name__)

RETRY_S = 1.0  # between attempts to resume on a disk that refuses


class Wish(Struct, frozen=True):
    """What a recording that is to be started shall be.

    session_id: None for a new one. roll_s: longest a chunk stays open. holder: who may end it, None for
    anybody. sequel: None for one that begins.
    """

    session_id: str | None
    mission: str
    rate_hz: int
    schema_version: int
    roll_s: float
    holder: str | None
    sequel: Sequel | None = None


class Sessions:
    """Starts, stops, resumes and finds recordings below one data folder."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        announcer: Announcer,
        supervisor: Supervisor,
        instrument: Instrument,
    ) -> None:
        self.folder = Path(config.data)
        self._config = config
        self._clock = clock
        self._announcer = announcer
        self._supervisor = supervisor
        self._instrument = instrument
        self._recorder: Recorder | None = None
        self._lease: Lease | None = None
        self._changing = asyncio.Lock()
        self._resume_trouble = ""
        self._unreadable = ""  # why a recording is left alone that should be going on
        self._disk, self._lookups = Disk("sessions"), Disk("lookups")  # looking holds up no start and no stop
        self._shelf = Shelf(self.folder)
        self._unfinished = Unfinished(self.folder, self._look_for_unfinished)

    @property
    def recorder(self) -> Recorder | None:
        """The open recording."""
        return self._recorder

    def take(self, arrival: Arrival) -> None:
        """Record an arrival, or just show it when nothing is being recorded."""
        if self._recorder is not None:
            self._recorder.take(arrival)
        else:
            self._announcer.idle(arrival)

    @property
    def events(self) -> dict[str, int]:
        """What happened since the start, by kind."""
        return dict(self._announcer.events)

    @property
    def trouble(self) -> str:
        """Why rows are not reaching the disk, "" when they are."""
        return self._recorder.trouble if self._recorder else self._resume_trouble or self._unreadable

    def _look_for_unfinished(self) -> list[str]:
        found = []
        for path in self.folder.glob("*/session.json"):
            try:
                record = read_json(path, StreamRecord)
            except ValueError as error:
                log.error("not resumed: %s", error)
                continue
            if record is not None and record.state == "recording":
                found.append(path.parent.name)
        return found

    async def resume(self) -> None:
        """Go on with the recording that a restart interrupted, if there is one."""
        try:
            names = await self._disk.do(self._unfinished.names)
        except OSError as error:
            self._wait_for_disk(f"recordings in {self.folder}", error)
            self._supervisor.start("resume", self._resume_later(None))
            return
        for name in names:
            folder = self.folder / name
            if not await self._try_resume(folder):
                self._supervisor.start("resume", self._resume_later(folder))
            if self._recorder is not None or self._resume_trouble:
                return

    def _wait_for_disk(self, what: str, error: OSError) -> None:
        if not self._resume_trouble:
            log.error("%s cannot be resumed yet: %s", what, why(error))
        self._resume_trouble = f"{what} cannot be resumed: {why(error)}"

    async def _resume_later(self, folder: Path | None) -> None:
        """A disk that refuses now may be mended while we serve."""
        while True:
            await asyncio.sleep(RETRY_S)
            async with self._changing:
                if folder is None:
                    self._resume_trouble = ""
                    return await self.resume()
                if self._recorder is not None or await self._try_resume(folder):
                    return None

    async def _try_resume(self, folder: Path) -> bool:
        """False if the disk refuses; a recording that is damaged is left alone, and said so."""
        try:
            record = await self._disk.do(read_json, folder / "session.json", StreamRecord)
            if record is None or record.state != "recording":  # a start or a stop that was cut short
                await self._disk.do(self._unfinished.remove, folder.name)
            else:
                self._begin(await self._resumed(folder))
        except ValueError as error:
            log.error("not resumed: %s", error)
            self._unreadable = f"session {folder.name} is not resumed: {error}"
        except OSError as error:
            self._wait_for_disk(f"session {folder.name}", error)
            return False
        self._resume_trouble = ""
        return True

    async def _resumed(self, folder: Path) -> Recorder:
        sync_s = self._config.recording.sync_interval_s
        return await Recorder.resume(folder, self._clock, self._announcer, sync_s)

    async def start(self, wish: Wish) -> StreamRecord:
        """Open a recording; asked again with the id that is already recording, answer that one.

        Raises:
            Refused: 424 no sensor, 409 another recording is open or the id was used, 507 disk full.
            OSError: the disk refuses.
        """
        async with self._changing:
            await self._stop_abandoned()
            if self._recorder is not None:
                if self._recorder.record.session_id == wish.session_id:
                    return self._recorder.record
                raise Refused(409, f"already recording: {self._lease}: stop it first")
            await self._check_ready()
            session_id = wish.session_id or str(uuid4())
            folder = self.folder / session_id
            if not await self._is_new(folder):
                self._begin(await self._resumed(folder))
            else:
                await self._disk.do(self._unfinished.add, session_id)
                record = self._new_record(session_id, wish)
                sync_s = self._config.recording.sync_interval_s
                self._begin(await self._created(folder, record, sync_s))
            assert self._recorder is not None
            return self._recorder.record

    async def _created(self, folder: Path, record: StreamRecord, sync_s: float) -> Recorder:
        """A new recording; one that the disk refuses leaves nothing behind that would be taken up unasked."""
        try:
            return await Recorder.create(folder, record, self._clock, self._announcer, sync_s)
        except OSError:
            with suppress(OSError):
                await self._disk.do(_remove_rowless, folder)
                await self._disk.do(self._unfinished.remove, folder.name)
            raise

    async def _is_new(self, folder: Path) -> bool:
        """False if a start that failed half-way has left this recording, which is then to be resumed.

        Raises:
            Refused: 409, it was stopped before.
        """
        try:
            record = await self._disk.do(read_json, folder / "session.json", StreamRecord)
        except ValueError as error:
            raise Refused(409, f"session {folder.name} cannot be read: {error}: start a new one") from None
        if record is not None and record.state != "recording":
            raise Refused(409, f"session {folder.name} was recorded before: start a new one")
        return record is None

    def _new_record(self, session_id: str, wish: Wish) -> StreamRecord:
        return StreamRecord(
            session_id=session_id,
            mission=wish.mission,
            role=ROLE,
            started_at=format_utc(self._clock.utc_ns()),
            roll_interval_s=min(max(wish.roll_s, 1.0), self._config.recording.roll_interval_s),
            rate_hz=wish.rate_hz,
            schema_version=wish.schema_version,
            sensor_id=self._instrument.sensor_id,
            sensor=self._instrument.describe(),
            simulated_clock=self._config.simulation.active,
            holder=wish.holder,
            next_seq=wish.sequel.next_seq if wish.sequel else 0,
            next_chunk=wish.sequel.next_chunk if wish.sequel else 0,
            epochs=list(wish.sequel.epochs) if wish.sequel else [],
        )

    async def _check_ready(self) -> None:
        if self._resume_trouble:
            raise Refused(409, self._resume_trouble)
        if not self._instrument.connected:
            raise Refused(424, f"Not connected: {self._instrument.health().detail}")
        free_mb = (await self._disk.do(shutil.disk_usage, self.folder)).free / 1e6
        if free_mb < self._config.recording.min_free_mb:
            raise Refused(507, f"only {free_mb:.0f} MB free on {self.folder}: free some space first")

    def _begin(self, recorder: Recorder) -> None:
        record = recorder.record
        self._recorder = self._announcer.recorder = recorder
        self._lease = Lease(record.session_id, record.holder, self._clock)
        self._instrument.remember(record.sensor)
        self._supervisor.start("recorder", recorder.run())
        log.info("recording session %s", record.session_id)

    async def stop(self, session_id: str, caller: str | None, force: bool) -> SessionState:
        """End a recording for ever.

        Raises:
            Refused: 404 unknown, 400 not recording, 409 held by somebody else.
            OSError: the disk does not take what is in memory; the recording goes on.
        """
        async with self._changing:
            recorder = await self._steered(session_id, caller, force)
            await self._end(recorder)
            return _state_of(recorder)

    async def _end(self, recorder: Recorder) -> None:
        session_id = recorder.record.session_id
        await recorder.stop()
        self._recorder = self._announcer.recorder = self._lease = None
        with suppress(OSError):  # it is found stopped at the next start
            await self._disk.do(self._unfinished.remove, session_id)
        log.info("stopped session %s", session_id)

    async def _stop_abandoned(self) -> None:
        """End the recording of an old client that is gone, now that another is to begin."""
        if self._recorder is not None and self._lease is not None and self._lease.abandoned:
            self._recorder.note("abandoned", "nobody holds it, and nobody asks about it any more")
            await self._end(self._recorder)

    def heard(self, session_id: str, caller: str | None) -> None:
        """Somebody looks how a recording goes: its holder is alive."""
        if self._lease is not None and self._is_recording(session_id):
            self._lease.heard(caller)

    def _is_recording(self, session_id: str) -> bool:
        return self._recorder is not None and self._recorder.record.session_id == session_id

    async def mark(self, session_id: str, marker: Marker, caller: str | None) -> tuple[Marker, bool]:
        """Write a marker; returns it as recorded, on the disk, and whether it was new.

        Anybody's markers are kept, apart by their ids.

        Raises:
            Refused: 404 unknown, 400 not recording.
        """
        recorder = await self._recording(session_id)
        self.heard(session_id, caller)
        try:
            return await recorder.mark(marker)
        except RecordingEnded as error:
            raise Refused(400, str(error)) from None

    async def _steered(self, session_id: str, caller: str | None, force: bool) -> Recorder:
        recorder = await self._recording(session_id)
        if self._lease is not None:
            before = self._lease.holder
            if self._lease.check(caller, force):
                recorder.note("taken_over", f"held by {before}, now by {caller or 'nobody'}")
        return recorder

    async def _recording(self, session_id: str) -> Recorder:
        if self._recorder is not None and self._is_recording(session_id):
            self.heard(session_id, None)
            return self._recorder
        await self.find(session_id)
        raise Refused(400, f"session {session_id} is not recording")

    async def listed(self, most: int) -> list[StreamRecord]:
        """The newest recordings, open or stopped, at most so many."""
        return await self._lookups.do(newest, self.folder, most)

    async def find(self, session_id: str) -> SessionState:
        """Any recording, by id.

        Raises:
            Refused: 404 unknown.
        """
        if self._recorder is not None and self._is_recording(session_id):
            self.heard(session_id, None)
            return _state_of(self._recorder)
        if SESSION_ID.fullmatch(session_id):
            try:
                state = await self._lookups.do(self._shelf.load, session_id)
            except ValueError as error:  # not 404: it is there
                raise Refused(409, f"session {session_id} cannot be read: {error}") from None
            if state is not None:
                return state
        raise Refused(404, f"unknown session {session_id!r}")


def _state_of(recorder: Recorder) -> SessionState:
    return SessionState(
        record=recorder.record,
        chunks=recorder.chunks,
        rows=recorder.rows,
        last_seq=recorder.last_seq,
        durable_seq=recorder.durable_seq,
        open_chunk=recorder.open_chunk,
        trouble=recorder.trouble,
        dropped=recorder.dropped,
    )


def _remove_rowless(folder: Path) -> None:
    """Remove what a start that failed has left, if no row is in it."""
    if folder.is_dir() and all(scan(path.read_bytes()).rows == 0 for _, path in chunk_files(folder)):
        shutil.rmtree(folder)
