"""Many jobs on a Dask cluster, or on one that is set up for them on this machine."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import distributed

from common import VERSION
from topside_daemon.fusion.jobs import EXIT_LOSS, Job, Outcome, WorkersError, work_off
from topside_daemon.fusion.workers import Done

ANSWER_S = 15  # that a scheduler and its first worker have


def on_cluster(jobs: Sequence[Job], address: str | None, workers: int, tell: Callable[[str], None]) -> Done:
    """On the workers that have this very version; the folders must be there for them under the same names.

    Args:
        address: of the scheduler; None: a cluster of *workers* processes on this machine.
        tell: takes a line on every worker that was refused.

    Raises:
        WorkersError: there is no such cluster, or none of its workers will do.
    """
    with ExitStack() as held:
        client = held.enter_context(_client(address, workers, held))
        chosen = _chosen(client, tell)

        def submit(number: int, elsewhere: bool) -> Any:
            return client.submit(
                work_off, jobs[number], workers=chosen, allow_other_workers=elsewhere, pure=False
            )

        # Others may take what these do not come to: were it these alone, all would wait when they are gone.
        waiting = {submit(number, True): number for number in range(len(jobs))}
        done = distributed.as_completed(waiting)
        for future in done:
            number = waiting.pop(future)
            error = future.exception()
            if error is not None:
                yield number, Outcome(EXIT_LOSS, failure=f"{jobs[number].path}: {error}")
            elif future.result().misplaced and set(chosen) & set(client.nthreads()):
                again = submit(number, False)
                waiting[again] = number
                done.add(again)
            else:
                yield number, future.result()


def _client(address: str | None, workers: int, held: ExitStack) -> distributed.Client:
    if address is None:
        cluster = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # None would mean: port 8787, of every interface
            silence_logs=logging.ERROR,
        )
        return distributed.Client(held.enter_context(cluster))
    try:
        return distributed.Client(address, timeout=ANSWER_S)
    except (OSError, ValueError) as error:
        raise WorkersError(
            f"{address}: no Dask scheduler there ({error}): start one, or leave out the address"
        ) from None


def _chosen(client: distributed.Client, tell: Callable[[str], None]) -> list[str]:
    """Addresses of the workers of this version."""
    try:
        client.wait_for_workers(1, timeout=ANSWER_S)
    except TimeoutError:
        raise WorkersError('the Dask cluster has no worker: start some with "dask worker ADDRESS"') from None
    versions = client.run(version, on_error="return")
    for worker, found in versions.items():
        if found != VERSION:
            what = f"has version {found}" if isinstance(found, str) else f"cannot run it ({found!r})"
            tell(f"worker {worker} {what}, this is {VERSION}: not used")
    chosen = [worker for worker, found in versions.items() if found == VERSION]
    if not chosen:
        raise WorkersError(f"no worker of the Dask cluster has version {VERSION}: install it there")
    return chosen


def version() -> str:
    """Of whoever runs this."""
    return VERSION
