"""From measurements to verdicts: on claims made in words, and on published numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import scipy  # loads `scipy.stats` when it is first used

from labkit.measure.statistics import MIN_BOOTSTRAP, Measure, number, summarise

MIN_SEEDS = 5  # with fewer, no interval is to be trusted and nothing is judged
MISSING = "no result yet"
VERDICTS = {  # of conditions that are all met, all on the wrong side, all undecided; of some
    True: ("holds", "shown for"),
    False: ("fails", "fails for"),
    None: ("not shown", "not shown for"),
}


@dataclass(frozen=True)
class Condition:
    """The whole interval of `measure`, named `name`, must lie above or below `limit`."""

    label: str
    name: str
    measure: Measure
    side: str = "above"
    limit: float = 0.0

    def __post_init__(self) -> None:
        if self.side not in ("above", "below"):
            raise ValueError(f"Condition.side must be 'above' or 'below', got {self.side!r}")

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

    It "holds" where all are met, "fails" where all intervals lie on the wrong side, and is "not
    shown" where all span their limits: no proof of the contrary. Where conditions differ, each
    group is named. With too few seeds there is no verdict.
    """
    seeds = min(c.measure["n"] for c in conditions)
    unit = "run" if all(c.measure["timing"] for c in conditions) else "seed"
    groups = {met: [c.label for c in conditions if c.met is met] for met in VERDICTS}
    groups = {met: labels for met, labels in groups.items() if labels}
    holds = next(iter(groups)) if len(groups) == 1 else False if False in groups else None
    if seeds < MIN_SEEDS:
        holds, verdict = None, f"too few {unit}s: {seeds}"
    elif len(groups) == 1:
        verdict = VERDICTS[holds][0]
    else:
        parts = (f"{VERDICTS[met][1]} {', '.join(labels)}" for met, labels in groups.items())
        verdict = "; ".join(parts)
    needs = {f"{c.side} {c.limit:g}" for c in conditions}
    if len(needs) == 1:
        listed = f"{', '.join(map(str, conditions))}; needs {needs.pop()}"
    else:
        listed = ", ".join(f"{c} (needs {c.side} {c.limit:g})" for c in conditions)
    tests = dict.fromkeys(c.measure["interval"].partition("% ")[2] for c in conditions)
    test = " and ".join(filter(None, tests)) or "no interval"
    reason = f"{what}: {listed}; {test}, {seeds} {unit}{'s' * (seeds != 1)}"
    return Claim(claim_id, claim, holds, verdict, reason, tuple(c.name for c in conditions))


@dataclass(frozen=True)
class Sweep:
    """A condition over a threshold of ours: its measures, its verdict, and where that stays."""

    measures: dict[float, Measure]
    chosen: float
    verdict: str
    stays: tuple[float, float]

    def __str__(self) -> str:
        lowest, highest = min(self.measures), max(self.measures)
        return (
            f"{self.verdict} at {self.chosen:g} and from {self.stays[0]:g} to {self.stays[1]:g} "
            f"(tried: {lowest:g} to {highest:g})"
        )


def over_thresholds(
    values: Mapping[float, Sequence[float]],
    chosen: float,
    *,
    limit: float,
    side: str = "above",
    seeds: Sequence[int] | None = None,
) -> Sweep:
    """A quantity that depends on a threshold of ours, judged at every threshold that is tried.

    `values[threshold]` holds one value a seed; the verdict is that of a `Condition` with `side` and
    `limit`. It `stays` from the first to the last threshold around `chosen` where it is the same.
    """
    measures = {t: summarise(values[t], seeds=seeds) for t in sorted(values)}
    verdicts = {
        t: judge("", "", "", [Condition("", "", m, side, limit)]).verdict
        for t, m in measures.items()
    }
    others = [t for t, verdict in verdicts.items() if verdict != verdicts[chosen]]
    below = max((t for t in others if t < chosen), default=-math.inf)
    above = min((t for t in others if t > chosen), default=math.inf)
    same = [t for t in verdicts if below < t < above]
    return Sweep(measures, chosen, verdicts[chosen], (same[0], same[-1]))


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
    rank = _rank if measure["n"] >= MIN_BOOTSTRAP else _rank_of_few
    verdict, reason = rank(published, measure, higher_is_better)
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

    Lowest and highest of five seeds miss a sixth one third of the time. So the range is that of
    Student's prediction of one more value, 95 %: mean ± t · sd · √(1 + 1/n).
    """
    n, mean = measure["n"], measure["mean"]
    if n < MIN_SEEDS:
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
