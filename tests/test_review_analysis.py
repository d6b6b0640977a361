"""Intervals and verdicts by hand, and what a trained model is asked word by word."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from labkit.film import analysis as review_analysis
from labkit.film import tasks as review_tasks
from labkit.film.corpus import Corpus
from labkit.film.model import POOLINGS, ReviewClassifier, ReviewSpec
from labkit.measure import statistics as summary

WORDS = ("<unk>", "<pad>", "good", "bad", "film", "not", "is", "n't", "it")


def corpus_of(count: int = 40, *, words: tuple[str, ...] = WORDS) -> Corpus:
    """Random short reviews; the first half is the test part, every other one positive."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(2, 9, (count,), generator=generator)
    offsets = torch.tensor([0, *itertools.accumulate(length.tolist())])
    tokens = torch.randint(2, len(words), (int(offsets[-1]),), generator=generator).int()
    label = torch.arange(count) % 2
    is_test = torch.arange(count) < count // 2
    return Corpus(tokens, offsets, label, label * 8 + 1, torch.arange(count), is_test, words, "d")


def model_of(**options) -> ReviewClassifier:
    torch.manual_seed(0)
    spec = ReviewSpec(embedding_size=5, hidden_size=4, **options)
    return ReviewClassifier(spec, len(WORDS)).eval()


# measures


def test_student_intervals_are_those_of_the_textbooks():
    """Five values of mean 3 and sd √2.5: 3 ± 2.776 · √(2.5 / 5)."""
    found = summary.summarise([1, 2, 3, 4, 5], student=True)
    half = 2.7764451052 * (2.5 / 5) ** 0.5
    assert (found["low"], found["high"]) == pytest.approx((3 - half, 3 + half))
    assert found["interval"] == "95 % Student t of the mean"
    wider = summary.summarise([1.0, 2.0, 3.0], student=True)
    plain = summary.summarise([1.0, 2.0, 3.0])
    assert wider["low"] < plain["low"] <= plain["high"] < wider["high"]
    rest = {"low", "high", "interval"}
    assert all(wider[name] == plain[name] for name in plain.keys() - rest)


def test_student_intervals_at_their_limits():
    single = summary.summarise([0.5], student=True)
    assert (single["low"], single["high"]) == (None, None)
    assert single["interval"].startswith("none: a single value")
    equal = summary.summarise([0.5, 0.5], student=True)
    assert (equal["low"], equal["high"]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="Student interval is that of the mean, not of the median"):
        summary.summarise([1.0, 2.0], student=True, statistic="median")


def test_wilson_intervals_by_hand():
    """Wilson (1927): (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)."""
    z, n, hits = stats.norm.ppf(0.975), 50, 40
    p = hits / n
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = ((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))
    assert review_analysis.accuracy_interval(hits, n) == pytest.approx(expected)
    low, high = review_analysis.accuracy_interval(10, 10)
    assert 0.6 < low < high == 1.0


def test_the_sign_test_by_hand():
    assert review_analysis.sign_test(0, 5) == pytest.approx(2 / 2**5)
    assert review_analysis.sign_test(5, 0) == pytest.approx(2 / 2**5)
    assert review_analysis.sign_test(3, 3) == 1
    assert review_analysis.sign_test(0, 0) == 1


def test_accuracy_over_the_length_by_hand():
    length = torch.tensor([1, 2, 3, 9, 10, 40])
    label = torch.tensor([1, 1, 0, 0, 1, 1])
    seeds = torch.tensor([[0.9, 0.1, 0.2, 0.8, 0.9, 0.5], [0.9, 0.9, 0.2, 0.8, 0.1, 0.5]])
    rows = review_analysis.by_length(list(seeds), label, length, [1, 4, 10, 30, 50])
    assert [(row["length"], row["n"]) for row in rows] == [(2, 3), (9, 1), (10, 1), (40, 1)]
    assert [row["accuracy"] for row in rows] == pytest.approx([(2 / 3 + 1) / 2, 0, 0.5, 1])
    low, high = review_analysis.accuracy_interval(2, 3)  # 2.5 hits, rounded
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((low, high))
    # a range without a review has no row
    assert len(review_analysis.by_length(list(seeds), label, length, [1, 4, 5, 9, 100])) == 2


def test_paired_differences_follow_the_seeds():
    found = review_analysis.paired([0.9, 0.8, 0.85], [0.5, 0.6, 0.55], [0, 1, 2])
    assert found["raw"] == pytest.approx([0.4, 0.2, 0.3])
    assert found["seeds"] == [0, 1, 2]
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (found["low"], found["high"]) == pytest.approx((0.3 - half, 0.3 + half))
    with pytest.raises(ValueError, match="one value for each seed: 2, 3, 3"):
        review_analysis.paired([1, 2], [1, 2, 3], [0, 1, 2])


