"""The plots of the chapter on BERT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from labkit.measure.plots import PALETTE, new_figure

Summary = Mapping[str, Any]

# one colour and one sign for each rival, the same in every plot
LOOKS = {
    "fine-tuned": (PALETTE[0], "o"),
    "frozen": (PALETTE[2], "s"),
    "random start": (PALETTE[4], "X"),
    "recurrent": (PALETTE[1], "^"),
    "linear": (PALETTE[7], "D"),
}
POOLINGS = {
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
    edges = np.linspace(0, np.percentile(pieces, 99), 50)
    ax.hist(words, bins=edges, color=PALETTE[0], alpha=0.55, label="words")
    ax.hist(pieces, bins=edges, histtype="step", linewidth=1.8, color=PALETTE[1], label="pieces")
    ax.axvline(max_len, color="black", linestyle="--", linewidth=1, label=f"{max_len} pieces: read")
    ax.set(xlabel="length of a review in words or pieces", ylabel="reviews", xlim=(0, edges[-1]))
    ax.legend()
    return fig


def head_plot(tokens: Sequence[str], attention: np.ndarray, name: str = "one_head") -> Figure:
    """The attention of one head, (T, T): each row is a piece that asks, each column one asked."""
    fig, ax = new_figure(
        name,
        f"A heat map of the attention of one head over the {len(tokens)} pieces "
        f"{' '.join(tokens)}. A row is the piece that asks, a column the piece that is asked, and "
        "every row sums to 1; darker is more.",
        figsize=(0.32 * len(tokens) + 2.2, 0.3 * len(tokens) + 1.4),
    )
    image = ax.imshow(attention, cmap="Blues", vmin=0, vmax=max(0.25, float(attention.max())))
    place = np.arange(len(tokens))
    ax.set_xticks(place, tokens, rotation=90, fontsize=8)
    ax.set_yticks(place, tokens, fontsize=8)
    ax.set(xlabel="asked", ylabel="asks")
    ax.grid(False)
    fig.colorbar(image, ax=ax, label="attention", shrink=0.8)
    return fig


def rate_plot(rates: Mapping[str, Sequence[float]]) -> Figure:
    """The share of the learning rate that the steps of a training take, by schedule (steps,)."""
    fig, ax = new_figure(
        "schedules",
        "The share of the learning rate over the steps of one training, a line for each schedule: "
        f"{', '.join(rates)}.",
        figsize=(6.4, 2.6),
    )
    styles = ("-", "--", ":")
    for colour, style, (label, values) in zip(PALETTE, styles, rates.items(), strict=False):
        ax.plot(np.arange(1, len(values) + 1), values, style, color=colour, lw=2, label=label)
    ax.set(xlabel="step", ylabel="share of the learning rate", ylim=(0, None))
    ax.legend(fontsize=8)
    return fig


def _sizes_axis(ax: Any, sizes: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are the numbers of reviews themselves."""
    ax.set(xscale="log", xlabel="training reviews (log scale)")
    ax.set_xticks(list(sizes), [f"{size:,.0f}" for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def pooling_plot(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Figure:
    """Accuracy of a linear head on frozen vectors: `found[pooling][size]` has accuracy, low, high.

    low and high bound the interval of counting so many reviews.
    """
    sizes = sorted({size for rows in found.values() for size in rows})
    fig, ax = new_figure(
        "pooling",
        "Accuracy on the held-out reviews of a linear head on the frozen encoder's vectors, over "
        f"the number of training reviews; one line for each of: {', '.join(found)}. Bars are 95 % "
        "Wilson intervals of counting the reviews; the dotted line is chance. The axis of the "
        "reviews is logarithmic, and the lines are shifted a little sideways.",
        figsize=(6.8, 3.4),
    )
    for shift, (pooling, rows) in zip((0.96, 1.0, 1.04), found.items(), strict=False):
        colour, marker = POOLINGS[pooling]
        x = np.array(list(rows))
        y = np.array([row["accuracy"] for row in rows.values()])
        low, high = (np.array([row[end] for row in rows.values()]) for end in ("low", "high"))
        error = np.clip([y - low, high - y], 0, None)
        ax.errorbar(
            x * shift, y, yerr=error, fmt=f"{marker}-", color=colour, markersize=5, capsize=2,
            label=pooling,
        )  # fmt: skip
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    _sizes_axis(ax, sizes)
    ax.set_ylabel("held-out accuracy")
    ax.legend()
    return fig


def learning_curve(curves: Mapping[str, Mapping[int, Summary]]) -> Figure:
    """Held-out accuracy over the number of training reviews: `curves[rival][size]` is a summary."""
    sizes = sorted({size for rows in curves.values() for size in rows})
    fig, ax = new_figure(
        "learning_curve",
        "Accuracy on the held-out reviews over the number of training reviews, which are the same "
        f"for all; one line and sign for each of: {', '.join(curves)}. Small dots are seeds; bars "
        "are 95 % Student intervals of the mean where there are at least three seeds. The axis of "
        "the reviews is logarithmic, and the rivals are shifted a little sideways.",
        figsize=(7.6, 4.4),
    )
    shifts = np.linspace(0.93, 1.07, len(curves)) if len(curves) > 1 else [1.0]
    for shift, (rival, rows) in zip(shifts, curves.items(), strict=True):
        colour, marker = LOOKS[rival]
        x = np.array(list(rows)) * shift
        for place, row in zip(x, rows.values(), strict=True):
            ax.plot([place] * row["n"], row["raw"], ".", color=colour, alpha=0.6, markersize=4)
            if row["n"] >= 3 and row["low"] is not None:
                ax.plot([place, place], [row["low"], row["high"]], color=colour, linewidth=1.4)
        means = [row["mean"] for row in rows.values()]
        ax.plot(x, means, f"{marker}-", color=colour, markersize=6, linewidth=1.2, label=rival)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1, label="chance")
    _sizes_axis(ax, sizes)
    raw = [v for rows in curves.values() for row in rows.values() for v in row["raw"]]
    ax.set(ylabel="held-out accuracy", ylim=(min(0.48, min(raw) - 0.02), min(1.0, max(raw) + 0.06)))
    fig.legend(loc="outside lower center", ncols=6, fontsize=9)
    return fig


def epochs_plot(runs: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Loss and accuracy over the epochs: `runs[name]` has train_loss, dev_loss, train_accuracy and
    dev_accuracy, each (seeds, K)."""
    fig, axes = new_figure(
        "epochs",
        "Two panels over the epochs, loss and accuracy. Dashed lines are training, solid ones "
        f"dev, thin ones seeds; one colour for each of: {', '.join(runs)}.",
        ncols=2,
        figsize=(9.0, 3.4),
    )
    for ax, what in zip(axes, ("loss", "accuracy"), strict=True):
        for colour, (name, found) in zip(PALETTE, runs.items(), strict=False):
            for kind, style in (("train", "--"), ("dev", "-")):
                values = np.asarray(found[f"{kind}_{what}"], dtype=float)
                epochs = np.arange(1, values.shape[1] + 1)
                ax.plot(epochs, values.T, style, color=colour, linewidth=0.6, alpha=0.5)
                ax.plot(
                    epochs, values.mean(0), f"o{style}", color=colour, linewidth=1.8, markersize=4,
                    label=f"{name}, {'training' if kind == 'train' else 'dev'}",
                )  # fmt: skip
        ax.set(xlabel="epoch", title=what)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        handlelength=3.5,
    )
    return fig


def cost_plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Held-out accuracy over the parameters, and over the seconds of a training.

    A row has name, rival (a key of `LOOKS`), parameters, seconds and accuracy.
    """
    fig, axes = new_figure(
        "cost",
        "Held-out accuracy against the number of parameters (left) and the seconds of a training "
        f"(right), both on logarithmic axes, one point for each of: "
        f"{', '.join(row['name'] for row in rows)}.",
        ncols=2,
        figsize=(9.4, 3.6),
        sharey=True,
    )
    for ax, what in zip(axes, ("parameters", "seconds"), strict=True):
        for row in rows:
            colour, marker = LOOKS[row["rival"]]
            ax.plot(
                row[what], row["accuracy"], marker, color=colour, markersize=8, mec="black",
                label=row["name"],
            )  # fmt: skip
        ax.set(xscale="log", xlabel=what if what == "parameters" else "seconds of training")
        ax.margins(x=0.12, y=0.12)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylabel("held-out accuracy")
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
    )
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
    image = top.imshow(received, cmap="Blues", vmin=0, vmax=limit, aspect="auto")
    top.set_yticks(np.arange(len(received)), [f"{k}" for k in range(1, len(received) + 1)])
    top.set_ylabel("layer")
    top.grid(False)
    fig.colorbar(image, ax=top, label="share", extend="max")
    place = np.arange(len(tokens))
    bottom.bar(place, effect, color=[PALETTE[0] if v > 0 else PALETTE[1] for v in effect])
    bottom.axhline(0, color="black", linewidth=0.8)
    bottom.set_xticks(place, tokens, rotation=90, fontsize=7)
    bottom.set(ylabel="effect on P(positive)", xlim=(-0.5, len(tokens) - 0.5))
    return fig
