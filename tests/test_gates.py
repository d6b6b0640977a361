"""Gate analysis: what is measured on traces, probes, ablations, verdicts, and the explorer."""

from __future__ import annotations

import ipywidgets
import pytest
import torch

from labkit.lab import results
from labkit.measure import claims
from labkit.measure import plots as figures
from labkit.memory import data as digit_sum
from labkit.memory import gate_figures as figures_gates
from labkit.memory import gates
from labkit.memory.ensemble import Ensemble
from labkit.memory.gates import Condition
from labkit.memory.model import ModelSpec, SequenceClassifier

SEQUENCE = [6, 7, 0, 0, 1, 0, 0, 0, 0, 0]
R, B, T, H = 2, 3, 10, 4


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    """Two models with large random weights, so that what they predict depends on what they read."""
    ensemble = Ensemble(ModelSpec("lstm", "xavier"), [3, 8], dtype=torch.float64)
    ensemble.load_state_dict({k: 3 * v for k, v in ensemble.state_dict().items()})
    return ensemble


def synthetic(value: float = 0.5) -> dict[str, torch.Tensor]:
    return {name: torch.full((R, B, T, H), value) for name in "ifoc"}


# putting a digit in


def test_a_digit_is_put_behind_the_addends_of_a_copy():
    X = digit_sum.all_pairs(10).X
    changed = gates.with_digit(X, 4, 1)
    assert changed[67].tolist() == SEQUENCE
    assert X[67].tolist() == [6, 7] + [0] * 8


@pytest.mark.parametrize(
    "position, digit, message",
    [
        (1, 5, "position must be in 2..9, behind the addends, got 1"),
        (10, 5, "position must be in 2..9, behind the addends, got 10"),
        (2, 10, "digit must be in 0..9, got 10"),
        (2, -1, "digit must be in 0..9, got -1"),
    ],
)
def test_a_digit_where_none_belongs_is_refused(position, digit, message):
    with pytest.raises(ValueError, match=message):
        gates.with_digit(digit_sum.all_pairs(10).X, position, digit)


@pytest.mark.parametrize("shape", [(10,), (1, 1, 10), (4, 2)])
def test_sequences_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"X must have shape \(B, T\) with T >= 3"):
        gates.with_digit(torch.zeros(shape, dtype=torch.int64), 2, 1)


# spread over zeros


def test_a_gate_that_reacts_to_the_digit_alone_has_no_spread_over_zeros():
    zero, other = synthetic(), synthetic()
    other["i"][:, :, 4] = 0.9
    zero["i"][:, :, :2] = 0.1  # the addends do not count
    found = gates.zero_variances([zero, other], 4)
    for name in ("alone", "zeros", "before", "after", "shift"):
        assert found[name].tolist() == pytest.approx([0, 0], abs=1e-12), name
    assert found["digits"].tolist() == pytest.approx([0.04, 0.04])


def test_a_gate_that_drifts_and_ignores_the_digit_has_its_known_spread():
    trace = synthetic()
    trace["i"][:] = torch.arange(10.0).view(1, 1, 10, 1) / 10
    found = gates.zero_variances([trace, trace], 4)
    assert found["digits"].tolist() == [0, 0]
    expected = {
        "alone": torch.tensor([2, 3, 4, 5, 6, 7, 8, 9]).double().var(correction=0),
        "zeros": torch.tensor([2, 3, 5, 6, 7, 8, 9]).double().var(correction=0),
        "before": torch.tensor([2, 3]).double().var(correction=0),
        "after": torch.tensor([5, 6, 7, 8, 9]).double().var(correction=0),
        "shift": torch.tensor((7 - 2.5) ** 2),
    }
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([float(value) / 100] * R), name


