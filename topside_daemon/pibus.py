"""The Pi's bus as heard topside: found, followed wherever it moves, checked, and passed on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from common.bus import INWATER, BusKeys, Publisher, Subscriber
from common.clock import Clock
from common.guard import HOW_TO_PAIR
from common.messages import UNDECODABLE, ChunkFrame, Int64, ReadingFrame, StatusFrame
from topside_daemon.pi import About, Pi, PiError

log = logging.getLogger(__name__)

SEEK_S = 2.0  # between attempts to find the bus
CHECK_S = 3.0  # between looks whether it has moved
SILENT_NS = 5_000_000_000  # the Pi speaks every second; after this it is not shown as if it did
KNOCK_NS = 30_000_000_000
BAD_EVERY_NS = 60_000_000_000  # how often bad frames are told of
PAYLOAD_BYTES = 4096  # the largest that a Pi sends is a few hundred
CONNECTED = "connected"
NOT_PAIRED = f"not paired: {HOW_TO_PAIR}"
NOT_LIVE = "not paired: sessions are recorded; to see readings live, pair it"
NO_KEY = "paired before, but its bus has no key now: if it is the same Pi, remove keys/passes.json here"

News = tuple[str, str, int]


class _Instant(msgspec.Struct):
    utc_ns: Int64


class PiBus:
    """Follows one Pi's messages; those that nobody takes are republished as they came."""

    def __init__(
        self,
        pi: Pi,
        clock: Clock,
        publisher: Publisher,
        take_reading: Callable[[ReadingFrame], bool],
        chunk_announced: Callable[[ChunkFrame], None],
        found: Callable[[Pi], Awaitable[None]],
    ) -> None:
        """
        Args:
            take_reading: whether this one goes another way than the others.
            found: awaited when the Pi answers for the first time, or again.
        """
        self._pi = pi
        self._clock = clock
        self._publisher = publisher
        self._take_reading = take_reading
        self._chunk_announced = chunk_announced
        self._found = found
        self.about: About | None = None  # what the Pi says of itself; None while it does not answer
        self._state = f"{pi.url} has not answered yet"
        self._status: StatusFrame | None = None  # what the Pi said last
        self._subscriber: Subscriber | None = None
        self._where: tuple[int, BusKeys | None] | None = None
        self._known: tuple[str | None, str | None] | None = None  # boot and run of the Pi that was found
        self._heard_ns = clock.mono_ns()  # when it said anything
        self._told_silent = False
        self._knocked: tuple[BusKeys, int, str] | None = None  # with which keys, when, and what was said
        self._bad = 0  # frames since they were told of last
        self._bad_told_ns: int | None = None

    async def run(self) -> None:
        """Follow the bus until cancelled."""
        try:
            while True:
                found = await self._find()
                await asyncio.sleep(CHECK_S if found else SEEK_S)
        finally:
            if self._subscriber is not None:
                self._subscriber.close()

    async def _find(self) -> bool:
        try:
            about = self.about = await self._pi.about()
            if (about.boot_id, about.run_id) != self._known:
                await self._found(self._pi)
                self._known = (about.boot_id, about.run_id)
        except PiError as error:
            self._known = self.about = None
            self._become(str(error))
            return False
        try:
            keys = self._pi.bus_keys()
        except (OSError, ValueError) as error:
            self._become(f"the keys of this pairing cannot be read: {error}")
            return False
        if about.bus_port is not None and (keys is None) != (about.bus_key is None):
            opened = about.security == "legacy-lan"
            self._become(NO_KEY if keys is not None else NOT_LIVE if opened else NOT_PAIRED)
            return opened
        try:
            refusal = await self._refusal(keys) if keys is not None and self.silent else ""
        except PiError as error:
            refusal = str(error)
        if refusal:
            self._become(refusal)
            return False
        if about.bus_port is not None and (about.bus_port, keys) != self._where:
            self._count_malformed()
            if self._subscriber is not None:
                self._subscriber.close()
            address = f"tcp://{self._pi.host}:{about.bus_port}"
            self._subscriber = Subscriber(address, [INWATER], self._hear, keys=keys)
            self._where = about.bus_port, keys
        self._become(self._pi.lacks or CONNECTED)
        return True

    async def _refusal(self, keys: BusKeys) -> str:
        """Why the Pi is silent, if it no longer knows us; asked seldom, for it counts who asks in vain."""
        now_ns = self._clock.mono_ns()
        if self._knocked is None or self._knocked[0] != keys or now_ns - self._knocked[1] > KNOCK_NS:
            self._knocked = keys, now_ns, await self._pi.refusal()
        return self._knocked[2]

    def _become(self, state: str) -> None:
        if state != self._state:
            self._state, self._status = state, None
            log.info("pi: %s", state)

    def _hear(self, topic: str, payload: bytes) -> None:
        self._heard_ns = self._clock.mono_ns()
        try:
            if len(payload) > PAYLOAD_BYTES:
                raise ValueError
            if topic == INWATER + "reading":
                if self._take_reading(msgspec.json.decode(payload, type=ReadingFrame)):
                    return
            elif topic == INWATER + "status":
                self._status = msgspec.json.decode(payload, type=StatusFrame)
            elif topic == INWATER + "chunk":
                self._chunk_announced(msgspec.json.decode(payload, type=ChunkFrame))
            utc_ns = msgspec.json.decode(payload, type=_Instant).utc_ns
        except (*UNDECODABLE, ValueError):
            self._bad += 1
            return
        self._publisher.send(topic, msgspec.Raw(payload), utc_ns)

    @property
    def silent(self) -> bool:
        return self._clock.mono_ns() - self._heard_ns > SILENT_NS

    @property
    def state(self) -> str:
        """Whether the bus is heard, and if not why."""
        return "silent" if self.silent and self._state == CONNECTED else self._state

    @property
    def status(self) -> StatusFrame | None:
        """What the Pi said of its stream, none of it older than a few seconds."""
        return None if self.silent else self._status

    def news(self) -> list[News]:
        """What has changed since the last call, as events; to be asked for once a second."""
        found: list[News] = []
        silent = self.silent and not self._pi.lacks
        if silent != self._told_silent:
            self._told_silent = silent
            found.append(("bus_silent" if silent else "bus_heard", "the Pi's live messages", 1))
        self._count_malformed()
        now_ns = self._clock.mono_ns()
        due = self._bad_told_ns is None or now_ns - self._bad_told_ns > BAD_EVERY_NS
        if self._bad and due:
            found.append(("bad_frames", "messages on the Pi's bus that are none of ours", self._bad))
            self._bad, self._bad_told_ns = 0, now_ns
        return found

    def _count_malformed(self) -> None:
        if self._subscriber is not None:
            self._bad += self._subscriber.malformed
            self._subscriber.malformed = 0
