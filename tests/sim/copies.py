"""A Pi at sea, the copies that mirrors make of what it records, and what is wrong with them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.messages import Reading
from common.rows import RowError, decode_row
from tests.sim.cutter import Cutter, Through, as_it_is
from tests.sim.disk import content_of
from tests.sim.rig import PiDaemon
from tests.sim.talker import Talker
from topside_daemon.mirror import Incomplete, Mirror
from topside_daemon.pi import Pi

RATE_HZ = 50.0
ROLL_S = 1.0
SESSION_S = (2.0, 6.0)
LABELS = {"session.json", "markers.jsonl", "events.jsonl"}  # mirrored too; they may be older than the Pi's
OURS = {"manifest.json", "manifest.jsonl", "session.csv"}  # each side makes its own


def differences(original: Path, copy: Path) -> list[str]:
    """What keeps a copy from being all that the Pi has and nothing else."""
    held = content_of(copy)
    wanted = {
        name: content
        for name, content in content_of(original).items()
        if name in LABELS or name.startswith("chunk_")
    }
    found = [f"{name}: missing" for name in sorted(wanted.keys() - held.keys())]
    found += [f"{name}: left over" for name in sorted(held.keys() - wanted.keys() - OURS)]
    return found + [
        f"{name}: not the Pi's bytes"
        for name in sorted((wanted.keys() & held.keys()) - LABELS)
        if wanted[name] != held[name]
    ]


def strays(original: Path, copy: Path) -> list[str]:
    """What a copy of a recording that goes on holds and the Pi does not."""
    held = {path: path.read_bytes() for path in copy.glob("chunk_*")}
    wanted = {path.stem: path.read_bytes() for path in original.glob("chunk_*")}  # later: it only grows
    return [
        f"{path.name}: not what the Pi has"
        for path, content in held.items()
        if not wanted.get(path.stem, b"").startswith(content)
    ]


def invented(original: Path, told: list[Reading]) -> list[str]:
    """Readings that a mirror told and the Pi has not recorded."""
    recorded = set()
    for path in original.glob("chunk_*"):
        for line in path.read_bytes().splitlines(keepends=True):
            with suppress(RowError):  # the header
                recorded.add(decode_row(line))
    return [f"told and not recorded: {reading}" for reading in told if reading not in recorded]


class Copy:
    """A copy of one session, made by one mirror after another."""

    def __init__(self, pi: Pi, session_id: str, folder: Path, kind: type[Mirror] = Mirror) -> None:
        self.session_id = session_id
        self.folder = folder
        self.told: list[Reading] = []
        self.notes: list[str] = []
        self._pi = pi
        self._kind = kind

    async def load(self) -> None:
        """Go on with nothing but the folder, as after a restart."""
        self.mirror = self._kind(self._pi, self.session_id, self.folder, self.told.extend, self._note)
        await self.mirror.load()

    async def lacks(self) -> str:
        """Pull, and let the mirror prove the copy: what it says is not there, "" when nothing.

        Raises:
            PiError: the Pi cannot be reached.
        """
        standing = await self.mirror.pull()
        try:
            await self.mirror.prove(standing)
        except Incomplete as error:
            return str(error)
        await self.mirror.close()
        return ""

    def _note(self, kind: str, _detail: str, _count: int) -> None:
        self.notes.append(kind)


class Vessel:
    """A Pi daemon that records one session after another, in many small chunks."""

    def __init__(
        self, daemon: PiDaemon, rng: random.Random, session_s: tuple[float, float] = SESSION_S
    ) -> None:
        self.daemon = daemon
        self.finished: list[str] = []
        self.current = ""
        self._rng = rng
        self._session_s = session_s

    def original(self, session_id: str) -> Path:
        return self.daemon.data / session_id

    async def record(self, enough: asyncio.Event) -> None:
        """Session after session until it is enough; the last one goes on."""
        while not enough.is_set():
            if self.current:
                await self.stop()
            await self.start()
            with suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), self._rng.uniform(*self._session_s))

    async def start(self) -> None:
        said = await self._post("/record/start", {"mission": "cuts", "roll_interval_s": ROLL_S})
        self.current = said["session_id"]

    async def stop(self) -> None:
        session_id, self.current = self.current, ""  # from now on a copy of it may be complete
        await self._post("/record/stop", {"session_id": session_id})
        self.finished.append(session_id)

    async def _post(self, path: str, body: object) -> Any:
        status, said = await asyncio.to_thread(self.daemon.post, path, body)
        assert status == 200, said
        return said


@asynccontextmanager
async def at_sea(
    folder: Path,
    seed: int,
    through: Through = as_it_is,
    session_s: tuple[float, float] = SESSION_S,
) -> AsyncIterator[tuple[Vessel, Pi, Cutter]]:
    """A Pi that hears its sensor, and the topside's view of it through a relay."""
    with Talker(folder / "inwater", RATE_HZ) as talker:
        daemon = PiDaemon(folder / "pi", serial=str(talker.link))
        with daemon:
            daemon.wait_streaming()
            async with Cutter(("127.0.0.1", 0), ("127.0.0.1", daemon.http), through) as cutter:
                pi = Pi(cutter.url, SystemClock())
                pi.open()
                try:
                    yield Vessel(daemon, random.Random(seed), session_s), pi, cutter
                finally:
                    await pi.close()
