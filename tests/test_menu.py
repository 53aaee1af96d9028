"""The menu dialogue against the simulated firmware under simulated time: no I/O, no waiting."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.menu import (
    Answer,
    Ask,
    InvalidSetting,
    MenuTimeout,
    NoMenu,
    SensorConfig,
    Talk,
    Wanted,
    leave,
    parse_config,
    poll_query,
    poll_start,
    visit,
)
from common.messages import Stamp
from common.qseries import DataLine, Gate
from common.simulator.firmware import Emission, Firmware
from common.simulator.texts import Eeprom, Sample, dump

T = TypeVar("T")
STEP_NS = 10_000_000
HERE = Sample(value=0.010046, temp_c=27.68, vin=7.494)


class Host:
    """A driver's end of the wire, with a gate on it; bytes are heard when their last bit has arrived."""

    def __init__(self, eeprom: Eeprom, spoil: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.firmware = Firmware(eeprom, lambda start_ns, end_ns: HERE, 0)
        self.gate = Gate()
        self.now_ns = 0
        self.readings: list[DataLine] = []
        self.heard = bytearray()
        self._spoil = spoil
        self._coming: list[Emission] = []

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 1e9 / STEP_NS)):
            self.now_ns += STEP_NS
            self._coming += self.firmware.advance(self.now_ns)
            while self._coming and self._coming[0].end_ns <= self.now_ns:
                self._hear(self._coming.pop(0).data)

    def say(self, data: bytes) -> None:
        self.firmware.receive(self._spoil(data), self.now_ns)

    def hold(self, talk: Talk[T]) -> T:
        ask = next(talk)
        while True:
            try:
                ask = talk.send(self._answer(ask))
            except StopIteration as done:
                result: T = done.value
                return result

    def _hear(self, data: bytes) -> None:
        self.heard += data
        items = self.gate.receive(data, Stamp(self.now_ns, self.now_ns))
        self.readings += [item for item in items if isinstance(item, DataLine)]

    def _answer(self, ask: Ask) -> Answer:
        if ask.send:
            self.heard.clear()
            self.say(ask.send)
        end_ns, deaf_ns = self.now_ns + round(ask.within_s * 1e9), self.now_ns + 1_000_000_000
        lines = self.gate.data_lines
        while (found := ask.until.search(self.heard)) is None:
            if self.now_ns >= end_ns:
                return Answer("late", bytes(self.heard))
            if self.now_ns <= deaf_ns:
                lines = self.gate.data_lines
            elif ask.or_streaming and self.gate.data_lines >= lines + 2:
                return Answer("streaming", bytes(self.heard))
            self.wait(STEP_NS / 1e9)
        text = bytes(self.heard[: found.end()])
        del self.heard[: found.end()]
        return Answer("matched", text)


def streaming(host: Host) -> None:
    host.wait(8.3)


def booting(host: Host) -> None:
    host.wait(0.3)


def starting_its_adc(host: Host) -> None:
    host.wait(0.9)


def at_the_prompt(host: Host) -> None:
    host.wait(4.0)
    host.say(b"\x1b")
    host.wait(4.0)


def printing_its_menu(host: Host) -> None:
    host.wait(4.0)
    host.say(b"\x1b")
    host.wait(2.0)


def asked_for(letter: bytes) -> Callable[[Host], None]:
    def reach(host: Host) -> None:
        at_the_prompt(host)
        host.say(letter)
        host.wait(1.0)

    return reach


Reach = Callable[[Host], None]
PLACES: list[Reach] = [streaming, booting, starting_its_adc, at_the_prompt, printing_its_menu]
QUESTIONS: list[Reach] = [asked_for(b"R"), asked_for(b"M"), asked_for(b"A")]


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize("place", PLACES + QUESTIONS)
def test_the_configuration_is_read_from_wherever_the_sensor_is(
    place: Reach, polled: bool, quiet: bool
) -> None:
    """Booting, streaming, polled, in the menu or in a question: it is read, and the sensor samples again."""
    host = Host(Eeprom(averaging=25, polled=polled, quiet=quiet, tag="C"))
    place(host)
    config = host.hold(visit(Wanted()))
    assert (config.mode, config.tag, config.adc_rate_hz) == ("polled" if polled else "freerun", "C", 125)
    assert config.averaging == (12 if place is QUESTIONS[2] else 25)  # the firmware's own doing
    seen = len(host.readings)
    host.wait(3.0)
    if polled:
        host.gate.tag = "C"
        host.say(poll_start("C"))
        for _ in range(4):
            host.wait(0.5)
            host.say(poll_query("C"))
        host.wait(0.1)
    assert len(host.readings) >= seen + 3


def test_everything_is_set_in_one_visit() -> None:
    """Averaging, rate, mode and tag that differ are set, and read back from the sensor."""
    eeprom = Eeprom()
    host = Host(eeprom)
    streaming(host)
    config = host.hold(visit(Wanted(averaging=12, adc_rate_hz=250, mode="polled", tag="F")))
    assert (config.averaging, config.adc_rate_hz, config.mode, config.tag) == (12, 250, "polled", "F")
    assert (eeprom.averaging, eeprom.rate_hz, eeprom.polled, eeprom.tag) == (12, 250, True, "F")
    assert str(host.hold(visit(Wanted(mode="freerun")))) == "averaging 12 at 250 Hz, freerun"
    assert not eeprom.polled


