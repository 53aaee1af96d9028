"""Both daemons through one session, with cuts and outages between them, and a stop in the middle of one."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.files import read_lines
from common.messages import Marker
from tests.campaigns.findings import Findings
from tests.sim.copies import ROLL_S, differences
from tests.sim.cutter import CUTS, OUTAGES, Cutter, Outage, drawn
from tests.sim.rig import PATIENCE_S, PiDaemon, TopsideDaemon
from tests.sim.streams import seqs_in
from tests.sim.talker import Talker

RATE_HZ = 50.0
PI_SIDE, DECK_SIDE = "127.0.0.1", "127.0.0.2"  # the same ports on both: the Pi tells its bus's port
OUTAGE_S = (0.2, 2.0)
CALLS_REACH, BUS_REACH = (500, 8000), (20, 20_000)  # bytes up and down: seconds of either
TIME_ASKED = b"GET /api/sync/time"
LEFT_OVER = ("*.tmp", "*.new", "*.part", "*.torn*")


class TetherTrial:
    """One session of a real pair of daemons, whose HTTP and bus go through relays."""

    def __init__(self, folder: Path, findings: Findings) -> None:
        self._folder = folder
        self._findings = findings
        self.tally: Counter[str] = Counter()
        self._rng = random.Random(findings.seed)
        self._clock = SystemClock()
        self.stop_s = self.late_s = 0.0
        self._how = ""
        self._time_asked = asyncio.Event()

    async def run(self, count: int, how: Outage) -> None:
        """*count* cuts and outages; then `stop` during one, *how*, and the link comes back."""
        self._how = how
        try:
            await self._run(count, how)
        except (AssertionError, TimeoutError) as error:  # waited in vain; the first has the daemon's log
            self._findings.fail(f"{self._folder.name}: {error!r}")

    async def _run(self, count: int, how: Outage) -> None:
        self._folder.mkdir()
        async with AsyncExitStack() as stack:
            inwater = stack.enter_context(Talker(self._folder / "inwater", RATE_HZ))
            surface = stack.enter_context(Talker(self._folder / "surface", RATE_HZ))
            self._pi = stack.enter_context(PiDaemon(self._folder / "pi", serial=str(inwater.link)))
            self._pi.wait_streaming()
            self._relays = self._calls, self._bus = [
                await stack.enter_async_context(Cutter((DECK_SIDE, port), (PI_SIDE, port), self._look))
                for port in (self._pi.http, self._pi.bus)
            ]
            self._topside = self._deck(surface)
            await asyncio.to_thread(stack.enter_context, self._topside)
            await asyncio.to_thread(self._topside.wait_streaming)
            await self._session(count, how)

    def _look(self, upward: bool, piece: bytes) -> bytes:
        if upward and TIME_ASKED in piece:
            self._time_asked.set()
        return piece

    def _deck(self, surface: Talker) -> TopsideDaemon:
        config = self._folder / "topside.toml"
        config.write_text(f"[recording]\nroll_interval_s = {ROLL_S}\n", encoding="utf-8")
        pi = f"http://{DECK_SIDE}:{self._pi.http}"
        return TopsideDaemon(self._folder / "topside", config=str(config), pi=pi, serial=str(surface.link))

    async def _session(self, count: int, how: Outage) -> None:
        await self._post("/session/start", {"mission": "tether"})
        for step in range(1, count + 1):
            self._findings.step = step
            if step % 3 == 0:
                await self._outage(self._rng.choice(OUTAGES), self._rng.uniform(*OUTAGE_S))
            else:
                await self._cut()
        await asyncio.to_thread(self._topside.wait_for, self._is_followed)
        said = await self._stop_in(how)
        if code := await asyncio.to_thread(self._topside.stop):  # nothing is being written any more
            self._findings.fail(f"the topside daemon ended with {code}")
        self._judge(said)

    async def _cut(self) -> None:
        """One connection, of the calls or of the bus, is cut at a drawn byte."""
        relay, reach = self._rng.choice([(self._calls, CALLS_REACH), (self._bus, BUS_REACH)])
        relay.arm(drawn(self._rng, self._rng.choice(CUTS), *reach))
        await asyncio.wait_for(relay.struck.wait(), PATIENCE_S)
        self.tally["cuts"] += 1

    async def _outage(self, how: Outage, seconds: float) -> None:
        """The tether carries nothing, of neither, for a while."""
        await asyncio.sleep(self._rng.uniform(0, ROLL_S))
        for relay in self._relays:
            relay.cut(how)
        await asyncio.sleep(seconds)
        for relay in self._relays:
            await relay.mend()
        self.tally["outages"] += 1

    async def _stop_in(self, how: Outage) -> Any:
        """Stop while nothing gets through: incomplete, and complete by itself when it does again."""
        self._time_asked.clear()
        mark = asyncio.to_thread(self._topside.post, "/session/mark", {"label": "the link goes"})
        marking = asyncio.create_task(mark)
        await asyncio.wait_for(self._time_asked.wait(), PATIENCE_S)  # in the middle of a comparison
        for relay in self._relays:
            relay.cut(how)
        asked_ns = self._clock.mono_ns()
        said = await self._post("/session/stop", None)
        self.stop_s = (self._clock.mono_ns() - asked_ns) / 1e9
        await marking  # it may be refused: the session is being stopped
        if said["state"] != "incomplete" or not said["detail"]:
            self._findings.fail(f"a stop in an outage ({how}) said {said['state']!r}: {said['detail']!r}")
        for relay in self._relays:
            await relay.mend()
        since_ns = self._clock.mono_ns()
        await asyncio.to_thread(self._topside.wait_for, self._is_complete)
        self.late_s = (self._clock.mono_ns() - since_ns) / 1e9
        return await asyncio.to_thread(self._topside.session)

    def _is_followed(self) -> bool:
        """The in-water record has begun, and its copy is not far behind."""
        status = self._pi.get("/status")[1]
        return bool(0 < status["durable_seq"] <= self._topside.session()["inwater_durable_seq"] + RATE_HZ)

    def _is_complete(self) -> bool:
        return bool(self._topside.session()["state"] == "complete")

    def _judge(self, said: dict[str, Any]) -> None:
        session = Path(said["folder"])
        copy = session / f"in-water_{said['session_id']}"
        original = self._pi.data / said["session_id"]
        wrong = differences(original, copy)
        wrong += [f"{path.name}: left over" for each in LEFT_OVER for path in session.rglob(each)]
        seqs = seqs_in(copy)
        if seqs != list(range(len(seqs))):
            wrong.append("the numbers of the copy have holes")
        if "STOP" not in {marker.kind for marker in read_lines(session / "markers.jsonl", Marker)}:
            wrong.append("the session has no STOP marker")
        if said["inwater_missing"]:
            wrong.append(f"{said['inwater_missing']} readings are called missing")
        self.tally["readings"], self.tally["repaired"] = len(seqs), said["inwater_repaired"]
        for line in wrong[:5]:
            self._findings.fail(f"{session.name}: {line}")

    async def _post(self, path: str, body: object) -> Any:
        status, said = await asyncio.to_thread(self._topside.post, path, body)
        assert status == 200, said
        return said

    def summary(self) -> str:
        """What was done and what became of it."""
        tried = ", ".join(f"{count} {name}" for name, count in self.tally.items())
        return (
            f"daemons   {tried}; stopped in an outage ({self._how}): answered after\n"
            f"          {self.stop_s:.1f} s, complete {self.late_s:.1f} s after the link was back"
        )
