"""Records, their publication and their verification, each with the damage that it must survive."""

from __future__ import annotations

import ast
import errno
import itertools
import json
import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from labkit.lab import digests, environment, results

CHAPTER = "01_demo"
CODE = "from labkit import demo\n\nn = 3\nprint(demo.double(n))"
MODULES = {
    "demo": """from labkit.deep import SCALE

def double(x):
    '''Twice x.'''
    return SCALE * x
""",
    "deep": "SCALE = 2  # why not\n",
    "other": "x = 1\n",
}


def put(path: Path, text: str) -> None:
    """Write a file that looks as if it had been there long before the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (0, 0))


def put_notebook(*sources: str, text: str = "# A chapter") -> None:
    parameters = 'profile: str = "quick"\nseeds: int = 2'
    cells = [{"cell_type": "markdown", "metadata": {}, "source": text}]
    for source, tags in [(parameters, ["parameters"]), *((source, []) for source in sources)]:
        cells.append({"cell_type": "code", "metadata": {"tags": tags}, "source": source})
    put(environment.NOTEBOOKS / f"{CHAPTER}.ipynb", json.dumps({"cells": cells}))


def put_settings(content: object, profile: str = "cpu") -> None:
    put(environment.PROFILES / profile / f"{CHAPTER}.json", json.dumps(content))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A lab of one chapter in a folder of its own, with a package of three small modules."""
    for name, path in {
        "ROOT": tmp_path,
        "NOTEBOOKS": tmp_path / "notebooks",
        "PROFILES": tmp_path / "notebooks" / "profiles",
        "RESULTS": tmp_path / "results",
        "DATA": tmp_path / "data",
    }.items():
        monkeypatch.setattr(environment, name, path)
    monkeypatch.setattr(digests, "PACKAGE", tmp_path / "labkit")
    monkeypatch.delenv("LABKIT_STAGING", raising=False)
    monkeypatch.delenv("LABKIT_RUN_ID", raising=False)
    monkeypatch.delenv("LABKIT_CODE", raising=False)

    for name, source in MODULES.items():
        put(tmp_path / "labkit" / f"{name}.py", source)
    put_notebook(CODE)
    for profile in environment.PROFILE_NAMES:
        put_settings({"seeds": 4}, profile)
    put(tmp_path / "data" / "digits.txt", "1 2\n")
    put(tmp_path / "data" / "published.toml", "")
    put(
        tmp_path / "requirements-cpu.lock",
        "# made by a tool\na==1 \\\n    --hash=sha256:00\nb==2\n",
    )
    monkeypatch.setattr("labkit.lab.report.render", lambda: "the report\n")
    put(tmp_path / "results" / "REPORT.md", "the report\n")
    return tmp_path


def figure(height: float, alt: str = "A line.") -> Figure:
    fig = Figure(figsize=(1, 1))
    fig.subplots().plot([0, height])
    fig.labkit_name, fig.labkit_alt = "a_name", alt
    return fig


def write(monkeypatch, profile: str = "cpu", **changes) -> Path:
    """Write a record into the staging folder that the runner would use; return that folder."""
    staging = environment.RESULTS / ".staging" / profile / CHAPTER
    monkeypatch.setenv("LABKIT_STAGING", str(staging))
    content = {
        "settings": {"seeds": 4},
        "measures": {"accuracy": results.summarise([0.1, 0.2, 0.4, 0.3], seeds=range(4))},
        "figures": {"line": figure(1), "old": figure(2)},
        "data": {"digits.txt": digests.data_digest("digits.txt")},
    }
    results.write_record(CHAPTER, profile=profile, **content | changes)
    return staging


def publish(monkeypatch, profile: str = "cpu", **changes) -> None:
    results.publish(write(monkeypatch, profile, **changes), CHAPTER, profile)


def snapshot(profile: str = "cpu") -> dict[str, bytes]:
    base = environment.RESULTS / profile
    return {str(p.relative_to(base)): p.read_bytes() for p in base.rglob("*") if p.is_file()}


# summaries


def test_a_summary_holds_centre_spread_and_raw_values():
    found = results.summarise([0.25, 0.75, 0.5], seeds=np.arange(3), unit="s", timing=True)
    assert (found["n"], found["mean"], found["median"], found["sd"]) == (3, 0.5, 0.5, 0.25)
    assert (found["min"], found["max"], found["raw"]) == (0.25, 0.75, [0.25, 0.75, 0.5])
    assert (found["seeds"], found["unit"], found["timing"]) == ([0, 1, 2], "s", True)
    assert found["interval"] == "95 % BCa bootstrap of the mean"
    json.dumps(found, allow_nan=False)


