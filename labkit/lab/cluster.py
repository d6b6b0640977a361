"""The trainings of a sweep on a Dask cluster: on other cores, or on other machines.

A task goes out as settings and seeds and comes back as the bytes of its result, so a worker needs
the lab's code and data but no folder in common. One that is killed costs its task's retry.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from labkit.lab import environment

VARIABLE = "DASK_SCHEDULER"
PATIENCE = 60  # seconds to wait for the scheduler, and then for a first worker
DEATHS = 3  # workers that may die over one task, after which the task is to blame


class ClusterError(OSError):
    """The cluster cannot be used; the message says why and what to do."""


def address() -> str | None:
    """The scheduler's address that `DASK_SCHEDULER` holds; None for the cores of this machine."""
    return os.environ.get(VARIABLE) or None


def results(
    scheduler: str,
    tasks: Mapping[int, Mapping[str, Any]],
    train: Callable[..., bytes],
    arguments: Sequence[Any],
) -> Iterator[tuple[int, bytes]]:
    """Yield each task's key and `train(task, *arguments)` as the workers of a cluster end them.

    Raises what a training raised, and ClusterError when there is no scheduler or no worker, or
    when a task has cost four workers. The dashboard's address goes to standard error.
    """
    distributed = _distributed()
    with _client(distributed, scheduler) as client:
        futures = {
            client.submit(train, task, *arguments, pure=False): key for key, task in tasks.items()
        }
        for future in distributed.as_completed(list(futures)):
            key = futures[future]
            try:
                found = future.result()
            except distributed.KilledWorker as error:
                raise ClusterError(
                    f"{tasks[key].get('label', 'a training')}: {DEATHS + 1} workers died over it; "
                    "look into a worker's log, memory first"
                ) from error
            future.release()
            yield key, found


def _distributed():
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"{VARIABLE} is set, but Dask is not installed: run make setup, or unset it"
        ) from error
    return distributed


def _client(distributed: Any, scheduler: str) -> Any:
    """A client of the scheduler, when at least one worker has joined."""
    try:
        client = distributed.Client(scheduler, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler at {scheduler} ({error}): start one with `dask scheduler`, and set "
            f"{VARIABLE} to the address that it prints"
        ) from error
    print(f"Dask: {scheduler}, dashboard {client.dashboard_link}", file=sys.stderr, flush=True)
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        client.close()
        raise ClusterError(
            f"no worker has joined {scheduler} within {PATIENCE} s: start some with "
            f"`python -m labkit worker {scheduler}`"
        ) from error
    return client


def work(scheduler: str, processes: int) -> None:
    """Become the Dask workers of this machine: `processes`, each training one task at a time.

    They have the environment of a chapter's kernel, so that they compute the same. Does not return.
    """
    _distributed()
    command = [
        sys.executable, "-m", "dask", "worker", scheduler,
        "--nworkers", str(processes), "--nthreads", "1", "--no-dashboard",
    ]  # fmt: skip
    os.execve(sys.executable, command, {**os.environ, **environment.kernel_environment()})
