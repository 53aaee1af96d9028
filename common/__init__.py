"""What both daemons share: records, clock, sensor, recording, bus, lifecycle."""

try:
    import msgspec as _msgspec  # noqa: F401  stands for all of requirements/runtime.txt
except ModuleNotFoundError:
    raise SystemExit(
        "dependencies are missing in this Python: `. .venv/bin/activate` (made by `make demo`)"
    ) from None

VERSION = "0.1.0"
