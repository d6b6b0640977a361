"""The figures of the sine chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.measure.plots import PALETTE, new_figure
from labkit.sine.study import BLOCK, STARTS

OPTIMISERS = {"adam": ("Adam", PALETTE[0]), "sgd": ("SGD", PALETTE[1])}
WAYS = {
    "last/nine": ("last step, nine points", PALETTE[1], "o"),
    "every/nine": ("every step, nine points", PALETTE[0], "s"),
    "last/mixed": ("last step, mixed lengths", PALETTE[4], "^"),
    "every/mixed": ("every step, mixed lengths", PALETTE[2], "D"),
}
BASELINES = {
    "repeat": ("the last value again", "0.45", ":"),
    "line": ("a straight line on", "0.45", "--"),
    "fitted": ("two fitted terms", PALETTE[3], "-."),
}
SEEDS = "every seed a faint line, their mean a strong one"
Values = Mapping[str, np.ndarray]


def _seeds(ax: Axes, x: Any, values: np.ndarray, colour: Any, label: str, **line: Any) -> None:
    """Every seed a faint line, values (R, K); their mean a strong one."""
    ax.plot(x, values.T, color=colour, alpha=0.25, lw=0.7)
    ax.plot(x, values.mean(0), color=colour, label=label, **{"lw": 2, **line})


def _ticks(ax: Axes, ticks: Sequence[int]) -> None:
    """A logarithmic axis along which these numbers stand."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
    ax.minorticks_off()


def _legend(fig: Figure, *axes: Axes, columns: int = 4) -> None:
    """One legend below the panels, each label once."""
    pairs = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in pairs}
    place = {"loc": "outside lower center", "ncols": columns, "fontsize": 9, "frameon": False}
    fig.legend(handles.values(), handles, **place)


