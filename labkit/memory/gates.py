"""What the gates of a trained LSTM do with a digit that it should ignore, measured on traces.

A trace is what `Ensemble.trace` returns: "i", "f", "o", "g", "c", "h", (R, B, T, H) each, for R
replicas, B sequences, T steps and H hidden units; D counts digits. Steps count from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from labkit.measure.claims import Claim, Condition, judge, over_thresholds
from labkit.measure.statistics import Measure, summarise
from labkit.memory.data import ADDENDS, DIGITS, all_pairs, first_of_each, with_digit
from labkit.memory.model import Ensemble

SPAN = {"i": 1.0, "f": 1.0, "o": 1.0, "c": 5.0}  # what the published picture's colours span
NAMES = {"i": "input gate", "f": "forget gate", "o": "output gate", "c": "cell state"}
CHANGE = 0.1  # what counts as a change, as a share of that span; and what it might count as
THRESHOLDS = (0.02, 0.05, CHANGE, 0.15, 0.2, 0.25, 0.3)
SPREAD, RATIO, SHARE = 0.05, 0.5, 0.1  # the limits of the claims
WAYS = ("falls", "rises")
MOVES = {"b": [("f", "falls")], "c": [(name, way) for name in "oc" for way in WAYS]}  # as claimed
FOLDS = 5


def digit_changes(traces: Sequence[Mapping[str, Tensor]], position: int) -> dict[str, Tensor]:
    """How each digit changes gates and cell state, as shares of `SPAN`: (R, D, B, H) each.

    `traces` holds one trace for each digit at step `position`, the zero first. "i", "f", "o" and
    "c" compare with the zero at that step; "f_next" does so one step later; "i_seen" and so on
    compare with the step before, as the reader of one picture does, unless an addend stands there.
    The cell state counts by its size.
    """
    changes = {}
    for name, span in SPAN.items():
        window = [trace[name][:, :, position - 1 : position + 2] for trace in traces]
        values = torch.stack(window, 1) / span  # (R, D, B, up to 3 steps, H)
        before, now, *later = (values.abs() if name == "c" else values).unbind(3)
        changes[name] = now - now[:, :1]
        if position > ADDENDS:
            changes[f"{name}_seen"] = now - before
        if name == "f" and later:
            changes["f_next"] = later[0] - later[0][:, :1]
    return changes


def moved_shares(changes: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Shares of the hidden units that fall, and that rise, by more than `threshold`: (R, D) each.

    Named "f/falls", "f/rises" and so on; means over the sequences of `changes` (R, D, B, H).
    """
    falls = {f"{name}/falls": change < -threshold for name, change in changes.items()}
    rises = {f"{name}/rises": change > threshold for name, change in changes.items()}
    return {name: units.double().mean(dim=(2, 3)) for name, units in (falls | rises).items()}


def input_gate_variances(
    traces: Sequence[Mapping[str, Tensor]], position: int
) -> dict[str, Tensor]:
    """How much the input gate varies between zeros, and between digits: variances (R,).

    `traces` as in `digit_changes`. "alone" is over the zeros behind the addends where no other
    digit stands, "zeros" over those around another digit, "digits" over the digits at that step.
    All are means over sequences and units.
    """
    i = torch.stack([trace["i"] for trace in traces], 1)  # (R, D, B, T, H)
    zeros = [t for t in range(ADDENDS, i.shape[3]) if t != position]
    return {
        "alone": i[:, 0, :, ADDENDS:].var(dim=2, correction=0).mean(dim=(1, 2)),
        "zeros": i[:, 1:, :, zeros].var(dim=3, correction=0).mean(dim=(1, 2, 3)),
        "digits": i[:, :, :, position].var(dim=1, correction=0).mean(dim=(1, 2)),
    }


