"""Ten minutes at 250 readings a second, the cable dead for half a minute of them: completeness and memory."""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.agreement import conclude, p95_of, readings_of
from tests.campaigns.netns import HEADING, Back, NoCable, Tether, cut_and_mend, end_in_order, tethered
from tests.sim.rig import Daemon

RATE_HZ = 250.0
CUT_S = 30.0
GROWTH_MB = 30.0  # allowed from the start to the highest
SETTLED_S = 5.0  # what a daemon has taken by then is what it needs anyway
TOLD_S = 30.0
CATCHING_UP_S = 5.0
LATE_MS = 20.0  # more than in the cut, which a busy machine explains
RATE_SHARE = 0.95  # a busy machine delays the talker a little; fewer lines than this is another trial


@dataclass
class Memory:
    """What one daemon holds in memory, sampled each second, in MB."""

    name: str
    samples: list[float] = field(default_factory=list)

    def faults(self) -> Iterator[str]:
        grown = max(self.samples) - self.samples[0]
        if grown >= GROWTH_MB:
            yield f"{self.name}: memory has grown by {grown:.1f} MB, allowed {GROWTH_MB:g} MB"

    def __str__(self) -> str:
        first, highest, last = self.samples[0], max(self.samples), self.samples[-1]
        return f"memory    {self.name:8} start {first:.1f} MB, highest {highest:.1f}, end {last:.1f}"


def resident_mb(pid: int) -> float:
    """The memory of a process that is in RAM."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    assert found is not None, f"process {pid} has ended"
    return int(found[1]) / 1e3


class Sampler:
    """Samples both daemons, at most once a second."""

    def __init__(self, tether: Tether) -> None:
        self.memories = Memory("Pi"), Memory("topside")
        self._tether = tether
        self._due_s = self._told_s = time.monotonic()

    def look(self) -> None:
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s += 1.0
        for memory, daemon in zip(self.memories, (self._tether.pi, self._tether.topside), strict=True):
            memory.samples.append(resident_mb(_pid(daemon)))
        if now_s >= self._told_s:
            self._told_s += TOLD_S
            newest = " ".join(f"{memory.name} {memory.samples[-1]:.1f} MB" for memory in self.memories)
            print(f"          {self._tether.copied_seq() + 1} readings here, {newest}", flush=True)


def _pid(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def trial(tether: Tether, seconds: float, cut_s: float) -> list[str]:
    """Record for so long, with a cut in the middle; what was found wrong."""
    time.sleep(SETTLED_S)
    sampler = Sampler(tether)
    rest_s = max(0.0, seconds - SETTLED_S - cut_s) / 2
    _record(rest_s, sampler.look)
    print(f"the cable swallows everything for {cut_s:g} s\n{HEADING}", flush=True)
    back = cut_and_mend(tether, "black hole", cut_s, sampler.look)
    print(back, flush=True)
    _record(rest_s, sampler.look)
    faults = [*back.faults(), *tether.stop()]
    for memory in sampler.memories:
        print(memory)
        faults += memory.faults()
    return [*faults, *rate_faults(tether), *late_faults(tether, back)]


def _record(seconds: float, meanwhile: Callable[[], None]) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        meanwhile()
        time.sleep(0.1)


def rate_faults(tether: Tether) -> Iterator[str]:
    """Whether there were as many readings as this trial is about."""
    readings = readings_of(tether.pi.data / tether.session_id)
    took_s = (readings[-1].mono_ns - readings[0].mono_ns) / 1e9
    rate_hz = (len(readings) - 1) / took_s
    print(f"readings  {len(readings)} in-water, {rate_hz:.1f} a second")
    if rate_hz < RATE_SHARE * RATE_HZ:
        yield f"only {rate_hz:.1f} readings a second, wanted {RATE_HZ:g}: this machine is too busy"


def late_faults(tether: Tether, back: Back) -> Iterator[str]:
    """Whether catching up has held up the loop that stamps the surface readings."""
    (stream,) = tether.topside.data.glob("*/session_*/surface_*")
    late_ms: dict[bool, list[float]] = {False: [], True: []}  # in the cut, and while catching up
    for reading in readings_of(stream):
        said_ns = tether.surface.said_at_utc_ns(reading.value)
        since_s = (said_ns - back.mended_utc_ns) / 1e9
        if -back.cut_s < since_s < CATCHING_UP_S:
            late_ms[since_s > 0].append((reading.utc_ns - said_ns) / 1e6)
    before_ms, after_ms = p95_of(late_ms[False]), p95_of(late_ms[True])
    print(f"stamps    surface: 95 % at most {before_ms:.1f} ms late in the cut, {after_ms:.1f} after it")
    if after_ms > before_ms + LATE_MS:
        yield f"catching up makes surface stamps {after_ms:.0f} ms late, before it {before_ms:.1f} ms"


def campaign(folder: Path, seconds: float, cut_s: float) -> Sequence[str]:
    """Run it in *folder*; what was found wrong.

    Raises:
        NoCable: this machine does not let us have one.
    """
    try:
        with tethered(folder, RATE_HZ) as tether:
            return trial(tether, seconds, cut_s)
    except AssertionError as error:
        return [str(error)]


def main(arguments: list[str] | None = None) -> int:
    """Record 250 readings a second and cut the cable in the middle, as root."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.cutoff", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of recording (default 600)")
    parser.add_argument("--cut", type=float, default=CUT_S, help="seconds without a cable (default 30)")
    options = parser.parse_args(arguments)
    end_in_order()
    folder = Path(tempfile.mkdtemp(prefix="cutoff-"))
    print(f"recording {options.seconds:g} s at {RATE_HZ:g} readings a second from each sensor", flush=True)
    try:
        faults = campaign(folder, options.seconds, options.cut)
    except NoCable as error:
        folder.rmdir()
        print(error, file=sys.stderr)
        return 2
    return conclude(
        faults, folder, f"tests.campaigns.cutoff --seconds {options.seconds:g} --cut {options.cut:g}"
    )


if __name__ == "__main__":
    sys.exit(main())
