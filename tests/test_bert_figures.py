"""The plots of the chapter on BERT: each draws what it is given, says so, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.bert import figures
from labkit.measure.statistics import summarise

TOKENS = ["[CLS]", "not", "a", "dull", "film", "[SEP]"]


def summary(*values: float) -> dict:
    return summarise(list(values), student=True)


def make_all(shift: float = 0.0) -> dict:
    rng = np.random.default_rng(0)
    attention = rng.random((6, 6)) + np.eye(6) * shift
    attention /= attention.sum(1, keepdims=True)
    curves = {
        "fine-tuned": {200: summary(0.6 + shift), 2000: summary(0.8, 0.82, 0.85)},
        "linear": {200: summary(0.7, 0.71, 0.75), 2000: summary(0.8)},
    }
    effect = np.array([0.0, -0.2, 0.01, 0.3 + shift, -0.05, 0.0])
    return {
        "one_head": lambda: figures.head_plot(TOKENS, attention),
        "learning_curve": lambda: figures.size_plot(curves, 80, 500),
        "attention_review": lambda: figures.reading_plot(TOKENS, attention[:2], effect),
    }


@pytest.mark.parametrize("name", make_all())
def test_figures_have_a_name_a_text_labels_and_stable_data(name, check_figure):
    check_figure(name, make_all()[name], make_all(0.05)[name])


def test_a_head_asks_down_and_is_asked_across():
    attention = np.zeros((6, 6))
    attention[1, 3] = 1.0
    ax = figures.head_plot(TOKENS, attention).axes[0]
    assert ax.collections[0].get_array().reshape(6, 6)[1, 3] == 1.0
    assert [label.get_text() for label in ax.get_yticklabels()] == TOKENS
    assert ax.get_ylim() == (6, 0)  # the first piece is the first row
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("asks", "asked")


def test_the_learning_curve_holds_every_seed_the_intervals_of_three_and_what_was_read():
    curves = {"linear": {200: summary(0.3), 500: summary(0.3, 0.9), 2000: summary(0.8, 0.82, 0.85)}}
    fig = figures.size_plot(curves, 80, 500)
    ax = fig.axes[0]
    assert len(ax.collections) == 1
    assert ax.get_ylim()[0] < 0.3
    assert [label.get_text() for label in ax.get_xticklabels()] == ["200", "500", "2,000"]
    assert "80 word pieces of a review, recurrent and linear 500 words" in fig.labkit_alt
