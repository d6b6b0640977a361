"""The plots of chapter 03, and the explorer that redraws one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.measure.claims import MIN_SEEDS
from labkit.measure.plots import COLOURS, PALETTE, new_figure, png_bytes, show, show_table
from labkit.memory.ensemble import Ensemble
from labkit.memory.gates import Condition, verdict_rows

PANELS = {
    "i": ("input gate", 0.0, 1.0, "viridis"),
    "f": ("forget gate", 0.0, 1.0, "viridis"),
    "o": ("output gate", 0.0, 1.0, "viridis"),
    "c": ("cell state", -5.0, 5.0, "vlag"),
}
STARTS = {"zero": PALETTE[0], "xavier": PALETTE[1]}
MARKERS = {"zero": "o", "xavier": "D"}
DIRECTIONS = {"rises": (1, PALETTE[2]), "falls": (-1, PALETTE[4])}
STATES = {"c": ("cell state c", "0.15", "o"), "h": ("hidden state h", PALETTE[4], "s")}
FRAME = PALETTE[3]
JUDGED = {("f", "falls"), ("o", "falls"), ("o", "rises"), ("c", "falls"), ("c", "rises")}


def _heat_map(ax: Any, values: np.ndarray, digits: Sequence[int], panel: str) -> None:
    """One gate (T, H): hidden units down, the digits read across."""
    title, low, high, colours = PANELS[panel]
    H = values.shape[1]
    sns.heatmap(
        values.T,
        ax=ax,
        vmin=low,
        vmax=high,
        cmap=colours,
        cbar_kws={"shrink": 0.8},
        rasterized=True,
    )
    ax.set(title=title, xlabel="digit read")
    ax.set_xticks(np.arange(len(digits)) + 0.5, [str(d) for d in digits], rotation=0)
    ax.set_yticks(np.arange(0, H, 5) + 0.5, [str(unit) for unit in range(0, H, 5)], rotation=0)


def gate_maps(
    name: str,
    trace: Mapping[str, np.ndarray],
    digits: Sequence[int],
    predicted: int,
    model: str,
    framed: int,
) -> Figure:
    """Four heat maps of one sequence: `trace` holds "i", "f", "o" and "c", each (T, H).

    `model` says which model it is, `predicted` the sum that it gives; a frame is drawn around the
    column of step `framed`, from 0.
    """
    text = " ".join(map(str, digits))
    fig, axes = new_figure(
        name,
        f"Four heat maps of an LSTM reading {text}, {model}, which predicts {predicted}: input, "
        "forget and output gate on a scale from 0 to 1, cell state from −5 to 5. Hidden units run "
        f"down, the digits read run across; the column of step {framed + 1} is framed.",
        ncols=4,
        figsize=(12.5, 5.2),
        sharey=True,
    )
    for ax, panel in zip(axes, PANELS, strict=True):
        _heat_map(ax, np.asarray(trace[panel]), digits, panel)
        ax.add_patch(_frame(framed, len(trace[panel][0])))
    axes[0].set_ylabel("hidden unit")
    fig.suptitle(f"{text}  →  {predicted}   ({model})")
    return fig


def _dots(ax: Any, x: float, measure: Mapping[str, Any], start: str, label: str | None) -> None:
    """Every seed a dot, the mean a line; with enough seeds its interval a line across it."""
    raw = np.asarray(measure["raw"])
    colour = STARTS[start]
    spread = np.linspace(-0.09, 0.09, len(raw)) if len(raw) > 1 else np.zeros(1)
    ax.scatter(x + spread, raw, s=14, color=colour, marker=MARKERS[start], alpha=0.6, lw=0)
    ax.hlines(measure["mean"], x - 0.15, x + 0.15, color=colour, lw=2.4, label=label)
    if measure["n"] >= MIN_SEEDS:
        ax.vlines(x, measure["low"], measure["high"], color=colour, lw=1.4)


def _marks(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What the marks of `_dots` stand for, as a sentence for an alternative text."""
    n = next(iter(next(iter(found.values())).values()))["n"]
    interval = f"; fewer than {MIN_SEEDS} models, so no intervals"
    if n >= MIN_SEEDS:
        interval = ", an upright line its 95 % interval"
    return f"Every model is a dot, a level line the mean{interval}."


