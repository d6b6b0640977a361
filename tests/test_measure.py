"""What many seeds say together: summaries, verdicts on claims and printed numbers, plots."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys

import matplotlib
import numpy as np
import PIL.Image
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch
from scipy.stats import norm

from labkit.lab import machine
from labkit.measure import claims, diagrams, plots, statistics
from labkit.measure.claims import Condition, judge, number_row
from labkit.measure.statistics import number, paired_difference, summarise, trend

STUDENT = "95 % Student t of the mean"

# summaries


def test_a_summary_holds_centre_spread_and_raw_values():
    summary = summarise([0.25, 0.75, 0.5], seeds=np.arange(3), unit="s", timing=True)
    assert (summary["n"], summary["mean"], summary["median"], summary["sd"]) == (3, 0.5, 0.5, 0.25)
    assert (summary["min"], summary["max"], summary["raw"]) == (0.25, 0.75, [0.25, 0.75, 0.5])
    assert (summary["seeds"], summary["unit"], summary["timing"]) == ([0, 1, 2], "s", True)
    assert summary["interval"] == "95 % BCa bootstrap of the mean"
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_bootstrap_interval_is_that_of_a_known_case():
    """The spatial test data of Efron and Tibshirani 1993, with the BCa formula written out."""
    values = np.array(
        [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24,
         26, 30, 41.0]
    )  # fmt: skip
    draws = np.random.default_rng(1).choice(values, (100_000, len(values))).mean(1)
    bias = norm.ppf((draws < values.mean()).mean())
    jackknife = (values.sum() - values) / (len(values) - 1)
    d = jackknife.mean() - jackknife
    acceleration = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    z = bias + norm.ppf([0.025, 0.975])
    low, high = np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z)))

    summary = summarise(values.tolist())
    assert (summary["low"], summary["high"]) == pytest.approx((low, high), abs=0.15)
    plain = np.quantile(draws, 0.025)
    assert abs(summary["low"] - low) < abs(summary["low"] - plain)  # the data are skewed
    assert summarise(values.tolist()) == summary


def test_students_interval_is_that_of_the_tables():
    summary = summarise([1.0, 2.0, 3.0], student=True)
    half = 4.302653 / math.sqrt(3)  # t for 97.5 % and two degrees of freedom, sd 1
    assert (summary["low"], summary["high"]) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert summary["interval"] == STUDENT


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"statistic": "median"}, {"student": True}])
def test_degenerate_samples_have_plain_answers(options):
    statistic = options.get("statistic", "mean")
    one = summarise([0.3], **options)
    assert (one["low"], one["high"], one["sd"]) == (None, None, None)
    same = summarise([0.1] * 3, **options)
    assert (same["mean"], same["low"], same["high"], same["sd"]) == (0.1, 0.1, 0.1, 0.0)
    assert {s["interval"].startswith("none") for s in (one, same)} == {True}
    for values in ([0.1, 0.3], [0.2] * 9 + [0.9], [0.0, 1.0, 1.0, 1.0]):
        summary = summarise(values, **options)
        assert summary["low"] <= summary[statistic] <= summary["high"]
        assert summary["interval"].endswith(f"of the {statistic}")


@pytest.mark.parametrize(
    "values, options, error, message",
    [([], {}, ValueError, "at least one"),
     ([1.0, math.nan], {}, ValueError, "value 1 must be finite, got nan"),
     ([True], {}, TypeError, "value 0 must be a number, got True"),
     ([1.0], {"seeds": [1, 2]}, ValueError, "1 values but 2 seeds"),
     ([1.0], {"statistic": "mode"}, ValueError, "mean, median; got 'mode'"),
     ([1.0], {"statistic": "median", "student": True}, ValueError, "not of the median")],
)  # fmt: skip
def test_wrong_values_are_refused(values, options, error, message):
    with pytest.raises(error, match=message):
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
    exact = paired_difference([third, 1.0], [1 / 3, 0.5], [0, 1], student=True)
    assert exact["raw"] == [third - 1 / 3, 0.5]
    assert exact["interval"] == STUDENT


def test_a_trend_is_each_seeds_slope_for_ten_digits_more():
    slope = trend({30: [0.3, 0.8], 10: [0.5, 0.2], 20: [0.4, 0.5]}, [7, 8])
    assert slope["raw"] == pytest.approx([-0.1, 0.3])
    assert slope["seeds"] == [7, 8]
    with pytest.raises(ValueError, match=r"at least two lengths, got \[10\]"):
        trend({10: [0.5]}, [0])
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
    [([ABOVE, ABOVE], True, "holds"), ([ABOVE, BELOW, ABOVE], False, "holds only in part: a, c"),
     ([ABOVE, BELOW, ACROSS], False, "holds only in part: a"),
     ([BELOW, ACROSS], False, "does not hold"),
     ([ABOVE, ACROSS], None, "shown for a; not shown for b"),
     ([ACROSS, ACROSS], None, "not shown: the interval spans the limit")],
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
    "measures, too_few",
    [([interval(0.1, 0.3, 8)], None), ([interval(0.1, 0.3, 7)], "7 seeds are"),
     ([interval(0.1, 0.3, 3, STUDENT)], None), ([interval(0.1, 0.3, 2, STUDENT)], "2 seeds are"),
     ([interval(0.1, 0.3, 3, STUDENT), interval(0.1, 0.3, 5)], "5 seeds are"),
     ([interval(None, None, 1)], "1 seed is"), ([summarise([0.5] * 3, student=True)], None),
     ([interval(0.1, 0.3, 7, timing=True)], "7 runs are")],
)  # fmt: skip
def test_too_few_seeds_give_no_verdict(measures, too_few):
    claim = judge("a", "c", "w", [Condition("a", "m", measure) for measure in measures])
    assert claim.verdict == (f"undecided: {too_few} too few" if too_few else "holds")
    assert claim.holds is (None if too_few else True)


def test_the_reason_says_what_was_measured_and_what_was_needed():
    above = Condition("at 10", "m", interval(0.1, 0.3), limit=0.05)
    below = Condition("at 20", "m", interval(-0.3, -0.1, n=9), "below")
    assert judge("a", "c", "accuracy", [above, below]).reason == (
        "accuracy: at 10 0.2 [0.1, 0.3] (needs above 0.05), "
        "at 20 -0.2 [-0.3, -0.1] (needs below 0); over 9 seeds"
    )
    with pytest.raises(ValueError, match="must be 'above' or 'below', got 'over'"):
        Condition("a", "m", interval(0.1, 0.3), "over")


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
    """2 ± 4.302653 · 1 · √(1 + 1/3): Student's prediction from 1, 2, 3."""
    made = [row(printed, [1.0, 2.0, 3.0], student=True) for printed in (-2.98, -2.96, 6.96, 6.98)]
    inside = "as one more seed"
    assert [m.verdict for m in made] == ["ours better", inside, inside, "ours worse"]
    assert {m.reason for m in made} == {"one more seed is expected in [-2.97, 6.97]"}
    too_few = row(2.5, [1.0, 3.0], student=True)
    assert too_few.verdict == "too few seeds for a verdict"
    assert too_few.reason == "published minus ours +0.5"


