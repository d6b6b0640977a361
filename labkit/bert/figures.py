"""The plots of the chapter on BERT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from labkit.measure.plots import PALETTE, legend_below, new_figure
from labkit.measure.statistics import Measure


def head_plot(tokens: Sequence[str], attention: np.ndarray) -> Figure:
    """The attention of one head, (T, T): each row is a piece that asks, each column one asked."""
    fig, ax = new_figure(
        "one_head",
        f"A heat map of the attention of one head over the {len(tokens)} pieces "
        f"{' '.join(tokens)}. A row is the piece that asks, a column the piece that is asked, and "
        "every row sums to 1; darker is more.",
        figsize=(0.32 * len(tokens) + 2.2, 0.3 * len(tokens) + 1.4),
    )
    looks = {"vmin": 0, "cmap": "Blues", "square": True, "cbar_kws": {"label": "attention"}}
    highest = max(0.25, float(attention.max()))
    sns.heatmap(attention, vmax=highest, xticklabels=tokens, yticklabels=tokens, ax=ax, **looks)
    ax.tick_params(labelsize=8)
    ax.set(xlabel="asked", ylabel="asks")
    return fig


def size_plot(curves: Mapping[str, Mapping[int, Measure]], max_len: int, words: int) -> Figure:
    """Held-out accuracy over the number of training reviews: `curves[rival][size]`.

    `max_len` and `words` are how much of a review BERT and the other networks read.
    """
    sizes = sorted({size for by_size in curves.values() for size in by_size})
    fig, ax = new_figure(
        "learning_curve",
        "Accuracy on the held-out reviews over the number of training reviews, which are the same "
        f"for all; one line and sign for each of: {', '.join(curves)}. BERT reads {max_len} word "
        f"pieces of a review, recurrent and linear {words} words. Small dots are seeds; bars are "
        "95 % Student intervals of at least three; the dotted line is chance. The axis of the "
        "reviews is logarithmic, and the lines are shifted a little sideways.",
        figsize=(7.6, 4.2),
    )
    for number, (label, by_size) in enumerate(curves.items()):
        colour, shift = PALETTE[number], 1.03 ** (number - (len(curves) - 1) / 2)
        x, means = np.array(list(by_size)) * shift, [v["mean"] for v in by_size.values()]
        ax.plot(x, means, f"{'osX^D'[number]}-", color=colour, linewidth=1.2, label=label)
        for place, value in zip(x, by_size.values(), strict=True):
            ax.plot([place] * value["n"], value["raw"], ".", color=colour, alpha=0.6)
            if value["n"] >= 3:  # of two the bar fills the plot
                ax.vlines(place, value["low"], value["high"], color=colour, linewidth=1.4)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="training reviews (log scale)", ylabel="held-out accuracy")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(fig, ncols=5)
    return fig


def reading_plot(tokens: Sequence[str], received: np.ndarray, effect: np.ndarray) -> Figure:
    """What a review's pieces receive of the attention, (layers, T), above what they matter, (T,).

    `effect` is how much the probability of "positive" falls when a piece is masked.
    """
    fig, (top, bottom) = new_figure(
        "attention_review",
        f"Two panels over the {len(tokens)} pieces of one review. Above, a heat map with a row for "
        "each layer: the share of the attention that a piece receives, mean over heads and asking "
        "pieces; darker is more. Below, bars: by how much the probability of 'positive' falls when "
        "that piece is masked; blue bars speak for positive, orange ones for negative.",
        nrows=2,
        figsize=(max(7.5, 0.19 * len(tokens) + 2), 0.28 * len(received) + 3.2),
        sharex=True,
        height_ratios=(0.28 * len(received) + 0.3, 1.8),
    )
    # [CLS] and [SEP] may receive most; the scale ends where the others can be told apart
    limit = max(float(np.quantile(received, 0.97)), 3 / len(tokens))
    looks = {"vmin": 0, "cmap": "Blues", "cbar_kws": {"label": "share", "extend": "max"}}
    sns.heatmap(received, vmax=limit, yticklabels=range(1, len(received) + 1), ax=top, **looks)
    top.set_ylabel("layer")
    place = np.arange(len(tokens)) + 0.5
    bottom.bar(place, effect, color=[PALETTE[0] if v > 0 else PALETTE[1] for v in effect])
    bottom.set_xticks(place, tokens, rotation=90, fontsize=7)
    bottom.set(ylabel="effect on P(positive)", xlim=(0, len(tokens)))
    return fig
