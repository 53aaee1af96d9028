"""`make bench`: what this costs, beside what others cost for the same, in one run: as ratios.

Sections: fusion (offline, against data frame libraries and engines), live (from the port to the listener),
store (a row on the disk). `ARGS="fusion --large"` runs one of them, with its own options.
"""

import sys

from tests.bench import fusion, live, store

SECTIONS = {"fusion": fusion.main, "live": live.main, "store": store.main}


def main() -> None:
    """All sections, or the one that is named first."""
    if len(sys.argv) > 1 and sys.argv[1] in SECTIONS:
        SECTIONS[sys.argv.pop(1)]()
        return
    if len(sys.argv) > 1:
        sys.exit(f"{__doc__}\nthere are {', '.join(SECTIONS)}")
    for section in SECTIONS.values():
        section()


if __name__ == "__main__":
    main()
