"""Training of one review model: the loop, evaluation, the best checkpoint by dev accuracy.

The test set is evaluated once, at that checkpoint. A test curve over the epochs, which the sources
drew and chose by, is an extra that no choice here looks at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.film import corpus as reviews
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier
from labkit.film.vocabulary import PAD_ID, UNKNOWN_ID

LOSSES = ("ce", "ce_on_softmax", "mse", "bce", "bce_on_sigmoid")
OPTIMISERS = ("adam", "adamax", "sgd")
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainSpec:
    """How a review model is trained.

    `loss`: mean cross-entropy ("ce"); the same with a softmax applied before it, a mistake
    ("ce_on_softmax"); squared error between probabilities and one-hot targets, summed over the
    classes ("mse"); binary cross-entropy on one-hot targets, from logits ("bce") or, a mistake,
    from probabilities taken for logits ("bce_on_sigmoid").
    `halve_every`: epochs after which the learning rate is halved, 0 for never; `decay` lets it fall
    along a line to zero, step by step, instead. `clip`: the L2 norm
    that all gradients together are scaled down to, 0 for no clipping. `weight_decay`: λ of an L2
    penalty. `front` pads in front, to `pad_to` words, or to the longest of a batch for 0. `carry`
    hands the states of a batch to the next, a mistake. `word_dropout`: the share of words replaced
    by the unknown word while training.
    """

    epochs: int = 5
    batch_size: int = 64
    lr: float = 1e-3
    optimiser: str = "adam"
    momentum: float = 0.0
    halve_every: int = 0
    decay: bool = False
    weight_decay: float = 0.0
    clip: float = 0.0
    loss: str = "ce"
    max_len: int = 500
    front: bool = False
    pad_to: int = 0
    carry: bool = False
    word_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in {"loss": LOSSES, "optimiser": OPTIMISERS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"TrainSpec.{name} must be one of {', '.join(choices)}; "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainSpec.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "momentum", "halve_every", "weight_decay", "clip", "word_dropout"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"TrainSpec.{name} must not be negative, got {getattr(self, name)}"
                )
        if self.word_dropout >= 1:
            raise ValueError(f"TrainSpec.word_dropout must be below 1, got {self.word_dropout}")
        if self.pad_to and self.pad_to < self.max_len:
            raise ValueError(
                f"TrainSpec.pad_to must be 0 or at least {self.max_len}, got {self.pad_to}"
            )


def loss_of(logits: Tensor, y: Tensor, kind: str) -> Tensor:
    """The mean loss of logits (B, C) and classes y (B,), a scalar; `kind` is one of `LOSSES`."""
    if kind == "ce":
        return F.cross_entropy(logits, y)
    target = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, target)
    probability = logits.softmax(1)
    if kind == "ce_on_softmax":
        return F.cross_entropy(probability, y)
    if kind == "bce_on_sigmoid":
        return F.binary_cross_entropy_with_logits(logits.sigmoid(), target)
    return (probability - target).square().sum(1).mean()


def make_optimiser(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """The optimiser over what the model trains; L2 penalties act through the gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    common = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.optimiser == "adam":
        return torch.optim.Adam(parameters, **common, fused=True)
    if spec.optimiser == "adamax":
        return torch.optim.Adamax(parameters, **common)
    return torch.optim.SGD(parameters, **common, momentum=spec.momentum)


