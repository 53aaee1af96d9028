"""Fuse finished sessions: `python -m topside_daemon.fusion PATH...`.

The product is a pure function of the session's files: the same bytes again, whatever the order in which
rows and exchanges once arrived.
"""

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median_low

from msgspec import Struct

from common.messages import Epoch, to_json
from topside_daemon.fusion.clockmodel import group_bursts
from topside_daemon.fusion.matching import period_ns, tolerance_ns
from topside_daemon.fusion.readers import Reject, Session, SessionError, Stream, read_session
from topside_daemon.fusion.stream import FusedRow, Fuser
from topside_daemon.fusion.timeline import (
    SegmentState,
    Timeline,
    complete_pi_epochs,
    complete_topside_epochs,
)
from topside_daemon.fusion.writers import write_unified

UNIFIED_FILE = "unified_session.csv"
EXIT_DONE, EXIT_USAGE, EXIT_LOSS, EXIT_BUG = 0, 2, 3, 70
DROPOUT_PERIODS = 3  # a longer interval is a sensor that was away
REJECTS_SHOWN = 20


class SensorReport(Struct, frozen=True):
    """What one sensor's record held. single: rows without a partner; missing: holes in seq."""

    name: str
    rows: int
    single: int
    dropouts: int
    markers: int
    duplicates: int
    torn: int
    missing: int


class Report(Struct, frozen=True):
    """What a fusion did. Distances are absolute, in ms; gaps as the README defines them.

    gaps: in-water readings inside the overlap of both sensors and outside surface dropouts that found
    no partner. refused counts exchanges by reason.
    """

    session: str
    output: str
    rows: int
    paired: int
    gaps: int
    inwater: SensorReport
    surface: SensorReport
    tolerance_ms: float
    pair_p50_ms: float | None
    pair_p95_ms: float | None
    pair_max_ms: float | None
    clock_status: dict[str, int]
    clock: list[SegmentState]
    bursts_used: int
    refused: dict[str, int]
    rejects: list[Reject]
    notes: list[str]

    @property
    def lossless(self) -> bool:
        """No line was rejected and no seq is missing."""
        return not self.rejects and not self.inwater.missing and not self.surface.missing


def fuse_session(path: Path, out: Path | None = None, tolerance_ms: float | None = None) -> Report:
    """Fuse one folder into `unified_session.csv`, there or in *out*, replaced at once when complete.

    Args:
        path: a session folder, or the folder of one sensor.
        tolerance_ms: largest distance of a pair; by default from the periods and the clock's deviation.

    Raises:
        SessionError: nothing to fuse at *path*; the message names the cause and the cure.
        OSError: a file cannot be read or written.
    """
    session = read_session(path)
    timeline = _timeline(session)
    tolerance = _tolerance_ns(session, timeline) if tolerance_ms is None else round(tolerance_ms * 1e6)
    fuser = Fuser(timeline, tolerance)
    for reading in session.inwater.readings:
        fuser.push_inwater(reading)
    for reading in session.surface.readings:
        fuser.push_surface(reading)
    rows = fuser.finish()
    output = (out or path) / UNIFIED_FILE
    output.parent.mkdir(parents=True, exist_ok=True)
    write_unified(output, rows)
    return _report(session, timeline, tolerance, rows, output)


