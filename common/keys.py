"""Who trusts whom: keys and tokens of both sides, in files that only their owner reads.

Pairing: a code is shown on the Pi and entered once topside. The topside gives its public key and the code,
and gets a token for HTTP and the Pi's public key for the bus. Keys are CurveZMQ's, in Z85.
"""

import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
import zmq
from msgspec import Meta, Struct

from common.clock import Clock
from common.files import make_folder, read_json, replace
from common.rows import format_utc

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Struct)

KEYS = "keys"  # in the data folder
CODE_NS = 300_000_000_000  # that a code is good for
TRIES = 5  # at one code
CODE_DIGITS = 6

PublicKey = Annotated[str, Meta(pattern=r"^[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]


class KeyPair(Struct, frozen=True):
    """Of one side of the bus."""

    public: PublicKey
    secret: PublicKey


class Partner(Struct, frozen=True):
    """One that was paired with this Pi. token_sha256: what is kept of its token."""

    name: Name
    public: PublicKey
    token_sha256: str
    since: str


class Pass(Struct, frozen=True):
    """What the topside keeps of a Pi that it was paired with."""

    url: str
    token: str
    bus_key: PublicKey
    since: str


class _Offer(Struct):
    code_sha256: str
    boot_id: str
    until_ns: int
    tries: int = TRIES


class _Partners(Struct):
    partners: list[Partner] = []


class _Passes(Struct):
    passes: list[Pass] = []


class WrongCode(Exception):
    """There is no pairing to be had with this code; says why."""


class _Folder:
    """Files for their owner's eyes: whoever writes them, they belong to whom the data belongs."""

    def __init__(self, data: Path) -> None:
        self._folder = data / KEYS
        self._known: dict[str, tuple[object, Any]] = {}

    def _read(self, name: str, kind: type[T]) -> T | None:
        """A file as it is now: another process may change it at any time."""
        path = self._folder / name
        try:
            about = path.stat()
        except FileNotFoundError:
            return None
        state = (about.st_mtime_ns, about.st_ino, about.st_size)
        if self._known.get(name, (None, None))[0] != state:
            self._known[name] = state, read_json(path, kind)
        return cast(T | None, self._known[name][1])

    def _write(self, name: str, record: Struct) -> None:
        made = not self._folder.exists()
        before = os.umask(0o077)
        try:
            make_folder(self._folder)
            replace(self._folder / name, msgspec.json.encode(record))
        finally:
            os.umask(before)
        if os.geteuid() == 0:  # asked for by root, read by the daemon's user
            owner = self._folder.parent.stat()
            os.chown(self._folder / name, owner.st_uid, owner.st_gid)
            if made:
                os.chown(self._folder, owner.st_uid, owner.st_gid)

    def key_pair(self) -> KeyPair:
        """This side's own, made when it is asked for first.

        Raises:
            OSError, ValueError: it cannot be read or written.
        """
        found = self._read("own.json", KeyPair)
        if found is None:
            public, secret = (key.decode("ascii") for key in zmq.curve_keypair())
            found = KeyPair(public, secret)
            self._write("own.json", found)
        return found


class Keyring(_Folder):
    """The Pi's: who may talk to it."""

    def __init__(self, data: Path, clock: Clock) -> None:
        super().__init__(data)
        self._clock = clock

    @property
    def partners(self) -> list[Partner]:
        """All of them; nobody, while the file cannot be read."""
        try:
            return (self._read("partners.json", _Partners) or _Partners()).partners
        except (OSError, ValueError) as error:
            log.error("nobody is let in: %s", error)
            return []

    def knows_token(self, token: str) -> bool:
        digest = _digest(token)
        return any(hmac.compare_digest(digest, one.token_sha256) for one in self.partners)

    def knows_key(self, public: str) -> bool:
        return any(hmac.compare_digest(public, one.public) for one in self.partners)

    def offer(self) -> str:
        """A code for one pairing; an earlier one is no longer good."""
        code = "".join(secrets.choice("0123456789") for _ in range(CODE_DIGITS))
        until_ns = self._clock.mono_ns() + CODE_NS
        self._write("offer.json", _Offer(_digest(code), self._clock.boot_id, until_ns))
        return code

    def redeem(self, code: str, public: str, name: str) -> str:
        """Take in whoever has the code; returns its token.

        Raises:
            WrongCode: the code is not, or no longer, good.
            OSError, ValueError: the keys cannot be read or written.
        """
        offer = self._read("offer.json", _Offer)
        if offer is None or offer.tries <= 0:
            raise WrongCode("there is no code to be paired with")
        if offer.boot_id != self._clock.boot_id or self._clock.mono_ns() > offer.until_ns:
            raise WrongCode("the code is too old")
        if not hmac.compare_digest(_digest(code), offer.code_sha256):
            offer.tries -= 1
            self._write("offer.json", offer)
            raise WrongCode("this is not the code")
        token = secrets.token_urlsafe(32)
        since = format_utc(self._clock.utc_ns())
        kept = [one for one in self.partners if one.name != name]
        self._write("partners.json", _Partners([*kept, Partner(name, public, _digest(token), since)]))
        (self._folder / "offer.json").unlink()
        return token

    def forget(self, name: str) -> bool:
        """Whether there was one of this name."""
        kept = [one for one in self.partners if one.name != name]
        if len(kept) == len(self.partners):
            return False
        self._write("partners.json", _Partners(kept))
        return True


class Wallet(_Folder):
    """The topside's: its own keys, and what it was given by each Pi."""

    def pass_for(self, url: str) -> Pass | None:
        return next((one for one in self._passes() if one.url == url), None)

    def keep(self, new: Pass) -> None:
        """In place of one for the same Pi."""
        self._write("passes.json", _Passes([*(one for one in self._passes() if one.url != new.url), new]))

    def _passes(self) -> list[Pass]:
        return (self._read("passes.json", _Passes) or _Passes()).passes


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
