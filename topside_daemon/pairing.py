"""`pair`: show a Pi the code that it has shown, and keep what it gives."""

import argparse
import asyncio
import re
import socket
import sys
from pathlib import Path

import aiohttp

from common.clock import Clock, SystemClock
from common.keys import Pass, Wallet, as_owner
from common.rows import format_utc
from common.service import ConfigError
from topside_daemon.config import Config
from topside_daemon.pi import Pi, PiError

REFUSED = 1
ASK_S = 5.0


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the Pi, for example http://192.168.2.2:9150")
    parser.add_argument("code", metavar="CODE", help='what "python -m pi_daemon pair" shows there')
    parser.add_argument("--name", help="what the Pi is to call this machine; default its own name")


def pair(options: argparse.Namespace, data: Path | None) -> int:
    """The command; returns its exit code. data: of the topside daemon; None asks the one that runs."""
    name = options.name or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._") or "topside"
    http = options.http or Config().http
    data = data or asyncio.run(_data_of(http))
    if data is None:
        print(f"no topside daemon at {http}: start it, or give its --data or --http", file=sys.stderr)
        return REFUSED
    try:
        if data.is_dir():
            as_owner(data)
        asyncio.run(_pair(options.url, options.code, name, Wallet(data), SystemClock()))
    except (ConfigError, PiError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    except (OSError, ValueError) as error:
        print(f"{data / 'keys'}: {error}: run this as the daemon's user, or as root", file=sys.stderr)
        return REFUSED
    print(f"paired with {options.url}, which calls this machine {name}; the keys are in {data / 'keys'}")
    return 0


async def _data_of(http: str) -> Path | None:
    """The data folder of the daemon that runs there, if one does."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S)) as session,
            session.get(f"http://{http}/status") as answer,
        ):
            return Path((await answer.json())["data"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return None


async def _pair(url: str, code: str, name: str, wallet: Wallet, clock: Clock) -> None:
    pi = Pi(url, clock)
    pi.open()
    try:
        public = wallet.key_pair().public
        given = await pi.pair(code, public, name)
        wallet.keep(Pass(pi.url, given.token, given.bus_key, format_utc(clock.utc_ns())))
    finally:
        await pi.close()
