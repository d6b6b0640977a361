"""The ladder: every rung against torch, the backward pass by hand, the clock, what is shown."""

from __future__ import annotations

import json

import pytest
import torch

from labkit.cells import fast, ladder
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


def test_the_backward_pass_by_hand_passes_gradcheck():
    torch.manual_seed(0)
    by_hand = fast.versions(LSTM(3, 4, dtype=torch.float64))["backward"]
    shapes = ((2, 5, 3), (1, 2, 4), (1, 2, 4))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(X, h, c, *parameters):
        output, final = by_hand(X, (h, c))
        return output, *final

    assert torch.autograd.gradcheck(run, (*inputs, *by_hand.parameters()))


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
    assert fast.ratios_to_torch(seconds) == {"slow": [1.5, 1.5]}


def test_the_ladder_plot_shows_medians_from_the_readable_rung_down():
    small = {"eight": [6.0, 9.0, 7.0, 500.0], "by hand": [0.5, 0.7, 0.6, 0.6]}
    large = {"eight": [2.0], "by hand": [1.0]}
    ratios = {"small": small, "large": large}
    (ax,) = ladder.ladder_plot(ratios, ratios).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["eight", "by hand"]
    assert ax.yaxis_inverted()
    for drawn in (ax.containers[0].lines[0], ax.lines[1]):  # reported, and the rings
        assert drawn.get_xdata() == pytest.approx([8.0, 0.6])
        assert drawn.get_ydata()[0] < drawn.get_ydata()[1]


def test_speeds_on_a_gpu_come_from_the_record_of_the_check(root):
    assert ladder.on_gpu() == ("", {})
    steps = {
        "facts": {"rows": [{"what": "device_name", "value": "NVIDIA"}]},
        "speeds": {"rows": [{"what": "kernel, lstm, T=35, 132 replicas: ms a step", "value": 0.2}]},
    }
    (root / "benchmarks").mkdir()
    (root / "benchmarks" / "gpu.json").write_text(json.dumps({"commit": "", "steps": steps}))
    assert ladder.on_gpu() == ("NVIDIA", {"kernel, lstm, T=35, 132 replicas": 0.2})
