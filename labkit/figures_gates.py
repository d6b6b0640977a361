"""The plots of chapter 03, and the explorer that redraws one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from IPython.display import display
from matplotlib.figure import Figure

from labkit.ensemble import Ensemble
from labkit.figures import COLOURS, PALETTE, new_figure, png_bytes, show

PANELS = {
    "i": ("input gate", 0.0, 1.0, "viridis"),
    "f": ("forget gate", 0.0, 1.0, "viridis"),
    "o": ("output gate", 0.0, 1.0, "viridis"),
    "c": ("cell state", -5.0, 5.0, "vlag"),
}
STARTS = {"zero": PALETTE[0], "xavier": PALETTE[1]}
MARKERS = {"zero": "o", "xavier": "D"}


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
    name: str, trace: Mapping[str, np.ndarray], digits: Sequence[int], predicted: int, model: str
) -> Figure:
    """Four heat maps of one sequence: `trace` holds "i", "f", "o" and "c", each (T, H).

    `model` says which model it is, `predicted` the sum that it gives.
    """
    text = " ".join(map(str, digits))
    fig, axes = new_figure(
        name,
        f"Four heat maps of an LSTM reading {text}, {model}, which predicts {predicted}: input, "
        "forget and output gate on a scale from 0 to 1, cell state from −5 to 5. Hidden units run "
        "down, the digits read run across.",
        ncols=4,
        figsize=(12.5, 5.2),
        sharey=True,
    )
    for ax, panel in zip(axes, PANELS, strict=True):
        _heat_map(ax, np.asarray(trace[panel]), digits, panel)
    axes[0].set_ylabel("hidden unit")
    fig.suptitle(f"{text}  →  {predicted}   ({model})")
    return fig


def _dots(ax: Any, x: float, measure: Mapping[str, Any], start: str, label: str | None) -> None:
    """Every seed a dot, the mean a line with its interval beside them."""
    raw = np.asarray(measure["raw"])
    colour = STARTS[start]
    spread = np.linspace(-0.09, 0.09, len(raw)) if len(raw) > 1 else np.zeros(1)
    ax.scatter(x + spread, raw, s=14, color=colour, marker=MARKERS[start], alpha=0.4, lw=0)
    mean = measure["mean"]
    low = mean if measure["low"] is None else measure["low"]
    high = mean if measure["high"] is None else measure["high"]
    ax.hlines(mean, x - 0.15, x + 0.15, color=colour, lw=2.4, label=label)
    ax.vlines(x, low, high, color=colour, lw=1.4)


def by_condition(
    name: str,
    alt: str,
    found: Mapping[str, Mapping[str, Mapping[str, Any]]],
    ylabel: str,
    line: tuple[str, float] | None = None,
) -> Figure:
    """Dots for each condition and start, `found[start][condition]` a summary over seeds.

    `line` is the label and height of a dotted line to compare with.
    """
    conditions = list(next(iter(found.values())))
    fig, ax = new_figure(name, alt, figsize=(1.15 * len(conditions) + 2.4, 4.2))
    for shift, (start, by_name) in zip((-0.2, 0.2), found.items(), strict=False):
        for x, condition in enumerate(conditions):
            label = f"{start} start" if x == 0 else None
            _dots(ax, x + shift, by_name[condition], start, label)
    if line:
        ax.axhline(line[1], color=COLOURS["chance"], ls=":", label=line[0])
    ax.set_xticks(range(len(conditions)), conditions)
    ax.set(ylabel=ylabel, xlim=(-0.5, len(conditions) - 0.5))
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def digit_responses(shares: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Shares of units that fall or rise, `shares[start]["f/falls"]` and so on, each (R, 10)."""
    digits = range(1, 10)
    fig, axes = new_figure(
        "digit_responses",
        "Share of hidden units that fall (below the axis) and rise (above it) where a digit from 1 "
        "to 9 stands instead of a zero. Columns: input gate, forget gate, output gate, size of the "
        f"cell state; rows: {' and '.join(f'{s} start' for s in shares)}. Every seed a faint line, "
        "their mean a strong one.",
        nrows=len(shares),
        ncols=len(PANELS),
        figsize=(11.5, 2.6 * len(shares) + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, (start, by_name) in zip(axes, shares.items(), strict=True):
        for ax, (panel, (title, *_)) in zip(row, PANELS.items(), strict=True):
            for direction, sign, colour in (("rises", 1, PALETTE[1]), ("falls", -1, PALETTE[0])):
                values = sign * np.asarray(by_name[f"{panel}/{direction}"])[:, 1:]
                ax.plot(digits, values.T, color=colour, alpha=0.25, lw=0.7)
                ax.plot(digits, values.mean(0), color=colour, lw=2.2, marker="o", ms=4)
            ax.axhline(0, color="black", lw=0.8)
            if ax in axes[0]:
                ax.set_title("size of the cell state" if panel == "c" else title)
            ax.set_xticks(list(digits))
        row[0].set_ylabel(f"{start} start\nfalls ← share of units → rises")
        row[0].yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    for ax in axes[-1]:
        ax.set_xlabel("digit instead of 0")
    return fig


def read_out_curves(
    accuracy: Mapping[str, Mapping[str, np.ndarray]], chance: Mapping[str, float]
) -> Figure:
    """Probe accuracy over the steps, `accuracy[start]["c/known"]` and so on, each (R, T)."""
    kinds = {
        "known": "pairs that the probe was fitted on",
        "held_out": "pairs held out of the probe",
    }
    states = {"c": "cell state c", "h": "hidden state h"}
    fig, axes = new_figure(
        "read_out",
        "Accuracy with which a linear probe reads the sum after each step. Columns: probed pairs "
        f"known or held out; rows: {' and '.join(f'{s} start' for s in accuracy)}. Cell state and "
        "hidden state in two colours, every seed a faint line, their mean a strong one; the dotted "
        "line is chance.",
        nrows=len(accuracy),
        ncols=2,
        figsize=(9.0, 2.8 * len(accuracy) + 0.4),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, (start, by_name) in zip(axes, accuracy.items(), strict=True):
        for ax, (kind, title) in zip(row, kinds.items(), strict=True):
            for colour, marker, (state, label) in zip(PALETTE, "os", states.items(), strict=False):
                values = np.asarray(by_name[f"{state}/{kind}"])
                steps = np.arange(1, values.shape[1] + 1)
                ax.plot(steps, values.T, color=colour, alpha=0.25, lw=0.7)
                ax.plot(
                    steps, values.mean(0), color=colour, marker=marker, ms=4, lw=2.2, label=label
                )
            ax.axhline(chance[kind], color=COLOURS["chance"], ls=":", label="chance")
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
    middle.barh(range(values.shape[1]), values[step], color=PALETTE[0])
    middle.set(title=f"after step {step + 1} (digit {digits[step]})", xlabel=title)
    middle.set(xlim=(low, high), ylim=(values.shape[1] - 0.5, -0.5))
    colours = [PALETTE[1] if s == predicted else PALETTE[7] for s in range(len(chances))]
    right.bar(range(len(chances)), chances, color=colours)
    right.set(title=f"predicts {predicted}", xlabel="sum", ylabel="probability", ylim=(0, 1))
    right.set_xticks(range(0, len(chances), 3))
    return fig, predicted


def _frame(step: int, height: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((step, 0), 1, height, fill=False, edgecolor=PALETTE[1], linewidth=2.5)


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

    The lab's own runs name a progress file in `LABKIT_PROGRESS`; then no widget is made, so no
    widget state ends up in a stored notebook.
    """
    if os.environ.get("LABKIT_PROGRESS"):
        first = next(iter(ensembles.values()))
        show(explorer_plot(first, 0, digits, "f", min(4, len(digits) - 1))[0])
    else:
        display(GateExplorer(ensembles, digits).widget)
