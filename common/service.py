"""One lifecycle for both daemons: logging, signals, supervised tasks, readiness, watchdog, exit code.

Nothing else touches signals or exit codes.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from common.files import FolderInUse, FolderLock, make_folder
from common.messages import UNDECODABLE

log = logging.getLogger(__name__)

NICE = -10
CHECK_HELP = "say whether the configuration is fine, and start nothing"
EXIT_LOSS = 3
EXIT_SOFTWARE = 70
EXIT_CONFIG = 78


class DaemonConfig(msgspec.Struct, frozen=True):
    """What every daemon's configuration has."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def check(self) -> None:
        """Look at what the types of the fields do not tell.

        Raises:
            ConfigError: a value cannot be used.
        """


Config = TypeVar("Config", bound=msgspec.Struct)
OwnConfig = TypeVar("OwnConfig", bound=DaemonConfig)


class ConfigError(Exception):
    """The operator's to mend: one line that names the cause and the cure."""


class _Stop(Exception):
    """Somebody asked the daemon to end."""


class Supervisor:
    """Runs the daemon's parts together: when one fails, or a stop is asked for, all are unwound."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._group = asyncio.TaskGroup()

    def stop(self) -> None:
        self._stopping.set()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run *work*, which may return; if it raises, the daemon ends."""
        return self._group.create_task(work, name=name)

    def keep(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run *work*, which must not return; if it does or raises, the daemon ends."""
        self._group.create_task(_must_not_return(name, work), name=name)

    async def run(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Call *begin*, which starts the parts, then run until `stop`.

        Raises:
            ExceptionGroup: *begin* or a part failed.
        """
        try:
            async with self._group:
                self._group.create_task(self._until_stopped())
                await begin()
        except* _Stop:
            pass

    async def _until_stopped(self) -> None:
        await self._stopping.wait()
        raise _Stop


async def _must_not_return(name: str, work: Coroutine[Any, Any, None]) -> None:
    await work
    raise RuntimeError(f"{name} returned")


class Daemon(Protocol):
    """What a daemon is to its lifecycle."""

    async def run(self) -> None:
        """Serve until the supervisor is told to stop."""


def serve(
    config_file: Path | None,
    kind: type[OwnConfig],
    overrides: Mapping[str, Any],
    daemon: Callable[[OwnConfig, Supervisor], Daemon],
) -> int:
    """Read the configuration, start logging as its `log_level` says, and run; returns the exit code."""
    try:
        config = read_config(config_file, kind, overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    start_logging(config.log_level)

    async def main(supervisor: Supervisor) -> None:
        await daemon(config, supervisor).run()

    return run_daemon(main)


def check_config(config_file: Path | None, kind: type[OwnConfig], overrides: Mapping[str, Any]) -> int:
    """Say whether a daemon would take its configuration, and start nothing; returns the exit code."""
    try:
        read_config(config_file, kind, overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    print(f"{config_file or 'command line'}: fine")
    return 0


def run_daemon(main: Callable[[Supervisor], Awaitable[None]]) -> int:
    """Run *main* in a loop that ends on SIGTERM or SIGINT; returns the exit code."""

    async def guarded() -> int:
        supervisor = Supervisor()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        code = 0
        try:
            await main(supervisor)
        except* (ConfigError, FolderInUse) as group:
            print(_first(group), file=sys.stderr)
            code = EXIT_CONFIG
        except* Exception:
            log.exception("ending: a part of the daemon failed")
            code = EXIT_SOFTWARE
        return code

    _take_descriptors()
    with suppress(OSError):  # a stamp is only as good as the wake-up; where that is allowed, be woken first
        os.nice(NICE)
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(guarded())


def _take_descriptors() -> None:
    """As many as are to be had: strangers on the network use up some, and chunks need theirs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def start_logging(level: str) -> None:
    """Log to stderr; under journald with its priority prefixes instead of times."""
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Else every malformed request writes a traceback; failures of our own are logged by common.web.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = 7 - (min(record.levelno, logging.CRITICAL) - 1) // 10  # DEBUG 7 ... CRITICAL 3
        return f"<{priority}>{super().format(record)}"


def notify(state: str) -> None:
    """Tell systemd, if it started us: `READY=1`, `WATCHDOG=1`, `STATUS=...`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendto(state.encode("utf-8"), address)
        except OSError as error:
            log.warning("the service manager does not listen: %s", error.strerror)


class Pulse:
    """Whether every part of a daemon makes progress.

    Each part gives a number that grows with its work, also with work in vain, or None when it has none.
    """

    def __init__(self, parts: Mapping[str, Callable[[], int | None]]) -> None:
        self._parts = parts
        self._seen: dict[str, int | None] = {}
        self._stuck: list[str] = []

    def beats(self) -> bool:
        """All parts have come further since the last call; what has not is logged."""
        now = {name: turns() for name, turns in self._parts.items()}
        stuck = [name for name, turns in now.items() if turns is not None and turns == self._seen.get(name)]
        if stuck and stuck != self._stuck:
            log.error("no progress: %s", ", ".join(stuck))
        self._seen, self._stuck = now, stuck
        return not stuck


async def watchdog(alive: Callable[[], bool]) -> None:
    """Ping systemd's watchdog at half its period, as long as *alive* says that work progresses."""
    period_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
    while True:
        await asyncio.sleep(period_s or 3600)
        if period_s and alive():
            notify("WATCHDOG=1")


def read_config(path: Path | None, kind: type[OwnConfig], overrides: Mapping[str, Any]) -> OwnConfig:
    """As `load_config`, and every value checked.

    Raises:
        ConfigError: the file or a value cannot be used.
    """
    config = load_config(path, kind, overrides)
    try:
        config.check()
    except ConfigError as error:
        raise ConfigError(f"{path or 'command line'}: {error}") from None
    return config


def load_config(path: Path | None, kind: type[Config], overrides: Mapping[str, Any]) -> Config:
    """Read a TOML file and lay the command line's values over it.

    Args:
        path: the file, None for defaults only.
        kind: the configuration; its defaults, ranges and unknown-key rule apply.
        overrides: dotted key to value, for example `{"serial.port": "/dev/ttyUSB0"}`; None is skipped.

    Raises:
        ConfigError: missing file, bad TOML, unknown key, value out of range.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = msgspec.toml.decode(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}: give --config an existing file") from None
        except UNDECODABLE as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for key, value in overrides.items():
        if value is not None:
            *parents, leaf = key.split(".")
            branch = tree
            for name in parents:
                branch = branch.setdefault(name, {})
                if not isinstance(branch, dict):
                    raise ConfigError(f"{path}: {name} is a table: write [{name}]")
            branch[leaf] = value
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'command line'}: {error}") from None


def take_folder(folder: Path) -> FolderLock:
    """Make the data folder and hold it for this process.

    Raises:
        FolderInUse: another process holds it.
        ConfigError: it cannot be made or written.
    """
    try:
        make_folder(folder)
        return FolderLock(folder)
    except OSError as error:
        raise ConfigError(f"data folder {folder}: {error.strerror}: choose another --data") from None


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT, or SCHEME://HOST:PORT, as (host, port).

    Raises:
        ConfigError: it is not of that form.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not HOST:PORT, for example 127.0.0.1:9150")
    return host.strip("[]"), int(port)
