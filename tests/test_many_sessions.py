"""Many sessions in one go: which are meant, in several processes, on a Dask cluster, killed and gone on
with."""

import fcntl
import json
import os
import platform
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from common import VERSION
from tests.sim import draw_session
from tests.sim.cockpit import KINDS
from tests.sim.rig import ROOT, free_port
from topside_daemon.fusion.command import main
from topside_daemon.fusion.sessions import find_sessions
from topside_daemon.fusion.tables import file_name

pytestmark = pytest.mark.heavy

PATIENCE_S = 60.0
TABLE = file_name("csv")


def dives(folder: Path, count: int, duration_s: int = 20) -> Path:
    """Sessions in two missions."""
    for number in range(count):
        draw_session(number, duration_s=duration_s).write(
            folder / f"reef-{number % 2}" / f"session_{number:03d}"
        )
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def fusion(*words: object, root: Path = ROOT) -> "subprocess.Popen[str]":
    """The command as a process."""
    command = [sys.executable, "-m", "topside_daemon.fusion", *map(str, words)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    said, complained = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said, complained


def until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


def test_a_folder_is_searched_for_sessions(tmp_path: Path) -> None:
    """Ours in missions, old ones of both generations, a Pi's data folder, patterns; each once, none twice."""
    data = dives(tmp_path / "data", 3, duration_s=1)
    KINDS["constant"].write(tmp_path / "old" / "mission" / "session_2025")
    single = next((tmp_path / "old" / "mission" / "session_2025").glob("in-water_*"))
    shutil.copytree(single, tmp_path / "older" / "mission" / "5f1d")
    shutil.copytree(single, tmp_path / "older" / "mission" / "surface_77")
    KINDS["constant"].write(tmp_path / "older" / "mission" / "session_2024")
    for name in ("11111111", "22222222"):
        shutil.copytree(data / "reef-0" / "session_000" / "in-water_11111111", tmp_path / "pi" / name)
    (tmp_path / "data" / "loop").symlink_to(tmp_path)
    found, missing = find_sessions([str(tmp_path), str(data / "reef-0"), str(tmp_path / "nothing")])
    places = [str(one.path.relative_to(tmp_path)) for one in found]
    assert places == [
        *("data/reef-0/session_000", "data/reef-0/session_002", "data/reef-1/session_001"),
        *("old/mission/session_2025", "older/mission"),
        *("older/mission/session_2024", "pi/11111111", "pi/22222222"),
    ]
    assert [line.partition(": ")[2] for line in missing] == [
        "no such folder: give the folder of a session, or a folder of sessions"
    ]
    found, missing = find_sessions(
        [str(data / "reef-*" / "session_*"), str(data / "*" / "x*"), str(tmp_path / "pi")]
    )
    assert ([one.path.name for one in found], len(missing)) == (
        ["session_000", "session_002", "session_001", "11111111", "22222222"],
        1,
    )


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads everything")
def test_a_closed_folder_costs_itself_only(tmp_path: Path) -> None:
    """It is named, and the others are fused; lost+found is nobody's."""
    data = dives(tmp_path / "data", 2, duration_s=1)
    for closed in (data / "lost+found", data / "reef-1"):
        closed.mkdir(exist_ok=True)
        closed.chmod(0)
    tame = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*tame, sys.executable, "-m", "topside_daemon.fusion", data, "--out", tmp_path / "out"]
    done = subprocess.run(
        [str(one) for one in command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == [f"{data / 'reef-1'}: Permission denied: look who may read there"]
    assert (tmp_path / "out" / "reef-0" / "session_000" / TABLE).exists()


def test_a_name_that_is_no_text_costs_nobody_anything(tmp_path: Path) -> None:
    """Its bytes are told as escapes, also in JSON, and the others are fused."""
    for name in (b"a\xff", b"b"):
        draw_session(1, duration_s=1).write(tmp_path / "data" / os.fsdecode(name))
    code, said, complained = ended(fusion(tmp_path / "data", "--json"))
    assert (code, complained) == (0, "2 fused\n")
    assert [Path(json.loads(line)["path"]).name for line in said.splitlines()] == [r"a\xff", "b"]


def test_the_way_to_a_session_changes_no_byte(tmp_path: Path) -> None:
    """Given whole, from another folder, or as the one that one is in, with notes on what is damaged."""
    folder = KINDS["constant"].write(tmp_path / "reef")
    for name in ("session.json", "sync_metadata.json"):
        (folder / name).write_text("{")
    found = set()
    for given, place in ((folder, tmp_path), ("reef", tmp_path), (".", folder)):
        command = [sys.executable, "-m", "topside_daemon.fusion", str(given), "--force"]
        subprocess.run(command, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        found.add((folder / "unified_session.json").read_bytes())
    [report] = found
    assert (
        len([note for note in json.loads(report)["notes"] if "not used: Input data was truncated" in note])
        == 2
    )


def test_no_path_at_all_is_a_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "required: PATH" in capsys.readouterr().err


def test_tables_lie_as_their_sessions_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out holds the same folders; one session alone is written into it; two of one name are refused."""
    data = dives(tmp_path / "data", 3, duration_s=2)
    assert main([str(data), "--out", str(tmp_path / "out")]) == 0
    assert sorted(tree(tmp_path / "out")) == [
        f"reef-{number % 2}/session_{number:03d}/unified_session.{kind}"
        for number in (0, 2, 1)
        for kind in ("csv", "json")
    ]
    one = data / "reef-0" / "session_000"
    assert main([str(one), "--out", str(tmp_path / "alone")]) == 0
    assert (tmp_path / "alone" / TABLE).read_bytes() == (
        tmp_path / "out/reef-0/session_000" / TABLE
    ).read_bytes()
    shutil.copytree(one, tmp_path / "twin" / "session_000")
    with pytest.raises(SystemExit, match="2"):
        main([str(one), str(tmp_path / "twin" / "session_000"), "--out", str(tmp_path / "out")])
    assert "session_000: fuse them one by one" in capsys.readouterr().err


def test_processes_and_a_cluster_write_the_same_bytes(tmp_path: Path) -> None:
    """One after the other, two at a time, and on a local Dask cluster: every file, reports and all."""
    data = dives(tmp_path / "data", 7)
    ways: tuple[tuple[object, ...], ...] = ((), ("--jobs", 2), ("--jobs", 2, "--dask"))
    outs = [tmp_path / f"out-{number}" for number in range(len(ways))]
    for way, out in zip(ways, outs, strict=True):
        code, said, complained = ended(fusion(*way, data, "--out", out))
        assert (code, complained) == (0, "")
        assert said.splitlines()[-1] == "7 fused"
        assert [line for line in said.splitlines() if "->" in line] == sorted(
            line for line in said.splitlines() if "->" in line
        )
    assert len(tree(outs[0])) == 14
    assert tree(outs[0]) == tree(outs[1]) == tree(outs[2])


@pytest.mark.parametrize("way", [("--jobs", "2"), ("--dask", "--jobs", "2")], ids=["processes", "cluster"])
def test_killed_half_way_only_the_missing_are_done(tmp_path: Path, way: tuple[str, ...]) -> None:
    """SIGKILL leaves whole tables, no half ones for long, and no process behind; the rest is done next
    time."""
    data, out, whole = dives(tmp_path / "data", 24, duration_s=200), tmp_path / "out", tmp_path / "whole"
    assert ended(fusion(data, "--out", whole))[0] == 0
    process = fusion(data, "--out", out, *way)
    until(lambda: len(list(out.glob("*/*/unified_session.json"))) >= 3)
    children = descendants(process.pid)
    process.kill()
    ended(process)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    done = {str(one.relative_to(out)): one.stat().st_mtime_ns for one in out.glob("*/*/unified_session.json")}
    assert 3 <= len(done) < 24
    code, said, _ = ended(fusion(data, "--out", out, *way))
    assert (code, said.splitlines()[-1]) == (0, f"{24 - len(done)} fused, {len(done)} unchanged")
    assert all((out / name).stat().st_mtime_ns == at_ns for name, at_ns in done.items())
    assert tree(out) == tree(whole)


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that these have."""
    children = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and _parent(entry) == pid
    ]
    return children + [one for child in children for one in descendants(child)]


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_what_fails_is_listed_and_the_rest_is_done(tmp_path: Path) -> None:
    """A folder with two recordings of one sensor, a file that cannot be read: a line each, exit code 3."""
    data = dives(tmp_path / "data", 4, duration_s=2)
    odd = data / "reef-0" / "session_000"
    shutil.copytree(odd / "in-water_11111111", odd / "in-water_33333333")
    unreadable = data / "reef-1" / "session_001" / "surface_22222222" / "session.json"
    unreadable.unlink()
    unreadable.mkdir()
    code, said, complained = ended(fusion(data, "--jobs", 2))
    assert code == 3
    assert len(complained.splitlines()) == 2
    assert f"{odd}: several recordings of one sensor (in-water_11111111, in-water_33333333)" in complained
    assert said.splitlines()[-3:] == ["2 fused, 2 failed", *(f"  {line}" for line in complained.splitlines())]
    code, said, complained = ended(fusion(data, "--json"))
    shown = [json.loads(line) for line in said.splitlines()]
    assert [one["unchanged"] for one in shown] == [True, True]
    assert (code, complained.splitlines()[-3]) == (3, "0 fused, 2 unchanged, 2 failed")


def test_a_worker_that_dies_costs_its_session_alone(tmp_path: Path) -> None:
    """The process that fuses one session is killed, twice; all others are fused, and the reason is told."""
    data = dives(tmp_path / "data", 6, duration_s=2)
    stuck = data / "reef-0" / "session_002" / "in-water_11111111" / "session.json"
    stuck.unlink()
    os.mkfifo(stuck)
    process = fusion(data, "--jobs", 2)
    killed: set[int] = set()
    for _ in range(2):  # among the others, and by itself
        until(lambda: _waiting_for_a_writer(process.pid) - killed)
        (pid,) = _waiting_for_a_writer(process.pid) - killed
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    code, said, complained = ended(process)
    assert (code, said.count("->")) == (3, 5)
    assert f"{stuck.parents[1]}: the process that fused it was killed" in complained
    # The one at work beside it may have had its table whole, and not have said so yet.
    assert any(line in said for line in ("5 fused, 1 failed", "4 fused, 1 unchanged, 1 failed"))


OPENAT = {"x86_64": "257 ", "aarch64": "56 "}.get(platform.machine(), "?")


def _waiting_for_a_writer(pid: int) -> set[int]:
    """The worker that is held up by the pipe that nobody writes to: still, when looked at again."""

    def opening() -> set[int]:
        return {
            child
            for child in descendants(pid)
            if any(map(_is_opening, Path(f"/proc/{child}/task").glob("*")))
        }

    first = opening()
    time.sleep(0.05)
    return first & opening()


def _is_opening(thread: Path) -> bool:
    try:
        return (thread / "syscall").read_text().startswith(OPENAT)
    except OSError:
        return False


@contextmanager
def cluster(*roots: Path) -> Iterator[str]:
    """A Dask scheduler, and a worker from each of these checkouts; the address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    flags = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as held:

        def run(tool: str, root: Path, *words: str) -> None:
            environment = os.environ | {
                "PYTHONPATH": str(root),
                "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__STATUS__TASK_STREAM_LENGTH": "1",
            }
            command = [sys.executable, "-m", f"distributed.cli.dask_{tool}", *words, "--no-dashboard"]
            process = held.enter_context(subprocess.Popen(command, cwd=root, env=environment, **flags))  # type: ignore[call-overload]
            held.callback(process.kill)

        run("scheduler", ROOT, "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
        for root in roots:
            run("worker", root, address, "--nthreads", "1", "--no-nanny")
        yield address


def another_version(folder: Path) -> Path:
    """A checkout of the version after this one."""
    for name in ("common", "topside_daemon"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "common" / "__init__.py"
    init.write_text(init.read_text().replace(f'VERSION = "{VERSION}"', 'VERSION = "9.9.9"'))
    return folder


def test_a_worker_of_another_version_is_refused(tmp_path: Path) -> None:
    """It gets no session, others do; where there is no other, nothing is done and the cure is named."""
    data, other = dives(tmp_path / "data", 60, duration_s=15), another_version(tmp_path / "other")
    with cluster(other, ROOT) as address:
        _await_workers(address, 2)
        code, said, complained = ended(fusion(data, "--dask", address))
        assert (code, said.splitlines()[-1]) == (0, "60 fused")
        assert re.fullmatch(
            rf"worker tcp://\S+ has version 9\.9\.9, this is {VERSION}: not used\n", complained
        )
    with cluster(other) as address:
        _await_workers(address, 1)
        code, said, complained = ended(fusion(data, "--dask", address, "--force"))
        assert (code, said) == (2, "")
        assert f"no worker of the Dask cluster has version {VERSION}: install it there" in complained


def _await_workers(address: str, count: int) -> None:
    code = (
        "import sys, distributed\n"
        "with distributed.Client(sys.argv[1], timeout=60) as client:\n"
        "    client.wait_for_workers(int(sys.argv[2]), timeout=60)"
    )
    subprocess.run([sys.executable, "-c", code, address, str(count)], check=True, timeout=2 * PATIENCE_S)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    """The address, and what to do."""
    data = dives(tmp_path / "data", 1, duration_s=1)
    code, said, complained = ended(fusion(data, "--dask", "nowhere:xyz"))
    assert (code, said, complained.count("\n")) == (2, "", 1)
    assert complained.startswith("nowhere:xyz: no Dask scheduler there")


def test_nothing_is_done_again_that_would_come_out_the_same(tmp_path: Path) -> None:
    """By the hash of every input, the settings, the version and the formats; --force does it all the same."""
    folder = draw_session(1, duration_s=5).write(tmp_path / "s")
    report = folder / "unified_session.json"

    def again(*words: str) -> bool:
        before = made()
        assert main([str(folder), *words]) == 0
        return made() != before

    def made() -> tuple[int, ...]:
        """Which file it is: another one may be of the same tick, or of the same number."""
        about = report.stat() if report.exists() else None
        return (about.st_ino, about.st_mtime_ns, about.st_ctime_ns) if about else ()

    assert again()
    assert not again()
    assert again("--force")
    assert again("--tolerance-ms", "70")
    assert not again("--tolerance-ms", "70")
    assert again()
    with (folder / "exchanges.jsonl").open("ab") as file:
        file.write(b"\n")
    assert again()
    record = json.loads((folder / "session.json").read_text())
    (folder / "session.json").write_text(json.dumps(record | {"state": "complete"}))
    assert not again()  # of no matter for a fusion
    (folder / "session.json").write_text(json.dumps(record | {"fusion": {"latency": 1}}))
    assert not again()  # not understood, and said so
    (folder / "session.json").write_text(json.dumps(record | {"fusion": {"dejitter": True}}))
    assert again()
    (folder / TABLE).write_bytes(b"cut short")
    assert again()
    assert again("--format", "csv,parquet")
    assert not again("--format", "parquet,csv")
    assert again() and not (folder / file_name("parquet")).exists()  # it would be of another time
    assert again("--format", "csv,parquet")
    manifest = next(folder.glob("in-water_*")) / "manifest.json"
    manifest.write_text("{}")
    assert again("--format", "csv,parquet")
    folder = folder.rename(folder.with_name("renamed"))
    report = folder / report.name
    assert again("--format", "csv,parquet")
    report.write_text(report.read_text().replace(f'"version":"{VERSION}"', '"version":"0.0.0"'))
    assert again("--format", "csv,parquet")


def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    """A bar with rate and remaining time on stderr, if that is a terminal; the reports stay whole."""
    data = dives(tmp_path / "data", 5, duration_s=2)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "topside_daemon.fusion", str(data), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    said, _ = process.communicate(timeout=PATIENCE_S)
    shown = b""
    while True:
        try:
            shown += os.read(master, 65536)
        except OSError:  # all is read
            break
    os.close(master)
    assert "5/5" in shown.decode()
    assert re.search(r"<\d\d:\d\d, +[\d.]+ sessions/s", shown.decode())
    assert said.splitlines()[-1] == "5 fused"


def test_ctrl_c_leaves_what_is_done(tmp_path: Path) -> None:
    """130 and one line; nothing half is left behind."""
    data = dives(tmp_path / "data", 24, duration_s=200)
    process = fusion(data, "--jobs", 2)
    until(lambda: list(data.glob("*/*/unified_session.json")))
    process.send_signal(signal.SIGINT)
    code, _, complained = ended(process)
    assert code == 130
    assert complained.splitlines()[-1].startswith("interrupted: ")
    for table in data.glob(f"*/*/{TABLE}"):
        assert table.read_bytes().endswith(b"\n")
