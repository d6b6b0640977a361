"""What holds for every chapter's notebook. Each rule is a function that returns what breaks it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable, Iterator

import nbformat
import pytest
from nbformat import NotebookNode
from nbval.plugin import get_sanitize_patterns

from labkit.lab import machine, settings
from labkit.lab.notebooks import chapters, read_notebook

CHAPTERS = chapters()
ADVICE = (
    "If you ran notebooks/{0}.ipynb and saved it: git restore notebooks/{0}.ipynb; make lab opens "
    "copies to work on. If you are its author: python -m labkit notebooks {0}"
)
MAX_LINES = 32  # of a code cell, without blank ones
SETUP = """try:
    import labkit
except ModuleNotFoundError:
    raise SystemExit(
        "This kernel is not the lab's: choose Kernel > Change Kernel > LSTM course lab."
    ) from None
"""
FORBIDDEN = re.compile(
    r"(input|exit|quit|sys\.exit|os\._exit|os\.system|os\.popen|get_ipython|torch\.load|joblib\.load"
    r"|(subprocess|pickle|dill)\..*)"
)
RULES: dict[str, Callable[[NotebookNode, str], Iterator[str]]] = {}


def rule(function: Callable) -> Callable:
    """Enter a function into RULES under its name."""
    RULES[function.__name__] = function
    return function


# reading


def code_cells(notebook: NotebookNode) -> list[tuple[str, NotebookNode]]:
    """The code cells, each with a name for messages."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(f"code cell {number}", cell) for number, cell in enumerate(cells, start=1)]


def markdown(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def calls(cell: NotebookNode) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]


# rules


