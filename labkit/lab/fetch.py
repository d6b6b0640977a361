"""Published files: from a mirror or the network, whole and as expected, or not at all.

`LABKIT_MIRROR` names a folder or a URL that is asked first, `LABKIT_OFFLINE=1` forbids everything
but the mirror, `LABKIT_DOWNLOADS` moves the folder that the files go into.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import queue
import shutil
import struct
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import labkit
from labkit.lab import machine

PATIENCE = 60  # seconds within which a server has to send ...
SLOWEST = 1_000  # ... this many bytes for each of them
PIECE = 2**15
DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error,
    EOFError, LookupError, ValueError, RuntimeError,
)  # fmt: skip


class DownloadError(OSError):
    """A file that cannot be had; the message says what was tried and what to do."""


class _Unusable(Exception):
    """One place does not have the file; the next one may."""


@dataclass(frozen=True)
class File:
    """A file's name, its SHA-256 in hexadecimal digits and its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Source:
    """A published file, the https URLs that have it, and what is kept of it.

    `kept` is what the pieces make that `unpack` yields for the path of the file; without them the
    file is kept as it is. A mirror may have the file packed in another way: then what is unpacked
    decides, and no more is read than the sizes say.
    """

    file: File
    urls: tuple[str, ...] = ()
    kept: File | None = None
    unpack: Callable[[Path], Iterable[bytes]] | None = None


def fetch(source: Source) -> Path:
    """The path of what is kept of a source, fetched unless it is there and its hash is right.

    Asked are the folder of downloads, where the file may have been put by hand, the mirror and the
    URLs, in this order. DownloadError names what was wrong with each of them.
    """
    name, kept = source.file.name, source.kept or source.file
    path = machine.DOWNLOADS / kept.name
    if _is_right(path, kept):
        return path
    with lock(path):
        if _is_right(path, kept):  # another process was faster
            return path
        tried = [f"{machine.shown(path)} is damaged"] if path.exists() else []
        for place in _places(source):
            try:
                return _fetch_from(place, source, path)
            except _Unusable as error:
                tried.append(f"{place}: {error}")
                say(f"{name}: no use of {tried[-1]}")
    if offline():
        tried.append("LABKIT_OFFLINE forbids the network")
    raise DownloadError(
        f"{name} cannot be had ({'; '.join(tried)}). Try again later, or put it into "
        f"{machine.DOWNLOADS} by hand, or into a folder that LABKIT_MIRROR names"
    )


