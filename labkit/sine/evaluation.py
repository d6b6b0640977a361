"""What is measured of the sine's nets, and how it is shown.

Shapes: R seeds, T steps, B windows, K points of a curve, N batches or free steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from labkit.lab.store import Arrays
from labkit.measure import diagrams
from labkit.measure.claims import Row, number_row
from labkit.measure.plots import PALETTE, legend_below, new_figure, seed_lines
from labkit.sine import study as sine
from labkit.sine.study import POINTS, SEEN, STEP, Parameters, losses, time_windows, unroll

BLOCK = 20  # batches that a published loss is the mean of
DRIFTED = 0.05  # the error above which a free run has drifted, a tenth of the wave's amplitude
LENGTHS = (3, 5, 9, 13, 18, 27, 45, 90)  # that windows are evaluated at
NEW_LENGTHS = (3, 18, 45, 90)  # no window of training is so long; the verdicts look at these
DEEP = (10, 10, 10, 20, 1)  # two more cells than the source's
STUDIES: dict[str, dict[str, Any]] = {  # what they change in the source's net
    "five cells": {"sizes": DEEP},
    "five cells, ReLU": {"sizes": DEEP, "relu": True},
    "five cells, Xavier start": {"sizes": DEEP, "start": "xavier"},
    "batch normalisation": {"norm": True},
}


def _midpoints(low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * (torch.arange(count) + 0.5) / count


# Times of evaluation. Choices look at DEV_ENDS alone; SEEN_ENDS and UNSEEN_ENDS suit every length.
TEST_ENDS = _midpoints(STEP * POINTS, SEEN, 100)
DEV_ENDS = _midpoints(STEP * POINTS, SEEN, 50)
SEEN_ENDS = _midpoints(STEP * max(LENGTHS), SEEN, 40)
UNSEEN_ENDS = _midpoints(SEEN, SEEN + STEP * max(LENGTHS), 60)
REFERENCE_ENDS = _midpoints(STEP * POINTS, SEEN, 300)  # a batch's; they tell a net's moments
FIRST_PHASES = _midpoints(0, 2 * math.pi, 32)  # of the free runs


def root_mean_square(errors: Tensor) -> Tensor:
    """Over the windows of errors (..., B, N)."""
    return errors.square().mean(-2).sqrt()


def step_errors(
    parameters: Parameters, ends: Tensor = TEST_ENDS, T: int = POINTS, relu: bool = False
) -> Tensor:
    """Error (R, T) after each step of windows of T points that end at `ends` (B,)."""
    known = REFERENCE_ENDS[: len(REFERENCE_ENDS) * ("gain_c" in parameters[0])]
    X, y = time_windows(torch.cat([known, ends]), T)
    outputs = unroll(parameters, X, relu=relu, reference=len(known) or None)[0]
    return root_mean_square((outputs - y)[:, len(known) :])


def last_error(training: sine.SineTraining, arrays: Arrays, ends: Tensor) -> Tensor:
    """Error (R,) of the last output after a training."""
    net = sine.parameters_after(arrays, training.batches)
    return step_errors(net, ends, relu=training.relu)[:, -1]


def length_errors(parameters: Parameters, ends: Tensor, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """Error (R, lengths) of the last output, all lengths at the same labels."""
    return torch.stack([step_errors(parameters, ends, T)[:, -1] for T in lengths], dim=1)


def polynomial_errors() -> dict[str, float]:
    """Error at the test times of polynomials in the last point, fitted to 300 points seen."""
    fit, test = _midpoints(STEP * POINTS, SEEN, 300).double(), TEST_ENDS.double().numpy()
    errors = {}
    for name, degree in {"mean": 0, "line": 1, "cubic": 3}.items():
        polynomial = np.polynomial.Polynomial.fit(fit - STEP, fit.sin() / 2, degree)
        errors[name] = float(np.sqrt(np.mean((polynomial(test - STEP) - np.sin(test) / 2) ** 2)))
    return errors


def gradient_norms(parameters: Parameters) -> dict[str, Tensor]:
    """L2 norms (R,) of the last-step loss's gradient, for each cell's weights and biases."""
    cells = [{n: v.detach().requires_grad_() for n, v in cell.items()} for cell in parameters]
    losses(cells, *time_windows(DEV_ENDS, POINTS)).sum().backward()
    return {
        f"cell {k} {group}": sum(cell[n].grad.flatten(1).square().sum(1) for n in names).sqrt()
        for k, cell in enumerate(cells, start=1)
        for group, names in (("weights", ("W", "U")), ("biases", ("b_W", "b_U")))
    }


def free_run(parameters: Parameters, warm: Tensor, N: int) -> Tensor:
    """N values (R, B, N) after the true ones, warm (B, W), read from the net's own outputs."""
    said, X, state = [], warm.to(parameters[0]["W"].dtype), None
    for _ in range(N):
        outputs, state, _ = unroll(parameters, X, state)
        X = outputs[..., -1:]  # (R, B, 1)
        said.append(X)
    return torch.cat(said, dim=-1)


