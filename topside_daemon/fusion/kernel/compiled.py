"""The inner loops of kernel.c, called through ctypes. Method by method what `plain` does in numpy."""

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char, c_int64, c_void_p
from pathlib import Path

from topside_daemon.fusion.columns import (
    COURSE_BYTES,
    NAME_BYTES,
    STATUSES_MAX,
    Column,
    Cursor,
    Odd,
    Options,
    Pairing,
    Placed,
    Rows,
    Side,
    Tally,
    Totals,
    column,
    column_of,
)
from topside_daemon.fusion.kernel import KernelName
from topside_daemon.fusion.spill import Spill

OUT_BYTES = 1 << 20
TRAIL_BYTES = 1 << 18
SLOTS = 64  # readings in one window, to begin with


def _address(buffer: memoryview | bytearray | None) -> int | None:
    return ctypes.addressof(c_char.from_buffer(buffer)) if buffer else None


class _Side(ctypes.Structure):
    _fields_ = (
        ("count", c_int64),
        ("first", c_int64),
        ("time", c_void_p),
        ("seq", c_void_p),
        ("span", c_void_p),
        ("text", c_void_p),
        ("taken", c_void_p),
        ("text_from", c_int64),
    )

    @classmethod
    def of(cls, side: Side) -> "_Side":
        parts = (_address(one) for one in (side.time, side.seq, side.span, side.text, side.taken))
        return cls(len(side.time), side.first, *parts, side.text_from)


class _Clock(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("offset", "sd", "low", "high", "status", "names"))


class _Options(ctypes.Structure):
    _fields_ = tuple(
        (name, c_int64) for name in ("held", "percent", "dropout", "first", "last", "fresh", "stale")
    )


class _Totals(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("rows", "paired", "fresh", "alone", "gaps", "largest")),
        ("statuses", c_int64 * STATUSES_MAX),
    )


_FUNCTIONS = {
    "qs_begin": (None, []),
    "qs_scan": (None, [c_void_p, *[c_int64] * 6, *[c_void_p] * 5, c_int64, c_void_p, c_void_p]),
    "qs_place": (c_int64, [c_int64, *[c_void_p] * 3, c_int64, *[c_void_p] * 7]),
    "qs_tally": (c_int64, [c_int64, c_void_p, c_int64, c_int64, c_void_p]),
    "qs_ends": (None, [c_int64, c_void_p, c_void_p]),
    "qs_flags": (None, [c_int64, c_void_p, c_void_p]),
    "qs_shift": (None, [c_int64, c_void_p, c_int64, c_void_p]),
    "qs_outliers": (c_int64, [c_int64, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p]),
    "qs_match": (
        c_int64,
        [c_int64, c_void_p, c_int64, c_void_p, *[c_int64] * 3, *[c_void_p] * 3, c_int64, *[c_void_p] * 2],
    ),
    "qs_trace": (None, [c_int64, *[c_void_p] * 4]),
    "qs_weave": (
        None,
        [
            *(POINTER(one) for one in (_Side, _Clock, _Side, _Options)),
            *(c_int64, c_void_p, POINTER(_Totals), c_void_p, c_int64, c_void_p, c_void_p),
        ],
    ),
}


