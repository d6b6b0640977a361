"""BERT as a classifier: encoder, one vector for a review, head; and where the encoder comes from.

Shapes: B reviews, T word pieces, H hidden units, C = 2 classes. Padding never reaches a result,
but for the pooling "last_position", which repeats the mistake of a source. A pretrained model is a
folder of safetensors, JSON and text: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

import torch
import transformers
from huggingface_hub import snapshot_download
from pydantic import NonNegativeInt
from safetensors.torch import save
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn

from labkit.film import corpus as reviews
from labkit.film.model import Share
from labkit.lab import code, machine
from labkit.lab.fetch import DownloadError, offline
from labkit.lab.store import specification

transformers.utils.logging.set_verbosity_error()  # its advice and its bars are for other programs
transformers.utils.logging.disable_progress_bar()

Pooling = Literal["cls", "mean", "last_position"]
Precision = Literal["float32", "bfloat16"]
POOLINGS = get_args(Pooling)


@specification
class ClassifierSpec:
    """What a BERT classifier is, apart from its seed.

    `encoder`: a BERT with its pretrained weights, or the same from a random start. `pooling`: what
    stands for a review. "cls": the vector of [CLS], its first piece; "mean": the mean over its
    pieces, [CLS] and [SEP] among them; "last_position": the vector at the last of a fixed number of
    positions, padding in a short review.
    """

    encoder: Literal["pretrained", "random"] = "pretrained"
    pooling: Pooling = "mean"
    head_size: NonNegativeInt = 0  # units of the head's hidden layer; 0: none
    dropout: Share = 0.1  # of the pooled vector


class Classifier(nn.Module):
    """Word pieces X (B, T) and where they are no padding (B, T) in, logits (B, C) out."""

    def __init__(self, encoder: transformers.BertModel, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.encoder == "random":
            encoder = type(encoder)(encoder.config, add_pooling_layer=False)
        self.encoder = encoder
        self.dropout = nn.Dropout(spec.dropout)
        H, size = encoder.config.hidden_size, spec.head_size
        hidden = [nn.Linear(H, size), nn.ReLU()] if size else []
        self.head = nn.Sequential(*hidden, nn.Linear(size or H, 2))

    def forward(self, X: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(X, mask).last_hidden_state  # (B, T, H)
        pooled = pool(hidden, mask, self.spec.pooling)  # (B, H)
        return self.head(self.dropout(pooled))  # (B, C)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector (B, H) for each review, from those of its positions (B, T, H)."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last_position":
        return hidden[:, -1]
    pieces = mask.bool().unsqueeze(-1)  # (B, T, 1)
    return hidden.masked_fill(~pieces, 0).sum(1) / pieces.sum(1)


def fastest_precision(device: torch.device) -> Precision:
    """The precision in which the device multiplies fastest: some only imitate bfloat16, slowly."""
    units = torch.cpu.get_capabilities()
    able = units.get("avx512_bf16") or units.get("amx_bf16")
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if able else "float32"


def mixed(device: str, precision: Precision) -> torch.autocast:
    """A context that computes matrix products in `precision`, and sums and softmax in float32."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


# pretrained models

