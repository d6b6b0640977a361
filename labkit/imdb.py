"""The two studies of film reviews: their settings, and what is measured on the trained models.

Study A repeats a homework on 20,000 reviews, study B a laboratory report on 2,000 of them with
pretrained word vectors. Every setting is a name with what it changes of `ReviewSpec` and
`TrainSpec`; what the sources do not say, and was inferred, stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "handwritten/last": ({**_HAND, "pooling": "last"}, {}),
    "handwritten/mean": (_HAND, {}),
}
# The loss "bce_on_softmax" is inferred from the printed training losses, which end far above what
# their accuracy allows otherwise; "a larger learning rate" is taken as Adamax' own default.
VARIATIONS: dict[str, Setting] = {
    "handwritten/hidden128": ({**_HAND, "hidden_size": 128}, {}),
    "handwritten/two_cells": ({**_HAND, "num_layers": 2}, {}),
    "handwritten/mse": (_HAND, {"loss": "mse"}),
    "handwritten/bce": (_HAND, {"loss": "bce"}),
    "handwritten/bce_on_softmax": (_HAND, {"loss": "bce_on_softmax"}),
    "handwritten/adamax": (_HAND, {"optimiser": "adamax", "lr": 2e-3}),
    "handwritten/batch128": (_HAND, {"batch_size": 128}),
}
STUDY_A = CORE | VARIATIONS

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
    "handwritten/bce_on_softmax": "handwritten_lstm_bce_one_hot",
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
# the same questions put to the model without the mistakes, and some that the source did not ask
SOUND_B: dict[str, Setting] = {
    "dropout": _sound({"dropout": 0.5}, {}),
    "l2/0.001": _sound({}, {"weight_decay": 1e-3}),
    "l2/0.0001": _sound({}, {"weight_decay": 1e-4}),
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
