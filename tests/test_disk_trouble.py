"""A disk that is slow, full, or fails: recording goes on, says so, and loses nothing that fits in memory."""

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.chunkstore import ChunkStore, recover, verify
from common.disk import Disk
from common.files import Appender, Reserve, is_full, read_json, read_lines, why
from common.insistence import Insistence
from common.manifest import Manifest
from common.messages import Event, Marker
from common.recorder import DiskRefuses, Recorder
from common.recording import StreamRecord
from common.rows import encode_row
from tests.sim.clocks import SimClock
from tests.sim.disk import content_of, full_after
from tests.sim.drawn import reading
from tests.sim.streams import Heard, at_work, new_record, seqs_in, take, until

Patch = pytest.MonkeyPatch
TRUE_FSYNC = os.fsync


def sabotage(monkeypatch: Patch, folder: Path, times: int) -> list[Path]:
    """The next *times* fsyncs of an open chunk fail; returns the list of those that did."""
    failed: list[Path] = []

    def fsync(fd: int) -> None:
        target = Path(f"/proc/self/fd/{fd}").readlink()
        if target.is_relative_to(folder) and target.suffix == ".tmp" and len(failed) < times:
            failed.append(target)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        TRUE_FSYNC(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return failed


def row(seq: int) -> bytes:
    return encode_row(reading(seq))


@pytest.mark.parametrize("times", [1, 3])
def test_after_a_failed_sync_the_rows_are_written_again(
    tmp_path: Path, monkeypatch: Patch, times: int
) -> None:
    """What the disk may have dropped goes into another chunk; what was durable stays where it is."""
    store = ChunkStore(tmp_path, "s", "t", 60.0)
    store.append([row(0), row(1)], [0, 1], 0)
    store.sync()
    store.append([row(2)], [2], 0)
    store.append([row(3)], [3], 0)
    failed = sabotage(monkeypatch, tmp_path, times)
    with pytest.raises(OSError, match="Input/output"):
        store.sync()
    assert store.durable_seq == 1
    for _ in range(times - 1):
        with pytest.raises(OSError, match="Input/output"):
            store.begin_again(0)
        assert store.durable_seq == 1
    store.begin_again(0)
    assert (store.durable_seq, len(failed)) == (3, times)
    store.append([row(4)], [4], 0)
    store.seal()
    assert seqs_in(tmp_path) == list(range(5))
    assert [(chunk.first_seq, chunk.last_seq) for chunk in store.chunks] == [(0, 1), (2, 4)]
    assert verify(tmp_path).damage == recover(tmp_path).damage == []


def test_a_disk_that_lies_about_a_write_is_not_believed(tmp_path: Path, monkeypatch: Patch) -> None:
    """A write that reports more than it did is undone and fails; the next one is whole."""
    file = Appender(tmp_path / "file")
    file.append(b"one\n")
    true_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: true_write(fd, data[:2]) + 1)
    with pytest.raises(OSError, match="did not write all"):
        file.append(b"two\n")
    monkeypatch.setattr(os, "write", true_write)
    file.append(b"three\n")
    assert content_of(tmp_path) == {"file": b"one\nthree\n"}
    file.close()


def test_a_half_row_that_could_not_be_cut_off_is_cut_off_later(tmp_path: Path, monkeypatch: Patch) -> None:
    """A disk that turns read-only in the middle of a row leaves nothing between two whole ones."""
    file = Appender(tmp_path / "file")
    file.append(b"one\n")

    def refuse(_fd: int, _size: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    true_truncate = os.ftruncate
    with full_after(6):
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError, match="File too large"):
            file.append(b"two\n")
        assert content_of(tmp_path) == {"file": b"one\ntw"}
        with pytest.raises(OSError, match="Read-only"):
            file.append(b"two\n")
    monkeypatch.setattr(os, "ftruncate", true_truncate)
    file.append(b"three\n")
    assert content_of(tmp_path) == {"file": b"one\nthree\n"}
    file.close()