KNOWN = tomllib.loads((machine.DATA / "models.toml").read_text("utf-8"))
CONFIG, WEIGHTS = "config.json", "model.safetensors"
RULES, CASING, WORDS = "tokenizer.json", "tokenizer_config.json", "vocab.txt"
FILES = (CONFIG, WEIGHTS, RULES, CASING, WORDS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of the tiny model, by their numbers


@dataclass(frozen=True)
class Pretrained:
    """A BERT on this machine: name, folder, its config.json, and the SHA-256 of its weights."""

    name: str
    folder: Path
    config: dict[str, Any]
    weights_sha256: str


def find(model: str) -> Pretrained:
    """The model on this machine, downloaded or made where it is not there yet.

    `model` is "tiny", one of `KNOWN`, or a folder's path. DownloadError for one that cannot be had,
    or has other weights than the known ones.
    """
    if model == "tiny":
        folder = untaught()
    else:
        folder = _known(model) if model in KNOWN else Path(model).expanduser().resolve()
    weights = folder / WEIGHTS  # in a format in which nothing has to be unpickled
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        with open(weights, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise DownloadError(f"{folder} has no {CONFIG} and {WEIGHTS} to read: {error}") from error
    if config.get("model_type") != "bert":
        raise DownloadError(f"{folder} holds no BERT, but a {config.get('model_type')}")
    expected = KNOWN[model]["weights"] if model in KNOWN else sha256
    if sha256 != expected:
        raise DownloadError(f"{weights} has SHA-256 {sha256}, expected {expected}: remove it")
    return Pretrained(model, folder, config, sha256)


def _known(name: str) -> Path:
    """The folder of a known model: of the mirror, of a package, or of the hub's own cache."""
    mirror = urlsplit(os.environ.get("LABKIT_MIRROR", ""))
    folder = Path(unquote(mirror.path)) / name.replace("/", "--")
    if mirror.scheme in ("", "file") and folder.is_dir():
        return folder
    package = KNOWN[name].get("package")
    if package and (spec := importlib.util.find_spec(package)):
        return Path(spec.origin).parent / "model"
    wanted = {"revision": KNOWN[name]["commit"], "allow_patterns": list(FILES)}
    try:
        return Path(snapshot_download(name, local_files_only=offline(), **wanted))
    except Exception as error:  # of many kinds, from the hub's client and from the network's
        raise DownloadError(
            f"{name} cannot be had: {error}\nNext: try again with a network and without "
            f"LABKIT_OFFLINE; or put {', '.join(FILES)} into {name.replace('/', '--')}/ of a "
            "folder that LABKIT_MIRROR names; or take another model_name"
        ) from error


@cache
def untaught(**sizes: int) -> Path:
    """The folder of a BERT with random weights and the word pieces of the generated reviews.

    It is tiny unless `sizes` say otherwise. Every process makes it anew, so it cannot be damaged.
    """
    texts = [review.text.replace("<br />", " ") for review in reviews.read("generated")]
    texts = [texts[n] for n in reviews.load("generated").split()["train"].tolist()]
    # the trainer would number continuations ("##a") in an order that changes from run to run
    letters = sorted({letter for text in texts for letter in text.lower() if letter.isalnum()})
    special = [*SPECIAL, *(f"##{letter}" for letter in letters)]
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts, 1_500, special_tokens=special, show_progress=False)
    words = words_of(learner)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"vocab_size": len(words), "intermediate_size": 128}
    config = transformers.BertConfig(**small | sizes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed CUDA, too
        weights = transformers.BertModel(config, add_pooling_layer=False).state_dict()
    files = {
        WORDS: "".join(f"{word}\n" for word in words).encode(),
        CASING: b'{"tokenizer_class": "BertTokenizer", "do_lower_case": true}',
        CONFIG: config.to_json_string().encode(),
        WEIGHTS: save(weights, metadata={"format": "pt"}),
    }
    folder = machine.CACHE / "tiny_bert" / code.sha256(b"".join(files.values()))[:32]
    for name, content in files.items():
        code.write_atomically(folder / name, content)
    return folder


def load_encoder(pretrained: Pretrained) -> transformers.BertModel:
    """The model without a pooling layer, float32, on the CPU, in evaluation mode.

    DownloadError where weights are missing: transformers would put random numbers in their place.
    """
    safe = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    model, report = transformers.BertModel.from_pretrained(
        pretrained.folder, add_pooling_layer=False, dtype=torch.float32, **safe
    )
    if names := report["missing_keys"]:
        what = f"{min(names)} ({len(names)} in all)"
        raise DownloadError(f"{WEIGHTS} in {pretrained.folder} lacks {what}: get it again")
    return model.eval()


def load_tokenizer(pretrained: Pretrained) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer; DownloadError where there is none, or it is another model's."""
    folder = pretrained.folder
    if not (folder / RULES).is_file() and not (folder / WORDS).is_file():
        raise DownloadError(f"{folder} has neither {RULES} nor {WORDS}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    words = "".join(f"{word}\n" for word in words_of(tokenizer)).encode()
    other = pretrained.name in KNOWN and code.sha256(words) != KNOWN[pretrained.name]["words"]
    if other or len(tokenizer) > pretrained.config["vocab_size"]:
        raise DownloadError(f"the tokenizer in {folder} is another model's: get both again")
    return tokenizer


def words_of(tokenizer: Any) -> list[str]:
    """The word pieces in the order of their numbers."""
    numbers = tokenizer.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


# for the command `labkit data`: fetch and verify
SOURCES = {
    "minilm": lambda: find("sentence-transformers/all-MiniLM-L6-v2").folder,
    "bert-base": lambda: find("google-bert/bert-base-uncased").folder,
}
ON_REQUEST = ("bert-base",)
