"""Who may ask a daemon what, over HTTP: one word in the configuration, `security`.

local: only this machine is listened to. paired: everybody must show the token of a pairing. legacy-lan: open
to whoever is on the network, for clients that know no token.

In every mode a browser is kept from doing what another page wants (foreign Origin, foreign Host), and nobody
asks without end.
"""

import fcntl
import ipaddress
import logging
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from aiohttp import web

from common.clock import Clock
from common.keys import Keyring
from common.service import ConfigError, split_address
from common.web import Refused

log = logging.getLogger(__name__)

Security = Literal["local", "paired", "legacy-lan"]

RATE_HZ, BURST = 200.0, 1200.0  # requests of one address; the quickest client of ours makes some ten a second
WRONG_MOST, WRONG_S = 10, 60.0  # wrong tokens of one address
FILES, FILE_SHARE = "/files/", 0.2  # of a request: a copy that was cut off has much to catch up with
ADDRESSES = 1024  # that are remembered
SIOCGIFADDR = 0x8915
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:]*)(:\d{1,5})?")

HOW_TO_PAIR = (
    'this Pi is paired: "python -m pi_daemon pair", with the --config or --data of its daemon, shows a code, '
    '"python -m topside_daemon pair URL CODE" takes it'
)


class _Budget:
    """What one address may still do; fills up again by itself."""

    def __init__(self, most: float, per_s: float, now_ns: int) -> None:
        self._most, self._per_s = most, per_s
        self._left, self._at_ns = most, now_ns

    def left(self, now_ns: int) -> float:
        self._left = min(self._most, self._left + (now_ns - self._at_ns) / 1e9 * self._per_s)
        self._at_ns = now_ns
        return self._left

    def take(self, share: float = 1.0) -> None:
        self._left -= share


class _Budgets:
    def __init__(self, most: float, per_s: float) -> None:
        self._most, self._per_s = most, per_s
        self._of: dict[str, _Budget] = {}

    def of(self, address: str, now_ns: int) -> _Budget:
        found = self._of.pop(address, None) or _Budget(self._most, self._per_s, now_ns)
        if len(self._of) >= ADDRESSES:
            del self._of[next(iter(self._of))]  # who was not heard for longest
        self._of[address] = found
        return found


class Guard:
    """A site's doorkeeper.

    Args:
        security: the word of the configuration.
        keyring: whose tokens are good; looked at if paired.
        hosts: names this machine is asked by, besides its addresses and its own name.
        origins: web pages of other hosts that may ask, as in http://blueos.local.
    """

    def __init__(
        self,
        security: Security,
        clock: Clock,
        keyring: Keyring | None = None,
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
    ) -> None:
        self._keyring = keyring if security == "paired" else None
        # Old clients ask for blueos.local and the like; who lets such a name point elsewhere gains nothing
        # where a token is asked for, nor where all is open.
        self._networked = security != "local"
        self._clock = clock
        own = socket.gethostname().lower()
        self._hosts = {"localhost", own, own.partition(".")[0], f"{own}.local", *map(str.lower, hosts)}
        self._origins = {one.lower().rstrip("/") for one in origins}
        self._requests = _Budgets(BURST, RATE_HZ)
        self._wrong = _Budgets(WRONG_MOST, WRONG_MOST / WRONG_S)
        self.refused: Counter[str] = Counter()  # by HTTP status

    def admit(self, request: web.Request, public: bool) -> str | None:
        try:
            self._check_host(request)
            origin = self._check_origin(request)
            self._allow_pace(request)
            if self._keyring is not None and not public and request.method != "OPTIONS":
                self._check_token(request, self._keyring)
        except Refused as refused:
            self.refused[str(refused.status)] += 1
            raise
        return origin

    def _allow_pace(self, request: web.Request) -> None:
        budget = self._requests.of(request.remote or "", self._clock.mono_ns())
        if budget.left(self._clock.mono_ns()) < 1:
            raise Refused(429, f"too many requests: no more than {RATE_HZ:.0f} a second")
        budget.take(FILE_SHARE if request.path.startswith(FILES) else 1.0)

    def _check_host(self, request: web.Request) -> None:
        """A page on a name that its owner has let point here would else be of the same origin."""
        match = HOST.fullmatch(request.headers.get("Host", "localhost"))
        name = match["name"].lower().rstrip(".") if match else ""
        known = name in self._hosts or _is_address(name.strip("[]"))
        if not known and not (self._networked and name.endswith(".local")):
            raise Refused(
                421,
                f"foreign host {name[:64]!r}: ask by this machine's address, or add the name to hosts in "
                "the configuration",
            )

    def _check_origin(self, request: web.Request) -> str | None:
        origins = request.headers.getall("Origin", [])
        if not origins:
            return None
        origin = ", ".join(origins)
        asked = origin.lower().rstrip("/")
        if asked in self._origins:
            return origin
        if asked not in (f"http://{request.host.lower()}", f"https://{request.host.lower()}"):
            raise Refused(
                403,
                f"foreign origin {origin[:100]!r}: a page of another host may not ask here: if it shall, add "
                "it to origins in the configuration",
            )
        return None

    def _check_token(self, request: web.Request, keyring: Keyring) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if not token:
            raise Refused(401, f"no token: {HOW_TO_PAIR}")
        if scheme.lower() == "bearer" and keyring.knows_token(token.strip()):
            return
        now_ns = self._clock.mono_ns()
        wrong = self._wrong.of(request.remote or "", now_ns)
        if wrong.left(now_ns) < 1:
            raise Refused(429, "too many wrong tokens: wait a minute, then pair again")
        wrong.take()
        raise Refused(401, f"wrong token: {HOW_TO_PAIR}")


def check_exposure(security: Security, **addresses: str | None) -> None:
    """Hold the addresses to be listened on, by the name of their key, against the word.

    Raises:
        ConfigError: local, and one of them is heard beyond this machine.
    """
    for key, address in addresses.items():
        if address is None:
            continue
        host, _ = split_address(address)
        if security == "local" and not is_loopback(host):
            raise ConfigError(
                f"{key} = {address!r} is heard beyond this machine, and security is local: listen on "
                '127.0.0.1, or choose security = "paired" (or "legacy-lan", which is open to everybody there)'
            )
        if security == "legacy-lan" and key == "http" and not is_loopback(host):
            log.warning("OPEN: security is legacy-lan: whoever reaches %s may read and steer", address)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can connect there."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def of_interface(address: str) -> str:
    """HOST:PORT, where HOST may be the name of a network interface, with that interface's address.

    Raises:
        ConfigError: there is such an interface, but it has no IPv4 address.
    """
    before, scheme, rest = address.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if sys.platform != "linux" or host not in {name for _, name in socket.if_nameindex()}:
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            found = fcntl.ioctl(asker.fileno(), SIOCGIFADDR, struct.pack("256s", host[:15].encode()))
        except OSError as error:
            raise ConfigError(
                f"{address}: {host} has no address ({error.strerror}): connect it, or give an address"
            ) from None
    return f"{before}{scheme}{socket.inet_ntoa(found[20:24])}{colon}{port}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
