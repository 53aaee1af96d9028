"""The Pi's half of a session: started, followed into its copy here, and stopped when both sides agree."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from common.chunkstore import sealed_chunks
from common.files import why
from common.messages import Reading
from common.rows import parse_utc
from topside_daemon.deck import Deck
from topside_daemon.eventlog import counted
from topside_daemon.mirror import Incomplete, Mirror
from topside_daemon.pi import GONE, Pi, PiError, Standing
from topside_daemon.products import SessionRecord

SIDE_FILES_S = 10.0  # between looks at what the Pi has told of its recording


class Inwater:
    """One recording on the Pi. Every call may raise `PiError`: not now, but another time."""

    def __init__(
        self,
        folder: Path,
        record: SessionRecord,
        deck: Deck,
        pi: Pi,
        on_rows: Callable[[list[Reading]], None],
        note: Callable[..., None],
        save: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            record: of the session; `inwater_started` is kept there, and saved by *save*.
            on_rows: told of the copied rows, as `Mirror` tells them.
            note: told what the session should say, as an event's kind, detail and count.
        """
        self.holder = f"{socket.gethostname()}, session {record.sync_id[:8]}"
        self.trouble = ""  # why it cannot be reached or does not do what is wanted
        self.events: Counter[str] = Counter()  # what the Pi has told of its recording, by kind
        self.lost = False  # the Pi once had a record of this session, and has none
        self._session = folder
        self._record = record
        self._roll_s = deck.config.recording.roll_interval_s
        self._pi = pi
        self._on_rows = on_rows
        self._note = note
        self._save = save
        self._looked_s = -SIDE_FILES_S
        self._rows = 0  # that the Pi has, as it said last
        self.mirror = self._mirror()

    @property
    def folder(self) -> Path:
        """Where the copy is."""
        return self.mirror.folder

    @property
    def counted(self) -> tuple[int, int] | None:
        """Rows recorded and rows copied, where an old Pi does not number them; else None."""
        return (self._rows, self.mirror.rows) if self._record.old is not None else None

    def _mirror(self) -> Mirror:
        session_id = self._record.recording_id
        return Mirror(
            self._pi, session_id, _folder(self._session, session_id), self._on_rows, self._note, self.holder
        )

    async def load(self) -> None:
        """See what earlier runs have already brought.

        Raises:
            OSError: the disk refuses.
        """
        await self.mirror.load()
        if self._record.old is not None:
            await asyncio.to_thread(_discard, _folder(self._session, self._record.session_id))

    def is_in(self, trouble: str) -> None:
        """Say what is wrong, once; "" for nothing."""
        before, self.trouble = self.trouble, trouble
        if bool(before) != bool(trouble):
            self._note("pi_trouble" if trouble else "pi_recovered", trouble or "all is as wanted again", 1)

    def doubt(self, standing: Standing) -> str:
        """What is wrong with a recording that should go on; "" for nothing."""
        if standing.state != "stopped":
            return ""
        restarted = ", or the old API was started again: stop this session, and start another"
        return f"stopped by somebody else{restarted if self._record.old else ''}"

    async def follow(self) -> Standing:
        """Have the Pi record, and bring the copy up to date."""
        if self.trouble:  # it may take a while to be there: ask for something small first
            await self._pi.knock()
        if not self._record.inwater_started:
            await self._start()
        await self._turn_to_old()
        try:
            standing = await self.mirror.pull()
        except PiError as error:
            if error.status != 404 or self._record.old is not None:
                raise
            standing = await self._begin_sequel()
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s >= SIDE_FILES_S:
            self._looked_s = now_s
            await self.mirror.pull_side_files()
            self.events = await asyncio.to_thread(counted, self.folder)
        self._rows = standing.rows
        return standing

    async def _start(self) -> None:
        wanted = self._record
        started = await self._pi.start(wanted.session_id, wanted.mission, self._roll_s, self.holder)
        self._record.inwater_started = True
        if started.session_id != wanted.session_id:
            self._record.old = started
            self._note("old_pi", f"it calls the recording {started.session_id}; {self._pi.lacks}", 1)
        await self._save()

    async def _turn_to_old(self) -> None:
        """An old Pi has given the recording an id of its own: its copy goes by that."""
        if self.mirror.session_id == self._record.recording_id:
            return
        before, mirror = self.mirror, self._mirror()
        try:
            await asyncio.to_thread(_discard, before.folder)
            await mirror.load()
        except OSError as error:
            mirror.let_go()
            raise PiError(f"cannot keep the copy in {mirror.folder}: {why(error)}") from None
        self.mirror = mirror
        before.let_go()

    async def _begin_sequel(self) -> Standing:
        """The Pi has lost its record: let it go on where the copy ends."""
        try:
            sequel = await self.mirror.sequel()
        except OSError as error:
            raise PiError(f"the Pi has lost its record, and the copy cannot be closed: {error}") from None
        wanted = self._record
        await self._pi.start(wanted.session_id, wanted.mission, self._roll_s, self.holder, sequel)
        self._note("inwater_lost", f"the Pi has lost its record: it goes on from seq {sequel.next_seq}", 1)
        return await self.mirror.pull()

    async def agree(self) -> None:
        """Stop the Pi, fetch all it has, and prove that it is all here; or find that it has lost it."""
        await self._pi.knock()
        await self._turn_to_old()
        try:
            await self._pi.stop(self._record.recording_id, self.holder)
        except PiError as error:
            if error.status in (404, GONE):
                self.lost = self._record.inwater_started
                return
            if error.status != 400:  # 400: stopped before
                raise
        self._record.inwater_started = True
        try:
            await self._complete()
        except Incomplete:  # what was damaged here is fetched again at once
            await self._complete()

    async def _complete(self) -> None:
        standing = await self.mirror.pull()
        await self.mirror.pull_side_files()
        self.events = await asyncio.to_thread(counted, self.folder)
        self._rows = standing.rows
        await self.mirror.prove(standing)
        if self._record.old is not None:
            since_ns = parse_utc(self._record.old.started_at)
            before = await asyncio.to_thread(_rows_before, self.folder, since_ns)
            if before:
                self._note("rows_before_start", "the old Pi had kept them from before, and they stay", before)


def _folder(session: Path, session_id: str) -> Path:
    return session / f"in-water_{session_id}"


def _discard(folder: Path) -> None:
    """Remove a folder that came to nothing."""
    with suppress(OSError):  # there is something in it, or it is gone already
        folder.rmdir()


def _rows_before(folder: Path, since_ns: int) -> int:
    """How many rows at the beginning of the chunks have an earlier label."""
    count = 0
    for path in sealed_chunks(folder):
        for row in path.read_bytes().splitlines()[1:]:
            try:
                label_ns = parse_utc(row.partition(b",")[0].decode("ascii"))
            except ValueError:
                return count
            if label_ns >= since_ns:
                return count
            count += 1
    return count
