"""The settings of the two studies, their tasks, the order of training, and what is measured."""

from __future__ import annotations

import os
import tomllib

import numpy as np
import pytest
import torch

from labkit.film import rows as report_imdb
from labkit.film import speed as review_speed
from labkit.film import studies as imdb
from labkit.film import tasks as review_tasks
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewSpec
from labkit.film.training import TrainSpec
from labkit.lab import environment, sweep

PUBLISHED = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))
STUDIES = {
    "a": imdb.STUDY_A,
    "best": imdb.BEST,
    "mistake": imdb.MISTAKES,
    "source": imdb.SOURCE_B,
    "sound": imdb.SOUND_B,
    "stack": imdb.STACK,
    "other": {"averaged": imdb.AVERAGED, "rating": imdb.RATING},
}


@pytest.fixture
def corpus() -> Corpus:
    """50 training and 50 test reviews of two words, half of either label."""
    n = 100
    label = torch.tensor([0, 1, 0, 1]).repeat_interleave(25)
    number = torch.arange(n) % 25
    return Corpus(
        tokens=torch.full((2 * n,), 2, dtype=torch.int32),
        offsets=torch.arange(0, 2 * n + 1, 2),
        label=label,
        rating=torch.where(label.bool(), 9, 2),
        number=number,
        is_test=torch.arange(n) < 50,
        words=("<unk>", "<pad>", "film"),
        digest="0" * 64,
    )


def tasks_of(corpus: Corpus, settings: dict, **options) -> list[dict]:
    return imdb.study_tasks("x", settings, corpus, **({"seeds": [0]} | options))


# settings


@pytest.mark.parametrize("study", STUDIES)
def test_every_setting_is_one_that_can_be_trained(study, corpus):
    for vectors in (0, 1000):
        tasks = imdb.study_tasks(study, STUDIES[study], corpus, seeds=[0], glove_words=vectors)
        assert len(tasks) == len(STUDIES[study])
        for task in tasks:
            spec, _ = review_tasks.specs_of(task)
            assert vectors or spec.vectors == "learned"


def test_no_two_settings_of_a_study_are_the_same(corpus):
    for study, settings in STUDIES.items():
        tasks = imdb.study_tasks(study, settings, corpus, seeds=[0], glove_words=9)
        seen = {repr({k: v for k, v in task.items() if k != "label"}) for task in tasks}
        assert len(seen) == len(tasks), study


def test_published_tables_are_there_and_every_one_has_a_setting():
    study = PUBLISHED["imdb"]
    tables = {name for name in study if isinstance(study[name], dict)} - {"claims"}
    assert set(imdb.PUBLISHED_A) <= set(imdb.STUDY_A)
    assert set(imdb.PUBLISHED_A.values()) == tables
    in_report = {name: table for table, names in report_imdb.STUDY_A.items() for name in names}
    assert in_report == imdb.PUBLISHED_A


def test_settings_are_those_of_the_sources():
    study, glove = PUBLISHED["imdb"], PUBLISHED["imdb_glove"]
    plain = ReviewSpec(**imdb.CORE["lstm/mean"][0])
    assert (plain.embedding_size, plain.hidden_size) == (
        study["embedding_dim"],
        study["hidden_size"],
    )
    assert (TrainSpec().epochs, TrainSpec().batch_size) == (study["epochs"], study["batch_size"])
    assert ReviewSpec(**imdb.MISTAKES["all"][0]).embedding_size == glove["embedding_dim"]
    decays = {imdb.SOURCE_B[name][1]["weight_decay"] for name in imdb.SOURCE_B if "l2/" in name}
    assert decays == set(glove["bilstm_adam_l2"]["lambda"])
    halvings = {s[1]["halve_every"] for n, s in imdb.SOURCE_B.items() if n.startswith("lstm_sgd")}
    assert halvings == set(glove["lstm_sgd"]["halve_every"])
    for name, (_, training) in imdb.SOURCE_B.items():
        kind, _, number = name.rpartition("/")
        if kind in ("l2", "lstm_sgd"):
            value = training["weight_decay" if kind == "l2" else "halve_every"]
            assert float(number) == value, name


def test_each_mistake_is_one_change_and_all_are_the_three():
    def facts(name: str) -> dict:
        model, training = imdb.MISTAKES[name]
        return {**vars(ReviewSpec(**model)), **vars(TrainSpec(**training))}

    def changes(name: str) -> dict:
        return {k: v for k, v in facts(name).items() if v != facts("none")[k]}

    assert changes("softmax") == {"loss": "ce_on_softmax"}
    assert changes("carry") == {"carry": True}
    assert changes("last_step") == {"pooling": "last_step"}
    assert changes("all") == changes("softmax") | changes("carry") | changes("last_step")


