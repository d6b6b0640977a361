"""One measurement over many seeds, summed up: centre, spread, a 95 % interval, every raw value."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy  # loads `scipy.stats` when it is first used

Measure = dict[str, Any]
Label = TypeVar("Label")

STATISTICS = ("mean", "median")
STUDENT = "Student t of the mean"
BOOTSTRAP = "bootstrap t of the mean"
MIN_BOOTSTRAP = 8  # fewer values have too few different resamples
RESAMPLES = 9_999


def summarise(
    values: Sequence[float],
    *,
    seeds: Sequence[int] | None = None,
    statistic: str = "mean",
    unit: str = "",
    timing: bool = False,
    student: bool = False,
    level: float = 0.95,
) -> Measure:
    """Sum up one value a seed (or a run): n, mean, median, sd, min, max, interval and raw values.

    "low" and "high" bound an interval of the `statistic` at `level`. Around a mean they lie t
    standard errors away. From eight values on, the two t are quantiles over resamples of our own
    values (the bootstrap t, Efron 1981), always the same for the same values; below, or with
    `student`, they are Student's. A median has the exact interval of the sign test, from six values
    on.

    Samples from our own records (`benchmarks/intervals.py`) decided: from eight values on the
    bootstrap t covers the mean about as often as it says, and misses it to both sides alike, where
    Student's, BCa and percentile intervals miss it more often. Below, it is far wider than
    Student's and covers little more.

    The bounds are None where there is no interval, and the value itself where all are equal. `sd`
    divides by n − 1 and is None for a single value. `timing` marks what no two runs repeat.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}; got {statistic!r}")
    raw = [float(value) for value in values]
    if not raw or not all(map(math.isfinite, raw)):
        raise ValueError(f"give at least one value, and only finite ones; got {raw}")
    if seeds is not None and len(seeds) != len(raw):
        raise ValueError(f"{len(raw)} values but {len(seeds)} seeds; give one value for each seed")
    low, high, interval = _interval(np.array(raw), statistic, student, level)
    return {
        "n": len(raw),
        "mean": statistics.mean(raw),  # exact, so never outside min .. max
        "median": float(np.median(raw)),
        "sd": statistics.stdev(raw) if len(raw) > 1 else None,
        "low": low,
        "high": high,
        "min": min(raw),
        "max": max(raw),
        "statistic": statistic,
        "interval": interval,
        "seeds": None if seeds is None else [int(seed) for seed in seeds],
        "raw": raw,
        "unit": unit,
        "timing": timing,
    }


def _interval(
    values: np.ndarray, statistic: str, student: bool, level: float
) -> tuple[float | None, float | None, str]:
    """Bounds of the interval, and what kind of interval it is."""
    if len(values) == 1:
        return None, None, "none: a single value"
    if values.min() == values.max():
        return float(values[0]), float(values[0]), "none: all values are equal"
    if statistic == "median":
        test = scipy.stats.quantile_test(values, q=np.median(values), p=0.5)
        low, high = test.confidence_interval(level)
        if math.isnan(low):
            return None, None, "none: too few values for a median"
        return float(low), float(high), f"{100 * level:.3g} % sign test of the median"
    below, above, _, kind = _t(values, student, level)
    centre, sem = values.mean(), scipy.stats.sem(values)
    bounds = float(centre - below * sem), float(centre + above * sem)
    return *bounds, f"{100 * level:.3g} % {kind}"


