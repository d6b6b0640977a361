"""Film reviews as BERT's word pieces: tokenised once for a vocabulary, cut to a length, padded.

The reviews stand in the order of `labkit.film.corpus.Corpus`, so that its split and the draws of
`labkit.film.tasks` give BERT the same reviews as the recurrent networks and the baselines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from labkit.bert.pretrained import Pretrained
from labkit.bert import pretrained
from labkit.film import corpus as reviews
from labkit.lab import digests, environment

PARTS = ("head", "tail", "head_tail")
HEAD_SHARE = 0.25  # of "head_tail", as the 128 first of 510 pieces in Sun et al. (2019)
MODULES = ("labkit.bert.encoding", "labkit.film.corpus")
TOKENISED_AT_ONCE = 1_000


@dataclass(frozen=True)
class Encoded:
    """N reviews as word pieces, each between [CLS] and [SEP], in the corpus' order.

    `ids` (M,), int32, holds the pieces of all reviews, those of review n from offset[n] on,
    length[n] of them; `uncut` (N,) is the length that a review would have without a limit;
    `label`, `rating` (N,); `is_test` (N,) bool; `pad_id` is the number of [PAD]. `digest` is the
    corpus', `pieces_digest` names the vocabulary and the rules of the tokeniser.
    """

    ids: Tensor
    offset: Tensor
    length: Tensor
    uncut: Tensor
    label: Tensor
    rating: Tensor
    is_test: Tensor
    pad_id: int
    digest: str
    pieces_digest: str

    def __len__(self) -> int:
        return len(self.label)

    def review(self, index: int) -> Tensor:
        """The numbers of one review's pieces, (length,)."""
        start = int(self.offset[index])
        return self.ids[start : start + int(self.length[index])].long()

    split = reviews.Corpus.split  # the same training, dev and test reviews


def encode(corpus_name: str, found: Pretrained, max_len: int, part: str = "head") -> Encoded:
    """A corpus, "imdb" or "generated", in the word pieces of a model.

    Of a review that is longer than `max_len` pieces, [CLS] and [SEP] included, only a part is kept:
    its "head", its "tail", or "head_tail", a quarter from its head and the rest from its tail.
    The first call tokenises the corpus; later ones take what was kept.
    """
    check(max_len, part)
    pieces, facts = _pieces(corpus_name, found)
    count = pieces["count"]
    ids, length = _cut(pieces["ids"], count, max_len, part, facts["cls"], facts["sep"])
    return Encoded(
        ids=ids,
        offset=length.cumsum(0) - length,
        length=length,
        uncut=count + 2,
        label=pieces["label"],
        rating=pieces["rating"],
        is_test=pieces["is_test"],
        pad_id=facts["pad"],
        digest=facts["digest"],
        pieces_digest=facts["tokenizer"],
    )


def check(max_len: int, part: str) -> None:
    """Raise ValueError for a length or a part that `encode` does not know."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}; got {part!r}")
    if max_len < 3:
        raise ValueError(f"max_len must have room for [CLS], a piece and [SEP], got {max_len}")


def digests_of(corpus_name: str, found: Pretrained) -> tuple[str, str]:
    """`digest` and `pieces_digest` of what `encode` gives; tokenises the corpus where it must."""
    return _digests(corpus_name, found, environment.CACHE)


@cache
def _digests(corpus_name: str, found: Pretrained, _cache: Path) -> tuple[str, str]:
    facts = _pieces(corpus_name, found)[1]
    return facts["digest"], facts["tokenizer"]


def pad(encoded: Encoded, index: Tensor, to: int | None = None) -> tuple[Tensor, Tensor]:
    """Some reviews as X (B, T), long, and where they are no padding, (B, T) bool.

    T is the longest of them, or the fixed length `to`.
    """
    offset, length = encoded.offset[index].unsqueeze(1), encoded.length[index].unsqueeze(1)
    T = to or int(length.max())
    if int(length.max()) > T:
        raise ValueError(f"a review has {int(length.max())} pieces, more than the length {to}")
    step = torch.arange(T)
    mask = step < length  # (B, T)
    place = (offset + step).where(mask, offset)
    X = encoded.ids[place].long().where(mask, torch.tensor(encoded.pad_id))
    return X, mask


def _cut(
    flat: Tensor, count: Tensor, max_len: int, part: str, cls: int, sep: int
) -> tuple[Tensor, Tensor]:
    """The kept pieces between [CLS] and [SEP], one review after another, and their lengths."""
    room = max_len - 2
    kept = count.clamp(max=room)
    long = count > room
    share = {"head": room, "tail": 0, "head_tail": round(HEAD_SHARE * room)}[part]
    head = kept.where(~long, torch.tensor(share))  # so many come from the review's head

    length = kept + 2
    review = torch.repeat_interleave(length)  # (M,) which review a position belongs to
    step = torch.arange(len(review)) - (length.cumsum(0) - length)[review] - 1  # -1 at [CLS]
    skipped = (step >= head[review]) * (count - kept)[review]
    place = (count.cumsum(0) - count)[review] + step + skipped
    ids = torch.cat([flat, flat.new_zeros(1)])[place.clamp(0, len(flat))]
    ids[step == -1] = cls
    ids[step == kept[review]] = sep
    return ids, length


# what is kept


def _pieces(corpus_name: str, found: Pretrained) -> tuple[dict[str, Tensor], dict]:
    """All pieces of a corpus, uncut and without special ones, and what is to know of them."""
    tokenizer = pretrained.tokenizer(found)
    stamp = {
        "corpus": corpus_name,
        "tokenizer": _tokenizer_digest(tokenizer),
        "code": digests.module_digest(MODULES),
    }
    if corpus_name == "generated":
        stamp["made_by"] = digests.module_digest(["labkit.film.generated"])
    path = environment.CACHE / "corpora" / f"{digests.sha256(digests.canonical(stamp))[:32]}.pieces"
    tensors = _kept(path) or _tokenise(corpus_name, tokenizer, path)
    digest = bytes(tensors.pop("digest").numpy()).decode()
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad")}
    return tensors, {"digest": digest, "tokenizer": stamp["tokenizer"], **special}


def _tokenizer_digest(tokenizer) -> str:
    """SHA-256 over the rules and the vocabulary; cutting and padding, which are ours, apart."""
    rules = tokenizer.backend_tokenizer
    rules.no_truncation()
    rules.no_padding()
    return digests.sha256(rules.to_str().encode())


def _tokenise(corpus_name: str, tokenizer, path: Path) -> dict[str, Tensor]:
    from safetensors.torch import save

    found = reviews.read(reviews.folder(corpus_name))
    texts = [review.text.replace("<br />", " ") for review in found]
    rows: list[Tensor] = []
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        batch = tokenizer(
            texts[start : start + TOKENISED_AT_ONCE],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # long reviews are no mistake, they are cut later
        )
        rows += [torch.tensor(ids, dtype=torch.int32) for ids in batch["input_ids"]]
    tensors = {
        "ids": torch.cat(rows),
        "count": torch.tensor([len(row) for row in rows]),
        "label": torch.tensor([review.label for review in found]),
        "rating": torch.tensor([review.rating for review in found]),
        "is_test": torch.tensor([review.part == "test" for review in found]),
        "digest": torch.frombuffer(
            bytearray(reviews.texts_digest(found).encode()), dtype=torch.uint8
        ),
    }
    digests.write_atomically(path, save(tensors))
    return tensors


def _kept(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        return None
    try:
        return load_file(path)
    except SafetensorError:
        path.unlink()  # a damaged file is made again
        return None
