"""What comes after a session has ended is taken in, and the session fused again."""

import json
from pathlib import Path
from typing import Any

from common.chunkstore import main as chunkstore
from common.recorder import PUBLISHED_MAX
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


def test_a_pi_that_has_lost_its_card_goes_on_with_the_session(tmp_path: Path) -> None:
    """In the middle of a session the Pi's records are gone: it goes on behind what was copied."""
    with Talker(tmp_path / "sensor", 20.0) as talker:
        pi = PiDaemon(tmp_path / "pi", serial=str(talker.link))
        with pi, TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{pi.http}") as topside:
            pi.wait_streaming()
            topside.post("/session/start", {"mission": "cards"})
            topside.wait_for(lambda: topside.session()["inwater_durable_seq"] >= 20)
            pi.kill()
            pi.data.rename(tmp_path / "card")
            pi.start()
            topside.wait_for(lambda: topside.session()["inwater_durable_seq"] > PUBLISHED_MAX + 40)
            said = topside.post("/session/stop")[1]
            assert said["state"] == "complete", said
            assert said["events"]["inwater_lost"] == 1
            (mirror,) = topside.data.glob("*/session_*/in-water_*")
            rows = recorded(mirror)
            seqs = [seq for seq, _ in rows]
            first = next(seq for seq in seqs if seq > PUBLISHED_MAX)
            before = [seq for seq in seqs if seq < first]
            assert before == list(range(first - PUBLISHED_MAX)) and len(before) > 20
            assert seqs == before + list(range(first, first + len(seqs) - len(before)))
            session_id = kept(topside)["session_id"]
            assert rows[len(before) :] == recorded(pi.data / session_id)
            assert chunkstore(["verify", str(pi.data / session_id)]) == 0
            assert fused_inwater(topside) == len(rows)
            epochs = json.loads((mirror / "session.json").read_text())["epochs"]
            assert [epoch["epoch"] for epoch in epochs] == [0, 1]


def test_damage_here_is_found_before_a_session_is_called_complete(tmp_path: Path) -> None:
    """A wrong byte in the copy is made good from the Pi; one in the surface record is said, by name."""
    config = tmp_path / "topside.toml"
    config.write_text("[recording]\nroll_interval_s = 1\n")
    with Talker(tmp_path / "inwater", 20.0) as inwater, Talker(tmp_path / "surface", 20.0) as surface:
        pi = PiDaemon(tmp_path / "pi", serial=str(inwater.link))
        flags = {"serial": str(surface.link), "pi": f"http://127.0.0.1:{pi.http}", "config": str(config)}
        with pi, TopsideDaemon(tmp_path / "topside", **flags) as topside:
            pi.wait_streaming()
            topside.wait_streaming()
            topside.post("/session/start", {"mission": "damage"})
            for role in ("in-water", "surface"):
                pattern = f"*/session_*/{role}_*/chunk_00000.csv"
                topside.wait_for(lambda pattern=pattern: any(topside.data.glob(pattern)))
                (path,) = topside.data.glob(pattern)
                path.write_bytes(path.read_bytes().replace(b"freerun", b"freerum", 1))
            said = topside.post("/session/stop")[1]
            assert said["state"] == "damaged" and "chunk_00000.csv" in said["detail"]
            assert said["events"]["mirror_refetch"] == 1 and said["events"]["surface_damaged"] >= 1
            (mirror,) = topside.data.glob("*/session_*/in-water_*")
            assert recorded(mirror) == recorded(pi.data / kept(topside)["session_id"])
