"""What the sine chapter measures: errors by place and length, gates, free runs, verdicts.

Every evaluation has its own fixed times. `TEST_ENDS` covers what a training on time may have seen,
and `DEV_ENDS`, between them, serves choices alone. `SEEN_ENDS` and `UNSEEN_ENDS` are times that a
window of any length up to ninety can end at, so lengths are compared at the same labels.

Shapes: R seeds, T steps, B windows, N steps of a free run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labkit.lab import sweep
from labkit.measure.claims import MIN_SEEDS
from labkit.measure.statistics import summarise
from labkit.sine import training as sine_training
from labkit.sine.training import (
    POINTS,
    SEEN,
    STEP,
    VALUE_STEP,
    Parameters,
    TrainSpec,
    losses,
    time_windows,
    unroll,
    value_windows,
)

LENGTHS = (3, 5, 9, 13, 18, 27, 45, 90)  # that windows are evaluated at
LONGEST = max(LENGTHS)
NEW_LENGTHS = (3, 18, 45, 90)  # no window of training is so long; the verdicts look at these
SNAPSHOTS = (20, 40, 60, 80, 100, 120, 160, 200, 500)  # batches whose parameters are kept
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
FAR = 2.0  # an error more than twice another is far off
HALVED = 0.5  # what cuts an error to less than half mends it


def _midpoints(low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * (torch.arange(count) + 0.5) / count


TEST_ENDS = _midpoints(STEP * POINTS, SEEN, 100)
DEV_ENDS = _midpoints(STEP * POINTS, SEEN, 50)
SEEN_ENDS = _midpoints(STEP * LONGEST, SEEN, 40)
UNSEEN_ENDS = _midpoints(SEEN, SEEN + STEP * LONGEST, 60)
FIRST_PHASES = _midpoints(0, 2 * math.pi, 32)  # of the free runs


# errors


def root_mean_square(errors: Tensor) -> Tensor:
    """Over the last axis."""
    return errors.square().mean(-1).sqrt()


def _windows(parameters: Parameters, ends: Tensor, T: int = POINTS) -> tuple[Tensor, Tensor]:
    """`time_windows` in the nets' own type of numbers."""
    return time_windows(ends.to(parameters[0]["W"].dtype), T)


@torch.no_grad()
def errors(parameters: Parameters, ends: Tensor, T: int) -> Tensor:
    """Output minus label (R, B, T) at each step of windows of T points that end at `ends` (B,)."""
    X, y = _windows(parameters, ends, T)
    return unroll(parameters, X)[0] - y


def place_errors(parameters: Parameters, ends: Tensor = TEST_ENDS, T: int = POINTS) -> Tensor:
    """Root mean square error (R, T) after each step of windows of T points."""
    return root_mean_square(errors(parameters, ends, T).transpose(1, 2))


