"""`doctor` on planted faults, each real where it can be made: named, with its cure, and nothing disturbed."""

import io
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import common.doctor
import pi_daemon.__main__
import pi_daemon.doctor
import topside_daemon.__main__
import topside_daemon.doctor
from common import VERSION
from common.clock import Discipline, SystemClock
from common.doctor import (
    NEEDED,
    check_clock,
    check_machine,
    check_packages,
    check_reach,
    check_security,
    check_user,
)
from common.keys import Keyring
from common.messages import PROTOCOL
from tests.sim.outsider import ROOT, as_nobody, call, program
from tests.sim.partners import NAME, introduce
from tests.sim.proxy import Proxy
from tests.sim.rig import PiDaemon, TopsideDaemon, free_port
from tests.sim.talker import Talker
from topside_daemon.config import Config as TopsideConfig
from topside_daemon.pi import About
from topside_daemon.versions import compare

MAINS = {"pi": pi_daemon.__main__.main, "topside": topside_daemon.__main__.main}
DIVE = "01234567-89ab-cdef-0123-456789abcdef"
HOLD = "import os; fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)"
LISTEN = "import socket; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()"
LISTEN_UDP = (
    "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', int(sys.argv[1])))"
)


class Told:
    """What a doctor printed: a line for each thing."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.lines = code, text.splitlines()

    def __getitem__(self, what: str) -> str:
        (line,) = (line for line in self.lines if line[5:].startswith(f"{what}: "))
        return line


def flags(tmp_path: Path, **others: str) -> list[str]:
    """Everything free and fine, unless another value is given."""
    ports = [free_port() for _ in range(2)]
    named = {"http": f"127.0.0.1:{ports[0]}", "bus": f"tcp://127.0.0.1:{ports[1]}"}
    named |= {"data": str(tmp_path / "data")} | others
    return [part for name, value in named.items() for part in (f"--{name}", value)]


def doctor(module: str, words: list[str]) -> Told:
    """In this process, which saves the start of one; nothing else is saved."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = MAINS[module](["doctor", *words])
    return Told(code, printed.getvalue())


def called(module: str, words: list[str], user: tuple[str, ...] = ()) -> Told:
    """In a process of its own."""
    done = call(f"{module}_daemon", "doctor", *words, user=user)
    assert done.stderr == "", done.stderr
    return Told(done.returncode, done.stdout)


def test_a_healthy_pi_is_told_so(tmp_path: Path) -> None:
    """A line each, `ok` or a warning about this machine's clock; 0; and nothing is left behind."""
    with Talker(tmp_path / "sensor", 20.0) as talker:
        told = called("pi", flags(tmp_path, serial=str(talker.link)))
    assert told.code == 0, told.lines
    for what in ("machine", "packages", "configuration", "data", "room", "http", "bus", "time", "sensor"):
        assert told[what].startswith(("ok   ", "warn "))
    assert "heard on" in told["sensor"] and "freerun" in told["sensor"]
    assert ("not synchronised" in told["clock"]) == (SystemClock().discipline().synchronised is False)
    assert sorted(one.name for one in tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "text", "word"),
    [
        ("pi", "[serial]\nbuad = 1", "buad"),
        ("topside", "[serial\n", "TOML"),
        ("pi", "http = '1'", "HOST:PORT"),
    ],
)
def test_a_broken_configuration_is_named(tmp_path: Path, module: str, text: str, word: str) -> None:
    """The file, what is wrong in it, and where to see every key."""
    file = tmp_path / "daemon.toml"
    file.write_text(text)
    told = doctor(module, ["--config", str(file)])
    assert told.code == 1
    assert told["configuration"].startswith(f"FAIL configuration: {file}: ")
    assert word in told["configuration"] and f"deploy/{module}.toml has every key" in told["configuration"]


