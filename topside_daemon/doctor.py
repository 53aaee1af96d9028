"""`python -m topside_daemon doctor`: the topside's part of it, and the way to the Pi."""

import asyncio
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.bus import INWATER, BusKeys, Subscriber
from common.clock import Clock, SystemClock
from common.doctor import (
    Finding,
    Findings,
    Level,
    Listening,
    Running,
    check_security,
    check_told,
    get_json,
    look_at_address,
    look_at_folder,
    look_at_machine,
    look_at_sensor,
    own_programs,
    own_url,
)
from common.keys import Wallet
from common.messages import Exchange
from common.sensor import FLOWING
from common.service import ConfigError, read_config
from topside_daemon.config import Config
from topside_daemon.pi import About, Pi, PiError
from topside_daemon.pibus import CONNECTED, NO_KEY, NOT_PAIRED
from topside_daemon.timeasker import TimeAsker
from topside_daemon.versions import compare

SAMPLE = "deploy/topside.toml has every key"
CONNECT_S = 3.0
BUS_S = 4.0  # the Pi speaks every second
PROBES = 4
WALL_S = 2.0  # by which both wall clocks may differ without a word
HTTP_PORT = 80
_NO_HTTP = "400, message"  # how aiohttp begins to tell of an answer that is none
NOT_TOLD = Finding("FAIL", "pi sensor", "the Pi does not take this machine's token: pair it anew")
NO_SURFACE = {"state": "no port configured", "detail": "it was started without --serial: restart it"}


async def examine(file: Path | None, overrides: Mapping[str, Any]) -> Findings:
    """Everything that can be looked at here, with the configuration that the daemon would have."""
    clock = SystemClock()
    for finding in look_at_machine(clock):
        yield finding
    try:
        config = read_config(file, Config, overrides).located()
    except ConfigError as error:
        yield Finding("FAIL", "configuration", f"{error}: mend it; {SAMPLE}")
        return
    yield Finding("ok", "configuration", f"{file or 'command line'} is fine")
    running = await _running(config.http)
    for finding in check_config(config, running):
        yield finding
    own = own_programs(config.http, running)
    for finding in look_at_folder(Path(config.data), None, running, own):
        yield finding
    for wanted in (Listening("http", config.http), Listening("bus", config.bus)):
        yield look_at_address(wanted, running, own)
    if running is not None:
        for finding in check_running(running.told, config):
            yield finding
    elif config.serial.port is None:
        yield Finding("ok", "sensor", "no surface sensor is configured")
    else:
        yield await look_at_sensor(config.serial, clock)
    if config.pi is not None:
        async for finding in look_at_pi(config.pi, clock, Wallet(Path(config.data))):
            yield finding


def check_config(config: Config, running: Running | None) -> Iterator[Finding]:
    """What the configuration alone tells. running: our daemon, which may have a better one."""
    yield check_security(config.security, config.http, None)
    if running is not None:
        return
    if config.pi is None and config.serial.port is None:
        text = "neither a Pi nor a serial port is configured: give --pi or --serial"
        yield Finding("FAIL", "sources", text)
    elif config.pi is None:
        yield Finding("ok", "pi", "no Pi is configured: the surface is recorded alone")


def check_running(told: Mapping[str, Any], config: Config) -> Iterator[Finding]:
    """What our running daemon says of its sensor, its Pi and both disks, whatever the command line lacks."""
    surface, session, inwater = told["surface"], told["session"], told.get("inwater")
    if surface is None and config.serial.port is None:
        yield Finding("ok", "sensor", "the running daemon has no surface sensor")
    else:
        yield check_told(surface or NO_SURFACE)
    yield check_link(told["pi"], config.pi)
    if inwater and config.pi is None:  # else the Pi is asked itself
        state, detail = inwater.get("state"), inwater.get("detail")
        said = f"the running daemon says {state}" + (f": {detail}" if detail else "")
        yield Finding("ok" if state in FLOWING else "FAIL", "pi sensor", said)
    if session and session.get("surface_storage"):
        yield Finding("FAIL", "storage", f"readings wait in memory: {session['surface_storage']}")
    elif session:
        yield Finding("ok", "storage", f"session {session['mission']}, {session['state']}: no disk trouble")
    if inwater and inwater.get("storage"):
        yield Finding("FAIL", "pi storage", f"readings wait in the Pi's memory: {inwater['storage']}")


