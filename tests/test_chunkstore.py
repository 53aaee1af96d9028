"""Chunk files under kills, torn tails, lost manifests and full disks: no whole row is lost or invented."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.chunkstore import ROLL_BYTES, ChunkStore, Manifest, main, recover, scan, verify
from common.manifest import read_manifest
from common.messages import Marker, Reading
from common.rows import HEADER, decode_row, encode_marker_row, encode_row
from tests.sim.disk import close_files_below, content_of, full_after, lay_down, stages
from tests.sim.drawn import reading

pytestmark = pytest.mark.heavy

HEAD = HEADER.encode() + b"\r\n"
MARKER_ROW = encode_marker_row(Marker("f47ac10b", "PERIODIC", 1, 0, 5, 1000, 0), "Q7799")
JUNK = st.sampled_from([b"", b"\0" * 4096, b"\n", b"\r\n", HEAD, MARKER_ROW[5:]]) | st.binary(max_size=64)
SECOND_NS = 1_000_000_000


def row(seq: int) -> bytes:
    return encode_row(reading(seq))


def open_store(folder: Path, roll_interval_s: float = 60.0) -> ChunkStore:
    return ChunkStore(folder, "session", "2026-11-22T00:00:00.000000+00:00", roll_interval_s)


def fill(store: ChunkStore, first: int, end: int) -> None:
    store.append([row(seq) for seq in range(first, end)], list(range(first, end)), 0)


def rows_in(folder: Path) -> list[bytes]:
    """All rows below *folder*, in file order."""
    found: list[bytes] = []
    for path in sorted(folder.glob("chunk_*.csv")) + sorted(folder.glob("chunk_*.tmp")):
        head, *rows = path.read_bytes().splitlines(keepends=True)
        assert head == HEAD
        found += rows
    return found


def seqs_in(folder: Path) -> list[int]:
    readings = map(decode_row, rows_in(folder))
    return [reading.seq for reading in readings if reading is not None]


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


@settings(max_examples=60, stateful_step_count=25)
class Life(RuleBasedStateMachine):
    """A folder through appends, kills and damage to its open end, beside a plain list of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="chunks-"))
        self.store = open_store(self.folder)
        self.rows: list[bytes] = []
        self.next_seq = 0

    @rule(count=st.integers(1, 5), marked=st.booleans())
    def append(self, count: int, marked: bool) -> None:
        seqs = list(range(self.next_seq, self.next_seq + count))
        rows = [row(seq) for seq in seqs] + [MARKER_ROW] * marked
        self.store.append(rows, seqs, 0)
        self.rows += rows
        self.next_seq += count
        assert self.store.last_seq == seqs[-1]

    @rule()
    def append_only_a_marker(self) -> None:
        self.store.append([MARKER_ROW], [], 0)
        self.rows.append(MARKER_ROW)

    @rule()
    def sync(self) -> None:
        self.store.sync()
        assert self.store.durable_seq == self.store.last_seq

    @rule()
    def seal(self) -> None:
        was_open, chunks = self.store.open_index is not None, len(self.store.chunks)
        assert (self.store.seal() is not None) == was_open
        assert len(self.store.chunks) == chunks + was_open

    @rule(junk=JUNK, damage=st.sampled_from(["", "deleted", "garbled", "emptied"]), data=st.data())
    def die(self, junk: bytes, damage: str, data: st.DataObject) -> None:
        close_files_below(self.folder)
        self._damage_manifest(damage)
        sealed_rows = sum(chunk.rows for chunk in self.store.chunks)
        expected, bad = sealed_rows, b""
        for path in self.folder.glob("chunk_*.tmp"):
            content = path.read_bytes()
            kept = content[: data.draw(st.integers(0, len(content)))]
            path.write_bytes(kept + junk)
            expected += max(kept.count(b"\r\n") - 1, 0)
            bad = (kept + junk)[scan(kept + junk).good_bytes :]
        self.store = open_store(self.folder)
        self._recovered(expected, bad)

    def _damage_manifest(self, damage: str) -> None:
        path = self.folder / "manifest.json"
        if damage == "deleted":
            path.unlink()
        elif damage:
            path.write_bytes(b'{"chunks": [{"index": 0' if damage == "garbled" else b"")

    def _recovered(self, expected: int, bad: bytes) -> None:
        assert self.store.rows >= expected
        self.rows = self.rows[: self.store.rows]
        self.next_seq = self.store.last_seq + 1
        assert self.store.durable_seq == self.store.last_seq
        assert bool(bad) == bool(self.store.verdict.damage)
        assert not bad or bad in [path.read_bytes() for path in self.folder.glob("*.torn*")]
        again = recover(self.folder)
        assert (again.chunks, again.damage, again.unclean) == (self.store.chunks, [], False)

    @invariant()
    def the_files_have_every_row_once_and_in_order(self) -> None:
        assert rows_in(self.folder) == self.rows
        assert self.store.rows == len(self.rows)
        assert seqs_in(self.folder) == list(range(self.next_seq))

    @invariant()
    def the_manifest_says_what_the_sealed_files_are(self) -> None:
        manifest = manifest_of(self.folder)
        assert manifest.chunks == self.store.chunks
        assert manifest.total_rows == sum(chunk.rows for chunk in manifest.chunks)
        assert [chunk.name for chunk in manifest.chunks] == sorted(
            path.name for path in self.folder.glob("*.csv")
        )
        for chunk in manifest.chunks:
            content = (self.folder / chunk.name).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (chunk.sha256, chunk.size_bytes)

    @precondition(lambda self: self.store.open_index is None)
    @invariant()
    def what_is_sealed_verifies(self) -> None:
        assert verify(self.folder).damage == []

    def teardown(self) -> None:
        close_files_below(self.folder)
        shutil.rmtree(self.folder)


