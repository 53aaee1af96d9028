"""The campaigns of cuts and markers, shortened; and that they would see what they look for."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from common.chunkstore import verify
from tests.campaigns.cuts import MirrorTrial
from tests.campaigns.findings import Findings, workplace
from tests.campaigns.markers import MarkerTrial, judge
from tests.campaigns.meddling import Meddler, MeddlingTrial
from tests.campaigns.tether import TetherTrial
from tests.sim.copies import at_sea, differences, invented, strays
from tests.sim.cutter import Cutter, Harm, Outage
from tests.sim.disk import lay_down
from topside_daemon.mirror import Mirror
from topside_daemon.pi import PiError, Standing

SHORT_S = (1.2, 1.5)  # a session
CHUNK = b"head\r\nrow 0\r\nrow 1\r\n"
ANSWERED = b"0123456789"
Caller = Callable[[], "asyncio.Task[bytes]"]


class Hasty(Mirror):
    """A mirror that takes a failed pull for a good one, and a good one for a proof."""

    async def pull(self) -> Standing:
        try:
            return await super().pull()
        except PiError:
            return Standing(self.session_id, rows=0)

    async def prove(self, standing: Standing) -> None:
        """Nothing is looked at."""


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[Cutter, Caller]]:
    """A cutter before a server that answers ten bytes to four, and a caller that returns what came."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4) == b"call":
            writer.write(ANSWERED)
        writer.close()

    async def call(address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(b"call")
            return await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Cutter(("127.0.0.1", 0), server.sockets[0].getsockname()) as cutter:
        yield cutter, lambda: asyncio.create_task(call(cutter.address))


async def test_a_cut_leaves_the_bytes_before_it() -> None:
    """What comes before the drawn byte arrives, nothing behind it, in either direction; nor is more cut."""
    async with answering() as (cutter, call):
        assert await call() == ANSWERED
        for count in range(10):
            cutter.arm(Harm("fin", upward=False, after_bytes=count))
            assert await call() == ANSWERED[:count]
            assert cutter.struck.is_set()
        cutter.arm(Harm("fin", upward=True, after_bytes=3))
        assert await call() == b""
        cutter.arm(Harm("rst", upward=False, after_bytes=0))
        with pytest.raises(ConnectionResetError):
            await call()
        assert await call() == ANSWERED


async def test_bytes_are_counted_over_connections() -> None:
    """Harm may be armed for a byte that a later connection carries."""
    async with answering() as (cutter, call):
        cutter.arm(Harm("fin", upward=False, after_bytes=25))
        assert [await call() for _ in range(4)] == [ANSWERED, ANSWERED, ANSWERED[:5], ANSWERED]


@pytest.mark.parametrize(
    ("how", "error"), [("refuse", ConnectionRefusedError), ("hole", ConnectionResetError)]
)
async def test_in_an_outage_nobody_gets_through(how: Outage, error: type[OSError]) -> None:
    """Refused, or swallowed and reset in the end; afterwards all is as before."""
    async with answering() as (cutter, call):
        cutter.cut(how)
        lost = call()
        await asyncio.sleep(0.05)
        assert lost.done() is (how == "refuse")
        await cutter.mend()
        with pytest.raises(error):
            await lost
        assert await call() == ANSWERED


async def test_what_is_held_up_arrives() -> None:
    """A stall keeps what is under way, and delivers it when it ends."""
    async with answering() as (cutter, call):
        cutter.arm(Harm("stall", upward=False, after_bytes=4, outage_s=0.1))
        held = call()
        await cutter.struck.wait()
        later = call()
        await asyncio.sleep(0.02)
        assert not held.done() and not later.done()
        assert (await held, await later) == (ANSWERED, ANSWERED)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("chunk_00001.csv", None, "chunk_00001.csv: missing"),
        ("markers.jsonl", None, "markers.jsonl: missing"),
        ("chunk_00000.csv", CHUNK[:-1], "chunk_00000.csv: not the Pi's bytes"),
        ("chunk_00000.csv", CHUNK.replace(b"0", b"1"), "chunk_00000.csv: not the Pi's bytes"),
        ("chunk_00002.tmp", b"head\r\n", "chunk_00002.tmp: left over"),
        ("manifest.json.new", b"{}", "manifest.json.new: left over"),
    ],
)
def test_a_spoiled_copy_is_seen(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    """Each thing that may be wrong with a copy has a line of its own; a right one has none."""
    right = {"chunk_00000.csv": CHUNK, "chunk_00001.csv": CHUNK, "markers.jsonl": b"", "session.json": b"{}"}
    original = lay_down(tmp_path / "pi", right | {"manifest.json": b"{}"})
    copy = lay_down(tmp_path / "copy", right | {"session.csv": b""})
    assert differences(original, copy) == []
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    assert differences(original, copy) == [said]


def test_a_stray_byte_in_a_growing_copy_is_seen(tmp_path: Path) -> None:
    """A copy of an open chunk is a beginning of the Pi's, sealed meanwhile or not."""
    original = lay_down(tmp_path / "pi", {"chunk_00000.csv": CHUNK})
    copy = lay_down(tmp_path / "copy", {"chunk_00000.tmp": CHUNK[:9]})
    assert strays(original, copy) == []
    (copy / "chunk_00000.tmp").write_bytes(CHUNK[:8] + b"x")
    assert strays(original, copy) == ["chunk_00000.tmp: not what the Pi has"]


async def test_cuts_leave_every_copy_whole(tmp_path: Path) -> None:
    """Five cuts and outages while several sessions are copied, bits turned and files changed on the way:
    byte-identical copies; and a mirror that is content with less is found out by the same trial."""
    findings, meddler = Findings(1), Meddler(random.Random(1))
    async with at_sea(tmp_path, findings.seed, meddler, SHORT_S) as (vessel, pi, cutter):
        trial = MirrorTrial(vessel, pi, cutter, tmp_path, findings)
        await trial.run(5)
        meddling = MeddlingTrial(vessel, pi, meddler, tmp_path, findings)
        await meddling.run(2, ("turned", "cut short"))
        assert findings.failures == []
        assert findings.tally["pulls failed"] > 2 and findings.tally["noticed"] == 3
        told = [reading for copy in trial.whole for reading in copy.told]
        assert told and verify(trial.whole[0].folder).damage == []
        strange = msgspec.structs.replace(told[0], value="1.0")
        assert len(invented(vessel.original(trial.whole[0].session_id), [told[0], strange])) == 1
        hasty = MirrorTrial(vessel, pi, cutter, tmp_path / "hasty", Findings(1), Hasty)
        await hasty.run(3)
        assert any("said to be complete, but" in line for line in hasty.findings.failures)


async def test_killed_answers_write_no_marker_twice(tmp_path: Path) -> None:
    """Thirty markers through a link that kills calls: each is kept once, with the time of the first call;
    a row more, a record less or an answer with another time is seen."""
    findings = Findings(1)
    async with at_sea(tmp_path, findings.seed) as (vessel, _pi, cutter):
        trial = MarkerTrial(vessel, cutter, findings)
        await trial.run(30, kills=0)
    assert findings.failures == []
    assert findings.tally["duplicate"] > 5
    key, answers = next(iter(trial.answers.items()))
    later = [msgspec.structs.replace(one, said=one.said | {"t2_ns": 0}) for one in answers]
    assert len(judge(trial.folder, trial.answers | {key: later})) == len(later)
    chunk = min(trial.folder.glob("chunk_*.csv"))
    chunk.write_bytes(
        chunk.read_bytes() + next(row for row in chunk.read_bytes().splitlines(True) if b"SYNC" in row)
    )
    assert ["not in the records" in line for line in judge(trial.folder, trial.answers)] == [True]
    (trial.folder / "markers.jsonl").write_bytes(b"")
    assert len(judge(trial.folder, trial.answers)) > 60


async def test_a_stop_in_an_outage_is_made_good(tmp_path: Path) -> None:
    """Both daemons, a cut, then a stop while nobody answers: incomplete, then whole by itself."""
    findings = Findings(3)
    trial = TetherTrial(tmp_path / "tether", findings)
    await trial.run(1, "refuse")
    assert findings.failures == []
    assert trial.tally["readings"] > 10


@pytest.mark.parametrize("failed", [False, True])
def test_the_verdict(failed: bool) -> None:
    """A failure is kept with its seed and step, its folder stays, and the exit code tells."""
    findings = Findings(7)
    with workplace("verdict", findings, None) as folder:
        if failed:
            findings.step = 3
            findings.fail("it broke")
            assert findings.failures == ["seed 7 step 3: it broke"]
        assert findings.verdict(folder) == int(failed)
    assert folder.exists() is failed
    if failed:
        folder.rmdir()
