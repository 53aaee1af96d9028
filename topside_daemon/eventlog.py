"""The events of one session: a line each in its `events.jsonl`, counted, and kept while the disk refuses."""

import logging
from collections import Counter
from pathlib import Path

from common.clock import Clock
from common.disk import Disk
from common.files import Lines, read_lines, why
from common.messages import Event

log = logging.getLogger(__name__)

FILE = "events.jsonl"


def counted(folder: Path) -> Counter[str]:
    """How often what happened, by kind, according to a folder's events."""
    counts: Counter[str] = Counter()
    for event in read_lines(folder / FILE, Event):
        counts[event.kind] += event.count
    return counts


class EventLog:
    """Writes in the order of telling, on *disk*'s thread."""

    def __init__(self, clock: Clock, disk: Disk) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._disk = disk
        self._waiting: list[Event] = []
        self._file: Lines | None = None

    async def open(self, folder: Path) -> None:
        """Go on with what earlier runs have told.

        Raises:
            OSError: the disk refuses.
        """
        self.counts += await self._disk.do(counted, folder)
        self._file = await self._disk.do(Lines, folder / FILE)

    def note(self, kind: str, detail: str, count: int = 1) -> None:
        """Tell that something happened."""
        now = self._clock.stamp()
        self.counts[kind] += count
        log.info("%s: %s", kind, detail)
        event = Event(kind, now.mono_ns, now.utc_ns, detail, count)
        self._disk.post(lambda: self._write([event]))

    def catch_up(self) -> None:
        """Try again to write what the disk has refused; to be called now and then."""
        if self._waiting:
            self._disk.post(lambda: self._write([]))

    def _write(self, events: list[Event]) -> None:
        first = not self._waiting
        self._waiting += events
        if self._file is None:
            return
        try:
            self._file.append(*self._waiting)
        except OSError as error:
            if first:
                log.error("events wait in memory: %s", why(error))
        else:
            self._waiting.clear()

    def let_go(self) -> None:
        """Close at once; what waits is lost."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def close(self) -> None:
        if self._file is not None:
            await self._disk.do(self._file.close)
