"""The ladder's rungs, the clock, and the layer in C++."""

from __future__ import annotations

import pytest
import torch

from labkit.cells import cpp as recurrent_cpp
from labkit.cells import ladder, parity
from labkit.cells import layers as recurrent


def rungs() -> list[str]:
    """All that can be computed here: C++ needs a compiler."""
    return [name for name in ladder.RUNGS if name != "compiled" or not recurrent_cpp.problem()]


def everything(layer, X, state=None):
    """Output, final states and the input's gradient."""
    X = X.clone().requires_grad_()
    output, (h, c) = layer(X, state)
    ((output * output.detach().cos()).sum() + h.sin().sum() + c.cos().sum()).backward()
    return output, h, c, X.grad


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("layers, both", [(1, False), (2, True)])
def test_every_rung_computes_what_torch_computes(dtype, limit, layers, both):
    torch.manual_seed(0)
    naive = recurrent.LSTM(3, 5, num_layers=layers, bidirectional=both, dtype=dtype)
    X = torch.randn(4, 7, 3, dtype=dtype)
    state = tuple(torch.randn(layers * (1 + both), 4, 5, dtype=dtype) for _ in range(2))
    made = ladder.versions(naive, rungs())
    assert list(made) == [*rungs(), "torch"]
    for given in (None, state):
        expected = everything(made["torch"], X, given)
        for name, layer in made.items():
            for a, b in zip(everything(layer, X, given), expected, strict=True):
                assert (a - b).abs().max() <= limit, name


needs_compiler = pytest.mark.skipif(
    bool(recurrent_cpp.problem()), reason=recurrent_cpp.problem() or "-"
)


@needs_compiler
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("B, H", [(8, 32), (6, 33), (64, 64)])
def test_the_products_of_the_layer_in_cpp_fit_any_size(dtype, limit, B, H):
    """Whole blocks, blocks with a remainder in rows and columns, and the library's product."""
    torch.manual_seed(0)
    naive = recurrent.LSTM(3, H, dtype=dtype)
    X = torch.randn(B, 5, 3, dtype=dtype)
    made = ladder.versions(naive, ["compiled"])
    expected = everything(made["torch"], X)
    found = everything(made["compiled"], X)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= limit
    weights = made["compiled"].layers[0]
    theirs = parity.to_torch(naive)
    everything(theirs, X)
    gates = [theirs.weight_hh_l0.grad.chunk(4)[k].T for k in (0, 1, 3, 2)]  # i f g o -> i f o g
    assert (weights.U.grad - torch.cat(gates, 1)).abs().max() <= 10 * limit


@needs_compiler
def test_the_layer_in_cpp_saturates_without_nan():
    naive = recurrent.LSTM(2, 8)
    X = 1e4 * torch.randn(3, 60, 2, generator=torch.Generator().manual_seed(0))
    made = ladder.versions(naive, ["compiled"])
    for a, b in zip(everything(made["compiled"], X), everything(made["torch"], X), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_the_layer_in_cpp_takes_gradients_in_any_layout():
    torch.manual_seed(0)
    naive = recurrent.LSTM(3, 5, dtype=torch.float64)
    X, v = torch.randn(4, 7, 3, dtype=torch.float64), torch.randn(1, 5, 4, dtype=torch.float64)
    gradients = []
    for layer in ladder.versions(naive, ["compiled"]).values():
        read = X.clone().requires_grad_()
        (layer(read)[1][0].mT * v).sum().backward()
        gradients.append(read.grad)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-10


@needs_compiler
def test_an_output_in_cpp_is_memory_of_its_own():
    layer = recurrent_cpp.CompiledLSTM(3, 4, dtype=torch.float64)
    X = torch.ones(1, 5, 3, dtype=torch.float64, requires_grad=True)
    output, _ = layer(X)
    loss = output.sum()
    output.detach().zero_()
    loss.backward()
    expected = X.grad.clone()
    X.grad = None
    layer(X)[0].sum().backward()
    torch.testing.assert_close(X.grad, expected)


@needs_compiler
def test_the_layer_in_cpp_passes_gradcheck_with_all_its_weights():
    torch.manual_seed(0)
    layer = recurrent_cpp.CompiledLSTM(3, 4, dtype=torch.float64)
    shapes = ((2, 5, 3), (1, 2, 4), (1, 2, 4))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(X, h, c, *parameters):
        output, final = layer(X, (h, c))
        return output, *final

    assert torch.autograd.gradcheck(run, (*inputs, *layer.parameters()))


@pytest.mark.parametrize(
    "missing, words",
    [("c++", "no C.. compiler"), ("ninja", "ninja"), ("python3-dev", "Python.h is missing")],
)
def test_what_is_missing_for_cpp_is_named(monkeypatch, missing, words):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(
        recurrent_cpp.shutil, "which",
        lambda name, path=None: None if name == missing else f"/bin/{name}",
    )  # fmt: skip
    if missing == "python3-dev":
        monkeypatch.setattr(recurrent_cpp.sysconfig, "get_path", lambda name: "/nowhere")
    recurrent_cpp.extension.cache_clear()
    assert words.replace("..", "++") in recurrent_cpp.problem()
    with pytest.raises(RuntimeError, match=f"the C\\+\\+ layer is left out: .*{missing[:1]}"):
        recurrent_cpp.extension()


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    waits = []
    seconds = ladder.interleaved_seconds(calls, 2, warmup=1, wait=lambda: waits.append(1))
    assert log == ["a", "b"] * 3
    assert len(waits) == 2 * len(log)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_slow_call_is_seen_as_slow(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: now[0])

    def take(seconds):
        now[0] += seconds

    calls = {"slow": lambda: take(3.0), ladder.COMPARED: lambda: take(2.0)}
    seconds = ladder.interleaved_seconds(calls, 2, warmup=0)
    assert seconds == {"slow": [3.0, 3.0], "torch": [2.0, 2.0]}
    assert ladder.ratios_to_torch(seconds) == {"slow": [1.5, 1.5]}


def test_every_layer_is_timed_on_every_pass():
    found = ladder.time_layers((2, 3, 4, 5), ["naive", "workspace"], rounds=2, warmup=0)
    assert list(found) == ["forward", "forward_backward"]
    for by_layer in found.values():
        assert list(by_layer) == ["naive", "workspace", "torch"]
        assert all(len(values) == 2 and min(values) > 0 for values in by_layer.values())


def test_a_forward_pass_leaves_no_gradient_and_a_training_pass_does():
    layer, X = recurrent.LSTM(2, 3), torch.randn(1, 2, 2, requires_grad=True)
    ladder.run_forward(layer, X)
    assert X.grad is None
    for _ in range(2):  # not added up
        ladder.run_forward_backward(layer, X)
    once = X.grad.clone()
    ladder.run_forward_backward(layer, X)
    assert torch.equal(X.grad, once)


def test_sizes_are_named():
    assert ladder.size_text((8, 20, 32, 64)) == "B=8 T=20 I=32 H=64"
    assert set(ladder.LABELS) == {*ladder.RUNGS, "torch"}
