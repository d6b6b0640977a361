"""Reviews as word pieces, fine-tuning on them, and the vectors of the encoder as it came.

The loop over the epochs is chapter 04's. Every step draws its dropout, and every epoch its order,
from a number made of the seed and its own number.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.bert.model import POOLINGS, BertClassifier, ClassifierSpec, Precision, mixed, pool
from labkit.bert.pretrained import Pretrained, find, load_encoder, load_tokenizer, words_of
from labkit.film import corpus as reviews
from labkit.film import training
from labkit.film.corpus import Corpus
from labkit.film.training import KEPT, draw, held_out, restore
from labkit.lab import code, store
from labkit.lab.specification import Arrays, Progress, Seeds, Specification, specification

Part = Literal["head", "tail", "head_tail"]
HEAD_SHARE = 0.25  # of "head_tail", as the 128 first of 510 pieces in Sun et al. (2019)
EVALUATION_BATCH = 64
SHARES = 2  # processes that compute vectors


# reviews as word pieces


@specification
class Reading:
    """Which reviews a network reads, and how much of them.

    `digest` is of the reviews, the model's weights and its tokenizer. Of a review that is longer
    than `max_len` pieces, [CLS] and [SEP] included, the "head" is kept, the "tail", or "head_tail",
    a quarter from its head and the rest from its tail. `num_train` reviews are drawn by a seed,
    half of either label, all for 0; `num_dev` likewise, the same for every seed.
    """

    corpus: Literal["imdb", "generated"]
    model: str
    digest: str
    max_len: Annotated[int, Field(ge=3)]
    part: Part = "head"
    num_train: NonNegativeInt = 0
    num_dev: NonNegativeInt = 0
    test: Literal["held_out", "all", "none"] = "held_out"

    @classmethod
    def of(cls, corpus: str, pretrained: Pretrained, **fields: Any) -> Reading:
        """The reviews of a corpus as word pieces of a model; they are tokenised once, and kept."""
        digest = _encoded(corpus, pretrained)[1]
        return cls(corpus=corpus, model=pretrained.name, digest=digest, **fields)

    def encode(self) -> tuple[Corpus, Tensor]:
        """The reviews, their words being word pieces, and how long each is without a limit (N,).

        ValueError when reviews, model or length are not what was meant.
        """
        pretrained = find(self.model)
        limit = load_tokenizer(pretrained).model_max_length
        if self.max_len > limit:
            raise ValueError(f"max_len is {self.max_len}, {self.model} reads {limit} pieces")
        whole, digest = _encoded(self.corpus, pretrained)
        if digest != self.digest:
            raise ValueError(f"{self.corpus} or {self.model} has changed: run the chapter anew")
        uncut = whole.tokens.split(whole.length.tolist())
        rows = [_cut(pieces, self.max_len, self.part) for pieces in uncut]
        length = torch.tensor([0, *map(len, rows)])
        return replace(whole, tokens=torch.cat(rows), offsets=length.cumsum(0)), whole.length

    def with_train(self, size: int, corpus: Corpus) -> Reading:
        """The same with so many training reviews of a corpus."""
        return replace(self, num_train=size if size < len(corpus.split()["train"]) else 0)

    def draw(self, corpus: Corpus, seed: int) -> dict[str, Tensor]:
        """Indices of the train, dev and test reviews, the same that chapter 04's networks get."""
        split = corpus.split()
        tests = {"held_out": held_out(corpus), "all": split["test"], "none": split["test"][:0]}
        return {
            "train": draw(corpus, split["train"], self.num_train, seed),
            "dev": draw(corpus, split["dev"], self.num_dev, 0),
            "test": tests[self.test],
        }


def _cut(pieces: Tensor, max_len: int, part: Part) -> Tensor:
    """[CLS], as much of a review between it and [SEP] as there is room for, [SEP]."""
    if len(pieces) <= max_len:
        return pieces
    room = max_len - 2
    head = {"head": room, "tail": 0, "head_tail": round(HEAD_SHARE * room)}[part]
    return torch.cat([pieces[: 1 + head], pieces[len(pieces) - 1 - room + head : -1], pieces[-1:]])


def _encoded(name: str, pretrained: Pretrained) -> tuple[Corpus, str]:
    """A corpus in the word pieces of a model, uncut, with [CLS] and [SEP]; its digest."""
    corpus, tokenizer = reviews.load(name), load_tokenizer(pretrained)
    rules = tokenizer.backend_tokenizer
    rules.no_truncation()  # cutting and padding are ours
    rules.no_padding()
    facts = {"texts": corpus.digest, "tokenizer": code.sha256(rules.to_str().encode())}

    def make() -> Arrays:
        texts, rows = reviews.read(name), []
        for start in range(0, len(texts), 1_000):
            batch = [review.text.replace("<br />", " ") for review in texts[start : start + 1_000]]
            rows += tokenizer(batch, verbose=False)["input_ids"]  # long reviews are cut later
        pieces = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
        return {"tokens": pieces, "offsets": np.cumsum([0, *map(len, rows)])}

    arrays = {n: torch.from_numpy(a) for n, a in store.kept(__name__, facts, make).items()}
    digest = code.canonical({**facts, "weights": pretrained.weights_sha256})
    return replace(corpus, **arrays, words=tuple(words_of(tokenizer))), code.sha256(digest)


