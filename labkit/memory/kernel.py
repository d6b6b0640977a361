"""The training of an `Ensemble` as one GPU kernel: many steps of all replicas in one launch.

A step of so small a model is a hundred operators, and a GPU takes longer to start each of them than
to compute it. Here program r trains replica r by itself, with the equations and the tensors of
`model.Ensemble`. Needs Triton, and a GPU; with TRITON_INTERPRET=1 it runs without one, slowly.

Shapes are those of one replica: B sequences, of which empty ones make 16 rows, T steps, V digits,
E embedding, H hidden, C classes, and G gates, their columns in the order o, i, f, g. A barrier
stands wherever a thread reads what another has written to memory.
"""

from __future__ import annotations

import threading

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from labkit.memory.data import DIGITS, SUMS
from labkit.memory.model import GATES, Ensemble

V, C = constexpr(DIGITS), constexpr(SUMS)
ROWS, PADDED_C = constexpr(16), constexpr(32)  # sizes that a product can have
BETA1, BETA2, EPS = constexpr(0.9), constexpr(0.999), constexpr(1e-8)  # torch's defaults for Adam
LAUNCH = {"num_warps": 4, "num_stages": 1, "maxnreg": 168}  # three programs to a multiprocessor
_one_at_a_time = threading.Lock()  # a first launch compiles; trainings may run in several threads


@triton.jit
def tanh(x):
    """Accurate relative to small x too, as Adam needs it; polynomial of Cephes's tanhf."""
    s = x * x
    p = 1.33314422036e-1 + s * (-5.37397155531e-2 + s * (2.06390887954e-2 - s * 5.70498872745e-3))
    e = tl.exp(-2 * tl.abs(x))
    large = tl.where(x < 0, e - 1, 1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.625, x + x * s * (s * p - 3.33332819422e-1), large)


@triton.jit
def tile(row, column, width):
    return row[:, None] * width + column[None, :]


@triton.jit
def look_up(p, W, b, emb, table, E: constexpr, GH: constexpr, P: constexpr):
    """x W + b for each of the V digits: the input's part of every gate is one of these rows."""
    digit, at, column = tl.arange(0, ROWS), tl.arange(0, E), tl.arange(0, GH)
    x = tl.load(p + emb + tile(digit, at, E), (digit < V)[:, None], other=0.0)  # (V, E)
    z = tl.dot(x, tl.load(p + W + tile(at, column, GH)), input_precision=P)  # (V, G*H)
    z += tl.load(p + b + column)[None, :]
    tl.store(table + tile(digit, column, GH), z, (digit < V)[:, None])


@triton.jit
def forward(X, row, table, U, gates, cells, hidden, T, B, H: constexpr, G: constexpr, P: constexpr):
    """Read all steps; keep gates (T, B, G*H) and states (T+1, B, H), of which the first is zero."""
    lane, unit = tl.arange(0, ROWS), tl.arange(0, H)
    kept, gate, state = (lane < B)[:, None], tile(lane, unit, G * H), tile(lane, unit, H)
    U += tile(unit, unit, G * H)
    U_o = tl.load(U)  # (H, H), an SRN's only one
    if G == 4:
        U_i, U_f, U_g = tl.load(U + H), tl.load(U + 2 * H), tl.load(U + 3 * H)
    h, c = tl.zeros((ROWS, H), tl.float32), tl.zeros((ROWS, H), tl.float32)
    for t in range(T):
        digit = tl.load(X + row * T + t)  # (B,)
        z = table + digit[:, None] * (G * H) + unit[None, :]
        if G == 1:
            h = tanh(tl.dot(h, U_o, tl.load(z), input_precision=P))  # (B, H)
        else:
            o = tl.sigmoid(tl.dot(h, U_o, tl.load(z), input_precision=P))  # (B, H), as all below
            i = tl.sigmoid(tl.dot(h, U_i, tl.load(z + H), input_precision=P))
            f = tl.sigmoid(tl.dot(h, U_f, tl.load(z + 2 * H), input_precision=P))
            g = tanh(tl.dot(h, U_g, tl.load(z + 3 * H), input_precision=P))
            c = f * c + i * g
            h = o * tanh(c)
            now = gates + t * B * G * H + gate
            for k in tl.static_range(4):
                tl.store(now + k * H, (o, i, f, g)[k], kept)
            tl.store(cells + (t + 1) * B * H + state, c, kept)
        tl.store(hidden + (t + 1) * B * H + state, h, kept)
    return h


