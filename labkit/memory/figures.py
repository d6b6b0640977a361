"""The plots of chapter 02: losses, accuracies over the length, and the gradient explosion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.measure.plots import COLOURS, LABELS, PALETTE, new_figure

CELLS = ("srn", "lstm")
MARKERS = {"nndl-a": "s", "nndl-b": "^", "nndl-c": "D"}
SOURCES = {"nndl-a": "write-up A", "nndl-b": "write-up B", "nndl-c": "rerun of A"}
OFFSET = {"textcoords": "offset points"}
# clipping has nothing to do with the cells, so it has colours of its own
CLIPPING = (PALETTE[3], PALETTE[2], PALETTE[4])


def _every_seed_and_median(ax: Axes, x: Sequence, values: np.ndarray, cell: str) -> None:
    """Values (seeds, len(x)): a faint line for each seed, a strong one for their median."""
    ax.plot(x, np.transpose(values), color=COLOURS[cell], alpha=0.35, linewidth=0.8)
    ax.plot(x, np.median(values, axis=0), color=COLOURS[cell], linewidth=2.2, label=LABELS[cell])


def loss_curves(name: str, setting: str, curves: Mapping[str, Mapping[int, Mapping]]) -> Figure:
    """Train and dev loss over the steps, `curves[cell][length]` with step (K,), train_loss and
    dev_loss (seeds, K)."""
    lengths = list(next(iter(curves.values())))
    fig, axes = new_figure(
        name,
        f"Cross-entropy over training steps, {setting}. One column for each length "
        f"({', '.join(map(str, lengths))} digits), training loss above and dev loss below; SRN and "
        "LSTM in two colours, every seed a faint line, the median strong, and the loss of guessing "
        "by class frequency as a dotted line.",
        nrows=2,
        ncols=len(lengths),
        figsize=(2.3 * len(lengths) + 1.2, 4.8),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    pairs = np.add.outer(np.arange(10), np.arange(10)).ravel()
    frequency = np.bincount(pairs) / 100
    guessing = -(frequency * np.log(frequency)).sum()
    fig.suptitle(setting)
    medians = [
        np.median(np.asarray(curves[cell][length][quantity]), axis=0)
        for cell in CELLS
        for length in lengths
        for quantity in ("train_loss", "dev_loss")
    ]
    top = 1.1 * max(values.max() for values in medians)
    for row, (quantity, label) in enumerate({"train_loss": "train", "dev_loss": "dev"}.items()):
        for ax, length in zip(axes[row], lengths, strict=True):
            for cell in CELLS:
                found = curves[cell][length]
                steps = np.asarray(found["step"]) / 1000
                _every_seed_and_median(ax, steps, np.asarray(found[quantity]), cell)
            ax.axhline(
                guessing,
                color=COLOURS["chance"],
                linestyle=":",
                linewidth=1.2,
                label=f"class frequencies, {guessing:.2f}",
            )
            if row == 0:
                ax.set_title(f"{length} digits", fontsize=10)
            else:
                ax.set_xlabel("steps (1,000)")
        axes[row][0].set_ylabel(f"{label} loss (nats)")
    axes[0][0].set_ylim(0, top)
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def accuracy_over_length(
    accuracies: Mapping[str, Mapping[str, Mapping[str, Mapping[int, Mapping]]]],
    published: Mapping[str, Mapping],
    chance: float,
) -> Figure:
    """Dev and test accuracy over the length, `accuracies[setting][quantity][cell][length]`.

    The innermost values are summaries with raw, mean, low and high. `published[setting]` lists
    rows (source, cell, quantity, lengths, values), drawn as open markers.
    """
    settings = list(accuracies)
    fig, axes = new_figure(
        "accuracy_over_length",
        "Dev accuracy (above) and test accuracy (below) over the sequence length. One column for "
        f"each setting: {'; '.join(settings)}. SRN and LSTM in two colours: every seed a small "
        "dot, the mean a line with its 95 % interval. Open markers are the published single-seed "
        "figures; the dotted line is chance.",
        nrows=2,
        ncols=len(settings),
        figsize=(4.0 * len(settings) + 0.8, 6.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for column, setting in enumerate(settings):
        for row, quantity in enumerate(("dev_accuracy", "test_accuracy")):
            ax = axes[row][column]
            _accuracy_panel(ax, accuracies[setting][quantity], chance)
            for source, cell, kind, lengths, values in published.get(setting, ()):
                if kind == quantity:
                    _published_points(ax, source, cell, lengths, values)
        axes[0][column].set_title(setting, fontsize=10)
        axes[1][column].set_xlabel("sequence length (digits)")
    # the panels' legends together, each entry once
    entries = {}
    for ax in axes[1]:
        entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(entries.values(), entries, loc="outside lower center", ncols=6, fontsize=9)
    axes[0][0].set_ylabel("dev accuracy")
    axes[1][0].set_ylabel("test accuracy")
    axes[0][0].set_ylim(-0.02, 1.02)
    return fig


def _accuracy_panel(ax: Axes, by_cell: Mapping[str, Mapping[int, Mapping]], chance: float) -> None:
    for shift, cell in zip((-0.6, 0.6), CELLS, strict=True):
        lengths = np.array(list(by_cell[cell]), dtype=float)
        found = list(by_cell[cell].values())
        for length, summary in zip(lengths, found, strict=True):
            raw = np.asarray(summary["raw"])
            jitter = np.linspace(-0.35, 0.35, len(raw))
            label = f"one seed, {LABELS[cell]}" if length == lengths[0] else None
            ax.scatter(
                length + shift + jitter,
                raw,
                s=9,
                color=COLOURS[cell],
                alpha=0.45,
                lw=0,
                label=label,
                zorder=3,
            )
        means = np.array([summary["mean"] for summary in found])
        # a single seed has no interval
        low, high = (
            np.array([s["mean"] if s[end] is None else s[end] for s in found])
            for end in ("low", "high")
        )
        ax.errorbar(
            lengths + shift,
            means,
            yerr=[means - low, high - means],
            color=COLOURS[cell],
            fmt="o-",
            markersize=4,
            linewidth=1.6,
            capsize=3,
            label=f"mean of the seeds, {LABELS[cell]}",
        )
    ax.axhline(chance, color=COLOURS["chance"], linestyle=":", label="chance")
    ax.set_xticks(lengths)
    ax.set_xlim(min(lengths) - 3, max(lengths) + 3)


def _published_points(
    ax: Axes, source: str, cell: str, lengths: Sequence[int], values: Sequence[float]
) -> None:
    ax.plot(
        lengths,
        values,
        MARKERS[source],
        markerfacecolor="none",
        markeredgecolor=COLOURS[cell],
        markersize=6,
        zorder=4,
        label=f"{SOURCES[source]}, {LABELS[cell]}",
    )


def one_seed_studies(
    rows: Mapping[str, Mapping[int, Sequence[float]]],
    published: Mapping[str, Sequence[tuple[str, Sequence[int], Sequence[float]]]],
    chance: float,
) -> Figure:
    """What a study with one seed would have printed: `rows[setting][length]`, values by seed."""
    fig, axes = new_figure(
        "one_seed_studies",
        "LSTM test accuracy over the sequence length, one thin line for each seed: each line is "
        f"the row that a study with that one seed would have printed. Panels: {'; '.join(rows)}. "
        "The strong black line is the mean of all seeds; dashed lines with open markers are the "
        "published rows; the dotted line is chance.",
        ncols=len(rows),
        figsize=(4.3 * len(rows) + 0.6, 4.3),
        sharey=True,
        squeeze=False,
    )
    for ax, (setting, by_length) in zip(axes[0], rows.items(), strict=True):
        lengths = list(by_length)
        values = np.array([by_length[length] for length in lengths])  # (lengths, seeds)
        ax.plot(lengths, values, color=COLOURS["lstm"], alpha=0.35, linewidth=0.8)
        ax.plot(lengths, values.mean(axis=1), color="black", linewidth=2.4, label="mean")
        for colour, (source, where, row) in zip(
            PALETTE[3:], published.get(setting, ()), strict=False
        ):
            label = SOURCES[source]
            ax.plot(
                where, row, MARKERS[source], ls="--", lw=1.4, mfc="none", color=colour, label=label
            )
        ax.axhline(chance, color=COLOURS["chance"], linestyle=":", label="chance")
        ax.set(title=setting, xlabel="sequence length (digits)", xticks=lengths)
        ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axes[0][0].set(ylabel="LSTM test accuracy", ylim=(-0.02, 1.02))
    return fig


def sound_accuracy(
    by_kind: Mapping[str, Mapping[str, Mapping[int, Mapping]]], chance: Mapping[str, float]
) -> Figure:
    """Sound protocol: `by_kind[kind][cell][length]`, and the chance line of each kind."""
    fig, axes = new_figure(
        "sound_accuracy",
        "Test accuracy under the sound protocol over the sequence length, on 4,000 fresh sequences "
        f"for each seed. Panels: {' and '.join(by_kind)}. SRN and LSTM in two colours: every seed "
        "a dot, the mean a line with its 95 % interval; the dotted line is chance.",
        ncols=len(by_kind),
        figsize=(9.0, 4.0),
        sharey=True,
        squeeze=False,
    )
    for ax, (kind, by_cell) in zip(axes[0], by_kind.items(), strict=True):
        _accuracy_panel(ax, by_cell, chance[kind])
        ax.set(title=kind, xlabel="sequence length (digits)", ylim=(-0.02, 1.02))
    axes[0][0].set_ylabel("test accuracy")
    handles = axes[0][0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=5, fontsize=8)
    return fig


def explosion_plot(
    runs: Mapping[str, Mapping[str, np.ndarray]], max_norm: float, steps_per_epoch: int = 5
) -> Figure:
    """Gradient norms and loss of the exploding SRN, `runs[clip]` as `digit_sum.explode` gives.

    Each point is the largest value of one epoch; norms below 0.001 are drawn at 0.001.
    """
    quantities = {
        "gradient/W": "gradient norm of W",
        "gradient/U": "gradient norm of U",
        "gradient/b": "gradient norm of b",
        "loss": "loss (nats a sequence)",
    }
    fig, axes = new_figure(
        "explosion",
        "An SRN on 20 digits under SGD with learning rate 0.2 on a summed loss: L2 norms of the "
        "gradients of W, U and b before clipping, and the loss, the largest of each epoch, on "
        f"logarithmic axes. One colour for each of: {', '.join(runs)}. Every seed is a faint "
        f"line, the median strong; the dashed line is the clipping norm {max_norm:g}; norms below "
        "0.001 are drawn at 0.001.",
        ncols=4,
        figsize=(13.0, 3.6),
    )
    for ax, (quantity, label) in zip(axes, quantities.items(), strict=True):
        for colour, (clip, run) in zip(CLIPPING, runs.items(), strict=False):
            values = np.asarray(run[quantity])
            values = values.reshape(len(values), -1, steps_per_epoch).max(axis=2).clip(min=1e-3)
            epochs = np.arange(1, values.shape[1] + 1)
            ax.plot(epochs, values.T, color=colour, alpha=0.2, linewidth=0.5)
            ax.plot(epochs, np.median(values, axis=0), color=colour, linewidth=2, label=clip)
        ax.set(yscale="log", xlabel="epoch", title=label)
        if quantity.startswith("gradient"):
            ax.axhline(max_norm, color="black", linestyle="--", linewidth=0.9)
            ax.set_ylim(5e-4, 1e5)
        else:
            ax.axhline(np.log(19), color="black", linestyle=":", linewidth=0.9)
            ax.annotate("guessing, ln 19", (1, np.log(19)), xytext=(0, -11), fontsize=8, **OFFSET)
            ax.set_ylim(bottom=1.5)
    fig.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig
