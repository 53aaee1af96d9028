"""`make faults`: a real Pi daemon's session on a disk that fails, at every call that touches its files.

A first session is traced; then, for each of its calls, others in which just that one fails (once, or from
then on until the disk is mended), or is the daemon's last, or all calls fail from there. Files that may not
grow and a disk of 256 KiB cut writes short. What was told must be on the disk, what was lost must be told.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.campaigns.attempt import Attempt, Outcome, Trial, attempt, judge, leave_behind, since
from tests.campaigns.told import Ear, damage_found, read_folder
from tests.sim.inject import CALLS, CURE, NO_MOUNT, STRACE, Injection, Step, TinyDiskPi, can_mount
from tests.sim.streams import SESSION_ID
from tests.sim.talker import Talker

ERRORS = ("error=ENOSPC", "error=EIO", "error=EROFS")
ENDS = (".tmp", ".csv", ".torn", ".torn.new")
LARGEST_BYTES = 2500  # of a file of a short session, roughly
KILLING = ("write", "fsync", "rename")
SAMPLE = {  # of each kind, how many by default; those not named here: all
    "lasting": 40,
    "all at once": 16,
    "not repaired": 8,
    "lied to": 10,
    "no growth": 12,
    "told to end": 10,
    "told to stop": 10,
    "resumed once": 25,
    "resumed killed": 25,
}
TINY_RATE_HZ = 200
LEFT_FREE_BYTES = 20_000  # a second of readings, beside the small files

SHORT_BYTES = 10
CHUNKS = 12  # no session here has more

Plan = dict[str, list[Trial]]


class Plans:
    """Makes the trials of one kind of session from the calls it consists of."""

    def __init__(self, steps: Sequence[Step], resumed: bool = False) -> None:
        self.steps = steps
        self._resumed = resumed
        folder = SESSION_ID
        chunks = [f"{folder}/chunk_{one:05d}{end}" for one in range(CHUNKS) for end in ENDS]
        self._files = tuple(sorted({*(step.file for step in steps), *chunks}))

    def once(self, step: Step, how: str) -> Trial:
        injection = Injection(step.call, how, str(step.n))
        return Trial(f"{step}: {how}", (step.file,), (injection,), resumed=self._resumed)

    def killed(self, step: Step) -> Trial:
        injection = Injection(step.call, "signal=KILL", str(step.n))
        return Trial(f"{step} is its last", (step.file,), (injection,), killed=True, resumed=self._resumed)

    def lasting(self, step: Step, error: str) -> Trial:
        return Trial(f"{step} and on: {error}", self._files, (_from(step, error),), lasting=True)

    def abandoned(self, step: Step, error: str) -> Trial:
        name = f"{step} and on: {error}, told to end"
        return Trial(name, self._files, (_from(step, error),), abandoned=True)

    def stopped(self, step: Step, error: str) -> Trial:
        name = f"{step} and on: {error}, told to stop"
        return Trial(name, self._files, (_from(step, error),), lasting=True, hasty=True)

    def all_at_once(self, end: int, error: str) -> Trial:
        reached = dict.fromkeys(CALLS, 1) | {step.call: step.overall + 1 for step in self.steps[:end]}
        injections = tuple(Injection(call, error, f"{n}+") for call, n in reached.items())
        return Trial(f"everything after {end} calls: {error}", self._files, injections, lasting=True)

    def not_repaired(self, step: Step) -> Trial:
        repair = Injection("ftruncate", "error=EIO", "1..2")
        name = f"{step} and on: ENOSPC, EIO when it is repaired"
        return Trial(name, self._files, (_from(step, "error=ENOSPC"), repair), lasting=True)


def _from(step: Step, error: str) -> Injection:
    return Injection(step.call, error, f"{step.overall}+")


def plan(fresh: Plans, resuming: Plans, rng: random.Random) -> Plan:
    """Everything there is to try, by kind, in a drawn order."""
    failing = [(step, error) for step in fresh.steps for error in ERRORS]
    writes = [step for step in fresh.steps if step.call == "write"]
    trials: Plan = {
        "once": [fresh.once(*one) for one in failing],
        "killed": [fresh.killed(step) for step in fresh.steps if step.call in KILLING],
        "lied to": [fresh.once(step, f"retval={SHORT_BYTES}") for step in writes],
        "lasting": [fresh.lasting(*one) for one in failing],
        "all at once": [fresh.all_at_once(end, error) for end in range(len(fresh.steps)) for error in ERRORS],
        "not repaired": [fresh.not_repaired(step) for step in writes],
        "no growth": [Trial(f"no file beyond {size}", limit_bytes=size) for size in range(1, LARGEST_BYTES)],
        "told to stop": [fresh.stopped(*one) for one in failing],
        "told to end": [fresh.abandoned(*one) for one in failing],
        "resumed once": [resuming.once(step, error) for step in resuming.steps for error in ERRORS],
        "resumed killed": [resuming.killed(step) for step in resuming.steps],
    }
    for kind in trials.values():
        rng.shuffle(kind)
    return trials


def sample(trials: Plan) -> Plan:
    """So many of each kind as take some minutes; every call still fails once, and kills once."""
    chosen = {kind: some[: SAMPLE.get(kind, len(some))] for kind, some in trials.items()}
    one_each = {(one.files, one.injections[0].call, one.injections[0].when): one for one in trials["once"]}
    return chosen | {"once": list(one_each.values())}


def trace(folder: Path, trial: Trial, left: Path) -> list[Step]:
    """The calls of a session in which nothing fails.

    Raises:
        RuntimeError: something did all the same.
    """
    one = Attempt(folder, trial, left)
    if wrong := one.run():
        raise RuntimeError(f"with a sound disk: {wrong}")
    steps = one.pi.steps()
    shutil.rmtree(folder)
    return steps


def fill_and_free(folder: Path, full_s: float) -> list[str]:
    """What is wrong when a disk of 256 KiB is full for a while."""
    folder.mkdir()
    (folder / "pi").mkdir()
    (folder / "pi.toml").write_text("[recording]\nmin_free_mb = 0\n")
    outcome = Outcome(Trial("a disk of 256 KiB", lasting=True), reached=True)
    with Talker(folder / "sensor", TINY_RATE_HZ) as talker:
        pi = TinyDiskPi(folder / "pi", serial=str(talker.link), config=str(folder / "pi.toml"))
        with pi, Ear(pi.bus, SESSION_ID, outcome.told) as ear:
            pi.wait_streaming()
            _record_while_full(pi, talker, outcome, full_s)
            ear.listen()
            shutil.copytree(pi.inside / SESSION_ID, folder / "copy")
            if (code := pi.stop()) != 0:
                outcome.wrong.append(f"told to end it exited with {code}")
    outcome.sent = talker.sent
    wrong = judge(outcome, read_folder(folder / "copy")) + damage_found(folder / "copy")
    if not wrong:
        shutil.rmtree(folder)
    return wrong


def _record_while_full(pi: TinyDiskPi, talker: Talker, outcome: Outcome, full_s: float) -> None:
    ballast = pi.inside / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(pi.inside).free - LEFT_FREE_BYTES))
    pi.post("/record/start", {"session_id": SESSION_ID, "roll_interval_s": 1})
    started_s = since(talker)
    pi.wait_for(lambda: _storage(pi) != "")
    outcome.named = {path: {pi.get(path)[1]["storage"]} - {""} for path in outcome.named}
    time.sleep(full_s)
    ballast.unlink()
    pi.wait_for(lambda: _storage(pi) == "")
    time.sleep(1)
    outcome.recording_s = (started_s, since(talker))
    status, said = pi.post("/record/stop", {"session_id": SESSION_ID})
    outcome.told.durable_seq = said["durable_seq"] if status == 200 else outcome.told.durable_seq
    if status != 200:
        outcome.wrong.append(f"stop was answered {status}: {said}")


def _storage(pi: TinyDiskPi) -> str:
    return str(pi.get("/instrument/health")[1]["storage"])


class Campaign:
    """Runs trials a few at a time and keeps count."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._folder = folder
        self._jobs = jobs
        self.tried: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, trials: Plan, left: Path) -> None:
        todo = [(kind, trial) for kind, some in trials.items() for trial in some]
        with ThreadPoolExecutor(self._jobs) as pool:
            running = {
                pool.submit(attempt, self._folder / f"trial_{number:04d}", trial, left): (kind, number)
                for number, (kind, trial) in enumerate(todo)
            }
            for done, future in enumerate(as_completed(running), 1):
                kind, number = running[future]
                self._count(kind, number, *future.result())
                if done % 25 == 0:
                    print(f"{done} of {len(todo)} sessions, {len(self.failures)} went wrong", flush=True)

    def _count(self, kind: str, number: int, trial: Trial, wrong: list[str], reached: bool) -> None:
        self.tried[kind] += 1
        self.reached[kind] += reached
        if wrong:
            self.fail(f"trial {number}, {kind}: {trial.name}: {'; '.join(wrong)}")

    def fail(self, failure: str) -> None:
        self.failures.append(failure)
        print(failure, flush=True)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m tests.campaigns.faults", description=__doc__)
    flags.add_argument("--count", type=int, help="only so many sessions, drawn from the default ones")
    flags.add_argument("--all", action="store_true", help="every call with every fault: an hour")
    flags.add_argument("--only", metavar="TEXT", default="", help="kinds or trials whose name has TEXT in it")
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--jobs", type=int, default=8, help="sessions at a time (default %(default)s)")
    return flags


