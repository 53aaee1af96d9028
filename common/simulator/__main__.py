"""`python -m common.simulator --link PATH [--faults unplug@20:5,reboot@40]`: a sensor on a pty."""

import argparse
import asyncio
import signal
import string
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, TextIO

from common.clock import SystemClock
from common.simulator.device import Simulator
from common.simulator.faults import Fault, FaultError, parse_faults, take_faults
from common.simulator.firmware import RATES_HZ
from common.simulator.lightfield import LightField, LightSensor
from common.simulator.terminal import BAUDS
from common.simulator.texts import SERIAL_NUMBER, Eeprom


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists what is possible\n")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return read


def _quantum_s(text: str) -> float:
    try:
        quantum_ms = float(text)
    except ValueError:
        quantum_ms = -1.0
    if not 0 <= quantum_ms <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds from 0 to 1000")
    return quantum_ms / 1000


def _plain(text: str) -> str:
    if not text.isascii() or not text.isprintable() or "," in text:
        raise argparse.ArgumentTypeError(f"{text!r} has characters other than printable ASCII without commas")
    return text


def _schedule(text: str) -> list[Fault] | None:
    if text == "-":
        return None
    try:
        return parse_faults(text)
    except FaultError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m common.simulator", description="A Q-Series light sensor on a pseudo-terminal."
    )
    add = parser.add_argument
    add("--link", type=Path, required=True, help="symbolic link to make to the pty")
    add(
        "--baud",
        type=int,
        choices=BAUDS,
        default=9600,
        metavar="N",
        help="the sensor's own speed (%(default)s)",
    )
    add(
        "--averaging",
        type=_whole(1, 65535),
        default=125,
        metavar="N",
        help="ADC readings per line (%(default)s)",
    )
    add("--rate", type=int, choices=RATES_HZ, default=125, help="of the ADC, in Hz (%(default)s)")
    add("--serial-number", type=_plain, default=SERIAL_NUMBER, metavar="TEXT")
    add("--mode", choices=("freerun", "polled"), default="freerun")
    add("--tag", choices=tuple(string.ascii_uppercase), default="A", metavar="A", help="A-Z, for polled mode")
    add("--preamble", type=_plain, default="", metavar="TEXT", help="sent ahead of each reading")
    add("--no-temp", action="store_true", help="lines without temperature")
    add("--no-vin", action="store_true", help="lines without supply voltage")
    add("--quiet", action="store_true", help="the sensor's quiet mode: no text after a reset")
    add("--reset-on-open", action="store_true", help="opening the port restarts the sensor")
    add(
        "--quantum-ms",
        type=_quantum_s,
        default=0.0,
        metavar="MS",
        help="bytes arrive at multiples of it; 15.2 is USB",
    )
    add("--seed", type=int, default=0, metavar="N", help="of light, noise and faults (%(default)s)")
    add("--role", choices=("inwater", "surface"), default="inwater", help="where it hangs in the light")
    add("--origin-ns", type=int, metavar="N", help="time zero of the light on CLOCK_MONOTONIC_RAW (now)")
    add("--truth", type=Path, metavar="FILE", help="CSV of every line that was sent, and when")
    add(
        "--faults",
        type=_schedule,
        default=[],
        metavar="SPEC",
        help="name@second[:argument],... or - to read name[:argument] lines from standard input",
    )
    return parser


async def _serve(options: argparse.Namespace, truth: TextIO | None) -> None:
    clock = SystemClock()
    origin_ns = clock.mono_ns() if options.origin_ns is None else options.origin_ns
    noise_seed = f"{options.seed}/{options.role}/{options.serial_number}"
    sensor = LightSensor(LightField(options.seed), options.role, origin_ns, noise_seed)
    eeprom = Eeprom(
        averaging=options.averaging,
        rate_hz=options.rate,
        baud=options.baud,
        polled=options.mode == "polled",
        tag=options.tag,
        quiet=options.quiet,
        temp=not options.no_temp,
        vin=not options.no_vin,
        preamble=options.preamble,
        serial_number=options.serial_number,
    )
    async with Simulator(
        options.link,
        sensor,
        eeprom=eeprom,
        clock=clock,
        quantum_s=options.quantum_ms,
        reset_on_open=options.reset_on_open,
        faults=options.faults or (),
        truth=truth,
        seed=options.seed,
    ) as simulator:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, simulator.stop)
        serial = eeprom.serial_number.removeprefix("serial ").strip()
        what = f"Q-Series serial {serial}, {eeprom.averaging} averages at {eeprom.rate_hz} Hz"
        print(f"{options.link} -> {simulator.port}: {what}", flush=True)
        if options.faults is None:
            take_faults(simulator.strike)
        await simulator.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM; 0 done, 2 bad usage, a link or a file that cannot be made."""
    options = _parser().parse_args(arguments)
    try:
        with ExitStack() as stack:
            truth = stack.enter_context(options.truth.open("w", encoding="ascii")) if options.truth else None
            asyncio.run(_serve(options, truth))
    except OSError as error:
        print(f"python -m common.simulator: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
