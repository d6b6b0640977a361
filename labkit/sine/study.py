"""What the sine chapter measures: errors by place and length, gates, free runs; its report rows.

Every evaluation has fixed times that no training has drawn. `TEST_ENDS` covers what a training on
time may have seen, and `DEV_ENDS`, between them, serves choices alone. `SEEN_ENDS` and
`UNSEEN_ENDS` are times that a window of any length up to ninety can end at, so lengths are compared
at the same labels.

Shapes: R seeds, T steps, B windows, N steps of a free run. An error is a root mean square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from labkit.measure.claims import Row, number_row
from labkit.measure.statistics import summarise
from labkit.sine.training import (
    POINTS,
    SEEN,
    STEP,
    VALUE_STEP,
    Parameters,
    draw_windows,
    losses,
    time_windows,
    unroll,
)

OPTIMISERS = {"adam": {"lr": 1e-3}, "sgd": {"optimiser": "sgd", "lr": 1e-2}}  # the source's
STARTS = {"gluon": "gluon's start", "xavier": "Xavier start"}
BLOCK = 20  # batches that a published loss is the mean of
SNAPSHOTS = (20, 40, 60, 80, 100, 120, 160, 200, 500)  # batches after which the note is compared
LENGTHS = (3, 5, 9, 13, 18, 27, 45, 90)  # that windows are evaluated at
LONGEST = max(LENGTHS)
NEW_LENGTHS = (3, 18, 45, 90)  # no window of training is so long; the verdicts look at these
MIXED = {"shortest": 5, "longest": 13}  # the mixed lengths of training; their mean is nine
WAYS: dict[str, dict[str, Any]] = {
    "last/nine": {"loss": "last"},
    "every/nine": {"loss": "every"},
    "last/mixed": {"loss": "last", **MIXED},
    "every/mixed": {"loss": "every", **MIXED},
}
# the forecasters that read values; a start and a rate that train further than the source's
_VALUE = {"reads": "value", "start": "xavier", "lr": 1e-2, "decay": True, "batch_size": 100}
FORECASTERS: dict[str, dict[str, Any]] = {
    "last/nine": {**_VALUE, "loss": "last"},
    "every/mixed": {**_VALUE, "loss": "every", "shortest": 5, "longest": 40},
}
CLAIMS = {
    "faster": "Adam's loss falls faster than that of stochastic gradient descent.",
    "last_step": "Trained only on the last step, the earlier outputs are far off, so the model "
    "does not carry over to other lengths.",
    "mended": "(our question) Training on every step or on mixed lengths mends that.",
}
LOSS = "loss/{}/{}"  # measures of the losses, by start and optimiser; the block's number follows
NOTE = "note/{}"  # of outputs before training (0), after 100 batches or at the end; a step follows
FAR = 2.0  # an error more than twice another is far off
HALVED = 0.5  # what cuts an error to less than half mends it


def _midpoints(low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * (torch.arange(count) + 0.5) / count


TEST_ENDS = _midpoints(STEP * POINTS, SEEN, 100)
DEV_ENDS = _midpoints(STEP * POINTS, SEEN, 50)
SEEN_ENDS = _midpoints(STEP * LONGEST, SEEN, 40)
UNSEEN_ENDS = _midpoints(SEEN, SEEN + STEP * LONGEST, 60)
FIRST_PHASES = _midpoints(0, 2 * math.pi, 32)  # of the free runs


def block_means(loss: Tensor) -> Tensor:
    """Means (R, blocks) of every 20 batches in a row of losses (R, batches)."""
    blocks = loss.shape[1] // BLOCK
    return loss[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).mean(-1)


# errors


def root_mean_square(errors: Tensor) -> Tensor:
    """Over the last axis."""
    return errors.square().mean(-1).sqrt()


@torch.no_grad()
def errors(parameters: Parameters, ends: Tensor, T: int) -> Tensor:
    """Output minus label (R, B, T) at each step of windows of T points that end at `ends` (B,)."""
    X, y = time_windows(ends, T)
    return unroll(parameters, X)[0] - y


def place_errors(parameters: Parameters, T: int = POINTS) -> Tensor:
    """Error (R, T) after each step of windows of T points, at the test times."""
    return root_mean_square(errors(parameters, TEST_ENDS, T).transpose(1, 2))


def length_errors(parameters: Parameters, ends: Tensor, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """Error (R, lengths) of the last output, all lengths at the same labels."""
    last = [errors(parameters, ends, T)[..., -1] for T in lengths]
    return torch.stack([root_mean_square(e) for e in last], dim=1)


def at_places(parameters: Parameters) -> dict[str, Tensor]:
    """Errors (R,) where the source's net was not trained: its first eight steps together, and the
    lengths that no window of training has."""
    first = place_errors(parameters)[:, :-1].square().mean(1).sqrt()
    columns = length_errors(parameters, SEEN_ENDS, NEW_LENGTHS).T
    return {"steps 1 to 8": first} | {
        f"{T} points": c for T, c in zip(NEW_LENGTHS, columns, strict=True)
    }


def polynomial_errors(ends: Tensor = TEST_ENDS, degrees: Sequence[int] = (0, 1, 3)) -> list[float]:
    """Error at `ends` of polynomials in the one point that is read last: they have no memory.

    Fitted to 300 points evenly spread over what is seen in training; degree 0 is the mean answer.
    """
    fit = _midpoints(STEP * POINTS, SEEN, 300).double()
    result = []
    for degree in degrees:
        powers = torch.arange(degree + 1)
        A, B = ((t.double() - STEP).unsqueeze(1) ** powers for t in (fit, ends))
        weights = torch.linalg.lstsq(A, fit.sin().unsqueeze(1) / 2).solution
        error = (B @ weights).squeeze(1) - ends.double().sin() / 2
        result.append(float(root_mean_square(error)))
    return result


@torch.no_grad()
def dev_loss(parameters: Parameters) -> Tensor:
    """Half the mean squared error (R,) of the last of nine outputs; choices look at this alone."""
    return losses(parameters, *time_windows(DEV_ENDS, POINTS))


@torch.no_grad()
def outputs_on_grid(parameters: Parameters, labels: Sequence[float]) -> Tensor:
    """Outputs (R, T) for the window whose labels are printed as sin t, t one grid step apart."""
    t = torch.tensor(labels, dtype=torch.float64).asin()
    return unroll(parameters, (t - STEP).float().unsqueeze(0))[0][:, 0]


def gradient_norms(parameters: Parameters) -> dict[str, Tensor]:
    """L2 norms (R,) of the last-step loss's gradient, for each cell's weights and its biases."""
    cells = [{n: v.detach().requires_grad_() for n, v in cell.items()} for cell in parameters]
    losses(cells, *time_windows(DEV_ENDS, POINTS)).sum().backward()
    return {
        f"cell {k} {group}": sum(cell[n].grad.flatten(1).square().sum(1) for n in names).sqrt()
        for k, cell in enumerate(cells, start=1)
        for group, names in (("weights", ("W", "U")), ("biases", ("b_W", "b_U")))
    }


@torch.no_grad()
def top_gates(parameters: Parameters, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Output gate and tanh(c) of the top cell at the last of nine steps, (R, B) each."""
    _, c, o = unroll(parameters, time_windows(ends, POINTS)[0])[2][-1]
    return o.squeeze(-1), c.squeeze(-1).tanh()


