"""What campaigns with real daemons share: a stage, the evidence that a session leaves, the verdict."""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import zmq

from common.chunkstore import sealed_chunks
from common.files import read_lines
from common.messages import Event, Reading
from common.rows import decode_row
from tests.sim.rig import ROOT, PiDaemon, TopsideDaemon
from tests.sim.talker import Talker

ROLL_S = 2.0  # short, so that much happens to chunks
GAP_S = 1.0  # without readings is an event
SETTLE_S = 300.0  # the last fusion gives way to everything else on a busy machine
LONGEST = 2000  # characters of a fault


@dataclass(frozen=True)
class Stage:
    """Both sensors talking, and both daemons, not yet started."""

    inwater: Talker
    surface: Talker
    pi: PiDaemon
    topside: TopsideDaemon

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both daemons run and hear their sensors."""
        with self.pi, self.topside:
            self.pi.wait_streaming()
            self.topside.wait_streaming()
            yield


@contextmanager
def bus_context() -> "Iterator[zmq.Context[zmq.Socket[bytes]]]":
    """For sockets that all end with it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


@contextmanager
def staged(folder: Path, rate_hz: float) -> Iterator[Stage]:
    """A stage with everything in *folder*, and short chunks."""
    config = folder / "topside.toml"
    config.write_text(f"[recording]\nroll_interval_s = {ROLL_S}\n", encoding="ascii")
    with Talker(folder / "inwater", rate_hz) as inwater, Talker(folder / "surface", rate_hz) as surface:
        pi = PiDaemon(folder / "pi", serial=str(inwater.link))
        flags = {"pi": f"http://127.0.0.1:{pi.http}", "serial": str(surface.link), "config": str(config)}
        yield Stage(inwater, surface, pi, TopsideDaemon(folder / "topside", **flags))


def agreed(topside: TopsideDaemon) -> dict[str, Any]:
    """End the session, and wait until it is settled, which may take longer than the stop itself waits.

    Raises:
        AssertionError: it did not become complete.
    """
    topside.post("/session/stop")
    topside.wait_for(
        lambda: topside.session()["state"] not in ("recording", "stopping", "incomplete"), SETTLE_S
    )
    said: dict[str, Any] = topside.session()
    assert said["state"] == "complete", f"{said['folder']} is {said['state']}: {said['detail']}"
    return said


def readings_of(stream: Path) -> list[Reading]:
    """All readings of a stream folder, as its files have them.

    Raises:
        RowError: a row is damaged.
    """
    lines = chain.from_iterable(path.read_bytes().splitlines()[1:] for path in sealed_chunks(stream))
    return [reading for line in lines if (reading := decode_row(line)) is not None]


def session_faults(session: Path, pi_data: Path, inwater: Sequence[str], surface: Sequence[str]) -> list[str]:
    """What is wrong with a complete session, given what the sensors sent."""
    try:
        (mirror,), (deck,) = session.glob("in-water_*"), session.glob("surface_*")
        faults = [*stream_faults(mirror, inwater), *stream_faults(deck, surface)]
        faults += mirror_faults(mirror, pi_data / mirror.name.removeprefix("in-water_"))
        return [*faults, *table_faults(session), *offline_faults(session)]
    except (ValueError, OSError) as error:
        return [f"{session}: cannot be examined: {error}"]


def stream_faults(stream: Path, sent: Iterable[str]) -> Iterator[str]:
    """Whether a stream has every number once from 0 on, and nothing but what was sent, once and in order."""
    readings = readings_of(stream)
    for place, reading in enumerate(readings):
        if reading.seq != place:
            yield f"{stream.name}: seq {reading.seq} stands where {place} is due"
            break
    left = iter(sent)
    for reading in readings:
        if reading.value not in left:  # takes from it up to the value
            yield f"{stream.name}: {reading.value} (seq {reading.seq}) was not sent, or not then, or is twice"
            break
    for before, after in pairwise(readings):
        if before.epoch == after.epoch and before.mono_ns > after.mono_ns:
            yield f"{stream.name}: mono_ns goes back at seq {after.seq}"
            break
    yield from (f"{path} was left over" for path in stream.glob("chunk_*[!v]"))


def mirror_faults(mirror: Path, original: Path) -> Iterator[str]:
    """Whether the topside copy is the Pi's, byte for byte."""
    theirs, ours = ({path.name: path for path in sealed_chunks(one)} for one in (original, mirror))
    if theirs.keys() != ours.keys():
        yield f"only on one side: {sorted(theirs.keys() ^ ours.keys())}"
    for name in theirs.keys() & ours.keys():
        if theirs[name].read_bytes() != ours[name].read_bytes():
            yield f"{name} differs between Pi and topside"


def table_of(session: Path) -> list[dict[str, str]]:
    """The rows of a session's product."""
    header, *lines = (session / "unified_session.csv").read_text(encoding="ascii").splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def table_faults(session: Path) -> Iterator[str]:
    """Whether the product has every recorded reading once."""
    rows = table_of(session)
    for role, column in (("in-water", "inwater_seq"), ("surface", "surface_seq")):
        (stream,) = session.glob(f"{role}_*")
        used = Counter(int(row[column]) for row in rows if row[column])
        if used != Counter(reading.seq for reading in readings_of(stream)):
            yield f"unified_session.csv does not have each {role} reading once"


def offline_faults(session: Path) -> Iterator[str]:
    """Whether fusing a copy of the files gives the daemon's product, byte for byte."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(session, Path(scratch) / session.name)
        (copy / "unified_session.csv").unlink()
        command = [sys.executable, "-m", "topside_daemon.fusion", str(copy), "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 3):
            yield f"offline fusion ended with {done.returncode}: {done.stderr.strip()}"
        elif (copy / "unified_session.csv").read_bytes() != (session / "unified_session.csv").read_bytes():
            yield "offline fusion of a copy gives another unified_session.csv"


def count_events(stream: Path, kind: str) -> int:
    return sum(1 for event in read_lines(stream / "events.jsonl", Event) if event.kind == kind)


def gap_faults(stream: Path, readings: Sequence[Reading]) -> Iterator[str]:
    """Whether each time without readings is an event that names the readings around it."""
    told = " ".join(
        event.detail for event in read_lines(stream / "events.jsonl", Event) if event.kind == "gap"
    )
    for before, after in pairwise(readings):
        apart_s = (after.mono_ns - before.mono_ns) / 1e9
        if apart_s > GAP_S and f"seq {before.seq} to {after.seq}" not in told:
            yield f"{stream.name}: no event tells of the {apart_s:.1f} s after seq {before.seq}"


def without_readings_s(readings: Sequence[Reading]) -> float:
    """How long, in all, nothing was recorded between the first and the last reading."""
    steps = [after.mono_ns - before.mono_ns for before, after in pairwise(readings)]
    period = median(steps)
    return sum(step - period for step in steps if step > 3 * period) / 1e9


def p95_of(values: Sequence[float]) -> float:
    """What 95 % of them do not exceed."""
    return quantiles(values, n=20)[-1]


def conclude(faults: Sequence[str], folder: Path, repeat: str) -> int:
    """The last lines of a campaign and its exit code; the folder is kept if anything is wrong."""
    for fault in faults:
        print(f"FOUND     {fault[-LONGEST:]}")  # it may end with a daemon's log
    if faults:
        print(f"FAILED    {len(faults)} found; files in {folder}; again with: python -m {repeat}")
        return 1
    shutil.rmtree(folder)
    print("PASSED    nothing lost, nothing invented")
    return 0
