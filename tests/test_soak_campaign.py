"""A long recording, shortly; and that the campaign sees what it is made to see."""

from pathlib import Path

import pytest

from tests.campaigns import soak
from tests.campaigns.soak import Ledger, Look, compare
from tests.sim.disk import lay_down

MB = 1_000_000


def ledger(**last: int) -> Ledger:
    """Twelve looks, 10 MB of data apart, of a process that does not grow; the last three as said."""
    found = Ledger("planted")
    for hour in range(12):
        right = {"resident_kb": 40_000, "descriptors": 20, "written_bytes": hour * 11 * MB, "stored_bytes": 0}
        found.looks.append(Look(hour, hour * 10 * MB, **(right | (last if hour > 8 else {}))))
    return found


def test_a_short_recording_is_followed_and_nothing_grows(capsys: pytest.CaptureFixture[str]) -> None:
    """Real files, HTTP calls, bus and mirror, three simulated minutes: all readings, an equal copy."""
    code = soak.main(["--hours", "0.05"])
    printed = capsys.readouterr().out
    assert (code, "2700 readings, the copy is equal" in printed) == (0, True), printed


def test_a_process_that_does_not_grow_passes() -> None:
    """Steady memory and descriptors, and a tenth more written than recorded."""
    assert ledger().failures(2.0) == []


@pytest.mark.parametrize(
    ("grown", "said"),
    [
        ({"resident_kb": 45_100}, "memory has grown by 5100 kB"),
        ({"written_bytes": 140 * MB}, "1.27 bytes written per byte"),
    ],
)
def test_growth_is_seen(grown: dict[str, int], said: str) -> None:
    """Memory beyond 5 MB and bytes beyond a fifth are each a failure with its figure."""
    assert [said in failure for failure in ledger(**grown).failures(2.0)] == [True]


def test_a_descriptor_that_leaks_is_seen() -> None:
    """One more each hour is told from one that comes and goes."""
    steady, leaking = ledger(), ledger()
    steady.looks = [Look(n, n * MB, 0, 20 + n % 2, n * MB, 0) for n in range(12)]
    leaking.looks = [Look(n, n * MB, 0, 20 + n, n * MB, 0) for n in range(12)]
    assert steady.failures(2.0) == []
    assert "descriptors" in leaking.failures(2.0)[0]


@pytest.mark.parametrize(
    ("copy", "rows", "failures"),
    [(b"h\r\n1\r\n2\r\n", 2, 0), (b"h\r\n1\r\n3\r\n", 2, 1), (b"h\r\n1\r\n2\r\n", 3, 1)],
)
def test_a_copy_that_differs_and_a_row_that_is_missing_are_seen(
    copy: bytes, rows: int, failures: int, tmp_path: Path
) -> None:
    """The copy is held against the recording byte by byte, and its rows are counted."""
    here = lay_down(tmp_path / "here", {"chunk_00000.csv": b"h\r\n1\r\n2\r\n"})
    there = lay_down(tmp_path / "there", {"chunk_00000.csv": copy, "manifest.json": b"{}"})
    assert len(compare(here, there, rows)) == failures
