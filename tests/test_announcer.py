"""What the announcer tells the log: all that happens to a stream, once."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.announcer import Announcer
from common.bus import INWATER, Publisher
from common.files import read_lines
from common.messages import Event
from common.recorder import Recorder
from tests.sim.clocks import SimClock
from tests.sim.rig import Daemon, PiDaemon, TopsideDaemon
from tests.sim.streams import at_work, new_record
from tests.sim.talker import Talker


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[Talker]:
    with Talker(tmp_path / "sensor", rate_hz=20) as talker:
        yield talker


async def test_what_a_recorder_notes_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An event of the record is one line of the log, with the stream, the kind and the detail."""
    caplog.set_level(logging.INFO, "common.announcer")
    publisher, clock = Publisher("tcp://127.0.0.1:0"), SimClock()
    announcer = Announcer(publisher, INWATER, clock)
    announcer.recorder = await Recorder.create(tmp_path / "stream", new_record(), clock, announcer)
    async with at_work(announcer.recorder) as recorder:
        recorder.note("disk_trouble", "disk full: free some space")
        await recorder.stop()
    publisher.close()
    assert caplog.messages == ["inwater disk_trouble: disk full: free some space"]
    assert announcer.events == {"disk_trouble": 1}


def check_log(daemon: Daemon, stream: str, folder: Path) -> None:
    """What the second run has recorded is in its log, once; so is what the first said without a recording."""
    first, _, second = daemon.log.partition(f"{stream} resumed: ")
    assert first.count("port_opened") == 1
    events = [f"{event.kind}: {event.detail}" for event in read_lines(folder / "events.jsonl", Event)]
    resumed = next(n for n, event in enumerate(events) if event.startswith("resumed: "))
    recorded = Counter(events[resumed + 1 :])
    assert any(event.startswith("gap: ") for event in recorded)
    said = second.splitlines()
    assert {event: sum(line.endswith(event) for line in said) for event in recorded} == recorded
    assert {
        event: sum(line.endswith(f" {stream} {event}") for line in said) for event in recorded
    } == recorded


def test_the_pis_log_has_every_event_once(tmp_path: Path, talker: Talker) -> None:
    """What the driver says and what the recorder says, in and between recordings and after a kill."""
    with PiDaemon(tmp_path / "pi", serial=str(talker.link)) as pi:
        pi.wait_streaming()
        session = pi.post("/record/start", {"mission": "test"})[1]["session_id"]
        folder = pi.data / session
        pi.wait_for(lambda: pi.get(f"/record/status?session_id={session}")[1]["rows"] > 3)
        pi.kill()
        pi.start()
        pi.wait_for(lambda: b'"gap"' in (folder / "events.jsonl").read_bytes())
        pi.post("/record/stop", {"session_id": session})
        check_log(pi, "inwater", folder)


def test_the_topsides_log_has_every_surface_event_once(tmp_path: Path, talker: Talker) -> None:
    """The same for the surface sensor."""
    with TopsideDaemon(tmp_path / "topside", serial=str(talker.link)) as topside:
        topside.wait_streaming()
        session = Path(topside.post("/session/start", {"mission": "test"})[1]["folder"])
        topside.wait_for(lambda: topside.session()["surface_seq"] > 3)
        topside.kill()
        topside.start()
        (folder,) = session.glob("surface_*")
        topside.wait_for(lambda: b'"gap"' in (folder / "events.jsonl").read_bytes())
        topside.post("/session/stop")
        check_log(topside, "surface", folder)
