"""What trained review models read: over the length, word by word, where they err."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from labkit.film import vocabulary
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier
from labkit.film.tasks import make_model, parameters_of
from labkit.film.training import accuracy
from labkit.measure import statistics as summary

# measures


def accuracy_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of an accuracy that was counted on n reviews."""
    found = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def sign_test(only_a: int, only_b: int) -> float:
    """p of the two-sided sign test (McNemar's, exact) on the reviews that one of two gets right."""
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def by_length(
    probabilities: Sequence[Tensor], label: Tensor, length: Tensor, edges: Sequence[int]
) -> list[dict[str, float]]:
    """Accuracy of models of several seeds on reviews of `edges[k]` to `edges[k + 1]` - 1 words.

    `probabilities` holds (N,) for each seed, `label` and `length` (N,). One row for each range:
    its middle as the median length, the number of reviews, the mean accuracy, and low and high,
    the Wilson interval of that mean on so many reviews.
    """
    rows = []
    for first, last in itertools.pairwise(edges):
        chosen = (length >= first) & (length < last)
        n = int(chosen.sum())
        if not n:
            continue
        mean = float(np.mean([accuracy(p[chosen], label[chosen]) for p in probabilities]))
        low, high = accuracy_interval(round(mean * n), n)
        middle = float(length[chosen].double().median())
        rows.append({"length": middle, "n": n, "accuracy": mean, "low": low, "high": high})
    return rows


def paired(a: Sequence[float], b: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """The mean of a - b over seeds with its Student interval; both in the seeds' order."""
    if not len(a) == len(b) == len(seeds):
        raise ValueError(f"one value for each seed: {len(a)}, {len(b)}, {len(seeds)}")
    return summary.summarise(np.subtract(a, b).tolist(), seeds=seeds, student=True)


def judge(
    claim_id: str, claim: str, differences: Mapping[str, Mapping[str, Any]], what: str
) -> dict[str, Any]:
    """A claim "the first is better", one paired difference for each comparison, by measure name.

    It holds where every Student interval lies above 0, and does not hold where every one lies
    below. Where some lie on one side it holds in part, or does not hold; the reason lists them all.
    Otherwise it is "not shown". With fewer than three seeds nothing is decided.
    """
    n = min(d["n"] for d in differences.values())
    above = [name for name, d in differences.items() if d["low"] is not None and d["low"] > 0]
    below = [name for name, d in differences.items() if d["high"] is not None and d["high"] < 0]
    if n < 3:
        verdict, holds = f"undecided: too few seeds ({n})", None
    elif len(above) == len(differences):
        verdict, holds = "holds", True
    elif len(below) == len(differences):
        verdict, holds = "does not hold: it is the other way round", False
    elif above or below:
        verdict, holds = "holds in part" if above else "does not hold", False
    else:
        verdict, holds = "not shown", None
    parts = []
    for name, d in differences.items():
        what_differs = name.rpartition("/")[2].replace("_", " ")
        parts.append(f"{d['mean']:+.3f} [{_end(d, 'low')}, {_end(d, 'high')}] {what_differs}")
    return {
        "id": claim_id,
        "claim": claim,
        "holds": holds,
        "verdict": verdict,
        "reason": f"{what}: {', '.join(parts)}; paired over {n} seeds, Student interval",
        "evidence": list(differences),
    }


def _end(measure: Mapping[str, Any], end: str) -> str:
    return "–" if measure[end] is None else f"{measure[end]:+.3f}"


# looking into a model


def load_model(
    task: Mapping[str, Any], arrays: Mapping[str, np.ndarray], corpus: Corpus
) -> ReviewClassifier:
    """The trained model of a task that kept its parameters, ready to predict."""
    model = make_model(task, corpus)
    model.load_state_dict(parameters_of(arrays), strict=True)
    return model.eval()


@torch.no_grad()
def read_aloud(model: ReviewClassifier, ids: Tensor, size: int = 64) -> Tensor:
    """P(positive) after each word of a review `ids` (T,), as if it ended there: (T,)."""
    found = []
    for length in torch.arange(1, len(ids) + 1).split(size):
        X = ids[: int(length.max())].long().expand(len(length), -1)
        inside = torch.arange(X.shape[1]) < length.unsqueeze(1)
        X = X.where(inside, torch.tensor(vocabulary.PAD_ID))
        classes = model(X, length).softmax(1)
        found.append(classes[:, classes.shape[1] // 2 :].sum(1))
    return torch.cat(found)


def predict(model: ReviewClassifier, corpus: Corpus, text: str) -> tuple[list[str], Tensor]:
    """The words of a typed text as the model sees them, and P(positive) after each, (T,).

    ValueError for a text without a word.
    """
    words = vocabulary.tokenize(text)
    if not words:
        raise ValueError(f"there is no word in {text!r}; type a sentence")
    numbers = {word: number for number, word in enumerate(corpus.words)}
    ids = vocabulary.numericalize(words, numbers)
    return [corpus.words[i] for i in ids], read_aloud(model, torch.tensor(ids))


def worst_errors(probability: Tensor, label: Tensor, count: int) -> Tensor:
    """Positions of the reviews that a model got wrong, the surest first, `count` at most."""
    wrong = torch.where(label.bool(), 1 - probability, probability)
    errors = int(((probability >= 0.5) != label.bool()).sum())
    return wrong.argsort(descending=True, stable=True)[: min(count, errors)]
