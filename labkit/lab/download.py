"""Files from a mirror or the network: whole and as expected, or not at all.

A download goes into `<name>.part` beside its place, is continued where it broke off, and takes its
name only once its SHA-256 is right. Every failure is a `DownloadError`, which says what to do next.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from labkit.lab.transfer import BY_HAND, DownloadError, Limits, LocalError, Transfer, megabytes, say

LIMITS = Limits()


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None,
    size: int | None = None,
    limits: Limits = LIMITS,
    quiet: bool = False,
    http: bool = False,
) -> Path:
    """Have the file of that SHA-256 at `path`, from there if it lies there already; return `path`.

    `size` in bytes, where known, lets a wrong file be refused before it is loaded. None as `sha256`
    takes any file: then the caller has to look at it. Plain http needs `http`, or this machine.
    DownloadError when that cannot be done; what is incomplete stays for the next call, what is
    wrong is removed.
    """
    with lock(path):
        _obtain(url, path, sha256, size, limits, quiet, http)
    return path


def fetch(
    name: str,
    url: str | None,
    path: Path,
    *,
    sha256: str | None,
    size: int | None = None,
    use: Callable[[Path], None] | None = None,
    checks_content: bool = False,
    limits: Limits = LIMITS,
    quiet: bool = False,
) -> None:
    """Get a file from `LABKIT_MIRROR` (a folder or a URL) under `name`, else from `url`.

    Without `use` the file is then at `path`. With it `use(file)` is called with the file where it
    lies: in the mirror, or at `path`. `checks_content` says that `use` raises DownloadError for
    wrong content, so that a mirror's file may have another SHA-256. A mirror that has no usable
    file is named, and the network is tried unless `LABKIT_OFFLINE` is set or `url` is None.
    """
    use = use or (lambda file: _place(file, path))
    with lock(path):
        if sha256 and path.is_file() and file_digest(path) == sha256:
            return use(path)
        mirror, no_use = os.environ.get("LABKIT_MIRROR"), ""
        if mirror:
            try:
                expected = None if checks_content else sha256
                return _from_mirror(mirror, name, path, expected, use, limits, quiet)
            except LocalError:
                raise
            except DownloadError as error:
                no_use = f", nor to be had from the mirror ({error})"
                if url is None:
                    raise
                say(f"{name}: no use of the mirror: {error}", quiet)
        if url is None:
            raise DownloadError(f"{name} can only come from a folder named in LABKIT_MIRROR")
        if offline():
            raise DownloadError(
                f"{name} is not in {path.parent}{no_use}, and LABKIT_OFFLINE forbids the network; "
                f"unset it, {BY_HAND}"
            )
        how_large = f" ({megabytes(size)})" if size else ""
        say(f"downloading {name}{how_large} from {urlsplit(url).hostname}", quiet)
        _obtain(url, path, sha256, size, limits, quiet, http=False)
        use(path)


def offline() -> bool:
    """Whether `LABKIT_OFFLINE` forbids the network."""
    return os.environ.get("LABKIT_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def file_digest(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep other processes from making `path`; makes its folder, and waits while another works."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_name(f".{path.name}.lock"), "a")  # noqa: SIM115
    except OSError as error:
        raise LocalError(
            f"cannot write to {path.parent}: {error.strerror}; make it writable, or choose another "
            "folder with LABKIT_DOWNLOADS"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that fetches {path.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# mirror


def _from_mirror(
    mirror: str,
    name: str,
    path: Path,
    sha256: str | None,
    use: Callable[[Path], None],
    limits: Limits,
    quiet: bool,
) -> None:
    if "://" in mirror:
        # a name of its own: a mirror's file may be another one than the publisher's
        copy = path.with_name(f"{path.name}.mirror")
        url = f"{mirror.rstrip('/')}/{quote(name)}"
        try:
            _obtain(url, copy, sha256, None, replace(limits, retries=1), quiet, http=True)
            use(copy)
        finally:
            copy.unlink(missing_ok=True)
            if sha256 is None:
                copy.with_name(f"{copy.name}.part").unlink(missing_ok=True)
        return
    folder = Path(mirror).expanduser()
    file = folder / name
    if not folder.is_dir():
        whole = "" if folder.is_absolute() else "; it takes the whole path"
        raise DownloadError(f"LABKIT_MIRROR={mirror} is no folder{whole}")
    if not file.is_file():
        raise DownloadError(f"there is no {file}")
    if sha256 and (found := file_digest(file)) != sha256:
        raise DownloadError(f"{file} has SHA-256 {found}, expected {sha256}")
    use(file)


def _place(file: Path, path: Path) -> None:
    """Copy a checked file to its place."""
    if file == path:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.copyfile(file, temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LocalError(f"cannot copy {file} to {path}: {error.strerror}") from error


def _obtain(
    url: str,
    path: Path,
    sha256: str | None,
    size: int | None,
    limits: Limits,
    quiet: bool,
    http: bool,
) -> None:
    """As `download`, for a caller that holds the lock."""
    if sha256 and path.is_file() and file_digest(path) == sha256:
        return
    part = path.with_name(f"{path.name}.part")
    if sha256 is None:
        part.unlink(missing_ok=True)  # nothing would tell if it were the start of another file
    transfer = Transfer(url, part, size, limits, quiet, http)
    for _ in range(2 if part.exists() else 1):  # an old part may be of another file: once anew
        transfer.run()
        found = file_digest(part)
        if sha256 in (None, found):
            os.replace(part, path)
            return
        part.unlink()
    raise DownloadError(
        f"{url}: what came has SHA-256 {found}, expected {sha256}, and was removed; it was altered "
        f"on its way or at its source: try again later, {BY_HAND}"
    )
