"""Records: what a chapter measured, written once, published whole, read by notebooks and report.

A published chapter is a folder, `results/<profile>/<chapter>/`: `record.json`, its figures, and
`SHA256SUMS` over both. The notebook hands over what it measured; the runner adds settings and code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator
from pydantic.types import JsonValue
from pydantic_core import to_json

from labkit.lab import code, machine
from labkit.lab.machine import shown
from labkit.measure.claims import Claim, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMS = "SHA256SUMS"
_started = datetime.now(UTC)

STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # pydantic's settings
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[^/]+(/[^/]+)*$")]


class Summary(BaseModel, **STRICT):
    """What `summarise` returns, and `holm`."""

    n: int
    mean: FiniteFloat
    median: FiniteFloat
    sd: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    min: FiniteFloat
    max: FiniteFloat
    statistic: Literal["mean", "median"]
    interval: str
    seeds: list[int] | None
    raw: list[FiniteFloat]
    unit: str
    timing: bool
    p_holm: FiniteFloat | None = None  # of those that `holm` compared


class FigureEntry(BaseModel, **STRICT):
    file: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*\.png$")]
    sha256: Sha256
    alt: Annotated[str, Field(min_length=1)]


class Record(BaseModel, **STRICT):
    """The form of `record.json`; every number in it is finite."""

    schema_version: Literal[2]
    chapter: Annotated[str, Field(pattern=r"^\d\d[a-z]?_\w+$")]
    profile: Literal["quick", "cpu", "full"]
    run_id: str
    about: str
    settings: dict[str, JsonValue]
    measures: dict[Name, Summary | bool | int | FiniteFloat | str | list[JsonValue]]
    claims: list[Claim]
    rows: dict[str, list[Row]]
    curves: dict[str, JsonValue]
    figures: dict[str, FigureEntry]
    data: dict[str, Sha256]
    code: dict[str, str]
    provenance: dict[str, JsonValue]
    timing: dict[str, JsonValue]

    @model_validator(mode="after")
    def _numbers_are_finite_and_claims_rest_on_measures(self) -> Record:
        code.canonical(self.model_dump())  # ValueError for NaN in lists and curves
        ids = [claim.id for claim in self.claims]
        for claim in self.claims:
            if ids.count(claim.id) > 1:
                raise ValueError(f"there are two claims {claim.id!r}")
            if missing := {*claim.evidence} - self.measures.keys():
                raise ValueError(f"claim {claim.id!r} rests on no measure {missing.pop()!r}")
        return self


# writing


def write(
    chapter: str,
    *,
    profile: str,
    measures: Mapping[str, Any],
    claims: Sequence[Claim] = (),
    rows: Mapping[str, Sequence[Row]] | None = None,
    about: str = "",
    curves: Mapping[str, Any] | None = None,
    figures: Sequence[Figure] = (),
    data: Mapping[str, str] | None = None,
) -> Path:
    """Write a chapter's record and figures; return the record's path.

    They go to where the runner wants them, without one to `results/.interactive`. Each of
    `measures` is what `summarise` returns, or one plain value. `rows` maps a heading to rows of the
    report, which shows the first of `figures` and links the others. `curves` holds lists of numbers
    at any depth, `data` is what `code.data_digests` returns. ValueError, and nothing is written,
    for NaN and infinities, for a claim whose evidence is no measure, and for anything else that is
    not of the form `Record`.
    """
    images, entries, duration = {}, {}, datetime.now(UTC) - _started
    for figure in figures:
        from labkit.measure.plots import png_bytes

        name, image = figure.labkit_name, png_bytes(figure)
        images[f"{name}.png"] = image
        digest = code.sha256(image)
        entries[name] = {"file": f"{name}.png", "sha256": digest, "alt": figure.labkit_alt}
    content = {
        "schema_version": 2,
        "chapter": chapter,
        "profile": profile,
        "run_id": os.environ.get("LABKIT_RUN_ID", "interactive"),
        "about": about,
        "settings": {},
        "measures": measures,
        "claims": claims,
        "rows": rows or {},
        "curves": curves or {},
        "figures": entries,
        "data": data or {},
        "code": {},
        "provenance": machine.provenance(),
        "timing": {"started": str(_started), "duration_seconds": duration.total_seconds()},
    }
    place = f"the record of {chapter}"
    try:  # arrays and tensors become lists
        text = to_json(content, indent=1, fallback=lambda v: v.tolist(), inf_nan_mode="constants")
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    parse(text, place)
    staging = os.environ.get("LABKIT_STAGING")
    folder = Path(staging) if staging else machine.RESULTS / ".interactive" / profile / chapter
    for name, image in images.items():
        code.write_atomically(folder / name, image)
    code.write_atomically(folder / "record.json", text)
    print(f"record of {chapter}: {len(measures)} measures, {len(images)} figures")
    return folder / "record.json"


def parse(text: bytes, place: str) -> dict[str, Any]:
    """The record in a text; ValueError that names `place` and what is wrong with it."""
    try:
        Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join([*map(str, first["loc"]), first["msg"]])
        raise ValueError(f"{place} is not sound: {where}") from None
    return json.loads(text)


# publishing


def publish(
    staging: Path, chapter: str, profile: str, run_id: str, settings: Mapping, digests: Mapping
) -> dict[str, Any]:
    """Put a chapter's staged record and figures in their place, as one folder by one rename.

    `digests` are those of the code that ran. Returns the record; ValueError unless this run wrote a
    sound one.
    """
    content = read(staging / "record.json", chapter, profile)
    if content["run_id"] != run_id:
        raise ValueError("its record is not of this run")
    content |= {"settings": dict(settings), "code": dict(digests)}
    complete, before = staging / "complete", staging / "before"
    for figure in content["figures"].values():
        image = (staging / figure["file"]).read_bytes()
        if code.sha256(image) != figure["sha256"]:
            raise ValueError(f"{figure['file']} is not the figure of its record")
        code.write_atomically(complete / figure["file"], image)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    code.write_atomically(complete / "record.json", text.encode())
    write_sums(complete, sorted(path.name for path in complete.iterdir()))
    target = machine.RESULTS / profile / chapter
    with contextlib.ExitStack() as undo:
        if target.exists():
            os.replace(target, before)
            undo.callback(os.replace, before, target)
        os.replace(complete, target)
        undo.pop_all()
    return content


def write_sums(folder: Path, names: Sequence[str]) -> None:
    """Write `SHA256SUMS`, as `sha256sum --check` reads it, over the named files of a folder."""
    lines = [f"{code.sha256((folder / name).read_bytes())}  {name}\n" for name in names]
    code.write_atomically(folder / SUMS, "".join(lines).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of a folder's `SHA256SUMS`; ValueError where a line is no such pair."""
    lines = (folder / SUMS).read_text("utf-8").splitlines()
    pairs = [re.fullmatch(r"([0-9a-f]{64})  ((?:[\w-]+/)*[\w-]+(?:\.\w+)?)", x) for x in lines]
    if not all(pairs):
        raise ValueError(f"{shown(folder / SUMS)} is damaged")
    return {pair[2]: pair[1] for pair in pairs}


