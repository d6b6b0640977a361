"""The plot of the chapter on BERT."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from labkit.measure.plots import PALETTE, legend_below, new_figure
from labkit.measure.statistics import Measure


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
