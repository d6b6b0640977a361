"""Training of review models: losses, schedules, the checkpoint, and that it learns."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.film import training as review_training
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier, ReviewSpec
from labkit.film.training import LOSSES, Trainer, TrainSpec, accuracy, loss_of

CPU = torch.device("cpu")
GOOD, BAD, V = 2, 3, 20
SMALL = {"embedding_size": 6, "hidden_size": 5}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_corpus(count: int = 160, seed: int = 0) -> Corpus:
    """Reviews of 3 to 9 words; one of them, good or bad, decides label and rating."""
    generator = torch.Generator().manual_seed(seed)
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
        is_test=torch.zeros(count, dtype=torch.bool),
        words=("<unk>", "<pad>", "good", "bad", *(f"w{i}" for i in range(4, V))),
        digest="toy",
    )


CORPUS = toy_corpus()
TRAIN, DEV, CURVE = torch.arange(0, 100), torch.arange(100, 130), torch.arange(130, 160)


def trainer(model: dict | None = None, seed: int = 0, corpus: Corpus = CORPUS, **training):
    torch.manual_seed(seed)
    spec = ReviewSpec(**(SMALL | (model or {})))
    schedule = TrainSpec(**({"batch_size": 16, "lr": 0.01} | training))
    return Trainer(ReviewClassifier(spec, len(corpus.words)), corpus, schedule, CPU)


def weights(given: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in given.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# losses


def test_losses_by_hand():
    """Two reviews with logits (0, ln 3) and (ln 4, 0): probabilities 1/4, 3/4 and 4/5, 1/5."""
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    y = torch.tensor([1, 1])
    log, exp = math.log, math.exp

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
    assert set(expected) == set(LOSSES)
    for kind, value in expected.items():
        assert loss_of(logits, y, kind).item() == pytest.approx(value, abs=1e-6), kind


def test_losses_are_torchs_also_for_ten_classes():
    logits = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    y = torch.arange(7)
    target = F.one_hot(y, 10).float()
    p = logits.softmax(1)
    expected = {
        "ce": nn.CrossEntropyLoss()(logits, y),
        "ce_on_softmax": nn.CrossEntropyLoss()(p, y),
        "mse": nn.MSELoss(reduction="sum")(p, target) / 7,
        "bce": nn.BCEWithLogitsLoss()(logits, target),
        "bce_on_sigmoid": nn.BCEWithLogitsLoss()(logits.sigmoid(), target),
    }
    for kind, value in expected.items():
        torch.testing.assert_close(loss_of(logits, y, kind), value)


@pytest.mark.parametrize(
    "kind, floor",
    [("ce", 0), ("mse", 0), ("bce", 0), ("bce_on_sigmoid", 0.503), ("ce_on_softmax", 0.313)],
)
def test_the_floor_of_a_loss_is_what_certainty_costs(kind, floor):
    certain = torch.tensor([[30.0, -30.0], [-30.0, 30.0]])
    assert loss_of(certain, torch.tensor([0, 1]), kind).item() == pytest.approx(floor, abs=5e-4)
    wrong = loss_of(certain, torch.tensor([1, 0]), kind).item()
    assert wrong > floor + 0.2


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
    history = given.fit(TRAIN, DEV, seed=1)
    best = int(history["best_epoch"])
    assert len(states) == 8
    assert best == int(history["dev_accuracy"].argmax()) + 1  # the first of the best
    assert best < 8
    assert same(weights(given), states[best - 1])
    assert not same(states[-1], states[best - 1])
    assert given.score(DEV)[1] == pytest.approx(float(history["dev_accuracy"][best - 1]))
    assert given.score(DEV)[0] == pytest.approx(float(history["dev_loss"][best - 1]), rel=1e-5)


def test_the_test_curve_decides_nothing():
    """With its labels turned round the curve is best where dev is worst; nothing follows it."""
    label = CORPUS.label.clone()
    label[CURVE] = 1 - label[CURVE]
    turned = Corpus(**vars(CORPUS) | {"label": label})
    results = {}
    for name, curve in {"none": None, "turned": CURVE, "dev": DEV}.items():
        given = trainer({"dropout": 0.5}, corpus=turned, epochs=4, lr=0.05, word_dropout=0.1)
        results[name] = (given.fit(TRAIN, DEV, seed=1, curve=curve), weights(given))
    history, model = results["none"]
    assert not any(name.startswith("curve") for name in history)
    for name in ("turned", "dev"):
        other, other_model = results[name]
        assert same(model, other_model)
        for measure in ("best_epoch", "dev_accuracy", "dev_loss", "train_loss"):
            assert torch.equal(history[measure], other[measure])
    assert torch.equal(results["dev"][0]["curve_accuracy"], history["dev_accuracy"])
    by_curve = int(results["turned"][0]["curve_accuracy"].argmax()) + 1
    assert by_curve != int(history["best_epoch"])


def test_a_fit_returns_one_value_an_epoch():
    done = []
    given = trainer(epochs=3)
    history = given.fit(
        TRAIN, DEV, 0, curve=CURVE, progress=lambda now, total: done.append((now, total))
    )
    names = {"train_loss", "train_accuracy", "seconds", "dev_loss", "dev_accuracy", "curve_loss",
             "curve_accuracy", "gradient_norm", "moved"}  # fmt: skip
    assert set(history) == names | {"best_epoch"}
    for name in names:
        assert history[name].shape == (3,)
        assert torch.isfinite(history[name]).all()
    assert (history["moved"].diff() > 0).all()
    assert done == [(0, 21), (7, 21), (14, 21)]


def test_means_over_an_epoch_weigh_reviews_alike():
    """Without learning the training loss is the loss on all reviews, small last batch included."""
    given = trainer(lr=0.0, batch_size=16)
    row = given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    X, length, y = given._batch(TRAIN)
    given.model.eval()
    logits = given.model(X, length)
    assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    hits = (logits.argmax(1) == y).double().mean().item()
    assert row["train_accuracy"] == pytest.approx(hits)
    assert given._moved() == 0


@pytest.mark.parametrize("options", [{}, {"num_classes": 10}, {"cell": "none", "pooling": "mean"}])
def test_scores_are_those_of_the_plain_model(options):
    given = trainer(options)
    p = given.probabilities(CURVE)
    X, length, _ = given._batch(CURVE)
    classes = given.model.eval()(X, length).softmax(1)
    expected = classes[:, 5:].sum(1) if options.get("num_classes") else classes[:, 1]
    torch.testing.assert_close(p, expected, rtol=0, atol=1e-6)
    y = CORPUS.label[CURVE]
    loss, share = given.score(CURVE)
    assert loss == pytest.approx(F.binary_cross_entropy(expected, y.float()).item(), rel=1e-4)
    assert share == pytest.approx(((expected >= 0.5) == y.bool()).double().mean().item())


def test_a_tie_counts_as_positive():
    p = torch.tensor([0.5, 0.5, 0.4999, 0.9])
    assert accuracy(p, torch.tensor([1, 0, 0, 1])) == 0.75


# schedules


def rates(**training) -> list[float]:
    """The learning rate of every step of three epochs of 7 batches."""
    given, found = trainer(epochs=3, lr=0.08, **training), []
    step = given._step

    def recording(*arguments):
        found.append(given.optimiser.param_groups[0]["lr"])
        return step(*arguments)

    given._step = recording
    given.fit(TRAIN, DEV, 0)
    return found


def test_rates_stay_are_halved_or_fall_along_a_line():
    assert rates() == [0.08] * 21
    assert rates(halve_every=1) == [0.08] * 7 + [0.04] * 7 + [0.02] * 7
    assert rates(halve_every=2) == [0.08] * 14 + [0.04] * 7
    assert rates(decay=True) == pytest.approx([0.08 * (1 - step / 21) for step in range(21)])


def test_clipping_bounds_the_norm_of_all_gradients_together():
    """One step of plain SGD moves the parameters by lr times the clipped norm."""
    moved, norms = {}, {}
    for clip in (0.0, 0.01):
        given = trainer(optimiser="sgd", lr=1.0, clip=clip, batch_size=100)
        before = weights(given)
        norms[clip] = given.train_epoch(TRAIN, torch.Generator().manual_seed(0))["gradient_norm"]
        after = weights(given)
        moved[clip] = math.sqrt(sum(float((after[n] - before[n]).square().sum()) for n in after))
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
    assert moved[0.0] > 0.05
    assert norms[0.0] == norms[0.01] > 0.05  # noted before clipping


def test_a_norm_below_the_bound_is_left_alone():
    free, bound = (trainer(optimiser="sgd", lr=1.0, clip=clip) for clip in (0.0, 100.0))
    for given in (free, bound):
        given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    for name, value in weights(free).items():
        torch.testing.assert_close(weights(bound)[name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "training, kind, expected",
    [
        ({"optimiser": "adam"}, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.2}),
        ({"optimiser": "adamax"}, torch.optim.Adamax, {"lr": 0.01, "weight_decay": 0.2}),
        ({"optimiser": "sgd", "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9, "lr": 0.01}),
    ],
)
def test_optimisers(training, kind, expected):
    given = trainer({"cell": "handwritten", "engine": "torch"}, weight_decay=0.2, **training)
    assert type(given.optimiser) is kind
    (group,) = given.optimiser.param_groups
    assert expected.items() <= group.items()
    names = {id(p): name for name, p in given.model.named_parameters()}
    trained = {names[id(p)] for p in group["params"]}
    assert set(names.values()) - trained == {"layers.0.0.bias_hh_l0"}
    before = weights(given)
    given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    after = weights(given)
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained


def test_an_l2_penalty_acts_through_the_gradient():
    """One SGD step on the penalty: a weight shrinks by lr · λ of itself more than without it."""
    step = {"optimiser": "sgd", "lr": 0.1, "batch_size": 100}
    plain, penal = (trainer(**step, weight_decay=weight) for weight in (0.0, 0.5))
    start = weights(plain)
    for given in (plain, penal):
        given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    for name, value in weights(plain).items():
        expected = value - 0.1 * 0.5 * start[name]
        torch.testing.assert_close(weights(penal)[name], expected, rtol=0, atol=1e-6)


# the mistakes of the sources, and dropped words


def copied(states: list | None) -> list | None:
    if states is None:
        return None
    return [tuple(s.detach().clone() for s in pair) for pair in states]


def watched(given: Trainer) -> list[dict]:
    """What the model is called with, batch by batch."""
    calls, forward = [], given.model.forward

    def recording(X, length, **options):
        states = options["states"]
        calls.append({"X": X.clone(), "length": length, "start": copied(states)})
        logits = forward(X, length, **options)
        calls[-1] |= {"end": copied(states), "front": options["front"]}
        return logits

    given.model.forward = recording
    return calls


def test_carried_states_are_those_of_the_batch_before():
    given = trainer({"bidirectional": True}, carry=True)
    calls = watched(given)
    generator = torch.Generator().manual_seed(0)
    for epoch in (1, 2):
        given.train_epoch(TRAIN, generator, epoch)
    assert len(calls) == 12  # of 100 reviews 6 full batches of 16, the rest is left out
    assert {len(call["X"]) for call in calls} == {16}
    assert calls[0]["start"] == []
    for before, after in itertools.pairwise(calls):
        assert len(after["start"]) == 2
        for end, start in zip(before["end"], after["start"], strict=True):
            assert all(torch.equal(e, s) for e, s in zip(end, start, strict=True))
        assert any(state.abs().max() > 0 for state in after["start"][0])


def test_evaluation_carries_states_of_its_own():
    given = trainer(carry=True)
    given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    kept = copied(given._states)
    calls = watched(given)
    first, second = given.probabilities(DEV), given.probabilities(DEV)
    assert torch.equal(first, second)  # a score depends on no earlier one
    assert [len(call["X"]) for call in calls] == [16, 14] * 2
    assert [len(call["start"]) for call in calls] == [0, 0, 0, 0]
    for pair, now in zip(kept, given._states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, now, strict=True))
    given.probabilities(TRAIN[:32])
    assert len(calls[-1]["start"]) == 1  # of the one layer, from the first batch to the second


def test_without_carry_every_batch_starts_anew():
    given = trainer()
    calls = watched(given)
    given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    assert {len(call["X"]) for call in calls} == {16, 4}
    assert all(call["start"] is None for call in calls)


def test_words_are_dropped_while_training_only():
    given = trainer(word_dropout=0.5)
    calls = watched(given)
    given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    inside = [torch.arange(c["X"].shape[1]) < c["length"].unsqueeze(1) for c in calls]
    trained = torch.cat([c["X"][words] for c, words in zip(calls, inside, strict=True)])
    assert (trained == 0).double().mean() == pytest.approx(0.5, abs=0.08)
    calls.clear()
    given.score(DEV)
    assert calls
    assert all((call["X"] != 0).all() for call in calls)


def test_padding_in_front_reaches_the_model():
    given = trainer(front=True, pad_to=12, max_len=9)
    calls = watched(given)
    given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    given.score(DEV)
    assert all(call["front"] for call in calls)
    assert {call["X"].shape[1] for call in calls} == {12}
    assert all((call["X"][:, -1] != 1).all() for call in calls)
    assert all((call["X"][:, :3] == 1).all() for call in calls)


def test_reviews_are_cut_at_max_len():
    given = trainer(max_len=4)
    calls = watched(given)
    given.train_epoch(TRAIN, torch.Generator().manual_seed(0))
    given.score(DEV)
    assert max(call["X"].shape[1] for call in calls) == 4


# learning


def test_the_same_seed_gives_the_same_training():
    runs = []
    for seed in (3, 3, 4):
        given = trainer({"dropout": 0.3}, seed=3, epochs=3, word_dropout=0.1)
        history = given.fit(TRAIN, DEV, seed)
        del history["seconds"]
        runs.append((history, weights(given)))
    assert same(runs[0][0], runs[1][0])
    assert same(runs[0][1], runs[1][1])
    assert not same(runs[0][0], runs[2][0])


@pytest.mark.parametrize(
    "model",
    [
        {"cell": "rnn", "pooling": "max"},
        {"cell": "lstm"},
        {"cell": "gru", "bidirectional": True},
        {"cell": "handwritten", "engine": "own", "pooling": "mean"},
        {"cell": "handwritten", "engine": "torch", "pooling": "mean"},
        {"cell": "none", "pooling": "mean"},
        {"cell": "gru", "pooling": "mean", "num_classes": 10, "head_size": 8},
    ],
    ids=lambda model: "-".join(map(str, model.values())),
)
def test_one_word_that_decides_is_learned(model):
    corpus = toy_corpus(600)
    train, dev, test = torch.arange(600).split([400, 100, 100])
    given = trainer(model, corpus=corpus, epochs=8, lr=0.02)
    history = given.fit(train, dev, seed=0)
    assert history["dev_accuracy"].max() > 0.95
    assert given.score(test)[1] > 0.95
    if model.get("num_classes"):
        guess = given.class_probabilities(test).argmax(1) + 1
        assert (guess == corpus.rating[test]).double().mean() > 0.95


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches(loss):
    given = trainer({"pooling": "max"}, epochs=8, lr=0.03, loss=loss)
    given.fit(TRAIN, DEV, seed=0)
    assert given.score(CURVE)[1] > 0.9


def test_a_loss_that_is_no_number_stops_the_training():
    given = trainer({"cell": "rnn"}, optimiser="sgd", lr=1e38, epochs=3)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf): take a smaller lr, or clip"):
        given.fit(TRAIN, DEV, seed=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss": "hinge"}, r"TrainSpec\.loss must be one of ce, .*got 'hinge'"),
        ({"optimiser": "lion"}, r"TrainSpec\.optimiser must be one of adam, adamax, sgd"),
        ({"epochs": 0}, r"TrainSpec\.epochs must be at least 1, got 0"),
        ({"batch_size": 0}, r"TrainSpec\.batch_size must be at least 1"),
        ({"max_len": 0}, r"TrainSpec\.max_len must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainSpec(**options)


def test_large_evaluations_come_in_batches(monkeypatch):
    given = trainer()
    at_once = given.probabilities(TRAIN)
    monkeypatch.setattr(review_training, "EVALUATION_BATCH", 7)
    torch.testing.assert_close(given.probabilities(TRAIN), at_once, rtol=0, atol=1e-6)
