"""One training of a review model as a task for `labkit.lab.sweep`: settings and seeds in, scores out.

A task holds no data, only the name and the digest of the corpus that it is to be trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.film import corpus as reviews
from labkit.film import vocabulary
from labkit.film.corpus import Corpus
from labkit.film.model import ReviewClassifier, ReviewSpec
from labkit.film.training import Trainer, TrainSpec
from labkit.lab import datasets, digests, environment

MODULES = (
    "labkit.film.tasks",
    "labkit.film.training",
    "labkit.film.model",
    "labkit.film.corpus",
    "labkit.film.vocabulary",
    "labkit.cells.layers",
    "labkit.cells.parity",
)
CURVES = ("", "test_sample", "held_out")
CURVE_SAMPLE = 5_000
# the small study tests on test/neg[5000:6000] and test/pos[2500:3500], of 12,500 each
HELD_OUT = {0: (0.40, 0.48), 1: (0.20, 0.28)}


def training_task(
    name: str,
    corpus: Corpus,
    *,
    seed: int,
    corpus_name: str = "imdb",
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    num_train: int = 0,
    num_dev: int = 0,
    curve: str = "",
    keep: bool = False,
    glove_words: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Describe one training, for `labkit.lab.sweep.run_tasks`; `name` is for the eye, and not stored.

    `model` and `training` replace defaults of `ReviewSpec` and `TrainSpec`. `num_train` reviews are
    drawn by the seed, half of either label, all for 0; `num_dev` likewise, the same for every
    seed. `curve` names reviews to evaluate after every epoch, for show only. `keep` stores the
    parameters. `glove_words` is how many lines of GloVe are used.
    """
    if curve not in CURVES:
        raise ValueError(f"curve must be one of {', '.join(map(repr, CURVES))}; got {curve!r}")
    spec, schedule = ReviewSpec(**(model or {})), TrainSpec(**(training or {}))
    if spec.vectors != "learned" and glove_words < 1:
        raise ValueError(f"vectors {spec.vectors!r} need glove_words, got {glove_words}")
    return {
        "label": f"{name} seed {seed}",
        "corpus": corpus_name,
        "data": corpus.digest,
        "vocab_size": len(corpus.words),
        "seed": seed,
        "num_train": num_train,
        "num_dev": num_dev,
        "curve": curve,
        "keep": keep,
        "glove_words": glove_words if spec.vectors != "learned" else 0,
        "device": device,
        **{f"model.{key}": value for key, value in asdict(spec).items()},
        **{f"training.{key}": value for key, value in asdict(schedule).items()},
    }


def specs_of(task: Mapping[str, Any]) -> tuple[ReviewSpec, TrainSpec]:
    """The model and the training that a task describes."""
    return tuple(
        kind(**{field.name: task[f"{prefix}.{field.name}"] for field in fields(kind)})
        for kind, prefix in ((ReviewSpec, "model"), (TrainSpec, "training"))
    )


def held_out(corpus: Corpus) -> Tensor:
    """The small study's test reviews: of each label a range of positions, by the files' numbers.

    The source slices a list of file names, whose order it does not say; here the reviews of a
    folder are ordered by number, 0 to 12,499. For a corpus of another size the ranges shrink with
    it.
    """
    parts = []
    for label, (first, last) in HELD_OUT.items():
        own = (corpus.is_test & (corpus.label == label)).nonzero().flatten()
        parts.append(own[round(first * len(own)) : round(last * len(own))])
    return torch.cat(parts)


def draw(corpus: Corpus, index: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the reviews `index`, half of either label, drawn by the seed; all for 0."""
    if not count:
        return index
    if count % 2:
        raise ValueError(f"half of the reviews are of either label: {count} is odd")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for label in (0, 1):
        own = index[corpus.label[index] == label]
        if count // 2 > len(own):
            raise ValueError(f"there are {len(own)} reviews of label {label}, not {count // 2}")
        parts.append(own[torch.randperm(len(own), generator=generator)[: count // 2]])
    return torch.cat(parts).sort().values


def load_corpus(task: Mapping[str, Any]) -> Corpus:
    """The corpus of a task; ValueError when the texts are not those that the task was made for."""
    corpus = reviews.load(task["corpus"], task["vocab_size"])
    if corpus.digest != task["data"]:
        raise ValueError(
            f"the reviews of {task['corpus']!r} have moved on: {corpus.digest[:16]}, the task was "
            f"made for {task['data'][:16]}"
        )
    return corpus


def glove_table(corpus: Corpus, words: int) -> Tensor:
    """Pretrained vectors (V, 100) of a vocabulary, zero where the first `words` lines lack a word.

    Read once, then kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    stamp = {"words": corpus.words, "limit": words, "code": digests.module_digest(MODULES[4:5])}
    key = digests.sha256(digests.canonical(stamp))[:32]
    path = environment.CACHE / "corpora" / f"{key}.vectors"
    if path.exists():
        try:
            return load_file(path)["table"]
        except SafetensorError:
            path.unlink()  # a damaged file is made again
    table = vocabulary.load_vectors(datasets.glove(words), corpus.words, words)[0]
    digests.write_atomically(path, save({"table": torch.from_numpy(table)}))
    return torch.from_numpy(table)


def make_model(task: Mapping[str, Any], corpus: Corpus) -> ReviewClassifier:
    """The model of a task as its seed starts it."""
    spec, _ = specs_of(task)
    table = None
    if spec.vectors != "learned":
        table = glove_table(corpus, task["glove_words"])
    torch.manual_seed(task["seed"])
    return ReviewClassifier(spec, len(corpus.words), table)


def train_task(
    task: Mapping[str, Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, np.ndarray]:
    """Train one model, choose its epoch by dev accuracy, and test that checkpoint once.

    Returns what `Trainer.fit` returns, one value an epoch; `test_probability` (N,) of "positive"
    for every review of the test part, in the corpus' order, `dev_probability` likewise; for ratings
    `test_classes` (N, C); `num_parameters`, embedding apart; and with `keep` the parameters under
    "parameters.<name>".
    """
    device = environment.device(task["device"])
    corpus = load_corpus(task)
    split = corpus.split()
    train = draw(corpus, split["train"], task["num_train"], task["seed"])
    dev = draw(corpus, split["dev"], task["num_dev"], 0)
    sample = draw(corpus, split["test"], min(CURVE_SAMPLE, len(split["test"])), 0)
    curves = {"": None, "test_sample": sample, "held_out": held_out(corpus)}

    model = make_model(task, corpus)
    trainer = Trainer(model, corpus, specs_of(task)[1], device)
    found = trainer.fit(train, dev, task["seed"], curve=curves[task["curve"]], progress=progress)

    classes = trainer.class_probabilities(split["test"])
    found["test_probability"] = classes[:, classes.shape[1] // 2 :].sum(1)
    found["dev_probability"] = trainer.probabilities(dev)
    if classes.shape[1] > 2:
        found["test_classes"] = classes
    inner = [p for name, p in model.named_parameters() if not name.startswith("embedding")]
    found["num_parameters"] = torch.tensor(sum(p.numel() for p in inner))
    if task["keep"]:
        found |= {f"parameters.{name}": p.detach() for name, p in model.named_parameters()}
    return {name: value.cpu().numpy() for name, value in found.items()}


def parameters_of(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters that a training has left under "parameters.<name>"."""
    prefix = "parameters."
    return {
        name.removeprefix(prefix): torch.as_tensor(value)
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
