"""What the old API shows of the readings: the latest, the recent ones, statistics, a stream, an export.

Kept in memory beside whatever is recorded, so that there is something to see at any time.
"""

import asyncio
import importlib.util
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from aiohttp import web
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from common.clock import Clock
from common.disk import Disk
from common.files import make_folder, replace
from common.instrument import Arrival
from common.messages import number, to_json
from common.rows import OLD_HEADER, format_utc
from common.web import Refused, ended

ROWS = 100_000  # that are kept, the newest
SLICE = 200  # rows made into text between two turns of the event loop, so that no stamp comes late
HEARTBEAT_S = 20.0
LOOK_S = 0.1  # between looks whether there is a new reading to stream
EXPORTS = "exports"  # in the data folder
NO_DATA = "No data: nothing has been read yet"
NO_PARQUET = 'Parquet needs pyarrow, which is not installed here: take CSV, or "pip install pyarrow"'


class ReadingRow(Struct):
    """A reading in the old API's words, nothing at all before the first; numbers are the sensor's digits."""

    timestamp: str | UnsetType = UNSET
    sensor_id: str | UnsetType = UNSET
    mode: str | UnsetType = UNSET
    value: Raw | UnsetType = UNSET
    temp_c: Raw | UnsetType = field(default=UNSET, name="TempC")
    vin: Raw | UnsetType = field(default=UNSET, name="Vin")


class RecentQuery(Struct):
    seconds: Annotated[int, Meta(ge=1, le=300)] = 60


class Recent(Struct):
    rows: list[ReadingRow]


class Stats(Struct):
    row_count: int
    start_time: str | None
    end_time: str | None
    duration_s: float | None
    est_sample_rate_hz: float | None


class KeepQuery(Struct):
    """poll_interval_s and auto_flush_interval_s are taken and have no effect: readings come by themselves."""

    poll_interval_s: float = 0.2
    auto_flush_interval_s: float | None = None
    max_rows: Annotated[int, Meta(ge=1, le=ROWS)] = ROWS


class FlushQuery(Struct):
    flush: Literal["csv", "parquet", "none"] = "none"


class Keeping(Struct):
    status: str


class Kept(Struct):
    """flush_path: the file that was written, as the Pi names it."""

    status: str
    flush_path: str | None


