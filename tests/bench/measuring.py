"""Whole processes, measured: wall and CPU time and the most memory they ever had."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Cost(NamedTuple):
    """Of one run: s, s and MB."""

    wall_s: float
    cpu_s: float
    peak_mb: float

    @classmethod
    def typical(cls, costs: Sequence["Cost"]) -> "Cost":
        """The median of each."""
        return cls(*(median(column) for column in zip(*costs, strict=True)))

    def over(self, other: "Cost") -> "Cost":
        """Ratios."""
        return Cost(*(one / another for one, another in zip(self, other, strict=True)))


def run(module: str, *arguments: object) -> Cost:
    """`python -m module arguments`, in the checkout.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    begun_s = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    complaint = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - begun_s
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if child.returncode:
        raise RuntimeError((complaint.strip() or f"ended with {child.returncode}").splitlines()[-1])
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