def test_the_interval_is_that_of_a_known_case():
    """The spatial test data of Efron and Tibshirani 1993, with the BCa formula written out."""
    values = np.array(
        [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24,
         26, 30, 41.0]
    )  # fmt: skip
    from scipy.stats import norm

    draws = np.random.default_rng(1).choice(values, (200_000, len(values))).mean(1)
    bias = norm.ppf((draws < values.mean()).mean())
    jackknife = (values.sum() - values) / (len(values) - 1)
    d = jackknife.mean() - jackknife
    acceleration = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    z = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z)))

    found = results.summarise(values.tolist())
    assert found["low"] == pytest.approx(low, abs=0.15)
    assert found["high"] == pytest.approx(high, abs=0.15)
    plain = np.quantile(draws, 0.025)
    assert abs(found["low"] - low) < abs(found["low"] - plain)  # the data are skewed


def test_the_interval_covers_the_mean_as_often_as_it_says():
    stream = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        found = results.summarise(stream.normal(5, 2, 30).tolist())
        hits += found["low"] <= 5 <= found["high"]
    assert 87 <= hits <= 99


def test_intervals_are_the_same_each_time_and_follow_the_statistic():
    values = [0.1, 0.9, 0.2, 0.3, 0.25, 0.15, 0.22]
    assert results.summarise(values) == results.summarise(values)
    median = results.summarise(values, statistic="median")
    assert median["interval"].endswith("of the median")
    assert median["low"] <= median["median"] <= median["high"] < results.summarise(values)["high"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_degenerate_samples_have_plain_answers(statistic):
    one = results.summarise([0.3], statistic=statistic)
    assert (one["low"], one["high"], one["sd"]) == (None, None, None)
    same = results.summarise([0.1] * 3, statistic=statistic)
    assert (same["mean"], same["low"], same["high"], same["sd"]) == (0.1, 0.1, 0.1, 0.0)
    for values in ([0.1, 0.3], [0.2] * 9 + [0.9], [0.0, 1.0, 1.0, 1.0]):
        found = results.summarise(values, statistic=statistic)
        assert found["low"] <= found[statistic] <= found["high"]


@pytest.mark.parametrize(
    "values, options, error, message",
    [
        ([], {}, ValueError, "at least one"),
        ([1.0, math.nan], {}, ValueError, "value 1 must be finite, got nan"),
        ([math.inf], {}, ValueError, "finite"),
        (["1"], {}, TypeError, "value 0 must be a number, got '1'"),
        ([True], {}, TypeError, "number"),
        ([1.0], {"seeds": [1, 2]}, ValueError, "1 values but 2 seeds"),
        ([1.0], {"statistic": "mode"}, ValueError, "mean, median; got 'mode'"),
    ],
)
def test_wrong_values_are_refused(values, options, error, message):
    with pytest.raises(error, match=message):
        results.summarise(values, **options)


# records


def test_a_record_holds_everything_and_can_be_read_again(monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_RUN_ID", "run 7")
    claim = {
        "id": "a", "claim": "It grows.", "holds": np.bool_(True), "verdict": "holds",
        "reason": "it does", "evidence": ["accuracy"],
    }  # fmt: skip
    publish(monkeypatch, claims=[claim], curves={"loss": {"lstm": np.arange(3)}})
    record = results.load_record(CHAPTER, "cpu")

    assert record["schema"] == 1
    assert record["run_id"] == "run 7"
    assert record["claims"] == [claim | {"holds": True}]
    assert record["curves"] == {"loss": {"lstm": [0, 1, 2]}}
    assert record["figures"]["line"]["alt"] == "A line."
    assert record["provenance"]["code"] == results.code_digest(CHAPTER)
    assert record["timing"]["duration_seconds"] > 0
    assert capsys.readouterr().out.splitlines() == ["record of 01_demo: 1 measures, 2 figures"]


def test_a_record_holds_the_figure_that_the_notebook_shows(monkeypatch):
    from labkit.measure import plots as figures

    fig, ax = figures.new_figure("line", "A line.")
    ax.plot([1, 2])
    staging = write(monkeypatch, figures={"line": fig})
    path = staging / "figures" / "01_demo_line.png"
    assert path.read_bytes() == figures.png_bytes(fig)


def test_figures_carry_their_alternative_text_and_are_the_same_bytes_again(monkeypatch):
    from PIL import Image

    staging = write(monkeypatch)
    path = staging / "figures" / "01_demo_line.png"
    assert Image.open(path).text["Description"] == "A line."
    before = path.read_bytes()
    write(monkeypatch)
    assert path.read_bytes() == before


def test_outside_a_run_records_go_to_the_interactive_folder(monkeypatch):
    path = results.write_record(CHAPTER, profile="quick", settings={}, measures={"x": 1})
    assert path == environment.RESULTS / ".interactive" / "quick" / f"{CHAPTER}.json"
    assert json.loads(path.read_text())["run_id"] == "interactive"


def test_code_that_was_edited_during_the_run_is_stale_at_once(monkeypatch):
    monkeypatch.setenv("LABKIT_CODE", json.dumps(digests.code_parts(CHAPTER)))
    put_module("deep", "SCALE = 3\n")
    publish(monkeypatch)
    modules = results.load_record(CHAPTER, "cpu")["provenance"]["modules"]
    assert modules["labkit.deep"] == "edited during the run"
    assert modules["labkit.demo"] == digests.code_parts(CHAPTER)["labkit.demo"]
    for source in ("SCALE = 3\n", MODULES["deep"]):  # nobody knows which of them ran
        put_module("deep", source)
        assert "the code has moved on (labkit.deep)" in results.verify().stale[0]


@pytest.mark.parametrize("source", [MODULES["deep"], "SCALE = 2  # another comment\n"])
def test_a_touched_file_or_an_edited_comment_during_the_run_ages_nothing(monkeypatch, source):
    monkeypatch.setenv("LABKIT_CODE", json.dumps(digests.code_parts(CHAPTER)))
    put_module("deep", source)
    os.utime(environment.ROOT / "labkit" / "deep.py")  # later than the start of the run
    publish(monkeypatch)
    assert results.verify() == results.Verification()


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"measures": {"x": math.nan}}, ValueError, "measure 'x' is nan"),
        ({"measures": {"x": [1, [math.inf]]}}, ValueError, r"measure 'x'\[1\]\[0\] is inf"),
        ({"measures": {"x": {"mean": 1}}}, TypeError, "'x' must come from summarise"),
        ({"measures": {"x": None}}, TypeError, "'x' must come from summarise"),
        ({"measures": {"a//b": 1}}, ValueError, "'a//b'"),
        ({"settings": {"path": Path()}}, TypeError, "settings/path is of type PosixPath"),
        ({"settings": {1: 2}}, TypeError, "settings has the key 1"),
        ({"curves": {"loss": [np.float32("nan")]}}, ValueError, r"curves/loss\[0\] is nan"),
        ({"figures": {"line": Figure()}}, ValueError, "'line' has no alternative text"),
        ({"figures": {"../line": figure(1)}}, ValueError, "'../line'"),
        ({"claims": [{"id": "a"}]}, ValueError, "a claim has the keys id, claim"),
    ],
)
def test_what_a_record_cannot_hold_is_named_and_nothing_is_written(
    monkeypatch, changes, error, message
):
    with pytest.raises(error, match=message):
        write(monkeypatch, **changes)
    assert not (environment.RESULTS / ".staging").exists()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"evidence": ["speed"]}, ValueError, "claim 'a': its evidence names no measure: speed"),
        ({"holds": "yes"}, TypeError, "claim 'a': holds must be True, False or None, got 'yes'"),
    ],
)
def test_wrong_claims_are_refused(monkeypatch, change, error, message):
    claim = dict.fromkeys(results.CLAIM_KEYS, "") | {"id": "a", "holds": None, "evidence": []}
    with pytest.raises(error, match=message):
        write(monkeypatch, claims=[claim | change])
    with pytest.raises(ValueError, match="claim 'a' is there twice"):
        write(monkeypatch, claims=[claim, claim])


