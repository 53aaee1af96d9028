"""Stamps, a clock that is wrong on purpose, and the watch for what happens to a machine's clocks."""

import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import (
    ClockChange,
    ClockWatch,
    Discipline,
    SkewedClock,
    SystemClock,
    begin_epoch,
    look_at,
    machine_id,
)
from common.messages import Epoch
from tests.sim.clocks import UTC_START_NS, SimClock

NS = 1_000_000_000
OFFSETS_NS = st.integers(-(10**18), 10**18)
DRIFTS_PPB = st.integers(-1_000_000, 1_000_000)


def test_the_machine_has_clocks() -> None:
    """Monotonic time never goes back, wall time comes in whole microseconds, the boot has a UUID."""
    clock = SystemClock()
    instants = [clock.mono_ns() for _ in range(1000)]
    assert instants == sorted(instants)
    assert instants[-1] > instants[0]
    assert clock.stamp().utc_ns % 1000 == 0
    assert clock.boot_id == SystemClock().boot_id == str(UUID(clock.boot_id))


@given(OFFSETS_NS, DRIFTS_PPB, st.floats(0, 1e6))
def test_a_skewed_clock_is_wrong_by_exactly_what_was_asked(
    offset_ns: int, drift_ppb: int, elapsed_s: float
) -> None:
    """Offset at the origin and drift since then are exact to 1 ns, on the wall clock to its microsecond."""
    base = SimClock()
    clock = SkewedClock(base, offset_ns, drift_ppb / 1000, base.mono_ns())
    assert clock.mono_ns() - base.mono_ns() == offset_ns
    start_ns = base.mono_ns()
    base.advance(elapsed_s)
    ahead_ns = offset_ns + (base.mono_ns() - start_ns) * drift_ppb // NS
    assert abs(clock.mono_ns() - base.mono_ns() - ahead_ns) <= 1
    assert abs(clock.utc_ns() - base.utc_ns() - ahead_ns) <= 1000
    assert clock.stamp().mono_ns == clock.mono_ns()
    assert clock.utc_ns() % 1000 == 0


@given(DRIFTS_PPB, st.lists(st.floats(0, 100), max_size=50))
def test_a_skewed_clock_never_goes_back(drift_ppb: int, pauses_s: list[float]) -> None:
    """However it drifts, its monotonic clock is monotonic."""
    base = SimClock()
    clock = SkewedClock(base, 0, drift_ppb / 1000, base.mono_ns())
    seen: list[int] = []
    for pause_s in pauses_s:
        base.advance(pause_s)
        seen.append(clock.mono_ns())
    assert seen == sorted(seen)


def test_a_skewed_clock_is_the_same_boot() -> None:
    """A clock that is wrong on purpose ends with its machine's boot."""
    base = SimClock()
    assert SkewedClock(base, 5 * NS, 40, 0).boot_id == base.boot_id


def watched(clock: SimClock, watch: ClockWatch, looks: int, slew_ppm: float = 0.0) -> list[ClockChange]:
    """What is noticed in this many seconds."""
    found: list[ClockChange] = []
    for _ in range(looks):
        clock.advance(1.0, slew_ppm)
        found += watch.look()
    return found


@given(
    st.floats(0.005, 3600) | st.floats(-3600, -0.005),
    st.floats(0.2, 3),
    st.floats(0, 1),
    st.floats(-100, 100),
)
def test_a_step_is_told_once_and_measured(
    step_s: float, apart_s: float, share: float, crystal_ppm: float
) -> None:
    """Steps of 5 ms to an hour, either way, wherever they fall between two looks: one event, no slew."""
    clock = SimClock()
    watch = ClockWatch(clock)
    clock.advance(apart_s * share, crystal_ppm)
    clock.step(step_s)
    clock.advance(apart_s * (1 - share), crystal_ppm)
    (change,) = watch.look() + watched(clock, watch, 3, crystal_ppm)
    assert (change.kind, change.duration_s) == ("clock_step", 0)
    assert change.moved_ns == pytest.approx(step_s * 1e9, abs=apart_s * 100_000 + 4_000)


@given(st.floats(0.006, 0.4), st.sampled_from([-1, 1]), st.floats(-100, 100), st.floats(0.5, 1.5))
def test_a_slew_by_the_time_daemon_is_one_event(
    error_s: float, sign: int, crystal_ppm: float, apart_s: float
) -> None:
    """An eighth of what remains, each second, as the kernel does it: one event that has all of it."""
    clock = SimClock()
    watch = ClockWatch(clock)
    found = watched(clock, watch, 5, crystal_ppm)
    remaining_s, began_ns = error_s, clock.mono_ns()
    for _ in range(round(100 / apart_s)):
        moved_s = remaining_s * (1 - (7 / 8) ** apart_s)
        remaining_s -= moved_s
        clock.advance(apart_s, crystal_ppm + sign * moved_s / apart_s * 1e6)
        found += watch.look()
    (change,) = found
    assert change.kind == "clock_slew"
    lasted_s = (clock.mono_ns() - began_ns) / 1e9
    assert 0 < change.duration_s < lasted_s
    assert change.moved_ns == pytest.approx(sign * error_s * 1e9, abs=0.004e9 + lasted_s * 60e3)


@given(st.integers(1, 300), st.sampled_from([-500, 500]), st.floats(-100, 100))
def test_a_slew_by_adjtime_is_one_event(seconds: int, slew_ppm: int, crystal_ppm: float) -> None:
    """500 ppm on top of any ordinary crystal, for a second or for minutes."""
    clock = SimClock()
    watch = ClockWatch(clock)
    found = watched(clock, watch, 3, crystal_ppm)
    found += watched(clock, watch, seconds, crystal_ppm + slew_ppm)
    found += watched(clock, watch, 3, crystal_ppm)
    (change,) = found
    assert (change.kind, change.duration_s) == ("clock_slew", seconds)
    assert change.moved_ns == pytest.approx(seconds * (slew_ppm + crystal_ppm) * 1e3, abs=4_000)