def choose(trials: Plan, options: argparse.Namespace, rng: random.Random) -> Plan:
    """The trials that the command line asks for."""
    chosen = trials if options.all else sample(trials)
    chosen = {
        kind: [one for one in some if options.only in kind or options.only in one.name]
        for kind, some in chosen.items()
    }
    if options.count is None:
        return chosen
    flat = [(kind, trial) for kind, some in chosen.items() for trial in some]
    drawn = rng.sample(flat, min(options.count, len(flat)))
    return {kind: [trial for other, trial in drawn if other == kind] for kind in chosen}


def run(folder: Path, options: argparse.Namespace) -> Campaign:
    rng = random.Random(options.seed)
    left = leave_behind(folder / "left")
    fresh = Plans(trace(folder / "plain", Trial("plain"), left))
    resuming = Plans(trace(folder / "resuming", Trial("resuming", resumed=True), left), resumed=True)
    kinds = dict(Counter(step.call for step in fresh.steps))
    print(f"a session is {len(fresh.steps)} calls on its files: {kinds}", flush=True)
    campaign = Campaign(folder, options.jobs)
    campaign.run(choose(plan(fresh, resuming, rng), options, rng), left)
    if options.only in "a disk of 256 KiB":
        campaign.tried["full"] = campaign.reached["full"] = 1
        if wrong := fill_and_free(folder / "tiny", 3.0):
            campaign.fail(f"a disk of 256 KiB: {'; '.join(wrong)}")
    return campaign


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if STRACE is None or not can_mount():
        print(CURE if STRACE is None else NO_MOUNT, file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    campaign = run(folder, options)
    for kind, tried in campaign.tried.items():
        print(f"{kind:<15} {tried:4d} sessions, the fault was met in {campaign.reached[kind]}")
    print(f"{campaign.tried.total()} sessions, {len(campaign.failures)} went wrong")
    if campaign.failures:
        print(f"FAILED; what they left is in {folder}")
        return 1
    shutil.rmtree(folder)
    print("PASSED: what was told is on the disk, and what was lost was told")
    return 0


if __name__ == "__main__":
    sys.exit(main())
