"""How much room a disk has left: said once when it gets low, and once when it is not any more."""

import shutil
from pathlib import Path

LOW_SHARE = 0.10  # of the disk
LOW_BYTES = 1_000_000_000  # a disk with more than this free is not low, however large


def is_low(free_bytes: int, total_bytes: int) -> bool:
    """Whether that is little room for a disk of that size."""
    return free_bytes < min(LOW_SHARE * total_bytes, LOW_BYTES)


class RoomWatch:
    """Notices that the disk below a folder is getting full. To be asked about once a minute; blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._low = False

    def look(self) -> tuple[str, str] | None:
        """Kind and detail of an event, None if nothing has changed or the disk does not say."""
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return None
        low = is_low(usage.free, usage.total)
        if low == self._low:
            return None
        self._low = low
        return ("disk_low" if low else "disk_roomy", f"{usage.free / 1e6:.0f} MB free on {self._folder}")
