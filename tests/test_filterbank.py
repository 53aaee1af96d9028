"""The filter bank against the same estimate computed the long way."""

from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from topside_daemon.fusion.filterbank import UNSEEN, WANDERS, FilterBank, Witness

SIGMA = 12_000.0
PRIOR_SD = 85_000.0


def covariance(times: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    """Of an integrated random walk that starts with a drift of PRIOR_SD and any offset, ns^2."""
    first, second = np.minimum.outer(times, times), np.maximum.outer(times, times)
    walk = q * 1e18 * (first**2 * second / 2 - first**3 / 6)
    offset = 1e20  # nothing is known of it
    return np.asarray(offset + PRIOR_SD**2 * np.multiply.outer(times, times) + walk)


def conditioned(
    times: list[float], offsets: list[float], wanted: float, q: float
) -> tuple[float, float, float]:
    """Mean and variance at one instant given all measurements, and their log likelihood but for a
    constant: Gaussian conditioning, O(n^3)."""
    everything = np.array([*times, wanted])
    whole = covariance(everything, q)
    seen = whole[:-1, :-1] + SIGMA**2 * np.eye(len(times))
    y = np.array(offsets)
    gain = np.linalg.solve(seen, whole[:-1, -1])
    _, logdet = np.linalg.slogdet(seen)
    evidence = -(y @ np.linalg.solve(seen, y) + logdet) / 2
    return float(gain @ y), float(whole[-1, -1] - gain @ whole[:-1, -1]), float(evidence)


def unseen(times: list[float], wanted: float) -> float:
    """Variance of a walk that nobody has measured: tied at both neighbours, or free beyond the last."""
    if wanted >= times[-1]:
        return UNSEEN * 1e18 * (wanted - times[-1]) ** 3 / 3
    right = next(k for k, t in enumerate(times) if t > wanted)
    h, s = times[right] - times[right - 1], wanted - times[right - 1]
    return UNSEEN * 1e18 * (s * (h - s) / h) ** 3 / 3


def draw(seed: int) -> tuple[list[float], list[float]]:
    """Measurements of a walk, at least ten seconds apart so that each counts in full."""
    rng = Random(seed)
    t = offset = 0.0
    drift = rng.gauss(0, 20_000)
    times, offsets = [], []
    for _ in range(12):
        times.append(t)
        offsets.append(offset + rng.gauss(0, SIGMA))
        h = rng.uniform(10, 200)
        t, offset, drift = t + h, offset + h * drift, drift + rng.gauss(0, 100)
    return times, offsets


@pytest.mark.parametrize("seed", range(5))
def test_the_bank_is_the_gaussian_conditional(seed: int) -> None:
    """Filtering, smoothing, interpolating and averaging by evidence agree with one big matrix."""
    times, offsets = draw(seed)
    bank = FilterBank(0.0, PRIOR_SD)
    for t, offset in zip(times, offsets, strict=True):
        bank.take(t, [Witness(1.0, offset, SIGMA**2)])
    for wanted in (1.0, times[3], times[3] + 4.2, (times[7] + times[8]) / 2, times[-1] + 77.0):
        told = [conditioned(times, offsets, wanted, q) for q in WANDERS]
        weights = np.exp(np.array([one[2] for one in told]) - max(one[2] for one in told))
        weights /= weights.sum()
        mean = sum(w * m for w, (m, _, _) in zip(weights, told, strict=True))
        variance = sum(w * (v + (m - mean) ** 2) for w, (m, v, _) in zip(weights, told, strict=True))
        moments = bank.at(wanted)
        assert moments.offset == pytest.approx(mean, abs=200)
        assert moments.variance == pytest.approx(variance + unseen(times, wanted), rel=0.02)


def test_the_drift_is_the_slope_of_the_offset() -> None:
    """Between, at and beyond the measurements."""
    times, offsets = draw(7)
    bank = FilterBank(0.0, PRIOR_SD)
    for t, offset in zip(times, offsets, strict=True):
        bank.take(t, [Witness(1.0, offset, SIGMA**2)])
    for t in (-50.0, 5.0, times[4] + 1.0, times[-1] + 9.0):
        slope = (bank.at(t + 0.01).offset - bank.at(t - 0.01).offset) / 0.02
        assert bank.at(t).drift == pytest.approx(slope, abs=2.0)


def test_nothing_jumps_at_a_measurement() -> None:
    """Mean, drift and both variances pass through every node without a step."""
    times, offsets = draw(8)
    bank = FilterBank(0.0, PRIOR_SD)
    for t, offset in zip(times, offsets, strict=True):
        bank.take(t, [Witness(1.0, offset, SIGMA**2)])
    for t in times[1:]:
        before, after = bank.at(t - 1e-6), bank.at(t + 1e-6)
        for one, other in zip(before, after, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1.0)


def test_a_cut_bank_is_as_if_the_rest_had_never_been() -> None:
    """Forgetting the newest measurements leaves exactly the older ones' estimate."""
    times, offsets = draw(9)
    whole, short = FilterBank(0.0, PRIOR_SD), FilterBank(0.0, PRIOR_SD)
    for number, (t, offset) in enumerate(zip(times, offsets, strict=True)):
        whole.take(t, [Witness(1.0, offset, SIGMA**2)])
        if number < 5:
            short.take(t, [Witness(1.0, offset, SIGMA**2)])
    whole.at(times[3])
    whole.cut(5)
    assert len(whole) == 5
    assert whole.at(times[2] + 1.0) == short.at(times[2] + 1.0)
    assert whole.at(times[-1]) == short.at(times[-1])


def test_of_two_witnesses_the_likelier_is_believed() -> None:
    """An offset that one direction tells and the clock confirms is taken at its own precision."""
    bank = FilterBank(0.0, 1000.0)
    for t in (0.0, 30.0, 60.0, 90.0):
        bank.take(t, [Witness(1.0, 0.0, SIGMA**2)])
    known = bank.at(120.0).variance
    both = [Witness(0.5, 5e6, SIGMA**2), Witness(0.5, 0.0, SIGMA**2)]
    bank.take(120.0, both)
    assert abs(bank.at(120.0).offset) < 100
    assert bank.at(120.0).variance < known
    lost = FilterBank(0.0, PRIOR_SD)
    lost.take(0.0, both)
    assert lost.at(0.0).offset == pytest.approx(2.5e6)
    assert lost.at(0.0).variance == pytest.approx(2.5e6**2, rel=0.01)


def test_a_day_without_a_measurement_loses_no_digits() -> None:
    """A perfect line over a day is a line in between, to a nanosecond."""
    bank = FilterBank(0.0, PRIOR_SD)
    for t in (*range(0, 600, 30), *range(86_400, 87_000, 30)):
        bank.take(float(t), [Witness(1.0, t * 50_000.0, SIGMA**2)])
    for t in (100.0, 30_000.0, 43_200.0, 86_100.0):
        assert bank.at(t).offset == pytest.approx(t * 50_000.0, abs=1000)
        assert bank.at(t).variance > 0
