"""One Q-Series behind an open port: hear it, talk to it, and get it going again when it stops.

Knows nothing of pyserial: a `Link` carries the bytes. Only what flows by itself is used while
`may_interrupt()` is false; the menu, which stops the stream for seconds, is then the last resort.
Instants are seconds during which this program was awake, unless they end in _ns: monotonic time.
"""

from collections import Counter, deque
from collections.abc import Callable
from statistics import median

from common.clock import Clock
from common.menu import (
    InstrumentError,
    InvalidSetting,
    MenuTimeout,
    NoMenu,
    NotConnected,
    SensorConfig,
    Wanted,
    leave,
    poll_query,
    poll_start,
    visit,
)
from common.messages import Stamp
from common.qseries import DataLine, Gate, Item, Noise, NoiseTally, Quality, ShapeLearned
from common.talk import GARBLED_S, Link, LinkLost, Talker, Vigil

LOOK_S = 0.5  # how often to see whether all is well when nothing calls earlier
TRY_BAUD_S = 4.0
NOISE_S = 5.0  # at most one summary of noise in this time
CURE_S = 6.0  # for a cure to show: a reset takes 2.8 s and one period
STUCK_S = 30.0  # between cures that did not help
BOOT_S = 3.0  # the longest silence while it boots is 2.2 s
BAUDS = (9600, 19200, 38400, 57600, 115200)
POLL_MAX_HZ = 50.0
POLL_BYTES = 40  # of a query and its reply, ten bits each on the line
FLOWING = ("freerun", "polled")