def test_taken_ports_and_a_full_disk_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has which port; how little room there is; all in one go, and as JSON."""
    monkeypatch.setattr(common.doctor, "ASK_S", 0.3)
    config = tmp_path / "pi.toml"
    config.write_text("[recording]\nmin_free_mb = 1e9\n")
    ports = {"http": free_port(), "bus": free_port(), "time": free_port()}
    with (
        program(LISTEN, str(ports["http"])) as http,
        program(LISTEN, str(ports["bus"])) as bus,
        program(LISTEN_UDP, str(ports["time"])) as time,
    ):
        places = {"http": f"127.0.0.1:{ports['http']}", "bus": f"tcp://127.0.0.1:{ports['bus']}"}
        places["time"] = f"127.0.0.1:{ports['time']}"
        words = ["--config", str(config), *flags(tmp_path, serial=str(tmp_path / "none"), **places)]
        told = doctor("pi", words)
        for what, other in (("http", http), ("bus", bus), ("time", time)):
            assert told[what].startswith(f"FAIL {what}: {places[what]} ")
            assert f"is taken by process {other.pid} ({sys.executable} -c" in told[what]
            assert f"stop it, or choose another --{what}" in told[what]
        assert pi_daemon.__main__.main([*words[:2], "doctor", *words[2:], "--json"]) == 1
    assert told["room"].startswith("FAIL room: ") and "refused below 1000000000 MB" in told["room"]
    assert "does not exist: plug the sensor in" in told["sensor"] and told["sensor"].startswith("FAIL")
    assert told.code == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    failed = {one["what"] for one in said["findings"] if one["level"] == "FAIL"}
    assert failed == {"http", "bus", "time", "room", "sensor"}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own; skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a disk")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk_and_a_small_one_are_named(tmp_path: Path) -> None:
    """Each with what to do about it."""
    with mounted(tmp_path / "card", "ro,size=1m") as card:
        told = doctor("pi", flags(tmp_path, data=str(card)))
        assert told["data"] == f"FAIL data: {card}: disk read-only: look at the card, then mount it writable"
        assert told["room"].startswith("FAIL room: 1 MB of 1 MB free, a recording is refused below 100 MB")
        told = doctor("topside", flags(tmp_path, data=str(card / "dives")))
        assert "disk read-only" in told["data"] and "missing and cannot be made" in told["data"]


def test_a_folder_without_permission_and_one_in_use_are_named(tmp_path: Path) -> None:
    """As another user; and of two daemons the second is told of the first."""
    with PiDaemon(tmp_path / "pi") as pi:
        assert pi.process is not None
        told = doctor("topside", flags(tmp_path, data=str(pi.data)))
        assert f"{pi.data} is in use by process {pi.process.pid} (" in told["data"]
        assert "choose another --data" in told["data"]
    nobody = as_nobody()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        told = called("pi", flags(tmp_path, data=folder), nobody)
        assert told["data"] == f"FAIL data: {folder}: no permission: let this user write there"
        told = called("topside", flags(tmp_path, data=f"{folder}/new"), nobody)
        assert "is missing and cannot be made: no permission" in told["data"]


def test_running_daemons_are_asked_and_not_disturbed(tmp_path: Path) -> None:
    """Our own daemons are no fault: both name their version, and their sensors are not opened."""
    with (
        Talker(tmp_path / "under", 20.0) as under,
        Talker(tmp_path / "deck", 20.0) as deck,
        PiDaemon(tmp_path / "pi", serial=str(under.link)) as pi,
        TopsideDaemon(
            tmp_path / "topside", serial=str(deck.link), pi=f"http://127.0.0.1:{pi.http}"
        ) as topside,
    ):
        pi.wait_streaming()
        topside.wait_streaming()
        both = [doctor("pi", pi.command()[3:]), doctor("topside", topside.command()[3:])]
        for told in both:
            assert told.code == 0, told.lines
            assert f"our daemon runs there, version {VERSION}" in told["http"]
            assert "our daemon runs there" in told["bus"]
            assert told["sensor"].startswith("ok   sensor: the running daemon hears it on ")
        told = both[1]
        assert told["pi"] == f"ok   pi: http://127.0.0.1:{pi.http} answers, version {VERSION}: same"
        assert told["pi time"].startswith("ok   pi time: udp port ")
        assert told["pi bus"].startswith("ok   pi bus: heard on port")
        assert told["pi sensor"].endswith(f"hears it on {under.port}: freerun")
        for daemon, path, sensor in ((pi, "/instrument/health", None), (topside, "/status", "surface")):
            health = daemon.get(path)[1]
            counters = (health[sensor] if sensor else health)["counters"]
            assert (counters["reconnects"], counters["port_speed_restored"]) == (0, 0)
        topside.wait_for(lambda: topside.get("/status")[1]["pi"]["version"] is not None)
        version = topside.get("/status")[1]["pi"]["version"]
        assert (version["state"], version["pi"], version["pi_protocol"]) == ("same", VERSION, PROTOCOL)
        status = call("topside_daemon", "--http", f"127.0.0.1:{topside.http}", "status").stdout
        assert f"version   Pi {VERSION}, topside {VERSION}: same\n" in status


def test_a_port_that_another_program_has_is_named_and_left_alone(tmp_path: Path) -> None:
    """The process stands in the line, and what to do."""
    with Talker(tmp_path / "sensor", 20.0) as talker, program(HOLD, str(talker.link)) as other:
        told = doctor("topside", flags(tmp_path, serial=str(talker.link)))
    assert told.code == 1
    assert f"in use by process {other.pid} ({sys.executable}" in told["sensor"]
    assert told["sensor"].startswith("FAIL sensor: ") and "stop it, or name another port" in told["sensor"]


def test_a_port_without_permission_is_named(tmp_path: Path) -> None:
    """As a user who is not in its group."""
    nobody = as_nobody()
    with Talker(tmp_path / "sensor", 20.0) as talker:
        port = str(talker.link.readlink())
        Path(port).chmod(0o600)
        told = called("pi", flags(tmp_path, serial=port, data="/tmp/qsensor-data"), nobody)
    assert told["sensor"].startswith(f"FAIL sensor: no permission for {port}: add this user to the group")


@contextmanager
def served(answers: dict[str, Any]) -> Iterator[str]:
    """A machine that answers HTTP on loopback: JSON where it has an answer, else 404. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path, "no")).encode())

        def log_message(self, *_: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def version(**others: object) -> dict[str, Any]:
    about = {"api": "0.2.0", "git": VERSION, "status": "online", "protocol": PROTOCOL}
    return {"/version": about | others}


@contextmanager
def deaf() -> Iterator[int]:
    """A port that takes no more connections and refuses none, as behind a firewall that drops."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_a_pi_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody knows, a port where nothing listens, no way there, something else that answers."""
    monkeypatch.setattr(topside_daemon.doctor, "CONNECT_S", 0.5)
    nothing = free_port()
    with served({}) as other, deaf() as dropped:
        for url, wrong, cure in (
            (
                "http://no-such-pi.invalid:9150",
                "the name no-such-pi.invalid is not known",
                "the Pi's address",
            ),
            (f"http://127.0.0.1:{nothing}", f"refuses tcp port {nothing}", "start pi_daemon there"),
            (f"http://127.0.0.1:{dropped}", "no way to 127.0.0.1", "check cable and power"),
            (other, f"something else than a Pi answers at {other}", "name the address and port of pi_daemon"),
        ):
            told = doctor("topside", flags(tmp_path, pi=url))
            assert told.code == 1
            assert told["pi"].startswith("FAIL pi: ")
            assert wrong in told["pi"] and cure in told["pi"]


def test_a_pi_of_another_version_is_named(tmp_path: Path) -> None:
    """Another protocol fails, and says which side to upgrade; the old API says what is missing."""
    with served(version(git="9.0", protocol=PROTOCOL + 1)) as newer:
        told = doctor("topside", flags(tmp_path, pi=newer))
        assert told.code == 1
        assert told["pi"].startswith(f"FAIL pi: {newer} answers, version 9.0: newer: ")
        assert "upgrade the topside to 9.0" in told["pi"]
    old = {"/version": {"api": "0.2.0", "git": "abc1234", "status": "online"}}
    with served(old) as url:
        told = doctor("topside", flags(tmp_path, pi=url))
        assert told.code == 0
        assert told["pi"].startswith(f"warn pi: {url} answers, version 0.2.0: old api: ")
        assert "missing: install pi_daemon" in told["pi"]
        told = doctor("pi", flags(tmp_path, http=url.removeprefix("http://")))
        assert "the old API abc1234 runs there" in told["http"] and told["http"].startswith("FAIL")


@pytest.mark.parametrize(
    ("git", "protocol", "state", "cure"),
    [
        (VERSION, PROTOCOL, "same", ""),
        ("9.0", PROTOCOL, "compatible", ""),
        ("0.0.1", PROTOCOL - 1, "older", f"upgrade the Pi to {VERSION}"),
        ("9.0", PROTOCOL + 1, "newer", "upgrade the topside to 9.0"),
        ("abc1234", None, "old api", "install pi_daemon"),
    ],
)
def test_two_versions_are_compared(git: str, protocol: int | None, state: str, cure: str) -> None:
    """By protocol first; the detail names the side that has to move."""
    found = compare(About(api="0.2.0", git=git, protocol=protocol))
    assert found.state == state and cure in found.detail and bool(cure) == bool(found.detail)


def test_a_firewall_that_lets_http_through_alone_is_named(tmp_path: Path) -> None:
    """At an address where only http is passed on: udp is not answered, the bus refuses; files would come."""
    with PiDaemon(tmp_path / "pi") as pi, Proxy(("127.0.0.2", 0), ("127.0.0.1", pi.http)) as proxy:
        told = doctor("topside", flags(tmp_path, pi=f"http://127.0.0.2:{proxy.port}"))
        about = pi.get("/version")[1]
    assert told.code == 1
    assert told["pi"].startswith("ok   pi: ")
    assert told["pi time"].startswith(f"FAIL pi time: http answers, udp port {about['time_port']} does not")
    assert f"open udp {about['time_port']} in the firewalls" in told["pi time"]
    assert told["pi bus"].startswith(f"FAIL pi bus: 127.0.0.2 tcp port {about['bus_port']}: refused")
    assert "start pi_daemon there with --bus tcp://0.0.0.0:" in told["pi bus"]


def test_a_paired_pi_is_asked_with_the_keys_of_the_pairing(tmp_path: Path) -> None:
    """Before the pairing its cure is named, after it all is heard; the Pi's own doctor has no token."""
    with Talker(tmp_path / "sensor", 20.0) as talker, ExitStack() as stack:
        pi = PiDaemon(tmp_path / "pi", serial=str(talker.link), security="paired")
        pi.health = "/health"  # what it tells everybody
        stack.enter_context(pi)
        url = f"http://127.0.0.1:{pi.http}"
        words = flags(tmp_path, pi=url)
        told = doctor("topside", words)
        assert told.code == 1
        assert told["pi pairing"].startswith("FAIL pi pairing: not paired: ")
        assert "python -m topside_daemon pair URL CODE" in told["pi pairing"]
        assert "nobody yet: `python -m pi_daemon pair`" in doctor("pi", pi.command()[3:])["security"]
        introduce(pi.data, tmp_path / "data", url)
        told = doctor("topside", words)
        assert told.code == 0, told.lines
        assert told["pi bus"].startswith("ok ") and "the running daemon" in told["pi sensor"]
        told = doctor("pi", pi.command()[3:])
        assert told["security"] == f"ok   security: paired with {NAME}"
        assert "tells only whom it is paired with; nothing is being recorded" in told["sensor"]
        assert told["sensor"].startswith("warn ") and told.code == 0
        assert Keyring(pi.data, SystemClock()).forget(NAME)
        told = doctor("topside", words)
        assert told["pi pairing"].startswith(
            "FAIL pi pairing: paired before, and forgotten there: wrong token"
        )
        assert told.code == 1 and not any("pi bus" in line for line in told.lines)


def test_a_paired_pi_that_records_is_told_by_its_files(tmp_path: Path) -> None:
    """Its own doctor has no token: the newest chunk shows that rows come, or that they do not any more."""
    with Talker(tmp_path / "sensor", 20.0) as talker, ExitStack() as stack:
        pi = PiDaemon(tmp_path / "pi", serial=str(talker.link), security="paired")
        pi.health = "/health"
        stack.enter_context(pi)
        url = f"http://127.0.0.1:{pi.http}"
        token = introduce(pi.data, tmp_path / "data", url).token
        order = json.dumps({"session_id": DIVE, "mission": "dive"}).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        start = urllib.request.Request(f"{url}/record/start", order, headers)
        pi.wait_for(lambda: urllib.request.urlopen(start).status == 200)  # once the sensor is heard

        def told() -> Told:
            return doctor("pi", pi.command()[3:])

        pi.wait_for(lambda: told()["sensor"].startswith("ok "))
        growing = told()
        assert growing["sensor"].startswith("ok   sensor: the running daemon has it, and tells only whom")
        assert re.search(
            r"it is recording, \d+ rows in [0-9a-f-]+/chunk_\d{5}\.\w+, the last \d s ago", growing["sensor"]
        )
        elsewhere = doctor("pi", [*pi.command()[3:], "--data", str(tmp_path)])
        assert f"{tmp_path} is not its folder: give its --data" in elsewhere["sensor"]
        assert (
            "is not its folder"
            in doctor("pi", [*pi.command()[3:], "--data", str(tmp_path / "none")])["sensor"]
        )
    chunk = tmp_path / "pi" / "dive-1" / "chunk_00000.tmp"
    quiet = pi_daemon.doctor.check_recording(chunk, 7, 0, 60_000_000_000)
    assert (
        quiet.level == "warn" and "7 rows in dive-1/chunk_00000.tmp, the last 60 s ago: check" in quiet.detail
    )


def test_a_folder_that_this_user_may_not_see_is_told(tmp_path: Path) -> None:
    """Of a paired daemon of another user: nothing is made up, and who can tell is named."""
    nobody = as_nobody()
    with ExitStack() as stack:
        pi = PiDaemon(tmp_path / "pi", security="paired")
        pi.health = "/health"
        stack.enter_context(pi)
        introduce(pi.data, tmp_path / "data", f"http://127.0.0.1:{pi.http}")
        tmp_path.chmod(0o700)
        hidden = called("pi", pi.command()[3:], nobody)
        assert f"{pi.data} cannot be read (Permission denied): " in hidden["sensor"]
        assert hidden["sensor"].endswith("`python -m topside_daemon doctor` on the topside shows the sensor")
        assert hidden["security"].startswith("warn security: paired; with whom, this user may not read: ask")
        assert hidden["data"].startswith("FAIL data: ") and "no permission" in hidden["data"]


def test_a_running_topside_is_asked_about_what_the_command_line_lacks(tmp_path: Path) -> None:
    """A bare doctor tells of the daemon's own sensor, Pi and disk; what is unplugged is a fault."""
    with ExitStack() as stack:
        deck = stack.enter_context(Talker(tmp_path / "deck", 20.0))
        pi = stack.enter_context(PiDaemon(tmp_path / "pi", serial=str(tmp_path / "no sensor")))
        url = f"http://127.0.0.1:{pi.http}"
        topside = stack.enter_context(TopsideDaemon(tmp_path / "topside", serial=str(deck.link), pi=url))
        topside.wait_streaming()
        topside.wait_for(lambda: (topside.get("/status")[1]["inwater"] or {}).get("state") == "port missing")
        bare = ["--http", f"127.0.0.1:{topside.http}", "--bus", f"tcp://127.0.0.1:{topside.bus}"]
        told = doctor("topside", [*bare, "--data", str(topside.data)])
        assert told["sensor"].startswith("ok   sensor: the running daemon hears it on ")
        assert told["link"] == f"ok   link: the running daemon hears {url}: connected"
        assert told["pi sensor"].startswith("FAIL pi sensor: the running daemon says port missing: ")
        assert not any("neither a Pi nor" in line for line in told.lines)
        deck.link.unlink()
        away = doctor("topside", ["--serial", deck.port, "--data", str(tmp_path / "other"), *flags(tmp_path)])
        assert away["sensor"].startswith(f"warn sensor: our daemon has {deck.port}, process ")
        assert "-m topside_daemon" in away["sensor"] and "--config or --http" in away["sensor"]
        assert "stop it" not in away["sensor"]
        other = doctor("topside", [*bare, "--data", str(topside.data), "--pi", "http://127.0.0.1:1"])
        assert other["link"].startswith(f"warn link: the running daemon follows {url}: restart it with --pi")
    with TopsideDaemon(tmp_path / "lone", serial=str(tmp_path / "gone")) as topside:
        bare = ["--http", f"127.0.0.1:{topside.http}", "--bus", f"tcp://127.0.0.1:{topside.bus}"]
        told = doctor("topside", [*bare, "--data", str(topside.data)])
        assert told.code == 1
        assert told["sensor"].startswith("FAIL sensor: the running daemon says port missing: ")
        assert told["link"] == "ok   link: the running daemon has no Pi"


def test_what_a_running_daemon_says_of_its_disks_is_told() -> None:
    """Readings that wait in memory, here or on the Pi, are a fault; a daemon that is not heard too."""
    session = {"mission": "dive", "state": "recording", "surface_storage": "disk full: free some space"}
    inwater = {"state": "freerun", "detail": "", "storage": "disk read-only: look at the card"}
    status = {
        "surface": None,
        "session": session,
        "inwater": inwater,
        "pi": {"url": "http://pi:9150", "bus": "silent", "version": None},
    }
    found = {one.what: one for one in topside_daemon.doctor.check_running(status, TopsideConfig())}
    assert str(found["sensor"]) == "ok   sensor: the running daemon has no surface sensor"
    assert str(found["storage"]) == "FAIL storage: readings wait in memory: disk full: free some space"
    assert found["pi storage"].level == "FAIL" and "look at the card" in found["pi storage"].detail
    assert found["pi sensor"].level == "ok"
    assert str(found["link"]) == "FAIL link: http://pi:9150: silent: ask `doctor --pi http://pi:9150`"


def test_a_port_of_the_pi_that_is_not_its_http_port_is_named(tmp_path: Path) -> None:
    """The bus, and https: what the Pi speaks, and where."""
    with PiDaemon(tmp_path / "pi") as pi:
        for url, words in (
            (f"http://127.0.0.1:{pi.bus}", "that is not an HTTP port of a Pi daemon: is it 9150?"),
            (f"https://127.0.0.1:{pi.http}", "the Pi speaks http://, not https://"),
        ):
            told = doctor("topside", flags(tmp_path, pi=url))
            assert told.code == 1
            assert told["pi"].startswith("FAIL pi: ") and words in told["pi"]
            assert "restart" not in told["pi"] and "message=" not in told["pi"]


def test_a_file_for_a_port_is_named(tmp_path: Path) -> None:
    """What the system says of it means nothing to most; what it means is said with it."""
    (tmp_path / "notes.txt").write_text("no sensor")
    for port in (tmp_path / "notes.txt", tmp_path, Path("/dev/full")):
        told = doctor("pi", flags(tmp_path, serial=str(port)))
        assert told["sensor"].startswith("FAIL sensor: ")
        assert told["sensor"].endswith("that is no serial port: name the sensor's"), told["sensor"]


def test_who_may_ask_is_told() -> None:
    """Open to everybody is a warning with the way out; local is as it should be."""
    assert check_security("local", "127.0.0.1:9150", None).level == "ok"
    for partners, better in (([], "paired"), (None, "local")):
        finding = check_security("legacy-lan", "0.0.0.0:9150", partners)
        assert finding.level == "warn" and "OPEN, whoever reaches 0.0.0.0:9150" in finding.detail
        assert f'choose security = "{better}"' in finding.detail


def test_clocks_are_judged() -> None:
    """A wall clock that nobody keeps, and a machine without a raw clock, are warnings with a cure."""
    (kept,) = check_clock(Discipline(True, 3_000_000), raw=True)
    assert str(kept) == "ok   clock: the wall clock follows a time server, within 3 ms"
    adrift, bent = check_clock(Discipline(False), raw=False)
    assert adrift.level == bent.level == "warn"
    assert "not synchronised" in adrift.detail and "timedatectl set-ntp true" in adrift.detail
    assert "no CLOCK_MONOTONIC_RAW" in bent.detail and "use Linux" in bent.detail
    assert [one.level for one in check_clock(Discipline(), raw=True)] == ["ok"]


def test_machines_and_packages_are_judged() -> None:
    """Too old, missing, 32 bit, root's view: each has its line."""
    assert check_machine("3.13.1", "aarch64", 64).level == "ok"
    assert "install a 64-bit system" in check_machine("3.11.2", "armv7l", 32).detail
    fine = dict.fromkeys(NEEDED, "99.1")
    assert check_packages(fine).level == "ok"
    bad = check_packages(fine | {"pyzmq": "24.0.1", "msgspec": None})
    assert bad.level == "FAIL" and "pyzmq 24.0.1, 27 or newer is needed" in bad.detail
    assert "msgspec is missing" in bad.detail and "install requirements/" in bad.detail
    assert check_packages(fine | {"aiohttp": "3.9.5"}).level == "FAIL"
    assert check_user(root=True, known=False) == check_user(root=False, known=True) == []
    assert "sudo -u qsensor" in check_user(root=True, known=True)[0].detail


def test_half_open_daemons_are_named() -> None:
    """One port open to the tether and the other not."""
    assert check_reach("0.0.0.0:9150", "tcp://0.0.0.0:9151") == []
    assert check_reach("127.0.0.1:9150", "tcp://127.0.0.1:9151") == []
    (finding,) = check_reach("0.0.0.0:9150", "tcp://127.0.0.1:9151")
    assert finding.level == "warn" and "only bus listens on loopback" in finding.detail


def test_the_versions_that_are_needed_are_those_that_are_declared() -> None:
    """What the doctor asks for is what the installation asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert dict(one.split(">=") for one in project["dependencies"]) == dict(NEEDED)


def test_no_network_is_needed_to_be_sure_of_a_free_port() -> None:
    """A trial gives the port back at once."""
    port = free_port()
    wanted = common.doctor.Listening("http", f"127.0.0.1:{port}")
    assert common.doctor.look_at_address(wanted, None, []).level == "ok"
    with socket.create_server(("127.0.0.1", port)):
        assert common.doctor.look_at_address(wanted, None, []).level == "FAIL"
    odd = common.doctor.look_at_address(common.doctor.Listening("bus", "tcp://192.0.2.1:9151"), None, [])
    assert "192.0.2.1 is no address of this machine: give one that is, or 0.0.0.0:9151" in odd.detail
