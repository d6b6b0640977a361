"""The stacked cells that follow a sine, their data, and one training of them as a task.

Three LSTM cells of 10, 20 and 1 units stand on one another; the top cell's hidden state is the
output, so there is no linear head. The nets are tiny, and R of them, one for each seed, are trained
at once: every parameter has the seeds as its first axis and every product is a batched one. No net
sees another's numbers, so each equals the same net trained alone.

Shapes: R seeds, T steps, B windows, I inputs, H units, E windows of an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.lab import environment

SIZES = (10, 20, 1)
STEP = 0.01  # of the source's grid
POINTS = 9  # that the source's net reads
SEEN = 1.09  # no label of a training on time lies beyond
VALUE_STEP = 0.1  # of the grid whose values are read: 63 points to a period
MODULES = ("labkit.sine.training",)

CHOICES = {
    "reads": ("time", "value"),
    "loss": ("last", "every"),
    "start": ("gluon", "xavier"),
    "optimiser": ("adam", "sgd"),
}
Parameters = list[dict[str, Tensor]]  # one for each cell: "W", "U", "b_W", "b_U"
State = list[tuple[Tensor, Tensor]]  # h and c of each cell


@dataclass(frozen=True)
class TrainSpec:
    """One way of training; the defaults are the source's.

    `reads` is "time" (the points t themselves) or "value" (sin(t)/2). `loss` counts the "last"
    output or "every" one. The length of a window is drawn for each batch from `shortest` to
    `longest`. `start` is "gluon" (weights uniform in ±0.07) or "xavier"; biases are zero in both.
    With `decay` the learning rate falls to zero along a cosine.
    """

    reads: str = "time"
    loss: str = "last"
    shortest: int = POINTS
    longest: int = POINTS
    start: str = "gluon"
    optimiser: str = "adam"
    lr: float = 1e-3
    decay: bool = False
    batches: int = 1_000
    batch_size: int = 300

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"TrainSpec.{name} must be one of {', '.join(allowed)}; "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("shortest", "longest", "batches", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"TrainSpec.{name} must be a whole number from 1, got {value!r}")
        if self.shortest > self.longest:
            raise ValueError(
                f"TrainSpec: shortest ({self.shortest}) is above longest ({self.longest})"
            )
        if self.reads == "time" and self.longest * STEP >= SEEN:
            raise ValueError(
                f"TrainSpec.longest must be below {SEEN / STEP:.0f} where time is read"
            )
        if self.lr <= 0:
            raise ValueError(f"TrainSpec.lr must be positive, got {self.lr}")


# data


def time_windows(end: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """T grid points in front of each time `end` (...,), and what is to be said at each of them.

    X (..., T) holds t = end − 0.01·T, …, end − 0.01, and y (..., T) the value one step further,
    sin(t + 0.01)/2. So the last label lies at `end`, which is not read.
    """
    t = end.unsqueeze(-1) + STEP * torch.arange(-T, 1, dtype=end.dtype, device=end.device)
    return t[..., :-1], t[..., 1:].sin() / 2


def value_windows(first: Tensor, T: int, step: float = VALUE_STEP) -> tuple[Tensor, Tensor]:
    """T values sin(t)/2 from t = `first` (...,) on, and the value that follows each, (..., T)."""
    t = first.unsqueeze(-1) + step * torch.arange(T + 1, dtype=first.dtype, device=first.device)
    values = t.sin() / 2
    return values[..., :-1], values[..., 1:]


def batch(spec: TrainSpec, u: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Windows X, y (..., T) for random numbers u (...,), uniform in [0, 1).

    Where time is read, the last label lies between 0.01·T and 1.09, evenly: for nine points the
    first of them is u, as in the source.
    """
    if spec.reads == "time":
        return time_windows(STEP * T + u * (SEEN - STEP * T), T)
    return value_windows(2 * math.pi * u, T)


# the stacked cells


def initial_parameters(
    seeds: Sequence[int], start: str = "gluon", dtype: torch.dtype = torch.float32
) -> Parameters:
    """The start of one net for each seed; gate columns stand in the order i, f, o, g.

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


def run_cell(
    cell: Mapping[str, Tensor], X: Tensor, state: tuple[Tensor, Tensor] | None = None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Hidden state, cell state and output gate after each step of X (R, T, B, I), (R, B, H) each.

    c = f·c + i·g and h = o·tanh(c), from `state`, zero by default.
    """
    R, T, B, _ = X.shape
    H = cell["U"].shape[1]
    h, c = state or (X.new_zeros(R, B, H), X.new_zeros(R, B, H))

    # the input's part of all steps in one product
    Z = torch.baddbmm(cell["b_W"] + cell["b_U"], X.reshape(R, T * B, -1), cell["W"])
    steps = []
    for z in Z.view(R, T, B, 4 * H).unbind(1):
        z = torch.baddbmm(z, h, cell["U"])
        i, f, o = z[..., : 3 * H].sigmoid().split(H, dim=-1)
        c = f * c + i * z[..., 3 * H :].tanh()
        h = o * c.tanh()
        steps.append((h, c, o))
    return steps


