"""`doctor`: why a daemon would not run well, in one line for each thing looked at, with the cure.

The checks are pure: facts in, a `Finding` out. The facts come from the `look_` functions, which leave
things as they are: a port that any program has is not opened, a daemon that runs is asked by HTTP.
"""

import argparse
import asyncio
import errno
import os
import platform
import pwd
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import aiohttp
import msgspec
from msgspec import Struct

from common.clock import HAS_RAW, Clock, Discipline
from common.files import why
from common.guard import Security, is_loopback
from common.holders import Program, listeners_on, lockers_of, named
from common.instrument import SerialSettings
from common.messages import UNDECODABLE
from common.probe import Probed, add_probe_flags, daemons_on, probe
from common.room import is_low
from common.sensor import FLOWING
from common.service import split_address

Level: TypeAlias = Literal["ok", "warn", "FAIL"]
Findings: TypeAlias = AsyncIterator["Finding"]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

FAILED = 1
ASK_S = 3.0  # for a daemon to answer
DEAF_S, LONGEST_S = 12.0, 20.0  # for a sensor to be heard: any byte, a reading
USER = "qsensor"  # as whom the installed daemons run
# The oldest versions that are known to do, as pyproject.toml has them.
NEEDED = MappingProxyType({"aiohttp": "3.14", "msgspec": "0.20", "pyserial-asyncio": "0.6", "pyzmq": "27"})
_COMING = ("opening", "listening", "interview")


class Finding(Struct, frozen=True):
    """One thing that was looked at. detail: how it is; what is wrong, and the cure."""

    level: Level
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.level:<4} {self.what}: {self.detail}"


class Running(Struct, frozen=True):
    """Who answers at a daemon's own HTTP address. protocol: None for the old API."""

    version: str
    protocol: int | None
    told: Mapping[str, Any]


class Listening(Struct, frozen=True):
    """An address that a daemon wants, and the option that names it."""

    what: str
    address: str
    kind: Literal["tcp", "udp"] = "tcp"

    @property
    def place(self) -> tuple[str, int]:
        return split_address(self.address)


def check_machine(python: str, machine: str, bits: int) -> Finding:
    """The interpreter, and whether the packages come ready-made for it."""
    found = f"Python {python} on {machine}, {bits} bit"
    if bits >= 64:
        return Finding("ok", "machine", found)
    cure = "msgspec and pyzmq come ready-made for 64 bit only: install a 64-bit system"
    return Finding("warn", "machine", f"{found}: {cure}")


