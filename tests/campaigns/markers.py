"""Markers whose answers are killed: asked for until answered, each is written once, with its first time.

    python -m tests.campaigns.markers [--count N] [--kills N] [--seed N] [--out DIR]

A real Pi daemon is told of markers through a relay that cuts the call at a drawn byte, most often in the
answer, when the Pi has already written the marker. Now and then the Pi is killed in the middle of one.
"""

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Struct

from common.clock import SystemClock
from common.files import read_lines
from common.messages import Marker
from common.rows import MARKER_MODE, RowError, check_row, format_utc
from tests.campaigns.findings import Findings, workplace
from tests.sim.copies import Vessel, at_sea
from tests.sim.cutter import CUTS, Cutter, Harm

SYNC_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
CALM = 0.25  # of the calls are not cut, else a marker would never end
TWICE = 0.1  # of the markers are asked for twice at the same time
ASKING_BYTES, ANSWER_BYTES = 420, 480  # a little more than a call has in either direction
PATIENCE_S = 5.0
KILL_WITHIN_S, WROTE_WITHIN_S = 0.005, 0.05

Key = tuple[str, int]
Row = tuple[str, int, str]


class Answer(Struct, frozen=True):
    """What the Pi said of a marker in the end, and the time here when that call began.

    alone: no other call for the same marker was on its way.
    """

    asked_ns: int
    alone: bool
    said: dict[str, Any]


class MarkerTrial:
    """Markers of one recording, told through a link that kills calls."""

    def __init__(self, vessel: Vessel, cutter: Cutter, findings: Findings) -> None:
        self._vessel, self._cutter = vessel, cutter
        self._findings, self._tally = findings, findings.tally
        self._rng = random.Random(findings.seed)
        self._clock = SystemClock()
        self.answers: dict[Key, list[Answer]] = {}

    async def run(self, count: int, kills: int) -> None:
        """*count* markers, the last of them STOP, *kills* of them with a kill -9 of the Pi; then what it
        has kept is held against the answers."""
        self._killed_in = set(self._rng.sample(range(1, count), kills))
        await self._vessel.start()
        folder = self.folder = self._vessel.original(self._vessel.current)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            for step in range(count):
                self._findings.step = step
                kind = {0: "START", count - 1: "STOP"}.get(step, "PERIODIC")
                await self._mark(http, (kind, step), folder)
        await self._vessel.stop()
        for line in judge(folder, self.answers):
            self._findings.fail(line)

    async def _mark(self, http: aiohttp.ClientSession, key: Key, folder: Path) -> None:
        """Ask until answered; once it is on the Pi's disk, an answer may only be a repetition."""
        callers = 2 if self._rng.random() < TWICE else 1
        self.answers[key] = []
        while not self.answers[key]:
            before = written(folder).get(key)
            self._harm()
            tries: list[Awaitable[Answer | None]] = [
                self._ask(http, key, callers == 1) for _ in range(callers)
            ]
            if key[1] in self._killed_in:
                self._killed_in.remove(key[1])
                tries.append(self._kill(folder))
            answers = [answer for answer in await asyncio.gather(*tries) if answer is not None]
            self.answers[key] += answers
            for answer in answers:
                if before is not None and answer.said["status"] != "duplicate":
                    self._findings.fail(f"{key}: {answer.said['status']} though it was on the disk before")

    async def _kill(self, folder: Path) -> None:
        """kill -9 for the Pi about when it writes the marker, or just after it has written a row."""
        await asyncio.sleep(self._rng.uniform(0, KILL_WITHIN_S))
        if self._rng.random() < 0.5:
            before = size_of(folder)
            with suppress(TimeoutError):
                async with asyncio.timeout(WROTE_WITHIN_S):
                    while size_of(folder) == before:  # noqa: ASYNC110 - a file knows no events
                        await asyncio.sleep(0)
        self._vessel.daemon.kill()
        await asyncio.to_thread(self._vessel.daemon.start)
        self._tally["kills of the Pi"] += 1

    def _harm(self) -> None:
        if self._rng.random() < CALM:
            self._cutter.arm(Harm("watch", upward=True, after_bytes=0))
            return
        upward = self._rng.random() < 0.2
        reach = ASKING_BYTES if upward else ANSWER_BYTES
        self._cutter.arm(Harm(self._rng.choice(CUTS), upward, self._rng.randrange(reach)))

    async def _ask(self, http: aiohttp.ClientSession, key: Key, alone: bool) -> Answer | None:
        """One call; None if it came to nothing."""
        kind, sequence = key
        wanted = {
            "session_id": self._vessel.current,
            "sync_id": SYNC_ID,
            "marker_type": kind,
            "periodic_sequence": sequence,
        }
        self._tally["calls"] += 1
        asked_ns = self._clock.mono_ns()
        try:
            async with http.post(f"{self._cutter.url}/record/sync-marker", json=wanted) as response:
                said = await response.json()
        except (aiohttp.ClientError, OSError, ValueError):
            self._tally["cut off"] += 1
            return None
        if response.status != 200:
            self._findings.fail(f"{key}: {response.status} {said}")
        self._tally[said.get("status", "refused")] += 1
        return Answer(asked_ns, alone, said)

    def summary(self) -> str:
        """What was done and what became of it."""
        counts = self._findings.counts("calls", "cut off", "injected", "duplicate", "kills of the Pi")
        hidden = len(self.answers) - self._tally["injected"]
        return (
            f"markers   {len(self.answers)} markers: {counts}\n"
            f"          {hidden} were written by a call whose answer was cut off"
        )


