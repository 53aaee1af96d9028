"""A byte-identical copy of a Pi recording, kept up to its durable end. The bus wakes it; files prove.

Chunks are fetched by what is missing, not by what is newest: a hole left by a failure is filled by
the next pull, after any number of cuts and restarts.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.chunkstore import Manifest, open_name, scan, sealed_chunks, sealed_name
from common.files import Appender, fsync_folder, make_folder, read_json, replace
from common.messages import Chunk, Epoch, Reading, to_json
from common.recording import OpenChunk, StreamRecord
from common.rows import RowError, decode_row
from topside_daemon.pi import Pi, PiError, Standing

SIDE_FILES = ("session.json", "markers.jsonl", "events.jsonl")


class _Damaged(Exception):
    """A chunk on the Pi is not what the Pi says it is."""


class Mirror:
    """The topside copy of one Pi session. `pull` brings it up to date; rows are told in file order."""

    def __init__(
        self,
        pi: Pi,
        session_id: str,
        folder: Path,
        on_rows: Callable[[list[Reading]], None],
        note: Callable[[str, str, int], None],
    ) -> None:
        self.session_id = session_id
        self.folder = folder
        self.last_seq = -1  # of the rows held, sealed or open
        self.rows = 0
        self.bytes = 0
        self._pi = pi
        self._on_rows = on_rows
        self._note = note
        self._held: dict[int, Chunk] = {}
        self._run = -1  # every chunk up to here was held when last looked at
        self._open_index = -1  # of the chunk of which we hold the beginning
        self._open = b""
        self._told = 0  # bytes of it whose rows have been told
        self._started_at = ""
        self.epochs: list[Epoch] = []  # of the Pi's clock, as its record has them
        self.sensor: dict[str, Any] | None = None  # its configuration, likewise
        self._has_side_files = False
        self._compared = False  # what earlier runs brought has been held against the Pi's list

    async def load(self) -> None:
        """See what earlier runs have already brought."""
        await asyncio.to_thread(self._load)

    def _load(self) -> None:
        make_folder(self.folder)
        for path in sealed_chunks(self.folder):
            found = scan(path.read_bytes())
            index = int(path.stem.removeprefix("chunk_"))
            if found.whole:
                self._hold(found.chunk(index))
        for path in self.folder.glob("chunk_*.tmp"):
            index = int(path.stem.removeprefix("chunk_"))
            if index in self._held:
                path.unlink()
                continue
            content = path.read_bytes()
            found = scan(content)
            self._open_index, self._told = index, found.good_bytes
            self._open = content[: found.good_bytes]  # what is torn or damaged is fetched again
            if found.last_seq is not None:
                self.last_seq = max(self.last_seq, found.last_seq)

    def _hold(self, chunk: Chunk) -> None:
        self._held[chunk.index] = chunk
        self.rows += chunk.rows
        self.bytes += chunk.size_bytes
        if chunk.last_seq is not None:
            self.last_seq = max(self.last_seq, chunk.last_seq)

    async def pull(self) -> Standing:
        """Fetch everything that is durable on the Pi and not yet here.

        Raises:
            PiError: the Pi cannot be reached, or a chunk could not be had whole or kept; call again.
        """
        try:
            return await self._pull()
        except OSError as error:
            raise PiError(f"cannot keep the copy in {self.folder}: {error.strerror}") from None
        except ValueError as error:
            raise PiError(f"the Pi sent something else: {error}") from None

    async def _pull(self) -> Standing:
        standing = await self._pi.standing(self.session_id)
        if not self._has_side_files:
            await self.pull_side_files()
        if not self._compared or standing.last_chunk_index > self._contiguous:
            listed = await self._pi.chunks(self.session_id, self._contiguous if self._compared else -1)
            self._compare(listed)
            await self._pull_missing(listed)
        if standing.open_chunk is not None:
            await self._pull_open(standing.open_chunk)
        return standing

    async def _pull_missing(self, listed: list[Chunk]) -> None:
        """One chunk that the Pi itself has damaged must not keep the others from us."""
        damaged: list[str] = []
        for chunk in listed:
            if chunk.index not in self._held:
                try:
                    await self._pull_sealed(chunk)
                except _Damaged as error:
                    damaged.append(str(error))
        if damaged:
            raise PiError("; ".join(damaged))

    def _compare(self, listed: list[Chunk]) -> None:
        """Let go of what is not as the Pi has it."""
        for chunk in listed:
            held = self._held.get(chunk.index)
            if held is not None and held.sha256 != chunk.sha256:
                self._note("mirror_refetch", f"the copy of {chunk.name} did not match its sha256", 1)
                del self._held[chunk.index]
                self._run = min(self._run, chunk.index - 1)
                self.rows -= held.rows
                self.bytes -= held.size_bytes
        self._compared = True

    @property
    def _contiguous(self) -> int:
        """Every chunk up to this index is held."""
        while self._run + 1 in self._held:
            self._run += 1
        return self._run

    async def pull_side_files(self) -> None:
        """Fetch the small files that carry labels: clocks, markers, events."""
        for name in SIDE_FILES:
            try:
                content = await self._pi.file(self.session_id, name)
            except PiError as error:
                if error.status != 404:
                    raise
            else:
                await asyncio.to_thread(replace, self.folder / name, content)
        record = await asyncio.to_thread(read_json, self.folder / "session.json", StreamRecord)
        if record is not None:
            self._started_at, self.epochs, self.sensor = record.started_at, record.epochs, record.sensor
        self._has_side_files = True

    def complete(self, standing: Standing) -> bool:
        """Whether all that the stopped recording has is here."""
        return (
            standing.state == "stopped"
            and len(self._held) == standing.last_chunk_index + 1
            and self.rows == standing.rows
        )

    async def _pull_sealed(self, chunk: Chunk) -> None:
        await self._turn_to(chunk.index)
        missing = chunk.size_bytes - len(self._open)
        if missing > 0:
            content = await self._pi.file(self.session_id, chunk.name, len(self._open))
            await self._take(content[:missing])
        if hashlib.sha256(self._open).hexdigest() != chunk.sha256:
            self._note("mirror_refetch", f"{chunk.name} did not match its sha256", 1)
            await self._turn_to(-1)
            await self._turn_to(chunk.index)
            content = await self._pi.file(self.session_id, chunk.name)
            await self._take(content[: chunk.size_bytes])
            if hashlib.sha256(self._open).hexdigest() != chunk.sha256:
                await self._turn_to(-1)
                raise _Damaged(f"{chunk.name} does not match its sha256, twice")
        await asyncio.to_thread(self._seal, chunk)

    async def _pull_open(self, chunk: OpenChunk) -> None:
        if chunk.index in self._held:
            return
        await self._turn_to(chunk.index)
        if chunk.durable_bytes > len(self._open):
            await self._take(await self._pi.file(self.session_id, chunk.name, len(self._open)))

    async def _turn_to(self, index: int) -> None:
        """Begin another chunk, from nothing."""
        if index != self._open_index:
            if self._open_index >= 0:
                await asyncio.to_thread((self.folder / open_name(self._open_index)).unlink, missing_ok=True)
            self._open_index, self._open, self._told = index, b"", 0

    async def _take(self, more: bytes) -> None:
        """Keep bytes of the open chunk, and tell the rows that they complete."""
        if not more:
            return
        await asyncio.to_thread(self._append, more)
        self._open += more
        end = self._open.rfind(b"\n") + 1
        lines, self._told = self._open[self._told : end].splitlines(keepends=True), end
        readings = [reading for line in lines if (reading := _decode(line)) is not None]
        if readings:
            self.last_seq = max(self.last_seq, readings[-1].seq)
            self._on_rows(readings)

    def _append(self, more: bytes) -> None:
        """Write behind what is held, whatever an earlier try has left there."""
        file = Appender(self.folder / open_name(self._open_index), size=len(self._open))
        try:
            file.append(more)
        finally:
            file.close()

    def _seal(self, chunk: Chunk) -> None:
        path = self.folder / open_name(chunk.index)
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        path.rename(self.folder / sealed_name(chunk.index))
        fsync_folder(self.folder)
        self._open_index, self._open, self._told = -1, b"", 0
        self._hold(chunk)
        chunks = [self._held[index] for index in sorted(self._held)]
        manifest = Manifest(
            session_id=self.session_id,
            started_at=self._started_at,
            next_chunk_index=chunks[-1].index + 1,
            total_rows=self.rows,
            total_bytes=self.bytes,
            chunks=chunks,
        )
        replace(self.folder / "manifest.json", to_json(manifest))


def _decode(line: bytes) -> Reading | None:
    try:
        return decode_row(line)
    except RowError:
        return None  # the header; a damaged row is found by the chunk's sha256
