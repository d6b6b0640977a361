"""The LSTM layer made fast in plain torch: the gradient written by hand, then memory used again.

Autograd keeps a small graph node, and often a tensor, for every operation of every step. The
backward pass through time written out needs five calls a step, and a matrix product for each weight
after many steps. What then remains is asking for memory, which a workspace does once for all
batches.

Shapes as in `labkit.cells.layers`; time comes first inside, (T, B, ...), so that a step is one piece
of memory. The gates stand side by side in the order o, i, f, c, for the first three are sigmoids
and the last three are what the cell state's gradient reaches. What needs no recursion is done for a
block of steps at once, short enough for the processor's cache: at small sizes one block is all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labkit.cells.layers import FusedLSTM, FusedLSTMLayer, LayerState

BLOCK_BYTES = 512 * 1024  # of a block's gates; with gradients and states it is about 3 times that


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

    `Z` (T, B, 4H) holds the gates o, i, f and c~; `hidden` and `cell` (T + 1, B, H) the states from
    the start on; `squashed` (T, B, H) tanh of the cell state. The backward pass has `d_hidden`
    (T + 1, B, H), the states' gradients, and for the K steps of a block `d_Z` (K, B, 4H) and
    `into_cell` (K, B, H). Fewer steps use the first part of it.
    """

    def __init__(self, T: int, B: int, H: int, like: Tensor) -> None:
        self.T, self.B, self.H = T, B, H
        self.K = K = min(T, max(1, BLOCK_BYTES // (B * 4 * H * like.element_size())))
        self.Z, self.d_Z = like.new_empty(T, B, 4 * H), like.new_empty(K, B, 4 * H)
        self.hidden, self.cell = like.new_empty(T + 1, B, H), like.new_empty(T + 1, B, H)
        self.squashed, self.into_cell = like.new_empty(T, B, H), like.new_empty(K, B, H)
        self.d_hidden = like.new_empty(T + 1, B, H)

        # a view costs a microsecond, so those of the steps are made once
        self.h, self.c, self.d_h = self.hidden.unbind(), self.cell.unbind(), self.d_hidden.unbind()
        h, c, d_h = self.h, self.c, self.d_h
        o, i, f, g = (gate.unbind() for gate in self.Z.chunk(4, dim=-1))
        z, squashed, sigmoids = (
            part.unbind() for part in (self.Z, self.squashed, self.Z[..., : 3 * H])
        )
        self.forward_steps = list(
            zip(z, sigmoids, o, i, f, g, squashed, h, c, h[1:], c[1:])  # noqa: B905
        )

        by_gate = self.d_Z.view(K, B, 4, H)
        in_block = self.d_Z, by_gate[:, :, 0], by_gate[:, :, 1:], self.into_cell
        views = list(zip(*(part.unbind() for part in in_block), strict=True))
        self.backward_steps = [(*views[t % K], f[t], d_h[t + 1], d_h[t]) for t in range(T)]
        self.made: dict[tuple[int, int], Block] = {}

    def blocks(self, T: int) -> list[Block]:
        """The first T steps, cut into blocks of K; the last may be shorter."""
        ends = [(first, min(first + self.K, T)) for first in range(0, T, self.K)]
        for first, stop in ends:
            if (first, stop) not in self.made:
                self.made[first, stop] = Block(self, first, stop)
        return [self.made[pair] for pair in ends]


class Block:
    """The steps `first` to `stop` - 1 of a workspace, and views of what they do at once."""

    def __init__(self, work: Workspace, first: int, stop: int) -> None:
        steps, H = slice(first, stop), work.H
        self.rows = slice(first * work.B, stop * work.B)
        self.forward_steps = work.forward_steps[steps]
        self.backward_steps = work.backward_steps[steps][::-1]
        self.Z, self.d_Z = work.Z[steps], work.d_Z[: stop - first]
        self.sigmoids, self.d_sigmoids = self.Z[..., : 3 * H], self.d_Z[..., : 3 * H]
        self.o, self.i, _, self.g = self.Z.chunk(4, dim=-1)
        self.d_o, self.d_i, self.d_f, self.d_g = self.d_Z.chunk(4, dim=-1)
        self.squashed, self.into_cell = work.squashed[steps], work.into_cell[: stop - first]
        self.h, self.h_before = work.hidden[1:][steps], work.hidden[steps].flatten(0, 1)
        self.c_before = work.cell[steps]
        self.flat, self.d_flat = self.Z.flatten(0, 1), self.d_Z.flatten(0, 1)


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
        buffers = ("Z", "d_Z", "hidden", "cell", "squashed", "d_hidden", "into_cell")
        works = [work for free in self.free.values() for work in free]
        return sum(getattr(work, name).nbytes for work in works for name in buffers)


class Lease:
    """Holds a workspace as long as a pass may read it, then puts it back where it came from."""

    def __init__(self, work: Workspace, home: list[Workspace]) -> None:
        self.work, self._home = work, home

    def __del__(self) -> None:
        self._home.append(self.work)


def walk_forward(block: Block, U: Tensor) -> None:
    """Fill a block's gates and states; its `Z` holds the input's part of the gates already."""
    with torch.inference_mode():  # a call that autograd need not look at is a little cheaper
        for z, sigmoids, o, i, f, g, squashed, h, c, h_next, c_next in block.forward_steps:
            z.addmm_(h, U)
            sigmoids.sigmoid_()
            g.tanh_()
            torch.mul(f, c, out=c_next).addcmul_(i, g)
            torch.tanh(c_next, out=squashed)
            torch.mul(o, squashed, out=h_next)


def fill_brackets(block: Block) -> None:
    """The factors of a block that no gradient enters, at once.

    With ⊙ left out they are tanh(c) o (1 - o), c~ i (1 - i), c_before f (1 - f) and i (1 - c~²) for
    the sums of the gates, in `d_Z`, and o (1 - tanh²(c)) for the cell state, in `into_cell`.
    """
    sigmoids, i, g, squashed = block.sigmoids, block.i, block.g, block.squashed
    torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=block.d_sigmoids)  # s - s s
    block.d_o.mul_(squashed)
    block.d_i.mul_(g)
    block.d_f.mul_(block.c_before)
    torch.mul(g, g, out=block.d_g)
    torch.addcmul(i, i, block.d_g, value=-1, out=block.d_g)
    # o tanh²(c) is h tanh(c)
    torch.addcmul(block.o, block.h, squashed, value=-1, out=block.into_cell)


def walk_back(block: Block, d_c: Tensor, U_T: Tensor) -> None:
    """Walk back over a block; the brackets in its `d_Z` become the gradients of the gates' sums.

    Its steps' `d_h` hold what reaches each output, and complete for the last state; they become
    complete down to the state before the block. `d_c` (B, H) is of the last cell state, and in
    place becomes that of the one before. `U_T` (4H, H).
    """
    d_c_for_all = d_c.unsqueeze(1)  # (B, 1, H)
    with torch.inference_mode():
        for d_z, d_o, d_from_cell, into_cell, f, d_h, d_before in block.backward_steps:
            d_c.addcmul_(d_h, into_cell)
            d_o.mul_(d_h)
            d_from_cell.mul_(d_c_for_all)  # (B, 3, H): i, f and c~
            d_c.mul_(f)
            d_before.addmm_(d_z, U_T)


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
        work.h[0].copy_(h)
        work.c[0].copy_(c)
        for block in work.blocks(T):
            torch.addmm(b, by_time[block.rows], W, out=block.flat)
            walk_forward(block, U)
        ctx.save_for_backward(by_time, W, U)
        output = work.hidden[1 : T + 1].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        return output, work.h[T].clone(), work.c[T].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        by_time, W, U = ctx.saved_tensors
        work, T, B = ctx.lease.work, d_output.shape[1], d_output.shape[0]
        work.d_h[0].zero_()  # no output stands before the first step
        work.d_hidden[1 : T + 1].copy_(d_output.transpose(0, 1))
        work.d_h[T].add_(d_h)
        d_c = d_c.clone(memory_format=torch.contiguous_format)
        d_W, d_U, d_b = torch.empty_like(W), torch.empty_like(U), W.new_zeros(1, W.shape[1])
        d_X = torch.empty_like(by_time) if ctx.needs_input_grad[0] else None
        U_T = U.t().contiguous()
        for n, block in enumerate(reversed(work.blocks(T))):
            fill_brackets(block)
            walk_back(block, d_c, U_T)
            d_gates = block.d_flat  # (K*B, 4H)
            d_W.addmm_(by_time[block.rows].t(), d_gates, beta=min(n, 1))  # 0: nothing to add to yet
            d_U.addmm_(block.h_before.t(), d_gates, beta=min(n, 1))
            d_b += d_gates.sum(0)
            if d_X is not None:
                torch.mm(d_gates, W.t(), out=d_X[block.rows])
        if d_X is not None:
            d_X = d_X.view(T, B, -1).transpose(0, 1)
        return d_X, work.d_h[0].clone(), d_c, d_W, d_U, d_b, None


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
