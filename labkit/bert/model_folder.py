"""What a folder with a pretrained BERT must hold, and which models are known by their hashes.

Weights are safetensors, so that nothing is unpickled; they are hashed before they are used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from labkit.lab import digests
from labkit.lab.download import file_digest
from labkit.lab.transfer import DownloadError

BERT_BASE = "google-bert/bert-base-uncased"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ALIASES = {"bert-base-uncased": BERT_BASE, "all-MiniLM-L6-v2": MINILM}

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZERS = ("tokenizer.json", "vocab.txt")  # one of them does; the first is preferred
FILES = (CONFIG, "tokenizer.json", "tokenizer_config.json", "vocab.txt", WEIGHTS)


class NotThere(DownloadError):
    """A source that does not have the model: nothing to warn of."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained BERT on this machine.

    `name` as it was asked for; `revision` the commit of the hub, "" for a folder; `folder` holds
    config.json, model.safetensors and tokenizer.json or vocab.txt; `source` says in words whence.
    """

    name: str
    revision: str
    folder: Path
    weights_sha256: str
    source: str


@dataclass(frozen=True)
class Wanted:
    """A model of the hub at one commit, and what is known of it: None where nothing is.

    `sha256` and `size` in bytes are those of the weights; `vocabulary` is the SHA-256 of the words,
    each with a line feed, in the order of their numbers, which is that of vocab.txt.
    """

    name: str
    revision: str
    sha256: str | None = None
    size: int | None = None
    vocabulary: str | None = None
    is_packaged: bool = False  # whether a package index has it
    any_commit: bool = False  # whether another commit with the same weights and words will do

    @property
    def flat(self) -> str:
        """The name as a folder's."""
        return self.name.replace("/", "--")


UNCASED = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
KNOWN = {
    BERT_BASE: Wanted(
        BERT_BASE,
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
        440_449_768,
        UNCASED,
    ),
    MINILM: Wanted(
        MINILM,
        "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        90_868_376,
        UNCASED,
        is_packaged=True,
    ),
}


def checked(wanted: Wanted, folder: Path, source: str) -> Pretrained:
    """The folder as a model; DownloadError says what it lacks, or what in it is wrong."""
    _check_config(folder)
    _check_weights(folder)
    words = _vocabulary(folder)
    if wanted.vocabulary and words != wanted.vocabulary:
        raise DownloadError(
            f"the vocabulary in {folder} has the SHA-256 {words}, expected {wanted.vocabulary}; it "
            "is that of another model"
        )
    found = file_digest(folder / WEIGHTS)
    if wanted.sha256 and found != wanted.sha256:
        raise DownloadError(
            f"{folder / WEIGHTS} has SHA-256 {found}, expected {wanted.sha256}; it was altered, or "
            "is another version"
        )
    return Pretrained(wanted.name, wanted.revision, folder, found, source)


def _check_config(folder: Path) -> None:
    if not folder.is_dir():
        raise NotThere(f"there is no folder {folder}")
    if not (folder / CONFIG).is_file():
        raise DownloadError(f"{folder} has no {CONFIG}; a model's folder holds {', '.join(FILES)}")
    kind = read_json(folder / CONFIG).get("model_type")
    if kind != "bert":
        raise DownloadError(
            f"{folder / CONFIG} says model_type {kind!r}; the lab reads models of type 'bert' only"
        )


def _check_weights(folder: Path) -> None:
    """See that the weights are one whole safetensors file, by its header and its size."""
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(file.name for file in folder.glob("*.bin"))
        why = f"has no {WEIGHTS}"
        if others:
            why += (
                f" but {others[0]}: safetensors only, nothing is unpickled; if you trust that file,"
                f" convert it once with transformers, BertModel.from_pretrained({str(folder)!r})"
                ".save_pretrained(…) into a new folder"
            )
        elif any(folder.glob("model-*.safetensors")):
            why += " but one in several parts; save it anew with max_shard_size='10GB'"
        raise DownloadError(f"{folder} {why}")
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = file.read(length) if length < 10**8 else b""
    if start == b"version ":
        raise DownloadError(f"{path} is git's pointer to the file; fetch it with git lfs pull")
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items()
                if name != "__metadata__"]  # fmt: skip
        whole = 8 + length + max(ends) == path.stat().st_size
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        whole = False
    if not whole:
        raise DownloadError(f"{path} is damaged or cut short; get it again")


def _vocabulary(folder: Path) -> str:
    """SHA-256 of the words of the file that the tokenizer is made of; see `Wanted`."""
    path = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if path is None:
        raise DownloadError(f"{folder} has neither {' nor '.join(TOKENIZERS)}; get one with it")
    if path.suffix == ".txt":
        return digests.sha256(path.read_bytes().replace(b"\r\n", b"\n"))
    try:
        numbers = read_json(path)["model"]["vocab"]
        words = sorted(numbers, key=numbers.__getitem__)
        return digests.sha256("".join(f"{word}\n" for word in words).encode())
    except (KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{path} is not the tokenizer of a BERT ({error!r})") from error


def read_json(path: Path) -> dict:
    """The object in a JSON file; DownloadError where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DownloadError(f"{path} is damaged ({error}); get it again") from error
    if not isinstance(found, dict):
        raise DownloadError(f"{path} is not what its name says; get it again")
    return found