def two_term_run(warm: Tensor, N: int, a: float, b: float = -1.0) -> Tensor:
    """s[k+1] = a·s[k] + b·s[k−1], for N steps after warm (B, W); (B, N). With a = 2·cos(step) it is
    exact for each sine of that step; a = 2 is a line; a = 1, b = 0 repeats."""
    values = [*warm.unbind(1)]
    for _ in range(N):
        values.append(a * values[-1] + b * values[-2])
    return torch.stack(values[-N:], dim=1)


def first_step(met: Tensor) -> Tensor:
    """The first step, from 1, at which `met` (..., N) is true; N + 1 where it never is."""
    return torch.where(met.any(-1), met.int().argmax(-1) + 1, met.shape[-1] + 1)


def means(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The number of batches (K,), and the losses (R, K), each a mean of `BLOCK` batches."""
    values = arrays["loss"].reshape(len(arrays["loss"]), -1, BLOCK).mean(-1)
    return BLOCK * np.arange(1, values.shape[1] + 1), values


def plateau(loss: Tensor, limit: float) -> Tensor:
    """How many batches (R,) pass before the loss (R, N), a mean of `BLOCK` batches, is below."""
    return first_step(loss.unfold(1, BLOCK, 1).mean(-1) < limit) + BLOCK - 1


# what is shown

STARTS = {"gluon": "gluon's start", "xavier": "Xavier start"}
OPTIMISERS = {"adam": "Adam", "sgd": "SGD"}
WAYS = {
    "last/nine": "last step, nine points",
    "every/nine": "every step, nine points",
    "last/mixed": "last step, mixed lengths",
    "every/mixed": "every step, mixed lengths",
}
LABELS = [  # of nets; those of one list have different colours
    ("Adam", "SGD"),
    ("three cells", *STUDIES),
    ("after 100 batches", "at the end"),
    [WAYS[way] for way in ("every/nine", "last/nine", "every/mixed", "last/mixed")],
]
COLOURS = {label: PALETTE[k] for labels in LABELS for k, label in enumerate(labels)}
COLOURS["before"] = PALETTE[7]
LINES = {  # how matplotlib draws what is no net
    "published": "o", "printed labels": "x", "half of them": "--", "true values": "-",
    "the limit": "-", "always the mean": ":", "straight line": "--", "last value again": ":",
    "two fitted terms": "-.",
}  # fmt: skip
LOSS = {"xlabel": "batches", "ylabel": "loss, mean of 20 batches", "log": True}
LOSS |= {"ticks": (20, 50, 100, 200, 500, 1000)}
FIGURES: dict[str, dict[str, Any]] = {  # what their text says, and their axes
    "error_over_place_and_length": {
        "alt": "Root mean square error of four ways of training; left after each of nine steps, "
        "right of the last output over the number of points that are read.",
        "xlabel": "points read", "ylabel": "root mean square error", "log": True, "ticks": LENGTHS,
    },
    "loss": {"alt": "Loss over the batches for Adam and SGD, with gluon's and Xavier's start "
             "of the weights. Circles: published.", **LOSS},
    "learning_rates": {
        "alt": "Dev loss at the end of training over the learning rate, for Adam and SGD.",
        "xlabel": "learning rate", "ylabel": "dev loss", "log": True, "width": 7.0,
        "ticks": (0.001, 0.01, 0.1, 1, 10, 100),
    },
    "note": {
        "alt": "Outputs of the nine steps for the note's window; left before training, times "
        "100,000, right after it. Circles: published outputs; crosses: printed labels, sin t.",
        "xlabel": "step", "ylabel": "output", "sharey": False,
    },
    "stacks": {"alt": "Loss over the batches, each net at its best learning rate; left more "
               "cells, with ReLU or a larger start, right batch normalisation.", **LOSS},
    "free_run": {
        "alt": "The true wave, and forecasts by two nets that feed on themselves.",
        "xlabel": "step of the free run", "ylabel": "value", "width": 9.6,
    },
    "drift": {
        "alt": "Root mean square error of forecasts that feed on themselves, over all phases of "
        f"the wave, against the step; {DRIFTED:g} is the limit.",
        "xlabel": "step of the free run", "ylabel": "root mean square error", "log": True,
        "ticks": (1, 2, 5, 10, 20, 50, 100, 200, 500), "width": 8.0,
    },
}  # fmt: skip


def panels(name: str, content: Mapping[str, Any], yours: Mapping[str, Any] | None = None) -> Figure:
    """The figure of this name. `content[title][label]` is x (K,) and values: of a net (R, K), a
    line a seed, else (K,). `yours` has the reader's nets, whose medians are drawn as crosses."""
    given = {"log": False, "ticks": (), "sharey": True, "width": 4.8} | FIGURES[name]
    text = f"{given['alt']} Every seed is a faint line, their median a strong one."
    text += " Rimmed crosses: the median of the reader's own seeds." * bool(yours)
    size = {"figsize": (given["width"] * len(content), 4.1), "sharey": given["sharey"]}
    fig, axes = new_figure(name, text, ncols=len(content), squeeze=False, **size)
    for ax, (title, drawn) in zip(axes[0], content.items(), strict=True):
        for label, (x, values) in drawn.items():
            if label in LINES:
                ax.plot(x, values, f"k{LINES[label]}", mfc="none", linewidth=1.2, label=label)
                continue
            colour, marker = COLOURS[label], "." if len(x) < 10 else ""
            seed_lines(ax, x, np.atleast_2d(values), colour, label, marker=marker)
            if mine := (yours or {}).get(title, {}).get(label):
                crosses = {"color": colour, "mec": "black", "ms": 8, "markevery": 0.07}
                median = np.median(np.atleast_2d(mine[1]), axis=0)
                ax.plot(mine[0], median, "X", zorder=5, label="you", **crosses)
        ax.set(title=title, xlabel=given["xlabel"], yscale="log" if given["log"] else "linear")
        ends = [n for x, _ in drawn.values() for n in (min(x), max(x))]
        ticks = [n for n in given["ticks"] if min(ends) <= n <= max(ends)]
        if ticks and max(ends) > 10 * min(ends):
            ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{n:,g}" for n in ticks])
            ax.minorticks_off()
    axes[0, 0].set_ylabel(given["ylabel"])
    legend_below(fig, 3)
    return fig


def short(content: Any) -> Any:
    """What is drawn as lists for the record, its numbers with five digits."""
    if isinstance(content, Mapping):
        return {name: short(of) for name, of in content.items()}
    digits = np.vectorize(lambda value: float(f"{value:.5g}"))
    return [digits(np.asarray(of, dtype=float)).tolist() for of in content]


def unrolled(free: bool = False) -> Figure:
    """The stack over its nine steps, and what its loss looks at; or a net that runs free."""
    text, reads, units = (
        "Three cells of 10, 20 and 1 units stand on one another, drawn for the first, second and "
        "last of nine steps. A time goes in at the bottom. Each cell hands its state to the next "
        "step and its output to the cell above. Only the last output meets a label.",
        ["$t_0$", "$t_1$", "$t_8$"], ["10 units", "20 units", "1 unit"],
    ) if not free else (
        "A net reads three true values, one a step, and hands its state on. Its output after the "
        "third is a forecast of the fourth value, and is read in place of it. So is every later "
        "output in the step after it.",
        [*"123456"], ["net"],
    )  # fmt: skip
    name, height = "free_running" if free else "unrolled", 1.75 + 0.75 * len(units)
    fig, ax = diagrams.canvas(name, text, 9.2, height)
    before: list[diagrams.Shape] = []
    for k, read in enumerate(reads):
        own, last, x = free and k > 2, k == len(reads) - 1, 1.0 + (1.45 if free else 3.3) * k
        colour, mark = ("orange", r"\hat s") if own else ("blue", "s")
        column = [diagrams.box(ax, x, 0.4, f"${mark}_{read}$" if free else read, colour)]
        for level, inside in enumerate(units):
            column.append(diagrams.box(ax, x, 1.3 + 0.75 * level, inside, "green"))
            diagrams.arrow(ax, column[-2].top, column[-1].bottom, colour=colour)
        for left, right in zip(before, column[1:], strict=False):
            dotted = {"linestyle": ":"} if last and not free else {}
            diagrams.arrow(ax, left.right, right.left, colour="green", **dotted)
        if own:  # what the step before said
            way = (before[0].x, 2.0), (x - 0.72, 2.0), (x - 0.72, 0.4), column[0].left
            diagrams.arrow(ax, before[0].top, *way, colour="orange")
        elif not free:
            said = r"output ↔ label $\frac{1}{2}\sin t_9$" if last else "output, not looked at"
            diagrams.arrow(ax, column[-1].top, (x, height - 0.5), colour="orange")
            diagrams.label(ax, x, height - 0.25, said, "orange" if last else "grey")
        before = column[1:]
    if free:
        diagrams.label(ax, 2.4, height - 0.2, "reads true values", "blue")
        diagrams.label(ax, 6.8, height - 0.2, "reads its own forecasts", "orange")
    return fig


def rows(measures: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The report's table: the last losses that were printed, and the note's last output."""
    sine, table = published["sine"], []
    for optimiser, label in OPTIMISERS.items():
        for start, title in STARTS.items():
            value, name = sine[f"{optimiser}_loss"][-1], f"loss/{start}/{optimiser}/5"
            what = f"{label}, loss of batches 81 to 100, {title}"
            table.append(number_row(what, value, measures, name, higher_is_better=False))
    for moment in ("before", "after 100 batches", "at the end"):
        value = sine["every_step"][f"{'initial' if moment == 'before' else 'final'}_prediction"][-1]
        what, name = f"the note's output of step 9, ours {moment}", f"note/{moment}/9"
        table.append(number_row(what, value, measures, name, higher_is_better=None))
    return {"Losses and outputs": table}