def pad(corpus: Corpus, index: Tensor, to: int = 0) -> tuple[Tensor, Tensor]:
    """Some reviews as X (B, T), long, and where they are no padding, (B, T) bool.

    T is the longest of them, or `to`, which must not be less.
    """
    longest = to or int(corpus.length[index].max())
    X, length = reviews.pad(corpus, index, longest, to=longest)
    mask = torch.arange(longest) < length.unsqueeze(1)  # (B, T)
    return X.where(mask, torch.tensor(corpus.words.index("[PAD]"))), mask


# fine-tuning


@specification
class FineTuning:
    """How a BERT classifier is trained, by AdamW.

    `lr`: the encoder's learning rate; `head_lr`: the head's. Over the first `warmup` of all steps
    both rise from zero; then they fall along a line to zero ("linear"), stay ("constant"), or are
    halved every five epochs ("halve"). `weight_decay` acts on matrices, not on biases and
    LayerNorm. `clip`: the L2 norm that all gradients together are scaled down to, 0 for no
    clipping. `fixed` pads every batch to the limit of a review's pieces, as a source did, and not
    to the longest of its reviews. `precision`: of the matrix products, in training and testing;
    weights and optimiser are always float32.
    """

    epochs: PositiveInt
    lr: PositiveFloat
    head_lr: PositiveFloat
    batch_size: PositiveInt = 16
    schedule: Literal["linear", "constant", "halve"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: NonNegativeFloat = 0.01
    clip: NonNegativeFloat = 1.0
    fixed: bool = False
    precision: Precision = "float32"

    def rate(self, step: int, steps_an_epoch: int) -> float:
        """The share of the learning rates that a step takes; steps count from 0."""
        steps = self.epochs * steps_an_epoch
        warmup = round(self.warmup * steps)
        if step < warmup:
            return step / warmup
        if self.schedule == "linear":
            return (steps - step) / (steps - warmup)
        return 0.5 ** (step // steps_an_epoch // 5) if self.schedule == "halve" else 1.0


def make_optimiser(model: BertClassifier, spec: FineTuning) -> torch.optim.AdamW:
    """AdamW over all of the model, with each part's learning rate and decay."""
    groups = []
    for part, lr in ((model.encoder, spec.lr), (model.head, spec.head_lr)):
        matrices = [p for p in part.parameters() if p.ndim > 1]
        vectors = [p for p in part.parameters() if p.ndim == 1]  # biases and LayerNorm
        groups.append({"params": matrices, "initial_lr": lr, "weight_decay": spec.weight_decay})
        groups.append({"params": vectors, "initial_lr": lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True)


class Trainer(training.Trainer):
    """Trains a BERT classifier: chapter 04's `fit` and `score` with steps of their own."""

    def __init__(
        self, model: BertClassifier, corpus: Corpus, spec: FineTuning, max_len: int, device: str
    ) -> None:
        self.model, self.corpus, self.spec = model.to(device), corpus, spec
        self.device = torch.device(device)
        self.pad_to = max_len if spec.fixed or model.spec.pooling == "last_position" else 0
        self.optimiser = make_optimiser(model, spec)

    def train_epoch(
        self, train: Tensor, generator: torch.Generator, epoch: int, progress: Progress | None
    ) -> dict[str, float]:
        """Read the reviews `train` once; the generator gives the seed. A row of `fit`."""
        spec, seed, began = self.spec, generator.initial_seed(), time.perf_counter()
        self.model.train()
        order = torch.Generator().manual_seed(_number(f"{seed} order {epoch - 1}"))
        batches = reviews.by_length(self.corpus.length[train], spec.batch_size, order)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # losses, hits
        for step, batch in enumerate(batches, start=(epoch - 1) * len(batches)):
            for group in self.optimiser.param_groups:
                group["lr"] = group["initial_lr"] * spec.rate(step, len(batches))
            torch.manual_seed(_number(f"{seed} dropout {step} 0"))
            sums += self._step(train[batch])
            if progress and step % 5 == 0:
                progress(step, spec.epochs * len(batches))
        loss, share = (sums / len(train)).tolist()
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}: take a smaller lr, or clip")
        seconds = time.perf_counter() - began
        return {"train_loss": loss, "train_accuracy": share, "seconds": seconds}

    def _step(self, index: Tensor) -> Tensor:
        """One step of the optimiser; the sum of the batch's losses, and its hits."""
        y = self.corpus.label[index].to(self.device)
        logits = self._logits(index)  # (B, C)
        loss = F.cross_entropy(logits, y, reduction="sum")

        self.optimiser.zero_grad()
        (loss / len(index)).backward()
        if self.spec.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip)
        self.optimiser.step()
        return torch.stack([loss.detach(), (logits.argmax(1) == y).sum()]).double()

    def _logits(self, index: Tensor) -> Tensor:
        X, mask = pad(self.corpus, index, self.pad_to)  # (B, T)
        with mixed(self.device, self.spec.precision):
            return self.model(X.to(self.device), mask.to(self.device)).float()

    @torch.no_grad()
    def class_probabilities(self, index: Tensor) -> Tensor:
        """The probability of either class for some reviews, (n, C), on the CPU."""
        self.model.eval()
        classes = torch.empty(len(index), 2)
        by_length = self.corpus.length[index].argsort(stable=True)
        for batch in by_length.split(EVALUATION_BATCH):
            classes[batch] = self._logits(index[batch]).softmax(1).cpu()
        return classes


def _number(text: str) -> int:
    """A seed for a generator from what it is for."""
    return int(code.sha256(text.encode())[:8], 16)


# the tasks


@specification
class BertTraining(Specification):
    """One training of a classifier, whose seed draws reviews, starts the head, orders and drops.

    With `curve` the held-out reviews are scored after every epoch, for show only; `keep` returns
    the trained parameters, too.
    """

    reading: Reading
    model: ClassifierSpec
    training: FineTuning
    seed: NonNegativeInt
    curve: bool = False
    keep: bool = False
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def title(self) -> str:
        """What the training starts from, its reviews, its seed."""
        start = self.reading.model if self.model.pretrained else "random start"
        return f"{start}, {self.reading.num_train or 'all'} reviews, seed {self.seed}"

    @property
    def cost(self) -> int:
        """About how long it takes, in no unit."""
        reading = self.reading
        return reading.max_len * self.training.epochs * (reading.num_train or 20_000)

    def make_model(self, arrays: Arrays | None = None) -> BertClassifier:
        """The model as its seed starts it, or with the parameters that a training has kept."""
        encoder = load_encoder(find(self.reading.model))
        torch.manual_seed(self.seed)
        return restore(BertClassifier(encoder, self.model), arrays)

    def train(self, progress: Progress | None = None) -> Arrays:
        """Train, choose the epoch by dev accuracy, and answer the test reviews once.

        Returns what `Trainer.fit` returns, one value an epoch; `test_probability` (n,) of
        "positive"; `test_seconds`; `num_parameters`; and with `keep` the parameters under
        "parameters.<name>".
        """
        (corpus, _), model = self.reading.encode(), self.make_model()
        index = self.reading.draw(corpus, self.seed)
        trainer = Trainer(model, corpus, self.training, self.reading.max_len, self.device)
        curve = held_out(corpus) if self.curve else None
        arrays = trainer.fit(
            index["train"], index["dev"], self.seed, curve=curve, progress=progress
        )
        began = time.perf_counter()
        arrays["test_probability"] = trainer.probabilities(index["test"])
        arrays["test_seconds"] = torch.tensor(time.perf_counter() - began)
        arrays["num_parameters"] = torch.tensor(sum(p.numel() for p in model.parameters()))
        if self.keep:
            arrays |= {KEPT + name: value for name, value in model.state_dict().items()}
        return {name: value.cpu().numpy() for name, value in arrays.items()}


@specification
class FrozenVectors(Specification):
    """The pooled vectors of every `SHARES`th review, from `share` on, that trainings with these
    seeds read, all padded to `max_len`."""

    reading: Reading
    seeds: Seeds
    share: NonNegativeInt
    precision: Precision = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    def train(self, progress: Progress | None = None) -> Arrays:
        """Returns `index` (n,), the reviews, ascending; for each of `POOLINGS` the vectors (n, H);
        `seconds`. [CLS] and the mean do not see the padding, the last position is padding."""
        began = time.perf_counter()
        (corpus, _), device = self.reading.encode(), torch.device(self.device)
        draws = [self.reading.draw(corpus, seed) for seed in self.seeds]
        chosen = torch.cat([index for parts in draws for index in parts.values()]).unique()
        chosen = chosen[self.share :: SHARES]

        encoder = load_encoder(find(self.reading.model)).to(device)
        vectors: dict[str, list[Tensor]] = {name: [] for name in POOLINGS}
        batches = chosen.split(EVALUATION_BATCH)
        for number, index in enumerate(batches):
            X, mask = (t.to(device) for t in pad(corpus, index, self.reading.max_len))
            with torch.no_grad(), mixed(device, self.precision):
                hidden = encoder(X, attention_mask=mask).last_hidden_state  # (B, T, H)
            for pooling, rows in vectors.items():
                rows.append(pool(hidden, mask, pooling).float().cpu())
            if progress:
                progress(number, len(batches))
        arrays = {name: torch.cat(rows).numpy() for name, rows in vectors.items()}
        seconds = np.array(time.perf_counter() - began)
        return arrays | {"index": chosen.numpy(), "seconds": seconds}
