"""Trainings: kept once, resumed, the same from one process, from two and from a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import distributed
import numpy as np
import pytest

import labkit
from labkit.lab import code, machine, store
from labkit.lab.specification import Arrays

PATIENCE = 120  # seconds: a slow machine may take long, a broken store takes for ever
ROOM = """
import time
import numpy as np
import torch
from labkit.lab.specification import Seeds, Specification, specification
from labkit.toy_data import SCALE

@specification
class Toy(Specification):
    seeds: Seeds
    steps: int = 2
    pause: float = 0.0

    @property
    def title(self):
        return f"toy {self.seeds[0]}"

    def train(self, progress):
        x = torch.randn(300, 300, generator=torch.Generator().manual_seed(self.seeds[0]))
        for step in range(self.steps):
            x = torch.tanh(x @ x.T / SCALE)
            time.sleep(self.pause)
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
def house(tmp_path_factory) -> Iterator[Path]:
    """A copy of the lab's core with a room `toy`, for this process and for those that it starts."""
    house = tmp_path_factory.mktemp("house")
    for name in ("lab", "measure"):
        shutil.copytree(code.PACKAGE / name, house / "labkit" / name)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(code.PACKAGE / name, house / "labkit")
    (house / "labkit" / "toy.py").write_text(ROOM)
    (house / "labkit" / "toy_data.py").write_text("SCALE = 20.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(house)
        patch.syspath_prepend(house)
        patch.setenv("PYTHONPATH", str(house))
        patch.setattr(labkit, "__path__", [*labkit.__path__, str(house / "labkit")])
        patch.setattr(code, "PACKAGE", house / "labkit")
        for name in ("LABKIT_WORKERS", "LABKIT_DASK", "LABKIT_PROGRESS"):
            patch.delenv(name, raising=False)
        yield house
        sys.modules.pop("labkit.toy", None)
        sys.modules.pop("labkit.toy_data", None)


@pytest.fixture
def toy(house):
    return import_module("labkit.toy")


@pytest.fixture
def cache(toy, tmp_path, monkeypatch) -> Path:
    """An empty folder for kept trainings; returns where they lie."""
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    return tmp_path / "trainings"


@pytest.fixture
def three(toy) -> list:
    return [toy.Toy(seeds=[seed]) for seed in (3, 1, 2)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_the_key_is_class_fields_code_and_torch(toy, monkeypatch):
    training = toy.Toy(seeds=[1])
    others = [toy.Other(seeds=[1]), toy.Toy(seeds=[2]), toy.Toy(seeds=[1], pause=0.1)]
    keys = {store.key(specification) for specification in (training, *others)}
    assert len(keys) == 4
    assert store.key(toy.Toy(seeds=(1,))) in keys
    for name in ("torch", "numpy"):
        versions = {name: "another"}
        monkeypatch.setattr(store.metadata, "version", lambda n, v=versions: v.get(n, "as it was"))
        keys.add(store.key(training))
    assert len(keys) == 6


def test_two_processes_give_the_bits_of_one(cache, three, tmp_path, monkeypatch):
    first = store.train(three, name="x", workers=1)
    kept = contents(cache)
    monkeypatch.setattr(machine, "CACHE", tmp_path / "other")
    monkeypatch.setenv("LABKIT_WORKERS", "2")
    assert_same(first, store.train(three, name="x"))
    assert contents(tmp_path / "other" / "trainings") == kept


def flip(position: int) -> Callable[[bytes], bytes]:
    def flipped(content: bytes) -> bytes:
        place = position % len(content)
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]

    return flipped


DAMAGES = {
    "cut": lambda content: content[:100],
    "empty": lambda content: b"",
    "a bit of the data": flip(-1000),
    "a bit of the header": flip(20),
    "a tensor's name": lambda content: content.replace(b'"mean"', b'"lean"'),
    "a tensor's type": lambda content: content.replace(b'"I64"', b'"U64"'),
    "a text": lambda content: b"<html>Log in</html>" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_said_and_its_training_carried_out_again(cache, three, capsys, damage):
    first = store.train(three[:1], name="x", workers=1)
    kept = contents(cache)
    (path,) = cache.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert contents(cache) != kept
    capsys.readouterr()
    assert_same(first, store.train(three[:1], name="x", workers=1))
    said = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert said == [f"{path} is damaged: what it held is computed again"]
    assert contents(cache) == kept


def test_exchanged_files_are_not_believed(cache, three, capsys):
    first = store.train(three[:2], name="x", workers=1)
    kept = contents(cache)
    for path, content in zip(cache.iterdir(), reversed(kept.values()), strict=True):
        path.write_bytes(content)
    assert_same(first, store.train(three[:2], name="x", workers=1))
    assert capsys.readouterr().err.count("is damaged: what it held is computed again") == 2
    assert contents(cache) == kept


def test_what_takes_long_is_kept_by_its_facts(cache, capsys):
    def kept(n: int, **facts) -> np.ndarray:
        return store.kept("labkit.toy", facts, lambda: {"x": np.arange(n)})["x"]

    assert len(kept(2, corpus="a")) == len(kept(3, corpus="a")) == 2
    assert len(kept(3, corpus="b")) == 3
    for path in (cache.parent / "kept").iterdir():
        path.write_bytes(b"")
    assert len(kept(4, corpus="a")) == 4
    assert "is damaged" in capsys.readouterr().err


# edited code


@pytest.fixture
def edit(house) -> Iterator[Callable[[], None]]:
    """A function that edits a module which the trainings import."""
    path = house / "labkit" / "toy_data.py"
    before = path.read_text()
    yield lambda: path.write_text("SCALE = 30.0\n")
    path.write_text(before)


def test_neither_a_kept_nor_a_new_result_is_given_for_edited_code(cache, three, edit):
    store.train(three[:1], name="x", workers=1)
    edit()
    for training in three[:2]:
        with pytest.raises(ValueError, match=r"labkit\.toy_data was edited.*restart the kernel"):
            store.train([training], name="x", workers=1)


def test_nothing_is_kept_of_code_that_was_edited_meanwhile(cache, toy, three, edit, monkeypatch):
    train = toy.Toy.train
    monkeypatch.setattr(toy.Toy, "train", lambda *given: edit() and train(*given))
    with pytest.raises(ValueError, match=r"labkit\.toy_data was edited after it was loaded"):
        store.train(three, name="x", workers=1)
    assert not cache.exists()


# running


def test_progress_reaches_the_runner(cache, three, tmp_path, monkeypatch):
    target = tmp_path / "progress.jsonl"
    monkeypatch.setenv("LABKIT_PROGRESS", str(target))
    store.train(three[:1], name="a sweep", workers=1)
    store.train(three, name="a sweep", workers=2)
    events = [json.loads(line) for line in target.read_text().splitlines()]
    assert events[0] == {
        "task": "toy 3", "sweep": "a sweep", "tasks": 1, "stored": 0, "done": 1, "total": 2,
    }  # fmt: skip
    assert {(e["tasks"], e["stored"]) for e in events[2:]} == {(3, 1)}
    assert sorted((e["task"], e["done"]) for e in events[2:]) == [
        ("toy 1", 1), ("toy 1", 2), ("toy 2", 1), ("toy 2", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("workers", ["two", "0", "-1", "1.5"])
def test_a_wrong_number_of_workers_is_refused(cache, three, monkeypatch, workers):
    monkeypatch.setenv("LABKIT_WORKERS", workers)
    with pytest.raises(ValueError, match=f"LABKIT_WORKERS must be a whole number.*'{workers}'"):
        store.train(three, name="x")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_training_is_the_callers(cache, toy, three, workers):
    with pytest.raises(ValueError, match="a training without steps"):
        store.train([*three, toy.Toy(seeds=[1], steps=0)], name="x", workers=workers)
    if workers == 1:
        assert len(contents(cache)) == 3  # what was finished before is kept


SCRIPT = """
from labkit.lab import store
from labkit.toy import Toy
trainings = [Toy(seeds=[3]), *(Toy(seeds=[seed], pause=600) for seed in (4, 5, 6))]
store.train(trainings, name="x", workers=2)
"""


def test_a_killed_sweep_keeps_what_was_finished_and_leaves_no_process(
    cache, toy, three, monkeypatch
):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT])
    wait_for(lambda: cache.is_dir() and list(cache.glob("*.safetensors")))
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    pids = [int(pid) for pid in children.stdout.split()]
    assert len(pids) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    monkeypatch.setattr(toy.Toy, "train", refuse)
    store.train([three[0]], name="x", workers=1)


# a cluster


@pytest.fixture(scope="module")
def scheduler(house, tmp_path_factory) -> Iterator[str]:
    """The address of a Dask scheduler, which has no workers yet."""
    place = tmp_path_factory.mktemp("scheduler") / "scheduler.json"
    command = [
        sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0",
        "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(place),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: place.exists() and place.read_text().strip().endswith("}"))
            yield json.loads(place.read_text())["address"]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def workers(house, scheduler, tmp_path_factory) -> Iterator[None]:
    """Two workers as `python -m labkit worker` starts them."""
    command = [sys.executable, "-m", "labkit", "worker", scheduler, "--processes", "2"]
    with subprocess.Popen(
        command, cwd=house, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_without_a_scheduler_or_a_worker_the_next_step_is_said(
    cache, three, scheduler, monkeypatch
):
    """Comes before any worker has joined."""
    monkeypatch.setattr(store, "PATIENCE", 1)
    for address, message in [
        ("tcp://127.0.0.1:1", "start one with `dask scheduler`"),
        ("tls://127.0.0.1:1", "no Dask scheduler at tls://127.0.0.1:1"),
        (scheduler, f"start some with `python -m labkit worker {scheduler}`"),
    ]:
        monkeypatch.setenv("LABKIT_DASK", address)
        with pytest.raises(store.ClusterError, match=re.escape(message)):
            store.train(three, name="x")
    for address in ("teacher.example", "http://127.0.0.1:1", "tcp://127.0.0.1:1"):
        with pytest.raises(
            store.ClusterError, match=re.escape(f"no Dask scheduler at {address} (")
        ):
            store.become_worker(address, 1)


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


def test_a_killed_worker_costs_its_training_a_second_try_only(
    cache, toy, scheduler, workers, monkeypatch
):
    monkeypatch.setenv("LABKIT_DASK", scheduler)
    killed = []

    def kill_one() -> None:
        with distributed.Client(scheduler, set_as_default=False) as client:
            wait_for(lambda: any(client.processing().values()))
            busy = [name for name, keys in client.processing().items() if keys]
            (pid,) = client.run(os.getpid, workers=busy[:1], nanny=False).values()
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    trainings = [toy.Toy(seeds=[seed], pause=1.0) for seed in range(4)]
    results = store.train(trainings, name="x")
    killer.join()
    assert len(killed) == 1
    monkeypatch.delenv("LABKIT_DASK")
    quick = [toy.Toy(seeds=[seed]) for seed in range(4)]
    assert_same(results, store.train(quick, name="x", workers=1))


def test_errors_and_other_code_of_a_worker_are_the_callers(
    cache, toy, three, scheduler, workers, monkeypatch
):
    monkeypatch.setenv("LABKIT_DASK", scheduler)
    with pytest.raises(ValueError, match="a training without steps"):
        store.train([toy.Toy(seeds=[1], steps=0)], name="x")
    monkeypatch.setattr(store.metadata, "version", lambda name: "another")
    with pytest.raises(store.ClusterError, match="holds other code, or another torch, than"):
        store.train(three[:1], name="x")
    assert not cache.exists()


def test_a_worker_computes_as_a_kernel_does(scheduler, monkeypatch):
    started = []
    monkeypatch.setenv("LABKIT_DASK", scheduler)  # a worker that asked it would wait for itself
    monkeypatch.setattr(store.os, "execve", lambda *arguments: started.append(arguments))
    store.become_worker(scheduler, 3)
    ((program, arguments, variables),) = started
    assert program == sys.executable
    assert arguments[1:] == [
        "-m", "dask", "worker", scheduler, "--nworkers", "3", "--nthreads", "1", "--no-dashboard",
    ]  # fmt: skip
    assert machine.kernel_environment().items() <= variables.items()
    assert "LABKIT_DASK" not in variables
