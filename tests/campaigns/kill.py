"""`make kill`: a recording process is killed at drawn moments and started again on the same folder.

Processes are forked from one that has imported everything, so that a life costs milliseconds; some are killed
while they still recover what the one before left. Then real Pi daemons, killed, and told to end.
"""

import argparse
import asyncio
import os
import random
import select
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.told import Ear, Found, Told, complaints, damage_found, read_folder
from tests.campaigns.victim import UP, Victim, end_as
from tests.sim.rig import PiDaemon
from tests.sim.streams import SESSION_ID
from tests.sim.talker import Talker

KILLS_PER_SESSION = 50
STARTING_S = 0.03  # a kill so soon after the fork often meets the recovery of what the last one left
SHORT_S, LONG_S = 0.06, 1.2  # counted from when it is up; the long ones see a sync that comes with time alone
LIMIT_S = 2.0  # for a daemon that is told to end; more by as much as the machine is overloaded
DAEMONS_AT_ONCE = 3
RATE_HZ = 50


@dataclass
class Tally:
    """What was tried, and what came of it."""

    kills: int = 0
    while_starting: int = 0
    published: int = 0
    durable: int = 0
    markers: int = 0
    ends_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.kills += other.kills
        self.while_starting += other.while_starting
        self.published += other.published
        self.durable += other.durable
        self.markers += other.markers
        self.ends_s += other.ends_s
        self.failures += other.failures

    def count(self, told: Told) -> None:
        self.published += len(told.published)
        self.durable += told.durable_seq + 1
        self.markers += len(told.markers)


@dataclass(frozen=True)
class Lifetime:
    """How long a process lives from when it is up; starting: from when it is forked."""

    seconds: float
    starting: bool = False


