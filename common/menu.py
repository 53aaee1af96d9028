"""Talking to a Q-Series in its menu, without I/O and without a clock.

A talk is a generator: it yields what to send and what to wait for (`Ask`), is sent what was heard
(`Answer`), and returns what came of it. Whoever runs it owns the port and the time.
Before every prompt the firmware waits a second and prints its whole menu, so each step takes about
2.6 s at 9600 baud, and a refused value 4 or 5 s more.
"""

import re
from collections.abc import Generator
from typing import Final, Literal, TypeVar

from msgspec import Struct

RATES_HZ = (4, 8, 16, 33, 62, 125, 250, 500)
PROMPT_S = 6.0  # a boot of 2.8 s during which our key waited, and a menu after it
ALIVE_S = 3.5  # it says something within 1.1 s of ESC, unless it boots
REFUSAL_S = 9.0  # the longest pause after a bad value, and a menu after it

ESC, CR = b"\x1b", b"\r"
_MENU_ENTRY = rb"Select the letter of the menu entry:"
PROMPT = re.compile(_MENU_ENTRY)
# The firmware takes a value only after the last blank of its prompt, which has no line end.
_AVERAGING_PROMPT = re.compile(rb"\(1-65535\): ")
_AVERAGING_DONE = re.compile(rb"(?s)(set to averaging|Invalid number).*" + _MENU_ENTRY)
_RATE_PROMPT = re.compile(rb"Enter selection: ")
_RATE_DONE = re.compile(rb"(?s)(ADC rate set|Invalid rate|Oh my goodness).*" + _MENU_ENTRY)
_MODE_PROMPT = re.compile(rb"operating mode number: ")
_TAG_PROMPT = re.compile(rb"software : |(?s:I am confused.*)" + _MENU_ENTRY)
_RESET = re.compile(rb"Rebooting program|Starting Sampling|Entering polled")
_ALIVE = re.compile(rb"Digital (Log )?Engine|Starting Sampling|Entering polled|" + _MENU_ENTRY)
_REFUSED = re.compile(
    rb"(Invalid number|Invalid rate|Oh my goodness|Bad TAG|I am confused|Timed out)[^\r\n]*"
)

Mode = Literal["freerun", "polled"]
_MODES: Final[dict[str, Mode]] = {"0": "freerun", "1": "polled"}
T = TypeVar("T")


class InstrumentError(Exception):
    """What was asked of the sensor cannot be had; the message says why."""


class NotConnected(InstrumentError):
    """No port is open, or it was lost meanwhile."""


class MenuTimeout(InstrumentError):
    """The sensor did not answer in its menu."""


class NoMenu(MenuTimeout):
    """It streams on and takes no notice of ESC: a talker without a menu, or one that cannot hear us."""


class InvalidSetting(InstrumentError):
    """The value is out of range, or the sensor refused it."""


class SensorConfig(Struct, frozen=True):
    """What the sensor says of itself in answer to `^`; None where the line does not tell.

    supply_v in volts; calfactor, immersion and dark are the firmware's own numbers; serial_number and
    preamble are verbatim, blanks and all.
    """

    averaging: int
    serial_number: str
    raw: str
    baud: int | None = None
    calfactor: float | None = None
    description: str = ""
    firmware: str = ""
    immersion: float | None = None
    dark: float | None = None
    supply_v: float | None = None
    mode: Mode | None = None
    tag: str | None = None
    preamble: str = ""
    adc_rate_hz: int | None = None
    units: str = ""

    def __str__(self) -> str:
        mode = f"polled with tag {self.tag}" if self.mode == "polled" else self.mode or "unknown mode"
        return f"averaging {self.averaging} at {self.adc_rate_hz or 'unknown'} Hz, {mode}"


