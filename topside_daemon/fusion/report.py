"""What a fusion found and did, for people and for scripts."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from msgspec import Struct

from common import VERSION
from common.messages import Epoch, Event
from common.rows import format_utc
from topside_daemon.fusion.axis import Axis
from topside_daemon.fusion.clockmodel import Estimate
from topside_daemon.fusion.columns import INWATER, SURFACE
from topside_daemon.fusion.courses import STATUSES
from topside_daemon.fusion.intake import Reject
from topside_daemon.fusion.ladder import RungName, Seed
from topside_daemon.fusion.latency import Latency
from topside_daemon.fusion.readers import Session, Stream
from topside_daemon.fusion.settings import Settings
from topside_daemon.fusion.smoothing import Smoothed
from topside_daemon.fusion.tables import Output
from topside_daemon.fusion.tether import LinkMemory
from topside_daemon.fusion.texts import Input, shown
from topside_daemon.fusion.timeline import SegmentProof, Timeline
from topside_daemon.fusion.weaving import Weaver

REJECTS_SHOWN = 20
UNRELIABLE = 0.05  # share of exchanges that contradict, beyond which stamps are not to be trusted


class Side(NamedTuple):
    """One sensor's rows on the axis. latency: what was taken off every instant, because the light is older
    than its stamp; smoothed: None where dejittering was not asked for."""

    axis: Axis
    latency: Latency
    smoothed: Smoothed | None


class SensorReport(Struct, frozen=True):
    """What one sensor's record held. single: rows without a partner, None where nobody looks for one (of the
    surface in mode inwater); missing: numbers given out and not
    here; unnumbered: rows of the old recorders that were read.

    clock_events: what the wall clock of its machine did. latency and dejitter: see `Side`.
    """

    name: str
    rows: int
    unnumbered: int
    single: int | None
    dropouts: int
    markers: int
    duplicates: int
    torn: int
    missing: int
    clock_events: list[Event]
    latency: Latency
    dejitter: Smoothed | None


class Report(Struct):
    """What a fusion did; the same again for the same files, settings and version. Distances are absolute, in
    ms; gaps as the README defines them.

    source: what kind of recording it is. paired: rows with both sensors; fresh: those that say so (all,
    but in mode inwater the age of the surface reading decides). gaps: in-water readings inside the overlap of
    both sensors and outside surface dropouts that found no partner. clock: the segments with exchanges and
    their proof; seeds: what stands in where there are none. anchors: how topside time became UTC. link: what
    the next session over the same pair of machines may start from. refused counts exchanges by reason.
    """

    version: str
    settings: Settings
    session: str
    source: str
    rows: int
    paired: int
    fresh: int
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
    inputs: list[Input]
    outputs: list[Output] = []

    @property
    def lossless(self) -> bool:
        """No line was rejected and no seq is missing."""
        return not self.rejects and not self.inwater.missing and not self.surface.missing


def report_on(
    session: Session,
    settings: Settings,
    timeline: Timeline,
    tolerance: int,
    sides: tuple[Side, Side],
    weaver: Weaver,
) -> Report:
    """Say what a fusion did."""
    clock, totals, distances = timeline.describe(), weaver.totals, weaver.distances.summary()
    statuses = {name: totals.statuses[place] for place, name in enumerate(STATUSES) if totals.statuses[place]}
    held = settings.mode == "inwater"
    inwater = _sensor(session.inwater, totals.paired, sides[INWATER])
    surface = _sensor(session.surface, None if held else totals.paired, sides[SURFACE])
    return Report(
        version=VERSION,
        settings=settings,
        session=shown(session.path.resolve().name),
        source=session.source,
        rows=totals.rows,
        paired=totals.paired,
        fresh=totals.fresh,
        gaps=totals.gaps,
        inwater=inwater,
        surface=surface,
        tolerance_ms=tolerance / 1e6,
        pair_p50_ms=_ms_of(distances.quantile(0.5)),
        pair_p95_ms=_ms_of(distances.quantile(0.95)),
        pair_max_ms=_ms_of(totals.largest_ns) if totals.paired else None,
        clock_status=dict(sorted(statuses.items())),
        clock=clock,
        seeds=_seeds_used(session, statuses, clock),
        anchors=session.epochs,
        link=timeline.learned(session.comparisons.latest_utc_ns),
        bursts_used=timeline.used,
        refused=dict(sorted(timeline.refused.items())),
        rejects=session.all_rejects,
        notes=session.notes + _apart(sides, totals.paired) + _doubts(timeline, clock),
        inputs=session.inputs,
    )


def _ms_of(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e6


def _apart(sides: tuple[Side, Side], paired: int) -> list[str]:
    """Two records without a single pair: where they lie."""
    ends = [(side.axis.first_ns, side.axis.last_ns) for side in sides]
    if paired or any(end is None for both in ends for end in both):
        return []
    spans = [f"{format_utc(first or 0)[:19]} to {format_utc(last or 0)[:19]}" for first, last in ends]
    return [f"no reading of one sensor is near one of the other: in-water {spans[0]}, surface {spans[1]}"]


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


def _seeds_used(session: Session, statuses: Iterable[str], clock: Sequence[SegmentProof]) -> list[Seed]:
    """Of the ladder, where no exchange spoke for a reading."""
    if not set(statuses) & set(get_args(RungName)):
        return []
    heard = {segment.pi_boot_id for segment in clock}
    spoken_for = {epoch.epoch for epoch in session.inwater.epochs if epoch.boot_id in heard}
    return [seed for seed in session.ladder.seeds if seed.epoch not in spoken_for]


def _sensor(stream: Stream, paired: int | None, side: Side) -> SensorReport:
    return SensorReport(
        name=stream.name,
        rows=stream.index.rows,
        unnumbered=stream.unnumbered,
        single=None if paired is None else stream.index.rows - paired,
        dropouts=side.axis.rhythm.dropouts,
        markers=stream.markers,
        duplicates=stream.duplicates,
        torn=stream.torn,
        missing=stream.missing,
        clock_events=stream.clock_events,
        latency=side.latency,
        dejitter=side.smoothed,
    )


def report_text(report: Report) -> str:
    """A report for people, one fact a line."""
    held = report.settings.mode == "inwater"
    lines = [f"  found: {report.source}", _rows_line(report, held)]
    lines += _sensor_lines("in-water", report.inwater) + _sensor_lines("surface", report.surface)
    lines.append(f"  gaps {report.gaps} (in-water readings in the overlap, no dropout, no partner)")
    if report.pair_max_ms is not None:
        limit = "" if held else f" (tolerance {report.tolerance_ms:.1f} ms)"
        lines.append(
            f"  {'age of the surface value' if held else 'pair distance'} p50 {report.pair_p50_ms:.1f}, "
            f"p95 {report.pair_p95_ms:.1f}, max {report.pair_max_ms:.1f} ms{limit}"
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


def _rows_line(report: Report, held: bool) -> str:
    if not held:
        return f"  rows {report.rows}: {report.paired} paired"
    stale, missing = report.paired - report.fresh, report.rows - report.paired
    return (
        f"  rows {report.rows} (mode inwater): surface {report.fresh} fresh, {stale} stale, {missing} missing"
    )


def _sensor_lines(label: str, sensor: SensorReport) -> list[str]:
    if not sensor.name:
        return [f"  {label}: no recording"]
    alone = "" if sensor.single is None else f"{sensor.single} single, "
    lines = [
        f"  {label}: {sensor.rows} readings, {alone}{sensor.dropouts} dropouts, "
        f"{sensor.missing} missing, {sensor.duplicates} duplicates, {sensor.torn} torn at the open end",
        f"    instants {sensor.latency.total_ns / 1e6:.3f} ms before their stamps: {sensor.latency.reason}",
    ]
    lines += [f"    {format_utc(event.utc_ns)[:19]} {event.detail}" for event in sensor.clock_events]
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
