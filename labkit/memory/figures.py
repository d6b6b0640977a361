"""What chapter 02 shows: its diagram, its plots, and its rows of the report.

`measures` are those of a record, or of this run; `yours`, where given, are the reader's, laid over
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.measure import diagrams, plots
from labkit.measure.claims import MIN_SEEDS, MISSING, Row, number_row
from labkit.measure.plots import COLOURS, LABELS
from labkit.measure.statistics import Measure, paired_difference
from labkit.memory.data import CHANCE
from labkit.memory.training import place

FIRST_LOSS = "published/lstm/zero/trained/first_step_loss"  # which write-up A printed
SOURCES = {"nndl-a": "write-up A", "nndl-b": "write-up B", "nndl-c": "rerun of A"}
MARKERS = dict(zip(SOURCES, "s^D", strict=True))
COMMAND = "`python -m labkit run 02_digit_sum_sweep --profile cpu`"
UNTRAINED = ("–", MISSING, f"this run did not train it; {COMMAND} does")
SETTINGS = {
    "zero/trained": "zero start",
    "zero/frozen": "zero start, frozen embedding",
    "xavier/trained": "Xavier start",
}
SEEDS = (
    f"Every seed is a dot beside the mean with its 95 % interval, drawn from {MIN_SEEDS} seeds on; "
    "crosses are the reader's own seeds, if shown."
)


def accuracy(protocol: str, setting: str, kind: str = "") -> str:
    """The name of a test accuracy in a record, with "{}" for the cell and for the length."""
    return f"{place(protocol, '{}', setting, '{}')}/test_accuracy{kind}"


STEPS = {  # of the opening picture, from the published setting to the sound one
    "zero start\n(write-up A)": accuracy("published", "zero/trained"),
    "zero start, frozen\nembedding (write-up B)": accuracy("published", "zero/frozen"),
    "Xavier start": accuracy("published", "xavier/trained"),
    "Xavier start,\nshuffled": accuracy("shuffled", "xavier/trained"),
    "Xavier start, shuffled,\nsound data": accuracy("sound", "xavier/trained", "_seen_pairs"),
}


# the report


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


# plots


def leads(measures: Mapping[str, Measure], lengths: Sequence[int]) -> dict[str, Measure]:
    """The LSTM's lead over the SRN in test accuracy, seed by seed, averaged over `lengths`; for
    each of `STEPS` that was trained on all of them."""
    found = {}
    for step, name in STEPS.items():
        lstm, srn = ([name.format(cell, n) for n in lengths] for cell in ("lstm", "srn"))
        if {*lstm, *srn} <= measures.keys():
            means = (np.mean([measures[name]["raw"] for name in names], 0) for names in (lstm, srn))
            found[step] = paired_difference(*means, measures[srn[0]]["seeds"])
    return found


def lead(
    measures: Mapping[str, Measure], lengths: Sequence[int], yours: Mapping[str, Measure] = {}
) -> Figure:
    """The picture of the chapter: the LSTM's lead by setting, at the first length and over all."""
    every = ", ".join(map(str, lengths))
    alt = (
        "The LSTM's lead over the SRN in test accuracy. One row for each setting: zero start with "
        "trained and with frozen embedding, Xavier start, then also shuffled, then also on sound "
        f"data. Left at {lengths[0]} digits, right averaged over {every} digits. {SEEDS}"
    )
    titles = {f"{lengths[0]} digits": lengths[:1], f"averaged over {every} digits": lengths}
    fig, axes = _panels("lead", alt, [*titles], "LSTM minus SRN, test accuracy", "", 4.4)
    rows = {step: -k for k, step in enumerate(STEPS)}
    for ax, chosen in zip(axes, titles.values(), strict=True):
        for step, m in leads(measures, chosen).items():
            _dots(ax, rows[step], m, COLOURS["lstm"], across=True)
        for step, m in leads(yours, chosen).items():
            _crosses(ax, m["raw"], [rows[step] - 0.3] * m["n"], m, COLOURS["lstm"])
        ax.axvline(0, color="black", lw=0.8)
    axes[0].set_yticks([*rows.values()], [*rows])
    plots.legend_below(fig)
    return fig


