"""What the chapter on film reviews shows: two kinds of plot, and its two diagrams."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from labkit.measure.claims import MIN_SEEDS
from labkit.measure.diagrams import arrow, box, canvas, label
from labkit.measure.plots import COLOURS, PALETTE, legend_below, new_figure
from labkit.measure.statistics import Measure

INKS = COLOURS | {"rnn": COLOURS["srn"]}
CELLS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
LINEAR = {"bag of words": "binary", "words and pairs": "tfidf_pairs"}
NETWORKS = {f"{CELLS[c]}, {p}": f"a/{c}/{p}" for p in ("last", "mean") for c in CELLS}
NETWORKS |= {"averaged words": "baseline/averaged_embeddings", "best recurrent": "best/model"}


def dots(
    name: str,
    what: str,
    measures: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, str]],
    *,
    part: str = "held_out",
    lines: Mapping[str, float] = {"chance": 0.5},
    printed: Mapping[str, float] | None = None,
    yours: tuple[Mapping[str, Any], Mapping[str, str]] = ({}, {}),
) -> Figure:
    """Accuracies in rows, a colour for each group: `groups[group][row]` is a place in `measures`.

    What was not measured is left out. Beside it `printed` values by row, and as crosses the means
    of `yours`, measures and places; `lines` are levels across all rows.
    """

    def found(measures: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Measure]:
        names = {row: f"{place}/{part}_accuracy" for row, place in places.items()}
        return {row: measures[name] for row, name in names.items() if name in measures}

    drawn = {group: of for group, places in groups.items() if (of := found(measures, places))}
    rows = list(dict.fromkeys(row for of_group in drawn.values() for row in of_group))
    marks = {"printed": ("D", 0.3, printed or {})}
    marks["you"] = "x", -0.36, {row: m["mean"] for row, m in found(*yours).items() if row in rows}
    alt = (
        f"{what}. Rows: {'; '.join(rows)}. Colours: {'; '.join(drawn)}. Small dots are seeds, "
        f"large signs their means, bars 95 % intervals from {MIN_SEEDS} seeds on"
        + "; diamonds: printed by the report" * bool(printed)
        + "; crosses: you" * bool(marks["you"][2])
        + f"; vertical lines: {', '.join(lines)}."
    )
    fig, ax = new_figure(name, alt, figsize=(8.2, 0.36 * len(rows) + 1.6))
    for number, (group, of_group) in enumerate(drawn.items()):
        colour, shift = PALETTE[(0, 1, 2, 4, 5)[number]], 0.16 * (number - (len(drawn) - 1) / 2)
        for row, m in of_group.items():
            y = rows.index(row) + shift
            ax.plot(m["raw"], [y] * m["n"], ".", color=colour, alpha=0.45)
            ax.plot(m["mean"], y, "os^Dv"[number], color=colour, markersize=7, label=group)
            if m["n"] >= MIN_SEEDS:
                ax.hlines(y, m["low"], m["high"], color=colour, linewidth=1.6)
    for text, (sign, below, values) in marks.items():
        if values:
            places = [rows.index(row) + below for row in values]
            ax.plot([*values.values()], places, f"k{sign}", mfc="none", markersize=7, label=text)
    for style, (text, level) in zip((":", "-"), lines.items(), strict=False):
        ax.axvline(level, color="black", linestyle=style, linewidth=1, label=text)
    ax.set(xlabel=f"{part.replace('_', '-')} accuracy", ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    legend_below(fig)
    return fig


def accuracies(
    name: str, what: str, measures: Mapping[str, Any], networks: Mapping[str, str] = NETWORKS
) -> Figure:
    """Test accuracies of `networks`, label -> place in `measures`, beside the linear models."""
    lines = {model: measures[f"baseline/{kind}/test_accuracy"] for model, kind in LINEAR.items()}
    return dots(name, what, measures, {"networks": networks}, part="test", lines=lines)


def curves(
    name: str,
    what: str,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    x: Sequence[float] | None = None,
    labels: tuple[str, str] = ("epoch", "accuracy"),
    published: Mapping[int, float] | None = None,
    line: tuple[str, float] | None = None,
    yours: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Quantities over the epochs, or over `x` (K,): `panels[title][label]` is (seeds, K);
    `published[epoch]` goes into the last panel, `line` is a level and its name, `yours[title]`
    (K,) is the reader's."""
    drawn = list(dict.fromkeys(key for by_label in panels.values() for key in by_label))
    alt = (
        f"{what}; panels: {'; '.join(panels)}. One colour for each of: {'; '.join(drawn)}; lines "
        "are means over the seeds, bands reach from the lowest seed to the highest"
        + ("; open circles: published" if published else "")
        + ("; crosses: your run" if yours else "")
        + (f"; dotted: {line[0]}." if line else ".")
    )
    size = {"ncols": len(panels), "figsize": (max(7.6, 3.8 * len(panels) + 0.8), 3.6)}
    fig, axes = new_figure(name, alt, sharey=True, squeeze=False, **size)
    for ax, (title, by_label) in zip(axes[0], panels.items(), strict=True):
        for key, values in by_label.items():
            seeds, K = np.shape(values)
            steps = np.tile(range(1, K + 1) if x is None else x, seeds)
            ink = INKS.get(key, PALETTE[drawn.index(key)])
            style = {"errorbar": ("pi", 100), "color": ink, "label": CELLS.get(key, key)}
            sns.lineplot(x=steps, y=np.ravel(values), legend=False, ax=ax, **style)
        if line:
            ax.axhline(line[1], color="black", linewidth=1.2, linestyle=":", label=line[0])
        if title in (yours or {}):
            steps = range(1, len(yours[title]) + 1)
            ax.plot(steps, yours[title], "x--", color="black", linewidth=1, label="you")
        ax.set_xlabel(labels[0])
        ax.set_title(title, fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if published:
        looks = {"color": "black", "mfc": "none", "linewidth": 1}
        axes[0, -1].plot([*published], [*published.values()], "o--", label="published", **looks)
    axes[0, 0].set_ylabel(labels[1])
    legend_below(fig)
    return fig


def padding_diagram() -> Figure:
    """Three ways to lay a short review into a batch, and the state that stands for it."""
    alt = (
        "The review 'a dull film' in a batch of six steps, three times. Unread: the state after "
        "'film' is taken, three steps of padding are not read. Behind: they are read, and the "
        "state after them is taken. In front: they are read first, then the words."
    )
    fig, ax = canvas("padding", alt, 8.2, 2.9)
    words, pads = ["a", "dull", "film"], ["pad"] * 3
    ways = {"unread": (words + pads, 2), "behind": (words + pads, 5), "in front": (pads + words, 5)}
    for y, (way, (steps, last)) in zip((2.4, 1.5, 0.6), ways.items(), strict=True):
        label(ax, 0.75, y, way)
        boxes = [
            box(ax, 1.95 + 0.85 * k, y, t, "grey" if t == "pad" else "blue", width=0.6, height=0.4)
            for k, t in enumerate(steps)
        ]
        for before, after in itertools.pairwise(boxes[: last + 1]):
            arrow(ax, before.right, after.left, colour="blue")
        colour, (x, _) = "orange" if way == "behind" else "green", boxes[last].bottom
        arrow(ax, (x, y - 0.2), (x, y - 0.45), (7.3, y - 0.45), colour=colour)
        label(ax, 7.6, y - 0.45, f"$h_{last + 1}$", colour)
    return fig


def bidirectional_diagram() -> Figure:
    """Both directions over four words: where each has read all, and where it has read one."""
    alt = (
        "A bidirectional layer over 'not a good film'. The forward cells have read all four words "
        "at 'film', the backward cells at 'not'. A frame marks the last step, at 'film': there the "
        "backward cell has read one word."
    )
    fig, ax = canvas("bidirectional", alt, 8.2, 3.1)
    words = [box(ax, 1.6 + 1.5 * k, 1.3, t) for k, t in enumerate(("not", "a", "good", "film"))]
    rows = {"backward": (2.2, [4, 3, 2, 1], 0, -1), "forward": (0.4, [1, 2, 3, 4], 3, 1)}
    for way, (y, read, end, step) in rows.items():
        label(ax, 0.55, y, way)
        cells = [
            box(ax, word.x, y, f"read {n}", "green" if k == end else "blue")
            for k, (word, n) in enumerate(zip(words, read, strict=True))
        ]
        for a, b in itertools.pairwise(cells[::step]):
            arrow(ax, *((a.right, b.left) if step > 0 else (a.left, b.right)), colour="blue")
        for word, cell in zip(words, cells, strict=True):
            arrow(ax, *((word.bottom, cell.top) if step > 0 else (word.top, cell.bottom)))
    ax.add_patch(Rectangle((5.5, 0.05), 1.2, 2.5, fill=False, edgecolor="#d55e00", linewidth=2))
    label(ax, 6.1, 2.8, "the last step", "orange")
    label(ax, 7.45, 2.2, "has read one", "orange")
    label(ax, 7.45, 0.4, "has read all", "green")
    return fig
