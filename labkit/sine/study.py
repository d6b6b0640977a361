"""Three stacked LSTM cells that follow a sine: data, cells, one training, and what is measured.

The top cell's hidden state is the output. R nets are trained at once, each as if alone.
Shapes: R seeds (first axis of all parameters), T steps, B windows, I inputs, H units, N free steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from labkit.cells.graphs import captured
from labkit.lab import machine
from labkit.lab.store import Arrays, Progress, Seeds, Specification, specification

SIZES = (10, 20, 1)
STEP = 0.01  # of the source's grid
POINTS = 9  # that the source's net reads
SEEN = 1.09  # no label of a training on time lies beyond
VALUE_STEP = 0.1  # of the grid whose values are read: 63 points to a period
DRIFTED = 0.05  # the error above which a free run has drifted, a tenth of the wave's amplitude
OPTIMISERS = {"adam": {"lr": 1e-3}, "sgd": {"optimiser": "sgd", "lr": 1e-2}}  # the source's
SNAPSHOTS = (20, 40, 60, 80, 100, 120, 160, 200, 500)  # batches after which the note is compared
MIXED = {"shortest": 5, "longest": 13}  # the mixed lengths of training; their mean is nine
WAYS: dict[str, dict[str, Any]] = {
    f"{loss}/{name}": {"loss": loss, **lengths}
    for name, lengths in {"nine": {}, "mixed": MIXED}.items()
    for loss in ("last", "every")
}
# the forecasters read values and train further than the source's net
_VALUE = {"reads": "value", "start": "xavier", "lr": 1e-2, "decay": True, "batch_size": 100}
FORECASTERS: dict[str, dict[str, Any]] = {
    "last/nine": {**_VALUE, "loss": "last"},
    "every/mixed": {**_VALUE, "loss": "every", "shortest": 5, "longest": 40},
}
LENGTHS = (3, 5, 9, 13, 18, 27, 45, 90)  # that windows are evaluated at
NEW_LENGTHS = (3, 18, 45, 90)  # no window of training is so long; the verdicts look at these

Parameters = list[dict[str, Tensor]]  # one for each cell: "W", "U", "b_W", "b_U"
State = list[tuple[Tensor, Tensor]]  # h and c of each cell


def _midpoints(low: float, high: float, count: int) -> Tensor:
    return low + (high - low) * (torch.arange(count) + 0.5) / count


# Times of evaluation. Choices look at DEV_ENDS alone; SEEN_ENDS and UNSEEN_ENDS suit every length.
TEST_ENDS = _midpoints(STEP * POINTS, SEEN, 100)
DEV_ENDS = _midpoints(STEP * POINTS, SEEN, 50)
SEEN_ENDS = _midpoints(STEP * max(LENGTHS), SEEN, 40)
UNSEEN_ENDS = _midpoints(SEEN, SEEN + STEP * max(LENGTHS), 60)
FIRST_PHASES = _midpoints(0, 2 * math.pi, 32)  # of the free runs


def time_windows(end: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """X (..., T), the times t = end − 0.01·T, …, end − 0.01 before each `end` (...,), and their
    labels y (..., T), the value one step further, sin(t + 0.01)/2; `end` itself is not read."""
    t = end.unsqueeze(-1) + STEP * torch.arange(-T, 1, dtype=end.dtype, device=end.device)
    return t[..., :-1], t[..., 1:].sin() / 2


def wave(first: Tensor, N: int) -> Tensor:
    """N values sin(t)/2 (..., N), 0.1 apart, from each time `first` (...,) on."""
    step = torch.arange(N, dtype=first.dtype, device=first.device)
    return (first.unsqueeze(-1) + VALUE_STEP * step).sin() / 2


def draw_windows(reads: str, u: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Windows X and labels y (..., T) for random numbers u (...,), uniform in [0, 1).

    Where "time" is read, the last label lies evenly between 0.01·T and 1.09, as in the source;
    windows of the "value" sin(t)/2 begin anywhere in a period, their labels are the next values.
    """
    if reads == "time":
        return time_windows(STEP * T + u * (SEEN - STEP * T), T)
    values = wave(2 * math.pi * u, T + 1)
    return values[..., :-1], values[..., 1:]


