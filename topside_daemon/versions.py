"""Whether the Pi's daemon and this one understand each other. No I/O."""

from typing import Literal

from msgspec import Struct

from common import VERSION
from common.messages import PROTOCOL
from topside_daemon.pi import About

State = Literal["same", "compatible", "older", "newer", "old api"]


class Version(Struct, frozen=True):
    """What the Pi runs beside what runs here. detail: what that means, empty if nothing is to be done.

    state: `same`; `compatible`, another version of the same protocol; `older` or `newer`, another
    protocol; `old api`, not a daemon of ours.
    """

    state: State
    pi: str
    pi_protocol: int | None
    detail: str = ""


def compare(about: About, version: str = VERSION, protocol: int = PROTOCOL) -> Version:
    """The Pi's version as seen from one here."""
    if about.protocol is None:
        missing = "live readings, time by udp and its sensor's numbers are missing"
        return Version("old api", about.api, None, f"{missing}: install pi_daemon {version} on the Pi")
    if about.protocol == protocol:
        return Version("same" if about.git == version else "compatible", about.git, about.protocol)
    both = f"it speaks protocol {about.protocol}, this side {protocol}"
    if about.protocol < protocol:
        return Version("older", about.git, about.protocol, f"{both}: upgrade the Pi to {version}")
    return Version("newer", about.git, about.protocol, f"{both}: upgrade the topside to {about.git}")
