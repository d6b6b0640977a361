"""Answers to the exercises of chapter 03."""

import torch

from answers import Answers, solution
from labkit.lab.exercises import load

exercises = load("03_gate_analysis")

DIGIT_EFFECT = Answers(
    exercises.digit_effect,
    names={"torch": torch},
    right=[
        solution("03_gate_analysis", "digit_effect"),
        """
def answer(trace, X, step):
    keep = torch.ones(X.shape[1], dtype=X.dtype)
    keep[step] = 0
    return trace(X)["f"].sub(trace(X * keep)["f"])
""",
        """
def answer(trace, X, step):
    zero = torch.zeros_like(X[:, :1])
    zeroed = torch.cat([X[:, :step], zero, X[:, step + 1:]], dim=1)
    f_digit, f_zero = trace(X)["f"], trace(zeroed)["f"]
    return f_digit - f_zero
""",
        """
def answer(trace, X, step):
    both = torch.cat([X, X.index_fill(1, torch.tensor([step]), 0)])
    f_digit, f_zero = trace(both)["f"].chunk(2, dim=1)
    return -(f_zero - f_digit)
""",
    ],
    wrong={
        "the other way round": ('trace(X)["f"] -', '-trace(X)["f"] +'),
        "the size alone": ('return trace(X)["f"] - trace(zeroed)["f"]',
                           'return (trace(X)["f"] - trace(zeroed)["f"]).abs()'),
        "a sequence for a step": ("zeroed[:, step]", "zeroed[step]"),
        "steps from 1": ("zeroed[:, step]", "zeroed[:, step - 1]"),
        "one step too late": ("zeroed[:, step]", "zeroed[:, step + 1]"),
        "zeros at all later steps": ("zeroed[:, step]", "zeroed[:, 2:]"),
        "no addends either": ("X.clone()", "torch.zeros_like(X)"),
        "the step before": ('trace(zeroed)["f"]', 'trace(X)["f"].roll(1, 2)'),
        "another gate": ('["f"]', '["i"]'),
        "X is changed": ("X.clone()", "X"),
        "one step of the effect": ('return trace(X)["f"] - trace(zeroed)["f"]',
                                   'return (trace(X)["f"] - trace(zeroed)["f"])[:, :, step]'),
        "a one in its place": ("= 0", "= 1"),
    },
)  # fmt: skip

SHARE_FALLING = Answers(
    exercises.share_falling,
    names={"torch": torch},
    right=[
        solution("03_gate_analysis", "share_falling"),
        """
def answer(with_digit, with_zero, threshold):
    R, B, H = with_digit.shape
    fall = with_digit + threshold < with_zero
    return fall.sum(dim=(1, 2)) / (B * H)
""",
        """
def answer(with_digit, with_zero, threshold):
    shares = []
    for digit, zero in zip(with_digit, with_zero):
        shares.append(((zero - digit) > threshold).double().mean())
    return torch.stack(shares)
""",
        """
def answer(with_digit, with_zero, threshold):
    fall = torch.where(with_digit - with_zero < -threshold, 1.0, 0.0)
    return fall.flatten(1).mean(1).numpy()
""",
    ],
    wrong={
        "rises": ("with_zero - with_digit", "with_digit - with_zero"),
        "both ways": ("with_zero - with_digit", "(with_zero - with_digit).abs()"),
        "every fall": ("> threshold", "> 0"),
        "averaged before counted": (
            "with_zero - with_digit",
            "(with_zero - with_digit).mean(1, True)",
        ),
        "relative to the zero": ("with_zero - with_digit", "(with_zero - with_digit) / with_zero"),
        "one number": (".mean(dim=(1, 2))", ".mean()"),
        "a share for each unit": ("dim=(1, 2)", "dim=1"),
        "a count": (".mean(dim=(1, 2))", ".sum(dim=(1, 2))"),
        "the mean change": ("fall.float()", "(with_zero - with_digit)"),
        "units that never fall": ("fall.float()", "(~fall).float()"),
        "any sequence": ("fall.float().mean(dim=(1, 2))", "fall.any(1).float().mean(1)"),
    },
)

