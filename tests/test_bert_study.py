"""Chapter 05's settings, its rivals, the published figures beside it, and its plots."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch

from labkit.bert import figures, study
from labkit.bert.model import POOLINGS
from labkit.bert.training import Reading
from labkit.film import SIZES
from labkit.film.corpus import Corpus, load
from labkit.film.training import draw, held_out
from labkit.lab import machine, settings
from labkit.lab.notebooks import read_notebook
from labkit.measure.claims import MISSING
from labkit.measure.statistics import summarise

PUBLISHED = tomllib.loads((machine.DATA / "published.toml").read_text("utf-8"))
SOURCE = PUBLISHED["bert"]["settings"]
CHAPTER = "05_bert_finetuning"
READING = Reading(corpus="generated", model="tiny", digest="0" * 64, max_len=16, num_dev=10)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load("generated", 2_001)


def resolved(profile: str, *given: str) -> dict:
    cells = read_notebook(machine.NOTEBOOKS / f"{CHAPTER}.ipynb").cells
    return settings.resolve(CHAPTER, cells, profile, given)


@pytest.mark.parametrize(
    "given, message",
    [
        ("sizes=[100, 401, 1_200]", "sizes.1.*multiple of 2"),
        ("sizes=[100, 400, 1_800]", "sizes must rise, and end at 1,600 at most"),
        ("pooling_size=200", "main_size must be one of the sizes, pooling_size too, or 0"),
        ("tuned_epochs=[4, 4]", "tuned_epochs must have 3 entries, one for each size"),
        ("recurrent_seeds=[1, 1, 0]", "must not be 0 at main_size"),
        ("num_dev=402", "num_dev must be at most 400"),
        ("model_name=bert-large", "model_name must be a folder or one of tiny"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, message):
    with pytest.raises(settings.SettingsError, match=message):
        resolved("quick", given)


def test_the_full_profile_has_five_seeds_and_the_sources_lengths_and_epochs():
    full = resolved("full")
    assert {*full["tuned_seeds"], *full["recurrent_seeds"], full["random_seeds"]} == {5}
    assert full["source_max_len"] == PUBLISHED["bert"]["max_len"] == 257
    assert (full["source_epochs"], full["source_batch"]) == (15, 8)
    assert full["source_settings"] == list(SOURCE)


def test_the_sizes_allowed_are_those_of_the_corpus(corpus):
    split = corpus.split()
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


def test_linear_rivals_get_the_reviews_that_the_networks_get(corpus, monkeypatch):
    asked = []

    def logistic_regression(given, kind, *, train, dev, test, max_len):
        assert (kind, max_len) == ("tfidf_pairs", 500)
        asked.append(train.tolist())
        assert torch.equal(dev, draw(corpus, split["dev"], 10, 0))
        assert torch.equal(test, held_out(corpus))
        return {"test_accuracy": 0.5}

    monkeypatch.setattr(study, "logistic_regression", logistic_regression)
    split = corpus.split()
    probes = study.linear_runs(corpus, READING, [10, 1_600], [7, 8])
    assert {size: list(by_seed) for size, by_seed in probes.items()} == {"10": [7, 8], "1600": [7]}
    drawn = [draw(corpus, split["train"], 10, seed).tolist() for seed in (7, 8)]
    assert asked == [*drawn, split["train"].tolist()]


def test_a_linear_head_is_fitted_for_every_pooling_size_and_draw(corpus, monkeypatch):
    """Vectors in which the mean tells the label, and nothing else does."""
    asked, rng, N = [], np.random.default_rng(0), len(corpus.label)

    def frozen_vectors(reading, seeds):
        asked.append((reading.num_train, seeds))
        vectors = {pooling: rng.normal(size=(N, 3)) for pooling in POOLINGS}
        vectors["mean"][:, 0] = 4 * corpus.label.numpy() - 2
        return {"index": np.arange(N), **vectors, "seconds": np.array(10.0)}

    monkeypatch.setattr(study, "frozen_vectors", frozen_vectors)
    probes, seconds = study.frozen_runs(corpus, READING, [20, 1_600], [0, 1])
    assert asked == [(1_600, [0, 1])]  # the largest draw holds the others
    assert seconds == pytest.approx(10 / N)  # for a review
    assert [*probes] == [f"{pooling}/{size}" for size in (20, 1_600) for pooling in POOLINGS]
    assert [list(probes[f"mean/{size}"]) for size in (20, 1_600)] == [[0, 1], [0]]
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
    y["train"] = rng.integers(0, 2, 200) | y["train"]  # noise makes a strong penalty better
    best, by_strength = study.linear_probe(X, y), []
    for C in study.STRENGTHS:
        monkeypatch.setattr(study, "STRENGTHS", (C,))
        by_strength.append(study.linear_probe(X, y)["dev_accuracy"])
    assert best["dev_accuracy"] == max(by_strength) > min(by_strength)


def summary(*values: float) -> dict:
    return summarise(list(values), student=True)


def all_measures(*values: float) -> dict:
    """The same summary for everything that the rows ask for in the profile `full`."""
    names = [f"source/{name}/held_out_accuracy" for name in SOURCE]
    names += ["tuned/2000/held_out_accuracy", "tuned/20000/test_accuracy"]
    return dict.fromkeys(names, summary(*values))


def rows(measures: dict, **changes) -> dict[str, study.Row]:
    """The rows of the profile `full` by their names."""
    groups = study.rows(measures, resolved("full") | changes, PUBLISHED)
    return {row.what: row for group in groups.values() for row in group}


def test_every_published_figure_has_its_row():
    by_name = rows(all_measures(0.9, 0.901, 0.902, 0.9, 0.901))
    values = {}
    for run in PUBLISHED["bert"]["runs"]:
        for rate in ("1e-05", "0.001", "5e-05") if run["id"] == 1 else ("",):
            what = f"run {run['id']}{', rate ' * bool(rate)}{rate}"
            values[what] = repr(run["test_accuracy"])
    values["held-out slice, fine-tuned (ours on 2,000 reviews)"] = "0.9055"
    values["bentrevett bert base (ours on 20,000 reviews)"] = "0.933"
    values["llms from scratch bert base (ours on 20,000 reviews)"] = "0.9089"
    assert {what: row.published for what, row in by_name.items()} == values
    verdicts = [by_name[name].verdict for name in ("run 5", "run 2", list(values)[-2])]
    assert verdicts == ["as one more seed", "ours better", "ours worse"]


def test_another_model_is_named_and_never_judged():
    by_name = rows(
        all_measures(0.9, 0.901, 0.902), model_name="sentence-transformers/all-MiniLM-L6-v2"
    )
    for row in by_name.values():
        assert row.ours.startswith("all-MiniLM-L6-v2 0.901")
        assert row.verdict == study.ANOTHER
    named = rows(all_measures(0.9, 0.901, 0.902), model_name="/models/bert-base-uncased/")
    assert study.ANOTHER not in {row.verdict for row in named.values()}


def test_what_a_profile_leaves_out_has_no_result_yet():
    measures = {
        "source/2/held_out_accuracy": summary(0.6),
        "tuned/2000/held_out_accuracy": summary(0.8),
        "all_reviews/fine-tuned/all_accuracy": summary(0.87),
    }
    by_name = rows(measures, test="held_out", source_settings=["2"])
    left_out = [row.what for row in by_name.values() if row.verdict == MISSING]
    assert len(left_out) == len(by_name) - 4 == 6  # the slice, two peers and run 2 have results
    assert by_name["bentrevett bert base (ours on 2,000 reviews)"].ours == "0.870, n = 1"


def make_all(shift: float = 0.0) -> dict:
    curves = {
        "fine-tuned": {200: summary(0.6 + shift), 2000: summary(0.8, 0.82, 0.85)},
        "linear": {200: summary(0.7, 0.71, 0.75), 2000: summary(0.8)},
    }
    return {"learning_curve": lambda: figures.size_plot(curves, 80, 500)}


@pytest.mark.parametrize("name", make_all())
def test_figures_have_a_name_a_text_labels_and_stable_data(name, check_figure):
    check_figure(name, make_all()[name], make_all(0.05)[name])


def test_the_learning_curve_holds_every_seed_the_intervals_of_three_and_what_was_read():
    curves = {"linear": {200: summary(0.3), 500: summary(0.3, 0.9), 2000: summary(0.8, 0.82, 0.85)}}
    fig = figures.size_plot(curves, 80, 500)
    ax = fig.axes[0]
    assert len(ax.collections) == 1
    assert ax.get_ylim()[0] < 0.3
    assert [label.get_text() for label in ax.get_xticklabels()] == ["200", "500", "2,000"]
    assert "80 word pieces of a review, recurrent and linear 500 words" in fig.labkit_alt
