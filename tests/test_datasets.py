"""The data sets, as tiny stand-ins whose digests take the place of the real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labkit import __main__ as command
from labkit.bert.model_folder import NotThere, Pretrained
from labkit.bert import model_sources
from labkit.lab import data_command, datasets, download, environment, runner
from labkit.lab.transfer import DownloadError, Limits

FOLDERS = ("test/neg", "test/pos", "train/neg", "train/pos")
REVIEWS = {
    f"{folder}/{number}_{rating}.txt": f"{folder} no. {number}: naïve <br />".encode()
    for folder in FOLDERS
    for number, rating in ((0, 3), (10, 8), (2, 10))
}
OTHERS = {"README": b"read me", "train/unsup/0_0.txt": b"unlabelled", "imdb.vocab": b"the"}
LINES = [f"word{number} 0.5 -{number}.25\n".encode() for number in range(8)]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_digest(reviews: dict[str, bytes]) -> str:
    """The digest's definition in one line."""
    return digest(b"".join(b"aclImdb/%s\0%s\0" % (n.encode(), reviews[n]) for n in sorted(reviews)))


def tar_gz(files: dict[str, bytes], level: int = 9) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=level) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"aclImdb/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def glove_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("glove.6B.50d.txt", "unwanted")
        archive.writestr(datasets.GLOVE_MEMBER, b"".join(LINES))
    return buffer.getvalue()