TestLife = Life.TestCase


def left_open(folder: Path, tail: bytes) -> Path:
    """A killed store: one chunk sealed, one open with a damaged end, no manifest of it."""
    folder.mkdir()
    store = open_store(folder)
    fill(store, 0, 3)
    store.seal()
    fill(store, 3, 6)
    close_files_below(folder)
    with (folder / "chunk_00001.tmp").open("ab") as file:
        file.write(tail)
    return folder


@pytest.mark.parametrize("tail", [b"", b"\0" * 100, row(6)[:-3]])
def test_recovery_may_be_killed_anywhere(tmp_path: Path, tail: bytes) -> None:
    """Whatever recovery has done when it dies, the next one comes to the same chunks and keeps the tail."""
    folder = left_open(tmp_path / "stream", tail)
    states = stages(folder, lambda: recover(folder))
    expected = recover(folder).chunks
    assert len(states) > 2
    for number, state in enumerate(states):
        copy = lay_down(tmp_path / f"killed_{number}", state)
        assert recover(copy).chunks == expected
        assert seqs_in(copy) == list(range(6))
        assert not tail or tail in content_of(copy).values()


def test_a_store_may_be_killed_anywhere(tmp_path: Path) -> None:
    """At every statement of open, append and seal the folder recovers to all rows the OS had by then."""
    folder = tmp_path / "stream"
    folder.mkdir()

    def live() -> None:
        store = open_store(folder)
        for first in (0, 2, 4):
            fill(store, first, first + 2)
            store.seal()

    states = stages(folder, live)
    rows_then = [
        sum(data.count(b"\r\n") - 1 for name, data in state.items() if "chunk_" in name and data)
        for state in states
    ]
    assert rows_then == sorted(rows_then)
    assert rows_then[-1] == 6
    for number, (state, rows) in enumerate(zip(states, rows_then, strict=True)):
        copy = lay_down(tmp_path / f"killed_{number}", state)
        store = open_store(copy)
        assert store.verdict.damage == []
        assert seqs_in(copy) == list(range(rows))