def check_link(pi: Mapping[str, Any], wanted: str | None) -> Finding:
    """The Pi as our running daemon sees it. wanted: its URL on the command line."""
    url, bus = pi["url"], str(pi["bus"])
    if url is None:
        level: Level = "ok" if wanted is None else "warn"
        cure = "" if wanted is None else f": restart it with --pi {wanted}"
        return Finding(level, "link", f"the running daemon has no Pi{cure}")
    if wanted is not None and wanted.rstrip("/") != url.rstrip("/"):
        text = f"the running daemon follows {url}: restart it with --pi {wanted} if that is the Pi"
        return Finding("warn", "link", text)
    if bus == CONNECTED:
        return Finding("ok", "link", f"the running daemon hears {url}: {bus}")
    old = (pi.get("version") or {}).get("state") == "old api"
    said = bus if url in bus else f"{url}: {bus}"
    cure = "" if ": " in bus or wanted else f": ask `doctor --pi {url}`"
    return Finding("warn" if old or "not answered yet" in bus else "FAIL", "link", f"{said}{cure}")


def check_connection(host: str, port: int, error: OSError) -> Finding:
    """Why there is no connection to the Pi."""
    if isinstance(error, socket.gaierror):
        text = f"the name {host} is not known here: give the Pi's address, as in --pi http://192.168.2.2:9150"
    elif isinstance(error, ConnectionRefusedError):
        cure = (
            f"start pi_daemon there with --security paired --http 0.0.0.0:{port}, or name its port with --pi"
        )
        text = f"{host} refuses tcp port {port}, nothing listens there: {cure}"
    else:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror
        cure = f"check cable and power, that both have addresses of one network, and firewalls (tcp {port})"
        text = f"no way to {host}, tcp port {port} ({reason}): {cure}"
    return Finding("FAIL", "pi", text)


def check_answer(url: str, error: PiError) -> Finding:
    """What answered, but not as a Pi does."""
    if error.status is None and urlsplit(url).scheme == "https":
        cure = f"give --pi http://{urlsplit(url).netloc}"
        return Finding("FAIL", "pi", f"no Pi answers at {url}: the Pi speaks http://, not https://: {cure}")
    if error.status is None and _NO_HTTP in str(error):
        cure = f"name the Pi's http port, as in --pi http://{urlsplit(url).hostname}:9150"
        return Finding("FAIL", "pi", f"{url}: that is not an HTTP port of a Pi daemon: is it 9150? {cure}")
    if error.status is None and "something else" not in str(error):
        return Finding("FAIL", "pi", f"{error}, though it takes the connection: restart pi_daemon there")
    text = f"something else than a Pi answers at {url}: name the address and port of pi_daemon with --pi"
    return Finding("FAIL", "pi", text)


def check_version(url: str, about: About) -> Finding:
    """Whether both sides understand each other."""
    version = compare(about)
    found = f"{url} answers, version {version.pi}: {version.state}"
    if version.state in ("same", "compatible"):
        return Finding("ok", "pi", found)
    return Finding("warn" if version.state == "old api" else "FAIL", "pi", f"{found}: {version.detail}")


def check_pairing(about: About, paired: bool, refusal: str) -> Finding:
    """Whether what this machine was given, or was not, is what the Pi asks for now. refusal: of what it was
    given."""
    if refusal:
        return Finding("FAIL", "pi pairing", f"paired before, and forgotten there: {refusal}")
    locked = about.bus_key is not None
    if paired == locked:
        return Finding(
            "ok", "pi pairing", "this machine is paired with it" if paired else "none is asked for"
        )
    level: Level = "warn" if about.security == "legacy-lan" else "FAIL"
    return Finding(level, "pi pairing", NO_KEY if paired else NOT_PAIRED)


