"""What only the old recorders wrote: rows of six columns, marker rows, and the Cockpit's metadata.

The id of an old marker is a number, the first eight hex digits of a UUID, and a PERIODIC one carries its
sequence in the lowest byte; one side wrote it signed, and some with a decimal point. Nothing here raises
but for a row that is none.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from msgspec import Struct
from msgspec.structs import replace

from common.files import read_json
from common.messages import Kind, Marker, Reading
from common.rows import MARKER_MODE, check_row, parse_utc
from topside_daemon.fusion.columns import UNNUMBERED
from topside_daemon.fusion.ladder import TimeSync
from topside_daemon.fusion.ladder.steps import Labels

METADATA_FILE = "sync_metadata.json"
ROUNDING_NS = 2_000_000  # the Pi's time cut to ms, offset and uncertainty rounded to ms
WORST_BOUND_NS = 100_000_000  # half the round trip beyond which the old Cockpit discarded it

NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_WHOLE = re.compile(r"(-?\d{1,20})(\.0*)?")
_SEPARATOR = re.compile(r"[/\\]")
_NOTHING = (b"", b"null", b"None", b"NaN", b"nan", b"undefined")  # how a missing number was written
_FIELDS_MIN = 4  # timestamp, sensor, mode, value: what old readers ask of a row
_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
_LONGEST_MS = 3e12  # a century; a Pi that was never set is half of one behind
_WIDEST_MS = 5e3  # the old Cockpit waited no longer for an answer


class Metadata(Struct, frozen=True):
    """The useful part of `sync_metadata.json`. markers: in-water and surface side, after_seq unset."""

    time_sync: TimeSync | None = None
    markers: tuple[list[Marker], list[Marker]] = ([], [])


def decode_old_row(content: bytes) -> Reading | Marker | None:
    """A row of six columns; None for a marker without a usable name. Neither has a number yet.

    Raises:
        ValueError: not a row; the message says why.
    """
    fields = content.split(b",")
    if len(fields) < _FIELDS_MIN:
        raise ValueError(f"{len(fields)} fields, expected 6: {content[:80]!r}")
    timestamp, sensor_id, mode, value = (field.decode("utf-8") for field in fields[:_FIELDS_MIN])
    utc_ns = parse_utc(timestamp.strip())
    if mode.startswith(MARKER_MODE):
        return _marker(mode, value.strip(), utc_ns)
    if not NUMBER.fullmatch(fields[3].strip()):
        raise ValueError(f"value is not a number: {content[:80]!r}")
    temp_c, vin = (_optional_number(field.strip(), content) for field in [*fields[4:6], b"", b""][:2])
    return Reading(UNNUMBERED, UNNUMBERED, 0, utc_ns, sensor_id, mode, value.strip(), temp_c, vin)


def _optional_number(field: bytes, content: bytes) -> str | None:
    if field in _NOTHING:
        return None
    if not NUMBER.fullmatch(field):
        raise ValueError(f"TempC or Vin is not a number: {content[:80]!r}")
    return field.decode("ascii")


def decode_marker_row(line: bytes) -> Marker | None:
    """A marker row of our chunks, for where its `markers.jsonl` is lost; None if it says no name.

    Raises:
        ValueError: torn or spliced.
    """
    fields = check_row(line)
    marker = _marker(fields[2], fields[3], parse_utc(fields[0]), int(fields[7]), int(fields[8]))
    return marker if marker is None or marker.epoch >= 0 else None


def _marker(mode: str, value: str, utc_ns: int, epoch: int = UNNUMBERED, mono_ns: int = 0) -> Marker | None:
    number, kind = _WHOLE.fullmatch(value), _KINDS.get(mode.removeprefix(MARKER_MODE))
    if number is None or kind is None:
        return None
    name, sequence = int(number[1]) % (1 << 32), 0
    if kind == "PERIODIC":
        name, sequence = name & 0xFFFFFF00, name & 0xFF
    return Marker(f"{name:08x}", kind, sequence, epoch, mono_ns, utc_ns, -1)


def read_metadata(folder: Path, notes: list[str]) -> Metadata:
    """What an old Cockpit measured; damage costs a note and what it hit."""
    path = folder / METADATA_FILE
    try:
        found = read_json(path, dict[str, Any])
    except ValueError as error:
        notes.append(f"{METADATA_FILE} not used: {str(error).removeprefix(f'{path}: ')}")
        return Metadata()
    if found is None:
        return Metadata()
    sides = _entry(found, "timeSync")
    time_sync, deck = (_time_sync(_entry(sides, side), side, notes) for side in ("inWater", "surface"))
    if time_sync is not None and deck is not None:  # a surface sensor with a clock of its own
        time_sync = TimeSync(
            time_sync.offset_ns - deck.offset_ns,
            time_sync.bound_ns + deck.bound_ns,
            None if time_sync.at_ns is None else time_sync.at_ns + deck.offset_ns,
        )
    return Metadata(time_sync, _measured_markers(found.get("markers")))


def is_about(folder: Path, inwater: str, surface: str) -> bool:
    """Whether the metadata of a mission names these recordings, by their folders; "" for one that is not.
    Damaged, it names none."""
    under, deck = _sensors(folder)
    return _names(under, inwater) and (not deck or not surface or _names(deck, surface))


def names_both(folder: Path, inwater: str, surface: str) -> bool:
    """Whether the metadata of a mission say that these two, by their folders, are of one dive."""
    under, deck = _sensors(folder)
    return _names(under, inwater) and _names(deck, surface)


def _sensors(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the metadata say of the in-water and of the surface sensor."""
    try:
        found = read_json(folder / METADATA_FILE, dict[str, Any]) or {}
    except ValueError:
        found = {}
    sensors = _entry(found, "sensors")
    return _entry(sensors, "inWater"), _entry(sensors, "surface")


