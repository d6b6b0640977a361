"""Reviews as numbers: reading, splitting, keeping, batches and padding."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from labkit.film import corpus as reviews
from labkit.film import generated as generated_reviews
from labkit.film import vocabulary
from labkit.film.corpus import Corpus, Review
from labkit.lab import datasets, environment

PAD, UNKNOWN = vocabulary.PAD_ID, vocabulary.UNKNOWN_ID
RATING = {"neg": 2, "pos": 9}


def write(folder, texts: dict[str, list[str]]):
    """Texts under "train/neg" and so on, numbered from 0, into files named N_R.txt."""
    for place, own in texts.items():
        (folder / place).mkdir(parents=True)
        rating = RATING[place.rpartition("/")[2]]
        for number, text in enumerate(own):
            (folder / place / f"{number}_{rating}.txt").write_text(text, "utf-8")
    return folder


def texts(count: int = 10) -> dict[str, list[str]]:
    return {
        f"{part}/{kind}": [f"a {kind} film {'so ' * n}of {part}" for n in range(count)]
        for part in ("train", "test")
        for kind in ("neg", "pos")
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of 40 reviews that `load` reads, and a cache of its own."""
    folder = write(tmp_path / "corpus", texts())
    monkeypatch.setattr(reviews, "folder", lambda name: folder)
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")
    return folder


def corpus_of(rows: list[list[int]]) -> Corpus:
    """A corpus of given word numbers, from 2 on."""
    n = len(rows)
    offsets = torch.tensor([0, *itertools.accumulate(map(len, rows))])
    zeros = torch.zeros(n, dtype=torch.long)
    words = tuple(f"w{i}" for i in range(100))
    tokens = torch.tensor([i for row in rows for i in row], dtype=torch.int32)
    return Corpus(tokens, offsets, zeros, zeros, zeros, zeros.bool(), words, "digest")


# padding


ROWS = [[11, 12, 13], [21], [31, 32, 33, 34, 35], [41, 42]]


@pytest.mark.parametrize(
    "options, expected, lengths",
    [
        ({"max_len": 9}, [[31, 32, 33, 34, 35], [11, 12, 13, 1, 1], [21, 1, 1, 1, 1]], [5, 3, 1]),
        ({"max_len": 3}, [[31, 32, 33], [11, 12, 13], [21, 1, 1]], [3, 3, 1]),
        ({"max_len": 1}, [[31], [11], [21]], [1, 1, 1]),
        ({"max_len": 3, "front": True}, [[31, 32, 33], [11, 12, 13], [1, 1, 21]], [3, 3, 1]),
        ({"max_len": 2, "to": 4}, [[31, 32, 1, 1], [11, 12, 1, 1], [21, 1, 1, 1]], [2, 2, 1]),
        ({"max_len": 2, "to": 3, "front": True}, [[1, 31, 32], [1, 11, 12], [1, 1, 21]], [2, 2, 1]),
    ],
)  # fmt: skip
def test_padding_by_hand(options, expected, lengths):
    assert PAD == 1
    X, length = reviews.pad(corpus_of(ROWS), torch.tensor([2, 0, 1]), **options)
    assert X.dtype == torch.long
    assert X.tolist() == expected
    assert length.tolist() == lengths


@pytest.mark.parametrize("options", [{"max_len": 0}, {"max_len": 5, "to": 4}])
def test_lengths_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="max_len must be at least 1 and at most `to`"):
        reviews.pad(corpus_of(ROWS), torch.tensor([0]), **options)


# batches


def lengths(count: int = 3000) -> torch.Tensor:
    """Lengths with a long tail, as reviews have them."""
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(count, generator=generator).mul(0.7).add(5).exp()).long() + 1


def batches(length, seed: int = 0, size: int = 32, **options) -> list[torch.Tensor]:
    return reviews.by_length(length, size, torch.Generator().manual_seed(seed), **options)


def padding_share(length, groups) -> float:
    cells = sum(len(group) * int(length[group].max()) for group in groups)
    return 1 - int(length.sum()) / cells


