"""What many seeds say together: summaries, verdicts on claims and printed numbers, plots."""

from __future__ import annotations

import io
import math

import matplotlib
import numpy as np
import PIL.Image
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch

from labkit.measure import claims, diagrams, plots, statistics
from labkit.measure.audit import audit, correct, fitting
from labkit.measure.claims import Condition, judge, number_row, over_thresholds
from labkit.measure.statistics import holm, number, paired_difference, paired_differences, summarise

BOOTSTRAP = "95 % bootstrap t of the mean"
STUDENT = "95 % Student t of the mean"

# summaries


def test_a_summary_holds_centre_spread_and_raw_values():
    summary = summarise([0.25, 0.75, 0.5], seeds=np.arange(3), unit="s", timing=True)
    assert (summary["n"], summary["mean"], summary["median"], summary["sd"]) == (3, 0.5, 0.5, 0.25)
    assert (summary["min"], summary["max"], summary["raw"]) == (0.25, 0.75, [0.25, 0.75, 0.5])
    assert (summary["seeds"], summary["unit"], summary["timing"]) == ([0, 1, 2], "s", True)
    assert summary["interval"] == STUDENT


def test_the_bootstrap_interval_is_that_of_a_known_case():
    """The spatial test data of Efron and Tibshirani 1993, with the bootstrap t written out."""
    values = np.array(
        [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24,
         26, 30, 41.0]
    )  # fmt: skip
    n, mean = len(values), values.mean()
    error = values.std(ddof=1) / math.sqrt(n)
    draws = np.random.default_rng(1).choice(values, (100_000, n))
    t = (draws.mean(1) - mean) / (draws.std(1, ddof=1) / math.sqrt(n))
    for level in (0.95, 0.99):
        low, high = mean - np.quantile(t, [(1 + level) / 2, (1 - level) / 2]) * error
        summary = summarise(values.tolist(), level=level)
        assert (summary["low"], summary["high"]) == pytest.approx((low, high), abs=0.25)
        assert mean - low > high - mean + 1  # the data are skewed, and so is the interval
        assert summary["interval"] == BOOTSTRAP.replace("95", f"{100 * level:.0f}")
        assert summarise(values.tolist(), level=level) == summary


def test_a_median_has_the_interval_of_the_sign_test():
    """Of ten values the second and the ninth: 2 P(X <= 1) is 0.021, 2 P(X <= 2) 0.109."""
    values = [7.0, 1.0, 4.0, 100.0, 2.0, 9.0, 3.0, 8.0, 5.0, 6.0]
    summary = summarise(values, statistic="median")
    assert (summary["low"], summary["median"], summary["high"]) == (2.0, 5.5, 9.0)
    assert summary["interval"] == "95 % sign test of the median"
    assert summarise(values[:5], statistic="median")["low"] is None


def test_students_interval_is_that_of_the_tables():
    summary = summarise([1.0, 2.0, 3.0], student=True)
    half = 4.302653 / math.sqrt(3)  # t for 97.5 % and two degrees of freedom, sd 1
    assert (summary["low"], summary["high"]) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    forced, plain = (summarise(range(8), student=student)["interval"] for student in (True, False))
    assert (summary["interval"], forced, plain) == (STUDENT, STUDENT, BOOTSTRAP)
    # every third resample leaves out the one value that differs, so t has no quantile
    assert summarise([0.2] * 19 + [0.9])["interval"] == STUDENT


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"statistic": "median"}, {"student": True}])
def test_degenerate_samples_have_plain_answers(options):
    statistic = options.get("statistic", "mean")
    one = summarise([0.3], **options)
    assert (one["low"], one["high"], one["sd"]) == (None, None, None)
    same = summarise([0.1] * 3, **options)
    assert (same["mean"], same["low"], same["high"], same["sd"]) == (0.1, 0.1, 0.1, 0.0)
    assert {s["interval"].startswith("none") for s in (one, same)} == {True}
    for values in ([0.2] * 9 + [0.9], [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]):
        summary = summarise(values, **options)
        assert summary["low"] <= summary[statistic] <= summary["high"]
        assert summary["interval"].endswith(f"of the {statistic}")


@pytest.mark.parametrize(
    "values, options, message",
    [([], {}, "at least one"), ([1.0, math.nan], {}, r"only finite ones; got \[1.0, nan\]"),
     ([1.0], {"seeds": [1, 2]}, "1 values but 2 seeds"),
     ([1.0], {"statistic": "mode"}, "mean, median; got 'mode'")],
)  # fmt: skip
def test_wrong_values_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        summarise(values, **options)


