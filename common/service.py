"""One lifecycle for both daemons: logging, signals, supervised tasks, readiness, watchdog, exit code.

Nothing else touches signals or exit codes.
"""

import asyncio
import json
import logging
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from msgspec import inspect

from common import disk
from common.files import FolderInUse, FolderLock, make_folder
from common.messages import UNDECODABLE

log = logging.getLogger(__name__)

NICE = -10
SWITCH_S = 0.0005  # after which a thread that computes lets the one go on that has bytes to stamp
DISK_LIMIT_S = 1.0  # that the end waits for disks
CHECK_HELP = "say whether the configuration is fine, and start nothing"
EXIT_LOSS = 3
EXIT_SOFTWARE = 70
EXIT_CONFIG = 78
SHOWN = 60  # characters of a wrong value
ANYWHERE = ("0.0.0.0", "::", "*")

_PLACE = re.compile(r" - at `\$\.?(?P<key>[^`\[]*)[^`]*`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`( - at |$)", re.DOTALL)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]*/?|null", re.IGNORECASE)
_FLAGS = {"serial.port": "--serial", "serial.baud": "--baud"}  # the others are called as their keys


_taken: list[FolderLock] = []


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
        disk.finish(DISK_LIMIT_S)
        return code

    sys.setswitchinterval(SWITCH_S)
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
        by_file = path is not None and _refusal(path, kind) == str(error)
        raise ConfigError(f"{path if by_file else 'command line'}: {error}") from None
    return config


def _refusal(path: Path, kind: type[OwnConfig]) -> str:
    """What is wrong with the file as it is, whatever the command line says."""
    try:
        load_config(path, kind, {}).check()
    except ConfigError as error:
        return str(error)
    return ""


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
                    raise ConfigError(f"{path}: {name}: must be a table: write [{name}]")
            branch[leaf] = value
    for key, text in _texts_in(tree):
        if "\0" in text:
            raise ConfigError(f"{path}: {key}: {text!r} holds the character NUL, which no name can have")
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        key, trouble = _explain(error, tree, kind)
        if overrides.get(key) is None:
            raise ConfigError(f"{path}: {key}: {trouble}") from None
        flag = _FLAGS.get(key, f"--{key.replace('_', '-')}")
        named = flag if flag == f"--{key}" else f"{flag} ({key})"
        raise ConfigError(f"command line: {named}: {trouble}") from None


def _texts_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a tree, and the dotted key that each stands at."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts_in(one, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for one in value:
            yield from _texts_in(one, key)


def _explain(error: msgspec.ValidationError, tree: Mapping[str, Any], kind: type[Config]) -> tuple[str, str]:
    """The dotted key that msgspec refuses, and in plain words what may stand there."""
    text, place = str(error), _PLACE.search(str(error))
    key = place["key"] if place else ""
    if unknown := _UNKNOWN.match(text):
        name = " ".join(unknown["name"].split())
        return f"{key}.{name}" if key else name, _no_such_key(name, key, list(_keys_of(kind)))
    what, value = inspect.type_info(kind), tree
    for name in key.split("."):
        assert isinstance(what, inspect.StructType)
        what = next(field.type for field in what.fields if field.encode_name == name)
        value = value[name]
    shown = str(value) if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
    return key, f"must be {demanded(what)}, not {shown if len(shown) <= SHOWN else f'{shown[:SHOWN]}...'}"


def demanded(what: inspect.Type) -> str:
    """What a value must be, in plain words, to go behind `must be`."""
    match what:
        case inspect.UnionType():
            return " or ".join(demanded(one) for one in what.types if not isinstance(one, inspect.NoneType))
        case inspect.LiteralType():
            return f"one of {', '.join(msgspec.json.encode(one).decode() for one in what.values)}"
        case inspect.StrType():
            return "a text, in quotes" + (f", of the form {what.pattern}" if what.pattern else "")
        case inspect.IntType() | inspect.FloatType():
            return _number(what)
        case inspect.BoolType():
            return "true or false"
        case inspect.VarTupleType() | inspect.ListType():
            most = f" of at most {what.max_length}" if what.max_length else ""
            return f"a list in [ ]{most}, each {demanded(what.item_type)}"
        case _:
            return "a table of its own, in [ ]"


def _number(what: inspect.IntType | inspect.FloatType) -> str:
    bounds = {"at least": what.ge, "above": what.gt, "at most": what.le, "below": what.lt}
    limits = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
    kind = "a whole number" if isinstance(what, inspect.IntType) else "a number"
    return f"{kind}, {limits}" if limits else kind


def _keys_of(kind: type[msgspec.Struct], table: str = "") -> Iterator[str]:
    """Every dotted key, those of tables too."""
    for field in msgspec.structs.fields(kind):
        yield f"{table}{field.encode_name}"
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _keys_of(field.type, f"{table}{field.encode_name}.")


def _no_such_key(name: str, table: str, keys: list[str]) -> str:
    """name: as it was written in *table*, "" for none. The cure: the keys that may have been meant."""
    here = [key for key in keys if key.rpartition(".")[0] == table]
    leaves = {key.rpartition(".")[2] for key in keys}
    near = get_close_matches(name, [key.rpartition(".")[2] for key in here], 1)
    near = near or get_close_matches(name, leaves, 1)
    meant = [key for key in here if key.rpartition(".")[2] in near]
    meant = meant or [key for key in keys if key.rpartition(".")[2] in near]
    if meant:
        return f"there is no such key: did you mean {' or '.join(_written(key, table) for key in meant)}?"
    return f"there is no such key: there are {', '.join(_written(key, table) for key in here)}"


def _written(key: str, table: str) -> str:
    """A dotted key as one would write it, seen from *table*."""
    parent, _, leaf = key.rpartition(".")
    if parent == table:
        return leaf
    return f"[{parent}] {leaf}" if parent else f"{leaf} above the first [table]"


def take_folder(folder: Path) -> None:
    """Make the data folder and hold it until the process ends: what disks were asked for last is written
    until then.

    Raises:
        FolderInUse: another process holds it.
        ConfigError: it cannot be made or written.
    """
    try:
        make_folder(folder)
        _taken.append(FolderLock(folder))
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


def check_data(folder: str) -> None:
    """Whether it names a folder.

    Raises:
        ConfigError: it names none.
    """
    if not folder.strip():
        raise ConfigError('data: must name a folder: write "qsensor-data", or leave it out')


def check_apart(http: str, bus: str) -> None:
    """Whether both addresses can be listened on at once.

    Raises:
        ConfigError: one port is wanted twice.
    """
    (one, port), (other, second) = split_address(http), split_address(bus)
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (one, other)}
    if port == second != 0 and (len(hosts) == 1 or hosts & set(ANYWHERE)):
        raise ConfigError(f"http and bus both want port {port}: give one of them another, --bus say")


def check_origins(origins: Sequence[str]) -> None:
    """Whether a browser may ever say that it comes from there.

    Raises:
        ConfigError: one is not `SCHEME://HOST` or `SCHEME://HOST:PORT`.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            host = re.sub(r"^\w+://|/.*", "", origin) or "HOST"
            raise ConfigError(
                f'origins: {origin!r} is not SCHEME://HOST or SCHEME://HOST:PORT: write "http://{host}"'
            )
