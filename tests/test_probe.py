"""`probe PORT` on real pseudo-terminals: what it hears, how it ends, and how it leaves the sensor."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import common.probe
import common.sensor
import common.simulator.firmware
from common.clock import SystemClock
from common.doctor import check_heard
from common.holders import users_of
from common.probe import Probed, probe
from common.simulator import Simulator
from common.simulator.texts import Eeprom, Sample
from pi_daemon.__main__ import main as pi_main
from tests.sim.device import Device
from tests.sim.host import eventually, more_lines
from tests.sim.outsider import ROOT, as_nobody, call, program
from topside_daemon.__main__ import main as topside_main

HOLD = "import os; fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)"
LOCK = f"{HOLD}; import fcntl; fcntl.flock(fd, fcntl.LOCK_EX)"


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "sensor"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firmware whose pauses, which have tests of their own, are short; and a probe in a hurry."""
    monkeypatch.setattr(common.probe, "HEAR_S", 0.5)
    monkeypatch.setattr(common.probe, "ENOUGH", 2)
    monkeypatch.setattr(common.sensor, "BOOT_S", 0.5)
    for delay in ("POWER_UP_S", "ADC_START_S", "MENU_DELAY_S"):
        monkeypatch.setattr(common.simulator.firmware, delay, 0.03)


def simulator(link: Path, **eeprom: object) -> Simulator:
    settings = Eeprom(**({"averaging": 4, "baud": 115200} | eeprom))  # type: ignore[arg-type]
    return Simulator(link, lambda start_ns, end_ns: Sample(0.010157, 25.2, 7.5), eeprom=settings)


async def hear(link: Path, baud: int = 115200, **limits: float | bool) -> Probed:
    return await probe(str(link), baud, SystemClock(), **limits)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
async def test_a_sensor_is_told_and_runs_on_as_it_was(link: Path) -> None:
    """Identity, configuration, shape, rate and value; afterwards the same settings, and lines flow."""
    async with simulator(link, preamble="$LITE") as sensor:
        before = repr(sensor.eeprom)
        told = await hear(link)
        assert (told.heard, told.state, told.detail, told.baud) == (True, "freerun", "", 115200)
        assert told.config is not None
        assert (told.config.averaging, told.config.adc_rate_hz, told.config.firmware) == (4, 125, "4.003")
        assert told.serial_number == "serial ######   "
        assert told.rate_hz is not None and 15 < told.rate_hz < 125 / 4
        assert told.jitter_ms is not None and 0 <= told.jitter_ms < 50
        assert told.shape is not None and "'$LITE' value, TempC, Vin" in told.shape
        assert told.value is not None and float(told.value) == pytest.approx(0.010157, rel=1e-3)
        assert repr(sensor.eeprom) == before
        await more_lines(sensor, 3)


@pytest.mark.usefixtures("quick")
async def test_a_sensor_left_in_its_menu_samples_afterwards(link: Path) -> None:
    """Somebody else's menu is left by the sensor's own X."""
    async with simulator(link) as sensor:
        sensor.menu()
        told = await hear(link)
        assert told.heard and told.config is not None
        await more_lines(sensor, 3)


@pytest.mark.usefixtures("quick")
async def test_whatever_is_on_a_line_is_told(tmp_path: Path) -> None:
    """By the probe, and by the doctor with the cure. All at once, for each takes its seconds:

    nothing; noise at every speed; a sensor at another speed, at which what is heard looks like text; one that
    hears nothing of us; one that is polled, which is found by its menu and read with its own tag.
    """
    rng = random.Random(5)
    async with (
        Device(tmp_path / "mute") as mute,
        Device(tmp_path / "noisy") as noisy,
        Device(tmp_path / "other", 19200) as other,
        Device(tmp_path / "deaf") as deaf,
        simulator(tmp_path / "polled", polled=True, tag="B") as sensor,
    ):
        noisy.stream(hz=50.0, line=rng.randbytes(60).replace(b"\n", b"\0").decode("latin-1"))
        other.stream()
        deaf.stream()
        silent, garbled, found, unheard, polled = await asyncio.gather(
            hear(mute.link, 9600, deaf_s=1.0),
            hear(noisy.link, 9600, ask=False, longest_s=5.5),
            hear(other.link, 9600, ask=False),
            hear(deaf.link, 9600),
            hear(sensor.link),
        )
    assert (silent.heard, silent.heard_bytes, silent.speeds_tried) == (False, 0, [9600])
    assert "heard     nothing, at 9600 baud" in str(silent)
    said = f"FAIL sensor: nothing heard on {mute.link} at 9600 baud: check cable and power"
    assert str(check_heard(silent, 9600)).startswith(said)

    assert not garbled.heard and garbled.heard_bytes > 1000
    assert garbled.speeds_tried[:3] == [9600, 19200, 38400]
    assert f"{garbled.heard_bytes} bytes and no reading, at 9600, 19200" in str(garbled)
    judged = check_heard(garbled, 9600)
    assert judged.level == "FAIL" and "bytes and no reading" in judged.detail and "--baud" in judged.detail

    assert (found.heard, found.baud, found.speeds_tried) == (True, 19200, [9600, 19200])
    cure = "it speaks at 19200 baud, not at 9600: set baud = 19200 under [serial], or --baud 19200"
    assert str(check_heard(found, 9600)) == f"warn sensor: {cure}"

    assert unheard.heard and unheard.config is None and unheard.value == "0.010157"
    assert "does not answer ESC: check the line towards the sensor" in str(unheard)

    assert (polled.heard, polled.state) == (True, "polled")
    assert polled.config is not None and (polled.config.mode, polled.config.tag) == ("polled", "B")
    assert (sensor.eeprom.polled, sensor.eeprom.tag) == (True, "B")


