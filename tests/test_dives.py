"""The truth-makers keep their promises: what a drawn session says of itself is so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import Exchange
from tests.bench.clock import METHODS
from tests.bench.peers import Heard, heard
from tests.sim import MS, S
from tests.sim.dives import (
    Dive,
    Plan,
    WallChange,
    draw_dive,
    every,
    fast_start,
    start_stop,
    write_session,
)
from tests.sim.oscillators import pi_crystal, topside_crystal
from tests.sim.paths import Habits
from tests.sim.rows import read, recorded

ROUNDING_NS = 3
HALF_HOUR = Plan(duration_s=1800, bursts_s=fast_start(1800))
HARD = Habits(asymmetry_sd=0.25, queue_factor=3.0, loss=0.2, cuts_every_s=300.0)
PLANS = (
    HALF_HOUR,
    Plan(duration_s=1800, bursts_s=every(1800, 120), cold=True),
    replace(HALF_HOUR, habits=HARD, reboot_at_s=600.0),
    replace(HALF_HOUR, habits=Habits(saturated_s=1e6), bursts_lost=0.5),
)


def answered(dive: Dive, stretch: int = 0) -> list[Exchange]:
    boot_id = dive.stretches[stretch].boot.boot_id
    return [one for one in dive.exchanges if one.pi_boot_id == boot_id]


def stamps(exchanges: list[Exchange]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """t1, t2, t3, t4 as columns."""
    return np.array([(one.t1_ns, one.t2_ns, one.t3_ns, one.t4_ns) for one in exchanges], dtype=np.int64).T


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(PLANS))
def test_every_bracket_holds_the_truth(seed: int, plan: Plan) -> None:
    """t3 - t4 <= offset <= t2 - t1 for each answer, whatever the path did to it."""
    dive = draw_dive(seed, plan)
    for number in range(len(dive.stretches)):
        t1, t2, t3, t4 = stamps(answered(dive, number))
        assert (t2 - t1 >= dive.offset_ns_at(t2, number) - ROUNDING_NS).all()
        assert (t3 - t4 <= dive.offset_ns_at(t3, number) + ROUNDING_NS).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_a_clock_can_be_read_both_ways(seed: int) -> None:
    """From true time to the Pi's clock and back is the identity, to 1 ns, over four hours."""
    dive = draw_dive(seed, Plan(duration_s=14_400, bursts_s=start_stop(14_400)))
    true_ns = np.arange(0, 14_400 * S, 7 * S + 123_457)
    boot = dive.stretches[0].boot
    assert np.abs(boot.true_ns(boot.mono_ns(true_ns)) - true_ns).max() <= 1
    assert (np.diff(boot.mono_ns(true_ns)) > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_skew_and_dive_stay_within_what_is_promised(seed: int) -> None:
    """The Pi's crystal begins 1..100 ppm off and moves by up to 5 ppm in a dive; on deck it is within 20."""
    rng = np.random.default_rng(seed)
    ppm = pi_crystal(rng, 1200.0, walk_per_root_s=0.0).ppm
    assert 1.0 <= abs(ppm[0]) <= 100.0
    assert 0.5 < abs(ppm[-1] - ppm[0]) < 5.0
    assert np.abs(topside_crystal(rng, 1200.0).ppm).max() < 20.0 + 0.5 + 0.1


def test_drift_is_the_slope_of_the_offset() -> None:
    """`drift_ppm_at` says how fast `offset_ns_at` moves."""
    dive = draw_dive(5, HALF_HOUR)
    true_ns = np.array([700 * S, 701 * S])
    before, after = dive.offset_ns_at(dive.stretches[0].boot.mono_ns(true_ns)).tolist()
    assert (after - before) / 1e3 == pytest.approx(dive.drift_ppm_at(700.5), abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_has_no_answers(seed: int) -> None:
    """What is sent into a cut comes back as a timeout without stamps; most of the rest is answered."""
    dive = draw_dive(seed, replace(HALF_HOUR, bursts_s=every(1800, 10), habits=Habits(cuts_every_s=300.0)))
    sent_ns = dive.topside.true_ns(np.array([one.t1_ns for one in dive.exchanges]))
    inside, _ = dive.path.cuts.at(sent_ns)
    assert inside.any()
    for one, cut in zip(dive.exchanges, inside.tolist(), strict=True):
        assert not cut or (one.status, one.t2_ns, one.t4_ns, one.pi_boot_id) == ("timeout", None, None, None)
    assert np.mean([one.status == "ok" for one in np.array(dive.exchanges)[~inside]]) > 0.95


def test_a_reboot_begins_another_clock() -> None:
    """Away for 25 s the Pi answers nothing; then another boot id answers, its clock near zero."""
    dive = draw_dive(3, replace(HALF_HOUR, bursts_s=every(1800, 5), reboot_at_s=900.0))
    first, second = dive.stretches
    assert (first.end_ns, second.start_ns) == (900 * S, 925 * S)
    assert first.boot.boot_id != second.boot.boot_id
    assert second.boot.as_epoch(second.start_ns).mono_ns == 15 * S
    assert all(one.t2_ns and one.t2_ns > 15 * S for one in answered(dive, 1))
    last_ns = first.boot.true_ns(stamps(answered(dive, 0))[2]).max()
    next_ns = second.boot.true_ns(stamps(answered(dive, 1))[1]).min()
    assert last_ns < first.end_ns
    assert next_ns >= second.start_ns


def test_the_same_seed_is_the_same_session() -> None:
    """Drawing twice gives equal exchanges and truth; another seed gives others."""
    once, again, other = (draw_dive(seed, PLANS[2]) for seed in (7, 7, 8))
    at_ns = np.array([once.stretches[0].boot.as_epoch(0).mono_ns + 100 * S])
    assert once.exchanges == again.exchanges
    assert once.offset_ns_at(at_ns).tolist() == again.offset_ns_at(at_ns).tolist()
    assert once.exchanges != other.exchanges


def test_wall_clocks_change_labels_alone() -> None:
    """Steps and slews on either side move the wall clocks as told and no monotonic stamp."""
    changes = (WallChange(300, -37), WallChange(600, 0.4, slewed=True))
    plain = draw_dive(11, HALF_HOUR)
    set_back = draw_dive(11, replace(HALF_HOUR, pi_wall=changes, topside_wall=changes))
    assert (stamps(answered(plain)) == stamps(answered(set_back))).all()
    moved_ms = [
        ((late.pi_utc_ns or 0) - (early.pi_utc_ns or 0)) / MS
        for early, late in zip(answered(plain), answered(set_back), strict=True)
    ]
    assert moved_ms[0] == 0
    assert moved_ms[-1] == pytest.approx(-36_600, abs=0.01)


def test_corruption_hits_those_it_names_and_no_others() -> None:
    """The exchanges listed as false differ from the uncorrupted session, all others are the same."""
    plain, corrupted = (draw_dive(13, replace(HALF_HOUR, corrupted=share)) for share in (0.0, 0.2))
    pairs = enumerate(zip(plain.exchanges, corrupted.exchanges, strict=True))
    changed = {number for number, (before, after) in pairs if before != after}
    unanswered = {number for number, one in enumerate(plain.exchanges) if one.status != "ok"}
    assert changed == corrupted.false - unanswered
    assert 0.1 < len(changed) / len(plain.exchanges) < 0.3


def test_a_cold_connection_delays_the_first_exchange_of_a_burst_alone() -> None:
    """The handshake comes between t1 and t2 of probe 0."""
    warm, cold = (draw_dive(17, replace(HALF_HOUR, cold=cold)) for cold in (False, True))
    for before, after in zip(warm.exchanges, cold.exchanges, strict=True):
        if before.t2_ns is not None and after.t2_ns is not None:
            later_ns = after.t2_ns - before.t2_ns
            assert later_ns > MS if before.probe == 0 else later_ns == 0


def test_a_standing_queue_holds_up_every_answer() -> None:
    """In a saturated session no delay comes near the path's own."""
    dive = draw_dive(19, replace(HALF_HOUR, habits=Habits(saturated_s=1e6)))
    t1, t2, t3, t4 = stamps(answered(dive))
    assert ((t4 - t1) - (t3 - t2)).min() > dive.path.floor_ns + 5 * MS


def test_schedules_begin_with_start_and_end_with_stop() -> None:
    """The fast start is 0, 3, 8, 18, 38, 78 s and then every 30 s."""
    assert fast_start(150) == (0, 3, 8, 18, 38, 78, 108, 138, 150)
    assert every(300, 120) == (0, 120, 240, 300)
    kinds = [burst[0].kind for burst in draw_dive(1, Plan(duration_s=300, bursts_s=every(300, 120))).bursts]
    assert kinds == ["START", "PERIODIC", "PERIODIC", "STOP"]


def test_a_dive_becomes_a_session_folder(tmp_path: Path) -> None:
    """The readers find every reading, every exchange and both boots of the Pi in what is written."""
    dive = draw_dive(23, Plan(duration_s=120, bursts_s=every(120, 30), reboot_at_s=60.0))
    written = write_session(tmp_path / "session", dive)
    session = read(tmp_path / "session")
    assert recorded(session.inwater) == written.inwater
    assert recorded(session.surface) == written.surface
    assert list(session.comparisons) == dive.exchanges
    assert [epoch.boot_id for epoch in session.inwater.epochs] == [one.boot.boot_id for one in dive.stretches]
    assert session.all_rejects == []


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_benchmark_finds_the_offset(name: str) -> None:
    """On an easy session each is right to its own accuracy: signs, units and origins are understood alike."""
    dive = draw_dive(29, Plan(duration_s=300, bursts_s=every(300, 10)))
    known = heard(dive, dive.stretches[0])
    assert isinstance(known, Heard)
    at_ns = dive.stretches[0].boot.mono_ns(dive.stretches[0].times_ns(5 * S))
    found = METHODS[name](known)(len(known.bursts), at_ns)
    assert np.median(np.abs(found.offset - dive.offset_ns_at(at_ns))) < (6 * MS if "one-way" in name else MS)
