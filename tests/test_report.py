"""The report: every published figure, the right verdict, and what to do about what is missing."""

from __future__ import annotations

import os
import re
import tomllib

import numpy as np
import pytest
from matplotlib.figure import Figure

from labkit.lab import environment, report, results

PUBLISHED = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))
LENGTHS = (10, 15, 20, 25, 30, 35)
SETTINGS = ("lstm/zero/trained", "lstm/zero/frozen", "srn/zero/trained")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Records go to a folder of their own; the published figures are the real ones."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(environment, "RESULTS", tmp_path / "results")
    for chapter in report.TITLES:
        path = tmp_path / "notebooks" / f"{chapter}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"cells": []}')
        os.utime(path, (0, 0))
    return tmp_path


def claim(name: str, verdict: str = "holds") -> dict:
    return {
        "id": name, "claim": "as published", "holds": verdict == "holds", "verdict": verdict,
        "reason": f"measured for {name} | twice", "evidence": [],
    }  # fmt: skip


def digit_sum_measures(low: float = 0.1, high: float = 0.9) -> dict:
    measures = {
        f"published/{setting}/{length}/{split}_accuracy": results.summarise([low, 0.5, high])
        for setting in SETTINGS
        for length in LENGTHS
        for split in ("dev", "test")
    }
    first = results.summarise([2.7, 2.8, 2.9])
    return measures | {"published/lstm/zero/trained/first_step_loss": first}


def operator_measures() -> dict:
    times = {"naive_seconds": 0.004, "torch_seconds": 0.002, "ratio_naive_to_torch": 2.0}
    speed = {
        f"speed/{name}": results.summarise([value, value * 1.5], statistic="median", timing=True)
        for name, value in times.items()
    }
    toy = {"toy_output": [[0.0594, 0.0952]], "parity_mistake/shapes": [[2, 10], [5, 10]]}
    return toy | speed


def put(monkeypatch, chapter: str, measures: dict, claims=(), figures=None, profile="cpu") -> None:
    staging = environment.RESULTS / ".staging" / profile / chapter
    monkeypatch.setenv("LABKIT_STAGING", str(staging))
    results.write_record(
        chapter, profile=profile, settings={}, measures=measures, claims=claims, figures=figures
    )
    results.publish(staging, chapter, profile)


@pytest.fixture
def whole(monkeypatch) -> str:
    """The page with a record for every chapter."""
    fig = Figure(figsize=(1, 1))
    fig.labkit_name, fig.labkit_alt = "accuracy", "Two [lines] | one"
    put(monkeypatch, report.OPERATOR, operator_measures(), [claim("parity"), claim("speed")])
    claims = [claim("a/zero"), claim("a/xavier", "holds only at length 10"), claim("b"), claim("c")]
    put(monkeypatch, report.DIGIT_SUM, digit_sum_measures(), claims, {"accuracy": fig})
    gates = [claim("a"), claim("b", "does not hold"), claim("c")]
    put(monkeypatch, report.GATES, {"prediction": 13}, gates)
    return report.render()


def row(page: str, *parts: str) -> str:
    """The one table row that holds all parts."""
    (found,) = [
        line for line in page.splitlines() if line.startswith("|") and all(p in line for p in parts)
    ]
    return found


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    marks, rest = re.search(rf"^(#+) {re.escape(heading)}(.*)", page, re.M | re.S).groups()
    return re.split(rf"^#{{1,{len(marks)}}} ", rest, maxsplit=1, flags=re.M)[0]


@pytest.mark.parametrize("complete", [True, False])
def test_every_published_figure_has_its_row(complete, request):
    page = request.getfixturevalue("whole") if complete else report.render()
    digit_sum = PUBLISHED["digit_sum"]
    for source, table in {**digit_sum["lstm"], **digit_sum["rerun"]}.items():
        part = section(page, source)
        for key, values in table.items():
            if not key.endswith("accuracy"):
                continue
            cell = "SRN" if key.startswith("srn") else "LSTM"
            split = "dev" if "dev" in key else "test"
            for length, value in zip(table["lengths"], values, strict=True):
                row(part, f"| {cell}, {length} digits, {split} accuracy | {value:.2f} |")
    operator = PUBLISHED["operator"]
    for value in ("handwritten_seconds", "torch_nn_seconds", "ratio"):
        row(page, str(operator["speed"][value]))
    row(page, "| toy example", str(operator["toy_output"]["hidden_state"]))
    row(page, "| parity: printed shapes", str([[2, 10], [5, 10]]))
    row(page, "loss at the first step", f"| {digit_sum['first_step_loss']} |")
    row(page, "| prediction for 6 7 0 0 1 0 0 0 0 0 | 13 |")
    texts = [operator["parity_claim"]["claim"], *digit_sum["claims"].values()]
    for text in [*texts, *PUBLISHED["gates"]["claims"]]:
        assert page.count(text) >= 2, text


