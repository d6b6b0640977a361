"""The digit-sum data, its protocols, and what a training leaves behind."""

import hashlib

import numpy as np
import pytest
import torch

from labkit.lab import environment
from labkit.memory import data as digit_sum
from labkit.memory.data import PUBLISHED_SHA256, SPLITS
from labkit.memory.model import SequenceClassifier

SHORT = {"steps": 60, "evaluate_every": 20}


def test_generated_files_are_the_textbooks():
    files = digit_sum.published_files()
    assert len(files) == 21
    for length, prefixes in PUBLISHED_SHA256.items():
        for split, prefix in zip(SPLITS, prefixes, strict=True):
            content = files[f"{length:02d}/{split}.txt"]
            assert hashlib.sha256(content).hexdigest()[:16] == prefix
            assert (
                environment.DATA / "digit_sum" / f"{length:02d}/{split}.txt"
            ).read_bytes() == content


def test_label_is_the_sum_of_the_first_two_digits_only():
    for length in (5, 35):
        for split, copies in SPLITS.items():
            X, y = digit_sum.load_published(length)[split]
            assert X.shape == (100 * copies, length)
            assert torch.equal(y, X[:, 0] + X[:, 1])
            assert not torch.equal(y, X.sum(1))  # the distractor does not count


def test_a_changed_data_file_is_refused(tmp_path):
    for name, content in digit_sum.published_files().items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    digit_sum.load_published(10, tmp_path)
    path = tmp_path / "10" / "dev.txt"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ValueError, match=r"10/dev\.txt: SHA-256 begins .* begins d8c410b4f8e3ea0b"):
        digit_sum.load_published(10, tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no lines"),
        ("1 2 3", "file.txt, line 1: expected digits, a tab and their sum"),
        ("1 2 3\t3\n1 2\t3\n", "line 2: expected 3 digits, found 2"),
        ("1 x 3\t4\n", "every entry before the tab must be one digit"),
        ("1 12 3\t13\n", "every entry before the tab must be one digit"),
        ("1 2 3\t6\n", "the sum of the first two digits, 3"),
        ("1 2 3\tthree\n", "the sum of the first two digits, 3"),
        ("1  3\t4\n", "must be one digit"),
    ],
)
def test_malformed_lines_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        digit_sum.parse(text, source="file.txt", length=3)


@pytest.mark.parametrize("length", [-1, 0, 1, 2])
def test_lengths_under_three_are_refused(length):
    with pytest.raises(ValueError, match=f"at least 3 .*got {length}"):
        digit_sum.all_pairs(length)
    with pytest.raises(ValueError, match=f"at least 3 .*got {length}"):
        digit_sum.sound_data(length, seed=0)


def test_other_bad_settings_are_refused():
    with pytest.raises(TypeError, match="length must be an int"):
        digit_sum.all_pairs(10.0)
    with pytest.raises(ValueError, match=r"one of 5, 10, .*; got 12"):
        digit_sum.load_published(12)
    with pytest.raises(ValueError, match=r"position must be in 2\.\.9, got 1"):
        digit_sum.all_pairs(10, position=1)
    with pytest.raises(ValueError, match=r"digit must be in 0\.\.9, got 10"):
        digit_sum.all_pairs(10, position=2, digit=10)
    with pytest.raises(ValueError, match="one of published, shuffled, sound; got 'quick'"):
        digit_sum.training_task("srn", length=10, seeds=[0], protocol="quick")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        digit_sum.training_task("srn", length=10, seeds=[0], steps=0)
    with pytest.raises(ValueError, match="clip must be one of none, per_tensor, global"):
        digit_sum.explode([0], clip="both")


def test_sound_data_keeps_pairs_apart():
    for seed in range(5):
        data = digit_sum.sound_data(10, seed)
        pairs = {
            name: {tuple(row) for row in split.X[:, :2].tolist()} for name, split in data.items()
        }
        assert pairs["train"] == pairs["dev"] == pairs["seen_pairs"]
        assert not pairs["train"] & pairs["unseen_pairs"]
        assert len(pairs["train"] | pairs["unseen_pairs"]) == 100
        assert set(data["train"].y.tolist()) == set(range(19))  # no class is unknown
        assert {name: len(split.y) for name, split in data.items()} == {
            "train": 320,
            "dev": 400,
            "seen_pairs": 4000,
            "unseen_pairs": 4000,
        }
    assert not torch.equal(
        digit_sum.sound_data(10, 0)["dev"].X, digit_sum.sound_data(10, 1)["dev"].X
    )


