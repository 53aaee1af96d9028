"""Session folders as streams of rows: ours, a Pi's folder alone, and folders of the old Cockpit.

Everything but the rows is optional. A row that cannot be trusted is left out, counted and named by file
and line; nothing in a file raises.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from common.files import read_json, read_lines
from common.manifest import MANIFEST, SINCE
from common.messages import Epoch, Event, Marker, Reading, to_json
from topside_daemon.fusion.cockpit import METADATA_FILE, Metadata, is_about, read_metadata, with_measured
from topside_daemon.fusion.columns import INWATER, SURFACE, UNNUMBERED
from topside_daemon.fusion.comparisons import EXCHANGES_FILE, Comparisons
from topside_daemon.fusion.folders import SESSION_FILE, Located, has_chunks, locate
from topside_daemon.fusion.index import Index
from topside_daemon.fusion.intake import WIDEST_NS, Intake, Reject, decode_text
from topside_daemon.fusion.kernel import Kernel, choose_kernel
from topside_daemon.fusion.labelled import ASTRAY_NS, Labelled, astray_rows, boot_rows, repeated_rows, without
from topside_daemon.fusion.ladder import UNPLACED, Ladder, Record, climb
from topside_daemon.fusion.ladder.steps import Pieces
from topside_daemon.fusion.seqset import SeqSet
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.sorting import by_clock, fill, first_of_each, sorted_rows
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.stamps import Stamps
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.fusion.texts import Input, Texts, shown, stream_input
from topside_daemon.fusion.timeline import ANCHOR_ROWS, Beginning

MARKERS_FILE = "markers.jsonl"
EVENTS_FILE = "events.jsonl"
CLOCK_EVENTS = ("clock_step", "clock_slew", "suspended")  # those of its events that a fusion tells of
BESIDE_CHUNKS = (SESSION_FILE, MARKERS_FILE, EVENTS_FILE, MANIFEST, SINCE)
BLOCK_ROWS = 16_384  # of rows that had to be sorted
ABSENT_SHOWN = 5  # chunks that are not there, by name
ALONE = (
    "no surface recording beside it is of its time, by the labels of both: fused alone; in a folder of their "
    "own, it and another are one session"
)


class Stream(Struct):
    """One sensor's record. torn: rows cut off at the open end of a chunk; missing: holes in seq; unnumbered:
    rows of the old recorders, whose files keep no number.

    index: unnumbered rows first, in the order of arrival, their epoch the piece of their clock (see
    `ladder`); then numbered ones, in the order of their clock. sensor: its configuration as it was recorded.
    markers: how many marker rows were; marked: those with a name, the fullest record of each first.
    clock_events: what its machine's wall clock did; no row and no fit hangs on it.
    """

    name: str
    index: Index
    texts: Texts | None = None
    epochs: list[Epoch] = []
    markers: int = 0
    marked: list[Marker] = []
    duplicates: int = 0
    torn: int = 0
    missing: int = 0
    rejects: list[Reject] = []
    unnumbered: int = 0
    sensor: dict[str, Any] | None = None
    clock_events: list[Event] = []

    def readings(self) -> Iterator[Reading]:
        """All of it, one by one; slow."""
        for block in self.index.blocks():
            for at_ns, seq, span in zip(block.at, block.seq, block.span, strict=True):
                assert self.texts is not None
                yield decode_text(self.texts.row(span), seq, block.epoch, at_ns)

    def beginnings(self) -> Iterator[Beginning]:
        """Epoch, mono_ns and utc_ns of the first numbered rows of every epoch."""
        for epoch, (first, end) in self.index.ranges().items():
            if epoch >= 0:
                block = self.index.block_of(first)
                here = slice(first - block.first, min(end, first + ANCHOR_ROWS) - block.first)
                yield from (
                    Beginning(epoch, *row) for row in zip(block.at[here], block.utc[here], strict=True)
                )


class Session(Struct):
    """What a folder holds. epochs are the topside machine's; notes say what optional part was unusable.

    ladder: the clock for what has no exchanges. link: what earlier sessions had shown of the pair of
    machines when this one began. settings: how it was to be fused. To be closed: it holds files.
    """

    path: Path
    inwater: Stream
    surface: Stream
    ladder: Ladder
    comparisons: Comparisons
    held: ExitStack
    epochs: list[Epoch] = []
    link: LinkMemory | None = None
    settings: Settings = Settings()
    notes: list[str] = []
    beside: list[Input] = []

    @property
    def source(self) -> str:
        """What kind of recording this is, in a few words."""
        streams = [one for one in (self.inwater, self.surface) if one.name]
        old = any(one.unnumbered for one in streams)
        ours = any(one.index.rows > one.unnumbered for one in streams)
        what = "old and ours, mixed" if old and ours else "of the old recorders" if old else "ours"
        still_open = [one.name for one in streams if one.texts is not None and one.texts.still_open]
        ends = f"; the last chunk was never sealed in {', '.join(still_open)}" if still_open else ""
        return f"{'one sensor' if len(streams) == 1 else 'both sensors'}, {what}{ends}"

    @property
    def inputs(self) -> list[Input]:
        """All that was read."""
        texts = [one.texts for one in (self.inwater, self.surface)]
        return [one.input for one in texts if one is not None] + self.beside

    @property
    def all_rejects(self) -> list[Reject]:
        return [*self.inwater.rejects, *self.surface.rejects, *self.comparisons.rejects]

    def spill(self, folder: Path) -> Spill:
        """One that is closed with the session."""
        spill = Spill(folder)
        self.held.callback(spill.close)
        return spill

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.close()


def read_session(path: Path, kernel: Kernel | None = None, scratch: Path | None = None) -> Session:
    """Everything fusion needs from a session folder or from one sensor's folder.

    Args:
        kernel: the one there is by default.
        scratch: where rows are kept that do not fit into memory; None for the system's place.

    Raises:
        SessionError: there is no recording at *path*, or more than one.
        OSError: a file cannot be read.
    """
    place = locate(path)
    kernel = kernel or choose_kernel()
    with ExitStack() as held:
        readers = [_StreamReader(place.root, kernel, scratch, held) for _ in range(2)]
        with ThreadPoolExecutor(2) as both:
            first, second = both.map(_StreamReader.read, readers, place.streams)
        streams = (first, second)
        notes = [ALONE] * (place.of_several and place.surface is None)
        notes += [note for reader in readers for note in reader.notes]
        labelled = any(stream.unnumbered for stream in streams)
        metadata = _metadata(place, notes) if labelled else Metadata()
        ladder = _climb(streams, metadata, kernel, notes)
        for stream in streams:
            if stream.texts is not None:
                stream.texts.hash_ahead()
        session = Session(path, *streams, ladder, Comparisons(path), notes=notes, held=held)
        if place.home not in place.streams:
            record = _read_record(path, notes)
            session.epochs, session.link, session.settings = record.epochs, record.link, record.fusion
        session.beside = _beside(place, labelled)
        session.held = held.pop_all()
    return session


class _StreamReader:
    """Reads one stream; notes: what is to be said of it."""

    def __init__(self, root: Path, kernel: Kernel, scratch: Path | None, held: ExitStack) -> None:
        self._root = root
        self._kernel = kernel
        self._scratch = scratch
        self._held = held
        self.notes: list[str] = []

    def _spill(self) -> Spill:
        spill = Spill(self._scratch)
        self._held.callback(spill.close)
        return spill

    def read(self, folder: Path | None) -> Stream:
        spill = self._spill()
        if folder is None:
            return Stream(name="", index=Index(spill))
        texts = Texts(folder, self._root, self._spill())
        self._held.callback(texts.close)
        intake = Intake(self._kernel, texts, Index(spill), Index(spill))
        for batch in texts.batches():
            intake.take(batch)
        record = _read_record(folder, self.notes)
        stream = Stream(
            name=shown(folder.name),
            index=intake.numbered,
            texts=texts,
            epochs=record.epochs,
            sensor=record.sensor,
            markers=intake.markers,
            marked=intake.marked,
            torn=intake.torn,
            rejects=intake.rejects,
            unnumbered=intake.labelled.rows,
            clock_events=_clock_events(folder),
        )
        self.notes += [f"{shown(folder.name)}: {texts.note}"] * bool(texts.note)
        found = (
            intake.labelled.rows + intake.numbered.rows + intake.markers + intake.torn + len(intake.rejects)
        )
        if (lacking := texts.sealed_rows - found) > 0:
            self.notes.append(f"{shown(folder.name)}: {lacking} rows that the manifest counts are in no file")
        self.notes += [f"{name} is not as it was sealed: every row was checked" for name in texts.changed]
        self.notes += [
            f"{name} is in the manifest, and not in the folder" for name in texts.absent[:ABSENT_SHOWN]
        ]
        if len(texts.absent) > ABSENT_SHOWN:
            self.notes.append(
                f"{len(texts.absent) - ABSENT_SHOWN} more chunks of the manifest are not in the folder"
            )
        self._put_in_order(stream, intake.in_order, texts.last_seq)
        labelled = self._only_readings(intake.labelled, stream, intake.rising)
        labelled.extend(stream.index)
        stream.index = labelled
        if named := list(read_lines(folder / MARKERS_FILE, Marker)):
            stream.marked = named + [marker for marker in stream.marked if marker.kind != "PERIODIC"]
        return stream

    def _put_in_order(self, stream: Stream, in_order: bool, sealed: int) -> None:
        """Numbered rows by their clock, each number once; numbers up to *sealed* there should be."""
        index = stream.index
        if not in_order:
            seen, ordered = SeqSet(), Index(self._spill())
            fill(ordered, first_of_each(sorted_rows(index, by_clock, self._spill()), seen), BLOCK_ROWS)
            stream.duplicates += index.rows - ordered.rows
            stream.index, highest = ordered, seen.highest
        else:
            highest = index.last_seq
        stream.missing = max(highest, sealed) + 1 - stream.index.rows

    def _only_readings(self, index: Index, stream: Stream, rising: bool) -> Index:
        """Old rows in the order of arrival: a label is no order, its clock may have been set."""
        assert stream.texts is not None
        if not rising:
            repeated = repeated_rows(index, Labelled(index, stream.texts))
            stream.duplicates += len(repeated)
            index = self._leave_out(repeated, index, stream)
        labels = Stamps(index, self._kernel)
        suspects = labels.outliers(-ASTRAY_NS, ASTRAY_NS)
        astray = astray_rows(labels, suspects) if suspects else []
        self._reject(astray, index, stream, "a label far from those before and after it")
        index = self._leave_out(astray, index, stream)
        readings = Labelled(index, stream.texts)
        boot = boot_rows(index, readings, self._kernel)
        self._reject(boot, index, stream, "number of the boot text, not a reading: {}")
        return self._leave_out(boot, index, stream)

    def _reject(self, rows: Sequence[int], index: Index, stream: Stream, reason: str) -> None:
        assert stream.texts is not None
        for row in rows:
            block = index.block_of(row)
            span = block.span[row - block.first]
            value = stream.texts.row(span).split(b",")[3].decode("utf-8")
            stream.rejects.append(Reject(*stream.texts.where(span), reason.format(value)))

    def _leave_out(self, dropped: Sequence[int], index: Index, stream: Stream) -> Index:
        """The other rows, and the old markers moved to where their neighbours are now."""
        if not dropped:
            return index
        stream.marked = [
            replace(marker, after_seq=marker.after_seq - bisect_right(dropped, marker.after_seq))
            if marker.epoch < 0
            else marker
            for marker in stream.marked
        ]
        return without(index, dropped, Index(self._spill()))


def read_inputs(path: Path, labelled: bool) -> list[Input]:
    """What a fusion would read now, without reading any of it as rows.

    Args:
        labelled: whether there are rows of the old recorders.

    Raises:
        SessionError: as read_session.
        OSError: likewise.
    """
    place = locate(path)
    streams = [stream_input(folder, place.root) for folder in place.streams if folder is not None]
    return streams + _beside(place, labelled)


def read_settings(path: Path) -> Settings:
    """How a session says that it is to be fused; one sensor's folder does not."""
    return Settings() if has_chunks(path) else _read_record(path, []).fusion


