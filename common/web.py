"""HTTP as both daemons serve it: typed bodies in, JSON out, every refusal `{"detail": "..."}`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from common.files import is_full, why
from common.messages import UNDECODABLE, to_json
from common.service import ConfigError, split_address

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_BYTES = 16_384  # the largest body we accept is a few hundred
BODY_S = 5.0  # for a body to come in
KEEPALIVE_S, LINGER_S = 15.0, 2.0
SHUTDOWN_S = 0.5


class Refused(Exception):
    """A request that cannot be met; carries the HTTP status and one line that says why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def answer(record: Any, status: int = 200) -> web.Response:
    """*record* as a JSON response."""
    return web.Response(body=to_json(record), status=status, content_type="application/json")


async def body(request: web.Request, kind: type[T]) -> T:
    """The request's JSON body as *kind*; an absent body is an empty object.

    Raises:
        Refused: 422, naming the field.
    """
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


@web.middleware
async def _say_why(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return answer({"detail": str(refused)}, refused.status)
    except web.HTTPRequestEntityTooLarge:
        return answer({"detail": f"body: larger than {BODY_BYTES} bytes"}, 413)
    except web.HTTPException as error:
        refusal = answer({"detail": error.reason}, error.status)
        if "Allow" in error.headers:
            refusal.headers["Allow"] = error.headers["Allow"]
        return refusal
    except ConnectionError:
        raise  # the caller is gone
    except OSError as error:
        log.error("%s %s: %s", request.method, request.path, error)
        return answer({"detail": why(error)}, 507 if is_full(error) else 503)
    except Exception:  # our bug costs its own request only, and is logged
        log.exception("%s %s", request.method, request.path)
        return answer({"detail": "our bug: the log says more"}, 500)


class Site:
    """One listening address with its routes."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self.app = web.Application(middlewares=[_say_why], client_max_size=BODY_BYTES)

    def get(self, path: str, handler: Handler) -> None:
        self.app.router.add_get(path, handler)

    def post(self, path: str, handler: Handler) -> None:
        self.app.router.add_post(path, handler)

    async def listen(self, address: str) -> None:
        """Serve on HOST:PORT until `close`.

        Raises:
            ConfigError: the address cannot be had.
        """
        host, port = split_address(address)
        runner = self._runner = web.AppRunner(
            self.app,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"cannot serve http on {address}: {error.strerror}: choose another --http"
            ) from None
        log.info("http on %s", address)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