class Killing:
    """One session, whose recorder is killed again and again."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.tally = Tally()
        self._seed = seed
        self._rng = random.Random(seed)
        self._told = Told()
        self._unanswered: list[str] = []
        self._life = 0

    def run(self, kills: int) -> Tally:
        """Kill *kills* times, then let it end in order; stops at the first thing that is wrong."""
        for _ in range(kills):
            self._one_life(self._draw())
            self.tally.kills += 1
            self._judge()
            if self.tally.failures:
                return self.tally
        self._one_life(None)
        if self._judge().open_chunks:
            self._fail("a chunk is still open after the end")
        self.tally.count(self._told)
        return self.tally

    def _draw(self) -> Lifetime:
        kind = self._rng.random()
        if kind < 0.25:
            return Lifetime(self._rng.uniform(0, STARTING_S), starting=True)
        return Lifetime(self._rng.uniform(0.8, LONG_S) if kind > 0.98 else self._rng.uniform(0, SHORT_S))

    def _judge(self) -> Found:
        found = read_folder(self.folder)
        if wrong := complaints(found, self._told) + damage_found(self.folder):
            self._fail("; ".join(wrong))
        return found

    def _fail(self, what: str) -> None:
        self.tally.failures.append(f"seed {self._seed}, life {self._life} in {self.folder}: {what}")

    def _one_life(self, lifetime: Lifetime | None) -> None:
        """Let a victim live for so long, or to its end; take in what it says to its last breath."""
        self._life += 1
        read_end, write_end = os.pipe()
        readings = 20 if lifetime is None else 1_000_000
        pid = os.fork()
        if pid == 0:
            victim = Victim(self.folder, write_end, self._life, self._rng.randrange(2**32))
            end_as(lambda: asyncio.run(victim.live(self._unanswered, readings)))
        os.close(write_end)
        said = _hear(read_end, lifetime, lambda: os.kill(pid, signal.SIGKILL))
        status = os.waitpid(pid, 0)[1]
        expected = 0 if lifetime is None else -signal.SIGKILL
        if os.waitstatus_to_exitcode(status) != expected:
            self._fail(f"it ended by itself with {os.waitstatus_to_exitcode(status)}")
        self._take_in(said)
        self.tally.while_starting += not said.startswith(UP)

    def _take_in(self, said: bytes) -> None:
        for line in said.splitlines(keepends=True):
            word, *values = line.decode().split()
            if not line.endswith(b"\n"):
                continue
            if word == "row":
                self._told.publish(int(values[0]), values[1])
            elif word == "ask" and values[0] not in self._unanswered:
                self._unanswered.append(values[0])
            elif word == "marker":
                self._told.markers.add(values[0])
                self._unanswered = [one for one in self._unanswered if one not in self._told.markers]
            if word in ("durable", "marker"):
                self._told.durable_seq = max(self._told.durable_seq, int(values[-1]))


def _hear(pipe: int, lifetime: Lifetime | None, kill: Callable[[], None]) -> bytes:
    """All that is said on *pipe* until it is closed; *kill* is called when the lifetime is over."""
    said = bytearray()
    end_s = time.monotonic() + lifetime.seconds if lifetime and lifetime.starting else None
    while True:
        left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
        if left_s == 0 or not select.select([pipe], [], [], left_s)[0]:
            kill()
            end_s = lifetime = None
        elif piece := os.read(pipe, 65_536):
            said += piece
            if lifetime and end_s is None and said.startswith(UP):
                end_s = time.monotonic() + lifetime.seconds
        else:
            os.close(pipe)
            return bytes(said)


def kill_session(folder: Path, seed: int, kills: int) -> Tally:
    """One session of forked recorders; its folder is removed if nothing is wrong."""
    killing = Killing(folder, seed)
    tally = killing.run(kills)
    if not tally.failures:
        shutil.rmtree(folder)
    return tally


class Restarting:
    """A real Pi daemon that records one session through many ends."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._seed = seed
        self._rng = random.Random(seed)
        self._told = Told()
        self._tally = Tally()

    def run(self, kills: int, ends: int) -> Tally:
        """Kill it *kills* times and tell it to end *ends* times, in a drawn order; then stop the session."""
        how = [self._kill] * kills + [self._end] * ends
        self._rng.shuffle(how)
        with self._recording() as (pi, ear, talker):
            for one in how:
                self._grow(pi, ear)
                one(pi)
                self._judge(talker)
                pi.start()
            self._grow(pi, ear)
            pi.post("/record/stop", {"session_id": SESSION_ID})
            self._judge(talker)
        self._tally.count(self._told)
        if not self._tally.failures:
            shutil.rmtree(self._folder)
        return self._tally

    @contextmanager
    def _recording(self) -> Iterator[tuple[PiDaemon, Ear, Talker]]:
        with (
            Talker(self._folder / "sensor", RATE_HZ) as talker,
            PiDaemon(self._folder / "pi", serial=str(talker.link)) as pi,
            Ear(pi.bus, SESSION_ID, self._told) as ear,
        ):
            pi.wait_streaming()
            status, said = pi.post("/record/start", {"session_id": SESSION_ID, "roll_interval_s": 1})
            assert status == 200, said
            yield pi, ear, talker

    def _grow(self, pi: PiDaemon, ear: Ear) -> None:
        """Let it record some rows more, and a while that is nobody's choice."""
        path = f"/record/status?session_id={SESSION_ID}"
        before = pi.get(path)[1]["rows"]
        pi.wait_for(lambda: pi.get(path)[1]["rows"] > before + 5)
        time.sleep(self._rng.uniform(0, 0.5))
        self._told.durable_seq = max(self._told.durable_seq, pi.get(path)[1]["durable_seq"])
        ear.listen()

    def _kill(self, pi: PiDaemon) -> None:
        pi.kill()
        self._tally.kills += 1

    def _end(self, pi: PiDaemon) -> None:
        begun_s = time.monotonic()
        code = pi.stop()
        took_s = time.monotonic() - begun_s
        self._tally.ends_s.append(took_s)
        limit_s = LIMIT_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        if code != 0 or took_s > limit_s:
            self._fail(f"told to end it took {took_s:.2f} s, limit {limit_s:.1f}, and exited with {code}")
        if left := list((pi.data / SESSION_ID).glob("*.tmp")):
            self._fail(f"told to end it left {left[0].name} unsealed")

    def _judge(self, talker: Talker) -> None:
        folder = self._folder / "pi" / SESSION_ID
        found = read_folder(folder)
        values = [row.value for row in found.rows]
        invented = set(values) - set(talker.sent)
        wrong = complaints(found, self._told) + damage_found(folder)
        if invented or values != sorted(set(values), key=float):
            wrong.append(f"values that the sensor did not say, or not in this order: {sorted(invented)[:3]}")
        if wrong:
            self._fail("; ".join(wrong))

    def _fail(self, what: str) -> None:
        number = self._tally.kills + len(self._tally.ends_s)
        self._tally.failures.append(f"seed {self._seed}, end {number} in {self._folder}: {what}")