def parse_config(line: bytes) -> SensorConfig | None:
    """Read the `^` line; None if it is not one. Its fields sit between the literals E, G, H and S.

    A comma in the description is tolerated, a short tail too; documents disagree about the fields after
    the preamble, but the ADC rate is always the one before the literal S.
    """
    if not re.fullmatch(rb"[\t -~]+", line):
        return None
    fields = line.decode("ascii").split(",")
    averaging = _integer(fields[0])
    e = next((i for i in range(3, len(fields) - 6) if _literals(fields, i)), None)
    if e is None or averaging is None:
        return None
    serial, immersion, dark, supply, mode, tag, preamble = (fields[e + 4 :] + [""] * 4)[:7]
    s = next((i for i in range(e + 11, len(fields)) if fields[i].strip() == "S"), None)
    return SensorConfig(
        averaging=averaging,
        serial_number=serial,
        raw=line.decode("ascii"),
        baud=_integer(fields[1]),
        calfactor=_number(fields[2]),
        description=",".join(fields[3:e]).strip(),
        firmware=fields[e + 1].strip(),
        immersion=_number(immersion),
        dark=_number(dark),
        supply_v=_number(supply),
        mode=_MODES.get(mode.strip()),
        tag=tag.strip() if re.fullmatch("[A-Z]", tag.strip()) else None,
        preamble=preamble,
        adc_rate_hz=_integer(fields[s - 1]) if s else None,
        units=fields[s + 2].strip() if s and s + 2 < len(fields) else "",
    )


def _literals(fields: list[str], e: int) -> bool:
    return [fields[i].strip() for i in (e, e + 2, e + 3)] == ["E", "G", "H"]


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r" *[0-9]{1,9} *", text) else None


def _number(text: str) -> float | None:
    plain = re.fullmatch(r" *[+-]?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})? *", text)
    return float(text) if plain else None


class Wanted(Struct, frozen=True):
    """Settings to be applied; None leaves the sensor's own. adc_rate_hz: one of RATES_HZ."""

    averaging: int | None = None
    adc_rate_hz: int | None = None
    mode: Mode | None = None
    tag: str | None = None

    def check(self) -> None:
        """Refuse what the firmware would refuse.

        Raises:
            InvalidSetting: a value is out of range; names it.
        """
        if self.averaging is not None and not 1 <= self.averaging <= 65535:
            raise InvalidSetting(f"averaging {self.averaging}: give 1 to 65535")
        if self.adc_rate_hz is not None and self.adc_rate_hz not in RATES_HZ:
            raise InvalidSetting(f"adc_rate_hz {self.adc_rate_hz}: give one of {RATES_HZ}")
        if self.mode not in (None, "freerun", "polled"):
            raise InvalidSetting(f"mode {self.mode!r}: give freerun or polled")
        if self.tag is not None and not re.fullmatch("[A-Z]", self.tag):
            raise InvalidSetting(f"tag {self.tag!r}: give one letter A to Z")

    def updated(self, by: "Wanted") -> "Wanted":
        """These settings with the other's put over them."""
        return Wanted(
            by.averaging or self.averaging,
            by.adc_rate_hz or self.adc_rate_hz,
            by.mode or self.mode,
            by.tag or self.tag if (by.mode or self.mode) != "freerun" else None,
        )


class Ask(Struct, frozen=True):
    """Send these bytes (maybe none), then wait for this in what comes after, at most so long.

    or_streaming: stop waiting as soon as it is plain that the sensor streams on regardless.
    """

    send: bytes
    until: re.Pattern[bytes]
    within_s: float = PROMPT_S
    or_streaming: bool = False


class Answer(Struct, frozen=True):
    """What was heard: up to and with the match, or all there was."""

    outcome: Literal["matched", "late", "streaming"]
    text: bytes


Talk = Generator[Ask, Answer, T]


def visit(wanted: Wanted) -> Talk[SensorConfig]:
    """Enter the menu from anywhere, read the configuration, apply what differs, leave by a reset.

    Returns: the configuration as the sensor itself last told it.

    Raises:
        NoMenu, MenuTimeout: it did not let us in, or fell silent on the way.
        InvalidSetting: it refused a value; the others are kept and the menu was left.
    """
    yield from _enter()
    config = yield from _read_config()
    refusal: InvalidSetting | None = None
    try:
        changed = yield from _apply(wanted, config)
        if changed:
            config = yield from _read_config()
    except InvalidSetting as error:
        refusal = error
    yield from _say(b"X", _RESET)
    if refusal is not None:
        raise refusal
    return config


def leave(tries: int = 3) -> Talk[None]:
    """Get a sensor that somebody dropped into its menu, or into one of its questions, sampling again.

    Raises:
        MenuTimeout: it stayed.
    """
    yield Ask(b"", PROMPT, within_s=4.0)  # a letter sent while the menu is printed may be lost
    for _ in range(tries):
        answer = yield Ask(b"X", _RESET, within_s=6.0, or_streaming=True)
        if answer.outcome != "late":
            return
        yield Ask(CR, PROMPT, within_s=REFUSAL_S)  # ends a question, which had swallowed the X
    raise MenuTimeout(f"the sensor stays in its menu after {tries} times X: switch its power off and on")


