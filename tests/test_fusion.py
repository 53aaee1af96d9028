"""Offline fusion from folder to file: the product, its reproducibility, its report and its exit codes."""

import csv
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import pstdev
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from common.files import fsync_folder
from common.messages import Event, Reading, to_json
from common.rows import OLD_HEADER, format_utc, parse_utc
from tests.sim import MS, UTC_0, Machine, S, SimSession, draw_reboots, draw_session, old_row, write_stream
from tests.sim.cockpit import KINDS
from tests.sim.dives import Plan, draw_dive, fast_start
from tests.sim.table import format_row, kernels
from topside_daemon.fusion.command import main
from topside_daemon.fusion.fuse import fuse_session, last_report
from topside_daemon.fusion.readers import read_session
from topside_daemon.fusion.sorting import RUN_BLOCKS
from topside_daemon.fusion.stream import FusedRow
from topside_daemon.fusion.tables import COLUMNS, file_name
from topside_daemon.fusion.writers import Products

UNIFIED_FILE = file_name("csv")

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]

Row = dict[str, str]


def fused(folder: Path) -> list[Row]:
    with (folder / UNIFIED_FILE).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fuse_to_bytes(session: SimSession, folder: Path) -> bytes:
    fuse_session(session.write(folder))
    return (folder / UNIFIED_FILE).read_bytes()


def seqs(rows: list[Row], column: str) -> list[int]:
    return sorted(int(row[column]) for row in rows if row[column])


def errors_ns(rows: list[Row], truth_ns: dict[int, int]) -> list[int]:
    """Distance of every in-water row from its true instant, sorted."""
    return sorted(
        abs(parse_utc(row["timestamp"]) - UTC_0 - truth_ns[int(row["inwater_seq"])])
        for row in rows
        if row["inwater_seq"]
    )


