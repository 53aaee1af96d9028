"""HTTP as both daemons serve it, over real sockets: typed bodies in, JSON out, every refusal says why."""

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import aiohttp
import pytest
import pytest_asyncio
from msgspec import Meta, Struct

from common.service import ConfigError
from common.web import BODY_BYTES, Refused, Site


class Wish(Struct):
    kind: Literal["START", "STOP"] = "START"
    count: Annotated[int, Meta(ge=0)] = 0


async def take(body: Wish) -> Wish:
    return body


async def look(query: Wish) -> Wish:
    return query


async def refuse() -> Wish:
    raise Refused(409, "already recording: stop it first")


async def fail() -> Wish:
    raise ZeroDivisionError


async def full() -> Wish:
    raise OSError(errno.ENOSPC, "No space left on device")


async def broken() -> Wish:
    raise OSError(errno.EIO, "Input/output error")


class Client:
    """Calls to one site; an answer is its status and its JSON."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self.port = port
        self._session = session

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self._session.request(method, f"http://127.0.0.1:{self.port}{path}", **options) as reply:
            return reply.status, await reply.json()


@pytest_asyncio.fixture
async def client(unused_tcp_port: int) -> AsyncIterator[Client]:
    site = Site()
    site.post("/take", take)
    site.get("/look", look)
    site.get("/refuse", refuse)
    site.get("/fail", fail)
    site.get("/full", full)
    site.get("/broken", broken)
    await site.listen(f"127.0.0.1:{unused_tcp_port}")
    async with aiohttp.ClientSession() as session:
        yield Client(unused_tcp_port, session)
    await site.close()


async def test_a_typed_body_comes_in(client: Client) -> None:
    """A JSON body is read as its type; an absent one is an empty object."""
    assert await client.call("POST", "/take", json={"count": 3}) == (200, {"kind": "START", "count": 3})
    assert await client.call("POST", "/take") == (200, {"kind": "START", "count": 0})


async def test_a_query_is_read_as_numbers(client: Client) -> None:
    """Query parameters are text; their types are read from it."""
    assert await client.call("GET", "/look?count=3&kind=STOP") == (200, {"kind": "STOP", "count": 3})


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b'{"count": "3"}', "count"),
        (b'{"count": -1}', "count"),
        (b'{"count": 1e999}', "count"),
        (b'{"count": null}', "count"),
        (b'{"kind": "PAUSE"}', "kind"),
        (b"[" * 10_000, "body"),
        (b'{"x":' * 2_000, "body"),
    ],
)
async def test_a_bad_body_is_422_and_names_the_field(client: Client, content: bytes, names: str) -> None:
    """Bad JSON, bad types and values out of range are one string that names the place, never a 500."""
    status, reply = await client.call("POST", "/take", data=content)
    assert status == 422
    assert list(reply) == ["detail"]
    assert names in reply["detail"]


async def test_a_bad_query_is_422_and_names_the_parameter(client: Client) -> None:
    """A parameter that is no number is named."""
    status, reply = await client.call("GET", "/look?count=many")
    assert status == 422
    assert "count" in reply["detail"]


async def test_every_refusal_says_why(client: Client) -> None:
    """Ours, an unknown path, a wrong method and a body too large all answer a `detail` text."""
    assert await client.call("GET", "/refuse") == (409, {"detail": "already recording: stop it first"})
    assert await client.call("GET", "/nowhere") == (404, {"detail": "Not Found"})
    assert await client.call("GET", "/take") == (405, {"detail": "Method Not Allowed"})
    status, reply = await client.call("POST", "/take", data=b" " * (BODY_BYTES + 1))
    assert (status, "larger" in reply["detail"]) == (413, True)


async def test_a_bug_is_a_500_and_the_site_lives_on(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises costs its own request only; the log has the traceback, the answer a detail."""
    status, reply = await client.call("GET", "/fail")
    assert (status, "our bug" in reply["detail"]) == (500, True)
    assert "ZeroDivisionError" in caplog.text
    assert (await client.call("GET", "/look"))[0] == 200


async def test_a_disk_that_refuses_is_507_or_503(client: Client) -> None:
    """No space is told from other trouble, and both are named."""
    assert (await client.call("GET", "/full"))[0] == 507
    status, reply = await client.call("GET", "/broken")
    assert (status, "disk" in reply["detail"]) == (503, True)


async def test_a_body_that_is_not_what_its_encoding_says_is_refused(client: Client) -> None:
    """Compressed nonsense is the caller's fault."""
    status, reply = await client.call("POST", "/take", data=b"abcde", headers={"Content-Encoding": "gzip"})
    assert 400 <= status < 500 and isinstance(reply["detail"], str)


async def test_what_is_not_http_costs_its_own_connection_only(client: Client) -> None:
    """Garbage on the port is answered with an error or a cut, and others are served."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"\x16\x03\x01\x02\0" * 100 + b"\r\n\r\n")
    async with asyncio.timeout(10):
        reply = await reader.read()
    writer.close()
    assert reply == b"" or b" 400 " in reply.splitlines()[0]
    assert (await client.call("GET", "/look"))[0] == 200


async def test_an_address_that_cannot_be_had_is_the_operators_to_mend(client: Client) -> None:
    """A taken port and a foreign address are configuration errors that name the address and the flag."""
    for address in (f"127.0.0.1:{client.port}", "192.0.2.1:80"):
        with pytest.raises(ConfigError, match=rf"{address}.*--http"):
            await Site().listen(address)
