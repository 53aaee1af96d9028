"""What an operator may turn topside. Every key of the TOML file is a field here."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from common.bus import check_address
from common.clock import SystemClock
from common.guard import check_exposure, of_interface
from common.instrument import SerialSettings
from common.service import ConfigError, DaemonConfig, check_apart, check_data, check_origins, split_address
from topside_daemon.fusion.settings import Settings
from topside_daemon.pi import Pi


class Markers(Struct, frozen=True, forbid_unknown_fields=True):
    """How often the two clocks are compared during a session."""

    fast_start_s: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=3600)], ...],
        Meta(max_length=100),
    ] = (0.0, 3.0, 8.0, 18.0, 38.0, 78.0)
    """Comparisons after START, and after a restart on either side. More: live rows are good sooner."""
    interval_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    """Between PERIODIC markers; 0 sends none. Lower: the clock is followed closer; higher: less traffic."""
    interval_min_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """Between comparisons while the drift is changing; 0: never more often than interval_s."""
    probes: Annotated[int, Meta(ge=1, le=64)] = 8
    """Exchanges in a burst, of which the quickest counts. More: steadier on a busy link."""


class Recording(Struct, frozen=True, forbid_unknown_fields=True):
    """How rows are kept, on both sides."""

    roll_interval_s: Annotated[float, Meta(ge=1, le=15)] = 15.0
    """Longest a chunk stays open. Lower: more files; higher: more re-hashing when one is pulled."""
    sync_interval_s: Annotated[float, Meta(ge=0.1, le=10)] = 0.8
    """Between syncs of the surface record. Lower: a power cut costs less; higher: less wear of the disk."""


class Config(DaemonConfig, frozen=True, forbid_unknown_fields=True):
    """The topside daemon's configuration."""

    data: str = "qsensor-data"
    http: str = "127.0.0.1:9160"
    bus: str = "tcp://127.0.0.1:9161"
    pi: str | None = None
    """URL of the Pi daemon, for example http://192.168.2.2:9150; None: no in-water sensor."""
    security: Literal["local", "legacy-lan"] = "local"
    """Who may ask this daemon: only this machine, or everybody on the network."""
    hosts: tuple[str, ...] = ()
    """Names this machine is asked by, besides its addresses and its own name."""
    origins: tuple[str, ...] = ()
    """Web pages of other hosts that may ask, for example http://cockpit.local."""
    serial: SerialSettings = SerialSettings()
    """The surface sensor; without a port there is none."""
    markers: Markers = Markers()
    recording: Recording = Recording()
    fusion: Settings = Settings()
    """How sessions are fused; kept with each of them."""

    def located(self) -> "Config":
        """With addresses in place of the names of network interfaces.

        Raises:
            ConfigError: an interface has no address.
        """
        return structs.replace(self, http=of_interface(self.http), bus=of_interface(self.bus))

    def check(self) -> None:
        check_data(self.data)
        split_address(self.http)
        check_address(self.bus)
        check_apart(self.http, self.bus)
        check_origins(self.origins)
        starts = self.markers.fast_start_s
        if list(starts) != sorted(starts):
            raise ConfigError(
                f"markers.fast_start_s: {list(starts)} must rise: write {sorted(starts)}, in s after START"
            )
        if self.security == "local":
            found = self.located()
            check_exposure("local", http=found.http, bus=found.bus)
        if self.pi is not None:
            Pi(self.pi, SystemClock())
