"""The plots of the sine chapter draw what they are given, and its rows of the report."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.lab import record
from labkit.measure.statistics import summarise
from labkit.sine import evaluation

PUBLISHED = record.published()["sine"]
NOTE = PUBLISHED["every_step"]
VALUES = np.random.default_rng(0).random((3, 9)) + 0.1  # three seeds


def content(shift: float = 0.0) -> dict:
    x = [1, 2, 3, 5, 10, 20, 50, 100, 200]
    drawn = dict.fromkeys(("Adam", "SGD"), (x, VALUES + shift))
    return {"a panel": drawn | {"always the mean": ([1, 200], [0.1, 0.1])}, "another": drawn}


@pytest.mark.parametrize("name", evaluation.FIGURES)
def test_figures_have_a_name_a_text_labels_and_stable_data(name, check_figure):
    check_figure(name, *(lambda s=s: evaluation.panels(name, content(s)) for s in (0.0, 0.05)))


def test_a_strong_line_is_the_median_and_the_readers_own_seeds_are_crosses():
    long = {"a panel": {"SGD": (range(1, 46), np.tile(VALUES, 5))}}
    yours = {"a panel": {"SGD": ([1, 2, 3], VALUES[:, :3])}}
    figure = evaluation.panels("loss", long, yours)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["SGD"].get_ydata()[:9].tolist() == pytest.approx(np.median(VALUES, 0).tolist())
    assert lines["you"].get_marker() == "X"
    assert lines["you"].get_ydata().tolist() == pytest.approx(np.median(VALUES, 0)[:3].tolist())
    assert "reader's own" in figure.labkit_alt
    assert "reader's own" not in evaluation.panels("loss", long).labkit_alt


def rows(shift: float = 0.0) -> list:
    """The rows where twelve seeds lie around each published number, or beside it by a share."""
    columns = {"note/before/9": NOTE["initial_prediction"][-1]}
    after = ("note/after 100 batches/9", "note/at the end/9")
    columns |= dict.fromkeys(after, NOTE["final_prediction"][-1])
    for start in evaluation.STARTS:
        columns |= {
            f"loss/{start}/{o}/5": PUBLISHED[f"{o}_loss"][-1] for o in evaluation.OPTIMISERS
        }
    measures = {
        name: summarise([value * (1 + shift + j / 100) for j in range(-6, 6)])
        for name, value in columns.items()
    }
    (table,) = evaluation.rows(measures, {"sine": PUBLISHED}).values()
    return table


def test_each_published_number_has_a_row_and_a_lower_loss_is_better():
    table = rows()
    printed = [PUBLISHED[f"{o}_loss"][-1] for o in ("adam", "adam", "sgd", "sgd")]
    printed += [NOTE[f"{m}_prediction"][-1] for m in ("initial", "final", "final")]
    assert [row.published for row in table] == [repr(value) for value in printed]
    assert {row.verdict for row in table} == {"inside our seeds"}
    verdicts = [row.verdict for row in rows(-0.5)]
    assert verdicts == ["ours better"] * 4 + ["outside our seeds"] * 3
