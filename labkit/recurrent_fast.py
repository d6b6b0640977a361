"""The LSTM layer made fast in plain torch: the gradient written by hand, then memory used again.

Autograd keeps a tensor and a small graph node for every operation of every step. The backward pass
through time written out needs four calls a step, and one matrix product for each weight at the end.
What then remains is asking for memory, which a workspace does once for all batches.

Shapes as in `labkit.recurrent`; time comes first inside, (T, B, ...), so that a step is one piece
of memory. The gates stand side by side in the order o, i, f, c, for the last three are what the
cell state's gradient reaches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labkit.recurrent import FusedLSTM, FusedLSTMLayer, LayerState


class OneProductLSTMLayer(FusedLSTMLayer):
    """The gates' products taken together: at each step one with the input, one with the state."""

    def unroll(self, X: Tensor, state: LayerState) -> list[LayerState]:
        """The states after each of the T steps of X (B, T, I)."""
        h, c = state
        H, states = self.hidden_size, []
        for x in X.unbind(1):  # (B, I)
            z = x @ self.W + h @ self.U + self.b  # (B, 4H)
            i, f, o = torch.sigmoid(z[:, : 3 * H]).chunk(3, dim=1)  # (B, H) each
            c = f * c + i * torch.tanh(z[:, 3 * H :])
            h = o * torch.tanh(c)
            states.append((h, c))
        return states


class OneProductLSTM(FusedLSTM):
    """`FusedLSTM` with the input's product still inside the loop."""

    layer_class = OneProductLSTMLayer


class Workspace:
    """Memory for T steps of B sequences with H units, and the views of each step.

    `Z` (T, B, 4H) holds the gates o, i, f and γ, where c~ = 2γ - 1; `hidden` and `cell`
    (T + 1, B, H) the states from the start on; `squashed` (T, B, H) tanh of the cell state; `d_Z`,
    `d_out` and `into_cell` belong to the backward pass. Fewer steps use the first part of it.
    `scale` (1, 4H) doubles the columns of γ.
    """

    def __init__(self, T: int, B: int, H: int, like: Tensor) -> None:
        self.T, self.B, self.H = T, B, H
        self.Z, self.d_Z = like.new_empty(T, B, 4 * H), like.new_empty(T, B, 4 * H)
        self.hidden, self.cell = like.new_empty(T + 1, B, H), like.new_empty(T + 1, B, H)
        self.squashed, self.into_cell = like.new_empty(T, B, H), like.new_empty(T, B, H)
        self.d_out = like.new_zeros(T + 1, B, H)  # no output stands before the first step
        self.scale = like.new_ones(1, 4 * H)
        self.scale[:, 3 * H :] = 2

        # a view costs a microsecond, so those of the steps are made once
        h, c = self.hidden.unbind(), self.cell.unbind()
        o, i, f, g = (gate.unbind() for gate in self.Z.chunk(4, dim=-1))
        z, squashed = self.Z.unbind(), self.squashed.unbind()
        self.forward_steps = list(zip(z, o, i, f, g, squashed, h, c, h[1:], c[1:]))  # noqa: B905

        by_gate = self.d_Z.view(T, B, 4, H)
        d_o, from_cell = by_gate[:, :, 0].unbind(), by_gate[:, :, 1:].unbind()  # (B, 3, H) each
        rest = f, self.into_cell.unbind(), self.d_out.unbind()
        self.backward_steps = list(zip(self.d_Z.unbind(), d_o, from_cell, *rest))  # noqa: B905


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
        with torch.inference_mode(False):  # else a later training could not write into it
            return Lease(Workspace(T, B, H, like), free)

    def size(self) -> int:
        """Bytes of all that is not lent."""
        buffers = ("Z", "d_Z", "hidden", "cell", "squashed", "d_out", "into_cell", "scale")
        works = [work for free in self.free.values() for work in free]
        return sum(getattr(work, name).nbytes for work in works for name in buffers)


class Lease:
    """Holds a workspace as long as a pass may read it, then puts it back where it came from."""

    def __init__(self, work: Workspace, home: list[Workspace]) -> None:
        self.work, self._home = work, home

    def __del__(self) -> None:
        self._home.append(self.work)


def fill_forward(T: int, h: Tensor, c: Tensor, U: Tensor, work: Workspace) -> None:
    """Fill `work` for T steps from the start states (B, H); its `Z` has the input's part already.

    c~ = tanh(a) is written as 2γ - 1 with γ = σ(2a), so that one sigmoid serves all four gates: Z
    and U come with the columns of c~ doubled.
    """
    work.hidden[0], work.cell[0] = h, c
    for z, o, i, f, g, squashed, h, c, h_next, c_next in work.forward_steps[:T]:
        z.addmm_(h, U).sigmoid_()
        torch.mul(f, c, out=c_next).addcmul_(i, g, value=2).sub_(i)  # f c + i (2γ - 1)
        torch.tanh(c_next, out=squashed)
        torch.mul(o, squashed, out=h_next)


