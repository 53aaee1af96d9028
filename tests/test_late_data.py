"""What comes after a session has ended is taken in, and the session fused again."""

import json
from pathlib import Path
from typing import Any

from tests.sim.rig import PiDaemon, TopsideDaemon
from tests.sim.talker import Talker
from topside_daemon.truth import recorded


def kept(topside: TopsideDaemon) -> dict[str, Any]:
    (path,) = topside.data.glob("*/session_*/session.json")
    return dict(json.loads(path.read_text()))


def fused_inwater(topside: TopsideDaemon) -> int:
    (path,) = topside.data.glob("*/session_*/unified_session.csv")
    return sum(1 for line in path.read_text().splitlines()[1:] if line.split(",")[1])


def test_a_session_without_its_record_is_completed_when_the_pi_has_it_after_all(tmp_path: Path) -> None:
    """A Pi that comes back with another card ends the session as partial; with its own, it is made whole."""
    with Talker(tmp_path / "sensor", 20.0) as talker:
        pi = PiDaemon(tmp_path / "pi", serial=str(talker.link))
        with pi, TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{pi.http}") as topside:
            pi.wait_streaming()
            topside.post("/session/start", {"mission": "cards"})
            topside.wait_for(lambda: topside.session()["inwater_seq"] >= 20)
            pi.kill()
            pi.data.rename(tmp_path / "card")
            pi.start()
            said = topside.post("/session/stop")[1]
            assert said["state"] == "partial" and "has lost this session" in said["detail"]
            before = fused_inwater(topside)
            assert topside.post("/session/stop")[0] == 400
            pi.kill()
            pi.data.rename(tmp_path / "other card")
            (tmp_path / "card").rename(pi.data)
            pi.start()
            topside.wait_for(lambda: kept(topside)["state"] == "complete")
            (mirror,) = topside.data.glob("*/session_*/in-water_*")
            rows = recorded(mirror)
            assert rows == recorded(pi.data / kept(topside)["session_id"])
            assert len(rows) == fused_inwater(topside) >= before
            topside.wait_for(lambda: json.loads((topside.data / "unfinished.json").read_text()) == [])
