"""The plots of the IMDB chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from labkit.measure.plots import COLOURS, LABELS, PALETTE, new_figure

NAMES = {"rnn": "RNN", "lstm": LABELS["lstm"], "gru": LABELS["gru"]}
CELL_COLOURS = {"rnn": COLOURS["srn"], "lstm": COLOURS["lstm"], "gru": COLOURS["gru"]}
LINES = ((PALETTE[2], ":"), (PALETTE[4], ":"), (PALETTE[1], "--"), (PALETTE[0], "--"))
KINDS = {"source": "the sources'", "sound": "sound", "mistake": "mistakes"}  # of study B
Summary = Mapping[str, Any]


def corpus_plot(length: np.ndarray, rating: np.ndarray, max_len: int) -> Figure:
    """How long the reviews are, in words, and how they are rated; both (N,)."""
    edges = np.linspace(0, np.percentile(length, 99.5), 50)
    limit = f"the {max_len} words that the models read at most"
    inside = max_len <= edges[-1]
    fig, (left, right) = new_figure(
        "corpus",
        "Left: a histogram of the reviews' lengths in words, without the longest 0.5 %; "
        + (f"the dashed line marks {limit}. " if inside else f"it ends before {limit}. ")
        + "Right: bars, one for each rating from 1 to 10, with no bars at 5 and 6, negative and "
        "positive in two colours.",
        ncols=2,
        figsize=(9.0, 3.2),
    )
    left.hist(length, bins=edges, color=PALETTE[0])
    if inside:
        left.axvline(max_len, color="black", linestyle="--", linewidth=1)
    left.set(xlabel="words in a review", ylabel="reviews", xlim=(0, edges[-1]))
    values, counts = np.unique(rating, return_counts=True)
    right.bar(values, counts, color=[PALETTE[1 if v < 6 else 2] for v in values])
    right.set(xlabel="rating", ylabel="reviews", xticks=range(1, 11))
    return fig


def learning_curves(
    runs: Mapping[str, Mapping[str, np.ndarray]], published: Mapping[str, Sequence[float]]
) -> Figure:
    """Accuracy over the epochs: `runs[setting]` has train_accuracy, dev_accuracy (seeds, K), and
    perhaps curve_accuracy; `published[setting]` is a printed test curve (K,)."""
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    fig, axes = new_figure(
        "learning_curves",
        "Accuracy over the epochs, one panel for each setting: "
        f"{'; '.join(runs)}. Thin lines are seeds, for training, dev and a sample of the test "
        "reviews in three colours; a dashed black line with open circles is the published test "
        "curve, where there is one.",
        rows,
        columns,
        figsize=(2.9 * columns + 0.4, 2.6 * rows + 0.7),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    kinds = {"train_accuracy": "training", "dev_accuracy": "dev", "curve_accuracy": "test sample"}
    for ax, (setting, found) in zip(axes.flat, runs.items(), strict=False):
        for (kind, label), colour in zip(kinds.items(), PALETTE, strict=False):
            if kind in found:
                epochs = np.arange(1, found[kind].shape[1] + 1)
                lines = ax.plot(epochs, found[kind].T, color=colour, linewidth=1.1)
                lines[0].set_label(label)
        if setting in published:
            values = published[setting]
            ax.plot(
                np.arange(1, len(values) + 1), values, "o--", color="black", mfc="none",
                markersize=4, linewidth=1, label="published test curve",
            )  # fmt: skip
        ax.set_title(setting, fontsize=10)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in list(axes.flat)[len(runs) :]:
        ax.set_axis_off()
    for ax in list(axes.flat)[: len(runs)][-columns:]:  # the lowest panel of each column
        ax.set_xlabel("epoch")
        ax.tick_params(axis="x", labelbottom=True)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=9)
    return fig


def accuracy_dots(
    name: str,
    what: str,
    rows: Mapping[str, Summary],
    *,
    published: Mapping[str, float] | None = None,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """One row for each setting: every seed a dot, the mean with its 95 % interval.

    Rows of study B are called "<kind>/<setting>".

    `published` gives single numbers of the sources by row, `lines` reference values by name.
    """
    published, lines = published or {}, lines or {}
    fig, ax = new_figure(
        name,
        f"{what}. One row for each of: {'; '.join(map(_spoken, rows))}. Grey dots are seeds, "
        "black dots means with 95 % Student intervals where there are at least three seeds"
        + ("; open diamonds are published figures" if published else "")
        + (f"; vertical lines: {', '.join(lines)}." if lines else "."),
        figsize=(8.2, 0.29 * len(rows) + 1.5),
    )
    place = np.arange(len(rows))[::-1]
    for y, (row, summary) in zip(place, rows.items(), strict=True):
        ax.plot(summary["raw"], [y] * summary["n"], "o", color=PALETTE[7], markersize=4, zorder=2)
        if summary["n"] >= 3 and summary["low"] is not None:
            ax.plot([summary["low"], summary["high"]], [y, y], color="black", linewidth=1.5)
        ax.plot(summary["mean"], y, "o", color="black", markersize=5, zorder=3)
        if row in published:
            ax.plot(
                published[row], y, "D", mfc="none", mec=PALETTE[3], markersize=6, zorder=4,
                label="published",
            )  # fmt: skip
    for (colour, style), (label, value) in zip(LINES[: len(lines)], lines.items(), strict=True):
        ax.axvline(value, color=colour, linestyle=style, linewidth=1.6, label=label)
    raw = [v for s in rows.values() for v in s["raw"]] + [*published.values(), *lines.values()]
    raw += [s[end] for s in rows.values() for end in ("low", "high")
            if s["n"] >= 3 and s[end] is not None]  # fmt: skip
    margin = 0.06 * (max(raw) - min(raw)) + 1e-3
    ax.set(yticks=place, xlabel="accuracy", xlim=(min(raw) - margin, max(raw) + margin))
    ax.set_yticklabels(list(map(_spoken, rows)), fontsize=9)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if handles:
        fig.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=9)
    return fig


def _spoken(row: str) -> str:
    """A row's name for the reader."""
    kind, _, setting = row.partition("/")
    return f"{KINDS[kind]}: {setting.replace('/', ' ')}" if kind in KINDS else row


