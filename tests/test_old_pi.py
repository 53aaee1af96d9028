"""Whole sessions against the API that ours replaces, both generations: degraded, with a clear word."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from common.chunkstore import sealed_chunks
from common.rows import parse_utc
from tests.sim.oldpi import MODULUS_S, OldPiApi
from tests.sim.proxy import Proxy
from tests.sim.rig import ROOT, TopsideDaemon, free_port
from tests.sim.talker import Talker
from topside_daemon.words import session_text, status_text

RATE_HZ = 40.0
QUICK = {"rate": str(RATE_HZ), "ahead_s": "5", "roll_clamp": "0.3,0.3", "slow": "0.1"}


@pytest.fixture
def surface(tmp_path: Path) -> Iterator[Talker]:
    with Talker(tmp_path / "surface", RATE_HZ) as talker:
        yield talker


def deck(tmp_path: Path, port: int, surface: Talker) -> TopsideDaemon:
    return TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{port}", serial=str(surface.link))


def copied(topside: TopsideDaemon, rows: int) -> Callable[[], bool]:
    """Whether that many in-water rows are here."""
    return lambda: bool(topside.session()["inwater_durable_seq"] >= rows - 1)


def stop(topside: TopsideDaemon) -> tuple[dict[str, Any], Path]:
    status, said = topside.post("/session/stop")
    assert status == 200, said
    return said, Path(said["folder"])


def stream(session: Path) -> Path:
    [folder] = session.glob("in-water_*")
    return folder


def table(session: Path) -> list[dict[str, str]]:
    lines = (session / "unified_session.csv").read_text().splitlines()
    header = lines[0].split(",")
    return [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]


def check_copy(session: Path, pi: OldPiApi) -> None:
    """The chunks are the old Pi's, byte for byte, in a folder of its name; each reading in the table once."""
    original = pi.data / stream(session).name.removeprefix("in-water_")
    contents = [
        {path.name: path.read_bytes() for path in sealed_chunks(one)} for one in (original, stream(session))
    ]
    assert contents[0] == contents[1] and contents[0]
    rows = [row.decode().split(",") for one in contents[0].values() for row in one.splitlines()[1:]]
    said = Counter(row[3] for row in rows if row[2] == "freerun")
    fused = [row for row in table(session) if row["inwater_value"]]
    assert Counter(row["inwater_value"] for row in fused) == said
    assert max(said.values()) == 1
    assert all(row["inwater_seq"] == "" for row in fused)
    combined = (stream(session) / "session.csv").read_bytes().splitlines()
    assert combined[0] == b"timestamp,sensor_id,mode,value,TempC,Vin"
    assert combined[1:] == [row for one in contents[0].values() for row in one.splitlines()[1:]]


def errors_ms(session: Path) -> list[tuple[float, float]]:
    """Of every in-water row: fused time against when the reading was made, and the deviation claimed."""
    epoch = json.loads((session / "session.json").read_text())["epochs"][0]
    found = []
    for row in table(session):
        if row["inwater_value"]:
            since_ns = round(float(row["inwater_value"]) * 1e9) - epoch["mono_ns"] % (MODULUS_S * 10**9)
            error_ns = parse_utc(row["timestamp"]) - epoch["utc_ns"] - since_ns
            found.append((error_ns / 1e6, float(row["offset_sd_ms"] or "nan")))
    return found


def seed(said: dict[str, Any]) -> dict[str, Any]:
    [found] = said["report"]["seeds"]
    return dict(found)


def test_a_session_on_the_later_generation(tmp_path: Path, surface: Talker) -> None:
    """Through a cut and a restart: all rows once, on the right clock by two markers and a time-sync; status
    says what is missing; a second session begins with rows that the old Pi had kept."""
    flags = QUICK | {"generation": "later", "slow": "0.2", "drift_ppm": "40"}
    port = free_port()
    with (
        OldPiApi(tmp_path / "pi", **flags) as pi,
        Proxy(("127.0.0.1", port), ("127.0.0.1", pi.http)) as proxy,
        deck(tmp_path, port, surface) as topside,
    ):
        assert topside.post("/session/start", {"mission": "old"})[0] == 200
        topside.wait_for(copied(topside, 20))
        assert "pi_trouble" not in topside.session()["events"]  # it was slow, and that is no trouble
        said = topside.get("/status")[1]
        assert "old api: no bus, no ranges, whole chunks only, clock by one time-sync" in status_text(said)
        assert "bus_silent" not in said["session"]["events"]
        marked = topside.post("/session/mark", {"label": "x"})[1]
        assert marked["on_pi"] is False and "takes no marker but START and STOP" in marked["detail"]
        proxy.cut()
        topside.wait_for(lambda: "cannot reach the Pi" in topside.session()["detail"])
        topside.kill()
        proxy.mend()
        topside.start()
        topside.wait_for(copied(topside, topside.session()["inwater_durable_seq"] + 20))
        said, session = stop(topside)
        assert said["state"] == "complete", said
        check_copy(session, pi)
        assert seed(said)["rung"] in ("constant", "linear") and seed(said)["pairs_used"] == 2
        assert "clock     " + seed(said)["rung"] in session_text(said)
        assert all(abs(error_ms) < 1.96 * sd_ms for error_ms, sd_ms in errors_ms(session))
        paired, gaps = said["report"]["paired"], said["report"]["gaps"]
        assert paired > 40 and gaps < paired / 2  # a busy machine stamps some of the surface's too late
        kinds = [marker["type"] for marker in metadata(session)["markers"] if marker["quality"] == "measured"]
        assert kinds == ["START", "STOP"]

        topside.post("/session/start", {"mission": "second"})
        topside.wait_for(copied(topside, said["report"]["inwater"]["rows"] + 20))
        said, second = stop(topside)
        assert said["state"] == "complete" and second != session
        check_copy(second, pi)
        assert said["events"]["rows_before_start"] >= 40
        assert all(abs(error_ms) < 1.96 * sd_ms for error_ms, sd_ms in errors_ms(second))


