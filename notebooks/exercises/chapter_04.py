"""The exercises of chapter 04: a right answer and typical mistakes of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import scipy
import torch
from torch import Tensor

from labkit.lab.exercises import Exercise, Prediction


def _numbers(
    train: Sequence[Sequence[str]], text: Sequence[str], size: int, *, mistake: str = ""
) -> list[int]:
    texts = [*train, text] if mistake == "leak" else train
    texts = [set(review) for review in texts] if mistake == "reviews" else texts
    counts = Counter(word for review in texts for word in review)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    words = sorted(words) if mistake == "alphabet" else words
    first, unknown = 0 if mistake == "no specials" else 2, 1 if mistake == "pad" else 0
    words = words[: size - (0 if mistake in ("size", "no specials") else 2)]
    number = {word: n for n, word in enumerate(words, start=first)}
    text = [word for word in text if word in number] if mistake == "skipped" else text
    return [number.get(word, unknown) for word in text]


_TRAIN = ["a dull film", "a good good film", "good good and new"]


def _texts(train: Sequence[str], text: str, size: int) -> tuple[list[list[str]], list[str], int]:
    return [review.split() for review in train], text.split(), size


numbers = Exercise(
    "numbers",
    _numbers,
    lambda: [
        *(_texts(_TRAIN, "a new and good plot", size) for size in (4, 6, 9)),
        _texts(_TRAIN[1:], "the plot and the film", 5),
    ],
    {
        "leak": "you count the words of `text` too: only training reviews may be counted.",
        "reviews": "you count in how many reviews a word stands: count every time it is used.",
        "alphabet": "you take the first words of the alphabet: wanted are the commonest.",
        "no specials": "0 and 1 belong to <unk> and <pad>: your words begin with 0.",
        "size": "<unk> and <pad> count in `size`, so there is room for two words fewer.",
        "pad": "unknown words get 0, the number of <unk>; yours get that of <pad>.",
        "skipped": "you leave unknown words out: each of them gets the number 0.",
    },
)


def _outputs(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, 4) that are not zero behind a review, and lengths (B,)."""
    generator = torch.Generator().manual_seed(B)
    output = torch.randn(B, T, 4, generator=generator)
    shorter = torch.randint(2, T, (B - 1,), generator=generator)
    return output, torch.cat([shorter, torch.tensor([T])])


def _last_state(output: Tensor, length: Tensor, *, mistake: str = "") -> Tensor:
    if mistake == "all":
        return output[:, length - 1]
    step = {
        "padding": torch.full_like(length, -1),
        "first": torch.zeros_like(length),
        "late": length.clamp(max=output.shape[1] - 1),
        "shortest": length.min().expand_as(length) - 1,
    }.get(mistake, length - 1)
    return output[torch.arange(len(output)), step]


last_state = Exercise(
    "last_state",
    _last_state,
    lambda: [_outputs(3, 6), _outputs(5, 9)],
    {
        "padding": "you take the last step of the batch: most reviews end before it, and you "
        "read padding.",
        "late": "one step too late: a review of 3 words ends at step 2, counted from 0.",
        "first": "you take the first step, where one word has been read.",
        "shortest": "you take one step for all reviews: each has its own.",
        "all": "every review comes with the steps of all reviews: a colon keeps all rows. Index "
        "them with torch.arange(B).",
    },
)


def _masked_mean(output: Tensor, length: Tensor, *, mistake: str = "") -> Tensor:
    step = torch.arange(output.shape[1])
    inside = step < length.unsqueeze(1) + (mistake == "late")  # (B, T)
    inside = {"all": inside | True, "inverted": ~inside}.get(mistake, inside)
    total = (output * inside.unsqueeze(-1)).sum(1)
    if mistake == "sum":
        return total
    return total / (output.shape[1] if mistake in ("T", "all") else length.unsqueeze(1))


masked_mean = Exercise(
    "masked_mean",
    _masked_mean,
    lambda: [_outputs(3, 6), _outputs(5, 9)],
    {
        "all": "the padding is averaged too: leave out the steps behind a review's length.",
        "T": "you divide by T: a short review comes out too small. Divide by its length.",
        "sum": "that is the sum: divide by the length.",
        "late": "one step of padding is counted: a review of 3 words has the steps 0, 1, 2.",
        "inverted": "your mask keeps the padding and drops the words.",
    },
)


