"""The best recurrent network: an LSTM that reads, word by word, what a linear model weighs.

Each step of a review brings the evidence of the word, the pair and the triple that end there: their
weights in a logistic regression on naive Bayes features (Wang and Manning, ACL 2012), and with some
settings the word's vector of `corpus.pretrained`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.film import corpus as reviews
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier
from labkit.film.training import FilmTraining, Trainer
from labkit.lab import store
from labkit.lab.store import Arrays, Progress, specification

ORDER = 3  # words, pairs, triples


def groups(corpus: Corpus, index: Tensor, order: int = ORDER) -> tuple[np.ndarray, int]:
    """The number of the group of 1, 2, ... `order` words that ends at each place, (order, M).

    A group counts that stands in two of the reviews `index`; others are -1. Also how many count.
    """
    tokens, V, N = corpus.tokens.long().numpy(), len(corpus.words), len(corpus.label)
    review = np.repeat(np.arange(N), corpus.length.numpy())
    inside = np.isin(review, index.numpy())
    numbers, total, before = [], 0, np.zeros_like(tokens)  # of the shorter group one place earlier
    for _ in range(order):
        key = np.where(before >= 0, before * V + tokens, -1)
        pairs = np.unique((key * N + review)[inside & (key >= 0)])  # of a group and a review
        group, count = np.unique(pairs // N, return_counts=True)
        group = group[count >= 2]
        place = np.searchsorted(group, key).clip(max=len(group) - 1)
        known = group[place] == key
        numbers.append(np.where(known, place + total, -1))
        total += len(group)
        before = np.concatenate([[-1], np.where(known, place, -1)[:-1]])
        before[corpus.offsets[:-1]] = -1  # no group reaches into another review
    return np.stack(numbers), total


def evidence(corpus: Corpus, index: Tensor, *, folds: int = 10, strength: float = 0.1) -> Tensor:
    """What speaks for "positive" at each place of the corpus, (M, 3): a word, a pair, a triple.

    It is a group's weight in a logistic regression on the reviews `index`, at its first place in a
    review, and zero at others: a review's sum, plus a constant, is that model's logit. What a
    training review says was not learned from it: its weights come from the other folds. A fold is
    a stretch of numbers, so that few films stand in two. `strength` is the inverse of the penalty.
    """
    number, width = groups(corpus, index)
    N, (order, M) = len(corpus.label), number.shape
    review = np.tile(np.repeat(np.arange(N), corpus.length.numpy()), order)
    group, y, index = number.ravel(), corpus.label.numpy(), index.numpy()
    pairs, first = np.unique(review * (width + 1) + group + 1, return_index=True)
    first = first[pairs % (width + 1) > 0]
    row, column = (a[first].astype(np.int32) for a in (review, group))
    X = sparse.csr_array((np.ones(len(first), np.float32), (row, column)), (N, width))

    def weights(part: np.ndarray) -> np.ndarray:
        sums = [1 + X[part[y[part] == label]].sum(0) for label in (1, 0)]
        ratio = np.subtract(*(np.log(s / s.sum()) for s in sums)).astype(np.float32)
        model = LogisticRegression(C=strength, solver="liblinear", dual=True, random_state=0)
        return model.fit(X[part].multiply(ratio).tocsr(), y[part]).coef_[0] * ratio

    result = np.zeros(order * M, np.float32)
    result[first] = weights(index)[column]
    stretches = [np.array_split(index[y[index] == label], folds) for label in (0, 1)]
    for fold in map(np.concatenate, zip(*stretches, strict=True)):
        own = np.isin(row, fold)
        result[first[own]] = weights(np.setdiff1d(index, fold))[column[own]]
    return torch.from_numpy(result.reshape(order, M).T.copy())


def kept(corpus: Corpus) -> Tensor:
    """The evidence (M, 3) from a corpus' training reviews; made once."""
    facts = {"reviews": corpus.digest, "words": corpus.words}

    def make() -> Arrays:
        return {"weight": evidence(corpus, corpus.split()["train"]).numpy()}

    return torch.from_numpy(store.kept(__name__, facts, make)["weight"])


class Reading(nn.Module):
    """Stands where a model has its embedding: places of a corpus X (B, T) in, (B, T, 3 + E) out."""

    def __init__(self, tokens: Tensor, weight: Tensor, vectors: Tensor) -> None:
        """`weight` (M, 3) is the evidence at each of the `tokens` (M,), `vectors` (V, E)."""
        super().__init__()
        # the numbers of unknown words and padding, 0 and 1, are no places
        self.register_buffer("tokens", F.pad(tokens, (2, 0)), persistent=False)
        self.register_buffer("weight", F.pad(weight, (0, 0, 2, 0)), persistent=False)
        self.register_buffer("vectors", vectors, persistent=False)

    def forward(self, X: Tensor) -> Tensor:
        return torch.cat([self.weight[X], self.vectors[self.tokens[X]]], dim=-1)


@specification
class EvidenceTraining(FilmTraining):
    """One training of a network that reads evidence; `embedding_size` is 3 or more: 3 + E."""

    def train(self, progress: Progress | None = None) -> Arrays:
        """What `Trainer.carry_out` returns."""
        corpus = reviews.load(self.corpus, self.vocab_size)
        if corpus.digest != self.digest:
            raise ValueError(f"the reviews of {self.corpus!r} are not those that were asked for")
        index = corpus.split()
        weight = kept(corpus)
        vectors = reviews.pretrained(corpus, self.glove_words, 100)
        vectors = vectors[:, : self.model.embedding_size - ORDER]
        torch.manual_seed(self.seed)
        model = ReviewClassifier(self.model, 2)
        model.embedding = Reading(corpus.tokens, weight / weight.std(), vectors)
        places = replace(corpus, tokens=torch.arange(2, len(weight) + 2))
        trainer = Trainer(model, places, self.training, torch.device(self.device))
        return trainer.carry_out(index, self.seed, self.keep, progress)
