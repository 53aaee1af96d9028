"""The Pi's HTTP calls: the recording calls of the old API, unchanged for old clients, and ours.

The old API's prefix `/sensor` is an alias where it had one. Connecting, starting and stopping
acquisition are answered as before, but the sensor runs all the time: it is the recording that starts.
"""

import asyncio
import shutil
from collections.abc import Callable
from typing import Annotated, Any, Literal
from uuid import uuid4

from aiohttp import web
from msgspec import Meta, Struct

from common import VERSION
from common.clock import Clock
from common.instrument import Instrument
from common.manifest import digest_of
from common.messages import PROTOCOL, Marker
from common.metrics import Metric, exposition, gauge
from common.recording import Sequel
from common.rows import format_utc
from common.web import Refused, Site, answer, body, query
from pi_daemon.downloads import Downloads
from pi_daemon.sessions import Sessions, SessionState, Wish

API_VERSION = "0.2.0"  # of the old API that these calls keep to
CONNECT_NS = 25_000_000_000  # the old client gives up after 30
INT64_MAX = 2**63 - 1

SyncId = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8}[0-9a-fA-F-]{0,56}$")]
Holder = Annotated[str, Meta(pattern=r"^[ -~]{1,100}$")]
SessionId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]


class StartRequest(Struct):
    """session_id, holder and sequel are ours: a start asked again with the same id is the same recording;
    one with a holder is not stopped by others as long as that one is heard; a sequel goes on with a recording
    whose beginning is lost here.
    """

    rate_hz: Annotated[int, Meta(ge=1)] = 500
    schema_version: int = 1
    mission: Annotated[str, Meta(max_length=200)] = "Cockpit"
    roll_interval_s: Annotated[float, Meta(gt=0)] = 60.0
    session_id: SessionId | None = None
    holder: Holder | None = None
    sequel: Sequel | None = None


class SessionRequest(Struct):
    """holder is ours: who asks, so that nobody else's recording is stopped, unless by force."""

    session_id: str
    holder: Holder | None = None
    force: bool = False


class SessionsQuery(Struct):
    most: Annotated[int, Meta(ge=1, le=10_000)] = 100


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
    holder: Holder | None = None


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
        measure: Callable[[], list[Metric]] = list,
    ) -> None:
        """
        Args:
            machine_id: whose crystal the clock counts, None if that has no name.
            measure: what /metrics tells.
        """
        self._sessions = sessions
        self._instrument = instrument
        self._clock = clock
        self._downloads = Downloads(sessions.folder)
        self._measure = measure
        self._lasting = {
            "time_port": time_port,
            "bus_port": bus_port,
            "machine_id": machine_id,
            "run_id": str(uuid4()),
        }
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
        site.get("/record/sessions", self.record_sessions)
        site.post("/record/sync-marker", self.sync_marker)
        site.get("/files/{session_id}/{name}", self.file)
        site.get("/metrics", self.metrics)

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
                "events": self._sessions.events,
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
                "events": self._sessions.events,
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
            Wish(
                session_id=wanted.session_id,
                mission=wanted.mission,
                rate_hz=wanted.rate_hz,
                schema_version=wanted.schema_version,
                roll_s=wanted.roll_interval_s,
                holder=wanted.holder,
                sequel=wanted.sequel,
            )
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
        state = await self._sessions.stop(wanted.session_id, wanted.holder, wanted.force)
        return answer(_totals(state) | {"stopped_at": state.record.stopped_at, "chunks": len(state.chunks)})

    async def record_status(self, request: web.Request) -> web.Response:
        wanted = query(request, SessionRequest)
        self._sessions.heard(wanted.session_id, wanted.holder)
        state = await self._sessions.find(wanted.session_id)
        return answer(
            _totals(state)
            | {
                "bytes": sum(chunk.size_bytes for chunk in state.chunks),
                "last_chunk_index": state.chunks[-1].index if state.chunks else -1,
                "backlog": len(state.chunks),
                "open_chunk": state.open_chunk,
                "trouble": state.trouble,
                "dropped": state.dropped,
                "holder": state.record.holder,
            }
        )

    async def record_snapshots(self, request: web.Request) -> web.Response:
        wanted = query(request, SnapshotsQuery)
        state = await self._sessions.find(wanted.session_id)
        return answer([chunk for chunk in state.chunks if chunk.index > wanted.after])

    async def record_sessions(self, request: web.Request) -> web.Response:
        """Which recordings there are, the newest first."""
        records = await self._sessions.listed(query(request, SessionsQuery).most)
        return answer(
            [
                {
                    "session_id": record.session_id,
                    "mission": record.mission,
                    "started_at": record.started_at,
                    "stopped_at": record.stopped_at,
                    "state": record.state,
                    "sensor_id": record.sensor_id,
                    "holder": record.holder,
                }
                for record in records
            ]
        )

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
        recorded, new = await self._sessions.mark(wanted.session_id, marker, wanted.holder)
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
        return await self._downloads.serve(request, state, request.match_info["name"])

    async def metrics(self, _request: web.Request) -> web.Response:
        """Counters and gauges for Prometheus."""
        free = await asyncio.to_thread(shutil.disk_usage, self._sessions.folder)
        room = gauge("qsensor_disk_free_bytes", "Free space in the data folder.", free.free)
        return exposition([*self._measure(), room])


def _totals(state: SessionState) -> dict[str, Any]:
    return {
        "session_id": state.record.session_id,
        "rows": state.rows,
        "last_seq": state.last_seq,
        "durable_seq": state.durable_seq,
        "state": state.record.state,
        "digest": digest_of(state.chunks) if state.record.state == "stopped" else None,
    }
