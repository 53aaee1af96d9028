"""Every state of the disk that a power cut may leave of the Pi daemon's recordings, recovered and judged.

A real daemon records a sensor while its system calls are written down. After each of them all states of the
disk that two file systems allow are laid down, recovered, and compared with what was written and promised;
recovery itself is cut short in the same way. Then the same with faults planted: those that do harm must be
found, those that are harmless by design must do none.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest

from tests.campaigns.aftermath import Judge, Promises, lay_down
from tests.campaigns.planted import PLANTS, Doctor, Patch, Plant
from tests.campaigns.voyages import (
    COMMAND,
    GOING_ON,
    Recovery,
    Voyage,
    read_voyage,
    record_killed,
    record_recoveries,
    record_stopped,
)
from tests.sim.powercut import Disk, Op, Recording, Send, Tree
from tests.sim.syscalls import why_not

MEMORY = Path("/dev/shm")
SHORT_CHUNKS = 3  # of the recordings that faults are planted in
Key: TypeAlias = frozenset[tuple[str, bytes]]


@dataclass
class Findings:
    """What was tried under one file system, and what was found wrong."""

    steps: int = 0
    states: int = 0
    bad: int = 0
    examples: dict[str, str] = field(default_factory=dict)  # one of each kind

    def __add__(self, other: "Findings") -> "Findings":
        steps, states, bad = self.steps + other.steps, self.states + other.states, self.bad + other.bad
        return Findings(steps, states, bad, other.examples | self.examples)

    def __str__(self) -> str:
        return f"{self.steps} steps, {self.states} states, {self.bad} bad"

    def add_examples(self, problems: list[str], where: str, keep: Callable[[], str]) -> None:
        """Remember what is of a kind not seen before."""
        kinds = {re.sub(r"[\d,-]+", "N", problem): problem for problem in problems}
        new = {kind: problem for kind, problem in kinds.items() if kind not in self.examples}
        if new:
            kept = keep()
            self.examples |= {kind: f"{where}: {problem}{kept}" for kind, problem in new.items()}


def survey(
    recording: Recording,
    judge: Judge,
    friendly: bool,
    rng: Random,
    promises: Promises | None = None,
    keep: Callable[[Tree], str] = lambda _tree: "",
) -> Findings:
    """Cut the power after every operation; judge each different state under the promises of that moment.

    Args:
        promises: what had been promised before; it grows.
        keep: is given a bad state of each kind; what it says is told with it.
    """
    disk, findings, promised = Disk(recording, friendly), Findings(), promises or Promises()
    seen, bad, judged = set[Key](), set[Key](), set[Key]()
    for index, op in enumerate(recording.ops):
        disk.take(index, op)
        if isinstance(op, Send):
            if not promised.hear(op.data):
                continue
            judged.clear()  # more is promised now of the same states
        if index < recording.first:
            continue
        findings.steps += 1
        for tree in disk.states(rng):
            key = frozenset(tree.items())
            if key not in judged:
                judged.add(key)
                if problems := judge.judge(tree, promised):
                    bad.add(key)
                    findings.add_examples(problems, f"step {index}, {_named(op)}", partial(keep, tree))
        seen |= judged
    findings.states, findings.bad = len(seen), len(bad)
    return findings


def _named(op: Op) -> str:
    return "something sent" if isinstance(op, Send) else f"{type(op).__name__.lower()} {Path(op.path).name}"


def system(friendly: bool) -> str:
    return "friendly" if friendly else "strict"


class Campaign:
    """Tries the true program and the planted ones; `failures` says what is not as it must be."""

    def __init__(self, work: Path, place: Path, seed: int) -> None:
        """*work* keeps recordings and bad states; in *place*, better in memory, states are laid down."""
        self.failures: list[str] = []
        self._work = work
        self._place = place
        self._seed = seed
        self._kept = 0

    def run_true(self, voyages: dict[str, Voyage]) -> None:
        """The program as it is: no state of the disk may be bad."""
        for name, voyage in voyages.items():
            print(f"{name}: recorded {voyage}", flush=True)
            judge = Judge(self._place, voyage.written)
            for friendly in (False, True):
                found = survey(voyage.recording, judge, friendly, self._rng(name), keep=self._keep)
                self._expect_none(found, f"{name}, {system(friendly)}")
            print(f"{name}: {judge.resumed} of these went on recording after the reboot", flush=True)
            program = COMMAND if name == "stopped" else GOING_ON
            recovered = record_recoveries(judge, program, self._work / f"{name}-recovered")
            for friendly in (False, True):
                found = self._survey_recoveries(recovered, friendly, self._keep)
                self._expect_none(found, f"{name}, {system(friendly)}, {len(recovered)} recoveries cut short")

    def _expect_none(self, found: Findings, what: str) -> None:
        print(f"{what}: {found}", flush=True)
        for example in found.examples.values():
            print(f"    {example}")
        if found.bad:
            self.failures.append(f"{what}: {found}")

    def _survey_recoveries(
        self, recovered: list[Recovery], friendly: bool, keep: Callable[[Tree], str] = lambda _tree: ""
    ) -> Findings:
        found = Findings()
        for one in recovered:
            judge = Judge(self._place, one.written, one.origin, resume_every=20)
            promises = Promises(started=True, rows=one.rows)
            found += survey(one.recording, judge, friendly, self._rng("recovery"), promises, keep)
        return found

    def _keep(self, tree: Tree) -> str:
        self._kept += 1
        folder = self._work / f"bad{self._kept}"
        lay_down(folder, tree)
        return f" (as found: {folder})"

    def _rng(self, name: str) -> Random:
        return Random(f"{self._seed} {name}")

    def run_plants(
        self, plants: Iterable[Plant], voyages: dict[str, Voyage], patched: dict[str, Voyage]
    ) -> None:
        """The program with one fault at a time: planted into *voyages*, or *patched* in the program."""
        judges = {name: Judge(self._place, voyage.written) for name, voyage in voyages.items()}
        sound = [*self._plant_in_voyages(lambda recording: recording, voyages, judges)]
        recovered = record_recoveries(judges["stopped"], COMMAND, self._work / "recovered")
        sound += self._plant_in_recoveries(lambda recording: recording, recovered)
        known = {kind for found in sound for kind in found.examples}
        for plant in plants:
            if plant.doctor is not None:
                hosts = recovered if plant.where == "recovery" else voyages.values()
                if all(plant.doctor(host.recording) == host.recording for host in hosts):
                    self.failures.append(f"{plant.name}: nothing to plant it in")
            if plant.doctor is not None and plant.where == "recovery":
                found = self._plant_in_recoveries(plant.doctor, recovered)
            elif plant.doctor is not None:
                found = self._plant_in_voyages(plant.doctor, voyages, judges)
            elif plant.patch is not None and plant.where == "recovery":
                found = self._patch_recovery(plant.patch, voyages["stopped"])
            else:
                voyage = patched[plant.name]
                found = self._both(voyage, Judge(self._place, voyage.written))
            self._report(plant, *found, known)

    def _both(self, voyage: Voyage, judge: Judge) -> tuple[Findings, Findings]:
        strict, friendly = (
            survey(voyage.recording, judge, friendly, self._rng("plants")) for friendly in (False, True)
        )
        return strict, friendly

    def _plant_in_voyages(
        self, doctor: Doctor, voyages: dict[str, Voyage], judges: dict[str, Judge]
    ) -> tuple[Findings, Findings]:
        strict, friendly = Findings(), Findings()
        for name, voyage in voyages.items():
            ill = Voyage(doctor(voyage.recording), voyage.written)
            found = self._both(ill, judges[name])
            strict, friendly = strict + found[0], friendly + found[1]
        return strict, friendly

    def _plant_in_recoveries(self, doctor: Doctor, recovered: list[Recovery]) -> tuple[Findings, Findings]:
        ill = [replace(one, recording=doctor(one.recording)) for one in recovered]
        return self._survey_recoveries(ill, False), self._survey_recoveries(ill, True)

    def _patch_recovery(self, patch: Patch, voyage: Voyage) -> tuple[Findings, Findings]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            patch(monkeypatch)
            return self._both(voyage, Judge(self._place, voyage.written, resume_every=20))

    def _report(self, plant: Plant, strict: Findings, friendly: Findings, known: set[str]) -> None:
        """*known* is what is wrong without any fault planted."""
        bad = f"{strict.bad} of {strict.states} states bad, friendly {friendly.bad} of {friendly.states}"
        new = [example for kind, example in strict.examples.items() if kind not in known]
        right = bool(new) != bool(plant.harmless)
        verdict = "harmless" if plant.harmless else "caught"
        print(f"{verdict if right else 'WRONG: not ' + verdict}: {plant.name}: {bad}")
        for line in [plant.harmless] if plant.harmless and right else new[:1]:
            print(f"    {line}", flush=True)
        if not right:
            self.failures.append(f"{plant.name}: not {verdict}")


def record_all(recordings: Mapping[str, Callable[[], Voyage]], at_once: int) -> dict[str, Voyage]:
    """Make these recordings, several at the same time: they mostly wait."""
    with ThreadPoolExecutor(at_once) as pool:
        made = {name: pool.submit(record) for name, record in recordings.items()}
        return {name: voyage.result() for name, voyage in made.items()}


def run(options: argparse.Namespace, work: Path, place: Path) -> list[str]:
    """What has failed."""
    campaign = Campaign(work, place, options.seed)
    if options.replay is not None:
        kept = {path.name: read_voyage(path) for path in sorted(options.replay.glob("true/*"))}
        campaign.run_true(kept)
        return campaign.failures if kept else [f"{options.replay} holds no recordings"]
    if options.plant is None and not options.plants:
        recordings = {
            "stopped": partial(record_stopped, work / "true" / "stopped", options.chunks, options.rate_hz),
            "killed": partial(record_killed, work / "true" / "killed", options.chunks, options.rate_hz),
        }
        print(
            f"recording twice {options.chunks} chunks at {options.rate_hz} readings/s, in {work}", flush=True
        )
        campaign.run_true(record_all(recordings, 2))
    if not options.no_plants:
        chosen = [PLANTS[options.plant]] if options.plant else list(PLANTS.values())
        print(f"planting {len(chosen)} faults", flush=True)
        campaign.run_plants(chosen, *record_for_plants(chosen, work, options.rate_hz))
    return campaign.failures


def record_for_plants(
    plants: list[Plant], work: Path, rate_hz: float
) -> tuple[dict[str, Voyage], dict[str, Voyage]]:
    """Short recordings: of the true program, to plant faults in, and of each program that is patched."""
    sound: dict[str, Callable[[], Voyage]] = {
        "stopped": partial(record_stopped, work / "short" / "stopped", SHORT_CHUNKS, rate_hz),
        "killed": partial(record_killed, work / "short" / "killed", SHORT_CHUNKS, rate_hz),
    }
    patched: dict[str, Callable[[], Voyage]] = {
        plant.name: partial(record_stopped, work / "patched" / str(number), SHORT_CHUNKS, rate_hz, plant.name)
        for number, plant in enumerate(plants)
        if plant.where == "daemon" and plant.patch is not None
    }
    made = record_all(sound | patched, 3)
    return {name: made[name] for name in sound}, {name: made[name] for name in patched}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="python -m tests.campaigns.crash", description=__doc__)
    flags.add_argument("--chunks", type=int, default=12, help="sealed in each recording (default 12)")
    flags.add_argument("--rate-hz", type=float, default=5.0, help="of the readings (default 5)")
    flags.add_argument("--seed", type=int, default=1, help="of the places where writes are torn")
    which = flags.add_mutually_exclusive_group()
    which.add_argument("--plants", action="store_true", help="only the programs with faults planted")
    which.add_argument("--plant", choices=PLANTS, metavar="NAME", help="only this one: %(choices)s")
    which.add_argument("--no-plants", action="store_true", help="only the true program")
    which.add_argument("--replay", type=Path, metavar="FOLDER", help="judge the recordings kept there again")
    return flags


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if (reason := why_not()) is not None:
        print(reason, file=sys.stderr)
        return 2
    work = Path(tempfile.mkdtemp(prefix="crash-"))
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
        failures = run(options, work, Path(place))
    for failure in failures:
        print(f"FAILED {failure}")
    if failures:
        print(f"FAILED, seed {options.seed}; recordings and states are in {work}; again: --replay {work}")
        return 1
    shutil.rmtree(work)
    print("PASSED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
