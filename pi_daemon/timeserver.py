"""Answers "what time is it?" datagrams, stamped as near the socket as Python allows."""

import asyncio
import logging
from typing import cast

from common.clock import Clock
from common.messages import TimeReply, pack_time_reply, unpack_time_request

log = logging.getLogger(__name__)


class TimeServer(asyncio.DatagramProtocol):
    """One UDP socket; malformed datagrams are counted and not answered."""

    def __init__(self, clock: Clock) -> None:
        self.malformed = 0
        self._clock = clock
        self._transport: asyncio.DatagramTransport

    @classmethod
    async def bind(cls, clock: Clock, host: str, port: int, any_port: bool) -> "TimeServer":
        """Listen on *host*:*port*; if that is taken and *any_port* is set, on any free port.

        Raises:
            OSError: it cannot be bound.
        """
        loop = asyncio.get_running_loop()
        try:
            _, server = await loop.create_datagram_endpoint(lambda: cls(clock), (host, port))
        except OSError:
            if not any_port:
                raise
            _, server = await loop.create_datagram_endpoint(lambda: cls(clock), (host, 0))
            log.warning("udp port %d is taken, time is served on %d", port, server.port)
        return server

    @property
    def port(self) -> int:
        return int(self._transport.get_extra_info("sockname")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        received = self._clock.stamp()
        request = unpack_time_request(data)
        if request is None:
            self.malformed += 1
            return
        xid, t1_ns = request
        boot_id = self._clock.boot_id
        reply = TimeReply(xid, t1_ns, received.mono_ns, self._clock.mono_ns(), received.utc_ns, boot_id)
        self._transport.sendto(pack_time_reply(reply), addr)

    def close(self) -> None:
        self._transport.close()
