"""Chapter 01's ladder: the LSTM layer made fast in plain torch, and a fair clock for its rungs.

Autograd keeps a small graph node, and often a tensor, for every operation of every step; the
backward pass written out needs five calls a step, and one product for each weight at the end.

The gates stand side by side in the order o, i, f, c: the first three are sigmoids, and the last
three are what the cell state's gradient reaches. The pass by hand has time first, (T, B, ...).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from labkit.cells.layers import LSTM, LayerState, LSTMLayer, _Layer
from labkit.cells.parity import to_torch


class OneProductLayer(_Layer):
    """The gates' products taken together: at each step one with the input, one with the state.

    W (I, 4H), U (H, 4H) and b (1, 4H) are copies of the readable layer's, side by side.
    """

    def __init__(self, layer: LSTMLayer) -> None:
        nn.Module.__init__(self)
        self.hidden_size = layer.hidden_size
        for kind in "WUb":
            gates = [getattr(layer, f"{kind}_{gate}").detach() for gate in "oifc"]
            self.register_parameter(kind, nn.Parameter(torch.cat(gates, dim=1)))

    def update(self, z: Tensor, c: Tensor) -> LayerState:
        """The next state from z (B, 4H), the sums inside the gates, and the cell state (B, H)."""
        H = self.hidden_size
        o, i, f = torch.sigmoid(z[:, : 3 * H]).chunk(3, dim=1)  # (B, H) each
        c = f * c + i * torch.tanh(z[:, 3 * H :])
        return o * torch.tanh(c), c

    def step(self, x: Tensor, state: LayerState) -> LayerState:
        h, c = state
        return self.update(x @ self.W + h @ self.U + self.b, c)


class HoistedLayer(OneProductLayer):
    """The input's product taken out of the loop: one product a step."""

    def unroll(self, X: Tensor, state: LayerState) -> list[LayerState]:
        h, c = state
        # the input's part of every gate needs no earlier state: one product for all steps
        Z = X @ self.W + self.b  # (B, T, 4H)
        states = []
        for z in Z.unbind(1):  # (B, 4H)
            h, c = self.update(torch.addmm(z, h, self.U), c)
            states.append((h, c))
        return states


# the backward pass by hand


@torch.inference_mode()  # a call that autograd need not look at is a little cheaper
def walk_forward(Z: Tensor, h: Tensor, c: Tensor, U: Tensor) -> tuple[list[Tensor], ...]:
    """Turn Z (T, B, 4H), the input's part of the sums, into the gates, step by step and in place.

    Returns the hidden states and the cell states, both T + 1 of (B, H) with the start.
    """
    H, hidden, cell = h.shape[1], [h], [c]
    views = (Z, Z[..., : 3 * H], *Z.chunk(4, dim=-1))
    for z, sigmoids, o, i, f, g in zip(*(view.unbind() for view in views), strict=True):
        z.addmm_(h, U)
        sigmoids.sigmoid_()
        g.tanh_()
        c = (f * c).addcmul_(i, g)
        h = o * torch.tanh(c)
        hidden.append(h)
        cell.append(c)
    return hidden, cell


