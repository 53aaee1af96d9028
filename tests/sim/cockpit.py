"""Session folders as the old Cockpit left them, with the truth behind them, and the old fusion's clock.

The topside clock is right until it is stepped, so the truth of a row is UTC_0 + its true time.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from common.rows import OLD_HEADER, format_utc, parse_utc
from tests.sim import MS, UTC_0, S

SYNC_VALUE = 0xF47AC10B
QUANTUM_NS = 15_200_000  # of a USB serial line
JITTER_NS = 15 * MS


@dataclass(frozen=True)
class Marking:
    """A marker in both files: true instants, None where a side has none; values as written."""

    kind: str
    surface_s: float | None
    inwater_s: float | None
    value: str = str(SYNC_VALUE)
    inwater_value: str | None = None


@dataclass(frozen=True)
class TimeSync:
    """What `/api/sync/time` gave at a true time; error_ms is the midpoint's, within uncertainty_ms."""

    at_s: float = 5.0
    error_ms: float = 0.0
    uncertainty_ms: int | None = 6


@dataclass(frozen=True)
class OldSession:
    """One old recording. offset and drift are the Pi's; steps are (true s, size s) of a wall clock."""

    duration_s: float = 600.0
    offset_s: float = 0.25
    drift_ppm: float = 0.0
    period_ns: int = 1034 * MS
    markings: tuple[Marking, ...] = ()
    time_sync: TimeSync | None = None
    inwater_from_s: float = 0.2
    surface_from_s: float = 0.1
    surface_gap_s: tuple[float, float] | None = None
    inwater_gap_s: tuple[float, float] | None = None
    twins: bool = False
    quantum_ns: int = 0
    pi_steps: tuple[tuple[float, float], ...] = ()
    topside_steps: tuple[tuple[float, float], ...] = ()
    seed: int = 1

    def pi_label_ns(self, true_ns: int) -> int:
        gained_ns = round(true_ns * self.drift_ppm / 1e6)
        return UTC_0 + true_ns + round(self.offset_s * S) + gained_ns + _stepped(self.pi_steps, true_ns)

    def topside_label_ns(self, true_ns: int) -> int:
        return (UTC_0 + true_ns + _stepped(self.topside_steps, true_ns)) // MS * MS

    def inwater_true_ns(self) -> list[int]:
        """Of every in-water row, in the order of arrival."""
        return self._instants(Random(self.seed), self.inwater_from_s, self.inwater_gap_s)

    def surface_true_ns(self) -> list[int]:
        """Of every surface row, in the order of arrival."""
        return self._instants(Random(self.seed + 1), self.surface_from_s, self.surface_gap_s)

    def _instants(self, rng: Random, from_s: float, gap_s: tuple[float, float] | None) -> list[int]:
        due = range(round(from_s * S), round(self.duration_s * S), self.period_ns)
        found = sorted(at_ns + round(rng.uniform(0, JITTER_NS)) for at_ns in due)
        if self.quantum_ns:
            found = [at_ns // self.quantum_ns * self.quantum_ns for at_ns in found]
        if gap_s:
            found = [at_ns for at_ns in found if not gap_s[0] * S <= at_ns < gap_s[1] * S]
        if self.twins:
            found = sorted(found + found[10::50])
        return found

    def write(self, folder: Path) -> Path:
        """Lay the two combined files and the metadata down."""
        under = [(at_ns, self.pi_label_ns(at_ns), "") for at_ns in self.inwater_true_ns()]
        deck = [(at_ns, self.topside_label_ns(at_ns), "") for at_ns in self.surface_true_ns()]
        for one in self.markings:
            name = f"SYNC_{one.kind},"
            if one.inwater_s is not None:
                at_ns = round(one.inwater_s * S)
                under.append(
                    (at_ns, self.pi_label_ns(at_ns), f"{name}{one.inwater_value or one.value},0.0,0.0")
                )
            if one.surface_s is not None:
                at_ns = round(one.surface_s * S)
                deck.append((at_ns, self.topside_label_ns(at_ns), f"{name}{one.value},0,0"))
        _write_rows(folder / "in-water_5f1d", under, format_utc)
        _write_rows(folder / "surface_77", deck, _milliseconds_text)
        (folder / "sync_metadata.json").write_text(json.dumps(self._metadata(), indent=2))
        return folder

    def _metadata(self) -> dict[str, Any]:
        return {
            "schemaVersion": 1,
            "timeSync": {"inWater": self._handshake(), "surface": None},
            "markers": [],
        }

    def _handshake(self) -> dict[str, Any] | None:
        if self.time_sync is None:
            return None
        at_ns = round(self.time_sync.at_s * S)
        offset_ns = self.pi_label_ns(at_ns) - self.topside_label_ns(at_ns) + self.time_sync.error_ms * MS
        return {
            "method": "ntp_handshake_v1",
            "offsetMs": round(offset_ns / MS),
            "uncertaintyMs": self.time_sync.uncertainty_ms,
            "measuredAt": _milliseconds_text(self.topside_label_ns(at_ns)),
        }


def _stepped(steps: Iterable[tuple[float, float]], true_ns: int) -> int:
    return sum(round(size_s * S) for at_s, size_s in steps if true_ns >= at_s * S)


def _milliseconds_text(utc_ns: int) -> str:
    moment = datetime.fromtimestamp(utc_ns // S, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{utc_ns // MS % 1000:03d}Z"


def _write_rows(folder: Path, rows: list[tuple[int, int, str]], label: Callable[[int], str]) -> None:
    folder.mkdir(parents=True)
    lines = [OLD_HEADER]
    for number, (_, label_ns, marker) in enumerate(sorted(rows, key=lambda row: row[0])):
        tail = marker or f"freerun,{0.010001 + number * 1e-6:.6f},25.19,7.494"
        lines.append(f"{label(label_ns)},serial ######   ,{tail}")
    (folder / "session.csv").write_text("\n".join([*lines, ""]))


def both(kind: str, at_s: float, way_ms: float = 4.0, value: str = str(SYNC_VALUE)) -> Marking:
    """One event in both records: the Pi's after the call's way."""
    return Marking(kind, at_s, at_s + way_ms / 1e3, value)


CONSTANT = OldSession(markings=(both("START", 1.0, 5.0), both("STOP", 595.0, 4.0)))
DRIFTING = replace(CONSTANT, drift_ppm=40.0)
REAL_ORDER = (Marking("START", 0.0, 3.7), Marking("STOP", 596.3, 595.0))
PERIODIC = tuple(
    Marking(
        "PERIODIC",
        60.0 * n,
        60.0 * n + 0.003,
        str(((SYNC_VALUE & 0xFFFFFF00) | n) - (1 << 32)),
        f"{(SYNC_VALUE & 0xFFFFFF00) | n}.0",
    )
    for n in range(1, 10)
)
KINDS: dict[str, OldSession] = {
    "constant": CONSTANT,
    "drifting": DRIFTING,
    "missing STOP": replace(CONSTANT, markings=(both("START", 1.0), Marking("STOP", 595.0, None))),
    "real order": replace(CONSTANT, markings=REAL_ORDER, surface_from_s=4.3, inwater_from_s=3.9),
    "time-sync only": replace(CONSTANT, markings=(Marking("START", 1.0, None),), time_sync=TimeSync()),
    "nothing": replace(CONSTANT, markings=()),
    "surface gap": replace(CONSTANT, surface_gap_s=(200.0, 245.0), time_sync=TimeSync()),
    "periodic": replace(DRIFTING, markings=(*CONSTANT.markings, *PERIODIC)),
    "two in one ms": replace(CONSTANT, twins=True),
    "step back": replace(CONSTANT, pi_steps=((300.0, -37.0),)),
    "step forward": replace(CONSTANT, pi_steps=((300.0, 37.0),)),
    "9 Hz quantised": replace(DRIFTING, period_ns=111 * MS, quantum_ns=QUANTUM_NS, duration_s=600.0),
}


@dataclass
class _Side:
    labels_ms: list[int] = field(default_factory=list)
    markers_ms: dict[str, int] = field(default_factory=dict)


def old_fusion_ns(folder: Path) -> list[int]:
    """Corrected UTC of every in-water row as the old Cockpit's fusion had it: whole milliseconds, last
    marker of a kind wins, ids not looked at, one-way offsets, the time-sync for a missing STOP."""
    under, deck = _read_side(folder / "in-water_5f1d"), _read_side(folder / "surface_77")
    handshake = json.loads((folder / "sync_metadata.json").read_text())["timeSync"]["inWater"]
    sync_ms = handshake and handshake["offsetMs"]
    start, rate = _old_model(under.markers_ms, deck.markers_ms, sync_ms)
    from_ms = under.markers_ms.get("START", 0)
    return [round((at_ms - start - rate * (at_ms - from_ms)) * MS) for at_ms in under.labels_ms]


def _old_model(under: dict[str, int], deck: dict[str, int], sync_ms: int | None) -> tuple[float, float]:
    if "START" not in deck:
        return sync_ms or 0, 0.0
    first = under["START"] - deck["START"] if "START" in under else sync_ms
    if first is None or "START" not in under or "STOP" not in deck:
        return first or 0, 0.0
    last = under["STOP"] - deck["STOP"] if "STOP" in under else sync_ms
    duration_ms = deck["STOP"] - deck["START"]
    if last is None:
        return first, 0.0
    if duration_ms == 0 or abs(last - first) < 2:
        return (first + last) / 2, 0.0
    return first, (last - first) / duration_ms


def _read_side(folder: Path) -> _Side:
    side = _Side()
    for line in (folder / "session.csv").read_text().splitlines()[1:]:
        label, _, mode, *_ = line.split(",")
        at_ms = parse_utc(label) // MS
        if mode in ("SYNC_START", "SYNC_STOP"):
            side.markers_ms[mode.removeprefix("SYNC_")] = at_ms
        elif mode != "SYNC_PERIODIC":
            side.labels_ms.append(at_ms)
    return side
