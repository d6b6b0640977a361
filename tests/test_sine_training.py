"""The sine's data against the published grid, the stacked cells against torch's, training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from labkit.lab import notebooks, record, settings
from labkit.lab.machine import NOTEBOOKS
from labkit.sine import study as sine
from labkit.sine import training as st
from labkit.sine.training import SIZES, SineTraining

PUBLISHED = record.published()["sine"]
LABEL = torch.tensor(PUBLISHED["every_step"]["label"], dtype=torch.float64)
TORCH_NAMES = {"weight_ih_l0": "W", "weight_hh_l0": "U", "bias_ih_l0": "b_W", "bias_hh_l0": "b_U"}
SMALL = {"batches": 6, "batch_size": 4}


def no_progress(done: int, total: int) -> None:
    pass


def train(dtype: torch.dtype = torch.float64, **fields) -> dict:
    return SineTraining(**fields).train(no_progress, dtype)


def large(seeds=(0, 1), factor: float = 8.0, dtype: torch.dtype = torch.float64) -> st.Parameters:
    """Nets with large weights, biases among them, so that their gates move."""
    draw = torch.Generator().manual_seed(99)
    cells = st.initial_parameters(seeds, "xavier", torch.float64)
    for cell in cells:
        for name, value in cell.items():
            noise = torch.rand(value.shape, generator=draw, dtype=torch.float64) - 0.5
            cell[name] = (factor / 4 * value + noise).to(dtype)
    return cells


def torch_layers(parameters: st.Parameters, replica: int) -> list[nn.LSTM]:
    """torch's layers with the weights of one net; torch's gates stand in the order i, f, g, o."""
    layers = []
    for cell, inputs, H in zip(parameters, (1, *SIZES[:-1]), SIZES, strict=True):
        layer = nn.LSTM(inputs, H, batch_first=True, dtype=cell["W"].dtype)
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


def test_windows_of_values_hold_what_follows_each_value():
    X, y = st.draw_windows("value", torch.tensor([0.0, 0.25]), 4)
    assert X[1].tolist() == pytest.approx([math.cos(k / 10) / 2 for k in range(4)])
    assert y[:, :-1].tolist() == X[:, 1:].tolist()
    assert float(y[0, -1]) == pytest.approx(math.sin(0.4) / 2)


@pytest.mark.parametrize("T", [1, 5, 13])
def test_no_training_on_time_sees_a_label_beyond_the_range(T):
    X, y = st.draw_windows("time", torch.tensor([0.0, 1.0]), T)
    assert X[0, 0] == pytest.approx(0, abs=1e-7)
    assert float(y[1, -1]) == pytest.approx(math.sin(st.SEEN) / 2)


# settings


@pytest.mark.parametrize(
    "given, message",
    [
        ("batches=0", "parameter 'batches': Input should be greater than or equal to 100"),
        ("contrast_batches=20", "parameter 'contrast_batches'.* 100, got 20 from --set"),
        ("contrast_batches=40", "parameter 'contrast_batches'"),
        ("seed=-1", "parameter 'seed'"),
        ("num_seeds=1001", "parameter 'num_seeds'"),
        ("sgd_rates=[]", "parameter 'sgd_rates'"),
        ("adam_rates=[0.1, -1.0]", r"parameter 'adam_rates\.1'"),
        ("free_steps=62", "parameter 'free_steps'"),
        ("scan_batches=0", "parameter 'scan_batches'"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(given, message):
    cells = notebooks.read_notebook(NOTEBOOKS / "06_sine_forecast.ipynb").cells
    settings.resolve("06_sine_forecast", cells, "cpu")
    with pytest.raises(settings.SettingsError, match=message):
        settings.resolve("06_sine_forecast", cells, "quick", [given])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"loss": "first"}, "loss\n"),
        ({"batches": 0}, "batches\n"),
        ({"seeds": []}, "seeds\n"),
        ({"shortest": 10}, r"shortest \(10\) is above longest \(9\)"),
        ({"longest": 109}, "longest must be below 109 where time is read"),
    ],
)
def test_a_training_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SineTraining(**{"seeds": [0], **wrong})


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


def test_the_start_of_gluon_says_as_little_as_the_published_one():
    """The published outputs before training lie among ours, those of a Xavier start far above."""
    gluon = sine.outputs_on_grid(st.initial_parameters(range(40)), LABEL.tolist()).abs()
    for k, value in enumerate(PUBLISHED["every_step"]["initial_prediction"]):
        assert gluon[:, k].min() < value < gluon[:, k].max(), k
    xavier = sine.outputs_on_grid(st.initial_parameters(range(40), "xavier"), LABEL.tolist())
    assert float(xavier[:, -1].abs().median()) > 100 * float(gluon[:, -1].median())


def test_unrolling_equals_torchs_layers_net_by_net_in_outputs_and_gradients():
    parameters = large()
    X = torch.rand(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cells = [{name: v.clone().requires_grad_() for name, v in c.items()} for c in parameters]
    outputs, ends, steps = st.unroll(cells, X)
    assert outputs.shape == (2, 3, 7)
    outputs.square().sum().backward()
    for replica in range(2):
        layers = torch_layers(parameters, replica)
        expected = read(layers, X[replica])
        assert torch.allclose(outputs[replica], expected, atol=1e-12)
        expected.square().sum().backward()
        for cell, layer in zip(cells, layers, strict=True):
            H = layer.hidden_size
            order = torch.arange(4 * H).view(4, H)[[0, 1, 3, 2]].flatten()
            gradient = cell["W"].grad[replica][:, order].T
            assert torch.allclose(gradient, layer.weight_ih_l0.grad, atol=1e-10)
    h, c, o = steps[-1]
    assert torch.equal(h, o * c.tanh())
    assert torch.equal(h, ends[-1][0])
    shared, _, _ = st.unroll(parameters, X[0])
    assert torch.allclose(shared[0], outputs[0], atol=1e-12)


@pytest.mark.parametrize("shape", [(9,), (3, 2, 9), (2, 3, 9, 1)])
def test_windows_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"X must have shape \(B, T\) or \(R=2, B, T\)"):
        st.unroll(large(), torch.zeros(shape, dtype=torch.float64))


# training


@pytest.mark.parametrize("optimiser, lr", [("sgd", 0.5), ("adam", 0.01)])
@pytest.mark.parametrize("loss", ["last", "every"])
def test_training_equals_torchs_own_net_trained_alone(optimiser, lr, loss):
    """Half the mean squared error, torch's own autograd and optimiser, two biases."""
    seeds = [2, 5]
    arrays = train(seeds=seeds, start="xavier", optimiser=optimiser, lr=lr, loss=loss, **SMALL)
    after = st.parameters_after(arrays, SMALL["batches"])
    for replica, seed in enumerate(seeds):
        layers = torch_layers(st.initial_parameters(seeds, "xavier", torch.float64), replica)
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
        assert torch.allclose(st.unroll(after, X)[0][replica], read(layers, X), atol=1e-6)


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
        (blocks,) = sine.block_means(torch.from_numpy(arrays["loss"]))
        assert blocks.tolist() == pytest.approx(PUBLISHED[f"{optimiser}_loss"][:2], rel=0.05)


def test_the_rate_falls_to_zero_along_a_cosine():
    """Of two batches the second is trained at half the rate, so it moves half as far."""
    fields = {"seeds": [0], "optimiser": "sgd", "lr": 0.4, "batches": 2, "snapshots": (1,)}
    falling, constant = (train(decay=decay, **fields) for decay in (True, False))
    moved = [(a["2/2/b_W"] - a["1/2/b_W"]) for a in (falling, constant)]
    assert moved[0] == pytest.approx(moved[1] / 2, rel=1e-9)


def test_snapshots_are_the_parameters_of_a_shorter_training():
    arrays = train(seeds=[3], snapshots=(2, 7), **SMALL)
    short = train(seeds=[3], **{**SMALL, "batches": 2})
    for a, b in zip(st.parameters_after(arrays, 2), st.parameters_after(short, 2), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert (arrays["2/0/W"] != arrays["6/0/W"]).any()
    assert "7/0/W" not in arrays
