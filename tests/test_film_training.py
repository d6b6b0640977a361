"""Training of review models: losses, schedules, the checkpoint, the task, and that it learns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labkit.film import corpus as reviews
from labkit.film import training as film_training
from labkit.film.corpus import PAD_ID, UNKNOWN_ID, Corpus
from labkit.film.model import ReviewClassifier, ReviewSpec
from labkit.film.training import (
    FilmTraining,
    Trainer,
    TrainSpec,
    draw,
    drop_words,
    held_out,
    loss_of,
)

GOOD, BAD, V = 2, 3, 20
SMALL = {"embedding_size": 6, "hidden_size": 5}


def toy_corpus(count: int = 160, test: int = 0) -> Corpus:
    """Reviews of 3 to 9 words; one of them, good or bad, decides label and rating."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 2
    rows = []
    for y in label.tolist():
        n = int(torch.randint(3, 10, (), generator=generator))
        row = torch.randint(4, V, (n,), generator=generator)
        row[int(torch.randint(0, n, (), generator=generator))] = GOOD if y else BAD
        rows.append(row)
    return Corpus(
        tokens=torch.cat(rows).int(),
        offsets=torch.tensor([0, *itertools.accumulate(len(row) for row in rows)]),
        label=label,
        rating=torch.where(label.bool(), 9, 2),
        number=torch.arange(count),
        is_test=torch.arange(count) < test,
        words=("<unk>", "<pad>", "good", "bad", *(f"w{i}" for i in range(4, V))),
        digest="toy",
    )


CORPUS = toy_corpus()
TRAIN, DEV, CURVE = torch.arange(0, 100), torch.arange(100, 130), torch.arange(130, 160)
INDEX = {"train": TRAIN, "dev": DEV}


def trainer(model: dict | None = None, corpus: Corpus = CORPUS, **training) -> Trainer:
    torch.manual_seed(0)
    spec = ReviewSpec(**(SMALL | (model or {})))
    schedule = TrainSpec(**({"batch_size": 16, "lr": 0.01} | training))
    return Trainer(ReviewClassifier(spec, V), corpus, schedule, torch.device("cpu"))


def one_epoch(given: Trainer) -> dict[str, float]:
    return given.train_epoch(TRAIN, torch.Generator().manual_seed(0))


