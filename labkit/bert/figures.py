"""The rows of the plot of the chapter on BERT, and its diagrams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from labkit.measure import diagrams

RIVALS = {
    "fine-tuned BERT": "tuned", "frozen BERT": "frozen/mean", "BERT, random start": "random",
    "recurrent": "equal/recurrent", "linear": "equal/linear",
    "recurrent, whole review": "recurrent", "linear, whole review": "linear",
}  # fmt: skip


def rivals(size: int) -> dict[str, str]:
    """The rows of all rivals that were trained on so many reviews."""
    return {label: f"{name}/{size}" for label, name in RIVALS.items()}


def attention_diagram(pieces: Sequence[str] = ("the", "film", "is", "good")) -> Figure:
    """One piece asks; its query meets every key, and the values are mixed."""
    fig, ax = diagrams.canvas(
        "attention",
        f"One head of attention for the piece {pieces[-1]}. Its query meets the key of each piece, "
        f"{', '.join(pieces)}. A softmax turns the four scores into weights that sum to 1. The "
        "output is the sum of the four values, each times its weight.",
        8.4, 3.4,
    )  # fmt: skip
    query = diagrams.box(ax, 0.9, 1.7, f"query of\n“{pieces[-1]}”", "blue", width=1.3, height=0.7)
    softmax = diagrams.box(ax, 4.5, 1.7, "softmax", "purple", width=1.1, height=2.9)
    out = diagrams.gate(ax, 7.0, 1.7, "+", "green", r=0.25)
    for place, piece in enumerate(pieces):
        y = 2.95 - 0.83 * place
        key = diagrams.box(ax, 2.7, y, f"key “{piece}”", "orange", width=1.2, height=0.42)
        value = diagrams.box(ax, 5.95, y, f"× value “{piece}”", "green", width=1.35, height=0.42)
        diagrams.arrow(ax, query.right, key.left, colour="blue", linewidth=1.1)
        diagrams.arrow(ax, key.right, (softmax.left[0], y), colour="orange")
        diagrams.arrow(ax, (softmax.right[0], y), value.left, colour="purple")
        diagrams.arrow(ax, value.right, out.left, colour="green", linewidth=1.1)
    result = diagrams.box(ax, 7.9, 1.7, "output", "green", width=0.75)
    diagrams.arrow(ax, out.right, result.left, colour="green")
    return fig


def pooling_diagram(pieces: Sequence[str] = ("[CLS]", "good", "film", "[SEP]")) -> Figure:
    """Which positions each of three poolings reads, in a review that is padded."""
    fig, ax = diagrams.canvas(
        "pooling",
        f"A padded review: {', '.join(pieces)} and two positions of padding, each with a vector. "
        "[CLS] pooling takes the first vector, the mean those of the four real pieces, and the "
        "last position takes the vector of padding.",
        8.4, 2.9,
    )  # fmt: skip
    boxes = []
    for place, piece in enumerate([*pieces, "[PAD]", "[PAD]"]):
        colour = "grey" if piece == "[PAD]" else "blue"
        boxes.append(diagrams.box(ax, 1.0 + 1.25 * place, 2.4, piece, colour, width=1.05))
    poolings = {
        "[CLS]": (1.0, [0]),
        "mean": (3.5, range(len(pieces))),
        "last position": (7.25, [-1]),
    }
    for text, (x, read) in poolings.items():
        colour = "orange" if text == "last position" else "green"
        target = diagrams.box(ax, x, 0.6, text, colour, width=1.5)
        for place in read:
            shift = np.sign(boxes[place].x - x) * 0.15
            start, end = boxes[place].bottom, (target.top[0] + shift, target.top[1])
            diagrams.arrow(ax, start, end, colour=colour, linewidth=1.4)
    diagrams.label(ax, 7.25, 0.15, "reads padding", "orange")
    return fig
