"""HTTP as both daemons serve it: typed questions in, JSON out, every refusal `{"detail": "..."}`.

A call is a function. Its parameter `query` is read from the query string, `body` from the JSON body, and what
it returns is the JSON of the answer; the documentation of the calls is made from the same types.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, get_type_hints

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from common.files import is_full, why
from common.messages import UNDECODABLE, Stamp, to_json
from common.service import ConfigError, split_address

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_BYTES = 16_384  # the largest body we accept is a few hundred
BODY_S = 5.0  # for a body to come in
KEEPALIVE_S, LINGER_S = 15.0, 0.5
SHUTDOWN_S = 0.5
CONNECTIONS, OF_ONE = 128, 64  # at once, and from one address; a vehicle has a handful of clients
BUSY_S = 1.0  # for one that is sent away to hear it
STALLED_MS = 30_000  # for a peer that takes nothing of what it asked for
ORIGIN: web.RequestKey[str | None] = web.RequestKey("origin")
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"detail":"too many connections: close some of them"}'
)


class Refused(Exception):
    """A request that cannot be met; carries the HTTP status and one line that says why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Doorkeeper(Protocol):
    """Who may ask what."""

    def admit(self, request: web.Request, public: bool) -> str | None:
        """Let a request in; returns the foreign origin that is allowed to see the answer, if it has one.

        Args:
            public: the call is for everybody.

        Raises:
            Refused: it stays out.
        """


class Call(Struct, frozen=True):
    """One call as it is documented. public: asked without a token.

    query, body, gives: types; gives is None for what is no JSON, and then kind says what it is, or may be.
    """

    method: str
    path: str
    meaning: str
    query: Any = None
    body: Any = None
    gives: Any = None
    kind: str = "application/json"
    public: bool = False


def answer(record: Any, status: int = 200) -> web.Response:
    """*record* as a JSON response."""
    return web.Response(body=to_json(record), status=status, content_type="application/json")


