"""Film reviews as numbers: read from a folder, split, tokenised, numbered, batched.

The corpus lies on disk in the layout of the Large Movie Review Dataset, as real reviews or as ones
that `labkit.film.generated` makes up. What was numbered once is kept, under a name made of the
corpus, the size of the vocabulary and this code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.film import vocabulary
from labkit.lab import datasets, digests, environment

CORPORA = ("imdb", "generated")
KINDS = ("neg", "pos")
SPLITS = ("train", "dev", "test")
DEV_SHARE = 0.2
MODULES = ("labkit.film.corpus", "labkit.film.vocabulary")
_NAME = re.compile(r"(\d+)_(10|[1-9])\.txt")


@dataclass(frozen=True)
class Review:
    """One review as it lies on disk; `number` and `rating` (1 to 10) come from the file's name."""

    part: str  # "train" or "test"
    label: int  # 0 negative, 1 positive
    number: int
    rating: int
    text: str


@dataclass(frozen=True)
class Corpus:
    """N numbered reviews one after another: test and training part by label and number.

    `tokens` (M,) holds the words of all reviews, those of review n from offsets[n] to
    offsets[n + 1]; `offsets` (N + 1,); `label`, `rating`, `number` (N,); `is_test` (N,) bool;
    `words` the vocabulary. `digest` names the texts and how they were numbered.
    """

    tokens: Tensor
    offsets: Tensor
    label: Tensor
    rating: Tensor
    number: Tensor
    is_test: Tensor
    words: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.label)

    @property
    def length(self) -> Tensor:
        """Words of each review, (N,)."""
        return self.offsets.diff()

    def review(self, index: int) -> list[str]:
        """The words of one review as the model sees them."""
        ids = self.tokens[self.offsets[index] : self.offsets[index + 1]].tolist()
        return [self.words[i] for i in ids]

    def split(self) -> dict[str, Tensor]:
        """Indices of the training, dev and test reviews, each ascending.

        A fifth of the training part, drawn once with a fixed seed and half of it of either label,
        is dev; the test part stays whole.
        """
        test = self.is_test.nonzero().flatten()
        train, dev = split_train(self.label, self.is_test)
        return {"train": train, "dev": dev, "test": test}


def split_train(label: Tensor, is_test: Tensor, share: float = DEV_SHARE) -> tuple[Tensor, Tensor]:
    """Indices of training and dev reviews, drawn from the training part."""
    generator = torch.Generator().manual_seed(0)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for value in range(len(KINDS)):
        own = ((label == value) & ~is_test).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)]
        count = round(share * len(own))
        parts[0].append(own[count:])
        parts[1].append(own[:count])
    return torch.cat(parts[0]).sort().values, torch.cat(parts[1]).sort().values


# reading


def folder(name: str) -> Path:
    """The folder of a corpus, "imdb" or "generated", fetched or made where it is not there."""
    if name not in CORPORA:
        raise ValueError(f"corpus must be one of {', '.join(CORPORA)}; got {name!r}")
    if name == "imdb":
        return datasets.imdb()
    from labkit.film import generated as generated_reviews

    return generated_reviews.write_corpus(environment.CACHE / "generated_reviews")


def read(path: Path) -> list[Review]:
    """All reviews below {train,test}/{neg,pos} of a folder, by part, label and number.

    ValueError names a folder that is missing or empty, or a file whose name is not
    <number>_<rating>.txt or whose rating does not fit its folder.
    """
    reviews = []
    for part in ("test", "train"):
        for label, kind in enumerate(KINDS):
            place = path / part / kind
            found = [_read_one(file, part, label) for file in place.glob("*.txt")]
            if not found:
                raise ValueError(f"{place} holds no reviews; python -m labkit data fetches them")
            reviews += sorted(found, key=lambda review: review.number)
    return reviews


def _read_one(file: Path, part: str, label: int) -> Review:
    match = _NAME.fullmatch(file.name)
    if not match:
        raise ValueError(f"{file}: a review is named <number>_<rating>.txt")
    number, rating = map(int, match.groups())
    if (rating >= 7) != bool(label) or 5 <= rating <= 6:
        raise ValueError(f"{file}: rating {rating} does not belong into {KINDS[label]}/")
    return Review(part, label, number, rating, file.read_text("utf-8"))


def texts_digest(reviews: Sequence[Review]) -> str:
    """SHA-256 over what the lab uses of a corpus: part, label, number, rating and text."""
    digest = hashlib.sha256()
    for r in reviews:
        digest.update(f"{r.part}/{KINDS[r.label]}/{r.number}_{r.rating}\0{r.text}\0".encode())
    return digest.hexdigest()


