"""The digit-sum model: one to read, and many replicas of it that are trained at once.

A step of so small a model is spent on calling operators, not on arithmetic, so `Ensemble` stacks R
replicas along a leading axis, each equal to the same one trained alone. The backward pass is
written by hand and tested against autograd.

Shapes: R replicas, B sequences, T steps, V digits, E embedding, H hidden, G gates, C classes.
Gate columns stand in the order o, i, f, c: the three sigmoids are one slice, and so are the three
that depend on the cell state's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from labkit.cells import layers
from labkit.lab.store import specification
from labkit.memory.data import DIGITS, SUMS, check

GATES = {"srn": ("",), "lstm": ("_o", "_i", "_f", "_c")}  # endings of the parameters' names
EVALUATION_BATCH = 128

Held = Mapping[str, float | Tensor] | None  # gates replaced by constants


@specification
class ModelSpec:
    """What a digit-sum model is, apart from its seed.

    `init` is the start of every recurrent weight and bias: "zero", or "xavier" (uniform with bound
    sqrt(6 / (fan_in + fan_out)), a bias counting as a (1, hidden) matrix).
    """

    cell: Literal["srn", "lstm"]
    init: Literal["zero", "xavier"] = "xavier"
    train_embedding: bool = True
    embedding_size: PositiveInt = 32
    hidden_size: PositiveInt = 32

    @property
    def setting(self) -> str:
        """Start and embedding, as the records name them: "zero/trained", "xavier/frozen"."""
        return f"{self.init}/{'trained' if self.train_embedding else 'frozen'}"


def initial_parameters(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Draw the start of one model, in float64, under the names of `SequenceClassifier`.

    Embedding and head are drawn first: models of one seed share them, whatever cell and `init`.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(bound: float, *shape: int) -> Tensor:
        draw = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (2 * draw - 1) * bound

    E, H = spec.embedding_size, spec.hidden_size
    parameters = {
        "embedding.weight": uniform(math.sqrt(6 / (DIGITS + E)), DIGITS, E),
        "head.weight": uniform(1 / math.sqrt(H), SUMS, H),
        "head.bias": uniform(1 / math.sqrt(H), SUMS),
    }
    for gate in GATES[spec.cell]:
        for kind, rows in {"W": E, "U": H, "b": 1}.items():
            bound = 0.0 if spec.init == "zero" else math.sqrt(6 / (rows + H))
            parameters[f"recurrent.layers.0.{kind}{gate}"] = uniform(bound, rows, H)
    return parameters


class SequenceClassifier(nn.Module):
    """Digits (B, T) in, logits (B, num_classes) out, read from the last hidden state."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        super().__init__()
        layer = {"srn": layers.SRN, "lstm": layers.LSTM}[spec.cell]
        self.embedding = nn.Embedding(DIGITS, spec.embedding_size)
        self.embedding.weight.requires_grad_(spec.train_embedding)
        self.recurrent = layer(spec.embedding_size, spec.hidden_size)
        self.head = nn.Linear(spec.hidden_size, SUMS)
        self.load_state_dict(initial_parameters(spec, seed), strict=True)

    def forward(self, X: Tensor) -> Tensor:
        output, _ = self.recurrent(self.embedding(X))  # (B, T, H)
        return self.head(output[:, -1])  # (B, C)


class _Workspace:
    """Buffers for one batch shape, made once: fresh ones would cost page faults at every step.

    `Z` holds pre-activations, then gate values, (T, R, B, G*H), `d_Z` their gradients; `h` and `c`
    (T+1, R, B, H) begin with the zero state; `tanh_c` is (T, R, B, H); `steps` has their views.
    """

    def __init__(self, T: int, B: int, U: Tensor) -> None:
        R, H, GH = U.shape
        self.Z = U.new_empty(T, R, B, GH)
        self.d_Z = torch.empty_like(self.Z)
        self.h = U.new_zeros(T + 1, R, B, H)
        views = {"Z": self.Z, "d_Z": self.d_Z, "h": self.h}
        if GH == 4 * H:  # an LSTM
            self.c, self.tanh_c = torch.zeros_like(self.h), U.new_empty(T, R, B, H)
            views |= dict(zip("oifg", self.Z.split(H, dim=-1), strict=True))
            views |= {"sigmoids": self.Z[..., : 3 * H], "c": self.c, "tanh_c": self.tanh_c}
            views |= {"d_o": self.d_Z[..., :H], "d_ifg": self.d_Z[..., H:].unflatten(-1, (3, H))}
        self.steps = {name: view.unbind() for name, view in views.items()}


