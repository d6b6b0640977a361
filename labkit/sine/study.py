"""Stacked LSTM cells that follow a sine: data, cells, and one training.

The top cell's hidden state is the output. R nets are trained at once, each as if alone.
Shapes: R seeds (first axis of all parameters), T steps, B windows, I inputs, H units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

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

Parameters = list[dict[str, Tensor]]  # one for each cell: "W", "U", "b_W", "b_U", any "gain_…"
State = list[tuple[Tensor, Tensor]]  # h and c of each cell


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
    seeds: Sequence[int], start: str = "gluon", dtype: torch.dtype = torch.float32,
    sizes: Sequence[int] = SIZES, norm: bool = False,
) -> Parameters:  # fmt: skip
    """One net for each seed, before training; gate columns stand in the order i, f, o, g.

    Weights are uniform in ±0.07, "gluon"'s default, or by "xavier" in ±sqrt(6 / (rows + H)), of the
    same draws; both biases, beside W and beside U, are zero. For `norm` see `normalise`.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    parameters = []
    for inputs, H in zip((1, *sizes[:-1]), sizes, strict=True):
        cell = {}
        for name, rows in (("W", inputs), ("U", H)):
            bound = 0.07 if start == "gluon" else math.sqrt(6 / (rows + H))
            draws = [torch.rand(rows, 4 * H, generator=g, dtype=torch.float64) for g in generators]
            cell[name] = ((2 * torch.stack(draws) - 1) * bound).to(dtype)  # (R, I or H, 4H)
        R, zeros = len(generators), cell["W"].new_zeros(len(generators), 1, 4 * H)
        cell |= {"b_W": zeros, "b_U": zeros.clone()}
        if norm:
            cell |= {f"gain_{name}": torch.full_like(zeros, 0.1) for name in "WU"}
            cell |= {"gain_c": zeros.new_full((R, 1, H), 0.1), "b_c": zeros.new_zeros(R, 1, H)}
        parameters.append(cell)
    return parameters


def normalise(x: Tensor, gain: Tensor, reference: int | None = None) -> Tensor:
    """x (R, n, B) brought to mean 0 and variance 1 over its B windows, then times `gain` (R, 1, n).

    Recurrent batch normalisation (Cooijmans and others, 2016) does so at each step with x W, with
    h U and with c; gains start at 0.1. In a trained net `reference` first windows tell the moments.
    """
    variance, mean = torch.var_mean(x[..., :reference], -1, correction=0, keepdim=True)
    return gain.mT * (x - mean) / (variance + 1e-5).sqrt()


