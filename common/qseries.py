"""What a Q-Series sends, without I/O and without a clock: bytes -> lines -> readings.

`Gate` listens: it cuts the byte stream into lines and lets through only lines of a shape that the
sensor has proven to send; everything else is classified and counted. `common.menu` talks.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from msgspec import Struct

from common.messages import Stamp

MAX_LINE = 512  # ten times the longest data line; the `^` line stays below 300
MAX_HELD = 64
SAMPLE = 64  # bytes of a refused line that are kept to be shown

Place = Literal["unknown", "boot", "menu", "sampling"]
# lines = the sum of all others + lines still held back. partial: half a line. shape: a number, but not of
# the proven shape. garbage: neither the sensor's numbers nor its words.
KINDS = ("lines", "readings", "blank", "partial", "shape", "garbage", "overlong", "banner", "menu")

_MENU = re.compile(
    rb"Select the letter of|Digital Log Engine| to set |Model: |Enter # readings|was entered|set to averaging"
    rb"|Enter ADC rate|reduced resolution|ADC rate set|operating mode|Enter the single|Note tags"
    rb"|\(1-65535\)|Invalid number|Invalid rate|Oh my goodness|Bad TAG|I am confused|Timed out waiting"
)
_RESET = re.compile(rb"Calling reset|Rebooting program")
_SAMPLING = re.compile(rb"Starting Sampling|Entering polled")
_BANNER = re.compile(
    rb"Biospherical Instruments|Digital Engine|Unit ID|Operating in|Reset ADC|ADC OK|Start free run"
    rb"|SetupADC|ADC did not"
)
# Printed at boot and under the menu alike, so they do not tell where the sensor is.
_REPORT = re.compile(rb"ADC sample rate|Averaging|Sensor temperature|Input Supply|Calfactor|Buffer disabled")
_POLLED = re.compile(rb"Operating in polled mode with tag of ([A-Z])")
_UNIT_ID = re.compile(rb"Unit ID (.+)")
_CLEAN = bytes([*range(32, 127), *b"\t\r\n"])
_UNPRINTABLE = re.compile(rb"[^\t -~]")
_HALF = re.compile(rb"[0-9., -]+")
_WHOLE = rb"(?:0|[1-9][0-9]{0,9})"
_DATA = re.compile(
    rb"(?P<preamble>[ -+./:-~]*)(?P<value>-?" + _WHOLE + rb"\.(?P<decimals>[0-9]{1,8}))"
    rb"(?:, (?P<temp>-?" + _WHOLE + rb"\.[0-9]{2}))?(?:, (?P<vin>" + _WHOLE + rb"\.[0-9]{3}))?"
)


class Line(Struct, frozen=True, gc=False):
    """A line without its end. whole: its head is certain; stamp: when its first byte arrived."""

    stamp: Stamp
    text: bytes
    whole: bool = True
    overlong: bool = False


class LineFramer:
    """Cuts a byte stream into lines; how the stream was cut on its way never matters to them.

    A line that reaches MAX_LINE without an end is reported once, then discarded to the next newline.
    """

    def __init__(self) -> None:
        self._returns = False  # the sensor ends its lines with CR LF, as the firmware does
        self.reset()

    def reset(self) -> None:
        """Forget the tail: what comes next may begin inside a line."""
        self._buffer = bytearray()
        self._stamp: Stamp | None = None
        self._whole = False
        self._skipping = False

    @property
    def tail(self) -> bytes:
        """What was heard since the last line end."""
        return bytes(self._buffer)

    def receive(self, data: bytes, stamp: Stamp) -> list[Line]:
        """The lines that *data*, arrived at *stamp*, completes."""
        lines: list[Line] = []
        for number, piece in enumerate(data.split(b"\n")):
            if number:
                lines += self._end(stamp)
            lines += self._extend(piece, stamp)
        return lines

    def _extend(self, piece: bytes, stamp: Stamp) -> list[Line]:
        if self._skipping or not piece:
            return []
        if not self._buffer:
            self._stamp = stamp
        self._buffer += piece[: MAX_LINE + 1]
        if len(self._buffer) <= MAX_LINE:
            return []
        line = Line(self._stamp or stamp, bytes(self._buffer[:MAX_LINE]), self._whole, overlong=True)
        self._buffer.clear()
        self._skipping = True
        return [line]

    def _end(self, stamp: Stamp) -> list[Line]:
        text, first, whole, skipped = bytes(self._buffer), self._stamp, self._whole, self._skipping
        self._buffer.clear()
        returns = text.endswith(b"\r")
        stray = (
            self._returns and not returns and not skipped
        )  # a line feed of its own: what is before and behind it is cut
        self._returns |= returns
        self._stamp, self._whole, self._skipping = None, not stray, False
        return [] if skipped else [Line(first or stamp, text.removesuffix(b"\r"), whole and not stray)]


class Shape(Struct, frozen=True):
    """What stays the same from data line to data line. tag: of a polled reply, None when freerunning."""

    preamble: str
    decimals: int
    has_temp: bool
    has_vin: bool
    tag: str | None = None

    def __str__(self) -> str:
        columns = "value" + ", TempC" * self.has_temp + ", Vin" * self.has_vin
        tag = f" of tag {self.tag}" if self.tag else ""
        return f"{self.preamble!r} {columns} with {self.decimals} decimals{tag}"


class DataLine(Struct, frozen=True, gc=False):
    """One line that reads as data; the numbers are the sensor's own digits."""

    stamp: Stamp
    shape: Shape
    value: str
    temp_c: str | None
    vin: str | None

    @property
    def mode(self) -> Literal["freerun", "polled"]:
        return "polled" if self.shape.tag else "freerun"


