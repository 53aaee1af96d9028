"""The certified interval: always around the truth, never wider for knowing more."""

from collections.abc import Sequence
from math import exp, sin
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topside_daemon.fusion.certificate import Certificate


def offset(t: float) -> float:
    """A dive of 5 ppm and a slow wave of another, ns."""
    wet = max(0.0, t)
    return 30_000 * t + 5_000 * (wet - 300 * (1 - exp(-wet / 300))) + 1_000 * 1500 * sin(t / 1500)


def brackets(seed: int, moments: list[float]) -> list[tuple[float, float, float, float]]:
    rng = Random(seed)
    return [
        (
            t,
            offset(t) - rng.uniform(0, 2e6) - rng.choice((0, 0, 3e7)),
            t + 0.1,
            offset(t + 0.1) + rng.uniform(0, 2e6),
        )
        for t in moments
    ]


def certificate(told: Sequence[tuple[float, float, float, float]]) -> Certificate:
    made = Certificate()
    for one in told:
        made.add(*one)
    return made


def at(told: list[tuple[float, float, float, float]], t: float) -> tuple[float, float]:
    """The bounds at an instant, asked as the clock model asks."""
    times = [one[0] + 0.05 for one in told]
    left = sum(time <= t for time in times) - 1
    start = times[left] if left >= 0 else min(times[0], t)
    end = times[left + 1] if left + 1 < len(times) else max(times[-1], t)
    return certificate(told).between(left, start, end).at(t - start, end - t)


@given(
    st.integers(0, 10**6),
    st.lists(st.floats(0, 20_000), min_size=1, max_size=30, unique=True),
    st.floats(-5_000, 25_000),
)
def test_the_truth_is_inside(seed: int, moments: list[float], t: float) -> None:
    """Whatever the delays and wherever the bursts, between them and beyond."""
    low, high = at(brackets(seed, sorted(moments)), t)
    assert low <= offset(t) <= high


def test_bounds_grow_away_from_a_burst_and_shrink_towards_the_next() -> None:
    """Halfway between two bursts less is certain than at either."""
    told = [(float(t), offset(t) - 1e6, float(t), offset(t) + 1e6) for t in range(0, 1800, 120)]
    widths = []
    for t in (600.0, 660.0, 719.9):
        low, high = at(told, t)
        widths.append(high - low)
    assert widths[1] > widths[0]
    assert widths[1] > widths[2]


def test_a_narrow_bracket_helps_its_neighbours() -> None:
    """Bursts that queued for 30 ms are known by the prompt ones beside them."""
    told = [
        (t, offset(t) - (1e6 if k % 3 == 0 else 3e7), t, offset(t) + 1e6)
        for k, t in enumerate(map(float, range(0, 900, 30)))
    ]
    low, high = at(told, 405.0)
    assert high - low < 4e6


def test_one_burst_ages_by_what_two_crystals_may_do() -> None:
    """A minute away, 200 ppm to either side."""
    low, high = at([(0.0, -1e6, 0.0, 1e6)], 60.0)
    assert (low, high) == (-1e6 - 200_000 * 60, 1e6 + 200_000 * 60)


def test_brackets_that_exclude_each_other_say_so() -> None:
    """A jump of a clock between two bursts leaves no truth between them."""
    told = [(float(t), 5e9 * (t > 300) - 1e6, float(t), 5e9 * (t > 300) + 1e6) for t in range(0, 600, 30)]
    assert certificate(told).between(10, 300.0, 330.0).contradict
    assert not certificate(told[:10]).between(4, 120.0, 150.0).contradict


def test_what_a_rate_is_allowed_is_what_the_bounds_age_by() -> None:
    """Two tight brackets half an hour apart say the mean rate: a minute off, 10 ppm more to either side;
    an hour beyond the window 2 ppm more."""
    told = [(0.0, -1.0, 0.0, 1.0), (1800.0, -1.0, 1800.0, 1.0)]
    low, high = at(told, 60.0)
    assert low == pytest.approx(-600_000, rel=0.01)
    assert high == pytest.approx(600_000, rel=0.01)
    low, high = at(told, 1800.0 + 3600 * 1.5)
    assert high == pytest.approx(5400 * 12_000, rel=0.01)
    assert low == pytest.approx(-5400 * 12_000, rel=0.01)
