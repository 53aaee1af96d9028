"""Which programs have a device, a folder or a network port, as far as /proc tells this user.

Only looks: nothing is opened but files of /proc. Where there is no /proc nobody is found.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from msgspec import Struct

PROC = Path("/proc")
SHOWN = 80  # characters of a command line
PTYS = range(136, 144)  # major numbers of pseudo-terminals; their minor numbers are not unique to one machine

_LOCK = re.compile(r"^\d+: FLOCK .* (?P<pid>\d+) (?P<major>\w+):(?P<minor>\w+):(?P<inode>\d+) ", re.MULTILINE)
_LISTENING = {"tcp": "0A", "udp": "07"}


class Program(Struct, frozen=True):
    """A running process and the beginning of its command line."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def named(programs: list[Program]) -> str:
    """Who they are, for a message."""
    return " and ".join(map(str, programs)) or "another program (which one, sudo would show)"


def users_of(path: str) -> list[Program]:
    """Who else has the device at *path* open, or holds a lock on it.

    Who plays a pseudo-terminal's other end does not count: to its user that one is the device.
    """
    try:
        wanted = Path(path).stat()
    except OSError:
        return []
    found = {pid for pid, fd in _descriptors() if _is_same(fd, wanted)} | _lockers(wanted)
    players = set(_players(wanted)) if found and _is_pty(wanted) else set()
    return [_program(pid) for pid in sorted(found - players - {os.getpid()})]


def lockers_of(path: str) -> list[Program]:
    """Who else holds a lock on the folder at *path*."""
    try:
        return [_program(pid) for pid in sorted(_lockers(Path(path).stat()) - {os.getpid()})]
    except OSError:
        return []


def listeners_on(port: int, kind: Literal["tcp", "udp"]) -> list[Program]:
    """Who listens on that port of this machine, at whichever address."""
    inodes = set()
    for table in (kind, f"{kind}6"):
        for line in _text(PROC / "net" / table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING[kind] and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    pids = {pid for pid, fd in _descriptors() if inodes and _target(fd) in inodes}
    return [_program(pid) for pid in sorted(pids)]


def _descriptors() -> Iterator[tuple[int, Path]]:
    for process in _entries(PROC):
        if process.name.isdecimal():
            for fd in _entries(process / "fd"):
                yield int(process.name), fd


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # not ours to see, or gone meanwhile
        return []


def _is_same(fd: Path, wanted: os.stat_result) -> bool:
    with suppress(OSError):
        found = fd.stat()
        if os.path.samestat(found, wanted):
            return True
        both = stat.S_ISCHR(found.st_mode) and stat.S_ISCHR(wanted.st_mode)
        return both and found.st_rdev == wanted.st_rdev and not _is_pty(wanted)
    return False


def _is_pty(device: os.stat_result) -> bool:
    return stat.S_ISCHR(device.st_mode) and os.major(device.st_rdev) in PTYS


def _players(pty: os.stat_result) -> Iterator[int]:
    number = f"tty-index:\t{os.minor(pty.st_rdev)}\n"
    for pid, fd in _descriptors():
        if _target(fd).endswith("ptmx") and number in _text(PROC / str(pid) / "fdinfo" / fd.name):
            yield pid


def _lockers(wanted: os.stat_result) -> set[int]:
    """Locks are shown to everybody, open files only to their owner."""
    return {
        int(lock["pid"])
        for lock in _LOCK.finditer(_text(PROC / "locks"))
        if int(lock["inode"]) == wanted.st_ino
        and os.makedev(int(lock["major"], 16), int(lock["minor"], 16)) == wanted.st_dev
    }


def _program(pid: int) -> Program:
    command = " ".join(_text(PROC / str(pid) / "cmdline").replace("\0", " ").split())
    command = command or _text(PROC / str(pid) / "comm").strip() or "unknown"
    return Program(pid, command if len(command) <= SHOWN else f"{command[:SHOWN]}...")


def _target(fd: Path) -> str:
    with suppress(OSError):
        return str(fd.readlink())
    return ""


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
