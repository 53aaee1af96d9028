"""`probe PORT`: hear the sensor on a port, ask it what it is, leave it running, and say all that."""

import argparse
import asyncio
import re
import signal
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import msgspec
from msgspec import Struct, inspect

from common.clock import Clock, SystemClock
from common.holders import Program, named, users_of
from common.instrument import Arrival, Instrument, SensorConfig, SerialSettings
from common.sensor import FLOWING
from common.service import demanded

BAUD = 9600
HEAR_S = 5.0  # of the stream as it is, before the sensor is asked
BABBLE_S = 15.0  # likewise where bytes come, but no readings
LONGEST_S = 30.0
DEAF_S = 26.0  # all ways into the menu are tried by then
LEAVE_S = 12.0  # for a talk in the menu to come to its end
LOOK_S = 0.05
PLENTY = 12  # readings need not be waited for any longer
ENOUGH = 4  # readings of an unbroken run make a rate
UNHEARD = 1
EXIT_USAGE = 2
_CLOSED = ("port missing", "port denied", "port busy")
_DAEMON = re.compile(r" -m (pi|topside)_daemon(?!.* (doctor|probe)( |$))(?= |$)")
_NO_PORT = ("Inappropriate ioctl", "Not a tty", "Is a directory", "Not a directory")


class Probed(Struct, frozen=True):
    """What was heard on a port. heard: readings of a sensor; detail: cause and cure if something is wrong.

    state: as `common.instrument` has it. rate_hz and jitter_ms (the standard deviation of the periods)
    are of the longest unbroken run of readings. value, temp_c and vin are the sensor's own digits.
    """

    port: str
    state: str
    detail: str
    heard: bool
    baud: int
    speeds_tried: list[int]
    heard_bytes: int = 0
    config: SensorConfig | None = None
    serial_number: str = ""
    shape: str | None = None
    rate_hz: float | None = None
    jitter_ms: float | None = None
    value: str | None = None
    temp_c: str | None = None
    vin: str | None = None

    def __str__(self) -> str:
        speeds = ", ".join(map(str, self.speeds_tried))
        lines = [("port", f"{self.port}, {self.baud} baud" if self.heard else self.port)]
        if self.heard_bytes and not self.heard:
            lines.append(("heard", f"{self.heard_bytes} bytes and no reading, at {speeds} baud"))
        elif not self.heard and self.state not in _CLOSED:
            lines.append(("heard", f"nothing, at {speeds} baud"))
        if config := self.config:
            model = f", {config.description}" if config.description else ""
            lines.append(("sensor", f"{config.serial_number.strip()}{model}, firmware {config.firmware}"))
            lines.append(("settings", str(config)))
        elif self.serial_number:
            lines.append(("sensor", self.serial_number.strip()))
        lines += [("line", self.shape)] if self.shape else []
        if self.rate_hz and self.jitter_ms is not None:
            period = f"a reading every {1000 / self.rate_hz:.1f} ms, give or take {self.jitter_ms:.1f} ms"
            lines.append(("rate", f"{self.rate_hz:.3f} Hz: {period}"))
        if self.value is not None:
            temp, vin = f", {self.temp_c} °C" * (self.temp_c is not None), f", {self.vin} V" * bool(self.vin)
            lines.append(("value", f"{self.value}{temp}{vin}"))
        lines += [("trouble", f"{self.state}: {self.detail}")] if self.detail else []
        return "\n".join(f"{name:<10}{text}" for name, text in lines)


class _Ear:
    """An instrument and what it has told so far."""

    def __init__(self, settings: SerialSettings, clock: Clock, ask: bool) -> None:
        self.runs: list[list[int]] = [[]]  # stamps in ns of readings that came one after the other
        self.last: Arrival | None = None
        self.deaf = ""  # why it does not let itself be asked
        self.instrument = Instrument(settings, clock, self._take, self._note, self._may_interrupt)
        self._clock = clock
        self._ask = ask
        self._since_ns = clock.mono_ns()  # when the port was last opened at the right speed

    def age_s(self, since_ns: int | None = None) -> float:
        return (self._clock.mono_ns() - (self._since_ns if since_ns is None else since_ns)) / 1e9

    def _take(self, arrival: Arrival) -> None:
        self.last = arrival
        self.runs[-1].append(arrival.stamp.mono_ns)

    def _note(self, kind: str, detail: str, _count: int) -> None:
        if kind in ("port_opened", "baud_found"):
            self._since_ns = self._clock.mono_ns()
        if kind in ("no_menu", "menu_stuck", "setting_refused"):
            self.deaf = f"{detail}: check the line towards the sensor"
        if kind in ("configured", "port_opened", "silence", "sensor_rebooted", "stalled"):
            self.runs.append([])

    def _may_interrupt(self) -> bool:
        """Once the stream is known as it is; where it makes no sense, other speeds are tried first."""
        sense = self.last is not None or not self.instrument.heard_bytes
        heard = len(self.run) >= PLENTY or self.age_s() >= (HEAR_S if sense else BABBLE_S)
        return self._ask and heard

    @property
    def run(self) -> list[int]:
        """The longest."""
        return max(self.runs, key=len)

    @property
    def done(self) -> bool:
        """There is no more to be learned, or the port cannot be had."""
        instrument = self.instrument
        if instrument.state in _CLOSED:
            return True
        if instrument.state not in FLOWING:
            return False
        if not self._ask:
            return True
        return bool((instrument.config or self.deaf) and self.runs[-1] and len(self.run) >= ENOUGH)

    def told(self, port: str) -> Probed:
        health, instrument = self.instrument.health(), self.instrument
        config, last, steps_s = instrument.config, self.last, [(b - a) / 1e9 for a, b in pairwise(self.run)]
        return Probed(
            port=port,
            state=health.state,
            detail=_cured(health.detail) or self.deaf,
            heard=last is not None and health.state in FLOWING,
            baud=health.baud,
            speeds_tried=instrument.speeds_tried,
            heard_bytes=instrument.heard_bytes,
            config=config,
            serial_number=health.serial_number,
            shape=instrument.describe()["shape"],
            rate_hz=1 / statistics.fmean(steps_s) if steps_s else None,
            jitter_ms=statistics.stdev(steps_s) * 1e3 if len(steps_s) > 1 else None,
            value=last.value if last else None,
            temp_c=last.temp_c if last else None,
            vin=last.vin if last else None,
        )


