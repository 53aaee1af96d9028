"""What a session leaves for its readers: combined streams, the fused table, the old metadata."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from common.files import read_json, read_lines, replace
from common.messages import HEADER, Epoch, Exchange, Marker, format_utc
from common.recorder import StreamRecord
from topside_daemon.fusion.clockmodel import best_of_burst, delay_ns, group_bursts, offset_ns

FUSION_S = 3600.0  # a day at 250 readings/s takes minutes


class SessionRecord(Struct):
    """`session.json` of a session folder; epochs are those of the topside clock."""

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
    epochs: list[Epoch] = []


def produce(folder: Path, session: SessionRecord, stamped: str) -> dict[str, Any]:
    """Write `session.csv` of both streams, `unified_session.csv` and `sync_metadata.json`.

    Fusion runs in a process of its own, the same command a user would type, so that it cannot
    hold up the stamps of a session that may already be recording.

    Args:
        stamped: the time of writing, ISO 8601, for the metadata.

    Raises:
        RuntimeError: fusion failed; the message is its own line.
    """
    for stream in _streams(folder).values():
        combine(stream)
    report = fuse(folder)
    metadata = _sync_metadata(folder, session, report, stamped)
    replace(folder / "sync_metadata.json", json.dumps(metadata, indent=2).encode("utf-8"))
    return report


def combine(stream: Path) -> None:
    """All sealed chunks as one `session.csv`: one header, plain line ends, as old readers want it."""
    lines = [HEADER.encode("ascii")]
    for path in sorted(stream.glob("chunk_*.csv")):
        lines.extend(path.read_bytes().splitlines()[1:])
    replace(stream / "session.csv", b"\n".join(lines) + b"\n")


def fuse(folder: Path) -> dict[str, Any]:
    """Run offline fusion on a session folder and return its report.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "topside_daemon.fusion", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, timeout=FUSION_S, check=False)
    try:
        report: dict[str, Any] = msgspec.json.decode(done.stdout)
    except msgspec.DecodeError:
        last_line = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise RuntimeError(last_line or f"fusion ended with code {done.returncode}") from None
    return report


def _streams(folder: Path) -> dict[str, Path]:
    found = {"inWater": folder.glob("in-water_*"), "surface": folder.glob("surface_*")}
    return {role: path for role, paths in found.items() for path in paths}


def _sync_metadata(
    folder: Path, session: SessionRecord, report: dict[str, Any], stamped: str
) -> dict[str, Any]:
    """The old file, key by key, for readers that know it; offsets here are between the wall clocks."""
    exchanges = list(read_lines(folder / "exchanges.jsonl", Exchange))
    best = [one for burst in group_bursts(exchanges) if (one := best_of_burst(burst)) is not None]
    streams = _streams(folder)
    return {
        "schemaVersion": 1,
        "mission": session.mission,
        "unifiedSessionTimestamp": folder.name.removeprefix("session_"),
        "createdAt": session.created_at,
        "updatedAt": stamped,
        "sensors": {role: _sensor(streams.get(role), folder, role) for role in ("inWater", "surface")},
        "timeSync": {"inWater": _time_sync(best[0]) if best else None, "surface": None},
        "markers": _markers(folder, streams, best),
        "driftModel": _drift_model(best),
        "fusion": {
            "status": "complete",
            "state": session.state,
            "unifiedCsv": "unified_session.csv",
            "completedAt": stamped,
            "report": report,
        },
    }


def _sensor(stream: Path | None, folder: Path, role: str) -> dict[str, Any] | None:
    if stream is None:
        return None
    record = read_json(stream / "session.json", StreamRecord)
    size = sum(path.stat().st_size for path in stream.glob("chunk_*.csv"))
    known = {"sessionId": stream.name.partition("_")[2], "directory": stream.name}
    if record is not None:
        known |= {"startedAt": record.started_at, "stoppedAt": record.stopped_at or ""}
    return known | {
        "sessionCsv": str((stream / "session.csv").relative_to(folder)),
        "bytesMirrored" if role == "inWater" else "bytesRecorded": size,
    }


def _wall_offset_ms(exchange: Exchange) -> float:
    """Pi - topside between the wall clocks, which were read beside t2 and t1."""
    pi_ahead_ns = (exchange.pi_utc_ns or 0) - (exchange.t2_ns or 0)
    topside_ahead_ns = exchange.topside_utc_ns - exchange.t1_ns
    return (offset_ns(exchange) + pi_ahead_ns - topside_ahead_ns) / 1e6


def _time_sync(first: Exchange) -> dict[str, Any]:
    return {
        "method": "ntp_handshake_v1",
        "offsetMs": round(_wall_offset_ms(first)),
        "uncertaintyMs": round(delay_ns(first) / 2e6),
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


def _drift_model(best: list[Exchange]) -> dict[str, Any] | None:
    """First and last comparison, as the old file had it; the fused rows carry the real model."""
    if not best:
        return None
    first, last = best[0], best[-1]
    start_ms, minutes = _wall_offset_ms(first), (last.t1_ns - first.t1_ns) / 60e9
    if first.topside_boot_id != last.topside_boot_id or minutes <= 0:
        return {"type": "constant", "startOffsetMs": start_ms}
    end_ms = _wall_offset_ms(last)
    rate = (end_ms - start_ms) / minutes
    return {"type": "linear", "startOffsetMs": start_ms, "driftRateMsPerMin": rate, "endOffsetMs": end_ms}
