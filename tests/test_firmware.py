"""The simulated firmware under simulated time: lines, power-on, polling, and what other speeds hear."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.simulator.firmware import overhear, period_s
from common.simulator.texts import Eeprom, print_temp, print_vin
from tests.sim.bench import Bench, data


def test_an_hour_at_125_readings_of_125_hz_has_a_line_every_1_0338_s() -> None:
    """Freerun lines of 24 bytes start 1.0338 s apart, for an hour."""
    bench = Bench()
    bench.hear(3600)
    lines = data(bench.heard)
    steps_s = {(b.start_ns - a.start_ns) / 1e9 for a, b in pairwise(lines)}
    assert all(step_s == pytest.approx(1.0338, abs=5e-5) for step_s in steps_s)
    assert len(lines) == pytest.approx(3600 / 1.0338, abs=3)
    assert {line.data for line in lines} == {b"0.010046, 27.68, 7.494\r\n"}


def test_12_readings_give_the_field_rate_at_115200_baud() -> None:
    """Twelve averages at 125 Hz give 8.8 to 9.1 lines a second where the line takes no time."""
    eeprom = Eeprom(averaging=12, baud=115200)
    assert 8.8 <= 1 / period_s(eeprom) <= 9.1
    bench = Bench(eeprom)
    bench.hear(62)
    assert 525 <= len(data(bench.heard)) <= 555


@pytest.mark.parametrize(
    ("eeprom", "line"),
    [
        (Eeprom(), "0.010046, 27.68, 7.494\r\n"),
        (Eeprom(temp=False), "0.010046, 7.494\r\n"),
        (Eeprom(vin=False), "0.010046, 27.68\r\n"),
        (Eeprom(temp=False, vin=False), "0.010046\r\n"),
        (Eeprom(preamble="$LITE"), "$LITE0.010046, 27.68, 7.494\r\n"),
    ],
)
def test_a_line_has_the_fields_that_are_switched_on(eeprom: Eeprom, line: str) -> None:
    """Preamble without separator, then value, temperature and supply, each only if on."""
    bench = Bench(eeprom)
    bench.hear(4)
    assert data(bench.heard)[0].data.decode() == line


def test_temperature_and_supply_fall_on_the_steps_of_the_real_unit() -> None:
    """Printing what was recorded gives it back, and nothing in between exists."""
    recorded = ["23.53", "24.36", "25.19", "25.60", "26.43", "26.85", "27.26", "27.68"]
    assert [print_temp(float(text)) for text in recorded] == recorded
    assert [print_vin(v) for v in (7.494, 7.515, 7.536)] == ["7.494", "7.515", "7.536"]
    steps = sorted({float(print_temp(20 + i / 100)) for i in range(1000)})
    assert {round(b - a, 2) for a, b in pairwise(steps)} == {0.41, 0.42}
    assert len({print_vin(7.4 + i / 1000) for i in range(210)}) in (10, 11)


def test_power_on_text_and_timeline_in_freerun() -> None:
    """The banner lines come in order, and at the times measured on the real unit."""
    bench = Bench()
    text = bench.hear(3.5)
    lines = text.split("\r\n")
    assert lines == [
        "",
        "Biospherical Instruments Inc: Digital Engine Vers 4.003",
        "Unit ID serial ######   ",
        "Operating in free run mode",
        "ADC sample rate 125, gain 1",
        "Averaging 125 readings",
        "ADC buffer: Buffer disabled",
        "Sensor temperature: 27.68 C",
        "Input Supply Voltage: 7.494v",
        "Calfactor: 1.000000",
        "Reset ADC 7799",
        "ADC OK",
        "Start free run sampling",
        "Starting Sampling; quiet mode =0",
        "0.010046, 27.68, 7.494",
        "",
    ]
    at_s = {emission.data.split(b" ")[0]: emission.end_ns / 1e9 for emission in bench.heard}
    assert at_s[b"Biospherical"] == pytest.approx(0.3, abs=0.06)
    assert at_s[b"Calfactor:"] - at_s[b"Biospherical"] == pytest.approx(0.26, abs=0.06)
    assert at_s[b"Starting"] - at_s[b"Calfactor:"] == pytest.approx(1.2, abs=0.1)
    assert bench.heard[-1].start_ns / 1e9 == pytest.approx(2.8, abs=0.1)


def test_quiet_mode_says_nothing_and_is_sooner_done() -> None:
    """In quiet mode the first thing sent is data, about 2.2 s after the reset."""
    bench = Bench(Eeprom(quiet=True))
    bench.hear(3.0)
    assert bench.heard[0].printed
    assert bench.heard[0].start_ns / 1e9 == pytest.approx(2.2, abs=0.15)


def test_power_on_text_in_polled_mode_and_without_averaging() -> None:
    """Polled mode names its tag and ends with silence."""
    bench = Bench(Eeprom(polled=True, tag="C", averaging=1))
    text = bench.hear(60)
    assert "Operating in polled mode with tag of C\r\n" in text
    assert "No Averaging\r\n" in text
    assert text.endswith("ADC OK\r\nEntering polled mainline sampling\r\n")


def polled() -> Bench:
    bench = Bench(Eeprom(polled=True))
    bench.hear(3.0)
    return bench


def test_a_polled_sensor_answers_nothing_before_it_is_started() -> None:
    """Queries without a start, or with another tag, get no reply."""
    bench = polled()
    for _ in range(5):
        bench.say(">A*")
        assert bench.hear(2.0) == ""
    bench.say("*BQ000!")
    bench.hear(2.0)
    bench.say(">A*")
    assert bench.hear(2.0) == ""


def test_a_polled_sensor_replies_with_tag_and_line() -> None:
    """After the start and one average, a query is answered, in the polled shape."""
    bench = polled()
    bench.say("*AQ000!")
    assert bench.hear(1.1) == ""
    bench.say(">A*")
    assert bench.hear(0.1) == "A,0.010046, 27.68, 7.494\r\n"


def test_an_early_query_is_lost_not_queued() -> None:
    """A query before the average is complete is never answered, nor does it delay the average."""
    bench = polled()
    bench.say("*AQ000!")
    bench.hear(0.5)
    bench.say(">A*")
    assert bench.hear(0.6) == ""
    bench.say(">A*")
    assert bench.hear(0.1).startswith("A,")


def test_polling_at_2_hz_is_answered_every_third_time() -> None:
    """Queries 0.5013 s apart are answered every 1.504 s: 7 replies in 10 s."""
    bench = polled()
    bench.say("*AQ000!")
    bench.hear(0.01)
    for _ in range(40):
        bench.hear(1.504 / 3)
        bench.say(">A*")
    replies = [emission.start_ns for emission in data(bench.heard)]
    assert all(b - a == pytest.approx(1.504e9, abs=1e6) for a, b in pairwise(replies))
    assert sum(at_ns - replies[0] <= 10e9 for at_ns in replies) == 7


def test_a_query_without_its_star_is_answered_once_only() -> None:
    """Without the trailing star the next average is never started."""
    bench = polled()
    bench.say("*AQ000!")
    bench.hear(1.1)
    bench.say(">A\r")
    assert bench.hear(2.0).startswith("A,")
    for _ in range(3):
        bench.say(">A\r")
        assert bench.hear(2.0) == ""


def test_text_is_paced_by_the_baud_rate() -> None:
    """No two emissions overlap, and each takes ten bits a byte."""
    bench = Bench(Eeprom(baud=19200))
    bench.enter_menu()
    assert all(a.end_ns <= b.start_ns for a, b in pairwise(bench.heard))
    assert all(e.end_ns - e.start_ns == round(len(e.data) * 10e9 / 19200) for e in bench.heard)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40), st.floats(0, 5)), max_size=20), st.booleans())
def test_no_input_breaks_it(inputs: list[tuple[bytes, float]], quiet: bool) -> None:
    """Whatever bytes come whenever, it goes on, and an X from the menu brings the stream back."""
    bench = Bench(Eeprom(quiet=quiet))
    for sent, pause_s in inputs:
        bench.firmware.receive(sent, round(bench.now_s * 1e9))
        bench.hear(pause_s)
    bench.eeprom.averaging = 125
    bench.hear(30.0)
    for _ in range(3):  # out of any prompt, then out of the menu
        bench.say("\r0\r")
        bench.hear(30.0)
        bench.eeprom.polled = False
        bench.say("X")
        bench.hear(10.0)
    bench.heard.clear()
    bench.hear(100.0)
    assert data(bench.heard)


@given(st.binary(max_size=200), st.sampled_from([4800, 9600, 115200]))
def test_equal_speeds_carry_bytes_unchanged(sent: bytes, baud: int) -> None:
    """At the same speed, and at speeds 2 % apart, what is heard is what was sent."""
    assert overhear(sent, baud, baud) == sent
    assert overhear(sent, baud, round(baud * 1.02)) == sent
    assert overhear(sent, baud, round(baud * 0.98)) == sent


@pytest.mark.parametrize("pair", [(9600, 115200), (115200, 9600), (9600, 19200), (19200, 9600)])
def test_unequal_speeds_carry_no_line(pair: tuple[int, int]) -> None:
    """At another speed no line survives; a faster receiver hears more bytes, a slower one fewer."""
    line = b"0.010046, 27.68, 7.494\r\n" * 20
    heard = overhear(line, *pair)
    assert b"7.494" not in heard
    assert (len(heard) > len(line)) == (pair[1] > pair[0])
