"""Rows, frames, instants and time datagrams: what goes out comes back, and nothing else does."""

from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import (
    Marker,
    MarkerFrame,
    Reading,
    ReadingFrame,
    TimeReply,
    pack_time_reply,
    pack_time_request,
    to_json,
    unpack_time_reply,
    unpack_time_request,
)
from common.rows import (
    HEADER,
    OLD_HEADER,
    RowError,
    check_row,
    decode_row,
    encode_marker_row,
    encode_row,
    format_utc,
    parse_utc,
)
from tests.sim.drawn import INSTANTS_NS, markers, readings

pytestmark = pytest.mark.heavy

I64 = st.integers(-(2**63), 2**63 - 1)
U64 = st.integers(0, 2**64 - 1)


def accepted(line: bytes) -> bool:
    try:
        decode_row(line)
    except RowError:
        return False
    return True


@given(readings())
def test_a_row_gives_back_its_reading(reading: Reading) -> None:
    """Every digit, stamp and number of a reading survives the file."""
    assert decode_row(encode_row(reading)) == reading


@given(readings())
def test_old_readers_find_their_six_columns(reading: Reading) -> None:
    """The first six fields of a row are the old row, the header likewise."""
    fields = encode_row(reading).decode().split(",")
    assert fields[0] == format_utc(reading.utc_ns)
    assert fields[1:6] == [
        reading.sensor_id,
        reading.mode,
        reading.value,
        reading.temp_c or "",
        reading.vin or "",
    ]
    assert HEADER.startswith(OLD_HEADER + ",")
    assert len(fields) == HEADER.count(",") + 1


@given(readings(), st.data())
def test_one_changed_byte_is_refused(reading: Reading, data: st.DataObject) -> None:
    """No byte of a row, the checksum's own included, can be another one."""
    row = encode_row(reading)
    at = data.draw(st.integers(0, len(row) - 3))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != row[at] and byte not in b"\r\n"))
    assert not accepted(row[:at] + bytes([byte]) + row[at + 1 :])


@given(readings(), st.data())
def test_a_truncated_row_is_refused(reading: Reading, data: st.DataObject) -> None:
    """A row torn at either end is no row, whatever line end follows it."""
    row = encode_row(reading).rstrip()
    at = data.draw(st.integers(1, len(row) - 1))
    assert not accepted(row[:at] + b"\r\n")
    assert not accepted(row[at:] + b"\r\n")


@given(readings(), readings(), st.data())
def test_a_splice_of_two_rows_is_refused(first: Reading, second: Reading, data: st.DataObject) -> None:
    """The head of one row run into the tail of another is neither of them, nor a third."""
    head, tail = encode_row(first), encode_row(second)
    spliced = head[: data.draw(st.integers(0, len(head)))] + tail[data.draw(st.integers(0, len(tail))) :]
    if spliced.rstrip() not in (head.rstrip(), tail.rstrip()):
        assert not accepted(spliced)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(line: bytes) -> None:
    """What is not a row raises RowError and nothing else."""
    with pytest.raises(RowError):
        decode_row(line)


@given(st.lists(st.text("abc.-:+TZ é", max_size=12), min_size=9, max_size=9))
def test_fields_that_are_not_ours_are_refused_by_name(fields: list[str]) -> None:
    """A right checksum over wrong fields is refused by name too."""
    body = ",".join(fields).encode()
    with pytest.raises(RowError):
        decode_row(body + b",%08x\r\n" % crc32(body))


@given(markers())
def test_a_marker_row_is_never_light(marker: Marker) -> None:
    """A marker's row is whole, has the first 8 hex digits as a decimal and no number, and is no reading."""
    row = encode_marker_row(marker, "Q7799")
    fields = check_row(row)
    assert decode_row(row) is None
    assert fields[2] == f"SYNC_{marker.kind}"
    assert int(fields[3]) == int(marker.sync_id[:8], 16)
    assert fields[6] == ""


@given(readings(), st.integers(-1, 2**53))
def test_a_frame_gives_back_its_reading(reading: Reading, durable_seq: int) -> None:
    """A reading crosses the bus with the sensor's own digits."""
    sent = to_json(ReadingFrame.of(reading, "session", "boot", durable_seq))
    frame = msgspec.json.decode(sent, type=ReadingFrame)
    assert frame.reading() == reading
    assert (frame.durable_seq, frame.t) == (durable_seq, reading.utc_ns / 1e9)


