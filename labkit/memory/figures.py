"""What chapter 02 shows: its plots, and its rows of the report; `panels` serves chapter 03 too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import setp
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.measure import plots
from labkit.measure.claims import MIN_SEEDS, MISSING, Row, number_row
from labkit.measure.plots import COLOURS, LABELS, PALETTE
from labkit.measure.statistics import Measure
from labkit.memory.training import place

FIRST_LOSS = "published/lstm/zero/trained/first_step_loss"  # which write-up A printed
SOURCES = {"nndl-a": "write-up A", "nndl-b": "write-up B", "nndl-c": "rerun of A"}
MARKERS = dict(zip(SOURCES, "s^D", strict=True))
INKS = {"SRN": COLOURS["srn"], "LSTM": COLOURS["lstm"]}  # what a label holds -> its colour
INKS |= {"zero start": PALETTE[0], "xavier start": PALETTE[1]}
INKS |= {"falls": PALETTE[0], "rises": PALETTE[1], "untrained": PALETTE[2], "permuted": PALETTE[7]}
COMMAND = "`python -m labkit run 02_digit_sum_sweep --profile cpu`"
UNTRAINED = ("–", MISSING, f"this run did not train it; {COMMAND} does")

Panels = Mapping[str, Mapping[str, Any]]  # title -> label -> what is drawn
MARKS = (
    "Every seed is a faint line with the median strong, or a dot beside the mean and, from "
    f"{MIN_SEEDS} seeds on, its 95 % interval."
)


class PublishedRow(NamedTuple):
    """Accuracies that a source printed, each of a single seed."""

    source: str
    label: str
    setting: str  # start/embedding, as the source's code has it
    cell: str
    quantity: str  # dev_accuracy or test_accuracy
    values: dict[int, float]  # by length


def published_rows(published: Mapping[str, Any]) -> Iterator[PublishedRow]:
    """Every row of accuracies of chapter 02 in data/published.toml."""
    tables = published["digit_sum"]
    for source, table in {**tables["lstm"], **tables["rerun"]}.items():
        for key in (key for key in table if key.endswith("_accuracy")):
            cell, quantity = ("lstm", key) if key.count("_") == 1 else key.split("_", 1)
            values = dict(zip(table["lengths"], table[key], strict=True))
            setting, label = f"{table['init']}/{table['embedding']}", LABELS[cell]
            label = f"{SOURCES[source]}, {label}"
            yield PublishedRow(source, label, setting, cell, quantity, values)


def sweep_rows(
    measures: Mapping[str, Measure], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The report's rows of chapter 02, by source: what was printed beside our seeds."""
    table = published["digit_sum"]
    groups: dict[str, list[Row]] = {}
    for source, _, setting, cell, quantity, values in published_rows(published):
        heading = "{}: {} start, embedding {}".format(source, *setting.split("/"))
        split = quantity.removesuffix("_accuracy")
        facts = {"higher_is_better": True, "examples": table[f"n_{split}"]}
        for length, value in values.items():
            what = f"{cell.upper()}, {length} digits, {split} accuracy"
            name = f"{place('published', cell, setting, length)}/{quantity}"
            trained = setting in settings["settings"] and length in settings["lengths"]
            row = number_row(what, value, measures, name, **facts) if trained else None
            groups.setdefault(heading, []).append(row or Row(what, f"{value:.2f}", *UNTRAINED))
    what, loss = "LSTM, loss at the first step", table["first_step_loss"]
    first = Row(what, str(loss), *UNTRAINED)
    if "zero/trained" in settings["settings"]:
        first = number_row(what, loss, measures, FIRST_LOSS, higher_is_better=None)
    next(iter(groups.values())).append(first)
    return groups


