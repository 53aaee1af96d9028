"""The serial driver: keeps one Q-Series heard, whatever happens to port, cable or sensor.

States: `no port configured`, `port missing`, `port denied`, `port busy`, `opening`, `listening` (open,
nothing proven yet), `interview` (in the menu on our behalf), `freerun`, `polled` (readings flow), `menu`
(somebody dropped it there), `silent`, `garbled` (bytes that are not text), `disconnected` (was open, is
gone). Every state but the two where readings flow comes with a detail: what is wrong, what would cure it.

Everything runs on the event loop; opening, closing and setting the speed, which may block, run in a
thread. Only this module knows pyserial.
"""

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import serial
from msgspec import Meta, Struct
from serial_asyncio import SerialTransport

from common.clock import Clock
from common.menu import (
    InstrumentError,
    InvalidSetting,
    MenuTimeout,
    Mode,
    NotConnected,
    SensorConfig,
    Wanted,
)
from common.messages import Stamp
from common.qseries import DataLine
from common.sensor import POLL_MAX_HZ, Sensor

if sys.platform != "win32":
    import fcntl
    import termios

    _PORT_ERRORS = (OSError, ValueError, termios.error)
else:
    _PORT_ERRORS = (OSError, ValueError)

__all__ = [
    "Arrival",
    "Instrument",
    "InstrumentError",
    "InstrumentHealth",
    "InvalidSetting",
    "MenuTimeout",
    "NotConnected",
    "SensorConfig",
    "SerialSettings",
]

RETRY_S, RETRY_MAX_S = 0.25, 5.0


class SerialSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach the sensor and how it shall run; None leaves a setting as the sensor has it.

    port: a path, a link such as /dev/serial/by-id/..., or a pyserial URL.
    poll_hz: queries a second, if the sensor is polled.
    """

    port: str | None = None
    baud: Annotated[int, Meta(ge=300, le=4_000_000)] = 9600
    averaging: Annotated[int, Meta(ge=1, le=65535)] | None = None
    adc_rate_hz: Literal[4, 8, 16, 33, 62, 125, 250, 500] | None = None
    mode: Mode | None = None
    tag: Annotated[str, Meta(pattern="^[A-Z]$")] = "A"
    poll_hz: Annotated[float, Meta(gt=0, le=POLL_MAX_HZ)] = 1.0


class Arrival(Struct, frozen=True, gc=False):
    """A reading as it arrived, not yet numbered. stamp: when the OS delivered its line's first byte."""

    stamp: Stamp
    sensor_id: str
    mode: str
    value: str
    temp_c: str | None
    vin: str | None


class InstrumentHealth(Struct, frozen=True):
    """How the sensor is. detail: cause and cure in one line, empty while readings flow."""

    connected: bool
    state: str
    detail: str
    port: str | None
    model: str
    firmware: str
    serial_number: str
    baud: int
    last_line_age_s: float | None
    counters: dict[str, int]


