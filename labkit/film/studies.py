"""The two studies of film reviews: their settings, and what is measured on the trained models.

Study A repeats a homework on 20,000 reviews, study B a laboratory report on 2,000 of them with
pretrained word vectors. Every setting is a name with what it changes of `ReviewSpec` and
`TrainSpec`; what the sources do not say, and was inferred, stands beside it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from labkit.film import tasks as review_tasks
from labkit.film.corpus import Corpus
from labkit.film.speed import HUGE_PAGES
from labkit.film.training import accuracy
from labkit.lab import sweep
from labkit.measure.statistics import summarise

Setting = tuple[dict[str, Any], dict[str, Any]]  # what changes of the model, of the training

# torch's layers have a head 64-128-2, the handwritten one 64-64-2
_TORCH = {"head_size": 128}
_HAND = {"cell": "handwritten", "engine": "torch", "pooling": "mean", "head_size": 64}

# Which vector of torch's layers stands for a review is not known: both are run.
CORE: dict[str, Setting] = {
    "rnn/last": ({**_TORCH, "cell": "rnn"}, {}),
    "lstm/last": ({**_TORCH, "cell": "lstm"}, {}),
    "gru/last": ({**_TORCH, "cell": "gru"}, {}),
    "rnn/mean": ({**_TORCH, "cell": "rnn", "pooling": "mean"}, {}),
    "lstm/mean": ({**_TORCH, "cell": "lstm", "pooling": "mean"}, {}),
    "gru/mean": ({**_TORCH, "cell": "gru", "pooling": "mean"}, {}),
    "handwritten/mean": (_HAND, {}),
}
# Inferred: "bce_on_sigmoid", from the printed training losses, which begin at ln 2 and end far
# above what their accuracy lets one expect; "mse", for a loss without a name; and Adamax' own
# default for "a larger learning rate".
VARIATIONS: dict[str, Setting] = {
    "handwritten/last": ({**_HAND, "pooling": "last"}, {}),
    "handwritten/hidden128": ({**_HAND, "hidden_size": 128}, {}),
    "handwritten/two_cells": ({**_HAND, "num_layers": 2}, {}),
    "handwritten/mse": (_HAND, {"loss": "mse"}),
    "handwritten/bce": (_HAND, {"loss": "bce"}),
    "handwritten/bce_on_sigmoid": (_HAND, {"loss": "bce_on_sigmoid"}),
    "handwritten/adamax": (_HAND, {"optimiser": "adamax", "lr": 2e-3}),
    "handwritten/batch128": (_HAND, {"batch_size": 128}),
}
STUDY_A = CORE | VARIATIONS

# study A's model without a recurrent layer, and with the ratings 1 to 10 as its classes
AVERAGED: Setting = ({"cell": "none", "pooling": "mean"}, {})
RATING: Setting = ({**_TORCH, "pooling": "mean", "num_classes": 10}, {})

# Candidates for the best recurrent model; dev chooses. A small start of the embedding matters most:
# beside vectors of length 8 that nobody has trained, what a rare word means is hard to hear. With
# `skip` the words' own vectors are pooled beside the recurrent states (as in the recurrent
# convolutional network of Lai, Xu, Liu and Zhao, 2015).
_STRONG = {
    "bidirectional": True,
    "pooling": "max",
    "dropout": 0.5,
    "embedding_dropout": 0.3,
    "embedding_scale": 0.1,
}
_BESIDE = {**_STRONG, "pooling": "mean_max", "skip": True}
_FALLING = {"lr": 2e-3, "decay": True, "clip": 1.0, "word_dropout": 0.1}
BEST: dict[str, Setting] = {
    "bilstm_max": (_STRONG, _FALLING),
    "bilstm_beside_words": (_BESIDE, _FALLING),
}

# the published table of each setting of study A, in data/published.toml
PUBLISHED_A = {
    "rnn/last": "rnn",
    "rnn/mean": "rnn",
    "lstm/last": "lstm",
    "lstm/mean": "lstm",
    "gru/last": "gru",
    "gru/mean": "gru",
    "handwritten/mean": "handwritten_lstm",
    "handwritten/hidden128": "handwritten_lstm_hidden128",
    "handwritten/two_cells": "handwritten_lstm_two_cells",
    "handwritten/mse": "handwritten_lstm_other_loss",
    "handwritten/bce": "handwritten_lstm_bce_one_hot",
    "handwritten/bce_on_sigmoid": "handwritten_lstm_bce_one_hot",
    "handwritten/adamax": "handwritten_lstm_adamax",
    "handwritten/batch128": "handwritten_lstm_batch128",
}

_B = {
    "bidirectional": True,
    "embedding_size": 100,
    "head_size": 32,
    "activation": "tanh",
    "vectors": "glove",
}
_WRONG: Setting = ({**_B, "pooling": "last_step"}, {"loss": "ce_on_softmax", "carry": True})
_SGD = {"optimiser": "sgd", "momentum": 0.9}
_ONE_WAY = {"bidirectional": False, "pooling": "last"}


def _wrong(model: Mapping[str, Any], training: Mapping[str, Any]) -> Setting:
    return {**_WRONG[0], **model}, {**_WRONG[1], **training}


def _sound(model: Mapping[str, Any], training: Mapping[str, Any]) -> Setting:
    return {**_B, **model}, dict(training)


# the three mistakes, each alone and all together, as the source had them
MISTAKES: dict[str, Setting] = {
    "none": _sound({}, {}),
    "softmax": _sound({}, {"loss": "ce_on_softmax"}),
    "carry": _sound({}, {"carry": True}),
    "last_step": _sound({"pooling": "last_step"}, {}),
    "all": _WRONG,
}


def padded(names: Iterable[str], to: int) -> dict[str, Setting]:
    """Some of `MISTAKES` on reviews padded to `to` words, as the source padded all of its own."""
    return {
        f"{name}, padded": (model, {**training, "pad_to": to})
        for name, (model, training) in ((name, MISTAKES[name]) for name in names)
    }


# the source's other experiments, with its three mistakes
SOURCE_B: dict[str, Setting] = {
    "dropout": _wrong({"dropout": 0.5}, {}),
    "l2/0.01": _wrong({}, {"weight_decay": 1e-2}),
    "l2/0.001": _wrong({}, {"weight_decay": 1e-3}),
    "l2/0.0001": _wrong({}, {"weight_decay": 1e-4}),
    "l2/0.0002": _wrong({}, {"weight_decay": 2e-4}),
    "lstm_sgd/20": _wrong(_ONE_WAY, {**_SGD, "lr": 0.1, "halve_every": 20}),
    "lstm_sgd/5": _wrong(_ONE_WAY, {**_SGD, "lr": 0.1, "halve_every": 5}),
    "lstm_sgd/8": _wrong(_ONE_WAY, {**_SGD, "lr": 0.1, "halve_every": 8}),
    "bilstm_sgd": _wrong({}, {**_SGD, "lr": 0.03, "halve_every": 20}),
}
# without the mistakes: how SGD fares with and without clipping, and what the vectors are worth
SOUND_B: dict[str, Setting] = {
    "sgd": _sound({}, {**_SGD, "lr": 0.1, "halve_every": 8}),
    "sgd_clipped": _sound({}, {**_SGD, "lr": 0.1, "halve_every": 8, "clip": 1.0}),
    "glove": _sound({"pooling": "mean"}, {}),
    "glove_tuned": _sound({"pooling": "mean", "vectors": "glove_tuned"}, {}),
    "random": _sound({"pooling": "mean", "vectors": "random"}, {}),
    "learned": _sound({"pooling": "mean", "vectors": "learned"}, {}),
}
# the handwritten two-layer stack on plain SGD, which never learned, and what might wake it up
_STACK = {**_B, **_ONE_WAY, "cell": "handwritten", "engine": "torch", "num_layers": 2}
_PLAIN = {"loss": "ce_on_softmax", "optimiser": "sgd"}
STACK: dict[str, Setting] = {
    "sgd/0.1": (_STACK, {**_PLAIN, "lr": 1e-1}),
    "sgd/0.001": (_STACK, {**_PLAIN, "lr": 1e-3}),
    "sgd/1e-06": (_STACK, {**_PLAIN, "lr": 1e-6}),
    "sgd/0.1, mean": ({**_STACK, "pooling": "mean"}, {**_PLAIN, "lr": 1e-1}),
    "adam": (_STACK, {**_PLAIN, "optimiser": "adam"}),
    "adam, mean": ({**_STACK, "pooling": "mean"}, {**_PLAIN, "optimiser": "adam"}),
}

Arrays = Mapping[str, np.ndarray]
Runs = dict[str, dict[int, Arrays]]  # by the name of the setting, then by seed


def study_tasks(
    study: str,
    settings: Mapping[str, Setting],
    corpus: Corpus,
    *,
    seeds: Iterable[int],
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    keep: Iterable[str] = (),
    **common: Any,
) -> list[dict[str, Any]]:
    """One task for each setting and seed, under the name "<study>/<setting>".

    `model` and `training` hold for all of them, unless a setting says otherwise; `keep` names the
    settings whose parameters are stored; `common` goes to `review_tasks.training_task`. Without
    `glove_words` the pretrained vectors are learned ones.
    """
    seeds, keep, tasks = list(seeds), set(keep), []
    for name, (own_model, own_training) in settings.items():
        chosen = {**(model or {}), **own_model}
        if not common.get("glove_words"):
            chosen["vectors"] = "learned"
        tasks += [
            review_tasks.training_task(
                f"{study}/{name}",
                corpus,
                seed=seed,
                model=chosen,
                training={**(training or {}), **own_training},
                keep=name in keep,
                **common,
            )
            for seed in seeds
        ]
    return tasks


def train(tasks: Sequence[Mapping[str, Any]], name: str) -> Runs:
    """Train what is not kept yet; the results by setting and seed, in the tasks' order."""
    # the dearest first, so that no process is left with a long training at the end
    queue = sorted(tasks, key=_cost, reverse=True)
    with _huge_pages():
        found = sweep.run_tasks(
            queue, review_tasks.train_task, name=name, modules=review_tasks.MODULES
        )
    by_label = dict(zip([task["label"] for task in queue], found, strict=True))
    runs: Runs = {}
    for task in tasks:
        runs.setdefault(setting_of(task), {})[task["seed"]] = by_label[task["label"]]
    return runs


