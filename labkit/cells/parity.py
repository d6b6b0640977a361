"""Our recurrent modules against torch's: weights exchanged both ways, every result compared.

torch stores W and U transposed, all gates one above the other (LSTM: i, f, g, o, with g for c~;
GRU: r, z, n), and has two biases where one is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labkit.cells.layers import GRU, LSTM, SRN, State, _Recurrent, architecture

TORCH_GATES = {SRN: ("",), LSTM: ("_i", "_f", "_c", "_o"), GRU: ("_r", "_z", "_n")}
TORCH_MODULES = {SRN: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}


def _check_kind(where: str, module: Any, kinds: Mapping[type, Any]) -> None:
    if type(module) not in kinds:
        allowed = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{where} takes one of {allowed}; got {type(module).__name__}")


def _torch_suffix(index: int, num_directions: int) -> str:
    layer, direction = divmod(index, num_directions)
    return f"_l{layer}" + ("_reverse" if direction else "")


def _in_torch_layout(module: _Recurrent, *, gradients: bool) -> dict[str, Tensor]:
    """Parameters or their gradients under torch's names: weight_ih_l0 (G*H, I), ...

    torch adds two biases, so b goes into the first and zero into the second; the gradients of
    both are the gradient of b. Only the GRU's b_hn is a second bias of its own.
    """
    gates = TORCH_GATES[type(module)]
    arranged = {}
    for index, layer in enumerate(module.layers):
        own = {n: p.grad if gradients else p.detach() for n, p in layer.named_parameters()}
        first = {gate: own[f"b{gate}"].squeeze(0) for gate in gates}
        second = {gate: b if gradients else torch.zeros_like(b) for gate, b in first.items()}
        if "b_hn" in own:
            second["_n"] = own["b_hn"].squeeze(0)

        suffix = _torch_suffix(index, module.num_directions)
        arranged |= {
            f"weight_ih{suffix}": torch.cat([own[f"W{gate}"].T for gate in gates]),
            f"weight_hh{suffix}": torch.cat([own[f"U{gate}"].T for gate in gates]),
            f"bias_ih{suffix}": torch.cat(list(first.values())),
            f"bias_hh{suffix}": torch.cat(list(second.values())),
        }
    return arranged


def to_torch(module: SRN | LSTM | GRU) -> nn.RNN | nn.LSTM | nn.GRU:
    """torch's module, batch-first, computing the same function with a copy of the weights."""
    _check_kind("to_torch", module, TORCH_MODULES)
    reference = TORCH_MODULES[type(module)](**architecture(module), batch_first=True)
    reference.load_state_dict(_in_torch_layout(module, gradients=False), strict=True)
    return reference


def from_torch(reference: nn.RNN | nn.LSTM | nn.GRU) -> SRN | LSTM | GRU:
    """Our module computing the same function as torch's, with a copy of the weights, batch-first.

    torch's two biases are added where only their sum matters. ValueError for what our layers do
    not have: projections, dropout between layers, a ReLU in place of tanh.
    """
    kinds = {theirs: ours for ours, theirs in TORCH_MODULES.items()}
    _check_kind("from_torch", reference, kinds)
    for name, allowed in {"proj_size": 0, "dropout": 0.0, "nonlinearity": "tanh"}.items():
        if (value := getattr(reference, name, allowed)) != allowed:
            raise ValueError(f"from_torch: {name} must be {allowed!r}, got {value!r}")

    module = kinds[type(reference)](**architecture(reference))
    gates = TORCH_GATES[type(module)]
    theirs = {name: p.detach() for name, p in reference.named_parameters()}
    weights: dict[str | int, Any] = {}
    for index in range(len(module.layers)):
        suffix = _torch_suffix(index, module.num_directions)
        zeros = theirs[f"weight_ih{suffix}"].new_zeros(len(gates) * module.hidden_size)
        biases = [theirs.get(f"bias_{kind}{suffix}", zeros) for kind in ("ih", "hh")]
        chunks = zip(
            gates,
            theirs[f"weight_ih{suffix}"].chunk(len(gates)),
            theirs[f"weight_hh{suffix}"].chunk(len(gates)),
            *(bias.chunk(len(gates)) for bias in biases),
            strict=True,
        )
        own = weights[index] = {}
        for gate, W, U, b, b_h in chunks:
            own |= {f"W{gate}": W.T, f"U{gate}": U.T, f"b{gate}": (b + b_h).unsqueeze(0)}
        if isinstance(module, GRU):
            own |= {"b_n": b.unsqueeze(0), "b_hn": b_h.unsqueeze(0)}
    module.set_weights(weights)
    return module


def largest_differences(
    module: SRN | LSTM | GRU,
    reference: nn.RNN | nn.LSTM | nn.GRU,
    X: Tensor,
    state: State | None = None,
) -> dict[str, float]:
    """Largest absolute difference of each result of one forward and one backward pass.

    X (B, T, I) and `state` as `module` takes them; `reference` is batch-first. The loss weighs
    every entry of the output and the final states by a fixed cosine, so that entries are not
    interchangeable, and is a mean over sequences and steps, so gradients keep their size in long
    sequences. Keys: output,
    h_n, c_n, "gradient/X", "gradient/h_0", ..., "gradient/weight_ih_l0", ...
    """
    ours = _results(module, X, state)
    theirs = _results(reference, X, state)
    return {name: (ours[name] - theirs[name]).abs().max().item() for name in theirs}


def _results(module: nn.Module, X: Tensor, state: State | None) -> dict[str, Tensor]:
    """Outputs, final states and all gradients of one pass, in torch's layout."""
    module.zero_grad()
    X = X.detach().clone().requires_grad_()
    given = () if state is None else (state,) if isinstance(state, Tensor) else state
    starts = tuple(part.detach().clone().requires_grad_() for part in given)
    output, final = module(X, starts if len(starts) > 1 else (starts or (None,))[0])

    finals = (final,) if isinstance(final, Tensor) else final
    results = dict(zip(("output", "h_n", "c_n"), (output, *finals), strict=False))
    loss = sum((_cosines(result) * result).sum() for result in results.values())
    (loss / (X.shape[0] * X.shape[1])).backward()

    inputs = dict(zip(("X", "h_0", "c_0"), (X, *starts), strict=False))
    gradients = {name: tensor.grad for name, tensor in inputs.items()}
    if isinstance(module, _Recurrent):
        gradients |= _in_torch_layout(module, gradients=True)
    else:
        gradients |= {name: p.grad for name, p in module.named_parameters()}
    return results | {f"gradient/{name}": value for name, value in gradients.items()}


def _cosines(like: Tensor) -> Tensor:
    """cos(0), cos(1), cos(2), ... in the shape, type and place of `like`."""
    return torch.arange(like.numel(), device=like.device).to(like.dtype).cos().view_as(like)
