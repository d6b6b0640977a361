"""Reviews as word pieces, trainings of classifiers on them, and the vectors of an encoder.

Of chapter 04 only the reviews are used: all rivals of this chapter read the same word pieces.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.bert import model as bert
from labkit.bert.model import Classifier, ClassifierSpec, Precision
from labkit.film import corpus as reviews
from labkit.film.corpus import Corpus
from labkit.lab import code, store
from labkit.lab.store import Arrays, Progress, Seeds, Specification, specification

BATCH = {"cpu": 64, "cuda": 256}  # reviews that are answered at once
KEPT = "parameters."  # how the names of kept parameters begin among a training's arrays


@specification
class Reading:
    """Which reviews a network reads, and how much of them.

    `digest` is that of `in_pieces`. Of a review that is longer than `max_len` pieces, [CLS] and
    [SEP] included, the "head", its beginning, is read, or the "tail", its end. `num_train` and
    `num_dev` are numbers of reviews, half of either label; 0 means all.
    """

    corpus: Literal["imdb", "generated"]
    model: str
    digest: str
    max_len: Annotated[int, Field(ge=3)]
    part: Literal["head", "tail"] = "head"
    num_train: NonNegativeInt = 0
    num_dev: NonNegativeInt = 0
    test: Literal["held_out", "all"] = "held_out"

    def encode(self) -> tuple[Corpus, Tensor]:
        """The reviews, their words being word pieces, and how long each is without a limit (N,).

        ValueError when reviews, model or length are not what was meant.
        """
        pretrained = bert.find(self.model)
        limit = pretrained.config["max_position_embeddings"]
        if self.max_len > limit:
            raise ValueError(f"max_len is {self.max_len}, {self.model} reads {limit} pieces")
        whole = in_pieces(self.corpus, pretrained)
        if whole.digest != self.digest:
            raise ValueError(f"{self.corpus} or {self.model} has changed: run the chapter anew")
        rows = [self.cut(pieces) for pieces in whole.tokens.split(whole.length.tolist())]
        length = torch.tensor([0, *map(len, rows)])
        return replace(whole, tokens=torch.cat(rows), offsets=length.cumsum(0)), whole.length

    def cut(self, pieces: Tensor) -> Tensor:
        """[CLS], as much of a review between it and [SEP] as there is room for, [SEP]."""
        if len(pieces) <= self.max_len:
            return pieces
        if self.part == "head":
            return torch.cat([pieces[: self.max_len - 1], pieces[-1:]])
        return torch.cat([pieces[:1], pieces[-(self.max_len - 1) :]])

    def draw(self, corpus: Corpus, seed: int) -> dict[str, Tensor]:
        """Indices of training reviews, drawn by the seed, of dev, the same for all, and of test."""
        split = corpus.split()
        return {
            "train": draw(corpus, split["train"], self.num_train, seed),
            "dev": draw(corpus, split["dev"], self.num_dev, 0),
            "test": split["test"] if self.test == "all" else held_out(corpus),
        }


def draw(corpus: Corpus, index: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the reviews `index`, half of either label, drawn by the seed; all for 0."""
    if not count:
        return index
    generator, parts = torch.Generator().manual_seed(seed), []
    for label in (0, 1):
        same = index[corpus.label[index] == label]
        parts.append(same[torch.randperm(len(same), generator=generator)[: count // 2]])
    return torch.cat(parts).sort().values


def held_out(corpus: Corpus) -> Tensor:
    """Indices of the sources' last test, test/neg[5000:6000] and test/pos[2500:3500], by number.

    A smaller corpus has smaller slices.
    """
    parts = []
    for label, first, last in ((0, 0.40, 0.48), (1, 0.20, 0.28)):
        index = (corpus.is_test & (corpus.label == label)).nonzero().flatten()
        parts.append(index[round(first * len(index)) : round(last * len(index))])
    return torch.cat(parts).sort().values


def in_pieces(name: str, pretrained: bert.Pretrained) -> Corpus:
    """A corpus in the word pieces of a model, uncut, with [CLS] and [SEP], and a digest of both."""
    corpus, tokenizer = reviews.load(name), bert.load_tokenizer(pretrained)
    rules = tokenizer.backend_tokenizer
    rules.no_truncation()  # cutting and padding are ours
    rules.no_padding()
    facts = {"texts": corpus.digest, "tokenizer": code.sha256(rules.to_str().encode())}

    def make() -> Arrays:
        texts, rows = [review.text.replace("<br />", " ") for review in reviews.read(name)], []
        for start in range(0, len(texts), 1_000):  # all at once would take gigabytes
            rows += tokenizer(texts[start : start + 1_000], verbose=False)["input_ids"]
        pieces = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
        return {"tokens": pieces, "offsets": np.cumsum([0, *map(len, rows)])}

    arrays = {n: torch.from_numpy(a) for n, a in store.kept(__name__, facts, make).items()}
    digest = code.sha256(code.canonical({**facts, "weights": pretrained.weights_sha256}))
    return replace(corpus, **arrays, words=tuple(bert.words_of(tokenizer)), digest=digest)


def pad(corpus: Corpus, index: Tensor, to: int = 0) -> tuple[Tensor, Tensor]:
    """Some reviews as X (B, T), and where they are no padding, (B, T) bool; T is `to`, if given."""
    T = to or int(corpus.length[index].max())
    X, length = reviews.pad(corpus, index, T, to=T)
    mask = torch.arange(T, device=X.device) < length.unsqueeze(1)  # (B, T)
    return X.where(mask, corpus.words.index("[PAD]")), mask


@specification
class FineTuning:
    """How a classifier is trained, by AdamW.

    `lr` is the encoder's learning rate, `head_lr` the head's. Over the first `warmup` of all steps
    both rise from zero; then they fall along a line to zero ("linear"), stay ("constant"), or are
    halved after each third of the steps ("halve"). `weight_decay` acts on matrices only. `clip`:
    the L2 norm that all gradients are scaled down to, 0 for none. `precision` is that of matrix
    products. With `choose` dev chooses the epoch; else the last one counts, and alone is scored.
    """

    epochs: PositiveInt
    lr: PositiveFloat
    head_lr: PositiveFloat
    batch_size: PositiveInt = 16
    schedule: Literal["linear", "constant", "halve"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: NonNegativeFloat = 0.01
    clip: NonNegativeFloat = 1.0
    precision: Precision = "float32"
    choose: bool = True

    def rate(self, share: float) -> float:
        """What the next step takes of the learning rates, after this share of all steps."""
        if share < self.warmup:
            return share / self.warmup
        if self.schedule == "linear":
            return (1 - share) / (1 - self.warmup)
        return 0.5 ** int(3 * share) if self.schedule == "halve" else 1.0


class Trainer:
    """Trains a classifier, and answers with it. The reviews lie on the device; no step waits."""

    def __init__(self, model: Classifier, corpus: Corpus, task: BertTraining) -> None:
        self.model, self.spec = model.to(task.device), task.training
        self.device, self.corpus = torch.device(task.device), corpus
        self.on_device = corpus.to(self.device)
        self.pad_to = task.reading.max_len if task.model.pooling == "last_position" else 0
        groups = []
        for part, lr in ((model.encoder, self.spec.lr), (model.head, self.spec.head_lr)):
            for decay, is_matrix in ((self.spec.weight_decay, True), (0.0, False)):
                chosen = [p for p in part.parameters() if (p.ndim > 1) == is_matrix]
                groups.append({"params": chosen, "initial_lr": lr, "weight_decay": decay})
        self.optimiser = torch.optim.AdamW(groups, fused=True)

    def logits(self, index: Tensor) -> Tensor:
        """Logits (B, C) of the reviews `index` (B,), padded to the longest of them."""
        to = self.pad_to or int(self.corpus.length[index].max())
        X, mask = pad(self.on_device, index.to(self.device, non_blocking=True), to)  # (B, T)
        with bert.mixed(self.device.type, self.spec.precision):
            return self.model(X, mask).float()

    def train_epoch(
        self, train: Tensor, epoch: int, generator: torch.Generator, progress: Progress
    ) -> dict[str, float]:
        """Read the reviews `train` once; loss and accuracy are means while the model changes."""
        began, spec, sums = time.perf_counter(), self.spec, 0
        batches = reviews.by_length(self.corpus.length[train], spec.batch_size, generator)
        self.model.train()
        for number, batch in enumerate(batches, start=(epoch - 1) * len(batches)):
            for group in self.optimiser.param_groups:
                share = number / (spec.epochs * len(batches))
                group["lr"] = spec.rate(share) * group["initial_lr"]
            logits = self.logits(train[batch])  # (B, C)
            y = self.corpus.label[train[batch]].to(self.device)
            loss = F.cross_entropy(logits, y)
            self.optimiser.zero_grad()
            loss.backward()
            if spec.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), spec.clip)
            self.optimiser.step()
            sums += torch.stack([len(y) * loss.detach(), (logits.argmax(1) == y).sum()]).double()
            if number % 20 == 0:
                progress(number, spec.epochs * len(batches))
        loss, accuracy = (sums / len(train)).tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}: take a smaller lr, or clip")
        seconds = time.perf_counter() - began
        return {"train_loss": loss, "train_accuracy": accuracy, "seconds": seconds}

    def fit(
        self, train: Tensor, dev: Tensor, generator: torch.Generator, progress: Progress
    ) -> Arrays:
        """Train, and leave the model at its best dev accuracy, or as the last epoch left it.

        Returns what `train_epoch` does, "dev_loss" and "dev_accuracy", each an array over the
        epochs, and "best_epoch", from 1.
        """
        rows, best = [], (-1.0, self.spec.epochs, self.model.state_dict())
        for epoch in range(1, self.spec.epochs + 1):
            rows.append(self.train_epoch(train, epoch, generator, progress))
            if self.spec.choose or epoch == self.spec.epochs:
                p, y = self.probabilities(dev), self.corpus.label[dev].float()
                loss, accuracy = F.binary_cross_entropy(p, y), ((p >= 0.5) == y).double().mean()
                rows[-1] |= {"dev_loss": float(loss), "dev_accuracy": float(accuracy)}
                if accuracy > best[0]:
                    state = {name: v.clone() for name, v in self.model.state_dict().items()}
                    best = float(accuracy), epoch, state
        self.model.load_state_dict(best[2])
        arrays = {name: np.array([r[name] for r in rows if name in r]) for name in rows[-1]}
        return arrays | {"best_epoch": np.array(best[1])}

    @torch.no_grad()
    def probabilities(self, index: Tensor) -> Tensor:
        """P(positive) of the reviews `index`, (n,), on the CPU."""
        self.model.eval()
        order = self.corpus.length[index].argsort(stable=True)
        batches = order.split(BATCH[self.device.type])
        p = torch.cat([self.logits(index[batch]).softmax(1)[:, 1] for batch in batches])
        return p.cpu()[order.argsort()]


@specification
class BertTraining(Specification):
    """One training of a classifier, whose seed draws reviews, starts the head, orders and drops.

    `keep` returns the parameters.
    """

    reading: Reading
    model: ClassifierSpec
    training: FineTuning
    seed: NonNegativeInt
    keep: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    work = "encoder"

    @property
    def title(self) -> str:
        return f"{self.model.encoder}, {self.reading.num_train or 'all'} reviews, seed {self.seed}"

    @property
    def cost(self) -> float:
        """About how long it takes, in no unit."""
        epochs = self.training.epochs * (0.1 if self.model.encoder == "bilstm" else 1)
        return epochs * self.reading.max_len * (self.reading.num_train or 20_000)

    def make_model(self, arrays: Arrays | None = None) -> Classifier:
        """The model as its seed starts it, or with the parameters that a training has kept."""
        encoder = bert.load_encoder(bert.find(self.reading.model))
        torch.manual_seed(self.seed)
        model = Classifier(encoder, self.model)
        if arrays is not None:
            kept = {n.removeprefix(KEPT): v for n, v in arrays.items() if n.startswith(KEPT)}
            model.load_state_dict({name: torch.as_tensor(value) for name, value in kept.items()})
        return model

    def train(self, progress: Progress) -> Arrays:
        """What `Trainer.fit` returns; "test_probability" (n,) of "positive" and "test_seconds";
        "num_parameters"; and to `keep` them "parameters.<name>"."""
        corpus, _ = self.reading.encode()
        index, generator = self.reading.draw(corpus, self.seed), torch.Generator()
        trainer = Trainer(self.make_model(), corpus, self)
        generator.manual_seed(self.seed)
        arrays = trainer.fit(index["train"], index["dev"], generator, progress)
        began = time.perf_counter()
        arrays["test_probability"] = trainer.probabilities(index["test"]).numpy()
        arrays["test_seconds"] = np.array(time.perf_counter() - began)
        arrays["num_parameters"] = np.array(sum(p.numel() for p in trainer.model.parameters()))
        state = trainer.model.state_dict() if self.keep else {}
        return arrays | {KEPT + name: value.cpu().numpy() for name, value in state.items()}


@specification
class FrozenVectors(Specification):
    """The encoder's vectors, as it came, of all reviews that trainings with these seeds read.

    They are padded to `reading.max_len`, as the last position needs it.
    """

    reading: Reading
    seeds: Seeds
    precision: Precision
    device: Literal["cpu", "cuda"] = "cpu"
    work = "encoder"

    def train(self, progress: Progress) -> Arrays:
        """`index` (n,), the reviews, ascending; for each of `POOLINGS` their vectors (n, H);
        `seconds`."""
        began, (corpus, _), vectors = time.perf_counter(), self.reading.encode(), []
        draws = [self.reading.draw(corpus, seed) for seed in self.seeds]
        index = torch.cat([part for parts in draws for part in parts.values()]).unique()
        encoder = bert.load_encoder(bert.find(self.reading.model)).to(self.device)
        batches = index.split(BATCH[self.device])
        for number, batch in enumerate(batches):
            X, mask = (t.to(self.device) for t in pad(corpus, batch, self.reading.max_len))
            with torch.no_grad(), bert.mixed(self.device, self.precision):
                hidden = encoder(X, mask).last_hidden_state  # (B, T, H)
            vectors.append([bert.pool(hidden, mask, name).float() for name in bert.POOLINGS])
            progress(number, len(batches))
        pooled = [torch.cat(rows).cpu().numpy() for rows in zip(*vectors, strict=True)]
        arrays = {"index": index.numpy(), "seconds": np.array(time.perf_counter() - began)}
        return arrays | dict(zip(bert.POOLINGS, pooled, strict=True))
