"""Recordings of any length for measurements: two sensors at 15 Hz, 40 ppm apart, with jitter and dropouts.

`python -m tests.bench.recordings FOLDER --rows N --kind ours|cockpit` lays one down: `ours` as the daemons
leave it, chunks of 15 s with their manifest, `cockpit` as the old pair did, one file a sensor with marker
rows in it. Both have a combined `session.csv` for programs that read one file.
"""

import argparse
import hashlib
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from common.manifest import Manifest
from common.messages import Chunk, Epoch, Exchange, Marker, Reading, to_json
from common.recovery import HEAD
from common.rows import OLD_HEADER, encode_marker_row, encode_row, format_utc
from tests.sim import UTC_0, S

Kind = Literal["ours", "cockpit"]

PERIOD_NS = S // 15
CHUNK_ROWS = 225  # 15 s
BEAT_S = {"ours": 30, "cockpit": 120}  # between comparisons of the clocks, and between markers
PROBES = 8
DROPOUT_EVERY_S, DROPOUT_S = 1800, (5, 20)
JITTER_NS = 4_000_000
SKEW_PPM = 40  # of the Pi's clock
APART_PPM = 40  # of the two sensors' own pace
OFFSET_NS = 250_000_000
UPTIME_NS = (3_600 * S, 86_400 * S)  # of the Pi and of the topside machine at the beginning
SYNC_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"


@dataclass(frozen=True)
class Clock:
    """A machine's two clocks as functions of true time."""

    boot_id: str
    uptime_ns: int
    ahead_ns: int = 0
    skew_ppm: int = 0

    def gained_ns(self, true_ns: int) -> int:
        return true_ns * self.skew_ppm // 1_000_000

    def mono_ns(self, true_ns: int) -> int:
        return self.uptime_ns + true_ns + self.gained_ns(true_ns)

    def utc_ns(self, true_ns: int) -> int:
        return (UTC_0 + self.ahead_ns + true_ns + self.gained_ns(true_ns)) // 1000 * 1000

    def epoch(self) -> Epoch:
        return Epoch(0, self.boot_id, self.mono_ns(0), self.utc_ns(0))


PI = Clock("00000000-0000-4000-8000-000000000001", UPTIME_NS[0], OFFSET_NS, SKEW_PPM)
DECK = Clock("00000000-0000-4000-8000-000000000002", UPTIME_NS[1])


def write_recording(folder: Path, rows: int, kind: Kind, seed: int = 1) -> None:
    """One session of about so many readings a side; the seed decides what it holds."""
    duration_s = rows // 15
    for number, (name, clock) in enumerate((("in-water_5f1d", PI), ("surface_77", DECK))):
        stream = folder / name
        stream.mkdir(parents=True)
        readings = _readings(random.Random(2 * seed + number), clock, rows, number)
        if kind == "ours":
            _write_ours(stream, readings, clock, duration_s)
            (stream / "session.json").write_bytes(to_json({"epochs": [clock.epoch()]}))
        else:
            _write_old(stream, readings, clock, duration_s)
    if kind == "ours":
        (folder / "session.json").write_bytes(to_json({"epochs": [DECK.epoch()]}))
        _write_exchanges(folder / "exchanges.jsonl", random.Random(seed), duration_s)


def _readings(rng: random.Random, clock: Clock, rows: int, side: int) -> Iterator[Reading]:
    period_ns = PERIOD_NS + side * PERIOD_NS * APART_PPM // 1_000_000
    away, light, seq = (0, 0), 0.5, 0
    for number in range(rows):
        true_ns = (2 * side + 1) * 7_000_000 + number * period_ns + rng.randrange(JITTER_NS)
        if true_ns > away[1] and true_ns // S // DROPOUT_EVERY_S > away[0] // S // DROPOUT_EVERY_S:
            away = (true_ns, true_ns + rng.randint(*DROPOUT_S) * S)
        if away[0] <= true_ns < away[1]:
            continue
        light += 0.001 * (0.5 - light) + rng.uniform(-1e-3, 1e-3)
        value, vin = f"{light:.6f}", "7.494" if seq % 3 else "7.515"
        mono_ns, utc_ns = clock.mono_ns(true_ns), clock.utc_ns(true_ns)
        yield Reading(seq, 0, mono_ns, utc_ns, "serial ######   ", "freerun", value, "25.19", vin)
        seq += 1


