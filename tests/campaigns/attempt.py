"""One session of a real Pi daemon on a disk that fails as told, and what is wrong with how it went."""

import http.client
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from tests.campaigns.told import Ear, Found, Row, Told, complaints, damage_found, read_folder
from tests.sim.inject import InjectedPi, Injection, read_trace
from tests.sim.rig import PiDaemon
from tests.sim.streams import SESSION_ID
from tests.sim.talker import Talker

RATE_HZ = 20
SESSION_S = 1.4
LASTING_S = 2.2  # how long a disk refuses that is to be mended
ABANDONED_S = 1.0  # likewise, before the daemon is told to end
SETTLE_S = 0.7  # from the mending to the end
PATIENCE_S = 20.0
CATCH_UP_S = 5.0
END_S = 3.0  # within which a daemon ends even if the disk refuses
ON_THE_WAY_S = 0.6  # between the sensor's word and the row, at most, on a busy machine
REFUSALS = (503, 507)
NOT_NOW = (409, 424)  # it waits to be resumed, or for the sensor
NAMED_IN = ("/instrument/health", "/status")  # where the state of the disk is to be read
RECORD_STATUS = f"/record/status?session_id={SESSION_ID}"
UNLIMITED = resource.RLIM_INFINITY
MARK = "{:08x}-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Trial:
    """How the disk fails in one session, at its *files*.

    lasting: until it is mended. killed: an injection kills the daemon. abandoned: the daemon is told to end
    while the disk refuses, and started again when it is mended. hasty: the session is stopped meanwhile.
    resumed: it is one that a killed daemon left, with a torn row. limit_bytes: no file can grow beyond.
    """

    name: str
    files: tuple[str, ...] = ()
    injections: tuple[Injection, ...] = ()
    lasting: bool = False
    killed: bool = False
    abandoned: bool = False
    limit_bytes: int | None = None
    resumed: bool = False
    hasty: bool = False

    @property
    def interrupted(self) -> bool:
        return self.killed or self.abandoned


@dataclass
class Outcome:
    """What was seen of a trial from outside."""

    trial: Trial
    told: Told = field(default_factory=Told)
    before: list[Row] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    recording_s: tuple[float, float] = (0.0, 0.0)  # on the talker's clock: what is said meanwhile is due
    named: dict[str, set[str]] = field(default_factory=lambda: {path: set() for path in NAMED_IN})
    refused: set[int] = field(default_factory=set)
    dropped: int = 0
    reached: bool = False
    trace: str = ""
    wrong: list[str] = field(default_factory=list)


def judge(outcome: Outcome, found: Found) -> list[str]:
    """Everything that is wrong with an outcome, given what is in the files."""
    wrong = outcome.wrong + complaints(found, outcome.told)
    if found.rows[: len(outcome.before)] != outcome.before:
        wrong.append("rows from before it was resumed are not as they were")
    values = [row.value for row in found.rows[len(outcome.before) :]]
    if invented := set(values) - set(outcome.sent):
        wrong.append(f"values that the sensor did not say: {sorted(invented)[:3]}")
    if values != sorted(values, key=float):
        wrong.append("values out of order")
    wrong += _loss(outcome, found, set(values))
    if outcome.trial.lasting and outcome.reached and not outcome.refused:
        silent = [path for path, said in outcome.named.items() if not said]
        wrong += [f"the disk refused for {LASTING_S} s and {path} did not say so" for path in silent]
    return wrong + taken_back(outcome.trace)


def _loss(outcome: Outcome, found: Found, values: set[str]) -> list[str]:
    """Readings that were said while it recorded, are not there, and were given up by nobody."""
    first_s, last_s = outcome.recording_s
    due = [value for value in outcome.sent if first_s < float(value) < last_s]
    missing = [place for place, value in enumerate(due) if value not in values]
    if not missing:
        return []
    told = max(found.told_lost(), outcome.dropped)
    if outcome.trial.interrupted:  # what was said while it was down, and what waited in memory
        in_one = missing[-1] - missing[0] + 1 == len(missing)
        told = len(missing) if in_one and any(event["kind"] == "resumed" for event in found.events) else 0
    if len(missing) <= told:
        return []
    span = f"between {due[missing[0]]} and {due[missing[-1]]}"
    return [f"{len(missing)} of {len(due)} readings lost, {told} told of, {span}"]


def taken_back(trace: str) -> list[str]:
    """Chunks whose fsync failed and was just tried again: the kernel has dropped what it could not write."""
    failed: set[tuple[str | None, str]] = set()
    wrong = []
    for call in read_trace(trace):
        this = (call.fd, call.path)
        if call.name == "openat":
            failed = {one for one in failed if one[1] != call.path}
        elif call.name == "ftruncate":
            failed.discard(this)
        elif call.name == "fsync" and "chunk_" in call.path:
            if call.result == "-1":
                failed.add(this)
            elif this in failed:
                failed.discard(this)
                wrong.append(f"{Path(call.path).name}: an fsync that failed was repeated and believed")
    return wrong