@pytest.mark.parametrize(
    "position, absent",
    [(2, {"before", "shift"}), (3, {"before"}), (8, {"after"}), (9, {"after", "shift"})],
)
def test_a_side_with_fewer_than_two_zeros_has_no_spread(position, absent):
    found = gates.zero_variances([synthetic(), synthetic()], position)
    assert {"alone", "zeros", "before", "after", "shift", "digits"} - found.keys() == absent


# change at a digit


def test_shares_count_units_that_change_by_more_than_the_limit():
    zero, other = synthetic(), synthetic()
    other["f"][:, :, 4] = torch.tensor([0.39, 0.41, 0.61, 0.5])  # falls, stays, rises, stays
    other["f"][0, :, 5, 0] = 0.2
    zero["c"][:, :, 4] = torch.tensor([-2.0, -2.0, 1.0, 1.0])
    other["c"][:, :, 4] = torch.tensor([-1.0, -3.0, 1.4, -1.0])  # shrinks, grows, stays, stays
    found = gates.changed_shares([zero, other], 4)
    assert found["f/falls"].tolist() == [[0, 0.25], [0, 0.25]]
    assert found["f/rises"].tolist() == [[0, 0.25], [0, 0.25]]
    assert found["f_next/falls"].tolist() == [[0, 0.25], [0, 0]]
    assert found["c/falls"].tolist() == [[0, 0.25], [0, 0.25]]
    assert found["c/rises"].tolist() == [[0, 0.25], [0, 0.25]]
    assert found["o/falls"].sum() == found["i/rises"].sum() == 0
    assert "f_next/falls" not in gates.changed_shares([zero, other], 9)


def test_a_drift_is_seen_in_the_picture_but_is_not_the_digits_doing():
    trace = synthetic()
    trace["o"][:, :, 4:] = 0.9
    found = gates.changed_shares([trace, trace], 4)
    assert found["o/rises"].sum() == 0
    assert found["o_seen/rises"].tolist() == [[1, 1], [1, 1]]


def test_right_behind_the_addends_nothing_is_compared_with_the_step_before():
    trace = synthetic()
    trace["c"][:, :, 2:] = 3.0  # grows from the second addend to the first zero, then stays
    assert not any("_seen" in name for name in gates.changed_shares([trace, trace], 2))
    assert gates.changed_shares([trace, trace], 3)["c_seen/rises"].sum() == 0


def test_the_study_compares_the_same_sequences_with_and_without_the_digit(ensemble):
    X = digit_sum.all_pairs(5).X
    spreads, shares = gates.study(ensemble, X)
    assert shares["f/falls"].shape == (2, 10)
    assert shares["f/falls"][:, 0].tolist() == [0, 0]

    zero = ensemble.trace(X)["f"]
    changes = [
        ensemble.trace(digit_sum.all_pairs(5, p, 7).X)["f"][:, :, p] - zero[:, :, p]
        for p in (2, 3, 4)
    ]
    expected = (torch.stack(changes) < -0.1).double().mean((0, 2, 3))
    assert shares["f/falls"][:, 7].tolist() == pytest.approx(expected.tolist())
    alone = ensemble.trace(X)["i"][:, :, 2:].var(2, correction=0).mean((1, 2)).sqrt()
    assert spreads["alone"].tolist() == pytest.approx(alone.tolist())
    ratio = spreads["zeros"] / spreads["digits"]
    assert spreads["zeros_to_digits"].tolist() == pytest.approx(ratio.tolist())


def test_the_push_of_a_digit_does_not_depend_on_addends_or_place(ensemble):
    X = digit_sum.all_pairs(6).X
    pushes = [
        ensemble.trace(gates.with_digit(X, p, 1))["f"][:, :, p].logit()
        - ensemble.trace(X)["f"][:, :, p].logit()
        for p in (2, 5)
    ]
    expected = pushes[0][:, :1].expand_as(pushes[0])
    for push in pushes:
        torch.testing.assert_close(push, expected, rtol=0, atol=1e-6)


