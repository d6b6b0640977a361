"""The report, rendered from the records; and whether all that is published is as it was written.

Each chapter writes its rows and claims into its record. They become a page, `REPORT.md`, and the
same as data, `report.csv`; `ro-crate-metadata.json` describes all files for an archive. The three
depend on the records alone, so rendering them again shows whether they are up to date.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from labkit.lab import code, machine, record
from labkit.lab.machine import shown
from labkit.lab.notebooks import chapters, read_notebook
from labkit.lab.record import SUMS, markdown_table, read_sums
from labkit.lab.settings import resolve
from labkit.measure.statistics import number

ROW = ("what", "published", "ours", "verdict", "reason")
NUMBERS = ("low", "high", "n")  # in the text of ours
DATA = ("chapter", "kind", "heading", *ROW[:3], *NUMBERS, *ROW[3:], "figure", "record")
OURS = re.compile(r"(?P<ours>.*?)(?: \[(?P<low>[^][]+), (?P<high>[^][]+)\])?(?:, n = (?P<n>\d+))?")
CURVE = re.compile(r"\b(epoch|step|batche)s? (\d+)(?: to (\d+))?")  # what may fold rows into one
WIDTH = 120  # of a reason on the page; the record and the data have all of it

HEAD = """\
# Published and ours

