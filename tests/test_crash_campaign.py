"""The power-cut campaign: its disks allow what they should, its judge sees damage, a short run finds none."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from tests.campaigns.aftermath import Judge, Promises
from tests.campaigns.crash import MEMORY, survey
from tests.campaigns.planted import PLANTS, Plant
from tests.campaigns.voyages import Voyage, record_stopped
from tests.sim.powercut import ROOT, Disk, Entries, Op, Recording, Send, Sync, Tree, Write
from tests.sim.syscalls import NotModelled, Reader, traced, wait_for_end, why_not

REPLACED: list[Op] = [
    Entries("a", ROOT, (("a", 1),)),
    Write("a", 1, 0, b"old"),
    Sync("a", 1, 2),
    Sync("", ROOT, 3),
    Entries("a.new", ROOT, (("a.new", 2),)),
    Write("a.new", 2, 0, b"NEW!"),
    Entries("a", ROOT, (("a.new", None), ("a", 2))),
]


def states(ops: list[Op], friendly: bool) -> list[Tree]:
    disk = Disk(Recording(ops), friendly)
    for index, op in enumerate(ops):
        disk.take(index, op)
    return list(disk.states(Random(1)))


def final(recording: Recording) -> Tree:
    disk = Disk(recording)
    for index, op in enumerate(recording.ops):
        disk.take(index, op)
    return disk.now()


def test_a_rename_may_survive_the_data_on_a_strict_disk_only() -> None:
    """A file replaced without an fsync may be empty or torn, unless the disk puts data before names."""
    strict = {tree["a"] for tree in states(REPLACED, friendly=False)}
    assert strict == {b"old", b"", b"NEW!", b"N", b"NE", b"NEW", bytes(4), b"N\0\0\0", b"NE\0\0", b"NEW\0"}
    assert {tree["a"] for tree in states(REPLACED, friendly=True)} == {b"old", b"NEW!"}


@pytest.mark.parametrize("friendly", [False, True])
def test_what_is_fsynced_stays(friendly: bool) -> None:
    """After an fsync of the data, the rename, and an fsync of the folder there is one state only."""
    synced = [*REPLACED[:-1], Sync("a.new", 2, 6), REPLACED[-1], Sync("", ROOT, 8)]
    assert [tree for tree in states(synced, friendly) if tree != {"a": b"NEW!"}] == []


def test_an_fsync_covers_what_was_done_before_it_began() -> None:
    """A write that came while the fsync was running may be lost though the fsync has returned."""
    ops = [*REPLACED[:2], Write("a", 1, 3, b"er"), Sync("a", 1, 2), Sync("", ROOT, 4)]
    assert {tree["a"] for tree in states(ops, friendly=False)} == {
        b"old",
        b"olde",
        b"older",
        b"old\0\0",
        b"olde\0",
    }


def test_of_several_writes_any_may_be_missing_on_a_strict_disk() -> None:
    """What was written last may be there without what was written before it, which is zeros then."""
    ops = [*REPLACED[:4], Write("a", 1, 3, b"1"), Write("a", 1, 4, b"2")]
    assert {tree["a"] for tree in states(ops, friendly=False)} >= {b"old", b"old1", b"old12", b"old\x002"}
    assert {tree["a"] for tree in states(ops, friendly=True)} == {b"old", b"old1", b"old12"}


tracing = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

WRITER = """
import os, sys
os.chdir("/")
folder = sys.argv[1]
os.mkdir(folder + "/deep")
with open(folder + "/deep/a", "w+b") as file:
    file.write(b"0123456789")
    file.seek(2)
    file.write(b"xy")
    file.truncate(6)
os.pwrite(descriptor := os.open(folder + "/b", os.O_CREAT | os.O_RDWR), b"z", 3)
os.rename(folder + "/b", folder + "/c")
os.close(descriptor)
os.unlink(os.path.join(folder, "deep", "a"))
with open(folder + "/deep/a", "ab") as file:
    file.write(b"again")
