"""A process that says to itself when it speaks, and is held up before it can listen.

Prints `said stamped had`, ns of its own monotonic clock, for each of 50 datagrams.
"""

import asyncio
import time

from common.clock import SystemClock
from common.messages import Stamp
from common.timesocket import TimeSocket


def hold_up() -> None:
    """Keep the event loop from looking."""
    time.sleep(0.005)


async def main() -> None:
    clock = SystemClock()
    heard = asyncio.Event()

    def take(datagram: bytes, _sender: object, stamp: Stamp) -> None:
        print(int(datagram), stamp.mono_ns, clock.mono_ns())
        heard.set()

    listening = await TimeSocket.bind(clock, "127.0.0.1", 0, take)
    talking = await TimeSocket.connect(clock, "127.0.0.1", listening.port, take)
    for _ in range(50):
        heard.clear()
        talking.send(str(clock.mono_ns()).encode())
        hold_up()
        await heard.wait()
    listening.close()
    talking.close()


if __name__ == "__main__":
    asyncio.run(main())
