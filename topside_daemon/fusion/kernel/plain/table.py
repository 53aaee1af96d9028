"""Rows become text, side by side in fields of one width."""

from collections.abc import Iterable, Iterator
from math import inf, isfinite
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from topside_daemon.fusion.columns import (
    LENGTH_MAX,
    MISSING,
    OFFSET_SHIFT,
    STATUSES_MAX,
    Column,
    Cursor,
    Options,
    Placed,
    Side,
    Tally,
    Totals,
)
from topside_daemon.fusion.kernel.plain.arrays import NS, ZERO, Bytes, Flags, Ints, ints, marked
from topside_daemon.fusion.kernel.plain.placing import count


class Loom:
    """See `Kernel.loom`. Rows are laid side by side in fields of one width, padded with zero bytes, which are
    taken out at the end."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._names = _texts([name.encode("ascii") for name in options.statuses])

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
        apart = np.abs(time[paired] - deck[partner[paired]])
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
        in_, su = i >= 0, j >= 0
        both = in_ & su
        deck_time = deck.time[j] if len(deck.time) else np.zeros(len(j), np.int64)
        under_time = under.time[i] if len(under.time) else np.zeros(len(i), np.int64)
        apart = np.where(both, under_time - deck_time, MISSING)
        offset, sd, low, high = (_chosen(one, i) for one in placed[1:5])
        status = np.frombuffer(placed.status, np.uint8)
        fields = [
            _utc(np.where(in_, under_time, deck_time)),
            under.columns(i),
            deck.columns(j),
            _COMMA,
            _only(_utc(deck_time), both),
            _COMMA,
            _signed(np.where(both, (apart + 500_000) // 1_000_000, MISSING)),
            _COMMA,
            _WORDS[plan.words],
            _COMMA,
            _signed(_numbers(under.seq, i)),
            _COMMA,
            _signed(_numbers(deck.seq, j)),
            _COMMA,
            under.labels(i),
            _COMMA,
            _milliseconds(offset),
            _COMMA,
            _milliseconds(sd),
            _COMMA,
            _milliseconds(apart),
            _COMMA,
            _only(self._names[status[i]] if len(status) else self._names[np.zeros(len(i), int)], in_),
            _COMMA,
            _milliseconds(low),
            _COMMA,
            _milliseconds(high),
        ]
        if self._options.percent:
            wanted = both & (plan.words == _FRESH) if self._options.held else both
            fields += [_COMMA, _percent(under, i, deck, j, wanted)]
        fields.append(_NEWLINE)
        rows = len(i)
        wide = [np.broadcast_to(one, (rows, one.shape[1])) for one in fields]
        return np.concatenate(wide, axis=1).tobytes().translate(None, b"\0")


TOGETHER = 4096  # rows that are laid side by side at once
_LATEST_NS = (1 << 63) - 1
_FRESH, _STALE, _MISSING, _NO_WORD = range(4)


def _texts(texts: Iterable[bytes]) -> Bytes:
    """One below the other, padded."""
    known = list(texts)
    width = max(map(len, known))
    return np.frombuffer(b"".join(one.ljust(width, b"\0") for one in known), np.uint8).reshape(
        len(known), width
    )


_WORDS = _texts([b"fresh", b"stale", b"missing", b""])
_COMMA, _NEWLINE = _texts([b","]), _texts([b"\n"])
_NOTHING = _texts([b",,,,,"])
_TWO = _texts(b"%02d" % n for n in range(100))
_THREE = _texts(b"%03d" % n for n in range(1000))
_ZONE = _texts([b"+00:00"])


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
        self._start = (span >> OFFSET_SHIFT) - side.text_from
        self._length = span & LENGTH_MAX
        room = np.zeros(int(self._length.max(initial=0)) + _LABEL, np.uint8)
        self._text = np.concatenate((np.frombuffer(side.text, np.uint8), room))
        millis = np.isin(self._text[self._start + 23], _ENDS)
        self._millis = millis
        self._stamp = np.where(millis, 24, 27)
        self._stamp += 5 * (self._text[self._start + self._stamp - 1] != ord("Z"))

    def text(self, row: int) -> bytes:
        start = self._start[row]
        return self._text[start : start + self._length[row]].tobytes()

    def columns(self, rows: Ints) -> Bytes:
        """ ",sensor_id,mode,value,TempC,Vin" of rows; where there is none, five empty columns."""
        there = rows >= 0
        if not there.any():
            return np.repeat(_NOTHING, len(rows), axis=0)
        start, length = (
            self._start[rows] + self._stamp[rows],
            np.where(there, self._length[rows] - self._stamp[rows], 0),
        )
        width = max(5, int(length.max()))
        found: Bytes = sliding_window_view(self._text, width)[start]
        found[np.arange(width) >= length[:, None]] = 0
        found[~there, :5] = _NOTHING
        return found

    def labels(self, rows: Ints) -> Bytes:
        """The rows' own stamps with microseconds, digit by digit as they were recorded."""
        there = rows >= 0
        if not there.any():
            return np.zeros((len(rows), 1), np.uint8)
        found = sliding_window_view(self._text, _LABEL)[self._start[rows]]
        found[self._millis[rows], 23:26] = ZERO
        found[:, 26:] = _ZONE
        return _only(found, there)


