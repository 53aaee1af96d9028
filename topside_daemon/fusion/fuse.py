"""One session folder in, one table out.

The product is a pure function of the session's files and the settings: the same bytes again, whatever the
order in which rows and exchanges once arrived.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import structs, to_builtins

from common.files import replace
from common.messages import Epoch, to_json
from topside_daemon.fusion.axis import Axis
from topside_daemon.fusion.cockpit import METADATA_FILE
from topside_daemon.fusion.columns import INWATER, SURFACE, Options, Pairing
from topside_daemon.fusion.courses import STATUSES
from topside_daemon.fusion.index import Index
from topside_daemon.fusion.kernel import Kernel, choose_kernel
from topside_daemon.fusion.latency import Latency, latency_of
from topside_daemon.fusion.readers import Session, read_session
from topside_daemon.fusion.report import Report, Side, report_on
from topside_daemon.fusion.rhythm import Hold, tolerance_ns
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.smoothing import smooth
from topside_daemon.fusion.spill import Spill
from topside_daemon.fusion.timeline import Timeline, complete_pi_epochs, complete_topside_epochs
from topside_daemon.fusion.weaving import Weaver, pair
from topside_daemon.fusion.writers import Products, header

UNIFIED_FILE = "unified_session.csv"
REPORT_FILE = "unified_session.json"  # how it was made, and how good it is


def fuse_session(
    path: Path, out: Path | None = None, kernel: Kernel | None = None, **otherwise: object
) -> Report:
    """Fuse one folder into `unified_session.csv`, there or in *out*, replaced at once when complete, and
    put the report beside it.

    Args:
        path: a session folder, or the folder of one sensor.
        kernel: the one there is by default; the bytes are the same with any.
        otherwise: settings by name that win over those the session was recorded with.

    Raises:
        SessionError: nothing to fuse at *path*; the message names the cause and the cure.
        OSError: a file cannot be read or written.
    """
    output = (out or path) / UNIFIED_FILE
    output.parent.mkdir(parents=True, exist_ok=True)
    kernel = kernel or choose_kernel()
    with read_session(path, kernel, output.parent) as session:
        chosen = structs.replace(session.settings, **otherwise)
        with Products(output.parent) as products:
            report = _fuse(session, chosen, kernel, output, products)
            said = products.add(REPORT_FILE)
            said.write(to_json(report))
            said.end()
    if out is None:
        _renew(path / METADATA_FILE, report)
    return report


def _fuse(session: Session, chosen: Settings, kernel: Kernel, output: Path, products: Products) -> Report:
    scratch = output.parent
    timeline = _timeline(session)
    inwater, surface = _onto_axis(session, chosen, timeline, kernel, scratch)
    tolerance = tolerance_ns(chosen, inwater.axis.rhythm, surface.axis.rhythm, inwater.axis.sd_ns)
    options = _options(chosen, inwater.axis, surface.axis)
    pairing = Pairing() if options.held else _pairing(kernel, inwater.axis, surface.axis, tolerance, scratch)
    weaver = Weaver(
        kernel, (inwater.axis, session.inwater.texts), (surface.axis, session.surface.texts), options
    )
    table = products.add(output.name)
    table.write(header(options.percent))
    for lines in weaver.weave(pairing, tolerance):
        table.write(lines)
    table.end()
    return report_on(session, chosen, timeline, tolerance, (inwater, surface), weaver, str(output))


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


def _renew(metadata: Path, report: Report) -> None:
    """Have the session's own metadata tell of the table that is there now."""
    try:
        found = json.loads(metadata.read_bytes())
        found["fusion"]["report"]  # the old Cockpit keeps none
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    found["fusion"]["report"] = to_builtins(report)
    replace(metadata, json.dumps(found, indent=2).encode("utf-8"))


def _latencies(session: Session, chosen: Settings) -> tuple[Latency, Latency]:
    given_ms = (chosen.inwater_latency_ms, chosen.surface_latency_ms)
    inwater, surface = (
        latency_of(stream.sensor, None if ms is None else ms / 1e3)
        for stream, ms in zip((session.inwater, session.surface), given_ms, strict=True)
    )
    return inwater, surface


def _timeline(session: Session) -> Timeline:
    boots = session.comparisons.boots
    timeline = Timeline(
        complete_topside_epochs(_topside_epochs(session), session.surface.beginnings(), boots),
        complete_pi_epochs(session.inwater.epochs, boots),
        session.link,
        session.ladder,
    )
    for burst in session.comparisons.bursts():
        timeline.add_burst(burst)
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
