"""Published files against a local server with faults, mirrors and damaged archives."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from labkit.__main__ import main as command
from labkit.lab import fetch, machine
from labkit.lab.code import sha256
from labkit.lab.fetch import DownloadError, Source

CONTENT = bytes(range(256)) * 1200  # some 300 kB: several pieces
PACKED = gzip.compress(CONTENT, mtime=0)
PLAIN = Source("file.bin", sha256(CONTENT), len(CONTENT))
ARCHIVE = Source("file.gz", sha256(PACKED), len(PACKED))
INNER = replace(PLAIN, packed_in=ARCHIVE, unpack=gzip.open)


class Server(ThreadingHTTPServer):
    """Gives each path its answer: bytes, or headers and pieces with a pause between, or 404."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def at(self, source: Source) -> Source:
        """The source with this server in its publisher's place."""
        if source.packed_in:
            return replace(source, packed_in=self.at(source.packed_in))
        return replace(source, urls=(f"{self.url}/{source.name}",))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if (answer := self.server.answers.get(self.path)) is None:
            return self.send_error(404)
        if isinstance(answer, bytes):  # some servers call a .gz file an encoding
            answer = ({"Content-Length": len(answer), "Content-Encoding": "x-gzip"}, [answer], 0)
        headers, pieces, pause = answer
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            time.sleep(pause)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of downloads, and no variable of the reader's."""
    for name in ("LABKIT_MIRROR", "LABKIT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(fetch, "PATIENCE", 0.3)
    return tmp_path / "downloads"


def left(folder: Path) -> list[str]:
    """What lies in a folder, locks apart."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


@pytest.mark.parametrize("source, published", [(PLAIN, CONTENT), (INNER, PACKED)])
def test_a_file_comes_whole_and_once_and_no_archive_stays(server, downloads, source, published):
    name = (source.packed_in or source).name
    server.answers[f"/{name}"] = published
    path = fetch.fetch(server.at(source))
    assert path.read_bytes() == CONTENT
    assert fetch.fetch(server.at(source)) == path == downloads / "file.bin"
    assert server.asked == [f"/{name}"]
    assert left(downloads) == ["file.bin"]
    for damaged in (CONTENT[:-1] + b"!", CONTENT[:-1], b""):
        path.write_bytes(damaged)
        assert fetch.fetch(server.at(source)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "answer, reason",
    [
        (({}, [b""], 1), "Read timed out"),
        (({}, itertools.repeat(CONTENT), 0), "more bytes come than the 307,200 expected"),
        (CONTENT[:-1] + b"!", "does not match the known hash"),
        (None, "404 Client Error"),
    ],
)
def test_a_faulty_answer_is_named_and_leaves_nothing(server, downloads, answer, reason):
    server.answers["/file.bin"] = answer
    message = rf"file\.bin cannot be had \(http.*({reason}).*put it into {downloads} by hand"
    with pytest.raises(DownloadError, match=message):
        fetch.fetch(server.at(PLAIN))
    assert left(downloads) == []


def test_the_next_url_is_asked_and_every_reason_is_kept(server, downloads, capsys):
    urls = ("http://127.0.0.1:1/gone", f"{server.url}/broken", f"{server.url}/file.bin")
    server.answers |= {"/broken": b"x", "/file.bin": CONTENT}
    assert fetch.fetch(replace(PLAIN, urls=urls)).read_bytes() == CONTENT
    assert f"passed over {urls[0]}: " in capsys.readouterr().err
    (downloads / "file.bin").write_bytes(b"damaged")
    with pytest.raises(DownloadError, match=r"file\.bin is damaged; .*/gone: .*/broken: .*hash"):
        fetch.fetch(replace(PLAIN, urls=urls[:2]))


@pytest.mark.parametrize("function, number", [("fcntl.flock", 37), ("shutil.move", 28)])
def test_no_locks_and_a_full_disk_are_said(server, downloads, monkeypatch, function, number):
    server.answers["/file.bin"] = CONTENT
    monkeypatch.setattr(function, Mock(side_effect=OSError(number, os.strerror(number))))
    with pytest.raises(DownloadError, match=r"cannot write .*file\.bin: .*No .*LABKIT_DOWNLOADS"):
        fetch.fetch(server.at(PLAIN))
    assert left(downloads) == []


@pytest.mark.parametrize("kind", ["folder", "file URL", "http URL"])
def test_a_mirror_is_asked_first_and_may_pack_otherwise(server, downloads, monkeypatch, kind):
    """Not through a proxy, which does not reach a mirror on this machine."""
    folder = downloads.parent / "a mirror"
    folder.mkdir()
    server.answers["/m/file.gz"] = packed = gzip.compress(CONTENT, 9)
    (folder / "file.gz").write_bytes(packed)
    (downloads / ".file.bin.part").mkdir(parents=True)
    (downloads / ".file.bin.part" / "file.gz").write_bytes(b"of a process that was killed")
    mirrors = {"folder": str(folder), "file URL": folder.as_uri(), "http URL": f"{server.url}/m/"}
    monkeypatch.setenv("LABKIT_MIRROR", mirrors[kind])
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert fetch.fetch(server.at(INNER)).read_bytes() == CONTENT
    assert server.asked == (["/m/file.gz"] if kind == "http URL" else [])
    assert left(downloads) == ["file.bin"]


def test_offline_an_archive_may_be_put_into_the_downloads(server, downloads, monkeypatch):
    monkeypatch.setenv("LABKIT_OFFLINE", "Yes")
    with pytest.raises(DownloadError, match="LABKIT_OFFLINE forbids the network"):
        fetch.fetch(server.at(INNER))
    (downloads / "file.gz").write_bytes(PACKED)
    assert fetch.fetch(INNER).read_bytes() == CONTENT
    assert left(downloads) == ["file.bin", "file.gz"]
    assert server.asked == []


@pytest.mark.parametrize(
    "packed, reason",
    [
        (gzip.compress(CONTENT[:-1] + b"!"), "does not hold the file.bin that was published"),
        (gzip.compress(bytes(100_000_000)), "more bytes come than the 307,200 expected"),
        (b"no gzip at all", "Not a gzipped file"),
    ],
)
def test_a_bad_mirror_is_named_and_passed_over(server, downloads, monkeypatch, packed, reason):
    mirror = downloads.parent
    (mirror / "file.gz").write_bytes(packed)
    monkeypatch.setenv("LABKIT_MIRROR", str(mirror))
    with pytest.raises(DownloadError, match=rf"{mirror}/file\.gz: .*({reason}).*; http.*404"):
        fetch.fetch(server.at(INNER))
    server.answers["/file.gz"] = PACKED
    assert fetch.fetch(server.at(INNER)).read_bytes() == CONTENT
    assert left(downloads) == ["file.bin"]


def test_data_fetches_verifies_and_tells(server, downloads, tmp_path, monkeypatch, capsys):
    """Large files wait to be named; what lies only in a mirror is looked at where it lies."""
    known = {
        "small": lambda: fetch.fetch(server.at(PLAIN)),
        "large": lambda: fetch.fetch(INNER),
        "model": lambda: Path(os.environ["LABKIT_MIRROR"]),
    }
    rooms = {"labkit.sine": SimpleNamespace(SOURCES="data")}
    rooms["data"] = SimpleNamespace(SOURCES=known, ON_REQUEST=("large",))
    monkeypatch.setattr(fetch, "import_module", rooms.get)
    monkeypatch.setenv("LABKIT_MIRROR", str(tmp_path))

    def told(*arguments: str) -> tuple[int, list[str]]:
        status = command(["data", *arguments])
        return status, re.sub(" +", " ", capsys.readouterr().out).splitlines()

    path, model = downloads / "file.bin", f"model sound {tmp_path}"
    server.answers["/file.bin"] = CONTENT
    assert told() == (0, [model, f"small sound {path}"])
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    assert told("small") == (0, [f"small sound {path}"])
    path.write_bytes(CONTENT[:-1] + b"!")
    assert f"{path} is damaged" in told("small")[1][0]
    monkeypatch.delenv("LABKIT_OFFLINE")
    status, lines = told("large", "small")  # one failure does not hold up the other
    assert [line.split()[:2] for line in lines] == [["large", "MISSING"], ["small", "sound"]]
    assert status == 1


def test_the_rooms_name_their_sources(capsys):
    assert command(["data", "tiny"]) == 2
    assert "there are bert-base, glove, imdb, minilm" in capsys.readouterr().err
