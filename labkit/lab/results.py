"""Records: what a chapter found, written once, read by figures, notebooks and the report.

A record is a JSON file with every reported number, its raw values, its settings and what it was
computed with. Its neighbours are offered here too: the statistics of one measurement
(`labkit.measure.statistics`), publication and verification (`labkit.lab.publication`), `labkit.lab.comparison`.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.lab import digests, environment
from labkit.lab.comparison import compare, identical
from labkit.lab.digests import code_digest, module_digest, write_atomically
from labkit.lab.publication import (
    CLAIM_KEYS,
    SCHEMA,
    Verification,
    publish,
    read_record,
    recover,
    shown,
    up_to_date,
    verify,
)
from labkit.measure.statistics import SUMMARY_KEYS, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Verification",
    "code_digest",
    "compare",
    "identical",
    "load_record",
    "module_digest",
    "publish",
    "recover",
    "reported",
    "show_reported",
    "summarise",
    "up_to_date",
    "verify",
    "write_atomically",
    "write_record",
]

REPORTED_PROFILES = ("full", "cpu")  # the first that holds a record is reported

_started = time.time()


# writing


def write_record(
    chapter: str,
    *,
    profile: str,
    settings: Mapping[str, Any],
    measures: Mapping[str, Any],
    claims: Sequence[Mapping[str, Any]] = (),
    curves: Mapping[str, Any] | None = None,
    figures: Mapping[str, Figure] | None = None,
    data: Mapping[str, str] | None = None,
) -> Path:
    """Write a chapter's record and its figures; print one line; return the record's path.

    Each of `measures` is what `summarise` returns, or a plain value (number, text, bool or nested
    list) where there is only one. A claim has the keys `CLAIM_KEYS`: `holds` is True, False or None
    (undecided), `evidence` names measures. `curves` holds lists of numbers at any depth, `figures`
    figures made by `labkit.measure.plots`, `data` the SHA-256 of each input by a name that
    `digests.data_digest` knows. Raises ValueError or TypeError, and writes nothing, for NaN and
    infinities, for what JSON cannot hold, for an unknown profile or measure, and for a figure
    without alternative text.

    The runner says where the record goes; without it, that is `results/.interactive/<profile>`.
    """
    if not re.fullmatch(r"\d\d_\w+", chapter):
        raise ValueError(f"chapter must be named like '01_lstm_operator', got {chapter!r}")
    if profile not in environment.PROFILE_NAMES:
        allowed = ", ".join(environment.PROFILE_NAMES)
        raise ValueError(f"profile must be one of {allowed}; got {profile!r}")
    measures = {name: _measure(name, value) for name, value in measures.items()}
    images = {name: _png(name, figure) for name, figure in (figures or {}).items()}
    record = {
        "schema": SCHEMA,
        "chapter": chapter,
        "profile": profile,
        "run_id": os.environ.get("LABKIT_RUN_ID", "interactive"),
        "settings": plain(settings, "settings"),
        "measures": measures,
        "claims": _claims(claims, measures),
        "curves": plain(curves or {}, "curves"),
        "figures": {
            name: _figure_entry(f"figures/{chapter}_{name}.png", figures[name], content)
            for name, content in images.items()
        },
        "data": plain(data or {}, "data"),
        "provenance": environment.provenance() | _code_provenance(chapter),
        "timing": _timing(),
    }
    path = _write_files(record, images)
    print(f"record of {chapter}: {len(measures)} measures, {len(images)} figures")
    return path


def _write_files(record: Mapping[str, Any], images: Mapping[str, bytes]) -> Path:
    """Write the figures, then the record; return the record's path."""
    content = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    folder = _folder(record["profile"])
    for name, image in images.items():
        write_atomically(folder / record["figures"][name]["file"], image)
    path = folder / f"{record['chapter']}.json"
    write_atomically(path, content.encode())
    return path


def _figure_entry(file: str, figure: Figure, content: bytes) -> dict[str, str]:
    return {"file": file, "sha256": digests.sha256(content), "alt": figure.labkit_alt}


def _timing() -> dict[str, Any]:
    started = datetime.fromtimestamp(_started, UTC).isoformat(timespec="seconds")
    return {"started": started, "duration_seconds": round(time.time() - _started, 3)}


def _folder(profile: str) -> Path:
    staging = os.environ.get("LABKIT_STAGING")
    return Path(staging) if staging else environment.RESULTS / ".interactive" / profile


def _code_provenance(chapter: str) -> dict[str, Any]:
    """Digests of the code that ran; a file that was edited meanwhile is marked, never to match."""
    parts = digests.code_parts(chapter)
    before = json.loads(os.environ.get("LABKIT_CODE", "null")) or parts
    parts = {n: d if before.get(n) == d else "edited during the run" for n, d in parts.items()}
    return {
        "code": digests.sha256(digests.canonical(parts)),
        "notebook": parts.pop("notebook"),
        "modules": parts,
        "lock": digests.lock_digest(),
    }


