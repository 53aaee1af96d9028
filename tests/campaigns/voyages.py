"""Recordings of real programs on a disk: the Pi daemon at work, and the command that recovers a folder."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import zmq

from common.bus import connect
from common.recorder import RESERVE
from tests.campaigns.aftermath import Judge, lay_down, rows_of
from tests.sim.powercut import Disk, Entries, Recording, Sync, Tree, Write
from tests.sim.rig import PATIENCE_S, ROOT, PiDaemon
from tests.sim.syscalls import Reader, traced, wait_for_end
from tests.sim.talker import Talker

COMMAND = ["common.chunkstore", "recover"]  # as an operator would
GOING_ON = ["tests.campaigns.aftermath"]  # as the daemon does


class TracedPi(PiDaemon):
    """The daemon with its system calls on record; *plant* names a fault it shall have."""

    plant: str | None = None
    runs = 0

    def command(self) -> list[str]:
        python, _, _, *flags = super().command()
        program = ["-m", "tests.campaigns.planted", self.plant] if self.plant else ["-m", "pi_daemon"]
        return traced(self._trace, [python, *program, *flags])

    @property
    def _trace(self) -> Path:
        return self.data.parent.with_name(f"run{self.runs}.trace")

    def _signal(self, number: int) -> int:
        code = super()._signal(number)
        assert self.process is not None
        wait_for_end(self._trace, self.process.pid)
        self.runs += 1
        return code


@dataclass
class Voyage:
    """What a daemon did to its disk, and every row that it wrote, in order."""

    recording: Recording
    written: list[bytes]

    def __str__(self) -> str:
        ops = self.recording.ops
        syncs, writes = (sum(isinstance(op, kind) for op in ops) for kind in (Sync, Write))
        seals = sum(isinstance(op, Entries) and op.path.endswith(".csv") for op in ops)
        return f"{len(self.written)} rows, {seals} chunks, {writes} writes, {syncs} fsyncs"


@contextmanager
def sailing(work: Path, rate_hz: float, plant: str | None) -> Iterator[TracedPi]:
    """A daemon with a sensor, somebody who listens to its bus, and an empty disk."""
    (work / "disk").mkdir(parents=True)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Talker(work / "sensor", rate_hz) as talker:
        pi = TracedPi(work / "disk" / "pi", serial=str(talker.link))
        pi.plant = plant
        try:
            with connect(context, f"tcp://127.0.0.1:{pi.bus}", []), pi:
                pi.wait_streaming()
                yield pi
        finally:
            context.destroy(linger=0)


def begin(pi: PiDaemon) -> str:
    status, said = pi.post("/record/start", {"mission": "crash", "roll_interval_s": 1})
    assert status == 200, said
    return str(said["session_id"])


def mark(pi: PiDaemon, session: str, kind: str) -> None:
    marker = {"session_id": session, "sync_id": str(uuid4()), "marker_type": kind}
    status, said = pi.post("/record/sync-marker", marker)
    assert status == 200, said


def await_chunks(pi: PiDaemon, session: str, chunks: int) -> None:
    """Until so many are sealed, and rows of the next are on their way."""
    status = f"/record/status?session_id={session}"
    pi.wait_for(lambda: pi.get(status)[1]["backlog"] >= chunks, PATIENCE_S + 5 * chunks)
    time.sleep(0.5)


def record_stopped(work: Path, chunks: int, rate_hz: float, plant: str | None = None) -> Voyage:
    """Start, mark, record, mark, stop."""
    with sailing(work, rate_hz, plant) as pi:
        session = begin(pi)
        mark(pi, session, "START")
        await_chunks(pi, session, chunks - 1)
        mark(pi, session, "STOP")
        assert pi.post("/record/stop", {"session_id": session})[0] == 200
        pi.stop()
    return read_voyage(work)


def record_killed(work: Path, chunks: int, rate_hz: float, plant: str | None = None) -> Voyage:
    """Start, kill, resume, end in order, resume, stop."""
    with sailing(work, rate_hz, plant) as pi:
        session = begin(pi)
        mark(pi, session, "START")
        await_chunks(pi, session, chunks - 2)
        pi.kill()
        pi.start()
        await_chunks(pi, session, chunks - 1)
        mark(pi, session, "PERIODIC")
        pi.stop()
        pi.start()
        await_chunks(pi, session, chunks)
        assert pi.post("/record/stop", {"session_id": session})[0] == 200
        pi.stop()
    return read_voyage(work)


def read_voyage(work: Path) -> Voyage:
    """The recording that the traces in *work* make; it must explain every byte on the disk."""
    reader = Reader(work / "disk", ignore={RESERVE})  # it holds space, and nothing else
    for trace in sorted(work.glob("run*.trace")):
        reader.read(trace)
    return Voyage(reader.recording, rows_of(explain(reader.recording, work / "disk")))


def explain(recording: Recording, root: Path) -> Tree:
    """What *recording* says is below *root* now.

    Raises:
        AssertionError: something else is.
    """
    disk = Disk(recording)
    for index, op in enumerate(recording.ops):
        disk.take(index, op)
    tree = disk.now()
    files = {path: content for path, content in tree.items() if not path.endswith("/")}
    real = [path for path in root.glob("pi/**/*") if path.is_file() and path.name != RESERVE]
    found = {str(path.relative_to(root)): path.read_bytes() for path in real}
    other = [path for path in files | found if files.get(path) != found.get(path)]
    assert not other, f"below {root}, other than recorded: {other}"
    return tree


@dataclass
class Recovery:
    """What a program did that found *origin* on the disk; of all rows *written* so far, *rows* were there."""

    recording: Recording
    origin: Tree
    rows: int
    written: list[bytes]


def record_recoveries(judge: Judge, program: list[str], work: Path) -> list[Recovery]:
    """Recover one state of each kind that *judge* has seen, with *program*."""
    return [
        record_recovery(tree, judge.aftermath(tree).rows, program, work / str(number))
        for number, tree in enumerate(judge.kinds.values())
    ]


def record_recovery(tree: Tree, rows: int, program: list[str], work: Path) -> Recovery:
    work.mkdir(parents=True)
    lay_down(work / "disk", tree)
    session = next((work / "disk").glob("pi/*/session.json")).parent
    trace = work / "run0.trace"
    with (work / "said.txt").open("wb") as said:
        command = traced(trace, [sys.executable, "-m", *program, str(session)])
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    process.wait(PATIENCE_S)
    wait_for_end(trace, process.pid)
    reader = Reader(work / "disk", ignore={RESERVE})
    reader.lay(tree)
    reader.read(trace)
    return Recovery(reader.recording, tree, rows, rows_of(explain(reader.recording, work / "disk")))
