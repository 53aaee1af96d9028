"""Rubbish on the serial line: through the sensor layer in this process, then into a real daemon on a pty."""

import os
import pty
import subprocess
import sys
import time
import tracemalloc
import tty
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from common.chunkstore import sealed_chunks
from common.menu import Wanted
from common.qseries import DataLine
from common.rows import decode_row
from common.sensor import Sensor
from tests.campaigns.fuzz.outcome import Outcome, Watch, watched
from tests.sim.clocks import SimClock
from tests.sim.rig import ROOT, PiDaemon
from tests.sim.rubbish import TRUE_LINE, SerialRubbish, is_true_line, pieces

STORM = 500  # lines of rubbish in one go
CALM = 12  # lines as the sensor says them, after each storm
HEARD = 6  # of these must all be readings: three prove the shape, the others are for what was torn before
HELD_BYTES = 300_000  # what the sensor layer may hold beyond what it held at first
EVENTS_HZ = 5.0  # lines in events.jsonl that rubbish may cause
EVENT_BYTES = 1_000  # of each


class Judge:
    """Holds what was taken for readings against what was on the wire: each the line of a shape, in order,
    never twice. A line that was altered and kept the shape no reader could tell: it is counted."""

    def __init__(self) -> None:
        self.said = self.true = self.altered = 0
        self.invented: list[bytes] = []
        self._tail = b""
        self._lines: deque[bytes] = deque()

    def wire(self, data: bytes) -> None:
        """This is on its way."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        whole = [line.removesuffix(b"\r") for line in lines]
        self._lines.extend(text for text in whole if TRUE_LINE.fullmatch(text))
        self.said += sum(map(is_true_line, whole))

    def reading(self, value: str, temp_c: str | None, vin: str | None) -> None:
        """This was taken for a reading."""
        text = ", ".join(part for part in (value, temp_c, vin) if part is not None).encode()
        if text not in self._lines:
            self.invented.append(text)
            return
        while self._lines.popleft() != text:
            pass
        self.true += is_true_line(text)
        self.altered += not is_true_line(text)

    def forget(self) -> None:
        """Nothing that was on its way can come any more."""
        self._lines.clear()


class Ear:
    """The sensor layer, heard by a judge."""

    def __init__(self) -> None:
        self.judge = Judge()
        self.notes: Counter[str] = Counter()
        self._clock = SimClock()
        self.sensor = Sensor(self._clock, Wanted(), 9600, 1.0, self._read, self._note, lambda: False)

    def _read(self, data: DataLine) -> None:
        self.judge.reading(data.value, data.temp_c, data.vin)

    def _note(self, kind: str, _detail: str, _count: int) -> None:
        self.notes[kind] += 1

    def hear(self, rng: Random, data: bytes) -> None:
        """Bytes arrive, cut anyhow."""
        self.judge.wire(data)
        for piece in pieces(rng, data):
            self._clock.advance(rng.uniform(0.0, 0.005))
            self.sensor.receive(piece, self._clock.stamp())

    def hear_calmly(self, line: bytes) -> None:
        """One line arrives when it is due."""
        self._clock.advance(0.1)
        self.judge.wire(line)
        self.sensor.receive(line, self._clock.stamp())

    def complaint(self) -> str:
        """What is wrong by now, empty if nothing is."""
        if self.judge.invented:
            return f"readings that were never on the wire in this shape: {self.judge.invented[:3]}"
        counts = dict(self.sensor.gate.counts)
        lines = counts.pop("lines")
        if lines != sum(counts.values()) + self.sensor.gate.held:
            return f"of {lines} lines not all are accounted for: {counts}, {self.sensor.gate.held} held"
        return ""


def storm(ear: Ear, rng: Random, wire: SerialRubbish) -> str:
    """A storm and the calm after it; what is wrong with how it was taken, empty if nothing is."""
    for data in wire.storm(STORM):
        ear.hear(rng, data)
    ear.hear(rng, b"\r\n")
    for _ in range(CALM - HEARD):
        ear.hear_calmly(wire.calm())
    before = ear.judge.true
    for _ in range(HEARD):
        ear.hear_calmly(wire.calm())
    ear.judge.forget()
    missing = HEARD - (ear.judge.true - before)
    return f"deaf to {missing} of {HEARD} lines after the storm" if missing else ear.complaint()


def hear_lines(outcome: Outcome, seed: int, lines: int) -> None:
    """So many lines through the sensor layer in this process."""
    ear, storms = Ear(), max(2, lines // STORM)
    for number in range(storms):
        rng = Random(f"line {seed} {number}")
        try:
            wrong = storm(ear, rng, SerialRubbish(rng, number * 3 * STORM))
        except Exception as error:  # noqa: BLE001 - whatever it raises is what we look for
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            outcome.fail(f"seed {seed} storm {number}: {wrong}")
            return
    judge, counts = ear.judge, ear.sensor.gate.counts
    refused = sum(counts[kind] for kind in ("partial", "shape", "garbage", "overlong"))
    outcome.say(
        f"{counts['lines']} lines in {storms} storms: {judge.true} of {judge.said} undamaged ones read, "
        f"{judge.altered} altered within the shape (no checksum could tell), 0 invented; {refused} refused; "
        "after each storm all was heard"
    )
    outcome.say(f"told: {dict(ear.notes)}")


def measure_memory(outcome: Outcome, seed: int) -> None:
    """What the sensor layer holds after rubbish without an end is a few buffers."""
    ear = Ear()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(5):
        for data in (b"\0" * 81_920, b"0" * 81_920, b"\n" * 5000, Random(seed + number).randbytes(81_920)):
            ear.sensor.receive(data, SimClock().stamp())
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    outcome.expect(held - before < HELD_BYTES, f"the sensor layer holds {held - before} bytes")


class Cable:
    """A pty behind a link: what is said arrives whole, what the host says is not heard."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.judge = Judge()

    def __enter__(self) -> Self:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.link.symlink_to(os.ttyname(self._slave))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.link.unlink(missing_ok=True)
        os.close(self._master)
        os.close(self._slave)

    def say(self, data: bytes) -> None:
        """Returns when the host has room for all of it."""
        self.judge.wire(data)
        while data:
            try:
                data = data[os.write(self._master, data[:1024]) :]
            except BlockingIOError:
                time.sleep(0.002)
            with suppress(BlockingIOError):
                os.read(self._master, 4096)

    def say_calmly(self, wire: SerialRubbish, seconds: float) -> None:
        """As the sensor does, 20 lines a second."""
        for _ in range(round(20 * seconds)):
            self.say(wire.calm())
            time.sleep(0.05)


