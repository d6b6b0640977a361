"""Chapter 01's ladder: every rung against torch, the backward pass by hand, and the clock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit.cells import fast
from labkit.cells.layers import LSTM


def everything(layer, X, state=None):
    """Output, final states and the input's gradient."""
    X = X.clone().requires_grad_()
    output, (h, c) = layer(X, state)
    ((output * output.detach().cos()).sum() + h.sin().sum() + c.cos().sum()).backward()
    return output, h, c, X.grad


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, False), (4, 7, 3, 5, 2, True)], ids=str)
def test_every_rung_computes_what_torch_computes(dtype, limit, shape):
    torch.manual_seed(0)
    B, T, n_in, H, L, bidirectional = shape
    naive = LSTM(n_in, H, L, bidirectional, dtype=dtype)
    X = torch.randn(B, T, n_in, dtype=dtype)
    state = tuple(torch.randn(len(naive.layers), B, H, dtype=dtype) for _ in range(2))
    versions = fast.versions(naive)
    assert [*versions] == ["naive", *fast.RUNGS, "torch"] == [*fast.LABELS]
    for given in (None, state):
        expected = everything(versions["torch"], X, given)
        for name, layer in versions.items():
            for a, b in zip(everything(layer, X, given), expected, strict=True):
                assert (a - b).abs().max() <= limit, name


def test_the_rungs_weights_get_the_gradients_of_the_readable_layer():
    torch.manual_seed(0)
    naive, X = LSTM(3, 5, dtype=torch.float64), torch.randn(4, 7, 3, dtype=torch.float64)
    versions = fast.versions(naive)
    for layer in versions.values():
        everything(layer, X)
    for name, version in versions.items():
        if name not in ("naive", "torch"):
            for kind in "WUb":
                gates = [getattr(naive.layers[0], f"{kind}_{gate}").grad for gate in "oifc"]
                ours = getattr(version.layers[0], kind).grad
                torch.testing.assert_close(ours, torch.cat(gates, dim=1))


@pytest.fixture
def by_hand():
    torch.manual_seed(0)
    return fast.computed_by(fast.HandwrittenLayer, LSTM(3, 4, dtype=torch.float64))


def test_the_backward_pass_by_hand_passes_gradcheck(by_hand):
    shapes = ((2, 5, 3), (1, 2, 4), (1, 2, 4))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(X, h, c, *parameters):
        output, final = by_hand(X, (h, c))
        return output, *final

    assert torch.autograd.gradcheck(run, (*inputs, *by_hand.parameters()))


@pytest.mark.parametrize("B, T", [(2, 5), (1, 5), (2, 1)])
def test_an_output_may_be_overwritten_before_the_backward_pass(by_hand, B, T):
    X = torch.randn(B, T, 3, dtype=torch.float64, requires_grad=True)
    by_hand(X)[0].sum().backward()
    expected, X.grad = X.grad, None
    output, (h, c) = by_hand(X)
    loss = output.sum()
    for tensor in (output, h, c):
        tensor.detach().zero_()
    loss.backward()
    assert torch.equal(X.grad, expected)


def test_a_second_backward_needs_a_retained_graph_and_then_adds_the_same(by_hand):
    X = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    loss = by_hand(X)[0].square().sum()
    loss.backward(retain_graph=True)
    once = X.grad.clone()
    loss.backward()
    torch.testing.assert_close(X.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_training_by_hand_after_inference(by_hand):
    """What inference leaves must not be in the way, and an optimiser can use the gradients."""
    X = torch.randn(2, 5, 3, dtype=torch.float64)
    with torch.inference_mode():
        by_hand(X)
    optimiser = torch.optim.Adam(by_hand.parameters())
    before = by_hand(X)[0].sum()
    for _ in range(3):
        optimiser.zero_grad()
        by_hand(X)[0].sum().backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimiser.step()
    assert by_hand(X)[0].sum() < before


# the clock


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    log, waits = [], []
    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    seconds = fast.interleaved_seconds(calls, 2, warmup=1, wait=lambda: waits.append(1))
    assert log == ["a", "b"] * 3
    assert len(waits) == 2 * len(log)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_slow_call_is_seen_as_slow(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(fast.time, "perf_counter", lambda: now[0])

    def take(seconds):
        now[0] += seconds

    calls = {"slow": lambda: take(3.0), "torch": lambda: take(2.0)}
    seconds = fast.interleaved_seconds(calls, 2, warmup=0)
    assert seconds == {"slow": [3.0, 3.0], "torch": [2.0, 2.0]}
    assert fast.ratios_to_torch(seconds) == {"slow": [1.5, 1.5]}


def test_every_layer_is_timed_forward_and_backward(monkeypatch):
    seen = []
    original = fast.ThroughTime.backward
    monkeypatch.setattr(
        fast.ThroughTime, "backward", lambda *given: seen.append(1) or original(*given)
    )
    by_pass = fast.time_layers((2, 3, 4, 5), rounds=2, warmup=0)
    assert [*by_pass] == ["forward", "forward_backward"]
    assert len(seen) == 2, "forward alone must not go back"
    for by_layer in by_pass.values():
        assert [*by_layer] == [*fast.LABELS]
        assert all(len(values) == 2 and min(values) > 0 for values in by_layer.values())
