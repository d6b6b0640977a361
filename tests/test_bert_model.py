"""The BERT classifier and its precision; the tiny model, and pretrained ones."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel

from labkit.bert import model as bert
from labkit.bert.model import KNOWN, Classifier, ClassifierSpec, find
from labkit.film import corpus as reviews
from labkit.lab.fetch import DownloadError

H, V = 16, 30


def encoder(**options) -> BertModel:
    """A small BERT, always the same."""
    sizes = {
        "vocab_size": V, "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40,
    }  # fmt: skip
    torch.manual_seed(0)
    return BertModel(BertConfig(**sizes | options), add_pooling_layer=False)


def classifier(pooling: str = "mean", **spec) -> Classifier:
    return Classifier(encoder(), ClassifierSpec(pooling=pooling, **spec))


def batch(T: int, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Reviews of 7, 3 and 5 pieces in T positions."""
    length = torch.tensor([7, 3, 5]).unsqueeze(1)
    X = torch.randint(1, V, (3, 7), generator=torch.Generator().manual_seed(0))
    X = torch.nn.functional.pad(X, (0, T - 7), value=padding)
    mask = torch.arange(T) < length
    return X.where(mask, torch.tensor(padding)), mask


@pytest.mark.parametrize("pooling", bert.POOLINGS)
def test_padding_reaches_the_last_position_only(pooling):
    """Other padding and more of it changes nothing, but for the mistake that is there to show."""
    model = classifier(pooling).eval()
    with torch.no_grad():
        plain, other, longer = (model(*batch(*args)) for args in ((8, 0), (8, 9), (12, 0)))
    same = pooling != "last_position"
    for changed in (other, longer):
        assert torch.allclose(changed, plain, rtol=0, atol=1e-5) == same
        assert same or ((changed - plain).abs().max(1).values > 1e-3).all()


def test_pooling_by_hand():
    hidden = torch.arange(12.0).view(2, 3, 2)
    hidden[1, 2] = torch.nan  # whatever stands behind a review
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    for given in (mask, mask.bool()):
        assert bert.pool(hidden, given, "cls").tolist() == [[0, 1], [6, 7]]
        assert bert.pool(hidden, given, "mean").tolist() == [[2, 3], [7, 8]]
        assert bert.pool(hidden[:1], given[:1], "last_position").tolist() == [[4, 5]]


def test_a_random_start_keeps_the_architecture_and_no_weight():
    pretrained = encoder()
    torch.manual_seed(5)
    random = Classifier(pretrained, ClassifierSpec(encoder="random"))
    ours, theirs = random.encoder.state_dict(), pretrained.state_dict()
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
    matrices = [name for name, value in ours.items() if value.ndim > 1]
    assert not any(torch.equal(ours[name], theirs[name]) for name in matrices)
    assert Classifier(pretrained, ClassifierSpec()).encoder is pretrained


def test_the_tiny_model_is_the_same_in_another_process_and_repairs_itself():
    """Its folder is named by its content, so equal paths are equal models."""
    state = torch.get_rng_state()
    bert.untaught.cache_clear()
    path = bert.untaught() / "model.safetensors"
    assert torch.equal(torch.get_rng_state(), state)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    command = [sys.executable, "-c", "from labkit.bert.model import untaught; print(untaught())"]
    there = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert there.stdout.strip() == str(path.parent)
    assert path.read_bytes() == content