"""


def record(program: str, root: Path) -> Reader:
    root.mkdir()
    trace = root.with_suffix(".trace")
    program_run = subprocess.Popen(traced(trace, [sys.executable, "-c", program, str(root)]))
    assert program_run.wait() == 0
    wait_for_end(trace, program_run.pid)
    reader = Reader(root)
    reader.read(trace)
    return reader


@tracing
def test_a_recording_explains_every_byte(tmp_path: Path) -> None:
    """Making, seeking, cutting, renaming, removing files: their recording says what is there in the end."""
    recording = record(WRITER, tmp_path / "disk").recording
    assert final(recording) == {"deep/": b"", "deep/a": b"again", "c": b"\0\0\0z"}
    assert (tmp_path / "disk" / "c").read_bytes() == b"\0\0\0z"


def test_a_descriptor_closed_by_another_thread_is_free_at_once(tmp_path: Path) -> None:
    """Before a close has returned, another thread may have its number for another file."""
    trace = tmp_path / "trace"
    a, b, x = ("".join(f"\\x{byte:02x}" for byte in text.encode()) for text in ("/disk/a", "/disk/b", "x"))
    lines = [
        f'1 openat(AT_FDCWD, "{a}", O_WRONLY|O_CREAT, 0666) = 3',
        "1 close(3 <unfinished ...>",
        f'2 openat(AT_FDCWD, "{b}", O_WRONLY|O_CREAT, 0666) = 3',
        "1 <... close resumed>) = 0",
        f'2 write(3, "{x}", 1) = 1',
    ]
    trace.write_text("\n".join(lines))
    reader = Reader(Path("/disk"))
    reader.read(trace)
    assert final(reader.recording) == {"a": b"", "b": b"x"}


@tracing
def test_what_has_no_place_in_a_recording_is_refused(tmp_path: Path) -> None:
    """A program that links files on the disk is not silently recorded wrong."""
    with pytest.raises(NotModelled, match="link"):
        record("import os, sys; os.symlink('x', sys.argv[1] + '/y')", tmp_path / "disk")


@pytest.fixture(scope="module")
def voyage(tmp_path_factory: pytest.TempPathFactory) -> Voyage:
    """A short recording of the real daemon."""
    if why_not() is not None:
        pytest.skip(str(why_not()))
    return record_stopped(tmp_path_factory.mktemp("voyage") / "work", chunks=1, rate_hz=10)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
        yield Path(place)


@pytest.fixture(scope="module")
def judge(voyage: Voyage, place: Path) -> Judge:
    return Judge(place, voyage.written)


def test_no_power_cut_leaves_a_bad_state(voyage: Voyage, judge: Judge) -> None:
    """Short variant of the campaign: nothing promised is lost, nothing is invented, on either disk."""
    for friendly in (False, True):
        found = survey(voyage.recording, judge, friendly, Random(1))
        assert (found.bad, found.examples) == (0, {})
        assert found.states > 100
    assert judge.resumed > 0


@pytest.mark.parametrize("name", ["rows never fsynced", "session.json not fsynced"])
def test_a_missing_fsync_is_found(voyage: Voyage, judge: Judge, name: str) -> None:
    """Evidence that the campaign can fail: the same recording without those fsyncs has bad states."""
    doctor = PLANTS[name].doctor
    assert doctor is not None
    assert survey(doctor(voyage.recording), judge, False, Random(1)).bad > 0


def test_a_recovery_that_throws_tails_away_is_found(
    voyage: Voyage, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence that the campaign can fail: recovery that keeps no copy of what it cuts off has bad states."""
    patch = PLANTS["torn tails thrown away"].patch
    assert patch is not None
    patch(monkeypatch)
    found = survey(voyage.recording, Judge(place, voyage.written), False, Random(1))
    assert "N bytes were thrown away" in " ".join(found.examples)


def test_an_invented_row_is_seen(voyage: Voyage, judge: Judge) -> None:
    """A recording that holds a row which nobody wrote, or one row twice, is not taken for a good one."""
    tree = final(voyage.recording)
    chunk = next(path for path in tree if path.endswith(".csv"))
    assert judge.judge(tree, Promises(started=True, stopped=True, rows=len(voyage.written))) == []
    twice = tree | {chunk: tree[chunk] + tree[chunk].splitlines(keepends=True)[-1]}
    assert judge.judge(twice, Promises()) != []


def test_a_promise_is_heard(voyage: Voyage) -> None:
    """From what the daemon sent it is known that it started, marked, published, sealed and stopped."""
    promises = Promises()
    for op in voyage.recording.ops:
        if isinstance(op, Send):
            promises.hear(op.data)
    assert promises.started and promises.stopped and len(promises.markers) == 2
    assert promises.rows == len(voyage.written)
    assert 0 < promises.durable_seq == promises.published_seq
    assert "chunk_00000.csv" in promises.sealed


RECORDED = [plant for plant in PLANTS.values() if plant.doctor and plant.where == "daemon"]


@pytest.mark.parametrize("plant", RECORDED, ids=lambda plant: plant.name)
def test_a_planted_fault_changes_the_recording(voyage: Voyage, plant: Plant) -> None:
    """Each fault that is planted into recordings of the daemon finds its place there."""
    assert plant.doctor is not None
    assert plant.doctor(voyage.recording) != voyage.recording