@contextlib.contextmanager
def _huge_pages() -> Iterator[None]:
    """Processes started meanwhile take large pages of memory, unless glibc was told otherwise."""
    mine = {name: value for name, value in HUGE_PAGES.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def setting_of(task: Mapping[str, Any]) -> str:
    """The name "<study>/<setting>" that a task was made under."""
    return task["label"].rpartition(" seed ")[0]


def _cost(task: Mapping[str, Any]) -> float:
    """About how long a training takes, in no unit."""
    units = task["model.hidden_size"] * task["model.num_layers"] * (1 + task["model.bidirectional"])
    cell = {"rnn": 0.5, "gru": 1.3, "none": 0.1}.get(task["model.cell"], 1.0)
    steps = task["training.pad_to"] or 230  # the mean length of a real review
    return units * cell * steps * task["training.epochs"] * (task["num_train"] or 20_000)


def accuracies(
    by_seed: Mapping[int, Arrays], corpus: Corpus, *, held_out: bool = False
) -> list[float]:
    """The accuracy of each seed on the test part, or on the small study's held-out reviews."""
    test = corpus.split()["test"]
    chosen = torch.isin(test, review_tasks.held_out(corpus)) if held_out else slice(None)
    y = corpus.label[test][chosen]
    return [
        accuracy(torch.from_numpy(arrays["test_probability"])[chosen], y)
        for arrays in by_seed.values()
    ]


CURVES = ("train_loss", "train_accuracy", "curve_loss", "curve_accuracy", "gradient_norm", "moved")


def measures_of(
    runs: Runs, corpus: Corpus, epochs: Sequence[int] | None = None
) -> dict[str, dict[str, Any]]:
    """A summary over the seeds for everything that a setting's trainings have found.

    "<setting>/test_accuracy", "held_out_accuracy", "dev_accuracy" and "best_epoch" belong to the
    checkpoint that dev chose; "seconds" is a training's; and for every epoch k, from 1,
    "<setting>/train_loss/k" and the other `CURVES` that were recorded.
    """
    measures = {}

    def note(name: str, values: Sequence[float], **options: Any) -> None:
        measures[name] = summarise([float(v) for v in values], student=True, **options)

    for name, by_seed in runs.items():
        seeds, arrays = list(by_seed), list(by_seed.values())
        note(f"{name}/test_accuracy", accuracies(by_seed, corpus), seeds=seeds)
        held_out = accuracies(by_seed, corpus, held_out=True)
        note(f"{name}/held_out_accuracy", held_out, seeds=seeds)
        note(f"{name}/dev_accuracy", [a["dev_accuracy"].max() for a in arrays], seeds=seeds)
        note(f"{name}/best_epoch", [a["best_epoch"].item() for a in arrays], seeds=seeds)
        seconds = [a["seconds"].sum() for a in arrays]
        note(f"{name}/seconds", seconds, seeds=seeds, unit="s", timing=True)
        for curve in CURVES:
            if curve in arrays[0]:
                for k in range(1, len(arrays[0][curve]) + 1):
                    if epochs is None or k in epochs:
                        note(f"{name}/{curve}/{k}", [a[curve][k - 1] for a in arrays], seeds=seeds)
    return measures
