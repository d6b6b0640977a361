"""The plots of the chapter on BERT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from labkit.measure.plots import PALETTE, new_figure

# one colour and one sign for each rival and each pooling, the same in every plot
LOOKS = {
    "fine-tuned": (PALETTE[0], "o"),
    "frozen": (PALETTE[2], "s"),
    "random start": (PALETTE[4], "X"),
    "recurrent": (PALETTE[1], "^"),
    "linear": (PALETTE[7], "D"),
    "cls": (PALETTE[0], "o"),
    "mean": (PALETTE[2], "s"),
    "last_position": (PALETTE[1], "^"),
}


def pieces_plot(words: np.ndarray, pieces: np.ndarray, max_len: int) -> Figure:
    """How long reviews are in words and in word pieces, (N,) each, and where BERT stops reading."""
    cut = float((pieces > max_len).mean())
    fig, ax = new_figure(
        "word_pieces",
        "Histograms of the reviews' lengths in words and, further to the right, in word pieces; "
        f"the dashed line marks the {max_len} pieces that are read, beyond which {cut:.0%} of the "
        "reviews go on.",
        figsize=(7.0, 3.0),
    )
    longest = np.percentile(pieces, 99)
    lengths = {"words": words[words <= longest], "pieces": pieces[pieces <= longest]}
    sns.histplot(lengths, bins=50, element="step", palette=PALETTE[:2], ax=ax)
    ax.axvline(max_len, color="black", linestyle="--", linewidth=1)
    ax.set(xlabel="length of a review in words or pieces", ylabel="reviews", xlim=(0, longest))
    return fig


def head_plot(tokens: Sequence[str], attention: np.ndarray) -> Figure:
    """The attention of one head, (T, T): each row is a piece that asks, each column one asked."""
    fig, ax = new_figure(
        "one_head",
        f"A heat map of the attention of one head over the {len(tokens)} pieces "
        f"{' '.join(tokens)}. A row is the piece that asks, a column the piece that is asked, and "
        "every row sums to 1; darker is more.",
        figsize=(0.32 * len(tokens) + 2.2, 0.3 * len(tokens) + 1.4),
    )
    _heat_map(ax, attention, max(0.25, float(attention.max())), "attention", square=True)
    place = np.arange(len(tokens)) + 0.5
    ax.set_xticks(place, tokens, rotation=90, fontsize=8)
    ax.set_yticks(place, tokens, rotation=0, fontsize=8)
    ax.set(xlabel="asked", ylabel="asks")
    return fig


def _heat_map(ax: Any, values: np.ndarray, highest: float, label: str, **options: Any) -> None:
    ax.grid(False)
    bar = {"label": label, "extend": "max" if values.max() > highest else "neither"}
    sns.heatmap(values, vmin=0, vmax=highest, cmap="Blues", cbar_kws=bar, ax=ax, **options)


def rate_plot(rates: Mapping[str, Sequence[float]]) -> Figure:
    """The share of the learning rate that the steps of a training take, by schedule (steps,)."""
    fig, ax = new_figure(
        "schedules",
        "The share of the learning rate over the steps of one training, a line for each schedule: "
        f"{', '.join(rates)}.",
        figsize=(6.4, 2.6),
    )
    sns.lineplot({name: np.array(values) for name, values in rates.items()}, lw=2, ax=ax)
    ax.set(xlabel="step", ylabel="share of the learning rate", ylim=(0, None))
    ax.legend(fontsize=8)
    return fig


def size_plot(
    name: str, about: str, curves: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> Figure:
    """Held-out accuracy over the number of training reviews: `curves[label][size]`.

    A value has mean, low and high, which may be None, raw, the values of the seeds, and n, if it is
    a summary over seeds; `about` says what the bars from low to high are.
    """
    sizes = sorted({size for by_size in curves.values() for size in by_size})
    fig, ax = new_figure(
        name,
        "Accuracy on the held-out reviews over the number of training reviews, which are the same "
        f"for all; one line and sign for each of: {', '.join(curves)}. {about} The dotted line is "
        "chance. The axis of the reviews is logarithmic, and the lines are shifted a little "
        "sideways.",
        figsize=(7.6, 4.2),
    )
    for shift, (label, by_size) in zip(
        np.linspace(0.94, 1.06, len(curves)), curves.items(), strict=True
    ):
        colour, marker = LOOKS[label]
        x, means = np.array(list(by_size)) * shift, [v["mean"] for v in by_size.values()]
        ax.plot(x, means, f"{marker}-", color=colour, markersize=6, linewidth=1.2, label=label)
        for place, value in zip(x, by_size.values(), strict=True):
            ax.plot([place] * len(value["raw"]), value["raw"], ".", color=colour, alpha=0.6)
            if value["low"] is not None and value.get("n", 3) >= 3:  # of two it fills the plot
                ax.vlines(place, value["low"], value["high"], color=colour, linewidth=1.4)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="training reviews (log scale)", ylabel="held-out accuracy")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_ylim(max(0.0, min(0.48, ax.get_ylim()[0])), min(1.02, ax.get_ylim()[1]))
    fig.legend(loc="outside lower center", ncols=5, fontsize=9)
    return fig


def cost_plot(costs: Mapping[str, Sequence[Any]]) -> Figure:
    """Held-out accuracy over the parameters, and over the seconds of a training.

    Under "rival" (keys of `LOOKS`), "parameters", "seconds" and "accuracy" one value for each.
    """
    fig, axes = new_figure(
        "cost",
        "Held-out accuracy against the number of parameters (left) and the seconds of a training "
        f"(right), both on logarithmic axes, one point for each of: {', '.join(costs['rival'])}.",
        ncols=2,
        figsize=(9.4, 3.6),
        sharey=True,
    )
    palette, markers = ({name: look[k] for name, look in LOOKS.items()} for k in (0, 1))
    looks = {"palette": palette, "markers": markers, "s": 80, "edgecolor": "black"}
    for ax, what in zip(axes, ("parameters", "seconds"), strict=True):
        sns.scatterplot(costs, x=what, y="accuracy", hue="rival", style="rival", ax=ax, **looks)
        ax.set(xscale="log", ylabel="held-out accuracy")
        ax.margins(x=0.12, y=0.12)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[1].set_xlabel("seconds of training")
    axes[1].get_legend().remove()
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
    _heat_map(top, received, limit, "share", yticklabels=range(1, len(received) + 1))
    top.set_ylabel("layer")
    place = np.arange(len(tokens)) + 0.5
    bottom.bar(place, effect, color=[PALETTE[0] if v > 0 else PALETTE[1] for v in effect])
    bottom.axhline(0, color="black", linewidth=0.8)
    bottom.set_xticks(place, tokens, rotation=90, fontsize=7)
    bottom.set(ylabel="effect on P(positive)", xlim=(0, len(tokens)))
    return fig
