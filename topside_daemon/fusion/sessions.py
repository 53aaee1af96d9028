"""Which sessions are meant by a folder, or by a pattern of folders."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from topside_daemon.fusion.folders import has_chunks, is_session, partners

DEEPEST = 8  # folders within folders that are looked into
LOST_AND_FOUND = "lost+found"  # on every disk, and nobody may look into it


class Found(NamedTuple):
    """A session, and where it lies in the folder that was given: `.` is that folder itself."""

    path: Path
    place: Path


def find_sessions(given: Sequence[str]) -> tuple[list[Found], list[str]]:
    """Every session in these folders, or in those that fit a pattern, once each: itself, if it looks like
    one, and those that lie in it. And a line for each that holds none or cannot be looked into.

    A surface recording that is fused with an in-water one is not a session besides.
    """
    found: dict[Path, Found] = {}
    missing: list[str] = []
    for text in given:
        roots, closed = _folders(text), list[str]()
        sessions = [
            Found(path, path.relative_to(root)) for root in roots for path in _within(root, DEEPEST, closed)
        ]
        missing += closed
        if not sessions and not closed:
            missing.append(f"{text}: {_lack(text, roots)}")
        for one in sessions:
            found.setdefault(one.path.resolve(), one)
    for mission in {one.path.absolute().parent for one in found.values()}:
        for inwater, surface in partners(mission).items():
            if inwater.resolve() in found:
                found.pop(surface.resolve(), None)
    return list(found.values()), missing


def _lack(text: str, roots: Sequence[Path]) -> str:
    if roots:
        return "no recording here: give a folder with in-water_*/, surface_*/ or chunk_*.csv, or one of such"
    if glob.has_magic(text):
        return "no folder fits this pattern: give the folder of a session, or a folder of sessions"
    return "no such folder: give the folder of a session, or a folder of sessions"


def _folders(text: str) -> list[Path]:
    if Path(text).is_dir():
        return [Path(text)]
    return [Path(one) for one in sorted(glob.glob(text, recursive=True)) if Path(one).is_dir()]


def _within(folder: Path, deepest: int, closed: list[str]) -> Iterator[Path]:
    """Sessions in a folder; and into *closed* a line for each folder that cannot be looked into."""
    try:
        itself = is_session(folder)  # a mission of the old Cockpit may have later sessions beside its first
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        closed.append(f"{folder}: {error.strerror}: look who may read there")
        return
    if itself:
        yield folder
    for entry in entries if deepest else ():
        if entry.name[0] == "." or entry.name == LOST_AND_FOUND:
            continue
        if has_chunks(entry):
            if not itself:
                yield entry
        elif not entry.is_symlink():  # which may lead back here
            yield from _within(entry, deepest - 1, closed)
