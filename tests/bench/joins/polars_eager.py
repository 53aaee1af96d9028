"""Polars: the same, all in memory."""

from tests.bench.joins import task
from tests.bench.joins.polars_streaming import STAMP, joined

if __name__ == "__main__":
    asked = task()
    joined(asked).collect().write_csv(asked.out, datetime_format=STAMP)
