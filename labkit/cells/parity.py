"""Our layers against torch's: weights exchanged both ways, every result compared.

torch stores W and U transposed, all gates one above the other (LSTM: i, f, g, o, with g for c~;
GRU: r, z, n), and has two biases where one is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from labkit.cells.layers import GRU, LSTM, SRN, State, _Recurrent, architecture

TORCH_GATES = {SRN: ("",), LSTM: ("_i", "_f", "_c", "_o"), GRU: ("_r", "_z", "_n")}
TORCH_MODULES = {SRN: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}


def _check_kind(where: str, module: Any, kinds: Iterable[type]) -> None:
    if type(module) not in kinds:
        allowed = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{where} takes one of {allowed}; got {type(module).__name__}")


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = dict(module.named_parameters()).get(name)
    if parameter is None:
        raise ValueError(
            f"{type(module).__name__} has no parameter {name}: it may be computed from others, as "
            "by weight_norm or pruning; make it a plain parameter first"
        )
    return parameter


def _layout(module: SRN | LSTM | GRU) -> Iterator[tuple[str, str]]:
    """Pairs of our name and the torch parameter that holds it, in torch's order of the gates.

    Our b stands for the sum of torch's two. Only the GRU needs a second bias, b_hn.
    """
    for index in range(len(module.layers)):
        layer, direction = divmod(index, module.num_directions)
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        for gate in TORCH_GATES[type(module)]:
            second = "b_hn" if gate == "_n" else f"b{gate}"
            yield f"{index}.W{gate}", f"weight_ih{suffix}"
            yield f"{index}.U{gate}", f"weight_hh{suffix}"
            yield f"{index}.b{gate}", f"bias_ih{suffix}"
            yield f"{index}.{second}", f"bias_hh{suffix}"


def _in_torch_layout(module: SRN | LSTM | GRU, *, gradients: bool) -> dict[str, Tensor]:
    """Parameters or their gradients under torch's names: weight_ih_l0 (G*H, I), ...

    b goes into the first bias and zero into the second; the gradients of both are that of b.
    """
    parts: dict[str, list[Tensor]] = {}
    for ours, theirs in _layout(module):
        parameter = _parameter(module, f"layers.{ours}")
        value = parameter.grad if gradients else parameter.detach()
        if theirs.startswith("bias_hh") and not gradients and not ours.endswith("b_hn"):
            value = torch.zeros_like(value)
        part = value.squeeze(0) if theirs.startswith("bias") else value.t()
        parts.setdefault(theirs, []).append(part)
    return {name: torch.cat(part) for name, part in parts.items()}


def to_torch(module: SRN | LSTM | GRU) -> nn.RNN | nn.LSTM | nn.GRU:
    """torch's module, batch-first, computing the same function with a copy of the weights."""
    _check_kind("to_torch", module, TORCH_MODULES)
    reference = TORCH_MODULES[type(module)](**architecture(module), batch_first=True)
    reference.load_state_dict(_in_torch_layout(module, gradients=False), strict=True)
    return reference


def from_torch(reference: nn.RNN | nn.LSTM | nn.GRU) -> SRN | LSTM | GRU:
    """Our module computing the same function as torch's, with a copy of the weights, batch-first.

    torch's two biases are added where only their sum matters. ValueError for what our layers do
    not have: projections, dropout between layers, a ReLU in place of tanh, computed weights.
    """
    kinds = {theirs: ours for ours, theirs in TORCH_MODULES.items()}
    _check_kind("from_torch", reference, kinds)
    for name, allowed in {"proj_size": 0, "dropout": 0.0, "nonlinearity": "tanh"}.items():
        if (value := getattr(reference, name, allowed)) != allowed:
            raise ValueError(f"from_torch: {name} must be {allowed!r}, got {value!r}")

    module = kinds[type(reference)](**architecture(reference))
    chunks: dict[str, Iterator[Tensor]] = {}  # of each parameter, one for each gate
    weights = {ours: torch.zeros_like(p) for ours, p in module.layers.named_parameters()}
    for ours, theirs in _layout(module):
        if theirs.startswith("weight") or reference.bias:
            if theirs not in chunks:
                gates = _parameter(reference, theirs).detach().chunk(len(TORCH_GATES[type(module)]))
                chunks[theirs] = iter(gates)
            weights[ours] += next(chunks[theirs]).t()
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
    interchangeable, and is a mean over sequences and steps, so that gradients keep their size in
    long sequences. Keys: output, h_n, c_n, "gradient/X", "gradient/h_0", ...,
    "gradient/weight_ih_l0", ... ValueError or TypeError for modules that cannot be compared.
    """
    _check_kind("largest_differences", module, TORCH_MODULES)
    _check_kind("largest_differences", reference, [TORCH_MODULES[type(module)]])
    if architecture(module) != architecture(reference) or not reference.batch_first:
        raise ValueError("largest_differences: the reference must be batch-first and as large")
    module._start(X, state)  # checks both
    for name, parameter in [*module.named_parameters(), *reference.named_parameters()]:
        if not parameter.requires_grad:
            raise ValueError(
                f"largest_differences compares gradients, and {name} is frozen: call "
                "requires_grad_() of both modules first"
            )
    ours, theirs = _results(module, X, state), _results(reference, X, state)
    return {name: (ours[name] - theirs[name]).abs().max().item() for name in theirs}


@torch.enable_grad()
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
    """cos(0), cos(1), cos(2), ... in the shape, type and place of `like`.

    Half precision holds no large whole number (NaN beyond 65,504), so the angles have 32 bits.
    """
    angles = torch.arange(like.numel(), device=like.device)
    exact = torch.promote_types(like.dtype, torch.float32)
    return angles.to(exact).cos().to(like.dtype).view_as(like)
