"""The two studies of film reviews: their settings, what is measured, the published figures beside.

Study A repeats a homework on 20,000 reviews, study B a laboratory report on 2,000 of them with
pretrained word vectors. Every setting is a name with what it changes of `ReviewSpec` and
`TrainSpec`; what the sources do not say, and was inferred, stands beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from labkit.film.corpus import Corpus, numericalize, tokenize
from labkit.film.model import ReviewClassifier
from labkit.film.training import FilmTraining, accuracy, held_out, positive
from labkit.lab import store
from labkit.lab.specification import Arrays
from labkit.measure.claims import MISSING, Row, number_row
from labkit.measure.statistics import Measure, number, summarise

Setting = tuple[dict[str, Any], dict[str, Any]]  # what changes of the model, of the training
Study = dict[str, list[FilmTraining]]  # by the name "<study>/<setting>", one for each seed
Runs = dict[str, dict[int, Arrays]]  # by the name of the setting, then by seed

# torch's layers have a head 64-128-2, the handwritten one 64-64-2
_HAND = {"cell": "handwritten", "pooling": "mean", "head_size": 64}

# Which vector of torch's layers stands for a review is not known: both are run.
CORE: dict[str, Setting] = {
    f"{cell}/{pooling}": ({"cell": cell, "pooling": pooling, "head_size": 128}, {})
    for pooling in ("last", "mean")
    for cell in ("rnn", "lstm", "gru")
} | {"handwritten/mean": (_HAND, {})}
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
RATING: Setting = ({"head_size": 128, "pooling": "mean", "num_classes": 10}, {})

# Candidates for the best recurrent model; dev chooses. A small start of the embedding matters most:
# beside vectors of length 8 that nobody has trained, what a rare word means is hard to hear. With
# `skip` the words' own vectors are pooled beside the recurrent states (as in the recurrent
# convolutional network of Lai, Xu, Liu and Zhao, 2015).
_STRONG = {
    "bidirectional": True, "pooling": "max", "dropout": 0.5, "embedding_dropout": 0.3,
    "embedding_scale": 0.1,
}  # fmt: skip
_FALLING = {"lr": 2e-3, "decay": True, "clip": 1.0, "word_dropout": 0.1}
BEST: dict[str, Setting] = {
    "bilstm_max": (_STRONG, _FALLING),
    "bilstm_beside_words": ({**_STRONG, "pooling": "mean_max", "skip": True}, _FALLING),
}

# study B without its three mistakes, with each alone, and with all together, as the source had them
_B = {
    "bidirectional": True, "embedding_size": 100, "head_size": 32, "activation": "tanh",
    "vectors": "glove",
}  # fmt: skip
_WRONG = {**_B, "pooling": "last_step"}
_SOFTMAX, _CARRY = {"loss": "ce_on_softmax"}, {"carry": True}
MISTAKES: dict[str, Setting] = {
    "none": (_B, {}),
    "softmax": (_B, _SOFTMAX),
    "carry": (_B, _CARRY),
    "last_step": (_WRONG, {}),
    "all": (_WRONG, _SOFTMAX | _CARRY),
}
# the source's other experiments, with its three mistakes
_ONE_WAY = {**_B, "bidirectional": False, "pooling": "last"}
_SGD = {"optimiser": "sgd", "momentum": 0.9}
SOURCE_B: dict[str, Setting] = {
    "dropout": ({**_WRONG, "dropout": 0.5}, _SOFTMAX | _CARRY),
    **{
        f"l2/{weight:g}": (_WRONG, _SOFTMAX | _CARRY | {"weight_decay": weight})
        for weight in (0.01, 0.001, 0.0001, 0.0002)
    },
    **{
        f"lstm_sgd/{k}": (_ONE_WAY, _SOFTMAX | _CARRY | _SGD | {"lr": 0.1, "halve_every": k})
        for k in (20, 5, 8)
    },
    "bilstm_sgd": (_WRONG, _SOFTMAX | _CARRY | _SGD | {"lr": 0.03, "halve_every": 20}),
}
# without the mistakes: how SGD fares with and without clipping, and what the vectors are worth
_MEAN = {**_B, "pooling": "mean"}
SOUND_B: dict[str, Setting] = {
    "sgd": (_B, {**_SGD, "lr": 0.1, "halve_every": 8}),
    "sgd_clipped": (_B, {**_SGD, "lr": 0.1, "halve_every": 8, "clip": 1.0}),
    **{kind: ({**_MEAN, "vectors": kind}, {}) for kind in ("glove", "glove_tuned", "random")},
    "learned": ({**_MEAN, "vectors": "learned"}, {}),
}
# the handwritten two-layer stack on plain SGD, which never learned, and what might wake it up
_STACK = {**_ONE_WAY, "cell": "handwritten", "num_layers": 2}
_PLAIN = {**_SOFTMAX, "optimiser": "sgd"}
STACK: dict[str, Setting] = {
    **{f"sgd/{lr:g}": (_STACK, {**_PLAIN, "lr": lr}) for lr in (0.1, 0.001, 1e-6)},
    "sgd/0.1, mean": ({**_STACK, "pooling": "mean"}, {**_PLAIN, "lr": 0.1}),
    "adam": (_STACK, _SOFTMAX),
    "adam, mean": ({**_STACK, "pooling": "mean"}, _SOFTMAX),
}
FEW = (  # what a run without `everything` trains of those
    "handwritten/last", "handwritten/bce_on_sigmoid", "dropout", "sgd_clipped", "sgd/0.001",
    "adam, mean", "bilstm_beside_words",
)  # fmt: skip


def chosen(settings: Mapping[str, Setting], everything: bool) -> dict[str, Setting]:
    """All settings of a group, or a few of them."""
    return {name: s for name, s in settings.items() if everything or name in FEW}


def padded(names: Iterable[str], to: int) -> dict[str, Setting]:
    """Some of `MISTAKES` on reviews that are all padded to `to` words, as the source did."""
    return {
        f"{name}, padded": (MISTAKES[name][0], {**MISTAKES[name][1], "pad_to": to})
        for name in names
    }


# trainings


def study(
    prefix: str,
    settings: Mapping[str, Setting],
    base: FilmTraining,
    seeds: Iterable[int],
    keep: Iterable[str] = (),
) -> Study:
    """A training for each setting and seed, by the name "<prefix>/<setting>".

    `base` holds unless a setting says otherwise; `keep` names the settings whose parameters are
    kept. Without lines of GloVe the pretrained vectors are learned ones.
    """
    trainings: Study = {}
    for name, (model, training) in settings.items():
        spec = replace(base.model, **model)
        if not base.glove_words:
            spec = replace(spec, vectors="learned")
        of_setting = replace(
            base,
            model=spec,
            training=replace(base.training, **training),
            keep=name in keep,
            glove_words=base.glove_words if spec.vectors != "learned" else 0,
        )
        trainings[f"{prefix}/{name}"] = [replace(of_setting, seed=seed) for seed in seeds]
    return trainings


def train(trainings: Study, name: str) -> Runs:
    """Carry out the trainings that are not kept; the results by setting and seed."""
    # the longest first, so that no process is left with one of them at the end
    queue = sorted(itertools.chain(*trainings.values()), key=lambda t: t.cost, reverse=True)
    results = dict(zip(queue, store.train(queue, name=name), strict=True))
    return {name: {t.seed: results[t] for t in group} for name, group in trainings.items()}


# measures

CURVES = ("train_loss", "train_accuracy", "curve_loss", "curve_accuracy", "gradient_norm", "moved")


def marked_epochs(epochs: int) -> list[int]:
    """The epochs of study B that are measured: every fifth, the last, and 31, which was printed."""
    return [k for k in range(1, epochs + 1) if k % 5 == 0 or k in (31, epochs)]


def held_out_probability(arrays: Arrays, corpus: Corpus) -> Tensor:
    """P(positive) of the held-out reviews, from a training that answered these or all."""
    test, p = corpus.split()["test"], torch.from_numpy(arrays["test_probability"])
    return p[torch.isin(test, held_out(corpus))] if len(p) == len(test) else p


def measures_of(
    runs: Runs,
    corpus: Corpus,
    epochs: Sequence[int] | None = None,
    curves: Sequence[str] = CURVES,
) -> dict[str, Measure]:
    """A summary over the seeds of everything that a setting's trainings returned.

    "<setting>/held_out_accuracy", "test_accuracy" where all reviews were answered, "dev_accuracy"
    and "best_epoch" belong to the checkpoint that dev chose; "seconds" is a training's; and for
    every epoch k, from 1, or those in `epochs`, "<setting>/train_loss/k" and the other `curves`
    that were recorded.
    """
    measures: dict[str, Measure] = {}
    y, y_slice = corpus.label[corpus.split()["test"]], corpus.label[held_out(corpus)]
    for name, by_seed in runs.items():
        arrays = list(by_seed.values())
        p = [torch.from_numpy(a["test_probability"]) for a in arrays]
        slices = [held_out_probability(a, corpus) for a in arrays]
        values = {"test_accuracy": [accuracy(q, y) for q in p if len(q) == len(y)]}
        values["held_out_accuracy"] = [accuracy(q, y_slice) for q in slices]
        values["dev_accuracy"] = [a["dev_accuracy"].max() for a in arrays]
        for quantity in ("best_epoch", "seconds"):
            values[quantity] = [a[quantity].sum() for a in arrays]
        for curve in curves:
            for k in range(1, len(arrays[0].get(curve, ())) + 1):
                if epochs is None or k in epochs:
                    values[f"{curve}/{k}"] = [a[curve][k - 1] for a in arrays]
        for quantity, raw in values.items():
            timing = {"unit": "s", "timing": True} if quantity == "seconds" else {}
            if len(raw) == len(by_seed):
                measures[f"{name}/{quantity}"] = summarise(
                    list(map(float, raw)), seeds=list(by_seed), student=True, **timing
                )
    return measures


def by_length(
    runs: Mapping[int, Arrays], corpus: Corpus, edges: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on test reviews of `edges[k]` to `edges[k + 1]` - 1 words, for each seed, (S, K).

    Also the median length in each of these ranges, (K,); ranges without a review are left out.
    """
    test = corpus.split()["test"]
    length, y = corpus.length[test], corpus.label[test]
    ranges = [(length >= a) & (length < b) for a, b in itertools.pairwise(edges)]
    ranges = [inside for inside in ranges if inside.any()]
    p = [torch.from_numpy(arrays["test_probability"]) for arrays in runs.values()]
    shares = [[accuracy(q[inside], y[inside]) for inside in ranges] for q in p]
    medians = [float(length[inside].double().median()) for inside in ranges]
    return np.array(medians), np.array(shares)


