"""The as-of join that a user of each library would write: in-water readings, corrected by the true offset and
drift, each with the nearest surface reading within a tolerance. Each is called with the folder of a recording
(see `recordings`), the file to write, and that truth."""

import argparse
from pathlib import Path
from typing import NamedTuple

INWATER, SURFACE = "in-water_5f1d/session.csv", "surface_77/session.csv"
COLUMNS = ["sensor_id", "mode", "value", "TempC", "Vin"]
MARKER = "SYNC_"


class Task(NamedTuple):
    """offset_us: Pi - topside at zero_us of the topside clock; gain: by how much it grows, s/s."""

    folder: Path
    out: Path
    offset_us: int
    zero_us: int
    gain: float
    tolerance_ms: int


def task() -> Task:
    """From the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("offset_us", "zero_us"):
        parser.add_argument(name, type=int)
    parser.add_argument("gain", type=float)
    parser.add_argument("tolerance_ms", type=int)
    return Task(**vars(parser.parse_args()))
