"""The bus over real sockets: three frames, late joiners, hostile frames, and PlotJuggler's rules."""

import asyncio
import json
import math
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import zmq
from hypothesis import HealthCheck, given, settings

from common.announcer import Announcer
from common.bus import INWATER, MESSAGE_BYTES, Publisher, Subscriber, main
from common.messages import Marker, Reading
from common.recorder import Recorder
from common.service import ConfigError
from tests.sim.clocks import SimClock
from tests.sim.drawn import readings
from tests.sim.streams import arrival, at_work, new_record, take, until

ROOT = Path(__file__).resolve().parent.parent
Frames = list[bytes]


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher("tcp://127.0.0.1:0")
    yield publisher
    publisher.close()


class Plain:
    """A subscriber that is none of ours: a bare SUB socket, as any other program would open."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.RCVTIMEO, 10_000)
        self._socket.subscribe(b"")
        self._socket.connect(address)

    def join(self, publisher: Publisher) -> None:
        """Return when what is sent from now on arrives."""
        self._socket.set(zmq.RCVTIMEO, 10)
        while True:
            publisher.send("join", {}, 0)
            try:
                self._socket.recv_multipart()
            except zmq.Again:
                continue
            break
        self._socket.set(zmq.RCVTIMEO, 10_000)

    def receive(self) -> Frames:
        frames = [b"join"]
        while frames[0] == b"join":
            frames = self._socket.recv_multipart()
        return frames

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def plain(publisher: Publisher) -> Iterator[Plain]:
    plain = Plain(publisher.address)
    plain.join(publisher)
    yield plain
    plain.close()


class Ear:
    """A `Subscriber` of ours and what it was given."""

    def __init__(self, address: str, topics: list[str], silent_s: float = 15.0) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.subscriber = Subscriber(address, topics, lambda *message: self.heard.append(message), silent_s)

    async def join(self, publisher: Publisher, topic: str) -> None:
        async with asyncio.timeout(20):
            while not self.heard:
                publisher.send(topic, {}, 0)
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def ear(publisher: Publisher) -> AsyncIterator[Ear]:
    ear = Ear(publisher.address, ["wanted"])
    await ear.join(publisher, "wanted")
    yield ear
    ear.subscriber.close()


class PlotJuggler:
    """The rules of its ZeroMQ subscriber (3.17, JSON, `t` as the time field), applied to raw frames."""

    def __init__(self) -> None:
        self.series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._keys: dict[str, list[str]] = {}

    def take(self, frames: Frames) -> None:
        topic_frame, payload, seconds = frames
        topic = topic_frame.decode("ascii")
        assert not re.search(r"[ ,;]", topic), "its topic field is split there"
        stamp = float(seconds)
        assert re.fullmatch(rb"-?[0-9]+\.[0-9]+", seconds), "std::stod, unguarded"
        record = json.loads(payload)
        assert isinstance(record, dict)
        assert list(record) == self._keys.setdefault(topic, list(record)), "keys are constant per topic"
        assert isinstance(record["t"], float), "one message without it turns the option off"
        assert abs(record["t"] - stamp) < 2e-6
        for key, value in record.items():
            if isinstance(value, int | float):
                assert math.isfinite(value)
                self.series[f"{topic}/{key}"].append((record["t"], float(value)))


async def test_plotjuggler_reads_all_that_a_recorder_announces(
    tmp_path: Path, publisher: Publisher, plain: Plain
) -> None:
    """Readings, markers, chunks and status, in and between recordings, keep its rules; numbers are series."""
    clock = SimClock()
    announcer = Announcer(publisher, INWATER, clock)
    announcer.idle(arrival(clock))
    announcer.status("silent", "no line for 5 s")
    announcer.recorder = await Recorder.create(tmp_path / "stream", new_record(), clock, announcer)
    async with at_work(announcer.recorder) as recorder:
        take(recorder, clock, 3)
        now = clock.stamp()
        await recorder.mark(Marker("f47ac10b", "START", 0, 0, now.mono_ns, now.utc_ns, -1))
        announcer.status("freerun", "")
        await recorder.stop()
    plot = PlotJuggler()
    topics: list[str] = []
    frames = [b"", b""]
    while b'"state":"sealed"' not in frames[1]:
        frames = await asyncio.to_thread(plain.receive)
        plot.take(frames)
        topics.append(frames[0].decode().removeprefix(INWATER))
    assert set(topics) == {"reading", "marker", "chunk", "status"}
    assert [value for _, value in plot.series[INWATER + "reading/value"]] == [0.010157] * 4
    assert [value for _, value in plot.series[INWATER + "reading/seq"]] == [0, 0, 1, 2]
    numbers = {
        "reading": {"seq", "epoch", "t", "utc_ns", "mono_ns", "value", "temp_c", "durable_seq"},
        "marker": {"sequence", "after_seq", "epoch", "t"},
        "chunk": {"index", "size_bytes", "rows", "durable_seq", "t"},
        "status": {"rows", "last_seq", "durable_seq", "events", "t"},
    }
    for topic, keys in numbers.items():
        assert {f"{INWATER}{topic}/{key}" for key in keys} <= set(plot.series)


@given(readings())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_plotjuggler_reads_every_reading(publisher: Publisher, plain: Plain, reading: Reading) -> None:
    """Whatever a sensor may send, its frame keeps the rules and its value becomes a point."""
    Announcer(publisher, INWATER, SimClock()).rows([reading])
    plot = PlotJuggler()
    plot.take(plain.receive())
    assert plot.series[INWATER + "reading/value"] == [(reading.utc_ns / 1e9, float(reading.value))]


def test_a_message_is_three_frames(publisher: Publisher, plain: Plain) -> None:
    """Topic, JSON object, and ASCII seconds to the microsecond."""
    publisher.send("qsensor/status", {"a": 1}, 1_780_000_000_000_001_999)
    assert plain.receive() == [b"qsensor/status", b'{"a":1}', b"1780000000.000001"]


async def test_a_subscriber_gets_its_topics_in_order(publisher: Publisher, ear: Ear) -> None:
    """What was asked for arrives oldest first; other topics do not."""
    ear.heard.clear()
    for number in range(3000):
        publisher.send("other", {"n": -1}, 0)
        publisher.send("wanted/topic", {"n": number}, 0)
    await until(lambda: len(ear.heard) >= 3000)
    numbered = [(topic, json.loads(payload)) for topic, payload in ear.heard if topic == "wanted/topic"]
    assert numbered == [("wanted/topic", {"n": number}) for number in range(3000)]
    assert ear.subscriber.malformed == 0


async def test_a_late_joiner_hears_from_now_on(publisher: Publisher, ear: Ear) -> None:
    """A second subscriber gets what is sent after it came, while the first gets all."""
    publisher.send("wanted", {"n": 1}, 0)
    late = Ear(publisher.address, ["wanted"])
    await late.join(publisher, "wanted")
    publisher.send("wanted", {"n": 2}, 0)
    last = ("wanted", b'{"n":2}')
    await until(lambda: last in late.heard and last in ear.heard)
    late.subscriber.close()
    assert ("wanted", b'{"n":1}') in ear.heard
    assert ("wanted", b'{"n":1}') not in late.heard


async def test_a_subscriber_survives_a_new_publisher(publisher: Publisher, ear: Ear) -> None:
    """A publisher that is restarted on its address is heard again by itself."""
    address = publisher.address
    publisher.close()
    again = Publisher(address)
    ear.heard.clear()
    await ear.join(again, "wanted")
    again.close()
    assert ear.heard[0] == ("wanted", b"{}")


async def test_malformed_messages_are_counted_and_passed_over() -> None:
    """Two frames, four, or a topic that is not ASCII: counted, and the good ones still arrive."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    raw = context.socket(zmq.PUB)
    port = raw.bind_to_random_port("tcp://127.0.0.1")
    ear = Ear(f"tcp://127.0.0.1:{port}", [])
    async with asyncio.timeout(20):
        while not ear.heard:
            raw.send_multipart([b"good", b"{}", b"0"])
            await asyncio.sleep(0.01)
    for frames in ([b"t", b"{}"], [b"t", b"{}", b"0", b""], [b""], ["ü".encode(), b"{}", b"0"]):
        raw.send_multipart(frames)
    raw.send_multipart([b"last", b"\xff not JSON", b"0"])
    await until(lambda: ear.heard[-1][0] == "last")
    assert ear.subscriber.malformed == 4
    assert {topic for topic, _ in ear.heard} == {"good", "last"}
    ear.subscriber.close()
    context.destroy(linger=0)