@pytest.mark.parametrize(
    "count, size, pool", [(3000, 32, 100), (101, 10, 2), (5, 64, 100), (64, 64, 1)]
)
def test_every_review_is_in_one_batch(count, size, pool):
    found = batches(lengths(count), size=size, pool=pool)
    assert torch.cat(found).sort().values.tolist() == list(range(count))
    assert sum(len(group) < size for group in found) <= -(-count // (size * pool))
    assert max(len(group) for group in found) <= size


def test_batches_repeat_with_the_generator_and_differ_between_epochs():
    length, generator = lengths(200), torch.Generator().manual_seed(0)
    epochs = [reviews.by_length(length, 16, generator) for _ in range(2)]
    for one, other in zip(epochs[0], batches(length, size=16), strict=True):
        assert torch.equal(one, other)
    as_sets = [{frozenset(group.tolist()) for group in epoch} for epoch in epochs]
    # other company, not only another order
    assert len(as_sets[0] & as_sets[1]) < len(as_sets[0]) / 4


def test_batches_of_like_lengths_hold_hardly_any_padding():
    length = lengths()
    at_random = torch.randperm(len(length), generator=torch.Generator().manual_seed(0)).split(32)
    assert padding_share(length, at_random) > 0.6
    assert padding_share(length, batches(length)) < 0.12
    # and come neither from the shortest on nor the longest
    means = torch.stack([length[group].double().mean() for group in batches(length)])
    position = torch.arange(len(means)).double()
    assert abs(torch.corrcoef(torch.stack([position, means]))[0, 1]) < 0.3


def test_evaluation_goes_from_the_shortest_review_on():
    length = torch.tensor([5, 2, 9, 2, 7])
    found = list(reviews.in_order(length, 2))
    assert [group.tolist() for group in found] == [[1, 3], [0, 4], [2]]


# split


def test_a_fifth_of_the_training_part_is_dev_and_balanced(place):
    corpus = reviews.load("generated", 30)
    split = corpus.split()
    assert {name: len(index) for name, index in split.items()} == {
        "train": 16,
        "dev": 4,
        "test": 20,
    }
    for index in split.values():
        assert corpus.label[index].double().mean() == 0.5
        assert torch.equal(index, index.sort().values)
    together = torch.cat(list(split.values()))
    assert together.sort().values.tolist() == list(range(40))
    assert torch.equal(split["test"], corpus.is_test.nonzero().flatten())
    assert not corpus.is_test[torch.cat([split["train"], split["dev"]])].any()
    again = corpus.split()
    assert all(torch.equal(index, again[name]) for name, index in split.items())


def test_dev_of_25_000_reviews_has_5_000():
    label = torch.tensor([0, 1]).repeat_interleave(12_500)
    train, dev = reviews.split_train(label, torch.zeros(25_000, dtype=torch.bool))
    assert (len(train), len(dev)) == (20_000, 5_000)
    assert int(label[dev].sum()) == 2_500
    assert dev[:2_500].double().mean() == pytest.approx(6_250, abs=300)  # drawn, not cut off


def test_the_vocabulary_holds_words_of_training_reviews_only(place):
    """Every review has a word of its own: those of dev and test reviews stay unknown."""
    for file in place.glob("*/*/*.txt"):
        part, kind = file.parts[-3:-1]
        file.write_text(f"film {part}{kind}{file.name.partition('_')[0]}")
    corpus = reviews.load("generated", 1000)
    split = corpus.split()
    known = {name: set() for name in split}
    for name, index in split.items():
        for i in index.tolist():
            own = f"{'test' if name == 'test' else 'train'}{reviews.KINDS[corpus.label[i]]}"
            known[name].add(f"{own}{corpus.number[i]}" in corpus.words)
            assert corpus.review(i)[0] == "film"
            assert (corpus.review(i)[1] == vocabulary.UNKNOWN) is (name != "train")
    assert known == {"train": {True}, "dev": {False}, "test": {False}}
    assert len(corpus.words) == 2 + 1 + len(split["train"])


# reading


def test_reviews_come_by_part_label_and_number(place):
    found = reviews.read(place)
    folders = [("test", 0), ("test", 1), ("train", 0), ("train", 1)]
    assert [(r.part, r.label) for r in found[::10]] == folders
    assert found[0] == Review("test", 0, 0, 2, "a neg film of test")


def test_numbers_are_ordered_as_numbers(tmp_path):
    folder = write(tmp_path, texts(12))
    assert [r.number for r in reviews.read(folder)[:12]] == list(range(12))
    (folder / "test/neg/100_1.txt").write_text("last")
    assert [r.number for r in reviews.read(folder)[:13]] == [*range(12), 100]


@pytest.mark.parametrize(
    "name, message",
    [
        ("train/pos/50_4.txt", "rating 4 does not belong into pos/"),
        ("train/neg/50_7.txt", "rating 7 does not belong into neg/"),
        ("train/pos/50_5.txt", "rating 5 does not belong"),
        ("train/pos/50_6.txt", "rating 6 does not belong"),
        ("train/neg/50_5.txt", "rating 5 does not belong"),
        ("train/neg/50_0.txt", "a review is named <number>_<rating>.txt"),
        ("train/neg/50_11.txt", "a review is named"),
        ("train/neg/50.txt", "a review is named"),
        ("train/neg/a_1.txt", "a review is named"),
        ("train/neg/-1_1.txt", "a review is named"),
        ("train/neg/1_1 (copy).txt", "a review is named"),
    ],
)
def test_odd_files_are_refused_by_name(place, name, message):
    (place / name).write_text("text")
    with pytest.raises(ValueError, match=re.escape(f"{place / name}: {message}")):
        reviews.read(place)


@pytest.mark.parametrize("rating, kind", [(1, "neg"), (4, "neg"), (7, "pos"), (10, "pos")])
def test_the_outermost_ratings_belong(place, rating, kind):
    (place / "train" / kind / f"50_{rating}.txt").write_text("text")
    assert any(r.number == 50 and r.rating == rating for r in reviews.read(place))


@pytest.mark.parametrize("kept", [True, False])
def test_an_empty_or_missing_folder_is_refused(place, kept):
    for file in (place / "test/pos").iterdir():
        file.unlink()
    if not kept:
        (place / "test/pos").rmdir()
    with pytest.raises(ValueError, match=r"test/pos holds no reviews; python -m labkit data"):
        reviews.read(place)


def test_a_corpus_is_fetched_or_made_where_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setattr(datasets, "imdb", lambda: tmp_path / "fetched")
    monkeypatch.setattr(generated_reviews, "write_corpus", lambda folder: folder)
    assert reviews.folder("imdb") == tmp_path / "fetched"
    assert reviews.folder("generated") == tmp_path / "generated_reviews"


def test_an_unknown_corpus_is_refused():
    with pytest.raises(ValueError, match="corpus must be one of imdb, generated; got 'books'"):
        reviews.folder("books")


# numbering


def test_a_corpus_holds_what_the_files_say(place):
    corpus = reviews.load("generated", 50)
    found = reviews.read(place)
    assert len(corpus) == 40
    for name in ("label", "rating", "number"):
        assert getattr(corpus, name).tolist() == [getattr(r, name) for r in found]
    assert corpus.is_test.tolist() == [r.part == "test" for r in found]
    assert corpus.length.tolist() == [len(vocabulary.tokenize(r.text)) for r in found]
    assert corpus.review(23) == ["a", "neg", "film", "so", "so", "so", "of", "train"]
    assert corpus.digest == reviews.texts_digest(found)


def test_a_review_without_a_word_is_one_unknown_word(place):
    (place / "train/neg/0_2.txt").write_text("<br /> ... !")
    corpus = reviews.load("generated", 50)
    assert corpus.length.min() == 1
    assert corpus.review(20) == [vocabulary.UNKNOWN]


def test_the_second_load_reads_no_text(place, monkeypatch):
    first = reviews.load("generated", 50)
    monkeypatch.setattr(reviews, "read", lambda path: pytest.fail("read again"))
    second = reviews.load("generated", 50)
    assert (second.words, second.digest) == (first.words, first.digest)
    for name in ("tokens", "offsets", "label", "rating", "number", "is_test"):
        assert torch.equal(getattr(second, name), getattr(first, name)), name
    assert second.tokens.dtype == torch.int32


def test_another_vocabulary_size_is_another_corpus(place):
    small, large = (reviews.load("generated", size) for size in (5, 50))
    assert len(small.words) == 5 < len(large.words)
    assert small.digest == large.digest
    assert reviews.load("generated", 5).words == small.words
    assert (small.tokens == UNKNOWN).sum() > (large.tokens == UNKNOWN).sum()


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_corpus_is_made_again(place, damage):
    first = reviews.load("generated", 50)
    (kept,) = (environment.CACHE / "corpora").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-100] if damage is None else damage)
    assert torch.equal(reviews.load("generated", 50).tokens, first.tokens)
    assert kept.read_bytes() == whole


def test_the_digest_changes_with_one_byte_and_with_a_rating(place):
    before = reviews.texts_digest(reviews.read(place))
    assert reviews.texts_digest(reviews.read(place)) == before
    file = place / "test/pos/3_9.txt"
    file.write_text(file.read_text() + ".")
    changed = reviews.texts_digest(reviews.read(place))
    file.write_text(file.read_text()[:-1])
    assert reviews.texts_digest(reviews.read(place)) == before
    file.rename(file.with_name("3_8.txt"))
    rated = reviews.texts_digest(reviews.read(place))
    assert len({before, changed, rated}) == 3
