"""A recorder in a process of its own, to be killed at any moment: it says on a pipe what it was told."""

import asyncio
import os
import random
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from common.clock import SystemClock
from common.messages import Chunk, Event, Marker, Reading
from common.recorder import Recorder
from tests.sim.streams import arrival, new_record

ROLL_S = 0.02
UP = b"up\n"  # the first thing it says


class Victim:
    """The process to be killed: records as fast as it can, and says on a pipe what it was told."""

    def __init__(self, folder: Path, pipe: int, life: int, seed: int) -> None:
        self._folder = folder
        self._pipe = pipe
        self._life = life
        self._rng = random.Random(seed)
        self._clock = SystemClock()
        self._recorder: Recorder | None = None
        self._asked: set[asyncio.Task[None]] = set()

    def say(self, *words: object) -> None:
        os.write(self._pipe, (" ".join(map(str, words)) + "\n").encode())

    def rows(self, readings: list[Reading]) -> None:
        for reading in readings:
            self.say("row", reading.seq, reading.value)

    def durable(self) -> None:
        assert self._recorder is not None
        self.say("durable", self._recorder.durable_seq)

    def marker(self, marker: Marker) -> None:
        self.say("marker", marker.sync_id, marker.after_seq)

    def sealed(self, chunk: Chunk) -> None:
        pass

    def event(self, event: Event) -> None:
        pass

    async def live(self, unanswered: Sequence[str], readings: int) -> None:
        """Take up the recording; end it in order after *readings*, if nobody kills us before."""
        recorder = self._recorder = await self._begin()
        self.say("up")
        running = asyncio.create_task(recorder.run())
        for sync_id in unanswered:
            self._mark(sync_id)
        for number in range(readings):
            recorder.take(arrival(self._clock, f"{self._life}.{number:06d}"))
            if self._rng.random() < 0.05:
                self._mark(f"{self._life * 1000 + len(self._asked) + 1:08x}-0000-4000-8000-000000000000")
            if self._rng.random() < 0.3:
                await asyncio.sleep(0.001)
        await asyncio.gather(*self._asked)
        await recorder.stop()
        await running

    async def _begin(self) -> Recorder:
        if (self._folder / "session.json").exists():
            return await Recorder.resume(self._folder, self._clock, self)
        return await Recorder.create(self._folder, new_record(ROLL_S), self._clock, self)

    def _mark(self, sync_id: str) -> None:
        self.say("ask", sync_id)
        now = self._clock.stamp()
        marker = Marker(sync_id, "PERIODIC", 0, 0, now.mono_ns, now.utc_ns, -1)
        self._asked.add(asyncio.create_task(self._until_marked(marker)))

    async def _until_marked(self, marker: Marker) -> None:
        assert self._recorder is not None
        recorded, _ = await self._recorder.mark(marker)
        self.say("marker", recorded.sync_id, recorded.after_seq)


def end_as(work: Callable[[], None]) -> None:
    """What a forked process does instead of going on as its parent."""
    code = 70
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001  it must not get past this
        traceback.print_exc()
    finally:
        os._exit(code)
