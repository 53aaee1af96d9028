"""The Pi daemon's parts, put together."""

import asyncio
from itertools import count
from pathlib import Path

from common.announcer import Announcer
from common.bus import INWATER, Publisher
from common.clock import Clock, ClockWatch, SkewedClock, SystemClock, machine_id
from common.disk import Disk
from common.guard import check_exposure, is_loopback
from common.instrument import Arrival, Instrument
from common.keys import Keyring
from common.metrics import Metric, counts, stream_metrics
from common.room import RoomWatch
from common.service import ConfigError, Pulse, Supervisor, notify, split_address, take_folder, watchdog
from pi_daemon.api import Api, Setting
from pi_daemon.config import Config
from pi_daemon.sessions import Sessions
from pi_daemon.timeserver import TimeServer

TIME_PORT_ABOVE_HTTP = 2  # 9150 -> 9152
STATUS_S = 1.0
ROOM_S = 60  # between looks at the room on the disk


class Daemon:
    """Serial to chunks to bus, and the HTTP calls to steer it."""

    def __init__(self, config: Config, supervisor: Supervisor) -> None:
        """Take the data folder and the bus address.

        Raises:
            FolderInUse: another daemon has the data folder.
            ConfigError: the folder or the bus address cannot be had, or may not, for security's sake.
        """
        config = config.located()
        check_exposure(config.security, http=config.http, bus=config.bus, time=config.time)
        data = Path(config.data)
        self._config = config
        self._supervisor = supervisor
        self._clock = _clock(config)
        take_folder(data)
        self._looks = Disk("looks")
        self._keyring = None if config.security == "local" else Keyring(data, self._clock)
        self._publisher = Publisher(config.bus, self._bus_keys())
        self._announcer = Announcer(self._publisher, INWATER, self._clock)
        self._instrument = Instrument(config.serial, self._clock, self._take, self._note, self._may_interrupt)
        self._sessions = Sessions(config, self._clock, self._announcer, supervisor, self._instrument)

    def _bus_keys(self) -> Keyring | None:
        """Old clients have no use for the bus, so that it is never open to the network."""
        opened = self._config.security == "legacy-lan" and is_loopback(split_address(self._config.bus)[0])
        return None if opened else self._keyring

    def _take(self, arrival: Arrival) -> None:
        self._api.show(arrival)
        self._sessions.take(arrival)

    def _may_interrupt(self) -> bool:
        return self._sessions.recorder is None

    def _note(self, kind: str, detail: str, count: int) -> None:
        self._announcer.note(kind, detail, count, self._instrument)

    async def run(self) -> None:
        """Serve until told to stop."""
        self._time = await self._serve_time()
        # A clock that is wrong on purpose is not to be recognised another day.
        machine = None if self._config.simulation.active else machine_id()
        config = self._config
        setting = Setting(
            security=config.security,
            hosts=config.hosts,
            origins=config.origins,
            keyring=self._keyring,
            bus_key=self._publisher.key,
            time_port=self._time.port,
            bus_port=self._publisher.port,
            machine_id=machine,
            measure=self._measure,
        )
        self._api = Api(self._sessions, self._instrument, self._clock, setting)
        try:
            await self._supervisor.run(self._begin)
        finally:
            await self._api.site.close()
            self._time.close()
            self._publisher.close()

    async def _begin(self) -> None:
        await self._sessions.resume()
        await self._api.site.listen(self._config.http)
        self._supervisor.keep("instrument", self._instrument.run())
        self._supervisor.keep("status", self._tell_status())
        if self._publisher.key is not None and self._keyring is not None:
            self._supervisor.keep("partners", self._watch_partners(self._keyring))
        self._supervisor.keep("watchdog", watchdog(self._pulse().beats))
        notify("READY=1")

    def _pulse(self) -> Pulse:
        def writer() -> int | None:
            return self._sessions.recorder.turns if self._sessions.recorder else None

        return Pulse({"reader": lambda: self._instrument.turns, "writer": writer})

    def _measure(self) -> list[Metric]:
        asked = self._time.counts
        return [
            *stream_metrics(self._announcer, self._instrument),
            counts("qsensor_time_requests_total", "Datagrams asking for the time.", "outcome", asked),
        ]

    async def _serve_time(self) -> TimeServer:
        host, port = split_address(self._config.time or self._config.http)
        if self._config.time is None:
            port += TIME_PORT_ABOVE_HTTP
        try:
            return await TimeServer.bind(self._clock, host, port, any_port=self._config.time is None)
        except OSError as error:
            raise ConfigError(
                f"cannot serve time on {host}:{port}/udp: {error.strerror}: choose another --time "
                "(unset, it is two above --http)"
            ) from None

    async def _tell_status(self) -> None:
        clocks, room = ClockWatch(self._clock), RoomWatch(self._sessions.folder)
        for second in count():
            health = self._instrument.health()
            self._announcer.status(health.state, health.detail)
            for change in clocks.look():
                self._note(change.kind, str(change), 1)
            if second % ROOM_S == 0 and (news := await self._looks.do(room.look)):
                self._note(*news, 1)
            await asyncio.sleep(STATUS_S)

    async def _watch_partners(self, keyring: Keyring) -> None:
        """Whoever is forgotten hears no more."""
        before: set[str] = set()
        while True:
            now = {one.public for one in await self._looks.do(lambda: keyring.partners)}
            if before - now:
                await self._publisher.renew()
            before = now
            await asyncio.sleep(STATUS_S)


def _clock(config: Config) -> Clock:
    clock, simulation = SystemClock(), config.simulation
    if not simulation.active:
        return clock
    origin_ns = clock.mono_ns() if simulation.clock_origin_ns is None else simulation.clock_origin_ns
    return SkewedClock(clock, round(simulation.clock_offset_s * 1e9), simulation.clock_drift_ppm, origin_ns)
