"""Independent trainings side by side, each in a process of its own, kept once finished.

They run on the cores of this machine, or on the Dask cluster that `DASK_SCHEDULER` names.

A finished training is stored under a name made of everything that decides its result: the code of
the modules that compute it, which also hold the checksums of the data, torch's version, and the
task with its settings and seeds. A sweep that was cut off therefore goes on where it stopped, and
two chapters that need the same training share it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from labkit.lab import cluster, digests, environment

# the code that this process holds, whatever becomes of the files
_LOADED = {
    name: digests.module_digest([name])
    for name in (
        ".".join(("labkit", *p.relative_to(digests.PACKAGE).with_suffix("").parts))
        for p in digests.PACKAGE.rglob("*.py")
        if p.stem != "__init__"
    )
}

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]
Worker = Callable[[Mapping[str, Any], Progress], Arrays]


def run_tasks(
    tasks: Sequence[Mapping[str, Any]],
    worker: Worker,
    *,
    name: str,
    modules: Sequence[str],
    workers: int | None = None,
) -> list[Arrays]:
    """Run `worker(task, progress)` for every task that has no stored result; return all results.

    A task is a flat mapping of plain values; its entry "label" is what the progress line shows and
    does not count for the store. `modules` names the modules whose code decides the result.
    `workers` processes work at once, by default `LABKIT_WORKERS` or one for each core; each uses
    one thread, so the number of processes changes no result. With `DASK_SCHEDULER` the workers of
    that cluster take their place. Results come in the tasks' order.
    """
    _check_unedited(modules)
    code = digests.module_digest(modules)
    paths = [_path(task, worker, code) for task in tasks]
    results: list[Arrays | None] = [_load(path) for path in paths]
    missing = [index for index, result in enumerate(results) if result is None]
    count = min(workers or _default_workers(), len(missing))

    report = _Reporter(name, len(tasks), len(missing))
    sweep = {"sweep": name, "tasks": len(tasks), "stored": len(tasks) - len(missing)}
    jobs = {index: dict(tasks[index]) for index in missing}
    for index, content in _finished(jobs, worker, modules, sweep, count):
        _check_unedited(modules)
        digests.write_atomically(paths[index], content)
        results[index] = _load(paths[index])
        report.finished()
    report.close()
    return [result for result in results if result is not None]


def _finished(
    jobs: Mapping[int, Mapping[str, Any]],
    worker: Worker,
    modules: Sequence[str],
    sweep: Mapping[str, Any],
    count: int,
) -> Iterator[tuple[int, bytes]]:
    """Yield the index and the stored form of each training as it ends."""
    scheduler = cluster.address()
    if jobs and scheduler:
        facts = (worker, modules, _facts(modules))
        for index, content in cluster.results(scheduler, jobs, _train_elsewhere, facts):
            _event_writer(_label(jobs[index]), sweep)(1, 1)
            yield index, content
    elif count <= 1:
        for index, task in jobs.items():
            yield _train_here(index, task, worker, sweep, own_process=False)
    else:
        import joblib

        parallel = joblib.Parallel(n_jobs=count, batch_size=1, return_as="generator_unordered")
        yield from parallel(
            joblib.delayed(_train_here)(index, task, worker, sweep) for index, task in jobs.items()
        )


def _train_here(
    index: int,
    task: Mapping[str, Any],
    worker: Worker,
    sweep: Mapping[str, Any],
    own_process: bool = True,
) -> tuple[int, bytes]:
    """Run one training in this process."""
    if own_process:
        _end_with_parent()
    progress = _event_writer(_label(task), sweep)
    return index, _train(task, worker, progress, own_process)


def _train_elsewhere(
    task: Mapping[str, Any], worker: Worker, modules: Sequence[str], facts: Mapping[str, str]
) -> bytes:
    """Run one training on a worker of a cluster; ClusterError where that holds other code."""
    own = _facts(modules)
    if own != facts:
        differing = ", ".join(name for name in facts if own[name] != facts[name])
        raise cluster.ClusterError(
            f"the worker on {platform.node()} holds another {differing} than the machine that "
            "asks: bring both to the same state, and start the worker anew"
        )
    return _train(task, worker, lambda done, total: None, own_process=True)


def _facts(modules: Sequence[str]) -> dict[str, str]:
    """What must be the same wherever a training runs: code in memory, and torch's version."""
    code = {name: _LOADED[name] for name in modules}
    return code | {"torch": metadata.version("torch")}


def _train(task: Mapping[str, Any], worker: Worker, progress: Progress, own_process: bool) -> bytes:
    """Run one training on one thread; its arrays as the bytes of a safetensors file."""
    import torch
    from safetensors.numpy import save

    if own_process:
        environment.prepare(seed=0, device=task.get("device", "cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        arrays = worker(task, progress)
    finally:
        torch.set_num_threads(threads)
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()})


def _label(task: Mapping[str, Any]) -> str:
    return str(task.get("label", "training"))


def _check_unedited(modules: Sequence[str]) -> None:
    """Raise ValueError where the files are no longer the code in memory, whose result is stored."""
    for name in modules:
        if digests.module_digest([name]) != _LOADED[name]:
            raise ValueError(
                f"{name} was edited after this kernel had loaded it; restart the kernel"
            )


def _default_workers() -> int:
    given = os.environ.get("LABKIT_WORKERS", "")
    if given and not given.isdigit():
        raise ValueError(f"LABKIT_WORKERS must be a whole number of processes, got {given!r}")
    return int(given or 0) or os.cpu_count() or 1


def _path(task: Mapping[str, Any], worker: Worker, code: str) -> Path:
    facts = {key: value for key, value in task.items() if key != "label"}
    key = json.dumps(
        {
            "task": facts,
            "worker": f"{worker.__module__}.{worker.__qualname__}",
            "code": code,
            "torch": metadata.version("torch"),
        },
        sort_keys=True,
        allow_nan=False,
    )
    digest = hashlib.sha256(key.encode()).hexdigest()
    return environment.CACHE / "trainings" / f"{digest[:32]}.safetensors"


def _load(path: Path) -> Arrays | None:
    """The stored result, or None where there is none or it is damaged (it is then made again)."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.exists():
        return None
    try:
        return load_file(path)
    except SafetensorError:
        path.unlink()
        return None


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, however that one ended."""
    if getattr(_end_with_parent, "watching", False):
        return
    _end_with_parent.watching = True
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _event_writer(label: str, sweep: Mapping[str, Any]) -> Progress:
    """A callback that appends progress events to the file named by `LABKIT_PROGRESS`, if any."""
    target = os.environ.get("LABKIT_PROGRESS")
    if not target:
        return lambda done, total: None

    def write(done: int, total: int) -> None:
        event = {"task": label, "done": done, "total": total, **sweep}
        with open(target, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    return write


class _Reporter:
    """Shows in a notebook how many trainings are done; silent where a runner watches."""

    def __init__(self, name: str, total: int, missing: int) -> None:
        self._bar = None
        if missing and not os.environ.get("LABKIT_PROGRESS"):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=total - missing, desc=name, leave=False)

    def finished(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
