"""Dejittering, asked for the instants at which drawn sensors really sent."""

from collections.abc import Callable
from itertools import groupby, pairwise
from math import ceil, sqrt
from operator import attrgetter
from random import Random
from statistics import fmean, median
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.messages import Reading
from tests.sim.drawn import reading
from topside_daemon.fusion.dejitter import BROKEN, UNEVEN, Run, dejitter

pytestmark = pytest.mark.heavy

S, MS = 1_000_000_000, 1_000_000
ONE_HZ, NINE_HZ = 1.0338, 0.1117  # periods in s of 125 and of 12 averages at 125 Hz

Delay = Callable[[Random, float], float]  # (dice, true instant in s) -> seconds until the stamp


def usb(_: Random, true_s: float) -> float:
    """Bytes come at the ticks of a 15.6 ms timer."""
    return ceil(true_s / 0.0156) * 0.0156 - true_s


def busy(rng: Random, _: float) -> float:
    """A machine with other things to do: 1 ms in the mean, and 20 ms more for one reading in 20."""
    return rng.expovariate(1000) + 0.02 * (rng.random() < 0.05)


def stalled(rng: Random, true_s: float) -> float:
    """The same, and up to a second for some."""
    return busy(rng, true_s) + rng.uniform(0.05, 1) * (rng.random() < 0.003)


def at(mono_ns: int, seq: int, epoch: int = 0, mode: str = "freerun") -> Reading:
    return replace(reading(seq, epoch), mono_ns=mono_ns, mode=mode)


def truth(
    rng: Random, rows: int, period_s: float, wander_per_s: float = 0.0, walk_s: float = 0.0
) -> list[float]:
    """Instants in s of a sampler whose period grows by wander_per_s a second; walk_s: of each pause."""
    instants_s = [rng.random()]
    for _ in range(rows - 1):
        pause_s = period_s * (1 + wander_per_s * instants_s[-1]) + rng.gauss(0, walk_s)
        instants_s.append(instants_s[-1] + pause_s)
    return instants_s


def arrivals(rng: Random, true_s: list[float], delay: Delay, seqs: list[int] | None = None) -> list[Reading]:
    """Readings in the order of their numbers, none before the one before it."""
    found: list[Reading] = []
    stamp_s = 0.0
    for seq, instant_s in zip(seqs or range(len(true_s)), true_s, strict=True):
        stamp_s = max(stamp_s, instant_s + delay(rng, instant_s))
        found.append(at(round(stamp_s * S), seq))
    return found


def rms_ms(times_ns: list[int], true_s: list[float]) -> float:
    """Of the errors around their mean."""
    errors = [time_ns / MS - instant_s * 1e3 for time_ns, instant_s in zip(times_ns, true_s, strict=True)]
    mean = fmean(errors)
    return sqrt(fmean((error - mean) ** 2 for error in errors))


class Dejittered(NamedTuple):
    """Of a whole record: an instant for each reading, and the readings whose stamps stand, by reason."""

    times_ns: list[int]
    runs: list[Run]
    left: dict[str, int]


def whole(readings: list[Reading]) -> Dejittered:
    """Epoch by epoch."""
    found = Dejittered([], [], {})
    for _, group in groupby(readings, key=attrgetter("epoch")):
        epoch = list(group)
        for run, instants_ns in dejitter([one.seq for one in epoch], stamps(epoch)):
            found.times_ns.extend(instants_ns)
            if isinstance(run, Run):
                found.runs.append(run)
            else:
                found.left[run.reason] = found.left.get(run.reason, 0) + len(instants_ns)
    return found


def stamps(readings: list[Reading]) -> list[int]:
    return [one.mono_ns for one in readings]


def smoothed(readings: list[Reading]) -> Dejittered:
    found = whole(readings)
    assert found.runs, found.left
    return found


def refused(readings: list[Reading]) -> str:
    found = whole(readings)
    assert not found.runs and found.times_ns == stamps(readings)
    return max(found.left, key=found.left.__getitem__, default="")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("period_s", [ONE_HZ, NINE_HZ])
@pytest.mark.parametrize("wander_per_s", [0.0, 3.3e-8, -3.3e-8])
def test_the_ticks_of_a_usb_adapter_are_taken_away(seed: int, period_s: float, wander_per_s: float) -> None:
    """4.5 ms rms become less than 0.7, also while the sensor warms by 60 ppm in half an hour."""
    rng = Random(seed)
    true_s = truth(rng, 2000, period_s * rng.uniform(0.99, 1.01), wander_per_s)
    readings = arrivals(rng, true_s, usb)
    found = smoothed(readings)
    assert rms_ms(stamps(readings), true_s) > 4.4
    assert rms_ms(found.times_ns, true_s) < 0.7
    assert found.left == {}
    assert found.runs[0].before_rms_s == pytest.approx(4.5e-3, rel=0.02)
    assert found.runs[0].after_rms_s < 1e-3


