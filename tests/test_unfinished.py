"""The list of unfinished recordings: it may name one too many, never one too few."""

from pathlib import Path

import pytest

from common.unfinished import FILE, Unfinished


def test_it_outlives_the_process_in_order(tmp_path: Path) -> None:
    """What was added and not removed is there for the next process, oldest first."""
    first = Unfinished(tmp_path, list)
    for name in ("b", "a", "c", "a"):
        first.add(name)
    first.remove("b")
    first.remove("nothing")

    def never() -> list[str]:
        raise AssertionError("the archive need not be looked at")

    assert Unfinished(tmp_path, never).names() == ["a", "c"]


@pytest.mark.parametrize("content", [None, b"", b'["half', b'{"a": 1}', b"\0" * 20])
def test_without_it_everything_is_looked_at_once(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged list is found again in the folders, and kept."""
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    looks: list[int] = []

    def look() -> list[str]:
        looks.append(1)
        return ["z", "y"]

    unfinished = Unfinished(tmp_path, look)
    unfinished.add("x")
    assert unfinished.names() == Unfinished(tmp_path, look).names() == ["y", "z", "x"]
    assert len(looks) == 1
