"""What a session leaves for its readers: combined streams, the fused table, the old metadata."""

import asyncio
import json
import os
import shutil
import sys
from math import ceil
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from common.chunkstore import sealed_chunks
from common.disk import Disk
from common.files import fsync_folder, read_json, read_lines, replace
from common.messages import Epoch, Exchange, Marker
from common.recording import StreamRecord
from common.rows import HEADER, format_utc
from topside_daemon.fusion.bursts import delay_ns, group_bursts, offset_ns, refusal
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.pi import Started
from topside_daemon.wallclocks import WallClocks

# Not to outlive the daemon, and not to have the priority that it asks for.
POLITELY = [
    *(["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []),
    *(["nice", "-n", "20"] if shutil.which("nice") else []),
]


class SessionRecord(Struct):
    """`session.json` of a session folder; epochs are those of the topside clock.

    link: what earlier sessions had shown of this pair of machines when this one began. fusion: how it is
    to be fused. old: the recording as an old Pi calls it.
    """

    session_id: str
    sync_id: str
    mission: str
    created_at: str
    inwater: bool
    surface: bool
    state: str = "recording"
    detail: str = ""
    stopped_at: str | None = None
    inwater_started: bool = False
    old: Started | None = None
    epochs: list[Epoch] = []
    link: LinkMemory | None = None
    fusion: Settings = Settings()

    @property
    def recording_id(self) -> str:
        """Of the recording on the Pi."""
        return self.old.session_id if self.old else self.session_id


async def produce(folder: Path, session: SessionRecord, stamped: str, disk: Disk) -> dict[str, Any]:
    """Write `session.csv` of both streams, `unified_session.csv` and `sync_metadata.json`.

    Fusion runs in a process of its own, the same command a user would type, so that it cannot
    hold up the stamps of a session that may already be recording.

    Args:
        stamped: the time of writing, ISO 8601, for the metadata.
        disk: whose thread may be kept busy for a while.

    Raises:
        RuntimeError: fusion failed; the message is its own line.
    """
    for stream in _streams(folder).values():
        await disk.do(combine, stream)
    if session.old is not None:  # what the fusion will stand on, so that it says nothing of that itself
        await disk.do(_write_metadata, folder, session, None, stamped)
        return await fuse(folder)
    report = await fuse(folder)
    await disk.do(_write_metadata, folder, session, report, stamped)
    return report


def _write_metadata(
    folder: Path, session: SessionRecord, report: dict[str, Any] | None, stamped: str
) -> None:
    if report is None:
        metadata = _old_metadata(folder, session, stamped)
    else:
        metadata = _sync_metadata(folder, session, report, stamped)
    replace(folder / "sync_metadata.json", json.dumps(metadata, indent=2).encode("utf-8"))


def combine(stream: Path) -> None:
    """All sealed chunks as one `session.csv`: one header, plain line ends, as old readers want it."""
    temporary = stream / "session.csv.new"
    with temporary.open("wb") as file:
        head = HEADER.encode("ascii")
        for path in sealed_chunks(stream):
            first, _, rows = path.read_bytes().partition(b"\n")
            if not file.tell():
                head = first.rstrip()  # an old Pi's has fewer columns
                file.write(head + b"\n")
            file.write(rows.replace(b"\r\n", b"\n"))
        if not file.tell():
            file.write(head + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(stream / "session.csv")
    fsync_folder(stream)


async def fuse(folder: Path) -> dict[str, Any]:
    """Run offline fusion on a session folder and return its report; cancelled, it is ended.

    Raises:
        RuntimeError: it failed.
    """
    child = await asyncio.create_subprocess_exec(
        *POLITELY,
        sys.executable,
        "-m",
        "topside_daemon.fusion",
        str(folder),
        "--json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
    try:
        report: dict[str, Any] = msgspec.json.decode(said)
    except msgspec.DecodeError:
        last_line = complained.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise RuntimeError(last_line or f"fusion ended with code {child.returncode}") from None
    return report


def _streams(folder: Path) -> dict[str, Path]:
    found = {"inWater": folder.glob("in-water_*"), "surface": folder.glob("surface_*")}
    return {role: path for role, paths in found.items() for path in paths}


def _sync_metadata(
    folder: Path, session: SessionRecord, report: dict[str, Any], stamped: str
) -> dict[str, Any]:
    """The old file, key by key, for readers that know it; offsets here are between the wall clocks."""
    exchanges = list(read_lines(folder / "exchanges.jsonl", Exchange))
    best = [
        min(whole, key=delay_ns)
        for burst in group_bursts(exchanges)
        if (whole := [one for one in burst if refusal(one) is None])
    ]
    return _about(folder, session, stamped) | {
        "timeSync": {"inWater": _time_sync(best[0]) if best else None, "surface": None},
        "markers": _markers(folder, _streams(folder), best),
        "driftModel": _drift_model(best, report["clock"]),
        "fusion": {
            "status": "complete",
            "state": session.state,
            "unifiedCsv": "unified_session.csv",
            "rowCount": report["rows"],
            "inWaterRows": report["inwater"]["rows"],
            "surfaceRows": report["surface"]["rows"],
            "completedAt": stamped,
            "report": "unified_session.json",
        },
    }


def _old_metadata(folder: Path, session: SessionRecord, stamped: str) -> dict[str, Any]:
    """The same file as the old Cockpit wrote it before it fused: what is known of an old Pi's clock."""
    clocks = WallClocks(read_lines(folder / "exchanges.jsonl", Exchange), session.epochs)
    return _about(folder, session, stamped) | {
        "timeSync": {"inWater": clocks.time_sync(), "surface": None},
        "markers": clocks.markers(read_lines(folder / "markers.jsonl", Marker)),
        "driftModel": None,
    }


def _about(folder: Path, session: SessionRecord, stamped: str) -> dict[str, Any]:
    streams = _streams(folder)
    return {
        "schemaVersion": 1,
        "mission": session.mission,
        "unifiedSessionTimestamp": folder.name.removeprefix("session_"),
        "createdAt": session.created_at,
        "updatedAt": stamped,
        "sensors": {role: _sensor(streams.get(role), folder, role) for role in ("inWater", "surface")},
    }


def _sensor(stream: Path | None, folder: Path, role: str) -> dict[str, Any] | None:
    if stream is None:
        return None
    try:
        record = read_json(stream / "session.json", StreamRecord)
    except ValueError:
        record = None  # of another version: it only costs labels
    size = sum(path.stat().st_size for path in stream.glob("chunk_*.csv"))
    known = {"sessionId": stream.name.partition("_")[2], "directory": stream.name}
    if record is not None:
        known |= {"startedAt": record.started_at, "stoppedAt": record.stopped_at or ""}
    return known | {
        "sessionCsv": str((stream / "session.csv").relative_to(folder)),
        "bytesMirrored" if role == "inWater" else "bytesRecorded": size,
    }


def _wall_offset_ms(exchange: Exchange) -> float:
    """Pi - topside between the wall clocks."""
    return offset_ns(exchange) / 1e6 + _wall_ahead_ms(exchange)


def _wall_ahead_ms(exchange: Exchange) -> float:
    """What the wall clocks, read beside t2 and t1, add to an offset of the monotonic ones."""
    pi_ahead_ns = (exchange.pi_utc_ns or 0) - (exchange.t2_ns or 0)
    return (pi_ahead_ns - (exchange.topside_utc_ns - exchange.t1_ns)) / 1e6


def _time_sync(first: Exchange) -> dict[str, Any]:
    return {
        "method": "ntp_handshake_v1",
        "offsetMs": round(_wall_offset_ms(first)),
        "uncertaintyMs": ceil(delay_ns(first) / 2e6),
        "measuredAt": format_utc(first.topside_utc_ns),
    }


def _markers(folder: Path, streams: dict[str, Path], best: list[Exchange]) -> list[dict[str, Any]]:
    def by_key(path: Path | None) -> dict[tuple[str, str, int], Marker]:
        return {marker.key: marker for marker in read_lines(path / "markers.jsonl", Marker)} if path else {}

    sides = {role: by_key(streams.get(role)) for role in ("inWater", "surface")}
    offsets: dict[tuple[str, str, int], float] = {
        (one.sync_id, one.kind, one.sequence): _wall_offset_ms(one) for one in best
    }
    return [
        {
            "syncId": marker.sync_id,
            "type": marker.kind,
            "sequence": marker.sequence,
            "label": marker.label,
            "inWaterTimestamp": _time_of(sides["inWater"].get(marker.key)),
            "surfaceTimestamp": _time_of(sides["surface"].get(marker.key)),
            "offsetMs": offsets.get(marker.key),
            "quality": "measured" if marker.key in offsets else "missing",
        }
        for marker in by_key(folder).values()
    ]


def _time_of(marker: Marker | None) -> str | None:
    return format_utc(marker.utc_ns) if marker else None


def _drift_model(best: list[Exchange], segments: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The clock model at its first and last comparison, between the wall clocks, as the old file had it."""
    if not best or not segments:
        return None
    segment = segments[0]
    start_ms = segment["start"]["offset_ns"] / 1e6 + _wall_ahead_ms(best[0])
    if len(segments) > 1 or segment["used"] < 2:
        return {"type": "constant", "startOffsetMs": start_ms}
    end_ms = segment["end"]["offset_ns"] / 1e6 + _wall_ahead_ms(best[-1])
    rate = (end_ms - start_ms) / ((segment["end_mono_ns"] - segment["start_mono_ns"]) / 60e9)
    return {"type": "linear", "startOffsetMs": start_ms, "driftRateMsPerMin": rate, "endOffsetMs": end_ms}
