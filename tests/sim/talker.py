"""A sensor that is not our simulator: it only talks, and what it says is when it said it.

The value of line k is the time since the talker was made, in seconds with six decimals, so a reading
carries its own truth wherever it ends up.
"""

import os
import pty
import threading
import tty
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from common.clock import SystemClock


class Talker:
    """Writes `value, temp, vin` lines on a pseudo-terminal at a steady rate, whatever it is told."""

    def __init__(self, link: Path, rate_hz: float) -> None:
        self.link = link
        self.sent: list[str] = []
        self._clock = SystemClock()
        self._period_ns = round(1e9 / rate_hz)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self.start = self._clock.stamp()

    def __enter__(self) -> "Talker":
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(self._master, False)
        self._slave = slave
        self.link.symlink_to(os.ttyname(slave))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.link.unlink(missing_ok=True)
        os.close(self._master)
        os.close(self._slave)

    @property
    def port(self) -> str:
        """The pty that the link leads to."""
        return os.ttyname(self._slave)

    def _talk(self) -> None:
        line = 0
        while not self._stop.wait(max(0, self._due_ns(line) - self._clock.mono_ns()) / 1e9):
            since_ns = self._clock.mono_ns() - self.start.mono_ns
            text = f"{since_ns // 1_000_000_000}.{since_ns // 1000 % 1_000_000:06d}"
            self._write(f"{text}, 25.19, 7.494\r\n".encode())
            self.sent.append(text)
            line += 1

    def _due_ns(self, line: int) -> int:
        return self.start.mono_ns + line * self._period_ns

    def _write(self, data: bytes) -> None:
        with suppress(BlockingIOError):
            os.read(self._master, 4096)  # what the host says is not heard
        with suppress(BlockingIOError):  # nobody reads: a UART drops
            os.write(self._master, data)

    def said_at_utc_ns(self, value: str) -> int:
        """When a value was said, on this machine's wall clock as it was at the start."""
        whole, _, micros = value.partition(".")
        return self.start.utc_ns + int(whole) * 1_000_000_000 + int(micros) * 1000
