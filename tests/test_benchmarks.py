"""The check on a GPU, rehearsed without one; and how often intervals hold."""

from __future__ import annotations

import hashlib
import json
import os

import gpu_check
import intervals
import numpy as np
import pytest
from scipy.stats import bootstrap

from labkit.measure.statistics import summarise

ONE_OF_EACH = (
    "facts", "parity-kernel-srn", "parity-graphs-lstm", "protocols", "chapter-01", "speeds",
    "study", "accuracies", "peer", "sine", "reviews-mps", "encoder",
)  # fmt: skip


@pytest.mark.timeout(1_500)
def test_every_step_of_the_check_runs_in_miniature(monkeypatch, tmp_path, capsys):
    """One of each kind; without Triton or JAX their steps are left out, and it is said."""
    kinds, tried = ({n.split("-")[0] for n in names} for names in (gpu_check.STEPS, ONE_OF_EACH))
    assert tried == kinds
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


def test_a_step_that_fails_is_named_and_the_next_one_runs(monkeypatch, tmp_path, capsys):
    slow = gpu_check.Run("facts", tmp_path, 0.1, True).result()
    assert slow["failed"] == "it ran longer than 0 s"
    monkeypatch.setitem(gpu_check.STEPS, "chapter-99", gpu_check.Step(60))
    assert gpu_check.main([]) == 2
    assert "torch sees no GPU here" in capsys.readouterr().out
    assert gpu_check.main(["--rehearse", "--out", str(tmp_path), "chapter-99", "facts"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: chapter-99" in printed
    assert "    | ValueError: not enough values to unpack" in printed
    assert "ok: facts" in printed
    assert printed.splitlines()[-1] == "failed: chapter-99"
    assert "ValueError: not enough values" in (tmp_path / "GPU.md").read_text("utf-8")
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


# how often intervals hold


def test_the_intervals_compared_are_the_labs_and_scipys():
    rng = np.random.default_rng(0)
    samples = rng.lognormal(0, 0.8, (3, 20))
    drawn = rng.multinomial(20, np.full(20, 0.05), intervals.RESAMPLES).T.astype(float)
    bounds = intervals.bounds(samples, drawn)
    for k, values in enumerate(samples):
        mean, ours = (
            values.mean(),
            (summarise(values, student=student) for student in (False, True)),
        )
        ends = ((m["low"], m["high"]) for m in ours)
        expected = dict(zip(("bootstrap t", "Student t"), ends, strict=True))
        for method in ("BCa", "percentile"):
            made = bootstrap((values,), np.mean, method=method, n_resamples=9_999, rng=1)
            expected[f"{method} bootstrap"] = tuple(made.confidence_interval)
        for name, (low, high) in expected.items():
            made = [end[k] for end in bounds[name]]
            assert made == pytest.approx((low, high), abs=0.12 * (high - mean)), name


def test_the_labs_interval_is_the_one_that_held_best():
    """In the committed table."""
    rows = json.loads(intervals.FILE.read_bytes())["rows"]

    def over_all(n: int, method: str, what: str) -> float:
        of = [row for row in rows if (row["n"], row["method"]) == (n, method)]
        return np.average([row[what] for row in of], weights=[row["quantities"] for row in of])

    methods = {row["method"] for row in rows}
    for n in (8, 20, 40):
        covers = {method: over_all(n, method, "covers") for method in methods}
        assert max(covers, key=covers.get) == "bootstrap t"
        assert 0.94 < covers["bootstrap t"] < 0.96
        sides = [over_all(n, "bootstrap t", side) for side in ("too_high", "too_low")]
        assert max(sides) < 0.035
    extra = over_all(5, "bootstrap t", "width_in_sd") / over_all(5, "Student t", "width_in_sd")
    assert extra > 1.3
