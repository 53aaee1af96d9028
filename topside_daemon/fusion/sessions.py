"""Which sessions are meant by a folder, or by a pattern of folders."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from topside_daemon.fusion.readers import is_session
from topside_daemon.fusion.texts import chunk_files

DEEPEST = 8  # folders within folders that are looked into


class Found(NamedTuple):
    """A session, and where it lies in the folder that was given: `.` is that folder itself."""

    path: Path
    place: Path


def find_sessions(given: Sequence[str]) -> tuple[list[Found], list[str]]:
    """Every session in these folders, or in those that fit a pattern, once each: itself, if it looks like
    one, and those that lie in it. And a line for each of *given* that holds none."""
    found: dict[Path, Found] = {}
    missing: list[str] = []
    for text in given:
        try:
            roots = _folders(text)
            sessions = [
                Found(path, path.relative_to(root)) for root in roots for path in _within(root, DEEPEST)
            ]
        except OSError as error:
            missing.append(f"{text}: {error}: look who may read there")
            continue
        if not sessions:
            missing.append(f"{text}: {_lack(text, roots)}")
        for one in sessions:
            found.setdefault(one.path.resolve(), one)
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


def _within(folder: Path, deepest: int) -> Iterator[Path]:
    itself = is_session(folder)  # in a mission of the old Cockpit later sessions may lie beside its first ones
    if itself:
        yield folder
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    for entry in entries if deepest else ():
        if chunk_files(entry):
            if not itself:
                yield entry
        elif not entry.is_symlink():  # which may lead back here
            yield from _within(entry, deepest - 1)
