"""Rubbish on the bus: a hostile publisher in the Pi's place, while a session records both sensors."""

import http.client
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import msgspec
import zmq

from common.bus import INWATER, connect
from tests.campaigns.fuzz.outcome import Outcome, Watch, resident_kb, watched
from tests.sim.rig import PiDaemon, TopsideDaemon
from tests.sim.rubbish import NOWHERE, READING, BusRubbish
from tests.sim.talker import Talker

BATCH = 5_000
STRANGERS, WISHES = 400, 50_000
TOPICS = 4  # reading, marker, chunk, status
PATIENCE_S = 40.0  # after one huge frame the subscriber comes back when nothing was heard for 15 s
FAT = 2_000
HUGE_BYTES = 64_000_000
RATE_HZ = 20.0


class _Relay(BaseHTTPRequestHandler):
    """Passes calls to the Pi, and gives out another bus than the Pi's."""

    protocol_version = "HTTP/1.1"

    def __init__(self, target: int, bus_port: int, *args: Any) -> None:
        self._target, self._bus_port = target, bus_port
        super().__init__(*args)

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: self.headers[name] for name in ("Range", "Content-Type") if name in self.headers}
        pi = http.client.HTTPConnection("127.0.0.1", self._target, timeout=30)
        pi.request(self.command, self.path, body, headers)
        reply = pi.getresponse()
        content = reply.read()
        pi.close()
        if self.path == "/version":
            content = msgspec.json.encode(msgspec.json.decode(content) | {"bus_port": self._bus_port})
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _pass_on  # noqa: N815 - the names that the base class calls

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: it is the daemons' logs that count."""


@contextmanager
def relay(pi: PiDaemon, bus_port: int) -> Iterator[str]:
    """A way to the Pi on which its bus is at *bus_port*; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Relay, pi.http, bus_port))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def overhear(pi: PiDaemon, session_id: str) -> dict[bytes, bytes]:
    """A message of each topic, as the Pi sends it while this session records."""
    heard: dict[bytes, bytes] = {}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connect(context, f"tcp://127.0.0.1:{pi.bus}", [INWATER])
    socket.set(zmq.RCVTIMEO, 10_000)
    while len(heard) < TOPICS:
        topic, payload, _ = socket.recv_multipart()
        if not heard:
            marker = {"session_id": session_id, "sync_id": NOWHERE, "marker_type": "PERIODIC"}
            pi.post("/record/sync-marker", marker)
        heard[topic] = payload
    context.destroy(linger=0)
    return heard


class HostileBus:
    """A publisher that loses nothing, so that what was sent is what the subscriber had to take."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.XPUB_NODROP, 1)
        self._socket.set(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def send(self, frames: list[bytes]) -> None:
        while True:
            try:
                self._socket.send_multipart(frames, zmq.DONTWAIT)
            except zmq.Again:
                time.sleep(0.001)
            else:
                return

    def close(self) -> None:
        self._context.destroy(linger=0)


def bother(port: int, rng: Random) -> None:
    """What a bus may meet besides subscribers: bytes that are not ZeroMQ's, and far too many wishes."""
    greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48)
    for _ in range(STRANGERS):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as stranger:
            stranger.sendall(rng.choice((b"", greeting)) + rng.randbytes(rng.randrange(2000)))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    wishful = connect(context, f"tcp://127.0.0.1:{port}", [])
    for number in range(WISHES):
        wishful.subscribe(b"%d" % number)
    time.sleep(WISHES / 100_000)  # they travel meanwhile
    context.destroy(linger=0)


class Attack:
    """Sends batches of frames, and waits each time until the daemon has gone through them."""

    def __init__(self, bus: HostileBus, topside: TopsideDaemon, watch: Watch, outcome: Outcome) -> None:
        self._bus, self._topside, self._watch, self._outcome = bus, topside, watch, outcome
        self.largest_kb = 0

    def send(self, name: str, frames: Iterator[list[bytes]], last: list[bytes], token: str) -> bool:
        """Whether the daemon took them well; *last*, a status message, says *token*, and is to be heard."""
        for one in frames:
            self._bus.send(one)
        end_s = time.monotonic() + PATIENCE_S
        while self._heard() != token and self._watch.well and time.monotonic() < end_s:
            self._bus.send(last)
            time.sleep(0.05)
        if self._watch.well:
            pid = self._topside.process.pid if self._topside.process else 0
            self.largest_kb = max(self.largest_kb, resident_kb(pid))
            self._outcome.expect(self._heard() == token, f"{name}: deaf for {PATIENCE_S:.0f} s")
        return self._watch.look(name)

    @property
    def awaited_seq(self) -> int:
        """The reading that the session waits for."""
        return int(self._topside.get("/status")[1]["session"]["inwater_seq"]) + 1

    def _heard(self) -> str | None:
        inwater = self._topside.get("/status")[1]["inwater"]
        return inwater["detail"] if inwater else None


