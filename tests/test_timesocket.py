"""Arrivals on real UDP sockets, dated by the kernel and never too early."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from common.clock import SystemClock
from common.messages import Stamp
from common.timesocket import TimeSocket, latest_arrival_ns
from tests.sim.rig import FAKETIME, ROOT

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux stamps arrivals")
CLOCK = SystemClock()


class Ear:
    """A socket that listens, and one that talks to it; what is said is the instant it was said at."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[tuple[int, Stamp, int]] = asyncio.Queue()
        self.listening: TimeSocket
        self.talking: TimeSocket

    async def open(self) -> "Ear":
        self.listening = await TimeSocket.bind(CLOCK, "127.0.0.1", 0, self._take)
        self.talking = await TimeSocket.connect(CLOCK, "127.0.0.1", self.listening.port, self._take)
        return self

    def _take(self, datagram: bytes, _sender: object, stamp: Stamp) -> None:
        self._heard.put_nowait((int(datagram), stamp, CLOCK.mono_ns()))

    def say(self) -> None:
        assert self.talking.send(str(CLOCK.mono_ns()).encode())

    async def hear(self, count: int) -> list[tuple[int, Stamp, int]]:
        """The next datagrams: when they were said, stamped and had."""
        async with asyncio.timeout(10):
            return [await self._heard.get() for _ in range(count)]

    def close(self) -> None:
        self.listening.close()
        self.talking.close()


def hold_up() -> int:
    """Let the event loop stand still; when that has ended."""
    time.sleep(0.005)
    return CLOCK.mono_ns()


@pytest_asyncio.fixture
async def ear() -> AsyncIterator[Ear]:
    ear = await Ear().open()
    yield ear
    ear.close()


async def test_a_stamp_lies_between_saying_and_having(ear: Ear) -> None:
    """However often it is asked; its wall time was read with it."""
    for _ in range(50):
        ear.say()
        ((said_ns, stamp, had_ns),) = await ear.hear(1)
        now = CLOCK.stamp()
        assert said_ns <= stamp.mono_ns <= had_ns
        assert abs((now.utc_ns - now.mono_ns) - (stamp.utc_ns - stamp.mono_ns)) < 100_000_000
        assert stamp.utc_ns % 1000 == 0


@LINUX
async def test_what_waited_for_a_process_that_was_held_up_is_dated_by_its_arrival(ear: Ear) -> None:
    """A queue of datagrams that Python gets late, all at once, is dated as it came in."""
    ear.say()
    await ear.hear(1)
    free_ns = 0
    for _ in range(8):
        ear.say()
        free_ns = hold_up()
    heard = await ear.hear(8)
    for said_ns, stamp, had_ns in heard:
        assert said_ns <= stamp.mono_ns < free_ns < had_ns
    assert heard == sorted(heard, key=lambda one: one[1].mono_ns)


@LINUX
async def test_the_first_datagram_is_dated_by_python(ear: Ear) -> None:
    """Without a comparison of the clocks before it, no stamp of the kernel is relied on."""
    ear.say()
    free_ns = hold_up()
    ((_, stamp, had_ns),) = await ear.hear(1)
    assert free_ns < stamp.mono_ns <= had_ns


async def test_a_peer_that_is_not_there_is_silence() -> None:
    """Nothing is raised by sending to a closed port, nor by what the OS says of it afterwards."""
    free = await TimeSocket.bind(CLOCK, "127.0.0.1", 0, lambda *_: None)
    port = free.port
    free.close()
    heard: list[bytes] = []
    alone = await TimeSocket.connect(CLOCK, "127.0.0.1", port, lambda datagram, *_: heard.append(datagram))
    for _ in range(3):
        alone.send(b"?")
        await asyncio.sleep(0.01)
    alone.close()
    assert heard == []


async def test_a_host_without_an_address_is_an_error() -> None:
    """A name that cannot be resolved raises OSError."""
    with pytest.raises(OSError, match=r"."):
        await TimeSocket.connect(CLOCK, "no such host", 1, lambda *_: None)


@st.composite
def kernels(draw: st.DrawFn) -> tuple[int, int, int, list[tuple[int, int]]]:
    """(arrival, kernel's stamp of it, had, comparisons): the kernel's clock is set and slewed at will, one
    way between any two comparisons, and a comparison takes a while."""
    gaps_ns = draw(st.lists(st.integers(1, 400_000_000), min_size=1, max_size=8))
    moves_ns = draw(
        st.lists(st.integers(-1_000_000, 1_000_000) | st.integers(-(10**13), 10**13), min_size=8, max_size=8)
    )
    arrival_at = draw(st.integers(0, len(gaps_ns) - 1))
    share, moved_by_then = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    now_ns, ahead_ns = 10**15, draw(st.integers(-(10**18), 10**18))
    compared, arrived_ns, stamped_ns = [], 0, 0
    for number, gap_ns in enumerate(gaps_ns):
        if number:  # nothing is compared before the first gap: the arrival may lie before all of them
            compared.append((ahead_ns - draw(st.integers(0, 50_000)), now_ns))
        if number == arrival_at:
            arrived_ns = now_ns + round(gap_ns * share)
            stamped_ns = arrived_ns + ahead_ns + round(moves_ns[number] * moved_by_then)
        now_ns += gap_ns
        ahead_ns += moves_ns[number]
    had_ns = draw(st.integers(arrived_ns, now_ns))
    compared.append((ahead_ns - draw(st.integers(0, 50_000)), now_ns))
    return arrived_ns, stamped_ns, had_ns, compared


@given(kernels())
def test_no_clock_of_the_kernel_dates_an_arrival_too_early(
    drawn: tuple[int, int, int, list[tuple[int, int]]],
) -> None:
    """Set or slewed between any two comparisons, it costs accuracy and never the truth of a bracket."""
    arrived_ns, stamped_ns, had_ns, compared = drawn
    assert arrived_ns <= latest_arrival_ns(stamped_ns, had_ns, compared) <= had_ns


@given(st.integers(0, 900_000_000), st.integers(0, 10**9), st.integers(-(10**18), 10**18))
def test_a_steady_clock_of_the_kernel_dates_an_arrival_exactly(
    since_ns: int, waited_ns: int, ahead_ns: int
) -> None:
    """Within a second of a comparison, however long Python took to come for it."""
    arrived_ns = 10**12 + since_ns
    had_ns = arrived_ns + waited_ns
    compared = [(ahead_ns, 10**12), (ahead_ns, had_ns + 10_000)]
    assert latest_arrival_ns(arrived_ns + ahead_ns, had_ns, compared) == arrived_ns


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed (apt install faketime)")
@pytest.mark.parametrize("fake", ["+0 x1.0001", "-3600", "+1000 x0.9995"])
def test_a_process_that_is_shown_another_time_is_not_misled(fake: str) -> None:
    """The kernel's stamps come on the kernel's clock, not on the one that libfaketime shows."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.arrivals"],
        cwd=ROOT,
        env={"LD_PRELOAD": str(FAKETIME), "FAKETIME": fake, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    stamped = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(stamped) == 50
    assert all(said_ns <= stamp_ns <= had_ns for said_ns, stamp_ns, had_ns in stamped)
    assert sum(had_ns - stamp_ns > 3_000_000 for _, stamp_ns, had_ns in stamped) >= 40