def _climb(streams: tuple[Stream, Stream], metadata: Metadata, kernel: Kernel, notes: list[str]) -> Ladder:
    """The ladder of a session, and its pieces put down in the rows."""
    records = []
    labelled = any(stream.unnumbered for stream in streams)
    for stream, measured in zip(streams, metadata.markers, strict=True):
        if stream.markers and not stream.index.rows:
            notes.append(f"{stream.name}: {stream.markers} markers and no reading")
        ranges = stream.index.ranges()
        first, end = ranges.pop(UNNUMBERED, (0, 0))
        labels = Stamps(stream.index, kernel, first, end)
        if labelled:  # of a numbered record beside one of an old Pi too: its own markers are on another clock
            stream.marked = with_measured(stream.marked, measured, labels)
        instants = {epoch: Stamps(stream.index, kernel, *range_) for epoch, range_ in ranges.items()}
        records.append(Record(labels, instants, stream.marked))
    ladder = climb(records[INWATER], records[SURFACE], metadata.time_sync)
    for stream, pieces in zip(streams, ladder.pieces, strict=True):
        stream.index.renumber(_epochs(pieces))
    return ladder


def _epochs(pieces: Pieces) -> list[tuple[int, int]]:
    """Where each piece after the first begins, and the epoch of its rows."""
    return [(start, UNPLACED - piece) for piece, start in enumerate(pieces.starts) if piece]


