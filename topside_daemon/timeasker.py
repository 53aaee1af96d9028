"""Asks the Pi's time responder, by UDP, and keeps its answers apart."""

import asyncio
import itertools
from collections.abc import Sequence

from msgspec import structs

from common.clock import Clock
from common.messages import Exchange, Stamp, TimeReply, pack_time_request, unpack_time_reply
from common.timesocket import Address, TimeSocket
from topside_daemon.fusion.bursts import refusal

SPACING_S = 0.03  # between the questions of a burst, so that one queue does not hit all of them
REPLY_S = 0.5  # an answer later than this is kept, and worth nothing
GIVEN_UP = 256  # questions whose answer would still be recognised


class TimeAsker:
    """One UDP socket to the time responder; one burst at a time."""

    def __init__(self, clock: Clock, port: int) -> None:
        self.port = port
        self.cut_off = False  # the OS refuses to send: another socket may have a way out
        self.strays = 0  # datagrams that answer no question, or one that was answered before
        self._clock = clock
        self._xids = itertools.count(clock.mono_ns() & 0xFFFF_FFFF)
        self._asked: dict[int, Exchange] = {}  # and not answered yet, oldest first
        self._burst: dict[int, Exchange] = {}  # the one under way, with what has been answered
        self._late: list[Exchange] = []
        self._heard = asyncio.Event()
        self._socket: TimeSocket

    @classmethod
    async def connect(cls, clock: Clock, host: str, port: int) -> "TimeAsker":
        """Ask *host*:*port*.

        Raises:
            OSError: there is no such host.
        """
        asker = cls(clock, port)
        asker._socket = await TimeSocket.connect(clock, host, port, asker._hear)
        return asker

    async def burst(self, blanks: Sequence[Exchange]) -> list[Exchange]:
        """Fill in these exchanges, a question each, `timeout` where no answer came.

        Before them stand the answers to earlier questions that have come since, as `late`.
        """
        self._burst = {}
        for blank in blanks:
            self._ask(blank)
            await asyncio.sleep(SPACING_S)
        try:
            async with asyncio.timeout(REPLY_S):
                while self._burst.keys() & self._asked.keys():
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            pass
        burst, self._burst = self._burst, {}
        late, self._late = self._late, []
        while len(self._asked) > GIVEN_UP:
            del self._asked[next(iter(self._asked))]
        return late + list(burst.values())

    def _ask(self, blank: Exchange) -> None:
        """t1 is read right before the datagram leaves."""
        xid, sent = next(self._xids), self._clock.stamp()
        left = self._socket.send(pack_time_request(xid, sent.mono_ns))
        self.cut_off |= not left
        self._burst[xid] = structs.replace(
            blank,
            transport="udp",
            t1_ns=sent.mono_ns,
            topside_utc_ns=sent.utc_ns,
            status="timeout" if left else "refused: this machine did not send it",
        )
        if left:
            self._asked[xid] = self._burst[xid]

    def _hear(self, datagram: bytes, _sender: Address, received: Stamp) -> None:
        reply = unpack_time_reply(datagram)
        asked = self._asked.get(reply.xid) if reply is not None else None
        if reply is None or asked is None or reply.t1_ns != asked.t1_ns:
            self.strays += 1
            return
        del self._asked[reply.xid]
        answered = _answered(asked, reply, received.mono_ns)
        if reply.xid in self._burst:
            self._burst[reply.xid] = answered
            self._heard.set()
        else:
            self._late.append(structs.replace(answered, status="late"))

    def close(self) -> None:
        self._socket.close()


def _answered(asked: Exchange, reply: TimeReply, received_ns: int) -> Exchange:
    answered = structs.replace(
        asked,
        t2_ns=reply.t2_ns,
        t3_ns=reply.t3_ns,
        t4_ns=received_ns,
        pi_boot_id=reply.boot_id,
        pi_utc_ns=reply.utc_ns,
        status="ok" if received_ns - asked.t1_ns <= REPLY_S * 1e9 else "late",
    )
    if answered.status == "ok" and asked.pi_boot_id not in (None, reply.boot_id):
        return structs.replace(answered, status="refused: the answer of another boot")
    reason = refusal(answered)
    if answered.status == "ok" and reason is not None:
        return structs.replace(answered, status=f"refused: {reason}")
    return answered
