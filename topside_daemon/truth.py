"""A finished session held against what the simulated sensors really did, from the files alone."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from msgspec import Struct

from common.chunkstore import sealed_chunks
from common.rows import MARKER_MODE, parse_utc


class Line(Struct, frozen=True, gc=False):
    """One line a simulator sent: when its first byte left, on this machine's clocks, how long before that the
    light was averaged (the middle of it), and what it said."""

    mono_ns: int
    utc_ns: int
    age_ns: int
    said: tuple[str, str, str]


class Comparison(Struct, frozen=True):
    """What became of the readings of one session; times in ms, offsets Pi - topside.

    error: of the clock, a fused time against when the line left, the latency taken from it put back.
    light_age, latency: how long before its line left the light was averaged, and what was taken for it.
    """

    inwater_recorded: int
    surface_recorded: int
    recognised: int
    once_each: bool
    overlap: int
    paired: int
    error_p95_ms: float
    error_max_ms: float
    light_age_ms: float
    latency_ms: float
    offset_ms: float | None
    offset_sd_ms: float | None
    true_offset_ms: float | None

    @property
    def good(self) -> bool:
        """Every recorded reading was sent, is in the product once, and 99 % of the overlap is paired, or all
        but one: a busy machine may stamp one reading too late."""
        whole = self.once_each and self.inwater_recorded == self.recognised
        return whole and self.overlap > 0 and self.overlap - self.paired <= max(1, self.overlap // 100)


def read_truth(path: Path) -> list[Line]:
    """The lines of a simulator's truth file."""
    with path.open(newline="", encoding="ascii") as file:
        return [
            Line(
                int(row["mono_ns"]),
                int(row["utc_ns"]),
                int(row["mono_ns"]) - int(row["centre_ns"]),
                (row["value"], row["temp_c"], row["vin"]),
            )
            for row in csv.DictReader(file)
            if row["depth_m"] is not None
        ]


def recorded(stream: Path) -> list[tuple[int, tuple[str, str, str]]]:
    """(seq, what was said) of every reading in a stream folder, in order of seq."""
    readings = []
    for path in sealed_chunks(stream):
        with path.open(newline="", encoding="ascii") as file:
            readings += [
                (int(row["seq"]), (row["value"], row["TempC"], row["Vin"]))
                for row in csv.DictReader(file)
                if not row["mode"].startswith(MARKER_MODE)
            ]
    return sorted(readings)


def sent(readings: list[tuple[int, tuple[str, str, str]]], truth: list[Line]) -> Iterator[tuple[int, Line]]:
    """Each recorded reading with the line it was: both are in order, and nothing is recorded that was
    not sent. A reading without its line is left out."""
    start = 0
    for seq, said in readings:
        for place in range(start, len(truth)):
            if truth[place].said == said:
                yield seq, truth[place]
                start = place + 1
                break


def compare(
    session: Path, truth: list[Line], offset_ns_at: Callable[[int], int], latency_ns: int = 0
) -> Comparison:
    """Hold a session's product against the truth of its in-water sensor.

    Args:
        latency_ns: what the fusion took from every in-water time for the sensor's averaging and its line.
    """
    with (session / "unified_session.csv").open(newline="", encoding="ascii") as file:
        rows = list(csv.DictReader(file))
    inwater = recorded(next(session.glob("in-water_*")))
    surface = recorded(next(session.glob("surface_*")))
    lines = dict(sent(inwater, truth))
    fused = {int(row["inwater_seq"]): row for row in rows if row["inwater_seq"]}
    errors = sorted(
        abs(parse_utc(row["timestamp"]) + latency_ns - lines[seq].utc_ns) / 1e6
        for seq, row in fused.items()
        if seq in lines
    )
    overlap = _overlap(rows)
    last = fused[max(fused)]
    true_offset_ns = offset_ns_at(lines[max(lines)].mono_ns) if lines else None
    return Comparison(
        inwater_recorded=len(inwater),
        surface_recorded=len(surface),
        recognised=len(lines),
        once_each=_once(rows, "inwater_seq", inwater) and _once(rows, "surface_seq", surface),
        overlap=len(overlap),
        paired=sum(1 for row in overlap if row["surface_seq"]),
        error_p95_ms=errors[(len(errors) - 1) * 95 // 100] if errors else float("nan"),
        error_max_ms=errors[-1] if errors else float("nan"),
        light_age_ms=median(line.age_ns for line in lines.values()) / 1e6 if lines else float("nan"),
        latency_ms=latency_ns / 1e6,
        offset_ms=float(last["offset_ms"]) if last["offset_ms"] else None,
        offset_sd_ms=float(last["offset_sd_ms"]) if last["offset_sd_ms"] else None,
        true_offset_ms=None if true_offset_ns is None else true_offset_ns / 1e6,
    )


def _once(rows: list[dict[str, str]], column: str, readings: list[tuple[int, tuple[str, str, str]]]) -> bool:
    used = Counter(int(row[column]) for row in rows if row[column])
    return used == Counter(seq for seq, _ in readings)


def _overlap(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """In-water rows between the first and the last moment at which both sensors were recorded."""
    inwater = [parse_utc(row["timestamp"]) for row in rows if row["inwater_seq"]]
    surface = [
        parse_utc(row["surface_timestamp_used"] or row["timestamp"]) for row in rows if row["surface_seq"]
    ]
    if not inwater or not surface:
        return []
    first, last = max(inwater[0], surface[0]), min(inwater[-1], surface[-1])
    return [row for row in rows if row["inwater_seq"] and first <= parse_utc(row["timestamp"]) <= last]
