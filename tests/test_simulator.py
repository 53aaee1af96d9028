"""The simulated sensor on a real pty, seen by a plain client that opens, reads and writes it."""

import fcntl
import io
import stat
import struct
import termios
from itertools import pairwise
from pathlib import Path

import pytest

import common.simulator.firmware
from common.clock import SystemClock
from common.simulator import Simulator
from common.simulator.faults import parse_faults
from common.simulator.terminal import Terminal
from common.simulator.texts import Eeprom
from tests.sim.host import BANNER, LINE, Host, Light, eventually, more_lines, streaming, value

TIOCGEXCL = 0x80045440


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delays of the firmware have their own tests."""
    monkeypatch.setattr(common.simulator.firmware, "POWER_UP_S", 0.03)
    monkeypatch.setattr(common.simulator.firmware, "ADC_START_S", 0.03)
    monkeypatch.setattr(common.simulator.firmware, "MENU_DELAY_S", 0.03)


@pytest.fixture
def eeprom() -> Eeprom:
    return Eeprom(averaging=4, rate_hz=500, baud=115200)


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "sensor"


async def test_the_link_names_a_pty_while_it_runs(link: Path, eeprom: Eeprom) -> None:
    """An old link is replaced, lines come through it, and it is gone at the end."""
    link.symlink_to("/nowhere")
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        assert str(link.readlink()) == simulator.port
        assert stat.S_ISCHR(link.stat().st_mode)
        values = [value(line) for line in await host.lines(5)]
        assert values == [values[0] + i for i in range(5)]
    assert not link.is_symlink()


async def test_a_file_in_place_of_the_link_is_left_alone(link: Path, eeprom: Eeprom) -> None:
    """The simulator refuses to replace what is not a link."""
    link.write_text("precious")
    with pytest.raises(FileExistsError, match="not a link"):
        async with Simulator(link, Light(), eeprom=eeprom):
            pass
    assert link.read_text() == "precious"


async def test_the_menu_works_through_the_pty(link: Path, eeprom: Eeprom) -> None:
    """A driver that answers each prompt as soon as it is complete gets its setting and its stream."""
    eeprom.baud = 38400
    async with streaming(Simulator(link, Light(), eeprom=eeprom), 38400) as host:
        host.say(b"\x1b")
        await host.until(rb"menu entry:\r\n")
        host.say(b"A\r")
        await host.until(rb"\(1-65535\): $")
        host.say(b"17\r")
        assert b"17 was entered\r\n\r\nADC set to averaging 17\r\n" in await host.until(rb"menu entry:\r\n")
        host.say(b"X")
        await host.until(BANNER)
        assert all(LINE.fullmatch(line) for line in await host.lines(3))
    assert eeprom.averaging == 17


async def test_unplugging_hangs_up_and_the_sensor_comes_back_booting(link: Path, eeprom: Eeprom) -> None:
    """The host sees a hang-up and no link; after the given time both are there again."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        simulator.unplug(0.2)
        assert not link.is_symlink() and simulator.port == ""
        await host.hung_up()
        await eventually(link.is_symlink)
        back = Host(link)
        await back.until(BANNER)
        assert all(LINE.fullmatch(line) for line in await back.lines(3))
        back.close()


async def test_replugging_moves_the_link_to_another_port(link: Path, eeprom: Eeprom) -> None:
    """The old port hangs up, the new one has another name and boots."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        old = simulator.port
        simulator.replug()
        assert simulator.port != old and str(link.readlink()) == simulator.port
        await host.hung_up()
        moved = Host(link)
        await moved.until(BANNER)
        moved.close()


async def test_the_wrong_speed_carries_nothing_either_way(link: Path, eeprom: Eeprom) -> None:
    """At 9600 no line and no command of a 115200 sensor survives; back at its speed both do."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        host.set_baud(9600)
        host.say(b"\x1b")
        await more_lines(simulator, 2)
        host.take()
        host.heard = b""
        await more_lines(simulator, 20)
        host.take()
        assert host.heard and b"27.68" not in host.heard
        assert simulator.counts["scrambled_bytes"] > 0
        host.set_baud(115200)
        await host.until(rb"\n")
        assert all(LINE.fullmatch(line) for line in await host.lines(3))


