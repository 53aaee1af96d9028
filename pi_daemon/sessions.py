"""Recordings on the Pi: at most one is open; every one on the disk can be found again."""

import asyncio
import logging
import re
import shutil
from pathlib import Path
from uuid import uuid4

from msgspec import Struct

from common.announcer import Announcer
from common.chunkstore import Manifest, verify
from common.clock import Clock
from common.files import read_json
from common.instrument import Arrival, Instrument
from common.messages import Chunk, Marker
from common.recorder import Recorder, RecordingEnded
from common.recording import OpenChunk, StreamRecord
from common.rows import format_utc
from common.service import Supervisor
from common.web import Refused
from pi_daemon.config import Config

log = logging.getLogger(__name__)

SESSION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
ROLE = "inwater"
RETRY_S = 1.0  # between attempts to resume on a disk that refuses


class SessionState(Struct, frozen=True):
    """Where one recording stands, open or long stopped."""

    record: StreamRecord
    chunks: list[Chunk]
    rows: int
    last_seq: int
    durable_seq: int
    open_chunk: OpenChunk | None
    trouble: str

    @property
    def recording(self) -> bool:
        return self.record.state == "recording"


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
        self._changing = asyncio.Lock()
        self._resume_trouble = ""

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
    def trouble(self) -> str:
        """Why rows are not reaching the disk, "" when they are."""
        return self._recorder.trouble if self._recorder else self._resume_trouble

    async def resume(self) -> None:
        """Go on with the recording that a restart interrupted, if there is one."""
        for path in sorted(self.folder.glob("*/session.json")):
            try:
                record = read_json(path, StreamRecord)
            except ValueError as error:
                log.error("not resumed: %s", error)
                continue
            if record is not None and record.state == "recording":
                if not await self._try_resume(path.parent):
                    self._supervisor.start("resume", self._resume_later(path.parent))
                return

    async def _resume_later(self, folder: Path) -> None:
        """A disk that refuses now may be mended while we serve."""
        while True:
            await asyncio.sleep(RETRY_S)
            async with self._changing:
                if self._recorder is not None or await self._try_resume(folder):
                    return

    async def _try_resume(self, folder: Path) -> bool:
        """False if the disk refuses; a recording that is damaged is left alone, and said so."""
        try:
            self._begin(await Recorder.resume(folder, self._clock, self._announcer))
        except ValueError as error:
            log.error("not resumed: %s", error)
        except OSError as error:
            if not self._resume_trouble:
                log.error("session %s waits to be resumed: %s", folder.name, error.strerror)
            self._resume_trouble = f"session {folder.name} cannot be resumed: {error.strerror}"
            return False
        self._resume_trouble = ""
        return True

    async def start(
        self, session_id: str | None, mission: str, rate_hz: int, schema_version: int, roll_s: float
    ) -> StreamRecord:
        """Open a recording; asked again with the id that is already recording, answer that one.

        Raises:
            Refused: 424 no sensor, 409 another recording is open or the id was used, 507 disk full.
        """
        async with self._changing:
            if self._recorder is not None:
                if self._recorder.record.session_id == session_id:
                    return self._recorder.record
                raise Refused(
                    409, f"already recording session {self._recorder.record.session_id}: stop it first"
                )
            self._check_ready()
            if session_id is not None and await self._take_up_again(session_id):
                return self._recorder_in_charge().record
            record = StreamRecord(
                session_id=session_id or str(uuid4()),
                mission=mission,
                role=ROLE,
                started_at=format_utc(self._clock.utc_ns()),
                roll_interval_s=min(max(roll_s, 1.0), self._config.recording.roll_interval_s),
                rate_hz=rate_hz,
                schema_version=schema_version,
                sensor_id=self._instrument.sensor_id,
                sensor=self._instrument.describe(),
                simulated_clock=self._config.simulation.active,
            )
            folder = self.folder / record.session_id
            self._begin(await Recorder.create(folder, record, self._clock, self._announcer))
            return record

    async def _take_up_again(self, session_id: str) -> bool:
        """Whether a start that failed half-way left this recording, which is then resumed.

        Raises:
            Refused: 409, it was stopped before.
        """
        folder = self.folder / session_id
        record = await asyncio.to_thread(read_json, folder / "session.json", StreamRecord)
        if record is None:
            return False
        if record.state != "recording":
            raise Refused(409, f"session {session_id} was recorded before: start a new one")
        self._begin(await Recorder.resume(folder, self._clock, self._announcer))
        return True

    def _recorder_in_charge(self) -> Recorder:
        assert self._recorder is not None
        return self._recorder

    def _check_ready(self) -> None:
        if self._resume_trouble:
            raise Refused(409, self._resume_trouble)
        if not self._instrument.connected:
            raise Refused(424, f"Not connected: {self._instrument.health().detail}")
        free_mb = shutil.disk_usage(self.folder).free / 1e6
        if free_mb < self._config.recording.min_free_mb:
            raise Refused(507, f"only {free_mb:.0f} MB free on {self.folder}: free some space first")

    def _begin(self, recorder: Recorder) -> None:
        self._recorder = self._announcer.recorder = recorder
        self._instrument.remember(recorder.record.sensor)
        self._supervisor.start("recorder", recorder.run())
        log.info("recording session %s", recorder.record.session_id)

    async def stop(self, session_id: str) -> SessionState:
        """End a recording for ever.

        Raises:
            Refused: 404 unknown, 400 not recording.
        """
        async with self._changing:
            recorder = await self._recording(session_id)
            await recorder.stop()
            self._recorder = self._announcer.recorder = None
            log.info("stopped session %s", session_id)
            return _state_of(recorder)

    async def mark(self, session_id: str, marker: Marker) -> tuple[Marker, bool]:
        """Write a marker; returns it as recorded, on the disk, and whether it was new.

        Raises:
            Refused: 404 unknown, 400 not recording.
        """
        recorder = await self._recording(session_id)
        try:
            return await recorder.mark(marker)
        except RecordingEnded as error:
            raise Refused(400, str(error)) from None

    async def _recording(self, session_id: str) -> Recorder:
        if self._recorder is not None and self._recorder.record.session_id == session_id:
            return self._recorder
        await self.find(session_id)
        raise Refused(400, f"session {session_id} is not recording")

    async def find(self, session_id: str) -> SessionState:
        """Any recording, by id.

        Raises:
            Refused: 404 unknown.
        """
        if self._recorder is not None and self._recorder.record.session_id == session_id:
            return _state_of(self._recorder)
        if SESSION_ID.fullmatch(session_id):
            try:
                state = await asyncio.to_thread(_load, self.folder / session_id)
            except ValueError as error:
                raise Refused(404, f"session {session_id} cannot be read: {error}") from None
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
    )


def _load(folder: Path) -> SessionState | None:
    record = read_json(folder / "session.json", StreamRecord)
    if record is None:
        return None
    try:
        manifest = read_json(folder / "manifest.json", Manifest)
    except ValueError:
        manifest = None  # a cache
    chunks = manifest.chunks if manifest else verify(folder).chunks
    last_seq = max((chunk.last_seq for chunk in chunks if chunk.last_seq is not None), default=-1)
    return SessionState(record, chunks, sum(chunk.rows for chunk in chunks), last_seq, last_seq, None, "")
