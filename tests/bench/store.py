"""What a row costs in the store, and what sealing a chunk costs, as a recording grows; beside csv.DictWriter
with nothing flushed, synced, hashed or numbered. CPU time of the calls, readings in threes as they come from
a port."""

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median

from common.chunkstore import ChunkStore
from common.messages import Reading
from common.rows import encode_row
from tests.sim import UTC_0, S

TOGETHER = 3
RATE_HZ = 15
SLICE_ROWS = 30_000  # over which a cost is averaged
SEALS = 50  # in the median
NAMES = ("timestamp", "sensor_id", "mode", "value", "TempC", "Vin")


def readings(first: int, count: int) -> list[Reading]:
    names = ("serial ######", "freerun", "0.512345", "25.19", "7.494")
    instants = ((n, n * S // RATE_HZ) for n in range(first, first + count))
    return [Reading(n, 0, at_ns, UTC_0 + at_ns, *names) for n, at_ns in instants]


def batches(rows: list[Reading]) -> Iterator[list[Reading]]:
    return (rows[n : n + TOGETHER] for n in range(0, len(rows), TOGETHER))


def append(store: ChunkStore, rows: list[Reading]) -> float:
    """us of CPU for a row, syncs and seals left out."""
    spent_ns = 0
    for some in batches(rows):
        begun_ns = time.process_time_ns()
        store.append([encode_row(one) for one in some], [one.seq for one in some], some[0].mono_ns)
        spent_ns += time.process_time_ns() - begun_ns
        if store.roll_due(some[0].mono_ns):
            store.seal()
    return spent_ns / len(rows) / 1e3


def plain(path: Path, rows: list[Reading]) -> float:
    """The same of csv.DictWriter."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, NAMES)
        begun_ns = time.process_time_ns()
        for r in rows:
            stamp = datetime.fromtimestamp(r.utc_ns / 1e9, UTC).isoformat()
            columns = (stamp, r.sensor_id, r.mode, float(r.value), float(r.temp_c or 0), float(r.vin or 0))
            writer.writerow(dict(zip(NAMES, columns, strict=True)))
        return (time.process_time_ns() - begun_ns) / len(rows) / 1e3


def growth(place: Path, most: int) -> None:
    """The cost of a row after more and more of them, in a store that is never left."""
    store, done = ChunkStore(place, "bench", "", 15.0), 0
    first_us = 0.0
    for upto in (SLICE_ROWS, most // 10, most):
        while done + SLICE_ROWS < upto:
            append(store, readings(done, SLICE_ROWS))
            done += SLICE_ROWS
        cost_us = append(store, readings(done, SLICE_ROWS))
        done += SLICE_ROWS
        first_us = first_us or cost_us
        print(f"  after {done:8d} rows: {cost_us:5.2f} us a row, x {cost_us / first_us:.2f}", flush=True)
    other_us = plain(place / "plain.csv", readings(0, SLICE_ROWS))
    print(f"  csv.DictWriter:      {other_us:5.2f} us a row; this in its terms x {first_us / other_us:.2f}")
    store.close()


def seals(place: Path, most: int) -> None:
    """The cost of sealing a chunk after more and more of them."""
    store, first_us = ChunkStore(place, "bench", "", 15.0), 0.0
    for upto in (SEALS, most // 4, most):
        costs: list[int] = []
        while len(store.chunks) < upto or len(costs) < SEALS:
            row = readings(len(store.chunks), 1)[0]
            store.append([encode_row(row)], [row.seq], row.mono_ns)
            begun_ns = time.process_time_ns()
            store.seal()
            costs.append(time.process_time_ns() - begun_ns)
        cost_us, usual_us = fmean(costs[-SEALS:]) / 1e3, median(costs[-SEALS:]) / 1e3
        first_us = first_us or cost_us
        print(
            f"  at {len(store.chunks):5d} chunks: {cost_us:6.0f} us of CPU a seal, usually {usual_us:.0f}, "
            f"x {cost_us / first_us:.2f}",
            flush=True,
        )
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--chunks", type=int, default=4000)
    given = parser.parse_args()
    print("the store")
    for measure, most in ((growth, given.rows), (seals, given.chunks)):
        with tempfile.TemporaryDirectory() as place:
            measure(Path(place), most)


if __name__ == "__main__":
    main()