class Watch(threading.Thread):
    """Looks at a daemon all the time, and mends its disk when that has refused for long enough."""

    def __init__(self, pi: InjectedPi, outcome: Outcome) -> None:
        super().__init__(daemon=True)
        self.mended = threading.Event()
        self.reached_s: float | None = None
        self._pi = pi
        self._outcome = outcome
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.1):
            self._see_to_the_disk()
            self._look()

    def end(self) -> None:
        self._done.set()
        self.join()

    def _see_to_the_disk(self) -> None:
        trial = self._outcome.trial
        if self.reached_s is None and (trial.limit_bytes is not None or self._pi.tampered):
            self.reached_s = time.monotonic()
        if self.reached_s is None or self.mended.is_set():
            return
        refused_s = time.monotonic() - self.reached_s
        if trial.abandoned and refused_s > ABANDONED_S:
            self._outcome.reached = True
            end(self._pi, self._outcome)
            self.mended.set()
        elif refused_s > LASTING_S:
            self.mend()

    def mend(self) -> None:
        outcome = self._outcome
        if outcome.trial.limit_bytes is None:
            outcome.reached |= bool(self._pi.tampered)
            self._pi.mend()
        else:
            outcome.reached = bool(any(outcome.named.values()) or outcome.refused)
            limit_files(self._pi, UNLIMITED)
        self.mended.set()

    def _look(self) -> None:
        outcome = self._outcome
        try:
            answers = {path: self._pi.get(path) for path in (*NAMED_IN, RECORD_STATUS)}
        except (OSError, http.client.HTTPException, ValueError):
            return  # whether it may be down is the script's to judge
        for path, (status, said) in answers.items():
            if status == 200 and path in NAMED_IN:
                outcome.named[path] |= {said["storage"]} - {""}
                outcome.dropped = max(outcome.dropped, said.get("dropped", 0))
            elif status == 200:
                outcome.told.durable_seq = max(outcome.told.durable_seq, said["durable_seq"])
            elif status >= 500 and status not in REFUSALS:
                outcome.wrong.append(f"{path} was answered {status}: {said}")


