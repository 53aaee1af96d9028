"""The light that simulated sensors see: sun, clouds, a dive and waves, the same in every process.

Everything is a function of a seed and the time since an origin, in s, so that two sensors in two
processes that agree on both see the same clouds. Depth in m, positive down; light in the sensor's
own unit, about 1500 in the open sun.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import Literal, NamedTuple

from common.simulator.texts import Sample

Role = Literal["inwater", "surface"]

SUN = 1500.0
ATTENUATION_PER_M = 0.13  # diffuse attenuation of clear coastal water: 1/e at 7.7 m
INTERFACE = 0.96  # what passes through the water's surface
SHALLOW_M, DEEP_M = 0.5, 25.0
DIVE_S = 180.0  # down and up again
FLICKER_DEPTH_M = 6.0  # waves focus light near the surface; the effect is down to 1/e here
POINTS = 5  # the light is taken this often within one average
NOISE = 5e-4  # relative, one average
NOISE_FLOOR = 1.5e-5


class Wave(NamedTuple):
    amplitude: float
    period_s: float
    phase: float


def _waves(rng: Random, count: int, shortest_s: float, longest_s: float) -> list[Wave]:
    """Waves with periods spread evenly in the logarithm and an rms sum of 1."""
    ratio = longest_s / shortest_s
    return [
        Wave(math.sqrt(2 / count), shortest_s * ratio ** rng.random(), rng.uniform(0, math.tau))
        for _ in range(count)
    ]


def _height(waves: Sequence[Wave], at_s: float) -> float:
    return sum(a * math.sin(math.tau * at_s / period_s + phase) for a, period_s, phase in waves)


class LightField:
    """Light above and below the water as a function of time since the origin."""

    def __init__(self, seed: int) -> None:
        rng = Random(f"{seed}/light")
        self._sun_phase = rng.uniform(0, math.tau)
        self._clouds = _waves(rng, 6, 25.0, 400.0)
        self._sea = _waves(rng, 6, 0.4, 4.0)
        self._bob = _waves(rng, 3, 4.0, 15.0)

    def surface(self, at_s: float) -> float:
        """Light above the water: a sun that moves in an hour, and clouds that take up to 70 % of it."""
        sun = SUN * (1 + 0.05 * math.sin(math.tau * at_s / 3600 + self._sun_phase))
        cover = 1 / (1 + math.exp(-3 * (_height(self._clouds, at_s) - 0.8)))
        return sun * (1 - 0.7 * cover)

    def depth_m(self, at_s: float) -> float:
        """Depth of the vehicle: from 0.5 m down to 25 m and back every 3 minutes, bobbing by centimetres."""
        down = (1 - math.cos(math.tau * at_s / DIVE_S)) / 2
        return SHALLOW_M + (DEEP_M - SHALLOW_M) * down + 0.05 * _height(self._bob, at_s)

    def underwater(self, at_s: float, depth_m: float) -> float:
        """Light at a depth: exponential attenuation, and flicker that fades with depth."""
        flicker = 0.25 * math.exp(-depth_m / FLICKER_DEPTH_M) * _height(self._sea, at_s)
        below = self.surface(at_s) * INTERFACE * math.exp(-ATTENUATION_PER_M * depth_m)
        return below * math.exp(flicker)

    def mean(self, role: Role, start_s: float, end_s: float) -> float:
        """The light a sensor averages between two instants, without its noise."""
        total = 0.0
        for point in range(POINTS):
            at_s = start_s + (end_s - start_s) * (point + 0.5) / POINTS
            light = self.surface(at_s) if role == "surface" else self.underwater(at_s, self.depth_m(at_s))
            total += light / POINTS
        return total


class LightSensor:
    """One sensor in the light field: callable as the firmware's `sense`.

    Args:
        field: the light it shares with others.
        role: above the water or on the vehicle.
        origin_ns: the field's time zero on the clock of the instants it will be called with.
        seed: of its own noise; differs from sensor to sensor.
    """

    def __init__(self, field: LightField, role: Role, origin_ns: int, seed: str) -> None:
        self._field = field
        self._role: Role = role
        self._origin_ns = origin_ns
        self._rng = Random(f"{seed}/noise")

    def __call__(self, start_ns: int, end_ns: int) -> Sample:
        start_s, end_s = (start_ns - self._origin_ns) / 1e9, (end_ns - self._origin_ns) / 1e9
        light = self._field.mean(self._role, start_s, end_s)
        noisy = light * (1 + NOISE * self._rng.gauss()) + NOISE_FLOOR * self._rng.gauss()
        in_air = self._role == "surface"
        warm_up = 3.0 * (1 - math.exp(-max(end_s, 0.0) / 900))
        return Sample(
            value=max(noisy, 1e-6),
            temp_c=(24.0 if in_air else 17.5) + warm_up + 0.05 * self._rng.gauss(),
            vin=7.505 + 0.006 * self._rng.gauss(),
            depth_m=0.0 if in_air else self._field.depth_m((start_s + end_s) / 2),
        )
