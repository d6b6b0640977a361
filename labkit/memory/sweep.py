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

# what the loss of the first step is called; write-up A printed it
FIRST_LOSS = "published/lstm/zero/trained/first_step_loss"


def clip_gradients(ensemble: Ensemble, max_norm: float, *, together: bool) -> None:
    """Scale gradients down to the L2 norm `max_norm` where above it: all of a replica `together`,
    as `torch.nn.utils.clip_grad_norm_` does, or each tensor on its own."""
    gradients = list(ensemble.gradients.values())
    norms = [gradient.flatten(1).norm(dim=1) for gradient in gradients]  # (R,) each
    if together:
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
        norms = [squares.sum(0).sqrt()] * len(gradients)
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_((max_norm / norm.clamp(min=1e-30)).clamp(max=1.0).view(-1, 1, 1))


def explode(
    seeds: Sequence[int], clip: str = "none", max_norm: float = 5.0, epochs: int = 50
) -> dict[str, Tensor]:
    """The textbook's recipe for a gradient explosion: an SRN, 20 digits, plain SGD with learning
    rate 0.2 on the summed cross-entropy of batches of 64.

    `clip` is "none", "per_tensor" (the textbook's framework) or "global" (torch's
    `clip_grad_norm_`), to `max_norm`. Returns, for R replicas and K steps, "loss" (R, K), a mean
    per sequence, and "gradient" (R, K), the L2 norm of U's before clipping; and at the end (R,)
    "dev_accuracy" and "saturated", the share of hidden values on the dev set beyond ±0.999.
    """
    if clip not in (ways := ("none", "per_tensor", "global")):
        raise ValueError(f"clip must be one of {', '.join(ways)}; got {clip!r}")
    ensemble, data = Ensemble(ModelSpec(cell="srn"), seeds), load_published(20)
    stream = batches(data["train"], seeds, batch_size=64)
    curves: dict[str, list[Tensor]] = {"loss": [], "gradient": []}
    for _ in range(epochs * -(-len(data["train"].y) // 64)):
        X, y = next(stream)
        curves["loss"].append(ensemble.loss_and_gradients(X, y, reduction="sum") / y.shape[1])
        curves["gradient"].append(ensemble.gradients["U"].flatten(1).norm(dim=1))
        if clip != "none":
            clip_gradients(ensemble, max_norm, together=clip == "global")
        with torch.no_grad():
            ensemble.trainable -= 0.2 * ensemble.trainable.grad
    hidden = ensemble.trace(data["dev"].X)["h"]
    return {name: torch.stack(values, 1) for name, values in curves.items()} | {
        "dev_accuracy": ensemble.evaluate(*data["dev"])[1],
        "saturated": (hidden.abs() > 0.999).to(hidden.dtype).mean(dim=(1, 2, 3)),
    }


class PublishedRow(NamedTuple):
    """A row of accuracies that a source printed, each of a single seed."""

    source: str
    setting: str  # start/embedding, as the source's code has it
    cell: str
    quantity: str  # dev_accuracy or test_accuracy
    values: dict[int, float]  # by length


def published_rows(published: Mapping[str, Any]) -> Iterator[PublishedRow]:
    """Every row of accuracies of chapter 02 in data/published.toml."""
    tables = published["digit_sum"]
    for source, table in {**tables["lstm"], **tables["rerun"]}.items():
        for key in (key for key in table if key.endswith("_accuracy")):
            cell, quantity = ("lstm", key) if key.count("_") == 1 else key.split("_", 1)
            values = dict(zip(table["lengths"], table[key], strict=True))
            setting = f"{table['init']}/{table['embedding']}"
            yield PublishedRow(source, setting, cell, quantity, values)


def rows(
    measures: Mapping[str, Measure], settings: Mapping[str, Any], published: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The report's rows of chapter 02, by source: what was printed beside our seeds."""
    table = published["digit_sum"]
    groups: dict[str, list[Row]] = {}
    for source, setting, cell, quantity, values in published_rows(published):
        heading = "{}: {} start, embedding {}".format(source, *setting.split("/"))
        split = quantity.removesuffix("_accuracy")
        facts = {"higher_is_better": True, "examples": table[f"n_{split}"]}
        for length, value in values.items():
            trained = setting in settings["settings"] and length in settings["lengths"]
            what = f"{cell.upper()}, {length} digits, {split} accuracy"
            name = f"{place('published', cell, setting, length)}/{quantity}"
            row = _row(trained, what, value, measures, name, **facts)
            groups.setdefault(heading, []).append(row)
    trained = "zero/trained" in settings["settings"]
    what, loss = "LSTM, loss at the first step", table["first_step_loss"]
    first = _row(trained, what, loss, measures, FIRST_LOSS, higher_is_better=None)
    next(iter(groups.values())).append(first)
    return groups


def _row(trained: bool, what: str, value: float, measures: Mapping, name: str, **facts: Any) -> Row:
    if trained:
        return number_row(what, value, measures, name, **facts)
    command = "python -m labkit run 02_digit_sum_sweep --profile cpu"
    reason = f"this run did not train it; `{command}` does"
    return Row(what, f"{value:.2f}" if "examples" in facts else str(value), "–", MISSING, reason)


def about(published: Mapping[str, Any]) -> str:
    """What the published figures of chapter 02 were measured on."""
    table = published["digit_sum"]
    return (
        f"Published runs: {table['n_train']} training, {table['n_dev']} dev and {table['n_test']} "
        f"test sequences a length, {table['total_steps']:,} steps, "
        f"{table['steps_per_epoch']} to an epoch."
    )
