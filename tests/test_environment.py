"""Where things lie, and that a prepared process repeats itself."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from labkit.lab import environment


def run_python(code: str, **variables: str) -> str:
    """What a fresh interpreter prints, with these variables added to the environment."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_import_is_light():
    heavy = run_python(
        "import sys, labkit.lab.environment; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    )
    assert heavy.strip() == "set()"


def test_root_and_cache_can_be_moved(tmp_path):
    code = "from labkit import environment as e; print(e.ROOT, e.RESULTS, e.PROFILES, e.CACHE)"
    cache = tmp_path / "elsewhere"
    found = run_python(code, LABKIT_ROOT=str(tmp_path), LABKIT_CACHE=str(cache)).split()
    assert [Path(part) for part in found] == [
        tmp_path,
        tmp_path / "results",
        tmp_path / "notebooks" / "profiles",
        cache,
    ]


def test_root_is_the_repository_by_default():
    assert (environment.ROOT / "pyproject.toml").is_file()


def test_chapters_are_the_numbered_notebooks_in_order(tmp_path, monkeypatch):
    for name in ("10_z.ipynb", "02_a.ipynb", "notes.ipynb", "02_a.json", "1_b.ipynb"):
        (tmp_path / name).touch()
    monkeypatch.setattr(environment, "NOTEBOOKS", tmp_path)
    assert environment.chapters() == ("02_a", "10_z")


def test_kernel_environment_fixes_what_must_be_set_before_the_start():
    variables = environment.kernel_environment(3)
    assert variables["PYTHONHASHSEED"] == "0"
    assert variables["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    threads = [value for name, value in variables.items() if name.endswith("THREADS")]
    assert threads == ["3"] * 4


@pytest.mark.parametrize("threads, error", [(0, ValueError), (-1, ValueError), (1.0, TypeError)])
def test_wrong_thread_counts_are_refused(threads, error):
    with pytest.raises(error, match=re.escape(repr(threads))):
        environment.kernel_environment(threads)


@pytest.mark.parametrize("threads", ["0", "two", "-1", "1.5"])
def test_wrong_thread_variables_are_refused(monkeypatch, threads):
    monkeypatch.setenv("LABKIT_THREADS", threads)
    with pytest.raises(ValueError, match=f"LABKIT_THREADS.*'{threads}'"):
        environment.prepare(device="cpu")


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_prepare_seeds_every_generator():
    assert environment.prepare(7, "cpu") == torch.device("cpu")
    first = draws()
    environment.prepare(7, "cpu")
    again = draws()
    environment.prepare(8, "cpu")
    other = draws()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_prepare_asks_for_determinism_and_one_thread(monkeypatch):
    monkeypatch.delenv("LABKIT_THREADS", raising=False)
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    environment.prepare(device="cpu")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    "seed, error", [(-1, ValueError), (2**32, ValueError), (True, TypeError), (1.0, TypeError)]
)
def test_wrong_seeds_are_refused(seed, error):
    with pytest.raises(error, match=re.escape(repr(seed))):
        environment.prepare(seed, "cpu")


def test_unknown_and_absent_devices_say_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"one of auto, cpu, cuda; got 'gpu'"):
        environment.device("gpu")
    with pytest.raises(ValueError, match=r"'cuda'.*use 'auto' or 'cpu', or install"):
        environment.prepare(device="cuda")


def test_auto_takes_cuda_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert environment.device("auto") == environment.device("cuda") == torch.device("cuda")
    assert environment.device("cpu") == torch.device("cpu")


def test_provenance_names_the_machine_and_nobody():
    found = environment.provenance(environment.prepare(device="cpu"))
    assert found["device"] == "cpu"
    assert found["device_name"]
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert os.uname().nodename not in json.dumps(found)
    assert str(Path.home()) not in json.dumps(found)


def test_provenance_remembers_the_prepared_device():
    environment.prepare(device="cpu")
    assert environment.provenance() == environment.provenance(torch.device("cpu"))
