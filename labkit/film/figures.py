"""The plots of the chapter on film reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labkit.measure.plots import COLOURS, PALETTE, legend_below, new_figure
from labkit.measure.statistics import Measure

CELLS = COLOURS | {"rnn": COLOURS["srn"]}
HOLLOW = {"color": "black", "mfc": "none", "label": "published"}


def corpus_plot(length: np.ndarray, rating: np.ndarray, max_len: int) -> Figure:
    """How long the reviews are, in words, and how they are rated; both (N,)."""
    longest = np.percentile(length, 99.5)
    fig, (left, right) = new_figure(
        "corpus",
        f"Left: a histogram of the reviews' lengths in words, up to {longest:.0f}, which 0.5 % "
        f"exceed; a dashed line marks the {max_len} words that the models read at most, unless it "
        "lies beyond. Right: bars, one for each rating from 1 to 10, with no bars at 5 and 6.",
        ncols=2,
        figsize=(9.0, 3.2),
    )
    sns.histplot(x=length, bins=50, binrange=(0, longest), ax=left)
    left.axvline(max_len, color="black", linestyle="--", linewidth=1)
    left.set(xlabel="words in a review", ylabel="reviews", xlim=(0, longest))
    sns.histplot(x=rating, discrete=True, shrink=0.8, ax=right)
    right.set(xlabel="rating", ylabel="reviews", xticks=range(1, 11))
    return fig


def curves(
    name: str,
    what: str,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    x: Sequence[float] | None = None,
    xlabel: str = "epoch",
    published: Mapping[str, Mapping[int, float]] | None = None,
    log: Sequence[str] = (),
    figsize: tuple[float, float] = (2.9, 2.6),
) -> Figure:
    """Quantities over `x` (K,), by default the epochs from 1: `panels[title][label]` is (seeds, K).

    `published[title]` holds published values by epoch; panels in `log` have a logarithmic axis.
    `figsize` is that of one panel.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    fig, axes = new_figure(
        name,
        f"{what}; panels: {'; '.join(panels)}. One colour for each of: {'; '.join(labels)}; lines "
        "are means over the seeds, bands reach from the lowest seed to the highest, and equal "
        "lines lie on each other" + ("; open circles are published." if published else "."),
        ncols=len(panels),
        figsize=(figsize[0] * len(panels) + 0.4, figsize[1] + 0.7),
        sharey=not log,
        squeeze=False,
    )
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, values in lines.items():
            seeds, K = np.shape(values)
            sns.lineplot(
                x=np.tile(range(1, K + 1) if x is None else x, seeds), y=np.ravel(values),
                errorbar=("pi", 100), color=CELLS.get(label, PALETTE[labels.index(label)]),
                label=label, legend=False, ax=ax,
            )  # fmt: skip
        if points := (published or {}).get(title):
            ax.plot(list(points), list(points.values()), "o--", linewidth=1, **HOLLOW)
        ax.set(xlabel=xlabel, yscale="log" if title in log else "linear")
        ax.set_title(title, fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(fig)
    return fig


def dots(
    name: str,
    what: str,
    rows: Mapping[str, Measure],
    *,
    published: Mapping[str, float] | None = None,
    lines: Mapping[str, float] | None = None,
    xlabel: str = "accuracy",
) -> Figure:
    """One row for each summary in `rows`: every seed a dot, the centre with its 95 % interval.

    `published` gives single numbers of the sources by row, `lines` reference values by name.
    """
    published, lines = published or {}, lines or {}
    fig, ax = new_figure(
        name,
        f"{what}. One row for each of: {'; '.join(rows)}. Grey dots are seeds or runs, "
        "black dots their centres with 95 % intervals where there are at least three"
        + ("; open diamonds are published figures" if published else "")
        + (f"; vertical lines: {', '.join(lines)}." if lines else "."),
        figsize=(8.2, 0.29 * len(rows) + 1.5),
    )
    for place, (row, summary) in enumerate(rows.items()):
        centre, error = summary[summary["statistic"]], None
        if summary["n"] >= 3 and summary["low"] is not None:
            error = [[centre - summary["low"]], [summary["high"] - centre]]
        ax.plot(summary["raw"], [place] * summary["n"], "o", color=PALETTE[7], markersize=4)
        ax.errorbar(centre, place, xerr=error, fmt="o", color="black", markersize=5, zorder=3)
        if row in published:
            ax.plot(published[row], place, "D", zorder=4, **HOLLOW)
    for colour, style, (label, value) in zip((2, 4, 1, 0), "::--", lines.items(), strict=False):
        ax.axvline(value, linewidth=1.6, color=PALETTE[colour], linestyle=style, label=label)
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    legend_below(fig)
    return fig


def reading_plot(words: Sequence[str], p: Mapping[str, np.ndarray]) -> Figure:
    """P(positive) after each word of a review; `p[model]` is (T,)."""
    fig, ax = new_figure(
        "typed_sentence",
        f"The probability of 'positive' after each of {len(words)} words, as if the review ended "
        f"there. One line for each of: {', '.join(p)}. The words stand below; the dotted line is "
        "one half.",
        figsize=(max(7.0, 0.17 * len(words) + 1.5), 3.6),
    )
    for model, values in p.items():
        ax.plot(values, label=model)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set(ylim=(-0.02, 1.02), ylabel="P(positive)")
    ax.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
    legend_below(fig)
    return fig
