"""The Pi API that ours replaces, as a process of its own: `python -m tests.sim.oldpi`.

It does what that one does, faults and all: handlers that hold up every other call while they talk to the
sensor, recordings that it names itself and forgets when it is started again, chunks that reach the disk
when they are finished, a recorder that begins with whatever is in the ring and goes by the wall clock. Two
generations: `snapshot` has one recording, whatever id it is asked for, and neither markers nor a time to ask
for; `later` has both, and many recordings. The readings are its own: each says when it was made, in s of
this machine's monotonic clock, modulo 100 000; the label beside it is that of a wall clock that is wrong.
"""

import argparse
import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import uuid4

from aiohttp import web

from common.clock import SystemClock
from common.rows import OLD_HEADER
from tests.sim.rig import Daemon

GENERATIONS = ("snapshot", "later")
RING = 10_000
POLL_S = 0.2
ROLL_BYTES = 2 << 20
SENSOR = "serial ######   "
CONNECT_S, START_S, PAUSE_S = 4.0, 3.5, 4.0  # that the handlers hold the loop
MODULUS_S = 100_000


class Reading(NamedTuple):
    at: datetime
    mode: str
    value: float | int
    temp_c: float
    vin: float

    def row(self) -> str:
        return f"{self.at.isoformat()},{SENSOR},{self.mode},{self.value},{self.temp_c},{self.vin}\r\n"


class WallClock:
    """One that reads ahead and gains."""

    def __init__(self, ahead_s: float, drift_ppm: float) -> None:
        self._clock = SystemClock()
        self._begun = self._clock.stamp()
        self._ahead_s, self._rate = ahead_s, 1 + drift_ppm / 1e6

    def mono_ns(self) -> int:
        return self._clock.mono_ns()

    def now(self) -> datetime:
        return self.at(self._clock.mono_ns())

    def at(self, mono_ns: int) -> datetime:
        """What it shows then."""
        since_us = (mono_ns - self._begun.mono_ns) * self._rate / 1e3
        begun = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._begun.utc_ns // 1000)
        return begun + timedelta(microseconds=round(since_us + self._ahead_s * 1e6))


class Store:
    """One recording's folder. Rows are in a buffer of the process until their chunk is finished."""

    def __init__(self, base: Path, clock: WallClock, roll_s: float) -> None:
        self.session_id = str(uuid4())
        self.folder = base / self.session_id
        self._clock, self._roll_s = clock, roll_s
        self._lock = threading.RLock()
        self.rows = self._chunk_rows = self._chunk_bytes = 0
        self._file: TextIO | None = None
        self.manifest: dict[str, Any] = {
            "session_id": self.session_id,
            "started_at": clock.now().isoformat(),
            "next_chunk_index": 0,
            "total_rows": 0,
            "total_bytes": 0,
            "chunks": [],
        }
        self.folder.mkdir(parents=True)
        (self.folder / "manifest.json").write_text(json.dumps(self.manifest, indent=2))

    def append(self, *readings: Reading) -> None:
        with self._lock:
            for one in readings:
                if self._file is None:
                    self._open()
                assert self._file is not None
                self._file.write(one.row())
                self.rows += 1
                self._chunk_rows += 1
                self._chunk_bytes += len(one.row())
                age_s = (self._clock.now() - self._opened).total_seconds()
                if age_s >= self._roll_s or self._chunk_bytes >= ROLL_BYTES:
                    self.finish_chunk()

    def _open(self) -> None:
        self._path = self.folder / f"chunk_{self.manifest['next_chunk_index']:05d}.tmp"
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._file.write(f"{OLD_HEADER}\r\n")
        self._opened = self._clock.now()
        self._chunk_rows = self._chunk_bytes = 0

    def finish_chunk(self) -> None:
        with self._lock:
            if self._file is None:
                return
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            path = self._path.rename(self._path.with_suffix(".csv"))
            content, index = path.read_bytes(), self.manifest["next_chunk_index"]
            self.manifest["chunks"].append(
                {
                    "index": index,
                    "name": path.name,
                    "rows": self._chunk_rows,
                    "size_bytes": len(content),
                    "sha256": sha256(content).hexdigest(),
                }
            )
            self.manifest["next_chunk_index"] = index + 1
            self.manifest["total_rows"] = self.rows
            self.manifest["total_bytes"] += len(content)
            new = self.folder / "manifest.json.tmp"
            new.write_text(json.dumps(self.manifest, indent=2))
            new.rename(self.folder / "manifest.json")


