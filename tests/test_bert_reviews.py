"""Film reviews as word pieces: the same reviews as elsewhere, cut, padded, kept."""

from __future__ import annotations

import json

import pytest
import torch

from labkit.bert.pretrained import Pretrained
from labkit.bert import encoding as bert_reviews
from labkit.bert import pretrained
from labkit.film import corpus as reviews
from labkit.film import tasks as review_tasks
from labkit.lab import environment

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "very", "good", "bad", "film", "##s",
         "long", ".", "b", "r", "<", ">", "/")  # fmt: skip
CLS, SEP = 2, 3


@pytest.fixture
def found(tmp_path, monkeypatch):
    """A tokenizer, and 60 + 60 reviews of 3 to 12 pieces."""
    for part in ("train", "test"):
        for kind, word, rating in (("neg", "bad", 2), ("pos", "good", 9)):
            folder = tmp_path / "corpus" / part / kind
            folder.mkdir(parents=True)
            for number in range(30):
                text = f"A {'very ' * (number % 10)}{word}<br />films"
                (folder / f"{number}_{rating}.txt").write_text(text)
    place = tmp_path / "model"
    place.mkdir()
    (place / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    config = {"model_type": "bert", "vocab_size": len(WORDS), "max_position_embeddings": 40}
    (place / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(reviews, "folder", lambda name: tmp_path / "corpus")
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")
    return Pretrained("toy", "", place, "0" * 64, "made here")


def pieces(encoded, index: int) -> str:
    return " ".join(WORDS[i] for i in encoded.review(index))


def test_reviews_stand_between_cls_and_sep(found):
    encoded = bert_reviews.encode("generated", found, 40)
    assert len(encoded) == 120
    assert pieces(encoded, 0) == "[CLS] a bad film ##s [SEP]"
    assert pieces(encoded, 2) == "[CLS] a very very bad film ##s [SEP]"
    assert encoded.ids.dtype == torch.int32
    assert torch.equal(encoded.length, encoded.uncut)
    assert encoded.length[:10].tolist() == [*range(6, 16)]
    for n in range(120):
        row = encoded.review(n)
        assert (int(row[0]), int(row[-1])) == (CLS, SEP)
        assert not torch.isin(row[1:-1], torch.tensor([0, 1, CLS, SEP])).any()


@pytest.mark.parametrize(
    "part, expected",
    [
        ("head", "[CLS] a very very very very very very very [SEP]"),
        ("tail", "[CLS] very very very very very bad film ##s [SEP]"),
        ("head_tail", "[CLS] a very very very very bad film ##s [SEP]"),
    ],
)
def test_of_a_long_review_a_part_is_kept(found, part, expected):
    encoded = bert_reviews.encode("generated", found, 10, part)
    assert pieces(encoded, 9) == expected
    assert pieces(encoded, 1) == "[CLS] a very bad film ##s [SEP]"  # short enough
    assert int(encoded.length.max()) == 10
    assert encoded.uncut[:10].tolist() == [*range(6, 16)]


def test_head_and_tail_share_the_room():
    """A quarter of 8 pieces comes from the head: which, shows where the words differ."""
    flat = torch.arange(100, 120, dtype=torch.int32)
    ids, length = bert_reviews._cut(flat, torch.tensor([12, 8]), 10, "head_tail", CLS, SEP)
    assert length.tolist() == [10, 10]
    assert ids[:10].tolist() == [CLS, 100, 101, *range(106, 112), SEP]
    assert ids[10:].tolist() == [CLS, *range(112, 120), SEP]


def test_an_empty_review_is_cls_and_sep():
    flat = torch.arange(100, 103, dtype=torch.int32)
    for part in bert_reviews.PARTS:
        ids, _ = bert_reviews._cut(flat, torch.tensor([0, 3, 0]), 9, part, CLS, SEP)
        assert ids.tolist() == [CLS, SEP, CLS, 100, 101, 102, SEP, CLS, SEP]


def test_the_reviews_are_those_of_the_recurrent_networks(found):
    encoded, corpus = bert_reviews.encode("generated", found, 10), reviews.load("generated", 50)
    assert encoded.digest == corpus.digest
    for name in ("label", "rating", "is_test"):
        assert torch.equal(getattr(encoded, name), getattr(corpus, name))
    ours, theirs = encoded.split(), corpus.split()
    for name in reviews.SPLITS:
        assert torch.equal(ours[name], theirs[name])
    assert torch.equal(review_tasks.held_out(encoded), review_tasks.held_out(corpus))
    for seed in (0, 1):
        drawn = [review_tasks.draw(c, c.split()["train"], 20, seed) for c in (encoded, corpus)]
        assert torch.equal(*drawn)


def test_padding_is_dynamic_or_of_a_fixed_length(found):
    encoded = bert_reviews.encode("generated", found, 12)
    index = torch.tensor([4, 0, 2])
    X, mask = bert_reviews.pad(encoded, index)
    wide, wide_mask = bert_reviews.pad(encoded, index, 12)
    assert X.shape == mask.shape == (3, 10)
    assert (X.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert wide.shape == (3, 12)
    assert torch.equal(wide[:, :10], X)
    assert torch.equal(wide_mask[:, :10], mask)
    assert mask.sum(1).tolist() == wide_mask.sum(1).tolist() == encoded.length[index].tolist()
    assert (wide[~wide_mask] == encoded.pad_id).all()
    for row, n in zip(range(3), index.tolist(), strict=True):
        assert torch.equal(X[row][mask[row]], encoded.review(n))
    with pytest.raises(ValueError, match="a review has 10 pieces, more than the length 9"):
        bert_reviews.pad(encoded, index, 9)


def test_a_corpus_is_tokenised_once_for_all_lengths(found, monkeypatch):
    first = bert_reviews.encode("generated", found, 10)
    (kept,) = (environment.CACHE / "corpora").iterdir()
    monkeypatch.setattr(bert_reviews, "_tokenise", lambda *a: pytest.fail("tokenised again"))
    again = bert_reviews.encode("generated", found, 10)
    assert torch.equal(first.ids, again.ids)
    bert_reviews.encode("generated", found, 8, "tail")
    assert bert_reviews.digests_of("generated", found) == (first.digest, first.pieces_digest)

    vocabulary = found.folder / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text().replace("very", "vary"))
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        bert_reviews.encode("generated", found, 10)
    vocabulary.write_text(vocabulary.read_text().replace("vary", "very"))
    kept.write_bytes(kept.read_bytes()[:100])  # damaged
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        bert_reviews.encode("generated", found, 10)


def test_where_the_tokenizer_lies_and_how_it_would_cut_do_not_count(found, tmp_path):
    """The name of what is kept, and of trainings on it, is the same on every machine."""
    first = bert_reviews.encode("generated", found, 10)
    elsewhere = tmp_path / "elsewhere"
    found.folder.rename(elsewhere)
    moved = Pretrained("toy", "", elsewhere, "0" * 64, "a folder")
    tokenizer = pretrained.tokenizer(moved)
    tokenizer.backend_tokenizer.enable_truncation(4)
    assert bert_reviews._tokenizer_digest(tokenizer) == first.pieces_digest
    assert bert_reviews.digests_of("generated", moved) == (first.digest, first.pieces_digest)


@pytest.mark.parametrize(
    "options, message",
    [
        ((10, "middle"), "part must be one of head, tail, head_tail; got 'middle'"),
        ((2, "head"), r"max_len must have room for \[CLS\], a piece and \[SEP\], got 2"),
    ],
)
def test_bad_settings_are_refused(found, options, message):
    with pytest.raises(ValueError, match=message):
        bert_reviews.encode("generated", found, *options)
