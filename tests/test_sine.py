"""The sine chapter: data against the published grid, stacked cells, training, what is measured."""

from __future__ import annotations

import math
import tomllib

import pytest
import torch
from torch import Tensor, nn

from labkit.lab import environment, sweep
from labkit.measure.statistics import summarise
from labkit.sine.study import Condition, judge
from labkit.sine import study as sine
from labkit.sine import training as st
from labkit.sine.training import SIZES, TrainSpec

PUBLISHED = tomllib.loads((environment.DATA / "published.toml").read_text("utf-8"))["sine"]
LABEL = torch.tensor(PUBLISHED["every_step"]["label"], dtype=torch.float64)
TORCH_NAMES = {"weight_ih_l0": "W", "weight_hh_l0": "U", "bias_ih_l0": "b_W", "bias_hh_l0": "b_U"}
SMALL = {"batches": 6, "batch_size": 4}


def large(seeds=(0, 1), factor: float = 8.0) -> st.Parameters:
    """Nets with large weights, biases among them, so that their gates move; float64."""
    generator = torch.Generator().manual_seed(99)
    cells = st.initial_parameters(seeds, "xavier", torch.float64)
    for cell in cells:
        for name, value in cell.items():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64) - 0.5
            cell[name] = factor / 4 * value + noise
    return cells


def torch_layers(parameters: st.Parameters, replica: int) -> list[nn.LSTM]:
    """torch's layers with the weights of one net; torch's gates stand in the order i, f, g, o."""
    layers = []
    for cell, inputs, H in zip(parameters, (1, *SIZES[:-1]), SIZES, strict=True):
        layer = nn.LSTM(inputs, H, batch_first=True, dtype=torch.float64)
        order = torch.arange(4 * H).view(4, H)[[0, 1, 3, 2]].flatten()
        state = {t: cell[name][replica][:, order].T for t, name in TORCH_NAMES.items()}
        state = {t: value if "weight" in t else value[:, 0] for t, value in state.items()}
        layer.load_state_dict(state)
        layers.append(layer)
    return layers


def read(layers: list[nn.LSTM], X: Tensor) -> Tensor:
    signal = X.unsqueeze(-1)
    for layer in layers:
        signal = layer(signal)[0]
    return signal.squeeze(-1)


# data


def test_the_published_labels_are_sin_t_on_the_grid_and_not_its_half():
    assert LABEL.asin().diff().numpy() == pytest.approx(0.01, abs=5e-8)
    assert (2 * LABEL).asin().diff().min() > 0.025


def test_windows_lie_on_the_published_grid():
    end = LABEL[-1:].asin()
    X, y = st.time_windows(end, 9)
    assert (2 * y[0]).numpy() == pytest.approx(LABEL.numpy(), abs=1e-7)
    assert X[0, 1:].numpy() == pytest.approx(LABEL[:-1].asin().numpy(), abs=2e-7)
    assert float(end - X[0, -1]) == pytest.approx(0.01)  # the last label's time is not read


def test_value_windows_hold_what_follows_each_value():
    X, y = st.value_windows(torch.tensor([0.0, 1.0]), 4, step=0.5)
    assert X[1].tolist() == pytest.approx([math.sin(1 + k / 2) / 2 for k in range(4)])
    assert y[:, :-1].tolist() == X[:, 1:].tolist()
    assert float(y[0, -1]) == pytest.approx(math.sin(2.0) / 2)


