"""The mirror against a real Pi API over real HTTP: whatever happened to the copy, it ends byte-identical."""

import asyncio
import gzip
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from common.announcer import Announcer
from common.bus import INWATER, Publisher
from common.chunkstore import verify
from common.instrument import Instrument, SerialSettings
from common.messages import Marker, Reading
from common.recorder import Recorder
from common.service import Supervisor
from common.web import Refused
from pi_daemon.api import Api
from pi_daemon.config import Config, Recording
from pi_daemon.lease import ABANDONED_S
from pi_daemon.sessions import Sessions, Wish
from tests.sim.clocks import SimClock
from tests.sim.disk import content_of, full_after
from tests.sim.streams import SESSION_ID, Heard, arrival, at_work, new_record, until
from topside_daemon.mirror import Incomplete, Mirror
from topside_daemon.pi import Pi, PiError, Standing


class PiSide:
    """A Pi daemon's recording and HTTP parts in this process, with a recording that is open."""

    def __init__(self, data: Path, port: int) -> None:
        self.clock = SimClock()
        self.folder = data / SESSION_ID
        self.url = f"http://127.0.0.1:{port}"
        self._address = f"127.0.0.1:{port}"
        self._config = Config(data=str(data), recording=Recording(sync_interval_s=0.1))
        self._supervisor = Supervisor()
        self._publisher = Publisher("tcp://127.0.0.1:0")
        self._announcer = Announcer(self._publisher, INWATER, self.clock)
        self._instrument = Instrument(
            SerialSettings(), self.clock, lambda _: None, lambda *_: None, lambda: False
        )
        self.sessions = Sessions(
            self._config, self.clock, self._announcer, self._supervisor, self._instrument
        )

    async def run(self, ready: asyncio.Event) -> None:
        """Serve until stopped; resumes the recording whose folder is there."""
        api = Api(self.sessions, self._instrument, self.clock)

        async def begin() -> None:
            await self.sessions.resume()
            await api.site.listen(self._address)
            ready.set()

        try:
            await self._supervisor.run(begin)
        finally:
            await api.site.close()
            self._publisher.close()

    def end(self) -> None:
        self._supervisor.stop()

    @property
    def recorder(self) -> Recorder:
        assert self.sessions.recorder is not None
        return self.sessions.recorder

    async def record(self, count: int) -> None:
        """Readings come in and become durable."""
        last = self.recorder.last_seq + count
        for _ in range(count):
            self.sessions.take(arrival(self.clock))
        await until(lambda: self.recorder.last_seq == last)
        self.clock.advance(1.0)
        await until(lambda: self.recorder.durable_seq == last)

    async def seal(self) -> None:
        chunks = len(self.recorder.chunks)
        self.clock.advance(16.0)
        await until(lambda: len(self.recorder.chunks) > chunks)


@pytest_asyncio.fixture
async def pi_side(
    tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PiSide]:
    monkeypatch.setattr("common.recorder.SYNC_S", 0.01)
    data = tmp_path / "pi"
    data.mkdir()
    side, ready = PiSide(data, unused_tcp_port), asyncio.Event()
    async with at_work(await Recorder.create(side.folder, new_record(), side.clock, Heard(side.folder))):
        pass
    serving = asyncio.create_task(side.run(ready))
    await ready.wait()
    yield side
    side.end()
    await serving


class Copy:
    """A mirror at work, and what it told."""

    def __init__(self, pi: Pi, folder: Path) -> None:
        self.folder = folder
        self.seqs: list[int] = []
        self.notes: list[str] = []
        self.mirror = Mirror(pi, SESSION_ID, folder, self._rows, self._note)

    def _rows(self, readings: list[Reading]) -> None:
        self.seqs += [reading.seq for reading in readings]

    def _note(self, kind: str, _detail: str, _count: int) -> None:
        self.notes.append(kind)

    async def pull(self) -> Standing:
        return await self.mirror.pull()

    async def complete(self) -> bool:
        """Whether, after a pull, the copy is proven to be all there is."""
        try:
            await self.mirror.prove(await self.pull())
        except Incomplete:
            return False
        return True