async def test_a_port_starts_at_9600_baud_and_raw(link: Path) -> None:
    """A client that sets nothing hears a 9600 baud sensor as it is, unechoed."""
    eeprom = Eeprom(averaging=1, rate_hz=500)
    async with Simulator(link, Light(), eeprom=eeprom):
        host = Host(link, baud=None)
        await host.until(rb"ADC OK\r\n")
        host.say(b"\r\nhello\x03\x04\r\n")
        await host.until(BANNER)
        assert all(LINE.fullmatch(line) for line in await host.lines(3))
        host.close()


async def test_a_prober_changes_the_speed_under_the_host(link: Path, eeprom: Eeprom) -> None:
    """After the probe the port stands at 115200 and a 19200 sensor is not understood until it is set back."""
    eeprom.baud = 19200
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with simulator:
        host = Host(link, 19200)
        await host.until(BANNER)
        simulator.prober()
        assert termios.tcgetattr(host.fd)[5] == termios.B115200
        await more_lines(simulator, 2)
        host.take()
        host.heard = b""
        await more_lines(simulator, 5)
        host.take()
        assert host.heard and b"27.68" not in host.heard
        host.set_baud(19200)
        await host.until(LINE.pattern)
        host.close()


async def test_a_prober_at_the_right_speed_is_just_noise_to_the_sensor(link: Path, eeprom: Eeprom) -> None:
    """What BlueOS writes holds neither ESC nor a question mark, so a 115200 sensor streams on."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        simulator.prober()
        assert all(LINE.fullmatch(line) for line in await host.lines(5))


@pytest.mark.parametrize("reset_on_open", [False, True])
async def test_opening_the_port_restarts_the_sensor_if_so_wished(
    link: Path, eeprom: Eeprom, reset_on_open: bool
) -> None:
    """With the option every opening boots, the first and the next; without it the sensor just goes on."""
    simulator = Simulator(link, Light(), eeprom=eeprom, reset_on_open=reset_on_open)
    async with simulator:
        await more_lines(simulator, 3)
        for _ in range(2):
            host = Host(link)
            heard = b"".join(await host.lines(20))
            assert (BANNER in heard) == reset_on_open
            host.close()
            await more_lines(simulator, 3)


async def test_a_second_opening_does_not_restart_it(link: Path, eeprom: Eeprom) -> None:
    """Only the first of several open descriptors resets the sensor, as on a real port."""
    simulator = Simulator(link, Light(), eeprom=eeprom, reset_on_open=True)
    async with streaming(simulator) as host:
        Host(link).close()
        assert BANNER not in b"".join(await host.lines(20))


async def test_nothing_waits_in_a_port_that_was_closed(link: Path, eeprom: Eeprom) -> None:
    """Bytes that came while nobody had the port open, or were not read before it was closed, are lost."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        simulator.garbage(100)
        host.close()
        await more_lines(simulator, 10)
        assert simulator.counts["dropped_bytes"] > 0
        again = Host(link)
        sent = 1_000_000 + simulator.counts["lines"]
        assert value((await again.lines(1))[0]) >= sent
        again.close()


async def test_a_reader_that_sleeps_loses_bytes_and_stops_nothing(link: Path, eeprom: Eeprom) -> None:
    """When the host's buffer is full the sensor goes on, and the loss is counted."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        simulator.garbage(60_000)
        assert simulator.counts["dropped_bytes"] > 0
        await more_lines(simulator, 3)
        await host.until(LINE.pattern)


async def test_an_exclusive_hold_ends_with_its_holder(link: Path, eeprom: Eeprom) -> None:
    """A host that set TIOCEXCL and left bars nobody: the port at the link opens, and is not exclusive."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        fcntl.ioctl(host.fd, termios.TIOCEXCL)
        host.close()
        dropped = simulator.counts["dropped_bytes"]
        await eventually(lambda: simulator.counts["dropped_bytes"] > dropped)
        again = Host(link)
        assert struct.unpack("i", fcntl.ioctl(again.fd, TIOCGEXCL, struct.pack("i", 7))) == (0,)
        await again.until(LINE.pattern)
        again.close()


