"""A sensor's place on a pseudo-terminal, played by the test itself: it says and hears what the test wants."""

import asyncio
import os
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from common.simulator.firmware import overhear

LINE = "0.010157, 25.19, 7.494"
_BAUD = {getattr(termios, f"B{baud}"): baud for baud in (9600, 19200, 38400, 57600, 115200)}


class Device:
    """The far end of a pty behind a link: says what it is told to, hears what the driver sends.

    baud: with one, it is only understood while the port has that speed, as on a real wire.
    """

    def __init__(self, link: Path, baud: int | None = None) -> None:
        self.link = link
        self.heard = b""
        self.sent = 0
        self.baud = baud
        self.on_heard: Callable[[bytes], None] = lambda data: None
        self._streaming: asyncio.Task[None] | None = None
        self.appear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unplug()

    def appear(self) -> None:
        """Plugged in: a new pty, and the link leads to it."""
        self._master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.port = os.ttyname(self.slave)
        new = self.link.with_suffix(".new")
        new.symlink_to(self.port)
        new.replace(self.link)
        os.set_blocking(self._master, False)
        asyncio.get_running_loop().add_reader(self._master, self._hear)

    def unplug(self) -> None:
        """Gone, with its link."""
        self.quiet()
        self._abandon()
        self.link.unlink(missing_ok=True)

    def _abandon(self) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        os.close(self.slave)

    def replug(self) -> tuple[int, int]:
        """Another port under the same link; the old one stays open and dumb. Returns its descriptors."""
        old = self._master, self.slave
        asyncio.get_running_loop().remove_reader(self._master)
        self.appear()
        return old

    def say(self, *lines: str) -> None:
        self.send("".join(f"{line}\r\n" for line in lines).encode())

    def send(self, data: bytes) -> None:
        if self.baud is not None:
            data = overhear(data, self.baud, _BAUD[termios.tcgetattr(self.slave)[5]])
        with suppress(OSError):
            os.write(self._master, data)

    def stream(self, hz: float = 20.0, line: str = LINE) -> None:
        """Talk steadily from now on."""
        self.quiet()
        self._streaming = asyncio.create_task(self._stream(1 / hz, line))

    def quiet(self) -> None:
        if self._streaming is not None:
            self._streaming.cancel()
            self._streaming = None

    async def _stream(self, period_s: float, line: str) -> None:
        while True:
            self.say(line)
            self.sent += 1
            await asyncio.sleep(period_s)

    def _hear(self) -> None:
        with suppress(OSError):
            data = os.read(self._master, 4096)
            self.heard += data
            self.on_heard(data)
