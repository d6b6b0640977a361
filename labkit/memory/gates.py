"""What the gates of a trained LSTM do with a digit that it should ignore, measured on traces.

A trace is what `Ensemble.trace` returns: "i", "f", "o", "g", "c", "h", (R, B, T, H) each, for R
replicas, B sequences, T steps and H hidden units; D counts digits. Steps count from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from labkit.memory.data import ADDENDS, DIGITS, all_pairs, first_of_each, with_digit
from labkit.memory.model import Ensemble

CHANGE = {"i": 0.1, "f": 0.1, "o": 0.1, "c": 0.5}  # a tenth of what the picture's colours span
FIT_DIGITS, TEST_DIGITS, FOLDS = (1, 4, 7), (2, 5, 8), 5


def _variance(gate: Tensor, steps: Sequence[int]) -> Tensor:
    """Variance of a gate (R, B, T, H) over `steps`, averaged over sequences and units: (R,)."""
    return gate[:, :, list(steps)].var(dim=2, correction=0).mean(dim=(1, 2))


def zero_variances(traces: Sequence[Mapping[str, Tensor]], position: int) -> dict[str, Tensor]:
    """How much the input gate differs between zeros, and between digits, as variances (R,).

    `traces[0]` has only zeros behind the addends, the others have another digit at step `position`.
    "alone" is the variance over the zeros of the first; "zeros", "before" and "after" over those of
    the others, all or on one side of the digit, if at least two; "shift" the squared difference of
    the sides' means; "digits" over all traces at that step. All are means over sequences and units.
    """
    gates = [trace["i"] for trace in traces]
    T = gates[0].shape[2]
    before, after = [*range(ADDENDS, position)], [*range(position + 1, T)]
    variances = {"alone": _variance(gates[0], range(ADDENDS, T))}
    at_digit = torch.stack([gate[:, :, position] for gate in gates])  # (D, R, B, H)
    variances["digits"] = at_digit.var(dim=0, correction=0).mean(dim=(1, 2))
    for name, where in {"zeros": before + after, "before": before, "after": after}.items():
        if len(where) >= 2:
            variances[name] = torch.stack([_variance(gate, where) for gate in gates[1:]]).mean(0)
    if before and after:
        shifts = [gate[:, :, before].mean(2) - gate[:, :, after].mean(2) for gate in gates[1:]]
        variances["shift"] = torch.stack(shifts).square().mean(dim=(0, 2, 3))
    return variances


def changed_shares(traces: Sequence[Mapping[str, Tensor]], position: int) -> dict[str, Tensor]:
    """Shares of the hidden units that fall and rise where a digit stands instead of a zero.

    `traces` as in `zero_variances`. A unit falls if its value at step `position` is lower than with
    a zero there by more than `CHANGE`, and rises likewise; the cell state counts by its size.
    Returns "f/falls", "f/rises" and so on for i, f, o and c, means over sequences (R, D); "f_next/"
    for f one step later; "f_seen/" and so on for the change from the step before, as a reader of
    one picture sees it, but not right behind the addends.
    """
    changes = {}
    for name in CHANGE:
        window = [trace[name][:, :, position - 1 : position + 2] for trace in traces]
        value = torch.stack(window, 1)  # (R, D, B, 3 or fewer steps, H)
        before, now, *later = (value.abs() if name == "c" else value).unbind(3)
        changes[name] = now - now[:, :1]
        if position > ADDENDS:
            changes[f"{name}_seen"] = now - before
        if name == "f" and later:
            changes["f_next"] = later[0] - later[0][:, :1]

    moved = {f"{label}/falls": -change > CHANGE[label[0]] for label, change in changes.items()}
    moved |= {f"{label}/rises": change > CHANGE[label[0]] for label, change in changes.items()}
    return {name: units.double().mean(dim=(2, 3)) for name, units in moved.items()}  # (R, D)


def study(ensemble: Ensemble, length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put every digit at every place behind the hundred pairs of addends, zeros elsewhere.

    Returns roots of the means over places of `zero_variances`, (R,), with the ratios
    "zeros_to_digits" and "alone_to_digits"; and the means of `changed_shares`, (R, 10).
    """
    X = all_pairs(length).X
    by_name: dict[str, list[Tensor]] = {}
    for position in range(ADDENDS, length):
        traces = [ensemble.trace(with_digit(X, position, digit)) for digit in range(DIGITS)]
        values = zero_variances(traces, position) | changed_shares(traces, position)
        for name, value in values.items():
            by_name.setdefault(name, []).append(value)

    means = {name: torch.stack(values).mean(0) for name, values in by_name.items()}
    shares = {name: means.pop(name) for name in by_name if "/" in name}
    spreads = {name: variance.sqrt() for name, variance in means.items()}
    for name in ("zeros", "alone"):
        spreads[f"{name}_to_digits"] = spreads[name] / spreads["digits"].clamp(min=1e-12)
    return spreads, shares


