"""Fuse finished sessions: `python -m topside_daemon.fusion PATH...`."""

import gc
import sys

gc.disable()  # what is made here lives as long as the process, or has no cycles

from topside_daemon.fusion.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
