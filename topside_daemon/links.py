"""What sessions have shown of each pair of machines, kept in `links.json` for the next one.

Only ever a prior: a file that cannot be read or written costs nothing but that.
"""

import logging
from pathlib import Path

from msgspec import MsgspecError, Raw, Struct, structs
from msgspec.json import decode

from common.files import read_json, replace
from common.messages import to_json
from topside_daemon.fusion.tether import LinkMemory

log = logging.getLogger(__name__)

PAIRS = 1000  # kept, the newest of them
DRIFT_MAX_PPM = 1000.0  # no two crystals are further apart: such a memory is damaged


class Pair(Struct, frozen=True):
    """Two machines, by `common.clock.machine_id`, and what is known of the link between their clocks."""

    pi: str
    topside: str
    memory: LinkMemory


class Links:
    """The link memories of one data folder. Blocks: not to be called from the event loop."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "links.json"

    def recall(self, pi: str, topside: str) -> LinkMemory | None:
        """What earlier sessions over this pair have shown; None if there were none."""
        return next((one.memory for one in self._read() if (one.pi, one.topside) == (pi, topside)), None)

    def remember(self, pi: str, topside: str, memory: LinkMemory, now_ns: int) -> bool:
        """Keep what a session has shown, unless a later one has been kept already; False if it was not.

        What this session did not see, a floor or a bias, stays as it was.

        Args:
            now_ns: UTC; a memory that claims to be newer than this was written by a wrong clock.
        """
        pairs = self._read()
        before = next((one.memory for one in pairs if (one.pi, one.topside) == (pi, topside)), None)
        if before is not None:
            if memory.utc_ns < before.utc_ns <= now_ns:
                return False
            memory = structs.replace(
                memory,
                delay_floor_ns=before.delay_floor_ns | memory.delay_floor_ns,
                http_bias_ns=before.http_bias_ns if memory.http_bias_ns is None else memory.http_bias_ns,
            )
        others = [one for one in pairs if (one.pi, one.topside) != (pi, topside)]
        return self._write([*others[1 - PAIRS :], Pair(pi, topside, memory)])

    def _read(self) -> list[Pair]:
        """Entry by entry: one that is damaged costs only itself."""
        try:
            entries = read_json(self._path, list[Raw]) or []
        except (ValueError, OSError) as error:
            log.warning("link_memory_lost: %s", error)
            return []
        pairs: list[Pair] = []
        for entry in entries:
            try:
                pair = decode(entry, type=Pair)
            except MsgspecError as error:
                log.warning("link_memory_lost: %s", error)
                continue
            floors = pair.memory.delay_floor_ns.values()
            if abs(pair.memory.drift_ppm) <= DRIFT_MAX_PPM and all(floor >= 0 for floor in floors):
                pairs.append(pair)
        return pairs

    def _write(self, pairs: list[Pair]) -> bool:
        try:
            replace(self._path, to_json(pairs))
        except OSError as error:
            log.warning("link_memory_not_kept: %s: %s", self._path, error.strerror)
            return False
        return True
