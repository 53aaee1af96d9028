"""What was told of a recording, held against its files, which are read without the daemon's own reader."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

import zmq

from common.bus import INWATER, connect
from common.chunkstore import verify

HEAD = b"timestamp,sensor_id,mode,value,TempC,Vin,seq,epoch,mono_ns,crc32"
LOSSES = ("readings_dropped", "readings_lost", "numbers_skipped")
CHUNK = re.compile(r"chunk_(\d+)\.(csv|tmp)")


@dataclass(frozen=True)
class Row:
    """A reading that is in a file."""

    seq: int
    value: str
    mono_ns: int


@dataclass
class Found:
    """What the files of one stream hold; damage is what no reader could take for a row."""

    rows: list[Row] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    open_chunks: int = 0

    def told_lost(self) -> int:
        """How many readings the events give up for lost."""
        return sum(event["count"] for event in self.events if event["kind"] in LOSSES)


@dataclass
class Told:
    """What was said of a recording while it went on, and must therefore be true of its files."""

    published: dict[int, str] = field(default_factory=dict)
    durable_seq: int = -1
    markers: set[str] = field(default_factory=set)
    contradictions: list[str] = field(default_factory=list)

    def publish(self, seq: int, value: str) -> None:
        if self.published.setdefault(seq, value) != value:
            self.contradictions.append(f"seq {seq} published as {self.published[seq]} and as {value}")


def read_folder(folder: Path) -> Found:
    """Read every byte of a stream folder, as it is."""
    found = Found()
    seen: set[int] = set()
    for path in sorted(folder.glob("chunk_*")):
        match = CHUNK.fullmatch(path.name)
        if match is None:
            continue  # what was set aside
        if int(match[1]) in seen:
            found.damage.append(f"{path.name}: its number is used twice")
        seen.add(int(match[1]))
        found.open_chunks += match[2] == "tmp"
        _read_chunk(path, found)
    found.lines = _read_lines(folder / "markers.jsonl", found)
    found.events = _read_lines(folder / "events.jsonl", found)
    return found


def _read_chunk(path: Path, found: Found) -> None:
    head, *rows = path.read_bytes().split(b"\r\n")
    if not rows and HEAD.startswith(head) and path.suffix == ".tmp":
        return  # killed between creating it and its first line
    if head != HEAD or rows.pop() != b"":
        found.damage.append(f"{path.name}: does not begin or end as a chunk does")
    for number, row in enumerate(rows):
        body, _, crc = row.rpartition(b",")
        fields = body.decode("ascii", "replace").split(",")
        if crc != b"%08x" % crc32(body) or len(fields) != 9:
            found.damage.append(f"{path.name}: row {number} is torn: {row[:80]!r}")
        elif fields[2].startswith("SYNC_"):
            found.markers.append(fields[3])
        else:
            found.rows.append(Row(int(fields[6]), fields[3], int(fields[8])))


def _read_lines(path: Path, found: Found) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().split(b"\n"):
        try:
            lines += [json.loads(line)] if line else []
        except ValueError:
            found.damage.append(f"{path.name}: torn line {line[:80]!r}")
    return lines


def marker_value(sync_id: str) -> str:
    """How a marker's id stands in its row."""
    return str(int(sync_id[:8], 16))


def complaints(found: Found, told: Told) -> list[str]:
    """Everything told that the files do not bear out, and everything in them that cannot be."""
    seqs = [row.seq for row in found.rows]
    wrong = found.damage + told.contradictions
    if seqs != sorted(set(seqs)):
        twice = [seq for seq, count in Counter(seqs).items() if count > 1]
        wrong.append(f"numbers out of order, or used twice: {twice[:5]}")
    values = {row.seq: row.value for row in found.rows}
    if lost := [seq for seq in told.published if seq not in values]:
        wrong.append(f"{len(lost)} published rows are missing, from seq {lost[0]} on")
    if other := [seq for seq, value in told.published.items() if values.get(seq, value) != value]:
        wrong.append(f"{len(other)} rows are not as published, from seq {other[0]} on")
    if told.durable_seq > max(seqs, default=-1):
        wrong.append(f"durable up to seq {told.durable_seq}, the files end at {max(seqs, default=-1)}")
    return wrong + _holes(found, seqs) + _marker_complaints(found, told)


def _holes(found: Found, seqs: list[int]) -> list[str]:
    missing = len(set(range(max(seqs, default=-1) + 1)) - set(seqs))
    if missing <= found.told_lost():
        return []
    return [f"{missing} numbers are missing, the events tell of {found.told_lost()} lost readings"]


def _marker_complaints(found: Found, told: Told) -> list[str]:
    rows = Counter(found.markers)
    written = {json.dumps(line): str(line["sync_id"]) for line in found.lines}  # after a failed fsync, again
    lines = Counter(written.values())
    wrong = [f"marker {value}: {count} rows" for value, count in rows.items() if count > 1]
    wrong += [f"marker {sync_id}: {count} different lines" for sync_id, count in lines.items() if count > 1]
    for sync_id in told.markers:
        if not rows[marker_value(sync_id)] or not lines[sync_id]:
            wrong.append(f"marker {sync_id} was answered and is not in both files")
    return wrong


def damage_found(folder: Path) -> list[str]:
    """What the product's own check has to say of a folder."""
    return [f"verify: {line}" for line in verify(folder).damage] if folder.exists() else []


class Ear:
    """Hears what a Pi daemon publishes of one session; it survives the daemon."""

    def __init__(self, port: int, session_id: str, told: Told) -> None:
        self._session_id = session_id
        self._told = told
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect(self._context, f"tcp://127.0.0.1:{port}", [f"{INWATER}reading"])

    def listen(self) -> None:
        """Take in what has arrived since the last time."""
        while self._socket.poll(0):
            frame = json.loads(self._socket.recv_multipart()[1], parse_float=str)
            if frame["session_id"] == self._session_id:
                self._told.publish(frame["seq"], frame["value"])
                self._told.durable_seq = max(self._told.durable_seq, frame["durable_seq"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)
