"""Rubbish at every door, shortly; and that the campaign sees what it is made to see."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.campaigns.fuzz import __main__ as fuzz
from tests.campaigns.fuzz.calls import SECRET, Attack
from tests.campaigns.fuzz.lines import Cable, Ear, Judge, storm
from tests.campaigns.fuzz.outcome import Outcome, Watch
from tests.sim.requests import written
from tests.sim.rig import PiDaemon
from tests.sim.rubbish import SerialRubbish, bend, is_true_line, line_text


@pytest.fixture
def outcome() -> Outcome:
    return Outcome("test")


def judged(*readings: tuple[str, str | None, str | None]) -> Judge:
    """A judge of three true lines and one altered, who is told of these readings."""
    judge = Judge()
    judge.wire(
        line_text(1) + b"\r\n" + line_text(2) + b"\r\n9.999999, 25.19, 7.494\r\n" + line_text(3) + b"\n"
    )
    for reading in readings:
        judge.reading(*reading)
    return judge


def parts(number: int) -> tuple[str, str, str]:
    value, temp_c, vin = line_text(number).decode().split(", ")
    return value, temp_c, vin


def test_a_judge_tells_true_altered_and_invented(outcome: Outcome) -> None:
    """Each wire line is at most one reading, in order; what kept the shape is counted apart."""
    judge = judged(parts(1), ("9.999999", "25.19", "7.494"), parts(3))
    assert (judge.said, judge.true, judge.altered, judge.invented) == (3, 2, 1, [])


@pytest.mark.parametrize(
    "readings",
    [
        [parts(4)],
        [parts(1), parts(1)],
        [parts(2), parts(1)],
        [(parts(1)[0], parts(1)[1], None)],
        [(parts(1)[0][1:], *parts(1)[1:])],
    ],
    ids=["never said", "twice", "out of order", "a column short", "a digit short"],
)
def test_an_invented_reading_is_seen(readings: list[tuple[str, str | None, str | None]]) -> None:
    """A reader that makes up, repeats, reorders or cuts is found out."""
    assert len(judged(*readings).invented) == 1


def test_a_deaf_and_a_credulous_reader_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the gate to stay shut after a storm, or to take any number for a reading, it would be said."""
    rng = Random(3)
    ear = Ear()
    monkeypatch.setattr(ear.sensor, "receive", lambda *_: None)
    assert "deaf" in storm(ear, rng, SerialRubbish(rng, 1))
    monkeypatch.setattr("common.qseries.Gate._proven", lambda _: True)
    ear = Ear()
    found = [storm(ear, rng, SerialRubbish(rng, number * 1000)) for number in range(1, 9)]
    assert any("never on the wire in this shape" in wrong for wrong in found)


def test_a_seed_repeats_the_storm() -> None:
    """The same seed gives the same bytes, another gives others."""
    first, again, other = (
        b"".join(SerialRubbish(rng := Random(seed), 1).storm(200)) + bend(rng, b"x") for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_cable_delivers_what_is_said(tmp_path: Path) -> None:
    """The judge's wire and the port's are the same bytes, however many."""
    rng = Random(5)
    with Cable(tmp_path / "tty") as cable, (tmp_path / "tty").open("rb", buffering=0) as port:
        for _ in range(20):
            said = b"".join(SerialRubbish(rng, 1).storm(5))[:1500] + b"\n"
            cable.say(said)
            heard = b""
            while len(heard) < len(said):
                heard += port.read(4096)
            assert heard == said
    assert is_true_line(line_text(123_456))


@pytest.mark.parametrize("door", ["lines", "bus", "calls"])
def test_real_daemons_bear_rubbish(door: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Real daemons that record: no server error, no traceback, no growth, not a reading lost or altered."""
    code = fuzz.main(["--door", door, "--seconds", "1", "--seed", "11"])
    assert code == 0, capsys.readouterr().out


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A server that answers whatever it is asked with the same bytes; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            caller, _ = server.accept()
            with caller:
                caller.recv(4096)
                caller.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("reply", "fails"),
    [
        (b"HTTP/1.1 422 Unprocessable Entity\r\n\r\n{}", False),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n{}", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Service Unavailable\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\n\r\n" + SECRET, True),
    ],
)
async def test_a_server_error_and_a_leak_are_seen(
    reply: bytes, fails: bool, tmp_path: Path, outcome: Outcome
) -> None:
    """Any 5xx, and any byte of a file outside of the sessions, is a failure that keeps its request."""
    daemon = PiDaemon(tmp_path / "pi")
    request = written("GET", "/status")
    with answering(reply) as daemon.http:
        await Attack(daemon, lambda _: True, tmp_path, outcome).one("planted 1", request)
    kept = [path.read_bytes() for path in tmp_path.glob("*.http")]
    assert (len(outcome.failures), kept) == ((1, [request]) if fails else (0, []))


def test_a_daemon_that_ends_or_has_a_traceback_is_seen(tmp_path: Path, outcome: Outcome) -> None:
    """The watch tells a traceback once, a log that floods, and an end."""
    with PiDaemon(tmp_path / "pi") as pi:
        watch = Watch(pi, outcome)
        assert watch.look("at first")
        with (tmp_path / "pi.log").open("a", encoding="utf-8") as log:
            log.write("Traceback (most recent call last): planted\n" + "x" * 1_000_000)
        assert [watch.look("after a traceback"), watch.look("later")] == [False, True]
        watch.conclude()
        pi.kill()
        assert not watch.look("after its end")
    assert [failure.split()[0:3] for failure in outcome.failures[:2]] == [
        ["after", "a", "traceback:"],
        ["the", "log", "of"],
    ]
    assert "ended with -9" in outcome.failures[2]
