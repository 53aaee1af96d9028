"""The lifecycle in real processes, with real signals; configuration errors; systemd's socket."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta, Struct

from common.service import (
    EXIT_CONFIG,
    EXIT_SOFTWARE,
    ConfigError,
    DaemonConfig,
    Pulse,
    Supervisor,
    load_config,
    notify,
    split_address,
    start_logging,
    watchdog,
)
from tests.sim.streams import until

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import asyncio, sys, time
from common.disk import Disk
from common.files import FolderInUse
from common.service import ConfigError, Supervisor, run_daemon

class Daemon:
    def __init__(self, supervisor):
        self.supervisor = supervisor

    async def forever(self):
        try:
            await asyncio.Event().wait()
        finally:
            print("unwound", flush=True)

    async def returns(self):
        await asyncio.sleep(0)

    async def raises(self, error=ZeroDivisionError("of a part")):
        await asyncio.sleep(0)
        raise error

    def write(self, seconds):
        time.sleep(seconds)
        print(f"written in {seconds} s", flush=True)

    async def begin(self):
        self.supervisor.keep("forever", self.forever())
        await asyncio.sleep(0)
        part = sys.argv[1]
        if part == "kept part returns":
            self.supervisor.keep("part", self.returns())
        elif part == "part returns":
            self.supervisor.start("part", self.returns())
        elif part == "disk at work":
            self.disks = [Disk("one"), Disk("other")]
            for seconds in (0.3, 0.1):
                self.supervisor.start("part", self.disks[0].do(self.write, seconds))
        elif part == "disk hangs":
            self.disks = [Disk(str(number)) for number in range(30)]
            for disk in self.disks:
                self.supervisor.start("part", disk.do(self.write, 60))
        elif part == "kept part raises":
            self.supervisor.keep("part", self.raises())
        elif part == "part raises":
            self.supervisor.start("part", self.raises())
        elif part == "part misconfigured":
            self.supervisor.start("part", self.raises(ConfigError("no such port: give --serial")))
        elif part == "misconfigured":
            raise ConfigError("cannot serve: choose another --http")
        elif part == "folder in use":
            raise FolderInUse("data is in use by process 1")
        elif part == "begin raises":
            raise KeyError("begin")
        print("ready", flush=True)

async def main(supervisor):
    if sys.argv[1] == "misconfigured at once":
        raise ConfigError("bad: mend it")
    daemon = Daemon(supervisor)
    await supervisor.run(daemon.begin)

sys.exit(run_daemon(main))
"""


def started(part: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, part],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("part", ["nothing", "part returns"])
def test_a_signal_ends_a_daemon_in_order(part: str, number: signal.Signals) -> None:
    """Told to end, every part is unwound, nothing is complained of, the exit code is 0."""
    with started(part) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        daemon.send_signal(number)
        out, err = daemon.communicate(timeout=20)
    assert (daemon.returncode, out, err) == (0, "unwound\n", "")


@pytest.mark.parametrize(
    "part, written", [("disk at work", "written in 0.3 s\nwritten in 0.1 s\n"), ("disk hangs", "")]
)
def test_what_a_disk_was_asked_for_is_done_before_the_end(part: str, written: str) -> None:
    """Though who asked no longer waits for it; a disk that hangs is not waited for."""
    with started(part) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        daemon.send_signal(signal.SIGTERM)
        out, err = daemon.communicate(timeout=20)
    assert (daemon.returncode, out, err) == (0, f"unwound\n{written}", "")


@pytest.mark.parametrize("part", ["kept part returns", "kept part raises", "part raises", "begin raises"])
def test_a_part_that_fails_ends_the_daemon(part: str) -> None:
    """A bug in one part unwinds the others, is logged with its traceback, and ends with 70."""
    with started(part) as daemon:
        out, err = daemon.communicate(timeout=20)
    assert daemon.returncode == EXIT_SOFTWARE
    assert out.endswith("unwound\n")
    assert "Traceback" in err
    assert ("part returned" in err) == (part == "kept part returns")


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("misconfigured", "cannot serve: choose another --http\n"),
        ("part misconfigured", "no such port: give --serial\n"),
        ("misconfigured at once", "bad: mend it\n"),
        ("folder in use", "data is in use by process 1\n"),
    ],
)
def test_what_the_operator_must_mend_is_one_line(part: str, line: str) -> None:
    """A configuration error is its own one line on stderr and exit code 78, wherever it is raised."""
    with started(part) as daemon:
        _, err = daemon.communicate(timeout=20)
    assert (daemon.returncode, err) == (EXIT_CONFIG, line)


async def test_a_stop_ends_a_supervisor_whose_parts_run() -> None:
    """Stopped, a supervisor returns with all its parts cancelled."""
    supervisor, ended = Supervisor(), asyncio.Event()

    async def part() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def begin() -> None:
        supervisor.keep("part", part())
        asyncio.get_running_loop().call_soon(supervisor.stop)

    await supervisor.run(begin)
    assert ended.is_set()


class Serial(Struct, frozen=True, forbid_unknown_fields=True):
    port: str = ""
    baud: Annotated[int, Meta(ge=300)] = 9600