def test_differences_are_paired_by_seed():
    base = np.linspace(0, 1, 12)
    difference = paired_difference(base + 0.1, base, range(12))
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["low"] > 0.09
    assert difference["seeds"] == list(range(12))
    with pytest.raises(ValueError, match="one value for each seed: 2, 3, 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], [0, 1, 2])


def test_accuracies_that_are_equal_as_fractions_differ_by_nothing():
    third = float(np.float32(1 / 3))  # as torch returns it
    assert paired_difference([third] * 3, [1 / 3] * 3, [0, 1, 2])["raw"] == [0.0] * 3
    small = paired_difference([3e-8, 1.0], [1e-8, 0.5], [0, 1])["raw"]
    assert small == pytest.approx([2e-8, 0.5], rel=1e-9)


# several comparisons


def six_lengths() -> tuple[dict, dict]:
    """Values of six lengths over 12 seeds, which lie further apart the longer they are."""
    rng = np.random.default_rng(2)
    noise = {L: rng.normal(0, 1, 12) for L in (10, 15, 20, 25, 30, 35)}
    a = {L: (values - values.mean() + L * 0.05).tolist() for L, values in noise.items()}
    return a, {L: [0.0] * 12 for L in a}


def test_holm_is_stricter_than_each_comparison_alone_and_agrees_with_its_intervals():
    a, b = six_lengths()
    together = paired_differences(a, b, range(12))
    assert [*together] == [10, 15, 20, 25, 30, 35]
    alone = {L: paired_difference(a[L], b[L], range(12)) for L in a}
    p = {L: holm({L: m})[L]["p_holm"] for L, m in alone.items()}  # of one, nothing is corrected
    order, worst = sorted(p, key=p.get), 0.0
    for rank, L in enumerate(order):
        worst = max(worst, min(1.0, (6 - rank) * p[L]))
        assert together[L]["p_holm"] == pytest.approx(worst)
        assert (together[L]["low"] > 0) == (worst <= 0.05)
        assert together[L]["low"] <= alone[L]["low"]
    shown = [sum(m["low"] > 0 for m in of.values()) for of in (together, alone)]
    assert 0 < shown[0] < shown[1] < 6
    assert together[order[0]]["interval"] == "99.2 % bootstrap t of the mean, Holm over 6"


def test_holm_stops_at_the_first_comparison_that_is_not_shown():
    """p is 0.03 and 0.04 alone: 0.03 is not at most 0.05 / 2, so the other is not asked."""
    values = np.array([-1, -0.5, 0, 0.5, 1])
    alone = {k: summarise(values + t * 0.125**0.5) for k, t in (("a", 3.30), ("b", 3.0))}
    assert all(m["low"] > 0 for m in alone.values())
    together = holm(alone)
    assert all(m["low"] < 0 for m in together.values())
    assert together["a"]["p_holm"] == together["b"]["p_holm"] == pytest.approx(0.06, abs=0.001)


def test_holm_shows_a_difference_that_is_not_there_in_one_of_twenty_families():
    rng = np.random.default_rng(0)
    wrong = {"alone": 0, "together": 0}
    for _ in range(200):
        values = {k: rng.normal(0, 1, 7).tolist() for k in range(6)}
        measures = {k: summarise(raw) for k, raw in values.items()}
        for name, of in (("alone", measures), ("together", holm(measures))):
            wrong[name] += any(m["low"] > 0 or m["high"] < 0 for m in of.values())
    assert wrong["alone"] > 40  # 1 - 0.95 ** 6 is 26 %
    assert wrong["together"] < 20


def test_holm_compares_with_a_limit_and_bears_what_has_no_spread():
    raw = [1.1, 1.2, 1.3, 1.4, 1.2, 1.3]
    measures = {"m": summarise(raw, seeds=range(6)), "same": summarise([2.0] * 6)}
    measures |= {"none": summarise([1.0] * 6), "one": summarise([2.0])}
    above = holm(measures, limit=1.0)
    assert [m["p_holm"] <= 0.05 for m in above.values()] == [True, True, False, False]
    assert above["m"]["seeds"] == list(range(6))
    assert above["m"]["low"] > 1
    assert holm(measures, limit=1.2)["m"]["low"] < 1.2


def test_a_trend_is_each_seeds_slope_for_ten_digits_more():
    slope = statistics.trend({30: [0.3, 0.8], 10: [0.5, 0.2], 20: [0.4, 0.5]}, [7, 8])
    assert slope["raw"] == pytest.approx([-0.1, 0.3])
    assert slope["seeds"] == [7, 8]
    never_rise = {30: [0.7, 0.1, 0.1], 10: [0.9, 0.9, 0.5], 20: [0.8, 0.9, 0.6]}
    assert statistics.monotonic_share(never_rise) == pytest.approx(2 / 3)


def test_counted_accuracies_have_the_interval_and_the_test_of_the_tables():
    assert statistics.accuracy_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert statistics.sign_test(9, 1) == statistics.sign_test(1, 9) == pytest.approx(22 / 1024)
    assert statistics.sign_test(0, 0) == 1.0


@pytest.mark.parametrize(
    "value, text",
    [(999.4, "999"), (-999.7, "-1,000"), (1234.5, "1,234"), (0.5, "0.500"), (7, "7"), (True, "yes"),
     ([0.25, 3], "[0.250, 3]"), ("none", "none"), (summarise([2.0], unit="s"), "2.00 s"),
     (summarise([2.0] * 9, statistic="median", unit="s"), "median 2.00 s [2.00, 2.00]")],
)  # fmt: skip
def test_numbers_keep_three_digits_and_no_exponent(value, text):
    assert number(value) == text


# claims


def interval(low, high, n: int = 12, kind: str = "95 % bootstrap", timing: bool = False) -> dict:
    bounds = {"mean": (low + high) / 2 if low else 0.0, "low": low, "high": high}
    return bounds | {"n": n, "statistic": "mean", "interval": kind, "timing": timing}


ABOVE, BELOW, ACROSS = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.2)


