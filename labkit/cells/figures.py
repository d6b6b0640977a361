"""The plots of chapter 01: parity with torch, the ladder of speed, and gradients over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from labkit.measure.plots import LABELS, PALETTE, new_figure


def _faintness(count: int) -> float:
    """Opacity of one of `count` marks, so that many together do not hide what lies above them."""
    return float(np.clip(6 / count, 0.08, 0.5))


def parity_plot(differences: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Largest differences from torch, `differences[cell][dtype]`, one value for each shape."""
    dtypes = {"float64": (PALETTE[0], "o", 1e-10), "float32": (PALETTE[1], "D", 1e-5)}
    shapes = max(len(values) for by_dtype in differences.values() for values in by_dtype.values())
    fig, ax = new_figure(
        "parity",
        "Largest absolute difference between the handwritten layers and torch's, one dot for each "
        f"of {shapes} random shapes, on a logarithmic axis. Rows SRN, LSTM and GRU, in which the "
        "height has no meaning; float64 and float32 form two clouds, each compared with its "
        "dashed limit, 1e-10 and 1e-5.",
        figsize=(7.0, 3.0),
    )
    for row, by_dtype in enumerate(differences.values()):
        for dtype, values in by_dtype.items():
            colour, marker, _ = dtypes[dtype]
            heights = row + np.linspace(-0.25, 0.25, len(values))
            shown = np.maximum(values, 1e-17)  # a difference of 0 has no place on this axis
            label = dtype if row == 0 else None
            faint = {"s": 22, "alpha": _faintness(len(values)), "linewidths": 0}
            ax.scatter(shown, heights, color=colour, marker=marker, **faint)
            ax.scatter([], [], s=22, color=colour, marker=marker, label=label)
    for dtype, (colour, _, limit) in dtypes.items():
        ax.axvline(limit, color=colour, linestyle="--")
        ax.annotate(
            f"limit {limit:.0e}\n{dtype}",
            (limit, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    ax.set(xscale="log", xlabel="largest |ours − torch| over outputs, states and gradients")
    ax.set_yticks(range(len(differences)), [LABELS[cell] for cell in differences])
    ax.invert_yaxis()
    title = f"{shapes} shapes, two types"
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, title=title)
    return fig


def ladder_plot(
    ratios: Mapping[str, Mapping[str, Sequence[float]]], name: str = "ladder", columns: int = 4
) -> Figure:
    """Times over `nn.LSTM`'s of the same round, `ratios[panel][rung]`: all rounds, and medians.

    `columns` panels stand side by side, at most.
    """
    columns = min(columns, len(ratios))
    rows = -(-len(ratios) // columns)
    fig, axes = new_figure(
        name,
        "Time of every rung of the ladder over the time of nn.LSTM in the same round, on a "
        "logarithmic axis: every round a dot, the median as a bar with its value beside it. A "
        f"dashed line marks 1, as fast as nn.LSTM; a round beyond three times the slowest median "
        f"stands there. Panels, for B sequences, T steps, I inputs and H hidden units: "
        f"{'; '.join(ratios)}. Rows, from the top: {', '.join(max(ratios.values(), key=len))}.",
        rows,
        columns,
        figsize=(1.5 + 2.6 * columns, 0.3 + 3.3 * rows),
        sharey=True,
        squeeze=False,
    )
    for ax, (title, by_rung) in zip(axes.flat, ratios.items(), strict=False):
        edge = 3 * max(map(np.median, by_rung.values()))
        for row, values in enumerate(by_rung.values()):
            values = np.clip(values, None, edge)  # one busy moment must not squeeze all the rest
            median, heights = np.median(values), row + np.linspace(-0.2, 0.2, len(values))
            faint = {"s": 10, "alpha": _faintness(len(values)), "linewidths": 0}
            ax.scatter(values, heights, color=PALETTE[row % len(PALETTE)], **faint)
            ax.vlines(median, row - 0.32, row + 0.32, color="black", linewidth=2)
            beside = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
            ax.annotate(f"{median:.2f}", (0.98, row), fontsize=9, **beside)
        ax.axvline(1.0, color="black", linestyle="--", linewidth=1)
        low, high = min(map(min, by_rung.values())), min(edge, max(map(max, by_rung.values())))
        ax.set(title=title, xscale="log", xlim=(min(low, 1) / 1.15, max(high, 1) ** 1.3 * 1.5))
        ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(lambda *_: "")
    for ax in list(axes.flat)[len(ratios) :]:
        ax.set_axis_off()
    longest = max(ratios.values(), key=len)  # a rung may be missing in some panels, at the end
    axes[0][0].set_yticks(range(len(longest)), list(longest))
    axes[0][0].invert_yaxis()
    sizes = "B sequences, T steps, I inputs, H hidden units"
    fig.supxlabel(f"time / nn.LSTM's time in the same round ({sizes})", fontsize=10)
    return fig


def gradient_plot(norms: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Norms of dℓ/dh_t, `norms[cell][start]` of shape (seeds, T): every seed and the median."""
    fig, axes = new_figure(
        "gradient_norm",
        "Norm of the gradient of the loss at the last step with respect to the hidden state at "
        "each earlier step, on a logarithmic axis. Left SRN, right LSTM; one colour for each way "
        "of starting the weights, every seed a faint line, the median of the seeds strong, every "
        "other median dashed. A dotted line marks 1, the norm at the last step.",
        ncols=len(norms),
        figsize=(9.5, 4.2),
        sharey=True,
        squeeze=False,
    )
    for ax, (cell, by_start) in zip(axes[0], norms.items(), strict=True):
        for number, (start, values) in enumerate(by_start.items()):
            colour, style = PALETTE[number], "-" if number % 2 else "--"
            steps = np.arange(1, values.shape[1] + 1)
            ax.plot(steps, values.T, color=colour, alpha=_faintness(len(values)), linewidth=0.7)
            median = np.median(values, axis=0)
            ax.plot(steps, median, color="white", linewidth=4.5, zorder=2.1)
            strong = {"color": colour, "linewidth": 2.5, "linestyle": style, "zorder": 2.2}
            ax.plot(steps, median, label=start, **strong)
        ax.axhline(1.0, color="black", linewidth=1.2, linestyle=":", label="norm 1")
        ax.set(title=LABELS[cell], yscale="log", xlabel="step t (the loss reads the last one)")
        ax.legend(loc="lower right", frameon=True, framealpha=0.9, title="start")
    axes[0][0].set_ylabel("‖∂ℓ/∂hₜ‖")
    return fig