def metadata(session: Path) -> dict[str, Any]:
    return dict(json.loads((session / "sync_metadata.json").read_text()))


def test_a_session_on_the_snapshot_generation(tmp_path: Path, surface: Talker) -> None:
    """It has neither markers nor a time: its labels stay, and that is said; stopped while it cannot be
    reached, the session is complete when it can."""
    port = free_port()
    with (
        OldPiApi(tmp_path / "pi", **QUICK | {"generation": "snapshot"}) as pi,
        Proxy(("127.0.0.1", port), ("127.0.0.1", pi.http)) as proxy,
        deck(tmp_path, port, surface) as topside,
    ):
        topside.post("/session/start", {"mission": "old"})
        topside.wait_for(copied(topside, 20))
        assert "no clock comparison, no markers" in status_text(topside.get("/status")[1])
        proxy.cut()
        said, session = stop(topside)
        assert said["state"] == "incomplete" and "cannot reach" in said["detail"]
        proxy.mend()
        topside.wait_for(lambda: topside.session()["state"] == "complete")
        said = topside.session()
        check_copy(session, pi)
        assert (seed(said)["rung"], seed(said)["quality"]) == ("none", "low")
        assert "clock     none, quality low: " in session_text(said)
        errors = [error_ms for error_ms, _ in errors_ms(session)]
        assert all(4990 < error_ms < 5010 for error_ms in errors)
        kinds = [json.loads(line)["kind"] for line in (session / "markers.jsonl").read_text().splitlines()]
        assert kinds[0] == "START" and kinds[-1] == "STOP"  # in the surface record
        assert (session / "exchanges.jsonl").read_text() == ""


def test_what_was_not_answered_is_not_done_twice(tmp_path: Path, surface: Talker) -> None:
    """Without its sensor the old Pi says so until it is plugged in; a start that was carried out and not
    answered is the session's; a marker likewise is not taken for the one that was answered."""
    sensor, dumb = tmp_path / "sensor", tmp_path / "dumb"
    flags = QUICK | {"generation": "later", "sensor": str(sensor), "dumb": str(dumb)}
    with OldPiApi(tmp_path / "pi", **flags) as pi, deck(tmp_path, pi.http, surface) as topside:
        topside.post("/session/start")
        topside.wait_for(lambda: "cannot reach its sensor" in topside.session()["detail"])
        dumb.write_text("/record/start")
        sensor.touch()
        topside.wait_for(lambda: list(pi.data.iterdir()))
        dumb.write_text("/record/sync-marker")
        topside.wait_for(copied(topside, 20))
        dumb.unlink()
        topside.wait_for(
            lambda: '"START"' in (Path(topside.session()["folder"]) / "markers.jsonl").read_text()
        )
        topside.wait_for(copied(topside, topside.session()["inwater_durable_seq"] + 10))
        said, session = stop(topside)
        assert said["state"] == "complete"
        check_copy(session, pi)
        assert len(list(pi.data.iterdir())) == 1
        starts = (stream(session) / "session.csv").read_text().count("SYNC_START")
        assert starts > 1 and seed(said)["pairs_used"] == 2
        assert all(abs(error_ms) < 1.96 * sd_ms for error_ms, sd_ms in errors_ms(session))