class Recorder(threading.Thread):
    """Looks into the ring now and then, and keeps what is later than what it kept last, by the wall clock."""

    def __init__(self, store: Store, ring: deque[Reading]) -> None:
        super().__init__(daemon=True)
        self.store = store
        self._ring = ring
        self._over = threading.Event()

    def run(self) -> None:
        last: datetime | None = None
        while not self._over.wait(POLL_S):
            new = [one for one in list(self._ring) if last is None or one.at > last]
            if new:
                self.store.append(*new)
                last = max(one.at for one in new)

    @property
    def recording(self) -> bool:
        return not self._over.is_set()

    def stop(self) -> None:
        self._over.set()
        self.join()
        self.store.finish_chunk()


class Sensor(threading.Thread):
    """Fills a ring while it is acquiring."""

    def __init__(self, clock: WallClock, rate_hz: float) -> None:
        super().__init__(daemon=True)
        self.ring: deque[Reading] = deque(maxlen=RING)
        self.state = "config_menu"
        self._clock, self._period_ns = clock, round(1e9 / rate_hz)

    def run(self) -> None:
        due_ns = self._clock.mono_ns()
        while self.state != "disconnected":
            due_ns += self._period_ns
            time.sleep(max(0, due_ns - self._clock.mono_ns()) / 1e9)
            if self.state == "acq_freerun":
                made_ns = self._clock.mono_ns()
                value = round(made_ns / 1e9 % MODULUS_S, 6)
                self.ring.append(Reading(self._clock.at(made_ns), "freerun", value, 25.19, 7.494))


