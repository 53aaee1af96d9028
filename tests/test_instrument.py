"""The driver on real pseudo-terminals: every way it must get its sensor back, and what it says meanwhile."""

import asyncio
import errno
import fcntl
import os
import re
import socket
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

import common.simulator.firmware
from common.clock import SystemClock
from common.instrument import (
    Arrival,
    Instrument,
    InvalidSetting,
    NotConnected,
    SerialSettings,
    _explain,
)
from common.simulator import Simulator
from common.simulator.texts import Eeprom, Sample
from tests.sim.device import LINE, Device
from tests.test_qseries import BANNER_DIGITS, BOOT_TEXT, MENU_TEXT, RECORDED

PATIENCE_S = 15.0
TIOCGEXCL = 0x80045440


class Log:
    """What an instrument told: readings and events."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.events: list[tuple[str, str, int]] = []

    def note(self, kind: str, detail: str, count: int) -> None:
        self.events.append((kind, detail, count))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]

    def detail(self, kind: str) -> str:
        return next(detail for name, detail, _ in self.events if name == kind)


@asynccontextmanager
async def running(
    port: Path | str | None, *, may_interrupt: bool = False, **settings: object
) -> AsyncIterator[tuple[Instrument, Log]]:
    """An instrument on a port, run until the end of the block."""
    log = Log()
    wanted = msgspec.convert({"port": None if port is None else str(port), **settings}, SerialSettings)
    instrument = Instrument(wanted, SystemClock(), log.arrivals.append, log.note, lambda: may_interrupt)
    task = asyncio.create_task(instrument.run())
    try:
        yield instrument, log
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(round(PATIENCE_S / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("it did not come to that")


async def readings(log: Log, count: int = 3) -> None:
    """Wait for that many more."""
    enough = len(log.arrivals) + count
    await until(lambda: len(log.arrivals) >= enough)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "sensor"


async def test_a_recording_with_boot_text_ahead_gives_its_readings_and_nothing_else(link: Path) -> None:
    """The real lines come through digit for digit and in order; boot text and banner digits do not."""
    async with Device(link) as device, running(link) as (instrument, log):
        await until(lambda: instrument.state == "listening")
        device.say(*BOOT_TEXT, *BANNER_DIGITS)
        for _, line in RECORDED * 2:
            device.say(line)
            await asyncio.sleep(0.06)
        await until(lambda: len(log.arrivals) == 2 * len(RECORDED))
        got = [f"{a.value}, {a.temp_c}, {a.vin}" for a in log.arrivals]
        assert got == [line for _, line in RECORDED * 2]
        assert {(a.sensor_id, a.mode) for a in log.arrivals} == {("serial ######   ", "freerun")}
        stamps = [a.stamp.mono_ns for a in log.arrivals]
        assert stamps == sorted(set(stamps))
        health = instrument.health()
        assert (health.connected, health.state, health.detail) == (True, "freerun", "")
        assert (health.port, health.serial_number) == (device.port, "serial ######   ")
        assert health.counters["banner"] >= 10 and health.counters["readings"] == len(log.arrivals)


async def test_a_line_is_stamped_when_its_first_byte_arrives(link: Path) -> None:
    """A line that comes in two halves carries the instant of the first."""
    clock = SystemClock()
    async with Device(link) as device, running(link) as (_, log):
        device.stream()
        await readings(log)
        device.quiet()
        await asyncio.sleep(0.05)
        count, before_ns = len(log.arrivals), clock.mono_ns()
        device.send(LINE[:4].encode())
        await asyncio.sleep(0.05)
        halfway_ns = clock.mono_ns()
        await asyncio.sleep(0.05)
        device.send(f"{LINE[4:]}\r\n".encode())
        await until(lambda: len(log.arrivals) > count)
        assert before_ns <= log.arrivals[-1].stamp.mono_ns < halfway_ns


async def test_unplugged_and_back_under_another_name(link: Path) -> None:
    """Loss is told within a second; the same link leading to another port is found by itself."""
    async with Device(link) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        device.unplug()
        async with asyncio.timeout(1.0):
            await until(lambda: instrument.state == "disconnected")
        assert not instrument.connected and "waiting" in instrument.health().detail
        device.appear()
        device.stream()
        await readings(log)
        assert instrument.connected and instrument.health().counters["reconnects"] == 1
        assert [k for k in log.kinds if k.startswith("port")] == ["port_opened", "port_lost", "port_opened"]


async def test_a_link_that_moves_away_from_a_silent_port_is_followed(link: Path) -> None:
    """The old port stays open and says nothing: silence makes the driver look where the link leads now."""
    async with Device(link) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        old = device.replug()
        device.stream()
        await until(lambda: "port_lost" in log.kinds)
        await readings(log)
        assert instrument.health().port == device.port
        for descriptor in old:
            os.close(descriptor)


async def test_a_port_that_appears_later_is_opened(link: Path) -> None:
    """A missing port is a state with cause and cure, told once, and tried again for ever."""
    async with running(link) as (instrument, log):
        await until(lambda: instrument.state == "port missing")
        assert not instrument.connected and "plug" in instrument.health().detail
        await asyncio.sleep(0.6)
        async with Device(link) as device:
            device.stream()
            await readings(log)
            assert log.kinds.count("port_missing") == 1


async def test_without_a_port_it_waits() -> None:
    """No port configured is a state that says what to do, not an error."""
    async with running(None) as (instrument, _):
        await asyncio.sleep(0.05)
        assert instrument.state == "no port configured" and "--serial" in instrument.health().detail
        with pytest.raises(NotConnected, match="no port configured"):
            await instrument.configure(averaging=12)


async def test_the_port_is_held_exclusively(link: Path) -> None:
    """A second driver finds it busy and says so; the tty itself is marked exclusive, and freed afterwards."""
    async with Device(link) as device:
        async with running(link) as (first, _):
            await until(lambda: first.state == "listening")
            assert fcntl.ioctl(device.slave, TIOCGEXCL, b"\0\0\0\0") == b"\1\0\0\0"
            async with running(link) as (second, log):
                await until(lambda: second.state == "port busy")
                assert "another program" in second.health().detail and log.kinds == ["port_busy"]
        assert fcntl.ioctl(device.slave, TIOCGEXCL, b"\0\0\0\0") == b"\0\0\0\0"


@pytest.mark.parametrize(
    ("error", "state", "cure"),
    [
        (OSError(errno.EACCES, "Permission denied"), "port denied", "dialout"),
        (OSError(errno.EBUSY, "Device or resource busy"), "port busy", "stop it"),
        (OSError(errno.ENOENT, "No such file"), "port missing", "plug the sensor in"),
        (ValueError("invalid URL"), "port missing", "invalid URL"),
    ],
)
def test_why_a_port_cannot_be_opened_is_told_with_its_cure(error: Exception, state: str, cure: str) -> None:
    """Each cause has its own state and one line that helps."""
    got, _, detail = _explain("/dev/ttyUSB0", error)
    assert got == state and "/dev/ttyUSB0" in detail and cure in detail


async def test_a_talker_without_a_menu_is_accepted(link: Path) -> None:
    """A device that streams and never answers ESC is learned while asked, and every whole line is kept."""
    async with Device(link) as device, running(link, may_interrupt=True) as (instrument, log):
        device.stream()
        await readings(log)
        assert instrument.state == "interview"
        await until(lambda: instrument.state == "freerun")
        assert device.heard.count(b"\x1b") == 2 and "no_menu" in log.kinds
        assert instrument.health().counters["shape"] == 0
        assert instrument.config is None and instrument.sensor_id == "unknown"


async def test_a_reboot_in_mid_stream_is_an_event_and_no_reading(link: Path) -> None:
    """Boot text closes the gate and names the sensor; readings go on when it samples again."""
    async with Device(link) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        device.quiet()
        await asyncio.sleep(0.1)
        count = len(log.arrivals)
        device.say(*BOOT_TEXT[:-1])
        await until(lambda: instrument.state == "listening")
        device.say(BOOT_TEXT[-1], LINE)
        await until(lambda: len(log.arrivals) == count + 1)
        assert instrument.sensor_id == "serial ######   "
        assert instrument.health().counters["resets"] == 1
        assert {"sensor_rebooted", "sensor_identified"} <= set(log.kinds)


async def test_a_sensor_dropped_into_its_menu_is_sent_back(link: Path) -> None:
    """Menu text without our asking is answered with X, even while recording."""

    def answer(data: bytes) -> None:
        if b"X" in data:
            device.say("Calling reset!", "Rebooting program", *BOOT_TEXT)
            device.stream()

    async with Device(link) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        device.quiet()
        device.on_heard = answer
        await asyncio.sleep(0.1)
        device.say(*MENU_TEXT[:-1])
        await until(lambda: instrument.state == "menu")
        device.say(MENU_TEXT[-1])
        await readings(log)
        assert "menu_left" in log.kinds and instrument.state == "freerun"
        assert {a.value for a in log.arrivals} == {LINE[:8]}


async def test_silence_is_told_and_ended(link: Path) -> None:
    """Three seconds of silence are an event, an X is tried, and the return of the stream ends it."""
    async with Device(link) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        device.quiet()
        await until(lambda: instrument.state == "silent")
        assert not instrument.connected and "cable" in instrument.health().detail
        await until(lambda: device.heard == b"X")
        device.stream()
        await readings(log)
        assert instrument.state == "freerun" and instrument.connected
        assert log.kinds.count("silence") == log.kinds.count("silence_ended") == 1


async def test_the_sensors_own_speed_is_found(link: Path) -> None:
    """Bytes that are not text make the driver try the other speeds and keep the one that makes sense."""
    async with Device(link, baud=57600) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        assert instrument.health().baud == 57600 and log.detail("baud_found") == "57600, not 9600"
        assert {a.value for a in log.arrivals} == {LINE[:8]}


async def test_a_speed_changed_by_another_program_is_restored(link: Path) -> None:
    """Whoever opens a tty can change its speed for all; it is set back and counted."""
    async with Device(link, baud=9600) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        attributes = termios.tcgetattr(device.slave)
        attributes[4] = attributes[5] = termios.B115200
        termios.tcsetattr(device.slave, termios.TCSANOW, attributes)
        await until(lambda: "port_speed_restored" in log.kinds)
        await readings(log)
        assert instrument.health().counters["port_speed_restored"] == 1
        assert instrument.health().baud == 9600 and "garbled" not in log.kinds


async def test_garbage_among_readings_is_counted_and_sampled(link: Path) -> None:
    """NULs, 0xFF, an 80 KiB line and halves are dropped, counted and summarised; readings go on."""
    async with Device(link) as device, running(link) as (instrument, log):
        device.stream()
        await readings(log)
        device.quiet()
        await asyncio.sleep(0.1)
        device.send(b"\x00\xff\xfe\r\n")
        for _ in range(80):
            device.send(b"z" * 1024)
            await asyncio.sleep(0.002)
        device.say("", "26.85, 7.494", "57, 25.19, 7.515")
        device.stream()
        await readings(log)
        counters = instrument.health().counters
        assert [counters[kind] for kind in ("garbage", "overlong", "shape")] == [1, 1, 1]
        await until(lambda: log.kinds.count("noise") >= 1)
        assert re.search(r"first: [0-9a-f]{1,128}$", log.detail("noise"))
        assert {a.value for a in log.arrivals} == {LINE[:8]}


async def test_polled_replies_are_asked_for(link: Path) -> None:
    """The start goes out once, then queries without CR; only replies with the tag are readings."""

    def answer(data: bytes) -> None:
        if data.endswith(b">C*"):
            device.say(f"C,{LINE}")

    async with (
        Device(link) as device,
        running(link, mode="polled", tag="C", poll_hz=10.0) as (instrument, log),
    ):
        device.on_heard = answer
        await readings(log)
        assert re.fullmatch(rb"X\*CQ000!(>C\*)+", device.heard)
        assert instrument.state == "polled" and {a.mode for a in log.arrivals} == {"polled"}


async def test_a_polled_sensor_is_asked_as_often_as_is_wished(link: Path) -> None:
    """Not more often than it has new readings, as far as that is known."""
    config = {
        "averaging": 25,
        "adc_rate_hz": 125,
        "serial_number": "Q1",
        "raw": "",
        "mode": "polled",
        "tag": "C",
    }

    def answer(data: bytes) -> None:
        if data.endswith(b">C*"):
            device.say(f"C,{LINE}")

    def queries() -> int:
        return device.heard.count(b">C*")

    async with (
        Device(link) as device,
        running(link, mode="polled", tag="C", poll_hz=2.0) as (instrument, _),
    ):
        device.on_heard = answer
        await until(queries)
        instrument.set_poll_rate(1e3)
        before, begin_s = queries(), time.monotonic()
        await until(lambda: queries() >= before + 40)
        assert time.monotonic() - begin_s > 0.7
        instrument.remember({"config": config})
        instrument.set_poll_rate(1e3)
        before, begin_s = queries(), time.monotonic()
        await until(lambda: queries() >= before + 6)
        assert time.monotonic() - begin_s > 0.9


async def test_a_port_at_a_socket_works() -> None:
    """A serial server on the network is a port like any other, and its end is a loss."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with running(f"socket://127.0.0.1:{port}") as (instrument, log):
            peer, _ = await asyncio.to_thread(server.accept)
            with peer:
                async with asyncio.timeout(PATIENCE_S):
                    while len(log.arrivals) < 7:
                        peer.sendall(f"{LINE}\r\n".encode())
                        await asyncio.sleep(0.06)
                assert instrument.connected
            await until(lambda: instrument.state == "disconnected")


