"""SRN, LSTM and GRU layers written out, and their exchange and comparison with torch's.

A cell is one method, `step`; a layer unrolls it over time; `SRN`, `LSTM` and `GRU` stack layers.

Shapes: B sequences, T steps, I inputs, H hidden units, L stacked layers, D directions (1 or 2).
Weights multiply from the right, x W + h U + b, with W (I, H), U (H, H) and b (1, H) for each gate.
torch stores W and U transposed, all gates one above the other, and has two biases, not one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

LayerState = tuple[Tensor, ...]  # (h,) or (h, c), each (B, H)
State = Tensor | tuple[Tensor, Tensor]  # h_n, or (h_n, c_n) for the LSTM, each (L*D, B, H)


class _Layer(nn.Module):
    """One layer in one direction. A subclass writes its `step` and lists its `gates`, endings of
    names: each gets W (I, H), U (H, H) and b (1, H), all Xavier-uniform at the start."""

    gates: tuple[str, ...] = ()
    second_biases: tuple[str, ...] = ()  # more of (1, H), by name

    def __init__(self, input_size: int, hidden_size: int, **place: Any) -> None:
        super().__init__()
        rows = {"W": input_size, "U": hidden_size, "b": 1}
        names = [kind + gate for gate in self.gates for kind in rows]
        for name in (*names, *self.second_biases):
            start = torch.empty(rows[name[0]], hidden_size, **place)
            self.register_parameter(name, nn.Parameter(nn.init.xavier_uniform_(start)))

    def unroll(self, X: Tensor, state: LayerState) -> list[LayerState]:
        """The states after each of the T steps of X (B, T, I)."""
        states = []
        for x in X.unbind(1):  # (B, I)
            state = self.step(x, state)
            states.append(state)
        return states

    def forward(self, X: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Outputs (B, T, H), the hidden state after each step, and the last state."""
        states = self.unroll(X, state)
        return torch.stack([s[0] for s in states], dim=1), states[-1]


class SRNLayer(_Layer):
    """Simple recurrent network (Elman, 1990): one tanh of the input and the last hidden state."""

    gates = ("",)

    def step(self, x: Tensor, state: LayerState) -> LayerState:
        (h,) = state
        return (torch.tanh(x @ self.W + h @ self.U + self.b),)