@pytest_asyncio.fixture
async def pi(pi_side: PiSide) -> AsyncIterator[Pi]:
    pi = Pi(pi_side.url, SimClock("00000000-0000-4000-8000-0000000000ff"))
    pi.open()
    yield pi
    await pi.close()


async def loaded(pi: Pi, folder: Path) -> Copy:
    copy = Copy(pi, folder)
    await copy.mirror.load()
    return copy


def chunks_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content_of(folder).items() if name.startswith("chunk_")}


async def stopped_recording(pi_side: PiSide) -> None:
    """Three sealed chunks of five readings, a marker among them, and the end."""
    for _ in range(3):
        await pi_side.record(5)
        await pi_side.seal()
    now = pi_side.clock.stamp()
    await pi_side.recorder.mark(Marker("f47ac10b", "STOP", 0, 0, now.mono_ns, now.utc_ns, -1))
    await pi_side.sessions.stop(SESSION_ID, None, force=False)


async def test_the_copy_follows_the_open_chunk(pi_side: PiSide, pi: Pi, tmp_path: Path) -> None:
    """Without waiting for a seal, each pull brings what is durable, once; sealing changes no byte."""
    copy = await loaded(pi, tmp_path / "copy")
    for round_number in range(1, 4):
        await pi_side.record(4)
        standing = await copy.pull()
        assert standing.open_chunk is not None
        assert copy.seqs == list(range(4 * round_number))
        assert chunks_of(copy.folder) == chunks_of(pi_side.folder)
    await pi_side.seal()
    await copy.pull()
    assert copy.seqs == list(range(12))
    assert list(chunks_of(copy.folder)) == ["chunk_00000.csv"]
    assert chunks_of(copy.folder) == chunks_of(pi_side.folder)
    assert not await copy.complete()