# linear models, and what a trained network reads

_WORDS = {"tokenizer": list, "token_pattern": None, "lowercase": False, "dtype": np.float32}
VECTORIZERS = {  # of lists of words; a word or pair counts that stands in two training reviews
    "binary": CountVectorizer(binary=True, min_df=2, **_WORDS),
    "tfidf_pairs": TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, **_WORDS),
}
STRENGTHS = (0.03, 0.3, 3.0, 30.0)  # C, the inverse of the L2 penalty's weight


def logistic_regression(
    corpus: Corpus,
    kind: str,
    *,
    max_len: int,
    strengths: Sequence[float] = STRENGTHS,
    **parts: Tensor,
) -> dict[str, Any]:
    """Fit the reviews `train` for every strength, choose by `dev` accuracy, score `test` once.

    `parts` are the indices of these three; the first `max_len` words of a review are read. Returns
    "C", "dev_accuracy", "test_accuracy", "num_features", and "test_probability" (n,) of "positive".
    """
    words = {n: [corpus.review(i)[:max_len] for i in part.tolist()] for n, part in parts.items()}
    y = {name: corpus.label[part].numpy() for name, part in parts.items()}
    vectorizer = clone(VECTORIZERS[kind])
    X = {"train": vectorizer.fit_transform(words["train"])}
    X |= {name: vectorizer.transform(words[name]) for name in ("dev", "test")}
    models = {C: LogisticRegression(C=C, solver="liblinear", random_state=0) for C in strengths}
    scores = {C: m.fit(X["train"], y["train"]).score(X["dev"], y["dev"]) for C, m in models.items()}
    best = max(scores, key=scores.get)
    p = torch.from_numpy(models[best].predict_proba(X["test"])[:, 1])
    return {
        "C": float(best),
        "dev_accuracy": float(scores[best]),
        "test_accuracy": accuracy(p, corpus.label[parts["test"]]),
        "num_features": X["train"].shape[1],
        "test_probability": p,
    }


