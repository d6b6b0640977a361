"""`make bench`: sections run, and the page says what was measured."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from scipy.stats import bootstrap

from labkit.lab import machine, record
from labkit.measure.statistics import summarise


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(machine.ROOT / "benchmarks")
    module = importlib.import_module("bench")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def times(values):
    return summarise(values, statistic="median", timing=True)


def measures_of(bench):
    """Numbers for every section, by its own way of noting them."""
    measures = {}
    for shape in bench.page.SHAPES:
        seconds = {name: [2.0, 3.0, 2.0] for name in bench.fast.LABELS}
        bench.note(measures, f"ladder/{'x'.join(map(str, shape))}", seconds, "torch")
    for T in bench.LENGTHS:
        seconds = {"handwritten": [60e-6] * 3, "torch": [8e-6] * 3, "ensemble": [1e-6] * 3}
        bench.note(measures, f"replicas/{T}", seconds, "ensemble")
    seconds = {"handwritten": [90.0, 80.0], "torch": [30.0, 31.0], "lab": [10.0, 10.0]}
    bench.note(measures, "epoch", seconds, "lab")
    bench.note(measures, "start", {"python": [0.1], "import": [0.2], "help": [0.6]}, "python")
    bench.note(measures, "chapter", {"papermill": [10.0], "labkit": [10.5]}, "papermill")
    return measures


def test_every_aim_has_its_measure_and_a_verdict(bench):
    measures = measures_of(bench)
    assert {aim.measure for aim in bench.page.AIMS} <= measures.keys()
    table = bench.page.table(measures)
    assert len(table.splitlines()) == 1 + len(bench.page.AIMS)
    (line,) = [line for line in table.splitlines() if "--help" in line]
    assert line.split()[-4:] == ["0.6", "≤", "0.5", "missed"]
    (line,) = [line for line in table.splitlines() if line.startswith("review epoch: eight")]
    assert line.split()[-3:] == ["≥", "10", "missed"]
    assert " 8.5 " in line


def test_record_page_and_figures_are_written_with_their_sums(bench, tmp_path):
    section = {"finished": "now", "measures": measures_of(bench)}
    bench.write({"ladder": section})
    sums = bench.record.read_sums(tmp_path)
    names = {"results.json", "README.md", "ladder.png", "replicas.png", "epoch.png"}
    assert sums.keys() == names
    assert {path.name for path in tmp_path.iterdir()} == names | {"SHA256SUMS"}
    text = (tmp_path / "README.md").read_text("utf-8")
    assert bench.page.table(section["measures"]) in text
    assert "](epoch.png)" in text

    again = bench.write({"start": {"finished": "later", "measures": {"x": times([1.0])}}})
    assert list(again["sections"]) == ["ladder", "start"]
    record = json.loads((tmp_path / "results.json").read_text("utf-8"))
    record["provenance"]["cpu"] = "another"
    (tmp_path / "results.json").write_text(json.dumps(record), "utf-8")
    assert list(bench.write({"start": section})["sections"]) == ["start"]


def test_a_trial_measures_and_writes_nothing(bench, tmp_path, capsys):
    bench.main(["ladder", "start", "--small"])
    assert capsys.readouterr().out.startswith("bench: ladder\nbench: start\n")
    assert list(tmp_path.iterdir()) == []


# how often intervals hold


@pytest.fixture
def intervals(monkeypatch):
    monkeypatch.syspath_prepend(machine.ROOT / "benchmarks")
    return importlib.import_module("intervals")


def test_the_intervals_compared_are_the_labs_and_scipys(intervals):
    rng = np.random.default_rng(0)
    samples = rng.lognormal(0, 0.8, (3, 20))
    drawn = rng.multinomial(20, np.full(20, 0.05), intervals.RESAMPLES).T.astype(float)
    bounds = intervals.bounds(samples, drawn)
    for k, values in enumerate(samples):
        mean, options = values.mean(), {"n_resamples": 9_999, "rng": 1}
        expected = {
            "bootstrap t": summarise(values.tolist()),
            "Student t": summarise(values.tolist(), student=True),
        }
        expected = {name: (m["low"], m["high"]) for name, m in expected.items()}
        for method in ("BCa", "percentile"):
            interval = bootstrap((values,), np.mean, method=method, **options).confidence_interval
            expected[f"{method} bootstrap"] = tuple(interval)
        for name, (low, high) in expected.items():
            made = [end[k] for end in bounds[name]]
            assert made == pytest.approx((low, high), abs=0.12 * (high - mean)), name


def test_the_labs_interval_is_the_one_that_held_best(intervals):
    """In the committed table, which `record.coverage` quotes."""
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
        assert f"{covers['BCa bootstrap']:.1%} with the BCa bootstrap" in record.coverage(n)
    extra = over_all(5, "bootstrap t", "width_in_sd") / over_all(5, "Student t", "width_in_sd")
    assert extra > 1.3
