"""The sequence classifier of the digit-sum study: embedding, recurrent layer, last state, head.

`initial_parameters` is the only place where a model gets its start. `SequenceClassifier` (one
readable model) and `labkit.memory.ensemble.Ensemble` (many replicas at once) both load what it draws, so
a seed means the same model in either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.cells import layers as recurrent

CELLS = ("srn", "lstm")
INITIALISATIONS = ("zero", "xavier")
GATES = {"srn": ("",), "lstm": ("o", "i", "f", "c")}


@dataclass(frozen=True)
class ModelSpec:
    """What a digit-sum model is, apart from its seed.

    `init` is the start of every recurrent weight and bias: "zero", or "xavier" (uniform with bound
    sqrt(6 / (fan_in + fan_out)), a bias counting as a (1, hidden) matrix). The embedding starts
    Xavier-uniform and the head as `nn.Linear` does, whatever `init` says.
    """

    cell: str
    init: str = "xavier"
    train_embedding: bool = True
    vocab_size: int = 10
    embedding_size: int = 32
    hidden_size: int = 32
    num_classes: int = 19

    def __post_init__(self) -> None:
        _check_choice("cell", self.cell, CELLS)
        _check_choice("init", self.init, INITIALISATIONS)
        if not isinstance(self.train_embedding, bool):
            raise TypeError(
                f"ModelSpec.train_embedding must be a bool, got {self.train_embedding!r}"
            )
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_classes"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"ModelSpec.{name} must be an int, got {size!r}")
            if size < 1:
                raise ValueError(f"ModelSpec.{name} must be at least 1, got {size}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"ModelSpec.{name} must be one of {', '.join(allowed)}; got {value!r}")


def recurrent_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Names and shapes of the recurrent parameters: W (E, H), U (H, H), b (1, H) for each gate."""
    E, H = spec.embedding_size, spec.hidden_size
    shapes = {}
    for gate in GATES[spec.cell]:
        suffix = f"_{gate}" if gate else ""
        shapes |= {f"W{suffix}": (E, H), f"U{suffix}": (H, H), f"b{suffix}": (1, H)}
    return shapes


def initial_parameters(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Draw the start of one model, in float64, under the names of `SequenceClassifier`.

    Embedding and head are drawn first, so models that differ only in cell or `init` share them.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: tuple[int, ...], bound: float) -> Tensor:
        draw = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (2 * draw - 1) * bound

    V, E, H, C = spec.vocab_size, spec.embedding_size, spec.hidden_size, spec.num_classes
    parameters = {
        "embedding.weight": uniform((V, E), math.sqrt(6 / (V + E))),
        "head.weight": uniform((C, H), 1 / math.sqrt(H)),
        "head.bias": uniform((C,), 1 / math.sqrt(H)),
    }
    for name, shape in recurrent_shapes(spec).items():
        bound = 0.0 if spec.init == "zero" else math.sqrt(6 / sum(shape))
        parameters[f"recurrent.layers.0.{name}"] = uniform(shape, bound)
    return parameters


class SequenceClassifier(nn.Module):
    """Digits (B, T) in, logits (B, num_classes) out, read from the last hidden state."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        layer = {"srn": recurrent.SRN, "lstm": recurrent.LSTM}[spec.cell]

        self.embedding = nn.Embedding(spec.vocab_size, spec.embedding_size)
        self.embedding.weight.requires_grad_(spec.train_embedding)
        self.recurrent = layer(spec.embedding_size, spec.hidden_size)
        self.head = nn.Linear(spec.hidden_size, spec.num_classes)

        self.load_state_dict(initial_parameters(spec, seed), strict=True)

    def forward(self, X: Tensor) -> Tensor:
        output, _ = self.recurrent(self.embedding(X))  # (B, T, H)
        return self.head(output[:, -1])  # (B, C)
