"""The seed ladder under old recordings that mislead: two events of one name, lone steps, wild labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from common.rows import format_utc
from tests.sim import MS, UTC_0, S
from tests.sim.cockpit import CONSTANT, KINDS, Marking, OldSession, TimeSync, both
from tests.sim.rows import Offset, recorded
from tests.sim.rows import read as read_folder
from tests.test_ladder import errors_ns, offset_of, p95, read
from topside_daemon.fusion.readers import Session

pytestmark = pytest.mark.heavy

INWATER_FILE = "in-water_5f1d/session.csv"


def found_and_true(old: OldSession, session: Session) -> list[tuple[Offset, int]]:
    """The offset of each in-water row as it was found, and as it was."""
    return [
        (offset_of(session.ladder, reading), reading.utc_ns - UTC_0 - true_ns)
        for reading, true_ns in zip(recorded(session.inwater), old.inwater_true_ns(), strict=True)
    ]


def assert_honest(old: OldSession, session: Session) -> None:
    """The 95 % interval covers the rows, the certified one all of them."""
    rows = found_and_true(old, session)
    for found, truth_ns in rows:
        assert found.low_ns is None or found.low_ns <= truth_ns
        assert found.high_ns is None or truth_ns <= found.high_ns
    covered = [
        found.sd_ns is not None and abs(found.offset_ns - truth) <= 1.96 * found.sd_ns
        for found, truth in rows
    ]
    assert sum(covered) >= 0.95 * len(covered)


def amended(old: OldSession, folder: Path, change: Callable[[list[str]], None]) -> Session:
    """The recording with the lines of its in-water file changed."""
    path = old.write(folder / "session") / INWATER_FILE
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join([*lines, ""]))
    return read_folder(folder / "session")


def dive(hours: float, drift_ppm: float, start_late_s: float, stop_early_s: float) -> OldSession:
    """A long one: START late on the Pi, STOP early on it, rows only every ten seconds."""
    end_s = hours * 3600.0
    stop = Marking("STOP", end_s - 3.0 + stop_early_s, end_s - 3.0)
    restarted = start_late_s > 1.0
    return OldSession(
        duration_s=end_s,
        drift_ppm=drift_ppm,
        period_ns=10 * S,
        markings=(Marking("START", 0.0, start_late_s), stop),
        surface_from_s=4.3 if restarted else 0.1,
        inwater_from_s=3.9 if restarted else 0.2,
    )


@pytest.mark.parametrize("hours", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_time_sync_makes_a_long_old_dive_better(hours: float, seed: int) -> None:
    """Two events of one name stay two, however far drift could have taken them in hours."""
    rng = Random(seed)
    old = dive(hours, rng.uniform(-30.0, 30.0), rng.uniform(3.6, 4.2), rng.uniform(1.2, 3.0))
    alone, synced = read(old), replace(old, time_sync=TimeSync())
    session = read(synced)
    [seed_found] = session.ladder.seeds
    assert (seed_found.rung, seed_found.pairs_used) == ("time-sync", 0)
    assert p95(errors_ns(synced, session)) <= 30e-6 * hours * 3600 * S + 10 * MS
    for dived, found in ((old, alone), (synced, session)):
        assert found.ladder.seeds[0].quality != "high"
        assert_honest(dived, found)


@pytest.mark.parametrize("time_sync", [None, TimeSync()])
@pytest.mark.parametrize(
    ("hours", "early_s"),
    [(0.5, 0.25), (1.0, 0.5), (2.0, 1.3), (4.0, 2.0), (8.0, 1.3), (8.0, 4.0), (1 / 6, 0.1)],
)
def test_a_stop_that_is_two_events_is_no_drift(
    hours: float, early_s: float, time_sync: TimeSync | None
) -> None:
    """A START of one event does not make one of the STOP: no line, no certainty and no high quality."""
    old = replace(dive(hours, 0.0, 0.005, early_s), time_sync=time_sync)
    session = read(old)
    [seed] = session.ladder.seeds
    assert seed.rung == "constant"
    assert seed.quality != "high"
    assert any(line.startswith("STOP") for line in seed.pairs_refused)
    assert p95(errors_ns(old, session)) <= early_s * 0.6 * S
    assert_honest(old, session)


def test_a_stop_certifies_nothing() -> None:
    """The Pi's may have been written first, even where it is near enough to pass for the same event."""
    old = dive(1.0, 0.0, 0.005, 0.1)
    session = read(old)
    assert session.ladder.seeds[0].pairs_used == 2
    for found, truth_ns in found_and_true(old, session):
        assert found.high_ns is not None
        assert found.high_ns >= truth_ns


def test_a_witnessed_drift_beyond_crystals_is_never_high() -> None:
    """Ten pairs carry a line of 150 ppm, but such a clock is not a healthy one."""
    marks = tuple(both("PERIODIC", 60.0 * n, 4.0, str(0xF47AC100 + n)) for n in range(1, 10))
    old = replace(CONSTANT, drift_ppm=150.0, markings=(*CONSTANT.markings, *marks), time_sync=TimeSync())
    session = read(old)
    assert (session.ladder.seeds[0].rung, session.ladder.seeds[0].quality) == ("linear", "medium")
    assert p95(errors_ns(old, session)) <= 10 * MS


