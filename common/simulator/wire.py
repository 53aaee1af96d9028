"""The line between a simulated sensor and its host: a pty behind a link, with real speeds and pacing.

Instants are integer ns of the clock it is given, durations float s.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from common.clock import Clock
from common.simulator.firmware import Emission, overhear
from common.simulator.terminal import Terminal, point, unpoint
from common.simulator.texts import Eeprom

TRUTH_HEADER = "line,mono_ns,utc_ns,value,temp_c,vin,centre_ns,depth_m"
WATCH_NS = 20_000_000  # how often an unused port is looked at for somebody opening it


@dataclass
class _Sending:
    """An emission on its way to the host, perhaps in pieces."""

    emission: Emission
    data: bytes
    whole: bool  # the host can read it as the sensor meant it
    sent: int = 0
    mono_ns: int = 0  # when its first byte was written
    utc_ns: int = 0


class Wire:
    """Carries emissions to whoever has the port open, and the host's bytes back.

    Args:
        link: names the pty; replaced atomically.
        eeprom: tells the sensor's own speed.
        clock: for the truth.
        quantum_s: bytes reach the host only at multiples of it; 0: never held back.
        truth: gets a CSV row for every data line that a host can have read.
        counts: of lines, dropped_bytes (nobody took them) and scrambled_bytes (wrong speed).
        on_heard: called in the event loop with what the sensor hears; with nothing when the host has left.
    """

    def __init__(
        self,
        link: Path,
        eeprom: Eeprom,
        clock: Clock,
        quantum_s: float,
        truth: TextIO | None,
        counts: Counter[str],
        on_heard: Callable[[bytes], None],
    ) -> None:
        self._link = link
        self._eeprom = eeprom
        self._clock = clock
        self._quantum_ns = round(quantum_s * 1e9)
        self._ticks_from_ns = clock.mono_ns()
        self._truth = truth
        self._counts = counts
        self._on_heard = on_heard
        self._terminal: Terminal | None = None
        self._in_use = False
        self._queue: deque[_Sending] = deque()
        if truth:
            print(TRUTH_HEADER, file=truth, flush=True)

    @property
    def port(self) -> str:
        """Name of the pty; empty while unplugged."""
        return self._terminal.name if self._terminal else ""

    def plug(self) -> None:
        """Appear at a new pty; one that was there before goes.

        Raises:
            OSError: no pty, or no link, to be had.
        """
        self._move(Terminal())

    def unplug(self) -> None:
        """Take the port and its link away; the host sees a hang-up."""
        self.clear()
        terminal, self._terminal = self._terminal, None
        if terminal:
            unpoint(self._link, terminal.name)
            self._close(terminal)

    def clear(self) -> None:
        """Forget what is still to be sent."""
        self._queue.clear()

    def watch(self) -> bool:
        """Whether a host has newly opened the port, even one that has left again."""
        if self._in_use or not self._terminal:
            return False
        self._in_use, visited = self._terminal.look()
        if self._in_use:
            asyncio.get_running_loop().add_reader(self._terminal.fileno(), self._hear)
        elif visited:
            self._hear()
        return self._in_use or visited

    def next_ns(self, now_ns: int) -> int | None:
        """When `deliver` or `watch` should be called next."""
        instants = [self._due_ns(self._queue[0])] if self._queue else []
        if self._terminal and not self._in_use:
            instants.append(now_ns + WATCH_NS)
        return min(instants, default=None)

    def send(self, emission: Emission, spoil: Callable[[bytes], bytes] | None = None) -> None:
        """Queue an emission; *spoil* is what happens to its bytes on the way."""
        data = spoil(emission.data) if spoil else emission.data
        self._queue.append(_Sending(emission, data, whole=spoil is None))

    def deliver(self, now_ns: int) -> None:
        """Hand over whatever has arrived by *now_ns*."""
        while self._queue:
            head = self._queue[0]
            self._write_part(head, self._arrived(head, now_ns))
            if head.sent < len(head.data):
                return
            self._queue.popleft()
            self._tell(head)

    def write(self, data: bytes) -> bool:
        """Put bytes on the wire now; whether the host could have got them all as they are."""
        if not self._terminal or not self._in_use:
            self._counts["dropped_bytes"] += len(data)
            return False
        heard = self._heard(data, self._eeprom.baud, self._terminal.baud)
        lost = len(heard) - self._terminal.write(heard)
        self._counts["dropped_bytes"] += lost
        return heard == data and not lost

    def probe(self) -> None:
        """Let a second program open the port, as `Terminal.probe` says.

        Raises:
            OSError: the host holds it exclusively, or it is unplugged.
        """
        if not self._terminal:
            raise FileNotFoundError("unplugged")
        self._terminal.probe()

    def _move(self, terminal: Terminal) -> None:
        try:
            point(self._link, terminal.name)
        except OSError:
            terminal.close()
            raise
        old, self._terminal = self._terminal, terminal
        if old:  # closed only now, or the kernel would have given its name again
            self._close(old)

    def _close(self, terminal: Terminal) -> None:
        asyncio.get_running_loop().remove_reader(terminal.fileno())
        terminal.close()
        self._in_use = False

    def _hear(self) -> None:
        terminal = self._terminal
        if not terminal:
            return
        if data := terminal.read():
            self._on_heard(self._heard(data, terminal.baud, self._eeprom.baud))
        elif self._in_use and not terminal.look()[0]:
            asyncio.get_running_loop().remove_reader(terminal.fileno())
            self._in_use = False
            try:
                terminal.tidy()
            except OSError:  # the host's exclusive hold outlives it on a pty, not on a real port
                self._move(Terminal(terminal.baud or 9600))
            self._on_heard(b"")

    def _heard(self, data: bytes, sent_baud: int, heard_baud: int) -> bytes:
        if sent_baud == heard_baud:
            return data
        self._counts["scrambled_bytes"] += len(data)
        return overhear(data, sent_baud, heard_baud) if sent_baud and heard_baud else b""

    def _arrived(self, sending: _Sending, now_ns: int) -> int:
        """How many of its bytes the host may have by now."""
        start_ns, end_ns, size = sending.emission.start_ns, sending.emission.end_ns, len(sending.data)
        if not self._quantum_ns:
            return size if now_ns >= self._due_ns(sending) else 0
        tick_ns = now_ns - (now_ns - self._ticks_from_ns) % self._quantum_ns
        return min(size, max(0, (tick_ns - start_ns) * size // (end_ns - start_ns)))

    def _due_ns(self, sending: _Sending) -> int:
        """When more of it arrives.

        Hosts stamp the first byte of a data line, so at that instant the whole line is written. Text
        is written when its last byte would arrive: a host that answered a prompt sooner would find
        the sensor still talking, and deaf.
        """
        start_ns, end_ns, size = sending.emission.start_ns, sending.emission.end_ns, len(sending.data)
        byte_ns = start_ns - (sending.sent + 1) * (end_ns - start_ns) // -size
        if not self._quantum_ns:
            return byte_ns if sending.emission.printed else end_ns
        return byte_ns + (self._ticks_from_ns - byte_ns) % self._quantum_ns

    def _write_part(self, sending: _Sending, upto: int) -> None:
        if upto <= sending.sent:
            return
        if sending.sent == 0:
            stamp = self._clock.stamp()
            sending.mono_ns, sending.utc_ns = stamp.mono_ns, stamp.utc_ns
        clean = self.write(sending.data[sending.sent : upto])
        sending.whole = sending.whole and clean
        sending.sent = upto

    def _tell(self, sending: _Sending) -> None:
        printed = sending.emission.printed
        if not printed:
            return
        line = self._counts["lines"]
        self._counts["lines"] += 1
        if sending.whole and self._truth:
            said = f"{printed.value},{printed.temp_c},{printed.vin}"
            numbers = f"{said},{sending.emission.centre_ns},{printed.depth_m:.3f}"
            print(f"{line},{sending.mono_ns},{sending.utc_ns},{numbers}", file=self._truth, flush=True)
