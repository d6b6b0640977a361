"""The report's tables on the sine: the losses, and the note's outputs of every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from labkit.measure.rows import Row, number_row

CHAPTER = "06_sine_forecast"
Record = Mapping[str, Any] | None

CLAIMS = {
    "faster": "Adam's loss falls faster than that of stochastic gradient descent.",
    "last_step": (
        "Trained only on the last step, the earlier outputs are far off, so the model does not "
        "carry over to other lengths."
    ),
    "mended": "(our question) Training on every step or on mixed lengths mends that.",
}
OPTIMISERS = {"adam": "Adam, 0.001", "sgd": "SGD, 0.01"}
STARTS = {"gluon": "gluon's start", "xavier": "Xavier start"}
BATCHES = 20  # that a published loss is the mean of


def setting(published: Mapping[str, Any]) -> str:
    """What the published figures were measured on, and what their labels tell."""
    label = published["sine"]["every_step"]["label"]
    grid = [math.asin(value) for value in label]
    step = (grid[-1] - grid[0]) / (len(grid) - 1)
    return (
        "Published: three LSTM cells of 10, 20 and 1 units, nine points, batches of 300, half the "
        f"squared error of the last output against sin(t)/2, averaged over {BATCHES} batches; one "
        f"training each. The labels printed beside the outputs are sin t on a grid of {step:.4f}, "
        "so twice what the net was trained on. The source trained on 1,000 batches, and the losses "
        "that it prints end at the hundredth; its outputs after training stand beside ours after "
        "either number."
    )


def tables(published: Mapping[str, Any], record: Record) -> Iterator[tuple[str, list[Row]]]:
    """A heading and its rows for each published table."""
    sine = published["sine"]
    for start, name in STARTS.items():
        rows = [
            number_row(
                f"{label}, loss of batches {BATCHES * k - BATCHES + 1} to {BATCHES * k}", value,
                record, CHAPTER, f"loss/{start}/{optimiser}/{k}", higher_is_better=False,
            )
            for optimiser, label in OPTIMISERS.items()
            for k, value in enumerate(sine[f"{optimiser}_loss"], start=1)
        ]  # fmt: skip
        yield f"Losses, ours with {name}", rows
    table = sine["every_step"]
    yield "Outputs before training", _step_rows(table["initial_prediction"], record, "note/0")
    final = table["final_prediction"]
    yield "Outputs after training, ours after 100 batches", _step_rows(final, record, "note/100")
    size = f"{record['settings']['batches']:,}" if record else "1,000"
    yield (
        f"Outputs after training, ours after {size} batches",
        _step_rows(final, record, "note/end"),
    )


def _step_rows(values: list[float], record: Record, prefix: str) -> list[Row]:
    return [
        number_row(
            f"output of step {k}", value, record, CHAPTER, f"{prefix}/{k}", higher_is_better=None
        )
        for k, value in enumerate(values, start=1)
    ]
