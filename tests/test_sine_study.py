"""The sine's data, and its cells and training against torch's; what the chapter measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from labkit.lab import record
from labkit.sine import evaluation
from labkit.sine import study as sine
from labkit.sine.study import SIZES, SineTraining

PUBLISHED = record.published()["sine"]
LABEL = torch.tensor(PUBLISHED["every_step"]["label"], dtype=torch.float64)
TORCH_NAMES = {"weight_ih_l0": "W", "weight_hh_l0": "U", "bias_ih_l0": "b_W", "bias_hh_l0": "b_U"}
SMALL = {"batches": 6, "batch_size": 4}


def train(dtype: torch.dtype = torch.float64, **fields) -> dict:
    return SineTraining(**fields).train(lambda done, total: None, dtype)


def large(seeds=(0, 1), factor: float = 8.0, dtype: torch.dtype = torch.float64) -> sine.Parameters:
    """Nets with large weights, biases among them, so that their gates move."""
    draw = torch.Generator().manual_seed(99)
    cells = sine.initial_parameters(seeds, "xavier", torch.float64)
    for cell in cells:
        for name, value in cell.items():
            noise = torch.rand(value.shape, generator=draw, dtype=torch.float64) - 0.5
            cell[name] = (factor / 4 * value + noise).to(dtype)
    return cells


def torch_layers(parameters: sine.Parameters, replica: int) -> list[nn.LSTM]:
    """torch's layers with the weights of one net; torch's gates stand in the order i, f, g, o."""
    layers = []
    for cell, inputs, H in zip(parameters, (1, *SIZES[:-1]), SIZES, strict=True):
        layer = nn.LSTM(inputs, H, batch_first=True, dtype=cell["W"].dtype)
        order = torch.arange(4 * H).view(4, H)[[0, 1, 3, 2]].flatten()
        shapes = {name: value.shape for name, value in layer.state_dict().items()}
        state = {t: cell[n][replica][:, order].T.reshape(shapes[t]) for t, n in TORCH_NAMES.items()}
        layer.load_state_dict(state)
        layers.append(layer)
    return layers


def read(layers: list[nn.LSTM], X: Tensor) -> Tensor:
    signal = X.unsqueeze(-1)
    for layer in layers:
        signal = layer(signal)[0]
    return signal.squeeze(-1)


def test_windows_lie_on_the_published_grid_whose_labels_are_sin_t_and_not_its_half():
    assert LABEL.asin().diff().numpy() == pytest.approx(0.01, abs=5e-8)
    assert (2 * LABEL).asin().diff().min() > 0.025
    end = LABEL[-1:].asin()
    X, y = sine.time_windows(end, 9)
    assert (2 * y[0]).numpy() == pytest.approx(LABEL.numpy(), abs=1e-7)
    assert X[0, 1:].numpy() == pytest.approx(LABEL[:-1].asin().numpy(), abs=2e-7)
    assert float(end - X[0, -1]) == pytest.approx(0.01)  # the last label's time is not read


def test_windows_of_values_hold_what_follows_each_value():
    X, y = sine.draw_windows("value", torch.tensor([0.0, 0.25]), 4)
    assert X[1].tolist() == pytest.approx([math.cos(k / 10) / 2 for k in range(4)])
    assert y[:, :-1].tolist() == X[:, 1:].tolist()
    assert float(y[0, -1]) == pytest.approx(math.sin(0.4) / 2)


@pytest.mark.parametrize("T", [1, 5, 13])
def test_no_training_on_time_sees_a_label_beyond_the_range(T):
    X, y = sine.draw_windows("time", torch.tensor([0.0, 1.0]), T)
    assert X[0, 0] == pytest.approx(0, abs=1e-7)
    assert float(y[1, -1]) == pytest.approx(math.sin(sine.SEEN) / 2)


@pytest.mark.parametrize("start", ["gluon", "xavier"])
def test_starts_have_their_bounds_and_zero_biases(start):
    cells = sine.initial_parameters([3], start)
    for cell, inputs, H in zip(cells, (1, 10, 20), SIZES, strict=True):
        for name, rows in (("W", inputs), ("U", H)):
            bound = 0.07 if start == "gluon" else math.sqrt(6 / (rows + H))
            assert cell[name].shape == (1, rows, 4 * H)
            assert bound / 2 < float(cell[name].abs().max()) <= bound
        assert not torch.cat([cell["b_W"], cell["b_U"]]).any()


def test_unrolling_equals_torchs_layers_net_by_net():
    parameters = large()
    X = torch.rand(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs, ends, steps = sine.unroll(parameters, X)
    for replica in range(2):
        expected = read(torch_layers(parameters, replica), X[replica])
        assert torch.allclose(outputs[replica], expected, atol=1e-12)
    h, c, o = steps[-1]
    assert torch.equal(h, o * c.tanh())
    assert torch.equal(h, ends[-1][0])
    shared, _, _ = sine.unroll(parameters, X[0])
    assert torch.allclose(shared[0], outputs[0], atol=1e-12)


@pytest.mark.parametrize("optimiser, lr", [("sgd", 0.5), ("adam", 0.01)])
@pytest.mark.parametrize("loss", ["last", "every"])
def test_training_equals_torchs_own_net_trained_alone(optimiser, lr, loss):
    """Half the mean squared error, torch's own autograd and optimiser, two biases."""
    seeds = [2, 5]
    arrays = train(seeds=seeds, start="xavier", optimiser=optimiser, lr=lr, loss=loss, **SMALL)
    after = sine.parameters_after(arrays, SMALL["batches"])
    for replica, seed in enumerate(seeds):
        layers = torch_layers(sine.initial_parameters(seeds, "xavier", torch.float64), replica)
        weights = [p for layer in layers for p in layer.parameters()]
        step = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser](weights, lr=lr)
        draw = torch.Generator().manual_seed(1_000_003 + seed)
        for k in range(SMALL["batches"]):
            u = torch.rand(SMALL["batch_size"], generator=draw).double()
            t = u.unsqueeze(1) + 0.01 * torch.arange(9)
            error = read(layers, t) - (t + 0.01).sin() / 2
            value = (error if loss == "every" else error[:, -1]).square().mean() / 2
            assert arrays["loss"][replica, k] == pytest.approx(value.item(), rel=1e-6)
            step.zero_grad()
            value.backward()
            step.step()
        X = torch.rand(3, 9, dtype=torch.float64)
        assert torch.allclose(sine.unroll(after, X)[0][replica], read(layers, X), atol=1e-6)


