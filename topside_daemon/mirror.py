"""A byte-identical copy of a Pi recording, kept up to its durable end. The bus wakes it; files prove.

Chunks are fetched by what is missing, not by what is newest: a hole left by a failure is filled by
the next pull, after any number of cuts and restarts. Nothing that may be the only copy is overwritten.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from common.chunkstore import HEAD, chunk_files, open_name, scan, sealed_chunks
from common.disk import Disk
from common.files import Appender, fsync_folder, make_folder, read_json, replace, set_aside, why
from common.manifest import ManifestWriter, digest_of, read_manifest
from common.messages import Chunk, Epoch, Reading
from common.recorder import PUBLISHED_MAX
from common.recording import OpenChunk, Sequel, StreamRecord
from common.rows import RowError, check_row, decode_row
from topside_daemon.pi import Pi, PiError, Standing

SIDE_FILES = ("session.json", "markers.jsonl", "events.jsonl")
DAMAGED = ".damaged"  # suffix of a chunk as the Pi gave it, when that is not what it had sealed
ASIDE = ".aside"  # suffix of a chunk that was here and is not the Pi's
AVOID_S, AVOID_MAX_S = 2.0, 60.0  # before a chunk that came damaged is asked for again
SLICE = 20  # rows told in one go: catching up must not keep the loop from the next stamp
NAMED = 5  # of the chunks that are missing, so many are told by name


class Incomplete(PiError):
    """All that can be had at the moment is here, and it is not all there is."""


class _Open(Struct):
    """The chunk of which the beginning is held."""

    index: int = -1
    content: bytes = b""
    told_bytes: int = 0  # of it the rows have been told


class Mirror:
    """The topside copy of one Pi session. `pull` brings it up to date; rows are told in file order."""

    def __init__(
        self,
        pi: Pi,
        session_id: str,
        folder: Path,
        on_rows: Callable[[list[Reading]], None],
        note: Callable[[str, str, int], None],
        holder: str | None = None,
    ) -> None:
        """
        Args:
            on_rows: told of the rows as they come, in the order of the file, some of them twice.
            note: told what the record should say, as an event's kind, detail and count.
            holder: who holds the recording, if that is us.
        """
        self.session_id = session_id
        self.folder = folder
        self.last_seq = -1  # of the rows held, sealed or open
        self.epochs: list[Epoch] = []  # of the Pi's clock, as its record has them
        self.sensor: dict[str, Any] | None = None  # its configuration, likewise
        self._pi = pi
        self._holder = holder
        self._on_rows = on_rows
        self._note = note
        self._disk = Disk("mirror")
        self._manifest = ManifestWriter(folder, session_id)
        self._held: dict[int, Chunk] = {}
        self._run = -1  # every chunk up to here was held when last looked at
        self._open = _Open()
        self._started_at = ""
        self._next_chunk = 0  # of the Pi's record: those before it are elsewhere
        self._has_side_files = False
        self._compared = False  # what earlier runs brought has been held against the Pi's list
        self._spoilt: set[int] = set()  # of these chunks something may have been set aside
        self._avoided: dict[
            int, tuple[float, float]
        ] = {}  # index: not before, waited, in s of the loop's time

    @property
    def rows(self) -> int:
        """Rows in the sealed chunks that are held."""
        return sum(chunk.rows for chunk in self._held.values())

    async def load(self) -> None:
        """See what earlier runs have already brought.

        Raises:
            OSError: the disk refuses.
        """
        await self._disk.do(self._load)

    def _load(self) -> None:
        """Chunks that the manifest knows are taken at its word, and proven at the end of the session."""
        make_folder(self.folder)
        manifest = read_manifest(self.folder)
        known = {chunk.name: chunk for chunk in manifest.chunks} if manifest else {}
        for path in sealed_chunks(self.folder):
            chunk = known.get(path.name)
            if chunk is None or path.stat().st_size != chunk.size_bytes:
                found = scan(path.read_bytes())
                chunk = found.chunk(int(path.stem.removeprefix("chunk_"))) if found.whole else None
            if chunk is not None:
                self._hold(chunk)
        for path in (*self.folder.glob(f"*{ASIDE}*"), *self.folder.glob(f"*{DAMAGED}*")):
            number = path.name.partition(".")[0].removeprefix("chunk_")
            self._spoilt |= {int(number)} if number.isdecimal() else set()
        for index, path in chunk_files(self.folder):
            if path.suffix != ".tmp":
                continue
            if index in self._held:
                path.unlink()
                continue
            content = path.read_bytes()
            found = scan(content)  # what is torn or damaged is fetched again
            self._open = _Open(index, content[: found.good_bytes], found.good_bytes)
            self._reach(found.last_seq)

    def _hold(self, chunk: Chunk) -> None:
        self._held[chunk.index] = chunk
        self._reach(chunk.last_seq)

    def _reach(self, seq: int | None) -> None:
        if seq is not None:
            self.last_seq = max(self.last_seq, seq)

    async def pull(self) -> Standing:
        """Fetch everything that is durable on the Pi and not yet here.

        Raises:
            PiError: the Pi cannot be reached, or a chunk could not be had whole or kept; call again.
        """
        try:
            return await self._pull()
        except OSError as error:
            raise PiError(f"cannot keep the copy in {self.folder}: {why(error)}") from None
        except ValueError as error:
            raise PiError(f"the Pi sent something else: {error}") from None

    async def _pull(self) -> Standing:
        standing = await self._pi.standing(self.session_id, self._holder)
        if not self._has_side_files:
            await self.pull_side_files()
        if not self._compared or standing.last_chunk_index > self._contiguous:
            listed = await self._pi.chunks(self.session_id, self._contiguous if self._compared else -1)
            await self._compare(listed)
            await self._pull_missing(listed)
        if standing.open_chunk is not None:
            await self._pull_open(standing.open_chunk)
        return standing

    async def _pull_missing(self, listed: list[Chunk]) -> None:
        """One chunk that the Pi itself has damaged must not keep the others from us."""
        now_s = asyncio.get_running_loop().time()
        for chunk in listed:
            not_before_s, _ = self._avoided.get(chunk.index, (0.0, 0.0))
            if chunk.index not in self._held and now_s >= not_before_s:
                await self._pull_sealed(chunk)

    async def _compare(self, listed: list[Chunk]) -> None:
        """Put aside what is not as the Pi has it."""
        for chunk in listed:
            held = self._held.get(chunk.index)
            if held is not None and held.sha256 != chunk.sha256:
                await self._let_go(held, f"the copy of {chunk.name} is not what the Pi has")
        self._compared = True

    async def _let_go(self, held: Chunk, reason: str) -> None:
        self._spoilt.add(held.index)
        await self._disk.do(self._put_aside, held)
        del self._held[held.index]
        self._run = min(self._run, held.index - 1)
        self._note("mirror_refetch", f"{reason}: it is set aside and fetched again", 1)

    def _put_aside(self, held: Chunk) -> None:
        path = self.folder / held.name
        if path.exists():
            set_aside(path, path.read_bytes(), ASIDE)

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
                await self._disk.do(replace, self.folder / name, content)
        record = await self._disk.do(read_json, self.folder / "session.json", StreamRecord)
        if record is not None:
            self._started_at, self.epochs, self.sensor = record.started_at, record.epochs, record.sensor
            self._next_chunk = record.next_chunk
        self._has_side_files = True

    async def sequel(self) -> Sequel:
        """Where a recording must go on that the Pi has lost: what is here of it stays as it is.

        Raises:
            OSError: the disk refuses.
        """
        await self._disk.do(self._end_part)
        next_chunk = max(self._held, default=-1) + 1
        return Sequel(self.last_seq + 1 + PUBLISHED_MAX, next_chunk, self.epochs)

    def _end_part(self) -> None:
        """Seal what is here of the open chunk; keep the label files, which others will take the place of."""
        found = scan(self._open.content)
        if found.rows:
            self._open.content = self._open.content[: found.good_bytes]
            with (self.folder / open_name(self._open.index)).open("r+b") as file:
                file.truncate(found.good_bytes)
            self._seal(found.chunk(self._open.index))
        for name in ("markers.jsonl", "events.jsonl"):
            path = self.folder / name
            if path.exists():
                set_aside(path, path.read_bytes(), ".before")
        self._has_side_files = False

    async def prove(self, standing: Standing) -> None:
        """Hold every byte of the copy on the disk against what the stopped Pi recording has.

        Raises:
            Incomplete: something is missing or different; the message says what.
            PiError: the Pi cannot be reached.
        """
        if standing.state != "stopped":
            raise Incomplete("the Pi is still recording")
        listed = await self._pi.chunks(self.session_id, -1)
        if standing.digest is not None and digest_of(listed) != standing.digest:
            raise Incomplete("the Pi's list of chunks is not the one that it ended with")
        await self._compare(listed)
        missing = [chunk for chunk in listed if chunk.index not in self._held]
        if missing:
            raise Incomplete(_told_missing(missing, len(listed)))
        for chunk in listed:
            if not await self._disk.do(self._is_intact, chunk):
                await self._let_go(chunk, f"the copy of {chunk.name} has been damaged here")
        if any(chunk.index not in self._held for chunk in listed):
            raise Incomplete("part of the copy was damaged here and is fetched again")
        known = {chunk.index for chunk in listed}
        first = min(known, default=self._next_chunk)  # what is before is only here: the Pi has lost it
        files = await self._disk.do(chunk_files, self.folder)
        strange = [path.name for i, path in files if path.suffix == ".csv" and first <= i not in known]
        if strange:
            raise Incomplete(f"{len(strange)} chunks here are not the Pi's: {', '.join(strange[:NAMED])}")
        rows = sum(chunk.rows for chunk in listed)
        if rows != standing.rows or self.last_seq < standing.last_seq:
            raise Incomplete(f"the Pi's chunks have {rows} rows, it says {standing.rows}")

    def _is_intact(self, chunk: Chunk) -> bool:
        try:
            with (self.folder / chunk.name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == chunk.sha256
        except FileNotFoundError:
            return False

    async def _pull_sealed(self, chunk: Chunk) -> None:
        try:
            await self._fetch_sealed(chunk)
        except PiError as error:
            if error.status not in (404, 412):
                raise  # else it is the Pi that has lost this chunk, not we that have lost the Pi
        if _is(self._open.content, chunk):
            await self._keep(chunk)
        else:
            await self._avoid(chunk)

    async def _fetch_sealed(self, chunk: Chunk) -> None:
        await self._turn_to(chunk.index)
        if len(self._open.content) < chunk.size_bytes:
            await self._fetch(chunk)
        if not _is(self._open.content, chunk) and chunk.index not in self._avoided:
            self._note("mirror_refetch", f"what is here of {chunk.name} is not the Pi's: all of it again", 1)
            self._spoilt.add(chunk.index)
            held = self._open.content  # it may be right, and the Pi's not
            await self._disk.do(set_aside, self.folder / chunk.name, held, ASIDE)
            await self._turn_to(-1)
            await self._turn_to(chunk.index)
            await self._fetch(chunk)

    async def _keep(self, chunk: Chunk) -> None:
        try:
            await self._disk.do(self._seal, chunk)
        except OSError:  # after a sync that failed nothing that was written before can be relied on
            self._open = _Open(chunk.index)
            raise
        self._avoided.pop(chunk.index, None)

    async def _fetch(self, chunk: Chunk) -> None:
        """The rest of a sealed chunk; if the Pi has another one by that name, all of that."""
        held = len(self._open.content)
        content = await self._pi.file(self.session_id, chunk.name, held, chunk.sha256)
        await self._take(content[: chunk.size_bytes - held])

    async def _avoid(self, chunk: Chunk) -> None:
        """The Pi gives something else than it has sealed: keep that beside, and ask again later and later."""
        content = self._open.content
        self._spoilt.add(chunk.index)
        if content:
            await self._disk.do(set_aside, self.folder / chunk.name, content, DAMAGED)
        await self._turn_to(-1)
        _, waited_s = self._avoided.get(chunk.index, (0.0, AVOID_S / 2))
        if chunk.index not in self._avoided:
            readable = scan(content).rows
            self._note(
                "chunk_damaged", f"{chunk.name} on the Pi: {readable} of {chunk.rows} rows are good", 1
            )
        wait_s = min(2 * waited_s, AVOID_MAX_S)
        self._avoided[chunk.index] = (asyncio.get_running_loop().time() + wait_s, wait_s)

    async def _pull_open(self, chunk: OpenChunk) -> None:
        if chunk.index in self._held:
            return
        await self._turn_to(chunk.index)
        held = len(self._open.content)
        if chunk.durable_bytes > held:
            await self._take(await self._pi.file(self.session_id, chunk.name, held))

    async def _turn_to(self, index: int) -> None:
        """Begin another chunk, from nothing."""
        if index != self._open.index:
            if self._open.index >= 0:
                await self._disk.do((self.folder / open_name(self._open.index)).unlink, missing_ok=True)
            self._open = _Open(index)

    async def _take(self, more: bytes) -> None:
        """Keep bytes of the open chunk, and tell the rows that they complete."""
        if not more:
            return
        await self._disk.do(self._append, more)
        held = self._open
        held.content += more
        readings: list[Reading] = []
        for line in held.content[held.told_bytes :].splitlines(keepends=True):
            if not ((_is_row(line) and line.endswith(b"\n")) or line == HEAD):
                break  # half a row, or one that the chunk's sha256 will find to be damaged
            held.told_bytes += len(line)
            if (reading := _decode(line)) is not None:
                readings.append(reading)
            if len(readings) == SLICE:
                await self._tell(readings)
                readings = []
        await self._tell(readings)

    async def _tell(self, readings: list[Reading]) -> None:
        if readings:
            self._reach(readings[-1].seq)
            self._on_rows(readings)
            await asyncio.sleep(0)

    def _append(self, more: bytes) -> None:
        """Write behind what is held, whatever an earlier try has left there."""
        file = Appender(self.folder / open_name(self._open.index), size=len(self._open.content))
        try:
            file.append(more)
        finally:
            file.close()

    def _seal(self, chunk: Chunk) -> None:
        path = self.folder / open_name(chunk.index)
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        path.rename(self.folder / chunk.name)
        fsync_folder(self.folder)
        self._clear_up(chunk, self._open.content)
        self._open = _Open()
        self._hold(chunk)
        others = [one for one in self._held.values() if one.index != chunk.index]
        self._manifest.add(self._started_at, [*others, chunk])

    def _clear_up(self, chunk: Chunk, content: bytes) -> None:
        """What had been set aside can go, if every good row of it is in the chunk that is proven now."""
        if chunk.index not in self._spoilt:
            return
        self._spoilt.discard(chunk.index)
        there = set(content.splitlines())
        for suffix in (ASIDE, DAMAGED):
            for path in self.folder.glob(f"{Path(chunk.name).stem}{suffix}*"):
                if {row for row in path.read_bytes().splitlines() if _is_row(row)} <= there:
                    path.unlink()

    def let_go(self) -> None:
        """Give back the thread."""
        self._disk.close()

    async def close(self) -> None:
        """The copy is finished, or left for another day: put its index in order."""
        if self._held:
            await self._disk.do(self._manifest.write, self._started_at, list(self._held.values()))
        self._disk.close()


def _is(content: bytes, chunk: Chunk) -> bool:
    return hashlib.sha256(content).hexdigest() == chunk.sha256


def _told_missing(missing: list[Chunk], of: int) -> str:
    rows, names = sum(chunk.rows for chunk in missing), [chunk.name for chunk in missing[:NAMED]]
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return f"{len(missing)} of {of} chunks are not here ({rows} rows): {', '.join(names)}{more}"


def _is_row(line: bytes) -> bool:
    try:
        return bool(check_row(line))
    except RowError:
        return False


def _decode(line: bytes) -> Reading | None:
    try:
        return decode_row(line)
    except RowError:
        return None  # the header; a damaged row is found by the chunk's sha256
