"""Many jobs on a Dask cluster, or on one that is set up for them on this machine."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import distributed

from common import VERSION
from topside_daemon.fusion.jobs import EXIT_LOSS, Job, Outcome, WorkersError, work_off
from topside_daemon.fusion.workers import Done

TRIES = 5  # of a job that workers of another version have refused
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
        todo, tries = deque(range(len(jobs))), Counter[int]()
        waiting: dict[Any, int] = {}
        done = distributed.as_completed()

        def give_out() -> None:
            """As many as there are hands: what waits for one is taken by any other worker that idles."""
            there = client.nthreads()
            hands = max(1, sum(there.get(worker, 0) for worker in chosen))
            while todo and len(waiting) < hands:
                number = todo.popleft()
                # Others may take it when these are gone: it would wait for ever, and they refuse.
                given = client.submit(
                    work_off, jobs[number], workers=chosen, allow_other_workers=True, pure=False
                )
                waiting[given] = number
                done.add(given)

        give_out()
        for future in done:
            number, error = waiting.pop(future), future.exception()
            tries[number] += 1
            if error is not None:
                yield number, Outcome(EXIT_LOSS, failure=f"{jobs[number].path}: {error}")
            elif future.result().misplaced and tries[number] < TRIES:
                chosen = _fitting(_versions(client)) or chosen
                todo.append(number)
            else:
                yield number, future.result()
            give_out()


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
    versions = _versions(client)
    for worker, found in versions.items():
        if found != VERSION:
            what = f"has version {found}" if isinstance(found, str) else f"cannot run it ({found!r})"
            tell(f"worker {worker} {what}, this is {VERSION}: not used")
    chosen = _fitting(versions)
    if not chosen:
        raise WorkersError(f"no worker of the Dask cluster has version {VERSION}: install it there")
    return chosen


def _versions(client: distributed.Client) -> dict[str, Any]:
    """By the address of each worker; or why it cannot tell."""
    return client.run(version, on_error="return")  # type: ignore[no-any-return]


def _fitting(versions: Mapping[str, Any]) -> list[str]:
    return [worker for worker, found in versions.items() if found == VERSION]


def version() -> str:
    """Of whoever runs this."""
    return VERSION
