"""Answers to the exercises of chapter 05."""

import math

import torch

from answers import Answers, each
from labkit.lab.exercises import load

exercises = load("05_bert_finetuning")

ATTENTION_WEIGHTS = Answers(
    exercises.attention_weights,
    names={"torch": torch, "math": math},
    right=each("""
def answer(Q, K, mask):
    scores = Q @ K.T / Q.shape[1] ** 0.5
    scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=1)

def answer(Q, K, mask):
    scores = torch.einsum("qd,kd->qk", Q, K) / math.sqrt(K.shape[-1])
    return torch.softmax(torch.where(mask, scores, -torch.inf), dim=-1)

def answer(Q, K, mask):
    weights = (Q @ K.T / Q.shape[1] ** 0.5).exp() * mask
    return weights / weights.sum(1, keepdim=True)

def answer(Q, K, mask):
    rows = []
    for q in Q:
        row = torch.zeros(len(K), dtype=Q.dtype)
        row[mask] = (K[mask] @ q / len(q) ** 0.5).softmax(0)
        rows.append(row)
    return torch.stack(rows)
"""),
    wrong={
        "padding not masked": (".masked_fill(~mask, -torch.inf)", ""),
        "masked with 0": ("-torch.inf", "0"),
        "masked after the softmax": ("return scores.softmax(dim=1)",
                                     "return (Q @ K.T / Q.shape[1] ** 0.5).softmax(1) * mask"),
        "softmax over columns": ("dim=1", "dim=0"),
        "rows masked": ("~mask,", "~mask.unsqueeze(1),"),
        "the mask turned round": ("~mask", "mask"),
        "not scaled": (" / Q.shape[1] ** 0.5", ""),
        "scaled by d": ("Q.shape[1] ** 0.5", "Q.shape[1]"),
        "scaled by the root of T": ("Q.shape[1] ** 0.5", "Q.shape[0] ** 0.5"),
        "keys ask": ("Q @ K.T", "K @ Q.T"),
        "no softmax": (".softmax(dim=1)", ""),
        "times the root of d": ("/ Q.shape[1]", "* Q.shape[1]"),
        "no transpose": ("K.T", "K"),
    },
)  # fmt: skip

MEAN = "(hidden * real).sum(dim=1) / real.sum(dim=1)"
MEAN_POOL = Answers(
    exercises.mean_pool,
    names={"torch": torch},
    right=each("""
def answer(hidden, mask):
    real = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * real).sum(dim=1) / real.sum(dim=1)

def answer(hidden, mask):
    return torch.stack([row[m].mean(0) for row, m in zip(hidden, mask)])

def answer(hidden, mask):
    weights = mask / mask.sum(1, keepdim=True)
    return torch.einsum("bth,bt->bh", hidden, weights.to(hidden.dtype))

def answer(hidden, mask):
    hidden = hidden.masked_fill(~mask[..., None], torch.nan)
    return hidden.nanmean(dim=1)
"""),
    wrong={
        "padding averaged, too": (MEAN, "hidden.mean(1)"),
        "divided by T": ("/ real.sum(dim=1)", "/ mask.shape[1]"),
        "the sum": (" / real.sum(dim=1)", ""),
        "divided by the pieces of all reviews": ("real.sum(dim=1)", "real.sum()"),
        "[CLS] alone": (MEAN, "hidden[:, 0]"),
        "without [CLS]": (MEAN, "(hidden * real)[:, 1:].sum(1) / (real.sum(1) - 1)"),
        "over reviews as well": (MEAN, "((hidden * real).sum(1) / real.sum(1)).mean(0)"),
        "the last position": (MEAN, "hidden[:, -1]"),
        "the mean of the padding": ("mask.unsqueeze", "(~mask).unsqueeze"),
        "the maximum": (MEAN, "hidden.masked_fill(real == 0, -torch.inf).amax(1)"),
        "over the units": ("sum(dim=1)", "sum(dim=2)"),
        "the mask without an axis": (".unsqueeze(-1)", ""),
    },
)

FALLING = "lr * (num_steps - step) / (num_steps - warmup)"
RATE_AT = Answers(
    exercises.rate_at,
    right=each("""
def answer(step, num_steps, warmup, lr):
    if step < warmup:
        return lr * step / warmup
    return lr * (num_steps - step) / (num_steps - warmup)

def answer(step, num_steps, warmup, lr):
    return lr * min(step / warmup, (num_steps - step) / (num_steps - warmup))

def answer(step, num_steps, warmup, lr):
    share = step / warmup if step <= warmup else 1 - (step - warmup) / (num_steps - warmup)
    return share * lr

def answer(step, num_steps, warmup, lr):
    up = [lr / warmup * k for k in range(warmup)]
    down = [lr / (num_steps - warmup) * k for k in range(num_steps - warmup, 0, -1)]
    return (up + down)[step]
"""),
    wrong={
        "it stays": ("return lr * (num_steps - step) / (num_steps - warmup)", "return lr"),
        "a jump after the warm-up": ("/ (num_steps - warmup)", "/ num_steps"),
        "it does not reach zero": (FALLING, "lr * (1 - (step - warmup) / num_steps)"),
        "it rises again": ("(num_steps - step)", "(step - warmup)"),
        "no warm-up": ("lr * step / warmup", "lr"),
        "steps from 1": ("if step", "step += 1\n    if step"),
        "zero during the warm-up": ("lr * step / warmup", "0.0"),
        "warm-up over all steps": ("lr * step / warmup", "lr * step / num_steps"),
        "negative": ("(num_steps - step)", "(step - num_steps)"),
        "a share, not a rate": ("lr * ", ""),
        "it falls as a curve": ("(num_steps - warmup)", "(num_steps - warmup) * 0.9"),
        "halved": (FALLING, "lr / 2"),
    },
)

ANSWERS = [ATTENTION_WEIGHTS, MEAN_POOL, RATE_AT]
