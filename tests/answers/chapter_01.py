"""Answers to the exercises of chapter 01."""

import torch

from answers import Answers
from labkit.cells import exercises

LSTM_STEP = Answers(
    exercises.lstm_step,
    names={"torch": torch},
    right=[
        """
def answer(x, h, c, W, U, b):
    i = torch.sigmoid(x @ W["i"] + h @ U["i"] + b["i"])
    f = torch.sigmoid(x @ W["f"] + h @ U["f"] + b["f"])
    o = torch.sigmoid(x @ W["o"] + h @ U["o"] + b["o"])
    g = torch.tanh(x @ W["c"] + h @ U["c"] + b["c"])
    c = f * c + i * g
    h = o * torch.tanh(c)
    return h, c
""",
        """
def answer(x, h, c, W, U, b):
    z = {k: torch.matmul(x, W[k]) + torch.matmul(h, U[k]) + b[k] for k in W}
    c = z["f"].sigmoid() * c + z["i"].sigmoid() * z["c"].tanh()
    return z["o"].sigmoid() * c.tanh(), c
""",
        """
def answer(x, h, c, W, U, b):
    def gate(k, squash):
        return squash(x.mm(W[k]).add(h.mm(U[k])).add(b[k]))
    new = gate("f", torch.sigmoid).mul(c).addcmul(gate("i", torch.sigmoid), gate("c", torch.tanh))
    return [gate("o", torch.sigmoid) * torch.tanh(new), new]
""",
        """
def answer(x, h, c, W, U, b):
    xh = torch.cat([x, h], dim=1)
    o, i, f, g = (xh @ torch.cat([W[k], U[k]]) + b[k] for k in "oifc")
    c = c / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
    return torch.tanh(c) / (1 + torch.exp(-o)), c
""",
    ],
    wrong={
        "input and forget gate swapped": ("f * c + i * g", "i * c + f * g"),
        "no bias in any gate": """
def answer(x, h, c, W, U, b):
    i, f, o = (torch.sigmoid(x @ W[k] + h @ U[k]) for k in "ifo")
    c = f * c + i * torch.tanh(x @ W["c"] + h @ U["c"])
    return o * torch.tanh(c), c
""",
        "no recurrent part": """
def answer(x, h, c, W, U, b):
    i, f, o = (torch.sigmoid(x @ W[k] + b[k]) for k in "ifo")
    c = f * c + i * torch.tanh(x @ W["c"] + b["c"])
    return o * torch.tanh(c), c
""",
        "sigmoid for the candidate": ("g = torch.tanh", "g = torch.sigmoid"),
        "the old cell state is dropped": ("f * c + i * g", "i * g"),
        "h for c in the update": ("f * c + i * g", "f * h + i * g"),
        "no tanh at the output": ("o * torch.tanh(c)", "o * c"),
        "states in the other order": ("return h, c", "return c, h"),
        "only h is returned": ("return h, c", "return h"),
        "one gate without its bias": (' + b["f"]', ""),
        "W and U exchanged": ('x @ W["i"] + h @ U["i"]', 'x @ U["i"] + h @ W["i"]'),
        "the argument is changed in place": ("c = f * c + i * g", "c.mul_(f).add_(i * g)"),
        "nothing is returned": ("    return h, c\n", ""),
    },
)

ANSWERS = [LSTM_STEP]