def weights(given: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in given.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# losses


def test_losses_by_hand():
    """Two reviews with logits (0, ln 3) and (ln 4, 0): probabilities 1/4, 3/4 and 4/5, 1/5."""
    log, exp = math.log, math.exp
    logits = torch.tensor([[0.0, log(3)], [log(4), 0.0]])

    def softplus(z: float) -> float:
        return log(1 + exp(z))

    probabilities, sigmoids = [(0.25, 0.75), (0.8, 0.2)], [(0.5, 0.75), (0.8, 0.5)]
    expected = {
        "ce": (-log(0.75) - log(0.2)) / 2,
        "ce_on_softmax": sum(log(exp(a) + exp(b)) - b for a, b in probabilities) / 2,
        "mse": (2 * 0.25**2 + 2 * 0.8**2) / 2,
        "bce": (log(2) + softplus(-log(3)) + log(5) + log(2)) / 4,
        "bce_on_sigmoid": sum(softplus(a) + softplus(-b) for a, b in sigmoids) / 4,
    }
    losses = {kind: loss_of(logits, torch.tensor([1, 1]), kind).item() for kind in expected}
    assert losses == pytest.approx(expected, abs=1e-6)


# the checkpoint


def test_the_model_is_left_at_its_best_dev_epoch():
    """With a large rate the last epoch is not the best one."""
    given = trainer(epochs=8, lr=0.1)
    states, train_epoch = [], given.train_epoch

    def recording(*arguments):
        row = train_epoch(*arguments)
        states.append(weights(given))
        return row

    given.train_epoch = recording
    history = given.fit(INDEX, seed=1)
    best = int(history["best_epoch"])
    assert best == int(history["dev_accuracy"].argmax()) + 1 < 8  # the first of the best
    assert same(weights(given), states[best - 1])
    assert not same(states[-1], states[best - 1])


def test_means_over_an_epoch_weigh_reviews_alike():
    """Hardly learning, the training loss is the loss on all reviews, small last batch included."""
    given = trainer(lr=1e-12, batch_size=16)
    row = one_epoch(given)
    given.model.eval()
    logits, y = given._forward(TRAIN)
    assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert row["moved"] < 1e-6


@pytest.mark.parametrize("options", [{}, {"num_classes": 10}, {"cell": "none", "pooling": "mean"}])
def test_scores_are_those_of_the_plain_model_in_batches(options, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluation_batch", {"cpu": 7})
    given = trainer(options)
    X, length = reviews.pad(CORPUS, CURVE, 500)
    classes = given.model.eval()(X, length).softmax(1)
    expected = classes[:, 5:].sum(1) if options.get("num_classes") else classes[:, 1]
    torch.testing.assert_close(given.probabilities(CURVE), expected, rtol=0, atol=1e-6)
    y = CORPUS.label[CURVE]
    loss, share = given.score(CURVE)
    assert loss == pytest.approx(F.binary_cross_entropy(expected, y.float()).item(), rel=1e-4)
    assert share == pytest.approx(((expected >= 0.5) == y.bool()).double().mean().item())


# schedules


@pytest.mark.parametrize(
    "training, expected",
    [
        ({}, [0.08] * 6),
        ({"halve_every": 1}, [0.08, 0.08, 0.04, 0.04, 0.02, 0.02]),
        ({"halve_every": 2}, [0.08, 0.08, 0.08, 0.08, 0.04, 0.04]),
        ({"decay": True}, [0.08 * (1 - step / 6) for step in range(6)]),
    ],
)
def test_rates_stay_are_halved_or_fall_along_a_line(training, expected):
    """Three epochs of two batches."""
    given, rates = trainer(epochs=3, lr=0.08, batch_size=50, **training), []
    given.optimiser.register_step_pre_hook(
        lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"])
    )
    given.fit(INDEX, 0)
    assert rates == pytest.approx(expected)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    """One step of plain SGD moves the parameters by lr times the clipped norm."""
    moved, norms = {}, {}
    for clip in (0.0, 0.01, 100.0):
        given = trainer(optimiser="sgd", lr=1.0, clip=clip, batch_size=100)
        before = weights(given)
        norms[clip] = one_epoch(given)["gradient_norm"]
        after = weights(given)
        moved[clip] = math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in after))
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
    assert moved[100.0] == pytest.approx(moved[0.0], rel=1e-6)
    assert norms[0.0] == norms[0.01] > 0.05  # noted before clipping


# dropped words, and the mistakes of the sources


