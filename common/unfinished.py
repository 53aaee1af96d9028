"""Which recordings of a data folder are not finished, so that a start need not look at all of them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock

from common.files import read_json, replace
from common.messages import to_json

FILE = "unfinished.json"


class Unfinished:
    """A list that never lacks one: a name is entered before its folder is made, and taken out after its end.

    Without the file, or with a damaged one, everything is looked at once. Blocks: not to be called from
    the event loop.
    """

    def __init__(self, folder: Path, look: Callable[[], Iterable[str]]) -> None:
        """*look* finds the names in the folder itself."""
        self._path = folder / FILE
        self._changing = Lock()  # a session that ends and one that begins have threads of their own
        self._look = look

    def names(self) -> list[str]:
        """What may not be finished, in the order in which it was begun, or sorted where that is not known.

        Raises:
            OSError: the disk refuses.
        """
        try:
            names = read_json(self._path, list[str])
        except ValueError:
            names = None
        if names is None:
            names = sorted(self._look())
            self._write(names)
        return names

    def add(self, name: str) -> None:
        """Enter one that is about to begin.

        Raises:
            OSError: the disk refuses.
        """
        with self._changing:
            names = self.names()
            if name not in names:
                self._write([*names, name])

    def remove(self, name: str) -> None:
        """Take out one that has ended.

        Raises:
            OSError: the disk refuses.
        """
        with self._changing:
            names = self.names()
            if name in names:
                self._write([one for one in names if one != name])

    def _write(self, names: list[str]) -> None:
        replace(self._path, to_json(names))
