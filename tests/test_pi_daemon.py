"""The Pi daemon as a process, with a sensor that says when it speaks."""

import csv
import hashlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.clock import SystemClock, machine_id
from common.rows import decode_row
from tests.sim.rig import ROOT, PiDaemon
from tests.sim.talker import Talker

SYNC_ID = "123456f1-0000-4000-8000-000000000001"


MARKER = {"session_id": "a", "sync_id": SYNC_ID, "marker_type": "STOP"}


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[Talker]:
    with Talker(tmp_path / "sensor", rate_hz=50) as talker:
        yield talker


@pytest.fixture
def pi(tmp_path: Path, talker: Talker) -> Iterator[PiDaemon]:
    with PiDaemon(tmp_path / "pi", serial=str(talker.link)) as daemon:
        daemon.wait_streaming()
        yield daemon


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PiDaemon]:
    """A daemon that no call here changes."""
    with PiDaemon(tmp_path_factory.mktemp("served") / "pi") as daemon:
        yield daemon


def start(pi: PiDaemon, **wanted: object) -> str:
    status, said = pi.post("/record/start", {"mission": "test"} | wanted)
    assert status == 200, said
    return str(said["session_id"])


def grown(pi: PiDaemon, session: str, rows: int) -> bool:
    return bool(pi.get(f"/record/status?session_id={session}")[1]["rows"] >= rows)


def values(folder: Path) -> list[str]:
    """What was recorded, in the order of seq, which must have no hole."""
    readings = []
    for path in sorted(folder.glob("chunk_*.csv")):
        for line in path.read_bytes().splitlines(keepends=True)[1:]:
            reading = decode_row(line)
            if reading is not None:
                readings.append(reading)
    assert [reading.seq for reading in readings] == list(range(len(readings)))
    return [reading.value for reading in readings]


def is_run_of(recorded: list[str], sent: list[str]) -> bool:
    """Everything said between the first and the last recorded value was recorded, once."""
    first = sent.index(recorded[0])
    return sent[first : first + len(recorded)] == recorded


def test_the_old_clients_calls_work_in_its_order(pi: PiDaemon, talker: Talker) -> None:
    """Connect, start, record, mark, poll, fetch, mark, stop: each answers as the old API did."""
    assert pi.post("/sensor/connect?port=/dev/ttyUSB0&baud=9600")[1]["status"] == "connected"
    assert pi.get("/instrument/health")[1]["connected"] is True
    assert pi.post("/sensor/start?poll_hz=500&auto_record=false")[1] == {
        "status": "started",
        "mode": "freerun",
        "recording": False,
    }
    session = start(pi, rate_hz=500, roll_interval_s=1, schema_version=1)
    marker = {"session_id": session, "sync_id": SYNC_ID, "marker_type": "START"}
    assert pi.post("/record/sync-marker", marker)[1]["status"] == "injected"
    time = pi.get("/api/sync/time")[1]
    assert isinstance(time["pi_unix_ms"], int) and time["pi_iso"] and time["schema_version"] == 1
    pi.wait_for(lambda: len(pi.get(f"/record/snapshots?session_id={session}")[1]) >= 2)
    for item in pi.get(f"/record/snapshots?session_id={session}")[1]:
        status, content = pi.raw(f"/files/{session}/{item['name']}")
        assert (status, len(content)) == (200, item["size_bytes"])
        assert hashlib.sha256(content).hexdigest() == item["sha256"]
        assert content.count(b"\r\n") == item["rows"] + 1
    assert pi.post("/record/sync-marker", marker | {"marker_type": "STOP"})[0] == 200
    stopped = pi.post("/record/stop", {"session_id": session})[1]
    assert stopped["session_id"] == session and stopped["stopped_at"] and stopped["chunks"] >= 2
    assert pi.post("/sensor/stop")[1] == {"status": "stopped"}
    assert pi.post("/disconnect")[1] == {"status": "disconnected"}
    assert pi.get("/health")[1]["status"] == "online"
    recorded = values(pi.data / session)
    assert len(recorded) + 2 == stopped["rows"]
    assert is_run_of(recorded, talker.sent)