# reading


def read(path: Path, chapter: str | None = None, profile: str | None = None) -> dict[str, Any]:
    """The record in a file; ValueError that names the file and what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"there is no {shown(path)}")
    content = parse(path.read_bytes(), shown(path))
    if chapter and (content["chapter"], content["profile"]) != (chapter, profile):
        raise ValueError(f"{shown(path)} is of {content['chapter']} ({content['profile']})")
    return content


def reported(chapter: str) -> dict[str, Any] | None:
    """The record that is reported: that of `full`, else of `cpu`, never of `quick`; or None."""
    for profile in machine.REPORTED:
        if (machine.RESULTS / profile / chapter).exists():
            return read(machine.RESULTS / profile / chapter / "record.json", chapter, profile)
    return None


def command(chapter: str, profile: str = "cpu") -> str:
    """The command that makes the record of a chapter."""
    return f"python -m labkit run {chapter} --profile {profile}"


def published() -> dict[str, Any]:
    """What the sources printed: data/published.toml."""
    return tomllib.loads((machine.DATA / "published.toml").read_text("utf-8"))


def show_text(record: Mapping[str, Any], text: str) -> None:
    """Display Markdown that was made from a record; the output's metadata says from which run."""
    from IPython.display import Markdown, display

    display(Markdown(text), metadata={"labkit": {"record": record["run_id"]}})


def show_claims(chapter: str, *ids: str) -> None:
    """Display the reported verdicts on the claims of these ids, on all of them without any."""
    from IPython.display import Markdown, display

    record = reported(chapter)
    if record is None:
        display(Markdown(f"No reported results yet. `{command(chapter)}` makes them."))
        return
    claims = [claim for claim in record["claims"] if not ids or claim["id"] in ids]
    rows = [(f"**{c['id']}** {c['claim']}", c["verdict"], c["reason"]) for c in claims]
    show_text(record, markdown_table(("claim", "verdict", "reason"), rows) if rows else "")


def machine_line(record: Mapping[str, Any]) -> str:
    """One line: profile, device, threads and versions of a record, in Markdown."""
    facts = record["provenance"]
    kind = f"CUDA {facts['cuda']}" if facts["cuda"] else facts["cpu_capability"] or "cpu"
    threads = f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''} a process"
    versions = "python {python}, torch {torch}".format(**facts["versions"])
    where = f"{facts['device_name']} ({kind}), {threads}, {facts['platform']}"
    return f"Profile `{record['profile']}` on {where}; {versions}."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table that no text in a cell can break."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[" ".join(str(text).split()).replace("|", "\\|") for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
