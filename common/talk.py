"""Talking over an open port: runs the talks of `common.menu` against whatever a `Link` carries."""

import asyncio
from contextlib import suppress
from typing import Protocol

from common.clock import Clock
from common.menu import Answer, Ask, T, Talk
from common.qseries import Gate, Quality

DEAF_S = 1.0  # a sensor that heard ESC sends no line later than this
GARBLED_S = 3.0
STEP_S = 0.5  # how often to look at the time while nothing arrives
KEEP = 16_384  # bytes of what is heard; a menu is 1.5 kB


class Link(Protocol):
    """An open port. lost: it is gone for good."""

    baud: int
    lost: bool

    def write(self, data: bytes) -> None:
        """Queue bytes to be sent; never waits."""

    async def set_baud(self, baud: int) -> None:
        """Set the port's speed, again if need be, and forget what was received before."""

    def speed_changed(self) -> bool:
        """Whether another program has set another speed."""
        ...

    def moved(self) -> bool:
        """Whether the port's name now leads elsewhere, or nowhere."""
        ...


class LinkLost(Exception):
    """The port is gone."""


class Talker:
    """Holds one talk at a time; `busy` is held meanwhile, so that nobody else speaks.

    Args:
        gate: what is heard, to know a sensor that streams on regardless.
        quality: to give up early on a port at the wrong speed.
        clock: for deadlines.
    """

    def __init__(self, gate: Gate, quality: Quality, clock: Clock) -> None:
        self.busy = asyncio.Lock()
        self.pauses = 0
        self._gate = gate
        self._quality = quality
        self._clock = clock
        self._wake = asyncio.Event()
        self._heard = bytearray()

    def hear(self, data: bytes) -> None:
        """Take what arrives; kept only while busy."""
        if self.busy.locked():
            self._heard += data
            del self._heard[:-KEEP]
            self._wake.set()

    def wake(self) -> None:
        """End the present pause."""
        self._wake.set()

    async def pause(self, link: Link, within_s: float) -> None:
        """Until something happens, at most so long.

        Raises:
            LinkLost: the port is gone.
        """
        self.pauses += 1
        if not link.lost:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._wake.wait()
            self._wake.clear()
        if link.lost:
            raise LinkLost

    async def hold(self, link: Link, talk: Talk[T]) -> T:
        """Hold a talk to its end; the caller has `busy`.

        Raises:
            LinkLost: the port is gone.
            InstrumentError: as the talk says.
        """
        ask = next(talk)
        while True:
            answer = await self._answer(link, ask)
            try:
                ask = talk.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result

    async def _answer(self, link: Link, ask: Ask) -> Answer:
        if ask.send:
            self._heard.clear()
            link.write(ask.send)
        start_s, lines = self._now_s(), self._gate.data_lines
        while (found := ask.until.search(self._heard)) is None:
            waited_s = self._now_s() - start_s
            if waited_s >= ask.within_s or self._quality.is_garbled(self._now_s(), GARBLED_S):
                return Answer("late", bytes(self._heard))
            if waited_s < DEAF_S:
                lines = self._gate.data_lines
            elif ask.or_streaming and self._gate.data_lines >= lines + 2:
                return Answer("streaming", bytes(self._heard))
            await self.pause(link, min(ask.within_s - waited_s, STEP_S))
        text = bytes(self._heard[: found.end()])
        del self._heard[: found.end()]
        return Answer("matched", text)

    def _now_s(self) -> float:
        return self._clock.mono_ns() / 1e9
