"""Arrow: its CSV reader and writer; its own as-of join looks backward only, so numpy finds the nearest."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from tests.bench.joins import COLUMNS, INWATER, MARKER, SURFACE, Task, task


def scan(path: str) -> pa.Table:
    kinds = {"timestamp": pa.timestamp("us", "UTC"), **{name: pa.string() for name in COLUMNS}}
    options = csv.ConvertOptions(column_types=kinds, include_columns=["timestamp", *COLUMNS])
    rows = csv.read_csv(path, convert_options=options)
    return rows.filter(pc.invert(pc.starts_with(rows["mode"], MARKER)))


def run(given: Task) -> None:
    inwater, surface = scan(str(given.folder / INWATER)), scan(str(given.folder / SURFACE))
    label, deck = (one["timestamp"].cast(pa.int64()).to_numpy() for one in (inwater, surface))
    gained = ((label - given.zero_us - given.offset_us) * given.gain).astype("int64")
    under = label - given.offset_us - gained
    after = np.clip(np.searchsorted(deck, under), 1, len(deck) - 1)
    nearest = np.where(under - deck[after - 1] <= deck[after] - under, after - 1, after)
    far = np.abs(deck[nearest] - under) > given.tolerance_ms * 1000
    partners = surface.take(pa.array(nearest, mask=far))
    columns = {"t": pa.array(under, pa.timestamp("us", "UTC"))}
    columns |= {f"inwater_{name}": inwater[name] for name in COLUMNS}
    columns |= {f"surface_{name}": partners[name] for name in COLUMNS}
    csv.write_csv(pa.table(columns | {"surface_t": partners["timestamp"]}), given.out)


if __name__ == "__main__":
    run(task())
