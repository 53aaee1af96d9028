"""The clock model, asked for truths that were drawn."""

from collections import Counter
from dataclasses import replace
from math import exp
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from common.messages import Exchange
from tests.sim import MS, US, Link, Machine, S, exchange_burst
from topside_daemon.fusion.bursts import Burst, usable
from topside_daemon.fusion.clockmodel import ClockModel, Estimate
from topside_daemon.fusion.tether import LinkMemory

pytestmark = pytest.mark.heavy

TOPSIDE = Machine("topside-a")
PI = Machine("pi-a", ahead_ns=5 * S, drift_ppm=40.0)
SYMMETRIC = Link(jitter_ns=0, spike_share=0.0)
FAST_START = [0, 3, 8, 18, 38, 78]


def burst_of(exchanges: list[Exchange]) -> Burst:
    burst = usable(exchanges, Counter())
    assert burst is not None
    return burst


def model_of(bursts: list[list[Exchange]], memory: LinkMemory | None = None) -> ClockModel:
    model = ClockModel(memory)
    for burst in bursts:
        model.take(burst_of(burst))
    return model


def bursts_at(rng: Random, pi: Machine, link: Link, moments_s: list[int]) -> list[list[Exchange]]:
    return [exchange_burst(rng, TOPSIDE, pi, link, s * S, k) for k, s in enumerate(moments_s)]


def moved(exchanges: list[Exchange], by_ns: int) -> list[Exchange]:
    """The same with the Pi's stamps set off."""
    return [
        structs.replace(one, t2_ns=(one.t2_ns or 0) + by_ns, t3_ns=(one.t3_ns or 0) + by_ns)
        for one in exchanges
    ]


def error_ns(model: ClockModel, pi: Machine, true_ns: int) -> int:
    estimate = model.at(pi.mono_ns(true_ns))
    return estimate.offset_ns - (pi.mono_ns(true_ns) - TOPSIDE.mono_ns(true_ns))


@pytest.mark.parametrize("ahead_ns", [0, 5 * S, -(10**18), 10**18])
@pytest.mark.parametrize("drift_ppm", [-100.0, 0.0, 100.0])
def test_a_straight_clock_is_recovered_to_nanoseconds(ahead_ns: int, drift_ppm: float) -> None:
    """Over symmetric paths offset and drift come back, however far apart the two clocks read."""
    pi = replace(PI, ahead_ns=ahead_ns, drift_ppm=drift_ppm)
    model = model_of(bursts_at(Random(1), pi, SYMMETRIC, list(range(0, 3600, 30))))
    assert max(abs(error_ns(model, pi, s * S)) for s in range(0, 3600, 7)) < 200
    assert model.at(pi.mono_ns(300 * S)).drift_ppm == pytest.approx(drift_ppm, abs=0.02)


@pytest.mark.parametrize("shift_ns", [10**18, -(10**15) + 1])
def test_only_differences_of_the_clocks_matter(shift_ns: int) -> None:
    """Adding any constant to the Pi's clock adds it to the offset, and changes nothing else."""
    moments = list(range(0, 300, 30))
    near = model_of(bursts_at(Random(3), PI, Link(), moments))
    pi = replace(PI, ahead_ns=PI.ahead_ns + shift_ns)
    far = model_of(bursts_at(Random(3), pi, Link(), moments))
    one, other = near.at(PI.mono_ns(100 * S)), far.at(pi.mono_ns(100 * S))
    assert (
        structs.replace(
            other,
            offset_ns=other.offset_ns - shift_ns,
            low_ns=other.low_ns - shift_ns,
            high_ns=other.high_ns - shift_ns,
        )
        == one
    )


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_model_asked_while_it_grows_ends_as_one_that_was_not(seed: int) -> None:
    """Live and offline agree to the last bit, whatever is asked in between."""
    rng = Random(seed)
    bursts = bursts_at(rng, PI, Link(spike_share=0.3), FAST_START)
    asked, plain = ClockModel(), model_of(bursts)
    for burst in bursts:
        asked.take(burst_of(burst))
        asked.at(PI.mono_ns(rng.randrange(0, 100 * S)))
    for s in (-10, 0, 1, 5, 30, 78, 200):
        assert asked.at(PI.mono_ns(s * S)) == plain.at(PI.mono_ns(s * S))


def test_an_uncertainty_never_shrinks_with_distance() -> None:
    """Outside the span of the bursts both intervals grow on both sides."""

    def widths(estimate: Estimate) -> tuple[int, int]:
        return estimate.sd_ns, estimate.high_ns - estimate.low_ns

    model = model_of(bursts_at(Random(4), PI, Link(), [0, 30, 60]))
    for moments in ((60, 90, 300, 3600, 40_000), (0, -30, -300, -3600, -40_000)):
        sd_ns, certified_ns = zip(*(widths(model.at(PI.mono_ns(s * S))) for s in moments), strict=True)
        assert list(sd_ns) == sorted(set(sd_ns))
        assert list(certified_ns) == sorted(set(certified_ns))


