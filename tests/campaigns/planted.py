"""The programs with faults planted: what a campaign that finds nothing must find.

`python -m tests.campaigns.planted NAME FLAGS...` is the Pi daemon with one of them.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

from common import manifest, recorder, recovery
from common.chunkstore import ChunkStore
from common.files import fsync_folder
from common.messages import Marker
from common.recorder import Recorder
from common.recovery import Scan
from common.unfinished import Unfinished
from pi_daemon.__main__ import main as pi_daemon
from tests.sim.powercut import NOTHING, Entries, Op, Recording, Send, Sync

Doctor: TypeAlias = Callable[[Recording], Recording]
Patch: TypeAlias = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Plant:
    """One fault. *doctor* puts it into the recorded operations, *patch* into the running program."""

    name: str
    where: Literal["daemon", "recovery"]
    doctor: Doctor | None = None
    patch: Patch | None = None
    harmless: str = ""  # why, if it is so by design


def leave_out(choose: Callable[[Recording, int, Sync], bool]) -> Doctor:
    """The kernel was never asked for these fsyncs; steps keep their numbers."""

    def doctor(recording: Recording) -> Recording:
        ops: list[Op] = [
            NOTHING if isinstance(op, Sync) and choose(recording, index, op) else op
            for index, op in enumerate(recording.ops)
        ]
        return Recording(ops, recording.folders, recording.first)

    return doctor


def of(pattern: str) -> Doctor:
    """Every fsync of files with such names is left out."""
    return leave_out(lambda _recording, _index, sync: re.search(pattern, sync.path) is not None)


def of_folder_after(pattern: str, renamed: bool) -> Doctor:
    """The fsync of a folder is left out where what came before it there gave a file such a name."""

    def choose(recording: Recording, index: int, sync: Sync) -> bool:
        before = (op for op in reversed(recording.ops[:index]) if isinstance(op, Entries))
        last = next((op for op in before if op.folder == sync.inode), None)
        return (
            last is not None and bool(re.search(pattern, last.path)) and (last.renamed is not None) == renamed
        )

    return leave_out(choose)


def seals(recording: Recording) -> Iterator[tuple[int, list[int]]]:
    """For each seal of a chunk the step that synced it last, and what follows: its new name, and so on."""
    synced: dict[int, int] = {}
    disk = [index for index, op in enumerate(recording.ops) if not isinstance(op, Send)]
    for place, index in enumerate(disk):
        op = recording.ops[index]
        if isinstance(op, Sync):
            synced[op.inode] = index
        elif isinstance(op, Entries) and op.path.endswith(".csv") and op.renamed in synced:
            yield synced[op.renamed], disk[place : place + 7]


def before_seal(recording: Recording) -> Recording:
    """The last fsync of each chunk is left out."""
    last = {sync for sync, _ in seals(recording)}
    return leave_out(lambda _recording, index, _sync: index in last)(recording)


def in_order(*order: int) -> Doctor:
    """Seals are done in another order of: chunk synced, chunk renamed, folder synced, manifest made, written,
    synced, renamed, folder synced."""

    def doctor(recording: Recording) -> Recording:
        ops = list(recording.ops)
        for sync, following in seals(recording):
            steps = [sync, *following]
            if len(steps) == len(order) and recording.ops[steps[6]].path.endswith("manifest.json"):
                for step, source in zip(steps, order, strict=True):
                    op = recording.ops[steps[source]]
                    ops[step] = replace(op, began=step) if isinstance(op, Sync) else op
        return Recording(ops, recording.folders, recording.first)

    return doctor


def in_place(path: Path, content: bytes) -> None:
    """What `replace` must not be: the old content is gone before the new one is there."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(path.parent)


def announce_early(patch: pytest.MonkeyPatch) -> None:
    append = ChunkStore.append

    def appended(store: ChunkStore, rows: list[bytes], seqs: list[int], mono_ns: int) -> None:
        append(store, rows, seqs, mono_ns)
        store.durable_seq = store.last_seq

    patch.setattr(ChunkStore, "append", appended)


def answer_early(patch: pytest.MonkeyPatch) -> None:
    mark, sync, waiting = Recorder.mark, ChunkStore.sync, set[object]()

    async def marked(owner: Recorder, marker: Marker) -> tuple[Marker, bool]:
        waiting.add(asyncio.create_task(mark(owner, marker)))
        return marker, True

    def synced(store: ChunkStore) -> None:
        time.sleep(0.05)  # the disk is not always quicker than the answer
        sync(store)

    patch.setattr(Recorder, "mark", marked)
    patch.setattr(ChunkStore, "sync", synced)


