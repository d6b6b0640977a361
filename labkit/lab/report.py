"""The report, rendered from the records; and whether all that is published is as it was written.

Each chapter writes its rows and claims into its record; this page only sets them out. It depends on
the records alone, so rendering it again shows whether it is up to date.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.lab import code, machine, record
from labkit.lab.machine import shown
from labkit.lab.notebooks import chapters, read_notebook
from labkit.lab.record import SUMS, markdown_table, read_sums
from labkit.lab.settings import resolve

REPORT = "REPORT.md"
ROW = ("what", "published", "ours", "verdict", "reason")

HEAD = """\
# Published and ours

`python -m labkit report` writes this page from the records beside it; an edit by hand is lost, and
`make verify` reports it. Each published figure comes from one seed; ours come from as many seeds as
each row names. [Reading the report](../docs/running.md#reading-the-report) explains the verdicts.
"""


def render() -> str:
    """The report as Markdown; ValueError when a record is damaged."""
    titles = {}
    for chapter in chapters():
        cells = read_notebook(machine.notebook(chapter)).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        titles[chapter] = re.search(r"(?m)^# *(.+?) *$|\Z", text)[1] or chapter
    records = {chapter: record.reported(chapter) for chapter in titles}
    parts = [HEAD, _summary(records, titles)]
    for chapter, content in records.items():
        parts.append(f"## {titles[chapter]}\n")
        if content is None:
            parts.append(f"No result yet: `{record.command(chapter)}` makes it.\n")
            continue
        link = f"[record]({content['profile']}/{chapter}/record.json)"
        about = [content["about"]] if content["about"] else []
        parts.append("\n\n".join([*about, f"Ours ({link}): {record.machine_line(content)}\n"]))
        if content["claims"]:
            parts.append(f"### Claims\n\n{record.claims_table(content)}\n")
        for heading, rows in content["rows"].items():
            table = markdown_table(("figure", *ROW[1:]), [[row[n] for n in ROW] for row in rows])
            parts.append(f"### {heading}\n\n{table}\n")
        parts += ["### Figures\n"] * bool(content["figures"])
        for figure in content["figures"].values():
            alt = " ".join(figure["alt"].split()).replace("[", "(").replace("]", ")")
            parts.append(f"![{alt}]({content['profile']}/{chapter}/{figure['file']})\n")
    return "\n".join(parts).rstrip() + "\n"


def write() -> Path:
    """Write `results/REPORT.md`, and the digests of it and of the records that it shows."""
    path = machine.RESULTS / REPORT
    code.write_atomically(path, render().encode())
    sums = [folder / SUMS for folder in _published() if (folder / SUMS).exists()]
    names = [str(path.relative_to(machine.RESULTS)) for path in sums]
    record.write_sums(machine.RESULTS, [REPORT, *names])
    return path


def _summary(records: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    known = {titles[chapter]: content for chapter, content in records.items() if content}
    rows = [
        (title, claim["id"], claim["claim"], f"**{claim['verdict']}**")
        for title, content in known.items()
        for claim in content["claims"]
    ]
    groups = [group for content in known.values() for group in content["rows"].values()]
    verdicts = Counter(row["verdict"] for group in groups for row in group)
    counts = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common())
    anchors = {t: re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles.values()}
    links = ", ".join(f"[{title}](#{anchor})" for title, anchor in anchors.items())
    table = markdown_table(("chapter", "claim", "published", "verdict"), rows)
    total = f"The {verdicts.total()} rows of published numbers: {counts}."
    return f"## Summary\n\n{table}\n\n{total}\n\nChapter by chapter: {links}.\n"


def verify() -> list[str]:
    """Hash again all that is published, and compare it with what it was made from.

    Each line begins with "tampered: ", for what is not as written, or "stale: ", for what is older
    than its sources.
    """
    tampered, stale, missing = [], [], {*chapters()}
    for folder in _published():
        profile, chapter = folder.parent.name, folder.name
        missing -= {chapter}
        if changed := _changed(folder, complete=True):
            tampered += changed
        elif chapter not in chapters():
            gone = "its notebook is gone; remove its folder of results"
            stale.append(f"{chapter} ({profile}): {gone}")
        else:
            reasons, again = stale_reasons(chapter, profile), record.command(chapter, profile)
            stale += [f"{chapter} ({profile}): {reason}; {again}" for reason in reasons]
    for chapter in sorted(missing):
        stale.append(f"{chapter}: nothing is reported yet; {record.command(chapter)}")
    for folder in (machine.ROOT / "benchmarks", machine.RESULTS):
        tampered += _changed(folder) if (folder / SUMS).exists() else []
    page = machine.RESULTS / REPORT
    if not page.exists():
        stale.append("there is no report yet; python -m labkit report")
    elif not tampered and page.read_text("utf-8") != render():
        stale.append(f"{shown(page)} is older than the records; python -m labkit report")
    return [f"tampered: {line}" for line in tampered] + [f"stale: {line}" for line in stale]


def _published() -> list[Path]:
    """The folders of all published chapters, and what else lies among them."""
    return sorted(path for p in machine.REPORTED for path in (machine.RESULTS / p).glob("[!.]*"))


def _changed(folder: Path, complete: bool = False) -> list[str]:
    """What in a folder is not as its `SHA256SUMS` says; if `complete`, also what is not in it."""
    if not (folder / SUMS).exists():
        return [f"{shown(folder)} is not of the lab"]
    try:
        sums = read_sums(folder)
    except (ValueError, OSError) as error:
        return [str(error)]
    changed = []
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file():
            changed.append(f"{shown(path)} is missing")
        elif path.name != SUMS and code.sha256(path.read_bytes()) != digest:
            changed.append(f"{shown(path)} is not what was written; restore it or make it anew")
    if complete:
        unknown = {path.name for path in folder.iterdir()} - {*sums, SUMS}
        changed += [f"{shown(folder / name)} is not in {SUMS}" for name in sorted(unknown)]
    return changed


def stale_reasons(chapter: str, profile: str, values: Mapping[str, Any] | None = None) -> list[str]:
    """In what respects a chapter's published record is not, or no longer, what a run would make.

    `values` are the parameters of that run, by default the profile's.
    """
    folder = machine.RESULTS / profile / chapter
    if not (folder / SUMS).exists():
        return ["it is not there"]
    if changed := _changed(folder, complete=True):
        return changed
    try:
        content = record.read(folder / "record.json", chapter, profile)
        digests = code.chapter_code(chapter)
        if values is None:
            cells = read_notebook(machine.notebook(chapter)).cells
            values = resolve(chapter, cells, profile)
    except ValueError as error:
        return [str(error)]
    # downloads may be absent: a fresh clone has none, and they are checked when they are used
    data = {name: code.data_digest(name) for name in content["data"]}
    data |= {n: content["data"][n] for n in data if not data[n] and n.startswith("downloads/")}
    reasons = []
    for what, then, now in (
        ("the code has moved on", content["code"], digests),
        ("its settings are not these", content["settings"], values),
        ("the data have moved on", content["data"], data),
    ):
        names = sorted({*then, *now} - {"profile"})
        if moved := [name for name in names if then.get(name) != now.get(name)]:
            names = textwrap.shorten(", ".join(moved), 150, placeholder=" ...")
            reasons.append(f"{what} ({names})")
    return reasons
