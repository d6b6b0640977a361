"""The data sets that are downloaded: where they come from, where they lie, whether they are sound.

`LABKIT_MIRROR` names a folder or a URL that is asked first, `LABKIT_OFFLINE=1` forbids the network,
`LABKIT_DOWNLOADS` moves the folder that all of this goes into.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.lab import archives, digests, environment
from labkit.lab.download import fetch, file_digest, lock
from labkit.lab.transfer import DownloadError, LocalError, say

DOWNLOADS = Path(os.environ.get("LABKIT_DOWNLOADS") or environment.DATA / "downloads").resolve()

IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
IMDB_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
IMDB_SIZE = 84_125_825
IMDB_CONTENT = "cc143339df6a1f848b662a2bdc9f158f636028e69234e58742f821c6b2ab3444"
IMDB_FOLDERS = ("test/neg", "test/pos", "train/neg", "train/pos")
IMDB_FILES = 12_500  # in each of the four folders
MARKER = ".verified.json"

GLOVE_URL = "https://nlp.stanford.edu/data/glove.6B.zip"
GLOVE_SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
GLOVE_SIZE = 862_182_613
GLOVE_MEMBER = "glove.6B.100d.txt"
GLOVE_WORDS = 400_000
EXCERPT_NAME = "glove.6B.100d.head2603.txt.gz"
EXCERPT_WORDS = 2_603
EXCERPT_CONTENT = "5716444cad4cca7de836c1c2ab18bcab7f6d368051be1c583863d50f7e417223"  # unpacked

NAMES = ("imdb", "glove")


@dataclass(frozen=True)
class Status:
    """What is known of one data set on this machine.

    `state` is "sound", "missing" or "damaged"; `size` in bytes; `how` says how it was checked, or
    what is wrong.
    """

    name: str
    state: str
    path: Path
    size: int
    how: str


# Large Movie Review Dataset


def imdb(quiet: bool = False) -> Path:
    """The folder aclImdb with {train,test}/{neg,pos}/<id>_<rating>.txt, fetched where it is not.

    The 50,000 reviews are hashed when they come, and known again by a marker, by their number and
    by their size. DownloadError when they cannot be had.
    """
    folder = DOWNLOADS / "aclImdb"
    if _is_marked(folder):
        return folder
    with lock(DOWNLOADS / "imdb"):
        if _is_marked(folder):  # another process was faster
            return folder
        if folder.is_dir():
            try:
                _check_reviews(folder)  # as one unpacks it by hand
                return folder
            except DownloadError as error:
                say(f"{error}; it is made anew", quiet)
        fetch(
            "aclImdb_v1.tar.gz",
            IMDB_URL,
            DOWNLOADS / "aclImdb_v1.tar.gz",
            sha256=IMDB_SHA256,
            size=IMDB_SIZE,
            use=lambda archive: _unpack_reviews(archive, folder, quiet),
            checks_content=True,
            quiet=quiet,
        )
    return folder


def content_digest(folder: Path) -> str:
    """SHA-256 over the labelled reviews, independent of how they were packed.

    It runs over `path NUL bytes NUL` of every file in the four folders, in the order of their paths
    as plain strings; a path begins with aclImdb/, and is UTF-8.
    """
    found = hashlib.sha256()
    for name in sorted(f"{part}/{file.name}" for part, file in _review_files(folder)):
        content = (folder / name).read_bytes()
        found.update(f"aclImdb/{name}".encode() + b"\0" + content + b"\0")
    return found.hexdigest()


def _review_files(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    for part in IMDB_FOLDERS:
        if (folder / part).is_dir():
            with os.scandir(folder / part) as entries:
                for entry in entries:
                    yield part, entry


def _count(folder: Path) -> dict[str, int]:
    """Number of files in each of the four folders, and their size in all under "bytes"."""
    found = dict.fromkeys((*IMDB_FOLDERS, "bytes"), 0)
    for part, file in _review_files(folder):
        found[part] += 1
        found["bytes"] += file.stat().st_size
    return found


def _is_marked(folder: Path) -> bool:
    """Whether the folder was once verified, and is still whole as far as names and sizes tell."""
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
        return marker == {"content_sha256": IMDB_CONTENT, "files": _count(folder)}
    except (OSError, ValueError):
        return False


def _check_reviews(folder: Path) -> None:
    """Raise DownloadError where the folder does not hold the reviews; else mark it as verified."""
    files = _verify_reviews(folder)
    with contextlib.suppress(OSError):  # of a folder that is read only: hashed every time then
        marker = {"content_sha256": IMDB_CONTENT, "files": files}
        digests.write_atomically(folder / MARKER, json.dumps(marker).encode())


def _verify_reviews(folder: Path) -> dict[str, int]:
    """Count and hash the reviews; DownloadError where they are not the published ones."""
    files = _count(folder)
    for part in IMDB_FOLDERS:
        if files[part] != IMDB_FILES:
            raise DownloadError(
                f"{folder}/{part} has {files[part]:,} files, expected {IMDB_FILES:,}"
            )
    found = content_digest(folder)
    if found != IMDB_CONTENT:
        raise DownloadError(
            f"the reviews in {folder} have the content digest {found}, expected {IMDB_CONTENT}"
        )
    return files


def _unpack_reviews(archive: Path, folder: Path, quiet: bool) -> None:
    say(f"unpacking {archive.name} and checking its {4 * IMDB_FILES:,} reviews", quiet)
    kept = ("aclImdb/README", *(f"aclImdb/{part}/" for part in IMDB_FOLDERS))
    archives.unpack_tar(
        archive,
        folder,
        top="aclImdb",
        keep=lambda name: name.startswith(kept),
        check=_check_reviews,
    )


# GloVe


def glove(words: int, quiet: bool = False) -> Path:
    """A file with at least the first `words` lines of GloVe 6B 100d, the most frequent word first.

    It is plain text, or gzip with the suffix .gz. Where the whole file is not there and `words` is
    at most 2,603, a mirror's excerpt does; else the archive of 862 MB is downloaded, of which one
    file is kept. ValueError for an impossible number, DownloadError when it cannot be had.
    """
    if not isinstance(words, int) or isinstance(words, bool):
        raise TypeError(f"words must be an int, got {words!r}")
    if not 1 <= words <= GLOVE_WORDS:
        raise ValueError(f"words must be in 1..{GLOVE_WORDS:,}, which GloVe 6B has; got {words}")
    if found := _glove_there(words):
        return found
    with lock(DOWNLOADS / "glove"):
        if found := _glove_there(words):  # another process was faster
            return found
        if words <= EXCERPT_WORDS and os.environ.get("LABKIT_MIRROR"):
            try:
                return _fetch_excerpt(quiet)
            except LocalError:
                raise
            except DownloadError as error:
                say(f"no use of the mirror: {error}", quiet)
        return _fetch_glove(quiet)


def _glove_there(words: int) -> Path | None:
    """A file in the downloads that begins as GloVe does and has enough lines."""
    for path in (DOWNLOADS / GLOVE_MEMBER, DOWNLOADS / EXCERPT_NAME):
        with contextlib.suppress(OSError, EOFError, zlib.error):
            if _excerpt_digest(path) == EXCERPT_CONTENT and _has_lines(path, words):
                return path
    return None


def _open(path: Path):
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _excerpt_digest(path: Path) -> str:
    """SHA-256 over the first 2,603 lines of a plain or gzip file."""
    with _open(path) as file:
        lines = itertools.islice(file, EXCERPT_WORDS)
        return digests.sha256(b"".join(lines))


def _has_lines(path: Path, count: int) -> bool:
    with _open(path) as file:
        return any(number == count for number, _ in enumerate(file, start=1))


def _fetch_excerpt(quiet: bool = False) -> Path:
    """The excerpt from the mirror; DownloadError where there is no mirror that has it."""
    path = DOWNLOADS / EXCERPT_NAME

    def use(file: Path) -> None:
        try:
            with gzip.open(file) as packed:
                content = packed.read()
        except (OSError, EOFError, zlib.error) as error:
            raise DownloadError(f"{file} is damaged ({error}); replace it") from error
        if (found := digests.sha256(content)) != EXCERPT_CONTENT:
            raise DownloadError(
                f"{file} holds text with SHA-256 {found}, expected {EXCERPT_CONTENT}; replace it"
            )
        digests.write_atomically(path, gzip.compress(content, mtime=0))

    fetch(EXCERPT_NAME, None, path, sha256=None, use=use, checks_content=True, quiet=quiet)
    return path


def _fetch_glove(quiet: bool = False) -> Path:
    """The whole file out of Stanford's archive, which is removed then."""
    path, archive = DOWNLOADS / GLOVE_MEMBER, DOWNLOADS / "glove.6B.zip"

    def use(file: Path) -> None:
        say(f"unpacking {GLOVE_MEMBER}", quiet)
        archives.unpack_zip_member(file, GLOVE_MEMBER, path)
        digests.write_atomically(
            path.with_name(f"{path.name}.sha256"), f"{file_digest(path)}  {path.name}\n".encode()
        )

    fetch("glove.6B.zip", GLOVE_URL, archive, sha256=GLOVE_SHA256, size=GLOVE_SIZE, use=use,
          quiet=quiet)  # fmt: skip
    archive.unlink(missing_ok=True)
    return path