# free runs


def truth(warm_up: int, N: int) -> tuple[Tensor, Tensor]:
    """The values that a free run reads first (B, warm_up), and the N that follow, (B, N)."""
    t = FIRST_PHASES.double().unsqueeze(1) + VALUE_STEP * torch.arange(warm_up + N).double()
    values = t.sin() / 2
    return values[:, :warm_up], values[:, warm_up:]


@torch.no_grad()
def free_run(parameters: Parameters, warm: Tensor, N: int) -> Tensor:
    """Forecast N values (R, B, N) after the true ones, warm (B, W), feeding on its own outputs."""
    outputs, state, _ = unroll(parameters, warm.to(parameters[0]["W"].dtype))
    said = [outputs[..., -1:]]  # (R, B, 1)
    for _ in range(N - 1):
        output, state, _ = unroll(parameters, said[-1], state)
        said.append(output)
    return torch.cat(said, dim=-1)


def two_term_run(warm: Tensor, N: int, a: float, b: float = -1.0) -> Tensor:
    """s[k+1] = a·s[k] + b·s[k−1], for N steps after warm (B, W); (B, N).

    With a = 2·cos(step) and b = −1 it is exact for every sine of that step, whatever its amplitude
    and phase; a = 2 draws a straight line on; a = 1 with b = 0 repeats the last value.
    """
    previous, value = warm[:, -2], warm[:, -1]
    said = []
    for _ in range(N):
        previous, value = value, a * value + b * previous
        said.append(value)
    return torch.stack(said, dim=1)


