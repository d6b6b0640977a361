"""What chapter 01 shows: its plots, and its rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from labkit.measure.claims import Row, number_row
from labkit.measure.plots import LABELS, PALETTE, legend_below, new_figure, seed_lines


def ladder_plot(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Times over `nn.LSTM`'s of the same round, `ratios[size][rung]`, at two or more sizes."""
    fig, ax = new_figure(
        "ladder",
        "Time of every rung over nn.LSTM's of the same round, logarithmic: the median a dot, the "
        "middle half of the rounds a line, a colour for each size. Rows, from the top: "
        f"{', '.join(next(iter(ratios.values())))}. Sizes: {'; '.join(ratios)}.",
        figsize=(8.0, 3.8),
    )
    table = pd.DataFrame(ratios).rename_axis(index="rung", columns="size").stack().explode()
    sns.pointplot(
        table.astype(float).reset_index(name="ratio"), x="ratio", y="rung", hue="size", ax=ax,
        palette=PALETTE[: len(ratios)], dodge=0.5, linestyle="none", log_scale=True,
        estimator="median", errorbar=("pi", 50),
    )  # fmt: skip
    ax.axvline(1.0, color="black", linestyle="--", linewidth=1)
    ax.set_xticks(ticks := (0.5, 1, 2, 5, 10, 20), map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel="time / nn.LSTM's time in the same round", ylabel="")
    ax.get_legend().remove()
    legend_below(fig, ncols=2)
    return fig


def gradient_plot(norms: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Norms of dℓ/dh_t, `norms[cell][start]` of shape (seeds, T)."""
    fig, axes = new_figure(
        "gradient_norm",
        "Norm of the gradient of the last step's loss with respect to each step's hidden state, "
        f"logarithmic. Panels: {', '.join(map(LABELS.get, norms))}; a colour for each start of the "
        "weights, every seed a faint line, their median strong. Dotted: 1, the last step's norm.",
        ncols=len(norms), figsize=(9.5, 4.2), sharey=True,
    )  # fmt: skip
    for ax, (cell, by_start) in zip(axes, norms.items(), strict=True):
        for (start, values), colour in zip(by_start.items(), PALETTE, strict=False):
            seed_lines(ax, range(1, values.shape[1] + 1), values, colour, start)
        ax.axhline(1.0, color="black", linewidth=1.2, linestyle=":")
        ax.set(title=LABELS[cell], yscale="log", xlabel="step t (the loss reads the last one)")
        ax.legend(loc="lower right", framealpha=0.9, title="start")
    axes[0].set_ylabel("‖∂ℓ/∂hₜ‖")
    return fig


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The published numbers of chapter 01 beside ours."""
    operator = published["operator"]
    speed, shapes = operator["speed"], [*operator["parity_claim"]["printed_shapes"].values()]
    toy, ours = operator["toy_output"]["hidden_state"], measures["toy_output"]  # 4 decimals each
    toy_row = Row(
        "toy example: last hidden state", str(toy), str(ours),
        "reproduced" if ours == toy else "not reproduced", "equal to the four decimals printed",
    )  # fmt: skip
    ours = measures["parity_mistake/shapes"]
    shapes_row = Row(
        "parity: printed shapes, handwritten and `nn.LSTM`", str(shapes), str(ours),
        "mistake reproduced" if ours == shapes else "not reproduced",
        "a batch-first tensor in an `nn.LSTM` with batch_first=False; equal layout, equal shape",
    )  # fmt: skip
    times = []
    for what, key, name, unit in (
        ("handwritten layer, one forward pass", "handwritten_seconds", "naive_seconds", "s"),
        ("`nn.LSTM`, one forward pass", "torch_nn_seconds", "torch_seconds", "s"),
        ("handwritten over `nn.LSTM`", "ratio", "ratio_naive_to_torch", ""),
    ):
        numbers, facts = (speed[key], measures, f"speed/{name}"), {"higher_is_better": False}
        times.append(number_row(f"speed ({speed['device']}): {what}", *numbers, unit=unit, **facts))
    return {"Numbers": [toy_row, *times, shapes_row]}


def about(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on."""
    return (
        "Published speed: batch {batch_size}, {seq_len} steps, {input_size} inputs, {hidden_size} "
        "hidden units, {warmup_runs} runs to warm up and {timed_runs} timed."
    ).format(**published["operator"]["speed"])
