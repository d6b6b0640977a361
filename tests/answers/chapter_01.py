"""Answers to the exercises of chapter 01."""

import torch

from answers import Answers, solution
from labkit.lab.exercises import load

exercises = load("01_lstm_operator")

LSTM_STEP = Answers(
    exercises.lstm_step,
    names={"torch": torch},
    right=[
        """
def answer(x, h, c, W, U, b):
    z = {k: x @ W[k] + h @ U[k] + b[k] for k in W}
    i, f, o = (torch.sigmoid(z[k]) for k in "ifo")
    g = torch.tanh(z["c"])
    c = f * c + i * g
    h = o * torch.tanh(c)
    return h, c
""",
        """
def answer(x, h, c, W, U, b):
    i = torch.sigmoid(torch.matmul(x, W["i"]) + torch.matmul(h, U["i"]) + b["i"])
    f = torch.sigmoid(torch.matmul(x, W["f"]) + torch.matmul(h, U["f"]) + b["f"])
    o = torch.sigmoid(torch.matmul(x, W["o"]) + torch.matmul(h, U["o"]) + b["o"])
    c = f * c + i * torch.tanh(torch.matmul(x, W["c"]) + torch.matmul(h, U["c"]) + b["c"])
    return o * c.tanh(), c
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
        "no bias in any gate": (" + b[k]", ""),
        "no recurrent part": (" + h @ U[k]", ""),
        "sigmoid for the candidate": ("g = torch.tanh", "g = torch.sigmoid"),
        "the old cell state is dropped": ("f * c + i * g", "i * g"),
        "h for c in the update": ("f * c + i * g", "f * h + i * g"),
        "no tanh at the output": ("o * torch.tanh(c)", "o * c"),
        "states in the other order": ("return h, c", "return c, h"),
        "only h is returned": ("return h, c", "return h"),
        "one gate without its bias": ("b[k] for", "(b[k] if k != 'f' else 0) for"),
        "W and U exchanged": ("x @ W[k] + h @ U[k]", "x @ U[k] + h @ W[k]"),
        "the argument is changed in place": ("c = f * c + i * g", "c.mul_(f).add_(i * g)"),
        "nothing is returned": ("    return h, c\n", ""),
    },
)

READ_WEIGHTS = Answers(
    exercises.read_weights,
    names={"torch": torch},
    right=[
        solution("01_lstm_operator", "read_weights"),
        """
def answer(weight_ih, weight_hh, bias_ih, bias_hh):
    both = (bias_ih + bias_hh).unsqueeze(1)
    return [dict(zip("ifco", (p.t() for p in w.chunk(4)))) for w in (weight_ih, weight_hh, both)]
""",
        """
def answer(weight_ih, weight_hh, bias_ih, bias_hh):
    def split(stacked):
        i, f, g, o = torch.split(stacked, stacked.shape[1] // 4, dim=1)
        return {"i": i, "f": f, "o": o, "c": g}
    b1, b2 = split(bias_ih[None]), split(bias_hh[None])
    return split(weight_ih.t()), split(weight_hh.t()), {k: b1[k] + b2[k] for k in "ifoc"}
""",
        """
def answer(weight_ih, weight_hh, bias_ih, bias_hh):
    place = {"i": 0, "f": 1, "o": 3, "c": 2}
    W = {k: weight_ih.view(4, -1, weight_ih.shape[1])[n].transpose(0, 1) for k, n in place.items()}
    U = {k: weight_hh.view(4, -1, weight_hh.shape[1])[n].transpose(0, 1) for k, n in place.items()}
    b = {k: (bias_ih.view(4, 1, -1) + bias_hh.view(4, 1, -1))[n] for k, n in place.items()}
    return W, U, b
""",
    ],
    wrong={
        "i f o c, as the formulas stand": ('"ifco"', '"ifoc"'),
        "o i f c, as the fast code stands": ('"ifco"', '"oifc"'),
        "not transposed": (".T", ""),
        "the second bias is forgotten": ("(bias_ih + bias_hh)[rows]", "bias_ih[rows]"),
        "the first bias is forgotten": ("(bias_ih + bias_hh)[rows]", "bias_hh[rows]"),
        "every fourth row": ("slice(k * H, (k + 1) * H)", "slice(k, None, 4)"),
        "b has no row of its own": (".reshape(1, H)", ""),
        "g kept as a name": ('"ifco"', '"ifgo"'),
        "the biases in the other place": ("W, U, b\n", "W, b, U\n"),
    },
)

TIME_FIRST = Answers(
    exercises.time_first,
    names={"torch": torch},
    right=[
        """
def answer(lstm, X):
    output, (h_n, c_n) = lstm(X.transpose(0, 1))
    output = output.transpose(0, 1)
    return output, h_n[0]
""",
        """
def answer(lstm, X):
    output, states = lstm(X.permute(1, 0, 2))
    return output.permute(1, 0, 2), states[0].squeeze(0)
""",
        """
def answer(lstm, X):
    columns = [lstm(X[:, t][None]) for t in range(X.shape[1])]
    output = torch.stack([output[0] for output, _ in columns], 1)
    return output, torch.cat([h_n[0] for _, (h_n, _) in columns])
""",
        """
def answer(lstm, X):
    output = torch.swapaxes(lstm(torch.swapaxes(X, 0, 1))[0], 0, 1)
    return output, output[-1]
""",
    ],
    wrong={
        "nothing swapped": (".transpose(0, 1)", ""),
        "the output is not swapped back": ("    output = output.transpose(0, 1)\n", ""),
        "the input is not swapped": ("lstm(X.transpose(0, 1))", "lstm(X)"),
        "reshape for transpose": ("X.transpose(0, 1)", "X.reshape(X.shape[1], X.shape[0], -1)"),
        "the last cell state": ("return output, h_n[0]", "return output, c_n[0]"),
        "the last column": ("return output, h_n[0]", "return output, output[:, -1]"),
        "h_n with its first axis": ("h_n[0]", "h_n"),
        "the time turned round": ("X.transpose(0, 1)", "X.flip(1).transpose(0, 1)"),
        "only the states": ("return output, h_n[0]", "return h_n[0]"),
    },
)

CELL_GRADIENTS = Answers(
    exercises.cell_gradients,
    names={"torch": torch},
    right=[
        solution("01_lstm_operator", "cell_gradients"),
        """
def answer(d_h, f, o, c):
    d_c = d_h * o * (1 - c.tanh().square())
    for t in range(len(c) - 2, -1, -1):
        d_c[t] += f[t + 1] * d_c[t + 1]
    return d_c
""",
        """
def answer(d_h, f, o, c):
    T, enter = len(c), d_h * o / torch.cosh(c) ** 2
    return torch.stack([
        sum(enter[s] * f[t + 1 : s + 1].prod(0) for s in range(t, T)) for t in range(T)
    ])
""",
        """
def answer(d_h, f, o, c):
    def walk(t):
        here = d_h[t] * o[t] * (1 - torch.tanh(c[t]) * torch.tanh(c[t]))
        if t == len(c) - 1:
            return [here]
        later = walk(t + 1)
        return [here + later[0] * f[t + 1], *later]
    return torch.stack(walk(0))
""",
    ],
    wrong={
        "no slope of tanh": (" * (1 - torch.tanh(c[t]) ** 2)", ""),
        "c taken for its tanh": ("torch.tanh(c[t]) ** 2", "c[t] ** 2"),
        "no output gate": (" * o[t]", ""),
        "f of the wrong step": (" + back\n        back = d_c[t] * f[t]",
                                " + back * f[t]\n        back = d_c[t]"),
        "from first to last": ("reversed(range(len(c)))", "range(len(c))"),
        "nothing comes back": (" + back", ""),
        "no forget gate": ("d_c[t] * f[t]", "d_c[t]"),
        "only what entered goes on": ("back = d_c[t] * f[t]",
                                      "back = (d_c[t] - back) * f[t]"),
        "f times what enters, too": (") + back", ") * f[t] + back"),
        "the slope of the sigmoid": ("(1 - torch.tanh(c[t]) ** 2)", "o[t] * (1 - o[t])"),
    },
)  # fmt: skip

ANSWERS = [LSTM_STEP, READ_WEIGHTS, TIME_FIRST, CELL_GRADIENTS]
