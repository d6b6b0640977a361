"""What is timed: the same reviews by every way, each in a process of its own, padded as it says."""

from __future__ import annotations

import io

import pytest
import torch

from labkit.cells import layers as recurrent
from labkit.film import corpus as reviews
from labkit.film import speed as review_speed
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier
from labkit.film.training import Trainer
from labkit.lab import environment

GENERATED = {"corpus_name": "generated", "vocab_size": 300, "max_len": 30}
LONG = 150  # words; the made-up reviews are shorter


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return reviews.load("generated", 300)


def test_every_way_is_timed_in_every_round():
    found = review_speed.epoch_seconds(**GENERATED, rounds=2, batches=1)
    assert tuple(found) == review_speed.WAYS
    for seconds in found.values():
        assert len(seconds) == 2
        assert min(seconds) > 0


def test_the_end_of_a_process_is_reported_in_its_own_words():
    with pytest.raises(RuntimeError, match="900 batches need 57600 reviews, got "):
        review_speed.epoch_seconds(**GENERATED, rounds=1, batches=900, ways=["naive"])


def test_only_the_labs_way_has_the_allocator_settings(monkeypatch):
    started = []

    class Process:
        def __init__(self, command, *, env, **options):
            started.append(env)
            self.stdin = io.StringIO()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def kill(self):
            pass

    monkeypatch.setattr(review_speed.subprocess, "Popen", Process)
    for name in review_speed.ALLOCATOR:
        monkeypatch.setenv(name, "1")  # as the kernel of a notebook may have it
    for way in review_speed.WAYS:
        with review_speed._started(way, {}):
            pass
    found = [{k: env.get(k) for k in review_speed.ALLOCATOR} for env in started]
    nothing = dict.fromkeys(review_speed.ALLOCATOR)
    assert found == [nothing, nothing, review_speed.ALLOCATOR]
    assert environment.MALLOC.items() < review_speed.ALLOCATOR.items()


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the batches that any review model is given."""
    found, forward = [], ReviewClassifier.forward

    def recording(self, X, length, **options):
        found.append(tuple(X.shape))
        return forward(self, X, length, **options)

    monkeypatch.setattr(ReviewClassifier, "forward", recording)
    return found


@pytest.mark.parametrize("way", ["handwritten", "naive"])
def test_the_naive_ways_pad_every_review_to_the_longest_allowed(way, corpus, shapes):
    review_speed.timer(way, corpus, batches=2, max_len=LONG)(0)
    assert shapes == [(64, LONG)] * (1 if way == "handwritten" else 2)


def test_the_labs_way_is_the_trainers(corpus, shapes, monkeypatch):
    calls, train_epoch = [], Trainer.train_epoch

    def recording(self, *arguments):
        calls.append(train_epoch(self, *arguments))
        return calls[-1]

    monkeypatch.setattr(Trainer, "train_epoch", recording)
    seconds = review_speed.timer("grouped", corpus, batches=2, max_len=LONG)(0)
    assert len(shapes) == 2
    assert max(T for _, T in shapes) < LONG
    assert seconds == pytest.approx(calls[0]["seconds"] * 25_000 / 128)


def test_the_handwritten_way_runs_the_layer_of_chapter_01(corpus, monkeypatch):
    layers, forward = [], ReviewClassifier.forward

    def recording(self, X, length, **options):
        layers.append(self.layers[0][0])
        return forward(self, X, length, **options)

    monkeypatch.setattr(ReviewClassifier, "forward", recording)
    for way in review_speed.WAYS:
        review_speed.timer(way, corpus, batches=1, max_len=LONG)(0)
    assert [type(layer) for layer in layers] == [recurrent.LSTM, torch.nn.LSTM, torch.nn.LSTM]


def test_an_unknown_way_and_too_few_reviews_are_refused(corpus):
    with pytest.raises(ValueError, match="handwritten, naive, grouped"):
        review_speed.timer("fast", corpus, batches=1, max_len=8)
    with pytest.raises(ValueError, match=r"99 batches need 6336 reviews, got \d+"):
        review_speed.timer("naive", corpus, batches=99, max_len=8)
