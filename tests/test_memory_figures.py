"""The figures of chapters 02 and 03 show the data that they are given, where they belong."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from labkit.lab import record
from labkit.measure.audit import audit
from labkit.measure.statistics import summarise
from labkit.memory import figures
from labkit.memory.model import Ensemble, ModelSpec

SEQUENCE = [6, 7, 0, 0, 1, 0, 0, 0, 0, 0]
RAW = [0.2, 0.4, 0.9, 0.5]
# large random weights, so that what they predict depends on what they read
ENSEMBLE = Ensemble(ModelSpec(cell="lstm"), [3, 8])
ENSEMBLE.load_state_dict({name: 3 * value for name, value in ENSEMBLE.state_dict().items()})


def draw(content: dict, **layout):
    return figures.panels("accuracy", "Accuracy", content, "digits", "accuracy", **layout)


@pytest.mark.parametrize("n, intervals", [(4, 0), (8, 2)])
def test_every_seed_is_a_dot_the_mean_a_mark_and_an_interval_needs_eight_seeds(n, intervals):
    summaries = {name: summarise(RAW * (n // 4)) for name in ("f = 1", "f = mean")}
    (ax,) = draw({"held": {"zero start": summaries, "xavier start": summaries}}).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["f = 1", "f = mean"]
    dots = [c.get_offsets() for c in ax.collections if len(c.get_offsets()) == n]
    assert len(dots) == 4
    assert sorted(dots[0][:, 1].tolist())[:: n // 4] == sorted(RAW)
    assert len(ax.collections) == 4 + 2 * intervals
    for line, side in zip(ax.lines, (-1, 1), strict=True):
        assert list(line.get_ydata()) == pytest.approx([0.5, 0.5])
        assert np.sign(line.get_xdata()[0]) == side
        assert line.get_linestyle() == "None"  # conditions are not joined


def test_the_readers_own_seeds_are_crosses_under_the_same_label():
    steps, dots = [1, 2, 3], {"f = 1": summarise(RAW)}
    lines, mine = np.array([[0.1, 0.2, 0.4]] * 5), np.array([[0.5, 0.6, 0.7], [0.7, 0.8, 0.9]])
    content = {"held": {"zero start": dots}, "read": {"zero start": (steps, lines)}}
    yours = {"held": {"zero start": {"f = 1": summarise([0.3, 0.6])}}}
    yours["read"] = {"zero start": (steps, mine)}
    fig = draw(content, yours=yours, you="you: seeds 0–1")
    held, read = ([line for line in ax.lines if line.get_marker() == "x"] for ax in fig.axes)
    assert [list(line.get_ydata()) for line in held] == [[0.3, 0.6]]
    assert list(read[0].get_ydata()) == pytest.approx([0.6, 0.7, 0.8])
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["zero start", "you: seeds 0–1"]
    assert "Black crosses, you: seeds 0–1" in fig.labkit_alt


def sweep(seeds: int = 8) -> dict:
    """Accuracies of both cells, the SRN's below the LSTM's by 0.4 and 0.2 at 10 and 20 digits."""
    rng, measures = np.random.default_rng(0), {}
    for name, (length, lead) in product(figures.STEPS.values(), {10: 0.4, 20: 0.2}.items()):
        lstm = rng.uniform(0.5, 0.9, seeds)
        for cell, values in (("lstm", lstm), ("srn", lstm - lead)):
            measures[name.format(cell, length)] = summarise(values.tolist(), seeds=range(seeds))
    return measures


def test_the_lead_is_taken_within_each_seed_and_averaged_over_the_lengths():
    measures = sweep()
    for lengths, lead in (([10], 0.4), ([10, 20], 0.3)):
        found = [m["raw"] for m in figures.leads(measures, lengths).values()]
        assert found == [pytest.approx([lead] * 8)] * 5
    del measures[figures.accuracy("shuffled", "xavier/trained").format("srn", 20)]
    assert "Xavier start,\nshuffled" not in figures.leads(measures, [10, 20])
    short, every = figures.lead(measures, [10, 20]).axes
    assert [label.get_text() for label in short.get_yticklabels()] == [*figures.STEPS]
    means = [line.get_xdata()[0] for line in every.lines if line.get_marker() == "|"]
    assert means == pytest.approx([0.3] * 4)


def test_printed_accuracies_stand_in_the_panel_of_the_start_that_their_code_has():
    rows = [r for r in figures.published_rows(record.published()) if r.quantity == "test_accuracy"]
    settings = ["zero/trained", "zero/frozen", "xavier/trained"]
    names = {setting: figures.accuracy("published", setting) for setting in settings}
    alike = figures.over_length("accuracy", "Accuracy", names, sweep(), sweep(3), rows)
    alone = figures.one_seed_studies(sweep(), settings, rows)
    for fig, shown in ((alike, [3, 1, 0]), (alone, [2, 1, 0])):  # A, its rerun (two cells); B
        panels = [[line for line in ax.lines if line.get_marker() in [*"s^D"]] for ax in fig.axes]
        assert [len(lines) for lines in panels] == shown
        assert list(panels[1][0].get_ydata()) == [0.93, 0.92, 0.74, 0.78, 0.67, 0.19]
    assert "you: seeds 0–2" in alike.labkit_alt
    chance = [line for line in alike.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in chance] == [0.1]
    seeds = [line for line in alone.axes[0].lines if line.get_alpha()]
    raw = [sweep()[names["zero/trained"].format("lstm", n)]["raw"] for n in (10, 20)]
    assert [tuple(line.get_ydata()) for line in seeds] == [*zip(*raw, strict=True)]


def test_the_picture_shows_units_down_digits_across_and_the_published_scales():
    trace = {k: v[0, 0] for k, v in ENSEMBLE.trace(torch.tensor([SEQUENCE])).items()}
    fig = figures.gate_maps(trace, SEQUENCE, 13, "seed 3", framed=4)
    for ax, name in zip(fig.axes[:4], "ifoc", strict=True):
        mesh = ax.collections[0]
        assert mesh.get_array().reshape(32, 10).tolist() == trace[name].T.tolist()
        assert mesh.get_clim() == ((-5, 5) if name == "c" else (0, 1))
        assert [label.get_text() for label in ax.get_xticklabels()] == [str(d) for d in SEQUENCE]
        assert ax.patches[-1].get_bbox().bounds == (4, 0, 1, 32)
    assert "6 7 0 0 1 0 0 0 0 0, seed 3, which predicts 13" in fig.labkit_alt


def test_the_effect_of_the_digit_is_the_difference_of_two_gates_and_each_has_its_digits():
    one, zero = (
        ENSEMBLE.trace(torch.tensor([row]))["f"][0, 0] for row in (SEQUENCE, [6, 7] + [0] * 8)
    )
    fig = figures.effect_maps(one, zero, SEQUENCE, 4, "seed 3")
    shown = [ax.collections[0].get_array().reshape(32, 10) for ax in fig.axes[:3]]
    np.testing.assert_allclose(shown[2], shown[0] - shown[1], atol=1e-6)
    assert (shown[2][:, :4] == 0).all()
    assert abs(shown[2][:, 4]).max() > 0.01
    texts = ["".join(label.get_text() for label in ax.get_xticklabels()) for ax in fig.axes[:3]]
    assert texts == ["6700100000", "6700000000", "6700100000"]


def test_the_opening_picture_tells_the_two_comparisons_apart():
    means = {"falls": 0.3, "rises": 0.1, "_seen/falls": 0.7, "_seen/rises": 0.5}
    measures = {
        f"gates/zero/digit_1/{gate}{kind if '/' in kind else f'/{kind}'}": summarise([mean] * 8)
        for gate in "ifoc"
        for kind, mean in means.items()
    }
    for ax, expected in zip(
        figures.digit_responses(measures, "zero").axes, ([0.3, 0.7], [0.1, 0.5]), strict=True
    ):
        assert [line.get_ydata().tolist() for line in ax.lines] == [[m] * 4 for m in expected]


def test_the_explorer_is_shown_with_its_networks_but_not_in_a_run(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    figures.explore({"xavier": ENSEMBLE}, SEQUENCE)  # the lab runs the notebook
    assert not shown
    monkeypatch.delenv("LABKIT_PROGRESS")
    figures.explore({"xavier": ENSEMBLE}, SEQUENCE)
    data = figures.explored({"xavier": ENSEMBLE}, SEQUENCE)
    assert [net["seed"] for net in data["nets"]] == [3, 8]
    assert json.dumps(data) in shown[0].data


def test_hundredths_fit_a_hundred_and_cannot_tell_it_from_some_others():
    rows = figures.published_rows(record.published())
    texts = [f"{value:.2f}" for row in rows for value in row.values.values()]
    found = audit(texts, range(20, 101))
    assert (len(texts), found.chance(100)) == (48, 1.0)
    assert found.fit_all == [80, 88, 96, 97, 99, 100]
