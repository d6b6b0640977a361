"""Answers to the exercises of chapter 04."""

from collections import Counter

import scipy
import torch

from answers import Answers, each
from labkit.lab.exercises import load

exercises = load("04_imdb_recurrent")

NUMBERS = Answers(
    exercises.numbers,
    names={"Counter": Counter},
    right=each("""
def answer(train, text, size):
    counts = Counter(word for review in train for word in review)
    words = sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]
    number = {word: n for n, word in enumerate(words, start=2)}
    return [number.get(word, 0) for word in text]

def answer(train, text, size):
    counts = Counter()
    for review in train:
        counts.update(review)
    words = ["<unk>", "<pad>"] + [w for w, _ in sorted(counts.items(), key=lambda i: (-i[1], i[0]))]
    return [words.index(w) if w in words[:size] else 0 for w in text]

def answer(train, text, size):
    together = sum(train, [])
    words = sorted(sorted(set(together)), key=together.count, reverse=True)[: size - 2]
    return [words.index(word) + 2 if word in words else 0 for word in text]

def answer(train, text, size):
    ranked = Counter(sorted(w for review in train for w in review)).most_common(size - 2)
    known = [word for word, _ in ranked]
    return [2 + known.index(word) if known.count(word) else 0 for word in text]
"""),
    wrong={
        "the text is counted": ("for review in train", "for review in [*train, text]"),
        "reviews are counted": ("for word in review)", "for word in set(review))"),
        "the first of the alphabet": ("(-counts[word], word)", "word"),
        "the rarest": ("-counts", "counts"),
        "ties turned round": (
            "sorted(counts, key=lambda word: (-counts[word], word))",
            "sorted(counts, key=lambda word: (counts[word], word), reverse=True)",
        ),
        "no room for the special ones": ("size - 2", "size"),
        "words begin with 0": ("[: size - 2]\n    number = {word: n for n, word in enumerate("
                               "words, start=2)}",
                               "[:size]\n    number = {word: n for n, word in enumerate(words)}"),
        "unknown as padding": (", 0) for", ", 1) for"),
        "unknown left out": ("for word in text]", "for word in text if word in number]"),
        "words instead of numbers": ("number.get(word, 0)", "word if word in number else '<unk>'"),
        "an unknown word stops it": ("number.get(word, 0)", "number[word]"),
    },
)  # fmt: skip

LAST_STATE = Answers(
    exercises.last_state,
    names={"torch": torch},
    right=each("""
def answer(output, length):
    rows = torch.arange(len(output))
    return output[rows, length - 1]

answer = lambda output, length: torch.stack([r[n - 1] for r, n in zip(output, length)])

answer = lambda output, length: output.take_along_dim(length[:, None, None] - 1, 1)[:, 0]

def answer(output, length):
    is_last = torch.nn.functional.one_hot(length - 1, output.shape[1]).to(output.dtype)
    return torch.einsum("bt,bth->bh", is_last, output)
"""),
    wrong={
        "the last step of the batch": ("length - 1", "-1"),
        "one step too late": ("length - 1", "length.clamp(max=output.shape[1] - 1)"),
        "the first step": ("length - 1", "0"),
        "the shortest review's": ("length - 1", "length.min() - 1"),
        "a colon for the rows": ("[rows, ", "[:, "),
        "counted from the end": ("length - 1", "-length"),
        "time first": ("output[rows, length - 1]", "output[(length - 1).clamp(max=2), rows]"),
        "the axis is kept": ("output[rows, length - 1]", "output[rows, length - 1].unsqueeze(1)"),
    },
)

MASKED_MEAN = Answers(
    exercises.masked_mean,
    names={"torch": torch},
    right=each("""
def answer(output, length):
    step = torch.arange(output.shape[1])
    inside = step < length.unsqueeze(1)
    total = (output * inside.unsqueeze(-1)).sum(dim=1)
    return total / length.unsqueeze(1)

answer = lambda out, length: torch.stack([r[:n].mean(0) for r, n in zip(out, length)])

def answer(output, length):
    weight = torch.zeros(output.shape[:2])
    for row, n in enumerate(length.tolist()):
        weight[row, :n] = 1 / n
    return torch.einsum("bt,bth->bh", weight, output)

def answer(output, length):
    sums = output.cumsum(1)[torch.arange(len(output)), length - 1]
    return sums / length[:, None]
"""),
    wrong={
        "padding and all": "def answer(output, length):\n    return output.mean(1)",
        "over T": ("/ length.unsqueeze(1)", "/ output.shape[1]"),
        "the sum": (" / length.unsqueeze(1)", ""),
        "one step too many": ("step < length", "step <= length"),
        "one step too few": ("step < length", "step + 1 < length"),
        "the mask turned round": ("step <", "step >="),
        "all steps over the length": (" * inside.unsqueeze(-1)", ""),
        "over the batch": (
            "total / length.unsqueeze(1)",
            "(output / length[:, None, None]).mean(0)",
        ),
        "the maximum": ("total / length.unsqueeze(1)", "output.amax(1)"),
    },
)

