"""Published files against a local server with faults, mirrors and damaged archives."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labkit.__main__ import main as command
from labkit.lab import fetch, machine
from labkit.lab.fetch import DownloadError, Source

CONTENT = bytes(range(256)) * 1200  # some 300 kB: several pieces
Answer = bytes | int | tuple[dict | None, Iterable[bytes], float]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def unpack(archive: Path) -> Iterator[bytes]:
    with gzip.open(archive) as file:
        while piece := file.read(2**16):
            yield piece


PACKED = gzip.compress(CONTENT, mtime=0)
PLAIN = Source("file.bin", sha256(CONTENT), len(CONTENT))
INNER = Source(
    "file.bin",
    sha256(CONTENT),
    len(CONTENT),
    packed_in=Source("file.gz", sha256(PACKED), len(PACKED)),
    unpack=unpack,
)


class Server(ThreadingHTTPServer):
    """Gives each path its answer: bytes, a status, or headers and pieces with a pause between."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Say nothing among the dots where a client has hung up."""

    def at(self, source: Source) -> Source:
        """The source with this server in its publisher's place."""
        if source.packed_in is None:
            return replace(source, urls=(f"{self.url}/{source.name}",))
        return replace(source, packed_in=self.at(source.packed_in))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Nothing among the dots."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path, 404)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        if isinstance(answer, bytes):  # some servers call a .gz file an encoding
            answer = ({"Content-Length": len(answer), "Content-Encoding": "x-gzip"}, [answer], 0)
        headers, pieces, pause = answer
        if headers is not None:
            self.send_response(302 if "Location" in headers else 200)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(pause)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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


# from the publisher


@pytest.mark.parametrize("source, published", [(PLAIN, CONTENT), (INNER, PACKED)])
def test_a_file_comes_whole_and_once_and_no_archive_stays(server, downloads, source, published):
    name = (source.packed_in or source).name
    server.answers[f"/{name}"] = published
    path = fetch.fetch(server.at(source))
    assert path.read_bytes() == CONTENT
    assert fetch.fetch(server.at(source)) == path == downloads / "file.bin"
    assert server.asked == [f"/{name}"]
    assert left(downloads) == ["file.bin"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"!", b""])
def test_what_is_damaged_in_the_downloads_is_replaced(server, downloads, content):
    downloads.mkdir()
    (downloads / "file.bin").write_bytes(content)
    server.answers["/file.bin"] = CONTENT
    assert fetch.fetch(server.at(PLAIN)).read_bytes() == CONTENT


SLOWLY = ({}, [b"x"] * 100, 0.02)  # for longer than the client's patience


@pytest.mark.parametrize(
    "answer, reason",
    [
        (SLOWLY, "less than 1,000 bytes a second came"),
        ((None, [b"H"] * 100, 0.02), "less than 1,000 bytes a second came"),
        (({}, [b""], 1), "less than 1,000 bytes a second came"),
        (({}, itertools.repeat(CONTENT), 0), "more bytes come than the file can have"),
        (CONTENT + b"more", "more bytes come than the file can have"),
        (({"Content-Length": len(CONTENT)}, [CONTENT[:100_000]], 0), "the transfer broke off"),
        (({"Content-Type": "text/html; charset=utf-8"}, [], 0), "sends a web page"),
        (CONTENT[:-1] + b"!", "does not match the known hash"),
        (404, "the server answers 404"),
        (503, "the server answers 503"),
        (({"Location": "http://example.org/x"}, [], 0), "leads to a place that is not https"),
        (({"Location": "http://localhost:1/x"}, [], 0), "leads to a place that is not https"),
        (({"Location": "file:///etc/passwd"}, [], 0), "leads to a place that is not https"),
        (({"Location": "/file.bin"}, [], 0), "redirects"),
    ],
)
def test_a_faulty_answer_is_named_and_leaves_nothing(server, downloads, answer, reason):
    server.answers["/file.bin"] = answer
    start = time.monotonic()
    with pytest.raises(
        DownloadError, match=rf"file\.bin cannot be had \(http.*({reason})"
    ) as error:
        fetch.fetch(server.at(PLAIN))
    assert time.monotonic() - start < 3
    assert f"put it into {downloads} by hand" in str(error.value)
    assert left(downloads) == []