@pytest.mark.parametrize("T", [1, 5, 9, 13])
def test_no_training_on_time_sees_a_label_beyond_the_range(T):
    X, y = st.batch(TrainSpec(), torch.tensor([0.0, 1.0]), T)
    assert X[0, 0] == pytest.approx(0, abs=1e-7)
    assert float(y[1, -1]) == pytest.approx(math.sin(st.SEEN) / 2)
    if T == 9:
        assert float(X[1, 0]) == pytest.approx(1.0)  # u in [0, 1), as the source draws it


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"reads": "both"}, "TrainSpec.reads must be one of time, value; got 'both'"),
        ({"loss": "first"}, "TrainSpec.loss must be one of last, every; got 'first'"),
        ({"start": "zero"}, "TrainSpec.start must be one of gluon, xavier"),
        ({"optimiser": "rmsprop"}, "TrainSpec.optimiser must be one of adam, sgd"),
        ({"batches": 0}, "TrainSpec.batches must be a whole number from 1, got 0"),
        ({"shortest": 10}, r"shortest \(10\) is above longest \(9\)"),
        ({"longest": 109}, "TrainSpec.longest must be below 109 where time is read"),
        ({"lr": 0}, "TrainSpec.lr must be positive, got 0"),
    ],
)
def test_a_training_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainSpec(**wrong)


# the stacked cells


@pytest.mark.parametrize("start", ["gluon", "xavier"])
def test_starts_have_their_bounds_and_zero_biases(start):
    for cell, inputs, H in zip(st.initial_parameters([3], start), (1, 10, 20), SIZES, strict=True):
        for name, rows in (("W", inputs), ("U", H)):
            bound = 0.07 if start == "gluon" else math.sqrt(6 / (rows + H))
            assert cell[name].shape == (1, rows, 4 * H)
            assert float(cell[name].abs().max()) <= bound
            if cell[name].numel() >= 40:
                assert float(cell[name].abs().max()) > 0.9 * bound
        assert not cell["b_W"].any()
        assert not cell["b_U"].any()


def test_a_seed_means_the_same_net_whoever_stands_beside_it():
    together, alone = st.initial_parameters([4, 7]), st.initial_parameters([7])
    for a, b in zip(together, alone, strict=True):
        assert all(torch.equal(a[name][1:], b[name]) for name in a)
        assert not torch.equal(a["W"][0], a["W"][1])


def test_the_start_of_gluon_says_as_little_as_the_published_one():
    """The published outputs before training lie among ours, those of a Xavier start far above."""
    found = sine.outputs_on_grid(st.initial_parameters(range(40)), LABEL.tolist()).abs()
    for k, value in enumerate(PUBLISHED["every_step"]["initial_prediction"]):
        assert found[:, k].min() < value < found[:, k].max(), k
    xavier = sine.outputs_on_grid(st.initial_parameters(range(40), "xavier"), LABEL.tolist())
    assert float(xavier[:, -1].abs().median()) > 100 * float(found[:, -1].median())


def test_the_notes_window_is_read_one_step_before_its_labels():
    parameters = [{n: v.float() for n, v in cell.items()} for cell in large()]
    found = sine.outputs_on_grid(parameters, LABEL.tolist())
    X, _ = st.time_windows(LABEL[-1:].asin().float(), 9)
    assert torch.allclose(found, st.unroll(parameters, X)[0][:, 0], atol=1e-5)
    later = st.unroll(parameters, X + 0.01)[0][:, 0]
    assert float((found - later).abs().max()) > 1e-3


def test_unrolling_equals_torchs_layers_net_by_net():
    parameters = large()
    X = torch.rand(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs, _, _ = st.unroll(parameters, X)
    assert outputs.shape == (2, 3, 7)
    for replica in range(2):
        expected = read(torch_layers(parameters, replica), X[replica])
        assert torch.allclose(outputs[replica], expected, atol=1e-12)
    shared, _, _ = st.unroll(parameters, X[0])
    assert torch.allclose(shared[0], outputs[0], atol=1e-12)


def test_reading_on_from_a_state_equals_reading_at_once():
    parameters, X = large(), torch.rand(3, 8, dtype=torch.float64)
    whole, _, steps = st.unroll(parameters, X)
    first, state, _ = st.unroll(parameters, X[:, :5])
    second, _, _ = st.unroll(parameters, X[:, 5:], state)
    assert torch.allclose(torch.cat([first, second], -1), whole, atol=1e-13)
    h, c, o = steps[-1]
    assert torch.equal(h, o * c.tanh())
    assert torch.equal(h.squeeze(-1), whole[..., -1])


@pytest.mark.parametrize("shape", [(9,), (3, 2, 9), (2, 3, 9, 1)])
def test_windows_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"X must have shape \(B, T\) or \(R=2, B, T\)"):
        st.unroll(large(), torch.zeros(shape, dtype=torch.float64))


