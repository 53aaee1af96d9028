"""The Pi as seen from topside: its HTTP calls and its time responder.

Every call either answers or raises `PiError` with one line that says why; nothing here retries.
"""

import asyncio
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Meta, Struct, structs

from common.bus import BusKeys
from common.clock import Clock
from common.keys import PublicKey, Wallet
from common.messages import UNDECODABLE, Chunk, Exchange, ExchangeKind, Marker, Stamp
from common.recording import OpenChunk, Sequel
from common.rows import parse_utc
from common.service import ConfigError
from topside_daemon.timeasker import SPACING_S, TimeAsker

T = TypeVar("T")
Port = Annotated[int, Meta(ge=1, le=65535)]

CALL_S = 5.0  # a call that takes longer has failed
CONNECT_S = 1.5  # likewise a connection: on a tether the kernel's own retries come too late
KNOCK_S = 1.0  # for a Pi that has not answered to say that it is there again
UNKNOWN_HERE = 401  # what the Pi answers to whom it does not know
FILE_S = 30.0
STOP_S = 30.0  # a card may take long over its last sync
WARM_S = 10.0  # an idle connection is kept this long; the Pi closes it after 15
GONE = 410  # the status of what an old Pi has no more, or does not serve now
ANSWER_BYTES = 32 << 20  # the largest chunk has a few MiB
DETAIL_SHOWN = 500
MARKER_PROBE = 1000  # number of the exchange that is the marker's own call, beside those of its burst


class PiError(Exception):
    """The Pi cannot be reached (status None) or refused (its HTTP status)."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.status = status


class NotTaken(PiError):
    """The Pi will not take this marker another time either: it is in the surface record only."""


class About(Struct, frozen=True):
    """What `/version` says; from `protocol` on it is missing on an old Pi."""

    api: str
    git: str
    protocol: int | None = None
    bus_port: Port | None = None
    time_port: Port | None = None
    boot_id: str | None = None
    machine_id: str | None = None
    run_id: str | None = None
    bus_key: PublicKey | None = None
    security: str | None = None


class Started(Struct, frozen=True):
    """What the Pi calls a recording, and since when it runs, by the Pi's wall clock."""

    session_id: str
    started_at: str


class Standing(Struct, frozen=True):
    """Where a recording on the Pi stands; digest: over all its chunks, once it is stopped."""

    session_id: str
    rows: int
    state: str = "stopped"
    digest: str | None = None
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


class Paired(Struct, frozen=True):
    """What the Pi gives to whom it is paired with."""

    token: Annotated[str, Meta(max_length=200)]
    bus_key: PublicKey


class PiTime(Struct, frozen=True):
    t2_ns: int
    t3_ns: int
    boot_id: str
    utc_ns: int


class _Timing(Struct):
    """When a call's request left and when its answer began to arrive; both readings err to the outside."""

    sent: Stamp
    received_ns: int = 0


