"""Programs of other users and other programs of ours, to stand in a daemon's way."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def as_nobody() -> tuple[str, ...]:
    """What to put before a command so that it runs without any right; skips where that cannot be."""
    trial = [*NOBODY, sys.executable, "-c", "import common"]
    if os.geteuid() or subprocess.run(trial, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("this needs root, setpriv, and a checkout that everybody may read")
    return NOBODY


@contextmanager
def program(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs *code*, which prints a line once it has what it wants."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *arguments], stdin=pipe, stdout=pipe, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running
        running.kill()


def call(module: str, *words: str, user: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """`python -m module words`, run to its end."""
    command = [*user, sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
