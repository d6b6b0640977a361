"""Answers to the exercises of chapter 02."""

import numpy as np
import scipy
import torch

from answers import Answers, solution
from labkit.lab.exercises import load

exercises = load("02_digit_sum_sweep")

NAMES = {"np": np, "scipy": scipy, "torch": torch}

SEQUENCES = Answers(
    exercises.sequences,
    names=NAMES,
    right=[
        solution("02_digit_sum_sweep", "sequences"),
        """
def answer(pairs, length, places, digits):
    rows = []
    for pair, place, digit in zip(pairs.tolist(), places.tolist(), digits.tolist()):
        row = [*pair, *[0] * (length - 2)]
        row[place] = digit
        rows.append(row)
    return torch.tensor(rows), torch.tensor([row[0] + row[1] for row in rows])
""",
        """
def answer(pairs, length, places, digits):
    tail = torch.nn.functional.one_hot(places, length) * digits.unsqueeze(1)
    X = torch.nn.functional.pad(pairs, (0, length - 2)) + tail
    return X, pairs[:, 0] + pairs[:, 1]
""",
        """
def answer(pairs, length, places, digits):
    tail = torch.zeros(len(pairs), length - 2, dtype=torch.long)
    tail = tail.scatter(1, (places - 2).unsqueeze(1), digits.unsqueeze(1))
    return torch.hstack([pairs, tail]), pairs.sum(dim=1)
""",
    ],
    wrong={
        "the label counts the random digit": ("return X, y", "return X, X.sum(1)"),
        "a colon for the rows": ("X[torch.arange(len(X)), places]", "X[:, places]"),
        "the digits of the last row everywhere": (
            "X[torch.arange(len(X)), places] = digits",
            "for place, digit in zip(places, digits): X[:, place] = digit",
        ),
        "places count from 1": (
            "X[torch.arange(len(X)), places] = digits",
            "inside = places + 1 < length\n"
            "    X[torch.arange(len(X))[inside], places[inside] + 1] = digits[inside]",
        ),
        "places count from behind the addends": ("), places]", "), places - 2]"),
        "no random digit": ("    X[torch.arange(len(X)), places] = digits\n", ""),
        "one digit of the sum": ("return X, y", "return X, y % 10"),
        "a product instead of a sum": ("X.sum(1)", "pairs.prod(1)"),
        "label and sequence exchanged": ("return X, y", "return y, X"),
        "one element too many": ("(len(pairs), length,", "(len(pairs), length + 2,"),
        "the label keeps an axis": ("X.sum(1)", "X.sum(1, keepdim=True)"),
        "addends summed over the batch": ("X.sum(1)", "X.sum(0)"),
    },
)

REPLICA_STEP = Answers(
    exercises.replica_step,
    names=NAMES,
    right=[
        solution("02_digit_sum_sweep", "replica_step"),
        """
def answer(x, h, W, U, b):
    return torch.stack([torch.tanh(x[r] @ W[r] + h[r] @ U[r] + b[r]) for r in range(len(x))])
""",
        """
def answer(x, h, W, U, b):
    z = torch.einsum("rbe,reh->rbh", x, W) + torch.einsum("rbh,rhk->rbk", h, U)
    return (z + b[:, None]).tanh()
""",
        """
def answer(x, h, W, U, b):
    xh, WU = torch.cat([x, h], -1), torch.cat([W, U], 1)
    return torch.baddbmm(b.view(len(b), 1, -1), xh, WU).tanh()
""",
    ],
    wrong={
        "the weights of the first replica for all": """
def answer(x, h, W, U, b):
    return torch.tanh(x @ W[0] + h @ U[0] + b[0])
""",
        "a sum over the replicas' weights": (
            "torch.bmm(x, W) + torch.bmm(h, U)",
            "x @ W.sum(0) + h @ U.sum(0)",
        ),
        "no recurrent part": (" + torch.bmm(h, U)", ""),
        "no bias": (" + b.unsqueeze(1)", ""),
        "no tanh": ("torch.tanh(z)", "z"),
        "sigmoid": ("torch.tanh(z)", "torch.sigmoid(z)"),
        "the bias along the batch": ("b.unsqueeze(1)", "b"),
        "batch and replicas exchanged in the result": ("tanh(z)", "tanh(z).transpose(0, 1)"),
        "U transposed": ("torch.bmm(h, U)", "torch.bmm(h, U.mT)"),
        "elementwise product": ("torch.bmm(h, U)", "h * U.sum(1, keepdim=True)"),
        "only the last replica": ("torch.tanh(z)", "torch.tanh(z[-1])"),
        "averaged over the replicas": ("torch.tanh(z)", "torch.tanh(z).mean(0, True).expand_as(h)"),
    },
)

