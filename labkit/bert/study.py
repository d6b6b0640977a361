"""The report's settings, the rivals that take no steps, and the published figures beside ours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from labkit.bert.model import POOLINGS, ClassifierSpec
from labkit.bert.training import BertTraining, FineTuning, FrozenVectors, Reading
from labkit.film.corpus import Corpus
from labkit.film.studies import logistic_regression
from labkit.lab.store import Arrays
from labkit.measure.claims import MISSING, Claim, Condition, Row, judge, number_row
from labkit.measure.statistics import Measure, holm, paired_difference, summarise

Probes = dict[str, dict[int, dict[str, Any]]]  # what was fitted, by name and seed
FEW = 200  # the report's smaller number of reviews


def source_trainings(
    settings: Mapping[str, dict], like: BertTraining, reviews: Sequence[int],
    epochs: Sequence[int], rate: float, seeds: Sequence[int],
) -> dict[str, list[BertTraining]]:  # fmt: skip
    """The report's settings, as data/published.toml has them, "source/<setting>" -> trainings.

    `reviews` stand for its 200 and 2,000, `epochs` are those of either, and `rate`, if not 0, for
    the rate of the settings 3 to 5. The report names no size of the head's hidden layer, no decay
    and no clipping.
    """
    trainings = {}
    for name, setting in settings.items():
        many, lr = int(setting["reviews"] > FEW), setting["lr"]
        lr = rate if rate and name in "345" else lr
        model = ClassifierSpec(pooling="last_position", head_size=64, dropout=setting["dropout"])
        training = FineTuning(
            epochs=epochs[many], lr=lr, head_lr=lr, batch_size=like.training.batch_size,
            schedule=setting["schedule"], warmup=0.0, weight_decay=0.0, clip=0.0,
            precision=like.training.precision, choose=False,
        )  # fmt: skip
        reading = replace(like.reading, num_train=reviews[many])
        plan = replace(like, reading=reading, model=model, training=training)
        trainings[f"source/{name}"] = [replace(plan, seed=seed) for seed in seeds]
    return trainings


def frozen_runs(vectors: Arrays, task: FrozenVectors, sizes: Sequence[int]) -> Probes:
    """A linear head on the frozen encoder's vectors, by "<pooling>/<number of reviews>"."""
    probes: Probes = {}
    for size, seed, corpus, index in _draws(task.reading, sizes, task.seeds):
        y = {name: corpus.label[of].numpy() for name, of in index.items()}
        places = {n: np.searchsorted(vectors["index"], of.numpy()) for n, of in index.items()}
        for pooling in POOLINGS:
            X = {name: vectors[pooling][place] for name, place in places.items()}
            models = [
                make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1_000))
                for C in (0.0003, 0.003, 0.03, 0.3)  # the inverse of the L2 penalty's weight
            ]
            scores = {m.fit(X["train"], y["train"]): m.score(X["dev"], y["dev"]) for m in models}
            best = max(scores, key=scores.get)
            fitted = {
                "dev_accuracy": scores[best],
                "test_accuracy": best.score(X["test"], y["test"]),
            }
            probes.setdefault(f"{pooling}/{size}", {})[seed] = fitted
    return probes


def linear_runs(reading: Reading, sizes: Sequence[int], seeds: Sequence[int]) -> Probes:
    """Chapter 04's logistic regression, on pieces and pairs of them, and its "seconds"."""
    probes: Probes = {}
    for size, seed, corpus, index in _draws(reading, sizes, seeds):
        began = time.perf_counter()
        fitted = logistic_regression(corpus, "tfidf_pairs", **index, max_len=reading.max_len)
        fitted["seconds"] = time.perf_counter() - began
        probes.setdefault(f"{size}", {})[seed] = fitted
    return probes


def _draws(
    reading: Reading, sizes: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[int, int, Corpus, dict]]:
    """Number of reviews, seed, the reviews and `Reading.draw`; of all reviews there is one draw."""
    corpus, _ = reading.encode()
    for size in sizes:
        for seed in seeds if size < len(corpus.split()["train"]) else seeds[:1]:
            yield size, seed, corpus, replace(reading, num_train=size).draw(corpus, seed)


def probe_measures(prefix: str, probes: Probes) -> dict[str, Measure]:
    """Summaries "<prefix>/<name>/held_out_accuracy" and ".../dev_accuracy" over the seeds."""
    return {
        f"{prefix}/{name}/{quantity}_accuracy": summarise(
            [fitted[f"{key}_accuracy"] for fitted in by_seed.values()], seeds=list(by_seed)
        )
        for name, by_seed in probes.items()
        for key, quantity in (("test", "held_out"), ("dev", "dev"))
    }


# verdicts

TRAINED_OUT = 0.97  # training accuracy of the random start in its last epoch, in every seed


def compare(measures: Mapping[str, Any], a: str, b: str) -> tuple[str, Measure]:
    """Name and summary of held-out accuracy of `a` minus that of `b`, seed by seed."""
    one, other = (measures[f"{name}/held_out_accuracy"] for name in (a, b))
    return f"difference/{a}-{b}", paired_difference(one["raw"], other["raw"], one["seeds"])