def test_an_early_stop_does_not_bend_a_line_that_others_carry() -> None:
    """Of many pairs the STOP that was written first on the Pi is the one left out."""
    marks = tuple(both("PERIODIC", 600.0 * n, 4.0, str(0xF47AC100 + n)) for n in range(1, 11))
    old = dive(2.0, 20.0, 0.005, 1.3)
    old = replace(old, markings=(*old.markings, *marks))
    session = read(old)
    [seed] = session.ladder.seeds
    assert (seed.rung, seed.pairs_used) == ("linear", 11)
    assert_honest(old, session)
    assert max(map(abs, errors_ns(old, session))) <= 10 * MS


@pytest.mark.parametrize("size_s", [8.0, 30.0])
@pytest.mark.parametrize("time_sync", [None, TimeSync()])
@pytest.mark.parametrize("periodic", [0, 4])
def test_a_gap_that_may_be_a_step_says_so(size_s: float, time_sync: TimeSync | None, periodic: int) -> None:
    """The in-water record ends beyond the surface's by about the size of a gap in it: a step, or a dropout
    and a surface sensor that ended early. Either way the interval holds the truth."""
    marks = tuple(both("PERIODIC", 60.0 * n, 4.0, str(0xF47AC100 + n)) for n in range(1, 1 + periodic))
    markings = (both("START", 1.0, 5.0), *marks)
    old = OldSession(markings=markings, time_sync=time_sync)
    gone = (old.duration_s - 0.8 * size_s, old.duration_s)
    for one in (
        replace(old, inwater_gap_s=(300.0, 300.0 + size_s), surface_gap_s=gone),
        replace(old, pi_steps=((300.0, size_s),)),
    ):
        session = read(one)
        assert_honest(one, session)
        for seed in session.ladder.seeds:
            assert seed.quality == "low"
            assert f"a gap of {size_s:.0f}" in seed.reason and "is taken for a step" in seed.reason


@pytest.mark.parametrize("time_sync", [None, TimeSync()])
@pytest.mark.parametrize("side", ["in-water", "surface"])
def test_a_step_is_found_between_markers_that_are_two_events(side: str, time_sync: TimeSync | None) -> None:
    """START reads seconds high and STOP seconds low, and a step of 37 s still shows between them."""
    steps = ((300.0, 37.0),)
    real = replace(KINDS["real order"], time_sync=time_sync)
    old = replace(real, pi_steps=steps) if side == "in-water" else replace(real, topside_steps=steps)
    session = read(old)
    [step] = session.ladder.seeds[0].steps
    assert (step.side, abs(step.size_ns - 37 * S) < 50 * MS) == (side, True)
    assert str(step).startswith(f"{side} clock set by +37.0")
    assert p95(errors_ns(old, session)) <= 500 * MS
    if side == "in-water":
        assert_honest(old, session)


def test_the_end_of_the_record_shows_a_step_that_markers_blur() -> None:
    """A tie behind the gap that neither measures the step nor denies it leaves the word to the ends."""
    marks = (both("START", 1.0), Marking("STOP", 611.0, 595.0))
    old = replace(CONSTANT, markings=marks, pi_steps=((300.0, 37.0),))
    session = read(old)
    [step] = session.ladder.seeds[0].steps
    assert abs(step.size_ns - 37 * S) < 50 * MS


@pytest.mark.parametrize(
    "event",
    [
        {"pi_steps": ((300.0, 0.5),)},
        {"pi_steps": ((300.0, 3.0),)},
        {"inwater_gap_s": (300.0, 303.8)},
        {"surface_gap_s": (300.0, 304.5)},
    ],
    ids=str,
)
@pytest.mark.parametrize("markings", [(), (both("START", 1.0),)], ids=["time-sync", "START"])
def test_a_gap_that_nothing_tells_from_a_step_is_said_to_be_one_perhaps(
    event: dict[str, Any], markings: tuple[Marking, ...]
) -> None:
    """Labels stay, the interval behind the gap holds both, and the reason names it."""
    old = replace(CONSTANT, markings=markings, time_sync=None if markings else TimeSync(), **event)
    session = read(old)
    for seed in session.ladder.seeds:
        assert (seed.quality, seed.steps) == ("low", [])
        assert "may be a step" in seed.reason
    assert_honest(old, session)


@pytest.mark.parametrize("time_sync", [None, TimeSync()])
@pytest.mark.parametrize("size_s", [2.0, 4.0])
def test_two_events_do_not_agree_across_a_doubt(size_s: float, time_sync: TimeSync | None) -> None:
    """A step that hides what START and STOP differ by makes no pair of them."""
    old = replace(KINDS["real order"], pi_steps=((300.0, size_s),), time_sync=time_sync)
    session = read(old)
    for seed in session.ladder.seeds:
        assert seed.quality == "low"
        assert any(line.startswith("STOP") for line in seed.pairs_refused)
    assert_honest(old, session)