def written(folder: Path) -> dict[Key, Marker]:
    """The markers on a recording's disk."""
    return {(one.kind, one.sequence): one for one in read_lines(folder / "markers.jsonl", Marker)}


def size_of(folder: Path) -> int:
    """Bytes in the newest chunk, which is the one that grows."""
    return max(folder.glob("chunk_*")).stat().st_size


def marker_rows(folder: Path) -> Iterator[Row]:
    """Kind, monotonic time and UTC text of the marker rows in the chunks."""
    for path in sorted(folder.glob("chunk_*.csv")):
        for line in path.read_bytes().splitlines()[1:]:
            fields = check_row(line)
            if fields[2].startswith(MARKER_MODE):
                yield fields[2].removeprefix(MARKER_MODE), int(fields[8]), fields[0]


def judge(folder: Path, answers: dict[Key, list[Answer]]) -> list[str]:
    """What is wrong with the markers of a recording, given what was answered for them."""
    records = list(read_lines(folder / "markers.jsonl", Marker))
    kept = written(folder)
    found = [f"{len(records)} records of {len(answers)} markers"] if len(records) != len(answers) else []
    found += [f"{key}: asked for, not kept" for key in answers.keys() - kept.keys()]
    try:
        rows = Counter(marker_rows(folder))
    except RowError as error:
        return [*found, f"a row of the chunks is damaged: {error}"]
    expected: Counter[Row] = Counter((one.kind, one.mono_ns, format_utc(one.utc_ns)) for one in kept.values())
    found += [f"{row}: in the chunks, not in the records" for row in rows - expected]
    found += [f"{row}: in the records, not in the chunks" for row in expected - rows]
    for key in answers.keys() & kept.keys():
        found += [f"{key}: {line}" for line in contradictions(kept[key], answers[key])]
    return found


def contradictions(marker: Marker, answers: list[Answer]) -> list[str]:
    """Where answers are not of this marker, or not of the first call that reached the Pi."""
    found = []
    for answer in answers:
        said = answer.said
        if (said["timestamp"], said["t2_ns"]) != (format_utc(marker.utc_ns), marker.mono_ns):
            found.append(f"answered {said['timestamp']}, recorded {format_utc(marker.utc_ns)}")
        if said["status"] == "injected" and marker.mono_ns < answer.asked_ns:
            found.append("called new, and its time is of an earlier call")
        if said["status"] == "duplicate" and answer.alone and marker.mono_ns >= answer.asked_ns:
            found.append("called a repetition, and its time is not of an earlier call")
    if sum(answer.said["status"] == "injected" for answer in answers) > 1:
        found.append("called new twice")
    return found


async def campaign(folder: Path, findings: Findings, count: int, kills: int) -> None:
    """One recording with *count* markers."""
    async with at_sea(folder, findings.seed) as (vessel, _pi, cutter):
        trial = MarkerTrial(vessel, cutter, findings)
        await trial.run(count, kills)
        print(trial.summary(), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.markers", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="markers (default 200)")
    parser.add_argument("--kills", type=int, default=10, help="of the Pi, among them (default 10)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep everything in this new folder")
    options = parser.parse_args(arguments)
    findings = Findings(options.seed)
    print(f"markers   seed {options.seed}: {options.count} markers, answers killed", flush=True)
    with workplace("markers", findings, options.out) as folder:
        asyncio.run(campaign(folder, findings, options.count, options.kills))
        return findings.verdict(folder)


if __name__ == "__main__":
    sys.exit(main())
