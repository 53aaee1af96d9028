"""A day of readings in a minute: memory and descriptors stay, and little is written beside the data.

Recorder, announcer and the Pi's HTTP calls run here, on real files and a clock that is turned by hand; a
mirror and a subscriber of the bus follow in a process of their own. Each process measures itself.
"""

import argparse
import asyncio
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

from msgspec import Struct

from common.announcer import Announcer
from common.bus import INWATER, Publisher, Subscriber
from common.instrument import Arrival, Instrument, SerialSettings
from common.messages import Reading
from common.recorder import Recorder
from common.service import Supervisor
from pi_daemon.api import Api
from pi_daemon.config import Config
from pi_daemon.sessions import Sessions
from tests.sim.clocks import SimClock
from tests.sim.disk import content_of
from tests.sim.rig import ROOT, free_port
from tests.sim.streams import SESSION_ID, Heard, at_work, new_record, until
from topside_daemon.mirror import Mirror
from topside_daemon.pi import Pi

HOURS = 24.0
RATE_HZ = 15
STEP_S = 5  # simulated, between looks whether the disk follows
ROLL_S = 10.0  # since a chunk's first rows, which are a step's: it rolls with 15 s in it
TOGETHER = 60  # steps after which the recorder waits for the mirror, that it need not fetch all at once
WARM_UP_H = 2.0
GROWTH_KB = 5_000
AMPLIFICATION = 1.2
PULL_S = 0.1  # real, between pulls


class Look(Struct, frozen=True):
    """What a process holds and has written when it has got so far."""

    hour: float
    data_bytes: int
    resident_kb: int
    descriptors: int
    written_bytes: int  # handed to the OS
    stored_bytes: int  # sent on to the disk


def look(hour: float, data_bytes: int) -> Look:
    """Measure this process."""
    gc.collect()
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    io = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    resident_kb = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return Look(hour, data_bytes, resident_kb, descriptors, io["wchar"], io["write_bytes"])


def size_of(folder: Path) -> int:
    """Bytes in the sealed chunks of a stream folder; a list of them would be memory of ours."""
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.name.endswith(".csv"))


class Ledger:
    """The looks of one process, an hour apart, and what they prove."""

    def __init__(self, name: str) -> None:
        self.looks: list[Look] = []
        self._name = name

    def due(self, hour: float, every: float) -> bool:
        return not self.looks or hour >= self.looks[-1].hour + every

    def enter(self, new: Look) -> None:
        self.looks.append(new)
        held = f"memory {new.resident_kb / 1000:.1f} MB, {new.descriptors} descriptors"
        written = f"{self.amplification():.3f} bytes written per byte"
        data = f"{new.data_bytes / 1e6:7.1f} MB of data"
        print(f"{self._name:<9}{new.hour:5.1f} h {data}, {held}, {written}", flush=True)

    def amplification(self) -> float:
        """Bytes handed to the OS per byte of data."""
        first, last = self.looks[0], self.looks[-1]
        return (last.written_bytes - first.written_bytes) / max(1, last.data_bytes - first.data_bytes)

    def failures(self, warm_up_h: float) -> list[str]:
        """What is not as promised since the warm-up."""
        warm = [one for one in self.looks if one.hour >= warm_up_h]
        growth_kb = warm[-1].resident_kb - warm[0].resident_kb
        half = len(warm) // 2
        earlier, later = ([one.descriptors for one in part] for part in (warm[:half], warm[half:]))
        since = f"since {warm[0].hour:.1f} h"
        print(f"{self._name:<9}memory {growth_kb / 1000:+.1f} MB {since}", flush=True)
        found = []
        if growth_kb > GROWTH_KB:
            found.append(f"{self._name}: memory has grown by {growth_kb} kB")
        if min(later) > max(earlier):
            found.append(f"{self._name}: descriptors have grown from {earlier} to {later}")
        if self.amplification() > AMPLIFICATION:
            found.append(f"{self._name}: {self.amplification():.2f} bytes written per byte of data")
        return found


class Recording:
    """A Pi's recording parts in this process, with a recording that is open."""

    def __init__(self, data: Path) -> None:
        self.clock = SimClock()
        self.folder = data / SESSION_ID
        self.http, self.supervisor = free_port(), Supervisor()
        self.publisher = Publisher("tcp://127.0.0.1:0")
        announcer = Announcer(self.publisher, INWATER, self.clock)
        self._instrument = Instrument(
            SerialSettings(), self.clock, lambda _: None, lambda *_: None, lambda: False
        )
        config = Config(data=str(data))
        self.sessions = Sessions(config, self.clock, announcer, self.supervisor, self._instrument)

    async def serve(self) -> None:
        """Until the supervisor is told to stop; resumes the recording whose folder is there."""
        heard = Heard(self.folder)
        async with at_work(await Recorder.create(self.folder, new_record(ROLL_S), self.clock, heard)):
            pass
        site = Api(self.sessions, self._instrument, self.clock).site

        async def begin() -> None:
            await self.sessions.resume()
            await site.listen(f"127.0.0.1:{self.http}")

        try:
            await self.supervisor.run(begin)
        finally:
            await site.close()
            self.publisher.close()

    @property
    def recorder(self) -> Recorder:
        assert self.sessions.recorder is not None
        return self.sessions.recorder

    async def feed(self, first: int, count: int) -> None:
        """So many readings come in as time passes, and reach the OS."""
        for number in range(first, first + count):
            self.clock.advance(1 / RATE_HZ)
            value = f"{number // 10**6}.{number % 10**6:06d}"
            arrival = Arrival(self.clock.stamp(), "Q7799", "freerun", value, "25.19", "7.494")
            self.sessions.take(arrival)
        await until(lambda: self.recorder.last_seq == first + count - 1)


