"""The plots of the chapter on film reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labkit.measure.plots import COLOURS, PALETTE, new_figure

CELLS = COLOURS | {"rnn": COLOURS["srn"]}


def corpus_plot(length: np.ndarray, rating: np.ndarray, max_len: int) -> Figure:
    """How long the reviews are, in words, and how they are rated; both (N,)."""
    longest = np.percentile(length, 99.5)
    fig, (left, right) = new_figure(
        "corpus",
        f"Left: a histogram of the reviews' lengths in words, up to {longest:.0f}, which 0.5 % "
        f"exceed; a dashed line marks the {max_len} words that the models read at most, unless it "
        "lies beyond. Right: bars, one for each rating from 1 to 10, with no bars at 5 and 6, "
        "negative and positive in two colours.",
        ncols=2,
        figsize=(9.0, 3.2),
    )
    sns.histplot(x=length, bins=50, binrange=(0, longest), color=PALETTE[0], ax=left)
    left.axvline(max_len, color="black", linestyle="--", linewidth=1)
    left.set(xlabel="words in a review", ylabel="reviews", xlim=(0, longest))
    values, counts = np.unique(rating, return_counts=True)
    right.bar(values, counts, color=[PALETTE[1 if v < 6 else 2] for v in values])
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
    published = published or {}
    columns, rows = min(4, len(panels)), -(-len(panels) // 4)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    fig, axes = new_figure(
        name,
        f"{what}; panels: {'; '.join(panels)}. One colour for each of: {'; '.join(labels)}; lines "
        "are means over the seeds, bands reach from the lowest seed to the highest, and equal "
        "lines lie on each other" + ("; open circles are published." if published else "."),
        rows,
        columns,
        figsize=(figsize[0] * columns + 0.4, figsize[1] * rows + 0.7),
        sharey=not log,
        squeeze=False,
    )
    for ax, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for label, values in lines.items():
            seeds, K = np.shape(values)
            sns.lineplot(
                x=np.tile(range(1, K + 1) if x is None else x, seeds), y=np.ravel(values),
                errorbar=("pi", 100), color=CELLS.get(label, PALETTE[labels.index(label)]),
                label=label, legend=False, ax=ax,
            )  # fmt: skip
        if points := published.get(title):
            style = {"color": "black", "mfc": "none", "markersize": 4, "linewidth": 1}
            ax.plot(list(points), list(points.values()), "o--", label="published", **style)
        ax.set(xlabel=xlabel, yscale="log" if title in log else "linear")
        ax.set_title(title, fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    _legend(fig, axes.flat)
    return fig


def _legend(fig: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all axes, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        fig.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=9)


def dots(
    name: str,
    what: str,
    rows: Mapping[str, Mapping[str, Any]],
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
    raw = [(value, row) for row, summary in rows.items() for value in summary["raw"]]
    x, y = zip(*raw, strict=True)
    sns.stripplot(x=x, y=y, orient="h", jitter=False, size=4, color=PALETTE[7], ax=ax)
    for place, (row, summary) in enumerate(rows.items()):
        centre, error = summary[summary["statistic"]], None
        if summary["n"] >= 3 and summary["low"] is not None:
            error = [[centre - summary["low"]], [summary["high"] - centre]]
        ax.errorbar(centre, place, xerr=error, fmt="o", color="black", markersize=5, zorder=3)
        if row in published:
            style = {"mfc": "none", "mec": PALETTE[3], "markersize": 6, "zorder": 4}
            ax.plot(published[row], place, "D", label="published", **style)
    for k, (label, value) in enumerate(lines.items()):
        style = {"color": PALETTE[(2, 4, 1, 0)[k]], "linestyle": ":" if k < 2 else "--"}
        ax.axvline(value, linewidth=1.6, label=label, **style)
    ax.set(xlabel=xlabel, ylabel="", ylim=(len(rows) - 0.5, -0.5))
    ax.tick_params(axis="y", labelsize=9)
    _legend(fig, [ax])
    return fig


def reading_plot(name: str, words: Sequence[str], p: Mapping[str, np.ndarray]) -> Figure:
    """P(positive) after each word of a review; `p[model]` is (T,)."""
    fig, ax = new_figure(
        name,
        f"The probability of 'positive' after each word of a review of {len(words)} words, as if "
        f"it ended there. One line for each of: {', '.join(p)}. The words stand below; the dotted "
        "line is one half.",
        figsize=(max(7.0, 0.17 * len(words) + 1.5), 3.6),
    )
    for colour, (model, values) in zip(PALETTE, p.items(), strict=False):
        ax.plot(np.arange(len(words)), values, color=colour, linewidth=1.6, label=model)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(words) - 0.5), ylabel="P(positive)")
    ax.set_xticks(np.arange(len(words)), words, rotation=90, fontsize=7)
    ax.legend(loc="upper right", fontsize=8)
    return fig
