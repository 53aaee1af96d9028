"""The demo as a newcomer runs it, shortened."""

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sim.rig import ROOT


def ended_well(code: int, said: str) -> bool:
    """It says that all is good, or that a busy machine has stamped a few readings too late to be paired."""
    paired = re.search(r"\((\d+\.\d+) %\)", said)
    return code == 0 or (code == 3 and paired is not None and float(paired[1]) >= 95)


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "topside_daemon", "demo", "--out", str(out), *more]


@pytest.mark.parametrize("averaging", ["12", "125"])
def test_the_demo_recovers_the_clock_and_loses_nothing(tmp_path: Path, averaging: str) -> None:
    """At 9 Hz and at 1 Hz: every reading once, all but a few of the overlap paired, and the truth is told."""
    out = tmp_path / "a folder"
    more = [
        "--seconds",
        "15",
        "--offset-s",
        "-3",
        "--drift-ppm",
        "-60",
        "--averaging",
        averaging,
        "--seed",
        "3",
    ]
    done = subprocess.run(
        command(out, *more), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended_well(done.returncode, done.stdout), done.stdout + done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line[:1].isalpha())
    assert "each exactly once" in said["recorded"]
    assert "true -60.000 ppm" in said["drift"]
    assert abs(float(said["drift"].split()[0]) + 60) < 15
    assert abs(float(said["offset"].split()[0]) + 3000) < 5
    (table,) = out.glob("**/unified_session.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    paired = [row for row in rows if row["inwater_seq"] and row["surface_seq"]]
    assert len(paired) > 10
    assert "% of surface" in done.stdout


def test_ctrl_c_ends_the_demo_in_order(tmp_path: Path) -> None:
    """Interrupted while recording it still stops the session, fuses it and tells how it went."""
    with subprocess.Popen(command(tmp_path / "out"), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "% of surface" in line:
                break
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert ended_well(process.returncode, rest), rest
    assert "stopping early" in rest and "each exactly once" in rest
