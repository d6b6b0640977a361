"""A BERT small enough for the quick profile: random weights, word pieces of the made-up reviews.

It is made once and kept in the cache, under a name made of this code, the texts' code and the
versions of the libraries, so that each of them makes it anew. It needs no download and knows
nothing: what it reaches, it learns in the chapter.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from labkit.lab import digests, environment

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # a piece's number is its place
VOCABULARY_SIZE = 1_500
SEED = 0
MODULES = ("labkit.film.generated", "labkit.film.corpus", "labkit.bert.tiny")
LIBRARIES = ("tokenizers", "torch", "transformers")
MARKER = "made.json"


def folder() -> Path:
    """The folder with config.json, model.safetensors, vocab.txt and tokenizer_config.json.

    The first call makes it in a few seconds; later ones hash what is there, and make it anew where
    it is damaged. The global generators of random numbers stay as they are.
    """
    stamp = {
        "code": digests.module_digest(MODULES),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }
    place = environment.CACHE / "tiny_bert" / digests.sha256(digests.canonical(stamp))[:32]
    if not _is_sound(place):
        _renew(place)
    return place


def word_pieces(texts: Sequence[str], size: int = VOCABULARY_SIZE) -> list[str]:
    """The `SPECIAL` pieces and those learned from texts, lower-cased, at most `size` in all.

    The trainer numbers continuations ("##a") as it meets them, in an order that changes from run
    to run and breaks ties between candidates. They are given to it in their order instead.
    """
    from tokenizers import BertWordPieceTokenizer

    letters = sorted({letter for text in texts for letter in text.lower() if letter.isalnum()})
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(
        texts,
        vocab_size=size,
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in letters)],
        show_progress=False,
    )
    numbers = learner.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)


def _training_texts() -> list[str]:
    """The generated reviews that the chapters train on: neither dev nor test."""
    import torch

    from labkit.film import corpus as reviews

    found = reviews.read(reviews.folder("generated"))
    label = torch.tensor([review.label for review in found])
    is_test = torch.tensor([review.part == "test" for review in found])
    train, _ = reviews.split_train(label, is_test)
    return [found[i].text.replace("<br />", " ") for i in train.tolist()]


def _make(place: Path) -> None:
    """Write the model and its vocabulary into a new folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    words = word_pieces(_training_texts())
    place.mkdir(parents=True)
    (place / "vocab.txt").write_text("".join(f"{word}\n" for word in words), "utf-8")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": SIZES["max_position_embeddings"],
    }
    (place / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")

    config = BertConfig(vocab_size=len(words), **SIZES)
    config.to_json_file(place / "config.json")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would seed CUDA, too
        model = BertModel(config, add_pooling_layer=False)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


def _renew(place: Path) -> None:
    """Make the folder beside its place, then rename it; two processes may do so at a time."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{place.name}.", suffix=".tmp", dir=place.parent, ignore_cleanup_errors=True
    ) as staging:
        made = Path(staging) / "made"
        _make(made)
        (made / MARKER).write_bytes(digests.canonical(_sums(made.iterdir())))
        if place.exists() and not _is_sound(place):
            os.rename(place, Path(staging) / "damaged")
        try:
            os.rename(made, place)
        except OSError:
            if not _is_sound(place):  # else the other process was quicker
                raise


def _sums(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: digests.sha256(file.read_bytes()) for file in files}


def _is_sound(place: Path) -> bool:
    """Whether all the files are there as they were made."""
    try:
        expected = json.loads((place / MARKER).read_bytes())
        return expected == _sums(place / name for name in expected)
    except (OSError, ValueError):
        return False
