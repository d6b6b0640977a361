"""What chapter 01 shows: its plots, and its rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.measure.claims import Row, number_row
from labkit.measure.plots import LABELS, PALETTE, new_figure

LIMITS = {"float64": 1e-10, "float32": 1e-5}  # of a difference from torch that is only rounding


def parity_plot(differences: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Largest differences from torch, `differences[cell][dtype]`, one value for each shape."""
    shapes = max(len(values) for by_dtype in differences.values() for values in by_dtype.values())
    fig, ax = new_figure(
        "parity",
        "Largest absolute difference between the handwritten layers and torch's, one dot for each "
        f"of {shapes} random shapes, on a logarithmic axis. Rows SRN, LSTM and GRU, in which the "
        "height has no meaning; float64 and float32 form two clouds, each compared with its "
        "dashed limit, 1e-10 and 1e-5.",
        figsize=(7.0, 3.0),
    )
    for (dtype, limit), colour in zip(LIMITS.items(), PALETTE, strict=False):
        for row, by_dtype in enumerate(differences.values()):
            # a difference of 0 has no place on this axis
            _dots(ax, np.maximum(by_dtype[dtype], 1e-17), row, colour)
        ax.axvline(limit, color=colour, linestyle="--", label=f"{dtype}, limit {limit:.0e}")
    ax.set(xscale="log", xlabel="largest |ours − torch| over outputs, states and gradients")
    ax.set_yticks(range(len(differences)), [LABELS[cell] for cell in differences])
    ax.invert_yaxis()
    fig.legend(loc="outside right center", title=f"{shapes} shapes")
    return fig


def ladder_plot(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Times over `nn.LSTM`'s of the same round, `ratios[panel][rung]`: all rounds, and medians."""
    rungs = list(next(iter(ratios.values())))
    fig, axes = new_figure(
        "ladder",
        "Time of every rung of the ladder over the time of nn.LSTM in the same round, on a "
        "logarithmic axis: every round a dot, the median as a bar with its value beside it. A "
        "dashed line marks 1, as fast as nn.LSTM; a round beyond three times the slowest median "
        "stands there. Panels, for B sequences, T steps, I inputs and H hidden units: "
        f"{'; '.join(ratios)}. Rows, from the top: {', '.join(rungs)}.",
        ncols=len(ratios),
        figsize=(1.5 + 2.6 * len(ratios), 3.2),
        sharey=True,
        squeeze=False,
    )
    for ax, (title, by_rung) in zip(axes[0], ratios.items(), strict=True):
        medians = [float(np.median(values)) for values in by_rung.values()]
        edge = 3 * max(medians)  # one busy moment must not squeeze all the rest
        for row, (values, median) in enumerate(zip(by_rung.values(), medians, strict=True)):
            _dots(ax, np.clip(values, None, edge), row, PALETTE[row])
            ax.vlines(median, row - 0.32, row + 0.32, color="black", linewidth=2)
            beside = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
            ax.annotate(f"{median:.2f}", (0.98, row), **beside)
        ax.axvline(1.0, color="black", linestyle="--", linewidth=1)
        ax.set(title=title, xscale="log")
        ax.set_xticks(ticks := (0.5, 1, 2, 5, 10, 20), map(str, ticks))
        ax.minorticks_off()
        ax.set_xlim(min(0.8, *map(min, by_rung.values())), 3 * edge)
    axes[0][0].set_yticks(range(len(rungs)), rungs)
    axes[0][0].invert_yaxis()
    fig.supxlabel("time / nn.LSTM's time in the same round", fontsize=10)
    return fig


def _dots(ax: Axes, values: Sequence[float], row: int, colour: tuple[float, ...]) -> None:
    """Values along one row, one above the other, the fainter the more they are."""
    heights = row + np.linspace(-0.25, 0.25, len(values))
    alpha = float(np.clip(6 / len(values), 0.08, 0.5))
    ax.scatter(values, heights, s=18, alpha=alpha, linewidths=0, color=colour)


def gradient_plot(norms: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Norms of dℓ/dh_t, `norms[cell][start]` of shape (seeds, T): range of the seeds and median."""
    fig, axes = new_figure(
        "gradient_norm",
        "Norm of the gradient of the loss at the last step with respect to the hidden state at "
        "each earlier step, on a logarithmic axis. Left SRN, right LSTM; one colour and dash for "
        "each way of starting the weights, the median of the seeds a line, their range a band. A "
        "dotted line marks 1, the norm at the last step.",
        ncols=len(norms),
        figsize=(9.5, 4.2),
        sharey=True,
        squeeze=False,
    )
    for ax, (cell, by_start) in zip(axes[0], norms.items(), strict=True):
        tables = {
            start: pd.DataFrame(values, columns=range(1, values.shape[1] + 1))
            for start, values in by_start.items()
        }
        data = pd.concat(tables, names=["start"]).melt(
            var_name="step", value_name="norm", ignore_index=False
        )
        sns.lineplot(
            data.reset_index("start"), x="step", y="norm", hue="start", style="start", ax=ax,
            palette=PALETTE[: len(by_start)], estimator="median", errorbar=("pi", 100), linewidth=2,
        )  # fmt: skip
        ax.axhline(1.0, color="black", linewidth=1.2, linestyle=":")
        ax.set(title=LABELS[cell], yscale="log", xlabel="step t (the loss reads the last one)")
        ax.legend(loc="lower right", framealpha=0.9, title="start")
    axes[0][0].set_ylabel("‖∂ℓ/∂hₜ‖")
    return fig


# the report


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The published numbers of chapter 01 beside ours."""
    operator = published["operator"]
    speed, shapes = operator["speed"], operator["parity_claim"]["printed_shapes"]
    toy, printed = operator["toy_output"]["hidden_state"], list(shapes.values())
    ours, ours_printed = measures["toy_output"], measures["parity_mistake/shapes"]
    # the published values are rounded to four decimals
    same = np.shape(ours) == np.shape(toy) and np.allclose(ours, toy, rtol=0, atol=5e-5)
    toy_row = Row(
        "toy example: last hidden state", str(toy), str(ours),
        "reproduced" if same else "not reproduced", "equal to the four decimals printed",
    )  # fmt: skip
    shapes_row = Row(
        "parity: printed shapes, handwritten and `nn.LSTM`", str(printed), str(ours_printed),
        "mistake reproduced" if ours_printed == printed else "not reproduced",
        "a batch-first tensor in an `nn.LSTM` with batch_first=False; equal layout, equal shape",
    )  # fmt: skip
    times = [
        number_row(
            f"speed ({speed['device']}): {what}", speed[key], measures, f"speed/{name}",
            higher_is_better=False, unit=unit,
        )
        for what, key, name, unit in (
            ("handwritten layer, one forward pass", "handwritten_seconds", "naive_seconds", "s"),
            ("`nn.LSTM`, one forward pass", "torch_nn_seconds", "torch_seconds", "s"),
            ("handwritten over `nn.LSTM`", "ratio", "ratio_naive_to_torch", ""),
        )
    ]  # fmt: skip
    return {"Numbers": [toy_row, *times, shapes_row]}


def about(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on."""
    speed = published["operator"]["speed"]
    return (
        f"Published speed: batch {speed['batch_size']}, {speed['seq_len']} steps, "
        f"{speed['input_size']} inputs, {speed['hidden_size']} hidden units, "
        f"{speed['warmup_runs']} runs to warm up and {speed['timed_runs']} timed."
    )
