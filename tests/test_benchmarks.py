"""`make bench` and `make gpu-check`: what is measured is judged, written and sealed."""

from __future__ import annotations

import hashlib
import importlib
import json
import os

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


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu_check")


def test_without_a_gpu_the_check_says_so_in_a_line(gpu_check, capsys):
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("gpu-check: torch sees no GPU here")


ONE_OF_EACH = (
    "facts", "parity-kernel-srn", "parity-graphs-lstm", "protocols", "chapter-01", "speeds",
    "study", "accuracies", "peer", "sine", "reviews-mps", "encoder",
)  # fmt: skip


@pytest.mark.timeout(1_500)
def test_every_step_of_the_check_runs_in_miniature(gpu_check, monkeypatch, tmp_path, capsys):
    """One of each kind; without Triton or JAX their steps are left out, and it is said."""
    assert {name.split("-")[0] for name in ONE_OF_EACH} == {
        n.split("-")[0] for n in gpu_check.STEPS
    }
    mps = tmp_path / gpu_check.MPS
    mps.write_text("#!/bin/sh\n")
    mps.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    status = gpu_check.main(["--rehearse", "--out", str(tmp_path / "out"), *ONE_OF_EACH])
    printed = capsys.readouterr().out
    assert status == 0, printed
    steps = json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8"))["steps"]
    left_out = {name for name in ONE_OF_EACH if f"left out: {name}, for there is no" in printed}
    assert steps.keys() == {*ONE_OF_EACH} - left_out
    assert left_out <= {"parity-kernel-srn", "speeds", "peer"}
    assert all(step["rows"] for step in steps.values())
    assert gpu_check.missing("triton") or left_out <= {"peer"}


def test_a_step_that_fails_is_named_with_its_last_words_and_the_next_one_runs(
    gpu_check, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(gpu_check.STEPS, "chapter-99", gpu_check.Step(60))
    status = gpu_check.main(["--rehearse", "--out", str(tmp_path), "chapter-99", "facts"])
    printed = capsys.readouterr().out
    assert status == 1
    assert "FAILED: chapter-99" in printed
    assert "    | ValueError: not enough values to unpack" in printed
    assert "ok: facts" in printed
    assert printed.splitlines()[-1] == "failed: chapter-99"
    assert "ValueError: not enough values" in (tmp_path / "GPU.md").read_text("utf-8")
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_a_step_is_ended_when_its_time_is_up(gpu_check, tmp_path):
    result = gpu_check.Run("facts", tmp_path, 0.1, True).result()
    assert result["failed"] == "it ran longer than 0 s"


@pytest.mark.parametrize(
    "value, limits, met",
    [(1.0, {"most": 2}, True), (3.0, {"most": 2}, False), (float("nan"), {"least": 0}, False)],
)
def test_what_breaks_a_limit_is_noted(monkeypatch, value, limits, met):
    monkeypatch.syspath_prepend(FOLDER)
    steps = importlib.import_module("gpu_steps")
    monkeypatch.setattr(steps, "noted", [])
    steps.note("x", value, **limits)
    assert steps.noted[0]["met"] is met
    json.dumps(steps.noted, allow_nan=False)