def study(ensemble: Ensemble, length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put every digit at every place behind the hundred pairs of addends, zeros elsewhere.

    Returns the spreads of the input gate (R,), roots of the means over places of
    `input_gate_variances`, with the ratio "zeros_to_digits"; and the means over places of
    `moved_shares`, (R, D, K), for the K `THRESHOLDS`.
    """
    X = all_pairs(length).X
    by_name: dict[str, list[Tensor]] = {}
    for position in range(ADDENDS, length):
        traces = [ensemble.trace(with_digit(X, position, digit)) for digit in range(DIGITS)]
        changes = digit_changes(traces, position)
        at_each = [moved_shares(changes, threshold) for threshold in THRESHOLDS]
        values = {name: torch.stack([at[name] for at in at_each], 2) for name in at_each[0]}
        for name, value in (values | input_gate_variances(traces, position)).items():
            by_name.setdefault(name, []).append(value)

    means = {name: torch.stack(values).mean(0) for name, values in by_name.items()}
    shares = {name: means.pop(name) for name in by_name if "/" in name}
    spreads = {name: variance.sqrt() for name, variance in means.items()}
    spreads["zeros_to_digits"] = spreads["zeros"] / spreads["digits"].clamp(min=1e-12)
    return spreads, shares


def share_name(start: str, gate: str, way: str, threshold: float = CHANGE) -> str:
    """The measure of the units that move at a 1, "falls" or "rises", by more than `threshold`."""
    name = f"gates/{start}/digit_1/{gate}/{way}"
    return name if threshold == CHANGE else f"{name}/over_{threshold:g}"


def summaries(
    start: str, spreads: Mapping[str, Tensor], shares: Mapping[str, Tensor], seeds: Sequence[int]
) -> dict[str, Measure]:
    """The measures of a `study` of models of one start, by name."""
    path = f"gates/{start}"
    values = {f"{path}/input_gate_spread/{name}": value for name, value in spreads.items()}
    for name, share in shares.items():  # (R, D, K)
        gate, way = name.split("/")
        for k, threshold in enumerate(THRESHOLDS):
            if threshold == CHANGE or gate in ("f", "o", "c"):
                values[share_name(start, gate, way, threshold)] = share[:, 1, k]
    at = THRESHOLDS.index(CHANGE)
    one, others = shares["f/falls"][:, 1, at], shares["f/falls"][:, 2:, at].mean(1)
    values[f"{path}/digits_2_to_9/f/falls"] = others
    values[f"{path}/digit_0/c_seen/rises"] = shares["c_seen/rises"][:, 0, at]
    values[f"{path}/digit_1_minus_2_to_9/f/falls"] = one - others
    return {name: summarise(value.tolist(), seeds=seeds) for name, value in values.items()}


def judge_claims(start: str, measures: Mapping[str, Measure], claims: Sequence[str]) -> list[Claim]:
    """The verdicts on the source's three claims for the models of one start.

    b and c are judged where `CHANGE` counts as a change; the reasons say over which of `THRESHOLDS`
    the verdict stays the same.
    """
    spread = f"gates/{start}/input_gate_spread"
    limits = {"over zeros": ("zeros", SPREAD), "zeros ÷ digits": ("zeros_to_digits", RATIO)}
    conditions = [
        Condition(label, f"{spread}/{name}", measures[f"{spread}/{name}"], "below", limit)
        for label, (name, limit) in limits.items()
    ]
    what = "spread of the input gate, {} start"
    verdicts = [judge(f"a/{start}", claims[0], what.format(start), conditions)]
    for key, claim in zip("bc", claims[1:], strict=True):
        conditions, sweeps = [], []
        for gate, way in MOVES[key]:
            label, name = f"{NAMES[gate]} {way}", share_name(start, gate, way)
            by_threshold = {t: measures[share_name(start, gate, way, t)]["raw"] for t in THRESHOLDS}
            sweeps.append(f"{label}: {over_thresholds(by_threshold, CHANGE, limit=SHARE)}")
            conditions.append(Condition(label, name, measures[name], "above", SHARE))
        verdict = judge(f"{key}/{start}", claim, f"share of units, {start} start", conditions)
        reason = f"{verdict.reason}. Over the threshold, {'; '.join(sweeps)}"
        verdicts.append(replace(verdict, reason=reason))
    return verdicts


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


def read_out(ensemble: Ensemble, X: Tensor, y: Tensor) -> Tensor:
    """How well the sum of a pair that the probe has not seen is read from the cell state: (R, T).

    After each step of the sequences X (B, T), one for each pair, a probe for each fold of
    `pair_folds` is fitted on the other pairs and tested on those of the fold.
    """
    features = ensemble.trace(X)["c"].transpose(1, 2)  # (R, T, B, H)
    folds = pair_folds(y)
    hits = torch.zeros(features.shape[:2], dtype=torch.float64)
    for fold in range(FOLDS):
        test = folds == fold
        hits += linear_probe(features, y, ~test, test) * test.sum()
    return hits / (folds >= 0).sum()


def permuted_read_out(ensemble: Ensemble, X: Tensor, y: Tensor, deals: int = 10) -> Tensor:
    """`read_out` where the sums y are dealt out to the pairs at random, mean over `deals`: what
    the probe reads where there is nothing to read."""
    generator = torch.Generator().manual_seed(0)
    dealt = [y[torch.randperm(len(y), generator=generator)] for _ in range(deals)]
    return torch.stack([read_out(ensemble, X, sums) for sums in dealt]).mean(0)


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
