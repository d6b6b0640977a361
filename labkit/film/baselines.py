"""Linear baselines: logistic regression on bags of words, on the same reviews as the networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from labkit.film.corpus import Corpus

KINDS = ("binary", "tfidf_pairs")
STRENGTHS = (0.03, 0.3, 3.0, 30.0)  # C, the inverse of the L2 penalty's weight


def _identity(words: list[str]) -> list[str]:
    return words


def make_vectorizer(kind: str, min_reviews: int = 2):
    """scikit-learn's vectorizer of lists of words: binary words, or tf-idf of words and pairs."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    common = {
        "tokenizer": _identity,
        "token_pattern": None,
        "lowercase": False,
        "min_df": min_reviews,
        "dtype": np.float32,
    }
    if kind == "binary":
        return CountVectorizer(binary=True, **common)
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **common)


def logistic_regression(
    corpus: Corpus,
    kind: str,
    *,
    train: Tensor,
    dev: Tensor,
    test: Tensor,
    max_len: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> dict[str, object]:
    """Fit on the reviews `train` for every strength, choose by dev accuracy, test once.

    Only the first `max_len` words of a review are read, all for None.

    Returns "C", "dev_accuracy", "test_accuracy", "num_features", and "test_probability" (n,) of
    "positive". Words beyond the vocabulary of the corpus count as the unknown word.
    """
    from sklearn.linear_model import LogisticRegression

    words = {
        name: [corpus.review(i)[:max_len] for i in index.tolist()]
        for name, index in (("train", train), ("dev", dev), ("test", test))
    }
    vectorizer = make_vectorizer(kind)
    X = {"train": vectorizer.fit_transform(words["train"])}
    X |= {name: vectorizer.transform(words[name]) for name in ("dev", "test")}
    y = {"train": corpus.label[train].numpy(), "dev": corpus.label[dev].numpy()}

    fitted = [
        LogisticRegression(C=C, solver="liblinear", random_state=0).fit(X["train"], y["train"])
        for C in strengths
    ]
    scores = [float(model.score(X["dev"], y["dev"])) for model in fitted]
    best = int(np.argmax(scores))
    probability = fitted[best].predict_proba(X["test"])[:, 1]
    hits = (probability >= 0.5) == corpus.label[test].numpy()
    return {
        "C": float(strengths[best]),
        "dev_accuracy": scores[best],
        "test_accuracy": float(hits.mean()),
        "num_features": int(X["train"].shape[1]),
        "test_probability": torch.from_numpy(probability),
    }
