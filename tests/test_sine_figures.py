"""The plots of the sine chapter: each draws what it is given, says so, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.sine import figures

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
    ways = dict.fromkeys(figures.WAYS, BASE + shift)
    blocks = {"adam": BASE[:, :6] + shift, "sgd": BASE[:, :6] + 1}
    scan = {"adam": {1e-3: BASE[:, 0] + shift}, "sgd": {1e-2: BASE[:, 1], 1.0: BASE[:, 2]}}
    gate = (curves(shift), curves(0.2))
    names = ["last/nine", "every/mixed"]
    return {
        "loss": lambda: figures.loss_plot(
            {"gluon": blocks, "xavier": blocks}, {"adam": [0.3, 0.2], "sgd": [0.4, 0.3]}, 0.007
        ),
        "why_sgd_is_slow": lambda: figures.slow_plot(
            {"cell 1 weights": BASE[:, 0] + shift, "cell 3 biases": BASE[:, 1]},
            scan, {"adam": 1e-3, "sgd": 1e-2}, 60,
        ),
        "note": lambda: figures.note_plot(BASE / 1e5, {100: BASE + shift, 1000: BASE}, NOTE),
        "predictions": lambda: figures.prediction_plot(
            {T: {way: curves(shift) for way in names} for T in (3, 90)}, ENDS, 1.09
        ),
        "error_over_place_and_length": lambda: figures.error_plot(
            ways, {way: v[:, :4] for way, v in ways.items()}, (3, 9, 18, 90), {"the mean": 0.117}
        ),
        "output_gate": lambda: figures.gate_plot(ENDS, dict.fromkeys(names, gate), (1, 2)),
        "free_run": lambda: figures.free_run_plot(
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


def lines(ax) -> dict[str, list[float]]:
    """The labelled lines of a panel."""
    return {
        line.get_label(): np.asarray(line.get_ydata()).tolist()
        for line in ax.lines
        if not line.get_label().startswith("_")
    }


def test_losses_stand_at_the_end_of_their_batches_beside_the_published_ones():
    left, _ = make_all()["loss"]().axes
    circles = [line for line in left.lines if line.get_label() == "published"]
    assert [line.get_ydata().tolist() for line in circles] == [[0.3, 0.2], [0.4, 0.3]]
    assert circles[0].get_xdata().tolist() == [20, 40]
    assert lines(left)["Adam"] == pytest.approx(BASE[:, :6].mean(0).tolist())


def test_the_note_shows_the_labels_and_their_half():
    left, right = make_all()["note"]().axes
    assert lines(right)["printed labels, sin t"] == NOTE["label"]
    assert lines(right)["sin(t)/2"] == pytest.approx([v / 2 for v in NOTE["label"]])
    assert lines(right)["published outputs"] == NOTE["final_prediction"]
    assert lines(right)["ours, 1,000 batches"] == pytest.approx(BASE.mean(0).tolist())
    assert lines(left)["published outputs"] == pytest.approx([k + 1 for k in range(9)])
