"""What a fusion found and did, for people and for scripts."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

from msgspec import Struct

from common import VERSION
from common.messages import Epoch
from common.rows import format_utc
from topside_daemon.fusion.clockmodel import Estimate
from topside_daemon.fusion.ladder import RungName, Seed
from topside_daemon.fusion.latency import Latency
from topside_daemon.fusion.matching import period_ns
from topside_daemon.fusion.readers import Reject, Session, Stream
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.stream import FusedRow
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.fusion.timeline import SegmentProof, Timeline

DROPOUT_PERIODS = 3  # a longer interval is a sensor that was away
REJECTS_SHOWN = 20
UNRELIABLE = 0.05  # share of exchanges that contradict, beyond which stamps are not to be trusted


class Smoothed(Struct, frozen=True):
    """What dejittering did to one sensor's stamps. rms of the stamps around the sensor's own pace, ms.

    left: readings whose stamps stand as they are, by reason.
    """

    runs: int
    before_rms_ms: float
    left: dict[str, int]


class Handled(Struct, frozen=True):
    """What was done to the stamps of one sensor. latency: what was taken off every instant, because the light
    is older than its stamp; dejitter: None where it was not asked for."""

    latency: Latency
    dejitter: Smoothed | None


class SensorReport(Struct, frozen=True):
    """What one sensor's record held. single: rows without a partner; missing: holes in seq.

    latency and dejitter: see `Handled`.
    """

    name: str
    rows: int
    single: int
    dropouts: int
    markers: int
    duplicates: int
    torn: int
    missing: int
    latency: Latency
    dejitter: Smoothed | None


class Report(Struct, frozen=True):
    """What a fusion did. Distances are absolute, in ms; gaps as the README defines them.

    gaps: in-water readings inside the overlap of both sensors and outside surface dropouts that found
    no partner. clock: the segments with exchanges and their proof; seeds: what stands in where there are
    none. anchors: how topside time became UTC. link: what the next session over the same pair of machines
    may start from. refused counts exchanges by reason.
    """

    version: str
    settings: Settings
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
    clock: list[SegmentProof]
    seeds: list[Seed]
    anchors: list[Epoch]
    link: LinkMemory | None
    bursts_used: int
    refused: dict[str, int]
    rejects: list[Reject]
    notes: list[str]

    @property
    def lossless(self) -> bool:
        """No line was rejected and no seq is missing."""
        return not self.rejects and not self.inwater.missing and not self.surface.missing


def report_on(
    session: Session,
    settings: Settings,
    timeline: Timeline,
    tolerance: int,
    rows: Sequence[FusedRow],
    output: str,
    handled: tuple[Handled, Handled],
) -> Report:
    """Count what a fusion did; handled: the in-water and the surface sensor's stamps."""
    inwater_ns = [row.time_ns for row in rows if row.inwater]
    surface_ns = sorted(row.time_ns - (row.pair_dt_ns or 0) for row in rows if row.surface)
    distances = sorted(abs(row.pair_dt_ns) for row in rows if row.pair_dt_ns is not None)
    dropouts = _dropouts(surface_ns)
    clock = timeline.describe()
    return Report(
        version=VERSION,
        settings=settings,
        session=str(session.path),
        output=output,
        rows=len(rows),
        paired=len(distances),
        gaps=_gaps(rows, surface_ns, inwater_ns, dropouts),
        inwater=_sensor(session.inwater, len(distances), len(_dropouts(inwater_ns)), handled[0]),
        surface=_sensor(session.surface, len(distances), len(dropouts), handled[1]),
        tolerance_ms=tolerance / 1e6,
        pair_p50_ms=_quantile_ms(distances, 50),
        pair_p95_ms=_quantile_ms(distances, 95),
        pair_max_ms=_quantile_ms(distances, 100),
        clock_status=dict(sorted(Counter(row.clock_status for row in rows if row.inwater).items())),
        clock=clock,
        seeds=_seeds_used(session, rows),
        anchors=session.epochs,
        link=timeline.learned(max((one.topside_utc_ns for one in session.exchanges), default=0)),
        bursts_used=timeline.used,
        refused=dict(sorted(timeline.refused.items())),
        rejects=session.all_rejects,
        notes=session.notes + _doubts(timeline, clock),
    )


def _doubts(timeline: Timeline, clock: Sequence[SegmentProof]) -> list[str]:
    """What speaks against the stamps of the exchanges, and so against both intervals."""
    found: list[str] = []
    refused = sum(n for reason, n in timeline.refused.items() if "contradicts" in reason)
    if refused > UNRELIABLE * max(1, timeline.exchanges):
        share = 100 * refused / timeline.exchanges
        found.append(
            f"{share:.0f} % of the exchanges contradict the others: stamps lie, and so may intervals"
        )
    void = sum(segment.evidence.contradictions for segment in clock)
    if void:
        found.append(
            f"brackets exclude each other in {void} intervals between bursts: nothing is certified there"
        )
    if any(segment.evidence.memory == "contradicted" for segment in clock):
        found.append("what was remembered of the drift is of other clocks: not used")
    return found


