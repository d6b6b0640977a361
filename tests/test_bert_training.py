"""Reviews as word pieces, fine-tuning step by step, and the trainings as specifications."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import get_linear_schedule_with_warmup

from labkit.bert.model import POOLINGS, ClassifierSpec, find, load_encoder
from labkit.bert.training import (
    FineTuning,
    FrozenVectors,
    PiecesTraining,
    Reading,
    Trainer,
    in_pieces,
    pad,
)
from labkit.film import corpus as reviews
from labkit.film.model import ReviewSpec
from labkit.film.training import TrainSpec, draw, held_out
from labkit.lab import machine

from .test_bert_model import encoder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "very", "good", "bad", "film", "##s")
RATES = {"lr": 2e-3, "head_lr": 2e-3}


def silent(done: int, total: int) -> None:
    """What a training tells its progress to."""


@pytest.fixture
def model_folder(tmp_path, monkeypatch) -> Path:
    """A BERT of 16 units and eleven words that drops nothing; the corpus "generated" has 60 + 60
    reviews of 6 to 9 pieces, of which 48 train and 12 are dev."""
    texts = [
        reviews.Review(part, y, number, 2 + 7 * y, f"A {'very ' * (number % 4)}{word}<br />films")
        for part in ("test", "train")
        for y, word in enumerate(("bad", "good"))
        for number in range(30)
    ]
    monkeypatch.setattr(reviews, "read", lambda name: texts)
    monkeypatch.setattr(machine, "CACHE", tmp_path / "cache")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = encoder(vocab_size=len(WORDS), initializer_range=0.2, **drops)
    model.config.to_json_file(folder / "config.json")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def reading(model_folder) -> Reading:
    model = find(str(model_folder))
    digest = in_pieces("generated", model).digest
    sizes = {"max_len": 12, "num_train": 20, "num_dev": 8}
    return Reading(corpus="generated", model=model.name, digest=digest, **sizes)


def test_of_a_long_review_a_part_is_kept(reading, monkeypatch):
    """A corpus is tokenised once."""
    monkeypatch.setattr(reviews, "read", lambda name: pytest.fail("read again"))
    corpus, uncut = replace(reading, max_len=7, part="tail").encode()
    assert " ".join(corpus.review(0)) == "[CLS] a bad film ##s [SEP]"
    assert " ".join(corpus.review(3)) == "[CLS] very very bad film ##s [SEP]"
    assert corpus.length[:4].tolist() == [6, 7, 7, 7]
    assert uncut[:4].tolist() == [6, 7, 8, 9]
    long = torch.arange(100, 114)
    for part, inner in (("head", [*range(101, 109)]), ("tail", [*range(105, 113)])):
        ten = replace(reading, max_len=10, part=part)
        assert ten.cut(long).tolist() == [100, *inner, 113]
        assert torch.equal(ten.cut(long[:10]), long[:10])


def test_the_reviews_are_those_of_the_recurrent_networks(reading):
    corpus, theirs = reading.encode()[0], reviews.load("generated", 8)
    for name in ("label", "rating", "is_test"):
        assert torch.equal(getattr(corpus, name), getattr(theirs, name))
    index, split = reading.draw(corpus, 1), theirs.split()
    assert torch.equal(index["train"], draw(theirs, split["train"], 20, 1))
    assert torch.equal(index["dev"], draw(theirs, split["dev"], 8, 0))
    assert torch.equal(index["test"], held_out(theirs))
    assert torch.equal(replace(reading, test="all").draw(corpus, 0)["test"], split["test"])
    all_of_them = (replace(reading, num_train=n).draw(corpus, 0)["train"] for n in (0, 48))
    assert torch.equal(*all_of_them)


def test_padding_is_dynamic_or_of_a_fixed_length(reading):
    corpus, _ = reading.encode()
    index = torch.tensor([2, 0, 1])
    (X, mask), (wide, wide_mask) = pad(corpus, index), pad(corpus, index, 12)
    assert torch.equal(wide[:, :8], X)
    assert mask.sum(1).tolist() == wide_mask.sum(1).tolist() == [8, 6, 7]
    assert (wide[~wide_mask] == WORDS.index("[PAD]")).all()
    with pytest.raises(ValueError, match="max_len"):
        replace(reading, max_len=99).encode()


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors"])
def test_what_has_changed_is_refused(reading, model_folder, name):
    before = (model_folder / name).read_bytes()
    (model_folder / name).write_bytes(before.replace(b"very", b"vary").replace(b"\x3d", b"\x3c"))
    with pytest.raises(ValueError, match="has changed: run the chapter anew"):
        reading.encode()


def test_only_matrices_decay_and_the_head_has_a_rate_of_its_own(make):
    trainer = make(lr=1e-3, head_lr=1e-2, weight_decay=0.1)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    seen = {
        names[id(p)]: (group["initial_lr"], group["weight_decay"])
        for group in trainer.optimiser.param_groups
        for p in group["params"]
    }
    assert seen.keys() == set(names.values())
    for name, (lr, decay) in seen.items():
        assert lr == (1e-2 if name.startswith("head") else 1e-3)
        assert decay == (0 if name.endswith("bias") or "LayerNorm" in name else 0.1)


def test_the_linear_schedule_is_transformers_own():
    spec = FineTuning(epochs=3, warmup=0.2, **RATES)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    expected = get_linear_schedule_with_warmup(optimiser, 6, 30)
    for step in range(30):
        assert spec.rate(step / 30) == pytest.approx(expected.get_last_lr()[0])
        optimiser.step()
        expected.step()


def test_a_rate_stays_or_is_halved_after_each_third():
    """In 15 epochs these are the fifth and the tenth."""
    constant = FineTuning(epochs=15, schedule="constant", warmup=0.1, **RATES)
    assert [constant.rate(share) for share in (0, 0.05, 0.2, 0.99)] == pytest.approx([0, 0.5, 1, 1])
    halved = replace(constant, schedule="halve", warmup=0.0)
    steps = [halved.rate(step / 375) for step in (0, 124, 125, 249, 250, 374)]
    assert steps == [1, 1, 0.5, 0.5, 0.25, 0.25]


def training(reading: Reading, **options) -> PiecesTraining:
    spec = FineTuning(epochs=2, batch_size=8, **RATES)
    whole = {"model": ClassifierSpec(pooling="mean"), "training": spec, "seed": 0} | options
    return PiecesTraining(reading=reading, **whole)


@pytest.fixture
def make(reading):
    """A function that makes a trainer, always from the same start."""
    corpus, _ = reading.encode()

    def make(pooling: str = "mean", dropout: float = 0.0, **spec) -> Trainer:
        spec = FineTuning(**{"epochs": 3, "batch_size": 8, **RATES} | spec)
        task = training(reading, model=ClassifierSpec(pooling=pooling, dropout=dropout))
        return Trainer(task.make_model(), corpus, spec, torch.device("cpu"))

    return make


TRAIN, DEV = torch.arange(60, 84), torch.arange(90, 120)
INDEX = {"train": TRAIN, "dev": DEV}


def test_a_step_is_that_of_plain_torch(make):
    index, rates = TRAIN[::3], {"epochs": 1, "warmup": 0.0}
    given, plain = make(clip=0.05, **rates), make(**rates)
    before = [p.detach().clone() for p in given.model.parameters()]
    row = given.train_epoch(index, torch.Generator().manual_seed(0))
    X, mask = pad(plain.corpus, index)
    logits, y = plain.model(X, mask), plain.corpus.label[index]
    loss = F.cross_entropy(logits, y)
    loss.backward()
    assert torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 0.05) > 0.1
    assert row["train_loss"] == pytest.approx(loss.item())
    parameters = (given.model.parameters(), plain.model.parameters(), before)
    for one, other, old in zip(*parameters, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)
        assert torch.equal(one, old) == (not one.grad.any())  # AdamW moves what has a gradient


def test_every_step_takes_the_rate_of_its_number(make):
    given, rates = make(lr=0.002, head_lr=0.004, warmup=0.0), []
    given.optimiser.register_step_pre_hook(
        lambda optimiser, *_: rates.append([group["lr"] for group in optimiser.param_groups])
    )
    given.fit(INDEX, 0)
    shares = [1 - k / 9 for k in range(9)]  # 3 epochs of 3 batches
    assert rates == [pytest.approx([0.002 * s] * 2 + [0.004 * s] * 2) for s in shares]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_answers_do_not_depend_on_batches_nor_on_padding(make, pooling, monkeypatch):
    """The last position alone needs padding of a fixed length."""
    given = make(pooling, pad_to=12 * (pooling == "last_position"))
    X, mask = pad(given.corpus, DEV, 12)
    plain = given.model.eval()(X, mask).softmax(1)[:, 1].detach()
    for size in (64, 3):
        monkeypatch.setattr(Trainer, "evaluation_batch", {"cpu": size})
        torch.testing.assert_close(given.probabilities(DEV), plain, rtol=0, atol=1e-6)


def test_without_a_choice_the_last_epoch_counts_and_alone_is_scored(make, monkeypatch):
    """Dev would choose an earlier one: its labels are the wrong ones."""
    options = {"epochs": 5, "lr": 0.01, "schedule": "constant"}
    histories, label = {}, make().corpus.label
    label[DEV] = 1 - label[DEV]
    for choose in (True, False):
        given, scored = make(choose=choose, **options), []
        probabilities = given.probabilities
        monkeypatch.setattr(
            given, "probabilities", lambda i, p=probabilities, s=scored: s.append(p(i)) or s[-1]
        )
        history = histories[choose] = given.fit(INDEX, 0)
        assert len(scored) == (5 if choose else 1)
        assert history["best_epoch"] == 5 or choose
    assert histories[True]["best_epoch"] < 5
    assert torch.equal(*(history["train_loss"] for history in histories.values()))
    assert histories[False]["dev_accuracy"].max() == histories[True]["dev_accuracy"][-1]
    assert torch.equal(given.probabilities(DEV), scored[0])


RIVAL = {
    "model": ReviewSpec(bidirectional=True, pooling="mean_max", skip=True),
    "training": TrainSpec(epochs=2, batch_size=8, max_len=1),
}


@pytest.mark.parametrize("rival", [{}, RIVAL], ids=["BERT", "recurrent"])
def test_a_training_returns_what_it_promises(reading, rival):
    progress, task = [], training(replace(reading, test="all"), keep=True, **rival)
    arrays = task.train(lambda done, total: progress.append(total))
    assert set(progress) == {6}
    assert arrays["dev_accuracy"].shape == arrays["seconds"].shape == (2,)
    model, corpus = task.make_model(arrays).eval(), reading.encode()[0]
    index = task.reading.draw(corpus, 0)["test"]
    X, mask = pad(corpus, index)
    with torch.no_grad():
        p = model(X, mask.sum(1) if rival else mask).softmax(1)[:, 1]  # it reads all of a review
    np.testing.assert_allclose(p, arrays["test_probability"], atol=1e-6)
    assert arrays["num_parameters"] == sum(p.numel() for p in model.parameters())


def test_the_seed_alone_starts_the_model(reading):
    def state(seed: int, **model) -> dict[str, torch.Tensor]:
        torch.rand(3)  # whatever was drawn before
        spec = ClassifierSpec(pooling="mean", **model)
        return training(reading, seed=seed, model=spec).make_model().state_dict()

    first, again, other = (state(seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {"head.0.weight", "head.0.bias"}
    name = "encoder.embeddings.word_embeddings.weight"
    one, same, another = (state(seed, encoder="random")[name] for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, another)


def test_vectors_are_what_the_frozen_encoder_gives(reading):
    task = FrozenVectors(reading=reading, seeds=(1, 0), precision="float32")
    vectors, corpus = task.train(silent), reading.encode()[0]
    draws = [reading.draw(corpus, seed).values() for seed in (0, 1)]
    expected = torch.cat([part for of_seed in draws for part in of_seed]).unique()
    assert vectors["index"].tolist() == expected.tolist()
    model = load_encoder(find(reading.model))
    for place, n in enumerate(expected.tolist()):
        X, mask = pad(corpus, torch.tensor([n]), 12)
        with torch.no_grad():
            hidden = model(X, attention_mask=mask).last_hidden_state[0]
        by_hand = (hidden[0], hidden[mask[0]].mean(0), hidden[11])
        for pooling, vector in zip(POOLINGS, by_hand, strict=True):
            np.testing.assert_allclose(vectors[pooling][place], vector, atol=1e-5)
