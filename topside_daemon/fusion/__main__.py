"""Fuse finished sessions: `python -m topside_daemon.fusion PATH...`."""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # what one fusion makes lives as long as the process, or has no cycles

from topside_daemon.fusion.command import main

if __name__ == "__main__":
    sys.exit(main())
