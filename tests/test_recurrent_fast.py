"""The fast LSTM layers against the readable one: values, gradients, and memory that is shared."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from labkit.cells import fast as recurrent_fast
from labkit.cells import layers as recurrent
from labkit.cells.fast import (
    HandwrittenBackwardLSTM,
    Workspace,
    WorkspaceLSTM,
    Workspaces,
)

KINDS = [HandwrittenBackwardLSTM, WorkspaceLSTM]
SHAPES = [  # B, T, I, H, layers, bidirectional
    (1, 1, 1, 1, 1, False),
    (3, 7, 2, 5, 1, False),
    (8, 20, 32, 32, 1, False),
    (2, 4, 3, 6, 2, True),
    (5, 9, 4, 3, 3, False),
]


def pair(kind, input_size: int, H: int, **options):
    """The readable LSTM and a fast one that computes the same, float64."""
    torch.manual_seed(0)
    plain = recurrent.LSTM(input_size, H, dtype=torch.float64, **options)
    return plain, kind.from_lstm(plain)


def gradients(module, X: Tensor, state=None) -> list[Tensor]:
    """Outputs, final states, and the gradients of X and of W, U and b, the gates as i f o c."""
    module.zero_grad()
    X = X.clone().requires_grad_()
    output, (h, c) = module(X, state)
    weight = torch.arange(output.numel(), dtype=X.dtype).cos().view_as(output)
    ((output * weight).sum() + h.sin().sum() + c.cos().sum()).backward()
    found = [output, h, c, X.grad]
    for layer in module.layers:
        for name in "WUb":
            if isinstance(module, recurrent.LSTM):
                found.append(torch.cat([getattr(layer, name + g).grad for g in layer.gates], 1))
            else:
                o, i, f, g = getattr(layer, name).grad.chunk(4, dim=1)
                found.append(torch.cat([i, f, o, g], dim=1))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B, T, inputs, H, layers, both", SHAPES)
def test_values_and_gradients_are_those_of_the_readable_layer(kind, B, T, inputs, H, layers, both):
    plain, fast = pair(kind, inputs, H, num_layers=layers, bidirectional=both)
    X = torch.randn(B, T, inputs, dtype=torch.float64)
    rows = layers * (1 + both)
    state = tuple(torch.randn(rows, B, H, dtype=torch.float64) for _ in range(2))
    for given in (None, state):
        for a, b in zip(gradients(plain, X, given), gradients(fast, X, given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_by_hand_passes_gradcheck(kind):
    _, fast = pair(kind, 3, 4)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 5, 3), (1, 2, 4), (1, 2, 4))
    ]

    def run(X, h, c, *parameters):
        output, final = fast(X, (h, c))
        return output, *final

    assert torch.autograd.gradcheck(run, (*inputs, *fast.parameters()))


def test_float32_agrees_as_far_as_float32_goes():
    torch.manual_seed(0)
    plain = recurrent.LSTM(32, 32)
    fast = WorkspaceLSTM.from_lstm(plain)
    X = torch.randn(8, 35, 32)
    for a, b in zip(gradients(plain, X), gradients(fast, X), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def free(module) -> list[Workspace]:
    return [work for works in module.layers[0].pool.free.values() for work in works]


def test_one_workspace_serves_batches_of_all_lengths():
    plain, fast = pair(WorkspaceLSTM, 3, 4)
    batches = [torch.randn(2, T, 3, dtype=torch.float64) for T in (9, 4, 6, 9)]
    gradients(fast, batches[0])
    (work,) = free(fast)
    for X in batches:
        for a, b in zip(gradients(plain, X), gradients(fast, X), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert free(fast) == [work]


def test_a_longer_batch_replaces_the_workspace():
    _, fast = pair(WorkspaceLSTM, 3, 4)
    for T in (3, 8):
        gradients(fast, torch.randn(2, T, 3, dtype=torch.float64))
    assert [work.T for work in free(fast)] == [8]


def test_memory_is_what_it_is_said_to_be():
    """Two blocks of 4H and five of H for each step and sequence, one more step for the states."""
    T, B, H = 7, 3, 5
    pool = Workspaces()
    lease = pool.lend(T, B, H, torch.zeros((), dtype=torch.float32))
    assert pool.size() == 0
    del lease
    assert pool.size() == 4 * B * H * ((8 + 2) * T + 3 * (T + 1))


def test_a_long_workspace_needs_the_backward_pass_memory_of_one_block():
    T, B, H = 50, 64, 64
    pool = Workspaces()
    lease = pool.lend(T, B, H, torch.zeros((), dtype=torch.float32))
    work = lease.work
    del lease
    assert work.K == 8
    assert pool.size() == 4 * B * H * ((4 + 1) * T + 3 * (T + 1) + (4 + 1) * work.K)


@pytest.mark.parametrize("steps_a_block", [1, 2, 3, 7])
def test_blocks_of_steps_change_nothing(steps_a_block, monkeypatch):
    """Batches that are a whole number of blocks long, and not, on one workspace."""
    B, H = 3, 4
    monkeypatch.setattr(recurrent_fast, "BLOCK_BYTES", steps_a_block * B * 4 * H * 8)
    plain, fast = pair(WorkspaceLSTM, 2, H)
    for T in (7, 6, 1, 5):
        X = torch.randn(B, T, 2, dtype=torch.float64)
        state = tuple(torch.randn(1, B, H, dtype=torch.float64) for _ in range(2))
        for a, b in zip(gradients(plain, X, state), gradients(fast, X, state), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert [work.K for work in free(fast)] == [steps_a_block]


def test_passes_under_way_do_not_share_memory():
    """Two forward passes, then both backward: as with the readable layer."""
    plain, fast = pair(WorkspaceLSTM, 3, 4)
    X, Y = (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for module in (plain, fast):
        module(X)[0].sum().backward(retain_graph=True)
    expected = [X.grad / 2, None]
    X.grad = None
    a, b = fast(X)[0], fast(Y)[0]
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(X.grad, expected[0])
    own = Y.grad.clone()
    Y.grad = None
    plain(Y)[0].sum().backward()
    torch.testing.assert_close(own, Y.grad)


@pytest.mark.parametrize("B, T", [(2, 5), (1, 5), (2, 1)])
def test_an_output_is_not_overwritten_by_the_next_batch(B, T):
    _, fast = pair(WorkspaceLSTM, 3, 4)
    with torch.no_grad():
        output, (h, c) = fast(torch.ones(B, T, 3, dtype=torch.float64))
        kept = [tensor.clone() for tensor in (output, h, c)]
        fast(-torch.ones(B, T, 3, dtype=torch.float64))
    for a, b in zip(kept, (output, h, c), strict=True):
        assert torch.equal(a, b)


def test_a_workspace_of_inference_serves_a_training():
    _, fast = pair(WorkspaceLSTM, 3, 4)
    X = torch.ones(2, 5, 3, dtype=torch.float64)
    with torch.inference_mode():
        fast(X)
    fast(X)[0].sum().backward()


def test_a_graph_that_is_dropped_gives_its_memory_back():
    _, fast = pair(WorkspaceLSTM, 3, 4)
    output, _ = fast(torch.randn(2, 5, 3, dtype=torch.float64))
    assert free(fast) == []
    del output, _
    gc.collect()
    assert len(free(fast)) == 1


def test_a_second_backward_needs_a_retained_graph_and_then_adds_the_same():
    _, fast = pair(WorkspaceLSTM, 3, 4)
    X = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    loss = fast(X)[0].square().sum()
    loss.backward(retain_graph=True)
    once = X.grad.clone()
    loss.backward()
    torch.testing.assert_close(X.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_fresh_variant_keeps_nothing():
    _, fast = pair(HandwrittenBackwardLSTM, 3, 4)
    gradients(fast, torch.randn(2, 5, 3, dtype=torch.float64))
    assert free(fast) == []