def poll_start(tag: str) -> bytes:
    """Clears the average and starts it; without it no query is ever answered."""
    return f"*{tag}Q000!".encode("ascii")


def poll_query(tag: str) -> bytes:
    """Asks for the average; lost, not queued, while it is not complete. No CR: it would end the replies."""
    return f">{tag}*".encode("ascii")


def _say(send: bytes, until: re.Pattern[bytes], within_s: float = PROMPT_S) -> Talk[bytes]:
    answer = yield Ask(send, until, within_s)
    if answer.outcome == "late":
        heard = answer.text[-60:] or b"nothing"
        raise MenuTimeout(f"no answer to {send!r} within {within_s:g} s; heard {heard!r}")
    return answer.text


def _enter() -> Talk[None]:
    """ESC works while it streams, waits for polls or is in the menu. While it boots ESC may be lost, so it
    is sent again; inside a question it is a character, and CR ends the question."""
    ignored = 0
    for key in (ESC, ESC, CR, ESC):
        answer = yield Ask(key, _ALIVE, REFUSAL_S if key == CR else ALIVE_S, or_streaming=True)
        if answer.outcome == "matched" and (yield from _reach_prompt(answer.text)):
            return
        ignored += answer.outcome == "streaming"
        if ignored == 2:
            raise NoMenu("it streams on and does not answer ESC")
    raise MenuTimeout("no answer to ESC: check port, baud rate, cable and power")


def _reach_prompt(text: bytes) -> Talk[bool]:
    for _ in range(6):
        if PROMPT.search(text):
            return True
        # When it begins to sample only now, ESC was lost or still waits to be read; then it answers at once.
        within_s = 1.0 if _RESET.search(text) else PROMPT_S
        answer = yield Ask(b"", _ALIVE, within_s)
        if answer.outcome != "matched":
            return False
        text = answer.text
    return False


def _read_config() -> Talk[SensorConfig]:
    send = b"^"
    for _ in range(3):
        text = yield from _say(send, PROMPT)
        for line in text.splitlines():
            if (config := parse_config(line)) is not None:
                return config
        send = b""  # that was the prompt of an earlier key; the answer is still to come
    raise MenuTimeout("no configuration in answer to ^")


def _apply(wanted: Wanted, config: SensorConfig) -> Talk[bool]:
    changed = False
    if wanted.averaging not in (None, config.averaging):
        yield from _question(b"A", _AVERAGING_PROMPT, f"{wanted.averaging}\r", _AVERAGING_DONE)
        changed = True
    if wanted.adc_rate_hz not in (None, config.adc_rate_hz):
        yield from _question(b"R", _RATE_PROMPT, f"{wanted.adc_rate_hz}\r", _RATE_DONE)
        changed = True
    mode = wanted.mode or config.mode
    tag = (wanted.tag or config.tag or "A") if mode == "polled" else None
    if wanted.tag is not None and mode != "polled":
        raise InvalidSetting("a tag needs polled mode")
    if (mode, tag) != (config.mode, config.tag if config.mode == "polled" else None):
        yield from _set_mode(tag)
        changed = True
    return changed


def _set_mode(tag: str | None) -> Talk[None]:
    """Single bytes without CR: a CR after M is taken for the mode, and nothing is set."""
    if tag is None:
        yield from _question(b"M", _MODE_PROMPT, "0", PROMPT)
        return
    yield from _question(b"M", _MODE_PROMPT, "1", _TAG_PROMPT)
    yield from _value(tag, PROMPT)


def _question(letter: bytes, prompt: re.Pattern[bytes], value: str, done: re.Pattern[bytes]) -> Talk[None]:
    yield from _say(letter, prompt)
    yield from _value(value, done)


def _value(value: str, done: re.Pattern[bytes]) -> Talk[None]:
    text = yield from _say(value.encode("ascii"), done, REFUSAL_S)
    if refused := _REFUSED.search(text):
        raise InvalidSetting(f"the sensor refused {value.strip()!r}: {refused[0].decode('ascii')}")