@pytest.mark.parametrize("period_ns", [111 * MS, 1033_800_000], ids=["9 Hz", "1 Hz"])
@pytest.mark.parametrize("drift_ppm", [-100.0, 40.0, 100.0])
@pytest.mark.parametrize("ahead_ns", [5 * S, 10**18])
def test_a_session_comes_out_right(tmp_path: Path, period_ns: int, drift_ppm: float, ahead_ns: int) -> None:
    """99 % of the overlap pairs, every reading is there once, p95 is far below 5 ms and within its sd."""
    session = draw_session(1, period_ns=period_ns, pi=Machine("pi-a", ahead_ns, drift_ppm))
    report = fuse_session(session.write(tmp_path / "s"))
    rows = fused(tmp_path / "s")
    assert report.gaps <= 0.01 * len(session.inwater)
    assert report.paired >= 0.99 * (len(session.inwater) - 2)
    assert seqs(rows, "inwater_seq") == list(range(len(session.inwater)))
    assert seqs(rows, "surface_seq") == list(range(len(session.surface)))
    errors = errors_ns(rows, session.inwater_truth_ns)
    assert errors[len(errors) * 95 // 100] < MS // 2
    deviation_ns = float(rows[len(rows) // 2]["offset_sd_ms"]) * MS
    assert errors[len(errors) * 95 // 100] < 2.5 * deviation_ns


def test_the_columns_are_the_promised_ones(tmp_path: Path) -> None:
    """Old columns first, then ours; each field of a pair is what both rows and the clock say."""
    pi = Machine("pi-a", 5 * S, utc_error_ns=-3 * S)
    session = draw_session(2, duration_s=60, pi=pi, topside=Machine("topside-a"))
    fuse_session(session.write(tmp_path / "s"))
    text = (tmp_path / "s" / UNIFIED_FILE).read_text()
    assert text.partition("\n")[0] == ",".join(COLUMNS)
    assert "\r" not in text
    row = next(row for row in fused(tmp_path / "s") if row["inwater_seq"] == "100" and row["surface_seq"])
    reading = session.inwater[100]
    pair_ns = parse_utc(row["timestamp"]) - parse_utc(row["surface_timestamp_used"])
    assert row["inwater_value"] == reading.value
    assert row["inwater_timestamp_raw"] == format_utc(reading.utc_ns)
    assert row["surface_timestamp_used"] == format_utc(
        UTC_0 + session.surface_truth_ns[int(row["surface_seq"])]
    )
    assert float(row["offset_ms"]) == pytest.approx(5000, abs=1)
    assert float(row["pair_dt_ms"]) == pytest.approx(pair_ns / MS, abs=0.002)
    assert int(row["surface_age_ms"]) == round(float(row["pair_dt_ms"]))
    assert (row["surface_status"], row["clock_status"]) == ("fresh", "measured")
    assert all(len(row["timestamp"]) == 32 for row in fused(tmp_path / "s"))


def test_single_rows_leave_the_other_side_empty(tmp_path: Path) -> None:
    """A reading without a partner keeps its own fields; status tells a missing surface from no in-water."""
    session = draw_session(3, duration_s=30)
    session.surface = session.surface[:100]
    session.inwater = session.inwater[50:]
    fuse_session(session.write(tmp_path / "s"))
    rows = fused(tmp_path / "s")
    assert {row["surface_status"] for row in rows if not row["surface_seq"]} == {"missing"}
    assert {row["surface_status"] for row in rows if not row["inwater_seq"]} == {""}
    assert {row["surface_status"] for row in rows if row["inwater_seq"] and row["surface_seq"]} == {"fresh"}
    alone = next(row for row in rows if not row["inwater_seq"])
    assert not any(alone[name] for name in ("inwater_value", "offset_ms", "pair_dt_ms", "clock_status"))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_arrival_never_changes_a_byte(tmp_path_factory: pytest.TempPathFactory, rng: Random) -> None:
    """Rows and exchanges shuffled and repeated give the same file, and so does a second run."""
    session = draw_session(4, duration_s=40)
    folder = tmp_path_factory.mktemp("s")
    once = fuse_to_bytes(session, folder / "once")
    assert fuse_to_bytes(session.shuffled(rng), folder / "again") == once
    fuse_session(folder / "once")
    assert (folder / "once" / UNIFIED_FILE).read_bytes() == once


def test_hash_seeds_never_change_a_byte(tmp_path: Path) -> None:
    """Two interpreters that order their sets differently write the same file."""
    session = draw_session(5, duration_s=30).write(tmp_path / "s")
    written = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "topside_daemon.fusion", str(session), "--json"]
        subprocess.run(
            command, check=True, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        written.append((session / UNIFIED_FILE).read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("reboots", [False, True])
def test_streams_and_exchanges_are_enough(tmp_path: Path, reboots: bool) -> None:
    """Without any other file the same readings pair, at the same time to within microseconds."""
    session = draw_reboots(6) if reboots else draw_session(6, duration_s=60)
    fuse_session(session.write(tmp_path / "whole"))
    fuse_session(session.write(tmp_path / "bare", only_streams=True))
    whole, bare = fused(tmp_path / "whole"), fused(tmp_path / "bare")
    assert [(row["inwater_seq"], row["surface_seq"]) for row in whole] == [
        (row["inwater_seq"], row["surface_seq"]) for row in bare
    ]
    for one, other in zip(whole, bare, strict=True):
        assert abs(parse_utc(one["timestamp"]) - parse_utc(other["timestamp"])) < 5000


def test_restarts_of_either_machine_lose_nothing(tmp_path: Path) -> None:
    """Both reboots in one session: every reading once, on time, and paired between the outages."""
    session = draw_reboots(7)
    report = fuse_session(session.write(tmp_path / "s"))
    rows = fused(tmp_path / "s")
    assert seqs(rows, "inwater_seq") == list(range(len(session.inwater)))
    assert errors_ns(rows, session.inwater_truth_ns)[-1] < 2 * MS
    assert report.gaps <= 0.01 * len(session.inwater)
    assert len(report.clock) == 3


def test_a_dropout_is_not_a_gap(tmp_path: Path) -> None:
    """In-water readings while the surface sensor was away are single, and no gaps."""
    session = draw_session(8, duration_s=60)
    away = range(200, 260)
    session.surface = [one for one in session.surface if one.seq not in away]
    report = fuse_session(session.write(tmp_path / "s"))
    assert (report.surface.dropouts, report.surface.missing) == (1, len(away))
    assert (report.inwater.single or 0) >= len(away) - 2
    assert report.gaps <= 2


def test_a_session_without_exchanges_keeps_the_labels(tmp_path: Path) -> None:
    """No clock to correct by: the Pi's own labels, no offset, status none, nothing lost."""
    session = draw_session(9, duration_s=30, pi=Machine("pi-a", 9 * S))
    session.exchanges = []
    fuse_session(session.write(tmp_path / "s"))
    rows = [row for row in fused(tmp_path / "s") if row["inwater_seq"]]
    assert {(row["clock_status"], row["offset_ms"], row["offset_sd_ms"]) for row in rows} == {
        ("none", "", "")
    }
    assert all(row["timestamp"] == row["inwater_timestamp_raw"] for row in rows)
    assert len(rows) == len(session.inwater)


def test_an_old_cockpit_folder_is_fused(tmp_path: Path) -> None:
    """Six columns, ms and us labels, markers: digits stay, no numbers are made up, all readings come out."""
    for name, phase_ms in (("in-water_5f1d", 0), ("surface_77", 300)):
        lines = [old_row(UTC_0 + k * 1034 * MS + phase_ms * MS, f"0.01{k + 100}") for k in range(60)]
        (tmp_path / name).mkdir()
        head = "timestamp,sensor_id,mode,value,TempC,Vin"
        (tmp_path / name / "session.csv").write_text("\n".join([head, *lines, ""]).replace("+00:00", "Z"))
    report = fuse_session(tmp_path)
    rows = fused(tmp_path)
    assert (report.paired, report.gaps, len(rows)) == (60, 0, 60)
    assert {(row["inwater_seq"], row["surface_seq"], row["clock_status"]) for row in rows} == {
        ("", "", "none")
    }
    assert rows[7]["inwater_value"] == rows[7]["surface_value"] == "0.01107"
    assert {row["pair_dt_ms"] for row in rows} == {"-300.000"}


def test_a_tolerance_can_be_given(tmp_path: Path) -> None:
    """No pair is further apart than --tolerance-ms; 0 pairs only equal instants."""
    folder = draw_session(10, duration_s=60).write(tmp_path / "s")
    assert main([str(folder), "--tolerance-ms", "20", "--json"]) == 0
    distances = [abs(float(row["pair_dt_ms"])) for row in fused(folder) if row["pair_dt_ms"]]
    assert distances == [] or max(distances) <= 20
    assert fuse_session(folder, tolerance_ms=0).paired == 0


def test_json_and_text_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both reports carry the counts that the file holds."""
    folder = draw_session(11, duration_s=60, pi=Machine("pi-a", 5 * S, 40.0)).write(tmp_path / "s")
    assert main([str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    rows = fused(folder)
    paired = sum(bool(row["pair_dt_ms"]) for row in rows)
    assert (report["rows"], report["paired"]) == (len(rows), paired)
    assert f"rows {len(rows)}: {paired} paired" in text
    assert abs(report["clock"][0]["drift_ppm"] - 40) < 3 * report["clock"][0]["drift_sd_ppm"]
    assert f"{report['clock'][0]['end']['drift_ppm']:.3f} ± " in text


def test_exit_codes_say_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3 for a rejected row or a session that cannot be fused, with the others done; 2 for bad usage."""
    good = draw_session(12, duration_s=10).write(tmp_path / "good")
    hurt = draw_session(13, duration_s=10).write(tmp_path / "hurt")
    with (hurt / "in-water_11111111" / "chunk_00000.csv").open("ab") as file:
        file.write(b"not a row\r\n")
    assert main([str(good)]) == 0
    assert main([str(hurt)]) == 3
    assert "rejected in-water_11111111/chunk_00000.csv:" in capsys.readouterr().out
    assert main([str(tmp_path / "absent"), str(good), "--out", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "out" / "good" / UNIFIED_FILE).read_bytes() == (good / UNIFIED_FILE).read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main([str(good), "--tolerance-ms", "-1"])


def test_an_output_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    """A write that fails half-way leaves the old files, and nothing beside them."""
    for content in (b"one\n", b"another\n" * 3_000_000):
        with Products(tmp_path, "seal") as products:
            products.add(UNIFIED_FILE).write(content)
            products.seal(b"all of it")
    assert (tmp_path / UNIFIED_FILE).read_bytes() == content
    with pytest.raises(KeyError), Products(tmp_path, "seal") as products:
        products.add(UNIFIED_FILE).write(b"half a file\n")
        raise KeyError
    assert (tmp_path / UNIFIED_FILE).read_bytes() == content
    assert {entry.name for entry in tmp_path.iterdir()} == {UNIFIED_FILE, "seal"}


def test_what_is_no_longer_whole_does_not_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short between the renames: the new table has no seal, not that of the one before."""
    with Products(tmp_path, "seal") as products:
        products.add(UNIFIED_FILE).write(b"old\n")
        products.seal(b"{}")
    replace, done = Path.replace, list[Path]()

    def killed(self: Path, target: Path) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), Products(tmp_path, "seal") as products:
        products.add(UNIFIED_FILE).write(b"new\n")
        products.seal(b"{}")
    assert (tmp_path / UNIFIED_FILE).read_bytes() == b"new\n"
    assert {entry.name for entry in tmp_path.iterdir()} == {UNIFIED_FILE}


def test_who_makes_the_same_next_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary files are there as soon as the seal of the one before has its place."""
    sync, begun = fsync_folder, list[Products]()

    def slow(folder: Path) -> None:
        sync(folder)
        if (folder / "seal").exists() and not begun:
            begun.append(Products(folder, "seal"))
            begun[0].__enter__()
            begun[0].add(UNIFIED_FILE).write(b"second\n")

    monkeypatch.setattr("topside_daemon.fusion.writers.fsync_folder", slow)
    with Products(tmp_path, "seal") as products:
        products.add(UNIFIED_FILE).write(b"first\n")
        products.seal(b"{}")
    begun[0].seal(b"{}")
    begun[0].__exit__(None, None, None)
    assert (tmp_path / UNIFIED_FILE).read_bytes() == b"second\n"
    assert {entry.name for entry in tmp_path.iterdir()} == {UNIFIED_FILE, "seal"}


def test_rows_of_one_label_stay_in_the_order_of_arrival(tmp_path: Path) -> None:
    """Also across the runs that are sorted by themselves, where one row that is late has them all sorted."""

    def write(twice: int) -> None:
        at_ns = [(n - (n == twice)) * S // 15 - (n == 10) * S // 10 for n in range(80_000)]
        rows = [old_row(at, f"{n}.5") for n, at in enumerate(at_ns)]
        (tmp_path / "session.csv").write_text("\n".join([OLD_HEADER, *rows]) + "\n")

    write(twice=-1)
    with read_session(tmp_path) as session:
        boundary = [block.first for block in session.inwater.index.blocks()][RUN_BLOCKS]
    write(twice=boundary)
    for kernel in kernels():
        fuse_session(tmp_path, kernel=kernel)
        told = [float(row["inwater_value"]) for row in fused(tmp_path)]
        assert told[boundary - 2 : boundary + 2] == [n + 0.5 for n in range(boundary - 2, boundary + 2)]


def test_what_the_wall_clock_did_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each machine, from the events of its stream; the rest of them is no part of a fusion."""
    folder = draw_session(3, duration_s=5).write(tmp_path / "s")
    events = folder / "in-water_11111111" / "events.jsonl"
    step = Event("clock_step", 1, UTC_0, "the wall clock was set by +3600.000000 s")
    events.write_bytes(to_json(step) + b"\n" + to_json(Event("gap", 2, UTC_0, "no reading")) + b"\n")
    assert main([str(folder)]) == 0
    assert f"{format_utc(UTC_0)[:19]} the wall clock was set by +3600.000000 s" in capsys.readouterr().out
    with events.open("ab") as file:
        file.write(to_json(Event("resumed", 3, UTC_0, "")) + b"\n")
    report = last_report(folder)
    assert report is not None and report.inwater.clock_events == [step]


def test_polled_readings_among_others_have_no_pace(tmp_path: Path) -> None:
    session = draw_session(3, duration_s=30)
    session.inwater[:] = [
        structs.replace(one, mode="polled" if one.seq == 100 else "freerun") for one in session.inwater
    ]
    report = fuse_session(session.write(tmp_path / "s"), dejitter=True)
    assert report.inwater.dejitter is not None
    assert [why for why in report.inwater.dejitter.left if "polled" in why]


@pytest.mark.parametrize("setting", [{"tolerance_ms": -1.0}, {"tolerance_ms": float("nan")}, {"mode": "any"}])
def test_a_setting_out_of_range_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    folder = draw_session(3, duration_s=1).write(tmp_path / "s")
    with pytest.raises(msgspec.ValidationError):
        fuse_session(folder, **setting)
    assert not (folder / UNIFIED_FILE).exists()


@given(st.integers(-(10**18), 10**18))
def test_milliseconds_are_exact_decimals(offset_ns: int) -> None:
    """Three decimals, rounded to the nearest microsecond, however large the offset."""
    row = FusedRow(UTC_0, Reading(0, 0, 0, UTC_0, "s", "m", "1"), None, offset_ns, 0, None, "held", "missing")
    text = format_row(row).split(",")[17]
    assert abs(int(text.replace(".", "")) * 1000 - offset_ns) <= 500
    assert len(text.partition(".")[2]) == 3


def test_a_pi_folder_alone_is_fused(tmp_path: Path) -> None:
    """In-water only: each reading one row, in the order of time."""
    write_stream(tmp_path / "5f1d", draw_session(14, duration_s=20).inwater)
    report = fuse_session(tmp_path / "5f1d")
    rows = fused(tmp_path / "5f1d")
    assert (report.paired, report.surface.rows, len(rows)) == (0, 0, report.inwater.rows)
    assert all(one["timestamp"] <= other["timestamp"] for one, other in pairwise(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_session_is_fused_whole_and_labelled(kind: str, tmp_path: Path) -> None:
    """Every reading is in one row, in order; each in-water row says on which rung it stands, and the report
    why and how well."""
    old = KINDS[kind]
    report = fuse_session(old.write(tmp_path / "old"))
    rows = fused(tmp_path / "old")
    inwater = [row for row in rows if row["inwater_value"]]
    assert len(inwater) == len(old.inwater_true_ns())
    assert sum(bool(row["surface_value"]) for row in rows) == len(old.surface_true_ns())
    assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
    assert {row["clock_status"] for row in inwater} == {seed.rung for seed in report.seeds}
    assert all(seed.reason for seed in report.seeds)
    known = [row for row in inwater if row["clock_status"] != "none"]
    assert all(float(row["offset_sd_ms"]) > 0 for row in known)
    assert kind == "nothing" or known
    assert report.clock == []


def test_light_is_older_than_its_stamp(tmp_path: Path) -> None:
    """Half the averaging and the first byte are taken off where they were recorded, or what a user says."""
    folder = draw_session(15, duration_s=20).write(tmp_path / "s")
    plain = instants_ns(folder)
    (folder / "in-water_11111111" / "session.json").write_text(
        json.dumps({"sensor": {"config": {"averaging": 125, "adc_rate_hz": 125}, "baud": 9600}})
    )
    moved, given = instants_ns(folder), instants_ns(folder, inwater_latency_ms=100.0)
    assert {round((plain[seq] - moved[seq]) / MS) for seq in plain} == {501}
    assert {plain[seq] - given[seq] for seq in plain} == {100 * MS}
    assert fuse_session(folder).inwater.latency.averaging_ns == S // 2


def instants_ns(folder: Path, **otherwise: Any) -> dict[str, int]:
    """When each in-water reading was, fused with these settings."""
    fuse_session(folder, **otherwise)
    return {row["inwater_seq"]: parse_utc(row["timestamp"]) for row in fused(folder) if row["inwater_seq"]}


def test_jitter_of_arrival_is_taken_off_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--dejitter puts readings at their sensor's own pace; raw stamps and offsets stay as they are."""
    session = draw_session(16, duration_s=600)
    rng = Random(16)
    session.inwater[:] = [
        structs.replace(one, mode="freerun", mono_ns=one.mono_ns + round(rng.uniform(0, 15 * MS)))
        for one in session.inwater
    ]
    folder = session.write(tmp_path / "s")
    truth = {seq: UTC_0 + at_ns for seq, at_ns in session.inwater_truth_ns.items()}

    def spread_ns() -> float:
        errors = [
            parse_utc(row["timestamp"]) - truth[int(row["inwater_seq"])]
            for row in fused(folder)
            if row["inwater_seq"]
        ]
        return pstdev(errors)

    assert main([str(folder)]) == 0
    before_ns = spread_ns()
    assert main([str(folder), "--dejitter"]) == 0
    assert spread_ns() < before_ns / 3
    assert "of jitter taken off" in capsys.readouterr().out


def test_a_session_is_fused_again_as_it_was_to_be(tmp_path: Path) -> None:
    """Settings kept in session.json hold without any option, and give way to one."""
    folder = draw_session(17, duration_s=20).write(tmp_path / "s")
    plain = instants_ns(folder)
    record = json.loads((folder / "session.json").read_text())
    (folder / "session.json").write_text(json.dumps(record | {"fusion": {"inwater_latency_ms": 40.0}}))
    kept, given = instants_ns(folder), instants_ns(folder, inwater_latency_ms=0.0)
    assert {plain[seq] - kept[seq] for seq in plain} == {40 * MS}
    assert given == plain


def test_the_proof_stays_with_the_table(tmp_path: Path) -> None:
    """The report is beside every table; what the session itself says of one stays as it is."""
    folder = draw_session(18, duration_s=20).write(tmp_path / "s")
    (folder / "sync_metadata.json").write_text('{"mission": "m"}')
    assert main([str(folder), "--latency-ms", "40,0", "--out", str(tmp_path / "out")]) == 0
    beside = json.loads((tmp_path / "out" / "unified_session.json").read_text())
    assert beside["settings"]["inwater_latency_ms"] == 40
    assert main([str(folder), "--latency-ms", ",7"]) == 0
    assert (folder / "sync_metadata.json").read_text() == '{"mission": "m"}'
    assert json.loads((folder / "unified_session.json").read_text())["settings"]["surface_latency_ms"] == 7


def test_one_option_leaves_the_others_as_recorded(tmp_path: Path) -> None:
    """--tolerance-ms does not undo the session's own latency, and --no-dejitter its dejittering."""
    folder = draw_session(19, duration_s=20).write(tmp_path / "s")
    record = json.loads((folder / "session.json").read_text())
    kept = {"inwater_latency_ms": 500.0, "dejitter": True}
    (folder / "session.json").write_text(json.dumps(record | {"fusion": kept}))
    assert main([str(folder), "--tolerance-ms", "60"]) == 0
    settings = json.loads((folder / "unified_session.json").read_text())["settings"]
    assert (settings["tolerance_ms"], settings["inwater_latency_ms"], settings["dejitter"]) == (60, 500, True)
    assert main([str(folder), "--no-dejitter"]) == 0
    assert not json.loads((folder / "unified_session.json").read_text())["settings"]["dejitter"]


def test_a_session_whose_stamps_lie_is_flagged(tmp_path: Path) -> None:
    """One exchange in five corrupted: the report says that intervals may not hold; of an honest one not."""
    schedule = fast_start(600)
    honest = draw_dive(3, Plan(duration_s=600, bursts_s=schedule)).record()
    lying = draw_dive(3, Plan(duration_s=600, bursts_s=schedule, corrupted=0.2)).record()
    told = [fuse_session(one.write(tmp_path / name)) for name, one in (("h", honest), ("l", lying))]
    assert [note for note in told[0].notes if "stamps lie" in note] == []
    assert [note for note in told[1].notes if "stamps lie" in note] != []