@pytest.mark.parametrize("names", [("demo", "cpu"), (CHAPTER, "gpu")])
def test_unknown_chapters_and_profiles_are_refused(names):
    chapter, profile = names
    with pytest.raises(ValueError, match=r"demo|gpu"):
        results.write_record(chapter, profile=profile, settings={}, measures={})


@pytest.mark.parametrize(
    "value, text",
    [(999.4, "999"), (999.5, "1,000"), (999.7, "1,000"), (-999.7, "-1,000"), (1234.5, "1,234"),
     (0.5, "0.500"), (12.34, "12.3")],
)  # fmt: skip
def test_numbers_keep_three_digits_and_no_exponent(value, text):
    assert results.number(value) == text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 2}'])
def test_a_damaged_record_is_named(content):
    put(environment.RESULTS / "cpu" / f"{CHAPTER}.json", content)
    with pytest.raises(ValueError, match=r"results/cpu/01_demo\.json"):
        results.load_record(CHAPTER, "cpu")


def test_an_absent_record_names_the_command():
    with pytest.raises(ValueError, match="python -m labkit run 01_demo --profile full"):
        results.load_record(CHAPTER, "full")


def test_full_is_reported_before_cpu_and_quick_never(monkeypatch):
    publish(monkeypatch, "quick")
    assert results.reported(CHAPTER) is None
    publish(monkeypatch, "cpu")
    assert results.reported(CHAPTER)["profile"] == "cpu"
    publish(monkeypatch, "full")
    assert results.reported(CHAPTER)["profile"] == "full"


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, in order."""
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    return displayed


def test_reported_results_are_shown_with_their_figures(monkeypatch, shown):
    publish(monkeypatch, measures={"a/b": 0.5, "a/c": 2, "d": "text | bar"})
    results.show_reported(CHAPTER)
    text = "\n".join(
        item.data for item in shown if hasattr(item, "data") and isinstance(item.data, str)
    )
    assert "Profile `cpu`" in text
    assert "| `a/b` | 0.500 | 1 |" in text
    assert "text \\| bar" in text
    assert [item.alt for item in shown if hasattr(item, "alt")] == ["A line."] * 2

    shown.clear()
    results.show_reported(CHAPTER, ["a"])
    assert "`a/c`" in shown[-1].data
    assert "`d`" not in shown[-1].data
    with pytest.raises(ValueError, match="no measure 'e'"):
        results.show_reported(CHAPTER, ["e"])


def test_without_results_one_line_names_the_command(shown):
    results.show_reported(CHAPTER)
    assert [item.data for item in shown] == [
        "No reported results yet. `python -m labkit run 01_demo --profile cpu` makes them."
    ]


def test_an_edited_figure_is_not_shown(monkeypatch, shown):
    publish(monkeypatch)
    with (environment.RESULTS / "cpu" / "figures" / "01_demo_line.png").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"01_demo_line\.png is not what the run wrote"):
        results.show_reported(CHAPTER)


# full disks


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def small_files():
    """A real limit that tears every file after 100 bytes, whoever runs the tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_torn_write_leaves_the_old_file_and_no_other(folder, small_files):
    path = folder / "kept" / "file"
    results.write_atomically(path, b"before")
    with pytest.raises(OSError, match="File too large"):
        results.write_atomically(path, b"x" * 10_000)
    assert path.read_bytes() == b"before"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_is_published(monkeypatch, call):
    publish(monkeypatch)
    before = snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            write(monkeypatch, measures={"x": 2})
    staging = write(monkeypatch, measures={"x": 2})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            results.publish(staging, CHAPTER, "cpu")

    assert snapshot() == before
    assert not list(environment.RESULTS.rglob("*.tmp"))
    assert results.verify() == results.Verification()


