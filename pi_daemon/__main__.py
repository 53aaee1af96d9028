"""`python -m pi_daemon`: run the Pi daemon, or find out why it would not run well."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from common.doctor import add_looks, run_doctor
from common.guard import Security
from common.probe import run_probe
from common.service import CHECK_HELP, EXIT_CONFIG, ConfigError, check_config, load_config, serve
from pi_daemon.config import Config
from pi_daemon.daemon import Daemon
from pi_daemon.doctor import examine
from pi_daemon.pairing import add_pair_flags, pair


def parser() -> argparse.ArgumentParser:
    """The command line; every flag of the daemon lays over the configuration file."""
    top = argparse.ArgumentParser(prog="python -m pi_daemon", description="Record the in-water sensor.")
    add_daemon_flags(top)
    top.add_argument("--check-config", action="store_true", help=CHECK_HELP)
    commands = top.add_subparsers(dest="command", title="instead of running")
    add_looks(commands, add_daemon_flags)
    text = "show a code for one topside to be paired with, or who is paired"
    add_pair_flags(commands.add_parser("pair", help=text, description=text))
    return top


def add_daemon_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration")
    flags.add_argument("--serial", metavar="PORT", help="device path, by-id or by-path link")
    flags.add_argument("--baud", type=int, help="the sensor's speed (default 9600)")
    flags.add_argument("--data", metavar="DIR", help="where recordings are kept")
    flags.add_argument("--http", metavar="HOST:PORT", help="default 127.0.0.1:9150")
    flags.add_argument("--bus", metavar="tcp://HOST:PORT", help="default tcp://127.0.0.1:9151")
    flags.add_argument("--time", metavar="HOST:PORT", help="udp; default two above the http port")
    flags.add_argument(
        "--security",
        choices=get_args(Security),
        help="who may ask: this machine only, whoever is paired, or everybody on the network; default local",
    )
    flags.add_argument("--log-level", choices=("debug", "info", "warning", "error"))


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "probe":
        return run_probe(options)
    overrides = {
        "serial.port": options.serial,
        "serial.baud": options.baud,
        "data": options.data,
        "http": options.http,
        "bus": options.bus,
        "time": options.time,
        "security": options.security,
        "log_level": options.log_level,
    }
    if options.command == "pair":
        try:
            return pair(options, load_config(options.config, Config, overrides))
        except ConfigError as error:
            print(error, file=sys.stderr)
            return EXIT_CONFIG
    if options.command == "doctor":
        return run_doctor(examine(options.config, overrides), options.json)
    if options.check_config:
        return check_config(options.config, Config, overrides)
    return serve(options.config, Config, overrides, Daemon)


if __name__ == "__main__":
    sys.exit(main())