class Trainer:
    """Trains `model` on the reviews `train` of a corpus and keeps its best dev checkpoint."""

    def __init__(
        self, model: ReviewClassifier, corpus: Corpus, spec: TrainSpec, device: torch.device
    ) -> None:
        self.model, self.corpus, self.spec, self.device = model.to(device), corpus, spec, device
        self.optimiser = make_optimiser(model, spec)
        self._states: list | None = [] if spec.carry else None
        self._start = {name: p.detach().clone() for name, p in self._inner()}

    def _inner(self) -> list[tuple[str, nn.Parameter]]:
        """The model's parameters by name, the embedding's apart."""
        named = self.model.named_parameters()
        return [(name, p) for name, p in named if not name.startswith("embedding")]

    def fit(
        self,
        train: Tensor,
        dev: Tensor,
        seed: int,
        *,
        curve: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Tensor]:
        """Train for `spec.epochs` and leave the model at its best dev accuracy.

        Returns one value an epoch: train_loss and train_accuracy (means over the epoch's batches,
        while the model changes), seconds (of training), dev_loss, dev_accuracy, with `curve` also
        curve_loss and curve_accuracy; embedding apart, gradient_norm (a batch's L2 norm before
        clipping, their mean) and moved (the distance of the parameters from their start over the
        start's length); and best_epoch, from 1.
        """
        generator = torch.Generator().manual_seed(seed)
        rows: list[dict[str, float]] = []
        best, best_epoch, best_accuracy = {}, 0, -1.0
        for epoch in range(1, self.spec.epochs + 1):
            row = self.train_epoch(train, generator, epoch, progress)
            row["dev_loss"], row["dev_accuracy"] = self.score(dev)
            if curve is not None:
                row["curve_loss"], row["curve_accuracy"] = self.score(curve)
            row["moved"] = self._moved()
            rows.append(row)
            if row["dev_accuracy"] > best_accuracy:
                best_epoch, best_accuracy = epoch, row["dev_accuracy"]
                best = {name: v.clone() for name, v in self.model.state_dict().items()}
        self.model.load_state_dict(best)
        history = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        return history | {"best_epoch": torch.tensor(best_epoch)}

    def train_epoch(
        self,
        train: Tensor,
        generator: torch.Generator,
        epoch: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Read the reviews `train` once, in an order drawn from `generator`; a row of `fit`."""
        spec, began = self.spec, time.perf_counter()
        self.model.train()
        sums = torch.zeros(4, dtype=torch.float64)  # loss, hits, reviews, gradient norms
        length = self.corpus.length[train].clamp(max=spec.max_len)
        batches = reviews.by_length(length, spec.batch_size, generator)
        if spec.carry:  # a state fits a full batch only
            batches = [batch for batch in batches if len(batch) == spec.batch_size]
        if not batches:
            raise ValueError(f"{len(train)} reviews make no full batch of {spec.batch_size}")
        for number, batch in enumerate(batches):
            self._set_rate(epoch - 1 + number / len(batches))
            loss, hits, norm = self._step(train[batch], generator)
            n = len(batch)
            sums += torch.tensor([loss * n, hits, n, norm])
            if progress and number % 20 == 0:
                progress((epoch - 1) * len(batches) + number, spec.epochs * len(batches))
        loss, hits, n, norm = sums.tolist()
        return {
            "train_loss": loss / n,
            "train_accuracy": hits / n,
            "gradient_norm": norm / len(batches),
            "seconds": time.perf_counter() - began,
        }

    def _step(self, index: Tensor, generator: torch.Generator) -> tuple[float, int, float]:
        """One step of the optimiser; the batch's loss, hits and gradient norm."""
        X, length, y = self._batch(index)
        if self.spec.word_dropout:
            drop = torch.rand(X.shape, generator=generator) < self.spec.word_dropout
            X = X.masked_fill(drop.to(X.device) & (X != PAD_ID), UNKNOWN_ID)
        logits = self._logits(X, length)
        loss = loss_of(logits, y, self.spec.loss)

        self.optimiser.zero_grad()
        loss.backward()
        norm = self._clip()
        self.optimiser.step()
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is {loss.item()}: take a smaller lr, or clip")
        return loss.item(), int((logits.argmax(1) == y).sum()), norm

    def _clip(self) -> float:
        """Scale the gradients down to `spec.clip`; the norm before, the embedding's apart."""
        gradients = [p.grad for _, p in self._inner() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip)
        return float(norm)

    def _moved(self) -> float:
        pairs = [(p.detach(), self._start[name]) for name, p in self._inner()]
        distance = sum(float((now - start).square().sum()) for now, start in pairs)
        return math.sqrt(distance / sum(float(start.square().sum()) for _, start in pairs))

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spec = self.spec
        X, length = reviews.pad(
            self.corpus, index, spec.max_len, front=spec.front, to=spec.pad_to or None
        )
        y = self.corpus.label[index]
        if self.model.spec.num_classes > 2:
            y = self.corpus.rating[index] - 1
        return X.to(self.device), length.to(self.device), y.to(self.device)

    def _logits(self, X: Tensor, length: Tensor) -> Tensor:
        logits = self.model(X, length, front=self.spec.front, states=self._states)
        if self._states:
            self._states[:] = [_detached(state) for state in self._states]
        return logits

    def _set_rate(self, epochs_done: float) -> None:
        spec, rate = self.spec, self.spec.lr
        if spec.halve_every:
            rate *= 0.5 ** (int(epochs_done) // spec.halve_every)
        if spec.decay:
            rate *= 1 - epochs_done / spec.epochs
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def class_probabilities(self, index: Tensor) -> Tensor:
        """The probability of every class for each of the reviews `index`, (n, C), on the CPU."""
        self.model.eval()
        found = torch.empty(len(index), self.model.spec.num_classes)
        length = self.corpus.length[index].clamp(max=self.spec.max_len)
        size = self.spec.batch_size if self.spec.carry else EVALUATION_BATCH
        states, self._states = self._states, [] if self.spec.carry else None
        for batch in reviews.in_order(length, size):
            if self._states and len(batch) < size:
                self._states = []  # the last batch is smaller, its states start anew
            X, lengths, _ = self._batch(index[batch])
            found[batch] = self._logits(X, lengths).softmax(1).cpu()
        self._states = states
        return found

    def probabilities(self, index: Tensor) -> Tensor:
        """The probability of "positive" (a rating from 6 on) for each of some reviews, (n,)."""
        classes = self.class_probabilities(index)
        return classes[:, classes.shape[1] // 2 :].sum(1)

    def score(self, index: Tensor) -> tuple[float, float]:
        """Mean cross-entropy, whatever the training loss is, and accuracy on some reviews."""
        p = self.probabilities(index)
        y = self.corpus.label[index]
        loss = F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), y.float())
        return float(loss), accuracy(p, y)


def accuracy(probability: Tensor, y: Tensor) -> float:
    """The share of reviews on the right side of one half; a tie counts as positive."""
    return float(((probability >= 0.5) == y.bool()).double().mean())


def _detached(state: Any) -> Any:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
