"""The recorder on real files: numbers without holes, rows before announcements, markers once."""

import asyncio
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.chunkstore import main as chunkstore
from common.chunkstore import verify
from common.clock import SystemClock
from common.files import read_json, read_lines
from common.messages import Event, Marker, to_json
from common.recorder import PUBLISHED_MAX, Recorder, RecordingEnded
from common.recording import StreamRecord
from tests.sim.clocks import SimClock
from tests.sim.disk import content_of, full_after
from tests.sim.streams import Heard, arrival, at_work, new_record, seqs_in, take, until

ROOT = Path(__file__).resolve().parent.parent
VICTIM = """
import asyncio, sys
from pathlib import Path
from common.clock import SystemClock
from common.recorder import Recorder
from tests.sim.streams import Heard, arrival, new_record

class Told(Heard):
    def rows(self, readings):
        for reading in readings:
            print(reading.seq, flush=True)

async def main(folder):
    clock, heard = SystemClock(), Told(folder)
    if folder.exists():
        recorder = await Recorder.resume(folder, clock, heard)
    else:
        recorder = await Recorder.create(folder, new_record(0.02), clock, heard)
    running = asyncio.create_task(recorder.run())
    while not running.done():
        recorder.take(arrival(clock))
        await asyncio.sleep(0.001)

asyncio.run(main(Path(sys.argv[1])))
"""


def marker(clock: SimClock, sequence: int = 1) -> Marker:
    now = clock.stamp()
    return Marker(
        "f47ac10b-58cc-4372-a567-0e02b2c3d479", "PERIODIC", sequence, 0, now.mono_ns, now.utc_ns, -1
    )


async def begin(folder: Path, clock: SimClock, heard: Heard) -> Recorder:
    return await Recorder.create(folder, new_record(), clock, heard)


def kept(folder: Path) -> StreamRecord:
    record = read_json(folder / "session.json", StreamRecord)
    assert record is not None
    return record


def after_power_cut(folder: Path, durable_bytes: int) -> Path:
    """The folder as a power cut leaves it: of the open chunk only what was synced, and zeros."""
    dead = folder.with_name(folder.name + "_dead")
    shutil.copytree(folder, dead)
    for path in dead.glob("*.tmp"):
        synced = path.read_bytes()[:durable_bytes]
        path.write_bytes(synced + bytes(path.stat().st_size - len(synced)))
    return dead


async def test_readings_are_numbered_and_kept_in_order(tmp_path: Path) -> None:
    """Every arrival becomes one row, numbered from 0 without holes, told of once it is in the file."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    recorder = await begin(folder, clock, heard)
    async with at_work(recorder):
        for count in (1, 7, 30):
            take(recorder, clock, count)
            await until(lambda: recorder.last_seq == len(heard.seqs) - 1 and not recorder.trouble)
        await until(lambda: len(heard.seqs) == 38)
    assert heard.seqs == seqs_in(folder) == list(range(38))
    assert heard.unwritten == []
    assert recorder.rows == 38


async def test_stopping_seals_and_is_final(tmp_path: Path) -> None:
    """After stop all rows are sealed and durable, the record says so, and nothing can be added."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    recorder = await begin(folder, clock, heard)
    async with at_work(recorder):
        await recorder.mark(marker(clock, 1))
        take(recorder, clock, 5)
        await recorder.stop()
        await recorder.stop()
        assert (recorder.durable_seq, recorder.open_chunk) == (4, None)
        assert heard.chunks == recorder.chunks
        with pytest.raises(RecordingEnded):
            await recorder.mark(marker(clock, 2))
        again, new = await recorder.mark(marker(clock, 1))
        assert (again.after_seq, new) == (-1, False)
    record = kept(folder)
    assert (record.state, record.stopped_at is None) == ("stopped", False)
    assert verify(folder).damage == []
    assert seqs_in(folder) == list(range(5))
    assert list(folder.glob("*.tmp")) == []


async def test_closing_seals_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """A daemon told to end loses nothing, and its successor continues the numbers in a new chunk."""
    clock, folder = SimClock(), tmp_path / "stream"
    first = await begin(folder, clock, Heard(folder))
    async with at_work(first):
        take(first, clock, 5)
    assert kept(folder).state == "recording"
    assert list(folder.glob("*.tmp")) == []
    heard = Heard(folder)
    second = await Recorder.resume(folder, clock, heard)
    async with at_work(second):
        take(second, clock, 5)
    assert heard.seqs == [5, 6, 7, 8, 9]
    assert seqs_in(folder) == list(range(10))
    assert [chunk.index for chunk in second.chunks] == [0, 1]
    assert heard.kinds == ["resumed", "gap"]
    assert "seq 4 to 5" in heard.events[1].detail
    assert len(kept(folder).epochs) == 1


