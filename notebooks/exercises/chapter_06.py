"""The exercises of chapter 06: a right answer and typical mistakes of each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from labkit.lab.exercises import Exercise, Prediction
from labkit.sine.study import draw_windows, initial_parameters, unroll


def _draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _window_loss(outputs: Tensor, y: Tensor, every: bool, *, mistake: str = "") -> Tensor:
    error = outputs - y  # (R, B, T)
    if mistake == "first":
        chosen = error if every else error[..., :1]
    else:
        turned = every != (mistake == "exchanged")
        chosen = error if turned or mistake == "always every" else error[..., -1:]
    square = chosen.abs() if mistake == "size" else chosen.square()
    if mistake == "sum":
        return square.sum(-1).mean(-1) / 2
    if mistake == "mean first":
        return chosen.mean((1, 2)).square() / 2
    loss = square.mean((1, 2)) / (1 if mistake == "whole" else 2)
    return loss.mean() if mistake == "one number" else loss


window_loss = Exercise(
    "window_loss",
    _window_loss,
    lambda: [(_draws(n, 2, 5, 9), _draws(n + 7, 5, 9), every) for n, every in ((0, 0), (1, 1))],
    {
        "whole": "the half is missing: the loss is half the squared error.",
        "exchanged": "the two cases are exchanged: `every` takes all steps, else the last alone.",
        "always every": "you count every step in both cases: without `every` the last alone.",
        "first": "you take the first step for the last: the steps are the last axis, index −1.",
        "sum": "you add the steps up: take their mean, so that nine steps weigh as much as one.",
        "size": "you take the size of the error: it is to be squared.",
        "mean first": "you average before you square: errors of opposite sign cancel.",
        "one number": "you average over the nets too: wanted is one loss for each, (R,).",
    },
)

_Scan = tuple[float, bool]


def _read_scan(rates: list[float], dev: Tensor, *, mistake: str = "") -> _Scan:
    losses = dev.clone()
    if mistake != "skipped":
        losses = losses.nan_to_num(nan=-math.inf if mistake == "nan wins" else math.inf)
    score = {
        "median": losses.median(1).values,
        "lucky": losses.min(1).values,
        "skipped": losses.nanmean(1),
    }.get(mistake, losses.mean(1))
    best = int(score.argmax() if mistake == "highest" else score.argmin())
    ends = {
        "right end": (len(rates) - 1,),
        "no edge": (),
        "left end": (0,),
    }.get(mistake, (0, len(rates) - 1))
    return (best if mistake == "index" else rates[best]), best in ends


def _scan_cases() -> list[tuple]:
    def losses(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    three, nan = [0.1, 1.0, 10.0], math.nan
    return [
        (three, losses([5, 6, 7], [3, 4, 3], [0.1, 0.2, nan])),
        (three, losses([5, 6, 7], [3, 4, 3], [4, 4, nan])),
        (three, losses([5, 6, 4], [3, 4, 3], [0.5, 0.7, 0.6])),
        (three, losses([1, 2, 1], [3, 3, 4], [6, 5, 7])),
        (three, losses([5, 5, 5], [1, 1, 4], [2, 2, 3])),
        ([*three, 30.0], losses([5, 5, 5], [1, 2, 2], [0, 9, 9], [1.5, 1.9, 2.2])),
    ]


read_scan = Exercise(
    "read_scan",
    _read_scan,
    _scan_cases,
    {
        "highest": "you take the highest loss: the best rate has the lowest.",
        "median": "you take the median: one seed in three that fails should count.",
        "lucky": "you choose by the luckiest seed: take the mean over the seeds.",
        "skipped": "you leave out the seeds that diverged: nan means that the rate is too high.",
        "nan wins": "a rate at which a seed diverged (nan) wins: it must lose.",
        "index": "you return the place of the rate, not the rate.",
        "right end": "the lowest rate of a scan is an edge too.",
        "left end": "the highest rate of a scan is an edge too.",
        "no edge": "you never report an edge: there a wider scan might find a better rate.",
    },
)


def _batch_norm(x: Tensor, gain: Tensor, *, mistake: str = "") -> Tensor:
    over = {"units": 1, "nets": 0, "all": (1, 2)}.get(mistake, 2)
    mean = x.mean(over, keepdim=True) * (mistake != "uncentred")
    variance = x.var(over, keepdim=True, correction=int(mistake == "sample"))
    spread = variance + 1e-5 if mistake == "variance" else (variance + 1e-5).sqrt()
    scaled = (x - mean) / (1 if mistake == "unscaled" else spread)
    return scaled if mistake == "no gain" else gain.unsqueeze(-1) * scaled


batch_norm = Exercise(
    "batch_norm",
    _batch_norm,
    lambda: [(2 * _draws(n, R, R, R) + 1, _draws(n + 9, R, R).abs()) for n, R in ((0, 4), (1, 3))],
    {
        "units": "you average over the units: each unit has a mean of its own, over the windows.",
        "nets": "you average over the nets: each net is alone; average over its windows.",
        "all": "you take one mean for all units of a net: each unit has its own.",
        "uncentred": "the mean is not subtracted.",
        "unscaled": "you subtract the mean, but do not divide by the spread.",
        "variance": "you divide by the variance: its root is the spread.",
        "sample": "divide by B, not by B − 1: correction=0.",
        "no gain": "the gain is missing.",
    },
)


def _net() -> Callable[..., tuple[Tensor, object]]:
    """A net as the exercise has it, with weights large enough for its state to matter."""
    parameters = initial_parameters([3, 5], "xavier", torch.float64)
    parameters = [{name: 2 * value + 0.1 for name, value in cell.items()} for cell in parameters]
    return lambda X, state=None: unroll(parameters, X, state)[:2]


def _forecast(net: Callable, warm: Tensor, N: int, *, mistake: str = "") -> Tensor:
    outputs, state = net(warm, None)
    said = [outputs[..., :1] if mistake == "first" else outputs[..., -1:]]
    for _ in range(N if mistake == "late" else N - 1):
        read = warm[:, -1:] if mistake == "stuck" else said[-2:][0 if mistake == "lag" else -1]
        outputs, new = net(read, None if mistake == "forgets" else state)
        state = state if mistake == "old state" else new
        said.append(outputs[..., -1:])
    values = torch.cat(said[1:] if mistake == "late" else said, -1)
    return values[0] if mistake == "one net" else values


forecast = Exercise(
    "forecast",
    _forecast,
    lambda: [
        (_net(), draw_windows("value", torch.linspace(0, 0.9, 4).double(), T)[0], N)
        for T, N in ((9, 5), (4, 8))
    ],
    {
        "forgets": "each call begins with an empty state: pass the state on.",
        "old state": "you pass on the state after the true values in each step: take the new one.",
        "stuck": "you read the last true value again and again: read your own last output.",
        "first": "you take the output after the first value: the forecast is the last output.",
        "late": "your forecast begins one step too late: the last output on the true values is "
        "the first forecast.",
        "lag": "you read the output before the newest one: read the newest.",
        "one net": "you return the first net alone: wanted is (R, B, N).",
    },
)

longer = Prediction(
    "the error at eighteen points",
    {
        "smaller": "nine more points tell the net more about the curve",
        "the same": "the answer depends on the last point alone, and that is the same",
        "larger": "the net was never asked after any step but the ninth, and its state moves on",
    },
)
