"""The exercises of chapters 02 and 03: a right answer and typical mistakes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from labkit.lab.exercises import Exercise, Prediction
from labkit.memory.data import all_pairs, with_digit
from labkit.memory.gates import FOLDS, pair_folds
from labkit.memory.model import Ensemble, ModelSpec


def _exercise(
    name: str,
    right: Callable[..., Any],
    cases: Callable[[], Sequence[tuple]],
    messages: dict[str, str],
) -> Exercise:
    """An exercise whose right answer, given `mistake=...`, makes one of the mistakes told of."""
    mistakes = {message: partial(right, mistake=mistake) for mistake, message in messages.items()}
    return Exercise(name, right, cases, mistakes)


def _draws(seed: int, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


# chapter 02


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


sequences = _exercise(
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


replica_step = _exercise(
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


held_out = _exercise(
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


test_score = _exercise(
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


paired_interval = _exercise(
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


# chapter 03

Trace = Callable[..., dict[str, Tensor]]


@cache
def _models() -> Ensemble:
    """Two untrained LSTMs with large weights, so that their gates depend on what they read."""
    ensemble = Ensemble(ModelSpec(cell="lstm", hidden_size=5), [3, 8], dtype=torch.float64)
    ensemble.load_state_dict({name: 3 * value for name, value in ensemble.state_dict().items()})
    return ensemble


def _trace(X: Tensor) -> dict[str, Tensor]:
    return _models().trace(X)


def _logits(X: Tensor, held: dict[str, float | Tensor], first: int) -> Tensor:
    return _models().logits(X, held, first)


def _two_digits() -> Tensor:
    """Pairs of addends with two other digits behind them, (12, 7)."""
    return with_digit(with_digit(all_pairs(7).X[3::9], 3, 1), 5, 4)


def _digit_effect(trace: Trace, X: Tensor, step: int, *, mistake: str = "") -> Tensor:
    wrong = {"row": step, "from 1": (slice(None), step - 1), "all": (slice(None), slice(2, None))}
    zeroed, f = X.clone(), trace(X)["f"]
    zeroed[wrong.get(mistake, (slice(None), step))] = 0
    effect = f - (f.roll(1, dims=2) if mistake == "step before" else trace(zeroed)["f"])
    return {"sign": -effect, "size": effect.abs()}.get(mistake, effect)


digit_effect = _exercise(
    "digit_effect",
    _digit_effect,
    lambda: [(_trace, _two_digits(), step) for step in (3, 5)],
    {
        "sign": "the sign is turned: with the digit minus with a zero, so that a gate that the "
        "digit closes comes out below zero.",
        "size": "the sign is lost: without abs() one sees which units fall and which rise.",
        "row": "X[step] is a sequence, not a step: X is (B, T), so the step is X[:, step].",
        "from 1": "you put the zero one step too early: steps count from 0.",
        "all": "you put zeros at all steps behind the addends: change the one step alone.",
        "step before": "you compare with the step before in the same sequence: compare with "
        "the same step of the sequence that has a zero.",
    },
)


def _share_falling(
    with_digit: Tensor, with_zero: Tensor, threshold: float, *, mistake: str = ""
) -> Tensor:
    fall = with_zero - with_digit  # (R, B, H)
    fall = {
        "rises": -fall,
        "both": fall.abs(),
        "mean first": fall.mean(dim=1, keepdim=True),
        "relative": fall / with_zero,
    }.get(mistake, fall)
    share = (fall > (0 if mistake == "any" else threshold)).double().mean(dim=(1, 2))
    return share.mean() if mistake == "one number" else share


share_falling = _exercise(
    "share_falling",
    _share_falling,
    lambda: [(*_draws(0, 0, 100, 2, 3, 40, 16) / 99, threshold) for threshold in (0.105, 0.405)],
    {
        "rises": "you count the units that rise: a unit falls if it is lower with the digit.",
        "both": "you count both directions: abs() makes a rise look like a fall.",
        "any": "you count every fall, however small: it must be by more than the threshold.",
        "mean first": "you average over sequences first, and then count: a unit that falls in "
        "one sequence and rises in the next disappears. Count first, then average.",
        "relative": "you divide by the value with a zero: the threshold is on the difference.",
        "one number": "you average over the models too: wanted is one share for each, (R,).",
    },
)


def _probe_split(X: Tensor, folds: Tensor, fold: int, *, mistake: str = "") -> tuple:
    of_pair = folds[X[:, 1], X[:, 0]] if mistake == "swapped" else folds[X[:, 0], X[:, 1]]  # (N,)
    test = (torch.arange(len(X)) % FOLDS if mistake == "rows" else of_pair) == fold
    fit = {"all": torch.ones_like(test), "dropped": (of_pair >= 0) & ~test}.get(mistake, ~test)
    return (test, fit) if mistake == "order" else (fit, test)


def _probe_cases() -> list[tuple]:
    folds = pair_folds(all_pairs(5).y).view(10, 10)
    X = torch.cat([with_digit(all_pairs(5).X, step, 7) for step in (2, 3, 4)])
    return [(X, folds, fold) for fold in (0, 3)]


probe_split = _exercise(
    "probe_split",
    _probe_split,
    _probe_cases,
    {
        "rows": "you deal out the rows, so sequences of one pair stand on both sides: a leak. "
        "Look the fold up by the pair.",
        "all": "you fit on all rows, those of the test included: a leak.",
        "dropped": "the pairs of fold −1 are always fitted on: you leave them out.",
        "order": "you return (test, fit); wanted is (fit, test).",
        "swapped": "you look up folds[second, first]: 3 + 5 and 5 + 3 are two pairs.",
    },
)


def _hold_at_mean(
    trace: Trace, logits: Callable, X: Tensor, gate: str, first: int, *, mistake: str = ""
) -> Tensor:
    values = trace(X)[gate][:, :, 0 if mistake == "all steps" else first :]  # (R, B, T, H)
    over = {"units": (1, 2, 3), "models": (0, 1, 2), "sequences": (2,)}.get(mistake, (1, 2))
    mean = values.mean(dim=over, keepdim=True).expand(2, -1, -1, 5).squeeze(2)  # (R, 1, H)
    held = 1.0 if mistake == "one" else mean
    return logits(X, {gate: held}, 0 if mistake == "from the start" else first)


hold_at_mean = _exercise(
    "hold_at_mean",
    _hold_at_mean,
    lambda: [(_trace, _logits, _two_digits(), gate, first) for gate, first in (("f", 2), ("i", 3))],
    {
        "one": "you hold the gate at 1: here it is held at its mean.",
        "units": "one mean for all units: each unit keeps its own.",
        "models": "you average over the models: each model keeps its own mean.",
        "sequences": "each sequence has its own mean, so the gate still knows which sequence "
        "it reads: average over the sequences too.",
        "all steps": "you average over all steps: only those from `first` on are held.",
        "from the start": "you hold the gate from the start: pass `first` on to logits.",
    },
)

best_read = Prediction(
    "where the sum of new pairs is read best",
    {
        "step 2": "the sum is complete as soon as both addends are in, and then fades",
        "step 10": "the network goes on adding while it reads digits that tell it nothing",
    },
)
most_missed = Prediction(
    "the gate that is missed most",
    {
        "i": "the addends come in through the input gate, so the reading itself suffers",
        "f": "a cell that cannot choose what to forget loses what it has read",
        "o": "the state is kept, but the next steps and the head read it through this gate",
    },
)
