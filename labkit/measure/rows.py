"""Rows of the report: a published figure, ours beside it, the verdict and its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from labkit.lab.results import number
from labkit.measure.statistics import STUDENT

INSIDE, OUTSIDE = "inside our seeds", "outside our seeds"
BETTER, WORSE = "ours better", "ours worse"
EXPECTED, UNEXPECTED = "as one more seed", "not as one more seed"
TOO_FEW = "too few seeds for a verdict"
MISSING = "no result yet"
FEW_SEEDS = 8  # with fewer, the lowest and the highest seed say too little


@dataclass(frozen=True)
class Row:
    """One published figure or claim, ours, and what follows."""

    what: str
    published: str
    ours: str
    verdict: str
    reason: str


def judge(
    published: float, measure: Mapping[str, Any], *, higher_is_better: bool | None
) -> tuple[str, str]:
    """Verdict and rank of a published number among the raw values of a summary.

    The verdict is "inside our seeds" where it lies between the lowest and the highest, both
    included; else it says whether ours are better or worse, or just "outside our seeds" where
    `higher_is_better` is None.
    """
    # accuracies come from float32: 0.77 is stored as 0.7699999809
    raw = [published if math.isclose(v, published, rel_tol=1e-6) else v for v in measure["raw"]]
    below, equal = sum(v < published for v in raw), sum(v == published for v in raw)
    above = len(raw) - below - equal
    of = f"of {len(raw)} {'runs' if measure['timing'] else 'seeds'}"
    if len(raw) in (below, above):
        ours = BETTER if (above == len(raw)) == higher_is_better else WORSE
        rank = f"{'lower' if above else 'higher'} than all {of[3:]}"
        return (OUTSIDE if higher_is_better is None else ours), rank
    rank = f"higher than {below} {of}"
    return INSIDE, f"{rank}, equal to {equal}" if equal else rank


def judge_few(
    published: float, measure: Mapping[str, Any], *, higher_is_better: bool | None
) -> tuple[str, str]:
    """Verdict for a measure of few seeds: does the published number lie where one more would?

    Lowest and highest of three seeds miss a fourth one half of the time. So the range is that of
    Student's prediction of one more value, 95 %: mean ± t · sd · √(1 + 1/n). With one or two seeds
    there is no verdict.
    """
    n, mean = measure["n"], measure["mean"]
    if n < 3 or measure["sd"] is None:
        return TOO_FEW, f"published minus ours {published - mean:+.3g}"
    half = float(stats.t.ppf(0.975, n - 1)) * measure["sd"] * math.sqrt(1 + 1 / n)
    low, high = mean - half, mean + half
    what = f"one more seed is expected in [{number(low)}, {number(high)}]"
    if low <= published <= high:
        return EXPECTED, what
    if higher_is_better is None:
        return UNEXPECTED, what
    return (BETTER if (published < low) == higher_is_better else WORSE), what


def binomial_half_width(accuracy: float, examples: int) -> float:
    """Half-width of the 95 % interval of an accuracy counted on so many examples (normal)."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / examples)


def number_row(
    what: str,
    published: float,
    record: Mapping[str, Any] | None,
    chapter: str,
    name: str,
    *,
    higher_is_better: bool | None,
    examples: int | None = None,
    unit: str = "",
    shown: str = "",
) -> Row:
    """The row of a published number and the summary `name` of a record, or how to make that.

    An accuracy that was counted on `examples` gets its binomial half-width. `shown` is how the
    source prints the number, where that is not as Python does.
    """
    if not shown:
        shown = f"{published:.2f}" if examples else f"{published!r} {unit}".strip()
    measure = (record or {"measures": {}})["measures"].get(name)
    if not isinstance(measure, dict):
        return missing_row(what, shown, record, chapter, name)
    few = measure["n"] < FEW_SEEDS and measure["interval"].endswith(STUDENT)
    rule = judge_few if few else judge
    verdict, reason = rule(published, measure, higher_is_better=higher_is_better)
    if examples:
        half_width = binomial_half_width(published, examples)
        reason += f"; ±{half_width:.2f} from its {examples} examples"
    if measure["timing"]:
        verdict = verdict.replace("seeds", "runs")
    return Row(what, shown, f"{number(measure)}, n = {measure['n']}", verdict, reason)


def missing_row(
    what: str, published: str, record: Mapping[str, Any] | None, chapter: str, name: str
) -> Row:
    """The row of a published value that no record has an answer to: which command makes one."""
    profile = record["profile"] if record else "cpu"
    force = " --force" if record else ""
    why = f"the record has no `{name}`: " if record else ""
    command = f"`python -m labkit run {chapter} --profile {profile}{force}`"
    return Row(what, published, "–", MISSING, f"{why}{command} fills it")