def test_killed_again_and_again_it_is_one_record(tmp_path: Path) -> None:
    """SIGKILL at drawn moments: what was told is on file once, and the numbers have no hole."""
    folder, rng = tmp_path / "stream", random.Random(7)
    told: list[int] = []
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as victim:
            assert victim.stdout is not None
            told += [int(victim.stdout.readline()) for _ in range(rng.randrange(20, 60))]
            victim.kill()
            told += [int(line) for line in victim.stdout.read().splitlines(keepends=True) if "\n" in line]
    recovered = chunkstore(["recover", str(folder)])
    written = seqs_in(folder)
    assert recovered == 0
    assert written == list(range(len(written)))
    assert told == sorted(set(told))
    assert told[-1] <= written[-1]


@pytest.mark.parametrize("meanwhile", ["nothing", "recovered by hand", "resumed and killed"])
async def test_after_a_power_cut_no_number_is_used_twice(tmp_path: Path, meanwhile: str) -> None:
    """Rows told of but lost keep their numbers for ever; an event says which are left out."""
    clock, folder = SimClock(), tmp_path / "stream"
    recorder = await begin(folder, clock, Heard(folder))
    async with at_work(recorder):
        take(recorder, clock, 5)
        await recorder.mark(marker(clock))
        take(recorder, clock, 5)
        await until(lambda: recorder.last_seq == 9)
        assert recorder.open_chunk is not None
        assert recorder.durable_seq == 4
        dead = after_power_cut(folder, recorder.open_chunk.durable_bytes)
    clock.reboot()
    if meanwhile == "recovered by hand":
        chunkstore(["recover", str(dead)])
    elif meanwhile == "resumed and killed":
        async with at_work(await Recorder.resume(dead, clock, Heard(dead))):
            dead = after_power_cut(dead, 0)
    heard = Heard(dead)
    async with at_work(await Recorder.resume(dead, clock, heard)) as second:
        take(second, clock, 1)
        await until(lambda: bool(heard.seqs))
    assert heard.seqs == [5 + PUBLISHED_MAX]
    assert seqs_in(dead) == [0, 1, 2, 3, 4, 5 + PUBLISHED_MAX]
    skipped = [one for one in read_lines(dead / "events.jsonl", Event) if one.kind == "numbers_skipped"]
    assert [event.count for event in skipped] == [PUBLISHED_MAX]
    assert [epoch.boot_id for epoch in kept(dead).epochs] == [SimClock().boot_id, clock.boot_id]
    assert ("damage" in heard.kinds) == (meanwhile != "resumed and killed")


async def test_after_an_orderly_restart_of_the_machine_no_number_is_skipped(tmp_path: Path) -> None:
    """A recorder that was closed has no rows in doubt: another epoch, the next number."""
    clock, folder = SimClock(), tmp_path / "stream"
    first = await begin(folder, clock, Heard(folder))
    async with at_work(first):
        take(first, clock, 3)
    clock.reboot()
    heard = Heard(folder)
    async with at_work(await Recorder.resume(folder, clock, heard)) as second:
        take(second, clock, 1)
    assert heard.seqs == [3]
    assert heard.kinds == ["reboot", "resumed", "gap"]
    assert [epoch.epoch for epoch in kept(folder).epochs] == [0, 1]
    row = (folder / "chunk_00001.csv").read_text().splitlines()[1].split(",")
    assert row[7] == "1"


async def test_a_clock_that_went_back_is_another_epoch(tmp_path: Path) -> None:
    """Where a boot has no name of its own, a monotonic clock that reads less has begun anew."""
    clock, folder = SimClock(), tmp_path / "stream"
    async with at_work(await begin(folder, clock, Heard(folder))):
        pass
    clock.reboot(clock.boot_id)
    async with at_work(await Recorder.resume(folder, clock, Heard(folder))):
        pass
    assert len(kept(folder).epochs) == 2