class Instrument:
    """One sensor on one named port, for as long as `run` runs.

    Args:
        settings: port and wishes.
        clock: stamps what arrives.
        on_arrival: called with each reading, in order, on the event loop.
        on_event: called with (kind, detail, count) for what a reader of the record must know.
        may_interrupt: whether the stream may be stopped to talk to the sensor: no session is recording.
    """

    def __init__(
        self,
        settings: SerialSettings,
        clock: Clock,
        on_arrival: Callable[[Arrival], None],
        on_event: Callable[[str, str, int], None],
        may_interrupt: Callable[[], bool],
    ) -> None:
        self._port = settings.port
        self._path: str | None = None
        self._low_latency = False
        self._openings = 0
        self._clock = clock
        self._on_arrival = on_arrival
        self._note = on_event
        tag = settings.tag if settings.mode == "polled" else None
        wanted = Wanted(settings.averaging, settings.adc_rate_hz, settings.mode, tag)
        self._sensor = Sensor(
            clock, wanted, settings.baud, settings.poll_hz, self._deliver, on_event, may_interrupt
        )
        if self._port is None:
            self._sensor.become("no port configured", "name the sensor's port with --serial PORT")

    @property
    def config(self) -> SensorConfig | None:
        """What the sensor last said of itself; None before."""
        return self._sensor.config

    @property
    def sensor_id(self) -> str:
        """The serial number text as the sensor sends it, commas replaced; "unknown" before."""
        return self._sensor.sensor_id

    @property
    def state(self) -> str:
        """One of the states at the top of this module."""
        return self._sensor.state

    @property
    def connected(self) -> bool:
        """The port is open and a sensor is heard."""
        return self._sensor.connected

    @property
    def speeds_tried(self) -> list[int]:
        """In baud, in the order in which the port was first set to them."""
        return list(self._sensor.speeds_tried)

    @property
    def heard_bytes(self) -> int:
        """How many have arrived in all, sense or not."""
        return self._sensor.gate.total_bytes

    @property
    def turns(self) -> int | None:
        """Grows as long as the port is attended to, or looked for; None without one."""
        return None if self._port is None else self._openings + self._sensor.turns

    def health(self) -> InstrumentHealth:
        """All of it; cheap."""
        sensor, config = self._sensor, self._sensor.config
        return InstrumentHealth(
            connected=sensor.connected,
            state=sensor.state,
            detail=sensor.detail,
            port=self._path or self._port,
            model=config.description if config else "",
            firmware=config.firmware if config else "unknown",
            serial_number=sensor.serial_number,
            baud=sensor.baud,
            last_line_age_s=sensor.last_line_age_s,
            counters=sensor.gate.counts | sensor.counters,
        )

    def describe(self) -> dict[str, Any]:
        """What to keep with a recording: the configuration, the shape of a line, what a stamp means."""
        latency = "at once" if self._low_latency else "after up to 16 ms in a USB adapter"
        shape = self._sensor.gate.shape
        return {
            "config": None if self.config is None else msgspec.to_builtins(self.config),
            "shape": None if shape is None else str(shape),
            "port": self._path,
            "baud": self._sensor.baud,
            "low_latency": self._low_latency,
            "stamp": f"when the first byte of the line reached this program; the OS delivers it {latency}",
        }

    def remember(self, description: dict[str, Any] | None) -> None:
        """Take up what `describe` said before a restart: the stream need not be stopped to ask again."""
        config = (description or {}).get("config")
        if config is not None and self.config is None:
            with suppress(msgspec.ValidationError):  # of another version: the sensor will be asked
                self._sensor.remember(msgspec.convert(config, SensorConfig))

    async def configure(
        self,
        *,
        averaging: int | None = None,
        adc_rate_hz: int | None = None,
        mode: Mode | None = None,
        tag: str | None = None,
    ) -> SensorConfig:
        """Change settings through the sensor's menu; readings stop for 8 to 25 s.

        Returns: the configuration as the sensor reads it back.

        Raises:
            NotConnected: no port is open.
            MenuTimeout: the sensor did not answer.
            InvalidSetting: out of range, or refused by the sensor.
        """
        return await self._sensor.configure(Wanted(averaging, adc_rate_hz, mode, tag))

    def set_poll_rate(self, hz: float) -> None:
        """As `Sensor.set_poll_rate`; until the next start of the daemon."""
        self._sensor.set_poll_rate(hz)

    async def run(self) -> None:
        """Own the port, for ever, until cancelled; device trouble is a state, never an exception."""
        retry_s = RETRY_S
        while self._port is not None:
            link = await self._open(self._port)
            if link is not None:
                await self._attend(link)
                retry_s = RETRY_S if link.heard else retry_s
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)
        await asyncio.Event().wait()

    async def _attend(self, link: "_Link") -> None:
        self._sensor.counters["reconnects"] += self._path is not None
        self._path, self._low_latency = link.path, link.low_latency
        self._note("port_opened", f"{link.path} at {link.baud} baud", 1)
        try:
            await self._sensor.attend(link)
            self._sensor.become("disconnected", f"{self._port} was lost ({link.reason}): waiting for it")
            self._note("port_lost", f"{link.path}: {link.reason}", 1)
        finally:
            await link.close()

    async def _open(self, port: str) -> "_Link | None":
        """The port opened afresh under whatever device its name now leads to; None says why in the state."""
        sensor = self._sensor
        self._openings += 1
        opening = asyncio.get_running_loop().run_in_executor(None, _open_port, port, sensor.baud)
        try:
            return _Link(await asyncio.shield(opening), sensor.baud, self._clock, sensor)
        except asyncio.CancelledError:
            opening.add_done_callback(_discard)
            raise
        except _PORT_ERRORS as error:
            state, kind, detail = _explain(port, error)
            if sensor.state == "disconnected" and state == "port missing":
                return None  # it says so already
            if sensor.state != state:
                self._note(kind, detail, 1)
            sensor.become(state, detail)
            return None

    def _deliver(self, data: DataLine) -> None:
        sensor_id = self._sensor.sensor_id
        self._on_arrival(Arrival(data.stamp, sensor_id, data.mode, data.value, data.temp_c, data.vin))