def _t(values: np.ndarray, student: bool, level: float) -> tuple[float, float, float, str]:
    """Standard errors from the mean down to its bound and up to it; p of a mean of zero; the law.

    The interval leaves out zero exactly where p <= 1 - level.
    """
    n, sem = len(values), scipy.stats.sem(values)
    ours = values.mean() / sem
    if n >= MIN_BOOTSTRAP and not student:
        draws = np.random.default_rng(0).choice(values, (RESAMPLES, n))
        error = np.where(np.ptp(draws, axis=1) > 0, scipy.stats.sem(draws, axis=1), 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.sort((draws.mean(1) - values.mean()) / error)  # infinite without spread
        place = math.floor((1 - level) / 2 * (RESAMPLES + 1) + 1e-9)  # from either end, from 1
        low, high = t[place - 1], t[-place]
        if place and np.isfinite([low, high]).all():
            tail = min((t >= ours).sum(), (t <= ours).sum())
            p = min(1.0, 2 * (1 + float(tail)) / (RESAMPLES + 1))
            return float(high), float(-low), p, BOOTSTRAP
    law = scipy.stats.t(n - 1)
    t = float(law.ppf((1 + level) / 2))
    return t, t, float(2 * law.sf(abs(ours))), STUDENT


def paired_difference(
    a: Sequence[float], b: Sequence[float], seeds: Sequence[int], *, student: bool = False
) -> Measure:
    """The mean of a - b over seeds, with its interval; `a` and `b` stand in the seeds' order.

    Replicas of one seed share their start and their data whatever cell they have, so two cells are
    compared seed by seed.
    """
    if not len(a) == len(b) == len(seeds):
        raise ValueError(
            f"paired_difference needs one value for each seed: {len(a)}, {len(b)}, {len(seeds)}"
        )
    # equal fractions may differ in the eighth digit where one of them was a float32
    difference = np.where(np.isclose(a, b, rtol=1e-6, atol=0), 0, np.subtract(a, b))
    return summarise(difference.tolist(), seeds=seeds, student=student)


def paired_differences(
    a: Mapping[Label, Sequence[float]], b: Mapping[Label, Sequence[float]], seeds: Sequence[int]
) -> dict[Label, Measure]:
    """`paired_difference` of each label (a length, say), to be read together: see `holm`."""
    return holm({label: paired_difference(a[label], b[label], seeds) for label in a})


def holm(
    measures: Mapping[Label, Measure], limit: float = 0.0, level: float = 0.95
) -> dict[Label, Measure]:
    """Means that are compared with `limit` together: p by Holm, intervals at the levels he used.

    Of twenty comparisons at 95 %, one shows a difference that is not there. Holm (1979) orders the
    m values of p and asks the smallest to be at most 0.05 / m, the next 0.05 / (m - 1), and so on
    until one is not; then, in 95 % of cases, no difference is shown wrongly. Each interval has the
    level of its step, so it leaves out the limit exactly where "p_holm" is at most 0.05.
    """
    p, alpha = {}, 1 - level
    for label, m in measures.items():
        values = np.array(m["raw"]) - limit
        if np.ptp(values) > 0:
            p[label] = _t(values, STUDENT in m["interval"], level)[2]
        else:
            p[label] = float(m["low"] is None or values[0] == 0)
    corrected, worst, left = {}, 0.0, len(p)
    for rank, label in enumerate(sorted(p, key=p.get)):
        if worst <= alpha:  # all before were shown
            left = len(p) - rank
        worst = max(worst, min(1.0, (len(p) - rank) * p[label]))
        m = measures[label]
        options = {key: m[key] for key in ("seeds", "unit", "timing")}
        options |= {"student": STUDENT in m["interval"], "level": 1 - alpha / left}
        corrected[label] = summarise(m["raw"], **options) | {"p_holm": worst}
        corrected[label]["interval"] += f", Holm over {len(p)}"
    return {label: corrected[label] for label in measures}


def accuracy_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of an accuracy that was counted on n examples."""
    interval = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def sign_test(only_a: int, only_b: int) -> float:
    """p of the exact two-sided sign test (McNemar's) on examples that one of two gets right."""
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def trend(by_length: Mapping[int, Sequence[float]], seeds: Sequence[int]) -> Measure:
    """The slope of each seed's values over two lengths or more, per ten digits; least squares."""
    lengths = np.array(list(by_length), dtype=float)
    values = np.array([by_length[length] for length in by_length])  # (lengths, seeds)
    slopes = [scipy.stats.linregress(lengths, column).slope * 10 for column in values.T]
    return summarise(slopes, seeds=seeds)


def monotonic_share(by_length: Mapping[int, Sequence[float]]) -> float:
    """The share of seeds whose values never rise from one length to the next."""
    values = np.array([by_length[length] for length in sorted(by_length)])
    return float(np.mean(np.all(np.diff(values, axis=0) <= 0, axis=0)))


def number(value: Any) -> str:
    """A measure as text: a summary with its interval, a single value as it is."""
    if isinstance(value, dict):
        centre = f"{number(value[value['statistic']])} {value['unit']}".strip()
        if value["statistic"] == "median":
            centre = f"median {centre}"
        if value["low"] is None:
            return centre
        return f"{centre} [{number(value['low'])}, {number(value['high'])}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"
    if isinstance(value, list):
        return f"[{', '.join(number(item) for item in value)}]"
    return str(value)
