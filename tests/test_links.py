"""Link memories on a real disk, and through whole sessions of both daemons."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import machine_id
from tests.sim.rig import PiDaemon, TopsideDaemon
from tests.sim.talker import Talker
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.links import PAIRS, Links

NOW_NS = 1_780_000_000_000_000_000
MEMORY = LinkMemory(drift_ppm=-17.25, delay_floor_ns={"udp": 280_000}, http_bias_ns=-215_000, utc_ns=NOW_NS)


def test_what_was_remembered_is_recalled(tmp_path: Path) -> None:
    """By another process, for this pair of machines and no other."""
    assert Links(tmp_path).recall("pi", "deck") is None
    assert Links(tmp_path).remember("pi", "deck", MEMORY, NOW_NS)
    assert Links(tmp_path).recall("pi", "deck") == MEMORY
    assert Links(tmp_path).recall("pi", "other") is None
    assert Links(tmp_path).recall("deck", "pi") is None


def test_a_session_that_saw_less_does_not_forget_the_rest(tmp_path: Path) -> None:
    """Floors by transport and the bias stay from the last session that saw them."""
    links = Links(tmp_path)
    links.remember("pi", "deck", MEMORY, NOW_NS)
    links.remember("pi", "deck", LinkMemory(-16.0, {"http": 1_100_000}, None, NOW_NS + 1), NOW_NS + 1)
    floors = {"udp": 280_000, "http": 1_100_000}
    assert links.recall("pi", "deck") == LinkMemory(-16.0, floors, -215_000, NOW_NS + 1)


def test_an_old_session_settled_late_does_not_undo_a_newer_one(tmp_path: Path) -> None:
    """The newest evidence stays, unless a wrong clock had dated it into the future."""
    links, older = Links(tmp_path), LinkMemory(5.0, utc_ns=NOW_NS - 1)
    links.remember("pi", "deck", MEMORY, NOW_NS)
    assert not links.remember("pi", "deck", older, NOW_NS)
    assert links.recall("pi", "deck") == MEMORY
    assert links.remember("pi", "deck", older, NOW_NS - 1)
    known = links.recall("pi", "deck")
    assert known is not None and known.drift_ppm == 5.0


def test_many_machines(tmp_path: Path) -> None:
    """Pairs do not disturb each other, and the oldest go when there are too many."""
    many = [{"pi": str(n), "topside": "deck", "memory": {"drift_ppm": n / 100}} for n in range(PAIRS)]
    (tmp_path / "links.json").write_text(json.dumps(many))
    links = Links(tmp_path)
    links.remember("1", "deck", MEMORY, NOW_NS)
    links.remember("new", "deck", MEMORY, NOW_NS)
    assert links.recall("0", "deck") is None
    assert links.recall("1", "deck") == links.recall("new", "deck") == MEMORY
    assert links.recall("2", "deck") == LinkMemory(0.02)
    assert len(json.loads((tmp_path / "links.json").read_text())) == PAIRS


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: json.dumps(text).encode()))
def test_a_damaged_file_costs_only_the_memory(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Any bytes are recalled as nothing, and the next session is remembered."""
    folder = tmp_path_factory.mktemp("links")
    (folder / "links.json").write_bytes(content)
    links = Links(folder)
    assert links.recall("pi", "deck") is None
    assert links.remember("pi", "deck", MEMORY, NOW_NS)
    assert links.recall("pi", "deck") == MEMORY


def test_a_drift_that_cannot_be_is_no_memory(tmp_path: Path) -> None:
    """A number that no pair of crystals has is left out."""
    pair = {"pi": "pi", "topside": "deck", "memory": {"drift_ppm": 1e9}}
    (tmp_path / "links.json").write_text(json.dumps([pair]))
    assert Links(tmp_path).recall("pi", "deck") is None


def test_a_folder_that_refuses_costs_only_the_memory(tmp_path: Path) -> None:
    """Neither reading nor writing raises where the disk says no."""
    (tmp_path / "links.json").mkdir()
    links = Links(tmp_path)
    assert links.recall("pi", "deck") is None
    assert not links.remember("pi", "deck", MEMORY, NOW_NS)


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[PiDaemon]:
    with Talker(tmp_path / "inwater", 20) as talker, PiDaemon(tmp_path / "pi", serial=str(talker.link)) as pi:
        pi.wait_streaming()
        yield pi


def of(pi: PiDaemon, tmp_path: Path) -> TopsideDaemon:
    """A daemon with this Pi and no surface sensor, not started yet."""
    topside = TopsideDaemon(tmp_path / "topside", pi=f"http://127.0.0.1:{pi.http}")
    topside.data.mkdir()
    return topside


def have(topside: TopsideDaemon, readings: int) -> Callable[[], bool]:
    return lambda: bool(topside.session()["inwater_seq"] >= readings - 1)


def stop(topside: TopsideDaemon) -> tuple[str, Any]:
    """How the session ended, and the memory it says it had begun with."""
    said = topside.post("/session/stop")[1]
    return said["state"], json.loads((Path(said["folder"]) / "session.json").read_text())["link"]


def test_a_session_begins_with_what_is_known_of_the_link(tmp_path: Path, pi: PiDaemon) -> None:
    """Read at the start, never changed after; and what the session has shown is there for the next one."""
    machine, topside = machine_id(), of(pi, tmp_path)
    assert machine is not None and machine == pi.get("/version")[1]["machine_id"]
    links = Links(topside.data)
    known = LinkMemory(drift_ppm=0.5, delay_floor_ns={"udp": 40_000, "other": 7}, http_bias_ns=11, utc_ns=5)
    links.remember(machine, machine, known, 5)
    with topside:
        topside.post("/session/start")
        topside.wait_for(have(topside, 20))
        links.remember(machine, machine, LinkMemory(drift_ppm=20.0, utc_ns=6), 6)
        topside.kill()
        topside.start()
        topside.wait_for(have(topside, 240))  # twelve seconds, in which the drift is measured
        assert stop(topside) == ("complete", msgspec.to_builtins(known))
    learned = links.recall(machine, machine)
    assert learned is not None and learned.utc_ns > 10**18
    assert abs(learned.drift_ppm) < 10
    assert 0 < learned.delay_floor_ns["udp"] < 5_000_000 and learned.delay_floor_ns["other"] == 7


def test_a_damaged_link_memory_costs_no_start(tmp_path: Path, pi: PiDaemon) -> None:
    """A session begins without what cannot be read, says so, and is recorded as always."""
    topside = of(pi, tmp_path)
    (topside.data / "links.json").write_bytes(b'[{"pi": 1}]')
    with topside:
        assert topside.post("/session/start")[0] == 200
        assert "link_memory_lost" in topside.log
        topside.wait_for(have(topside, 5))
        assert stop(topside) == ("complete", None)
