"""Files that survive: replaced whole, appended by lines, held by one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from common.files import FolderInUse, FolderLock, Lines, make_folder, read_json, read_lines, replace
from common.messages import Event, to_json
from tests.sim.disk import full_after

HOLDER = """
import sys
from pathlib import Path
from common.files import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


class Pair(Struct, frozen=True):
    first: int
    second: str = ""


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """The new content stands at the path and nothing is left beside it."""
    path = tmp_path / "record.json"
    replace(path, b"old")
    replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_refused_replacement_leaves_the_old_file(tmp_path: Path) -> None:
    """When the disk is full in the middle, readers still find what was there before."""
    path = tmp_path / "record.json"
    replace(path, b"old")
    with full_after(1000), pytest.raises(OSError, match="File too large"):
        replace(path, b"n" * 5000)
    assert path.read_bytes() == b"old"
    replace(path, b"new")
    assert path.read_bytes() == b"new"


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    """A deep folder is made, and made again without complaint."""
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_record_is_read_back(tmp_path: Path) -> None:
    """What was kept is read; what was never kept is None."""
    replace(tmp_path / "pair.json", to_json(Pair(1, "é")))
    assert read_json(tmp_path / "pair.json", Pair) == Pair(1, "é")
    assert read_json(tmp_path / "none.json", Pair) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"first":"1"}', b'{"second":"x"}', b"\xff\xfe", b"\0" * 99]
)
def test_a_damaged_record_is_a_value_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in the file, the error is one kind and says which file."""
    (tmp_path / "pair.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"pair\.json"):
        read_json(tmp_path / "pair.json", Pair)


@given(st.lists(st.builds(Pair, st.integers(-(2**63), 2**63 - 1), st.text()), max_size=5), st.data())
def test_a_torn_line_costs_itself_only(
    tmp_path_factory: pytest.TempPathFactory, records: list[Pair], data: st.DataObject
) -> None:
    """Cut anywhere and opened again, a file of lines keeps every whole line and takes new ones."""
    path = tmp_path_factory.mktemp("lines") / "pairs.jsonl"
    lines = Lines(path)
    lines.append(*records)
    lines.close()
    cut = data.draw(st.integers(0, path.stat().st_size))
    os.truncate(path, cut)
    whole = path.read_bytes().count(b"\n")
    kept = list(read_lines(path, Pair))
    assert kept[:whole] == records[:whole]
    assert kept == records[: len(kept)]
    lines = Lines(path)
    lines.append(Pair(7), sync=True)
    lines.close()
    assert list(read_lines(path, Pair)) == [*kept, Pair(7)]


@given(st.binary())
def test_damaged_lines_are_left_out(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Junk between two lines hides neither."""
    path = tmp_path_factory.mktemp("lines") / "pairs.jsonl"
    path.write_bytes(to_json(Pair(1)) + b"\n" + junk + b"\n" + to_json(Pair(2)) + b"\n")
    found = list(read_lines(path, Pair))
    assert (found[0], found[-1]) == (Pair(1), Pair(2))


def test_lines_that_were_never_written_are_none(tmp_path: Path) -> None:
    """No file, no records."""
    assert list(read_lines(tmp_path / "none.jsonl", Event)) == []


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """A line that did not fit is gone whole, raises, and can be written again later."""
    lines = Lines(tmp_path / "pairs.jsonl")
    lines.append(Pair(1))
    with full_after(30), pytest.raises(OSError, match="File too large"):
        lines.append(Pair(2, "x" * 50))
    assert (tmp_path / "pairs.jsonl").read_bytes() == to_json(Pair(1)) + b"\n"
    lines.append(Pair(3))
    lines.close()
    assert list(read_lines(tmp_path / "pairs.jsonl", Pair)) == [Pair(1), Pair(3)]


def test_one_process_holds_a_folder(tmp_path: Path) -> None:
    """A second process is refused with the number of the first; when that is killed the folder is free."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUse, match="another process"):
            FolderLock(tmp_path)
        holder.kill()
    FolderLock(tmp_path).close()
    FolderLock(tmp_path).close()
