"""One session folder in, one table out.

The product is a pure function of the session's files and the settings: the same bytes again, whatever the
order in which rows and exchanges once arrived.
"""

import json
from math import sqrt
from pathlib import Path
from statistics import fmean, median_low
from typing import NamedTuple

from msgspec import structs, to_builtins

from common.files import replace
from common.messages import Epoch, to_json
from topside_daemon.fusion.bursts import group_bursts
from topside_daemon.fusion.cockpit import METADATA_FILE
from topside_daemon.fusion.dejitter import Refusal, dejitter
from topside_daemon.fusion.latency import Latency, latency_of
from topside_daemon.fusion.matching import tolerance_ns
from topside_daemon.fusion.readers import Session, Stream, read_session
from topside_daemon.fusion.report import Handled, Report, Smoothed, report_on
from topside_daemon.fusion.stream import Fuser
from topside_daemon.fusion.timeline import Timeline, complete_pi_epochs, complete_topside_epochs
from topside_daemon.fusion.writers import write_unified

UNIFIED_FILE = "unified_session.csv"
REPORT_FILE = "unified_session.json"  # how it was made, and how good it is


def fuse_session(path: Path, out: Path | None = None, **otherwise: float | bool | None) -> Report:
    """Fuse one folder into `unified_session.csv`, there or in *out*, replaced at once when complete, and
    put the report beside it.

    Args:
        path: a session folder, or the folder of one sensor.
        otherwise: settings by name that win over those the session was recorded with.

    Raises:
        SessionError: nothing to fuse at *path*; the message names the cause and the cure.
        OSError: a file cannot be read or written.
    """
    session = read_session(path)
    chosen = structs.replace(session.settings, **otherwise)
    inwater = _Side.of(session.inwater, chosen.inwater_latency_ms, chosen.dejitter)
    surface = _Side.of(session.surface, chosen.surface_latency_ms, chosen.dejitter)
    timeline = _timeline(session, (inwater.latency.total_ns, surface.latency.total_ns))
    tolerance = (
        _tolerance_ns(session, timeline) if chosen.tolerance_ms is None else round(chosen.tolerance_ms * 1e6)
    )
    fuser = Fuser(timeline, tolerance)
    for reading, moved_ns in zip(session.inwater.readings, inwater.moved_ns, strict=True):
        fuser.push_inwater(reading, moved_ns)
    for reading, moved_ns in zip(session.surface.readings, surface.moved_ns, strict=True):
        fuser.push_surface(reading, moved_ns)
    rows = fuser.finish()
    output = (out or path) / UNIFIED_FILE
    output.parent.mkdir(parents=True, exist_ok=True)
    handled = (Handled(inwater.latency, inwater.smoothed), Handled(surface.latency, surface.smoothed))
    report = report_on(session, chosen, timeline, tolerance, rows, str(output), handled)
    write_unified(output, rows)
    replace(output.with_name(REPORT_FILE), to_json(report))
    if out is None:
        _renew(path / METADATA_FILE, report)
    return report


def _renew(metadata: Path, report: Report) -> None:
    """Have the session's own metadata tell of the table that is there now."""
    try:
        found = json.loads(metadata.read_bytes())
        found["fusion"]["report"]  # the old Cockpit keeps none
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    found["fusion"]["report"] = to_builtins(report)
    replace(metadata, json.dumps(found, indent=2).encode("utf-8"))


class _Side(NamedTuple):
    """What is done to the stamps of one sensor; moved_ns for each of its readings."""

    latency: Latency
    smoothed: Smoothed | None
    moved_ns: list[int]

    @classmethod
    def of(cls, stream: Stream, latency_ms: float | None, dejittered: bool) -> "_Side":
        latency = latency_of(stream.sensor, None if latency_ms is None else latency_ms / 1e3)
        smoothed, moved_ns = _smooth(stream, dejittered)
        return cls(latency, smoothed, moved_ns)


def _smooth(stream: Stream, wanted: bool) -> tuple[Smoothed | None, list[int]]:
    """By how much each reading's instant moves, and what to say of it."""
    still = [0] * len(stream.readings)
    if not wanted:
        return None, still
    found = dejitter(stream.readings)
    if isinstance(found, Refusal):
        return Smoothed(0, 0.0, {found.reason: len(still)}), still
    squares = [run.before_rms_s**2 for run in found.runs]
    moved = [at - reading.mono_ns for at, reading in zip(found.times_ns, stream.readings, strict=True)]
    return Smoothed(len(found.runs), 1e3 * sqrt(fmean(squares)), found.left), moved


def _timeline(session: Session, latency_ns: tuple[int, int]) -> Timeline:
    timeline = Timeline(
        complete_topside_epochs(_topside_epochs(session), session.surface.readings, session.exchanges),
        complete_pi_epochs(session.inwater.epochs, session.exchanges),
        session.link,
        session.ladder,
        latency_ns,
    )
    for burst in group_bursts(session.exchanges):
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


def _tolerance_ns(session: Session, timeline: Timeline) -> int:
    corrected = [timeline.inwater_time(reading) for reading in session.inwater.readings]
    deviations = [one.offset_sd_ns for one in corrected if one.offset_sd_ns is not None]
    return tolerance_ns(
        sorted(one.time_ns for one in corrected),
        sorted(timeline.surface_time(reading) for reading in session.surface.readings),
        median_low(deviations) if deviations else 0,
    )
