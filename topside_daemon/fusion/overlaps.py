"""Which surface recording goes with which in-water recording: by their markers, and by the UTC labels of
their first and last rows."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from common.rows import parse_utc
from topside_daemon.fusion.parts import COMBINED, chunk_files

Span = tuple[int, int]  # utc_ns of the first and of the last row

EDGE_BYTES = 1 << 16  # of a file, in which its first or its last row is looked for
MARKS_BYTES = 1 << 20  # at either end: the old Pi puts up to 10 000 rows of its ring before the START
LOOKED_AT = 1024  # recordings that are remembered
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
            about = [(folder / name).stat() for name in (*names[:1], *names[-1:])]
            return _looked_at(folder, tuple(names), tuple((one.st_size, one.st_mtime_ns) for one in about))
        except OSError:
            return cls(folder, None, frozenset(), frozenset())


@lru_cache(LOOKED_AT)
def _looked_at(folder: Path, names: Sequence[str], _looks: Sequence[tuple[int, int]]) -> _Recording:
    """Each dive of a mission asks for all recordings of it."""
    marks = {mark for text in _ends(folder, names) for mark in _marks(text)}
    starts = frozenset(value for kind, value in marks if kind == b"START")
    return _Recording(folder, _span(folder, names), starts, frozenset(value for _, value in marks))


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


def _ends(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    """The text at either end of a recording, where START and STOP are."""
    for order, part in ((names, _head), (names[::-1], _tail)):
        room = MARKS_BYTES
        for name in order:
            text = part(folder / name, room)
            yield text
            room -= len(text)
            if room <= 0:
                break


def _marks(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and id of the START and STOP markers."""
    place = text.find(_MARK)
    while place >= 0:
        kind, _, rest = text[place + len(_MARK_HEAD) : place + 80].partition(b",")
        yield kind, rest.partition(b",")[0].partition(b".")[0].strip()
        place = text.find(_MARK, place + 1)


def _share(one: Span, other: Span) -> float:
    common = min(one[1], other[1]) - max(one[0], other[0])
    return common / (max(one[1], other[1]) - min(one[0], other[0])) if common > 0 else 0.0


def _span(folder: Path, names: Sequence[str]) -> Span | None:
    first = _first_label(_head(folder / name, EDGE_BYTES).splitlines() for name in names)
    last = _first_label(_tail(folder / name, EDGE_BYTES).splitlines()[::-1] for name in reversed(names))
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


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _tail(path: Path, size: int) -> bytes:
    """The first line of it may be cut, and then has no label."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size)
