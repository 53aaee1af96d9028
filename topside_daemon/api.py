"""The topside daemon's HTTP calls: start, stop and mark a session, and see where it stands."""

from pathlib import Path
from typing import Annotated, Any, Protocol

from aiohttp import web
from msgspec import Meta, Struct

from common import VERSION
from common.guard import Guard
from common.messages import Line, to_json
from common.metrics import Metric, exposition
from common.openapi import document
from common.web import Site, answer
from topside_daemon.watchers import Watchers

PAGE = Path(__file__).with_name("page.html").read_bytes()


class StartRequest(Struct):
    mission: Annotated[Line, Meta(min_length=1)] = "mission"


class MarkRequest(Struct):
    label: Annotated[Line, Meta(min_length=1)]


class Deckhand(Protocol):
    """Who carries the calls out; all may raise `common.web.Refused`."""

    async def start(self, mission: str) -> dict[str, Any]: ...

    async def stop(self) -> dict[str, Any]: ...

    async def mark(self, label: str) -> dict[str, Any]: ...

    def status(self) -> dict[str, Any]: ...

    def metrics(self) -> list[Metric]: ...


class Api:
    """Routes and their answers; holds no state of its own."""

    def __init__(self, deckhand: Deckhand, guard: Guard, watchers: Watchers) -> None:
        self._deckhand = deckhand
        self.site = site = Site(guard)
        site.serve("/", self.page, "text/html")
        site.serve("/ws/live", watchers.watch, "WebSocket", shown=False)
        site.get("/status", self.status)
        site.serve("/metrics", self.metrics, "text/plain")
        site.post("/session/start", self.start)
        site.post("/session/stop", self.stop)
        site.post("/session/mark", self.mark)
        site.serve("/openapi.json", self.openapi, "application/json", shown=False)
        meaning = "The topside daemon: sessions, markers, and where everything stands."
        self._document = to_json(document(site.calls, "Q-Sensor topside", VERSION, meaning))

    async def page(self, request: web.Request) -> web.Response:
        """A page for people, the state for programs."""
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(body=PAGE, content_type="text/html", charset="utf-8")
        return answer(await self.status())

    async def start(self, body: StartRequest) -> dict[str, Any]:
        """Begin a session."""
        return await self._deckhand.start(body.mission)

    async def stop(self) -> dict[str, Any]:
        """End the session; answers when both sides agree, or it is clear why they cannot."""
        return await self._deckhand.stop()

    async def mark(self, body: MarkRequest) -> dict[str, Any]:
        """Write a labelled marker into both records, or into the one that can be reached."""
        return await self._deckhand.mark(body.label)

    async def status(self) -> dict[str, Any]:
        """Where everything stands."""
        return self._deckhand.status()

    async def metrics(self, _request: web.Request) -> web.Response:
        """Counters and gauges for Prometheus."""
        return exposition(self._deckhand.metrics())

    async def openapi(self, _request: web.Request) -> web.Response:
        """These calls, for programs."""
        return web.Response(body=self._document, content_type="application/json")
