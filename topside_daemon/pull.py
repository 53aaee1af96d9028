"""`pull`: complete and prove the copy of one Pi session, whoever began it.

For a recording that no daemon of ours followed, and for the folder that another client left short: what
is missing is fetched, every byte is held against the Pi's hashes, and the combined files are made anew.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from msgspec import Struct, field, to_builtins

from common.clock import SystemClock
from common.files import FolderInUse, away_from_daemons, make_folder, read_json
from common.keys import Wallet
from common.recovery import sealed_chunks
from common.service import EXIT_LOSS, ConfigError
from topside_daemon.config import Config
from topside_daemon.mirror import Incomplete, Mirror
from topside_daemon.oldpi import EitherPi
from topside_daemon.pi import Pi, PiError
from topside_daemon.products import combine, fuse

T = TypeVar("T", bound=Struct)

PI_URL = "http://127.0.0.1:9150"
REFUSED = 1
TRIES = 8  # at a Pi that does not answer, with ever longer waits: about 20 s
WAIT_S, WAIT_MAX_S = 0.5, 5.0
COMBINED = "session.csv"
BEFORE = "session.csv.before"
INWATER = "in-water_"
OF_SESSIONS = ("exchanges.jsonl", "sync_metadata.json", "surface_*/", "in-water_*/")
NAMED = 5  # of the chunks that were fetched again, so many are told by name


class _Owner(Struct):
    """Whose a file says that it is. sync_id: only a session's has one."""

    session_id: str = ""
    sync_id: str = ""
    role: str = ""


class _Sensor(Struct):
    session_id: str = field(default="", name="sessionId")


class _Metadata(Struct):
    """`sync_metadata.json`: whose it is, where the old Cockpit wrote nothing else."""

    sensors: dict[str, _Sensor | None] = {}


class Pulled(Struct):
    """What became of a pull. missing: what is not here, "" if the copy is complete and proven."""

    session_id: str
    folder: Path
    chunks: int = 0
    rows: int = 0
    missing: str = ""
    notes: list[str] = []
    fused: Path | None = None


def add_pull_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("session", metavar="SESSION", help="the recording's id on the Pi")
    command.add_argument("--pi", dest="pull_pi", metavar="URL", help=f"default {PI_URL}")
    command.add_argument(
        "--into",
        type=Path,
        required=True,
        metavar="DIR",
        help="a session folder, the folder of its in-water stream, or a new one",
    )
    command.add_argument("--no-fuse", action="store_true", help="do not fuse a session folder again")
    command.add_argument("--json", action="store_true", help="print the result as JSON")


def pull(options: argparse.Namespace) -> int:
    """The command: 0 complete and proven, 3 something is missing, 1 refused or not reached."""
    given = options.pull_pi or options.pi
    url, session_id = given or PI_URL, options.session.removeprefix(INWATER)
    try:
        with _held_place(options.into, session_id) as folder:
            pi = EitherPi(url, SystemClock(), Wallet(Path(options.data or Config().data)))
            pulled = asyncio.run(_pull(pi, session_id, folder, not options.no_fuse))
    except FolderInUse as error:
        print(f"{error}, or let it complete the session itself", file=sys.stderr)
        return REFUSED
    except (PiError, ConfigError, OSError) as error:
        print(f"{error}{_cure(error, url, given is not None)}", file=sys.stderr)
        return REFUSED
    print(json.dumps(to_builtins(pulled, enc_hook=str)) if options.json else told(pulled))
    return EXIT_LOSS if pulled.missing else 0


def _cure(error: Exception, url: str, given: bool) -> str:
    if isinstance(error, PiError) and error.status == 404:
        return f": {url}/record/sessions lists what it has"
    if isinstance(error, PiError) and error.status is None and not given:
        return ": say where the Pi is with --pi URL"
    return ""


@contextmanager
def _held_place(into: Path, session_id: str) -> Iterator[Path]:
    """The folder of the stream, held for us; one that was made for nothing is not left behind."""
    folder = place_of(into, session_id)
    is_new = not folder.exists()
    make_folder(folder)
    try:
        with away_from_daemons(folder):
            yield folder
    finally:
        if is_new:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def place_of(into: Path, session_id: str) -> Path:
    """The folder of the stream: in *into*, if that is a session's, or *into* itself.

    Raises:
        ConfigError: another recording is there, and must not be mixed with this one.
    """
    into = into.resolve()
    names = (f"{INWATER}{session_id}", session_id)  # the second as the first old Cockpit named it
    inside = next((into / name for name in names if (into / name).is_dir()), None)
    if _is_session(into):
        _refuse_others(into, session_id, _owners(into))
        _refuse_others(into, session_id, {_stream_id(entry) for entry in into.iterdir()})
        place = inside or into / names[0]
    else:
        place = inside or into
    if place.name.startswith("surface_") or _read(place / "session.json", _Owner).role == "surface":
        raise ConfigError(f"{place} is of the surface sensor: give --into the session folder above it")
    named = place.name.removeprefix(INWATER) if place.name.startswith(INWATER) else ""
    _refuse_others(place, session_id, _owners(place) | {named})
    return place