@pytest.mark.parametrize(
    "intervals, holds, verdict",
    [([ABOVE, ABOVE], True, "holds"), ([BELOW, BELOW], False, "fails"),
     ([ACROSS, ACROSS], None, "not shown"),
     ([ABOVE, ACROSS], None, "shown for a; not shown for b"),
     ([BELOW, ACROSS], False, "fails for a; not shown for b"),
     ([ABOVE, BELOW, ABOVE], False, "shown for a, c; fails for b"),
     ([ACROSS, BELOW, ABOVE], False, "shown for c; fails for b; not shown for a")],
)  # fmt: skip
def test_a_claim_is_judged_by_all_of_its_conditions(intervals, holds, verdict):
    labelled = list(zip("abc", intervals, strict=False))
    conditions = [Condition(label, f"m/{label}", interval(*i)) for label, i in labelled]
    claim = judge("c1", "It is higher.", "accuracy", conditions)
    assert (claim.id, claim.claim) == ("c1", "It is higher.")
    assert (claim.holds, claim.verdict) == (holds, verdict)
    assert claim.evidence == tuple(f"m/{label}" for label, _ in labelled)


@pytest.mark.parametrize(
    "low, high, above, below",
    [(0.51, 0.6, True, False), (0.4, 0.49, False, True), (0.4, 0.6, None, None),
     (0.5, 0.6, None, None), (0.4, 0.5, None, None), (0.5, 0.5, None, None)],
)  # fmt: skip
def test_an_interval_that_touches_its_limit_shows_nothing(low, high, above, below):
    for side, holds in (("above", above), ("below", below)):
        condition = Condition("a", "m", interval(low, high), side, 0.5)
        assert judge("a", "c", "w", [condition]).holds is holds


@pytest.mark.parametrize(
    "measures, verdict",
    [([interval(0.1, 0.3, 5)], "holds"), ([interval(0.1, 0.3, 4)], "too few seeds: 4"),
     ([interval(0.1, 0.3, 3, STUDENT), interval(-0.3, -0.1, 9)], "too few seeds: 3"),
     ([summarise([0.5])], "too few seeds: 1"), ([summarise([0.5] * 5)], "holds"),
     ([interval(0.1, 0.3, 4, timing=True)], "too few runs: 4")],
)  # fmt: skip
def test_too_few_seeds_give_no_verdict(measures, verdict):
    claim = judge("a", "c", "w", [Condition("a", "m", measure) for measure in measures])
    assert claim.verdict == verdict
    assert claim.holds is (True if verdict == "holds" else None)


