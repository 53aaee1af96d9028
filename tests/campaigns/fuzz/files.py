"""Session folders with damage in any of their files, fused by either kernel: nothing raises, nothing is
invented, and both write what the streaming fuser says."""

import traceback
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

from tests.campaigns.fuzz.outcome import Outcome
from tests.sim.cockpit import KINDS
from tests.sim.records import damage, drawn, rechunk
from tests.sim.table import check_table
from topside_daemon.fusion.folders import SessionError

MODES: tuple[dict[str, Any], ...] = (
    {},
    {"percent_of_surface": True, "dejitter": False},
    {"mode": "inwater", "fresh_s": 0.3, "stale_s": 3.0},
)
HARMS = 4


def fuse_rubbish(outcome: Outcome, seed: int, sessions: int, folder: Path) -> None:
    """So many sessions, each with some harm done to it."""
    rows = rejected = refused = 0
    for number in range(sessions):
        rng = Random(f"{seed} {number}")
        place = folder / "session"
        if rng.random() < 0.3:
            KINDS[rng.choice(sorted(KINDS))].write(place)
        else:
            drawn(rng).write(place)
            rechunk(place, rng)
        harms = [damage(place, rng) for _ in range(rng.randrange(HARMS))]
        try:
            report = check_table(place, rng, **rng.choice(MODES))
        except SessionError:
            refused += 1
        except Exception:  # noqa: BLE001  whatever it is, it must not have been
            outcome.fail(f"session {number} of seed {seed}, {harms}: {traceback.format_exc()}")
        else:
            rows, rejected = rows + report.rows, rejected + len(report.rejects)
        rmtree(place)
    outcome.say(
        f"{sessions} damaged sessions fused twice: {rows} rows, {rejected} lines rejected, {refused} refused"
    )