def test_files_get_the_usual_permissions(folder):
    (folder / "usual").touch()
    results.write_atomically(folder / "ours", b"")
    assert (folder / "ours").stat().st_mode == (folder / "usual").stat().st_mode


# publication


def test_publishing_again_replaces_all_and_removes_what_is_gone(monkeypatch):
    publish(monkeypatch)
    put(environment.RESULTS / "cpu" / "figures" / "01_demo_left_over.png", "from a lost manifest")
    publish(monkeypatch, figures={"new": figure(3)}, measures={"x": 2})
    assert sorted(snapshot()) == ["01_demo.json", "figures/01_demo_new.png", "manifest.json"]
    assert results.load_record(CHAPTER, "cpu")["measures"] == {"x": 2}
    assert results.verify() == results.Verification()
    assert not list((environment.RESULTS / ".staging" / "cpu" / CHAPTER).glob("*.json"))


def put_second(monkeypatch, text: str = "") -> Path:
    """A second chapter, published; return its record's path."""
    put(
        environment.NOTEBOOKS / "02_more.ipynb",
        text or (environment.NOTEBOOKS / f"{CHAPTER}.ipynb").read_text(),
    )
    put(environment.PROFILES / "cpu" / "02_more.json", "{}")
    staging = environment.RESULTS / ".staging" / "cpu" / "02_more"
    monkeypatch.setenv("LABKIT_STAGING", str(staging))
    results.write_record(
        "02_more", profile="cpu", settings={}, measures={"x": 1}, figures={"line": figure(1)}
    )
    results.publish(staging, "02_more", "cpu")
    return environment.RESULTS / "cpu" / "02_more.json"


def test_the_next_publication_removes_what_has_no_notebook(monkeypatch, capsys):
    publish(monkeypatch)
    put_second(monkeypatch)
    assert results.verify() == results.Verification()
    (environment.NOTEBOOKS / "02_more.ipynb").unlink()
    assert results.verify().tampered == []
    assert results.verify().stale == [
        "02_more (cpu): its notebook is gone; the next chapter that is run with --profile cpu "
        "removes its results"
    ]

    publish(monkeypatch)
    assert "02_more: its notebook is gone, so its results are removed" in capsys.readouterr().out
    assert not any("02_more" in name for name in snapshot())
    assert results.verify() == results.Verification()


