"""Decision: exact against brute force, bounded, and dense when two samplers slip past each other."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim import MS
from tests.test_rhythm import tolerance_of
from topside_daemon.fusion.matching import Decision, Matcher

times = st.lists(st.integers(0, 60), max_size=7).map(sorted)


def match(
    inwater: list[int], surface: list[int], tolerance: int, max_lag: int | None = None
) -> list[tuple[int, int]]:
    matcher = Matcher(tolerance, max_lag)
    for time_ns in inwater:
        matcher.add_inwater(time_ns)
    for time_ns in surface:
        matcher.add_surface(time_ns)
    return [(i, j) for i, j in matcher.finish() if j is not None]


def brute_force(inwater: list[int], surface: list[int], tolerance: int) -> tuple[int, int]:
    """Most pairs and least total distance over every one-to-one pairing, by trying them all."""

    def best(i: int, free: frozenset[int]) -> tuple[int, int]:
        if i == len(inwater):
            return 0, 0
        found = best(i + 1, free)
        for j in free:
            distance = abs(inwater[i] - surface[j])
            if distance <= tolerance:
                pairs, total = best(i + 1, free - {j})
                found = max(found, (pairs + 1, total - distance))
        return found

    pairs, total = best(0, frozenset(range(len(surface))))
    return pairs, -total


def greedy(inwater: list[int], surface: list[int], tolerance: int) -> int:
    """Pairs found by always taking the earliest compatible reading, the most any rule can make."""
    pairs = j = 0
    for time_ns in inwater:
        while j < len(surface) and surface[j] < time_ns - tolerance:
            j += 1
        if j < len(surface) and surface[j] <= time_ns + tolerance:
            pairs, j = pairs + 1, j + 1
    return pairs


def total_ns(pairs: list[tuple[int, int]], inwater: list[int], surface: list[int]) -> int:
    return sum(abs(inwater[i] - surface[j]) for i, j in pairs)


@given(times, times, st.integers(0, 25))
def test_pairs_and_distance_are_those_of_brute_force(
    inwater: list[int], surface: list[int], tolerance: int
) -> None:
    """No one-to-one pairing has more pairs, or as many at a smaller total distance; order is kept."""
    pairs = match(inwater, surface, tolerance)
    assert (len(pairs), total_ns(pairs, inwater, surface)) == brute_force(inwater, surface, tolerance)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert all(abs(inwater[i] - surface[j]) <= tolerance for i, j in pairs)


@given(times, times, st.integers(0, 25), st.randoms(use_true_random=False))
def test_any_advance_of_the_watermarks_gives_the_same_pairs(
    inwater: list[int], surface: list[int], tolerance: int, rng: Random
) -> None:
    """How arrivals and watermarks interleave never matters to the result."""
    matcher = Matcher(tolerance)
    found: list[Decision] = []
    left = [list(inwater), list(surface)]
    until = [0, 0]
    for _ in range(40):
        side = rng.randrange(2)
        until[side] += rng.randrange(6)
        while left[side] and left[side][0] < until[side]:
            (matcher.add_surface if side else matcher.add_inwater)(left[side].pop(0))
        found += matcher.advance(*until)
    for time_ns in left[0]:
        matcher.add_inwater(time_ns)
    for time_ns in left[1]:
        matcher.add_surface(time_ns)
    found += matcher.finish()
    assert [one.inwater for one in found] == list(range(len(inwater)))
    assert [(i, j) for i, j in found if j is not None] == match(inwater, surface, tolerance)


@given(times, times, st.integers(0, 25), st.integers(0, 3))
def test_a_bounded_lag_still_pairs_one_to_one(
    inwater: list[int], surface: list[int], tolerance: int, max_lag: int
) -> None:
    """Forced decisions stay in order, within tolerance, and use each reading at most once."""
    pairs = match(inwater, surface, tolerance, max_lag)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert all(abs(inwater[i] - surface[j]) <= tolerance for i, j in pairs)
    assert len(pairs) <= greedy(inwater, surface, tolerance)


@pytest.mark.parametrize(
    ("inwater_period_ns", "surface_period_ns"), [(1033_800_000, 1033_100_000), (111 * MS, 111_130_000)]
)
def test_a_phase_slip_leaves_no_avoidable_gap(inwater_period_ns: int, surface_period_ns: int) -> None:
    """At 1 Hz and at 9 Hz at least 99 % pair while the phase runs through a whole period and more."""
    rng = Random(7)

    def arrivals(period_ns: int) -> list[int]:
        return sorted(k * period_ns + rng.randrange(15 * MS) for k in range(4000))

    inwater, surface = arrivals(inwater_period_ns), arrivals(surface_period_ns)
    inside = [time_ns for time_ns in inwater if time_ns <= surface[-1]]
    tolerance = tolerance_of(inwater, surface, 1 * MS)
    pairs = match(inside, surface, tolerance)
    assert len(pairs) >= 0.99 * len(inside)
    assert len(pairs) == greedy(inside, surface, tolerance)


@pytest.mark.parametrize("max_lag", [None, 16])
def test_memory_follows_the_undecided_run(max_lag: int | None) -> None:
    """Two sensors in lasting antiphase, the hardest case, keep a handful of readings undecided."""
    matcher, most = Matcher(65 * MS, max_lag), 0
    for k in range(3000):
        matcher.add_inwater(k * 111 * MS)
        matcher.add_surface(k * 111 * MS + 52 * MS)
        matcher.advance(k * 111 * MS, k * 111 * MS)
        most = max(most, matcher.undecided)
    assert most <= 20
