"""Trainings: kept once, resumed, the same from one process, from two and from a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import labkit
from labkit.lab import code, machine, store
from labkit.lab.store import Arrays

PATIENCE = 120  # seconds: a slow machine may take long, a broken store takes for ever
ROOM = """
import numpy as np
import torch
from labkit.lab.store import Seeds, Specification, specification
from labkit.toy_data import SCALE

@specification
class Toy(Specification):
    seeds: Seeds
    steps: int = 2
    scale: float = 1.0

    @property
    def title(self):
        return f"toy {self.seeds[0]}"

    def train(self, progress):
        x = torch.randn(300, 300, generator=torch.Generator().manual_seed(self.seeds[0]))
        for step in range(self.steps):
            x = torch.tanh(self.scale * x @ x.T / SCALE)
            progress(step + 1, self.steps)
        if self.steps == 0:
            raise ValueError("a training without steps")
        threads = np.array(torch.get_num_threads())
        return {"x": x.numpy(), "mean": x.mean().numpy(), "threads": threads}

@specification
class Other(Toy):
    pass
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Iterator[ModuleType]:
    """A room beside a copy of the lab's core, for this process and for those that it starts."""
    house = tmp_path_factory.mktemp("house")
    shutil.copytree(code.PACKAGE, house / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    (house / "labkit" / "toy.py").write_text(ROOM)
    (house / "labkit" / "toy_data.py").write_text("SCALE = 20.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(house)
        patch.syspath_prepend(house)
        patch.setenv("PYTHONPATH", str(house))
        patch.setattr(labkit, "__path__", [*labkit.__path__, str(house / "labkit")])
        patch.setattr(code, "PACKAGE", house / "labkit")
        yield import_module("labkit.toy")


@pytest.fixture
def cache(toy, tmp_path, monkeypatch) -> Path:
    """Where trainings are kept; there are none yet."""
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    return tmp_path / "trainings"


@pytest.fixture
def three(toy) -> list:
    return [toy.Toy(seeds=[seed]) for seed in (3, 1, 2)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same(a: list[Arrays], b: list[Arrays]) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name], err_msg=name, strict=True)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def refuse(specification, progress):
    raise AssertionError(f"trained again: {specification}")


# kept


def test_a_training_is_carried_out_once_on_one_thread(cache, toy, three, monkeypatch):
    first = store.train([*three, three[0]], name="x", workers=1)
    assert [int(arrays["threads"]) for arrays in first] == [1] * 4
    assert first[0]["mean"].shape == ()
    assert_same([first[0]], [first[3]])
    assert len(contents(cache)) == 3
    monkeypatch.setattr(toy.Toy, "title", "another")
    monkeypatch.setattr(toy.Toy, "train", refuse)
    assert_same(first[2::-1], store.train(three[::-1], name="y", workers=2))
    with pytest.raises(AssertionError, match="trained again"):
        store.train([toy.Toy(seeds=[3], steps=3)], name="z", workers=1)


def test_trainings_on_a_shared_gpu_run_in_threads_each_on_its_stream(
    cache, toy, three, monkeypatch
):
    expected = store.train(three, name="x", workers=1)
    assert torch.are_deterministic_algorithms_enabled()
    shutil.rmtree(cache)
    trained, train, waits = [], toy.Toy.train, []

    class Stream:
        def __init__(self, priority):
            assert priority == -1

        def synchronize(self):
            waits.append(threading.get_ident())

    monkeypatch.setattr("torch.cuda.Stream", Stream)
    monkeypatch.setattr("torch.cuda.stream", nullcontext)
    monkeypatch.setattr(
        toy.Toy, "road", machine.Road(name="kernel", device="cuda", workers=2, why="")
    )

    def noted(specification, progress):
        trained.append((os.getpid(), threading.get_ident()))
        assert not torch.are_deterministic_algorithms_enabled()  # what graphs cannot hold
        return train(specification, progress)

    monkeypatch.setattr(toy.Toy, "train", noted)
    assert_same(expected, store.train(three, name="y"))
    assert {process for process, _ in trained} == {os.getpid()}
    assert {*waits} == {thread for _, thread in trained}
    assert threading.get_ident() not in waits
    assert len(waits) == 6  # two steps of each, and no step is told before it is done


def test_the_key_is_class_fields_code_and_torch(toy, monkeypatch):
    trainings = [toy.Toy(seeds=[1]), toy.Toy(seeds=[2]), toy.Toy(seeds=[1], scale=0.1)]
    keys = {store.key(training) for training in (*trainings, toy.Other(seeds=[1]))}
    assert len(keys) == 4
    assert store.key(toy.Toy(seeds=(1,))) in keys
    monkeypatch.setattr(store.metadata, "version", lambda package: f"another {package}")
    assert store.key(trainings[0]) not in keys  # what code does to it: see test_lab_code


def test_two_processes_give_the_bits_of_one(cache, three, tmp_path, monkeypatch):
    first = store.train(three, name="x", workers=1)
    kept = contents(cache)
    monkeypatch.setattr(machine, "CACHE", tmp_path / "other")
    monkeypatch.setenv("LABKIT_WORKERS", "2")
    assert_same(first, store.train(three, name="x"))
    assert contents(tmp_path / "other" / "trainings") == kept


DAMAGES = {
    "cut": lambda content, other: content[:100],
    "a bit of the data": lambda content, other: (
        content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]
    ),
    "a tensor's name": lambda content, other: content.replace(b'"mean"', b'"lean"'),
    "exchanged": lambda content, other: other,
}


