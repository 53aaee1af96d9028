"""The table as Parquet: the same rows as the CSV, typed, with units and provenance; replaced when it is
whole."""

import csv
import json
import sys
from datetime import datetime
from math import isinf
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from tests.sim import draw_session
from tests.sim.records import drawn
from tests.sim.table import kernels
from topside_daemon.fusion import parquet
from topside_daemon.fusion.command import main
from topside_daemon.fusion.fuse import fuse_session
from topside_daemon.fusion.tables import columns_of, file_name

pytestmark = pytest.mark.heavy

WORDS = ("sensor_id", "mode", "status")


def read_both(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, object]]]:
    with (folder / file_name("csv")).open(newline="") as file:
        lines = list(csv.DictReader(file))
    return lines, pq.read_table(folder / file_name("parquet")).to_pylist()


@pytest.mark.parametrize("seed", range(4))
def test_it_holds_the_rows_of_the_csv(seed: int, tmp_path: Path) -> None:
    """Each cell is the number, instant or word that its text is; empty is null."""
    drawn(Random(seed)).write(tmp_path / "s")
    fuse_session(tmp_path / "s", formats=["parquet", "csv"], percent_of_surface=True)
    lines, rows = read_both(tmp_path / "s")
    assert [list(row) for row in rows] == [columns_of(percent=True)] * len(lines)
    for line, row in zip(lines, rows, strict=True):
        for name, text in line.items():
            cell = row[name]
            if not text:
                assert cell is None
            elif name.endswith(WORDS):
                assert cell == text
            elif isinstance(cell, datetime):
                assert cell.isoformat(timespec="microseconds") == text
            else:
                assert cell == float(text)


def test_it_says_what_it_is(tmp_path: Path) -> None:
    """Units and meanings with the columns, and with the file how it was made: inputs with their hashes."""
    draw_session(3, duration_s=10).write(tmp_path / "s")
    report = fuse_session(tmp_path / "s", formats=["parquet"])
    schema = pq.read_schema(tmp_path / "s" / file_name("parquet"))
    assert schema.field("offset_ms").metadata[b"unit"] == b"ms"
    assert schema.field("inwater_TempC").metadata == {
        b"unit": "°C".encode(),
        b"meaning": b"in-water sensor: of the sensor",
    }
    assert all(field.metadata[b"meaning"] for field in schema)
    said = json.loads(pq.read_metadata(tmp_path / "s" / file_name("parquet")).metadata[b"qsensor-sync"])
    assert (said["version"], said["rows"], said["settings"]["mode"]) == (
        report.version,
        report.rows,
        "paired",
    )
    assert [one["sha256"] for one in said["inputs"]] == [one.sha256 for one in report.inputs]
    assert [one.name for one in report.outputs] == [file_name("parquet")]
    assert not (tmp_path / "s" / file_name("csv")).exists()


def test_its_bytes_depend_on_the_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the kernel, nor on how the lines were cut; its groups are of one size."""
    draw_session(4, duration_s=60).write(tmp_path / "s")
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)
    found = set()
    for piece_bytes in (1 << 22, 5000):
        monkeypatch.setattr(parquet, "PIECE_BYTES", piece_bytes)
        for kernel in kernels():
            fuse_session(tmp_path / "s", tmp_path / "out", ["parquet"], kernel)
            found.add((tmp_path / "out" / file_name("parquet")).read_bytes())
    assert len(found) == 1
    groups = pq.read_metadata(tmp_path / "out" / file_name("parquet"))
    assert {groups.row_group(n).num_rows for n in range(groups.num_row_groups - 1)} == {100}


def test_any_number_a_recorder_may_have_written_is_taken(tmp_path: Path) -> None:
    """Exponents, leading zeros, and more than a double holds."""
    values = ["1e-7", "007.50", "-0", "1E+3", "1e999", "0.1234567890123456789"]
    folder = tmp_path / "s" / "in-water_1"
    folder.mkdir(parents=True)
    rows = [f'2025-11-21T22:34:{n:02d}.000Z,s "x",freerun,{value},25.1,7.4' for n, value in enumerate(values)]
    (folder / "session.csv").write_text("timestamp,sensor_id,mode,value,TempC,Vin\n" + "\n".join(rows) + "\n")
    fuse_session(tmp_path / "s", formats=["csv", "parquet"])
    lines, cells = read_both(tmp_path / "s")
    assert [line["inwater_value"] for line in lines] == values
    assert [row["inwater_value"] for row in cells] == [float(value) for value in values]
    assert isinf(float(str(cells[4]["inwater_value"])))
    assert {row["inwater_sensor_id"] for row in cells} == {'s "x"'}


def test_without_its_library_the_cure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, usage, and nothing written."""
    draw_session(5, duration_s=2).write(tmp_path / "s")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "topside_daemon.fusion.parquet")
    assert main([str(tmp_path / "s"), "--format", "parquet"]) == 2
    assert capsys.readouterr().err == f"Parquet needs pyarrow: {sys.executable} -m pip install pyarrow\n"
    assert sorted(tmp_path.rglob("*")) == before