def plain(value: Any, place: str) -> Any:
    """The same value in JSON's own types; an error names the `place` of what JSON cannot hold."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value!r}; a record holds finite numbers only")
        return value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{place} has the key {name!r}; keys must be text")
        return {name: plain(item, f"{place}/{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{place} is of type {type(value).__name__}; allowed are numbers, text, bools, None, lists "
        "and mappings of these"
    )


def _measure(name: str, value: Any) -> Any:
    if not name or not all(name.split("/")):
        raise ValueError(f"measure {name!r}: a name is a path such as 'speed/naive_seconds'")
    value = plain(value, f"measure {name!r}")
    if value is None or (isinstance(value, dict) and value.keys() != SUMMARY_KEYS):
        raise TypeError(f"measure {name!r} must come from summarise, or be one plain value")
    return value


def _claims(claims: Iterable[Mapping[str, Any]], measures: Mapping[str, Any]) -> list[dict]:
    checked: list[dict] = []
    for claim in claims:
        if set(claim) != set(CLAIM_KEYS):
            raise ValueError(f"a claim has the keys {', '.join(CLAIM_KEYS)}; got {list(claim)}")
        place = f"claim {claim['id']!r}"
        if claim["id"] in [other["id"] for other in checked]:
            raise ValueError(f"{place} is there twice")
        if not (claim["holds"] is None or isinstance(claim["holds"], bool | np.bool_)):
            raise TypeError(f"{place}: holds must be True, False or None, got {claim['holds']!r}")
        unknown = [name for name in claim["evidence"] if name not in measures]
        if unknown:
            raise ValueError(f"{place}: its evidence names no measure: {', '.join(unknown)}")
        checked.append({key: plain(claim[key], f"{place}, {key}") for key in CLAIM_KEYS})
    return checked


def _png(name: str, figure: Figure) -> bytes:
    """The figure as PNG; ValueError for a name or a figure that a record cannot hold."""
    from labkit.measure.plots import png_bytes

    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"figure name {name!r}: use letters, digits and underscores")
    if not getattr(figure, "labkit_alt", "").strip() or not hasattr(figure, "labkit_name"):
        raise ValueError(
            f"figure {name!r} has no alternative text; make it with labkit.measure.plots"
        )
    return png_bytes(figure)


# reading


def load_record(chapter: str, profile: str) -> dict[str, Any]:
    """The published record of a chapter; ValueError where there is none or it is damaged."""
    path = environment.RESULTS / profile / f"{chapter}.json"
    if not path.exists():
        raise ValueError(
            f"{shown(path)} does not exist; make it with "
            f"python -m labkit run {chapter} --profile {profile}"
        )
    return read_record(path, chapter, profile)


def reported(chapter: str) -> dict[str, Any] | None:
    """The record that is reported: that of `full`, else of `cpu`, never of `quick`; or None."""
    for profile in REPORTED_PROFILES:
        if (environment.RESULTS / profile / f"{chapter}.json").exists():
            return load_record(chapter, profile)
    return None


def show_reported(chapter: str, measures: Sequence[str] | None = None) -> None:
    """Display what the reported run of a chapter found: its machine, claims, numbers and figures.

    `measures` chooses by name, or by the beginning of a path ("published/lstm"); by default all
    single numbers and summaries are shown. Where nothing is reported yet, one line says which
    command makes it. ValueError for a name that no measure has.
    """
    from IPython.display import Image, Markdown, display

    record = reported(chapter)
    if record is None:
        command = f"python -m labkit run {chapter} --profile cpu"
        display(Markdown(f"No reported results yet. `{command}` makes them."))
        return

    display(Markdown(f"{machine_line(record)}\n\n{claims_table(record)}".rstrip()))
    for name, figure in record["figures"].items():
        content = (environment.RESULTS / record["profile"] / figure["file"]).read_bytes()
        if digests.sha256(content) != figure["sha256"]:
            raise ValueError(f"{figure['file']} is not what the run wrote; see make verify")
        display(Image(content, format="png", width=800, alt=figure["alt"]))
        display(Markdown(f"*{name}*: {figure['alt']}"))
    display(Markdown(_measures_table(record, measures)))


def machine_line(record: Mapping[str, Any]) -> str:
    """One line: profile, device, threads and versions of a record, in Markdown."""
    found = record["provenance"]
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''} a process"
    device = found["device_name"]
    if found["cuda"]:
        device += f" (CUDA {found['cuda']})"
    elif found["cpu_capability"]:
        device += f" ({found['cpu_capability']})"
    versions = found["versions"]
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "torch") if name in versions
    )
    return f"Profile `{record['profile']}` on {device}, {threads}, {found['platform']}; {named}."


def claims_table(record: Mapping[str, Any]) -> str:
    """The claims of a record with their verdicts and reasons, in Markdown; "" without any."""
    if not record["claims"]:
        return ""
    rows = ["| claim | verdict | reason |", "|---|---|---|"]
    for claim in record["claims"]:
        parts = (f"**{claim['id']}** {claim['claim']}", claim["verdict"], claim["reason"])
        rows.append(f"| {' | '.join(map(cell, parts))} |")
    return "\n".join(rows)


def _measures_table(record: Mapping[str, Any], wanted: Sequence[str] | None) -> str:
    chosen = dict(record["measures"])
    if wanted is not None:
        names = []
        for want in wanted:
            found = [n for n in chosen if n == want or n.startswith(f"{want.rstrip('/')}/")]
            if not found:
                raise ValueError(f"{record['chapter']} has no measure {want!r}")
            names += found
        chosen = {name: chosen[name] for name in names}
    rows = ["| measure | value [95 % interval] | n |", "|---|---|---|"]
    for name, value in chosen.items():
        n = value["n"] if isinstance(value, dict) else 1
        rows.append(f"| `{name}` | {cell(number(value))} | {n} |")
    table = "\n".join(rows)
    return f"<details><summary>{len(chosen)} measures</summary>\n\n{table}\n\n</details>"


def number(value: Any) -> str:
    """A measure as text: a summary with its interval, a single value as it is."""
    if isinstance(value, dict):
        centre = f"{number(value[value['statistic']])} {value['unit']}".strip()
        if value["statistic"] == "median":
            centre = f"median {centre}"
        if value["low"] is None:
            return centre
        return f"{centre} [{number(value['low'])}, {number(value['high'])}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"
    if isinstance(value, list):
        return f"[{', '.join(number(item) for item in value)}]"
    return str(value)


def cell(text: str) -> str:
    """Text that cannot break a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|")
