"""Chapters 02 and 03 from outside: what may be set, and the rows that go into the report."""

import subprocess
import sys
from itertools import product

import pytest

from labkit.lab import machine, record
from labkit.lab.notebooks import read_notebook
from labkit.lab.settings import SettingsError, resolve
from labkit.measure.statistics import summarise
from labkit.memory import figures
from labkit.memory.training import place

SWEEP, GATES = "02_digit_sum_sweep", "03_gate_analysis"
PUBLISHED = record.published()


def resolved(chapter: str, *given: str, profile: str = "quick") -> dict:
    cells = read_notebook(machine.NOTEBOOKS / f"{chapter}.ipynb")["cells"]
    return resolve(chapter, cells, profile, given)


@pytest.mark.parametrize("profile", ["cpu", "full"])
def test_the_long_profiles_of_both_chapters_share_their_trainings(profile):
    settings, gate_settings = resolved(SWEEP, profile=profile), resolved(GATES, profile=profile)
    for name, value in {"steps": 19_000, "num_seeds": settings["num_seeds"]}.items():
        assert settings[name] == gate_settings[name] == value
    assert {f"{start}/trained" for start in gate_settings["starts"]} <= {*settings["settings"]}


def test_what_stands_twice_is_refused_by_name_before_a_kernel_starts():
    with pytest.raises(SettingsError, match="parameter 'settings'"):
        resolved(SWEEP, "settings=['zero/trained', 'zero/trained']")


def test_settings_need_neither_torch_nor_numpy():
    code = "import sys, labkit.memory; print({'torch', 'numpy', 'scipy'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


TRAINED = {"settings": ["zero/trained", "zero/frozen"], "lengths": [10, 25]}
RAW = [0.7, 0.72, 0.75, 0.8, 0.82, 0.85, 0.88, 0.9]
MEASURES = {figures.FIRST_LOSS: summarise(RAW)} | {
    f"{place('published', cell, setting, length)}/{split}_accuracy": summarise(RAW)
    for cell, split in product(("srn", "lstm"), ("dev", "test"))
    for setting, length in product(*TRAINED.values())
}


def test_rows_of_chapter_02_stand_by_source_for_what_was_trained():
    rows = figures.sweep_rows(MEASURES, TRAINED, PUBLISHED)
    assert [(heading, len(group)) for heading, group in rows.items()] == [
        ("nndl-a: zero start, embedding trained", 5),
        ("nndl-b: zero start, embedding frozen", 4),
        ("nndl-c: zero start, embedding trained", 8),
    ]
    by_what = {row.what: row for row in rows["nndl-a: zero start, embedding trained"]}
    inside, outside = (by_what[f"LSTM, {n} digits, test accuracy"] for n in (10, 25))
    assert (inside.published, inside.verdict) == ("0.77", "inside our seeds")
    assert inside.reason == "higher than 3 of 8 seeds; ±0.08 from its 100 examples"
    assert (outside.published, outside.verdict) == ("0.31", "ours better")
    assert by_what["LSTM, loss at the first step"].published == "2.83505"
    frozen = figures.sweep_rows(
        MEASURES, {"settings": ["zero/frozen"], "lengths": [5, 10]}, PUBLISHED
    )
    assert [(heading, len(group)) for heading, group in frozen.items()] == [
        ("nndl-b: zero start, embedding frozen", 2)
    ]


def test_a_measure_that_should_be_there_and_is_not_is_an_error():
    name = "published/srn/zero/trained/10/dev_accuracy"
    with pytest.raises(KeyError, match=name):
        figures.sweep_rows({k: v for k, v in MEASURES.items() if k != name}, TRAINED, PUBLISHED)


@pytest.mark.parametrize(
    "predictions, ours, verdict",
    [
        ([13] * 9, "13, n = 9", "reproduced"),
        ([12, 12], "12, n = 2", "not reproduced"),
        ([13, 13, 4], "2 × 13, n = 3", "reproduced by 2 of 3 seeds"),
    ],
)
def test_the_row_of_chapter_03_counts_the_models_that_predict_the_same(predictions, ours, verdict):
    (row,) = figures.gate_rows({"prediction": predictions}, PUBLISHED)["Numbers"]
    assert (row.published, row.ours, row.verdict) == ("13", ours, verdict)


def test_the_committed_records_hold_these_rows():
    sweep, gates = map(record.reported, (SWEEP, GATES))
    rows = figures.sweep_rows(sweep["measures"], sweep["settings"], PUBLISHED)
    assert sweep["rows"] == {heading: [*map(vars, group)] for heading, group in rows.items()}
    (row,) = figures.gate_rows(gates["measures"], PUBLISHED)["Numbers"]
    assert gates["rows"] == {"Numbers": [vars(row)]}
