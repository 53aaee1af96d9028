"""Rubbish at the HTTP calls and the time responder, while both daemons record."""

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

from common.chunkstore import sealed_chunks
from common.messages import pack_time_request, unpack_time_reply
from common.rows import decode_row
from common.web import CONNECTIONS
from tests.campaigns.fuzz.outcome import Outcome, watched
from tests.sim.requests import Call, HttpRubbish, with_body, written
from tests.sim.rig import Daemon, PiDaemon, TopsideDaemon
from tests.sim.rubbish import NOWHERE, bend
from tests.sim.talker import Talker

PARALLEL = CONNECTIONS // 4  # beyond what a daemon takes, it sends away
STALLED = 100  # connections that begin a request and never end it
LET_GO_S = 20.0  # after which none of these may be held any more
REPLY_S = 2.0  # for what may never be answered
HONEST_S = 5.0  # for what must be
RATE_HZ = 20.0
BATCH = 500
SECRET = b"this is outside of every session"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")

SESSION_ID = re.compile(rb'"session_id":"([0-9a-f-]{36})"')
STOP_S = 70.0
MISSION = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # of a folder, and of a lock
PI_START = {"rate_hz": 500, "schema_version": 1, "mission": "m", "roll_interval_s": 15.0, "holder": None}
SYNC_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


def pi_calls(session_id: str) -> list[Call]:
    """All that a Pi answers; what would end the recording names another session."""
    marker = {"session_id": session_id, "sync_id": SYNC_ID, "marker_type": "PERIODIC", "t1_ns": 1}
    asked = f"?session_id={session_id}&holder=x"
    return [
        *(Call("GET", path) for path in ("/", "/health", "/version", "/instrument/health", "/api/sync/time")),
        *(Call("GET", path) for path in ("/status", "/sensor/status", "/metrics", "/openapi.json")),
        *(
            Call("POST", f"{prefix}/{verb}")
            for prefix in ("", "/sensor")
            for verb in ("connect", "disconnect")
        ),
        *(
            Call("POST", f"{prefix}/{verb}?poll_hz=1.0")
            for prefix in ("", "/sensor")
            for verb in ("start", "stop")
        ),
        Call("POST", "/record/start", PI_START | {"session_id": NOWHERE}),
        Call("POST", "/record/stop", {"session_id": NOWHERE, "holder": "x", "force": False}),
        *(Call("GET", f"/record/{what}{asked}") for what in ("status", "snapshots", "snapshots")),
        Call("GET", f"/record/snapshots{asked}&after=3"),
        Call("POST", "/record/sync-marker", marker | {"periodic_sequence": 3, "label": "here"}),
        *(Call("GET", f"/files/{session_id}/{name}") for name in ("chunk_00000.csv", "session.json")),
    ]


TOPSIDE_CALLS = [
    *(Call("GET", path) for path in ("/", "/status", "/metrics", "/ws/live", "/openapi.json")),
    Call("POST", "/session/start", {"mission": "m"}),
    Call("POST", "/session/mark", {"label": "here"}),
]
IDLE_CALLS = [*TOPSIDE_CALLS, Call("POST", "/session/stop", {})]


