"""What the Pi's calls take and give; the documentation of the API is made from these types.

Keys that the old API had keep their names and meanings; the others are ours, and old clients pass over them.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from common.keys import Name, PublicKey
from common.messages import END, Line
from common.recording import OpenChunk, Sequel

INT64_MAX = 2**63 - 1

SyncId = Annotated[str, Meta(pattern=rf"^[0-9a-fA-F]{{8}}[0-9a-fA-F-]{{0,56}}{END}")]
Holder = Annotated[str, Meta(pattern=rf"^[ -~]{{1,100}}{END}")]
SessionId = Annotated[str, Meta(pattern=rf"^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}{END}")]


class Health(Struct):
    service: str
    version: str
    status: str


class Version(Struct):
    """api: of the old API these calls keep to; git: of this daemon; protocol: of bus and calls.

    time_port, bus_port: where the time is told by UDP and readings are published. run_id: of this start.
    """

    api: str
    git: str
    status: str
    protocol: int
    time_port: int
    bus_port: int
    bus_key: str | None
    machine_id: str | None
    run_id: str
    boot_id: str
    security: str


class Service(Struct):
    """As BlueOS asks for it."""

    name: str
    description: str
    icon: str
    company: str
    version: str
    webpage: str
    api: str
    new_page: bool = False
    works_in_relative_paths: bool = True


class InstrumentState(Struct):
    """The sensor. storage: why rows are not reaching the disk, "" when they are."""

    connected: bool
    port: str | None
    model: str
    firmware: str
    disk_free_bytes: int | None
    state: str
    detail: str
    serial_number: str
    baud: int
    last_line_age_s: float | None
    counters: dict[str, int]
    storage: str
    events: dict[str, int]
    dropped: int
    security: str


class Status(Struct):
    """connected, recording, sensor_id, mode, rows and state are as the old API had them."""

    connected: bool
    recording: bool
    sensor_id: str
    mode: str | None
    rows: int
    state: str
    session_id: str | None
    durable_seq: int
    detail: str
    storage: str
    events: dict[str, int]
    security: str


class StartRequest(Struct):
    """session_id, holder and sequel are ours: a start asked again with the same id is the same recording;
    one with a holder is not stopped by others as long as that one is heard; a sequel goes on with a recording
    whose beginning is lost here.
    """

    rate_hz: Annotated[int, Meta(ge=1, le=1_000_000)] = 500
    schema_version: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    mission: Line = "Cockpit"
    roll_interval_s: Annotated[float, Meta(gt=0)] = 60.0
    session_id: SessionId | None = None
    holder: Holder | None = None
    sequel: Sequel | None = None


class RecordingStarted(Struct):
    session_id: str
    started_at: str
    rate_hz: int
    schema_version: int


class SessionRequest(Struct):
    """holder is ours: who asks, so that nobody else's recording is stopped, unless by force."""

    session_id: str
    holder: Holder | None = None
    force: bool = False


class RecordingStopped(Struct):
    """digest: over all chunks, so that a copy can be held against it."""

    session_id: str
    rows: int
    last_seq: int
    durable_seq: int
    state: str
    digest: str | None
    stopped_at: str | None
    chunks: int


class Standing(Struct):
    """Where a recording stands. rows: with the open chunk; bytes: of sealed ones; backlog: their number."""

    session_id: str
    rows: int
    last_seq: int
    durable_seq: int
    state: str
    digest: str | None
    bytes: int
    last_chunk_index: int
    backlog: int
    open_chunk: OpenChunk | None
    trouble: str
    dropped: int
    holder: str | None


class SnapshotsQuery(Struct):
    """after is ours: only chunks with a higher index."""

    session_id: str
    after: int = -1


class SessionsQuery(Struct):
    most: Annotated[int, Meta(ge=1, le=10_000)] = 100


class SessionListed(Struct):
    session_id: str
    mission: str
    started_at: str
    stopped_at: str | None
    state: str
    sensor_id: str
    holder: str | None


class MarkerRequest(Struct):
    session_id: str
    sync_id: SyncId
    marker_type: Literal["START", "STOP", "PERIODIC"]
    periodic_sequence: Annotated[int, Meta(ge=0, le=INT64_MAX)] | None = None
    t1_ns: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    label: Line | None = None
    holder: Holder | None = None


class MarkerWritten(Struct):
    """t2_ns: when the call came, on the Pi's monotonic clock; of a duplicate, when the first one came."""

    status: Literal["injected", "duplicate"]
    timestamp: str
    t2_ns: int
    boot_id: str
    seq: int
    t3_ns: int


class Time(Struct):
    pi_iso: str
    pi_unix_ms: int
    container_version: str
    schema_version: int
    t2_ns: int
    boot_id: str
    utc_ns: int
    t3_ns: int


class PairRequest(Struct):
    """code: as the Pi shows it; public_key: of who asks, in Z85; name: what the Pi is to call it."""

    code: Annotated[str, Meta(pattern=rf"^[0-9]{{6}}{END}")]
    public_key: PublicKey
    name: Name


class Paired(Struct):
    """token: for the header Authorization: Bearer; bus_key: the Pi's public key on the bus, in Z85."""

    token: str
    bus_key: PublicKey
