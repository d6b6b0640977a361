"""Chapter 01's ladder: one LSTM layer computed in several ways, and a fair clock for them.

Every rung computes the same function from the same weights; "torch", `nn.LSTM`, is what all are
compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from labkit.cells import cpp as recurrent_cpp
from labkit.cells import fast as recurrent_fast
from labkit.cells import layers as recurrent
from labkit.cells import parity

RUNGS = {
    "naive": recurrent.LSTM,
    "one_product": recurrent_fast.OneProductLSTM,
    "fused": recurrent.FusedLSTM,
    "backward": recurrent_fast.HandwrittenBackwardLSTM,
    "workspace": recurrent_fast.WorkspaceLSTM,
    "compiled": recurrent_cpp.CompiledLSTM,
}
LABELS = {
    "naive": "eight products",
    "one_product": "one product",
    "fused": "hoisted input",
    "backward": "own backward",
    "workspace": "workspace",
    "compiled": "C++",
    "torch": "nn.LSTM",
}
COMPARED = "torch"
Shape = tuple[int, int, int, int]  # B, T, I, H


def size_text(shape: Shape) -> str:
    """The shape in words, for titles."""
    return " ".join(f"{name}={size}" for name, size in zip("BTIH", shape, strict=True))


def versions(naive: recurrent.LSTM, rungs: Iterable[str]) -> dict[str, nn.Module]:
    """`naive` computed by each of `rungs`, with copies of its weights; `nn.LSTM` comes last."""
    made = {name: naive if name == "naive" else RUNGS[name].from_lstm(naive) for name in rungs}
    return made | {COMPARED: parity.to_torch(naive)}


def run_forward(layer: nn.Module, X: Tensor) -> None:
    """A call without gradients."""
    with torch.no_grad():
        layer(X)


def run_forward_backward(layer: nn.Module, X: Tensor) -> None:
    """What training costs: a call, and the gradients of the weights and of X."""
    layer.zero_grad()
    X.grad = None
    layer(X)[0].sum().backward()


PASSES: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "forward": run_forward,
    "forward_backward": run_forward_backward,
}


def interleaved_seconds(
    calls: Mapping[str, Callable[[], None]],
    rounds: int,
    warmup: int,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call, one value a round: all calls in turn, the first rounds not counted.

    `wait` returns when the device has done all that it was asked for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def time_layers(
    shape: Shape,
    rungs: Iterable[str],
    *,
    rounds: int,
    warmup: int,
    passes: Iterable[str] = tuple(PASSES),
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, list[float]]]:
    """Seconds of `rounds` runs of every layer, forward alone and with backward: passes -> layer."""
    device = torch.device(device)
    B, T, input_size, hidden_size = shape
    layers = versions(recurrent.LSTM(input_size, hidden_size, device=device), rungs)
    X = torch.randn(B, T, input_size, device=device, requires_grad=True)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = {}
    for name in passes:
        run = PASSES[name]
        calls = {k: lambda layer=layer, run=run: run(layer, X) for k, layer in layers.items()}
        found[name] = interleaved_seconds(calls, rounds, warmup, wait)
    return found


def ratios_to_torch(seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Each layer's times over those of `nn.LSTM` in the same round."""
    compared = seconds[COMPARED]
    return {
        name: [a / b for a, b in zip(values, compared, strict=True)]
        for name, values in seconds.items()
        if name != COMPARED
    }
