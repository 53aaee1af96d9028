"""The old API over HTTP, as its clients know it: keys, codes, words, aliases, views and documentation."""

import csv
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.sim.rig import ROOT, PiDaemon
from tests.sim.talker import Talker

pytestmark = pytest.mark.heavy

ROW = ["timestamp", "sensor_id", "mode", "value", "TempC", "Vin"]
OLD_CALLS = {
    *("/health", "/version", "/register_service", "/status", "/latest", "/recent", "/stats", "/connect"),
    *("/config", "/start", "/stop", "/pause", "/resume", "/disconnect", "/recording/start"),
    *("/recording/stop", "/export/csv", "/export/parquet", "/recording/export/csv", "/record/start"),
    *("/record/stop", "/record/status", "/record/snapshots", "/instrument/health", "/record/sync-marker"),
    *("/api/sync/time", "/files/{session_id}/{name}", "/sensor/status", "/sensor/latest", "/sensor/recent"),
    *("/sensor/stats", "/sensor/connect", "/sensor/config", "/sensor/start", "/sensor/stop"),
    *("/sensor/pause", "/sensor/resume", "/sensor/disconnect"),
}


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    with Talker(tmp_path_factory.mktemp("talker") / "sensor", rate_hz=50) as talker:
        yield talker


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, talking: Talker) -> Iterator[PiDaemon]:
    with PiDaemon(tmp_path_factory.mktemp("old") / "pi", serial=str(talking.link)) as daemon:
        daemon.wait_streaming()
        yield daemon


@pytest.fixture
def pi(running: PiDaemon) -> PiDaemon:
    """A daemon to which nobody is connected, as after a start of the old one."""
    running.post("/disconnect")
    return running


def refused(pi: PiDaemon, path: str, status: int, words: str, body: object = None) -> None:
    found, said = pi.post(path, body)
    assert (found, words in said["detail"]) == (status, True), (path, found, said)


@pytest.mark.parametrize("prefix", ["", "/sensor"])
def test_the_controller_goes_through_its_states(pi: PiDaemon, prefix: str) -> None:
    """Disconnected, menu, running, paused, and back; each wrong step is refused in the old words."""

    def state() -> str:
        return str(pi.get(f"{prefix}/status")[1]["state"])

    assert (state(), pi.get("/status")[1]["connected"]) == ("disconnected", False)
    refused(pi, f"{prefix}/start", 503, "Not connected")
    for call in ("stop", "pause", "resume"):
        refused(pi, f"{prefix}/{call}", 503, "Not connected")
    refused(pi, "/record/start", 424, "Not connected")
    assert pi.get("/status")[1]["sensor_id"] == "unknown"
    status, said = pi.post(f"{prefix}/connect?port=/dev/ttyUSB7&baud=115200")
    assert (status, said["status"], "detail" in said) == (200, "connected", False)
    again = pi.post(f"{prefix}/connect")[1]
    assert (again["status"], again["detail"], state()) == ("connected", "Already connected", "config_menu")
    refused(pi, f"{prefix}/stop", 400, "Acquisition not running")
    refused(pi, f"{prefix}/pause", 400, "not running")
    refused(pi, f"{prefix}/resume", 400, "not in paused state")
    refused(pi, "/recording/start", 400, "Acquisition not running")
    for rate in ("0", "-1", "nan", "often"):
        refused(pi, f"{prefix}/start?poll_hz={rate}", 422, "poll_hz")
    assert pi.post(f"{prefix}/start?poll_hz=500")[1] == {
        "status": "started",
        "mode": "freerun",
        "recording": False,
    }
    assert state() == "acq_freerun"
    assert (pi.post(f"{prefix}/connect")[0], state()) == (200, "acq_freerun")
    refused(pi, f"{prefix}/start", 400, "already running")
    refused(pi, f"{prefix}/resume", 400, "not in paused state")
    refused(pi, f"{prefix}/config", 503, "not in the menu", {"averaging": 125})
    assert (pi.post(f"{prefix}/pause")[1], state()) == ({"status": "paused"}, "paused")
    assert pi.post(f"{prefix}/resume")[1] == {"status": "resumed", "mode": "freerun"}
    assert (pi.post(f"{prefix}/stop")[1], state()) == ({"status": "stopped"}, "config_menu")
    assert (pi.post(f"{prefix}/disconnect")[1], state()) == ({"status": "disconnected"}, "disconnected")
    assert pi.post(f"{prefix}/disconnect")[0] == 200


