"""Rows in and out of an index, for tests that hold few of them."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from common.messages import Reading
from topside_daemon.fusion.columns import UNNUMBERED, column_of
from topside_daemon.fusion.courses import STATUSES, follow
from topside_daemon.fusion.index import Index
from topside_daemon.fusion.kernel import choose_kernel
from topside_daemon.fusion.ladder import Ladder
from topside_daemon.fusion.readers import Session, Stream, read_session
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.stamps import Stamps


class Offset(NamedTuple):
    """What a ladder says of one instant; sd_ns is None on the rung none, the offset then only steps."""

    rung: str
    offset_ns: int
    sd_ns: int | None
    low_ns: int | None
    high_ns: int | None


_opened: list[ExitStack] = []


def read(path: Path) -> Session:
    """A session, closed at the end of the test."""
    session = read_session(path)
    _opened.append(session.held)
    return session


def close_all() -> None:
    while _opened:
        _opened.pop().close()


def recorded(stream: Stream) -> list[Reading]:
    return list(stream.readings())


def stamps_of(labels_ns: Sequence[int]) -> Stamps:
    """Labels in the order of arrival."""
    held = ExitStack()
    index = Index(held.enter_context(closing(Spill(None))))
    _opened.append(held)
    if labels_ns:
        at = column_of(labels_ns)
        index.append(UNNUMBERED, True, at, at, at, at)
    return Stamps(index, choose_kernel())


def offset_at(ladder: Ladder, epoch: int, at_ns: int) -> Offset:
    """At an instant of an in-water epoch: its label where that is negative, else its mono_ns."""
    course = next(one for _, one in ladder.courses(epoch) if one.since <= at_ns < one.until)
    found = follow(course, at_ns, at_ns)
    offset_ns = -course.shift if found.offset_ns is None else found.offset_ns
    return Offset(STATUSES[course.status], offset_ns, found.sd_ns, found.low_ns, found.high_ns)
