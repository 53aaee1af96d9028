"""Missions of the first generation of the old Cockpit: all dives side by side in one folder."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.rows import OLD_HEADER
from tests.sim import UTC_0, S, old_row
from tests.sim.cockpit import KINDS, OldSession
from tests.sim.rows import read
from tests.test_many_sessions import TABLE, ended, fusion, tree
from topside_daemon.fusion.cockpit import METADATA_FILE
from topside_daemon.fusion.command import main
from topside_daemon.fusion.folders import partners
from topside_daemon.fusion.overlaps import pair_up
from topside_daemon.fusion.readers import read_session
from topside_daemon.fusion.sessions import find_sessions

REPORT = "unified_session.json"


def at(begin_s: float, kind: str = "constant") -> OldSession:
    """The same dive later."""
    old = KINDS[kind]
    markings = [
        replace(
            one,
            surface_s=None if one.surface_s is None else one.surface_s + begin_s,
            inwater_s=None if one.inwater_s is None else one.inwater_s + begin_s,
            value=str(int(one.value) + round(begin_s)),
        )
        for one in old.markings
    ]
    return replace(
        old,
        duration_s=old.duration_s + begin_s,
        inwater_from_s=old.inwater_from_s + begin_s,
        surface_from_s=old.surface_from_s + begin_s,
        markings=tuple(markings),
        time_sync=old.time_sync and replace(old.time_sync, at_s=old.time_sync.at_s + begin_s),
    )


def lay(old: OldSession, mission: Path, inwater: str = "", surface: str = "") -> None:
    """Add the recordings of a dive under these names, without those that have none; the metadata are those
    of the last one."""
    made = old.write(mission.parent / f"{mission.name} at work")
    mission.mkdir(exist_ok=True)
    sensors = {}
    for side, name, folder in (
        ("inWater", inwater, made / "in-water_5f1d"),
        ("surface", surface, made / "surface_77"),
    ):
        if name:
            folder.rename(mission / name)
            sensors[side] = {
                "sessionId": name.removeprefix("surface_"),
                "directory": rf"C:\qsensor\{mission.name}\{name}",
            }
    metadata = json.loads((made / METADATA_FILE).read_text())
    (mission / METADATA_FILE).write_text(json.dumps(metadata | {"sensors": sensors}))
    shutil.rmtree(made)


def table_of(old: OldSession, folder: Path) -> bytes:
    """What comes out where nothing else is in the mission."""
    lay(old, folder, "id", "surface_x")
    assert main([str(folder), "--json"]) == 0
    return (folder / TABLE).read_bytes()


def report_in(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / REPORT).read_text())
    return found


def input_names(folder: Path) -> list[str]:
    inputs = json.loads((folder / REPORT).read_text())["inputs"]
    return [one["name"] for one in inputs]


@pytest.fixture
def reef(tmp_path: Path) -> Path:
    """Two dives, the names of which are in another order than their times, and not in the same."""
    mission = tmp_path / "data" / "reef"
    mission.parent.mkdir()
    lay(at(0), mission, "b1", "surface_d2")
    lay(at(3600), mission, "a2", "surface_e1")
    return mission


def test_every_dive_of_a_mission_is_fused(reef: Path, tmp_path: Path) -> None:
    """As if it were alone, with the surface recording of its time, in its own place; the next time nothing
    is done again."""
    code, said, complained = ended(fusion(reef))
    assert (code, complained, said.splitlines()[-1]) == (0, "", "2 fused")
    assert sorted(one.relative_to(reef).as_posix() for one in reef.rglob("unified_session*")) == [
        f"{dive}/{name}" for dive in ("a2", "b1") for name in (TABLE, REPORT)
    ]
    assert (reef / "b1" / TABLE).read_bytes() == table_of(at(0), tmp_path / "first")
    assert (reef / "a2" / TABLE).read_bytes() == table_of(at(3600), tmp_path / "second")
    assert input_names(reef / "b1") == ["b1/session.csv", "surface_d2/session.csv"]
    before = {path: path.stat().st_mtime_ns for path in reef.rglob("*")}
    code, said, _ = ended(fusion(reef))
    assert (code, said.splitlines()[-1]) == (0, "0 fused, 2 unchanged")
    assert {path: path.stat().st_mtime_ns for path in reef.rglob("*")} == before


def test_dives_are_found_from_above_and_by_patterns(reef: Path, tmp_path: Path) -> None:
    """However they are meant each is fused once, in a folder of its own; no surface recording of one goes
    again by itself."""
    ways: list[tuple[object, ...]] = [
        (reef.parent, "--jobs", 2),
        (reef, reef / "b1", reef / "surface_e1"),
        (reef.parent / "*",),
        (*sorted(one for one in reef.iterdir() if one.is_dir()),),
        (reef / "*",),
    ]
    for number, way in enumerate(ways):
        out = tmp_path / f"out-{number}"
        code, said, complained = ended(fusion(*way, "--out", out, "--json"))
        shown = [json.loads(line) for line in said.splitlines()]
        assert (code, complained) == (0, "2 fused\n")
        assert [one["path"] for one in shown] == [str(reef / "a2"), str(reef / "b1")]
        assert [one["paired"] > 500 for one in shown] == [True, True]
        assert {Path(one["out"]).name for one in shown} == {"a2", "b1"}
        assert len(tree(out)) == 4
    assert not list(reef.rglob(TABLE))


def test_one_dive_is_fused_by_its_own_path(
    reef: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its surface recording too, from wherever the path begins; the other dive is left alone."""
    for begin, path in ((reef.parent, "reef/a2"), (reef, "a2"), (reef / "a2", ".")):
        monkeypatch.chdir(begin)
        assert main([path, "--force", "--json"]) == 0
        assert input_names(reef / "a2") == ["a2/session.csv", "surface_e1/session.csv", METADATA_FILE]
        assert main([path, "--out", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / TABLE).read_bytes() == (reef / "a2" / TABLE).read_bytes()
    assert not (reef / "b1" / TABLE).exists()


def test_a_surface_folder_is_fused_alone_if_it_alone_is_given(reef: Path) -> None:
    assert main([str(reef / "surface_d2")]) == 0
    assert input_names(reef / "surface_d2") == ["session.csv"]
    assert not (reef / "b1" / TABLE).exists()


def test_a_surface_record_of_another_name_goes_with_nobody(tmp_path: Path) -> None:
    """Its `session.json` says what it is."""
    mission = tmp_path / "reef"
    lay(at(0), mission, "a", "surface_1")
    lay(at(3600), mission, "b")
    lay(at(0), mission, "", "surface_2")
    (mission / "surface_2").rename(mission / "copied")
    (mission / "copied" / "session.json").write_text('{"role": "surface"}')
    found, _ = find_sessions([str(mission)])
    assert [one.place.name for one in found] == ["a", "b", "copied"]
    streams = [read(one.path) for one in found]
    assert [(one.inwater.name, one.surface.name) for one in streams] == [
        *(("a", "surface_1"), ("b", "")),
        ("", "copied"),
    ]


def test_what_has_no_partner_is_fused_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dive without surface recording, and a surface recording without dive, with a word on the former."""
    mission = tmp_path / "reef"
    lay(at(0), mission, "a", "surface_1")
    lay(at(3600), mission, "b")
    lay(at(7200), mission, "", "surface_0")
    assert main([str(mission)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "3 fused"
    assert [line.partition(" -> ")[0] for line in said.splitlines() if "->" in line] == [
        str(mission / name) for name in ("a", "b", "surface_0")
    ]
    assert said.count("note: no surface recording beside it is of its time") == 1
    assert input_names(mission / "b") == ["b/session.csv"]
    assert input_names(mission / "surface_0") == [
        "session.csv",
    ]


def test_a_dive_more_than_the_first(tmp_path: Path) -> None:
    """A second in-water recording alone beside one whole dive: both are fused, whichever is of which time."""
    for begin_s in (3600.0, -3600.0):
        mission = tmp_path / str(begin_s)
        lay(at(3600), mission, "a", "surface_1")
        lay(at(3600 + begin_s), mission, "b")
        found, _ = find_sessions([str(mission)])
        assert [one.place.name for one in found] == ["a", "b"]
        assert [bool(read(one.path).surface.name) for one in found] == [True, False]


def test_two_surface_recordings_alone_are_two_sessions(tmp_path: Path) -> None:
    mission = tmp_path / "reef"
    lay(at(0), mission, "", "surface_1")
    lay(at(0), mission, "", "surface_2")
    code, said, _ = ended(fusion(mission))
    assert (code, said.splitlines()[-1]) == (0, "2 fused")
    assert {path.parent.name for path in mission.rglob(TABLE)} == {"surface_1", "surface_2"}


def test_a_mission_of_one_dive_is_a_session(tmp_path: Path) -> None:
    """Its table lies in it, and a sensor's folder in it is that sensor alone."""
    mission = tmp_path / "reef"
    lay(at(0), mission, "a", "surface_1")
    assert [one.path for one in find_sessions([str(tmp_path)])[0]] == [mission]
    assert main([str(mission)]) == 0
    assert input_names(mission) == ["a/session.csv", "surface_1/session.csv", METADATA_FILE]
    assert not read(mission / "a").surface.name


def test_a_stamped_session_with_two_of_a_sensor_is_refused(tmp_path: Path) -> None:
    """It says which, and what can be done."""
    folder = KINDS["constant"].write(tmp_path / "session_2025-11-21T22-34-59-000Z")
    shutil.copytree(folder / "in-water_5f1d", folder / "in-water_6f1d")
    code, said, complained = ended(fusion(folder))
    assert (code, said) == (2, "")
    assert complained == (
        f"{folder}: several recordings of one sensor (in-water_5f1d, in-water_6f1d): "
        "give the folder of one to fuse it alone, or leave only one here\n"
    )


def test_metadata_are_of_the_dive_that_they_name(tmp_path: Path) -> None:
    """Of several: its offset is used for that one, and the other says that it has none."""
    mission = tmp_path / "reef"
    lay(at(0, "time-sync only"), mission, "a", "surface_1")
    lay(at(3600, "time-sync only"), mission, "b", "surface_2")
    assert main([str(mission), "--json"]) == 0
    rungs = [{row.split(b",")[-3] for row in rows_of(mission / dive)} for dive in ("a", "b")]
    assert rungs[1] - rungs[0] == {b"time-sync"}
    assert METADATA_FILE in input_names(mission / "b")
    assert METADATA_FILE not in input_names(mission / "a")
    assert report_in(mission / "b")["notes"] == []
    assert report_in(mission / "a")["notes"] == [
        f"{METADATA_FILE} not used: it does not say that it is about this dive"
    ]
    lay(at(0, "time-sync only"), tmp_path / "other", "a", "surface_1")
    shutil.copy(tmp_path / "other" / METADATA_FILE, mission)
    assert main([str(mission), "--json"]) == 0
    assert METADATA_FILE in input_names(mission / "a")


def rows_of(folder: Path) -> list[bytes]:
    return (folder / TABLE).read_bytes().splitlines()[1:]


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ('{"sensors": {"inWater": {"sessionId": "a"}, "surface": {"sessionId": "1"}}}', "a"),
        ('{"sensors": {"inWater": {"directory": "/x/reef/b"}, "surface": null}}', "b"),
        ('{"sensors": {"inWater": {"directory": "x\\\\b"}, "surface": {"directory": "surface_2/"}}}', "b"),
        ('{"sensors": {"inWater": {"sessionId": "c"}, "surface": {"sessionId": "2"}}}', "c"),
        ('{"sensors": {"inWater": {"sessionId": "a"}, "surface": {"sessionId": "2"}}}', ""),
        ('{"sensors": {"inWater": {"sessionId": "9", "directory": 3}, "surface": null}}', ""),
        ('{"sensors": {"inWater": null, "surface": {"sessionId": "1"}}}', ""),
        ('{"sensors": []}', ""),
        ("{torn", ""),
    ],
)
def test_metadata_name_their_dive_by_id_or_folder(text: str, used: str, tmp_path: Path) -> None:
    """On both sides, as far as the dive has them; in doubt they are of none."""
    mission = tmp_path / "reef"
    lay(at(0), mission, "a", "surface_1")
    lay(at(3600), mission, "b", "surface_2")
    lay(at(7200), mission, "c")
    (mission / METADATA_FILE).write_text(text)
    notes = {dive: read(mission / dive).notes for dive in "abc"}
    assert "".join(dive for dive in notes if not any(METADATA_FILE in one for one in notes[dive])) == used


