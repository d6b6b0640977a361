"""Chapter 04's data: made-up and real reviews, their splits, words and batches, word vectors."""

from __future__ import annotations

import gzip
import io
import re
import runpy
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from labkit.film import corpus as reviews
from labkit.film.corpus import PAD, PAD_ID, UNKNOWN, UNKNOWN_ID, Corpus, Review
from labkit.lab import machine
from labkit.lab.code import sha256
from labkit.lab.fetch import DownloadError


def words_of(text: str) -> tuple[str, ...]:
    """The words of a review, whatever its capitals, punctuation and line breaks."""
    return tuple(re.findall(r"\w+", text.replace("<br />", " ").lower()))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache, downloads and a mirror of a test's own."""
    monkeypatch.setattr(machine, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(machine, "DOWNLOADS", tmp_path / "downloads")
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("LABKIT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("LABKIT_OFFLINE", "1")


@pytest.fixture(scope="module")
def made() -> list[Review]:
    return reviews.read("generated")


def test_the_made_up_corpus_is_the_same_everywhere(made):
    """Records, and the results of chapters 04 and 05, hang on these bytes."""
    digest = "cff5b0c3b660f719f9046c860d0c4b30ab9aecb95cab89e0e2210a0128c68b94"
    assert reviews.texts_digest(made) == digest
    script = runpy.run_path(str(machine.DATA / "generated_reviews.py"))
    assert script["make_corpus"]() == reviews._made_up()


def test_labels_are_balanced_ratings_fit_them_and_no_review_comes_twice(made):
    assert len({words_of(review.text) for review in made}) == len(made) == 3000
    for part, count in (("train", 2000), ("test", 1000)):
        ratings = Counter((r.label, r.rating) for r in made if r.part == part)
        assert sum(ratings.values()) == count
        assert set(ratings) == {(int(rating > 5), rating) for rating in (1, 2, 3, 4, 7, 8, 9, 10)}
        assert sum(n for (label, _), n in ratings.items() if label) == count // 2
        assert min(ratings.values()) > count / 8 * 0.7


def linear_accuracy(made, target, longest: int) -> float:
    """Test accuracy of a logistic regression on the counts of up to `longest` words in a row."""
    vectorizer = CountVectorizer(tokenizer=words_of, token_pattern=None, ngram_range=(1, longest))
    train, test = ([r for r in made if r.part == part] for part in ("train", "test"))
    model = make_pipeline(vectorizer, LogisticRegression(C=0.1, max_iter=1000))
    model.fit([review.text for review in train], [target(review) for review in train])
    return model.score([review.text for review in test], [target(review) for review in test])


def test_words_tell_something_their_order_more_and_the_rating_shows(made):
    bag = linear_accuracy(made, lambda review: review.label, longest=1)
    assert 0.78 < bag < 0.85
    assert linear_accuracy(made, lambda review: review.label, longest=3) > bag + 0.03
    assert linear_accuracy(made, lambda review: abs(2 * review.rating - 11), longest=1) > 0.5


TEXTS = {
    f"{part}/{kind}/{number}_{rating}.txt": f"{part} {kind} {number}: na\u00efve <br />".encode()
    for part in ("test", "train")
    for kind, rating in (("neg", 3), ("pos", 10))
    for number in (0, 10, 2)
}
WHOLE = b"".join(b"aclImdb/%s\0%s\0" % (name.encode(), TEXTS[name]) for name in sorted(TEXTS))


def packed(files: dict[str, bytes], top: str = "aclImdb/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    """An empty mirror; the real reviews are the tiny ones."""
    stand_in = replace(reviews.IMDB, sha256=sha256(WHOLE), size=len(WHOLE))
    monkeypatch.setattr(reviews, "IMDB", stand_in)
    return tmp_path / "mirror"


@pytest.mark.parametrize("top", ["aclImdb/", "", "aclImdb\\"])
def test_reviews_come_out_of_an_archive_whatever_else_it_holds(mirror, top):
    odd = {"train/pos/._0_10.txt": b"\0\5\26\7", "train/pos/.DS_Store": b"\0\1", "README": b"read"}
    archive = packed(TEXTS | odd | {"train/unsup/0_0.txt": b"unlabelled"}, top)
    (mirror / "aclImdb_v1.tar.gz").write_bytes(archive)
    texts = reviews.read("imdb")
    assert texts[0] == Review("test", 0, 0, 3, "test neg 0: naïve <br />")
    assert {review.text.encode() for review in texts} == set(TEXTS.values())
    assert [review.number for review in texts] == [0, 2, 10] * 4  # as numbers
    assert (machine.DOWNLOADS / "aclImdb_reviews.bin").read_bytes() == WHOLE


@pytest.mark.parametrize(
    "archive, reason",
    [
        (packed(TEXTS | {"train/pos/2_10.txt": b"altered"}), "does not hold"),
        (packed(dict([*TEXTS.items()][1:])), "does not hold"),
        (packed(TEXTS | {"train/pos/3_9.txt": b"one more"}), "more bytes come than"),
    ],
)
def test_other_archives_are_refused_and_leave_nothing(mirror, tmp_path, archive, reason):
    (mirror / "aclImdb_v1.tar.gz").write_bytes(archive)
    with pytest.raises(DownloadError, match=rf"mirror/aclImdb_v1\.tar\.gz: .*({reason})"):
        reviews.read("imdb")
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert files == [mirror / "aclImdb_v1.tar.gz"]


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("It's <br />GOOD, isn't it?", "it 's good is n't it"),
        ("I don't, can't, won't, shouldn't!", "i do n't ca n't wo n't should n't"),
        ("ISN\u2019T it? It\u2019s we'll they've I'm", "is n't it it 's we 'll they 've i 'm"),
        ("the actors' 'quoted' words o'clock", "the actors quoted words o clock"),
        ("a < b and <b>bold</b>", "a b and bold"),
        ("well-made, 10/10 (3.5 stars) in 1999...", "well made 10 10 3 5 stars in 1999"),
        ("Amélie, naïve CAFÉ, Ünder 日本", "amélie naïve café ünder 日本"),
        ("want ant's n't", "want ant 's n't"),
    ],
)
def test_tokens(text, tokens):
    assert reviews.tokenize(text) == tokens.split()


def test_the_commonest_words_come_first_and_ties_in_alphabetical_order():
    texts = [["b", "a", "c", "c", PAD], ["d", "c", "a", "b", UNKNOWN]]
    assert reviews.build(texts, 10) == [UNKNOWN, PAD, "c", "a", "b", "d"]
    assert reviews.build(texts[::-1], 5) == [UNKNOWN, PAD, "c", "a", "b"]
    assert (UNKNOWN_ID, PAD_ID) == (0, 1)
    assert reviews.numericalize(["b", "z", "A"], {"a": 2, "b": 3}) == [3, 0, 0]


def test_only_one_module_imports_torchtext():
    package = Path(reviews.__file__).parents[1]
    users = [path.stem for path in package.rglob("*.py") if "from torchtext" in path.read_text()]
    assert users == ["corpus"]


@pytest.fixture
def corpus(monkeypatch) -> Corpus:
    """40 reviews, each with a word of its own; the last has no word at all."""
    texts = [
        Review(part, label, number, 2 + 7 * label, f"Film {part}{label}{number}x{' so' * number}")
        for part in ("test", "train")
        for label in (0, 1)
        for number in range(10)
    ]
    texts[-1] = replace(texts[-1], text="<br /> ... !")
    monkeypatch.setattr(reviews, "read", lambda name: texts)
    return reviews.load("generated", 1000)


def test_a_fifth_of_the_training_part_is_dev_balanced_and_always_the_same(corpus):
    split = corpus.split()
    assert [len(split[name]) for name in ("train", "dev", "test")] == [16, 4, 20]
    assert torch.cat(list(split.values())).sort().values.tolist() == list(range(40))
    assert torch.equal(split["test"], corpus.is_test.nonzero().flatten())
    for name, index in split.items():
        assert corpus.label[index].double().mean() == 0.5
        assert torch.equal(index, corpus.split()[name])
    label = torch.tensor([0, 1]).repeat_interleave(12_500)
    dev = reviews.split(label, torch.zeros(25_000, dtype=torch.bool))["dev"]
    assert (len(dev), int(label[dev].sum())) == (5_000, 2_500)
    assert sha256(dev.numpy().tobytes())[:16] == "db67ee2abc159854"


def test_the_vocabulary_holds_words_of_training_reviews_only(corpus):
    split = corpus.split()
    assert len(corpus.words) == 2 + 2 + len(split["train"]) - (39 in split["train"])
    known = [i for i in range(39) if corpus.review(i)[1] != UNKNOWN]
    assert known == [i for i in split["train"].tolist() if i != 39]


def test_a_corpus_holds_what_the_texts_say(corpus):
    texts = reviews.read("generated")
    for name in ("label", "rating", "number"):
        assert getattr(corpus, name).tolist() == [getattr(review, name) for review in texts]
    assert corpus.length.tolist() == [len(reviews.tokenize(r.text)) or 1 for r in texts]
    assert corpus.review(3)[2:] == ["so"] * 3
    assert corpus.review(39) == [UNKNOWN]  # a review without a word
    assert corpus.digest == reviews.texts_digest(texts)
    for change in ({"text": "other"}, {"rating": 3}, {"number": 99}, {"label": 1}):
        assert reviews.texts_digest([replace(texts[0], **change), *texts[1:]]) != corpus.digest


@pytest.mark.parametrize(
    "options, expected, lengths",
    [
        ({"max_len": 9}, [[31, 32, 33, 34, 35], [11, 12, 13, 1, 1], [21, 1, 1, 1, 1]], [5, 3, 1]),
        ({"max_len": 3, "front": True}, [[31, 32, 33], [11, 12, 13], [1, 1, 21]], [3, 3, 1]),
        ({"max_len": 2, "to": 4}, [[31, 32, 1, 1], [11, 12, 1, 1], [21, 1, 1, 1]], [2, 2, 1]),
        ({"max_len": 2, "to": 3, "front": True}, [[1, 31, 32], [1, 11, 12], [1, 1, 21]], [2, 2, 1]),
        ({"max_len": 9, "to": 2}, [[31, 32], [11, 12], [21, 1]], [2, 2, 1]),
    ],
)  # fmt: skip
def test_padding_by_hand(options, expected, lengths):
    tokens = torch.tensor([11, 12, 13, 21, 31, 32, 33, 34, 35, 41, 42], dtype=torch.int32)
    offsets, zeros = torch.tensor([0, 3, 4, 9, 11]), torch.zeros(4).long()
    corpus = Corpus(tokens, offsets, zeros, zeros, zeros, zeros.bool(), (), "")
    X, length = reviews.pad(corpus, torch.tensor([2, 0, 1]), **options)
    assert (X.dtype, X.tolist(), length.tolist()) == (torch.long, expected, lengths)


def test_batches_of_like_lengths_hold_hardly_any_padding_and_come_in_random_order():
    generator = torch.Generator().manual_seed(3)
    length = (torch.randn(3000, generator=generator).mul(0.7).add(5).exp()).long() + 1
    seeded = (torch.Generator().manual_seed(seed) for seed in (0, 0, 1))
    first, again, second = (reviews.by_length(length, 32, generator) for generator in seeded)
    cells = sum(len(group) * int(length[group].max()) for group in first)
    assert 1 - int(length.sum()) / cells < 0.12  # above 0.6 for batches at random
    assert torch.cat(first).sort().values.tolist() == list(range(3000))
    means = [length[group].double().mean() for group in first]
    assert abs(np.corrcoef(range(len(means)), means)[0, 1]) < 0.3
    assert all(map(torch.equal, first, again))
    # other company in the next epoch, not only another order
    epochs = [{frozenset(group.tolist()) for group in groups} for groups in (first, second)]
    assert len(epochs[0] & epochs[1]) < len(epochs[0]) / 4


LINES = b"the 0.5 -1.0 2.0\nfilm 1.0 1.5 0.25\nn't -3.0 0.0 1e-2\ngood 4.0 5.0 6.0\n"


def test_words_get_their_vectors_and_others_zero(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_bytes(LINES + b"a\xc2\x85b 7 8 9\n")  # a word with what Python takes for a line end
    table = reviews.load_vectors(path, [UNKNOWN, PAD, "good", "the", "cinema", "n't"], 100)
    expected = [[0, 0, 0], [0, 0, 0], [4, 5, 6], [0.5, -1, 2], [0, 0, 0], [-3, 0, 0.01]]
    np.testing.assert_array_equal(table, np.float32(expected), strict=True)
    assert reviews.load_vectors(path, ["a\x85b"], 5).tolist() == [[7, 8, 9]]
    assert reviews.load_vectors(path, ["film", "n't"], 2).any(1).tolist() == [True, False]


def test_few_words_come_from_the_excerpt_and_more_from_the_archive(tmp_path, monkeypatch):
    few = b"".join(LINES.splitlines(keepends=True)[:2])
    for name, content in (("GLOVE", LINES), ("EXCERPT", few)):
        stand_in = replace(getattr(reviews, name), sha256=sha256(content), size=len(content))
        monkeypatch.setattr(reviews, name, stand_in)
    monkeypatch.setattr(reviews, "EXCERPT_WORDS", 2)
    with zipfile.ZipFile(tmp_path / "mirror/glove.6B.zip", "w") as archive:
        archive.writestr("glove.6B.50d.txt", b"\0")
        archive.writestr("glove.6B.100d.txt", LINES)
    (tmp_path / "mirror" / "glove.6B.100d.head2603.txt.gz").write_bytes(gzip.compress(few))
    assert reviews.glove(2).read_bytes() == LINES[: LINES.index(b"n't")]
    assert reviews.glove(3).read_bytes() == LINES
    corpus = Corpus(*[torch.zeros(1)] * 6, words=(UNKNOWN, PAD, "good", "the"), digest="")
    assert reviews.pretrained(corpus, 2, 3).tolist() == [[0, 0, 0]] * 3 + [[0.5, -1, 2]]
    assert reviews.pretrained(corpus, 4, 3)[2].tolist() == [4, 5, 6]


def test_without_glove_vectors_are_counted_from_the_training_reviews():
    """Words in the same company get the same vector, and no window reaches into the next review."""
    tokens = torch.tensor([2, 3, 4, 3, 5, 6, UNKNOWN_ID, 2, 7])  # "ab", "cb", "de", <unk>, "af"
    offsets, rest = torch.tensor([0, 2, 4, 6, 7, 9]), torch.zeros(5)
    corpus = Corpus(tokens, offsets, *[rest] * 4, words=(UNKNOWN, PAD, *"abcdef"), digest="")
    vectors = reviews.count_vectors(corpus, torch.arange(4), 3)
    norm = np.linalg.norm(vectors, axis=1)
    assert (norm > 1e-3).tolist() == [False, False, True, True, True, True, True, False]
    a, b, c, d, e = vectors[2:7] / norm[2:7, None]
    np.testing.assert_allclose([a @ c, a @ d, b @ e], [1, 0, 0], atol=1e-5)
    assert vectors.std() == pytest.approx(0.4)
    assert reviews.count_vectors(corpus, torch.arange(5), 3)[7].any()  # now "f" is read, too