def test_a_damaged_file_is_said_and_its_training_carried_out_again(cache, three, capsys):
    first = store.train(three[:2], name="x", workers=1)
    kept = contents(cache)
    name, other = kept
    for damage in DAMAGES.values():
        (cache / name).write_bytes(damage(kept[name], kept[other]))
        assert contents(cache) != kept
        assert_same(first, store.train(three[:2], name="x", workers=1))
        said = capsys.readouterr().err.splitlines()
        assert said == [f"{cache / name} is damaged: what it held is computed again"]
        assert contents(cache) == kept


def test_what_takes_long_is_kept_by_its_facts(cache):
    def kept(n: int, **facts) -> int:
        return len(store.kept("labkit.toy", facts, lambda: {"x": np.arange(n)})["x"])

    assert (kept(2, corpus="a"), kept(3, corpus="a"), kept(3, corpus="b")) == (2, 2, 3)


@pytest.fixture
def edit(toy) -> Iterator[Callable[[], object]]:
    """A function that edits a module which the trainings import."""
    path = Path(toy.__file__).parent / "toy_data.py"
    before = path.read_text()
    yield lambda: path.write_text("SCALE = 30.0\n")
    path.write_text(before)


def test_no_result_is_kept_or_given_for_edited_code(cache, toy, three, edit, monkeypatch):
    store.train(three[:1], name="x", workers=1)
    train = toy.Toy.train
    monkeypatch.setattr(toy.Toy, "train", lambda *given: edit() and train(*given))
    for training in (three[1], three[0]):  # edited while it ran, and kept before the edit
        with pytest.raises(ValueError, match=r"labkit\.toy_data was edited.*restart the kernel"):
            store.train([training], name="x", workers=1)
    assert len(contents(cache)) == 1


# running


def test_progress_reaches_the_runner(cache, three, tmp_path, monkeypatch):
    target = tmp_path / "progress.jsonl"
    monkeypatch.setenv("LABKIT_PROGRESS", str(target))
    store.train(three[:1], name="a sweep", workers=1)
    store.train(three, name="a sweep", workers=2)
    events = [json.loads(line) for line in target.read_text().splitlines()]
    counts = [(e["sweep"], e["tasks"], e["stored"], e["total"]) for e in events]
    assert counts == [("a sweep", 1, 0, 2)] * 2 + [("a sweep", 3, 1, 2)] * 4
    assert [(e["task"], e["done"]) for e in events[:2]] == [("toy 3", 1), ("toy 3", 2)]
    assert {e["task"] for e in events[2:]} == {"toy 1", "toy 2"}


