"""Fuse finished sessions: `python -m topside_daemon.fusion PATH...`."""

import argparse
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from common.messages import to_json
from topside_daemon.fusion.fuse import fuse_session
from topside_daemon.fusion.readers import SessionError
from topside_daemon.fusion.report import report_text

EXIT_DONE, EXIT_USAGE, EXIT_LOSS, EXIT_BUG = 0, 2, 3, 70


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m topside_daemon.fusion", description="Fuse finished sessions into one table each."
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="folder of a session or of one sensor"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write there instead of into the session")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each session")
    own = "; by default as the session itself says"
    parser.add_argument(
        "--tolerance-ms", metavar="X", type=_milliseconds, help=f"largest distance of a pair{own}"
    )
    parser.add_argument(
        "--latency-ms",
        metavar="INWATER,SURFACE",
        type=_latencies,
        help="how much older than its stamp the light is: 0,0 corrects nothing, an empty one keeps what the "
        f"recorded configuration says{own}",
    )
    parser.add_argument(
        "--dejitter",
        action=argparse.BooleanOptionalAction,
        help=f"put readings at their sensor's own pace, where it has one{own}",
    )
    options = parser.parse_args(arguments)
    names = Counter(path.resolve().name for path in options.paths)
    if options.out and max(names.values()) > 1:
        parser.error(f"--out: two sessions are named {names.most_common(1)[0][0]}: fuse them one by one")
    try:
        codes = [_fuse_one(path, options, len(options.paths) > 1) for path in options.paths]
    except Exception:  # noqa: BLE001  the last line of defence: whatever gets here is our bug
        traceback.print_exc()
        return EXIT_BUG
    return max(codes)


def _latencies(text: str) -> tuple[float | None, float | None]:
    given = [float(one) if one.strip() else None for one in text.split(",")]
    if len(given) != 2 or not all(one is None or abs(one) < 1e7 for one in given):
        raise argparse.ArgumentTypeError(f"{text}: give two numbers of milliseconds below 1e7, as in 500,500")
    return given[0], given[1]


def _milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text}: give milliseconds from 0 to below 1e9")
    return value


def _otherwise(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given."""
    inwater_ms, surface_ms = options.latency_ms or (None, None)
    given = {
        "tolerance_ms": options.tolerance_ms,
        "inwater_latency_ms": inwater_ms,
        "surface_latency_ms": surface_ms,
        "dejitter": options.dejitter,
    }
    return {name: value for name, value in given.items() if value is not None}


def _fuse_one(path: Path, options: argparse.Namespace, several: bool) -> int:
    out = options.out / path.resolve().name if options.out and several else options.out
    try:
        report = fuse_session(path, out, **_otherwise(options))
    except SessionError as error:
        print(error, file=sys.stderr)
        return EXIT_LOSS if several else EXIT_USAGE
    except OSError as error:
        print(f"{path}: {error}: check the disk and who may read and write there", file=sys.stderr)
        return EXIT_LOSS
    print(to_json(report).decode() if options.json else report_text(report), flush=True)
    return EXIT_DONE if report.lossless else EXIT_LOSS
