"""Chapter 01: its settings, its figures and its rows of the report."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from labkit.cells import Settings, figures
from labkit.lab import record
from labkit.measure.statistics import summarise

SETTINGS = {
    "profile": "quick", "seed": 0, "device_name": "cpu", "parity_shapes": 2, "gradient_seeds": 2,
    "gradient_steps": 2, "batch_size": 1, "seq_len": 1, "input_size": 1, "hidden_size": 1,
    "warmup_runs": 0, "timed_runs": 1, "large_runs": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, value", {"gradient_steps": 1, "warmup_runs": -1, "hidden_size": 2.0, "more": 1}.items()
)
def test_settings_that_cannot_run_are_refused_by_name(name, value):
    assert Settings(**SETTINGS).gradient_steps == 2
    with pytest.raises(ValidationError, match=name):
        Settings(**SETTINGS | {name: value})


def ladder():
    small = {"eight": [6.0, 9.0, 7.0, 500.0], "by hand": [0.5, 0.7, 0.6, 0.6]}
    return figures.ladder_plot({"small": small, "large": {"eight": [2.0], "by hand": [1.0]}})


def gradients():
    values = np.array([[1.0, 2.0], [3.0, 4.0], [8.0, 9.0]])
    return figures.gradient_plot({"srn": {"Xavier": values / 2}, "lstm": {"torch": values}})


def test_the_ladder_plot_shows_medians_from_the_readable_rung_down():
    (ax,) = ladder().axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["eight", "by hand"]
    assert ax.yaxis_inverted()
    assert ax.lines[0].get_xdata() == pytest.approx([8.0, 0.6], rel=0.01)


def test_the_gradient_plot_shows_the_median_and_names_the_starts():
    _, ax = gradients().axes
    assert ax.lines[3].get_ydata().tolist() == [3.0, 4.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["torch"]


def measures(**changes):
    times = {"naive_seconds": [0.004] * 9, "torch_seconds": [0.002] * 9}
    times["ratio_naive_to_torch"] = [2.0, 2.1, 5.0] * 3
    timed = {
        f"speed/{name}": summarise(values, statistic="median", timing=True)
        for name, values in times.items()
    }
    plain = {"toy_output": [[0.0594, 0.0952]], "parity_mistake/shapes": [[2, 10], [5, 10]]}
    return timed | plain | changes


def test_rows_set_ours_beside_every_published_number():
    (rows,) = figures.rows(measures(), {}, record.published()).values()
    assert [row.verdict for row in rows] == [
        "reproduced", "ours better", "ours worse", "inside our runs", "mistake reproduced",
    ]  # fmt: skip
    assert rows[3].published == "4.34"
    assert rows[3].reason == "higher than 6 of 9 runs"


@pytest.mark.parametrize("ours", [[[0.0595, 0.0952]], [[0.0594], [0.0952]]])
def test_another_toy_value_is_not_reproduced(ours):
    rows = figures.rows(measures(toy_output=ours), {}, record.published())["Numbers"]
    assert rows[0].verdict == "not reproduced"