def fill_backward(
    d_output: Tensor, d_h: Tensor, d_c: Tensor, U: Tensor, work: Workspace
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates' sums (T, B, 4H) and of the start states (B, H).

    `d_output` (T, B, H) reaches the outputs, `d_h` and `d_c` (B, H) the final states. At each step,
    with ⊙ left out and every gate's own slope σ' = σ (1 - σ),

        dc += dh o (1 - tanh²(c)),   do = dh tanh(c) o',
        di = dc c~ i',   df = dc c_before f',   dγ = dc 2i γ',
        dc_before = dc f,   dh_before = [do di df dγ] U^T + what reaches that output.
    """
    T = len(d_output)
    Z, d_Z, squashed, into_cell = (
        part[:T] for part in (work.Z, work.d_Z, work.squashed, work.into_cell)
    )
    o, i, _, g = Z.chunk(4, dim=-1)
    d_o, d_i, d_f, d_g = d_Z.chunk(4, dim=-1)
    U_T = U.t().contiguous()

    # the factors that the recursion does not touch, for all steps at once
    torch.mul(Z, Z, out=d_Z).neg_().add_(Z)
    d_o.mul_(squashed)
    d_g.mul_(i).mul_(2)
    d_f.mul_(work.cell[:T])
    d_i.mul_(torch.mul(g, 2, out=into_cell).sub_(1))
    torch.mul(squashed, squashed, out=into_cell).neg_().add_(1).mul_(o)

    work.d_out[1 : T + 1] = d_output
    d_h = d_h + work.d_out[T]
    d_c = d_c.clone(memory_format=torch.contiguous_format)
    d_c_for_all = d_c.unsqueeze(1)  # (B, 1, H)
    for d_z, d_o, d_from_cell, f, h_to_c, before in reversed(work.backward_steps[:T]):
        d_c.addcmul_(d_h, h_to_c)
        d_o.mul_(d_h)
        d_from_cell.mul_(d_c_for_all)
        d_c.mul_(f)
        torch.addmm(before, d_z, U_T, out=d_h)
    return d_Z, d_h, d_c


class ThroughTime(torch.autograd.Function):
    """One layer as one operation of autograd, (B, T, I) in, (B, T, H) out."""

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, h: Tensor, c: Tensor, W: Tensor, U: Tensor, b: Tensor, pool: Workspaces
    ) -> tuple[Tensor, Tensor, Tensor]:
        T, B, H = X.shape[1], X.shape[0], h.shape[1]
        by_time = X.transpose(0, 1).reshape(T * B, -1)  # (T*B, I)
        ctx.lease = pool.lend(T, B, H, X)
        work = ctx.lease.work
        W, U, b = W * work.scale, U * work.scale, b * work.scale
        torch.addmm(b, by_time, W, out=work.Z[:T].view(T * B, -1))
        fill_forward(T, h, c, U, work)
        ctx.save_for_backward(by_time, W, U)
        output = work.hidden[1 : T + 1].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        return output, work.hidden[T].clone(), work.cell[T].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        by_time, W, U = ctx.saved_tensors
        work, T = ctx.lease.work, d_output.shape[1]
        d_Z, d_h, d_c = fill_backward(d_output.transpose(0, 1), d_h, d_c, U, work)

        flat = d_Z.reshape(T * work.B, -1)  # (T*B, 4H)
        d_W = (by_time.t() @ flat).mul_(work.scale)
        d_U = (work.hidden[:T].reshape(T * work.B, -1).t() @ flat).mul_(work.scale)
        d_b = flat.sum(0, keepdim=True).mul_(work.scale)
        d_X = None
        if ctx.needs_input_grad[0]:
            d_X = (flat @ W.t()).view(T, work.B, -1).transpose(0, 1)
        return d_X, d_h, d_c, d_W, d_U, d_b, None


class WorkspaceLSTMLayer(FusedLSTMLayer):
    """The LSTM layer with its gradient written by hand, on memory that it uses again."""

    reuse = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pool = Workspaces()

    def forward(self, X: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Outputs (B, T, H), the hidden state after each step, and the last state."""
        pool = self.pool if self.reuse else Workspaces()
        output, h, c = ThroughTime.apply(X, *state, self.W, self.U, self.b, pool)
        return output, (h, c)


class HandwrittenBackwardLSTMLayer(WorkspaceLSTMLayer):
    """The same on fresh memory for every batch."""

    reuse = False


class WorkspaceLSTM(FusedLSTM):
    """`FusedLSTM` with its gates side by side in the order o i f c, its memory used again."""

    layer_class = WorkspaceLSTMLayer
    order = ("_o", "_i", "_f", "_c")


class HandwrittenBackwardLSTM(WorkspaceLSTM):
    """The same on fresh memory for every batch."""

    layer_class = HandwrittenBackwardLSTMLayer