@pytest.mark.parametrize("protocol", digit_sum.PROTOCOLS)
def test_scores_belong_to_the_stored_parameters(protocol):
    """The dev score and the test score are those of the checkpoint that is handed back."""
    task = digit_sum.training_task(
        "lstm", length=5, seeds=[0, 3], protocol=protocol, init="xavier", **SHORT
    )
    arrays = digit_sum.train_task(task)
    ensemble = digit_sum.load_ensemble(task, arrays)
    if protocol != "sound":
        data = digit_sum.load_published(5)
        tests = {"dev_accuracy": data["dev"], "test_accuracy": data["test"]}
        for name, split in tests.items():
            np.testing.assert_allclose(ensemble.evaluate(*split)[1], arrays[name], atol=1e-6)

        # the readable model, with the parameters of the second replica, answers the same
        model = SequenceClassifier(ensemble.spec)
        model.load_state_dict(ensemble.parameters_of(1))
        accuracy = (model(data["test"].X).argmax(1) == data["test"].y).float().mean().item()
        assert accuracy == pytest.approx(arrays["test_accuracy"][1], abs=1e-6)
    else:
        data = digit_sum.sound_data(5, seed=3)
        for kind in ("seen_pairs", "unseen_pairs"):
            accuracy = ensemble.evaluate(*data[kind])[1][1]
            np.testing.assert_allclose(accuracy, arrays[f"test_accuracy_{kind}"][1], atol=1e-6)
    assert arrays["dev_accuracy"] == pytest.approx(arrays["dev_curve"].max(axis=1))
    first_best = arrays["step"][arrays["dev_curve"].argmax(axis=1)]
    np.testing.assert_array_equal(arrays["best_step"], first_best)


def test_the_order_of_the_data_is_what_tells_published_from_shuffled():
    """The first loss and the data are the same; what training makes of them is not."""
    tasks = [
        digit_sum.training_task(
            "srn",
            length=5,
            seeds=[0],
            protocol=protocol,
            init="xavier",
            steps=38,
            evaluate_every=38,
        )
        for protocol in ("published", "shuffled")
    ]
    published, shuffled = (digit_sum.train_task(task) for task in tasks)
    for name in ("parameters.head.bias", "train_loss"):
        assert not np.array_equal(published[name], shuffled[name])


def test_two_trainings_are_bit_equal():
    task = digit_sum.training_task("srn", length=5, seeds=[0, 1], protocol="sound", **SHORT)
    first, second = digit_sum.train_task(task), digit_sum.train_task(task)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_clipping_bounds_the_step_and_no_clipping_explodes():
    runs = {
        clip: digit_sum.explode([0, 1, 2], clip=clip) for clip in ("none", "per_tensor", "global")
    }
    assert runs["none"]["gradient/U"].amax() > 1000
    assert runs["none"]["loss"].amax() > 10 * runs["global"]["loss"].amax()
    # a step of SGD is at most lr times the norm: the weights cannot jump further than that
    for clip in ("per_tensor", "global"):
        jumps = runs[clip]["weight/U"].diff(dim=1).abs()
        assert jumps.max() <= 0.2 * 5.0 + 1e-4
    assert runs["none"]["weight/U"].diff(dim=1).abs().max() > 10
    assert runs["none"]["saturated"].min() > 0.9 > runs["global"]["saturated"].max()


def test_published_rows_carry_every_figure_of_the_sources():
    rows = digit_sum.published_rows()
    assert {setting: len(found) for setting, found in rows.items()} == {
        "zero/trained": 6,
        "zero/frozen": 2,
    }
    for found in rows.values():
        for _, _, _, lengths, values in found:
            assert len(lengths) == len(values) == 6
