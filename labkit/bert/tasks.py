"""Fine-tuning of BERT as tasks for `labkit.lab.sweep`: settings and seeds in, scores out.

A task holds no data: the corpus and the pretrained model by their names and digests, so that its
result is stored under the same name on every machine (a model in a folder goes by the folder's
path, which must then be the same everywhere). Reviews are drawn as
`labkit.film.tasks` draws them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from labkit.bert.encoding import Encoded
from labkit.bert.model import (
    POOLINGS,
    PRECISIONS,
    BertClassifier,
    BertSpec,
    mixed,
    parameter_counts,
    pool,
)
from labkit.bert.model_folder import ALIASES, KNOWN
from labkit.bert.pretrained import Pretrained
from labkit.bert import encoding as bert_reviews
from labkit.bert import pretrained
from labkit.bert.training import EVALUATION_BATCH, BertTrainSpec, Trainer
from labkit.film import tasks as review_tasks
from labkit.lab import digests, environment

if TYPE_CHECKING:
    from accelerate import Accelerator

MODULES = (
    "labkit.bert.tasks",
    "labkit.bert.training",
    "labkit.bert.model",
    "labkit.bert.encoding",
    "labkit.bert.pretrained",
    "labkit.film.tasks",
    "labkit.film.training",
    "labkit.film.corpus",
)
CURVES = ("", "held_out")
TESTS = ("held_out", "all", "none")
STRENGTHS = (0.0003, 0.003, 0.03, 0.3, 3.0)  # C, the inverse of the L2 penalty's weight

Progress = Callable[[int, int], None]


def training_task(
    name: str,
    *,
    corpus: str,
    found: Pretrained,
    seed: int,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    num_train: int = 0,
    num_dev: int = 0,
    part: str = "head",
    test: str = "held_out",
    curve: str = "",
    keep: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Describe one training, for `labkit.lab.sweep.run_tasks`; `name` is for the eye, and not stored.

    `corpus` is "imdb" or "generated"; `model` and `training` replace defaults of `BertSpec` and
    `BertTrainSpec`. `num_train` reviews are drawn by the seed, half of either label, all for 0;
    `num_dev` likewise, the same for every seed. `part` of a long review is read. `test` names the
    reviews that the best checkpoint is tested on, `curve` reviews to evaluate after every epoch,
    for show only. `keep` stores the trained parameters with the results. The seed also starts the
    head, and decides order and dropout.
    """
    _check("test", test, TESTS)
    _check("curve", curve, CURVES)
    spec, schedule = BertSpec(**(model or {})), BertTrainSpec(**(training or {}))
    return {
        "label": f"{name} seed {seed}",
        **_sources(corpus, found, schedule.max_len, part),
        "seed": seed,
        "num_train": num_train,
        "num_dev": num_dev,
        "test": test,
        "curve": curve,
        "keep": keep,
        "device": device,
        **{f"model.{key}": value for key, value in asdict(spec).items()},
        **{f"training.{key}": value for key, value in asdict(schedule).items()},
    }


def specs_of(task: Mapping[str, Any]) -> tuple[BertSpec, BertTrainSpec]:
    """The model and the training that a task describes."""
    return tuple(
        kind(**{field.name: task[f"{prefix}.{field.name}"] for field in fields(kind)})
        for kind, prefix in ((BertSpec, "model"), (BertTrainSpec, "training"))
    )


def train_task(task: Mapping[str, Any], progress: Progress | None = None) -> dict[str, np.ndarray]:
    """Train one model, choose its epoch by dev accuracy, and test that checkpoint once.

    Returns what `Trainer.fit` returns, one value an epoch; `test_probability` (n,) of "positive"
    for the reviews of `test_reviews`, in their order; `num_parameters`, `num_trained` of them;
    `train_seconds` and `test_seconds`; and with `keep` the parameters of that checkpoint under
    "parameters.<name>".

    A training that is broken off is stored, and goes on where it stood.
    """
    facts = {key: value for key, value in task.items() if key != "label"}
    stamp = {"task": facts, "code": digests.module_digest(MODULES), "torch": torch.__version__}
    folder = environment.CACHE / "unfinished" / digests.sha256(digests.canonical(stamp))[:32]
    found = run_training(task, environment.device(task["device"]), progress=progress, keep=folder)
    if task["keep"]:
        best = load_file(folder / "best.safetensors")
        found |= {f"parameters.{name}": value for name, value in best.items()}
    shutil.rmtree(folder)
    return {name: value.numpy() for name, value in found.items()}


