"""The plots of the film reviews: each draws what it is given, says so, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.film import figures as figures_imdb
from labkit.lab import results

LENGTHS = [{"length": n, "n": 50, "accuracy": a, "low": a - 0.1, "high": a + 0.05}
           for n, a in ((30, 0.7), (120, 0.8), (400, 0.75))]  # fmt: skip


def summary(*values: float, **options) -> dict:
    return results.summarise(list(values), student=True, **options)


def curves(shift: float = 0.0) -> dict[str, np.ndarray]:
    """Two seeds over four epochs."""
    values = np.array([[0.5, 0.7, 0.8, 0.85], [0.5, 0.6, 0.8, 0.9]]) + shift
    return {"train_accuracy": values, "dev_accuracy": values - 0.1, "curve_accuracy": values - 0.2}


def make_all(shift: float = 0.0) -> dict:
    rng = np.random.default_rng(0)
    length, rating = rng.integers(5, 900, 200) + int(1000 * shift), rng.choice([1, 3, 8, 10], 200)
    stack = {"gradient_norm": [1.0, 0.1, 0.01], "moved": [0.1 + shift, 0.2, 0.3],
             "train_accuracy": [0.5, 0.5, 0.6]}  # fmt: skip
    rows = {"lstm/last": summary(0.8 + shift, 0.82, 0.85), "one seed": summary(0.7)}
    shifted = [row | {"accuracy": row["accuracy"] + shift} for row in LENGTHS]
    by_model = {"rnn/last": LENGTHS, "lstm/mean": shifted}
    seconds = {"naive": summary(20.0, 30.0), "grouped": summary(10.0, 11.0 + shift)}
    return {
        "corpus": lambda: figures_imdb.corpus_plot(length, rating, 500),
        "learning_curves": lambda: figures_imdb.learning_curves(
            {"lstm/last": curves(shift), "gru/mean": curves()}, {"lstm/last": [0.6, 0.7]}
        ),
        "dots": lambda: figures_imdb.accuracy_dots(
            "dots", "Test accuracy", rows, published={"one seed": 0.75}, lines={"linear": 0.88}
        ),
        "accuracy_over_length": lambda: figures_imdb.length_plot(by_model),
        "reading": lambda: figures_imdb.reading_plot(
            "reading", ["not", "a", "good", "film"], {"lstm": np.full(4, 0.4 + shift)}
        ),
        "small_study_curves": lambda: figures_imdb.small_curves(
            {"none": curves(shift)["dev_accuracy"], "all": curves()["dev_accuracy"]}, [(2, 0.6)]
        ),
        "two_layer_stack": lambda: figures_imdb.stack_plot({"sgd/0.1": stack, "adam": stack}),
        "epoch_seconds": lambda: figures_imdb.speed_plot(seconds),
    }


@pytest.mark.parametrize("name", make_all())
def test_figures_have_a_name_a_text_labels_and_stable_data(name, check_figure):
    check_figure(name, make_all()[name], make_all(0.05)[name])


@pytest.mark.parametrize("name", make_all())
def test_figures_are_drawn_to_the_same_bytes(name, check_bytes):
    check_bytes(make_all()[name])


def legend(fig) -> list[str]:
    (found,) = fig.legends or [ax.get_legend() for ax in fig.axes if ax.get_legend()]
    return [text.get_text() for text in found.get_texts()]


def test_ratings_and_the_cut_are_in_the_corpus_plot():
    fig = make_all()["corpus"]()
    left, right = fig.axes
    assert left.lines[0].get_xdata()[0] == 500
    assert {round(bar.get_x() + bar.get_width() / 2) for bar in right.patches} == {1, 3, 8, 10}
    assert len({bar.get_facecolor() for bar in right.patches}) == 2
    assert "dashed line marks the 500 words" in fig.labkit_alt
    short = figures_imdb.corpus_plot(np.arange(5, 100), np.full(95, 3), 500)
    assert not short.axes[0].lines
    assert "dashed" not in short.labkit_alt


def test_learning_curves_have_a_panel_for_each_setting_and_one_legend():
    fig = make_all()["learning_curves"]()
    first, second = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["lstm/last", "gru/mean"]
    assert (len(first.lines), len(second.lines)) == (7, 6)  # three kinds of two seeds
    assert first.lines[-1].get_ydata().tolist() == [0.6, 0.7]
    assert legend(fig) == ["training", "dev", "test sample", "published test curve"]
    assert first.lines[0].get_xdata().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("count, rows", [(1, 1), (4, 1), (5, 2), (13, 4)])
def test_panels_without_a_setting_stay_empty(count, rows):
    fig = figures_imdb.learning_curves({f"s{k}": curves() for k in range(count)}, {})
    assert len(fig.axes) == rows * min(4, count)
    assert sum(ax.axison for ax in fig.axes) == count
    assert sum(ax.get_xlabel() == "epoch" for ax in fig.axes if ax.axison) == min(4, count)


def test_dots_show_seeds_means_and_intervals_of_three_seeds_on():
    fig = make_all()["dots"]()
    (ax,) = fig.axes
    seeds, interval, mean, alone, _, published, _ = ax.lines
    assert seeds.get_xdata().tolist() == [0.8, 0.82, 0.85]
    assert set(seeds.get_ydata()) == set(mean.get_ydata()) == {1}
    measure = summary(0.8, 0.82, 0.85)
    assert interval.get_xdata().tolist() == [measure["low"], measure["high"]]
    assert mean.get_xdata()[0] == pytest.approx(measure["mean"])
    assert (alone.get_xdata()[0], published.get_xdata()[0]) == (0.7, 0.75)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["lstm/last", "one seed"]
    assert set(legend(fig)) == {"published", "linear"}
    assert "open diamonds" in fig.labkit_alt
    assert ax.get_xlim()[0] < measure["low"] < measure["high"] < ax.get_xlim()[1]
    plain = figures_imdb.accuracy_dots("dots", "Accuracy", {"one": summary(0.5)})
    assert not plain.legends
    assert "diamonds" not in plain.labkit_alt
    assert plain.axes[0].get_xlim()[0] < 0.5 < plain.axes[0].get_xlim()[1]


def test_every_reference_line_is_drawn_and_none_too_many_is_taken():
    lines = {f"line {k}": 0.5 + k / 10 for k in range(5)}
    four = dict(list(lines.items())[:4])
    fig = figures_imdb.accuracy_dots("dots", "Accuracy", {"one": summary(0.5)}, lines=four)
    assert legend(fig) == list(four)
    with pytest.raises(ValueError, match="zip"):
        figures_imdb.accuracy_dots("dots", "Accuracy", {"one": summary(0.5)}, lines=lines)


def test_every_panel_of_lengths_has_its_own_models():
    fig = make_all()["accuracy_over_length"]()
    assert [ax.get_title() for ax in fig.axes] == ["review vector: last", "review vector: mean"]
    assert [len(ax.containers) for ax in fig.axes] == [1, 1]
    first = fig.axes[0].lines[0]
    np.testing.assert_allclose(first.get_ydata(), [0.7, 0.8, 0.75])
    segments = fig.axes[0].collections[0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [[0.6, 0.75], [0.7, 0.85], [0.65, 0.8]])
    assert fig.axes[0].get_xscale() == "log"


def test_a_reading_has_a_tick_for_every_word():
    fig = make_all()["reading"]()
    (ax,) = fig.axes
    words = [label.get_text() for label in ax.get_xticklabels()]
    assert words == ["not", "a", "good", "film"]
    assert ax.lines[0].get_ydata().tolist() == [0.4] * 4
    assert "4 words" in fig.labkit_alt


def test_small_curves_show_seeds_their_mean_and_the_source():
    fig = make_all()["small_study_curves"]()
    (ax,) = fig.axes
    assert [line.get_label() for line in ax.lines if line.get_label()[0] != "_"] == [
        "none", "all", "published",
    ]  # fmt: skip
    np.testing.assert_allclose(ax.lines[2].get_ydata(), curves()["dev_accuracy"].mean(0))
    without = figures_imdb.small_curves({"none": curves()["dev_accuracy"]}, [])
    assert "published" not in without.labkit_alt


def test_the_stack_has_logarithmic_axes_for_what_vanishes():
    fig = make_all()["two_layer_stack"]()
    assert [ax.get_yscale() for ax in fig.axes] == ["log", "log", "linear"]
    assert [len(ax.lines) for ax in fig.axes] == [2, 2, 2]
    assert legend(fig) == ["sgd/0.1", "adam"]


def test_bars_of_seconds_are_medians():
    (ax,) = make_all()["epoch_seconds"]().axes
    assert [bar.get_width() for bar in ax.patches] == [25.0, 10.5]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[20.0, 30.0], [10.0, 11.0]]
