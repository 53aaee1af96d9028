"""One session folder in, one table out.

The product is a pure function of the session's files and the settings: the same bytes again, whatever the
order in which rows and exchanges once arrived.
"""

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import structs

from common import VERSION
from common.files import read_json
from common.messages import Epoch, to_json
from topside_daemon.fusion.axis import Axis
from topside_daemon.fusion.columns import INWATER, SURFACE, Options, Pairing
from topside_daemon.fusion.courses import STATUSES
from topside_daemon.fusion.folders import locate
from topside_daemon.fusion.index import Index
from topside_daemon.fusion.kernel import Kernel, choose_kernel
from topside_daemon.fusion.latency import Latency, latency_of
from topside_daemon.fusion.readers import Session, read_inputs, read_session, read_settings
from topside_daemon.fusion.report import Report, Side, report_on
from topside_daemon.fusion.rhythm import Hold, tolerance_ns
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.smoothing import smooth
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.tables import UNIFIED, CsvTable, Format, Table, columns_of, file_name, pip_install
from topside_daemon.fusion.texts import shown
from topside_daemon.fusion.timeline import Timeline, complete_pi_epochs, complete_topside_epochs
from topside_daemon.fusion.weaving import Weaver, pair
from topside_daemon.fusion.writers import Products, Sink

REPORT_FILE = f"{UNIFIED}.json"  # how the table was made, and how good it is


def fuse_session(
    path: Path,
    out: Path | None = None,
    formats: Sequence[Format] = ("csv",),
    kernel: Kernel | None = None,
    **otherwise: Any,
) -> Report:
    """Fuse one folder into `unified_session.csv`, there or in *out*, with the report beside it; they replace
    those before them at once when all is complete.

    Args:
        path: a session folder, the folder of one sensor, or in a mission of several dives of the old Cockpit
            that of an in-water recording.
        formats: of the table, one file each.
        kernel: the one there is by default; the bytes are the same with any.
        otherwise: settings by name that win over those the session was recorded with.

    Raises:
        msgspec.ValidationError: a setting is out of range.
        SessionError: nothing to fuse at *path*; the message names the cause and the cure.
        OSError: a file cannot be read or written.
        ImportError: something that is needed is not installed; the message names the cure.
    """
    place = out or path
    kernel = kernel or choose_kernel()
    locate(path)
    place.mkdir(parents=True, exist_ok=True)
    others = [file_name(one) for one in get_args(Format) if one not in formats]
    with read_session(path, kernel, place) as session, Products(place, REPORT_FILE, others) as products:
        chosen = msgspec.convert(msgspec.to_builtins(session.settings) | otherwise, Settings)
        tables = [
            _table_in(one, products.add(file_name(one)), chosen.percent_of_surface)
            for one in dict.fromkeys(formats)
        ]
        report = _fuse(session, chosen, kernel, place, tables)
        said = to_json(report)
        report.outputs = [table.finish({"qsensor-sync": said}) for table in tables]
        products.seal(to_json(report))
    return report


def _table_in(format_: Format, sink: Sink, percent: bool) -> Table:
    """Begin a table.

    Raises:
        ImportError: what writes this format is not installed; the message names the cure.
    """
    if format_ == "csv":
        return CsvTable(sink, percent)
    try:
        parquet = importlib.import_module("topside_daemon.fusion.parquet")
    except ModuleNotFoundError as error:
        raise ImportError(f"Parquet needs {error.name}: {pip_install(error.name)}") from None
    table: Table = parquet.ParquetTable(sink, columns_of(percent))
    return table


def last_report(
    path: Path, out: Path | None = None, formats: Sequence[Format] = ("csv",), **otherwise: Any
) -> Report | None:
    """What fuse_session said last, if it would do the same again: the files that it read, the settings, the
    version and what it made are the same. Nothing else is looked at."""
    place = out or path
    try:
        report = read_json(place / REPORT_FILE, Report)
        if report is None or (report.version, report.session) != (VERSION, shown(path.resolve().name)):
            return None
        made = {one.name: one.size_bytes for one in report.outputs}
        if {file_name(one) for one in formats} != set(made):
            return None
        if any((place / name).stat().st_size != size for name, size in made.items()):
            return None
        chosen = structs.replace(read_settings(path), **otherwise)
        inputs = read_inputs(path, any(one.unnumbered for one in (report.inwater, report.surface)))
    except (ValueError, OSError):
        return None  # whatever it is, fusing says it better
    return report if report.settings == chosen and report.inputs == inputs else None


