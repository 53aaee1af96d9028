"""Rows become lines of the table."""

from collections.abc import Iterator
from math import inf, isfinite
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from topside_daemon.fusion.columns import (
    LENGTH_MAX,
    MISSING,
    OFFSET_SHIFT,
    STATUSES_MAX,
    Cursor,
    Options,
    Placed,
    Side,
    Tally,
    Totals,
)
from topside_daemon.fusion.kernel.plain.arrays import ZERO, Bytes, Ints, ints, marked, pieces
from topside_daemon.fusion.kernel.plain.page import Page, texts_of
from topside_daemon.fusion.kernel.plain.placing import count

Numbers = TypeVar("Numbers", Ints, NDArray[np.uint8])


class Loom:
    """See `Kernel.loom`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._names = [name.encode("ascii") for name in options.statuses]

    def weave(
        self,
        inwater: Side,
        placed: Placed,
        surface: Side,
        final: bool,
        cursor: Cursor,
        totals: Totals,
        tally: Tally,
    ) -> Iterator[memoryview]:
        under, deck = _Columns(inwater), _Columns(surface)
        if not len(under.time) and not final:
            return
        until = _LATEST_NS if final else under.time[-1]
        side: Literal["left", "right"] = "right" if self._options.held else "left"
        first = cursor.surface - surface.first
        end = max(first, int(np.searchsorted(deck.time, until, side)))
        behind = np.searchsorted(deck.time, under.time, side)
        if self._options.held:
            partner, words = self._last_before(under.time, deck.time, behind)
            alone: Ints = np.empty(0, np.int64)
        else:
            partner = _partners(inwater, surface, cursor)
            words = np.where(partner >= 0, _FRESH, _MISSING)
            alone = first + np.flatnonzero(~marked(surface.taken, cursor.surface, end - first))
        self._count(under.time, deck.time, behind, partner, words, cursor.before_ns, placed, totals, tally)
        totals.rows += len(alone)
        cursor.surface = surface.first + end
        cursor.before_ns = int(deck.time[end - 1]) if end > first else cursor.before_ns
        rows = _Plan.of(under.time, deck.time, partner, words, alone)
        for part in rows.parts(TOGETHER):
            yield memoryview(self._lines(part, under, placed, deck))

    def _last_before(self, time: Ints, deck: Ints, behind: Ints) -> tuple[Ints, Ints]:
        """The surface reading that each row holds, if it is not too old, and how old it is in a word."""
        none = np.full(len(time), -1)
        if not len(deck):
            return none, np.full(len(time), _MISSING)
        age = np.where(behind > 0, time - deck[behind - 1], _LATEST_NS)
        partner = np.where(age <= self._options.stale_ns, behind - 1, none)
        fresh = np.where(age <= self._options.fresh_ns, _FRESH, _STALE)
        return partner, np.where(partner >= 0, fresh, _MISSING)

    def _count(
        self,
        time: Ints,
        deck: Ints,
        behind: Ints,
        partner: Ints,
        words: Ints,
        before_ns: int,
        placed: Placed,
        totals: Totals,
        tally: Tally,
    ) -> None:
        paired = partner >= 0
        apart = time[paired]
        apart -= deck.take(partner[paired])
        np.abs(apart, out=apart)
        count(apart, tally)
        lone, next_ = time[~paired], behind[~paired]
        before = np.full(len(lone), before_ns)
        before[next_ > 0] = deck[next_[next_ > 0] - 1]
        silent = (before != MISSING) & (next_ < len(deck)) & (lone > before)
        silent[silent] = deck[next_[silent]] - before[silent] > self._options.dropout_ns
        inside = (lone >= self._options.first_ns) & (lone <= self._options.last_ns)
        totals.rows += len(time)
        totals.paired += int(paired.sum())
        totals.fresh += int((words[paired] == _FRESH).sum())
        totals.alone += len(lone)
        totals.gaps += int((inside & ~silent).sum())
        totals.largest_ns = max(totals.largest_ns, int(apart.max(initial=0)))
        statuses = np.bincount(np.frombuffer(placed.status, np.uint8)[: len(time)], minlength=STATUSES_MAX)
        totals.statuses = [one + more for one, more in zip(totals.statuses, statuses.tolist(), strict=True)]

    def _lines(self, plan: "_Plan", under: "_Columns", placed: Placed, deck: "_Columns") -> bytes:
        i, j = plan.inwater, plan.surface
        no_inwater, no_surface = np.flatnonzero(i < 0), np.flatnonzero(j < 0)
        lone = np.concatenate((no_inwater, no_surface))
        time, used = _taken(under.time, i), _taken(deck.time, j)
        apart = time - used
        apart[lone] = MISSING
        time[no_inwater] = used[no_inwater]
        used[no_surface] = time[no_surface]
        offset, sd, low, high = (_chosen(ints(one), i, no_inwater) for one in placed[1:5])
        page = Page(len(i))
        page.utc(time)
        page.add(under.columns(i, no_inwater), deck.columns(j, no_surface), _COMMA)
        page.utc(used, but=lone)
        page.same(b",")
        page.whole(_nearest_millisecond(apart))
        page.same(b",")
        page.named(_WORDS, plan.words)
        page.same(b",")
        page.whole(_numbers(under.seq, i, no_inwater))
        page.same(b",")
        page.whole(_numbers(deck.seq, j, no_surface))
        page.same(b",")
        page.add(*under.labels(i), but=no_inwater)
        for one in (offset, sd, apart):
            page.same(b",")
            page.milliseconds(one)
        page.same(b",")
        page.named(self._names, _taken(np.frombuffer(placed.status, np.uint8), i), but=no_inwater)
        for one in (low, high):
            page.same(b",")
            page.milliseconds(one)
        if self._options.percent:
            page.same(b",")
            page.add(self._percent(plan, under, deck, lone))
        page.same(b"\n")
        return page.text()

    def _percent(self, plan: "_Plan", under: "_Columns", deck: "_Columns", lone: Ints) -> Bytes:
        wanted = plan.words == _FRESH if self._options.held else np.ones(len(plan.words), np.bool_)
        wanted[lone] = False
        texts = [b""] * len(wanted)
        for row in np.flatnonzero(wanted).tolist():
            texts[row] = percent_of(under.text(plan.inwater[row]), deck.text(plan.surface[row]))
        return texts_of(texts)


TOGETHER = 4096  # rows that are laid side by side at once
_LATEST_NS = (1 << 63) - 1
_FRESH, _STALE, _MISSING, _NO_WORD = range(4)


_WORDS = (b"fresh", b"stale", b"missing", b"")
_COMMA, _ZONE = texts_of([b","]), texts_of([b"+00:00"])
_NOTHING = texts_of([b",,,,,"])


class _Plan(NamedTuple):
    """The rows of a table: index of the in-water and of the surface reading, -1 for none, and a word for the
    pair."""

    inwater: Ints
    surface: Ints
    words: Ints

    @classmethod
    def of(cls, time: Ints, deck: Ints, partner: Ints, words: Ints, alone: Ints) -> "_Plan":
        """Every in-water row, and between them the surface readings that stand alone; in-water first where
        times are equal."""
        rows = len(time) + len(alone)
        places = np.arange(len(time)) + np.searchsorted(deck[alone], time, "left")
        others = np.arange(len(alone)) + np.searchsorted(time, deck[alone], "right")
        plan = cls(*(np.full(rows, fill) for fill in (-1, -1, _NO_WORD)))
        plan.inwater[places], plan.surface[places], plan.words[places] = np.arange(len(time)), partner, words
        plan.surface[others] = alone
        return plan

    def parts(self, count: int) -> Iterator["_Plan"]:
        for first in range(0, len(self.inwater), count):
            yield _Plan(*(one[first : first + count] for one in self))


class _Columns:
    """One side as arrays, and its text."""

    def __init__(self, side: Side) -> None:
        self.time, self.seq = ints(side.time), ints(side.seq)
        span = ints(side.span)
        self._text = np.frombuffer(side.text, np.uint8)
        self._start = (span >> OFFSET_SHIFT) - side.text_from
        self._length = span & LENGTH_MAX
        ends = self._text.take(self._start + 23)
        self._millis = (ends == ord("Z")) | (ends == ord("+"))
        self._stamp = np.where(self._millis, 24, 27)
        self._stamp += 5 * (self._text.take(self._start + self._stamp - 1) != ord("Z"))

    def text(self, row: int) -> bytes:
        start = self._start[row]
        return self._text[start : start + self._length[row]].tobytes()

    def columns(self, rows: Ints, none: Ints) -> Bytes:
        """ ",sensor_id,mode,value,TempC,Vin" of rows; where there is *none*, five empty columns."""
        if len(none) == len(rows):
            return _NOTHING
        stamp = self._stamp.take(rows)
        length = self._length.take(rows) - stamp
        length[none] = 0
        width = max(5, int(length.max()))
        found = pieces(self._text, self._start.take(rows) + stamp, width)
        short = np.flatnonzero(length < width)
        found[short] *= np.arange(width) < length[short, None]
        found[none, :5] = _NOTHING
        return found

    def labels(self, rows: Ints) -> tuple[Bytes, ...]:
        """The rows' own stamps with microseconds, digit by digit as they were recorded."""
        if not len(self.time):
            return ()
        found = pieces(self._text, self._start.take(rows), _LABEL)
        found[self._millis.take(rows), 23:] = ZERO
        return found, _ZONE