# training


@pytest.mark.parametrize("optimiser, lr", [("sgd", 0.5), ("adam", 0.01)])
@pytest.mark.parametrize("loss", ["last", "every"])
def test_training_equals_torchs_own_net_trained_alone(optimiser, lr, loss):
    """Half the mean squared error, torch's own autograd and optimiser, two biases."""
    spec = TrainSpec(start="xavier", optimiser=optimiser, lr=lr, loss=loss, **SMALL)
    seeds = [2, 5]
    found = st.train(spec, seeds, dtype=torch.float64)
    after = st.parameters_after(found, spec.batches)
    for replica, seed in enumerate(seeds):
        layers = torch_layers(st.initial_parameters(seeds, "xavier", torch.float64), replica)
        weights = [p for layer in layers for p in layer.parameters()]
        step = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser](weights, lr=lr)
        generator = torch.Generator().manual_seed(1_000_003 + seed)
        for k in range(spec.batches):
            u = torch.rand(spec.batch_size, generator=generator).double()
            t = u.unsqueeze(1) + 0.01 * torch.arange(9)
            error = read(layers, t) - (t + 0.01).sin() / 2
            value = (error if loss == "every" else error[:, -1]).square().mean() / 2
            assert float(found["loss"][replica, k]) == pytest.approx(
                float(value.detach()), rel=1e-6
            )
            step.zero_grad()
            value.backward()
            step.step()
        X = torch.rand(3, 9, dtype=torch.float64)
        assert torch.allclose(st.unroll(after, X)[0][replica], read(layers, X), atol=1e-6)


@pytest.mark.parametrize("reads", ["time", "value"])
def test_seeds_trained_together_equal_seeds_trained_alone(reads):
    spec = TrainSpec(
        reads=reads, loss="every", shortest=2, longest=5, start="xavier", lr=0.02, decay=True,
        **SMALL,
    )  # fmt: skip
    together = st.train(spec, [1, 4, 6], dtype=torch.float64)
    for replica, seed in enumerate([1, 4, 6]):
        alone = st.train(spec, [seed], dtype=torch.float64)
        for name, value in together.items():
            assert torch.allclose(value[replica], alone[name][0], atol=1e-12), name


def test_the_first_losses_are_the_published_ones():
    for optimiser, lr in (("adam", 1e-3), ("sgd", 1e-2)):
        spec = TrainSpec(optimiser=optimiser, lr=lr, batches=40)
        (found,) = sine.block_means(st.train(spec, [0])["loss"])
        assert found.tolist() == pytest.approx(PUBLISHED[f"{optimiser}_loss"][:2], rel=0.05)


def test_lengths_are_drawn_from_the_whole_range(monkeypatch):
    drawn = []
    original = st.batch
    monkeypatch.setattr(st, "batch", lambda spec, u, T: drawn.append(T) or original(spec, u, T))
    st.train(TrainSpec(shortest=2, longest=4, batches=30, batch_size=1), [0])
    assert set(drawn) == {2, 3, 4}


def test_the_rate_falls_to_zero_along_a_cosine(monkeypatch):
    rates = []
    original = torch.optim.SGD.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    st.train(TrainSpec(optimiser="sgd", lr=0.4, decay=True, batches=4, batch_size=1), [0])
    assert rates == pytest.approx([0.4 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)])


