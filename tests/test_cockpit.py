"""What only the old recorders wrote: marker rows, and the metadata beside them."""

from pathlib import Path

import pytest

from common.rows import OLD_HEADER, parse_utc
from tests.sim import MS, old_row
from tests.sim.rows import offset_at, read, recorded
from topside_daemon.fusion.cockpit import METADATA_FILE

FIRST_NS = parse_utc("2025-11-03T20:12:41.625928+00:00")
BANNER = [old_row(FIRST_NS - 4000 * MS + n * 300 * MS, "1.0", "", "") for n in range(5)]
RECORDED = [old_row(FIRST_NS + n * 1034 * MS, f"0.0101{n}3") for n in range(7)]


def write_old(folder: Path, rows: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "session.csv").write_text("\n".join([OLD_HEADER, *rows, ""]))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("SYNC_START,305441741,0,0", ("1234abcd", "START", 0)),
        ("SYNC_STOP,305441741.0,0.0,0.0", ("1234abcd", "STOP", 0)),
        ("SYNC_PERIODIC,-193281787,0,0", ("f47ac100", "PERIODIC", 5)),
        ("SYNC_PERIODIC,4101685509.0,,", ("f47ac100", "PERIODIC", 5)),
        ("SYNC_START,one,0,0", None),
        ("SYNC_OTHER,1,0,0", None),
    ],
)
def test_old_markers_keep_their_name_time_and_place(
    tmp_path: Path, row: str, name: tuple[str, str, int] | None
) -> None:
    """An id is a number modulo 2^32 with or without a point, a PERIODIC's sequence its lowest byte; a
    marker whose name means nothing is still no light."""
    label = "2025-11-03T20:12:43.9Z"
    write_old(tmp_path, [*BANNER, *RECORDED[:3], f"{label},x,{row}", *RECORDED[3:]])
    stream = read(tmp_path).inwater
    assert ([marker.key for marker in stream.marked], stream.markers) == ([name] if name else [], 1)
    assert [(marker.utc_ns, marker.after_seq) for marker in stream.marked] == [(parse_utc(label), 2)] * bool(
        name
    )


def write_metadata(folder: Path, text: str) -> tuple[list[str], str]:
    """Notes, and the rung of an old session with this metadata and neither marker."""
    write_old(folder / "in-water_1", RECORDED)
    write_old(folder / "surface_1", RECORDED)
    (folder / METADATA_FILE).write_text(text)
    session = read(folder)
    return session.notes, session.ladder.seeds[0].rung


@pytest.mark.parametrize(
    ("text", "notes", "rung"),
    [
        ('{"timeSync": {"inWater": {"offsetMs": 250, "uncertaintyMs": 6}}}', 0, "time-sync"),
        ('{"timeSync": {"inWater": {"offsetMs": 2.5, "measuredAt": "yesterday"}}}', 0, "time-sync"),
        ('{"timeSync": {"inWater": {"offsetMs": null, "method": "unsynced"}}}', 0, "none"),
        ('{"timeSync": {"inWater": {"offsetMs": true, "uncertaintyMs": []}}}', 1, "none"),
        ('{"timeSync": {"inWater": {"offsetMs": 1e300, "uncertaintyMs": 1}}}', 1, "none"),
        ('{"timeSync": {"inWater": {"offsetMs": 7e13, "uncertaintyMs": 1}}}', 1, "none"),
        ('{"timeSync": {"inWater": {"offsetMs": 250, "uncertaintyMs": 1e15}}}', 1, "none"),
        ('{"timeSync": {"inWater": {"offsetMs": 250, "method": "unsynced"}}}', 1, "none"),
        ('{"timeSync": {"inWater": {"offsetMs": 250, "error": "high_rtt"}}}', 1, "none"),
        ('{"timeSync": {"inWater": {"offsetMs": 3600000, "uncertaintyMs": 6}}}', 0, "none"),
        ('{"timeSync": [], "markers": {}}', 0, "none"),
        ('{"timeSync": {"inWa', 1, "none"),
        ("[1]", 1, "none"),
    ],
)
def test_metadata_costs_only_its_rung(tmp_path: Path, text: str, notes: int, rung: str) -> None:
    """Whatever is missing, damaged or absurd in sync_metadata.json, the rows are read; what is dropped is
    noted, or complained of where only the rows show that it is wrong."""
    found, stood_on = write_metadata(tmp_path, text)
    assert (len(found), stood_on) == (notes, rung)


def test_markers_whose_rows_are_lost_are_taken_from_the_metadata(tmp_path: Path) -> None:
    """Only what was measured on both sides counts; the synthetic half of a pair does not."""
    times = '"inWaterTimestamp": "2025-11-03T20:12:42.755Z", "surfaceTimestamp": "2025-11-03T20:12:42.5Z"'
    start = f'{{"syncId": "305441741", "type": "START", "quality": "measured", {times}}}'
    stop = f'{{"syncId": "305441741", "type": "STOP", "quality": "synthetic", {times}}}'
    broken = '{"syncId": 3, "type": 4, "quality": "measured", "inWaterTimestamp": 5}'
    assert write_metadata(tmp_path, f'{{"markers": [{start}, {stop}, {broken}, 7]}}') == ([], "constant")
    [marker] = read(tmp_path).inwater.marked
    assert (marker.key, marker.after_seq) == (("1234abcd", "START", 0), 1)


def test_a_surface_sensor_with_a_clock_of_its_own_has_its_offset_taken_off(tmp_path: Path) -> None:
    """Both handshakes are against the topside machine; the streams differ by their difference."""
    sides = (
        '"inWater": {"offsetMs": 250, "uncertaintyMs": 6}, "surface": {"offsetMs": 100, "uncertaintyMs": 4}'
    )
    write_metadata(tmp_path, f'{{"timeSync": {{{sides}}}}}')
    session = read(tmp_path)
    first = recorded(session.inwater)[0]
    assert offset_at(session.ladder, first.epoch, first.utc_ns).offset_ns == 150 * MS
