"""Session folders as streams of readings: ours, a Pi's folder alone, and folders of the old Cockpit.

Everything but the rows is optional. A row that cannot be trusted is left out, counted and named by file
and line; nothing in a file raises.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from common.files import read_json, read_lines
from common.messages import UNDECODABLE, Epoch, Exchange, Marker, Reading
from common.rows import HEADER, decode_row
from topside_daemon.fusion.banner import banner_rows
from topside_daemon.fusion.cockpit import (
    astray_rows,
    decode_marker_row,
    decode_old_row,
    read_metadata,
    repeated_rows,
    with_measured,
)
from topside_daemon.fusion.ladder import Ladder, Record, climb
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.fusion.timeline import UNNUMBERED

EXCHANGES_FILE = "exchanges.jsonl"
SESSION_FILE = "session.json"
MARKERS_FILE = "markers.jsonl"
_CHUNK = re.compile(r"chunk_(\d+)\.(csv|tmp|csv\.tmp)")  # the last is an open chunk of the old Cockpit
_COMBINED = "session.csv"
_HEADER_START = b"timestamp,"
_OUR_FIELDS = HEADER.count(",") + 1
_WIDEST_NS = 1 << 63
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of a file that went through a spreadsheet
_LATEST_NS = 7_258_118_400_000_000_000  # 2200-01-01; before 1970 and from there on no clock was set


class SessionError(ValueError):
    """A path that cannot be fused; the message names the cause and the cure."""


class Reject(Struct, frozen=True):
    """A line that was left out. file is relative to the session; lines count from 1."""

    file: str
    line: int
    reason: str


class Stream(Struct):
    """One sensor's record. torn: rows cut off at the open end of a chunk; missing: holes in seq.

    readings: unnumbered ones first, in the order of arrival, their epoch the piece of their clock (see
    `ladder`). sensor: its configuration as it was recorded. markers: how many rows were; marked: those
    with a name, the fullest record of each first.
    """

    name: str
    readings: list[Reading] = []
    epochs: list[Epoch] = []
    markers: int = 0
    marked: list[Marker] = []
    duplicates: int = 0
    torn: int = 0
    missing: int = 0
    rejects: list[Reject] = []
    sensor: dict[str, Any] | None = None


class Session(Struct):
    """What a folder holds. epochs are the topside machine's; notes say what optional part was unusable.

    ladder: the clock for what has no exchanges. link: what earlier sessions had shown of the pair of
    machines when this one began. settings: how it was to be fused.
    """

    path: Path
    inwater: Stream
    surface: Stream
    ladder: Ladder
    exchanges: list[Exchange] = []
    epochs: list[Epoch] = []
    link: LinkMemory | None = None
    settings: Settings = Settings()
    rejects: list[Reject] = []
    notes: list[str] = []

    @property
    def all_rejects(self) -> list[Reject]:
        return [*self.inwater.rejects, *self.surface.rejects, *self.rejects]


class _Row(NamedTuple):
    file: str
    line: int
    reading: Reading


def read_session(path: Path) -> Session:
    """Everything fusion needs from a session folder or from one sensor's folder.

    Raises:
        SessionError: there is no recording at *path*, or more than one.
        OSError: a file cannot be read.
    """
    inwater, surface = _locate(path)
    notes: list[str] = []
    streams = (_read_stream(path, inwater, notes), _read_stream(path, surface, notes))
    ladder = _climb(path, streams, notes)
    session = Session(path=path, inwater=streams[0], surface=streams[1], ladder=ladder, notes=notes)
    if path not in (inwater, surface):
        record = _read_record(path, notes)
        session.epochs, session.link, session.settings = record.epochs, record.link, record.fusion
    _read_exchanges(session)
    return session


def _climb(path: Path, streams: tuple[Stream, Stream], notes: list[str]) -> Ladder:
    """The ladder of a session, and its pieces put down in the readings."""
    metadata = read_metadata(path, notes)
    for stream, measured in zip(streams, metadata.markers, strict=True):
        if stream.markers and not stream.readings:
            notes.append(f"{stream.name}: {stream.markers} markers and no reading")
        labels_ns = [reading.utc_ns for reading in stream.readings if reading.seq == UNNUMBERED]
        if labels_ns:
            stream.marked = with_measured(stream.marked, measured, labels_ns)
    inwater, surface = streams
    ladder = climb(
        Record(inwater.readings, inwater.marked),
        Record(surface.readings, surface.marked),
        metadata.time_sync,
    )
    inwater.readings = ladder.place_inwater(inwater.readings)
    surface.readings = ladder.place_surface(surface.readings)
    return ladder


def _locate(path: Path) -> tuple[Path | None, Path | None]:
    """The folders of the in-water and of the surface stream."""
    if not path.is_dir():
        raise SessionError(f"{path}: no such folder: give the folder of a session")
    if _files(path):
        return (None, path) if path.name.startswith("surface_") else (path, None)
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    surface = [folder for folder in folders if folder.name.startswith("surface_")]
    inwater = [folder for folder in folders if folder.name.startswith("in-water_")]
    if not inwater:  # the first generation of the old Cockpit named it by the session alone
        inwater = [folder for folder in folders if folder not in surface and _files(folder)]
    for found in (inwater, surface):
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise SessionError(f"{path}: several recordings of one sensor ({names}): fuse a folder for each")
    if not inwater and not surface:
        raise SessionError(
            f"{path}: no recording here: give a folder with in-water_*/, surface_*/ or chunk_*.csv"
        )
    return inwater[0] if inwater else None, surface[0] if surface else None


def _files(folder: Path) -> list[Path]:
    """Its chunks in order, or the combined file where there are none."""
    chunks = [
        (int(match[1]), match[2], entry)
        for entry in folder.iterdir()
        if (match := _CHUNK.fullmatch(entry.name))
    ]
    if chunks:
        return [entry for *_, entry in sorted(chunks)]
    combined = folder / _COMBINED
    return [combined] if combined.is_file() else []


def _read_stream(session: Path, folder: Path | None, notes: list[str]) -> Stream:
    if folder is None:
        return Stream(name="")
    record = _read_record(folder, notes)
    stream = Stream(name=folder.name, epochs=record.epochs, sensor=record.sensor)
    old: list[_Row] = []
    ours: list[Reading] = []
    for file in _files(folder):
        rows = _read_rows(file, str(file.relative_to(session)), stream, len(old))
        old += [row for row in rows if row.reading.seq == UNNUMBERED]
        ours += [row.reading for row in rows if row.reading.seq != UNNUMBERED]
    stream.readings = _true_readings(old, stream) + _without_duplicates(ours, stream)
    if named := list(read_lines(folder / MARKERS_FILE, Marker)):
        stream.marked = named + [marker for marker in stream.marked if marker.kind != "PERIODIC"]
    return stream


def _read_rows(file: Path, name: str, stream: Stream, old_before: int) -> list[_Row]:
    """Its rows; old markers are placed among the old readings, old_before of which are in other files."""
    rows: list[_Row] = []
    rejects: list[Reject] = []
    ours: bool | None = None
    number = last_good = 0
    ended = True
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            ended = line.endswith(b"\n")
            content = line.rstrip(b"\r\n")
            if content.startswith(_HEADER_START):
                ours = content == HEADER.encode()
                continue
            if not content.strip():
                continue
            if ours is None:
                ours = content.count(b",") + 1 >= _OUR_FIELDS
            try:
                decoded = _decode(line) if ours else decode_old_row(content)
                if decoded is not None:
                    _check_range(decoded)
                if isinstance(decoded, Reading):
                    rows.append(_Row(name, number, decoded))
                else:
                    stream.markers += 1
                if isinstance(decoded, Marker):
                    stream.marked.append(replace(decoded, after_seq=old_before + len(rows) - 1))
                last_good = number
            except ValueError as error:
                rejects.append(Reject(name, number, str(error)))
    open_end = file.suffix == ".tmp"
    if open_end and not ours and not ended and rows and rows[-1].line == number:
        rows.pop()  # without a checksum half a number looks like a number
        stream.torn += 1
    end = last_good if open_end else number
    stream.torn += sum(reject.line > end for reject in rejects)
    stream.rejects += [reject for reject in rejects if reject.line <= end]
    return rows


def _check_range(row: Reading | Marker) -> None:
    """Raises ValueError for what no recorder can have written."""
    if isinstance(row, Reading) and row.seq != UNNUMBERED and (row.seq < 0 or row.epoch < 0):
        raise ValueError("negative number or epoch")
    if abs(row.mono_ns) >= _WIDEST_NS:
        raise ValueError("mono_ns is no clock's")
    if not 0 <= row.utc_ns < _LATEST_NS:
        raise ValueError("a label outside 1970 to 2200 is no clock's")


def _decode(line: bytes) -> Reading | Marker | None:
    return decode_row(line) or decode_marker_row(line)


def _true_readings(rows: list[_Row], stream: Stream) -> list[Reading]:
    """Old rows in the order of arrival: a label is no order, its clock may have been set."""
    repeated = repeated_rows([row.reading for row in rows])
    stream.duplicates += len(repeated)
    rows = _leave_out(repeated, rows, stream)
    astray = astray_rows([row.reading.utc_ns for row in rows])
    stream.rejects += [
        Reject(rows[n].file, rows[n].line, "a label far from those before and after it") for n in astray
    ]
    rows = _leave_out(astray, rows, stream)
    banner = banner_rows([row.reading for row in rows])
    for index in sorted(banner):
        file, line, reading = rows[index]
        stream.rejects.append(Reject(file, line, f"number of the boot text, not a reading: {reading.value}"))
    return [row.reading for row in _leave_out(banner, rows, stream)]


def _leave_out(found: Collection[int], rows: list[_Row], stream: Stream) -> list[_Row]:
    """The other rows, and the old markers moved to where their neighbours are now."""
    if not found:
        return rows
    kept = [index for index in range(len(rows)) if index not in found]
    stream.marked = [
        replace(marker, after_seq=bisect_right(kept, marker.after_seq) - 1) if marker.epoch < 0 else marker
        for marker in stream.marked
    ]
    return [rows[index] for index in kept]


def _without_duplicates(readings: Iterable[Reading], stream: Stream) -> list[Reading]:
    unique: dict[int, Reading] = {}
    for reading in sorted(readings, key=lambda one: (one.epoch, one.mono_ns, one.seq, one.utc_ns)):
        if unique.setdefault(reading.seq, reading) is not reading:
            stream.duplicates += 1
    stream.missing = max(unique, default=-1) + 1 - len(unique)
    return list(unique.values())


class _Record(Struct):
    """The part of a session.json, of a session or of one stream, that fusion uses."""

    epochs: list[Epoch] = []
    link: LinkMemory | None = None
    sensor: dict[str, Any] | None = None
    fusion: Settings = Settings()


def _read_record(folder: Path, notes: list[str]) -> _Record:
    try:
        return read_json(folder / SESSION_FILE, _Record) or _Record()
    except ValueError as error:
        notes.append(f"not used: {error}")
        return _Record()


def _read_exchanges(session: Session) -> None:
    decoder = msgspec.json.Decoder(Exchange)
    for number, line in _lines(session.path / EXCHANGES_FILE):
        try:
            session.exchanges.append(decoder.decode(line))
        except UNDECODABLE as error:
            session.rejects.append(Reject(EXCHANGES_FILE, number, str(error)))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
