"""Stamps, a clock that is wrong on purpose, and the watch for a wall clock that was set."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import SkewedClock, StepWatch, SystemClock, begin_epoch
from common.messages import Epoch
from tests.sim.clocks import SimClock

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


@given(st.floats(0.05, 3600) | st.floats(-3600, -0.05), st.floats(0, 10), st.floats(-500, 500), st.booleans())
def test_a_step_is_seen_once_and_measured(
    step_s: float, elapsed_s: float, slew_ppm: float, later: bool
) -> None:
    """Steps of 50 ms to an hour, either way, in whatever part of the interval they fall."""
    clock = SimClock()
    watch = StepWatch(clock)
    if later:
        clock.advance(elapsed_s, slew_ppm)
    clock.step(step_s)
    if not later:
        clock.advance(elapsed_s, slew_ppm)
    assert watch.look() == pytest.approx(step_s * 1e9, abs=elapsed_s * 500_000 + 2_000)
    clock.advance(1.0)
    assert watch.look() == 0


@given(st.lists(st.tuples(st.floats(0, 86_400), st.floats(-500, 500)), max_size=50))
def test_a_slew_is_no_step(pieces: list[tuple[float, float]]) -> None:
    """A wall clock slewed by up to 500 ppm, looked at however seldom, was not stepped."""
    clock = SimClock()
    watch = StepWatch(clock)
    for seconds, slew_ppm in pieces:
        clock.advance(seconds, slew_ppm)
        assert watch.look() == 0


def test_an_epoch_says_what_both_clocks_read() -> None:
    """An epoch ties the boot's name to one instant on both clocks."""
    clock = SimClock()
    assert begin_epoch(3, clock) == Epoch(3, clock.boot_id, clock.mono_ns(), clock.utc_ns())