def test_a_recording_is_not_touched_by_the_controller(pi: PiDaemon) -> None:
    """Stop, pause and disconnect are answered; rows of a held recording come all the same, in every view."""
    session = pi.post("/record/start", {"mission": "test", "holder": "deck"})[1]["session_id"]
    rows = pi.get("/status")[1]["rows"]
    for call in ("/pause", "/resume", "/stop", "/sensor/disconnect"):
        assert pi.post(call)[0] == 200
    pi.wait_for(lambda: pi.get("/status")[1]["rows"] > rows + 20)
    assert pi.get("/status")[1]["state"] == "acq_freerun"
    first = pi.get("/latest")[1]
    pi.wait_for(lambda: pi.get("/latest")[1]["timestamp"] > first["timestamp"])
    assert pi.get("/stats")[1]["row_count"] > 0
    refused(pi, "/config", 409, "a recording is running", {"averaging": 125})
    stopped = pi.post("/record/stop", {"session_id": session, "holder": "deck"})[1]
    assert stopped["rows"] > rows


def test_a_recording_outlives_a_disconnect(pi: PiDaemon) -> None:
    """As long as somebody asks about it; another one cannot be begun beside it."""
    pi.post("/connect")
    session = pi.post("/record/start", {})[1]["session_id"]
    pi.post("/disconnect")
    refused(pi, "/record/start", 409, "already recording")
    assert pi.get(f"/record/status?session_id={session}")[1]["state"] == "recording"
    assert pi.post("/record/stop", {"session_id": session})[0] == 200


def test_recordings_of_the_old_api_are_still_served(pi: PiDaemon) -> None:
    """Its folder has a manifest and no record: found by id, listed, fetched."""
    session = "0b6ab23f-6a2a-4b8e-9a55-2f3f6ab23f00"
    (pi.data / session).mkdir()
    content = (
        ",".join(ROW).encode() + b"\r\n2025-11-03T20:12:41.625928+00:00,s,freerun,0.01016,25.19,7.494\r\n"
    )
    (pi.data / session / "chunk_00000.csv").write_bytes(content)
    chunk = {
        "index": 0,
        "name": "chunk_00000.csv",
        "rows": 1,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    kept = {"session_id": session, "started_at": "2025-11-03T20:12:40+00:00", "next_chunk_index": 1}
    manifest = kept | {"total_rows": 1, "total_bytes": len(content), "chunks": [chunk]}
    (pi.data / session / "manifest.json").write_text(json.dumps(manifest))
    assert pi.get(f"/record/status?session_id={session}")[1]["state"] == "stopped"
    [found] = pi.get(f"/record/snapshots?session_id={session}")[1]
    assert found.items() >= chunk.items()
    assert pi.raw(f"/files/{session}/chunk_00000.csv") == (200, content)
    assert session in [one["session_id"] for one in pi.get("/record/sessions")[1]]


def test_the_views_show_the_sensors_own_digits(pi: PiDaemon, talking: Talker) -> None:
    """Latest, recent, statistics, with the old keys; a pause holds them."""
    pi.post("/connect")
    pi.post("/start")
    latest = pi.get("/latest")[1]
    assert list(latest) == ROW and latest["mode"] == "freerun"
    status, content = pi.raw("/sensor/recent?seconds=1")
    rows = json.loads(content)["rows"]
    assert status == 200 and 30 <= len(rows) <= 60
    assert all(f'"value":{text},' in content.decode() for text in talking.sent[-30:-20])
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    assert (pi.get("/recent?seconds=301")[0], pi.get("/recent?seconds=0")[0]) == (422, 422)
    stats = pi.get("/stats")[1]
    assert stats["est_sample_rate_hz"] == pytest.approx(50, rel=0.2)
    assert stats["start_time"] < stats["end_time"] and stats["duration_s"] > 0
    pi.post("/pause")
    held = pi.get("/latest")[1]
    time.sleep(0.2)
    assert pi.get("/latest")[1] == held


def test_what_was_kept_is_exported(pi: PiDaemon) -> None:
    """The old recorder: begun anew, at most so many rows, written to a file and given as an attachment."""
    pi.post("/connect")
    pi.post("/start")
    refused(pi, "/recording/stop", 400, "not running")
    assert pi.post("/recording/start?max_rows=20")[1] == {"status": "recording"}
    refused(pi, "/recording/start", 400, "already recording")
    pi.wait_for(lambda: pi.get("/stats")[1]["row_count"] == 20)
    assert pi.get("/status")[1]["rows"] == 20
    for path in ("/export/csv", "/recording/export/csv"):
        status, content = pi.raw(path)
        table = list(csv.DictReader(io.StringIO(content.decode())))
        assert (status, len(table), list(table[0])) == (200, 20, ROW)
    said = pi.post("/recording/stop?flush=csv")[1]
    written = Path(said["flush_path"])
    assert (said["status"], written.parent) == ("stopped", pi.data / "exports")
    assert written.read_text().startswith(",".join(ROW)) and written.read_text().count("\n") == 21
    assert pi.get("/status")[1]["rows"] == 0
    assert pi.raw("/export/parquet")[0] in (200, 501)
    assert pi.post("/recording/stop?flush=xlsx")[0] == 422


async def test_readings_are_streamed(pi: PiDaemon) -> None:
    """A WebSocket under both names: the newest reading, again and again."""
    async with aiohttp.ClientSession() as session:
        for path in ("/stream", "/sensor/stream"):
            async with session.ws_connect(f"http://127.0.0.1:{pi.http}{path}") as channel:
                heard = [await channel.receive_json(timeout=5) for _ in range(3)]
            assert all(list(reading) == ROW for reading in heard)
            assert heard[0]["timestamp"] < heard[2]["timestamp"]


async def test_without_a_sensor_there_is_nothing_to_show(tmp_path: Path) -> None:
    with PiDaemon(tmp_path / "pi") as pi:
        assert pi.get("/latest")[1] == {}
        assert pi.get("/recent")[1] == {"rows": []}
        assert pi.get("/stats")[1] == dict.fromkeys(
            ("start_time", "end_time", "duration_s", "est_sample_rate_hz"), None
        ) | {"row_count": 0}
        assert pi.get("/export/csv") == (400, {"detail": "No data: nothing has been read yet"})
        refused(pi, "/start", 503, "Serial: Not connected")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{pi.http}/stream") as channel,
        ):
            assert "error" in await channel.receive_json(timeout=5)
            assert (await channel.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE
            assert channel.close_code == 1000


def test_the_sensor_is_configured_through_its_menu(tmp_path: Path) -> None:
    """Read with an empty body, changed with a full one, and refused in the old words."""
    command = [sys.executable, "-m", "common.simulator", "--link", str(tmp_path / "s"), "--averaging", "12"]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as sensor,
        PiDaemon(tmp_path / "pi", serial=str(tmp_path / "s")) as pi,
    ):
        try:
            pi.wait_streaming()
            assert pi.post("/config")[1] == {
                "averaging": 12,
                "adc_rate_hz": 125,
                "mode": "freerun",
                "tag": pi.post("/config")[1]["tag"],
                "sample_period_s": 12 / 125,
            }
            assert pi.post("/config", {"averaging": 25})[1]["sample_period_s"] == 25 / 125
            for wrong in ({"averaging": 0}, {"averaging": 70_000}, {"adc_rate_hz": 126}, {"mode": "polled"}):
                refused(pi, "/config", 400, "Invalid", wrong)
            assert pi.get("/config")[0] == 405
        finally:
            sensor.terminate()