def _timeline(session: Session) -> Timeline:
    timeline = Timeline(
        complete_topside_epochs(_topside_epochs(session), session.surface.readings, session.exchanges),
        complete_pi_epochs(session.inwater.epochs, session.exchanges),
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


def _report(
    session: Session, timeline: Timeline, tolerance: int, rows: list[FusedRow], output: Path
) -> Report:
    inwater_ns = [row.time_ns for row in rows if row.inwater]
    surface_ns = sorted(row.time_ns - (row.pair_dt_ns or 0) for row in rows if row.surface)
    distances = sorted(abs(row.pair_dt_ns) for row in rows if row.pair_dt_ns is not None)
    dropouts = _dropouts(surface_ns)
    return Report(
        session=str(session.path),
        output=str(output),
        rows=len(rows),
        paired=len(distances),
        gaps=_gaps(rows, surface_ns, inwater_ns, dropouts),
        inwater=_sensor(session.inwater, len(distances), len(_dropouts(inwater_ns))),
        surface=_sensor(session.surface, len(distances), len(dropouts)),
        tolerance_ms=tolerance / 1e6,
        pair_p50_ms=_quantile_ms(distances, 50),
        pair_p95_ms=_quantile_ms(distances, 95),
        pair_max_ms=_quantile_ms(distances, 100),
        clock_status=dict(sorted(Counter(row.clock_status for row in rows if row.inwater).items())),
        clock=timeline.describe(),
        bursts_used=timeline.used,
        refused=dict(sorted(timeline.refused.items())),
        rejects=session.all_rejects,
        notes=session.notes,
    )


def _sensor(stream: Stream, paired: int, dropouts: int) -> SensorReport:
    return SensorReport(
        name=stream.name,
        rows=len(stream.readings),
        single=len(stream.readings) - paired,
        dropouts=dropouts,
        markers=stream.markers,
        duplicates=stream.duplicates,
        torn=stream.torn,
        missing=stream.missing,
    )


def _dropouts(times_ns: Sequence[int]) -> list[tuple[int, int]]:
    """Instants between which a sensor was silent for more than three of its periods."""
    longest_ns = DROPOUT_PERIODS * (period_ns(times_ns) or 0)
    return [(before, after) for before, after in pairwise(times_ns) if after - before > longest_ns]


def _gaps(
    rows: Sequence[FusedRow],
    surface_ns: Sequence[int],
    inwater_ns: Sequence[int],
    dropouts: Sequence[tuple[int, int]],
) -> int:
    if not surface_ns or not inwater_ns:
        return 0
    first_ns, last_ns = max(surface_ns[0], inwater_ns[0]), min(surface_ns[-1], inwater_ns[-1])
    alone = (row.time_ns for row in rows if row.inwater and row.surface is None)
    gaps = 0
    away = iter(dropouts)
    dropout = next(away, None)
    for time_ns in alone:
        while dropout and dropout[1] <= time_ns:
            dropout = next(away, None)
        silent = dropout is not None and dropout[0] < time_ns
        gaps += first_ns <= time_ns <= last_ns and not silent
    return gaps


def _quantile_ms(distances_ns: Sequence[int], percent: int) -> float | None:
    return distances_ns[(len(distances_ns) - 1) * percent // 100] / 1e6 if distances_ns else None


def report_text(report: Report) -> str:
    """A report for people, one fact a line."""
    lines = [f"{report.session} -> {report.output}", f"  rows {report.rows}: {report.paired} paired"]
    lines += [_sensor_text("in-water", report.inwater), _sensor_text("surface", report.surface)]
    lines.append(f"  gaps {report.gaps} (in-water readings in the overlap, no dropout, no partner)")
    if report.pair_max_ms is not None:
        lines.append(
            f"  pair distance p50 {report.pair_p50_ms:.1f}, p95 {report.pair_p95_ms:.1f}, "
            f"max {report.pair_max_ms:.1f} ms (tolerance {report.tolerance_ms:.1f} ms)"
        )
    lines += [f"  clock: {_segment_text(segment)}" for segment in report.clock] or ["  clock: no exchanges"]
    if report.refused:
        lines.append("  refused: " + ", ".join(f"{reason} {n}" for reason, n in report.refused.items()))
    lines += [f"  note: {note}" for note in report.notes]
    lines += [f"  rejected {one.file}:{one.line}: {one.reason}" for one in report.rejects[:REJECTS_SHOWN]]
    if len(report.rejects) > REJECTS_SHOWN:
        lines.append(f"  rejected: {len(report.rejects) - REJECTS_SHOWN} more (all of them with --json)")
    return "\n".join(lines)


def _sensor_text(label: str, sensor: SensorReport) -> str:
    if not sensor.name:
        return f"  {label}: no recording"
    return (
        f"  {label}: {sensor.rows} readings, {sensor.single} single, {sensor.dropouts} dropouts, "
        f"{sensor.missing} missing, {sensor.duplicates} duplicates, {sensor.torn} torn at the open end"
    )


def _segment_text(segment: SegmentState) -> str:
    return (
        f"offset {segment.offset_ns / 1e6:.3f} ± {segment.offset_sd_ns / 1e6:.3f} ms, "
        f"drift {segment.drift_ppm:.3f} ± {segment.drift_sd_ppm:.3f} ppm, {segment.used} bursts, "
        f"smallest delay {segment.delay_min_ns / 1e6:.3f} ms (Pi {segment.pi_boot_id[:8]})"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m topside_daemon.fusion", description="Fuse finished sessions into one table each."
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="folder of a session or of one sensor"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write there instead of into the session")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each session")
    parser.add_argument("--tolerance-ms", metavar="X", type=_milliseconds, help="largest distance of a pair")
    options = parser.parse_args(arguments)
    names = Counter(path.resolve().name for path in options.paths)
    if options.out and max(names.values()) > 1:
        parser.error(f"--out: two sessions are named {names.most_common(1)[0][0]}: fuse them one by one")
    try:
        codes = [_fuse_one(path, options, len(options.paths) > 1) for path in options.paths]
    except Exception:  # noqa: BLE001  the last line of defence: whatever gets here is our bug
        traceback.print_exc()
        return EXIT_BUG
    return max(codes)


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: give milliseconds from 0")
    return value


def _fuse_one(path: Path, options: argparse.Namespace, several: bool) -> int:
    out = options.out / path.resolve().name if options.out and several else options.out
    try:
        report = fuse_session(path, out, options.tolerance_ms)
    except SessionError as error:
        print(error, file=sys.stderr)
        return EXIT_LOSS if several else EXIT_USAGE
    except OSError as error:
        print(f"{path}: {error}: check the disk and who may read and write there", file=sys.stderr)
        return EXIT_LOSS
    print(to_json(report).decode() if options.json else report_text(report), flush=True)
    return EXIT_DONE if report.lossless else EXIT_LOSS


if __name__ == "__main__":
    sys.exit(main())
