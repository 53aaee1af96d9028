"""Who trusts whom: keys and tokens of both sides, in files that only their owner reads.

Pairing: a code is shown on the Pi and entered once topside. The topside gives its public key and the code,
and gets a token for HTTP and the Pi's public key for the bus. Keys are CurveZMQ's, in Z85.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
import zmq
from msgspec import Meta, Struct
from msgspec.structs import replace

from common.clock import Clock
from common.files import fsync_folder, make_folder, read_json
from common.messages import END
from common.rows import format_utc

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Struct)

KEYS = "keys"  # in the data folder
CODE_NS = 300_000_000_000  # that a code is good for
TRIES = 5  # at one code
CODE_DIGITS = 6

PublicKey = Annotated[str, Meta(pattern=rf"^[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{{}}@%$#]{{40}}{END}")]
Name = Annotated[str, Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9 ._-]{{0,63}}{END}")]


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


class _Offer(Struct, frozen=True):
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
    """Files for their owner's eyes."""

    def __init__(self, data: Path) -> None:
        self._folder = data / KEYS
        self._known: dict[str, tuple[object, Any]] = {}

    def _read(self, name: str, kind: type[T]) -> T | None:
        """A file as it is now: another process may change it at any time. What is returned is shared."""
        path = self._folder / name
        try:
            about = path.stat()
        except FileNotFoundError:
            return None
        state = (about.st_mtime_ns, about.st_ino, about.st_size)
        if self._known.get(name, (None, None))[0] != state:
            self._known[name] = state, read_json(path, kind)
        return cast(T | None, self._known[name][1])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes from changing anything meanwhile."""
        make_folder(self._folder.parent)
        with suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, name: str, record: Struct) -> None:
        """Within `_alone`: at once, and never readable by others, however short."""
        fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self._folder)  # 0600, and nobody's link
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(fd)
        Path(temporary).rename(self._folder / name)
        fsync_folder(self._folder)

    def key_pair(self) -> KeyPair:
        """This side's own, made when it is asked for first.

        Raises:
            OSError, ValueError: it cannot be read or written.
        """
        found = self._read("own.json", KeyPair)
        if found is not None:
            return found
        with self._alone():
            found = read_json(self._folder / "own.json", KeyPair)
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
        self._trouble = ""  # that was told of last

    @property
    def partners(self) -> list[Partner]:
        """All of them; nobody, while the file cannot be read."""
        try:
            return (self._read("partners.json", _Partners) or _Partners()).partners
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
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
        with self._alone():
            self._write("offer.json", _Offer(_digest(code), self._clock.boot_id, until_ns))
        return code

    def redeem(self, code: str, public: str, name: str) -> str:
        """Take in whoever has the code; returns its token.

        Raises:
            WrongCode: the code is not, or no longer, good.
            OSError, ValueError: the keys cannot be read or written.
        """
        with self._alone():
            self._use(code)
            others = [one for one in self._kept() if one.name != name]
            token, since = secrets.token_urlsafe(32), format_utc(self._clock.utc_ns())
            self._write("partners.json", _Partners([*others, Partner(name, public, _digest(token), since)]))
        return token

    def _use(self, code: str) -> None:
        """The code is good, and is not from now on; a wrong one costs a try."""
        offer = read_json(self._folder / "offer.json", _Offer)
        if offer is None or offer.tries <= 0:
            raise WrongCode("there is no code to be paired with")
        if offer.boot_id != self._clock.boot_id or self._clock.mono_ns() > offer.until_ns:
            raise WrongCode("the code is too old")
        if not hmac.compare_digest(_digest(code), offer.code_sha256):
            self._write("offer.json", replace(offer, tries=offer.tries - 1))
            raise WrongCode("this is not the code")
        (self._folder / "offer.json").unlink()

    def _kept(self) -> list[Partner]:
        return (read_json(self._folder / "partners.json", _Partners) or _Partners()).partners

    def forget(self, name: str) -> bool:
        """Whether there was one of this name.

        Raises:
            OSError, ValueError: the keys cannot be read or written.
        """
        with self._alone():
            before = self._kept()
            after = [one for one in before if one.name != name]
            if len(after) < len(before):
                self._write("partners.json", _Partners(after))
        return len(after) < len(before)


class Wallet(_Folder):
    """The topside's: its own keys, and what it was given by each Pi."""

    def pass_for(self, url: str) -> Pass | None:
        return next((one for one in self._passes() if one.url == url), None)

    def keep(self, new: Pass) -> None:
        """In place of one for the same Pi."""
        with self._alone():
            others = [one for one in self._passes() if one.url != new.url]
            self._write("passes.json", _Passes([*others, new]))

    def _passes(self) -> list[Pass]:
        return (self._read("passes.json", _Passes) or _Passes()).passes


def as_owner(data: Path) -> None:
    """Be who owns the data folder, if this is root: what is written there is then the daemon's to read, and a
    link that lies there leads root nowhere.

    Raises:
        OSError: there is no such folder.
    """
    owner = data.stat()
    if os.geteuid() == 0:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