def test_padded_settings_change_the_padding_only():
    found = imdb.padded(["none", "all"], 592)
    assert list(found) == ["none, padded", "all, padded"]
    for name, (model, training) in found.items():
        plain = imdb.MISTAKES[name.removesuffix(", padded")]
        assert (model, training) == (plain[0], {**plain[1], "pad_to": 592})
    assert imdb.padded([], 592) == {}


def test_variations_differ_from_the_handwritten_model_in_what_their_name_says():
    base = vars(ReviewSpec(**imdb.CORE["handwritten/mean"][0])) | vars(TrainSpec())
    expected = {
        "last": {"pooling": "last"},
        "hidden128": {"hidden_size": 128},
        "two_cells": {"num_layers": 2},
        "mse": {"loss": "mse"},
        "bce": {"loss": "bce"},
        "bce_on_sigmoid": {"loss": "bce_on_sigmoid"},
        "adamax": {"optimiser": "adamax", "lr": 2e-3},
        "batch128": {"batch_size": 128},
    }
    for name, (model, training) in imdb.VARIATIONS.items():
        facts = vars(ReviewSpec(**model)) | vars(TrainSpec(**training))
        found = {key: value for key, value in facts.items() if value != base[key]}
        assert found == expected[name.removeprefix("handwritten/")]


# tasks


def test_a_settings_own_choice_wins_over_that_of_the_study(corpus):
    settings = {"own": ({"hidden_size": 7}, {"lr": 0.5}), "plain": ({}, {})}
    common = {"model": {"hidden_size": 3, "cell": "gru"}, "training": {"lr": 0.1, "epochs": 2}}
    own, plain = tasks_of(corpus, settings, **common)
    assert (own["model.hidden_size"], own["model.cell"]) == (7, "gru")
    assert (own["training.lr"], own["training.epochs"]) == (0.5, 2)
    assert (plain["model.hidden_size"], plain["training.lr"]) == (3, 0.1)
    assert common["model"] == {"hidden_size": 3, "cell": "gru"}  # given ones are left alone
    assert settings["plain"] == ({}, {})


def test_one_task_for_each_setting_and_seed_in_order(corpus):
    settings = {"one": ({}, {}), "two/b": ({"cell": "gru"}, {})}
    tasks = tasks_of(corpus, settings, seeds=iter([4, 5]), keep=iter(["one"]), curve="held_out")
    assert [imdb.setting_of(task) for task in tasks] == ["x/one", "x/one", "x/two/b", "x/two/b"]
    assert [task["seed"] for task in tasks] == [4, 5, 4, 5]
    assert [task["keep"] for task in tasks] == [True, True, False, False]
    assert {task["curve"] for task in tasks} == {"held_out"}


def test_without_glove_the_vectors_are_learned(corpus):
    settings = {"fixed": ({"vectors": "glove"}, {}), "tuned": ({"vectors": "glove_tuned"}, {})}
    assert {t["model.vectors"] for t in tasks_of(corpus, settings)} == {"learned"}
    given = tasks_of(corpus, settings, glove_words=10)
    assert [t["model.vectors"] for t in given] == ["glove", "glove_tuned"]
    assert {t["glove_words"] for t in given} == {10}


def test_the_dearest_training_comes_first_and_results_in_the_tasks_order(corpus, monkeypatch):
    settings = {
        "small": ({"hidden_size": 4}, {}),
        "none": ({"cell": "none", "pooling": "mean", "hidden_size": 4}, {}),
        "large": ({"hidden_size": 64}, {}),
        "long": ({"hidden_size": 64}, {"epochs": 50}),
        "two ways": ({"hidden_size": 64, "bidirectional": True}, {}),
    }
    queue = []

    def run_tasks(tasks, worker, *, name, modules):
        queue.extend(imdb.setting_of(task) for task in tasks)
        assert (worker, name, modules) == (review_tasks.train_task, "n", review_tasks.MODULES)
        return [{"of": np.array([task["seed"], task["model.hidden_size"]])} for task in tasks]

    monkeypatch.setattr(sweep, "run_tasks", run_tasks)
    runs = imdb.train(tasks_of(corpus, settings, seeds=[3, 1]), "n")
    order = ["x/long", "x/two ways", "x/large", "x/small", "x/none"]
    assert queue == [name for name in order for _ in range(2)]
    assert list(runs) == [f"x/{name}" for name in settings]
    for name, by_seed in runs.items():
        assert list(by_seed) == [3, 1]
        size = settings[name.removeprefix("x/")][0]["hidden_size"]
        assert {s: arrays["of"].tolist() for s, arrays in by_seed.items()} == {
            3: [3, size],
            1: [1, size],
        }