@given(st.lists(st.tuples(st.floats(0, 86_400), st.floats(-200, 200)), max_size=50))
def test_an_ordinary_crystal_is_no_event(pieces: list[tuple[float, float]]) -> None:
    """100 ppm against a frequency that NTP corrects by 100, looked at however seldom."""
    clock = SimClock()
    watch = ClockWatch(clock)
    for seconds, crystal_ppm in pieces:
        clock.advance(seconds, crystal_ppm)
        assert watch.look() == []


def test_a_slew_without_end_is_told_every_hour() -> None:
    """A wall clock that gains 400 ppm for ever is not a secret."""
    clock = SimClock()
    watch = ClockWatch(clock)
    found = watched(clock, watch, 7300, 400)
    assert [change.kind for change in found] == ["clock_slew", "clock_slew"]
    assert sum(change.moved_ns for change in found) == pytest.approx(7202 * 400e3, rel=0.001)


class BusyMachine(SimClock):
    """Time passes between any two readings, as it does for a process that is pre-empted."""

    def __init__(self, pauses_s: Iterator[float]) -> None:
        self._pauses_s = pauses_s
        super().__init__()

    def mono_ns(self) -> int:
        self.advance(next(self._pauses_s))
        return super().mono_ns()

    def utc_ns(self) -> int:
        self.advance(next(self._pauses_s))
        return super().utc_ns()


@given(st.lists(st.sampled_from([0.0, 1e-6, 0.01, 0.5]), min_size=1, max_size=50))
def test_a_pre_empted_process_sees_no_ghosts(pauses_s: list[float]) -> None:
    """However long it is away between reading one clock and the other, a right wall clock is no event."""
    clock = BusyMachine(cycle(pauses_s))
    watch = ClockWatch(clock)
    assert watched(clock, watch, 10) == []


def test_the_closest_reading_counts() -> None:
    """Of several looks at both clocks the one that took least time is believed, and says how true it is."""
    clock = BusyMachine(iter([0.1, 0.2, 0.3, 0.1, 1e-5, 2e-5, 0.1, 0.2, 0.3]))
    look = look_at(clock)
    assert look.error_ns < 20_000
    assert abs(look.stamp.utc_ns - UTC_START_NS + 1_000_000_000 - look.stamp.mono_ns) <= look.error_ns


@given(st.floats(1, 86_400), st.floats(-100, 100), st.floats(-5, 5) | st.just(0.0))
def test_a_machine_that_slept_says_how_long(asleep_s: float, crystal_ppm: float, set_s: float) -> None:
    """Sleep is no step of the wall clock; a step after it is told beside it."""
    clock = SimClock()
    watch = ClockWatch(clock)
    found = watched(clock, watch, 3, crystal_ppm)
    clock.suspend(asleep_s)
    clock.step(set_s if abs(set_s) > 0.2 else 0.0)
    found += watched(clock, watch, 3, crystal_ppm)
    assert found[0].kind == "suspended"
    assert found[0].moved_ns == pytest.approx(asleep_s * 1e9, abs=2_000)
    assert [change.kind for change in found[1:]] == (["clock_step"] if abs(set_s) > 0.2 else [])


def test_an_epoch_says_what_both_clocks_read() -> None:
    """An epoch ties the boot's name to one instant on both clocks, and says how good the wall clock is."""
    clock = SimClock()
    assert begin_epoch(3, clock) == Epoch(3, clock.boot_id, clock.mono_ns(), clock.utc_ns(), None, None)
    clock.quality = Discipline(synchronised=True, error_ns=2_000_000)
    epoch = begin_epoch(4, clock)
    assert (epoch.synchronised, epoch.wall_error_ns) == (True, 2_000_000)


def test_epochs_of_earlier_versions_are_still_read() -> None:
    """A record without the quality of its anchor decodes."""
    old = b'{"epoch":0,"boot_id":"a","mono_ns":1,"utc_ns":2}'
    assert msgspec.json.decode(old, type=Epoch) == Epoch(0, "a", 1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex is Linux's")
def test_the_kernel_says_whether_the_wall_clock_is_right() -> None:
    """Synchronised comes with an error bound, and unsynchronised with none."""
    discipline = SystemClock().discipline()
    assert discipline.synchronised is not None
    assert (discipline.error_ns is not None) == discipline.synchronised
    assert SkewedClock(SystemClock(), 1, 0.0, 0).discipline().synchronised is False


def test_a_machine_is_known_by_its_board_then_by_its_system(tmp_path: Path) -> None:
    """The board's serial number wins and survives another card; no name leaves the machine as it is."""

    def write(path: str, text: str) -> str | None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="ascii")
        return machine_id(tmp_path)

    board = "10000000deadbeef"
    assert machine_id(tmp_path) is None
    assert write("etc/machine-id", "uninitialized\n") is None
    assert write("proc/cpuinfo", "Serial\t\t: 0000000000000000\n") is None
    by_system = write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    by_board = write("proc/cpuinfo", f"processor\t: 0\nSerial\t\t: {board}\nModel\t\t: Raspberry Pi 4\n")
    assert None is not by_system != by_board is not None
    assert write("sys/firmware/devicetree/base/serial-number", f"{board}\0") == by_board
    assert write("etc/machine-id", "fedcba9876543210fedcba9876543210\n") == by_board
    assert "0123456789" not in by_system and "deadbeef" not in by_board
