"""The campaigns on failing and slow disks in short, and whether they would see what they look for."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.campaigns.attempt import Outcome, Trial, attempt, judge, taken_back
from tests.campaigns.faults import fill_and_free
from tests.campaigns.latency import Lateness, record, verdict
from tests.campaigns.told import Found, Row, Told
from tests.sim.inject import CURE, NO_MOUNT, STRACE, Injection, can_mount
from tests.sim.streams import SESSION_ID

CHUNK = f"{SESSION_ID}/chunk_00000.tmp"
DELAY_MS = 200
TRIALS = [
    Trial("a write fails once", (CHUNK,), (Injection("write", "error=EIO", "5"),)),
    Trial("an fsync is its last", (CHUNK,), (Injection("fsync", "signal=KILL", "3"),), killed=True),
    Trial("writes fail for a while", (CHUNK,), (Injection("write", "error=ENOSPC", "9+"),), lasting=True),
    Trial("files cannot grow", limit_bytes=1000),
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What came of each trial, by name; they mostly wait, so all are under way at once."""
    if STRACE is None:
        pytest.skip(CURE)
    folder = tmp_path_factory.mktemp("faults")
    with ThreadPoolExecutor(len(TRIALS) + 2) as pool:
        running = {
            one.name: pool.submit(attempt, folder / str(number), one, None)
            for number, one in enumerate(TRIALS)
        }
        slow = pool.submit(record, folder / "slow", 2.0, DELAY_MS * 1000)
        tiny = pool.submit(fill_and_free, folder / "tiny", 0.5) if can_mount() else None
        results = {name: future.result()[1:] for name, future in running.items()}
        yield {**results, "slow": slow.result(), "tiny": tiny and tiny.result()}


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_a_failing_disk_costs_nothing_that_was_told(tried: dict[str, object], trial: Trial) -> None:
    """The fault was met, and what was told is on the disk, what was lost was told, and it went on."""
    assert tried[trial.name] == ([], True)


def test_a_disk_of_256_kib_that_is_full_for_a_while_loses_nothing(tried: dict[str, object]) -> None:
    """Readings wait in memory, the state is named, and recording goes on when there is room again."""
    if tried["tiny"] is None:
        pytest.skip(NO_MOUNT)
    assert tried["tiny"] == []


def test_stamps_do_not_wait_for_a_slow_fsync(tried: dict[str, object]) -> None:
    """With every fsync taking 200 ms, half of the stamps are not even a tenth of that late."""
    slow = tried["slow"]
    assert isinstance(slow, Lateness)
    assert slow.delayed > 3
    assert slow.percentile_ms(50) < DELAY_MS / 10


def sound() -> tuple[Outcome, Found]:
    """A session of ten seconds, as it should be: every value recorded and published."""
    sent = [f"{number / 10:.6f}" for number in range(100)]
    rows = [Row(seq, value, 1000 + seq) for seq, value in enumerate(sent)]
    told = Told({row.seq: row.value for row in rows}, 99)
    return Outcome(Trial("sound"), told, sent=sent, recording_s=(0.0, 10.0)), Found(rows)


def test_a_sound_session_is_not_complained_about() -> None:
    """What the following tests damage is without fault before."""
    assert judge(*sound()) == []


def test_a_value_that_nobody_said_is_seen() -> None:
    """A reading that the sensor did not say is named, published or not."""
    outcome, found = sound()
    found.rows[50] = replace(found.rows[50], value="5.000001")
    outcome.told.published[50] = "5.000001"
    assert any("did not say" in wrong for wrong in judge(outcome, found))


@pytest.mark.parametrize("told", [True, False])
def test_a_lost_reading_is_to_be_told_of(told: bool) -> None:
    """A hole in numbers and values is a complaint, unless the events own up to it."""
    outcome, found = sound()
    del found.rows[50], outcome.told.published[50]
    if told:
        found.events.append({"kind": "readings_dropped", "count": 1})
    assert (judge(outcome, found) == []) == told


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_lost_end_is_seen(interrupted: bool) -> None:
    """Readings missing at the end leave no hole; they are missed because the sensor had said them."""
    outcome, found = sound()
    del found.rows[90:]
    outcome.told = Told({row.seq: row.value for row in found.rows}, 89)
    if interrupted:
        outcome.trial = Trial("killed", killed=True)
    assert judge(outcome, found) != []


def test_a_state_that_nobody_names_is_seen() -> None:
    """While the disk refuses for long, both calls have to say so."""
    outcome, found = sound()
    outcome.trial, outcome.reached = Trial("lasting", lasting=True), True
    assert len(judge(outcome, found)) == 2
    outcome.named["/status"].add("disk full: free some space")
    assert len(judge(outcome, found)) == 1


def test_an_fsync_that_is_repeated_after_a_failure_is_seen() -> None:
    """The same file synced again on the same descriptor proves nothing; opened or cut anew it does."""
    failed = "7 fsync(9</d/chunk_00000.tmp>) = -1 EIO (Input/output error) (INJECTED)\n"
    repeated = '8 fsync(9</d/chunk_00000.tmp> <unfinished ...>\n7 write(3</d/x>, "", 0) = 0\n'
    repeated += "8 <... fsync resumed>) = 0\n"
    anew = '7 openat(AT_FDCWD</>, "/d/chunk_00000.tmp", O_RDWR) = 9</d/chunk_00000.tmp>\n'
    assert len(taken_back(failed + repeated)) == 1
    assert taken_back(failed + anew + repeated) == []
    assert taken_back(repeated + repeated) == []


def test_late_stamps_are_seen() -> None:
    """Three in a hundred that waited for an fsync are too many, unless the machine is as late without it."""
    good, bad = Lateness((0.5,) * 100, 30), Lateness((0.5,) * 97 + (180.0,) * 3, 30)
    assert verdict(good, good) == verdict(bad, bad) == ""
    assert verdict(bad, good) != ""
    assert verdict(replace(good, delayed=0), good) != ""