def check_packages(versions: Mapping[str, str | None]) -> Finding:
    """Whether what a daemon stands on is there and new enough; None: not there."""
    old = [
        f"{name} {version or 'is missing'}, {NEEDED[name]} or newer is needed"
        for name, version in versions.items()
        if version is None or _numbers(version) < _numbers(NEEDED[name])
    ]
    if old:
        cure = "install requirements/pi.txt (topside: runtime.txt) in an environment of its own"
        return Finding("FAIL", "packages", f"{'; '.join(old)}: {cure}")
    return Finding("ok", "packages", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def check_clock(discipline: Discipline, raw: bool) -> list[Finding]:
    """Whether the wall clock is kept, and whether there is a clock that nobody slews."""
    found = []
    if discipline.synchronised:
        within = f", within {discipline.error_ns / 1e6:.0f} ms" if discipline.error_ns is not None else ""
        found.append(Finding("ok", "clock", f"the wall clock follows a time server{within}"))
    elif discipline.synchronised is None:
        found.append(Finding("ok", "clock", "the OS does not tell whether the wall clock is kept right"))
    else:
        cost = "readings line up all the same, but their UTC may be wrong"
        cure = "`timedatectl set-ntp true` where there is a network, else set it by hand"
        found.append(Finding("warn", "clock", f"not synchronised, {cost}: {cure}"))
    if not raw:
        cost = "no CLOCK_MONOTONIC_RAW: time daemons bend the clock that readings are dated by"
        found.append(Finding("warn", "clock", f"{cost}: use Linux or macOS"))
    return found


def check_user(root: bool, known: bool) -> list[Finding]:
    """Whether what *root* finds holds for the daemon. known: the daemon's own user exists here."""
    if not (root and known):
        return []
    cure = f"ask again with `sudo -u {USER}`"
    return [Finding("warn", "user", f"root may do what the daemon's user may not: {cure}")]


def check_folder(folder: Path, there: bool, refusal: OSError | None, holders: list[Program]) -> Finding:
    """The data folder. refusal: of a trial to write; holders: who but our running daemon holds it."""
    if holders:
        cure = "stop it, or choose another --data"
        return Finding("FAIL", "data", f"{folder} is in use by {named(holders)}: {cure}")
    if refusal is None:
        return Finding("ok", "data", f"{folder} {'can be written' if there else 'will be made'}")
    place = str(folder) if there else f"{folder} is missing and cannot be made"
    reason = why(refusal)
    cure = "" if ": " in reason else ": choose another --data"
    return Finding("FAIL", "data", f"{place}: {reason}{cure}")


def check_room(free_bytes: int, total_bytes: int, least_mb: float | None) -> Finding:
    """The room on the data folder's disk. least_mb: below it no recording is begun."""
    found = f"{free_bytes / 1e6:.0f} MB of {total_bytes / 1e6:.0f} MB free"
    if least_mb is not None and free_bytes / 1e6 < least_mb:
        cost = f"a recording is refused below {least_mb:.0f} MB (recording.min_free_mb)"
        return Finding("FAIL", "room", f"{found}, {cost}: free some space")
    if is_low(free_bytes, total_bytes):
        return Finding("warn", "room", f"{found}: free some space before a long session")
    return Finding("ok", "room", found)


def check_listening(
    wanted: Listening, refusal: OSError | None, holders: list[Program], running: Running | None
) -> Finding:
    """An address that a daemon wants. refusal: of a trial to have it; running: our daemon, if that has it."""
    where, choose = f"{wanted.address} ({wanted.kind})", f"choose another --{wanted.what}"
    if refusal is None:
        return Finding("ok", wanted.what, f"{where} is free")
    host, port = wanted.place
    if running is not None and running.protocol is not None:
        return Finding("ok", wanted.what, f"{where}: our daemon runs there, version {running.version}")
    if running is not None:
        text = f"{where}: the old API {running.version} runs there ({named(holders)}): stop it, or {choose}"
    elif refusal.errno == errno.EADDRINUSE:
        text = f"{where} is taken by {named(holders)}: stop it, or {choose}"
    elif refusal.errno == errno.EADDRNOTAVAIL:
        text = f"{host} is no address of this machine: give one that is, or 0.0.0.0:{port} for all"
    elif refusal.errno == errno.EACCES:
        text = f"{where}: ports below 1024 are for root: {choose}"
    else:
        text = f"{where}: {refusal.strerror}: {choose}"
    return Finding("FAIL", wanted.what, text)


def check_security(word: Security, http: str, partners: Sequence[str] | None) -> Finding:
    """Who may ask. partners: who is paired with this daemon; None where nobody can be."""
    if word == "local":
        return Finding("ok", "security", "local: only this machine may ask")
    if word == "legacy-lan":
        better = "local" if partners is None else "paired"
        cost = f"OPEN, whoever reaches {http} may read and steer"
        cure = f'choose security = "{better}" once no old client is left'
        return Finding("warn", "security", f"legacy-lan: {cost}: {cure}")
    if not partners:
        cure = "`python -m pi_daemon pair` shows a code for the topside"
        return Finding("warn", "security", f"paired, and with nobody yet: {cure}")
    return Finding("ok", "security", f"paired with {', '.join(partners)}")


def check_reach(http: str, bus: str) -> list[Finding]:
    """Whether one is open to the tether and the other is not."""
    addresses = {"http": http, "bus": bus}
    closed = [name for name, address in addresses.items() if is_loopback(split_address(address)[0])]
    if len(closed) != 1:
        return []
    cure = f"open both to the tether, or none: --{closed[0]} with 0.0.0.0 for the host"
    return [Finding("warn", "reach", f"only {closed[0]} listens on loopback: {cure}")]


def check_heard(told: Probed, baud: int) -> Finding:
    """A sensor that was listened to. baud: the configured speed."""
    if told.heard and told.baud != baud:
        cure = f"set baud = {told.baud} under [serial], or --baud {told.baud}"
        return Finding("warn", "sensor", f"it speaks at {told.baud} baud, not at {baud}: {cure}")
    if told.heard:
        return Finding(
            "ok", "sensor", f"heard on {told.port} at {told.baud} baud, {told.state}: {told.value}"
        )
    if not told.state.startswith("port "):
        heard = f"{told.heard_bytes} bytes and no reading" if told.heard_bytes else "nothing heard"
        speeds = ", ".join(map(str, told.speeds_tried))
        cure = "check cable and power, then its speed (probe PORT --baud N)"
        return Finding("FAIL", "sensor", f"{heard} on {told.port} at {speeds} baud: {cure}")
    return Finding("FAIL", "sensor", told.detail)


def check_told(health: Mapping[str, Any], what: str = "sensor") -> Finding:
    """A sensor as the daemon that has it tells."""
    state, detail, port = (str(health.get(key) or "") for key in ("state", "detail", "port"))
    if state in FLOWING:
        return Finding("ok", what, f"the running daemon hears it on {port}: {state}")
    level: Level = "warn" if state in _COMING else "FAIL"
    return Finding(level, what, f"the running daemon says {state or 'nothing of it'}: {detail}")


def look_at_machine(clock: Clock) -> Iterator[Finding]:
    """What does not depend on the configuration."""
    bits = 64 if sys.maxsize > 2**32 else 32
    yield check_machine(platform.python_version(), platform.machine(), bits)
    yield check_packages({name: _version(name) for name in NEEDED})
    yield from check_clock(clock.discipline(), HAS_RAW)
    yield from check_user(os.geteuid() == 0, _is_user(USER))


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _is_user(name: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def look_at_folder(
    folder: Path, least_mb: float | None, running: Running | None, own: list[Program]
) -> Iterator[Finding]:
    """The data folder and the room on its disk; what is tried leaves nothing behind.

    Args:
        running: our daemon, if it runs.
        own: the programs that this may be; empty if this user may not see it.
    """
    holders = [one for one in lockers_of(str(folder)) if one not in own]
    if running and not own:
        holders = []
    yield check_folder(folder, os.access(folder, os.F_OK), _try_folder(folder), holders)
    with suppress(OSError):
        usage = shutil.disk_usage(_nearest(folder))
        yield check_room(usage.free, usage.total, least_mb)


def _nearest(folder: Path) -> Path:
    """The folder itself, or what it would be made in."""
    return next(
        (one for one in (folder.absolute(), *folder.absolute().parents) if os.access(one, os.F_OK)), Path("/")
    )


def _try_folder(folder: Path) -> OSError | None:
    place = _nearest(folder)
    try:
        if folder.exists():
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"doctor")
                file.flush()
                os.fsync(file.fileno())
        elif os.statvfs(place).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        elif not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        elif not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        return error
    return None


def look_at_address(wanted: Listening, running: Running | None, own: list[Program]) -> Finding:
    """Who has an address. running: our daemon, if it runs; own: the programs that this may be."""
    host, port = wanted.place
    refusal = _try_address(wanted.kind, host, port)
    holders = listeners_on(port, wanted.kind) if refusal else []
    ours = not holders or not own or any(one in own for one in holders)
    return check_listening(wanted, refusal, holders, running if ours else None)


def _try_address(kind: Literal["tcp", "udp"], host: str, port: int) -> OSError | None:
    how = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=how, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, how) as trial:
            if kind == "tcp":
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            if kind == "tcp":
                trial.listen(1)  # some that share an address are refused only here
    except OSError as error:
        return error
    return None


