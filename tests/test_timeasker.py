"""Clock exchanges over real sockets: with a responder that answers as it likes, and with a Pi over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest_asyncio

from common.clock import SystemClock
from common.messages import (
    Exchange,
    Marker,
    TimeReply,
    pack_time_reply,
    unpack_time_request,
)
from tests.sim.timekeeper import Timekeeper
from topside_daemon.pi import MARKER_PROBE, Pi
from topside_daemon.timeasker import REPLY_S, TimeAsker

CLOCK = SystemClock()
BOOT = "00000000-0000-4000-8000-00000000000c"
Answer = Callable[[int, int], list[tuple[float, TimeReply]]]


def blanks(count: int) -> list[Exchange]:
    return [Exchange("id", "PROBE", 3, n, CLOCK.boot_id, 0, 0) for n in range(count)]


def reply(xid: int, t1_ns: int) -> TimeReply:
    now_ns = CLOCK.mono_ns()
    return TimeReply(xid, t1_ns, now_ns, now_ns, CLOCK.utc_ns(), BOOT)


class Responder(asyncio.DatagramProtocol):
    """Answers the number-th question as *answer* says: replies, and after which delay each is sent."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._asked = 0

    @classmethod
    async def open(cls, answer: Answer) -> "Responder":
        loop = asyncio.get_running_loop()
        _, responder = await loop.create_datagram_endpoint(lambda: cls(answer), ("127.0.0.1", 0))
        return responder

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = unpack_time_request(data)
        assert request is not None
        xid, t1_ns = request
        number, self._asked = self._asked, self._asked + 1
        for delay_s, answer in self._answer(number, xid):
            packed = pack_time_reply(TimeReply(answer.xid, answer.t1_ns or t1_ns, *_rest(answer)))
            asyncio.get_running_loop().call_later(delay_s, self.transport.sendto, packed, addr)


def _rest(answer: TimeReply) -> tuple[int, int, int, str]:
    return answer.t2_ns, answer.t3_ns, answer.utc_ns, answer.boot_id


async def ask(answer: Answer, *bursts: int, pause_s: float = 0.0) -> tuple[list[list[Exchange]], int]:
    """Bursts of so many questions to such a responder; and how many datagrams were no answer."""
    responder = await Responder.open(answer)
    asker = await TimeAsker.connect(CLOCK, "127.0.0.1", responder.port)
    asked = []
    for count in bursts:
        asked.append(await asker.burst(blanks(count)))
        await asyncio.sleep(pause_s)
    asker.close()
    responder.transport.close()
    return asked, asker.strays


def truthful(exchange: Exchange) -> bool:
    """Both machines being this one, both inequalities hold for an offset of 0."""
    assert exchange.t2_ns is not None and exchange.t3_ns is not None and exchange.t4_ns is not None
    return exchange.t3_ns - exchange.t4_ns <= 0 <= exchange.t2_ns - exchange.t1_ns


async def test_every_question_has_its_answer() -> None:
    """A burst comes back in order, each exchange true, told apart by its number."""
    (burst,), strays = await ask(lambda _, xid: [(0, reply(xid, 0))], 8)
    assert [(one.probe, one.status, one.transport) for one in burst] == [(n, "ok", "udp") for n in range(8)]
    assert all(truthful(one) and one.pi_boot_id == BOOT for one in burst)
    assert strays == 0


async def test_lost_repeated_and_swapped_answers() -> None:
    """A loss is a timeout of that one alone; a repeat, a stranger's and a forged answer count as strays."""

    def answer(number: int, xid: int) -> list[tuple[float, TimeReply]]:
        right = reply(xid, 0)
        answers: list[list[tuple[float, TimeReply]]] = [
            [(0.1, right)],  # after the next two
            [(0, right), (0, right)],
            [],
            [(0, TimeReply(xid + 1000, 0, 1, 2, 3, BOOT)), (0.01, right)],
            [(0, TimeReply(xid, 4711, 1, 2, 3, BOOT))],
        ]
        return answers[number]

    (burst,), strays = await ask(answer, 5)
    assert [one.status for one in burst] == ["ok", "ok", "timeout", "ok", "timeout"]
    assert all(truthful(one) for one in burst if one.status == "ok")
    assert [one.t2_ns for one in burst if one.status == "timeout"] == [None, None]
    assert strays == 3


