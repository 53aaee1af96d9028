"""The topside daemon's HTTP calls: start, stop and mark a session, and see where it stands."""

from typing import Annotated, Any, Protocol

from aiohttp import web
from msgspec import Meta, Struct

from common.metrics import Metric, exposition
from common.web import Site, answer, body


class StartRequest(Struct):
    mission: Annotated[str, Meta(min_length=1, max_length=200)] = "mission"


class MarkRequest(Struct):
    label: Annotated[str, Meta(min_length=1, max_length=200)]


class Deckhand(Protocol):
    """Who carries the calls out; all may raise `common.web.Refused`."""

    async def start(self, mission: str) -> dict[str, Any]: ...

    async def stop(self) -> dict[str, Any]: ...

    async def mark(self, label: str) -> dict[str, Any]: ...

    def status(self) -> dict[str, Any]: ...

    def metrics(self) -> list[Metric]: ...


class Api:
    """Routes and their answers; holds no state of its own."""

    def __init__(self, deckhand: Deckhand) -> None:
        self._deckhand = deckhand
        self.site = Site()
        self.site.get("/", self.status)
        self.site.get("/status", self.status)
        self.site.get("/metrics", self.metrics)
        self.site.post("/session/start", self.start)
        self.site.post("/session/stop", self.stop)
        self.site.post("/session/mark", self.mark)

    async def start(self, request: web.Request) -> web.Response:
        return answer(await self._deckhand.start((await body(request, StartRequest)).mission))

    async def stop(self, request: web.Request) -> web.Response:
        return answer(await self._deckhand.stop())

    async def mark(self, request: web.Request) -> web.Response:
        return answer(await self._deckhand.mark((await body(request, MarkRequest)).label))

    async def status(self, _request: web.Request) -> web.Response:
        return answer(self._deckhand.status())

    async def metrics(self, _request: web.Request) -> web.Response:
        return exposition(self._deckhand.metrics())
