"""The Pi as seen from topside: its HTTP calls and its time responder.

Every call either answers or raises `PiError` with one line that says why; nothing here retries.
"""

import asyncio
import itertools
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from common.clock import Clock
from common.messages import Chunk, Exchange, Marker, Stamp, TimeReply, pack_time_request, unpack_time_reply
from common.recorder import OpenChunk
from common.rows import parse_utc
from common.service import ConfigError

T = TypeVar("T")

CALL_S = 5.0  # a call that takes longer has failed
FILE_S = 30.0
REPLY_S = 0.5  # a time reply later than this is worth nothing
MARKER_PROBE = 1000  # number of the exchange that is the marker's own call, beside those of its burst
SPACING_S = 0.03  # between the exchanges of a burst, so that one queue does not hit all of them


class PiError(Exception):
    """The Pi cannot be reached (status None) or refused (its HTTP status)."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.status = status


class About(Struct, frozen=True):
    """What `/version` says; the ports are missing on an old Pi."""

    api: str
    git: str
    protocol: int | None = None
    bus_port: int | None = None
    time_port: int | None = None
    boot_id: str | None = None


class Standing(Struct, frozen=True):
    """Where a recording on the Pi stands."""

    session_id: str
    rows: int
    state: str = "stopped"
    last_seq: int = -1
    durable_seq: int = -1
    last_chunk_index: int = -1
    open_chunk: OpenChunk | None = None
    chunks: int | None = None
    trouble: str = ""


class Injected(Struct, frozen=True):
    """The Pi's half of a marker."""

    status: Literal["injected", "duplicate"]
    timestamp: str
    t2_ns: int
    t3_ns: int
    boot_id: str
    seq: int


class PiTime(Struct, frozen=True):
    t2_ns: int
    t3_ns: int
    boot_id: str
    utc_ns: int


