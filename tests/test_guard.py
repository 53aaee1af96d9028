"""Who may ask what: the three words of `security`, with real daemons and real sockets."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
import zmq

from common.bus import BusKeys, Publisher, Subscriber, connect
from common.guard import check_exposure, is_loopback, of_interface
from common.keys import CODE_NS, TRIES, Keyring, Pass, Wallet, WrongCode
from common.service import ConfigError
from common.web import OF_ONE
from tests.sim.clocks import SimClock
from tests.sim.partners import introduce
from tests.sim.rig import ROOT, PiDaemon, TopsideDaemon
from tests.sim.talker import Talker

pytestmark = pytest.mark.heavy

PUBLIC = ("/", "/health", "/version", "/register_service", "/docs", "/docs.json", "/openapi.json")
CLOSED = ("/status", "/latest", "/stream", "/instrument/health", "/metrics", "/files/a/b", "/record/sessions")


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    with Talker(tmp_path_factory.mktemp("talker") / "sensor", rate_hz=20) as talker:
        yield talker


class Paired(PiDaemon):
    """A Pi that asks for tokens: what the rig waits for must be open."""

    health = "/health"


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, talker: Talker) -> Iterator[tuple[Paired, Pass]]:
    """A paired Pi, and what its partner was given."""
    folder = tmp_path_factory.mktemp("paired")
    with Paired(folder / "pi", serial=str(talker.link), security="paired") as pi:
        yield pi, introduce(pi.data, folder / "topside", f"http://127.0.0.1:{pi.http}")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_only_what_is_public_answers_without_the_token(closed: tuple[Paired, Pass]) -> None:
    """Every documented call, and every path that is none: 401 with the way to be paired."""
    pi, given = closed
    for path in PUBLIC:
        assert pi.raw(path)[0] == 200, path
    document = pi.get("/openapi.json")[1]
    for path, methods in document["paths"].items():
        for method in methods:
            if path in PUBLIC or path == "/pair":
                continue
            status, said = pi.get(path) if method == "get" else pi.post(path)
            assert (status, "topside_daemon pair" in said["detail"]) == (401, True), path
    for path in (*CLOSED, "/nowhere"):
        assert pi.raw(path)[0] == 401, path
        assert pi.raw(path, **bearer(given.token))[0] in (200, 400, 404), path
    for path in (
        "/files/keys/own.json",
        "/files/../keys/own.json",
        "/%2e%2e/keys/own.json",
        "/keys/own.json",
    ):
        assert (pi.raw(path)[0], pi.raw(path, **bearer(given.token))[0]) == (401, 404), path


def test_a_wrong_token_is_not_tried_for_ever(closed: tuple[Paired, Pass]) -> None:
    """401 each, then 429 for a while; who has the right one, and the same address, is always let in."""
    pi, given = closed
    codes = [pi.raw("/status", **bearer(f"x{n}"))[0] for n in range(14)]
    assert codes[0] == 401 and codes[-1] == 429
    assert pi.raw("/status", **bearer(given.token))[0] == 200


def test_the_bus_speaks_to_partners_only(closed: tuple[Paired, Pass], tmp_path: Path) -> None:
    """No message without a key, none with an unknown one, none with the Pi's key wrong."""
    pi, given = closed
    stranger = Wallet(tmp_path).key_pair()
    partner = Wallet(pi.data.parent / "topside").key_pair()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    asked = [None, BusKeys(stranger, given.bus_key), BusKeys(partner, stranger.public)]
    strangers = [connect(context, f"tcp://127.0.0.1:{pi.bus}", [""], keys) for keys in asked]
    friend = connect(context, f"tcp://127.0.0.1:{pi.bus}", [""], BusKeys(partner, given.bus_key))
    assert friend.poll(5000)
    time.sleep(1.0)
    assert [one.poll(0) for one in strangers] == [0, 0, 0]
    context.destroy(linger=0)