async def test_a_port_that_another_program_has_is_not_touched(link: Path) -> None:
    """The other one is named, by process and command; nothing is sent to its sensor."""
    async with Device(link) as device:
        with program(HOLD, device.port) as other:
            told = await hear(link, deaf_s=0.2)
            assert (told.heard, told.state) == (False, "port busy")
            assert f"process {other.pid} ({sys.executable} -c" in told.detail and "stop it" in told.detail
        assert device.heard == b""
        assert users_of(device.port) == []


def test_a_port_that_is_not_there_is_one_line_and_a_code(
    link: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing; and a speed that is none is bad usage."""
    assert pi_main(["probe", str(link)]) == 1
    assert f"port missing: {link} does not exist: plug the sensor in" in capsys.readouterr().out
    assert topside_main(["probe", str(link), "--baud", "1"]) == 2
    assert "--baud 1: " in capsys.readouterr().err


def test_without_a_right_to_the_port_the_cure_is_named(link: Path) -> None:
    """As another user: no permission; and who has locked the port is known even then."""
    nobody = as_nobody()
    master, slave = os.openpty()
    port = os.ttyname(slave)
    try:
        Path(port).chmod(0o600)
        done = call("pi_daemon", "probe", port, user=nobody)
        assert done.returncode == 1
        assert f"port denied: no permission for {port}: add this user to the group dialout" in done.stdout
        with program(LOCK, port) as other:
            done = call("pi_daemon", "probe", port, user=nobody)
            assert f"port busy: {port} is in use by process {other.pid} (" in done.stdout
    finally:
        os.close(master)
        os.close(slave)


class Bench:
    """Simulated sensors and probes as processes, all at once: each takes as long as a real sensor does."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def sensor(self, name: str, *flags: str) -> str:
        link = self._folder / name
        command = [sys.executable, "-m", "common.simulator", "--link", str(link), "--averaging", "12", *flags]
        simulated = self._run(command)
        assert simulated.stdout is not None
        assert simulated.stdout.readline()
        return str(link)

    def probe(self, module: str, *words: str) -> "subprocess.Popen[str]":
        return self._run([sys.executable, "-m", module, "probe", *words])

    def _run(self, command: list[str]) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        running = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
        self._stack.callback(running.communicate)
        self._stack.callback(running.kill)
        return running


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path)


async def test_the_command_tells_people_and_scripts_and_can_be_interrupted(bench: Bench) -> None:
    """Lines for people; JSON; and interrupted in the middle of the menu it leaves that first."""
    links = [bench.sensor(name, "--baud", "115200") for name in "abc"]
    plain = bench.probe("pi_daemon", links[0], "--baud", "115200")
    scripted = bench.probe("topside_daemon", links[1], "--baud", "115200", "--json")
    interrupted = bench.probe("pi_daemon", links[2], "--baud", "115200")
    await asyncio.sleep(4.0)  # it has heard enough and has sent ESC
    interrupted.send_signal(signal.SIGINT)
    out, err = plain.communicate(timeout=40)
    assert (plain.returncode, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["sensor"].startswith("serial ######") and lines["sensor"].endswith("firmware 4.003")
    assert lines["settings"] == "averaging 12 at 125 Hz, freerun"
    assert lines["port"] == f"{links[0]}, 115200 baud"
    assert {"line", "rate", "value"} <= lines.keys() and "trouble" not in lines
    told = json.loads(scripted.communicate(timeout=40)[0])
    assert told["heard"] and told["config"]["averaging"] == 12 and told["rate_hz"] > 5
    out, err = interrupted.communicate(timeout=20)
    assert "Traceback" not in err and out.startswith("port ")
    again = await hear(Path(links[2]), ask=False)
    assert again.heard and again.heard_bytes < 400, "it did not sample by itself"
    await eventually(lambda: users_of(links[2]) == [])