def step(
    cell: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor,
    squash: Callable[[Tensor], Tensor] = torch.tanh, reference: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """h, c and the output gate o, (R, H, B) each, after a cell has read x (R, I, B)."""
    W, U, b = cell["W"].mT, cell["U"].mT, (cell["b_W"] + cell["b_U"]).mT
    H, norm = h.shape[1], "gain_c" in cell
    if norm:
        xW, hU = normalise(W @ x, cell["gain_W"], reference), U @ h
        z = xW + normalise(hU, cell["gain_U"], reference) + b
    else:
        z = torch.baddbmm(torch.baddbmm(b, W, x), U, h)  # (R, 4H, B)
    i, f, o = z[:, : 3 * H].sigmoid().split(H, dim=1)
    c = f * c + i * squash(z[:, 3 * H :])
    seen = normalise(c, cell["gain_c"], reference) + cell["b_c"].mT if norm else c
    return o * squash(seen), c, o


def unroll(
    parameters: Parameters, X: Tensor, state: State | None = None, relu: bool = False,
    reference: int | None = None,
) -> tuple[Tensor, State, list[tuple[Tensor, Tensor, Tensor]]]:  # fmt: skip
    """Read windows X (B, T), the same for every net, or (R, B, T), from `state`, zero by default.

    With `relu` all cells but the top one have ReLU for tanh. Returns the outputs after each step
    (R, B, T), the last state of every cell, and the top cell's h, c and o (R, 1, B) at each step.
    """
    R, (B, T) = parameters[0]["W"].shape[0], X.shape[-2:]
    signal, ends = [x.unsqueeze(1) for x in X.expand(R, B, T).unbind(2)], []  # T of (R, 1, B)
    for index, cell in enumerate(parameters):
        squash = torch.relu if relu and index < len(parameters) - 1 else torch.tanh
        h, c = state[index] if state else [X.new_zeros(R, cell["U"].shape[1], B)] * 2
        steps = []
        for x in signal:
            h, c, o = step(cell, x, h, c, squash, reference)
            steps.append((h, c, o))
        signal = [h for h, _, _ in steps]  # what the next cell reads
        ends.append((h, c))
    return torch.cat(signal, dim=1).mT, ends, steps


def losses(
    parameters: Parameters, X: Tensor, y: Tensor, every: bool = False, relu: bool = False
) -> Tensor:
    """Half the squared error (R,) of the last output or of every one, averaged over windows."""
    halves = (unroll(parameters, X, relu=relu)[0] - y).square() / 2  # (R, B, T)
    return (halves if every else halves[..., -1:]).mean(dim=(1, 2))


@specification
class SineTraining(Specification):
    """One way of training, with one net for each seed; the defaults are the source's.

    `loss` counts the "last" output or "every" one. A batch's windows have one length, drawn from
    `shortest` to `longest`. With `decay` the rate falls to zero along a cosine. `snapshots` are
    the numbers of batches after which parameters are kept, besides the last. `relu` and `norm` are
    those of `unroll` and `normalise`.
    """

    seeds: Seeds
    reads: Literal["time", "value"] = "time"
    loss: Literal["last", "every"] = "last"
    shortest: PositiveInt = POINTS
    longest: PositiveInt = POINTS
    sizes: tuple[PositiveInt, ...] = SIZES
    relu: bool = False
    norm: bool = False
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
            for cell in initial_parameters(self.seeds, self.start, dtype, self.sizes, self.norm)
        ]
        flat = [value for cell in parameters for value in cell.values()]
        rate = torch.tensor(self.lr, dtype=dtype, device=device)
        if self.optimiser == "adam":
            on_gpu = device.type == "cuda"
            optimiser = torch.optim.Adam(flat, lr=rate, fused=True, capturable=on_gpu)
        else:
            optimiser = torch.optim.SGD(flat, lr=rate, fused=True)

        def advance(X: Tensor, y: Tensor, lr: Tensor) -> tuple[Tensor]:
            rate.copy_(lr)
            loss = losses(parameters, X, y, self.loss == "every", self.relu)  # (R,)
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

        advance, history, arrays = captured(advance, device), [], {}
        for done, T in enumerate(lengths.tolist(), start=1):
            X, y = draw_windows(self.reads, u[done - 1], T)  # (R, B, T)
            history += advance(X, y, rates[done - 1])
            if done in self.snapshots or done == self.batches:
                for k, cell in enumerate(parameters):
                    arrays |= {f"{done}/{k}/{n}": v.detach().clone() for n, v in cell.items()}
            if done % 50 == 0 or done == self.batches:
                progress(done, self.batches)
        arrays["loss"] = torch.stack(history, dim=1)
        return {name: array.cpu().numpy() for name, array in arrays.items()}


def parameters_after(arrays: Arrays, batches: int) -> Parameters:
    """The parameters that a training kept after so many batches; KeyError where it kept none."""
    kept = [name.split("/")[1:] for name in arrays if name.startswith(f"{batches}/")]
    if not kept:
        raise KeyError(batches)
    cells: Parameters = [{} for _ in {cell for cell, _ in kept}]
    for cell, name in kept:
        cells[int(cell)][name] = torch.from_numpy(arrays[f"{batches}/{cell}/{name}"])
    return cells