def any_row(line: bytes) -> list[str]:
    """What `check_row` must not be: content with a line that looks like a row."""
    return line.decode("latin-1").rstrip("\r\n").split(",")[:9]


def accept_tails(patch: pytest.MonkeyPatch) -> None:
    scan = recovery.scan

    def scanned(content: bytes) -> Scan:
        found = scan(content)
        found.good_bytes = found.size_bytes
        return found

    patch.setattr(recovery, "scan", scanned)


PLANTS = {
    plant.name: plant
    for plant in (
        Plant("rows never fsynced", "daemon", of(r"chunk_\d+\.tmp$")),
        Plant("chunk not fsynced before its seal", "daemon", before_seal),
        Plant(
            "folder not fsynced after a chunk is made", "daemon", of_folder_after(r"chunk_\d+\.tmp$", False)
        ),
        Plant(
            "folder not fsynced after a seal",
            "daemon",
            of_folder_after(r"chunk_\d+\.csv$", True),
            harmless="the rows are: a seal of which the power took the name is done again",
        ),
        Plant(
            "data folder not fsynced after a session is made", "daemon", of_folder_after("^pi/[^/]+$", False)
        ),
        Plant("folder not fsynced after the data folder is made", "daemon", of_folder_after("^pi$", False)),
        Plant("session.json not fsynced", "daemon", of(r"session\.json\.new$")),
        Plant("folder not fsynced after session.json", "daemon", of_folder_after(r"session\.json$", True)),
        Plant("markers.jsonl not fsynced", "daemon", of(r"markers\.jsonl$")),
        Plant(
            "folder not fsynced after markers.jsonl is made",
            "daemon",
            of_folder_after(r"markers\.jsonl$", False),
            harmless="it is fsynced for events.jsonl before anything is promised",
        ),
        Plant(
            "manifest.json not fsynced",
            "daemon",
            of(r"manifest\.json\.new$"),
            harmless="a cache: one that cannot be read is made again from the chunks",
        ),
        Plant(
            "folder not fsynced after manifest.json",
            "daemon",
            of_folder_after(r"manifest\.json$", True),
            harmless="a cache: chunks it does not know are read",
        ),
        Plant("chunk renamed before it is fsynced", "daemon", in_order(1, 2, 0, 3, 4, 5, 6, 7)),
        Plant("manifest written before the chunk is sealed", "daemon", in_order(3, 4, 5, 6, 7, 0, 1, 2)),
        Plant("rows announced durable before the fsync", "daemon", patch=announce_early),
        Plant("marker answered before the fsync", "daemon", patch=answer_early),
        Plant(
            "session.json written in place",
            "daemon",
            patch=lambda patch: patch.setattr(recorder, "replace", in_place),
        ),
        Plant(
            "manifest.json written in place",
            "daemon",
            patch=lambda patch: patch.setattr(manifest, "replace", in_place),
            harmless="a cache: one that cannot be read is made again from the chunks",
        ),
        Plant(
            "recording not listed as unfinished",
            "daemon",
            patch=lambda patch: patch.setattr(Unfinished, "add", lambda _list, _name: None),
        ),
        Plant(
            "any line taken for a row",
            "recovery",
            patch=lambda patch: patch.setattr(recovery, "check_row", any_row),
        ),
        Plant("torn tails sealed with the rows", "recovery", patch=accept_tails),
        Plant(
            "torn tails thrown away",
            "recovery",
            patch=lambda patch: patch.setattr(recovery, "set_aside", lambda path, _content, _suffix: path),
        ),
        Plant(
            "numbers given out again",
            "recovery",
            patch=lambda patch: patch.setattr(recorder, "PUBLISHED_MAX", 0),
        ),
        Plant("tail set aside, not fsynced", "recovery", of(r"\.torn\.new$")),
        Plant("folder not fsynced after a tail is set aside", "recovery", of_folder_after(r"\.torn$", True)),
        Plant("chunk cut, not fsynced before its seal", "recovery", before_seal),
        Plant(
            "folder not fsynced after a recovered seal",
            "recovery",
            of_folder_after(r"\.csv$", True),
            harmless="the rows are: a seal of which the power took the name is done again",
        ),
    )
}


def main(arguments: list[str]) -> int:
    name, *flags = arguments
    with pytest.MonkeyPatch.context() as patch:
        plant = PLANTS[name]
        assert plant.patch is not None, f"{name} is planted into recordings"
        plant.patch(patch)
        return pi_daemon(flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
