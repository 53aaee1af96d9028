"""One session to be fused, wherever that is done, and what came of it."""

import traceback
from pathlib import Path
from typing import Any

from msgspec import Struct

from common import VERSION
from topside_daemon.fusion.folders import SessionError
from topside_daemon.fusion.fuse import fuse_session, last_report
from topside_daemon.fusion.kernel import KernelName, choose_kernel
from topside_daemon.fusion.report import Report
from topside_daemon.fusion.tables import Format

EXIT_DONE, EXIT_USAGE, EXIT_LOSS, EXIT_BUG = 0, 2, 3, 70


class WorkersError(RuntimeError):
    """There is nobody to do the jobs; the message names the cause and the cure."""


class Job(Struct, frozen=True):
    """What `fuse_session` is to be called with. again: though nothing has changed since it was. version: of
    who asks."""

    path: Path
    out: Path
    formats: list[Format]
    otherwise: dict[str, Any]
    kernel: KernelName | None = None
    again: bool = False
    version: str = VERSION


class Outcome(Struct, frozen=True):
    """Either a report or a failure, in one line or, of our own making, as a traceback. unchanged: the report
    is that of the last time. misplaced: whoever was asked has another version."""

    code: int
    report: Report | None = None
    unchanged: bool = False
    failure: str = ""
    misplaced: bool = False


def work_off(job: Job) -> Outcome:
    """Do it, and never raise for what is wrong with a session."""
    if job.version != VERSION:
        reason = f"{job.path}: refused by a worker of version {VERSION}, asked is {job.version}"
        return Outcome(EXIT_LOSS, failure=reason, misplaced=True)
    try:
        return _work_off(job)
    except (SessionError, ImportError) as error:
        return Outcome(EXIT_USAGE, failure=str(error))
    except OSError as error:
        reason = f"{job.path}: {error}: check the disk and who may read and write there"
        return Outcome(EXIT_LOSS, failure=reason)
    except Exception:  # noqa: BLE001  the last line of defence: whatever gets here is our bug
        return Outcome(EXIT_BUG, failure=f"{job.path}: {traceback.format_exc()}")


def _work_off(job: Job) -> Outcome:
    report = None if job.again else last_report(job.path, job.out, job.formats, **job.otherwise)
    unchanged = report is not None
    if report is None:
        report = fuse_session(job.path, job.out, job.formats, choose_kernel(job.kernel), **job.otherwise)
    return Outcome(EXIT_DONE if report.lossless else EXIT_LOSS, report, unchanged)
