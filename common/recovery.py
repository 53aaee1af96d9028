"""What a folder of chunks holds after whatever happened to it, and bringing it back to sealed chunks only.

Files win: a row counts if its checksum is right and it stands behind rows that do; the manifest only saves
looking, and tells what a sealed chunk was. Damage is set aside and told, never overwritten.
"""

import hashlib
import os
import re
from pathlib import Path

from msgspec import Struct

from common.files import NEW, away_from_daemons, fsync_folder, replace, set_aside
from common.manifest import MANIFEST, Manifest, read_manifest
from common.messages import Chunk, Reading, to_json
from common.rows import HEADER, MARKER_MODE, RowError, check_row, decode_row

TORN = ".torn"  # suffix of the end of a chunk that was no row
CHUNK_NAME = re.compile(r"chunk_([0-9]{5,9})\.(csv|tmp)")
HEAD = HEADER.encode("ascii") + b"\r\n"


class Scan(Struct):
    """The good rows at the head of one chunk file; everything after good_bytes is damage."""

    good_bytes: int
    size_bytes: int
    rows: int
    first_seq: int | None
    last_seq: int | None
    sha256: str

    @property
    def whole(self) -> bool:
        return self.good_bytes == self.size_bytes

    def chunk(self, index: int) -> Chunk:
        name = sealed_name(index)
        return Chunk(index, name, self.rows, self.good_bytes, self.sha256, self.first_seq, self.last_seq)


class Verdict(Struct):
    """What recovery found and did, or what verification found.

    chunks: as they are, or as they were when they were sealed, where that is known. next_index, last_seq:
    of all chunks there ever were.
    """

    chunks: list[Chunk]
    unclean: bool = False  # a chunk was open: the last owner was killed or lost power
    damage: list[str] = []
    next_index: int = 0
    last_seq: int = -1

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.reach(chunk)

    def reach(self, chunk: Chunk) -> None:
        """There is, or was, this one: its index and its numbers are never used again."""
        self.next_index = max(self.next_index, chunk.index + 1)
        self.last_seq = max(self.last_seq, -1 if chunk.last_seq is None else chunk.last_seq)


def sealed_name(index: int) -> str:
    return f"chunk_{index:05d}.csv"


def open_name(index: int) -> str:
    return f"chunk_{index:05d}.tmp"


def sealed_chunks(folder: Path) -> list[Path]:
    """The sealed chunks of a stream folder, oldest first."""
    return [path for _, path in chunk_files(folder) if path.suffix == ".csv"]