def brackets(Z: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The factors that no gradient enters, for all steps at once.

    For the gates' sums tanh(c) o (1 - o), c~ i (1 - i), c_before f (1 - f) and i (1 - c~²), side by
    side in (T, B, 4H), and for the cell state o (1 - tanh²(c)), (T, B, H); ⊙ is left out.
    """
    o, i, f, g = Z.chunk(4, dim=-1)  # (T, B, H) each
    squashed = cell[1:].tanh()
    for_sums = [squashed * (o - o * o), g * (i - i * i), cell[:-1] * (f - f * f), i - i * (g * g)]
    return torch.cat(for_sums, dim=-1), o - o * squashed.square()


@torch.inference_mode()
def walk_back(
    d_Z: Tensor, into_cell: Tensor, f: Tensor, d_h: Tensor, d_c: Tensor, U: Tensor
) -> None:
    """Walk from the last step to the first; all in place.

    The brackets in `d_Z` (T, B, 4H) become the gradients of the gates' sums. `d_h` (T + 1, B, H)
    holds what the loss sends to each hidden state and becomes its gradient; `d_c` (B, H), that of
    the last cell state, becomes that of the first.
    """
    T, B, H = f.shape
    U_T, d_c_for_all = U.t().contiguous(), d_c.unsqueeze(1)  # (4H, H), (B, 1, H)
    by_gate = d_Z.view(T, B, 4, H)
    views = (d_Z, by_gate[:, :, 0], by_gate[:, :, 1:], into_cell, f, d_h[1:], d_h[:-1])
    steps = zip(*(view.unbind() for view in views), strict=True)
    for d_z, d_o, d_ifg, into, f_t, d_now, d_before in reversed(list(steps)):
        d_c.addcmul_(d_now, into)
        d_o.mul_(d_now)
        d_ifg.mul_(d_c_for_all)  # (B, 3, H)
        d_c.mul_(f_t)
        d_before.addmm_(d_z, U_T)


class ThroughTime(torch.autograd.Function):
    """One layer as one operation of autograd, (B, T, I) in, (B, T, H) out."""

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, h: Tensor, c: Tensor, W: Tensor, U: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = X.shape
        by_time = X.transpose(0, 1).reshape(T * B, -1)  # (T*B, I)
        Z = torch.addmm(b, by_time, W).view(T, B, -1)  # (T, B, 4H)
        hidden, cell = walk_forward(Z, h, c, U)
        ctx.save_for_backward(by_time, W, U, Z, torch.stack(hidden), torch.stack(cell))
        return torch.stack(hidden[1:], dim=1), hidden[-1].clone(), cell[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        by_time, W, U, Z, hidden, cell = ctx.saved_tensors
        B, T, H = d_output.shape
        d_Z, into_cell = brackets(Z, cell)
        d_hidden = torch.cat([torch.zeros_like(d_h)[None], d_output.transpose(0, 1)])
        d_hidden[-1] += d_h
        d_c = d_c.clone(memory_format=torch.contiguous_format)
        walk_back(d_Z, into_cell, Z[..., 2 * H : 3 * H], d_hidden, d_c, U)

        d_sums, before = d_Z.view(T * B, 4 * H), hidden[:-1].view(T * B, H)
        d_W, d_U, d_b = by_time.t() @ d_sums, before.t() @ d_sums, d_sums.sum(0, keepdim=True)
        d_X = None
        if ctx.needs_input_grad[0]:
            d_X = (d_sums @ W.t()).view(T, B, -1).transpose(0, 1)
        return d_X, d_hidden[0], d_c, d_W, d_U, d_b


class HandwrittenLayer(OneProductLayer):
    """The layer with its gradient written by hand."""

    def forward(self, X: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Outputs (B, T, H), the hidden state after each step, and the last state."""
        output, h, c = ThroughTime.apply(X, *state, self.W, self.U, self.b)
        return output, (h, c)


# the ladder: one function from the same weights, computed in several ways

RUNGS = {"one_product": OneProductLayer, "fused": HoistedLayer, "backward": HandwrittenLayer}
LABELS = {
    "naive": "eight products",
    "one_product": "one product",
    "fused": "hoisted input",
    "backward": "backward by hand",
    "torch": "nn.LSTM",
}
Shape = tuple[int, int, int, int]  # B, T, I, H
Seconds = dict[str, list[float]]  # of each way, one value a round


def size_text(shape: Shape) -> str:
    """The shape in words, for titles."""
    return " ".join(f"{name}={size}" for name, size in zip("BTIH", shape, strict=True))


def computed_by(layer_class: type[OneProductLayer], lstm: LSTM) -> LSTM:
    """The same function as `lstm`, from copies of its weights, computed by fast layers."""
    module = copy.deepcopy(lstm)
    module.layers = nn.ModuleList(map(layer_class, lstm.layers))
    return module


def versions(naive: LSTM) -> dict[str, nn.Module]:
    """`naive` computed by each rung and by `nn.LSTM` ("torch"), with copies of its weights."""
    fast = {name: computed_by(layer_class, naive) for name, layer_class in RUNGS.items()}
    return {"naive": naive, **fast, "torch": to_torch(naive)}


def interleaved_seconds(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int,
    wait: Callable[[], None] = lambda: None,
) -> Seconds:
    """Seconds of each call, one value a round: all calls in turn, the first rounds not counted.

    `wait` returns when the device has done all that it was asked for.
    """
    seconds: Seconds = {name: [] for name in calls}
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
    shape: Shape, *, rounds: int, warmup: int, device: torch.device | str = "cpu"
) -> dict[str, Seconds]:
    """Seconds of every rung and of `nn.LSTM`, `rounds` runs each, "forward" and "forward_backward".

    Forward is a call without gradients; with backward it costs what training does.
    """
    B, T, input_size, hidden_size = shape
    layers = versions(LSTM(input_size, hidden_size, device=device))
    X = torch.randn(B, T, input_size, device=device, requires_grad=True)

    def forward(layer: nn.Module) -> None:
        with torch.no_grad():
            layer(X)

    def forward_backward(layer: nn.Module) -> None:
        layer.zero_grad()
        X.grad = None
        layer(X)[0].sum().backward()

    wait = torch.cuda.synchronize if X.is_cuda else lambda: None
    return {
        run.__name__: interleaved_seconds(
            {name: partial(run, layer) for name, layer in layers.items()}, rounds, warmup, wait
        )
        for run in (forward, forward_backward)
    }


def ratios_to_torch(seconds: Seconds) -> Seconds:
    """Each rung's times over those of `nn.LSTM` in the same round."""
    pairs = {name: zip(values, seconds["torch"], strict=True) for name, values in seconds.items()}
    return {name: [a / b for a, b in pair] for name, pair in pairs.items() if name != "torch"}
