"""Which recordings lie in a folder, and which of them are one session.

A session has `in-water_<id>/` and `surface_<id>/`. In the first generation of the old Cockpit a mission had
`<id>/` and `surface_<id>/` of all its dives side by side. With one dive, the mission is the session; with
several, a dive goes by the folder of its in-water recording, and a surface recording of no dive by its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.files import read_json
from topside_daemon.fusion.cockpit import METADATA_FILE, names_both
from topside_daemon.fusion.overlaps import pair_up
from topside_daemon.fusion.parts import chunk_files

SESSION_FILE = "session.json"
INWATER_PREFIX, SURFACE_PREFIX = "in-water_", "surface_"


class SessionError(ValueError):
    """A path that cannot be fused; the message names the cause and the cure."""


class Located(NamedTuple):
    """Where the parts of a session are. home: the files beside its streams; root: what names are relative to,
    for a dive of several its mission, else home again."""

    inwater: Path | None
    surface: Path | None
    home: Path
    root: Path

    @property
    def streams(self) -> tuple[Path | None, Path | None]:
        """The folders of the in-water and of the surface stream."""
        return self.inwater, self.surface

    @property
    def of_several(self) -> bool:
        """Whether it is a dive of a mission of several."""
        return self.home != self.root


def is_session(path: Path) -> bool:
    """Whether a folder is to be fused, not the folders in it: it holds chunks, or a folder for each sensor,
    or the only dive of a mission of the old Cockpit.

    Raises:
        OSError: it cannot be looked into.
    """
    if chunk_files(path):
        return True
    inwater, surface = _recordings(path)
    return _is_stamped(inwater) or (bool(inwater or surface) and not _are_several(inwater, surface))


def has_chunks(folder: Path) -> bool:
    """Whether a folder is a recording, as far as one can see."""
    try:
        return bool(chunk_files(folder))
    except PermissionError:
        return False


def locate(path: Path) -> Located:
    """The streams of the session that goes by this path.

    Raises:
        SessionError: there is no recording at *path*, or more than one of a sensor.
    """
    if not path.is_dir():
        raise SessionError(f"{path}: no such folder: give the folder of a session")
    if chunk_files(path):
        return _locate_dive(path)
    inwater, surface = _recordings(path)
    for found in (inwater, surface):
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            cure = "give the folder of one"
            if _is_stamped(inwater):
                cure += " to fuse it alone, or leave only one here"
            raise SessionError(f"{path}: several recordings of one sensor ({names}): {cure}")
    if not inwater and not surface:
        raise SessionError(
            f"{path}: no recording here: give a folder with in-water_*/, surface_*/ or chunk_*.csv"
        )
    return Located(inwater[0] if inwater else None, surface[0] if surface else None, path, path)


def _locate_dive(path: Path) -> Located:
    """A folder with chunks; what is beside it counts only in a mission of several dives."""
    home = path if path.name else path.absolute()  # the working directory has siblings too
    if _is_surface(home):
        return Located(None, home, home, home)
    several = _several_dives(home.parent)
    if several is None:
        return Located(home, None, home, home)
    return Located(home, _paired(home.parent, *several).get(home), home, home.parent)


def partners(mission: Path) -> dict[Path, Path]:
    """The surface recording of each in-water recording that has one, where a mission has several dives."""
    several = _several_dives(mission)
    return _paired(mission, *several) if several else {}


def _paired(mission: Path, inwater: Sequence[Path], surface: Sequence[Path]) -> dict[Path, Path]:
    both = [(one, other) for one in inwater for other in surface if names_both(mission, one.name, other.name)]
    return pair_up(inwater, surface, dict(both) if len(both) == 1 else {})


def _several_dives(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """The in-water and the surface recordings of a mission with several dives; None if it is none. A Pi's
    data folder, which has nothing but in-water recordings, is none."""
    try:
        if not any(folder.glob(f"{SURFACE_PREFIX}*")) and not (folder / METADATA_FILE).exists():
            return None
        inwater, surface = _recordings(folder)
    except OSError:  # what lies above a recording may be closed
        return None
    if not _are_several(inwater, surface):
        return None
    return [one for one in inwater if not _is_surface(one)], surface


def _are_several(inwater: Sequence[Path], surface: Sequence[Path]) -> bool:
    return max(len(inwater), len(surface)) > 1 and not _is_stamped(inwater)


def _is_stamped(inwater: Sequence[Path]) -> bool:
    """Whether they lie in a session's own folder; the first generation named them by their id alone."""
    return any(folder.name.startswith(INWATER_PREFIX) for folder in inwater)


def _recordings(path: Path) -> tuple[list[Path], list[Path]]:
    """The folders of in-water and of surface recordings in a folder."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    surface = [folder for folder in folders if folder.name.startswith(SURFACE_PREFIX)]
    inwater = [folder for folder in folders if folder.name.startswith(INWATER_PREFIX)]
    if not inwater:
        inwater = [folder for folder in folders if folder not in surface and has_chunks(folder)]
    return inwater, surface


def _is_surface(folder: Path) -> bool:
    """Of a sensor's folder alone: so it is called, or so its record says."""
    if folder.name.startswith(SURFACE_PREFIX):
        return True
    try:
        record = read_json(folder / SESSION_FILE, dict[str, Any]) or {}
    except (OSError, ValueError):  # whoever reads it says it better
        return False
    return record.get("role") == "surface"
