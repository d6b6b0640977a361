"""The exercises of chapter 05: a right answer and typical mistakes of each."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.lab.exercises import Exercise, Prediction


def _draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _attention_weights(Q: Tensor, K: Tensor, mask: Tensor, *, mistake: str = "") -> Tensor:
    T, d = Q.shape
    scores = (K @ Q.T if mistake == "turned" else Q @ K.T) / {
        "unscaled": 1,
        "d": d,
        "T": T**0.5,
    }.get(mistake, d**0.5)
    if mistake == "zero":
        return (scores * mask).softmax(1)
    if mistake == "after":
        return scores.softmax(1) * mask
    if mistake == "columns":
        return scores.masked_fill(~mask, -torch.inf).softmax(0)
    if mistake == "inverted":
        return scores.masked_fill(mask, -torch.inf).softmax(1)
    if mistake == "queries":
        return scores.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(1)
    if mistake == "unmasked":
        return scores.softmax(1)
    if mistake == "scores":
        return scores.masked_fill(~mask, -torch.inf)
    return scores.masked_fill(~mask, -torch.inf).softmax(1)


attention_weights = Exercise(
    "attention_weights",
    _attention_weights,
    lambda: [
        (2 * _draws(T, T, d), 2 * _draws(T + 1, T, d), torch.arange(T) < T - 2)
        for T, d in ((5, 4), (7, 3))
    ],
    {
        "unmasked": "padding gets weight: set the scores of padded keys to minus infinity.",
        "zero": "a score of 0 is no weight of 0: exp(0) is 1. Padded keys need minus infinity.",
        "after": "you set weights to 0 after the softmax, so the rows no longer sum to 1: mask "
        "the scores before it.",
        "columns": "the softmax runs down the columns: each row must sum to 1, so dim=1.",
        "queries": "you mask the rows, the pieces that ask. Mask the columns, the keys.",
        "inverted": "your mask is the wrong way round: True is a real piece, so fill where it is "
        "not (~mask).",
        "unscaled": "the scores are not divided by the square root of d.",
        "d": "you divide by d: it is the square root of d.",
        "T": "you divide by the square root of T, the number of pieces: d is Q.shape[1].",
        "turned": "queries and keys have changed places: a row belongs to the piece that asks, "
        "so it is Q @ K.T.",
        "scores": "these are the scores: the softmax is missing.",
    },
)


def _mean_pool(hidden: Tensor, mask: Tensor, *, mistake: str = "") -> Tensor:
    real = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    total = (hidden * real).sum(1)
    return {
        "padding": hidden.mean(1),
        "T": (hidden * real).mean(1),
        "sum": total,
        "all": total / real.sum(),
        "cls": hidden[:, 0],
        "special": (hidden * real)[:, 1:].sum(1) / (real.sum(1) - 1),
        "over reviews": (total / real.sum(1)).mean(0),
    }.get(mistake, total / real.sum(1))


mean_pool = Exercise(
    "mean_pool",
    _mean_pool,
    lambda: [
        (_draws(B, B, T, 4), torch.arange(T) < torch.tensor(lengths).unsqueeze(1))
        for B, T, lengths in ((3, 6, (6, 2, 4)), (2, 5, (3, 4)))
    ],
    {
        "padding": "padding is averaged, too: leave it out.",
        "T": "padding is left out of the sum, but you divide by T: divide by the number of real "
        "pieces of each review.",
        "sum": "this is the sum: divide by the number of real pieces.",
        "all": "you divide by the real pieces of all reviews: each review has its own number.",
        "cls": "this is the vector of [CLS] alone.",
        "special": "[CLS] is left out: it is a real piece here.",
        "over reviews": "you average over the reviews, too: wanted is one vector for each, (B, H).",
    },
)


def _rate_at(step: int, num_steps: int, warmup: int, lr: float, *, mistake: str = "") -> float:
    if mistake == "from 1":
        step = step + 1
    if step < warmup and mistake != "cold":
        return lr if mistake == "no warm-up" else lr * step / warmup
    if mistake == "constant":
        return lr
    if mistake == "early":
        return lr * (num_steps - step) / num_steps
    if mistake == "steps since":
        return lr * (1 - (step - warmup) / num_steps)
    if mistake == "rises":
        return lr * (step - warmup) / (num_steps - warmup)
    return lr * (num_steps - step) / (num_steps - warmup)


rate_at = Exercise(
    "rate_at",
    _rate_at,
    lambda: [(step, 20, 5, 0.3) for step in (0, 1, 4, 5, 6, 13, 19)] + [(3, 12, 4, 2.0)],
    {
        "constant": "the rate stays at lr after the warm-up: it should fall to 0.",
        "early": "at the end of the warm-up your rate jumps: there it must be lr. Divide by the "
        "steps behind the warm-up, not by all.",
        "steps since": "your rate does not reach 0 at num_steps: the fall has num_steps - warmup "
        "steps.",
        "rises": "your rate rises after the warm-up: count the steps that are left.",
        "no warm-up": "during the warm-up the rate must rise from 0.",
        "from 1": "your steps count from 1: step 0 takes a rate of 0.",
    },
)

better_rate = Prediction(
    "which rate does better on 200 reviews",
    {
        "1e-06": "larger steps spoil what was pretrained",
        "5e-05": "with so few steps a rate of 1e-06 hardly moves a weight: nothing is learned",
    },
)
special_pieces = Prediction(
    "the attention that [CLS] and [SEP] receive",
    {
        "even": "this network spreads its attention about evenly",
        "more": "a head that has nothing to do in a review parks its attention there",
    },
)