def _conditions(ax: Any, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Dots for each condition and start, `found[start][condition]` a summary over seeds."""
    conditions = list(next(iter(found.values())))
    for shift, (start, by_name) in zip((-0.2, 0.2), found.items(), strict=False):
        for x, condition in enumerate(conditions):
            label = f"{start} start" if x == 0 else None
            _dots(ax, x + shift, by_name[condition], start, label)
    ax.set_xticks(range(len(conditions)), conditions)
    ax.set_xlim(-0.5, len(conditions) - 0.5)


def input_gate_spreads(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]], limit: float
) -> Figure:
    """`found[start][name]` a summary over seeds; the limit is drawn over all but "digits"."""
    fig, ax = new_figure(
        "input_gate_spread",
        "Spread of the input gate over zeros only, over the zeros around a disturbing digit, over "
        "those before and after it, and over the ten digits at one step; "
        f"{' and '.join(f'{start} start' for start in found)}. A dotted line marks the limit for "
        f"zeros, {limit}. {_marks(found)}",
        figsize=(8.2, 4.2),
    )
    _conditions(ax, found)
    zeros = len(next(iter(found.values()))) - 1
    ax.hlines(limit, -0.5, zeros - 0.5, color="black", ls=":", label="limit for zeros")
    ax.axvline(zeros - 0.5, color=COLOURS["chance"], lw=0.8)
    ax.set_ylabel("spread of the input gate\n(standard deviation)")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def ablation_plot(
    found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], chance: float
) -> Figure:
    """Accuracies by condition, `found[when][start][condition]` a summary over seeds."""
    fig, axes = new_figure(
        "ablation",
        "Accuracy over all pairs, places and digits, as trained and with the input, forget or "
        f"output gate held at 1 or at its mean. Panels: {', '.join(found)}; the dotted line is "
        f"chance. {_marks(next(iter(found.values())))}",
        nrows=len(found),
        figsize=(8.6, 3.2 * len(found)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, (when, by_start) in zip(axes[:, 0], found.items(), strict=True):
        _conditions(ax, by_start)
        ax.axhline(chance, color=COLOURS["chance"], ls=":", label="chance")
        ax.set(ylabel="accuracy", title=when, ylim=(0, 1.05))
    axes[0, 0].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def place_curves(accuracy: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
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
        values, colour = np.asarray(by_name["places"]), STARTS[start]
        places = np.arange(3, values.shape[1] + 3)
        ax.plot(places, values.T, color=colour, alpha=0.4, lw=0.9)
        mean, marker = values.mean(0), MARKERS[start]
        ax.plot(places, mean, color=colour, marker=marker, ms=5, lw=2.2, label=f"{start} start")
        alone = float(np.asarray(by_name["zeros"]).mean())
        ax.axhline(alone, color=colour, ls="--", lw=1.2, label=f"{start} start, only zeros")
        ax.set_xticks(places)
    ax.set(xlabel="step of the disturbing digit", ylabel="accuracy", ylim=(0, 1.05))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def digit_responses(shares: Mapping[str, Mapping[str, np.ndarray]], limit: float) -> Figure:
    """Shares of units that fall or rise, `shares[start]["f/falls"]` and so on, each (R, 10)."""
    digits = np.arange(1, 10)
    fig, axes = new_figure(
        "digit_responses",
        "Share of hidden units that fall (below the axis) and rise (above it) where a digit from 1 "
        "to 9 stands instead of a zero. Columns: input gate, forget gate, output gate, size of the "
        f"cell state; rows: {' and '.join(f'{s} start' for s in shares)}. Bars are means, every "
        f"dot is a model; dotted lines mark the limit, {limit:g}, of what is claimed.",
        nrows=len(shares),
        ncols=len(PANELS),
        figsize=(11.5, 2.6 * len(shares) + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, (start, by_name) in zip(axes, shares.items(), strict=True):
        for ax, (panel, (title, *_)) in zip(row, PANELS.items(), strict=True):
            for direction, (sign, colour) in DIRECTIONS.items():
                values = sign * np.asarray(by_name[f"{panel}/{direction}"])[:, 1:]  # (R, 9)
                ax.bar(digits, values.mean(0), color=colour, alpha=0.6)
                x = digits + np.linspace(-0.2, 0.2, len(values))[:, None]
                ax.scatter(x, values, s=7, color="0.15", alpha=min(1.0, 8 / len(values)), lw=0)
                if (panel, direction) in JUDGED:
                    ax.axhline(sign * limit, color="black", ls=":", lw=1)
            ax.axhline(0, color="black", lw=0.8)
            if ax in axes[0]:
                ax.set_title("size of the cell state" if panel == "c" else title)
            ax.set_xticks(digits)
        row[0].set_ylabel(f"{start} start\nfalls ← share of units → rises")
        row[0].yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    for ax in axes[-1]:
        ax.set_xlabel("digit instead of 0")
    return fig


def show_verdict(verdict: Mapping[str, Any], conditions: Mapping[str, Sequence[Condition]]) -> None:
    """Display a claim in its own words, the verdict of `gates.judge`, and every condition."""
    text = f"Claim {verdict['id']}: “{verdict['claim']}” **{verdict['verdict'].capitalize()}.**"
    display(Markdown(text))
    head = ["start", "condition", "mean over models", "95 % interval (or range)", "must be"]
    show_table(head, verdict_rows(conditions))


def read_out_curves(
    accuracy: Mapping[str, Mapping[str, np.ndarray]], chance: Mapping[str, float]
) -> Figure:
    """Probe accuracy over the steps, `accuracy[start]["c/known"]` and so on, each (R, T)."""
    kinds = {
        "known": "pairs that the probe was fitted on",
        "held_out": "pairs held out of the probe",
        "held_out_zeros": "held out, only zeros behind them",
    }
    fig, axes = new_figure(
        "read_out",
        "Accuracy with which a linear probe reads the sum after each step. Columns: probed pairs "
        "known, held out, and held out of sequences without a disturbing digit; rows: "
        f"{' and '.join(f'{s} start' for s in accuracy)}. Cell state and hidden state in two "
        "colours, every seed a faint line, their mean a strong one; the dotted line is chance.",
        nrows=len(accuracy),
        ncols=len(kinds),
        figsize=(12.0, 2.8 * len(accuracy) + 0.4),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, (start, by_name) in zip(axes, accuracy.items(), strict=True):
        for ax, (kind, title) in zip(row, kinds.items(), strict=True):
            for state, (label, colour, marker) in STATES.items():
                values = np.asarray(by_name[f"{state}/{kind}"])
                steps = np.arange(1, values.shape[1] + 1)
                ax.plot(steps, values.T, color=colour, alpha=0.4, lw=0.9)
                ax.plot(
                    steps, values.mean(0), color=colour, marker=marker, ms=4, lw=2.2, label=label
                )
            ax.axhline(
                chance[kind.removesuffix("_zeros")], color=COLOURS["chance"], ls=":", label="chance"
            )
            ax.set_xticks(steps)
            if ax in axes[0]:
                ax.set_title(title, fontsize=11)
        row[0].set_ylabel(f"{start} start\naccuracy of the probe")
    for ax in axes[-1]:
        ax.set_xlabel("digits read")
    axes[0][0].set_ylim(-0.02, 1.05)
    axes[0][0].legend(frameon=True, loc="lower right", fontsize=9)
    return fig


# the explorer


def explorer_plot(
    ensemble: Ensemble, replica: int, digits: Sequence[int], panel: str, step: int
) -> tuple[Figure, int]:
    """One gate over the whole sequence, its units at one step, and the sums that come out.

    `panel` is "i", "f", "o" or "c", `step` counts from 0. Returns the figure and the predicted sum.
    """
    if panel not in PANELS:
        raise ValueError(f"panel must be one of {', '.join(PANELS)}; got {panel!r}")
    if not 0 <= step < len(digits):
        raise ValueError(f"step must be in 0..{len(digits) - 1}, got {step}")
    X = torch.tensor([list(digits)])
    values = ensemble.trace(X)[panel][replica, 0].cpu().numpy()  # (T, H)
    chances = ensemble.logits(X)[replica, 0].softmax(-1).cpu().numpy()  # (C,)
    title, low, high, _ = PANELS[panel]
    predicted, text = int(chances.argmax()), " ".join(map(str, digits))

    fig, (left, middle, right) = new_figure(
        "explorer",
        f"{title.capitalize()} of the model with seed {ensemble.seeds[replica]} reading {text}: "
        f"heat map over all steps, every unit at step {step + 1}, and the probability of each sum; "
        f"it predicts {predicted}.",
        ncols=3,
        figsize=(12.0, 4.8),
        width_ratios=(1.3, 1, 1),
    )
    _heat_map(left, values, digits, panel)
    left.set_ylabel("hidden unit")
    left.add_patch(_frame(step, values.shape[1]))
    middle.barh(range(values.shape[1]), values[step], color=PALETTE[7])
    middle.set(title=f"at step {step + 1} (digit {digits[step]})", xlabel=title)
    middle.set(xlim=(low, high), ylim=(values.shape[1] - 0.5, -0.5))
    colours = [PALETTE[2] if s == predicted else PALETTE[7] for s in range(len(chances))]
    right.bar(range(len(chances)), chances, color=colours)
    right.set(title=f"predicts {predicted}", xlabel="sum", ylabel="probability", ylim=(0, 1))
    right.set_xticks(range(0, len(chances), 3))
    return fig, predicted


def _frame(step: int, height: int) -> Any:
    return Rectangle((step, 0), 1, height, fill=False, edgecolor=FRAME, linewidth=2.5)


class GateExplorer:
    """Widgets to choose digits, step, gate and model, above the plot that follows them.

    `widget` is what a notebook displays; `predicted` is the sum now predicted.
    """

    def __init__(self, ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> None:
        import ipywidgets as widgets

        self.ensembles = dict(ensembles)
        seeds = next(iter(self.ensembles.values())).seeds
        box = {"layout": widgets.Layout(width="3.6em")}
        self.digits = [widgets.Dropdown(options=range(10), value=d, **box) for d in digits]
        self.step = widgets.IntSlider(value=5, min=1, max=len(digits), description="step")
        self.panel = widgets.Dropdown(
            options=[(title, key) for key, (title, *_) in PANELS.items()],
            value="f",
            description="shown",
        )
        self.start = widgets.Dropdown(options=list(self.ensembles), description="start")
        self.replica = widgets.Dropdown(
            options=[(str(seed), index) for index, seed in enumerate(seeds)], description="seed"
        )
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self.text = widgets.HTML()

        self.step.value = min(5, len(digits))
        self.controls = [*self.digits, self.step, self.panel, self.start, self.replica]
        for control in self.controls:
            control.observe(self._redraw, names="value")
        rows = [self.digits, [self.step, self.panel], [self.start, self.replica]]
        self.widget = widgets.VBox([*map(widgets.HBox, rows), self.image, self.text])
        self._redraw()

    def _redraw(self, change: Any = None) -> None:
        fig, self.predicted = self.plot()
        self.image.value = png_bytes(fig)
        self.text.value = fig.labkit_alt

    def plot(self) -> tuple[Figure, int]:
        """The plot of what is chosen now, and the predicted sum."""
        return explorer_plot(
            self.ensembles[self.start.value],
            self.replica.value,
            [digit.value for digit in self.digits],
            self.panel.value,
            self.step.value - 1,
        )


def explore(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> None:
    """Display the explorer, or its plot alone where a notebook runs with nobody to turn a knob.

    `python -m labkit` names a progress file in `LABKIT_PROGRESS` when it runs a notebook; then no
    widget is made, so no widget state ends up in what it stores.
    """
    if os.environ.get("LABKIT_PROGRESS"):
        first = next(iter(ensembles.values()))
        show(explorer_plot(first, 0, digits, "f", min(4, len(digits) - 1))[0])
    else:
        display(GateExplorer(ensembles, digits).widget)