def test_metadata_of_a_mission_without_surface_are_used(tmp_path: Path) -> None:
    """Where there are two in-water recordings and nothing else."""
    lay(at(0, "time-sync only"), tmp_path / "reef", "a")
    lay(at(3600, "time-sync only"), tmp_path / "reef", "b")
    inputs = [[one.name for one in read(tmp_path / "reef" / dive).inputs] for dive in "ab"]
    assert inputs == [["a/session.csv"], ["b/session.csv", METADATA_FILE]]


def span(folder: Path, begin_s: float, end_s: float, rows: int = 5) -> Path:
    """A recording that lasts so long."""
    folder.mkdir(parents=True)
    step = (end_s - begin_s) / max(1, rows - 1)
    lines = [old_row(round((begin_s + step * n) * S) + UTC_0, "0.5") for n in range(rows)]
    (folder / "session.csv").write_text("\n".join([OLD_HEADER, *lines, ""]))
    return folder


@pytest.mark.parametrize(
    ("inwater", "surface", "pairs"),
    [
        ([(0, 600), (1000, 1600)], [(1000, 1605), (-3, 606)], {0: 1, 1: 0}),
        ([(3, 600), (0, 1600)], [(0, 605), (1000, 1605)], {0: 0, 1: 1}),
        ([(3, 600), (0, 660)], [(0, 605)], {0: 0}),
        ([(0, 10), (15, 600)], [(0, 605)], {1: 0}),
        ([(0, 600)], [(-900, 100), (50, 700), (601, 900)], {0: 1}),
        ([(0, 600), (0, 600)], [(0, 600)], {0: 0}),
        ([(0, 600)], [(600, 900)], {}),
        ([(0, 600)], [(300, 300)], {}),
    ],
    ids=[
        "two dives",
        "begins with the rows of the one before",
        "likewise, and without surface",
        "a false start",
        "the most",
        "a copy",
        "one after the other",
        "a single row",
    ],
)
def test_recordings_of_one_time_are_partners(
    tmp_path: Path,
    inwater: Sequence[tuple[int, int]],
    surface: Sequence[tuple[int, int]],
    pairs: dict[int, int],
) -> None:
    """Each at most once, the best first."""
    under = [span(tmp_path / f"{number}", *ends) for number, ends in enumerate(inwater)]
    deck = [span(tmp_path / f"surface_{number}", *ends) for number, ends in enumerate(surface)]
    expected = {under[one]: deck[other] for one, other in pairs.items()}
    assert pair_up(under, deck, {}) == pair_up(under[::-1], deck[::-1], {}) == expected


