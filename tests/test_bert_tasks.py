"""Fine-tuning of BERT as tasks: what they say, which reviews they read, features and the launch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from labkit import bert_launch
from labkit.bert.model import POOLINGS, BertSpec
from labkit.bert.model_folder import MINILM, Pretrained
from labkit.bert import encoding as bert_reviews
from labkit.bert import model as bert_classifier
from labkit.bert import pretrained
from labkit.bert import tasks as bert_tasks
from labkit.bert import training as bert_training
from labkit.bert.training import BertTrainSpec
from labkit.film import corpus as reviews
from labkit.film import tasks as review_tasks
from labkit.lab import digests, environment, sweep

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "very", "good", "bad", "film")
TRAINING = {"epochs": 2, "batch_size": 16, "lr": 2e-3, "max_len": 12}
REVISION = "1" * 40


def make_corpus(folder: Path) -> None:
    """120 reviews of 5 to 7 pieces, of which 48 train, 12 are dev and 60 test."""
    for part in ("train", "test"):
        for kind, word, rating in (("neg", "bad", 2), ("pos", "good", 9)):
            (folder / part / kind).mkdir(parents=True)
            for number in range(30):
                text = f"a {'very ' * (number % 3)}{word} film"
                (folder / part / kind / f"{number}_{rating}.txt").write_text(text)


def make_model(folder: Path) -> None:
    """A BERT of 16 units that drops nothing, with its vocabulary."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.to_json_file(folder / "config.json")
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def found(tmp_path, monkeypatch) -> Pretrained:
    make_corpus(tmp_path / "corpus")
    make_model(tmp_path / "model")
    given = Pretrained("toy", REVISION, tmp_path / "model", "0" * 64, "made here")
    monkeypatch.setattr(reviews, "folder", lambda name: tmp_path / "corpus")
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")

    def find(model, revision="", *, quiet=False):
        assert (model, revision) == ("toy", REVISION)
        return given

    monkeypatch.setattr(pretrained, "find", find)
    return given


def task_of(found: Pretrained, name: str = "mine", **options) -> dict:
    options = {"corpus": "generated", "seed": 0, "training": TRAINING} | options
    return bert_tasks.training_task(name, found=found, **options)


def key(task: dict) -> Path:
    return sweep._path(task, bert_tasks.train_task, "code")


# the task


def test_a_task_is_short_and_plain_and_gives_back_its_settings(found):
    model = {"pooling": "cls", "head_sizes": [5, 4], "dropout": 0.3, "frozen": True,
             "pretrained": False, "num_classes": 10}  # fmt: skip
    training = {
        "epochs": 4, "batch_size": 3, "lr": 0.5, "head_lr": 0.1, "schedule": "halve", "clip": 2.0,
        "warmup": 0.2, "halve_every": 7, "weight_decay": 0.3, "max_len": 9, "fixed": True,
    }  # fmt: skip
    task = task_of(found, model=model, training=training, num_train=20, num_dev=4)
    again = json.loads(json.dumps(task, allow_nan=False))
    assert bert_tasks.specs_of(again) == (BertSpec(**model), BertTrainSpec(**training))
    assert bert_tasks.specs_of(task_of(found, training=None)) == (BertSpec(), BertTrainSpec())
    assert len(json.dumps(task)) < 4096
    assert task["label"] == "mine seed 0"
    assert task["data"] == reviews.load("generated", 50).digest
    assert task["weights_sha256"] == found.weights_sha256


