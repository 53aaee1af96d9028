"""A folder whose chunks are only partly combined, or partly gone: every row is read, and once."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from common.manifest import Manifest
from common.messages import Chunk, Reading, to_json
from common.rows import encode_row
from tests.sim import HEAD, MS, UTC_0, old_row
from tests.sim.drawn import reading
from tests.sim.rows import read, recorded
from topside_daemon.fusion.parts import chunk_files, parts_of

OLD_HEAD = b"timestamp,sensor_id,mode,value,TempC,Vin"
CHUNKS, ROWS = 6, 5  # in a folder, and in each chunk
NAMES = [f"chunk_{number:05}.csv" for number in range(CHUNKS)]


def old_rows(number: int) -> list[bytes]:
    first = number * ROWS
    return [old_row(UTC_0 + n * 100 * MS, f"0.{n:05}").encode() for n in range(first, first + ROWS)]


def our_rows(number: int) -> list[bytes]:
    return [encode_row(reading(seq)).rstrip() for seq in range(number * ROWS, (number + 1) * ROWS)]


class Recording:
    """The chunks of one folder, and what the old Cockpit makes of them."""

    def __init__(self, folder: Path, ours: bool, line_end: bytes) -> None:
        self.folder = folder
        folder.mkdir()
        self._head = HEAD.strip() if ours else OLD_HEAD
        self._rows = our_rows if ours else old_rows
        for number in range(CHUNKS):
            self.write(NAMES[number], self._rows(number), line_end)

    def write(self, name: str, rows: Sequence[bytes], line_end: bytes = b"\n") -> None:
        (self.folder / name).write_bytes(line_end.join([self._head, *rows, b""]))

    def combine(self, chunks: int, cut: int | None = None) -> None:
        """The first chunks, all of it or as far as some byte."""
        self.write("session.csv", [row for number in range(chunks) for row in self._rows(number)])
        combined = self.folder / "session.csv"
        combined.write_bytes(combined.read_bytes()[:cut])

    def remove(self, *numbers: int) -> None:
        for number in numbers:
            (self.folder / NAMES[number]).unlink()


def numbers_in(folder: Path) -> list[int]:
    """Which readings were read, by value or seq; nothing was left out or called twice there."""
    stream = read(folder.parent).inwater
    assert (stream.rejects, stream.duplicates, stream.torn) == ([], 0, 0)
    found: list[Reading] = recorded(stream)
    return [one.seq if one.seq >= 0 else int(one.value[2:]) for one in found]


@pytest.fixture(params=[(False, b"\n"), (False, b"\r\n"), (True, b"\r\n")], ids=["LF", "CRLF", "ours"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Recording:
    """With chunks only."""
    return Recording(tmp_path / "in-water_5f1d", *request.param)


@pytest.mark.parametrize("step", range(2 * CHUNKS + 8))
def test_a_combining_that_broke_off_costs_nothing(recording: Recording, step: int) -> None:
    """Cut anywhere: in the copying, before and in the removal of the chunks, in any order."""
    rng = Random(step)
    if step < CHUNKS + 4:
        recording.combine(CHUNKS, cut=rng.randrange(1600))
    else:
        recording.combine(CHUNKS)
        recording.remove(*rng.sample(range(CHUNKS), step - CHUNKS - 4 if step < 2 * CHUNKS + 4 else 2))
    assert numbers_in(recording.folder) == list(range(CHUNKS * ROWS))


@pytest.mark.parametrize("combined", range(1, CHUNKS))
def test_a_recording_that_went_on_after_a_combining_is_whole(recording: Recording, combined: int) -> None:
    """Chunks that came later are read behind the combined file, and named."""
    recording.combine(combined)
    recording.remove(*range(combined - (combined > 2)))
    assert numbers_in(recording.folder) == list(range(CHUNKS * ROWS))
    [note] = [one for one in read(recording.folder.parent).notes if "session.csv" in one]
    assert note.startswith(f"in-water_5f1d: session.csv was read; so were {NAMES[combined]}, ")


@pytest.mark.parametrize("content", [b"", OLD_HEAD + b"\n"], ids=["nothing", "a header"])
def test_an_open_chunk_without_rows_hides_nothing(tmp_path: Path, content: bytes) -> None:
    """The combined file is the record still."""
    recording = Recording(tmp_path / "in-water_5f1d", False, b"\n")
    recording.combine(CHUNKS)
    recording.remove(*range(CHUNKS))
    (recording.folder / f"chunk_{CHUNKS:05}.csv.tmp").write_bytes(content)
    assert numbers_in(recording.folder) == list(range(CHUNKS * ROWS))


def test_chunks_that_the_manifest_knows_are_not_compared(recording: Recording) -> None:
    """They are the record, whatever has become of the file made of them: that would be read for nothing."""
    recording.combine(CHUNKS, cut=-40)
    chunks = [Chunk(number, name, ROWS, 1, "00") for number, name in enumerate(NAMES)]
    assert parts_of(recording.folder, Manifest.of("5f1d", "t", chunks)) == (NAMES, "")


def test_a_chunk_that_is_not_there_is_named(recording: Recording) -> None:
    """Where no manifest tells, the numbers do."""
    recording.remove(1, 3)
    assert chunk_files(recording.folder) == [NAMES[0], NAMES[2], *NAMES[4:]]
    [note] = read(recording.folder.parent).notes[:1]
    assert note == (
        "in-water_5f1d: chunk_00001.csv, chunk_00003.csv not in the folder, though later ones are"
    )


def test_rows_that_only_the_manifest_knows_are_told(recording: Recording) -> None:
    """Of a chunk that is neither there nor in the combined file."""
    recording.combine(2)
    recording.remove(0, 1, 3)
    chunks = [Chunk(number, name, ROWS, 1, "00") for number, name in enumerate(NAMES)]
    (recording.folder / "manifest.json").write_bytes(to_json(Manifest.of("5f1d", "t", chunks)))
    notes = read(recording.folder.parent).notes
    assert f"in-water_5f1d: {ROWS} rows that the manifest counts are in no file" in notes


def test_a_date_for_a_number_costs_nothing(tmp_path: Path) -> None:
    """Holes are counted, and the first of them named."""
    recording = Recording(tmp_path / "in-water_5f1d", False, b"\n")
    (recording.folder / NAMES[0]).rename(recording.folder / "chunk_999999999.csv")
    [note] = read(tmp_path).notes[:1]
    assert note.startswith("in-water_5f1d: chunk_00000.csv, chunk_00006.csv, chunk_00007.csv, ")
    assert "and 999999989 more not in the folder" in note
