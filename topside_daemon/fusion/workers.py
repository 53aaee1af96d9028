"""Many jobs in several processes of this machine; outcomes come as they are ready."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from topside_daemon.fusion.jobs import EXIT_LOSS, Job, Outcome, work_off

Done = Iterator[tuple[int, Outcome]]  # number of the job, and what came of it


def on_this_machine(jobs: Sequence[Job], workers: int) -> Done:
    """In so many processes. One that dies costs the session that it was at, and no other."""
    pool = _pool(workers)
    try:
        waiting = {pool.submit(work_off, job): number for number, job in enumerate(jobs)}
        orphans: list[int] = []
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except BrokenProcessPool:  # one of those at work has died, and nobody knows which
                orphans.append(waiting[future])
    finally:
        pool.shutdown(cancel_futures=True)
    with ThreadPoolExecutor(workers) as threads:
        alone = {threads.submit(_by_itself, jobs[number]): number for number in orphans}
        for done in as_completed(alone):
            yield alone[done], done.result()


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)


def _by_itself(job: Job) -> Outcome:
    with _pool(1) as pool:
        try:
            return pool.submit(work_off, job).result()
        except BrokenProcessPool:
            reason = "the process that fused it was killed: look for a lack of memory, fuse it by itself"
            return Outcome(EXIT_LOSS, failure=f"{job.path}: {reason}")


def _begin() -> None:
    """A worker ends at once with whoever started it: what it was at is written whole or not at all."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
