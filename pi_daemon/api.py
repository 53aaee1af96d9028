"""The Pi's HTTP calls: the recording calls of the old API, unchanged for old clients, and ours.

The old API's prefix `/sensor` is an alias where it had one. Connecting, starting and stopping
acquisition are answered as before, but the sensor runs all the time: it is the recording that starts.
"""

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from aiohttp import web
from msgspec import Meta, Struct

from common import VERSION
from common.chunkstore import CHUNK_NAME, sealed_name
from common.clock import Clock
from common.instrument import Instrument
from common.messages import PROTOCOL, Marker
from common.rows import format_utc
from common.web import Refused, Site, answer, body, query
from pi_daemon.sessions import Sessions, SessionState

API_VERSION = "0.2.0"  # of the old API that these calls keep to
CONNECT_NS = 25_000_000_000  # the old client gives up after 30
SIDE_FILES = ("manifest.json", "session.json", "markers.jsonl", "events.jsonl")
INT64_MAX = 2**63 - 1
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")

SyncId = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8}[0-9a-fA-F-]{0,56}$")]
SessionId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]


class StartRequest(Struct):
    """session_id is ours: a start asked again with the same id is the same recording."""

    rate_hz: Annotated[int, Meta(ge=1)] = 500
    schema_version: int = 1
    mission: Annotated[str, Meta(max_length=200)] = "Cockpit"
    roll_interval_s: Annotated[float, Meta(gt=0)] = 60.0
    session_id: SessionId | None = None


class SessionRequest(Struct):
    session_id: str


class SnapshotsQuery(Struct):
    """after is ours: only chunks with a higher index."""

    session_id: str
    after: int = -1


class MarkerRequest(Struct):
    session_id: str
    sync_id: SyncId
    marker_type: Literal["START", "STOP", "PERIODIC"]
    periodic_sequence: Annotated[int, Meta(ge=0, le=INT64_MAX)] | None = None
    t1_ns: Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)] | None = None
    label: Annotated[str, Meta(max_length=200)] | None = None


class AcquisitionQuery(Struct):
    poll_hz: float = 1.0
    auto_record: bool = False


