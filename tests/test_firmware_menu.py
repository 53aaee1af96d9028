"""The simulated firmware's menu under simulated time: every word and every delay."""

import re

import pytest

from common.simulator.firmware import period_s
from common.simulator.texts import Eeprom
from tests.sim.bench import (
    AVERAGING_PROMPT,
    MODE_PROMPT,
    PROMPT,
    RATE_PROMPT,
    TAG_PROMPT,
    Bench,
    data,
)


@pytest.mark.parametrize("key", ["\x1b", "?"])
@pytest.mark.parametrize("polled", [False, True])
def test_escape_and_question_mark_enter_the_menu(key: str, polled: bool) -> None:
    """One byte, from either mode, gives sign-on, menu and prompt in 2.5 to 2.8 s."""
    bench = Bench(Eeprom(polled=polled))
    bench.hear(3.0)
    asked_s = bench.now_s
    bench.say(key)
    text = bench.until(PROMPT)
    assert 2.5 <= bench.now_s - asked_s <= 2.8
    assert "Vers 4.003\r\nUnit ID serial ######   \r\n" in text
    assert (
        "\r\nBiospherical Instruments Inc: Digital Log Engine v: 4.003\r\nModel: serial ######   \r\n" in text
    )
    letters = "".join(re.findall(r"^([A-Z]) to ", text, re.MULTILINE))
    assert letters == "ABCDIJKMNOPQRSUWXYZ"
    assert "\r\nR to set ADC sample rate: 125\r\n" in text
    assert "\r\nJ to set the immersion factor (not automatically applied): 1.000000\r\n" in text
    assert text.endswith(f"\r\n\r\n{PROMPT}")


def test_a_quiet_sensor_enters_the_menu_without_sign_on() -> None:
    """Quiet mode leaves out the sign-on ahead of the menu, not the menu."""
    text = Bench(Eeprom(quiet=True)).enter_menu()
    assert "Digital Engine" not in text and "Digital Log Engine" in text


def test_the_whole_menu_and_a_second_of_delay_come_before_every_prompt() -> None:
    """After a command the device is silent for 1 s, then prints the menu again."""
    bench = Bench()
    bench.enter_menu()
    bench.say("^")
    bench.until(PROMPT)
    texts = [emission for emission in bench.heard if emission.data.startswith(b"Biosph")]
    dump = next(emission for emission in bench.heard if emission.data.count(b",") > 10)
    assert texts[-1].start_ns - dump.end_ns == pytest.approx(1.0e9, abs=5e6)


@pytest.mark.parametrize("letter", ["A", "a", "A\r", "\rA"])
def test_averaging_is_set(letter: str) -> None:
    """`A` in either case, with CR or without, asks without a line end and glues its answer to the prompt."""
    bench = Bench()
    bench.enter_menu()
    bench.say(letter)
    asked = bench.until(AVERAGING_PROMPT)
    assert asked.startswith("\r\n") and asked.count("\r\n") == 3
    bench.say("60\r")
    text = bench.until(PROMPT)
    assert text.startswith("60 was entered\r\n\r\nADC set to averaging 60\r\n")
    assert bench.eeprom.averaging == 60


@pytest.mark.parametrize("entry", ["0", "-5", "70000", "many"])
def test_a_bad_averaging_becomes_12(entry: str) -> None:
    """The sensor complains, pauses for 4 s and averages 12."""
    bench = Bench()
    bench.enter_menu()
    bench.say("A")
    bench.until(AVERAGING_PROMPT)
    bench.say(f"{entry}\r")
    bench.until("****Invalid number, averaging set to 12.  Command ignored ****\r\n")
    complained_s = bench.now_s
    bench.until("Digital Log Engine v: 4.003\r\n")
    assert bench.now_s - complained_s == pytest.approx(5.0, abs=0.1)
    assert bench.eeprom.averaging == 12


@pytest.mark.parametrize("rate_hz", [4, 8, 16, 33, 62, 125, 250, 500])
def test_rate_is_set(rate_hz: int) -> None:
    """`R` asks in two lines, the second without a line end, and confirms."""
    bench = Bench()
    bench.enter_menu()
    bench.say("R")
    asked = bench.until(RATE_PROMPT)
    assert asked == f"\r\nEnter ADC rate (4, 8, 16, 33, 62, 125, 250* Hz) \r\n{RATE_PROMPT}"
    bench.say(f"{rate_hz}\r")
    assert bench.until(PROMPT).startswith(f"\r\nADC rate set to {rate_hz}\r\n")
    assert bench.eeprom.rate_hz == rate_hz


