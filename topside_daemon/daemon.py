"""The topside daemon's parts, put together."""

import asyncio
import logging
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from common import VERSION
from common.announcer import Announcer
from common.bus import STATUS, SURFACE, Publisher
from common.clock import ClockWatch, SystemClock, machine_id
from common.disk import Disk
from common.files import read_json, why
from common.guard import Guard, check_exposure
from common.instrument import Arrival, Instrument
from common.keys import Wallet
from common.messages import PROTOCOL, ChunkFrame, Reading, ReadingFrame, StatusFrame
from common.metrics import Metric, counts, gauge, stream_metrics
from common.recorder import RecordingEnded
from common.room import RoomWatch
from common.service import Pulse, Supervisor, notify, take_folder, watchdog
from common.unfinished import Unfinished
from common.web import Refused
from topside_daemon.api import Api
from topside_daemon.config import Config
from topside_daemon.deck import Deck, View
from topside_daemon.links import Links
from topside_daemon.live import Live
from topside_daemon.oldpi import EitherPi
from topside_daemon.pi import Pi, PiError
from topside_daemon.pibus import PiBus
from topside_daemon.products import SessionRecord
from topside_daemon.session import Session
from topside_daemon.versions import compare
from topside_daemon.watchers import Watchers

log = logging.getLogger(__name__)

FINAL = ("complete", "damaged")  # states in which nothing is left to do
STATUS_S = 1.0
ROOM_S = 60  # between looks at the room on the disk
TICK_S = 0.1  # between looks at what the live fuser can settle
KNOW_S = 0.5  # how long a start waits to learn which Pi it is
RESUME_S = 2.0  # between attempts to go on with a session on a disk that refuses


