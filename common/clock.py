"""Stamps: the one place that reads the time.

Instants are integer nanoseconds. `mono_ns` orders and is regressed upon: it is never slewed and
never stepped. `utc_ns` is the wall clock read beside it, a label that may be wrong and may jump.
"""

import ctypes
import hashlib
import re
import sys
import time
from pathlib import Path
from typing import Literal, Protocol
from uuid import uuid4

from msgspec import Struct

from common.messages import Epoch, Stamp

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
LOOKS = 3  # at both clocks, of which the quickest counts: a process that was pre-empted saw a ghost
CALM_PPM = 250  # NTP's frequency and a crystal stay below this, adjtime(2) slews at 500
SLEW_PPM = 125_000  # a quarter of the 0.5 s that the kernel takes for a slew, in its first second
BRIEF_PPM = 1_000  # what moves no faster was slewed, however short it was
LONGEST_SLEW_S = 3600.0  # one that does not end is told once an hour
SLEPT_NS = 50_000_000  # a machine that was suspended slept at least this long
HAS_RAW = hasattr(time, "CLOCK_MONOTONIC_RAW")

_STA_UNSYNC = 0x40  # adjtimex(2): nobody has set the clock for a while
_SALT = "qsensor-sync machine"
_MACHINE_NAMES = (
    ("sys/firmware/devicetree/base/serial-number", r"\A([0-9a-fA-F]{8,})\0?\Z"),
    ("proc/cpuinfo", r"^Serial\s*: ([0-9a-f]{16})$"),  # the same number where a container hides the first
    ("etc/machine-id", r"\A([0-9a-f]{32})$"),
)

_PROCESS_BOOT_ID = str(uuid4())  # where the OS names no boot, each process counts as one


class Clock(Protocol):
    """Where stamps come from; simulations pass their own."""

    @property
    def boot_id(self) -> str:
        """Name of the uninterrupted run of this monotonic clock (a UUID)."""
        ...

    def mono_ns(self) -> int:
        """Monotonic time; the zero is arbitrary and differs between machines and boots."""
        ...

    def utc_ns(self) -> int:
        """Wall time since 1970, in whole microseconds, because files keep no more."""
        ...

    def stamp(self) -> Stamp:
        """Both, read one right after the other."""
        ...

    def asleep_ns(self) -> int:
        """How long the machine has been suspended since it booted; 0 where the OS does not tell."""
        ...

    def discipline(self) -> "Discipline":
        """What the OS says of the wall clock."""
        ...


class Discipline(Struct, frozen=True):
    """Whether the wall clock follows a time server, and the largest error that is expected of it.

    None where the OS does not tell.
    """

    synchronised: bool | None = None
    error_ns: int | None = None


class SystemClock:
    """The machine's own clocks: `CLOCK_MONOTONIC_RAW` where the OS has it, else `perf_counter`.

    `CLOCK_MONOTONIC` will not do: time daemons slew it by whole percent for seconds.
    """

    def __init__(self) -> None:
        self._boot_id = _read_boot_id()

    @property
    def boot_id(self) -> str:
        return self._boot_id

    if HAS_RAW:

        def mono_ns(self) -> int:
            return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

    else:

        def mono_ns(self) -> int:
            return time.perf_counter_ns()

    def utc_ns(self) -> int:
        return time.time_ns() // 1000 * 1000

    def stamp(self) -> Stamp:
        return Stamp(mono_ns=self.mono_ns(), utc_ns=self.utc_ns())

    if sys.platform == "linux":

        def asleep_ns(self) -> int:
            awake_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - awake_ns

        def discipline(self) -> Discipline:
            return _ask_kernel()

    else:

        def asleep_ns(self) -> int:
            return 0

        def discipline(self) -> Discipline:
            return Discipline()