PROBE_SPLIT = Answers(
    exercises.probe_split,
    names={"torch": torch},
    right=[
        solution("03_gate_analysis", "probe_split"),
        """
def answer(X, folds, fold):
    numbers = [int(folds[row[0], row[1]]) for row in X]
    return torch.tensor([n != fold for n in numbers]), torch.tensor([n == fold for n in numbers])
""",
        """
def answer(X, folds, fold):
    of_row = folds.flatten()[10 * X[:, 0] + X[:, 1]]
    return of_row != fold, of_row == fold
""",
        """
def answer(X, folds, fold):
    held_out = {tuple(pair) for pair in torch.nonzero(folds == fold).tolist()}
    test = torch.tensor([tuple(pair) in held_out for pair in X[:, :2].tolist()])
    return [test.logical_not(), test]
""",
    ],
    wrong={
        "rows dealt out": ("folds[X[:, 0], X[:, 1]] == fold", "torch.arange(len(X)) % 5 == fold"),
        "fitted on all": ("~test, test", "torch.ones_like(test), test"),
        "the other way round": ("~test, test", "test, ~test"),
        "second addend first": ("X[:, 0], X[:, 1]", "X[:, 1], X[:, 0]"),
        "what is always fitted on left out": ("~test,", "~test & (folds[X[:, 0], X[:, 1]] >= 0),"),
        "by the sum": ("folds[X[:, 0], X[:, 1]]", "X.sum(1) % 5"),
        "by the first addend": ("folds[X[:, 0], X[:, 1]]", "X[:, 0] % 5"),
        "the digits behind the addends": ("X[:, 0], X[:, 1]", "X[:, 1], X[:, 2]"),
        "the first fifth": (
            "folds[X[:, 0], X[:, 1]] == fold",
            "torch.arange(len(X)) < len(X) // 5",
        ),
        "a random fifth": (
            "folds[X[:, 0], X[:, 1]] == fold",
            "torch.rand(len(X), generator=torch.Generator().manual_seed(0)) < 0.2",
        ),
        "the test alone": ("~test, test", "test"),
        "folds below": ("== fold", "<= fold"),
    },
)

HOLD_AT_MEAN = Answers(
    exercises.hold_at_mean,
    names={"torch": torch},
    right=[
        solution("03_gate_analysis", "hold_at_mean"),
        """
def answer(trace, logits, X, gate, first):
    values = trace(X)[gate][:, :, first:, :]
    return logits(X, {gate: values.mean(2).mean(1, keepdim=True)}, first=first)
""",
        """
def answer(trace, logits, X, gate, first):
    values = trace(X)[gate]
    R, B, T, H = values.shape
    total = sum(values[:, :, t].sum(1, keepdim=True) for t in range(first, T))
    return logits(X, {gate: total / (B * (T - first))}, first)
""",
        """
def answer(trace, logits, X, gate, first):
    mean = torch.einsum("rbth->rh", trace(X)[gate][:, :, first:])
    mean = mean / (len(X) * (X.shape[1] - first))
    return logits(X, {gate: mean[:, None]}, first)
""",
    ],
    wrong={
        "held at 1": ("gate: mean", "gate: 1.0"),
        "one mean for all units": ("(dim=(1, 2)).unsqueeze(1)", "(dim=(1, 2, 3)).view(-1, 1, 1)"),
        "one mean for all models": ("dim=(1, 2)).unsqueeze(1)", "dim=(0, 1, 2), keepdim=True)[0]"),
        "a mean for each sequence": ("mean(dim=(1, 2)).unsqueeze(1)", "mean(dim=2)"),
        "mean over all steps": ("[:, :, first:]", ""),
        "held from the start": ("{gate: mean}, first", "{gate: mean}, 0"),
        "mean of the steps before": ("[:, :, first:]", "[:, :, :first]"),
        "from the second axis": ("[:, :, first:]", "[:, first:]"),
        "another gate held": ("{gate: mean}", "{'o': mean}"),
        "without the sequence axis": (".unsqueeze(1)", ""),
        "the median": ("mean(dim=(1, 2))", "flatten(1, 2).median(dim=1).values"),
        "nothing held": ("{gate: mean}", "{}"),
    },
)

ANSWERS = [DIGIT_EFFECT, SHARE_FALLING, PROBE_SPLIT, HOLD_AT_MEAN]
