"""`make bench`: every section runs, and the table says what was aimed at."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks import bench, bench_cases, figures_bench
from labkit.__main__ import main
from labkit.lab import environment
from labkit.measure import plots as figures
from labkit.measure.statistics import summarise


def test_aims_judge_in_their_direction():
    least, most = bench.Aim("x", 2, "", least=True), bench.Aim("x", 2, "")
    assert [least.met(value) for value in (1.9, 2, 3)] == [False, True, True]
    assert [most.met(value) for value in (1.9, 2, 3)] == [True, True, False]


def test_the_exponent_is_that_of_a_power_law():
    assert bench.exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert bench.exponent([2, 4, 8], [5 * n**0.5 for n in (2, 4, 8)]) == pytest.approx(0.5)


@pytest.fixture
def quick_cases(monkeypatch):
    """Measurements replaced by numbers, so that the whole bench takes a moment."""
    rungs = {"naive": [9.0, 8.0], "workspace": [1.0, 1.0], "compiled": [0.5, 0.5],
             "torch": [1.0, 2.0]}  # fmt: skip
    monkeypatch.setattr(bench_cases, "rungs_of_the_ladder", lambda *_: rungs)
    monkeypatch.setattr(
        bench_cases, "ladder_in_child",
        lambda *_: {name: rungs[name] for name in ("naive", "workspace", "torch")},
    )  # fmt: skip
    ways = {"naive": [60.0, 60.0], "torch": [8.0, 9.0], "ensemble": [1.0, 1.0]}
    monkeypatch.setattr(bench_cases, "replicas_at_once", lambda *_: ways)
    monkeypatch.setattr(
        bench_cases, "in_fresh_process",
        lambda _, size, *rest: {"seconds": [float(size), float(size)], "bytes": [size * 10]},
    )  # fmt: skip
    monkeypatch.setattr(bench_cases, "sweep_seconds", lambda workers, **_: 60 / workers)
    monkeypatch.setattr(
        bench_cases, "starts", lambda _: {name: [0.1, 0.2] for name in ("python", "import", "help")}
    )
    monkeypatch.setattr(
        bench_cases, "chapter_runs", lambda *_: {"papermill": [10.0, 10.0], "labkit": [11.5, 10.5]}
    )
    from labkit.film import speed as review_speed

    seconds = {"handwritten": [100.0, 110.0], "naive": [30.0, 31.0], "grouped": [10.0, 11.0]}
    monkeypatch.setattr(review_speed, "epoch_seconds", lambda *_, **__: seconds)
    accuracy = {"grouped": [0.8, 0.81, 0.79], "naive": [0.79, 0.81, 0.8]}
    monkeypatch.setattr(bench_cases, "accuracy_both_ways", lambda *_, **__: accuracy)


def test_the_whole_bench_writes_a_record_a_table_and_figures(
    quick_cases, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    table = bench.run()
    assert capsys.readouterr().out.split() == [
        word for name in bench.SECTIONS for word in ("bench:", name)
    ]
    record = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert list(record["sections"]) == list(bench.SECTIONS)
    assert record["provenance"]["cpu"]
    measures = bench._joined(record["sections"])
    missing = {aim.measure for aim in bench.AIMS} - set(measures)
    assert missing == set(), "an aim without a measure"
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert names == {"ladder", "replicas", "epoch", "growth"}
    page = (tmp_path / "README.md").read_text("utf-8")
    assert table in page
    assert all(f"]({name}.png)" in page for name in names)
    met = sum(line.endswith(" met") for line in table.splitlines())
    assert f"{met} of {len(bench.AIMS)} aims are met here" in page
    lines = table.splitlines()
    assert len(lines) == 2 + len(bench.AIMS)
    assert lines[-1].endswith("contains 0")
    (sweep,) = [line for line in lines if "digit-sum sweep" in line]
    assert sweep.split()[-4:] == ["0.5", "≤", "16", "met"]
    (overhead,) = [line for line in lines if "papermill" in line]
    assert "0.1 " in overhead
    assert measures["growth/reviews/exponent_of_bytes"] == pytest.approx(1)
    assert measures["growth/workers/exponent_of_seconds"] == pytest.approx(-1)


def test_a_missed_aim_is_said(quick_cases):
    table = bench.table({"start/import_seconds": summarise([0.5, 0.6, 0.7], statistic="median")})
    assert table.splitlines()[1].endswith("missed")


def test_the_figures_show_what_was_measured(quick_cases, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    bench.run()
    record = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    measures = bench._joined(record["sections"])
    made = figures_bench.all_figures(measures)
    for name, fig in made.items():
        assert fig.labkit_name == name
        assert len(fig.labkit_alt) > 80
        assert figures.png_bytes(fig)
    titles = [ax.get_title() for ax in made["ladder"].axes]
    assert len(titles) == 9
    assert sum("plain malloc" in title for title in titles) == 3
    assert sum("256-bit" in title for title in titles) == 3
    texts = [text.get_text() for text in made["epoch"].axes[0].texts]
    assert texts == ["105 s (10.0 ×)", "30 s (2.9 ×)", "10 s"]
    assert {ax.get_title() for ax in made["growth"].axes} >= {"exponent 1.00", "exponent 0.00"}


def test_only_the_sections_asked_for_are_measured(quick_cases, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    table = bench.run(["start"])
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "README.md"}
    assert "ensemble" not in table


def test_a_section_measured_again_replaces_itself_alone(quick_cases, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    whole = bench.run()
    monkeypatch.setattr(bench_cases, "sweep_seconds", lambda *_, **__: 1200.0)
    again = bench.run(["sweep"])
    assert again != whole
    differing = [a for a, b in zip(again.splitlines(), whole.splitlines(), strict=True) if a != b]
    assert len(differing) == 1
    assert differing[0].endswith("missed")

    path = tmp_path / "bench.json"
    record = json.loads(path.read_text("utf-8"))
    record["provenance"]["cpu"] = "another one"
    path.write_text(json.dumps(record), "utf-8")
    bench.run(["start"])
    assert list(json.loads(path.read_text("utf-8"))["sections"]) == ["start"]


def test_an_unknown_section_is_named(capsys):
    with pytest.raises(ValueError, match="unknown: tempo; sections are ladder, replicas"):
        bench.run(["tempo"])


def test_a_trial_of_the_real_measurements(monkeypatch, tmp_path):
    """The smallest size of everything that takes seconds; nothing is written."""
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setattr(bench_cases, "SHAPES", ((2, 3, 4, 4),))
    monkeypatch.setattr(bench, "LENGTHS", (3,))
    measures: dict = {}
    for name in ("ladder", "replicas"):
        bench.SECTIONS[name](measures, True)
    assert measures["ladder/2x3x4x4/naive_to_workspace"]["median"] > 0
    for kind in bench.LADDERS:
        assert measures[f"{kind}/2x3x4x4/naive_to_torch"]["median"] > 0
    found = measures["replicas/3/ensemble_seconds"]["median"]
    assert 0 < found < measures["replicas/3/naive_seconds"]["median"]
    assert list(tmp_path.iterdir()) == []


def test_a_ladder_of_plain_malloc_has_none_of_the_settings(monkeypatch):
    for name in environment.MALLOC:
        monkeypatch.setenv(name, "1")
    started = []

    def run(command, *, env, **_):
        started.append(env)
        return SimpleNamespace(returncode=0, stdout="{}", stderr="")

    monkeypatch.setattr(bench_cases.subprocess, "run", run)
    for kind in ("ladder_avx2", "ladder_malloc"):
        bench_cases.ladder_in_child((2, 3, 4, 4), 1, bench.LADDERS[kind])
    assert all(isinstance(value, str) for env in started for value in env.values())
    kept = [{name: env.get(name) for name in environment.MALLOC} for env in started]
    assert kept == [dict.fromkeys(environment.MALLOC, "1"), dict.fromkeys(environment.MALLOC)]
    assert [env.get("ONEDNN_MAX_CPU_ISA") for env in started] == ["AVX2", None]


def test_memory_and_time_of_a_fresh_process_are_its_own():
    small, large = (bench_cases.in_fresh_process("growth_of_ensemble", R, 20, 1) for R in (1, 200))
    assert large["bytes"][0] > small["bytes"][0] + 10_000_000
    assert large["seconds"][0] > small["seconds"][0]


def test_a_sweep_is_timed_from_an_empty_store():
    work = {"lengths": [10], "cells": ["srn"], "stacks": 1, "steps": 2}
    assert bench_cases.sweep_seconds(1, **work) > 0


def test_both_ways_train_from_the_same_start_on_the_same_reviews(monkeypatch):
    """With no epoch the accuracies are those of the start, and equal; with one they are not."""
    sizes = {"seeds": 2, "reviews_read": 64, "max_len": 20}
    start = bench_cases.accuracy_both_ways("generated", 2001, epochs=0, **sizes)
    assert start["grouped"] == start["naive"]
    assert start["grouped"][0] != start["grouped"][1]
    drawn = []
    from labkit.film import speed as review_speed

    original = review_speed.naive_epoch
    monkeypatch.setattr(
        review_speed, "naive_epoch", lambda *given: drawn.append(given[3]) or original(*given)
    )
    trained = bench_cases.accuracy_both_ways("generated", 2001, epochs=1, **sizes)
    assert trained["naive"] != start["naive"]
    assert len(drawn) == 2
    assert not drawn[0].equal(drawn[1])


def test_a_process_that_fails_is_reported():
    words = r"(?s)bench, growth_of_ensemble\(0, 20, 1\): .*at least one seed"
    with pytest.raises(RuntimeError, match=words):
        bench_cases.in_fresh_process("growth_of_ensemble", 0, 20, 1)
    with pytest.raises(RuntimeError, match="No module named nothing"):
        bench_cases.command_seconds([bench_cases.sys.executable, "-m", "nothing"])


def test_the_command_line_hands_sections_on(monkeypatch, capsys):
    for name, value in environment.kernel_environment(1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bench, "run", lambda sections, small: f"{sections} {small}")
    assert main(["bench", "start", "ladder", "--small"]) == 0
    assert capsys.readouterr().out == "['start', 'ladder'] True\n"


def test_the_command_line_starts_anew_for_the_allocator(monkeypatch):
    from labkit import __main__

    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)
    calls = []

    def execve(*arguments):
        calls.append(arguments)
        raise OSError("replaced")

    monkeypatch.setattr(__main__.os, "execve", execve)
    assert main(["bench"]) == 1
    (_, command, variables), *_ = calls
    assert command[1:3] == ["-m", "labkit"]
    assert variables["MALLOC_TOP_PAD_"] == environment.MALLOC["MALLOC_TOP_PAD_"]