def test_a_row_speaks_of_runs_or_examples_and_needs_its_measure():
    made = row(4, MANY, higher_is_better=None, timing=True, unit="s")
    assert made.published == "4 s"
    assert (made.verdict, made.reason) == ("outside our runs", "higher than all 8 runs")
    few = row(2.0, [1.0, 2.0, 3.0], student=True, timing=True)
    assert few.verdict == "as one more run"
    assert few.reason.startswith("one more run is expected")
    counted = row(0.8, MANY, examples=100)
    assert counted.published == "0.80"
    assert counted.reason.endswith("; ±0.08 from its 100 examples")
    assert row(0.8, MANY, shown="80 %").published == "80 %"
    with pytest.raises(KeyError, match="absent"):
        number_row("w", 1.0, {}, "absent", higher_is_better=True)


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


@pytest.mark.parametrize("name", ["", "Speed", "../speed", "a b", "1st", "a\n"])
def test_a_name_that_is_no_file_stem_is_refused(name):
    with pytest.raises(ValueError, match="lower-case letters, digits and underscores"):
        plots.new_figure(name, "text")
    with pytest.raises(ValueError, match="'plot' needs an alternative text"):
        plots.new_figure("plot", "  ")


def test_bytes_depend_on_the_data_alone(tmp_path):
    png = plots.png_bytes(one_line([1, 2, 3]))
    assert png == plots.png_bytes(one_line([1, 2, 3]))
    assert png != plots.png_bytes(one_line([1, 2, 4]))
    with matplotlib.rc_context({"savefig.bbox": "tight"}):  # as IPython sets it
        assert png == plots.png_bytes(one_line([1, 2, 3]))

    readers_own = tmp_path / "matplotlib" / "matplotlibrc"
    readers_own.parent.mkdir()
    readers_own.write_text("savefig.bbox: tight\nfont.size: 14\nlines.linewidth: 5\n")
    script = """if True:
        import sys
        from labkit.measure import plots
        fig, ax = plots.new_figure("line", "A line.")
        ax.plot([1, 2, 3])
        sys.stdout.buffer.write(plots.png_bytes(fig))"""
    inherited = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)} | machine.kernel_environment()
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, env=inherited, capture_output=True, check=True).stdout == png


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
    assert contrast("black", "white") == pytest.approx(21)
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


def test_a_diagram_keeps_the_page_and_the_plots_keep_their_card():
    def corner(fig):
        return PIL.Image.open(io.BytesIO(plots.png_bytes(fig))).convert("RGBA").getpixel((0, 0))

    assert corner(a_diagram())[3] == 0
    assert corner(one_line([1, 2, 3])) == (255, 255, 255, 255)
    assert plots.png_bytes(a_diagram()) == plots.png_bytes(a_diagram())