async def test_a_failed_sync_is_an_event_and_no_loss(tmp_path: Path, monkeypatch: Patch) -> None:
    """The recorder writes anew what the disk may have dropped, and its events say so."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await Recorder.create(folder, new_record(), clock, heard)) as recorder:
        take(recorder, clock, 3)
        await until(lambda: recorder.last_seq == 2)
        sabotage(monkeypatch, folder, 1)
        await until(lambda: recorder.durable_seq == 2)
        take(recorder, clock, 2)
        await recorder.stop()
    assert heard.seqs == seqs_in(folder) == list(range(5))
    assert heard.kinds == ["sync_failed"]
    assert [event.kind for event in read_lines(folder / "events.jsonl", Event)] == heard.kinds


async def test_a_slow_sync_does_not_keep_rows_from_the_file(tmp_path: Path, monkeypatch: Patch) -> None:
    """While the disk takes its time to sync, rows go on reaching the OS and are told of."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard, release = Heard(folder), asyncio.Event()
    loop = asyncio.get_running_loop()

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".tmp":
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        TRUE_FSYNC(fd)

    async with at_work(await Recorder.create(folder, new_record(), clock, heard)) as recorder:
        monkeypatch.setattr("common.recorder.SYNC_S", 0.01)
        monkeypatch.setattr(os, "fsync", fsync)
        for goal in (3, 6, 9):
            take(recorder, clock, 3)
            await until(lambda goal=goal: len(heard.seqs) == goal)  # type: ignore[misc]
        assert (recorder.durable_seq, recorder.trouble) == (-1, "")
        release.set()
        await until(lambda: recorder.durable_seq == 8)


async def test_a_stop_that_the_disk_refuses_ends_nothing(tmp_path: Path, monkeypatch: Patch) -> None:
    """It is told why; readings go on being kept in memory, and the next stop finds them all."""
    monkeypatch.setattr("common.recorder.CLOSE_S", 0.05)
    monkeypatch.setattr("common.insistence.RETRY_S", 0.01)
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await Recorder.create(folder, new_record(), clock, heard)) as recorder:
        take(recorder, clock, 3)
        await until(lambda: len(heard.seqs) == 3)
        with full_after((folder / "chunk_00000.tmp").stat().st_size):
            take(recorder, clock, 2)
            stopping = asyncio.create_task(recorder.stop())
            await until(lambda: recorder.trouble != "")
            clock.advance(1.0)
            with pytest.raises(DiskRefuses, match="File too large"):
                await stopping
            take(recorder, clock, 2)
        await recorder.stop()
    assert recorder.record.state == "stopped"
    assert seqs_in(folder) == list(range(7))
    assert (recorder.dropped, heard.kinds) == (0, ["disk_trouble", "disk_recovered"])


@pytest.mark.parametrize("in_the_way", ["manifest.json.new", "session.json.new"])
async def test_a_stop_that_is_not_kept_whole_ends_nothing(
    tmp_path: Path, monkeypatch: Patch, in_the_way: str
) -> None:
    """Whatever the disk refuses of an end is told, what comes meanwhile is kept, the next stop is whole."""
    monkeypatch.setattr("common.recorder.CLOSE_S", 0.05)
    monkeypatch.setattr("common.insistence.RETRY_S", 0.01)
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await Recorder.create(folder, new_record(), clock, heard)) as recorder:
        take(recorder, clock, 3)
        await until(lambda: recorder.durable_seq == 2)
        (folder / in_the_way).mkdir()
        stopping = asyncio.create_task(recorder.stop())
        await until(lambda: recorder.trouble != "")
        take(recorder, clock, 2)
        clock.advance(1.0)
        with pytest.raises(DiskRefuses, match="directory"):
            await stopping
        assert recorder.record.state == "recording"
        take(recorder, clock, 2)
        (folder / in_the_way).rmdir()
        await recorder.stop()
    record = read_json(folder / "session.json", StreamRecord)
    assert record is not None and record.state == "stopped" and record.closed
    assert seqs_in(folder) == list(range(7))
    assert verify(folder).damage == []
    manifest = read_json(folder / "manifest.json", Manifest)
    assert manifest is not None and manifest.total_rows == 7


