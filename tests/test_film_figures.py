"""The plots and diagrams of the chapter on film reviews."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from labkit.film import figures
from labkit.measure.statistics import summarise


def make_figures(shift: float = 0.0) -> dict:
    values = np.array([[0.5, 0.7, 0.8], [0.5, 0.6, 0.9]]) + shift
    names = [*figures.NETWORKS.values()][:-1]  # a record without the best network
    measures = {f"{name}/test_accuracy": summarise([0.8 + shift, 0.82, 0.85]) for name in names}
    measures |= {f"baseline/{kind}/test_accuracy": 0.88 for kind in figures.LINEAR.values()}
    panels = {"training": {"none": values, "lstm": values / 2}, "dev": {"none": values}}
    extra = {"published": {1: 0.6, 3: 0.7}, "line": ("linear", 0.8), "yours": {"dev": values[0]}}
    return {
        "answer": lambda: figures.accuracies("answer", "Accuracy", measures),
        "curves": lambda: figures.curves("curves", "Accuracy over the epochs", panels, **extra),
        "lengths": lambda: figures.curves("lengths", "Accuracy by length", panels, x=[9, 20, 70]),
    }


@pytest.mark.parametrize("name", make_figures())
def test_figures_have_a_name_a_text_labels_and_data(name, check_figure):
    check_figure(name, make_figures()[name], make_figures(0.05)[name])


def test_the_framed_last_step_holds_one_word_of_the_backward_direction():
    (ax,) = figures.bidirectional_diagram().axes
    frame = next(patch for patch in ax.patches if isinstance(patch, Rectangle))
    inside = [
        t.get_text()
        for t in ax.texts
        if frame.contains_point(ax.transData.transform(t.get_position()))
    ]
    assert inside == ["film", "read 1", "read 4"]