class Views:
    """The newest readings.

    Args:
        data: the data folder; exports that the Pi is asked to keep are written there.
        connected: whether a sensor is heard.
    """

    def __init__(self, data: Path, clock: Clock, connected: Callable[[], bool]) -> None:
        self.restarted = False  # the old recorder is on
        self.taken = 0  # readings since the start of the daemon
        self._data = data
        self._clock = clock
        self._connected = connected
        self._exporting = asyncio.Lock()
        self._disk = Disk("exports")
        self._one_at_a_time = asyncio.Lock()
        self._rows: deque[bytes] = deque(maxlen=ROWS)

    def take(self, arrival: Arrival) -> None:
        """One reading more."""
        a = arrival
        numbers = f"{a.value},{a.temp_c or ''},{a.vin or ''}"
        row = f"{a.stamp.mono_ns},{a.stamp.utc_ns},{a.sensor_id},{a.mode},{numbers}"
        self.taken += 1
        self._rows.append(row.encode("utf-8"))  # a third of the memory of the reading

    def restart(self, most: int = ROWS) -> None:
        """Begin anew with nothing, as the old recorder did."""
        self.restarted = True
        self._rows = deque(maxlen=most)

    def rest(self) -> None:
        """The old recorder is off; what it kept stays, and the newest are kept as before."""
        self.restarted = False
        self._rows = deque(self._rows, maxlen=ROWS)

    async def latest(self) -> ReadingRow:
        """The newest reading."""
        return _row(self._rows[-1]) if self._rows else ReadingRow()

    async def recent(self, query: RecentQuery) -> Recent:
        """The readings of the last seconds, the oldest first."""
        since_ns = self._clock.mono_ns() - query.seconds * 1_000_000_000
        async with self._one_at_a_time:  # however many ask
            count = 0
            for row in reversed(self._rows):
                if int(row[: row.index(b",")]) < since_ns:
                    break
                count += 1
            newest = list(islice(self._rows, len(self._rows) - count, None))
            return Recent([_row(row) async for some in _slices(newest) for row in some])

    @property
    def kept(self) -> int:
        return len(self._rows)

    async def stats(self) -> Stats:
        """How many there are, since when, and how often one came; null only where no sensor is heard."""
        if not self._rows:
            nothing = 0.0 if self._connected() else None
            return Stats(0, None, None, nothing, nothing)
        first_ns, last_ns, count = _utc_ns(self._rows[0]), _utc_ns(self._rows[-1]), len(self._rows)
        span_s = (last_ns - first_ns) / 1e9
        rate_hz = (count - 1) / span_s if span_s > 0 else 0.0
        return Stats(count, format_utc(first_ns), format_utc(last_ns), span_s, rate_hz)

    async def keep(self, query: KeepQuery) -> Keeping:
        """As `Acquisition.keep`, whatever the sensor does."""
        if self.restarted:
            raise Refused(400, "already recording: stop it first")
        self.restart(query.max_rows)
        return Keeping("recording")

    async def flush(self, query: FlushQuery) -> Kept:
        """End what /recording/start began; the rows stay, and are written to a file if asked for."""
        if not self.restarted:
            raise Refused(400, "Recording not running: start it first")
        path = None
        if query.flush != "none":
            content = await (self._csv() if query.flush == "csv" else self._parquet())
            path = self._data / EXPORTS / self._file_name(query.flush)
            await self._disk.do(_write, path, content)
        self.rest()
        return Kept("stopped", str(path) if path else None)

    def _file_name(self, suffix: str) -> str:
        stamp = re.sub(r"[-:]", "", format_utc(self._clock.utc_ns())[:19]).replace("T", "_")
        return f"qsensor_data_{stamp}.{suffix}"

    async def export_csv(self, request: web.Request) -> web.StreamResponse:
        """All that is kept, as CSV with the old columns."""
        rows = self._some()
        self._check_free()
        async with self._exporting:
            response = web.StreamResponse(headers=_attachment(self._file_name("csv")))
            response.content_type, response.charset = "text/csv", "utf-8"
            await response.prepare(request)
            await response.write(f"{OLD_HEADER}\r\n".encode("ascii"))
            async for some in _slices(rows):
                await response.write(b"".join(map(_line, some)))
            await response.write_eof()
            return response

    async def export_parquet(self, _request: web.Request) -> web.Response:
        """The same as a Parquet file."""
        self._some()
        self._check_free()
        async with self._exporting:
            name, content = self._file_name("parquet"), await self._parquet()
        kind = "application/octet-stream"
        return web.Response(body=content, headers=_attachment(name), content_type=kind)

    def _check_free(self) -> None:
        """One at a time: each takes its share of every turn of the loop."""
        if self._exporting.locked():
            raise Refused(429, "another export is on its way: ask again when it is done")

    async def _csv(self) -> bytes:
        parts = [b"".join(map(_line, some)) async for some in _slices(list(self._rows))]
        return f"{OLD_HEADER}\r\n".encode("ascii") + b"".join(parts)

    async def _parquet(self) -> bytes:
        if importlib.util.find_spec("pyarrow") is None:
            raise Refused(501, NO_PARQUET)
        return await asyncio.to_thread(_as_parquet, await self._csv())

    def _some(self) -> list[bytes]:
        if not self._rows:
            raise Refused(400, NO_DATA)
        return list(self._rows)

    async def stream(self, request: web.Request) -> web.WebSocketResponse:
        """A WebSocket: the newest reading as JSON, ten times a second if there are so many."""
        channel = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=1024)
        await channel.prepare(request)
        if not self._rows and not self._connected():
            await channel.send_str(to_json({"error": "No data store available"}).decode("ascii"))
            await channel.close()
            return channel
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(self._send(channel))
            await ended(channel)
            sender.cancel()
        return channel

    async def _send(self, channel: web.WebSocketResponse) -> None:
        told: bytes | None = None
        with suppress(ConnectionError):
            while not channel.closed:
                if self._rows and self._rows[-1] is not told:
                    told = self._rows[-1]
                    await channel.send_str(to_json(_row(told)).decode("utf-8"))
                await asyncio.sleep(LOOK_S)


async def _slices(rows: Sequence[bytes]) -> AsyncIterator[Sequence[bytes]]:
    for start in range(0, len(rows), SLICE):
        yield rows[start : start + SLICE]
        await asyncio.sleep(0)


def _utc_ns(row: bytes) -> int:
    return int(row.split(b",", 2)[1])


def _line(row: bytes) -> bytes:
    _, stamp, rest = row.split(b",", 2)
    return b"%s,%s\r\n" % (format_utc(int(stamp)).encode("ascii"), rest)


def _row(row: bytes) -> ReadingRow:
    _, stamp, sensor_id, mode, value, temp_c, vin = row.decode("utf-8").split(",")
    digits = (number(text or None) for text in (value, temp_c, vin))
    return ReadingRow(format_utc(int(stamp)), sensor_id, mode, *digits)


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _write(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    replace(path, content)


def _as_parquet(content: bytes) -> bytes:
    csv: Any = importlib.import_module("pyarrow.csv")
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    sink = arrow.BufferOutputStream()
    parquet.write_table(csv.read_csv(arrow.py_buffer(content)), sink)
    return bytes(sink.getvalue())
