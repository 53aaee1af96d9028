"""What a recording is: its record beside the chunks, and who is told of it."""

from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from common.messages import Chunk, Epoch, Event, Marker, Reading

STAMP_MEANING = "arrival of the line's first byte at the host; mono_ns: CLOCK_MONOTONIC_RAW or perf_counter"


class Sequel(Struct, frozen=True):
    """Where a recording goes on whose beginning is only elsewhere: its card was lost, say, or exchanged."""

    next_seq: Annotated[int, Meta(ge=0, le=2**53)]
    next_chunk: Annotated[int, Meta(ge=0, le=10**9)]
    epochs: Annotated[list[Epoch], Meta(max_length=1000)]


class StreamRecord(Struct):
    """`session.json` beside the chunks: what this stream is and which clocks stamped it.

    Numbers below next_seq have been given out, chunks below next_chunk are elsewhere. closed: it ended in
    order, so all that were given out are in the chunks. holder: who may end it, None for anybody.
    """

    session_id: str
    mission: str
    role: str
    started_at: str
    roll_interval_s: float
    rate_hz: int = 500
    schema_version: int = 1
    state: str = "recording"
    stopped_at: str | None = None
    sensor_id: str = "unknown"
    sensor: dict[str, Any] | None = None
    stamp: str = STAMP_MEANING
    simulated_clock: bool = False
    epochs: list[Epoch] = []
    next_seq: int = 0
    next_chunk: int = 0
    closed: bool = False
    holder: str | None = None


class OpenChunk(Struct, frozen=True):
    """The chunk being written; its first durable_bytes will never change."""

    index: int
    name: str
    durable_bytes: int


class Listener(Protocol):
    """Told from the event loop what the recorder did, in order."""

    def rows(self, readings: list[Reading]) -> None:
        """These have reached the OS."""

    def marker(self, marker: Marker) -> None:
        """This has reached the disk."""

    def durable(self) -> None:
        """Rows have reached the disk since the last call."""

    def sealed(self, chunk: Chunk) -> None:
        """This chunk is complete and will never change."""

    def event(self, event: Event) -> None:
        """Something worth a line happened."""
