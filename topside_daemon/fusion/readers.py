"""Session folders as streams of readings: ours, a Pi's folder alone, and folders of the old Cockpit.

Everything but the rows is optional. A row that cannot be trusted is left out, counted and named by file
and line; nothing in a file raises.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from common.files import read_json
from common.messages import Epoch, Exchange, Reading
from common.rows import HEADER, MARKER_MODE, decode_row, parse_utc
from topside_daemon.fusion.banner import banner_rows
from topside_daemon.fusion.timeline import UNNUMBERED

EXCHANGES_FILE = "exchanges.jsonl"
SESSION_FILE = "session.json"
_CHUNK = re.compile(r"chunk_(\d+)\.(csv|tmp|csv\.tmp)")  # the last is an open chunk of the old Cockpit
_COMBINED = "session.csv"
_HEADER_START = b"timestamp,"
_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_NOTHING = (
    b"",
    b"null",
    b"None",
    b"NaN",
    b"nan",
    b"undefined",
)  # as the old recorders wrote a missing number
_OUR_FIELDS = HEADER.count(",") + 1
_OLD_FIELDS_MIN = 4  # timestamp, sensor, mode, value: what old readers ask of a row
_WIDEST_NS = 1 << 63


class SessionError(ValueError):
    """A path that cannot be fused; the message names the cause and the cure."""


class Reject(Struct, frozen=True):
    """A line that was left out. file is relative to the session; lines count from 1."""

    file: str
    line: int
    reason: str


class Stream(Struct):
    """One sensor's record. torn: rows cut off at the open end of a chunk; missing: holes in seq."""

    name: str
    readings: list[Reading] = []
    epochs: list[Epoch] = []
    markers: int = 0
    duplicates: int = 0
    torn: int = 0
    missing: int = 0
    rejects: list[Reject] = []


class Session(Struct):
    """What a folder holds. epochs are the topside machine's; notes say what optional part was unusable."""

    path: Path
    inwater: Stream
    surface: Stream
    exchanges: list[Exchange] = []
    epochs: list[Epoch] = []
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
    session = Session(
        path=path,
        inwater=_read_stream(path, inwater, notes),
        surface=_read_stream(path, surface, notes),
        notes=notes,
    )
    if path not in (inwater, surface):
        session.epochs = _read_epochs(path, notes)
    _read_exchanges(session)
    return session


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
    stream = Stream(name=folder.name, epochs=_read_epochs(folder, notes))
    rows: list[_Row] = []
    for file in _files(folder):
        rows += _read_rows(file, str(file.relative_to(session)), stream)
    ours = [row.reading for row in rows if row.reading.seq != UNNUMBERED]
    old = [row for row in rows if row.reading.seq == UNNUMBERED]
    stream.readings = _without_banner(old, stream) + _without_duplicates(ours, stream)
    return stream


def _read_rows(file: Path, name: str, stream: Stream) -> list[_Row]:
    rows: list[_Row] = []
    rejects: list[Reject] = []
    ours: bool | None = None
    number = last_good = 0
    ended = True
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
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
                reading = decode_row(line) if ours else _decode_old_row(content)
                if reading is None:
                    stream.markers += 1
                else:
                    rows.append(_Row(name, number, _in_range(reading)))
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


def _in_range(reading: Reading) -> Reading:
    numbered = reading.seq >= 0 and reading.epoch >= 0
    if not numbered and reading.seq != UNNUMBERED:
        raise ValueError("negative number or epoch")
    if abs(reading.mono_ns) >= _WIDEST_NS:
        raise ValueError("mono_ns is no clock's")
    return reading


def _decode_old_row(content: bytes) -> Reading | None:
    """A row of six columns, None for a marker.

    Raises:
        ValueError: not a row; the message says why.
    """
    fields = content.split(b",")
    if len(fields) < _OLD_FIELDS_MIN:
        raise ValueError(f"{len(fields)} fields, expected 6: {content[:80]!r}")
    timestamp, sensor_id, mode, value = (field.decode("utf-8") for field in fields[:_OLD_FIELDS_MIN])
    utc_ns = parse_utc(timestamp.strip())
    if mode.startswith(MARKER_MODE):
        return None
    if not _NUMBER.fullmatch(fields[3].strip()):
        raise ValueError(f"value is not a number: {content[:80]!r}")
    temp_c, vin = (_optional_number(field.strip(), content) for field in [*fields[4:6], b"", b""][:2])
    return Reading(UNNUMBERED, UNNUMBERED, 0, utc_ns, sensor_id, mode, value.strip(), temp_c, vin)


def _optional_number(field: bytes, content: bytes) -> str | None:
    if field in _NOTHING:
        return None
    if not _NUMBER.fullmatch(field):
        raise ValueError(f"TempC or Vin is not a number: {content[:80]!r}")
    return field.decode("ascii")


def _without_banner(rows: list[_Row], stream: Stream) -> list[Reading]:
    """Old rows in the order of their label, the only time they have."""
    banner = banner_rows([row.reading for row in rows])
    for index in sorted(banner):
        file, line, reading = rows[index]
        stream.rejects.append(Reject(file, line, f"number of the boot text, not a reading: {reading.value}"))
    readings = [row.reading for index, row in enumerate(rows) if index not in banner]
    return sorted(readings, key=lambda reading: reading.utc_ns)


def _without_duplicates(readings: Iterable[Reading], stream: Stream) -> list[Reading]:
    unique: dict[int, Reading] = {}
    for reading in sorted(readings, key=lambda one: (one.epoch, one.mono_ns, one.seq, one.utc_ns)):
        if unique.setdefault(reading.seq, reading) is not reading:
            stream.duplicates += 1
    stream.missing = max(unique, default=-1) + 1 - len(unique)
    return list(unique.values())


class _Epochs(Struct):
    epochs: list[Epoch] = []


def _read_epochs(folder: Path, notes: list[str]) -> list[Epoch]:
    try:
        found = read_json(folder / SESSION_FILE, _Epochs)
    except ValueError as error:
        notes.append(f"not used: {error}")
        return []
    return found.epochs if found else []


def _read_exchanges(session: Session) -> None:
    decoder = msgspec.json.Decoder(Exchange)
    for number, line in _lines(session.path / EXCHANGES_FILE):
        try:
            session.exchanges.append(decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            session.rejects.append(Reject(EXCHANGES_FILE, number, str(error)))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