class World:
    """The publishers' site, a mirror and the downloads: three folders, and a way to read them."""

    def __init__(self, root: Path) -> None:
        self.site, self.mirror, self.downloads = (root / n for n in ("site", "mirror", "downloads"))
        self.requests: list[str] = []
        self.site.mkdir()
        self.mirror.mkdir()

    def left(self) -> list[str]:
        return sorted(p.name for p in self.downloads.iterdir() if not p.name.endswith(".lock"))

    def reviews(self) -> dict[str, bytes]:
        folder = self.downloads / "aclImdb"
        files = (path for path in folder.rglob("*.txt") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    """Everything published, nothing downloaded, no mirror set."""
    world = World(tmp_path)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            world.requests.append(self.path)

    handler = partial(Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        world.url = f"http://127.0.0.1:{server.server_port}"
        for name, value in replacements(world).items():
            monkeypatch.setattr(datasets, name, value)
        monkeypatch.setitem(download.fetch.__kwdefaults__, "limits", Limits(2, 2, 1, 0.01))
        for name in ("LABKIT_MIRROR", "LABKIT_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield world
        server.shutdown()
        thread.join()


def replacements(world: World) -> dict[str, object]:
    imdb, glove = tar_gz(REVIEWS | OTHERS), glove_zip()
    (world.site / "aclImdb_v1.tar.gz").write_bytes(imdb)
    (world.site / "glove.6B.zip").write_bytes(glove)
    return {
        "DOWNLOADS": world.downloads,
        "IMDB_URL": f"{world.url}/site/aclImdb_v1.tar.gz",
        "IMDB_SHA256": digest(imdb),
        "IMDB_SIZE": len(imdb),
        "IMDB_CONTENT": content_digest(REVIEWS),
        "IMDB_FILES": 3,
        "GLOVE_URL": f"{world.url}/site/glove.6B.zip",
        "GLOVE_SHA256": digest(glove),
        "GLOVE_SIZE": len(glove),
        "GLOVE_WORDS": len(LINES),
        "EXCERPT_WORDS": 3,
        "EXCERPT_CONTENT": digest(b"".join(LINES[:3])),
    }


# reviews


def test_the_digest_is_what_it_is_said_to_be(tmp_path):
    reviews = {"test/neg/9_1.txt": b"bad", "test/neg/10_1.txt": b"", "train/pos/0_9.txt": b"\xff\0"}
    for name, content in (reviews | OTHERS).items():
        (tmp_path / "any" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "any" / name).write_bytes(content)
    by_hand = (
        b"aclImdb/test/neg/10_1.txt\0\0"
        b"aclImdb/test/neg/9_1.txt\0bad\0"
        b"aclImdb/train/pos/0_9.txt\0\xff\0\0"
    )
    assert datasets.content_digest(tmp_path / "any") == digest(by_hand)


def test_reviews_come_from_the_network_once(world, capsys):
    folder = datasets.imdb()
    assert folder == world.downloads / "aclImdb"
    assert world.reviews() == REVIEWS
    assert (folder / "README").read_bytes() == b"read me"
    assert not (folder / "imdb.vocab").exists()
    assert world.left() == ["aclImdb", "aclImdb_v1.tar.gz"]
    assert "unpacking aclImdb_v1.tar.gz and checking its 12 reviews" in capsys.readouterr().err
    datasets.imdb()
    assert len(world.requests) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("as_url", [False, True])
def test_reviews_come_from_a_mirror_packed_otherwise(world, monkeypatch, as_url):
    (world.mirror / "aclImdb_v1.tar.gz").write_bytes(tar_gz(REVIEWS, level=1))
    monkeypatch.setenv("LABKIT_MIRROR", f"{world.url}/mirror" if as_url else str(world.mirror))
    datasets.imdb(quiet=True)
    assert world.reviews() == REVIEWS
    assert world.left() == ["aclImdb"]
    assert world.requests == (["/mirror/aclImdb_v1.tar.gz"] if as_url else [])


def changed(name: str = "train/pos/10_8.txt") -> dict[str, bytes]:
    return REVIEWS | {name: REVIEWS[name].replace(b"n", b"m", 1)}


@pytest.mark.parametrize(
    "reviews, message",
    [
        (changed(), "have the content digest"),
        ({n: c for n, c in REVIEWS.items() if n != "test/neg/0_3.txt"}, "has 2 files, expected 3"),
        (REVIEWS | {"test/neg/5_1.txt": b"more"}, "has 4 files, expected 3"),
    ],
)
def test_other_reviews_are_refused(world, monkeypatch, capsys, reviews, message):
    (world.mirror / "aclImdb_v1.tar.gz").write_bytes(tar_gz(reviews))
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    with monkeypatch.context() as patched:
        patched.setenv("LABKIT_OFFLINE", "1")
        with pytest.raises(DownloadError, match=f"nor to be had from the mirror .*{message}"):
            datasets.imdb()
    assert message in capsys.readouterr().err
    assert world.left() == []
    datasets.imdb()  # now from the network
    assert world.reviews() == REVIEWS


@pytest.mark.parametrize("mirror, why", [("nowhere", "takes the whole path"), ("/no/where", "")])
def test_a_mirror_that_is_no_folder_is_told(world, monkeypatch, mirror, why):
    monkeypatch.setenv("LABKIT_MIRROR", mirror)
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match=f"LABKIT_MIRROR={mirror} is no folder.*{why}"):
        datasets.imdb()


def spoil(folder: Path, how: str) -> None:
    review = folder / "test" / "pos" / "2_10.txt"
    if how == "file":
        review.unlink()
    elif how == "folder":
        shutil.rmtree(folder / "train" / "neg")
    elif how == "emptied":
        review.write_bytes(b"")
    elif how == "marker":
        (folder / datasets.MARKER).write_text('{"content_sha256": "')
        review.unlink()
    elif how == "unmarked":
        (folder / datasets.MARKER).unlink()
        review.write_bytes(review.read_bytes().replace(b"n", b"m", 1))


@pytest.mark.parametrize("how", ["file", "folder", "emptied", "marker", "unmarked"])
def test_a_spoiled_folder_is_unpacked_again_without_a_second_download(world, capsys, how):
    folder = datasets.imdb()
    spoil(folder, how)
    datasets.imdb()
    assert "it is made anew" in capsys.readouterr().err
    assert world.reviews() == REVIEWS
    assert world.left() == ["aclImdb", "aclImdb_v1.tar.gz"]
    assert len(world.requests) == 1


def test_a_folder_unpacked_by_hand_is_hashed_once_and_taken(world, monkeypatch):
    world.downloads.mkdir()
    archive = io.BytesIO(tar_gz(REVIEWS | OTHERS))
    with tarfile.open(fileobj=archive) as tar:
        tar.extractall(world.downloads, filter="data")
    datasets.imdb()
    monkeypatch.setattr(datasets, "content_digest", None)  # not called again
    datasets.imdb()
    assert world.requests == []


def test_the_marker_of_other_content_is_not_believed(world):
    marker = datasets.imdb() / datasets.MARKER
    held = json.loads(marker.read_text())
    marker.write_text(json.dumps(held | {"content_sha256": "0" * 64}))
    assert datasets.status(["imdb"])[0].state == "sound"
    datasets.imdb()  # hashes, and marks anew
    assert json.loads(marker.read_text()) == held


def test_offline_says_so_at_once(world, monkeypatch):
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    start = time.monotonic()
    for get in (datasets.imdb, lambda: datasets.glove(2)):
        with pytest.raises(DownloadError, match="LABKIT_OFFLINE forbids the network"):
            get()
    assert time.monotonic() - start < 0.1
    assert world.requests == []


def test_two_processes_unpack_the_reviews_once(world):
    settings = {n: v for n, v in replacements(world).items() if n != "DOWNLOADS"}
    code = f"""
import os, time
from pathlib import Path
from labkit.lab import archives, datasets
vars(datasets).update({settings!r})
unpack = archives.unpack_tar
def slow(*arguments, **options):
    print("unpacked", flush=True)
    time.sleep(0.3)
    unpack(*arguments, **options)
archives.unpack_tar = slow
here = Path({str(world.site)!r})
(here / f"ready.{{os.getpid()}}").touch()
while len(list(here.glob("ready.*"))) < 2:
    time.sleep(0.01)
print(datasets.imdb())
"""
    variables = os.environ | {"LABKIT_DOWNLOADS": str(world.downloads)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=20)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(len, printed)) == [1, 2]
    assert len(world.requests) == 1
    assert world.reviews() == REVIEWS


# GloVe


def excerpt(world: World, content: bytes | None = None, level: int = 1) -> None:
    content = b"".join(LINES[:3]) if content is None else content
    (world.mirror / datasets.EXCERPT_NAME).write_bytes(gzip.compress(content, level))


def test_vectors_come_out_of_the_archive_which_is_not_kept(world, capsys):
    path = datasets.glove(len(LINES))
    assert path == world.downloads / datasets.GLOVE_MEMBER
    assert path.read_bytes() == b"".join(LINES)
    assert world.left() == [datasets.GLOVE_MEMBER, f"{datasets.GLOVE_MEMBER}.sha256"]
    assert "downloading glove.6B.zip (0.0 MB) from 127.0.0.1" in capsys.readouterr().err
    assert datasets.glove(1) == path
    assert len(world.requests) == 1


@pytest.mark.parametrize("level", [1, 9])
@pytest.mark.parametrize("as_url", [False, True])
def test_few_words_come_from_a_mirrors_excerpt(world, monkeypatch, as_url, level):
    excerpt(world, level=level)
    monkeypatch.setenv("LABKIT_MIRROR", f"{world.url}/mirror" if as_url else str(world.mirror))
    path = datasets.glove(3)
    assert gzip.decompress(path.read_bytes()) == b"".join(LINES[:3])
    assert world.left() == [datasets.EXCERPT_NAME]
    monkeypatch.delenv("LABKIT_MIRROR")
    assert datasets.glove(2) == path
    assert datasets.glove(4) == world.downloads / datasets.GLOVE_MEMBER


def test_a_mirrors_archive_serves_many_words(world, monkeypatch):
    (world.site / "glove.6B.zip").rename(world.mirror / "glove.6B.zip")
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    assert datasets.glove(5).read_bytes() == b"".join(LINES)
    assert (world.mirror / "glove.6B.zip").exists()
    assert world.requests == []


@pytest.mark.parametrize("content", [b"other words\n" * 3, None])
def test_a_wrong_excerpt_is_passed_over(world, monkeypatch, capsys, content):
    excerpt(world, content)
    file = world.mirror / datasets.EXCERPT_NAME
    if content is None:
        file.write_bytes(file.read_bytes()[:-9])
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    assert datasets.glove(3).name == datasets.GLOVE_MEMBER
    problem = "is damaged" if content is None else "holds text with SHA-256"
    assert f"{datasets.EXCERPT_NAME} {problem}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"".join(LINES[:4]), b"word0 1 2\n" * 8, b""])
def test_a_cut_or_wrong_file_of_vectors_is_replaced(world, content):
    world.downloads.mkdir()
    (world.downloads / datasets.GLOVE_MEMBER).write_bytes(content)
    assert datasets.glove(5).read_bytes() == b"".join(LINES)


@pytest.mark.parametrize("words, error", [(0, ValueError), (9, ValueError), ("3", TypeError)])
def test_an_impossible_number_of_words_is_named(world, words, error):
    with pytest.raises(error, match=r"words must be"):
        datasets.glove(words)


# the command


def run(*arguments: str) -> int:
    return command.main(["data", *arguments])


@pytest.fixture
def models(world, monkeypatch) -> dict[str, Pretrained | DownloadError]:
    """What this machine has of the models, to which `find` adds what is asked for."""
    models: dict[str, Pretrained | DownloadError] = {}

    def look(name: str) -> Pretrained:
        found = models.get(name, NotThere("not on this machine"))
        if isinstance(found, DownloadError):
            raise found
        return found

    def find(name: str) -> Pretrained:
        folder = world.downloads / "models" / name.split("/")[1]
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"0" * 1_500_000)
        models[name] = Pretrained(name, "", folder, "", "the mirror")
        return models[name]

    monkeypatch.setattr(model_sources, "look", look)
    monkeypatch.setattr(model_sources, "find", find)
    return models