def test_a_study_of_sequences_that_hold_a_digit_already_is_refused(ensemble):
    with pytest.raises(ValueError, match="only zeros behind the addends"):
        gates.study(ensemble, digit_sum.all_pairs(5, 3, 1).X)


# reading the sum


def probing_data(separation: float):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(6).repeat(100)
    centres = torch.randn(6, 8, generator=generator)
    features = separation * centres[y] + torch.randn(600, 8, generator=generator)
    fit = torch.arange(600) < 300
    return features, y, fit


def test_a_probe_reads_what_is_there_and_no_more():
    features, y, fit = probing_data(5.0)
    assert gates.linear_probe(features, y, fit, ~fit) > 0.95
    noise, _, _ = probing_data(0.0)
    assert gates.linear_probe(noise, y, fit, ~fit) < 0.3
    both = gates.linear_probe(torch.stack([features, noise]), y, fit, ~fit)
    assert both.shape == (2,)
    assert both[0] == gates.linear_probe(features, y, fit, ~fit)


def test_a_probe_never_sees_the_test_rows_labels():
    features, y, fit = probing_data(0.0)
    features[~fit] += 50 * torch.nn.functional.one_hot(y[~fit], 8)
    assert gates.linear_probe(features, y, fit, ~fit) < 0.5


def test_a_probe_is_the_textbooks_discriminant():
    features, y, fit = (t.double() if t.is_floating_point() else t for t in probing_data(1.0))
    A = features[fit]
    A, B = ((Z - A.mean(0)) / A.std(0) for Z in (A, features[~fit]))
    means = torch.stack([A[y[fit] == k].mean(0) for k in range(6)])
    covariance = (A - means[y[fit]]).T @ (A - means[y[fit]]) / len(A) + 1e-3 * torch.eye(8)
    gaps = B.unsqueeze(1) - means
    distances = torch.einsum("nkh,hj,nkj->nk", gaps, covariance.inverse(), gaps)
    expected = (distances.argmin(1) == y[~fit]).double().mean()
    assert gates.linear_probe(features, y, fit, ~fit) == pytest.approx(float(expected))


def test_a_probe_with_shared_or_no_rows_is_refused():
    features, y, fit = probing_data(1.0)
    with pytest.raises(ValueError, match="both in `fit` and in `test`"):
        gates.linear_probe(features, y, fit, fit)
    with pytest.raises(ValueError, match="at least one row"):
        gates.linear_probe(features, y, fit, torch.zeros_like(fit))


def test_folds_leave_every_sum_something_to_fit_on():
    y = digit_sum.all_pairs(5).y
    folds = gates.pair_folds(y)
    assert y[folds == -1].tolist() == list(range(19))
    assert torch.bincount(folds[folds >= 0]).tolist() == [17, 16, 16, 16, 16]
    assert torch.equal(folds, gates.pair_folds(y))


class Pairs:
    """A stand-in for an ensemble: c holds the sum, or only which pair it is."""

    def __init__(self, state: str) -> None:
        table = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
        self.by_sum, self.table = state == "sum", table

    def trace(self, X):
        index = X[:, 0] + X[:, 1] if self.by_sum else 10 * X[:, 0] + X[:, 1]
        state = self.table[index][None, :, None].expand(1, -1, X.shape[1], -1).clone()
        state += 1e-3 * X.sum(1)[None, :, None, None]
        return {"c": state, "h": torch.zeros_like(state)}


def test_the_read_out_tells_a_sum_from_a_pair():
    X, y = digit_sum.all_pairs(4)
    by_sum = gates.read_out(Pairs("sum"), X, y)
    assert by_sum["c/known"].min() == by_sum["c/held_out"].min() == 1
    assert by_sum["c/known"].shape == (1, 4)
    assert by_sum["h/known"].max() <= 0.1
    assert by_sum["c/held_out_zeros"].tolist() == [[1, 1, 1, 1]]

    by_pair = gates.read_out(Pairs("pair"), X, y)
    assert by_pair["c/known"].min() > 2 * by_pair["c/held_out"].max()
    assert by_pair["c/held_out"].max() < 0.3
    assert by_pair["c/held_out_zeros"].max() < 0.3


