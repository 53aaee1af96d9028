"""Both daemons killed again and again through one session, and what they leave held against what was sent."""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from statistics import median

import zmq

from common.bus import connect
from common.messages import Reading
from tests.campaigns.agreement import (
    bus_context,
    conclude,
    count_events,
    gap_faults,
    readings_of,
    session_faults,
    staged,
    without_readings_s,
)
from tests.sim.rig import ROOT, Daemon, PiDaemon, TopsideDaemon
from tests.sim.talker import Talker

RATE_HZ = 20.0
LOOK_S = 0.02
ASK_S = 0.2  # between questions for what is durable
STOPPING_SHARE = 0.1  # of the kills fall while the session is being stopped
PATIENCE_S = 60.0


class Heard:
    """What the bus said of one session's readings: seq to value."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", port: int, topic: str) -> None:
        self.values: dict[int, float] = {}
        self.faults: list[str] = []
        self._topic = topic
        self._socket = connect(context, f"tcp://127.0.0.1:{port}", [f"qsensor/{topic}/reading"])

    def listen(self, session_id: str) -> None:
        """Take what has come; a number that is given to two readings is a fault."""
        while self._socket.poll(0):
            frame = json.loads(self._socket.recv_multipart()[1])
            if frame["session_id"] != session_id:
                continue
            known = self.values.setdefault(frame["seq"], frame["value"])
            if known != frame["value"]:
                self.faults.append(f"{self._topic}: seq {frame['seq']} was {known}, then {frame['value']}")

    def missing(self, readings: Iterable[Reading]) -> Iterator[str]:
        """Whether all that was published is recorded."""
        kept = {reading.seq: float(reading.value) for reading in readings}
        lost = [seq for seq, value in self.values.items() if kept.get(seq) != value]
        if lost:
            yield f"{self._topic}: {len(lost)} published readings are not recorded so, first seq {lost[0]}"


class Victim:
    """A daemon that is killed at any moment, and started again some time later."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.restarts_s: list[float] = []  # from launch to answer, of those that came so far
        self._launched_s = 0.0
        self._due_s: float | None = None  # when it is to be started again; None: it runs
        self.answers = True

    @property
    def down(self) -> bool:
        return self._due_s is not None

    def kill(self, away_s: float) -> None:
        self.daemon.kill()
        self.answers = False
        self._due_s = time.monotonic() + away_s

    def look(self) -> None:
        """Start it if it is time; see whether it answers."""
        now_s = time.monotonic()
        if self._due_s is not None:
            if now_s >= self._due_s:
                self._launch(now_s)
        elif not self.answers:
            self.answers = self._asked()
            if self.answers:
                self.restarts_s.append(time.monotonic() - self._launched_s)

    def _launch(self, now_s: float) -> None:
        daemon, self._launched_s, self._due_s = self.daemon, now_s, None
        with daemon.data.with_suffix(".log").open("ab") as log:
            daemon.process = subprocess.Popen(
                daemon.command(), cwd=ROOT, stdout=log, stderr=log, env=os.environ | daemon.environment
            )

    def _asked(self) -> bool:
        try:
            return self.daemon.get(self.daemon.health)[0] == 200
        except OSError:
            process = self.daemon.process
            assert process is not None and process.poll() is None, f"it ended by itself:\n{self.daemon.log}"
            return False


@dataclass(frozen=True)
class Kill:
    """Which daemon, how long after the last kill, and how long it then stays away."""

    victim: int
    after_s: float
    starting_s: float  # if it is down when its time comes, it is killed this long after it is started
    away_s: float


def draw_kills(rng: random.Random, count: int) -> list[Kill]:
    def draw() -> Kill:
        after_s = rng.uniform(*rng.choices([(0, 0.3), (0, 1.5), (1.5, 3.5)], [0.4, 0.2, 0.4])[0])
        return Kill(rng.randrange(2), after_s, rng.uniform(0, 0.6), max(0.0, rng.uniform(-1, 1)))

    return [draw() for _ in range(count)]


