"""The check on a GPU, rehearsed without one; and how often intervals hold."""

from __future__ import annotations

import json

import gpu_check
import intervals
import numpy as np
import pytest
from scipy.stats import bootstrap

from labkit.measure.statistics import summarise

ONE_OF_EACH = ("facts", "parity-kernel-srn", "parity-graphs-lstm", "chapter-01", "speeds", "study",
               "sine")  # fmt: skip


@pytest.mark.timeout(1_500)
def test_every_step_of_the_check_runs_in_miniature_and_one_that_fails_is_named(
    monkeypatch, tmp_path, capsys
):
    """One of each kind; without Triton its steps are left out, and it is said."""
    kinds, tried = ({n.split("-")[0] for n in names} for names in (gpu_check.STEPS, ONE_OF_EACH))
    assert tried == kinds
    assert gpu_check.main([]) == 2
    assert "torch sees no GPU here" in capsys.readouterr().out
    monkeypatch.setitem(gpu_check.STEPS, "chapter-99", gpu_check.Step(60))
    assert gpu_check.main(["--rehearse", "--out", str(tmp_path), "chapter-99", *ONE_OF_EACH]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: chapter-99" in printed
    assert "    | ValueError: not enough values to unpack" in printed
    assert printed.splitlines()[-1] == "failed: chapter-99", printed
    steps = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["steps"]
    left_out = {name for name in ONE_OF_EACH if f"left out: {name}, for there is no" in printed}
    assert steps.keys() == {"chapter-99", *ONE_OF_EACH} - left_out
    assert left_out <= {"parity-kernel-srn", "speeds"}
    assert all(steps[name]["rows"] for name in {*ONE_OF_EACH} - left_out)
    assert "ValueError: not enough values" in (tmp_path / "GPU.md").read_text("utf-8")
    monkeypatch.setitem(gpu_check.STEPS, "facts", gpu_check.Step(0))
    assert gpu_check.take("facts", tmp_path, True)["failed"] == "it ran longer than 0 s"


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