def unroll(
    parameters: Parameters, X: Tensor, state: State | None = None
) -> tuple[Tensor, State, list[tuple[Tensor, Tensor, Tensor]]]:
    """Read windows X (B, T), the same for every net, or (R, B, T), from `state`.

    Returns the outputs after each step (R, B, T), the state of every cell behind the last one, and
    the top cell's steps as `run_cell` gives them.
    """
    R = parameters[0]["W"].shape[0]
    if X.dim() not in (2, 3) or (X.dim() == 3 and X.shape[0] != R):
        raise ValueError(f"X must have shape (B, T) or (R={R}, B, T), got {tuple(X.shape)}")
    signal = X.expand(R, *X.shape[-2:]).transpose(1, 2).unsqueeze(-1)  # (R, T, B, 1)
    ends: State = []
    for index, cell in enumerate(parameters):
        steps = run_cell(cell, signal, state[index] if state else None)
        signal = torch.stack([h for h, _, _ in steps], dim=1)  # (R, T, B, H)
        ends.append(steps[-1][:2])
    return signal.squeeze(-1).transpose(1, 2), ends, steps


def losses(parameters: Parameters, X: Tensor, y: Tensor, every: bool = False) -> Tensor:
    """Half the squared error (R,), of the last output or of every one, meant over the windows."""
    halves = (unroll(parameters, X)[0] - y).square() / 2
    return (halves if every else halves[..., -1:]).mean(dim=(1, 2))


# training


def train(
    spec: TrainSpec,
    seeds: Sequence[int],
    *,
    snapshots: Sequence[int] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Train one net for each seed: "loss" (R, batches) and the parameters after some batches.

    They stand under "<batches>/<cell>/<name>", for every number in `snapshots` and for the last.
    Each seed draws its own windows. The lengths of the batches are drawn once and for all seeds.
    """
    parameters = [
        {name: value.to(device).requires_grad_() for name, value in cell.items()}
        for cell in initial_parameters(seeds, spec.start, dtype)
    ]
    flat = [value for cell in parameters for value in cell.values()]
    kind = torch.optim.Adam if spec.optimiser == "adam" else torch.optim.SGD
    optimiser = kind(flat, lr=spec.lr)
    generators = [torch.Generator().manual_seed(1_000_003 + seed) for seed in seeds]
    lengths = torch.randint(
        spec.shortest, spec.longest + 1, (spec.batches,), generator=torch.Generator().manual_seed(0)
    ).tolist()

    history, found = [], {}
    for done, T in enumerate(lengths, start=1):
        u = torch.stack([torch.rand(spec.batch_size, generator=g) for g in generators])
        X, y = batch(spec, u.to(device, dtype), T)
        loss = losses(parameters, X, y, every=spec.loss == "every")
        if spec.decay:
            share = (done - 1) / spec.batches
            optimiser.param_groups[0]["lr"] = spec.lr * (1 + math.cos(math.pi * share)) / 2
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()

        history.append(loss.detach())
        if done in snapshots or done == spec.batches:
            for index, cell in enumerate(parameters):
                kept = {f"{done}/{index}/{name}": v.detach().clone() for name, v in cell.items()}
                found |= kept
        if progress and (done % 50 == 0 or done == spec.batches):
            progress(done, spec.batches)
    return {"loss": torch.stack(history, dim=1), **found}


# tasks


def training_tasks(
    name: str,
    spec: TrainSpec,
    seeds: Sequence[int],
    *,
    snapshots: Sequence[int] = (),
    chunk: int = 10,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Describe the trainings of `seeds`, `chunk` of them to a task, for `labkit.lab.sweep.run_tasks`.

    `name` is for the eye, and not stored.
    """
    seeds = list(seeds)
    if not seeds or chunk < 1:
        raise ValueError(f"needs at least one seed and a chunk of at least 1: {seeds}, {chunk}")
    kept = sorted({done for done in snapshots if done < spec.batches})
    return [
        {
            "label": f"{name} seeds {seeds[first]}–{seeds[min(first + chunk, len(seeds)) - 1]}",
            "seeds": seeds[first : first + chunk],
            "snapshots": kept,
            "device": device,
            **asdict(spec),
        }
        for first in range(0, len(seeds), chunk)
    ]


def train_task(
    task: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, np.ndarray]:
    """Train the nets of one task; what `train` returns, as arrays."""
    spec = TrainSpec(**{field.name: task[field.name] for field in fields(TrainSpec)})
    found = train(
        spec,
        task["seeds"],
        snapshots=task["snapshots"],
        device=environment.device(task["device"]),
        progress=progress,
    )
    return {name: value.cpu().numpy() for name, value in found.items()}


def joined(results: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """The results of a setting's tasks as one, in the order of their seeds."""
    return {
        name: torch.cat([torch.from_numpy(result[name]) for result in results])
        for name in results[0]
    }


def parameters_after(found: Mapping[str, Tensor], batches: int) -> Parameters:
    """The parameters that a training kept after so many batches; ValueError where it kept none."""
    cells: Parameters = [{} for _ in SIZES]
    for name, value in found.items():
        done, _, rest = name.partition("/")
        if done == str(batches):
            index, _, part = rest.partition("/")
            cells[int(index)][part] = value
    if not all(cells):
        kept = sorted({int(name.split("/")[0]) for name in found if "/" in name})
        raise ValueError(f"nothing was kept after {batches} batches, only after {kept}")
    return cells
