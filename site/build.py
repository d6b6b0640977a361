"""Make the site: stage the repository's pages as a reader should see them, then run Sphinx.

The staged files keep their paths in the repository, so that links from page to page are the same
there and here. Nothing is executed.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import nbformat
import translations
from nbformat import NotebookNode

from labkit.lab import handout, machine, notebooks

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
BUILD = ROOT / "build" / "site"
HIDDEN = shutil.ignore_patterns(".*")  # a run that is going on
SOLUTION = re.compile(r"(?ms)^( *)### BEGIN SOLUTION.*?### END SOLUTION$")
CODE_LINK = re.compile(r"\]\(((?:\.\./)*)labkit/(\w+)/(?:(\w+)\.py)?\)")
COLUMNS = ("chapter", "claim or number", "published", "ours", "seeds", "verdict", "why", "see")
TRANSLATED = ("heading", "what", "published", "ours", "verdict", "reason")  # of report.csv
FIRST = ("glossary", "running", "teachers")  # of the pages in docs/
FORM = """\
<form id="filters" class="filters" aria-label="{Filter the rows}" hidden>
<label>{chapter}
<select name="chapter"><option value="">{all}</option><!-- chapter --></select></label>
<label>{kind}
<select name="kind"><option value="">{all}</option><!-- kind --></select></label>
<label>{verdict}
<select name="verdict"><option value="">{all}</option><!-- group --></select></label>
<label>{seeds, at least} <input name="n" type="number" min="1" size="3"></label>
<label>{words} <input name="words" type="search"></label>
<button type="reset">{show all}</button>
<output aria-live="polite" data-text="{SHOWN of ALL rows}"></output>
</form>"""
LABEL = re.compile(r"\{(.+?)\}")
SUMMARY = re.compile(r"(?<=<summary>).+?(?=</summary>)")  # of a folded answer
SPOKEN = re.compile(r'\b_\("(.+?)"')  # the explorer's texts
Translate = Callable[[str], str]


def main(task: str = "build") -> int:
    """Build the site in both languages, with Sphinx's warnings as errors; return the status.

    With the task "translations" renew the Chinese catalogues instead, and name what they lack.
    """
    shutil.rmtree(BUILD, ignore_errors=True)
    heard: dict[str, str] = {}
    stage(BUILD / "source", lambda text: heard.setdefault(text, text))
    status = sphinx("gettext", "source", "pot")
    translations.write_template(BUILD / "pot" / "interface.pot", heard)
    if task == "translations":
        translations.renew(BUILD / "pot")
        print(*translations.lacking(BUILD / "pot"), sep="\n")
        return status
    translations.compiled(BUILD / "pot", BUILD)
    translate = translations.translator("interface")
    stage(BUILD / "zh", lambda text: translate(text) or text, "../../results/")
    return sphinx("html", "source", "html") or sphinx("html", "zh", "html/zh", "-t", "zh")


def sphinx(builder: str, source: str, target: str, *options: str) -> int:
    folders = (str(BUILD / name) for name in (f"doctrees/{target}", source, target))
    options = ("-q", "-W", "--keep-going", "-j", "2", "-c", str(SITE), "-b", builder, *options)
    return subprocess.run([sys.executable, "-m", "sphinx", *options, "-d", *folders]).returncode


def stage(source: Path, _: Translate, up: str = "") -> None:
    """Write all pages below `source`; `_` translates what Sphinx does not: explorer and table.

    The table's links to the results begin with `up`.
    """
    chapters = sorted(ROOT.glob("notebooks/**/[0-9]*.ipynb"), key=lambda path: path.stem)
    for path in chapters:
        write(source, path.relative_to(ROOT), nbformat.writes(students(path, _)))
    docs = sorted(ROOT.glob("docs/*.md"), key=lambda path: (path.stem not in FIRST, path.stem))
    extra = sorted(SITE.glob("pages/*.md"))
    pages = ("CONTRIBUTING.md", "data/README.md")
    files = ("LICENSE", "CITATION.cff", "data/published.toml", "benchmarks/intervals.json")
    for name in (*pages, *files, "results/report.csv", *(path.relative_to(ROOT) for path in docs)):
        write(source, name, (ROOT / name).read_text())
    for path in extra:
        write(source, path.name, path.read_text())
    texts = SPOKEN.findall((SITE / "static" / "explorer" / "explorer.js").read_text())
    spoken = json.dumps({text: _(text) for text in texts}, ensure_ascii=False)
    write(source, "explorer.json", spoken)
    for folder in (source, BUILD / "extra"):  # for links in Markdown, and for those of the table
        for results in filter(Path.exists, (machine.RESULTS / p for p in machine.REPORTED)):
            place = folder / results.relative_to(ROOT)
            shutil.copytree(results, place, dirs_exist_ok=True, ignore=HIDDEN)
    write(source, "results/REPORT.md", report(_, up))
    rooms = sorted(path for path in ROOT.glob("labkit/*/") if (path / "__init__.py").exists())
    for room in rooms:
        write(source, f"labkit/{room.name}.md", "\n".join(code(room)))
    trees = {
        "Chapters": [page(path) for path in chapters],
        "Results": ["results/REPORT", *(path.stem for path in extra)],
        "The lab": [*(page(path) for path in docs), *(page(ROOT / name) for name in pages)],
        "Code": [page(room) for room in rooms],
    }
    home = (ROOT / "README.md").read_text()
    write(source, "index.md", "\n".join([home, *(tree(*item) for item in trees.items())]))


def page(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def tree(caption: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```\n"])


def write(source: Path, name: Path | str, text: str) -> None:
    """Write a page; links to code lead to the page that shows it."""
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CODE_LINK.sub(_code_link, text))


def _code_link(link: re.Match[str]) -> str:
    up, room, module = link.groups()
    return f"]({up}labkit/{room}.md{f'#{module}py' if module else ''})"


def students(path: Path, _: Translate) -> NotebookNode:
    """A chapter as students get it: exercises without their solutions and what these printed."""
    notebook = notebooks.read_notebook(path)
    handout.graded(notebook)
    for cell in notebook.cells:
        cell.source = SOLUTION.sub(r"\1raise NotImplementedError  # your code here", cell.source)
        cell.source = SUMMARY.sub(lambda summary: _(summary[0]), cell.source)
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.setdefault("tags", []).append("hide-input")
    return notebook


def code(room: Path) -> Iterator[str]:
    """The page of a folder of labkit; the search leaves it out."""
    yield f"---\nnosearch: true\n---\n# labkit/{room.name}\n"
    for path in sorted(room.glob("*.py")):
        if text := path.read_text():
            yield f"## `{path.name}`\n\n````python\n{text}````\n"


def report(_: Translate, up: str) -> str:
    """The report's page: its words and figures, and its rows in one table to filter and sort."""
    results = ROOT / "results"
    head, *parts = re.split(r"(?m)^(?=## )", (results / "REPORT.md").read_text())
    with (results / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        verdict = row["verdict"].replace("shown for", "partly:")
        row["group"] = re.split(r"[;:]| (?:by|with|in|only) ", verdict)[0]
    parts = [text.partition("\n### ")[0] for text in parts[2:]]  # claims and figures are at 0 and 1
    pictures = re.findall(r"(?m)^<img .*>$", (results / "REPORT.md").read_text())
    for picture in pictures:
        folder = re.search(r'src="(.*?)/[^/]*"', picture)[1]
        parts = [f"{p}\n{picture}\n" if f"({folder}/record.json)" in p else p for p in parts]
    form, table = LABEL.sub(lambda label: _(label[1]), FORM), "\n".join(_table(rows, _, up))
    for name in ("chapter", "kind", "group"):
        values = sorted({row[name] for row in rows})
        options = (f'<option value="{v}">{_(v.replace("_", " "))}</option>' for v in values)
        form = form.replace(f"<!-- {name} -->", "".join(options))
    raw = "```{raw} html\n"
    wide = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n"
    return "\n".join(
        [wide + head, "## Claims and numbers\n", f"{raw}{form}\n```\n\n{raw}{table}\n```\n", *parts]
    )


def _table(rows: list[dict[str, str]], _: Translate, up: str) -> Iterator[str]:
    yield f'<div class="rows" tabindex="0" role="region" aria-label="{_("Claims and numbers")}">'
    yield '<table id="rows"><thead><tr>'
    yield from (f'<th scope="col">{_(column)}</th>' for column in COLUMNS)
    yield "</tr></thead><tbody>"
    for row in rows:
        r = {name: escape(_(row[name].replace("`", ""))) for name in TRANSLATED}
        interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
        name = f"<b>{r['what']}</b>" if row["kind"] == "claim" else r["what"]
        if row["heading"] not in ("", "Numbers"):
            name = f"<small>{r['heading']}</small><br>{name}"
        links = (f'<a href="{up}{row[to]}">{_(to)}</a>' for to in ("figure", "record"))
        yield (
            f'<tr data-chapter="{row["chapter"]}" data-kind="{row["kind"]}"'
            f' data-verdict="{escape(row["group"])}"><td>{row["chapter"].partition("_")[0]}</td>'
            f"<td>{name}</td><td>{r['published']}</td><td>{r['ours']}{interval}</td>"
            f"<td>{row['n']}</td><td>{r['verdict']}</td><td>{r['reason']}</td>"
            f"<td>{' '.join(links)}</td></tr>"
        )
    yield "</tbody></table></div>"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