async def test_a_marker_is_written_once_and_placed(tmp_path: Path) -> None:
    """Asked at once, again, and after a restart, a marker is one row, one line and the first stamp."""
    clock, folder = SimClock(), tmp_path / "stream"
    recorder = await begin(folder, clock, Heard(folder))
    first = marker(clock)
    async with at_work(recorder):
        take(recorder, clock, 3)
        answers = await asyncio.gather(*(recorder.mark(first) for _ in range(5)))
        clock.advance(1.0)
        answers.append(await recorder.mark(marker(clock)))
    async with at_work(await Recorder.resume(folder, clock, Heard(folder))) as second:
        answers.append(await second.mark(marker(clock)))
    assert [new for _, new in answers] == [True] + [False] * 6
    assert {(one.mono_ns, one.after_seq) for one, _ in answers} == {(first.mono_ns, 2)}
    assert list(read_lines(folder / "markers.jsonl", Marker)) == [answers[0][0]]
    rows = b"".join(data for name, data in content_of(folder).items() if name.startswith("chunk_"))
    assert rows.count(b"SYNC_PERIODIC") == 1


async def test_a_marker_is_durable_when_it_is_answered(tmp_path: Path) -> None:
    """By the answer the marker and every row before it are synced, its line is in the file, all are told."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await begin(folder, clock, heard)) as recorder:
        take(recorder, clock, 4)
        written, _ = await recorder.mark(marker(clock))
        assert recorder.durable_seq == written.after_seq == 3
        assert recorder.open_chunk is not None
        assert recorder.open_chunk.durable_bytes == (folder / "chunk_00000.tmp").stat().st_size
        assert list(read_lines(folder / "markers.jsonl", Marker)) == heard.markers == [written]
        assert heard.syncs >= 1


@pytest.mark.parametrize("earlier", [0, 3])
async def test_a_marker_without_its_row_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: int
) -> None:
    """Killed between a marker's record and its row: the next run writes the row, with the first stamp."""
    monkeypatch.setattr("common.recorder.SYNC_S", 0.05)
    clock, folder = SimClock(), tmp_path / "stream"
    async with at_work(await begin(folder, clock, Heard(folder))) as recorder:
        for number in range(earlier):
            await recorder.mark(marker(clock, number))
            take(recorder, clock, 4)
            seq, chunks = 4 * number + 3, number + 1
            await until(lambda seq=seq: recorder.durable_seq == seq)  # type: ignore[misc]
            clock.advance(20.0)
            await until(lambda chunks=chunks: len(recorder.chunks) == chunks)  # type: ignore[misc]
    late = replace(marker(clock, 99), after_seq=recorder.last_seq + 3)  # readings that were lost with the row
    with (folder / "markers.jsonl").open("ab") as file:
        file.write(to_json(late) + b"\n")
    kept_late, completed = replace(late, after_seq=recorder.last_seq), []
    for _ in range(5):
        heard = Heard(folder)
        async with at_work(await Recorder.resume(folder, clock, heard)) as again:
            assert await again.mark(marker(clock, 99)) == (kept_late, False)
            clock.advance(1.0)
            take(again, clock, 2)
        completed += [event.count for event in heard.events if event.kind == "markers_completed"]
    assert completed == [1]
    rows = b"".join(data for name, data in content_of(folder).items() if name.startswith("chunk_"))
    assert rows.count(b"SYNC_PERIODIC") == earlier + 1
    assert rows.count(b",%d," % late.mono_ns) == 1
    assert seqs_in(folder) == list(range(4 * earlier + 10))


async def test_a_chunk_rolls_by_monotonic_time(tmp_path: Path) -> None:
    """Fifteen seconds of monotonic time seal a chunk; a wall clock set by an hour does not."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await begin(folder, clock, heard)) as recorder:
        take(recorder, clock, 2)
        await recorder.mark(marker(clock, 1))
        clock.step(3600.0)
        take(recorder, clock, 1)
        await recorder.mark(marker(clock, 2))
        clock.step(-7200.0)
        await recorder.mark(marker(clock, 3))
        assert heard.chunks == []
        clock.advance(15.0)
        await until(lambda: len(heard.chunks) == 1)
    assert heard.chunks[0].last_seq == 2
    assert heard.chunks[0].rows == 6


async def test_rows_become_durable_with_time_alone(tmp_path: Path) -> None:
    """Without any marker, rows are synced once the interval is over."""
    clock, folder = SimClock(), tmp_path / "stream"
    async with at_work(await begin(folder, clock, Heard(folder))) as recorder:
        take(recorder, clock, 3)
        await until(lambda: recorder.last_seq == 2)
        assert recorder.durable_seq == -1
        clock.advance(1.0)
        await until(lambda: recorder.durable_seq == 2)


async def test_a_disk_that_refuses_delays_rows_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full rows wait, unpublished, and the state says so; then all are written in order."""
    monkeypatch.setattr("common.insistence.RETRY_S", 0.01)
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await begin(folder, clock, heard)) as recorder:
        take(recorder, clock, 3)
        await until(lambda: len(heard.seqs) == 3)
        with full_after((folder / "chunk_00000.tmp").stat().st_size + 30):
            take(recorder, clock, 3)
            await until(lambda: recorder.trouble != "")
            take(recorder, clock, 3)
            assert heard.seqs == [0, 1, 2]
        await until(lambda: len(heard.seqs) == 9)
        assert recorder.trouble == ""
    assert heard.seqs == seqs_in(folder) == list(range(9))
    assert heard.kinds == ["disk_trouble", "disk_recovered"]
    assert [event.kind for event in read_lines(folder / "events.jsonl", Event)] == heard.kinds
    assert verify(folder).damage == []


