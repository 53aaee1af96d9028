"""Which files of a folder make up its record, in which order, and whose kind of rows they hold."""

import mmap
import os
import re
from collections.abc import Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

from common.manifest import Manifest
from common.rows import HEADER, OLD_HEADER

COMBINED = "session.csv"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of a file that went through a spreadsheet
NAMED = 5  # files in a note

_CHUNK = re.compile(r"chunk_(\d+)\.(csv|tmp|csv\.tmp)")  # the last is an open chunk of the old Cockpit
_HEADER_START = b"timestamp,"
_OLD_COLUMNS = b"timestamp,sensor_id,mode,value"
_OUR_COLUMNS = f"{OLD_HEADER},seq".encode("ascii")
_OUR_FIELDS = HEADER.count(",") + 1


class Parts(NamedTuple):
    """note: what was found of a combining that broke off, "" of nothing."""

    names: list[str]
    note: str = ""


def chunk_files(folder: Path) -> list[str]:
    """Names of the chunks of a folder in order, or of the combined file where there are none."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    chunks = [(int(match[1]), match[2], name) for name in names if (match := _CHUNK.fullmatch(name))]
    if chunks:
        return [name for *_, name in sorted(chunks)]
    return [COMBINED] if COMBINED in names else []


def parts_of(folder: Path, manifest: Manifest | None) -> Parts:
    """All that holds a row, and no row twice.

    The old Cockpit copies its chunks into one file, line by line, and then removes them one by one; either
    may have broken off, and a recording may have gone on after it. *manifest*: of the folder.

    Raises:
        OSError: a file cannot be read.
    """
    chunks = chunk_files(folder)
    if chunks in ([], [COMBINED]) or not (folder / COMBINED).is_file():
        return Parts(chunks, _skipped(chunks) if manifest is None else "")
    here = {Path(name).stem for name in chunks}
    if (
        manifest is not None
        and manifest.chunks
        and all(Path(one.name).stem in here for one in manifest.chunks)
    ):
        return Parts(chunks)
    with (folder / COMBINED).open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return Parts(chunks)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as combined:
            if _is_all_in(combined, folder, chunks):
                return Parts(
                    chunks, f"{COMBINED} holds what the chunks hold, or the first of it: they were read"
                )
            others = _not_in(combined, folder, chunks)
    what = (
        f"so were {_some(others, len(others))}, which are not in it"
        if others
        else "the chunks beside it are in it"
    )
    return Parts([COMBINED, *others], f"{COMBINED} was read; {what}")


def _is_all_in(combined: mmap.mmap, folder: Path, chunks: Sequence[str]) -> bool:
    """Whether a combined file holds nothing but the lines of these chunks, from the first one on."""
    place, size = combined.find(b"\n") + 1 or len(combined), len(combined)
    for name in chunks:
        lines = _lines(folder / name)
        stop = min(size, place + len(lines))
        if combined[place:stop] != lines[: stop - place]:
            return False
        place = stop
    return place == size


def _not_in(combined: mmap.mmap, folder: Path, chunks: Sequence[str]) -> list[str]:
    """The chunks whose lines are nowhere in a combined file; it most likely has them in their order."""
    others, place = [], 0
    for name in chunks:
        lines = _lines(folder / name)
        found = combined.find(lines, place)
        found = combined.find(lines) if found < 0 else found
        if found < 0:
            others.append(name)
        else:
            place = found + len(lines)
    return others


def _lines(chunk: Path) -> bytes:
    """As combining leaves them: without a header, stripped."""
    lines = [line.strip() for line in chunk.read_bytes().splitlines()]
    return b"".join(line + b"\n" for line in lines if line and not line.startswith(_HEADER_START))


def _skipped(chunks: Sequence[str]) -> str:
    """Tells of numbers that no chunk has, though later ones do."""
    numbers = sorted({int(match[1]) for name in chunks if (match := _CHUNK.fullmatch(name))})
    holes = [range(before + 1, after) for before, after in pairwise([-1, *numbers])]
    first = [f"chunk_{number:05}.csv" for number in islice(chain.from_iterable(holes), NAMED)]
    gone = sum(map(len, holes))
    return f"{_some(first, gone)} not in the folder, though later ones are" if gone else ""


def _some(names: Sequence[str], count: int) -> str:
    more = f" and {count - NAMED} more" if count > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def is_ours(text: bytearray | bytes) -> bool:
    """Whether rows are as our recorder writes them, by the first line that says something."""
    for line in text[:4096].splitlines():
        content = line.removeprefix(BYTE_ORDER_MARK)
        kind = kind_of_header(content)
        if kind is not None:
            return kind
        if content.strip() and not content.startswith(_HEADER_START):  # else a header that is damaged
            return content.count(b",") + 1 >= _OUR_FIELDS
    return False


def kind_of_header(line: bytes | bytearray) -> bool | None:
    """Whether a header announces rows of ours; None if it is none that any recorder writes."""
    content = line.rstrip(b"\r\n")
    if content == HEADER.encode("ascii"):
        return True
    return False if content.startswith(_OLD_COLUMNS) and not content.startswith(_OUR_COLUMNS) else None
