"""A UDP socket for clock exchanges: every datagram comes with the instant it reached this machine.

A process is woken late, later on a slow machine than on a fast one, and half of the difference is
mistaken for an offset. The kernel stamps a datagram at its arrival (SO_TIMESTAMPNS), but on its own
wall clock, which may be stepped or slewed, and need not be the one that this process is shown. So
that clock is never read here: a datagram sent to ourselves, stamped by the same kernel between two
readings of our own clock, says how the two stand.
"""

import asyncio
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from common.clock import Clock
from common.messages import Stamp

Address: TypeAlias = Any  # as the socket gives it: another tuple for IPv4 and IPv6
Ancillary: TypeAlias = list[tuple[int, int, bytes]]
Take: TypeAlias = Callable[[bytes, Address, Stamp], None]

LONGEST = 2048  # bytes; the datagrams of an exchange have 64
FRESH_NS = 1_000_000_000  # an arrival longer after a comparison with the kernel's clock is not dated by it
KEPT = 64  # comparisons: datagrams that waited while the process was held up arrived before some

_SO_TIMESTAMPNS = 35  # Linux; the socket module does not name it
_TIMESPEC = struct.Struct("@ll")


class TimeSocket:
    """One UDP socket; `take(datagram, sender, stamp)` is called from the event loop.

    A stamp is never earlier than the arrival, so that the brackets of an exchange stay true; it is as
    near to it as the kernel tells, and at the latest the instant at which Python had the datagram.
    """

    def __init__(self, sock: socket.socket, clock: Clock, take: Take) -> None:
        """*sock* is bound or connected; it is this object's from now on."""
        self._socket, self._clock, self._take = sock, clock, take
        self._kernel = KernelClock.open(clock, sock)
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    @classmethod
    async def bind(cls, clock: Clock, host: str, port: int, take: Take) -> "TimeSocket":
        """Listen on *host*:*port*.

        Raises:
            OSError: it cannot be had.
        """
        return cls(await _first(host, port, socket.socket.bind), clock, take)

    @classmethod
    async def connect(cls, clock: Clock, host: str, port: int, take: Take) -> "TimeSocket":
        """Talk to *host*:*port* and hear nobody else.

        Raises:
            OSError: there is no such host.
        """
        return cls(await _first(host, port, socket.socket.connect), clock, take)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def send(self, datagram: bytes, to: Address = None) -> bool:
        """False if the OS does not take it: a peer that is gone, a full buffer."""
        try:
            if to is None:
                self._socket.send(datagram)
            else:
                self._socket.sendto(datagram, to)
        except OSError:
            return False
        if self._kernel is not None:
            self._kernel.compare()  # now and not before, because the sender has stamped this datagram
        return True

    def _read(self) -> None:
        try:
            datagram, ancillary, _, sender = self._socket.recvmsg(LONGEST, socket.CMSG_SPACE(_TIMESPEC.size))
        except OSError:
            return  # a peer that is gone says so here; the question it did not answer times out
        stamp = self._clock.stamp()
        if self._kernel is not None:
            arrived_ns = self._kernel.arrival_ns(ancillary, stamp.mono_ns)
            late_ns = stamp.mono_ns - arrived_ns
            stamp = Stamp(arrived_ns, (stamp.utc_ns - late_ns) // 1000 * 1000)
        self._take(datagram, sender, stamp)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._kernel is not None:
            self._kernel.close()


class KernelClock:
    """The kernel's stamps of arrivals, put on our monotonic clock."""

    def __init__(self, clock: Clock, mirror: socket.socket) -> None:
        self._clock = clock
        self._mirror = mirror  # connected to itself
        self._sent = 0
        self._compared: deque[tuple[int, int]] = deque(maxlen=KEPT)  # as `latest_arrival_ns` wants them

    @classmethod
    def open(cls, clock: Clock, sock: socket.socket) -> "KernelClock | None":
        """Have the datagrams of *sock* stamped; None where the OS does not."""
        if sys.platform != "linux":
            return None
        mirror = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            mirror.bind(("127.0.0.1", 0))
            mirror.connect(mirror.getsockname())
            mirror.setblocking(False)
            for one in (mirror, sock):
                one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        except OSError:
            mirror.close()
            return None
        return cls(clock, mirror)

    def compare(self) -> None:
        """Send ourselves a datagram: the kernel stamps it before we have it back."""
        self._sent += 1
        said, heard = self._sent.to_bytes(8), b""
        ancillary: Ancillary = []
        try:
            self._mirror.send(said)
            while heard != said:  # an earlier one that was not back at once
                heard, ancillary, _, _ = self._mirror.recvmsg(8, socket.CMSG_SPACE(_TIMESPEC.size))
        except OSError:
            return  # not back at once
        now_ns, stamped_ns = self._clock.mono_ns(), _kernel_stamp_ns(ancillary)
        if stamped_ns is not None:
            self._compared.append((stamped_ns - now_ns, now_ns))

    def arrival_ns(self, ancillary: Ancillary, had_ns: int) -> int:
        """When a datagram that Python has had at *had_ns* arrived, on our clock, or shortly after that."""
        self.compare()
        stamped_ns = _kernel_stamp_ns(ancillary)
        return had_ns if stamped_ns is None else latest_arrival_ns(stamped_ns, had_ns, self._compared)

    def close(self) -> None:
        self._mirror.close()


def latest_arrival_ns(stamped_ns: int, had_ns: int, compared: Sequence[tuple[int, int]]) -> int:
    """When a datagram with this stamp of the kernel had arrived at the latest, on our clock.

    Of the comparisons from the last one before the arrival on, that one is used which dates it latest:
    true whatever the kernel's clock did, as long as it was not moved to and fro between two of them.

    Args:
        had_ns: when Python had the datagram, on our clock; the answer where nothing better is sure.
        compared: (kernel - ours at least, when on our clock) in ns, oldest first.
    """
    if not compared or compared[-1][1] < had_ns:
        return had_ns
    ahead_ns = compared[-1][0]
    for least_ns, when_ns in reversed(compared):
        ahead_ns = min(ahead_ns, least_ns)
        arrived_ns = stamped_ns - ahead_ns
        if arrived_ns >= when_ns:
            return min(arrived_ns, had_ns) if arrived_ns - when_ns <= FRESH_NS else had_ns
    return had_ns


def _kernel_stamp_ns(ancillary: Ancillary) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS) and len(data) == _TIMESPEC.size:
            seconds, ns = _TIMESPEC.unpack(data)
            return int(seconds) * 1_000_000_000 + int(ns)
    return None


async def _first(host: str, port: int, claim: Callable[[socket.socket, Address], None]) -> socket.socket:
    """A UDP socket on the first address of *host* that lets itself be claimed."""
    loop, refused = asyncio.get_running_loop(), OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        sock = socket.socket(family, kind, protocol)
        try:
            claim(sock, address)
        except OSError as error:
            sock.close()
            refused = error
        else:
            return sock
    raise refused