HELD_OUT = Answers(
    exercises.held_out,
    names=NAMES,
    right=[
        solution("02_digit_sum_sweep", "held_out"),
        """
def answer(X, k):
    first = {}
    for a, b in X[:, :2].tolist():
        first.setdefault(a + b, (a, b))
    held = []
    for a, b in X[:, :2].tolist():
        if (a, b) not in held and (a, b) not in first.values():
            held.append((a, b))
    held = held[len(held) - k :]
    return torch.tensor([(a, b) in held for a, b in X[:, :2].tolist()], dtype=torch.bool)
""",
        """
def answer(X, k):
    code = X[:, 0] * 10 + X[:, 1]
    order = torch.tensor(list(dict.fromkeys(code.tolist())))
    sums = order // 10 + order % 10
    repeated = torch.tensor([bool((sums[:n] == s).any()) for n, s in enumerate(sums)])
    return torch.isin(code, order[repeated][-k:])
""",
        """
def answer(X, k):
    rows, mask = X.numpy(), np.zeros(len(X), bool)
    _, index = np.unique(rows[:, :2], axis=0, return_index=True)
    seen, held = [], []
    for n in sorted(index):
        a, b = rows[n, :2]
        (held if a + b in seen else seen).append(n if a + b in seen else a + b)
    for n in held[::-1][:k]:
        mask |= (rows[:, :2] == rows[n, :2]).all(1)
    return mask
""",
    ],
    wrong={
        "the last rows": "def answer(X, k):\n    return torch.arange(len(X)) >= len(X) - k",
        "pairs with what stands behind them": """
def answer(X, k):
    rows = [tuple(row) for row in X.tolist()]
    sums, may_go = set(), []
    for row in dict.fromkeys(rows):
        if row[0] + row[1] in sums:
            may_go.append(row)
        sums.add(row[0] + row[1])
    return torch.tensor([row in may_go[-k:] for row in rows])
""",
        "any sum may go": ("may_go[-k:]", "list(dict.fromkeys(pairs))[-k:]"),
        "the first that may go": ("may_go[-k:]", "may_go[:k]"),
        "one pair too many": ("may_go[-k:]", "may_go[-k - 1 :]"),
        "one pair too few": ("may_go[-k:]", "may_go[-k:-1]"),
        "all that may go": ("may_go[-k:]", "may_go"),
        "the mask of the trained rows": ("pair in held", "pair not in held"),
        "indices instead of a mask": ("pairs])", "pairs]).nonzero().flatten()"),
        "held out by the sum": ("pair in held for", "sum(pair) in map(sum, held) for"),
        "a pair may have been turned round": ("pair in held for", "{*pair} in map(set, held) for"),
        "a mask of pairs, not of rows": ("for pair in pairs]", "for pair in dict.fromkeys(pairs)]"),
    },
)

