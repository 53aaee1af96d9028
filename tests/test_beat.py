"""When the clocks are compared: the plan by itself, and carried out over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from common.announcer import Announcer
from common.bus import SURFACE, Publisher
from common.clock import SystemClock
from common.files import Lines, read_lines
from common.messages import Exchange, Marker
from common.recorder import RecordingEnded
from common.unfinished import Unfinished
from tests.sim.disk import full_after
from tests.sim.timekeeper import Timekeeper
from topside_daemon.beat import Beat, Cadence
from topside_daemon.config import Config, Markers
from topside_daemon.deck import Deck, View
from topside_daemon.links import Links
from topside_daemon.markers import MarkerWriter
from topside_daemon.pi import Pi
from topside_daemon.products import SessionRecord

S = 1_000_000_000
START_NS = 7 * S

Done = list[tuple[float, str]]  # when after START, and what


def play(
    markers: Markers, until_s: float, burst_s: float = 0.3, unsettled: bool = False, restart_s: float = -1
) -> Done:
    """Follow the plan after a START, each comparison taking *burst_s*; (when begun after START, kind)."""
    cadence, now_ns = Cadence(markers, START_NS), START_NS
    done: Done = []
    cadence.restart(START_NS)
    cadence.begun((START_NS, "PROBE"), START_NS)
    restart_ns = START_NS + round(restart_s * S) if restart_s >= 0 else None
    while (planned := cadence.next(now_ns, unsettled)) is not None:
        if restart_ns is not None and planned[0] > restart_ns:
            now_ns, restart_ns = max(now_ns, restart_ns), None
            cadence.restart(now_ns)
            continue
        now_ns = max(now_ns, planned[0])
        if now_ns > START_NS + until_s * S:
            break
        cadence.begun(planned, now_ns)
        done.append(((now_ns - START_NS) / S, planned[1]))
        now_ns += round(burst_s * S)
    return done


def test_the_default_plan() -> None:
    """START stands for the first instant of the fast start; then its others, and a marker every 30 s."""
    probes = [(3, "PROBE"), (8, "PROBE"), (18, "PROBE"), (38, "PROBE"), (78, "PROBE")]
    beats = [(30, "PERIODIC"), (60, "PERIODIC"), (90, "PERIODIC"), (120, "PERIODIC")]
    assert play(Markers(), 120) == sorted(probes + beats)


def test_while_the_drift_changes() -> None:
    """Every 10 s, without crowding what is due anyway; markers stay where they are."""
    done = play(Markers(), 200, unsettled=True)
    assert [at for at, kind in done if kind == "PERIODIC"] == [30, 60, 90, 120, 150, 180]
    apart = [after - before for (before, _), (after, _) in pairwise(done)]
    assert max(apart) < 15 and min(apart[3:]) >= 5
    assert [at for at, _ in done if at >= 120] == [120, 130, 140, 150, 160, 170, 180, 190, 200]
    assert play(Markers(interval_min_s=0), 200, unsettled=True) == play(Markers(), 200)


def test_after_a_restart_the_fast_start_runs_again() -> None:
    """From its first instant on; the markers' beat is not moved."""
    done = play(Markers(), 140, restart_s=45)
    assert [at for at, kind in done if kind == "PROBE"] == [3, 8, 18, 38, 45, 48, 53, 63, 83, 123]
    assert [at for at, kind in done if kind == "PERIODIC"] == [30, 60, 90, 120]


def test_without_markers_there_is_the_fast_start_alone() -> None:
    """interval_s = 0: the fast start, or nothing, however the drift changes."""
    only = Markers(interval_s=0, fast_start_s=(0, 2, 1))
    assert play(only, 1000, unsettled=True) == [(1, "PROBE"), (2, "PROBE")]
    assert play(Markers(interval_s=0, fast_start_s=()), 1000, unsettled=True) == []


