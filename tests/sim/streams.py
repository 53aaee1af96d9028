"""A recorder at work on real files, and somebody who listens to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from common.clock import Clock
from common.instrument import Arrival
from common.messages import Chunk, Event, Marker, Reading
from common.recorder import Recorder
from common.recording import StreamRecord
from common.rows import decode_row

SESSION_ID = "11111111-1111-4111-8111-111111111111"


class Heard:
    """A listener that keeps what it was told, and whether published rows were on file by then."""

    def __init__(self, folder: Path) -> None:
        self.seqs: list[int] = []
        self.unwritten: list[int] = []
        self.markers: list[Marker] = []
        self.chunks: list[Chunk] = []
        self.events: list[Event] = []
        self.syncs = 0
        self._folder = folder

    def rows(self, readings: list[Reading]) -> None:
        written = set(seqs_in(self._folder))
        self.seqs += [reading.seq for reading in readings]
        self.unwritten += [reading.seq for reading in readings if reading.seq not in written]

    def marker(self, marker: Marker) -> None:
        self.markers.append(marker)

    def durable(self) -> None:
        self.syncs += 1

    def sealed(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    def event(self, event: Event) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def seqs_in(folder: Path) -> list[int]:
    """The numbers of all readings in the chunks of a folder, in file order."""
    found: list[int] = []
    for path in sorted(folder.glob("chunk_*.csv")) + sorted(folder.glob("chunk_*.tmp")):
        _head, *rows = path.read_bytes().splitlines()
        found += [reading.seq for row in rows if (reading := decode_row(row)) is not None]
    return found


def new_record(roll_interval_s: float = 15.0) -> StreamRecord:
    return StreamRecord(
        SESSION_ID, "dive", "inwater", "2026-11-22T00:00:00.000000+00:00", roll_interval_s=roll_interval_s
    )


def arrival(clock: Clock, value: str = "0.010157") -> Arrival:
    return Arrival(clock.stamp(), "Q7799", "freerun", value, "25.19", None)


def take(recorder: Recorder, clock: Clock, count: int) -> None:
    for _ in range(count):
        recorder.take(arrival(clock))


async def until(reached: Callable[[], bool]) -> None:
    """Let the loop run until it is so; a failure if it never becomes so."""
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.002)


@asynccontextmanager
async def at_work(recorder: Recorder) -> AsyncIterator[Recorder]:
    """Run a recorder; at the end close it in order, as a daemon that is told to end.

    What hangs inside fails after half a minute.
    """
    running = asyncio.create_task(recorder.run())
    await asyncio.sleep(0)  # a task cancelled before its first step never runs at all
    try:
        async with asyncio.timeout(30):
            yield recorder
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