def test_an_api_that_is_started_again(tmp_path: Path) -> None:
    """It forgets its recording, which ends there, and is said to; what was sealed is had from its disk. What
    it records for somebody else is left alone."""
    with (
        OldPiApi(tmp_path / "pi", **QUICK | {"generation": "later"}) as pi,
        TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{pi.http}") as topside,
    ):
        topside.post("/session/start")
        topside.wait_for(copied(topside, 20))
        pi.kill()
        pi.start()
        topside.wait_for(lambda: "the old API was started again" in topside.session()["detail"])
        said, session = stop(topside)
        assert said["state"] == "complete" and said["events"]["pi_trouble"] >= 1
        check_copy(session, pi)
        pi.post("/connect")
        theirs = pi.post("/record/start", {"mission": "theirs"})[1]["session_id"]
        topside.post("/session/start")
        topside.wait_for(lambda: "somebody else" in topside.session()["detail"])
        said, session = stop(topside)
        assert said["state"] == "partial" and theirs in said["detail"]
        assert pi.get(f"/record/status?session_id={theirs}")[1]["state"] == "recording"


def pull(pi: OldPiApi, *arguments: str) -> "subprocess.CompletedProcess[str]":
    url = f"http://127.0.0.1:{pi.http}"
    command = [sys.executable, "-m", "topside_daemon", "pull", *arguments, "--pi", url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def record(pi: OldPiApi, chunks: int) -> str:
    session_id = str(pi.post("/record/start", {})[1]["session_id"])
    pi.wait_for(lambda: len(pi.get(f"/record/snapshots?session_id={session_id}")[1]) >= chunks)
    return session_id


def test_pull(tmp_path: Path) -> None:
    """Copies and proves a recording; one that the older generation, which stops and shows whatever it has
    newest, does not serve is not mistaken for another; after its restart it is had from the disk."""
    with OldPiApi(tmp_path / "pi", **QUICK | {"generation": "snapshot"}) as pi:
        pi.post("/connect")
        first = record(pi, 1)
        assert pi.get("/record/status?session_id=any")[1]["session_id"] == "any"
        assert pi.post("/record/stop", {"session_id": "any"})[0] == 200
        assert pi.post("/record/stop", {"session_id": "any"})[0] == 400
        assert pi.get("/api/sync/time") == pi.post("/record/sync-marker") == (404, {"detail": "Not Found"})
        done = pull(pi, first, "--into", str(tmp_path / "first"))
        assert done.returncode == 0 and "complete, every byte proven" in done.stdout, done.stderr
        for path in sealed_chunks(pi.data / first):
            assert (tmp_path / "first" / path.name).read_bytes() == path.read_bytes()
        second = record(pi, 1)
        done = pull(pi, first, "--into", str(tmp_path / "again"))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert f"serves only its newest recording, {second}" in done.stderr
        assert "restart its API" in done.stderr
        pi.stop()
        pi.start()
        done = pull(pi, second, "--into", str(tmp_path / "second"))
        assert done.returncode == 0 and "every byte proven" in done.stdout, done.stderr
        unknown = str(uuid4())
        done = pull(pi, unknown, "--into", str(tmp_path / "unknown"))
        assert (done.returncode, done.stderr.strip()) == (1, f"the old Pi has no recording {unknown}")


def test_the_stand_in_does_what_the_old_api_does(tmp_path: Path) -> None:
    """Its words, its codes, its shapes, and what it cannot do."""
    with OldPiApi(tmp_path / "later", **QUICK | {"generation": "later"}) as pi:
        assert set(pi.get("/version")[1]) == {"api", "git", "status"}
        assert pi.post("/record/start", {}) == (424, {"detail": "Sensor not connected. Call /connect first."})
        assert pi.get("/record/status?session_id=x")[0] == 500
        assert pi.post("/sensor/connect")[1]["status"] == "connected"
        assert "Already connected" in pi.post("/connect")[1]["detail"]
        session_id = record(pi, 1)
        assert pi.post("/record/start", {})[0] == 409
        wanted = {"session_id": session_id, "sync_id": str(uuid4()), "marker_type": "PERIODIC"}
        code, said = pi.post("/record/sync-marker", wanted)
        assert code == 422 and said["detail"][0]["loc"] == ["body", "marker_type"]
        assert set(pi.get("/api/sync/time")[1]) == {
            "pi_iso",
            "pi_unix_ms",
            "container_version",
            "schema_version",
        }
        assert pi.post("/record/stop", {"session_id": "x"})[0] == 404
        assert pi.get("/record/open") == (404, {"detail": "Not Found"})
        [listed] = pi.get(f"/record/snapshots?session_id={session_id}")[1][:1]
        code, whole = pi.raw(f"/files/{session_id}/{listed['name']}", Range="bytes=10-")
        assert (code, len(whole)) == (200, listed["size_bytes"])
        assert whole.startswith(b"timestamp,sensor_id,mode,value,TempC,Vin\r\n")
        [temporary] = (pi.data / session_id).glob("*.tmp")
        assert temporary.stat().st_size == 0  # its rows are in memory