def _beats(clock: Clock, duration_s: int, kind: Kind) -> list[tuple[int, int]]:
    """Number and instant by this clock of every marker."""
    way_ns = 4_000_000 if clock is PI else 0
    every = range(1, duration_s, BEAT_S[kind])
    return [(n, clock.mono_ns(at_s * S + way_ns)) for n, at_s in enumerate(every)]


def _write_ours(folder: Path, readings: Iterator[Reading], clock: Clock, duration_s: int) -> None:
    beats = _beats(clock, duration_s, "ours")
    chunks: list[Chunk] = []
    markers: list[Marker] = []
    with (folder / "session.csv").open("wb") as combined:
        combined.write(HEAD.replace(b"\r\n", b"\n"))
        while some := list(islice(readings, CHUNK_ROWS)):
            rows = [encode_row(one) for one in some]
            while beats and beats[0][1] < some[-1].mono_ns:
                sequence, mono_ns = beats.pop(0)
                place = bisect_left(some, mono_ns, key=lambda one: one.mono_ns)
                utc_ns = some[0].utc_ns + mono_ns - some[0].mono_ns
                kind: Literal["START", "PERIODIC"] = "PERIODIC" if sequence else "START"
                marker = Marker(SYNC_ID, kind, sequence, 0, mono_ns, utc_ns, some[place].seq - 1)
                rows.insert(place, encode_marker_row(marker, some[0].sensor_id))
                markers.append(marker)
            body = b"".join(rows)
            name = f"chunk_{len(chunks):05d}.csv"
            (folder / name).write_bytes(HEAD + body)
            combined.write(body.replace(b"\r\n", b"\n"))
            digest = hashlib.sha256(HEAD + body).hexdigest()
            size = len(HEAD) + len(body)
            chunks.append(Chunk(len(chunks), name, len(rows), size, digest, some[0].seq, some[-1].seq))
    (folder / "manifest.json").write_bytes(to_json(Manifest.of("5f1d", "", chunks)))
    (folder / "markers.jsonl").write_bytes(b"".join(to_json(one) + b"\n" for one in markers))


def _write_old(folder: Path, readings: Iterator[Reading], clock: Clock, duration_s: int) -> None:
    beats = _beats(clock, duration_s, "cockpit")
    with (folder / "session.csv").open("w", newline="\n") as file:
        file.write(OLD_HEADER + "\n")
        for r in readings:
            while beats and beats[0][1] < r.mono_ns:
                sequence, mono_ns = beats.pop(0)
                label, name = format_utc(r.utc_ns + mono_ns - r.mono_ns), 0xF47AC100 | sequence & 0xFF
                file.write(f"{label},{r.sensor_id},SYNC_PERIODIC,{name},0.0,0.0\n")
            columns = (format_utc(r.utc_ns), r.sensor_id, r.mode, r.value, r.temp_c, r.vin)
            file.write(",".join(map(str, columns)) + "\n")


def _write_exchanges(path: Path, rng: random.Random, duration_s: int) -> None:
    with path.open("wb") as file:
        for sequence, at_s in enumerate(range(1, duration_s, BEAT_S["ours"])):
            for probe in range(PROBES):
                sent_ns = at_s * S + probe * 40_000_000
                came_ns = sent_ns + 600_000 + round(rng.expovariate(1 / 150_000))
                back_ns = came_ns + 100_000 + 600_000 + round(rng.expovariate(1 / 150_000))
                exchange = Exchange(
                    sync_id=SYNC_ID,
                    kind="PERIODIC" if sequence else "START",
                    sequence=sequence,
                    probe=probe,
                    topside_boot_id=DECK.boot_id,
                    topside_utc_ns=DECK.utc_ns(sent_ns),
                    t1_ns=DECK.mono_ns(sent_ns),
                    t2_ns=PI.mono_ns(came_ns),
                    t3_ns=PI.mono_ns(came_ns + 100_000),
                    t4_ns=DECK.mono_ns(back_ns),
                    pi_boot_id=PI.boot_id,
                    pi_utc_ns=PI.utc_ns(came_ns),
                )
                file.write(to_json(exchange) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.recordings", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="readings a side; default %(default)s")
    parser.add_argument("--kind", choices=("ours", "cockpit"), default="ours")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    write_recording(given.folder, given.rows, given.kind, given.seed)


if __name__ == "__main__":
    main()