def test_a_bad_rate_is_ignored() -> None:
    """The sensor complains, pauses for 5 s and keeps its rate."""
    bench = Bench()
    bench.enter_menu()
    bench.say("R")
    bench.until(RATE_PROMPT)
    bench.say("100\r")
    bench.until("Invalid rate!!! Command is ignored.\r\n")
    complained_s = bench.now_s
    bench.until("Digital Log Engine v: 4.003\r\n")
    assert bench.now_s - complained_s == pytest.approx(6.0, abs=0.1)
    assert bench.eeprom.rate_hz == 125


def test_a_value_sent_before_its_prompt_is_complete_is_lost() -> None:
    """After the first of two prompt lines the UART holds two bytes, and the entry never ends."""
    bench = Bench()
    bench.enter_menu()
    bench.say("R")
    bench.until("250* Hz) \r\n")
    bench.say("125\r")
    bench.until(RATE_PROMPT)
    assert bench.hear(3600) == ""
    assert bench.firmware.overruns == 2


def test_mode_is_set_with_single_bytes() -> None:
    """`M`, `1` and the tag, none with CR, make it polled; `M`, `0` make it freerun again."""
    bench = Bench()
    bench.enter_menu()
    bench.say("M")
    asked = bench.until(MODE_PROMPT)
    first = "Set operating mode.  Mode 0 is freerun, 1 is polled.  Polled require a TAG to be defined"
    assert asked == f"\r\n{first}\r\n{MODE_PROMPT}"
    bench.say("1")
    asked = bench.until(TAG_PROMPT)
    line = "Enter the single character that will be the tag used in polling (A-F) UPPER case"
    assert asked == f"\r\n{line}\r\n{TAG_PROMPT}"
    bench.say("C")
    bench.until(PROMPT)
    assert (bench.eeprom.polled, bench.eeprom.tag) == (True, "C")
    bench.say("M")
    bench.until(MODE_PROMPT)
    bench.say("0")
    assert bench.until(PROMPT).startswith("0\r\n")
    assert bench.eeprom.polled is False


def test_cr_after_m_is_taken_for_the_answer() -> None:
    """`M` with CR leaves the sensor confused and sets nothing."""
    bench = Bench()
    bench.enter_menu()
    bench.say("M\r")
    text = bench.until(PROMPT)
    assert f"{MODE_PROMPT}\r\nI am confused\r\n" in text
    assert bench.eeprom.polled is False


@pytest.mark.parametrize("tag", ["a", "1", "\r"])
def test_a_bad_tag_sets_nothing(tag: str) -> None:
    """Only A to Z in upper case is a tag."""
    bench = Bench()
    bench.enter_menu()
    bench.say("M")
    bench.until(MODE_PROMPT)
    bench.say("1")
    bench.until(TAG_PROMPT)
    bench.say(tag)
    assert bench.until(PROMPT).startswith("\r\n Bad TAG \r\n")
    assert (bench.eeprom.polled, bench.eeprom.tag) == (False, "A")


@pytest.mark.parametrize("answers", [[], ["1"]])
def test_mode_dialogue_times_out_after_20_s(answers: list[str]) -> None:
    """An unanswered mode or tag prompt is given up after 20 s."""
    bench = Bench()
    bench.enter_menu()
    bench.say("M")
    bench.until(MODE_PROMPT)
    for answer in answers:
        bench.say(answer)
        bench.until(TAG_PROMPT)
    asked_s = bench.now_s
    bench.until("Timed out waiting for response. \r\n")
    assert bench.now_s - asked_s == pytest.approx(20.0, abs=0.1)
    assert bench.until(PROMPT) and bench.eeprom.polled is False


@pytest.mark.parametrize(("letter", "prompt"), [("A", AVERAGING_PROMPT), ("R", RATE_PROMPT)])
def test_averaging_and_rate_wait_for_ever(letter: str, prompt: str) -> None:
    """A number prompt has no timeout: it still takes an answer after an hour."""
    bench = Bench()
    bench.enter_menu()
    bench.say(letter)
    bench.until(prompt)
    assert bench.hear(3600) == ""
    bench.say("33\r")
    assert "33" in bench.until(PROMPT)


