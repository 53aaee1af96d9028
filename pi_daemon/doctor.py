"""`python -m pi_daemon doctor`: the Pi's part of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.doctor import (
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
from common.holders import Program
from common.keys import Keyring
from common.service import ConfigError, read_config, split_address
from pi_daemon.config import Config
from pi_daemon.daemon import TIME_PORT_ABOVE_HTTP

SAMPLE = "deploy/pi.toml has every key"
NOT_TOLD = Finding(
    "warn",
    "sensor",
    "the running daemon has it, and tells only whom it is paired with: ask `python -m topside_daemon doctor`",
)


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
        yield NOT_TOLD if health is None else check_told(health)
    elif config.serial.port is None:
        yield Finding("FAIL", "sensor", "no port is configured: name the sensor's port with --serial PORT")
    else:
        yield await look_at_sensor(config.serial, clock)


def check_config(config: Config) -> Iterator[Finding]:
    """What the configuration and the keys tell."""
    keyring = Keyring(Path(config.data), SystemClock())
    partners = [one.name for one in keyring.partners] if config.security == "paired" else []
    yield check_security(config.security, config.http, partners)
    if config.security == "paired":
        yield from check_reach(config.http, config.bus)
    if config.simulation.active:
        text = "the clock is wrong on purpose: take [simulation] out of the configuration"
        yield Finding("warn", "simulation", text)


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
