"""ZeroMQ publish and subscribe: it wakes and shows; files prove.

Every message is exactly three frames, `[topic][JSON object][ASCII decimal seconds]`, the shape
PlotJuggler's ZMQ subscriber reads unmodified. `python -m common.bus tap ADDRESS [TOPIC...]`.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import zmq
from zmq.auth.thread import ThreadAuthenticator

from common.keys import KeyPair, Keyring
from common.messages import to_json
from common.service import ConfigError, split_address

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 10_000  # a subscriber this far behind loses messages; files fill the gap
MESSAGE_BYTES = 65_536  # the largest we send is a few hundred; a hostile frame may be gigabytes
# Heartbeats are the publisher's: libzmq 4.3.5 ends the process of a subscriber that sends them while its
# queue is full. What they ask of the subscriber, to give up a silent connection, they do all the same.
HEARTBEAT_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 10_000  # longer than the cuts TCP repairs by itself: shorter ones lose more
HANDSHAKE_MS = 3_000  # who connects and says nothing holds a descriptor no longer
CONNECT_TIMEOUT_MS = 1_500  # or a cut leaves SYN retries that back off to half a minute
RECONNECT_MS, RECONNECT_MAX_MS = 100, 1_000
SILENT_S = 15.0  # our publishers speak every second; ZeroMQ leaves a peer for ever after one huge frame
REBIND_S, REBIND_TRIES = 0.05, 100  # it is told of after so many
DRAIN_MESSAGES = 20  # handled in one go before the loop gets its turn

INWATER = "qsensor/inwater/"
SURFACE = "qsensor/surface/"
FUSED_ROW = "qsensor/fused/row"
CLOCK_MODEL = "qsensor/clock/model"
STATUS = "qsensor/status"


def check_address(address: str) -> None:
    """Whether one can publish there at all.

    Raises:
        ConfigError: it is not `tcp://HOST:PORT`.
    """
    if not address.startswith("tcp://"):
        raise ConfigError(f"cannot publish on {address!r}: give --bus tcp://HOST:PORT")
    split_address(address)


class Publisher:
    """Sends without ever waiting: what a slow subscriber cannot take is lost to that subscriber."""

    def __init__(self, address: str, keyring: Keyring | None = None) -> None:
        """Bind *address* (`tcp://HOST:PORT`, port 0 for any free one).

        Args:
            keyring: whose partners are sent to, encrypted, and nobody else; None: everybody.

        Raises:
            ConfigError: it cannot be bound, or the keys cannot be had.
        """
        check_address(address)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._doorkeeper: ThreadAuthenticator | None = None
        self._own: KeyPair | None = None
        try:
            if keyring is not None:
                self._own = self._lock(keyring)
            self._socket = self._open()
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._end()
            reason = f"cannot publish on {address}: {error.strerror}: choose another --bus"
            raise ConfigError(reason) from None
        except (OSError, ValueError) as error:
            self._end()
            raise ConfigError(f"the keys cannot be had: {error}: look at the folder keys") from None
        self.address = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")

    def _open(self) -> "zmq.Socket[bytes]":
        opened = self._context.socket(zmq.PUB)
        opened.set(zmq.IPV6, 1)
        opened.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        opened.set(zmq.SNDHWM, QUEUE_MESSAGES)
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.MAXMSGSIZE, MESSAGE_BYTES)
        opened.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        opened.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        opened.set(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
        if self._own is not None:
            opened.curve_publickey = self._own.public.encode("ascii")
            opened.curve_secretkey = self._own.secret.encode("ascii")
            opened.curve_server = True
        return opened

    def _lock(self, keyring: Keyring) -> KeyPair:
        """Speak to partners only."""
        own = keyring.key_pair()
        self._doorkeeper = ThreadAuthenticator(self._context)
        self._doorkeeper.start()
        self._doorkeeper.configure_curve_callback("*", _Partners(keyring))
        return own

    @property
    def key(self) -> str | None:
        """The public key that partners must know; None: nobody needs one."""
        return None if self._own is None else self._own.public

    async def renew(self) -> None:
        """Let everybody connect again, and so only those who are still partners: ZeroMQ asks for a key when
        somebody connects, and has no word for sending one away."""
        before, self._socket = self._socket, self._open()
        before.unbind(self.address)
        before.close()
        tries = 0
        while True:
            try:
                self._socket.bind(self.address)
                return
            except zmq.ZMQError as error:  # ZeroMQ gives a port back in its own time, a network its address
                tries += 1
                if tries == REBIND_TRIES:
                    log.error("nobody hears the bus: cannot bind %s: %s", self.address, error.strerror)
            await asyncio.sleep(REBIND_S)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def send(self, topic: str, record: Any, utc_ns: int) -> None:
        """Publish *record* (anything that is a JSON object) as of *utc_ns*."""
        seconds = b"%d.%06d" % (utc_ns // 1_000_000_000, utc_ns % 1_000_000_000 // 1000)
        self._socket.send_multipart([topic.encode("ascii"), to_json(record), seconds], zmq.DONTWAIT)

    def close(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._doorkeeper is not None:
            self._doorkeeper.stop()
        self._context.destroy(linger=0)


class _Partners:
    """As ZeroMQ's authenticator asks."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def callback(self, _domain: str, key: bytes) -> bool:
        return self._keyring.knows_key(key.decode("ascii"))