class SideBySide:
    """A stand-in for an ensemble: c holds a share for each addend, with no sum computed."""

    def trace(self, X):
        shares = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0))
        state = shares[0, X[:, 0]] + shares[1, X[:, 1]]
        state = state[None, :, None].expand(1, -1, X.shape[1], -1).clone()
        return {"c": state, "h": state}


def test_a_linear_rule_can_add_two_addends_that_sit_side_by_side():
    X, y = digit_sum.all_pairs(4)
    assert gates.read_out(SideBySide(), X, y)["c/held_out_zeros"].min() > 0.9


def test_a_read_out_that_tests_on_digits_it_was_fitted_with_is_refused(ensemble):
    X, y = digit_sum.all_pairs(4)
    with pytest.raises(ValueError, match="share a digit"):
        gates.read_out(ensemble, X, y, fit_digits=(1, 2), test_digits=(2,))


# ablation


def test_ablation_changes_one_gate_and_only_that(ensemble):
    X, y = digit_sum.all_pairs(6)
    y = ensemble.logits(X).argmax(-1)[0]
    found = gates.ablations(ensemble, X, y)
    assert list(found) == [
        "as trained", "i = 1", "i = mean", "f = 1", "f = mean", "o = 1", "o = mean",
    ]  # fmt: skip
    assert found["as trained"][0] == 1

    model = SequenceClassifier(ensemble.spec).double()
    model.load_state_dict(ensemble.parameters_of(0))
    with torch.no_grad():  # a bias of 50 holds a sigmoid at 1
        for name, parameter in model.recurrent.layers[0].named_parameters():
            if name in ("W_f", "U_f"):
                parameter.zero_()
            elif name == "b_f":
                parameter.fill_(50.0)
        expected = (model(X).argmax(-1) == y).double().mean()
    assert found["f = 1"][0] == pytest.approx(float(expected)) != 1

    mean = ensemble.trace(X)["o"].mean((1, 2))
    logits = ensemble.logits(X, ablate={"o": mean.unsqueeze(1)})
    expected = (logits.argmax(-1) == y).double().mean(1)
    assert found["o = mean"].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("ablate", [{}, {"f": 1.0}, {"i": 0.3, "o": 0.6}])
def test_gates_held_at_every_step_are_what_the_ensemble_computes(ensemble, ablate):
    X = torch.cat([digit_sum.all_pairs(7, p, 4).X for p in range(2, 7)])
    X = X.repeat(2, 1)  # more than one part
    expected = ensemble.logits(X, ablate=ablate)
    found = gates.logits_with_held_gates(ensemble, X, ablate)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_gates_held_from_a_step_on_leave_the_steps_before_alone(ensemble):
    X = digit_sum.all_pairs(7, 4, 8).X
    model = SequenceClassifier(ensemble.spec).double()
    model.load_state_dict(ensemble.parameters_of(1))
    lstm, held = model.recurrent.layers[0], torch.full((2, 1, 32), 0.7, dtype=torch.float64)
    with torch.no_grad():
        embedded = model.embedding(X)
        _, (h, c) = model.recurrent(embedded[:, :2])
        for x in embedded[:, 2:].unbind(1):
            i, o = (
                torch.sigmoid(
                    x @ getattr(lstm, f"W_{g}") + h[0] @ getattr(lstm, f"U_{g}")
                    + getattr(lstm, f"b_{g}")
                )
                for g in "io"
            )  # fmt: skip
            candidate = torch.tanh(x @ lstm.W_c + h[0] @ lstm.U_c + lstm.b_c)
            c = 0.7 * c + i * candidate
            h = o * torch.tanh(c)
        expected = model.head(h[0])
    found = gates.logits_with_held_gates(ensemble, X, {"f": held}, first=2)
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-10)
    everywhere = gates.logits_with_held_gates(ensemble, X, {"f": held})
    assert (everywhere - found).abs().max() > 0.1


