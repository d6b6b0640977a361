"""The exercises of chapter 02: a right answer and typical mistakes of each."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from labkit.lab.exercises import Exercise, Prediction


def _draws(seed: int, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def _sequences(
    pairs: Tensor, length: int, places: Tensor, digits: Tensor, *, mistake: str = ""
) -> tuple[Tensor, Tensor]:
    X = torch.zeros(len(pairs), length + 1, dtype=torch.int64)
    X[:, :2] = pairs
    y = X.sum(1)
    for k, (place, digit) in enumerate(zip(places, digits, strict=True)):
        rows = slice(None) if mistake == "rows" else k
        X[rows, place + (mistake == "late")] = 0 if mistake == "none" else digit
    y = X.sum(1) if mistake == "total" else y % 10 if mistake == "modulo" else y
    return X[:, :length], y


sequences = Exercise(
    "sequences",
    _sequences,
    lambda: [
        (_draws(T, 0, 10, N, 2), T, _draws(T + 1, 2, T, N), _draws(T + 2, 1, 10, N))
        for N, T in ((4, 5), (7, 10), (3, 12))
    ],
    {
        "total": "the random digit counts in your label: it is the sum of the addends alone.",
        "rows": "every row gets the digits of all rows: index rows with torch.arange(N), not "
        "with a colon.",
        "late": "your digits stand one place too late: places count from 0.",
        "none": "the random digits are missing.",
        "modulo": "the label is the whole sum, 0 to 18, not its last digit.",
    },
)


def _replica_step(
    x: Tensor, h: Tensor, W: Tensor, U: Tensor, b: Tensor, *, mistake: str = ""
) -> Tensor:
    if mistake == "first":
        W, U, b = (value[:1].expand_as(value) for value in (W, U, b))
    if mistake == "mixed":
        z = torch.einsum("rbe,seh->rbh", x, W) + torch.einsum("rbh,shk->rbk", h, U)
    else:
        z = torch.bmm(x, W) + torch.bmm(h, U) * (mistake != "stateless")
    z = z + (b if mistake == "batch" else b.unsqueeze(1)) * (mistake != "unbiased")
    return z if mistake == "linear" else z.tanh()


def _step_cases() -> list[tuple]:
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(
            torch.randn(shape, generator=generator)
            for shape in ((R, R, E), (R, R, H), (R, E, H), (R, H, H), (R, H))
        )
        for R, E, H in ((3, 4, 5), (4, 2, 2))  # as many sequences as replicas: no error helps
    ]


replica_step = Exercise(
    "replica_step",
    _replica_step,
    _step_cases,
    {
        "first": "all replicas use the weights of the first: replica r has W[r], U[r], b[r].",
        "mixed": "you sum over all replicas' weights: r must be an index of both factors and "
        "of the result.",
        "stateless": "the old state is not read: h U is missing.",
        "unbiased": "the biases b are missing.",
        "batch": "b[r] belongs to replica r, yours to sequence r: b.unsqueeze(1).",
        "linear": "the sum goes through tanh.",
    },
)


def _held_out(X: Tensor, k: int, *, mistake: str = "") -> Tensor:
    if mistake == "rows":
        return torch.arange(len(X)) >= len(X) - k
    pairs = [tuple(pair) for pair in X[:, :2].tolist()]
    order = [*dict.fromkeys(pairs)]
    repeated = [p for n, p in enumerate(order) if sum(p) in {*map(sum, order[:n])}]
    choices = {"first": repeated[:k], "unknown": order[-k:], "more": repeated[-k - 1 :]}
    held = choices.get(mistake, repeated[-k:])
    mask = torch.tensor([p in held for p in pairs])
    return ~mask if mistake == "inverted" else mask


def _split_cases() -> list[tuple]:
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    return [  # some pairs more than once, some late
        (torch.cat([pairs[_draws(seed, 0, 25, 40)], _draws(seed + 9, 0, 10, 40, 2)], 1), k)
        for seed, k in ((0, 3), (1, 5), (2, 8))
    ]


held_out = Exercise(
    "held_out",
    _held_out,
    _split_cases,
    {
        "rows": "you hold out rows, so a pair can stand on both sides: hold out pairs.",
        "unknown": "some sum has no pair left to train on: the first pair of a sum stays.",
        "first": "you hold out the first k pairs that may go; wanted are the last k.",
        "more": "you hold out one pair too many.",
        "inverted": "your mask is true where it should be false: true means held out.",
    },
)


def _test_score(dev: Tensor, test: Tensor, *, mistake: str = "") -> Tensor:
    K = dev.shape[1]
    best = {
        "by_test": test.argmax(1),
        "last": torch.full((len(dev),), K - 1),
        "shared": dev.mean(0).argmax().expand(len(dev)),
        "latest": K - 1 - dev.flip(1).argmax(1),
    }.get(mistake, dev.argmax(1))
    scores = dev if mistake == "flatters" else test
    return scores.gather(1, best.unsqueeze(1)).squeeze(1)


test_score = Exercise(
    "test_score",
    _test_score,
    lambda: [
        (_draws(R, 0, 8, R, K) / 10, _draws(K, 0, 100, R, K) / 100)
        for R, K in ((4, 12), (6, 9), (3, 30))
    ],
    {
        "by_test": "you choose by the test set, so it is no test any more: choose by dev.",
        "last": "you take the last evaluation: wanted is the one with the best dev accuracy.",
        "flatters": "you return the dev accuracy, which flatters: it is the best of many looks.",
        "shared": "you choose one evaluation for all replicas: each has its own.",
        "latest": "where several evaluations tie, take the earliest.",
    },
)


def _paired_interval(
    a: np.ndarray, b: np.ndarray, *, mistake: str = ""
) -> tuple[float, float, float]:
    d, n = (b - a if mistake == "sign" else a - b), len(a)
    error = d.std(ddof=0 if mistake == "biased" else 1) / (1 if mistake == "spread" else n**0.5)
    if mistake == "unpaired":
        error = ((np.var(a, ddof=1) + np.var(b, ddof=1)) / n) ** 0.5
    t = stats.t.ppf(0.95 if mistake == "one_sided" else 0.975, n - (mistake != "freedom"))
    half = error * {"normal": 1.96, "no_t": 1.0}.get(mistake, t)
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


paired_interval = Exercise(
    "paired_interval",
    _paired_interval,
    lambda: [
        (np.array([0.9, 0.8, 0.95]), np.array([0.6, 0.55, 0.7])),
        (_draws(1, 0, 100, 8).numpy() / 100, _draws(2, 0, 100, 8).numpy() / 100),
    ],
    {
        "sign": "the sign: wanted is a − b.",
        "unpaired": "you treat a and b as two groups: take the difference within each seed.",
        "spread": "that is the spread of single seeds: the mean's is smaller by √n.",
        "biased": "the variance of a sample divides by n − 1 (ddof=1).",
        "normal": "1.96 is for many seeds; for n of them it is Student's t with n − 1.",
        "no_t": "one standard error holds about two thirds, not 95 %: the factor t is missing.",
        "one_sided": "2.5 % lie beyond each end: the quantile is 0.975.",
        "freedom": "n values have n − 1 degrees of freedom.",
    },
)

shuffling = Prediction(
    "shuffling",
    {
        "better": "a batch of the sorted file holds three or four digit pairs and pulls the "
        "network towards them; a shuffled batch speaks for the whole task.",
        "worse": "the sorted file shows the rows of a pair one after the other, which may help "
        "to learn them by heart.",
        "no different": "both orders show the same rows equally often.",
    },
)