def _names(sensor: dict[str, Any], folder: str) -> bool:
    session_id = str(sensor.get("sessionId"))
    *_, directory = _SEPARATOR.split(str(sensor.get("directory")).rstrip("/\\"))
    return folder in (session_id, f"surface_{session_id}", directory)


def _entry(found: dict[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _time_sync(handshake: dict[str, Any], side: str, notes: list[str]) -> TimeSync | None:
    if handshake.get("offsetMs") is None:
        return None
    offset_ms = _milliseconds(handshake["offsetMs"], -_LONGEST_MS, _LONGEST_MS)
    bound_ms, bound_ns = handshake.get("uncertaintyMs"), WORST_BOUND_NS
    if bound_ms is not None:
        bound_ms = _milliseconds(bound_ms, 0.0, _WIDEST_MS)
        bound_ns = -1 if bound_ms is None else round(bound_ms * 1e6)
    doubts = [
        f"{key} {str(handshake.get(key))[:40]}"
        for key, found in (
            ("offsetMs", offset_ms is None),
            ("uncertaintyMs", bound_ns < 0),
            ("method", handshake.get("method") == "unsynced"),
            ("error", handshake.get("error") is not None),
        )
        if found
    ]
    if doubts or offset_ms is None:
        notes.append(f"time-sync {side} of {METADATA_FILE} not used: {', '.join(doubts)}")
        return None
    return TimeSync(round(offset_ms * 1e6), bound_ns + ROUNDING_NS, _instant(handshake.get("measuredAt")))


def _milliseconds(value: object, least: float, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if least <= value <= most else None


def _instant(value: object) -> int | None:
    try:
        return parse_utc(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _measured_markers(entries: object) -> tuple[list[Marker], list[Marker]]:
    """Markers that the old fusion had found in both records: all that is left where rows were lost."""
    found: tuple[list[Marker], list[Marker]] = ([], [])
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or entry.get("quality") != "measured":
            continue
        instants = [_instant(entry.get(key)) for key in ("inWaterTimestamp", "surfaceTimestamp")]
        for side, utc_ns in zip(found, instants, strict=True):
            marker = utc_ns and _marker(f"{MARKER_MODE}{entry.get('type')}", str(entry.get("syncId")), utc_ns)
            if marker:
                side.append(marker)
    return found


def with_measured(markers: Sequence[Marker], measured: Sequence[Marker], labels: Labels) -> list[Marker]:
    """Markers of an old record, and those that only the metadata still has, put where their label falls."""
    known = {marker.key for marker in markers if marker.epoch < 0}
    found = list(markers)
    for marker in measured:
        if marker.key not in known:
            row = labels.first_from(marker.utc_ns + 1)
            after = row if labels and labels[row] > marker.utc_ns else len(labels)
            found.append(replace(marker, after_seq=after - 1))
    return found
