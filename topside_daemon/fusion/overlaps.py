"""Which surface recording goes with which in-water recording: by their markers, and by the UTC labels of
their first and last rows."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

from common.rows import parse_utc
from topside_daemon.fusion.parts import COMBINED, chunk_files

Span = tuple[int, int]  # utc_ns of the first and of the last row

EDGE_BYTES = 1 << 16  # of a file, in which its first or its last row is looked for
_MARK_HEAD, _MARK = b",SYNC_", b",SYNC_ST"
_FIELDS_MIN = 4  # of a row; with fewer its label may be torn


class _Recording(NamedTuple):
    """span: None if no row can be read: whoever fuses it will say why. starts, ids: of its markers, of START
    and of STOP too."""

    folder: Path
    span: Span | None
    starts: frozenset[bytes]
    ids: frozenset[bytes]

    @classmethod
    def of(cls, folder: Path) -> "_Recording":
        try:
            names = _files(folder)
            marks = {mark for name in names for mark in _marks(folder / name)}
            starts = frozenset(value for kind, value in marks if kind == b"START")
            return cls(folder, _span(folder, names), starts, frozenset(value for _, value in marks))
        except OSError:
            return cls(folder, None, frozenset(), frozenset())


def pair_up(inwater: Sequence[Path], surface: Sequence[Path], named: Mapping[Path, Path]) -> dict[Path, Path]:
    """The surface recording of each in-water recording that has one, each once.

    Those come first that have a marker in common, then those that are *named* together: clocks may be wrong
    by hours. The others go by the time that they share, of that which they cover together, unless each has a
    START of its own. Their common time alone would mislead: the old Pi begins a recording with rows of the
    one before it, which may be all of that one.
    """
    found: dict[Path, Path] = {}
    under_water, on_deck = ([_Recording.of(folder) for folder in folders] for folders in (inwater, surface))
    likely = []
    for under in under_water:
        for deck in on_deck:
            common = len(under.ids & deck.ids)
            share = _share(under.span, deck.span) if under.span and deck.span else 0.0
            told = named.get(under.folder) == deck.folder
            if common or told or (share and not (under.starts and deck.starts)):
                likely.append((-common, not told, -share, under.folder, deck.folder))
    for *_, one, other in sorted(likely):
        if one not in found and other not in found.values():
            found[one] = other
    return found


def _files(folder: Path) -> list[str]:
    names = chunk_files(folder)
    if COMBINED not in names and (folder / COMBINED).is_file():
        return [COMBINED, *names]  # to which chunks were added, or from which they are not removed yet
    return names


def _marks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Kind and id of the START and STOP markers in a file."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
        place = text.find(_MARK)
        while place >= 0:
            kind, _, rest = text[place + len(_MARK_HEAD) : place + 80].partition(b",")
            yield kind, rest.partition(b",")[0].partition(b".")[0].strip()
            place = text.find(_MARK, place + 1)


def _share(one: Span, other: Span) -> float:
    common = min(one[1], other[1]) - max(one[0], other[0])
    return common / (max(one[1], other[1]) - min(one[0], other[0])) if common > 0 else 0.0


def _span(folder: Path, names: Sequence[str]) -> Span | None:
    first = _first_label(_head(folder / name) for name in names)
    last = _first_label(_tail(folder / name) for name in reversed(names))
    if first is None or last is None:
        return None
    return min(first, last), max(first, last)  # a clock that was set back


def _first_label(edges: Iterable[list[bytes]]) -> int | None:
    labels = (label for lines in edges for line in lines if (label := _label(line)) is not None)
    return next(labels, None)


def _label(line: bytes) -> int | None:
    fields = line.split(b",", _FIELDS_MIN)
    if len(fields) < _FIELDS_MIN:
        return None
    try:
        return parse_utc(fields[0].decode("utf-8-sig").strip())
    except ValueError:
        return None


def _head(path: Path) -> list[bytes]:
    """Lines from the first one on."""
    with path.open("rb") as file:
        return file.read(EDGE_BYTES).splitlines()


def _tail(path: Path) -> list[bytes]:
    """Lines from the last one back; the last of these may be cut, and then has no label."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - EDGE_BYTES))
        return file.read(EDGE_BYTES).splitlines()[::-1]