async def test_truth_has_every_line_the_host_got(link: Path, eeprom: Eeprom) -> None:
    """Each whole line is a row, stamped before the host read it; a half and a spliced line are none."""
    truth, clock = io.StringIO(), SystemClock()
    simulator = Simulator(link, Light(), eeprom=eeprom, truth=truth)
    async with streaming(simulator) as host:
        got = await host.lines(3)
        simulator.half("head")
        simulator.splice()
        got += await host.lines(10)
        end = clock.stamp()
    header, *rows = truth.getvalue().splitlines()
    assert header == "line,mono_ns,utc_ns,value,temp_c,vin,centre_ns,depth_m"
    columns = [row.split(",") for row in rows]
    told = {f"{row[3]}, {row[4]}, {row[5]}\r\n".encode(): row for row in columns}
    whole = [line for line in got if LINE.fullmatch(line)]
    assert len(whole) == 11
    assert [line for line in told if whole[0] <= line <= whole[-1]] == whole
    assert all(int(told[line][1]) <= end.mono_ns and int(told[line][2]) <= end.utc_ns for line in whole)
    assert [int(told[line][0]) for line in whole] == [
        value(line) - value(whole[0]) + int(told[whole[0]][0]) for line in whole
    ]
    assert {row[7] for row in columns} == {"1.500"}


async def test_a_quantum_holds_bytes_back(link: Path, eeprom: Eeprom) -> None:
    """Behind a slow adapter lines come several at a time, cut anywhere, and none is lost."""
    truth = io.StringIO()
    simulator = Simulator(link, Light(), eeprom=eeprom, truth=truth, quantum_s=0.15)
    async with streaming(simulator) as host:
        values = [value(line) for line in await host.lines(30)]
    assert values == [values[0] + i for i in range(30)]
    stamps = [int(row.split(",")[1]) for row in truth.getvalue().splitlines()[1:]]
    together = sum(b - a < 5_000_000 for a, b in pairwise(stamps))
    assert together > len(stamps) / 2


async def test_damage_to_the_stream(link: Path, eeprom: Eeprom) -> None:
    """Half lines, spliced lines and garbage are what their names say, and clean lines follow."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        for missing in ("head", "tail"):
            lines = await host.lines(1)
            simulator.half(missing)
            lines += await host.lines(10)
            (before, bad), *others = [pair for pair in pairwise(lines) if not LINE.fullmatch(pair[1])]
            lost = f"{value(before) + 1}.000000, 27.68, 7.494\r\n".encode()
            assert not others
            assert lost.endswith(bad) if missing == "head" else lost.startswith(bad.rstrip())
        simulator.splice()
        lines = await host.lines(10)
        assert sum(line.count(b"27.68") == 2 for line in lines) == 1
        simulator.garbage(50)
        noise = b"".join(await host.lines(10))
        assert b"\0" in noise and b"\xff" in noise
        assert all(LINE.fullmatch(line) for line in await host.lines(3))


async def test_silence_shape_menu_reboot_and_speed(link: Path, eeprom: Eeprom) -> None:
    """The sensor falls silent, changes its fields, drops into its menu, reboots, changes its speed."""
    simulator = Simulator(link, Light(), eeprom=eeprom)
    async with streaming(simulator) as host:
        lines = await host.lines(1)
        simulator.silence(0.2)
        lines += await host.lines(5)
        assert (
            max(value(b) - value(a) for a, b in pairwise(lines)) > 3
            and simulator.counts["silenced_bytes"] > 0
        )
        simulator.shape("temp")
        await host.until(rb"\n[0-9]+\.[0-9]{6}, 7\.494\r\n")
        simulator.shape("temp")
        simulator.menu()
        await host.until(rb"menu entry:\r\n$")
        simulator.reboot()
        await host.until(BANNER)
        simulator.baud(19200)
        host.set_baud(19200)
        await host.until(rb"\n")
        assert all(LINE.fullmatch(line) for line in await host.lines(3))


async def test_scheduled_faults_strike(link: Path, eeprom: Eeprom) -> None:
    """A fault with a second happens by itself."""
    simulator = Simulator(link, Light(), eeprom=eeprom, faults=parse_faults("replug@0.3,garbage@0.1:10"))
    async with streaming(simulator) as host:
        await host.hung_up()
        assert simulator.counts["garbage"] == simulator.counts["replug"] == 1


def test_writing_to_a_terminal_nobody_has_open_is_harmless() -> None:
    """The device end neither blocks nor raises, whoever is there."""
    terminal = Terminal()
    assert terminal.look() == (False, False)
    assert terminal.read() == b""
    assert terminal.write(b"x" * 100_000) < 100_000
    terminal.close()
