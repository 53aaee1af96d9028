"""Fuse finished sessions: `python -m topside_daemon.fusion PATH...`."""

import argparse
import gc
import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, get_args

import msgspec
from msgspec import to_builtins

from common.messages import to_json
from topside_daemon.fusion.jobs import EXIT_DONE, EXIT_LOSS, EXIT_USAGE, Job, Outcome, WorkersError, work_off
from topside_daemon.fusion.kernel import KernelName
from topside_daemon.fusion.report import report_text
from topside_daemon.fusion.sessions import Found, find_sessions
from topside_daemon.fusion.settings import Mode, Settings
from topside_daemon.fusion.tables import Format, file_name, pip_install
from topside_daemon.fusion.texts import shown

EXIT_INTERRUPTED = 130
HERE = "here"  # a cluster of this machine's own, instead of an address


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of an old terminal, or a name that is no text
    parser = _parser()
    options = parser.parse_args(_spelt_out(sys.argv[1:] if arguments is None else arguments))
    sessions, missing = find_sessions(options.paths)
    if not sessions:
        parser.exit(EXIT_USAGE, "".join(f"{line}\n" for line in missing))
    jobs = _jobs(sessions, options, parser)
    if len(jobs) > 1:
        gc.enable()  # switched off where one session is all
    account = _Account(len(jobs), len(jobs) + len(missing) > 1, options.json)
    for line in missing:
        account.add(Outcome(EXIT_LOSS, failure=line))
    try:
        for number, outcome in _in_order(account.counting(_done(jobs, options))):
            account.show(jobs[number], outcome)
    except WorkersError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted: what is done stays, the rest is as it was", file=sys.stderr)
        return EXIT_INTERRUPTED
    account.close()
    return account.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m topside_daemon.fusion",
        description="Fuse finished sessions into one table each. One that is fused already, from the same "
        "files with the same settings by the same version, is left as it is.",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a session, one sensor's folder, or a folder (or a pattern) of such",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write there instead of into the sessions")
    parser.add_argument(
        "--format",
        metavar="csv,parquet",
        type=_formats,
        default=["csv"],
        help="of the table; default csv",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each session")
    parser.add_argument("--force", action="store_true", help="fuse again though nothing has changed")
    parser.add_argument("--jobs", metavar="N", type=_count, help="fuse so many sessions at once; default 1")
    parser.add_argument(
        "--dask",
        metavar="[ADDRESS]",
        help="fuse on the Dask cluster whose scheduler is there, as in tcp://host:8786; without address on "
        "one of this machine's own, with --jobs workers or one for each core",
    )
    parser.add_argument(
        "--kernel",
        choices=get_args(KernelName),
        help="what does the inner loops, for the same bytes; default the compiled one, if it is there",
    )
    _add_settings(parser.add_argument_group("settings", "by default as the session itself says"))
    return parser


def _add_settings(group: Any) -> None:
    number = {"type": float, "metavar": "X"}
    group.add_argument(
        "--mode",
        choices=get_args(Mode),
        help="paired: readings of both sensors one to one; inwater: a row for each in-water reading, with "
        "the last surface reading before it",
    )
    group.add_argument("--tolerance-ms", help="largest distance of a pair", **number)
    group.add_argument("--tolerance-periods", help="the same in periods of the slower sensor", **number)
    group.add_argument("--fresh-periods", help="mode inwater: a surface value is fresh so long", **number)
    group.add_argument("--stale-periods", help="mode inwater: and is shown so long", **number)
    group.add_argument("--fresh-s", help="the same in seconds; the old Cockpit had 10", **number)
    group.add_argument("--stale-s", help="likewise; the old Cockpit had 30", **number)
    group.add_argument(
        "--percent",
        dest="percent_of_surface",
        action=argparse.BooleanOptionalAction,
        help="a column more: in-water as a percentage of surface light",
    )
    group.add_argument(
        "--latency-ms",
        metavar="INWATER,SURFACE",
        type=_latencies,
        help="how much older than its stamp the light is: 0,0 corrects nothing, an empty one keeps what the "
        "recorded configuration says",
    )
    group.add_argument(
        "--dejitter",
        action=argparse.BooleanOptionalAction,
        help="put readings at their sensor's own pace, where it has one",
    )


def _spelt_out(arguments: Sequence[str]) -> list[str]:
    """`--dask` without an address may stand before a path; an address has a colon, and is no folder."""
    return [
        f"--dask={HERE}" if one == "--dask" and (":" not in after or Path(after).exists()) else one
        for one, after in zip(arguments, [*arguments, ""][1:], strict=True)
    ]


def _formats(text: str) -> list[Format]:
    known: dict[str, Format] = {name: name for name in get_args(Format)}
    try:
        return [known[one.strip()] for one in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error.args[0]}: there are {', '.join(known)}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1")
    return int(text)


def _latencies(text: str) -> tuple[float | None, float | None]:
    try:
        inwater, surface = (float(one) if one.strip() else None for one in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give two numbers of milliseconds, as in 500,500") from None
    return inwater, surface


def _jobs(
    sessions: Sequence[Found], options: argparse.Namespace, parser: argparse.ArgumentParser
) -> list[Job]:
    otherwise = {name: getattr(options, name, None) for name in Settings.__struct_fields__}
    otherwise["inwater_latency_ms"], otherwise["surface_latency_ms"] = options.latency_ms or (None, None)
    otherwise = {name: value for name, value in otherwise.items() if value is not None}
    try:
        msgspec.convert(otherwise, Settings)
    except msgspec.ValidationError as error:
        parser.error(str(error))
    alone = len(options.paths) == 1 and [one.place for one in sessions].count(Path()) == 1
    places = [_place(one, options.out, alone) for one in sessions]
    if len({place.resolve() for place in places}) < len(places):
        [(twice, _)] = Counter(places).most_common(1)
        parser.error(f"--out: two sessions would be written to {twice}: fuse them one by one")
    return [
        Job(one.path, place, options.format, otherwise, options.kernel, options.force)
        for one, place in zip(sessions, places, strict=True)
    ]


def _place(session: Found, out: Path | None, alone: bool) -> Path:
    """Where its table is written: each as it lies in the folder that was given; *alone*: no other was."""
    if out is None:
        return session.path
    itself = session.place == Path()
    return out if itself and alone else out / (session.path.resolve().name if itself else session.place)


def _done(jobs: Sequence[Job], options: argparse.Namespace) -> Iterator[tuple[int, Outcome]]:
    """Each job by its number, with what came of it."""
    workers = min(options.jobs or os.cpu_count() or 1, len(jobs))
    if options.dask:
        cluster = _imported("cluster", f"--dask needs distributed: {pip_install('distributed')}")
        address = None if options.dask == HERE else options.dask
        return cluster.on_cluster(jobs, address, workers, _tell)  # type: ignore[no-any-return]
    if (options.jobs or 1) > 1 and len(jobs) > 1:
        return _imported("workers").on_this_machine(jobs, workers)  # type: ignore[no-any-return]
    return ((number, work_off(job)) for number, job in enumerate(jobs))


def _imported(name: str, otherwise: str = "") -> Any:
    """A module that only some need, and that takes its time."""
    try:
        return importlib.import_module(f"topside_daemon.fusion.{name}")
    except ModuleNotFoundError:
        print(otherwise, file=sys.stderr)
        sys.exit(EXIT_USAGE)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _in_order(done: Iterator[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
    held: dict[int, Outcome] = {}
    following = 0
    for number, outcome in done:
        held[number] = outcome
        while following in held:
            yield following, held.pop(following)
            following += 1


class _Account:
    """Tells what came of every session, and at the end of all."""

    def __init__(self, jobs: int, several: bool, as_json: bool) -> None:
        self._several = several
        self._json = as_json
        self._failures: list[str] = []
        self._fused = self._unchanged = 0
        self._bar = self._open_bar(jobs)
        self.code = EXIT_DONE

    def _open_bar(self, jobs: int) -> Any:
        """None where nobody would see it."""
        if not self._several or not sys.stderr.isatty():
            return None
        try:
            return importlib.import_module("tqdm").tqdm(total=jobs, unit=" sessions", smoothing=0)
        except ModuleNotFoundError:
            return None

    def counting(self, done: Iterator[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
        """The same, with the bar moving on."""
        for one in done:
            if self._bar is not None:
                self._bar.update()
            yield one

    def show(self, job: Job, outcome: Outcome) -> None:
        """Tell of one session."""
        self.add(outcome)
        if outcome.report is None:
            return
        if self._json:
            said = {"path": shown(str(job.path)), "out": shown(str(job.out)), "unchanged": outcome.unchanged}
            self._print(to_json(said | to_builtins(outcome.report)).decode())
            return
        made = ", ".join(str(job.out / file_name(one)) for one in job.formats)
        was = " (unchanged since it was fused last)" if outcome.unchanged else ""
        self._print(f"{job.path} -> {made}{was}\n{report_text(outcome.report)}")

    def add(self, outcome: Outcome) -> None:
        """Count one, and tell of it if it failed."""
        if outcome.failure:
            self._failures.append(outcome.failure)
            self._print(outcome.failure, sys.stderr)
        self._unchanged += outcome.unchanged
        self._fused += outcome.report is not None and not outcome.unchanged
        usage = outcome.code == EXIT_USAGE and self._several
        self.code = max(self.code, EXIT_LOSS if usage else outcome.code)

    def _print(self, text: str, to: TextIO | None = None) -> None:
        if self._bar is not None:
            self._bar.clear()
        try:
            print(text, file=to or sys.stdout, flush=True)
        except OSError as error:  # the work goes on, for nobody to read of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), (to or sys.stdout).fileno())
            if not isinstance(error, BrokenPipeError):  # who has seen enough
                self.code = max(self.code, EXIT_LOSS)
                print(f"cannot tell of it: {error}", file=sys.stderr)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Tell how it went with all of them."""
        if self._bar is not None:
            self._bar.close()
        if not self._several:
            return
        counts = [f"{self._fused} fused"]
        counts += [f"{self._unchanged} unchanged"] * bool(self._unchanged)
        counts += [f"{len(self._failures)} failed"] * bool(self._failures)
        lines = [", ".join(counts), *(f"  {one.strip().splitlines()[-1]}" for one in self._failures)]
        self._print("\n".join(lines), sys.stderr if self._json else None)
