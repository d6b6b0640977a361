"""The LSTM layer made fast in plain torch: the gradient written by hand, then memory used again.

Autograd keeps a tensor and a small graph node for every operation of every step. The backward pass
through time written out needs four calls a step, and one matrix product for each weight at the end.
What then remains is asking for memory, which a workspace does once for all batches.

Shapes as in `labkit.recurrent`; time comes first inside, (T, B, ...), so that a step is one piece
of memory. The gates stand side by side in the order o, i, f, c: the first three share one sigmoid,
and the last three are what the cell state's gradient reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labkit.recurrent import LSTM, FusedLSTMLayer, LayerState, _Recurrent, architecture

GATES = ("_o", "_i", "_f", "_c")


class Workspace:
    """Memory for T steps of B sequences with H units, and the views of each step.

    `Z` (T, B, 4H) holds the gates o, i, f and c~; `hidden` and `cell` (T + 1, B, H) the states
    from the start on; `squashed` (T, B, H) tanh of the cell state; `d_Z`, `d_out` and `into_cell`
    belong to the backward pass. Fewer steps use the first part of it.
    """

    def __init__(self, T: int, B: int, H: int, like: Tensor) -> None:
        self.T, self.B, self.H = T, B, H
        self.Z, self.d_Z = like.new_empty(T, B, 4 * H), like.new_empty(T, B, 4 * H)
        self.hidden, self.cell = like.new_empty(T + 1, B, H), like.new_empty(T + 1, B, H)
        self.squashed, self.d_out = like.new_empty(T, B, H), like.new_empty(T, B, H)
        self.into_cell = like.new_empty(T, B, H)

        # a view costs a microsecond, so those of the steps are made once
        self.z, self.h, self.c = self.Z.unbind(), self.hidden.unbind(), self.cell.unbind()
        self.s, self.d_output = self.squashed.unbind(), self.d_out.unbind()
        self.sigmoids = self.Z[..., : 3 * H].unbind()
        o, i, f, g = self.Z.chunk(4, dim=-1)
        self.o, self.i, self.f, self.g = (gate.unbind() for gate in (o, i, f, g))

        by_gate = self.d_Z.view(T, B, 4, H)
        self.d_z, self.d_h_to_c = self.d_Z.unbind(), self.into_cell.unbind()
        self.d_o = by_gate[:, :, 0].unbind()  # (B, H) each
        self.d_from_cell = by_gate[:, :, 1:].unbind()  # (B, 3, H) each


class Workspaces:
    """Lends workspaces: one for each shape, and more only while several passes are under way."""

    def __init__(self) -> None:
        self.free: dict[tuple, list[Workspace]] = {}

    def lend(self, T: int, B: int, H: int, like: Tensor) -> Lease:
        """A workspace of at least T steps, a used one where there is one."""
        free = self.free.setdefault((B, H, like.dtype, like.device), [])
        if free and free[-1].T >= T:
            return Lease(free.pop(), free)
        free[-1:] = []  # too short: it makes room for a longer one
        return Lease(Workspace(T, B, H, like), free)

    def size(self) -> int:
        """Bytes of all that is not lent."""
        buffers = ("Z", "d_Z", "hidden", "cell", "squashed", "d_out", "into_cell")
        works = [work for free in self.free.values() for work in free]
        return sum(getattr(work, name).nbytes for work in works for name in buffers)


class Lease:
    """Holds a workspace as long as a pass may read it, then puts it back where it came from."""

    def __init__(self, work: Workspace, home: list[Workspace]) -> None:
        self.work, self._home = work, home

    def __del__(self) -> None:
        self._home.append(self.work)


def fill_forward(X: Tensor, h: Tensor, c: Tensor, U: Tensor, work: Workspace) -> None:
    """Fill `work` from the input's part of the gates, X (T, B, 4H), and the start states (B, H)."""
    T = len(X)
    work.Z[:T] = X
    work.hidden[0], work.cell[0] = h, c
    for t in range(T):
        work.z[t].addmm_(work.h[t], U)
        work.sigmoids[t].sigmoid_()
        work.g[t].tanh_()
        torch.mul(work.i[t], work.g[t], out=work.c[t + 1]).addcmul_(work.f[t], work.c[t])
        torch.tanh(work.c[t + 1], out=work.s[t])
        torch.mul(work.o[t], work.s[t], out=work.h[t + 1])


