"""Verdicts: what makes a claim hold, hold in part, or fall."""

import numpy as np
import pytest

from labkit.measure import claims

SEEDS = list(range(12))


def noisy(mean: float, seed: int = 0) -> list[float]:
    return (mean + 0.02 * np.random.default_rng(seed).standard_normal(len(SEEDS))).tolist()


def judged(means: dict[int, float]) -> dict:
    differences = {
        length: claims.paired_difference(noisy(mean, length), [0.0] * len(SEEDS), SEEDS)
        for length, mean in means.items()
    }
    return claims.judge_differences("c", "higher at every length", differences, ["m"], "accuracy")


def test_a_claim_about_every_length_needs_every_length():
    every = judged({10: 0.3, 20: 0.2})
    assert every["holds"] is True
    assert every["verdict"] == "holds"
    some = judged({10: 0.3, 20: 0.0, 30: -0.2})
    assert some["holds"] is False
    assert some["verdict"] == "holds only at length 10"
    assert "the other way round at length 30" in some["reason"]
    assert judged({10: -0.1, 20: 0.0})["verdict"] == "does not hold"
    unclear = judged({10: 0.0, 20: 0.001})
    assert (unclear["verdict"], unclear["holds"]) == ("not shown", None)


def test_differences_are_paired_by_seed():
    """Two cells that move together differ clearly, though their spreads overlap."""
    base = np.linspace(0, 1, len(SEEDS))
    difference = claims.paired_difference(base + 0.1, base, SEEDS)
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["low"] > 0.09
    with pytest.raises(ValueError, match="one value for each seed: 2, 3, 3"):
        claims.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], [0, 1, 2])


def test_a_trend_is_judged_by_the_mean_slope():
    falling = {length: noisy(1 - length / 100, length) for length in (10, 20, 30)}
    slope = claims.trend(falling, SEEDS)
    assert slope["mean"] == pytest.approx(-0.1, abs=0.02)
    verdict = claims.judge_trend("b", "falls", slope, claims.monotonic_share(falling), "slope")
    assert verdict["holds"] is True
    assert verdict["verdict"] == "holds on average"

    rising = {length: [-value for value in values] for length, values in falling.items()}
    verdict = claims.judge_trend("b", "falls", claims.trend(rising, SEEDS), 0.0, "slope")
    assert verdict["holds"] is False
    assert "rises" in verdict["verdict"]

    flat = {length: noisy(0.5, length) for length in (10, 20, 30)}
    assert claims.judge_trend("b", "falls", claims.trend(flat, SEEDS), 0.0, "s")["holds"] is None
    with pytest.raises(ValueError, match=r"at least two lengths, got \[10\]"):
        claims.trend({10: flat[10]}, SEEDS)


def test_monotonic_share_counts_seeds_that_never_rise():
    rows = {10: [0.9, 0.9, 0.5], 20: [0.8, 0.9, 0.6], 30: [0.7, 0.1, 0.1]}
    assert claims.monotonic_share(rows) == pytest.approx(2 / 3)


def test_few_seeds_give_no_verdict():
    seeds = [0, 1, 2]
    clear = {10: claims.paired_difference([1.0, 1.1, 1.2], [0.0, 0.0, 0.0], seeds)}
    verdict = claims.judge_differences("c", "higher", clear, ["m"], "accuracy")
    assert verdict["holds"] is None
    assert verdict["verdict"] == "undecided: 3 seeds are too few"
    slope = claims.trend({10: [0.9, 0.9, 0.8], 20: [0.5, 0.5, 0.6]}, seeds)
    assert claims.judge_trend("b", "falls", slope, 1.0, "slope")["holds"] is None