@pytest.mark.parametrize("delay", [busy, stalled])
@pytest.mark.parametrize("period_s", [ONE_HZ, NINE_HZ])
def test_late_readings_bend_nothing(delay: Delay, period_s: float) -> None:
    """Of a busy machine's delays, with 5 % spikes and stalls of a second, less than a tenth is left."""
    rng = Random(7)
    true_s = truth(rng, 2000, period_s, 3.3e-8)
    readings = arrivals(rng, true_s, delay)
    found = smoothed(readings)
    assert rms_ms(found.times_ns, true_s) < min(0.2, rms_ms(stamps(readings), true_s) / 10)
    assert found.left == {}


@given(seed=st.integers(0, 2**32), rows=st.integers(64, 400), period_s=st.sampled_from([ONE_HZ, NINE_HZ]))
def test_what_may_be_relied_on(seed: int, rows: int, period_s: float) -> None:
    """A drawn record keeps its median, its order and its bound: nothing moves later by more than is said."""
    rng = Random(seed)
    true_s = truth(rng, rows, period_s * rng.uniform(0.9, 1.1))
    readings = arrivals(rng, true_s, stalled)
    found = whole(readings)
    if not found.runs:
        assert set(found.left) <= {BROKEN, UNEVEN}
        return
    moves_ns = [time_ns - one.mono_ns for time_ns, one in zip(found.times_ns, readings, strict=True)]
    assert all(before <= after for before, after in pairwise(found.times_ns))
    assert max(moves_ns) <= max(run.late_s for run in found.runs) * S + 1
    if len(found.runs) == 1 and not found.left:
        assert abs(median(moves_ns)) <= 1
        assert rms_ms(found.times_ns, true_s) < rms_ms(stamps(readings), true_s) / 3


def test_no_run_reaches_over_its_neighbours() -> None:
    """A machine that hung for seconds splits the record, and the order of its readings still holds."""
    for seed in range(40):
        rng = Random(seed)
        true_s = truth(rng, 400, NINE_HZ)
        hung_s = true_s[200] + rng.uniform(2, 6)
        readings = [
            one if seq < 200 else replace(one, mono_ns=max(one.mono_ns, round(hung_s * S)))
            for seq, one in enumerate(arrivals(rng, true_s, busy))
        ]
        found = smoothed(readings)
        assert len(found.runs) == 2
        assert all(before <= after for before, after in pairwise(found.times_ns))


def test_no_run_reaches_over_a_stamp_that_stands() -> None:
    """Not even when the numbers jump and the next reading comes at once."""
    rng = Random(9)
    readings = arrivals(rng, truth(rng, 160, NINE_HZ), usb)
    for end in range(100, 160):
        next_ns = readings[end - 1].mono_ns + 1
        found = smoothed([*readings[:end], at(next_ns, 10_000)])
        assert found.times_ns[-1] == next_ns >= found.times_ns[-2]
        assert found.left == {BROKEN: 1}


@pytest.mark.parametrize("period_s", [ONE_HZ, NINE_HZ])
def test_numbers_that_were_lost_do_not_matter(period_s: float) -> None:
    """One reading in a hundred is missing, and once fifty: the run goes on across every hole."""
    rng = Random(3)
    true_s = truth(rng, 2000, period_s)
    kept = [seq for seq in range(2000) if rng.random() > 0.01 and not 700 <= seq < 750]
    found = smoothed(arrivals(rng, [true_s[seq] for seq in kept], usb, kept))
    assert len(found.runs) == 1
    assert rms_ms(found.times_ns, [true_s[seq] for seq in kept]) < 0.7


@pytest.mark.parametrize("period_s", [ONE_HZ, NINE_HZ])
def test_readings_that_never_got_a_number_cost_the_runs_around_them(period_s: float) -> None:
    """One line in a hundred is lost before it is numbered: worse than half is never, tens of ms never."""
    rng = Random(3)
    true_s = [instant_s for instant_s in truth(rng, 3000, period_s) if rng.random() > 0.01]
    readings = arrivals(rng, true_s, usb)
    found = smoothed(readings)
    assert len(found.runs) > 10
    assert set(found.left) == {BROKEN}
    assert rms_ms(found.times_ns, true_s) < 3
    worst_ms = max(
        abs(time_ns / MS - instant_s * 1e3) for time_ns, instant_s in zip(found.times_ns, true_s, strict=True)
    )
    assert worst_ms < 20


