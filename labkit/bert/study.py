"""Fine-tuned BERT against its rivals: the settings, what is measured, the published figures beside.

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
import torch
from torch import Tensor

from labkit.bert.model import POOLINGS, BertClassifier, ClassifierSpec
from labkit.bert.training import BertTraining, FineTuning, FrozenVectors, Reading
from labkit.film.corpus import Corpus
from labkit.film.studies import logistic_regression
from labkit.film.training import accuracy, held_out
from labkit.lab import store
from labkit.lab.specification import Arrays
from labkit.measure.claims import MISSING, Claim, Condition, Row, judge, number_row
from labkit.measure.statistics import Measure, paired_difference, summarise

Runs = dict[str, dict[int, Arrays]]  # by the name of the setting, then by seed
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
SHARES = 2  # processes that compute vectors
STRENGTHS = (0.0003, 0.003, 0.03, 0.3, 3.0)  # C, the inverse of the L2 penalty's weight


def source_setting(name: str, **training: Any) -> tuple[ClassifierSpec, FineTuning]:
    """The model and the training of one of `SOURCE`: the last of a fixed number of positions,
    mostly padding; a head with one hidden layer; a constant rate, or one that is halved."""
    lr, dropout, _ = SOURCE[name]
    schedule = "halve" if name == "5" else "constant"
    plain = {"warmup": 0.0, "weight_decay": 0.0, "clip": 0.0, "fixed": True}
    return (
        ClassifierSpec(pooling="last_position", head_sizes=(64,), dropout=dropout),
        FineTuning(lr=lr, head_lr=lr, schedule=schedule, **plain, **training),
    )


def train(trainings: Mapping[str, Sequence[BertTraining]], name: str) -> Runs:
    """Carry out the trainings that are not kept; the results by setting and seed."""
    # the longest first, so that no process is left with one of them at the end
    queue = sorted(itertools.chain(*trainings.values()), key=_cost, reverse=True)
    results = dict(zip(queue, store.train(queue, name=name), strict=True))
    return {
        setting: {training.seed: results[training] for training in of_setting}
        for setting, of_setting in trainings.items()
    }


def _cost(training: BertTraining) -> int:
    """About how many pieces are read; a step of training costs as much as reading three times."""
    reading = training.reading
    read = 3 * training.training.epochs * (reading.num_train or 20_000)
    return reading.max_len * (read + (25_000 if reading.test == "all" else 0))


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
    reading = _sized(corpus, reading, max(sizes))
    tasks = [
        FrozenVectors(reading=reading, seeds=seeds, share=share, shares=SHARES, **common)
        for share in range(SHARES)
    ]
    parts = store.train(tasks, name="frozen vectors")
    known = np.concatenate([arrays["index"] for arrays in parts])
    order = np.argsort(known)
    probes: dict[str, Probes] = {pooling: {} for pooling in POOLINGS}
    for size, seed, index in _draws(corpus, reading, sizes, seeds):
        rows = {name: order[np.searchsorted(known[order], i)] for name, i in index.items()}
        y = {name: corpus.label[i].numpy() for name, i in index.items()}
        for pooling in POOLINGS:
            vectors = np.concatenate([arrays[pooling] for arrays in parts])  # (n, H)
            X = {name: vectors[of_part] for name, of_part in rows.items()}
            probes[pooling].setdefault(size, {})[seed] = linear_probe(X, y)
    return probes, float(sum(arrays["seconds"] for arrays in parts)) / len(known)


def linear_probe(X: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Logistic regression on standardised vectors, its strength chosen by dev accuracy.

    X (n, H) and y (n,) hold "train", "dev" and "test", which may be empty; returns "dev_accuracy"
    and "test_accuracy".
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1_000)).fit(
            X["train"], y["train"]
        )
        for C in STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(X["dev"], y["dev"]))
    scored = [name for name in ("dev", "test") if len(y[name])]
    return {f"{name}_accuracy": float(best.score(X[name], y[name])) for name in scored}


def _sized(corpus: Corpus, reading: Reading, size: int) -> Reading:
    """The reading with that many training reviews; 0, which means all of them, for all."""
    return replace(reading, num_train=size if size < len(corpus.split()["train"]) else 0)


def _draws(
    corpus: Corpus, reading: Reading, sizes: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """A number of reviews, a seed, and the indices drawn; of all reviews there is one draw."""
    for size in sizes:
        sized = _sized(corpus, reading, size)
        for seed in seeds if sized.num_train else seeds[:1]:
            yield size, seed, sized.draw(corpus, seed)


# measures


def held_out_probability(arrays: Arrays, corpus: Corpus) -> Tensor:
    """P(positive) of the held-out reviews, from a training that answered these or all."""
    index, p = corpus.split()["test"], torch.from_numpy(arrays["test_probability"])
    return p[torch.isin(index, held_out(corpus))] if len(p) == len(index) else p


def measures_of(runs: Runs, corpus: Corpus, epochs: Sequence[int] = ()) -> dict[str, Measure]:
    """A summary over the seeds of what the trainings of each setting returned.

    "<setting>/held_out_accuracy", "test_accuracy" where all were answered, "dev_accuracy" and
    "best_epoch" belong to the checkpoint that dev chose; "seconds" is the training's alone;
    "curve_accuracy/k" is of the held-out reviews after each of the `epochs`, where recorded.
    """
    measures, test = {}, corpus.split()["test"]
    y, y_slice = corpus.label[test], corpus.label[held_out(corpus)]
    for name, by_seed in runs.items():
        arrays = list(by_seed.values())
        values = {
            "held_out_accuracy": [
                accuracy(held_out_probability(a, corpus), y_slice) for a in arrays
            ],
            "dev_accuracy": [a["dev_accuracy"].max() for a in arrays],
            "best_epoch": [a["best_epoch"].item() for a in arrays],
            "seconds": [a["seconds"].sum() for a in arrays],
        }
        if all(len(a["test_probability"]) == len(test) for a in arrays):
            p = [torch.from_numpy(a["test_probability"]) for a in arrays]
            values["test_accuracy"] = [accuracy(q, y) for q in p]
        for k in epochs:
            if k <= len(arrays[0].get("curve_accuracy", ())):
                values[f"curve_accuracy/{k}"] = [a["curve_accuracy"][k - 1] for a in arrays]
        for quantity, raw in values.items():
            measures[f"{name}/{quantity}"] = _summary(raw, list(by_seed), quantity)
    return measures


def probe_measures(name: str, probes: Probes) -> dict[str, Measure]:
    """Summaries "<name>/<size>/held_out_accuracy" and ".../dev_accuracy" over the seeds."""
    measures = {}
    for size, by_seed in probes.items():
        for quantity, key in (("held_out_accuracy", "test_accuracy"), ("dev_accuracy",) * 2):
            raw = [fitted[key] for fitted in by_seed.values()]
            measures[f"{name}/{size}/{quantity}"] = _summary(raw, list(by_seed), quantity)
    return measures


def _summary(raw: Sequence[Any], seeds: Sequence[int], quantity: str) -> Measure:
    timing = {"unit": "s", "timing": True} if quantity == "seconds" else {}
    return summarise([float(value) for value in raw], seeds=seeds, student=True, **timing)


def difference(a: Measure, b: Measure) -> Measure:
    """The paired difference of two summaries over the seeds that both have; ValueError for none."""
    first, second = (dict(zip(m["seeds"], m["raw"], strict=True)) for m in (a, b))
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        raise ValueError(f"no seed in common: {list(first)} and {list(second)}")
    pair = [[values[seed] for seed in seeds] for values in (first, second)]
    return paired_difference(*pair, seeds, student=True)


@torch.no_grad()
def mask_effects(model: BertClassifier, ids: Tensor, mask_id: int) -> tuple[float, Tensor]:
    """P(positive) of a text's pieces `ids` (T,), and its fall as each inner one is masked, (T,)."""
    inner = torch.arange(1, len(ids) - 1)
    X = ids.repeat(len(inner) + 1, 1)
    X[torch.arange(1, len(X)), inner] = mask_id
    p = torch.cat([model(part, torch.ones_like(part)).softmax(1)[:, 1] for part in X.split(32)])
    effects = torch.zeros(len(ids))
    effects[inner] = p[0] - p[1:]
    return p[0].item(), effects