@torch.no_grad()
def read_aloud(model: ReviewClassifier, ids: Tensor, size: int = 64) -> Tensor:
    """P(positive) after each word of a review `ids` (T,), as if it ended there: (T,)."""
    p = []
    for length in torch.arange(1, len(ids) + 1).split(size):
        X = ids[: int(length.max())].long().expand(len(length), -1)
        p.append(positive(model(X, length).softmax(1)))  # what stands behind a length is not read
    return torch.cat(p)


def predict(model: ReviewClassifier, corpus: Corpus, text: str) -> tuple[list[str], Tensor]:
    """The words of a typed text as the model sees them, and P(positive) after each, (T,)."""
    words = tokenize(text)
    if not words:
        raise ValueError(f"there is no word in {text!r}; type a sentence")
    ids = numericalize(words, {word: number for number, word in enumerate(corpus.words)})
    return [corpus.words[i] for i in ids], read_aloud(model, torch.tensor(ids))


def worst_errors(probability: Tensor, label: Tensor, count: int) -> Tensor:
    """Positions of the reviews that a model got wrong, the surest first, `count` at most."""
    wrong = torch.where(label.bool(), 1 - probability, probability)
    errors = int(((probability >= 0.5) != label.bool()).sum())
    return wrong.argsort(descending=True, stable=True)[: min(count, errors)]