async def test_memory_is_bounded_while_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound arrivals are dropped and counted, and the numbers show the hole."""
    monkeypatch.setattr("common.insistence.RETRY_S", 0.01)
    monkeypatch.setattr("common.recorder.WAITING_ROWS", 10)
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await begin(folder, clock, heard)) as recorder:
        with full_after(100):
            take(recorder, clock, 1)
            await until(lambda: recorder.trouble != "")
            take(recorder, clock, 25)
        await until(lambda: len(heard.seqs) == 11)
        take(recorder, clock, 1)
    assert recorder.dropped == 15
    assert seqs_in(folder) == [*range(11), 26]


async def test_a_disk_that_refuses_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing gives up after a while: the marker is refused, the rows counted, their numbers used again."""
    monkeypatch.setattr("common.insistence.RETRY_S", 0.01)
    monkeypatch.setattr("common.recorder.CLOSE_S", 0.05)
    clock, folder = SystemClock(), tmp_path / "stream"
    heard = Heard(folder)
    recorder = await Recorder.create(folder, new_record(), clock, heard)
    running = asyncio.create_task(recorder.run())
    take(recorder, clock, 3)
    await until(lambda: len(heard.seqs) == 3)
    with full_after((folder / "chunk_00000.tmp").stat().st_size):
        take(recorder, clock, 2)
        marking = asyncio.create_task(recorder.mark(marker(SimClock())))
        await until(lambda: recorder.trouble != "")
        running.cancel()
        with pytest.raises(RecordingEnded):
            await marking
        with pytest.raises(asyncio.CancelledError):
            await running
    assert heard.seqs == [0, 1, 2]
    assert (recorder.dropped, heard.events[-1].kind, heard.events[-1].count) == (2, "readings_lost", 2)
    async with at_work(await Recorder.resume(folder, clock, Heard(folder))) as second:
        take(second, clock, 1)
    assert seqs_in(folder) == [0, 1, 2, 3]


async def test_a_sensor_that_stayed_away_leaves_a_gap(tmp_path: Path) -> None:
    """Longer than its own pace explains, and only then: an event with the time and the number after it."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await begin(folder, clock, heard)) as recorder:
        for apart_s in (1.0, 1.1, 0.9, 1.0, 2.9, 1.0, 5.6, 1.0, 3.0):
            clock.advance(apart_s)
            take(recorder, clock, 1)
    assert [(event.kind, event.detail.partition(":")[0]) for event in heard.events] == [
        ("gap", "no reading for 5.600 s before seq 6")
    ]


async def test_what_happened_is_told_once_and_kept(tmp_path: Path) -> None:
    """A note reaches the listener and events.jsonl, with its count and both clocks."""
    clock, folder = SimClock(), tmp_path / "stream"
    heard = Heard(folder)
    async with at_work(await begin(folder, clock, heard)) as recorder:
        recorder.note("noise", "12 bytes", 12)
    expected = Event("noise", clock.mono_ns(), clock.utc_ns(), "12 bytes", 12)
    assert heard.events == list(read_lines(folder / "events.jsonl", Event)) == [expected]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\0" * 100])
async def test_a_folder_without_its_record_is_not_resumed(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged session.json is a ValueError that names it."""
    if content is not None:
        (tmp_path / "session.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"session\.json"):
        await Recorder.resume(tmp_path, SimClock(), Heard(tmp_path))


async def test_the_sensors_own_digits_are_kept(tmp_path: Path) -> None:
    """A value is written as it came, not as a float would print it."""
    clock, folder = SimClock(), tmp_path / "stream"
    async with at_work(await begin(folder, clock, Heard(folder))) as recorder:
        recorder.take(arrival(clock, "0.01570000"))
    assert b",freerun,0.01570000,25.19,," in (folder / "chunk_00000.csv").read_bytes()