def _metadata(place: Located, notes: list[str]) -> Metadata:
    """What the old Cockpit measured in this session."""
    if _is_its_metadata(place):
        return read_metadata(place.root, notes)
    if (place.root / METADATA_FILE).exists():
        notes.append(f"{METADATA_FILE} not used: it does not say that it is about this dive")
    return Metadata()


def _is_its_metadata(place: Located) -> bool:
    """There is one file in a mission, however many dives are."""
    if not place.of_several or place.inwater is None:
        return True
    surface = place.surface.name if place.surface else ""
    return is_about(place.root, place.inwater.name, surface)


def _beside(place: Located, labelled: bool) -> list[Input]:
    """The files beside the chunks that a fusion looks at."""
    files = [place.home / EXCHANGES_FILE, place.home / SESSION_FILE]
    if labelled and _is_its_metadata(place):
        files.append(place.root / METADATA_FILE)
    files += [folder / name for folder in place.streams if folder for name in BESIDE_CHUNKS]
    return [_input(file, place.root) for file in dict.fromkeys(files) if file.is_file()]


def _input(file: Path, root: Path) -> Input:
    if file.name == SESSION_FILE:
        content = to_json(_read_record(file.parent, []))
    elif file.name == EVENTS_FILE:
        content = to_json(_clock_events(file.parent))
    else:
        content = file.read_bytes()
    return Input.of(shown(file.relative_to(root).as_posix()), content)


