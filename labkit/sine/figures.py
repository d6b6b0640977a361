"""The sine chapter's figures and rows. R seeds, K blocks of batches, B windows, N free steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from labkit.measure.claims import Row, number_row
from labkit.measure.plots import PALETTE, legend_below, new_figure, seed_lines
from labkit.sine.study import DRIFTED, LENGTHS

BLOCK = 20  # batches that a published loss is the mean of
STARTS = {"gluon": "gluon's start", "xavier": "Xavier start"}
OPTIMISERS = {"adam": ("Adam", PALETTE[0]), "sgd": ("SGD", PALETTE[1])}
WAYS = {
    "last/nine": ("last step, nine points", PALETTE[1], "o"),
    "every/nine": ("every step, nine points", PALETTE[0], "s"),
    "last/mixed": ("last step, mixed lengths", PALETTE[4], "^"),
    "every/mixed": ("every step, mixed lengths", PALETTE[2], "D"),
}
SEEDS = "every seed a faint line, their median a strong one"
CIRCLES = {"marker": "o", "ls": "", "mec": "black", "ms": 6, "zorder": 4}  # published values
Values = Mapping[str, Tensor]
LOSS = "loss/{}/{}"  # names of measures, by start and optimiser; the block's number follows
NOTE = "note/{}"  # outputs before training (0), after 100 batches or at the end; a step follows


def _logarithmic(ax: Axes, ticks: Sequence[int], end: float) -> None:
    """A logarithmic axis along which the numbers up to `end` stand."""
    ticks = [n for n in ticks if n <= end]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
    ax.minorticks_off()


def loss_plot(
    blocks: Mapping[str, Values], published: Mapping[str, Sequence[float]], mean_answer: float
) -> Figure:
    """`blocks[start][optimiser]` (R, K): means over 20 batches; `mean_answer`: the mean's loss."""
    fig, axes = new_figure(
        "loss",
        "Loss over the batches, means of 20, both axes logarithmic, Adam and SGD in two colours, "
        f"{SEEDS}; panels: {' and '.join(STARTS.values())}. Rimmed circles: published values; "
        "dotted: the loss of always answering the labels' mean.",
        ncols=2, figsize=(9.2, 4.0), sharey=True,
    )  # fmt: skip
    for ax, (start, title) in zip(axes, STARTS.items(), strict=True):
        for optimiser, values in blocks[start].items():
            label, colour = OPTIMISERS[optimiser]
            batches = BLOCK * np.arange(1, values.shape[1] + 1)
            seed_lines(ax, batches, values, colour, label)
            printed = published[f"{optimiser}_loss"]
            ax.plot(batches[: len(printed)], printed, mfc=colour, label="published", **CIRCLES)
        ax.axhline(mean_answer, color="0.4", ls=":", label="always the mean")
        ax.set(title=title, xlabel="batches", yscale="log")
        _logarithmic(ax, (20, 50, 100, 200, 500, 1000), batches[-1])
    axes[0].set_ylabel("loss, mean of 20 batches")
    legend_below(fig)
    return fig


def error_plot(places: Values, lengths: Values, lines: Mapping[str, float]) -> Figure:
    """Errors `places[way]` (R, 9) and `lengths[way]` (R, lengths); `lines`: reference errors."""
    fig, (left, right) = new_figure(
        "error_over_place_and_length",
        f"Root mean square error, logarithmic. Left: after each of nine steps; grey: "
        f"{', '.join(lines)}. Right: of the last output over the window's length, at the same "
        f"labels. One colour and mark for each way of training, {SEEDS}.",
        ncols=2, figsize=(10.0, 4.3), sharey=True,
    )  # fmt: skip
    for way, (label, colour, marker) in WAYS.items():
        seed_lines(left, range(1, 10), places[way], colour, label, marker=marker, ms=5)
        seed_lines(right, LENGTHS, lengths[way], colour, label, marker=marker, ms=5)
    for (name, value), style in zip(lines.items(), (":", "--"), strict=False):
        left.axhline(value, color="0.3", ls=style, lw=1.4, label=name)
    left.set(yscale="log", xlabel="step", ylabel="root mean square error", xticks=range(1, 10))
    _logarithmic(right, LENGTHS, max(LENGTHS))
    right.set_xlabel("points in the window")
    legend_below(fig, ncols=3)
    return fig


def free_run_plot(true: Tensor, said: Values, error: Values, baselines: Values) -> Figure:
    """A free run (N,), forecasts `said[way]` (N,), errors `error[way]` (R, N), `baselines` (N,)."""
    fig, (top, bottom) = new_figure(
        "free_run",
        "Forecasts that feed on themselves. Above: the true wave in black, the first seed's nets "
        f"in colour. Below: their root mean square error over all phases, axes logarithmic, {SEEDS}"
        f"; grey: {', '.join(baselines)}, up to 10; beyond {DRIFTED:g} a forecast has drifted.",
        nrows=2, figsize=(9.6, 6.2),
    )  # fmt: skip
    steps = range(1, len(true) + 1)
    top.plot(steps, true, color="black", lw=1.2, label="true values")
    for way, values in said.items():
        label, colour, _ = WAYS[way]
        top.plot(steps, values, color=colour, lw=1.5, label=label)
        seed_lines(bottom, steps, error[way].clamp(min=1e-9), colour, label)
    for (name, values), style in zip(baselines.items(), (":", "--", "-."), strict=True):
        bottom.plot(steps, values.clamp(1e-9, 10), color="0.4", ls=style, label=name)
    bottom.axhline(DRIFTED, color="black", lw=0.8, label=f"the limit, {DRIFTED:g}")
    along = {"xlabel": "steps of the free run", "xlim": (1, len(true))}
    top.set(ylabel="value", ylim=(-1, 1), **along)
    bottom.set(yscale="log", ylabel="root mean square error", **along)
    _logarithmic(bottom, (1, 2, 5, 10, 20, 50, 100, 200, 500), len(true))
    legend_below(fig)
    return fig


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The report's tables: the last published losses, then the note's outputs by step."""
    sine, tables = published["sine"], {}
    for start, title in STARTS.items():
        tables[f"Losses, ours with {title}"] = [
            number_row(
                f"{label}, loss of batches 81 to 100", sine[f"{optimiser}_loss"][-1], measures,
                f"{LOSS.format(start, optimiser)}/5", higher_is_better=False,
            )
            for optimiser, label in (("adam", "Adam, 0.001"), ("sgd", "SGD, 0.01"))
        ]  # fmt: skip
    after = {100: 100, "end": settings["batches"]}  # the moment's name in a measure -> batches
    titles = {m: f"after training, ours after {batches:,} batches" for m, batches in after.items()}
    for moment, when in {0: "before training", **titles}.items():
        name, printed = NOTE.format(moment), f"{'final' if moment else 'initial'}_prediction"
        tables[f"Outputs {when}"] = [
            number_row(f"output of step {k}", v, measures, f"{name}/{k}", higher_is_better=None)
            for k, v in enumerate(sine["every_step"][printed], start=1)
        ]
    return tables


def about(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on, and what their labels tell."""
    return (
        "Published: one training of three LSTM cells (10, 20, 1 units) for 1,000 batches of 300; "
        f"half the squared error of the last of nine outputs against sin(t)/2, means of {BLOCK} "
        "batches up to the hundredth. The labels printed beside its outputs are sin t, twice that."
    )
