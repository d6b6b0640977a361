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
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from labkit.lab import code, machine

PATIENCE = 60  # seconds within which a server has to send ...
SLOWEST = 1_000  # ... this many bytes for each of them


class DownloadError(OSError):
    """A file that cannot be had; the message says what was tried and what to do."""


class _Unusable(Exception):
    """One place does not have the file; the next one may."""


@dataclass(frozen=True)
class Source:
    """A file of the downloads, its SHA-256 in hexadecimal digits and its size in bytes.

    It is published at the https `urls`, or `packed_in` another file, from which `unpack` yields its
    pieces. A mirror may pack it differently, because what is unpacked is hashed, too. No more bytes
    are read than the sizes allow.
    """

    name: str
    sha256: str
    size: int
    urls: tuple[str, ...] = ()
    packed_in: Source | None = None
    unpack: Callable[[Path], Iterable[bytes]] | None = None


def fetch(source: Source) -> Path:
    """The path of a source, which is fetched unless it is there with the right hash.

    Asks the folder of downloads (an archive may have been put there by hand), the mirror and the
    URLs, in this order. DownloadError names what was wrong with each of them.
    """
    path = machine.DOWNLOADS / source.name
    if _is_right(path, source):
        return path
    published = source.packed_in or source
    with lock(path):
        if _is_right(path, source):  # another process was faster
            return path
        tried = [f"{path} is damaged"] if path.exists() else []
        for place in _places(source, published):
            try:
                return _fetch_from(place, source, path)
            except _Unusable as error:
                tried.append(f"{place}: {error}")
                say(f"{published.name}: passed over {tried[-1]}")
    if offline():
        tried.append("LABKIT_OFFLINE forbids the network")
    raise DownloadError(
        f"{published.name} cannot be had ({'; '.join(tried)}). Try again later, or put it into "
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


def _is_right(path: Path, source: Source) -> bool:
    if not path.is_file() or path.stat().st_size != source.size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == source.sha256


def _places(source: Source, published: Source) -> Iterator[str]:
    """Paths and URLs that may have a published file."""
    if published != source and (machine.DOWNLOADS / published.name).is_file():
        yield str(machine.DOWNLOADS / published.name)
    if mirror := os.environ.get("LABKIT_MIRROR", "").rstrip("/"):
        yield f"{mirror}/{quote(published.name) if '://' in mirror else published.name}"
    if not offline():
        yield from published.urls


def _fetch_from(place: str, source: Source, path: Path) -> Path:
    """Bring a source from one place, check it and put it at `path`."""
    import pooch

    published = source.packed_in or source
    by_hash = source == published or place in published.urls
    staging = path.with_name(f".{path.name}.part")
    pooch.get_logger().setLevel("WARNING")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        fetched = pooch.retrieve(
            place,
            f"sha256:{published.sha256}" if by_hash else None,
            fname=published.name,
            path=staging,
            downloader=partial(_download, size=max(published.size, source.size)),
        )
        if source.unpack:
            pieces, fetched = source.unpack(Path(fetched)), staging / "unpacked"
            with open(fetched, "wb") as output:
                for piece in pieces:
                    if output.tell() + len(piece) > source.size:
                        raise _Unusable(f"it holds more than the {source.size:,} bytes expected")
                    output.write(piece)
            if not _is_right(fetched, source):
                raise _Unusable(f"it does not hold the {source.name} that was published")
        os.replace(fetched, path)
    except _Unusable:
        raise
    except Exception as error:  # a wrong hash, or an archive that cannot be unpacked
        if isinstance(error, OSError) and error.errno:
            raise _local(error, path) from error
        raise _Unusable(str(error).partition("\n")[0] or repr(error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def _download(place: str, output_file: str, _pooch: object, *, size: int) -> None:
    """Copy a file from a path or a URL, for pooch, whose own downloader knows no limits.

    A thread reads, so that this one can give up whatever the other side does.
    """
    from tqdm import tqdm

    pieces: queue.Queue[bytes | _Unusable] = queue.Queue(maxsize=64)
    threading.Thread(target=_read, args=(place, size, pieces), daemon=True).start()
    due, deadline = 0, time.monotonic()
    with (
        tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        open(output_file, "wb") as output,
    ):
        while True:
            if time.monotonic() >= deadline:
                if output.tell() < due:
                    raise _Unusable(f"less than {SLOWEST:,} bytes a second came for {PATIENCE} s")
                due, deadline = output.tell() + SLOWEST * PATIENCE, time.monotonic() + PATIENCE
            try:
                piece = pieces.get(timeout=PATIENCE / 60)
            except queue.Empty:
                continue
            if isinstance(piece, _Unusable):
                raise piece
            if not piece:
                return
            output.write(piece)
            bar.update(len(piece))


def _read(place: str, size: int, pieces: queue.Queue[bytes | _Unusable]) -> None:
    """Put a file's pieces into a queue, b"" at its end, `_Unusable` where it cannot be read."""
    try:
        with _open(place, size) as file:
            while piece := file.read(2**15):
                size -= len(piece)
                if size < 0:
                    raise _Unusable("more bytes come than the file can have")
                pieces.put(piece)
        pieces.put(b"")
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
    headers = {"Accept-Encoding": "identity"}
    response = session.get(place, headers=headers, stream=True, timeout=(10, 2 * PATIENCE))
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
    return getattr(error, "strerror", None) or f"the transfer broke off ({error})"


def sources() -> dict[str, tuple[Callable[[], Path], bool]]:
    """Name -> a function that fetches, verifies and returns a path, and whether it is asked for.

    A room's `SOURCES` names the module whose `SOURCES`, name -> function, lists them, and whose
    `ON_REQUEST`, if it has one, those that are fetched only when they are named.
    """
    rooms = [m.name for m in pkgutil.iter_modules([str(code.PACKAGE)], "labkit.") if m.ispkg]
    places = [getattr(importlib.import_module(room), "SOURCES", None) for room in rooms]
    modules = [importlib.import_module(place) for place in places if place]
    return {
        name: (get, name in getattr(module, "ON_REQUEST", ()))
        for module in modules
        for name, get in module.SOURCES.items()
    }


def data(names: Sequence[str] = (), check: bool = False) -> int:
    """Fetch and verify the sources of these names, print what is there; return an exit code.

    With `check` nothing is fetched. ValueError for an unknown name.
    """
    known = sources()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown data set {unknown[0]!r}; there are {', '.join(known)}")
    if check:
        os.environ["LABKIT_OFFLINE"] = "1"
        os.environ.pop("LABKIT_MIRROR", None)
    bad = []
    for name in names or [name for name, (_, on_request) in known.items() if not on_request]:
        try:
            print(f"{name:10} sound    {machine.shown(known[name][0]())}")
        except DownloadError as error:
            bad.append(name)
            reason = str(error).partition("\n")[0].partition(". ")[0] if check else error
            print(f"{name:10} MISSING  {reason}")
    if check and bad:
        print(f"Next: python -m labkit data {' '.join(bad)}")
    return int(bool(bad))