def test_two_daemons_are_paired_by_a_code(tmp_path: Path) -> None:
    """As a user does it: refused before, shown on the Pi, entered topside, recorded, forgotten."""
    talker = Talker(tmp_path / "sensor", rate_hz=20)
    pi = Paired(tmp_path / "pi", serial=str(talker.link), security="paired")
    url = f"http://127.0.0.1:{pi.http}"

    def run(module: str, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    def on_pi(*words: str) -> str:
        done = run("pi_daemon", "--data", str(pi.data), "--security", "paired", "pair", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with talker, pi, TopsideDaemon(tmp_path / "topside", pi=url) as topside:
        topside.wait_for(lambda: "not paired" in topside.get("/status")[1]["pi"]["bus"])
        code = on_pi().split("code is ")[1][:6]
        wrong = run(
            "topside_daemon", "--data", str(topside.data), "pair", url, f"{(int(code) + 1) % 10**6:06d}"
        )
        assert (wrong.returncode, wrong.stderr.startswith("this is not the code")) == (1, True)
        done = run("topside_daemon", "--data", str(topside.data), "pair", url, code, "--name", "deck")
        assert done.returncode == 0, done.stderr
        assert run("topside_daemon", "--data", str(topside.data), "pair", url, code).returncode == 1
        assert on_pi("--list").startswith("deck")
        topside.wait_for(lambda: topside.get("/status")[1]["pi"]["bus"] == "connected")
        topside.post("/session/start", {"mission": "dive"})
        topside.wait_for(lambda: topside.session()["inwater_durable_seq"] > 5)
        assert topside.post("/session/stop")[1]["state"] == "complete"
        for keys in (pi.data / "keys", topside.data / "keys"):
            assert keys.stat().st_mode & 0o77 == 0
            assert all(one.stat().st_mode & 0o77 == 0 for one in keys.iterdir())
        on_pi("--forget", "deck")
        assert on_pi("--list") == ""
        token = json.loads((topside.data / "keys" / "passes.json").read_text())["passes"][0]["token"]
        assert pi.raw("/status", **bearer(token))[0] == 401
        topside.wait_for(lambda: "pair" in topside.get("/status")[1]["pi"]["bus"])
        assert topside.get("/status")[1]["inwater"] is None  # it hears nothing more


@pytest.mark.parametrize("flag", ["http", "bus", "time"])
def test_local_listens_to_this_machine_only(tmp_path: Path, flag: str) -> None:
    """Anything else is refused at the start, in one line with both cures."""
    address = "tcp://0.0.0.0:0" if flag == "bus" else "0.0.0.0:0"
    for module in ("pi_daemon", "topside_daemon"):
        if flag == "time" and module == "topside_daemon":
            continue
        command = [sys.executable, "-m", module, "--data", str(tmp_path / "d"), f"--{flag}", address]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (78, "", 1)
        assert "security is local" in done.stderr and "paired" in done.stderr
    assert not (tmp_path / "d").exists()


def test_an_open_daemon_says_so(tmp_path: Path) -> None:
    """legacy-lan: at the start, and in every status; the bus is not open with it."""
    pi = PiDaemon(tmp_path / "pi", security="legacy-lan")
    pi.flags |= {"http": f"0.0.0.0:{pi.http}", "bus": f"tcp://0.0.0.0:{pi.bus}"}
    with pi:
        assert "OPEN: security is legacy-lan" in pi.log
        for path in ("/status", "/instrument/health", "/version"):
            assert pi.get(path)[1]["security"] == "legacy-lan"
        assert pi.get("/version")[1]["bus_key"]
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = connect(context, f"tcp://127.0.0.1:{pi.bus}", [""])
        assert not stranger.poll(1500)
        context.destroy(linger=0)


@pytest.mark.parametrize("security", ["local", "legacy-lan"])
def test_a_browser_is_no_way_in(tmp_path: Path, security: str) -> None:
    """A page of another host 403, a name that is not ours 421; its own page and plain programs are let in."""
    with PiDaemon(tmp_path / "pi", security=security) as pi:
        own = f"http://127.0.0.1:{pi.http}"
        for path in ("/health", "/status", "/nowhere"):
            for origin in (
                "http://evil.example",
                "null",
                f"http://localhost:{pi.http + 1}",
                f"{own}.evil.example",
            ):
                assert pi.raw(path, Origin=origin)[0] == 403, origin
            for host in (
                "evil.example",
                f"evil.example:{pi.http}",
                "127.0.0.1.evil.example",
                "",
                "a b",
                "[x]",
            ):
                assert pi.raw(path, Host=host)[0] in (400, 421), host
        assert pi.raw("/health", Host="evil.example")[0] == 421
        for origin in (own, own.upper()):
            assert pi.raw("/health", Origin=origin)[0] == 200
        assert pi.raw("/health", Host="blueos.local:9150")[0] == (421 if security == "local" else 200)
        for host in ("localhost", f"127.0.0.1:{pi.http}", "[::1]:9150", "192.168.2.2", socket.gethostname()):
            assert pi.raw("/health", Host=host)[0] == 200, host
        _, content = pi.raw("/health", Origin="http://evil.example")
        assert "origins in the configuration" in json.loads(content)["detail"]


def test_pages_and_names_that_are_known_are_let_in(tmp_path: Path) -> None:
    """hosts and origins of the configuration, with what a browser asks for before it asks."""
    config = tmp_path / "pi.toml"
    config.write_text('hosts = ["rov.example"]\norigins = ["http://blueos.local"]\n')
    with PiDaemon(tmp_path / "pi", config=str(config)) as pi:
        assert pi.raw("/health", Host="ROV.example:80")[0] == 200
        told = raw_call(
            pi,
            b"OPTIONS /record/start HTTP/1.1\r\nHost: localhost\r\nOrigin: http://blueos.local\r\n"
            b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n",
        )
        assert told.startswith(b"HTTP/1.1 204")
        assert b"Access-Control-Allow-Origin: http://blueos.local\r\n" in told
        assert b"*" not in told and b"Allow-Credentials" not in told


def raw_call(pi: PiDaemon, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", pi.http), timeout=10) as channel:
        channel.sendall(request)
        told = b""
        while part := channel.recv(65536):
            told += part
        return told


@pytest.mark.parametrize(
    "header", [b"Upgrade: web\xa7ocket", b"Sec-WebSocket-Version: \xff", b"Connection: \xe9"]
)
def test_bytes_that_are_no_text_are_no_upgrade(closed: tuple[Paired, Pass], header: bytes) -> None:
    """What aiohttp would repeat in its refusal costs 400, not a traceback."""
    pi, given = closed
    token = f"Authorization: Bearer {given.token}\r\n".encode()
    request = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n" + token + header + b"\r\n"
    assert b" 400 " in raw_call(pi, request + b"Connection: close\r\n\r\n").partition(b"\r\n")[0]
    assert "Traceback" not in pi.log


def test_too_much_is_sent_away(tmp_path: Path) -> None:
    """Requests beyond the pace 429, connections beyond the number 503, bodies too large 413, packed ones 415;
    and then everything is as before."""
    with PiDaemon(tmp_path / "pi") as pi:
        line = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        told = raw_call(pi, line * 3000 + line.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert told.count(b"HTTP/1.1 200") >= 1000 and told.count(b"HTTP/1.1 429") >= 100
        pi.wait_for(lambda: pi.get("/health")[0] == 200)
        idle = [socket.create_connection(("127.0.0.1", pi.http)) for _ in range(OF_ONE)]
        last = line.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert b"503 Service Unavailable" in raw_call(pi, last)
        for one in idle:
            one.close()
        pi.wait_for(lambda: pi.get("/health")[0] == 200)
        head = b"POST /record/stop HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        large = head + b"Content-Length: 99999\r\n\r\n" + b"x" * 99_999
        packed = head + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"
        for request, code in ((large, b" 413 "), (packed, b" 415 ")):  # once the flood is forgotten
            pi.wait_for(lambda request=request, code=code: code in raw_call(pi, request))


@pytest.mark.parametrize(
    "name", ["..", "../..", "..%2f..", "%2e%2e", "..%5c..", "%252e%252e", "%c0%ae%c0%ae", "/etc", "%00", "."]
)
def test_no_spelling_leads_out_of_the_data(tmp_path: Path, name: str) -> None:
    """Neither of a session nor of a file."""
    (tmp_path / "secret.csv").write_text("secret")
    with PiDaemon(tmp_path / "pi") as pi:
        for path in (
            f"/files/{name}/secret.csv",
            f"/files/{name}",
            f"/files/keys/{name}",
            f"/files/x/{name}",
        ):
            told = raw_call(
                pi, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            assert b"secret" not in told.partition(b"\r\n\r\n")[2].replace(quote(name).encode(), b"")
            assert told.split(b" ")[1] in (b"400", b"404"), path


def test_codes_are_good_once_and_not_for_long(tmp_path: Path) -> None:
    """Five minutes, five tries, one topside, this boot; a new one replaces it."""
    clock = SimClock()
    keyring, topside = Keyring(tmp_path / "pi", clock), Wallet(tmp_path / "topside").key_pair()

    def redeem(code: str, name: str = "deck") -> str:
        return keyring.redeem(code, topside.public, name)

    with pytest.raises(WrongCode):
        redeem("000000")
    code = keyring.offer()
    token = redeem(code)
    assert keyring.knows_token(token) and keyring.knows_key(topside.public)
    assert not keyring.knows_token(code) and not keyring.knows_key("x" * 40)
    with pytest.raises(WrongCode):
        redeem(code)
    code = keyring.offer()
    clock.advance(CODE_NS / 1e9 + 1)
    with pytest.raises(WrongCode, match="too old"):
        redeem(code)
    code = keyring.offer()
    for _ in range(TRIES):
        with pytest.raises(WrongCode):
            redeem("x" * 6)
    with pytest.raises(WrongCode):
        redeem(code)
    with ThreadPoolExecutor(8) as many:  # of as many who have the code, one is let in
        code = keyring.offer()
        answers = [many.submit(redeem, code, f"deck {n}") for n in range(8)]
        assert sum(one.exception() is None for one in answers) == 1
    [last] = [one.name for one in keyring.partners if one.name != "deck"]
    keyring.forget(last)
    again = redeem(keyring.offer())
    assert not keyring.knows_token(token) and keyring.knows_token(again)  # one of a name
    assert keyring.forget("deck") and not keyring.forget("deck")
    assert not keyring.knows_token(again)
    assert token not in (tmp_path / "pi" / "keys" / "partners.json").read_text()


def test_damaged_keys_let_nobody_in(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path, SimClock())
    token = keyring.redeem(keyring.offer(), Wallet(tmp_path / "t").key_pair().public, "deck")
    (tmp_path / "keys" / "partners.json").write_text('{"partners": 5}')
    assert not keyring.knows_token(token)
    with pytest.raises(ValueError, match="partners"):  # nobody is forgotten for it
        keyring.redeem(keyring.offer(), "x" * 40, "other")
    (tmp_path / "keys" / "own.json").write_text("{}")
    with pytest.raises(ConfigError, match="keys"):
        Publisher("tcp://127.0.0.1:0", keyring)


async def test_a_subscriber_that_is_paired_later_is_let_in(tmp_path: Path) -> None:
    """ZeroMQ gives up for ever when it is turned away: the subscriber begins anew by itself."""
    keyring, wallet = Keyring(tmp_path / "pi", SimClock()), Wallet(tmp_path / "topside")
    publisher = Publisher("tcp://127.0.0.1:0", keyring)
    assert publisher.key is not None
    heard: list[str] = []
    keys = BusKeys(wallet.key_pair(), publisher.key)
    subscriber = Subscriber(publisher.address, [""], lambda topic, _: heard.append(topic), 0.3, keys)
    for wanted in (False, True):
        for _ in range(15):
            publisher.send("a", {}, 0)
            await asyncio.sleep(0.1)
        assert bool(heard) == wanted
        keyring.redeem(keyring.offer(), wallet.key_pair().public, "deck")
    subscriber.close()
    publisher.close()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.8.8.8", True), ("0.0.0.0", False)]
    + [(name, False) for name in ("::", "192.168.2.2", "eth0", "localhost.evil.example", "")],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_an_interface_stands_for_its_address() -> None:
    """Of Linux's names, the loopback is on every machine."""
    assert of_interface("lo:9150") == "127.0.0.1:9150"
    assert of_interface("tcp://lo:9151") == "tcp://127.0.0.1:9151"
    assert of_interface("192.168.2.2:9150") == "192.168.2.2:9150"
    check_exposure("local", http=of_interface("lo:1"), bus=None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray so")
def test_root_is_not_led_astray_by_whoever_owns_the_data(tmp_path: Path) -> None:
    """The command acts as the owner of the folder: a link that lies there leads to nothing of root's."""
    data, target = tmp_path / "data", tmp_path / "roots"
    (data / "keys").mkdir(parents=True)
    target.write_text("mine")
    target.chmod(0o600)
    for name in ("offer.json", "offer.json.new", "partners.json"):
        (data / "keys" / name).symlink_to(target)
    for one in (data, data / "keys"):
        os.chown(one, 65534, 65534)
    tmp_path.chmod(0o755)
    command = [sys.executable, "-m", "pi_daemon", "--data", str(data), "--security", "paired", "pair"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=30)
    assert (target.read_text(), target.stat().st_uid) == ("mine", 0)


def test_a_code_is_shown_only_where_a_daemon_is(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pi_daemon",
        "--data",
        str(tmp_path / "no"),
        "--security",
        "paired",
        "pair",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, "no daemon has its data there" in done.stderr) == (1, "", True)
    assert not (tmp_path / "no").exists()
