"""The exercises of chapter 01: a right answer and typical mistakes of each."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from labkit.lab.exercises import Exercise


def _lstm_step(
    x: Tensor, h: Tensor, c: Tensor, W: dict[str, Tensor], U: dict[str, Tensor],
    b: dict[str, Tensor], *, mistake: str = "",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    Z = {gate: x @ W[gate] + h @ U[gate] + b[gate] * (mistake != "bias") for gate in "ifoc"}
    if mistake == "recurrent":
        Z = {gate: x @ W[gate] + b[gate] for gate in "ifoc"}
    i, f, o = (torch.sigmoid(Z[gate]) for gate in "ifo")
    g = torch.sigmoid(Z["c"]) if mistake == "candidate" else torch.tanh(Z["c"])
    if mistake == "swapped":
        i, f = f, i
    c_new = i * g if mistake == "forgets all" else f * c + i * g
    h_new = o * (c_new if mistake == "no tanh" else torch.tanh(c_new))
    return (c_new, h_new) if mistake == "order" else (h_new, c_new)


def _lstm_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def weights(rows: int, H: int) -> dict[str, Tensor]:
        return {gate: draw(rows, H) for gate in "ifoc"}

    sizes = ((1, 2, 2), (3, 4, 5), (2, 5, 3))
    return [
        (draw(B, n), draw(B, H), draw(B, H), weights(n, H), weights(H, H), weights(1, H))
        for B, n, H in sizes
    ]


lstm_step = Exercise(
    "lstm_step",
    _lstm_step,
    _lstm_cases,
    {
        message: partial(_lstm_step, mistake=mistake)
        for mistake, message in {
            "swapped": "your forget gate multiplies the candidate, and your input gate the old "
            "cell state: it is f * c + i * g.",
            "bias": "the biases b are missing in the sums of the gates.",
            "recurrent": "your gates read x alone: h @ U[gate] is missing.",
            "candidate": "the candidate goes through tanh, not through the sigmoid.",
            "forgets all": "the old cell state is lost: f * c is missing.",
            "no tanh": "h is o * tanh(c): your tanh is missing.",
            "order": "you return (c, h); wanted is (h, c).",
        }.items()
    },
)