def test_a_task_is_the_same_on_every_machine(found, tmp_path):
    """Neither the folder, nor the source, nor a known model's alias or commit in a cache counts."""
    first = task_of(found)
    assert str(tmp_path) not in json.dumps(first)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    moved = replace(found, folder=tmp_path / "elsewhere", source="the hub's cache")
    assert key(task_of(moved)) == key(first)
    assert key(task_of(moved, "another name")) == key(first)

    known = [
        replace(moved, name=name, revision=revision)
        for name, revision in ((MINILM, "2" * 40), ("all-MiniLM-L6-v2", "3" * 40))
    ]
    assert key(task_of(known[0])) == key(task_of(known[1])) != key(first)
    for other in (
        task_of(replace(moved, weights_sha256="1" * 64)),
        task_of(replace(moved, revision="2" * 40)),
        task_of(moved, seed=1),
        task_of(moved, part="tail"),
        task_of(moved, keep=True),
        task_of(moved, training=TRAINING | {"fixed": True}),
    ):
        assert key(other) != key(first)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"curve": "dev"}, "curve must be one of '', 'held_out'; got 'dev'"),
        ({"test": "dev"}, "test must be one of 'held_out', 'all', 'none'; got 'dev'"),
        ({"part": "middle"}, "part must be one of head, tail, head_tail; got 'middle'"),
        ({"model": {"pooling": "max"}}, r"BertSpec\.pooling must be one of"),
        ({"training": {"schedule": "cosine"}}, r"BertTrainSpec\.schedule must be one of"),
    ],
)
def test_bad_settings_are_refused(found, options, message):
    with pytest.raises(ValueError, match=message):
        task_of(found, **options)


def test_what_has_moved_on_is_refused(found):
    for name, message in (
        ("data", "the reviews of 'generated' have moved on: .*made for 9{16}"),
        ("pieces", "the word pieces of 'toy' have moved on"),
        ("weights_sha256", "the weights of 'toy' are others: 0{16}, .*made for 9{16}"),
    ):
        with pytest.raises(ValueError, match=message):
            bert_tasks.train_task(task_of(found) | {name: "9" * 64})


# the training


@pytest.mark.parametrize("test, count", [("held_out", 4), ("all", 60), ("none", None)])
def test_a_training_returns_what_it_promises(found, test, count):
    done = []
    task = task_of(found, test=test, num_train=40, num_dev=8, curve="held_out")
    arrays = bert_tasks.train_task(task, lambda now, total: done.append(total))
    assert set(done) == {6}
    curves = ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "curve_loss",
              "curve_accuracy", "seconds")  # fmt: skip
    assert all(arrays[name].shape == (2,) for name in curves)
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert arrays["num_trained"] == arrays["num_parameters"] > 1000
    assert arrays["train_seconds"] == pytest.approx(arrays["seconds"].sum())
    assert arrays["test_seconds"] >= 0

    encoded = bert_tasks.load_encoded(task)
    if count is None:
        assert "test_probability" not in arrays
        return
    index = bert_tasks.test_reviews(encoded, test)
    p = torch.from_numpy(arrays["test_probability"])
    assert p.shape == index.shape == (count,)
    if test == "held_out":
        best = int(arrays["best_epoch"]) - 1
        assert best == 0  # of two epochs: the last weights are not those that are tested
        loss = torch.nn.functional.binary_cross_entropy(p, encoded.label[index].float())
        assert float(loss) == pytest.approx(float(arrays["curve_loss"][best]))
        assert float(loss) != pytest.approx(float(arrays["curve_loss"][1]))


def test_the_parameters_that_are_kept_are_those_that_were_tested(found):
    plain = bert_tasks.train_task(task_of(found))
    assert not [name for name in plain if name.startswith("parameters.")]
    task = task_of(found, keep=True)
    arrays = bert_tasks.train_task(task)
    np.testing.assert_array_equal(arrays["test_probability"], plain["test_probability"])

    net, encoded = bert_tasks.make_model(task), bert_tasks.load_encoded(task)
    net.load_state_dict(review_tasks.parameters_of(arrays), strict=True)
    trainer = bert_tasks.Trainer(
        net, encoded, bert_tasks.specs_of(task)[1], torch.device("cpu"), None
    )
    p = trainer.probabilities(bert_tasks.test_reviews(encoded, "held_out"))
    np.testing.assert_array_equal(p.numpy(), arrays["test_probability"])
    assert not list((environment.CACHE / "unfinished").iterdir())