CHOSEN = "torch.where(turned >= 0, turned, step)"
BACKWARD_ORDER = Answers(
    exercises.backward_order,
    names={"torch": torch},
    right=each("""
def answer(T, length):
    step = torch.arange(T).expand(len(length), T)
    turned = length.unsqueeze(1) - 1 - step
    return torch.where(turned >= 0, turned, step)

answer = lambda T, n: torch.tensor([[*range(k)][::-1] + [*range(k, T)] for k in n])

def answer(T, length):
    step = torch.arange(T).repeat(len(length), 1)
    for row, n in zip(step, length):
        row[:n] = row[:n].flip(0)
    return step

def answer(T, length):
    step, n = torch.arange(T)[None], length[:, None]
    return (step >= n) * step + (step < n) * (n - 1 - step)
"""),
    wrong={
        "all turned round": "def answer(T, length):\n"
                            "    return torch.arange(T).flip(0).expand(len(length), T)",
        "one step too far": (
            "length.unsqueeze(1) - 1 - step\n    return torch.where(turned >= 0, turned, step)",
            "length.unsqueeze(1) - step\n"
            "    return torch.where(turned >= 0, turned, step).clamp(max=T - 1)",
        ),
        "negative steps": (CHOSEN, "turned"),
        "the first word again": ("turned, step)", "turned, 0)"),
        "the padding turned, too": ("turned, step)", "turned, T - 1 + length.unsqueeze(1) - step)"),
        "not turned at all": (CHOSEN, "step"),
        "the first word left out": ("turned >= 0", "turned > 0"),
        "padding first": (CHOSEN, "turned % T"),
        "a mask": (CHOSEN, "turned >= 0"),
    },
)  # fmt: skip

FITS = 'f"{round(float(text) * n) / n:.4f}" == text'
FITS_ALL = Answers(
    exercises.fits_all,
    right=each("""
def answer(printed, candidates):
    fits = []
    for n in candidates:
        if all(f"{round(float(text) * n) / n:.4f}" == text for text in printed):
            fits.append(n)
    return fits

def answer(printed, candidates):
    def fits(text, n):
        return any(f"{k / n:.4f}" == text for k in range(n + 1))
    return [n for n in candidates if all(fits(text, n) for text in printed)]

def answer(printed, candidates):
    left = [*candidates]
    for text in printed:
        share = float(text)
        left = [n for n in left if abs(round(share * n) / n - share) <= 0.5e-4]
    return left

def answer(printed, candidates):
    possible = {n: {f"{k / n:.4f}" for k in range(n + 1)} for n in candidates}
    return [n for n, texts in possible.items() if texts.issuperset(printed)]
"""),
    wrong={
        "one is enough": ("if all(", "if any("),
        "cut off": ("round(float(text) * n)", "int(float(text) * n)"),
        "nearly": (FITS, "abs(round(float(text) * n) / n - float(text)) < 1e-4"),
        "exactly": (FITS, "round(float(text) * n) / n == float(text)"),
        "three digits": (FITS, "round(round(float(text) * n) / n, 3) == round(float(text), 3)"),
        "none of them": ("if all(", "if not all("),
        "the first accuracy alone": ("in printed)", "in printed[:1])"),
        "counts instead of sizes": ("fits.append(n)", "fits.append(round(float(printed[0]) * n))"),
        "a whole number of hits": (FITS, "(float(text) * n) % 1 == 0"),
    },
)  # fmt: skip

COMPARE = Answers(
    exercises.compare,
    names={"scipy": scipy, "torch": torch},
    right=each("""
def answer(p, q, y):
    first, second = (p >= 0.5) == y.bool(), (q >= 0.5) == y.bool()
    a = int((first & ~second).sum())
    b = int((second & ~first).sum())
    return a, b, scipy.stats.binomtest(a, a + b).pvalue

def answer(p, q, y):
    a = b = 0
    for u, v, label in zip(p.tolist(), q.tolist(), y.tolist()):
        one, other = (u >= 0.5) == label, (v >= 0.5) == label
        a, b = a + (one and not other), b + (other and not one)
    return a, b, scipy.stats.binomtest(b, a + b, 0.5).pvalue

def answer(p, q, y):
    lead = ((p >= 0.5).long() == y).int() - ((q >= 0.5).long() == y).int()
    a, b = (lead == 1).sum().item(), (lead == -1).sum().item()
    return a, b, min(1, 2 * scipy.stats.binom.cdf(min(a, b), a + b, 0.5))

def answer(p, q, y):
    apart = (p >= 0.5) != (q >= 0.5)
    a = ((p[apart] >= 0.5) == y[apart].bool()).sum()
    b = apart.sum() - a
    return a, b, scipy.stats.binomtest(int(a), int(a + b)).pvalue
"""),
    wrong={
        "all that are right": (
            "int((first & ~second).sum())\n    b = int((second & ~first).sum())",
            "int(first.sum())\n    b = int(second.sum())",
        ),
        "positive answers": ("== y.bool(), (q >= 0.5) == y.bool()", ", (q >= 0.5)"),
        "all reviews": ("a + b)", "len(y))"),
        "one-sided": ("a + b)", "a + b, alternative='greater')"),
        "exchanged": ("return a, b", "return b, a"),
        "a tie is negative": (">=", ">"),
        "both right": ("~", ""),
        "shares": ("return a, b", "return a / len(y), b / len(y)"),
        "both wrong as well": ("first & ~second", "~second"),
        "the share, not p": ("scipy.stats.binomtest(a, a + b).pvalue", "a / (a + b)"),
    },
)

ANSWERS = [NUMBERS, LAST_STATE, MASKED_MEAN, BACKWARD_ORDER, FITS_ALL, COMPARE]
