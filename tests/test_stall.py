"""A program that stood still while its sensor talked on: it says so, and blames neither cable nor power."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Timer

import pytest

from common.menu import Answer, Ask, Talk, Wanted
from common.qseries import DataLine, Gate, Quality
from common.sensor import Sensor
from common.talk import Talker, Vigil
from tests.sim.clocks import SimClock
from tests.sim.device import LINE
from tests.sim.rig import ROOT
from tests.sim.talker import Talker as Speaker

STEP_S = 0.1
DATA = f"{LINE}\r\n".encode()
DRIVER = """
import asyncio, json, sys
from common.clock import SystemClock
from common.instrument import Instrument, SerialSettings

def note(*event):
    print(json.dumps(event), flush=True)

settings = SerialSettings(port=sys.argv[1])
asyncio.run(Instrument(settings, SystemClock(), lambda arrival: None, note, lambda: False).run())
"""


class Wire:
    """An open port that nobody disturbs.

    on_asked: called when its speed is asked for; says whether that was changed. on_set: when it is set.
    """

    baud = 9600
    lost = False

    def __init__(self) -> None:
        self.sent = b""
        self.on_asked: Callable[[], bool] = lambda: False
        self.on_set: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        self.sent += data

    async def set_baud(self, baud: int) -> None:
        self.baud = baud
        self.on_set()

    def speed_changed(self) -> bool:
        return self.on_asked()

    def moved(self) -> bool:
        return False


class Life:
    """A sensor attended to, in time that passes by hand."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.wire = Wire()
        self.events: list[tuple[str, str, int]] = []
        self.readings: list[DataLine] = []
        self.sensor = Sensor(self.clock, Wanted(), 9600, 1.0, self.readings.append, self._note, lambda: False)

    def _note(self, kind: str, detail: str, count: int) -> None:
        self.events.append((kind, detail, count))

    def told(self, kind: str) -> list[tuple[str, int]]:
        return [(detail, count) for name, detail, count in self.events if name == kind]

    def hear(self, data: bytes = DATA) -> None:
        self.sensor.receive(data, self.clock.stamp())

    async def look(self) -> None:
        """Let the sensor see what time it is."""
        self.sensor.wake()
        for _ in range(5):
            await asyncio.sleep(0)

    async def live(self, for_s: float, period_s: float | None = None) -> None:
        """Let time pass; with a period, the sensor talks."""
        for step in range(1, round(for_s / STEP_S) + 1):
            self.clock.advance(STEP_S)
            if period_s is not None and step % round(period_s / STEP_S) == 0:
                self.hear()
            await self.look()


def once(act: Callable[[], None]) -> Callable[[], bool]:
    """What acts and is true the first time, and is false for ever after."""
    left = [act]

    def ask() -> bool:
        if not left:
            return False
        left.pop()()
        return True

    return ask


@asynccontextmanager
async def attended(period_s: float = 1.0) -> AsyncIterator[Life]:
    """A sensor from which readings flow."""
    life = Life()
    task = asyncio.create_task(life.sensor.attend(life.wire))
    try:
        await life.look()
        life.hear(b"\r\n")
        await life.live(12 * period_s, period_s)
        assert life.sensor.state == "freerun"
        yield life
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("first", ["bytes", "time"])
async def test_standing_still_is_told_once_with_what_waited_and_is_no_silence(first: str) -> None:
    """Whether the waiting bytes or the end of a pause are seen first at waking, it comes to the same."""
    async with attended() as life:
        before = len(life.readings)
        life.clock.advance(38.0)
        if first == "time":
            await life.look()
        for _ in range(4):
            life.hear(DATA * 10)
            await life.look()
        assert len(life.readings) == before + 40
        await life.live(20.0, 1.0)
        ((detail, count),) = life.told("stalled")
        waited = "40 readings that came meanwhile carry the time of waking"
        assert (detail, count) == (f"this program stood still for 38.0 s: {waited}", 40)
        assert not life.told("silence") and life.sensor.state == "freerun" and life.wire.sent == b""


async def test_every_stall_is_told() -> None:
    """A second one has its own note, length and count, even if nothing came meanwhile."""
    async with attended() as life:
        for stood_s in (12.0, 5.0):
            life.clock.advance(stood_s)
            await life.look()
            await life.live(0.5)
        assert [re.findall(r"[0-9.]+(?= s:)", detail) for detail, _ in life.told("stalled")] == [
            ["12.0"],
            ["5.0"],
        ]
        assert [count for _, count in life.told("stalled")] == [0, 0]


