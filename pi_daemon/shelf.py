"""Recordings on the disk that nobody writes: found by their id, or the newest of all."""

import re
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from common.chunkstore import chunk_files, recover, verify
from common.files import read_json
from common.manifest import MANIFEST, SINCE, ManifestWriter, read_manifest
from common.messages import Chunk
from common.recording import OpenChunk, StreamRecord

SESSION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
ROLE = "inwater"
SHELVED = 4  # recordings that are kept in memory: of a day, 2 MB each

_Looks: TypeAlias = tuple[tuple[int, ...], ...]


class SessionState(Struct, frozen=True):
    """Where one recording stands, open or long stopped."""

    record: StreamRecord
    chunks: list[Chunk]
    rows: int
    last_seq: int
    durable_seq: int
    open_chunk: OpenChunk | None = None
    trouble: str = ""
    dropped: int = 0


class Shelf:
    """Looks for stopped recordings. A download asks for one thousands of times, so it is looked at anew only
    when its folder, its record or its index has changed. One thread at a time.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._held: OrderedDict[str, tuple[_Looks, SessionState]] = OrderedDict()

    def load(self, session_id: str) -> SessionState | None:
        """A recording; None if there is none of this id.

        Raises:
            ValueError: it is damaged.
        """
        folder = self._data / session_id
        looks = _looks_of(folder)
        before, state = self._held.pop(session_id, (None, None))
        if state is None or before != looks:
            state = _load(folder)
        if state is not None and state.record.state == "stopped":
            self._held[session_id] = looks, state
            while len(self._held) > SHELVED:
                self._held.popitem(last=False)
        return state


def _looks_of(folder: Path) -> _Looks:
    """What is another one when a chunk comes, goes or is renamed, or the record or the index is written."""
    found = []
    for path in (folder, folder / "session.json", folder / MANIFEST, folder / SINCE):
        with suppress(FileNotFoundError):
            about = path.stat()
            found.append((about.st_ino, about.st_size, about.st_mtime_ns))
    return tuple(found)


def newest(data: Path, most: int) -> list[StreamRecord]:
    """Records of the newest recordings, open or stopped, at most so many."""
    folders = [folder for folder in data.iterdir() if SESSION_ID.fullmatch(folder.name)]
    records: list[StreamRecord] = []
    for folder in sorted(folders, key=lambda one: one.stat().st_mtime_ns, reverse=True)[:most]:
        with suppress(ValueError):  # damaged: asked for by its id, it says so
            record = read_json(folder / "session.json", StreamRecord)
            if record is None and (old := _old(folder)) is not None:
                record = old.record
            records += [record] if record is not None else []
    return records


def _stopped_chunks(folder: Path) -> list[Chunk]:
    """The chunks of a recording that nobody writes: files win over the manifest."""
    manifest = read_manifest(folder)
    known = {chunk.name for chunk in manifest.chunks} if manifest else set()
    if {path.name for _, path in chunk_files(folder)} <= known and manifest is not None:
        return manifest.chunks
    mended = recover(folder)
    ManifestWriter(folder, folder.name).write(manifest.started_at if manifest else "", mended.chunks)
    return mended.chunks


def _old(folder: Path) -> SessionState | None:
    """A recording of the old API, as its manifest has it: it kept no record beside."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    record = StreamRecord(
        folder.name, "", ROLE, manifest.started_at, roll_interval_s=0.0, state="stopped", closed=True
    )
    return SessionState(record, manifest.chunks, manifest.total_rows, -1, -1)


def _load(folder: Path) -> SessionState | None:
    record = read_json(folder / "session.json", StreamRecord)
    if record is None:
        return _old(folder)
    chunks = _stopped_chunks(folder) if record.state == "stopped" else verify(folder).chunks
    last_seq = max((chunk.last_seq for chunk in chunks if chunk.last_seq is not None), default=-1)
    return SessionState(record, chunks, sum(chunk.rows for chunk in chunks), last_seq, last_seq)