def limit_files(pi: PiDaemon, size_bytes: int) -> None:
    """Let no file of the running daemon grow beyond *size_bytes*: writes are cut short there."""
    assert pi.process is not None
    _, hard = resource.prlimit(pi.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pi.process.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def end(pi: PiDaemon, outcome: Outcome) -> None:
    """Tell the daemon to end, which must not take long."""
    begun_s = time.monotonic()
    try:
        code = pi.stop()
    except subprocess.TimeoutExpired:
        assert pi.process is not None
        pi.process.send_signal(signal.SIGABRT)  # the stacks of its threads go to its log
        code = pi.process.wait(10)
        outcome.wrong.append(f"it hung:\n{pi.log[-3000:]}")
    took_s = time.monotonic() - begun_s
    if code not in (0, 3) or took_s > END_S:
        outcome.wrong.append(f"told to end it took {took_s:.1f} s and exited with {code}")


class Died(Exception):
    """The daemon is gone, and nobody killed it."""


class Attempt:
    """Runs one trial in a folder of its own."""

    def __init__(self, folder: Path, trial: Trial, left: Path | None = None) -> None:
        """*left*: the data folder of a killed daemon, for a trial that resumes."""
        folder.mkdir()
        self.outcome = Outcome(trial)
        self._folder = folder
        self._session = folder / "pi" / SESSION_ID
        self._trial = trial
        if trial.resumed:
            assert left is not None
            shutil.copytree(left, folder / "pi")
            self.outcome.before = read_folder(self._session).rows
        else:
            (folder / "pi").mkdir()

    def run(self) -> list[str]:
        """What is wrong; nothing if all is well."""
        with Talker(self._folder / "sensor", RATE_HZ) as talker:
            pi = self.pi = InjectedPi(
                self._folder / "pi", self._trial.files, self._trial.injections, serial=str(talker.link)
            )
            pi.environment = {"PYTHONFAULTHANDLER": "1"}
            if self._trial.limit_bytes is not None:
                pi.injections = None
            try:
                with self._watched(pi, talker):
                    self._record(talker)
            except Died:
                self.outcome.wrong.append(f"it died\n{pi.log[-2000:]}")
        self.outcome.sent = talker.sent
        self.outcome.trace = pi.traced
        return judge(self.outcome, read_folder(self._session)) + damage_found(self._session)

    @contextmanager
    def _watched(self, pi: InjectedPi, talker: Talker) -> Iterator[None]:
        with Ear(pi.bus, SESSION_ID, self.outcome.told) as self._ear:
            self._watch = Watch(pi, self.outcome)
            try:
                self._start()
                if not self._trial.resumed:
                    pi.wait_streaming()
                if self._trial.limit_bytes is not None:
                    limit_files(pi, self._trial.limit_bytes)
                self._watch.start()
                yield
            finally:
                if self._watch.is_alive():
                    self._watch.end()
                if pi.process is not None and pi.process.poll() is None:
                    pi.process.kill()
                    pi.process.wait()

    def _start(self) -> None:
        """Start it; if it is killed meanwhile, once more."""
        try:
            self.pi.start()
        except AssertionError:
            self._start_again()

    def _start_again(self) -> None:
        if not self._trial.interrupted or self.pi.injections is None:
            raise Died
        self.outcome.reached = True
        self.pi.injections = None
        self.pi.start()

    def _record(self, talker: Talker) -> None:
        self._insist("/record/start", session_id=SESSION_ID, roll_interval_s=1)
        started_s = since(talker)
        if self._trial.resumed:  # it begins before the sensor is heard, whose first line is never whole
            self._hear(started_s)
            started_s = since(talker)
        self._mark("START")
        if self._trial.hasty:
            time.sleep(SESSION_S)
            stopped_s = since(talker) - ON_THE_WAY_S
        else:
            self._wait(SESSION_S)
            self._mark("STOP")
            stopped_s = since(talker)
            self._hear(stopped_s)
        self._insist("/record/stop", session_id=SESSION_ID)
        self.outcome.recording_s = (started_s, stopped_s)
        if not self._watch.mended.is_set():
            self._watch.mend()
        self._ear.listen()
        end(self.pi, self.outcome)

    def _hear(self, said_s: float) -> None:
        """Until what was said by then is published, unless that takes too long."""
        published = self.outcome.told.published
        end_s = time.monotonic() + CATCH_UP_S
        while time.monotonic() < end_s and float(published.get(max(published, default=-1), -1)) < said_s:
            time.sleep(0.1)
            self._ear.listen()

    def _wait(self, duration_s: float) -> None:
        """For so long, and until a fault that has begun is over."""
        time.sleep(duration_s)
        if self._watch.reached_s is not None and (self._trial.lasting or self._trial.abandoned):
            self._watch.mended.wait(PATIENCE_S)
            time.sleep(SETTLE_S)

    def _mark(self, kind: str) -> None:
        sync_id = MARK.format(len(self.outcome.told.markers) + 1)
        if self._insist("/record/sync-marker", session_id=SESSION_ID, sync_id=sync_id, marker_type=kind):
            self.outcome.told.markers.add(sync_id)

    def _insist(self, path: str, **body: Any) -> bool:
        """Ask until it is granted, as a client would; the daemon may be killed meanwhile, if it is to be."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            try:
                status, said = self.pi.post(path, body)
            except (OSError, http.client.HTTPException, ValueError):
                assert self.pi.process is not None
                if self.pi.process.poll() is not None:
                    self._start_again()
            else:
                if status == 200 or (status == 400 and path == "/record/stop" and self._stopped()):
                    return True
                self._note_refusal(path, status, said)
            time.sleep(0.2)
        self.outcome.wrong.append(f"{path} was not granted within {PATIENCE_S} s")
        return False

    def _note_refusal(self, path: str, status: int, said: Any) -> None:
        if status in REFUSALS:
            self.outcome.refused.add(status)
        elif status not in NOT_NOW and not (status == 400 and self._trial.abandoned):
            self.outcome.wrong.append(f"{path} was answered {status}: {said}")

    def _stopped(self) -> bool:
        """Whether the session was stopped by a daemon that was killed before it could say so."""
        status, said = self.pi.get(RECORD_STATUS)
        return self._trial.interrupted and status == 200 and said["state"] == "stopped"


def since(talker: Talker) -> float:
    """Now, in seconds on the talker's clock."""
    return (SystemClock().mono_ns() - talker.start.mono_ns) / 1e9


def leave_behind(folder: Path) -> Path:
    """The data folder of a daemon that was killed while it recorded, with half a row at the end."""
    folder.mkdir()
    with (
        Talker(folder / "sensor", RATE_HZ) as talker,
        PiDaemon(folder / "pi", serial=str(talker.link)) as pi,
    ):
        pi.wait_streaming()
        pi.post("/record/start", {"session_id": SESSION_ID, "roll_interval_s": 1})
        time.sleep(SESSION_S)
        pi.kill()
    for chunk in (folder / "pi" / SESSION_ID).glob("*.tmp"):
        content = chunk.read_bytes()
        chunk.write_bytes(content + content.splitlines(keepends=True)[-1][:40])
    return folder / "pi"


def attempt(folder: Path, trial: Trial, left: Path | None) -> tuple[Trial, list[str], bool]:
    """Run a trial; its folder is kept if something is wrong. Also: whether its fault was met."""
    one = Attempt(folder, trial, left)
    try:
        wrong = one.run()
    except AssertionError as error:
        wrong = [*one.outcome.wrong, f"given up: {str(error)[-500:]}"]
    if not wrong:
        shutil.rmtree(folder)
    return trial, wrong, one.outcome.reached
