"""The exercises of chapter 01: a right answer and typical mistakes of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from labkit.lab.exercises import Exercise, Prediction


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


lstm_step = Exercise(
    "lstm_step",
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
    bias = bias_ih if mistake == "first" else bias_ih + bias_hh
    order = "ifoc" if mistake == "order" else "ifco"  # torch's g is our c
    sets = []
    for stacked in (weight_ih, weight_hh, bias[:, None]):
        parts = [stacked[k::4] for k in range(4)] if mistake == "across" else stacked.chunk(4)
        sets.append({gate: part.T for gate, part in zip(order, parts, strict=True)})
    return tuple(sets)


read_weights = Exercise(
    "read_weights",
    _read_weights,
    lambda: [
        tuple(_draws((4 * H, n), (4 * H, H), (4 * H,), (4 * H,)))
        for n, H in ((1, 2), (3, 5), (4, 3))
    ],
    {
        "order": "you read torch's blocks as i, f, o, c: its order is i, f, g, o, and g is our "
        "candidate c.",
        "first": "bias_hh is missing: our one bias is the sum of torch's two.",
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
    return output, c_n[0] if mistake == "cell" else h_n[0]


def _batches() -> list[tuple]:
    def reader(n: int, H: int) -> Callable[[Tensor], tuple]:
        torch.random.manual_seed(0)
        lstm = nn.LSTM(n, H, batch_first=True).requires_grad_(False)
        return lambda X: lstm(X)

    with torch.random.fork_rng(devices=[]):
        return [(reader(n, 3), *_draws((B, T, n))) for B, T, n in ((2, 5, 4), (4, 4, 2), (3, 1, 1))]


time_first = Exercise(
    "time_first",
    _time_first,
    _batches,
    {
        "reshape": "reshape (or view) cuts the numbers anew and mixes the sequences; transpose "
        "swaps the two axes.",
        "right": "this reads X as it is meant, batch first. Swap its first two axes before.",
        "once": "your output is (T, B, H): nn.LSTM gives its output in the layout of what it "
        "was given, so swap the axes back.",
        "cell": "you return the last cell state; the last hidden state is wanted.",
    },
)


def _cell_gradients(d_h: Tensor, f: Tensor, o: Tensor, c: Tensor, *, mistake: str = "") -> Tensor:
    entering = d_h * o * {"c": 1 - c**2, "slope": 1}.get(mistake, 1 - torch.tanh(c) ** 2)
    d_c, back = torch.zeros_like(c), torch.zeros_like(c[0])
    for t in reversed(range(len(c))):
        d_c[t] = entering[t] + back * (f[t] if mistake == "gate" else mistake != "alone")
        back = d_c[t] * (1 if mistake in ("gate", "accumulator") else f[t])
    return d_c


cell_gradients = Exercise(
    "cell_gradients",
    _cell_gradients,
    lambda: [
        (d_h, torch.sigmoid(f), torch.sigmoid(o), c)
        for T, H in ((1, 2), (3, 1), (5, 4))
        for d_h, f, o, c in [_draws(*[(T, H)] * 4)]
    ],
    {
        "slope": "the slope of tanh is missing: h = o * tanh(c), so 1 - tanh(c)**2 belongs in it.",
        "c": "the slope of tanh at c is 1 - tanh(c)**2, not 1 - c**2.",
        "gate": "step t + 1 hands back its gradient times its own gate f[t + 1], not f[t].",
        "alone": "what comes back from the step after is missing.",
        "accumulator": "on its way to the step before, the gradient is multiplied by f[t].",
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

forty_models = Prediction(
    "forty_models",
    {
        "40 times": "every call takes forty times as long: the arithmetic must have counted, not "
        "the calls.",
        "about 20": "half of the time goes into calls, which forty models share.",
        "less than 10": "a step of one model is mostly calls, and forty models share them.",
    },
)
