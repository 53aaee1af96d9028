"""Both daemons as processes through whole sessions, with sensors that say when they speak."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import pytest
import zmq

from common.bus import connect
from common.files import read_lines
from common.messages import Event, Exchange
from common.rows import parse_utc
from tests.sim.proxy import Proxy
from tests.sim.rig import FAKETIME, ROOT, PiDaemon, TopsideDaemon
from tests.sim.talker import Talker
from topside_daemon.truth import recorded

RATE_HZ = 20.0
FIELD_HZ = 9.0  # libfaketime slows every clock call and makes threads wait for each other


@pytest.fixture
def inwater(tmp_path: Path) -> Iterator[Talker]:
    with Talker(tmp_path / "inwater", RATE_HZ) as talker:
        yield talker


@pytest.fixture
def surface(tmp_path: Path) -> Iterator[Talker]:
    with Talker(tmp_path / "surface", RATE_HZ) as talker:
        yield talker


@pytest.fixture
def pi(tmp_path: Path, inwater: Talker) -> Iterator[PiDaemon]:
    daemon = PiDaemon(tmp_path / "pi", serial=str(inwater.link))
    with daemon:
        daemon.wait_streaming()
        yield daemon


@pytest.fixture
def topside(tmp_path: Path, pi: PiDaemon, surface: Talker) -> Iterator[TopsideDaemon]:
    daemon = TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{pi.http}", serial=str(surface.link))
    with daemon:
        daemon.wait_streaming()
        yield daemon


def have(topside: TopsideDaemon, inwater: int = 0, surface: int = 0) -> Callable[[], bool]:
    """Whether that many readings of each sensor are here."""

    def there() -> bool:
        session = topside.session()
        return bool(session["inwater_seq"] >= inwater - 1 and session["surface_seq"] >= surface - 1)

    return there


def stop(topside: TopsideDaemon) -> tuple[dict[str, Any], Path]:
    status, said = topside.post("/session/stop")
    assert status == 200, said
    return said, Path(said["folder"])


def table(session: Path) -> list[dict[str, str]]:
    lines = (session / "unified_session.csv").read_text().splitlines()
    header = lines[0].split(",")
    return [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]


def check_streams(session: Path) -> tuple[int, int]:
    """Both records whole, contiguous, each reading in the table once; how many there are."""
    counts = []
    for role, column in (("in-water", "inwater_seq"), ("surface", "surface_seq")):
        seqs = [seq for folder in session.glob(f"{role}_*") for seq, _ in recorded(folder)]
        assert seqs == list(range(len(seqs)))
        assert sorted(int(row[column]) for row in table(session) if row[column]) == seqs
        counts.append(len(seqs))
    return counts[0], counts[1]


def check_mirror(session: Path, pi: PiDaemon) -> None:
    """The topside copy is the Pi's, byte for byte."""
    (mirror,) = session.glob("in-water_*")
    original = pi.data / mirror.name.removeprefix("in-water_")
    names = [path.name for path in sorted(original.glob("chunk_*"))]
    assert names == [path.name for path in sorted(mirror.glob("chunk_*"))]
    for name in names:
        assert (mirror / name).read_bytes() == (original / name).read_bytes()


def check_offline_is_the_same(session: Path, tmp_path: Path) -> None:
    """Fusion of a copy of the session gives the daemon's bytes; so it does without what is optional."""
    copy = tmp_path / "copy" / session.name
    shutil.copytree(session, copy)
    (copy / "unified_session.csv").unlink()
    fuse(copy)
    expected = (session / "unified_session.csv").read_bytes()
    assert (copy / "unified_session.csv").read_bytes() == expected


