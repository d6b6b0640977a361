"""The plots of chapters 02 and 03, and the explorer that redraws one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.measure.claims import MIN_SEEDS
from labkit.measure.plots import COLOURS, LABELS, PALETTE, new_figure, show
from labkit.measure.statistics import Measure
from labkit.memory.model import Ensemble
from labkit.memory.sweep import PublishedRow

Array = np.ndarray | torch.Tensor
ByName = Mapping[str, Any]

SOURCES = {
    "nndl-a": ("write-up A", "s"),
    "nndl-b": ("write-up B", "^"),
    "nndl-c": ("rerun of A", "D"),
}
# clipping has nothing to do with the cells, so it has colours of its own
CLIPPING = (PALETTE[3], PALETTE[2], PALETTE[4])
PANELS = {
    "i": ("input gate", 0.0, 1.0, "viridis"),
    "f": ("forget gate", 0.0, 1.0, "viridis"),
    "o": ("output gate", 0.0, 1.0, "viridis"),
    "c": ("cell state", -5.0, 5.0, "vlag"),
}
STARTS = {"zero": (PALETTE[0], "o"), "xavier": (PALETTE[1], "D")}
STATES = {"c": ("cell state c", "0.15", "o"), "h": ("hidden state h", PALETTE[4], "s")}
JUDGED = {("f", "falls"), ("o", "falls"), ("o", "rises"), ("c", "falls"), ("c", "rises")}
BESIDE = {"frameon": False, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def _grid(
    name: str, alt: str, titles: Sequence[str], ylabels: Sequence[str], xlabel: str, **size: float
) -> tuple[Figure, np.ndarray]:
    """Panels that share their axes, with a title a column and a label a row; `size` is that of a
    panel, `width` and `height` in inches."""
    rows, columns = len(ylabels), len(titles)
    figsize = (size["width"] * columns + 1.0, size["height"] * rows + 0.6)
    shared = {"sharex": True, "sharey": True, "squeeze": False}
    fig, axes = new_figure(name, alt, rows, columns, figsize=figsize, **shared)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    for ax, label in zip(axes[:, 0], ylabels, strict=True):
        ax.set_ylabel(label)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    return fig, axes


def _every_seed(
    ax: Axes,
    x: Sequence,
    values: Array,
    colour: Any,
    label: str,
    marker: str | None = None,
    average: Callable[..., np.ndarray] = np.mean,
) -> float:
    """Values (seeds, len(x)): a faint line for each seed, a strong one for their average, whose
    largest value is returned."""
    values = np.asarray(values)
    middle = average(values, axis=0)
    ax.plot(x, values.T, color=colour, alpha=0.35, lw=0.8)
    ax.plot(x, middle, color=colour, marker=marker, ms=4, lw=2.2, label=label)
    return float(middle.max())


def _strip(
    ax: Axes, x: float, measure: Measure, colour: Any, marker: str, label: str | None, width: float
) -> None:
    """Every seed a dot, the mean a level line; with enough seeds its interval an upright line."""
    raw = np.asarray(measure["raw"])
    spread = np.linspace(-width, width, len(raw)) if len(raw) > 1 else np.zeros(1)
    ax.scatter(x + spread, raw, s=12, color=colour, marker=marker, alpha=0.5, lw=0, zorder=3)
    ax.hlines(measure["mean"], x - 1.6 * width, x + 1.6 * width, color=colour, lw=2.4, label=label)
    if measure["n"] >= MIN_SEEDS:
        ax.vlines(x, measure["low"], measure["high"], color=colour, lw=1.4)


def _chance(ax: Axes, value: float, label: str = "chance") -> None:
    ax.axhline(value, color=COLOURS["chance"], ls=":", lw=1.2, label=label)


def _legend_below(fig: Figure, axes: np.ndarray, ncols: int) -> None:
    """One legend for several panels, each entry once."""
    entries = {}
    for ax in axes.flat:
        entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(entries.values(), entries, loc="outside lower center", ncols=ncols, fontsize=9)


# chapter 02


def loss_curves(name: str, setting: str, curves: Mapping[str, Mapping[int, ByName]]) -> Figure:
    """Train and dev loss over the steps, `curves[cell][length]` with step (K,), train_loss and
    dev_loss (seeds, K)."""
    lengths = list(next(iter(curves.values())))
    fig, axes = _grid(
        name,
        f"Cross-entropy over training steps, {setting}. One column for each length "
        f"({', '.join(map(str, lengths))} digits), training loss above and dev loss below; SRN and "
        "LSTM in two colours, every seed a faint line, the median strong, and the loss of guessing "
        "by class frequency as a dotted line.",
        [f"{length} digits" for length in lengths],
        ["train loss (nats)", "dev loss (nats)"],
        "steps (1,000)",
        width=2.3,
        height=2.1,
    )
    fig.suptitle(setting)
    frequency = np.bincount(np.add.outer(np.arange(10), np.arange(10)).ravel()) / 100
    guessing = -(frequency * np.log(frequency)).sum()
    top = 0.0
    for ax, (split, length) in zip(axes.flat, product(("train", "dev"), lengths), strict=True):
        for cell, by_length in curves.items():
            steps, losses = by_length[length]["step"] / 1000, by_length[length][f"{split}_loss"]
            style = COLOURS[cell], LABELS[cell]
            top = max(top, _every_seed(ax, steps, losses, *style, average=np.median))
        _chance(ax, guessing, f"class frequencies, {guessing:.2f}")
    axes[0, 0].set_ylim(0, 1.1 * top)
    _legend_below(fig, axes[0], 3)
    return fig


def accuracy_over_length(
    accuracies: Mapping[str, Mapping[str, ByName]], published: Sequence[PublishedRow], chance: float
) -> Figure:
    """Dev and test accuracy over the length, `accuracies[setting][quantity][cell][length]`.

    The rows of `published` are drawn as open markers in the panels of their setting and quantity.
    """
    quantities = ("dev_accuracy", "test_accuracy")
    fig, axes = _grid(
        "accuracy_over_length",
        "Dev accuracy (above) and test accuracy (below) over the sequence length. One column for "
        f"each setting: {'; '.join(accuracies)}. SRN and LSTM in two colours: every seed a small "
        "dot, the mean a line with its 95 % interval. Open markers are the published single-seed "
        "figures; the dotted line is chance.",
        list(accuracies),
        ["dev accuracy", "test accuracy"],
        "sequence length (digits)",
        width=4.0,
        height=3.0,
    )
    for ax, (quantity, setting) in zip(axes.flat, product(quantities, accuracies), strict=True):
        _accuracy_panel(ax, accuracies[setting][quantity], chance)
        for row in published:
            if (row.setting, row.quantity) == (setting, quantity):
                source, marker = SOURCES[row.source]
                style = {"mfc": "none", "mec": COLOURS[row.cell], "ms": 6, "zorder": 4}
                label = f"{source}, {LABELS[row.cell]}"
                ax.plot(row.values.keys(), row.values.values(), marker, label=label, **style)
    _legend_below(fig, axes, 6)
    return fig


def _accuracy_panel(ax: Axes, by_cell: Mapping[str, Mapping[int, Measure]], chance: float) -> None:
    for shift, (cell, by_length) in zip((-0.6, 0.6), by_cell.items(), strict=True):
        for length, measure in by_length.items():
            _strip(ax, length + shift, measure, COLOURS[cell], "o", None, 0.35)
        means = [measure["mean"] for measure in by_length.values()]
        label = f"mean of the seeds, {LABELS[cell]}"
        ax.plot([n + shift for n in by_length], means, color=COLOURS[cell], lw=1.4, label=label)
    _chance(ax, chance)
    ax.set(xticks=list(by_length), xlim=(min(by_length) - 3, max(by_length) + 3))
    ax.set_ylim(-0.02, 1.02)


def one_seed_studies(
    rows: Mapping[str, Mapping[int, Sequence[float]]],
    published: Sequence[PublishedRow],
    chance: float,
) -> Figure:
    """What a study with one seed would have printed: `rows[setting][length]`, values by seed."""
    fig, axes = _grid(
        "one_seed_studies",
        "LSTM test accuracy over the sequence length, one thin line for each seed: each line is "
        f"the row that a study with that one seed would have printed. Panels: {'; '.join(rows)}. "
        "The strong black line is the mean of all seeds; dashed lines with open markers are the "
        "published rows; the dotted line is chance.",
        list(rows),
        ["LSTM test accuracy"],
        "sequence length (digits)",
        width=4.3,
        height=3.7,
    )
    for ax, (setting, by_length) in zip(axes[0], rows.items(), strict=True):
        values = np.array(list(by_length.values())).T  # (seeds, lengths)
        ax.plot(list(by_length), values.T, color=COLOURS["lstm"], alpha=0.35, lw=0.8)
        ax.plot(list(by_length), values.mean(0), color="black", lw=2.4, label="mean")
        wanted = (setting, "lstm", "test_accuracy")
        printed = [r for r in published if (r.setting, r.cell, r.quantity) == wanted]
        for colour, row in zip(PALETTE[3:], printed, strict=False):
            source, marker = SOURCES[row.source]
            style = {"marker": marker, "ls": "--", "lw": 1.4, "mfc": "none", "color": colour}
            ax.plot(row.values.keys(), row.values.values(), label=source, **style)
        _chance(ax, chance)
        ax.set(xticks=list(by_length), ylim=(-0.02, 1.02))
        ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return fig


def sound_accuracy(by_kind: Mapping[str, ByName], chance: Mapping[str, float]) -> Figure:
    """Sound protocol: `by_kind[kind][cell][length]`, and the chance line of each kind."""
    fig, axes = _grid(
        "sound_accuracy",
        "Test accuracy under the sound protocol over the sequence length, on 4,000 fresh sequences "
        f"for each seed. Panels: {' and '.join(by_kind)}. SRN and LSTM in two colours: every seed "
        "a dot, the mean a line with its 95 % interval; the dotted line is chance.",
        list(by_kind),
        ["test accuracy"],
        "sequence length (digits)",
        width=4.0,
        height=3.4,
    )
    for ax, (kind, by_cell) in zip(axes[0], by_kind.items(), strict=True):
        _accuracy_panel(ax, by_cell, chance[kind])
    _legend_below(fig, axes, 5)
    return fig


def explosion_plot(
    runs: Mapping[str, Mapping[str, Array]], max_norm: float, steps_per_epoch: int = 5
) -> Figure:
    """Gradient norms and loss of the exploding SRN, `runs[clip]` as `sweep.explode` gives.

    Each point is the largest value of one epoch; norms below 0.001 are drawn at 0.001.
    """
    fig, axes = new_figure(
        "explosion",
        "An SRN on 20 digits under SGD with learning rate 0.2 on a summed loss: L2 norms of the "
        "gradients of W, U and b before clipping, and the loss, the largest of each epoch, on "
        f"logarithmic axes. One colour for each of: {', '.join(runs)}. Every seed is a faint "
        f"line, the median strong; the dashed line is the clipping norm {max_norm:g}; norms below "
        "0.001 are drawn at 0.001.",
        ncols=4,
        figsize=(13.0, 3.6),
    )
    for ax, quantity in zip(axes, ("gradient/W", "gradient/U", "gradient/b", "loss"), strict=True):
        for colour, (clip, run) in zip(CLIPPING, runs.items(), strict=False):
            values = np.asarray(run[quantity]).reshape(len(run["saturated"]), -1, steps_per_epoch)
            values = values.max(axis=2).clip(min=1e-3)
            epochs = np.arange(1, values.shape[1] + 1)
            _every_seed(ax, epochs, values, colour, clip, average=np.median)
        ax.set(yscale="log", xlabel="epoch")
        if quantity == "loss":
            _chance(ax, np.log(19), "guessing, ln 19")
            ax.set(title="loss (nats a sequence)", ylim=(1.5, None))
        else:
            ax.axhline(max_norm, color="black", ls="--", lw=0.9)
            ax.set(title=f"gradient norm of {quantity[-1]}", ylim=(5e-4, 1e5))
    _legend_below(fig, axes[-1:], 4)
    return fig


# chapter 03


def gate_maps(
    trace: Mapping[str, Array], digits: Sequence[int], predicted: int, model: str, framed: int
) -> Figure:
    """Four heat maps of one sequence: `trace` holds "i", "f", "o" and "c", each (T, H).

    `model` says which model it is, `predicted` the sum that it gives; a frame is drawn around the
    column of step `framed`, from 0.
    """
    text = " ".join(map(str, digits))
    fig, axes = new_figure(
        "gate_maps",
        f"Four heat maps of an LSTM reading {text}, {model}, which predicts {predicted}: input, "
        "forget and output gate on a scale from 0 to 1, cell state from −5 to 5. Hidden units run "
        f"down, the digits read run across; the column of step {framed + 1} is framed.",
        ncols=4,
        figsize=(12.5, 5.2),
        sharey=True,
    )
    for ax, (panel, (title, low, high, colours)) in zip(axes, PANELS.items(), strict=True):
        values = np.asarray(trace[panel]).T  # (H, T)
        style = {"vmin": low, "vmax": high, "cmap": colours, "rasterized": True}
        ticks = {"xticklabels": list(digits), "yticklabels": 5, "cbar_kws": {"shrink": 0.8}}
        sns.heatmap(values, ax=ax, **style, **ticks)
        ax.tick_params(rotation=0)
        ax.set(title=title, xlabel="digit read")
        frame = {"fill": False, "edgecolor": PALETTE[3], "linewidth": 2.5}
        ax.add_patch(Rectangle((framed, 0), 1, len(values), **frame))
    axes[0].set_ylabel("hidden unit")
    fig.suptitle(f"{text}  →  {predicted}   ({model})")
    return fig


def _marks(by_start: Mapping[str, Mapping[str, Measure]]) -> str:
    """What the marks of `_strip` stand for, as a sentence for an alternative text."""
    n = next(iter(next(iter(by_start.values())).values()))["n"]
    interval = f"; fewer than {MIN_SEEDS} models, so no intervals"
    if n >= MIN_SEEDS:
        interval = ", an upright line its 95 % interval"
    return f"Every model is a dot, a level line the mean{interval}."


def _conditions(ax: Axes, by_start: Mapping[str, Mapping[str, Measure]]) -> None:
    """A strip for each condition and start, `by_start[start][condition]` a summary over seeds."""
    conditions = list(next(iter(by_start.values())))
    for shift, (start, by_name) in zip((-0.2, 0.2), by_start.items(), strict=False):
        for x, condition in enumerate(conditions):
            label = f"{start} start" if x == 0 else None
            _strip(ax, x + shift, by_name[condition], *STARTS[start], label, 0.09)
    ax.set_xticks(range(len(conditions)), conditions)
    ax.set_xlim(-0.5, len(conditions) - 0.5)


def input_gate_spreads(by_start: Mapping[str, Mapping[str, Measure]], limit: float) -> Figure:
    """`by_start[start][name]` a summary over seeds; the limit is drawn over all but the last."""
    fig, ax = new_figure(
        "input_gate_spread",
        "Spread of the input gate over zeros only, over the zeros around a disturbing digit, over "
        "those before and after it, and over the ten digits at one step; "
        f"{' and '.join(f'{start} start' for start in by_start)}. A dotted line marks the limit "
        f"for zeros, {limit}. {_marks(by_start)}",
        figsize=(8.2, 4.2),
    )
    _conditions(ax, by_start)
    zeros = len(next(iter(by_start.values()))) - 1
    ax.hlines(limit, -0.5, zeros - 0.5, color="black", ls=":", label="limit for zeros")
    ax.axvline(zeros - 0.5, color=COLOURS["chance"], lw=0.8)
    ax.set(ylabel="spread of the input gate\n(standard deviation)", ylim=(0, None))
    ax.legend(**BESIDE)
    return fig


def digit_responses(shares: Mapping[str, Mapping[str, Array]], limit: float) -> Figure:
    """Shares of units that fall or rise, `shares[start]["f/falls"]` and so on, each (R, 10)."""
    fig, axes = _grid(
        "digit_responses",
        "Share of hidden units that fall (below the axis) and rise (above it) where a digit from 1 "
        "to 9 stands instead of a zero. Columns: input gate, forget gate, output gate, size of the "
        f"cell state; rows: {' and '.join(f'{s} start' for s in shares)}. Bars are means, every "
        f"dot is a model; dotted lines mark the limit, {limit:g}, of what is claimed.",
        ["input gate", "forget gate", "output gate", "size of the cell state"],
        [f"{start} start\nfalls ← share of units → rises" for start in shares],
        "digit instead of 0",
        width=2.6,
        height=2.6,
    )
    digits = np.arange(1, 10)
    for ax, (start, panel) in zip(axes.flat, product(shares, PANELS), strict=True):
        for sign, way, colour in ((1, "rises", PALETTE[2]), (-1, "falls", PALETTE[4])):
            values = sign * np.asarray(shares[start][f"{panel}/{way}"])[:, 1:]  # (R, 9)
            ax.bar(digits, values.mean(0), color=colour, alpha=0.6)
            x = digits + np.linspace(-0.2, 0.2, len(values))[:, None]  # (R, 9)
            ax.scatter(x, values, s=7, color="0.15", alpha=min(1.0, 8 / len(values)), lw=0)
            if (panel, way) in JUDGED:
                ax.axhline(sign * limit, color="black", ls=":", lw=1)
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(digits)
        ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    return fig


def read_out_curves(
    accuracy: Mapping[str, Mapping[str, Array]], chance: Mapping[str, float]
) -> Figure:
    """Probe accuracy over the steps, `accuracy[start]["c/known"]` and so on, each (R, T)."""
    kinds = {
        "known": "pairs that the probe was fitted on",
        "held_out": "pairs held out of the probe",
        "held_out_zeros": "held out, only zeros behind them",
    }
    fig, axes = _grid(
        "read_out",
        "Accuracy with which a linear probe reads the sum after each step. Columns: probed pairs "
        "known, held out, and held out of sequences without a disturbing digit; rows: "
        f"{' and '.join(f'{s} start' for s in accuracy)}. Cell state and hidden state in two "
        "colours, every seed a faint line, their mean a strong one; the dotted line is chance.",
        list(kinds.values()),
        [f"{start} start\naccuracy of the probe" for start in accuracy],
        "digits read",
        width=3.7,
        height=2.8,
    )
    for ax, (start, kind) in zip(axes.flat, product(accuracy, kinds), strict=True):
        for state, style in STATES.items():
            values = accuracy[start][f"{state}/{kind}"]
            label, colour, marker = style
            _every_seed(ax, range(1, values.shape[1] + 1), values, colour, label, marker)
        _chance(ax, chance[kind.removesuffix("_zeros")])
        ax.set(xticks=range(1, values.shape[1] + 1), ylim=(-0.02, 1.05))
    axes[0, 0].legend(frameon=True, loc="lower right", fontsize=9)
    return fig


def ablation_plot(accuracies: Mapping[str, ByName], chance: float) -> Figure:
    """Accuracies by condition, `accuracies[when][start][condition]` a summary over seeds."""
    fig, axes = _grid(
        "ablation",
        "Accuracy over all pairs, places and digits, as trained and with the input, forget or "
        f"output gate held at 1 or at its mean. Panels: {', '.join(accuracies)}; the dotted line "
        f"is chance. {_marks(next(iter(accuracies.values())))}",
        [""],
        [f"held {when}\naccuracy" for when in accuracies],
        "",
        width=7.6,
        height=3.0,
    )
    for ax, by_start in zip(axes[:, 0], accuracies.values(), strict=True):
        _conditions(ax, by_start)
        _chance(ax, chance)
        ax.set_ylim(0, 1.05)
    axes[0, 0].legend(**BESIDE)
    return fig


def place_curves(accuracy: Mapping[str, Mapping[str, Array]]) -> Figure:
    """Accuracy by the place of a disturbing digit, `accuracy[start]["places"]` (R, T − 2).

    `accuracy[start]["zeros"]` (R,) is that without one.
    """
    fig, ax = new_figure(
        "accuracy_by_place",
        "Accuracy over all pairs against the place of a disturbing digit from 1 to 9, "
        f"{' and '.join(f'{start} start' for start in accuracy)}: every model a faint line, their "
        "mean a strong one. Dashed: the mean without a disturbing digit.",
        figsize=(7.6, 3.6),
    )
    for start, by_name in accuracy.items():
        colour, marker = STARTS[start]
        places = range(3, by_name["places"].shape[1] + 3)
        _every_seed(ax, places, by_name["places"], colour, f"{start} start", marker)
        alone = float(by_name["zeros"].mean())
        ax.axhline(alone, color=colour, ls="--", lw=1.2, label=f"{start} start, only zeros")
        ax.set_xticks(places)
    ax.set(xlabel="step of the disturbing digit", ylabel="accuracy", ylim=(0, 1.05))
    ax.legend(**BESIDE)
    return fig


def explore(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> None:
    """Display widgets to choose digits, step and model, above the four maps that follow them.

    Where a notebook runs with nobody to turn a knob (the runner names a progress file in
    `LABKIT_PROGRESS`), only the maps, so that no widget's state ends up in what is stored.
    """

    def draw(row: str, step: int, start: str, seed: int) -> None:
        ensemble, chosen = ensembles[start], [int(digit) for digit in row.split()]
        replica, X = ensemble.seeds.index(seed), torch.tensor([chosen])
        trace = {name: values[replica, 0] for name, values in ensemble.trace(X).items()}
        predicted = int(ensemble.logits(X)[replica].argmax())
        model = f"seed {seed}, {start} start"
        show(gate_maps(trace, chosen, predicted, model, min(step, len(chosen)) - 1))

    row, step = " ".join(map(str, digits)), min(5, len(digits))
    start, seeds = next(iter(ensembles)), next(iter(ensembles.values())).seeds
    if os.environ.get("LABKIT_PROGRESS"):
        draw(row, step, start, seeds[0])
        return
    import ipywidgets as widgets

    widgets.interact(
        draw,
        row=widgets.Text(row, continuous_update=False, description="digits"),
        step=widgets.IntSlider(step, 1, len(digits)),
        start=list(ensembles),
        seed=list(seeds),
    )
