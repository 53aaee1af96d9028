"""The device side of a serial port made of a raw pseudo-terminal, and the link that names it."""

import fcntl
import os
import re
import select
import termios
import tty
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

# Speeds a tty can be set to by name, in baud, and the constants termios knows them by.
_SPEEDS = MappingProxyType(
    {int(name[1:]): getattr(termios, name) for name in dir(termios) if re.fullmatch(r"B[1-9][0-9]*", name)}
)
_BAUD_OF = MappingProxyType({speed: baud for baud, speed in _SPEEDS.items()})
BAUDS = tuple(sorted(_SPEEDS))

READ_BYTES = 4096
# What BlueOS asks every serial port: U to set the speed, then a Ping "device information" request.
PROBE = b"UUUBR\x02\x00\x06\x00\x00\x00\x04\x00\xa0\x00"
PROBE_BAUD = 115_200
OPEN_FLAGS = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK


class Terminal:
    """The device's end of a pty; the host opens `name`.

    No slave descriptor is kept open, so that the kernel tells whether a host has the port open.

    Args:
        baud: the speed the host finds it at; USB serial ports start at 9600 too.

    Raises:
        OSError: no pty to be had.
    """

    def __init__(self, baud: int = 9600) -> None:
        self._master, slave = os.openpty()
        self.name = os.ttyname(slave)
        tty.setraw(slave)
        _set_baud(slave, baud)
        os.close(slave)
        os.set_blocking(self._master, False)

    def fileno(self) -> int:
        return self._master

    def close(self) -> None:
        """Take the device away; the host sees a hang-up."""
        os.close(self._master)

    @property
    def baud(self) -> int:
        """The speed the host has set; 0 for one that has no name."""
        return _BAUD_OF.get(termios.tcgetattr(self._master)[5], 0)

    def look(self) -> tuple[bool, bool]:
        """Whether a host has the port open, and whether it has sent something."""
        poll = select.poll()
        poll.register(self._master, select.POLLIN | select.POLLHUP)
        events = dict(poll.poll(0)).get(self._master, 0)
        return not events & select.POLLHUP, bool(events & select.POLLIN)

    def read(self) -> bytes:
        """What the host has sent; empty if nothing, or if it has gone."""
        with suppress(OSError):  # EAGAIN, or EIO when the last host has closed the port
            return os.read(self._master, READ_BYTES)
        return b""

    def write(self, data: bytes) -> int:
        """How many bytes the host's buffer took; the rest is lost, as on a real UART."""
        with suppress(OSError):
            return os.write(self._master, data)
        return 0

    def tidy(self) -> None:
        """After the last host closed it: forget what it did not read, and its exclusive hold.

        A real port does that by itself.

        Raises:
            OSError: the hold bars us too; only another pty will do.
        """
        fd = os.open(self.name, OPEN_FLAGS)
        try:
            termios.tcflush(fd, termios.TCIFLUSH)
            fcntl.ioctl(fd, termios.TIOCNXCL)
        finally:
            os.close(fd)

    def probe(self) -> None:
        """Open the port as BlueOS does to look for a sonar: set its speed, write, close.

        Raises:
            OSError: the host holds it exclusively.
        """
        fd = os.open(self.name, OPEN_FLAGS)
        try:
            _set_baud(fd, PROBE_BAUD)
            os.write(fd, PROBE)
        finally:
            os.close(fd)


def _set_baud(fd: int, baud: int) -> None:
    attributes = termios.tcgetattr(fd)
    attributes[4] = attributes[5] = _SPEEDS[baud]
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def point(link: Path, name: str) -> None:
    """Make *link* a symbolic link to the pty, in one step if it is one already.

    Raises:
        FileExistsError: something else is there.
        OSError: its folder is missing or not ours to write.
    """
    if not link.parent.is_dir():
        raise FileNotFoundError(f"no folder {link.parent} to make the link in")
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} exists and is not a link")
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def unpoint(link: Path, name: str) -> None:
    """Remove *link* if it still is the link to the pty."""
    with suppress(OSError):
        if link.readlink() == Path(name):
            link.unlink()
