"""The exercises of chapter 01: a right answer and typical mistakes of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from labkit.lab.exercises import Exercise, Prediction


def _exercise(
    right: Callable[..., Any], cases: Callable[[], list[tuple]], mistakes: Mapping[str, str]
) -> Exercise:
    """An exercise on a function with an argument `mistake`: the name of each and what is told."""
    told = {message: partial(right, mistake=name) for name, message in mistakes.items()}
    return Exercise(right.__name__.lstrip("_"), right, cases, told)


def _draws(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


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


def _steps() -> list[tuple]:
    cases = []
    for B, n, H in ((1, 2, 2), (3, 4, 5), (2, 5, 3)):
        states = _draws((B, n), (B, H), (B, H))
        sets = (_draws(*[(rows, H)] * 4) for rows in (n, H, 1))
        cases.append((*states, *(dict(zip("ifoc", s, strict=True)) for s in sets)))
    return cases


lstm_step = _exercise(
    _lstm_step,
    _steps,
    {
        "swapped": "your forget gate multiplies the candidate, and your input gate the old cell "
        "state: it is f * c + i * g.",
        "bias": "the biases b are missing in the sums of the gates.",
        "recurrent": "your gates read x alone: h @ U[gate] is missing.",
        "candidate": "the candidate goes through tanh, not through the sigmoid.",
        "forgets all": "the old cell state is lost: f * c is missing.",
        "no tanh": "h is o * tanh(c): your tanh is missing.",
        "order": "you return (c, h); wanted is (h, c).",
    },
)


def _read_weights(
    weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, *, mistake: str = ""
) -> tuple[dict[str, Tensor], ...]:
    bias = {"first": bias_ih, "mean": (bias_ih + bias_hh) / 2}.get(mistake, bias_ih + bias_hh)
    order = {"order": "ifoc", "fast": "oifc"}.get(mistake, "ifco")  # torch's g is our c
    sets = []
    for stacked in (weight_ih, weight_hh, bias[:, None]):
        parts = stacked.chunk(4)
        if mistake == "across":
            parts = [stacked[gate::4] for gate in range(4)]
        sets.append({gate: part.T for gate, part in zip(order, parts, strict=True)})
    return tuple(sets)


def _stacks() -> list[tuple]:
    sizes = ((1, 2), (3, 5), (4, 3))  # I, H
    return [tuple(_draws((4 * H, n), (4 * H, H), (4 * H,), (4 * H,))) for n, H in sizes]


read_weights = _exercise(
    _read_weights,
    _stacks,
    {
        "order": "you read torch's blocks as i, f, o, c: its order is i, f, g, o, and g is our "
        "candidate c.",
        "fast": "o, i, f, c is the order of the lab's fast code; torch's is i, f, g, o.",
        "first": "bias_hh is missing: our one bias is the sum of torch's two.",
        "mean": "our one bias is the sum of torch's two, not their mean.",
        "across": "a gate is a block of H rows that lie together, not every fourth row.",
    },
)


def _time_first(
    lstm: Callable[[Tensor], tuple], X: Tensor, *, mistake: str = ""
) -> tuple[Tensor, Tensor]:
    swapped = X.reshape(X.shape[1], X.shape[0], -1) if mistake == "reshape" else X.transpose(0, 1)
    output, (h_n, c_n) = lstm(X if mistake == "right" else swapped)
    if mistake not in ("right", "once"):
        output = output.transpose(0, 1)
    return output, {"cell": c_n[0], "output": output[:, -1]}.get(mistake, h_n[0])


def _batches() -> list[tuple]:
    def reader(n: int, H: int) -> Callable[[Tensor], tuple]:
        torch.random.manual_seed(0)
        lstm = nn.LSTM(n, H, batch_first=True).requires_grad_(False)
        return lambda X: lstm(X)

    with torch.random.fork_rng(devices=[]):
        return [(reader(n, 3), *_draws((B, T, n))) for B, T, n in ((2, 5, 4), (4, 4, 2), (3, 1, 1))]


time_first = _exercise(
    _time_first,
    _batches,
    {
        "reshape": "reshape (or view) cuts the numbers anew and mixes the sequences; transpose "
        "swaps the two axes.",
        "right": "this reads X as it is meant, batch first. Swap its first two axes before.",
        "once": "your output is (T, B, H): nn.LSTM gives its output in the layout of what it "
        "was given, so swap the axes back.",
        "cell": "you return the last cell state; the last hidden state is wanted.",
        "output": "output[:, -1] is the last column of the wrong layout; h_n is what the layer "
        "holds after its own last step.",
    },
)


def _cell_gradients(d_h: Tensor, f: Tensor, o: Tensor, c: Tensor, *, mistake: str = "") -> Tensor:
    slope = {"slope": torch.ones_like(c), "c": 1 - c**2}.get(mistake, 1 - torch.tanh(c) ** 2)
    entering = d_h * slope * (1 if mistake == "output" else o)
    d_c, carried = torch.zeros_like(c), torch.zeros_like(c[0])
    steps = range(len(c))
    for t in steps if mistake == "forward" else reversed(steps):
        d_c[t] = entering[t] + (f[t] * carried if mistake == "gate" else carried)
        kept = {"gate": 1, "forgets": 0, "accumulator": 1}.get(mistake, f[t])
        carried = (entering[t] if mistake == "one step" else d_c[t]) * kept
    return d_c


cell_gradients = _exercise(
    _cell_gradients,
    lambda: [
        (d_h, torch.sigmoid(f), torch.sigmoid(o), c)
        for T, H in ((1, 2), (3, 1), (5, 4))
        for d_h, f, o, c in [_draws(*[(T, H)] * 4)]
    ],
    {
        "slope": "the slope of tanh is missing: h = o * tanh(c), so 1 - tanh(c)**2 belongs in it.",
        "c": "the slope of tanh at c is 1 - tanh(c)**2, not 1 - c**2.",
        "output": "the output gate is missing: h = o * tanh(c).",
        "forward": "you walk from the first step to the last; a gradient comes from the last.",
        "gate": "step t + 1 hands back its gradient times its own gate f[t + 1], not f[t].",
        "forgets": "what comes back from the step after is missing.",
        "accumulator": "on its way to the step before, the gradient is multiplied by f[t].",
        "one step": "all of d_c[t] goes on to the step before, not only what entered at step t.",
    },
)

doubled_matrix = Prediction(
    "doubled_matrix",
    {
        "vanished": "larger states lie where tanh is flat, and its slopes shrink by more than the "
        "matrix grows.",
        "about 1": "larger states lie where tanh is flatter: its slopes shrink about as much as "
        "the matrix grows. That is luck, and training moves the matrix.",
        "exploded": "the matrix grows by more than the slopes of tanh shrink.",
    },
)