class Chaos:
    """One session through which both daemons are killed."""

    def __init__(
        self, pi: PiDaemon, topside: TopsideDaemon, context: "zmq.Context[zmq.Socket[bytes]]"
    ) -> None:
        self.pi, self.topside = pi, topside
        self.victims = (Victim(pi), Victim(topside))
        self.heard = Heard(context, pi.bus, "inwater"), Heard(context, topside.bus, "surface")
        self.situations: Counter[str] = Counter()
        self.durable_seq = -1  # the highest that the Pi ever named
        self.came_back = (0, 0)  # restarts while the session was recording that came so far as to answer
        self.faults: list[str] = []
        self._asked_s = 0.0

    def run(self, kills: Sequence[Kill]) -> None:
        """From start to agreement."""
        _, started = self.topside.post("/session/start", {"mission": "chaos"})
        self.session_id, self.session = started["session_id"], Path(started["folder"])
        self._until(lambda: self.durable_seq >= 0)
        last = max(1, round(len(kills) * STOPPING_SHARE))
        for number, kill in enumerate(kills[:-last], 1):
            self._strike(kill, "")
            if number % 10 == 0:
                print(f"{number:4d} kills, {self.durable_seq + 1} readings durable on the Pi", flush=True)
        self._until(lambda: all(victim.answers for victim in self.victims))
        goal = self.durable_seq + round(2 * RATE_HZ)
        self._until(lambda: self.durable_seq >= goal)
        pi, topside = self.victims
        self.came_back = len(pi.restarts_s), len(topside.restarts_s)
        stopping = threading.Thread(target=self._stop)
        stopping.start()
        for kill in kills[-last:]:
            self._strike(kill, "while stopping")
        self._until(lambda: not stopping.is_alive())

    def _strike(self, kill: Kill, when: str) -> None:
        victim, other = self.victims[kill.victim], self.victims[1 - kill.victim]
        self._for(kill.after_s)
        if victim.down:
            self._until(lambda: not victim.down)
            self._for(kill.starting_s)
        situation = "running" if victim.answers else "starting"
        self.situations[when or (f"{situation}, the other one down" if other.down else situation)] += 1
        victim.kill(kill.away_s)

    def _stop(self) -> None:
        """Ask for the end until it is agreed upon, however often somebody is killed meanwhile."""
        end_s = time.monotonic() + PATIENCE_S
        while self.state in ("recording", "stopping", "incomplete") and time.monotonic() < end_s:
            with suppress(OSError, HTTPException, ValueError):
                self.topside.post("/session/stop")
            time.sleep(ASK_S)

    @property
    def state(self) -> str:
        """What the session's own file says of it."""
        return str(json.loads((self.session / "session.json").read_bytes())["state"])

    def _for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= end_s)

    def _until(self, condition: Callable[[], bool]) -> None:
        """Let time pass; the daemons are started, asked and listened to meanwhile."""
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, (
                f"waited {PATIENCE_S} s in vain\n{self.pi.log}\n{self.topside.log}"
            )
            for victim in self.victims:
                victim.look()
            for heard in self.heard:
                heard.listen(self.session_id)
            self._ask_durable()
            time.sleep(LOOK_S)

    def _ask_durable(self) -> None:
        if not self.victims[0].answers or time.monotonic() < self._asked_s + ASK_S:
            return
        self._asked_s = time.monotonic()
        status, said = self.pi.get(f"/record/status?session_id={self.session_id}")
        if status == 200:
            if said["durable_seq"] < self.durable_seq:
                self.faults.append(f"durable_seq was {self.durable_seq}, then {said['durable_seq']}")
            self.durable_seq = max(self.durable_seq, said["durable_seq"])

    def judge(self, inwater: Talker, surface: Talker) -> list[str]:
        """Everything that is wrong with what was left."""
        session = self.session
        if self.state != "complete":
            return [*self.faults, f"{session} is {self.state}"]
        faults = self.faults + session_faults(session, self.pi.data, inwater.sent, surface.sent)
        if faults:
            return faults
        faults += self._folder_faults(session)
        (mirror,), (deck,) = session.glob("in-water_*"), session.glob("surface_*")
        for heard, stream in zip(self.heard, (mirror, deck), strict=True):
            readings = readings_of(stream)
            faults += [*heard.faults, *heard.missing(readings), *gap_faults(stream, readings)]
        if readings_of(mirror)[-1].seq < self.durable_seq:
            faults.append(f"seq {self.durable_seq} was said to be durable and is not there")
        pi_back, topside_back = self.came_back
        for stream, kind, back in (
            (self.pi.data / self.session_id, "resumed", pi_back),
            (deck, "resumed", topside_back),
            (session, "session_resumed", topside_back),
        ):
            if (found := count_events(stream, kind)) < back:
                faults.append(f"{stream.name}: {back} restarts, {found} events say {kind}")
        return faults

    def _folder_faults(self, session: Path) -> Iterator[str]:
        for data, pattern, one in (
            (self.pi.data, "*/session.json", self.pi.data / self.session_id),
            (self.topside.data, "*/session_*/session.json", session),
        ):
            found = [path.parent for path in data.glob(pattern)]
            if found != [one]:
                yield f"{data}: {len(found)} sessions instead of one"

    def figures(self) -> Iterator[str]:
        """What happened, in a few lines."""
        many = ", ".join(f"{count} {situation}" for situation, count in sorted(self.situations.items()))
        yield f"kills     {self.situations.total()}: {many}"
        for name, victim in zip(("Pi", "topside"), self.victims, strict=True):
            took = sorted(victim.restarts_s)
            if took:
                yield f"restarts  {name}: {len(took)} in {median(took):.2f} s, at most {took[-1]:.2f} s"
        for stream, heard in zip(("in-water", "surface"), self.heard, strict=True):
            readings = readings_of(next(self.session.glob(f"{stream}_*")))
            yield (
                f"readings  {stream}: {len(readings)}, {len(heard.values)} of them heard on the bus;"
                f" {without_readings_s(readings):.1f} s without"
            )
        yield f"durable   seq {self.durable_seq} was named last while recording"


def campaign(folder: Path, count: int, seed: int) -> list[str]:
    """Run it in *folder*; what was found wrong."""
    try:
        with staged(folder, RATE_HZ) as stage, stage.running(), bus_context() as context:
            chaos = Chaos(stage.pi, stage.topside, context)
            chaos.run(draw_kills(random.Random(seed), count))
            faults = chaos.judge(stage.inwater, stage.surface)
            print(*chaos.figures(), sep="\n")
            return faults
    except AssertionError as error:
        return [str(error)]


def main(arguments: list[str] | None = None) -> int:
    """Kill both daemons at random through one session."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.chaos", description=main.__doc__)
    parser.add_argument("--count", type=int, default=100, help="kills (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="of their moments (default 1)")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"killing both daemons {options.count} times through one session, seed {options.seed}", flush=True)
    faults = campaign(folder, options.count, options.seed)
    return conclude(faults, folder, f"tests.campaigns.chaos --count {options.count} --seed {options.seed}")


if __name__ == "__main__":
    sys.exit(main())
