"""The inner loops of fusion, twice: compiled from `kernel.c`, and in numpy where that is not there. Whichever
does the work, the bytes that come out are the same; the first is several times faster.

What is passed in and out is described in `columns`. `python -m topside_daemon.fusion.kernel.build` compiles.
"""

import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

from topside_daemon.fusion.columns import (
    Column,
    Cursor,
    Odd,
    Options,
    Pairing,
    Placed,
    Rows,
    Side,
    Tally,
    Totals,
)
from topside_daemon.fusion.spill import Spill

__all__ = [
    "LIBRARY",
    "SOURCE",
    "Kernel",
    "KernelName",
    "Loom",
    "Matcher",
    "choose_kernel",
    "proof_file",
    "proof_of",
]

KernelName = Literal["compiled", "numpy"]

SOURCE = Path(__file__).with_name("kernel.c")
LIBRARY = SOURCE.with_name("kernel.so")  # under this name on every system


class Matcher(Protocol):
    """Pairs whole sessions, as `matching` does. Memory follows what is undecided, and that may be on the
    disk."""

    pairing: Pairing
    """What is decided."""

    @property
    def needs(self) -> int:
        """Number of the first surface reading that may still get a partner."""

    def push(self, times: Column, surface: Column, first: int) -> None:
        """The next in-water instants, at least one, in order; with the surface readings from number *first*
        on: all from `needs` to the last within the tolerance of the last instant."""

    def finish(self) -> Pairing:
        """Nothing more will come."""


class Loom(Protocol):
    """Weaves blocks of rows into lines of the table."""

    def weave(
        self,
        inwater: Side,
        placed: Placed,
        surface: Side,
        final: bool,
        cursor: Cursor,
        totals: Totals,
        tally: Tally,
    ) -> Iterator[memoryview]:
        """The lines of an in-water block, and of the surface readings alone before its last row, or, final,
        to the end; each piece valid until the next. Cursor, totals and the tally of distances move
        on.

        Args:
            placed: the in-water block on the axis.
            surface: rows from the cursor's on, to one behind the block's last row and to every partner.
        """


class Kernel(Protocol):
    """The inner loops."""

    @property
    def name(self) -> KernelName: ...

    def scan(
        self, text: bytearray, start: int, stop: int, base: int, ours: bool, check: bool, rows: Rows
    ) -> tuple[list[Odd], int, int]:
        """Fill *rows* with the canonical rows among the lines of text[start:stop], as far as there is room.

        Canonical is what our recorder (*ours*), or the old ones, write: a stamp with 3 or 6 decimals and Z or
        +00:00, printable text without quotes, decimal numbers, no SYNC_ mode; ours with a checksum, which is
        looked at if *check*. All other lines but blank ones are odd.

        Args:
            base: the place of text[0].

        Returns: the odd lines, where it stopped, and how many lines it took.
        """

    def place(
        self,
        at: Column,
        utc: Column,
        moved: Column | None,
        courses: bytearray,
        placed: Placed,
        everything: bool,
    ) -> int:
        """Put rows on the common axis, each on the course of its instant; only times unless *everything*.

        Returns: how many lay on a course before the first that does not.
        """

    def tally(self, values: Column, tally: Tally) -> None:
        """Count values; MISSING ones are left out."""

    def tally_intervals(self, values: Column, before: int, tally: Tally) -> int:
        """Count the intervals between values, *before* (unless MISSING) being that before the first.

        Returns: how many run backwards; they are not counted.
        """

    def ends(self, values: Column) -> tuple[int, int]:
        """The smallest and the largest of at least one."""

    def flags(self, span: Column) -> list[int]:
        """How many rows have each of the eight combinations of flags."""

    def shift(self, values: Column, by: int, into: Column) -> None:
        """All values, plus *by*."""

    def outliers(self, values: Column, before: int, least: int, most: int) -> list[int]:
        """Which values come less than *least* or more than *most* behind the one before them."""

    def matcher(self, tolerance_ns: int, spill: Spill) -> Matcher:
        """One for a session; *spill*: for what is undecided."""

    def loom(self, options: Options) -> Loom:
        """One for a table."""


def proof_of(library: Path) -> str:
    """What is kept beside a library: that it is whole, and built from the source that is here. Loading
    another may end the process.

    Raises:
        OSError: it cannot be read.
    """
    files = (SOURCE, library)
    return "".join(f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.name}\n" for one in files)


def proof_file(library: Path) -> Path:
    """Where it is kept."""
    return library.with_suffix(".sha256")


@cache
def choose_kernel(name: KernelName | None = None) -> Kernel:
    """The compiled kernel where there is one of this version, else the other; or the one asked for.

    Raises:
        ImportError: it is not there; the message names the cure.
    """
    if name != "numpy":
        with suppress(OSError):  # it is not there, or of another machine
            if proof_file(LIBRARY).read_text(encoding="ascii") == proof_of(LIBRARY):
                compiled = importlib.import_module("topside_daemon.fusion.kernel.compiled")
                return compiled.Compiled(LIBRARY)  # type: ignore[no-any-return]
    if name == "compiled":
        raise ImportError(
            f"no compiled kernel: python -m {__name__}.build makes one, if there is a C compiler"
        )
    # numpy starts a thread on every core for linear algebra, of which there is none here
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        plain = importlib.import_module("topside_daemon.fusion.kernel.plain")
    except ModuleNotFoundError:
        raise ImportError(
            f"neither a compiled kernel nor numpy is there: pip install numpy, or python -m {__name__}.build"
        ) from None
    return plain.Plain()  # type: ignore[no-any-return]
