"""What an operator may turn on the Pi. Every key of the TOML file is a field here."""

from typing import Annotated

from msgspec import Meta, Struct, structs

from common.bus import check_address
from common.guard import Security, check_exposure, of_interface
from common.instrument import SerialSettings
from common.service import DaemonConfig, check_apart, check_data, check_origins, split_address


class Recording(Struct, frozen=True, forbid_unknown_fields=True):
    """How rows are kept."""

    roll_interval_s: Annotated[float, Meta(ge=1, le=15)] = 15.0
    """Longest a chunk stays open. Lower: old clients lose less at the end; higher: fewer files."""
    sync_interval_s: Annotated[float, Meta(ge=0.1, le=10)] = 0.8
    """Between syncs. Lower: a power cut costs less; higher: less wear of the card."""
    min_free_mb: Annotated[float, Meta(ge=0)] = 100.0
    """A recording is refused below this much free disk. Lower: starts later into a full card."""


class Simulation(Struct, frozen=True, forbid_unknown_fields=True):
    """A Pi whose clock is wrong on purpose, for demonstrations; named in every recording made so."""

    clock_offset_s: float = 0.0
    clock_drift_ppm: Annotated[float, Meta(ge=-1000, le=1000)] = 0.0
    clock_origin_ns: int | None = None
    """Monotonic time of this machine at which the offset holds; None: at start."""

    @property
    def active(self) -> bool:
        return bool(self.clock_offset_s or self.clock_drift_ppm)


class Config(DaemonConfig, frozen=True, forbid_unknown_fields=True):
    """The Pi daemon's configuration."""

    data: str = "qsensor-data"
    http: str = "127.0.0.1:9150"
    bus: str = "tcp://127.0.0.1:9151"
    time: str | None = None
    """HOST:PORT of the UDP time responder; None: two above the HTTP port, or any free one."""
    security: Security = "local"
    """Who may ask: only this machine, whoever is paired, or everybody on the network (for the old client)."""
    hosts: tuple[str, ...] = ()
    """Names this Pi is asked by, besides its addresses and its own name."""
    origins: tuple[str, ...] = ()
    """Web pages of other hosts that may ask, for example http://blueos.local."""
    serial: SerialSettings = SerialSettings()
    recording: Recording = Recording()
    simulation: Simulation = Simulation()

    def located(self) -> "Config":
        """With addresses in place of the names of network interfaces.

        Raises:
            ConfigError: an interface has no address.
        """
        http, bus = of_interface(self.http), of_interface(self.bus)
        return structs.replace(self, http=http, bus=bus, time=self.time and of_interface(self.time))

    def check(self) -> None:
        check_data(self.data)
        split_address(self.http)
        check_address(self.bus)
        check_apart(self.http, self.bus)
        check_origins(self.origins)
        if self.time is not None:
            split_address(self.time)
        if self.security == "local":
            found = self.located()
            check_exposure("local", http=found.http, bus=found.bus, time=found.time)