async def record(hours: float, data: Path, copy: Path) -> list[str]:
    """Record so many simulated hours, followed by a mirror; what went wrong."""
    side, ledger = Recording(data), Ledger("recorder")
    serving = asyncio.create_task(side.serve())
    await until(lambda: side.sessions.recorder is not None)
    command = [
        sys.executable,
        "-m",
        "tests.campaigns.soak",
        "--follow",
        f"{side.http} {side.publisher.port} {copy}",
    ]
    follower = await asyncio.create_subprocess_exec(*command, "--hours", str(hours), cwd=ROOT)
    per_step, steps = RATE_HZ * STEP_S, round(hours * 3600 / STEP_S)
    for step in range(steps):
        await side.feed(step * per_step, per_step)
        newest = copy / side.recorder.chunks[-1].name if side.recorder.chunks else copy
        if step % TOGETHER == 0:
            await until(lambda: newest.exists() or follower.returncode is not None)  # noqa: B023 - now
        hour = (step + 1) * STEP_S / 3600
        if ledger.due(hour, hours / HOURS):
            ledger.enter(look(hour, size_of(side.folder)))
    await side.recorder.stop()
    failures = ledger.failures(hours * WARM_UP_H / HOURS)
    if await follower.wait():
        failures.append("the mirror's process: see above")
    side.supervisor.stop()
    await serving
    return failures + compare(side.folder, copy, steps * per_step)


def compare(folder: Path, copy: Path, readings: int) -> list[str]:
    """Hold the copy against the recording: the same chunks, with so many rows."""
    here, there = _chunks(folder), _chunks(copy)
    rows = sum(content.count(b"\n") - 1 for content in here.values())
    print(f"{len(here)} chunks, {rows} readings, the copy is {'equal' if here == there else 'different'}")
    failures = [] if rows == readings else [f"{rows} rows of {readings} readings"]
    return failures if here == there else [*failures, f"{copy} is not {folder}"]


def _chunks(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in content_of(folder).items() if name.startswith("chunk_")}


class Follower:
    """A topside's copy of the recording, and a subscriber of its bus."""

    def __init__(self, copy: Path) -> None:
        self.told = self.heard = 0
        self._copy = copy

    def _rows(self, readings: list[Reading]) -> None:
        self.told += len(readings)

    def _hear(self, _topic: str, _payload: bytes) -> None:
        self.heard += 1

    async def follow(self, http: int, bus: int, hours: float) -> list[str]:
        """Until all of the stopped recording is here; what went wrong."""
        ledger, pi = Ledger("mirror"), Pi(f"http://127.0.0.1:{http}", SimClock())
        mirror = Mirror(pi, SESSION_ID, self._copy, self._rows, lambda *_: None)
        pi.open()
        subscriber = Subscriber(f"tcp://127.0.0.1:{bus}", [f"{INWATER}chunk"], self._hear)
        await mirror.load()
        readings = round(hours * 3600) * RATE_HZ
        while (await mirror.pull()).state != "stopped" or self.told < readings:
            hour = self.told / RATE_HZ / 3600
            if ledger.due(hour, hours / HOURS):
                ledger.enter(look(hour, size_of(self._copy)))
            await asyncio.sleep(PULL_S)
        ledger.enter(look(hours, size_of(self._copy)))
        subscriber.close()
        await pi.close()
        print(f"mirror   told {self.told} readings of {readings}, heard of {self.heard} chunks on the bus")
        missing = [] if self.told == readings else [f"mirror: told {self.told} of {readings} readings"]
        return ledger.failures(hours * WARM_UP_H / HOURS) + missing


def main(arguments: list[str] | None = None) -> int:
    """Record a day of readings as fast as the disk takes them; 0 if nothing grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.soak", description=main.__doc__)
    parser.add_argument("--hours", type=float, default=HOURS, help="simulated; a full run is 24")
    parser.add_argument("--follow", metavar="'HTTP BUS FOLDER'", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.follow:
        http, bus, copy = options.follow.split(maxsplit=2)
        failures = asyncio.run(Follower(Path(copy)).follow(int(http), int(bus), options.hours))
    else:
        folder = Path(tempfile.mkdtemp(prefix="soak_"))
        (folder / "pi").mkdir()
        failures = asyncio.run(record(options.hours, folder / "pi", folder / "copy"))
        print(*failures, sep="\n")
        print(f"{'FAILED' if failures else 'PASSED'}: {options.hours:g} h at {RATE_HZ} Hz, {folder}")
        if not failures:
            shutil.rmtree(folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
