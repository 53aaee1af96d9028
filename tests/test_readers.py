"""Session folders in: ours, a Pi's alone, the old Cockpit's; what cannot be trusted is named, not used."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.chunkstore import ChunkStore, sealed_name
from common.manifest import Manifest
from common.messages import Chunk, Marker, Reading, to_json
from common.rows import HEADER, encode_marker_row, encode_row, parse_utc
from tests.sim import HEAD, MS, UTC_0, Machine, S, Sensor, draw_reboots, draw_session, old_row, write_stream
from tests.sim.rows import read, recorded
from topside_daemon.fusion import texts
from topside_daemon.fusion.cockpit import METADATA_FILE
from topside_daemon.fusion.columns import UNNUMBERED
from topside_daemon.fusion.comparisons import EXCHANGES_FILE
from topside_daemon.fusion.folders import SessionError
from topside_daemon.fusion.fuse import fuse_session
from topside_daemon.fusion.readers import read_session
from topside_daemon.fusion.timeline import Timeline

OLD_HEAD = "timestamp,sensor_id,mode,value,TempC,Vin"
BOOT = """\
2025-11-03T20:12:38.058414+00:00,serial ######   ,freerun,1.0,,
2025-11-03T20:12:38.489905+00:00,serial ######   ,freerun,125.0,,
2025-11-03T20:12:39.161762+00:00,serial ######   ,freerun,4.003,,
2025-11-03T20:12:39.417632+00:00,serial ######   ,freerun,1.0,,
2025-11-03T20:12:39.418494+00:00,serial ######   ,freerun,7799.0,,
2025-11-03T20:12:40.601558+00:00,serial ######   ,freerun,0.0,,""".splitlines()
RECORDED = """\
2025-11-03T20:12:41.625928+00:00,serial ######   ,freerun,0.01016,25.19,7.494
2025-11-03T20:12:42.665446+00:00,serial ######   ,freerun,0.010159,25.19,7.494
2025-11-03T20:12:43.705001+00:00,serial ######   ,freerun,0.010159,25.19,7.515
2025-11-03T20:12:44.729305+00:00,serial ######   ,freerun,0.010164,25.19,7.494
2025-11-03T20:12:45.768854+00:00,serial ######   ,freerun,0.010158,25.19,7.494
2025-11-03T20:12:46.793149+00:00,serial ######   ,freerun,0.01016,25.19,7.515
2025-11-03T20:12:47.832800+00:00,serial ######   ,freerun,0.010137,25.19,7.494""".splitlines()
POLLED = ["2025-11-03T21:17:19.386277+00:00,serial ######   ,polled,0.010173,25.19,7.515"]


def bare(rows: list[str]) -> list[str]:
    return [",".join([*row.split(",")[:4], "", ""]) for row in rows]


def moved(rows: list[str], by_s: float) -> list[str]:
    """The same rows later."""

    def later(row: str) -> str:
        label, _, rest = row.partition(",")
        return old_row(parse_utc(label) + round(by_s * S), "").partition(",")[0] + "," + rest

    return [later(row) for row in rows]


def values(rows: list[str]) -> list[str]:
    return [row.split(",")[3] for row in rows]


def read_old(folder: Path, rows: list[str], line_end: str = "\n") -> tuple[list[str], list[str]]:
    """Values kept and reasons given, for a folder with one combined file."""
    folder.mkdir(exist_ok=True)
    text = line_end.join([OLD_HEAD, *rows, ""])
    (folder / "session.csv").write_bytes(text.encode())
    stream = read(folder).inwater
    return [one.value for one in recorded(stream)], [one.reason for one in stream.rejects]


def readings(count: int, start_ns: int = 0) -> list[Reading]:
    return Sensor("in", 111 * MS).readings(Random(1), Machine("pi-a"), start_ns, start_ns + count * 111 * MS)


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("reboots", [False, True])
def test_a_session_of_ours_is_read_whole(tmp_path: Path, reboots: bool) -> None:
    """Both streams, the exchanges and both lists of epochs come back as they were written."""
    drawn = draw_reboots(1) if reboots else draw_session(1, duration_s=20)
    session = read(drawn.write(tmp_path / "session"))
    assert (recorded(session.inwater), recorded(session.surface)) == (drawn.inwater, drawn.surface)
    assert list(session.comparisons) == drawn.exchanges
    assert (session.epochs, session.inwater.epochs) == (drawn.topside_epochs, drawn.pi_epochs)
    assert not session.all_rejects and not session.notes