async def test_a_huge_frame_is_refused_and_its_sender_heard_again() -> None:
    """A frame beyond the limit never reaches us; what follows does, on a new connection."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    raw = context.socket(zmq.PUB)
    port = raw.bind_to_random_port("tcp://127.0.0.1")
    ear = Ear(f"tcp://127.0.0.1:{port}", [], silent_s=0.2)
    async with asyncio.timeout(20):
        while not ear.heard:
            raw.send_multipart([b"before", b"{}", b"0"])
            await asyncio.sleep(0.01)
        raw.send_multipart([b"huge", b"x" * (MESSAGE_BYTES + 1), b"0"])
        while ear.heard[-1][0] != "after":
            raw.send_multipart([b"after", b"{}", b"0"])
            await asyncio.sleep(0.01)
    assert {topic for topic, _ in ear.heard} == {"before", "after"}
    ear.subscriber.close()
    context.destroy(linger=0)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{taken}", "tcp://192.0.2.1:1", "nonsense"])
def test_an_address_that_cannot_be_had_is_an_error_that_names_it(publisher: Publisher, address: str) -> None:
    """Taken, foreign or malformed: ConfigError, with the address in its text."""
    address = address.format(taken=publisher.port)
    with pytest.raises(ConfigError, match=re.escape(address)):
        Publisher(address)


def test_the_tap_prints_what_is_on_the_bus(publisher: Publisher) -> None:
    """One message a line, only the topics asked for, and Ctrl-C is an ordinary end."""
    command = [sys.executable, "-m", "common.bus", "tap", publisher.address, "wanted"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        reader = process.stdout
        line = _first_line(process, publisher)
        process.send_signal(signal.SIGINT)
        rest = reader.read().splitlines()
        assert process.wait(10) == 0
    assert {line, *rest} == {b'wanted/one {"n":1} 1.000000'}


def _first_line(process: "subprocess.Popen[bytes]", publisher: Publisher) -> bytes:
    """Publish until the tap has printed something."""
    assert process.stdout is not None
    poller = zmq.Poller()
    poller.register(process.stdout.fileno(), zmq.POLLIN)
    while not poller.poll(10):
        publisher.send("other", {}, 0)
        publisher.send("wanted/one", {"n": 1}, 1_000_000_000)
        assert process.poll() is None
    return process.stdout.readline().rstrip()


def test_a_tap_on_nonsense_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed address is a usage error that says what to give."""
    assert main(["tap", "nonsense"]) == 2
    text: Any = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "tcp://HOST:PORT" in text