class Noise(Struct, frozen=True):
    """A line that is not a reading. kind: one of KINDS; text: its first bytes."""

    kind: str
    text: bytes


class ShapeLearned(Struct, frozen=True):
    """The sensor has proven what its lines look like; was: what they looked like before."""

    shape: Shape
    was: Shape | None


Item = DataLine | Noise | ShapeLearned


def parse_data(line: Line, tag: str | None = None, preamble: str = "") -> DataLine | None:
    """Read a line as data, None if it is not.

    Args:
        tag: a polled reply must begin with it.
        preamble: what the sensor says it puts before the number; needed only if that holds a digit, a comma
            or a minus at its end.
    """
    text, head = line.text, f"{tag}," if tag else ""
    if not text.startswith(head.encode()):
        return None
    known = preamble if text.startswith((head + preamble).encode()) else ""
    found = _DATA.fullmatch(text, len(head + known))
    if found is None:
        return None
    temp_c, vin = (None if part is None else part.decode() for part in found.group("temp", "vin"))
    prefix = known + found["preamble"].decode()
    shape = Shape(prefix, len(found["decimals"]), temp_c is not None, vin is not None, tag)
    return DataLine(line.stamp, shape, found["value"].decode(), temp_c, vin)


class Gate:
    """Lets readings through and nothing else.

    Lines that could be data are held back, stamps and all, until their shape is proven: three in a row
    evenly spaced, or six in a row however they came (a burst after a stall); a lone number, which looks
    like the digits of the boot text, must show more. Then they are released in order, none lost. A boot
    text or a menu closes the gate until the sensor says it samples or proves itself again.
    """

    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.tag: str | None = None
        self.preamble = ""
        self.place: Place = "unknown"
        self.unit_id: str | None = None
        self.counts = dict.fromkeys(KINDS, 0)
        self.total_bytes = 0
        self.good_bytes = 0  # in printable lines
        self.bad_bytes = 0  # that the sensor cannot have sent
        self.data_lines = 0  # readings and lines held back
        self.words = 0  # lines of boot text and menu
        self.boots = 0  # times a boot text began
        self._framer = LineFramer()
        self._held: list[DataLine] = []
        self._run = 0
        self._open = False

    @property
    def tail(self) -> bytes:
        """What was heard since the last line end."""
        return self._framer.tail

    @property
    def held(self) -> int:
        """How many lines wait for their shape to be proven."""
        return len(self._held)

    def receive(self, data: bytes, stamp: Stamp) -> list[Item]:
        """What *data*, arrived at *stamp*, brings: readings, noise and shapes in order."""
        items: list[Item] = []
        self.total_bytes += len(data)
        self.bad_bytes += len(data.translate(None, _CLEAN))
        for line in self._framer.receive(data, stamp):
            self.counts["lines"] += 1
            items += self._judge(line)
        return items

    def resync(self) -> list[Item]:
        """The stream was interrupted: distrust the next line's head and prove the shape again."""
        self._framer.reset()
        self.place = "unknown"
        return self._follow_place()

    def _judge(self, line: Line) -> list[Item]:
        if line.overlong:
            return self._refuse("overlong", line.text)
        data = parse_data(line, self.tag, self.preamble) if line.whole else None
        if data is not None and self._open and data.shape == self.shape:
            self.good_bytes += len(line.text)
            return self._pass(data)
        if _UNPRINTABLE.search(line.text):
            return self._refuse("garbage" if line.whole else "partial", line.text)
        self.good_bytes += len(line.text)
        if not line.text.strip():
            self.counts["blank"] += 1
            return []
        kind = self._listen_for_words(line.text)
        if kind is not None:
            self.words += 1
            return [*self._follow_place(), *self._refuse(kind, line.text)]
        return self._hold(data) if data is not None else self._refuse(self._kind(line), line.text)

    def _kind(self, line: Line) -> str:
        if not line.whole:
            return "partial"
        if self.place in ("boot", "menu"):
            return "banner" if self.place == "boot" else "menu"
        if self.tag is not None and parse_data(line) is not None:
            return "shape"
        return "partial" if _HALF.fullmatch(line.text) else "garbage"

    def _listen_for_words(self, text: bytes) -> str | None:
        """Which text of the firmware this is, if any; follow where it says the sensor is."""
        if _MENU.search(text):
            self.place = "menu"
            return "menu"
        if _RESET.search(text):
            self._boot()
            return "menu"
        if _SAMPLING.search(text):
            self.place = "sampling"
            return "banner"
        if _BANNER.search(text):
            self._boot()
            self._learn_from_banner(text)
            return "banner"
        if _REPORT.search(text):
            return "menu" if self.place == "menu" else "banner"
        return None

    def _boot(self) -> None:
        self.boots += self.place != "boot"
        self.place = "boot"

    def _learn_from_banner(self, text: bytes) -> None:
        if found := _UNIT_ID.search(text):
            self.unit_id = found[1].decode()
        if found := _POLLED.search(text):
            self.tag = found[1].decode()
        elif b"Operating in free" in text:
            self.tag = None

    def _follow_place(self) -> list[Item]:
        self._open = self.place == "sampling" and self.shape is not None
        return self._drop_held()

    def _refuse(self, kind: str, text: bytes) -> list[Item]:
        self._run = 0
        self.counts[kind] += 1
        return [Noise(kind, text[:SAMPLE])]

    def _drop_held(self) -> list[Item]:
        held, self._held = self._held, []
        return [item for data in held for item in self._refuse("shape", data.value.encode())]

    def _pass(self, data: DataLine) -> list[Item]:
        self.data_lines += 1
        self.counts["readings"] += 1
        return [*self._drop_held(), data] if self._held else [data]

    def _hold(self, data: DataLine) -> list[Item]:
        self.data_lines += 1
        contradicted = bool(self._held) and self._held[-1].shape != data.shape
        items = self._drop_held() if contradicted else []
        self._held.append(data)
        self._run += 1
        if self._proven():
            return items + self._release()
        if len(self._held) > MAX_HELD:
            oldest = self._held.pop(0)
            self.counts["shape"] += 1
            items.append(Noise("shape", oldest.value.encode()))
        return items

    def _proven(self) -> bool:
        shape = self._held[-1].shape
        lone = not (shape.has_temp or shape.has_vin or shape.tag)
        even, burst = (6, 12) if lone else (3, 6)
        if self._run < even:
            return False
        return self._run >= burst or _evenly_spaced([data.stamp.mono_ns for data in self._held[-even:]])

    def _release(self) -> list[Item]:
        released, self._held, self._run = self._held, [], 0
        was, self.shape = self.shape, released[0].shape
        self._open, self.place = True, "sampling"
        self.counts["readings"] += len(released)
        learned = [] if was == self.shape else [ShapeLearned(self.shape, was)]
        return [*learned, *released]