def test_the_reason_says_what_was_measured_what_was_needed_and_by_which_test():
    above = Condition("at 10", "m", interval(0.1, 0.3), limit=0.05)
    below = Condition("at 20", "m", interval(-0.3, -0.1, n=9), "below")
    assert judge("a", "c", "accuracy", [above, below]).reason == (
        "accuracy: at 10 0.2 [0.1, 0.3] (needs above 0.05), "
        "at 20 -0.2 [-0.3, -0.1] (needs below 0); bootstrap, 9 seeds"
    )
    together = paired_differences(*six_lengths(), range(12))
    conditions = [Condition(f"{L} digits", "m", m) for L, m in together.items()]
    reason = judge("a", "c", "loss", conditions).reason
    assert reason.endswith("needs above 0; bootstrap t of the mean, Holm over 6, 12 seeds")
    with pytest.raises(ValueError, match="must be 'above' or 'below', got 'over'"):
        Condition("a", "m", interval(0.1, 0.3), "over")


def test_a_verdict_is_swept_over_the_threshold_it_hangs_on():
    """Units fall by 0 to 1, evenly: a share of 1 - t falls by more than t."""
    falls = np.linspace(0, 1, 101) + np.linspace(-0.05, 0.05, 9)[:, None]  # (seeds, units)
    values = {t: (falls > t).mean(1).tolist() for t in (0.9, 0.1, 0.3, 0.5, 0.7)}
    swept = over_thresholds(values, 0.3, limit=0.4, seeds=range(9))
    assert [*swept.measures] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert (swept.verdict, swept.stays) == ("holds", (0.1, 0.5))
    assert swept.measures[0.5]["low"] > 0.4 > swept.measures[0.7]["high"]
    assert str(swept) == "holds at 0.3 and from 0.1 to 0.5 (tried: 0.1 to 0.9)"
    assert over_thresholds(values, 0.9, limit=0.4).verdict == "fails"
    assert over_thresholds(values, 0.7, limit=0.3).stays == (0.7, 0.7)
    returns = {1: [1.0] * 5, 2: [0.0] * 5, 3: [1.0] * 5}
    assert over_thresholds(returns, 1, limit=0.5).stays == (1, 1)


# published numbers


def row(published, values, *, higher_is_better=True, student=False, timing=False, **options):
    measures = {"m": summarise(values, student=student, timing=timing)}
    return number_row("w", published, measures, "m", higher_is_better=higher_is_better, **options)


MANY = np.float32([0.51, 0.6, 0.7, 0.8, 0.9, 0.55, 0.65, 0.77]).tolist()  # as torch returns them


@pytest.mark.parametrize(
    "published, higher_is_better, verdict, reason",
    [(0.4, True, "ours better", "lower than all 8 seeds"),
     (0.4, False, "ours worse", "lower than all 8 seeds"),
     (0.95, True, "ours worse", "higher than all 8 seeds"),
     (0.95, None, "outside our seeds", "higher than all 8 seeds"),
     (0.62, True, "inside our seeds", "higher than 3 of 8 seeds"),
     (0.51, True, "inside our seeds", "higher than 0 of 8 seeds, equal to 1"),
     (0.9, True, "inside our seeds", "higher than 7 of 8 seeds, equal to 1")],
)  # fmt: skip
def test_a_published_number_is_ranked_among_our_seeds(published, higher_is_better, verdict, reason):
    made = row(published, MANY, higher_is_better=higher_is_better)
    assert (made.what, made.published) == ("w", repr(published))
    assert (made.verdict, made.reason) == (verdict, reason)
    assert made.ours == number(summarise(MANY)) + ", n = 8"


def test_few_seeds_say_where_one_more_is_expected():
    """2 ± 2.776445 · 1 · √(1 + 1/5): Student's prediction from five values with sd 1."""
    five = [1.0, 1.0, 2.0, 3.0, 3.0]
    made = [row(printed, five) for printed in (-1.05, -1.03, 5.03, 5.05)]
    assert [m.verdict for m in made] == ["ours better", *["as one more seed"] * 2, "ours worse"]
    assert {m.reason for m in made} == {"one more seed is expected in [-1.04, 5.04]"}
    too_few = row(2.5, [1.0, 3.0, 2.0, 2.0])
    assert too_few.verdict == "too few seeds for a verdict"
    assert too_few.reason == "published minus ours +0.5"


