"""`pull` as a command against a real Pi daemon: whatever was there before, the copy ends whole and proven."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.files import FolderLock
from tests.sim.disk import content_of
from tests.sim.rig import ROOT, PiDaemon, free_port
from tests.sim.talker import Talker


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PiDaemon, str]]:
    """A Pi with one recording of three chunks or more, stopped."""
    place = tmp_path_factory.mktemp("finished")
    with (
        Talker(place / "sensor", rate_hz=50) as talker,
        PiDaemon(place / "pi", serial=str(talker.link)) as pi,
    ):
        pi.wait_streaming()
        session = str(pi.post("/record/start", {"roll_interval_s": 1})[1]["session_id"])
        pi.wait_for(lambda: len(pi.get(f"/record/snapshots?session_id={session}")[1]) >= 3)
        pi.post("/record/stop", {"session_id": session})
        yield pi, session


def pull(pi: PiDaemon, *arguments: str) -> "subprocess.CompletedProcess[str]":
    url = f"http://127.0.0.1:{pi.http}"
    command = [sys.executable, "-m", "topside_daemon", "pull", *arguments, "--pi", url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def chunks_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content_of(folder).items() if name.startswith("chunk_")}


def test_a_recording_is_copied_into_a_new_folder(finished: tuple[PiDaemon, str], tmp_path: Path) -> None:
    """Byte-identical, with the combined file, and said to be proven; a second time changes nothing."""
    pi, session = finished
    for _ in range(2):
        done = pull(pi, session, "--into", str(tmp_path / "copy"))
        assert done.returncode == 0, done.stderr
        assert "complete, every byte proven" in done.stdout
        assert chunks_of(tmp_path / "copy") == chunks_of(pi.data / session)
    in_order = [data for _, data in sorted(chunks_of(tmp_path / "copy").items())]
    rows = b"".join(data.partition(b"\n")[2] for data in in_order)
    combined = (tmp_path / "copy" / "session.csv").read_bytes().partition(b"\n")[2]
    assert combined == rows.replace(b"\r\n", b"\n")


def test_a_folder_that_was_left_short_is_completed_and_fused(
    finished: tuple[PiDaemon, str], tmp_path: Path
) -> None:
    """No chunks, a combined file without its end: all rows are there again, and the session is fused."""
    pi, session = finished
    folder = tmp_path / "dive" / "session_2026"
    stream, surface = folder / f"in-water_{session}", folder / f"surface_{session}"
    stream.mkdir(parents=True)
    surface.mkdir()
    whole = [data.decode().splitlines() for data in chunks_of(pi.data / session).values()]
    (stream / "session.csv").write_text("\n".join([*whole[0], "not,the,Pi's"]) + "\n")
    (surface / "session.csv").write_text("\n".join(whole[0][:10]) + "\n")
    done = pull(pi, session, "--into", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert chunks_of(stream) == chunks_of(pi.data / session)
    assert len((stream / "session.csv").read_text().splitlines()) == said["rows"] + 1
    assert "not,the,Pi's" in (stream / "session.csv.before").read_text()
    assert any("not the Pi's" in note for note in said["notes"])
    table = (folder / "unified_session.csv").read_text().splitlines()
    assert sum(1 for line in table[1:] if line.split(",")[1]) == said["rows"]


def test_what_is_missing_is_said(finished: tuple[PiDaemon, str], tmp_path: Path) -> None:
    """A chunk that the Pi has damaged, a recording that goes on: INCOMPLETE, exit code 3, and what it is."""
    pi, session = finished
    copy = tmp_path / "pi"
    shutil.copytree(pi.data, copy)
    path = copy / session / "chunk_00001.csv"
    path.write_bytes(path.read_bytes().replace(b"freerun", b"freerum", 1))
    with Talker(tmp_path / "sensor", rate_hz=20) as talker, PiDaemon(copy, serial=str(talker.link)) as other:
        done = pull(other, session, "--into", str(tmp_path / "damaged"))
        assert done.returncode == 3 and "INCOMPLETE" in done.stdout and "chunk_00001.csv" in done.stdout
        assert (tmp_path / "damaged" / "chunk_00001.damaged").exists()
        other.wait_streaming()
        going_on = str(other.post("/record/start")[1]["session_id"])
        done = pull(other, going_on, "--into", str(tmp_path / "going_on"))
        assert done.returncode == 3 and "still recording" in done.stdout


def test_refusals_are_one_line(finished: tuple[PiDaemon, str], tmp_path: Path) -> None:
    """An unknown session, a folder that a daemon holds, no Pi: exit code 1 and one line with the reason."""
    pi, session = finished
    done = pull(pi, str(uuid4()), "--into", str(tmp_path / "a"))
    assert (done.returncode, "unknown session" in done.stderr, done.stderr.count("\n")) == (1, True, 1)
    assert "/record/sessions" in done.stderr
    listed = pi.get("/record/sessions")[1]
    assert [(one["session_id"], one["state"]) for one in listed] == [(session, "stopped")]
    lock = FolderLock(tmp_path)
    done = pull(pi, session, "--into", str(tmp_path / "b" / "c"))
    lock.close()
    assert (done.returncode, "in use by another process" in done.stderr) == (1, True)
    words = ["pull", session, "--into", str(tmp_path / "d"), "--pi", f"http://127.0.0.1:{free_port()}"]
    command = [sys.executable, "-c", IMPATIENT, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "cannot reach the Pi" in done.stderr, done.stderr.count("\n")) == (1, True, 1)


IMPATIENT = """
import sys
from topside_daemon import __main__, pull
pull.TRIES = 1
sys.exit(__main__.main(sys.argv[1:]))
"""
