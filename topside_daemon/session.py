"""One session: both records, their markers, the mirror, and the agreement at the end.

A session ends only when both sides agree on what was recorded; until then it is tried again, by
this process or the next one. Killing the daemon never ends a session.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import structs

from common.chunkstore import verify
from common.clock import ClockChange, begin_epoch
from common.disk import Disk
from common.files import make_folder, read_json, replace, why
from common.messages import Reading, to_json
from common.recorder import Recorder
from common.recording import StreamRecord
from common.rows import format_utc
from topside_daemon.beat import Beat
from topside_daemon.deck import Deck, View
from topside_daemon.eventlog import EventLog
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.inwater import Inwater
from topside_daemon.markers import Marked, MarkerWriter
from topside_daemon.mirror import Incomplete
from topside_daemon.ordering import Ordering
from topside_daemon.pi import PiError
from topside_daemon.products import SessionRecord, produce

log = logging.getLogger(__name__)

PULL_S = 1.0  # between pulls that nothing hastens
RETRY_S = 0.5  # between knocks at a Pi that does not answer, and attempts at a disk that refuses
REFUSED_S = 2.0  # between attempts at a Pi that answers, but refuses
INCOMPLETE_MAX_S = 60.0  # longest between attempts to get what the Pi does not give
BREATH_S = 0.2  # shortest time between two pulls, however often the bus wakes us
ALONE_S = 2.0  # likewise on this side only
MARK_S = 12.0  # the STOP marker may take this long on a bad link or disk
STOP_S = 60.0  # how long `stop` waits for the agreement before it answers without
SLUG = re.compile(r"[^A-Za-z0-9._-]+")


class Session:
    """Drives one session from its start, or from where a restart left it, to its agreed end."""

    def __init__(self, folder: Path, record: SessionRecord, deck: Deck, view: View) -> None:
        """Not called directly: see `create` and `resume`."""
        self.folder = folder
        self.record = record
        self.recorder: Recorder | None = None
        self._wanted = ("", "")  # state and detail, once it is fused
        self._unsaved = False
        self._opened: list[Callable[[], None]] = []
        self.report: dict[str, Any] | None = None
        self._deck = deck
        self._view = view
        self._wake = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._settled = asyncio.Event()
        self._saving = asyncio.Lock()
        self._disk = Disk("session")
        self.log = EventLog(deck.clock, self._disk)
        self.note = self.log.note
        self.inwater: Inwater | None = None
        if deck.pi is not None and record.inwater:
            self.inwater = Inwater(folder, record, deck, deck.pi, self._from_files, self.note, self._save)
        self.ordering = Ordering(0, self._deliver)

    @classmethod
    async def create(cls, mission: str, deck: Deck, view: View) -> "Session":
        """Begin a session: its folder, its record, and the surface recording at once."""
        now = deck.clock.utc_ns()
        stamp = f"{format_utc(now)[:23]}Z".replace(":", "-").replace(".", "-")
        record = SessionRecord(
            session_id=str(uuid4()),
            sync_id=str(uuid4()),
            mission=mission,
            created_at=format_utc(now),
            inwater=deck.pi is not None,
            surface=deck.instrument is not None,
            epochs=[begin_epoch(0, deck.clock)],
            link=await _recall(deck),
            fusion=deck.config.fusion,
        )
        folder = Path(deck.config.data) / slug(mission) / f"session_{stamp}"
        session = cls(folder, record, deck, view)
        try:
            await session._disk.do(deck.unfinished.add, str(folder.relative_to(deck.config.data)))
            await session._disk.do(make_folder, folder)
            await session._disk.do(replace, folder / "session.json", to_json(record))
            await session._open()
        except OSError:
            session.let_go()
            raise
        return session

    @classmethod
    async def resume(cls, folder: Path, deck: Deck, view: View) -> "Session":
        """Go on with a session after a restart.

        Raises:
            ValueError: its session.json is missing or damaged.
        """
        record = await asyncio.to_thread(read_json, folder / "session.json", SessionRecord)
        if record is None or not record.epochs:
            raise ValueError(f"{folder}: no session.json, or one without its clock's epochs")
        session = cls(folder, record, deck, view)
        last, now = record.epochs[-1], begin_epoch(len(record.epochs), deck.clock)
        if now.boot_id != last.boot_id or now.mono_ns < last.mono_ns:
            record.epochs.append(now)
        try:
            await session._open()
        except OSError:
            session.let_go()
            raise
        session.note("session_resumed", f"in state {record.state}")
        return session

    def let_go(self) -> None:
        """Give back the files and threads of a session that does not come about."""
        for close in self._opened:
            close()
        if self.inwater is not None:
            self.inwater.mirror.let_go()
        self._disk.close()

    async def _open(self) -> None:
        record = self.record
        self._view.begin(
            record.session_id, record.epochs, record.inwater, record.surface, record.link, record.fusion
        )
        await self.log.open(self.folder)
        self._opened.append(self.log.let_go)
        self.markers = await asyncio.to_thread(MarkerWriter, self.folder, record.sync_id, self._deck.clock)
        self._opened.append(self.markers.close)
        self.markers.watch(self._view.burst)
        if self.inwater is not None:
            await self.inwater.load()
            self.ordering.next_seq = self.inwater.mirror.last_seq + 1
        await self._open_surface()
        self.beat = Beat(self.markers, record, self.recorder, self._deck, self._view, self.note)
        await self._save()

    async def _open_surface(self) -> None:
        """Resume the surface recording where a restart left it, or begin it."""
        deck, record = self._deck, self.record
        sync_s = deck.config.recording.sync_interval_s
        folder = self.folder / f"surface_{record.session_id}"
        before = await asyncio.to_thread(read_json, folder / "session.json", StreamRecord)
        if before is not None and before.state == "recording":
            self.recorder = await Recorder.resume(folder, deck.clock, deck.announcer, sync_s)
            if deck.instrument is not None:
                deck.instrument.remember(self.recorder.record.sensor)
        elif before is None and record.state == "recording" and deck.instrument is not None:
            stream = StreamRecord(
                session_id=record.session_id,
                mission=record.mission,
                role="surface",
                started_at=format_utc(deck.clock.utc_ns()),
                roll_interval_s=deck.config.recording.roll_interval_s,
                sensor_id=deck.instrument.sensor_id,
                sensor=deck.instrument.describe(),
            )
            self.recorder = await Recorder.create(folder, stream, deck.clock, deck.announcer, sync_s)
        if self.recorder is not None:
            deck.announcer.recorder = self.recorder
            self._view.know_sensor(False, self.recorder.record.sensor)

    async def run(self) -> None:
        """Record until `stop`, then settle with the Pi. Cancelled, leave all for the next process."""
        async with asyncio.TaskGroup() as group:
            if self.recorder is not None:
                group.create_task(self.recorder.run(), name="surface recorder")
            if self.record.state == "recording":
                group.create_task(self._follow(), name="mirror")
                group.create_task(self.beat.run(), name="markers")
                await self._stop_asked.wait()
                await self._mark_stop()
                self.record.stopped_at = format_utc(self._deck.clock.utc_ns())
                await self._enter("stopping", "")
            if self.recorder is not None:
                await self._stop_surface(self.recorder)
                if self._deck.announcer.recorder is self.recorder:
                    self._deck.announcer.recorder = None
        await self._settle()
        await self._close()

    async def _mark_stop(self) -> None:
        try:
            async with asyncio.timeout(MARK_S):
                await self.beat.mark("STOP", None)
        except TimeoutError:
            self.note("stop_unmarked", "the STOP marker was not taken in time")
            with suppress(TimeoutError):
                async with asyncio.timeout(ALONE_S):
                    await self.beat.mark("STOP", None, alone=True)

    async def _stop_surface(self, recorder: Recorder) -> None:
        while True:
            try:
                return await recorder.stop()
            except OSError:  # it has said so itself; its readings are kept in memory
                await asyncio.sleep(RETRY_S)

    async def _close(self) -> None:
        try:
            if self.inwater is not None:
                await self.inwater.mirror.close()
            if self.record.state in ("complete", "damaged"):
                name = str(self.folder.relative_to(self._deck.config.data))
                await self._disk.do(self._deck.unfinished.remove, name)
        except OSError as error:  # both are found out again from the files
            log.warning("%s: %s", self.folder, why(error))
        self.markers.close()
        await self.log.close()
        self._disk.close()

    async def stop(self) -> None:
        """Ask for the end and wait for the agreement, at most a minute."""
        self._stop_asked.set()
        self._wake.set()
        self.beat.stop()
        try:
            async with asyncio.timeout(STOP_S):
                await self._settled.wait()
        except TimeoutError:
            pass

    async def mark(self, label: str) -> Marked:
        """Write a labelled marker on both sides.

        Raises:
            RecordingEnded: the session is being stopped.
        """
        return await self.beat.mark("PERIODIC", label)

    def clock_changed(self, change: ClockChange) -> None:
        """Something happened to this machine's clocks."""
        self.note(change.kind, f"topside: {change}")
        if change.kind == "suspended":  # mono_ns stood still meanwhile, the Pi's did not
            self.beat.restart()

    async def _follow(self) -> None:
        """Keep the Pi recording and its copy here up to date."""
        inwater = self.inwater
        while inwater is not None and not self._stop_asked.is_set():
            try:
                standing = await inwater.follow()
            except PiError as error:
                inwater.is_in(str(error))
                await self._pause(RETRY_S if error.status is None else REFUSED_S)
                continue
            mirror = inwater.mirror
            self._view.know_sensor(True, mirror.sensor)
            for epoch in mirror.epochs:
                self._view.know_epoch(epoch.epoch, epoch.boot_id)
            for epoch in mirror.epochs[-1:]:
                self.beat.pi_boot(epoch.boot_id)
            inwater.is_in(inwater.doubt(standing))
            await self._pause(PULL_S)

    async def _pause(self, seconds: float) -> None:
        """Rest until *seconds* are over or the bus or a stop wakes us, but never without a breath."""
        await asyncio.sleep(BREATH_S)
        try:
            async with asyncio.timeout(seconds - BREATH_S):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _settle(self) -> None:
        """Agree with the Pi on what was recorded; fuse what is here meanwhile, and all of it in the end."""
        await self._agree()
        inwater = self.inwater
        if inwater is not None and inwater.lost:
            await self._fuse("partial", "the Pi has lost this session: what had been copied is all there is")
        elif inwater is not None and not self.record.inwater_started:
            trouble = inwater.trouble or "the Pi was not there"
            await self._fuse("partial", f"there is no in-water record: {trouble}")
        else:
            if inwater is not None:
                inwater.is_in("")
            damage = await self._surface_damage()
            await self._fuse("damaged" if damage else "complete", damage)
        wait_s = RETRY_S
        while self.record.state == "failed":  # there may be room another time
            wait_s = min(2 * wait_s, INCOMPLETE_MAX_S)
            await self._pause(wait_s)
            await self._fuse(*self._wanted)

    async def _agree(self) -> None:
        fused_without, wait_s = self.record.state in ("incomplete", "partial"), RETRY_S
        while self.record.inwater:
            try:
                if self.inwater is None:
                    raise PiError("no Pi is configured: start this daemon with --pi to complete the session")
                await self.inwater.agree()
                return
            except PiError as error:
                detail = f"the in-water record is not all here: {error}"
                answers = isinstance(error, Incomplete) or error.status is not None
                if self.inwater is not None:
                    self.inwater.is_in(str(error))
            if not fused_without:
                await self._fuse("incomplete", detail)
                fused_without = True
            self.record.detail = detail
            wait_s = min(2 * wait_s, INCOMPLETE_MAX_S) if answers else RETRY_S
            await self._pause(wait_s)

    async def _surface_damage(self) -> str:
        """What has become of the surface record since it was written; "" if it is whole."""
        folder = self.folder / f"surface_{self.record.session_id}"
        if not folder.is_dir():
            return ""
        damage = (await self._disk.do(verify, folder)).damage
        if damage:
            self.note("surface_damaged", "; ".join(damage[:5]), len(damage))
        return f"the surface record is damaged: {'; '.join(damage[:5])}" if damage else ""

    async def _fuse(self, state: str, detail: str) -> None:
        self._wanted = (state, detail)
        final = structs.replace(self.record, state=state, detail=detail)
        stamped = format_utc(self._deck.clock.utc_ns())
        try:
            self.report = await produce(self.folder, final, stamped, self._disk)
        except (RuntimeError, OSError) as error:
            self.note("fusion_failed", str(error))
            detail = f"{detail}; fusion failed: {error}".removeprefix("; ")
            state = "incomplete" if state == "incomplete" else "failed"
        else:
            await self._remember(self.report)
        await self._enter(state, detail)
        self._settled.set()

    async def _remember(self, report: dict[str, Any]) -> None:
        """Keep what this session has shown of the link to the Pi for the next one."""
        deck, told = self._deck, report.get("link")
        if told is None or deck.pi is None or deck.pi.machine_id is None or deck.machine_id is None:
            return
        try:
            memory = msgspec.convert(told, LinkMemory)
        except msgspec.ValidationError as error:
            self.note("link_memory_not_kept", str(error))
            return
        now_ns = deck.clock.utc_ns()
        await asyncio.to_thread(deck.links.remember, deck.pi.machine_id, deck.machine_id, memory, now_ns)

    async def _enter(self, state: str, detail: str) -> None:
        self.record.state, self.record.detail = state, detail
        self.note(f"session_{state}", detail)
        await self._save()

    async def _save(self) -> None:
        async with self._saving:
            content = to_json(self.record)
            try:
                await self._disk.do(replace, self.folder / "session.json", content)
                self._unsaved = False
            except OSError as error:
                if not self._unsaved:
                    log.error("%s is out of date: %s", self.folder / "session.json", why(error))
                self._unsaved = True

    def from_bus(self, reading: Reading) -> None:
        """A live reading of this session."""
        self.ordering.from_bus(reading)

    def chunk_announced(self) -> None:
        """The Pi has more on its disk: fetch it now if something is missing here."""
        if self.ordering.waiting:
            self._wake.set()

    def _from_files(self, readings: list[Reading]) -> None:
        missing = self.ordering.missing
        self.ordering.from_files(readings)
        if self.ordering.missing > missing:
            self.note("readings_missing", "the Pi's files skip numbers", self.ordering.missing - missing)

    def _deliver(self, readings: list[Reading]) -> None:
        self._view.inwater(readings)

    async def catch_up(self) -> None:
        """Write what a disk that refused has left in memory; to be called now and then."""
        self.log.catch_up()
        if self._unsaved:
            await self._save()

    @property
    def pi_trouble(self) -> str:
        """Why the Pi does not do what is wanted; "" when it does."""
        return self.inwater.trouble if self.inwater else ""

    @property
    def inwater_seqs(self) -> tuple[int, int]:
        """The newest in-water number known and the newest that is here, -1 for none; an old Pi's rows have no
        numbers, and are counted."""
        if self.inwater is None:
            return self.ordering.next_seq - 1, -1
        if self.inwater.counted is not None:
            recorded, copied = self.inwater.counted
            return max(recorded, copied) - 1, copied - 1
        return self.ordering.next_seq - 1, self.inwater.mirror.last_seq

    @property
    def ended(self) -> bool:
        """Nothing is being recorded any more, whether or not it is settled."""
        return self.record.state != "recording"


async def _recall(deck: Deck) -> LinkMemory | None:
    """What earlier sessions have shown of the link to this Pi; None if it has not been heard yet."""
    if deck.pi is None or deck.pi.machine_id is None or deck.machine_id is None:
        return None
    return await asyncio.to_thread(deck.links.recall, deck.pi.machine_id, deck.machine_id)


def slug(mission: str) -> str:
    """A mission's name as a folder name: data, never a path."""
    return SLUG.sub("-", mission).strip("-.")[:64] or "mission"