def test_what_is_already_so_is_not_set_again() -> None:
    """A visit that has nothing to change asks no question, so it takes two menus only."""
    host = Host(Eeprom())
    streaming(host)
    start_ns = host.now_ns
    host.hold(visit(Wanted(averaging=125, adc_rate_hz=125, mode="freerun")))
    assert (host.now_ns - start_ns) / 1e9 < 6.0


def test_a_refused_value_is_told_and_the_menu_left() -> None:
    """The firmware's own words come with the error, and the sensor streams afterwards."""
    host = Host(Eeprom(), spoil=lambda data: b"7\r" if data == b"250\r" else data)
    streaming(host)
    with pytest.raises(InvalidSetting, match="refused '250': Invalid rate"):
        host.hold(visit(Wanted(adc_rate_hz=250)))
    seen = len(host.readings)
    host.wait(6.0)
    assert len(host.readings) > seen


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (Wanted(averaging=0), "averaging 0"),
        (Wanted(averaging=65536), "averaging 65536"),
        (Wanted(adc_rate_hz=7), "adc_rate_hz 7"),
        (Wanted(tag="a"), "tag 'a'"),
        (Wanted(tag="AB"), "tag 'AB'"),
    ],
)
def test_impossible_settings_are_refused_before_they_are_sent(wanted: Wanted, named: str) -> None:
    """The message names the setting and the value."""
    with pytest.raises(InvalidSetting, match=named):
        wanted.check()


def test_a_tag_without_polled_mode_is_refused() -> None:
    """A freerunning sensor has no use for a tag; the error says what it needs."""
    host = Host(Eeprom())
    streaming(host)
    with pytest.raises(InvalidSetting, match="polled mode"):
        host.hold(visit(Wanted(tag="B")))


def test_a_deaf_talker_has_no_menu() -> None:
    """Data that flows on after two ESC means that there is no menu; every line of it is still a reading."""
    host = Host(Eeprom(), spoil=lambda data: b"")
    host.wait(3.0)
    with pytest.raises(NoMenu):
        host.hold(visit(Wanted()))
    assert len(host.readings) >= 5


def test_a_dead_line_is_a_timeout() -> None:
    """Nothing but silence ends in an error that says what to check."""
    host = Host(Eeprom(polled=True), spoil=lambda data: b"")
    host.wait(3.0)
    with pytest.raises(MenuTimeout, match="check port, baud rate, cable and power"):
        host.hold(visit(Wanted()))


@pytest.mark.parametrize("place", [at_the_prompt, printing_its_menu, *QUESTIONS])
def test_a_sensor_dropped_into_its_menu_gets_out(place: Reach) -> None:
    """From the prompt, the printing of the menu or a question, it samples again by itself."""
    host = Host(Eeprom(averaging=25))
    place(host)
    seen = len(host.readings)
    host.hold(leave())
    host.wait(4.0)
    assert len(host.readings) > seen


def test_a_sensor_that_stays_in_its_menu_is_given_up() -> None:
    """After three X the error names the cure that is left."""
    host = Host(Eeprom(), spoil=lambda data: b"" if data == b"X" else data)
    host.wait(4.0)
    host.say(b"\x1b")
    host.wait(4.0)
    with pytest.raises(MenuTimeout, match="switch its power off and on"):
        host.hold(leave())


def test_the_dump_is_read_field_by_field() -> None:
    """Numbers, verbatim serial number and preamble, and the rate from the field before the literal S."""
    eeprom = Eeprom(polled=True, tag="D", rate_hz=62, preamble="$LITE ", units="uE", description="Deck, port")
    assert parse_config(dump(eeprom, HERE).encode()) == SensorConfig(
        averaging=125,
        serial_number="serial ######   ",
        raw=dump(eeprom, HERE),
        baud=9600,
        calfactor=1.0,
        description="Deck, port",
        firmware="4.003",
        immersion=1.0,
        dark=0.0,
        supply_v=7.494,
        mode="polled",
        tag="D",
        preamble="$LITE ",
        adc_rate_hz=62,
        units="uE",
    )


def test_a_short_dump_gives_what_it_has() -> None:
    """Eleven fields are enough; a negative dark value is no obstacle; what is missing is None."""
    config = parse_config(b"125,9600,1.0,,E,4.003,G,H,007,1.0,-0.5")
    assert config is not None
    assert (config.averaging, config.serial_number, config.dark) == (125, "007", -0.5)
    assert (config.supply_v, config.mode, config.tag, config.adc_rate_hz) == (None, None, None, None)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from(["E", "G", "H", "S", "1", "-1", ",", "x"])).map(
            lambda words: ",".join(words).encode()
        ),
    )
)
@example(b"125,9600,1.0,,E,4.003,G,H,7,1.0")
@example(b"many,9600,1.0,,E,4.003,G,H,7,1.0,0.0,7.5,0,A,,1,125,S,25,,V")
def test_garbage_is_no_dump_and_never_raises(line: bytes) -> None:
    """A line is read as a dump only if it has a count of averages and the literals in their places."""
    config = parse_config(line)
    if config is not None:
        fields = config.raw.split(",")
        assert fields[0].strip().isdigit() and {"E", "G", "H"} <= set(fields) and len(fields) >= 11