def test_a_removal_cut_off_anywhere_is_finished(monkeypatch):
    for step in itertools.count():
        for path in sorted(environment.RESULTS.glob("**/*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        put(environment.RESULTS / "REPORT.md", "the report\n")
        publish(monkeypatch)
        put_second(monkeypatch)
        (environment.NOTEBOOKS / "02_more.ipynb").unlink()
        staging = write(monkeypatch, measures={"x": 2})
        cut = False
        with monkeypatch.context() as patch:
            cut_at(patch, step)
            try:
                results.publish(staging, CHAPTER, "cpu")
            except Cut:
                cut = True
        results.recover("cpu")
        found = results.verify()
        assert found.tampered == [], f"cut off at step {step}"
        assert bool(found.stale) == (results.load_record(CHAPTER, "cpu")["measures"] != {"x": 2})
        if not cut:
            break


def test_a_broken_notebook_does_not_hide_what_befell_another_chapter(monkeypatch):
    publish(monkeypatch)
    record = put_second(monkeypatch)
    put(environment.NOTEBOOKS / f"{CHAPTER}.ipynb", "{")
    edit_json(record, lambda content: content["measures"].update(x=9))
    found = results.verify()
    assert found.tampered == [
        "results/cpu/02_more.json is not what was written; restore it or run again"
    ]
    assert any("notebooks/01_demo.ipynb is not a notebook" in line for line in found.stale)


class Cut(BaseException):
    """The process ends here."""


def cut_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let everything that touches the disk's folders end the process at call number `step`."""
    count = itertools.count()
    for name in ("replace", "unlink", "fsync"):
        real = getattr(os, name)

        def counted(*arguments, real=real, **options):
            if next(count) == step:
                raise Cut
            return real(*arguments, **options)

        patch.setattr(os, name, counted)


def test_a_publication_cut_off_anywhere_is_finished_or_never_was(tmp_path, monkeypatch):
    outcomes = []
    for step in itertools.count():
        for path in sorted(environment.RESULTS.glob("**/*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        put(environment.RESULTS / "REPORT.md", "the report\n")
        publish(monkeypatch, measures={"x": 1})
        before = snapshot()
        staging = write(
            monkeypatch, measures={"x": 2}, figures={"line": figure(5), "new": figure(6)}
        )
        with monkeypatch.context() as patch:
            cut_at(patch, step)
            try:
                results.publish(staging, CHAPTER, "cpu")
            except Cut:
                cut = True
            else:
                cut = False
        results.recover("cpu")
        results.recover("cpu")

        assert results.verify() == results.Verification(), f"cut off at step {step}"
        measures = results.load_record(CHAPTER, "cpu")["measures"]
        outcomes.append(measures["x"])
        if measures["x"] == 1:
            assert snapshot() == before
        if not cut:
            break
    assert outcomes == sorted(outcomes)  # up to some step the old results, from there on the new
    assert outcomes.count(1) >= 2
    assert outcomes.count(2) >= 6


def test_a_cut_off_publication_does_not_undo_a_later_one(monkeypatch):
    put(
        environment.NOTEBOOKS / "02_more.ipynb",
        (environment.NOTEBOOKS / f"{CHAPTER}.ipynb").read_text(),
    )
    put(environment.PROFILES / "cpu" / "02_more.json", "{}")
    staging = write(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("labkit.lab.publication._carry_out", lambda *_: None)
        results.publish(staging, CHAPTER, "cpu")
    other = environment.RESULTS / ".staging" / "cpu" / "02_more"
    monkeypatch.setenv("LABKIT_STAGING", str(other))
    results.write_record("02_more", profile="cpu", settings={}, measures={"x": 1})
    results.publish(other, "02_more", "cpu")

    assert any("its publication was cut off" in line for line in results.verify().tampered)
    results.recover("cpu")
    assert results.verify() == results.Verification()
    assert {"01_demo.json", "02_more.json"} <= snapshot().keys()


def test_an_unfinished_publication_that_lost_files_is_dropped(monkeypatch, capsys):
    publish(monkeypatch)
    before = snapshot()
    staging = write(monkeypatch, measures={"x": 2})
    with monkeypatch.context() as patch:
        patch.setattr("labkit.lab.publication._carry_out", lambda *_: None)
        results.publish(staging, CHAPTER, "cpu")
    (staging / f"{CHAPTER}.json").unlink()
    results.recover("cpu")
    assert "it is dropped" in capsys.readouterr().out
    assert snapshot() == before


@pytest.mark.parametrize("damage", ["record", "figure", "profile"])
def test_an_unsound_staging_folder_publishes_nothing(monkeypatch, damage):
    staging = write(monkeypatch)
    if damage == "record":
        (staging / f"{CHAPTER}.json").write_text("{")
    elif damage == "figure":
        (staging / "figures" / "01_demo_line.png").write_bytes(b"another picture")
    with pytest.raises(ValueError, match="01_demo"):
        results.publish(staging, CHAPTER, "full" if damage == "profile" else "cpu")
    assert not (environment.RESULTS / "cpu").exists()


# verification


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1))


def tamper_record(base: Path) -> None:
    edit_json(base / f"{CHAPTER}.json", lambda r: r["measures"]["accuracy"].update(mean=0.99))


def tamper_figure(base: Path) -> None:
    (base / "figures" / "01_demo_line.png").write_bytes(b"another picture")


def tamper_manifest(base: Path) -> None:
    edit_json(base / "manifest.json", lambda m: m["chapters"][CHAPTER].update(code="0" * 64))


TAMPERING = {
    "01_demo.json is not what was written": tamper_record,
    "01_demo_line.png is not what was written": tamper_figure,
    "manifest.json is not what was written": tamper_manifest,
    "manifest.json is damaged": lambda base: (base / "manifest.json").write_text("{"),
    "01_demo.json is missing": lambda base: (base / f"{CHAPTER}.json").unlink(),
    "01_demo_old.png is missing": lambda base: (base / "figures" / "01_demo_old.png").unlink(),
    "figures/extra.png is not in the manifest": lambda base: put(base / "figures/extra.png", ""),
    "07_more.json is not in the manifest": lambda base: put(base / "07_more.json", "{}"),
    "01_demo.json is not in the manifest": lambda base: (base / "manifest.json").unlink(),
}


@pytest.mark.parametrize("finding", TAMPERING)
@pytest.mark.parametrize("profile", ["cpu", "full"])
def test_tampering_is_found_and_named(monkeypatch, profile, finding):
    publish(monkeypatch, profile)
    assert results.verify() == results.Verification()
    TAMPERING[finding](environment.RESULTS / profile)
    found = results.verify()
    assert any(finding in line and profile in line for line in found.tampered), found
    assert f"tampered: results/{profile}/" in found.report()
    if "extra" not in finding and "07" not in finding:
        assert not results.up_to_date(CHAPTER, profile)


def put_module(name: str, source: str) -> None:
    put(environment.ROOT / "labkit" / f"{name}.py", source)


MOVES = {
    "the code has moved on (labkit.deep)": lambda: put_module("deep", "SCALE = 3\n"),
    "the code has moved on (labkit.demo)": lambda: put_module(
        "demo", MODULES["demo"].replace("* x", "+ x")
    ),
    "the code has moved on (notebook)": lambda: put_notebook(CODE.replace("n = 3", "n = 4")),
    "the code has moved on (labkit.other, notebook)": lambda: put_notebook(
        "import labkit.other\n" + CODE
    ),
    "the code has moved on (labkit.demo, labkit.other)": lambda: put_module(
        "demo", MODULES["demo"].replace("    return", "    from . import other\n    return")
    ),
    "notebooks/profiles/cpu/01_demo.json has moved on": lambda: put_settings({"seeds": 5}),
    "the data have moved on (digits.txt)": lambda: put(environment.DATA / "digits.txt", "1 3\n"),
    "requirements-cpu.lock has moved on": lambda: put(
        environment.ROOT / "requirements-cpu.lock", "a==1\nb==3\n"
    ),
}


@pytest.mark.parametrize("reason", MOVES)
def test_moved_sources_make_results_stale(monkeypatch, reason):
    publish(monkeypatch)
    assert results.up_to_date(CHAPTER, "cpu")
    MOVES[reason]()
    found = results.verify()
    assert found.tampered == []
    assert f"01_demo (cpu): {reason}; python -m labkit run 01_demo --profile cpu" in found.stale
    assert not results.up_to_date(CHAPTER, "cpu")


HARMLESS = {
    "comment": lambda: put_module("deep", "# new\nSCALE = 2  # because\n"),
    "docstring": lambda: put_module("demo", MODULES["demo"].replace("Twice x.", "Double it.")),
    "no docstring": lambda: put_module("demo", MODULES["demo"].replace("    '''Twice x.'''\n", "")),
    "format": lambda: put_module("deep", "SCALE = (\n    2\n)\n"),
    "cell format": lambda: put_notebook(CODE.replace("\n\n", "\n\n\n# here\n") + ";"),
    "text": lambda: put_notebook(CODE, text="# Another title"),
    "other module": lambda: put_module("other", "x = 2\n"),
    "settings format": lambda: put(environment.PROFILES / "cpu/01_demo.json", '{\n "seeds":4\n}'),
    "lock comments": lambda: put(
        environment.ROOT / "requirements-cpu.lock", "b==2\na==1 --hash=sha256:11  # via c\n"
    ),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_number_ages_nothing(monkeypatch, change):
    publish(monkeypatch)
    HARMLESS[change]()
    if "lock" in change:
        put(environment.ROOT / "requirements-cpu.lock", "# new\nb==2\na==1  # via c\n")
    assert results.verify() == results.Verification()
    assert results.up_to_date(CHAPTER, "cpu")


def test_a_run_with_other_settings_than_the_profile_is_stale(monkeypatch):
    publish(monkeypatch, settings={"seeds": 9})
    (finding,) = results.verify().stale
    assert "with other settings than the profile's (seeds = 9)" in finding


def test_downloads_may_be_absent_but_not_different(monkeypatch):
    put(environment.DATA / "downloads" / "words.txt", "a")
    publish(monkeypatch, data={"downloads/words.txt": digests.data_digest("downloads/words.txt")})
    (environment.DATA / "downloads" / "words.txt").unlink()
    assert results.verify().stale == []
    put(environment.DATA / "downloads" / "words.txt", "b")
    assert "the data have moved on" in results.verify().stale[0]


TABLE = "[gates]\nlength = 10 # digits\n[gates.claims]\na = 'It falls.'\n[speed]\nratio = 4.3\n"


def test_a_table_of_published_figures_is_an_input_of_its_own(monkeypatch):
    path = environment.DATA / "published.toml"
    put(path, TABLE)
    data = digests.published_digest("gates", "gates.claims")
    assert data == {
        "published.toml#gates": digests.sha256(b'{"claims":{"a":"It falls."},"length":10}'),
        "published.toml#gates.claims": digests.sha256(b'{"a":"It falls."}'),
    }
    publish(monkeypatch, data=data)
    put(path, TABLE.replace("10 # digits", "10").replace("4.3", "4.4"))
    assert results.verify() == results.Verification()

    put(path, TABLE.replace("10", "11"))
    assert any("moved on (published.toml#gates);" in line for line in results.verify().stale)
    for damaged in ("", "[gates", "gates = 3", "[gates]\nclaims = [1]\n"):
        put(path, damaged)
        assert any("published.toml#gates" in line for line in results.verify().stale)


@pytest.mark.parametrize("entry", ["", "absent", "gates.absent", "gates.length.a"])
def test_an_absent_table_is_named(entry):
    put(environment.DATA / "published.toml", TABLE)
    assert digests.data_digest(f"published.toml#{entry}") is None
    assert digests.data_digest(f"absent.toml#{entry}") is None
    with pytest.raises(ValueError, match=f"no published.toml#{entry} in data/"):
        digests.published_digest("gates", entry)


def test_a_report_of_other_records_is_stale(monkeypatch):
    publish(monkeypatch)
    put(environment.RESULTS / "REPORT.md", "by hand\n")
    assert results.verify().stale == [
        "results/REPORT.md is not what the records give; python -m labkit report"
    ]
    (environment.RESULTS / "REPORT.md").unlink()
    assert "REPORT.md is missing" in results.verify().stale[0]


def test_a_chapter_without_results_is_named():
    found = results.verify()
    assert found.stale == [
        "01_demo: nothing is reported yet; python -m labkit run 01_demo --profile cpu"
    ]
    assert found.report() == f"stale: {found.stale[0]}"
    assert "as written and up to date" in results.Verification().report()


def test_a_cell_that_does_not_parse_counts_as_it_stands():
    put_notebook("await x(", CODE)
    before = results.code_digest(CHAPTER)
    put_notebook("await y(", CODE)
    assert results.code_digest(CHAPTER) != before


def test_module_digests_cover_the_named_modules_only():
    before = results.module_digest(["labkit.demo"])
    put_module("deep", "SCALE = 3\n")
    assert results.module_digest(["labkit.demo"]) == before
    put_module("demo", "x = 1\n")
    assert results.module_digest(["labkit.demo"]) != before
    with pytest.raises(ValueError, match=r"no module 'labkit\.absent'"):
        results.module_digest(["labkit.absent"])


@pytest.mark.parametrize(
    "one, other",
    [
        ("x = None", "x: None"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = ''", "x = b''"),
        ("f()", "f"),
        ("def f(a, /): pass", "def f(a): pass"),
        ("x = -1", "x = 1"),
        ("x = f'{a!r}'", "x = f'{a!s}'"),
    ],
)
def test_different_code_has_different_digests(one, other):
    assert digests.normalise(one) != digests.normalise(other)


def joined(*values: ast.expr) -> str:
    """The normalised form of an f-string with these parts."""
    tree = ast.Expression(ast.JoinedStr(list(values)))
    return json.dumps(digests._plain(tree))


def test_an_f_string_has_one_form_however_the_parser_cuts_it():
    hole = ast.FormattedValue(ast.Name("x", ast.Load()), -1)
    text, empty = ast.Constant("ab"), ast.Constant("")
    assert joined(text, hole) == joined(ast.Constant("a"), ast.Constant("b"), hole, empty)
    assert joined(hole) == joined(empty, hole, empty, empty)
    assert joined(hole, hole) == joined(hole, empty, hole)
    assert joined() == joined(empty)
    assert joined(text, hole) != joined(hole, text)
    assert joined(text, hole, text) != joined(text, text, hole)


@pytest.mark.parametrize(
    "source, digest",
    [
        ("f'{a:<{width}}'", "0105bc3001d05410"),
        ("f'{a!r:{b}.{c}f} {{x}} {d=}' 'tail'", "be50a732deed86eb"),
        (
            "@d\nasync def f(a, /, *b: int, c=1, **k) -> None:\n  'doc'\n"
            "  async with a as (b, c): return [x async for x in y if (z := x)]",
            "72d83de811e68079",
        ),
    ],
)
def test_the_normalised_form_is_the_same_under_every_python(source, digest):
    assert digests.sha256(digests.normalise(source).encode())[:16] == digest


# comparison


def record_of(monkeypatch, **changes) -> dict:
    staging = write(monkeypatch, **changes)
    return json.loads((staging / f"{CHAPTER}.json").read_text())


def test_two_runs_alike_are_identical_but_for_times(monkeypatch):
    measures = {"a": 1.5, "speed/x": results.summarise([1.0], timing=True)}
    one = record_of(monkeypatch, measures=measures, figures={"speed": figure(1)})
    monkeypatch.setenv("LABKIT_RUN_ID", "another")
    measures = {"a": 1.5, "speed/x": results.summarise([2.0], timing=True)}
    other = record_of(monkeypatch, measures=measures, figures={"speed": figure(2)})
    assert results.identical(one, other) == []
    assert results.compare(one, other) == []


@pytest.mark.parametrize("evidence, differ", [("speed/x", []), ("a", ["claim s: not the same"])])
def test_the_reason_of_a_claim_counts_unless_it_quotes_times(monkeypatch, evidence, differ):
    measures = {"a": 1.5, "speed/x": results.summarise([1.0], timing=True)}
    claim = {"id": "s", "claim": "c", "holds": True, "verdict": "holds", "evidence": [evidence]}
    one, other = (
        record_of(monkeypatch, measures=measures, claims=[claim | {"reason": reason}])
        for reason in ("took 1 s", "took 2 s")
    )
    assert results.identical(one, other) == differ


@pytest.mark.parametrize(
    "changes, finding",
    [
        ({"measures": {"accuracy": 1.5 + 1e-12}}, "measure accuracy: 1.5 and 1.500000000001"),
        ({"measures": {"b": 1.5}}, "measure b: only in one"),
        ({"figures": {"line": figure(9)}}, "figure line: not the same"),
        ({"figures": {}}, "figure line: not the same"),
        ({"curves": {"c": [1]}}, "curves: not the same"),
        ({"settings": {"seeds": 5}}, "setting seeds: 4 and 5"),
    ],
)
def test_identical_means_every_bit(monkeypatch, changes, finding):
    alike = {"measures": {"accuracy": 1.5}, "figures": {"line": figure(1)}}
    one = record_of(monkeypatch, **alike)
    assert finding in results.identical(one, record_of(monkeypatch, **alike | changes))


NEAR = [0.50, 0.60, 0.70, 0.55]


@pytest.mark.parametrize(
    "one, other, agree",
    [
        (1.0, 1.0 + 9e-5, True),
        (1.0, 1.0 + 2e-4, False),
        (0.0, 9e-7, True),
        (0.0, 2e-6, False),
        (True, 1, False),
        ("a", "b", False),
        ([1.0, [2.0]], [1.0, [2.0001]], True),
        ([1.0], [1.0, 2.0], False),
        (NEAR, [v + 0.05 for v in NEAR], True),
        (NEAR, [v + 0.25 for v in NEAR], False),
        ([0.5], [0.5 + 1e-5], True),
        ([0.5], [0.6], False),
    ],
)
def test_the_declared_tolerance(monkeypatch, one, other, agree):
    def measure(value):
        flat = (
            isinstance(value, list) and all(isinstance(v, float) for v in value) and max(value) < 1
        )
        return results.summarise(value) if flat else value

    a = record_of(monkeypatch, measures={"m": measure(one)})
    b = record_of(monkeypatch, measures={"m": measure(other)})
    assert (results.compare(a, b) == []) is agree
    assert (results.compare(b, a) == []) is agree


def test_a_verdict_that_turned_is_a_difference(monkeypatch):
    claim = dict.fromkeys(results.CLAIM_KEYS, "") | {"id": "a", "holds": True, "evidence": []}
    one = record_of(monkeypatch, claims=[claim])
    assert results.compare(one, record_of(monkeypatch, claims=[claim | {"reason": "1.0001"}])) == []
    for change in ({"holds": False}, {"verdict": "holds only at length 10"}):
        turned = record_of(monkeypatch, claims=[claim | change])
        assert results.compare(one, turned) == ["claim a: not the same"]


def test_summaries_of_more_or_fewer_values_differ(monkeypatch):
    one, other = (
        record_of(monkeypatch, measures={"m": results.summarise([0.5] * n)}) for n in (3, 4)
    )
    assert results.compare(one, one) == []
    assert results.compare(one, other) == [
        "measure m: mean 0.5 [0.5, 0.5], n = 3 and mean 0.5 [0.5, 0.5], n = 4"
    ]