@pytest.mark.parametrize("reads", ["time", "value"])
def test_seeds_trained_together_equal_seeds_trained_alone(reads):
    fields = {
        "reads": reads, "loss": "every", "shortest": 2, "longest": 5, "lr": 0.02, "decay": True,
        "start": "xavier", **SMALL,
    }  # fmt: skip
    together = train(seeds=[1, 4, 6], **fields)
    for replica, seed in enumerate([1, 4, 6]):
        for name, value in train(seeds=[seed], **fields).items():
            assert together[name][replica] == pytest.approx(value[0], abs=1e-12), name


def test_the_first_losses_are_the_published_ones():
    for optimiser, lr in (("adam", 1e-3), ("sgd", 1e-2)):
        arrays = train(torch.float32, seeds=[0], optimiser=optimiser, lr=lr, batches=40)
        means, printed = arrays["loss"].reshape(2, 20).mean(1), PUBLISHED[f"{optimiser}_loss"]
        assert means.tolist() == pytest.approx(printed[:2], rel=0.05)


def test_the_rate_falls_to_zero_along_a_cosine():
    """Of two batches the second is trained at half the rate, so it moves half as far."""
    fields = {"seeds": [0], "optimiser": "sgd", "lr": 0.4, "batches": 2, "snapshots": (1,)}
    falling, constant = (train(decay=decay, **fields) for decay in (True, False))
    moved = [(a["2/2/b_W"] - a["1/2/b_W"]) for a in (falling, constant)]
    assert moved[0] == pytest.approx(moved[1] / 2, rel=1e-9)