def test_the_reviews_are_those_of_the_recurrent_networks(found, monkeypatch):
    """Chapter 04's own functions on chapter 04's own corpus choose the reviews that BERT reads."""
    corpus, read = reviews.load("generated", 50), []
    monkeypatch.setattr(
        bert_tasks.Trainer,
        "fit",
        lambda self, train, dev, seed, **k: (
            read.append((train, dev, k["curve"])) or {"seconds": torch.zeros(1)}
        ),
    )
    tested = []
    monkeypatch.setattr(
        bert_tasks.Trainer, "probabilities", lambda self, index: tested.append(index) or index
    )
    (environment.CACHE / "unfinished").mkdir(parents=True)
    monkeypatch.setattr(bert_tasks.shutil, "rmtree", lambda path: None)
    for seed in (0, 1):
        bert_tasks.train_task(task_of(found, seed=seed, num_train=20, num_dev=6, curve="held_out"))
    split, held_out = corpus.split(), review_tasks.held_out(corpus)
    for seed, (train, dev, curve) in enumerate(read):
        assert torch.equal(train, review_tasks.draw(corpus, split["train"], 20, seed))
        assert torch.equal(dev, review_tasks.draw(corpus, split["dev"], 6, 0))
        assert torch.equal(curve, held_out)
    assert not torch.equal(read[0][0], read[1][0])
    assert torch.equal(tested[0], held_out)


