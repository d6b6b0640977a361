"""Downloads and archives, against a local server with faults and against damaged archives."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from labkit.lab import archives
from labkit.lab.download import download, fetch, file_digest, lock
from labkit.lab.transfer import PIECE, DownloadError, Limits, LocalError

if TYPE_CHECKING:
    from conftest import Server

CONTENT = bytes(range(256)) * 1200  # some 300 kB: several pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = 2 * PIECE  # what the server sends before it cuts
LIMITS = Limits(connect=2, read=0.3, retries=2, backoff=0.01)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABKIT_MIRROR", "LABKIT_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(fault_server: Server) -> Server:
    fault_server.files["/file.bin"] = CONTENT
    return fault_server


def get(server: Server, path: Path, **options: object) -> Path:
    return download(server.url, path, **{"sha256": SHA256, "limits": LIMITS, **options})


def left(folder: Path) -> list[str]:
    """What lies in a folder, locks apart."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


# transfer


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    assert get(server, path, size=len(CONTENT)) == path
    assert path.read_bytes() == CONTENT
    get(server, path)
    assert server.ranges == [None]
    assert left(path.parent) == ["file.bin"]


def test_a_wrong_file_in_its_place_is_replaced(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    assert get(server, path).read_bytes() == CONTENT


def test_a_cut_connection_is_continued_without_sending_anything_twice(server, tmp_path):
    server.faults = ["cut"]
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert server.conditions[1] is not None
    assert server.sent == len(CONTENT)


def test_the_next_call_continues_what_the_last_one_left(server, tmp_path):
    path = tmp_path / "file.bin"
    server.faults = ["cut", 503, 503, 503]
    with pytest.raises(DownloadError, match=r"answers 503 .* goes on where it stopped \(0.1 MB"):
        get(server, path)
    assert left(tmp_path) == ["file.bin.part"]
    assert get(server, path).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={HALF}-"
    assert server.sent == len(CONTENT)


def test_tries_that_bring_something_new_do_not_count(server, tmp_path):
    server.half = PIECE
    server.faults = ["cut"] * 4
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.honours_ranges = False
    server.faults = ["cut"]
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
@pytest.mark.parametrize("rest", [b"x" * 1000, CONTENT + b"more", b"x" * len(CONTENT)])
def test_the_leavings_of_another_file_are_given_up(server, tmp_path, rest, size):
    (tmp_path / "file.bin.part").write_bytes(rest)
    assert get(server, tmp_path / "file.bin", size=size).read_bytes() == CONTENT
    assert left(tmp_path) == ["file.bin"]


def test_a_server_that_stalls_is_given_up_in_time_and_continued(server, tmp_path):
    server.faults = ["stall"]
    start = time.monotonic()
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT
    assert 0.3 <= time.monotonic() - start < 3
    server.faults = ["stall"]
    with pytest.raises(DownloadError, match="has stopped sending, after 1 try; try again, which"):
        get(server, tmp_path / "b", limits=Limits(read=0.1, retries=0))


@pytest.mark.parametrize("fault", ["page", "disguised page"])
def test_a_web_page_is_not_taken_for_the_file(server, tmp_path, fault):
    server.faults = [fault]
    with pytest.raises(DownloadError, match=r"sent a web page instead .* LABKIT_MIRROR"):
        get(server, tmp_path / "file.bin")
    assert len(server.ranges) == 1
    assert left(tmp_path) == []


def test_a_gzip_file_stays_packed(server, tmp_path):
    server.files["/file.gz"] = content = gzip.compress(CONTENT)
    url = server.url.replace(".bin", ".gz")
    path = download(url, tmp_path / "a", sha256=hashlib.sha256(content).hexdigest(), limits=LIMITS)
    assert path.read_bytes() == content


def test_wrong_content_is_named_and_removed(server, tmp_path):
    server.files["/file.bin"] = CONTENT[:-1] + b"!"
    with pytest.raises(DownloadError, match=f"SHA-256 [0-9a-f]{{64}}, expected {SHA256}.*removed"):
        get(server, tmp_path / "file.bin", size=len(CONTENT))
    assert left(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_loaded(server, tmp_path):
    server.files["/file.bin"] = CONTENT * 30
    with pytest.raises(DownloadError, match="a file of 9,216,000 bytes, expected 307,200"):
        get(server, tmp_path / "file.bin", size=len(CONTENT))
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_tried_again(server, tmp_path, status):
    server.faults = [status] * 5
    with pytest.raises(DownloadError, match=rf"file\.bin: the server answers {status} .* moved"):
        get(server, tmp_path / "file.bin")
    assert server.ranges == [None]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_fault_is_tried_again(server, tmp_path, status):
    server.faults = [status]
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_lasting_fault_ends_after_the_retries(server, tmp_path):
    server.faults = [500] * 9
    with pytest.raises(DownloadError, match="answers 500 Internal Server Error, after 3 tries"):
        get(server, tmp_path / "file.bin")
    assert len(server.ranges) == 3


def test_a_server_that_is_not_there(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match="cannot be reached; is there a network"):
            download(url, tmp_path / "file.bin", sha256=SHA256, limits=LIMITS)
    assert left(tmp_path) == []


@pytest.mark.parametrize("url", ["http://example.org/f", "ftp://127.0.0.1/f", "file:///etc/passwd"])
def test_only_https_is_taken_from_elsewhere(tmp_path, url):
    with pytest.raises(DownloadError, match="is not https"):
        download(url, tmp_path / "f", sha256=SHA256)


def test_a_full_disk_keeps_what_came(server, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(LocalError, match="No space left on device; make room"):
            get(server, tmp_path / "file.bin")
    assert left(tmp_path) == ["file.bin.part"]
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(LocalError, match=r"cannot write to .*occupied"):
        get(server, tmp_path / "occupied" / "file.bin")


def test_progress_off_a_terminal_is_a_few_lines(server, tmp_path, capsys):
    server.files["/file.bin"] = big = CONTENT * 40
    sha256 = hashlib.sha256(big).hexdigest()
    get(server, tmp_path / "a", sha256=sha256)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"a: {percent} % of 12.3 MB" for percent in (25, 50, 75, 100)]
    get(server, tmp_path / "b", sha256=sha256, quiet=True)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    server.faults = ["cut"]
    get(server, tmp_path / "file.bin")
    assert "file.bin: " in capsys.readouterr().err


def test_two_processes_fetch_one_file_once(server, tmp_path):
    server.pause = 0.5
    code = f"""
from pathlib import Path
from labkit.lab.download import download
download({server.url!r}, Path({str(tmp_path / "file.bin")!r}), sha256={SHA256!r})
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=20)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("waiting for another process" in text for text in errors) <= 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_lock_keeps_a_second_one_out(tmp_path, capsys):
    order = []

    def second() -> None:
        with lock(tmp_path / "x"):
            order.append("second")

    with lock(tmp_path / "x"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting for another process that fetches x" in capsys.readouterr().err


# mirror and offline


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    monkeypatch.setenv("LABKIT_MIRROR", str(folder))
    return folder


def fetch_file(server: Server, path: Path, **options: object) -> None:
    fetch("file.bin", server.url, path, **{"sha256": SHA256, "limits": LIMITS, **options})


def test_a_mirror_folder_is_asked_first(server, tmp_path, mirror):
    fetch_file(server, tmp_path / "to" / "file.bin")
    assert (tmp_path / "to" / "file.bin").read_bytes() == CONTENT
    assert left(tmp_path / "to") == ["file.bin"]
    assert server.ranges == []


def test_a_mirror_url_is_asked_first(server, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_MIRROR", server.url.removesuffix("file.bin") + "mirror/")
    server.files = {"/mirror/file.bin": CONTENT}
    fetch_file(server, tmp_path / "to" / "file.bin")
    assert (tmp_path / "to" / "file.bin").read_bytes() == CONTENT
    assert left(tmp_path / "to") == ["file.bin"]


@pytest.mark.parametrize("content", [None, b"another version"])
def test_a_mirror_without_the_right_file_is_named_and_passed_over(
    server, tmp_path, mirror, capsys, content
):
    (mirror / "file.bin").unlink()
    if content:
        (mirror / "file.bin").write_bytes(content)
    fetch_file(server, tmp_path / "to" / "file.bin")
    assert (tmp_path / "to" / "file.bin").read_bytes() == CONTENT
    problem = "has SHA-256" if content else "there is no"
    lines = [line for line in capsys.readouterr().err.splitlines() if "mirror" in line]
    assert len(lines) == 1
    assert problem in lines[0]
    assert server.ranges == [None]


def test_a_mirror_may_have_another_file_where_its_content_is_checked(server, tmp_path, mirror):
    (mirror / "file.bin").write_bytes(b"packed otherwise")
    seen = []
    path = tmp_path / "to" / "file.bin"
    fetch_file(server, path, use=seen.append, checks_content=True)
    assert seen == [mirror / "file.bin"]

    def refuse_the_mirror(file: Path) -> None:
        seen.append(file)
        if file != path:
            raise DownloadError("other content")

    fetch_file(server, path, use=refuse_the_mirror, checks_content=True)
    assert seen[1:] == [mirror / "file.bin", path]
    assert path.read_bytes() == CONTENT


def test_a_full_disk_is_not_blamed_on_the_mirror(server, tmp_path, mirror):
    def fill(file: Path) -> None:
        raise LocalError("No space left")

    with pytest.raises(LocalError, match="No space left"):
        fetch_file(server, tmp_path / "to" / "file.bin", use=fill)
    assert server.ranges == []


@pytest.mark.parametrize("value", ["1", "true", "Yes"])
def test_offline_says_so_at_once(server, tmp_path, monkeypatch, value):
    monkeypatch.setenv("LABKIT_OFFLINE", value)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"file\.bin is not in .*LABKIT_OFFLINE forbids"):
        fetch_file(server, tmp_path / "file.bin")
    assert time.monotonic() - start < 0.1
    assert server.ranges == []


def test_offline_still_takes_the_mirror_and_what_is_there(server, tmp_path, monkeypatch, mirror):
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    fetch_file(server, tmp_path / "to" / "file.bin")
    monkeypatch.delenv("LABKIT_MIRROR")
    fetch_file(server, tmp_path / "to" / "file.bin")
    assert server.ranges == []


# archives


def packed(*members: tuple[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar.gz of files, and of members given as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


NOISE = hashlib.shake_256(b"noise").digest(50_000)  # does not compress
GOOD = [("set/a.txt", b"alpha"), ("set/b/c.txt", NOISE), ("set/skipped", b"s")]


def unpack(tmp_path: Path, content: bytes, **options: object) -> Path:
    """Unpack an archive into tmp_path/to/set."""
    archive = tmp_path / "set.tar.gz"
    archive.write_bytes(content)
    (tmp_path / "to").mkdir(exist_ok=True)
    archives.unpack_tar(archive, tmp_path / "to" / "set", top="set", **options)
    return tmp_path / "to" / "set"


def test_an_archive_is_unpacked_and_replaces_what_was_there(tmp_path):
    (tmp_path / "to" / "set").mkdir(parents=True)
    (tmp_path / "to" / "set" / "old").write_text("old")
    (tmp_path / "to" / ".set.tmp").mkdir()  # of a process that was killed
    (tmp_path / "to" / ".set.old").mkdir()
    folder = unpack(tmp_path, packed(*GOOD), keep=lambda name: not name.endswith("skipped"))
    assert sorted(p.name for p in folder.rglob("*")) == ["a.txt", "b", "c.txt"]
    assert (folder / "b" / "c.txt").read_bytes() == NOISE
    assert left(tmp_path / "to") == ["set"]


ESCAPES = {
    "upwards": packed(*GOOD, ("set/../../escaped", b"evil")),
    "absolute link": packed(*GOOD, link("set/link", "/etc/passwd")),
    "link out": packed(*GOOD, link("set/link", "../../escaped")),
    "hard link out": packed(*GOOD, link("set/link", "../../escaped", tarfile.LNKTYPE)),
    "device": packed(*GOOD, link("set/null", "", tarfile.CHRTYPE)),
}
_whole = packed(*GOOD)
DAMAGED = {
    "truncated": _whole[: len(_whole) // 2],
    "without its end": _whole[:-4],
    "one byte changed": _whole[:30_000] + bytes([_whole[30_000] ^ 1]) + _whole[30_001:],
    "wrong checksum": _whole[:-8] + bytes([_whole[-8] ^ 1]) + _whole[-7:],
    "no archive": b"not an archive at all" * 100,
    "an empty file": b"",
    "half a tar in a whole gzip": gzip.compress(gzip.decompress(_whole)[:5000]),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", [*ESCAPES, *DAMAGED])
def test_a_bad_archive_changes_nothing(tmp_path, name, before):
    if before:
        (tmp_path / "to" / "set").mkdir(parents=True)
        (tmp_path / "to" / "set" / "old").write_text("old")
    message = "was not unpacked: .* from its publisher" if name in ESCAPES else "is damaged .* get"
    with pytest.raises(DownloadError, match=rf"set\.tar\.gz {message}"):
        unpack(tmp_path, (ESCAPES | DAMAGED)[name])
    assert left(tmp_path / "to") == (["set"] if before else [])
    assert not (tmp_path / "escaped").exists()
    if before:
        assert left(tmp_path / "to" / "set") == ["old"]


def test_an_absolute_member_stays_inside(tmp_path):
    info = tarfile.TarInfo(f"{tmp_path}/outside")
    unpack(tmp_path, packed(*GOOD, ("", info)))
    assert not (tmp_path / "outside").exists()


def test_another_archive_is_named(tmp_path):
    with pytest.raises(DownloadError, match="holds no folder set"):
        unpack(tmp_path, packed(("other/a.txt", b"alpha")))
    assert left(tmp_path / "to") == []


def test_a_check_can_refuse_what_was_unpacked(tmp_path):
    def refuse(folder: Path) -> None:
        assert (folder / "a.txt").read_bytes() == b"alpha"
        raise DownloadError("not these")

    with pytest.raises(DownloadError, match="not these"):
        unpack(tmp_path, packed(*GOOD), check=refuse)
    assert left(tmp_path / "to") == []


def test_a_full_disk_leaves_nothing_unpacked(tmp_path, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = packed(*GOOD)
    monkeypatch.setattr(tarfile, "copyfileobj", full)
    with pytest.raises(LocalError, match="No space left on device; make room there and try"):
        unpack(tmp_path, content)
    assert left(tmp_path / "to") == []


def zipped(tmp_path: Path) -> Path:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("inner/words.txt", NOISE)
        target.writestr("../evil.txt", "evil")
    return archive


def test_a_member_of_a_zip_goes_where_it_is_told(tmp_path):
    archive = zipped(tmp_path)
    (tmp_path / "to").mkdir()
    archives.unpack_zip_member(archive, "inner/words.txt", tmp_path / "to" / "words")
    archives.unpack_zip_member(archive, "../evil.txt", tmp_path / "to" / "evil")
    assert (tmp_path / "to" / "words").read_bytes() == NOISE
    assert left(tmp_path / "to") == ["evil", "words"]
    assert left(tmp_path) == ["set.zip", "to"]


@pytest.mark.parametrize("damage", ["byte", "end", "member"])
def test_a_damaged_zip_leaves_nothing(tmp_path, damage):
    archive = zipped(tmp_path)
    content = bytearray(archive.read_bytes())
    content[1000] ^= damage == "byte"
    archive.write_bytes(content[: -30 if damage == "end" else None])
    member = "missing" if damage == "member" else "inner/words.txt"
    with pytest.raises(DownloadError, match=r"set\.zip is damaged"):
        archives.unpack_zip_member(archive, member, tmp_path / "to" / "words")
    assert left(tmp_path / "to") == []


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
