"""Stopped recordings, as they are found again: looked at once, and anew when anything has changed."""

import os
from pathlib import Path

import pytest

from common.chunkstore import ChunkStore, sealed_name
from common.files import replace
from common.messages import to_json
from common.recording import StreamRecord
from common.rows import encode_row
from pi_daemon.shelf import ROLE, SHELVED, Shelf
from tests.sim.drawn import reading

CHUNKS = 5


def session_id(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


def stopped(data: Path, number: int = 0) -> Path:
    """A recording of a few chunks, with a row in each."""
    folder = data / session_id(number)
    folder.mkdir()
    record = StreamRecord(folder.name, "reef", ROLE, "t", roll_interval_s=15.0, state="stopped", closed=True)
    store = ChunkStore(folder, folder.name, "t", 15.0)
    for seq in range(CHUNKS):
        store.append([encode_row(reading(seq))], [seq], 0)
        store.seal()
    store.close()
    (folder / "session.json").write_bytes(to_json(record))
    return folder


def test_a_recording_is_looked_at_once(tmp_path: Path) -> None:
    """The same answer is given as long as nothing changes; of the last ones asked for only."""
    folders = [stopped(tmp_path, number) for number in range(SHELVED + 1)]
    shelf = Shelf(tmp_path)
    first = shelf.load(folders[0].name)
    assert first is not None and (first.rows, first.last_seq, len(first.chunks)) == (
        CHUNKS,
        CHUNKS - 1,
        CHUNKS,
    )
    assert shelf.load(folders[0].name) is first
    for folder in folders[1:]:
        shelf.load(folder.name)
    again = shelf.load(folders[0].name)
    assert again == first and again is not first
    assert shelf.load(session_id(77)) is None


@pytest.mark.parametrize("what", ["folder", "session.json", "manifest.json", "manifest.jsonl"])
def test_what_has_changed_is_looked_at_again(what: str, tmp_path: Path) -> None:
    """Each by itself: an entry that comes or goes, the record, the index and what was added to it."""
    folder, shelf = stopped(tmp_path), Shelf(tmp_path)
    (folder / "manifest.jsonl").touch()
    found = shelf.load(folder.name)
    assert found is not None and shelf.load(folder.name) is found
    before = folder.stat()
    if what == "folder":
        (folder / sealed_name(77)).touch()
    else:
        path = folder / what
        path.write_bytes(path.read_bytes() + b"\n")
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shelf.load(folder.name) is not found


def test_files_win_over_the_index(tmp_path: Path) -> None:
    """A record written anew or damaged, an index that went, the folder itself."""
    folder, shelf = stopped(tmp_path), Shelf(tmp_path)
    found = shelf.load(folder.name)
    assert found is not None
    (folder / sealed_name(2)).unlink()
    (folder / "manifest.json").unlink()
    (folder / "manifest.jsonl").unlink(missing_ok=True)
    mended = shelf.load(folder.name)
    assert mended is not None and [one.index for one in mended.chunks] == [0, 1, 3, 4]
    replace(folder / "session.json", to_json(found.record).replace(b"reef", b"wreck"))
    renamed = shelf.load(folder.name)
    assert renamed is not None and renamed.record.mission == "wreck"
    (folder / "session.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"session\.json"):
        shelf.load(folder.name)
    folder.rename(tmp_path / "elsewhere")
    assert shelf.load(folder.name) is None


def test_what_is_not_stopped_is_always_looked_at(tmp_path: Path) -> None:
    """Its chunks grow without a trace in its folder."""
    folder, shelf = stopped(tmp_path), Shelf(tmp_path)
    record = folder / "session.json"
    record.write_bytes(record.read_bytes().replace(b'"stopped"', b'"recording"'))
    first = shelf.load(folder.name)
    assert first is not None and shelf.load(folder.name) is not first
