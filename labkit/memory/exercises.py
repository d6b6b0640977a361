"""The exercises of chapters 02 and 03: a right answer and typical mistakes of each."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from labkit.lab.exercises import Exercise, Prediction

# chapter 02


def _draws(seed: int, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _sequences(
    pairs: Tensor, length: int, places: Tensor, digits: Tensor, *, mistake: str = ""
) -> tuple[Tensor, Tensor]:
    X = torch.zeros(len(pairs), length + 1, dtype=torch.int64)
    X[:, :2] = pairs
    y = X.sum(1)
    for k, (place, digit) in enumerate(zip(places, digits, strict=True)):
        rows = slice(None) if mistake == "rows" else k
        X[rows, place + (mistake == "late")] = 0 if mistake == "no digit" else digit
    y = X.sum(1) if mistake == "sum" else y % 10 if mistake == "modulo" else y
    return X[:, :length], y


sequences = Exercise(
    "sequences",
    _sequences,
    lambda: [
        (_draws(T, 0, 10, N, 2), T, _draws(T + 1, 2, T, N), _draws(T + 2, 1, 10, N))
        for N, T in ((4, 5), (7, 10), (3, 12))
    ],
    {
        message: partial(_sequences, mistake=mistake)
        for mistake, message in {
            "sum": "the random digit counts in your label: it is the sum of the addends alone.",
            "rows": "every row gets the digits of all rows: index rows with torch.arange(N), not "
            "with a colon.",
            "late": "your digits stand one place too late: places count from 0.",
            "no digit": "the random digits are missing.",
            "modulo": "the label is the whole sum, 0 to 18, not its last digit.",
        }.items()
    },
)


def _replica_step(
    x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor, *, mistake: str = ""
) -> Tensor:
    if mistake == "one model":
        W, U, b = (value[:1].expand_as(value) for value in (W, U, b))
    if mistake == "mixed":
        z = torch.einsum("rbe,seh->rbh", x, W) + torch.einsum("rbh,shk->rbk", h, U)
    else:
        z = torch.bmm(x, W) + torch.bmm(h, U) * (mistake != "no state")
    z = z + (b if mistake == "batch bias" else b.unsqueeze(1)) * (mistake != "no bias")
    return z if mistake == "no tanh" else z.sigmoid() if mistake == "sigmoid" else z.tanh()


replica_step = Exercise(
    "replica_step",
    _replica_step,
    lambda: [
        (
            _normal(1, R, B, E), _normal(2, R, B, H), _normal(3, R, E, H), _normal(4, R, H, H),
            _normal(5, R, H),
        )
        for R, B, E, H in ((3, 3, 4, 5), (4, 4, 2, 2))
    ],
    {
        message: partial(_replica_step, mistake=mistake)
        for mistake, message in {
            "one model": "all replicas use the weights of the first: replica r has W[r], U[r], "
            "b[r].",
            "mixed": "you sum over all replicas' weights: r must be an index of both factors "
            "and of the result.",
            "no state": "the old state is not read: h U is missing.",
            "no bias": "the biases b are missing.",
            "batch bias": "b[r] belongs to replica r, yours to sequence r: b.unsqueeze(1).",
            "no tanh": "the sum goes through tanh.",
            "sigmoid": "an SRN has tanh, not the sigmoid.",
        }.items()
    },
)  # fmt: skip


def _held_out(X: Tensor, k: int, *, mistake: str = "") -> Tensor:
    if mistake == "rows":
        return torch.arange(len(X)) >= len(X) - k
    pairs = [tuple(pair) for pair in X[:, :2].tolist()]
    order = [*dict.fromkeys(pairs)]
    repeated = [p for n, p in enumerate(order) if sum(p) in {*map(sum, order[:n])}]
    held = {
        "first": repeated[:k], "any sum": order[-k:], "one more": repeated[-k - 1 :]
    }.get(mistake, repeated[-k:])  # fmt: skip
    mask = torch.tensor([p in held for p in pairs])
    return ~mask if mistake == "inverted" else mask


def _split_cases() -> list[tuple]:
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    cases = []
    for seed, k in ((0, 3), (1, 5), (2, 8)):
        rows = pairs[_draws(seed, 0, 25, 40)]  # some pairs more than once, some late
        cases.append((torch.cat([rows, _draws(seed + 9, 0, 10, 40, 2)], 1), k))
    return cases


held_out = Exercise(
    "held_out",
    _held_out,
    _split_cases,
    {
        message: partial(_held_out, mistake=mistake)
        for mistake, message in {
            "rows": "you hold out rows, so a pair can stand on both sides: hold out pairs.",
            "any sum": "some sum has no pair left to train on: the first pair of a sum stays.",
            "first": "you hold out the first k pairs that may go; wanted are the last k.",
            "one more": "you hold out one pair too many.",
            "inverted": "your mask is true where it should be false: true means held out.",
        }.items()
    },
)


def _test_score(dev: Tensor, test: Tensor, *, mistake: str = "") -> Tensor:
    best = dev.argmax(1)
    if mistake == "latest":
        best = dev.shape[1] - 1 - dev.flip(1).argmax(1)
    if mistake == "one step":
        best = dev.mean(0).argmax().expand(len(dev))
    if mistake == "by test":
        best = test.argmax(1)
    if mistake == "last":
        best = torch.full_like(best, dev.shape[1] - 1)
    scores = dev if mistake == "dev" else test
    return scores.gather(1, best.unsqueeze(1)).squeeze(1)


test_score = Exercise(
    "test_score",
    _test_score,
    lambda: [
        (_draws(seed, 0, 8, R, K) / 10, _draws(seed + 5, 0, 100, R, K) / 100)
        for seed, (R, K) in enumerate(((4, 12), (6, 9), (3, 30)))
    ],
    {
        message: partial(_test_score, mistake=mistake)
        for mistake, message in {
            "by test": "you choose by the test set, so it is no test any more: choose by dev.",
            "last": "you take the last evaluation: wanted is the one with the best dev accuracy.",
            "dev": "you return the dev accuracy, which flatters: it is the best of many looks.",
            "one step": "you choose one evaluation for all replicas: each has its own.",
            "latest": "where several evaluations tie, take the earliest.",
        }.items()
    },
)


def _paired_interval(
    a: np.ndarray, b: np.ndarray, *, mistake: str = ""
) -> tuple[float, float, float]:
    d, n = np.asarray(b) - a if mistake == "sign" else np.asarray(a) - b, len(a)
    error = d.std(ddof=0 if mistake == "n" else 1) / (1 if mistake == "spread" else n**0.5)
    if mistake == "unpaired":
        error = ((np.var(a, ddof=1) + np.var(b, ddof=1)) / n) ** 0.5
    t = stats.t.ppf(0.95 if mistake == "one-sided" else 0.975, n - (mistake != "freedom"))
    half = error * {"normal": 1.96, "no t": 1.0}.get(mistake, t)
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


paired_interval = Exercise(
    "paired_interval",
    _paired_interval,
    lambda: [
        (np.array([0.9, 0.8, 0.95]), np.array([0.6, 0.55, 0.7])),
        (_draws(1, 0, 100, 8).numpy() / 100, _draws(2, 0, 100, 8).numpy() / 100),
    ],
    {
        message: partial(_paired_interval, mistake=mistake)
        for mistake, message in {
            "sign": "the sign: wanted is a − b.",
            "unpaired": "you treat a and b as two groups: take the difference within each seed.",
            "spread": "that is the spread of single seeds: the mean's is smaller by √n.",
            "n": "the variance of a sample divides by n − 1 (ddof=1).",
            "normal": "1.96 is for many seeds; for n of them it is Student's t with n − 1.",
            "no t": "one standard error holds about two thirds, not 95 %: the factor t is missing.",
            "one-sided": "2.5 % lie beyond each end: the quantile is 0.975.",
            "freedom": "n values have n − 1 degrees of freedom.",
        }.items()
    },
)

shuffling = Prediction(
    "shuffling",
    {
        "better": "a batch of the sorted file holds three or four digit pairs, and pulls the "
        "network towards them; a shuffled batch speaks for the whole task.",
        "worse": "the sorted file shows the rows of a pair one after the other, which may help a "
        "network to learn them by heart.",
        "no difference": "both orders show the same rows equally often.",
    },
)
