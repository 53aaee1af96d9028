"""The text form of a chunk row: the old six columns, ours, and a checksum over all before it.

No I/O and no clock. The checksum is what tells a row from a torn or spliced one.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zlib import crc32

from common.messages import Marker, Reading

OLD_HEADER = "timestamp,sensor_id,mode,value,TempC,Vin"
HEADER = OLD_HEADER + ",seq,epoch,mono_ns,crc32"
MARKER_MODE = "SYNC_"  # every mode with this prefix is a marker, never light

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RowError(ValueError):
    """A row that is torn, spliced or not ours; the message says which."""


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


def format_utc(utc_ns: int) -> str:
    """ISO 8601 with microseconds and offset, always 32 characters, truncated toward the past."""
    second, ns = divmod(utc_ns, 1_000_000_000)
    return f"{_second_text(second)}.{ns // 1000:06d}+00:00"


@lru_cache(maxsize=64)
def _second_of(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return round((moment.replace(tzinfo=UTC) - _EPOCH).total_seconds())


def parse_utc(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 instant, `Z` or an offset at the end.

    Raises:
        ValueError: not such an instant.
    """
    if len(text) == 32 and text[19] == "." and text.endswith("+00:00") and text[20:26].isdigit():
        return _second_of(text[:19]) * 1_000_000_000 + int(text[20:26]) * 1000
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _seal_row(body: str) -> bytes:
    return f"{body},{crc32(body.encode('ascii')):08x}\r\n".encode("ascii")


def encode_row(reading: Reading) -> bytes:
    """A reading as a chunk row: the old six columns, ours, and a checksum over all before it."""
    r = reading
    return _seal_row(
        f"{format_utc(r.utc_ns)},{r.sensor_id},{r.mode},{r.value},{r.temp_c or ''},{r.vin or ''},"
        f"{r.seq},{r.epoch},{r.mono_ns}"
    )


def encode_marker_row(marker: Marker, sensor_id: str) -> bytes:
    """A marker as old readers know it: value is the first 8 hex digits of the id, as a decimal."""
    value = int(marker.sync_id.replace("-", "")[:8], 16)
    return _seal_row(
        f"{format_utc(marker.utc_ns)},{sensor_id},{MARKER_MODE}{marker.kind},{value},,,,"
        f"{marker.epoch},{marker.mono_ns}"
    )


def check_row(line: bytes) -> list[str]:
    """The fields of a chunk row whose checksum holds.

    Raises:
        RowError: it does not.
    """
    body, comma, crc = line.rstrip(b"\r\n").rpartition(b",")
    if not comma or crc != b"%08x" % crc32(body):
        raise RowError(f"checksum does not match: {line[:80]!r}")
    if not body.isascii():
        raise RowError(f"not ASCII: {line[:80]!r}")
    fields = body.decode("ascii").split(",")
    if len(fields) != 9:
        raise RowError(f"{len(fields) + 1} fields, expected 10: {line[:80]!r}")
    return fields


def decode_row(line: bytes) -> Reading | None:
    """The reading in a chunk row, None for a marker row.

    Raises:
        RowError: torn, spliced or not a row of ours.
    """
    fields = check_row(line)
    if fields[2].startswith(MARKER_MODE):
        return None
    try:
        return Reading(
            seq=int(fields[6]),
            epoch=int(fields[7]),
            mono_ns=int(fields[8]),
            utc_ns=parse_utc(fields[0]),
            sensor_id=fields[1],
            mode=fields[2],
            value=fields[3],
            temp_c=fields[4] or None,
            vin=fields[5] or None,
        )
    except ValueError as error:
        raise RowError(f"{error}: {line[:80]!r}") from None