async def test_a_late_answer_is_kept_and_not_mistaken_for_another() -> None:
    """Within the burst it is `late` in its place; after it, the timeout stands and the answer follows."""

    def answer(number: int, xid: int) -> list[tuple[float, TimeReply]]:
        return [({0: REPLY_S + 0.05, 2: 10, 7: REPLY_S + 0.25}.get(number, 0), reply(xid, 0))]

    (burst, after), strays = await ask(answer, 8, 2, pause_s=0.3)
    assert [one.status for one in burst] == ["late", "ok", "timeout", "ok", "ok", "ok", "ok", "timeout"]
    assert [(one.probe, one.status) for one in after] == [(7, "late"), (0, "ok"), (1, "ok")]
    assert truthful(burst[0]) and truthful(after[0])
    assert (after[0].t4_ns or 0) - after[0].t1_ns > REPLY_S * 1e9
    assert after[0].t1_ns == burst[7].t1_ns
    assert strays == 0


async def test_nobody_there() -> None:
    """A burst to a closed port is timeouts, and takes no longer than one of them."""
    responder = await Responder.open(lambda *_: [])
    responder.transport.close()
    await asyncio.sleep(0)
    asker = await TimeAsker.connect(CLOCK, "127.0.0.1", responder.port)
    began_ns = CLOCK.mono_ns()
    burst = await asker.burst(blanks(8))
    asker.close()
    assert len(burst) == 8 and all(one.status != "ok" and one.t4_ns is None for one in burst)
    assert CLOCK.mono_ns() - began_ns < 8 * REPLY_S * 1e9


@pytest_asyncio.fixture
async def keeper() -> AsyncIterator[Timekeeper]:
    keeper = Timekeeper()
    await keeper.open()
    yield keeper
    await keeper.close()


@pytest_asyncio.fixture
async def pi(keeper: Timekeeper) -> AsyncIterator[Pi]:
    pi = Pi(keeper.url, CLOCK)
    pi.open()
    yield pi
    await pi.close()


async def test_udp_goes_first(pi: Pi, keeper: Timekeeper) -> None:
    """With a responder there is no exchange by HTTP."""
    burst = await pi.compare("id", "PROBE", 1, 8)
    assert [(one.transport, one.status, one.probe) for one in burst] == [("udp", "ok", n) for n in range(8)]
    assert all(truthful(one) and one.pi_boot_id == keeper.clock.boot_id for one in burst)
    assert keeper.asked_by_http == 0


async def test_http_is_the_fallback_and_its_exchanges_are_true(pi: Pi, keeper: Timekeeper) -> None:
    """With udp swallowed the burst is asked again by HTTP, over one connection that is warm by then."""
    silent = await Responder.open(lambda *_: [])
    keeper.udp_port = silent.port
    for _ in range(2):
        burst = await pi.compare("id", "PROBE", 1, 4)
        assert [one.transport for one in burst] == ["udp"] * 4 + ["http"] * 4
        assert [one.status for one in burst] == ["timeout"] * 4 + ["ok"] * 4
        assert [one.probe for one in burst] == list(range(8))
        assert all(truthful(one) for one in burst[4:])
    silent.transport.close()
    assert len(keeper.connections) == 1


async def test_an_old_responder_is_asked_by_http_alone(pi: Pi, keeper: Timekeeper) -> None:
    """A Pi that names no time port is not asked by UDP."""
    keeper.udp_port = 0
    burst = await pi.compare("id", "PROBE", 1, 3)
    assert [(one.transport, one.status) for one in burst] == [("http", "ok")] * 3


async def test_the_markers_own_call_is_an_exchange_by_http(pi: Pi, keeper: Timekeeper) -> None:
    """Beside its burst, on the same warm connection whatever else is being fetched, and true."""
    marker = Marker("id", "START", 0, 0, 1, 1, -1)
    burst = await pi.compare("id", "START", 0, 2)
    other = asyncio.create_task(pi.about())
    own = await pi.mark("s", marker)
    await other
    assert (own.probe, own.transport, own.status) == (MARKER_PROBE, "http", "ok")
    assert truthful(own) and own.t1_ns > max(one.t4_ns or 0 for one in burst)
    assert len(keeper.connections) == 2  # one of them is that of the calls that are not timed
    assert pi.machine_id == "m"