@rule
def outputs_come_from_one_clean_run(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    """From top to bottom, without errors, warnings and progress bars."""
    for number, (place, cell) in enumerate(code_cells(notebook), start=1):
        if cell.execution_count != number:
            yield f"{place}: execution count {cell.execution_count}, expected {number}"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{place}: stores {output.get('evalue') or output.get('text')!r}"


@rule
def checked_cells_print(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    """A cell that nbval compares has something to compare with; some cell is compared."""
    tag = "nbval-check-output"
    checked = [pair for pair in code_cells(notebook) if tag in pair[1].metadata.get("tags", [])]
    if not checked:
        yield f"no cell is tagged {tag}"
    for place, cell in checked:
        if not any(output.get("text", "").strip() for output in cell.outputs):
            yield f"{place}: is to be checked and prints nothing"


@rule
def pictures_have_alternative_text(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    for place, cell in code_cells(notebook):
        for output in cell.outputs:
            for kind in output.get("data", {}):
                alt = output.metadata.get(kind, {}).get("alt", "")
                if kind.startswith("image/") and not alt.strip():
                    yield f"{place}: a picture ({kind}) without alternative text"
    if re.search(r"!\[\s*\]\(", markdown(notebook)):
        yield "a picture in Markdown without alternative text"


@rule
def begins_with_the_set_up(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    """A kernel that is not the lab's is told in one sentence."""
    if not code_cells(notebook)[0][1].source.startswith(SETUP):
        yield f"the first code cell does not begin with\n{SETUP}"


@rule
def plain_python(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    """No magics, shell commands, exits, questions to the keyboard, or unpickling."""
    for place, cell in code_cells(notebook):
        names = [ast.unparse(call.func) for call in calls(cell)]
        yield from (f"{place}: calls {name}" for name in names if FORBIDDEN.fullmatch(name))


@rule
def cells_are_short_and_explained(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    """Markdown stands before every code cell, but for a check, which may follow its exercise's
    answer; no cell is empty, none is long."""
    previous = None
    for cell in notebook.cells:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if not lines:
            yield "a cell is empty"
        role = cell.metadata.get("labkit", {}).get("role")
        allowed = ("answer", "markdown") if role == "check" else ("markdown",)
        if cell.cell_type == "code" and previous not in allowed:
            yield f"no markdown before the cell {cell.source[:60]!r}"
        if cell.cell_type == "code" and len(lines) > MAX_LINES:
            yield f"the cell {cell.source[:60]!r} has {len(lines)} lines, {MAX_LINES} are allowed"
        previous = "answer" if role == "answer" else cell.cell_type


@rule
def the_record_is_written_last_and_the_reported_one_shown(
    notebook: NotebookNode, chapter: str
) -> Iterator[str]:
    made = [(place, call) for place, cell in code_cells(notebook) for call in calls(cell)]
    names = [ast.unparse(call.func) for _, call in made]
    written = [
        (place, ast.literal_eval(call.args[0]))
        for (place, call), name in zip(made, names, strict=True)
        if name == "record.write"
    ]
    if written != [(code_cells(notebook)[-1][0], chapter)]:
        yield f"the last code cell must write the record of {chapter}, and no other: {written}"
    if "record.show_claims" not in names:
        yield "the reported verdicts are never shown: record.show_claims(...)"


@rule
def answers_are_folded(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    """In <details> elements that are closed in their cell, each with a summary; there are some."""
    for cell in notebook.cells:
        tags = ("<details", "</details>", "<summary>", "</summary>")
        if len({cell.source.count(tag) for tag in tags}) != 1:
            yield f"cell {cell.source[:40]!r}: <details> or <summary> is not closed"
    if "<details" not in markdown(notebook):
        yield "no question has a folded answer"


@rule
def nothing_of_a_run_or_a_draft_is_stored(notebook: NotebookNode, chapter: str) -> Iterator[str]:
    if notebook.metadata.get("kernelspec", {}).get("name") != machine.KERNEL:
        yield f"the kernel is not {machine.KERNEL}"
    for name in set(notebook.metadata) - {"kernelspec", "language_info"}:
        yield f"notebook metadata {name!r}"
    for number, cell in enumerate(notebook.cells, start=1):
        for name in {"papermill", "execution", "jupytext", "scrolled"} & set(cell.metadata):
            yield f"cell {number} has metadata {name!r}"
        if "injected-parameters" in cell.metadata.get("tags", []):
            yield f"cell {number} was injected by papermill"
        if match := re.search(r"\b(TODO|FIXME|XXX|TBD)\b", cell.source):
            yield f"cell {number} says {match.group()}"


# the chapters


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("name", RULES)
def test_chapter(chapter: str, name: str) -> None:
    notebook = read_notebook(machine.notebook(chapter))
    assert list(RULES[name](notebook, chapter)) == [], ADVICE.format(chapter)


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("profile", machine.PROFILES)
def test_every_profile_is_one_that_the_chapter_can_run(chapter: str, profile: str) -> None:
    cells = read_notebook(machine.notebook(chapter)).cells
    values = settings.resolve(chapter, cells, profile)
    assert values["profile"] == profile
    if profile == "quick":  # so that nbval, and a student, runs what quick reports
        assert values == settings.defaults(cells)


def test_every_profile_file_belongs_to_a_chapter() -> None:
    assert {p.name for p in (machine.NOTEBOOKS / "profiles").iterdir()} == {
        f"{chapter}.toml" for chapter in CHAPTERS
    }


def committed(path: str) -> bytes | None:
    """A file of the last commit, whatever was run since; the file itself where there is no git."""
    git = ["git", "-C", str(machine.ROOT)]
    if subprocess.run([*git, "rev-parse", "--verify", "HEAD"], capture_output=True).returncode == 0:
        shown = subprocess.run([*git, "show", f"HEAD:{path}"], capture_output=True)
        return None if shown.returncode else shown.stdout
    file = machine.ROOT / path
    return file.read_bytes() if file.exists() else None


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_stored_outputs_show_the_results_beside_them(chapter: str) -> None:
    stored = committed(machine.shown(machine.notebook(chapter)))
    if stored is None:  # a chapter that is being written
        pytest.skip("the chapter is not committed yet")
    notebook = nbformat.reads(stored.decode(), as_version=4)
    outputs = [output for _, cell in code_cells(notebook) for output in cell.outputs]
    shown = [output.get("metadata", {}).get("labkit", {}).get("record") for output in outputs]
    records = [committed(f"results/{p}/{chapter}/record.json") for p in machine.REPORTED]
    reported = json.loads(next(filter(None, records), b"null"))
    runs = {reported["run_id"]} if reported else set()
    stale = f"its outputs show another run: python -m labkit notebooks {chapter}"
    assert {*filter(None, shown)} == runs, stale


# what nbval leaves out of the comparison


@pytest.mark.parametrize(
    "text, sanitised",
    [
        ("<LSTM at 0x7f3a08c1d2e0>", "<LSTM at ADDRESS>"),
        ("process 4711 ended", "process PROCESS ended"),
        ("wrote /home/ada/lab/results/quick/a.json", "wrote PATH"),
        ("took 12.5 s, then 3 minutes and 40 µs", "took DURATION, then DURATION and DURATION"),
        *[(text, text) for text in ("loss 2.94443898 after 38 steps", "1/3 a / b", "2 m, 4 more")],
    ],
)
def test_only_what_differs_between_runs_is_sanitised(text: str, sanitised: str) -> None:
    rules = (machine.ROOT / "tests" / "nbval_sanitize.cfg").read_text("utf-8")
    for regex, replacement in get_sanitize_patterns(rules):
        text = re.sub(regex, replacement, text)
    assert text == sanitised
