"""`python -m topside_daemon`: run the topside daemon, or talk to the one that runs."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

import aiohttp

from common.doctor import add_looks, run_doctor
from common.probe import run_probe
from common.service import CHECK_HELP, EXIT_LOSS, check_config, serve
from topside_daemon.config import Config
from topside_daemon.daemon import Daemon
from topside_daemon.demo import add_demo_flags, demo
from topside_daemon.doctor import examine
from topside_daemon.pairing import add_pair_flags, pair
from topside_daemon.pull import add_pull_flags, pull
from topside_daemon.words import session_text, status_text

CALL_S = 90.0  # longer than the daemon waits for the Pi at a stop
REFUSED = 1
CALLS = {
    "start": ("POST", "/session/start"),
    "stop": ("POST", "/session/stop"),
    "mark": ("POST", "/session/mark"),
    "status": ("GET", "/status"),
}


def parser() -> argparse.ArgumentParser:
    """The command line; every flag of the daemon lays over the configuration file."""
    top = argparse.ArgumentParser(
        prog="python -m topside_daemon", description="Record the surface sensor and follow the in-water one."
    )
    add_daemon_flags(top)
    top.add_argument("--check-config", action="store_true", help=CHECK_HELP)
    commands = top.add_subparsers(dest="command", title="talk to the running daemon, or show what it does")
    for name, text in (
        ("start", "begin a session"),
        ("stop", "end the session; returns when both sides agree"),
        ("mark", "write a labelled marker into both records, or into the one that can be reached"),
        ("status", "where everything stands"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--http", dest="daemon", metavar="HOST:PORT", help=f"default {Config().http}")
        command.add_argument("--json", action="store_true", help="print the answer as JSON")
        if name == "start":
            command.add_argument("--mission", default="mission", help="what the folder will be called")
        if name == "mark":
            command.add_argument("label", help="what happened")
    text = "complete and prove the copy of one recording of the Pi"
    add_pull_flags(commands.add_parser("pull", help=text, description=text))
    text = "be let in by a Pi, once, with the code that it shows"
    add_pair_flags(commands.add_parser("pair", help=text, description=text))
    add_demo_flags(commands.add_parser("demo", help="both daemons and two simulated sensors in one go"))
    add_looks(commands, add_daemon_flags)
    return top


def add_daemon_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration")
    flags.add_argument("--pi", metavar="URL", help="the Pi daemon, for example http://192.168.2.2:9150")
    flags.add_argument(
        "--serial", metavar="PORT", help="the surface sensor: device path, by-id or by-path link"
    )
    flags.add_argument("--baud", type=int, help="the surface sensor's speed (default 9600)")
    flags.add_argument("--data", metavar="DIR", help="where sessions are kept")
    flags.add_argument("--http", metavar="HOST:PORT", help="default 127.0.0.1:9160")
    flags.add_argument("--bus", metavar="tcp://HOST:PORT", help="default tcp://127.0.0.1:9161")
    flags.add_argument("--security", choices=("local", "legacy-lan"), help="who may ask; default local")
    flags.add_argument("--log-level", choices=("debug", "info", "warning", "error"))


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "demo":
        return demo(options)
    if options.command == "pull":
        return pull(options)
    if options.command == "pair":
        return pair(options, Path(options.data) if options.data else None)
    if options.command == "probe":
        return run_probe(options)
    if options.command in CALLS:
        return asyncio.run(_talk(options))
    overrides = {
        "pi": options.pi,
        "serial.port": options.serial,
        "serial.baud": options.baud,
        "data": options.data,
        "http": options.http,
        "bus": options.bus,
        "security": options.security,
        "log_level": options.log_level,
    }
    if options.command == "doctor":
        return run_doctor(examine(options.config, overrides), options.json)
    if options.check_config:
        return check_config(options.config, Config, overrides)
    return serve(options.config, Config, overrides, Daemon)


async def _talk(options: argparse.Namespace) -> int:
    """Make one call to the daemon and print its answer."""
    method, path = CALLS[options.command]
    wanted: dict[str, str] = {}
    if options.command == "start":
        wanted = {"mission": options.mission}
    elif options.command == "mark":
        wanted = {"label": options.label}
    daemon = options.daemon or options.http or Config().http
    timeout = aiohttp.ClientTimeout(total=CALL_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.request(method, f"http://{daemon}{path}", json=wanted) as response,
        ):
            status, said = response.status, await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        reason = str(error) or type(error).__name__
        print(f"no topside daemon at {daemon}: {reason}: start one, or give --http", file=sys.stderr)
        return REFUSED
    if status != 200:
        print(said.get("detail", said), file=sys.stderr)
        return REFUSED
    if options.json:
        print(json.dumps(said))
    elif options.command == "mark":
        where = "both records" if said["on_pi"] else "the surface record only"
        print(f"{options.label!r} ({said['kind']} {said['sequence']}) at {said['timestamp']} in {where}")
        if said["detail"]:
            print(said["detail"])
    elif options.command == "status":
        print(status_text(said))
    else:
        print(session_text(said))
    if options.command == "stop" and said["state"] != "complete":
        return EXIT_LOSS
    return 0


if __name__ == "__main__":
    sys.exit(main())
