"""The seed ladder under recordings of ours: exchanges lost, markers left."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from common.messages import Kind, Marker, Reading, to_json
from common.rows import encode_marker_row
from tests.sim import HEAD, MS, UTC_0, Machine, S, SimSession, draw_reboots, draw_session
from tests.sim.rows import Offset, offset_at, read, recorded
from topside_daemon.fusion.readers import Session

SYNC_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


def offset_of(session: Session, reading: Reading) -> Offset:
    return offset_at(session.ladder, reading.epoch, reading.mono_ns)


def own_session(drawn: SimSession, folder: Path, way_ns: int, kinds: str = "markers") -> Session:
    """A recording of ours without exchanges, its markers in files of their own or in the chunks alone."""
    under, deck = ([], []) if kinds == "nothing" else _markers(drawn, way_ns)
    drawn.write(folder)
    (folder / "exchanges.jsonl").unlink()
    for name, markers in (("in-water_11111111", under), ("surface_22222222", deck)):
        if kinds == "markers":
            (folder / name / "markers.jsonl").write_bytes(b"".join(to_json(one) + b"\n" for one in markers))
        rows = b"".join(encode_marker_row(one, "s") for one in markers)
        (folder / name / "chunk_00009.csv").write_bytes(HEAD + rows)
    return read(folder)


def _markers(drawn: SimSession, way_ns: int) -> tuple[list[Marker], list[Marker]]:
    """START, PERIODIC and STOP at instants of readings that both clocks are known at."""
    under: list[Marker] = []
    deck: list[Marker] = []
    count = min(len(drawn.inwater), len(drawn.surface))
    for n in range(9):
        here, there = drawn.inwater[n * (count - 1) // 8], drawn.surface[n * (count - 1) // 8]
        apart_ns = drawn.surface_truth_ns[there.seq] - drawn.inwater_truth_ns[here.seq]
        kind: Kind = "START" if n == 0 else "STOP" if n == 8 else "PERIODIC"
        sequence = n if kind == "PERIODIC" else 0
        deck.append(Marker(SYNC_ID, kind, sequence, there.epoch, there.mono_ns, UTC_0, -1))
        arrived_ns = here.mono_ns + apart_ns + way_ns
        under.append(Marker(SYNC_ID, kind, sequence, here.epoch, arrived_ns, UTC_0, -1, t1_ns=there.mono_ns))
    return under, deck


@pytest.mark.parametrize(("kinds", "pairs"), [("markers", 9), ("rows", 3)])
def test_our_markers_stand_in_for_lost_exchanges(tmp_path: Path, kinds: str, pairs: int) -> None:
    """From their files all pairs count, from the chunks those that have a name: drift and offset hold."""
    pi, topside = Machine("pi-a", 5 * S, 60.0), Machine("topside-a")
    drawn = draw_session(1, duration_s=600, pi=pi, topside=topside)
    session = own_session(drawn, tmp_path / "s", 3 * MS, kinds)
    [seed] = session.ladder.seeds
    assert (seed.rung, seed.epoch, seed.topside_epoch, seed.pairs_used) == ("linear", 0, 0, pairs)
    for reading in recorded(session.inwater):
        found, true_ns = offset_of(session, reading), drawn.inwater_truth_ns[reading.seq]
        truth_ns = reading.mono_ns - topside.mono_ns(true_ns)
        assert abs(found.offset_ns - truth_ns) < 6 * MS
        assert found.sd_ns is not None
        assert abs(found.offset_ns - truth_ns) < 1.96 * found.sd_ns
        assert found.high_ns is not None
        assert truth_ns <= found.high_ns


def test_no_fit_crosses_a_reboot(tmp_path: Path) -> None:
    """Each pair of boots has its own foothold, and no reading borrows another boot's."""
    drawn = draw_reboots(7)
    session = own_session(drawn, tmp_path / "s", 3 * MS)
    assert [(seed.epoch, seed.topside_epoch) for seed in session.ladder.seeds] == [(0, 0), (1, 0), (1, 1)]
    boots = {(0, 0): -31 * S, (1, 0): -135 * S, (1, 1): 95 * S}
    for reading in recorded(session.inwater):
        courses = session.ladder.courses(reading.epoch)
        [topside_epoch] = {
            one.topside_epoch for one, course in courses if course.since <= reading.mono_ns < course.until
        }
        assert topside_epoch is not None
        assert abs(offset_of(session, reading).offset_ns - boots[reading.epoch, topside_epoch]) < 60 * MS


def test_a_marker_that_was_tried_again_keeps_its_own_sending(tmp_path: Path) -> None:
    """The surface's START of a Pi that came late is a minute older; the Pi's own t1 makes the pair."""
    drawn = draw_session(2, duration_s=300)
    session = own_session(drawn, tmp_path / "s", 3 * MS)
    path = tmp_path / "s" / "surface_22222222" / "markers.jsonl"
    first, *rest = session.surface.marked[:9]
    early = replace(first, mono_ns=first.mono_ns - 60 * S)
    path.write_bytes(b"".join(to_json(one) + b"\n" for one in (early, *rest)))
    assert read(tmp_path / "s").ladder.seeds == session.ladder.seeds


def test_without_any_marker_an_epoch_has_no_foothold(tmp_path: Path) -> None:
    """Nothing is known of our clocks then, and nothing is said."""
    session = own_session(draw_session(3, duration_s=20), tmp_path / "s", 0, "nothing")
    assert session.ladder.seeds == []
    assert list(session.ladder.courses(0)) == []