def panels(
    name: str, what: str, content: Panels, xlabel: str, ylabel: str, ncols: int = 0,
    width: float = 3.6, yours: Panels | None = None, you: str = "you",
) -> Figure:  # fmt: skip
    """Panels of `width` (inches) with shared axes; `content[title][label]` is drawn by its kind.

    x (K,) and values (seeds, K) become a faint line a seed and a strong median; a mapping x ->
    summary dots, means (joined where x is a length) and intervals; a `PublishedRow` open markers;
    a float a level. `what` begins the alternative text. `yours` holds the reader's own results
    under the same titles and labels; black crosses, labelled `you`, stand for them.
    """
    labels = dict.fromkeys(label for drawn in content.values() for label in drawn)
    alt = f"{what}. {MARKS} Drawn: {'; '.join(labels)}. Panels: {'; '.join(content)}."
    if yours:
        alt += f" Black crosses, {you}: the reader's own run."
    ncols = ncols or len(content)
    nrows = len(content) // ncols
    size = {"figsize": (ncols * width + 0.6, nrows * 2.8 + 0.8), "squeeze": False}
    fig, axes = plots.new_figure(name, alt, nrows, ncols, sharex=True, sharey=True, **size)
    setp(axes[-1], xlabel=xlabel)
    setp(axes[:, 0], ylabel=ylabel)
    for ax, (title, drawn) in zip(axes.flat, content.items(), strict=True):
        ax.set_title(title, fontsize=10)
        for side, (label, value) in zip((-1, 1, *[0] * len(drawn)), drawn.items(), strict=False):
            ink = next((ink for part, ink in INKS.items() if part in label), "black")
            if isinstance(value, PublishedRow):
                style = {"ls": "", "mfc": "none", "mec": ink, "zorder": 4, "label": label}
                ax.plot(value.values.keys(), value.values.values(), MARKERS[value.source], **style)
            elif isinstance(value, float):
                ax.axhline(value, color=ink, ls=":", lw=1.2, label=label)
            elif isinstance(value, tuple):
                plots.seed_lines(ax, *value, ink, label)
            else:
                _strip(ax, side, value, ink, label)
            if mine := (yours or {}).get(title, {}).get(label):
                _crosses(ax, side, mine, you)
    axes[0, 0].set_ylim(0, None)
    plots.legend_below(fig)
    return fig


def _strip(ax: Axes, side: int, by_x: Mapping[Any, Measure], color: Any, label: str) -> None:
    """Every seed a dot, the mean a level line; with enough seeds its interval an upright line."""
    lengths = all(isinstance(x, int) for x in by_x)
    ticks = np.array([*by_x] if lengths else range(len(by_x)))
    ax.set_xticks(ticks, list(by_x))
    unit, means = 0.6 if lengths else 0.2, [measure["mean"] for measure in by_x.values()]
    style = {"ms": 12, "mew": 2.4, "color": color, "label": label}
    ax.plot(ticks + side * unit, means, "_-" if lengths else "_", **style)
    for x, measure in zip(ticks + side * unit, by_x.values(), strict=True):
        spread = np.linspace(-0.5, 0.5, measure["n"]) * unit
        ax.scatter(x + spread, measure["raw"], s=12, color=color, alpha=0.5, lw=0)
        if measure["n"] >= MIN_SEEDS:
            ax.vlines(x, measure["low"], measure["high"], color=color, lw=1.4)


def _crosses(ax: Axes, side: int, mine: Any, label: str) -> None:
    """The reader's own seeds over what `panels` draws: medians on lines, every one beside dots."""
    style = {"ls": "", "marker": "x", "ms": 5, "color": "black", "zorder": 5, "label": label}
    if isinstance(mine, tuple):
        ax.plot(mine[0], np.median(mine[1], axis=0), **style)
        return
    shift = 1.1 if all(isinstance(x, int) for x in mine) else 0.34
    for k, (x, measure) in enumerate(mine.items()):
        at = (x if isinstance(x, int) else k) + side * shift
        ax.plot(np.full(measure["n"], at), measure["raw"], **style)