def marked(folder: Path, begin_s: float, end_s: float, start: str) -> Path:
    """A recording with a START marker of this id."""
    path = span(folder, begin_s, end_s) / "session.csv"
    label = old_row(round(begin_s * S) + UTC_0, "").partition(",")[0]
    head, rows = path.read_text().split("\n", 1)
    path.write_text(f"{head}\n{label},surface,SYNC_START,{start},0,0\n{rows}")
    return folder


def test_markers_tell_more_than_clocks(tmp_path: Path) -> None:
    """The Pi's clock is an hour ahead, so that its first dive bears the time of the second on deck: who has
    the same START belongs together, who has another does not, and time tells of those without."""
    under = [
        marked(tmp_path / "a", 3600, 4200, "11"),
        marked(tmp_path / "b", 7200, 7800, "22.0"),
        span(tmp_path / "c", 0, 600),
    ]
    deck = [
        marked(tmp_path / "surface_1", 0, 600, "11"),
        marked(tmp_path / "surface_2", 3600, 4200, "22"),
        marked(tmp_path / "surface_3", 10, 600, "33"),
    ]
    assert pair_up(under, deck, {}) == dict(zip(under, deck, strict=True))
    assert pair_up(under[:1], deck[1:], {}) == {}
    assert pair_up(under[:1], deck[1:], {under[0]: deck[1]}) == {under[0]: deck[1]}