@triton.jit
def backward(d_h, U, gates, cells, hidden, T, B, H: constexpr, G: constexpr, P: constexpr):
    """From the last step to the first; the gradients of the gates' sums take the gates' place."""
    lane, unit = tl.arange(0, ROWS), tl.arange(0, H)
    kept, gate, state = (lane < B)[:, None], tile(lane, unit, G * H), tile(lane, unit, H)
    U += tile(unit, unit, G * H)
    U_o = tl.load(U)
    weights = (U_o,) if G == 1 else (U_o, tl.load(U + H), tl.load(U + 2 * H), tl.load(U + 3 * H))
    d_c = tl.zeros((ROWS, H), tl.float32)
    for back in range(T):
        t = T - 1 - back
        now, before = gates + t * B * G * H + gate, t * B * H + state
        if G == 1:
            h = tl.load(hidden + B * H + before, kept, other=0.0)
            d_sums = (d_h * (1 - h * h),)  # (B, H)
        else:
            o, i = tl.load(now, kept, other=0.0), tl.load(now + H, kept, other=0.0)
            f, g = tl.load(now + 2 * H, kept, other=0.0), tl.load(now + 3 * H, kept, other=0.0)
            c_before = tl.load(cells + before, kept, other=0.0)
            tanh_c = tanh(tl.load(cells + B * H + before, kept, other=0.0))
            d_c += d_h * o * (1 - tanh_c * tanh_c)  # (B, H), as all below
            d_o = d_h * tanh_c * o * (1 - o)
            d_i = d_c * g * i * (1 - i)
            d_f = d_c * c_before * f * (1 - f)
            d_g = d_c * i * (1 - g * g)
            d_c = d_c * f
            d_sums = (d_o, d_i, d_f, d_g)
        d_h = tl.zeros((ROWS, H), tl.float32)
        for k in tl.static_range(G):
            d_h = tl.dot(d_sums[k], tl.trans(weights[k]), d_h, input_precision=P)
            tl.store(now + k * H, d_sums[k], kept)


@triton.jit
def head(h, y, given, p, d_p, W, b, H: constexpr, P: constexpr):
    """The mean cross-entropy of the sequences `given` (B,), and its gradient for h (B, H)."""
    unit, label = tl.arange(0, H), tl.arange(0, PADDED_C)
    known, at = label < C, tile(unit, label, C)
    weight = tl.load(p + W + at, known[None, :], other=0.0)  # (H, C)
    z = tl.dot(h, weight, input_precision=P)  # (B, C)
    z += tl.load(p + b + label, known, other=float("-inf"))[None, :]
    z -= tl.max(z, 1)[:, None]
    total, right = tl.sum(tl.exp(z), 1), label[None, :] == tl.load(y)[:, None]
    losses = tl.log(total) - tl.sum(tl.where(right, z, 0.0), 1)  # (B,)
    count = tl.sum(given.to(tl.float32), 0)
    # d loss / d logits is softmax minus one-hot
    d_z = tl.where(given[:, None], (tl.exp(z) / total[:, None] - right.to(tl.float32)) / count, 0.0)
    tl.store(d_p + W + at, tl.dot(tl.trans(h), d_z, input_precision=P), known[None, :])
    tl.store(d_p + b + label, tl.sum(d_z, 0), known)
    loss = tl.sum(tl.where(given, losses, 0.0), 0) / count
    return loss, tl.dot(d_z, tl.trans(weight), input_precision=P)