class Daemon:
    """Runs sessions: the surface sensor here, the in-water one through the Pi."""

    def __init__(self, config: Config, supervisor: Supervisor) -> None:
        """Take the data folder and the bus address.

        Raises:
            FolderInUse: another daemon has the data folder.
            ConfigError: the folder or the bus address cannot be had, or may not, for security's sake.
        """
        config = config.located()
        check_exposure(config.security, http=config.http, bus=config.bus)
        self._config = config
        self._supervisor = supervisor
        self._clock = SystemClock()
        self._folder = Path(config.data)
        take_folder(self._folder)
        self._publisher = Publisher(config.bus)
        self._watchers = Watchers(self._brief)
        self._live = Live(self._clock, self._publisher, self._watchers)
        self._announcer = _Surface(self._publisher, self._clock, self._live)
        self._pi = EitherPi(config.pi, self._clock, Wallet(self._folder)) if config.pi else None
        self._instrument: Instrument | None = None
        if config.serial.port is not None:
            self._instrument = Instrument(
                config.serial, self._clock, self._take, self._note, lambda: self._announcer.recorder is None
            )
        links = Links(self._folder)
        self._unfinished = Unfinished(self._folder, self._look_for_unfinished)
        self._deck = Deck(
            config,
            self._clock,
            self._pi,
            self._instrument,
            self._announcer,
            links,
            machine_id(),
            self._unfinished,
        )
        self._disk = Disk("sessions")
        self._waiting: dict[Path, tuple[bool, str]] = {}  # to be resumed: recording, and why not yet
        self._at_work: dict[str, Session] = {}  # the folders of the sessions that are not settled
        self._session: Session | None = None
        self._changing = asyncio.Lock()
        self._bus: PiBus | None = None
        if self._pi is not None:
            heard = (self._take_reading, self._chunk_announced, self._look_for_lost)
            self._bus = PiBus(self._pi, self._clock, self._publisher, *heard)

    async def run(self) -> None:
        """Serve until told to stop."""
        config = self._config
        guard = Guard(config.security, self._clock, None, config.hosts, config.origins)
        self._site = Api(self, guard, self._watchers).site
        if self._pi is not None:
            self._pi.open()
        try:
            await self._supervisor.run(self._begin)
        finally:
            await self._site.close()
            if self._pi is not None:
                await self._pi.close()
            self._publisher.close()

    async def _begin(self) -> None:
        await self._resume()
        await self._site.listen(self._config.http)
        if self._pi is None and self._instrument is None:
            log.warning("neither a Pi nor a serial port is named: there is nothing to record: --pi, --serial")
        if self._instrument is not None:
            self._supervisor.keep("instrument", self._instrument.run())
        if self._bus is not None:
            self._supervisor.keep("bus", self._bus.run())
        self._supervisor.keep("status", self._tell_status())
        self._supervisor.keep("fuser", self._tick())
        self._supervisor.keep("watchdog", watchdog(self._pulse().beats))
        notify("READY=1")

    def _pulse(self) -> Pulse:
        def reader() -> int | None:
            return self._instrument.turns if self._instrument else None

        def writer() -> int | None:
            return self._announcer.recorder.turns if self._announcer.recorder else None

        return Pulse({"reader": reader, "writer": writer})

    def _look_for_unfinished(self) -> list[str]:
        found = []
        for path in self._folder.glob("*/session_*/session.json"):
            try:
                record = read_json(path, SessionRecord)
            except ValueError as error:
                log.error("not resumed: %s", error)
                continue
            if record is not None and record.state not in FINAL:
                found.append(str(path.parent.relative_to(self._folder)))
        return found

    async def _resume(self) -> None:
        """Go on with every session that is not yet settled; the one that is recording is the current."""
        try:
            names = await self._disk.do(self._unfinished.names)
        except OSError as error:
            log.error("unfinished sessions wait to be resumed: %s", why(error))
            self._waiting[self._folder] = (True, why(error))
            self._supervisor.start("resume", self._resume_later())
            return
        for name in names:
            await self._resume_one(name)

    async def _resume_later(self) -> None:
        await asyncio.sleep(RESUME_S)
        async with self._changing:
            self._waiting.pop(self._folder, None)
            await self._resume()

    async def _resume_one(self, name: str) -> None:
        folder = self._folder / name
        try:
            record = await self._disk.do(read_json, folder / "session.json", SessionRecord)
            if record is None or record.state in FINAL:
                if record is None and await self._disk.do(_has_streams, folder):
                    log.error("not resumed: %s has records and no session.json: fuse it by hand", folder)
                return await self._disk.do(self._unfinished.remove, name)
        except ValueError as error:
            log.error("not resumed: %s", error)
            return None
        except OSError as error:  # an entry too many costs a look at the next start
            log.error("%s: %s", folder, why(error))
            return None
        recording = record.state == "recording"
        if record.state != "partial" and not await self._take_up(folder, recording):
            self._supervisor.start("resume", self._take_up_later(folder, recording))
        return None

    async def _look_for_lost(self, pi: Pi) -> None:
        """Complete the sessions that had to end without a record which this Pi has after all."""
        names: list[str] = []
        with suppress(OSError):
            names = await self._disk.do(self._unfinished.names)
        for name in names:
            with suppress(PiError, ValueError, OSError):
                record = await self._disk.do(read_json, self._folder / name / "session.json", SessionRecord)
                if record is not None and record.state == "partial" and name not in self._at_work:
                    await pi.standing(record.recording_id)
                    log.info("the Pi has the record of %s: completing it", name)
                    await self._take_up(self._folder / name, recording=False)

    async def _run(self, session: Session) -> None:
        name = str(session.folder.relative_to(self._folder))
        self._at_work[name] = session
        await session.run()
        del self._at_work[name]

    async def _take_up_later(self, folder: Path, recording: bool) -> None:
        """A disk that refuses now may be mended while we serve."""
        while True:
            await asyncio.sleep(RESUME_S)
            async with self._changing:
                if await self._take_up(folder, recording):
                    return

    async def _take_up(self, folder: Path, recording: bool) -> bool:
        """False if the disk refuses; a session that is damaged is left alone, and said so."""
        try:
            session = await Session.resume(folder, self._deck, self._live if recording else View())
        except ValueError as error:
            log.error("not resumed: %s", error)
            return True
        except OSError as error:
            if folder not in self._waiting:
                self._announcer.events["resume_refused"] += 1
                log.error("%s waits to be resumed: %s", folder, why(error))
            self._waiting[folder] = (recording, why(error))
            return False
        self._waiting.pop(folder, None)
        if recording or self._session is None:
            self._session = session
        self._supervisor.start(f"session {folder.name}", self._run(session))
        return True

    async def start(self, mission: str) -> dict[str, Any]:
        """Begin a session; what is absent joins when it comes."""
        async with self._changing:
            if self._session is not None and not self._session.ended:
                other = self._session.record.session_id
                raise Refused(409, f"already recording session {other}: stop it first")
            for folder, (recording, reason) in self._waiting.items():
                if recording:
                    raise Refused(409, f"{folder} is recording and waits for its disk: {reason}")
            if self._pi is None and self._instrument is None:
                raise Refused(424, "neither a Pi nor a serial port is configured: give --pi or --serial")
            await self._know_pi()
            self._session = await Session.create(mission, self._deck, self._live)
            self._supervisor.start(f"session {self._session.folder.name}", self._run(self._session))
            return self._describe(self._session)

    async def _know_pi(self) -> None:
        """Ask a Pi that has not been heard yet who it is: the session begins with what is known of it."""
        if self._pi is not None and self._pi.machine_id is None:
            with suppress(PiError, TimeoutError):
                async with asyncio.timeout(KNOW_S):
                    await self._pi.about()

    async def stop(self) -> dict[str, Any]:
        """End the session; answers when both sides agree, or says what is still missing."""
        async with self._changing:
            session = self._recording()
            await session.stop()
            return self._describe(session)

    async def mark(self, label: str) -> dict[str, Any]:
        """Write a labelled marker into both records."""
        try:
            marked = await self._recording().mark(label)
        except RecordingEnded as error:
            raise Refused(400, str(error)) from None
        return dict(msgspec.to_builtins(marked))

    def _recording(self) -> Session:
        if self._session is None or self._session.ended:
            raise Refused(400, "not recording: start a session first")
        return self._session

    def status(self, brief: bool = False) -> dict[str, Any]:
        """Where everything stands, for people and scripts; brief leaves out the report of the last fusion."""
        inwater = self._bus.status if self._bus else None
        return {
            "session": self._describe(self._session, brief) if self._session else None,
            "data": str(self._folder.resolve()),
            "version": VERSION,
            "protocol": PROTOCOL,
            "pi": {
                "url": self._config.pi,
                "bus": self._bus.state if self._bus else "no Pi configured",
                "version": compare(self._bus.about) if self._bus and self._bus.about else None,
            },
            "inwater": _told_of(inwater) if inwater else None,
            "surface": msgspec.to_builtins(self._instrument.health()) if self._instrument else None,
            "events": dict(self._announcer.events),
            "unfinished": [
                {"folder": name, "state": session.record.state, "detail": session.record.detail}
                for name, session in self._at_work.items()
                if session is not self._session
            ],
            **self._live.status(),
        }

    def _brief(self) -> dict[str, Any]:
        return self.status(brief=True)

    def metrics(self) -> list[Metric]:
        """Counters and gauges for Prometheus."""
        session, metrics = self._session, stream_metrics(self._announcer, self._instrument)
        if self._bus is not None:
            metrics.append(gauge("qsensor_pi_heard", "1 while the Pi's bus is heard.", not self._bus.silent))
        if session is not None:
            metrics += [
                counts("qsensor_session_events_total", "What happened, by kind.", "kind", session.log.counts),
                gauge("qsensor_inwater_seq", "Newest in-water number known.", session.inwater_seqs[0]),
                gauge(
                    "qsensor_inwater_mirrored_seq",
                    "Newest in-water number copied.",
                    session.inwater_seqs[1],
                ),
                gauge("qsensor_inwater_missing", "Numbers the Pi lost.", session.ordering.missing),
                gauge("qsensor_exchanges", "Clock comparisons of this session.", session.markers.exchanges),
                gauge("qsensor_fused_rows", "Provisional rows published.", self._live.rows),
                gauge("qsensor_fused_pairs", "Of them with both sensors.", self._live.pairs),
                gauge("qsensor_pi_trouble", "1 while the Pi cannot be reached.", bool(session.pi_trouble)),
            ]
        return metrics

    def _describe(self, session: Session, brief: bool = False) -> dict[str, Any]:
        record, recorder = session.record, session.recorder
        return {
            "session_id": record.session_id,
            "mission": record.mission,
            "folder": str(session.folder),
            "state": record.state,
            "detail": record.detail or session.pi_trouble or (recorder.trouble if recorder else ""),
            "inwater_seq": session.inwater_seqs[0],
            "inwater_durable_seq": session.inwater_seqs[1],
            "inwater_missing": session.ordering.missing,
            "inwater_repaired": session.ordering.repaired,
            "surface_seq": recorder.last_seq if recorder else -1,
            "surface_durable_seq": recorder.durable_seq if recorder else -1,
            "surface_storage": recorder.trouble if recorder else "",
            "surface_dropped": recorder.dropped if recorder else 0,
            "exchanges": session.markers.exchanges,
            "events": dict(session.log.counts),
            "streams": {
                "inwater": dict(session.inwater.events) if session.inwater else {},
                "surface": dict(self._announcer.events),
            },
            "report": None if brief else session.report,
        }

    def _take(self, arrival: Arrival) -> None:
        if self._announcer.recorder is not None:
            self._announcer.recorder.take(arrival)
        else:
            self._announcer.idle(arrival)
            self._live.glance(False, arrival.value)

    def _note(self, kind: str, detail: str, count: int) -> None:
        if self._instrument is not None:
            self._announcer.note(kind, detail, count, self._instrument)

    def _take_reading(self, frame: ReadingFrame) -> bool:
        """Readings of our session take the ordered way."""
        session = self._session
        if session is None or session.ended or frame.session_id != session.record.session_id:
            self._live.glance(True, frame.reading().value)
            return False
        self._live.know_epoch(frame.epoch, frame.boot_id, frame.durable_seq)
        session.from_bus(frame.reading())
        return True

    def _chunk_announced(self, frame: ChunkFrame) -> None:
        if self._session is not None and frame.session_id == self._session.record.session_id:
            self._session.chunk_announced()

    async def _tell_status(self) -> None:
        clocks, room = ClockWatch(self._clock), RoomWatch(self._folder)
        for second in count():
            if self._instrument is not None:
                health = self._instrument.health()
                self._announcer.status(health.state, health.detail)
            now = self._clock.utc_ns()
            self._publisher.send(STATUS, self.status(brief=True) | {"t": now / 1e9}, now)
            self._live.tell_clock()
            for news in self._bus.news() if self._bus else []:
                self._tell(*news)
            for change in clocks.look():
                if self._session is not None and not self._session.ended:
                    self._session.clock_changed(change)
                else:
                    log.info("%s: %s", change.kind, change)
            if self._session is not None:
                await self._session.catch_up()
            if second % ROOM_S == 0 and (low := await self._disk.do(room.look)):
                self._tell(*low, 1)
            await asyncio.sleep(STATUS_S)

    def _tell(self, kind: str, detail: str, count: int) -> None:
        if self._session is not None and not self._session.ended:
            self._session.note(kind, detail, count)
        else:
            self._announcer.events[kind] += count
            log.info("%s: %s", kind, detail)

    async def _tick(self) -> None:
        while True:
            more = self._live.tick()
            await asyncio.sleep(0 if more else TICK_S)


def _told_of(inwater: StatusFrame) -> dict[str, Any]:
    names = ("state", "detail", "storage", "dropped", "events")
    return {name: getattr(inwater, name) for name in names}


def _has_streams(folder: Path) -> bool:
    return any(folder.glob("in-water_*/chunk_*")) or any(folder.glob("surface_*/chunk_*"))


class _Surface(Announcer):
    """The surface recorder's listener: announces, and feeds the live fuser."""

    def __init__(self, publisher: Publisher, clock: SystemClock, live: Live) -> None:
        super().__init__(publisher, SURFACE, clock)
        self._live = live

    def rows(self, readings: list[Reading]) -> None:
        super().rows(readings)
        self._live.surface(readings)