def glove_or_excerpt() -> Path:
    """The whole GloVe file, or where that cannot be had the excerpt, with a word on it."""
    try:
        return glove(GLOVE_WORDS)
    except DownloadError as error:
        if not (path := _glove_there(EXCERPT_WORDS)):
            try:
                path = _fetch_excerpt(quiet=True)
            except DownloadError:
                raise error from None
        say(
            f"glove: the whole file cannot be had ({error}). The excerpt of the "
            f"{EXCERPT_WORDS:,} most frequent words is there: settings that ask for more will fail"
        )
        return path


# what is there


def status(names: Sequence[str] = NAMES) -> list[Status]:
    """Look at the data sets of these names and hash them anew; fetches nothing."""
    return [{"imdb": _imdb_status, "glove": _glove_status}[name]() for name in names]


def _imdb_status() -> Status:
    folder = DOWNLOADS / "aclImdb"
    if not folder.is_dir():
        return Status("imdb", "missing", folder, 0, "")
    size = _count(folder)["bytes"]
    try:
        _verify_reviews(folder)
    except (DownloadError, OSError) as error:
        return Status("imdb", "damaged", folder, size, str(error))
    return Status("imdb", "sound", folder, size, f"all {4 * IMDB_FILES:,} reviews hashed")


def _glove_status() -> Status:
    paths = (DOWNLOADS / GLOVE_MEMBER, DOWNLOADS / EXCERPT_NAME)
    path = next((path for path in paths if path.exists()), paths[0])
    if not path.exists():
        return Status("glove", "missing", path, 0, "")
    whole = path == paths[0]
    words, sums = GLOVE_WORDS if whole else EXCERPT_WORDS, path.with_name(f"{path.name}.sha256")
    how = f"its {words:,} lines counted, the first {EXCERPT_WORDS:,} hashed"
    try:
        sound = _excerpt_digest(path) == EXCERPT_CONTENT and _has_lines(path, words)
        if whole and sums.exists():
            how = "the file hashed"
            sound = sound and file_digest(path) == sums.read_text("utf-8").split(" ")[0]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        return Status("glove", "damaged", path, path.stat().st_size, str(error))
    if not whole:
        how = f"an excerpt: its {words:,} lines hashed"
    how = how if sound else "not the content that is expected"
    return Status("glove", "sound" if sound else "damaged", path, path.stat().st_size, how)
