"""Chapter 01: its settings, its figures and its rows of the report."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from labkit.cells import Settings, figures
from labkit.lab import record
from labkit.measure.plots import png_bytes
from labkit.measure.statistics import summarise

SETTINGS = {
    "profile": "quick", "seed": 0, "device_name": "cpu", "parity_shapes": 2, "gradient_seeds": 2,
    "gradient_steps": 2, "batch_size": 1, "seq_len": 1, "input_size": 1, "hidden_size": 1,
    "warmup_runs": 0, "timed_runs": 1, "large_runs": 1,
}  # fmt: skip


def test_the_smallest_settings_are_accepted():
    assert Settings(**SETTINGS).gradient_steps == 2


@pytest.mark.parametrize(
    "name, value",
    {
        "gradient_steps": 1, "timed_runs": 0, "warmup_runs": -1, "hidden_size": 2.0, "seed": -1,
        "batch_size": True, "with_compiler": True,
    }.items(),
)  # fmt: skip
def test_settings_that_cannot_run_are_refused_by_name(name, value):
    with pytest.raises(ValidationError, match=name):
        Settings(**SETTINGS | {name: value})


def make_figures():
    rng = np.random.default_rng(0)
    differences = {
        cell: {"float64": [0.0, 1e-15], "float32": [1e-7, 0.0]} for cell in ("srn", "gru")
    }
    ratios = {"forward": {"eight": [6.0, 9.0, 7.0, 500.0], "by hand": [0.5, 0.7, 0.6, 0.6]}}
    norms = {"srn": {start: rng.random((3, 5)) for start in ("torch", "Xavier")}}
    return {
        "parity": figures.parity_plot(differences),
        "ladder": figures.ladder_plot(ratios),
        "gradient_norm": figures.gradient_plot(norms),
    }


@pytest.mark.parametrize("name", ["parity", "ladder", "gradient_norm"])
def test_figures_say_what_they_show_and_repeat(name):
    fig = make_figures()[name]
    assert fig.labkit_name == name
    assert len(fig.labkit_alt) > 80
    np.random.default_rng().random()
    assert png_bytes(fig) == png_bytes(make_figures()[name])


def test_the_parity_plot_names_each_limit_and_counts_the_shapes():
    (legend,) = make_figures()["parity"].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["float64, limit 1e-10", "float32, limit 1e-05"]
    assert legend.get_title().get_text() == "2 shapes"


def test_the_ladder_plot_states_medians_and_is_not_squeezed_by_one_busy_moment():
    (ax,) = make_figures()["ladder"].axes
    assert [text.get_text() for text in ax.texts] == ["8.00", "0.60"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["eight", "by hand"]
    low, high = ax.get_xlim()
    assert low <= 0.5 < 1 < 24 < high < 500
    assert ax.yaxis_inverted()


def test_the_gradient_plot_shows_the_median_and_names_the_starts():
    norms = {"lstm": {"torch": np.array([[1.0, 2.0], [3.0, 4.0], [8.0, 9.0]])}}
    (ax,) = figures.gradient_plot(norms).axes
    assert ax.lines[0].get_ydata().tolist() == [3.0, 4.0]
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


@pytest.mark.parametrize(
    "ours", [[[0.0595, 0.0952]], [[0.0594, 0.0952, 0.0]], [[0.0594], [0.0952]]]
)
def test_another_toy_value_is_not_reproduced(ours):
    rows = figures.rows(measures(toy_output=ours), {}, record.published())["Numbers"]
    assert rows[0].verdict == "not reproduced"


def test_a_missing_measure_is_an_error():
    with pytest.raises(KeyError, match="speed/torch_seconds"):
        figures.rows(
            {k: v for k, v in measures().items() if k != "speed/torch_seconds"},
            {},
            record.published(),
        )


def test_about_tells_the_published_setting():
    assert figures.about(record.published()).startswith("Published speed: batch 8, 20 steps, 32")
