"""The plots of chapter 01: parity with torch, the cost of a call, and gradients over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from labkit.figures import LABELS, PALETTE, new_figure


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


def speed_plot(times: Mapping[str, Mapping[str, Sequence[float]]], size: str) -> Figure:
    """Seconds of every run, `times[passes][layer]`, compared run by run with the last layer.

    The multiple above a layer is the median of its ratios to the last layer within a round, which
    need not be the ratio of the medians.
    """
    fig, axes = new_figure(
        "speed",
        "Time of one call of each LSTM layer in milliseconds, every timed run a dot, on a "
        "logarithmic axis; the bar and the first number above are the median time, the second is "
        "the median of the ratios to nn.LSTM's time in the same round. "
        f"Panels: {' and '.join(times)}. Size {size}.",
        ncols=len(times),
        figsize=(1.5 + 3.25 * len(times), 4.0),
        sharey=True,
        squeeze=False,
    )
    for ax, (passes, by_layer) in zip(axes[0], times.items(), strict=True):
        *_, compared = by_layer.values()
        for x, values in enumerate(by_layer.values()):
            milliseconds = np.asarray(values) * 1e3
            median, multiple = np.median(milliseconds), np.median(np.divide(values, compared))
            spread = x + np.linspace(-0.2, 0.2, len(values))
            ax.scatter(spread, milliseconds, s=10, color=PALETTE[x], alpha=0.3, linewidths=0)
            ax.hlines(median, x - 0.3, x + 0.3, color="black", linewidth=2)
            ax.annotate(
                f"{median:.2f} ms\n{multiple:.1f} ×",
                (x, 0.98),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize=9,
            )
        ax.set(title=passes, yscale="log", xlim=(-0.6, len(by_layer) - 0.4))
        ax.set_xticks(range(len(by_layer)), by_layer)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes[0][0].get_ylim()
    axes[0][0].set_ylim(low, high * (high / low) ** 0.25)  # room for the row of numbers
    axes[0][0].set_ylabel("time of one call (ms)")
    fig.suptitle(size, fontsize=10)
    fig.supxlabel("×: median of time / nn.LSTM's time within a round", fontsize=9)
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
