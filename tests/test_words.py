"""What the daemon's answers look like to people."""

from typing import Any

import pytest

from topside_daemon.words import session_text, status_text

SEGMENT = {"offset_ns": 5_002_657_000, "offset_sd_ns": 25_000, "drift_ppm": 40.025, "drift_sd_ppm": 0.45}
CLOCK = {"offset_ms": 5002.7, "offset_sd_ms": 0.1, "drift_ppm": 40.0, "drift_sd_ppm": 1.0, "bursts": 6}
WELL = {"state": "freerun", "detail": "", "storage": "", "dropped": 0, "events": 0}


def session(**said: object) -> dict[str, Any]:
    return {
        "mission": "reef-7",
        "state": "recording",
        "folder": "/dives/reef-7/session_1",
        "detail": "",
        "inwater_seq": 99,
        "inwater_durable_seq": 89,
        "inwater_missing": 0,
        "surface_seq": 99,
        "surface_durable_seq": 79,
        "surface_storage": "",
        "events": {},
        "report": None,
    } | said


def status(**said: object) -> dict[str, Any]:
    return {
        "session": session(),
        "pi": {"url": "http://pi:9150", "bus": "connected"},
        "inwater": WELL,
        "surface": {"state": "freerun", "detail": ""},
        "events": {},
        "inwater_value": "0.1",
        "surface_value": "0.2",
        "pair": None,
        "clock": CLOCK,
    } | said


def lines(text: str, about: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(about)]


def test_a_full_disk_is_said_to_be_the_pis() -> None:
    """The in-water sensor's storage and its drops are told, and that the disk is the Pi's."""
    text = status_text(status(inwater=WELL | {"storage": "disk full: free some space", "dropped": 12}))
    assert lines(text, "storage") == [
        "storage   the Pi's disk full: free some space; readings wait in memory there"
    ]
    assert lines(text, "dropped") == ["dropped   12 readings, on the Pi: its disk did not take them in time"]


def test_a_full_disk_is_said_to_be_the_topsides() -> None:
    """The surface recorder's trouble names the other disk; a reason that does not say disk is led by it."""
    text = status_text(status(session=session(surface_storage="no permission: let this user write there")))
    assert lines(text, "storage") == [
        "storage   the topside's disk: no permission: let this user write there; readings wait in memory here"
    ]


@pytest.mark.parametrize("inwater", [WELL, None])
def test_disks_that_do_their_work_are_not_spoken_of(inwater: dict[str, Any] | None) -> None:
    """Neither are one that nobody knows of, events that nobody counted, and sessions that are settled."""
    text = status_text(status(inwater=inwater))
    for about in ("storage", "dropped", "events", "in-water events", "surface events", "also unfinished"):
        assert not lines(text, about)


def test_the_events_of_either_stream_have_a_line_of_their_own() -> None:
    """What happened to the session, to the in-water record and to the surface record is kept apart."""
    streams = {"inwater": {"resumed": 1, "gap": 2}, "surface": {"disk_trouble": 1}}
    text = session_text(session(events={"pi_trouble": 3}, streams=streams))
    assert lines(text, "events") == ["events    pi trouble 3"]
    assert lines(text, "in-water events") == ["in-water events  gap 2, resumed"]
    assert lines(text, "surface events") == ["surface events  disk trouble"]


def test_a_stream_without_events_has_no_line() -> None:
    """What did not happen is not told."""
    text = session_text(session(streams={"inwater": {}, "surface": {"gap": 1}}))
    assert not lines(text, "in-water events")
    assert lines(text, "surface events") == ["surface events  gap"]


@pytest.mark.parametrize("current", [session(), None])
def test_earlier_sessions_that_are_not_settled_are_listed(current: dict[str, Any] | None) -> None:
    """One line each, with the reason where there is one, whether or not a session runs."""
    others = [
        {"folder": "reef-7/session_1", "state": "incomplete", "detail": "the Pi does not answer"},
        {"folder": "reef-8/session_2", "state": "stopping", "detail": ""},
    ]
    assert lines(status_text(status(session=current, unfinished=others)), "also unfinished") == [
        "also unfinished  reef-7/session_1: incomplete: the Pi does not answer",
        "also unfinished  reef-8/session_2: stopping",
    ]


@pytest.mark.parametrize(
    ("state", "worth"),
    [
        ("complete", "(final, as fused)"),
        ("partial", "(final, as fused)"),
        ("incomplete", "(so far, as fused)"),
    ],
)
def test_of_two_clocks_it_is_said_which_is_final(state: str, worth: str) -> None:
    """The clock of the report and the live one differ after a stop: each says what it is worth."""
    report = {"rows": 100, "paired": 99, "gaps": 0, "clock": [SEGMENT]}
    fused, live = lines(status_text(status(session=session(state=state, report=report))), "clock")
    assert fused.endswith(worth)
    assert live.endswith("(live, provisional)")
