"""The exercises of chapter 03: a right answer and typical mistakes of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from labkit.lab.exercises import Exercise, Prediction
from labkit.memory.data import all_pairs, with_digit
from labkit.memory.gates import FOLDS, pair_folds
from labkit.memory.model import Ensemble, ModelSpec


def _draws(seed: int, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


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


digit_effect = Exercise(
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


share_falling = Exercise(
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


probe_split = Exercise(
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


hold_at_mean = Exercise(
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