_LABEL = 26  # bytes of a stamp with microseconds, without its zone


def _partners(inwater: Side, surface: Side, cursor: Cursor) -> Ints:
    """Index of the surface reading of each row, -1 for none: the first taken one belongs to the first taken
    row."""
    rows, first = len(inwater.time), cursor.partner - surface.first
    taken = marked(inwater.taken, inwater.first, rows)
    others = first + np.flatnonzero(marked(surface.taken, cursor.partner, len(surface.time) - first))
    found = np.full(rows, -1)
    found[taken] = others[: int(taken.sum())]
    cursor.partner = surface.first + int(found.max(initial=first - 1)) + 1
    return found


def _taken(values: Numbers, rows: Ints) -> Numbers:
    """Values of rows; where there is no row, any."""
    return values.take(rows) if len(values) else np.zeros(len(rows), values.dtype)


def _chosen(values: Ints, rows: Ints, none: Ints) -> Ints:
    """Values of rows; where there is none they are missing."""
    found = _taken(values, rows)
    found[none] = MISSING
    return found


def _numbers(seq: Ints, rows: Ints, none: Ints) -> Ints:
    found = _chosen(seq, rows, none)
    found[found < 0] = MISSING
    return found


def _nearest_millisecond(ns: Ints) -> Ints:
    return np.where(ns == MISSING, ns, (ns + 500_000) // 1_000_000)


def percent_of(inwater: bytes, surface: bytes) -> bytes:
    """In-water as a percentage of surface light, from the texts of two rows; nothing where that is no
    number."""
    try:
        under, deck = (float(text.split(b",")[3]) for text in (inwater, surface))
        percent = 100 * under / deck if deck > 0 else inf
    except ValueError:
        return b""
    return b"%.6g" % percent if isfinite(percent) else b""