def _seeds_used(session: Session, rows: Sequence[FusedRow]) -> list[Seed]:
    """Of the ladder, where no exchange spoke for a reading."""
    without = {row.inwater.epoch for row in rows if row.inwater and row.clock_status in get_args(RungName)}
    return [seed for seed in session.ladder.seeds if seed.epoch in without]


def _sensor(stream: Stream, paired: int, dropouts: int, handled: Handled) -> SensorReport:
    return SensorReport(
        name=stream.name,
        rows=len(stream.readings),
        single=len(stream.readings) - paired,
        dropouts=dropouts,
        markers=stream.markers,
        duplicates=stream.duplicates,
        torn=stream.torn,
        missing=stream.missing,
        latency=handled.latency,
        dejitter=handled.dejitter,
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
    lines += _sensor_lines("in-water", report.inwater) + _sensor_lines("surface", report.surface)
    lines.append(f"  gaps {report.gaps} (in-water readings in the overlap, no dropout, no partner)")
    if report.pair_max_ms is not None:
        lines.append(
            f"  pair distance p50 {report.pair_p50_ms:.1f}, p95 {report.pair_p95_ms:.1f}, "
            f"max {report.pair_max_ms:.1f} ms (tolerance {report.tolerance_ms:.1f} ms)"
        )
    lines += [f"  clock: {_segment_text(segment)}" for segment in report.clock] or ["  clock: no exchanges"]
    if report.clock:
        lines.append("    (± is one standard deviation: 1.96 of them hold the truth with 95 %)")
    lines += [line for seed in report.seeds for line in _seed_lines(seed)]
    lines += [f"  time: {_anchor_text(epoch)}" for epoch in report.anchors]
    if report.refused:
        lines.append("  refused: " + ", ".join(f"{reason} {n}" for reason, n in report.refused.items()))
    lines += [f"  note: {note}" for note in report.notes]
    lines += [f"  rejected {one.file}:{one.line}: {one.reason}" for one in report.rejects[:REJECTS_SHOWN]]
    if len(report.rejects) > REJECTS_SHOWN:
        lines.append(f"  rejected: {len(report.rejects) - REJECTS_SHOWN} more (all of them with --json)")
    return "\n".join(lines)


def _sensor_lines(label: str, sensor: SensorReport) -> list[str]:
    if not sensor.name:
        return [f"  {label}: no recording"]
    lines = [
        f"  {label}: {sensor.rows} readings, {sensor.single} single, {sensor.dropouts} dropouts, "
        f"{sensor.missing} missing, {sensor.duplicates} duplicates, {sensor.torn} torn at the open end",
        f"    instants {sensor.latency.total_ns / 1e6:.3f} ms before their stamps: {sensor.latency.reason}",
    ]
    if sensor.dejitter is not None:
        done = sensor.dejitter
        if done.runs:
            lines.append(f"    {done.before_rms_ms:.3f} ms rms of jitter taken off in {done.runs} runs")
        lines += [f"    {rows} stamps left as they are: {reason}" for reason, rows in done.left.items()]
    return lines


def _seed_lines(seed: Seed) -> list[str]:
    """What stands in for exchanges, how good it is and why."""
    lines = [f"  clock: {seed.rung}, quality {seed.quality}: {seed.reason}"]
    lines += [f"    refused: {reason}" for reason in seed.pairs_refused]
    return lines + [f"    step: {step}" for step in seed.steps]


def _anchor_text(epoch: Epoch) -> str:
    within = "" if epoch.wall_error_ns is None else f", within {epoch.wall_error_ns / 1e6:.1f} ms"
    known = {True: "synchronised", False: "not synchronised", None: "of unknown quality"}
    return (
        f"UTC from the topside wall clock at {format_utc(epoch.utc_ns)}, {known[epoch.synchronised]}{within}"
    )


def _segment_text(segment: SegmentProof) -> str:
    minutes = (segment.last_mono_ns - segment.first_mono_ns) / 60e9
    found = segment.evidence
    bursts = f"{segment.used} bursts in {minutes:.1f} min, {segment.refused} refused"
    return (
        f"Pi {segment.pi_boot_id[:8]}, {bursts}\n"
        f"    offset {_offset_text(segment.start)} at the start, {_offset_text(segment.end)} ms at the end\n"
        f"    drift {_drift_text(segment.start)} at the start, {_drift_text(segment.end)} ppm at the end\n"
        f"    residuals {_ms(found.residual_rms_ns)} ms rms, at most {_ms(found.residual_max_ns)}; "
        f"delays from {_ms(segment.delay_min_ns)}, median {_ms(found.delay_median_ns)}, "
        f"p95 {_ms(found.delay_p95_ns)} ms by {found.transport}"
    )


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.3f}"


def _offset_text(estimate: Estimate) -> str:
    certain = (estimate.high_ns - estimate.low_ns) / 2e6
    return f"{estimate.offset_ns / 1e6:.3f} ± {estimate.sd_ns / 1e6:.3f} (certain to {certain:.3f})"


def _drift_text(estimate: Estimate) -> str:
    return f"{estimate.drift_ppm:.3f} ± {estimate.drift_sd_ppm:.3f}"
