"""What chapter 03 shows: pictures of the gates, an explorer, and its row of the report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.measure import plots
from labkit.measure.claims import Row
from labkit.measure.plots import PALETTE
from labkit.memory.model import Ensemble

MAPS = {"i": "input gate", "f": "forget gate", "o": "output gate", "c": "cell state"}


def gate_rows(measures: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The report's row of chapter 03: how many models predict what the source printed."""
    table = published["gates"]
    expected, predictions = table["prediction"], measures["prediction"]
    hits, n = predictions.count(expected), len(predictions)
    verdict = {0: "not reproduced", n: "reproduced"}.get(hits, f"reproduced by {hits} of {n} seeds")
    ours = str(predictions[0]) if len({*predictions}) == 1 else f"{hits} × {expected}"
    what = f"prediction for {' '.join(map(str, table['sequence']))}"
    reason = f"{expected} predicted by {hits} of {n} trained models"
    return {"Numbers": [Row(what, str(expected), f"{ours}, n = {n}", verdict, reason)]}


def gate_maps(
    trace: Mapping[str, Any], digits: Sequence[int], predicted: int, model: str, framed: int
) -> Figure:
    """Heat maps of `trace`, "i", "f", "o", "c", (T, H) each; step `framed`, from 0, has a frame."""
    text = " ".join(map(str, digits))
    alt = (
        f"Heat maps of an LSTM reading {text}, {model}, which predicts {predicted}: gates i, f and "
        "o on a scale from 0 to 1, cell state from −5 to 5; hidden units down, digits read across; "
        f"the column of step {framed + 1} is framed."
    )
    fig, axes = plots.new_figure("gate_maps", alt, ncols=4, figsize=(12.5, 5.2), sharey=True)
    for ax, (panel, title) in zip(axes, MAPS.items(), strict=True):
        values = np.asarray(trace[panel]).T  # (H, T)
        low, high, colours = (-5, 5, "vlag") if panel == "c" else (0, 1, "viridis")
        style = {"vmin": low, "vmax": high, "cmap": colours, "cbar_kws": {"shrink": 0.8}}
        sns.heatmap(values, ax=ax, xticklabels=list(digits), yticklabels=5, **style)
        ax.tick_params(rotation=0)
        ax.set(title=title, xlabel="digit read")
        frame = Rectangle((framed, 0), 1, len(values), fill=False, ec=PALETTE[3], lw=2.5)
        ax.add_patch(frame)
    axes[0].set_ylabel("hidden unit")
    fig.suptitle(f"{text}  →  {predicted}   ({model})")
    return fig


def explore(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> None:
    """Display widgets to choose digits, step and model, above the four maps that follow them;
    in a run (`LABKIT_PROGRESS` is set) only the maps, so that no widget's state is stored."""

    def draw(row: str, step: int, start: str, seed: int) -> None:
        ensemble, chosen = ensembles[start], [int(digit) for digit in row.split()]
        replica, X = ensemble.seeds.index(seed), torch.tensor([chosen])
        trace = {name: values[replica, 0] for name, values in ensemble.trace(X).items()}
        predicted = int(ensemble.logits(X)[replica].argmax())
        model = f"seed {seed}, {start} start"
        plots.show(gate_maps(trace, chosen, predicted, model, min(step, len(chosen)) - 1))

    row, start = " ".join(map(str, digits)), next(iter(ensembles))
    seeds = ensembles[start].seeds
    if os.environ.get("LABKIT_PROGRESS"):
        return draw(row, 5, start, seeds[0])
    text = ipywidgets.Text(row, continuous_update=False, description="digits")
    knobs = {"step": (1, len(digits)), "start": list(ensembles), "seed": list(seeds)}
    ipywidgets.interact(draw, row=text, **knobs)