def judge_claims(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> tuple[dict[str, Measure], list[Claim]]:
    """The differences that decide the claims, and their verdicts.

    "size" and "text" are judged only where the random start is trained out. What the report's
    settings change is read together, after Holm.
    """
    bert, size = published["bert"], settings["main_size"]
    model = Path(settings["model_name"]).name
    test, lstm = bert["held_out"], published["imdb_glove"]["held_out"]
    facts = test["bert_accuracy"], lstm["bilstm_accuracy"], test["weights"]
    claimed = {
        "beats": (
            "BERT is better than the BiLSTM: {} against {}, {} of weights.".format(*facts),
            {"on the same pieces": ("tuned", "equal/recurrent"),
             "against whole reviews": ("tuned", "recurrent")},
        ),
        "size": (
            "Size alone helps: a large network that has read nothing beats the recurrent one.",
            {"difference": ("random", "equal/recurrent")},
        ),
        "text": (
            "Text helps: the pretrained network beats the same network from a random start.",
            {"difference": ("tuned", "random")},
        ),
    }  # fmt: skip
    last = measures[f"random/{size}/train_accuracy/{settings['random_epochs']}"]
    differences, claims = {}, []
    for name, (text, pairs) in claimed.items():
        if name == "beats" or last["min"] >= TRAINED_OUT:
            found = {
                k: compare(measures, *(f"{n}/{size}" for n in pair)) for k, pair in pairs.items()
            }
            differences |= dict(found.values())
            conditions = [Condition(label, *difference) for label, difference in found.items()]
            what = f"held-out accuracy after training on {size:,} reviews, with {model}"
            claims.append(judge(name, text, what, conditions))

    printed = {str(run["id"]): run["test_accuracy"] for run in bert["runs"]}
    rate = settings["source_rate"]
    base = f"1/{rate:g}" if rate else "2"  # no dropout, and the rate of the settings 3 to 5
    steps = {  # id: the setting, the one that it changes, its number, and what is changed
        "rate": ("2", "1/5e-05", "1", "A rate of 1e-6 in place of 5e-5"),
        "dropout": ("3", base, "2", "Dropout 0.3 in place of none"),
        "reviews": ("4", "3", "3", "2,000 training reviews in place of 200"),
        "decay": ("5", "4", "4", "A rate that is halved twice, and dropout 0.5 in place of 0.3"),
    }
    pairs = [compare(measures, f"source/{a}", f"source/{b}") for a, b, *_ in steps.values()]
    corrected = holm(dict(pairs))
    for (name, (a, _, before, what)), (difference, _) in zip(steps.items(), pairs, strict=True):
        rises = printed[a] > printed[before]
        text = f"{what} {'raises' if rises else 'lowers'} the accuracy: "
        text += f"{printed[a]} against {printed[before]}."
        side = "above" if rises else "below"
        condition = Condition("difference", difference, corrected[difference], side)
        claims.append(judge(f"setting/{name}", text, f"held-out accuracy of {model}", [condition]))
    return differences | corrected, claims


# the published figures

BASE = "bert-base-uncased"  # the model of every one of them
FILLS = "`make reproduce CHAPTERS=05 PROFILE=full` fills it"
ANOTHER = "another model"


def about(published: dict) -> str:
    """What the published figures were measured on."""
    return (
        f"Published: {BASE}, at most {published['bert']['max_len']} words, the vector of the last "
        "position, one training each, after 15 epochs. Ours: the same slice of 2,000 test reviews, "
        "all of them beside the peers. A row of another model has no verdict."
    )


def rows(measures: dict, settings: dict, published: dict) -> dict[str, list[Row]]:
    """The published figures beside ours: the report's five settings, held-out reviews, peers."""
    model, bert = Path(settings["model_name"]).name, published["bert"]
    main, largest = settings["main_size"], settings["sizes"][-1]

    def row(what: str, value: float, name: str) -> Row:
        if name not in measures:
            return Row(what, repr(value), "–", MISSING, f"not part of this profile; {FILLS}")
        ours = number_row(what, value, measures, name, higher_is_better=True)
        if model == BASE:
            return ours
        reason = f"ours is {model}, not {BASE}: {FILLS}"
        return replace(ours, ours=f"{model} {ours.ours}", verdict=ANOTHER, reason=reason)

    printed = {str(run["id"]): run["test_accuracy"] for run in bert["runs"]}
    source = [
        row(
            f"run {name.replace('/', ', rate ')}",
            printed[name[0]],
            f"source/{name}/held_out_accuracy",
        )
        for name in bert["settings"]
    ]
    what, value = f"held-out slice (ours on {main:,} reviews)", bert["held_out"]["bert_accuracy"]
    best = [row(what, value, f"tuned/{main}/held_out_accuracy")]
    for peer, value in published["peers"].items():
        if "_bert_" in peer:
            what = peer.removesuffix("_test_accuracy").replace("_", " ")
            what += f" (ours on {largest:,} reviews)"
            best.append(row(what, value, f"tuned/{largest}/test_accuracy"))
    few, many = settings["source_epochs"]
    cut = f"{model}, {settings['source_max_len']} pieces, {few} and {many} epochs"
    return {f"BERT, the report's five settings (ours: {cut})": source, "BERT, held out": best}