def test_snapshots_are_the_parameters_of_a_shorter_training():
    found = st.train(TrainSpec(**SMALL), [3], snapshots=[2])
    short = st.train(TrainSpec(**{**SMALL, "batches": 2}), [3])
    for a, b in zip(st.parameters_after(found, 2), st.parameters_after(short, 2), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(found["2/0/W"], found["6/0/W"])
    with pytest.raises(ValueError, match=r"nothing was kept after 5 batches, only after \[2, 6\]"):
        st.parameters_after(found, 5)


def test_trainings_come_back_by_name_and_in_the_order_of_their_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setenv("LABKIT_WORKERS", "1")
    monkeypatch.setenv("LABKIT_PROGRESS", str(tmp_path / "progress"))
    specs = {"a": TrainSpec(**SMALL), "b": TrainSpec(optimiser="sgd", **SMALL)}
    found = sine.trained("test", specs, [5, 6, 7], chunk=2, snapshots=[2, 600])
    assert set(found) == {"a", "b"}
    assert len(list((tmp_path / "trainings").iterdir())) == 4
    for name, spec in specs.items():
        expected = st.train(spec, [7])
        assert torch.allclose(found[name]["loss"][2:], expected["loss"], rtol=1e-5)
        assert "2/0/W" in found[name]

    def fail(task, progress):
        raise AssertionError("what is kept must not be trained again")

    fail.__module__, fail.__qualname__ = st.train_task.__module__, st.train_task.__qualname__
    monkeypatch.setattr(st, "train_task", fail)
    again = sine.trained("other name", specs, [5, 6, 7], chunk=2, snapshots=[2])
    assert torch.equal(again["b"]["loss"], found["b"]["loss"])
    assert sweep is sine.sweep


def test_tasks_need_seeds():
    with pytest.raises(ValueError, match="needs at least one seed"):
        st.training_tasks("none", TrainSpec(), [])


# errors


def silent() -> st.Parameters:
    """A net that always says 0."""
    return [{n: torch.zeros_like(v) for n, v in c.items()} for c in st.initial_parameters([0])]


def test_evaluation_times_are_apart_and_in_their_ranges():
    every = torch.cat([sine.TEST_ENDS, sine.DEV_ENDS])
    assert every.sort().values.diff().min() > 1e-3
    assert 0.09 < every.min() < every.max() < st.SEEN
    assert 0.9 < sine.SEEN_ENDS.min() < sine.SEEN_ENDS.max() < st.SEEN
    assert st.SEEN < sine.UNSEEN_ENDS.min() < sine.UNSEEN_ENDS.max() < st.SEEN + 0.9


def test_a_silent_net_errs_by_the_labels_whatever_the_length():
    expected = float((sine.SEEN_ENDS.sin() / 2).square().mean().sqrt())
    found = sine.length_errors(silent(), sine.SEEN_ENDS)
    assert found.shape == (1, len(sine.LENGTHS))
    assert found[0].tolist() == pytest.approx([expected] * len(sine.LENGTHS))
    places = sine.place_errors(silent())
    for k in range(9):
        labels = (sine.TEST_ENDS - 0.01 * (8 - k)).sin() / 2
        assert float(places[0, k]) == pytest.approx(float(labels.square().mean().sqrt()), rel=1e-5)
    at = sine.at_places(silent())
    assert list(at) == ["steps 1 to 8", "3 points", "18 points", "45 points", "90 points"]
    assert float(at["steps 1 to 8"]) == pytest.approx(float(places[0, :8].square().mean().sqrt()))


def test_windows_that_begin_below_zero_are_refused():
    with pytest.raises(
        ValueError, match=r"a window of 90 points that ends at 0\.095 begins below 0"
    ):
        sine.length_errors(silent(), sine.TEST_ENDS)


def test_polynomials_need_no_memory_and_come_near():
    mean, line, cubic = sine.polynomial_errors()
    labels = sine.TEST_ENDS.double().sin() / 2
    assert mean == pytest.approx(float(labels.std(correction=0)), rel=1e-3)
    assert mean > 10 * line > 100 * cubic
    (exact,) = sine.polynomial_errors(degrees=(11,))
    assert exact < 1e-9


def test_gradient_norms_are_those_of_each_group():
    parameters = large((1, 2))
    found = sine.gradient_norms(parameters)
    assert len(found) == 6
    for replica in range(2):
        layers = torch_layers(parameters, replica)
        X, y = st.time_windows(sine.DEV_ENDS.double(), 9)
        ((read(layers, X)[:, -1] - y[:, -1]).square().mean() / 2).backward()
        for number, layer in enumerate(layers, start=1):
            for group in ("weight", "bias"):
                parts = [p.grad.flatten() for n, p in layer.named_parameters() if group in n]
                name = f"cell {number} {'weights' if group == 'weight' else 'biases'}"
                expected = float(torch.cat(parts).norm())
                assert float(found[name][replica]) == pytest.approx(expected, rel=1e-4)


def test_before_training_the_top_biases_have_nearly_all_of_the_gradient():
    norms = sine.gradient_norms(st.initial_parameters(range(3)))
    top = norms.pop("cell 3 biases")
    assert all((value < top / 5).all() for value in norms.values())


# the output gate


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_no_weights_get_beyond_what_the_steps_allow(steps):
    X = 50 * torch.ones(1, steps, dtype=torch.float64)
    outputs, _, _ = st.unroll(large(range(30), 400.0), X)
    assert float(outputs[..., -1].abs().max()) <= sine.reach(steps) + 1e-9
    assert float(outputs[..., -1].abs().max()) > 0.95 * sine.reach(steps)
    assert sine.needed_gate(0.5, steps) == pytest.approx(0.5 / math.tanh(steps))


def test_gate_and_squashed_cell_state_make_the_output():
    parameters = [{n: v.float() for n, v in cell.items()} for cell in large()]
    gate, squashed = sine.top_gates(parameters, sine.TEST_ENDS)
    said = sine.errors(parameters, sine.TEST_ENDS, 9)[..., -1] + sine.TEST_ENDS.sin() / 2
    assert torch.allclose(gate * squashed, said, atol=1e-6)
    assert (gate > 0).all()
    assert (gate < 1).all()


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
    slope = warm[:, -1] - warm[:, -2]
    assert torch.allclose(line[:, 2], warm[:, -1] + 3 * slope)
    repeat = sine.two_term_run(warm, 3, 1.0, 0.0)
    assert torch.equal(repeat[:, 2], warm[:, -1])
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


# verdicts


def measure(*values: float) -> dict:
    return summarise(list(values) if len(values) > 1 else [values[0]] * 8)


ABOVE = Condition("a", "m/a", measure(*(1 + k / 100 for k in range(8))), "above", 0.5)
BELOW = ABOVE._replace(label="b", name="m/b", side="below")
SPANS = ABOVE._replace(label="c", name="m/c", limit=1.03)
FEW = ABOVE._replace(measure=measure(1.0, 2.0))


@pytest.mark.parametrize(
    "conditions, holds, verdict",
    [
        ([ABOVE], True, "holds"),
        ([BELOW], False, "does not hold"),
        ([ABOVE, BELOW], False, "holds only in part: a"),
        ([ABOVE, SPANS], None, "undecided: an interval spans its limit"),
        ([BELOW, SPANS], False, "does not hold"),
        ([ABOVE, FEW], None, "undecided: 2 seeds are too few"),
    ],
)
def test_verdicts_follow_the_intervals(conditions, holds, verdict):
    found = judge("id", "claim", "what", conditions)
    assert (found["holds"], found["verdict"]) == (holds, verdict)
    assert found["evidence"] == [c.name for c in conditions]
    assert found["reason"].startswith(f"what: {conditions[0].label} 1.04 [1.02, 1.05]")


def test_a_reason_names_the_limits_and_the_seeds():
    found = judge("id", "claim", "what", [ABOVE, BELOW])
    assert found["reason"].endswith("; needs above 0.5 or below 0.5, over 8 seeds")


def test_block_means_leave_out_what_fills_no_block():
    found = sine.block_means(torch.arange(10.0).view(1, 10), 4)
    assert found.tolist() == [[1.5, 5.5]]


def test_columns_are_entered_under_their_names():
    measures: dict = {}
    sine.enter(measures, "x", torch.tensor([[1.0, 2.0], [3.0, 4.0]]), ("a", 2), [7, 8])
    assert measures["x/a"]["raw"] == [1, 3]
    assert measures["x/2"]["seeds"] == [7, 8]
    assert sine.ratios(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 3.0]), [0, 1])["raw"] == [2, 3]