_LABEL = 32  # bytes of a stamp with microseconds
_ENDS = np.frombuffer(b"Z+", np.uint8)


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


def _chosen(values: Column, rows: Ints) -> Ints:
    known = ints(values)
    return np.where(rows >= 0, known[rows], MISSING) if len(known) else np.full(len(rows), MISSING)


def _numbers(seq: Ints, rows: Ints) -> Ints:
    found = np.where(rows >= 0, seq[rows], MISSING) if len(seq) else np.full(len(rows), MISSING)
    return np.where(found >= 0, found, MISSING)


def _only(field: Bytes, where: Flags) -> Bytes:
    return field * where[:, None]


def _utc(ns: Ints) -> Bytes:
    """As format_utc of common/rows.py."""
    second, rest = np.divmod(ns, NS)
    day, of_day = np.divmod(second, 86_400)
    days, which = np.unique(day, return_inverse=True)
    dates = _texts(b"%sT" % str(np.datetime64(one, "D")).encode("ascii") for one in days.tolist())
    colon, point = (np.full((len(ns), 1), ord(one), np.uint8) for one in ":.")
    hour, minute = of_day // 3600, of_day // 60 % 60
    micros = rest // 1000
    clock = [_TWO[hour], colon, _TWO[minute], colon, _TWO[of_day % 60], point]
    return np.concatenate(
        [
            dates[which],
            *clock,
            _THREE[micros // 1000],
            _THREE[micros % 1000],
            np.broadcast_to(_ZONE, (len(ns), 6)),
        ],
        axis=1,
    )


def _decimal(values: Ints) -> Bytes:
    """Whole numbers that are not negative."""
    width = -(-len(str(int(values.max(initial=0)))) // 3) * 3
    found = np.concatenate([_THREE[values // 10**power % 1000] for power in range(width - 3, -1, -3)], axis=1)
    for place in range(width - 1):
        found[values < 10 ** (width - 1 - place), place] = 0
    return found


def _signed(values: Ints) -> Bytes:
    """Whole numbers, nothing where they are missing."""
    known = values != MISSING
    shown = np.where(known, values, 0)
    minus = np.where(shown < 0, np.uint8(ord("-")), np.uint8(0))[:, None]
    return _only(np.concatenate([minus, _decimal(np.abs(shown))], axis=1), known)


def _milliseconds(ns: Ints) -> Bytes:
    """Milliseconds with three decimals, rounded half up; nothing where they are missing."""
    known = ns != MISSING
    us = (np.where(known, ns, 0) + 500) // 1000
    minus = np.where(us < 0, np.uint8(ord("-")), np.uint8(0))[:, None]
    whole, rest = np.divmod(np.abs(us), 1000)
    point = np.full((len(ns), 1), ord("."), np.uint8)
    return _only(np.concatenate([minus, _decimal(whole), point, _THREE[rest]], axis=1), known)


def _percent(under: _Columns, i: Ints, deck: _Columns, j: Ints, wanted: Flags) -> Bytes:
    texts = [b""] * len(i)
    for row in np.flatnonzero(wanted).tolist():
        texts[row] = percent_of(under.text(i[row]), deck.text(j[row]))
    return _texts(texts)


def percent_of(inwater: bytes, surface: bytes) -> bytes:
    """In-water as a percentage of surface light, from the texts of two rows; nothing where that is no
    number."""
    try:
        under, deck = (float(text.split(b",")[3]) for text in (inwater, surface))
        percent = 100 * under / deck if deck > 0 else inf
    except ValueError:
        return b""
    return b"%.6g" % percent if isfinite(percent) else b""
