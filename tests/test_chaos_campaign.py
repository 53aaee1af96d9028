"""The chaos and cable campaigns, short; and that they find damage which is planted in what they judge."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec import structs

from common.chunkstore import sealed_chunks
from common.rows import decode_row, encode_row
from tests.campaigns.agreement import (
    bus_context,
    mirror_faults,
    offline_faults,
    readings_of,
    staged,
    stream_faults,
    table_faults,
)
from tests.campaigns.chaos import RATE_HZ, Chaos, Kill
from tests.campaigns.cutoff import Memory
from tests.campaigns.netns import Back, NoCable, cut_and_mend, tethered
from tests.sim import draw_session
from topside_daemon.fusion.command import main as fuse

PI, TOPSIDE = 0, 1
KILLS = (
    Kill(PI, after_s=0.3, starting_s=0.0, away_s=0.5),
    Kill(TOPSIDE, after_s=0.1, starting_s=0.0, away_s=0.0),  # while the other one is down
    Kill(TOPSIDE, after_s=0.1, starting_s=0.0, away_s=0.0),  # while it starts
    Kill(PI, after_s=0.2, starting_s=0.0, away_s=0.3),  # while the session is being stopped
)


def test_both_daemons_killed_through_one_session(tmp_path: Path) -> None:
    """Killed while running, starting, alone and stopping, they leave one whole session; lies are found."""
    with staged(tmp_path, RATE_HZ) as stage, stage.running(), bus_context() as context:
        chaos = Chaos(stage.pi, stage.topside, context)
        chaos.run(KILLS)
        assert chaos.judge(stage.inwater, stage.surface) == []
        assert chaos.situations.total() == len(KILLS) and chaos.durable_seq > RATE_HZ
        chaos.durable_seq = 10**6
        chaos.heard[0].values[10**6] = 1.0
        (chaos.session / "events.jsonl").write_bytes(b"")
        unheard, undurable, unsaid = chaos.judge(stage.inwater, stage.surface)
    assert "first seq 1000000" in unheard
    assert "seq 1000000 was said to be durable" in undurable
    assert "0 events say session_resumed" in unsaid


class Files:
    """A fused session of drawn readings and the Pi's folder that it was copied from."""

    def __init__(self, folder: Path) -> None:
        drawn = draw_session(1, duration_s=10)
        self.session = drawn.write(folder / "session_x")
        self.mirror, self.original = self.session / "in-water_11111111", folder / "pi" / "11111111"
        shutil.copytree(self.mirror, self.original)
        self.sent = [reading.value for reading in drawn.inwater]
        assert fuse([str(self.session)]) == 0

    def change_rows(self, change: Callable[[list[bytes]], list[bytes]]) -> None:
        """On both sides alike."""
        for folder in (self.mirror, self.original):
            path = sealed_chunks(folder)[0]
            header, *rows = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(header + b"".join(change(rows)))

    def faults(self) -> Iterator[str]:
        yield from stream_faults(self.mirror, self.sent)
        yield from mirror_faults(self.mirror, self.original)
        yield from table_faults(self.session)


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path)


def _with_value(row: bytes, value: str) -> bytes:
    reading = decode_row(row)
    assert reading is not None
    return encode_row(structs.replace(reading, value=value))


def _lose(files: Files) -> None:
    files.change_rows(lambda rows: rows[:3] + rows[4:])


def _invent(files: Files) -> None:
    files.change_rows(lambda rows: [_with_value(rows[0], "0.123456"), *rows[1:]])


def _repeat(files: Files) -> None:
    files.change_rows(lambda rows: [*rows[:5], _with_value(rows[5], files.sent[4]), *rows[6:]])


def _spoil_copy(files: Files) -> None:
    path = sealed_chunks(files.mirror)[-1]
    *rows, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows) + _with_value(last, "9.9"))


def _lose_chunk(files: Files) -> None:
    sealed_chunks(files.original)[-1].unlink()


def _leave_open(files: Files) -> None:
    (files.mirror / "chunk_00002.tmp").write_bytes(b"")


def _lose_row_of_table(files: Files) -> None:
    table = files.session / "unified_session.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("plant", "text"),
    [
        (_lose, "seq 4 stands where 3 is due"),
        (_invent, "0.123456 (seq 0) was not sent"),
        (_repeat, "(seq 5) was not sent, or not then, or is twice"),
        (_spoil_copy, "chunk_00001.csv differs"),
        (_lose_chunk, "only on one side"),
        (_leave_open, "chunk_00002.tmp was left over"),
        (_lose_row_of_table, "does not have each"),
    ],
)
def test_planted_damage_is_found(files: Files, plant: Callable[[Files], None], text: str) -> None:
    """Each thing that a session is examined for is noticed where it is wrong, and nothing where it is not."""
    assert list(files.faults()) == []
    plant(files)
    assert any(text in fault for fault in files.faults())


def test_a_product_that_is_not_of_the_files_is_found(files: Files) -> None:
    """Fused again, a session whose table was touched differs from it; an untouched one does not."""
    assert list(offline_faults(files.session)) == []
    table = files.session / "unified_session.csv"
    table.write_bytes(table.read_bytes().replace(b"7.494", b"7.495", 1))
    assert len(list(offline_faults(files.session))) == 1


def test_a_cable_that_swallows_everything(tmp_path: Path) -> None:
    """After a real cable has been dead for a moment, readings and copy are back, and all of it is there."""
    try:
        with tethered(tmp_path, RATE_HZ) as tether:
            back = cut_and_mend(tether, "black hole", 0.5)
            assert back.live_s is not None and back.level_s is not None
            assert tether.stop() == []
            assert len(readings_of(tether.pi.data / tether.session_id)) > RATE_HZ
    except NoCable as error:
        pytest.skip(str(error))


def test_what_takes_too_long_or_grows_is_found() -> None:
    """A copy that is late or never level, and a daemon that grows, are faults."""
    assert list(Back("link down", 10.0, 200, 0, live_s=0.5, level_s=1.9).faults()) == []
    assert len(list(Back("link down", 10.0, 200, 0, live_s=2.1, level_s=None).faults())) == 2
    assert list(Memory("Pi", [40.0, 69.0, 41.0]).faults()) == []
    assert len(list(Memory("Pi", [40.0, 71.0, 41.0]).faults())) == 1
