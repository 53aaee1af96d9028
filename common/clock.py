"""Stamps: the one place that reads the time.

Instants are integer nanoseconds. `mono_ns` orders and is regressed upon: it is never slewed and
never stepped. `utc_ns` is the wall clock read beside it, a label that may be wrong and may jump.
"""

import time
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from common.messages import Epoch, Stamp

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
STEP_NS = 20_000_000  # a wall clock that moves further than this against mono_ns has been stepped
SLEW_PPM = 1000  # twice the fastest slew of adjtime(2); anything below is not a step

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


class SystemClock:
    """The machine's own clocks: `CLOCK_MONOTONIC_RAW` where the OS has it, else `perf_counter`.

    `CLOCK_MONOTONIC` will not do: time daemons slew it by whole percent for seconds.
    """

    def __init__(self) -> None:
        self._boot_id = _read_boot_id()

    @property
    def boot_id(self) -> str:
        return self._boot_id

    if hasattr(time, "CLOCK_MONOTONIC_RAW"):

        def mono_ns(self) -> int:
            return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

    else:

        def mono_ns(self) -> int:
            return time.perf_counter_ns()

    def utc_ns(self) -> int:
        return time.time_ns() // 1000 * 1000

    def stamp(self) -> Stamp:
        return Stamp(mono_ns=self.mono_ns(), utc_ns=self.utc_ns())


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


class StepWatch:
    """Notices a wall clock that was set: compares it with mono_ns from look to look."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.stamp()

    def look(self) -> int:
        """How far the wall clock was stepped since the last look, in ns; 0 if it was not."""
        now, last = self._clock.stamp(), self._last
        self._last = now
        elapsed_ns = now.mono_ns - last.mono_ns
        moved_ns = (now.utc_ns - last.utc_ns) - elapsed_ns
        allowed_ns = STEP_NS + elapsed_ns * SLEW_PPM // 1_000_000
        return moved_ns if abs(moved_ns) > allowed_ns else 0


def begin_epoch(number: int, clock: Clock) -> Epoch:
    """Describe the clock's present run, to be kept with the rows it stamps."""
    now = clock.stamp()
    return Epoch(epoch=number, boot_id=clock.boot_id, mono_ns=now.mono_ns, utc_ns=now.utc_ns)


def _read_boot_id() -> str:
    try:
        return BOOT_ID_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return _PROCESS_BOOT_ID
