"""Tokens, vocabularies and pretrained vectors; torchtext leaves nothing behind."""

from __future__ import annotations

import ast
import gzip
import ssl

import numpy as np
import pytest

from labkit.film import vocabulary
from labkit.film.vocabulary import PAD, UNKNOWN
from labkit.lab import digests

GLOVE = """\
the 0.5 -1.0 2.0
film 1.0 1.5 0.25
n't -3.0 0.0 1e-2
good 4.0 5.0 6.0
"""


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("It's <br />GOOD, isn't it?", "it 's good is n't it"),
        ("I don't, can't, won't, shouldn't!", "i do n't ca n't wo n't should n't"),
        ("ISN\u2019T it? It\u2019s", "is n't it it 's"),
        ("we'll they've we're I'd I'm John's", "we 'll they 've we 're i 'd i 'm john 's"),
        ("the actors' 'quoted' words", "the actors quoted words"),
        ("rock'n'roll o'clock", "rock n roll o clock"),
        ("one<br /><br />two<i>three</i>", "one two three"),
        ("a < b and <b>bold</b>", "a b and bold"),
        ("well-made, 10/10 (3.5 stars) in 1999...", "well made 10 10 3 5 stars in 1999"),
        ("3D 2nd B-movie", "3d 2nd b movie"),
        ("Amélie, naïve CAFÉ, Ünder 日本", "amélie naïve café ünder 日本"),
        ("snake_case __init__", "snake case init"),
        ("so gooood \t\n tab", "so gooood tab"),
        ("", ""),
        ("?! ... -- <br />", ""),
        ("n't", "n't"),
        ("want ant's paint", "want ant 's paint"),
    ],
)
def test_tokens(text, tokens):
    assert vocabulary.tokenize(text) == tokens.split()


def test_the_commonest_words_come_first_and_ties_in_alphabetical_order():
    texts = [["b", "a", "c", "c"], ["d", "c", "a", "b"]]
    assert vocabulary.build(texts, 10) == [UNKNOWN, PAD, "c", "a", "b", "d"]
    assert vocabulary.build(texts[::-1], 10) == vocabulary.build(texts, 10)
    assert vocabulary.build(texts, 5) == [UNKNOWN, PAD, "c", "a", "b"]
    assert vocabulary.build(iter(texts), 3) == [UNKNOWN, PAD, "c"]


def test_the_special_words_have_their_numbers():
    words = vocabulary.build([["a", PAD, UNKNOWN, UNKNOWN]], 10)
    assert words[vocabulary.UNKNOWN_ID] == UNKNOWN
    assert words[vocabulary.PAD_ID] == PAD
    assert words == [UNKNOWN, PAD, "a"]


@pytest.mark.parametrize("size", [-1, 0, 2])
def test_a_vocabulary_of_special_words_only_is_refused(size):
    with pytest.raises(ValueError, match=f"at least one other, got {size}"):
        vocabulary.build([["a"]], size)


def test_unknown_words_get_the_unknown_number():
    numbers = {UNKNOWN: 0, PAD: 1, "a": 2, "b": 3}
    assert vocabulary.numericalize(["b", "z", "a", "A"], numbers) == [3, 0, 2, 0]
    assert vocabulary.numericalize([], numbers) == []


# vectors


@pytest.fixture(params=["txt", "gz"])
def glove(request, tmp_path):
    if request.param == "txt":
        path = tmp_path / "glove.txt"
        path.write_text(GLOVE)
    else:
        path = tmp_path / "glove.txt.gz"
        path.write_bytes(gzip.compress(GLOVE.encode()))
    return path


def test_words_get_their_vectors_and_others_zero(glove):
    words = [UNKNOWN, PAD, "good", "the", "cinema", "n't"]
    table, known = vocabulary.load_vectors(glove, words, 100)
    assert table.dtype == np.float32
    expected = [[0, 0, 0], [0, 0, 0], [4, 5, 6], [0.5, -1, 2], [0, 0, 0], [-3, 0, 0.01]]
    np.testing.assert_array_equal(table, np.float32(expected))
    assert known.tolist() == [False, False, True, True, False, True]


def test_lines_beyond_the_limit_are_not_read(glove):
    table, known = vocabulary.load_vectors(glove, ["the", "film", "n't", "good"], 2)
    assert known.tolist() == [True, True, False, False]
    assert not table[2:].any()
    with pytest.raises(ValueError, match="limit must be at least 1 line, got 0"):
        vocabulary.load_vectors(glove, ["the"], 0)


def test_loading_leaves_tls_checked_and_no_file_behind(glove):
    checked = ssl._create_default_https_context
    vocabulary.load_vectors(glove, ["the"], 100)
    assert ssl._create_default_https_context is checked
    assert ssl._create_default_https_context is not ssl._create_unverified_context
    assert list(glove.parent.iterdir()) == [glove]
    # so that another file under the same name is read anew
    (other := glove.with_name("other.txt")).write_text("the 7 8 9\n")
    other.replace(glove.with_suffix("")) if glove.suffix == ".gz" else other.replace(glove)
    path = glove.with_suffix("") if glove.suffix == ".gz" else glove
    table, _ = vocabulary.load_vectors(path, ["the"], 100)
    assert table.tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    "name, content",
    [
        ("ragged.txt", b"the 1 2 3\nfilm 1 2\n"),
        ("text.txt", b"the one two three\n"),
        ("empty.txt", b""),
        ("words.txt", b"the\nfilm\n"),
        ("broken.txt.gz", b"no gzip at all"),
        ("cut.txt.gz", gzip.compress(GLOVE.encode() * 50, mtime=0)[:-30]),
    ],
)
def test_a_file_that_holds_no_vectors_is_refused(tmp_path, name, content):
    checked = ssl._create_default_https_context
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as word vectors"):
        vocabulary.load_vectors(path, ["the"], 1000)
    assert ssl._create_default_https_context is checked
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(
        ValueError, match=r"no file of word vectors .*x\.txt; python -m labkit data"
    ):
        vocabulary.load_vectors(tmp_path / "x.txt", ["the"], 10)


def test_only_one_module_imports_torchtext():
    users = set()
    for path in digests.PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "torchtext" for name in names):
                users.add(path.stem)
    assert users == {"vocabulary"}
