"""`python -m pi_daemon doctor`: the Pi's part of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.clock import Clock, SystemClock
from common.doctor import (
    USER,
    Finding,
    Findings,
    Listening,
    Running,
    check_reach,
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
from common.files import read_json
from common.holders import Program, lockers_of
from common.keys import KEYS, Keyring
from common.recording import StreamRecord
from common.recovery import chunk_files, scan
from common.service import ConfigError, read_config, split_address
from common.unfinished import FILE
from pi_daemon.config import Config
from pi_daemon.daemon import TIME_PORT_ABOVE_HTTP

SAMPLE = "deploy/pi.toml has every key"
QUIET_S = 10.0  # of an open recording, after which somebody should look
NOT_TOLD = "the running daemon has it, and tells only whom it is paired with"
ASK_TOPSIDE = "`python -m topside_daemon doctor` on the topside shows the sensor"


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
    for finding in check_config(config):
        yield finding
    running = await _running(config.http)
    ours = running if running and running.protocol else None
    own = own_programs(config.http, running)
    for finding in look_at_folder(Path(config.data), config.recording.min_free_mb, ours, own):
        yield finding
    for finding in _addresses(config, running, own):
        yield finding
    if ours is not None:
        health = await get_json(f"{own_url(config.http)}/instrument/health")
        yield look_at_files(Path(config.data), clock) if health is None else check_told(health)
    elif config.serial.port is None:
        yield Finding("FAIL", "sensor", "no port is configured: name the sensor's port with --serial PORT")
    else:
        yield await look_at_sensor(config.serial, clock)


def look_at_files(data: Path, clock: Clock) -> Finding:
    """The sensor of a daemon that may not be asked, by what it writes: the files are this machine's own."""
    try:
        if not _is_held(data):
            cure = f"give its --data; {ASK_TOPSIDE}"
            return Finding("warn", "sensor", f"{NOT_TOLD}, and {data} is not its folder: {cure}")
        recording = _open_recording(data)
        if recording is None:
            return Finding("warn", "sensor", f"{NOT_TOLD}; nothing is being recorded: {ASK_TOPSIDE}")
        return check_recording(*_newest_chunk(recording), clock.utc_ns())
    except (OSError, ValueError) as trouble:
        reason = trouble.strerror if isinstance(trouble, OSError) else str(trouble)
        return Finding("warn", "sensor", f"{NOT_TOLD}, and {data} cannot be read ({reason}): {ASK_TOPSIDE}")


def _is_held(data: Path) -> bool:
    try:
        data.stat()  # a folder that this user may not see is another thing than none
    except FileNotFoundError:
        return False
    return bool(lockers_of(str(data)))


def _open_recording(data: Path) -> Path | None:
    for name in read_json(data / FILE, list[str]) or []:
        record = read_json(data / name / "session.json", StreamRecord)
        if record is not None and record.state == "recording":
            return data / name
    return None


def _newest_chunk(folder: Path) -> tuple[Path, int, int]:
    """Its path (the folder's, if there is none), how many rows it has, and when it last grew, in UTC ns."""
    chunks = chunk_files(folder)
    path = chunks[-1][1] if chunks else folder
    return path, scan(path.read_bytes()).rows if chunks else 0, path.stat().st_mtime_ns


def check_recording(path: Path, rows: int, grew_ns: int, now_ns: int) -> Finding:
    """An open recording by its newest chunk. grew_ns: when it last grew."""
    age_s = max(0.0, (now_ns - grew_ns) / 1e9)
    where = f"{path.parent.name}/{path.name}"
    found = f"{NOT_TOLD}; it is recording, {rows} rows in {where}, the last {age_s:.0f} s ago"
    if age_s < QUIET_S and rows:
        return Finding("ok", "sensor", found)
    return Finding("warn", "sensor", f"{found}: check cable, power and disk; {ASK_TOPSIDE}")


def check_config(config: Config) -> Iterator[Finding]:
    """What the configuration and the keys tell."""
    if config.security == "paired" and _is_hidden(Path(config.data) / KEYS / "partners.json"):
        text = f"paired; with whom, this user may not read: ask again with `sudo -u {USER}`"
        yield Finding("warn", "security", text)
    else:
        keyring = Keyring(Path(config.data), SystemClock())
        partners = [one.name for one in keyring.partners] if config.security == "paired" else []
        yield check_security(config.security, config.http, partners)
    if config.security == "paired":
        yield from check_reach(config.http, config.bus)
    if config.simulation.active:
        text = "the clock is wrong on purpose: take [simulation] out of the configuration"
        yield Finding("warn", "simulation", text)


def _is_hidden(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


async def _running(http: str) -> Running | None:
    told = await get_json(f"{own_url(http)}/version")
    if told is None or "api" not in told:
        return None
    return Running(str(told.get("git")), told.get("protocol"), told)


def _addresses(config: Config, running: Running | None, own: list[Program]) -> Iterator[Finding]:
    yield look_at_address(Listening("http", config.http), running, own)
    yield look_at_address(Listening("bus", config.bus), running, own)
    host, port = split_address(config.time or config.http)
    port += 0 if config.time else TIME_PORT_ABOVE_HTTP
    finding = look_at_address(Listening("time", f"{host}:{port}", "udp"), running, own)
    if finding.level == "FAIL" and config.time is None:
        finding = Finding("warn", "time", f"{finding.detail}; else any free port is taken")
    yield finding