def over_length(
    name: str, what: str, panels: Mapping[str, str], measures: Mapping[str, Measure],
    yours: Mapping[str, Measure] = {}, published: Sequence[PublishedRow] = (),
    chance: Sequence[float] = (CHANCE,),
) -> Figure:  # fmt: skip
    """SRN and LSTM over the length; `panels` maps a title to `accuracy(...)`, and `chance` has a
    level for each panel, or one for all. `what` begins the alternative text."""
    alt = f"{what} of SRN and LSTM over the sequence length; panels: {'; '.join(panels)}. {SEEDS}"
    if published:
        alt += " Open markers are published accuracies, each of one seed."
    alt += " The dotted line is the best constant answer."
    fig, axes = _panels(name, alt, [*panels], "digits", "test accuracy")
    for k, (ax, template) in enumerate(zip(axes, panels.values(), strict=True)):
        for side, cell in ((-0.7, "srn"), (0.7, "lstm")):
            names = {n: template.format(cell, n) for n in range(100)}
            drawn = {n: measures[name] for n, name in names.items() if name in measures}
            x, means = np.array([*drawn]) + side, [m["mean"] for m in drawn.values()]
            ax.plot(x, means, lw=1.2, color=COLOURS[cell], label=LABELS[cell])
            for n, m in drawn.items():
                _dots(ax, n + side, m, COLOURS[cell])
                if mine := yours.get(names[n]):
                    _crosses(ax, [n + 2 * side] * mine["n"], mine["raw"], mine, COLOURS[cell])
            ax.set_xticks([*drawn])
        for row in published:
            if accuracy("published", row.setting) == template:
                _open_markers(ax, row, "none")
        ax.axhline(
            chance[k % len(chance)], color="black", ls=":", lw=1.2, label="always one answer"
        )
        ax.set_ylim(0, 1)
    plots.legend_below(fig)
    return fig


def one_seed_studies(
    measures: Mapping[str, Measure], settings: Sequence[str], lengths: Sequence[int],
    published: Sequence[PublishedRow], yours: Mapping[str, Measure] = {},
) -> Figure:  # fmt: skip
    """The LSTM's test accuracy over the length, one line a seed."""
    titles = [SETTINGS[setting] for setting in settings]
    alt = (
        "What a study with one seed would have printed: test accuracy of the LSTM over the "
        "sequence length, a thin line for each seed, a strong one for the median. Dashed lines "
        f"with open markers are the published rows. Panels: {'; '.join(titles)}."
    )
    fig, axes = _panels("one_seed_studies", alt, titles, "digits", "LSTM test accuracy")
    for ax, setting in zip(axes, settings, strict=True):
        name = accuracy("published", setting)
        values = np.array([measures[name.format("lstm", n)]["raw"] for n in lengths]).T
        plots.seed_lines(ax, lengths, values, COLOURS["lstm"], "our seeds and their median")
        for n in lengths:
            if mine := yours.get(name.format("lstm", n)):
                _crosses(ax, [n] * mine["n"], mine["raw"], mine, COLOURS["lstm"])
        for row in published:
            if (row.setting, row.cell) == (setting, "lstm"):
                _open_markers(ax, row, "--")
        ax.set_xticks(lengths)
        ax.set_ylim(0, 1)
    plots.legend_below(fig)
    return fig


def loss_curves(
    curves: Mapping[str, Any], settings: Sequence[str], length: int, guessing: float,
    yours: Mapping[str, Any] = {},
) -> Figure:  # fmt: skip
    """Training loss of both cells, a panel for each start; the loss of `guessing` is dotted."""
    titles = [SETTINGS[setting] for setting in settings]
    alt = (
        f"Training loss over training steps at {length} digits, SRN and LSTM: the median of the "
        "seeds, and a band that holds the middle half of them. The dotted line is the loss of "
        "knowing only how often each sum occurs. Dashed is the reader's run, if shown. "
        f"Panels: {'; '.join(titles)}."
    )
    fig, axes = _panels("loss_curves", alt, titles, "1,000 steps", "training loss (nats)", 4.4)
    for ax, setting in zip(axes, settings, strict=True):
        for cell in ("srn", "lstm"):
            where, ink = place("published", cell, setting, length), COLOURS[cell]
            if where in curves:
                x = np.array(curves[where]["step"]) / 1000
                quarters = np.quantile(curves[where]["train_loss"], (0.25, 0.5, 0.75), axis=0)
                ax.fill_between(x, quarters[0], quarters[2], color=ink, alpha=0.25, lw=0)
                ax.plot(x, quarters[1], color=ink, lw=2, label=LABELS[cell])
            if where in yours:
                x = np.array(yours[where]["step"]) / 1000
                median = np.median(yours[where]["train_loss"], axis=0)
                ax.plot(x, median, color=ink, ls="--", lw=1.4, label=f"you: {LABELS[cell]}")
        ax.axhline(guessing, color="black", ls=":", lw=1.2, label="class frequencies")
        ax.set_ylim(0, None)
    plots.legend_below(fig, 5)
    return fig


