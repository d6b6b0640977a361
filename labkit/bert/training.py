"""Reviews as word pieces, trainings of classifiers on them, and the vectors of an encoder."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from labkit.bert import model as bert
from labkit.bert.model import Classifier, ClassifierSpec, Precision
from labkit.film import corpus as reviews
from labkit.film import training as film
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier, ReviewSpec, Share
from labkit.lab import code, store
from labkit.lab.store import Arrays, Progress, Seeds, Specification, specification


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
            "train": film.draw(corpus, split["train"], self.num_train, seed),
            "dev": film.draw(corpus, split["dev"], self.num_dev, 0),
            "test": split["test"] if self.test == "all" else film.held_out(corpus),
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
    warmup: Share = 0.1
    weight_decay: NonNegativeFloat = 0.01
    clip: NonNegativeFloat = 1.0
    precision: Precision = "float32"
    pad_to: NonNegativeInt = 0  # pieces; 0: as many as the longest review of a batch has
    choose: bool = True
    loss = "ce"

    def rate(self, share: float) -> float:
        """What the next step takes of the learning rates, after this share of all steps."""
        if share < self.warmup:
            return share / self.warmup
        if self.schedule == "linear":
            return (1 - share) / (1 - self.warmup)
        return 0.5 ** int(3 * share) if self.schedule == "halve" else 1.0


class Trainer(film.Trainer):
    """Trains a BERT classifier by chapter 04's loop, with AdamW and two learning rates."""

    evaluation_batch: ClassVar = {"cpu": 64, "cuda": 256}
    epochs_left = 0  # after the one that runs

    def __init__(
        self, model: Classifier, corpus: Corpus, spec: FineTuning, device: torch.device
    ) -> None:
        self.model, self.spec, self.device = model.to(device), spec, device
        self.corpus, self.on_device = corpus, corpus.to(device)
        self.length, self.inner = corpus.length, [*model.parameters()]
        self._start = [p.detach().clone() for p in self.inner]
        groups = []
        for part, lr in ((model.encoder, spec.lr), (model.head, spec.head_lr)):
            for decay, is_matrix in ((spec.weight_decay, True), (0.0, False)):
                chosen = [p for p in part.parameters() if (p.ndim > 1) == is_matrix]
                groups.append({"params": chosen, "initial_lr": lr, "weight_decay": decay})
        self.optimiser = torch.optim.AdamW(groups, fused=True)

    def _set_rate(self, epochs_done: float) -> None:
        self.epochs_left = self.spec.epochs - 1 - int(epochs_done)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * self.spec.rate(epochs_done / self.spec.epochs)

    def _forward(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        to = self.spec.pad_to or int(self.length[index].max())
        index = index.to(self.device, non_blocking=True)
        X, mask = pad(self.on_device, index, to)  # (B, T)
        with bert.mixed(self.device.type, self.spec.precision):
            logits = self.model(X, mask).float()
        return logits, self.on_device.label[index]

    def score(self, index: Tensor) -> tuple[float, float]:
        """Loss and accuracy; without a choice the last epoch alone has any, and so is the best."""
        scored = self.spec.choose or not self.epochs_left
        return super().score(index) if scored else (math.inf, -1.0)


@specification
class PiecesTraining(Specification):
    """One training on word pieces, whose seed draws reviews, starts the model, orders and drops.

    BERT is fine-tuned; a network of chapter 04 is trained as there. Its padding is never read, so
    [PAD] may have another number than there. `keep` returns the parameters.
    """

    reading: Reading
    model: ClassifierSpec | ReviewSpec
    training: FineTuning | film.TrainSpec
    seed: NonNegativeInt
    keep: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    work = "encoder"

    @property
    def title(self) -> str:
        kind = getattr(self.model, "encoder", "recurrent")
        return f"{kind}, {self.reading.num_train or 'all'} reviews, seed {self.seed}"

    @property
    def cost(self) -> float:
        """About how long it takes, in no unit."""
        epochs = self.training.epochs * (0.1 if isinstance(self.model, ReviewSpec) else 1)
        return epochs * self.reading.max_len * (self.reading.num_train or 20_000)

    def make_model(self, arrays: Arrays | None = None) -> Classifier | ReviewClassifier:
        """The model as its seed starts it, or with the parameters that a training has kept."""
        encoder = bert.load_encoder(bert.find(self.reading.model))
        torch.manual_seed(self.seed)
        if isinstance(self.model, ReviewSpec):
            model = ReviewClassifier(self.model, encoder.config.vocab_size)
        else:
            model = Classifier(encoder, self.model)
        return film.restore(model, arrays)

    def train(self, progress: Progress) -> Arrays:
        """What `film.Trainer.carry_out` returns; `num_parameters` counts the embedding, too."""
        corpus, _ = self.reading.encode()
        model, spec, device = self.make_model(), self.training, torch.device(self.device)
        kind = Trainer
        if isinstance(spec, film.TrainSpec):
            kind, spec = film.Trainer, replace(spec, max_len=self.reading.max_len)
        trainer, index = kind(model, corpus, spec, device), self.reading.draw(corpus, self.seed)
        arrays = trainer.carry_out(index, self.seed, self.keep, progress)
        return arrays | {"num_parameters": np.array(sum(p.numel() for p in model.parameters()))}


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
        batches = index.split(Trainer.evaluation_batch[self.device])
        for number, batch in enumerate(batches):
            X, mask = (t.to(self.device) for t in pad(corpus, batch, self.reading.max_len))
            with torch.no_grad(), bert.mixed(self.device, self.precision):
                hidden = encoder(X, mask).last_hidden_state  # (B, T, H)
            vectors.append([bert.pool(hidden, mask, name).float() for name in bert.POOLINGS])
            progress(number, len(batches))
        pooled = [torch.cat(rows).cpu().numpy() for rows in zip(*vectors, strict=True)]
        arrays = {"index": index.numpy(), "seconds": np.array(time.perf_counter() - began)}
        return arrays | dict(zip(bert.POOLINGS, pooled, strict=True))
