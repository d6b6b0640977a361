"""Fine-tuned BERT against its rivals: the settings by name, and what is measured.

The sources tried five settings of one recipe; beside them stand a sound recipe and the rivals that
get the same reviews: the encoder kept frozen, the same architecture from a random start, chapter
04's recurrent network, and logistic regression.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.bert.model import POOLINGS, BertClassifier
from labkit.bert import tasks as bert_tasks
from labkit.film import analysis as review_analysis
from labkit.film import baselines
from labkit.film import tasks as review_tasks
from labkit.film.corpus import Corpus
from labkit.film.training import accuracy
from labkit.lab import sweep
from labkit.measure.statistics import summarise

Setting = tuple[dict[str, Any], dict[str, Any]]  # what changes of the model, of the training

# one linear layer on the pooled vector, warm-up and linear decay
_SCHEDULE = {"schedule": "linear", "warmup": 0.1, "weight_decay": 0.01, "clip": 1.0}
SOUND: dict[str, Setting] = {
    pooling: ({"pooling": pooling, "dropout": 0.1}, _SCHEDULE) for pooling in POOLINGS
}

# The sources: the last of a fixed number of positions, mostly padding; a head with one hidden
# layer; a constant learning rate. They do not say the head's size, the batch, the optimiser's
# decay, nor the rate that run 5 begins with: 64, 16, none and that of run 4 are inferred.
_HEAD = {"pooling": "last_position", "head_sizes": (64,)}
_PLAIN = {"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "clip": 0.0, "fixed": True}


def _source(lr: float, dropout: float = 0.0, **training: Any) -> Setting:
    return {**_HEAD, "dropout": dropout}, {**_PLAIN, "lr": lr, "head_lr": lr, **training}


SOURCE: dict[str, Setting] = {
    "1/1e-05": _source(1e-5),
    "1/0.001": _source(1e-3),
    "1/5e-05": _source(5e-5),
    "2": _source(1e-6),
    "3": _source(1e-6, 0.3),
    "4": _source(1e-6, 0.3),
    "5": _source(1e-6, 0.5, schedule="halve", halve_every=5),
}
SOURCE_TRAIN = dict.fromkeys(SOURCE, 200) | {"4": 2_000, "5": 2_000}

MAX_WORDS = 500  # that the recurrent and the linear rivals read
SHARES = 2  # processes that compute vectors
Arrays = Mapping[str, np.ndarray]
Runs = dict[str, dict[int, Arrays]]  # by the name of the setting, then by seed
Probes = dict[int, dict[str, Any]]  # by seed


# trainings


def random_start(setting: Setting) -> Setting:
    """The setting with random weights at the start."""
    return {**setting[0], "pretrained": False}, setting[1]


def tuned_tasks(
    name: str,
    setting: Setting,
    *,
    seeds: Iterable[int],
    training: Mapping[str, Any] | None = None,
    **common: Any,
) -> list[dict[str, Any]]:
    """A task of `bert_tasks` for each seed, under the name `name`.

    `training` holds unless the setting says otherwise; where all of the model starts at random, all
    has the head's learning rate. `common` goes to `bert_tasks.training_task`.
    """
    model, own = setting
    chosen = {**(training or {}), **own}
    if not model.get("pretrained", True):
        chosen["lr"] = chosen["head_lr"]
    common |= {"model": model, "training": chosen}
    return [bert_tasks.training_task(name, seed=seed, **common) for seed in seeds]


def recurrent_tasks(
    name: str,
    setting: Setting,
    corpus: Corpus,
    *,
    seeds: Iterable[int],
    epochs: int,
    num_train: int,
    num_dev: int,
    **common: Any,
) -> list[dict[str, Any]]:
    """A task of `review_tasks` for each seed: a recurrent model of chapter 04, 500 words read.

    With all reviews (`num_train` 0) it is chapter 04's own task, which is trained once for both.
    """
    model, training = setting
    common |= {"model": model, "training": {**training, "epochs": epochs, "max_len": MAX_WORDS}}
    common |= {"num_train": num_train, "num_dev": num_dev if num_train else 0}
    return [
        review_tasks.training_task(name, corpus, seed=seed, keep=not num_train, **common)
        for seed in seeds
    ]


def train(tasks: Sequence[Mapping[str, Any]], name: str) -> Runs:
    """Train what is not stored yet, all BERT or all recurrent; results by setting and seed."""
    rooms = bert_tasks if tasks and "pretrained" in tasks[0] else review_tasks
    # the dearest first, so that no process is left with a long training at the end
    queue = sorted(tasks, key=_cost, reverse=True)
    found = sweep.run_tasks(queue, rooms.train_task, name=name, modules=rooms.MODULES)
    by_label = dict(zip([task["label"] for task in queue], found, strict=True))
    runs: Runs = {}
    for task in tasks:
        setting = task["label"].rpartition(" seed ")[0]
        runs.setdefault(setting, {})[task["seed"]] = by_label[task["label"]]
    return runs


def _cost(task: Mapping[str, Any]) -> int:
    """About how many pieces are read; a step of training costs as much as reading three times."""
    trained = 3 * task["training.epochs"] * (task["num_train"] or 20_000)
    return task["training.max_len"] * (trained + (25_000 if task.get("test") == "all" else 0))


# rivals without steps: by number of reviews and seed


def linear_runs(
    corpus: Corpus,
    *,
    sizes: Iterable[int],
    seeds: Sequence[int],
    num_dev: int,
    test: Tensor | None = None,
) -> dict[int, Probes]:
    """Logistic regression on words and pairs, on the reviews that the others get.

    `baselines.logistic_regression`, tested on the held-out reviews or those in `test`, also with
    "seconds". Of all reviews there is only one draw.
    """
    found: dict[int, Probes] = {}
    for size, seed, reads in _drawn(corpus, sizes, seeds, num_dev):
        if test is not None:
            reads["test"] = test
        began = time.perf_counter()
        fitted = baselines.logistic_regression(corpus, "tfidf_pairs", **reads, max_len=MAX_WORDS)
        found.setdefault(size, {})[seed] = fitted | {"seconds": time.perf_counter() - began}
    return found


def frozen_runs(
    corpus: Corpus,
    *,
    corpus_name: str,
    sizes: Sequence[int],
    seeds: Sequence[int],
    num_dev: int,
    test: str = "held_out",
    **common: Any,
) -> tuple[dict[str, dict[int, Probes]], float]:
    """A linear head on the frozen encoder's vectors: by pooling, number of reviews and seed.

    The vectors are computed once, by two processes. Also the seconds that one review's took. With
    `test` "none" only dev is scored. `common` goes to `bert_tasks.features_task`.
    """
    whole = max(sizes) == len(corpus.split()["train"])
    common |= {"corpus": corpus_name, "seeds": seeds, "num_dev": num_dev, "test": test}
    common["num_train"] = 0 if whole else max(sizes)
    tasks = [
        bert_tasks.features_task(share=share, shares=SHARES, **common) for share in range(SHARES)
    ]
    vectors = sweep.run_tasks(
        tasks, bert_tasks.feature_task, name="frozen vectors", modules=bert_tasks.MODULES
    )
    found: dict[str, dict[int, Probes]] = {pooling: {} for pooling in POOLINGS}
    for size, seed, reads in _drawn(corpus, sizes, seeds, num_dev):
        if test == "none":
            reads["test"] = reads["dev"]
        labels = {name: corpus.label[index] for name, index in reads.items()}
        for pooling in POOLINGS:
            features = {
                name: bert_tasks.features_of(vectors, pooling, index)
                for name, index in reads.items()
            }
            probe = bert_tasks.linear_probe(features, labels)
            found[pooling].setdefault(size, {})[seed] = probe
    seconds = sum(part["seconds"].item() for part in vectors)
    return found, seconds / sum(len(part["index"]) for part in vectors)


def _drawn(
    corpus: Corpus, sizes: Iterable[int], seeds: Sequence[int], num_dev: int
) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """A number of reviews, a seed, and the reviews that they stand for."""
    split = corpus.split()
    dev, test = review_tasks.draw(corpus, split["dev"], num_dev, 0), review_tasks.held_out(corpus)
    for size in sizes:
        whole = size == len(split["train"])
        for seed in seeds[:1] if whole else seeds:
            train = review_tasks.draw(corpus, split["train"], 0 if whole else size, seed)
            yield size, seed, {"train": train, "dev": dev, "test": test}


# measures


def held_out_probability(arrays: Arrays, corpus: Corpus) -> Tensor:
    """P(positive) of the held-out reviews, from a training, BERT's or a recurrent model's."""
    index, p = corpus.split()["test"], torch.as_tensor(arrays["test_probability"])
    tested_all = len(p) == len(index)
    return p[torch.isin(index, review_tasks.held_out(corpus))] if tested_all else p


def measures_of(runs: Runs, corpus: Corpus, epochs: Sequence[int] = ()) -> dict[str, Any]:
    """A summary over the seeds for what the trainings of each setting have found.

    "<setting>/held_out_accuracy", "test_accuracy" where all were tested, "dev_accuracy" and
    "best_epoch" belong to the checkpoint that dev chose; "seconds" is the training's alone;
    "curve_accuracy/k" is of the held-out reviews after each of the `epochs`, where recorded.
    """
    found, test, slice_ = {}, corpus.split()["test"], review_tasks.held_out(corpus)
    for name, by_seed in runs.items():
        arrays = list(by_seed.values())
        held_out = [held_out_probability(a, corpus) for a in arrays]
        values = {
            "held_out_accuracy": [accuracy(p, corpus.label[slice_]) for p in held_out],
            "dev_accuracy": [a["dev_accuracy"].max() for a in arrays],
            "best_epoch": [a["best_epoch"].item() for a in arrays],
            "seconds": [a["seconds"].sum() for a in arrays],
        }
        if all(len(a["test_probability"]) == len(test) for a in arrays):
            everything = [torch.as_tensor(a["test_probability"]) for a in arrays]
            values["test_accuracy"] = [accuracy(p, corpus.label[test]) for p in everything]
        for k in epochs:
            if k <= len(arrays[0].get("curve_accuracy", ())):
                values[f"curve_accuracy/{k}"] = [a["curve_accuracy"][k - 1] for a in arrays]
        for quantity, raw in values.items():
            found[f"{name}/{quantity}"] = _summary(raw, list(by_seed), quantity)
    return found


def probe_measures(name: str, by_size: Mapping[int, Probes]) -> dict[str, Any]:
    """Summaries "<name>/<size>/held_out_accuracy" and ".../dev_accuracy" over the seeds."""
    found = {}
    for size, by_seed in by_size.items():
        for quantity, key in (("held_out_accuracy", "test_accuracy"), ("dev_accuracy",) * 2):
            raw = [fitted[key] for fitted in by_seed.values()]
            found[f"{name}/{size}/{quantity}"] = _summary(raw, list(by_seed), quantity)
    return found


def _summary(raw: Sequence[Any], seeds: Sequence[int], quantity: str) -> dict[str, Any]:
    timing = {"unit": "s", "timing": True} if quantity == "seconds" else {}
    return summarise([float(value) for value in raw], seeds=seeds, student=True, **timing)


def paired_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The paired difference of two summaries over the seeds that both have; ValueError for none."""
    first, second = (dict(zip(s["seeds"], s["raw"], strict=True)) for s in (a, b))
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        raise ValueError(f"no seed in common: {list(first)} and {list(second)}")
    raw = [[values[seed] for seed in seeds] for values in (first, second)]
    return review_analysis.paired(*raw, seeds)


# looking into a model


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