def test_the_next_url_is_asked_and_every_reason_is_kept(server, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    urls = (f"{closed}/gone", f"{server.url}/broken", f"{server.url}/file.bin")
    server.answers |= {"/broken": b"x", "/file.bin": CONTENT}
    assert fetch.fetch(replace(PLAIN, urls=urls)).read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert f"passed over {urls[0]}: the server cannot be reached; is there a network?" in said
    (machine.DOWNLOADS / "file.bin").write_bytes(b"damaged")
    with pytest.raises(DownloadError, match=r"file\.bin is damaged; .*/gone: .*/broken: .*hash"):
        fetch.fetch(replace(PLAIN, urls=urls[:2]))


def test_a_shared_folder_that_is_read_only_serves_and_a_full_one_is_named(
    server, downloads, monkeypatch
):
    downloads.mkdir()
    (downloads / "file.bin").write_bytes(CONTENT)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", None)  # nothing may be made
        assert fetch.fetch(PLAIN) == downloads / "file.bin"
    monkeypatch.setattr(machine, "DOWNLOADS", downloads / "file.bin" / "below")
    with pytest.raises(DownloadError, match=r"cannot write .*below.*Not a directory.*LABKIT_DOWN"):
        fetch.fetch(server.at(PLAIN))


def test_two_processes_fetch_one_file_once(server, downloads):
    server.answers["/file.bin"] = ({}, [CONTENT[:1000], CONTENT[1000:]], 0.5)
    source = server.at(PLAIN)
    code = f"from labkit.lab.fetch import Source, fetch; print(fetch({source!r}))"
    variables = os.environ | {"LABKIT_DOWNLOADS": str(downloads)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert printed == [f"{downloads / 'file.bin'}\n".encode()] * 2
    assert server.asked == ["/file.bin"]


def test_a_killed_download_leaves_nothing_that_is_believed(server, downloads):
    server.answers["/file.bin"] = SLOWLY
    code = f"from labkit.lab.fetch import Source, fetch; fetch({server.at(PLAIN)!r})"
    variables = os.environ | {"LABKIT_DOWNLOADS": str(downloads)}
    process = subprocess.Popen([sys.executable, "-c", code], env=variables)
    while not list(downloads.glob(".*.part/*")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    server.answers["/file.bin"] = CONTENT
    assert fetch.fetch(server.at(PLAIN)).read_bytes() == CONTENT
    assert left(downloads) == ["file.bin"]


def test_a_system_without_locks_is_said_with_the_file(server, downloads, monkeypatch):
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DownloadError, match=r"file\.bin: No locks available; .*LABKIT_DOWNLOADS"):
        fetch.fetch(server.at(PLAIN))


# mirror and offline


@pytest.mark.parametrize("kind", ["folder", "file URL", "http URL"])
def test_a_mirror_is_asked_first_and_may_pack_otherwise(
    server, tmp_path, monkeypatch, downloads, kind
):
    """Not through a proxy, which does not reach a mirror on this machine."""
    folder = tmp_path / "a mirror"
    folder.mkdir()
    packed = gzip.compress(CONTENT, 9)
    (folder / "file.gz").write_bytes(packed)
    server.answers["/m/file.gz"] = packed
    mirrors = {"folder": str(folder), "file URL": folder.as_uri(), "http URL": f"{server.url}/m/"}
    monkeypatch.setenv("LABKIT_MIRROR", mirrors[kind])
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert fetch.fetch(server.at(INNER)).read_bytes() == CONTENT
    assert server.asked == (["/m/file.gz"] if kind == "http URL" else [])
    assert left(downloads) == ["file.bin"]


def test_an_archive_may_be_put_into_the_downloads_by_hand(downloads, monkeypatch):
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    downloads.mkdir()
    (downloads / "file.gz").write_bytes(PACKED)
    assert fetch.fetch(INNER).read_bytes() == CONTENT
    assert left(downloads) == ["file.bin", "file.gz"]


@pytest.mark.parametrize(
    "packed, reason",
    [
        (gzip.compress(CONTENT[:-1] + b"!"), "does not hold the file.bin that was published"),
        (gzip.compress(CONTENT[:-1]), "does not hold the file.bin that was published"),
        (gzip.compress(CONTENT + b"x"), "holds more than the 307,200 bytes expected"),
        (gzip.compress(bytes(100_000_000)), "holds more than the 307,200 bytes expected"),
        (os.urandom(400_000), "more bytes come than the file can have"),
        (PACKED[:-20], "ended before the end-of-stream"),
        (PACKED[:500] + b"????" + PACKED[504:], "Error -3|CRC"),
        (b"no gzip at all", "Not a gzipped file"),
        (b"", "published"),
        (None, "No such file"),
    ],
)
def test_a_bad_mirror_is_named_and_passed_over(
    server, tmp_path, monkeypatch, downloads, packed, reason
):
    if packed is not None:
        (tmp_path / "file.gz").write_bytes(packed)
    monkeypatch.setenv("LABKIT_MIRROR", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setenv("LABKIT_OFFLINE", "1")
        message = rf"{tmp_path}/file\.gz: .*({reason}).*LABKIT_OFFLINE forbids the network"
        with pytest.raises(DownloadError, match=message):
            fetch.fetch(server.at(INNER))
    assert left(downloads) == []
    assert server.asked == []
    server.answers["/file.gz"] = PACKED
    assert fetch.fetch(server.at(INNER)).read_bytes() == CONTENT


@pytest.mark.parametrize("value", ["1", "true", "Yes"])
def test_offline_asks_no_server(server, monkeypatch, value):
    monkeypatch.setenv("LABKIT_OFFLINE", value)
    monkeypatch.setenv("LABKIT_MIRROR", "nowhere")
    message = "nowhere is no folder; give its whole path; LABKIT_OFFLINE forbids the network"
    with pytest.raises(DownloadError, match=message):
        fetch.fetch(server.at(PLAIN))
    assert server.asked == []


# the command


@pytest.fixture
def sources(monkeypatch, server) -> Server:
    """Two sources in the rooms' place, one of them on request, and the server of the other."""
    known = {
        "small": (lambda: fetch.fetch(server.at(PLAIN)), False),
        "large": (lambda: fetch.fetch(INNER), True),
    }
    monkeypatch.setattr(fetch, "sources", lambda: known)
    monkeypatch.setenv("LABKIT_OFFLINE", "0")
    return server


def test_data_fetches_verifies_and_tells(sources, downloads, capsys):
    assert command(["data", "--check"]) == 1
    printed = capsys.readouterr().out
    assert "small      MISSING  file.bin cannot be had" in printed
    assert printed.endswith("Next: python -m labkit data small\n")
    assert sources.asked == []
    os.environ["LABKIT_OFFLINE"] = "0"

    sources.answers["/file.bin"] = CONTENT
    assert command(["data"]) == 0
    assert capsys.readouterr().out == f"small      sound    {downloads / 'file.bin'}\n"
    assert command(["data", "--check", "small"]) == 0
    (downloads / "file.bin").write_bytes(CONTENT[:-1] + b"!")
    assert command(["data", "--check", "small"]) == 1
    assert f"{downloads / 'file.bin'} is damaged" in capsys.readouterr().out


def test_one_failure_does_not_hold_up_the_others_and_a_large_file_waits_to_be_named(
    sources, capsys
):
    sources.answers["/file.bin"] = CONTENT
    assert command(["data", "large", "small"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed] == [["large", "MISSING"], ["small", "sound"]]
    assert command(["data", "tiny"]) == 2
    assert "unknown data set 'tiny'; there are small, large" in capsys.readouterr().err


def test_the_rooms_name_their_sources():
    known = fetch.sources()
    assert {"imdb", "glove"} <= set(known)
    assert all(callable(get) for get, _ in known.values())
