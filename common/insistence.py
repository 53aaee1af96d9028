"""Disk work that is tried until the disk takes it: a full or failing disk is a state, not an end."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from common.clock import Clock
from common.disk import Disk
from common.files import is_full, why

RETRY_S = 1.0  # between attempts while the disk refuses
HURRY_S = 0.1  # likewise, when the end is near


class Insistence:
    """Runs disk work again and again, names what is wrong, and says so once.

    Several may be at it at the same time; there is trouble as long as one of them has it.
    """

    def __init__(
        self, clock: Clock, note: Callable[[str, str], None], make_room: Callable[[], object], subject: str
    ) -> None:
        """
        Args:
            note: told of the beginning and the end of trouble, as an event's kind and detail.
            make_room: run once a full disk is in the way of an end.
            subject: what waits in memory meanwhile.
        """
        self._clock = clock
        self._note = note
        self._make_room = make_room
        self._subject = subject
        self.attempts = 0
        self._troubles: dict[object, OSError] = {}
        self._hurried = False
        self._give_up_ns: int | None = None

    @property
    def trouble(self) -> str:
        """What is wrong and what would cure it; "" when all work is done at once."""
        return next(map(why, self._troubles.values()), "")

    @property
    def errno(self) -> int:
        """The OS's number of the trouble, 0 without."""
        return next((error.errno or 0 for error in self._troubles.values()), 0)

    def hurry(self, give_up_s: float | None = None) -> None:
        """The end is near: try more often, make room, and after so long give up, if that is said."""
        self._hurried = True
        if give_up_s is not None:
            self._give_up_ns = self._clock.mono_ns() + round(give_up_s * 1e9)

    def go_on(self) -> None:
        """Be patient again."""
        self._hurried, self._give_up_ns = False, None

    async def do(self, disk: Disk, work: Callable[[], object]) -> bool:
        """Do *work* on *disk*'s thread; False if it was given up: the trouble stays."""
        me = object()
        while not await self._attempt(me, disk, work):
            if self._give_up_ns is not None and self._clock.mono_ns() > self._give_up_ns:
                return False
            await asyncio.sleep(min(HURRY_S, RETRY_S) if self._hurried else RETRY_S)
        if self._troubles.pop(me, None) is not None and not self._troubles:
            self._note("disk_recovered", f"{self._subject} are being written again")
        return True

    async def _attempt(self, me: object, disk: Disk, work: Callable[[], object]) -> bool:
        self.attempts += 1
        try:
            await disk.do(work)
        except OSError as error:
            first = not self._troubles
            self._troubles[me] = error
            if first:
                self._note("disk_trouble", f"{why(error)}; {self._subject} wait in memory until then")
            if is_full(error) and self._hurried:
                with suppress(OSError):
                    await disk.do(self._make_room)
            return False
        return True