class Ensemble:
    """R independent replicas of the model `spec`, one for each of `seeds`; `place`: dtype, device.

    X holds digits, int64 (B, T), or (R, B, T) where every replica reads its own; y holds classes,
    int64 (B,) or (R, B).
    """

    def __init__(self, spec: ModelSpec, seeds: Sequence[int], **place: Any) -> None:
        self.spec, self.seeds = spec, tuple(seeds)
        R, E, H = len(self.seeds), spec.embedding_size, spec.hidden_size
        GH = len(GATES[spec.cell]) * H
        shapes = {"W": (E, GH), "U": (H, GH), "b": (1, GH)}
        shapes |= {"head_weight": (H, SUMS), "head_bias": (1, SUMS), "embedding": (DIGITS, E)}

        # one flat buffer for all parameters, one for all gradients; the optimiser sees a prefix
        sizes = [R * rows * columns for rows, columns in shapes.values()]
        self.flat = torch.zeros(sum(sizes), **place)
        self.flat_gradient = torch.zeros_like(self.flat)
        self.parameters, self.gradients = (
            {
                name: values.view(R, *shapes[name])
                for name, values in zip(shapes, buffer.split(sizes), strict=True)
            }
            for buffer in (self.flat, self.flat_gradient)
        )
        trained = sum(sizes) if spec.train_embedding else sum(sizes[:-1])
        self.trainable = nn.Parameter(self.flat[:trained])
        self.trainable.grad = self.flat_gradient[:trained]

        self._workspaces: dict[tuple[int, int], _Workspace] = {}
        self._row_offset = torch.arange(R, device=self.flat.device).view(1, R, 1) * DIGITS
        self._digits = torch.arange(DIGITS, device=self.flat.device).view(-1, 1)
        starts = [initial_parameters(spec, seed) for seed in self.seeds]
        self.load_state_dict({name: torch.stack([s[name] for s in starts]) for name in starts[0]})

    def __len__(self) -> int:
        return len(self.seeds)

    def _named_views(self) -> dict[str, Tensor]:
        """Views of the parameters under the names and shapes of `SequenceClassifier`."""
        p, H = self.parameters, self.spec.hidden_size
        views = {"embedding.weight": p["embedding"], "head.weight": p["head_weight"].mT}
        views["head.bias"] = p["head_bias"].squeeze(1)
        for k, gate in enumerate(GATES[self.spec.cell]):
            for kind in "WUb":
                columns = slice(k * H, (k + 1) * H)
                views[f"recurrent.layers.0.{kind}{gate}"] = p[kind][..., columns]
        return views

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all parameters, each with the replica axis in front: (R, ...)."""
        return {name: view.detach().clone() for name, view in self._named_views().items()}

    def parameters_of(self, replica: int) -> dict[str, Tensor]:
        """The state dict of one replica, as `SequenceClassifier.load_state_dict` takes it."""
        return {name: value[replica] for name, value in self.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load parameters (R, ...) strictly: the same names and shapes, nothing missing."""
        views = self._named_views()
        needed, given = ({n: tuple(v.shape) for n, v in s.items()} for s in (views, state))
        if wrong := sorted({*needed.items()} ^ {*given.items()}):
            raise ValueError(f"missing, unknown or of another shape in load_state_dict: {wrong}")
        for name, view in views.items():
            view.copy_(state[name])

    def _read(self, X: Tensor, held: Held = None, first: int = 0) -> _Workspace:
        """Read X and leave all gates and states in a workspace; `held`, `first` as in `trace`."""
        B, T = X.shape[-2:]
        if (T, B) not in self._workspaces:
            if len(self._workspaces) >= 4 and not self.flat.is_cuda:  # captured graphs read them
                self._workspaces.clear()
            self._workspaces[T, B] = _Workspace(T, B, self.parameters["U"])
        work, p = self._workspaces[T, B], self.parameters

        # the input's part of every gate is a look-up, for there are only V different inputs
        table = torch.baddbmm(p["b"], p["embedding"], p["W"])  # (R, V, G*H)
        rows = X.expand(len(self), B, T).permute(2, 0, 1) + self._row_offset  # (T, R, B)
        torch.index_select(table.flatten(0, 1), 0, rows.flatten(), out=work.Z.flatten(0, 2))
        if self.spec.cell == "lstm":
            self._run_lstm(work, held or {}, first)
            return work
        h = work.steps["h"]
        for t, z in enumerate(work.steps["Z"]):
            torch.tanh(z.baddbmm_(h[t], p["U"]), out=h[t + 1])
        return work

    def _run_lstm(self, work: _Workspace, held: Mapping[str, float | Tensor], first: int) -> None:
        """All steps of the LSTM; `work.Z` comes with x W + b, h[0] and c[0] are zero."""
        steps, U = work.steps, self.parameters["U"]
        o, i, f, g, c, h = (steps[name] for name in "oifgch")
        for t, z in enumerate(steps["Z"]):  # (R, B, 4H)
            z.baddbmm_(h[t], U)
            steps["sigmoids"][t].sigmoid_()
            g[t].tanh_()
            for gate in held if t >= first else ():
                steps[gate][t].copy_(torch.as_tensor(held[gate]))

            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            torch.tanh(c[t + 1], out=steps["tanh_c"][t])
            torch.mul(o[t], steps["tanh_c"][t], out=h[t + 1])

    def _head(self, h: Tensor) -> Tensor:
        return torch.baddbmm(self.parameters["head_bias"], h, self.parameters["head_weight"])

    @torch.no_grad()
    def logits(self, X: Tensor, held: Held = None, first: int = 0) -> Tensor:
        """Class scores (R, B, C) for X; `held` and `first` are those of `trace`."""
        self._check_held(X, held, first)
        return self._logits(X, held, first)

    def _logits(self, X: Tensor, held: Held = None, first: int = 0) -> Tensor:
        parts = X.split(EVALUATION_BATCH, dim=-2)
        return torch.cat([self._head(self._read(part, held, first).h[-1]) for part in parts], 1)

    @torch.no_grad()
    def trace(self, X: Tensor, held: Held = None, first: int = 0) -> dict[str, Tensor]:
        """Gates and states (R, B, T, H): "i", "f", "o", "g" (candidate), "c", "h"; SRN: "h" alone.

        `held` maps gates "i", "f" or "o" to a number, or a tensor (R, 1, H), that takes the gate's
        place from step `first` on, counted from 0.
        """
        self._check_held(X, held, first)
        work = self._read(X, held, first)
        values = {"h": work.h[1:]}
        if self.spec.cell == "lstm":
            o, i, f, g = work.Z.split(self.spec.hidden_size, dim=-1)
            values = {"i": i, "f": f, "o": o, "g": g, "c": work.c[1:]} | values
        return {n: torch.stack(v.unbind(), dim=2) for n, v in values.items()}

    def _check_held(self, X: Tensor, held: Held, first: int) -> None:
        check(X, replicas=len(self))
        allowed, T = [*"ifo"] if self.spec.cell == "lstm" else [], X.shape[-1]
        if not {*(held or {})} <= {*allowed} or not 0 <= first < T:
            got = f"got {[*(held or {})]} from {first}"
            raise ValueError(f"held: {allowed} can be held from a step 0..{T - 1} on, {got}")

    def evaluate(self, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (R,) and accuracy (R,) on X and y."""
        check(X, y, replicas=len(self))
        return self.scores(X, y)

    @torch.no_grad()
    def scores(self, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As `evaluate`, for X and y that have passed `data.check`."""
        logits, y = self._logits(X), y.expand(len(self), X.shape[-2])
        losses = nn.functional.cross_entropy(logits.mT, y, reduction="none")
        return losses.mean(1), (logits.argmax(-1) == y).to(logits.dtype).mean(1)

    @torch.no_grad()
    def loss_and_gradients(self, X: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
        """One forward and backward pass; fills `gradients` and returns the losses (R,), each the
        "mean" or "sum" over its replica's batch. X and y must have passed `data.check`."""
        work, g, p = self._read(X), self.gradients, self.parameters
        last = work.h[-1]

        log_p = self._head(last).log_softmax(-1)  # (R, B, C)
        y = y.expand(log_p.shape[:2]).unsqueeze(-1)
        losses = -log_p.gather(-1, y).squeeze(-1)  # (R, B)

        # d loss / d logits is softmax minus one-hot
        d_logits = log_p.exp_().scatter_add_(-1, y, log_p.new_full((1,), -1.0).expand(y.shape))
        if reduction == "mean":
            d_logits /= y.shape[1]
        torch.bmm(last.mT, d_logits, out=g["head_weight"])
        torch.sum(d_logits, dim=1, keepdim=True, out=g["head_bias"])
        d_h = torch.bmm(d_logits, p["head_weight"].mT)

        U_T = p["U"].mT.contiguous()
        if self.spec.cell == "lstm":
            self._backward_lstm(work, d_h, U_T)
        else:  # d_Z = d_h (1 - h^2), from the last step to the first
            torch.mul(work.h[1:], work.h[1:], out=work.d_Z).neg_().add_(1)
            for d_z in reversed(work.steps["d_Z"]):
                torch.bmm(d_z.mul_(d_h), U_T, out=d_h)
        self._weight_gradients(X, work)
        return losses.mean(1) if reduction == "mean" else losses.sum(1)

    def _backward_lstm(self, work: _Workspace, d_h: Tensor, U_T: Tensor) -> None:
        """Fill `work.d_Z` (T, R, B, 4H), given the gradient of the last hidden state (R, B, H).

        With dc the gradient of the cell state, the equations are, elementwise,
        dc += dh o (1 - tanh(c)^2); do = dh tanh(c) o(1-o); di = dc g i(1-i);
        df = dc c_prev f(1-f); dg = dc i (1-g^2); then dc_prev = dc f and dh_prev = dZ U^T.
        """
        H, steps = self.spec.hidden_size, work.steps
        (o, i, _, g), (d_o, d_i, d_f, d_g) = (Z.split(H, dim=-1) for Z in (work.Z, work.d_Z))

        # the factors that the recursion does not touch, for all steps at once
        sigmoids = work.Z[..., : 3 * H]
        torch.mul(sigmoids, sigmoids, out=work.d_Z[..., : 3 * H]).neg_().add_(sigmoids)
        d_o.mul_(work.tanh_c)
        d_i.mul_(g)
        d_f.mul_(work.c[:-1])
        torch.mul(g, g, out=d_g).neg_().add_(1).mul_(i)
        into_cell = work.tanh_c.square_().neg_().add_(1).mul_(o).unbind()  # d h -> d c

        d_c = torch.zeros_like(d_h)
        for t in range(len(work.Z) - 1, -1, -1):
            d_c.addcmul_(d_h, into_cell[t])
            steps["d_o"][t].mul_(d_h)
            steps["d_ifg"][t].mul_(d_c.unsqueeze(-2))
            if t:
                d_c.mul_(steps["f"][t])
                torch.bmm(steps["d_Z"][t], U_T, out=d_h)

    def _weight_gradients(self, X: Tensor, work: _Workspace) -> None:
        """One matrix product for each weight, over all steps and sequences."""
        g, p, R = self.gradients, self.parameters, len(self)
        d_Z = work.d_Z.transpose(0, 1).reshape(R, -1, work.d_Z.shape[-1])  # (R, T*B, GH)
        h = work.h[:-1].transpose(0, 1).reshape(R, -1, work.h.shape[-1])  # (R, T*B, H)
        torch.bmm(h.mT, d_Z, out=g["U"])

        # the look-up table's gradient, a one-hot product: (R, V, GH)
        digits = X.mT.expand(R, *X.mT.shape[-2:]).reshape(R, 1, -1)  # (R, 1, T*B)
        d_table = torch.bmm((digits == self._digits).to(d_Z.dtype), d_Z)
        torch.sum(d_table, dim=1, keepdim=True, out=g["b"])
        torch.bmm(p["embedding"].mT, d_table, out=g["W"])
        torch.bmm(d_table, p["W"].mT, out=g["embedding"])
