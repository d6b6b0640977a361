"""Training of an ensemble: the loop, the evaluation on held-out data, the best checkpoint.

Every replica keeps its own best checkpoint. The dev score is the best over all evaluations and the
test score belongs to that checkpoint, so a test set is never looked at while choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from labkit.memory.ensemble import Ensemble


class Split(NamedTuple):
    """Sequences X, long (N, T), and classes y (N,); or a set for each replica, (R, N, ...)."""

    X: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Split:
        return Split(self.X.to(device), self.y.to(device))


@dataclass(frozen=True)
class FitSettings:
    """How long and how an ensemble is trained: Adam on the mean cross-entropy, no clipping."""

    steps: int = 19_000
    batch_size: int = 8
    lr: float = 1e-3
    evaluate_every: int = 100
    shuffle: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"FitSettings.{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"FitSettings.{name} must be at least 1, got {value}")
        if self.lr <= 0:
            raise ValueError(f"FitSettings.lr must be positive, got {self.lr}")


@dataclass
class History:
    """What a training left behind, for R replicas and K evaluations.

    `step` (K,); `train_loss` (R, K), the mean over the batches since the evaluation before;
    `dev_loss` and `dev_accuracy` (R, K); `best_step` and `best_dev_accuracy` (R,); `best`, the
    parameters at each replica's best dev accuracy, the earliest where several tie.
    """

    step: Tensor
    train_loss: Tensor
    dev_loss: Tensor
    dev_accuracy: Tensor
    best_step: Tensor
    best_dev_accuracy: Tensor
    best: dict[str, Tensor] = field(repr=False)


def batches(data: Split, settings: FitSettings, seeds: tuple[int, ...]) -> Iterator[Split]:
    """Batches without end, epoch after epoch; the last one of an epoch may be smaller.

    Without shuffling every replica reads the data in file order. With it, each replica draws its
    own order from its own seed, so that the order does not depend on who trains beside it.
    """
    N, size = data.y.shape[-1], settings.batch_size
    if not settings.shuffle:
        while True:
            for start in range(0, N, size):
                stop = min(start + size, N)
                yield Split(data.X[..., start:stop, :], data.y[..., start:stop])

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    X = data.X if data.X.dim() == 3 else data.X.expand(len(seeds), *data.X.shape)
    y = data.y if data.y.dim() == 2 else data.y.expand(len(seeds), -1)
    while True:
        order = torch.stack([torch.randperm(N, generator=g) for g in generators]).to(X.device)
        X_epoch = X.gather(1, order.unsqueeze(-1).expand(X.shape))
        y_epoch = y.gather(1, order)
        for start in range(0, N, size):
            yield Split(X_epoch[:, start : start + size], y_epoch[:, start : start + size])


def fit(
    ensemble: Ensemble,
    train: Split,
    dev: Split,
    settings: FitSettings,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Train every replica and leave it at its best checkpoint; `progress` gets (done, total)."""
    optimiser = torch.optim.Adam([ensemble.trainable], lr=settings.lr, fused=True)
    stream = batches(train, settings, ensemble.seeds)

    best = ensemble.state_dict()
    best_accuracy = torch.full((len(ensemble),), -1.0, dtype=ensemble.dtype, device=ensemble.device)
    best_step = torch.zeros(len(ensemble), dtype=torch.int64, device=ensemble.device)
    rows: list[tuple[int, Tensor, Tensor, Tensor]] = []
    running, since = torch.zeros_like(best_accuracy), 0

    for step in range(1, settings.steps + 1):
        X, y = next(stream)
        running += ensemble.loss_and_gradients(X, y)
        since += 1
        optimiser.step()
        if step % settings.evaluate_every and step != settings.steps:
            continue

        dev_loss, dev_accuracy = ensemble.evaluate(*dev)
        rows.append((step, running / since, dev_loss, dev_accuracy))
        running, since = torch.zeros_like(running), 0

        improved = dev_accuracy > best_accuracy
        best_accuracy = torch.where(improved, dev_accuracy, best_accuracy)
        best_step[improved] = step
        for name, value in ensemble.state_dict().items():
            best[name][improved] = value[improved]
        if progress:
            progress(step, settings.steps)

    ensemble.load_state_dict(best)
    steps, train_loss, dev_loss, dev_accuracy = zip(*rows, strict=True)
    return History(
        step=torch.tensor(steps),
        train_loss=torch.stack(train_loss, 1),
        dev_loss=torch.stack(dev_loss, 1),
        dev_accuracy=torch.stack(dev_accuracy, 1),
        best_step=best_step,
        best_dev_accuracy=best_accuracy,
        best=best,
    )


def clip_per_tensor(ensemble: Ensemble, max_norm: float) -> None:
    """Scale each gradient tensor of each replica down to the L2 norm `max_norm`, where above it."""
    for gradient in ensemble.gradients.values():
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
        gradient.mul_((max_norm / norm.clamp(min=1e-30)).clamp(max=1.0))


def clip_global(ensemble: Ensemble, max_norm: float) -> None:
    """Scale all gradients of each replica together, as `torch.nn.utils.clip_grad_norm_` does."""
    gradients = list(ensemble.gradients.values())
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients])
    scale = (max_norm / squares.sum(0).sqrt().clamp(min=1e-30)).clamp(max=1.0).view(-1, 1, 1)
    for gradient in gradients:
        gradient.mul_(scale)
