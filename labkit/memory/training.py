"""Training of an ensemble: the loop, the best checkpoint, and a recipe for exploding gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import pad
from torch.optim import Adam

from labkit.cells.graphs import captured
from labkit.lab import machine
from labkit.lab.store import Arrays, Progress, Seeds, Specification, specification
from labkit.memory.data import Split, check, load_published, sound_data
from labkit.memory.model import Ensemble, ModelSpec


def epochs(N: int, seeds: Sequence[int], *, shuffle: bool) -> Iterator[Tensor]:
    """The order of the N rows in one epoch after another: (1, N) in file order, or (R, N), where
    each replica draws its own from its seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        drawn = [torch.randperm(N, generator=generator) for generator in generators if shuffle]
        yield torch.stack(drawn or [torch.arange(N)])


def batches(
    data: Split, seeds: Sequence[int], *, batch_size: int = 8, shuffle: bool = False
) -> Iterator[Split]:
    """Batches (R, B, ...) without end, the last of an epoch maybe smaller."""
    R, N = len(seeds), data.y.shape[-1]
    X, y = data.X.expand(R, *data.X.shape[-2:]), data.y.expand(R, N)
    for order in epochs(N, seeds, shuffle=shuffle):
        if shuffle:
            order = order.to(X.device)  # (R, N)
            X = data.X.expand(X.shape).gather(1, order.unsqueeze(-1).expand(X.shape))
            y = data.y.expand(y.shape).gather(1, order)
        for k in range(0, N, batch_size):
            yield Split(X[:, k : k + batch_size], y[:, k : k + batch_size])


Advance = Callable[[int], Tensor]  # trains by so many steps, returns the sum of their losses (R,)


def by_operators(ensemble: Ensemble, optimiser: Adam, train: Split, *, shuffle: bool) -> Advance:
    """A step is a call of the ensemble and of the optimiser, on a GPU a captured graph of both."""
    stream = batches(train, ensemble.seeds, shuffle=shuffle)

    def step(X: Tensor, y: Tensor) -> tuple[Tensor]:
        losses = ensemble.loss_and_gradients(X, y)
        optimiser.step()
        return (losses,)

    step = captured(step, ensemble.flat.device)

    def advance(steps: int) -> Tensor:
        running = ensemble.flat.new_zeros(len(ensemble))
        for batch in islice(stream, steps):
            running += step(*batch)[0]
        return running

    return advance


def by_kernel(
    ensemble: Ensemble, optimiser: Adam, train: Split, *, shuffle: bool, batch_size: int = 8
) -> Advance:
    """All steps are one launch of `memory.kernel`, which reads the same batches by row numbers."""
    from labkit.memory import kernel  # needs Triton

    def rows() -> Iterator[Tensor]:
        """The rows of one batch after another, (1 or R, B); -1 where a batch is smaller."""
        N = train.y.shape[-1]
        for order in epochs(N, ensemble.seeds, shuffle=shuffle):
            yield from pad(order, (0, -N % batch_size), value=-1).split(batch_size, dim=1)

    stream = rows()

    def advance(steps: int) -> Tensor:
        order = torch.stack(list(islice(stream, steps)), 1).to(train.X.device)
        return kernel.train(ensemble, optimiser, *train, order).sum(1)

    return advance


def road(ensemble: Ensemble) -> Callable[..., Advance]:
    """The fastest way to train these replicas where they lie; both do the same."""
    way = machine.find_road("replicas", ensemble.flat.device.type).name
    sizes = {ensemble.spec.embedding_size, ensemble.spec.hidden_size}
    return by_kernel if way == "kernel" and sizes <= {16, 32, 64} else by_operators


def fit(
    ensemble: Ensemble, train: Split, dev: Split, steps: int, evaluate_every: int = 100,
    shuffle: bool = False, progress: Progress = lambda done, total: None, lr: float = 1e-3,
) -> dict[str, Tensor]:  # fmt: skip
    """Train by Adam on the mean cross-entropy; leave every replica at its best checkpoint.

    That is the one with the best dev accuracy, the earliest where several tie. Returns, for R
    replicas and K evaluations: "step" (K,); "train_loss" (R, K), the mean over the batches since
    the evaluation before; "dev_loss" (R, K); and the best checkpoint's "dev_accuracy" (R,).
    """
    check(*train, replicas=len(ensemble))
    check(*dev, replicas=len(ensemble))
    on_gpu = ensemble.flat.is_cuda
    optimiser = Adam([ensemble.trainable], lr=lr, fused=True, capturable=on_gpu)
    advance = road(ensemble)(ensemble, optimiser, train, shuffle=shuffle)
    evaluate = captured(ensemble.scores, ensemble.flat.device)

    best = {name: value.clone() for name, value in ensemble.parameters.items()}
    best_accuracy = ensemble.flat.new_full((len(ensemble),), -1.0)
    at, curves = [], {"train_loss": [], "dev_loss": []}
    for done in range(0, steps, evaluate_every):
        step = min(done + evaluate_every, steps)
        curves["train_loss"].append(advance(step - done) / (step - done))
        dev_loss, dev_accuracy = evaluate(*dev)
        curves["dev_loss"].append(dev_loss)
        at.append(step)

        improved = dev_accuracy > best_accuracy
        best_accuracy = torch.where(improved, dev_accuracy, best_accuracy)
        for name, value in ensemble.parameters.items():
            best[name] = torch.where(improved.view(-1, 1, 1), value, best[name])
        progress(step, steps)

    for name, value in ensemble.parameters.items():
        value.copy_(best[name])
    arrays = {name: torch.stack(values, 1) for name, values in curves.items()}
    return arrays | {"step": torch.tensor(at), "dev_accuracy": best_accuracy}


