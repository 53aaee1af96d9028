"""What a stamp means: how long before it the light was averaged.

The sensor averages, then sends its line, and the stamp is taken at the line's first byte. The light
belongs to the middle of the averaging, so a corrected instant is made earlier by half the averaging plus
the time from its end to the stamp. Two sensors with unlike settings differ by this, and no exchange of
clock readings can show it. No I/O, no clock.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

BITS_PER_BYTE = 10  # a start bit, 8 data bits, a stop bit
USB_TIMER_NS = 16_000_000  # for which a USB adapter keeps bytes, unless it was asked not to
# A port that is surely a USB adapter; a COM port may be one, and then is up to 16 ms late.
_USB_ADAPTER = re.compile(r"/dev/(ttyUSB\d+|(cu|tty)\.usbserial.*)")


class Latency(Struct, frozen=True):
    """What to subtract from every corrected instant of one sensor, and why.

    averaging_ns: from the middle of the averaging to its end.
    transmit_ns: from there to the stamp, in the mean.
    """

    averaging_ns: int
    transmit_ns: int
    reason: str

    @property
    def total_ns(self) -> int:
        """Positive: the light is older than its stamp."""
        return self.averaging_ns + self.transmit_ns


class _Config(Struct):
    """The part of `common.menu.SensorConfig` that tells times."""

    averaging: Annotated[int, Meta(ge=1, le=65535)]
    adc_rate_hz: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    mode: Literal["freerun", "polled"] | None = None


class _Sensor(Struct):
    """The part of a recorded `Instrument.describe()` that tells times."""

    config: _Config | None = None
    baud: Annotated[int, Meta(ge=1)] | None = None
    port: str | None = None
    low_latency: bool = True  # not recorded: nothing is known of an adapter


def latency_of(sensor: Mapping[str, Any] | None, given_s: float | None = None) -> Latency:
    """The latency of a sensor from what was recorded of it; zero where nothing was.

    One constant for the whole record is right because settings are changed between sessions only. In
    polled mode it is the least there can be: the average begins after the reply before and then waits for
    its query, for how long is not recorded.

    Args:
        sensor: the entry `sensor` of a stream's session.json, whatever is found there.
        given_s: the operator's own figure for everything, in s and finite; it wins, 0 corrects nothing.
    """
    if given_s is not None:
        return Latency(round(given_s * 1e9), 0, f"{given_s * 1e3:g} ms as the operator says")
    try:
        found = msgspec.convert(sensor, _Sensor | None)
    except msgspec.ValidationError as error:
        return Latency(0, 0, f"the sensor's configuration is not readable: {error}")
    if found is None or found.config is None:
        return Latency(0, 0, "the sensor's configuration was not recorded")
    if found.config.adc_rate_hz is None:
        return Latency(0, 0, "the sensor's ADC rate was not recorded")
    transmit_ns, how = _transmit(found)
    averaging_ns = found.config.averaging * 1_000_000_000 // (2 * found.config.adc_rate_hz)
    window = f"half of {found.config.averaging} readings at {found.config.adc_rate_hz} Hz"
    polled = ", at least: polled" if found.config.mode == "polled" else ""
    return Latency(averaging_ns, transmit_ns, f"{window}, {how}{polled}")


def _transmit(sensor: _Sensor) -> tuple[int, str]:
    """From the end of the averaging to the stamp, and in words: one byte, and half of what USB may add."""
    byte_ns = BITS_PER_BYTE * 1_000_000_000 // sensor.baud if sensor.baud else 0
    how = f"one byte at {sensor.baud} baud" if sensor.baud else "unknown baud rate"
    if not sensor.low_latency and _USB_ADAPTER.fullmatch(sensor.port or ""):
        return byte_ns + USB_TIMER_NS // 2, f"{how}, half a USB adapter's timer"
    return byte_ns, how
