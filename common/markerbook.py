"""The markers of one recording: each is entered in `markers.jsonl`, then written among the rows, then
answered.

In that order: asked for again after a kill in between, a marker is known, and only its row is made up for.
"""

import asyncio
from pathlib import Path

from common.files import Lines, read_lines, replace
from common.messages import Chunk, Marker, to_json
from common.recovery import last_marker

FILE = "markers.jsonl"


class MarkerBook:
    """Which markers there are, and who waits for one; what touches the file blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answered: dict[tuple[str, str, int], Marker] = {}
        self._waited_for: dict[tuple[str, str, int], asyncio.Future[Marker]] = {}
        self._new: list[Marker] = []
        self._written: list[Marker] = []
        self._file: Lines
        self._spoilt = False  # the file has been refused a sync

    def load(self) -> None:
        """See what earlier runs have entered.

        Raises:
            OSError: the disk refuses.
        """
        entered = read_lines(self._folder / FILE, Marker)
        self._answered = {marker.key: marker for marker in entered}
        self._file = Lines(self._folder / FILE)

    def without_row(self, chunks: list[Chunk]) -> list[Marker]:
        """What a kill has left entered and not among the rows: those behind the last one that is there."""
        entered, last = list(self._answered.values()), last_marker(self._folder, chunks)
        if last is None:
            return entered
        instants = [(one.epoch, one.mono_ns) for one in entered]
        return entered[instants.index(last) + 1 :] if last in instants else []

    def amend(self, markers: list[Marker]) -> None:
        """Put these in the place of what was entered under their identities.

        Raises:
            OSError: the disk refuses.
        """
        self._answered |= {marker.key: marker for marker in markers}
        self._rewrite(list(self._answered.values()))

    def _rewrite(self, markers: list[Marker]) -> None:
        replace(self._folder / FILE, b"".join(to_json(marker) + b"\n" for marker in markers))
        self._file.close()
        self._file = Lines(self._folder / FILE)
        self._spoilt = False

    def recorded(self, key: tuple[str, str, int]) -> Marker | None:
        """The marker of that identity, if it is on the disk."""
        return self._answered.get(key)

    def waited_for(self, key: tuple[str, str, int]) -> "asyncio.Future[Marker] | None":
        """The answer to come, if the marker has been asked for."""
        return self._waited_for.get(key)

    def ask(self, marker: Marker) -> "asyncio.Future[Marker]":
        """Take a new one; the answer comes when it is on the disk."""
        answer = self._waited_for[marker.key] = asyncio.get_running_loop().create_future()
        self._new.append(marker)
        return answer

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer."""
        return not self._waited_for

    def take_new(self) -> list[Marker]:
        """Those that are to be entered next; the caller puts them back if that fails."""
        new, self._new = self._new, []
        return new

    def put_back(self, new: list[Marker]) -> None:
        self._new[:0] = new

    def enter(self, new: list[Marker]) -> None:
        """Into the file, and onto the disk.

        Raises:
            OSError: the disk refuses. After a sync that failed, the next try writes the file anew.
        """
        if self._spoilt:
            self._rewrite([*self._answered.values(), *self._written, *new])
            return
        try:
            self._file.append(*new, sync=True)
        except OSError:
            self._spoilt = True
            raise

    def written(self, markers: list[Marker]) -> None:
        """These are among the rows now, and not yet durable there."""
        self._written += markers

    def take_written(self) -> list[Marker]:
        """Those whose rows the next sync makes durable."""
        written, self._written = self._written, []
        return written

    def answer(self, markers: list[Marker]) -> None:
        """These are durable."""
        for marker in markers:
            self._answered[marker.key] = marker
            self._waited_for.pop(marker.key).set_result(marker)

    def refuse(self, error: Exception) -> None:
        """Whoever still waits will wait in vain."""
        for answer in self._waited_for.values():
            answer.set_exception(error)
        self._waited_for.clear()

    def close(self) -> None:
        self._file.close()
