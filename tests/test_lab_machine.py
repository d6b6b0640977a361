"""Where things lie, and that a prepared process repeats itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.lab import machine


def test_the_folders_are_the_repositorys_and_can_be_moved(tmp_path):
    assert (machine.ROOT / "pyproject.toml").is_file()
    code = """if True:
        import sys
        from labkit.lab import machine as m
        print(m.ROOT, m.RESULTS, m.NOTEBOOKS, m.CACHE, m.DOWNLOADS, m.shown(m.CACHE / "x"),
              {"torch", "numpy", "scipy", "joblib"} & {*sys.modules} or "light", sep="\\n")"""
    cache = tmp_path / "cache"
    moved = {"LABKIT_ROOT": str(tmp_path), "LABKIT_CACHE": str(cache), "LABKIT_DOWNLOADS": "/d"}
    command, variables = [sys.executable, "-c", code], os.environ | moved
    lines = subprocess.check_output(command, env=variables, text=True).splitlines()
    folders = [tmp_path, tmp_path / "results", tmp_path / "notebooks", cache, Path("/d")]
    assert [Path(line) for line in lines[:5]] == folders
    assert lines[5:] == ["cache/x", "light"]
    assert machine.shown(Path("/elsewhere/y")) == "/elsewhere/y"


def test_prepare_seeds_every_generator():
    def draws(seed: int) -> tuple[float, ...]:
        assert machine.prepare(seed, "cpu") == torch.device("cpu")
        return random.random(), np.random.rand(), torch.rand(1).item()

    first, again, other = draws(7), draws(7), draws(8)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_prepare_asks_for_determinism_and_one_thread(monkeypatch):
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_num_threads(2)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    machine.prepare(device="cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("gpu", [False, True])
def test_auto_takes_the_gpu_where_there_is_one(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert machine.device("cpu") == torch.device("cpu")
    assert machine.device("auto") == torch.device("cuda" if gpu else "cpu")
    if not gpu:
        with pytest.raises(ValueError, match="'cuda': this torch sees no GPU; use 'auto' or 'cpu'"):
            machine.prepare(device="cuda")


ROADS = {  # kind of work: on a GPU, on one with Triton
    "replicas": ("graphs/cuda/4", "kernel/cuda/6"),
    "stacks": ("graphs/cuda/4",) * 2,
    "reviews": ("gpu/cuda/4",) * 2,
    "encoder": ("gpu/cuda/6",) * 2,
    "small": ("cores/cpu/16",) * 2,
}


@pytest.mark.parametrize("triton", [False, True])
def test_each_kind_of_work_takes_its_fastest_road_unless_it_is_named(monkeypatch, triton):
    def road(*given: str) -> str:
        road = machine.find_road(*given)
        assert road.shared == (road.name in ("kernel", "graphs"))
        return f"{road.name}/{road.device}/{road.workers}"

    assert {*ROADS} == {*machine.GPU_ROADS, "small"}
    facts = SimpleNamespace(total_memory=80e9)
    monkeypatch.delenv("LABKIT_WORKERS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(machine.util, "find_spec", lambda name: name if triton else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {road(work) for work in ROADS} == {"cores/cpu/16"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {work: road(work) for work in ROADS} == {w: r[triton] for w, r in ROADS.items()}
    assert {road(work, "cpu") for work in ROADS} == {"cores/cpu/16"}
    assert road("small", "cuda") == "gpu/cuda/1"
    facts.total_memory = 24e9  # a smaller card holds fewer at once
    assert road("encoder", "cuda") == "gpu/cuda/2"
    monkeypatch.setenv("LABKIT_WORKERS", "3")
    assert {machine.find_road(work).workers for work in ROADS} == {3}


def test_a_chapters_road_is_printed_and_recorded(capsys):
    assert machine.prepare(device="cpu", work="replicas") == torch.device("cpu")
    road = machine.find_road("replicas", "cpu")
    assert capsys.readouterr().out == f"{road}\n"
    assert machine.provenance()["road"] == {
        "name": "cores", "device": "cpu", "workers": road.workers, "why": road.why
    }  # fmt: skip


def test_provenance_names_the_machine_and_nobody(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    machine.prepare(device="cpu")
    facts = machine.provenance()
    assert (facts["device"], facts["cuda"]) == ("cpu", None)
    assert facts["device_name"] == facts["cpu"] != ""
    assert facts["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["python"] == sys.version.split()[0]
    for secret in ("secret-host", str(Path.home()), str(machine.ROOT)):
        assert secret not in json.dumps(facts)