@pytest.mark.parametrize("may_interrupt", [False, True])
async def test_nothing_is_left_after_the_end(link: Path, may_interrupt: bool) -> None:
    """Cancelled while it listens or talks, it leaves no task behind and gives the port back."""
    before = asyncio.all_tasks()
    async with Device(link):
        async with running(link, may_interrupt=may_interrupt) as (instrument, _):
            await until(lambda: instrument.state == ("interview" if may_interrupt else "listening"))
        assert asyncio.all_tasks() == before
        async with running(link) as (again, _):
            await until(lambda: again.state == "listening")


async def test_a_simulated_sensor_is_interviewed_and_configured(
    link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked at the start and set on request: the firmware model obeys, and its resets are no surprise."""
    for delay in ("POWER_UP_S", "ADC_START_S", "MENU_DELAY_S"):  # they have their own tests
        monkeypatch.setattr(common.simulator.firmware, delay, 0.03)
    eeprom = Eeprom(averaging=12, baud=115200)
    async with (
        Simulator(link, lambda start_ns, end_ns: Sample(0.010157, 25.2, 7.5), eeprom=eeprom),
        running(link, may_interrupt=True, baud=115200) as (instrument, log),
    ):
        await until(lambda: instrument.config)
        assert instrument.sensor_id == "serial ######   " and instrument.health().firmware == "4.003"
        with pytest.raises(InvalidSetting, match="averaging 0"):
            await instrument.configure(averaging=0)
        config = await instrument.configure(adc_rate_hz=250)
        assert (config.averaging, config.adc_rate_hz, eeprom.rate_hz) == (12, 250, 250)
        await readings(log)
        assert log.kinds.count("configured") == 2 and "sensor_rebooted" not in log.kinds
        assert instrument.describe()["config"]["adc_rate_hz"] == 250


@pytest.mark.parametrize(
    "wrong", [{"baud": 1}, {"averaging": 0}, {"adc_rate_hz": 7}, {"tag": "a"}, {"poll_hz": 0.0}, {"x": 1}]
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    """A setting out of range or unknown is named in the error."""
    with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
        msgspec.convert(wrong, SerialSettings)
