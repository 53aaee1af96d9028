"""The table as Parquet: numbers as numbers, instants as instants, each column with its unit."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from topside_daemon.fusion.tables import PERCENT, Output, file_name
from topside_daemon.fusion.writers import Sink

PIECE_BYTES = 1 << 22  # of lines, read together
GROUP_ROWS = 1 << 16

_WORD = pa.string()
_INSTANT = pa.timestamp("us", "UTC")
_KINDS = {
    "sensor_id": (_WORD, "", "as the sensor names itself"),
    "mode": (_WORD, "", "of sampling"),
    "value": (pa.float64(), "as calibrated in the sensor", "light"),
    "TempC": (pa.float64(), "°C", "of the sensor"),
    "Vin": (pa.float64(), "V", "supply of the sensor"),
}
_OTHERS = {
    "timestamp": (_INSTANT, "UTC", "when the light was averaged, on the topside clock"),
    "surface_timestamp_used": (_INSTANT, "UTC", "of the surface reading beside it, on the same clock"),
    "surface_age_ms": (pa.int64(), "ms", "how much older the surface reading is"),
    "surface_status": (_WORD, "", "fresh, stale or missing"),
    "inwater_seq": (pa.int64(), "", "number of the in-water reading"),
    "surface_seq": (pa.int64(), "", "number of the surface reading"),
    "inwater_timestamp_raw": (_INSTANT, "UTC", "by the Pi's own wall clock"),
    "offset_ms": (pa.float64(), "ms", "Pi - topside"),
    "offset_sd_ms": (pa.float64(), "ms", "standard deviation of offset_ms"),
    "pair_dt_ms": (pa.float64(), "ms", "in-water - surface time"),
    "clock_status": (_WORD, "", "what offset_ms rests on"),
    "offset_low_ms": (pa.float64(), "ms", "offset_ms is certainly not less"),
    "offset_high_ms": (pa.float64(), "ms", "offset_ms is certainly not more"),
    PERCENT: (pa.float64(), "%", "in-water value / surface value"),
}


class ParquetTable:
    """Compressed, in row groups of one size."""

    def __init__(self, sink: Sink, columns: list[str]) -> None:
        self._sink = sink
        self._schema = pa.schema([_field(name) for name in columns])
        self._writer = pa.parquet.ParquetWriter(
            pa.PythonFile(_File(sink), "w"), self._schema, compression="zstd", version="2.6"
        )
        self._lines = bytearray()
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, lines: memoryview) -> None:
        self._lines += lines
        if len(self._lines) >= PIECE_BYTES:
            self._take_in()

    def _take_in(self) -> None:
        """Lines to columns, and those to whole groups."""
        if self._lines:
            table = pa.csv.read_csv(
                pa.BufferReader(bytes(self._lines)),
                read_options=pa.csv.ReadOptions(column_names=self._schema.names, use_threads=False),
                convert_options=pa.csv.ConvertOptions(
                    column_types=self._schema, null_values=[""], strings_can_be_null=True
                ),
            )
            self._waiting.append(table.cast(self._schema))
            self._rows += len(table)
            self._lines.clear()
        if self._rows >= GROUP_ROWS:
            self._write_groups(GROUP_ROWS)

    def _write_groups(self, least: int) -> None:
        """All groups of at least so many rows."""
        rows = pa.concat_tables(self._waiting)
        whole = len(rows) // least * least
        self._writer.write_table(rows.slice(0, whole), row_group_size=GROUP_ROWS)
        self._waiting, self._rows = [rows.slice(whole)], len(rows) - whole

    def finish(self, provenance: dict[str, bytes]) -> Output:
        self._take_in()
        if self._rows:
            self._write_groups(self._rows)
        self._writer.add_key_value_metadata(provenance)
        self._writer.close()
        self._sink.end()
        return Output(file_name("parquet"), self._sink.size)


class _File:
    """A sink as a file object."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: bytes) -> int:
        if not self._sink.closed:  # a writer that was given up closes itself when it is forgotten
            self._sink.write(bytes(data))
        return len(data)

    def tell(self) -> int:
        return self._sink.size

    def flush(self) -> None:
        """Nothing to do: the sink goes on by itself."""

    def close(self) -> None:
        """Likewise."""


def _field(name: str) -> pa.Field:
    side, _, rest = name.partition("_")
    sensor = {"inwater": "in-water sensor", "surface": "surface sensor"}.get(side)
    if sensor and rest in _KINDS:
        kind, unit, meaning = _KINDS[rest]
        return pa.field(name, kind, metadata={"unit": unit, "meaning": f"{sensor}: {meaning}"})
    kind, unit, meaning = _OTHERS[name]
    return pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})
