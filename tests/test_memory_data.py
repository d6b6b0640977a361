"""The digit-sum data: the textbook's files byte for byte, and fresh data that keep pairs apart."""

import hashlib
import shutil

import pytest
import torch

from labkit.lab import machine
from labkit.memory import data as digit_sum

# of the textbook's 21 files (LF line ends) one after the other
PUBLISHED_SHA256 = "f6d7843a63f4a887a4b460bba4b17db7444ae46ec8dfdcdc0f588970f0f1be47"


def test_generated_files_are_the_textbooks():
    """The digests that the data's description lists were taken from the textbook's own files."""
    files = digit_sum.published_files()
    description = (machine.DATA / "README.md").read_text("utf-8")
    for name, content in files.items():
        assert (machine.DATA / name).read_bytes() == content
        assert f"{hashlib.sha256(content).hexdigest()}  {name}\n" in description
    together = b"".join(files[name] for name in sorted(files))
    assert hashlib.sha256(together).hexdigest() == PUBLISHED_SHA256


@pytest.mark.parametrize("length", [5, 35])
def test_label_is_the_sum_of_the_first_two_digits_only(length):
    for split, copies in digit_sum.SPLITS.items():
        X, y = digit_sum.load_published(length)[split]
        assert X.shape == (100 * copies, length)
        assert torch.equal(y, X[:, 0] + X[:, 1])
        assert not torch.equal(y, X.sum(1))  # the disturbing digit does not count


def test_a_changed_data_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(machine.DATA / "digit_sum", tmp_path / "digit_sum")
    monkeypatch.setattr(machine, "DATA", tmp_path)
    path = tmp_path / "digit_sum" / "10" / "dev.txt"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ValueError, match=r"data/digit_sum/10/dev\.txt is not the textbook's"):
        digit_sum.load_published(10)


def test_sound_data_keeps_pairs_apart():
    for seed in range(5):
        data = digit_sum.sound_data(10, seed)
        pairs = {name: {*map(tuple, split.X[:, :2].tolist())} for name, split in data.items()}
        assert pairs["train"] == pairs["dev"] == pairs["seen_pairs"]
        assert not pairs["train"] & pairs["unseen_pairs"]
        assert len(pairs["train"] | pairs["unseen_pairs"]) == 100
        assert set(data["train"].y.tolist()) == set(range(19))  # no class is unknown
        assert [len(split.y) for split in data.values()] == [320, 400, 4000, 4000]
    other = digit_sum.sound_data(10, 0)["dev"].X
    assert not torch.equal(other, digit_sum.sound_data(10, 1)["dev"].X)


def test_a_digit_is_put_behind_the_addends_of_a_copy():
    X = digit_sum.all_pairs(10).X
    assert digit_sum.with_digit(X, 4, 1)[67].tolist() == [6, 7, 0, 0, 1, 0, 0, 0, 0, 0]
    assert X[67].tolist() == [6, 7] + [0] * 8


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: digit_sum.all_pairs(2), "at least 3 .*got 2"),
        (lambda: digit_sum.load_published(12), r"one of 5, 10, .*; got 12"),
        (lambda: digit_sum.with_digit(torch.zeros(1, 10), 1, 5), r"2\.\.9, .*digit 5 at 1"),
        (lambda: digit_sum.with_digit(torch.zeros(1, 10), 2, -1), r"0\.\.9 .*digit -1 at 2"),
    ],
)
def test_what_no_sequence_can_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "X, y, message",
    [
        (torch.zeros(4, 5), None, r"int64 numbers 0\.\.9, got torch.float32"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), None, r"X has shape .*read X \(B, T\) or \(2,"),
        (torch.full((4, 5), -1), None, r"numbers 0\.\.9, got torch.int64, -1\.\.-1"),
        (torch.zeros(4, 5, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), r"y has .*\(3,"),
        (torch.zeros(4, 5, dtype=torch.int64), torch.full((4,), 19), r"0\.\.18, got .*19\.\.19"),
    ],
)
def test_bad_sequences_and_classes_are_refused(X, y, message):
    with pytest.raises(ValueError, match=message):
        digit_sum.check(X, y, replicas=2)
