"""A simulated firmware on a bench where time passes when asked."""

from collections.abc import Iterable

from common.simulator.firmware import Emission, Firmware
from common.simulator.texts import Eeprom, Sample

PROMPT = "Select the letter of the menu entry:\r\n"
AVERAGING_PROMPT = "Enter # readings to average before update (1-65535): "
RATE_PROMPT = " *250Hz is at reduced resolution     ---- Enter selection: "
MODE_PROMPT = "Enter the operating mode number: "
TAG_PROMPT = "Note tags G-Z may not be supported in some Biospherical acquisition software : "


def dark(start_ns: int, end_ns: int) -> Sample:
    """The bench of the real recordings."""
    return Sample(value=0.010046, temp_c=27.68, vin=7.494)


class Bench:
    """A sensor and the time: `hear` lets time pass, `say` sends bytes now."""

    def __init__(self, eeprom: Eeprom | None = None) -> None:
        self.eeprom = eeprom or Eeprom()
        self.firmware = Firmware(self.eeprom, dark, 0)
        self.now_s = 0.0
        self.heard: list[Emission] = []

    def hear(self, seconds: float) -> str:
        """What the sensor begins to send within the next *seconds*."""
        self.now_s += seconds
        emissions = self.firmware.advance(round(self.now_s * 1e9))
        self.heard += emissions
        return "".join(emission.data.decode() for emission in emissions)

    def say(self, text: str) -> None:
        self.firmware.receive(text.encode(), round(self.now_s * 1e9))

    def until(self, end: str, limit_s: float = 30.0) -> str:
        """Let time pass to the instant at which *end* has been sent in full."""
        text = ""
        begin_s = self.now_s
        while not text.endswith(end):
            due_ns = self.firmware.next_ns
            assert due_ns is not None and due_ns <= (begin_s + limit_s) * 1e9, f"no {end!r} in {text!r}"
            text += self.hear(max(0.0, due_ns / 1e9 - self.now_s + 1e-9))
        self.now_s = self.heard[-1].end_ns / 1e9
        return text

    def enter_menu(self) -> str:
        self.hear(3.0)
        self.say("\x1b")
        return self.until(PROMPT)


def data(emissions: Iterable[Emission]) -> list[Emission]:
    return [emission for emission in emissions if emission.printed]
