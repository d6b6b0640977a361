"""The made-up reviews: their layout, what makes them hard, and that a seed gives them again."""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from labkit.film import generated as generated_reviews
from labkit.film.generated import ADJECTIVES, NOUNS, make_corpus, words_of, write_corpus

SMALL = {"num_train": 20, "num_test": 10, "seed": 3}
SMALL_SHA256 = "8277ca7d8082705ac847f6c85f27d276c89a1dddcc4de82b3c59e06ed2877632"
OPINION_WORDS = {
    word for table in (ADJECTIVES, NOUNS) for side in table for row in side for word in row
}
PATH = re.compile(r"(train|test)/(neg|pos)/(\d+)_(10|[1-9])\.txt")


@pytest.fixture(scope="module")
def corpus():
    """(part, label, rating, text) of the default corpus."""
    rows = []
    for path, text in make_corpus(2000, 1000, 0).items():
        part, kind, _, rating = PATH.fullmatch(path).groups()
        rows.append((part, int(kind == "pos"), int(rating), text))
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder but the marker: path -> content, sorted."""
    files = sorted(path for path in folder.rglob("*.txt"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_layout_counts_and_numbers(tmp_path):
    folder = tmp_path / "new" / "corpus"
    assert write_corpus(folder, **SMALL) == folder
    names = [PATH.fullmatch(name).groups() for name in contents(folder)]
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 30 + 1  # and the marker
    for part, count in (("train", 10), ("test", 5)):
        for kind in ("neg", "pos"):
            numbers = sorted(int(n) for p, k, n, _ in names if (p, k) == (part, kind))
            assert numbers == list(range(count))
    assert list(tmp_path.glob("**/.*")) == []  # nothing temporary is left


def test_ratings_fit_the_label_and_all_occur(corpus):
    for part, count in (("train", 2000), ("test", 1000)):
        ratings = Counter((label, rating) for p, label, rating, _ in corpus if p == part)
        assert sum(ratings.values()) == count
        assert sum(n for (label, _), n in ratings.items() if label) == count // 2
        for label, allowed in ((0, {1, 2, 3, 4}), (1, {7, 8, 9, 10})):
            assert {rating for own, rating in ratings if own == label} == allowed
        assert min(ratings.values()) > count / 8 * 0.7


def test_a_seed_gives_the_same_bytes_everywhere(tmp_path):
    digest = hashlib.sha256()
    for name, content in contents(write_corpus(tmp_path / "a", **SMALL)).items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    assert digest.hexdigest() == SMALL_SHA256
    other = contents(write_corpus(tmp_path / "b", **{**SMALL, "seed": 4}))
    assert not set(other.values()) & set(contents(tmp_path / "a").values())


def test_no_two_reviews_have_the_same_words(corpus):
    assert len({words_of(text) for *_, text in corpus}) == len(corpus)


def test_a_review_that_comes_again_is_drawn_anew(monkeypatch):
    """Words count, not capitals or punctuation; the copies here differ in those only."""
    drawn = []

    def repeating(rng, label):
        drawn.append(label)
        n = len(drawn) // 3
        return ("A film, number {}.", "A FILM<br />number {}!", "a film number {}")[
            len(drawn) % 3
        ].format(n), 8 if label else 2

    monkeypatch.setattr(generated_reviews, "make_review", repeating)
    texts = list(make_corpus(20, 20, 0).values())
    assert len({words_of(text) for text in texts}) == len(texts) == 40
    assert len(drawn) > 100


def test_lengths_vary(corpus):
    lengths = sorted(len(words_of(text)) for *_, text in corpus)
    assert lengths[0] >= 10
    assert lengths[-1] <= 160
    assert 40 <= sum(lengths) / len(lengths) <= 60
    assert lengths[len(lengths) // 10] < 30
    assert lengths[-len(lengths) // 10] > 80


@pytest.mark.parametrize("label", [0, 1])
def test_what_makes_reviews_hard_occurs_with_either_label(corpus, label):
    ours, theirs = (
        rf"\b(?:{'|'.join(word for row in (*ADJECTIVES[side], *NOUNS[side]) for word in row)})\b"
        for side in (label, 1 - label)
    )
    clause = r"[^.!]*"
    patterns = {
        "negation": rf"\b(?:not|isn't|never|hardly ever|nothing) (?:a )?{theirs}",
        "contrast": rf"{theirs}{clause}\bbut\b{clause}{ours}|although{clause}{theirs}|despite",
        "reported": rf"(?:expected|called|told|call){clause}{theirs}",
        "opposite word": theirs,
        "line break": "<br /><br />",
    }
    texts = [text for _, own, _, text in corpus if own == label]
    found = Counter({"verdict far from the end": 0, "capitals": 0})
    for text in texts:
        found.update(name for name, it in patterns.items() if re.search(it, text.lower()))
        words = words_of(text)
        last = max(n for n, word in enumerate(words) if word in OPINION_WORDS)
        found["verdict far from the end"] += len(words) - last > 25
        found["capitals"] += bool(re.search(r"[A-Z]{2,} [A-Z]{2,}", text))
    share = {name: count / len(texts) for name, count in found.items()}
    assert 0.12 < share["negation"] < 0.4
    assert 0.15 < share["contrast"] < 0.4
    assert 0.08 < share["reported"] < 0.3
    assert 0.3 < share["opposite word"] < 0.8
    assert 0.2 < share["verdict far from the end"] < 0.6
    assert 0.3 < share["line break"] < 0.8
    assert 0.05 < share["capitals"] < 0.3


def test_templates_leave_clean_english(corpus):
    for *_, text in corpus:
        assert not re.search(r"[{}]|  |\ba [aeiou]|\bA [AEIOU]|\.\.\.\.", text), text
        assert text[0] == '"' or text[0].isupper()


def test_the_vocabulary_has_a_long_tail(corpus):
    counts = Counter(word for *_, text in corpus for word in words_of(text))
    assert len(counts) > 2000
    assert sum(count == 1 for count in counts.values()) > 0.4 * len(counts)
    assert sum(count >= 20 for count in counts.values()) > 300
    known = {word for part, *_, text in corpus if part == "train" for word in words_of(text)}
    tested = [word for part, *_, text in corpus if part == "test" for word in words_of(text)]
    assert 0.005 < sum(word not in known for word in tested) / len(tested) < 0.05


def accuracy(corpus, target, longest: int) -> float:
    """Test accuracy of a logistic regression on the counts of up to `longest` words in a row."""
    vectorizer = CountVectorizer(tokenizer=words_of, token_pattern=None, ngram_range=(1, longest))
    parts = {
        part: [(text, target(label, rating)) for p, label, rating, text in corpus if p == part]
        for part in ("train", "test")
    }
    X = vectorizer.fit_transform([text for text, _ in parts["train"]])
    model = LogisticRegression(C=0.1, max_iter=1000).fit(X, [y for _, y in parts["train"]])
    test = vectorizer.transform([text for text, _ in parts["test"]])
    return model.score(test, [y for _, y in parts["test"]])


def test_words_tell_something_and_their_order_tells_more(corpus):
    bag = accuracy(corpus, lambda label, rating: label, longest=1)
    assert 0.78 < bag < 0.85
    assert accuracy(corpus, lambda label, rating: label, longest=3) > bag + 0.03


def test_the_rating_shows_in_the_words(corpus):
    strength = accuracy(corpus, lambda label, rating: abs(2 * rating - 11), longest=1)
    assert 0.5 < strength < 0.95  # chance is 0.25

    for degree in (1, 2, 3, 4):
        texts = [
            (own, text) for _, own, rating, text in corpus if abs(2 * rating - 11) // 2 == degree
        ]
        strong = sum(
            bool(set(ADJECTIVES[own][1] + NOUNS[own][1]) & set(words_of(text)))
            for own, text in texts
        )
        assert (strong / len(texts) > 0.9) if degree > 2 else (strong / len(texts) < 0.2)


def test_a_finished_corpus_is_not_made_again(tmp_path, monkeypatch):
    folder = write_corpus(tmp_path / "corpus", **SMALL)

    def refuse(*arguments):
        raise AssertionError("made again")

    monkeypatch.setattr(generated_reviews, "make_corpus", refuse)
    assert write_corpus(folder, **SMALL) == folder
    for changed in ({"seed": 4}, {"num_train": 22}, {"num_test": 12}):
        with pytest.raises(AssertionError, match="made again"):
            write_corpus(folder, **{**SMALL, **changed})
    monkeypatch.setattr(generated_reviews.digests, "module_digest", lambda names: "other code")
    with pytest.raises(AssertionError, match="made again"):
        write_corpus(folder, **SMALL)


def test_other_settings_replace_the_corpus_whole(tmp_path):
    folder = write_corpus(tmp_path / "corpus", **SMALL)
    smaller = {**SMALL, "num_train": 4}
    write_corpus(folder, **smaller)
    assert contents(folder) == contents(write_corpus(tmp_path / "fresh", **smaller))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "fresh"]


@pytest.mark.parametrize("before", [False, True])
def test_a_run_that_is_cut_off_leaves_what_was_there(tmp_path, monkeypatch, before):
    folder = tmp_path / "corpus"
    old = contents(write_corpus(folder, **{**SMALL, "seed": 9})) if before else None
    write_bytes, written = Path.write_bytes, []

    def failing(path, content):
        written.append(path)
        if len(written) == 7:
            raise OSError("no space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(OSError, match="no space left"):
        write_corpus(folder, **SMALL)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == (["corpus"] if before else [])
    if before:
        assert contents(folder) == old
    write_corpus(folder, **SMALL)
    assert len(contents(folder)) == 30


@pytest.mark.parametrize("before", [False, True])
def test_two_runs_at_a_time_agree(tmp_path, monkeypatch, before):
    folder = tmp_path / "corpus"
    if before:
        write_corpus(folder, **{**SMALL, "seed": 9})
    make, quicker = generated_reviews.make_corpus, []

    def overtaken(*arguments):
        monkeypatch.undo()
        write_corpus(folder, **SMALL)  # another process is quicker
        quicker.append((folder / "train").stat().st_ino)
        return make(*arguments)

    monkeypatch.setattr(generated_reviews, "make_corpus", overtaken)
    write_corpus(folder, **SMALL)
    assert quicker == [(folder / "train").stat().st_ino]  # readers keep what they have opened
    assert contents(folder) == contents(write_corpus(tmp_path / "alone", **SMALL))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "corpus"]


@pytest.mark.parametrize("same", [True, False])
def test_a_run_overtaken_at_the_last_moment(tmp_path, monkeypatch, same):
    """The same corpus is taken over; another one in its place is an error, and stays whole."""
    folder = tmp_path / "corpus"
    other = SMALL if same else {**SMALL, "seed": 9}
    rename = os.rename

    def overtaken(source, target):
        if Path(target) == folder:
            monkeypatch.undo()
            write_corpus(folder, **other)
        return rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    if same:
        write_corpus(folder, **SMALL)
    else:
        with pytest.raises(OSError, match="not empty"):
            write_corpus(folder, **SMALL)
    assert contents(folder) == contents(write_corpus(tmp_path / "alone", **other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "corpus"]


def test_an_empty_folder_is_filled_and_anything_else_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(contents(write_corpus(tmp_path / "empty", **SMALL))) == 30
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("taken", "file"):
        with pytest.raises(ValueError, match=f"{name} holds something else than a generated"):
            write_corpus(tmp_path / name, **SMALL)
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["num_train", "num_test"])
@pytest.mark.parametrize("value", [-2, 0, 1, 7])
def test_bad_counts_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be an even number from 2 on.*got {value}"):
        write_corpus(tmp_path / "corpus", **{**SMALL, name: value})
    assert list(tmp_path.iterdir()) == []


def test_other_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        write_corpus(tmp_path / "corpus", seed=-1)
    for name, value in (("num_train", 10.0), ("num_test", True), ("seed", "0")):
        with pytest.raises(TypeError, match=f"{name} must be an int, got {value!r}"):
            write_corpus(tmp_path / "corpus", **{**SMALL, name: value})