def test_the_tiny_models_words_are_learned_from_the_training_reviews_alone(monkeypatch, tmp_path):
    learned = []
    monkeypatch.setattr(bert.machine, "CACHE", tmp_path)

    def train_from_iterator(self, texts, *_, **__):
        learned.extend(texts)

    monkeypatch.setattr(bert.BertWordPieceTokenizer, "train_from_iterator", train_from_iterator)
    monkeypatch.setattr(bert, "words_of", lambda learner: list(bert.SPECIAL))
    bert.untaught.__wrapped__()
    monkeypatch.undo()
    texts = [review.text.replace("<br />", " ") for review in reviews.read("generated")]
    split = reviews.load("generated", 2_001).split()
    assert learned == [texts[n] for n in split["train"].tolist()]
    tokenizer = bert.load_tokenizer(bert.find("tiny"))
    ids = tokenizer([text.upper() for text in learned[:300]])["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)


MINILM, BERT_BASE = "sentence-transformers/all-MiniLM-L6-v2", "google-bert/bert-base-uncased"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound folder, a copy of the tiny model."""
    return Path(shutil.copytree(bert.untaught(), tmp_path / "model"))


@pytest.fixture
def world(tmp_path, monkeypatch, folder):
    """No network, no source that has a model, and MINILM pinned to the tiny model's weights."""
    for name in ("LABKIT_MIRROR", "LABKIT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    sha256 = find(str(folder)).weights_sha256
    monkeypatch.setitem(KNOWN, MINILM, KNOWN[MINILM] | {"weights": sha256})
    monkeypatch.setattr(bert.importlib.util, "find_spec", lambda name: None)
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        raise OSError("no network")

    monkeypatch.setattr(bert, "snapshot_download", snapshot_download)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    return SimpleNamespace(asked=asked, put=lambda path: shutil.copytree(folder, path))


def test_a_known_model_comes_from_the_hub_at_its_pinned_commit(world, folder, monkeypatch):
    with pytest.raises(DownloadError, match="no network\nNext: try again with a network and"):
        find(MINILM)
    ((name, options),) = world.asked
    assert (name, options["revision"]) == (MINILM, KNOWN[MINILM]["commit"])
    monkeypatch.setattr(bert, "snapshot_download", lambda *_, **__: str(folder))
    assert find(MINILM).folder == folder


def test_a_mirrors_folder_comes_first_then_a_package_that_is_not_imported(
    world, tmp_path, monkeypatch
):
    place = tmp_path / "a mirror" / "sentence-transformers--all-MiniLM-L6-v2"
    world.put(place)
    monkeypatch.setenv("LABKIT_MIRROR", place.parent.as_uri())
    assert find(MINILM).folder == place
    package = SimpleNamespace(origin=str(place / "__init__.py"))
    world.put(place / "model")
    monkeypatch.setenv("LABKIT_MIRROR", "https://mirror.example")
    monkeypatch.setattr(bert.importlib.util, "find_spec", {KNOWN[MINILM]["package"]: package}.get)
    assert find(MINILM).folder == place / "model"
    assert not world.asked


def test_other_weights_or_words_than_the_known_ones_are_refused(world, tmp_path, monkeypatch):
    place = tmp_path / "mirror" / "google-bert--bert-base-uncased"
    world.put(place)
    monkeypatch.setenv("LABKIT_MIRROR", str(place.parent))
    with pytest.raises(DownloadError, match=r"model\.safetensors has SHA-256 \w+, expected 68d45e"):
        find(BERT_BASE)
    words = place.rename(place.with_name("sentence-transformers--all-MiniLM-L6-v2"))
    assert find(MINILM).folder == words
    with pytest.raises(DownloadError, match=r"tokenizer in .* is another model's"):
        bert.load_tokenizer(find(MINILM))


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("config.json", '"bert"', '"roberta"', "holds no BERT, but a roberta"),
        ("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3',
         r"lacks encoder.layer.2.* \(16 in all\)"),
        ("vocab.txt", "[MASK]\n", "[MASK]\nmore\n", "is another model's"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_said(folder, name, old, new, message):
    path = folder / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DownloadError, match=message):
        print(bert.load_tokenizer(find(str(folder))), bert.load_encoder(find(str(folder))))


def test_a_folder_without_safetensors_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DownloadError, match=r"has no config\.json and model\.safetensors to read"):
        find(str(folder))
