"""Three stacked LSTM cells that follow a sine: their data, the cells, and one training.

The cells have 10, 20 and 1 units, and the top cell's hidden state is the output. The nets are tiny,
so R of them, one for each seed, are trained at once: every parameter has the seeds as its first
axis. No net sees another's numbers, so each equals the same net trained alone.

Shapes: R seeds, T steps, B windows, I inputs, H units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from labkit.lab import machine
from labkit.lab.specification import Arrays, Progress, Seeds, Specification, specification

SIZES = (10, 20, 1)
STEP = 0.01  # of the source's grid
POINTS = 9  # that the source's net reads
SEEN = 1.09  # no label of a training on time lies beyond
VALUE_STEP = 0.1  # of the grid whose values are read: 63 points to a period

Parameters = list[dict[str, Tensor]]  # one for each cell: "W", "U", "b_W", "b_U"
State = list[tuple[Tensor, Tensor]]  # h and c of each cell


# data


def time_windows(end: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """T grid points in front of each time `end` (...,), and the label of each of them.

    X (..., T) holds t = end − 0.01·T, …, end − 0.01, and y (..., T) the value one step further,
    sin(t + 0.01)/2. So the last label lies at `end`, which is not read.
    """
    t = end.unsqueeze(-1) + STEP * torch.arange(-T, 1, dtype=end.dtype, device=end.device)
    return t[..., :-1], t[..., 1:].sin() / 2


def draw_windows(reads: str, u: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Windows X and labels y (..., T) for random numbers u (...,), uniform in [0, 1).

    Where "time" is read, the last label lies between 0.01·T and 1.09, evenly: for nine points the
    first of them is u, as in the source. Where the "value" sin(t)/2 is read, windows begin anywhere
    in a period, and the label is the value that follows.
    """
    if reads == "time":
        return time_windows(STEP * T + u * (SEEN - STEP * T), T)
    t = (2 * math.pi * u).unsqueeze(-1) + VALUE_STEP * torch.arange(T + 1).to(u)
    values = t.sin() / 2
    return values[..., :-1], values[..., 1:]


# the stacked cells


def initial_parameters(
    seeds: Sequence[int], start: str = "gluon", dtype: torch.dtype = torch.float32
) -> Parameters:
    """One net for each seed, before training; gate columns stand in the order i, f, o, g.

    "gluon" is that framework's default: every weight uniform in ±0.07. "xavier" takes the bound
    sqrt(6 / (I + H)) for the input weights of a gate and sqrt(6 / 2H) for its recurrent ones.
    Either way both biases, one beside W and one beside U, are zero. A seed draws the same numbers
    for both starts.
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

    In each cell c = f·c + i·g and h = o·tanh(c). Returns the outputs after each step (R, B, T), the
    last state of every cell, and the top cell's h, c and o after each step, (R, B, 1) each.
    ValueError for X of another shape.
    """
    R = parameters[0]["W"].shape[0]
    if X.dim() not in (2, 3) or (X.dim() == 3 and X.shape[0] != R):
        raise ValueError(f"X must have shape (B, T) or (R={R}, B, T), got {tuple(X.shape)}")
    B, T = X.shape[-2:]
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


# training


@specification
class SineTraining(Specification):
    """One way of training, with one net for each seed; the defaults are the source's.

    `loss` counts the "last" output or "every" one. The length of a window is drawn for each batch
    from `shortest` to `longest`. With `decay` the learning rate falls to zero along a cosine.
    `snapshots` are the numbers of batches after which parameters are kept, besides the last.
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

    @model_validator(mode="after")
    def _lengths_fit(self) -> SineTraining:
        if self.shortest > self.longest:
            raise ValueError(f"shortest ({self.shortest}) is above longest ({self.longest})")
        if self.reads == "time" and self.longest * STEP >= SEEN:
            raise ValueError(f"longest must be below {SEEN / STEP:.0f} where time is read")
        return self

    @property
    def title(self) -> str:
        return f"{self.optimiser} {self.lr:g}, {self.loss} step, seeds from {self.seeds[0]}"

    def train(self, progress: Progress, dtype: torch.dtype = torch.float32) -> Arrays:
        """The losses "loss" (R, batches), and parameters under "<batches>/<cell>/<name>".

        Each seed draws its own windows. The lengths of the batches are drawn once for all seeds.
        """
        device = machine.device(self.device)
        parameters = [
            {name: value.to(device).requires_grad_() for name, value in cell.items()}
            for cell in initial_parameters(self.seeds, self.start, dtype)
        ]
        flat = [value for cell in parameters for value in cell.values()]
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.SGD
        optimiser = kind(flat, lr=self.lr)
        generators = [torch.Generator().manual_seed(1_000_003 + seed) for seed in self.seeds]
        draw = torch.Generator().manual_seed(0)
        lengths = torch.randint(self.shortest, self.longest + 1, (self.batches,), generator=draw)

        history, arrays = [], {}
        for done, T in enumerate(lengths.tolist(), start=1):
            u = torch.stack([torch.rand(self.batch_size, generator=g) for g in generators])
            X, y = draw_windows(self.reads, u.to(device, dtype), T)  # (R, B, T)
            loss = losses(parameters, X, y, every=self.loss == "every")  # (R,)
            if self.decay:
                share = (done - 1) / self.batches
                optimiser.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * share)) / 2
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()

            history.append(loss.detach())
            if done in self.snapshots or done == self.batches:
                for index, cell in enumerate(parameters):
                    kept = {f"{done}/{index}/{n}": v.detach().clone() for n, v in cell.items()}
                    arrays |= kept
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
