"""The light that simulated sensors share."""

import json
import subprocess
import sys

import pytest

from common.simulator.lightfield import DEEP_M, LightField, LightSensor

SCRIPT = """
import json
from common.simulator.lightfield import LightField
field = LightField(7)
seen = [field.mean(role, t, t + 1) for role in ("surface", "inwater") for t in range(50)]
print(json.dumps(seen))
"""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_two_processes_with_one_seed_see_the_same_light() -> None:
    """The field is a function of seed and time only, to the last bit, also between processes."""
    command = [sys.executable, "-c", SCRIPT]
    first, second = (subprocess.run(command, check=True, capture_output=True).stdout for _ in range(2))
    assert first == second
    other = LightField(8)
    assert json.loads(first)[0] != other.mean("surface", 0, 1)


def test_light_is_bright_above_and_fades_with_depth() -> None:
    """About 1500 above in the sun, tens to a hundred at the bottom, never zero or less."""
    field = LightField(1)
    above = [field.surface(t) for t in range(3600)]
    assert 1200 < max(above) < 1600 and min(above) > 0
    below = [(field.depth_m(t / 10), field.underwater(t / 10, field.depth_m(t / 10))) for t in range(1800)]
    deep = [light for depth_m, light in below if depth_m > DEEP_M - 1]
    shallow = [light for depth_m, light in below if depth_m < 1.5]
    assert 10 < mean(deep) < 150 < mean(shallow)
    assert min(light for _, light in below) > 0


def test_flicker_is_stronger_near_the_surface() -> None:
    """At half a metre waves move the light by tens of percent, at 20 m by less than a few."""
    field = LightField(2)

    def spread(depth_m: float) -> float:
        lights = [field.underwater(t / 50, depth_m) / field.surface(t / 50) for t in range(1000)]
        return (max(lights) - min(lights)) / mean(lights)

    assert spread(0.5) > 0.4 > 0.1 > spread(20.0)


def test_both_sensors_see_the_same_cloud() -> None:
    """Far from the waves, light below follows light above exactly."""
    field = LightField(3)
    ratios = [field.underwater(t, 40.0) / field.surface(t) for t in range(0, 600, 10)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.01)
    assert max(field.surface(t) for t in range(600)) > 1.2 * min(field.surface(t) for t in range(600))


def test_a_sensor_measures_the_mean_of_its_window_with_noise_of_its_own() -> None:
    """Two sensors in one place agree within their noise, and are not the same."""
    field, origin_ns = LightField(4), 5_000_000_000
    one = LightSensor(field, "surface", origin_ns, "one")
    two = LightSensor(field, "surface", origin_ns, "two")
    windows = [(origin_ns + t * 10**9, origin_ns + (t + 1) * 10**9) for t in range(100)]
    pairs = [(one(*window).value, two(*window).value) for window in windows]
    truth = [field.mean("surface", t, t + 1) for t in range(100)]
    assert all(a != b for a, b in pairs)
    assert all(a == pytest.approx(c, rel=0.004) for (a, _), c in zip(pairs, truth, strict=True))


def test_the_same_sensor_measures_the_same_again() -> None:
    """Noise is seeded: the same calls give the same samples."""
    sensors = [LightSensor(LightField(5), "inwater", 0, "s/1") for _ in range(2)]
    first, second = ([sensor(t, t + 10**9) for t in range(0, 10**10, 10**9)] for sensor in sensors)
    assert first == second
    assert all(sample.value > 0 and sample.depth_m > 0 for sample in first)
