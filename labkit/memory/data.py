"""The digit-sum task: add the first two digits of a sequence, however long the rest is.

Three protocols. *published* repeats the textbook's experiment on its own data, byte for byte, in
file order, which is sorted by digit pair. *shuffled* is the same with a new order in every epoch.
*sound* draws fresh data for every seed, shuffles, keeps twenty digit pairs out of the training set,
and tests on thousands of sequences, of trained and of held-out pairs apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labkit.lab import machine

ADDENDS, DIGITS, SUMS = 2, 10, 19
LENGTHS = (5, 10, 15, 20, 25, 30, 35)
SPLITS = {"train": 3, "dev": 1, "test": 1}  # copies of each of the hundred digit pairs
CHANCE = 0.10  # always answering 9 is right for ten of the hundred pairs


class Split(NamedTuple):
    """Sequences X, long (N, T), and classes y (N,); or a set for each replica, (R, N, ...)."""

    X: Tensor
    y: Tensor


def check(X: Tensor, y: Tensor | None = None, *, replicas: int = 1) -> None:
    """Raise ValueError unless X holds digits, int64 (B, T) or (R, B, T), and y sums, (B,) or
    (R, B). A training checks its data once, not in every step."""
    *_, B, T = (0, 0, *X.shape)
    wanted = {"X": (X, (B, T), DIGITS)} | ({} if y is None else {"y": (y, (B,), SUMS)})
    for name, (values, shape, count) in wanted.items():
        if 0 in shape or tuple(values.shape) not in (shape, (replicas, *shape)):
            allowed = f"X (B, T) or ({replicas}, B, T), y (B,) or ({replicas}, B)"
            raise ValueError(f"{name} has shape {tuple(values.shape)}; replicas read {allowed}")
        low, high = values.aminmax()
        if values.dtype != torch.int64 or low < 0 or high >= count:
            got = f"{values.dtype}, {low}..{high}"
            raise ValueError(f"{name} must hold int64 numbers 0..{count - 1}, got {got}")


def file_names(lengths: Sequence[int]) -> list[str]:
    """The textbook's files of these lengths, as paths below data/."""
    return [f"digit_sum/{length:02d}/{split}.txt" for length in lengths for split in SPLITS]


@cache
def published_files() -> dict[str, bytes]:
    """Generate the textbook's 21 files, path below data/ -> content, from its random stream:
    numpy's legacy one, seeded with 0 once and drawn through all lengths and splits in order."""
    stream = np.random.RandomState(0)
    contents = []
    for length, copies in product(LENGTHS, SPLITS.values()):
        lines = []
        for pair in range(100 * copies):
            addends = divmod(pair // copies, 10)
            digits = [*addends, *[0] * (length - ADDENDS)]
            position = stream.randint(ADDENDS, length)
            digits[position] = stream.randint(0, 10)
            lines.append(" ".join(map(str, digits)) + f"\t{sum(addends)}\n")
        contents.append("".join(lines).encode())
    return dict(zip(file_names(LENGTHS), contents, strict=True))


def load_published(length: int) -> dict[str, Split]:
    """The textbook's train, dev and test data of one length; ValueError if a file is changed."""
    if length not in LENGTHS:
        raise ValueError(f"length must be one of {', '.join(map(str, LENGTHS))}; got {length!r}")
    splits = {}
    for split, name in zip(SPLITS, file_names([length]), strict=True):
        content = (machine.DATA / name).read_bytes()
        if content != published_files()[name]:
            raise ValueError(f"data/{name} is not the textbook's; git checkout -- data restores it")
        table = torch.from_numpy(np.loadtxt(content.decode().splitlines(), dtype=np.int64))
        splits[split] = Split(table[:, :-1].contiguous(), table[:, -1].contiguous())
    return splits


def all_pairs(length: int) -> Split:
    """All hundred digit pairs in order, only zeros behind them: X (100, length), y (100,)."""
    if length <= ADDENDS:
        raise ValueError(f"length must be at least 3 (two addends and one other), got {length}")
    X = torch.zeros(100, length, dtype=torch.int64)
    X[:, :ADDENDS] = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    return Split(X, X.sum(1))


def with_digit(X: Tensor, position: int, digit: int) -> Tensor:
    """A copy of the sequences X (B, T) with `digit` at step `position`, behind the addends."""
    if not (ADDENDS <= position < X.shape[1] and 0 <= digit < DIGITS):
        places = f"a digit 0..9 at a step {ADDENDS}..{X.shape[1] - 1}"
        raise ValueError(f"with_digit puts {places}, got the digit {digit} at {position}")
    changed = X.clone()
    changed[:, position] = digit
    return changed


def first_of_each(sums: Tensor) -> Tensor:
    """Whether each of `sums` (P,) stands there for the first time: booleans (P,)."""
    return torch.tensor([s not in sums[:k] for k, s in enumerate(sums)])


def _draw(pairs: Tensor, copies: int, generator: torch.Generator) -> Split:
    """`copies` sequences of each of `pairs` (P, T), with one random digit at a random place."""
    X = pairs.repeat_interleave(copies, 0)
    y, N = X.sum(1), len(X)
    position = torch.randint(ADDENDS, X.shape[1], (N,), generator=generator)
    X[torch.arange(N), position] = torch.randint(0, 10, (N,), generator=generator)
    return Split(X, y)


def sound_data(length: int, seed: int) -> dict[str, Split]:
    """Fresh data for one seed: 80 digit pairs to train on and 20 held out.

    Of each trained pair train has 4 sequences, dev 5 more and seen_pairs 50 more; unseen_pairs has
    200 of each held-out pair. Every sum keeps a trained pair, so no class is unknown.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + length)
    order = torch.randperm(100, generator=generator)
    pairs, sums = (values[order] for values in all_pairs(length))

    # the first pair of each sum is never held out; of the 81 others, the last 20 are
    first = first_of_each(sums)
    seen, unseen = torch.cat([pairs[first], pairs[~first]]).split([80, 20])
    return {
        "train": _draw(seen, 4, generator),
        "dev": _draw(seen, 5, generator),
        "seen_pairs": _draw(seen, 50, generator),
        "unseen_pairs": _draw(unseen, 200, generator),
    }
