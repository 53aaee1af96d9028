"""What becomes of a recording after a power cut, and whether that is what had been promised."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from common import chunkstore
from common.chunkstore import CHUNK_NAME
from common.files import read_json, read_lines
from common.messages import Chunk, Event, Marker
from common.recorder import Recorder
from common.recording import StreamRecord
from common.rows import HEADER, MARKER_MODE, check_row
from common.unfinished import Unfinished
from tests.sim.clocks import SimClock
from tests.sim.powercut import Tree
from tests.sim.streams import Heard, at_work, take, until

HEAD = HEADER.encode() + b"\r\n"
DURABLE = re.compile(rb'"durable_seq":(\d+)')
OBJECT = re.compile(rb"\{[^{}]*\}")


@dataclass
class Promises:
    """What the daemon has told the world so far."""

    started: bool = False
    stopped: bool = False
    durable_seq: int = -1
    published_seq: int = -1
    rows: int = 0
    markers: set[int] = field(default_factory=set)  # by mono_ns
    sealed: dict[str, str] = field(default_factory=dict)  # chunk -> sha256

    def hear(self, data: bytes) -> bool:
        """Take in what was sent over any wire; whether it promised anything new."""
        before = repr(self)
        self.durable_seq = max([self.durable_seq, *map(int, DURABLE.findall(data))])
        for text in OBJECT.findall(data):
            with suppress(ValueError):
                self._take(json.loads(text))
        return repr(self) != before

    def _take(self, said: dict[str, Any]) -> None:
        if "started_at" in said and "schema_version" in said:
            self.started = True
        if said.get("stopped_at") and "chunks" in said:
            self.stopped, self.rows = True, said["rows"]
        if said.get("status") in ("injected", "duplicate"):
            self.markers.add(said["t2_ns"])
        if said.get("session_id") and "seq" in said and "mono_ns" in said:
            self.published_seq = max(self.published_seq, said["seq"])
        if said.get("sha256"):
            self.sealed[said["name"]] = said["sha256"]


@dataclass
class Aftermath:
    """What recovery made of one state of the disk."""

    problems: list[str] = field(default_factory=list)  # wrong whatever was promised
    state: str | None = None  # of the recording; None without a session.json
    rows: int = 0
    noted: set[int] = field(default_factory=set)  # the markers in markers.jsonl, by mono_ns
    sealed: dict[str, str] = field(default_factory=dict)
    kind: tuple[object, ...] = ()  # states of one kind are recovered in one way


class Judge:
    """Lays states down, recovers them as the product does, and compares with what was written and promised.

    A state is recovered once, however often it is judged.
    """

    def __init__(
        self, place: Path, written: list[bytes], origin: Tree | None = None, resume_every: int = 100
    ) -> None:
        """
        Args:
            place: a folder to work in.
            written: every row that was handed to the disk, in order.
            origin: of whose chunks no byte may be missing; None for the state that is judged.
            resume_every: with every so many states the recording is gone on with.
        """
        self.resumed = 0
        self.kinds: dict[tuple[object, ...], Tree] = {}  # the last state of each
        self._origin = origin
        self._place = place
        self._written = written
        self._resume_every = resume_every
        self._numbers = count()
        self._known: dict[frozenset[tuple[str, bytes]], Aftermath] = {}
        self._row_of_seq: dict[int, int] = {}
        self._row_of_marker: dict[int, int] = {}
        for index, row in enumerate(written):
            for marker in _markers([row]):
                self._row_of_marker[marker] = index
            if seq := check_row(row)[6]:
                self._row_of_seq[int(seq)] = index

    def aftermath(self, tree: Tree) -> Aftermath:
        """What the product makes of *tree*."""
        key = frozenset(tree.items())
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._recover(tree)
            if known.kind:
                self.kinds[known.kind] = tree
        return known

    def judge(self, tree: Tree, promises: Promises) -> list[str]:
        """What is wrong with *tree*, a state of the disk at a time when *promises* had been made."""
        after = self.aftermath(tree)
        problems = [*after.problems, *self._broken(after, promises)]
        if after.state == "recording" and not problems and next(self._numbers) % self._resume_every == 0:
            self.resumed += 1
            problems += self._resume(tree, after, promises)
        return problems

    def _broken(self, after: Aftermath, promises: Promises) -> Iterator[str]:
        if promises.started and after.state is None:
            yield "the start was answered, and there is no session.json"
        if promises.stopped and after.state != "stopped":
            yield f"the stop was answered, and the session is {after.state}"
        never = len(self._written)  # such a row was never written: there cannot be enough
        durable = self._row_of_seq.get(promises.durable_seq, never) + 1 if promises.durable_seq >= 0 else 0
        marked = max((self._row_of_marker.get(marker, never) + 1 for marker in promises.markers), default=0)
        for what, rows in (("durable", durable), ("marked", marked), ("counted", promises.rows)):
            if after.rows < rows:
                yield f"{rows} rows were {what}, {after.rows} are left"
        if lost := promises.markers - after.noted:
            yield f"{len(lost)} markers were answered and are not in markers.jsonl"
        for name, sha256 in promises.sealed.items():
            if after.sealed.get(name) != sha256:
                yield f"{name} was announced as sealed and is {'other' if name in after.sealed else 'gone'}"

    def _recover(self, tree: Tree) -> Aftermath:
        with self._laid(tree) as folder:
            after = Aftermath()
            try:
                record = folder and read_json(folder / "session.json", StreamRecord)
                if folder and record:
                    after.state = record.state
                    unfinished = Unfinished(folder.parent, lambda: [folder.name]).names()
                    if record.state == "recording" and folder.name not in unfinished:
                        after.problems.append("the recording would not be gone on with")
                    self._recover_folder(folder, self._origin or tree, after)
            except (OSError, ValueError) as error:
                after.problems.append(f"recovery fails: {error}")
            return after

    def _recover_folder(self, folder: Path, tree: Tree, after: Aftermath) -> None:
        after.noted = {marker.mono_ns for marker in read_lines(folder / "markers.jsonl", Marker)}
        verdict = chunkstore.recover(folder)
        once = _contents(folder)
        again = chunkstore.recover(folder)
        if (again.chunks, again.unclean, again.damage) != (verdict.chunks, False, []):
            after.problems.append(f"recovered twice, it is not as after once: {again.damage}")
        if _contents(folder) != once:
            after.problems.append("recovered twice, the files are others")
        found = chunkstore.verify(folder)
        damage = [line for line in verdict.damage if "set aside" not in line] + found.damage
        after.problems += [f"damage: {line}" for line in damage]
        after.problems += _thrown_away(tree, once)
        rows = _rows(once, found.chunks)
        if rows != self._written[: len(rows)]:
            after.problems.append("the rows are not those that were written, in order, each once")
        elif not set(_markers(rows)) <= after.noted:
            after.problems.append("a marker is among the rows, and not in markers.jsonl")
        after.rows = len(rows)
        after.sealed = {chunk.name: chunk.sha256 for chunk in found.chunks}
        nulls = any(content.endswith(b"\0") for content in tree.values())
        after.kind = verdict.unclean, len(verdict.damage), rows == [], nulls

    def _resume(self, tree: Tree, after: Aftermath, promises: Promises) -> list[str]:
        with self._laid(tree) as folder:
            assert folder is not None
            heard = asyncio.run(go_on(folder))
            found = chunkstore.verify(folder)
            problems = [f"resumed, damage: {line}" for line in found.damage]
            rows = _rows(_contents(folder), found.chunks)
            made_up = len(after.noted) - len(_markers(self._written[: after.rows]))
            if rows[: after.rows] != self._written[: after.rows] or len(rows) != after.rows + made_up + 2:
                problems.append(f"resumed, {after.rows} rows, {made_up} and 2 became {len(rows)}")
            if sorted(_markers(rows)) != sorted(after.noted):
                problems.append("resumed, the markers are not in both records, once")
            if heard.unwritten:
                problems.append("resumed, rows were published before they were written")
            if heard.seqs[0] <= promises.published_seq:
                problems.append(f"number {heard.seqs[0]} is given out twice")
            events = " ".join(event.detail for event in read_lines(folder / "events.jsonl", Event))
            torn = {path.stem for path in folder.glob("*.torn*") if path.suffix != ".new"}
            problems += [f"{name} was damaged, and no event says so" for name in torn if name not in events]
            return problems

    @contextmanager
    def _laid(self, tree: Tree) -> Iterator[Path | None]:
        """The state as files; gives the folder of its session, if there is one."""
        root = self._place / "state"
        lay_down(root, tree)
        try:
            yield next((path.parent for path in root.glob("pi/*/session.json")), None)
        finally:
            shutil.rmtree(root)


def lay_down(root: Path, tree: Tree) -> None:
    """Make a folder of a state."""
    root.mkdir()
    for path, content in tree.items():
        if path.endswith("/"):
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def rows_of(tree: Tree) -> list[bytes]:
    """All rows of the one session in *tree*, which nothing has happened to."""
    chunks = sorted(path for path in tree if CHUNK_NAME.fullmatch(Path(path).name))
    return [row for path in chunks for row in tree[path].splitlines(keepends=True)[1:]]


async def go_on(folder: Path) -> Heard:
    """Resume a recording after a reboot, record two readings, and stop."""
    heard, clock = Heard(folder), SimClock()
    recorder = await Recorder.resume(folder, clock, heard)
    async with at_work(recorder):
        take(recorder, clock, 2)
        await until(lambda: len(heard.seqs) == 2)
        await recorder.stop()
    return heard


def _contents(folder: Path) -> Tree:
    """What recovery has to do with."""
    patterns = ("chunk_*", "*.json*")
    return {path.name: path.read_bytes() for pattern in patterns for path in folder.glob(pattern)}


def _rows(contents: Tree, chunks: list[Chunk]) -> list[bytes]:
    return [
        row for chunk in chunks for row in contents[chunk.name].removeprefix(HEAD).splitlines(keepends=True)
    ]


def _markers(rows: list[bytes]) -> list[int]:
    """The mono_ns of the markers among *rows*, by which they are told apart."""
    fields = map(check_row, rows)
    return [int(one[8]) for one in fields if one[2].startswith(MARKER_MODE)]


def _thrown_away(before: Tree, after: Tree) -> Iterator[str]:
    """Chunks of which recovery has kept neither all bytes nor a copy of those it cut off."""
    for path, content in before.items():
        name = Path(path).name
        stem = name.partition(".")[0]
        if CHUNK_NAME.fullmatch(name):
            rest = content.removeprefix(after.get(f"{stem}.csv", b""))
            asides = [aside for other, aside in after.items() if other.startswith(f"{stem}.torn")]
            if rest not in (b"", HEAD, *asides, *(HEAD + aside for aside in asides)):
                yield f"{name}: {len(rest)} bytes were thrown away"


if __name__ == "__main__":
    asyncio.run(go_on(Path(sys.argv[1])))