class Refused(Exception):
    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class OldApi:
    """Its calls, all of which hold up each other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._clock = WallClock(options.ahead_s, options.drift_ppm)
        self._later = options.generation == "later"
        self._data, self._slow, self._rate_hz = options.data, options.slow, options.rate
        self._plugged: Path | None = options.sensor
        self._dumb: Path | None = options.dumb
        default: tuple[float, float] = (1.0, 300.0) if self._later else (15.0, 300.0)
        clamp: tuple[float, float] = options.roll_clamp or default
        self._least_roll_s, self._most_roll_s = clamp
        self._sensor: Sensor | None = None
        self._half_open = False
        self._managed = False  # there is somebody to ask for recordings
        self._recorders: dict[str, Recorder] = {}

    def routes(self) -> list[web.RouteDef]:
        both: list[tuple[Callable[..., web.RouteDef], str, Callable[[web.Request], Awaitable[Any]]]] = [
            (web.get, "/status", self.status),
            (web.get, "/latest", self.latest),
            (web.post, "/connect", self.connect),
            (web.post, "/start", self.start),
            (web.post, "/stop", self.stop),
            (web.post, "/pause", self.pause),
            (web.post, "/resume", self.resume),
        ]
        found = [kind(prefix + path, call) for kind, path, call in both for prefix in ("", "/sensor")]
        found += [
            web.get("/health", self.health),
            web.get("/version", self.version),
            web.get("/instrument/health", self.instrument),
            web.post("/disconnect", self.disconnect),
            web.post("/record/start", self.record_start),
            web.post("/record/stop", self.record_stop),
            web.get("/record/status", self.record_status),
            web.get("/record/snapshots", self.snapshots),
            web.get("/files/{session_id}/{filename}", self.file),
        ]
        if self._later:
            found += [
                web.post("/record/sync-marker", self.marker),
                web.get("/api/sync/time", self.time),
            ]
        return found

    async def health(self, _request: web.Request) -> Any:
        return {"service": "Q-Sensor API", "version": "1.0.0", "status": "online"}

    async def version(self, _request: web.Request) -> Any:
        return {"api": "0.2.0", "git": "unknown", "status": "online"}

    async def instrument(self, _request: web.Request) -> Any:
        there = self._sensor is not None
        return {
            "connected": there,
            "port": "/dev/ttyUSB0" if there else None,
            "model": SENSOR if there else None,
            "firmware": "unknown" if there else None,
            "disk_free_bytes": 1 << 33,
        }

    async def status(self, _request: web.Request) -> Any:
        state = self._sensor.state if self._sensor else "disconnected"
        return {
            "connected": self._sensor is not None,
            "recording": False,
            "sensor_id": SENSOR if self._sensor else "unknown",
            "mode": "freerun" if state == "config_menu" else None,
            "rows": 0,
            "state": state,
        }

    async def latest(self, _request: web.Request) -> Any:
        return {}  # it sees only the other recorder

    async def connect(self, _request: web.Request) -> Any:
        if self._sensor is not None or self._half_open:
            raise Refused(400, "Already connected. Disconnect first.")
        if self._plugged is not None and not self._plugged.exists():
            self._half_open = True
            raise Refused(503, f"Serial error: could not open port {self._plugged}")
        self._block(CONNECT_S)
        self._sensor = Sensor(self._clock, self._rate_hz)
        self._sensor.start()
        self._managed = True
        return {"status": "connected", "sensor_id": SENSOR}

    async def start(self, _request: web.Request) -> Any:
        sensor = self._connected()
        if sensor.state != "config_menu":
            raise Refused(400, "Acquisition already running")
        self._block(START_S)
        sensor.state = "acq_freerun"
        return {"status": "started", "mode": "freerun", "recording": False}

    async def stop(self, _request: web.Request) -> Any:
        sensor = self._connected()
        if sensor.state not in ("acq_freerun", "paused"):
            raise Refused(400, "Acquisition not running")
        self._block(PAUSE_S)
        sensor.state = "config_menu"
        return {"status": "stopped"}

    async def pause(self, _request: web.Request) -> Any:
        sensor = self._connected()
        if sensor.state != "acq_freerun":
            raise Refused(400, "Acquisition not running")
        self._block(PAUSE_S)
        sensor.state = "paused"
        return {"status": "paused"}

    async def resume(self, _request: web.Request) -> Any:
        sensor = self._connected()
        if sensor.state != "paused":
            raise Refused(400, "Controller not in paused state")
        self._block(START_S)
        sensor.state = "acq_freerun"
        return {"status": "resumed", "mode": "freerun"}

    async def disconnect(self, _request: web.Request) -> Any:
        self._half_open = False
        if self._sensor is not None:
            self._sensor.state = "disconnected"
            self._sensor = None
        return {"status": "disconnected"}

    def _connected(self) -> Sensor:
        if self._sensor is None:
            raise Refused(400, "Not connected")
        return self._sensor

    def _block(self, seconds: float) -> None:
        time.sleep(seconds * self._slow)

    async def record_start(self, request: web.Request) -> Any:
        wanted = await _body(request)
        sensor = self._sensor
        if sensor is None:
            raise Refused(424, "Sensor not connected. Call /connect first.")
        if sensor.state not in ("acq_freerun", "acq_polled"):
            self._block(START_S)
            sensor.state = "acq_freerun"
        active = self._active()
        if active is not None:
            name = f": session_id={active.store.session_id}" if self._later else ""
            raise Refused(409, f"Recording already active{name}")
        roll_s = min(self._most_roll_s, max(self._least_roll_s, wanted.get("roll_interval_s", 60.0)))
        recorder = Recorder(Store(self._data, self._clock, roll_s), sensor.ring)
        recorder.start()
        if not self._later:
            self._recorders.clear()  # it has room for one
        self._recorders[recorder.store.session_id] = recorder
        return {
            "session_id": recorder.store.session_id,
            "started_at": recorder.store.manifest["started_at"],
            "rate_hz": wanted.get("rate_hz", 500),
            "schema_version": wanted.get("schema_version", 1),
        }

    def _active(self) -> Recorder | None:
        return next((one for one in self._recorders.values() if one.recording), None)

    def _find(self, session_id: str) -> Recorder:
        """The recording of this id, or, in the older generation, the one that there is."""
        if not self._later:
            if not self._recorders:
                raise Refused(404, "No recording session")
            return next(iter(self._recorders.values()))
        if not self._managed:
            raise Refused(500, "SessionManager not initialized")
        if session_id not in self._recorders:
            raise Refused(404, f"Session not found: {session_id}")
        return self._recorders[session_id]

    async def record_stop(self, request: web.Request) -> Any:
        session_id = _needed(await _body(request), "session_id")
        if not self._later and self._active() is None:
            raise Refused(400, "No active recording")
        recorder = self._find(session_id)
        if not recorder.recording:
            raise Refused(400, "Session is not recording (state=stopped)")
        recorder.stop()
        manifest = recorder.store.manifest
        return {
            "session_id": session_id,
            "stopped_at": self._clock.now().isoformat(),
            "chunks": len(manifest["chunks"]),
            "rows": manifest["total_rows"],
        }

    async def record_status(self, request: web.Request) -> Any:
        session_id = _needed(dict(request.query), "session_id")
        recorder = self._find(session_id)
        chunks = recorder.store.manifest["chunks"]
        return {
            "session_id": session_id,
            "state": "recording" if recorder.recording else "stopped",
            "rows": recorder.store.rows,
            "bytes": recorder.store.manifest["total_bytes"],
            "last_chunk_index": len(chunks) - 1,
            "backlog": len(chunks),
        }

    async def snapshots(self, request: web.Request) -> Any:
        session_id = _needed(dict(request.query), "session_id")
        return self._find(session_id).store.manifest["chunks"]

    async def file(self, request: web.Request) -> Any:
        session_id, name = request.match_info["session_id"], request.match_info["filename"]
        folder = self._data / session_id
        if self._recorders and (not self._later or session_id in self._recorders):
            folder = self._find(session_id).store.folder
        if not folder.exists():
            raise Refused(404, f"Session not found: {session_id}")
        if not (folder / name).exists():
            raise Refused(404, f"File not found: {name}")
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return web.Response(
            body=(folder / name).read_bytes(), content_type="text/csv", charset="utf-8", headers=headers
        )

    async def marker(self, request: web.Request) -> Any:
        wanted = await _body(request)
        session_id, sync_id = _needed(wanted, "session_id"), _needed(wanted, "sync_id")
        kind = _needed(wanted, "marker_type")
        if kind not in ("START", "STOP"):
            raise Refused(
                422, [_invalid("literal_error", "marker_type", "Input should be 'START' or 'STOP'")]
            )
        recorder = self._find(session_id)
        if not recorder.recording:
            raise Refused(400, "Session is not recording (state=stopped)")
        if not re.fullmatch("[0-9a-fA-F]{1,8}", sync_id[:8]):
            raise Refused(500, "Internal Server Error")
        row = Reading(self._clock.now(), f"SYNC_{kind}", int(sync_id[:8], 16), 0.0, 0.0)
        recorder.store.append(row)
        return {"status": "injected", "timestamp": row.at.isoformat()}

    async def time(self, _request: web.Request) -> Any:
        now = self._clock.now()
        return {
            "pi_iso": now.isoformat(),
            "pi_unix_ms": int(now.timestamp() * 1000),
            "container_version": "0.2.0",
            "schema_version": 1,
        }

    @web.middleware
    async def answer(self, request: web.Request, handler: "Handler") -> web.StreamResponse:
        """In the words of FastAPI, or not at all."""
        response = await _as_fastapi(request, handler)
        if self._dumb is not None and self._dumb.exists() and self._dumb.read_text() == request.path:
            assert request.transport is not None
            request.transport.abort()
        return response

    async def end(self, _app: web.Application) -> None:
        """What is recorded is finished in order, unless it is killed."""
        if (active := self._active()) is not None:
            active.stop()


def _invalid(kind: str, field: str, message: str) -> dict[str, Any]:
    return {"type": kind, "loc": ["body", field], "msg": message, "input": {}}


def _needed(wanted: dict[str, Any], field: str) -> str:
    if not isinstance(wanted.get(field), str):
        raise Refused(422, [_invalid("missing", field, "Field required")])
    return str(wanted[field])


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        return dict(await request.json())
    except ValueError:
        raise Refused(422, [_invalid("json_invalid", "0", "JSON decode error")]) from None


Handler = Callable[[web.Request], Awaitable[Any]]


async def _as_fastapi(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers and refusals in its words."""
    try:
        answer = await handler(request)
    except Refused as refused:
        return web.json_response({"detail": refused.detail}, status=refused.status)
    except web.HTTPException as error:
        return web.json_response({"detail": error.reason}, status=error.status)
    return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)


