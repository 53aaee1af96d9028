"""What a stamp means, held against the simulated firmware, which knows when it looked at the light."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.menu import parse_config
from common.simulator.firmware import RATES_HZ, Emission, Firmware
from common.simulator.texts import Eeprom, Sample, dump
from topside_daemon.fusion.latency import Latency, latency_of


def light(start_ns: int, end_ns: int) -> Sample:
    return Sample(1.0, 25.0, 7.5)


def data_lines(firmware: Firmware, until_ns: int) -> list[Emission]:
    return [emission for emission in firmware.advance(until_ns) if emission.printed]


def described(eeprom: Eeprom, **more: Any) -> dict[str, Any]:
    """What a driver would keep, as it comes back from a file."""
    config = parse_config(dump(eeprom, light(0, 0)).encode())
    description = {"config": config, "baud": eeprom.baud, "port": "/dev/ttyUSB0", "low_latency": True, **more}
    return dict(msgspec.json.decode(msgspec.json.encode(description)))


@given(
    averaging=st.integers(1, 1000),
    rate_hz=st.sampled_from(RATES_HZ),
    baud=st.sampled_from([9600, 19200, 115200]),
    polled=st.booleans(),
)
def test_the_light_was_averaged_as_long_before_the_stamp_as_is_said(
    averaging: int, rate_hz: int, baud: int, polled: bool
) -> None:
    """From its own `^` line, within the 0.6 % by which its ADC is fast; of a polled one it says at least."""
    eeprom = Eeprom(averaging=averaging, rate_hz=rate_hz, baud=baud, polled=polled)
    firmware = Firmware(eeprom, light, 0)
    end_ns = 4_000_000_000 + 2 * averaging * 1_000_000_000 // rate_hz
    lines = data_lines(firmware, end_ns)
    if polled:
        firmware.receive(b"*AQ000!", end_ns)
        firmware.advance(2 * end_ns)
        firmware.receive(b">A*", 2 * end_ns)
        lines = data_lines(firmware, 3 * end_ns)
    first = lines[0]
    said = latency_of(described(eeprom))
    before_line_ns = first.start_ns - first.centre_ns
    if polled:
        assert 0 < said.averaging_ns < before_line_ns and "at least" in said.reason
    else:
        assert said.averaging_ns == pytest.approx(before_line_ns, rel=0.006)
    assert said.transmit_ns == pytest.approx((first.end_ns - first.start_ns) / len(first.data), abs=1)
    assert said.total_ns == said.averaging_ns + said.transmit_ns


def test_differing_settings_are_a_difference_between_the_sensors() -> None:
    """125 and 12 averages at 125 Hz: 452 ms that no clock exchange can see."""
    slow, fast = (latency_of(described(Eeprom(averaging=n))) for n in (125, 12))
    assert slow.total_ns - fast.total_ns == 452_000_000


@pytest.mark.parametrize(
    ("port", "low_latency", "held_ns"),
    [
        ("/dev/ttyUSB0", False, 8_000_000),
        ("/dev/cu.usbserial-A1", False, 8_000_000),
        ("/dev/ttyUSB0", True, 0),
        ("/dev/ttyAMA0", False, 0),
        ("/dev/pts/3", False, 0),
        (None, False, 0),
    ],
)
def test_a_usb_adapter_holds_bytes_for_half_its_timer(
    port: str | None, low_latency: bool, held_ns: int
) -> None:
    """Only where the port is one and did not take low latency; 16 ms at most, so 8 in the mean."""
    said = latency_of(described(Eeprom(), port=port, low_latency=low_latency))
    assert said.transmit_ns - 10 * 1_000_000_000 // 9600 == held_ns
    assert ("USB" in said.reason) == (held_ns > 0)


@pytest.mark.parametrize(
    ("sensor", "why"),
    [
        (None, "not recorded"),
        ({}, "not recorded"),
        ({"config": None, "baud": 9600}, "not recorded"),
        ({"config": {"averaging": 125}, "baud": 9600}, "ADC rate was not recorded"),
        ({"config": {"averaging": 0, "adc_rate_hz": 125}}, "not readable"),
        ({"config": {"averaging": 12, "adc_rate_hz": 0}}, "not readable"),
        ({"config": {"averaging": 12, "adc_rate_hz": 125}, "baud": 0}, "not readable"),
        ({"config": {"averaging": "many", "adc_rate_hz": 125}}, "not readable"),
        ({"config": "125 at 125 Hz"}, "not readable"),
    ],
)
def test_without_a_configuration_nothing_is_corrected(sensor: dict[str, Any] | None, why: str) -> None:
    """An unknown or damaged configuration gives zero and says so; it never raises."""
    said = latency_of(sensor)
    assert (said.averaging_ns, said.transmit_ns) == (0, 0)
    assert why in said.reason


@given(
    sensor=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["config", "baud", "port", "averaging", "adc_rate_hz"]), inner, max_size=5
            )
        ),
        max_leaves=8,
    )
)
def test_whatever_a_file_holds_gives_a_latency(sensor: Any) -> None:
    """A session.json of another version or of another program cannot stop a fusion."""
    said = latency_of(sensor)
    assert said.total_ns >= 0 and said.reason


def test_the_operators_figure_wins() -> None:
    """Over a recorded configuration, over none, and 0 corrects nothing."""
    assert latency_of(described(Eeprom()), 0.0123).total_ns == 12_300_000
    assert latency_of(None, 0.5).total_ns == 500_000_000
    assert latency_of(described(Eeprom()), 0.0) == Latency(0, 0, "0 ms as the operator says")
