"""Training of review models: the loop, the best checkpoint by dev accuracy, the specification.

The test set is evaluated once, there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.film import corpus as reviews
from labkit.film.corpus import PAD_ID, UNKNOWN_ID, Corpus, pretrained
from labkit.film.model import ReviewClassifier, ReviewSpec, Share
from labkit.lab.store import Arrays, Progress, Specification, specification

KEPT = "parameters."  # how the names of kept parameters begin among a training's arrays


@specification
class TrainSpec:
    """How a review model is trained; `loss_of` says what the losses are."""

    epochs: PositiveInt = 5
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    optimiser: Literal["adam", "adamax", "sgd"] = "adam"
    momentum: NonNegativeFloat = 0.0  # of SGD
    halve_every: NonNegativeInt = 0  # epochs after which the learning rate is halved; 0: never
    decay: bool = False  # the learning rate falls along a line to zero, step by step
    weight_decay: NonNegativeFloat = 0.0  # λ of an L2 penalty
    clip: NonNegativeFloat = 0.0  # the L2 norm that all gradients are scaled down to; 0: no limit
    loss: Literal["ce", "ce_on_softmax", "mse", "bce", "bce_on_sigmoid"] = "ce"
    max_len: PositiveInt = 500  # words of a review that are read
    padding: Literal["unread", "front", "behind"] = "unread"  # the last two are read like words
    pad_to: NonNegativeInt = 0  # words; 0: as many as the longest review of a batch has
    carry: bool = False  # a mistake: a batch starts from the states that the last one ended in
    word_dropout: Share = 0.0  # of the words that are made unknown while training


def loss_of(logits: Tensor, y: Tensor, kind: str) -> Tensor:
    """The mean loss of logits (B, C) and classes y (B,), a scalar."""
    if kind == "ce":
        return F.cross_entropy(logits, y)
    if kind == "ce_on_softmax":  # a mistake: probabilities taken for logits
        return F.cross_entropy(logits.softmax(1), y)
    target = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    if kind == "mse":  # squared error of the probabilities, summed over the classes
        return (logits.softmax(1) - target).square().sum(1).mean()
    if kind == "bce_on_sigmoid":  # the same mistake
        logits = logits.sigmoid()
    return F.binary_cross_entropy_with_logits(logits, target)


def make_optimiser(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """The optimiser over what the model trains; L2 penalties act through the gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.optimiser == "adam":
        return torch.optim.Adam(parameters, fused=True, **options)
    if spec.optimiser == "adamax":
        return torch.optim.Adamax(parameters, **options)
    return torch.optim.SGD(parameters, momentum=spec.momentum, **options)


