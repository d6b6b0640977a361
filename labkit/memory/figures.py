"""The plots of chapters 02 and 03, and the explorer that redraws one of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.measure.claims import MIN_SEEDS
from labkit.measure.plots import (
    COLOURS,
    LABELS,
    PALETTE,
    legend_below,
    new_figure,
    seed_lines,
    show,
)
from labkit.measure.statistics import Measure
from labkit.memory.model import Ensemble
from labkit.memory.sweep import PublishedRow

Array = np.ndarray | torch.Tensor
Arrays = Mapping[str, Array]
Summaries = Mapping[str, Mapping[str, Measure]]

SOURCES = {"nndl-a": "write-up A", "nndl-b": "write-up B", "nndl-c": "rerun of A"}
MARKERS = {"nndl-a": "s", "nndl-b": "^", "nndl-c": "D"}
# clipping has nothing to do with the cells, so it has colours of its own
CLIPPING = (PALETTE[3], PALETTE[2], PALETTE[4])
PANELS = {
    "i": ("input gate", 0.0, 1.0, "viridis"),
    "f": ("forget gate", 0.0, 1.0, "viridis"),
    "o": ("output gate", 0.0, 1.0, "viridis"),
    "c": ("cell state", -5.0, 5.0, "vlag"),
}
STARTS = {
    "zero": {"color": PALETTE[0], "marker": "o"},
    "xavier": {"color": PALETTE[1], "marker": "D"},
}
STATES = {"c": ("0.15", "cell state c"), "h": (PALETTE[4], "hidden state h")}
JUDGED = {"f/falls", "o/falls", "o/rises", "c/falls", "c/rises"}
MARKS = (
    f"Every model is a dot, a level line the mean; from {MIN_SEEDS} models on, an upright line its "
    "95 % interval."
)
LENGTHS = "sequence length (digits)"
BESIDE = {"frameon": False, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def _grid(
    name: str, alt: str, titles: Iterable[str], ylabels: Iterable[str], xlabel: str, size: tuple
) -> tuple[Figure, np.ndarray]:
    """Panels of `size` (inches) that share their axes, with a title a column, a label a row."""
    titles, ylabels = list(titles), list(ylabels)
    figsize = (size[0] * len(titles) + 1.0, size[1] * len(ylabels) + 0.6)
    shared = {"figsize": figsize, "sharex": True, "sharey": True, "squeeze": False}
    fig, axes = new_figure(name, alt, len(ylabels), len(titles), **shared)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    for ax, label in zip(axes[:, 0], ylabels, strict=True):
        ax.set_ylabel(label)
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    return fig, axes


def _strip(ax: Axes, x: float, measure: Measure, width: float, color: Any, **style: Any) -> None:
    """Every seed a dot, the mean a level line; with enough seeds its interval an upright line."""
    raw = np.asarray(measure["raw"])
    spread = np.linspace(-width, width, len(raw)) if len(raw) > 1 else np.zeros(1)
    label = style.pop("label", None)
    ax.scatter(x + spread, raw, s=12, color=color, alpha=0.5, lw=0, zorder=3, **style)
    ax.hlines(measure["mean"], x - 1.6 * width, x + 1.6 * width, color=color, lw=2.4, label=label)
    if measure["n"] >= MIN_SEEDS:
        ax.vlines(x, measure["low"], measure["high"], color=color, lw=1.4)


def _level(ax: Axes, value: float, label: str = "chance") -> None:
    ax.axhline(value, color=COLOURS["chance"], ls=":", lw=1.2, label=label)


# chapter 02


def loss_curves(name: str, setting: str, curves: Mapping[str, Mapping[int, Arrays]]) -> Figure:
    """Train and dev loss over the steps, `curves[cell][length]` with step (K,), train_loss and
    dev_loss (seeds, K)."""
    lengths = list(next(iter(curves.values())))
    alt = (
        f"Cross-entropy over training steps, {setting}. One column for each length "
        f"({', '.join(map(str, lengths))} digits), training loss above and dev loss below; SRN and "
        "LSTM in two colours, every seed a faint line, the median strong, and the loss of guessing "
        "by class frequency as a dotted line."
    )
    titles, labels = [f"{n} digits" for n in lengths], ["train loss (nats)", "dev loss (nats)"]
    fig, axes = _grid(name, alt, titles, labels, "steps (1,000)", (2.3, 2.1))
    fig.suptitle(setting)
    frequency = np.bincount(np.add.outer(np.arange(10), np.arange(10)).ravel()) / 100
    guessing = -(frequency * np.log(frequency)).sum()
    top = 0.0
    for ax, (split, length) in zip(axes.flat, product(("train", "dev"), lengths), strict=True):
        for cell, by_length in curves.items():
            x, losses = by_length[length]["step"] / 1000, by_length[length][f"{split}_loss"]
            seed_lines(ax, x, losses, COLOURS[cell], LABELS[cell])
            top = max(top, float(np.median(losses, axis=0).max()))
        _level(ax, guessing, f"class frequencies, {guessing:.2f}")
    axes[0, 0].set_ylim(0, 1.1 * top)
    legend_below(fig, 3)
    return fig


def accuracy_over_length(
    name: str,
    what: str,
    accuracies: Mapping[str, Mapping[str, Mapping[str, Mapping[int, Measure]]]],
    chance: Mapping[str, float],
    published: Sequence[PublishedRow] = (),
) -> Figure:
    """Accuracy over the length, `accuracies[title][quantity][cell][length]`, a panel each; `what`
    says on which data, `chance[title]` what guessing gives.

    Rows of `published` are drawn in the panels whose title is their setting.
    """
    quantities = list(next(iter(accuracies.values())))
    labels = [quantity.replace("_", " ") for quantity in quantities]
    alt = (
        f"{', '.join(labels).capitalize()} over the sequence length, {what}. One column for each "
        f"of: {'; '.join(accuracies)}. SRN and LSTM in two colours: every seed a small dot, the "
        "mean a line with its 95 % interval; the dotted line is chance."
    )
    alt += " Open markers are the published single-seed figures." if published else ""
    fig, axes = _grid(name, alt, accuracies, labels, LENGTHS, (4.0, 3.0))
    for ax, (quantity, title) in zip(axes.flat, product(quantities, accuracies), strict=True):
        by_cell = accuracies[title][quantity]
        for shift, (cell, by_length) in zip((-0.6, 0.6), by_cell.items(), strict=True):
            for length, measure in by_length.items():
                _strip(ax, length + shift, measure, 0.35, COLOURS[cell])
            x, means = [n + shift for n in by_length], [m["mean"] for m in by_length.values()]
            ax.plot(x, means, color=COLOURS[cell], lw=1.4, label=f"mean, {LABELS[cell]}")
        for row in published:
            if (row.setting, row.quantity) == (title, quantity):
                label = f"{SOURCES[row.source]}, {LABELS[row.cell]}"
                style = {"mfc": "none", "mec": COLOURS[row.cell], "zorder": 4, "label": label}
                ax.plot(row.values.keys(), row.values.values(), MARKERS[row.source], **style)
        _level(ax, chance[title])
        ax.set(xticks=list(by_length), xlim=(min(by_length) - 3, max(by_length) + 3))
        ax.set_ylim(-0.02, 1.02)
    legend_below(fig, 6)
    return fig


def one_seed_studies(
    rows: Mapping[str, Mapping[int, Sequence[float]]],
    chance: float,
    published: Sequence[PublishedRow],
) -> Figure:
    """What a study with one seed would have printed: `rows[setting][length]`, values by seed."""
    alt = (
        "LSTM test accuracy over the sequence length, one thin line for each seed: each line is "
        f"the row that a study with that one seed would have printed. Panels: {'; '.join(rows)}. "
        "The strong line is the median of all seeds; dashed lines with open markers are the "
        "published rows; the dotted line is chance."
    )
    fig, axes = _grid("one_seed_studies", alt, rows, ["LSTM test accuracy"], LENGTHS, (4.3, 3.7))
    for ax, (setting, by_length) in zip(axes[0], rows.items(), strict=True):
        values = np.array(list(by_length.values())).T  # (seeds, lengths)
        seed_lines(ax, list(by_length), values, COLOURS["lstm"], "median")
        wanted = (setting, "lstm", "test_accuracy")
        printed = [r for r in published if (r.setting, r.cell, r.quantity) == wanted]
        for colour, row in zip(PALETTE[3:], printed, strict=False):
            style = {"ls": "--", "mfc": "none", "color": colour, "label": SOURCES[row.source]}
            ax.plot(row.values.keys(), row.values.values(), MARKERS[row.source], **style)
        _level(ax, chance)
        ax.set(xticks=list(by_length), ylim=(-0.02, 1.02))
        ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return fig


def explosion_plot(runs: Mapping[str, Arrays], max_norm: float, steps_per_epoch: int = 5) -> Figure:
    """Gradient norm and loss of the exploding SRN, `runs[clip]` as `sweep.explode` gives.

    Each point is the largest value of one epoch; norms below 0.001 are drawn at 0.001.
    """
    alt = (
        "An SRN on 20 digits under SGD with learning rate 0.2 on a summed loss: L2 norm of the "
        "gradient of U before clipping, and the loss, the largest of each epoch, on logarithmic "
        f"axes. One colour for each of: {', '.join(runs)}. Every seed is a faint line, the median "
        f"strong; the dashed line is the clipping norm {max_norm:g}; norms below 0.001 are drawn "
        "at 0.001."
    )
    fig, axes = new_figure("explosion", alt, ncols=2, figsize=(9.0, 3.6))
    for ax, quantity in zip(axes, ("gradient", "loss"), strict=True):
        for colour, (clip, run) in zip(CLIPPING, runs.items(), strict=False):
            values = np.asarray(run[quantity]).reshape(len(run["saturated"]), -1, steps_per_epoch)
            values = values.max(axis=2).clip(min=1e-3)
            seed_lines(ax, np.arange(1, values.shape[1] + 1), values, colour, clip)
        ax.set(yscale="log", xlabel="epoch")
    axes[0].axhline(max_norm, color="black", ls="--", lw=0.9)
    axes[0].set(title="norm of ∂L/∂U", ylim=(5e-4, 1e5))
    _level(axes[1], np.log(19), "guessing, ln 19")
    axes[1].set(title="loss (nats a sequence)", ylim=(1.5, None))
    legend_below(fig, 4)
    return fig


# chapter 03


def gate_maps(
    trace: Arrays, digits: Sequence[int], predicted: int, model: str, framed: int
) -> Figure:
    """Four heat maps of one sequence: `trace` holds "i", "f", "o" and "c", each (T, H).

    `model` says which model it is, `predicted` the sum that it gives; a frame is drawn around the
    column of step `framed`, from 0.
    """
    text = " ".join(map(str, digits))
    alt = (
        f"Four heat maps of an LSTM reading {text}, {model}, which predicts {predicted}: input, "
        "forget and output gate on a scale from 0 to 1, cell state from −5 to 5. Hidden units run "
        f"down, the digits read run across; the column of step {framed + 1} is framed."
    )
    fig, axes = new_figure("gate_maps", alt, ncols=4, figsize=(12.5, 5.2), sharey=True)
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


def condition_strips(
    name: str, what: str, panels: Mapping[str, Summaries], level: float, label: str
) -> Figure:
    """A strip for each condition and start, `panels[ylabel][start][condition]` a summary over
    seeds; `what` says what is measured, a dotted line marks a `level` with its `label`."""
    alt = f"{what}; {' and '.join(next(iter(panels.values())))} start. "
    alt += f"The dotted line is {label}, {level:g}. {MARKS}"
    fig, axes = _grid(name, alt, [""], panels, "", (7.6, 3.0 + 0.6 / len(panels)))
    for ax, by_start in zip(axes[:, 0], panels.values(), strict=True):
        for shift, (start, by_name) in zip((-0.2, 0.2), by_start.items(), strict=False):
            style = STARTS[start] | {"label": f"{start} start"}
            for x, measure in enumerate(by_name.values()):
                _strip(ax, x + shift, measure, 0.09, **style)
                style.pop("label", None)
        _level(ax, level, label)
        ax.set_xticks(range(len(by_name)), list(by_name))
        ax.set(xlim=(-0.5, len(by_name) - 0.5), ylim=(0, None))
    axes[0, 0].legend(**BESIDE)
    return fig


def digit_responses(shares: Mapping[str, Arrays], limit: float) -> Figure:
    """Shares of units that fall or rise, `shares[start]["f/falls"]` and so on, each (R, 10)."""
    alt = (
        "Share of hidden units that fall (below the axis) and rise (above it) where a digit from 1 "
        "to 9 stands instead of a zero. Columns: input gate, forget gate, output gate, size of the "
        f"cell state; rows: {' and '.join(shares)} start. Bars are means over the models; dotted "
        f"lines mark the limit, {limit:g}, of what is claimed."
    )
    titles = ["input gate", "forget gate", "output gate", "size of the cell state"]
    labels = [f"{start} start\nfalls ← share of units → rises" for start in shares]
    fig, axes = _grid("digit_responses", alt, titles, labels, "digit instead of 0", (2.6, 2.6))
    digits = np.arange(1, 10)
    for ax, (start, panel) in zip(axes.flat, product(shares, PANELS), strict=True):
        for sign, name in ((1, f"{panel}/rises"), (-1, f"{panel}/falls")):
            values = sign * np.asarray(shares[start][name])[:, 1:]  # (R, 9)
            ax.bar(digits, values.mean(0), color=PALETTE[3 - sign], alpha=0.6)
            if name in JUDGED:
                ax.axhline(sign * limit, color="black", ls=":", lw=1)
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(digits)
        ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    return fig


def read_out_curves(accuracy: Mapping[str, Arrays], chance: Mapping[str, float]) -> Figure:
    """Probe accuracy over the steps, `accuracy[start]["c/known"]` and so on, each (R, T)."""
    kinds = {
        "known": "pairs that the probe was fitted on",
        "held_out": "pairs held out of the probe",
        "held_out_zeros": "held out, only zeros behind them",
    }
    alt = (
        "Accuracy with which a linear probe reads the sum after each step. Columns: probed pairs "
        "known, held out, and held out of sequences without a disturbing digit; rows: "
        f"{' and '.join(accuracy)} start. Cell state and hidden state in two colours, every seed a "
        "faint line, their median a strong one; the dotted line is chance."
    )
    labels = [f"{start} start\naccuracy of the probe" for start in accuracy]
    fig, axes = _grid("read_out", alt, kinds.values(), labels, "digits read", (3.7, 2.8))
    for ax, (start, kind) in zip(axes.flat, product(accuracy, kinds), strict=True):
        steps = range(1, accuracy[start][f"c/{kind}"].shape[1] + 1)
        for state, (colour, label) in STATES.items():
            seed_lines(ax, steps, accuracy[start][f"{state}/{kind}"], colour, label)
        _level(ax, chance[kind.removesuffix("_zeros")])
        ax.set(xticks=steps, ylim=(-0.02, 1.05))
    axes[0, 0].legend(frameon=True, loc="lower right", fontsize=9)
    return fig


def place_curves(accuracy: Mapping[str, Arrays]) -> Figure:
    """Accuracy by the place of a disturbing digit, `accuracy[start]["places"]` (R, T − 2).

    `accuracy[start]["zeros"]` (R,) is that without one.
    """
    alt = (
        "Accuracy over all pairs against the place of a disturbing digit from 1 to 9, "
        f"{' and '.join(accuracy)} start: every model a faint line, their median a strong one. "
        "Dashed: the mean without a disturbing digit."
    )
    fig, ax = new_figure("accuracy_by_place", alt, figsize=(7.6, 3.6))
    for start, by_name in accuracy.items():
        places = range(3, by_name["places"].shape[1] + 3)
        seed_lines(ax, places, by_name["places"], STARTS[start]["color"], f"{start} start")
        style = {"color": STARTS[start]["color"], "label": f"{start} start, only zeros"}
        ax.axhline(float(by_name["zeros"].mean()), ls="--", lw=1.2, **style)
    ax.set(xlabel="step of the disturbing digit", ylabel="accuracy", ylim=(0, 1.05), xticks=places)
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

    row, start = " ".join(map(str, digits)), next(iter(ensembles))
    seeds = ensembles[start].seeds
    if os.environ.get("LABKIT_PROGRESS"):
        draw(row, 5, start, seeds[0])
        return
    from ipywidgets import IntSlider, Text, interact

    text = Text(row, continuous_update=False, description="digits")
    step = IntSlider(5, 1, len(digits))
    interact(draw, row=text, step=step, start=list(ensembles), seed=list(seeds))