class Pi:
    """One Pi daemon. Use `open` and `close`; calls that are timed have a warm connection of their own."""

    def __init__(self, url: str, clock: Clock, wallet: Wallet | None = None) -> None:
        """*url* is `http://HOST:PORT`.

        Args:
            wallet: with what the Pi gave when it was paired, if it was.

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
        self.lacks = ""  # what an old Pi cannot do, in one line
        self.machine_id: str | None = None  # what `about` said last of whose crystal the Pi's clock counts
        self._clock = clock
        self._wallet = wallet
        self._http: aiohttp.ClientSession
        self._timed_http: aiohttp.ClientSession
        self._asker: TimeAsker | None = None

    def open(self) -> None:
        """To be called in the loop that will make the calls."""
        timeout = aiohttp.ClientTimeout(total=CALL_S, sock_connect=CONNECT_S)
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(self._leaves)
        # Whoever answers there may not be the Pi: what comes is taken as it is, and not without end.
        plain = {"Accept-Encoding": "identity"}
        self._http = aiohttp.ClientSession(timeout=timeout, headers=plain, auto_decompress=False)
        self._timed_http = aiohttp.ClientSession(
            timeout=timeout,
            headers=plain,
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=WARM_S),
            trace_configs=[trace],
        )

    async def close(self) -> None:
        if self._asker is not None:
            self._asker.close()
        await self._http.close()
        await self._timed_http.close()

    @property
    def _token(self) -> dict[str, str]:
        """The header that shows who asks."""
        found = self._wallet and self._wallet.pass_for(self.url)
        return {"Authorization": f"Bearer {found.token}"} if found else {}

    def bus_keys(self) -> BusKeys | None:
        """For the bus of a Pi that was paired."""
        found = self._wallet and self._wallet.pass_for(self.url)
        return BusKeys(self._wallet.key_pair(), found.bus_key) if self._wallet and found else None

    async def pair(self, code: str, public_key: str, name: str) -> Paired:
        """Show the Pi its code; returns what it gives for it."""
        wanted = {"code": code, "public_key": public_key, "name": name}
        return await self._call("POST", "/pair", Paired, json=wanted)

    async def about(self) -> About:
        about = await self._call("GET", "/version", About)
        self.machine_id = about.machine_id
        return about

    async def knock(self) -> None:
        """See whether the Pi answers at all, without waiting long.

        Raises:
            PiError: it does not.
        """
        await self._get("/health", timeout=aiohttp.ClientTimeout(total=KNOCK_S))

    async def refusal(self) -> str:
        """Why the Pi does not know this machine, or not any more; "" if it does.

        Raises:
            PiError: it does not answer, or something else than that.
        """
        try:
            await self._get("/status")
        except PiError as error:
            if error.status != UNKNOWN_HERE:
                raise
            return str(error)
        return ""

    async def start(
        self,
        session_id: str,
        mission: str,
        roll_interval_s: float,
        holder: str,
        sequel: Sequel | None = None,
    ) -> Started:
        """Start the recording with this id; again, if it is the one that is recording."""
        wanted = {
            "session_id": session_id,
            "mission": mission,
            "roll_interval_s": roll_interval_s,
            "holder": holder,
            "sequel": msgspec.to_builtins(sequel),
        }
        return await self._call("POST", "/record/start", Started, json=wanted)

    async def stop(self, session_id: str, holder: str) -> None:
        wanted = {"session_id": session_id, "holder": holder}
        timeout = aiohttp.ClientTimeout(total=STOP_S, sock_connect=CONNECT_S)
        await self._call("POST", "/record/stop", Standing, json=wanted, timeout=timeout)

    async def standing(self, session_id: str, holder: str | None = None) -> Standing:
        """Where a recording stands; to its holder it shows that he is alive."""
        asked = {"session_id": session_id} | ({"holder": holder} if holder else {})
        return await self._call("GET", "/record/status", Standing, params=asked)

    async def chunks(self, session_id: str, after: int) -> list[Chunk]:
        """The sealed chunks with an index above *after*."""
        params = {"session_id": session_id, "after": str(after)}
        return await self._call("GET", "/record/snapshots", list[Chunk], params=params)

    async def file(self, session_id: str, name: str, first: int = 0, sha256: str | None = None) -> bytes:
        """A file of a recording from byte *first* on, as much as will not change any more.

        Args:
            sha256: the range is wanted of this very file only.
        """
        headers = {"Range": f"bytes={first}-"} if first else {}
        if first and sha256:
            headers["If-Range"] = f'"{sha256}"'
        timeout = aiohttp.ClientTimeout(total=FILE_S, sock_connect=CONNECT_S, sock_read=CALL_S)
        try:
            return await self._get(
                f"/files/{session_id}/{name}", first=first, headers=headers, timeout=timeout
            )
        except PiError as error:
            if error.status == 416:
                return b""
            raise

    async def mark(self, session_id: str, marker: Marker) -> Exchange:
        """Write the Pi's half of a marker; the call is a clock exchange too, if it was the first."""
        wanted = {
            "session_id": session_id,
            "sync_id": marker.sync_id,
            "marker_type": marker.kind,
            "periodic_sequence": marker.sequence,
            "t1_ns": self._clock.mono_ns(),
            "label": marker.label,
        }
        injected, timing = await self._timed_call("POST", "/record/sync-marker", Injected, json=wanted)
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
            topside_utc_ns=timing.sent.utc_ns,
            t1_ns=timing.sent.mono_ns,
            t2_ns=injected.t2_ns,
            t3_ns=injected.t3_ns,
            t4_ns=timing.received_ns,
            pi_boot_id=injected.boot_id,
            pi_utc_ns=pi_utc_ns,
            transport="http",
            status="ok" if injected.status == "injected" else "refused: repeated, t2 is of the first",
        )

    async def _call(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        return self._decoded(await self._get(path, method, **options), path, kind)

    async def _timed_call(self, method: str, path: str, kind: type[T], **options: Any) -> tuple[T, _Timing]:
        """The answer, and when the call left and it came."""
        timing = _Timing(self._clock.stamp())
        content = await self._get(path, method, timing, **options)
        return self._decoded(content, path, kind), timing

    def _decoded(self, content: bytes, path: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(content, type=kind)
        except UNDECODABLE as error:
            raise PiError(f"{self.url}{path} answered something else: {error}") from None

    async def _get(
        self, path: str, method: str = "GET", timing: _Timing | None = None, first: int = 0, **options: Any
    ) -> bytes:
        """The body of the answer, from byte *first* on if it is a range or can be made one."""
        http = self._http if timing is None else self._timed_http
        try:
            headers = self._token | options.pop("headers", {})
            async with http.request(
                method,
                self.url + path,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=timing,
                **options,
            ) as response:
                if timing is not None:
                    timing.received_ns = self._clock.mono_ns()
                content = await _read(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PiError(f"cannot reach the Pi at {self.url}: {_reason(error)}") from None
        if response.status not in (200, 206):
            raise PiError(_detail(content) or f"{path} answered {response.status}", response.status)
        return content[first:] if response.status == 200 else content

    async def _leaves(
        self,
        _session: aiohttp.ClientSession,
        context: SimpleNamespace,
        _params: aiohttp.TraceRequestHeadersSentParams,
    ) -> None:
        """aiohttp has a connection, and has not yet written to it."""
        context.trace_request_ctx.sent = self._clock.stamp()

    async def compare(self, sync_id: str, kind: ExchangeKind, sequence: int, probes: int) -> list[Exchange]:
        """A burst of exchanges: by UDP, and by HTTP if no UDP reply came. Failures are exchanges too.

        Answers to earlier bursts that came too late stand before it.
        """
        about, _ = await self._timed_call("GET", "/version", About)  # also warms the connection
        now = self._clock.stamp()
        blank = Exchange(
            sync_id, kind, sequence, 0, self._clock.boot_id, now.utc_ns, now.mono_ns, pi_boot_id=about.boot_id
        )
        burst: list[Exchange] = []
        if about.time_port is not None:
            burst = await self._ask_udp(about.time_port, _numbered(blank, 0, probes))
        if all(exchange.status != "ok" for exchange in burst):
            for one in _numbered(blank, probes, probes):
                burst.append(await self._ask_http(one))
                if burst[-1].status != "ok":
                    break  # each would take as long to fail
        return burst

    async def _ask_udp(self, port: int, blanks: list[Exchange]) -> list[Exchange]:
        try:
            if self._asker is None or self._asker.port != port or self._asker.cut_off:
                if self._asker is not None:
                    self._asker.close()
                    self._asker = None
                self._asker = await TimeAsker.connect(self._clock, self.host, port)
        except OSError as error:
            return [structs.replace(blanks[0], status=f"refused: cannot ask by udp: {error}")]
        return await self._asker.burst(blanks)

    async def _ask_http(self, blank: Exchange) -> Exchange:
        blank = structs.replace(blank, transport="http")
        try:
            reply, timing = await self._timed_call("GET", "/api/sync/time", PiTime)
        except PiError as error:
            now = self._clock.stamp()
            asked = structs.replace(blank, t1_ns=now.mono_ns, topside_utc_ns=now.utc_ns)
            return structs.replace(asked, status=f"refused: {error}")
        await asyncio.sleep(SPACING_S)
        return structs.replace(
            blank,
            topside_utc_ns=timing.sent.utc_ns,
            t1_ns=timing.sent.mono_ns,
            t2_ns=reply.t2_ns,
            t3_ns=reply.t3_ns,
            t4_ns=timing.received_ns,
            pi_boot_id=reply.boot_id,
            pi_utc_ns=reply.utc_ns,
        )


def _numbered(blank: Exchange, first: int, count: int) -> list[Exchange]:
    return [structs.replace(blank, probe=first + n) for n in range(count)]


def _reason(error: BaseException) -> str:
    """Why a call failed, in few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or "no connection"
    return str(error) or type(error).__name__


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body.

    Raises:
        ValueError: there is no end of it.
    """
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > ANSWER_BYTES:
            raise ValueError(f"an answer of more than {ANSWER_BYTES >> 20} MiB: this is no Pi daemon")
    return bytes(content)


def _detail(content: bytes) -> str:
    try:
        answer = msgspec.json.decode(content)
    except UNDECODABLE:
        return ""
    said = str(answer.get("detail", "")) if isinstance(answer, dict) else ""
    return "".join(one if one.isprintable() else "?" for one in said[:DETAIL_SHOWN])