def difference(mean: float, spread: float = 0.01, n: int = 4) -> dict:
    values = [mean + spread * (k - (n - 1) / 2) for k in range(n)]
    return review_analysis.paired(values, [0.0] * n, range(n))


@pytest.mark.parametrize(
    "differences, holds, verdict",
    [
        ([difference(0.2), difference(0.1)], True, "holds"),
        ([difference(-0.2), difference(-0.1)], False, "does not hold: it is the other way round"),
        ([difference(0.2), difference(0.001)], False, "holds in part"),
        ([difference(0.2), difference(-0.2)], False, "holds in part"),
        ([difference(-0.2), difference(0.001)], False, "does not hold"),
        ([difference(0.001)], None, "not shown"),
        ([difference(0.2, n=2)], None, "undecided: too few seeds (2)"),
        ([difference(0.2, n=1), difference(0.2)], None, "undecided: too few seeds (1)"),
        ([difference(0.2, spread=0)], True, "holds"),
    ],
)
def test_verdicts(differences, holds, verdict):
    named = {f"a/difference/{k}": d for k, d in enumerate(differences)}
    found = review_analysis.judge("gated", "they are better", named, "test accuracy")
    assert found["holds"] is holds
    assert found["verdict"] == verdict
    assert found["evidence"] == list(named)
    assert (found["id"], found["claim"]) == ("gated", "they are better")
    assert found["reason"].startswith("test accuracy: ")


def test_the_reason_gives_every_difference_with_its_interval():
    named = {"x/lstm": difference(0.2), "x/gru": difference(0.1, n=1)}
    reason = review_analysis.judge("c", "better", named, "accuracy")["reason"]
    low, high = named["x/lstm"]["low"], named["x/lstm"]["high"]
    assert f"+0.200 [{low:+.3f}, {high:+.3f}] lstm" in reason
    assert "+0.100 [–, –] gru" in reason
    assert "paired over 1 seeds" in reason


# looking into a model


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("size", [3, 64])
def test_reading_aloud_equals_every_beginning_alone(pooling, size):
    model = model_of(bidirectional=True, pooling=pooling)
    ids = torch.tensor([2, 5, 3, 4, 8, 7, 2], dtype=torch.int32)
    found = review_analysis.read_aloud(model, ids, size=size)
    expected = [
        model(ids[:n].long().unsqueeze(0), torch.tensor([n])).softmax(1)[0, 1].item()
        for n in range(1, 8)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 3


def test_typed_text_is_read_as_the_reviews_were():
    model, corpus = model_of(), corpus_of()
    words, p = review_analysis.predict(model, corpus, "The film ISN'T good!<br />")
    assert words == ["<unk>", "film", "is", "n't", "good"]
    ids = torch.tensor([WORDS.index(word) for word in words])
    assert torch.equal(p, review_analysis.read_aloud(model, ids))
    with pytest.raises(ValueError, match=r"there is no word in '\?!'; type a sentence"):
        review_analysis.predict(model, corpus, "?!")


def test_the_worst_errors_are_the_most_confident_ones():
    p = torch.tensor([0.9, 0.1, 0.99, 0.2, 0.6])
    label = torch.tensor([1, 1, 0, 0, 0])
    assert review_analysis.worst_errors(p, label, 2).tolist() == [2, 1]
    assert review_analysis.worst_errors(p, label, 3).tolist() == [2, 1, 4]


def test_a_stored_model_predicts_as_it_did():
    corpus = corpus_of()
    model = {"embedding_size": 5, "hidden_size": 4, "dropout": 0.5, "cell": "gru"}
    task = review_tasks.training_task("x", corpus, seed=3, model=model)
    given = review_tasks.make_model(task, corpus)
    with torch.no_grad():
        given.head.bias += 1
    arrays = {f"parameters.{n}": p.detach().numpy() for n, p in given.named_parameters()}
    arrays["train_loss"] = np.zeros(3)
    loaded = review_analysis.load_model(task, arrays, corpus)
    assert not loaded.training
    ids = torch.tensor([2, 3, 4])
    assert torch.equal(
        review_analysis.read_aloud(loaded, ids), review_analysis.read_aloud(given.eval(), ids)
    )
    del arrays["parameters.head.bias"]
    with pytest.raises(RuntimeError, match=r"head\.bias"):
        review_analysis.load_model(task, arrays, corpus)