@given(st.integers(1, 4000))
@settings(max_examples=50)
def test_a_full_disk_leaves_no_half_row(room_bytes: int) -> None:
    """Wherever the disk runs full the open chunk ends with a whole row, and the same rows fit later."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = open_store(folder)
        seq = 0
        with full_after(room_bytes):
            while True:
                try:
                    fill(store, seq, seq + 3)
                except OSError:
                    break
                seq += 3
        assert seqs_in(folder) == list(range(seq))
        fill(store, seq, seq + 3)
        chunk = store.seal()
        assert chunk is not None
        assert (chunk.rows, store.last_seq) == (seq + 3, seq + 2)
        assert verify(folder).damage == []


def test_a_seal_that_the_disk_refuses_is_done_by_the_next_try(tmp_path: Path) -> None:
    """A chunk whose manifest could not be written is still told of, once it can."""
    store = open_store(tmp_path)
    fill(store, 0, 3)
    in_the_way = tmp_path / "manifest.json.new"
    in_the_way.mkdir()
    with pytest.raises(OSError, match="directory"):
        store.seal()
    in_the_way.rmdir()
    chunk = store.seal()
    assert chunk is not None
    assert manifest_of(tmp_path).chunks == store.chunks == [chunk]
    fill(store, 3, 5)
    store.seal()
    assert verify(tmp_path).damage == []
    assert seqs_in(tmp_path) == list(range(5))


def test_the_manifest_of_a_long_recording_costs_little(tmp_path: Path) -> None:
    """It knows every chunk at any time, is whole once the store has finished, and is not rewritten for
    each."""
    store, rewritten, before = open_store(tmp_path), 0, b""
    for number in range(200):
        fill(store, number, number + 1)
        store.seal()
        assert manifest_of(tmp_path).chunks == store.chunks
        whole = (tmp_path / "manifest.json").read_bytes()
        rewritten, before = rewritten + (whole != before), whole
    assert rewritten < 50
    store.finish()
    alone = msgspec.json.decode((tmp_path / "manifest.json").read_bytes(), type=Manifest)
    assert alone.chunks == store.chunks and not (tmp_path / "manifest.jsonl").exists()


def test_a_chunk_rolls_by_age_and_by_size(tmp_path: Path) -> None:
    """Age counts from the first row of the chunk; no chunk is due that is not open."""
    store = open_store(tmp_path, roll_interval_s=15.0)
    assert not store.roll_due(10**18)
    store.append([row(0)], [0], 100 * SECOND_NS)
    assert not store.roll_due(115 * SECOND_NS - 1)
    assert store.roll_due(115 * SECOND_NS)
    store.seal()
    store.append([row(1)] * (ROLL_BYTES // len(row(1)) + 1), [1], 200 * SECOND_NS)
    assert store.roll_due(200 * SECOND_NS)
    store.seal()


def test_durable_moves_only_with_a_sync(tmp_path: Path) -> None:
    """What is durable is what was synced, in rows and in bytes of the open chunk."""
    store = open_store(tmp_path)
    fill(store, 0, 3)
    assert (store.durable_seq, store.durable_bytes, store.open_index) == (-1, 0, 0)
    store.sync()
    size = (tmp_path / "chunk_00000.tmp").stat().st_size
    assert (store.durable_seq, store.durable_bytes) == (2, size)
    fill(store, 3, 4)
    assert (store.durable_seq, store.durable_bytes) == (2, size)
    store.seal()
    assert (store.durable_seq, store.open_index) == (3, None)


@given(st.data())
@settings(max_examples=200)
def test_a_scan_stops_at_the_first_damage(data: st.DataObject) -> None:
    """Any changed byte costs the rows from it on, and none before it."""
    rows = [row(seq) for seq in range(4)]
    content = HEAD + b"".join(rows)
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    found = scan(content[:at] + bytes([byte]) + content[at + 1 :])
    whole = max(content[:at].count(b"\r\n") - 1, 0)
    assert found.rows == whole
    assert found.last_seq == (whole - 1 if whole else None)
    assert not found.whole


@given(st.binary() | st.binary().map(lambda junk: HEAD + junk))
def test_a_scan_of_junk_finds_nothing(content: bytes) -> None:
    """No bytes at all make a scan raise, or find a row that was not written."""
    assert scan(content).rows == 0


def test_a_row_with_a_right_checksum_and_a_wrong_number_is_damage() -> None:
    """A checksum proves the bytes, not that they are ours."""
    body = row(0).rpartition(b",")[0].replace(b",0,0,", b",none,0,")
    forged = body + b",%08x\r\n" % crc32(body)
    assert scan(HEAD + row(0) + forged).rows == 1


def test_a_changed_sealed_chunk_is_found_and_left_alone(tmp_path: Path) -> None:
    """Verification reads every byte, names what changed since sealing, and mends nothing."""
    store = open_store(tmp_path)
    fill(store, 0, 3)
    store.seal()
    path = tmp_path / "chunk_00000.csv"
    other = HEAD + row(0) + row(1) + row(7)
    path.write_bytes(other)
    assert verify(tmp_path).damage == ["chunk_00000.csv: changed since it was sealed"]
    assert path.read_bytes() == other


@pytest.mark.parametrize("action", ["verify", "recover"])
def test_the_command_says_whole_lossy_or_unusable(
    tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 for a whole folder, 3 for a damaged one with its loss counted, 1 for one without rows or none."""
    whole = left_open(tmp_path / "whole", b"")
    assert main([action, str(whole)]) == 0
    assert "2 chunks, 6 rows, 0 damaged" in capsys.readouterr().out
    torn = left_open(tmp_path / "torn", row(6)[:-4])
    assert main([action, str(torn)]) == 3
    assert f"{len(row(6)) - 4} bytes after row 3" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main([action, str(tmp_path / "empty")]) == 1
    assert main([action, str(tmp_path / "nowhere")]) == 1
    assert "name the folder" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["verify", "recover"])
def test_a_chunk_that_is_gone_is_a_loss(
    tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sealed chunk that the manifest knows and the folder has not is counted, not passed over."""
    folder = left_open(tmp_path / "stream", b"")
    (folder / "chunk_00000.csv").unlink()
    assert main([action, str(folder)]) == 3
    assert "chunk_00000.csv: in the manifest, not in the folder" in capsys.readouterr().out


def test_recovery_by_command_is_done_once(tmp_path: Path) -> None:
    """As a program: the first run mends with exit code 3, the second finds nothing to do."""
    folder = left_open(tmp_path / "stream", b"\0" * 10)
    command = [sys.executable, "-m", "common.chunkstore", "recover", str(folder)]
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 3
    assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0
    assert (folder / "chunk_00001.torn").read_bytes() == b"\0" * 10


def test_mending_never_forgets_that_a_sealed_chunk_was_changed(tmp_path: Path) -> None:
    """The hash of before stays in the manifest, so every later look finds the damage again."""
    store = ChunkStore(tmp_path, "s", "t", 15.0)
    store.append(
        [encode_row(Reading(n, 0, n, n, "id", "freerun", "1.5")) for n in range(4)], list(range(4)), 0
    )
    store.seal()
    path = tmp_path / "chunk_00000.csv"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for action in ("verify", "recover", "verify", "recover"):
        assert main([action, str(tmp_path)]) == 3
    assert any("changed since" in line for line in verify(tmp_path).damage)