async def test_a_stall_in_which_the_link_is_lost_is_told_all_the_same() -> None:
    """The end of the link does not wait for the count to be complete."""
    async with attended() as life:
        life.clock.advance(12.0)
        life.hear(DATA * 3)
        life.wire.lost = True
        await life.look()
        assert [count for _, count in life.told("stalled")] == [3]


async def test_a_stall_found_out_with_the_link_is_told_too() -> None:
    """A sensor that is unplugged while the program stands still leaves no other trace of it."""
    async with attended() as life:
        life.clock.advance(12.0)
        life.wire.lost = True
        await life.look()
        assert [count for _, count in life.told("stalled")] == [0]


async def test_a_stall_in_the_midst_of_work_is_told_all_the_same() -> None:
    """A program may be stopped anywhere, not only while it waits."""
    async with attended() as life:
        life.wire.on_asked = once(lambda: life.clock.advance(12.0))
        await life.look()
        await life.live(5.0, 1.0)
        assert [count for _, count in life.told("stalled")] == [0]
        assert not life.told("silence")


async def test_a_port_that_takes_long_is_no_stall() -> None:
    """Setting its speed blocks a thread, not the program; nor does it stand still between two links."""
    async with attended() as life:
        life.wire.on_asked = once(lambda: None)
        life.wire.on_set = lambda: life.clock.advance(5.0)
        await life.live(3.0, 1.0)
        assert life.told("port_speed_restored")
        life.wire.lost = True
        await life.look()
        life.clock.advance(60.0)
        life.wire.lost = False
        again = asyncio.create_task(life.sensor.attend(life.wire))
        await life.live(3.0, 1.0)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        assert not life.told("stalled")


async def test_a_sensor_that_went_silent_meanwhile_is_given_its_time() -> None:
    """Silence counts from the waking: only what was listened for and not heard is silence."""
    async with attended() as life:
        life.clock.advance(38.0)
        await life.live(2.5)
        assert not life.told("silence")
        await life.live(5.0)
        (silence,) = life.told("silence")
        assert re.match(r"nothing heard for [3-5]\.[0-9] s: check the cable", silence[0])


async def test_the_burst_at_waking_does_not_make_the_sensor_seem_quick() -> None:
    """One reading in five seconds stays its pace: the next of them is waited for."""
    async with attended(period_s=5.0) as life:
        life.clock.advance(120.0)
        life.hear(DATA * 12)
        await life.live(30.0, 5.0)
        assert life.told("stalled") and not life.told("silence")


async def test_a_little_late_is_no_stall() -> None:
    """A busy machine wakes us up to a second late, and nothing is said."""
    async with attended() as life:
        for _ in range(5):
            life.clock.advance(1.4)
            life.hear()
            await life.look()
        assert not life.told("stalled")


async def test_a_talk_outlives_a_stall() -> None:
    """The answer that waited, and comes in pieces, is not too late."""
    clock, gate, wire = SimClock(), Gate(), Wire()
    events: list[str] = []
    vigil = Vigil(clock, lambda kind, detail, count: events.append(kind))
    talker = Talker(gate, Quality(gate), vigil)

    def talk() -> Talk[Answer]:
        return (yield Ask(b"?", re.compile(rb"whole answer"), within_s=2.0))

    async with talker.busy:
        holding = asyncio.create_task(talker.hold(wire, talk()))
        await asyncio.sleep(0)
        clock.advance(38.0)
        for piece in (b"the whole", b" answer"):
            vigil.look(clock.mono_ns())
            talker.hear(piece)
            for _ in range(5):
                await asyncio.sleep(0)
        assert (await holding).outcome == "matched"


def test_a_stopped_process_says_that_it_was_itself(tmp_path: Path) -> None:
    """Really stopped for longer than silence is borne, it tells of itself and not of the cable."""
    with (
        Speaker(tmp_path / "sensor", rate_hz=20) as speaker,
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(speaker.link)], stdout=subprocess.PIPE, cwd=ROOT
        ) as process,
    ):
        assert process.stdout is not None
        patience = Timer(20.0, process.kill)
        patience.start()
        told = map(json.loads, process.stdout)
        assert "shape_learned" in (kind for kind, _, _ in told)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.1)
        process.send_signal(signal.SIGCONT)
        kind, detail, count = next(event for event in told if event[0] != "noise")
        patience.cancel()
        process.kill()
        assert kind == "stalled"
        assert re.match(r"this program stood still for 3\.[0-9] s: [0-9]+ readings", detail)
        assert 55 <= count <= 72