def fuse(session: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "topside_daemon.fusion", str(session), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert done.returncode in (0, 3), done.stderr.decode()
    return dict(json.loads(done.stdout))


def errors_ms(session: Path, inwater: Talker) -> list[float]:
    return [
        abs(parse_utc(row["timestamp"]) - inwater.said_at_utc_ns(row["inwater_value"])) / 1e6
        for row in table(session)
        if row["inwater_value"]
    ]


def check_clock(session: Path, inwater: Talker) -> None:
    """Fused times are those of the one clock that both daemons have here; a busy machine stamps some late."""
    moved_ms = [
        abs(parse_utc(row["timestamp"]) - parse_utc(row["inwater_timestamp_raw"])) / 1e6
        for row in table(session)
        if row["inwater_value"]
    ]
    assert quantiles(moved_ms, n=20)[-1] < 0.5
    assert median(errors_ms(session, inwater)) < 5


def test_a_whole_session(pi: PiDaemon, topside: TopsideDaemon, inwater: Talker, tmp_path: Path) -> None:
    """Start, mark, stop: all recorded, paired, on the right clock, mirrored, and fused again the same."""
    status, started = topside.post("/session/start", {"mission": "../reef 7"})
    assert status == 200 and started["state"] == "recording"
    assert topside.post("/session/start")[0] == 409
    topside.wait_for(have(topside, 60, 60))
    assert topside.post("/session/mark", {"label": "transect 2"})[1]["on_pi"] is True
    topside.wait_for(have(topside, 100, 100))
    said, session = stop(topside)
    assert said["state"] == "complete" and said["inwater_missing"] == 0
    [live], [proof] = topside.get("/status")[1]["clock"]["segments"], said["report"]["clock"]
    for name in ("used", "refused", "offset_ns", "offset_sd_ns", "drift_ppm", "last_mono_ns"):
        assert live[name] == proof[name], name  # the live model is that of the file, to the last bit
    assert live["evidence"]["http_bias_ns"] == proof["evidence"]["http_bias_ns"] is not None
    assert session.parent == topside.data / "reef-7"
    assert check_streams(session) >= (100, 100)
    check_mirror(session, pi)
    check_offline_is_the_same(session, tmp_path)
    check_clock(session, inwater)
    paired = [row for row in table(session) if row["pair_dt_ms"]]
    assert len(paired) > 90
    kinds = {exchange.kind for exchange in read_lines(session / "exchanges.jsonl", Exchange)}
    assert kinds == {"START", "PERIODIC", "STOP", "PROBE"}
    metadata = json.loads((session / "sync_metadata.json").read_text())
    assert [(m["type"], m["label"]) for m in metadata["markers"]] == [
        ("START", None),
        ("PERIODIC", "transect 2"),
        ("STOP", None),
    ]
    assert all(m["inWaterTimestamp"] and m["surfaceTimestamp"] for m in metadata["markers"])
    for stream in session.glob("*_*/session.csv"):
        assert stream.read_bytes().startswith(b"timestamp,sensor_id,mode,value,TempC,Vin,")
    assert topside.post("/session/stop")[0] == 400
    assert topside.post("/session/mark", {"label": "x"})[0] == 400
    assert topside.post("/session/start", {"mission": 3})[0] == 422
    assert topside.post("/session/start")[0] == 200  # another one may begin


def test_either_daemon_killed_at_any_moment(
    pi: PiDaemon, topside: TopsideDaemon, inwater: Talker, tmp_path: Path
) -> None:
    """Six kill -9 at random moments: one session, contiguous, nothing durable lost, fused alike offline."""
    moments = random.Random(7)
    topside.post("/session/start", {"mission": "kills"})
    topside.wait_for(have(topside, 20, 20))
    for victim in (pi, topside, topside, pi, topside, pi):
        goal = topside.session()["inwater_seq"] + moments.randrange(1, 20)
        topside.wait_for(have(topside, goal))
        durable = pi.get("/status")[1]["durable_seq"]
        victim.kill()
        victim.start()
        topside.wait_for(have(topside, durable + 1))
    topside.wait_for(have(topside, topside.session()["inwater_seq"] + 10))
    said, session = stop(topside)
    assert said["state"] == "complete"
    check_streams(session)
    check_mirror(session, pi)
    check_offline_is_the_same(session, tmp_path)
    assert len(list(topside.data.glob("*/session_*"))) == 1
    check_clock(session, inwater)


def test_a_pi_that_comes_late_or_goes_stops_nobody(tmp_path: Path, inwater: Talker, surface: Talker) -> None:
    """The surface record runs from the start; the Pi joins when it is there; a stop without it is
    incomplete, and completed when it is back."""
    pi = PiDaemon(tmp_path / "pi", serial=str(inwater.link))
    url = f"http://127.0.0.1:{pi.http}"
    with TopsideDaemon(tmp_path / "topside", pi=url, serial=str(surface.link)) as topside, pi:
        pi.kill()
        topside.wait_streaming()
        topside.post("/session/start", {"mission": "late"})
        topside.wait_for(have(topside, 0, 20))
        assert "cannot reach the Pi" in topside.session()["detail"]
        pi.start()
        topside.wait_for(have(topside, 40))
        pi.kill()
        said, session = stop(topside)
        assert said["state"] == "incomplete" and "cannot reach" in said["detail"]
        assert len(table(session)) > 0
        pi.start()
        topside.wait_for(lambda: topside.session()["state"] == "complete")
        check_mirror(session, pi)
        check_streams(session)


def test_no_surface_sensor(tmp_path: Path, pi: PiDaemon) -> None:
    """An in-water sensor alone makes a session."""
    with TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{pi.http}") as topside:
        topside.post("/session/start")
        topside.wait_for(have(topside, 20))
        said, session = stop(topside)
        assert said["state"] == "complete"
        check_mirror(session, pi)
        assert all(row["inwater_seq"] and not row["surface_seq"] for row in table(session))


def test_no_pi(tmp_path: Path, surface: Talker) -> None:
    """A surface sensor alone makes a session, killed daemon and all."""
    with TopsideDaemon(tmp_path / "topside", serial=str(surface.link)) as topside:
        topside.wait_streaming()
        topside.post("/session/start")
        topside.wait_for(have(topside, 0, 20))
        topside.kill()
        topside.start()
        topside.wait_for(have(topside, 0, 40))
        said, session = stop(topside)
        assert said["state"] == "complete"
        assert check_streams(session) >= (0, 40)


def test_neither(tmp_path: Path) -> None:
    """Without any sensor a session is refused with the cure."""
    with TopsideDaemon(tmp_path / "topside") as topside:
        status, said = topside.post("/session/start")
        assert status == 424 and "--pi" in said["detail"]


def test_the_command_line(tmp_path: Path, topside: TopsideDaemon) -> None:
    """start, mark, status and stop talk to the daemon; refusals are one line and a code."""

    def say(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "topside_daemon", *words, "--http", f"127.0.0.1:{topside.http}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    refused = say("stop")
    assert refused.returncode == 1 and "not recording" in refused.stderr
    assert json.loads(say("start", "--mission", "m", "--json").stdout)["mission"] == "m"
    topside.wait_for(have(topside, 10, 10))
    assert "PERIODIC" in say("mark", "here").stdout
    assert "recording" in say("status").stdout
    assert "complete" in say("stop").stdout
    gone = subprocess.run(
        [sys.executable, "-m", "topside_daemon", "status", "--http", "127.0.0.1:1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert gone.returncode == 1 and len(gone.stderr.splitlines()) == 1


async def test_whoever_looks_on_sees_rows_and_status(topside: TopsideDaemon) -> None:
    """A WebSocket with each fused row and, each second, where everything stands; and a page to show them."""
    topside.post("/session/start", {"mission": "watched"})
    kinds: dict[str, dict[str, Any]] = {}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{topside.http}/ws/live") as channel,
    ):
        while len(kinds) < 2 or kinds["row"]["percent_of_surface"] is None:
            said = await channel.receive_json(timeout=20)
            kinds[said["kind"]] = said
    assert kinds["row"]["session_id"] == kinds["status"]["session"]["session_id"]
    assert float(kinds["row"]["inwater_value"]) >= 0
    assert topside.get("/")[1]["session"]["state"] == "recording"
    page = topside.raw("/", Accept="text/html")[1]
    assert b"<title>Q-Sensor topside" in page and b"http://" not in page
    assert topside.post("/session/stop")[0] == 200


def test_what_the_bus_loses_the_files_give_back(tmp_path: Path, inwater: Talker) -> None:
    """With the bus cut for seconds, subscribers topside still get every reading, once and in order."""
    pi = PiDaemon(tmp_path / "pi", serial=str(inwater.link), bus="tcp://127.0.0.2:0")
    pi.flags["bus"] = f"tcp://127.0.0.2:{pi.bus}"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with (
        Proxy(("127.0.0.1", pi.bus), ("127.0.0.2", pi.bus)) as proxy,
        pi,
        TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{pi.http}") as topside,
        connect(context, f"tcp://127.0.0.1:{topside.bus}", ["qsensor/inwater/reading"]) as heard,
    ):
        topside.wait_for(lambda: topside.get("/status")[1]["pi"]["bus"] == "connected")
        topside.post("/session/start")
        topside.wait_for(have(topside, 20))
        for _ in range(2):
            proxy.cut()
            goal = topside.session()["inwater_seq"] + 60
            topside.wait_for(have(topside, goal))
            proxy.mend()
            topside.wait_for(have(topside, goal + 40))
        repaired = topside.session()["inwater_repaired"]
        session_id = topside.session()["session_id"]
        seqs: list[int] = []
        while heard.poll(500) and len(seqs) < 200:
            frame = json.loads(heard.recv_multipart()[1])
            if frame["session_id"] == session_id:
                seqs.append(frame["seq"])
        assert repaired > 0
        assert seqs == list(range(len(seqs))) and len(seqs) > 100
        assert stop(topside)[0]["inwater_missing"] == 0
    context.destroy(linger=0)


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed (apt install faketime)")
@pytest.mark.parametrize("fake", ["rate", "steps"])
def test_a_pi_whose_clock_is_wrong(tmp_path: Path, fake: str) -> None:
    """A Pi clock that gains 100 ppm, or is set by an hour and back, is seen and changes no fused time."""
    with Talker(tmp_path / "inwater", FIELD_HZ) as inwater, Talker(tmp_path / "surface", FIELD_HZ) as surface:
        record_with_a_wrong_clock(tmp_path, inwater, surface, fake)


def record_with_a_wrong_clock(tmp_path: Path, inwater: Talker, surface: Talker, fake: str) -> None:
    pi = PiDaemon(tmp_path / "pi", serial=str(inwater.link))
    wrong = tmp_path / "wrong"
    wrong.write_text("+0\n")
    pi.environment["LD_PRELOAD"] = str(FAKETIME)
    if fake == "rate":
        pi.environment["FAKETIME"] = "+0 x1.0001"
    else:
        pi.environment |= {"FAKETIME_TIMESTAMP_FILE": str(wrong), "FAKETIME_NO_CACHE": "1"}
        pi.environment["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
        pi.environment["FAKETIME_FORCE_MONOTONIC_FIX"] = "0"  # else threads that wait for the GIL spin
    url = f"http://127.0.0.1:{pi.http}"
    with pi, TopsideDaemon(tmp_path / "topside", pi=url, serial=str(surface.link)) as topside:
        topside.wait_streaming()
        topside.post("/session/start")
        for rows, error in ((20, "-3600"), (40, "+3600"), (60, "+0"), (150, "+0")):
            topside.wait_for(have(topside, rows, rows))
            wrong.write_text(error + "\n")
        said, session = stop(topside)
    assert said["state"] == "complete"
    check_streams(session)
    errors = errors_ms(session, inwater)
    assert median(errors) < 5 and max(errors) < 1000
    (segment,) = said["report"]["clock"]
    assert abs(segment["drift_ppm"] - (100 if fake == "rate" else 0)) < 50
    (stream,) = session.glob("in-water_*")
    clock_events = [
        event.kind
        for event in read_lines(stream / "events.jsonl", Event)
        if event.kind in ("clock_step", "clock_slew", "suspended")
    ]
    assert clock_events == (["clock_step"] * 3 if fake == "steps" else [])


def test_a_second_topside_is_told_who_has_the_pi(
    tmp_path: Path, pi: PiDaemon, topside: TopsideDaemon, surface: Talker
) -> None:
    """Its session says so while it runs and ends `partial`, exit code 3; the first one is not disturbed."""
    topside.post("/session/start", {"mission": "first"})
    topside.wait_for(have(topside, 10))
    with Talker(tmp_path / "other", RATE_HZ) as other:
        url = f"http://127.0.0.1:{pi.http}"
        with TopsideDaemon(tmp_path / "second", pi=url, serial=str(other.link)) as second:
            second.wait_streaming()
            second.post("/session/start", {"mission": "second"})
            second.wait_for(have(second, 0, 60))
            first_id = topside.session()["session_id"]
            assert first_id in second.session()["detail"]
            command = [sys.executable, "-m", "topside_daemon", "stop", "--http", f"127.0.0.1:{second.http}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 3 and "partial" in done.stdout and first_id in done.stdout
            (stream,) = second.data.glob("*/session_*/surface_*/markers.jsonl")
            assert [json.loads(line)["kind"] for line in stream.read_text().splitlines()] == ["START", "STOP"]
    said, session = stop(topside)
    assert said["state"] == "complete"
    check_streams(session)


def test_an_incomplete_session_waits_for_the_pi_across_restarts(
    tmp_path: Path, pi: PiDaemon, topside: TopsideDaemon
) -> None:
    """Restarted without --pi it does not call itself complete; restarted with it, it completes."""
    topside.post("/session/start")
    topside.wait_for(have(topside, 20))
    pi.kill()
    assert stop(topside)[0]["state"] == "incomplete"
    topside.kill()
    url = topside.flags.pop("pi")
    topside.start()
    topside.wait_for(lambda: "--pi" in topside.session()["detail"])
    assert topside.session()["state"] == "incomplete"
    assert topside.stop() == 0
    topside.flags["pi"] = url
    pi.start()
    topside.start()
    topside.wait_for(lambda: topside.session()["state"] == "complete")
    check_mirror(Path(topside.session()["folder"]), pi)


def test_markers_stand_at_one_instant_in_both_records(topside: TopsideDaemon) -> None:
    """The two rows of a marker are written right after one another, for readers who know only them."""
    topside.post("/session/start")
    topside.wait_for(have(topside, 20))
    topside.post("/session/mark", {"label": "x"})
    _, session = stop(topside)
    metadata = json.loads((session / "sync_metadata.json").read_text())
    for marker in metadata["markers"]:
        apart_ns = parse_utc(marker["inWaterTimestamp"]) - parse_utc(marker["surfaceTimestamp"])
        assert 0 < apart_ns < 100_000_000  # one call, not a burst of exchanges, lies between them


def test_bad_topside_starts_are_one_line_and_a_code(tmp_path: Path) -> None:
    """Addresses and URLs that cannot be are refused at once."""
    for words, said in (
        (["--http", "nonsense"], "nonsense"),
        (["--pi", "192.168.2.2:9150"], "give --pi http://HOST:9150"),
        (["--pi", "http://[::1"], "give --pi http://HOST:9150"),
        (["--bus", "ipc:///x"], "tcp://HOST:PORT"),
    ):
        free = ["--data", str(tmp_path / "d"), "--bus", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
        command = [sys.executable, "-m", "topside_daemon", *free, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 78, done.stderr
        assert said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
