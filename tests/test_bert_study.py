"""Chapter 05's settings, its rivals, what is measured, and the published figures beside it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch

from labkit.bert import study
from labkit.bert.model import POOLINGS
from labkit.bert.training import Reading
from labkit.film import SIZES
from labkit.film.corpus import Corpus, load
from labkit.film.studies import held_out_probability, measures_of
from labkit.film.training import draw, held_out
from labkit.lab import machine, settings
from labkit.lab.notebooks import read_notebook
from labkit.measure.claims import MISSING
from labkit.measure.statistics import summarise

PUBLISHED = tomllib.loads((machine.DATA / "published.toml").read_text("utf-8"))
SOURCE = PUBLISHED["bert"]["settings"]
CHAPTER = "05_bert_finetuning"
BASE, MINILM = "google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def corpus() -> Corpus:
    """100 training and 100 test reviews of two words, half of either label."""
    n = 200
    label = torch.tensor([0, 1, 0, 1]).repeat_interleave(50)
    return Corpus(
        tokens=torch.full((2 * n,), 2, dtype=torch.int32),
        offsets=torch.arange(0, 2 * n + 1, 2),
        label=label,
        rating=torch.where(label.bool(), 9, 2),
        number=torch.arange(n) % 50,
        is_test=torch.arange(n) < 100,
        words=("<unk>", "<pad>", "film"),
        digest="0" * 64,
    )


READING = Reading(corpus="generated", model="tiny", digest="0" * 64, max_len=16, num_dev=10)


# settings


def resolved(profile: str, *given: str) -> dict:
    cells = read_notebook(machine.NOTEBOOKS / f"{CHAPTER}.ipynb").cells
    return settings.resolve(CHAPTER, cells, profile, given)


@pytest.mark.parametrize("profile", ["quick", "cpu", "full"])
def test_every_profile_is_one_that_can_run(profile):
    values = resolved(profile)
    assert values["main_size"] in values["sizes"]
    assert set(values["source_settings"]) <= set(SOURCE)


@pytest.mark.parametrize(
    "given, message",
    [
        ("sizes=[100, 401, 1_200]", "sizes.1.*multiple of 2"),
        ("sizes=[100, 400, 1_800]", "sizes must rise, and end at 1,600 at most"),
        ("main_size=200", "main_size must be one of the sizes"),
        ("pooling_size=200", "main_size must be one of the sizes, pooling_size too, or 0"),
        ("tuned_epochs=[4, 4]", "tuned_epochs must have 3 entries, one for each size"),
        ("recurrent_seeds=[1, 1, 0]", "must not be 0 at main_size"),
        ("num_dev=402", "num_dev must be at most 400"),
        ("model_name=bert-large", "model_name must be a folder or one of tiny"),
        ("max_len=2", "max_len"),
        ("head_lr=nan", "head_lr"),
        ("seed=-1", "seed"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, message):
    with pytest.raises(settings.SettingsError, match=message):
        resolved("quick", given)


def test_the_sizes_allowed_are_those_of_the_corpus():
    split = load("generated", 2_001).split()
    assert (len(split["train"]), len(split["dev"])) == SIZES["generated"]


def test_the_sources_settings_are_the_published_ones():
    text = {str(run["id"]): run["setting"] for run in PUBLISHED["bert"]["runs"]}
    assert {name[0] for name in SOURCE} == set(text)
    for name, setting in SOURCE.items():
        model, training = study.source_setting(setting, epochs=15)
        assert (model.pooling, model.head_size > 0) == ("last_position", True)
        assert model.dropout == setting["dropout"]
        assert training.lr == training.head_lr == setting["lr"]
        assert (training.warmup, training.weight_decay, training.clip) == (0, 0, 0)
        assert training.schedule == ("halve" if "halved every 5" in text[name[0]] else "constant")
        if name[0] != "3":  # "as 2"
            assert f"{setting['reviews']} reviews" in text[name[0]]
        assert f"dropout {model.dropout}" in text[name[0]] or name[0] in "124"
        if name[0] in "12":
            assert f"{training.lr:.0e}".replace("e-0", "e-") in text[name[0]]


# rivals


def test_linear_rivals_get_the_reviews_that_the_networks_get(corpus, monkeypatch):
    asked = []

    def logistic_regression(given, kind, *, train, dev, test, max_len):
        assert (given, kind, max_len) == (corpus, "tfidf_pairs", 500)
        asked.append((train.tolist(), dev.tolist(), test.tolist()))
        return {"test_accuracy": 0.5}

    monkeypatch.setattr(study, "logistic_regression", logistic_regression)
    probes = study.linear_runs(corpus, READING, [10, 80], [7, 8])
    assert {size: list(by_seed) for size, by_seed in probes.items()} == {"10": [7, 8], "80": [7]}
    split = corpus.split()
    drawn = [draw(corpus, split["train"], 10, seed).tolist() for seed in (7, 8)]
    assert [train for train, _, _ in asked] == [*drawn, split["train"].tolist()]
    dev = draw(corpus, split["dev"], 10, 0).tolist()
    assert all(row[1:] == (dev, held_out(corpus).tolist()) for row in asked)
    assert all(fit["seconds"] >= 0 for by_seed in probes.values() for fit in by_seed.values())


def test_a_linear_head_is_fitted_for_every_pooling_size_and_draw(corpus, monkeypatch):
    """Vectors in which the mean tells the label, and nothing else does."""
    asked, rng = [], np.random.default_rng(0)

    def frozen_vectors(reading, seeds):
        asked.append((reading.num_train, seeds))
        vectors = {pooling: rng.normal(size=(len(corpus), 3)) for pooling in POOLINGS}
        vectors["mean"][:, 0] = 4 * corpus.label.numpy() - 2
        return {"index": np.arange(len(corpus)), **vectors, "seconds": np.array(10.0)}

    monkeypatch.setattr(study, "frozen_vectors", frozen_vectors)
    probes, seconds = study.frozen_runs(corpus, READING, [20, 80], [0, 1])
    assert asked == [(80, [0, 1])]  # the largest draw holds the others
    assert seconds == pytest.approx(10 / 200)  # for a review
    seeds = {"20": [0, 1], "80": [0]}
    assert {name: list(by_seed) for name, by_seed in probes.items()} == {
        f"{pooling}/{size}": seeds[size] for size in seeds for pooling in POOLINGS
    }
    assert probes["mean/20"][0]["test_accuracy"] == 1.0
    assert probes["cls/20"][0]["test_accuracy"] < 0.95
    measures = study.probe_measures("frozen", probes)
    assert measures["frozen/mean/20/held_out_accuracy"]["raw"] == [1.0, 1.0]
    fewer, _ = study.frozen_runs(corpus, replace(READING, test="none"), [10], [0])
    assert list(fewer["mean/10"][0]) == ["dev_accuracy"]  # nothing else was read


def test_a_linear_probe_chooses_by_dev(monkeypatch):
    rng = np.random.default_rng(0)
    y = {name: np.arange(200) % 2 for name in ("train", "dev", "test")}
    X = {n: rng.normal(size=(200, 8)) + np.outer(v - 0.5, [2] + [0] * 7) for n, v in y.items()}
    assert study.linear_probe(X, y)["test_accuracy"] > 0.8
    y["train"] = rng.integers(0, 2, 200) | y["train"]  # noise makes a strong penalty better
    best, by_strength = study.linear_probe(X, y), []
    for C in study.STRENGTHS:
        monkeypatch.setattr(study, "STRENGTHS", (C,))
        by_strength.append(study.linear_probe(X, y)["dev_accuracy"])
    assert best["dev_accuracy"] == max(by_strength) > min(by_strength)


# measures


def test_a_training_may_have_answered_the_held_out_reviews_alone(corpus):
    test, slice_ = corpus.split()["test"], held_out(corpus)
    row = {"dev_accuracy": np.array([0.5, 0.8]), "best_epoch": np.array([2]),
           "seconds": np.array([1.0, 2.0]), "curve_accuracy": np.array([0.6, 0.7])}  # fmt: skip
    some, every = (
        row | {"test_probability": torch.where(corpus.number[index] < 22, 0.9, 0.1).numpy()}
        for index in (slice_, test)
    )
    assert held_out_probability(every, corpus).tolist() == some["test_probability"].tolist()
    runs = {"a": {7: every}, "b": {7: every, 8: some}}
    measures = measures_of(runs, corpus, epochs=[2, 5], curves=["curve_accuracy"])
    assert measures["b/held_out_accuracy"]["raw"] == measures["a/held_out_accuracy"]["raw"] * 2
    names = {"held_out_accuracy", "dev_accuracy", "best_epoch", "seconds", "curve_accuracy/2"}
    expected = {f"a/{name}" for name in names | {"test_accuracy"}} | {f"b/{name}" for name in names}
    assert measures.keys() == expected


# the published figures


def all_measures(*values: float) -> dict:
    """The same summary for everything that the rows ask for in the profile `full`."""
    summary = summarise(list(values), student=True)
    names = [f"source/{name}/held_out_accuracy" for name in SOURCE]
    names += [f"source/{name}/curve_accuracy/{k}" for name in ("4", "5") for k in (5, 10)]
    names += ["tuned/2000/held_out_accuracy", "tuned/20000/test_accuracy"]
    return dict.fromkeys(names, summary)


def rows(measures: dict, profile: str = "full", **changes) -> dict[str, study.Row]:
    """The rows by their names."""
    groups = study.rows(measures, resolved(profile) | changes, PUBLISHED)
    return {row.what: row for group in groups.values() for row in group}


def test_every_published_figure_has_its_row():
    by_name = rows(all_measures(0.9, 0.901, 0.902))
    figures = {}
    for run in PUBLISHED["bert"]["runs"]:
        rates = ("1e-05", "0.001", "5e-05") if run["id"] == 1 else ("",)
        for rate in rates:
            what = f"run {run['id']}{', rate ' * bool(rate)}{rate}"
            for key in [key for key in run if key.startswith("test_accuracy")]:
                epoch = key.removeprefix("test_accuracy").replace("_epoch_", ", epoch ")
                figures[what + epoch] = repr(run[key])
    figures["held-out slice, fine-tuned (ours on 2,000 reviews)"] = "0.9055"
    figures["bentrevett bert base (ours on 20,000 reviews)"] = "0.933"
    figures["llms from scratch bert base (ours on 20,000 reviews)"] = "0.9089"
    assert {what: row.published for what, row in by_name.items()} == figures
    assert by_name["run 5"].verdict == "as one more seed"
    assert by_name["run 2"].verdict == "ours better"
    assert by_name["bentrevett bert base (ours on 20,000 reviews)"].verdict == "ours worse"


@pytest.mark.parametrize("name", all_measures(0.9))
def test_a_missing_measure_is_an_error(name):
    measures = all_measures(0.9, 0.901, 0.902)
    del measures[name]
    with pytest.raises(KeyError, match=name):
        rows(measures)


def test_another_model_is_named_and_never_judged():
    by_name = rows(all_measures(0.9, 0.901, 0.902), model_name=MINILM)
    for row in by_name.values():
        assert row.ours.startswith("all-MiniLM-L6-v2 0.901")
        assert row.verdict == study.ANOTHER
        assert row.reason.startswith("ours is all-MiniLM-L6-v2, not bert-base-uncased: `make")
    named = rows(all_measures(0.9, 0.901, 0.902), model_name="/models/bert-base-uncased/")
    assert study.ANOTHER not in {row.verdict for row in named.values()}


def test_what_a_profile_leaves_out_has_no_result_yet():
    """A short run without epoch 5, with two settings, and one network that answered all reviews."""
    measures = {
        "source/2/held_out_accuracy": summarise([0.6], student=True),
        "tuned/2000/held_out_accuracy": summarise([0.8], student=True),
        "all_reviews/fine-tuned/all_accuracy": summarise([0.87]),
    }
    by_name = rows(measures, test="held_out", source_settings=["2"])
    left_out = {what for what, row in by_name.items() if row.verdict == MISSING}
    assert left_out == {
        "run 1, rate 1e-05", "run 1, rate 0.001", "run 1, rate 5e-05", "run 3", "run 4", "run 5",
        "run 4, epoch 5", "run 4, epoch 10", "run 5, epoch 5", "run 5, epoch 10",
    }  # fmt: skip
    assert by_name["bentrevett bert base (ours on 2,000 reviews)"].ours == "0.870, n = 1"


def test_the_committed_record_still_gives_its_rows():
    """Of another model: every figure has a row, none a verdict."""
    path = machine.RESULTS / "cpu" / CHAPTER / "record.json"
    record = json.loads(path.read_text("utf-8"))
    groups = study.rows(record["measures"], record["settings"], PUBLISHED)
    assert [len(group) for group in groups.values()] == [11, 3]
    verdicts = [row.verdict for group in groups.values() for row in group]
    assert verdicts.count(MISSING) == 4  # the epochs of runs 4 and 5
    assert verdicts.count(study.ANOTHER) == 10
