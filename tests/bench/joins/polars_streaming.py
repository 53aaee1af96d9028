"""Polars: scan_csv, join_asof, sink_csv, in its streaming engine."""

import polars as pl

from tests.bench.joins import COLUMNS, INWATER, MARKER, SURFACE, Task, task

STAMP = "%Y-%m-%dT%H:%M:%S%.6f+00:00"


def scan(path: str) -> pl.LazyFrame:
    rows = pl.scan_csv(path, infer_schema=False).filter(~pl.col("mode").str.starts_with(MARKER))
    stamp = pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC")
    return rows.with_columns(stamp.dt.replace_time_zone(None).alias("t"))


def joined(given: Task) -> pl.LazyFrame:
    label = pl.col("t").cast(pl.Int64)
    gained = ((label - given.zero_us - given.offset_us) * given.gain).cast(pl.Int64)
    corrected = (label - given.offset_us - gained).cast(pl.Datetime("us"))
    inwater = scan(str(given.folder / INWATER)).with_columns(corrected.alias("t"))
    surface = scan(str(given.folder / SURFACE)).with_columns(pl.col("t").alias("surface_t"))
    inwater = inwater.select("t", *(pl.col(name).alias(f"inwater_{name}") for name in COLUMNS))
    surface = surface.select(
        "t", "surface_t", *(pl.col(name).alias(f"surface_{name}") for name in COLUMNS)
    ).set_sorted("t")
    return inwater.set_sorted("t").join_asof(
        surface, on="t", strategy="nearest", tolerance=f"{given.tolerance_ms}ms"
    )


if __name__ == "__main__":
    asked = task()
    joined(asked).sink_csv(asked.out, engine="streaming", datetime_format=STAMP)