class Quality:
    """Whether what a gate hears can come from a sensor at the port's speed. Times are monotonic seconds."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.restart(0.0)

    def restart(self, now_s: float) -> None:
        """Judge only what arrives from now on."""
        gate = self._gate
        self._since_s = now_s
        self._before = gate.total_bytes, gate.good_bytes, gate.bad_bytes

    def is_garbled(self, now_s: float, for_s: float) -> bool:
        """Whether for so long more than half of the bytes were in no readable line, and many in no text."""
        gate, (total, good, bad) = self._gate, self._before
        total, good, bad = gate.total_bytes - total, gate.good_bytes - good, gate.bad_bytes - bad
        if not bad:
            self.restart(now_s)
        if now_s - self._since_s < for_s:
            return False
        if bad >= 4 and bad > total / 5 and good < total / 2:
            return True
        if for_s:
            self.restart(now_s)
        return False


class NoiseTally:
    """What was refused since the last report."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first = b""

    def add(self, noise: Noise) -> None:
        """Count it, unless it is the sensor's own boot text or menu."""
        if noise.kind in ("partial", "shape", "garbage", "overlong"):
            self._first = self._first or noise.text
            self.counts[noise.kind] += 1

    def report(self) -> tuple[str, int]:
        """How many of what and the first of them in hex, and the total; starts afresh."""
        text = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        report = f"{text}; the first: {self._first.hex()}", self.counts.total()
        self.counts.clear()
        self._first = b""
        return report


def _evenly_spaced(instants_ns: Sequence[int]) -> bool:
    """Whether a sampler may have paced these: gaps alike within two USB quanta of 15.2 ms or a tenth.

    Gaps below 50 ms are no evidence, since what was held up somewhere arrives evenly at once.
    """
    gaps = [later - earlier for earlier, later in pairwise(instants_ns)]
    return min(gaps) >= 50_000_000 and max(gaps) - min(gaps) <= max(40_000_000, min(gaps) // 10)
