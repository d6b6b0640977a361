"""Chapter 01's ladder: the LSTM layer made fast in plain torch, and a fair clock for its rungs.

Gates stand in the order o, i, f, c: three sigmoids, and three that the cell's gradient reaches.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from labkit.cells.layers import LSTM, LayerState, LSTMLayer, to_torch


class FusedLayer(nn.Module):
    """All gates in one product a step, the input's product taken out of the loop, with copies of
    the readable layer's weights side by side: W (I, 4H), U (H, 4H) and b (1, 4H)."""

    def __init__(self, layer: LSTMLayer) -> None:
        super().__init__()
        for kind in "WUb":
            gates = [getattr(layer, f"{kind}_{gate}").detach() for gate in "oifc"]
            self.register_parameter(kind, nn.Parameter(torch.cat(gates, dim=1)))

    def forward(self, X: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Outputs (B, T, H), the hidden state after each step, and the last state."""
        (h, c), H = state, len(self.U)
        # the input's part of every gate needs no earlier state: one product for all steps
        Z = X @ self.W + self.b  # (B, T, 4H)
        hidden = []
        for z in Z.unbind(1):  # (B, 4H)
            z = torch.addmm(z, h, self.U)
            o, i, f = torch.sigmoid(z[:, : 3 * H]).chunk(3, dim=1)  # (B, H) each
            c = f * c + i * torch.tanh(z[:, 3 * H :])
            h = o * torch.tanh(c)
            hidden.append(h)
        return torch.stack(hidden, dim=1), (h, c)


class ThroughTime(torch.autograd.Function):
    """The same forward pass, and its backward pass by hand: to autograd one single operation."""

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, h: Tensor, c: Tensor, W: Tensor, U: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        H = len(U)
        Z = (X.transpose(0, 1) @ W).add_(b)  # (T, B, 4H), the sums inside the gates
        hidden, cell = [h], [c]
        for z in Z.unbind():  # in place: Z ends up holding the gates
            z.addmm_(h, U)
            z[:, : 3 * H].sigmoid_()
            z[:, 3 * H :].tanh_()
            o, i, f, g = z.chunk(4, dim=1)  # (B, H) each
            c = (f * c).addcmul_(i, g)
            h = o * torch.tanh(c)
            hidden.append(h)
            cell.append(c)
        ctx.save_for_backward(X, W, U, Z, torch.stack(hidden), torch.stack(cell))
        return torch.stack(hidden[1:], dim=1), h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor, ...]:
        X, W, U, Z, hidden, cell = ctx.saved_tensors  # the states with the start, (T + 1, B, H)
        B, T, H = d_output.shape
        o, i, f, g = Z.chunk(4, dim=-1)  # (T, B, H) each
        squashed = cell[1:].tanh()

        # the factors that no gradient enters, for all steps at once
        into_cell = o * (1 - squashed.square())
        brackets = (squashed * (o - o * o), g * (i - i * i), cell[:-1] * (f - f * f), i - i * g * g)
        d_Z = torch.cat(brackets, dim=-1)  # (T, B, 4H)

        # from the last step to the first, the factors become the gradients of the sums
        d_h, d_c, U_T = d_h.clone(), d_c.clone(), U.t().contiguous()
        for t in reversed(range(T)):
            d_h.add_(d_output[:, t])
            d_c.addcmul_(d_h, into_cell[t])
            d_Z[t, :, :H].mul_(d_h)
            d_Z[t, :, H:].view(B, 3, H).mul_(d_c.unsqueeze(1))
            d_c.mul_(f[t])
            d_h = d_Z[t] @ U_T

        # one product for each weight, over all steps
        d_sums, inputs = d_Z.view(T * B, 4 * H), X.transpose(0, 1).reshape(T * B, -1)
        d_W, d_U = inputs.t() @ d_sums, hidden[:-1].view(T * B, H).t() @ d_sums
        d_X, d_b = (d_Z @ W.t()).transpose(0, 1), d_sums.sum(0, keepdim=True)
        return d_X, d_h, d_c, d_W, d_U, d_b


class HandwrittenLayer(FusedLayer):
    def forward(self, X: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        output, h, c = ThroughTime.apply(X, *state, self.W, self.U, self.b)
        return output, (h, c)


LABELS = {"naive": "eight products", "fused": "one product", "backward": "backward by hand"}
LABELS["torch"] = "nn.LSTM"
Seconds = dict[str, list[float]]  # of each way of computing, one value a round


def versions(naive: LSTM) -> dict[str, nn.Module]:
    """`naive` computed by each rung and by `nn.LSTM` ("torch"), with copies of its weights."""
    fused, backward = copy.deepcopy(naive), copy.deepcopy(naive)
    fused.layers = nn.ModuleList(map(FusedLayer, naive.layers))
    backward.layers = nn.ModuleList(map(HandwrittenLayer, naive.layers))
    return dict(zip(LABELS, (naive, fused, backward, to_torch(naive)), strict=True))


def time_in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, warmup: int) -> Seconds:
    """Seconds of each call, one value a round: all calls in turn, the first rounds not counted.

    They are seconds that this thread had a processor, so what else runs on the machine counts less.
    """
    seconds: Seconds = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            if number >= warmup:
                seconds[name].append(time.thread_time() - start)
    return seconds


def time_layers(shape: Sequence[int], *, rounds: int, warmup: int) -> Seconds:
    """Seconds of a forward and backward pass by every rung and by `nn.LSTM`, at `shape`
    (B, T, I, H)."""
    B, T, input_size, hidden_size = shape
    layers = versions(LSTM(input_size, hidden_size))
    X = torch.randn(B, T, input_size, requires_grad=True)

    def run(layer: nn.Module) -> None:
        layer.zero_grad()
        X.grad = None
        layer(X)[0].sum().backward()

    calls = {name: partial(run, layer) for name, layer in layers.items()}
    return time_in_turns(calls, rounds, warmup)
