"""Many replicas of one digit-sum model, trained at once.

A replica is small: at batch 8 and hidden size 32 a training step spends its time on calling
operators, not on arithmetic. So R replicas are stacked along a leading axis and every operator
serves all of them. Nothing is shared between replicas: each keeps its own start, data order,
gradients and Adam moments, and a replica trained here equals the same replica trained alone.

The backward pass is written by hand. Per step of time it is four operators; everything that does
not depend on the recursion is computed for all steps together, and each weight gets one matrix
product at the end. Tests compare it with autograd through `SequenceClassifier`.

Shapes: R replicas, B sequences, T steps, V digits, E embedding, H hidden, G gates, C classes.
Gate columns stand in the order o, i, f, c: the first three are sigmoids, the last three depend on
the cell state's gradient, so either group is one slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from labkit.memory.model import GATES, ModelSpec, initial_parameters, recurrent_shapes

TRACE_NAMES = {"srn": ("h",), "lstm": ("i", "f", "o", "g", "c", "h")}
EVALUATION_BATCH = 128


class _Workspace:
    """Buffers for one batch shape, made once: fresh ones would cost page faults at every step.

    `Z` holds pre-activations, then gate values, (T, R, B, G*H); `hidden` and `cell` (T+1, R, B, H)
    begin with the zero state; `squashed` is tanh(cell) (T, R, B, H). Every list holds a view for
    each step, for at this size making a view costs a good part of using it.
    """

    def __init__(self, T: int, R: int, B: int, H: int, cell: str, like: Tensor) -> None:
        gates = len(GATES[cell])
        self.Z = like.new_empty(T, R, B, gates * H)
        self.d_Z = torch.empty_like(self.Z)
        self.hidden = like.new_zeros(T + 1, R, B, H)
        self.Z_steps, self.d_Z_steps = self.Z.unbind(), self.d_Z.unbind()
        self.hidden_steps = self.hidden.unbind()
        if cell == "srn":
            return

        self.cell = torch.zeros_like(self.hidden)
        self.squashed = like.new_empty(T, R, B, H)
        self.cell_steps, self.squashed_steps = self.cell.unbind(), self.squashed.unbind()
        self.sigmoid_steps = self.Z[..., : 3 * H].unbind()
        self.gates = dict(zip("oifg", self.Z.split(H, dim=-1), strict=True))
        self.gate_steps = {name: gate.unbind() for name, gate in self.gates.items()}
        self.d_gates = dict(zip("oifg", self.d_Z.split(H, dim=-1), strict=True))
        self.d_o_steps = self.d_gates["o"].unbind()
        self.from_cell_steps = self.d_Z[..., H:].unflatten(-1, (3, H)).unbind()


class Ensemble:
    """R independent replicas of the model `spec`, one for each of `seeds`."""

    def __init__(
        self,
        spec: ModelSpec,
        seeds: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not seeds:
            raise ValueError("Ensemble needs at least one seed, got none")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"Ensemble.dtype must be torch.float32 or torch.float64, got {dtype}")
        self.spec, self.seeds = spec, tuple(seeds)
        self.dtype, self.device = dtype, torch.device(device)

        self._allocate()
        starts = [initial_parameters(spec, seed) for seed in self.seeds]
        self.load_state_dict({name: torch.stack([s[name] for s in starts]) for name in starts[0]})

    def __len__(self) -> int:
        return len(self.seeds)

    def _allocate(self) -> None:
        """One flat buffer for all parameters, one for all gradients, and named views of both."""
        spec, R = self.spec, len(self.seeds)
        E, H, C = spec.embedding_size, spec.hidden_size, spec.num_classes
        columns = len(GATES[spec.cell]) * H
        shapes = {
            "W": (R, E, columns),
            "U": (R, H, columns),
            "b": (R, 1, columns),
            "head_weight": (R, H, C),
            "head_bias": (R, 1, C),
            "embedding": (R, spec.vocab_size, E),
        }
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        flat = torch.zeros(sum(sizes), dtype=self.dtype, device=self.device)
        flat_gradient = torch.zeros_like(flat)

        def views(buffer: Tensor) -> dict[str, Tensor]:
            parts = buffer.split(sizes)
            return {
                name: part.view(shape)
                for (name, shape), part in zip(shapes.items(), parts, strict=True)
            }

        self.parameters, self.gradients = views(flat), views(flat_gradient)

        # a frozen embedding stands last, so what the optimiser sees is a prefix
        trained = sum(sizes) if spec.train_embedding else sum(sizes[:-1])
        self.trainable = torch.nn.Parameter(flat[:trained])
        self.trainable.grad = flat_gradient[:trained]

        self._workspaces: dict[tuple[int, int], _Workspace] = {}
        self._row_offset = torch.arange(R, device=self.device).view(1, R, 1) * spec.vocab_size
        self._digits = torch.arange(spec.vocab_size, device=self.device)

    # parameters in and out

    def _named_views(self) -> dict[str, Tensor]:
        """Views of the parameters under the names and shapes of `SequenceClassifier`."""
        p, H = self.parameters, self.spec.hidden_size
        named = {
            "embedding.weight": p["embedding"],
            "head.weight": p["head_weight"].transpose(1, 2),
            "head.bias": p["head_bias"].squeeze(1),
        }
        for name in recurrent_shapes(self.spec):
            kind, _, gate = name.partition("_")
            start = GATES[self.spec.cell].index(gate) * H
            named[f"recurrent.layers.0.{name}"] = p[kind][..., start : start + H]
        return named

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all parameters, each with the replica axis in front: (R, ...)."""
        return {name: view.detach().clone() for name, view in self._named_views().items()}

    def parameters_of(self, replica: int) -> dict[str, Tensor]:
        """The state dict of one replica, as `SequenceClassifier.load_state_dict` takes it."""
        return {name: value[replica] for name, value in self.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load parameters (R, ...) strictly: the same names and shapes, nothing missing."""
        own = self._named_views()
        if missing := sorted(own.keys() - state.keys()):
            raise ValueError(f"Ensemble.load_state_dict: missing {', '.join(missing)}")
        if unknown := sorted(state.keys() - own.keys()):
            raise ValueError(f"Ensemble.load_state_dict: unknown {', '.join(unknown)}")
        for name, view in own.items():
            if state[name].shape != view.shape:
                raise ValueError(
                    f"Ensemble.load_state_dict: {name} has shape {tuple(state[name].shape)}, "
                    f"this ensemble of {len(self)} replicas needs {tuple(view.shape)}"
                )
        for name, view in own.items():
            view.copy_(state[name])

    # forward

    def _rows(self, X: Tensor) -> Tensor:
        """Rows of the stacked (R*V) look-up table for digits X (B, T) or (R, B, T): (T, R, B)."""
        if X.dtype not in (torch.int64, torch.int32, torch.uint8):
            raise TypeError(f"X must hold integer digits, got dtype {X.dtype}")
        if X.dim() == 2:
            X = X.expand(len(self), *X.shape)
        if X.dim() != 3 or X.shape[0] != len(self) or 0 in X.shape:
            raise ValueError(
                f"X must have shape (B, T) or (R={len(self)}, B, T) with B, T >= 1, "
                f"got {tuple(X.shape)}"
            )
        low, high = X.aminmax()
        if low < 0 or high >= self.spec.vocab_size:
            raise ValueError(
                f"X must hold digits 0..{self.spec.vocab_size - 1}, got {int(low)}..{int(high)}"
            )
        return X.permute(2, 0, 1) + self._row_offset

    def _read(self, rows: Tensor, ablate: Mapping[str, float | Tensor] | None = None) -> _Workspace:
        """Read sequences given as table rows (T, R, B); leaves gates and states in a workspace."""
        work, p = self._workspace(rows.shape[0], rows.shape[2]), self.parameters

        # the input's part of every gate is a look-up, for there are only V different inputs
        table = torch.baddbmm(p["b"], p["embedding"], p["W"])  # (R, V, G*H)
        torch.index_select(table.flatten(0, 1), 0, rows.flatten(), out=work.Z.flatten(0, 2))

        if self.spec.cell == "srn":
            self._run_srn(work)
        else:
            self._run_lstm(work, ablate or {})
        return work

    def _workspace(self, T: int, B: int) -> _Workspace:
        if (T, B) not in self._workspaces:
            if len(self._workspaces) >= 4:
                self._workspaces.clear()
            self._workspaces[T, B] = _Workspace(
                T, len(self), B, self.spec.hidden_size, self.spec.cell, self.trainable.data
            )
        return self._workspaces[T, B]

    def _run_srn(self, work: _Workspace) -> None:
        h, U = work.hidden_steps, self.parameters["U"]
        for t, z in enumerate(work.Z_steps):
            torch.tanh(z.baddbmm_(h[t], U), out=h[t + 1])

    def _run_lstm(self, work: _Workspace, ablate: Mapping[str, float | Tensor]) -> None:
        h, c, U = work.hidden_steps, work.cell_steps, self.parameters["U"]
        o, i, f, g = (work.gate_steps[name] for name in "oifg")
        for t, z in enumerate(work.Z_steps):
            z.baddbmm_(h[t], U)
            work.sigmoid_steps[t].sigmoid_()
            g[t].tanh_()
            for name, value in ablate.items():
                work.gate_steps[name][t].copy_(torch.as_tensor(value))

            torch.mul(f[t], c[t], out=c[t + 1]).addcmul_(i[t], g[t])
            torch.tanh(c[t + 1], out=work.squashed_steps[t])
            torch.mul(o[t], work.squashed_steps[t], out=h[t + 1])

    def _head(self, h: Tensor) -> Tensor:
        p = self.parameters
        return torch.baddbmm(p["head_bias"], h, p["head_weight"])  # (R, B, C)

    @torch.no_grad()
    def logits(self, X: Tensor, *, ablate: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """Class scores (R, B, C) for digits X (B, T) or (R, B, T); `ablate` as in `trace`."""
        self._check_ablation(ablate)
        rows = self._rows(X).split(EVALUATION_BATCH, dim=2)
        return torch.cat([self._head(self._read(part, ablate).hidden[-1]) for part in rows], 1)

    @torch.no_grad()
    def trace(
        self, X: Tensor, *, ablate: Mapping[str, float | Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Every gate and state at every step for digits X (B, T) or (R, B, T).

        Returns (R, B, T, H) tensors: for the LSTM "i", "f", "o", "g" (the candidate), "c", "h"; for
        the SRN "h". `ablate` sets the gates "i", "f" or "o" of an LSTM to a constant, a number or a
        tensor that broadcasts to (R, B, H), while the sequence is read.
        """
        self._check_ablation(ablate)
        work = self._read(self._rows(X), ablate)
        found = {"h": work.hidden[1:]}
        if self.spec.cell == "lstm":
            found |= work.gates | {"c": work.cell[1:]}
        return {
            name: found[name].permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format)
            for name in TRACE_NAMES[self.spec.cell]
        }

    def _check_ablation(self, ablate: Mapping[str, float | Tensor] | None) -> None:
        allowed = ("i", "f", "o") if self.spec.cell == "lstm" else ()
        for gate in ablate or {}:
            if gate not in allowed:
                raise ValueError(
                    f"ablate: no gate {gate!r} in a {self.spec.cell}; allowed: "
                    f"{', '.join(allowed) or 'none'}"
                )

    # loss and backward

    def _targets(self, X: Tensor, y: Tensor) -> Tensor:
        """Check the classes y (B,) or (R, B) of the sequences X and return them as (R, B)."""
        R, B, C = len(self), X.shape[-2], self.spec.num_classes
        if y.dtype != torch.int64:
            raise TypeError(f"y must hold int64 classes, got dtype {y.dtype}")
        if tuple(y.shape) not in ((B,), (R, B)):
            raise ValueError(
                f"y must have shape (B={B},) or (R={R}, B={B}) as X has, got {tuple(y.shape)}"
            )
        low, high = y.aminmax()
        if low < 0 or high >= C:
            raise ValueError(f"y must hold classes 0..{C - 1}, got {int(low)}..{int(high)}")
        return y.expand(R, B)

    @torch.no_grad()
    def evaluate(self, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (R,) and accuracy (R,) on X (B, T) or (R, B, T), y (B,) or (R, B)."""
        logits = self.logits(X)
        y = self._targets(X, y)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), y, reduction="none")
        return losses.mean(1), (logits.argmax(-1) == y).to(self.dtype).mean(1)

    @torch.no_grad()
    def loss_and_gradients(self, X: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
        """One forward and backward pass; fills `gradients` and returns the losses (R,).

        X holds digits (B, T) or (R, B, T), y classes (B,) or (R, B). `reduction` is "mean" or
        "sum" over the batch; each replica has its own loss, and no replica sees another's.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        rows = self._rows(X)
        work = self._read(rows)
        last = work.hidden_steps[-1]

        log_p = self._head(last).log_softmax(-1)  # (R, B, C)
        y = self._targets(X, y).unsqueeze(-1)
        losses = -log_p.gather(-1, y).squeeze(-1)  # (R, B)

        # d loss / d logits is softmax minus one-hot
        d_logits = log_p.exp_().scatter_add_(-1, y, log_p.new_full((1,), -1.0).expand(y.shape))
        if reduction == "mean":
            d_logits /= y.shape[1]
        g, p = self.gradients, self.parameters
        torch.bmm(last.transpose(1, 2), d_logits, out=g["head_weight"])
        torch.sum(d_logits, dim=1, keepdim=True, out=g["head_bias"])
        d_h = torch.bmm(d_logits, p["head_weight"].transpose(1, 2))

        backward = self._backward_srn if self.spec.cell == "srn" else self._backward_lstm
        backward(work, d_h)
        self._weight_gradients(rows, work)
        return losses.mean(1) if reduction == "mean" else losses.sum(1)

    def _backward_srn(self, work: _Workspace, d_h: Tensor) -> None:
        """Fill `work.d_Z` (T, R, B, H), given the gradient of the last hidden state (R, B, H)."""
        U_T = self.parameters["U"].transpose(1, 2).contiguous()
        torch.mul(work.hidden[1:], work.hidden[1:], out=work.d_Z).neg_().add_(1)
        for t in range(len(work.Z) - 1, -1, -1):
            work.d_Z_steps[t].mul_(d_h)
            if t:
                torch.bmm(work.d_Z_steps[t], U_T, out=d_h)

    def _backward_lstm(self, work: _Workspace, d_h: Tensor) -> None:
        """Fill `work.d_Z` (T, R, B, 4H), given the gradient of the last hidden state (R, B, H).

        With dc the gradient of the cell state and all products elementwise, the equations are
        dc += dh o (1 - tanh(c)^2); do = dh tanh(c) o(1-o); di = dc g i(1-i);
        df = dc c_prev f(1-f); dg = dc i (1-g^2); then dc_prev = dc f and dh_prev = dZ U^T.
        """
        H = self.spec.hidden_size
        U_T = self.parameters["U"].transpose(1, 2).contiguous()
        o, i, g = (work.gates[name] for name in "oig")
        f_steps, squashed = work.gate_steps["f"], work.squashed

        # the factors that the recursion does not touch, for all steps at once
        sigmoids = work.Z[..., : 3 * H]
        torch.mul(sigmoids, sigmoids, out=work.d_Z[..., : 3 * H]).neg_().add_(sigmoids)
        work.d_gates["o"].mul_(squashed)
        work.d_gates["i"].mul_(g)
        work.d_gates["f"].mul_(work.cell[:-1])
        torch.mul(g, g, out=work.d_gates["g"]).neg_().add_(1).mul_(i)
        into_cell = squashed.square_().neg_().add_(1).mul_(o).unbind()  # d h -> d c

        d_c = torch.zeros_like(d_h)
        for t in range(len(work.Z) - 1, -1, -1):
            d_c.addcmul_(d_h, into_cell[t])
            work.d_o_steps[t].mul_(d_h)
            work.from_cell_steps[t].mul_(d_c.unsqueeze(-2))
            if t:
                d_c.mul_(f_steps[t])
                torch.bmm(work.d_Z_steps[t], U_T, out=d_h)

    def _weight_gradients(self, rows: Tensor, work: _Workspace) -> None:
        """One matrix product for each weight, over all steps and sequences."""
        g, p, R = self.gradients, self.parameters, len(self)
        by_replica = work.d_Z.transpose(0, 1).reshape(R, -1, work.d_Z.shape[-1])  # (R, T*B, GH)
        h = work.hidden[:-1].transpose(0, 1).reshape(R, -1, self.spec.hidden_size)  # (R, T*B, H)
        torch.bmm(h.transpose(1, 2), by_replica, out=g["U"])

        # the look-up table's gradient, a one-hot product: (R, V, GH)
        digits = (rows - self._row_offset).transpose(0, 1).reshape(R, 1, -1)
        one_hot = (digits == self._digits.view(1, -1, 1)).to(self.dtype)  # (R, V, T*B)
        d_table = torch.bmm(one_hot, by_replica)
        torch.sum(d_table, dim=1, keepdim=True, out=g["b"])
        torch.bmm(p["embedding"].transpose(1, 2), d_table, out=g["W"])
        torch.bmm(d_table, p["W"].transpose(1, 2), out=g["embedding"])
