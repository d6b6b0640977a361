"""What the sine chapter measures, and its rows of the report."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.measure.statistics import summarise
from labkit.sine import study as sine
from labkit.sine import training as st

from .test_sine_training import LABEL, PUBLISHED, large, read, torch_layers


def silent() -> st.Parameters:
    """A net that always says 0."""
    return [{n: torch.zeros_like(v) for n, v in c.items()} for c in st.initial_parameters([0])]


# errors


def test_evaluation_times_are_apart_and_in_their_ranges():
    every = torch.cat([sine.TEST_ENDS, sine.DEV_ENDS])
    assert every.sort().values.diff().min() > 1e-3
    assert 0.09 < every.min() < every.max() < st.SEEN
    assert 0.9 < sine.SEEN_ENDS.min() < sine.SEEN_ENDS.max() < st.SEEN
    assert st.SEEN < sine.UNSEEN_ENDS.min() < sine.UNSEEN_ENDS.max() < st.SEEN + 0.9


def test_a_silent_net_errs_by_the_labels_whatever_the_length():
    expected = float((sine.SEEN_ENDS.sin() / 2).square().mean().sqrt())
    by_length = sine.length_errors(silent(), sine.SEEN_ENDS)
    assert by_length.shape == (1, len(sine.LENGTHS))
    assert by_length[0].tolist() == pytest.approx([expected] * len(sine.LENGTHS))
    places = sine.place_errors(silent())
    for k in range(9):
        labels = (sine.TEST_ENDS - 0.01 * (8 - k)).sin() / 2
        assert float(places[0, k]) == pytest.approx(float(labels.square().mean().sqrt()), rel=1e-5)
    at = sine.at_places(silent())
    assert list(at) == ["steps 1 to 8", "3 points", "18 points", "45 points", "90 points"]
    assert float(at["steps 1 to 8"]) == pytest.approx(float(places[0, :8].square().mean().sqrt()))


def test_polynomials_need_no_memory_and_come_near():
    mean, line, cubic = sine.polynomial_errors()
    labels = sine.TEST_ENDS.double().sin() / 2
    assert mean == pytest.approx(float(labels.std(correction=0)), rel=1e-3)
    assert mean > 10 * line > 100 * cubic
    (exact,) = sine.polynomial_errors(degrees=(11,))
    assert exact < 1e-9


def test_the_notes_window_is_read_one_step_before_its_labels():
    parameters = large(dtype=torch.float32)
    outputs = sine.outputs_on_grid(parameters, LABEL.tolist())
    X, _ = st.time_windows(LABEL[-1:].asin().float(), 9)
    assert torch.allclose(outputs, st.unroll(parameters, X)[0][:, 0], atol=1e-5)
    later = st.unroll(parameters, X + 0.01)[0][:, 0]
    assert float((outputs - later).abs().max()) > 1e-3


def test_gradient_norms_are_those_of_each_group():
    parameters = large((1, 2), dtype=torch.float32)
    norms = sine.gradient_norms(parameters)
    assert len(norms) == 6
    for replica in range(2):
        layers = torch_layers(parameters, replica)
        X, y = st.time_windows(sine.DEV_ENDS, 9)
        ((read(layers, X)[:, -1] - y[:, -1]).square().mean() / 2).backward()
        for number, layer in enumerate(layers, start=1):
            for kind, group in (("weight", "weights"), ("bias", "biases")):
                parts = [p.grad.flatten() for n, p in layer.named_parameters() if kind in n]
                expected = float(torch.cat(parts).norm())
                assert float(norms[f"cell {number} {group}"][replica]) == pytest.approx(
                    expected, rel=1e-3
                )


def test_before_training_the_top_biases_have_nearly_all_of_the_gradient():
    norms = sine.gradient_norms(st.initial_parameters(range(3)))
    top = norms.pop("cell 3 biases")
    assert all((value < top / 5).all() for value in norms.values())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_no_weights_get_beyond_what_the_steps_allow(steps):
    X = 50 * torch.ones(1, steps, dtype=torch.float64)
    outputs, _, _ = st.unroll(large(range(30), 400.0), X)
    assert 0.95 < float(outputs[..., -1].abs().max()) / math.tanh(steps) <= 1 + 1e-9


# free runs


def test_a_free_run_reads_its_own_outputs():
    parameters = large()
    warm, _ = sine.truth(5, 1)
    said = sine.free_run(parameters, warm, 4)
    X = warm.expand(2, *warm.shape)
    for k in range(4):
        following = st.unroll(parameters, X)[0][..., -1:]  # from the start, all read anew
        assert torch.allclose(said[..., k : k + 1], following, atol=1e-12)
        X = torch.cat([X, following], dim=-1)


def test_the_two_term_rule_is_exact_and_the_others_are_not():
    warm, true = sine.truth(9, 1_000)
    exact = sine.two_term_run(warm, 1_000, 2 * math.cos(st.VALUE_STEP))
    assert float((exact - true).abs().max()) < 1e-9
    line = sine.two_term_run(warm, 3, 2.0)
    assert torch.allclose(line[:, 2], warm[:, -1] + 3 * (warm[:, -1] - warm[:, -2]))
    assert torch.equal(sine.two_term_run(warm, 3, 1.0, 0.0)[:, 2], warm[:, -1])
    assert sine.fitted_terms(0) == pytest.approx((2 * math.cos(0.1), -1), abs=1e-4)


def test_drift_is_the_first_step_beyond_the_limit_over_all_windows():
    error = torch.zeros(3, 4, 6)
    error[0, 0, 2] = 0.3  # root mean square 0.15
    error[1, :, 5] = 0.11
    assert sine.drift_step(error, 0.1).tolist() == [3, 6, 7]


def test_amplitude_and_phase_of_a_known_wave():
    _, true = sine.truth(9, 140)
    t = sine.FIRST_PHASES.double().unsqueeze(1) + 0.1 * torch.arange(9, 149).double()
    said = torch.stack([0.2 * (t + 0.3).sin(), 0.5 * (t - 1.1).sin()])
    amplitude, phase = sine.amplitude_and_phase(said, true)
    assert amplitude.shape == phase.shape == (2, 2)  # 140 values hold two whole periods
    assert amplitude.flatten().tolist() == pytest.approx([0.4, 0.4, 1, 1])
    assert phase.flatten().tolist() == pytest.approx([0.3, 0.3, 1.1, 1.1])


# the report


def measures(shift: float = 0.0) -> dict:
    """Twelve seeds around each published number, or beside it by a share `shift` of it."""
    steps = PUBLISHED["every_step"]
    columns = {"note/0": steps["initial_prediction"]}
    columns |= dict.fromkeys(("note/100", "note/end"), steps["final_prediction"])
    for start in sine.STARTS:
        columns |= {f"loss/{start}/{o}": PUBLISHED[f"{o}_loss"] for o in sine.OPTIMISERS}
    return {
        f"{name}/{k}": summarise([value * (1 + shift + j / 100) for j in range(-6, 6)])
        for name, column in columns.items()
        for k, value in enumerate(column, start=1)
    }


def rows(measures: dict) -> list:
    return list(sine.rows(measures, {"batches": 1_500}, {"sine": PUBLISHED}).items())


def test_every_published_number_has_a_row_in_its_order():
    tables = rows(measures())
    assert [heading for heading, _ in tables[1:]] == [
        "Losses, ours with Xavier start",
        "Outputs before training",
        "Outputs after training, ours after 100 batches",
        "Outputs after training, ours after 1,500 batches",
    ]
    steps = PUBLISHED["every_step"]
    columns = [PUBLISHED["adam_loss"] + PUBLISHED["sgd_loss"]] * 2
    columns += [steps["initial_prediction"], steps["final_prediction"], steps["final_prediction"]]
    for (_, table), column in zip(tables, columns, strict=True):
        assert [row.published for row in table] == [repr(value) for value in column]
        assert {row.verdict for row in table} == {"inside our seeds"}
    assert tables[0][1][9].what == "SGD, 0.01, loss of batches 81 to 100"


def test_a_lower_loss_is_better_and_an_output_is_neither():
    verdicts = [{row.verdict for row in table} for _, table in rows(measures(-0.5))]
    assert verdicts == [{"ours better"}] * 2 + [{"outside our seeds"}] * 3


def test_a_missing_measure_is_an_error():
    with pytest.raises(KeyError, match="note/end/4"):
        rows({name: value for name, value in measures().items() if name != "note/end/4"})
