"""The plots of the sine chapter: each draws what it is given, says so, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.sine import figures as figures_sine

SEEDS = 3
RNG = np.random.default_rng(0)
BASE = np.abs(RNG.normal(size=(SEEDS, 9))) + 0.1
ENDS = np.linspace(0.9, 1.9, 20)
NOTE = {
    "label": [0.34 + k / 100 for k in range(9)],
    "initial_prediction": [1e-5 * (k + 1) for k in range(9)],
    "final_prediction": [0.03 * (k + 1) for k in range(9)],
}


def curves(shift: float = 0.0, length: int = 20) -> np.ndarray:
    return np.linspace(0.2, 0.5, length) + 0.01 * np.arange(SEEDS)[:, None] + shift


def make_all(shift: float = 0.0) -> dict:
    ways = dict.fromkeys(figures_sine.WAYS, BASE + shift)
    blocks = {"adam": BASE[:, :6] + shift, "sgd": BASE[:, :6] + 1}
    scan = {"adam": {1e-3: BASE[:, 0] + shift}, "sgd": {1e-2: BASE[:, 1], 1.0: BASE[:, 2]}}
    gate = (curves(shift), curves(0.2))
    names = ["last/nine", "every/mixed"]
    return {
        "loss": lambda: figures_sine.loss_plot(
            {"gluon": blocks, "xavier": blocks}, {"adam": [0.3, 0.2], "sgd": [0.4, 0.3]}, 0.007
        ),
        "why_sgd_is_slow": lambda: figures_sine.slow_plot(
            {"cell 1 weights": BASE[:, 0] + shift, "cell 3 biases": BASE[:, 1]},
            scan, {"adam": 1e-3, "sgd": 1e-2}, 60,
        ),
        "note": lambda: figures_sine.note_plot(BASE / 1e5, {100: BASE + shift, 1000: BASE}, NOTE),
        "predictions": lambda: figures_sine.prediction_plot(
            {T: {way: curves(shift) for way in names} for T in (3, 90)}, ENDS, 1.09
        ),
        "error_over_place_and_length": lambda: figures_sine.error_plot(
            ways, {way: v[:, :4] for way, v in ways.items()}, (3, 9, 18, 90), {"the mean": 0.117}
        ),
        "output_gate": lambda: figures_sine.gate_plot(ENDS, dict.fromkeys(names, gate), (1, 2)),
        "free_run": lambda: figures_sine.free_run_plot(
            curves()[0],
            {way: curves(shift)[0] for way in names},
            {way: curves(shift) for way in names},
            {"line": curves()[1], "fitted": curves()[2] * 1e-5},
            0.05,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", make_all())
def test_figures_have_a_name_a_text_labels_and_stable_data(name, check_figure):
    check_figure(name, make_all()[name], make_all(0.05)[name])


@pytest.mark.parametrize("name", ["loss", "free_run"])
def test_figures_are_drawn_to_the_same_bytes(name, check_bytes):
    check_bytes(make_all()[name])


def legend(fig) -> list[str]:
    (found,) = fig.legends
    return [text.get_text() for text in found.get_texts()]


def lines(ax) -> dict[str, list[float]]:
    """The labelled lines of a panel."""
    return {
        line.get_label(): np.asarray(line.get_ydata()).tolist()
        for line in ax.lines
        if not line.get_label().startswith("_")
    }


def test_losses_stand_at_the_end_of_their_batches_beside_the_published_ones():
    left, right = make_all()["loss"]().axes
    assert [ax.get_title() for ax in (left, right)] == ["gluon's start", "Xavier start"]
    circles = [line for line in left.lines if line.get_label() == "published"]
    assert [line.get_ydata().tolist() for line in circles] == [[0.3, 0.2], [0.4, 0.3]]
    assert circles[0].get_xdata().tolist() == [20, 40]
    assert lines(left)["Adam"] == pytest.approx(BASE[:, :6].mean(0).tolist())
    assert lines(left)["always the mean"] == [0.007, 0.007]
    assert legend(make_all()["loss"]()) == ["Adam", "published", "SGD", "always the mean"]


def test_the_default_rate_is_ringed():
    _, right = make_all()["why_sgd_is_slow"]().axes
    rings = [line for line in right.lines if line.get_markersize() == 13]
    assert [float(ring.get_xdata()[0]) for ring in rings] == [1e-3, 1e-2]
    assert float(rings[1].get_ydata()[0]) == pytest.approx(BASE[:, 1].mean())


def test_the_note_shows_the_labels_and_their_half():
    left, right = make_all()["note"]().axes
    assert lines(right)["printed labels, sin t"] == NOTE["label"]
    assert lines(right)["sin(t)/2"] == pytest.approx([v / 2 for v in NOTE["label"]])
    assert lines(right)["published outputs"] == NOTE["final_prediction"]
    assert lines(right)["ours, 1,000 batches"] == pytest.approx(BASE.mean(0).tolist())
    assert lines(left)["published outputs"] == pytest.approx([k + 1 for k in range(9)])


def test_unseen_times_lie_on_grey_and_the_true_curve_is_drawn():
    first, second = make_all()["predictions"]().axes
    assert first.get_title() == "3 points read"
    assert second.get_title() == "90 points read"
    (grey,) = first.patches
    assert (grey.get_x(), grey.get_x() + grey.get_width()) == pytest.approx((1.09, 1.9))
    assert lines(first)["sin(t)/2"] == pytest.approx((np.sin(ENDS) / 2).tolist())
    low, high = (f(first.collections[0].get_paths()[0].vertices[:, 1]) for f in (min, max))
    assert (low, high) == pytest.approx((0.2, 0.52))


def test_errors_name_their_reference_lines():
    left, right = make_all()["error_over_place_and_length"]().axes
    assert lines(left)["the mean"] == [0.117, 0.117]
    assert [label.get_text() for label in right.get_xticklabels()] == ["3", "9", "18", "90"]
    assert len(legend(make_all()["error_over_place_and_length"]())) == 5
    assert left.get_yscale() == right.get_xscale() == "log"


def test_what_a_gate_allows_is_bounded_by_the_steps():
    bound, trained, _ = make_all()["output_gate"]().axes
    assert lines(bound)["after 1 step"][-1] == pytest.approx(np.tanh(1))
    assert lines(bound)["in the limit"][-1] == pytest.approx(1)
    found = lines(trained)
    product = (curves() * curves(0.2)).mean(0)
    assert found["output o·tanh(c)"] == pytest.approx(product.tolist())


def test_free_runs_show_one_wave_and_all_errors():
    top, bottom = make_all()["free_run"]().axes
    assert lines(top)["true values"] == pytest.approx(curves()[0].tolist())
    assert set(lines(bottom)) >= {"a straight line on", "two fitted terms"}
    assert bottom.lines[-1].get_ydata()[0] == 0.05