def drop_words(X: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """X (B, T) with a share of its words, drawn at random, unknown; padding stays padding."""
    drop = (torch.rand(X.shape, generator=generator) < share).to(X.device, non_blocking=True)
    return X.masked_fill(drop & (X != PAD_ID), UNKNOWN_ID)


class Trainer:
    """Trains `model` on reviews of a corpus and keeps its best dev checkpoint.

    The corpus lies on the device. No step waits for that: lengths are known on the CPU, too, and
    sums are fetched once an epoch.
    """

    evaluation_batch: ClassVar = {"cpu": 256, "cuda": 1_024}  # reviews
    _states: list | None = None  # those that the last batch ended in, where they are carried

    def __init__(
        self, model: ReviewClassifier, corpus: Corpus, spec: TrainSpec, device: torch.device
    ) -> None:
        self.model, self.spec, self.device = model.to(device), spec, device
        self.corpus, self.on_device = corpus, corpus.to(device)
        self.length = corpus.length.clamp(max=spec.max_len)
        self.optimiser = make_optimiser(model, spec)
        self._states = [] if spec.carry else None
        if spec.carry or model.spec.places:  # what they hold is for batches of that size
            self.evaluation_batch = {device.type: spec.batch_size}
        named = model.named_parameters()
        self.inner = [p for name, p in named if not name.startswith("embedding")]
        self._start = [p.detach().clone() for p in self.inner]

    def carry_out(
        self, index: Mapping[str, Tensor], seed: int, keep: bool, progress: Progress | None
    ) -> Arrays:
        """Train, choose the epoch by dev accuracy, and test that checkpoint once.

        Returns what `fit` does; of the reviews index["test"] `test_probability` (n,) of "positive"
        and for ratings `test_classes` (n, C); `test_seconds`; `num_parameters`; to `keep` them
        "parameters.<name>".
        """
        arrays = self.fit(index, seed, progress)
        began = time.perf_counter()
        classes = self.class_probabilities(index["test"])  # (n, C)
        arrays["test_seconds"] = torch.tensor(time.perf_counter() - began)
        arrays["test_probability"] = positive(classes)
        if classes.shape[1] > 2:
            arrays["test_classes"] = classes
        arrays["num_parameters"] = torch.tensor(sum(p.numel() for p in self.inner))
        if keep:
            arrays |= {KEPT + name: value for name, value in self.model.state_dict().items()}
        return {name: value.cpu().numpy() for name, value in arrays.items()}

    def fit(
        self, index: Mapping[str, Tensor], seed: int, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """Train for `spec.epochs` and leave the model at its best dev accuracy.

        `index` holds the reviews "train" and "dev". Returns what `train_epoch` does, one value an
        epoch; likewise `dev_loss` and `dev_accuracy`; and `best_epoch`, from 1.
        """
        generator = torch.Generator().manual_seed(seed)
        rows: list[dict[str, float]] = []
        best, best_epoch, best_accuracy = {}, 0, -1.0
        for epoch in range(1, self.spec.epochs + 1):
            row = self.train_epoch(index["train"], generator, epoch, progress)
            row["dev_loss"], row["dev_accuracy"] = self.score(index["dev"])
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
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Read the reviews `train` once, in an order drawn from `generator`.

        Returns train_loss and train_accuracy, means while the model changes; seconds; without the
        embedding gradient_norm (mean, L2, before clipping) and moved (how far the parameters are
        from their start, over its length). ValueError for a loss of NaN.
        """
        spec, began = self.spec, time.perf_counter()
        self.model.train()
        batches = reviews.by_length(self.length[train], spec.batch_size, generator)
        if self._states is not None:  # a state fits a full batch only
            batches = [batch for batch in batches if len(batch) == spec.batch_size]
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # of what `_step` returns
        for number, batch in enumerate(batches):
            self._set_rate(epoch - 1 + number / len(batches))
            sums += self._step(train[batch], generator)
            if progress and number % 20 == 0:
                progress((epoch - 1) * len(batches) + number, spec.epochs * len(batches))
        loss, hits, norm = sums.tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}: take a smaller lr, or clip")
        n = sum(map(len, batches))
        return {
            "train_loss": loss / n,
            "train_accuracy": hits / n,
            "gradient_norm": norm / len(batches),
            "moved": self._moved(),
            "seconds": time.perf_counter() - began,
        }

    def _step(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """One step of the optimiser; the batch's summed loss, its hits and gradient norm, (3,)."""
        logits, y = self._forward(index, generator)
        loss = loss_of(logits, y, self.spec.loss)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.inner if p.grad is not None])
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip)
        self.optimiser.step()
        return torch.stack([len(y) * loss.detach(), (logits.argmax(1) == y).sum(), norm])

    def _forward(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and classes (B,) of reviews; with a generator some words are dropped."""
        spec, to = self.spec, self.spec.pad_to or int(self.length[index].max())
        index = index.to(self.device, non_blocking=True)
        front = spec.padding == "front"
        X, length = reviews.pad(self.on_device, index, spec.max_len, front=front, to=to)
        if spec.padding != "unread":
            length = torch.full_like(length, to)
        if generator and spec.word_dropout:
            X = drop_words(X, spec.word_dropout, generator)
        logits = self.model(X, length, self._states)
        if self._states:
            self._states[:] = [_detached(state) for state in self._states]
        ratings = self.model.spec.num_classes > 2
        y = self.on_device.rating[index] - 1 if ratings else self.on_device.label[index]
        return logits, y

    @torch.no_grad()
    def _moved(self) -> float:
        pairs = zip(self.inner, self._start, strict=True)
        distance = sum(float((p - start).square().sum()) for p, start in pairs)
        return math.sqrt(distance / sum(float(start.square().sum()) for start in self._start))

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
        states, carry = self._states, self._states is not None
        size = self.evaluation_batch[self.device.type]
        order, classes = self.length[index].argsort(stable=True), []
        for number, batch in enumerate(order.split(size)):
            if carry and (number == 0 or len(batch) < size):  # a smaller batch starts anew, too
                self._states = []
            classes.append(self._forward(index[batch])[0].softmax(1))
        self._states = states
        return torch.cat(classes).cpu()[order.argsort()]

    def probabilities(self, index: Tensor) -> Tensor:
        """The probability of "positive" for each of the reviews `index`, (n,)."""
        return positive(self.class_probabilities(index))

    def score(self, index: Tensor) -> tuple[float, float]:
        """Mean cross-entropy, whatever the training loss is, and accuracy on some reviews."""
        p = self.probabilities(index)
        y = self.corpus.label[index]
        loss = F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), y.float())
        return float(loss), accuracy(p, y)


def accuracy(probability: Tensor, y: Tensor) -> float:
    """The share of reviews on the right side of one half; a tie counts as positive."""
    return float(((probability >= 0.5) == y.bool()).double().mean())


def restore(model: nn.Module, arrays: Arrays | None) -> Any:
    """The model with the parameters that a training has kept, if there are any."""
    if arrays is not None:
        kept = {n.removeprefix(KEPT): v for n, v in arrays.items() if n.startswith(KEPT)}
        model.load_state_dict({name: torch.as_tensor(value) for name, value in kept.items()})
    return model


def positive(classes: Tensor) -> Tensor:
    """P(positive) (n,) from probabilities (n, C): the upper half of the classes or ratings."""
    return classes[:, classes.shape[1] // 2 :].sum(1)


def _detached(state: Any) -> Any:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


# the reviews of a training, and the training as a task


def held_out(corpus: Corpus) -> Tensor:
    """Indices of the small study's test reviews, test/neg[5000:6000] and test/pos[2500:3500].

    The source does not say in which order; here it is by number. A smaller corpus has smaller ones.
    """
    parts = []
    for label, first, last in ((0, 0.40, 0.48), (1, 0.20, 0.28)):
        index = (corpus.is_test & (corpus.label == label)).nonzero().flatten()
        parts.append(index[round(first * len(index)) : round(last * len(index))])
    return torch.cat(parts).sort().values


def draw(corpus: Corpus, index: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the reviews `index`, half of either label, drawn by the seed; all for 0."""
    if not count:
        return index
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for label in (0, 1):
        same = index[corpus.label[index] == label]
        if count % 2 or count // 2 > len(same):
            raise ValueError(
                f"{count} reviews cannot be half of either label: {len(same)} have label {label}"
            )
        parts.append(same[torch.randperm(len(same), generator=generator)[: count // 2]])
    return torch.cat(parts).sort().values


@specification
class FilmTraining(Specification):
    """One training of a review model, on the corpus with that name and digest."""

    corpus: Literal["imdb", "generated"]
    digest: str
    vocab_size: PositiveInt
    seed: NonNegativeInt
    model: ReviewSpec = ReviewSpec()
    training: TrainSpec = TrainSpec()
    num_train: NonNegativeInt = 0  # reviews drawn by the seed, half of either label; 0: all
    num_dev: NonNegativeInt = 0  # likewise, the same for every seed
    test: Literal["all", "held_out"] = "all"  # the test reviews that are answered
    keep: bool = False  # whether to return the parameters
    glove_words: NonNegativeInt = 0  # lines of GloVe to take pretrained vectors from; 0: the lab's
    glove: str = reviews.GLOVE.sha256
    device: Literal["cpu", "cuda"] = "cpu"
    work = "reviews"

    @property
    def title(self) -> str:
        return f"{self.model.cell}/{self.model.pooling}, seed {self.seed}"

    @property
    def cost(self) -> float:
        """About how long it takes, in no unit."""
        units = self.model.hidden_size * self.model.num_layers * (1 + self.model.bidirectional)
        cell = {"rnn": 0.5, "gru": 1.3, "none": 0.1}.get(self.model.cell, 1.0)
        cell *= 20 if self.model.places else 1
        steps = self.training.pad_to or 230  # the mean length of a real review
        return units * cell * steps * self.training.epochs * (self.num_train or 20_000)

    def make_model(self, corpus: Corpus, arrays: Arrays | None = None) -> ReviewClassifier:
        """The model as its seed starts it, or with the parameters that a training has kept."""
        learned, size = self.model.vectors == "learned", self.model.embedding_size
        table = None if learned else pretrained(corpus, self.glove_words, size)
        torch.manual_seed(self.seed)
        return restore(ReviewClassifier(self.model, len(corpus.words), table), arrays)

    def train(self, progress: Progress | None = None) -> Arrays:
        """What `Trainer.carry_out` returns; `num_parameters` leaves the embedding out."""
        corpus = reviews.load(self.corpus, self.vocab_size)
        if corpus.digest != self.digest:
            raise ValueError(f"the reviews of {self.corpus!r} are not those that were asked for")
        index = corpus.split()
        index["train"] = draw(corpus, index["train"], self.num_train, self.seed)
        index["dev"] = draw(corpus, index["dev"], self.num_dev, 0)
        if self.test == "held_out":
            index["test"] = held_out(corpus)
        device = torch.device(self.device)
        trainer = Trainer(self.make_model(corpus), corpus, self.training, device)
        return trainer.carry_out(index, self.seed, self.keep, progress)