class Compiled:
    """The kernel from a shared library."""

    name: KernelName = "compiled"

    def __init__(self, library: Path) -> None:
        """Load it.

        Raises:
            OSError: it cannot be loaded.
        """
        self._library = ctypes.CDLL(str(library))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._library.qs_begin()

    def scan(
        self, text: bytearray, start: int, stop: int, base: int, ours: bool, check: bool, rows: Rows
    ) -> tuple[list[Odd], int, int]:
        columns = (_address(one) for one in (rows.at, rows.utc, rows.seq, rows.epoch, rows.span))
        found = column(5)
        self._library.qs_scan(
            *(_address(text), start, stop, base, ours, check, len(rows.at), *columns),
            *(len(rows.odd) // 4, _address(rows.odd), _address(found)),
        )
        count, odd, consumed, order, lines = found
        rows.filled(count, order)
        return [Odd(*rows.odd[n : n + 4]) for n in range(0, 4 * odd, 4)], consumed, lines

    def place(
        self,
        at: Column,
        utc: Column,
        moved: Column | None,
        courses: bytearray,
        placed: Placed,
        everything: bool,
    ) -> int:
        others = placed[1:] if everything else (None,) * 5
        return int(
            self._library.qs_place(
                *(len(at), *map(_address, (at, utc, moved)), len(courses) // COURSE_BYTES),
                *(_address(one) for one in (courses, placed.time, *others)),
            )
        )

    def tally(self, values: Column, tally: Tally) -> None:
        self._library.qs_tally(len(values), _address(values), 0, 0, _address(tally.buckets))

    def tally_intervals(self, values: Column, before: int, tally: Tally) -> int:
        return int(self._library.qs_tally(len(values), _address(values), 1, before, _address(tally.buckets)))

    def ends(self, values: Column) -> tuple[int, int]:
        found = column(2)
        self._library.qs_ends(len(values), _address(values), _address(found))
        return found[0], found[1]

    def flags(self, span: Column) -> list[int]:
        counts = column(8)
        self._library.qs_flags(len(span), _address(span), _address(counts))
        return counts.tolist()

    def shift(self, values: Column, by: int, into: Column) -> None:
        self._library.qs_shift(len(values), _address(values), by, _address(into))

    def outliers(self, values: Column, before: int, least: int, most: int) -> list[int]:
        found = column(len(values))
        count = self._library.qs_outliers(
            len(values), _address(values), before, least, most, len(found), _address(found)
        )
        return found[:count].tolist()

    def matcher(self, tolerance_ns: int, spill: Spill) -> "Matcher":
        return Matcher(self._library, tolerance_ns, spill)

    def loom(self, options: Options) -> "Loom":
        return Loom(self._library, options)


class Loom:
    """See `Kernel.loom`."""

    def __init__(self, library: ctypes.CDLL, options: Options) -> None:
        self._weave = library.qs_weave
        self._options = _Options(*options[:-1])
        self._names = bytearray(NAME_BYTES * STATUSES_MAX)
        for place, name in enumerate(options.statuses):
            entry = bytes([len(name)]) + name.encode("ascii")
            self._names[NAME_BYTES * place : NAME_BYTES * place + len(entry)] = entry
        self._out = bytearray(OUT_BYTES)

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
        clock = _Clock(*(_address(one) for one in (*placed[1:], self._names)))
        under, deck = _Side.of(inwater), _Side.of(surface)
        counts, place, done = _Totals(), column(3), column(2)
        place[0], place[1], place[2] = cursor.surface, cursor.partner, cursor.before_ns
        while True:
            self._weave(
                *(byref(under), byref(clock), byref(deck), byref(self._options), final, _address(place)),
                *(
                    byref(counts),
                    _address(tally.buckets),
                    len(self._out),
                    _address(self._out),
                    _address(done),
                ),
            )
            if not done[1]:
                break
            yield memoryview(self._out)[: done[1]]
        cursor.surface, cursor.partner, cursor.before_ns = place
        totals.add(counts)


class Matcher:
    """See `Kernel.matcher`."""

    def __init__(self, library: ctypes.CDLL, tolerance_ns: int, spill: Spill) -> None:
        self._library = library
        self._tolerance_ns = tolerance_ns
        self._spill = spill
        self._kept: list[tuple[int, int]] = []  # pieces of trail that are not decided: place and size
        self._slots, self._spare = column(2 * SLOTS), column(2 * SLOTS)
        self._state = column(2)  # where the window begins, number of slots
        self._state[1] = 1
        self._taken = 0
        self._trail = bytearray(TRAIL_BYTES)
        self.pairing = Pairing()

    @property
    def needs(self) -> int:
        """The first surface reading that may still get a partner."""
        return self._state[0]

    def push(self, times: Column, surface: Column, first: int) -> None:
        self.pairing.hold(self._taken + len(times), first + len(surface))
        found, done = column(6), 0
        while done < len(times):
            rest = times[done:]
            wanted = self._library.qs_match(
                *(len(rest), _address(rest), len(surface), _address(surface), first, self._tolerance_ns),
                *(len(self._slots) // 2, *map(_address, (self._slots, self._spare, self._state))),
                *(len(self._trail) // 4, _address(self._trail), _address(found)),
            )
            self._settle(*found)
            done += found[0]
            if wanted:
                self._widen(wanted)
            elif not found[0]:
                self._trail = bytearray(2 * len(self._trail))

    def _widen(self, wanted: int) -> None:
        before, self._slots, self._spare = self._slots, column(4 * wanted), column(4 * wanted)
        self._slots[: len(before)] = before

    def _settle(self, rows: int, words: int, sure_words: int, sure_rows: int, slot: int, low: int) -> None:
        """Mark what is decided, and keep the trail behind that."""
        sure_bytes = 4 * sure_words
        if sure_rows >= 0:
            self._trace(self._trail[:sure_bytes], slot, low, self._taken + sure_rows)
        if words > sure_words:
            rest = memoryview(self._trail)[sure_bytes : 4 * words]
            self._kept.append((self._spill.write(rest), len(rest)))
        self._taken += rows

    def _trace(self, newest: bytearray, slot: int, low: int, row: int) -> None:
        """Back along all that is undecided, from a slot of the last row of *newest*."""
        state = column_of([slot, low, row])
        for trail in (newest, *(self._spill.read(*piece) for piece in reversed(self._kept))):
            self._library.qs_trace(
                *(len(trail) // 4, _address(trail), _address(state)),
                *(_address(self.pairing.inwater), _address(self.pairing.surface)),
            )
        self._kept.clear()
        self._spill.clear()

    def finish(self) -> Pairing:
        count = self._state[1]
        alive = [slot for slot in range(count) if self._slots[2 * slot] >= 0]
        self._trace(bytearray(), alive[-1], self._state[0], self._taken)
        return self.pairing