def test_one_sensor_alone_is_a_session(tmp_path: Path) -> None:
    """A Pi's folder copied off the card, and a session whose other sensor never was, are read."""
    write_stream(tmp_path / "5f1d", readings(10))
    assert len(recorded(read(tmp_path / "5f1d").inwater)) == 10
    write_stream(tmp_path / "dive" / "surface_1", readings(10))
    session = read(tmp_path / "dive")
    assert (len(recorded(session.inwater)), len(recorded(session.surface))) == (0, 10)


def test_the_combined_file_stands_in_for_absent_chunks(tmp_path: Path) -> None:
    """Without chunks session.csv is the record; with LF line ends the checksums still hold."""
    rows = b"".join(map(encode_row, readings(5)))
    (tmp_path / "session.csv").write_bytes((HEAD + rows).replace(b"\r\n", b"\n"))
    assert recorded(read(tmp_path).inwater) == readings(5)


def test_rows_come_back_once_and_in_order(tmp_path: Path) -> None:
    """Shuffled and repeated rows are sorted by their own clock and counted as duplicates."""
    rows = readings(30)
    write_stream(tmp_path / "s", Random(2).sample([*rows, *rows[:7]], 37))
    stream = read(tmp_path / "s").inwater
    assert (recorded(stream), stream.duplicates, stream.missing) == (rows, 7, 0)


def test_a_hole_in_the_numbers_is_missing(tmp_path: Path) -> None:
    """A lost row is counted by its seq."""
    rows = readings(10)
    write_stream(tmp_path / "s", rows[:4] + rows[6:])
    assert read(tmp_path / "s").inwater.missing == 2


def test_a_chunk_that_its_manifest_knows_is_missed(tmp_path: Path) -> None:
    """A copy that broke off: the numbers it should have are missing, and the chunk is named."""
    folder = tmp_path / "in-water_a"
    folder.mkdir()
    store = ChunkStore(folder, "a", "", 15.0)
    for reading in draw_session(3, duration_s=2).inwater:
        store.append([encode_row(reading)], [reading.seq], reading.mono_ns)
        if reading.seq % 5 == 4:
            store.seal()
    store.seal()
    store.finish()
    store.close()
    whole = read(folder).inwater
    assert (whole.missing, read(folder).notes) == (0, [])
    for index in (0, len(store.chunks) - 1):
        (folder / sealed_name(index)).unlink()
    short = read(folder)
    assert short.inwater.missing == sum(store.chunks[n].rows for n in (0, -1))
    assert [note.partition(" ")[0] for note in short.notes] == [
        sealed_name(0),
        sealed_name(len(store.chunks) - 1),
    ]


@pytest.mark.parametrize(("role", "side"), [("inwater", "inwater"), ("surface", "surface")])
def test_a_folder_alone_is_the_sensor_that_its_record_names(tmp_path: Path, role: str, side: str) -> None:
    write_stream(tmp_path / "copied", draw_session(1, duration_s=1).surface)
    (tmp_path / "copied" / "session.json").write_bytes(to_json({"role": role}))
    session = read(tmp_path / "copied")
    assert getattr(session, side).index.rows > 0
    assert session.source == "one sensor, ours"


