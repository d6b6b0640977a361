"""Fine-tuned BERT and its rivals: the settings, what is measured, the published figures beside.

The sources tried five settings of one recipe; beside them stand a sound recipe and the rivals that
get the same reviews: the encoder kept frozen, the same architecture from a random start, chapter
04's recurrent network, and logistic regression.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from labkit.bert.model import POOLINGS, ClassifierSpec
from labkit.bert.training import SHARES, FineTuning, FrozenVectors, Reading
from labkit.film.corpus import Corpus
from labkit.film.studies import logistic_regression
from labkit.lab import store
from labkit.measure.claims import MISSING, Row, number_row
from labkit.measure.statistics import Measure, summarise

Probes = dict[int, dict[int, dict[str, Any]]]  # by the number of reviews, then by seed

# The sources' settings: learning rate, dropout, training reviews. They do not say the rate that
# setting 5 begins with; that of 4 is inferred, and so are the head's size, the batch and no decay.
SOURCE = {
    "1/1e-05": (1e-5, 0.0, 200),
    "1/0.001": (1e-3, 0.0, 200),
    "1/5e-05": (5e-5, 0.0, 200),
    "2": (1e-6, 0.0, 200),
    "3": (1e-6, 0.3, 200),
    "4": (1e-6, 0.3, 2_000),
    "5": (1e-6, 0.5, 2_000),
}
MAX_WORDS = 500  # that the recurrent and the linear rivals read
STRENGTHS = (0.0003, 0.003, 0.03, 0.3, 3.0)  # C, the inverse of the L2 penalty's weight


def source_setting(name: str, **training: Any) -> tuple[ClassifierSpec, FineTuning]:
    """The model and the training of one of `SOURCE`: the last of a fixed number of positions,
    mostly padding; a head with one hidden layer; a constant rate, or one that is halved."""
    lr, dropout, _ = SOURCE[name]
    schedule = "halve" if name == "5" else "constant"
    plain = {"warmup": 0.0, "weight_decay": 0.0, "clip": 0.0, "fixed": True}
    return (
        ClassifierSpec(pooling="last_position", head_size=64, dropout=dropout),
        FineTuning(lr=lr, head_lr=lr, schedule=schedule, **plain, **training),
    )


# rivals without steps


def linear_runs(
    corpus: Corpus, reading: Reading, sizes: Sequence[int], seeds: Sequence[int]
) -> Probes:
    """Chapter 04's logistic regression on words and pairs, on the reviews that the others get.

    By number of reviews and seed, what `logistic_regression` returns, and "seconds".
    """
    probes: Probes = {}
    for size, seed, index in _draws(corpus, reading, sizes, seeds):
        began = time.perf_counter()
        fitted = logistic_regression(corpus, "tfidf_pairs", **index, max_len=MAX_WORDS)
        probes.setdefault(size, {})[seed] = fitted | {"seconds": time.perf_counter() - began}
    return probes


def frozen_runs(
    corpus: Corpus, reading: Reading, sizes: Sequence[int], seeds: Sequence[int], **common: Any
) -> tuple[dict[str, Probes], float]:
    """A linear head on the frozen encoder's vectors: by pooling, number of reviews and seed.

    The vectors are computed once, by two processes; also returns the seconds that one review's
    took. `common` goes to `FrozenVectors`.
    """
    largest = reading.with_train(max(sizes), corpus)
    tasks = [
        FrozenVectors(reading=largest, seeds=seeds, share=share, **common)
        for share in range(SHARES)
    ]
    parts = store.train(tasks, name="frozen vectors")
    known = np.concatenate([arrays["index"] for arrays in parts])
    vectors = {name: np.concatenate([arrays[name] for arrays in parts]) for name in POOLINGS}
    order = known.argsort()
    probes: dict[str, Probes] = {pooling: {} for pooling in POOLINGS}
    for size, seed, index in _draws(corpus, reading, sizes, seeds):
        rows = {name: order[np.searchsorted(known[order], i.numpy())] for name, i in index.items()}
        y = {name: corpus.label[i].numpy() for name, i in index.items()}
        for pooling in POOLINGS:
            X = {name: vectors[pooling][of_part] for name, of_part in rows.items()}
            probes[pooling].setdefault(size, {})[seed] = linear_probe(X, y)
    return probes, sum(arrays["seconds"].item() for arrays in parts) / len(known)


def linear_probe(X: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Logistic regression on standardised vectors, its strength chosen by dev accuracy.

    X (n, H) and y (n,) hold "train", "dev" and "test", which may be empty; returns "dev_accuracy"
    and "test_accuracy".
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1_000)) for C in STRENGTHS
    ]
    fitted = [model.fit(X["train"], y["train"]) for model in models]
    best = max(fitted, key=lambda model: model.score(X["dev"], y["dev"]))
    scored = [name for name in ("dev", "test") if len(y[name])]
    return {f"{name}_accuracy": float(best.score(X[name], y[name])) for name in scored}


def _draws(
    corpus: Corpus, reading: Reading, sizes: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """A number of reviews, a seed, and the indices drawn; of all reviews there is one draw."""
    for size in sizes:
        sized = reading.with_train(size, corpus)
        for seed in seeds if sized.num_train else seeds[:1]:
            yield size, seed, sized.draw(corpus, seed)


# measures


def probe_measures(name: str, probes: Probes) -> dict[str, Measure]:
    """Summaries "<name>/<size>/held_out_accuracy" and ".../dev_accuracy" over the seeds."""
    measures = {}
    for size, by_seed in probes.items():
        for key, quantity in (("test", "held_out"), ("dev", "dev")):
            raw = [fitted[f"{key}_accuracy"] for fitted in by_seed.values()]
            summary = summarise(raw, seeds=list(by_seed), student=True)
            measures[f"{name}/{size}/{quantity}_accuracy"] = summary
    return measures


# the published figures

BASE = "bert-base-uncased"  # the model of every one of them
FILLS = "`make reproduce CHAPTERS=05 PROFILE=full` fills it"
ANOTHER = "another model"
PEERS = ("bentrevett_bert_base_test_accuracy", "llms_from_scratch_bert_base_test_accuracy")


def short_name(model: str) -> str:
    """A model for a reader: the last part of its name at the hub, or of its folder."""
    return model.rstrip("/").rpartition("/")[2]


def about(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on."""
    return (
        f"Published: {BASE}, at most {published['bert']['max_len']} words, the vector of the last "
        "position, 15 epochs, one training each; where no epoch is named, after the last. Ours are "
        "over the sources' slice of 2,000 test reviews, beside the peers over all test reviews; "
        "where no epoch is named at the one that dev chose; the heading says with which model, and "
        "how far ours was cut down. A row of another model has no verdict."
    )


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The published figures beside ours: the sources' five settings, the held-out reviews, peers.

    A row of another model than the published one has no verdict; what the settings leave out has
    no result yet.
    """
    model = short_name(settings["model_name"])

    def row(what: str, value: float, name: str, is_run: bool = True, note: str = "") -> Row:
        if not is_run:
            return Row(what, repr(value), "–", MISSING, f"not part of this profile; {FILLS}")
        found = number_row(what, value, measures, name, higher_is_better=True)
        if model == BASE:
            return replace(found, reason=found.reason + note)
        reason = f"ours is {model}, not {BASE}: {FILLS}{note}"
        return replace(found, ours=f"{model} {found.ours}", verdict=ANOTHER, reason=reason)

    source = []
    for run, name in itertools.product(published["bert"]["runs"], SOURCE):
        number, _, rate = name.partition("/")
        if number == str(run["id"]):
            what = f"run {number}" + (f", rate {rate}" if rate else "")
            is_run = name in settings["source_settings"]
            curve = settings["source_epochs"] if is_run and settings["test"] == "all" else 0
            for epoch in (5, 10):
                if value := run.get(f"test_accuracy_epoch_{epoch}"):
                    measure = f"source/{name}/curve_accuracy/{epoch}"
                    source.append(row(f"{what}, epoch {epoch}", value, measure, epoch <= curve))
            source.append(
                row(what, run["test_accuracy"], f"source/{name}/held_out_accuracy", is_run)
            )

    size, largest = settings["main_size"], settings["sizes"][-1]
    value, note = published["bert"]["held_out"]["bert_accuracy"], f"; ours after {size:,} reviews"
    name = f"tuned/{size}/held_out_accuracy"
    best = [row("held-out slice, fine-tuned", value, name, note=note)]
    name = "all_reviews/fine-tuned/all_accuracy"  # of one training on `main_size` reviews
    if settings["tuned_seeds"][-1] and settings["test"] == "all":
        name, note = f"tuned/{largest}/test_accuracy", f"; ours after {largest:,} reviews"
    elif settings["tuned_seeds"][-1]:
        on_slice = measures[f"tuned/{largest}/held_out_accuracy"]["mean"]
        note += f"; after {largest:,} it was right on {on_slice:.3f} of the slice"
    for peer in PEERS:
        what = peer.removesuffix("_test_accuracy").replace("_", " ")
        best.append(row(what, published["peers"][peer], name, note=note))
    cut = f"{model}, {settings['source_epochs']} epochs, {settings['source_max_len']} word pieces"
    return {
        f"BERT, the sources' five settings (ours: {cut})": source,
        "BERT, held-out reviews and peers": best,
    }
