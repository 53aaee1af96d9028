"""Files of a recording as they are served: whole or by range, and never a byte that may still change."""

import os
import re
from bisect import bisect_left
from pathlib import Path

from aiohttp import web

from common.chunkstore import CHUNK_NAME, sealed_name
from common.disk import Disk
from common.manifest import MANIFEST, Manifest
from common.messages import Chunk, to_json
from common.web import Refused
from pi_daemon.shelf import SessionState

SIDE_FILES = ("session.json", "markers.jsonl", "events.jsonl")
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")


class Downloads:
    """Answers requests for files below one data folder; reads on a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._disk = Disk("downloads")

    async def serve(self, request: web.Request, state: SessionState, name: str) -> web.Response:
        """A file, or the wanted range of it; of the open chunk, what is durable.

        A sealed chunk's ETag is its sha256: a range of a chunk that is another one by now is not given.

        Raises:
            Refused: 404 no such file, 412 not the one that was asked for.
        """
        tag = _tag(state, name)
        if tag is not None and request.headers.get("If-Match", tag) not in (tag, "*"):
            raise Refused(412, f"{name} is not what it was: list the chunks again")
        wanted = _wanted_range(request, tag)
        first, last = wanted or (0, None)
        try:
            content, size = await self._disk.do(self._read, state, name, first, last)
        except FileNotFoundError:
            raise Refused(404, f"no file {name!r} in session {state.record.session_id}") from None
        headers = {"Accept-Ranges": "bytes", "Content-Disposition": f'attachment; filename="{name}"'}
        if tag is not None:
            headers["ETag"] = tag
        kind = "application/json" if name.endswith((".json", ".jsonl")) else "text/csv"
        if wanted is None:
            return web.Response(body=content, headers=headers, content_type=kind)
        if first >= size:
            headers["Content-Range"] = f"bytes */{size}"
            detail = f"range starts at {first}, the file has {size} bytes"
            return web.json_response({"detail": detail}, status=416, headers=headers)
        headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{size}"
        return web.Response(body=content, status=206, headers=headers, content_type=kind)

    def _read(self, state: SessionState, name: str, first: int, last: int | None) -> tuple[bytes, int]:
        """Bytes first..last of a file, and how many it has for readers."""
        if name == MANIFEST:  # the one on the disk lags behind
            record = state.record
            content = to_json(Manifest.of(record.session_id, record.started_at, state.chunks))
            return content[first : None if last is None else last + 1], len(content)
        path, size = _locate(self._folder / state.record.session_id, name, state)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size if size is None else size
            end = size if last is None else min(size, last + 1)
            return os.pread(fd, max(end - first, 0), first), size
        finally:
            os.close(fd)


def _tag(state: SessionState, name: str) -> str | None:
    match = CHUNK_NAME.fullmatch(name)
    if match is None:
        return None
    place = bisect_left(state.chunks, int(match[1]), key=_index)
    found = state.chunks[place] if place < len(state.chunks) else None
    return f'"{found.sha256}"' if found is not None and found.name == name else None


def _index(chunk: Chunk) -> int:
    return chunk.index


def _wanted_range(request: web.Request, tag: str | None) -> tuple[int, int | None] | None:
    """First and last byte, None for the whole file, as also for a range that RFC 9110 says to ignore."""
    match = RANGE.fullmatch(request.headers.get("Range", ""))
    if match is None or request.headers.get("If-Range", tag) != tag:
        return None
    first, last = int(match[1]), int(match[2]) if match[2] else None
    return None if last is not None and last < first else (first, last)


def _locate(folder: Path, name: str, state: SessionState) -> tuple[Path, int | None]:
    """The file behind a name, and its readable size where that is less than all of it."""
    match = CHUNK_NAME.fullmatch(name)
    if match is None:
        if name not in SIDE_FILES:
            raise FileNotFoundError(name)
        return folder / name, None
    chunk = state.open_chunk
    if match[2] == "tmp" and chunk is not None and chunk.name == name and (folder / name).exists():
        return folder / name, chunk.durable_bytes
    return folder / sealed_name(int(match[1])), None  # an open chunk may be sealed while it is read