class Api:
    """Routes and their answers; holds no state of its own."""

    def __init__(
        self,
        sessions: Sessions,
        instrument: Instrument,
        clock: Clock,
        time_port: int,
        bus_port: int,
        machine_id: str | None = None,
    ) -> None:
        """*machine_id*: whose crystal the clock counts, None if that has no name."""
        self._sessions = sessions
        self._instrument = instrument
        self._clock = clock
        self._lasting = {"time_port": time_port, "bus_port": bus_port, "machine_id": machine_id}
        self.site = site = Site()
        site.get("/", self.health)
        site.get("/health", self.health)
        site.get("/version", self.version)
        site.get("/instrument/health", self.instrument_health)
        site.get("/api/sync/time", self.time)
        for prefix in ("", "/sensor"):
            site.get(f"{prefix}/status", self.status)
            site.post(f"{prefix}/connect", self.connect)
            site.post(f"{prefix}/disconnect", self.disconnect)
            site.post(f"{prefix}/start", self.start_acquisition)
            site.post(f"{prefix}/stop", self.stop_acquisition)
        site.post("/record/start", self.record_start)
        site.post("/record/stop", self.record_stop)
        site.get("/record/status", self.record_status)
        site.get("/record/snapshots", self.record_snapshots)
        site.post("/record/sync-marker", self.sync_marker)
        site.get("/files/{session_id}/{name}", self.file)

    async def health(self, _request: web.Request) -> web.Response:
        return answer({"service": "Q-Sensor", "version": API_VERSION, "status": "online"})

    async def version(self, _request: web.Request) -> web.Response:
        """The old keys, and what a topside daemon needs to find the rest of this one."""
        about = {"api": API_VERSION, "git": VERSION, "status": "online", "protocol": PROTOCOL}
        return answer(about | self._lasting | {"boot_id": self._clock.boot_id})

    async def instrument_health(self, _request: web.Request) -> web.Response:
        health = self._instrument.health()
        recorder = self._sessions.recorder
        free = await asyncio.to_thread(shutil.disk_usage, self._sessions.folder)
        return answer(
            {
                "connected": health.connected,
                "port": health.port,
                "model": health.model,
                "firmware": health.firmware,
                "disk_free_bytes": free.free,
                "state": health.state,
                "detail": health.detail,
                "serial_number": health.serial_number,
                "baud": health.baud,
                "last_line_age_s": health.last_line_age_s,
                "counters": health.counters,
                "storage": self._sessions.trouble,
                "dropped": recorder.dropped if recorder else 0,
            }
        )

    async def status(self, _request: web.Request) -> web.Response:
        health, recorder = self._instrument.health(), self._sessions.recorder
        state = {"freerun": "acq_freerun", "polled": "acq_polled", "menu": "config_menu"}
        return answer(
            {
                "connected": health.connected,
                "recording": recorder is not None,
                "sensor_id": self._instrument.sensor_id,
                "mode": health.state if health.state in ("freerun", "polled") else None,
                "rows": recorder.rows if recorder else 0,
                "state": state.get(health.state, "acq_freerun" if health.connected else "disconnected"),
                "session_id": recorder.record.session_id if recorder else None,
                "durable_seq": recorder.durable_seq if recorder else -1,
                "detail": health.detail,
                "storage": self._sessions.trouble,
            }
        )

    async def connect(self, _request: web.Request) -> web.Response:
        """Whatever port is named, the sensor is the configured one; waits until it is heard."""
        deadline_ns = self._clock.mono_ns() + CONNECT_NS
        while not self._instrument.connected:
            if self._clock.mono_ns() > deadline_ns:
                raise Refused(503, f"Serial: {self._instrument.health().detail}")
            await asyncio.sleep(0.1)
        return answer({"status": "connected", "sensor_id": self._instrument.sensor_id})

    async def disconnect(self, _request: web.Request) -> web.Response:
        return answer({"status": "disconnected"})

    async def start_acquisition(self, request: web.Request) -> web.Response:
        query(request, AcquisitionQuery)
        if not self._instrument.connected:
            raise Refused(503, f"Not connected: {self._instrument.health().detail}")
        mode = "polled" if self._instrument.state == "polled" else "freerun"
        return answer({"status": "started", "mode": mode, "recording": False})

    async def stop_acquisition(self, _request: web.Request) -> web.Response:
        return answer({"status": "stopped"})

    async def record_start(self, request: web.Request) -> web.Response:
        wanted = await body(request, StartRequest)
        record = await self._sessions.start(
            wanted.session_id, wanted.mission, wanted.rate_hz, wanted.schema_version, wanted.roll_interval_s
        )
        return answer(
            {
                "session_id": record.session_id,
                "started_at": record.started_at,
                "rate_hz": record.rate_hz,
                "schema_version": record.schema_version,
            }
        )

    async def record_stop(self, request: web.Request) -> web.Response:
        wanted = await body(request, SessionRequest)
        state = await self._sessions.stop(wanted.session_id)
        return answer(_totals(state) | {"stopped_at": state.record.stopped_at, "chunks": len(state.chunks)})

    async def record_status(self, request: web.Request) -> web.Response:
        state = await self._sessions.find(query(request, SessionRequest).session_id)
        return answer(
            _totals(state)
            | {
                "state": state.record.state,
                "bytes": sum(chunk.size_bytes for chunk in state.chunks),
                "last_chunk_index": state.chunks[-1].index if state.chunks else -1,
                "backlog": len(state.chunks),
                "open_chunk": state.open_chunk,
                "trouble": state.trouble,
            }
        )

    async def record_snapshots(self, request: web.Request) -> web.Response:
        wanted = query(request, SnapshotsQuery)
        state = await self._sessions.find(wanted.session_id)
        return answer([chunk for chunk in state.chunks if chunk.index > wanted.after])

    async def sync_marker(self, request: web.Request) -> web.Response:
        received = self._clock.stamp()
        wanted = await body(request, MarkerRequest)
        marker = Marker(
            sync_id=wanted.sync_id,
            kind=wanted.marker_type,
            sequence=wanted.periodic_sequence or 0,
            epoch=0,
            mono_ns=received.mono_ns,
            utc_ns=received.utc_ns,
            after_seq=-1,
            t1_ns=wanted.t1_ns,
            label=wanted.label,
        )
        recorded, new = await self._sessions.mark(wanted.session_id, marker)
        return answer(
            {
                "status": "injected" if new else "duplicate",
                "timestamp": format_utc(recorded.utc_ns),
                "t2_ns": recorded.mono_ns,
                "boot_id": self._clock.boot_id,
                "seq": recorded.after_seq,
                "t3_ns": self._clock.mono_ns(),
            }
        )

    async def time(self, _request: web.Request) -> web.Response:
        received = self._clock.stamp()
        return answer(
            {
                "pi_iso": format_utc(received.utc_ns),
                "pi_unix_ms": received.utc_ns // 1_000_000,
                "container_version": VERSION,
                "schema_version": 1,
                "t2_ns": received.mono_ns,
                "boot_id": self._clock.boot_id,
                "utc_ns": received.utc_ns,
                "t3_ns": self._clock.mono_ns(),
            }
        )

    async def file(self, request: web.Request) -> web.Response:
        """A file of a recording, whole or a range; of the open chunk, what will not change any more."""
        state = await self._sessions.find(request.match_info["session_id"])
        name = request.match_info["name"]
        folder = self._sessions.folder / state.record.session_id
        wanted = RANGE.fullmatch(request.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        last = int(wanted[2]) if wanted and wanted[2] else None
        if last is not None and last < first:
            wanted, first, last = None, 0, None  # RFC 9110: such a range is to be ignored
        try:
            content, size = await asyncio.to_thread(_read, folder, name, state, first, last)
        except FileNotFoundError:
            raise Refused(404, f"no file {name!r} in session {state.record.session_id}") from None
        headers = {"Accept-Ranges": "bytes", "Content-Disposition": f'attachment; filename="{name}"'}
        if wanted is None:
            return web.Response(body=content, headers=headers, content_type=_content_type(name))
        if first >= size:
            headers["Content-Range"] = f"bytes */{size}"
            raise_text = f"range starts at {first}, the file has {size} bytes"
            return web.json_response({"detail": raise_text}, status=416, headers=headers)
        headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{size}"
        return web.Response(body=content, status=206, headers=headers, content_type=_content_type(name))


def _totals(state: SessionState) -> dict[str, Any]:
    return {
        "session_id": state.record.session_id,
        "rows": state.rows,
        "last_seq": state.last_seq,
        "durable_seq": state.durable_seq,
    }


def _read(folder: Path, name: str, state: SessionState, first: int, last: int | None) -> tuple[bytes, int]:
    """Bytes first..last of a file, and how many it has for readers."""
    path, size = _locate(folder, name, state)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size if size is None else size
        end = size if last is None else min(size, last + 1)
        return os.pread(fd, max(end - first, 0), first), size
    finally:
        os.close(fd)


def _locate(folder: Path, name: str, state: SessionState) -> tuple[Path, int | None]:
    """The file behind a name, and its readable size where that is less than all of it."""
    match = CHUNK_NAME.fullmatch(name)
    if match is None:
        if name not in SIDE_FILES:
            raise FileNotFoundError(name)
        return folder / name, None
    chunk = state.open_chunk
    if match[2] == "tmp" and chunk is not None and chunk.name == name and (folder / name).exists():
        return folder / name, chunk.durable_bytes
    return folder / sealed_name(int(match[1])), None  # an open chunk may be sealed while it is read


def _content_type(name: str) -> str:
    return "application/json" if name.endswith((".json", ".jsonl")) else "text/csv"
