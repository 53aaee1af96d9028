"""The campaign of wrong clocks, short; and that it finds a step that was not told and a time that is off."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.rows import format_utc, parse_utc
from tests.campaigns.agreement import p95_of, staged
from tests.campaigns.clocksteps import (
    ERROR_MS,
    RATE_HZ,
    Scene,
    errors_ms,
    faults_of,
    offset_faults,
    record,
    scenes,
    step_faults,
)
from tests.sim.rig import FAKETIME

ROWS = 90
SHORT = [scene for scene in scenes() if scene.name in ("Pi set by -1 h, +2 h, -1 h", "topside loses 100 ppm")]


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed (apt install faketime)")
@pytest.mark.parametrize("scene", SHORT, ids=lambda scene: str(scene.side))
def test_a_wrong_clock_spoils_nothing(tmp_path: Path, scene: Scene) -> None:
    """A clock set by hours, or 100 ppm slow, is told, and changes neither order nor fused times."""
    with staged(tmp_path, RATE_HZ) as stage:
        one = record(stage, scene, tmp_path, ROWS)
        assert faults_of(one, stage.pi.data) == []
    untold = replace(one, steps_s=[*one.steps_s, 3600.0])
    assert len(list(step_faults(untold))) == 2
    delay_table(one.session, 20_000_000)
    assert p95_of(errors_ms(one)[1]) > ERROR_MS


def delay_table(session: Path, late_ns: int) -> None:
    """Move every in-water time of the product, and no surface time."""
    table = session / "unified_session.csv"
    header, *rows = table.read_text(encoding="ascii").splitlines()
    inwater = header.split(",").index("inwater_value")

    def moved(row: str) -> str:
        time, rest = row.split(",", 1)
        return f"{format_utc(parse_utc(time) + late_ns)},{rest}" if row.split(",")[inwater] else row

    table.write_text("\n".join([header, *map(moved, rows)]) + "\n", encoding="ascii")


def test_a_clock_model_that_is_off_is_found() -> None:
    """An offset or a drift that the machines did not have, and a second segment, are faults."""
    right = {"offset_ns": 1_000, "drift_ppm": 0.5}
    assert list(offset_faults([right], 0)) == []
    assert len(list(offset_faults([right, right | {"offset_ns": 3_600_000_000_000}], 0))) == 2
    assert len(list(offset_faults([right], 100))) == 1
