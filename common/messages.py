"""Every record that crosses a wire or a file; chunk rows have their text form in `common.rows`.

No I/O and no clock. Instants are integer nanoseconds; sensor numbers stay the text the sensor
sent, so that no digit is ever lost in a float.
"""

import struct
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Raw, Struct

PROTOCOL = 1  # of the bus frames and the calls between the daemons

Kind = Literal["START", "PERIODIC", "STOP"]
ExchangeKind = Literal["START", "PERIODIC", "STOP", "PROBE"]

END = r"(?![\s\S])"  # of a text; "$" would let a line end through

Line = Annotated[
    str, Meta(pattern=rf"^[^\x00-\x1f\x7f-\x9f]*{END}", max_length=200)
]  # one, to be shown as it is
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_NULL = Raw(b"null")

# What decoding somebody else's bytes may raise: msgspec lets bad UTF-8 and deep nesting through as they are.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Stamp(Struct, frozen=True, gc=False):
    """One instant on both clocks of a machine."""

    mono_ns: int
    utc_ns: int


class Epoch(Struct, frozen=True, gc=False):
    """One uninterrupted run of a machine's monotonic clock, and what its wall clock said at mono_ns.

    synchronised: whether the OS held its wall clock for right, and wall_error_ns: within which error;
    None where it did not say.
    """

    epoch: int
    boot_id: str
    mono_ns: int
    utc_ns: int
    synchronised: bool | None = None
    wall_error_ns: int | None = None


class Reading(Struct, frozen=True, gc=False):
    """One parsed sensor line, stamped where its first byte arrived, numbered from 0.

    value, temp_c (degrees Celsius) and vin (volts) are the sensor's own digits.
    """

    seq: int
    epoch: int
    mono_ns: int
    utc_ns: int
    sensor_id: str
    mode: str
    value: str
    temp_c: str | None = None
    vin: str | None = None


class Marker(Struct, frozen=True, gc=False):
    """A labelled instant in a record; identity is (sync_id, kind, sequence).

    after_seq: the last reading recorded before it, -1 if there was none.
    """

    sync_id: str
    kind: Kind
    sequence: int
    epoch: int
    mono_ns: int
    utc_ns: int
    after_seq: int
    t1_ns: int | None = None
    label: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.sync_id, self.kind, self.sequence)


class Exchange(Struct, frozen=True):
    """One clock comparison. t1, t4 on the topside clock, t2, t3 on the Pi's; None where it failed.

    The wall clocks were read beside t1 and t2. status: `ok`; `timeout`; `late`, for an answer that came
    after it was given up, so that a `timeout` of the same probe may stand before it; or
    `refused: <reason>`.
    """

    sync_id: str
    kind: ExchangeKind
    sequence: int
    probe: int
    topside_boot_id: str
    topside_utc_ns: int
    t1_ns: int
    t2_ns: int | None = None
    t3_ns: int | None = None
    t4_ns: int | None = None
    pi_boot_id: str | None = None
    pi_utc_ns: int | None = None
    transport: Literal["udp", "http"] = "udp"
    status: str = "ok"


class Event(Struct, frozen=True):
    """Something a reader of the record must know: a gap, a drop, a refusal, a repair, a state change."""

    kind: str
    mono_ns: int
    utc_ns: int
    detail: str
    count: int = 1


class Chunk(Struct, frozen=True, gc=False):
    """One immutable file of rows. `rows` counts markers too, as the old manifest did; first_seq and
    last_seq are None when it holds markers only."""

    index: int
    name: str
    rows: int
    size_bytes: int
    sha256: str
    first_seq: int | None = None
    last_seq: int | None = None


class ReadingFrame(Struct, frozen=True):
    """A reading on the bus; numbers carry the sensor's own digits."""

    v: Int64
    session_id: str
    boot_id: str
    epoch: Int64
    seq: Int64
    t: float
    utc_ns: Int64
    mono_ns: Int64
    sensor_id: str
    mode: str
    value: Raw
    temp_c: Raw
    vin: Raw
    durable_seq: Int64

    @classmethod
    def of(cls, reading: Reading, session_id: str, boot_id: str, durable_seq: int) -> "ReadingFrame":
        return cls(
            PROTOCOL,
            session_id,
            boot_id,
            reading.epoch,
            reading.seq,
            reading.utc_ns / 1e9,
            reading.utc_ns,
            reading.mono_ns,
            reading.sensor_id,
            reading.mode,
            number(reading.value),
            number(reading.temp_c),
            number(reading.vin),
            durable_seq,
        )

    def reading(self) -> Reading:
        """The reading it carries.

        Raises:
            ValueError: value is not a number.
        """
        value = _digits(self.value)
        if value is None:
            raise ValueError("value is null")
        return Reading(
            self.seq,
            self.epoch,
            self.mono_ns,
            self.utc_ns,
            self.sensor_id,
            self.mode,
            value,
            _digits(self.temp_c),
            _digits(self.vin),
        )


