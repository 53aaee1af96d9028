"""Which surface recording goes with which in-water recording, by the UTC labels of their first and last rows.

Only the ends of a recording are read.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.rows import parse_utc
from topside_daemon.fusion.parts import COMBINED, chunk_files

Span = tuple[int, int]  # utc_ns of the first and of the last row

EDGE_BYTES = 1 << 16  # of a file, in which its first or its last row is looked for
_FIELDS_MIN = 4  # of a row; with fewer its label may be torn


def pair_up(inwater: Sequence[Path], surface: Sequence[Path]) -> dict[Path, Path]:
    """The surface recording of each in-water recording that has one, each once.

    Those come first that share most of the time that they cover together. Their common time alone would
    mislead: the old Pi begins a recording with rows of the one before it, which may be all of that one.
    """
    under_water, on_deck = (
        [(folder, span) for folder in folders if (span := _span(folder))] for folders in (inwater, surface)
    )
    shares = sorted(
        (-share, under, deck)
        for under, one in under_water
        for deck, other in on_deck
        if (share := _share(one, other))
    )
    found: dict[Path, Path] = {}
    for _, under, deck in shares:
        if under not in found and deck not in found.values():
            found[under] = deck
    return found


def _share(one: Span, other: Span) -> float:
    common = min(one[1], other[1]) - max(one[0], other[0])
    return common / (max(one[1], other[1]) - min(one[0], other[0])) if common > 0 else 0.0


def _span(folder: Path) -> Span | None:
    """None if no row can be read: whoever fuses it will say why."""
    try:
        names = chunk_files(folder)
        if COMBINED not in names and (folder / COMBINED).is_file():
            names = [COMBINED, *names]  # to which chunks were added, or from which they are not removed yet
        first = _first_label(_head(folder / name) for name in names)
        last = _first_label(_tail(folder / name) for name in reversed(names))
    except OSError:
        return None
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