def length_plot(by_model: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Accuracy over the review's length: rows of `review_analysis.by_length` for "cell/pooling"."""
    poolings = sorted({name.split("/")[1] for name in by_model})
    fig, axes = new_figure(
        "accuracy_over_length",
        "Test accuracy over the length of a review, mean of the seeds with 95 % Wilson intervals "
        "of the number of reviews in a range. One panel for each vector of a review: "
        f"{' and '.join(poolings)}; RNN, LSTM and GRU in three colours, a little apart. The axis "
        "of the lengths is logarithmic.",
        ncols=len(poolings),
        figsize=(4.6 * len(poolings) + 0.4, 3.6),
        sharey=True,
        squeeze=False,
    )
    for ax, pooling in zip(axes[0], poolings, strict=True):
        for shift, cell in zip((0.97, 1.0, 1.03), CELL_COLOURS, strict=True):
            rows = by_model.get(f"{cell}/{pooling}")
            if not rows:
                continue
            x = np.array([row["length"] for row in rows]) * shift
            y = np.array([row["accuracy"] for row in rows])
            error = [y - [r["low"] for r in rows], [r["high"] for r in rows] - y]
            ax.errorbar(
                x, y, yerr=np.clip(error, 0, None), fmt="o-", color=CELL_COLOURS[cell],
                markersize=4, capsize=2, linewidth=1.3, label=NAMES[cell],
            )  # fmt: skip
        ax.set(
            xscale="log", xlabel="words in a review (log scale)", title=f"review vector: {pooling}"
        )
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_xticks(ticks := _ticks(by_model), [f"{t:g}" for t in ticks], minor=False)
        ax.minorticks_off()
    axes[0][0].set_ylabel("test accuracy")
    handles: dict[str, Any] = {}
    for ax in axes[0]:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return fig


def _ticks(by_model: Mapping[str, Sequence[Mapping[str, float]]]) -> list[float]:
    lengths = [row["length"] for rows in by_model.values() for row in rows]
    return [t for t in (10, 20, 50, 100, 200, 500, 1000) if min(lengths) <= t <= max(lengths)]


def reading_plot(name: str, words: Sequence[str], curves: Mapping[str, np.ndarray]) -> Figure:
    """P(positive) after each word of a review; `curves[model]` is (T,)."""
    fig, ax = new_figure(
        name,
        f"The probability of 'positive' after each word of a review of {len(words)} words, as if "
        f"it ended there. One line for each of: {', '.join(curves)}. The words stand below; the "
        "dotted line is one half.",
        figsize=(max(7.0, 0.17 * len(words) + 1.5), 3.6),
    )
    for colour, (model, values) in zip(PALETTE, curves.items(), strict=False):
        ax.plot(np.arange(len(words)), values, color=colour, linewidth=1.6, label=model)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(words) - 0.5), ylabel="P(positive)")
    ax.set_xticks(np.arange(len(words)), words, rotation=90, fontsize=7)
    ax.legend(loc="upper right", fontsize=8)
    return fig


