"""Bags of words: what the vectorizers see, that dev chooses, that the test set is only scored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from labkit.film import baselines
from labkit.film.corpus import Corpus

PARTS = ("train", "dev", "test")


def corpus_of(reviews: list[tuple[str, int, str]]) -> tuple[Corpus, dict]:
    """A corpus of (text, label, part), and the reviews' positions by part."""
    words = ("<unk>", "<pad>", *sorted({w for text, _, _ in reviews for w in text.split()}))
    rows = [[words.index(w) for w in text.split()] for text, _, _ in reviews]
    label = torch.tensor([label for _, label, _ in reviews])
    corpus = Corpus(
        tokens=torch.tensor([i for row in rows for i in row], dtype=torch.int32),
        offsets=torch.tensor([0, *itertools.accumulate(map(len, rows))]),
        label=label,
        rating=label,
        number=label,
        is_test=torch.tensor([part == "test" for _, _, part in reviews]),
        words=words,
        digest="",
    )
    parts = {p: torch.tensor([i for i, r in enumerate(reviews) if r[2] == p]) for p in PARTS}
    return corpus, parts


def toy(good: str, bad: str) -> tuple[Corpus, dict]:
    """Reviews with some filler whose label is told by `good` and `bad`."""
    fillers = ("the film", "an actor", "the story", "an ending", "the music", "")
    return corpus_of(
        [
            (f"{filler} {word} {other}".strip(), label, part)
            for part in PARTS
            for filler, other in itertools.product(fillers, fillers)
            for label, word in enumerate((bad, good))
        ]
    )


@pytest.mark.parametrize("kind", baselines.KINDS)
def test_a_word_that_decides_is_learned(kind):
    corpus, parts = toy("good", "bad")
    found = baselines.logistic_regression(corpus, kind, **parts)
    assert found["dev_accuracy"] == found["test_accuracy"] == 1.0
    p = found["test_probability"]
    assert p.shape == (len(parts["test"]),)
    assert ((p >= 0.5) == corpus.label[parts["test"]].bool()).all()


def test_only_pairs_see_not_good():
    """The same words in two orders: "not good, bad" against "not bad, good"."""
    corpus, parts = toy("not bad good", "not good bad")
    found = {kind: baselines.logistic_regression(corpus, kind, **parts) for kind in baselines.KINDS}
    assert found["binary"]["test_accuracy"] == pytest.approx(0.5)
    assert found["tfidf_pairs"]["test_accuracy"] == 1.0
    assert found["tfidf_pairs"]["num_features"] > found["binary"]["num_features"]
    names = baselines.make_vectorizer("tfidf_pairs", 1).fit([["not", "good"]])
    assert set(names.get_feature_names_out()) == {"not", "good", "not good"}


def test_binary_counts_a_word_once_and_rare_words_not_at_all():
    vectorizer = baselines.make_vectorizer("binary")
    X = vectorizer.fit_transform([["so", "so", "GOOD", "n't"], ["so", "n't", "!"], ["once"]])
    assert vectorizer.get_feature_names_out().tolist() == ["n't", "so"]
    assert X.toarray().tolist() == [[1, 1], [1, 1], [0, 0]]
    assert X.dtype == np.float32
    every = baselines.make_vectorizer("binary", 1).fit([["so", "GOOD", "!"]])
    assert set(every.get_feature_names_out()) == {"so", "GOOD", "!"}  # as they are


def test_features_come_from_training_reviews_only():
    reviews = [
        *[("good film", 1, "train"), ("bad film", 0, "train")] * 3,
        *[("fine good new", 1, "dev"), ("dull bad new", 0, "dev")] * 3,
        *[("fine good odd", 1, "test"), ("dull bad odd", 0, "test")] * 3,
    ]
    corpus, parts = corpus_of(reviews)
    assert baselines.logistic_regression(corpus, "binary", **parts)["num_features"] == 3


def noisy(seed: int = 2) -> tuple[Corpus, dict]:
    """Labels that a hundred weak words tell together, so that the penalty matters."""
    rng = np.random.default_rng(seed)
    reviews = []
    for part, count in zip(PARTS, (60, 60, 60), strict=True):
        for label in (0, 1) * (count // 2):
            lean = rng.random(12) < (0.62 if label else 0.38)
            words = [f"{'p' if up else 'n'}{rng.integers(30)}" for up in lean]
            reviews.append((" ".join(words), label, part))
    return corpus_of(reviews)


def test_dev_chooses_the_strength_and_test_does_not():
    corpus, parts = noisy()
    strengths = (1e-4, 0.03, 1.0, 100.0)
    alone = {
        C: baselines.logistic_regression(corpus, "binary", **parts, strengths=[C])
        for C in strengths
    }
    dev = [alone[C]["dev_accuracy"] for C in strengths]
    test = [alone[C]["test_accuracy"] for C in strengths]
    assert np.argmax(test) != np.argmax(dev) == 0  # and the training reviews ask for no penalty
    found = baselines.logistic_regression(corpus, "binary", **parts, strengths=strengths)
    assert found["C"] == strengths[int(np.argmax(dev))]  # the first of the best
    assert found["dev_accuracy"] == max(dev)
    assert found["test_accuracy"] == alone[found["C"]]["test_accuracy"]
    assert torch.equal(found["test_probability"], alone[found["C"]]["test_probability"])

    # other labels of the test reviews change the score and nothing else
    flipped = Corpus(**vars(corpus) | {"label": corpus.label.clone()})
    flipped.label[parts["test"]] = 1 - corpus.label[parts["test"]]
    other = baselines.logistic_regression(flipped, "binary", **parts, strengths=strengths)
    assert other["C"] == found["C"]
    assert torch.equal(other["test_probability"], found["test_probability"])
    assert other["test_accuracy"] == pytest.approx(1 - found["test_accuracy"])


def test_an_unknown_kind_is_refused():
    corpus, parts = toy("good", "bad")
    with pytest.raises(ValueError, match="kind must be one of binary, tfidf_pairs; got 'counts'"):
        baselines.logistic_regression(corpus, "counts", **parts)