async def body(request: web.Request, kind: type[T]) -> T:
    """The request's JSON body as *kind*; an absent body is an empty object.

    Raises:
        Refused: 422, naming the field.
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        raise Refused(415, "body: send it as it is, without Content-Encoding")
    try:
        async with asyncio.timeout(BODY_S):
            content = await request.read()
    except TimeoutError:
        raise Refused(408, "body: it did not come in time") from None
    except (web.RequestPayloadError, ValueError) as error:
        raise Refused(400, f"body: {error}") from None
    try:
        return msgspec.json.decode(content or b"{}", type=kind)
    except UNDECODABLE as error:
        raise Refused(422, f"body: {error}") from None


def query(request: web.Request, kind: type[T]) -> T:
    """The query string as *kind*, numbers read from their text.

    Raises:
        Refused: 422, naming the parameter.
    """
    try:
        return msgspec.convert(dict(request.query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(422, f"query: {error}") from None


class Site:
    """One listening address with its calls."""

    def __init__(
        self, doorkeeper: Doorkeeper | None = None, stamp: Callable[[], Stamp] | None = None
    ) -> None:
        """
        Args:
            doorkeeper: None lets everybody in.
            stamp: reads the clock for calls with a parameter `received`, before their body is waited for.
        """
        self.calls: list[Call] = []
        self.app = web.Application(middlewares=[self._serve], client_max_size=BODY_BYTES)
        self.app.on_response_prepare.append(_let_see)
        self._doorkeeper = doorkeeper
        self._stamp = stamp
        self._public: set[str] = set()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    def get(self, path: str, function: Callable[..., Awaitable[Any]], public: bool = False) -> None:
        self._add("GET", path, function, public)

    def post(self, path: str, function: Callable[..., Awaitable[Any]], public: bool = False) -> None:
        self._add("POST", path, function, public)

    def _add(self, method: str, path: str, function: Callable[..., Awaitable[Any]], public: bool) -> None:
        types = get_type_hints(function)
        asks, takes, gives = types.get("query"), types.get("body"), types["return"]
        stamp = self._stamp if "received" in types else None

        async def handler(request: web.Request) -> web.StreamResponse:
            given: dict[str, Any] = {}
            if stamp is not None:
                given["received"] = stamp()
            if asks is not None:
                given["query"] = query(request, asks)
            if takes is not None:
                given["body"] = await body(request, takes)
            return answer(await function(**given))

        self.calls.append(Call(method, path, _meaning(function), asks, takes, gives, public=public))
        self._route(method, path, handler, public)

    def serve(self, path: str, handler: Handler, kind: str, public: bool = False, shown: bool = True) -> None:
        """A call that answers with something else than JSON. kind: its media type, or several with ", ".
        shown: is documented."""
        if shown:
            self.calls.append(Call("GET", path, _meaning(handler), kind=kind, public=public))
        self._route("GET", path, handler, public)

    def _route(self, method: str, path: str, handler: Handler, public: bool) -> None:
        self.app.router.add_route(method, path, handler)
        if public:
            self._public.add(path)

    @web.middleware
    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = None
        try:
            _check_upgrade(request)
            if self._doorkeeper is not None:
                resource = request.match_info.route.resource
                public = resource is not None and resource.canonical in self._public
                origin = request[ORIGIN] = self._doorkeeper.admit(request, public)
            response = _preflight() if origin and request.method == "OPTIONS" else await handler(request)
        except Refused as refused:
            response = answer({"detail": str(refused)}, refused.status)
            if refused.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
        except web.HTTPRequestEntityTooLarge:
            response = answer({"detail": f"body: larger than {BODY_BYTES} bytes"}, 413)
        except web.HTTPException as error:
            response = answer({"detail": error.reason}, error.status)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except ConnectionError:
            raise  # the caller is gone
        except OSError as error:
            log.error("%s %s: %s", request.method, request.path, error)
            response = answer({"detail": why(error)}, 507 if is_full(error) else 503)
        except Exception:  # our bug costs its own request only, and is logged
            log.exception("%s %s", request.method, request.path)
            response = answer({"detail": "our bug: the log says more"}, 500)
        return response

    async def listen(self, address: str) -> None:
        """Serve on HOST:PORT until `close`.

        Raises:
            ConfigError: the address cannot be had.
        """
        host, port = split_address(address)
        self._runner = web.AppRunner(
            self.app,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accept, host, port)
        except OSError as error:
            raise ConfigError(
                f"cannot serve http on {address}: {error.strerror}: choose another --http"
            ) from None
        for listening in self._server.sockets:
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # those that are accepted have it too
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
        log.info("http on %s", address)

    def _accept(self) -> asyncio.BaseProtocol:
        assert self._runner is not None and self._runner.server is not None
        return _Entrance(self._runner.server)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()


class _Entrance(asyncio.Protocol):
    """Hands a connection on, or sends it away where there are too many."""

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peers = [_peer(one.transport) for one in self._server.connections if one.transport is not None]
        if len(peers) < CONNECTIONS and peers.count(_peer(transport)) < OF_ONE:
            handler = self._server()
            transport.set_protocol(handler)
            handler.connection_made(transport)
        else:
            transport.write(BUSY)
            transport.write_eof()
            asyncio.get_running_loop().call_later(BUSY_S, transport.abort)


async def ended(channel: web.WebSocketResponse) -> None:
    """The other side, from which nothing is expected, has left."""
    async for _ in channel:
        continue


def _check_upgrade(request: web.Request) -> None:
    """Raises Refused: aiohttp repeats these in its refusals, and cannot if they are no text."""
    repeated = ("upgrade", "connection", "sec-websocket")
    for name, value in request.headers.items():
        if name.lower().startswith(repeated) and not value.isascii():
            raise Refused(400, f"header {name}: it is no text")


def _peer(transport: asyncio.BaseTransport) -> object:
    address = transport.get_extra_info("peername")
    return address and address[0]


async def _let_see(request: web.Request, response: web.StreamResponse) -> None:
    """A page of another host that was let in may look at what it gets."""
    if origin := request.get(ORIGIN):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"


def _meaning(function: Callable[..., Any]) -> str:
    return " ".join((function.__doc__ or "").split())


def _preflight() -> web.Response:
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, Range",
            "Access-Control-Max-Age": "600",
        },
    )