class Attack:
    """Requests to one daemon; a server error is kept with the bytes that brought it."""

    def __init__(self, daemon: Daemon, look: Callable[[str], bool], folder: Path, outcome: Outcome) -> None:
        """*look*: says whether the daemon is well."""
        self.codes: Counter[int] = Counter()
        self._daemon, self._look, self._folder, self._outcome = daemon, look, folder, outcome

    async def one(self, name: str, request: bytes, within_s: float = REPLY_S) -> bytes:
        """The reply to a request; nothing in it may be a server error, or a file that is no session's."""
        reply = await ask(self._daemon.http, request, within_s)
        codes = [int(code) for code in STATUS.findall(reply)] or [0]
        self.codes[codes[-1]] += 1
        if max(codes) >= 500 or SECRET in reply:
            path = self._folder / f"{name.replace(' ', '_')}.http"
            path.write_bytes(request)
            self._outcome.fail(f"{name}, kept in {path}: {request[:150]!r} was answered {reply[:300]!r}")
        return reply

    async def many(self, rubbish: HttpRubbish, requests: int) -> None:
        """So many requests, PARALLEL at a time; honest ones are answered between them."""
        daemon = self._daemon
        for number in range(max(1, requests // BATCH)):
            name = f"{daemon.data.name} batch {number}"
            waiting = iter([(f"{name} request {n}", rubbish.draw()) for n in range(BATCH)])
            await asyncio.gather(*(self._work(waiting) for _ in range(PARALLEL)))
            reply = await ask(daemon.http, written("GET", "/status"), HONEST_S)
            self._outcome.expect(b" 200 " in reply[:15], f"{name}: honest, and answered {reply[:100]!r}")
            if not self._look(name):
                break

    async def _work(self, waiting: Iterator[tuple[str, bytes]]) -> None:
        for name, request in waiting:
            await self.one(name, request)

    async def starts(self, rubbish: HttpRubbish, stop: str, count: int) -> None:
        """So many odd starts of an idle daemon, each stopped again if it was taken."""
        taken = 0
        for number in range(count):
            name = f"{self._daemon.data.name} start {number}"
            found = SESSION_ID.search(await self.one(name, rubbish.draw_body(), HONEST_S))
            if found is not None:
                taken += 1
                body = b'{"session_id":"%s","force":true}' % found[1]
                reply = await self.one(f"{name} stop", with_body("POST", stop, body), STOP_S)
                self._outcome.expect(b" 200 " in reply[:15], f"{name}: not stopped: {reply[:300]!r}")
        self._look(f"{self._daemon.data.name} starts")
        self._outcome.say(
            f"{self._daemon.data.name}: {count} odd starts, {taken} taken, and stopped in order"
        )

    def sum_up(self) -> None:
        codes = ", ".join(f"{count} {code or 'unanswered'}" for code, count in sorted(self.codes.items()))
        self._outcome.say(f"{self._daemon.data.name}: {self.codes.total()} requests: {codes}")


async def ask(port: int, request: bytes, within_s: float = REPLY_S) -> bytes:
    """What one connection gets for these bytes; empty if nothing."""
    reply = b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(within_s):
                writer.write(request)
                while piece := await reader.read(65_536):
                    reply += piece
        finally:
            writer.transport.abort()
    return reply


class Stalled:
    """Connections that begin a request and never end it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._readers: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def begin(self) -> None:
        bodies = [
            written("POST", path, b"Content-Length: 9", b"{") for path in ("/record/stop", "/session/mark")
        ]
        beginnings = (b"", b"G", b"GET / HTTP/1.1\r\nX: ", *bodies)
        for number in range(STALLED):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(beginnings[number % len(beginnings)])
            self._readers.append((reader, writer))
        self._since_s = time.monotonic()

    async def held(self) -> int:
        """How many the daemon still holds, when it should have let go of all."""
        await asyncio.sleep(max(0.0, LET_GO_S - (time.monotonic() - self._since_s)))
        held = 0
        for reader, writer in self._readers:
            with suppress(OSError):
                try:
                    async with asyncio.timeout(0.01):
                        await reader.read()
                except TimeoutError:
                    held += 1
            writer.transport.abort()
        return held


def fuzz_calls(outcome: Outcome, seed: int, requests: int, folder: Path, full: bool) -> None:
    """So many requests to a Pi and to a topside daemon that record, and to one that is idle."""
    with ExitStack() as stack:
        talkers = [stack.enter_context(Talker(folder / name, RATE_HZ)) for name in ("ttyP", "ttyT")]
        pi = stack.enter_context(PiDaemon(folder / "pi", serial=str(folder / "ttyP")))
        url = f"http://127.0.0.1:{pi.http}"
        topside = stack.enter_context(TopsideDaemon(folder / "topside", pi=url, serial=str(folder / "ttyT")))
        idle = stack.enter_context(TopsideDaemon(folder / "idle"))
        for daemon in (pi, topside, idle):
            (daemon.data / "secret.txt").write_bytes(SECRET)
        pi.wait_streaming()
        topside.wait_streaming()
        session_id = topside.post("/session/start", {"mission": "rubbish"})[1]["session_id"]
        topside.wait_for(lambda: pi.get("/status")[1]["session_id"] == session_id)
        attacks = [
            Attack(daemon, stack.enter_context(watched(daemon, outcome)).look, folder, outcome)
            for daemon in (pi, topside, idle)
        ]
        calls = (pi_calls(session_id), TOPSIDE_CALLS, IDLE_CALLS)
        rubbish = [HttpRubbish(Random(f"call {seed} {n}"), some, session_id) for n, some in enumerate(calls)]
        stalled = [Stalled(daemon.http) for daemon in (pi, topside, idle)] if full else []
        asyncio.run(_attack(outcome, attacks, rubbish, requests, stalled))
        _ask_time(outcome, pi, seed, requests)
        _judge_session(outcome, topside, session_id, talkers)
        places = set(folder.glob("*[!.http]"))
        asyncio.run(_start_and_stop(attacks, seed, requests))
        strange = [path for path in topside.data.iterdir() if not MISSION.fullmatch(path.name)]
        strange += set(folder.glob("*[!.http]")) - places
        outcome.expect(not strange, f"a mission's name became a path: {strange}")


async def _attack(
    outcome: Outcome,
    attacks: Sequence[Attack],
    rubbish: Sequence[HttpRubbish],
    requests: int,
    stalled: Sequence[Stalled],
) -> None:
    for one in stalled:
        await one.begin()
    shares = (0.5, 0.4, 0.1)
    together = zip(attacks, rubbish, shares, strict=True)
    await asyncio.gather(*(attack.many(drawn, round(requests * share)) for attack, drawn, share in together))
    for attack in attacks:
        attack.sum_up()
    if stalled:
        held = [await one.held() for one in stalled]
        outcome.say(f"of {STALLED} stalled connections to each, held after {LET_GO_S:.0f} s: {held}")
        outcome.expect(max(held) == 0, "stalled connections are not let go")


async def _start_and_stop(attacks: Sequence[Attack], seed: int, requests: int) -> None:
    pi, topside, _ = attacks
    start = Call("POST", "/record/start", PI_START | {"session_id": None})
    await pi.starts(HttpRubbish(Random(f"start {seed}"), [start], NOWHERE), "/record/stop", requests // 40)
    start = Call("POST", "/session/start", {"mission": "m"})
    await topside.starts(
        HttpRubbish(Random(f"start {seed}"), [start], NOWHERE), "/session/stop", max(2, requests // 1000)
    )


def _ask_time(outcome: Outcome, pi: PiDaemon, seed: int, datagrams: int) -> None:
    """Datagrams to the time responder: rubbish is not answered, a question between is."""
    rng = Random(f"datagram {seed}")
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", pi.get("/version")[1]["time_port"]))
        one.settimeout(REPLY_S)
        for number in range(datagrams):
            bent = b"x" + bend(rng, pack_time_request(number, rng.getrandbits(63)))
            one.send(rng.choice((bent, rng.randbytes(rng.randrange(1500)), b"", bent * 50)))
            if number % 100 == 0:
                answered += _is_answered(one, number)
    asked = len(range(0, datagrams, 100))
    outcome.expect(
        answered == asked, f"{asked - answered} of {asked} questions for the time were not answered"
    )
    outcome.say(
        f"time responder: {datagrams} bad datagrams not answered, {answered} of {asked} questions were"
    )


def _is_answered(one: socket.socket, number: int) -> bool:
    """Whether a question for the time is answered; after a flood the OS may drop the first of them."""
    for _ in range(5):
        one.send(pack_time_request(number, 0))
        with suppress(TimeoutError):
            reply = unpack_time_reply(one.recv(2048))
            while reply is not None and reply.xid != number:
                reply = unpack_time_reply(one.recv(2048))
            return reply is not None
    return False


def _judge_session(
    outcome: Outcome, topside: TopsideDaemon, session_id: str, talkers: Sequence[Talker]
) -> None:
    """The session ends complete, and of each sensor every reading is there once."""
    ended = topside.post("/session/stop")[1]
    outcome.expect(ended["state"] == "complete", f"the session ended {ended['state']}: {ended['detail']}")
    for side, talker in zip(("in-water", "surface"), talkers, strict=True):
        rows = [
            reading
            for path in sealed_chunks(Path(ended["folder"]) / f"{side}_{session_id}")
            for line in path.read_bytes().splitlines()[1:]
            if (reading := decode_row(line)) is not None
        ]
        outcome.expect([row.seq for row in rows] == list(range(len(rows))), f"{side}: seq is not contiguous")
        values = [row.value for row in rows]
        first = talker.sent.index(values[0])
        same = values == talker.sent[first : first + len(values)]
        outcome.expect(same, f"{side}: the record is not what the sensor said")
        outcome.say(f"{side}: {len(rows)} readings recorded meanwhile, each as it was said, none missing")