def loss_plot(
    blocks: Mapping[str, Values], published: Mapping[str, Sequence[float]], mean_answer: float
) -> Figure:
    """`blocks[start][optimiser]` (R, K): means over 20 batches; the first were published as
    `published[optimiser]`. `mean_answer` is the loss of always answering the labels' mean."""
    fig, axes = new_figure(
        "loss",
        "Loss over the batches, means of 20, both axes logarithmic, Adam and SGD in two colours, "
        f"{SEEDS}; panels: {' and '.join(STARTS[s] for s in blocks)}. Circles with a black rim are "
        "the published values, filled in the optimiser's colour; the dotted line is the loss of "
        "always answering the labels' mean.",
        ncols=len(blocks), figsize=(9.2, 4.0), sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, (start, by_optimiser) in zip(axes[0], blocks.items(), strict=True):
        for optimiser, values in by_optimiser.items():
            label, colour = OPTIMISERS[optimiser]
            batches = BLOCK * np.arange(1, values.shape[1] + 1)
            _seeds(ax, batches, values, colour, label)
            printed = published[optimiser]
            circles = {"mfc": colour, "mec": "black", "ms": 6, "zorder": 4, "label": "published"}
            ax.plot(BLOCK * np.arange(1, len(printed) + 1), printed, "o", **circles)
        ax.axhline(mean_answer, color="0.4", ls=":", label="always the mean")
        ax.set(title=STARTS[start], xlabel="batches", yscale="log")
        _ticks(ax, [n for n in (20, 50, 100, 200, 500, 1000) if n <= batches[-1]])
    axes[0][0].set_ylabel("loss, mean of 20 batches")
    _legend(fig, axes[0][0])
    return fig


def slow_plot(
    norms: Values,
    scan: Mapping[str, Mapping[float, np.ndarray]],
    defaults: Mapping[str, float],
    batches: int,
) -> Figure:
    """`norms[group]` (R,): gradients at the start; `scan[optimiser][rate]` (R,): losses on dev."""
    fig, (left, right) = new_figure(
        "why_sgd_is_slow",
        "Left: the norm of the gradient before training on a logarithmic axis, one row for each "
        f"of: {', '.join(norms)}; every dot is a seed, the black bar their mean. Right: the "
        f"loss on the dev times after {batches} batches over the learning rate, both axes "
        "logarithmic; Adam and SGD in two colours, dots are seeds, lines their means; a large open "
        "circle marks the framework's default.",
        ncols=2, figsize=(10.0, 3.9),
    )  # fmt: skip
    sns.stripplot(dict(norms), ax=left, orient="h", color=PALETTE[7], size=4, jitter=False)
    left.plot([np.mean(v) for v in norms.values()], range(len(norms)), "k|", ms=14, mew=2)
    left.set(xscale="log", xlabel="norm of the gradient before training")
    for optimiser, by_rate in scan.items():
        label, colour = OPTIMISERS[optimiser]
        means = {rate: np.mean(values) for rate, values in by_rate.items()}
        right.plot(list(means), list(means.values()), color=colour, lw=1.8, label=label)
        for rate, values in by_rate.items():
            right.plot(np.full(len(values), rate), values, "o", color=colour, ms=3.5, alpha=0.6)
        default = defaults[optimiser]
        right.plot(default, means.get(default, np.nan), "o", mfc="none", mec=colour, ms=13)
    right.set(xscale="log", yscale="log", xlabel="learning rate")
    right.set_ylabel(f"dev loss after {batches} batches")
    right.legend(frameon=False)
    return fig


def note_plot(
    before: np.ndarray, after: Mapping[int, np.ndarray], published: Mapping[str, Sequence[float]]
) -> Figure:
    """The note's table: outputs (R, 9) before training and after some numbers of batches, beside
    `published["label"]`, `["initial_prediction"]` and `["final_prediction"]`."""
    fig, (left, right) = new_figure(
        "note",
        "Outputs of the nine steps for the window of the published table. Left: before training; "
        f"right: after {' and after '.join(f'{n:,}' for n in after)} batches with Adam; {SEEDS}. "
        "Open circles are the published outputs. Right, too: the printed labels, which are sin t, "
        "as crosses, and half of them, what the net is trained on, as a dashed line.",
        ncols=2, figsize=(10.0, 4.1),
    )  # fmt: skip
    steps = np.arange(1, before.shape[1] + 1)
    circles = {"mfc": "none", "mec": "black", "ms": 6, "zorder": 4, "label": "published outputs"}
    _seeds(left, steps, 1e5 * before, PALETTE[7], "ours, before")
    left.plot(steps, 1e5 * np.array(published["initial_prediction"]), "o", **circles)
    left.axhline(0, color="0.4", lw=0.8)
    left.set(title="before training", xlabel="step", ylabel="output × 100,000", xticks=steps)
    for (batches, values), colour in zip(after.items(), (PALETTE[0], PALETTE[4]), strict=False):
        _seeds(right, steps, values, colour, f"ours, {batches:,} batches")
    right.plot(steps, published["final_prediction"], "o", **circles)
    labels = np.array(published["label"])
    right.plot(steps, labels, "x", color=PALETTE[3], label="printed labels, sin t")
    right.plot(steps, labels / 2, "--", color=PALETTE[3], label="sin(t)/2")
    right.set(title="after training", xlabel="step", ylabel="output", xticks=steps, ylim=(0, None))
    _legend(fig, left, right, columns=3)
    return fig


def prediction_plot(curves: Mapping[int, Values], ends: np.ndarray, seen: float) -> Figure:
    """The last outputs over the true curve: `curves[length][way]` (R, B) at the times `ends`."""
    fig, axes = new_figure(
        "predictions",
        "What the nets say for sin(t)/2 over t, one panel for each length of the window: "
        f"{', '.join(map(str, curves))} points. The true curve is black; one colour for each way "
        "of training, a band from the lowest to the highest seed around the mean. Times beyond "
        f"{seen:g}, on which none was trained, lie on grey.",
        ncols=len(curves), figsize=(3.3 * len(curves) + 0.4, 4.0), sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, (length, by_way) in zip(axes[0], curves.items(), strict=True):
        ax.axvspan(seen, ends.max(), color="0.88", zorder=0, lw=0)
        for way, values in by_way.items():
            label, colour, _ = WAYS[way]
            ax.fill_between(ends, values.min(0), values.max(0), color=colour, alpha=0.25, lw=0)
            ax.plot(ends, values.mean(0), color=colour, lw=1.8, label=label)
        ax.plot(ends, np.sin(ends) / 2, color="black", lw=1.2, label="sin(t)/2")
        ax.set(title=f"{length} points read", xlabel="t", xlim=(ends.min(), ends.max()))
    axes[0][0].set_ylabel("last output")
    _legend(fig, axes[0][0], columns=3)
    return fig


def error_plot(
    places: Values, lengths: Values, names: Sequence[int], lines: Mapping[str, float]
) -> Figure:
    """Errors by step `places[way]` (R, 9) and by length `lengths[way]` (R, len(names)); `lines` are
    reference errors at the last of nine steps, by name."""
    fig, (left, right) = new_figure(
        "error_over_place_and_length",
        "Root mean square error on a logarithmic axis. Left: after each of nine steps; grey lines "
        f"without seeds: {', '.join(lines)}. Right: of the last output over the length of the "
        "window, at the same labels for every length. One colour and mark for each way of "
        f"training, {SEEDS}.",
        ncols=2, figsize=(10.0, 4.3), sharey=True,
    )  # fmt: skip
    for way, (label, colour, marker) in WAYS.items():
        _seeds(left, range(1, 10), places[way], colour, label, marker=marker, ms=5)
        _seeds(right, names, lengths[way], colour, label, marker=marker, ms=5)
    for (name, value), style in zip(lines.items(), (":", "--"), strict=False):
        left.axhline(value, color="0.3", ls=style, lw=1.4, label=name)
    left.set(yscale="log", xlabel="step", ylabel="root mean square error", xticks=range(1, 10))
    _ticks(right, names)
    right.set_xlabel("points in the window")
    right.axvline(9, color="0.4", lw=0.8)
    _legend(fig, left, columns=3)
    return fig


def gate_plot(
    ends: np.ndarray, gates: Mapping[str, tuple[np.ndarray, np.ndarray]], steps: Sequence[int]
) -> Figure:
    """What an output gate can reach after `steps`, and what trained ones do: `gates[way]` holds the
    output gate and tanh(c) of the top cell, (R, B) each, at times `ends`."""
    fig, axes = new_figure(
        "output_gate",
        "Left: the largest output that an output gate o allows, o·tanh(k), after "
        f"{', '.join(map(str, steps))} and very many steps; level lines at one half, the peak of "
        "sin(t)/2, and at 1, that of sin t. The others: output gate, tanh(c) and their product at "
        "the last step over t, for nets trained on the "
        f"{' and on '.join(WAYS[w][0] for w in gates)}; {SEEDS}.",
        ncols=1 + len(gates), figsize=(3.5 * (1 + len(gates)) + 0.3, 4.0),
    )  # fmt: skip
    bound, *trained = axes
    o = np.linspace(0, 1, 101)
    for k, style in zip([*steps, 50], ("-", "--", "-.", ":"), strict=False):
        label = f"after {k} step{'s' if k > 1 else ''}" if k < 50 else "in the limit"
        bound.plot(o, o * np.tanh(k), color="black", ls=style, lw=1.4, label=label)
    for value, what in ((0.5, "peak of sin(t)/2"), (1.0, "peak of sin t")):
        bound.axhline(value, color=PALETTE[3], lw=1)
        bound.text(0.01, value + 0.01, what, fontsize=9)
    bound.set(title="what a gate allows", xlabel="output gate o", ylabel="bound of the output")
    bound.set(xlim=(0, 1), ylim=(0, 1.1))
    bound.legend(frameon=False, fontsize=8, loc="lower right")
    for ax, (way, (gate, squashed)) in zip(trained, gates.items(), strict=True):
        _seeds(ax, ends, gate, PALETTE[0], "output gate o", ls="--")
        _seeds(ax, ends, squashed, PALETTE[1], "tanh(c)", ls="-.")
        _seeds(ax, ends, gate * squashed, PALETTE[2], "output o·tanh(c)")
        ax.set(title=WAYS[way][0], xlabel="t", ylabel="value", ylim=(0, 1.1))
    _legend(fig, trained[0], columns=3)
    return fig


def free_run_plot(
    true: np.ndarray, said: Values, error: Values, baselines: Values, limit: float
) -> Figure:
    """One free run (N,) with the first seed's forecasts `said[way]` (N,), and the errors over all
    phases, `error[way]` (R, N) and `baselines[name]` (N,)."""
    fig, (top, bottom) = new_figure(
        "free_run",
        "Forecasts that feed on themselves. Above: the true wave in black and what the first "
        "seed's nets say, one colour for each way of training. Below: the root mean square error "
        f"over all phases, both axes logarithmic and errors above 10 drawn at 10; {SEEDS}; "
        f"{', '.join(BASELINES[name][0] for name in baselines)} in other strokes; the level line "
        f"at {limit:g} is where a forecast counts as drifted.",
        nrows=2, figsize=(9.6, 6.2),
    )  # fmt: skip
    steps = np.arange(1, len(true) + 1)
    top.plot(steps, true, color="black", lw=1.2, label="true values")
    for way, values in said.items():
        label, colour, _ = WAYS[way]
        top.plot(steps, values, color=colour, lw=1.5, label=label)
        _seeds(bottom, steps, np.maximum(error[way], 1e-9), colour, label)
    for name, values in baselines.items():
        label, colour, style = BASELINES[name]
        bottom.plot(steps, np.clip(values, 1e-9, 10), color=colour, ls=style, lw=1.5, label=label)
    bottom.axhline(limit, color="black", lw=0.8, label=f"the limit, {limit:g}")
    for ax in (top, bottom):
        ax.set(xlabel="steps of the free run", xlim=(1, len(true)))
    top.set(ylabel="value", ylim=(-1, 1))
    bottom.set(yscale="log", ylabel="root mean square error")
    _ticks(bottom, [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n <= len(true)])
    _legend(fig, top, bottom)
    return fig
