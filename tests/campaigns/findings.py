"""What a campaign counted and found wrong, and where it works."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Findings:
    """The figures and the failures of one run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0
        self.tally: Counter[str] = Counter()
        self.failures: list[str] = []

    def fail(self, what: str) -> None:
        """Keep a failure, with where to look for it."""
        self.failures.append(f"seed {self.seed} step {self.step}: {what}")
        print(f"  FAILURE {self.failures[-1]}", flush=True)

    def counts(self, *names: str) -> str:
        return ", ".join(f"{self.tally[name]} {name}" for name in names)

    def verdict(self, folder: Path) -> int:
        """Say how it ended, and keep the folder if it ended badly; the exit code."""
        if self.failures:
            print(f"FAILED    {len(self.failures)} times; all of it is kept in {folder}")
            return 1
        print("PASSED")
        return 0


@contextmanager
def workplace(name: str, findings: Findings, kept: Path | None) -> Iterator[Path]:
    """A folder to work in: *kept* if given, else one that goes unless something was found wrong."""
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept
        return
    folder = Path(tempfile.mkdtemp(prefix=f"{name}_"))
    yield folder
    if not findings.failures:
        shutil.rmtree(folder)
