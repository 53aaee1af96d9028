"""Text becomes rows: canonical lines in the kernel, every other line looked at by itself.

A line that cannot be trusted is left out, counted and named by file and line; nothing in a file raises.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from common.messages import Marker, Reading
from common.rows import decode_row, format_utc, parse_utc
from topside_daemon.fusion.cockpit import NUMBER, decode_marker_row, decode_old_row
from topside_daemon.fusion.columns import (
    FLAGS_SHIFT,
    LENGTH_MAX,
    MAY_BE_WHOLE,
    OFFSET_SHIFT,
    UNNUMBERED,
    Column,
    Odd,
    Rows,
    column_of,
)
from topside_daemon.fusion.index import Index
from topside_daemon.fusion.kernel import Kernel
from topside_daemon.fusion.parts import BYTE_ORDER_MARK, kind_of_header
from topside_daemon.fusion.texts import Batch, Texts

BATCH_ROWS = 1 << 15  # that one scan takes
WIDEST_NS = 1 << 62  # of which sums and differences have room
_LATEST_NS = 4_102_444_800_000_000_000  # 2100-01-01; before 1970 and from there on no clock was set
_EPOCH_MAX = 2**31 - 1


class Reject(Struct, frozen=True):
    """A line that was left out. file is relative to the session; lines count from 1."""

    file: str
    line: int
    reason: str


class _Row(NamedTuple):
    """A row that the kernel did not know."""

    at: int
    utc: int
    seq: int
    epoch: int
    span: int


class _Rejected(NamedTuple):
    place: int
    reject: Reject


class Intake:
    """Takes the batches of one stream.

    numbered: rows of ours in the order of the files, in_order: which is that of their clocks and numbers.
    labelled: rows of the old recorders in the order of arrival, rising: which is that of their labels.
    markers: how many marker rows there were; marked: those that say their name. torn: rows cut off at the
    open end of a file.
    """

    def __init__(self, kernel: Kernel, texts: Texts, numbered: Index, labelled: Index) -> None:
        self._kernel = kernel
        self._texts = texts
        self._rows = Rows(BATCH_ROWS)
        self.numbered, self.labelled = numbered, labelled
        self.in_order = self.rising = True
        self.markers = self.torn = 0
        self.marked: list[Marker] = []
        self.rejects: list[Reject] = []
        self._doubtful: list[
            _Rejected
        ] = []  # of a file with an open end: behind its last good line they are torn
        self._last_good = -1
        self._lines = 0  # of the file at hand, before what is scanned
        self._last_numbered = _Row(-WIDEST_NS, 0, -1, -1, 0)
        self._last_label = -WIDEST_NS

    def take(self, batch: Batch) -> None:
        """The next batch of its texts."""
        start, ours = 0, batch.ours
        self._lines *= not batch.begins
        while start < batch.size:
            start, ours = self._take_some(batch, start, ours)
        if batch.open_end and batch.ends:
            self._settle_torn()

    def _take_some(self, batch: Batch, start: int, ours: bool) -> tuple[int, bool]:
        """What one scan finds, up to a header that announces rows of the other kind; where to go on, and with
        which kind."""
        check = not batch.proven
        odd, stop, lines = self._kernel.scan(
            batch.buffer, start, batch.size, batch.base, ours, check, self._rows
        )
        known: list[tuple[int, _Row]] = []
        kind = ours
        for one in odd:
            line = bytes(batch.buffer[one.start : one.stop]).removeprefix(BYTE_ORDER_MARK)
            header = kind_of_header(line)
            if header is not None:
                kind = header
                if kind != ours:
                    self._rows.count, lines, stop = one.rows_before, one.lines_before + 1, one.stop
                    break
            elif (row := self._look_at(batch, one, line, ours, len(known))) is not None:
                known.append((one.rows_before, row))
        self._append(batch, ours, known)
        self._lines += lines
        return stop, kind

    def _look_at(self, batch: Batch, odd: Odd, line: bytes, ours: bool, known: int) -> _Row | None:
        """The row in a line that is not canonical; None for a marker, and for what is rejected."""
        place = batch.base + odd.start
        if not ours and self._ends_open(batch, odd.stop):
            self.torn += 1
            return None
        try:
            decoded = _decode(line) if ours else decode_old_row(line.rstrip(b"\r\n"))
            if decoded is not None:
                _check_range(decoded, ours)
            row = self._row_of(decoded, place) if isinstance(decoded, Reading) else None
        except ValueError as error:
            rejected = _Rejected(
                place, Reject(*batch.where(odd.start, self._lines + odd.lines_before), str(error))
            )
            if batch.open_end:
                self._doubtful.append(rejected)
            else:
                self.rejects.append(rejected.reject)
            return None
        self._last_good = place
        if isinstance(decoded, Marker):
            before = self.labelled.rows + odd.rows_before + known
            self.marked.append(decoded if ours else replace(decoded, after_seq=before - 1))
        self.markers += row is None
        return row

    def _row_of(self, reading: Reading, place: int) -> _Row:
        """Raises ValueError: longer than any row."""
        r = reading
        names = f"{_quoted(r.sensor_id)},{_quoted(r.mode)}"
        text = f"{format_utc(r.utc_ns)},{names},{r.value},{r.temp_c or ''},{r.vin or ''}".encode()
        if len(text) > LENGTH_MAX:
            raise ValueError(f"longer than a row can be: {text[:80]!r}")
        columns = (r.temp_c is not None) + (r.vin is not None)
        span = (
            self._texts.add(text, place) << OFFSET_SHIFT | (columns | MAY_BE_WHOLE) << FLAGS_SHIFT | len(text)
        )
        at = r.utc_ns if r.seq == UNNUMBERED else r.mono_ns
        return _Row(at, r.utc_ns, r.seq, r.epoch, span)

    def _append(self, batch: Batch, ours: bool, known: Sequence[tuple[int, _Row]]) -> None:
        rows = self._rows
        if rows.count:
            self._last_good = max(self._last_good, rows.span[rows.count - 1] >> OFFSET_SHIFT)
        if not ours and self._is_cut(batch):
            rows.count -= 1
            self.torn += 1
        columns = [one[: rows.count] for one in (rows.at, rows.utc, rows.seq, rows.epoch, rows.span)]
        if known:
            columns = _with(columns, known)
        if not columns[0]:
            return
        at, utc, _, _, span = columns
        if not ours:
            self.rising &= rows.rising and not known and at[0] > self._last_label
            self._last_label = at[-1]
            self.labelled.append(UNNUMBERED, not known, at, utc, columns[2], span)
            return
        self._append_numbered(columns, bool(known))

    def _append_numbered(self, columns: list[Column], spelt: bool) -> None:
        at, utc, seq, epoch, span = columns
        whole = self._rows.one_epoch and not spelt
        ends = [(0, len(at))] if whole else _runs(epoch)
        for first, end in ends:
            part = slice(first, end)
            self.numbered.append(epoch[first], not spelt, at[part], utc[part], seq[part], span[part])
        last, self._last_numbered = self._last_numbered, _Row(at[-1], utc[-1], seq[-1], epoch[-1], span[-1])
        if not spelt:
            inside = self._rows.ordered
        else:
            inside = all(_follows(*two) for two in pairwise(zip(epoch, at, seq, strict=True)))
        self.in_order &= inside and _follows((last.epoch, last.at, last.seq), (epoch[0], at[0], seq[0]))

    def _is_cut(self, batch: Batch) -> bool:
        """Whether the last row is the last line of a file, and has no end."""
        count = self._rows.count
        last = self._rows.span[count - 1] if count else 0
        stop = (last >> OFFSET_SHIFT) + (last & LENGTH_MAX) - batch.base
        return bool(count) and self._ends_open(batch, stop)

    @staticmethod
    def _ends_open(batch: Batch, stop: int) -> bool:
        """Whether a line that stops there is the end of a file that was being written, without an end of its
        own: without a checksum half a number looks like a number."""
        unended = batch.open_end and batch.ends and batch.buffer[batch.size - 1] != ord("\n")
        return unended and stop == batch.size

    def _settle_torn(self) -> None:
        for place, reject in self._doubtful:
            if place > self._last_good:
                self.torn += 1
            else:
                self.rejects.append(reject)
        self._doubtful.clear()


def _quoted(name: str) -> str:
    """As readers of CSV want it; recorders write it as it is."""
    return '"' + name.replace('"', '""') + '"' if '"' in name else name


def decode_text(text: bytes | bytearray, seq: int, epoch: int, at_ns: int) -> Reading:
    """A row as it was taken in: its text, and what the columns say of it."""
    stamp, sensor_id, mode, value, temp_c, vin = text.decode("utf-8").split(",")
    mono_ns = 0 if seq == UNNUMBERED else at_ns
    return Reading(seq, epoch, mono_ns, parse_utc(stamp), sensor_id, mode, value, temp_c or None, vin or None)


def _decode(line: bytes) -> Reading | Marker | None:
    return decode_row(line) or decode_marker_row(line)


def _check_range(row: Reading | Marker, ours: bool) -> None:
    """Raises ValueError for what no recorder can have written."""
    if isinstance(row, Reading) and not (row.sensor_id + row.mode).isprintable():
        raise ValueError(f"unprintable characters: {row.sensor_id!r}, {row.mode!r}")
    if isinstance(row, Reading) and ours:
        if not 0 <= row.seq < WIDEST_NS or not 0 <= row.epoch <= _EPOCH_MAX:
            raise ValueError("number or epoch out of range")
        for digits in (row.value, row.temp_c, row.vin):
            if digits is not None and not NUMBER.fullmatch(digits.encode()):
                raise ValueError(f"not a number: {digits!r}")
    if abs(row.mono_ns) >= WIDEST_NS:
        raise ValueError("mono_ns is no clock's")
    if not 0 <= row.utc_ns < _LATEST_NS:
        raise ValueError("a label outside 1970 to 2100 is no clock's")


def _with(columns: list[Column], known: Sequence[tuple[int, _Row]]) -> list[Column]:
    """The columns with rows put in, each behind as many of the others."""
    found = []
    for place, one in enumerate(columns):
        values = one.tolist()
        for shift, (before, row) in enumerate(known):
            values.insert(before + shift, row[place])
        found.append(column_of(values))
    return found


def _runs(epochs: Column) -> list[tuple[int, int]]:
    """First and end of every run of one epoch."""
    runs, first = [], 0
    for _, group in groupby(epochs):
        end = first + sum(1 for _ in group)
        runs.append((first, end))
        first = end
    return runs


def _follows(before: tuple[int, int, int], after: tuple[int, int, int]) -> bool:
    """Of (epoch, at, seq): later by its clock, and with a higher number."""
    return before[:2] <= after[:2] and before[2] < after[2]
