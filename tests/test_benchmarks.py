"""`make bench` and `make gpu-check`: what is measured is judged, written and sealed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from labkit.lab import machine

FOLDER = machine.ROOT / "benchmarks"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("bench")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def test_ratios_are_judged_by_their_aims_and_the_page_shows_them(bench, tmp_path):
    measures = {}
    for T in bench.LENGTHS:
        times = {"handwritten": [60e-6, 90e-6, 90e-6], "torch": [3e-6] * 3, "ensemble": [1e-6] * 3}
        measures |= bench.measures_of(T, times)
    lines = bench.table(measures).splitlines()[1:]
    assert [line.split()[-1] for line in lines] == ["met", "missed"] * 3
    assert " 90 " in lines[0]  # the median of the rounds' ratios

    (tmp_path / "gpu.json").write_text("{}")
    bench.write(measures, machine.provenance(), "now")
    names = {"results.json", "README.md", "gpu.json"}
    assert bench.record.read_sums(tmp_path).keys() == names
    assert bench.table(measures) in (tmp_path / "README.md").read_text("utf-8")
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["finished"] == "now"


def test_a_trial_measures_and_writes_nothing(bench, tmp_path, capsys):
    bench.main(["--small"])
    assert "textbook / 20 replicas at once, T=10" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def gpu_check(*arguments, **variables) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / "gpu_check.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_without_a_gpu_the_check_says_so_in_a_line():
    done = gpu_check()
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("gpu-check: torch sees no GPU here")
