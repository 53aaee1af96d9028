"""The processes of `live`, ours and those that it is held against; each prints what it saw, a line each.

`python -m tests.bench.roles ROLE ARGUMENT...`
"""

import asyncio
import json
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq

from common.bus import Publisher, Subscriber, connect
from common.clock import SystemClock
from common.instrument import Arrival, Instrument, SerialSettings
from common.messages import Reading, ReadingFrame
from common.rows import encode_row
from tests.bench import lsl

CLOCK = SystemClock()
TOPIC = "bench/reading"
SETTLE_S = 0.5  # until a subscription has reached the publisher


def show(seen: list[tuple[str, int]]) -> None:
    """What was heard, and when."""
    print("\n".join(f"{value} {at_ns}" for value, at_ns in seen), flush=True)


def lines_of(port: str) -> Callable[[], tuple[list[bytes], int]]:
    """Waits for bytes with select, reads them with os.read, and gives the whole lines and the instant."""
    fd = os.open(port, os.O_RDWR | os.O_NOCTTY)
    rest = b""

    def more() -> tuple[list[bytes], int]:
        nonlocal rest
        select.select([fd], [], [])
        data = os.read(fd, 4096)
        at_ns = CLOCK.mono_ns()
        *lines, rest = (rest + data).split(b"\r\n")
        return lines, at_ns

    return more


def read(port: str, count: str) -> None:
    """The floor of reading a port."""
    seen: list[tuple[str, int]] = []
    more = lines_of(port)
    while len(seen) < int(count):
        lines, at_ns = more()
        seen += [(line.partition(b",")[0].decode(), at_ns) for line in lines]
    show(seen)


def instrument(port: str, count: str) -> None:
    """The same by the driver of both daemons."""

    async def run() -> None:
        seen: list[tuple[str, int]] = []
        done = asyncio.Event()

        def take(arrival: Arrival) -> None:
            seen.append((arrival.value, arrival.stamp.mono_ns))
            if len(seen) == int(count):
                done.set()

        driver = Instrument(
            SerialSettings(port=port), CLOCK, take, lambda kind, detail, n: None, lambda: False
        )
        running = asyncio.create_task(driver.run())
        await done.wait()
        running.cancel()
        show(seen)

    asyncio.run(run())


def record(port: str, path: str, address: str) -> None:
    """A single blocking loop that reads, stamps, records and publishes, until it is killed."""
    more, socket, seq = lines_of(port), zmq.Context().socket(zmq.PUB), 0
    socket.bind(address)
    with Path(path).open("ab", buffering=0) as file:
        while True:
            lines, at_ns = more()
            for line in lines:
                value, temp_c, vin = line.decode().split(", ")
                reading = Reading(seq, 0, at_ns, CLOCK.utc_ns(), "serial", "freerun", value, temp_c, vin)
                file.write(encode_row(reading))
                frame = ReadingFrame.of(reading, "session", CLOCK.boot_id, -1)
                payload, seconds = msgspec.json.encode(frame), b"%d" % (reading.utc_ns // 10**9)
                socket.send_multipart([b"qsensor/inwater/reading", payload, seconds])
                seq += 1


def listen(address: str, topic: str, count: str) -> None:
    """Blocking pyzmq, each message decoded."""
    socket, seen = connect(zmq.Context(), address, [topic]), list[tuple[str, int]]()
    while len(seen) < int(count):
        _, payload, _ = socket.recv_multipart()
        value = json.loads(payload)["value"]
        seen.append((value, CLOCK.mono_ns()))
    show(seen)
    os._exit(0)


def receive(address: str, count: str) -> None:
    """Blocking pyzmq, nothing decoded; what was sent is the instant."""
    socket, seen = connect(zmq.Context(), address, [TOPIC]), list[tuple[str, int]]()
    while len(seen) < int(count):
        _, payload, _ = socket.recv_multipart()
        seen.append((payload.decode(), CLOCK.mono_ns()))
    show(seen)
    os._exit(0)


def subscribe(address: str, count: str) -> None:
    """The same by the subscriber of the daemons, in an event loop."""

    async def run() -> None:
        seen: list[tuple[str, int]] = []
        done = asyncio.Event()

        def take(topic: str, payload: bytes) -> None:
            seen.append((payload.decode(), CLOCK.mono_ns()))
            if len(seen) == int(count):
                done.set()

        subscriber = Subscriber(address, [TOPIC], take)
        await done.wait()
        subscriber.close()
        show(seen)

    asyncio.run(run())


def publish(address: str, rate_hz: str, count: str) -> None:
    """The instant, at a steady rate; as fast as it goes at rate 0."""
    socket = zmq.Context().socket(zmq.PUB)
    socket.set(zmq.SNDHWM, 0)
    socket.bind(address)
    time.sleep(SETTLE_S)
    due_s = time.perf_counter()
    for _ in range(int(count)):
        socket.send_multipart([TOPIC.encode(), b"%d" % CLOCK.mono_ns(), b"0.0"])
        due_s += 1 / float(rate_hz)
        time.sleep(max(0.0, due_s - time.perf_counter()))
    time.sleep(SETTLE_S)


def burst(address: str, bursts: str, size: str) -> None:
    """Readings, so many as fast as they go, again and again, by the publisher of the daemons."""
    publisher = Publisher(address)
    readings = [
        Reading(n, 0, 0, 0, "serial", "freerun", "0.012345", "25.19", "7.494") for n in range(int(size))
    ]
    frames = [ReadingFrame.of(reading, "session", "boot", -1) for reading in readings]
    time.sleep(SETTLE_S)
    for _ in range(int(bursts)):
        for frame in frames:
            publisher.send(TOPIC, frame, 0)
        time.sleep(SETTLE_S)
    publisher.close()


def drain(address: str, bursts: str, size: str, held_s: str) -> None:
    """The subscriber of the daemons, its loop held up for so long at the first of each burst: how many
    readings were decoded, and s from then to the last."""
    each = int(size)

    async def run() -> None:
        total, seen, spent_s, begun_s = int(bursts) * each, 0, 0.0, 0.0
        done = asyncio.Event()
        decode = msgspec.json.Decoder(ReadingFrame).decode

        def take(topic: str, payload: bytes) -> None:
            nonlocal seen, spent_s, begun_s
            decode(payload)
            seen += 1
            if seen % each == 1:
                time.sleep(float(held_s))
                begun_s = time.perf_counter()
            elif seen % each == 0:
                spent_s += time.perf_counter() - begun_s
                if seen == total:
                    done.set()

        subscriber = Subscriber(address, [TOPIC], take)
        with suppress(TimeoutError):
            async with asyncio.timeout(int(bursts) * SETTLE_S * 2 + 10):
                await done.wait()
        subscriber.close()
        print(seen, spent_s, flush=True)

    asyncio.run(run())


ROLES: dict[str, Callable[..., None]] = {
    one.__name__: one
    for one in (
        read,
        instrument,
        record,
        listen,
        receive,
        subscribe,
        publish,
        burst,
        drain,
        lsl.push,
        lsl.pull,
    )
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