def test_one_burst_grows_with_what_crystals_may_do() -> None:
    """A single burst says its offset and, an hour away, no more than 85 ppm allow, and no less."""
    model = model_of(bursts_at(Random(5), PI, SYMMETRIC, [0]))
    at_burst, hour_later = model.at(PI.mono_ns(0)), model.at(PI.mono_ns(3600 * S))
    assert at_burst.drift_ppm == 0.0
    assert at_burst.drift_sd_ppm == pytest.approx(85.0)
    assert at_burst.sd_ns < 200 * US
    assert hour_later.sd_ns == pytest.approx(85e-6 * 3600 * S, rel=0.1)
    assert hour_later.low_ns <= PI.mono_ns(3600 * S) - 3600 * S <= hour_later.high_ns


def bent(true_ns: int) -> int:
    """A crystal that warms up: 5 ppm in five minutes."""
    return PI.mono_ns(true_ns) + round(2.5e-6 * (true_ns / S) ** 2 / 300 * S)


def test_a_bend_is_followed() -> None:
    """A drift that changes by 1 ppm a minute is within 50 us between bursts 30 s apart."""
    model = ClockModel()
    errors = []
    for s in range(0, 601, 30):
        sent, seen, back = s * S, s * S + MS // 2, s * S + MS
        model.take(
            burst_of([Exchange("", "PERIODIC", s, 0, "t", 0, sent, bent(seen), bent(seen), back, "p", 0)])
        )
    for s in range(0, 600, 7):
        estimate = model.at(bent(s * S))
        errors.append(abs(estimate.offset_ns - (bent(s * S) - s * S)))
        assert errors[-1] <= 2 * estimate.sd_ns
    assert max(errors) < 50 * US


