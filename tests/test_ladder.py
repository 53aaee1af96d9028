"""The seed ladder under old recordings: against the truth, and against the old fusion."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from common.messages import Marker, Reading
from tests.sim import MS, UTC_0, S
from tests.sim.cockpit import (
    CONSTANT,
    KINDS,
    PERIODIC,
    QUANTUM_NS,
    REAL_ORDER,
    Marking,
    OldSession,
    TimeSync,
    both,
    old_fusion_ns,
)
from tests.sim.rows import Offset, offset_at, recorded, stamps_of
from tests.sim.rows import read as read_folder
from topside_daemon.fusion.ladder import UNPLACED, Ladder, Record, climb
from topside_daemon.fusion.ladder import TimeSync as Handshake
from topside_daemon.fusion.ladder.steps import find_jumps
from topside_daemon.fusion.readers import Session

pytestmark = pytest.mark.heavy

SYNC_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


@contextmanager
def written(old: OldSession) -> Iterator[tuple[Path, Session]]:
    with TemporaryDirectory() as name:
        folder = old.write(Path(name) / "session")
        yield folder, read_folder(folder)


def read(old: OldSession) -> Session:
    place = TemporaryDirectory()
    session = read_folder(old.write(Path(place.name) / "session"))
    session.held.callback(place.cleanup)
    return session


def offset_of(ladder: Ladder, reading: Reading) -> Offset:
    return offset_at(ladder, reading.epoch, reading.utc_ns if reading.epoch < 0 else reading.mono_ns)


def errors_ns(old: OldSession, session: Session) -> list[int]:
    """Corrected minus true, of each in-water row in the order of arrival; none may be missing."""
    return [
        reading.utc_ns - offset_of(session.ladder, reading).offset_ns - UTC_0 - true_ns
        for reading, true_ns in zip(recorded(session.inwater), old.inwater_true_ns(), strict=True)
    ]


def p95(errors: list[int]) -> int:
    return sorted(map(abs, errors))[len(errors) * 95 // 100]


@pytest.mark.parametrize("kind", KINDS)
def test_no_old_session_comes_out_worse_than_it_did(kind: str) -> None:
    """Every reading is there, and neither p95 nor the worst row is further off than the old fusion's."""
    old = KINDS[kind]
    with written(old) as (folder, session):
        before = [
            at_ns - UTC_0 - true_ns
            for at_ns, true_ns in zip(old_fusion_ns(folder), old.inwater_true_ns(), strict=True)
        ]
        after = errors_ns(old, session)
        assert len(recorded(session.surface)) == len(old.surface_true_ns())
    assert p95(after) <= p95(before) + MS  # which the old one cut off labels
    assert max(map(abs, after)) <= max(map(abs, before)) + MS


