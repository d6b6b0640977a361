"""The command `python -m labkit data`: fetch what the chapters read, and tell what is there."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.bert import model_sources
from labkit.bert.model_folder import BERT_BASE, KNOWN, MINILM, WEIGHTS, NotThere
from labkit.lab import datasets, environment
from labkit.lab.datasets import Status
from labkit.lab.transfer import DownloadError, megabytes, say

MODELS = {"minilm": MINILM, "bert-base": BERT_BASE}
NAMES = (*datasets.NAMES, *MODELS)
ASKED_FOR = ("bert-base",)  # fetched when it is named, and not missed when it is not


def data(names: Sequence[str] = (), check: bool = False) -> int:
    """Fetch the data sets and models of these names, print what is there; return an exit code.

    Without names all are fetched but those of `ASKED_FOR`. With `check` nothing is fetched.
    ValueError for a name that there is not.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"unknown data set {name!r}; there are {', '.join(NAMES)}")
    wanted = tuple(names) or tuple(name for name in NAMES if name not in ASKED_FOR)
    for name in () if check else wanted:
        try:
            _fetch(name)
        except OSError as error:
            say(f"FAILED {name}: {error}")
    found = status(tuple(names) or NAMES)
    _print_table(found)
    bad = [s for s in found if s.state == "damaged" or (s.state == "missing" and s.name in wanted)]
    if check and bad:
        again = " ".join(s.name for s in bad)
        print(f"Next: python -m labkit data {again}, which fetches what is missing or damaged")
    return int(bool(bad))


def status(names: Sequence[str] = NAMES) -> list[Status]:
    """Look at data sets and models and hash them anew; fetches nothing."""
    return [_model_status(name) if name in MODELS else datasets.status([name])[0] for name in names]


def _fetch(name: str) -> None:
    if name in MODELS:
        model_sources.find(MODELS[name])
    elif name == "imdb":
        datasets.imdb()
    else:
        datasets.glove_or_excerpt()


def _model_status(name: str) -> Status:
    place = model_sources.place_of(KNOWN[MODELS[name]])
    try:
        found = model_sources.look(MODELS[name])
    except NotThere:
        size = megabytes(KNOWN[MODELS[name]].size)
        how = f"{size}, fetched when it is named" if name in ASKED_FOR else ""
        return Status(name, "missing", place, 0, how)
    except DownloadError as error:
        return Status(name, "damaged", place, 0, str(error))
    size = (found.folder / WEIGHTS).stat().st_size
    how = f"the weights hashed; from {found.source}"
    return Status(name, "sound", found.folder, size, how)


def _print_table(found: Sequence[Status]) -> None:
    rows = [("data set", "state", "size", "where", "how it was checked")]
    rows += [
        (s.name, s.state, megabytes(s.size) if s.size else "", _shown(s), s.how) for s in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _shown(status: Status) -> str:
    is_inside = status.path.is_relative_to(environment.ROOT)
    return str(status.path.relative_to(environment.ROOT) if is_inside else status.path)
