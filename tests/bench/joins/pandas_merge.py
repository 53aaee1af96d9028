"""pandas: read_csv by Arrow, merge_asof, to_csv."""

import pandas as pd

from tests.bench.joins import COLUMNS, INWATER, MARKER, SURFACE, Task, task


def scan(path: str) -> pd.DataFrame:
    rows = pd.read_csv(path, dtype=str, keep_default_na=False, engine="pyarrow")
    rows = rows[~rows["mode"].str.startswith(MARKER)]
    stamps = pd.to_datetime(rows["timestamp"], format="ISO8601", utc=True)
    rows["t"] = stamps.dt.tz_localize(None).astype("datetime64[us]")
    return rows[["t", *COLUMNS]]


def run(given: Task) -> None:
    inwater, surface = scan(str(given.folder / INWATER)), scan(str(given.folder / SURFACE))
    label = inwater["t"].astype("int64")
    gained = ((label - given.zero_us - given.offset_us) * given.gain).astype("int64")
    inwater["t"] = (label - given.offset_us - gained).astype("datetime64[us]")
    surface["surface_t"] = surface["t"]
    found = pd.merge_asof(
        inwater.rename(columns={name: f"inwater_{name}" for name in COLUMNS}),
        surface.rename(columns={name: f"surface_{name}" for name in COLUMNS}),
        on="t",
        direction="nearest",
        tolerance=pd.Timedelta(f"{given.tolerance_ms}ms"),
    )
    found.to_csv(given.out, index=False)


if __name__ == "__main__":
    run(task())
