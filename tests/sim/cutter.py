"""A TCP relay that does harm at an exact byte: it cuts, resets, swallows, holds up or refuses."""

import asyncio
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

PIECE = 65_536
LINGER = struct.pack("ii", 1, 0)  # a close with this is a reset

Address = tuple[str, int]
Outage = Literal["refuse", "hole", "stall"]
Cut = Literal["fin", "rst"]
How = Literal["watch"] | Cut | Outage
CUTS: tuple[Cut, ...] = ("fin", "rst")
OUTAGES: tuple[Outage, ...] = ("refuse", "hole", "stall")
Through = Callable[[bool, bytes], bytes]


@dataclass(frozen=True)
class Harm:
    """What is to happen once a number of bytes has passed in one direction, over however many connections.

    watch: nothing, but it is told. fin, rst: the connection that carries the byte is ended or reset.
    refuse: all are reset and nobody gets through for outage_s. hole: what is sent for so long is
    swallowed, and all who sent it are reset after it. stall: it is held, and delivered after it.
    """

    how: How
    upward: bool
    after_bytes: int
    outage_s: float = 0.0


@dataclass(eq=False)
class _Link:
    """A caller's connection, and the one to the target that serves it."""

    ends: list[asyncio.StreamWriter]
    dead: bool = False  # carries nothing any more

    def end(self) -> None:
        self.dead = True
        for end in self.ends:
            end.close()

    def reset(self) -> None:
        self.dead = True
        for end in self.ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
            end.transport.abort()


def as_it_is(_upward: bool, piece: bytes) -> bytes:
    """Nothing is changed."""
    return piece


class Cutter:
    """Relays *listen* to *target* in the running loop; one harm at a time can be armed."""

    def __init__(self, listen: Address, target: Address, through: Through = as_it_is) -> None:
        """*through* sees every piece (upward, to the target, or not) and says what is passed on instead."""
        self._target = target
        self._through = through
        self._harm: Harm | None = None
        self._passed = 0  # bytes since it was armed, in its direction
        self.struck = asyncio.Event()
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._mending: asyncio.Task[None] | None = None
        self._outage: Outage | None = None
        self._whole = asyncio.Event()
        self._whole.set()
        self._place = socket.socket()  # holds the port while nobody listens on it
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(listen)
        self.address: Address = self._place.getsockname()

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mending is not None:
            self._mending.cancel()
        self.cut("refuse")
        self._whole.set()
        await asyncio.gather(*self._serving)
        self._place.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, *self.address, reuse_address=True)

    def arm(self, harm: Harm) -> None:
        """Forget what was armed and has not struck; count bytes from now on."""
        self._harm, self._passed = harm, 0
        self.struck.clear()

    def cut(self, how: Outage) -> None:
        """Begin an outage now, without an end."""
        self._outage = how
        self._whole.clear()
        if how == "refuse":
            self._server.close()
        for link in self._links:
            if how == "refuse":
                link.reset()
            elif how == "hole":
                link.dead = True

    async def mend(self) -> None:
        """End the outage."""
        if self._outage == "refuse":
            await self._listen()
        elif self._outage == "hole":
            for link in self._links:
                link.reset()
        self._outage = None
        self._whole.set()

    @property
    def is_whole(self) -> bool:
        """There is no outage."""
        return self._whole.is_set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link([writer], dead=self._outage == "hole")
        self._links.add(link)
        self._keep(asyncio.current_task())
        try:
            await self._whole.wait()
            if not link.dead:
                target_reader, target_writer = await asyncio.open_connection(*self._target)
                link.ends.append(target_writer)
                await asyncio.gather(
                    self._carry(link, reader, target_writer, True),
                    self._carry(link, target_reader, writer, False),
                )
        except OSError:  # the target is not there
            pass
        finally:
            link.end()
            self._links.discard(link)

    def _keep(self, task: "asyncio.Task[None] | None") -> None:
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _carry(
        self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, upward: bool
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(PIECE):
                piece = self._through(upward, piece)
                harm, kept = self._due(upward, len(piece))
                await self._hand_on(link, sink, piece[:kept])
                if harm is not None:
                    self._strike(harm, link)
                    await self._hand_on(link, sink, piece[kept:])
        await self._whole.wait()  # in an outage not even an end is heard
        link.end()

    def _due(self, upward: bool, size: int) -> tuple[Harm | None, int]:
        """The armed harm if it strikes within these bytes, and how many of them it leaves."""
        harm = self._harm
        if harm is None or harm.upward != upward:
            return None, size
        left = harm.after_bytes - self._passed
        self._passed += size
        if left > size:
            return None, size
        self._harm = None
        return harm, max(left, 0)

    async def _hand_on(self, link: _Link, sink: asyncio.StreamWriter, piece: bytes) -> None:
        if self._outage == "stall":
            await self._whole.wait()
        if piece and not link.dead:
            sink.write(piece)
            await sink.drain()

    def _strike(self, harm: Harm, link: _Link) -> None:
        if harm.how == "fin":
            link.end()
        elif harm.how == "rst":
            link.reset()
        elif harm.how != "watch":
            self.cut(harm.how)
            self._mending = asyncio.create_task(self._mend_after(harm.outage_s))
        self.struck.set()

    async def _mend_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.mend()


def drawn(rng: random.Random, how: How, up_bytes: int, down_bytes: int, outage_s: float = 0.0) -> Harm:
    """Harm within so many bytes, up or down; its logarithm is even: in a head as often as in a body."""
    upward = rng.random() < 0.3
    reach = up_bytes if upward else down_bytes
    return Harm(how, upward, round(reach ** rng.random()), outage_s)
