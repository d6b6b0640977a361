"""The sources' settings, the rivals that take no steps, and the published figures beside ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from labkit.bert.model import POOLINGS, ClassifierSpec
from labkit.bert.training import FineTuning, Reading, frozen_vectors
from labkit.film.corpus import Corpus
from labkit.film.studies import logistic_regression
from labkit.lab import machine
from labkit.measure.claims import MISSING, Row, number_row
from labkit.measure.statistics import Measure, summarise

MAX_WORDS = 500  # that the recurrent and the linear rivals read
Probes = dict[str, dict[int, dict[str, Any]]]  # what was fitted, by name and seed
STRENGTHS = (0.0003, 0.003, 0.03, 0.3, 3.0)  # C, the inverse of the L2 penalty's weight


def source_setting(setting: dict, **training: Any) -> tuple[ClassifierSpec, FineTuning]:
    """The model and the training of one of the sources' settings, as data/published.toml has it.

    The sources do not give the size of the head's hidden layer, and mention no decay or clipping.
    """
    plain = {"warmup": 0.0, "weight_decay": 0.0, "clip": 0.0, "schedule": setting["schedule"]}
    model = ClassifierSpec(pooling="last_position", head_size=64, dropout=setting["dropout"])
    return model, FineTuning(lr=setting["lr"], head_lr=setting["lr"], **plain, **training)


def linear_runs(corpus: Corpus, reading: Reading, sizes: list[int], seeds: list[int]) -> Probes:
    """Chapter 04's logistic regression, and its "seconds", on the reviews that the others get."""
    probes: Probes = {}
    for size, seed, index in _draws(corpus, reading, sizes, seeds):
        began = time.perf_counter()
        fitted = logistic_regression(corpus, "tfidf_pairs", **index, max_len=MAX_WORDS)
        fitted["seconds"] = time.perf_counter() - began
        probes.setdefault(f"{size}", {})[seed] = fitted
    return probes


def frozen_runs(
    corpus: Corpus, reading: Reading, sizes: list[int], seeds: list[int], **how: str
) -> tuple[Probes, float]:
    """A linear head on the frozen encoder's vectors, by "<pooling>/<number of reviews>".

    Also returns the seconds that one review's vectors took. `how` is device and precision.
    """
    vectors = frozen_vectors(replace(reading, num_train=max(sizes)), seeds, **how)
    probes: Probes = {}
    for size, seed, index in _draws(corpus, reading, sizes, seeds):
        places = {n: np.searchsorted(vectors["index"], of.numpy()) for n, of in index.items()}
        y = {name: corpus.label[of].numpy() for name, of in index.items()}
        for pooling in POOLINGS:
            X = {name: vectors[pooling][place] for name, place in places.items()}
            probes.setdefault(f"{pooling}/{size}", {})[seed] = linear_probe(X, y)
    return probes, vectors["seconds"].item() / len(vectors["index"])


def linear_probe(X: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> dict[str, float]:
    """Logistic regression on standardised vectors, its strength chosen by dev accuracy.

    X (n, H) and y (n,) hold "train", "dev" and "test", which may be empty; returns "dev_accuracy"
    and "test_accuracy".
    """
    models = [LogisticRegression(C=C, max_iter=1_000) for C in STRENGTHS]
    fits = [joblib.delayed(make_pipeline(StandardScaler(), m).fit) for m in models]
    side_by_side = joblib.Parallel(machine.find_road("small").workers, prefer="threads")
    fitted = side_by_side(fit(X["train"], y["train"]) for fit in fits)
    best = max(fitted, key=lambda model: model.score(X["dev"], y["dev"]))
    scored = [name for name in ("dev", "test") if len(y[name])]
    return {f"{name}_accuracy": float(best.score(X[name], y[name])) for name in scored}


def _draws(corpus: Corpus, reading: Reading, sizes: list[int], seeds: list[int]) -> Iterator:
    """A number of reviews, a seed, and `Reading.draw`; of all reviews there is one draw."""
    for size in sizes:
        for seed in seeds if size < len(corpus.split()["train"]) else seeds[:1]:
            yield size, seed, replace(reading, num_train=size).draw(corpus, seed)


def probe_measures(prefix: str, probes: Probes) -> dict[str, Measure]:
    """Summaries "<prefix>/<name>/held_out_accuracy" and ".../dev_accuracy" over the seeds."""
    measures = {}
    for name, by_seed in probes.items():
        for key, quantity in (("test", "held_out"), ("dev", "dev")):
            raw = [fitted[f"{key}_accuracy"] for fitted in by_seed.values()]
            summary = summarise(raw, seeds=list(by_seed), student=True)
            measures[f"{prefix}/{name}/{quantity}_accuracy"] = summary
    return measures


# the published figures

BASE = "bert-base-uncased"  # the model of every one of them
FILLS = "`make reproduce CHAPTERS=05 PROFILE=full` fills it"
ANOTHER = "another model"


def about(published: dict) -> str:
    """What the published figures were measured on."""
    return (
        f"Published: {BASE}, at most {published['bert']['max_len']} words, the vector of the last "
        "position, one training each, after 15 epochs. Ours: the sources' slice of 2,000 test "
        "reviews, all of them beside the peers; after the epoch that dev chose. A row of another "
        "model has no verdict."
    )


def rows(measures: dict, settings: dict, published: dict) -> dict[str, list[Row]]:
    """The published figures beside ours: the sources' five settings, the held-out reviews, peers.

    A row of another model than the published one has no verdict; what the settings leave out has
    no result yet.
    """
    model = Path(settings["model_name"]).name
    size, largest = settings["main_size"], settings["sizes"][-1]

    def row(what: str, value: float, name: str, is_run: bool = True) -> Row:
        if not is_run:
            return Row(what, repr(value), "–", MISSING, f"not part of this profile; {FILLS}")
        ours = number_row(what, value, measures, name, higher_is_better=True)
        if model == BASE:
            return ours
        reason = f"ours is {model}, not {BASE}: {FILLS}"
        return replace(ours, ours=f"{model} {ours.ours}", verdict=ANOTHER, reason=reason)

    source, by_id = [], {str(run["id"]): run for run in published["bert"]["runs"]}
    for name in published["bert"]["settings"]:
        number, _, rate = name.partition("/")
        what, is_run = f"run {number}", name in settings["source_settings"]
        what += f", rate {rate}" if rate else ""
        measure = f"source/{name}/held_out_accuracy"
        source.append(row(what, by_id[number]["test_accuracy"], measure, is_run))

    value, name = published["bert"]["held_out"]["bert_accuracy"], f"tuned/{size}/held_out_accuracy"
    best = [row(f"held-out slice, fine-tuned (ours on {size:,} reviews)", value, name)]
    name = "all_reviews/fine-tuned/all_accuracy"  # of one training
    if settings["tuned_seeds"][-1] and settings["test"] == "all":
        name, size = f"tuned/{largest}/test_accuracy", largest
    for peer, value in published["peers"].items():
        if "_bert_" in peer:
            what = peer.removesuffix("_test_accuracy").replace("_", " ")
            best.append(row(f"{what} (ours on {size:,} reviews)", value, name))
    cut = f"{model}, {settings['source_epochs']} epochs, {settings['source_max_len']} word pieces"
    return {
        f"BERT, the sources' five settings (ours: {cut})": source,
        "BERT, held-out reviews and peers": best,
    }