class LSTMLayer(_Layer):
    """Long short-term memory with a forget gate (Gers, Schmidhuber and Cummins, 2000)."""

    gates = ("_i", "_f", "_o", "_c")

    def gated_step(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        """One step with everything that happens in it, each tensor (B, H)."""
        # three gates between 0 and 1
        i = torch.sigmoid(x @ self.W_i + h @ self.U_i + self.b_i)
        f = torch.sigmoid(x @ self.W_f + h @ self.U_f + self.b_f)
        o = torch.sigmoid(x @ self.W_o + h @ self.U_o + self.b_o)

        # what could be stored, what is kept, what is shown
        c_tilde = torch.tanh(x @ self.W_c + h @ self.U_c + self.b_c)
        c = f * c + i * c_tilde
        h = o * torch.tanh(c)
        return {"i": i, "f": f, "o": o, "c_tilde": c_tilde, "c": c, "h": h}

    def step(self, x: Tensor, state: LayerState) -> LayerState:
        now = self.gated_step(x, *state)
        return now["h"], now["c"]


class GRULayer(_Layer):
    """Gated recurrent unit in torch's order, not arXiv:1406.1078v3's: U_n first, then the reset."""

    gates = ("_r", "_z", "_n")
    second_biases = ("b_hn",)

    def step(self, x: Tensor, state: LayerState) -> LayerState:
        (h,) = state
        r = torch.sigmoid(x @ self.W_r + h @ self.U_r + self.b_r)
        z = torch.sigmoid(x @ self.W_z + h @ self.U_z + self.b_z)
        n = torch.tanh(x @ self.W_n + self.b_n + r * (h @ self.U_n + self.b_hn))
        return ((1 - z) * n + z * h,)


class _Recurrent(nn.Module):
    """L stacked layers in D directions, in torch's order; `place` takes dtype and device."""

    layer_class: type[_Layer]
    state_names: tuple[str, ...] = ("h_0",)

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = False,
        **place: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.bidirectional = num_layers, bidirectional
        self.num_directions = D = 2 if bidirectional else 1

        inputs = [input_size] + [D * hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(
            self.layer_class(size, hidden_size, **place) for size in inputs for _ in range(D)
        )

    def forward(self, X: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run X (B, T, I) from `state`, zero by default: the top layer's hidden states (B, T, D*H),
        forward direction first, and h_n (L*D, B, H), for the LSTM (h_n, c_n); the backward
        direction ends at step 1."""
        starts = self._start(X, state)
        ends = []
        for lower in range(0, len(self.layers), self.num_directions):
            outputs = []
            for direction in range(self.num_directions):
                layer = self.layers[lower + direction]
                start = tuple(s[lower + direction] for s in starts)  # (B, H) each
                output, end = layer(X.flip(1) if direction else X, start)
                outputs.append(output.flip(1) if direction else output)
                ends.append(end)
            X = torch.cat(outputs, dim=-1)  # (B, T, D*H)
        final = tuple(torch.stack(part) for part in zip(*ends, strict=True))  # (L*D, B, H) each
        return X, final if len(final) > 1 else final[0]

    def _start(self, X: Tensor, state: State | None) -> tuple[Tensor, ...]:
        """The start states, each (L*D, B, H), for X (B, T, I)."""
        shape = (len(self.layers), X.shape[0], self.hidden_size)
        if state is None:
            return tuple(X.new_zeros(shape) for _ in self.state_names)
        parts = (state,) if isinstance(state, Tensor) else tuple(state)
        given = [tuple(part.shape) for part in parts]  # broadcasting would hide a wrong shape
        if given != [shape] * len(self.state_names):
            names = " and ".join(self.state_names)
            raise ValueError(f"the state must be {names}, each {shape}, got {given}")
        return parts


class SRN(_Recurrent):
    """h_t = tanh(x_t W + h_{t-1} U + b)."""

    layer_class = SRNLayer


class GRU(_Recurrent):
    """h_t = (1 - z) n + z h_{t-1}."""

    layer_class = GRULayer


class LSTM(_Recurrent):
    """c_t = f c_{t-1} + i c~ and h_t = o tanh(c_t)."""

    layer_class = LSTMLayer
    state_names = ("h_0", "c_0")

    def trace(self, X: Tensor, state: State | None = None) -> dict[str, Tensor]:
        """i, f, o, c_tilde, c and h at every step of X (B, T, I), (B, T, H) each; ValueError when
        there are several layers."""
        (layer,) = self.layers
        h, c = (start[0] for start in self._start(X, state))  # (B, H)
        steps = []
        for x in X.unbind(1):  # (B, I)
            steps.append(layer.gated_step(x, h, c))
            h, c = steps[-1]["h"], steps[-1]["c"]
        return {name: torch.stack([s[name] for s in steps], dim=1) for name in steps[0]}


def gradient_norms(module: SRN | GRU | LSTM, X: Tensor, readout: Tensor) -> dict[str, Tensor]:
    """L2 norms (B, T) of dℓ/dh_t, "h", and for the LSTM dℓ/dc_t, "c", over all paths from step t of
    X (B, T, I) to ℓ = h_T · readout (H,). ValueError when there are several layers."""
    (layer,) = module.layers
    states = layer.unroll(X, tuple(start[0] for start in module._start(X, None)))
    loss = (states[-1][0] @ readout).sum()  # sequences do not touch, so the sum keeps them apart
    norms = {}
    for name, over_time in zip("hc", zip(*states, strict=True), strict=False):
        gradients = torch.autograd.grad(loss, over_time, retain_graph=True)
        norms[name] = torch.stack(gradients, dim=1).norm(dim=-1)  # (B, T)
    return norms


TORCH_GATES = {SRN: ("",), LSTM: ("_i", "_f", "_c", "_o"), GRU: ("_r", "_z", "_n")}  # its order
TORCH_MODULES = {SRN: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}
TORCH_NAMES = {"weight_ih": "W", "weight_hh": "U", "bias_ih": "b", "bias_hh": "b"}


def _sizes(module: nn.Module) -> dict[str, Any]:
    """The arguments that build a module of the same sizes, type and device, ours or torch's."""
    names = ("input_size", "hidden_size", "num_layers", "bidirectional")
    first = next(module.parameters())
    return {n: getattr(module, n) for n in names} | {"dtype": first.dtype, "device": first.device}


def _pairs(
    module: SRN | LSTM | GRU, reference: nn.Module, attribute: str = "data"
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each gate's part of torch's parameters, or of their "grad": name, our tensor and torch's.

    Our b stands for the sum of torch's two and comes twice; only the GRU has a second bias, b_hn.
    """
    gates = TORCH_GATES[type(module)]
    for index, layer in enumerate(module.layers):
        level, direction = divmod(index, module.num_directions)
        suffix = f"_l{level}" + ("_reverse" if direction else "")
        for (number, gate), (theirs, kind) in product(enumerate(gates), TORCH_NAMES.items()):
            if hasattr(reference, theirs + suffix):  # torch's biases can be switched off
                stacked = getattr(reference.get_parameter(theirs + suffix), attribute)
                part = stacked.chunk(len(gates))[number]  # (H, I), (H, H) or (H,)
                name = "b_hn" if (theirs, gate) == ("bias_hh", "_n") else kind + gate
                ours = getattr(layer.get_parameter(name), attribute).t()
                yield theirs + suffix + gate, ours.reshape(part.shape), part


def to_torch(module: SRN | LSTM | GRU) -> nn.RNN | nn.LSTM | nn.GRU:
    """torch's module, batch-first, computing the same function with a copy of the weights."""
    reference = TORCH_MODULES[type(module)](**_sizes(module), batch_first=True)
    for name, ours, theirs in _pairs(module, reference):
        second = name.startswith("bias_hh") and not name.endswith("_n")
        theirs.copy_(torch.zeros_like(ours) if second else ours)  # b stands in the first
    return reference


def from_torch(reference: nn.RNN | nn.LSTM | nn.GRU) -> SRN | LSTM | GRU:
    """Our batch-first module computing the same function, with a copy of the weights; ValueError
    for what our layers do not have: projections, dropout, ReLU, weights computed from others."""
    for name, allowed in {"proj_size": 0, "dropout": 0.0, "nonlinearity": "tanh"}.items():
        if (value := getattr(reference, name, allowed)) != allowed:
            raise ValueError(f"from_torch: {name} must be {allowed!r}, got {value!r}")

    if computed := {*reference._flat_weights_names} - {n for n, _ in reference.named_parameters()}:
        raise ValueError(f"from_torch: {min(computed)} is computed: remove its parametrization")

    kinds = {theirs: ours for ours, theirs in TORCH_MODULES.items()}
    module = kinds[type(reference)](**_sizes(reference))
    for parameter in module.parameters():
        parameter.data.zero_()
    for _, ours, theirs in _pairs(module, reference):
        ours += theirs  # our b is the sum of torch's two
    return module


def largest_differences(
    module: SRN | LSTM | GRU, reference: nn.Module, X: Tensor, state: State | None = None
) -> dict[str, float]:
    """Largest absolute difference of each result of a forward and a backward pass on X (B, T, I).

    `reference` is batch-first. Each result weighs in the loss by a cosine of its own, so exchanged
    entries show. Keys: output, h_n, c_n, "gradient/X", ..., "gradient/weight_ih_l0_i", ...
    """
    for which, weights in (("module", module), ("reference", reference)):
        if not all(parameter.requires_grad for parameter in weights.parameters()):
            raise ValueError(f"largest_differences: {which} has frozen weights, so no gradients")
    start = module._start(X, state)
    ours, theirs = _results(module, X, start), _results(reference, X, start)
    pairs = {name: (ours[name], theirs[name]) for name in theirs}
    pairs |= {f"gradient/{name}": pair for name, *pair in _pairs(module, reference, "grad")}
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def _results(module: nn.Module, X: Tensor, start: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Output, final states and the gradients of input and start; those of weights stay there."""
    X, *start = (tensor.detach().clone().requires_grad_() for tensor in (X, *start))
    for tensor in (X, *start, *module.parameters()):
        tensor.grad = torch.zeros_like(tensor)
    output, final = module(X, tuple(start) if len(start) > 1 else start[0])
    finals = (final,) if isinstance(final, Tensor) else final
    results = dict(zip(("output", "h_n", "c_n"), (output, *finals), strict=False))
    loss = 0
    for result in results.values():
        exact = torch.promote_types(X.dtype, torch.float32)  # half precision ends at 65,504
        angles = torch.arange(result.numel(), dtype=exact, device=X.device)
        loss += (angles.cos().view_as(result) * result).sum()
    (loss / (X.shape[0] * X.shape[1])).backward()
    inputs = zip(("X", "h_0", "c_0"), (X, *start), strict=False)
    return results | {f"gradient/{name}": tensor.grad for name, tensor in inputs}
