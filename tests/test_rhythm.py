"""How far apart the readings of one moment can be stamped, and how long a value is held."""

from itertools import pairwise

import pytest

from tests.sim import MS, S
from topside_daemon.fusion.columns import Summary
from topside_daemon.fusion.rhythm import Hold, Rhythm, tolerance_ns
from topside_daemon.fusion.settings import Settings


def rhythm_of(times: list[int]) -> Rhythm:
    return Rhythm.of(Summary.of(later - before for before, later in pairwise(times)))


def tolerance_of(
    inwater: list[int], surface: list[int], clock_sd_ns: float, settings: Settings | None = None
) -> int:
    return tolerance_ns(settings or Settings(), rhythm_of(inwater), rhythm_of(surface), clock_sd_ns)


def test_tolerance_is_half_the_slower_period_plus_what_blurs_the_stamps() -> None:
    """Steady sensors: half of the slower period and twice the clock sd; a gap changes nothing."""
    fast = [k * 111 * MS for k in range(900)]
    slow = [k * S for k in range(50)]
    assert tolerance_of(fast, slow, 3 * MS) == 506 * MS
    assert tolerance_of(fast, slow[:20] + slow[40:], 3 * MS) == 506 * MS


def test_jitter_widens_the_tolerance() -> None:
    """Arrival quanta of 15 ms on one side add 15 ms."""
    steady = [k * S for k in range(60)]
    quantised = [k * S + (k % 2) * 15 * MS for k in range(60)]
    assert tolerance_of(steady, quantised, 0) - tolerance_of(steady, steady, 0) >= 15 * MS


@pytest.mark.parametrize("inwater", [[], [5]])
def test_tolerance_of_streams_too_short_to_show_a_period(inwater: list[int]) -> None:
    """One reading or none still gives a positive tolerance."""
    assert tolerance_of(inwater, [], 0) == 500 * MS


def test_what_the_settings_say_wins() -> None:
    """Milliseconds before periods of the slower sensor, and those before what the stamps show."""
    fast, slow = [k * 111 * MS for k in range(900)], [k * S for k in range(50)]
    assert tolerance_of(fast, slow, 3 * MS, Settings(tolerance_periods=0.25)) == 250 * MS
    assert tolerance_of(fast, slow, 3 * MS, Settings(tolerance_periods=0.25, tolerance_ms=7)) == 7 * MS


def test_a_value_is_held_for_periods_of_the_surface_sensor_or_for_seconds() -> None:
    """Seconds win; what is fresh is never dropped as too old; without a rhythm a period is a second."""
    surface = rhythm_of([k * 111 * MS for k in range(900)])
    assert Hold.of(Settings(), surface) == Hold(222 * MS, 1110 * MS)
    assert Hold.of(Settings(fresh_s=10, stale_s=30), surface) == Hold(10 * S, 30 * S)
    assert Hold.of(Settings(fresh_s=10), surface) == Hold(10 * S, 10 * S)
    assert Hold.of(Settings(), rhythm_of([])) == Hold(2 * S, 10 * S)


def test_silences_are_counted_as_dropouts() -> None:
    """Intervals of more than three periods."""
    assert rhythm_of([k * S for k in range(50) if k not in (20, 30, 31, 32, 40, 41)]).dropouts == 1