def run_training(
    task: Mapping[str, Any],
    device: torch.device,
    *,
    accelerator: Accelerator | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> dict[str, Tensor]:
    """The training of a task, here or in all processes of `accelerator`; kept in `keep`."""
    encoded = load_encoded(task)
    train, dev = draw(task, encoded)
    curve = review_tasks.held_out(encoded) if task["curve"] else None
    model = make_model(task)
    trainer = Trainer(model, encoded, specs_of(task)[1], device, accelerator)
    found = trainer.fit(train, dev, task["seed"], curve=curve, progress=progress, keep=keep)
    found["train_seconds"] = found["seconds"].sum()

    began = time.perf_counter()
    if task["test"] != "none":
        found["test_probability"] = trainer.probabilities(test_reviews(encoded, task["test"]))
    found["test_seconds"] = torch.tensor(time.perf_counter() - began)
    total, trained = parameter_counts(model)
    return found | {"num_parameters": torch.tensor(total), "num_trained": torch.tensor(trained)}


def make_model(task: Mapping[str, Any]) -> BertClassifier:
    """The model of a task as its seed starts it."""
    encoder = pretrained.load(_find(task))
    torch.manual_seed(task["seed"])
    return BertClassifier(encoder, specs_of(task)[0])


# reviews


def load_encoded(task: Mapping[str, Any]) -> Encoded:
    """The word pieces of a task; ValueError when they are not those that it was made for."""
    max_len = task["training.max_len"] if "training.max_len" in task else task["max_len"]
    encoded = bert_reviews.encode(task["corpus"], _find(task), max_len, task["part"])
    for what, now, then in (
        (f"the reviews of {task['corpus']!r}", encoded.digest, task["data"]),
        (f"the word pieces of {task['pretrained']!r}", encoded.pieces_digest, task["pieces"]),
    ):
        if now != then:
            raise ValueError(f"{what} have moved on: {now[:16]}, the task was made for {then[:16]}")
    return encoded


def draw(task: Mapping[str, Any], encoded: Encoded) -> tuple[Tensor, Tensor]:
    """The training and the dev reviews of a task, those that `review_tasks` draws for it."""
    split = encoded.split()
    train = review_tasks.draw(encoded, split["train"], task["num_train"], task["seed"])
    return train, review_tasks.draw(encoded, split["dev"], task["num_dev"], 0)


def test_reviews(encoded: Encoded, test: str) -> Tensor:
    """The reviews called "held_out", the small study's, or "all", the test part; none else."""
    if test == "held_out":
        return review_tasks.held_out(encoded)
    return encoded.split()["test"] if test == "all" else torch.tensor([], dtype=torch.long)


def _sources(corpus: str, found: Pretrained, max_len: int, part: str) -> dict[str, Any]:
    """What a task says of its reviews and its pretrained model; tokenises the reviews, once."""
    bert_reviews.check(max_len, part)
    data, pieces = bert_reviews.digests_of(corpus, found)
    name = ALIASES.get(found.name, found.name)
    return {
        "corpus": corpus,
        "data": data,
        "part": part,
        "pieces": pieces,
        "pretrained": name,
        # the cache of another machine may hold a known model under another commit
        "revision": "" if name in KNOWN else found.revision,
        "weights_sha256": found.weights_sha256,
    }


def _find(task: Mapping[str, Any]) -> Pretrained:
    found = pretrained.find(task["pretrained"], task["revision"], quiet=True)
    if found.weights_sha256 != task["weights_sha256"]:
        raise ValueError(
            f"the weights of {task['pretrained']!r} are others: {found.weights_sha256[:16]}, the "
            f"task was made for {task['weights_sha256'][:16]}"
        )
    return found


def _check(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


# features of the frozen encoder


def features_task(
    *,
    corpus: str,
    found: Pretrained,
    max_len: int = 128,
    part: str = "head",
    seeds: Iterable[int] = (0,),
    num_train: int = 0,
    num_dev: int = 0,
    test: str = "held_out",
    share: int = 0,
    shares: int = 1,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Any]:
    """Describe the pooled vectors of all reviews that trainings with these seeds read.

    They are the training reviews of every seed, the dev and the test reviews, as in
    `training_task`. With `shares` above 1 the task is one of so many, from `share` 0 on.
    """
    _check("test", test, TESTS)
    _check("precision", precision, PRECISIONS)
    if not 0 <= share < shares:
        raise ValueError(f"share must be in 0..{shares - 1}, got {share}")
    return {
        "label": f"features {share + 1}/{shares}",
        **_sources(corpus, found, max_len, part),
        "max_len": max_len,
        "seeds": " ".join(map(str, sorted(set(seeds)))),
        "num_train": num_train,
        "num_dev": num_dev,
        "test": test,
        "share": share,
        "shares": shares,
        "device": device,
        "precision": precision,
    }


def feature_task(
    task: Mapping[str, Any], progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """What the frozen encoder makes of some reviews, padded to `max_len`.

    Returns `index` (n,), the reviews, ascending; for each of `POOLINGS` the vectors (n, H);
    `seconds`. [CLS] and the mean do not see the padding, the last position is padding.
    """
    began = time.perf_counter()
    device, encoded = environment.device(task["device"]), load_encoded(task)
    draws = [draw({**task, "seed": int(seed)}, encoded) for seed in task["seeds"].split()]
    chosen = torch.cat([test_reviews(encoded, task["test"]), *(torch.cat(pair) for pair in draws)])
    index = chosen.unique()[task["share"] :: task["shares"]]

    encoder = pretrained.load(_find(task)).to(device).eval()
    found = {name: torch.empty(len(index), encoder.config.hidden_size) for name in POOLINGS}
    batches = torch.arange(len(index)).split(EVALUATION_BATCH)
    for number, batch in enumerate(batches):
        X, mask = (t.to(device) for t in bert_reviews.pad(encoded, index[batch], task["max_len"]))
        with torch.no_grad(), mixed(device, task["precision"]):
            hidden = encoder(X, attention_mask=mask).last_hidden_state  # (B, T, H)
        for name, vectors in found.items():
            vectors[batch] = pool(hidden, mask, name).cpu()
        if progress:
            progress(number, len(batches))
    arrays = {"index": index, **found, "seconds": torch.tensor(time.perf_counter() - began)}
    return {name: value.numpy() for name, value in arrays.items()}


def features_of(
    results: Iterable[Mapping[str, np.ndarray]], pooling: str, index: Tensor
) -> np.ndarray:
    """The vectors (n, H) of the reviews `index`, from the results of one or more `feature_task`."""
    _check("pooling", pooling, POOLINGS)
    results = list(results)
    known = np.concatenate([result["index"] for result in results])
    order = np.argsort(known)
    place = np.searchsorted(known[order], index.numpy()).clip(max=len(known) - 1)
    rows = order[place]
    if absent := index.numpy()[known[rows] != index.numpy()].tolist():
        raise ValueError(
            f"there are no features of review {absent[0]}, nor of {len(absent)} in all"
        )
    return np.concatenate([result[pooling] for result in results])[rows]


def linear_probe(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, Tensor],
    strengths: Sequence[float] = STRENGTHS,
) -> dict[str, object]:
    """Logistic regression on standardised features, its strength chosen by dev accuracy.

    Both hold "train", "dev" and "test", features (n, H) and labels (n,). Returns "C",
    "dev_accuracy", "test_accuracy", and "test_probability" (n,) of "positive".
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features["train"])
    X = {name: scaler.transform(values) for name, values in features.items()}
    y = {name: np.asarray(values) for name, values in labels.items()}
    fitted = [
        LogisticRegression(C=C, max_iter=1_000).fit(X["train"], y["train"]) for C in strengths
    ]
    scores = [float(model.score(X["dev"], y["dev"])) for model in fitted]
    best = int(np.argmax(scores))
    probability = fitted[best].predict_proba(X["test"])[:, 1]
    return {
        "C": float(strengths[best]),
        "dev_accuracy": scores[best],
        "test_accuracy": float(((probability >= 0.5) == y["test"]).mean()),
        "test_probability": torch.from_numpy(probability),
    }