def test_what_an_end_promises_is_synced_in_order(tmp_path: Path, monkeypatch: Patch) -> None:
    """Rows, then the folder with the sealed name, then the manifest, then the record that says stopped."""
    synced: list[str] = []

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        TRUE_FSYNC(fd)

    async def live() -> None:
        clock, folder = SimClock(), tmp_path / "stream"
        async with at_work(await Recorder.create(folder, new_record(), clock, Heard(folder))) as recorder:
            take(recorder, clock, 3)
            await until(lambda: recorder.durable_seq == 2)
            now = clock.stamp()
            await recorder.mark(Marker("f47ac10b", "STOP", 0, 0, now.mono_ns, now.utc_ns, -1))
            monkeypatch.setattr(os, "fsync", fsync)
            take(recorder, clock, 1)
            await recorder.stop()

    asyncio.run(live())
    wanted = ["chunk_00000.tmp", "stream", "manifest.json.new", "session.json.new"]
    places = [synced.index(name) for name in wanted]
    assert places == sorted(places)


async def test_a_marker_is_answered_after_its_record_and_its_row_are_synced(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """First the line of the record, then the row."""
    clock, folder = SimClock(), tmp_path / "stream"
    async with at_work(await Recorder.create(folder, new_record(), clock, Heard(folder))) as recorder:
        synced: list[str] = []

        def fsync(fd: int) -> None:
            synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
            TRUE_FSYNC(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        now = clock.stamp()
        await recorder.mark(Marker("f47ac10b", "STOP", 0, 0, now.mono_ns, now.utc_ns, -1))
        assert synced.index("markers.jsonl") < synced.index("chunk_00000.tmp")


async def test_trouble_is_told_once_however_many_have_it(tmp_path: Path, monkeypatch: Patch) -> None:
    """Two that wait for the same disk make one beginning and one end of it."""
    monkeypatch.setattr("common.insistence.RETRY_S", 0.01)
    told: list[str] = []
    insistence = Insistence(SimClock(), lambda kind, _: told.append(kind), lambda: None, "readings")
    disk, refusing = Disk("test"), [True, True]

    def work(which: int) -> None:
        if refusing[which]:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    tasks = [asyncio.create_task(insistence.do(disk, lambda n=n: work(n))) for n in (0, 1)]  # type: ignore[misc]
    await until(lambda: insistence.trouble != "")
    assert "read-only" in insistence.trouble
    refusing[0] = False
    assert await tasks[0]
    assert insistence.trouble
    refusing[1] = False
    assert await tasks[1]
    assert (insistence.trouble, told) == ("", ["disk_trouble", "disk_recovered"])
    disk.close()


def test_what_a_disk_says_comes_with_its_cure() -> None:
    """Known refusals name what to do, others keep the OS's words."""
    assert "free some space" in why(OSError(errno.ENOSPC, "x"))
    assert "writable" in why(OSError(errno.EROFS, "x"))
    assert why(OSError(errno.ELOOP, "too many links")) == "too many links"
    assert is_full(OSError(errno.EDQUOT, "x")) and not is_full(OSError(errno.EIO, "x"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_what_waits_at_the_end_finds_room_on_a_full_disk(small_disk: Path, monkeypatch: Patch) -> None:
    """A stop on a disk that is full uses the space kept for it: all rows and the record are written."""
    monkeypatch.setattr("common.insistence.RETRY_S", 0.01)
    clock, folder = SimClock(), small_disk / "stream"
    heard = Heard(folder)
    async with at_work(await Recorder.create(folder, new_record(), clock, heard)) as recorder:
        take(recorder, clock, 3)
        await until(lambda: recorder.durable_seq == 2)
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while file.write(bytes(512)):
                pass
        take(recorder, clock, 60)
        await until(lambda: recorder.trouble != "")
        assert "disk full" in recorder.trouble
        await recorder.stop()
    assert recorder.record.state == "stopped"
    assert seqs_in(folder) == list(range(63))
    assert verify(folder).damage == []
    assert not Reserve(folder / ".reserve").release()
