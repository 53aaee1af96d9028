"""The Pi's HTTP calls: the old API, unchanged for old clients, and ours.

The old API's prefix `/sensor` is an alias where it had one.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from aiohttp import web
from msgspec import Struct

from common import VERSION
from common.clock import Clock
from common.guard import Guard, Security
from common.instrument import Arrival, Instrument
from common.keys import Keyring, WrongCode
from common.manifest import digest_of
from common.messages import PROTOCOL, Chunk, Marker, Stamp, to_json
from common.metrics import Metric, counts, exposition, gauge
from common.openapi import document
from common.rows import format_utc
from common.web import Refused, Site, answer
from pi_daemon.acquisition import Acquisition
from pi_daemon.answers import (
    Health,
    InstrumentState,
    MarkerRequest,
    MarkerWritten,
    Paired,
    PairRequest,
    RecordingStarted,
    RecordingStopped,
    Service,
    SessionListed,
    SessionRequest,
    SessionsQuery,
    SnapshotsQuery,
    Standing,
    StartRequest,
    Status,
    Time,
    Version,
)
from pi_daemon.downloads import Downloads
from pi_daemon.pages import DOCS, PAGE
from pi_daemon.sessions import Sessions, Wish
from pi_daemon.shelf import SessionState
from pi_daemon.views import Views

API_VERSION = "0.2.0"  # of the old API that these calls keep to
NO_EVENTS = "events are a file of the recording: GET /files/{session_id}/events.jsonl"


class Setting(Struct, frozen=True):
    """Where the calls are answered.

    keyring: who is paired; None where nobody is. bus_key: the bus's public key, None if it is open.
    machine_id: whose crystal the clock counts, None if that has no name. measure: what /metrics tells.
    """

    security: Security = "local"
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    keyring: Keyring | None = None
    bus_key: str | None = None
    time_port: int = 0
    bus_port: int = 0
    machine_id: str | None = None
    measure: Callable[[], list[Metric]] = list


class Api:
    """Routes and their answers; what the old calls show is kept here, everything else elsewhere."""

    def __init__(
        self, sessions: Sessions, instrument: Instrument, clock: Clock, setting: Setting | None = None
    ) -> None:
        self._sessions = sessions
        self._instrument = instrument
        self._clock = clock
        self._setting = setting = setting or Setting()
        self._views = Views(sessions.folder, clock, lambda: instrument.connected)
        self._acquisition = Acquisition(instrument, self._views, clock, lambda: sessions.recorder is not None)
        self._run_id = str(uuid4())
        self._downloads = Downloads(sessions.folder)
        self._guard = Guard(setting.security, clock, setting.keyring, setting.hosts, setting.origins)
        self.site = Site(self._guard, clock.stamp)
        self._add_about(self.site)
        self._add_controller(self.site)
        self._add_views(self.site)
        self._add_recording(self.site)
        meaning = "The in-water sensor: what it says, and its recordings."
        self._document = to_json(document(self.site.calls, "Q-Sensor", API_VERSION, meaning))

    def show(self, arrival: Arrival) -> None:
        """Let the views see a reading."""
        if self._acquisition.viewed:
            self._views.take(arrival)

    def _add_about(self, site: Site) -> None:
        site.serve("/", self.page, "text/html, application/json", public=True)
        site.get("/health", self.health, public=True)
        site.get("/version", self.version, public=True)
        site.get("/register_service", self.register_service, public=True)
        site.serve("/docs", self.docs, "text/html", public=True, shown=False)
        site.serve("/docs.json", self.docs_json, "application/json", public=True, shown=False)
        site.serve("/openapi.json", self.openapi, "application/json", public=True, shown=False)
        site.post("/pair", self.pair, public=True)
        site.get("/instrument/health", self.instrument_health)
        site.get("/api/sync/time", self.time)
        site.serve("/metrics", self.metrics, "text/plain")

    def _add_controller(self, site: Site) -> None:
        acquisition = self._acquisition
        for prefix in ("", "/sensor"):
            site.get(f"{prefix}/status", self.status)
            site.post(f"{prefix}/connect", acquisition.connect)
            site.post(f"{prefix}/disconnect", acquisition.disconnect)
            site.post(f"{prefix}/config", acquisition.config)
            site.post(f"{prefix}/start", acquisition.start)
            site.post(f"{prefix}/stop", acquisition.stop)
            site.post(f"{prefix}/pause", acquisition.pause)
            site.post(f"{prefix}/resume", acquisition.resume)

    def _add_views(self, site: Site) -> None:
        views = self._views
        for prefix in ("", "/sensor"):
            site.get(f"{prefix}/latest", views.latest)
            site.get(f"{prefix}/recent", views.recent)
            site.get(f"{prefix}/stats", views.stats)
            site.serve(f"{prefix}/stream", views.stream, "WebSocket", shown=False)
        site.post("/recording/start", self._acquisition.keep)
        site.post("/recording/stop", views.flush)
        for prefix in ("", "/recording"):
            site.serve(f"{prefix}/export/csv", views.export_csv, "text/csv")
            site.serve(f"{prefix}/export/parquet", views.export_parquet, "application/octet-stream")

    def _add_recording(self, site: Site) -> None:
        site.post("/record/start", self.record_start)
        site.post("/record/stop", self.record_stop)
        site.get("/record/status", self.record_status)
        site.get("/record/snapshots", self.record_snapshots)
        site.get("/record/sessions", self.record_sessions)
        site.post("/record/sync-marker", self.sync_marker)
        site.serve("/files/{session_id}/{name}", self.file, "text/csv, application/json")
        site.serve("/events", self.events, "application/json", shown=False)

    async def page(self, request: web.Request) -> web.Response:
        """A page for people, the state for programs."""
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(body=PAGE, content_type="text/html", charset="utf-8")
        return answer(await self.health())

    async def docs(self, _request: web.Request) -> web.Response:
        """These calls, to read."""
        return web.Response(body=DOCS, content_type="text/html", charset="utf-8")

    async def openapi(self, _request: web.Request) -> web.Response:
        """These calls, for programs."""
        return web.Response(body=self._document, content_type="application/json")

    async def docs_json(self, _request: web.Request) -> web.Response:
        """Where BlueOS looks for them."""
        return web.Response(status=307, headers={"Location": "openapi.json"})

    async def health(self) -> Health:
        """Whether the daemon is up."""
        return Health("Q-Sensor API", API_VERSION, "online")

    async def version(self) -> Version:
        """Which daemon this is, and where the rest of it is to be found."""
        setting = self._setting
        return Version(
            api=API_VERSION,
            git=VERSION,
            status="online",
            protocol=PROTOCOL,
            time_port=setting.time_port,
            bus_port=setting.bus_port,
            bus_key=setting.bus_key,
            machine_id=setting.machine_id,
            run_id=self._run_id,
            boot_id=self._clock.boot_id,
            security=setting.security,
        )

    async def register_service(self) -> Service:
        """What BlueOS shows of this service."""
        return Service(
            name="Q-Sensor",
            description="Records and publishes the in-water light sensor.",
            icon="mdi-white-balance-sunny",
            company="qsensor-sync",
            version=VERSION,
            webpage="",
            api="/docs",
        )

    async def pair(self, body: PairRequest) -> Paired:
        """Take in a topside that has the code which "python -m pi_daemon pair" shows."""
        keyring = self._setting.keyring
        if keyring is None:
            raise Refused(409, f"security is {self._setting.security}: nothing is to be paired")
        try:
            token = await asyncio.to_thread(keyring.redeem, body.code, body.public_key, body.name)
        except WrongCode as error:
            raise Refused(403, f'{error}: "python -m pi_daemon pair" on the Pi shows one') from None
        return Paired(token, keyring.key_pair().public)

    async def instrument_health(self) -> InstrumentState:
        """How the sensor is, whatever old clients have asked for."""
        health = self._instrument.health()
        recorder = self._sessions.recorder
        free = await asyncio.to_thread(shutil.disk_usage, self._sessions.folder)
        return InstrumentState(
            connected=health.connected,
            port=health.port,
            model=health.model,
            firmware=health.firmware,
            disk_free_bytes=free.free,
            state=health.state,
            detail=health.detail,
            serial_number=health.serial_number,
            baud=health.baud,
            last_line_age_s=health.last_line_age_s,
            counters=health.counters,
            storage=self._sessions.trouble,
            events=self._sessions.events,
            dropped=recorder.dropped if recorder else 0,
            security=self._setting.security,
        )

    async def status(self) -> Status:
        """Sensor and recording, in the old API's words."""
        recorder = self._sessions.recorder
        if recorder is not None:
            self._sessions.heard(recorder.record.session_id, None)
        return Status(
            connected=self._acquisition.connected,
            recording=recorder is not None or self._views.restarted,
            sensor_id=self._instrument.sensor_id if self._acquisition.connected else "unknown",
            mode=self._acquisition.mode,
            rows=recorder.rows if recorder else self._views.kept if self._views.restarted else 0,
            state=self._acquisition.shown,
            session_id=recorder.record.session_id if recorder else None,
            durable_seq=recorder.durable_seq if recorder else -1,
            detail=self._instrument.health().detail,
            storage=self._sessions.trouble,
            events=self._sessions.events,
            security=self._setting.security,
        )

    async def record_start(self, body: StartRequest) -> RecordingStarted:
        """Begin a recording."""
        if body.holder is None:
            self._acquisition.check_ready()
        record = await self._sessions.start(
            Wish(
                session_id=body.session_id,
                mission=body.mission,
                rate_hz=body.rate_hz,
                schema_version=body.schema_version,
                roll_s=body.roll_interval_s,
                holder=body.holder,
                sequel=body.sequel,
            )
        )
        self._acquisition.begun()
        return RecordingStarted(record.session_id, record.started_at, record.rate_hz, record.schema_version)

    async def record_stop(self, body: SessionRequest) -> RecordingStopped:
        """End a recording for ever."""
        state = await self._sessions.stop(body.session_id, body.holder, body.force)
        return RecordingStopped(
            **_totals(state), stopped_at=state.record.stopped_at, chunks=len(state.chunks)
        )

    async def record_status(self, query: SessionRequest) -> Standing:
        """Where a recording stands, open or long stopped."""
        self._sessions.heard(query.session_id, query.holder)
        state = await self._sessions.find(query.session_id)
        return Standing(
            **_totals(state),
            bytes=sum(chunk.size_bytes for chunk in state.chunks),
            last_chunk_index=state.chunks[-1].index if state.chunks else -1,
            backlog=len(state.chunks),
            open_chunk=state.open_chunk,
            trouble=state.trouble,
            dropped=state.dropped,
            holder=state.record.holder,
        )

    async def record_snapshots(self, query: SnapshotsQuery) -> list[Chunk]:
        """The sealed chunks of a recording."""
        state = await self._sessions.find(query.session_id)
        return [chunk for chunk in state.chunks if chunk.index > query.after]

    async def record_sessions(self, query: SessionsQuery) -> list[SessionListed]:
        """Which recordings there are, the newest first."""
        names = SessionListed.__struct_fields__
        return [
            SessionListed(*(getattr(record, name) for name in names))
            for record in await self._sessions.listed(query.most)
        ]

    async def sync_marker(self, received: Stamp, body: MarkerRequest) -> MarkerWritten:
        """Write a marker into the recording; once, however often it is asked for."""
        marker = Marker(
            sync_id=body.sync_id,
            kind=body.marker_type,
            sequence=body.periodic_sequence or 0,
            epoch=0,
            mono_ns=received.mono_ns,
            utc_ns=received.utc_ns,
            after_seq=-1,
            t1_ns=body.t1_ns,
            label=body.label,
        )
        recorded, new = await self._sessions.mark(body.session_id, marker, body.holder)
        return MarkerWritten(
            status="injected" if new else "duplicate",
            timestamp=format_utc(recorded.utc_ns),
            t2_ns=recorded.mono_ns,
            boot_id=self._clock.boot_id,
            seq=recorded.after_seq,
            t3_ns=self._clock.mono_ns(),
        )

    async def time(self, received: Stamp) -> Time:
        """What the Pi's clocks say."""
        return Time(
            pi_iso=format_utc(received.utc_ns),
            pi_unix_ms=received.utc_ns // 1_000_000,
            container_version=VERSION,
            schema_version=1,
            t2_ns=received.mono_ns,
            boot_id=self._clock.boot_id,
            utc_ns=received.utc_ns,
            t3_ns=self._clock.mono_ns(),
        )

    async def file(self, request: web.Request) -> web.Response:
        """A file of a recording, whole or a range; of the open chunk, what will not change any more."""
        state = await self._sessions.find(request.match_info["session_id"])
        return await self._downloads.serve(request, state, request.match_info["name"])

    async def events(self, _request: web.Request) -> web.Response:
        """Not here, as it never was."""
        raise Refused(501, NO_EVENTS)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Counters and gauges for Prometheus."""
        free = await asyncio.to_thread(shutil.disk_usage, self._sessions.folder)
        room = gauge("qsensor_disk_free_bytes", "Free space in the data folder.", free.free)
        away = counts(
            "qsensor_http_refused_total", "Requests that were sent away.", "status", self._guard.refused
        )
        return exposition([*self._setting.measure(), room, away])


def _totals(state: SessionState) -> dict[str, Any]:
    return {
        "session_id": state.record.session_id,
        "rows": state.rows,
        "last_seq": state.last_seq,
        "durable_seq": state.durable_seq,
        "state": state.record.state,
        "digest": digest_of(state.chunks) if state.record.state == "stopped" else None,
    }