def test_the_seed_alone_starts_the_model(found):
    def state(**options):
        torch.rand(3)  # whatever was drawn before
        return bert_tasks.make_model(task_of(found, **options)).state_dict()

    first, again, other = (state(seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {"head.0.weight", "head.0.bias"}
    random = [state(seed=seed, model={"pretrained": False}) for seed in (5, 5, 6)]
    name = "encoder.embeddings.word_embeddings.weight"
    assert torch.equal(random[0][name], random[1][name])
    assert not torch.equal(random[0][name], random[2][name])
    assert not torch.equal(random[0][name], first[name])


def test_a_training_that_was_broken_off_goes_on(found, monkeypatch):
    expected = bert_tasks.train_task(task_of(found))
    assert not list((environment.CACHE / "unfinished").iterdir())
    monkeypatch.setattr(bert_training, "KEEP_SECONDS", 0.0)
    plain, steps = bert_tasks.Trainer._step, []

    def dying(self, index):
        steps.append(index)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return plain(self, index)

    monkeypatch.setattr(bert_tasks.Trainer, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        bert_tasks.train_task(task_of(found))
    found_again = bert_tasks.train_task(task_of(found, "another name"))
    assert len(steps) == 5 + 2  # of 6 steps 4 were done
    for name in ("train_loss", "dev_loss", "test_probability"):
        np.testing.assert_array_equal(found_again[name], expected[name])
    assert not list((environment.CACHE / "unfinished").iterdir())


def test_a_training_is_stored_under_its_settings(found, monkeypatch):
    def run(task):
        return sweep.run_tasks(
            [task], bert_tasks.train_task, name="t", modules=bert_tasks.MODULES, workers=1
        )[0]

    first = run(task_of(found, "one"))
    monkeypatch.setattr(bert_tasks.Trainer, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = run(task_of(found, "another name"))
    np.testing.assert_array_equal(first["test_probability"], again["test_probability"])
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        run(task_of(found, num_train=20))


# features


def test_features_are_what_the_frozen_encoder_gives(found):
    common = {"corpus": "generated", "found": found, "max_len": 12, "num_train": 20, "num_dev": 6}
    whole = bert_tasks.feature_task(bert_tasks.features_task(**common, seeds=(1, 0)))
    encoded = bert_reviews.encode("generated", found, 12)
    draws = [bert_tasks.draw({**common, "seed": seed}, encoded) for seed in (0, 1)]
    chosen = torch.cat([*draws[0], *draws[1], review_tasks.held_out(encoded)]).unique()
    assert whole["index"].tolist() == chosen.tolist()

    # the spared pass of a frozen model gives the same, pooled from batches without padding
    index, encoder = draws[1][0], pretrained.load(found).eval()
    for row, n in enumerate(index.tolist()):
        X, mask = bert_reviews.pad(encoded, torch.tensor([n]))
        with torch.no_grad():
            hidden = encoder(X, attention_mask=mask).last_hidden_state[0]
        for pooling, expected in (("cls", hidden[0]), ("mean", hidden.mean(0))):
            vectors = bert_tasks.features_of([whole], pooling, index)
            np.testing.assert_allclose(vectors[row], expected, atol=1e-5)
    X, mask = bert_reviews.pad(encoded, index, 12)
    with torch.no_grad():
        last = encoder(X, attention_mask=mask).last_hidden_state[:, 11]
    vectors = bert_tasks.features_of([whole], "last_position", index)
    np.testing.assert_allclose(vectors, last, atol=1e-5)

    shares = [
        bert_tasks.feature_task(bert_tasks.features_task(**common, seeds=(0, 1), share=k, shares=2))
        for k in (0, 1)
    ]
    for pooling in POOLINGS:
        merged = bert_tasks.features_of(shares, pooling, chosen)
        np.testing.assert_allclose(merged, whole[pooling], atol=1e-5)
    with pytest.raises(ValueError, match="no features of review 119, nor of 1 in all"):
        bert_tasks.features_of(shares[:1], "cls", torch.cat([chosen[:1], torch.tensor([119])]))


def test_features_with_rounded_products_are_almost_the_same(found):
    common = {"corpus": "generated", "found": found, "max_len": 12, "num_train": 20, "num_dev": 6}
    exact, rounded = (
        bert_tasks.feature_task(bert_tasks.features_task(**common, precision=precision))
        for precision in ("float32", "bfloat16")
    )
    for pooling in POOLINGS:
        assert exact[pooling].dtype == rounded[pooling].dtype == np.float32
        assert 0 < np.abs(exact[pooling] - rounded[pooling]).max() < 0.1
    with pytest.raises(ValueError, match="precision must be one of 'float32', 'bfloat16'"):
        bert_tasks.features_task(**common, precision="half")


def test_a_linear_probe_chooses_by_dev_and_reads_standardised_features():
    generator = np.random.default_rng(0)
    labels = {name: torch.arange(200) % 2 for name in ("train", "dev", "test")}
    features = {
        name: generator.normal(size=(200, 8)) + np.outer(y.numpy() - 0.5, [2.0] + [0.0] * 7)
        for name, y in labels.items()
    }
    found = bert_tasks.linear_probe(features, labels)
    scaled = {name: values * [1e-3, *[1e3] * 7] + 5 for name, values in features.items()}
    again = bert_tasks.linear_probe(scaled, labels)
    assert found["test_accuracy"] > 0.8
    np.testing.assert_allclose(again["test_probability"], found["test_probability"], atol=1e-3)

    # noise to the training labels makes a strong penalty the better one
    noisy = labels | {"train": torch.from_numpy(generator.integers(0, 2, 200)) | labels["train"]}
    scores = {
        C: bert_tasks.linear_probe(features, noisy, (C,))["dev_accuracy"]
        for C in bert_tasks.STRENGTHS
    }
    chosen = bert_tasks.linear_probe(features, noisy)
    assert chosen["dev_accuracy"] == max(scores.values()) == scores[chosen["C"]]
    assert len(set(scores.values())) > 1


# the launch

LAUNCH = """
import sys
from pathlib import Path
from labkit import bert_launch
from labkit.bert import pretrained
from labkit.film import corpus as reviews
from labkit.bert.model_folder import Pretrained
root = Path(sys.argv[1])
reviews.folder = lambda name: root / "corpus"
pretrained.find = lambda *a, **k: Pretrained("toy", "", root / "model", "0" * 64, "made here")
sys.exit(bert_launch.main(sys.argv[2:]))
"""
SETTINGS = ["--corpus", "generated", "--num-train", "42", "--epochs", "2", "--batch-size", "8",
            "--lr", "1e-3", "--max-len", "12", "--dropout", "0", "--device", "cpu",
            "--precision", "float32"]  # fmt: skip


def launched(root: Path, output: str, processes: int) -> dict:
    """What a launch writes, with the variables that accelerate and torchrun set for a process."""
    script = root / "launch.py"
    script.write_text(LAUNCH)
    command = [sys.executable, str(script), str(root), *SETTINGS, "--output", str(root / output)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        variables = os.environ | {"LABKIT_CACHE": str(root / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        if processes > 1:
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                          "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
                          "LOCAL_WORLD_SIZE": str(processes)}  # fmt: skip
        running.append(subprocess.Popen(command, env=variables, cwd=environment.ROOT))
    try:
        assert [process.wait(timeout=240) for process in running] == [0] * processes
    finally:
        for process in running:
            process.kill()
    return json.loads((root / output / bert_launch.HISTORY).read_bytes())


def test_two_processes_train_as_one(tmp_path):
    """42 reviews in batches of 8: the last two are one for each process."""
    make_corpus(tmp_path / "corpus")
    make_model(tmp_path / "model")
    one, two = (launched(tmp_path, str(n), n) for n in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("train_loss", "train_accuracy", "dev_loss", "test_probability"):
        np.testing.assert_allclose(two["history"][name], one["history"][name], rtol=1e-3, atol=1e-5)
    assert one["history"]["train_loss"][1] < one["history"]["train_loss"][0]
    weights = [load_file(tmp_path / name / "best.safetensors") for name in ("1", "2")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-4)
    names = {"history.json", "state.safetensors", "best.safetensors"}
    assert {path.name for path in (tmp_path / "2").iterdir()} == names


def test_help_needs_no_torch():
    code = "import sys; from labkit import bert_launch\ntry: bert_launch.main(['--help'])\nfinally:"
    code += " assert 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    for name in [*BertTrainSpec.__dataclass_fields__, "pooling", "head_sizes", "dropout", "frozen"]:
        assert f"--{name.replace('_', '-')}" in shown


@pytest.fixture
def unprepared(monkeypatch):
    """The process of the tests keeps its generators and kernels."""
    monkeypatch.setattr(environment, "prepare", lambda seed, device: torch.device("cpu"))


@pytest.fixture
def told(found, unprepared, monkeypatch):
    """What a launch tells the training, which does not take place."""
    told = {}

    def run(task, device, **options):
        told.update(task, **options)
        return {"best_epoch": torch.tensor(1), "dev_accuracy": torch.ones(1)}

    monkeypatch.setattr(bert_tasks, "run_training", run)
    return told


def test_flags_become_settings_and_the_rest_keeps_its_default(told, tmp_path):
    output = tmp_path / "out"
    flags = ["--head-sizes", "7", "5", "--frozen", "--schedule", "halve", "--model", "toy"]
    flags += ["--revision", REVISION, "--output", str(output)]
    assert bert_launch.main([*SETTINGS, *flags]) == 0
    model, training = bert_tasks.specs_of(told)
    assert model == BertSpec(head_sizes=(7, 5), frozen=True, dropout=0.0)
    assert training == BertTrainSpec(epochs=2, batch_size=8, lr=1e-3, max_len=12, schedule="halve")
    assert (told["num_train"], told["keep"]) == (42, output)
    assert json.loads((output / bert_launch.HISTORY).read_bytes())["history"]["best_epoch"] == 1


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_the_launch_takes_the_precision_that_the_device_is_fastest_at(
    fastest, told, monkeypatch, tmp_path
):
    monkeypatch.setattr(bert_classifier, "fastest_precision", lambda device: fastest)
    flags = ["--model", "toy", "--revision", REVISION, "--output", str(tmp_path)]
    assert bert_launch.main([*SETTINGS, *flags, "--precision", "auto"]) == 0
    assert told["training.precision"] == fastest


def test_the_launch_says_what_is_wrong(found, unprepared, tmp_path, capsys):
    flags = ["--model", "toy", "--revision", REVISION, "--output", str(tmp_path), "--epochs", "0"]
    assert bert_launch.main([*SETTINGS, *flags]) == 2
    assert "BertTrainSpec.epochs must be at least 1" in capsys.readouterr().err


def test_the_modules_of_the_store_are_those_that_compute():
    assert digests.module_digest(bert_tasks.MODULES)
    assert {"labkit.bert.training", "labkit.bert.model"} < set(bert_tasks.MODULES)
    assert set(bert_reviews.MODULES) < set(bert_tasks.MODULES)