class _Link(asyncio.Protocol):
    """One port from open to close."""

    def __init__(self, port: Any, baud: int, clock: Clock, sensor: Sensor) -> None:
        self.baud = baud
        self.lost = self.heard = False
        self.reason = ""
        self.name = str(port.port)
        self.path = _resolve(self.name)
        self.low_latency = _claim(port)
        self._port = port
        self._clock = clock
        self._sensor = sensor
        self._transport = SerialTransport(asyncio.get_running_loop(), self, _Quiet(port))

    def data_received(self, data: bytes) -> None:
        stamp = self._clock.stamp()
        self.heard = True
        self._sensor.receive(data, stamp)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.reason = True, str(exc).partition("(")[0].strip() if exc else "closed"
        self._sensor.wake()

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def set_baud(self, baud: int) -> None:
        """Trouble with it is left to be noticed by reading."""
        self.baud = baud
        with suppress(*_PORT_ERRORS):
            await asyncio.to_thread(_set_baud, self._port, baud)

    def speed_changed(self) -> bool:
        """A tty's speed belongs to the device: whoever opens it can change it under us."""
        expected = _speed(self.baud)
        if expected is None or not isinstance(self._port, serial.Serial) or self.lost:
            return False
        try:
            return bool(termios.tcgetattr(self._port.fileno())[4:6] != [expected, expected])
        except _PORT_ERRORS:
            return False

    def moved(self) -> bool:
        if _is_url(self.name):
            return False
        return _resolve(self.name) != self.path or not Path(self.path).exists()

    async def close(self) -> None:
        """Give the port back; the closing itself may block, so a thread does it."""
        if not self.lost:
            self._transport.abort()
        await asyncio.to_thread(_close_port, self._port)


class _Quiet:
    """What the transport sees of a port: nothing that may block, no error that it would log as ours."""

    def __init__(self, port: Any) -> None:
        self.timeout = self.write_timeout = 0
        self.read = port.read
        self.fileno = port.fileno
        self._port = port

    @property
    def in_waiting(self) -> int:
        return int(self._port.in_waiting)

    @property
    def out_waiting(self) -> int:
        return int(self._port.out_waiting)

    def write(self, data: bytes) -> int:
        try:
            return int(self._port.write(data))
        except serial.SerialException:
            return len(data)  # reading meets the same error, or the silence is noticed

    def flush(self) -> None:
        """Not now: it would wait for a dead line."""

    def close(self) -> None:
        """Left to the link."""


def _open_port(name: str, baud: int) -> Any:
    return serial.serial_for_url(name, baudrate=baud, timeout=0, write_timeout=0, exclusive=True)


def _close_port(port: Any) -> None:
    with suppress(*_PORT_ERRORS):
        if sys.platform != "win32" and isinstance(port, serial.Serial):
            fcntl.ioctl(port.fileno(), termios.TIOCNXCL)
    with suppress(*_PORT_ERRORS):
        port.close()


def _discard(opening: "asyncio.Future[Any]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        _close_port(opening.result())


def _claim(port: Any) -> bool:
    """Keep others out, as far as the OS does it for us (root still gets in), and ask for low latency.

    Returns: whether bytes are delivered at once instead of after a USB adapter's latency timer.
    """
    if sys.platform == "win32" or not isinstance(port, serial.Serial):
        return False
    with suppress(*_PORT_ERRORS):
        fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
    try:
        port.set_low_latency_mode(True)
    except (AttributeError, *_PORT_ERRORS):
        return False
    return True


def _set_baud(port: Any, baud: int) -> None:
    port.baudrate = baud  # sets it again even if pyserial believes it is so
    port.reset_input_buffer()


def _speed(baud: int) -> int | None:
    return getattr(termios, f"B{baud}", None) if sys.platform != "win32" else None


def _is_url(name: str) -> bool:
    return "://" in name


def _resolve(name: str) -> str:
    return name if _is_url(name) else os.path.realpath(name)


def _explain(port: str, error: Exception) -> tuple[str, str, str]:
    """State, event and detail of a port that could not be opened."""
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.EBUSY, errno.EAGAIN) or (sys.platform == "win32" and "PermissionError" in text):
        detail = f"{port} is in use by another program: stop it, or name another port"
        return "port busy", "port_busy", detail
    if number in (errno.EACCES, errno.EPERM):
        detail = f"no permission for {port}: add this user to the group dialout and log in again"
        return "port denied", "port_denied", detail
    if number == errno.ENOENT:
        detail = f"{port} does not exist: plug the sensor in, or name its port"
        return "port missing", "port_missing", detail
    return "port missing", "port_missing", f"{port} cannot be opened: {text}"
