"""Answers "what time is it?" datagrams."""

import logging

from common.clock import Clock
from common.messages import Stamp, TimeReply, pack_time_reply, unpack_time_request
from common.timesocket import Address, TimeSocket

log = logging.getLogger(__name__)


class TimeServer:
    """One UDP socket; malformed datagrams are counted and not answered, answers not taken likewise."""

    def __init__(self, clock: Clock) -> None:
        self.answered = self.malformed = self.unanswered = 0
        self._clock = clock
        self._socket: TimeSocket

    @classmethod
    async def bind(cls, clock: Clock, host: str, port: int, any_port: bool) -> "TimeServer":
        """Listen on *host*:*port*; if that is taken and *any_port* is set, on any free port.

        Raises:
            OSError: it cannot be bound.
        """
        server = cls(clock)
        try:
            server._socket = await TimeSocket.bind(clock, host, port, server._answer)
        except OSError:
            if not any_port:
                raise
            server._socket = await TimeSocket.bind(clock, host, 0, server._answer)
            log.warning("udp port %d is taken, time is served on %d", port, server.port)
        return server

    @property
    def port(self) -> int:
        return self._socket.port

    @property
    def counts(self) -> dict[str, int]:
        return {"answered": self.answered, "malformed": self.malformed, "unanswered": self.unanswered}

    def _answer(self, datagram: bytes, sender: Address, received: Stamp) -> None:
        request = unpack_time_request(datagram)
        if request is None:
            self.malformed += 1
            return
        xid, t1_ns = request
        boot_id, t2_ns = self._clock.boot_id, received.mono_ns
        reply = TimeReply(xid, t1_ns, t2_ns, self._clock.mono_ns(), received.utc_ns, boot_id)
        if self._socket.send(pack_time_reply(reply), sender):
            self.answered += 1
        else:
            self.unanswered += 1

    def close(self) -> None:
        self._socket.close()