def small_curves(runs: Mapping[str, np.ndarray], published: Sequence[tuple[int, float]]) -> Figure:
    """Accuracy over the epochs on the small study's held-out reviews: `runs[setting]` (seeds, K).

    `published` holds (epoch, accuracy) of the source.
    """
    fig, ax = new_figure(
        "small_study_curves",
        "Accuracy on the held-out reviews over the epochs, one colour for each of: "
        f"{'; '.join(runs)}. Thin lines are seeds, thick ones their means; the dotted line is one "
        "half" + ("; open circles are the published figures." if published else "."),
        figsize=(7.6, 3.8),
    )
    for colour, (setting, values) in zip(PALETTE, runs.items(), strict=False):
        epochs = np.arange(1, values.shape[1] + 1)
        ax.plot(epochs, values.T, color=colour, linewidth=0.8, alpha=0.6)
        ax.plot(epochs, values.mean(0), color=colour, linewidth=2, label=setting)
    if published:
        ax.plot(*zip(*published, strict=True), "o", color="black", mfc="none", label="published")
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set(xlabel="epoch", ylabel="accuracy")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8, ncols=2)
    return fig


def stack_plot(runs: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Gradient norm, distance moved and training accuracy of each run over the epochs, (K,)."""
    quantities = {
        "gradient_norm": "gradient norm",
        "moved": "distance from the start",
        "train_accuracy": "training accuracy",
    }
    fig, axes = new_figure(
        "two_layer_stack",
        "Three panels over the epochs for the handwritten two-layer LSTM: the gradient's norm and "
        "the relative distance of the parameters from their start, both on logarithmic axes, and "
        f"the training accuracy. One colour for each of: {'; '.join(runs)}. Lines of trainings "
        "that stand still lie on each other.",
        ncols=3,
        figsize=(11.5, 3.6),
    )
    for ax, (quantity, label) in zip(axes, quantities.items(), strict=True):
        for colour, (setting, found) in zip(PALETTE, runs.items(), strict=False):
            values = np.asarray(found[quantity], dtype=float)
            ax.plot(np.arange(1, len(values) + 1), values, ".-", color=colour, label=setting)
        ax.set(xlabel="epoch", title=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if quantity != "train_accuracy":
            ax.set_yscale("log")
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    return fig


def speed_plot(seconds: Mapping[str, Summary]) -> Figure:
    """Seconds of an epoch of 25,000 reviews, each round a dot, the median a bar."""
    fig, ax = new_figure(
        "epoch_seconds",
        "Bars: the median seconds of an epoch of 25,000 reviews, one for each of: "
        f"{'; '.join(seconds)}. Dots are the single rounds.",
        figsize=(7.0, 2.2),
    )
    place = np.arange(len(seconds))[::-1]
    for y, colour, summary in zip(place, PALETTE, seconds.values(), strict=False):
        ax.barh(y, summary["median"], color=colour, height=0.6)
        ax.plot(summary["raw"], [y] * summary["n"], "o", color="black", markersize=4)
    ax.set(yticks=place, xlabel="seconds an epoch", xlim=(0, None))
    ax.set_yticklabels(list(seconds))
    return fig