# published figures

PUBLISHED_A = {  # the table of data/published.toml that a setting of study A stands beside
    "rnn/mean": "rnn",
    "rnn/last": "rnn",
    "lstm/mean": "lstm",
    "lstm/last": "lstm",
    "gru/mean": "gru",
    "gru/last": "gru",
    "handwritten/mean": "handwritten_lstm",
    "handwritten/hidden128": "handwritten_lstm_hidden128",
    "handwritten/two_cells": "handwritten_lstm_two_cells",
    "handwritten/mse": "handwritten_lstm_other_loss",
    "handwritten/bce": "handwritten_lstm_bce_one_hot",
    "handwritten/bce_on_sigmoid": "handwritten_lstm_bce_one_hot",
    "handwritten/adamax": "handwritten_lstm_adamax",
    "handwritten/batch128": "handwritten_lstm_batch128",
}
ASSUMED = {
    "handwritten/mse": " (squared error assumed)",
    "handwritten/bce_on_sigmoid": " (a second sigmoid inferred from the printed losses)",
    "handwritten/adamax": " (learning rate 0.002 assumed)",
}
PRINTED = (  # a published curve, our measure of it, and whether more of it is better
    ("test_accuracy", "curve_accuracy", True),
    ("test_loss", "curve_loss", False),
    ("train_accuracy", "train_accuracy", None),
    ("train_loss", "train_loss", None),
)
LEARNED = 0.6  # training accuracy; one half is chance
LEFT_OUT = "this profile leaves it out; `make reproduce CHAPTERS=04 PROFILE=full` trains it"


