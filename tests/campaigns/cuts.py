"""Network cuts between the topside and the Pi: whatever the link does, the copy ends byte-identical.

    python -m tests.campaigns.cuts [--count N] [--seed N] [--out DIR]

A mirror copies, through a relay that does harm at drawn bytes, what a real Pi daemon has recorded and
is recording; bytes are turned and files changed on the way; both daemons go through one session.
"""

import argparse
import asyncio
import random
import sys
from contextlib import suppress
from pathlib import Path

from common.clock import SystemClock
from tests.campaigns.findings import Findings, workplace
from tests.campaigns.meddling import Meddler, MeddlingTrial
from tests.campaigns.tether import TetherTrial
from tests.sim.copies import ROLL_S, Copy, Vessel, at_sea, differences, invented, strays
from tests.sim.cutter import CUTS, OUTAGES, Cutter, Harm, Outage, drawn
from tests.sim.rig import ROOT
from topside_daemon.mirror import Mirror
from topside_daemon.pi import Pi, PiError

REACH = (2500, 25_000)  # bytes up and down: a dozen calls
KILL_REACH = 20_000
OUTAGE_S = (0.2, 2.0)
BEYOND_PATIENCE_S = 6.0  # no call waits so long for an answer
OUTAGE_EVERY, PATIENCE_EVERY, KILL_EVERY = 4, 100, 10  # cuts
NO_ANSWER: tuple[Outage, ...] = ("refuse", "hole")
LAST_PULLS = 5  # over a whole link; more would be a mirror that does not get there
CHILD = "from tests.campaigns.cuts import copy_for_ever; copy_for_ever()"


def copy_for_ever() -> None:
    """What a process that is to be killed does: copy a session until then, whatever cuts it off."""
    url, session_id, folder = sys.argv[1:]

    async def work() -> None:
        pi = Pi(url, SystemClock())
        pi.open()
        copy = Copy(pi, session_id, Path(folder))
        await copy.load()
        while True:
            with suppress(PiError):
                await copy.mirror.pull()

    asyncio.run(work())