def test_dropped_words_become_unknown_and_padding_stays_padding():
    X = torch.randint(2, V, (50, 40), generator=torch.Generator().manual_seed(1))
    X[:, 25:] = PAD_ID
    dropped = drop_words(X, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(dropped[:, 25:], X[:, 25:])
    changed = dropped != X
    assert (dropped[changed] == UNKNOWN_ID).all()
    assert changed[:, :25].double().mean() == pytest.approx(0.5, abs=0.05)


def copied(states: list | None) -> list | None:
    return None if states is None else [tuple(s.detach().clone() for s in pair) for pair in states]


def watched(given: Trainer) -> list[dict]:
    """What the model is called with, batch by batch."""
    calls, forward = [], given.model.forward

    def recording(X, length, states):
        start = copied(states)
        logits = forward(X, length, states)
        calls.append({"X": X.clone(), "length": length, "start": start, "end": copied(states)})
        return logits

    given.model.forward = recording
    return calls


def test_words_are_dropped_while_training_only():
    given = trainer(word_dropout=0.5)
    calls = watched(given)
    one_epoch(given)
    words = torch.cat([call["X"][call["X"] != PAD_ID] for call in calls])
    assert (words == UNKNOWN_ID).double().mean() == pytest.approx(0.5, abs=0.08)
    calls.clear()
    given.score(DEV)
    assert all((call["X"] != UNKNOWN_ID).all() for call in calls)


def test_carried_states_are_those_of_the_batch_before():
    given = trainer({"bidirectional": True}, carry=True)
    calls = watched(given)
    one_epoch(given)
    assert [len(call["X"]) for call in calls] == [16] * 6  # of 100 reviews the rest is left out
    assert calls[0]["start"] == []
    assert len(calls[0]["end"]) == 2
    for before, after in itertools.pairwise(calls):
        torch.testing.assert_close(after["start"], before["end"], rtol=0, atol=0)


def test_evaluation_carries_states_of_its_own():
    given = trainer(carry=True)
    one_epoch(given)
    kept = copied(given._states)
    calls = watched(given)
    first, second = given.probabilities(DEV), given.probabilities(DEV)
    assert torch.equal(first, second)  # a score depends on no earlier one
    assert [len(call["X"]) for call in calls] == [16, 14] * 2
    assert [call["start"] for call in calls] == [[]] * 4  # the smaller batch starts anew, too
    torch.testing.assert_close(given._states, kept, rtol=0, atol=0)
    given.probabilities(TRAIN[:32])
    assert len(calls[-1]["start"]) == 1


@pytest.mark.parametrize("padding", ["unread", "front", "behind"])
@pytest.mark.parametrize("training, T", [({"pad_to": 12, "max_len": 9}, 12), ({"max_len": 4}, 4)])
def test_reviews_are_cut_and_padded_and_padding_is_read_or_not(padding, training, T):
    given = trainer(padding=padding, **training)
    calls = watched(given)
    one_epoch(given)
    given.score(DEV)
    assert max(call["X"].shape[1] for call in calls) == T
    for call in calls:
        is_word = call["X"] != PAD_ID
        words, first = is_word.sum(1), 0 if padding != "front" else -1
        assert is_word[:, first].all()
        assert (words < T).any() or T == 4
        read = words if padding == "unread" else torch.full_like(words, call["X"].shape[1])
        assert torch.equal(call["length"], read)


# learning


@pytest.mark.parametrize(
    "model",
    [
        {"cell": "rnn", "pooling": "max"},
        {"cell": "lstm"},
        {"cell": "handwritten", "pooling": "mean"},
        {"cell": "none", "pooling": "mean"},
        {"cell": "gru", "bidirectional": True, "num_classes": 10, "head_size": 8},
    ],
    ids=lambda model: model["cell"],
)
def test_one_word_that_decides_is_learned(model):
    corpus = toy_corpus(600)
    train, dev, test = torch.arange(600).split([400, 100, 100])
    given = trainer(model, corpus=corpus, epochs=8, lr=0.02)
    given.fit({"train": train, "dev": dev}, seed=0)
    assert given.score(test)[1] > 0.95
    if model.get("num_classes"):
        guess = given.class_probabilities(test).argmax(1) + 1
        assert (guess == corpus.rating[test]).double().mean() > 0.95


def test_a_loss_that_is_no_number_stops_the_training():
    given = trainer({"cell": "rnn"}, optimiser="sgd", lr=1e38, epochs=3)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf): take a smaller lr, or clip"):
        given.fit(INDEX, seed=0)


# the reviews of a training, and the training as a task


def test_held_out_reviews_are_the_sources_slices():
    label = torch.tensor([0, 1]).repeat_interleave(12_500)
    number, rest = torch.arange(12_500).repeat(2), torch.zeros(0)
    corpus = Corpus(rest, rest, label, rest, number, torch.ones(25_000).bool(), (), "")
    index = held_out(corpus)
    assert number[index[label[index] == 0]].tolist() == list(range(5000, 6000))
    assert number[index[label[index] == 1]].tolist() == list(range(2500, 3500))