async def test_what_is_not_durable_is_not_copied(
    pi_side: PiSide, pi: Pi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that a power cut could still take from the Pi stay there."""
    copy = await loaded(pi, tmp_path / "copy")
    await pi_side.record(3)
    pi_side.recorder.sync_s = 3600
    await asyncio.sleep(0.3)  # the sync that was due before is over, the next one is far away
    pi_side.sessions.take(arrival(pi_side.clock))
    await until(lambda: pi_side.recorder.last_seq == 3)
    await copy.pull()
    assert copy.seqs == [0, 1, 2]


async def test_a_finished_recording_is_complete(pi_side: PiSide, pi: Pi, tmp_path: Path) -> None:
    """All chunks, markers and side files are here, the copy verifies and says that it is complete."""
    copy = await loaded(pi, tmp_path / "copy")
    await stopped_recording(pi_side)
    standing = await copy.pull()
    assert await copy.complete()
    assert chunks_of(copy.folder) == chunks_of(pi_side.folder)
    assert copy.seqs == list(range(15))
    assert verify(copy.folder).damage == []
    for name in ("session.json", "markers.jsonl", "events.jsonl"):
        assert (copy.folder / name).read_bytes() == (pi_side.folder / name).read_bytes()
    assert await copy.pull() == standing
    assert (copy.mirror.rows, copy.mirror.last_seq, copy.notes) == (16, 14, [])


async def test_it_resumes_from_any_cut(pi_side: PiSide, pi: Pi, tmp_path: Path) -> None:
    """Every part of the copy lost, cut or garbled at drawn places: the next run makes it whole again."""
    await pi_side.record(5)
    early = await loaded(pi, tmp_path / "early")
    await early.pull()
    await stopped_recording(pi_side)
    whole = await loaded(pi, tmp_path / "whole")
    await whole.pull()
    number = 0
    for source in (early.folder, whole.folder):
        for path in sorted(source.glob("chunk_*")):
            size = path.stat().st_size
            for cut in (0, 1, 90, size // 2, size - 75, size - 1):
                for tail in (b"", bytes(size - cut), b"\n"):
                    number += 1
                    folder = tmp_path / f"cut_{number}"
                    shutil.copytree(source, folder)
                    (folder / path.name).write_bytes(path.read_bytes()[:cut] + tail)
                    again = await loaded(pi, folder)
                    held = set(range(again.mirror.last_seq + 1))
                    assert await again.complete() or await again.complete()
                    assert held | set(again.seqs) == set(range(20))
                    assert path.suffix == ".csv" or again.notes == []
                    assert chunks_of(folder) == chunks_of(pi_side.folder)
    assert number > 60


@pytest.mark.parametrize("lost", ["chunk_00000.csv", "chunk_00001.csv", "chunk_00002.csv"])
async def test_a_hole_is_filled(pi_side: PiSide, pi: Pi, tmp_path: Path, lost: str) -> None:
    """What is missing is fetched, not only what is newest."""
    await stopped_recording(pi_side)
    copy = await loaded(pi, tmp_path / "copy")
    await copy.pull()
    (copy.folder / lost).unlink()
    again = await loaded(pi, copy.folder)
    assert await again.complete()
    assert chunks_of(copy.folder) == chunks_of(pi_side.folder)


async def test_a_copy_cut_between_two_rows_is_found(pi_side: PiSide, pi: Pi, tmp_path: Path) -> None:
    """A sealed chunk that looks whole and is not the Pi's is noted and fetched again."""
    await stopped_recording(pi_side)
    copy = await loaded(pi, tmp_path / "copy")
    await copy.pull()
    path = copy.folder / "chunk_00002.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    again = await loaded(pi, copy.folder)
    assert await again.complete()
    assert again.notes == ["mirror_refetch"]
    assert chunks_of(copy.folder) == chunks_of(pi_side.folder)


async def test_a_part_that_is_not_the_pis_is_fetched_again(pi_side: PiSide, pi: Pi, tmp_path: Path) -> None:
    """A part whose every row is right, but which the Pi has not, is thrown away when the chunk is sealed."""
    await pi_side.record(5)
    copy = await loaded(pi, tmp_path / "copy")
    await copy.pull()
    path = copy.folder / "chunk_00000.tmp"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    await pi_side.seal()
    again = await loaded(pi, copy.folder)
    await again.pull()
    assert again.notes == ["mirror_refetch"]
    assert chunks_of(copy.folder) == chunks_of(pi_side.folder)


async def test_a_chunk_that_the_pi_has_damaged_is_not_taken(
    pi_side: PiSide, pi: Pi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is missing, by name, and kept beside; said once, asked for again, and taken when it is right."""
    monkeypatch.setattr("topside_daemon.mirror.AVOID_S", 0.05)
    await stopped_recording(pi_side)
    path = pi_side.folder / "chunk_00001.csv"
    right = path.read_bytes()
    path.write_bytes(right.replace(b"0.010157", b"0.010158", 1))
    copy = await loaded(pi, tmp_path / "copy")
    for _ in range(2):
        with pytest.raises(Incomplete, match=r"1 of 4 chunks are not here .*chunk_00001\.csv"):
            await copy.mirror.prove(await copy.pull())
        assert "chunk_00001.csv" not in chunks_of(copy.folder)
        assert "chunk_00002.csv" in chunks_of(copy.folder)
    assert copy.notes == ["mirror_refetch", "chunk_damaged"]
    assert (copy.folder / "chunk_00001.damaged").read_bytes() == path.read_bytes()
    path.write_bytes(right)
    await asyncio.sleep(0.2)
    assert await copy.complete()
    assert chunks_of(copy.folder) == chunks_of(pi_side.folder)


async def test_a_full_disk_here_is_an_error_and_no_damage(pi_side: PiSide, pi: Pi, tmp_path: Path) -> None:
    """A part that could not be kept is told as such, and the next pull goes on behind what was kept."""
    await pi_side.record(5)
    copy = await loaded(pi, tmp_path / "copy")
    await copy.pull()
    await pi_side.record(5)
    held = (copy.folder / "chunk_00000.tmp").stat().st_size
    with full_after(held + 40), pytest.raises(PiError, match="cannot keep the copy"):
        # The Pi side runs in this process too: it must have nothing to write meanwhile.
        await copy.pull()
    assert (copy.folder / "chunk_00000.tmp").stat().st_size == held
    await pi_side.seal()
    await copy.pull()
    assert copy.seqs == list(range(10))
    assert copy.notes == []
    assert chunks_of(copy.folder) == chunks_of(pi_side.folder)


async def test_a_pi_that_is_gone_is_an_error_that_names_it(tmp_path: Path, unused_tcp_port: int) -> None:
    """No Pi: one kind of error, with its address, and nothing is written."""
    pi = Pi(f"http://127.0.0.1:{unused_tcp_port}", SimClock())
    pi.open()
    copy = await loaded(pi, tmp_path / "copy")
    with pytest.raises(PiError, match=f"127.0.0.1:{unused_tcp_port}") as error:
        await copy.pull()
    assert error.value.status is None
    assert list(copy.folder.iterdir()) == []
    await pi.close()


async def test_a_session_the_pi_does_not_know_is_refused_by_it(pi: Pi, tmp_path: Path) -> None:
    """The Pi's own refusal comes through with its status."""
    mirror = Mirror(pi, SESSION_ID.replace("1", "2"), tmp_path / "copy", lambda _: None, lambda *_: None)
    await mirror.load()
    with pytest.raises(PiError, match="unknown session") as error:
        await mirror.pull()
    assert error.value.status == 404


async def test_an_abandoned_recording_makes_room(pi_side: PiSide) -> None:
    """Of an old client that died: ended in order, as soon as the next begins one."""
    await pi_side.record(5)
    another = Wish(None, "next", 500, 1, 15.0, None)
    for asked in (True, False):
        pi_side.clock.advance(ABANDONED_S + 1)
        if asked:
            await pi_side.sessions.find(SESSION_ID)
        with pytest.raises(Refused, match="already recording" if asked else "Not connected"):
            await pi_side.sessions.start(another)
        assert (pi_side.sessions.recorder is not None) == asked
    state = await pi_side.sessions.find(SESSION_ID)
    assert (state.record.state, state.last_seq) == ("stopped", 4)


@pytest.mark.parametrize("packed", [False, True], ids=["endless", "packed"])
async def test_whoever_answers_instead_of_the_pi_costs_no_memory(unused_tcp_port: int, packed: bool) -> None:
    """An answer without end is given up, one that is packed is not unpacked; a redirect is not followed, and
    what is said is shown as one line."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"} if packed else {})
        await response.prepare(request)
        with suppress(ConnectionError):
            for _ in range(2 if packed else 1000):
                await response.write(gzip.compress(b" " * (1 << 20)) if packed else b" " * (1 << 20))
        return response

    async def elsewhere(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/version")

    async def rude(_request: web.Request) -> web.Response:
        return web.json_response({"detail": "no\nERROR forged \x1b[31mline"}, status=400)

    app = web.Application()
    app.router.add_get("/version", endless)
    app.router.add_get("/record/snapshots", elsewhere)
    app.router.add_get("/record/status", rude)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    pi = Pi(f"http://127.0.0.1:{unused_tcp_port}", SimClock())
    pi.open()
    try:
        with pytest.raises(PiError, match="answered something else" if packed else "no Pi daemon"):
            await pi.about()
        with pytest.raises(PiError, match="302"):
            await pi.chunks(SESSION_ID, -1)
        with pytest.raises(PiError) as said:
            await pi.standing(SESSION_ID)
        assert str(said.value) == "no?ERROR forged ?[31mline"
    finally:
        await pi.close()
        await runner.cleanup()
