"""One measurement over many seeds, summed up: centre, spread, a 95 % interval, every raw value."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import scipy  # loads `scipy.stats` when it is first used

Measure = dict[str, Any]

STATISTICS = {"mean": np.mean, "median": np.median}
STUDENT = "Student t of the mean"


def summarise(
    values: Sequence[float],
    *,
    seeds: Sequence[int] | None = None,
    statistic: str = "mean",
    unit: str = "",
    timing: bool = False,
    student: bool = False,
) -> Measure:
    """Sum up one value a seed (or a run): n, mean, median, sd, min, max, interval and raw values.

    "low" and "high" bound a 95 % interval of the `statistic`, "mean" or "median": the BCa bootstrap
    (Efron 1987) with 10,000 resamples, always the same for the same values. With `student` it is
    Student's t interval of the mean, wide enough for a handful of values, where a bootstrap is not.
    They are None for a single value, and the value itself where all are equal. `sd` divides by
    n − 1 and is None for a single value. `timing` marks what no two runs repeat. TypeError for what
    is not a number; ValueError for no values, NaN, infinities, an unknown statistic, `student` with
    the median, or seeds that do not match.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}; got {statistic!r}")
    raw = _checked(values)
    if seeds is not None and len(seeds) != len(raw):
        raise ValueError(f"{len(raw)} values but {len(seeds)} seeds; give one value for each seed")
    if student and statistic != "mean":
        raise ValueError(f"a Student interval is that of the mean, not of the {statistic}")
    low, high, interval = _interval(np.array(raw), statistic, student)
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


def _checked(values: Sequence[float]) -> list[float]:
    raw = []
    for position, value in enumerate(values):
        if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
            raise TypeError(f"value {position} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"value {position} must be finite, got {value!r}")
        raw.append(float(value))
    if not raw:
        raise ValueError("there is nothing to summarise: give at least one value")
    return raw


def _interval(
    values: np.ndarray, statistic: str, student: bool
) -> tuple[float | None, float | None, str]:
    """Bounds of the 95 % interval, and what kind of interval it is."""
    without = f", no {STUDENT}" if student else ""
    if len(values) == 1:
        return None, None, f"none: a single value{without}"
    if values.min() == values.max():
        return float(values[0]), float(values[0]), f"none: all values are equal{without}"
    if student:
        half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
        return float(values.mean() - half), float(values.mean() + half), f"95 % {STUDENT}"
    for method in ("BCa", "percentile"):
        rng = np.random.default_rng(0)
        with warnings.catch_warnings():
            # BCa has no acceleration where leaving out any one value changes nothing, as for some
            # medians: it then gives NaN and the percentile interval takes its place
            warnings.simplefilter("ignore")
            bounds = scipy.stats.bootstrap(
                (values,), STATISTICS[statistic], n_resamples=10_000, method=method, rng=rng
            ).confidence_interval
        if np.isfinite(bounds).all():
            interval = f"95 % {method} bootstrap of the {statistic}"
            return float(bounds.low), float(bounds.high), interval
    raise ValueError(f"no bootstrap interval can be made of {values.tolist()}")


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
    difference = np.subtract(a, b)
    if not student:  # float32 accuracies of equal fractions may differ in the eighth digit
        difference = np.round(difference, 6)
    return summarise(difference.tolist(), seeds=seeds, student=student)


def accuracy_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of an accuracy that was counted on n examples."""
    interval = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def sign_test(only_a: int, only_b: int) -> float:
    """p of the exact two-sided sign test (McNemar's) on examples that one of two gets right."""
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def trend(by_length: Mapping[int, Sequence[float]], seeds: Sequence[int]) -> Measure:
    """The slope of each seed's values over the length, per ten digits; least squares.

    ValueError for fewer than two lengths.
    """
    if len(by_length) < 2:
        raise ValueError(f"a trend needs at least two lengths, got {list(by_length)}")
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