@pytest.mark.parametrize("name", ["chunk_00000.csv", "session.csv"])
def test_a_file_that_changes_while_it_is_fused_is_no_source(tmp_path: Path, name: str) -> None:
    """Its text is read twice: another file of its name is not taken for it."""
    rows = [old_row(n * S, f"{n}.5") for n in range(100)]
    (tmp_path / name).write_text("\n".join([OLD_HEAD, *rows]) + "\n")
    with read_session(tmp_path) as session:
        (tmp_path / name).unlink()
        (tmp_path / name).write_text("\n".join([OLD_HEAD, *rows[1:]]) + "\n")
        with pytest.raises(OSError, match="changed while it was fused"):
            list(session.inwater.readings())


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (2 << 20) - 1, 2 << 20, (4 << 20) + 70])
@pytest.mark.parametrize("name", ["session.csv", "chunk_00000.csv.tmp"])
def test_every_byte_is_in_the_hash(tmp_path: Path, name: str, size: int) -> None:
    """Whatever the pieces it was read in, at once or later."""
    row = (old_row(UTC_0, "0.5") + "\n").encode()
    content = (OLD_HEAD.encode() + b"\n" + row * (size // len(row) + 1))[: size - 1] + b"\n"
    (tmp_path / name).write_bytes(content)
    [found] = read(tmp_path).inputs
    assert (found.size_bytes, found.sha256) == (size, hashlib.sha256(content).hexdigest())


def test_a_large_file_that_changes_before_its_hash_is_taken_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of another file of its name goes into the report."""
    monkeypatch.setattr(texts.Texts, "hash_ahead", lambda _: None)
    path, rows = tmp_path / "session.csv", (old_row(UTC_0, "0.5") + "\n") * 20_000
    path.write_text(f"{OLD_HEAD}\n{rows}")
    with read_session(tmp_path) as session:
        monkeypatch.undo()
        path.unlink()
        path.write_text(f"{OLD_HEAD}\n{rows}")
        with pytest.raises(OSError, match="changed while it was fused"):
            session.inputs  # noqa: B018


def test_a_large_chunk_is_held_against_its_seal_too(tmp_path: Path) -> None:
    rows = b"".join(
        encode_row(Reading(n, 0, n * S, UTC_0 + n * S, "a", "freerun", "1")) for n in range(20_000)
    )
    content = HEADER.encode() + b"\r\n" + rows
    (tmp_path / "chunk_00000.csv").write_bytes(content)
    chunk = Chunk(0, "chunk_00000.csv", 20_000, len(content), "0" * 64, 0, 19_999)
    (tmp_path / "manifest.json").write_bytes(to_json(Manifest.of("a", "", [chunk])))
    session = read(tmp_path)
    assert session.inwater.index.rows == 20_000
    assert [note.partition(" ")[0] for note in session.notes] == ["chunk_00000.csv"]


@pytest.mark.parametrize(
    "reading",
    [
        Reading(2**63, 0, 0, UTC_0, "a", "freerun", "1"),
        Reading(0, 2**31, 0, UTC_0, "a", "freerun", "1"),
        Reading(0, 0, 2**63 - 1, UTC_0, "a", "freerun", "1"),
        Reading(0, 0, 0, parse_utc("2117-01-01T00:00:00.000000+00:00"), "a", "freerun", "1"),
        Reading(0, 0, 0, UTC_0, "a", "freerun", "0x10"),
        Reading(0, 0, 0, UTC_0, "a", "freerun", "1_0"),
        Reading(0, 0, 0, UTC_0, "a", "freerun", "+1.5"),
        Reading(0, 0, 0, UTC_0, "a", "freerun", "1", "hot"),
    ],
)
def test_a_row_of_ours_that_nobody_wrote_is_rejected(tmp_path: Path, reading: Reading) -> None:
    """Its checksum is right all the same; alone, and among others."""
    others = [encode_row(Reading(n, 0, n * S, UTC_0 + n * S, "a", "freerun", "1.5")) for n in range(5, 9)]
    for place, before in enumerate(([], others)):
        folder = tmp_path / str(place)
        folder.mkdir()
        rows = b"".join([HEADER.encode(), b"\r\n", *before, encode_row(reading)])
        (folder / "chunk_00000.csv").write_bytes(rows)
        stream = read(folder).inwater
        assert (stream.index.rows, [one.line for one in stream.rejects]) == (len(before), [len(before) + 2])


@pytest.mark.parametrize(
    "stamp", ["2025-11-03T20:12:46Z", "2025-11-03T20:12:46.000000Z", "2025-11-03T20:12:46+01:00"]
)
def test_half_a_number_at_an_open_end_is_torn(tmp_path: Path, stamp: str) -> None:
    """However its stamp is spelt."""
    (tmp_path / "chunk_00000.tmp").write_text(
        "\n".join([OLD_HEAD, *RECORDED, f"{stamp},s,freerun,0.51234,2"])
    )
    stream = read(tmp_path).inwater
    assert (stream.index.rows, stream.torn, stream.rejects) == (len(RECORDED), 1, [])


def test_a_header_that_is_damaged_costs_itself_only(tmp_path: Path) -> None:
    """Rows of ours keep their numbers and checksums; a line that only looks like a header is no header."""
    rows = [encode_row(one) for one in draw_session(3, duration_s=2).inwater]
    for place, header in enumerate([HEADER.replace("crc32", "crc3r"), "timestamp,garbage"]):
        folder = tmp_path / str(place)
        folder.mkdir()
        content = [header.encode() + b"\r\n", *rows[:5], b"timestamp,garbage\r\n", *rows[5:]]
        (folder / "chunk_00000.csv").write_bytes(b"".join(content))
        stream = read(folder).inwater
        assert (stream.index.rows, stream.unnumbered, stream.missing) == (len(rows), 0, 0)
        assert [one.line for one in stream.rejects] == [1, 7]


def test_numbers_that_no_clock_has_cost_a_note_or_their_line(tmp_path: Path) -> None:
    session = draw_session(3, duration_s=2)
    folder = session.write(tmp_path / "s")
    for part in ({"link": {"drift_ppm": 1e308}}, {"epochs": [{"epoch": 0, "mono_ns": -(10**30)}]}):
        (folder / "session.json").write_bytes(
            to_json(part) if "link" in part else b'{"epochs":[{"mono_ns":1e30}]}'
        )
        found = read(folder)
        assert len([note for note in found.notes if "not used" in note]) == 1
    lines = (folder / EXCHANGES_FILE).read_text().splitlines()
    moved = [re.sub(r'"t(2|3)_ns":(\d+)', r'"t\1_ns":9\g<2>00000000000000', line) for line in lines]
    (folder / EXCHANGES_FILE).write_text("\n".join(moved) + "\n")
    fuse_session(folder)
    assert json.loads((folder / "unified_session.json").read_text())["rejects"]


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    folder = draw_session(3, duration_s=1).write(tmp_path / os.fsdecode(b"dive\xff"))
    assert fuse_session(folder).session == r"dive\xff"


def test_markers_are_not_light(tmp_path: Path) -> None:
    """Marker rows of ours and of the old recorders are counted and left out."""
    marker = Marker("f47ac10b-58cc-4372-a567-0e02b2c3d479", "PERIODIC", 1, 0, 5, UTC_0, 3)
    write_stream(tmp_path / "s", readings(4))
    with (tmp_path / "s" / "chunk_00001.csv").open("ab") as file:
        file.write(encode_marker_row(marker, "in"))
    stream = read(tmp_path / "s").inwater
    assert (len(recorded(stream)), stream.markers) == (4, 1)
    row = "2025-11-03T20:12:44.000Z,x,SYNC_START,4101685509,0,0"
    assert read_old(tmp_path / "old", [*RECORDED[:3], row, *RECORDED[3:]])[0] == values(RECORDED)


def test_our_markers_come_from_their_own_file_first(tmp_path: Path) -> None:
    """`markers.jsonl` has the full name; where it is lost the rows in the chunks stand in."""
    marker = Marker("f47ac10b-58cc-4372-a567-0e02b2c3d479", "START", 0, 0, 5, UTC_0, 3)
    write_stream(tmp_path / "s", readings(4))
    with (tmp_path / "s" / "chunk_00001.csv").open("ab") as file:
        file.write(encode_marker_row(marker, "in"))
    [row] = read(tmp_path / "s").inwater.marked
    assert (row.sync_id, row.kind, row.epoch, row.mono_ns) == ("f47ac10b", "START", 0, 5)
    (tmp_path / "s" / "markers.jsonl").write_bytes(to_json(marker) + b"\n{torn")
    assert read(tmp_path / "s").inwater.marked[0] == marker


def test_old_rows_stay_in_the_order_of_arrival(tmp_path: Path) -> None:
    """A clock that was set back does not shuffle readings, and what came after has an epoch of its own."""
    rows = [*RECORDED, *moved(RECORDED, -30)]
    assert read_old(tmp_path, rows) == (values(rows), [])
    assert [one.epoch for one in recorded(read(tmp_path).inwater)] == [-1] * 7 + [-2] * 7


def test_a_damaged_row_is_named_and_left_out(tmp_path: Path) -> None:
    """A flipped digit breaks the checksum: file and line are said, the neighbours stay."""
    write_stream(tmp_path / "s", readings(10))
    chunk = tmp_path / "s" / "chunk_00000.csv"
    lines = chunk.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0.010001", b"0.910001")
    chunk.write_bytes(b"".join(lines))
    stream = read(tmp_path / "s").inwater
    assert [one.seq for one in recorded(stream)] == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [(one.file, one.line) for one in stream.rejects] == [("chunk_00000.csv", 3)]


@given(st.integers(1, 60))
def test_the_torn_end_of_an_open_chunk_is_no_loss(cut: int) -> None:
    """Wherever the last row was cut off, every whole row is there and nothing is rejected."""
    with _folder() as folder:
        whole = HEAD + b"".join(map(encode_row, readings(3)))
        (folder / "chunk_00000.tmp").write_bytes(whole[:-cut])
        stream = read(folder).inwater
        assert [one.seq for one in recorded(stream)] == ([0, 1, 2] if cut <= 2 else [0, 1])
        assert (stream.torn, stream.rejects) == (int(cut > 2), [])


@given(st.binary(max_size=300))
def test_garbage_never_raises(garbage: bytes) -> None:
    """Any bytes in any file leave the good rows readable."""
    with _folder() as folder:
        write_stream(folder / "in-water_1", readings(4))
        write_stream(folder / "surface_1", [])
        with (folder / "in-water_1" / "chunk_00000.csv").open("ab") as file:
            file.write(garbage + b"\n")
        side_files = (EXCHANGES_FILE, METADATA_FILE, "session.json", "in-water_1/markers.jsonl")
        for name in (*side_files, "surface_1/chunk_00001.csv"):
            (folder / name).write_bytes(garbage)
        assert len(recorded(read(folder).inwater)) == 4


def test_bad_exchanges_are_named_and_the_rest_used(tmp_path: Path) -> None:
    """A torn line in exchanges.jsonl costs that exchange alone."""
    drawn = draw_session(3, duration_s=5)
    drawn.write(tmp_path / "s")
    lines = [to_json(one) for one in drawn.exchanges]
    lines[1] = lines[1][:50]
    (tmp_path / "s" / EXCHANGES_FILE).write_bytes(b"\n".join(lines))
    session = read(tmp_path / "s")
    assert list(session.comparisons) == [drawn.exchanges[0], *drawn.exchanges[2:]]
    session.comparisons.give_to(lambda: Timeline([], []))
    assert [(one.file, one.line) for one in session.all_rejects] == [(EXCHANGES_FILE, 2)]


def test_a_damaged_session_file_costs_a_note(tmp_path: Path) -> None:
    """session.json is optional: unreadable, it is mentioned and the rows are all there."""
    drawn = draw_session(4, duration_s=5)
    drawn.write(tmp_path / "s")
    (tmp_path / "s" / "session.json").write_text('{"epochs": 3}')
    session = read(tmp_path / "s")
    assert len(session.notes) == 1
    assert recorded(session.inwater) == drawn.inwater


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("zone", ["Z", "+00:00"])
@pytest.mark.parametrize("digits", [0, 3, 6])
def test_old_rows_of_every_spelling(tmp_path: Path, line_end: str, zone: str, digits: int) -> None:
    """CRLF or LF, whole seconds, ms or us, Z or an offset: the instant and the digits are kept."""
    fraction = ".123456"[: digits + 1] if digits else ""
    row = f"2025-11-21T22:34:59{fraction}{zone},s,freerun,1e-7,,"
    read_old(tmp_path, [row], line_end)
    [reading] = recorded(read(tmp_path).inwater)
    assert (
        reading.utc_ns == parse_utc("2025-11-21T22:34:59+00:00") + int("123456"[:digits].ljust(6, "0")) * 1000
    )
    assert (reading.value, reading.temp_c, reading.seq) == ("1e-7", None, UNNUMBERED)


def test_old_rows_that_are_no_readings_are_named(tmp_path: Path) -> None:
    """Short, spliced and non-numeric rows are rejected; columns beyond the sixth are ignored."""
    good = RECORDED[0] + ",later,columns"
    bad = [
        "2025-11-03T20:12",
        "x,s,freerun,1.5,,",
        RECORDED[1] + RECORDED[2],
        "2025-11-03T20:12:41Z,s,f,nan,,",
    ]
    kept, reasons = read_old(tmp_path, [good, *bad, *RECORDED[3:]])
    assert kept == values([good, *RECORDED[3:]])
    assert len(reasons) == len(bad)


def test_both_generations_of_old_folders(tmp_path: Path) -> None:
    """`in-water_<id>` beside `surface_<id>`, and the bare id of the first generation."""
    for generation, name in (("new", "in-water_5f1d"), ("first", "5f1d")):
        folder = tmp_path / generation
        (folder / name).mkdir(parents=True)
        (folder / "surface_77").mkdir()
        (folder / name / "session.csv").write_text("\n".join([OLD_HEAD, *RECORDED]))
        (folder / "surface_77" / "chunk_00000.csv").write_text("\n".join([OLD_HEAD, *RECORDED[:3], ""]))
        session = read(folder)
        assert (len(recorded(session.inwater)), len(recorded(session.surface))) == (7, 3)


@pytest.mark.parametrize(
    "rows",
    [RECORDED, bare(RECORDED), RECORDED[:2], bare(RECORDED)[:2], moved(RECORDED, 0.0005)],
    ids=["full", "bare", "two", "two bare", "shifted"],
)
@pytest.mark.parametrize("boot", [BOOT, BOOT[2:], BOOT[1:]], ids=["menu", "boot", "late menu"])
def test_boot_numbers_at_the_start_are_no_readings(tmp_path: Path, rows: list[str], boot: list[str]) -> None:
    """The numbers of a real boot before the first reading are rejected by name, all readings kept."""
    kept, reasons = read_old(tmp_path, boot + rows)
    assert kept == values(rows)
    assert len(reasons) == len(boot)


@pytest.mark.parametrize("shape", [list, bare], ids=["full", "bare"])
@pytest.mark.parametrize("before", [1, 3, 7])
def test_boot_numbers_of_a_restart_mid_file_are_no_readings(
    tmp_path: Path, shape: Callable[[list[str]], list[str]], before: int
) -> None:
    """Wherever the sensor restarted, and however often, only its numbers go."""
    first = shape(moved(RECORDED, -12))[-before:]
    second, third = shape(RECORDED), shape(moved(RECORDED, 20))
    kept, reasons = read_old(tmp_path, [*first, *BOOT, *second, *moved(BOOT[2:], 20), *third])
    assert kept == values([*first, *second, *third])
    assert len(reasons) == 10


@pytest.mark.parametrize("shape", [list, bare], ids=["full", "bare"])
def test_a_polled_boot_has_no_zero(tmp_path: Path, shape: Callable[[list[str]], list[str]]) -> None:
    """Version, factor and reset number alone are recognised too."""
    rows = shape(moved(POLLED, 0) + moved(POLLED, 1.5) + moved(POLLED, 3))
    boot = moved(BOOT[2:5], 3600)
    kept, _ = read_old(tmp_path, [*boot, *rows])
    assert kept == values(rows)


@pytest.mark.parametrize("rows", [POLLED, bare(POLLED), RECORDED[:1], bare(RECORDED)[:1]])
def test_a_single_reading_is_kept(tmp_path: Path, rows: list[str]) -> None:
    """A polled file may hold one row."""
    assert read_old(tmp_path, rows) == (values(rows), [])


@pytest.mark.parametrize(
    "numbers",
    [
        ["0.0", "0.000001", "0.0", "0.0", "-1e-06", "0.0", "2e-06"],
        ["0.0", "0.001", "0.002", "0.003", "1.0", "1.001"],
        ["1234.0", "0.0", "1250.5", "0.0"],
        ["4.003", "1.0", "7799.0", "7801.0"],
        [str(float(k)) for k in range(40)],
    ],
    ids=["night", "counting", "flashing", "look-alike", "whole"],
)
@pytest.mark.parametrize("temp_c", ["25.19", ""])
def test_true_readings_that_look_odd_are_kept(tmp_path: Path, numbers: list[str], temp_c: str) -> None:
    """Zeros at night, whole numbers and jumps are light as long as they come like light."""
    rows = [old_row(UTC_0 + k * 111 * MS, number, temp_c, "") for k, number in enumerate(numbers)]
    assert read_old(tmp_path, rows) == (numbers, [])


def test_a_restart_in_a_night_of_zeros(tmp_path: Path) -> None:
    """Even where whole numbers are common the pattern of a boot is found, and no zero of the night goes."""
    night = [old_row(UTC_0 + k * 1034 * MS, "0.0", "", "") for k in range(60)]
    boot = moved(BOOT, (UTC_0 - parse_utc(BOOT[0].partition(",")[0])) / S + 62)
    after = [old_row(UTC_0 + 70 * S + k * 1034 * MS, "0.0", "", "") for k in range(60)]
    kept, reasons = read_old(tmp_path, [*night, *boot, *after])
    assert kept == values([*night, *after])
    assert len(reasons) == len(BOOT)


@pytest.mark.parametrize("alone", [1, 39])
def test_columns_switched_off_for_long_are_readings(tmp_path: Path, alone: int) -> None:
    """A sensor set to send the value alone is not taken for boot text, nor is one row without TempC."""
    on = [old_row(UTC_0 + k * S, f"0.0101{k:02d}") for k in range(1, 40)]
    off = [old_row(UTC_0 + (50 + k) * S, f"0.0102{k:02d}", "", "") for k in range(1, alone + 1)]
    rows = [*on, *off, *moved(on, 100)]
    assert read_old(tmp_path, rows) == (values(rows), [])


@pytest.mark.parametrize("kind", ["absent", "empty", "crowded"])
def test_an_unusable_path_says_why(tmp_path: Path, kind: str) -> None:
    """No folder, a folder without a recording, one with two of a kind: an error that names the cure."""
    path = tmp_path / kind
    if kind != "absent":
        path.mkdir()
    if kind == "crowded":
        write_stream(path / "in-water_1", readings(1))
        write_stream(path / "in-water_2", readings(1))
    with pytest.raises(SessionError, match=f"{kind}: .*: (give|fuse) "):
        read(path)


def test_a_byte_order_mark_is_not_part_of_the_header(tmp_path: Path) -> None:
    """A file that was saved with one is read like any other."""
    (tmp_path / "session.csv").write_bytes(b"\xef\xbb\xbf" + "\n".join([OLD_HEAD, *RECORDED, ""]).encode())
    stream = read(tmp_path).inwater
    assert ([one.value for one in recorded(stream)], stream.rejects) == (values(RECORDED), [])


def test_two_readings_in_one_millisecond_are_two(tmp_path: Path) -> None:
    """One label with two values is no repetition; the same row again is one, and is counted."""
    label = RECORDED[0].partition(",")[0]
    twin = ",".join([label, *RECORDED[1].split(",")[1:]])
    rows = [RECORDED[0], twin, twin, *RECORDED[2:]]
    kept, reasons = read_old(tmp_path, rows)
    assert (kept, reasons) == (values([RECORDED[0], twin, *RECORDED[2:]]), [])
    assert read(tmp_path).inwater.duplicates == 1


def test_a_name_with_control_characters_is_no_row(tmp_path: Path) -> None:
    """What a flipped bit makes of a space in a row without a checksum."""
    read_old(
        tmp_path,
        ["2025-11-21T22:34:59.123Z,s\0x,freerun,0.5,,", "2025-11-21T22:35:00.123Z,µ s,freerun,0.5,,"],
    )
    stream = read(tmp_path).inwater
    assert [one.sensor_id for one in recorded(stream)] == ["µ s"]
    assert [(one.line, one.reason) for one in stream.rejects] == [
        (2, "unprintable characters: 's\\x00x', 'freerun'")
    ]