def test_one_comparison_stands_for_all_that_were_due() -> None:
    """A marker and a probe at one instant are one comparison; what a slow one has delayed is not piled up."""
    assert play(Markers(fast_start_s=(30, 60)), 60) == [(30, "PERIODIC"), (60, "PERIODIC")]
    slow = play(Markers(fast_start_s=(1, 2, 3, 4, 20)), 100, burst_s=10)
    assert slow[:3] == [(1, "PROBE"), (11, "PROBE"), (21, "PROBE")]
    assert slow[3:] == [(31, "PERIODIC"), (60, "PERIODIC"), (90, "PERIODIC")]
    assert play(Markers(fast_start_s=()), 200, burst_s=35) == [
        (30, "PERIODIC"),
        (65, "PERIODIC"),
        (100, "PERIODIC"),
        (150, "PERIODIC"),
        (185, "PERIODIC"),
    ]


@given(
    st.floats(1, 60),
    st.floats(0, 30),
    st.lists(st.floats(0, 100), max_size=8),
    st.floats(0, 0.45),
    st.booleans(),
)
def test_markers_stay_on_their_beat(
    interval_s: float, hurry_s: float, fast_s: list[float], burst_share: float, unsettled: bool
) -> None:
    """Each whole interval from START has its marker, late by one comparison at most, whatever is between."""
    burst_s = burst_share * interval_s
    markers = Markers(fast_start_s=tuple(fast_s), interval_s=interval_s, interval_min_s=hurry_s)
    done = play(markers, 20.5 * interval_s, burst_s, unsettled)
    beats = [at for at, kind in done if kind == "PERIODIC"]
    assert len(beats) == 20
    for number, at in enumerate(beats, start=1):
        assert -1e-6 <= at - number * interval_s <= burst_s + 1e-6
    starts = [at for at, _ in done]
    assert all(after - before >= burst_s - 1e-6 for before, after in pairwise(starts))


@pytest_asyncio.fixture
async def keeper() -> AsyncIterator[Timekeeper]:
    keeper = Timekeeper()
    await keeper.open()
    yield keeper
    await keeper.close()


class Station:
    """A session's markers on their own, started before, with a Pi that is somewhere."""

    def __init__(self, folder: Path, keeper: Timekeeper, markers: Markers) -> None:
        clock = SystemClock()
        self.folder = folder
        self.pi = Pi(keeper.url, clock)
        self.pi.open()
        self.publisher = Publisher("tcp://127.0.0.1:0")
        announcer = Announcer(self.publisher, SURFACE, clock)
        config = Config(markers=markers)
        deck = Deck(config, clock, self.pi, None, announcer, Links(folder), None, Unfinished(folder, list))
        record = SessionRecord("s", "12345678", "m", "", True, False, inwater_started=True)
        self.writer = MarkerWriter(folder, record.sync_id, clock)
        self.bursts: list[list[Exchange]] = []
        self.writer.watch(self.bursts.append)
        self.notes: list[str] = []
        self.beat = Beat(
            self.writer, record, None, deck, View(), lambda kind, detail: self.notes.append(kind)
        )

    def kept(self) -> list[tuple[str, int]]:
        """The bursts in the file, by name."""
        exchanges = read_lines(self.folder / "exchanges.jsonl", Exchange)
        return list(dict.fromkeys((one.kind, one.sequence) for one in exchanges))

    async def has(self, bursts: list[tuple[str, int]]) -> None:
        async with asyncio.timeout(20):
            while self.kept() != bursts:  # noqa: ASYNC110 (a file cannot be awaited)
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        self.beat.stop()
        self.writer.close()
        self.publisher.close()
        await self.pi.close()


Open = Callable[[Markers], Station]


@pytest_asyncio.fixture
async def station(tmp_path: Path, keeper: Timekeeper) -> AsyncIterator[Open]:
    """Opens the station again and again, with START as an earlier run has left it."""
    lines = Lines(tmp_path / "markers.jsonl")
    lines.append(Marker("12345678", "START", 0, 0, 1, 1, -1))
    lines.close()
    opened: list[Station] = []

    def open_one(markers: Markers) -> Station:
        opened.append(Station(tmp_path, keeper, markers))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


