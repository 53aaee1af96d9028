"""The Pi's half of a session: started, followed into its copy here, and stopped when both sides agree."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from common.messages import Reading
from topside_daemon.deck import Deck
from topside_daemon.eventlog import counted
from topside_daemon.mirror import Incomplete, Mirror
from topside_daemon.pi import Pi, PiError, Standing
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
        self.folder = folder / f"in-water_{record.session_id}"
        self.mirror = Mirror(pi, record.session_id, self.folder, on_rows, note, self.holder)
        self.trouble = ""  # why it cannot be reached or does not do what is wanted
        self.events: Counter[str] = Counter()  # what the Pi has told of its recording, by kind
        self.lost = False  # the Pi once had a record of this session, and has none
        self._record = record
        self._roll_s = deck.config.recording.roll_interval_s
        self._pi = pi
        self._note = note
        self._save = save
        self._looked_s = -SIDE_FILES_S

    def is_in(self, trouble: str) -> None:
        """Say what is wrong, once; "" for nothing."""
        before, self.trouble = self.trouble, trouble
        if bool(before) != bool(trouble):
            self._note("pi_trouble" if trouble else "pi_recovered", trouble or "all is as wanted again", 1)

    async def follow(self) -> Standing:
        """Have the Pi record, and bring the copy up to date."""
        if self.trouble:  # it may take a while to be there: ask for something small first
            await self._pi.knock()
        if not self._record.inwater_started:
            await self._pi.start(self._record.session_id, self._record.mission, self._roll_s, self.holder)
            self._record.inwater_started = True
            await self._save()
        try:
            standing = await self.mirror.pull()
        except PiError as error:
            if error.status != 404:
                raise
            standing = await self._begin_sequel()
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s >= SIDE_FILES_S:
            self._looked_s = now_s
            await self.mirror.pull_side_files()
            self.events = await asyncio.to_thread(counted, self.folder)
        return standing

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
        try:
            await self._pi.stop(self._record.session_id, self.holder)
        except PiError as error:
            if error.status == 404:
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
        await self.mirror.prove(standing)
