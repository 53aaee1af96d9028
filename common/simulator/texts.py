"""Every word a Q-Series (firmware 4.003) says: data lines, sign-on, menu and the dump of its settings.

Temperatures in C, supply in V, depth in m (down).
"""

from dataclasses import dataclass
from typing import NamedTuple

SERIAL_NUMBER = "serial ######   "  # 16 characters, as every real unit seen so far prints it
VERSION = "4.003"

TEMP_STEP_MC, TEMP_ZERO_MC = 415, 23_530  # steps the real unit's readings fall on, in mC
VIN_STEP_MV, VIN_ZERO_MV = 21, 7_494


class Sample(NamedTuple):
    """What the sensor measures: light in its own unit, temperature (C), supply (V), depth (m, down)."""

    value: float
    temp_c: float
    vin: float
    depth_m: float = 0.0


@dataclass
class Eeprom:
    """The settings that survive a reset. baud is the sensor's own speed."""

    averaging: int = 125
    rate_hz: int = 125
    baud: int = 9600
    polled: bool = False
    tag: str = "A"
    quiet: bool = False
    temp: bool = True
    vin: bool = True
    preamble: str = ""
    serial_number: str = SERIAL_NUMBER
    description: str = "Light sensor"
    calfactor: float = 1.0
    immersion: float = 1.0
    dark: float = 0.0
    units: str = ""


class Printed(NamedTuple):
    """A data line's numbers as they were printed; empty where switched off."""

    value: str
    temp_c: str
    vin: str
    depth_m: float


def print_temp(temp_c: float) -> str:
    """Temperature (C) on the sensor's grid of 0.415 C, cut to two decimals as the firmware does."""
    steps = round((temp_c * 1000 - TEMP_ZERO_MC) / TEMP_STEP_MC)
    return f"{(TEMP_ZERO_MC + steps * TEMP_STEP_MC) // 10 / 100:.2f}"


def print_vin(vin: float) -> str:
    """Supply voltage (V) on the sensor's grid of 0.021 V."""
    steps = round((vin * 1000 - VIN_ZERO_MV) / VIN_STEP_MV)
    return f"{(VIN_ZERO_MV + steps * VIN_STEP_MV) / 1000:.3f}"


def data_line(e: Eeprom, printed: Printed, tag: str = "") -> str:
    """`<preamble>value[, TempC][, Vin]`, in polled mode behind `<TAG>,`; without the line end."""
    fields = ", ".join(text for text in (printed.value, printed.temp_c, printed.vin) if text)
    return f"{tag},{e.preamble}{fields}" if tag else f"{e.preamble}{fields}"


def print_sample(e: Eeprom, sample: Sample) -> Printed:
    """A sample in the sensor's digits."""
    return Printed(
        f"{sample.value:.6f}",
        print_temp(sample.temp_c) if e.temp else "",
        print_vin(sample.vin) if e.vin else "",
        sample.depth_m,
    )


def sign_on(e: Eeprom) -> list[str]:
    """What it calls itself, ahead of the power-on text and of the menu."""
    return [
        "",
        f"Biospherical Instruments Inc: Digital Engine Vers {VERSION}",
        f"Unit ID {e.serial_number}",
    ]


def power_on_text(e: Eeprom, here: Sample) -> list[str]:
    """What it says between its name and the start of the ADC."""
    return [
        f"Operating in polled mode with tag of {e.tag}" if e.polled else "Operating in free run mode",
        f"ADC sample rate {e.rate_hz}, gain 1",
        "No Averaging" if e.averaging == 1 else f"Averaging {e.averaging} readings",
        "ADC buffer: Buffer disabled",
        f"Sensor temperature: {print_temp(here.temp_c)} C",
        f"Input Supply Voltage: {print_vin(here.vin)}v",
        f"Calfactor: {e.calfactor:.6f}{e.units}",
        "Reset ADC 7799",
    ]


def dump(e: Eeprom, here: Sample) -> str:
    """All parameters in the order of the menu letters; E, G, H, S and V stand for themselves."""
    first = f"{e.averaging},{e.baud},{e.calfactor:.6f},{e.description},E,{VERSION},G,H,{e.serial_number}"
    second = f"{e.immersion:.6f},{e.dark:.6f},{print_vin(here.vin)},{int(e.polled)},{e.tag},{e.preamble}"
    third = f"{int(e.temp)},{e.rate_hz},S,{print_temp(here.temp_c)},{e.units},V,0"
    return f"{first},{second},{third}"


def menu_text(e: Eeprom, here: Sample) -> list[str]:
    """The menu, without the line that asks for a letter."""
    mode = "polled" if e.polled else "free run"
    return [
        "",
        f"Biospherical Instruments Inc: Digital Log Engine v: {VERSION}",
        f"Model: {e.serial_number}",
        f"A to set the number of ADC readings averaged before each update: {e.averaging}",
        f"B to set the baud rate of the serial port, in effect after a reset: {e.baud}",
        f"C to set the calibration factor that divides each reading: {e.calfactor:.6f}",
        f"D to set the description of this instrument: {e.description}",
        f"I to set the serial number text of this unit: {e.serial_number}",
        f"J to set the immersion factor (not automatically applied): {e.immersion:.6f}",
        f"K to set the dark value subtracted from each reading: {e.dark:.6f}",
        f"M to set the operating mode, free run or polled with a TAG: {mode}",
        "N to set the scale of the supply voltage reading (factory use only)",
        f"O to set the output of temperature and supply voltage: {'NY'[e.temp]} {'NY'[e.vin]}",
        f"P to set the preamble that is sent ahead of each reading: {e.preamble}",
        f"Q to set quiet mode, no sign-on text after a reset when on: {'on' if e.quiet else 'off'}",
        f"R to set ADC sample rate: {e.rate_hz}",
        "S to show the registers of the ADC (factory use only)",
        f"U to set the text of the units sent after the calibration factor: {e.units}",
        "W to write all of these settings as commands for another unit (factory use only)",
        "X to exit the menu, reset the instrument and start sampling again",
        "Y to set the calibration of the temperature sensor (factory use only)",
        "Z to set every one of these settings back to its factory default",
        f"Sensor temperature: {print_temp(here.temp_c)} C",
        f"Input Supply Voltage: {print_vin(here.vin)}v",
    ]