# numbering


def load(name: str, vocab_size: int = 20_001) -> Corpus:
    """A corpus as numbers, with the vocabulary of its training reviews (dev and test left out).

    The first call reads, checks and numbers the texts; later ones take what was kept.
    """
    place = folder(name)
    stamp = {"corpus": name, "vocab_size": vocab_size, "code": digests.module_digest(MODULES)}
    if name == "generated":
        stamp["made_by"] = digests.module_digest(["labkit.film.generated"])
    kept = environment.CACHE / "corpora" / f"{digests.sha256(digests.canonical(stamp))[:32]}"
    return _kept(kept) or _number(read(place), vocab_size, kept)


def _number(reviews: Sequence[Review], vocab_size: int, path: Path) -> Corpus:
    from safetensors.torch import save

    tokenised = [vocabulary.tokenize(review.text) for review in reviews]
    label = torch.tensor([review.label for review in reviews])
    is_test = torch.tensor([review.part == "test" for review in reviews])
    train, _ = split_train(label, is_test)
    words = vocabulary.build((tokenised[i] for i in train.tolist()), vocab_size)

    numbers = {word: number for number, word in enumerate(words)}
    # a review without a single word would have no last step to read
    ids = [vocabulary.numericalize(t, numbers) or [vocabulary.UNKNOWN_ID] for t in tokenised]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    tensors = {
        "tokens": torch.from_numpy(np.concatenate(ids).astype(np.int32)),
        "offsets": torch.from_numpy(offsets),
        "label": label,
        "rating": torch.tensor([review.rating for review in reviews]),
        "number": torch.tensor([review.number for review in reviews]),
        "is_test": is_test,
        "words": torch.frombuffer(bytearray("\n".join(words).encode()), dtype=torch.uint8),
        "digest": torch.frombuffer(bytearray(texts_digest(reviews).encode()), dtype=torch.uint8),
    }
    digests.write_atomically(path, save(tensors))
    return _corpus(tensors)


def _kept(path: Path) -> Corpus | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        return None
    try:
        return _corpus(load_file(path))
    except SafetensorError:
        path.unlink()  # a damaged file is made again
        return None


def _corpus(tensors: dict[str, Tensor]) -> Corpus:
    texts = {name: bytes(tensors[name].numpy()).decode() for name in ("words", "digest")}
    rest: dict[str, Any] = {name: t for name, t in tensors.items() if name not in texts}
    return Corpus(**rest, words=tuple(texts["words"].split("\n")), digest=texts["digest"])


# batches


def by_length(
    length: Tensor, batch_size: int, generator: torch.Generator, pool: int = 100
) -> list[Tensor]:
    """Batches of positions into `length` (n,), of reviews about equally long, in random order.

    The order is shuffled, sorted by length inside pools of `pool` batches, cut into batches, and
    the batches are shuffled: hardly any padding, and yet new batches in every epoch.
    """
    order = torch.randperm(len(length), generator=generator)
    # within a pool, lengths that differ by less than a tenth count as equal
    noise = 1 + 0.1 * torch.rand(len(length), generator=generator)
    batches: list[Tensor] = []
    for chunk in order.split(pool * batch_size):
        key = length[chunk] * noise[chunk]
        batches += chunk[key.argsort(stable=True)].split(batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def in_order(length: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Batches of positions into `length` (n,) for evaluation, from the shortest review on."""
    yield from length.argsort(stable=True).split(batch_size)


def pad(
    corpus: Corpus, index: Tensor, max_len: int, *, front: bool = False, to: int | None = None
) -> tuple[Tensor, Tensor]:
    """The first `max_len` words of some reviews as X (B, T), long, and their lengths (B,).

    T is the longest of them, or `to`. The padding stands behind the words, or in front of them.
    """
    if max_len < 1 or (to is not None and to < max_len):
        raise ValueError(f"max_len must be at least 1 and at most `to`, got {max_len} and {to}")
    start = corpus.offsets[index]
    length = (corpus.offsets[index + 1] - start).clamp(max=max_len)
    T = to or int(length.max())
    step = torch.arange(T).expand(len(index), T) - ((T - length).unsqueeze(1) if front else 0)
    inside = (step >= 0) & (step < length.unsqueeze(1))  # (B, T)
    place = (start.unsqueeze(1) + step).where(inside, torch.zeros(()).long())
    X = corpus.tokens[place].long().where(inside, torch.tensor(vocabulary.PAD_ID))
    return X, length
