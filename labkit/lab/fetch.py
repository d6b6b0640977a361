"""Published files: from a mirror or the network, whole and as expected, or not at all.

`LABKIT_MIRROR` names a folder or a URL that is asked first, `LABKIT_OFFLINE=1` forbids everything
but the mirror, `LABKIT_DOWNLOADS` moves the folder that the files go into.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import filelock
import pooch
import requests
from tqdm import tqdm

from labkit.lab import code, machine

PATIENCE = 60  # seconds without a byte


class DownloadError(OSError):
    """A file that cannot be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Source:
    """A file of the downloads, its SHA-256 in hexadecimal digits and its size in bytes.

    It is published at the https `urls`, or `packed_in` another file, in which `unpack` opens it. A
    mirror may pack it differently, because what is unpacked is hashed, too. No more bytes are read
    than the sizes allow.
    """

    name: str
    sha256: str
    size: int
    urls: tuple[str, ...] = ()
    packed_in: Source | None = None
    unpack: Callable[[Path], IO[bytes]] | None = None


def fetch(source: Source) -> Path:
    """The path of a source, which is fetched unless it is there with the right hash.

    Asks the folder of downloads (an archive may have been put there by hand), the mirror and the
    URLs, in this order. DownloadError names what was wrong with each of them.
    """
    path = machine.DOWNLOADS / source.name
    if _is_right(path, source):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            if not _is_right(path, source):  # no other process was faster
                _bring(source, path)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, DownloadError):
            raise
        advice = "make room there, or choose another folder with LABKIT_DOWNLOADS"
        raise DownloadError(f"cannot write {path}: {error}; {advice}") from error
    return path


def offline() -> bool:
    """Whether the network must not be used."""
    return os.environ.get("LABKIT_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def _is_right(path: Path, source: Source) -> bool:
    return path.is_file() and pooch.file_hash(str(path)) == source.sha256


def _bring(source: Source, path: Path) -> None:
    """Put a source at `path` from the first place that has it."""
    published = source.packed_in or source
    by_hand, mirror = machine.DOWNLOADS / published.name, os.environ.get("LABKIT_MIRROR", "")
    places = [str(by_hand)] if source.packed_in and by_hand.is_file() else []
    places += [f"{mirror.rstrip('/')}/{published.name}"] if mirror else []
    places += () if offline() else published.urls
    tried = [f"{path} is damaged"] if path.exists() else []
    staging = path.with_name(f".{path.name}.part")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    for place in places:
        try:
            os.replace(_fetched(place, source, published, staging), path)
            return
        except Exception as error:  # the place's fault, a wrong hash, a damaged archive
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise  # the disk is full: another place would not help
            tried.append(f"{place}: {error or repr(error)}")
            print(f"{published.name}: passed over {tried[-1]}", file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    tried += ["LABKIT_OFFLINE forbids the network"] if offline() else []
    raise DownloadError(
        f"{published.name} cannot be had ({'; '.join(tried)}). Try again later, or put it into "
        f"{machine.DOWNLOADS} by hand, or into a folder that LABKIT_MIRROR names"
    )


def _fetched(place: str, source: Source, published: Source, staging: Path) -> Path:
    """A source below `staging`, from one place, hashed before it is unpacked and after."""

    def download(place: str, output: str, _pooch: object) -> None:
        size = max(published.size, source.size)
        _copy(_open(place, size), output, size)

    pooch.get_logger().setLevel("WARNING")
    known_hash = f"sha256:{published.sha256}" if place in published.urls else None
    path = Path(pooch.retrieve(place, known_hash, published.name, staging, downloader=download))
    if source.unpack:
        packed, path = path, staging / "unpacked"
        _copy(source.unpack(packed), path, source.size)
    if not _is_right(path, source):
        raise ValueError(f"it does not hold the {source.name} that was published")
    return path


def _copy(file: IO[bytes], path: str | Path, size: int) -> None:
    """Copy an open file to a path; ValueError for more bytes than `size`."""
    bar = tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None)
    with file, open(path, "wb") as output, bar:
        while piece := file.read(2**16):
            output.write(piece)
            bar.update(len(piece))
            if output.tell() > size:
                raise ValueError(f"more bytes come than the {size:,} expected")


def _open(place: str, size: int):
    """A path, a file: or an http(s) URL opened for reading."""
    parts = urlsplit(place)
    if parts.scheme not in ("http", "https"):
        return open(unquote(parts.path) if parts.scheme == "file" else place, "rb")
    what = f"{parts.path.rpartition('/')[2]} ({size / 1e6:,.1f} MB) from {parts.hostname}"
    print(f"downloading {what}", file=sys.stderr, flush=True)
    session = requests.Session()
    session.trust_env = parts.hostname not in ("localhost", "127.0.0.1", "::1")  # proxies
    headers = {"Accept-Encoding": "identity"}
    response = session.get(place, headers=headers, stream=True, timeout=(10, PATIENCE))
    response.raise_for_status()
    return response.raw


def data(names: Sequence[str] = ()) -> int:
    """Fetch the sources of these names, else all but those on request, and verify them.

    A room's `SOURCES` names a module whose `SOURCES` maps each name to a function that returns a
    verified path; those that its `ON_REQUEST` lists have to be named. Returns an exit code.
    """
    rooms = [import_module(f"labkit.{folder.name}") for folder in code.PACKAGE.glob("[a-z]*/")]
    modules = [import_module(room.SOURCES) for room in rooms if hasattr(room, "SOURCES")]
    known = {name: get for module in modules for name, get in module.SOURCES.items()}
    on_request = {name for module in modules for name in getattr(module, "ON_REQUEST", ())}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown data set {unknown[0]!r}; there are {', '.join(sorted(known))}")
    status = 0
    for name in names or sorted(known.keys() - on_request):
        try:
            print(f"{name:10} sound    {machine.shown(known[name]())}")
        except DownloadError as error:
            status = 1
            print(f"{name:10} MISSING  {error}")
    return status