def fitted_terms(seed: int, windows: int = 100) -> tuple[float, float]:
    """The two factors that least squares finds in windows such as the nets are trained on."""
    u = torch.rand(windows, generator=torch.Generator().manual_seed(seed))
    X, y = draw_windows("value", u, 2)
    a_b = torch.linalg.lstsq(X.flip(1).double(), y[:, 1:].double()).solution
    return float(a_b[0]), float(a_b[1])


def drift_step(error: Tensor, limit: float) -> Tensor:
    """The first step, from 1, at which the root mean square over windows (..., B, N) is above the
    limit; N + 1 where it never is."""
    beyond = error.square().mean(-2).sqrt() > limit
    N = beyond.shape[-1]
    return torch.where(beyond.any(-1), beyond.int().argmax(-1) + 1, N + 1)


def amplitude_and_phase(said: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitude over the true one, and size of the phase's error in radians, for each period.

    Both (..., M) are those of the sine that fits the 63 values of a period best, averaged over the
    windows of `said` and `true` (..., B, N). A phase that means nothing averages π/2.
    """
    period = round(2 * math.pi / VALUE_STEP)
    angle = VALUE_STEP * torch.arange(period, dtype=torch.float64)
    fit = torch.linalg.pinv(torch.stack([angle.sin(), angle.cos()], dim=1)).T  # (period, 2)
    waves = [v.double().unfold(-1, period, period) @ fit for v in (said, true)]  # (..., B, M, 2)
    ratio = torch.view_as_complex(waves[0]) / torch.view_as_complex(waves[1])
    return ratio.abs().mean(-2), ratio.angle().abs().mean(-2)


# the record


def enter(
    measures: dict[str, Any], name: str, values: Tensor, columns: Sequence, seeds: Sequence[int]
) -> None:
    """Enter a summary over seeds for each column of `values` (R, K) under "<name>/<column>"."""
    for column, of_seeds in zip(columns, values.T, strict=True):
        measures[f"{name}/{column}"] = summarise(of_seeds.double().tolist(), seeds=seeds)


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The report's tables by heading: the published losses, then the note's outputs by step."""
    sine = published["sine"]
    tables = {
        f"Losses, ours with {title}": [
            number_row(
                f"{label}, loss of batches {BLOCK * k - BLOCK + 1} to {BLOCK * k}",
                value, measures, f"{LOSS.format(start, optimiser)}/{k}", higher_is_better=False,
            )
            for optimiser, label in (("adam", "Adam, 0.001"), ("sgd", "SGD, 0.01"))
            for k, value in enumerate(sine[f"{optimiser}_loss"], start=1)
        ]
        for start, title in STARTS.items()
    }  # fmt: skip
    for heading, column, moment in (
        ("Outputs before training", "initial_prediction", "0"),
        ("Outputs after training, ours after 100 batches", "final_prediction", "100"),
        (f"Outputs after training, ours after {settings['batches']:,} batches",
         "final_prediction", "end"),
    ):  # fmt: skip
        tables[heading] = [
            number_row(
                f"output of step {k}", value, measures, f"{NOTE.format(moment)}/{k}",
                higher_is_better=None,
            )
            for k, value in enumerate(sine["every_step"][column], start=1)
        ]  # fmt: skip
    return tables


def about(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on, and what their labels tell."""
    return (
        "Published: three LSTM cells of 10, 20 and 1 units, nine points, batches of 300, half the "
        f"squared error of the last output against sin(t)/2, averaged over {BLOCK} batches; one "
        "training each. The labels printed beside the outputs are sin t, twice what the net was "
        "trained on. The source trained on 1,000 batches, and the losses that it prints end at the "
        "hundredth; its outputs after training stand beside ours after either number."
    )