def test_a_few_lost_rows_are_no_doubt() -> None:
    """Where the rhythm goes on behind a hole of two rows, no clock was set."""
    old = replace(KINDS["time-sync only"], inwater_gap_s=(300.0, 302.1))
    [seed] = read(old).ladder.seeds
    assert (seed.quality, "may be a step" in seed.reason) == ("medium", False)


@pytest.mark.parametrize("markings", [(), CONSTANT.markings])
def test_a_time_sync_of_another_time_is_refused(markings: tuple[Marking, ...]) -> None:
    """An hour off it would leave nothing in common: it is named, and the rest stands as without it."""
    old = replace(CONSTANT, markings=markings)
    [seed] = read(replace(old, time_sync=TimeSync(error_ms=3_600_000))).ladder.seeds
    [without] = read(old).ladder.seeds
    assert (seed.rung, seed.reason) == (without.rung, without.reason)
    assert seed.pairs_refused == ["time-sync: offset 3600.250 s lies outside the in-water record"]


@pytest.mark.parametrize(("uncertainty_ms", "quality"), [(6, "high"), (100, "medium"), (4000, "medium")])
def test_a_wide_time_sync_confirms_nothing(uncertainty_ms: int, quality: str) -> None:
    """Only a bound that is small against a late call is a witness of it."""
    [seed] = read(replace(CONSTANT, time_sync=TimeSync(uncertainty_ms=uncertainty_ms))).ladder.seeds
    assert (seed.quality, "confirmed" in seed.reason) == (quality, quality == "high")


@pytest.mark.parametrize("drift_ppm", [0.0, 40.0])
@pytest.mark.parametrize("later", [0, 1, 30])
@pytest.mark.parametrize("count", [1, 10])
def test_rows_that_are_in_the_file_twice_count_once(
    tmp_path: Path, count: int, later: int, drift_ppm: float
) -> None:
    """A run of old rows written again is dropped and counted, and is no step of the clock."""
    old = replace(CONSTANT, drift_ppm=drift_ppm)

    def repeat(lines: list[str]) -> None:
        lines[50 + later : 50 + later] = lines[50 - count : 50]

    session = amended(old, tmp_path, repeat)
    assert (session.inwater.duplicates, session.inwater.rejects) == (count, [])
    assert session.ladder.seeds == read(old).ladder.seeds
    assert max(map(abs, errors_ns(old, session))) <= 10 * MS


def test_equal_readings_after_a_step_back_are_not_the_same(tmp_path: Path) -> None:
    """A label may by chance come twice with the same value when the clock was set back by whole periods."""
    old = replace(CONSTANT, pi_steps=((300.0, -37.0),))

    def coincide(lines: list[str]) -> None:
        lines[320] = lines[292]

    session = amended(old, tmp_path, coincide)
    assert session.inwater.duplicates == 0
    assert len(recorded(session.inwater)) == len(old.inwater_true_ns())


@pytest.mark.parametrize(
    "label", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1970-01-01T00:00:00Z", "late", "soon"]
)
@pytest.mark.parametrize("index", [1, 200, -1])
def test_a_single_wild_label_costs_its_row(tmp_path: Path, label: str, index: int) -> None:
    """It is named as a rejected row; it is neither a step nor a stretch of the interval."""
    old = replace(CONSTANT, inwater_from_s=1.5, duration_s=594.0)
    off_s = {"late": 100_000.0, "soon": -100_000.0}.get(label)
    text = label if off_s is None else format_utc(UTC_0 + round(off_s * S))
    count = len(old.inwater_true_ns())

    def spoil(lines: list[str]) -> None:
        rows = [n for n, line in enumerate(lines) if "freerun" in line]
        at = rows[index if index < 0 else index - 1]
        lines[at] = text + lines[at][lines[at].index(",") :]

    session = amended(old, tmp_path, spoil)
    assert (len(recorded(session.inwater)), len(session.inwater.rejects)) == (count - 1, 1)
    [seed] = session.ladder.seeds
    assert (seed.steps, seed.quality) == ([], "medium")
    for reading in recorded(session.inwater):
        assert abs(offset_of(session.ladder, reading).offset_ns - 250 * MS) < 10 * MS


def test_markers_that_are_left_over_are_mentioned(tmp_path: Path) -> None:
    """One side's PERIODIC and a STOP of the Pi alone are counted by kind; markers without rows are noted."""
    alone = tuple(Marking("PERIODIC", 60.0 * n, None, str(0xF47AC100 + n)) for n in range(1, 10))
    old = replace(CONSTANT, markings=(both("START", 1.0), Marking("STOP", None, 595.0), *alone))
    [seed] = read(old).ladder.seeds
    assert seed.pairs_refused == [
        "PERIODIC: 9 in the surface record alone",
        "STOP: 1 in the in-water record alone",
    ]

    def empty(lines: list[str]) -> None:
        lines[:] = [line for line in lines if "freerun" not in line]

    assert amended(old, tmp_path, empty).notes == ["in-water_5f1d: 2 markers and no reading"]