def _clock_events(folder: Path) -> list[Event]:
    return [one for one in read_lines(folder / EVENTS_FILE, Event) if one.kind in CLOCK_EVENTS]


class _Record(Struct):
    """The part of a session.json, of a session or of one stream, that fusion uses."""

    role: str = ""
    epochs: list[Epoch] = []
    link: LinkMemory | None = None
    sensor: dict[str, Any] | None = None
    fusion: Settings = Settings()


def _read_record(folder: Path, notes: list[str]) -> _Record:
    """What can be used of it; the rest costs notes."""
    path, record = folder / SESSION_FILE, _Record()
    place = shown(f"{folder.resolve().name}/{SESSION_FILE}")  # however the folder was given
    try:
        parts = read_json(path, dict[str, Any]) or {}
    except ValueError as error:
        notes.append(f"{place} not used: {str(error).removeprefix(f'{path}: ')}")
        return record
    for field in msgspec.structs.fields(_Record):
        if field.name in parts:
            try:
                _check_numbers(parts[field.name])
                setattr(record, field.name, msgspec.convert(parts[field.name], field.type))
            except ValueError as error:
                notes.append(f"{field.name} of {place} not used: {error}")
    return record


def _check_numbers(part: Any) -> None:
    """Raises ValueError: there is one that neither a clock nor a link has."""
    if isinstance(part, dict | list):
        for one in part.values() if isinstance(part, dict) else part:
            _check_numbers(one)
    elif isinstance(part, int | float) and not abs(part) < WIDEST_NS:
        raise ValueError(f"a number out of range: {str(part)[:40]}")