What the sources said, and what came out when we ran it again with many seeds. Each published figure
comes from one seed; ours come from as many as each row names.
[Reading the report](../docs/running.md#reading-the-report) explains the verdicts,
[report.csv](report.csv) has all rows as data. `python -m labkit report` writes both from the
records; `make verify` reports an edit by hand.
"""

FORMATS = {"md": "text/markdown", "csv": "text/csv", "json": "application/json", "png": "image/png"}
LICENCE, CRATE = "https://spdx.org/licenses/MIT", "ro-crate-metadata.json"


def render() -> dict[str, str]:
    """The report by file name: a page, data, and a crate; ValueError when a record is damaged."""
    claims, figures, sections, lines, records = [], [], [], [], []
    for chapter in chapters():
        cells = read_notebook(machine.notebook(chapter)).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        title = re.search(r"(?m)^# *(.+?) *$|\Z", text)[1] or chapter
        anchor = "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        sections.append(f"## {title}\n")
        content = record.reported(chapter)
        if content is None:
            sections.append(f"No result yet: `{record.command(chapter)}` makes it.\n")
            continue
        name, folder = chapter.partition("_")[0], f"{content['profile']}/{chapter}"
        claims += [
            (f"[{name}]({anchor})", f"**{c['id']}** {c['claim']}", f"**{c['verdict']}**", why)
            for c in content["claims"]
            for why in [deciding(c, content["measures"])]
        ]
        for figure in list(content["figures"].values())[:1]:  # the main one
            image = f'<img src="{folder}/{figure["file"]}" alt="{escape(figure["alt"])}"'
            figures.append(f'### [{title}]({anchor})\n\n{image} width="640">\n')
        sections += _section(content, folder)
        lines += data(content, folder)
        records.append(content)
    table = markdown_table(("chapter", "claim", "verdict", "decided by"), claims)
    page = [HEAD, f"## The claims\n\n{table}\n", "## A figure for each chapter\n", *figures]
    file = io.StringIO()
    writer = csv.DictWriter(file, DATA, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    text = "\n".join([*page, *sections]).rstrip() + "\n"
    pages = {"REPORT.md": text, "report.csv": file.getvalue()}
    return pages | ({CRATE: crate(pages, records)} if records else {})


def crate(pages: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> str:
    """An RO-Crate of all files: what each is, and which code made it, when and on which machine."""
    from rocrate.rocrate import ContextEntity, ROCrate

    crate = ROCrate(version="1.2")

    def file(name: str, digest: str, text: str) -> Any:
        kind = FORMATS[name.rpartition(".")[2]]
        facts = {"name": name, "description": text, "sha256": digest, "encodingFormat": kind}
        return crate.add_file(dest_path=name, properties=facts)

    def entity(id_: str, kind: str, **facts: str) -> ContextEntity:
        return crate.add(ContextEntity(crate, id_, {"@type": kind, **facts}))

    for name, text in pages.items():
        file(name, code.sha256(text.encode()), "Claims and numbers, all chapters")
    runs, ends = [], []
    for content in records:
        folder, timing = f"{content['profile']}/{content['chapter']}", content["timing"]
        start = datetime.fromisoformat(timing["started"])
        ends.append((start + timedelta(seconds=timing["duration_seconds"])).isoformat())
        digest = code.sha256((machine.RESULTS / folder / "record.json").read_bytes())
        made = [file(f"{folder}/record.json", digest, "All that was measured, and how")]
        for figure in content["figures"].values():
            made.append(file(f"{folder}/{figure['file']}", figure["sha256"], figure["alt"]))
        what = "labkit and the notebook; the identifier is of the digests in the record"
        digest = f"sha256:{code.sha256(code.canonical(content['code']))}"
        source = entity(f"#code/{folder}", "SoftwareSourceCode", name=what, identifier=digest)
        where = record.machine_line(content)
        place = entity(f"#machine/{folder}", "IndividualProduct", name=where)
        facts = {"name": record.command(content["chapter"], content["profile"])}
        facts |= {"startTime": start.isoformat(), "endTime": ends[-1]}
        run = crate.add_action([source, place], f"#run/{folder}", result=made, properties=facts)
        runs.append(run)
    crate.name = "LSTM course lab: records and report"
    crate.description = "Classroom experiments on recurrent networks, run again over many seeds"
    crate.license = entity(LICENCE, "CreativeWork", name="MIT License")
    authors = entity("#authors", "Organization", name="The LSTM course lab authors")
    crate.root_dataset["author"], crate.root_dataset["mentions"] = authors, runs
    crate.datePublished = max(ends)[:10]
    return json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False) + "\n"


def _short(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" …")


def deciding(claim: Mapping[str, Any], measures: Mapping[str, Any]) -> str:
    """In a few words what decided a claim: what was measured, its size, and what was needed."""
    reason, of_it = claim["reason"], [measures[name] for name in claim["evidence"]]
    needs = {*re.findall(r"needs (?:above|below) [\d.e+-]*\d", reason)}
    if not of_it or not all(isinstance(m, dict) for m in of_it) or len(needs) > 1:
        return _short(reason)
    first = reason.partition("[")[0]  # the first interval follows what is measured
    centres = sorted(m[m["statistic"]] for m in of_it)
    size = f"{number(centres[0])} to {number(centres[-1])} in {len(of_it)} cases"
    size = number(of_it[0]) if len(of_it) == 1 else size
    return "; ".join([f"{_short(first.rpartition(': ')[0] or first)}: {size}", *needs])


def _section(content: Mapping[str, Any], folder: str) -> Iterator[str]:
    """A chapter's part of the page."""
    if content["about"]:
        yield f"{content['about']}\n"
    yield f"Ours ([record]({folder}/record.json)): {record.machine_line(content)}\n"
    figures = content["figures"].items()
    links = [f"[{name.replace('_', ' ')}]({folder}/{f['file']})" for name, f in figures]
    if links:
        yield f"Figures: {', '.join(links)}.\n"
    if rows := [row for group in content["rows"].values() for row in group]:
        yield f"Published numbers: {len(rows)}; {_tally(rows)}.\n"
    for heading, rows in content["rows"].items():
        lines = [(*row[:-1], _short(row[-1])) for row in folded(rows)]
        yield f"### {heading}\n\n{markdown_table(('figure', *ROW[1:]), lines)}\n"


def _tally(rows: Sequence[Mapping[str, str]]) -> str:
    verdicts = Counter(row["verdict"] for row in rows).most_common()
    return ", ".join(f"{verdict} {count}" for verdict, count in verdicts)


def folded(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    """Rows as they stand on the page: those that differ only in epoch, step or batch are one.

    Such a curve shows its ends, how many of its points got which verdict, and the last reason.
    """
    curves: dict[Any, list[Mapping[str, str]]] = {}
    for index, row in enumerate(rows):
        name, places = CURVE.subn(r"\1", row["what"], count=1)
        curves.setdefault(name if places else index, []).append(row)
    return [_curve(c) if len(c) > 1 else tuple(c[0][n] for n in ROW) for c in curves.values()]


def _curve(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    first, last = rows[0], rows[-1]
    end = CURVE.search(last["what"])
    what = CURVE.sub(rf"\1s \2 to {end[3] or end[2]}", first["what"], count=1)
    published, ours = (f"{first[name]} → {last[name]}" for name in ("published", "ours"))
    return what, published, ours, _tally(rows), last["reason"]


def data(content: Mapping[str, Any], folder: str) -> Iterator[dict[str, Any]]:
    """A chapter's claims and rows, a dictionary with some of the keys `DATA` each."""
    place = {"chapter": content["chapter"], "record": f"{folder}/record.json"}
    for figure in list(content["figures"].values())[:1]:
        place["figure"] = f"{folder}/{figure['file']}"
    claims = []
    for claim in content["claims"]:
        of_it = [content["measures"][name] for name in claim["evidence"]]
        alone = len(of_it) == 1 and isinstance(of_it[0], dict)
        ours = f"{number(of_it[0])}, n = {of_it[0]['n']}" if alone else ""
        values = claim["id"], claim["claim"], ours, claim["verdict"], claim["reason"]
        claims.append(dict(zip(ROW, values, strict=True)))
    groups = [("claim", "", claims), *(("number", *group) for group in content["rows"].items())]
    for kind, heading, rows in groups:
        for row in rows:
            numbers = OURS.fullmatch(row["ours"]).groupdict()
            yield {**place, "kind": kind, "heading": heading, **row, **numbers}


def write() -> list[Path]:
    """Write the page and its data, and the digests of both and of the records that they show."""
    pages = render()
    for name, text in pages.items():
        code.write_atomically(machine.RESULTS / name, text.encode())
    sums = [folder / SUMS for folder in _published() if (folder / SUMS).exists()]
    names = [str(path.relative_to(machine.RESULTS)) for path in sums]
    record.write_sums(machine.RESULTS, [*pages, *names])
    return [machine.RESULTS / name for name in pages]


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
        else:
            reasons, again = stale_reasons(chapter, profile), record.command(chapter, profile)
            stale += [f"{chapter} ({profile}): {reason}; {again}" for reason in reasons]
    for chapter in sorted(missing):
        stale.append(f"{chapter}: nothing is reported yet; {record.command(chapter)}")
    for folder in (machine.ROOT / "benchmarks", machine.RESULTS):
        tampered += _changed(folder) if (folder / SUMS).exists() else []
    for name, text in render().items() if not tampered else ():
        path = machine.RESULTS / name
        if not path.exists() or path.read_bytes() != text.encode():
            stale.append(f"{shown(path)} is not of these records; python -m labkit report")
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
    reasons = {
        "the code has moved on": (content["code"], digests),
        "its settings are not these": (content["settings"], values),
        "the data have moved on": (content["data"], data),
    }
    moved = {
        reason: [n for n in sorted({*a, *b} - {"profile"}) if a.get(n) != b.get(n)]
        for reason, (a, b) in reasons.items()
    }
    return [f"{reason} ({_short(', '.join(names))})" for reason, names in moved.items() if names]
