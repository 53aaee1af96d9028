"""The live path, from the byte on the port to whoever listens, beside the least that does the same.

Processes of their own, in turn, round by round; medians of the rounds. A sensor says in its value when it
said it, so that lateness needs no second clock.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from tests.bench.measuring import ROOT
from tests.sim.rig import PiDaemon, TopsideDaemon, free_port
from tests.sim.talker import Talker

LINES, LINES_HZ = 300, 100
MESSAGES, MESSAGES_HZ = 1500, 500
BURSTS, BURST = 5, 9_000  # readings of a burst stay below what a publisher keeps
HELD_S = 0.25  # until a burst has all come
MARKERS = 200
SESSION = "11111111-1111-4111-8111-111111111111"
MARKER = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


class Lateness(NamedTuple):
    """In us."""

    p50: float
    p90: float

    @classmethod
    def of(cls, late_ns: Sequence[float]) -> "Lateness":
        tenths = quantiles(late_ns, n=10)
        return cls(median(late_ns) / 1e3, tenths[8] / 1e3)


def start(role: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.bench.roles", role, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def pairs(process: "subprocess.Popen[str]") -> list[tuple[str, int]]:
    """What a process saw, and when."""
    said, _ = process.communicate()
    return [(value, int(at_ns)) for value, at_ns in map(str.split, said.splitlines())]


def spoken(talker: Talker, seen: Sequence[tuple[str, int]]) -> Lateness:
    """How long after a value was said it was seen, at the second of each ten: settled, and past start-up."""
    late = [at_ns - talker.start.mono_ns - 1e9 * float(value) for value, at_ns in seen]
    return Lateness.of(late[len(late) // 10 :])


def stamped(role: str) -> Lateness:
    """From the write on the pty to the stamp."""
    with tempfile.TemporaryDirectory() as place, Talker(Path(place, "sensor"), LINES_HZ) as talker:
        return spoken(talker, pairs(start(role, talker.link, LINES)))


def received(role: str) -> Lateness:
    """From the publisher to the subscriber."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with start("publish", address, MESSAGES_HZ, MESSAGES):
        seen = pairs(start(role, address, MESSAGES * 9 // 10))
    return Lateness.of([at_ns - int(sent) for sent, at_ns in seen])


def heard_from_loop() -> Lateness:
    """From the pty through a blocking loop that records, to a subscriber."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as place, Talker(Path(place, "sensor"), LINES_HZ) as talker:
        loop = start("record", talker.link, Path(place, "rows.csv"), address)
        try:
            return spoken(talker, pairs(start("listen", address, "qsensor/inwater/reading", LINES)))
        finally:
            loop.kill()
            loop.communicate()


def begin(pi: PiDaemon) -> None:
    code, said = pi.post("/record/start", {"session_id": SESSION})
    assert code == 200, said


def heard_from_daemon() -> Lateness:
    """The same through the Pi daemon, recording."""
    with ExitStack() as held:
        place = Path(held.enter_context(tempfile.TemporaryDirectory()))
        talker = held.enter_context(Talker(place / "sensor", LINES_HZ))
        pi = held.enter_context(PiDaemon(place / "pi", serial=str(talker.link)))
        pi.wait_streaming()
        begin(pi)
        return spoken(
            talker, pairs(start("listen", f"tcp://127.0.0.1:{pi.bus}", "qsensor/inwater/reading", LINES))
        )


class Rate(NamedTuple):
    """Readings that came of those that were sent, and how many were taken a second."""

    came: int
    sent: int
    per_s: float


def _rate(process: "subprocess.Popen[str]", sent: int) -> Rate:
    came, spent_s = process.communicate()[0].split()
    return Rate(int(came), sent, int(came) / float(spent_s))


def drained(held_s: float) -> Rate:
    """Bursts through the bus into decoded readings; held_s: how long the subscriber is held up before
    each."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with start("burst", address, BURSTS, BURST):
        return _rate(start("drain", address, BURSTS, BURST, held_s), BURSTS * BURST)


def pulled() -> Rate:
    """LSL, sample by sample."""
    with start("push", BURST):
        return _rate(start("pull", BURST), BURST)


def against(title: str, ours: Callable[[], Lateness], other: Callable[[], Lateness], rounds: int) -> None:
    """Rounds in turn; p50 and p90 of each, and the ratio in the median round."""
    found = [(ours(), other()) for _ in range(rounds)]
    mine, its = (Lateness(*map(median, zip(*one, strict=True))) for one in zip(*found, strict=True))
    ratio = median(one.p50 / another.p50 for one, another in found)
    print(
        f"  {title:<45} p50 {mine.p50:5.0f} us, p90 {mine.p90:5.0f}; "
        f"other p50 {its.p50:5.0f}, p90 {its.p90:5.0f}; x {ratio:.2f}",
        flush=True,
    )


def _tell(title: str, found: Sequence[Rate]) -> float:
    """The median rate."""
    rate, lost = median(one.per_s for one in found), sum(one.sent - one.came for one in found)
    print(f"  {title:<45} {rate:8.0f} readings/s, {lost} lost", flush=True)
    return rate


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The most memory that it ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def idle(seconds: float) -> None:
    """What the Pi daemon costs at 15 readings/s."""
    with ExitStack() as held:
        place = Path(held.enter_context(tempfile.TemporaryDirectory()))
        talker = held.enter_context(Talker(place / "sensor", 15))
        pi = held.enter_context(PiDaemon(place / "pi", serial=str(talker.link)))
        pi.wait_streaming()
        begin(pi)
        assert pi.process is not None
        before_s = cpu_s(pi.process.pid)
        time.sleep(seconds)
        share = (cpu_s(pi.process.pid) - before_s) / seconds
        print(f"  Pi daemon recording 15 readings/s: {share:.2%} of a core, {peak_mb(pi.process.pid):.0f} MB")


def mark(count: int) -> None:
    """A marker to the Pi and its answer, which comes when the marker is on the disk."""
    with ExitStack() as held:
        place = Path(held.enter_context(tempfile.TemporaryDirectory()))
        talker = held.enter_context(Talker(place / "sensor", 15))
        pi = held.enter_context(PiDaemon(place / "pi", serial=str(talker.link)))
        pi.wait_streaming()
        begin(pi)
        connection = HTTPConnection("127.0.0.1", pi.http)
        took_ns: list[float] = []
        for number in range(count):
            body = {"session_id": SESSION, "sync_id": MARKER, "marker_type": "PERIODIC"}
            content = json.dumps(body | {"periodic_sequence": number})
            begun_ns = time.perf_counter_ns()
            connection.request("POST", "/record/sync-marker", content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            took_ns.append(time.perf_counter_ns() - begun_ns)
            assert answer.status == 200, said
        found = Lateness.of(took_ns)
        print(
            f"  marker there and back, on the disk: p50 {found.p50:.0f} us, p90 {found.p90:.0f}", flush=True
        )


def flood(seconds: float, rate_hz: float) -> None:
    """Both daemons with both sensors at a high rate: what was said, and what is in the table."""
    with ExitStack() as held:
        place = Path(held.enter_context(tempfile.TemporaryDirectory()))
        under, deck = (held.enter_context(Talker(place / name, rate_hz)) for name in ("under", "deck"))
        pi = held.enter_context(PiDaemon(place / "pi", serial=str(under.link)))
        topside = held.enter_context(
            TopsideDaemon(place / "topside", serial=str(deck.link), pi=f"http://127.0.0.1:{pi.http}")
        )
        pi.wait_streaming()
        topside.wait_streaming()
        topside.post("/session/start", {"mission": "flood"})
        first = len(under.sent), len(deck.sent)
        assert pi.process is not None and topside.process is not None
        before = [cpu_s(one.process.pid) for one in (pi, topside) if one.process is not None]
        time.sleep(seconds)
        spent = [
            (cpu_s(one.process.pid) - earlier) / seconds
            for one, earlier in zip((pi, topside), before, strict=True)
            if one.process is not None
        ]
        last = len(under.sent), len(deck.sent)
        report = topside.post("/session/stop")[1]["report"]
        missing = 0
        for side, name in enumerate(("inwater", "surface")):
            missing += report[name]["missing"] + max(0, last[side] - first[side] - report[name]["rows"])
        print(
            f"  both daemons at {rate_hz:.0f} readings/s a side for {seconds:.0f} s: "
            f"{report['inwater']['rows']} and {report['surface']['rows']} recorded, {missing} lost, "
            f"{report['paired']} paired; Pi {spent[0]:.0%} of a core, topside {spent[1]:.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.live", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the daemons at work")
    given = parser.parse_args()
    print("the live path")
    against(
        "stamp, against select and os.read",
        lambda: stamped("instrument"),
        lambda: stamped("read"),
        given.rounds,
    )
    against(
        "subscriber, against blocking pyzmq",
        lambda: received("subscribe"),
        lambda: received("receive"),
        given.rounds,
    )
    against("port to subscriber, against a blocking loop", heard_from_daemon, heard_from_loop, given.rounds)
    _tell("bus, a burst that had come meanwhile", [drained(HELD_S) for _ in range(given.rounds)])
    ours = _tell("bus, while it comes, a message for each", [drained(0) for _ in range(given.rounds)])
    if importlib.util.find_spec("pylsl"):
        other = _tell("LSL, while it comes, a sample for each", [pulled() for _ in range(given.rounds)])
        print(f"  {'':<45} x {ours / other:.1f}")
    mark(MARKERS)
    idle(given.seconds)
    flood(given.seconds, 2000)


if __name__ == "__main__":
    main()