def _is_session(folder: Path) -> bool:
    """Whether it is the folder of a whole session, not of one stream."""
    marks = any(True for pattern in OF_SESSIONS for _ in folder.glob(pattern))
    return marks or bool(_read(folder / "session.json", _Owner).sync_id)


def _owners(folder: Path) -> set[str]:
    """The in-water recordings that the files of *folder* say they belong to."""
    files = ("session.json", "manifest.json", "mirror.json")
    inwater = _read(folder / "sync_metadata.json", _Metadata).sensors.get("inWater")
    return {_read(folder / name, _Owner).session_id for name in files} | {
        inwater.session_id if inwater else ""
    }


def _stream_id(folder: Path) -> str:
    """The id of the in-water recording in a folder of a session, "" if there is none."""
    if not folder.is_dir() or folder.name.startswith("surface_"):
        return ""
    if folder.name.startswith(INWATER):
        return folder.name.removeprefix(INWATER)
    return folder.name if any(folder.glob("chunk_*")) or (folder / COMBINED).exists() else ""


def _refuse_others(folder: Path, session_id: str, found: set[str]) -> None:
    others = sorted(found - {session_id, ""})
    if others:
        raise ConfigError(
            f"{folder} holds recording {others[0]}, not {session_id}: give --into a folder of its own"
        )


def _read(path: Path, kind: type[T]) -> T:
    """What *path* says; nothing, where it is missing or damaged."""
    try:
        return read_json(path, kind) or kind()
    except ValueError:
        return kind()


async def _pull(pi: Pi, session_id: str, folder: Path, may_fuse: bool) -> Pulled:
    """
    Raises:
        PiError: the Pi cannot be reached, or does not know the session.
        OSError: the disk refuses.
    """
    pulled, before = Pulled(session_id, folder), _seals(folder)

    def note(kind: str, detail: str, _count: int) -> None:
        if kind != "mirror_refetch":  # these are counted
            pulled.notes.append(detail)

    pi.open()
    try:
        mirror = Mirror(pi, session_id, folder, lambda _: None, note)
        await mirror.load()
        pulled.missing = await _complete(mirror)
        await mirror.close()
        pulled.rows, pulled.chunks = mirror.rows, len(sealed_chunks(folder))
    finally:
        await pi.close()
    _note_repairs(pulled, before, _seals(folder))
    _combine(folder, pulled)
    session = folder.parent
    if may_fuse and pulled.chunks and any(session.glob("surface_*")):
        await _fuse(session, pulled)
    return pulled


async def _fuse(session: Path, pulled: Pulled) -> None:
    try:
        await fuse(session)
    except RuntimeError as error:
        pulled.notes.append(f"not fused: {error}")
    else:
        pulled.fused = session / "unified_session.csv"


def _seals(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a sealed chunk from one that has taken its place."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sealed_chunks(folder)}


def _note_repairs(
    pulled: Pulled, before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> None:
    again = [name for name in after if name in before and before[name] != after[name]]
    if again:
        count = "1 chunk" if len(again) == 1 else f"{len(again)} chunks"
        names = ", ".join(again[:NAMED]) + (" ..." if len(again) > NAMED else "")
        pulled.notes.append(f"{count} fetched again, not as the Pi had sealed them: {names}")


async def _complete(mirror: Mirror) -> str:
    """Pull until all is here and proven, or will not come; returns what is missing."""
    wait_s, missing = WAIT_S, ""
    for attempt in range(TRIES):
        try:
            standing = await mirror.pull()
            await mirror.pull_side_files()
            await mirror.prove(standing)
        except Incomplete as error:
            if missing == str(error):
                return missing
            missing = str(error)
        except PiError as error:
            if error.status is not None or attempt == TRIES - 1:
                raise
        else:
            return ""
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, WAIT_MAX_S)
    return missing


def _combine(folder: Path, pulled: Pulled) -> None:
    """Make the combined file anew; one that has rows which the Pi has not is kept beside it."""
    combined, before = folder / COMBINED, _rows(folder / COMBINED)
    if not pulled.chunks:
        return
    old = combined.read_bytes() if before else b""
    combine(folder)
    only_there = len(before - _rows(combined))
    if only_there:
        (folder / BEFORE).write_bytes(old)
        pulled.notes.append(f"{only_there} rows of the old {COMBINED} are not the Pi's: kept as {BEFORE}")


def _rows(path: Path) -> set[bytes]:
    if not path.exists():
        return set()
    return {line.strip() for line in path.read_bytes().splitlines()[1:] if line.strip()}


def told(pulled: Pulled) -> str:
    """The result as lines for people."""
    state = f"INCOMPLETE: {pulled.missing}" if pulled.missing else "complete, every byte proven"
    lines = [
        f"session   {pulled.session_id}: {state}",
        f"folder    {pulled.folder}",
        f"rows      {pulled.rows} in {pulled.chunks} chunks",
        *(f"note      {note}" for note in pulled.notes),
    ]
    if pulled.fused is not None:
        lines.append(f"fused     {pulled.fused}")
    return "\n".join(lines)
