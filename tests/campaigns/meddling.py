"""What arrives is not what was listed: bytes turned on the way, files changed after they were named."""

import asyncio
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.campaigns.findings import Findings
from tests.sim.copies import ROLL_S, Copy, Vessel, differences, invented, strays
from topside_daemon.pi import Pi, PiError

TRIES = 100  # what came damaged is asked for again only after a while
A_ROW = b",freerun,"
ASKED = re.compile(rb"GET /files/[0-9a-f-]{36}/(chunk_\d+\.csv)")


def turned(content: bytes, at: int, bit: int) -> bytes:
    """The same bytes but for one bit."""
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


class Meddler:
    """Looks at what a relay carries, and meddles with it when asked to."""

    def __init__(self, rng: random.Random) -> None:
        self.to_turn = 0  # chunks in which one bit is to be turned
        self.to_spoil: Path | None = None  # the file that `spoil` changes when it is asked for
        self.spoil: Callable[[Path], object] = Path.unlink
        self._rng = rng

    def __call__(self, upward: bool, piece: bytes) -> bytes:
        if upward:
            self._look(piece)
        elif self.to_turn and A_ROW in piece:
            self.to_turn -= 1
            at = self._rng.randrange(piece.index(A_ROW), piece.rindex(A_ROW) + len(A_ROW))
            return turned(piece, at, self._rng.randrange(8))
        return piece

    def _look(self, piece: bytes) -> None:
        asked = ASKED.match(piece)
        if self.to_spoil is not None and asked and asked[1].decode() == self.to_spoil.name:
            self.spoil(self.to_spoil)
            self.to_spoil = None


def turn_a_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(turned(content, len(content) // 2, 0))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILS: dict[str, Callable[[Path], object]] = {
    "turned": turn_a_bit,
    "cut short": cut_short,
    "removed": Path.unlink,
}


class MeddlingTrial:
    """Copies of what a Pi has recorded, each of them meddled with once."""

    def __init__(self, vessel: Vessel, pi: Pi, meddler: Meddler, folder: Path, findings: Findings) -> None:
        self._vessel, self._pi, self._meddler = vessel, pi, meddler
        self._folder, self._findings, self._tally = folder, findings, findings.tally
        self._rng = random.Random(findings.seed)

    async def run(self, count: int, spoils: Iterable[str] = SPOILS) -> None:
        """*count* bits turned in sealed chunks, one in an open one, and a file spoiled in each way."""
        for step in range(count):
            self._findings.step = step
            await self._turn()
        await self._turn_in_the_open_chunk()
        for name in spoils:
            await self._spoil(name, SPOILS[name])

    async def _new_copy(self, session_id: str) -> Copy:
        self._tally["meddled copies"] += 1
        copy = Copy(self._pi, session_id, self._folder / f"meddled_{self._tally['meddled copies']}")
        await copy.load()
        return copy

    async def _turn(self) -> None:
        copy = await self._new_copy(self._rng.choice(self._vessel.finished))
        self._meddler.to_turn = 1
        await self._judge(copy)
        self._count_turned(copy)

    def _count_turned(self, copy: Copy) -> None:
        self._tally["bits turned"] += 1
        self._tally["noticed"] += copy.notes.count("mirror_refetch")
        if copy.notes != ["mirror_refetch"]:
            self._findings.fail(f"{copy.folder.name}: a bit was turned, and it noted {copy.notes}")

    async def _judge(self, copy: Copy) -> None:
        """It becomes complete, in a while if it must, and then it is all the Pi has."""
        for _ in range(TRIES):
            if not await copy.lacks():
                break
            await asyncio.sleep(0.2)
        else:
            self._findings.fail(f"{copy.folder.name}: never complete")
        original = self._vessel.original(copy.session_id)
        for line in (differences(original, copy.folder) + invented(original, copy.told))[:3]:
            self._findings.fail(f"{copy.folder.name}: {line}")

    async def _turn_in_the_open_chunk(self) -> None:
        """It shows when the chunk is sealed, and then every reading has been told."""
        await self._vessel.start()
        copy = await self._new_copy(self._vessel.current)
        self._meddler.to_turn = 1
        while self._meddler.to_turn:
            await copy.mirror.pull()
            await asyncio.sleep(0.1)
        await asyncio.sleep(2 * ROLL_S)
        await copy.mirror.pull()
        if strays(self._vessel.original(copy.session_id), copy.folder):
            self._findings.fail(f"{copy.folder.name}: a bit of the open chunk stayed turned")
        if {reading.seq for reading in copy.told} != set(range(copy.mirror.last_seq + 1)):
            self._findings.fail(f"{copy.folder.name}: not every reading was told")
        await self._vessel.stop()
        await self._judge(copy)
        self._count_turned(copy)

    async def _spoil(self, name: str, spoil: Callable[[Path], object]) -> None:
        """A chunk changes between list and fetch: it is refused, all others are taken; then it is mended."""
        session_id = max(self._vessel.finished, key=lambda one: len(self._chunks(one)))
        path = self._rng.choice(self._chunks(session_id)[:-1])  # the others must be seen to follow
        right = path.read_bytes()
        copy = await self._new_copy(session_id)
        self._meddler.to_spoil, self._meddler.spoil = path, spoil
        try:
            lacking = await copy.lacks()
        except PiError as error:
            lacking = str(error)
        self._tally["files changed"] += 1
        if path.name not in lacking:
            self._findings.fail(f"{path.name} was {name} after it was listed, and it said {lacking!r}")
        others = {each.name for each in self._chunks(session_id)} - {path.name}
        if missing := others - {each.name for each in copy.folder.glob("chunk_*.csv")}:
            self._findings.fail(f"{path.name} was {name}, and {len(missing)} others were not copied for it")
        path.write_bytes(right)
        await self._judge(copy)

    def _chunks(self, session_id: str) -> list[Path]:
        return sorted(self._vessel.original(session_id).glob("chunk_*.csv"))

    def summary(self) -> str:
        """What was done and what became of it."""
        tried = self._findings.counts("bits turned", "noticed", "files changed")
        return f"meddling  {tried} after they were listed"