def test_a_marker_is_written_once(pi: PiDaemon) -> None:
    """The same marker again answers the first instant and adds no row; the row is as old readers know it."""
    session = start(pi)
    marker = {"session_id": session, "sync_id": SYNC_ID, "marker_type": "PERIODIC", "periodic_sequence": 7}
    first, again = (pi.post("/record/sync-marker", marker)[1] for _ in range(2))
    assert (first["status"], again["status"]) == ("injected", "duplicate")
    assert (first["timestamp"], first["t2_ns"]) == (again["timestamp"], again["t2_ns"])
    assert first["t2_ns"] <= first["t3_ns"]
    pi.post("/record/stop", {"session_id": session})
    with (pi.data / session / "chunk_00000.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"].startswith("SYNC_")]
    assert [(row["mode"], row["value"], row["seq"]) for row in rows] == [("SYNC_PERIODIC", "305420017", "")]


def test_the_open_chunk_can_be_followed(pi: PiDaemon) -> None:
    """Durable bytes of the open chunk are served by range, and stay a prefix of the sealed chunk."""
    session = start(pi)
    pi.wait_for(lambda: grown(pi, session, 60))
    whole = pi.raw(f"/files/{session}/chunk_00000.tmp")[1]
    status, tail = pi.raw(f"/files/{session}/chunk_00000.tmp", Range=f"bytes={len(whole) - 10}-")
    assert status == 206 and tail.startswith(whole[-10:])
    assert pi.raw(f"/files/{session}/chunk_00000.tmp", Range="bytes=99999999-")[0] == 416
    pi.post("/record/stop", {"session_id": session})
    assert pi.raw(f"/files/{session}/chunk_00000.csv")[1].startswith(whole)
    assert pi.raw(f"/files/{session}/chunk_00000.tmp")[1].startswith(whole)


def test_killed_and_started_again_it_goes_on_with_the_session(pi: PiDaemon, talker: Talker) -> None:
    """After kill -9 the same session continues: no published row is missing, no number is used twice."""
    session = start(pi, roll_interval_s=1)
    for rows in (30, 60, 90):
        pi.wait_for(lambda rows=rows: grown(pi, session, rows))
        durable = pi.get(f"/record/status?session_id={session}")[1]["durable_seq"]
        pi.kill()
        pi.start()
        assert pi.get(f"/record/status?session_id={session}")[1]["last_seq"] >= durable
    pi.wait_for(lambda: grown(pi, session, 120))
    pi.post("/record/stop", {"session_id": session})
    recorded = values(pi.data / session)
    assert set(recorded) <= set(talker.sent) and len(set(recorded)) == len(recorded)
    assert [folder.name for folder in pi.data.iterdir() if folder.is_dir()] == [session]