def check_time(port: int, burst: list[Exchange]) -> list[Finding]:
    """Whether the Pi's clock can be asked by UDP, and what its wall clock says beside ours."""
    answered = [one for one in burst if one.status == "ok"]
    if not answered:
        cost = "clocks are compared by http instead, a few tenths of a ms worse"
        text = f"http answers, udp port {port} does not, {cost}: open udp {port} in the firewalls of both"
        return [Finding("FAIL", "pi time", text)]
    best = min(answered, key=_away_ns)
    away_ms = _away_ns(best) / 1e6
    found = [Finding("ok", "pi time", f"udp port {port} answers, there and back in {away_ms:.2f} ms")]
    apart_s = (best.pi_utc_ns - best.topside_utc_ns) / 1e9 if best.pi_utc_ns else 0.0
    if abs(apart_s) > WALL_S:
        text = f"the Pi's wall clock reads {apart_s:+.1f} s beside this one, readings line up all the same"
        found.append(Finding("warn", "pi time", f"{text}: set the one that is wrong"))
    return found


def _away_ns(exchange: Exchange) -> int:
    return (exchange.t4_ns or 0) - exchange.t1_ns


def check_bus(host: str, port: int, error: OSError | None, heard: bool) -> Finding:
    """Whether the Pi's live messages come through."""
    if heard:
        return Finding("ok", "pi bus", f"heard on port {port}")
    reason = "refused" if isinstance(error, ConnectionRefusedError) else "no answer" if error else "silent"
    cost = "live rows are missing, files come all the same"
    cure = f"start pi_daemon there with --bus tcp://0.0.0.0:{port}, and open tcp {port} in its firewall"
    return Finding("FAIL", "pi bus", f"{host} tcp port {port}: {reason}, {cost}: {cure}")


async def _running(http: str) -> Running | None:
    told = await get_json(f"{own_url(http)}/status")
    if told is None or not {"session", "pi", "surface"} <= told.keys():
        return None
    return Running(str(told.get("version", "unknown")), told.get("protocol", 0), told)


async def look_at_pi(url: str, clock: Clock, wallet: Wallet) -> Findings:
    """The way to the Pi, from its name to its live messages; what cannot be without the rest ends it."""
    pi = Pi(url, clock, wallet)
    port = urlsplit(url).port or HTTP_PORT
    if (error := await _connect(pi.host, port)) is not None:
        yield check_connection(pi.host, port, error)
        return
    try:
        known, keys = wallet.pass_for(pi.url), pi.bus_keys()
    except (OSError, ValueError) as unread:
        yield Finding("FAIL", "pi", f"the keys cannot be read: {unread}: ask as the daemon's user")
        return
    pi.open()
    try:
        about = await pi.about()
        refusal = await pi.refusal() if known is not None and about.bus_key is not None else ""
    except PiError as trouble:
        yield check_answer(url, trouble)
        return
    finally:
        await pi.close()
    yield check_version(url, about)
    if about.time_port is not None:
        for finding in check_time(about.time_port, await _burst(clock, pi.host, about.time_port)):
            yield finding
    paired = check_pairing(about, known is not None, refusal)
    yield paired
    if paired.level == "ok" and about.bus_port is not None:
        error = await _connect(pi.host, about.bus_port)
        heard = error is None and await _hears(pi.host, about.bus_port, keys)
        yield check_bus(pi.host, about.bus_port, error, heard)
    if about.protocol is not None and (paired.level == "ok" or about.security != "paired"):
        health = await get_json(f"{pi.url}/instrument/health", known.token if known else None)
        yield NOT_TOLD if health is None else check_told(health, "pi sensor")


async def _connect(host: str, port: int) -> OSError | None:
    """Why none of the host's addresses takes a connection; None if one does."""
    loop, refused = asyncio.get_running_loop(), OSError(f"{host} has no address")
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error
    for _, _, _, _, address in found:
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(*address[:2])
        except OSError as error:
            refused = error
        else:
            writer.close()
            return None
    return refused


async def _burst(clock: Clock, host: str, port: int) -> list[Exchange]:
    try:
        asker = await TimeAsker.connect(clock, host, port)
    except OSError:
        return []
    blanks = [Exchange("", "PROBE", 0, n, clock.boot_id, 0, 0) for n in range(PROBES)]
    try:
        return await asker.burst(blanks)
    finally:
        asker.close()


async def _hears(host: str, port: int, keys: BusKeys | None) -> bool:
    heard = asyncio.Event()
    subscriber = Subscriber(f"tcp://{host}:{port}", [INWATER], lambda topic, payload: heard.set(), keys=keys)
    try:
        async with asyncio.timeout(BUS_S):
            await heard.wait()
    except TimeoutError:
        return False
    finally:
        subscriber.close()
    return True
