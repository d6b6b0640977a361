"""The plots of `make bench`: the ladder, replicas at once, an epoch of reviews, and growth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from labkit.cells import figures as figures_recurrent
from labkit.cells import ladder
from labkit.measure.plots import PALETTE, new_figure

Measures = Mapping[str, Any]
GROWTH = {"replicas": "replicas", "length": "steps of a sequence", "reviews": "reviews of an epoch"}


def all_figures(measures: Measures) -> dict[str, Figure]:
    """The figures of the sections that `measures` holds."""
    makers: dict[str, Callable[[Measures], Figure]] = {
        "ladder": ladder_figure,
        "replicas": replicas_figure,
        "epoch": epoch_figure,
        "growth": growth_figure,
    }
    return {
        name: make(measures)
        for name, make in makers.items()
        if any(key.startswith(f"{name}/") for key in measures)
    }


def ladder_figure(measures: Measures) -> Figure:
    """The ladder at every size: as the lab runs it, and a row of panels for each other setting."""
    panels: dict[str, dict[str, Any]] = {}
    kinds = {
        "ladder": "",
        "ladder_avx2": "\nnn.LSTM: 256-bit vectors",
        "ladder_malloc": "\nplain malloc",
    }
    for wanted, note in kinds.items():
        for key in measures:
            kind, _, rest = key.partition("/")
            shape, _, name = rest.partition("/")
            rung = name.removesuffix("_to_torch")
            if kind == wanted and rung in ladder.RUNGS and name != rung:
                size = ladder.size_text(tuple(int(n) for n in shape.split("x")))
                panel = panels.setdefault(size + note, {})
                panel[ladder.LABELS[rung]] = measures[key]["raw"]
    return figures_recurrent.ladder_plot(panels, columns=3)


def _found(measures: Measures, name: str) -> tuple[float, float, float]:
    """Median and the interval's bounds; the median itself where there is no interval."""
    found = measures[name]
    middle = found["median"]
    return middle, *(middle if end is None else end for end in (found["low"], found["high"]))


def replicas_figure(measures: Measures) -> Figure:
    """Microseconds of a training step of one model over the length, three ways."""
    lengths = sorted({int(key.split("/")[1]) for key in measures if key.startswith("replicas/")})
    ways = {"naive": "naive loop", "torch": "nn.LSTM", "ensemble": "20 replicas at once"}
    fig, ax = new_figure(
        "replicas",
        "Microseconds that one training step of one digit-sum model takes, over the length of its "
        f"sequences, on logarithmic axes: {', '.join(ways.values())}. Bars are 95 % intervals of "
        "the median.",
        figsize=(6.0, 3.8),
    )
    for number, (way, label) in enumerate(ways.items()):
        values = np.array([_found(measures, f"replicas/{T}/{way}_seconds") for T in lengths]) * 1e6
        spread = np.abs(values[:, 1:] - values[:, :1]).T
        ax.errorbar(lengths, values[:, 0], spread, color=PALETTE[number], marker="o", label=label)
        for T, value in zip(lengths, values[:, 0], strict=True):
            ax.annotate(f"{value:,.0f}", (T, value), (0, 6), textcoords="offset points",
                        ha="center", fontsize=8)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="length T (steps)", ylabel="µs a model and step")
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
    ax.margins(y=0.15)
    fig.legend(loc="outside lower center", ncols=3, fontsize=8)
    return fig


def epoch_figure(measures: Measures) -> Figure:
    """Seconds of an epoch of reviews, each way on one thread and on two."""
    ways = {
        "handwritten": "eight products, padded",
        "naive": "nn.LSTM, padded",
        "grouped": "the lab's way",
    }
    fig, axes = new_figure(
        "epoch",
        "Seconds of an epoch of 25,000 film reviews, on one thread and on two: chapter 01's first "
        "layer with every review padded to 500 words, nn.LSTM likewise, and the lab's way. Bars "
        "are 95 % intervals of the median; the number is the time over the lab's.",
        ncols=2,
        figsize=(8.5, 3.2),
        sharex=True,
    )
    for threads, ax in zip((1, 2), axes, strict=True):
        for row, way in enumerate(ways):
            middle, low, high = _found(measures, f"epoch/{threads}/{way}_seconds")
            ax.barh(row, middle, xerr=[[middle - low], [high - middle]], color=PALETTE[row])
            times = ""
            if way != "grouped":
                times = f" ({_found(measures, f'epoch/{threads}/{way}_to_grouped')[0]:.1f} ×)"
            ax.annotate(f"{middle:.0f} s{times}", (high, row), (4, 0), fontsize=8,
                        textcoords="offset points", va="center")  # fmt: skip
        ax.set_yticks(range(len(ways)), list(ways.values()) if threads == 1 else [""] * 3)
        ax.invert_yaxis()
        ax.margins(x=0.25)
        ax.set(xlabel="seconds", title=f"{threads} thread{'s' if threads > 1 else ''}")
    return fig


def growth_figure(measures: Measures) -> Figure:
    """Time (above) and memory (below) over the size of the work, with the fitted exponents."""
    fig, axes = new_figure(
        "growth",
        "Seconds (upper row) and peak memory (lower row) over replicas trained at once, length of "
        "the sequences and reviews in an epoch, on logarithmic axes, with fitted straight lines; "
        "the number is the line's slope: 1 means twice the work costs twice as much. Memory is "
        "what is needed above a tiny run, for the reviews that of the whole process: an epoch "
        "needs its largest batch, whatever its length.",
        nrows=2,
        ncols=len(GROWTH),
        figsize=(9.5, 5.0),
    )
    rows = {"seconds": ("seconds", 1.0), "bytes": ("peak memory (MB)", 1e-6)}
    for axes_row, (quantity, (label, scale)) in zip(axes, rows.items(), strict=True):
        for ax, (what, name) in zip(axes_row, GROWTH.items(), strict=True):
            parts = [key.split("/") for key in measures if key.startswith(f"growth/{what}/")]
            sizes = sorted({int(part[2]) for part in parts if part[2].isdigit()})
            values = [_found(measures, f"growth/{what}/{n}/{quantity}")[0] * scale for n in sizes]
            slope = measures[f"growth/{what}/exponent_of_{quantity}"]
            ax.plot(sizes, values, "o", color=PALETTE[0])
            middle = np.exp(np.log(values).mean() + slope * (np.log(sizes) - np.log(sizes).mean()))
            ax.plot(sizes, middle, "--", color="black", linewidth=1)
            ax.set(xscale="log", yscale="log", xlabel=name, title=f"exponent {slope:.2f}")
            ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.minorticks_off()
        axes_row[0].set_ylabel(label)
    return fig
