"""Chapter 01: the handwritten layers against torch's, in values and gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from labkit.cells import layers, parity
from labkit.cells.layers import GRU, LSTM, SRN

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
shapes = st.fixed_dictionaries(
    {
        "B": st.integers(1, 6),
        "T": st.integers(1, 12),
        "I": st.integers(1, 9),
        "H": st.integers(1, 9),
        "L": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "start_given": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
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
    differences = parity.largest_differences(module, reference, X, state)
    names = {name for name, _ in reference.named_parameters()}
    assert {f"gradient/{name}" for name in names} | {"output", "h_n"} <= differences.keys()
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
    assert_equal_to_torch(module, parity.to_torch(module), X, state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@property_test
@given(shape=shapes)
def test_torch_weights_read_give_equal_results_and_gradients(kind, bias, shape):
    torch.manual_seed(shape["seed"])
    sizes = {"num_layers": shape["L"], "bidirectional": shape["bidirectional"], "bias": bias}
    reference = kind(shape["I"], shape["H"], batch_first=True, **sizes).double()
    module = parity.from_torch(reference)
    X, state = draw_input(module, shape, torch.float64)
    assert_equal_to_torch(module, reference, X, state)


def test_comparison_sees_a_wrong_chunk_and_a_missing_bias():
    torch.manual_seed(0)
    reference = nn.LSTM(4, 3, batch_first=True).double()
    X = torch.randn(2, 5, 4, dtype=torch.float64)

    swapped = parity.from_torch(reference)
    layer = swapped.layers[0]
    swapped.set_weights({"W_o": layer.W_c.detach().clone(), "W_c": layer.W_o.detach().clone()})
    assert parity.largest_differences(swapped, reference, X)["output"] > 1e-2

    one_bias = parity.from_torch(reference)
    one_bias.set_weights({"b_i": reference.bias_ih_l0[:3].detach().unsqueeze(0)})
    assert parity.largest_differences(one_bias, reference, X)["output"] > 1e-3


def test_a_wrong_gradient_is_seen_where_the_output_is_right():
    class Detached(layers.LSTMLayer):
        def step(self, x, state):
            h, c = state
            return super().step(x, (h, c.detach()))

    torch.manual_seed(0)
    module = LSTM(4, 3, dtype=torch.float64)
    reference = parity.to_torch(module)
    broken = Detached(4, 3, torch.float64)
    broken.load_state_dict(module.layers[0].state_dict())
    module.layers[0] = broken
    X = torch.randn(2, 5, 4, dtype=torch.float64)
    differences = parity.largest_differences(module, reference, X)
    assert differences["output"] < 1e-12
    assert differences["gradient/X"] > 1e-3


def test_published_toy_value():
    tables = {"W": [[0.1, 0.2], [0.1, 0.2]], "U": [[0.0, 0.1], [0.1, 0.0]], "b": [[0.1, 0.1]]}
    weights = {
        f"{name}_{gate}": torch.tensor(table) for name, table in tables.items() for gate in "ifoc"
    }
    output, (h_n, _) = LSTM(2, 2, weights=weights)(torch.tensor([[[1.0, 0.0]]]))
    torch.testing.assert_close(h_n[0], torch.tensor([[0.0594, 0.0952]]), rtol=0, atol=5e-5)
    assert torch.equal(output[:, -1], h_n[0])


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [SRN, LSTM, GRU])
def test_shapes(kind, num_layers, bidirectional):
    module = kind(5, 4, num_layers, bidirectional)
    D = 1 + bidirectional
    output, state = module(torch.zeros(3, 7, 5))
    assert output.shape == (3, 7, D * 4)
    for part in state if isinstance(state, tuple) else (state,):
        assert part.shape == (num_layers * D, 3, 4)


def test_backward_direction_starts_at_the_tail():
    torch.manual_seed(0)
    module = LSTM(4, 3, bidirectional=True)
    X = torch.randn(2, 6, 4)
    output, (h_n, _) = module(X)
    assert torch.equal(h_n[0], output[:, -1, :3])
    assert torch.equal(h_n[1], output[:, 0, 3:])

    # the backward half of the last step has read the last input alone
    changed = X.clone()
    changed[:, :-1] += 1
    assert torch.equal(module(changed)[0][:, -1, 3:], output[:, -1, 3:])
    assert not torch.equal(module(changed)[0][:, 0, 3:], output[:, 0, 3:])


def test_a_sequence_can_be_read_in_two_parts():
    torch.manual_seed(0)
    for module in (SRN(4, 3, 2), LSTM(4, 3, 2), GRU(4, 3, 2)):
        X = torch.randn(2, 6, 4)
        whole, end = module(X)
        first, state = module(X[:, :2])
        second, last = module(X[:, 2:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        torch.testing.assert_close(last, end)


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


def test_xavier_start_within_its_bounds():
    torch.manual_seed(0)
    layer = LSTM(32, 32).layers[0]
    for name, parameter in layer.named_parameters():
        bound = (6 / sum(parameter.shape)) ** 0.5
        assert 0.8 * bound < parameter.abs().max() <= bound, name


def test_weights_for_a_higher_layer():
    bias = torch.full((1, 3), 2.0)
    module = LSTM(4, 3, 2, True, weights={"2.b_f": bias})
    assert torch.equal(module.layers[2].b_f, bias)
    assert not torch.equal(module.layers[0].b_f, bias)


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


@pytest.mark.parametrize(
    "wrong", [{"b_f": torch.ones(3)}, {"b": torch.ones(1, 3)}, {1: 1}, {"2.b_i": torch.ones(1, 3)}]
)
def test_one_wrong_weight_leaves_all_as_they_were(wrong):
    module = LSTM(4, 3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match="LSTM: "):
        module.set_weights({"b_i": torch.ones(1, 3), "1.b_i": torch.ones(1, 3)} | wrong)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_cell_gradient_without_recurrent_weights_is_the_product_of_forget_gates():
    torch.manual_seed(0)
    module = LSTM(4, 1, weights={f"U_{g}": torch.zeros(1, 1) for g in "ifoc"})
    X = torch.randn(2, 6, 4)
    norms = layers.gradient_norms(module, X, torch.ones(1))["c"]
    kept = module.trace(X)["f"][:, 1:].prod(dim=1).squeeze(1)
    torch.testing.assert_close(norms[:, 0], norms[:, -1] * kept)


X = torch.zeros(2, 5, 4)
STATE = torch.zeros(1, 2, 3)


def weight_norm(module, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and in use
        return nn.utils.weight_norm(module, name)


def weight_normed(module):
    weight_norm(module.layers[0], "U_f")
    return module


def compare(module, change):
    return parity.largest_differences(module, change(parity.to_torch(module)), X)


WRONG = {
    "negative size": (lambda: LSTM(4, -3), ValueError, "hidden_size must be an int of at least 1"),
    "no layers": (lambda: GRU(4, 3, 0), ValueError, "GRU: num_layers must be an int of at least 1"),
    "dtype": (lambda: LSTM(4, 3, dtype=torch.int64), TypeError, "floating-point torch.dtype"),
    "weight name": (lambda: LSTM(4, 3, weights={"W": X}), ValueError, "unknown weight 'W'"),
    "weight layer": (lambda: LSTM(4, 3, weights={"1.b_i": X}), ValueError, "allowed are 0.W_i"),
    "weight shape": (
        lambda: LSTM(4, 3, weights={"W_i": torch.zeros(3, 4)}),
        ValueError,
        r"weight W_i of layer 0 must have shape \(4, 3\), got \(3, 4\)",
    ),
    "weight dtype": (
        lambda: LSTM(4, 3, weights={"b_i": torch.zeros(1, 3, dtype=torch.float64)}),
        TypeError,
        "weight b_i of layer 0 must have the weights' dtype torch.float32",
    ),
    "input width": (lambda: GRU(4, 3)(X[..., :2]), ValueError, r"\(B, T, 4\), got \(2, 5, 2\)"),
    "no steps": (lambda: SRN(4, 3)(X[:, :0]), ValueError, r"got \(2, 0, 4\)"),
    "input dtype": (lambda: LSTM(4, 3)(X.half()), TypeError, "torch.float32, got torch.float16"),
    "input type": (lambda: LSTM(4, 3)([[[0.0]]]), TypeError, "input X must be a tensor, got list"),
    "lone state": (lambda: LSTM(4, 3)(X, STATE), TypeError, "state must be h_0 and c_0"),
    "state shape": (
        lambda: LSTM(4, 3)(X, (STATE, STATE[:, :1])),
        ValueError,
        r"start state c_0 must have shape \(1, 2, 3\), got \(1, 1, 3\)",
    ),
    "stacked trace": (lambda: LSTM(4, 3, 2).trace(X), ValueError, "got 2 layers"),
    "readout": (
        lambda: layers.gradient_norms(LSTM(4, 3), X, torch.zeros(4)),
        ValueError,
        r"readout must have shape \(3\), got \(4,\)",
    ),
    "projection": (lambda: parity.from_torch(nn.LSTM(4, 3, proj_size=2)), ValueError, "proj_size"),
    "dropout": (lambda: parity.from_torch(nn.GRU(4, 3, 2, dropout=0.5)), ValueError, "dropout"),
    "relu": (lambda: parity.from_torch(nn.RNN(4, 3, nonlinearity="relu")), ValueError, "'tanh'"),
    "computed weight": (
        lambda: parity.from_torch(weight_norm(nn.LSTM(4, 3), "weight_hh_l0")),
        ValueError,
        "LSTM has no parameter weight_hh_l0: .*weight_norm",
    ),
    "computed weight of ours": (
        lambda: parity.to_torch(weight_normed(LSTM(4, 3))),
        ValueError,
        "LSTM has no parameter layers.0.U_f: .*weight_norm",
    ),
    "no cell": (lambda: parity.to_torch(nn.Linear(2, 2)), TypeError, "one of SRN, LSTM, GRU"),
    "no torch cell": (lambda: parity.from_torch(LSTM(2, 2)), TypeError, "one of RNN, LSTM, GRU"),
    "frozen reference": (
        lambda: compare(LSTM(4, 3), lambda reference: reference.requires_grad_(False)),
        ValueError,
        "weight_ih_l0 is frozen: call requires_grad_()",
    ),
    "frozen module": (
        lambda: compare(LSTM(4, 3).requires_grad_(False), lambda reference: reference),
        ValueError,
        "layers.0.W_i is frozen",
    ),
    "other size": (lambda: compare(LSTM(4, 3), lambda _: nn.LSTM(4, 2)), ValueError, "as large"),
    "other kind": (lambda: compare(LSTM(4, 3), lambda _: nn.GRU(4, 3)), TypeError, "one of LSTM"),
    "compared input": (
        lambda: parity.largest_differences(LSTM(4, 3), parity.to_torch(LSTM(4, 3)), X.long()),
        TypeError,
        "input X must have the weights' dtype",
    ),
    "time first": (
        lambda: compare(LSTM(4, 3), lambda _: nn.LSTM(4, 3)), ValueError, "must be batch-first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call, error, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_gradient_norms_do_not_need_weights_that_learn():
    module, readout = LSTM(4, 3), torch.ones(3)
    norms = layers.gradient_norms(module, X, readout)
    with torch.no_grad():
        frozen = layers.gradient_norms(module.requires_grad_(False), X, readout)
    assert all(torch.equal(norms[name], frozen[name]) for name in "hc")


@pytest.mark.parametrize("dtype, limit", [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_half_precision_compares_long_batches_without_nan(dtype, limit):
    """70,000 outputs: as numbers of this type their places would be infinite, or not distinct."""
    torch.manual_seed(0)
    module = LSTM(2, 4, dtype=dtype)
    X = torch.randn(700, 25, 2, dtype=dtype)
    differences = parity.largest_differences(module, parity.to_torch(module), X)
    assert all(value <= limit for value in differences.values()), differences
    cosines = parity._cosines(torch.zeros(70_000, dtype=dtype))
    assert cosines.isfinite().all()
    assert cosines[-100:].unique().numel() > 20