class Pi:
    """One Pi daemon. Use `open` and `close`; calls share one warm connection."""

    def __init__(self, url: str, clock: Clock) -> None:
        """*url* is `http://HOST:PORT`.

        Raises:
            ConfigError: it is not.
        """
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError
        except ValueError:
            raise ConfigError(f"{url!r} is not the URL of a Pi: give --pi http://HOST:9150") from None
        self.url = url.rstrip("/")
        self.host = parts.hostname
        self._clock = clock
        self._http: aiohttp.ClientSession
        self._asker: _TimeAsker | None = None

    def open(self) -> None:
        """To be called in the loop that will make the calls."""
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_S))

    async def close(self) -> None:
        if self._asker is not None:
            self._asker.close()
        await self._http.close()

    async def about(self) -> About:
        return await self._call("GET", "/version", About)

    async def start(self, session_id: str, mission: str, roll_interval_s: float) -> None:
        """Start the recording with this id; again, if it is the one that is recording."""
        wanted = {"session_id": session_id, "mission": mission, "roll_interval_s": roll_interval_s}
        await self._call("POST", "/record/start", dict[str, Any], json=wanted)

    async def stop(self, session_id: str) -> Standing:
        return await self._call("POST", "/record/stop", Standing, json={"session_id": session_id})

    async def standing(self, session_id: str) -> Standing:
        return await self._call("GET", "/record/status", Standing, params={"session_id": session_id})

    async def chunks(self, session_id: str, after: int) -> list[Chunk]:
        """The sealed chunks with an index above *after*."""
        params = {"session_id": session_id, "after": str(after)}
        return await self._call("GET", "/record/snapshots", list[Chunk], params=params)

    async def file(self, session_id: str, name: str, first: int = 0) -> bytes:
        """A file of a recording from byte *first* on, as much as will not change any more."""
        headers = {"Range": f"bytes={first}-"} if first else {}
        timeout = aiohttp.ClientTimeout(total=FILE_S, sock_read=CALL_S)
        try:
            return await self._get(f"/files/{session_id}/{name}", headers=headers, timeout=timeout)
        except PiError as error:
            if error.status == 416:
                return b""
            raise

    async def mark(self, session_id: str, marker: Marker) -> Exchange:
        """Write the Pi's half of a marker; the call is a clock exchange too, if it was the first."""
        sent = self._clock.stamp()
        wanted = {
            "session_id": session_id,
            "sync_id": marker.sync_id,
            "marker_type": marker.kind,
            "periodic_sequence": marker.sequence,
            "t1_ns": sent.mono_ns,
            "label": marker.label,
        }
        injected = await self._call("POST", "/record/sync-marker", Injected, json=wanted)
        received_ns = self._clock.mono_ns()
        try:
            pi_utc_ns = parse_utc(injected.timestamp)
        except ValueError:
            raise PiError(f"the Pi's marker has no time: {injected.timestamp!r}") from None
        return Exchange(
            sync_id=marker.sync_id,
            kind=marker.kind,
            sequence=marker.sequence,
            probe=MARKER_PROBE,
            topside_boot_id=self._clock.boot_id,
            topside_utc_ns=sent.utc_ns,
            t1_ns=sent.mono_ns,
            t2_ns=injected.t2_ns,
            t3_ns=injected.t3_ns,
            t4_ns=received_ns,
            pi_boot_id=injected.boot_id,
            pi_utc_ns=pi_utc_ns,
            transport="http",
            status="ok" if injected.status == "injected" else "refused: repeated, t2 is of the first",
        )

    async def _call(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        content = await self._get(path, method, **options)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise PiError(f"{self.url}{path} answered something else: {error}") from None

    async def _get(self, path: str, method: str = "GET", **options: Any) -> bytes:
        try:
            async with self._http.request(method, self.url + path, **options) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PiError(f"cannot reach the Pi at {self.url}: {_reason(error)}") from None
        if response.status not in (200, 206):
            raise PiError(_detail(content) or f"{path} answered {response.status}", response.status)
        return content

    async def compare(
        self, sync_id: str, kind: Literal["START", "PERIODIC", "STOP", "PROBE"], sequence: int, probes: int
    ) -> list[Exchange]:
        """A burst of exchanges: by UDP, and by HTTP if no UDP reply came. Failures are exchanges too."""
        about = await self.about()  # also warms the connection
        blank = Exchange(
            sync_id, kind, sequence, 0, self._clock.boot_id, 0, 0, pi_boot_id=about.boot_id, transport="http"
        )
        burst: list[Exchange] = []
        if about.time_port is not None:
            asker = await self._time_asker(about.time_port)
            burst = [await asker.ask(msgspec.structs.replace(blank, probe=n)) for n in range(probes)]
        if all(exchange.status != "ok" for exchange in burst):
            first = len(burst)
            burst += [
                await self._ask_http(msgspec.structs.replace(blank, probe=first + n)) for n in range(probes)
            ]
        return burst

    async def _time_asker(self, port: int) -> "_TimeAsker":
        if self._asker is None or self._asker.port != port or self._asker.lost:
            if self._asker is not None:
                self._asker.close()
            try:
                self._asker = await _TimeAsker.connect(self._clock, self.host, port)
            except OSError as error:
                raise PiError(f"cannot ask {self.host}:{port}/udp for the time: {error}") from None
        return self._asker

    async def _ask_http(self, blank: Exchange) -> Exchange:
        sent = self._clock.stamp()
        asked = msgspec.structs.replace(blank, t1_ns=sent.mono_ns, topside_utc_ns=sent.utc_ns)
        try:
            reply = await self._call("GET", "/api/sync/time", PiTime)
        except PiError as error:
            return msgspec.structs.replace(asked, status=f"refused: {error}")
        received_ns = self._clock.mono_ns()
        await asyncio.sleep(SPACING_S)
        return _answered(asked, reply, received_ns)


def failed_exchange(clock: Clock, marker: Marker, reason: str) -> Exchange:
    """The record of a comparison that did not come about."""
    now, m = clock.stamp(), marker
    return Exchange(m.sync_id, m.kind, m.sequence, 0, clock.boot_id, now.utc_ns, now.mono_ns, status=reason)


def _reason(error: BaseException) -> str:
    """Why a call failed, in few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or "no connection"
    return str(error) or type(error).__name__


def _detail(content: bytes) -> str:
    try:
        answer = msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return str(answer.get("detail", "")) if isinstance(answer, dict) else ""


class _TimeAsker(asyncio.DatagramProtocol):
    """One UDP socket to the time responder; one question at a time."""

    def __init__(self, clock: Clock, port: int) -> None:
        self.port = port
        self.lost = False
        self._clock = clock
        self._xids = itertools.count(clock.mono_ns() & 0xFFFF_FFFF)
        self._waiting: tuple[int, asyncio.Future[tuple[TimeReply, int]]] | None = None
        self._transport: asyncio.DatagramTransport

    @classmethod
    async def connect(cls, clock: Clock, host: str, port: int) -> "_TimeAsker":
        loop = asyncio.get_running_loop()
        _, asker = await loop.create_datagram_endpoint(lambda: cls(clock, port), remote_addr=(host, port))
        return asker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        received_ns = self._clock.mono_ns()
        reply = unpack_time_reply(data)
        if reply is None or self._waiting is None:
            return
        xid, answer = self._waiting
        if reply.xid == xid and not answer.done():
            answer.set_result((reply, received_ns))

    def error_received(self, exc: Exception) -> None:
        """A port that is closed answers so; the question in flight will time out."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    async def ask(self, blank: Exchange) -> Exchange:
        """One exchange: t1 before the datagram leaves, t4 as soon as the loop has the answer."""
        xid = next(self._xids)
        answer: asyncio.Future[tuple[TimeReply, int]] = asyncio.get_running_loop().create_future()
        self._waiting = (xid, answer)
        sent = self._clock.stamp()
        self._transport.sendto(pack_time_request(xid, sent.mono_ns))
        asked = _asked(blank, sent)
        try:
            async with asyncio.timeout(REPLY_S):
                reply, received_ns = await answer
        except TimeoutError:
            return msgspec.structs.replace(asked, status="timeout")
        finally:
            self._waiting = None
        await asyncio.sleep(SPACING_S)
        return _answered(asked, reply, received_ns)

    def close(self) -> None:
        self._transport.close()


def _answered(asked: Exchange, reply: TimeReply | PiTime, received_ns: int) -> Exchange:
    return msgspec.structs.replace(
        asked,
        t2_ns=reply.t2_ns,
        t3_ns=reply.t3_ns,
        t4_ns=received_ns,
        pi_boot_id=reply.boot_id,
        pi_utc_ns=reply.utc_ns,
    )


def _asked(blank: Exchange, sent: Stamp) -> Exchange:
    return msgspec.structs.replace(blank, transport="udp", t1_ns=sent.mono_ns, topside_utc_ns=sent.utc_ns)