@given(readings())
def test_a_frame_shows_numbers_as_the_sensor_wrote_them(reading: Reading) -> None:
    """The digits stand in the JSON text unquoted and unchanged; what was not sent is null."""
    text = to_json(ReadingFrame.of(reading, "s", "b", -1)).decode()
    assert f'"value":{reading.value},' in text
    assert f'"temp_c":{reading.temp_c or "null"},' in text
    assert f'"vin":{reading.vin or "null"},' in text


@pytest.mark.parametrize("value", ['"1.0"', "null", "true", "[1]", "{}"])
def test_a_frame_without_a_number_is_a_value_error(value: str) -> None:
    """A hostile frame whose value is no number raises ValueError when asked for its reading."""
    good = to_json(ReadingFrame.of(Reading(0, 0, 0, 0, "s", "freerun", "1.25"), "s", "b", -1))
    frame = msgspec.json.decode(good.replace(b"1.25", value.encode()), type=ReadingFrame)
    with pytest.raises(ValueError, match=r"null|float"):
        frame.reading()


@given(markers())
def test_a_marker_crosses_file_and_bus(marker: Marker) -> None:
    """A marker's line is its record; its frame tells the same identity and instant."""
    assert msgspec.json.decode(to_json(marker), type=Marker) == marker
    frame = msgspec.json.decode(to_json(MarkerFrame.of(marker, "s", "b", 7)), type=MarkerFrame)
    assert (frame.sync_id, frame.kind, frame.sequence) == marker.key
    assert (frame.mono_ns, frame.utc_ns, frame.label) == (marker.mono_ns, marker.utc_ns, marker.label)


@given(st.integers(0, 250_000_000_000 * 1_000_000_000))
def test_an_instant_is_written_to_the_microsecond_and_read_back(utc_ns: int) -> None:
    """Text keeps whole microseconds, truncated toward the past, in 32 characters."""
    text = format_utc(utc_ns)
    assert len(text) == 32
    assert parse_utc(text) == utc_ns // 1000 * 1000


@given(INSTANTS_NS)
def test_every_spelling_of_an_instant_is_the_same(utc_ns: int) -> None:
    """`Z`, `+00:00`, nothing and another zone's offset all name one instant."""
    text = format_utc(utc_ns)
    assert parse_utc(text.replace("+00:00", "Z")) == utc_ns
    assert parse_utc(text.removesuffix("+00:00")) == utc_ns
    shifted = format_utc(utc_ns + 7_200 * 1_000_000_000).replace("+00:00", "+02:00")
    assert parse_utc(shifted) == utc_ns


@pytest.mark.parametrize(
    ("text", "utc_ns"),
    [
        ("1970-01-01T00:00:00+00:00", 0),
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:00.001Z", 1_000_000),
        ("2026-11-22T10:20:30.250Z", 1_795_342_830_250_000_000),
        ("2026-11-22T10:20:30", 1_795_342_830_000_000_000),
    ],
)
def test_coarser_texts_are_read(text: str, utc_ns: int) -> None:
    """Milliseconds and no fraction at all, as other programs write them."""
    assert parse_utc(text) == utc_ns


@given(st.text("0123456789-:T.+Zé²", max_size=40))
def test_what_is_no_instant_is_a_value_error(text: str) -> None:
    """A text that is no instant raises ValueError and nothing else."""
    try:
        utc_ns = parse_utc(text)
    except ValueError:
        return
    assert parse_utc(format_utc(utc_ns)) == utc_ns


@given(U64, I64)
def test_a_time_request_comes_back(xid: int, t1_ns: int) -> None:
    """The asker's own numbers survive the datagram."""
    assert unpack_time_request(pack_time_request(xid, t1_ns)) == (xid, t1_ns)


@given(st.builds(TimeReply, U64, I64, I64, I64, I64, st.uuids().map(str)))
def test_a_time_reply_comes_back_and_is_no_larger_than_its_request(reply: TimeReply) -> None:
    """A reply survives the datagram, and cannot be used to amplify a flood."""
    packed = pack_time_reply(reply)
    assert unpack_time_reply(packed) == reply
    assert len(packed) <= len(pack_time_request(0, 0))


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda tail: b"QST1" + tail))
def test_garbage_is_neither_request_nor_reply(datagram: bytes) -> None:
    """Datagrams of a wrong length or beginning give None."""
    if len(datagram) != 68 or not datagram.startswith(b"QST1"):
        assert unpack_time_request(datagram) is None
    if len(datagram) != 60 or not datagram.startswith(b"QST1"):
        assert unpack_time_reply(datagram) is None