def about(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on, and what ours beside them are."""
    a, b = published["imdb"], published["imdb_glove"]
    return (
        f"Published, study A: {a['vocab_size']:,} words, embedding {a['embedding_dim']}, hidden "
        f"{a['hidden_size']}, {a['epochs']} epochs on {a['n_train']:,} reviews, batches of "
        f"{a['batch_size']}; one training each, chosen by the test curve. Our curves are over "
        f"5,000 test reviews. Study B: {b['n_train']:,} reviews, GloVe {b['embedding_dim']}d, "
        f"front padding to {b['max_len']} words, batches of {b['batch_size']}; its mistakes are a "
        "softmax before the cross-entropy, states carried from batch to batch, and the last step "
        "of a bidirectional output. Ours are over the slice of 2,000 that the "
        f"{b['n_test']:,} reviews of the published final test come from. A training with "
        f"stochastic gradient descent *learned* where it got at least {LEARNED:.0%} of its "
        "training reviews right in the end. The peers' models read all 25,000."
    )


def rows(
    measures: Mapping[str, Any], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """Heading -> rows: every published figure of the studies and the peers, ours beside it.

    What a run with these settings does not train has the verdict "no result yet"; KeyError for any
    other measure that is missing.
    """
    to = settings["small_pad_to"]
    size = (
        f" (ours: {settings['small_hidden']} hidden units, {settings['small_epochs']} epochs, "
        f"vectors of {settings['glove_words']:,} words, padded "
        f"{f'to {to} words' if to else 'inside the batch'})"
    )
    tables: dict[str, list[Row]] = {}
    for heading, *facts in (*_study_a(published), *_study_b(published, settings["also_padded"])):
        heading += size if heading.startswith("Study B") else ""
        tables.setdefault(heading, []).append(_row(measures, settings, *facts))
    return tables


def _study_a(published: Mapping[str, Any]) -> Iterator[tuple]:
    """A heading and what `_row` takes, for every figure of study A and of the peers."""
    a, peers = published["imdb"], published["peers"]
    for name, table in PUBLISHED_A.items():
        heading = f"Study A, {table.replace('_', ' ')}, ours `{name}`{ASSUMED.get(name, '')}"
        for printed, curve, better in PRINTED:
            for k, value in enumerate(a[table].get(printed, ()), start=1):
                what = f"{printed.replace('_', ' ')}, epoch {k}"
                yield heading, what, value, f"a/{name}/{curve}", k, better
    seconds = a["handwritten_lstm_batch128"]["seconds_for_5_epochs"]
    for size, name in (("64", "mean"), ("128", "batch128")):
        what, name = f"batches of {size}", f"a/handwritten/{name}/seconds"
        yield "Study A, seconds for five epochs", what, seconds[f"batch{size}"], name, 0, False
    for peer, name in (
        ("bentrevett_nbow", "baseline/averaged_embeddings"),
        ("bentrevett_bilstm", "best/model"),
        ("nndl_textbook_bilstm", "best/model"),
        *(("llms_from_scratch_logreg", f"baseline/{kind}") for kind in VECTORIZERS),
    ):
        what, value = peer.replace("_", " "), peers[f"{peer}_test_accuracy"]
        yield "Peers: public material on the same data", what, value, f"{name}/test_accuracy"


def _study_b(published: Mapping[str, Any], also_padded: Sequence[str]) -> Iterator[tuple]:
    """The same for study B; words are the outcome of a training by gradient descent."""
    heading, glove = "Study B, bidirectional LSTM", published["imdb_glove"]
    adam, l2, tested = glove["bilstm_adam"], glove["bilstm_adam_l2"], "held_out_accuracy"
    for end in ("", ", padded") if "all" in also_padded else ("",):
        note = f", ours padded to {glove['max_len']} words likewise" if end else ""
        for k, percent in zip(adam["epochs"], adam["test_accuracy_percent"], strict=True):
            what, name = f"Adam, test accuracy at epoch {k}", f"b/mistake/all{end}/curve_accuracy"
            yield heading, f"{what}{note}", percent / 100, name, k
    what, value = "Adam, training accuracy at epoch 31", adam["train_accuracy_epoch_31"]
    yield heading, what, value, "b/mistake/all/train_accuracy", 31, None
    percents = glove["bilstm_adam_dropout"]["test_accuracy_percent_range"]
    for which, percent in zip(("lowest", "highest"), percents, strict=True):
        what = f"dropout 0.5, {which} test accuracy"
        yield heading, what, percent / 100, f"b/source/dropout/{tested}"
    for weight, percent in zip(l2["lambda"], l2["test_accuracy_percent"], strict=True):
        what, name = f"L2 penalty λ = {weight:g}, test accuracy", f"b/source/l2/{weight:g}/{tested}"
        yield heading, what, percent / 100, name
    value = glove["held_out"]["bilstm_accuracy"]
    for how, name in (("with them likewise", "all"), ("without them", "none")):
        what = f"held-out slice, published with its three mistakes, ours {how}"
        yield heading, what, value, f"b/mistake/{name}/{tested}"

    heading, sgd, both = "Study B, gradient descent", glove["lstm_sgd"], glove["bilstm_sgd"]
    for k, last, outcome in zip(sgd["halve_every"], sgd["epochs"], sgd["outcome"], strict=True):
        what = f"LSTM, rate 0.1 halved every {k} epochs, {last} epochs"
        yield heading, what, outcome, f"b/source/lstm_sgd/{k}", last
    what = "bidirectional, rate 0.03 halved every 20 epochs, 100 epochs"
    outcome = f"{both['test_accuracy_percent']} %, training {both['train_accuracy']}"
    yield heading, what, outcome, "b/source/bilstm_sgd", 100
    stack = glove["handwritten_two_layer_sgd"]
    outcome = f"{stack['test_accuracy_percent']} %, {stack['outcome']}"
    for lr in ("0.1", "0.001", "1e-06"):
        what = f"handwritten two-layer stack, plain SGD, rate {lr}"
        yield heading, what, outcome, f"b/stack/sgd/{lr}"


def _row(
    measures: Mapping[str, Any],
    settings: Mapping[str, Any],
    what: str,
    value: float | str,
    name: str,
    epoch: int = 0,
    better: bool | None = True,
) -> Row:
    """The row of a number, of the epoch that dev chose or of `epoch`; or of an outcome in words."""
    last = settings["epochs" if name.startswith("a/") else "small_epochs"]
    in_words = isinstance(value, str)
    ours = f"{name}/held_out_accuracy" if in_words else f"{name}/{epoch}" if epoch else name
    if ours not in measures and (not settings["everything"] or (epoch > last and not in_words)):
        return Row(what, str(value), "–", MISSING, LEFT_OUT)
    measure = measures[ours]
    if in_words:
        mean = measures[f"{name}/train_accuracy/{last}"]["mean"]
        verdict = "learned" if mean >= LEARNED else "did not learn"
        reason = f"training accuracy {number(mean)} after our {last} epochs"
        if last < epoch:
            reason += f", too few to test what is published after {epoch}"
        return Row(what, value, f"{number(measure)}, n = {measure['n']}", verdict, reason)
    if not isinstance(measure, dict):
        verdict = "ours better" if measure > value else "ours worse"
        reason = f"{measure - value:+.3f}; `{name.split('/')[1]}`, which has no seeds"
        return Row(what, str(value), number(measure), verdict, reason)
    unit = "s" if measure["timing"] else ""
    return number_row(what, value, measures, ours, higher_is_better=better, unit=unit)