def place(protocol: str, cell: str, setting: str, length: int) -> str:
    """Where the measures of a training stand in a record; `setting` is start/embedding."""
    return f"{protocol}/{cell}/{setting}/{length}"


@specification
class DigitSumTraining(Specification):
    """The training of a replica of `model` for each of `seeds`, on sequences of `length` digits."""

    protocol: Literal["published", "shuffled", "sound"] = "published"
    model: ModelSpec
    length: int = Field(ge=3)
    seeds: Seeds
    steps: PositiveInt = 19_000
    evaluate_every: PositiveInt = 100
    device: Literal["cpu", "cuda"] = "cpu"
    work = "replicas"

    @property
    def name(self) -> str:
        """Where its measures stand in a record."""
        return place(self.protocol, self.model.cell, self.model.setting, self.length)

    title = name  # what the progress line shows

    def train(self, progress: Progress = lambda done, total: None) -> Arrays:
        """Train the replicas and test each one's best checkpoint.

        Returns what `fit` does; "first_loss" and "test_accuracy", for sound data
        "test_accuracy_seen_pairs" and "..._unseen_pairs", each (R,); and the best checkpoints'
        parameters as "parameters.<name>", (R, ...).
        """
        device = machine.device(self.device)
        ensemble = Ensemble(self.model, self.seeds, device=device)
        data = {name: Split(X.to(device), y.to(device)) for name, (X, y) in self._data().items()}
        train, dev = data.pop("train"), data.pop("dev")
        shuffle = self.protocol != "published"

        first = next(batches(train, self.seeds, shuffle=shuffle))
        arrays = {"first_loss": ensemble.evaluate(*first)[0]}
        arrays |= fit(ensemble, train, dev, self.steps, self.evaluate_every, shuffle, progress)
        for name, split in data.items():
            quantity = "test_accuracy" if name == "test" else f"test_accuracy_{name}"
            arrays[quantity] = ensemble.evaluate(*split)[1]
        arrays |= {f"parameters.{name}": value for name, value in ensemble.state_dict().items()}
        return {name: value.cpu().numpy() for name, value in arrays.items()}

    def _data(self) -> dict[str, Split]:
        """Train, dev and test sets; for sound, one of each for every replica, stacked."""
        if self.protocol != "sound":
            return load_published(self.length)
        drawn = [sound_data(self.length, seed) for seed in self.seeds]
        groups = {name: zip(*(data[name] for data in drawn), strict=True) for name in drawn[0]}
        return {name: Split(*map(torch.stack, group)) for name, group in groups.items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> Ensemble:
        """The trained replicas that `train` has returned, each at its best checkpoint."""
        ensemble = Ensemble(self.model, self.seeds)
        kept = {n: torch.from_numpy(arrays[f"parameters.{n}"]) for n in ensemble.state_dict()}
        ensemble.load_state_dict(kept)
        return ensemble


def clip_gradients(ensemble: Ensemble, max_norm: float, *, together: bool) -> None:
    """Scale gradients down to the L2 norm `max_norm`, a replica's `together` or each tensor's."""
    gradients = list(ensemble.gradients.values())
    norms = [gradient.flatten(1).norm(dim=1) for gradient in gradients]  # (R,) each
    if together:
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
        norms = [squares.sum(0).sqrt()] * len(gradients)
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_((max_norm / norm.clamp(min=1e-30)).clamp(max=1.0).view(-1, 1, 1))


def explode(
    seeds: Sequence[int], clip: Literal["none", "per_tensor", "global"] = "none", epochs: int = 50
) -> dict[str, Tensor]:
    """The textbook's recipe for a gradient explosion: an SRN, 20 digits, plain SGD with learning
    rate 0.2 on the summed cross-entropy of batches of 64.

    `clip` to a norm of 5 is "per_tensor" in the textbook's framework, "global" in torch. Returns,
    (R, K) for K steps, "loss", a mean per sequence, and "gradient", the L2 norm of U's before
    clipping; and at the end (R,) "dev_accuracy" and "saturated", the share of hidden values on the
    dev set beyond ±0.999.
    """
    ensemble, data = Ensemble(ModelSpec(cell="srn"), seeds), load_published(20)
    stream = batches(data["train"], seeds, batch_size=64)
    curves: dict[str, list[Tensor]] = {"loss": [], "gradient": []}
    for _ in range(epochs * -(-len(data["train"].y) // 64)):
        X, y = next(stream)
        curves["loss"].append(ensemble.loss_and_gradients(X, y, reduction="sum") / y.shape[1])
        curves["gradient"].append(ensemble.gradients["U"].flatten(1).norm(dim=1))
        if clip != "none":
            clip_gradients(ensemble, 5.0, together=clip == "global")
        with torch.no_grad():
            ensemble.trainable -= 0.2 * ensemble.trainable.grad
    hidden = ensemble.trace(data["dev"].X)["h"]
    return {name: torch.stack(values, 1) for name, values in curves.items()} | {
        "dev_accuracy": ensemble.evaluate(*data["dev"])[1],
        "saturated": (hidden.abs() > 0.999).to(hidden.dtype).mean(dim=(1, 2, 3)),
    }
