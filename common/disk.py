"""A thread for disk work: a disk that stalls for seconds must not hold up the stamps.

Leaner than an executor: the loop hands over with one queue operation and is not woken in between.
"""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeAlias, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Result: TypeAlias = asyncio.Future[Any]
_Work: TypeAlias = tuple[Callable[[], Any], _Result | None]

_running: set["Disk"] = set()  # whose thread has not ended


class Disk:
    """Runs one owner's disk work in the order it is asked for. To be made in the loop that asks."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        _running.add(self)
        self._thread.start()

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *work* and return, or raise, what it does; cancelled, the work is done all the same."""
        result: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((lambda: work(*args, **kwargs), result))
        return await result

    def post(self, work: Callable[[], None]) -> None:
        """Run *work*, which must not raise, when its turn comes; nobody waits."""
        self._queue.put((work, None))

    def close(self) -> None:
        """End the thread once all that was asked for is done."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, result = item
            try:
                value = work()
            except BaseException as error:  # noqa: BLE001  it is raised where the result is awaited
                self._tell(result, _fail, error)
            else:
                self._tell(result, _succeed, value)
        _running.discard(self)

    def _tell(
        self,
        result: "asyncio.Future[Any] | None",
        how: Callable[["asyncio.Future[Any]", Any], None],
        what: Any,
    ) -> None:
        if result is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(how, result, what)


def finish(limit_s: float) -> None:
    """To be called before a process ends: all disks do what they were asked for, whoever waits for it or not.

    One that hangs is waited for so long, and the others, which are on the same card, no longer.
    """
    running = list(_running)
    for disk in running:
        disk.close()
    for disk in running:
        disk._thread.join(limit_s)
        if disk._thread.is_alive():
            return


def _succeed(result: _Result, value: Any) -> None:
    if not result.done():
        result.set_result(value)


def _fail(result: _Result, error: BaseException) -> None:
    if not result.done():
        result.set_exception(error)
