"""The simulated sensor in real time, behind a symbolic link.

`Simulator` runs `Firmware` in real time: its text, its pacing, its deafness while it talks. The
sensor has its own baud rate; a host that sets another hears, and says, garbage. Instants are
integer ns of CLOCK_MONOTONIC_RAW, durations float s.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Self, TextIO

from common.clock import Clock, SystemClock
from common.simulator.faults import Fault
from common.simulator.firmware import Emission, Firmware, Sense
from common.simulator.texts import Eeprom
from common.simulator.wire import Wire


class Simulator:
    """A sensor on a pty behind a symbolic link; `async with` plugs it in and takes it away again.

    Every fault is a method. `counts` tells of data lines and of faults by name, and what became of
    bytes: dropped_bytes (nobody took them), scrambled_bytes (wrong speed), silenced_bytes,
    overrun_bytes (said to a sensor too busy to listen).

    Args:
        link: replaced atomically, removed at the end.
        eeprom: the sensor's settings; the host's menu dialogue changes them in place.
        sense: what it measures.
        clock: timing and truth.
        quantum_s: bytes reach the host only at multiples of it, as behind a USB adapter; 0: at once.
        reset_on_open: the sensor restarts whenever the unused port is opened.
        faults: what goes wrong by itself.
        truth: gets a CSV row for every data line the host can have read.
        seed: of garbage and of where lines are cut.

    Raises:
        OSError: on entering; the link cannot be made (FileExistsError: something else is there).
    """

    def __init__(
        self,
        link: Path,
        sense: Sense,
        *,
        eeprom: Eeprom | None = None,
        clock: Clock | None = None,
        quantum_s: float = 0.0,
        reset_on_open: bool = False,
        faults: Sequence[Fault] = (),
        truth: TextIO | None = None,
        seed: int = 0,
    ) -> None:
        self.link = link
        self.eeprom = eeprom or Eeprom()
        self.counts: Counter[str] = Counter()
        self._clock = clock or SystemClock()
        self._reset_on_open = reset_on_open
        self._rng = Random(f"{seed}/faults")
        self._wire = Wire(link, self.eeprom, self._clock, quantum_s, truth, self.counts, self._on_heard)
        self._firmware = Firmware(self.eeprom, sense, self._clock.mono_ns())
        self._faults = faults
        self._agenda: list[tuple[int, Fault]] = []
        self._back_ns: int | None = None  # when an unplugged sensor comes back
        self._silent_until_ns: int | None = None
        self._spoils: deque[Callable[[bytes], bytes]] = deque()  # what happens to the next data lines
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> str:
        """The pty's own name; empty while unplugged."""
        return self._wire.port

    async def __aenter__(self) -> Self:
        start_ns = self._clock.mono_ns()
        self._agenda = [(start_ns + round(fault.at_s * 1e9), fault) for fault in self._faults]
        self.replug()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        try:
            await self.wait()
        finally:
            self._wire.unplug()

    def stop(self) -> None:
        """Make `wait` return."""
        if self._task:
            self._task.cancel()

    async def wait(self) -> None:
        """Run until stopped.

        Raises:
            OSError: the truth file or the link could not be written.
        """
        if self._task:
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()

    def strike(self, fault: Fault) -> None:
        """Let a fault happen now, whatever its at_s."""
        self.counts[fault.name] += 1
        getattr(self, fault.name)(*fault.arguments)

    def unplug(self, seconds: float = 5.0) -> None:
        """Port and power gone; back after *seconds*, booting, behind the same link."""
        self._wire.unplug()
        self._back_ns = self._clock.mono_ns() + round(seconds * 1e9)
        self._wake.set()

    def replug(self) -> None:
        """Unplug and come back at once under another port, which the link follows."""
        self._wire.plug()
        self._back_ns = None
        self.reboot()

    def reboot(self) -> None:
        """Reset wherever it is: the power-on text comes mid-stream."""
        self._wire.clear()
        self._firmware.reset(self._clock.mono_ns())
        self._wake.set()

    def menu(self) -> None:
        """Drop into the menu as if it had heard an ESC."""
        self._firmware.enter_menu(self._clock.mono_ns())
        self._wake.set()

    def garbage(self, count: int = 64) -> None:
        """Random bytes on the wire, NUL and 0xFF among them (if there are two)."""
        noise = bytearray(self._rng.randbytes(count))
        noise[0] = 0
        noise[-1] = 0xFF if count > 1 else 0
        self._wire.write(bytes(noise))

    def half(self, missing: str = "head") -> None:
        """The next data line lacks its head, or its tail up to the line end."""
        self._spoils.append(self._cut_head if missing == "head" else self._cut_tail)

    def splice(self) -> None:
        """The next two data lines come as one: the line end between them is lost."""
        self._spoils += [lambda line: line.removesuffix(b"\r\n"), lambda line: line]

    def silence(self, seconds: float = 5.0) -> None:
        """Nothing is heard of the sensor for *seconds*; it goes on all the same."""
        self._silent_until_ns = self._clock.mono_ns() + round(seconds * 1e9)

    def baud(self, baud: int = 19200) -> None:
        """The sensor itself changes its speed."""
        self.eeprom.baud = baud

    def shape(self, field: str = "temp") -> None:
        """Output of temperature or supply voltage is switched over."""
        if field == "temp":
            self.eeprom.temp = not self.eeprom.temp
        else:
            self.eeprom.vin = not self.eeprom.vin

    def prober(self) -> None:
        """A second program opens the port as BlueOS does: sets 115200 baud, sends a break, writes, leaves."""
        try:
            self._wire.probe()
        except OSError:  # the host holds it exclusively, or it is unplugged
            self.counts["prober_refused"] += 1
            return
        self._firmware.receive(b"\0", self._clock.mono_ns())  # the break; a pty does not carry one
        self._wake.set()

    def _cut_head(self, line: bytes) -> bytes:
        return line[self._rng.randrange(1, len(line) - 2) :]

    def _cut_tail(self, line: bytes) -> bytes:
        return line[: self._rng.randrange(1, len(line) - 2)] + b"\r\n"

    def _on_heard(self, data: bytes) -> None:
        self._firmware.receive(data, self._clock.mono_ns())
        self._wake.set()

    async def _run(self) -> None:
        while True:
            now_ns = self._clock.mono_ns()
            self._act(now_ns)
            if self._back_ns is None:
                self._live(now_ns)
            await self._sleep_until(self._next_ns(now_ns))

    async def _sleep_until(self, due_ns: int | None) -> None:
        delay_s = None if due_ns is None else max(0.0, (due_ns - self._clock.mono_ns()) / 1e9)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        self._wake.clear()

    def _next_ns(self, now_ns: int) -> int | None:
        instants = [due_ns for due_ns, _ in self._agenda]
        if self._back_ns is not None:
            instants.append(self._back_ns)
        else:
            instants += filter(None, (self._firmware.next_ns, self._wire.next_ns(now_ns)))
        return min(instants, default=None)

    def _act(self, now_ns: int) -> None:
        if self._back_ns is not None and self._back_ns <= now_ns:
            self.replug()
        due = [fault for due_ns, fault in self._agenda if due_ns <= now_ns]
        self._agenda = [(due_ns, fault) for due_ns, fault in self._agenda if due_ns > now_ns]
        for fault in due:
            self.strike(fault)

    def _live(self, now_ns: int) -> None:
        if self._wire.watch() and self._reset_on_open:
            self.reboot()
        for emission in self._firmware.advance(now_ns):
            self._send(emission)
        self._wire.deliver(now_ns)
        self.counts["overrun_bytes"] = self._firmware.overruns

    def _send(self, emission: Emission) -> None:
        if self._silent_until_ns is not None and emission.start_ns < self._silent_until_ns:
            self.counts["silenced_bytes"] += len(emission.data)
        elif emission.printed and self._spoils:
            self._wire.send(emission, self._spoils.popleft())
        else:
            self._wire.send(emission)
