"""`pull`: complete and prove the copy of one Pi session, whoever began it.

For a recording that no daemon of ours followed, and for the folder that another client left short: what
is missing is fetched, every byte is held against the Pi's hashes, and the combined files are made anew.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from msgspec import Struct, to_builtins

from common.clock import SystemClock
from common.files import FolderInUse, away_from_daemons, make_folder
from common.recovery import sealed_chunks
from common.service import EXIT_LOSS, ConfigError
from topside_daemon.mirror import Incomplete, Mirror
from topside_daemon.pi import Pi, PiError
from topside_daemon.products import combine, fuse

PI_URL = "http://127.0.0.1:9150"
REFUSED = 1
TRIES = 8  # at a Pi that does not answer, with ever longer waits: about 20 s
WAIT_S, WAIT_MAX_S = 0.5, 5.0
COMBINED = "session.csv"
BEFORE = "session.csv.before"


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
    command.add_argument("session", metavar="SESSION", help="the id of the recording on the Pi")
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
    url = options.pull_pi or options.pi or PI_URL
    folder = place_of(options.into, options.session)
    try:
        make_folder(folder)
        with away_from_daemons(folder):
            pulled = asyncio.run(_pull(Pi(url, SystemClock()), options.session, folder, not options.no_fuse))
    except FolderInUse as error:
        print(f"{error}, or let it complete the session itself", file=sys.stderr)
        return REFUSED
    except (PiError, ConfigError, OSError) as error:
        hint = f": {url}/record/sessions lists what it has" if getattr(error, "status", None) == 404 else ""
        print(f"{error}{hint}", file=sys.stderr)
        return REFUSED
    print(json.dumps(to_builtins(pulled, enc_hook=str)) if options.json else told(pulled))
    return EXIT_LOSS if pulled.missing else 0


def place_of(folder: Path, session_id: str) -> Path:
    """The folder of the stream: in *folder*, if that is a session's, or *folder* itself."""
    folder = folder.resolve()
    for name in (f"in-water_{session_id}", session_id):
        if (folder / name).is_dir():
            return folder / name
    return folder


async def _pull(pi: Pi, session_id: str, folder: Path, may_fuse: bool) -> Pulled:
    """
    Raises:
        PiError: the Pi cannot be reached, or does not know the session.
        OSError: the disk refuses.
    """
    pulled = Pulled(session_id, folder)
    pi.open()
    try:
        mirror = Mirror(
            pi, session_id, folder, lambda _: None, lambda _kind, detail, _count: pulled.notes.append(detail)
        )
        await mirror.load()
        pulled.missing = await _complete(mirror)
        await mirror.close()
        pulled.rows, pulled.chunks = mirror.rows, len(sealed_chunks(folder))
    finally:
        await pi.close()
    _combine(folder, pulled)
    session = folder.parent
    if may_fuse and pulled.chunks and any(session.glob("surface_*")):
        await fuse(session)
        pulled.fused = session / "unified_session.csv"
    return pulled


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
