"""The figures of chapters 02 and 03 show the data that they are given, where they belong."""

from __future__ import annotations

import ipywidgets
import numpy as np
import pytest
import torch
from matplotlib.colors import same_color

from labkit.lab import record
from labkit.measure import plots
from labkit.measure.statistics import summarise
from labkit.memory import figures, sweep
from labkit.memory.model import Ensemble, ModelSpec

SEQUENCE = [6, 7, 0, 0, 1, 0, 0, 0, 0, 0]
RAW = [0.2, 0.4, 0.9, 0.5]


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    """Two models with large random weights, so that what they predict depends on what they read."""
    ensemble = Ensemble(ModelSpec(cell="lstm"), [3, 8])
    ensemble.load_state_dict({k: 3 * v for k, v in ensemble.state_dict().items()})
    return ensemble


def summaries(names, n: int = 8) -> dict:
    return {name: summarise(RAW * (n // 4)) for name in names}


def by_cell(lengths=(10, 20)) -> dict:
    return {cell: summaries(lengths) for cell in ("srn", "lstm")}


def losses(level: float) -> dict:
    curve = level * np.linspace(3, 1, 5) * np.ones((4, 1))
    return {"step": np.arange(1, 6) * 100, "train_loss": curve, "dev_loss": 2 * curve}


def shares() -> dict:
    values = {"falls": 0.3, "rises": 0.1}
    return {f"{g}/{way}": torch.full((2, 10), v) for g in "ifoc" for way, v in values.items()}


def probes() -> dict:
    kinds = {"known": 0.9, "held_out": 0.4, "held_out_zeros": 0.6}
    return {f"{s}/{k}": torch.full((2, 10), value) for s in "ch" for k, value in kinds.items()}


PLACES = {"places": torch.tensor([[0.2, 0.8], [0.4, 1.0]]), "zeros": torch.ones(2)}
CURVES = {cell: {10: losses(k), 20: losses(k)} for k, cell in ((1, "srn"), (0.5, "lstm"))}
RUN = {"gradient": np.ones((4, 10)), "loss": np.ones((4, 10)), "saturated": np.ones(4)}
CHANCE = {"known": 0.1, "held_out": 0.11}
MAKERS = {
    "loss_curves_zero": lambda: figures.loss_curves("loss_curves_zero", "zero start", CURVES),
    "sound_accuracy": lambda: figures.accuracy_over_length(
        "sound_accuracy", "fresh data", {"trained pairs": {"test_accuracy": by_cell()}},
        {"trained pairs": 0.1},
    ),
    "one_seed_studies": lambda: figures.one_seed_studies({"zero/frozen": {10: RAW}}, 0.1, []),
    "explosion": lambda: figures.explosion_plot({"no clipping": RUN}, 5.0),
    "input_gate_spread": lambda: figures.condition_strips(
        "input_gate_spread", "Spread of the input gate", {"spread": {"zero": summaries("ab")}},
        0.05, "limit for zeros",
    ),
    "digit_responses": lambda: figures.digit_responses({"zero": shares()}, 0.1),
    "read_out": lambda: figures.read_out_curves({"zero": probes()}, CHANCE),
    "accuracy_by_place": lambda: figures.place_curves({"xavier": PLACES}),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_every_figure_has_a_name_a_text_labels_and_stable_bytes(name, monkeypatch):
    monkeypatch.setattr(plots, "DPI", 40)
    fig = MAKERS[name]()
    assert fig.labkit_name == name
    assert len(fig.labkit_alt) > 80
    assert fig.labkit_alt.endswith(".")
    assert all(ax.get_ylabel() or ax.get_title() or ax.get_xlabel() for ax in fig.axes[-1:])
    assert plots.png_bytes(fig) == plots.png_bytes(MAKERS[name]())


def test_losses_stand_in_the_panel_of_their_split_and_length():
    fig = MAKERS["loss_curves_zero"]()
    assert [ax.get_title() for ax in fig.axes] == ["10 digits", "20 digits", "", ""]
    for ax, factor in zip(fig.axes, (1, 1, 2, 2), strict=True):
        srn, lstm = (line.get_ydata() for line in ax.lines if line.get_linewidth() == 2)  # medians
        np.testing.assert_allclose([srn, 2 * lstm], factor * np.linspace([3, 3], [1, 1], 5).T)
        assert f"{ax.lines[-1].get_ydata()[0]:.4f}" == "2.7938"  # entropy of the sums


def test_printed_rows_are_open_markers_in_the_panels_of_their_setting():
    printed = list(sweep.published_rows(record.published()))
    settings = ("zero/trained", "zero/frozen", "xavier/trained")
    quantities = ("dev_accuracy", "test_accuracy")
    accuracies = {s: {quantity: by_cell() for quantity in quantities} for s in settings}
    chance = dict.fromkeys(settings, 0.1)
    fig = figures.accuracy_over_length("accuracy", "printed data", accuracies, chance, printed)
    for ax, count in zip(fig.axes, (3, 1, 0, 3, 1, 0), strict=True):
        open_markers = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
        assert len(open_markers) == count
    lstm_a = next(line for line in fig.axes[3].lines if line.get_label() == "write-up A, LSTM")
    assert list(lstm_a.get_ydata()) == [0.77, 0.82, 0.76, 0.31, 0.88, 0.82]
    assert same_color(lstm_a.get_markeredgecolor(), plots.COLOURS["lstm"])
    assert "Open markers are the published" in fig.labkit_alt

    (ax,) = figures.one_seed_studies({"zero/frozen": {10: RAW, 20: RAW}}, 0.1, printed).axes
    labels = [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]
    assert labels == ["median", "write-up B", "chance"]


@pytest.mark.parametrize("n, marks", [(4, 2), (8, 3)])
def test_every_seed_is_a_dot_the_mean_a_line_and_an_interval_needs_eight_seeds(n, marks):
    panels = {key: {"zero": summaries(["f = 1", "f = mean"], n)} for key in ("early", "late")}
    fig = figures.condition_strips("ablation", "Accuracy", panels, 0.1, "chance")
    assert [ax.get_ylabel() for ax in fig.axes] == ["early", "late"]
    assert [t.get_text() for t in fig.axes[1].get_xticklabels()] == ["f = 1", "f = mean"]
    for ax in fig.axes:
        dots, mean, *_ = ax.collections
        assert sorted(dots.get_offsets()[:, 1].tolist())[:: n // 4] == sorted(RAW)
        assert mean.get_segments()[0][0, 1] == pytest.approx(0.5)
        assert len(ax.collections) == 2 * marks
        assert ax.lines[0].get_ydata()[0] == 0.1
    _, labels = fig.axes[0].get_legend_handles_labels()
    assert labels == ["zero start", "chance"]


def test_the_picture_shows_units_down_digits_across_and_the_published_scales(ensemble):
    trace = {k: v[0, 0] for k, v in ensemble.trace(torch.tensor([SEQUENCE])).items()}
    fig = figures.gate_maps(trace, SEQUENCE, 13, "seed 3", framed=4)
    for ax, name in zip(fig.axes[:4], "ifoc", strict=True):
        mesh = ax.collections[0]
        assert mesh.get_array().reshape(32, 10).tolist() == trace[name].T.tolist()
        assert mesh.get_clim() == ((-5, 5) if name == "c" else (0, 1))
        assert [label.get_text() for label in ax.get_xticklabels()] == [str(d) for d in SEQUENCE]
        assert ax.patches[-1].get_bbox().bounds == (4, 0, 1, 32)
    assert "6 7 0 0 1 0 0 0 0 0, seed 3, which predicts 13" in fig.labkit_alt


def test_falls_are_drawn_below_the_axis_and_rises_above_without_the_digit_zero():
    fig = figures.digit_responses({"zero": shares(), "xavier": shares()}, limit=0.2)
    assert len(fig.axes) == 8
    for ax in fig.axes:
        assert {round(bar.get_height(), 6) for bar in ax.patches} == {-0.3, 0.1}
        assert sorted({round(bar.get_x() + 0.4) for bar in ax.patches}) == list(range(1, 10))
    limits = [sorted({line.get_ydata()[0] for line in ax.lines} - {0}) for ax in fig.axes[:4]]
    assert limits == [[], [-0.2], [-0.2, 0.2], [-0.2, 0.2]]


def test_places_count_from_three_and_probe_curves_stand_in_the_panel_of_their_kind():
    (ax,) = MAKERS["accuracy_by_place"]().axes
    first, _, mean, zeros = ax.lines
    assert list(mean.get_xdata()) == [3, 4]
    assert list(mean.get_ydata()) == pytest.approx([0.3, 0.9])
    assert list(first.get_ydata()) == pytest.approx([0.2, 0.8])
    assert list(zeros.get_ydata()) == [1, 1]
    axes = MAKERS["read_out"]().axes
    for ax, value, chance in zip(axes, (0.9, 0.4, 0.6), (0.1, 0.11, 0.11), strict=True):
        heights = {round(float(line.get_ydata()[0]), 6) for line in ax.lines}
        assert heights == {value, chance}


def test_the_explorer_follows_its_controls_and_is_a_plain_figure_where_nobody_turns_them(
    ensemble, monkeypatch
):
    shown, chosen = [], []
    monkeypatch.setattr(figures, "show", shown.append)
    monkeypatch.setattr(
        ipywidgets, "interact", lambda draw, **controls: chosen.append((draw, controls))
    )
    figures.explore({"xavier": ensemble}, SEQUENCE)  # the lab runs the notebook
    assert shown[0].labkit_name == "gate_maps"
    assert not chosen

    monkeypatch.delenv("LABKIT_PROGRESS")
    figures.explore({"xavier": ensemble}, SEQUENCE)
    ((draw, controls),) = chosen
    assert controls["row"].value == "6 7 0 0 1 0 0 0 0 0"
    assert (controls["step"].max, controls["seed"]) == (10, [3, 8])
    for row in ("6 7 0 0 1 0 0 0 0 0", "1 9 0 0 0 0 0 8 0 0"):
        draw(row=row, step=2, start="xavier", seed=8)
        digits = [int(d) for d in row.split()]
        predicted = int(ensemble.logits(torch.tensor([digits]))[1].argmax())
        assert f"reading {row}, seed 8, xavier start, which predicts {predicted}" in (
            shown[-1].labkit_alt
        )
        assert "the column of step 2 is framed" in shown[-1].labkit_alt
