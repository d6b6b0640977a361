"""SRN, LSTM and GRU layers written out, equal to torch's in outputs, states and gradients.

A cell is one method, `step`: it turns an input x (B, I) and a state into the next state. A layer
unrolls its cell over time; `SRN`, `LSTM` and `GRU` stack layers and run them in both directions.

Shapes: B sequences, T steps, I inputs, H hidden units, L stacked layers, D directions (1 or 2).
Weights multiply from the right, as in the formulas: x W + h U + b, with W (I, H), U (H, H) and
b (1, H) for each gate. `labkit.cells.parity` translates to and from torch's layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

LayerState = tuple[Tensor, ...]  # (h,) or (h, c), each (B, H)
State = Tensor | tuple[Tensor, Tensor]  # h_n, or (h_n, c_n) for the LSTM, each (L*D, B, H)


class _Layer(nn.Module):
    """One layer in one direction. A subclass names its `gates` and writes its `step`.

    `gates` lists the endings of the parameters' names: each gets W (I, H), U (H, H) and b (1, H),
    all Xavier-uniform at the start. `step` turns x (B, I) and the state, (h,) or for the LSTM
    (h, c), into the next state.
    """

    gates: tuple[str, ...] = ()
    second_biases: tuple[str, ...] = ()  # more of (1, H), by name

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        rows = {"W": input_size, "U": hidden_size, "b": 1}
        names = [kind + gate for gate in self.gates for kind in rows]
        for name in (*names, *self.second_biases):
            start = torch.empty(rows[name[0]], hidden_size, dtype=dtype, device=device)
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
    """Gated recurrent unit as torch computes it: the reset gate acts after the product with U_n.

    The reset-first order, (r * h) U_n as in arXiv:1406.1078v3, needs no second bias.
    """

    gates = ("_r", "_z", "_n")
    second_biases = ("b_hn",)

    def step(self, x: Tensor, state: LayerState) -> LayerState:
        (h,) = state
        r = torch.sigmoid(x @ self.W_r + h @ self.U_r + self.b_r)
        z = torch.sigmoid(x @ self.W_z + h @ self.U_z + self.b_z)
        n = torch.tanh(x @ self.W_n + self.b_n + r * (h @ self.U_n + self.b_hn))
        return ((1 - z) * n + z * h,)


class _Recurrent(nn.Module):
    """L stacked layers in D directions; `layers` holds them in torch's order."""

    layer_class: type[_Layer]
    state_names: tuple[str, ...] = ("h_0",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        *,
        weights: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """`weights` replaces any part of the start.

        It maps names to tensors: "W_i", "U_f", ... of the first layer, "2.W_i" of that with index 2
        in `layers`. ValueError or TypeError names what does not fit.
        """
        super().__init__()
        where = type(self).__name__
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{where}: {name} must be an int of at least 1, got {size!r}")
        if dtype is not None and not getattr(dtype, "is_floating_point", False):
            raise TypeError(f"{where}: dtype must be a floating-point torch.dtype, got {dtype!r}")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.bidirectional = num_layers, bidirectional
        self.num_directions = D = 2 if bidirectional else 1

        # a higher layer reads both directions of the one below
        inputs = [input_size] + [D * hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(
            self.layer_class(size, hidden_size, dtype, device) for size in inputs for _ in range(D)
        )
        self.set_weights(weights or {})

    def forward(self, X: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run X (B, T, I) from `state`, zero by default.

        Returns the output (B, T, D*H), the top layer's hidden states, forward direction first, and
        the final state: h_n (L*D, B, H), for the LSTM (h_n, c_n). The backward direction's final
        state is the one after it has read the first step.
        """
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
            # joining a single tensor would copy it
            X = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)  # (B, T, D*H)
        final = tuple(torch.stack(part) for part in zip(*ends, strict=True))  # (L*D, B, H) each
        return X, final if len(final) > 1 else final[0]

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy `weights`, named as for the constructor, once all names and shapes are checked."""
        where = type(self).__name__
        parameters = dict(self.layers.named_parameters())  # "0.W_i", ...
        checked = []
        for given, tensor in dict(weights).items():
            layer, _, name = str(given).rpartition(".")
            parameter = parameters.get(f"{layer or 0}.{name}")
            if parameter is None:
                allowed = ", ".join(parameters)
                raise ValueError(f"{where}: unknown weight {given!r}, allowed are {allowed}")
            place = f"{where}: weight {name} of layer {layer or 0}"
            _check_tensor(place, tensor, parameter.shape, parameter.dtype)
            checked.append((parameter, tensor))
        for parameter, tensor in checked:
            parameter.copy_(tensor)

    def _start(self, X: Tensor, state: State | None) -> tuple[Tensor, ...]:
        """Check X and `state`; return the start states, each (L*D, B, H)."""
        where, dtype = type(self).__name__, next(self.parameters()).dtype
        _check_tensor(f"{where}: input X", X, ("B", "T", self.input_size), dtype)
        shape = (len(self.layers), X.shape[0], self.hidden_size)
        if state is None:
            return tuple(X.new_zeros(shape) for _ in self.state_names)
        parts = (state,) if isinstance(state, Tensor) else state
        if not isinstance(parts, tuple) or len(parts) != len(self.state_names):
            wanted = " and ".join(self.state_names)
            raise TypeError(f"{where}: state must be {wanted}, each (L*D, B, H) = {shape}")
        for name, part in zip(self.state_names, parts, strict=True):
            _check_tensor(f"{where}: start state {name}", part, shape, dtype)
        return parts


def _check_tensor(
    place: str, tensor: Any, shape: tuple[int | str, ...], dtype: torch.dtype
) -> None:
    """Letters in `shape` stand for any size of at least 1."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{place} must be a tensor, got {type(tensor).__name__}")
    pairs = zip(tensor.shape, shape, strict=False)
    fits = [size >= 1 if isinstance(wanted, str) else size == wanted for size, wanted in pairs]
    if tensor.dim() != len(shape) or not all(fits):
        wanted = f"({', '.join(map(str, shape))})"
        raise ValueError(f"{place} must have shape {wanted}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{place} must have the weights' dtype {dtype}, got {tensor.dtype}")


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
        """Every gate and state at every step of X (B, T, I): i, f, o, c_tilde, c, h, (B, T, H).

        ValueError when the layer is stacked or bidirectional: a trace follows one recursion.
        """
        if len(self.layers) > 1:
            raise ValueError(f"LSTM.trace follows one recursion, got {len(self.layers)} layers")
        h, c = (start[0] for start in self._start(X, state))  # (B, H)
        steps = []
        for x in X.unbind(1):  # (B, I)
            steps.append(self.layers[0].gated_step(x, h, c))
            h, c = steps[-1]["h"], steps[-1]["c"]
        return {name: torch.stack([s[name] for s in steps], dim=1) for name in steps[0]}


def architecture(module: nn.Module) -> dict[str, Any]:
    """The arguments that build a module of the same shape, type and device, ours or torch's."""
    names = ("input_size", "hidden_size", "num_layers", "bidirectional")
    first = next(module.parameters())
    return {n: getattr(module, n) for n in names} | {"dtype": first.dtype, "device": first.device}


@torch.enable_grad()
def gradient_norms(module: SRN | GRU | LSTM, X: Tensor, readout: Tensor) -> dict[str, Tensor]:
    """How much of a gradient at the last step reaches the states before it.

    The loss is ℓ = h_T · readout, one for each sequence of X (B, T, I), with readout (H,). Returns
    the L2 norms of dℓ/dh_t, and for the LSTM of dℓ/dc_t, t = 1 ... T, each (B, T). Both count all
    paths from step t to the loss. ValueError when the module is stacked or bidirectional.
    """
    if len(module.layers) > 1:
        raise ValueError(f"gradient_norms follows one recursion, got {len(module.layers)} layers")
    starts = module._start(X, None)
    _check_tensor("gradient_norms: readout", readout, (module.hidden_size,), X.dtype)

    # a start that asks for gradients lets a frozen module be measured, too
    states = module.layers[0].unroll(X, tuple(start[0].requires_grad_() for start in starts))
    loss = (states[-1][0] @ readout).sum()  # sequences do not touch, so the sum keeps them apart
    norms = {}
    for name, over_time in zip("hc", zip(*states, strict=True), strict=False):
        gradients = torch.autograd.grad(loss, over_time, retain_graph=True)
        norms[name] = torch.stack(gradients, dim=1).norm(dim=-1)  # (B, T)
    return norms