class BusKeys(NamedTuple):
    """own: the subscriber's; theirs: the publisher's public key."""

    own: KeyPair
    theirs: str


class Subscriber:
    """Feeds `receive(topic, payload)` from the event loop, oldest first.

    A plain socket drained from the loop's reader costs a fifteenth of zmq.asyncio per message.
    Malformed messages are counted, never raised.
    """

    def __init__(
        self,
        address: str,
        topics: list[str],
        receive: Callable[[str, bytes], None],
        silent_s: float = SILENT_S,
        keys: BusKeys | None = None,
    ) -> None:
        """Connect; and connect anew whenever nothing at all was heard for *silent_s*.

        Args:
            keys: for a publisher that speaks to partners only.
        """
        self.malformed = 0
        self._address = address
        self._topics = topics
        self._receive = receive
        self._silent_s = silent_s
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._closed = False
        self._connect()

    def _connect(self) -> None:
        self._socket = connect(self._context, self._address, self._topics, self._keys)
        self._fd = int(self._socket.get(zmq.FD))
        self._heard = False
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)  # the descriptor only tells of edges
        self._timer = self._loop.call_later(self._silent_s, self._look)

    def _look(self) -> None:
        if self._heard:
            self._heard = False
            self._timer = self._loop.call_later(self._silent_s, self._look)
        else:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=0)
            self._connect()

    def _drain(self) -> None:
        if self._closed:
            return
        receive = self._socket.recv
        for _ in range(DRAIN_MESSAGES):
            try:  # recv_multipart asks the socket whether more is to come, and takes half as long again
                frames = [receive(zmq.DONTWAIT, copy=False)]
                while frames[-1].more:
                    frames.append(receive(zmq.DONTWAIT, copy=False))
            except zmq.Again:
                return
            self._heard = True
            topic = frames[0].bytes
            if len(frames) == 3 and topic.isascii():
                self._receive(topic.decode("ascii"), frames[1].bytes)
            else:
                self.malformed += 1
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        self._closed = True
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        self._context.destroy(linger=0)


def connect(
    context: "zmq.Context[zmq.Socket[bytes]]", address: str, topics: list[str], keys: BusKeys | None = None
) -> "zmq.Socket[bytes]":
    """A SUB socket that recovers fast from cuts and cannot be flooded by one huge frame."""
    socket = context.socket(zmq.SUB)
    if keys is not None:
        socket.curve_publickey = keys.own.public.encode("ascii")
        socket.curve_secretkey = keys.own.secret.encode("ascii")
        socket.curve_serverkey = keys.theirs.encode("ascii")
    socket.set(zmq.IPV6, 1)
    socket.set(zmq.RCVHWM, QUEUE_MESSAGES)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES)
    socket.set(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    for topic in topics or [""]:
        socket.subscribe(topic.encode("utf-8"))
    try:
        socket.connect(address)
    except zmq.ZMQError:
        socket.close(linger=0)
        raise
    return socket


def tap(address: str, topics: list[str]) -> int:
    """Print live messages, one a line, until interrupted."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = connect(context, address, topics)
        while True:
            frames = socket.recv_multipart()
            print(*(frame.decode("utf-8", "backslashreplace") for frame in frames), flush=True)
    except zmq.ZMQError as error:
        print(f"cannot connect to {address}: {error.strerror}: give tcp://HOST:PORT", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    finally:
        context.destroy(linger=0)


def main(arguments: list[str] | None = None) -> int:
    """Listen to the bus from a terminal."""
    parser = argparse.ArgumentParser(prog="python -m common.bus", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listen = commands.add_parser("tap", help=tap.__doc__)
    listen.add_argument("address", help="tcp://HOST:PORT of a daemon's bus")
    listen.add_argument("topics", nargs="*", help="topic prefixes, for example qsensor/inwater/; all if none")
    options = parser.parse_args(arguments)
    return tap(options.address, options.topics)


if __name__ == "__main__":
    sys.exit(main())