@pytest.mark.parametrize("away_s", [2.17, 2.8, 60.3])
@pytest.mark.parametrize("then_s", [ONE_HZ, NINE_HZ])
def test_a_rebooted_sensor_begins_a_run_of_its_own(away_s: float, then_s: float) -> None:
    """Its phase is another, its setting too perhaps: each side keeps its own line."""
    rng = Random(5)
    before_s = truth(rng, 500, ONE_HZ)
    after_s = [before_s[-1] + away_s + instant_s for instant_s in truth(rng, 500, then_s)]
    found = smoothed(arrivals(rng, before_s + after_s, usb))
    assert [(run.first_seq, run.last_seq) for run in found.runs] == [(0, 499), (500, 999)]
    assert [run.period_s for run in found.runs] == pytest.approx([ONE_HZ, then_s], rel=1e-4)
    assert rms_ms(found.times_ns[:500], before_s) < 1
    assert rms_ms(found.times_ns[500:], after_s) < 1


def test_another_boot_of_the_machine_begins_a_run_of_its_own() -> None:
    """A clock that starts again at zero, and numbers that jump by ten thousand, are no pace."""
    rng = Random(6)
    true_s = truth(rng, 400, NINE_HZ)
    first = arrivals(rng, true_s, usb)
    second = [replace(one, epoch=1, seq=one.seq + 10_400, mono_ns=one.mono_ns - S // 2) for one in first]
    third = [replace(one, epoch=1, seq=one.seq + 10_000, mono_ns=one.mono_ns + 60 * S) for one in second]
    found = smoothed(first + second + third)
    assert [run.first_seq for run in found.runs] == [0, 10_400, 20_400]
    for part in range(3):
        assert rms_ms(found.times_ns[400 * part : 400 * part + 400], true_s) < 0.7


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("change", [0.01, 0.005, 0.002, -0.002, -0.005, -0.01])
def test_a_period_that_changes_on_the_way_does_no_harm(change: float, seed: int) -> None:
    """No crystal can do that without a pause: a percent is refused; of less, what is not is followed."""
    rng = Random(seed)
    before_s = truth(rng, 500, ONE_HZ)
    after_s = [before_s[-1] + ONE_HZ * (1 + change) * step for step in range(1, 500)]
    readings = arrivals(rng, before_s + after_s, usb)
    found = whole(readings)
    if not found.runs:
        assert set(found.left) == {UNEVEN}
    else:
        assert abs(change) < 0.01
        assert rms_ms(found.times_ns, before_s + after_s) < rms_ms(stamps(readings), before_s + after_s) / 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("delay", "walk_s"), [(busy, 0.0005), (busy, 0.002), (usb, 0.002), (usb, 0.005)])
def test_a_sender_without_a_pace_is_left_alone(seed: int, delay: Delay, walk_s: float) -> None:
    """Whoever waits a little more or less after each reading has no line to be smoothed onto."""
    rng = Random(seed)
    assert refused(arrivals(rng, truth(rng, 2000, ONE_HZ, walk_s=walk_s), delay)) in (UNEVEN, BROKEN)


@pytest.mark.parametrize(
    ("readings", "why"),
    [
        ([], ""),
        ([at(seq * S, seq) for seq in range(63)], "breaks off"),
        ([at(5, seq) for seq in range(200)], "breaks off"),
        ([at(seq * S, 7) for seq in range(200)], "breaks off"),
        ([at(seq * S, 200 - seq) for seq in range(200)], "breaks off"),
        ([at(row // 2 * S, row // 2) for row in range(400)], "breaks off"),
    ],
)
def test_what_cannot_be_dejittered_is_refused(readings: list[Reading], why: str) -> None:
    """With the reason, whatever it is."""
    assert why in refused(readings)


@given(
    st.lists(
        st.builds(at, st.integers(0, 2**62), st.integers(0, 2**40), st.integers(0, 2)),
        min_size=1,
        max_size=200,
    )
)
def test_nonsense_is_survived(readings: list[Reading]) -> None:
    """Random stamps and numbers give a refusal, or one instant for each."""
    found = whole(sorted(readings, key=lambda one: (one.epoch, one.mono_ns)))
    assert len(found.times_ns) == len(readings)


def test_what_is_even_already_stays() -> None:
    """A record without jitter comes back to the nanosecond."""
    readings = [at(10**15 + seq * 111_700_000, seq) for seq in range(500)]
    assert smoothed(readings).times_ns == stamps(readings)
