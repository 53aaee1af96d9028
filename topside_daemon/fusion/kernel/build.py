"""Compile the kernel, if that was not done: `python -m topside_daemon.fusion.kernel.build`.

Needs a C compiler and nothing of Python's headers; `CC` names another compiler than `cc`.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from topside_daemon.fusion.kernel import LIBRARY, SOURCE, choose_kernel, proof_file, proof_of

# One build for every processor of its kind; each operation of floating point rounded by itself.
FLAGS = ["-std=c99", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fvisibility=hidden"]


def build(library: Path = LIBRARY) -> str:
    """Compile into *library*.

    Returns: "" if it is there now, else one line that says why not.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    temporary = library.with_name(f".{library.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, str(SOURCE), "-o", str(temporary), "-lm"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            complaint = said.stderr.strip().splitlines() or ["failed"]
            return f"{compiler[0]}: {complaint[0]}"
        temporary.replace(library)
        proof_file(library).write_text(proof_of(library), encoding="ascii")
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    finally:
        temporary.unlink(missing_ok=True)
    return ""


def main() -> int:
    """The command; 1 where it cannot be done, which costs speed only."""
    try:
        choose_kernel("compiled")
    except ImportError:
        trouble = build()
    else:
        trouble = ""
    if trouble:
        print(f"no compiled kernel ({trouble}): fusion runs on numpy, a few times slower", file=sys.stderr)
    return bool(trouble)


if __name__ == "__main__":
    sys.exit(main())