def test_a_dive_while_nobody_measures_is_within_the_interval() -> None:
    """Half an hour of calm says nothing about the ten minutes of a lost link; and what comes back after is
    the same crystal."""

    def diving(true_ns: int) -> int:
        s = max(0.0, true_ns / S - 1800)
        return PI.mono_ns(true_ns) + round(5e-6 * (s - 400 * (1 - exp(-s / 400))) * S)

    def take_at(model: ClockModel, s: int) -> bool:
        rng = Random(s)
        up, down = (S // 1000 + round(rng.expovariate(1 / 2e5)) for _ in range(2))
        seen, back = s * S + up, s * S + up + down
        told = Exchange("", "PERIODIC", s, 0, "t", 0, s * S, diving(seen), diving(seen), back, "p", 0)
        return model.take(burst_of([told]))

    model = ClockModel()
    for s in range(0, 1801, 30):
        take_at(model, s)
    held = [model.at(diving(s * S)) for s in range(1830, 2400, 30)]
    errors = [
        abs(one.offset_ns - (diving(s * S) - s * S))
        for one, s in zip(held, range(1830, 2400, 30), strict=True)
    ]
    assert all(error <= 2.6 * one.sd_ns for error, one in zip(errors, held, strict=True))
    assert [take_at(model, s) for s in range(2400, 2520, 30)] == [True] * 4
    assert model.broken == []


@pytest.mark.parametrize("side", ["up_ns", "down_ns"])
def test_late_packets_of_one_direction_are_told_from_a_drift(side: str) -> None:
    """Bursts that queued 30 ms one way hardly move a model that has prompt ones before and after."""
    rng = Random(6)
    queued = replace(SYMMETRIC, jitter_ns=200 * US, **{side: 30 * MS})
    bursts = [
        exchange_burst(rng, TOPSIDE, PI, queued if 8 <= k < 14 else SYMMETRIC, k * 30 * S, k)
        for k in range(20)
    ]
    model = model_of(bursts)
    assert max(abs(error_ns(model, PI, s * S)) for s in range(0, 570, 10)) < 100 * US


@pytest.mark.parametrize("way_ms", [1, 5, 10, 20, 100])
@pytest.mark.parametrize("memory", [None, LinkMemory(40.0, {"udp": 1200 * US})])
def test_a_long_path_is_no_queue(way_ms: int, memory: LinkMemory | None) -> None:
    """However long an even path is, and whatever shorter one is remembered, its midpoint is believed."""
    link = Link(up_ns=way_ms * MS, down_ns=way_ms * MS, spike_share=0.0)
    model = model_of(bursts_at(Random(21), PI, link, [*FAST_START, *range(108, 900, 30)]), memory)
    assert max(abs(error_ns(model, PI, s * S)) for s in range(0, 900, 10)) < 50 * US


def test_a_queue_over_the_beginning_shows_in_the_interval() -> None:
    """Without a prompt exchange the error may be half the delay, and the deviation says so."""
    queued = replace(SYMMETRIC, up_ns=30 * MS)
    model = model_of(bursts_at(Random(7), PI, queued, FAST_START))
    error = abs(error_ns(model, PI, 60 * S))
    assert error > 5 * MS
    assert error < 1.96 * model.at(PI.mono_ns(60 * S)).sd_ns


@pytest.mark.parametrize("liars", [[0], [7], [0, 9, 15], [18, 19]])
def test_a_burst_that_contradicts_its_neighbours_is_not_used(liars: list[int]) -> None:
    """Stamps off by a second are refused and counted, at the beginning too, and change nothing."""
    model = ClockModel()
    for k, burst in enumerate(bursts_at(Random(8), PI, SYMMETRIC, list(range(0, 600, 30)))):
        model.take(burst_of(moved(burst, (1 + k) * S if k in liars else 0)))
    assert model.refused == len(liars)
    assert model.used == 20 - len(liars)
    assert model.broken == []
    assert abs(error_ns(model, PI, 300 * S)) < 20 * US


def test_exchanges_that_lie_by_milliseconds_are_left_out_of_their_burst() -> None:
    """A minority whose stamps were corrupted by less than its delay still cannot move the model."""
    rng = Random(9)
    model = ClockModel()
    for burst in bursts_at(rng, PI, replace(Link(), up_ns=3 * MS, down_ns=3 * MS), list(range(0, 900, 30))):
        model.take(burst_of([*burst[:6], *moved(burst[6:7], 2 * MS), *moved(burst[7:], -2 * MS)]))
    assert max(abs(error_ns(model, PI, s * S)) for s in range(0, 900, 10)) < 100 * US


def test_a_clock_that_jumps_breaks_the_model() -> None:
    """Three bursts that agree with each other and not with the model are another run of the clocks."""
    model = model_of(bursts_at(Random(10), PI, SYMMETRIC, FAST_START))
    later = bursts_at(Random(11), PI, SYMMETRIC, [108, 138, 168])
    taken = [model.take(burst_of(moved(burst, 5 * S))) for burst in later]
    assert taken == [False] * 3
    assert len(model.broken) == 3
    model.let_go()
    assert (model.refused, model.used) == (0, len(FAST_START))


def test_a_memory_is_a_prior_and_no_more() -> None:
    """A drift that is remembered right halves nothing away later; remembered wrong, evidence wins."""
    bursts = bursts_at(Random(12), PI, Link(), [0])
    right = model_of(bursts, LinkMemory(39.0, {"udp": 1200 * US}))
    wrong = model_of(bursts_at(Random(12), PI, Link(), FAST_START), LinkMemory(10.0))
    assert abs(error_ns(right, PI, 300 * S)) < 1 * MS
    assert right.at(PI.mono_ns(300 * S)).sd_ns > 2 * MS
    assert wrong.at(PI.mono_ns(60 * S)).drift_ppm == pytest.approx(40.0, abs=1.5)


@pytest.mark.parametrize("moments", [[0, 3, 8, 18, 38, 78], [0, 300]])
def test_a_memory_of_another_crystal_refuses_nothing(moments: list[int]) -> None:
    """What is remembered 150 ppm wrong gives way to the first burst that contradicts it."""
    model = model_of(bursts_at(Random(18), PI, SYMMETRIC, moments), LinkMemory(-110.0, {"udp": 1200 * US}))
    assert (model.used, model.refused) == (len(moments), 0)
    assert abs(error_ns(model, PI, 50 * S)) < 100 * US + 1.96 * model.at(PI.mono_ns(50 * S)).sd_ns
    assert model.evidence().memory == "contradicted"
    learned = model.learned(0)
    assert learned is not None
    assert learned.drift_ppm == pytest.approx(40.0, abs=1.0)


def test_a_liar_does_not_cost_the_memory() -> None:
    """A burst that contradicts every crystal is refused, whatever is remembered."""
    bursts = [burst_of(burst) for burst in bursts_at(Random(19), PI, SYMMETRIC, FAST_START)]
    lie = burst_of(moved(bursts_at(Random(20), PI, SYMMETRIC, [100])[0], S))
    model = ClockModel(LinkMemory(40.0))
    for burst in [*bursts, lie]:
        model.take(burst)
    assert (model.used, model.refused) == (len(FAST_START), 1)
    assert model.evidence().memory == "used"


def test_what_is_learned_is_what_the_next_session_may_assume() -> None:
    """Drift, smallest delay and the bias of HTTP are remembered, once the drift is known."""
    young = model_of(bursts_at(Random(13), PI, SYMMETRIC, [0]))
    model = model_of(bursts_at(Random(13), PI, SYMMETRIC, [*FAST_START, 108, 138]))
    learned = model.learned(utc_ns=7)
    assert young.learned(0) is None
    assert learned is not None
    assert learned.drift_ppm == pytest.approx(40.0, abs=0.1)
    assert learned.delay_floor_ns == {"udp": pytest.approx(1200 * US, rel=0.01)}
    assert (learned.http_bias_ns, learned.utc_ns) == (None, 7)


def by_http(exchanges: list[Exchange], bias_ns: int) -> list[Exchange]:
    """As an HTTP handler would have answered: the midpoint reads *bias_ns* too high."""
    return [structs.replace(one, transport="http") for one in moved(exchanges, bias_ns)]


def test_the_bias_of_http_is_measured_beside_udp_and_taken_away() -> None:
    """Calls beside bursts by UDP show what HTTP reads too much; bursts by HTTP alone are then right."""
    beside = [
        [*burst, *by_http(burst[-1:], 250 * US)] for burst in bursts_at(Random(14), PI, SYMMETRIC, FAST_START)
    ]
    alone = [by_http(burst, 250 * US) for burst in bursts_at(Random(15), PI, SYMMETRIC, [108, 138, 168, 198])]
    fixed = model_of([*beside, *alone])
    raw = model_of(alone)
    assert fixed.evidence().http_bias_ns == pytest.approx(250 * US, abs=10 * US)
    assert abs(error_ns(fixed, PI, 190 * S)) < 20 * US
    assert 200 * US < abs(error_ns(raw, PI, 190 * S)) < 1.96 * raw.at(PI.mono_ns(190 * S)).sd_ns


def test_one_answer_by_http_does_not_widen_the_rest() -> None:
    """Delays are compared within a transport; a fallback burst neither lowers nor raises another's."""
    moments = [*FAST_START, *range(108, 900, 30)]
    bursts = bursts_at(Random(22), PI, SYMMETRIC, moments)
    slow = [structs.replace(one, t4_ns=(one.t4_ns or 0) + MS, t1_ns=one.t1_ns - MS) for one in bursts[20]]
    plain = model_of(bursts)
    mixed = model_of([*bursts[:20], by_http(slow, 0), *bursts[21:]])
    for s in (100, 400, 530, 560, 800):
        one, other = plain.at(PI.mono_ns(s * S)), mixed.at(PI.mono_ns(s * S))
        assert other.sd_ns == pytest.approx(one.sd_ns, rel=0.1)


def test_what_http_reads_too_much_is_taken_from_the_bursts_before_too() -> None:
    """A session that begins by HTTP and goes on by UDP is right from its beginning once calls show it."""
    before = [by_http(burst, 250 * US) for burst in bursts_at(Random(23), PI, SYMMETRIC, FAST_START)]
    after = [
        [*burst, *by_http(burst[-1:], 250 * US)]
        for burst in bursts_at(Random(24), PI, SYMMETRIC, [108, 138, 168, 198])
    ]
    model = model_of([*before, *after])
    assert max(abs(error_ns(model, PI, s * S)) for s in range(0, 190, 5)) < 60 * US


def test_what_a_model_stands_on_is_told() -> None:
    """Residuals, delays and the walk of the drift come from the bursts in use."""
    evidence = model_of(bursts_at(Random(16), PI, Link(), list(range(0, 1800, 30)))).evidence()
    assert 0 < evidence.residual_rms_ns <= evidence.residual_max_ns < 500 * US
    assert 1200 * US <= evidence.delay_median_ns <= evidence.delay_p95_ns
    assert evidence.transport == "udp"
    assert 0 < evidence.wander < 1e-13
    assert evidence.contradictions == 0


def test_an_empty_model_says_so() -> None:
    """Without an exchange there is nothing to ask."""
    model = ClockModel()
    with pytest.raises(LookupError):
        model.at(0)
    assert (model.used, model.refused, model.delay_min_ns, model.span_ns) == (0, 0, 0, (0, 0))
    assert model.learned(0) is None
    assert model.unsettled_ns(30.0) == 0


def test_a_young_drift_and_a_changing_one_ask_for_more() -> None:
    """What the next burst may bring unforeseen falls as the drift becomes known."""
    moments = [*FAST_START, *range(108, 900, 30)]
    bursts = [burst_of(burst) for burst in bursts_at(Random(17), PI, SYMMETRIC, moments)]
    model, asked = ClockModel(), []
    for burst in bursts:
        model.take(burst)
        asked.append(model.unsettled_ns(30.0))
    assert asked[0] > 1 * MS
    assert asked[-1] < 20 * US