class Settings(DaemonConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    data: str = "data"
    serial: Serial = Serial()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "daemon.toml"


def test_flags_lie_over_the_file_and_the_file_over_defaults(file: Path) -> None:
    """Each value comes from the nearest place that names it; a flag not given is not there."""
    file.write_text('[serial]\nport = "/dev/ttyUSB0"\nbaud = 19200\n')
    found = load_config(file, Settings, {"serial.baud": 57600, "serial.port": None, "data": None})
    assert found == Settings(serial=Serial("/dev/ttyUSB0", 57600))
    assert load_config(None, Settings, {"serial.port": "/dev/x"}) == Settings(serial=Serial("/dev/x"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[serial]\nbuad = 1", "buad"),
        ("[serial]\nbaud = 1", "serial.baud"),
        ('[serial]\nbaud = "fast"', "serial.baud"),
        ("data = 3", "data"),
        ("nonsense = 3", "nonsense"),
        ("serial = 3", "serial"),
        ("serial = [1]", "serial"),
        ("[serial\n", "TOML"),
        ("a = 1\na = 2", "TOML"),
    ],
)
@pytest.mark.parametrize("overrides", [{}, {"serial.port": "/dev/x"}], ids=["file", "flags"])
def test_a_bad_file_is_one_line_that_names_file_and_key(
    file: Path, text: str, names: str, overrides: dict[str, str]
) -> None:
    """Unknown keys, wrong types, ranges and bad TOML: one line, with the file and the key."""
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(file, Settings, overrides)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    assert names in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_named(file: Path) -> None:
    """A missing file, a folder and binary junk are configuration errors too."""
    with pytest.raises(ConfigError, match=r"daemon\.toml.*--config"):
        load_config(file, Settings, {})
    with pytest.raises(ConfigError, match=str(file.parent)):
        load_config(file.parent, Settings, {})
    file.write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match=r"daemon\.toml"):
        load_config(file, Settings, {})


def test_a_bad_flag_is_named() -> None:
    """A value out of range on the command line is named by its key."""
    with pytest.raises(ConfigError, match=r"command line: .*serial\.baud"):
        load_config(None, Settings, {"serial.baud": 1})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9150", ("127.0.0.1", 9150)),
        ("tcp://0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:80", ("::1", 80)),
        ("pi.local:65535", ("pi.local", 65535)),
    ],
)
def test_an_address_is_split(text: str, address: tuple[str, int]) -> None:
    """HOST:PORT with or without a scheme, IPv6 in brackets."""
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["", "9150", ":9150", "host", "host:", "host:x", "host:65536", "host:²"])
def test_what_is_no_address_is_named(text: str) -> None:
    """Anything else is a configuration error that quotes it and shows an example."""
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(text)


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A datagram socket such as systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        name = str(tmp_path / "notify")
        channel.bind("\0" + name if request.param == "abstract" else name)
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if request.param == "abstract" else name)
        yield channel


def test_systemd_is_told(systemd: socket.socket) -> None:
    """A state reaches systemd's socket as one datagram, by path or abstract name."""
    notify("READY=1")
    notify("STATUS=läuft")
    assert systemd.recv(1000) == b"READY=1"
    assert systemd.recv(1000) == "STATUS=läuft".encode()


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand, telling is no error."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


def test_a_pulse_beats_while_every_part_moves(caplog: pytest.LogCaptureFixture) -> None:
    """A part that stands still, and no other, is named once; one that has no work is not waited for."""
    turns: dict[str, int | None] = {"reader": 1, "writer": None}
    pulse = Pulse({name: lambda name=name: turns[name] for name in turns})  # type: ignore[misc]
    assert pulse.beats()
    turns |= {"reader": 2, "writer": 7}
    assert pulse.beats()
    turns["reader"] = 3
    assert not pulse.beats() and not pulse.beats()
    assert [record.getMessage() for record in caplog.records] == [
        "no progress: writer",
        "no progress: reader, writer",
    ]
    turns |= {"reader": 4, "writer": 8}
    assert pulse.beats()


async def test_the_watchdog_is_fed_only_while_work_progresses(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings come as long as asked-for progress is there, and none when it is not."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    systemd.setblocking(False)
    asked: list[bool] = []

    def alive() -> bool:
        asked.append(len(asked) < 3)
        return asked[-1]

    feeding = asyncio.create_task(watchdog(alive))
    await until(lambda: len(asked) >= 6)
    feeding.cancel()
    for _ in range(3):
        assert systemd.recv(100) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 5), (logging.ERROR, 4), (logging.CRITICAL, 3)],
)
def test_the_journal_gets_priorities(level: int, priority: int) -> None:
    """Under journald a line begins with its syslog priority, more urgent levels with smaller numbers."""
    code = (
        "import logging; from common.service import start_logging; start_logging('debug');"
        f" logging.getLogger('part').log({level}, 'said')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JOURNAL_STREAM": "8:1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == f"<{priority}>part: said\n"


def test_logging_can_be_set_up_twice() -> None:
    """A second set-up replaces the first: one handler, the new level."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        start_logging("warning")
        start_logging("error")
        assert (len(root.handlers), root.level) == (1, logging.ERROR)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