def restart_session(folder: Path, seed: int, kills: int, ends: int) -> Tally:
    return Restarting(folder, seed).run(kills, ends)


def shares(total: int, parts: int) -> list[int]:
    """*total* dealt out as evenly as it goes."""
    return [total // parts + (one < total % parts) for one in range(parts)]


def kill_recorders(pool: Executor, folder: Path, seed: int, count: int) -> Tally:
    """Kill forked recorders *count* times, in as many sessions as that takes."""
    sessions = max(1, round(count / KILLS_PER_SESSION))
    total = Tally()
    todo = enumerate(shares(count, sessions), seed)
    running = [
        pool.submit(kill_session, folder / f"recorder_{one}", one, kills) for one, kills in todo if kills
    ]
    for future in running:
        total.add(future.result())
        print(f"{total.kills} kills, {total.while_starting} of them while starting", flush=True)
    return total


def end_daemons(folder: Path, seed: int, kills: int, ends: int) -> Tally:
    """Kill real daemons and tell them to end, a few daemons at a time."""
    total = Tally()
    jobs = min(DAEMONS_AT_ONCE, kills + ends)
    if not jobs:
        return total
    todo = zip(range(seed, seed + jobs), shares(kills, jobs), shares(ends, jobs)[::-1], strict=True)
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(restart_session, folder / f"pi_{one}", one, *many) for one, *many in todo]
        for future in running:
            total.add(future.result())
            print(f"{total.kills} daemons killed, {len(total.ends_s)} told to end", flush=True)
    return total


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m tests.campaigns.kill", description=__doc__)
    flags.add_argument("--count", type=int, default=1000, help="kills of a recorder (default %(default)s)")
    flags.add_argument("--daemon-kills", type=int, default=20, help="of a real daemon (default %(default)s)")
    flags.add_argument("--ends", type=int, default=50, help="SIGTERMs of a real daemon (default %(default)s)")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--jobs", type=int, default=2, help="sessions at a time (default %(default)s)")
    return flags


def report(forked: Tally, daemons: Tally) -> None:
    """A few lines of what was tried and found."""
    print(
        f"recorder: killed {forked.kills} times, {forked.while_starting} of them before it was up; "
        f"{forked.published} rows told of, {forked.durable} as durable, {forked.markers} markers"
    )
    print(
        f"pi_daemon: killed {daemons.kills} times, told to end {len(daemons.ends_s)} times; "
        f"{daemons.published} rows heard on the bus, {daemons.durable} told of as durable"
    )
    if daemons.ends_s:
        median_ms, largest_ms = (1e3 * f(daemons.ends_s) for f in (statistics.median, max))
        print(f"SIGTERM to sealed and gone: median {median_ms:.0f} ms, largest {largest_ms:.0f} ms")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kill_"))
    with ProcessPoolExecutor(options.jobs) as pool:
        forked = kill_recorders(pool, folder, options.seed, options.count)
    daemons = end_daemons(folder, options.seed, options.daemon_kills, options.ends)
    report(forked, daemons)
    failures = forked.failures + daemons.failures
    for failure in failures:
        print(failure)
    if not failures:
        shutil.rmtree(folder)
    print("FAILED" if failures else "PASSED: every row that was told of is there once")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
