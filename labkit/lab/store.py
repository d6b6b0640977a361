"""Finished trainings: carried out side by side, kept under what decides them, never made twice.

A kept result lies in a file named by its key: the specification's class and fields, the import
closure of its code, torch's version. The file holds that key and a digest of its arrays, and is
believed only if both are right. Trainings run side by side as the road of their kind of work says
(`labkit.lab.machine`), or on the Dask cluster whose scheduler `LABKIT_DASK` names.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, dataclass_transform

import joblib
import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass
from tqdm.auto import tqdm

from labkit.lab import code, machine

PATIENCE = 60  # seconds to wait for a Dask scheduler, and then for a first worker

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]  # called with (done, total)
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, strict=False)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def specification(cls: type) -> Any:
    """Make a class a frozen dataclass whose fields pydantic checks, strictly and by name.

    A wrong type or range, or an unknown field, raises `pydantic.ValidationError`, a ValueError.
    """
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls)


class Specification:
    """One training: its fields, with the code it runs, are the key under which it is kept.

    Its kind of `work`, and its field `device` if it has one, decide the road that it takes.
    """

    work: ClassVar[str] = "small"

    @property
    def road(self) -> machine.Road:
        """How trainings like this one are carried out on this machine."""
        return machine.find_road(self.work, getattr(self, "device", "cpu"))

    @property
    def title(self) -> str:
        """What the progress line shows; no part of the key."""
        return type(self).__name__

    def train(self, progress: Progress) -> Arrays:
        """Carry the training out and return its arrays by name, any shapes."""
        raise NotImplementedError


class ClusterError(OSError):
    """The cluster cannot be used; the message says why and what to do."""


def key(specification: Specification) -> str:
    """64 hexadecimal digits that change with whatever decides the result of a training."""
    cls = type(specification)
    parts = {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "fields": TypeAdapter(cls).dump_python(specification, mode="json"),
        "code": code_in_memory(cls.__module__),
        "torch": metadata.version("torch"),
    }
    return code.sha256(code.canonical(parts))


@cache
def code_in_memory(module: str) -> dict[str, str]:
    """The closure of a module as it is in this process, whatever becomes of the files."""
    return code.closure([module], loaded=True)


def _check_unedited(specifications: Iterable[Specification]) -> None:
    """Raise ValueError where the files are no longer the code in memory, whose result is kept."""
    for module in {type(specification).__module__ for specification in specifications}:
        before, now = code_in_memory(module), code.closure([module])
        if edited := [name for name in now if now[name] != before.get(name)]:
            names = ", ".join(edited)
            raise ValueError(f"{names} was edited after it was loaded: restart the kernel")


def train(
    specifications: Sequence[Specification], *, name: str, workers: int | None = None
) -> list[Arrays]:
    """The results of trainings in their order; those that are not kept are carried out.

    `workers` train at once, by default as many as their road says: processes, or threads where the
    road is shared. Each training has one thread, so their number changes no result. `name` is
    what the progress line calls the whole. Each step appends a line of JSON to the file that
    `LABKIT_PROGRESS` names, which the runner reads.
    """
    _check_unedited(specifications)
    keys = [key(specification) for specification in specifications]
    by_key = dict(zip(keys, specifications, strict=True))
    results = {k: _load(k, _path(k)) for k in by_key}
    missing = {k: s for k, s in by_key.items() if results[k] is None}
    tasks, stored = len(results), len(results) - len(missing)
    log = os.environ.get("LABKIT_PROGRESS")
    tell = partial(_tell, log, {"sweep": name, "tasks": tasks, "stored": stored})
    hidden = bool(log) or not missing
    with tqdm(desc=name, total=tasks, initial=stored, leave=False, disable=hidden) as shown:
        for k, content in _finished(missing, tell, workers):
            _check_unedited([missing[k]])
            code.write_atomically(_path(k), content)
            results[k] = _load(k, _path(k))
            shown.update()
    return [results[k] for k in keys]


def _tell(log: str | None, sweep: dict[str, Any], task: str, done: int, total: int) -> None:
    """Append to the log how far a training is, beside what is known of them all."""
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({**sweep, "task": task, "done": done, "total": total}) + "\n")


def _finished(
    missing: Mapping[str, Specification], tell: Callable[..., None], workers: int | None
) -> Iterator[tuple[str, bytes]]:
    """The key and the file's content of each training as it ends."""
    if not missing:
        return
    if scheduler := os.environ.get("LABKIT_DASK"):
        for k, content in _on_cluster(scheduler, missing):
            tell(missing[k].title, 1, 1)
            yield k, content
        return
    road = min((s.road for s in missing.values()), key=lambda road: road.workers)
    count = min(workers or road.workers, len(missing))
    carry_out = _carry_out if count == 1 else _in_thread if road.shared else _in_worker
    backend = {"backend": "threading"} if road.shared else {}
    options = {"batch_size": 1, "return_as": "generator_unordered", **backend}
    jobs = (joblib.delayed(carry_out)(k, s, partial(tell, s.title)) for k, s in missing.items())
    yield from joblib.Parallel(n_jobs=count, **options)(jobs)


