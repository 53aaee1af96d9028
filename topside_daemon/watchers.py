"""Who looks on over a WebSocket: fused rows as they are settled, and where everything stands each second."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp import web
from msgspec import Struct, structs

from common.messages import to_json
from common.web import ended

BEHIND = 256  # messages that wait for one watcher; the oldest give way
STATUS_S = 1.0
HEARTBEAT_S = 20.0


class Watchers:
    """Tells every watcher; one that is slow misses rows, and holds up nobody.

    Args:
        status: where everything stands.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._queues: set[asyncio.Queue[bytes]] = set()

    def tell(self, kind: str, frame: Struct) -> None:
        """A message to all, as a JSON object with its kind."""
        if self._queues:
            message = to_json({"kind": kind, **structs.asdict(frame)})
            for queue in self._queues:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(message)

    async def watch(self, request: web.Request) -> web.WebSocketResponse:
        """A WebSocket: `{"kind": "row", ...}` as on the bus, `{"kind": "status", ...}` as `/status`."""
        channel = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=1024)
        await channel.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue(BEHIND)
        self._queues.add(queue)
        queue.put_nowait(self._status_now())
        try:
            async with asyncio.TaskGroup() as group:
                senders = [group.create_task(one) for one in (self._send(channel, queue), self._tick(queue))]
                await ended(channel)
                for sender in senders:
                    sender.cancel()
        finally:
            self._queues.discard(queue)
        return channel

    async def _send(self, channel: web.WebSocketResponse, queue: "asyncio.Queue[bytes]") -> None:
        with suppress(ConnectionError):
            while True:
                await channel.send_str((await queue.get()).decode("utf-8"))

    async def _tick(self, queue: "asyncio.Queue[bytes]") -> None:
        while True:
            await asyncio.sleep(STATUS_S)
            if not queue.full():
                queue.put_nowait(self._status_now())

    def _status_now(self) -> bytes:
        return to_json({"kind": "status", **self._status()})
