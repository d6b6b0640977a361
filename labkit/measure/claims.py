"""From measurements over many seeds to a verdict on a claim.

Replicas of one seed share their embedding, their head and their data, whatever cell they have, so
two cells are compared seed by seed: the interval is that of the mean difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from labkit.lab.results import summarise

Measure = dict[str, Any]
MIN_SEEDS = 8  # with fewer, a bootstrap interval says too little for a verdict


def paired_difference(a: Sequence[float], b: Sequence[float], seeds: Sequence[int]) -> Measure:
    """The mean of a - b over seeds, with its interval; `a` and `b` stand in the seeds' order."""
    if not len(a) == len(b) == len(seeds):
        raise ValueError(
            f"paired_difference needs one value for each seed: {len(a)}, {len(b)}, {len(seeds)}"
        )
    # float32 accuracies that are equal as fractions may differ in the eighth digit
    return summarise(np.round(np.subtract(a, b), 6).tolist(), seeds=seeds)


def trend(by_length: Mapping[int, Sequence[float]], seeds: Sequence[int]) -> Measure:
    """The slope of each seed's values over the length, per ten digits; least squares.

    ValueError for fewer than two lengths.
    """
    if len(by_length) < 2:
        raise ValueError(f"a trend needs at least two lengths, got {list(by_length)}")
    lengths = np.array(list(by_length), dtype=float)
    values = np.array([by_length[length] for length in by_length])  # (lengths, seeds)
    slopes = [stats.linregress(lengths, column).slope * 10 for column in values.T]
    return summarise(slopes, seeds=seeds)


def monotonic_share(by_length: Mapping[int, Sequence[float]]) -> float:
    """The share of seeds whose values never rise from one length to the next."""
    values = np.array([by_length[length] for length in sorted(by_length)])
    return float(np.mean(np.all(np.diff(values, axis=0) <= 0, axis=0)))


def judge_differences(
    claim_id: str, claim: str, differences: Mapping[int, Measure], names: Sequence[str], what: str
) -> dict[str, Any]:
    """A claim of the form "better at every length", judged by one paired difference a length.

    A difference counts where its whole interval lies above 0. The claim holds if that is so at
    every length; otherwise the verdict names the lengths at which it is. Where it is so at none,
    the claim "does not hold" if an interval lies below 0 at some length, else it is "not shown".
    """
    above = [length for length, d in differences.items() if _low(d) > 0]
    below = [length for length, d in differences.items() if _high(d) < 0]
    if _n(differences) < MIN_SEEDS:
        verdict = f"undecided: {_n(differences)} seeds are too few"
    elif len(above) == len(differences):
        verdict = "holds"
    elif above:
        verdict = f"holds only at length {_listed(above)}"
    else:
        verdict = "does not hold" if below else "not shown"
    reason = f"{what}: " + ", ".join(
        f"{d['mean']:+.2f} [{_low(d):+.2f}, {_high(d):+.2f}] at {length}"
        for length, d in differences.items()
    )
    if below and _n(differences) >= MIN_SEEDS:
        reason += f"; the other way round at length {_listed(below)}"
    return {
        "id": claim_id,
        "claim": claim,
        "holds": None if verdict.startswith(("undecided", "not shown")) else verdict == "holds",
        "verdict": verdict,
        "reason": f"{reason}; paired over {_n(differences)} seeds",
        "evidence": list(names),
    }


def judge_trend(
    claim_id: str, claim: str, slope: Measure, monotonic: float, name: str
) -> dict[str, Any]:
    """A claim of the form "tends to fall with the length", judged by the seeds' mean slope."""
    holds = _high(slope) < 0 if slope["n"] >= MIN_SEEDS else None
    if holds is None:
        verdict = f"undecided: {slope['n']} seeds are too few"
    elif holds:
        verdict = "holds on average"
    else:
        holds = None if _low(slope) <= 0 else False
        verdict = "not shown" if holds is None else "does not hold: it rises"
    return {
        "id": claim_id,
        "claim": claim,
        "holds": holds,
        "verdict": verdict,
        "reason": (
            f"mean slope {slope['mean']:+.3f} [{_low(slope):+.3f}, {_high(slope):+.3f}] for every "
            f"ten digits more, over {slope['n']} seeds; {monotonic:.0%} of the single seeds never "
            "rise from one length to the next"
        ),
        "evidence": [name],
    }


def _low(measure: Measure) -> float:
    return measure["mean"] if measure["low"] is None else measure["low"]


def _high(measure: Measure) -> float:
    return measure["mean"] if measure["high"] is None else measure["high"]


def _n(differences: Mapping[int, Measure]) -> int:
    return next(iter(differences.values()))["n"]


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths))