def _in_thread(k: str, specification: Specification, progress: Progress) -> tuple[str, bytes]:
    """Carry out one training on a stream of the GPU, beside others of this process."""
    import torch

    # torch hands the streams of each priority out in turn: this one is never that of a capture
    stream = torch.cuda.Stream(priority=-1)

    def keep_up(done: int, total: int) -> None:
        stream.synchronize()  # else all steps wait in the stream, and seem to be done
        progress(done, total)

    with torch.cuda.stream(stream):
        return _carry_out(k, specification, keep_up)


def _in_worker(k: str, specification: Specification, progress: Progress) -> tuple[str, bytes]:
    """Carry out one training in a process of its own, which ends with the one that asks."""
    _end_with_parent()
    machine.prepare(device=getattr(specification, "device", "cpu"))
    return _carry_out(k, specification, progress)


def _of_cluster(k: str, specification: Specification) -> tuple[str, bytes]:
    """Carry out one training in a worker of a cluster; ClusterError where its code is another."""
    if key(specification) != k:
        raise ClusterError(
            f"the worker on {platform.node()} holds other code, or another torch, than the machine "
            "that asks: bring both to the same state, and start the worker anew"
        )
    machine.prepare(device=getattr(specification, "device", "cpu"))
    return _carry_out(k, specification, lambda done, total: None)


def _carry_out(k: str, specification: Specification, progress: Progress) -> tuple[str, bytes]:
    """Carry out one training on one thread; its key and its arrays as a safetensors file."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # a graph cannot hold the detours of this mode; what is captured sums in one order anyway
    torch.use_deterministic_algorithms(not specification.road.shared)
    try:
        arrays = specification.train(progress)
    finally:
        torch.set_num_threads(threads)
    return k, _content(k, arrays)


def kept(module: str, facts: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` returns, kept for the next call with the same facts and code.

    For what takes long to compute and is no training, such as a corpus in numbers. `facts`, plain
    values, and the import closure of `module` name all that decides the arrays.
    """
    parts = {"module": module, "facts": facts, "code": code_in_memory(module)}
    k = code.sha256(code.canonical(parts))
    path = machine.CACHE / "kept" / f"{k[:32]}.safetensors"
    arrays = _load(k, path)
    if arrays is None:
        arrays = make()
        code.write_atomically(path, _content(k, arrays))
    return arrays


def _content(k: str, arrays: Arrays) -> bytes:
    """A file that holds arrays, their key and their digest; the same bytes for the same arrays."""
    from safetensors.numpy import save

    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(arrays, metadata=_seal(k, arrays))


def _seal(k: str, arrays: Arrays) -> dict[str, str]:
    """One entry, since safetensors writes several in any order."""
    parts = [
        (n, str(a.dtype), a.shape, code.sha256(a.tobytes())) for n, a in sorted(arrays.items())
    ]
    return {"key and arrays": f"{k} {code.sha256(code.canonical(parts))}"}


def _path(k: str) -> Path:
    return machine.CACHE / "trainings" / f"{k[:32]}.safetensors"


def _load(k: str, path: Path) -> Arrays | None:
    """The arrays in a file, or None where there is none; one that is damaged is said."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            seal = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if seal == _seal(k, arrays):
            return arrays
    except (SafetensorError, OSError, ValueError):
        pass
    print(f"{machine.shown(path)} is damaged: what it held is computed again", file=sys.stderr)
    return None


def _on_cluster(
    scheduler: str, missing: Mapping[str, Specification]
) -> Iterator[tuple[str, bytes]]:
    """What the workers of a Dask cluster return; ClusterError where it cannot be used."""
    import distributed
    from distributed.comm import connect
    from distributed.utils import LoopRunner

    async def reach() -> None:
        comm = await asyncio.wait_for(connect(scheduler, timeout=PATIENCE), PATIENCE + 1)
        comm.abort()

    try:
        LoopRunner().run_sync(reach)  # a client that never connects may hang when it is collected
        client = distributed.Client(scheduler, timeout=PATIENCE)
    except Exception as error:  # whatever no address, or that of another program, makes of Dask
        raise ClusterError(
            f"no Dask scheduler at {scheduler} ({str(error) or 'no answer'}): start one with "
            "`dask scheduler` and give the address that it prints"
        ) from error
    with client:
        print(f"Dask: {scheduler}, dashboard {client.dashboard_link}", file=sys.stderr, flush=True)
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ClusterError(
                f"no worker has joined {scheduler} within {PATIENCE} s: start some with "
                f"`python -m labkit worker {scheduler}`"
            ) from error
        # not through joblib: with a single worker it would carry everything out here
        futures = [client.submit(_of_cluster, k, s, pure=False) for k, s in missing.items()]
        for future in distributed.as_completed(futures):
            yield future.result()


def become_worker(scheduler: str, processes: int | None) -> None:
    """Become the Dask workers of this machine, one for each core by default; does not return.

    Each trains one task at a time, in the environment of a chapter's kernel: it computes the same.
    """
    command = [
        sys.executable, "-m", "dask", "worker", scheduler, "--death-timeout", "300",
        "--nworkers", str(processes or joblib.cpu_count()), "--nthreads", "1", "--no-dashboard",
    ]  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name != "LABKIT_DASK"}
    os.execve(sys.executable, command, inherited | machine.kernel_environment())


@cache  # one thread watches for all trainings of this process
def _end_with_parent() -> None:
    """Let this process end when the one that started it does, however that one ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