# measures


def runs_of(corpus: Corpus) -> dict:
    """Two seeds that get the first reviews of either label right, 20 and 10 of 25."""
    split = corpus.split()
    y, number = corpus.label[split["test"]], corpus.number[split["test"]]
    by_seed = {}
    for seed, right in ((7, 20), (8, 10)):
        hit = number < right
        p = torch.where(hit == y.bool(), 0.9, 0.1)
        by_seed[seed] = {
            "test_probability": p.numpy(),
            "dev_accuracy": np.array([0.5, 0.8, 0.7]) + seed / 1000,
            "best_epoch": np.array(2),
            "seconds": np.array([1.0, 2.0, 3.0]),
            "train_loss": np.array([0.6, 0.4, 0.2]),
            "train_accuracy": np.array([0.6, 0.8, 0.9]),
            "curve_accuracy": np.array([0.6, 0.7, 0.5]),
        }
    return {"a/lstm": by_seed}


def test_accuracies_are_counted_on_the_test_part_or_its_slice(corpus):
    by_seed = runs_of(corpus)["a/lstm"]
    assert imdb.accuracies(by_seed, corpus) == pytest.approx([0.8, 0.4])
    # of 25 negative ones those from 10 to 11, of the positive ones those from 5 to 6
    assert review_tasks.held_out(corpus).tolist() == [10, 11, 30, 31]
    assert imdb.accuracies(by_seed, corpus, held_out=True) == pytest.approx([1.0, 0.5])


def test_measures_have_their_names_values_and_seeds(corpus):
    found = imdb.measures_of(runs_of(corpus), corpus)
    single = {"test_accuracy", "held_out_accuracy", "dev_accuracy", "best_epoch", "seconds"}
    recorded = ("train_loss", "train_accuracy", "curve_accuracy")
    curves = {f"{curve}/{k}" for curve in recorded for k in (1, 2, 3)}
    assert set(found) == {f"a/lstm/{name}" for name in single | curves}
    values = {
        "test_accuracy": [0.8, 0.4],
        "held_out_accuracy": [1.0, 0.5],
        "dev_accuracy": [0.807, 0.808],
        "best_epoch": [2, 2],
        "seconds": [6, 6],
        "train_loss/2": [0.4, 0.4],
        "curve_accuracy/3": [0.5, 0.5],
    }
    for name, raw in values.items():
        measure = found[f"a/lstm/{name}"]
        assert measure["raw"] == pytest.approx(raw), name
        assert measure["seeds"] == [7, 8]
    assert found["a/lstm/test_accuracy"]["interval"] == "95 % Student t of the mean"
    assert [n for n, m in found.items() if m["timing"]] == ["a/lstm/seconds"]
    assert found["a/lstm/seconds"]["unit"] == "s"


@pytest.mark.parametrize("epochs, kept", [([], set()), ([2], {2}), ([1, 3, 99], {1, 3})])
def test_only_the_epochs_that_were_asked_for_are_noted(corpus, epochs, kept):
    found = imdb.measures_of(runs_of(corpus), corpus, epochs=epochs)
    noted = {int(name.rpartition("/")[2]) for name in found if "train_loss" in name}
    assert noted == kept
    assert "a/lstm/test_accuracy" in found


# long texts


def test_kernels_keep_freed_memory_whatever_their_threads():
    for threads in (1, 2):
        found = environment.kernel_environment(threads)
        assert environment.MALLOC.items() <= found.items()
    assert set(environment.MALLOC) == {
        "MALLOC_MMAP_THRESHOLD_",  # glibc reads the names with an underscore at their end
        "MALLOC_TRIM_THRESHOLD_",
        "MALLOC_TOP_PAD_",
    }
    sizes = {name: int(value) for name, value in environment.MALLOC.items()}
    assert sizes["MALLOC_MMAP_THRESHOLD_"] <= 32 * 2**20  # glibc ignores a larger one
    assert all(size > 2**20 for size in sizes.values())


@pytest.mark.parametrize("given", [None, "glibc.malloc.check=1"])
def test_trainings_start_with_huge_pages_unless_glibc_was_told_otherwise(monkeypatch, given):
    (name,) = review_speed.HUGE_PAGES
    monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(name, given)
    seen = []
    monkeypatch.setattr(
        imdb.sweep, "run_tasks", lambda *_, **__: seen.append(os.environ.get(name)) or []
    )
    imdb.train([], "nothing")
    assert seen == [given or review_speed.HUGE_PAGES[name]]
    assert os.environ.get(name) == given