def length_errors(parameters: Parameters, ends: Tensor, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """Root mean square error (R, lengths) of the last output, all lengths at the same labels.

    ValueError where a window would begin before 0, that is before anything seen in training.
    """
    if STEP * max(lengths) > float(ends.min()) + 1e-6:
        raise ValueError(
            f"a window of {max(lengths)} points that ends at {float(ends.min()):.3f} begins below 0"
        )
    last = [errors(parameters, ends, T)[..., -1] for T in lengths]
    return torch.stack([root_mean_square(e) for e in last], dim=1)


def polynomial_errors(ends: Tensor = TEST_ENDS, degrees: Sequence[int] = (0, 1, 3)) -> list[float]:
    """Root mean square error at `ends` of polynomials in the one point that is read last.

    Fitted by least squares to 300 points evenly spread over what is seen in training. Degree 0 is
    the mean answer. They have no memory.
    """
    fit = _midpoints(STEP * POINTS, SEEN, 300).double()
    found = []
    for degree in degrees:
        powers = torch.arange(degree + 1)
        A, B = ((t.double() - STEP).unsqueeze(1) ** powers for t in (fit, ends))
        weights = torch.linalg.lstsq(A, fit.sin().unsqueeze(1) / 2).solution
        error = (B @ weights).squeeze(1) - ends.double().sin() / 2
        found.append(float(root_mean_square(error)))
    return found


def dev_loss(parameters: Parameters, ends: Tensor = DEV_ENDS) -> Tensor:
    """Half the mean squared error (R,) of the last of nine outputs; choices look at this alone."""
    with torch.no_grad():
        return losses(parameters, *_windows(parameters, ends))


# the note's table


@torch.no_grad()
def outputs_on_grid(parameters: Parameters, labels: Sequence[float]) -> Tensor:
    """Outputs (R, T) for the window whose labels are printed as sin t, t one grid step apart."""
    t = torch.tensor(labels, dtype=torch.float64).asin()
    return unroll(parameters, (t - STEP).float().unsqueeze(0))[0][:, 0]


# why plain gradient descent is slow


def gradient_norms(parameters: Parameters, ends: Tensor = DEV_ENDS) -> dict[str, Tensor]:
    """L2 norms (R,) of the last-step loss's gradient, for each cell's weights and its biases."""
    cells = [{n: v.detach().requires_grad_() for n, v in cell.items()} for cell in parameters]
    flat = [value for cell in cells for value in cell.values()]
    gradients = iter(torch.autograd.grad(losses(cells, *_windows(cells, ends)).sum(), flat))
    found: dict[str, Tensor] = {}
    for number, cell in enumerate(cells, start=1):
        for name in cell:
            group = f"cell {number} {'biases' if name.startswith('b') else 'weights'}"
            square = next(gradients).flatten(1).square().sum(1)
            found[group] = found.get(group, torch.zeros_like(square)) + square
    return {group: square.sqrt() for group, square in found.items()}


# what the output gate can reach


def reach(steps: int) -> float:
    """The bound of |h| after so many steps from a zero state, whatever the weights.

    |c| grows by less than 1 a step, for i, f < 1 and |g| < 1, so |h| = o·tanh|c| < tanh(steps).
    """
    return math.tanh(steps)


def needed_gate(value: float, steps: int) -> float:
    """The output gate must be above this to say `value` after so many steps; above 1: never."""
    return value / reach(steps)


@torch.no_grad()
def top_gates(parameters: Parameters, ends: Tensor, T: int = POINTS) -> tuple[Tensor, Tensor]:
    """Output gate and tanh(c) of the top cell at the last step, (R, B) each."""
    _, c, o = unroll(parameters, _windows(parameters, ends, T)[0])[2][-1]
    return o.squeeze(-1), c.squeeze(-1).tanh()


# free runs


def truth(warm_up: int, N: int, step: float = VALUE_STEP) -> tuple[Tensor, Tensor]:
    """The values that a free run reads first (B, warm_up), and the N that follow, (B, N)."""
    t = FIRST_PHASES.double().unsqueeze(1) + step * torch.arange(warm_up + N).double()
    values = t.sin() / 2
    return values[:, :warm_up], values[:, warm_up:]


@torch.no_grad()
def free_run(parameters: Parameters, warm: Tensor, N: int) -> Tensor:
    """Forecast N values (R, B, N) behind the true ones, warm (B, W), feeding on its own outputs."""
    outputs, state, _ = unroll(parameters, warm.to(parameters[0]["W"].dtype))
    said = [outputs[..., -1:]]  # (R, B, 1)
    for _ in range(N - 1):
        output, state, _ = unroll(parameters, said[-1], state)
        said.append(output)
    return torch.cat(said, dim=-1)


def two_term_run(warm: Tensor, N: int, a: float, b: float = -1.0) -> Tensor:
    """s[k+1] = a·s[k] + b·s[k−1], for N steps behind warm (B, W); (B, N).

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
    X, y = value_windows(2 * math.pi * u, 2)
    a_b = torch.linalg.lstsq(X.flip(1).double(), y[:, 1:].double()).solution
    return float(a_b[0]), float(a_b[1])


def drift_step(error: Tensor, limit: float) -> Tensor:
    """The first step, from 1, at which the root mean square over windows (..., B, N) is above the
    limit; N + 1 where it never is."""
    beyond = error.square().mean(-2).sqrt() > limit
    N = beyond.shape[-1]
    return torch.where(beyond.any(-1), beyond.int().argmax(-1) + 1, N + 1)


def wave(values: Tensor, step: float = VALUE_STEP) -> Tensor:
    """The sine that fits each period of `values` (..., N) best, as a complex number (..., M).

    Its size is the amplitude and its angle the phase at the period's beginning. A period has
    63 values; what is left over is not used.
    """
    period = round(2 * math.pi / step)
    angle = step * torch.arange(period, dtype=torch.float64)
    basis = torch.stack([angle.sin(), angle.cos()], dim=1)  # (period, 2)
    pieces = values.double().unfold(-1, period, period)  # (..., M, period)
    fitted = pieces @ torch.linalg.pinv(basis).T
    return torch.complex(fitted[..., 0], fitted[..., 1])


def amplitude_and_phase(said: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitude over the true one, and size of the phase's error in radians, for each period.

    Both (..., M), averaged over the windows of `said` and `true` (..., B, N). An error of half a
    period, π, is the largest there is.
    """
    ratio = wave(said) / wave(true)
    return ratio.abs().mean(-2), ratio.angle().abs().mean(-2)


# verdicts


class Condition(NamedTuple):
    """The interval of `measure`, named `name`, must lie "above" or "below" `limit`."""

    label: str
    name: str
    measure: Mapping[str, Any]
    side: str
    limit: float

    def holds(self) -> bool | None:
        """Whether the whole interval lies on the right side; None where it spans the limit."""
        low, high = self.measure["low"], self.measure["high"]
        if low is None or low <= self.limit <= high:
            return None
        return (low > self.limit) == (self.side == "above")

    def __str__(self) -> str:
        m = self.measure
        spread = f" [{m['low']:.3g}, {m['high']:.3g}]" if m["low"] is not None else ""
        return f"{self.label} {m[m['statistic']]:.3g}{spread}"


def judge(claim_id: str, claim: str, what: str, conditions: Sequence[Condition]) -> dict[str, Any]:
    """A claim's verdict from its conditions; `what` says what they measure.

    It holds if all are met, and holds only in part if some are and another fails. It is undecided
    where none fails but an interval spans its limit, or where fewer than `MIN_SEEDS` were run.
    """
    seeds = min(c.measure["n"] for c in conditions)
    found = [c.holds() for c in conditions]
    met = [c.label for c, holds in zip(conditions, found, strict=True) if holds]
    if seeds < MIN_SEEDS:
        holds, verdict = None, f"undecided: {seeds} seeds are too few"
    elif all(found):
        holds, verdict = True, "holds"
    elif False not in found:
        holds, verdict = None, "undecided: an interval spans its limit"
    else:
        holds = False
        verdict = f"holds only in part: {', '.join(met)}" if met else "does not hold"
    limits = sorted({f"{c.side} {c.limit:g}" for c in conditions})
    listed = ", ".join(map(str, conditions))
    return {
        "id": claim_id,
        "claim": claim,
        "holds": holds,
        "verdict": verdict,
        "reason": f"{what}: {listed}; needs {' or '.join(limits)}, over {seeds} seeds",
        "evidence": [c.name for c in conditions],
    }


def block_means(loss: Tensor, size: int = 20) -> Tensor:
    """Means (R, blocks) of every `size` batches in a row of losses (R, batches)."""
    blocks = loss.shape[1] // size
    return loss[:, : blocks * size].unflatten(1, (blocks, size)).mean(-1)


def enter(
    measures: dict[str, Any],
    prefix: str,
    values: Tensor,
    names: Sequence[Any],
    seeds: Sequence[int],
) -> None:
    """Enter a summary over seeds for each column of `values` (R, K) under "<prefix>/<name>"."""
    for name, column in zip(names, values.T, strict=True):
        measures[f"{prefix}/{name}"] = summarise(column.double().tolist(), seeds=seeds)


def ratios(a: Tensor, b: Tensor, seeds: Sequence[int]) -> dict[str, Any]:
    """The mean over seeds of a / b (R,), paired seed by seed."""
    return summarise((a / b).double().tolist(), seeds=seeds)


def at_places(parameters: Parameters) -> dict[str, Tensor]:
    """Errors (R,) where the source's net was not trained: its first eight steps together, and the
    lengths that no window of training has."""
    found = {"steps 1 to 8": place_errors(parameters)[:, :-1].square().mean(1).sqrt()}
    columns = length_errors(parameters, SEEN_ENDS, NEW_LENGTHS).T
    return found | {f"{T} points": c for T, c in zip(NEW_LENGTHS, columns, strict=True)}


# trainings


def trained(
    name: str,
    specs: Mapping[str, TrainSpec],
    seeds: Sequence[int],
    *,
    snapshots: Sequence[int] = (),
    chunk: int = 10,
    device: str = "cpu",
) -> dict[str, dict[str, Tensor]]:
    """Train `specs` over all seeds, `chunk` seeds to a task, or read back what was kept of them.

    Returns what `sine_training.train` does, by the names of the specs.
    """
    tasks = {
        label: sine_training.training_tasks(
            f"{name} {label}", spec, seeds, snapshots=snapshots, chunk=chunk, device=device
        )
        for label, spec in specs.items()
    }
    flat = [task for group in tasks.values() for task in group]
    results = iter(
        sweep.run_tasks(flat, sine_training.train_task, name=name, modules=sine_training.MODULES)
    )
    return {
        label: sine_training.joined([next(results) for _ in group])
        for label, group in tasks.items()
    }
