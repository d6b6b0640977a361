"""The evidence that the best network reads: whose weights it is, and that nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from labkit.film import evidence
from labkit.film.corpus import Corpus, split


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """60 reviews of 12 words from 6, the last third for testing; half of either label."""
    generator = torch.Generator().manual_seed(0)
    label = (torch.arange(60) % 2).sort().values[torch.arange(60) * 7 % 60]
    words = ("<unk>", "<pad>", *"abcdef")
    chance = torch.tensor([[3.0, 2, 1, 1, 1, 1], [1.0, 1, 1, 1, 2, 3]])
    draw = torch.multinomial(chance[label], 12, replacement=True, generator=generator) + 2
    return Corpus(
        tokens=draw.flatten().int(), offsets=torch.arange(61) * 12, label=label,
        rating=label, number=torch.arange(60), is_test=torch.arange(60) >= 40, words=words,
        digest="d",
    )  # fmt: skip


def test_a_group_counts_that_two_training_reviews_hold_and_none_crosses_a_border():
    tokens, V = [2, 3, 2, 3, 3, 2, 4], 5  # "ab", "abb", "ac" of which the first two train
    corpus = Corpus(
        tokens=torch.tensor(tokens).int(), offsets=torch.tensor([0, 2, 5, 7]),
        label=torch.tensor([0, 1, 0]), rating=torch.zeros(3), number=torch.arange(3),
        is_test=torch.tensor([False, False, True]), words=tuple("uvabc"), digest="d",
    )  # fmt: skip
    assert len(corpus.words) == V
    number, count = evidence.groups(corpus, torch.tensor([0, 1]), order=2)
    assert count == 3  # a, b, ab; bb stands in one review, c in none of them
    assert number.tolist() == [[0, 1, 0, 1, 1, 0, -1], [-1, 2, -1, 2, -1, -1, -1]]


def independent(
    corpus: Corpus, index: torch.Tensor, strength: float, fitted: torch.Tensor | None = None
) -> np.ndarray:
    """The logits (N,), less the constant, of a logistic regression on naive Bayes features.

    The reviews `index` say which groups count, `fitted` (or they) teach their weights.
    """
    texts = [" ".join(corpus.review(i)) for i in range(len(corpus.label))]
    counts = CountVectorizer(binary=True, ngram_range=(1, 3), min_df=2, token_pattern=r"\w")
    counts.fit([texts[i] for i in index.tolist()])
    inside = (index if fitted is None else fitted).tolist()
    y = corpus.label[inside].numpy()
    X = counts.transform(texts).toarray().astype(float)
    p, q = (1 + X[inside][y == value].sum(0) for value in (1, 0))
    X = X * np.log((p / p.sum()) / (q / q.sum()))
    model = LogisticRegression(C=strength, solver="liblinear", dual=True, random_state=0)
    return X @ model.fit(X[inside], y).coef_[0]


def test_a_test_reviews_evidence_sums_to_the_logit_of_the_linear_model(corpus):
    index = (~corpus.is_test).nonzero().flatten()
    weight = evidence.evidence(corpus, index, folds=4, strength=1.0)
    assert weight.shape == (len(corpus.tokens), 3)
    sums = weight.view(60, 12 * 3).sum(1).numpy()
    expected = independent(corpus, index, 1.0)
    assert np.allclose(sums[40:], expected[40:], atol=1e-3)
    assert not np.allclose(sums[:40], expected[:40], atol=1e-2)  # these were not asked themselves


def test_a_training_review_is_judged_by_a_model_that_has_not_seen_its_fold(corpus):
    index = (~corpus.is_test).nonzero().flatten()
    stretches = [np.array_split(index[corpus.label[index] == v], 4) for v in (0, 1)]
    fold = torch.cat([torch.as_tensor(parts[1]) for parts in stretches])
    others = index[~torch.isin(index, fold)]
    sums = evidence.evidence(corpus, index, folds=4, strength=1.0).view(60, 12 * 3).sum(1).numpy()
    assert np.allclose(sums[fold], independent(corpus, index, 1.0, others)[fold], atol=1e-3)


def test_places_are_read_as_evidence_and_vector():
    weight, vectors = torch.tensor([[1.0, 2, 3], [4.0, 5, 6]]), torch.arange(8.0).view(4, 2)
    reading = evidence.Reading(torch.tensor([3, 2]), weight, vectors)
    X = torch.tensor([[2, 3, 1]])  # both places, then padding
    assert reading(X).tolist() == [[[1, 2, 3, 6, 7], [4, 5, 6, 4, 5], [0, 0, 0, 0, 1]]]
    assert not list(reading.parameters())


def test_the_reviews_that_choose_and_test_never_teach_the_evidence(corpus, monkeypatch):
    seen = []
    monkeypatch.setattr(evidence.store, "kept", lambda module, facts, make: make())
    monkeypatch.setattr(
        evidence, "evidence", lambda c, index: seen.append(index) or torch.zeros(1, 3)
    )
    evidence.kept(corpus)
    assert torch.equal(seen[0], split(corpus.label, corpus.is_test)["train"])