def test_all_numbers_of_the_published_settings_are_on_the_page(whole):
    def leaves(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [leaf for item in value for leaf in leaves(item)]
        return [value] if isinstance(value, int | float) else []

    page = set(re.findall(r"\d+(?:\.\d+)?", whole.replace(",", "")))
    for number in leaves(PUBLISHED):
        forms = {str(number), f"{number:.2f}", f"{number:.0f}"}
        assert forms & page, number


def test_missing_records_and_measures_say_which_command_fills_them(monkeypatch):
    page = report.render()
    missing = row(page, "| LSTM, 35 digits, test accuracy | 0.80 |")
    assert "no result yet" in missing
    assert "`python -m labkit run 02_digit_sum_sweep --profile cpu` fills it" in missing
    assert "No result yet: `python -m labkit run 03_gate_analysis --profile cpu`" in page
    rows = sum(line.endswith(" fills it |") and line.count("|") == 6 for line in page.splitlines())
    assert re.search(rf"The {rows} rows of published numbers .*: no result yet {rows}\.", page)

    measures = digit_sum_measures()
    del measures["published/srn/zero/trained/25/dev_accuracy"]
    put(monkeypatch, report.DIGIT_SUM, measures, profile="full")
    page = report.render()
    missing = row(page, "SRN, 25 digits, dev accuracy")
    assert "has no `published/srn/zero/trained/25/dev_accuracy`" in missing
    assert "run 02_digit_sum_sweep --profile full --force` fills it" in missing
    assert "no result yet" not in row(page, "SRN, 25 digits, test accuracy")
    assert "no `claim a`" in row(section(page, "02 Digit"), "| a |")


@pytest.mark.parametrize(
    "published, higher_is_better, verdict, reason",
    [
        (0.5, True, "inside our seeds", "higher than 1 of 4 seeds, equal to 1"),
        (0.4, True, "inside our seeds", "higher than 0 of 4 seeds, equal to 1"),
        (0.8, True, "inside our seeds", "higher than 3 of 4 seeds, equal to 1"),
        (0.7, True, "inside our seeds", "higher than 3 of 4 seeds"),
        (0.9, True, "ours worse", "higher than all 4 seeds"),
        (0.9, False, "ours better", "higher than all 4 seeds"),
        (0.3, True, "ours better", "lower than all 4 seeds"),
        (0.3, False, "ours worse", "lower than all 4 seeds"),
        (0.3, None, "outside our seeds", "lower than all 4 seeds"),
        (0.9, None, "outside our seeds", "higher than all 4 seeds"),
        (0.5, None, "inside our seeds", "higher than 1 of 4 seeds, equal to 1"),
    ],
)
def test_verdicts_on_numbers(published, higher_is_better, verdict, reason):
    measure = results.summarise([0.5, 0.4, 0.8, 0.6])
    found = report.judge(published, measure, higher_is_better=higher_is_better)
    assert found == (verdict, reason)


def test_an_accuracy_from_float32_equals_the_published_one():
    raw = np.float32([0.77, 0.77, 0.5]).tolist()
    assert raw[0] < 0.77
    for values, reason in ((raw, "higher than 1 of 3 seeds, equal to 2"), (raw[:2], "equal to 2")):
        verdict, rank = report.judge(0.77, results.summarise(values), higher_is_better=True)
        assert verdict == "inside our seeds"
        assert rank.endswith(reason)


def test_the_binomial_half_width_is_the_one_of_the_textbooks():
    assert report.binomial_half_width(0.82, 100) == pytest.approx(0.0753, abs=1e-4)
    assert report.binomial_half_width(1.0, 100) == 0


def test_rows_give_value_interval_n_verdict_and_reason(whole):
    found = row(section(whole, "nndl-a"), "LSTM, 10 digits, test accuracy")
    assert re.search(r"\| 0\.500 \[0\.\d+, 0\.\d+\], n = 3 \| inside our seeds \|", found)
    assert "higher than 2 of 3 seeds; ±0.08 from its 100 examples" in found

    found = row(whole, "speed (cpu): handwritten layer")
    assert "median 0.00500" in found
    assert "| ours better | higher than all 2 runs |" in found
    assert "| reproduced |" in row(whole, "| toy example")
    assert "| mistake reproduced |" in row(whole, "printed shapes")


def test_outside_our_seeds_the_row_says_on_which_side(monkeypatch):
    put(monkeypatch, report.DIGIT_SUM, digit_sum_measures(0.45, 0.55))
    page = report.render()
    assert "| ours worse | higher than all 3 seeds" in row(page, "| LSTM, 10 digits, test", "0.93")
    assert "| ours better | lower than all 3 seeds" in row(page, "| LSTM, 35 digits, test", "0.19")


@pytest.mark.parametrize("ours", [[2.81, 2.82], [2.84, 2.85]])
def test_a_first_loss_is_neither_better_nor_worse(monkeypatch, ours):
    measures = {"published/lstm/zero/trained/first_step_loss": results.summarise(ours)}
    put(monkeypatch, report.DIGIT_SUM, measures)
    assert "| outside our seeds |" in row(report.render(), "loss at the first step")


@pytest.mark.parametrize(
    "prediction, verdict",
    [
        (13, "reproduced"),
        (12, "not reproduced"),
        ([13, 12, 13], "reproduced by 2 of 3 seeds"),
        (results.summarise([13, 13]), "reproduced"),
        (results.summarise([13, 14]), "reproduced by 1 of 2 seeds"),
    ],
)
def test_the_prediction_is_counted_over_seeds(monkeypatch, prediction, verdict):
    put(monkeypatch, report.GATES, {"prediction": prediction})
    assert f"| {verdict} |" in row(report.render(), "prediction for")


@pytest.mark.parametrize("toy", [[[0.0594, 0.0953]], [[0.0594]], [[0.0594, 0.0952], [0, 0]]])
def test_another_toy_value_is_not_reproduced(monkeypatch, toy):
    put(monkeypatch, report.OPERATOR, {"toy_output": toy})
    assert "| not reproduced |" in row(report.render(), "| toy example")


def test_claims_stand_at_the_top_with_the_chapters_verdicts(whole):
    summary = section(whole, "Summary")
    assert whole.index("# Summary") < whole.index("# How to read") < whole.index("# 01 LSTM")
    assert "**holds**" in row(summary, "| a/zero |", "converges better")
    assert "**holds only at length 10**" in row(summary, "| a/xavier |")
    assert "**does not hold**" in row(summary, "| b |", "forget gate")
    assert "inside our seeds " in summary
    assert row(section(whole, "02 Digit"), "measured for a/xavier \\| twice")


def test_how_to_read_states_the_chance_to_fall_outside(whole):
    text = section(whole, "How to read")
    assert "2/(n + 1): 50% for n = 3" in text
    published = re.search(r"The (\d+) rows of published numbers", whole).group(1)
    assert f"With {published} rows" in text


def test_origin_and_figures_are_linked_relative_to_the_page(whole):
    assert "Ours ([record](cpu/02_digit_sum_sweep.json)): Profile `cpu` on " in whole
    assert "![Two (lines) \\| one](cpu/figures/02_digit_sum_sweep_accuracy.png)" in whole
    for target in re.findall(r"\]\(([^)]+)\)", whole):
        if target.startswith("#"):
            heading = target[1:].replace("-", "[ -]")
            assert re.search(rf"(?im)^## {heading}$", whole), target
        else:
            assert (environment.RESULTS / target).is_file(), target


def test_full_replaces_cpu_chapter_by_chapter(monkeypatch, whole):
    put(monkeypatch, report.GATES, {"prediction": 12}, profile="full")
    page = report.render()
    assert "(full/03_gate_analysis.json)" in page
    assert "(cpu/02_digit_sum_sweep.json)" in page
    assert "| not reproduced |" in row(page, "prediction for")


def test_every_table_row_has_as_many_cells_as_its_head(whole):
    widths = []
    for line in whole.splitlines():
        if not line.startswith("|"):
            widths = []
            continue
        widths.append(len(re.findall(r"(?<!\\)\|", line)))
        assert widths[-1] == widths[0], line


def test_the_page_is_written_whole_and_verified(whole, monkeypatch):
    assert report.write() == environment.RESULTS / "REPORT.md"
    assert (environment.RESULTS / "REPORT.md").read_text("utf-8") == whole == report.render()
    assert not any("REPORT.md" in line for line in results.verify().stale)
    put(monkeypatch, report.GATES, {"prediction": 12})
    assert any("REPORT.md is not what" in line for line in results.verify().stale)


def test_a_damaged_record_stops_the_report(monkeypatch):
    put(monkeypatch, report.GATES, {"prediction": 13})
    (environment.RESULTS / "cpu" / f"{report.GATES}.json").write_text("{")
    with pytest.raises(ValueError, match=r"03_gate_analysis\.json is damaged"):
        report.render()