# the sources' claim and figures

BASE = "bert-base-uncased"  # the model of every published figure
FILLS = "`make reproduce CHAPTERS=05 PROFILE=full` fills it"
ANOTHER = "another model"
PEERS = ("bentrevett_bert_base_test_accuracy", "llms_from_scratch_bert_base_test_accuracy")
# the parts of the claim, and which of two settings should be better
COMPARED = {
    "beats": ("tuned", "recurrent"),
    "size": ("random", "recurrent"),
    "text": ("tuned", "random"),
}


def short_name(model: str) -> str:
    """A model for a reader: the last part of its name at the hub, or of its folder."""
    return model.rstrip("/").rpartition("/")[2]


def differences(measures: Mapping[str, Any], main_size: int) -> dict[str, Measure]:
    """The paired differences of `COMPARED`, by name, after training on `main_size` reviews."""
    accuracies = {
        setting: measures[f"{setting}/{main_size}/held_out_accuracy"]
        for setting in ("tuned", "random", "recurrent")
    }
    return {
        f"difference/{ours}_minus_{theirs}": difference(accuracies[ours], accuracies[theirs])
        for ours, theirs in COMPARED.values()
    }


def claims(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> list[Claim]:
    """The sources' claim in its three parts, judged on `differences`.

    A reason says how much each side has read; a verdict names a model that is not the published.
    """
    bert = published["bert"]["held_out"]["bert_accuracy"]
    bilstm = published["imdb_glove"]["held_out"]["bilstm_accuracy"]
    texts = {
        "beats": f"BERT is better than the BiLSTM: {bert} against {bilstm}.",
        "size": "BERT is better because it is larger.",
        "text": "BERT is better because it saw more text.",
    }
    model, size = short_name(settings["model_name"]), settings["main_size"]
    at_main = settings["sizes"].index(size)
    epochs, words_epochs = (settings[f"{x}_epochs"][at_main] for x in ("tuned", "recurrent"))
    reads = (
        f"; {model} reads {settings['max_len']} pieces of a review at most, "
        f"{measures['pieces/share_read']:.0%} of all their pieces, in {epochs} epochs"
    )
    words = f", chapter 04's best recurrent network {MAX_WORDS} words in {words_epochs} epochs"
    ends = measures[f"random/{size}/best_epoch"]["raw"]
    untaught = (
        f"; the random start was still learning: best in its last epoch in {ends.count(epochs)} of "
        f"{len(ends)} trainings"
    )
    untaught = untaught if epochs in ends else ""
    notes = {"beats": reads + words, "size": reads + words + untaught, "text": reads + untaught}

    judged = []
    for part, (ours, theirs) in COMPARED.items():
        name = f"difference/{ours}_minus_{theirs}"
        what = f"held-out accuracy after training on {size:,} reviews"
        condition = Condition(f"{ours} minus {theirs}", name, measures[name])
        claim = judge(part, texts[part], what, [condition])
        verdict = claim.verdict
        if part == "size" and untaught and claim.holds is False:
            verdict = f"does not hold in {epochs} epochs"
        if model != BASE:
            verdict = f"{verdict} ({model})"
        judged.append(replace(claim, verdict=verdict, reason=claim.reason + notes[part]))
    return judged


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

    def row(what: str, value: float, name: str, trained: bool = True, reviews: int = 0) -> Row:
        if not trained:
            return Row(what, repr(value), "–", MISSING, f"not part of this profile; {FILLS}")
        judged = number_row(what, value, measures, name, higher_is_better=True)
        on = f" on {reviews:,} reviews" if reviews else ""
        if model == BASE:
            return replace(judged, reason=judged.reason + f"; ours{on}") if on else judged
        reason = f"ours is {model}{on}, not {BASE}: {FILLS}"
        return replace(judged, ours=f"{model} {judged.ours}", verdict=ANOTHER, reason=reason)

    ours = f"{model}, {settings['source_epochs']} epochs, {settings['source_max_len']} word pieces"
    of_source = []
    for run, name in itertools.product(published["bert"]["runs"], SOURCE):
        number, _, rate = name.partition("/")
        if number != str(run["id"]):
            continue
        what, trained = f"run {number}", name in settings["source_settings"]
        what += f", rate {rate}" if rate else ""
        for epoch in (5, 10):
            if value := run.get(f"test_accuracy_epoch_{epoch}"):
                seen = trained and settings["test"] == "all" and epoch <= settings["source_epochs"]
                name_then = f"source/{name}/curve_accuracy/{epoch}"
                of_source.append(row(f"{what}, epoch {epoch}", value, name_then, seen))
        accuracy_name = f"source/{name}/held_out_accuracy"
        of_source.append(row(what, run["test_accuracy"], accuracy_name, trained))

    value, size = published["bert"]["held_out"]["bert_accuracy"], settings["main_size"]
    best = [
        row("held-out slice, fine-tuned", value, f"tuned/{size}/held_out_accuracy", reviews=size)
    ]
    largest, note = settings["sizes"][-1], ""
    name = f"tuned/{largest}/test_accuracy"
    if settings["test"] == "all" and settings["tuned_seeds"][-1]:
        size = largest
    else:  # one training on `main_size` reviews answered all
        name = "all_reviews/fine-tuned/all_accuracy"
        if largest > size and settings["tuned_seeds"][-1]:
            on_slice = measures[f"tuned/{largest}/held_out_accuracy"]["mean"]
            note = f"; after {largest:,} it was right on {on_slice:.3f} of the slice"
    for peer in PEERS:
        what = peer.removesuffix("_test_accuracy").replace("_", " ")
        judged = row(what, published["peers"][peer], name, reviews=size)
        best.append(replace(judged, reason=judged.reason + note))
    return {
        f"BERT, the sources' five settings (ours: {ours})": of_source,
        "BERT, held-out reviews and peers": best,
    }