def chunk_files(folder: Path) -> list[tuple[int, Path]]:
    """Index and path of every chunk of a stream folder, oldest first, a sealed one before an open one."""
    matches = ((CHUNK_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def scan(content: bytes) -> Scan:
    """Check a chunk's bytes row by row, up to the first that is torn or spliced."""
    good, rows, first_seq, last_seq = 0, 0, None, None
    if content.startswith(HEAD):
        good = len(HEAD)
        for line in content[good:].splitlines(keepends=True):
            if not line.endswith(b"\r\n"):
                break
            try:
                seq_text = check_row(line)[6]
                seq = int(seq_text) if seq_text else last_seq  # a marker has none
            except ValueError:
                break
            first_seq, last_seq = seq if first_seq is None else first_seq, seq
            rows += 1
            good += len(line)
    digest = hashlib.sha256(content[:good]).hexdigest()
    return Scan(good, len(content), rows, first_seq, last_seq, digest)


def last_reading(folder: Path, chunks: list[Chunk]) -> Reading | None:
    """The last reading in the sealed chunks of a folder; None if there is none."""
    for chunk in reversed(chunks):
        if chunk.last_seq is not None:
            for line in reversed((folder / chunk.name).read_bytes().splitlines(keepends=True)):
                try:
                    reading = decode_row(line)
                except RowError:
                    continue
                if reading is not None:
                    return reading
    return None


def last_marker(folder: Path, chunks: list[Chunk]) -> tuple[int, int] | None:
    """Epoch and mono_ns of the last marker among the rows; None if there is none."""
    for chunk in reversed(chunks):
        if chunk.first_seq is not None and chunk.last_seq == chunk.first_seq + chunk.rows - 1:
            continue  # readings only: the archive need not be read
        for line in reversed((folder / chunk.name).read_bytes().splitlines()):
            try:
                fields = check_row(line)
                if fields[2].startswith(MARKER_MODE):
                    return int(fields[7]), int(fields[8])
            except ValueError:
                continue
    return None


def set_aside_untold(folder: Path, told: bytes) -> list[str]:
    """What recovery has set aside in *folder* without a word in *told*: power failed, or a person did it."""
    places = sorted(folder.glob(f"*{TORN}*"))
    return [
        f"{one.stat().st_size} bytes set aside in {one.name}"
        for one in places
        if one.name.encode() not in told
    ]


def recover(folder: Path) -> Verdict:
    """Bring a folder back to sealed chunks only, and say what that took.

    A pure function of the folder's content, idempotent, and itself killable at any point. Sealed
    chunks that the manifest knows are taken at its word (size checked), so the cost is that of the
    last chunk, not of the archive. What is damaged is set aside, never overwritten: the tail of an open
    chunk in `chunk_N.torn`.
    """
    known = _known(folder)
    verdict = Verdict(chunks=[])
    for chunk in known.values():
        verdict.reach(chunk)
    for index, path in chunk_files(folder):
        sealed = known.pop(path.name, None)
        if sealed is not None:
            verdict.damage += _changed(sealed, path.stat().st_size == sealed.size_bytes)
            verdict.add(sealed)
        else:
            verdict.unclean |= path.suffix == ".tmp"
            _finish(path, index, verdict)
            known.pop(sealed_name(index), None)
    verdict.damage += _vanished(known)
    for left_over in folder.glob(f"*{NEW}"):
        left_over.unlink()
    return verdict


def verify(folder: Path) -> Verdict:
    """Read every byte and compare with the manifest; changes nothing."""
    known = _known(folder)
    verdict = Verdict(chunks=[])
    for index, path in chunk_files(folder):
        found, chunk = scan(path.read_bytes()), known.pop(path.name, None)
        if not found.whole:
            torn = f"{found.size_bytes - found.good_bytes} bytes after row {found.rows}"
            verdict.damage.append(f"{path.name}: {torn}")
        if chunk is not None:
            verdict.damage += _changed(chunk, found.sha256 == chunk.sha256)
        verdict.add(chunk or found.chunk(index))
        verdict.unclean |= path.suffix == ".tmp"
    verdict.damage += _vanished(known)
    return verdict


def mend(folder: Path) -> Verdict:
    """What `recover` does, then a look at every byte, and a manifest that says what is there.

    Raises:
        FolderInUse: a daemon has it, or the data folder it is in.
    """
    with away_from_daemons(folder):
        mended = recover(folder)
        found = verify(folder)
        before = read_manifest(folder)
        session_id = before.session_id if before else folder.name.rpartition("_")[2]
        if found.chunks:
            manifest = Manifest.of(session_id, before.started_at if before else "", found.chunks)
            replace(folder / MANIFEST, to_json(manifest))
    damage = mended.damage + [line for line in found.damage if line not in mended.damage]
    return Verdict(found.chunks, mended.unclean, damage)


def _known(folder: Path) -> dict[str, Chunk]:
    manifest = read_manifest(folder)
    return {chunk.name: chunk for chunk in manifest.chunks} if manifest else {}


def _changed(chunk: Chunk, as_sealed: bool) -> list[str]:
    return [] if as_sealed else [f"{chunk.name}: changed since it was sealed"]


def _vanished(known: dict[str, Chunk]) -> list[str]:
    return [f"{name}: in the manifest, not in the folder" for name in known]


def _finish(path: Path, index: int, verdict: Verdict) -> None:
    """Seal a chunk that nobody has entered as sealed; remove it if it holds no row."""
    content = path.read_bytes()
    found, sealed = scan(content), path.with_name(sealed_name(index))
    if path != sealed and sealed.exists():  # a rename of which the power cut left both names
        if not sealed.read_bytes().startswith(content):
            place = set_aside(path, content, TORN)
            verdict.damage.append(
                f"{path.name}: not the beginning of {sealed.name}: set aside in {place.name}"
            )
        path.unlink()
        fsync_folder(path.parent)
        return
    if not found.whole:
        tail = content[found.good_bytes :]
        place = set_aside(path, tail, TORN)
        verdict.damage.append(
            f"{path.name}: {len(tail)} bytes after row {found.rows} set aside in {place.name}"
        )
    if not found.rows:
        path.unlink()
        fsync_folder(path.parent)
        return
    with path.open("r+b") as file:
        file.truncate(found.good_bytes)
        os.fsync(file.fileno())
    path.rename(sealed)
    fsync_folder(path.parent)
    verdict.add(found.chunk(index))
