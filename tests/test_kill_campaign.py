"""The kill campaign in short, and whether it would see what it looks for."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.messages import Marker
from common.recorder import Recorder
from tests.campaigns.told import Told, complaints, read_folder
from tests.sim.rig import ROOT
from tests.sim.streams import Heard, arrival, at_work, new_record

SYNC_ID = "0000002a-0000-4000-8000-000000000000"


def test_a_recorder_killed_at_drawn_moments_loses_nothing_it_told_of() -> None:
    """Some dozen SIGKILLs, some during recovery: the campaign finds nothing wrong."""
    options = ["--count", "30", "--daemon-kills", "0", "--ends", "0"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.campaigns.kill", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "recorder: killed 30 times" in ended.stdout


async def recorded(folder: Path) -> Told:
    """Two chunks, of twenty readings and a marker, and what was told of them."""
    clock, heard = SystemClock(), Heard(folder)
    for _ in range(2):
        begin = Recorder.resume(folder, clock, heard) if folder.exists() else None
        recorder = await (begin or Recorder.create(folder, new_record(), clock, heard))
        async with at_work(recorder):
            for number in range(10):
                recorder.take(arrival(clock, f"1.{number:06d}"))
            now = clock.stamp()
            await recorder.mark(Marker(SYNC_ID, "PERIODIC", 0, 0, now.mono_ns, now.utc_ns, -1))
    told = Told({row.seq: row.value for row in read_folder(folder).rows}, 19, {SYNC_ID})
    assert len(told.published) == 20
    return told


def cut_a_row_out(chunk: Path, _folder: Path) -> None:
    rows = chunk.read_bytes().splitlines(keepends=True)
    chunk.write_bytes(b"".join(rows[:4] + rows[5:]))


def write_a_row_twice(chunk: Path, _folder: Path) -> None:
    rows = chunk.read_bytes().splitlines(keepends=True)
    chunk.write_bytes(b"".join([*rows, rows[3]]))


def swap_two_rows(chunk: Path, _folder: Path) -> None:
    rows = chunk.read_bytes().splitlines(keepends=True)
    chunk.write_bytes(b"".join([*rows[:3], rows[4], rows[3], *rows[5:]]))


def flip_a_bit(chunk: Path, _folder: Path) -> None:
    content = bytearray(chunk.read_bytes())
    content[200] ^= 1
    chunk.write_bytes(content)


def tear_the_end(chunk: Path, _folder: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:-7])


def lose_a_chunk(chunk: Path, _folder: Path) -> None:
    chunk.unlink()


def keep_a_chunk_twice(chunk: Path, _folder: Path) -> None:
    chunk.with_suffix(".tmp").write_bytes(chunk.read_bytes())


def lose_the_end(chunk: Path, _folder: Path) -> None:
    chunk.with_name("chunk_00001.csv").unlink()


def lose_a_markers_line(_chunk: Path, folder: Path) -> None:
    (folder / "markers.jsonl").write_bytes(b"")


def stamp_a_marker_twice(_chunk: Path, folder: Path) -> None:
    line = (folder / "markers.jsonl").read_text()
    (folder / "markers.jsonl").write_text(line + line.replace('"mono_ns":', '"mono_ns":1'))


DAMAGES = [
    cut_a_row_out,
    write_a_row_twice,
    swap_two_rows,
    flip_a_bit,
    tear_the_end,
    lose_a_chunk,
    keep_a_chunk_twice,
    lose_the_end,
    lose_a_markers_line,
    stamp_a_marker_twice,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_planted_damage_is_seen(tmp_path: Path, damage: Callable[[Path, Path], None]) -> None:
    """What the campaign holds a folder against is silent on a sound one, and speaks of each damage."""
    folder = tmp_path / "stream"
    told = await recorded(folder)
    assert complaints(read_folder(folder), told) == []
    damage(folder / "chunk_00000.csv", folder)
    assert complaints(read_folder(folder), told) != []


async def test_a_number_told_twice_is_seen(tmp_path: Path) -> None:
    """Rows that are not what was published under their number, or were published as two, are complaints."""
    folder = tmp_path / "stream"
    told = await recorded(folder)
    told.publish(3, "9.999999")
    assert complaints(read_folder(folder), told) != []
    assert complaints(read_folder(folder), Told({3: "9.999999"})) == [
        "1 rows are not as published, from seq 3 on"
    ]