async def test_a_resumed_session_begins_with_the_fast_start(station: Open, keeper: Timekeeper) -> None:
    """Then it waits; another boot of the Pi, or a sleep of this machine, begins it again."""
    markers = Markers(fast_start_s=(0, 0.2), interval_s=0, probes=2)
    at = station(markers)
    running = asyncio.create_task(at.beat.run())
    await at.has([("PROBE", 1), ("PROBE", 2)])
    assert at.writer.pi_boot_id == keeper.clock.boot_id
    at.beat.pi_boot(keeper.clock.boot_id)
    keeper.clock.reboot()
    at.beat.pi_boot(keeper.clock.boot_id)
    await at.has([("PROBE", number) for number in range(1, 5)])
    at.beat.restart()
    await at.has([("PROBE", number) for number in range(1, 7)])
    at.beat.stop()
    async with asyncio.timeout(5):
        await running
    assert [len(burst) for burst in at.bursts] == [2] * 6
    assert [marker.kind for marker in read_lines(at.folder / "markers.jsonl", Marker)] == ["START"]


async def test_a_boot_that_a_burst_shows_begins_it_again_too(station: Open, keeper: Timekeeper) -> None:
    """The exchanges themselves say that the Pi's clock is another one."""
    markers = Markers(fast_start_s=(0, 0.6), interval_s=0, probes=1)
    at = station(markers)
    running = asyncio.create_task(at.beat.run())
    await at.has([("PROBE", 1)])
    keeper.clock.reboot()
    await at.has([("PROBE", 1), ("PROBE", 2), ("PROBE", 3), ("PROBE", 4)])
    at.beat.stop()
    await running


async def test_numbers_go_on_after_a_restart(station: Open) -> None:
    """No two bursts of a session have one name, whatever was killed between them."""
    markers = Markers(fast_start_s=(0,), interval_s=0.5, probes=1)
    for last in (1, 2):
        at = station(markers)
        running = asyncio.create_task(at.beat.run())
        await at.has([(kind, n + 1) for n in range(last) for kind in ("PROBE", "PERIODIC")])
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_session_that_is_being_stopped_takes_its_stop_alone(station: Open) -> None:
    """No beat and no user's mark stands after STOP."""
    at = station(Markers(probes=1))
    at.beat.stop()
    await at.beat.run()
    with pytest.raises(RecordingEnded):
        await at.beat.mark("PERIODIC", "too late")
    await at.beat.mark("STOP", None)
    assert at.kept() == [("STOP", 0)]


async def test_a_pi_that_is_not_there_is_one_failed_exchange(station: Open, keeper: Timekeeper) -> None:
    """With its reason, for each burst; and the beat goes on."""
    await keeper.close()
    at = station(Markers(fast_start_s=(0, 0.1), interval_s=0, probes=8))
    running = asyncio.create_task(at.beat.run())
    await at.has([("PROBE", 1), ("PROBE", 2)])
    at.beat.stop()
    await running
    exchanges = list(read_lines(at.folder / "exchanges.jsonl", Exchange))
    assert len(exchanges) == 2
    assert all(one.status.startswith("refused: cannot reach the Pi") for one in exchanges)
    assert at.notes == []


async def test_a_disk_that_refuses_exchanges_is_said(station: Open) -> None:
    """No estimate stands on what is not in the file; the session goes on, and keeps what comes after."""
    at = station(Markers(fast_start_s=(0, 0.1), interval_s=0, probes=1))
    with full_after(10):
        running = asyncio.create_task(at.beat.run())
        async with asyncio.timeout(20):
            while len(at.notes) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert at.notes == ["exchanges_not_kept"] * 2 and at.bursts == []
    at.beat.restart()
    await at.has([("PROBE", 3), ("PROBE", 4)])
    at.beat.stop()
    await running
    assert [len(burst) for burst in at.bursts] == [1, 1]
