"""The time responder on a real UDP socket."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from common.clock import SystemClock
from common.messages import TimeReply, pack_time_reply, pack_time_request, unpack_time_reply
from pi_daemon.timeserver import TimeServer
from tests.sim.clocks import SimClock


@pytest_asyncio.fixture
async def server() -> AsyncIterator[TimeServer]:
    server = await TimeServer.bind(SystemClock(), "127.0.0.1", 0, any_port=False)
    yield server
    server.close()


class Asker:
    """A client's socket."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.connect(("127.0.0.1", port))

    async def ask(self, datagram: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, datagram)
        async with asyncio.timeout(10):
            return await loop.sock_recv(self.socket, 1000)


async def test_a_question_is_answered_on_this_machines_clock(server: TimeServer) -> None:
    """The reply has the asker's own numbers and two stamps that lie between asking and hearing."""
    clock, asker = SystemClock(), Asker(server.port)
    for xid in range(5):
        t1_ns = clock.mono_ns()
        reply = unpack_time_reply(await asker.ask(pack_time_request(xid, t1_ns)))
        t4_ns = clock.mono_ns()
        assert reply is not None
        assert (reply.xid, reply.t1_ns, reply.boot_id) == (xid, t1_ns, clock.boot_id)
        assert t1_ns < reply.t2_ns <= reply.t3_ns < t4_ns
    asker.socket.close()


async def test_the_answer_is_the_clocks_own() -> None:
    """What a clock reads is what is sent, wall time too."""
    clock = SimClock()
    server = await TimeServer.bind(clock, "127.0.0.1", 0, any_port=False)
    asker = Asker(server.port)
    now = clock.stamp()
    answer = await asker.ask(pack_time_request(2**64 - 1, -5))
    server.close()
    asker.socket.close()
    assert unpack_time_reply(answer) == TimeReply(
        2**64 - 1, -5, now.mono_ns, now.mono_ns, now.utc_ns, clock.boot_id
    )


async def test_garbage_is_counted_and_not_answered(server: TimeServer) -> None:
    """Wrong lengths, wrong beginnings and replies get no answer; the next question does."""
    asker, loop = Asker(server.port), asyncio.get_running_loop()
    request = pack_time_request(1, 2)
    reply = pack_time_reply(TimeReply(1, 2, 3, 4, 5, SystemClock().boot_id))
    garbage = [b"", request[:-1], request + b"x", b"X" + request[1:], reply, b"\xff" * 1400]
    for datagram in garbage:
        await loop.sock_sendall(asker.socket, datagram)
    answered = unpack_time_reply(await asker.ask(pack_time_request(7, 8)))
    assert answered is not None
    assert answered.xid == 7
    assert server.malformed == len(garbage)
    with pytest.raises(BlockingIOError):
        asker.socket.recv(1000)
    asker.socket.close()


async def test_a_taken_port_is_an_error_or_another_port(server: TimeServer) -> None:
    """A port that was asked for by name must be had; a default may give way to any free one."""
    with pytest.raises(OSError, match="in use"):
        await TimeServer.bind(SystemClock(), "127.0.0.1", server.port, any_port=False)
    other = await TimeServer.bind(SystemClock(), "127.0.0.1", server.port, any_port=True)
    asker = Asker(other.port)
    assert other.port != server.port
    assert unpack_time_reply(await asker.ask(pack_time_request(1, 2))) is not None
    asker.socket.close()
    other.close()
