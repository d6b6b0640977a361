"""How often intervals of a mean hold: samples of our own values, so that the true mean is known.

Every quantity of chapters 02 and 03 that has a value for each of 20 seeds or more is taken as the
truth. 500 samples of each size are drawn from it, with replacement, and every kind of interval at
95 % is made of each. `python benchmarks/intervals.py` writes intervals.json.
"""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from labkit.lab import code, machine, record
from labkit.lab.notebooks import chapters

SIZES, SAMPLES, RESAMPLES, TAILS = (5, 8, 20, 40), 500, 1_999, np.array([0.025, 0.975])
FILE = machine.ROOT / "benchmarks" / "intervals.json"


def quantities(records: dict) -> dict[str, dict[str, np.ndarray]]:
    """Kind -> name -> the values of the seeds; differences are LSTM minus SRN, seed by seed."""
    kinds, words = defaultdict(dict), {"accuracy": "accuracies", "loss": "losses"}
    for content in records.values():
        raw = {
            name: np.array(m["raw"])
            for name, m in content["measures"].items()
            if isinstance(m, dict) and m["n"] >= 20 and m["statistic"] == "mean"
        }
        for name, values in raw.items():
            if "difference" in name or name.startswith("order/"):
                continue  # they are made below, from what they are the difference of
            kind = next((words[word] for word in words if word in name), "gates and probes")
            other = raw.get(name.replace("/lstm/", "/srn/"), values)
            for of_kind, x in ((kind, values), (f"differences in {kind}", values - other)):
                if np.ptp(x) > 0:
                    kinds[of_kind][name] = x
    return dict(kinds)


def bounds(samples: np.ndarray, drawn: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> lower and upper bounds (S,) of samples (S, n); `drawn` (n, B) counts the resamples.

    A resample's mean and spread are products with its counts, so all are made at once.
    """
    n, centre = samples.shape[1], samples.mean(1)
    x = samples - centre[:, None]
    error = x.std(1, ddof=1) / np.sqrt(n)
    means = x @ drawn / n  # (S, B), from the sample's mean
    spread = x**2 @ drawn / n - means**2
    spread[spread < 1e-12 * x.var(1)[:, None]] = 0  # all values of the resample are equal
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.quantile(means / np.sqrt(spread / (n - 1)), TAILS[::-1], axis=1)
        a = (x**3).sum(1) / (6 * (x**2).sum(1) ** 1.5)
    students = student.ppf(TAILS, n - 1)[:, None]
    t = np.where(np.isfinite(t).all(0), -t, students)
    z = norm.ppf(((means < 0).mean(1) + (means <= 0).mean(1)) / 2) + norm.ppf(TAILS)[:, None]
    z0 = z.mean(0)
    with np.errstate(invalid="ignore"):
        shares = norm.cdf(z0 + z / (1 - a * z))
    shares = np.where(np.isnan(shares), TAILS[:, None], shares)  # the percentile bootstrap's
    bca = np.take_along_axis(np.sort(means, 1), (shares.T * (RESAMPLES - 1)).astype(int), 1).T
    reaches = {
        "Student t": students * error,
        "percentile bootstrap": np.quantile(means, TAILS, axis=1),
        "BCa bootstrap": bca,
        "bootstrap t": t * error,
    }
    return {method: tuple(centre + reach) for method, reach in reaches.items()}


def main() -> None:
    names = [name for name in chapters() if name[:2] in ("02", "03")]
    records = {name: record.load(name, "cpu") for name in names}
    rng, rows = np.random.default_rng(0), []
    for n in SIZES:
        drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).T.astype(float)
        for kind, by_name in quantities(records).items():
            held = defaultdict(list)
            for values in by_name.values():
                samples = rng.choice(values, (SAMPLES, n))
                spread = samples[np.ptp(samples, axis=1) > 0]  # the others have no interval
                for method, (low, high) in bounds(spread, drawn).items():
                    missed = (low > values.mean()).sum(), (high < values.mean()).sum()
                    covered = len(spread) - sum(missed)
                    width = np.median(high - low) / values.std()
                    held[method].append((covered, *missed, width * SAMPLES))
            for method, of_method in held.items():
                covered, high, low, width = np.transpose(of_method) / SAMPLES
                numbers = {
                    "covers": covered.mean(), "covers_worst_twentieth": np.quantile(covered, 0.05),
                    "covers_least": covered.min(), "too_high": high.mean(), "too_low": low.mean(),
                    "width_in_sd": np.median(width),
                }  # fmt: skip
                row = {"n": n, "kind": kind, "method": method, "quantities": len(covered)}
                rows.append(row | {name: round(float(x), 4) for name, x in numbers.items()})
                print(f"{n:2} {kind:25} {method:20} {covered.mean():.3f}", flush=True)
    runs = {name: content["run_id"] for name, content in records.items()}
    text = json.dumps({"runs": runs, "rows": rows}, indent=1) + "\n"
    code.write_atomically(FILE, text.encode())


if __name__ == "__main__":
    main()
