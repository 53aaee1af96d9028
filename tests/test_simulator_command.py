"""The simulator as a command, and the words for its faults."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.simulator import Simulator
from common.simulator.__main__ import main
from common.simulator.faults import FAULTS, Fault, FaultError, parse_fault, parse_faults
from tests.sim.host import Host, eventually


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "sensor"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("unplug@20:5", Fault("unplug", (5.0,), 20.0)),
        ("reboot@40", Fault("reboot", (), 40.0)),
        (" garbage@1.5:200 ", Fault("garbage", (200,), 1.5)),
        ("half:tail", Fault("half", ("tail",))),
        ("baud:4800", Fault("baud", (4800,))),
    ],
)
def test_faults_are_read(text: str, fault: Fault) -> None:
    """Name, second and argument, the last two optional."""
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text",
    ["gremlin@3", "", "unplug@x", "unplug@1:soon", "unplug@-1", "reboot@1:2", "garbage@1:0", "baud@1:9601",
     "half@1:middle", "shape@1:", "silence@nan", "reboot"],
)  # fmt: skip
def test_bad_faults_are_named(text: str) -> None:
    """The message names the fault and lists those that exist."""
    if not text:
        assert parse_faults(text) == []
        return
    with pytest.raises(FaultError, match=re.escape(text.split("@")[0])) as caught:
        parse_faults(text)
    assert all(name in str(caught.value) for name in FAULTS)


def test_every_fault_is_a_method() -> None:
    """What can be asked for can be done."""
    assert all(callable(getattr(Simulator, name)) for name in FAULTS)


@asynccontextmanager
async def command(*arguments: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "common.simulator",
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def first_line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout
    return await asyncio.wait_for(process.stdout.readline(), 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_says_where_it_is_and_leaves_cleanly(link: Path, number: int) -> None:
    """One line, then it runs until the signal, exits 0 and takes the link away."""
    async with command("--link", link, "--averaging", "60", "--serial-number", "Q47") as process:
        line = (await first_line(process)).decode()
        assert line == f"{link} -> {link.readlink()}: Q-Series serial Q47, 60 averages at 125 Hz\n"
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    assert not link.is_symlink()


async def test_the_command_takes_faults_from_standard_input(link: Path) -> None:
    """A line is a fault; one that is none is complained of and changes nothing."""
    async with command("--link", link, "--faults", "-") as process:
        await first_line(process)
        assert process.stdin and process.stderr
        port = link.readlink()
        process.stdin.write(b"gremlin\nreplug\n")
        complaint = await asyncio.wait_for(process.stderr.readline(), 10)
        assert complaint.startswith(b"unknown fault 'gremlin'; valid: unplug")
        await eventually(lambda: link.is_symlink() and link.readlink() != port)
        process.stdin.close()
        assert process.returncode is None


async def test_two_commands_see_one_sky(tmp_path: Path) -> None:
    """Two processes with one seed and origin measure the same light, each with its own noise."""
    origin = str(SystemClock().mono_ns())
    truths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    common_flags = ("--seed", "5", "--origin-ns", origin, "--role", "surface", "--averaging", "4", "--quiet")
    runs = [
        command("--link", tmp_path / name, "--truth", truth, "--serial-number", name, *common_flags)
        for name, truth in zip("ab", truths, strict=True)
    ]
    async with runs[0] as first, runs[1] as second:
        await first_line(first)
        await first_line(second)
        hosts = [Host(tmp_path / name, 9600) for name in "ab"]
        for host in [*hosts, *hosts]:  # by the second time both run
            await host.until(rb"(\r\n.*){12}")
        for host in hosts:
            host.close()
    rows = [[row.split(",") for row in truth.read_text().splitlines()[1:]] for truth in truths]
    seen = [[(int(row[1]), float(row[3])) for row in one] for one in rows]
    here, there = min(
        ((one, other) for one in seen[0] for other in seen[1]), key=lambda two: abs(two[0][0] - two[1][0])
    )
    assert abs(here[0] - there[0]) < 40_000_000
    assert here[1] == pytest.approx(there[1], rel=0.05)
    values = [[value for _, value in one] for one in seen]
    assert values[0] != values[1]
    assert all(value > 300 for value in values[0] + values[1])


@pytest.mark.parametrize(
    "flags",
    [
        ["--averaging", "0"],
        ["--baud", "9601"],
        ["--rate", "100"],
        ["--tag", "a"],
        ["--serial-number", "a,b"],
        ["--quantum-ms", "soon"],
        ["--faults", "gremlin@3"],
        ["--truth", "/nowhere/at/all.csv"],
        ["--nonsense"],
    ],
)
def test_bad_flags_are_one_line_and_exit_2(
    link: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad usage names its cause in one line and makes no link."""
    try:
        code: int | str | None = main(["--link", str(link), *flags])
    except SystemExit as left:
        code = left.code
    errors = capsys.readouterr().err
    assert code == 2
    assert errors.count("\n") == 1 and errors.startswith("python -m common.simulator: ")
    assert not link.is_symlink()