def test_a_mean_from_a_step_on_is_that_of_these_steps(ensemble):
    X, y = digit_sum.all_pairs(6)
    mean = ensemble.trace(X)["i"][:, :, 2:].mean((1, 2)).unsqueeze(1)
    logits = gates.logits_with_held_gates(ensemble, X, {"i": mean}, first=2)
    expected = (logits.argmax(-1) == y).double().mean(1)
    assert gates.ablations(ensemble, X, y, first=2)["i = mean"].tolist() == expected.tolist()
    assert gates.ablations(ensemble, X, y)["i = mean"].tolist() != expected.tolist()


@pytest.mark.parametrize(
    "held, first, message",
    [({"g": 1.0}, 0, "no gate 'g'; allowed: i, f, o"), ({}, 10, "first must be in 0..9, got 10")],
)
def test_holding_what_cannot_be_held_is_refused(ensemble, held, first, message):
    with pytest.raises(ValueError, match=message):
        gates.logits_with_held_gates(ensemble, digit_sum.all_pairs(10).X, held, first)


def test_accuracy_by_place_has_a_column_for_each_digit(ensemble):
    X = digit_sum.all_pairs(5).X
    y = ensemble.logits(digit_sum.all_pairs(5, 3, 6).X).argmax(-1)[0]
    found = gates.accuracy_by_place(ensemble, X, y)
    assert found.shape == (2, 3, 10)
    assert (found[0] == 1).nonzero().tolist() == [[1, 6]]
    assert (found[:, :, 0] == found[:, :1, 0]).all()


# verdicts


def condition(values, side="above", limit=0.1, label="share"):
    return Condition(label, f"gates/{label}", results.summarise(values), side, limit)


HIGH, LOW, WIDE = [0.2, 0.21, 0.22, 0.23] * 2, [0.01, 0.02, 0.03, 0.02] * 2, [0.0, 0.3] * 4


@pytest.mark.parametrize(
    "values, side, expected",
    [
        (HIGH, "above", True),
        (HIGH, "below", False),
        (LOW, "above", False),
        (LOW, "below", True),
        (WIDE, "above", None),
        (HIGH[:7], "above", None),
        ([0.5], "above", None),
    ],
)
def test_a_condition_needs_the_whole_interval_and_eight_seeds(values, side, expected):
    assert condition(values, side).holds() is expected


@pytest.mark.parametrize(
    "samples, holds, verdict",
    [
        ([HIGH, HIGH], True, "holds"),
        ([LOW, LOW], False, "does not hold"),
        ([HIGH, LOW], False, "holds only in part: first"),
        ([HIGH, WIDE], None, "undecided: an interval spans its limit"),
        ([LOW, WIDE], False, "does not hold"),
        ([HIGH[:7], HIGH[:7]], None, "not judged: fewer than 8 seeds"),
    ],
)
def test_verdicts(samples, holds, verdict):
    labels = ("first", "second")
    conditions = [condition(v, label=k) for k, v in zip(labels, samples, strict=True)]
    found = gates.judge("b", "A claim.", {"zero": conditions})
    assert (found["holds"], found["verdict"]) == (holds, verdict)
    assert found["evidence"] == ["gates/first", "gates/second"]


def test_the_first_start_decides_and_the_reason_gives_both():
    found = gates.judge("a", "A claim.", {"zero": [condition(HIGH)], "xavier": [condition(LOW)]})
    assert found["holds"] is True
    assert "zero start, n = 8: share 0.215 [" in found["reason"]
    assert "(needs above 0.1)" in found["reason"]
    assert found["reason"].endswith("xavier start: does not hold (share 0.020)")


def test_all_chapters_need_the_same_number_of_seeds():
    assert gates.MIN_SEEDS == claims.MIN_SEEDS == len(HIGH)