def fuzz_bus(outcome: Outcome, seed: int, frames: int, folder: Path, full: bool) -> None:
    """So many messages to a real topside daemon, that records through a Pi whose bus is not the Pi's."""
    with (
        Talker(folder / "ttyP", RATE_HZ) as talker,
        Talker(folder / "ttyT", RATE_HZ),
        PiDaemon(folder / "pi", serial=str(folder / "ttyP")) as pi,
    ):
        pi.wait_streaming()
        bus = HostileBus()
        with (
            relay(pi, bus.port) as url,
            TopsideDaemon(folder / "topside", pi=url, serial=str(folder / "ttyT")) as topside,
        ):
            topside.wait_streaming()
            session_id = topside.post("/session/start", {"mission": "rubbish"})[1]["session_id"]
            topside.wait_for(lambda: pi.get("/status")[1]["session_id"] == session_id)
            with watched(topside, outcome) as watch:
                attack = Attack(bus, topside, watch, outcome)
                _attack(outcome, attack, seed, frames, overhear(pi, session_id))
                if full and _attack_specially(outcome, attack, seed, overhear(pi, session_id)):
                    bother(topside.bus, Random(seed))
                    if watch.look("strangers on the bus"):
                        outcome.say(f"{STRANGERS} strangers and {WISHES} wishes on its own bus: it serves on")
            _judge_session(outcome, topside, folder, session_id, talker)
        bus.close()


def _attack(outcome: Outcome, attack: Attack, seed: int, frames: int, heard: Mapping[bytes, bytes]) -> None:
    batches = max(2, frames // BATCH)
    for number in range(batches):
        rubbish = BusRubbish(Random(f"frame {seed} {number}"), heard, attack.awaited_seq)
        token = f"batch {number}"
        drawn = (rubbish.draw() for _ in range(BATCH))
        if not attack.send(f"seed {seed} batch {number}", drawn, rubbish.status(token), token):
            return
    outcome.say(f"{batches * BATCH} messages in {batches} batches, each gone through to the last")
    outcome.say(f"memory at most {attack.largest_kb / 1000:.0f} MB")


def _attack_specially(outcome: Outcome, attack: Attack, seed: int, heard: Mapping[bytes, bytes]) -> bool:
    """Whether it bore the largest readings, far ahead of the record, and a frame that is larger than any."""
    rubbish = BusRubbish(Random(seed), heard)
    fat = (rubbish.fat() for _ in range(FAT))
    if not attack.send(f"{FAT} fat readings", fat, rubbish.status("fat"), "fat"):
        return False
    outcome.say(
        f"{FAT} readings of 60 kB far ahead of the record: memory at most {attack.largest_kb / 1000:.0f} MB"
    )
    huge = iter([[READING, b"[" * HUGE_BYTES, b"1.0"]])
    if not attack.send(f"a frame of {HUGE_BYTES} bytes", huge, rubbish.status("after"), "after"):
        return False
    outcome.say(f"a frame of {HUGE_BYTES // 10**6} MB: refused, and the bus is heard again")
    return True


def _judge_session(
    outcome: Outcome, topside: TopsideDaemon, folder: Path, session_id: str, talker: Talker
) -> None:
    """Whatever the bus said, the session ends complete and its files are the Pi's."""
    try:
        ended = topside.post("/session/stop")[1]
    except OSError as error:
        outcome.fail(f"the session could not be stopped: {error}")
        return
    outcome.expect(ended["state"] == "complete", f"the session ended {ended['state']}: {ended['detail']}")
    kept = _chunks(Path(ended["folder"]) / f"in-water_{session_id}")
    outcome.expect(kept == _chunks(folder / "pi" / session_id), "the topside copy differs from the Pi's")
    rows = b"".join(kept[name] for name in sorted(kept)).decode().splitlines()
    values = [row.split(",")[3] for row in rows if ",freerun," in row]
    first = talker.sent.index(values[0])
    outcome.expect(
        values == talker.sent[first : first + len(values)], "the record is not what the sensor said"
    )
    outcome.say(f"the session: {ended['state']}, {len(values)} in-water readings, the Pi's to the byte")
    outcome.expect(topside.stop() == 0, "topside_daemon did not end in order")


def _chunks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("chunk_*")}
