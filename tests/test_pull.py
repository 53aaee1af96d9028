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
    assert not (tmp_path / "a").exists()
    listed = pi.get("/record/sessions")[1]
    assert [(one["session_id"], one["state"]) for one in listed] == [(session, "stopped")]
    lock = FolderLock(tmp_path)
    done = pull(pi, session, "--into", str(tmp_path / "b" / "c"))
    lock.close()
    assert (done.returncode, "in use by another process" in done.stderr) == (1, True)
    words = ["pull", session, "--into", str(tmp_path / "d"), "--pi", f"http://127.0.0.1:{free_port()}"]
    done = impatient(*words, default="")
    assert (done.returncode, "cannot reach the Pi" in done.stderr, done.stderr.count("\n")) == (1, True, 1)


def test_nobody_at_the_default_address_is_told_of_the_flag(tmp_path: Path) -> None:
    """Without --pi, and with no Pi on this machine, the one line names --pi; no folder is left behind."""
    words = ["pull", str(uuid4()), "--into", str(tmp_path / "new")]
    done = impatient(*words, default=f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, "--pi URL" in done.stderr, done.stderr.count("\n")) == (1, True, 1)
    assert not (tmp_path / "new").exists()


SESSION_FILES = {
    "session.json": b'{"session_id": "%s"}',
    "markers.jsonl": b'{"kind": "START"}\n',
    "events.jsonl": b'{"kind": "session_complete"}\n',
}


@pytest.mark.parametrize("mark", ["exchanges.jsonl", "sync_metadata.json", "surface_x/", "session.json"])
@pytest.mark.parametrize("prefix", ["", "in-water_"])
def test_a_session_keeps_its_own_files(
    finished: tuple[PiDaemon, str], tmp_path: Path, mark: str, prefix: str
) -> None:
    """However little is left of a session: the stream has its own folder in it, nothing beside it changes."""
    pi, session = finished
    own = {name: said.replace(b"%s", session.encode()) for name, said in SESSION_FILES.items()}
    if mark == "session.json":  # nothing else tells
        own[mark] = own[mark].replace(b"}", b', "sync_id": "b1"}')
    folder = made(tmp_path / "dive", mark, own)
    done = pull(pi, f"{prefix}{session}", "--into", str(folder), "--no-fuse")
    assert done.returncode == 0, done.stderr
    assert chunks_of(folder / f"in-water_{session}") == chunks_of(pi.data / session)
    assert {name: (folder / name).read_bytes() for name in own} == own
    assert not list(folder.glob("chunk_*"))


OTHER = "00000000-0000-4000-8000-00000000000b"
NAMES_OTHER = b'{"session_id": "%s"}' % OTHER.encode()


@pytest.mark.parametrize(
    ("name", "mark", "files"),
    [
        ("session", "exchanges.jsonl", {"session.json": NAMES_OTHER}),
        ("session", "exchanges.jsonl", {f"in-water_{OTHER}/chunk_00000.csv": b""}),
        ("session", "surface_x/", {f"{OTHER}/session.csv": b""}),
        (
            "session",
            "",
            {"sync_metadata.json": b'{"sensors":{"inWater":{"sessionId":"%s"}}}' % OTHER.encode()},
        ),
        ("copy", "", {"session.json": NAMES_OTHER}),
        ("copy", "", {"manifest.json": NAMES_OTHER}),
        ("copy", "", {"mirror.json": NAMES_OTHER}),
        (f"in-water_{OTHER}", "", {"session.csv": b""}),
        ("surface_x", "", {"session.csv": b""}),
        ("copy", "", {"session.json": b'{"role": "surface"}'}),
    ],
)
def test_a_folder_of_another_recording_is_refused(
    finished: tuple[PiDaemon, str], tmp_path: Path, name: str, mark: str, files: dict[str, bytes]
) -> None:
    """Whatever says that a folder is not this recording's: exit code 1, one line, and no file is touched."""
    pi, session = finished
    folder = made(tmp_path / name, mark, files)
    before = tree_of(folder)
    done = pull(pi, session, "--into", str(folder))
    assert (done.returncode, "give --into" in done.stderr, done.stderr.count("\n")) == (1, True, 1)
    assert tree_of(folder) == before