def fill_backward(
    d_output: Tensor, d_h: Tensor, d_c: Tensor, U: Tensor, work: Workspace
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates' sums (T, B, 4H) and of the start states (B, H).

    `d_output` (T, B, H) reaches the outputs, `d_h` and `d_c` (B, H) the final states. At each step,
    with ⊙ left out and every gate's own slope σ' = σ (1 - σ) or 1 - c~²,

        dc += dh o (1 - tanh²(c)),   do = dh tanh(c) o',
        di = dc c~ i',   df = dc c_before f',   dc~ = dc i (1 - c~²),
        dc_before = dc f,   dh_before = [do di df dc~] U^T + what reaches that output.
    """
    T, H = len(d_output), work.H
    Z, d_Z, squashed, into_cell = (
        part[:T] for part in (work.Z, work.d_Z, work.squashed, work.into_cell)
    )
    o, i, _, g = Z.chunk(4, dim=-1)
    d_o, d_i, d_f, d_g = d_Z.chunk(4, dim=-1)
    U_T = U.t().contiguous()

    # the factors that the recursion does not touch, for all steps at once
    sigmoids = Z[..., : 3 * H]
    torch.mul(sigmoids, sigmoids, out=d_Z[..., : 3 * H]).neg_().add_(sigmoids)
    d_o.mul_(squashed)
    d_i.mul_(g)
    d_f.mul_(work.cell[:T])
    torch.mul(g, g, out=d_g).neg_().add_(1).mul_(i)
    torch.mul(squashed, squashed, out=into_cell).neg_().add_(1).mul_(o)

    work.d_out[:T] = d_output
    d_h, d_c = d_h + work.d_out[T - 1], d_c.clone()
    for t in range(T - 1, -1, -1):
        d_c.addcmul_(d_h, work.d_h_to_c[t])
        work.d_o[t].mul_(d_h)
        work.d_from_cell[t].mul_(d_c.unsqueeze(1))
        d_c.mul_(work.f[t])
        if t:
            torch.addmm(work.d_output[t - 1], work.d_z[t], U_T, out=d_h)
        else:
            d_h = work.d_z[0] @ U_T
    return d_Z, d_h, d_c


class ThroughTime(torch.autograd.Function):
    """One layer as one operation of autograd, (B, T, I) in, (B, T, H) out."""

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, h: Tensor, c: Tensor, W: Tensor, U: Tensor, b: Tensor,
        pool: Workspaces, passes: tuple[Callable, Callable],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        forward, ctx.fill_backward = passes
        T, B, H = X.shape[1], X.shape[0], h.shape[1]
        by_time = X.transpose(0, 1).reshape(T * B, -1)  # (T*B, I)
        ctx.lease = pool.lend(T, B, H, X)
        work = ctx.lease.work
        forward(torch.addmm(b, by_time, W).view(T, B, -1), h, c, U, work)
        ctx.save_for_backward(by_time, W, U)
        output = work.hidden[1 : T + 1].transpose(0, 1).contiguous()
        return output, work.h[T].clone(), work.c[T].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        by_time, W, U = ctx.saved_tensors
        work, T = ctx.lease.work, d_output.shape[1]
        d_Z, d_h, d_c = ctx.fill_backward(d_output.transpose(0, 1), d_h, d_c, U, work)

        flat = d_Z.reshape(T * work.B, -1)  # (T*B, 4H)
        d_W = by_time.t() @ flat
        d_U = work.hidden[:T].reshape(T * work.B, -1).t() @ flat
        d_b = flat.sum(0, keepdim=True)
        d_X = None
        if ctx.needs_input_grad[0]:
            d_X = (flat @ W.t()).view(T, work.B, -1).transpose(0, 1)
        return d_X, d_h, d_c, d_W, d_U, d_b, None, None


class WorkspaceLSTMLayer(FusedLSTMLayer):
    """The LSTM layer with its gradient written by hand, on memory that it uses again."""

    reuse = True
    passes = (fill_forward, fill_backward)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pool = Workspaces()

    def forward(self, X: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Outputs (B, T, H), the hidden state after each step, and the last state."""
        pool = self.pool if self.reuse else Workspaces()
        output, h, c = ThroughTime.apply(X, *state, self.W, self.U, self.b, pool, self.passes)
        return output, (h, c)


class HandwrittenBackwardLSTMLayer(WorkspaceLSTMLayer):
    """The same on fresh memory for every batch."""

    reuse = False


class WorkspaceLSTM(_Recurrent):
    """h_t and c_t of `recurrent.LSTM`; its gates o i f c side by side, its memory used again."""

    layer_class = WorkspaceLSTMLayer
    state_names = ("h_0", "c_0")

    @classmethod
    def from_lstm(cls, lstm: LSTM) -> WorkspaceLSTM:
        """The same function as `lstm`, with a copy of its weights."""
        weights = {
            index: {
                kind: torch.cat([getattr(layer, kind + gate) for gate in GATES], dim=1)
                for kind in "WUb"
            }
            for index, layer in enumerate(lstm.layers)
        }
        return cls(**architecture(lstm), weights=weights)


class HandwrittenBackwardLSTM(WorkspaceLSTM):
    """The same on fresh memory for every batch."""

    layer_class = HandwrittenBackwardLSTMLayer