def linear_probe(features: Tensor, y: Tensor, fit: Tensor, test: Tensor) -> Tensor:
    """Accuracy (...,) of reading classes y (N,) from features (..., N, H) by a linear classifier.

    Linear discriminant analysis: class means and one covariance of the rows of the mask `fit` (N,),
    scaled to unit variance, with 0.001 added to its diagonal; tested on the rows of `test` (N,).
    """
    if (fit & test).any():
        raise ValueError("linear_probe: a row stands both in `fit` and in `test`")
    features = features.double()
    A = features[..., fit, :]
    centre, scale = A.mean(-2, keepdim=True), A.std(-2, keepdim=True).clamp(min=1e-6)
    A, B = (A - centre) / scale, (features[..., test, :] - centre) / scale

    classes, labels = y[fit].unique(return_inverse=True)
    member = torch.nn.functional.one_hot(labels).double()  # (N_fit, C)
    means = member.T @ A / member.sum(0).unsqueeze(-1)  # (..., C, H)
    rest = A - means[..., labels, :]
    covariance = rest.mT @ rest / len(labels) + 1e-3 * torch.eye(A.shape[-1], dtype=A.dtype)

    W = torch.linalg.solve(covariance, means.mT)  # (..., H, C)
    b = member.mean(0).log() - (means.mT * W).sum(-2) / 2
    answers = classes[(B @ W + b.unsqueeze(-2)).argmax(-1)]
    return (answers == y[test]).double().mean(-1)


def pair_folds(y: Tensor) -> Tensor:
    """Fold 0..4 of each pair (B,) with sums y; −1, always fitted on, for the first of each sum."""
    others = torch.nonzero(~first_of_each(y)).squeeze(1)
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
    folds = torch.full_like(y, -1)
    folds[others[order]] = torch.arange(len(others)) % FOLDS
    return folds


def read_out(ensemble: Ensemble, X: Tensor, y: Tensor) -> dict[str, Tensor]:
    """How well the sum can be read from "c" and "h" after each step, as accuracies (R, T).

    Probes are fitted on the sequences X (B, T) with each of `FIT_DIGITS` at each later place, and
    tested with each of `TEST_DIGITS`: "<state>/known" on the pairs they were fitted on,
    "<state>/held_out" on the fold of `pair_folds` they were not. "<state>/held_out_zeros" does so
    on X alone, so that no row is fitted on or tested in several copies.
    """
    digits = (*FIT_DIGITS, *TEST_DIGITS)
    places = [(p, d) for d in digits for p in range(ADDENDS, X.shape[1])]
    traces = [ensemble.trace(with_digit(X, p, d)) for p, d in places]
    zeros, alone = ensemble.trace(X), torch.ones(len(y), dtype=torch.bool)

    sums, folds = y.repeat(len(places)), pair_folds(y).repeat(len(places))
    fit = torch.tensor([d in FIT_DIGITS for _, d in places]).repeat_interleave(len(y))
    accuracies = {}
    for state in ("c", "h"):
        features = torch.cat([trace[state].cpu() for trace in traces], 1).transpose(1, 2)
        accuracies[f"{state}/known"] = linear_probe(features, sums, fit, ~fit)  # (R, T)
        accuracies[f"{state}/held_out"] = _held_out(features, sums, folds, fit, ~fit)
        features = zeros[state].cpu().transpose(1, 2)
        accuracies[f"{state}/held_out_zeros"] = _held_out(features, y, pair_folds(y), alone, alone)
    return accuracies


def _held_out(features: Tensor, y: Tensor, folds: Tensor, fit: Tensor, test: Tensor) -> Tensor:
    """Accuracy (...,) on the rows of `test`, for each fold with a probe fitted without it."""
    right = torch.zeros(features.shape[:-2], dtype=torch.float64)
    for fold in range(FOLDS):
        left_out = folds == fold
        accuracy = linear_probe(features, y, fit & ~left_out, test & left_out)
        right += accuracy * (test & left_out).sum()
    return right / (test & (folds >= 0)).sum()


def ablations(ensemble: Ensemble, X: Tensor, y: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Accuracy (R,) on X (B, T), y (B,) "as trained" and with one gate held from step `first` on.

    "f = 1" holds the forget gate at 1; "f = mean" holds each unit at its own mean over sequences
    and these steps, so that it no longer reacts; likewise i and o.
    """
    trace = ensemble.trace(X)
    accuracies = {"as trained": _accuracy(ensemble.logits(X), y)}
    for gate in "ifo":
        mean = trace[gate][:, :, first:].mean(dim=(1, 2)).unsqueeze(1)  # (R, 1, H)
        for name, value in {"1": 1.0, "mean": mean}.items():
            logits = ensemble.logits(X, {gate: value}, first)
            accuracies[f"{gate} = {name}"] = _accuracy(logits, y)
    return accuracies


def accuracy_by_place(ensemble: Ensemble, X: Tensor, y: Tensor) -> Tensor:
    """Accuracy (R, T − 2, 10) on X (B, T), y (B,) with each digit put at each later place."""
    places = [(p, d) for p in range(ADDENDS, X.shape[1]) for d in range(DIGITS)]
    accuracies = [_accuracy(ensemble.logits(with_digit(X, p, d)), y) for p, d in places]
    return torch.stack(accuracies, 1).unflatten(1, (-1, DIGITS))


def _accuracy(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(-1) == y).double().mean(1)
