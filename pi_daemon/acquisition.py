"""The old API's controller, as its clients see it: connect, configure, start, pause, resume, stop.

The sensor itself runs all the time, for a recording must never lose a reading to a click; what is started
and stopped here is what the old calls show. As long as nobody has asked for anything it counts as running.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta, Struct

from common.clock import Clock
from common.instrument import Instrument, InstrumentError, InvalidSetting, MenuTimeout, NotConnected
from common.menu import Mode, SensorConfig
from common.web import Refused
from pi_daemon.views import Keeping, KeepQuery, Views

log = logging.getLogger(__name__)

CONNECT_NS = 25_000_000_000  # the old client gives up after 30
START_NS = 10_000_000_000  # likewise after 15
PORT_SHOWN = 100
BUSY = ("opening", "listening", "interview")  # states of a sensor that is not yet known
LOOK_S = 0.1

Shown = Literal["disconnected", "config_menu", "acq_freerun", "acq_polled", "paused"]


class ConnectQuery(Struct):
    """Any port will do: the sensor is the configured one."""

    port: str | None = None
    baud: int | None = None


class StartQuery(Struct):
    """poll_hz: queries a second from now on, if the sensor is polled and nothing is being recorded; no more
    than it has new readings; without it as before. auto_record: also as /recording/start."""

    poll_hz: Annotated[float, Meta(ge=0.01)] | None = None
    auto_record: bool = False


class ConfigWish(Struct):
    """What is absent stays as it is; nothing at all only reads."""

    averaging: int | None = None
    adc_rate_hz: int | None = None
    mode: Mode | None = None
    tag: str | None = None


class Connected(Struct, omit_defaults=True):
    status: str
    sensor_id: str
    detail: str = ""


class Configuration(Struct):
    """What the sensor does not tell is null."""

    averaging: int
    adc_rate_hz: int | None
    mode: str | None
    tag: str | None
    sample_period_s: float | None


class Started(Struct):
    status: str
    mode: str
    recording: bool


class Resumed(Struct):
    status: str
    mode: str


class Done(Struct):
    status: str


class Acquisition:
    """Answers the calls that steered the old controller.

    Args:
        recording: whether rows are being recorded, which nothing here may interrupt.
    """

    def __init__(
        self,
        instrument: Instrument,
        views: Views,
        clock: Clock,
        recording: Callable[[], bool],
    ) -> None:
        self._instrument = instrument
        self._views = views
        self._clock = clock
        self._recording = recording
        self._asked: Literal["", "gone", "menu", "running", "paused"] = ""

    @property
    def connected(self) -> bool:
        return self._instrument.connected and (self._recording() or self._asked != "gone")

    @property
    def shown(self) -> Shown:
        """The state in the old API's words."""
        if not self.connected:
            return "disconnected"
        running: Shown = "acq_polled" if self._mode == "polled" else "acq_freerun"
        if self._recording():
            return running
        if self._asked == "menu" or self._instrument.state == "menu":
            return "config_menu"
        return "paused" if self._asked == "paused" else running

    @property
    def viewed(self) -> bool:
        """Whether the views take in readings."""
        return self._recording() or self._asked != "paused"

    @property
    def mode(self) -> Mode | None:
        """As the sensor is configured; None before that is known."""
        return self._instrument.config.mode if self._instrument.config else None

    @property
    def _mode(self) -> Mode:
        return self.mode or ("polled" if self._instrument.state == "polled" else "freerun")

    def check_ready(self) -> None:
        """For a recording that an old client begins.

        Raises:
            Refused: 424, it has disconnected.
        """
        if self._asked == "gone" and not self._recording():
            raise Refused(424, "Not connected: POST /connect first")

    def begun(self) -> None:
        """A recording has begun, and with it acquisition, as it did."""
        self._asked = "running"

    async def connect(self, query: ConnectQuery) -> Connected:
        """Wait until the sensor is heard and known; asked again, the answer is the same."""
        already = self._asked not in ("", "gone")
        await self._until(
            lambda: self._instrument.connected and self._instrument.state not in BUSY, CONNECT_NS
        )
        if not self._instrument.connected:
            raise Refused(503, f"Serial: {self._instrument.health().detail}")
        if query.port is not None and not already:
            here = self._instrument.health().port
            log.info("connect: %r asked for, the sensor is at %s", query.port[:PORT_SHOWN], here)
        if self._asked not in ("running", "paused"):
            self._asked = "menu"
        return Connected("connected", self._instrument.sensor_id, "Already connected" if already else "")

    async def _until(self, condition: Callable[[], bool], most_ns: int) -> None:
        deadline_ns = self._clock.mono_ns() + most_ns
        while self._clock.mono_ns() < deadline_ns:
            if condition():
                return
            await asyncio.sleep(LOOK_S)

    async def disconnect(self) -> Done:
        """The sensor stays with this daemon, and a recording goes on."""
        self._asked = "gone"
        self._views.rest()
        return Done("disconnected")

    async def config(self, body: ConfigWish) -> Configuration:
        """Read the sensor's configuration, or change it through its menu, which takes 8 to 25 s."""
        self._check_connected()
        wanted = {name: getattr(body, name) for name in body.__struct_fields__}
        if body.mode == "polled" and body.tag is None:
            raise Refused(400, "Invalid: mode polled needs a tag, A to Z")
        found = self._instrument.config
        if found is None or any(value is not None for value in wanted.values()):
            self._check_idle()
            try:
                found = await self._instrument.configure(**wanted)
            except InvalidSetting as error:
                raise Refused(400, f"Invalid: {error}") from None
            except MenuTimeout as error:
                raise Refused(504, f"Menu timeout: {error}") from None
            except NotConnected as error:
                raise Refused(503, f"Serial: Not connected: {error}") from None
            except InstrumentError as error:
                raise Refused(503, f"Serial: {error}") from None
        return _configuration(found)

    def _check_idle(self) -> None:
        if self._recording():
            raise Refused(409, "Serial: not in the menu: a recording is running: stop it first")
        if self._asked in ("running", "paused"):
            raise Refused(503, "Serial: not in the menu: acquisition is running: stop it first")

    def _check_connected(self) -> None:
        if not self._instrument.connected:
            raise Refused(503, f"Serial: Not connected: {self._instrument.health().detail}")
        if self._asked == "gone" and not self._recording():
            raise Refused(503, "Serial: Not connected: POST /connect first")

    async def start(self, query: StartQuery) -> Started:
        """Show acquisition as running."""
        self._check_connected()
        if self._asked in ("running", "paused"):
            raise Refused(400, "Acquisition already running: stop it first")
        self._asked = "running"
        if query.poll_hz is not None and not self._recording():
            self._instrument.set_poll_rate(query.poll_hz)
        if query.auto_record:
            self._views.restart()
        before = self._views.taken
        await self._until(lambda: self._views.taken > before, START_NS)
        return Started("started", self._mode, self._views.restarted)

    async def keep(self, query: KeepQuery) -> Keeping:
        """Begin anew with the readings that are kept, and keep at most so many."""
        self._check_connected()
        self._check_running()
        return await self._views.keep(query)

    async def stop(self) -> Done:
        """Show acquisition as stopped; a recording goes on."""
        self._check_running()
        self._asked = "menu"
        self._views.rest()
        return Done("stopped")

    async def pause(self) -> Done:
        """No more readings in the views, unless they are being recorded."""
        self._check_running()
        if self._asked == "paused":
            raise Refused(400, "Acquisition not running: it is paused")
        self._asked = "paused"
        return Done("paused")

    async def resume(self) -> Resumed:
        """Go on after a pause."""
        if not self._recording():
            self._check_connected()
        if self._asked != "paused":
            raise Refused(400, "Acquisition is not in paused state")
        self._asked = "running"
        return Resumed("resumed", self._mode)

    def _check_running(self) -> None:
        if not self._recording():
            self._check_connected()
            if self._asked == "menu":
                raise Refused(400, "Acquisition not running")


def _configuration(found: SensorConfig) -> Configuration:
    period_s = found.averaging / found.adc_rate_hz if found.adc_rate_hz else None
    return Configuration(found.averaging, found.adc_rate_hz, found.mode, found.tag, period_s)