def test_draws_are_balanced_and_follow_the_seed():
    index = torch.arange(10, 120)
    first, again, other = (draw(CORPUS, index, 30, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 30
    assert int(CORPUS.label[first].sum()) == 15
    assert torch.isin(first, index).all()
    assert torch.equal(draw(CORPUS, index, 0, 1), index)
    for count in (112, 31):
        with pytest.raises(ValueError, match=f"{count} reviews cannot be half .* 55 have label 0"):
            draw(CORPUS, index, count, 1)


TASK = FilmTraining(
    corpus="generated",
    digest="toy",
    vocab_size=V,
    seed=5,
    model=ReviewSpec(**SMALL),
    training=TrainSpec(epochs=2, batch_size=16, lr=0.02),
)


@pytest.fixture
def corpus(monkeypatch) -> Corpus:
    """160 reviews, of which 80 test, 64 train and 16 are dev, in place of any other."""
    corpus = toy_corpus(test=80)
    monkeypatch.setattr(reviews, "load", lambda name, size: corpus)
    return corpus


def test_a_training_returns_what_it_promises(corpus):
    done = []
    task = replace(TASK, keep=True, num_train=40, num_dev=8)
    arrays = task.train(lambda now, total: done.append((now, total)))
    assert done == [(0, 6), (3, 6)]  # two epochs of 40 reviews in batches of 16
    per_epoch = {"train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "seconds",
                 "gradient_norm", "moved"}  # fmt: skip
    assert {name for name, array in arrays.items() if array.shape == (2,)} >= per_epoch
    model = task.make_model(corpus, arrays).eval()
    p = model(*reviews.pad(corpus, corpus.split()["test"], 500)).softmax(1)[:, 1].detach()
    np.testing.assert_allclose(arrays["test_probability"], p, atol=1e-6)
    inner = [p for name, p in model.named_parameters() if not name.startswith("embedding")]
    assert arrays["num_parameters"] == sum(p.numel() for p in inner)


def test_a_training_may_answer_the_held_out_reviews_alone(corpus):
    every, some = (replace(TASK, test=which).train() for which in ("all", "held_out"))
    here = torch.isin(corpus.split()["test"], held_out(corpus)).numpy()
    assert 0 < here.sum() < len(here)
    np.testing.assert_allclose(some["test_probability"], every["test_probability"][here], atol=1e-6)


def test_ratings_leave_their_classes_and_nothing_else_is_kept(corpus):
    arrays = replace(TASK, model=ReviewSpec(**SMALL, num_classes=10)).train()
    np.testing.assert_allclose(
        arrays["test_probability"], arrays["test_classes"][:, 5:].sum(1), atol=1e-6
    )
    assert not [name for name in arrays if name.startswith("parameters.")]


def test_the_seed_alone_decides(corpus):
    same_seed, again, other = (replace(TASK, seed=s, num_train=24).train() for s in (5, 5, 6))
    for name in ("train_loss", "dev_loss", "test_probability"):
        np.testing.assert_array_equal(same_seed[name], again[name])
        assert not np.array_equal(same_seed[name], other[name])


def test_other_texts_are_refused(corpus):
    with pytest.raises(ValueError, match="'generated' are not those that were asked for"):
        replace(TASK, digest="other").train()


def test_fixed_vectors_are_those_of_the_table(corpus, monkeypatch):
    table = torch.rand(V, 6)
    monkeypatch.setattr(film_training, "pretrained", lambda c, lines, size: table[:, :size] * lines)
    task = replace(TASK, model=ReviewSpec(**SMALL, vectors="pretrained"), glove_words=1)
    assert torch.equal(task.make_model(corpus).embedding.weight, table)