class OldPiApi(Daemon):
    """One such process for a test. flags as on its command line."""

    module = "tests.sim.oldpi"
    health = "/health"

    def command(self) -> list[str]:
        flags = {"data": str(self.data), "http": f"127.0.0.1:{self.http}"} | self.flags
        named = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        return [sys.executable, "-m", self.module, *named]


def _two(text: str) -> tuple[float, float]:
    least, most = text.split(",")
    return float(least), float(most)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.oldpi", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--http", required=True, metavar="HOST:PORT")
    parser.add_argument("--generation", choices=GENERATIONS, default="later")
    parser.add_argument("--rate", type=float, default=9.0, help="readings a second")
    parser.add_argument("--ahead-s", type=float, default=0.0, help="that its wall clock reads ahead")
    parser.add_argument("--drift-ppm", type=float, default=0.0, help="that it gains")
    parser.add_argument("--roll-clamp", type=_two, metavar="LEAST,MOST", help="of the roll interval, in s")
    parser.add_argument("--slow", type=float, default=1.0, help="share of the real time that handlers block")
    parser.add_argument("--sensor", type=Path, help="there is a sensor while this file exists")
    parser.add_argument("--dumb", type=Path, help="calls of the path in this file are done, and not answered")
    options = parser.parse_args()
    api = OldApi(options)
    app = web.Application(middlewares=[api.answer])
    app.add_routes(api.routes())
    app.on_shutdown.append(api.end)
    host, _, port = options.http.rpartition(":")
    web.run_app(app, host=host, port=int(port), print=None, reuse_address=True)


if __name__ == "__main__":
    main()
