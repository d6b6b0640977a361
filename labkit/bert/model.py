"""The BERT classifier: pretrained encoder, one vector for the review, head.

Shapes: B reviews, T word pieces, H hidden units, C classes. Padding never reaches a result. (The
one exception is the pooling "last_position", which repeats the mistake of a source on purpose.)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BertModel

POOLINGS = ("cls", "mean", "last_position")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class BertSpec:
    """What a BERT classifier is, apart from its encoder and its seed.

    `pooling`: what stands for a review. "cls": the vector of [CLS], its first piece; "mean": the
    mean over its pieces, [CLS] and [SEP] among them, as MiniLM was trained to be read;
    "last_position": the vector at the last position of the padded batch, where most reviews have
    padding. It is only defined for reviews padded to a fixed length.
    `head_sizes`: the widths of the head's hidden layers, each with a ReLU; none for a linear head.
    `dropout` acts on the pooled vector; the encoder drops as its own configuration says.
    `frozen`: the encoder stays as it is, and drops nothing. `pretrained`: it starts from its
    weights, and otherwise from random ones. `num_classes`: 2, or 10 for the ratings 1 to 10.
    """

    pooling: str = "mean"
    head_sizes: tuple[int, ...] = ()
    dropout: float = 0.1
    frozen: bool = False
    pretrained: bool = True
    num_classes: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_sizes", tuple(self.head_sizes))  # settings hold lists
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"BertSpec.pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"BertSpec.dropout must be at least 0 and below 1, got {self.dropout}")
        if any(size < 1 for size in self.head_sizes):
            raise ValueError(f"BertSpec.head_sizes must be at least 1, got {self.head_sizes}")
        if self.num_classes not in (2, 10):
            raise ValueError(f"BertSpec.num_classes must be 2 or 10, got {self.num_classes}")


class BertClassifier(nn.Module):
    """Word pieces X (B, T) and where they are no padding (B, T) in, logits (B, C) out."""

    def __init__(self, encoder: BertModel, spec: BertSpec) -> None:
        super().__init__()
        self.spec = spec
        if not spec.pretrained:
            encoder = type(encoder)(encoder.config, add_pooling_layer=False)
        self.encoder = encoder.requires_grad_(not spec.frozen)
        self.dropout = nn.Dropout(spec.dropout)

        layers: list[nn.Module] = []
        sizes = [encoder.config.hidden_size, *spec.head_sizes]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], spec.num_classes))

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(X, attention_mask=mask).last_hidden_state  # (B, T, H)
        pooled = pool(hidden, mask, self.spec.pooling)  # (B, H)
        return self.head(self.dropout(pooled))  # (B, C)

    def train(self, mode: bool = True) -> BertClassifier:
        """Switch dropout on or off; in a frozen encoder it stays off."""
        super().train(mode)
        if self.spec.frozen:
            self.encoder.eval()
        return self


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector (B, H) for each review, from those of its positions (B, T, H)."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last_position":
        return hidden[:, -1]
    pieces = mask.unsqueeze(-1)  # (B, T, 1)
    return hidden.masked_fill(~pieces.bool(), 0).sum(1) / pieces.sum(1)


def fastest_precision(device: torch.device) -> str:
    """The one of `PRECISIONS` in which the device multiplies fastest.

    bfloat16 has float32's range with 8 significant bits. GPUs from Ampere on and the AVX512-BF16
    and AMX units of processors multiply it faster; others imitate it, slowly.
    """
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu.get_capabilities()
        able = units.get("avx512_bf16", False) or units.get("amx_bf16", False)
    return "bfloat16" if able else "float32"


def mixed(device: torch.device, precision: str) -> torch.autocast:
    """A context that computes matrix products in `precision`, and sums and softmax in float32.

    ValueError for a precision that is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters a model has, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