def test_the_dump_names_every_setting_in_its_place() -> None:
    """`^` gives one line whose literals and fields stand where the menu letters say."""
    bench = Bench(Eeprom(averaging=60, rate_hz=62, polled=True, tag="B", preamble="$LITE", units="uW"))
    bench.enter_menu()
    bench.say("^\r")
    line = bench.until(PROMPT).split("\r\n")[1]
    fields = line.split(",")
    names = "avg baud cal text E version G H serial imm dark supply mode tag preamble temp rate S t units V x"
    dump = dict(zip(names.split(), fields, strict=True))
    assert [dump[anchor] for anchor in "EGHSV"] == list("EGHSV")
    assert (dump["avg"], dump["baud"], dump["rate"], dump["mode"], dump["tag"]) == (
        "60",
        "9600",
        "62",
        "1",
        "B",
    )
    assert (dump["serial"], dump["version"], dump["preamble"]) == ("serial ######   ", "4.003", "$LITE")
    assert fields[fields.index("S") - 1] == "62"


def test_x_resets_and_settings_survive() -> None:
    """`X` says so, reboots, and the sensor streams with what the menu set."""
    bench = Bench()
    bench.enter_menu()
    bench.say("A")
    bench.until(AVERAGING_PROMPT)
    bench.say("25\r")
    bench.until(PROMPT)
    bench.say("x\r")
    text = bench.until("Starting Sampling; quiet mode =0\r\n")
    assert text.startswith("\r\nCalling reset!\r\nRebooting program\r\n\r\nBiospherical")
    assert "Averaging 25 readings\r\n" in text
    bench.hear(2.0)
    first, second = data(bench.heard)[-2:]
    assert (second.start_ns - first.start_ns) / 1e9 == pytest.approx(period_s(bench.eeprom))


def test_x_outside_the_menu_is_ignored() -> None:
    """A streaming sensor takes no notice of X, nor of poll characters."""
    bench = Bench()
    bench.hear(3.0)
    bench.say("X\r*AQ000!>A*")
    assert re.fullmatch(r"(0\.010046, 27\.68, 7\.494\r\n){9,10}", bench.hear(10.0))


def test_escape_in_the_menu_prints_it_twice() -> None:
    """ESC at the prompt reprints the menu and then comes round with it again, about 4 s in all."""
    bench = Bench()
    bench.enter_menu()
    asked_s = bench.now_s
    bench.say("\x1b")
    text = bench.until(PROMPT)
    assert text.count("Digital Log Engine") == 2
    assert bench.now_s - asked_s == pytest.approx(4.1, abs=0.2)


def test_escape_during_the_power_on_text_is_ignored() -> None:
    """Bytes that come with the banner are forgotten."""
    bench = Bench()
    bench.hear(0.4)
    bench.say("\x1b")
    assert "Select" not in bench.hear(10.0)


def test_escape_during_the_adc_start_waits() -> None:
    """A driver that asks 1.2 s after a reset gets its menu after the start, as measured: 4.4 s in all."""
    bench = Bench()
    bench.hear(1.2)
    bench.say("\x1b")
    bench.until(PROMPT)
    assert bench.now_s == pytest.approx(4.4, abs=0.15)


def test_an_unknown_letter_brings_the_menu_again() -> None:
    """Nothing but the known letters does anything."""
    bench = Bench()
    bench.enter_menu()
    before = Eeprom(**vars(bench.eeprom))
    bench.say("5")
    assert bench.until(PROMPT).count("Digital Log Engine") == 1
    assert bench.eeprom == before


def test_what_a_driver_measures() -> None:
    """Wait 1.2 s, ESC, menu, `^`: 3.9 s; a rate or mode change by a host that hesitates: 3.1 to 3.7 s."""
    bench = Bench()
    bench.hear(5.0)
    opened_s = bench.now_s
    bench.hear(1.2)
    bench.say("\x1b")
    bench.until(PROMPT)
    bench.say("^\r")
    bench.until("V,0\r\n")
    assert bench.now_s - opened_s == pytest.approx(3.93, abs=0.1)
    bench.until(PROMPT)
    for letter, prompt, answer in (("R", RATE_PROMPT, "125\r"), ("M", MODE_PROMPT, "0")):
        asked_s = bench.now_s
        bench.say(letter)
        bench.until(prompt)
        bench.hear(0.5)
        bench.say(answer)
        bench.until(PROMPT)
        assert 3.1 <= bench.now_s - asked_s <= 3.7


def test_the_menu_can_open_by_itself() -> None:
    """A sensor that drops into its menu stops streaming until X."""
    bench = Bench()
    bench.hear(5.0)
    bench.firmware.enter_menu(round(bench.now_s * 1e9))
    bench.until(PROMPT)
    assert bench.hear(3600) == ""
