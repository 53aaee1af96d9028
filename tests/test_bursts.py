"""One burst of exchanges: what it proves, and what is refused of it."""

from collections import Counter
from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from common.messages import Exchange
from tests.sim import MS, Link, Machine, S, exchange_burst
from topside_daemon.fusion.bursts import Bracket, bracket_of, group_bursts, tightest, usable

TOPSIDE = Machine("topside-a")
PI = Machine("pi-a", ahead_ns=5 * S, drift_ppm=40.0)
SYMMETRIC = Link(jitter_ns=0, spike_share=0.0)


def burst(rng: Random, link: Link = SYMMETRIC, at_s: int = 0) -> list[Exchange]:
    return exchange_burst(rng, TOPSIDE, PI, link, at_s * S, 0)


def true_offset_ns(pi_mono_ns: int) -> int:
    true_ns = round((pi_mono_ns - PI.ahead_ns) / (1 + PI.drift_ppm / 1e6))
    return pi_mono_ns - true_ns


@given(st.integers(0, 10**6))
def test_both_bounds_of_a_burst_hold_the_truth(seed: int) -> None:
    """Whatever the delays, the offset lies between each direction's best bound, at its own instant."""
    one = usable(burst(Random(seed), Link(spike_share=0.5)), Counter())
    assert one is not None
    bracket = tightest(one.brackets)
    assert bracket.low_ns <= true_offset_ns(bracket.low_at_ns) + 2
    assert bracket.high_ns >= true_offset_ns(bracket.high_at_ns) - 2
    assert bracket.width_ns <= min(each.width_ns for each in one.brackets) + 20_000


def test_a_quick_way_out_and_a_quick_way_home_need_not_be_one_exchange() -> None:
    """The bounds of a burst come from whichever exchange had each direction to itself."""
    slow_home = Bracket(low_ns=-9 * MS, low_at_ns=0, high_ns=1 * MS, high_at_ns=0)
    slow_out = Bracket(low_ns=-1 * MS, low_at_ns=30 * MS, high_ns=9 * MS, high_at_ns=30 * MS)
    both = tightest([slow_home, slow_out])
    assert (both.low_ns, both.high_ns, both.pi_mono_ns) == (-1 * MS, 1 * MS, 15 * MS)


def test_every_refused_exchange_is_counted_by_its_reason() -> None:
    """Failed, incomplete, impossible and contradicting exchanges never become a measurement."""
    one, *others = burst(Random(10))
    assert one.t2_ns is not None and one.t3_ns is not None and one.t4_ns is not None
    bad = [
        msgspec.structs.replace(one, status="timeout", t2_ns=None, t3_ns=None, t4_ns=None),
        msgspec.structs.replace(one, t3_ns=None),
        msgspec.structs.replace(one, pi_boot_id=None),
        msgspec.structs.replace(one, t4_ns=one.t1_ns - 1),
        msgspec.structs.replace(one, t3_ns=one.t2_ns - 1),
        msgspec.structs.replace(one, t3_ns=one.t3_ns + 10 * MS),
        msgspec.structs.replace(one, t2_ns=one.t2_ns + S, t3_ns=one.t3_ns + S),
    ]
    refused: Counter[str] = Counter()
    kept = usable([*bad, *others], refused)
    assert kept is not None
    assert kept.brackets == list(map(bracket_of, others))
    assert refused == {
        "timeout": 1,
        "stamp missing": 1,
        "boot id missing": 1,
        "stamps out of order": 2,
        "negative delay": 1,
        "contradicts its burst": 1,
    }
    assert usable(bad[:6], Counter()) is None


def test_a_burst_without_a_majority_is_refused_whole() -> None:
    """Two halves that exclude each other prove nothing."""
    told = burst(Random(11))
    lies = [
        msgspec.structs.replace(one, t2_ns=(one.t2_ns or 0) + S, t3_ns=(one.t3_ns or 0) + S)
        for one in told[:4]
    ]
    refused: Counter[str] = Counter()
    assert usable([*lies, *told[4:]], refused) is None
    assert refused["contradicts its burst"] == 8


def test_http_counts_only_where_udp_has_no_answer() -> None:
    """A handler's bias stays out of the measurement, and is kept as evidence beside it."""
    told = burst(Random(12))
    by_http = msgspec.structs.replace(told[-1], transport="http")
    both = usable([*told[:-1], by_http], Counter())
    alone = usable([by_http], Counter())
    assert both is not None and alone is not None
    assert (both.transport, len(both.brackets), alone.transport) == ("udp", 7, "http")
    assert both.call == bracket_of(by_http)
    assert alone.call is None


@given(st.randoms(use_true_random=False))
def test_bursts_do_not_depend_on_arrival(rng: Random) -> None:
    """Shuffled and repeated exchanges form the same bursts in the same order."""
    bursts = [burst(Random(13), Link(), at_s) for at_s in (0, 30, 60, 90)]
    flat = [exchange for one in bursts for exchange in one]
    assert group_bursts(rng.sample([*flat, *flat[::3]], len(flat) + len(flat[::3]))) == bursts


def test_stamps_told_again_under_another_name_are_stale() -> None:
    """A recorder that repeats its last answer adds no evidence."""
    told = burst(Random(14))
    again = [msgspec.structs.replace(one, sequence=9) for one in told]
    assert group_bursts([*told, *again]) == [told]


def test_a_marker_name_used_again_is_another_burst() -> None:
    """A daemon that counts from 0 again after a restart does not lose its measurements."""
    first, second = burst(Random(15), Link(), 0), burst(Random(16), Link(), 60)
    assert group_bursts(second + first) == [first, second]


def test_a_stream_of_exchanges_with_a_name_each_is_cut_into_bursts() -> None:
    """At five a second for half a minute: bursts of ten seconds, nothing lost."""
    stream = [
        msgspec.structs.replace(burst(Random(k), Link(), k)[0], sequence=k, t1_ns=k * 200 * MS)
        for k in range(150)
    ]
    bursts = group_bursts(stream)
    assert [one for each in bursts for one in each] == stream
    assert [len(each) for each in bursts] == [51, 51, 48]
