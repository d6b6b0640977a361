"""The ladder: every rung against torch, in values and gradients, and the clock."""

from __future__ import annotations

import pytest
import torch

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
    assert [*versions] == [*fast.LABELS]
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
    for name in ("fused", "backward"):
        for kind in "WUb":
            gates = [getattr(naive.layers[0], f"{kind}_{gate}").grad for gate in "oifc"]
            ours = getattr(versions[name].layers[0], kind).grad
            torch.testing.assert_close(ours, torch.cat(gates, dim=1))


def test_calls_take_turns_and_the_warm_up_is_not_counted(monkeypatch):
    now, log = [0.0], []
    monkeypatch.setattr(fast.time, "thread_time", lambda: now[0])

    def take(name, seconds):
        log.append(name)
        now[0] += seconds

    calls = {"slow": lambda: take("slow", 3.0), "torch": lambda: take("torch", 2.0)}
    seconds = fast.time_in_turns(calls, 2, warmup=1)
    assert log == ["slow", "torch"] * 3
    assert seconds == {"slow": [3.0, 3.0], "torch": [2.0, 2.0]}