class SkewedClock:
    """Another machine's clock, made from this one: `base + offset + drift * (base - origin)`.

    Args:
        base: the clock to distort.
        offset_ns: reading ahead of *base* at *origin_ns*; positive is ahead.
        drift_ppm: gain against *base*; positive gains.
        origin_ns: `base.mono_ns()` at which the offset holds.
    """

    def __init__(self, base: Clock, offset_ns: int, drift_ppm: float, origin_ns: int) -> None:
        self._base = base
        self._offset_ns = offset_ns
        self._drift_ppb = round(drift_ppm * 1000)
        self._origin_ns = origin_ns

    @property
    def boot_id(self) -> str:
        return self._base.boot_id

    def _ahead_ns(self, base_mono_ns: int) -> int:
        return self._offset_ns + (base_mono_ns - self._origin_ns) * self._drift_ppb // 1_000_000_000

    def mono_ns(self) -> int:
        return self.stamp().mono_ns

    def utc_ns(self) -> int:
        return self.stamp().utc_ns

    def stamp(self) -> Stamp:
        base = self._base.stamp()
        ahead = self._ahead_ns(base.mono_ns)
        return Stamp(mono_ns=base.mono_ns + ahead, utc_ns=(base.utc_ns + ahead) // 1000 * 1000)

    def asleep_ns(self) -> int:
        return self._base.asleep_ns()

    def discipline(self) -> Discipline:
        """A clock that is wrong on purpose follows nobody."""
        return Discipline(synchronised=False)


class Look(Struct, frozen=True):
    """All clocks of a machine at once: the stamp is true to *error_ns* either way."""

    stamp: Stamp
    asleep_ns: int
    error_ns: int


def look_at(clock: Clock) -> Look:
    """Read the wall clock between two readings of mono_ns, a few times, and believe the closest two."""

    def between() -> Look:
        before_ns = clock.mono_ns()
        utc_ns, asleep_ns = clock.utc_ns(), clock.asleep_ns()
        apart_ns = clock.mono_ns() - before_ns
        return Look(Stamp(before_ns + apart_ns // 2, utc_ns), asleep_ns, apart_ns // 2 + 1000)

    return min((between() for _ in range(LOOKS)), key=lambda look: look.error_ns)


class ClockChange(Struct, frozen=True):
    """Something that happened to a machine's clocks: mono_ns is not touched by any of it.

    moved_ns: how far the wall clock was set or slewed, positive forward; or how long the machine slept.
    duration_s: how long that took, 0 if it was at once.
    """

    kind: Literal["clock_step", "clock_slew", "suspended"]
    moved_ns: int
    duration_s: float = 0.0

    def __str__(self) -> str:
        if self.kind == "suspended":
            return f"the machine slept for {self.moved_ns / 1e9:.3f} s"
        if self.kind == "clock_step":
            return f"the wall clock was set by {self.moved_ns / 1e9:+.6f} s"
        return f"the wall clock was slewed by {self.moved_ns / 1e9:+.6f} s within {self.duration_s:.0f} s"


class ClockWatch:
    """Notices a wall clock that is set or slewed, and a machine that was suspended.

    Compares the wall clock with mono_ns from look to look. A movement that goes on from one look to
    the next is a slew, and told when it has ended; what happens between two looks is a step, and told at
    the look after, unless no slew could be as fast. To be asked about once a second.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = look_at(clock)
        self._moving: list[tuple[int, int]] = []  # (elapsed, moved) of the looks since it moves, ns

    def look(self) -> list[ClockChange]:
        """What has come to an end since the last look, in order."""
        now, last = look_at(self._clock), self._last
        self._last = now
        elapsed_ns = now.stamp.mono_ns - last.stamp.mono_ns
        moved_ns = now.stamp.utc_ns - last.stamp.utc_ns - elapsed_ns
        found: list[ClockChange] = []
        slept_ns = now.asleep_ns - last.asleep_ns
        if slept_ns >= SLEPT_NS:  # the wall clock went on meanwhile, mono_ns did not
            found.append(ClockChange("suspended", slept_ns))
            moved_ns -= slept_ns
        sure_ns = max(0, abs(moved_ns) - now.error_ns - last.error_ns)
        if sure_ns > elapsed_ns * SLEW_PPM // 1_000_000:
            found += [*self._told(), ClockChange("clock_step", moved_ns)]
        elif sure_ns > elapsed_ns * CALM_PPM // 1_000_000:
            self._moving.append((elapsed_ns, moved_ns))
            if sum(elapsed_ns for elapsed_ns, _ in self._moving) > LONGEST_SLEW_S * 1e9:
                found += self._told()
        else:
            found += self._told()
        return found

    def _told(self) -> list[ClockChange]:
        """The movement that has ended, if there was one."""
        moving, self._moving = self._moving, []
        if not moving:
            return []
        elapsed_ns = sum(elapsed_ns for elapsed_ns, _ in moving)
        moved_ns = sum(moved_ns for _, moved_ns in moving)
        if len(moving) == 1 and abs(moved_ns) > elapsed_ns * BRIEF_PPM // 1_000_000:
            return [ClockChange("clock_step", moved_ns)]
        return [ClockChange("clock_slew", moved_ns, elapsed_ns / 1e9)]


def begin_epoch(number: int, clock: Clock) -> Epoch:
    """Describe the clock's present run, to be kept with the rows it stamps."""
    now, discipline = look_at(clock).stamp, clock.discipline()
    return Epoch(
        epoch=number,
        boot_id=clock.boot_id,
        mono_ns=now.mono_ns,
        utc_ns=now.utc_ns,
        synchronised=discipline.synchronised,
        wall_error_ns=discipline.error_ns,
    )


def _read_boot_id() -> str:
    try:
        return BOOT_ID_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return _PROCESS_BOOT_ID


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2) as far as it is looked at; the rest is room for what it writes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror_us", ctypes.c_long),
        ("esterror_us", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 64),
    )


def _ask_kernel() -> Discipline:
    """adjtimex(2), which only reads when no mode is set; a sandbox may refuse it."""
    told = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(told))
    except (AttributeError, OSError):
        return Discipline()
    if state < 0:
        return Discipline()
    synchronised = not told.status & _STA_UNSYNC
    return Discipline(synchronised, int(told.maxerror_us) * 1000 if synchronised else None)


def machine_id(root: Path = Path("/")) -> str | None:
    """Which machine this is, for recognising its crystal; None where it has no lasting name.

    A board's serial number outlives the card it boots from; the OS's own id is the next best. Only a
    salted hash leaves the machine, because machine-id(5) is confidential.
    """
    for path, pattern in _MACHINE_NAMES:
        try:
            text = (root / path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            continue
        match = re.search(pattern, text, re.MULTILINE)
        if match and match[1].strip("0"):
            return hashlib.sha256(f"{_SALT}:{match[1]}".encode("ascii")).hexdigest()[:32]
    return None