class Sensor:
    """A sensor across any number of links; `attend` one at a time.

    Args:
        clock: for ages and deadlines.
        wanted: settings to be applied whenever the sensor is talked to.
        baud: speed to begin with.
        poll_hz: queries a second, if the sensor is polled.
        on_reading: called with each reading, in order, on the event loop.
        note: called with (kind, detail, count) for what a reader of the record must know.
        may_interrupt: whether the stream may be stopped to talk to the sensor.
    """

    def __init__(
        self,
        clock: Clock,
        wanted: Wanted,
        baud: int,
        poll_hz: float,
        on_reading: Callable[[DataLine], None],
        note: Callable[[str, str, int], None],
        may_interrupt: Callable[[], bool],
    ) -> None:
        self.config: SensorConfig | None = None
        self.sensor_id = "unknown"
        self.serial_number = ""  # verbatim
        self.state, self.detail = "opening", ""
        self.baud = baud
        self.speeds_tried = [baud]
        self.counters = Counter(resets=0, reconnects=0, port_speed_restored=0)
        self.gate = Gate()
        self.gate.tag = wanted.tag
        self.note = note
        self._clock = clock
        self._vigil = Vigil(clock, note)
        self._now_s = self._vigil.now_s
        self._wanted = wanted
        self._poll_s = 1 / poll_hz
        self._on_reading = on_reading
        self._may_interrupt = may_interrupt
        self._link: Link | None = None
        self._heard = False  # anything of a sensor on this link
        self._bytes_before = 0  # heard on earlier links
        self._heard_s = self._words_s = 0.0
        self._last_ns: int | None = None  # of the last reading
        self._gaps_s: deque[float] = deque(maxlen=9)
        self._rebooted = False
        self._silent_since_s: float | None = None
        self._cures, self._cure_at_s = 0, 0.0  # tried in vain since readings flowed; when to try again
        self._poll_step, self._poll_at_s = 0, 0.0
        self._quality = Quality(self.gate)
        self._talker = Talker(self.gate, self._quality, self._vigil)
        self._noise, self._noise_at_s = NoiseTally(), 0.0

    @property
    def connected(self) -> bool:
        """A port is open and a sensor is heard on it; not while it is talked to: no reading comes then."""
        silent = self._silent_since_s is not None or self.state in ("garbled", "interview")
        return self._link is not None and self._heard and not silent

    @property
    def turns(self) -> int:
        """Grows as long as somebody attends to the sensor."""
        return self._talker.pauses

    @property
    def last_line_age_s(self) -> float | None:
        """How long ago the last reading's line began; None before the first."""
        return None if self._last_ns is None else (self._clock.mono_ns() - self._last_ns) / 1e9

    def become(self, state: str, detail: str = "") -> None:
        """Change what health tells."""
        self.state, self.detail = state, detail

    def remember(self, config: SensorConfig) -> None:
        """Take for true what this sensor said of itself before a restart, until it says otherwise."""
        self.config = config
        self._tune_gate(config)
        self._identify(config.serial_number)

    def _tune_gate(self, config: SensorConfig) -> None:
        self.gate.tag = (config.tag or "A") if config.mode == "polled" else None
        self.gate.preamble = config.preamble

    def wake(self) -> None:
        """Make `attend` look at once."""
        self._talker.wake()

    def receive(self, data: bytes, stamp: Stamp) -> None:
        """Take bytes that arrived at *stamp*; never waits."""
        self._vigil.look(stamp.mono_ns)
        gate = self.gate
        boots, words, lines, place = gate.boots, gate.words, gate.data_lines, gate.place
        self._take(gate.receive(data, stamp))
        if gate.words != words:
            self._words_s = self._now_s()
        if gate.words != words or gate.data_lines != lines:
            self._heard, self._heard_s = True, self._now_s()
        if gate.boots != boots:
            self._rebooted = not self._talker.busy.locked()  # else it was our own X
        if gate.place != place:
            self._follow_place()
        self._talker.hear(data)

    async def attend(self, link: Link) -> None:
        """Keep the sensor behind *link* heard until the link is lost."""
        self._vigil.begin()
        self._link, self._heard, self._heard_s = link, False, self._now_s()
        self._bytes_before = self.gate.total_bytes
        self._poll_step, self._cures, self._cure_at_s = 0, 0, 0.0
        self._quality.restart(self._now_s())
        self.become("listening", "the port is open; nothing proven to be a reading yet")
        try:
            greeted = False
            while True:
                if not greeted and self._may_interrupt():
                    greeted = True
                    async with self._talker.busy:
                        await self._greet(link)
                await self._talker.pause(link, self._next_look_s())
                greeted = greeted or self.config is not None  # a session may have kept us from asking
                async with self._talker.busy:
                    await self._look(link)
        except LinkLost:
            pass
        finally:
            self._link = None
            self._talker.wake()
            self._take(self.gate.resync())
            self._report_noise(at_once=True)
            self._vigil.end()

    async def configure(self, wanted: Wanted) -> SensorConfig:
        """Apply settings through the menu, which takes 8 to 20 s, and remember them for the next link.

        Raises:
            NotConnected, MenuTimeout, InvalidSetting: nothing, or not all, was applied.
            InstrumentError: the stream may not be stopped now.
        """
        wanted.check()
        async with self._talker.busy:
            link = self._link
            if link is None:
                raise NotConnected(f"{self.state}: {self.detail}")
            if not self._may_interrupt():  # any more: somebody may have been before us for a while
                raise InstrumentError("a recording has begun: stop it first")
            self.become("interview", "applying settings; readings resume by themselves")
            try:
                config = await self._visit(link, wanted)
            except LinkLost:
                raise NotConnected("the port was lost meanwhile") from None
            finally:
                if self._link is not None:
                    self._settle()
            self._wanted = self._wanted.updated(wanted)
            return config

    def _take(self, items: list[Item]) -> None:
        for item in items:
            match item:
                case DataLine():
                    self._deliver(item)
                case ShapeLearned(shape, was):
                    was_text = "" if was is None else f", was {was}"
                    self.note("shape_changed" if was else "shape_learned", f"{shape}{was_text}", 1)
                case Noise():
                    self._noise.add(item)

    def _deliver(self, data: DataLine) -> None:
        mono_ns = data.stamp.mono_ns
        if not self._vigil.belated(mono_ns) and self._last_ns is not None:
            self._gaps_s.append((mono_ns - self._last_ns) / 1e9)
        self._last_ns = mono_ns
        self._on_reading(data)
        if self.state != data.mode and not self._talker.busy.locked():
            self._flow(data.mode)

    def _flow(self, mode: str) -> None:
        if self._silent_since_s is not None:
            silent_s = self._now_s() - self._silent_since_s
            self.note("silence_ended", f"after {silent_s:.1f} s", 1)
        self._silent_since_s, self._cures, self._cure_at_s = None, 0, 0.0
        self.become(mode)

    def _settle(self) -> None:
        """After a talk or a cure: say how things are."""
        if self._link is None:
            return
        age_s = self.last_line_age_s
        if self.gate.place == "sampling" and age_s is not None and age_s < self._patience_s():
            self._flow("polled" if self.gate.tag else "freerun")
        elif self._silent_since_s is None:
            self.become("listening", "waiting for readings")

    def _follow_place(self) -> None:
        if self.gate.place == "sampling" and self._rebooted:
            self._rebooted = False
            self.counters["resets"] += 1
            self.note("sensor_rebooted", "its boot text was heard; it samples again", 1)
        if self.gate.unit_id is not None:
            self._identify(self.gate.unit_id)
        if self.gate.place == "boot" and self.state in FLOWING:
            self.become("listening", "the sensor is booting")
        if self.gate.place == "menu" and self.state in FLOWING:
            self.become("menu", "the sensor was dropped into its menu")
        self._talker.wake()

    def _identify(self, serial_number: str) -> None:
        if serial_number == self.serial_number:
            return
        before = f", before {self.serial_number!r}" if self.serial_number else ""
        self.serial_number = serial_number
        self.sensor_id = serial_number.replace(",", ";") if serial_number.strip() else "unknown"
        self.note("sensor_identified", f"{serial_number!r}{before}", 1)

    async def _greet(self, link: Link) -> None:
        trouble = await self._interview(link)
        if trouble and self._babbles():
            await self._find_baud(link)
        elif trouble and not self._heard and not self._garbled():
            self._fall_silent(trouble)

    async def _interview(self, link: Link) -> str:
        """Ask the sensor what it is and apply the settings; whatever comes of it, go on listening.

        Returns: what went wrong, empty if nothing did.
        """
        if self._silent_since_s is None:
            self.become("interview", "reading the sensor's configuration, which takes about 9 s")
        trouble = ""
        try:
            await self._visit(link, self._wanted)
        except NoMenu as error:
            self.note("no_menu", str(error), 1)
        except InvalidSetting as error:
            self.note("setting_refused", str(error), 1)
        except MenuTimeout as error:
            trouble = str(error)
        self._settle()
        return trouble

    async def _visit(self, link: Link, wanted: Wanted) -> SensorConfig:
        config = await self._talker.hold(link, visit(wanted))
        before, self.config = self.config, config
        self._tune_gate(config)
        self._gaps_s.clear()
        self._poll_step = 0
        self._identify(config.serial_number)
        if str(before) != str(config):
            self.note("configured", str(config), 1)
        return config

    def set_poll_rate(self, hz: float) -> None:
        """Ask a polled sensor so often; no more often than it has something new to say and the line takes."""
        fastest = min(POLL_MAX_HZ, self.baud / (10 * POLL_BYTES))
        if self.config is not None and self.config.adc_rate_hz is not None:
            fastest = min(fastest, self.config.adc_rate_hz / self.config.averaging)
        self._poll_s = 1 / min(hz, fastest)
        self._poll_at_s = min(self._poll_at_s, self._now_s() + self._poll_s)

    def _next_look_s(self) -> float:
        if self.gate.tag is None:
            return LOOK_S
        return min(max(self._poll_at_s - self._now_s(), 0.0), LOOK_S)

    async def _look(self, link: Link) -> None:
        """See whether all is well; cure what is not."""
        self._report_noise()
        self._poll(link)
        if link.speed_changed():
            await self._talker.set_baud(link, self.baud)
            self.counters["port_speed_restored"] += 1
            self.note("port_speed_restored", f"another program had changed it from {self.baud} baud", 1)
        garbled, silent_s = self._garbled(), self._now_s() - self._heard_s
        if self._now_s() < self._cure_at_s:
            return
        if self.gate.place == "menu":
            await self._leave_menu(link)
        elif garbled:
            await self._find_baud(link)
        elif silent_s > self._patience_s():
            await self._break_silence(link, silent_s)

    def _poll(self, link: Link) -> None:
        """In polled mode, ask when it is time. First an X, heeded only by a sensor in its menu, where the
        letters of a query would be commands; then the start; then queries."""
        tag, now_s, place = self.gate.tag, self._now_s(), self.gate.place
        booting = place == "boot" and now_s - self._words_s < BOOT_S  # a quiet boot ends without a word
        if tag is None or booting or place == "menu":
            self._poll_step = 1 if booting else 0
        elif now_s >= self._poll_at_s:
            link.write((b"X", poll_start(tag), poll_query(tag))[min(self._poll_step, 2)])
            self._poll_step += 1
            self._poll_at_s += self._poll_s
            if self._poll_at_s < now_s:
                self._poll_at_s = now_s + self._poll_s

    async def _leave_menu(self, link: Link) -> None:
        self.become("menu", "the sensor was dropped into its menu: sending X")
        try:
            await self._talker.hold(link, leave())
        except MenuTimeout as error:
            self._cure_at_s = self._now_s() + STUCK_S
            self.become("menu", str(error))
            self.note("menu_stuck", str(error), 1)
        else:
            self._cure_at_s = self._now_s() + CURE_S
            self.note("menu_left", "the sensor was in its menu and was reset", 1)
            self._settle()

    async def _break_silence(self, link: Link, silent_s: float) -> None:
        if link.moved():
            raise LinkLost
        if self._heard and self._cures == 0:
            self._poll_step = 0
            link.write(b"X")  # heeded only in the menu
            self._fall_silent(f"nothing heard for {silent_s:.1f} s: check the cable and the power")
        elif self._babbles() and self._cures % 2 == 0:
            await self._find_baud(link)
        elif trouble := await self._interview(link):
            self._fall_silent(trouble)
        else:
            self._cure_at_s = self._now_s() + CURE_S

    def _fall_silent(self, trouble: str) -> None:
        if self._silent_since_s is None:
            self._silent_since_s = self._heard_s
            self.note("silence", trouble, 1)
        self.become("silent", trouble)
        self._cures += 1
        self._cure_at_s = self._now_s() + min(CURE_S * self._cures, STUCK_S)

    def _patience_s(self) -> float:
        least_s = (3.0 if self._heard else 6.0) + (BOOT_S if self.gate.place == "boot" else 0.0)
        return max(least_s, 5 * self._period_s())

    def _period_s(self) -> float:
        """Between readings: as heard, else as configured, else as shipped."""
        if len(self._gaps_s) >= 2:
            return median(self._gaps_s)
        poll_s = self._poll_s if self.gate.tag else 0.0
        config = self.config
        if config is None or not config.adc_rate_hz:
            return 1.04 + poll_s
        return 1.04 * config.averaging / config.adc_rate_hz + poll_s

    def _babbles(self) -> bool:
        """Bytes come, and none of a sensor's words and numbers: text at twice the port's speed looks like
        text too, and is never `garbled`."""
        return not self._heard and self.gate.total_bytes > self._bytes_before

    def _garbled(self, for_s: float = GARBLED_S) -> bool:
        return self._quality.is_garbled(self._now_s(), for_s)

    async def _find_baud(self, link: Link) -> None:
        """Try the other speeds; keep the first at which the sensor makes sense."""
        self.become("garbled", f"what arrives at {self.baud} baud is not text: trying other speeds")
        self.note("garbled", self.detail, 1)
        for baud in [baud for baud in BAUDS if baud != self.baud] + [self.baud]:
            await self._talker.set_baud(link, baud)
            if baud not in self.speeds_tried:
                self.speeds_tried.append(baud)
            self._take(self.gate.resync())
            self._quality.restart(self._now_s())
            if await self._makes_sense(link):
                if baud != self.baud:
                    self.note("baud_found", f"{baud}, not {self.baud}", 1)
                self.baud = baud
                self._settle()
                return
        self._quality.restart(self._now_s())
        self._cures += 1
        self._cure_at_s = self._now_s() + min(CURE_S * self._cures, STUCK_S)
        self.become("garbled", "what arrives is not text at any speed: check cable, ground and sensor")

    async def _makes_sense(self, link: Link) -> bool:
        end_s = self._now_s() + max(TRY_BAUD_S, 4 * self._period_s())
        while self.gate.place == "unknown":
            if self._now_s() >= end_s or self._garbled(for_s=0.0):
                return False
            await self._talker.pause(link, LOOK_S)
        return True

    def _report_noise(self, at_once: bool = False) -> None:
        if self._noise.counts and (at_once or self._now_s() >= self._noise_at_s):
            self.note("noise", *self._noise.report())
            self._noise_at_s = self._now_s() + NOISE_S
