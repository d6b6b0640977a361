"""The BERT classifier: encoder, one vector for a review, head; and a BERT small enough to make.

Shapes: B reviews, T word pieces, H hidden units, C = 2 classes. Padding never reaches a result.
(The pooling "last_position" is the one exception: it repeats the mistake of a source.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from labkit.film import corpus as reviews
from labkit.lab import code, machine
from labkit.lab.specification import specification

if TYPE_CHECKING:
    from transformers import BertModel

Pooling = Literal["cls", "mean", "last_position"]
Precision = Literal["float32", "bfloat16"]
POOLINGS = get_args(Pooling)


@specification
class ClassifierSpec:
    """What a BERT classifier is, apart from its encoder and its seed.

    `pooling`: what stands for a review. "cls": the vector of [CLS], its first piece; "mean": the
    mean over its pieces, [CLS] and [SEP] among them, as MiniLM was trained to be read;
    "last_position": the vector at the last of a fixed number of positions, where short reviews
    have padding. `head_size`: the width of the head's hidden layer, 0 for a linear head. `dropout`
    acts on the pooled vector. `pretrained`: the encoder starts from its weights, and otherwise from
    random ones.
    """

    pooling: Pooling
    head_size: NonNegativeInt = 0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pretrained: bool = True


class BertClassifier(nn.Module):
    """Word pieces X (B, T) and where they are no padding (B, T) in, logits (B, C) out."""

    def __init__(self, encoder: BertModel, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        if not spec.pretrained:
            encoder = type(encoder)(encoder.config, add_pooling_layer=False)
        self.encoder = encoder
        self.dropout = nn.Dropout(spec.dropout)
        H, size = encoder.config.hidden_size, spec.head_size
        hidden = [nn.Linear(H, size), nn.ReLU()] if size else []
        self.head = nn.Sequential(*hidden, nn.Linear(size or H, 2))

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(X, attention_mask=mask).last_hidden_state  # (B, T, H)
        pooled = pool(hidden, mask, self.spec.pooling)  # (B, H)
        return self.head(self.dropout(pooled))  # (B, C)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector (B, H) for each review, from those of its positions (B, T, H)."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last_position":
        return hidden[:, -1]
    pieces = mask.unsqueeze(-1)  # (B, T, 1)
    return hidden.masked_fill(~pieces.bool(), 0).sum(1) / pieces.sum(1)


def fastest_precision(device: torch.device) -> Precision:
    """The precision in which the device multiplies fastest: some only imitate bfloat16, slowly."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu.get_capabilities()
        able = units.get("avx512_bf16") or units.get("amx_bf16")
    return "bfloat16" if able else "float32"


def mixed(device: torch.device, precision: Precision) -> torch.autocast:
    """A context that computes matrix products in `precision`, and sums and softmax in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


# the tiny model

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # a piece's number is its place


@cache
def tiny() -> Path:
    """The folder of a BERT with random weights and the word pieces of the generated reviews.

    Every process makes it anew, in a second, and writes what is missing or differs, so it cannot
    be damaged or out of date. The global generators of random numbers stay as they are.
    """
    from safetensors.torch import save
    from transformers import BertConfig, BertModel

    texts = [review.text.replace("<br />", " ") for review in reviews.read("generated")]
    train = reviews.load("generated").split()["train"]
    words = word_pieces([texts[n] for n in train.tolist()], 1_500)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), intermediate_size=128, **sizes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed CUDA, too
        weights = BertModel(config, add_pooling_layer=False).state_dict()
    files = {
        "vocab.txt": "".join(f"{word}\n" for word in words).encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer", "do_lower_case": true}',
        "config.json": config.to_json_string().encode(),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
    }
    folder = machine.CACHE / "tiny_bert" / code.sha256(b"".join(files.values()))[:32]
    for name, content in files.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            code.write_atomically(folder / name, content)
    return folder


def word_pieces(texts: Sequence[str], size: int) -> list[str]:
    """The `SPECIAL` pieces and those learned from texts, lower-cased, at most `size` in all."""
    from tokenizers import BertWordPieceTokenizer

    # the trainer would number continuations ("##a") in an order that changes from run to run
    letters = sorted({letter for text in texts for letter in text.lower() if letter.isalnum()})
    special = [*SPECIAL, *(f"##{letter}" for letter in letters)]
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts, size, special_tokens=special, show_progress=False)
    numbers = learner.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)