def _backward_order(T: int, length: Tensor, *, mistake: str = "") -> Tensor:
    step = torch.arange(T).expand(len(length), T)  # (B, T)
    n = length.unsqueeze(1)
    if mistake == "flip":
        return step.flip(1)
    turned, is_word = n - 1 - step, step < n
    behind = {"clamped": 0, "reversed": T - 1 + n - step}.get(mistake, step)
    if mistake == "late":
        return torch.where(step <= n, n - step, step).clamp(max=T - 1)
    if mistake == "negative":
        return turned
    return torch.where(is_word, turned, torch.as_tensor(behind))


backward_order = Exercise(
    "backward_order",
    _backward_order,
    lambda: [(5, torch.tensor([3, 5, 1])), (8, torch.tensor([2, 7, 8, 4]))],
    {
        "flip": "you turn the padding round too, so the backward direction begins with it. "
        "Reverse each review's own words.",
        "late": "one step too far: of 3 words the last is step 2, counted from 0.",
        "negative": "behind the words your steps are negative, so Python counts them from the "
        "end: padding stays where it is.",
        "clamped": "behind the words you read step 0 again and again: padding stays where it is.",
        "reversed": "the padding is turned round in its own place: leave it as it is.",
    },
)


def _fits_all(printed: Sequence[str], candidates: Sequence[int], *, mistake: str = "") -> list[int]:
    def fits(text: str, n: int) -> bool:
        share = float(text)
        k = int(share * n) if mistake == "cut" else round(share * n)
        if mistake == "near":
            return abs(k / n - share) < 1e-4
        return (k / n if mistake == "exact" else round(k / n, 4)) == share

    decide = any if mistake == "any" else all
    return [n for n in candidates if decide(fits(text, n) for text in printed)]


fits_all = Exercise(
    "fits_all",
    _fits_all,
    lambda: [
        (["0.8532", "0.8463", "0.7615"], [1000, 2500, 5000, 5056, 5120]),
        (["0.7273", "0.8543"], [5000, 5056, 5120]),
        (["0.6667", "0.3333", "0.1667"], range(2, 31)),
        (["0.6667"], [3, 5, 6, 8]),
    ],
    {
        "any": "you keep an N that fits one of the accuracies: it must fit all of them.",
        "cut": "k must be the nearest whole number: int() cuts off, round() rounds.",
        "near": "too generous: k/N, rounded to four digits, must give the very digits printed.",
        "exact": "you ask k/N to be the printed number itself: it was rounded to four digits.",
    },
)


def _compare(p: Tensor, q: Tensor, y: Tensor, *, mistake: str = "") -> tuple[int, int, float]:
    right_p, right_q = ((v > 0.5 if mistake == "tie" else v >= 0.5) == y.bool() for v in (p, q))
    a, b = int((right_p & ~right_q).sum()), int((right_q & ~right_p).sum())
    if mistake == "all right":
        a, b = int(right_p.sum()), int(right_q.sum())
    if mistake == "positive":
        a, b = (int(((u >= 0.5) & (v < 0.5)).sum()) for u, v in ((p, q), (q, p)))
    n = len(y) if mistake == "n" else a + b
    side = "greater" if mistake == "one-sided" else "two-sided"
    counts = (b, a) if mistake == "swapped" else (a, b)
    return *counts, float(scipy.stats.binomtest(a, n, alternative=side).pvalue)


def _two_models(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities in tenths, so that some are one half, of a better and of a worse model."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=draw)
    noise = (torch.randint(-8, 9, (n,), generator=draw) for _ in range(2))
    p, q = ((5 + (2 * y - 1) * k + e).clamp(0, 10) / 10 for k, e in zip((4, 2), noise, strict=True))
    return p, q, y


compare = Exercise(
    "compare",
    _compare,
    lambda: [_two_models(60, 0), _two_models(101, 1)],
    {
        "all right": "you count all that a model has right: a review that both have right tells "
        "nothing about which is better.",
        "positive": "you compare the two answers with each other: which of them is right? The "
        "label y says.",
        "n": "the coin is thrown for the reviews that only one has right, a + b of them.",
        "one-sided": "one-sided: either model might be the better one.",
        "swapped": "the two counts are exchanged: first the reviews that only the first has right.",
        "tie": "one half counts as positive: >= 0.5.",
    },
)

gains_most = Prediction(
    "the cell that gains most from the mean",
    {
        "rnn": "it has no gate, and what it read early is overwritten at every step",
        "lstm": "its cell state must carry a word over hundreds of steps when only the last counts",
        "gru": "its one state must serve as memory and as output when only the last step counts",
    },
)