def test_a_row_speaks_of_runs_or_examples_and_needs_its_measure():
    made = row(4, MANY, higher_is_better=None, timing=True, unit="s")
    assert made.published == "4 s"
    assert (made.verdict, made.reason) == ("outside our runs", "higher than all 8 runs")
    few = row(2.0, [1.0, 2.0, 3.0, 2.0, 1.0], timing=True)
    assert (few.verdict, few.reason[:12]) == ("as one more run", "one more run")
    counted = row(0.8, MANY, examples=100)
    assert counted.published == "0.80"
    assert counted.reason.endswith("; ±0.08 from its 100 examples")
    assert row(0.8, MANY, shown="80 %").published == "80 %"
    with pytest.raises(KeyError, match="absent"):
        number_row("w", 1.0, {}, "absent", higher_is_better=True)


# what the digits give away


def test_digits_that_are_cut_off_are_not_rounded():
    assert fitting("79.083 %", range(1_950, 2_001)) == {1984: 1569}
    assert fitting("0.67", [3]) == fitting("0.66", [3], cut=True) == {3: 2}
    assert fitting("0.66", [3]) == fitting("0.67", [3], cut=True) == {}
    assert fitting("1.00", [7]) == {7: 7}
    assert fitting("0.4", [2], cut=True) == {}  # one half is 0.5, whole
    assert (fitting("0.80", [9]), fitting("0.8", [9])) == ({}, {9: 7})


def test_what_is_no_single_fraction_is_not_corrected():
    assert correct("0.8543", 5120, 5000) == 4374 / 5000
    assert audit(["0.8543", "0.8606"], [5056, 5120]).fits == {5056: 1, 5120: 1}
    assert audit(["0.8543"], [5056]).chance(5056) == pytest.approx(0.5056, abs=1e-3)
    for printed, n in (("0.77", 5056), ("0.81", 20)):
        with pytest.raises(ValueError, match=rf"{printed} is not one k of {n:,}: look"):
            correct(printed, n, n)


# plots


def one_line(values, alt="A line."):
    fig, ax = plots.new_figure("line", alt)
    ax.plot(values)
    return fig


def test_what_is_shown_has_its_text_in_the_picture_and_in_the_outputs_metadata(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    fig = one_line([1, 2], alt="Rises from\n  one to two: π.")
    texts = PIL.Image.open(io.BytesIO(plots.png_bytes(fig))).text
    assert texts == {"Title": "line", "Description": "Rises from one to two: π."}
    plots.show(fig)
    plots.show_source(claims.Condition.met.fget)
    plots.show_table(["a", "b"], [[1, 2.5]])
    image, caption, source, table = shown
    assert DisplayFormatter().format(image)[1]["image/png"]["alt"] == "Rises from one to two: π."
    assert caption.data == "*Rises from one to two: π.*"
    where = "`labkit/measure/claims.py`, `Condition.met`"
    assert source.data.startswith(f"{where}\n\n```python\n@property\ndef met")
    assert table.data == "| a | b |\n| --- | --- |\n| 1 | 2.5 |"


def test_bytes_depend_on_the_data_alone():
    png = plots.png_bytes(one_line([1, 2, 3]))
    assert png != plots.png_bytes(one_line([1, 2, 4]))
    with matplotlib.rc_context({"savefig.bbox": "tight"}):  # as IPython sets it
        assert png == plots.png_bytes(one_line([1, 2, 3]))


# diagrams


def contrast(colour, ground):
    """The ratio of the Web Content Accessibility Guidelines."""
    channels = np.array([to_rgb(colour), to_rgb(ground)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


def a_diagram():
    fig, ax = diagrams.canvas("sum", "Two numbers go into a sum.", 4, 1)
    a, plus = diagrams.box(ax, 0.8, 0.5, "a", "blue"), diagrams.gate(ax, 3, 0.5, "+", "green")
    diagrams.arrow(ax, a.right, plus.left, colour="orange")
    diagrams.label(ax, 2, 0.8, "one way", "purple")
    return fig


def test_diagrams_are_legible_on_a_white_page_and_on_a_dark_one():
    """Lines stand on the page; every text stands on an opaque patch of its own."""
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)
    for name, (line, fill) in diagrams.COLOURS.items():
        assert min(contrast(line, page) for page in ("white", "#111111")) >= 3, name
        assert contrast(diagrams.INK, fill) >= 4.5, name

    (ax,) = a_diagram().axes
    patches = [patch for patch in ax.patches if not isinstance(patch, FancyArrowPatch)]
    for text in ax.texts:
        at = ax.transData.transform(text.get_position())
        assert text.get_color() == diagrams.INK
        assert text.get_bbox_patch() or any(patch.contains_point(at) for patch in patches)