def hear_on_pty(outcome: Outcome, seed: int, seconds: float, folder: Path) -> None:
    """So long rubbish into a real daemon that records."""
    rng = Random(f"pty {seed}")
    wire = SerialRubbish(rng, 1)
    with Cable(folder / "ttyQ") as cable, PiDaemon(folder / "pi", serial=str(folder / "ttyQ")) as pi:
        while pi.get("/instrument/health")[1]["state"] != "freerun":
            cable.say_calmly(wire, 0.5)
        session_id = pi.post("/record/start", {"mission": "rubbish"})[1]["session_id"]
        with watched(pi, outcome) as watch:
            _weather(outcome, watch, pi, cable, rng, seconds, wire, session_id)
        rows = pi.post("/record/stop", {"session_id": session_id})[1]["rows"]
        outcome.expect(pi.stop() == 0, "pi_daemon did not end in order")
    _judge_record(outcome, cable.judge, folder / "pi" / session_id, rows)
    _judge_events(outcome, folder / "pi" / session_id / "events.jsonl", seconds)


def _weather(
    outcome: Outcome,
    watch: Watch,
    pi: PiDaemon,
    cable: Cable,
    rng: Random,
    seconds: float,
    wire: SerialRubbish,
    session_id: str,
) -> None:
    """Storms at 2000 lines/s for a second, then two seconds of calm in which recording must go on."""
    for number in range(max(1, round(seconds / 3))):
        for data in wire.storm(2000):
            cable.say(data)
            time.sleep(0.0005)
        cable.say(b"\r\n")
        cable.say_calmly(wire, 1.0)
        before = pi.get(f"/record/status?session_id={session_id}")[1]["rows"]
        cable.say_calmly(wire, 1.0)
        rows = pi.get(f"/record/status?session_id={session_id}")[1]["rows"]
        health = pi.get("/instrument/health")[1]
        outcome.expect(
            rows - before >= 10, f"storm {number}: {rows - before} readings in a calm second: {health}"
        )
        if not watch.look(f"storm {number}"):
            return


def _judge_record(outcome: Outcome, judge: Judge, folder: Path, rows: int) -> None:
    seqs = []
    for path in sealed_chunks(folder):
        for line in path.read_bytes().splitlines()[1:]:
            reading = decode_row(line)
            assert reading is not None
            seqs.append(reading.seq)
            judge.reading(reading.value, reading.temp_c, reading.vin)
    outcome.expect(seqs == list(range(rows)), f"seq is not 0 to {rows - 1}")
    outcome.expect(not judge.invented, f"recorded, but never on the wire in this shape: {judge.invented[:3]}")
    command = [sys.executable, "-m", "common.chunkstore", "verify", str(folder)]
    verdict = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    outcome.expect(verdict.returncode == 0, f"verify: {verdict.stdout}{verdict.stderr}")
    outcome.say(
        f"real daemon on a pty: {rows} rows, {judge.true} as they were sent, {judge.altered} altered within "
        f"the shape, {len(judge.invented)} invented"
    )


def _judge_events(outcome: Outcome, path: Path, seconds: float) -> None:
    content = path.read_bytes()
    lines = content.count(b"\n")
    most = 20 + EVENTS_HZ * seconds
    outcome.expect(lines < most, f"{path} has {lines} lines after {seconds:.0f} s: more than {most:.0f}")
    outcome.expect(len(content) < most * EVENT_BYTES, f"{path} has {len(content)} bytes")
    outcome.say(f"events.jsonl: {lines} lines, {len(content)} bytes")