@triton.jit
def weight_gradients(
    X, order, d_sums, hidden, p, d_p, W, U, b, emb, T, B,
    E: constexpr, H: constexpr, GH: constexpr, P: constexpr,
):  # fmt: skip
    """One product for each weight, over all T*B rows: here none of the 16 is padding."""
    digit, at, unit, column = tl.arange(0, ROWS), tl.arange(0, E), tl.arange(0, H), tl.arange(0, GH)
    d_recurrent, d_table = tl.zeros((H, GH), tl.float32), tl.zeros((ROWS, GH), tl.float32)
    for start in range(0, T * B, ROWS):
        k = start + tl.arange(0, ROWS)
        inside = k < T * B
        d_z = tl.load(d_sums + tile(k, column, GH), inside[:, None], other=0.0)  # (K, G*H)
        h_before = tl.load(hidden + tile(k, unit, H), inside[:, None], other=0.0)  # (K, H)
        row = tl.maximum(tl.load(order + k % B, inside, other=0), 0)
        x = tl.load(X + row * T + k // B, inside, other=0)  # (K,)
        one_hot = (digit[:, None] == x[None, :]).to(tl.float32)  # (V, K)
        d_recurrent = tl.dot(tl.trans(h_before), d_z, d_recurrent, input_precision=P)
        d_table = tl.dot(one_hot, d_z, d_table, input_precision=P)
    tl.store(d_p + U + tile(unit, column, GH), d_recurrent)
    # the table is x W + b, with the embedding x
    x = tl.load(p + emb + tile(digit, at, E), (digit < V)[:, None], other=0.0)  # (V, E)
    d_x = tl.dot(d_table, tl.trans(tl.load(p + W + tile(at, column, GH))), input_precision=P)
    tl.store(d_p + emb + tile(digit, at, E), d_x, (digit < V)[:, None])
    tl.store(d_p + W + tile(at, column, GH), tl.dot(tl.trans(x), d_table, input_precision=P))
    tl.store(d_p + b + column, tl.sum(d_table, 0))


@triton.jit
def adam(p, d_p, m, v, first, size, step_size, root):
    """The n-th step; step_size is lr / (1 - BETA1**n), root the square root of 1 - BETA2**n."""
    for start in range(0, size, 1024):
        k = start + tl.arange(0, 1024)
        at, inside = first + k, k < size
        g = tl.load(d_p + at, inside, other=0.0)
        m_new = BETA1 * tl.load(m + at, inside, other=0.0) + (1 - BETA1) * g
        v_new = BETA2 * tl.load(v + at, inside, other=0.0) + (1 - BETA2) * g * g
        change = step_size * m_new / (tl.sqrt(v_new) / root + EPS)
        tl.store(m + at, m_new, inside)
        tl.store(v + at, v_new, inside)
        tl.store(p + at, tl.load(p + at, inside, other=0.0) - change, inside)


@triton.jit(do_not_specialize=["X_own", "y_own", "order_own", "T", "B", "steps"])
def train_replica(
    X, y, order, p, d_p, m, v, rates, losses, table, gates, cells, hidden, X_own, y_own, order_own,
    T, B, steps, E: constexpr, H: constexpr, G: constexpr, PARTS: constexpr, P: constexpr,
):  # fmt: skip
    """All steps of one replica. First, where its data, its memory and the parts of its parameters
    begin; PARTS of these are trained."""
    r, R = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    GH: constexpr = G * H
    X, y, order = X + r * X_own, y + r * y_own, order + r * order_own
    table, gates = table + r * V * GH, gates + r * T * B * GH
    cells, hidden = cells + r * (T + 1) * B * H, hidden + r * (T + 1) * B * H
    W, U, b = r * E * GH, R * E * GH + r * H * GH, R * (E + H) * GH + r * GH
    head_W, head_b = R * (E + H + 1) * GH + r * H * C, R * ((E + H + 1) * GH + H * C) + r * C
    emb = R * ((E + H + 1) * GH + (H + 1) * C) + r * V * E
    parts = (W, U, b, head_W, head_b, emb)
    sizes = (E * GH, H * GH, GH, H * C, C, V * E)
    for s in range(steps):
        lane = tl.arange(0, ROWS)
        row = tl.load(order + s * B + lane, lane < B, other=-1)  # (B,)
        given, row = row >= 0, tl.maximum(row, 0)
        look_up(p, W, b, emb, table, E, GH, P)
        tl.debug_barrier()
        h = forward(X, row, table, p + U, gates, cells, hidden, T, B, H, G, P)
        loss, d_h = head(h, y + row, given, p, d_p, head_W, head_b, H, P)
        tl.store(losses + r * steps + s, loss)
        tl.debug_barrier()
        backward(d_h, p + U, gates, cells, hidden, T, B, H, G, P)
        tl.debug_barrier()
        weight_gradients(X, order + s * B, gates, hidden, p, d_p, W, U, b, emb, T, B, E, H, GH, P)
        tl.debug_barrier()
        step_size, root = tl.load(rates + 2 * s), tl.load(rates + 2 * s + 1)
        for k in tl.static_range(PARTS):
            adam(p, d_p, m, v, parts[k], sizes[k], step_size, root)
        tl.debug_barrier()


def train(
    ensemble: Ensemble, optimiser: torch.optim.Adam, X: Tensor, y: Tensor, order: Tensor,
    precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """Train every replica by as many steps as `order` has; return their losses (R, steps).

    X (N, T) or (R, N, T) and y (N,) or (R, N) are all data; `order` (1 or R, steps, B) has the rows
    of each step's batch of at most 16, -1 in places that the last of an epoch leaves empty. Leaves
    all as `loss_and_gradients` and `optimiser.step` do. `precision` is that of `tl.dot`.
    """
    spec, trained, R = ensemble.spec, ensemble.trainable, len(ensemble)
    E, H, G = spec.embedding_size, spec.hidden_size, len(GATES[spec.cell])
    steps, B, T = *order.shape[1:], X.shape[-1]
    X, y = X.contiguous().expand(R, *X.shape[-2:]), y.contiguous().expand(R, y.shape[-1])
    order = order.contiguous().expand(R, steps, B)

    state, lr = optimiser.state[trained], optimiser.param_groups[0]["lr"]
    if not state:  # as Adam begins
        state["step"] = trained.new_zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(trained), torch.zeros_like(trained)
    n = state["step"].double() + torch.arange(1, steps + 1, device=trained.device)
    rates = torch.stack([lr / (1 - BETA1.value**n), (1 - BETA2.value**n).sqrt()], 1).float()
    shapes = (steps,), (DIGITS, G * H), (T, B, G * H), (T + 1, B, H), (T + 1, B, H)
    losses, *scratch = (trained.new_zeros(R, *shape) for shape in shapes)
    with _one_at_a_time:
        train_replica[(R,)](
            X, y, order, ensemble.flat, ensemble.flat_gradient, state["exp_avg"],
            state["exp_avg_sq"], rates, losses, *scratch, X.stride(0), y.stride(0),
            order.stride(0), T, B, steps, E, H, G, 5 + spec.train_embedding, precision, **LAUNCH,
        )  # fmt: skip
    state["step"] += steps
    return losses
