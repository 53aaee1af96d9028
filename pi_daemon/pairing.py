"""`pair`: show a code with which one topside can be paired, and who is."""

import argparse
import socket
import sys
from pathlib import Path

from common.clock import SystemClock
from common.keys import CODE_NS, Keyring, as_owner
from common.service import EXIT_CONFIG, split_address
from pi_daemon.config import Config

REFUSED = 1


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show who is paired")
    what.add_argument("--forget", metavar="NAME", help="let this one in no more")


def pair(options: argparse.Namespace, config: Config) -> int:
    """The command; returns its exit code. The daemon may be running: it looks at the keys itself."""
    if config.security == "local" and not options.list and options.forget is None:
        print(
            "security is local here, so that nothing is to be paired: give the --config, or the --data and "
            '--security, of the daemon; or set security = "paired" first',
            file=sys.stderr,
        )
        return EXIT_CONFIG
    data = Path(config.data)
    if not data.is_dir():
        print(f"{data}: no daemon has its data there: give its --data, and start it first", file=sys.stderr)
        return REFUSED
    try:
        as_owner(data)
        return _done(options, config.located(), Keyring(data, SystemClock()))
    except (OSError, ValueError) as error:
        print(f"{data}/keys: {error}: run this as the daemon's user, or as root", file=sys.stderr)
        return REFUSED


def _done(options: argparse.Namespace, config: Config, keyring: Keyring) -> int:
    if options.list:
        for one in keyring.partners:
            print(f"{one.name:20} since {one.since}")
        return 0
    if options.forget is not None:
        if not keyring.forget(options.forget):
            print(f"nobody is called {options.forget!r}: --list shows who is paired", file=sys.stderr)
            return REFUSED
        print(f"{options.forget} is forgotten")
        return 0
    host, port = split_address(config.http)
    host = f"{socket.gethostname()}.local" if host in ("0.0.0.0", "::") else host
    code = keyring.offer()
    print(f"the code is {code}, for {CODE_NS // 60_000_000_000} minutes and one machine; topside:")
    print(f"    python -m topside_daemon pair http://{host}:{port} {code}")
    return 0