def _panels(
    name: str, alt: str, titles: Sequence[str], xlabel: str, ylabel: str, width: float = 3.5
) -> tuple[Figure, np.ndarray]:
    """A row of panels with shared axes."""
    size = {"figsize": (width * len(titles) + 0.8, 3.8), "squeeze": False}
    fig, axes = plots.new_figure(name, alt, 1, len(titles), sharex=True, sharey=True, **size)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return fig, axes[0]


def _dots(ax: Axes, at: float, m: Measure, ink: Any, *, across: bool = False) -> None:
    """The seeds, mean and interval of a summary, upright at x = `at`, or `across` at that y."""
    spread = at + np.linspace(-0.15, 0.15, m["n"]) * (1 if across else 2.5)
    line, mark = (ax.hlines, "|") if across else (ax.vlines, "_")
    turn = slice(None, None, -1 if across else 1)
    ax.scatter(*(spread, m["raw"])[turn], s=12, color=ink, alpha=0.45, lw=0)
    ax.plot(*(at, m["mean"])[turn], mark, ms=13, mew=2.4, color=ink)
    if m["n"] >= MIN_SEEDS:
        line(at, m["low"], m["high"], color=ink, lw=1.6)


def _crosses(ax: Axes, x: Sequence[float], y: Sequence[float], m: Measure, ink: Any) -> None:
    label = f"you: seeds {m['seeds'][0]}–{m['seeds'][-1]}"
    ax.plot(x, y, "X", ms=7, mfc=ink, mec="black", zorder=5, label=label)


def _open_markers(ax: Axes, row: PublishedRow, line: str) -> None:
    style = {"ls": line, "mfc": "none", "mew": 1.4, "zorder": 4, "label": row.label}
    ink = "black" if line == "--" else COLOURS[row.cell]
    ax.plot(*zip(*row.values.items(), strict=True), MARKERS[row.source], color=ink, **style)


def unrolled(digits: Sequence[int]) -> Figure:
    """The network, unrolled over a sequence: what it must carry, and how far."""
    answer, T = sum(digits[:2]), len(digits)
    alt = (
        f"A recurrent network unrolled over the digits {' '.join(map(str, digits))}. Each digit "
        "goes through the embedding into a cell; each cell hands its state to the next. After the "
        f"last digit the head reads the state and answers {answer}. The first two digits are the "
        "addends; the rest is to be ignored."
    )
    fig, ax = diagrams.canvas("unrolled", alt, 10.6, 3.0)
    before = None
    for t, digit in enumerate(digits):
        x, addend = 0.6 + 0.92 * t, t < 2
        colour = "blue" if addend else "orange" if digit else "grey"
        read = diagrams.box(ax, x, 0.85, str(digit), colour, width=0.5, height=0.45)
        cell = diagrams.box(ax, x, 1.85, "cell", "green", width=0.62)
        diagrams.arrow(ax, read.top, cell.bottom, colour=colour)
        if before:
            diagrams.arrow(ax, before.right, cell.left, colour="green")
        before = cell
    head = diagrams.box(ax, x + 0.95, 1.85, "head", "purple", width=0.62)
    diagrams.arrow(ax, before.right, head.left, colour="green")
    diagrams.arrow(ax, head.top, (head.x, 2.45), colour="purple")
    diagrams.label(ax, head.x, 2.65, f"sum {answer}", "purple")
    diagrams.label(ax, 1.06, 0.3, "addends", "blue")
    diagrams.label(ax, 0.6 + 0.92 * (T + 1) / 2, 0.3, "to be ignored", "orange")
    diagrams.label(ax, 0.6 + 0.46 * (T - 1), 2.5, "the state must carry the sum this far", "green")
    return fig
