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
    }


@pytest.mark.parametrize("name", make_figures())
def test_figures_have_a_name_a_text_labels_and_data(name, check_figure):
    check_figure(name, make_figures()[name], make_figures(0.05)[name])


def test_dots_hold_every_seed_the_intervals_and_the_marks_of_their_rows():
    values = {"a": [0.7, 0.71, 0.75], "b": [0.6], "c": [0.8, 0.82, 0.85, 0.81, 0.79]}
    measures = {f"{name}/held_out_accuracy": summarise(of) for name, of in values.items()}
    groups = {"200": {"linear": "a", "BERT": "b"}, "2,000": {"BERT": "c", "not measured": "d"}}
    yours = measures, {"BERT": "b", "a row that is not there": "a"}
    (ax,) = figures.dots("dots", "What", measures, groups, printed={"BERT": 0.9}, yours=yours).axes
    drawn = [[*line.get_xdata()] for line in ax.lines]
    assert [x for x in drawn if len(x) > 2] == [values["a"], values["c"]]
    marks = {line.get_label(): [*line.get_xdata()] for line in ax.lines}
    assert (marks["you"], marks["printed"]) == ([0.6], [0.9])
    assert len(ax.collections) == 1  # an interval from five seeds on
    assert [label.get_text() for label in ax.get_yticklabels()] == ["linear", "BERT"]


def test_the_framed_last_step_holds_one_word_of_the_backward_direction():
    (ax,) = figures.bidirectional_diagram().axes
    frame = next(patch for patch in ax.patches if isinstance(patch, Rectangle))
    inside = [
        t.get_text()
        for t in ax.texts
        if frame.contains_point(ax.transData.transform(t.get_position()))
    ]
    assert inside == ["film", "read 1", "read 4"]