def test_sigterm_seals_and_does_not_end_the_session(pi: PiDaemon) -> None:
    """Stopping the process leaves sealed files, exit code 0 and a session that is resumed."""
    session = start(pi)
    pi.wait_for(lambda: grown(pi, session, 20))
    assert pi.stop() == 0
    assert [path.name for path in (pi.data / session).glob("chunk_*")] == ["chunk_00000.csv"]
    pi.start()
    assert pi.get(f"/record/status?session_id={session}")[1]["state"] == "recording"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/record/stop", {"session_id": str(uuid4())}, 404, "unknown session"),
        ("/record/stop", {"session_id": "../../etc"}, 404, "unknown session"),
        ("/record/stop", {}, 422, "session_id"),
        ("/record/stop", b"{", 422, "body"),
        ("/record/stop", b"\xff\xfe", 422, "body"),
        ("/record/stop", b"[" * 5000, 422, "body"),
        ("/record/start", {"mission": 5}, 422, "mission"),
        ("/record/start", {"roll_interval_s": "x"}, 422, "roll_interval_s"),
        ("/record/start", {"rate_hz": 0}, 422, "rate_hz"),
        ("/record/start", {"session_id": "../x"}, 422, "session_id"),
        (
            "/record/sync-marker",
            {"session_id": "a", "sync_id": SYNC_ID, "marker_type": "NOW"},
            422,
            "marker_type",
        ),
        ("/record/sync-marker", {"session_id": "a", "sync_id": "zz", "marker_type": "STOP"}, 422, "sync_id"),
        (
            "/record/sync-marker",
            {"session_id": "a", "sync_id": SYNC_ID, "marker_type": "STOP"},
            404,
            "unknown",
        ),
        ("/nowhere", {}, 404, "Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)
def test_bad_calls_are_refused_with_a_reason(
    served: PiDaemon, path: str, body: object, status: int, words: str
) -> None:
    """A 4xx whose detail is a string that names what is wrong."""
    got, said = served.post(path, body)
    assert got == status
    assert isinstance(said["detail"], str) and words in said["detail"]


def test_refusals_of_state(pi: PiDaemon) -> None:
    """A second session 409, a stopped one 400, missing parameters 422, no file outside the recording."""
    session = start(pi)
    assert pi.post("/record/start")[0] == 409
    assert pi.post("/record/start", {"session_id": session})[1]["session_id"] == session
    assert pi.get("/record/status")[0] == 422
    assert pi.get("/record/snapshots?session_id=" + str(uuid4()))[0] == 404
    for name in ("..%2fsecret", "%2e%2e%2fsecret", "secret", "chunk_99999.csv"):
        assert pi.raw(f"/files/{session}/{name}")[0] == 404
    assert pi.post("/record/stop", {"session_id": session})[0] == 200
    assert pi.post("/record/stop", {"session_id": session})[0] == 400
    marker = {"session_id": session, "sync_id": SYNC_ID, "marker_type": "STOP"}
    status, said = pi.post("/record/sync-marker", marker)
    assert (status, "not recording" in said["detail"]) == (400, True)
    assert pi.get(f"/record/status?session_id={session}")[1]["state"] == "stopped"


def test_without_a_sensor_it_serves_and_says_so(tmp_path: Path) -> None:
    """A missing port is a state with its cure, recording is refused with 424, and nothing dies."""
    with PiDaemon(tmp_path / "pi", serial=str(tmp_path / "nothing")) as pi:
        health = pi.get("/instrument/health")[1]
        assert health["connected"] is False and health["state"] == "port missing"
        assert str(tmp_path / "nothing") in health["detail"]
        status, said = pi.post("/record/start")
        assert (status, "Not connected" in said["detail"]) == (424, True)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pi_daemon", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_a_bad_start_is_one_line_and_a_code(tmp_path: Path, pi: PiDaemon) -> None:
    """Unknown flags exit 2; unknown keys, bad addresses, taken ports and folders exit 78 with one line."""
    assert run("--wrong").returncode == 2
    config = tmp_path / "bad.toml"
    config.write_text("[serial]\nbuad = 9600\n")
    busy = f"127.0.0.1:{pi.http}"
    for arguments, word in (
        (("--config", str(config)), "buad"),
        (("--config", str(tmp_path / "none.toml")), "none.toml"),
        (("--http", "nonsense", "--bus", "tcp://127.0.0.1:0", "--data", str(tmp_path / "a")), "nonsense"),
        (("--http", busy, "--bus", "tcp://127.0.0.1:0", "--data", str(tmp_path / "b")), busy),
        (("--bus", f"tcp://127.0.0.1:{pi.bus}", "--data", str(tmp_path / "c")), str(pi.bus)),
        (("--data", str(pi.data), "--bus", "tcp://127.0.0.1:0"), "in use by another process"),
    ):
        done = run(*arguments)
        assert done.returncode == 78, (arguments, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        assert word in last and "Traceback" not in done.stderr, done.stderr


def test_time_is_served_by_udp(pi: PiDaemon) -> None:
    """Junk is not answered; the port is named by /version."""
    port = pi.get("/version")[1]["time_port"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.3)
        asker.sendto(b"what time is it?", ("127.0.0.1", port))
        with pytest.raises(TimeoutError):
            asker.recv(100)


def test_it_says_whose_crystal_its_clock_counts(tmp_path: Path, pi: PiDaemon) -> None:
    """The same over a restart; nobody's, when its clock is wrong on purpose."""
    machine = pi.get("/version")[1]["machine_id"]
    assert machine == machine_id()
    pi.kill()
    pi.start()
    assert pi.get("/version")[1]["machine_id"] == machine
    config = tmp_path / "wrong.toml"
    config.write_text("[simulation]\nclock_drift_ppm = 40.0\n")
    with PiDaemon(tmp_path / "wrong", config=str(config)) as wrong:
        assert wrong.get("/version")[1]["machine_id"] is None


def test_the_anchor_of_a_recording_says_how_good_it_is(pi: PiDaemon) -> None:
    """session.json has, with the clocks at the start, what the OS thinks of its wall clock."""
    session = start(pi)
    (epoch,) = json.loads((pi.data / session / "session.json").read_text())["epochs"]
    known = SystemClock().discipline()
    assert epoch["synchronised"] == known.synchronised
    assert (epoch["wall_error_ns"] is None) == (known.error_ns is None)
    assert epoch["boot_id"] == SystemClock().boot_id


def test_a_recording_is_its_holders(pi: PiDaemon) -> None:
    """Whoever else stops it, or starts another, is told who holds it; all may mark; force ends it."""
    session = start(pi, holder="deck, session 1")
    status, said = pi.post("/record/stop", {"session_id": session})
    assert (status, "held by deck, session 1" in said["detail"]) == (409, True)
    assert "held by deck, session 1" in pi.post("/record/start", {"holder": "other"})[1]["detail"]
    marker = {"session_id": session, "sync_id": SYNC_ID, "marker_type": "START"}
    assert pi.post("/record/sync-marker", marker)[1]["status"] == "injected"
    assert pi.get(f"/record/status?session_id={session}")[1]["holder"] == "deck, session 1"
    assert pi.post("/record/stop", {"session_id": session, "holder": "other", "force": True})[0] == 200
    events = [json.loads(line) for line in (pi.data / session / "events.jsonl").read_text().splitlines()]
    assert [event["detail"] for event in events if event["kind"] == "taken_over"] == [
        "held by deck, session 1, now by other"
    ]


def test_a_chunk_that_is_another_one_is_not_given(pi: PiDaemon) -> None:
    """A sealed chunk's tag is its hash: with another one a range is ignored and a match fails."""
    session = start(pi, roll_interval_s=1)
    pi.wait_for(lambda: bool(pi.get(f"/record/snapshots?session_id={session}")[1]))
    (chunk, *_) = pi.get(f"/record/snapshots?session_id={session}")[1]
    path, tag = f"/files/{session}/{chunk['name']}", f'"{chunk["sha256"]}"'
    whole = pi.raw(path)[1]
    assert pi.raw(path, **{"Range": "bytes=9-", "If-Range": tag}) == (206, whole[9:])
    assert pi.raw(path, **{"Range": "bytes=9-", "If-Range": '"other"'}) == (200, whole)
    assert pi.raw(path, **{"If-Match": tag}) == (200, whole)
    assert pi.raw(path, **{"If-Match": '"other"'})[0] == 412
    manifest = json.loads(pi.raw(f"/files/{session}/manifest.json")[1])
    listed = pi.get(f"/record/snapshots?session_id={session}")[1]
    assert manifest["chunks"] == listed[: len(manifest["chunks"])] and manifest["chunks"]


def test_it_counts_what_happens(pi: PiDaemon) -> None:
    """Metrics in Prometheus' format, and the same events in the status."""
    session = start(pi)
    pi.wait_for(lambda: grown(pi, session, 5))
    text = pi.raw("/metrics")[1].decode()
    assert "qsensor_recording 1" in text.splitlines() and "# TYPE qsensor_events_total counter" in text
    for kind, count in pi.get("/status")[1]["events"].items():
        assert f'qsensor_events_total{{kind="{kind}"}} {count}' in text.splitlines()
    assert int(text.partition("\nqsensor_rows ")[2].split()[0]) >= 5


def test_ctrl_c_ends_it_too(pi: PiDaemon) -> None:
    """SIGINT ends the daemon as SIGTERM does."""
    assert pi.process is not None
    pi.process.send_signal(signal.SIGINT)
    assert pi.process.wait(10) == 0


def test_a_restart_remembers_the_sensor(tmp_path: Path) -> None:
    """What the sensor said of itself before a kill is kept with the rows after it, without asking again."""
    link = tmp_path / "sensor"
    words = ["--link", str(link), "--baud", "115200", "--averaging", "12", "--serial-number", "serial 2150"]
    with (
        subprocess.Popen([sys.executable, "-m", "common.simulator", *words], cwd=ROOT) as simulator,
        PiDaemon(tmp_path / "pi", serial=str(link), baud="115200") as pi,
    ):
        pi.wait_streaming()
        session = start(pi)
        pi.wait_for(lambda: grown(pi, session, 10))
        pi.kill()
        pi.start()
        pi.wait_for(lambda: grown(pi, session, 25))
        pi.post("/record/stop", {"session_id": session})
        simulator.terminate()
    folder = pi.data / session
    record = json.loads((folder / "session.json").read_text())
    assert record["sensor_id"] == "serial 2150" and record["sensor"]["config"]["averaging"] == 12
    rows = [row.split(b",") for path in folder.glob("chunk_*") for row in path.read_bytes().splitlines()[1:]]
    assert {row[1] for row in rows} == {b"serial 2150"}


def test_a_start_cut_short_is_taken_up_again(pi: PiDaemon) -> None:
    """A folder without session.json, left by a power cut or a full disk, does not burn the session's id."""
    session = str(uuid4())
    (pi.data / session).mkdir()
    assert start(pi, session_id=session) == session
    pi.wait_for(lambda: grown(pi, session, 5))
    assert pi.post("/record/stop", {"session_id": session})[0] == 200
    assert pi.post("/record/start", {"session_id": session})[0] == 409