def test_metadata_tell_who_belongs_together(tmp_path: Path) -> None:
    """Whatever their clocks say, where no marker says otherwise."""
    for name, begin_s in (("a", 0), ("b", 3600), ("surface_1", 0), ("surface_2", 3600)):
        span(tmp_path / name, begin_s, begin_s + 600)
    sensors = {"inWater": {"sessionId": "b"}, "surface": {"directory": "surface_1"}}
    (tmp_path / METADATA_FILE).write_text(json.dumps({"sensors": sensors}))
    assert partners(tmp_path) == {tmp_path / "b": tmp_path / "surface_1"}
    (tmp_path / METADATA_FILE).unlink()
    assert partners(tmp_path)[tmp_path / "b"] == tmp_path / "surface_2"


ROWS = [old_row(UTC_0 + n * S, "0.5") for n in range(1, 100)]


@pytest.mark.parametrize(
    "files",
    [
        {"chunk_00000.csv": [OLD_HEADER, *ROWS[:50]], "chunk_00001.csv": [OLD_HEADER, *ROWS[50:]]},
        {"chunk_00000.csv": ROWS[:50], "chunk_00001.csv.tmp": ROWS[50:]},
        {"chunk_00000.csv": [OLD_HEADER], "chunk_00001.csv": ROWS, "chunk_00002.tmp": []},
        {"session.csv": ["\ufeff" + ROWS[0], *ROWS[1:], "2031-01-01"]},
        {"session.csv": ["timestamp,garbage", "2031-01-01,x", *ROWS, "2031-01-01T", "\0" * 4096]},
        {"session.csv": [ROWS[0].replace("freerun", "SYNC_START"), *ROWS[1:]]},
        {"session.csv": ROWS[:50], "chunk_00007.csv": ROWS[50:]},
        {"session.csv": ROWS * 40},
    ],
    ids=["chunks", "no header", "empty ones", "torn", "damaged", "marker", "both", "long"],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_ends_of_a_recording_are_found(tmp_path: Path, files: dict[str, list[str]], line_end: str) -> None:
    """In chunks or in one file, with either line end: the time from the first to the last row."""
    (tmp_path / "a").mkdir()
    for name, rows in files.items():
        (tmp_path / "a" / name).write_text(line_end.join([*rows, ""]), newline="")
    before, first = span(tmp_path / "surface_0", -100, 1), span(tmp_path / "surface_1", -100, 1.1)
    last, after = span(tmp_path / "surface_2", 98.9, 200), span(tmp_path / "surface_3", 99, 200)
    assert [pair_up([tmp_path / "a"], [one], {}) for one in (before, after)] == [{}, {}]
    assert [bool(pair_up([tmp_path / "a"], [one], {})) for one in (first, last)] == [True, True]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe,,,,\n" * 9, OLD_HEADER.encode(), b"x,y,z,1,,\n" * 20_000]
)
def test_a_recording_without_a_label_has_no_partner(tmp_path: Path, content: bytes) -> None:
    """And costs the others nothing."""
    mission = tmp_path / "reef"
    lay(at(0), mission, "a", "surface_1")
    (mission / "b").mkdir()
    (mission / "b" / "session.csv").write_bytes(content)
    with read_session(mission / "a") as whole, read_session(mission / "b") as alone:
        assert (whole.surface.name, alone.surface.name) == ("surface_1", "")


def test_chunks_with_the_line_ends_of_the_pi_are_fused_the_same(reef: Path) -> None:
    assert main([str(reef / "b1"), "--json"]) == 0
    table = (reef / "b1" / TABLE).read_bytes()
    combined = reef / "b1" / "session.csv"
    head, *rows = combined.read_text().splitlines()
    combined.unlink()
    for number, start in enumerate(range(0, len(rows), 100)):
        text = "\r\n".join([head, *rows[start : start + 100], ""])
        (reef / "b1" / f"chunk_{number:05d}.csv").write_text(text, newline="")
    assert main([str(reef / "b1"), "--json"]) == 0
    assert input_names(reef / "b1") == ["b1/chunk_*", "surface_d2/session.csv"]
    assert (reef / "b1" / TABLE).read_bytes() == table
