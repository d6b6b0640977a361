"""Pretrained models: three sources, what a folder must hold, and nothing that is guessed."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit import bert
from labkit.bert import pretrained
from labkit.bert.model import tiny
from labkit.bert.pretrained import BERT_BASE, MINILM, find, load_encoder, load_tokenizer
from labkit.lab.fetch import DownloadError

REVISION = pretrained.KNOWN[MINILM][0]


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
    monkeypatch.setitem(pretrained.KNOWN, MINILM, (REVISION, sha256))
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
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
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert find(MINILM).folder == folder


def test_offline_the_hubs_cache_is_all_that_is_asked(world, monkeypatch):
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="with a network, without LABKIT_OFFLINE;"):
        find(BERT_BASE)
    assert world.asked[0][1]["local_files_only"] is True


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_mirrors_folder_comes_first(world, tmp_path, monkeypatch, scheme):
    place = tmp_path / "a mirror" / "sentence-transformers--all-MiniLM-L6-v2"
    world.put(place)
    mirror = str(place.parent) if not scheme else place.parent.as_uri()
    monkeypatch.setenv("LABKIT_MIRROR", mirror)
    assert find(MINILM).folder == place
    assert not world.asked
    with pytest.raises(DownloadError, match="cannot be had"):  # it has no other model
        find(BERT_BASE)


def test_the_installed_package_is_used_without_importing_it(world, tmp_path, monkeypatch):
    package = tmp_path / pretrained.PACKAGE
    world.put(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(tmp_path))
    sha256 = find(str(package / "model")).weights_sha256
    monkeypatch.setitem(pretrained.KNOWN, MINILM, (REVISION, sha256))
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
    assert list(pretrained.SOURCES) == ["minilm", "bert-base"]
    assert set(pretrained.ON_REQUEST) <= set(pretrained.SOURCES)
    assert {*bert.MODELS} == {"tiny", *pretrained.KNOWN}


# what a folder must hold


def config(**changes):
    """A change to config.json; None takes a fact away."""

    def apply(folder: Path) -> None:
        path = folder / "config.json"
        facts = json.loads(path.read_text()) | changes
        facts = {name: value for name, value in facts.items() if value is not None}
        path.write_text(json.dumps(facts))

    return apply


def weights(change):
    """A change to the tensors of model.safetensors."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

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


def one(name: str, value: float):
    def change(tensors: dict) -> dict:
        tensors[name][0] = value
        return tensors

    return weights(change)


BIAS = "encoder.layer.1.output.dense.bias"
FAULTS = {
    "no positions": (config(max_position_embeddings=None), "config.json has no max_position_em"),
    "no vocab_size": (config(vocab_size=None), "config.json has no vocab_size"),
    "an unknown activation": (config(hidden_act="geglu"), "hidden_act 'geglu', which is not kno"),
    "no epsilon": (config(layer_norm_eps=None), "config.json has no layer_norm_eps"),
    "another family": (config(model_type="roberta"), "model_type 'roberta', which is not known"),
    "no config": (text("config.json", None), "config.json cannot be read .*No such file"),
    "no casing": (text("tokenizer_config.json", "{}"), "tokenizer_config.json does not say wheth"),
    "no words": (text("vocab.txt", None), "has neither tokenizer.json nor vocab.txt"),
    "too many words": (text("vocab.txt", "a\n" * 9 + "\n".join(map(str, range(2_000)))), "another"),
    "a bad tokenizer": (text("tokenizer.json", '{"normalizer": {"lowercase": true}}'), "cannot"),
    "pickles": (only_a_pickle, "has no model.safetensors; what has to be unpickled is not read"),
    "cut short": (cut_short, "model.safetensors is damaged, or does not fit config.json"),
    "a layer too few": (config(num_hidden_layers=3), r"lacks encoder.layer.2.* \(16 in all\)"),
    "a layer too many": (config(num_hidden_layers=1), "has more than config.json says: encoder"),
    "NaN": (one(BIAS, float("nan")), rf"not finite in {BIAS} \(1 in all\)"),
    "infinity": (one(BIAS, float("inf")), rf"not finite in {BIAS}"),
}  # fmt: skip


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
