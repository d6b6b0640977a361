"""The report's settings, the rivals that take no steps, and the published figures beside ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from labkit.bert.model import POOLINGS, ClassifierSpec
from labkit.bert.training import PiecesTraining, Reading
from labkit.film.corpus import Corpus
from labkit.film.studies import logistic_regression
from labkit.lab.store import Arrays
from labkit.measure.claims import MISSING, Claim, Condition, Row, judge, number_row
from labkit.measure.statistics import Measure, holm, paired_difference, summarise

Measures = dict[str, Measure]
FEW = 200  # the report's smaller number of reviews


def source_trainings(
    settings: Mapping[str, dict], like: PiecesTraining, reviews: Sequence[int],
    epochs: Sequence[int], rate: float, seeds: Sequence[int],
) -> dict[str, list[PiecesTraining]]:  # fmt: skip
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
        training = replace(
            like.training, epochs=epochs[many], lr=lr, head_lr=lr, schedule=setting["schedule"],
            warmup=0.0, weight_decay=0.0, clip=0.0, pad_to=like.reading.max_len, choose=False,
        )  # fmt: skip
        reading = replace(like.reading, num_train=reviews[many])
        plan = replace(like, reading=reading, model=model, training=training)
        trainings[f"source/{name}"] = [replace(plan, seed=seed) for seed in seeds]
    return trainings


def fit_each(
    name: str, reading: Reading, sizes: Sequence[int], seeds: Sequence[int],
    vectors: Arrays | None = None,
) -> Measures:  # fmt: skip
    """Logistic regression for each number of reviews and each draw; of all reviews there is one.

    It reads pieces and pairs of them, as in chapter 04, or the frozen encoder's `vectors`. Returns
    summaries over the seeds, "<name>/<size>/held_out_accuracy" and ".../dev_accuracy"; with vectors
    <name> is followed by the pooling.
    """
    values, (corpus, _) = defaultdict(dict), reading.encode()
    for size in sizes:
        for seed in seeds if size < len(corpus.split()["train"]) else seeds[:1]:
            index = replace(reading, num_train=size).draw(corpus, seed)
            if vectors:
                fits = {f"{name}/{p}": linear_head(vectors, p, corpus, index) for p in POOLINGS}
            else:
                whole = {"max_len": reading.max_len, **index}
                fits = {name: logistic_regression(corpus, "tfidf_pairs", **whole)}
            for key, fitted in fits.items():
                for part, quantity in (("test", "held_out"), ("dev", "dev")):
                    by_seed = values[f"{key}/{size}/{quantity}_accuracy"]
                    by_seed[seed] = fitted[f"{part}_accuracy"]
    return {key: summarise([*of.values()], seeds=[*of]) for key, of in values.items()}


def linear_head(
    vectors: Arrays, pooling: str, corpus: Corpus, index: Mapping[str, Tensor]
) -> dict[str, float]:
    """Accuracy on dev and test of a head on standardised vectors; dev chooses its L2 penalty."""
    y = {part: corpus.label[of].numpy() for part, of in index.items()}
    places = {part: np.searchsorted(vectors["index"], of.numpy()) for part, of in index.items()}
    X = {part: vectors[pooling][place] for part, place in places.items()}
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1_000))
        for C in (0.0003, 0.003, 0.03, 0.3)  # the inverse of the penalty's weight
    ]
    scores = {m.fit(X["train"], y["train"]): m.score(X["dev"], y["dev"]) for m in models}
    best = max(scores, key=scores.get)
    return {"dev_accuracy": scores[best], "test_accuracy": best.score(X["test"], y["test"])}


# verdicts

TRAINED_OUT = 0.97  # training accuracy of the random start in its last epoch, in every seed


def compare(measures: Mapping[str, Any], a: str, b: str) -> tuple[str, Measure]:
    """Name and summary of held-out accuracy of `a` minus that of `b`, seed by seed."""
    one, other = (measures[f"{name}/held_out_accuracy"] for name in (a, b))
    return f"difference/{a}-{b}", paired_difference(one["raw"], other["raw"], one["seeds"])


def judge_claims(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> tuple[Measures, list[Claim]]:
    """The differences that decide the claims of data/published.toml, and their verdicts.

    "size" and "text" are judged only where the random start is trained out. What the report's
    settings change is read together, after Holm.
    """
    bert, size, rate = published["bert"], settings["main_size"], settings["source_rate"]
    model = Path(settings["model_name"]).name
    test, lstm = bert["held_out"], published["imdb_glove"]["held_out"]
    facts = test["bert_accuracy"], lstm["bilstm_accuracy"], test["weights"]
    last = measures[f"random/{size}/train_accuracy/{settings['random_epochs']}"]
    what = f"held-out accuracy after training on {size:,} reviews, with {model}"
    differences, claims = {}, []
    for claim in bert["claims"]:
        if claim["id"] == "beats" or last["min"] >= TRAINED_OUT:
            pairs = claim["pairs"].items()
            found = {k: compare(measures, f"{a}/{size}", f"{b}/{size}") for k, (a, b) in pairs}
            differences |= dict(found.values())
            conditions = [Condition(label, *difference) for label, difference in found.items()]
            claims.append(judge(claim["id"], claim["claim"].format(*facts), what, conditions))

    before = {run["id"]: run["against"] for run in bert["runs"] if "against" in run}
    if rate:  # the one without dropout that has the rate of the settings 3 to 5
        before[3] = f"1/{rate:g}"
    pairs = {n: compare(measures, f"source/{n}", f"source/{b}") for n, b in before.items()}
    corrected = holm(dict(pairs.values()))
    printed = {run["id"]: run["test_accuracy"] for run in bert["runs"]}
    for run in (run for run in bert["runs"] if run["id"] in pairs):
        number, (difference, _) = run["id"], pairs[run["id"]]
        rises = printed[number] > printed[number - 1]
        text = f"{run['change']} {'raises' if rises else 'lowers'} the accuracy: "
        text += f"{printed[number]} against {printed[number - 1]}."
        side = "above" if rises else "below"
        condition = Condition("difference", difference, corrected[difference], side)
        what = f"held-out accuracy of {model}"
        claims.append(judge(f"setting/{run['claim']}", text, what, [condition]))
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

    def row(what: str, value: float, name: str) -> Row:
        if name not in measures:
            return Row(what, repr(value), "–", MISSING, f"not part of this profile; {FILLS}")
        ours = number_row(what, value, measures, name, higher_is_better=True)
        if model == BASE:
            return ours
        reason = f"ours is {model}, not {BASE}: {FILLS}"
        return replace(ours, ours=f"{model} {ours.ours}", verdict=ANOTHER, reason=reason)

    printed = {str(run["id"]): run["test_accuracy"] for run in bert["runs"]}
    source = []
    for name in bert["settings"]:
        what = f"run {name.replace('/', ', rate ')}"
        source.append(row(what, printed[name[0]], f"source/{name}/held_out_accuracy"))
    main, largest = settings["main_size"], settings["sizes"][-1]
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