def test_the_calls_are_documented_as_they_are(pi: PiDaemon) -> None:
    """OpenAPI from the types: every old call, each answer as its schema says; a page for people."""
    document = pi.get("/openapi.json")[1]
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) >= OLD_CALLS
    assert pi.get("/docs.json")[1] == document  # by a redirect
    for path in ("/docs", "/"):
        status, content = pi.raw(path, Accept="text/html")
        assert (status, b"<title>Q-Sensor" in content) == (200, True)
        assert b"http://" not in content and b'="/' not in content  # it may lie behind another path
    assert pi.get("/")[1] == pi.get("/health")[1]
    schemas = document["components"]["schemas"]
    for path in ("/health", "/version", "/status", "/stats", "/instrument/health", "/api/sync/time"):
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        known = schemas[schema["$ref"].rpartition("/")[2]]
        said: dict[str, Any] = pi.get(path)[1]
        assert set(said) == set(known["properties"]) and set(known["required"]) <= set(said)


def test_blueos_finds_the_service(pi: PiDaemon) -> None:
    said = pi.get("/register_service")[1]
    wanted = {"name", "description", "icon", "company", "version", "webpage", "api"}
    assert wanted <= set(said) and all(isinstance(said[name], str) for name in wanted)


def test_what_never_was_here_is_still_not(pi: PiDaemon) -> None:
    """Events of a session, unknown paths, wrong methods: codes of the old API, the reason as a text."""
    status, said = pi.get("/events?session_id=x")
    assert (status, "events.jsonl" in said["detail"]) == (501, True)
    assert pi.get("/nowhere") == (404, {"detail": "Not Found"})
    assert pi.get("/connect") == (405, {"detail": "Method Not Allowed"})
