"""A Q-Series (firmware 4.003, digital, linear) without I/O and without a clock.

Bytes go in at an instant, timed bytes come out: an hour takes milliseconds. The firmware is written
as the sequential program it is, a generator that yields what it does next (send, wait, listen for a
byte); `Firmware` runs it on the time it is given. Instants are integer ns on the caller's monotonic
clock, durations float s.
"""

import re
from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple

from common.simulator.texts import (
    Eeprom,
    Printed,
    Sample,
    data_line,
    dump,
    menu_text,
    power_on_text,
    print_sample,
    sign_on,
)

RATES_HZ = (4, 8, 16, 33, 62, 125, 250, 500)

BITS_PER_BYTE = 10  # 8N1
FIFO_BYTES = 2  # what the UART holds while the program is busy; anything more is lost
INBOX_BYTES = 4096  # bytes still on the wire towards it

# Fitted to two measurements: 125 readings at 125 Hz give 1.0338 s at 9600 baud (24 byte lines), 12 give
# about 8.9 Hz at 115200 baud. The ADC's own clock runs a little fast; 14.16 ms is between one and two
# conversions that are thrown away.
ADC_SPEED = 1.0054
ADC_SETTLE_S = 0.01416

POWER_UP_S = 0.23
MEASURE_SUPPLY_S = 0.05
ADC_START_S = 1.06
MENU_DELAY_S = 1.0
ANSWER_TIMEOUT_S = 20.0

ESC, CR = 0x1B, 0x0D
ENTER = (ESC, ord("?"))

Sense = Callable[[int, int], Sample]  # mean over [start_ns, end_ns]


class Emission(NamedTuple):
    """Bytes on the wire from start_ns to end_ns. For data lines printed is set, and centre_ns, the middle of
    the time whose light they tell."""

    start_ns: int
    end_ns: int
    data: bytes
    printed: Printed | None = None
    centre_ns: int = 0


class _Send(NamedTuple):
    data: bytes
    printed: Printed | None = None
    centre_ns: int = 0


class _Pause(NamedTuple):
    seconds: float


class _Receive(NamedTuple):
    until_ns: int | None = None


_Step = _Send | _Pause | _Receive
_Program = Generator[_Step, int | None, None]


def transmit_ns(size: int, baud: int) -> int:
    """How long *size* bytes take on the wire."""
    return round(size * BITS_PER_BYTE * 1e9 / baud)


def average_ns(averaging: int, rate_hz: int) -> int:
    """How long one average takes: averaging / (rate x 1.0054) + 14.16 ms, the first 14.16 ms thrown away."""
    return round((averaging / (rate_hz * ADC_SPEED) + ADC_SETTLE_S) * 1e9)


def period_s(eeprom: Eeprom, line_bytes: int = 24) -> float:
    """Freerun period: one average, then the line is sent before the next average starts."""
    average = average_ns(eeprom.averaging, eeprom.rate_hz)
    return (average + transmit_ns(line_bytes, eeprom.baud)) / 1e9


def overhear(data: bytes, sent_baud: int, heard_baud: int) -> bytes:
    """What a UART at *heard_baud* makes of *data* sent back to back at *sent_baud*, 8N1.

    Bits are sampled where the receiver expects their middle; bytes with a bad stop bit are
    delivered all the same, as a tty without parity marking does.
    """
    wire = [bit for byte in data for bit in (0, *(byte >> i & 1 for i in range(8)), 1)]
    step = sent_baud / heard_baud

    def level(at: float) -> int:
        return wire[int(at)] if at < len(wire) else 1

    heard, at = bytearray(), 0.0
    while at < len(wire):
        if level(at):
            at = int(at) + 1.0
            continue
        heard.append(sum(level(at + (i + 1.5) * step) << i for i in range(8)))
        at += 9.5 * step
        while at < len(wire) and not level(at):  # no start bit before the line has risen again
            at = int(at) + 1.0
    return bytes(heard)


