"""A sweep on a real Dask cluster: a scheduler and workers in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import numpy as np
import pytest

from labkit import __main__
from labkit.film import corpus as reviews
from labkit.film import tasks as review_tasks
from labkit.lab import cluster, environment, sweep
from labkit.memory import data as digit_sum

TIMEOUT = 60


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(environment, "CACHE", tmp_path / "here")
    monkeypatch.delenv("DASK_SCHEDULER", raising=False)
    return tmp_path / "here"


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[str]:
    """The address of a scheduler without workers."""
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
def workers(scheduler, tmp_path_factory) -> Iterator[subprocess.Popen]:
    """Two workers as `python -m labkit worker` starts them, with a store of their own."""
    place = tmp_path_factory.mktemp("workers")
    command = [sys.executable, "-m", "labkit", "worker", scheduler, "--processes", "2"]
    variables = {**os.environ, "LABKIT_CACHE": str(place / "cache")}
    with subprocess.Popen(
        command, env=variables, cwd=place, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def tasks(steps: int = 20, count: int = 4) -> list[dict]:
    return [
        digit_sum.training_task("srn", length=5, seeds=[seed], steps=steps, evaluate_every=10)
        for seed in range(count)
    ]


def run(found: list[dict], **options) -> list[dict]:
    return sweep.run_tasks(
        found, digit_sum.train_task, name="test", modules=digit_sum.MODULES, workers=1, **options
    )


def assert_same(a: list[dict], b: list[dict]) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_without_a_scheduler_or_a_worker_the_next_step_is_said(cache, scheduler, monkeypatch):
    """Comes first, before any worker has joined."""
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(cluster.ClusterError, match="start one with `dask scheduler`"):
        next(cluster.results("tcp://127.0.0.1:1", {0: {}}, dict, ()))
    with pytest.raises(cluster.ClusterError, match=f"labkit worker {scheduler}"):
        next(cluster.results(scheduler, {0: {}}, dict, ()))


def test_a_cluster_gives_the_bits_of_a_local_run(cache, scheduler, workers, monkeypatch, capsys):
    local = run(tasks())
    stored = {path.name: path.read_bytes() for path in (cache / "trainings").iterdir()}
    for path in (cache / "trainings").iterdir():
        path.unlink()

    monkeypatch.setenv("DASK_SCHEDULER", scheduler)
    assert_same(local, run(tasks()))
    assert {path.name: path.read_bytes() for path in (cache / "trainings").iterdir()} == stored
    assert re.search(r"Dask: tcp://\S+, dashboard http://\S+:\d+/status", capsys.readouterr().err)

    monkeypatch.setenv("DASK_SCHEDULER", "tcp://127.0.0.1:1")  # what is stored asks nobody
    assert_same(local, run(tasks()))


def test_a_killed_worker_costs_its_task_a_second_try_only(cache, scheduler, workers, monkeypatch):
    local = run(tasks(steps=500))
    for path in (cache / "trainings").iterdir():
        path.unlink()
    monkeypatch.setenv("DASK_SCHEDULER", scheduler)
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
    found = run(tasks(steps=500))
    killer.join()
    assert len(killed) == 1
    assert_same(local, found)


def test_an_error_of_a_training_is_the_caller_s(cache, scheduler, workers, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER", scheduler)
    with pytest.raises(ValueError, match="cell"):
        run([tasks()[0] | {"cell": "transformer"}])


def test_a_worker_with_other_code_is_refused(cache, scheduler, workers, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER", scheduler)
    facts = sweep._facts(digit_sum.MODULES) | {"labkit.memory.training": "0" * 64}
    monkeypatch.setattr(sweep, "_facts", lambda modules: facts)
    with pytest.raises(cluster.ClusterError, match=r"holds another labkit\.training than"):
        run(tasks()[:1])
    assert not list(cache.rglob("*.safetensors"))


def test_tasks_hold_settings_and_seeds_and_no_data():
    corpus = reviews.load("generated", 300)
    found = [*tasks(), review_tasks.training_task("mine", corpus, seed=0, corpus_name="generated")]
    for task in found:
        assert json.loads(json.dumps(task)) == task
        assert len(json.dumps(task)) < 3_000


def test_the_command_line_names_the_cluster(monkeypatch):
    seen = []
    monkeypatch.setenv("DASK_SCHEDULER", "tcp://old:1")
    monkeypatch.setattr("labkit.lab.runner.run", lambda *_: seen.append(cluster.address()) or 0)
    assert __main__.main(["run", "02", "--profile", "quick", "--dask", "tcp://new:8786"]) == 0
    assert seen == ["tcp://new:8786"]


def test_a_worker_computes_as_a_kernel_does(monkeypatch):
    started = []
    monkeypatch.setattr(cluster.os, "execve", lambda *arguments: started.append(arguments))
    __main__.main(["worker", "tcp://host:8786", "--processes", "3"])
    ((program, command, variables),) = started
    assert program == sys.executable
    assert command[1:] == [
        "-m", "dask", "worker", "tcp://host:8786", "--nworkers", "3", "--nthreads", "1",
        "--no-dashboard",
    ]  # fmt: skip
    assert environment.kernel_environment().items() <= variables.items()
