"""Rows onto the axis, and the streaming fuser: each reading once, whatever the order of arrival."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from common.messages import Reading
from tests.sim import (
    MS,
    US,
    UTC_0,
    Link,
    Machine,
    S,
    SimSession,
    draw_reboots,
    draw_session,
    exchange_burst,
)
from topside_daemon.fusion.bursts import group_bursts
from topside_daemon.fusion.columns import UNNUMBERED
from topside_daemon.fusion.stream import FusedRow, Fuser
from topside_daemon.fusion.timeline import (
    Beginning,
    Boots,
    Timeline,
    complete_pi_epochs,
    complete_topside_epochs,
)

pytestmark = pytest.mark.heavy

END = 1 << 100


def timeline_of(session: SimSession) -> Timeline:
    timeline = Timeline(session.topside_epochs, session.pi_epochs)
    for burst in group_bursts(session.exchanges):
        timeline.add_burst(burst)
    return timeline


def fuse(session: SimSession, tolerance_ns: int = 65 * MS) -> list[FusedRow]:
    fuser = Fuser(timeline_of(session), tolerance_ns)
    for reading in session.inwater:
        fuser.push_inwater(reading)
    for reading in session.surface:
        fuser.push_surface(reading)
    return fuser.finish()


def beginnings(session: SimSession) -> list[Beginning]:
    return [Beginning(one.epoch, one.mono_ns, one.utc_ns) for one in session.surface]


def reading_at(seq: int, time_ns: int) -> Reading:
    return Reading(seq, 0, time_ns, UTC_0 + time_ns, "s", "freerun", "0.01")


AXIS = Timeline([], [])  # knows no boot: every reading stands at its own label
axis_times = st.lists(st.integers(0, 25), max_size=12)  # narrow, so that equal instants are common


@pytest.mark.parametrize("seed", range(4))
def test_rows_stand_at_their_true_instant(seed: int) -> None:
    """In-water and surface times are the topside clock's within a fraction of a millisecond."""
    session = draw_session(seed, topside=Machine("topside-a", ahead_ns=seed * 10**12))
    timeline = timeline_of(session)
    errors = [
        abs(timeline.inwater_time(reading).time_ns - UTC_0 - session.inwater_truth_ns[reading.seq])
        for reading in session.inwater
    ]
    assert sorted(errors)[len(errors) * 95 // 100] < MS // 2
    assert all(
        timeline.surface_time(one) == UTC_0 + session.surface_truth_ns[one.seq] for one in session.surface
    )


def test_status_says_where_a_row_stands_among_the_exchanges() -> None:
    """Between bursts it is measured, outside held, with one burst single, without any none."""
    session = draw_session(1, duration_s=120)
    timeline = timeline_of(session)
    pi = session.pi_epochs[0].mono_ns
    sample = session.inwater[0]

    def status(line: Timeline, after_s: int) -> str:
        moved = Reading(0, 0, pi + after_s * S, 0, "s", "freerun", sample.value)
        return line.inwater_time(moved).status

    assert [status(timeline, s) for s in (-5, 45, 119)] == ["held", "measured", "held"]
    single = Timeline(session.topside_epochs, session.pi_epochs)
    single.add_burst(session.exchanges[:8])
    assert status(single, 45) == "single"
    assert status(Timeline(session.topside_epochs, session.pi_epochs), 45) == "none"


def test_a_row_without_a_clock_keeps_its_own_label() -> None:
    """No exchange: the time is the Pi's label, and offset and deviation stay empty."""
    session = draw_session(2, duration_s=20)
    reading = session.inwater[5]
    corrected = Timeline(session.topside_epochs, session.pi_epochs).inwater_time(reading)
    assert (corrected.time_ns, corrected.offset_ns, corrected.offset_sd_ns) == (reading.utc_ns, None, None)


def test_steps_of_the_wall_clocks_change_nothing() -> None:
    """Wall clocks set by an hour on either side mid-session move no row."""
    topside, pi = Machine("topside-a"), Machine("pi-a", ahead_ns=7 * S, drift_ppm=20)
    quiet = draw_session(3, duration_s=120, topside=topside, pi=pi)
    topside, pi = (replace(machine, step_at_ns=60 * S, step_ns=3600 * S) for machine in (topside, pi))
    stepped = draw_session(3, duration_s=120, topside=topside, pi=pi)
    places = [[(row.time_ns, row.pair_dt_ns, row.offset_ns) for row in fuse(one)] for one in (quiet, stepped)]
    assert places[0] == places[1]


def test_no_fit_crosses_a_restart_of_either_machine() -> None:
    """Each pair of boots has a model of its own, and rows on both sides of a restart are right."""
    session = draw_reboots(5)
    timeline = timeline_of(session)
    errors = [
        abs(timeline.inwater_time(reading).time_ns - UTC_0 - session.inwater_truth_ns[reading.seq])
        for reading in session.inwater
    ]
    assert [segment.used for segment in timeline.describe()] == [9, 8, 9]
    assert max(errors) < 2 * MS


def test_between_two_runs_of_a_clock_that_jumped_both_may_be_right() -> None:
    """A clock that loses 5 s (a machine that slept) makes two segments; rows between say they do not know."""
    pi, topside = Machine("pi-a"), Machine("topside-a", ahead_ns=100 * S)
    asleep = replace(topside, ahead_ns=95 * S)
    timeline = Timeline([topside.as_epoch()], [pi.as_epoch()])
    rng = Random(30)
    for k, s in enumerate(range(0, 600, 30)):
        machine = topside if s < 300 else asleep
        timeline.add_burst(exchange_burst(rng, machine, pi, Link(), s * S, k))
    assert [segment.used for segment in timeline.describe()] == [10, 10]
    for s, offset_s in ((100, -100), (500, -95)):
        row = timeline.inwater_time(Reading(s, 0, pi.mono_ns(s * S), 0, "s", "freerun", "1"))
        assert row.offset_ns == pytest.approx(offset_s * S, abs=MS)
        assert row.offset_sd_ns is not None and row.offset_sd_ns < MS
    row = timeline.inwater_time(Reading(9, 0, pi.mono_ns(285 * S), 0, "s", "freerun", "1"))
    assert row.offset_sd_ns is not None and row.low_ns is not None and row.high_ns is not None
    assert 1.96 * row.offset_sd_ns > 4.9 * S
    assert row.low_ns < -100 * S + MS and row.high_ns > -95 * S - MS


def test_missing_epoch_lists_are_rebuilt_from_the_record() -> None:
    """Boots take their numbers in the order of their exchanges, anchors come from the first rows."""
    session = draw_reboots(6)
    topside = complete_topside_epochs([], beginnings(session), Boots(session.exchanges))
    pi = complete_pi_epochs([], Boots(reversed(session.exchanges)))
    assert [(one.epoch, one.boot_id) for one in topside] == [(0, "topside-z"), (1, "topside-a")]
    assert [(one.epoch, one.boot_id) for one in pi] == [(0, "pi-z"), (1, "pi-a")]
    for declared, rebuilt in zip(session.topside_epochs, topside, strict=True):
        drifted_ns = (rebuilt.utc_ns - rebuilt.mono_ns) - (declared.utc_ns - declared.mono_ns)
        assert abs(drifted_ns) < 2000
    only_deck = complete_topside_epochs([], [], Boots(session.exchanges))
    assert [one.boot_id for one in only_deck] == ["topside-z", "topside-a"]


def test_a_declared_epoch_is_kept_as_it_is() -> None:
    """What the session says wins over what rows suggest, for numbers and for anchors."""
    session = draw_reboots(7)
    declared = session.topside_epochs[1:]
    completed = complete_topside_epochs(declared, beginnings(session), Boots(session.exchanges))
    assert completed[:1] == declared
    assert [(one.epoch, one.boot_id) for one in completed] == [(1, "topside-a"), (0, "topside-z")]


def test_repeated_and_failed_bursts_are_not_taken_twice() -> None:
    """The same burst again is no new evidence; one without an answer is counted."""
    session = draw_session(8, duration_s=30)
    timeline = Timeline(session.topside_epochs, session.pi_epochs)
    burst = session.exchanges[:8]
    failed = [structs.replace(one, status="timeout", t1_ns=one.t1_ns + S) for one in burst]
    assert timeline.add_burst(burst)
    assert not timeline.add_burst(burst)
    assert not timeline.add_burst(failed)
    assert (timeline.used, timeline.refused) == (1, {"timeout": 8})


def test_the_state_of_the_clock_is_that_of_its_model() -> None:
    """Offset, drift and their deviations agree with the drawn clock; before any burst there is none."""
    pi = Machine("pi-a", ahead_ns=5 * S, drift_ppm=40.0)
    session = draw_session(9, duration_s=120, pi=pi, topside=Machine("topside-a"))
    timeline = timeline_of(session)
    state = timeline.estimate(pi.mono_ns(60 * S))
    assert state is not None
    assert abs(state.offset_ns - (pi.mono_ns(60 * S) - 60 * S)) < 3 * state.offset_sd_ns
    assert abs(state.drift_ppm - 40.0) < 3 * state.drift_sd_ppm
    assert state.delay_min_ns >= 1200 * US
    assert timeline.describe()[0].pi_mono_ns == state.last_mono_ns
    assert Timeline([], []).estimate() is None


@given(axis_times, axis_times, st.integers(0, 30))
def test_each_reading_is_in_exactly_one_row(
    inwater: list[int], surface: list[int], tolerance_ns: int
) -> None:
    """Nothing is lost, nothing used twice, rows are in the order of time, pairs within tolerance."""
    fuser = Fuser(AXIS, tolerance_ns)
    for seq, time_ns in enumerate(inwater):
        fuser.push_inwater(reading_at(seq, time_ns))
        fuser.push_inwater(reading_at(seq, time_ns))
    for seq, time_ns in enumerate(surface):
        fuser.push_surface(reading_at(seq, time_ns))
    rows = fuser.finish()
    assert sorted(row.inwater.seq for row in rows if row.inwater) == list(range(len(inwater)))
    assert sorted(row.surface.seq for row in rows if row.surface) == list(range(len(surface)))
    assert [row.time_ns for row in rows] == sorted(row.time_ns for row in rows)
    for row in rows:
        if row.inwater and row.surface:
            assert row.pair_dt_ns == row.inwater.mono_ns - row.surface.mono_ns
            assert abs(row.pair_dt_ns) <= tolerance_ns
    assert (fuser.duplicates, fuser.late) == (len(inwater), 0)


@given(axis_times, axis_times, st.integers(0, 30), st.randoms(use_true_random=False))
def test_any_split_of_arrival_gives_the_same_rows(
    inwater: list[int], surface: list[int], tolerance_ns: int, rng: Random
) -> None:
    """Live with proof required and offline end in the same rows, in the same order."""
    arrivals = [sorted(inwater), sorted(surface)]
    offline, live = Fuser(AXIS, tolerance_ns), Fuser(AXIS, tolerance_ns)
    pushes = [(fuser.push_inwater, fuser.push_surface) for fuser in (offline, live)]
    for side, times in enumerate(arrivals):
        for seq, time_ns in enumerate(times):
            pushes[0][side](reading_at(seq, time_ns))
    rows: list[FusedRow] = []
    taken, until = [0, 0], [0, 0]
    for _ in range(30):
        side = rng.randrange(2)
        until[side] += rng.randrange(4)
        while taken[side] < len(arrivals[side]) and arrivals[side][taken[side]] < until[side]:
            pushes[1][side](reading_at(taken[side], arrivals[side][taken[side]]))
            taken[side] += 1
        rows += live.advance(UTC_0 + until[0], UTC_0 + until[1])
    for side, times in enumerate(arrivals):
        for seq in range(taken[side], len(times)):
            pushes[1][side](reading_at(seq, times[seq]))
    assert rows + live.finish() == offline.finish()


def test_rows_are_final_behind_the_watermark() -> None:
    """A pair leaves as soon as nothing nearer can come, without waiting for the end."""
    fuser = Fuser(AXIS, 10)
    fuser.push_inwater(reading_at(0, 100))
    fuser.push_surface(reading_at(0, 104))
    assert fuser.advance(UTC_0 + 101, UTC_0 + 105) == []
    [row] = fuser.advance(UTC_0 + 150, UTC_0 + 150)
    assert (row.time_ns, row.pair_dt_ns) == (UTC_0 + 100, -4)


def test_a_reading_behind_its_watermark_becomes_a_single_row() -> None:
    """Too late to pair, it is counted and still comes out."""
    fuser = Fuser(AXIS, 10)
    fuser.push_surface(reading_at(0, 100))
    fuser.advance(UTC_0 + 200, UTC_0 + 200)
    fuser.push_inwater(reading_at(0, 100))
    rows = fuser.finish()
    assert [(row.time_ns, row.surface) for row in rows] == [(UTC_0 + 100, None)]
    assert fuser.late == 1


def test_a_bounded_lag_emits_within_that_many_readings() -> None:
    """With max_lag the live rows keep up, at the price of a few pairs in a hundred at most."""
    session = draw_session(10, duration_s=120, surface_period_ns=112 * MS)
    exact = {row.inwater.seq: row.surface for row in fuse(session) if row.inwater}
    timeline = timeline_of(session)
    fuser = Fuser(timeline, 65 * MS, max_lag=8)
    rows: list[FusedRow] = []
    for reading in session.surface:
        fuser.push_surface(reading)
    for reading in session.inwater:
        fuser.push_inwater(reading)
        rows += fuser.advance(timeline.inwater_time(reading).time_ns, END)
        assert sum(row.inwater is not None for row in rows) >= reading.seq - 9
    rows += fuser.finish()
    assert sorted(row.inwater.seq for row in rows if row.inwater) == sorted(exact)
    paired = sum(row.pair_dt_ns is not None for row in rows)
    assert paired >= 0.98 * sum(surface is not None for surface in exact.values())


def test_rows_without_numbers_are_never_taken_for_duplicates() -> None:
    """Old files have no seq: equal rows are two readings."""
    fuser = Fuser(AXIS, 0)
    old = Reading(UNNUMBERED, UNNUMBERED, 0, UTC_0, "s", "freerun", "0.01")
    fuser.push_inwater(old)
    fuser.push_inwater(old)
    assert len(fuser.finish()) == 2
