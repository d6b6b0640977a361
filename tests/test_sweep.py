"""Trainings side by side: stored once, resumed, the same from one process or two."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from labkit.lab import environment, sweep
from labkit.memory import data as digit_sum


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    return tmp_path


def tasks(steps: int = 20) -> list[dict]:
    return [
        digit_sum.training_task(cell, length=5, seeds=[0, 1], steps=steps, evaluate_every=10)
        for cell in ("srn", "lstm")
    ]


def run(found: list[dict], workers: int = 1, worker=digit_sum.train_task) -> list[dict]:
    return sweep.run_tasks(
        found, worker, name="test sweep", modules=digit_sum.MODULES, workers=workers
    )


def refuse(task, progress):
    raise AssertionError(f"trained again: {task}")


refuse.__module__, refuse.__qualname__ = "labkit.memory.data", "train_task"


def assert_same(a: list[dict], b: list[dict]) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_a_finished_training_is_not_done_again(cache):
    first = run(tasks())
    assert_same(first, run(tasks(), worker=refuse))
    with pytest.raises(AssertionError, match="trained again"):
        run(tasks(steps=30), worker=refuse)


def test_results_come_in_the_tasks_order_and_the_label_does_not_count(cache):
    first = run(tasks())
    backwards = [task | {"label": "other"} for task in reversed(tasks())]
    assert_same(first, run(backwards, worker=refuse)[::-1])


def test_two_processes_give_the_bits_of_one(cache, tmp_path, monkeypatch):
    first = run(tasks())
    monkeypatch.setattr(environment, "CACHE", tmp_path / "other")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "other"))
    assert_same(first, run(tasks(), workers=2))


def test_a_damaged_file_is_made_again(cache):
    first = run(tasks())
    for path in (cache / "trainings").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert_same(first, run(tasks()))


@pytest.mark.parametrize("name", [m.removeprefix("labkit.") for m in digit_sum.MODULES])
def test_no_result_is_taken_for_code_that_this_process_does_not_hold(cache, monkeypatch, name):
    run(tasks())
    monkeypatch.setitem(sweep._LOADED, name, "0" * 64)
    with pytest.raises(ValueError, match=f"labkit.{name} was edited after.*restart the kernel"):
        run(tasks(), worker=refuse)


def test_no_result_is_stored_for_code_that_was_edited_meanwhile(cache, monkeypatch):
    def edited(task, progress):
        found = digit_sum.train_task(task, progress)
        monkeypatch.setitem(sweep._LOADED, "training", "0" * 64)
        return found

    with pytest.raises(ValueError, match=r"labkit\.training was edited after"):
        run(tasks()[:1], worker=edited)
    assert not list(cache.rglob("*.safetensors"))


def test_progress_events_reach_the_runner(cache, tmp_path, monkeypatch):
    target = tmp_path / "progress.jsonl"
    monkeypatch.setenv("LABKIT_PROGRESS", str(target))
    run(tasks(steps=20)[:1])
    run(tasks(steps=20))
    events = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(e["done"], e["total"], e["tasks"], e["stored"]) for e in events] == [
        (10, 20, 1, 0),
        (20, 20, 1, 0),
        (10, 20, 2, 1),
        (20, 20, 2, 1),
    ]
    assert events[0]["task"] == "published srn zero trained length 5"


def test_a_bad_number_of_workers_is_refused(cache, monkeypatch):
    monkeypatch.setenv("LABKIT_WORKERS", "two")
    with pytest.raises(ValueError, match="LABKIT_WORKERS must be a whole number"):
        sweep.run_tasks(tasks(), digit_sum.train_task, name="x", modules=digit_sum.MODULES)


SCRIPT = """
from labkit.memory import data as digit_sum
from labkit.lab import sweep
tasks = [digit_sum.training_task(cell, length=5, seeds=[0, 1], steps=steps, evaluate_every=10)
         for cell, steps in (("srn", 20), ("srn", 10_000_000), ("lstm", 10_000_000))]
sweep.run_tasks(tasks, digit_sum.train_task, name="x", modules=digit_sum.MODULES, workers=2)
"""


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_a_killed_sweep_keeps_what_was_finished_and_leaves_no_process(cache):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], env=dict(os.environ))
    folder = cache / "trainings"
    deadline = time.monotonic() + 60
    while not (folder.is_dir() and any(folder.glob("*.safetensors"))):
        assert time.monotonic() < deadline, "no training finished"
        time.sleep(0.1)
    workers = _children(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()

    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived the sweep"
        time.sleep(0.1)
    run(
        [digit_sum.training_task("srn", length=5, seeds=[0, 1], steps=20, evaluate_every=10)],
        worker=refuse,
    )