def test_an_error_of_a_training_is_the_callers_and_what_was_finished_is_kept(cache, toy, three):
    with pytest.raises(ValueError, match="a training without steps"):
        store.train([three[0], toy.Toy(seeds=[1], steps=0)], name="x", workers=1)
    assert len(contents(cache)) == 1


# a cluster


@contextmanager
def started(*arguments: str) -> Iterator[None]:
    """A Python program in the background, ended with all that it started."""
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def scheduler(toy, tmp_path_factory) -> Iterator[str]:
    """The address of a Dask scheduler, which has no workers yet."""
    place = tmp_path_factory.mktemp("scheduler") / "scheduler.json"
    with started(
        "dask", "scheduler", "--host", "127.0.0.1", "--port", "0",
        "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(place),
    ):  # fmt: skip
        wait_for(lambda: place.exists() and place.read_text().strip().endswith("}"))
        yield json.loads(place.read_text())["address"]


@pytest.fixture(scope="module")
def workers(scheduler) -> Iterator[None]:
    with started("labkit", "worker", scheduler, "--processes", "2"):
        yield


def test_without_a_scheduler_or_a_worker_the_next_step_is_said(
    cache, three, scheduler, monkeypatch
):
    """Comes before any worker has joined."""
    monkeypatch.setattr(store, "PATIENCE", 1)
    monkeypatch.setenv("LABKIT_DASK", scheduler)
    with pytest.raises(store.ClusterError, match=f"start some with `.* labkit worker {scheduler}`"):
        store.train(three, name="x")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        for address in ("teacher.example", f"tcp://127.0.0.1:{mute.getsockname()[1]}"):
            monkeypatch.setenv("LABKIT_DASK", address)
            with pytest.raises(store.ClusterError, match=rf"no Dask scheduler at {address} \("):
                store.train(three, name="x")


def test_a_single_worker_trains_and_not_the_caller(cache, three, scheduler, monkeypatch):
    monkeypatch.setenv("LABKIT_DASK", scheduler)
    monkeypatch.setattr(store, "key", lambda s, own=store.key: own(s)[::-1])
    wrong = pytest.raises(store.ClusterError, match="holds other code, or another torch, than")
    with started("labkit", "worker", scheduler, "--processes", "1"), wrong:
        store.train(three[:1], name="x")
    assert not cache.exists()


def test_a_worker_computes_as_a_kernel_does_and_asks_no_cluster(scheduler, monkeypatch):
    calls = []
    monkeypatch.setenv("LABKIT_DASK", scheduler)
    monkeypatch.setattr(store.os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(store.joblib, "cpu_count", lambda: 3)  # knows of Slurm and containers
    store.become_worker(scheduler, None)
    ((program, arguments, variables),) = calls
    assert (program, arguments[:5]) == (
        sys.executable,
        [program, "-m", "dask", "worker", scheduler],
    )
    assert " --nworkers 3 --nthreads 1" in " ".join(arguments)
    assert machine.kernel_environment().items() <= variables.items()
    assert "LABKIT_DASK" not in variables


def test_a_cluster_gives_the_bits_of_a_local_run(
    cache, three, scheduler, workers, monkeypatch, capsys
):
    monkeypatch.setenv("DASK_SCHEDULER", "tcp://127.0.0.1:1")  # Dask's own names are not the lab's
    local = store.train(three, name="x", workers=1)
    kept = contents(cache)
    shutil.rmtree(cache)
    monkeypatch.setenv("LABKIT_DASK", scheduler)
    assert_same(local, store.train(three, name="x", workers=1))
    assert contents(cache) == kept
    assert re.search(r"Dask: tcp://\S+, dashboard http://\S+:\d+/status", capsys.readouterr().err)
    monkeypatch.setenv("LABKIT_DASK", "tcp://127.0.0.1:1")  # what is kept asks nobody
    assert_same(local, store.train(three, name="x"))
