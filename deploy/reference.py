"""Writes reference.md from the types: `make reference`."""

import asyncio
import inspect
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Raw, Struct

from common.announcer import Announcer
from common.bus import CLOCK_MODEL, FUSED_ROW, INWATER, Publisher
from common.clock import SystemClock
from common.guard import Guard
from common.instrument import Instrument, SerialSettings
from common.manifest import Manifest
from common.messages import (
    ChunkFrame,
    ClockFrame,
    Event,
    Exchange,
    FusedFrame,
    Marker,
    MarkerFrame,
    ReadingFrame,
    StatusFrame,
)
from common.recording import StreamRecord
from common.rows import HEADER
from common.service import Supervisor
from common.web import Call
from pi_daemon.api import Api
from pi_daemon.config import Config
from pi_daemon.sessions import Sessions
from topside_daemon.api import Api as TopsideApi
from topside_daemon.fusion.report import Report
from topside_daemon.fusion.tables import columns_of
from topside_daemon.products import SessionRecord
from topside_daemon.watchers import Watchers

HEAD = """\
# Reference

Made from the types by `make reference`; do not edit. The Pi serves its part of it at `/docs`, to read, and
both daemons theirs at `/openapi.json`, for programs. A request that is not met is answered with
`{"detail": "one line: cause and cure"}`.
"""
BUS = (
    (f"{INWATER}reading", ReadingFrame),
    (f"{INWATER}marker", MarkerFrame),
    (f"{INWATER}chunk", ChunkFrame),
    (f"{INWATER}status", StatusFrame),
    (FUSED_ROW, FusedFrame),
    (CLOCK_MODEL, ClockFrame),
)
_WORDS = {
    None: "",
    type(None): "null",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Raw: "number",
    Any: "anything",
    dict: "object",
}
FILES = (
    ("session.json of a stream", StreamRecord),
    ("session.json of a session", SessionRecord),
    ("manifest.json", Manifest),
    ("markers.jsonl, a line", Marker),
    ("events.jsonl, a line", Event),
    ("exchanges.jsonl, a line", Exchange),
    ("unified_session.json", Report),
)


async def pi_calls(data: Path) -> list[Call]:
    """Of a Pi daemon that is never started."""
    clock, publisher, supervisor = SystemClock(), Publisher("tcp://127.0.0.1:0"), Supervisor()
    try:
        instrument = Instrument(SerialSettings(), clock, lambda _: None, lambda *_: None, lambda: False)
        announcer = Announcer(publisher, INWATER, clock)
        sessions = Sessions(Config(data=str(data)), clock, announcer, supervisor, instrument)
        return Api(sessions, instrument, clock).site.calls
    finally:
        publisher.close()


def topside_calls() -> list[Call]:
    nobody = Watchers(dict)
    return TopsideApi(None, Guard("local", SystemClock()), nobody).site.calls  # type: ignore[arg-type]


def call_lines(calls: Sequence[Call], lock: bool) -> Iterator[str]:
    """A table of calls; the same call under `/sensor` is left out. lock: mark those that are not public."""
    yield from ("| call | meaning | query | body | answer |", "|---|---|---|---|---|")
    for call in calls:
        if not call.path.startswith("/sensor/"):
            gives = _named(call.gives) if call.gives is not None else call.kind
            locked = " 🔒" if lock and not call.public else ""
            yield (
                f"| `{call.method} {call.path}`{locked} | {call.meaning} | {_named(call.query)} "
                f"| {_named(call.body)} | {gives} |"
            )


def kind_lines(title: str, kind: Any) -> Iterator[str]:
    """A type: what it is, and its fields."""
    yield from ("", f"### {title}", "")
    if issubclass(kind, Struct) and kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("):
        yield from (inspect.cleandoc(kind.__doc__), "")
    yield from ("| field | type | default |", "|---|---|---|")
    for one in msgspec.structs.fields(kind):
        default = "" if one.required else f"`{_default(one)}`"
        yield f"| `{one.encode_name}` | {_named(one.type)} | {default} |"


def _default(one: msgspec.structs.FieldInfo) -> str:
    if one.default is not msgspec.NODEFAULT:
        return "absent" if one.default is msgspec.UNSET else msgspec.json.encode(one.default).decode()
    return msgspec.json.encode(one.default_factory()).decode()


def _named(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(inner[0]) + "".join(_limits(one) for one in inner[1:] if isinstance(one, Meta))
    if origin in (Union, UnionType):
        return " or ".join(_named(one) for one in inner if one is not msgspec.UnsetType)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin in (list, tuple, Sequence):
        return f"list of {_named(inner[0])}"
    if origin is dict:
        return f"object of {_named(inner[1])}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _limits(meta: Meta) -> str:
    """As in ` 1 to 300`; the widest numbers are no limits."""
    if meta.pattern:
        return f" like `{meta.pattern}`".replace("|", "\\|")
    if meta.max_length is not None:
        return f", at most {meta.max_length} long"
    low, high = (meta.ge if meta.ge is not None else meta.gt), meta.le
    if low is not None and high is not None:
        return "" if high >= 2**62 else f" {low} to {high}"
    return f" above {meta.gt}" if meta.gt is not None else f" from {low}" if low is not None else ""


def _kinds_of(calls: Sequence[Call]) -> list[Any]:
    """The named types that calls take and give, once each."""
    found: dict[str, Any] = {}
    for call in calls:
        for kind in (call.query, call.body, call.gives):
            for one in (kind, *getattr(kind, "__args__", ())):
                if isinstance(one, type) and issubclass(one, Struct):
                    found[one.__name__] = one
    return [found[name] for name in sorted(found)]


def text() -> str:
    """All of it."""
    with tempfile.TemporaryDirectory() as data:
        pi = asyncio.run(pi_calls(Path(data)))
    topside = topside_calls()
    lines = [HEAD, "## Calls of the Pi", ""]
    lines += ["🔒: with a token, where security is `paired`. Most also answer below `/sensor`.", ""]
    lines += [
        *call_lines(pi, lock=True),
        "",
        "`/stream` is a WebSocket with the newest reading, as `/latest` gives it.",
    ]
    for kind in _kinds_of(pi):
        lines += kind_lines(kind.__name__, kind)
    lines += ["", "## Calls of the topside daemon", "", *call_lines(topside, lock=False), ""]
    lines += [
        '`/ws/live` is a WebSocket: `{"kind": "row", ...}`, else as `qsensor/fused/row`, for each fused'
    ]
    lines += ['row, and `{"kind": "status", ...}`, else as `/status`, each second.']
    for kind in _kinds_of(topside):
        lines += kind_lines(kind.__name__, kind)
    lines += [
        "",
        "## Messages of the bus",
        "",
        "`[topic][JSON object][ASCII decimal seconds]`, each a ZeroMQ frame.",
    ]
    for topic, kind in BUS:
        lines += kind_lines(topic, kind)
    lines += ["", "## Files", "", f"A chunk begins with `{HEADER}`.", ""]
    lines += [f"`unified_session.csv` begins with `{','.join(columns_of(percent=False))}`."]
    for title, kind in FILES:
        lines += kind_lines(title, kind)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("reference.md").write_text(text(), encoding="utf-8")