def offline() -> bool:
    """Whether `LABKIT_OFFLINE` forbids the network."""
    return os.environ.get("LABKIT_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def say(text: str) -> None:
    """Print a line for the reader to standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep other processes from making `path`; makes its folder, and waits while another works."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            held.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that fetches {path.name}")
            held.acquire()
    except OSError as error:
        raise _local(error, path) from error
    try:
        yield
    finally:
        held.release()


def _local(error: OSError, path: Path) -> DownloadError:
    """A fault of this machine: another place would not help."""
    return DownloadError(
        f"cannot write {path}: {error.strerror or error}; make room there, or make the folder "
        "writable, or choose another one with LABKIT_DOWNLOADS"
    )


def _is_right(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256


def _places(source: Source) -> Iterator[str]:
    """Paths and URLs that may have a source's file."""
    name = source.file.name
    if source.kept and (machine.DOWNLOADS / name).is_file():
        yield str(machine.DOWNLOADS / name)
    if mirror := os.environ.get("LABKIT_MIRROR"):
        yield f"{mirror.rstrip('/')}/{quote(name) if '://' in mirror else name}"
    if not offline():
        yield from source.urls


def _fetch_from(place: str, source: Source, path: Path) -> Path:
    """Bring a source's file from one place, unpack it, check it, and put the result at `path`."""
    import pooch

    by_hash = source.kept is None or place in source.urls
    staging = path.with_name(f".{path.name}.part")
    pooch.get_logger().setLevel("WARNING")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        fetched = pooch.retrieve(
            place,
            f"sha256:{source.file.sha256}" if by_hash else None,
            fname=source.file.name,
            path=staging,
            downloader=partial(_download, file=source.file),
        )
        if source.kept and source.unpack:
            pieces, fetched = source.unpack(Path(fetched)), staging / "kept"
            with open(fetched, "wb") as output:
                for piece in pieces:
                    if output.tell() + len(piece) > source.kept.size:
                        raise _Unusable(f"it holds more than the {source.kept.size:,} bytes")
                    output.write(piece)
            if not _is_right(fetched, source.kept):
                raise _Unusable("it holds other data than the published file")
        os.replace(fetched, path)
    except DAMAGED as error:  # ValueError is also pooch's for a wrong hash
        raise _Unusable(str(error).partition("\n")[0] or repr(error)) from error
    except OSError as error:
        if error.errno is None:  # how gzip says that a file is damaged
            raise _Unusable(str(error)) from error
        raise _local(error, path) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def _download(place: str, output_file: str, _pooch: object, *, file: File) -> None:
    """Copy a file from a path or a URL, for pooch, whose own downloader knows no limits.

    A thread reads, so that this one can give up whatever the other side does.
    """
    from tqdm import tqdm

    pieces: queue.Queue[bytes | Exception] = queue.Queue(maxsize=64)
    threading.Thread(target=_read, args=(place, file.size, pieces), daemon=True).start()
    bar = tqdm(desc=file.name, total=file.size, unit="B", unit_scale=True, disable=None)
    due, deadline = 0.0, time.monotonic()
    with bar, open(output_file, "wb") as output:
        while True:
            if time.monotonic() >= deadline:
                if output.tell() < due:
                    raise _Unusable(f"less than {SLOWEST:,} bytes a second came for {PATIENCE} s")
                due, deadline = output.tell() + SLOWEST * PATIENCE, time.monotonic() + PATIENCE
            try:
                piece = pieces.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                continue
            if isinstance(piece, Exception):
                raise piece
            if not piece:
                return
            output.write(piece)
            bar.update(len(piece))


def _read(place: str, size: int, pieces: queue.Queue[bytes | Exception]) -> None:
    """Put a file's pieces into a queue, b"" at its end, or `_Unusable` where it cannot be read."""
    try:
        with _open(place, size) as file:
            rest, piece = size, b" "
            while piece:
                piece = file.read(PIECE)
                rest -= len(piece)
                if rest < 0:
                    raise _Unusable(f"it sends more than the {size:,} bytes of the file")
                pieces.put(piece)
    except Exception as error:
        pieces.put(error if isinstance(error, _Unusable) else _Unusable(_reason(error)))


def _open(place: str, size: int):
    """A path, a file: or an http(s) URL opened for reading."""
    parts = urlsplit(place)
    if "://" not in place or parts.scheme == "file":
        path = Path(unquote(parts.path) if parts.scheme == "file" else place).expanduser()
        if not path.parent.is_dir():
            raise _Unusable(f"{path.parent} is no folder; give its whole path")
        return open(path, "rb")
    import requests

    say(f"downloading {parts.path.rpartition('/')[2]} ({size / 1e6:,.1f} MB) from {parts.hostname}")
    host = parts.hostname or ""
    session = requests.Session()
    session.trust_env = not (host in ("localhost", "::1") or host.startswith("127."))  # no proxy
    session.adapters.clear()  # redirects elsewhere than to https find no way
    for prefix in ("https://", f"{parts.scheme}://{parts.netloc}/"):
        session.mount(prefix, requests.adapters.HTTPAdapter(max_retries=2))
    response = session.get(
        place, headers={"Accept-Encoding": "identity"}, stream=True, timeout=(10, PATIENCE)
    )
    if response.status_code != 200:
        raise _Unusable(f"the server answers {response.status_code} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _Unusable("the server sends a web page, as networks do that ask for a login first")
    return response.raw


def _reason(error: Exception) -> str:
    """What went wrong while reading, in a few words."""
    from requests import exceptions

    if isinstance(error, exceptions.SSLError):
        return f"no safe connection ({error}): are the clock and the certificates right?"
    if isinstance(error, exceptions.InvalidSchema):
        return f"it leads to a place that is not https, which anyone could alter ({error})"
    if isinstance(error, exceptions.ConnectionError | exceptions.Timeout):
        return "the server cannot be reached; is there a network?"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"the transfer broke off ({error})"


def data(names: Sequence[str] = (), check: bool = False) -> int:
    """Fetch and verify the sources of these names, print what is there; return an exit code.

    A room lists them in `SOURCES`, name -> function (or "module:function") that fetches, verifies
    and returns a path; those in its `ON_REQUEST` are left out unless they are named. With `check`
    nothing is fetched. ValueError for an unknown name.
    """
    rooms = [
        importlib.import_module(room.name)
        for room in pkgutil.iter_modules(labkit.__path__, "labkit.")
        if room.ispkg
    ]
    sources = {name: get for room in rooms for name, get in getattr(room, "SOURCES", {}).items()}
    on_request = {name for room in rooms for name in getattr(room, "ON_REQUEST", ())}
    if unknown := [name for name in names if name not in sources]:
        raise ValueError(f"unknown data set {unknown[0]!r}; there are {', '.join(sources)}")
    if check:
        os.environ["LABKIT_OFFLINE"] = "1"
        os.environ.pop("LABKIT_MIRROR", None)
    bad = []
    for name in names or [name for name in sources if name not in on_request]:
        get = sources[name]
        try:
            path = pkgutil.resolve_name(get)() if isinstance(get, str) else get()
            print(f"{name:10} sound    {machine.shown(path)}")
        except DownloadError as error:
            bad.append(name)
            print(f"{name:10} MISSING  {error}")
    if check and bad:
        print(f"Next: python -m labkit data {' '.join(bad)}, which fetches what is missing")
    return int(bool(bad))