def _fuse(
    session: Session, chosen: Settings, kernel: Kernel, scratch: Path, tables: Sequence[Table]
) -> Report:
    timeline = timeline_of(session)
    inwater, surface = _onto_axis(session, chosen, timeline, kernel, scratch)
    tolerance = tolerance_ns(chosen, inwater.axis.rhythm, surface.axis.rhythm, inwater.axis.sd_ns)
    options = _options(chosen, inwater.axis, surface.axis)
    pairing = Pairing() if options.held else _pairing(kernel, inwater.axis, surface.axis, tolerance, scratch)
    weaver = Weaver(
        kernel, (inwater.axis, session.inwater.texts), (surface.axis, session.surface.texts), options
    )
    for lines in weaver.weave(pairing, tolerance):
        for table in tables:
            table.write(lines)
    return report_on(session, chosen, timeline, tolerance, (inwater, surface), weaver)


def _onto_axis(
    session: Session, chosen: Settings, timeline: Timeline, kernel: Kernel, scratch: Path
) -> tuple[Side, Side]:
    """Both sensors' rows on the common axis, worked out side by side."""

    def prepare(side: int) -> Side:
        stream = (session.inwater, session.surface)[side]
        index, smoothed = stream.index, None
        if chosen.dejitter:
            index, smoothed = smooth(index, stream.texts, Index(session.spill(scratch)))
        return Side(Axis(side, index, timeline, kernel, session.spill(scratch)), latencies[side], smoothed)

    latencies = _latencies(session, chosen)
    for side, latency in enumerate(latencies):
        timeline.set_latency(side, latency.total_ns)
    with ThreadPoolExecutor(2) as both:
        inwater, surface = both.map(prepare, (INWATER, SURFACE))
    return inwater, surface


def _options(chosen: Settings, inwater: Axis, surface: Axis) -> Options:
    starts = [one.first_ns for one in (inwater, surface) if one.first_ns is not None]
    ends = [one.last_ns for one in (inwater, surface) if one.last_ns is not None]
    overlap = (max(starts), min(ends)) if len(ends) == 2 else (0, -1)
    hold = Hold.of(chosen, surface.rhythm)
    return Options(
        held=chosen.mode == "inwater",
        percent=chosen.percent_of_surface,
        dropout_ns=surface.rhythm.dropout_ns,
        first_ns=overlap[0],
        last_ns=overlap[1],
        fresh_ns=hold.fresh_ns,
        stale_ns=hold.stale_ns,
        statuses=STATUSES,
    )


def _pairing(kernel: Kernel, inwater: Axis, surface: Axis, tolerance: int, scratch: Path) -> Pairing:
    spill = Spill(scratch)
    try:
        return pair(kernel, inwater, surface, tolerance, spill)
    finally:
        spill.close()


def _latencies(session: Session, chosen: Settings) -> tuple[Latency, Latency]:
    given_ms = (chosen.inwater_latency_ms, chosen.surface_latency_ms)
    inwater, surface = (
        latency_of(stream.sensor, None if ms is None else ms / 1e3)
        for stream, ms in zip((session.inwater, session.surface), given_ms, strict=True)
    )
    return inwater, surface


def timeline_of(session: Session) -> Timeline:
    """The clock of a session, with all that it has of comparisons."""
    timeline = session.comparisons.give_to(lambda: Timeline([], [], session.link, session.ladder))
    boots = session.comparisons.boots
    surface = session.surface.beginnings()
    for epoch in complete_topside_epochs(_topside_epochs(session), surface, boots):
        timeline.add_topside_epoch(epoch)
    for epoch in complete_pi_epochs(session.inwater.epochs, boots):
        timeline.add_pi_epoch(epoch)
    return timeline


def _topside_epochs(session: Session) -> list[Epoch]:
    """Numbers as the surface rows use them, anchors as the session declared them."""
    declared = {epoch.boot_id: epoch for epoch in reversed(session.epochs)}
    recorded = [
        Epoch(epoch.epoch, epoch.boot_id, anchor.mono_ns, anchor.utc_ns)
        for epoch in session.surface.epochs
        for anchor in [declared.get(epoch.boot_id, epoch)]
    ]
    return recorded + session.epochs