async def look_at_sensor(serial: SerialSettings, clock: Clock) -> Finding:
    """Hear the sensor on its port, unless anybody has that; a sensor that streams is not interrupted."""
    port = serial.port or ""
    if daemons := daemons_on(port):
        cure = "give doctor its --config or --http to be told more"
        return Finding("warn", "sensor", f"our daemon has {port}, {named(daemons)}: {cure}")
    told = await probe(port, serial.baud, clock, ask=False, deaf_s=DEAF_S, longest_s=LONGEST_S)
    return check_heard(told, serial.baud)


async def get_json(url: str, token: str | None = None) -> Mapping[str, Any] | None:
    """The JSON object that is served there; None if there is none, for whatever reason."""
    timeout, headers = (
        aiohttp.ClientTimeout(total=ASK_S),
        {"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url, headers=headers) as response:
            told = msgspec.json.decode(await response.read())
    except (aiohttp.ClientError, OSError, ValueError, *UNDECODABLE):
        return None
    return told if isinstance(told, dict) and response.status == 200 else None


def own_url(http: str) -> str:
    """The URL at which this machine itself reaches what listens there."""
    host, port = split_address(http)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def own_programs(http: str, running: Running | None) -> list[Program]:
    """Our running daemon, if this user may see it."""
    return listeners_on(split_address(http)[1], "tcp") if running else []


def add_looks(commands: Commands, add_daemon_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    """The commands `doctor` and `probe`; the daemon's flags may stand before them or behind."""
    text = "say what would keep the daemon from running well, and the cure; disturbs nothing"
    doctor = commands.add_parser("doctor", help=text, description=text, argument_default=argparse.SUPPRESS)
    add_daemon_flags(doctor)
    doctor.add_argument("--json", action="store_true", default=False, help="print the findings as JSON")
    text = "hear the sensor on a port, say what it is and how it is set, and leave it as it was"
    add_probe_flags(
        commands.add_parser("probe", help=text, description=text, argument_default=argparse.SUPPRESS)
    )


def run_doctor(findings: Findings, as_json: bool) -> int:
    """Print findings as they are made; returns the exit code: 0 none failed, 1 one did."""

    async def tell() -> list[Finding]:
        found = []
        async for finding in findings:
            found.append(finding)
            if not as_json:
                print(finding, flush=True)
        return found

    try:
        found = asyncio.run(tell())
    except KeyboardInterrupt:
        return FAILED
    failed = any(finding.level == "FAIL" for finding in found)
    if as_json:
        print(msgspec.json.encode({"ok": not failed, "findings": found}).decode())
    return FAILED if failed else 0
