"""Reviews as word pieces, fine-tuning on them, and the vectors of the encoder as it came."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from labkit.bert import model as bert
from labkit.bert.model import BertClassifier, ClassifierSpec, Precision
from labkit.film import corpus as reviews
from labkit.film import training as film
from labkit.film.corpus import Corpus
from labkit.lab import code, store
from labkit.lab.store import Arrays, Progress, Specification, specification

HEAD_SHARE = 0.25  # of "head_tail", as the 128 first of 510 pieces in Sun et al. (2019)


@specification
class Reading:
    """Which reviews a network reads, and how much of them.

    `digest` is that of `in_pieces`. Of a review that is longer than `max_len` pieces, [CLS] and
    [SEP] included, the "head" is kept, the "tail", or "head_tail", a quarter from its head and the
    rest from its tail. `num_train` and `num_dev` are those of chapter 04's trainings.
    """

    corpus: Literal["imdb", "generated"]
    model: str
    digest: str
    max_len: Annotated[int, Field(ge=3)]
    part: Literal["head", "tail", "head_tail"] = "head"
    num_train: NonNegativeInt = 0
    num_dev: NonNegativeInt = 0
    test: Literal["held_out", "all", "none"] = "held_out"

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
        uncut = whole.tokens.split(whole.length.tolist())
        rows = [self.cut(pieces) for pieces in uncut]
        length = torch.tensor([0, *map(len, rows)])
        return replace(whole, tokens=torch.cat(rows), offsets=length.cumsum(0)), whole.length

    def cut(self, pieces: Tensor) -> Tensor:
        """[CLS], as much of a review between it and [SEP] as there is room for, [SEP]."""
        if len(pieces) <= self.max_len:
            return pieces
        room = self.max_len - 2
        head = {"head": room, "tail": 0, "head_tail": round(HEAD_SHARE * room)}[self.part]
        tail = len(pieces) - 1 - (room - head)
        return torch.cat([pieces[: 1 + head], pieces[tail:]])

    def draw(self, corpus: Corpus, seed: int) -> dict[str, Tensor]:
        """Indices of the train, dev and test reviews, the same that chapter 04's networks get."""
        split = corpus.split()
        test = film.held_out(corpus) if self.test == "held_out" else split["test"]
        return {
            "train": film.draw(corpus, split["train"], self.num_train, seed),
            "dev": film.draw(corpus, split["dev"], self.num_dev, 0),
            "test": test[:0] if self.test == "none" else test,
        }


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
    """How a BERT classifier is trained, by AdamW.

    `lr` is the encoder's learning rate, `head_lr` the head's. Over the first `warmup` of all steps
    both rise from zero; then they fall along a line to zero ("linear"), stay ("constant"), or are
    halved every five epochs ("halve"). `weight_decay` acts on matrices only. `clip`: the L2 norm
    that all gradients are scaled down to, 0 for none. `precision` is that of matrix products.
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
    loss = "ce"

    def rate(self, epochs_done: float) -> float:
        """The share of the learning rates that the next step takes."""
        share = epochs_done / self.epochs
        if share < self.warmup:
            return share / self.warmup
        if self.schedule == "linear":
            return (1 - share) / (1 - self.warmup)
        return 0.5 ** (epochs_done // 5) if self.schedule == "halve" else 1.0


class Trainer(film.Trainer):
    """Trains a BERT classifier by chapter 04's loop, with AdamW and two learning rates."""

    evaluation_batch: ClassVar = {"cpu": 64, "cuda": 256}

    def __init__(self, model: BertClassifier, corpus: Corpus, task: BertTraining) -> None:
        self.model, self.device = model.to(task.device), torch.device(task.device)
        self.corpus, self.on_device = corpus, corpus.to(self.device)
        self.length, self.inner = corpus.length, [*model.parameters()]
        self._start = [p.detach().clone() for p in self.inner]
        self.pad_to = task.reading.max_len if task.model.pooling == "last_position" else 0
        self.spec, groups = task.training, []
        for part, lr in ((model.encoder, self.spec.lr), (model.head, self.spec.head_lr)):
            for decay, is_matrix in ((self.spec.weight_decay, True), (0.0, False)):
                chosen = [p for p in part.parameters() if (p.ndim > 1) == is_matrix]
                groups.append({"params": chosen, "initial_lr": lr, "weight_decay": decay})
        self.optimiser = torch.optim.AdamW(groups, fused=True)

    def _set_rate(self, epochs_done: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * self.spec.rate(epochs_done)

    def _forward(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        to = self.pad_to or int(self.length[index].max())
        index = index.to(self.device, non_blocking=True)
        X, mask = pad(self.on_device, index, to)  # (B, T)
        with bert.mixed(self.device.type, self.spec.precision):
            logits = self.model(X, mask).float()
        return logits, self.on_device.label[index]


@specification
class BertTraining(Specification):
    """One training of a classifier, whose seed draws reviews, starts the head, orders and drops.

    `curve` scores the held-out reviews after every epoch, for show; `keep` returns the parameters.
    """

    reading: Reading
    model: ClassifierSpec
    training: FineTuning
    seed: NonNegativeInt
    curve: bool = False
    keep: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    work = "encoder"

    @property
    def title(self) -> str:
        start = self.reading.model if self.model.pretrained else "random start"
        return f"{start}, {self.reading.num_train or 'all'} reviews, seed {self.seed}"

    @property
    def cost(self) -> int:
        """About how long it takes, in no unit."""
        return self.reading.max_len * self.training.epochs * (self.reading.num_train or 20_000)

    def make_model(self, arrays: Arrays | None = None) -> BertClassifier:
        """The model as its seed starts it, or with the parameters that a training has kept."""
        encoder = bert.load_encoder(bert.find(self.reading.model))
        torch.manual_seed(self.seed)
        return film.restore(BertClassifier(encoder, self.model), arrays)

    def train(self, progress: Progress | None = None) -> Arrays:
        """What `film.Trainer.carry_out` returns."""
        corpus, _ = self.reading.encode()
        index = self.reading.draw(corpus, self.seed)
        if self.curve:
            index["curve"] = film.held_out(corpus)
        trainer = Trainer(self.make_model(), corpus, self)
        return trainer.carry_out(index, self.seed, self.keep, progress)


def frozen_vectors(reading: Reading, seeds: list[int], device: str, precision: str) -> Arrays:
    """The encoder's vectors, as it came, of all reviews that trainings with these seeds read.

    Returns `index` (n,), the reviews, ascending; for each of `POOLINGS` their vectors (n, H), all
    padded to `max_len`; and `seconds`. They are computed once, and kept.
    """

    def make() -> Arrays:
        began, (corpus, _) = time.perf_counter(), reading.encode()
        draws = [reading.draw(corpus, seed) for seed in seeds]
        index = torch.cat([part for parts in draws for part in parts.values()]).unique()
        encoder, vectors = bert.load_encoder(bert.find(reading.model)).to(device), []
        for batch in index.split(Trainer.evaluation_batch[device]):
            X, mask = (t.to(device) for t in pad(corpus, batch, reading.max_len))
            with torch.no_grad(), bert.mixed(device, precision):
                hidden = encoder(X, attention_mask=mask).last_hidden_state  # (B, T, H)
            vectors.append([bert.pool(hidden, mask, name).float() for name in bert.POOLINGS])
        pooled = [torch.cat(rows).cpu().numpy() for rows in zip(*vectors, strict=True)]
        arrays = {"index": index.numpy(), "seconds": np.array(time.perf_counter() - began)}
        return arrays | dict(zip(bert.POOLINGS, pooled, strict=True))

    facts = {"seeds": seeds, "device": device, "precision": precision, "torch": torch.__version__}
    return store.kept(__name__, facts | {"reading": asdict(reading)}, make)
