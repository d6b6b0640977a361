"""A training of a review model as a task: what it says, what it draws, what it hands back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from labkit.film import corpus as reviews
from labkit.film import tasks as review_tasks
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewSpec
from labkit.film.training import TrainSpec, accuracy
from labkit.lab import datasets, environment, sweep

MODEL = {"embedding_size": 6, "hidden_size": 4}
TRAINING = {"epochs": 2, "batch_size": 16, "lr": 0.02}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """120 short reviews on disk, of which 48 train, 12 are dev and 60 test."""
    for part in ("train", "test"):
        for kind, word, rating in (("neg", "bad", 2), ("pos", "good", 9)):
            folder = tmp_path / "corpus" / part / kind
            folder.mkdir(parents=True)
            for number in range(30):
                text = f"a {'very ' * (number % 3)}{word} film"
                (folder / f"{number}_{rating}.txt").write_text(text)
    monkeypatch.setattr(reviews, "folder", lambda name: tmp_path / "corpus")
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")
    return reviews.load("generated", 50)


def task_of(corpus: Corpus, name: str = "mine", **options) -> dict:
    options = {
        "seed": 0,
        "corpus_name": "generated",
        "model": MODEL,
        "training": TRAINING,
    } | options
    return review_tasks.training_task(name, corpus, **options)


def big_corpus(neg: int, pos: int) -> Corpus:
    """A test part of so many reviews, in order of their numbers, and a training part like it."""
    label = torch.tensor([0, 1, 0, 1]).repeat_interleave(torch.tensor([neg, pos, neg, pos]))
    number = torch.cat([torch.arange(n) for n in (neg, pos, neg, pos)])
    is_test = torch.arange(len(label)) < neg + pos
    offsets = torch.arange(len(label) + 1)
    return Corpus(torch.zeros(len(label)).int(), offsets, label, label, number, is_test, (), "")


# what is drawn


def test_held_out_reviews_are_the_sources_slices():
    corpus = big_corpus(12_500, 12_500)
    index = review_tasks.held_out(corpus)
    assert corpus.is_test[index].all()
    for label, first, last in ((0, 5000, 6000), (1, 2500, 3500)):
        own = index[corpus.label[index] == label]
        assert corpus.number[own].tolist() == list(range(first, last))


def test_held_out_ranges_shrink_with_the_corpus():
    corpus = big_corpus(100, 50)
    index = review_tasks.held_out(corpus)
    assert corpus.number[index].tolist() == [*range(40, 48), *range(10, 14)]


def test_draws_are_balanced_and_follow_the_seed():
    corpus = big_corpus(60, 40)
    index = (~corpus.is_test).nonzero().flatten()
    first, again, other = (review_tasks.draw(corpus, index, 30, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for found in (first, other):
        assert len(found) == len(found.unique()) == 30
        assert int(corpus.label[found].sum()) == 15
        assert torch.isin(found, index).all()
        assert torch.equal(found, found.sort().values)
    assert torch.equal(review_tasks.draw(corpus, index, 0, 1), index)
    assert len(review_tasks.draw(corpus, index, 80, 1)) == 80
    with pytest.raises(ValueError, match="there are 40 reviews of label 1, not 41"):
        review_tasks.draw(corpus, index, 82, 1)


# the task


def test_a_task_is_short_and_plain(corpus):
    task = task_of(corpus, num_train=20, num_dev=4, curve="held_out", keep=True)
    text = json.dumps(task, allow_nan=False)
    assert json.loads(text) == task
    assert len(text) < 4096
    assert all(type(value) in (str, int, float, bool) for value in task.values())
    assert task["data"] == corpus.digest
    assert task["label"] == "mine seed 0"


def test_a_task_gives_back_its_settings(corpus):
    model = {
        "cell": "handwritten", "engine": "torch", "num_layers": 2, "bidirectional": True,
        "pooling": "mean_max", "skip": True, "head_size": 7, "activation": "tanh", "dropout": 0.1,
        "embedding_dropout": 0.2, "num_classes": 10, "vectors": "glove", **MODEL,
    }  # fmt: skip
    training = {
        "epochs": 3, "batch_size": 5, "lr": 0.5, "optimiser": "sgd", "momentum": 0.9, "clip": 2.0,
        "halve_every": 4, "decay": True, "weight_decay": 0.1, "loss": "mse", "max_len": 9,
        "front": True, "pad_to": 10, "carry": True, "word_dropout": 0.3,
    }  # fmt: skip
    task = json.loads(json.dumps(task_of(corpus, model=model, training=training, glove_words=9)))
    assert review_tasks.specs_of(task) == (ReviewSpec(**model), TrainSpec(**training))
    assert review_tasks.specs_of(task_of(corpus, model={}, training={})) == (
        ReviewSpec(),
        TrainSpec(),
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"curve": "dev"}, "curve must be one of '', 'test_sample', 'held_out'; got 'dev'"),
        ({"model": {"vectors": "glove"}}, "vectors 'glove' need glove_words, got 0"),
        ({"model": {"cell": "cnn"}}, r"ReviewSpec\.cell must be one of"),
        ({"training": {"loss": "hinge"}}, r"TrainSpec\.loss must be one of"),
    ],
)
def test_bad_settings_are_refused(corpus, options, message):
    with pytest.raises(ValueError, match=message):
        task_of(corpus, **options)


def test_texts_that_have_moved_on_are_refused(corpus):
    task = task_of(corpus) | {"data": "0" * 64}
    with pytest.raises(ValueError, match=r"'generated' have moved on: \w{16}, .* made for 0{16}"):
        review_tasks.train_task(task)
    other = task_of(corpus) | {"vocab_size": 4}
    assert len(review_tasks.load_corpus(other).words) == 4


# the training


def test_a_training_returns_what_it_promises(corpus):
    done = []
    task = task_of(corpus, keep=True, curve="test_sample", num_train=40, num_dev=8)
    arrays = review_tasks.train_task(task, lambda now, total: done.append(total))
    split = corpus.split()
    assert arrays["test_probability"].shape == (60,)
    assert arrays["dev_probability"].shape == (8,)
    curves = ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "curve_loss",
              "curve_accuracy", "seconds", "gradient_norm", "moved")  # fmt: skip
    assert all(arrays[name].shape == (2,) for name in curves)
    assert "test_classes" not in arrays
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert set(done) == {6}  # 2 epochs of 40 reviews in batches of 16

    parameters = review_tasks.parameters_of(arrays)
    model = review_tasks.make_model(task, corpus)
    assert parameters.keys() == dict(model.named_parameters()).keys()
    inner = sum(p.numel() for n, p in parameters.items() if not n.startswith("embedding"))
    assert arrays["num_parameters"] == inner

    # the scores are those of the parameters that are handed back
    model.load_state_dict(parameters)
    X, length = reviews.pad(corpus, split["test"], 500)
    p = model.eval()(X, length).softmax(1)[:, 1].detach()
    np.testing.assert_allclose(arrays["test_probability"], p, atol=1e-6)
    dev = review_tasks.draw(corpus, split["dev"], 8, 0)
    dev_accuracy = accuracy(torch.from_numpy(arrays["dev_probability"]), corpus.label[dev])
    assert dev_accuracy == pytest.approx(arrays["dev_accuracy"].max())


def test_without_keep_and_curve_neither_is_there(corpus):
    arrays = review_tasks.train_task(task_of(corpus))
    assert not [name for name in arrays if name.startswith(("parameters.", "curve"))]
    assert arrays["dev_probability"].shape == (12,)


def test_ratings_leave_their_classes(corpus):
    arrays = review_tasks.train_task(task_of(corpus, model=MODEL | {"num_classes": 10}))
    classes = arrays["test_classes"]
    assert classes.shape == (60, 10)
    np.testing.assert_allclose(classes.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(arrays["test_probability"], classes[:, 5:].sum(1), atol=1e-6)


def test_a_seed_draws_other_reviews_and_another_start(corpus):
    same, again, other = (
        review_tasks.train_task(task_of(corpus, seed=seed, num_train=24)) for seed in (5, 5, 6)
    )
    for name in ("train_loss", "dev_loss", "test_probability"):
        np.testing.assert_array_equal(same[name], again[name])
        assert not np.array_equal(same[name], other[name])


def test_the_seed_alone_starts_the_model(corpus):
    models = []
    for seed in (5, 5, 6):
        torch.rand(len(models) + 1)  # whatever was drawn before
        models.append(review_tasks.make_model(task_of(corpus, seed=seed), corpus).state_dict())
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name])
        assert not torch.equal(value, models[2][name])


def test_a_training_is_stored_under_its_settings_not_its_name(corpus, monkeypatch):
    def run(*tasks):
        return sweep.run_tasks(
            tasks, review_tasks.train_task, name="test", modules=review_tasks.MODULES, workers=1
        )

    (first,) = run(task_of(corpus, "one"))
    stored = list((environment.CACHE / "trainings").iterdir())
    monkeypatch.setattr(review_tasks.Trainer, "fit", lambda *a, **k: pytest.fail("trained again"))
    (again,) = run(task_of(corpus, "another name"))
    assert list((environment.CACHE / "trainings").iterdir()) == stored
    np.testing.assert_array_equal(first["test_probability"], again["test_probability"])
    for change in ({"seed": 1}, {"model": {**MODEL, "cell": "gru"}}, {"num_train": 20}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            run(task_of(corpus, "one", **change))


# pretrained vectors


@pytest.fixture
def glove(tmp_path, monkeypatch):
    path = tmp_path / "glove.txt"
    words = ("the", "good", "film", "bad")
    path.write_text("".join(f"{w} {k} 2 3 4 5 6\n" for k, w in enumerate(words)))
    monkeypatch.setattr(datasets, "glove", lambda words: path)
    return path


def test_vectors_are_read_once_for_a_vocabulary_and_a_number_of_lines(corpus, glove):
    table = review_tasks.glove_table(corpus, 3)
    assert table.shape == (len(corpus.words), 6)
    assert table[corpus.words.index("good")].tolist() == [1, 2, 3, 4, 5, 6]
    assert table[corpus.words.index("bad")].abs().max() == 0  # beyond the third line
    glove.write_text("good 9 9 9 9 9 9\n")
    assert torch.equal(review_tasks.glove_table(corpus, 3), table)
    assert review_tasks.glove_table(corpus, 2)[corpus.words.index("good")].tolist() == [9] * 6


def test_a_model_on_fixed_vectors_keeps_them(corpus, glove):
    task = task_of(corpus, model=MODEL | {"vectors": "glove"}, glove_words=4, keep=True)
    arrays = review_tasks.train_task(task)
    kept = review_tasks.parameters_of(arrays)["embedding.weight"]
    assert torch.equal(kept, review_tasks.glove_table(corpus, 4))
    assert task_of(corpus, glove_words=4)["glove_words"] == 0  # learned ones need none
