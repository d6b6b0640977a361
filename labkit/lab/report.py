"""The report, rendered from the records; and whether all that is published is as it was written.

Each chapter writes its rows and claims into its record; this page only sets them out. It depends on
the records alone, so rendering it again shows whether it is up to date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.lab import code, machine, record
from labkit.lab.machine import shown
from labkit.lab.notebooks import ChapterError, chapters, read_notebook
from labkit.lab.record import SUMS, cell, markdown_table, read_sums
from labkit.lab.settings import SettingsError, resolve

REPORT = "REPORT.md"

HEAD = """\
# Published and ours

`python -m labkit report` writes this page from the records beside it; an edit by hand is lost, and
`make verify` reports it. Each published figure comes from one seed; ours come from as many seeds as
each row names. [Reading the report](../docs/running.md#reading-the-report) explains the verdicts.
"""


def render() -> str:
    """The report as Markdown; ValueError when a record is damaged."""
    records = {chapter: record.reported(chapter) for chapter in chapters()}
    titles = {chapter: _title(chapter) for chapter in records}
    parts = [HEAD, _summary(records, titles)]
    for chapter, content in records.items():
        parts.append(f"## {titles[chapter]}\n")
        if content is None:
            command = f"python -m labkit run {chapter} --profile cpu"
            parts.append(f"No result yet: `{command}` makes it.\n")
            continue
        link = f"[record]({content['profile']}/{chapter}/record.json)"
        about = [content["about"]] if content["about"] else []
        parts.append("\n\n".join([*about, f"Ours ({link}): {record.machine_line(content)}\n"]))
        if content["claims"]:
            parts.append(f"### Claims\n\n{record.claims_table(content)}\n")
        parts += [_rows(heading, rows) for heading, rows in content["rows"].items()]
        parts += _images(content)
    return "\n".join(parts).rstrip() + "\n"


def write() -> Path:
    """Write `results/REPORT.md`, and the digests of it and of the records that it shows."""
    path = machine.RESULTS / REPORT
    code.write_atomically(path, render().encode())
    sums = [f"{profile}/{chapter}/{SUMS}" for profile, chapter in _published()]
    record.write_sums(machine.RESULTS, [REPORT, *sums])
    return path


def verdicts() -> str:
    """The claims of all reported chapters with their verdicts, as a table for a terminal."""
    rows = [
        (chapter, claim["id"], claim["verdict"])
        for chapter in chapters()
        for claim in (record.reported(chapter) or {"claims": []})["claims"]
    ]
    widths = [max((len(row[k]) for row in rows), default=0) for k in (0, 1)]
    return "\n".join(f"{c:<{widths[0]}}  {i:<{widths[1]}}  {v}" for c, i, v in rows)


def _title(chapter: str) -> str:
    cells = read_notebook(machine.NOTEBOOKS / f"{chapter}.ipynb").cells
    lines = (line for c in cells if c.cell_type == "markdown" for line in c.source.splitlines())
    heading = next((line[2:].strip() for line in lines if line.startswith("# ")), chapter)
    number = chapter.split("_")[0]
    return heading if heading.startswith(number) else f"{number} {heading}"


def _summary(records: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    known = {chapter: content for chapter, content in records.items() if content}
    rows = [
        (titles[chapter], claim["id"], claim["claim"], f"**{claim['verdict']}**")
        for chapter, content in known.items()
        for claim in content["claims"]
    ]
    verdicts = Counter(
        row["verdict"] for c in known.values() for group in c["rows"].values() for row in group
    )
    counts = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common())
    links = ", ".join(f"[{t}](#{_anchor(t)})" for t in titles.values())
    table = markdown_table(("chapter", "claim", "published", "verdict"), rows)
    total = f"The {verdicts.total()} rows of published numbers: {counts}."
    return f"## Summary\n\n{table}\n\n{total}\n\nChapter by chapter: {links}.\n"


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _rows(heading: str, rows: Sequence[Mapping[str, str]]) -> str:
    names = ("what", "published", "ours", "verdict", "reason")
    header = ("figure", *names[1:])
    return f"### {heading}\n\n{markdown_table(header, [[r[n] for n in names] for r in rows])}\n"


def _images(content: Mapping[str, Any]) -> list[str]:
    """The record's figures, linked relative to the report, with their alternative texts."""
    folder = f"{content['profile']}/{content['chapter']}"
    images = ["### Figures\n"] if content["figures"] else []
    for figure in content["figures"].values():
        alt = cell(figure["alt"]).replace("[", "(").replace("]", ")")
        images.append(f"![{alt}]({folder}/{figure['file']})\n")
    return images


# verification


@dataclass
class Verification:
    """What is not as written (`tampered`), and what is older than its sources (`stale`)."""

    tampered: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"tampered: {line}" for line in self.tampered]
        lines += [f"stale: {line}" for line in self.stale]
        return "\n".join(lines) or "every record, figure and page is as written and up to date"


