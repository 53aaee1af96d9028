"""A plain client of a serial port, with nothing between it and the tty."""

import asyncio
import os
import re
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from common.simulator import Simulator
from common.simulator.texts import Sample

LINE = re.compile(rb"1[0-9]{6}\.000000, 27\.68, 7\.494\r\n")
BANNER = b"Starting Sampling; quiet mode =0\r\n"


class Light:
    """A new value for every line, so that each can be recognised."""

    def __init__(self) -> None:
        self.count = 1_000_000

    def __call__(self, start_ns: int, end_ns: int) -> Sample:
        self.count += 1
        return Sample(self.count, 27.68, 7.494, depth_m=1.5)


class Host:
    """A client with nothing between it and the tty."""

    def __init__(self, path: Path | str, baud: int | None = 115200) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.heard = b""
        if baud:
            self.set_baud(baud)

    def set_baud(self, baud: int) -> None:
        attributes = termios.tcgetattr(self.fd)
        attributes[4] = attributes[5] = getattr(termios, f"B{baud}")
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)

    def say(self, sent: bytes) -> None:
        os.write(self.fd, sent)

    def take(self) -> bool:
        """Read what is there; False once the device is gone."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.heard += data
        return bool(data)

    async def until(self, pattern: bytes) -> bytes:
        """Everything up to and with *pattern*; what comes after stays in `heard`."""
        async with asyncio.timeout(10):
            while not (match := re.search(pattern, self.heard, re.DOTALL)):
                assert self.take(), f"hung up after {self.heard[-200:]!r}"
                await asyncio.sleep(0.002)
        found, self.heard = self.heard[: match.end()], self.heard[match.end() :]
        return found

    async def lines(self, count: int) -> list[bytes]:
        """The next *count* things that end a line."""
        return [await self.until(rb"\n") for _ in range(count)]

    async def hung_up(self) -> None:
        await eventually(lambda: not self.take())

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


def value(line: bytes) -> int:
    match = LINE.fullmatch(line)
    assert match, f"not a whole line: {line!r}"
    return int(line.split(b".")[0])


async def more_lines(simulator: Simulator, count: int) -> None:
    """Until the sensor has sent *count* more, heard or not."""
    goal = simulator.counts["lines"] + count
    await eventually(lambda: simulator.counts["lines"] >= goal)


@asynccontextmanager
async def streaming(simulator: Simulator, baud: int = 115200) -> AsyncIterator[Host]:
    """A host that hears the sensor stream, from a line's beginning."""
    async with simulator:
        host = Host(simulator.link, baud)
        await host.until(rb"\n")
        while not LINE.fullmatch(await host.until(rb"\n")):
            pass
        yield host
        host.close()