def test_the_rows_of_a_verdict_call_a_range_a_range():
    rows = gates.verdict_rows({"zero": [condition(HIGH)], "xavier": [condition([0.5, 0.75])]})
    assert rows[0][:3] == ["zero", "share", "0.215"]
    assert rows[0][3].startswith("[0.2")
    assert rows[1] == ["xavier", "share", "0.625", "range 0.500 to 0.750", "above 0.1"]


# the explorer


def test_the_explorer_redraws_for_every_control(ensemble):
    other = Ensemble(ModelSpec("lstm", "xavier"), [20, 21])
    explorer = figures_gates.GateExplorer({"zero": ensemble, "xavier": other}, SEQUENCE)
    choices = [
        (explorer.digits[4], 9),
        (explorer.step, 2),
        (explorer.panel, "c"),
        (explorer.replica, 1),
        (explorer.start, "xavier"),
    ]
    seen = [bytes(explorer.image.value)]
    for control, value in choices:
        control.value = value
        seen.append(bytes(explorer.image.value))
    assert len(set(seen)) == len(seen)
    assert all(image.startswith(b"\x89PNG") for image in seen)
    assert "Cell state of the model with seed 21 reading 6 7 0 0 9" in explorer.text.value
    assert explorer.step.max == 10


def test_the_explorers_prediction_follows_the_digits(ensemble):
    explorer = figures_gates.GateExplorer({"xavier": ensemble}, SEQUENCE)
    rows = digit_sum.all_pairs(10, position=4, digit=1).X
    answers = ensemble.logits(rows)[0].argmax(-1)
    assert explorer.predicted == answers[67]
    other = int((answers != answers[67]).nonzero()[0])
    explorer.digits[0].value, explorer.digits[1].value = divmod(other, 10)
    assert explorer.predicted == answers[other] != answers[67]
    assert f"predicts {explorer.predicted}" in explorer.text.value


def test_a_notebook_run_by_the_lab_shows_the_plot_and_makes_no_widget(ensemble, monkeypatch):
    shown = []
    monkeypatch.setattr(figures_gates, "display", shown.append)
    monkeypatch.setattr(figures_gates, "show", shown.append)
    monkeypatch.setenv("LABKIT_PROGRESS", "/dev/null")
    figures_gates.explore({"zero": ensemble}, SEQUENCE)
    monkeypatch.delenv("LABKIT_PROGRESS")
    figures_gates.explore({"zero": ensemble}, SEQUENCE)
    assert shown[0].labkit_name == "explorer"
    assert isinstance(shown[1], ipywidgets.VBox)


@pytest.mark.parametrize(
    "panel, step, message",
    [("z", 0, "panel must be one of i, f, o, c; got 'z'"), ("f", 10, "step must be in 0..9")],
)
def test_a_panel_or_step_that_does_not_exist_is_refused(ensemble, panel, step, message):
    with pytest.raises(ValueError, match=message):
        figures_gates.explorer_plot(ensemble, 0, SEQUENCE, panel, step)


# figures


def test_the_picture_shows_units_down_digits_across_and_the_published_scales(ensemble):
    trace = {
        name: values[0, 0] for name, values in ensemble.trace(torch.tensor([SEQUENCE])).items()
    }
    fig = figures_gates.gate_maps("gate_maps", trace, SEQUENCE, 13, "seed 3", framed=4)
    maps = fig.axes[:4]
    for ax, name in zip(maps, "ifoc", strict=True):
        mesh = ax.collections[0]
        assert mesh.get_array().reshape(32, 10).tolist() == trace[name].T.tolist()
        assert mesh.get_clim() == ((-5, 5) if name == "c" else (0, 1))
        assert [label.get_text() for label in ax.get_xticklabels()] == [str(d) for d in SEQUENCE]
        assert ax.patches[-1].get_bbox().bounds == (4, 0, 1, 32)
    assert "6 7 0 0 1 0 0 0 0 0" in fig.labkit_alt
    again = figures_gates.gate_maps("gate_maps", trace, SEQUENCE, 13, "seed 3", framed=4)
    assert figures.png_bytes(fig) == figures.png_bytes(again)


