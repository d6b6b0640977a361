"""From measurements to verdicts: on claims made in words, and on published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import scipy  # loads `scipy.stats` when it is first used

from labkit.measure.statistics import STUDENT, Measure, number

MIN_SEEDS = 8  # with fewer, a bootstrap interval says too little for a verdict
MIN_STUDENT = 3
MISSING = "no result yet"


@dataclass(frozen=True)
class Condition:
    """The whole 95 % interval of `measure`, named `name`, must lie above or below `limit`."""

    label: str
    name: str
    measure: Measure
    side: str = "above"
    limit: float = 0.0

    def __post_init__(self) -> None:
        if self.side not in ("above", "below"):
            raise ValueError(f"Condition.side must be 'above' or 'below', got {self.side!r}")

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds for the interval to mean something."""
        student = STUDENT in self.measure["interval"]
        return self.measure["n"] >= (MIN_STUDENT if student else MIN_SEEDS)

    @property
    def met(self) -> bool | None:
        """True on the right side of the limit, False on the wrong one, None where it spans it."""
        low, high = self.measure["low"], self.measure["high"]
        if low is None or low <= self.limit <= high:
            return None
        return (low > self.limit) == (self.side == "above")

    def __str__(self) -> str:
        m = self.measure
        interval = f" [{m['low']:.3g}, {m['high']:.3g}]" if m["low"] is not None else ""
        return f"{self.label} {m[m['statistic']]:.3g}{interval}"


@dataclass(frozen=True)
class Claim:
    """A claim made in words: whether it holds (None: undecided), why, and by which measures."""

    id: str
    claim: str
    holds: bool | None
    verdict: str
    reason: str
    evidence: tuple[str, ...]


def judge(claim_id: str, claim: str, what: str, conditions: Sequence[Condition]) -> Claim:
    """The verdict on a claim from its conditions; `what` says what they measure.

    It holds if all conditions are met, holds in part if some are met and another fails, is shown
    for some where the others' intervals span the limit, and does not hold if none is met and one
    fails. Where no interval leaves its limit, or with too few seeds, there is no verdict.
    """
    seeds = min(c.measure["n"] for c in conditions)
    unit = "run" if all(c.measure["timing"] for c in conditions) else "seed"
    met = [c.label for c in conditions if c.met]
    failed = [c.label for c in conditions if c.met is False]
    spanning = [c.label for c in conditions if c.met is None]
    holds: bool | None = None
    if too_few := [c.measure["n"] for c in conditions if not c.enough]:
        fewest = min(too_few)
        verdict = f"undecided: {fewest} {unit}{'s are' if fewest != 1 else ' is'} too few"
    elif len(met) == len(conditions):
        holds, verdict = True, "holds"
    elif failed:
        holds = False
        verdict = f"holds only in part: {', '.join(met)}" if met else "does not hold"
    elif met:
        verdict = f"shown for {', '.join(met)}; not shown for {', '.join(spanning)}"
    else:
        verdict = "not shown: the interval spans the limit"
    needs = {f"{c.side} {c.limit:g}" for c in conditions}
    if len(needs) == 1:
        listed = f"{', '.join(map(str, conditions))}; needs {needs.pop()}"
    else:
        listed = ", ".join(f"{c} (needs {c.side} {c.limit:g})" for c in conditions)
    reason = f"{what}: {listed}; over {seeds} {unit}{'s' * (seeds != 1)}"
    return Claim(claim_id, claim, holds, verdict, reason, tuple(c.name for c in conditions))


# published numbers


@dataclass(frozen=True)
class Row:
    """One published figure, ours, and what follows; all of it text."""

    what: str
    published: str
    ours: str
    verdict: str
    reason: str


def number_row(
    what: str,
    published: float,
    measures: Mapping[str, Measure],
    name: str,
    *,
    higher_is_better: bool | None,
    examples: int | None = None,
    unit: str = "",
    shown: str = "",
) -> Row:
    """The row of a published number beside the summary `name`; KeyError if there is none.

    An accuracy that was counted on `examples` gets the half-width of its 95 % binomial interval.
    `shown` is how the source prints the number, where that is not as Python does.
    """
    measure = measures[name]
    few = measure["n"] < MIN_SEEDS and STUDENT in measure["interval"]
    verdict, reason = (_rank_of_few if few else _rank)(published, measure, higher_is_better)
    if examples:
        half_width = 1.96 * math.sqrt(published * (1 - published) / examples)
        reason += f"; ±{half_width:.2f} from its {examples} examples"
    if measure["timing"]:
        verdict, reason = verdict.replace("seed", "run"), reason.replace("seed", "run")
    shown = shown or (f"{published:.2f}" if examples else f"{published!r} {unit}".strip())
    return Row(what, shown, f"{number(measure)}, n = {measure['n']}", verdict, reason)


def _rank(published: float, measure: Measure, higher_is_better: bool | None) -> tuple[str, str]:
    """Verdict and rank of a published number among the raw values of a summary."""
    # accuracies come from float32: 0.77 is stored as 0.7699999809
    raw = [published if math.isclose(v, published, rel_tol=1e-6) else v for v in measure["raw"]]
    below, equal = sum(v < published for v in raw), sum(v == published for v in raw)
    above = len(raw) - below - equal
    if len(raw) in (below, above):
        verdict = _side(above == len(raw), higher_is_better, "outside our seeds")
        return verdict, f"{'lower' if above else 'higher'} than all {len(raw)} seeds"
    rank = f"higher than {below} of {len(raw)} seeds"
    return "inside our seeds", f"{rank}, equal to {equal}" if equal else rank


def _rank_of_few(
    published: float, measure: Measure, higher_is_better: bool | None
) -> tuple[str, str]:
    """Does the published number lie where one more of our few seeds is expected?

    Lowest and highest of three seeds miss a fourth one half of the time. So the range is that of
    Student's prediction of one more value, 95 %: mean ± t · sd · √(1 + 1/n).
    """
    n, mean = measure["n"], measure["mean"]
    if n < MIN_STUDENT or measure["sd"] is None:
        return "too few seeds for a verdict", f"published minus ours {published - mean:+.3g}"
    half = float(scipy.stats.t.ppf(0.975, n - 1)) * measure["sd"] * math.sqrt(1 + 1 / n)
    low, high = mean - half, mean + half
    reason = f"one more seed is expected in [{number(low)}, {number(high)}]"
    if low <= published <= high:
        return "as one more seed", reason
    return _side(published < low, higher_is_better, "not as one more seed"), reason


def _side(ours_is_higher: bool, higher_is_better: bool | None, neutral: str) -> str:
    if higher_is_better is None:
        return neutral
    return "ours better" if ours_is_higher == higher_is_better else "ours worse"
