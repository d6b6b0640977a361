"""The plots of the chapter on BERT: each draws what it is given, says so, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.bert import figures as figures_bert
from labkit.lab import results
from labkit.measure import plots as figures

TOKENS = ["[CLS]", "not", "a", "dull", "film", "[SEP]"]


def summary(*values: float, **options) -> dict:
    return results.summarise(list(values), student=True, **options)


def epochs(shift: float = 0.0) -> dict[str, np.ndarray]:
    """Two seeds over three epochs."""
    values = np.array([[0.5, 0.6, 0.7], [0.5, 0.7, 0.8]]) + shift
    return {"train_loss": 1 - values, "dev_loss": 1.1 - values, "train_accuracy": values,
            "dev_accuracy": values - 0.1}  # fmt: skip


def make_all(shift: float = 0.0) -> dict:
    rng = np.random.default_rng(0)
    words = rng.integers(5, 300, 200) + int(1000 * shift)
    attention = rng.random((6, 6)) + np.eye(6) * shift
    attention /= attention.sum(1, keepdims=True)
    counted = {n: {"accuracy": a + shift, "low": a - 0.1, "high": a + 0.1}
               for n, a in ((200, 0.6), (500, 0.7))}  # fmt: skip
    curves = {
        "fine-tuned": {200: summary(0.6 + shift), 2000: summary(0.8, 0.82, 0.85)},
        "linear": {200: summary(0.7, 0.71, 0.75), 2000: summary(0.8)},
    }
    costs = [
        {"name": "BERT", "rival": "fine-tuned", "parameters": 2e7, "seconds": 300.0,
         "accuracy": 0.8 + shift},
        {"name": "words", "rival": "linear", "parameters": 5e4, "seconds": 1.0, "accuracy": 0.7},
    ]  # fmt: skip
    effect = np.array([0.0, -0.2, 0.01, 0.3 + shift, -0.05, 0.0])
    return {
        "word_pieces": lambda: figures_bert.pieces_plot(words, (1.3 * words).astype(int), 128),
        "one_head": lambda: figures_bert.head_plot(TOKENS, attention),
        "schedules": lambda: figures_bert.rate_plot(
            {"linear": [0.1 + shift, 0.2, 0.1], "constant": [0.2] * 3}
        ),
        "pooling": lambda: figures_bert.pooling_plot({"cls": counted, "mean": counted}),
        "learning_curve": lambda: figures_bert.learning_curve(curves),
        "epochs": lambda: figures_bert.epochs_plot(
            {"pretrained": epochs(shift), "random start": epochs()}
        ),
        "cost": lambda: figures_bert.cost_plot(costs),
        "attention_review": lambda: figures_bert.reading_plot(TOKENS, attention[:2], effect),
    }


@pytest.mark.parametrize("name", make_all())
def test_figures_have_a_name_a_text_labels_and_stable_data(name, check_figure):
    check_figure(name, make_all()[name], make_all(0.05)[name])


@pytest.mark.parametrize("name", make_all())
def test_figures_are_drawn_to_the_same_bytes(name, check_bytes):
    check_bytes(make_all()[name])


def test_the_pieces_plot_says_how_many_reviews_are_cut():
    words = np.array([50, 60, 100, 200])
    fig = figures_bert.pieces_plot(words, np.array([60, 128, 129, 300]), 128)
    assert fig.axes[0].lines[0].get_xdata()[0] == 128
    assert "128 pieces" in fig.labkit_alt
    assert "50% of the reviews" in fig.labkit_alt  # 128 pieces are read, 129 are not


def test_a_head_asks_down_and_is_asked_across():
    attention = np.zeros((6, 6))
    attention[1, 3] = 1.0
    (ax, _) = figures_bert.head_plot(TOKENS, attention).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == TOKENS
    assert [label.get_text() for label in ax.get_yticklabels()] == TOKENS
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("asked", "asks")
    assert np.asarray(ax.images[0].get_array())[1, 3] == 1.0
    assert ax.images[0].get_clim() == (0, 1)


def test_every_pooling_has_its_line_and_intervals():
    fig = make_all()["pooling"]()
    (ax,) = fig.axes
    assert [box.get_label() for box in ax.containers] == ["cls", "mean"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.6, 0.7])
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [[0.5, 0.7], [0.6, 0.8]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["200", "500"]


def test_the_learning_curve_has_seeds_means_and_intervals_of_three_seeds_on():
    fig = make_all()["learning_curve"]()
    (ax,) = fig.axes
    assert ax.get_xscale() == "log"
    one, three, interval, mean = ax.lines[:4]
    assert one.get_ydata().tolist() == [0.6]
    assert three.get_ydata().tolist() == [0.8, 0.82, 0.85]
    measure = summary(0.8, 0.82, 0.85)
    assert interval.get_ydata().tolist() == [measure["low"], measure["high"]]
    np.testing.assert_allclose(mean.get_ydata(), [0.6, measure["mean"]])
    (legend,) = fig.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["fine-tuned", "linear", "chance"]
    assert mean.get_color() == figures_bert.LOOKS["fine-tuned"][0]


def test_training_is_dashed_and_dev_is_solid():
    left, right = make_all()["epochs"]().axes
    assert (left.get_title(), right.get_title()) == ("loss", "accuracy")
    by_label = {line.get_label(): line for line in right.lines if line.get_label()[0] != "_"}
    assert by_label["pretrained, training"].get_linestyle() == "--"
    assert by_label["pretrained, dev"].get_linestyle() == "-"
    np.testing.assert_allclose(by_label["pretrained, dev"].get_ydata(), [0.4, 0.55, 0.65])
    np.testing.assert_allclose(by_label["random start, training"].get_ydata(), [0.5, 0.65, 0.75])


def test_costs_stand_on_logarithmic_axes():
    left, right = make_all()["cost"]().axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "log")
    assert [line.get_xdata()[0] for line in left.lines] == [2e7, 5e4]
    assert [line.get_xdata()[0] for line in right.lines] == [300.0, 1.0]
    assert [line.get_ydata()[0] for line in right.lines] == [0.8, 0.7]


def test_a_review_has_its_attention_above_and_its_effects_below():
    top, bottom, _ = make_all()["attention_review"]().axes
    assert np.asarray(top.images[0].get_array()).shape == (2, 6)
    assert [label.get_text() for label in top.get_yticklabels()] == ["1", "2"]
    heights = [bar.get_height() for bar in bottom.patches]
    assert heights == pytest.approx([0.0, -0.2, 0.01, 0.3, -0.05, 0.0])
    colours = [bar.get_facecolor()[:3] for bar in bottom.patches]
    assert colours[1] == pytest.approx(figures.PALETTE[1])
    assert colours[3] == pytest.approx(figures.PALETTE[0])
    assert [label.get_text() for label in bottom.get_xticklabels()] == TOKENS
