"""Talking over an open port: runs the talks of `common.menu` against whatever a `Link` carries."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from common.clock import Clock
from common.menu import Answer, Ask, T, Talk
from common.qseries import Gate, Quality

DEAF_S = 1.0  # a sensor that heard ESC sends no line later than this
GARBLED_S = 3.0
STEP_S = 0.5  # how often to look at the time while nothing arrives
KEEP = 16_384  # bytes of what is heard; a menu is 1.5 kB
LATE_NS = 1_000_000_000  # who looks at the time so much later than was due stood still
SPEED_S = 10.0  # for setting a port's speed: a USB adapter may take 5 s to fail
BURST_NS = 200_000_000  # for what waited in the OS to be read after that


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


class Vigil:
    """Knows when this program was awake: it may be stopped, or starved, while the sensor talks on.

    Every look at the time tells, wherever it was stopped; a wait has to be announced by `rest`. What was
    waiting is stamped at waking; the note says how many readings that were, among them any that truly came
    in that moment.

    Args:
        clock: what the stamps are made from.
        note: called with (kind, detail, count), once for each stall.
    """

    def __init__(self, clock: Clock, note: Callable[[str, str, int], None]) -> None:
        self._clock = clock
        self._note = note
        self._seen_ns = 0  # when last awake for certain
        self._due_ns = 0  # when to be awake again
        self._stood_ns = 0  # in all
        self._stall_ns = 0  # the last one
        self._woke_ns: int | None = None  # from a stall that is not yet told
        self._belated = 0

    def begin(self) -> None:
        """From now on somebody looks."""
        self._seen_ns = self._due_ns = self._clock.mono_ns()

    def end(self) -> None:
        """Nobody looks any more: what is not yet told is told now."""
        self.look(self._clock.mono_ns())
        self._tell()

    def rest(self, within_s: float) -> None:
        """Nobody need look for so long."""
        now_ns = self._clock.mono_ns()
        self.look(now_ns)
        self._due_ns = now_ns + round(within_s * 1e9)

    def now_s(self) -> float:
        """The time, in seconds, without that during which the program stood still: nobody listened then."""
        now_ns = self._clock.mono_ns()
        self.look(now_ns)
        return (now_ns - self._stood_ns) / 1e9

    def look(self, now_ns: int) -> None:
        """Something happens: see whether that is later than it can be."""
        if self._woke_ns is not None and now_ns - self._woke_ns > BURST_NS:
            self._tell()
        if now_ns - self._due_ns > LATE_NS:
            self._stall_ns = now_ns - self._seen_ns
            self._stood_ns += self._stall_ns
            self._woke_ns = now_ns
        self._seen_ns, self._due_ns = now_ns, max(now_ns, self._due_ns)

    def belated(self, mono_ns: int) -> bool:
        """Whether a reading of that stamp may have waited; counted if so."""
        waited = self._woke_ns is not None and mono_ns >= self._woke_ns
        self._belated += waited
        return waited

    def _tell(self) -> None:
        if self._woke_ns is None:
            return
        count, self._belated, self._woke_ns = self._belated, 0, None
        what = f"{count} readings that came meanwhile carry the time of waking"
        self._note("stalled", f"this program stood still for {self._stall_ns / 1e9:.1f} s: {what}", count)


class Talker:
    """Holds one talk at a time; `busy` is held meanwhile, so that nobody else speaks.

    Args:
        gate: what is heard, to know a sensor that streams on regardless.
        quality: to give up early on a port at the wrong speed.
        vigil: for deadlines; told of every pause.
    """

    def __init__(self, gate: Gate, quality: Quality, vigil: Vigil) -> None:
        self.busy = asyncio.Lock()
        self.pauses = 0
        self._gate = gate
        self._quality = quality
        self._vigil = vigil
        self._now_s = vigil.now_s
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
            self._vigil.rest(within_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._wake.wait()
            self._wake.clear()
        if link.lost:
            raise LinkLost

    async def set_baud(self, link: Link, baud: int) -> None:
        """Set the port's speed, which a port in trouble draws out."""
        self._vigil.rest(SPEED_S)
        await link.set_baud(baud)

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