class MarkerFrame(Struct, frozen=True):
    """A marker on the bus."""

    v: Int64
    session_id: str
    boot_id: str
    epoch: Int64
    t: float
    utc_ns: Int64
    mono_ns: Int64
    sync_id: str
    kind: Kind
    sequence: Int64
    after_seq: Int64
    label: str | None
    durable_seq: Int64

    @classmethod
    def of(cls, marker: Marker, session_id: str, boot_id: str, durable_seq: int) -> "MarkerFrame":
        m = marker
        return cls(
            PROTOCOL,
            session_id,
            boot_id,
            m.epoch,
            m.utc_ns / 1e9,
            m.utc_ns,
            m.mono_ns,
            m.sync_id,
            m.kind,
            m.sequence,
            m.after_seq,
            m.label,
            durable_seq,
        )


class ChunkFrame(Struct, frozen=True):
    """A chunk on the bus: `open` with the bytes that will not change any more, or `sealed`."""

    v: Int64
    session_id: str
    t: float
    utc_ns: Int64
    index: Int64
    name: str
    state: Literal["open", "sealed"]
    size_bytes: Int64
    rows: int | None
    sha256: str | None
    durable_seq: Int64


class StatusFrame(Struct, frozen=True):
    """One stream's state, once a second; session_id is empty between recordings.

    storage: why readings wait in memory, "" when they do not. dropped: how many were lost there.
    """

    v: Int64
    session_id: str
    boot_id: str
    t: float
    utc_ns: Int64
    mono_ns: Int64
    state: str
    detail: str
    storage: str
    dropped: Int64
    rows: Int64
    last_seq: Int64
    durable_seq: Int64
    events: Int64


class FusedFrame(Struct, frozen=True):
    """A provisional fused row on the bus; what is missing is null."""

    v: int
    session_id: str
    t: float
    utc_ns: int
    inwater_seq: int | None
    surface_seq: int | None
    inwater_value: Raw
    surface_value: Raw
    percent_of_surface: float | None
    offset_ms: float | None
    offset_sd_ms: float | None
    pair_dt_ms: float | None
    clock_status: str


class ClockFrame(Struct, frozen=True):
    """The clock model on the bus: offset is Pi - topside, drift positive when the Pi gains."""

    v: int
    session_id: str
    t: float
    utc_ns: int
    offset_ms: float | None
    offset_sd_ms: float | None
    drift_ppm: float | None
    drift_sd_ppm: float | None
    bursts: int
    refused: int
    delay_min_ms: float | None


def number(digits: str | None) -> Raw:
    return _NULL if digits is None else Raw(digits.encode("ascii"))


def _digits(number: Raw) -> str | None:
    text = bytes(number).decode("ascii")
    if text == "null":
        return None
    float(text)
    return text


class TimeReply(Struct, frozen=True):
    """What the UDP time responder answers; xid and t1_ns are the asker's own."""

    xid: int
    t1_ns: int
    t2_ns: int
    t3_ns: int
    utc_ns: int
    boot_id: str


_TIME_MAGIC = b"QST1"
_TIME_REQUEST = struct.Struct("!4sQq48x")  # padded, so that an answer is never larger than the question
_TIME_REPLY = struct.Struct("!4sQqqqq16s")


def pack_time_request(xid: int, t1_ns: int) -> bytes:
    return _TIME_REQUEST.pack(_TIME_MAGIC, xid, t1_ns)


def unpack_time_request(datagram: bytes) -> tuple[int, int] | None:
    """(xid, t1_ns) of a request, None for anything else."""
    if len(datagram) != _TIME_REQUEST.size or not datagram.startswith(_TIME_MAGIC):
        return None
    _, xid, t1_ns = _TIME_REQUEST.unpack(datagram)
    return xid, t1_ns


def pack_time_reply(reply: TimeReply) -> bytes:
    r = reply
    return _TIME_REPLY.pack(_TIME_MAGIC, r.xid, r.t1_ns, r.t2_ns, r.t3_ns, r.utc_ns, UUID(r.boot_id).bytes)


def unpack_time_reply(datagram: bytes) -> TimeReply | None:
    """The reply in a datagram, None for anything else."""
    if len(datagram) != _TIME_REPLY.size or not datagram.startswith(_TIME_MAGIC):
        return None
    _, xid, t1_ns, t2_ns, t3_ns, utc_ns, boot = _TIME_REPLY.unpack(datagram)
    return TimeReply(xid, t1_ns, t2_ns, t3_ns, utc_ns, str(UUID(bytes=boot)))


_encoder = msgspec.json.Encoder()


def to_json(record: Any) -> bytes:
    """One record as a JSON object on one line, without the line end."""
    return _encoder.encode(record)
