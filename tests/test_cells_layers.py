"""Chapter 01: the handwritten layers against torch's, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from labkit.cells import layers
from labkit.cells.layers import GRU, LSTM, SRN

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
shapes = st.fixed_dictionaries(
    {
        name: st.integers(1, most)
        for name, most in {"B": 6, "T": 12, "I": 9, "H": 9, "L": 3, "seed": 2**31}.items()
    }
    | {"bidirectional": st.booleans(), "start_given": st.booleans()}
)
LARGE = {"B": 8, "T": 25, "I": 16, "H": 16, "L": 3, "bidirectional": True, "start_given": True}
property_test = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def draw_input(module, shape, dtype):
    X = torch.randn(shape["B"], shape["T"], shape["I"], dtype=dtype)
    size = (len(module.layers), shape["B"], shape["H"])
    starts = tuple(torch.randn(size, dtype=dtype) for _ in module.state_names)
    state = starts if len(starts) > 1 else starts[0]
    return X, state if shape["start_given"] else None


def assert_equal_to_torch(module, reference, X, state):
    limit = LIMITS[X.dtype]
    differences = layers.largest_differences(module, reference, X, state)
    names, gates = dict(reference.named_parameters()), layers.TORCH_GATES[type(module)]
    parts = {f"gradient/{name}{gate}" for name in names for gate in gates}
    assert parts | {"output", "h_n", "gradient/X", "gradient/h_0"} <= differences.keys()
    too_far = {name: value for name, value in differences.items() if not value <= limit}
    assert not too_far


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", [SRN, LSTM, GRU])
@property_test
@given(shape=shapes)
@example(shape=LARGE | {"seed": 0})
def test_our_weights_written_to_torch_give_equal_results_and_gradients(kind, dtype, shape):
    torch.manual_seed(shape["seed"])
    module = kind(shape["I"], shape["H"], shape["L"], shape["bidirectional"], dtype=dtype)
    X, state = draw_input(module, shape, dtype)
    assert_equal_to_torch(module, layers.to_torch(module), X, state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@property_test
@given(shape=shapes)
def test_torch_weights_read_give_equal_results_and_gradients(kind, bias, shape):
    torch.manual_seed(shape["seed"])
    sizes = {"num_layers": shape["L"], "bidirectional": shape["bidirectional"], "bias": bias}
    reference = kind(shape["I"], shape["H"], batch_first=True, **sizes).double()
    module = layers.from_torch(reference)
    X, state = draw_input(module, shape, torch.float64)
    assert_equal_to_torch(module, reference, X, state)


def test_comparison_sees_a_wrong_chunk_and_a_missing_bias():
    torch.manual_seed(0)
    reference = nn.LSTM(4, 3, batch_first=True).double()
    X = torch.randn(2, 5, 4, dtype=torch.float64)

    swapped = layers.from_torch(reference)
    layer = swapped.layers[0]
    layer.W_o, layer.W_c = layer.W_c, layer.W_o
    assert layers.largest_differences(swapped, reference, X)["output"] > 1e-2

    one_bias = layers.from_torch(reference)
    one_bias.layers[0].b_i.data = reference.bias_ih_l0[:3].detach().unsqueeze(0)
    assert layers.largest_differences(one_bias, reference, X)["output"] > 1e-3


def test_a_wrong_gradient_is_seen_where_the_output_is_right():
    class Detached(layers.LSTMLayer):
        def step(self, x, state):
            h, c = state
            return super().step(x, (h, c.detach()))

    torch.manual_seed(0)
    module = LSTM(4, 3, dtype=torch.float64)
    reference = layers.to_torch(module)
    broken = Detached(4, 3, dtype=torch.float64)
    broken.load_state_dict(module.layers[0].state_dict())
    module.layers[0] = broken
    X = torch.randn(2, 5, 4, dtype=torch.float64)
    differences = layers.largest_differences(module, reference, X)
    assert differences["output"] < 1e-12
    assert differences["gradient/X"] > 1e-3


def test_trace_tells_what_the_layer_computed():
    torch.manual_seed(0)
    module = LSTM(4, 3)
    X = torch.randn(2, 6, 4)
    output, (_, c_n) = module(X)
    trace = module.trace(X)
    assert list(trace) == ["i", "f", "o", "c_tilde", "c", "h"]
    assert all(value.shape == (2, 6, 3) for value in trace.values())
    assert torch.equal(trace["h"], output)
    assert torch.equal(trace["c"][:, -1], c_n[0])
    before = torch.cat([torch.zeros(2, 1, 3), trace["c"][:, :-1]], dim=1)
    torch.testing.assert_close(trace["c"], trace["f"] * before + trace["i"] * trace["c_tilde"])


@pytest.mark.parametrize("kind", [SRN, GRU, LSTM])
def test_gradient_norms_equal_finite_differences(kind):
    torch.manual_seed(0)
    module = kind(4, 3, dtype=torch.float64)
    X = torch.randn(2, 5, 4, dtype=torch.float64)
    readout = torch.randn(3, dtype=torch.float64)
    norms = layers.gradient_norms(module, X, readout)["h"]
    torch.testing.assert_close(norms[:, -1], readout.norm().expand(2))

    # push the hidden state after step 2 in each direction and run the rest
    _, state = module(X[:, :2])
    h, *rest = state if isinstance(state, tuple) else (state,)
    derivative = torch.zeros(2, 3, dtype=torch.float64)
    for unit in range(3):
        ends = []
        for push in (1e-6, -1e-6):
            pushed = h.clone()
            pushed[..., unit] += push
            start = (pushed, *rest) if rest else pushed
            ends.append(module(X[:, 2:], start)[0][:, -1] @ readout)
        derivative[:, unit] = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(norms[:, 1], derivative.norm(dim=1), rtol=1e-6, atol=1e-9)


def test_cell_gradient_without_recurrent_weights_is_the_product_of_forget_gates():
    torch.manual_seed(0)
    module = LSTM(4, 1)
    for gate in "ifoc":
        nn.init.zeros_(getattr(module.layers[0], f"U_{gate}"))
    X = torch.randn(2, 6, 4)
    norms = layers.gradient_norms(module, X, torch.ones(1))["c"]
    kept = module.trace(X)["f"][:, 1:].prod(dim=1).squeeze(1)
    torch.testing.assert_close(norms[:, 0], norms[:, -1] * kept)


def computed() -> nn.LSTM:
    return nn.utils.parametrizations.weight_norm(nn.LSTM(4, 3), "weight_hh_l0")


X, STATE = torch.zeros(2, 5, 4), torch.zeros(1, 2, 3)
WRONG = {  # a wrong shape that broadcasting would hide, or a function that our layers do not have
    "lone state": (lambda: LSTM(4, 3)(X, STATE), "must be h_0 and c_0"),
    "state of one sequence": (
        lambda: LSTM(4, 3)(X, (STATE, STATE[:, :1])),
        r"each \(1, 2, 3\), got \[\(1, 2, 3\), \(1, 1, 3\)\]",
    ),
    "stacked trace": (lambda: LSTM(4, 3, 2).trace(X), "too many values"),
    "projection": (lambda: layers.from_torch(nn.LSTM(4, 3, proj_size=2)), "proj_size"),
    "dropout": (lambda: layers.from_torch(nn.GRU(4, 3, 2, dropout=0.5)), "dropout"),
    "relu": (lambda: layers.from_torch(nn.RNN(4, 3, nonlinearity="relu")), "'tanh'"),
    "computed": (lambda: layers.from_torch(computed()), "weight_hh_l0 is computed"),
    "frozen": (
        lambda: layers.largest_differences(
            layers.LSTM(4, 3),
            nn.LSTM(4, 3, batch_first=True).requires_grad_(False),
            torch.ones(1, 2, 4),
        ),
        "reference has frozen weights",
    ),
}


@pytest.mark.parametrize("call, message", WRONG.values(), ids=WRONG)
def test_what_would_go_wrong_silently_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
