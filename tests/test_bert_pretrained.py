"""Pretrained models: three sources, what a folder must hold, and nothing that is guessed."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from labkit import bert
from labkit.bert import model as pretrained
from labkit.bert.model import KNOWN, find, load_encoder, load_tokenizer, tiny
from labkit.lab.fetch import DownloadError

_, MINILM, BERT_BASE = bert.MODELS
REVISION = KNOWN[MINILM]["commit"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound folder, a copy of the tiny model."""
    return Path(shutil.copytree(tiny(), tmp_path / "model"))


@pytest.fixture
def world(tmp_path, monkeypatch, folder):
    """No network, no source that has a model, and MINILM pinned to the tiny model's weights."""
    for name in ("LABKIT_MIRROR", "LABKIT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    sha256 = find(str(folder)).weights_sha256
    monkeypatch.setitem(KNOWN, MINILM, KNOWN[MINILM] | {"weights": sha256})
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        raise OSError("no network")

    monkeypatch.setattr(pretrained, "snapshot_download", snapshot_download)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    return SimpleNamespace(asked=asked, put=lambda path: shutil.copytree(folder, path))


# sources


def test_a_known_model_comes_from_the_hub_at_its_pinned_commit(world, folder, monkeypatch):
    with pytest.raises(DownloadError, match="no network\nNext: try again with a network; or put"):
        find(MINILM)
    ((name, options),) = world.asked
    assert (name, options["revision"]) == (MINILM, REVISION)
    assert options["local_files_only"] is False
    assert "endpoint" not in options  # HF_ENDPOINT holds
    assert all(p.endswith((".safetensors", ".json", ".txt")) for p in options["allow_patterns"])
    monkeypatch.setattr(pretrained, "snapshot_download", lambda *_, **__: str(folder))
    assert find(MINILM).folder == folder


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_mirrors_folder_comes_first(world, tmp_path, monkeypatch, scheme):
    place = tmp_path / "a mirror" / "sentence-transformers--all-MiniLM-L6-v2"
    world.put(place)
    mirror = str(place.parent) if not scheme else place.parent.as_uri()
    monkeypatch.setenv("LABKIT_MIRROR", mirror)
    assert find(MINILM).folder == place
    assert not world.asked
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="a network, without LABKIT_OFFLINE;"):
        find(BERT_BASE)  # which this mirror does not have
    assert world.asked[0][1]["local_files_only"] is True


def test_the_installed_package_is_used_without_importing_it(world, tmp_path, monkeypatch):
    package = tmp_path / KNOWN[MINILM]["package"]
    world.put(package / "model")
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", {package.name: spec}.get)
    assert find(MINILM).folder == package / "model"


def test_other_weights_or_words_than_the_known_ones_are_refused(world, tmp_path, monkeypatch):
    place = tmp_path / "mirror" / "google-bert--bert-base-uncased"
    world.put(place)
    monkeypatch.setenv("LABKIT_MIRROR", str(place.parent))
    with pytest.raises(DownloadError, match=r"model\.safetensors has SHA-256 \w+, expected 68d45e"):
        find(BERT_BASE)
    words = place.rename(place.with_name("sentence-transformers--all-MiniLM-L6-v2"))
    assert find(MINILM).folder == words
    with pytest.raises(DownloadError, match=r"tokenizer in .* is another model's"):
        load_tokenizer(find(MINILM))


def test_the_data_command_knows_both_models():
    assert pretrained.__name__ == bert.SOURCES
    assert set(pretrained.ON_REQUEST) < {*pretrained.SOURCES} == {"minilm", "bert-base"}
    assert {*bert.MODELS} == {"tiny", *KNOWN}


# what a folder must hold


def config(**changes):
    """A change to config.json; None takes a fact away."""

    def apply(folder: Path) -> None:
        path = folder / "config.json"
        facts = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: v for name, v in facts.items() if v is not None}))

    return apply


def text(name: str, content: str | None):
    """A file with other content, or without the file."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.unlink() if content is None else path.write_text(content)

    return apply


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


FAULTS = {
    "no positions": (config(max_position_embeddings=None), "config.json has no max_position_em"),
    "no vocab_size": (config(vocab_size=None), "config.json has no vocab_size"),
    "an unknown activation": (
        config(hidden_act="geglu"),
        "config.json has an unknown hidden_act, 'ge",
    ),
    "no epsilon": (config(layer_norm_eps=None), "config.json has no layer_norm_eps"),
    "another family": (config(model_type="roberta"), "an unknown model_type, 'roberta'"),
    "no config": (text("config.json", None), "config.json cannot be read.*No such file"),
    "no casing": (text("tokenizer_config.json", "{}"), "tokenizer_config.json does not say wheth"),
    "no words": (text("vocab.txt", None), "has neither tokenizer.json nor vocab.txt"),
    "too many words": (text("vocab.txt", "\n".join(map(str, range(2_000)))), "is another model's"),
    "a bad tokenizer": (text("tokenizer.json", '{"normalizer": {"lowercase": true}}'), "cannot"),
    "pickles": (only_a_pickle, "has no model.safetensors; what has to be unpickled is not read"),
    "cut short": (cut_short, "model.safetensors is damaged, or does not fit config.json"),
    "a layer too few": (config(num_hidden_layers=3), r"differ in encoder.layer.2.* \(16 in all\)"),
    "a layer too many": (config(num_hidden_layers=1), "differ in encoder.layer.1.*get both again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_said(folder, fault):
    apply, message = FAULTS[fault]
    apply(folder)

    def load_all() -> None:
        model = find(str(folder))
        load_tokenizer(model)
        load_encoder(model)

    with pytest.raises(DownloadError, match=message):
        load_all()


def test_a_folder_is_loaded_as_it_is(folder, monkeypatch, capfd):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    model = load_encoder(find(str(folder)))
    assert not model.training
    assert "pooler" not in dict(model.named_children()) or model.pooler is None
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("lower", [True, False])
def test_casing_is_that_of_the_folder(folder, lower):
    text("tokenizer_config.json", json.dumps({"do_lower_case": lower}))(folder)
    tokenizer = load_tokenizer(find(str(folder)))
    assert (tokenizer.tokenize("FILM") == tokenizer.tokenize("film")) is lower