class Firmware:
    """The sensor: `receive` what the host sends, `advance` the time, take what it sends back.

    Args:
        eeprom: its settings; the menu changes them in place.
        sense: measures the light between two instants.
        now_ns: the instant power comes on.
    """

    def __init__(self, eeprom: Eeprom, sense: Sense, now_ns: int) -> None:
        self.eeprom = eeprom
        self.overruns = 0  # received bytes the UART could not hold
        self._sense = sense
        self._inbox: deque[tuple[int, int]] = deque()  # (arrival_ns, byte)
        self.reset(now_ns)

    def reset(self, now_ns: int) -> None:
        """Start from the power-on text; what was being sent or received is forgotten."""
        self._inbox.clear()
        self._start(self._life(), now_ns)

    def enter_menu(self, now_ns: int) -> None:
        """Drop into the menu without having been asked."""
        self._start(self._life(in_menu=True), now_ns)

    def receive(self, data: bytes, now_ns: int) -> None:
        """Take bytes the host put on the wire at *now_ns*; they arrive one after another at the baud rate."""
        room = INBOX_BYTES - len(self._inbox)
        self.overruns += max(0, len(data) - room)
        arrival_ns = max(now_ns, self._inbox[-1][0]) if self._inbox else now_ns
        for count, byte in enumerate(data[:room], 1):
            self._inbox.append((arrival_ns + transmit_ns(count, self.eeprom.baud), byte))

    @property
    def next_ns(self) -> int | None:
        """When it will next do something; None if only a byte can move it."""
        if not self._listening or not self._inbox:
            return self._wake_ns
        heard_ns = max(self._inbox[0][0], self._at_ns)
        return heard_ns if self._wake_ns is None else min(heard_ns, self._wake_ns)

    def advance(self, now_ns: int) -> list[Emission]:
        """Run up to *now_ns* and return what it began to send on the way, in order."""
        emissions = []
        while (due_ns := self.next_ns) is not None and due_ns <= now_ns:
            byte = self._take(due_ns) if self._listening else None
            self._at_ns = due_ns
            step = self._program.send(byte)
            if isinstance(step, _Send):
                end_ns = due_ns + transmit_ns(len(step.data), self.eeprom.baud)
                emissions.append(Emission(due_ns, end_ns, step.data, step.printed, step.centre_ns))
                self._wait(end_ns)
            elif isinstance(step, _Pause):
                self._wait(due_ns + round(step.seconds * 1e9))
            else:
                self._wait(step.until_ns, listening=True)
        return emissions

    def _start(self, program: _Program, now_ns: int) -> None:
        self._program = program
        self._at_ns = now_ns
        self._wait(now_ns)

    def _wait(self, until_ns: int | None, listening: bool = False) -> None:
        self._wake_ns = until_ns
        self._listening = listening

    def _take(self, now_ns: int) -> int | None:
        while len(self._inbox) > FIFO_BYTES and self._inbox[FIFO_BYTES][0] <= now_ns:
            del self._inbox[FIFO_BYTES]
            self.overruns += 1
        return self._inbox.popleft()[1] if self._inbox and self._inbox[0][0] <= now_ns else None

    def _forget_received(self) -> None:
        while self._inbox and self._inbox[0][0] <= self._at_ns:
            self._inbox.popleft()

    def _life(self, in_menu: bool = False) -> _Program:
        if in_menu:
            yield from self._menu()
        while True:
            yield from self._boot()
            yield from self._polled() if self.eeprom.polled else self._freerun()
            yield from self._menu()

    def _say(self, *lines: str) -> _Program:
        for line in lines:
            yield _Send(f"{line}\r\n".encode("ascii", "replace"))

    def _prompt(self, text: str) -> _Program:
        yield _Send(text.encode("ascii"))

    def _boot(self) -> _Program:
        yield _Pause(POWER_UP_S)
        if not self.eeprom.quiet:
            yield _Pause(MEASURE_SUPPLY_S)
            yield from self._say(*sign_on(self.eeprom), *power_on_text(self.eeprom, self._here()))
        self._forget_received()  # ESC during the text is ignored; during the ADC start it waits in the UART
        yield _Pause(ADC_START_S)
        if not self.eeprom.quiet:
            if self.eeprom.polled:
                yield from self._say("ADC OK", "Entering polled mainline sampling")
            else:
                yield from self._say("ADC OK", "Start free run sampling", "Starting Sampling; quiet mode =0")

    def _here(self) -> Sample:
        return self._sense(self._at_ns, self._at_ns)

    def _reading(self, start_ns: int, end_ns: int, tag: str = "") -> _Send:
        from_ns = start_ns + round(ADC_SETTLE_S * 1e9)
        printed = print_sample(self.eeprom, self._sense(from_ns, end_ns))
        data = f"{data_line(self.eeprom, printed, tag)}\r\n".encode("ascii", "replace")
        return _Send(data, printed, (from_ns + end_ns) // 2)

    def _freerun(self) -> _Program:
        while True:
            start_ns = self._at_ns
            end_ns = start_ns + average_ns(self.eeprom.averaging, self.eeprom.rate_hz)
            while (byte := (yield _Receive(end_ns))) is not None:
                if byte in ENTER:
                    return
            yield self._reading(start_ns, end_ns)

    def _polled(self) -> _Program:
        """Silent until `*<TAG>Q000!` starts an average; `><TAG>` takes it if complete; `*` restarts."""
        tag, recent = self.eeprom.tag, ""
        start_ns: int | None = None
        answered = False
        while (byte := (yield _Receive())) not in ENTER:
            recent = (recent + chr(byte or 0))[-7:]
            if recent == f"*{tag}Q000!" or (answered and byte == ord("*")):
                start_ns, answered = self._at_ns, False
            elif recent.endswith(f">{tag}") and start_ns is not None:
                end_ns = start_ns + average_ns(self.eeprom.averaging, self.eeprom.rate_hz)
                if self._at_ns >= end_ns:
                    yield self._reading(start_ns, end_ns, tag)
                    start_ns, answered = None, True

    def _menu(self) -> _Program:
        """The menu, until X. Only CR is skipped before a letter; other letters just bring the menu again."""
        if not self.eeprom.quiet:
            yield from self._say(*sign_on(self.eeprom))
        while True:
            yield _Pause(MENU_DELAY_S)
            yield from self._say(*menu_text(self.eeprom, self._here()))
            yield from self._say("", "Select the letter of the menu entry:")
            byte = yield _Receive()
            while byte == CR:
                byte = yield _Receive()
            yield from self._say("")
            match chr(byte or 0).upper():
                case "X":
                    yield from self._say("Calling reset!", "Rebooting program")
                    return
                case "A":
                    yield from self._set_averaging()
                case "R":
                    yield from self._set_rate()
                case "M":
                    yield from self._set_mode()
                case "^":
                    yield from self._say(dump(self.eeprom, self._here()))
                case "?" | "\x1b":
                    yield from self._say(*menu_text(self.eeprom, self._here()))

    def _entry(self) -> Generator[_Step, int | None, int]:
        """A number ended by CR; 0 if it is none. A CR before the first character is skipped."""
        text = ""
        while (byte := (yield _Receive())) != CR or not text:
            if byte != CR:
                text = (text + chr(byte or 0))[:16]
        digits = re.match(r"[0-9]+", text.strip())
        return int(digits.group()) if digits else 0

    def _set_averaging(self) -> _Program:
        yield from self._say(
            "The sensor reports the mean of a number of ADC readings.",
            "More readings give less noise and fewer updates.",
        )
        yield from self._prompt("Enter # readings to average before update (1-65535): ")
        count = yield from self._entry()
        yield from self._say(f"{count} was entered", "")
        if 1 <= count <= 65535:
            self.eeprom.averaging = count
            yield from self._say(f"ADC set to averaging {count}")
        else:
            self.eeprom.averaging = 12
            yield from self._say("****Invalid number, averaging set to 12.  Command ignored ****")
            yield _Pause(4.0)

    def _set_rate(self) -> _Program:
        yield from self._say("Enter ADC rate (4, 8, 16, 33, 62, 125, 250* Hz) ")
        yield from self._prompt(" *250Hz is at reduced resolution     ---- Enter selection: ")
        rate_hz = yield from self._entry()
        if rate_hz in RATES_HZ:
            self.eeprom.rate_hz = rate_hz
            yield from self._say("", f"ADC rate set to {rate_hz}")
        else:
            yield from self._say("", "Invalid rate!!! Command is ignored.")
            yield _Pause(5.0)

    def _answer(self) -> Generator[_Step, int | None, str]:
        """One byte, whatever it is; empty after 20 s without one, which it says."""
        byte = yield _Receive(self._at_ns + round(ANSWER_TIMEOUT_S * 1e9))
        if byte is None:
            yield from self._say("", "Timed out waiting for response. ")
            return ""
        return chr(byte)

    def _set_mode(self) -> _Program:
        yield from self._say(
            "Set operating mode.  Mode 0 is freerun, 1 is polled.  Polled require a TAG to be defined"
        )
        yield from self._prompt("Enter the operating mode number: ")
        digit = yield from self._answer()
        if digit == "0":
            self.eeprom.polled = False
            yield from self._say("0")
        elif digit == "1":
            yield from self._set_tag()
        elif digit:
            yield from self._say("", "I am confused")

    def _set_tag(self) -> _Program:
        yield from self._say(
            "", "Enter the single character that will be the tag used in polling (A-F) UPPER case"
        )
        yield from self._prompt(
            "Note tags G-Z may not be supported in some Biospherical acquisition software : "
        )
        tag = yield from self._answer()
        if "A" <= tag <= "Z":
            self.eeprom.polled, self.eeprom.tag = True, tag
            yield from self._say("")
        elif tag:
            yield from self._say("", " Bad TAG ")
