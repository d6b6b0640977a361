"""What chapter 03 shows: pictures of the gates, its diagrams, an explorer, a row of the report."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from labkit.lab import machine
from labkit.measure import diagrams, plots
from labkit.measure.claims import Row
from labkit.measure.plots import PALETTE
from labkit.measure.statistics import Measure
from labkit.memory.data import ADDENDS, DIGITS, all_pairs, with_digit
from labkit.memory.figures import INKS
from labkit.memory.gates import NAMES
from labkit.memory.model import Ensemble

EXPLORER = machine.ROOT / "site" / "static" / "explorer"  # the site shows the same one


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


def digit_responses(measures: Mapping[str, Measure], start: str) -> Figure:
    """Units that rise (up) and fall (down) at a 1: every model a dot, the mean a mark, against a
    zero in its place; open diamonds: against the step before, which is what one picture shows."""
    alt = (
        "Shares of the hidden units whose input gate, forget gate, output gate or size of the cell "
        f"state rises, drawn upwards, or falls, drawn downwards, at a 1; {start} start. "
        "Every model is a dot, the mean a level mark: against the same sequence with a zero in "
        "that place. Open diamonds: means against the step before, as one picture shows it."
    )
    fig, ax = plots.new_figure("digit_responses", alt, figsize=(8.0, 4.4))
    diamond = {"ls": "", "marker": "D", "ms": 8, "mfc": "none", "mec": "black"}
    diamond["label"] = "what one picture shows: against the step before"
    for (x, gate), (sign, way) in product(enumerate(NAMES), ((-1, "falls"), (1, "rises"))):
        name = f"gates/{start}/digit_1/{gate}"
        measure, seen = measures[f"{name}/{way}"], measures[f"{name}_seen/{way}"]
        dots = x + np.linspace(-0.15, 0.15, measure["n"])
        ax.scatter(dots, sign * np.array(measure["raw"]), s=14, color=INKS[way], alpha=0.5, lw=0)
        label = f"{way}: with the 1, against a zero in its place"
        ax.plot(x, sign * measure["mean"], "_", ms=26, mew=2.6, color=INKS[way], label=label)
        ax.plot(x + 0.3, sign * seen["mean"], **diamond)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(4), [*list(NAMES.values())[:3], "size of the\ncell state"])
    ax.yaxis.set_major_formatter(lambda y, _: f"{abs(y):.0%}")
    ax.set_ylabel("units that fall  |  units that rise")
    plots.legend_below(fig, ncols=2)
    return fig


def _maps(name: str, alt: str, panels: Mapping[str, tuple], framed: int) -> Figure:
    """Heat maps side by side: title -> values (T, H), the digits read, and the scale's two ends,
    which tell a gate (from 0) from what is signed. Step `framed`, from 0, has a frame."""
    size = {"figsize": (3.1 * len(panels), 5.2), "sharey": True}
    fig, axes = plots.new_figure(name, alt, ncols=len(panels), **size)
    for ax, (title, (values, digits, low, high)) in zip(axes, panels.items(), strict=True):
        values = np.asarray(values).T  # (H, T)
        colours = sns.color_palette("vlag" if low else "viridis", as_cmap=True).resampled(40)
        style = {"vmin": low, "vmax": high, "cmap": colours, "cbar_kws": {"shrink": 0.8}}
        sns.heatmap(values, ax=ax, xticklabels=list(digits), yticklabels=5, **style)
        ax.tick_params(rotation=0)
        ax.set(title=title, xlabel="digit read")
        frame = Rectangle((framed, 0), 1, len(values), fill=False, ec=PALETTE[3], lw=2.5)
        ax.add_patch(frame)
    axes[0].set_ylabel("hidden unit")
    return fig


def gate_maps(
    trace: Mapping[str, Any], digits: Sequence[int], predicted: int, model: str, framed: int
) -> Figure:
    """Heat maps of `trace`, "i", "f", "o", "c", (T, H) each."""
    text = " ".join(map(str, digits))
    alt = (
        f"Heat maps of an LSTM reading {text}, {model}, which predicts {predicted}: gates i, f and "
        "o on a scale from 0 to 1, cell state from −5 to 5; hidden units down, digits read across; "
        f"the column of step {framed + 1} is framed."
    )
    ends = {"c": (-5, 5)}
    shown = {title: (trace[n], digits, *ends.get(n, (0, 1))) for n, title in NAMES.items()}
    fig = _maps("gate_maps", alt, shown, framed)
    fig.suptitle(f"{text}  →  {predicted}   ({model})")
    return fig


def effect_maps(f: Any, f_zero: Any, digits: Sequence[int], framed: int, model: str) -> Figure:
    """The forget gate (T, H) with a digit at step `framed`, with a zero there, the difference."""
    digit, zeroed = digits[framed], [*digits[:framed], 0, *digits[framed + 1 :]]
    alt = (
        f"The forget gate of an LSTM, {model}, reading {' '.join(map(str, digits))}: as it is, "
        f"with a zero in place of the {digit}, and the first minus the second, on a scale from "
        "−0.5 to 0.5. The difference is zero until the framed column. Hidden units down, digits "
        "read across."
    )
    shown = {
        f"with the {digit}": (f, digits, 0, 1),
        "with a zero there": (f_zero, zeroed, 0, 1),
        f"what the {digit} does": (f - f_zero, digits, -0.5, 0.5),
    }
    return _maps("effect_maps", alt, shown, framed)


def explore(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> None:
    """Display the explorer of these networks; in a run (`LABKIT_PROGRESS` is set), which nobody
    explores, the maps of the first, step 5 framed."""
    from IPython.display import HTML, display

    if os.environ.get("LABKIT_PROGRESS"):
        start, ensemble = next(iter(ensembles.items()))
        X = torch.tensor([[*digits]])
        trace = {name: values[0, 0] for name, values in ensemble.trace(X).items()}
        model = f"seed {ensemble.seeds[0]}, {start} start"
        predicted = int(ensemble.logits(X)[0].argmax())
        return plots.show(gate_maps(trace, digits, predicted, model, min(5, len(digits)) - 1))
    display(HTML(explorer(explored(ensembles, digits))))


def explored(ensembles: Mapping[str, Ensemble], digits: Sequence[int]) -> dict[str, Any]:
    """What the explorer needs of LSTMs, by start: "numbers" of each network are its parameters and
    the means of i, f and o, at every step and from step 3 on, that an ablation holds them at."""
    pairs, places = all_pairs(len(digits)), range(ADDENDS, len(digits))
    X = torch.cat([with_digit(pairs.X, p, d) for p in places for d in range(DIGITS)])
    layer = [f"recurrent.layers.0.{kind}_{gate}" for gate in "ifoc" for kind in "WUb"]
    nets = []
    for start, ensemble in ensembles.items():
        trace, spec = ensemble.trace(X), ensemble.spec
        means = [trace[g][:, :, first:].mean((1, 2)) for first in (0, ADDENDS) for g in "ifo"]
        for replica, seed in enumerate(ensemble.seeds):
            p = ensemble.parameters_of(replica)
            parts = [p[name] for name in ("embedding.weight", *layer, "head.weight", "head.bias")]
            flat = torch.cat([part.flatten() for part in (*parts, *(m[replica] for m in means))])
            numbers = base64.b64encode(flat.cpu().numpy().astype("<f4").tobytes()).decode()
            nets.append({"start": start, "seed": seed, "numbers": numbers})
    sizes = {"embedding": spec.embedding_size, "hidden": spec.hidden_size}
    return {"digits": [*digits], **sizes, "nets": nets}


def explorer(data: Mapping[str, Any]) -> str:
    """The explorer of the networks in `data`, as HTML that needs nothing else."""
    style, script = ((EXPLORER / f"explorer.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return (
        f'<style>{style}</style><section class="gate-explorer" aria-label="Gate explorer" '
        f'data-lm-suppress-shortcuts="true"><script type="application/json">{json.dumps(data)}'
        f"</script></section><script>{script}</script>"
    )


# diagrams


def counterfactual_diagram() -> Figure:
    """One sequence twice, the second with a zero in place of the digit."""
    alt = (
        "Two sequences of digits that differ in one place: 6 7 0 0 1 0 0 and 6 7 0 0 0 0 0. The "
        "same model reads both. Until the fifth digit its states are the same; there, one forget "
        "gate minus the other is what the 1 does."
    )
    fig, ax = diagrams.canvas("counterfactual", alt, 8.4, 2.5)
    minus = diagrams.gate(ax, 6.8, 1.25, "−", "green")
    for y, digits, turn, end in (
        (1.95, "6700100", 1.45, minus.top),
        (0.55, "6700000", 1.05, minus.bottom),
    ):
        for k, digit in enumerate(digits):
            colour = "orange" if k == 4 else "grey"
            diagrams.box(ax, 0.5 + 0.62 * k, y, digit, colour, width=0.5, height=0.45, size=13)
        gate = diagrams.box(ax, 5.6, y, f"$f_5$ with {digits[4]}", "orange", width=1.1)
        side = 0.25 if turn > y else -0.25
        path = (2.98, y + side), (2.98, turn), (gate.x, turn), (gate.x, y + side)
        diagrams.arrow(ax, *path, colour="orange")
        diagrams.arrow(ax, gate.right, (minus.x, y), end)
    diagrams.label(ax, 1.43, 1.25, "the same digits, the same states")
    diagrams.arrow(ax, minus.right, (7.3, 1.25), colour="green")
    diagrams.label(ax, 7.8, 1.25, "what the\n1 does", "green")
    return fig


def probe_diagram() -> Figure:
    """A linear classifier reads the sum from the cell state after each step."""
    alt = (
        "An LSTM reads 6 7 0 0 and so on; its cell state goes from step to step. After each step "
        "a separate linear probe reads the sum from the cell state. The probes are fitted "
        "afterwards, on other pairs of addends, and change nothing in the network."
    )
    fig, ax = diagrams.canvas("probe", alt, 8.0, 3.1)
    before = None
    for x, digit, step in ((0.7, 6, 1), (1.85, 7, 2), (3.0, 0, 3), (4.15, 0, 4), (6.0, 0, 10)):
        read = diagrams.box(ax, x, 0.35, str(digit), width=0.5, height=0.45, size=13)
        cell = diagrams.box(ax, x, 1.35, "LSTM", "blue", width=0.8)
        probe = diagrams.box(ax, x, 2.6, f"probe {step}", "green", width=0.95)
        diagrams.arrow(ax, read.top, cell.bottom)
        diagrams.arrow(ax, cell.top, probe.bottom, colour="green", linestyle="--")
        diagrams.label(ax, x, 1.97, f"$c_{{{step}}}$", "green")
        if before:
            diagrams.arrow(ax, before.right, cell.left, colour="blue")
        before = cell
    diagrams.label(ax, 5.08, 1.35, "…", "blue")
    diagrams.arrow(ax, probe.right, (6.85, 2.6), colour="green")
    diagrams.label(ax, 7.35, 2.6, "the sum?", "green")
    diagrams.label(ax, 7.3, 1.35, "trained before,\nnot changed")
    return fig


def ablation_diagram() -> Figure:
    """The forget gate of a cell, cut off from its inputs and held at a constant."""
    alt = (
        "A step of the cell state: the old state times the forget gate, plus the input gate times "
        "the candidate. The forget gate's own computation, a sigmoid of x and h, is cut off; a "
        "constant, 1 or the unit's own mean, takes its place. All else stays as trained."
    )
    fig, ax = diagrams.canvas("ablation_diagram", alt, 6.6, 2.4)
    old, new = (diagrams.box(ax, x, 1.95, f"$c_{{{t}}}$") for x, t in ((0.7, "t-1"), (5.6, "t")))
    times, plus = diagrams.gate(ax, 2.4, 1.95, "×"), diagrams.gate(ax, 4.2, 1.95, "+")
    held = diagrams.box(ax, 2.4, 1.1, "1 or mean", "orange", width=1.1, height=0.45)
    diagrams.box(ax, 2.4, 0.3, r"$\sigma(x_t, h_{t-1})$", width=1.4, height=0.45)
    added = diagrams.box(ax, 4.2, 1.1, r"$i_t \odot \tilde{c}_t$", height=0.45)
    for start, end in ((old, times), (times, plus), (plus, new)):
        diagrams.arrow(ax, start.right, end.left)
    diagrams.arrow(ax, added.top, plus.bottom)
    diagrams.arrow(ax, held.top, times.bottom, colour="orange")
    diagrams.label(ax, 2.7, 1.54, "$f_t$", "orange")
    diagrams.label(ax, 2.4, 0.7, "cut", "orange", fontsize=8)
    diagrams.label(ax, 4.6, 0.3, "all else as trained")
    return fig