def test_snapshots_are_the_parameters_of_a_shorter_training():
    arrays = train(seeds=[3], snapshots=(2, 7), **SMALL)
    short = train(seeds=[3], **{**SMALL, "batches": 2})
    for a, b in zip(sine.parameters_after(arrays, 2), sine.parameters_after(short, 2), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert (arrays["2/0/W"] != arrays["6/0/W"]).any()
    assert "7/0/W" not in arrays


def test_evaluation_times_are_apart_and_in_their_ranges():
    every = torch.cat([evaluation.TEST_ENDS, evaluation.DEV_ENDS])
    assert every.sort().values.diff().min() > 1e-3
    assert 0.09 < every.min() < every.max() < sine.SEEN
    assert 0.9 < evaluation.SEEN_ENDS.min() < evaluation.SEEN_ENDS.max() < sine.SEEN
    assert sine.SEEN < evaluation.UNSEEN_ENDS.min() < evaluation.UNSEEN_ENDS.max() < sine.SEEN + 0.9


def test_a_silent_net_errs_by_the_labels_whatever_the_length():
    silent = [{n: 0 * value for n, value in c.items()} for c in sine.initial_parameters([0])]
    expected = float((evaluation.SEEN_ENDS.sin() / 2).square().mean().sqrt())
    by_length = evaluation.length_errors(silent, evaluation.SEEN_ENDS)
    assert by_length.shape == (1, len(evaluation.LENGTHS))
    assert by_length[0].tolist() == pytest.approx([expected] * len(evaluation.LENGTHS))
    places = evaluation.step_errors(silent)
    for k in range(9):
        labels = (evaluation.TEST_ENDS - 0.01 * (8 - k)).sin() / 2
        assert float(places[0, k]) == pytest.approx(float(labels.square().mean().sqrt()), rel=1e-5)


def test_gradient_norms_are_those_of_each_group():
    parameters = large((1, 2), dtype=torch.float32)
    norms = evaluation.gradient_norms(parameters)
    X, y = sine.time_windows(evaluation.DEV_ENDS, 9)
    for replica in range(2):
        layers = torch_layers(parameters, replica)
        ((read(layers, X)[:, -1] - y[:, -1]).square().mean() / 2).backward()
        for number, layer in enumerate(layers, start=1):
            for kind, group in (("weight", "weights"), ("bias", "biases")):
                parts = [p.grad.flatten() for n, p in layer.named_parameters() if kind in n]
                norm = norms[f"cell {number} {group}"][replica]
                assert torch.allclose(norm, torch.cat(parts).norm(), rtol=1e-3)


def test_a_free_run_reads_its_own_outputs():
    parameters = large()
    warm = sine.wave(evaluation.FIRST_PHASES.double(), 5)
    said = evaluation.free_run(parameters, warm, 4)
    X = warm.expand(2, *warm.shape)
    for k in range(4):
        following = sine.unroll(parameters, X)[0][..., -1:]  # from the start, all read anew
        assert torch.allclose(said[..., k : k + 1], following, atol=1e-12)
        X = torch.cat([X, following], dim=-1)


def test_the_two_term_rule_is_exact_and_the_others_are_not():
    values = sine.wave(evaluation.FIRST_PHASES.double(), 1_009)
    warm, true = values[:, :9], values[:, 9:]
    exact = evaluation.two_term_run(warm, 1_000, 2 * math.cos(sine.VALUE_STEP))
    assert float((exact - true).abs().max()) < 1e-9
    line = evaluation.two_term_run(warm, 3, 2.0)
    assert torch.allclose(line[:, 2], warm[:, -1] + 3 * (warm[:, -1] - warm[:, -2]))
    assert torch.equal(evaluation.two_term_run(warm, 3, 1.0, 0.0)[:, 2], warm[:, -1])


def test_drift_is_the_first_step_whose_error_over_all_windows_is_beyond_the_limit():
    errors = torch.zeros(3, 4, 6)
    errors[0, 0, 2] = 0.15  # root mean square 0.075
    errors[1, :, 5] = 0.06
    errors[2, 0, 0] = 0.09  # 0.045
    assert evaluation.first_step(
        evaluation.root_mean_square(errors) > evaluation.DRIFTED
    ).tolist() == [3, 6, 7]


def test_a_plateau_ends_with_the_block_whose_mean_is_below_the_limit():
    loss = torch.ones(2, 60)
    loss[0, 30:] = 0.0  # of batches 21 to 40 ten are 0
    assert evaluation.plateau(loss, 0.55).tolist() == [40, 61]


def test_a_normalised_cell_is_that_of_the_paper():
    """Against torch's own batch norm: input and recurrent part apart, the state for the output."""
    (cell,) = sine.initial_parameters([1], "xavier", torch.float64, sizes=(3,), norm=True)
    assert all((cell[name] == 0.1).all() for name in ("gain_W", "gain_U", "gain_c"))
    cell |= {name: torch.rand_like(v) for name, v in cell.items() if name not in "WU"}
    x, h, c = (torch.rand(1, n, 8, dtype=torch.float64) for n in (1, 3, 3))

    def norm(v: Tensor, gain: Tensor) -> Tensor:
        return nn.functional.batch_norm(v, None, None, gain.flatten(), None, training=True)

    z = norm(x[0].T @ cell["W"][0], cell["gain_W"]) + norm(h[0].T @ cell["U"][0], cell["gain_U"])
    i, f, o, g = (z + cell["b_W"][0] + cell["b_U"][0]).chunk(4, dim=1)
    new = f.sigmoid() * c[0].T + i.sigmoid() * g.tanh()
    said = o.sigmoid() * (norm(new, cell["gain_c"]) + cell["b_c"][0]).tanh()
    ours = sine.step(cell, x, h, c)
    for value, expected in zip(ours, (said, new, o.sigmoid()), strict=True):
        assert torch.allclose(value[0].T, expected, atol=1e-12)


def test_a_trained_normalised_net_answers_for_each_window_alone():
    arrays = train(torch.float32, seeds=[0, 1], norm=True, lr=0.05, **SMALL)
    net = sine.parameters_after(arrays, SMALL["batches"])
    assert (net[0]["gain_W"] != 0.1).all()
    each = [evaluation.step_errors(net, evaluation.TEST_ENDS[k : k + 1]) for k in (3, 70)]
    both = evaluation.step_errors(net, evaluation.TEST_ENDS[[3, 70]])
    assert torch.allclose(both**2, (each[0] ** 2 + each[1] ** 2) / 2, rtol=1e-4)


def test_relu_stands_in_all_cells_but_the_top_one():
    cells = sine.initial_parameters([0, 1], "xavier", torch.float64, sizes=(4, 5, 1))
    cells = [{name: value.abs() for name, value in cell.items()} for cell in cells]
    outputs, ends, _ = sine.unroll(cells, 40 * torch.ones(1, 9, dtype=torch.float64), relu=True)
    assert min(ends[0][0].min(), ends[1][0].min()) > 1 >= outputs.abs().max()
