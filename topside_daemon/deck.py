"""What every session of this daemon uses, and who watches it."""

from typing import Any

from msgspec import Struct

from common.announcer import Announcer
from common.clock import Clock
from common.instrument import Instrument
from common.messages import Epoch, Exchange, Reading
from common.unfinished import Unfinished
from topside_daemon.config import Config
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.links import Links
from topside_daemon.pi import Pi


class View:
    """Who watches a session live; called from the event loop, in order. This one looks away: all it is
    shown is in the files."""

    def begin(
        self,
        session_id: str,
        topside_epochs: list[Epoch],
        inwater: bool,
        surface: bool,
        link: LinkMemory | None,
        settings: Settings,
    ) -> None:
        """A session begins or goes on, with these sensors, and this is known of the link to the Pi."""

    def know_sensor(self, inwater: bool, sensor: dict[str, Any] | None) -> None:
        """What is recorded of a sensor's configuration."""

    def inwater(self, readings: list[Reading]) -> None:
        """The next in-water readings, none missing."""

    def know_epoch(self, epoch: int, boot_id: str) -> None:
        """In-water rows of this epoch were stamped in this boot of the Pi."""

    def burst(self, exchanges: list[Exchange]) -> None:
        """One more comparison of the clocks."""

    def unsettled(self) -> bool:
        """Whether the drift is changing, so that the clocks are to be compared more often."""
        return False


class Deck(Struct):
    """What every session of this daemon uses.

    machine_id: this machine, in the link memories; None if it has no lasting name.
    """

    config: Config
    clock: Clock
    pi: Pi | None
    instrument: Instrument | None
    announcer: Announcer
    links: Links
    machine_id: str | None
    unfinished: Unfinished