def test_chunks_that_the_pi_does_not_list_are_not_proven(
    finished: tuple[PiDaemon, str], tmp_path: Path
) -> None:
    """A copy with a chunk too many, in a folder that does not say whose it is: INCOMPLETE, by name."""
    pi, session = finished
    last = sorted(chunks_of(pi.data / session))[-1]
    made(tmp_path / "copy", "", {"chunk_00099.csv": (pi.data / session / last).read_bytes()})
    done = pull(pi, session, "--into", str(tmp_path / "copy"))
    assert done.returncode == 3 and "not the Pi's: chunk_00099.csv" in done.stdout


def test_what_the_pi_had_lost_of_a_recording_stays(tmp_path: Path) -> None:
    """The part before a sequel is the copy's alone, and does not hide that a later chunk is damaged."""
    copy, session = tmp_path / "copy", str(uuid4())
    sequel = {"next_seq": 1000, "next_chunk": 2, "epochs": []}
    with (
        Talker(tmp_path / "s", rate_hz=50) as talker,
        PiDaemon(tmp_path / "p", serial=str(talker.link)) as pi,
    ):
        pi.wait_streaming()
        wanted = {"session_id": session, "roll_interval_s": 1, "sequel": sequel}
        assert pi.post("/record/start", wanted)[0] == 200
        pi.wait_for(lambda: len(pi.get(f"/record/snapshots?session_id={session}")[1]) >= 2)
        pi.post("/record/stop", {"session_id": session})
        there = chunks_of(pi.data / session)
        assert min(there) == "chunk_00002.csv"
        earlier = {"chunk_00000.csv": there["chunk_00002.csv"], "chunk_00001.csv": there["chunk_00003.csv"]}
        made(copy, "", earlier)
        assert pull(pi, session, "--into", str(copy)).returncode == 0
        assert chunks_of(copy) == earlier | there
        flip(copy / "chunk_00003.csv")
        done = pull(pi, session, "--into", str(copy))
        assert done.returncode == 0 and "1 chunk fetched again" in done.stdout
        assert chunks_of(copy) == earlier | there


def test_repairs_are_counted(finished: tuple[PiDaemon, str], tmp_path: Path) -> None:
    """Damage of every kind is one note with the number of chunks that were fetched again."""
    pi, session = finished
    copy = tmp_path / "copy"
    assert "fetched again" not in pull(pi, session, "--into", str(copy)).stdout
    flip(copy / "chunk_00000.csv")
    flip(copy / "chunk_00001.csv")
    (copy / "chunk_00002.csv").write_bytes(b"cut")
    done = pull(pi, session, "--into", str(copy), "--json")
    assert done.returncode == 0, done.stderr
    (note,) = json.loads(done.stdout)["notes"]
    assert note.startswith("3 chunks fetched again") and "chunk_00002.csv" in note
    assert {name: data for name, data in chunks_of(copy).items() if name.endswith(".csv")} == chunks_of(
        pi.data / session
    )


def test_a_session_that_cannot_be_fused_is_still_copied(
    finished: tuple[PiDaemon, str], tmp_path: Path
) -> None:
    """What fusion says against the session is a note; the copy is complete all the same."""
    pi, session = finished
    folder = made(
        tmp_path / "dive", "exchanges.jsonl", {"surface_1/session.csv": b"", "surface_2/session.csv": b""}
    )
    done = pull(pi, session, "--into", str(folder))
    assert done.returncode == 0, done.stderr
    assert "not fused: " in done.stdout and "surface_1, surface_2" in done.stdout


def made(folder: Path, mark: str, files: dict[str, bytes]) -> Path:
    """A folder with *files* and an empty *mark*, which is a folder if it ends so."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if mark.endswith("/"):
        (folder / mark).mkdir()
    elif mark and not (folder / mark).exists():
        (folder / mark).touch()
    return folder


def tree_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def flip(path: Path) -> None:
    """Damage that leaves the size as it is."""
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])


def impatient(*words: str, default: str) -> "subprocess.CompletedProcess[str]":
    """The command, with another default address, and one try at a Pi that does not answer."""
    command = [sys.executable, "-c", IMPATIENT, default, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


IMPATIENT = """
import sys
from topside_daemon import __main__, pull
pull.TRIES, pull.PI_URL = 1, sys.argv[1]
sys.exit(__main__.main(sys.argv[2:]))
"""