@pytest.mark.parametrize("time_sync", [None, TimeSync(error_ms=5.0), TimeSync(uncertainty_ms=None)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nothing"])
def test_the_intervals_hold(kind: str, time_sync: TimeSync | None) -> None:
    """The 95 % interval covers the rows wherever there is one; the certified one holds the truth always."""
    old = replace(KINDS[kind], time_sync=time_sync or KINDS[kind].time_sync)
    session = read(old)
    covered = 0
    for reading, true_ns in zip(recorded(session.inwater), old.inwater_true_ns(), strict=True):
        found, truth_ns = offset_of(session.ladder, reading), reading.utc_ns - UTC_0 - true_ns
        assert found.low_ns is None or found.low_ns <= truth_ns
        assert found.high_ns is None or truth_ns <= found.high_ns
        assert found.sd_ns is not None
        covered += abs(found.offset_ns - truth_ns) <= 1.96 * found.sd_ns
    assert covered >= 0.95 * len(recorded(session.inwater))


@pytest.mark.parametrize(
    ("kind", "rung", "quality", "used"),
    [
        ("constant", "constant", "medium", 2),
        ("drifting", "linear", "medium", 2),
        ("missing STOP", "constant", "medium", 1),
        ("real order", "constant", "low", 0),
        ("time-sync only", "time-sync", "medium", 0),
        ("nothing", "none", "low", 0),
        ("surface gap", "constant", "high", 2),
        ("periodic", "linear", "high", 11),
        ("9 Hz quantised", "linear", "medium", 2),
    ],
)
def test_each_recording_stands_on_its_rung(kind: str, rung: str, quality: str, used: int) -> None:
    """What the evidence carries decides the rung, and the label says how well."""
    [seed] = read(KINDS[kind]).ladder.seeds
    assert (seed.rung, seed.quality, seed.pairs_used) == (rung, quality, used)
    assert seed.reason


def test_a_pair_that_is_two_events_is_refused_and_said_so() -> None:
    """Against the time-sync both pairs of the real order fail; no drift is made of them."""
    old = replace(KINDS["real order"], time_sync=TimeSync())
    session = read(old)
    [seed] = session.ladder.seeds
    assert (seed.rung, seed.pairs_used) == ("time-sync", 0)
    assert [text.partition(":")[0] for text in seed.pairs_refused] == ["START", "STOP"]
    assert all("cannot be one event" in text for text in seed.pairs_refused)
    assert max(map(abs, errors_ns(old, session))) <= 10 * MS


def test_the_real_order_is_recognised_without_a_time_sync() -> None:
    """A silent surface after START says restart: the offset is known to half a second, not to seconds."""
    for markings in (REAL_ORDER, REAL_ORDER[:1]):
        old = replace(KINDS["real order"], markings=markings)
        session = read(old)
        [seed] = session.ladder.seeds
        assert (seed.quality, seed.pairs_used, len(seed.pairs_refused)) == ("low", 0, len(markings))
        assert max(map(abs, errors_ns(old, session))) <= 500 * MS


def test_a_lone_start_that_nothing_speaks_for_is_low() -> None:
    """Where both sensors were silent after START it may be one event or two: the interval spans both."""
    old = replace(CONSTANT, markings=(both("START", 0.0),), inwater_from_s=4.2, surface_from_s=4.2)
    session = read(old)
    [seed] = session.ladder.seeds
    first = offset_of(session.ladder, recorded(session.inwater)[0])
    assert (seed.quality, seed.pairs_used) == ("low", 1)
    assert first.sd_ns is not None
    assert 1.96 * first.sd_ns > 4 * S


def test_delays_common_to_all_pairs_are_bounded_by_the_time_sync() -> None:
    """Markers that were all 60 ms late keep their drift and lose what the bound forbids."""
    late = (both("START", 1.0, 60.0), both("STOP", 595.0, 60.0))
    old = replace(CONSTANT, drift_ppm=50.0, markings=late, time_sync=TimeSync())
    session = read(old)
    assert session.ladder.seeds[0].rung == "linear"
    assert max(map(abs, errors_ns(old, session))) <= 12 * MS


def test_estimators_are_never_mixed_in_one_line() -> None:
    """A START and a time-sync make no drift, however far apart they are."""
    old = replace(
        KINDS["missing STOP"], drift_ppm=60.0, time_sync=TimeSync(at_s=590.0, uncertainty_ms=2), seed=3
    )
    session = read(old)
    assert session.ladder.seeds[0].rung == "constant"
    assert all(course.offset[1] == 0.0 for _, course in session.ladder.courses(UNPLACED))


def test_a_clock_without_a_drift_grows_uncertain() -> None:
    """Ten minutes from its only comparison, 85 ppm of two crystals are 51 ms."""
    session = read(KINDS["time-sync only"])
    first, last = (offset_of(session.ladder, recorded(session.inwater)[n]).sd_ns for n in (4, -1))
    assert first is not None
    assert last is not None
    assert first < 6 * MS
    assert 45 * MS < last < 55 * MS


@pytest.mark.parametrize("period_ns", [111 * MS, 1034 * MS])
@pytest.mark.parametrize("size_s", [-3600.0, -37.0, -0.7, 0.7, 37.0, 3600.0])
@pytest.mark.parametrize("side", ["in-water", "surface"])
def test_a_step_is_found_and_taken_out(side: str, size_s: float, period_ns: int) -> None:
    """Either clock, either way: the record is cut there, each piece gets its offset, none is a drift."""
    steps = ((300.0, size_s),)
    old = replace(
        CONSTANT,
        period_ns=period_ns,
        quantum_ns=QUANTUM_NS,
        pi_steps=steps if side == "in-water" else (),
        topside_steps=steps if side == "surface" else (),
    )
    session = read(old)
    [step] = session.ladder.seeds[0].steps
    assert (step.side, abs(step.size_ns - size_s * S) < 4 * step.sd_ns) == (side, True)
    assert p95(errors_ns(old, session)) <= 40 * MS
    surface = [one.utc_ns - session.ladder.surface_shift_ns(one.epoch) for one in recorded(session.surface)]
    for at_ns, true_ns in zip(surface, old.surface_true_ns(), strict=True):
        assert abs(at_ns - UTC_0 - true_ns) <= 40 * MS


def test_two_steps_make_three_pieces() -> None:
    """Forward and back again: three epochs, three seeds, and offsets that follow."""
    old = replace(CONSTANT, pi_steps=((200.0, 37.0), (400.0, -5.0)))
    session = read(old)
    assert {one.epoch for one in recorded(session.inwater)} == {-1, -2, -3}
    assert [seed.epoch for seed in session.ladder.seeds] == [-1, -2, -3]
    assert p95(errors_ns(old, session)) <= 50 * MS


@pytest.mark.parametrize("size_s", [-37.0, 37.0])
@pytest.mark.parametrize("markings", [(), (both("START", 1.0),)], ids=["no marker", "START"])
def test_a_step_without_markers_beyond_it_is_carried(size_s: float, markings: tuple[Marking, ...]) -> None:
    """Its measured size joins the pieces, so that readings stay in the order of arrival."""
    old = replace(CONSTANT, offset_s=0.0, markings=markings, pi_steps=((300.0, size_s),))
    session = read(old)
    errors = errors_ns(old, session)
    assert max(map(abs, errors)) <= 40 * MS
    times = [error + true_ns for error, true_ns in zip(errors, old.inwater_true_ns(), strict=True)]
    assert all(before < after for before, after in pairwise(times))


@pytest.mark.parametrize("kind", ["constant", "real order", "nothing", "drifting"])
@pytest.mark.parametrize("which", ["inwater_gap_s", "surface_gap_s"])
def test_a_gap_is_no_step(kind: str, which: str) -> None:
    """A sensor that was away for a minute leaves a gap, whatever the markers are worth."""
    gap = {which: (200.0, 260.0)}
    session = read(replace(KINDS[kind], **gap))  # type: ignore[arg-type]
    assert all(not seed.steps for seed in session.ladder.seeds)
    assert {one.epoch for one in recorded(session.inwater) + recorded(session.surface)} == {-1}


def test_mismatched_ids_go_down_a_rung() -> None:
    """Markers of one kind but two names make no pair; the reason names the kind."""
    foreign = Marking("START", 1.0, 1.004, inwater_value="77")
    for time_sync, rung in ((TimeSync(), "time-sync"), (None, "none")):
        [seed] = read(replace(CONSTANT, markings=(foreign,), time_sync=time_sync)).ladder.seeds
        assert seed.rung == rung
        assert seed.pairs_refused == ["START: the ids of the two records differ"]


def test_of_markers_with_one_name_the_first_pair_counts() -> None:
    """Repeats on either side change nothing, though the old fusion took the last; they are mentioned."""
    repeats = (Marking("START", None, 200.0), Marking("START", 300.0, None), Marking("STOP", 599.0, None))
    [seed] = read(replace(CONSTANT, markings=(*CONSTANT.markings, *repeats))).ladder.seeds
    assert changed(seed, pairs_refused=[]) == read(CONSTANT).ladder.seeds[0]
    assert [line.partition(":")[0] for line in seed.pairs_refused] == ["START", "START", "STOP"]


def test_a_periodic_marker_is_matched_by_number() -> None:
    """Signed on one side, with a decimal point on the other: the same number modulo 2^32."""
    session = read(replace(CONSTANT, markings=PERIODIC[:3]))
    assert [marker.sequence for marker in session.inwater.marked] == [1, 2, 3]
    assert session.ladder.seeds[0].pairs_used == 3


def test_two_consistent_pairs_outvote_a_wrong_time_sync() -> None:
    """A time-sync taken before the clock was set is named and left out."""
    [seed] = read(replace(CONSTANT, time_sync=TimeSync(error_ms=-3000.0))).ladder.seeds
    assert (seed.rung, seed.pairs_used, seed.quality) == ("constant", 2, "medium")
    assert "time-sync" in seed.pairs_refused[0]


@pytest.mark.parametrize("keep", ["in-water", "surface", "neither"])
def test_one_sensor_or_none_is_a_recording(keep: str) -> None:
    """Markers without rows and rows without a partner are read, and nothing is claimed of them."""
    with TemporaryDirectory() as name:
        folder = CONSTANT.write(Path(name) / "session")
        for stream in folder.glob("*_*/session.csv"):
            if not stream.parent.name.startswith(keep):
                lines = stream.read_text().splitlines(keepends=True)
                stream.write_text("".join(line for line in lines if "freerun" not in line))
        session = read_folder(folder)
        count = len(CONSTANT.inwater_true_ns()) if keep == "in-water" else 0
        assert len(recorded(session.inwater)) == count
        assert len(session.ladder.seeds) == bool(count)


LABELS_NS = st.lists(st.integers(0, 10_000).map(lambda ms: UTC_0 + ms * MS), max_size=30)
MARKERS = st.lists(
    st.builds(
        Marker,
        sync_id=st.sampled_from(["f47ac10b", "", "zz"]),
        kind=st.sampled_from(["START", "PERIODIC", "STOP"]),
        sequence=st.integers(0, 2),
        epoch=st.sampled_from([-1, 0]),
        mono_ns=st.integers(0, 10**10),
        utc_ns=st.integers(0, 10_000).map(lambda ms: UTC_0 + ms * MS),
        after_seq=st.integers(-1, 40),
    ),
    max_size=6,
)
HANDSHAKES = st.none() | st.builds(
    Handshake,
    offset_ns=st.integers(-(10**13), 10**13),
    bound_ns=st.integers(0, 10**8),
    at_ns=st.none() | st.integers(0, 10_000).map(lambda ms: UTC_0 + ms * MS),
)


def labelled(labels_ns: list[int], markers: list[Marker]) -> Record:
    return Record(stamps_of(labels_ns), {}, markers)


@settings(deadline=None)
@given(LABELS_NS, MARKERS, LABELS_NS, MARKERS, HANDSHAKES, st.integers(-(10**9), 10**9))
def test_any_record_is_placed_and_only_differences_count(
    under: list[int],
    under_markers: list[Marker],
    deck: list[int],
    deck_markers: list[Marker],
    handshake: Handshake | None,
    by_ms: int,
) -> None:
    """Nothing raises, each reading has a foothold in its own order; a Pi that reads further ahead has just
    that much more offset."""
    by_ns = by_ms * MS  # in the resolution of labels, which is part of the evidence
    surface = labelled(deck, deck_markers)
    ladder = climb(labelled(under, under_markers), surface, handshake)
    moved = climb(
        labelled(
            [label + by_ns for label in under],
            [changed(one, utc_ns=one.utc_ns + by_ns) for one in under_markers],
        ),
        surface,
        handshake and changed(handshake, offset_ns=handshake.offset_ns + by_ns),
    )
    for row, label in enumerate(under):
        epoch = UNPLACED - ladder.pieces[0].of(row)
        here, there = offset_at(ladder, epoch, label), offset_at(moved, epoch, label + by_ns)
        assert (here.sd_ns is None) == (there.sd_ns is None)
        if here.sd_ns is not None:
            assert there.offset_ns - here.offset_ns == by_ns


@given(st.integers(0, 2**32), st.integers(0, 15 * MS), st.sampled_from([111 * MS, 1034 * MS]))
def test_a_steady_sensor_makes_no_jumps(seed: int, jitter_ns: int, period_ns: int) -> None:
    """Jitter up to a serial line's quantum, two lines in one batch and a late one are no step."""
    rng = Random(seed)
    labels = [n * period_ns + round(rng.uniform(0, jitter_ns)) for n in range(200)]
    labels[50] = labels[51]
    labels[120] += period_ns // 3
    assert not [
        jump
        for jump in find_jumps(stamps_of(labels))
        if jump.certain or abs(jump.size_ns) > 6 * jitter_ns + MS
    ]