TEST_SCORE = Answers(
    exercises.test_score,
    names=NAMES,
    right=[
        solution("02_digit_sum_sweep", "test_score"),
        """
def answer(dev, test):
    return test.gather(1, dev.max(1, keepdim=True).indices).squeeze(1)
""",
        """
def answer(dev, test):
    scores = []
    for d, t in zip(dev.tolist(), test.tolist()):
        scores.append(t[d.index(max(d))])
    return torch.tensor(scores)
""",
        """
def answer(dev, test):
    score, best = test[:, 0].clone(), dev[:, 0].clone()
    for k in range(1, dev.shape[1]):
        better = dev[:, k] > best
        best = torch.where(better, dev[:, k], best)
        score = torch.where(better, test[:, k], score)
    return score
""",
    ],
    wrong={
        "chosen by the test set": ("dev.argmax(dim=1)", "test.argmax(dim=1)"),
        "the best test accuracy": "def answer(dev, test):\n    return test.max(1).values",
        "the last evaluation": "def answer(dev, test):\n    return test[:, -1]",
        "the dev accuracy": ("return test[", "return dev["),
        "one evaluation for all": ("dev.argmax(dim=1)", "dev.mean(0).argmax()"),
        "the latest of the best": ("dev.argmax(", "dev.shape[1] - 1 - dev.flip(1).argmax("),
        "the worst": ("dev.argmax", "dev.argmin"),
        "averaged over the replicas": (", best]", ", best].mean()"),
        "averaged over the evaluations": "def answer(dev, test):\n    return test.mean(1)",
        "the evaluation instead of its score": ("test[torch.arange(len(test)), best]", "best"),
        "over the wrong axis": ("dev.argmax(dim=1)", "dev.argmax(dim=0)"),
        "every replica at everyone's best": ("[torch.arange(len(test)), best]", "[:, best]"),
    },
)

PAIRED_INTERVAL = Answers(
    exercises.paired_interval,
    names=NAMES,
    right=[
        """
def answer(a, b):
    d, n = a - b, len(a)
    error = d.std(ddof=1) / np.sqrt(n)
    half = scipy.stats.t.ppf(0.975, n - 1) * error
    return d.mean(), d.mean() - half, d.mean() + half
""",
        """
def answer(a, b):
    found = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    return (a - b).mean(), found.low, found.high
""",
        """
def answer(a, b):
    d = [float(x - y) for x, y in zip(a, b)]
    mean = sum(d) / len(d)
    variance = sum((value - mean) ** 2 for value in d) / (len(d) - 1)
    half = scipy.stats.t.isf(0.025, len(d) - 1) * (variance / len(d)) ** 0.5
    return mean, mean - half, mean + half
""",
        """
def answer(a, b):
    d = np.subtract(a, b)
    interval = scipy.stats.t.interval(0.95, d.size - 1, d.mean(), scipy.stats.sem(d))
    return [np.mean(d), *interval]
""",
    ],
    wrong={
        "b minus a": ("d, n = a - b", "d, n = b - a"),
        "two groups": ("d.std(ddof=1)", "np.sqrt(a.var(ddof=1) + b.var(ddof=1))"),
        "the spread of single seeds": (" / np.sqrt(n)", ""),
        "the variance over n": ("ddof=1", "ddof=0"),
        "1.96": ("scipy.stats.t.ppf(0.975, n - 1)", "1.96"),
        "one standard error": ("scipy.stats.t.ppf(0.975, n - 1) * ", ""),
        "one-sided": ("0.975", "0.95"),
        "n degrees of freedom": ("n - 1)", "n)"),
        "divided by n": ("np.sqrt(n)", "n"),
        "the variance for the deviation": ("d.std(ddof=1)", "d.var(ddof=1)"),
        "only the interval": ("return d.mean(), ", "return "),
        "the range of the seeds": ("d.mean() - half, d.mean() + half", "d.min(), d.max()"),
    },
)

ANSWERS = [SEQUENCES, REPLICA_STEP, HELD_OUT, TEST_SCORE, PAIRED_INTERVAL]