def test_falls_are_drawn_below_the_axis_and_rises_above_without_the_digit_zero():
    shares = {
        f"{gate}/{way}": torch.full((2, 10), 0.3 if way == "falls" else 0.1)
        for gate in "ifoc"
        for way in ("falls", "rises")
    }
    fig = figures_gates.digit_responses({"zero": shares, "xavier": shares}, limit=0.2)
    assert len(fig.axes) == 8
    for ax in fig.axes:
        assert {round(bar.get_height(), 6) for bar in ax.patches} == {-0.3, 0.1}
        assert sorted({round(bar.get_x() + 0.4) for bar in ax.patches}) == list(range(1, 10))
        assert [len(dots.get_offsets()) for dots in ax.collections] == [18, 18]
    limits = [sorted({line.get_ydata()[0] for line in ax.lines} - {0}) for ax in fig.axes[:4]]
    assert limits == [[], [-0.2], [-0.2, 0.2], [-0.2, 0.2]]


def summaries(names, n):
    return {name: results.summarise([0.2, 0.4, 0.9, 0.5] * (n // 4)) for name in names}


@pytest.mark.parametrize("n, marks", [(4, 2), (8, 3)])
def test_every_seed_is_a_dot_the_mean_a_line_and_an_interval_needs_eight_seeds(n, marks):
    fig = figures_gates.input_gate_spreads({"zero": summaries(["zeros", "digits"], n)}, 0.05)
    (ax,) = fig.axes
    assert sorted(ax.collections[0].get_offsets()[:, 1].tolist())[:: n // 4] == [0.2, 0.4, 0.5, 0.9]
    assert ax.collections[1].get_segments()[0][0, 1] == pytest.approx(0.5)
    assert len(ax.collections) == 2 * marks + 1
    assert ("95 % interval" in fig.labkit_alt) == (n >= 8)
    assert ax.collections[-1].get_segments()[0].tolist() == [[-0.5, 0.05], [0.5, 0.05]]


def test_ablations_held_early_and_late_stand_one_above_the_other():
    found = {when: {"zero": summaries(["as trained", "f = 1"], 8)} for when in ("all", "late")}
    fig = figures_gates.ablation_plot(found, 0.1)
    assert [ax.get_title() for ax in fig.axes] == ["all", "late"]
    assert [label.get_text() for label in fig.axes[1].get_xticklabels()] == ["as trained", "f = 1"]


def test_places_count_from_three_and_every_model_is_a_line():
    accuracy = {"zero": {"places": torch.tensor([[0.2, 0.8], [0.4, 1.0]]), "zeros": torch.ones(2)}}
    (ax,) = figures_gates.place_curves(accuracy).axes
    first, _, mean, zeros = ax.lines
    assert list(mean.get_xdata()) == [3, 4]
    assert list(mean.get_ydata()) == pytest.approx([0.3, 0.9])
    assert list(first.get_ydata()) == pytest.approx([0.2, 0.8])
    assert list(zeros.get_ydata()) == [1, 1]


def test_probe_curves_stand_in_the_panel_of_their_kind():
    accuracy = {
        f"{state}/{kind}": torch.full((2, 10), value)
        for state in "ch"
        for kind, value in (("known", 0.9), ("held_out", 0.4), ("held_out_zeros", 0.6))
    }
    fig = figures_gates.read_out_curves({"zero": accuracy}, {"known": 0.1, "held_out": 0.11})
    for ax, value, chance in zip(fig.axes, (0.9, 0.4, 0.6), (0.1, 0.11, 0.11), strict=True):
        heights = {round(float(line.get_ydata()[0]), 6) for line in ax.lines}
        assert heights == {value, chance}
