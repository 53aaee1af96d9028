"""DuckDB: two ASOF joins, of which the nearer counts. Tables in between and the threshold keep it from a plan
of nested loops, which does not end."""

import duckdb

from tests.bench.joins import COLUMNS, INWATER, MARKER, SURFACE, Task, task


def scan(path: str, instant: str) -> str:
    with open(path, encoding="ascii") as file:  # noqa: PTH123  a path that SQL gets too
        names = file.readline().strip().split(",")
    kinds = ", ".join(f"'{name}': '{'TIMESTAMPTZ' if name == 'timestamp' else 'VARCHAR'}'" for name in names)
    how = f"header = true, auto_detect = false, delim = ',', quote = '', columns = {{{kinds}}}"
    rows = f"read_csv('{path}', {how})"
    return (
        f"SELECT make_timestamp({instant}) AS t, {', '.join(COLUMNS)} FROM "
        f"(SELECT epoch_us(timestamp) AS us, * FROM {rows} WHERE NOT starts_with(mode, '{MARKER}'))"
    )


def run(given: Task) -> None:
    gained = f"((us - {given.zero_us} - {given.offset_us}) * {given.gain})::BIGINT"
    tables = {
        "inwater": scan(str(given.folder / INWATER), f"us - {given.offset_us} - {gained}"),
        "surface": scan(str(given.folder / SURFACE), "us"),
    }
    base = duckdb.connect()
    base.execute("SET TimeZone = 'UTC'")
    base.execute("SET asof_loop_join_threshold = 0")
    for name, query in tables.items():
        base.execute(f"CREATE TEMP TABLE {name} AS {query}")
    far = given.tolerance_ms * 1000
    kept = ", ".join(f"inwater.{name} AS inwater_{name}" for name in COLUMNS)
    picked = ", ".join(
        f"CASE WHEN pick THEN before.{name} ELSE after.{name} END AS surface_{name}"
        for name in ("t", *COLUMNS)
    )
    base.execute(
        f"""COPY (
            SELECT inwater.t, {kept}, {picked} FROM (
                SELECT inwater.*,
                    CASE WHEN epoch_us(inwater.t) - epoch_us(before.t) <= {far} THEN before END AS before,
                    CASE WHEN epoch_us(after.t) - epoch_us(inwater.t) <= {far} THEN after END AS after,
                    coalesce(epoch_us(inwater.t) - epoch_us(before.t), 1e18)
                        <= coalesce(epoch_us(after.t) - epoch_us(inwater.t), 1e18) AS pick
                FROM inwater
                ASOF LEFT JOIN surface AS before ON inwater.t >= before.t
                ASOF LEFT JOIN surface AS after ON inwater.t <= after.t
            ) AS inwater
        ) TO '{given.out}' (HEADER, DELIMITER ',')"""
    )


if __name__ == "__main__":
    run(task())