def states(printed: str) -> list[list[str]]:
    """Name and state of each row of the table."""
    rows = [line.split()[:2] for line in printed.splitlines()[1:]]
    return [row for row in rows if row[0] in data_command.NAMES]


def test_data_fetches_and_tells(world, models, capsys):
    assert run("--check") == 1
    assert [state for _, state in states(capsys.readouterr().out)] == ["missing"] * 4
    assert world.requests == []
    assert run() == 0
    printed = capsys.readouterr().out
    rows = [["imdb", "sound"], ["glove", "sound"], ["minilm", "sound"], ["bert-base", "missing"]]
    assert states(printed) == rows
    table = printed.splitlines()
    assert "all 12 reviews hashed" in table[1]
    assert "the file hashed" in table[2]
    assert "1.5 MB" in table[3]
    assert table[3].endswith("the weights hashed; from the mirror")
    assert table[4].endswith("440.4 MB, fetched when it is named")
    assert list(models) == [data_command.MODELS["minilm"]]
    assert run("--check") == 0
    assert len(world.requests) == 2


def test_the_large_model_is_fetched_when_it_is_named(models, capsys):
    assert run("--check", "bert-base") == 1
    assert models == {}
    assert run("bert-base") == 0
    assert states(capsys.readouterr().out)[-1] == ["bert-base", "sound"]
    assert list(models) == [data_command.MODELS["bert-base"]]