def initial_parameters(
    seeds: Sequence[int], start: str = "gluon", dtype: torch.dtype = torch.float32
) -> Parameters:
    """One net for each seed, before training; gate columns stand in the order i, f, o, g.

    Weights are uniform in ±0.07, "gluon"'s default, or by "xavier" in ±sqrt(6 / (rows + H)), of the
    same draws; both biases, beside W and beside U, are zero.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    parameters = []
    for inputs, H in zip((1, *SIZES[:-1]), SIZES, strict=True):
        cell = {}
        for name, rows in (("W", inputs), ("U", H)):
            bound = 0.07 if start == "gluon" else math.sqrt(6 / (rows + H))
            draws = [torch.rand(rows, 4 * H, generator=g, dtype=torch.float64) for g in generators]
            cell[name] = ((2 * torch.stack(draws) - 1) * bound).to(dtype)  # (R, I or H, 4H)
        cell |= {f"b_{name}": cell["W"].new_zeros(len(generators), 1, 4 * H) for name in "WU"}
        parameters.append(cell)
    return parameters


def unroll(
    parameters: Parameters, X: Tensor, state: State | None = None
) -> tuple[Tensor, State, list[tuple[Tensor, Tensor, Tensor]]]:
    """Read windows X (B, T), the same for every net, or (R, B, T), from `state`, zero by default.

    Returns the outputs after each step (R, B, T), the last state of every cell, and the top cell's
    h, c and o after each step, (R, B, 1) each.
    """
    R, (B, T) = parameters[0]["W"].shape[0], X.shape[-2:]
    signal = X.expand(R, B, T).transpose(1, 2).unsqueeze(-1)  # (R, T, B, 1)
    ends: State = []
    for index, cell in enumerate(parameters):
        H = cell["U"].shape[1]
        h, c = state[index] if state else [X.new_zeros(R, B, H)] * 2

        # the input's part of all steps in one product
        Z = torch.baddbmm(cell["b_W"] + cell["b_U"], signal.reshape(R, T * B, -1), cell["W"])
        steps = []
        for z in Z.view(R, T, B, 4 * H).unbind(1):
            z = torch.baddbmm(z, h, cell["U"])  # (R, B, 4H)
            i, f, o = z[..., : 3 * H].sigmoid().split(H, dim=-1)
            c = f * c + i * z[..., 3 * H :].tanh()
            h = o * c.tanh()
            steps.append((h, c, o))
        signal = torch.stack([h for h, _, _ in steps], dim=1)  # (R, T, B, H): the next cell's input
        ends.append((h, c))
    return signal.squeeze(-1).transpose(1, 2), ends, steps


def losses(parameters: Parameters, X: Tensor, y: Tensor, every: bool = False) -> Tensor:
    """Half the squared error (R,) of the last output or of every one, averaged over windows."""
    halves = (unroll(parameters, X)[0] - y).square() / 2  # (R, B, T)
    return (halves if every else halves[..., -1:]).mean(dim=(1, 2))


@specification
class SineTraining(Specification):
    """One way of training, with one net for each seed; the defaults are the source's.

    `loss` counts the "last" output or "every" one. A batch's windows have one length, drawn from
    `shortest` to `longest`. With `decay` the rate falls to zero along a cosine. `snapshots` are
    the numbers of batches after which parameters are kept, besides the last.
    """

    seeds: Seeds
    reads: Literal["time", "value"] = "time"
    loss: Literal["last", "every"] = "last"
    shortest: PositiveInt = POINTS
    longest: PositiveInt = POINTS
    start: Literal["gluon", "xavier"] = "gluon"
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    decay: bool = False
    batches: PositiveInt = 1_000
    batch_size: PositiveInt = 300
    snapshots: tuple[PositiveInt, ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"
    work = "stacks"

    @model_validator(mode="after")
    def _stays_in_range(self) -> SineTraining:
        if self.reads == "time" and self.longest * STEP >= SEEN:
            raise ValueError(f"longest must be below {SEEN / STEP:.0f} where time is read")
        return self

    @property
    def title(self) -> str:
        return f"{self.optimiser} {self.lr:g}, {self.loss} step, seeds from {self.seeds[0]}"

    def train(self, progress: Progress, dtype: torch.dtype = torch.float32) -> Arrays:
        """The "loss" (R, batches), and parameters under "<batches>/<cell>/<name>". Each seed draws
        its own windows; the lengths of the batches are the same for all."""
        device = machine.device(self.device)
        parameters = [
            {name: value.to(device).requires_grad_() for name, value in cell.items()}
            for cell in initial_parameters(self.seeds, self.start, dtype)
        ]
        flat = [value for cell in parameters for value in cell.values()]
        rate = torch.tensor(self.lr, dtype=dtype, device=device)
        if self.optimiser == "adam":
            on_gpu = device.type == "cuda"
            optimiser = torch.optim.Adam(flat, lr=rate, fused=True, capturable=on_gpu)
        else:
            optimiser = torch.optim.SGD(flat, lr=rate, fused=True)

        def step(X: Tensor, y: Tensor, lr: Tensor) -> tuple[Tensor]:
            rate.copy_(lr)
            loss = losses(parameters, X, y, every=self.loss == "every")  # (R,)
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            return (loss.detach(),)

        # all that the steps read is drawn beforehand, so that none waits for a copy to the device
        generators = [torch.Generator().manual_seed(1_000_003 + seed) for seed in self.seeds]
        size = (self.batches, self.batch_size)
        u = torch.stack([torch.rand(size, generator=g) for g in generators], 1).to(device, dtype)
        draw = torch.Generator().manual_seed(0)
        lengths = torch.randint(self.shortest, self.longest + 1, size[:1], generator=draw)
        angles = torch.arange(self.batches).double() * (math.pi * self.decay / self.batches)
        rates = (self.lr * (1 + angles.cos()) / 2).to(device, dtype)

        step, history, arrays = captured(step, device), [], {}
        for done, T in enumerate(lengths.tolist(), start=1):
            X, y = draw_windows(self.reads, u[done - 1], T)  # (R, B, T)
            history += step(X, y, rates[done - 1])
            if done in self.snapshots or done == self.batches:
                for k, cell in enumerate(parameters):
                    arrays |= {f"{done}/{k}/{n}": v.detach().clone() for n, v in cell.items()}
            if done % 50 == 0 or done == self.batches:
                progress(done, self.batches)
        arrays["loss"] = torch.stack(history, dim=1)
        return {name: array.cpu().numpy() for name, array in arrays.items()}


def parameters_after(arrays: Arrays, batches: int) -> Parameters:
    """The parameters that a training kept after so many batches; KeyError where it kept none."""
    return [
        {n: torch.from_numpy(arrays[f"{batches}/{cell}/{n}"]) for n in ("W", "U", "b_W", "b_U")}
        for cell in range(len(SIZES))
    ]


def root_mean_square(errors: Tensor) -> Tensor:
    """Over the windows of errors (..., B, N)."""
    return errors.square().mean(-2).sqrt()


def step_errors(parameters: Parameters, ends: Tensor = TEST_ENDS, T: int = POINTS) -> Tensor:
    """Error (R, T) after each step of windows of T points that end at `ends` (B,)."""
    X, y = time_windows(ends, T)
    return root_mean_square(unroll(parameters, X)[0] - y)


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
    """s[k+1] = a·s[k] + b·s[k−1], for N steps after warm (B, W); (B, N).

    a = 2·cos(step) is exact for each sine of that step; a = 2 is a line; a = 1, b = 0 repeats.
    """
    values = [*warm.unbind(1)]
    for _ in range(N):
        values.append(a * values[-1] + b * values[-2])
    return torch.stack(values[-N:], dim=1)


def drift_step(error: Tensor) -> Tensor:
    """The first step, from 1, whose error (..., N) is above `DRIFTED`; N + 1 where none is."""
    beyond = error > DRIFTED
    return torch.where(beyond.any(-1), beyond.int().argmax(-1) + 1, error.shape[-1] + 1)


def amplitude_and_phase(said: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitude over the true one and size of the phase's error in radians, (..., M) each: of the
    sine that fits each period's 63 values best, means over the windows (..., B, N)."""
    period = round(2 * math.pi / VALUE_STEP)
    angle = VALUE_STEP * torch.arange(period, dtype=torch.float64)
    fit = torch.linalg.pinv(torch.stack([angle.sin(), angle.cos()], dim=1)).T  # (period, 2)
    waves = [v.double().unfold(-1, period, period) @ fit for v in (said, true)]  # (..., B, M, 2)
    ratio = torch.view_as_complex(waves[0]) / torch.view_as_complex(waves[1])
    return ratio.abs().mean(-2), ratio.angle().abs().mean(-2)
