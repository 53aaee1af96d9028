"""Crystals: how far a free-running clock gets ahead of true time while its machine warms, cools and ages.

Positive is fast. Frequencies are in parts per million, true time begins at 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.sim import S

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID_S = 1
AFTER_S = 900  # a crystal runs on for answers and readings that come late


@dataclass(frozen=True)
class Crystal:
    """A clock's frequency by the second; its phase is linear in between.

    ppm: fractional frequency of each second. ahead_ns: what it has gained by the seconds' edges, one more.
    """

    ppm: Floats
    ahead_ns: Floats

    @classmethod
    def of(cls, ppm: Floats) -> "Crystal":
        gained_ns = np.cumsum(ppm) * (GRID_S * 1e3)
        return cls(ppm, np.concatenate(([0.0], gained_ns)))

    @property
    def _edges_ns(self) -> Floats:
        return np.arange(float(len(self.ahead_ns))) * (GRID_S * S)

    def reading_ns(self, true_ns: Ints) -> Ints:
        """What it has counted since true time 0."""
        ahead = np.interp(true_ns, self._edges_ns, self.ahead_ns)
        return true_ns + np.rint(ahead).astype(np.int64)

    def true_ns(self, reading_ns: Ints) -> Ints:
        """The inverse of `reading_ns`, to 1 ns."""
        edges = self._edges_ns
        return np.rint(np.interp(reading_ns, edges + self.ahead_ns, edges)).astype(np.int64)

    def ppm_at(self, true_s: float) -> float:
        return float(self.ppm[min(len(self.ppm) - 1, int(true_s / GRID_S))])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def pi_crystal(rng: np.random.Generator, duration_s: float, walk_per_root_s: float | None = None) -> Crystal:
    """The bare crystal of a Pi that dives.

    Skew 1..100 ppm, a dive that moves it by 1..5 ppm (about 0.25 ppm per kelvin) with a time constant of
    200..700 s, another such change about every hour, and a random walk of the frequency, by default
    5e-10..5e-9 per square root of a second.
    """
    sign = rng.choice((-1.0, 1.0))
    walk = log_uniform(rng, 5e-10, 5e-9) if walk_per_root_s is None else walk_per_root_s
    seconds = _seconds(duration_s)
    ppm = np.full(len(seconds), sign * log_uniform(rng, 1.0, 100.0))
    for number, at_s in enumerate(_changes_s(rng, duration_s)):
        moved = rng.choice((-1.0, 1.0)) * rng.uniform(1.0, 5.0) / (3.0 if number else 1.0)
        ppm += _settling(seconds - at_s, moved, rng.uniform(200.0, 700.0))
    return Crystal.of(ppm + _walk(rng, len(seconds), walk))


def topside_crystal(rng: np.random.Generator, duration_s: float) -> Crystal:
    """A machine on deck: within 20 ppm, half a ppm up and down with the day, and a slow random walk."""
    seconds = _seconds(duration_s)
    day = 0.5 * np.sin(2 * np.pi * (seconds / 86_400 + rng.uniform()))
    return Crystal.of(rng.uniform(-20.0, 20.0) + day + _walk(rng, len(seconds), 5e-10))


def _seconds(duration_s: float) -> Floats:
    return np.arange(0.0, duration_s + AFTER_S, GRID_S)


def _changes_s(rng: np.random.Generator, duration_s: float) -> list[float]:
    """When the temperature changes: at the dive, early in the session, and about every hour from then on."""
    changes = [rng.uniform(0.0, min(600.0, duration_s / 3))]
    while changes[-1] < duration_s:
        changes.append(changes[-1] + rng.uniform(1800.0, 5400.0))
    return changes[:-1]


def _settling(since_s: Floats, moved_ppm: float, time_constant_s: float) -> Floats:
    settled: Floats = -np.expm1(-np.maximum(0.0, since_s) / time_constant_s)
    return moved_ppm * settled


def _walk(rng: np.random.Generator, steps: int, per_root_s: float) -> Floats:
    walked: Floats = np.cumsum(rng.standard_normal(steps)) * (per_root_s * 1e6 * GRID_S**0.5)
    return walked
