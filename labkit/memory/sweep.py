"""Chapter 02 beside its trainings: gradients that explode, and its rows of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labkit.measure.claims import MISSING, Row, number_row
from labkit.measure.statistics import Measure
from labkit.memory.data import load_published
from labkit.memory.model import Ensemble, ModelSpec
from labkit.memory.training import batches, place

# what write-up A printed as the loss of the first step at every length from 15 to 35
FIRST_LOSS = "published/lstm/zero/trained/first_step_loss"


# gradient explosion


def clip_per_tensor(ensemble: Ensemble, max_norm: float) -> None:
    """Scale each gradient tensor of each replica down to the L2 norm `max_norm`, where above it."""
    for gradient in ensemble.gradients.values():
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1)
        gradient.mul_((max_norm / norm.clamp(min=1e-30)).clamp(max=1.0))


def clip_global(ensemble: Ensemble, max_norm: float) -> None:
    """Scale all gradients of each replica together, as `torch.nn.utils.clip_grad_norm_` does."""
    gradients = list(ensemble.gradients.values())
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients])
    scale = (max_norm / squares.sum(0).sqrt().clamp(min=1e-30)).clamp(max=1.0).view(-1, 1, 1)
    for gradient in gradients:
        gradient.mul_(scale)


CLIPPERS = {"none": None, "per_tensor": clip_per_tensor, "global": clip_global}


def explode(
    seeds: Sequence[int],
    *,
    clip: str = "none",
    max_norm: float = 5.0,
    length: int = 20,
    epochs: int = 50,
    lr: float = 0.2,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """The textbook's recipe for a gradient explosion: SRN, plain SGD, summed cross-entropy.

    `clip` is "none", "per_tensor" (the textbook's framework) or "global" (torch's
    `clip_grad_norm_`), to `max_norm`. Returns, for R replicas and K steps, "loss" (R, K), a mean
    per sequence, and the L2 norms before clipping "gradient/W", "gradient/U", "gradient/b" (R, K);
    and at the end (R,) "dev_accuracy" and "saturated", the share of hidden values on the dev set
    beyond ±0.999.
    """
    if clip not in CLIPPERS:
        raise ValueError(f"clip must be one of {', '.join(CLIPPERS)}; got {clip!r}")
    ensemble = Ensemble(ModelSpec(cell="srn"), seeds)
    data = load_published(length)
    stream = batches(data["train"], ensemble.seeds, batch_size=batch_size)

    curves: dict[str, list[Tensor]] = {}
    for _ in range(epochs * -(-len(data["train"].y) // batch_size)):
        X, y = next(stream)
        now = {"loss": ensemble.loss_and_gradients(X, y, reduction="sum") / y.shape[1]}
        for name in ("W", "U", "b"):
            now[f"gradient/{name}"] = ensemble.gradients[name].flatten(1).norm(dim=1)
        for name, value in now.items():
            curves.setdefault(name, []).append(value)
        if clipper := CLIPPERS[clip]:
            clipper(ensemble, max_norm)
        with torch.no_grad():
            ensemble.trainable -= lr * ensemble.trainable.grad
    hidden = ensemble.trace(data["dev"].X)["h"]
    return {name: torch.stack(values, 1) for name, values in curves.items()} | {
        "dev_accuracy": ensemble.evaluate(*data["dev"])[1],
        "saturated": (hidden.abs() > 0.999).to(hidden.dtype).mean(dim=(1, 2, 3)),
    }


# what the write-ups printed


class PublishedRow(NamedTuple):
    """One row that a source printed; `setting` is start/embedding, as its code has it."""

    source: str
    setting: str
    cell: str
    quantity: str  # dev_accuracy or test_accuracy
    values: dict[int, float]  # by length


def published_rows(published: Mapping[str, Any]) -> Iterator[PublishedRow]:
    """Every row of accuracies in data/published.toml; each figure is of a single seed."""
    tables = published["digit_sum"]
    for source, table in {**tables["lstm"], **tables["rerun"]}.items():
        setting = f"{table['init']}/{table['embedding']}"
        for key, values in table.items():
            if key.endswith("_accuracy"):
                cell, quantity = ("lstm", key) if key.count("_") == 1 else key.split("_", 1)
                by_length = dict(zip(table["lengths"], values, strict=True))
                yield PublishedRow(source, setting, cell, quantity, by_length)


def rows(
    measures: Mapping[str, Measure], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The report's rows of chapter 02, by source: what was printed beside our seeds."""
    table = published["digit_sum"]
    groups: dict[str, list[Row]] = {}
    for row in published_rows(published):
        start, embedding = row.setting.split("/")
        group = groups.setdefault(f"{row.source}: {start} start, embedding {embedding}", [])
        split = row.quantity.removesuffix("_accuracy")
        for length, value in row.values.items():
            what = f"{row.cell.upper()}, {length} digits, {split} accuracy"
            if row.setting not in settings["settings"] or length not in settings["lengths"]:
                group.append(_missing(what, f"{value:.2f}"))
                continue
            name = f"{place('published', row.cell, row.setting, length)}/{row.quantity}"
            examples = table[f"n_{split}"]
            group.append(
                number_row(what, value, measures, name, higher_is_better=True, examples=examples)
            )
    what, loss = "LSTM, loss at the first step", table["first_step_loss"]
    if "zero/trained" in settings["settings"]:
        first = number_row(what, loss, measures, FIRST_LOSS, higher_is_better=None)
    else:
        first = _missing(what, str(loss))
    next(iter(groups.values())).append(first)
    return groups


def _missing(what: str, shown: str) -> Row:
    command = "python -m labkit run 02_digit_sum_sweep --profile cpu"
    return Row(what, shown, "–", MISSING, f"this profile does not train it; `{command}` does")


def about(published: Mapping[str, Any]) -> str:
    """What the published figures of chapter 02 were measured on."""
    table = published["digit_sum"]
    return (
        f"Published runs: {table['n_train']} training, {table['n_dev']} dev and {table['n_test']} "
        f"test sequences a length, {table['total_steps']:,} steps, "
        f"{table['steps_per_epoch']} to an epoch."
    )