def verify() -> Verification:
    """Hash again all that is published, and compare it with what it was made from."""
    result = Verification()
    published = _published()
    for profile, chapter in published:
        if changed := _changed(machine.RESULTS / profile / chapter):
            result.tampered += changed
        else:
            result.stale += _stale(chapter, profile)
    for profile in ("cpu", "full"):
        for path in sorted((machine.RESULTS / profile).glob("*")):
            if (profile, path.name) not in published and not path.name.startswith("."):
                result.tampered.append(f"{shown(path)} is not of the lab")
    reported = {chapter for _, chapter in published}
    for chapter in chapters():
        if chapter not in reported:
            command = f"python -m labkit run {chapter} --profile cpu"
            result.stale.append(f"{chapter}: nothing is reported yet; {command}")
    result.tampered += _changed(machine.ROOT / "benchmarks")
    _verify_report(result)
    return result


def _published() -> list[tuple[str, str]]:
    """(profile, chapter) of every published folder."""
    folders = [p for name in ("cpu", "full") for p in (machine.RESULTS / name).glob(f"*/{SUMS}")]
    return [(path.parent.parent.name, path.parent.name) for path in sorted(folders)]


def _changed(folder: Path) -> list[str]:
    """What in a folder is not as its `SHA256SUMS` says; of a chapter's, also what is not in it."""
    if not (folder / SUMS).exists():
        return []
    try:
        sums = read_sums(folder)
    except (ValueError, OSError) as error:
        return [str(error)]
    changed = []
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file():
            changed.append(f"{shown(path)} is missing")
        elif code.sha256(path.read_bytes()) != digest:
            changed.append(f"{shown(path)} is not what was written; restore it or run again")
    if folder.is_relative_to(machine.RESULTS):
        unknown = {path.name for path in folder.iterdir()} - {*sums, SUMS}
        changed += [f"{shown(folder / name)} is not in {SUMS}" for name in sorted(unknown)]
    return changed


def _verify_report(result: Verification) -> None:
    """Whether REPORT.md is as written, whole, and what the records give."""
    again = "python -m labkit report"
    if not (machine.RESULTS / SUMS).exists():
        result.stale.append(f"there is no report yet; {again}")
        return
    try:
        sums = read_sums(machine.RESULTS)
    except ValueError as error:
        result.tampered.append(str(error))
        return
    page = machine.RESULTS / REPORT
    if not page.is_file() or code.sha256(page.read_bytes()) != sums.get(REPORT):
        result.tampered.append(f"{shown(page)} is not what was written; {again}")
    for name in sorted(sums.keys() - {REPORT}):
        if not (machine.RESULTS / name).is_file():
            folder = shown((machine.RESULTS / name).parent)
            result.tampered.append(f"{folder}, which the report shows, is gone")
    if not result.tampered and page.read_text("utf-8") != render():
        result.stale.append(f"{shown(page)} is older than the records; {again}")


def _stale(chapter: str, profile: str) -> list[str]:
    if chapter not in chapters():
        return [f"{chapter} ({profile}): its notebook is gone; remove its folder of results"]
    again = f"python -m labkit run {chapter} --profile {profile}"
    return [f"{chapter} ({profile}): {r}; {again}" for r in stale_reasons(chapter, profile)]


def stale_reasons(chapter: str, profile: str, values: Mapping[str, Any] | None = None) -> list[str]:
    """In what respects a chapter's published record is not, or no longer, what a run would make.

    `values` are the parameters of that run, by default the profile's.
    """
    folder = machine.RESULTS / profile / chapter
    if not (folder / SUMS).exists():
        return ["it is not there"]
    if changed := _changed(folder):
        return changed
    try:
        content = record.load(chapter, profile)
        now = code.chapter_code(chapter)
        if values is None:
            cells = read_notebook(machine.NOTEBOOKS / f"{chapter}.ipynb").cells
            values = resolve(chapter, cells, profile)
    except (ValueError, SettingsError, ChapterError) as error:
        return [str(error)]
    then, reasons = content["code"], []
    if moved := [n for n in sorted({*now, *then}) if now.get(n) != then.get(n)]:
        more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
        reasons.append(f"the code has moved on ({', '.join(moved[:4])}{more})")
    given = content["settings"]
    names = sorted({*given, *values} - {"profile"})
    if moved := [n for n in names if given.get(n) != values.get(n)]:
        reasons.append(f"its settings are not these ({', '.join(moved)})")
    # downloads may be absent: a fresh clone has none, and they are checked when they are used
    current = {name: code.data_digest(name) for name in content["data"]}
    absent = [n for n, digest in current.items() if digest is None and n.startswith("downloads/")]
    moved = [n for n, digest in content["data"].items() if current[n] != digest and n not in absent]
    if moved:
        reasons.append(f"the data have moved on ({', '.join(moved)})")
    return reasons
