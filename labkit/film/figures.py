"""The plots of the chapter on film reviews."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labkit.measure.plots import COLOURS, PALETTE, legend_below, new_figure
from labkit.measure.statistics import Measure

CELLS = COLOURS | {"rnn": COLOURS["srn"]}


def curves(
    name: str,
    what: str,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    published: Mapping[str, Mapping[int, float]] | None = None,
    figsize: tuple[float, float] = (2.9, 2.6),
) -> Figure:
    """Quantities over the epochs, from 1: `panels[title][label]` is (seeds, K).

    `published[title]` holds published values by epoch; `figsize` is that of one panel.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    fig, axes = new_figure(
        name,
        f"{what}; panels: {'; '.join(panels)}. One colour for each of: {'; '.join(labels)}; lines "
        "are means over the seeds, bands reach from the lowest seed to the highest, and equal "
        "lines lie on each other" + ("; open circles are published." if published else "."),
        ncols=len(panels),
        figsize=(figsize[0] * len(panels) + 0.4, figsize[1] + 0.7),
        sharey=True,
        squeeze=False,
    )
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, values in lines.items():
            seeds, K = np.shape(values)
            sns.lineplot(
                x=np.tile(range(1, K + 1), seeds), y=np.ravel(values),
                errorbar=("pi", 100), color=CELLS.get(label, PALETTE[labels.index(label)]),
                label=label, legend=False, ax=ax,
            )  # fmt: skip
        if points := (published or {}).get(title):
            looks = {"color": "black", "mfc": "none", "linewidth": 1}
            ax.plot(list(points), list(points.values()), "o--", label="published", **looks)
        ax.set_xlabel("epoch")
        ax.set_title(title, fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(fig)
    return fig


def dots(
    name: str,
    what: str,
    rows: Mapping[str, Measure],
    *,
    lines: Mapping[str, float] | None = None,
    xlabel: str = "accuracy",
) -> Figure:
    """One row for each summary in `rows`: every seed a dot, the centre with its 95 % interval.

    `lines` are reference values by name.
    """
    lines = lines or {}
    fig, ax = new_figure(
        name,
        f"{what}. One row for each of: {'; '.join(rows)}. Grey dots are seeds or runs, "
        "black dots their centres with 95 % intervals where there are at least three"
        + (f"; vertical lines: {', '.join(lines)}." if lines else "."),
        figsize=(8.2, 0.29 * len(rows) + 1.5),
    )
    for place, summary in enumerate(rows.values()):
        centre, error = summary[summary["statistic"]], None
        if summary["n"] >= 3 and summary["low"] is not None:
            error = [[centre - summary["low"]], [summary["high"] - centre]]
        ax.plot(summary["raw"], [place] * summary["n"], "o", color=PALETTE[7], markersize=4)
        ax.errorbar(centre, place, xerr=error, fmt="o", color="black", markersize=5, zorder=3)
    for colour, style, (label, value) in zip((2, 4, 1, 0), "::--", lines.items(), strict=False):
        ax.axvline(value, linewidth=1.6, color=PALETTE[colour], linestyle=style, label=label)
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    legend_below(fig)
    return fig