def _cured(detail: str) -> str:
    """What a file or a folder says when it is opened as a port, with what it means."""
    cure = "that is no serial port: name the sensor's"
    return f"{detail}: {cure}" if any(said in detail for said in _NO_PORT) else detail


def daemons_on(port: str) -> list[Program]:
    """Our own daemons, if the device at *port* is theirs; empty if anybody else has it too."""
    users = users_of(port)
    return users if all(_DAEMON.search(one.command) for one in users) else []


async def probe(
    port: str,
    baud: int,
    clock: Clock,
    stopped: Callable[[], bool] = lambda: False,
    *,
    ask: bool = True,
    deaf_s: float = DEAF_S,
    longest_s: float = LONGEST_S,
) -> Probed:
    """Hear the sensor on *port*; no setting is changed, and a port that another program has is not touched.

    Args:
        baud: the speed to begin with.
        stopped: whether to come to an end; a talk with the sensor is ended first.
        ask: interrupt the stream and ask the sensor what it is; else only a silent one is spoken to.
        deaf_s: how long to wait where nothing at all is heard.
        longest_s: how long in all.
    """
    if users := users_of(port):
        whose = "our daemon, " if daemons_on(port) else ""
        detail = f"{port} is in use by {whose}{named(users)}: stop it, or name another port"
        return Probed(port, "port busy", detail, False, baud, [])
    ear = _Ear(SerialSettings(port, baud), clock, ask)
    running = asyncio.create_task(ear.instrument.run())
    start_ns = clock.mono_ns()
    try:
        while not (ear.done or stopped()):
            age_s = ear.age_s(start_ns)
            if age_s > longest_s or (age_s > deaf_s and not ear.instrument.heard_bytes):
                break
            await asyncio.sleep(LOOK_S)
        return ear.told(port)
    finally:
        await _end_talk(ear.instrument)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _end_talk(instrument: Instrument) -> None:
    """Let a sensor that is in its menu, or on the way there, come out of it; one unheard is in none."""
    for _ in range(round(LEAVE_S / LOOK_S)):
        if not instrument.heard_bytes or instrument.state not in ("interview", "menu"):
            return
        await asyncio.sleep(LOOK_S)


def add_probe_flags(command: argparse.ArgumentParser) -> None:
    """What `probe` is told on the command line."""
    command.add_argument("port", metavar="PORT", help="device path, by-id or by-path link")
    command.add_argument("--baud", type=int, help=f"the speed to begin with (default {BAUD})")
    command.add_argument("--json", action="store_true", default=False, help="print what was heard as JSON")


def run_probe(options: argparse.Namespace) -> int:
    """Print what is heard on a port; returns the exit code: 0 readings of a sensor, 1 none, 2 usage."""
    baud = BAUD if options.baud is None else options.baud
    try:
        msgspec.convert({"baud": baud}, SerialSettings)
    except msgspec.ValidationError:
        print(f"--baud {baud}: must be {_speeds()}", file=sys.stderr)
        return EXIT_USAGE
    told = asyncio.run(_until_told(options.port, baud))
    if options.json:
        print(msgspec.json.encode(told).decode())
    else:
        print(told)
    return 0 if told.heard else UNHEARD


def _speeds() -> str:
    (field,) = (one for one in msgspec.structs.fields(SerialSettings) if one.name == "baud")
    return demanded(inspect.type_info(field.type))


async def _until_told(port: str, baud: int) -> Probed:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await probe(port, baud, SystemClock(), stop.is_set)