@pytest.mark.parametrize("name", ["minilm", "bert-base"])
def test_a_damaged_model_is_an_error_named_or_not(models, capsys, name):
    run()
    models[data_command.MODELS[name]] = DownloadError("its weights are others")
    for names in ((), (name,)):
        capsys.readouterr()
        assert run("--check", *names) == 1
        printed = capsys.readouterr().out
        assert [name, "damaged"] in states(printed)
        assert "its weights are others" in printed


def test_check_finds_what_a_quick_look_does_not(world, models, capsys):
    folder = datasets.imdb()
    path = datasets.glove(8)
    review = folder / "test" / "pos" / "2_10.txt"
    review.write_bytes(review.read_bytes().replace(b"n", b"m", 1))
    path.write_bytes(path.read_bytes().replace(b"word7", b"word8"))
    capsys.readouterr()
    assert run("--check") == 1
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in table[1:3]] == ["damaged", "damaged"]
    assert table[-1].startswith("Next: python -m labkit data imdb glove minilm, which")
    assert run("--check", "glove") == 1


def test_data_makes_do_with_the_excerpt_and_says_so(world, monkeypatch, capsys):
    (world.site / "glove.6B.zip").unlink()
    excerpt(world)
    monkeypatch.setenv("LABKIT_MIRROR", str(world.mirror))
    assert run("glove") == 0
    printed = capsys.readouterr()
    assert "the whole file cannot be had" in printed.err
    assert "excerpt of the 3 most frequent words" in printed.err
    assert "an excerpt: its 3 lines hashed" in printed.out


def test_one_failure_does_not_hold_up_the_others(world, models, capsys):
    (world.site / "aclImdb_v1.tar.gz").unlink()
    assert run() == 1
    printed = capsys.readouterr()
    assert "FAILED imdb: " in printed.err
    assert "answers 404" in printed.err
    assert [state for _, state in states(printed.out)] == ["missing", "sound", "sound", "missing"]


def test_an_unknown_data_set_is_named(capsys):
    assert run("imbd") == 2
    expected = "unknown data set 'imbd'; there are imdb, glove, minilm, bert-base"
    assert expected in capsys.readouterr().err


def test_clean_keeps_the_downloads(lab, monkeypatch):
    kept = lab.root / "data" / "downloads" / "aclImdb" / "README"
    kept.parent.mkdir(parents=True)
    kept.write_text("read me")
    monkeypatch.setattr(environment, "ROOT", lab.root)
    monkeypatch.setattr(environment, "DATA", lab.root / "data")
    monkeypatch.setattr(environment, "RESULTS", lab.results)
    runner.clean()
    assert kept.read_text() == "read me"