class MirrorTrial:
    """Copies of all that a Pi has, through a link that is being cut."""

    def __init__(
        self,
        vessel: Vessel,
        pi: Pi,
        cutter: Cutter,
        folder: Path,
        findings: Findings,
        kind: type[Mirror] = Mirror,
    ) -> None:
        self._vessel, self._pi, self._cutter = vessel, pi, cutter
        self._folder, self.findings, self._tally = folder, findings, findings.tally
        self._rng = random.Random(findings.seed)
        self._begun: list[Copy] = []  # not yet whole
        self.whole: list[Copy] = []
        self._kind = kind

    async def run(self, count: int) -> None:
        """*count* cuts, and a kill now and then; then everything over a whole link."""
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._vessel.record(enough))
            while len(self._vessel.finished) < 2:  # noqa: ASYNC110 - it knows no events
                await asyncio.sleep(0.05)
            for step in range(1, count + 1):
                self.findings.step = step
                await self._cut(step)
                if step % KILL_EVERY == 0:
                    await self._kill()
                    self._tell(step, count)
            enough.set()
        await self._finish()

    def _tell(self, step: int, count: int) -> None:
        if step % (5 * KILL_EVERY) == 0:
            so_far = f"{len(self.whole)} copies whole, {self.findings.counts('pulls failed', 'restarts')}"
            print(f"  {step} of {count} cuts: {so_far}", flush=True)

    async def _cut(self, step: int) -> None:
        """One harm at a drawn byte, with pulls going on before, through and after it."""
        if step % PATIENCE_EVERY == PATIENCE_EVERY // 2:
            harm = drawn(self._rng, "hole", *REACH, BEYOND_PATIENCE_S)
        elif step % OUTAGE_EVERY == 0:
            harm = drawn(self._rng, self._rng.choice(OUTAGES), *REACH, self._rng.uniform(*OUTAGE_S))
        else:
            harm = drawn(self._rng, self._rng.choice(CUTS), *REACH)
        self._tally[harm.how] += 1
        self._tally["ms of outage"] += round(harm.outage_s * 1e3)
        self._cutter.arm(harm)
        while not (self._cutter.struck.is_set() and self._cutter.is_whole):
            await self._choose()
            await self._pull_all()

    async def _choose(self) -> None:
        """Several sessions at once, the one being recorded among them."""
        wanted = self._rng.choices(self._vessel.finished, k=max(0, 2 - len(self._begun)))
        if self._vessel.current:
            wanted.append(self._vessel.current)
        for session_id in wanted:
            if session_id not in {copy.session_id for copy in self._begun}:
                self._begun.append(await self._new_copy(session_id))

    async def _new_copy(self, session_id: str) -> Copy:
        self._tally["copies"] += 1
        folder = self._folder / f"copy_{self._tally['copies']}"
        copy = Copy(self._pi, session_id, folder, self._kind)
        await copy.load()
        return copy

    async def _pull_all(self) -> None:
        begun = self._begun
        results = await asyncio.gather(*map(self._pull, begun), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                self.findings.fail(f"a pull raised {error!r}")
        self.whole += [copy for copy, whole in zip(begun, results, strict=True) if whole is True]
        self._begun = [copy for copy, whole in zip(begun, results, strict=True) if whole is False]

    async def _pull(self, copy: Copy) -> bool:
        """Whether the copy is said to be complete; then it is judged."""
        try:
            lacking = await copy.lacks()
        except PiError:
            self._tally["pulls failed"] += 1
            if self._rng.random() < 0.3:
                self._tally["restarts"] += 1
                await copy.load()
            await asyncio.sleep(0.02)
            return False
        self._tally["pulls"] += 1
        return not lacking and self._judge(copy)

    def _judge(self, copy: Copy) -> bool:
        original = self._vessel.original(copy.session_id)
        wrong = differences(original, copy.folder) + invented(original, copy.told)
        if copy.session_id == self._vessel.current:
            wrong.append("the recording goes on")
        for line in wrong[:3]:
            self.findings.fail(f"{copy.folder.name}: said to be complete, but {line}")
        return True

    async def _kill(self) -> None:
        """SIGKILL for a process that copies: at a drawn byte of what it gets, or while it keeps a chunk."""
        copy = await self._new_copy(self._rng.choice(self._vessel.finished))
        self._cutter.arm(Harm("watch", upward=False, after_bytes=self._rng.randrange(1, KILL_REACH)))
        words = (self._cutter.url, copy.session_id, str(copy.folder))
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *words, cwd=ROOT)
        if self._rng.random() < 0.5:
            await self._cutter.struck.wait()
        else:
            await self._has_kept(copy)
        child.kill()
        await child.wait()
        self._tally["kills"] += 1
        await copy.load()
        self._begun.append(copy)

    async def _has_kept(self, copy: Copy) -> None:
        """Wait until a chunk is sealed here; as often as not the last: there is no later one to tidy up."""
        chunks = sorted(path.name for path in self._vessel.original(copy.session_id).glob("chunk_*.csv"))
        name = chunks[-1] if self._rng.random() < 0.5 else self._rng.choice(chunks)
        while not (copy.folder / name).exists():  # noqa: ASYNC110 - a file knows no events
            await asyncio.sleep(0)

    async def _finish(self) -> None:
        """Over a whole link: what goes on is a beginning, what has ended becomes whole."""
        live = await self._new_copy(self._vessel.current)
        self._begun.append(live)
        await asyncio.sleep(2 * ROLL_S)
        await self._pull_all()
        if live not in self._begun or not live.told:
            self.findings.fail("the session being recorded is not being copied")
        for copy in self._begun:
            for line in strays(self._vessel.original(copy.session_id), copy.folder):
                self.findings.fail(f"{copy.folder.name}: {line}")
        await self._vessel.stop()
        for _ in range(LAST_PULLS):
            await self._pull_all()
        for copy in self._begun:
            wrong = differences(self._vessel.original(copy.session_id), copy.folder)
            self.findings.fail(f"{copy.folder.name} never became complete: {wrong[:3]}")
        for copy in self.whole:
            for line in differences(self._vessel.original(copy.session_id), copy.folder)[:3]:
                self.findings.fail(f"{copy.folder.name}: in the end {line}")

    def summary(self) -> str:
        """What was done and what became of it."""
        kept = sum(path.stat().st_size for copy in self.whole for path in copy.folder.glob("chunk_*"))
        out_s = self._tally["ms of outage"] / 1e3
        return (
            f"mirror    {self.findings.counts(*CUTS, *OUTAGES)} ({out_s:.0f} s), "
            f"{self.findings.counts('kills', 'restarts', 'pulls failed')}\n"
            f"          {len(self._vessel.finished)} sessions, {len(self.whole)} copies whole "
            f"({kept / 1e6:.1f} MB), {len(self._begun)} not"
        )


async def campaign(folder: Path, findings: Findings, count: int) -> None:
    """All three trials, each with its share of *count*."""
    meddler = Meddler(random.Random(findings.seed))
    async with at_sea(folder, findings.seed, meddler) as (vessel, pi, cutter):
        mirror = MirrorTrial(vessel, pi, cutter, folder, findings)
        await mirror.run(count)
        print(mirror.summary(), flush=True)
        meddling = MeddlingTrial(vessel, pi, meddler, folder, findings)
        await meddling.run(max(2, count // 10))
        print(meddling.summary(), flush=True)
    for how in NO_ANSWER:
        tether = TetherTrial(folder / f"tether_{how}", findings)
        await tether.run(max(2, count // 12), how)
        print(tether.summary(), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.cuts", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="cuts of the mirror's link (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep everything in this new folder")
    options = parser.parse_args(arguments)
    findings = Findings(options.seed)
    print(f"cuts      seed {options.seed}: {options.count} cuts between a mirror and a Pi", flush=True)
    with workplace("cuts", findings, options.out) as folder:
        asyncio.run(campaign(folder, findings, options.count))
        return findings.verdict(folder)


if __name__ == "__main__":
    sys.exit(main())
