"""Lints over the notebooks. Each is a function over a notebook that returns what it found.

A made-up notebook that is in order passes them all; for every lint there is a way to spoil it that
this lint, and no other, finds.
"""

import ast
import base64
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

import nbformat
import pytest
from nbformat import NotebookNode, v4
from nbval.plugin import get_sanitize_patterns

from labkit.lab import environment, results
from labkit.lab.parameters import ParameterError, check, read_parameters, read_settings

Lint = Callable[[NotebookNode, str], list[str]]

CHAPTERS = environment.CHAPTERS
MODULES = sorted((environment.ROOT / "labkit").glob("*.py"))
LINTS: dict[str, Lint] = {}
MAX_LINES = 25
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|TBD)\b")
FORBIDDEN_CALLS = {
    "input", "exit", "quit", "sys.exit", "os._exit", "os.system", "os.popen", "get_ipython",
    "subprocess.run", "subprocess.call", "subprocess.check_output", "subprocess.Popen",
}  # fmt: skip


def lint(function: Lint) -> Lint:
    """Enter a function into LINTS under its name."""
    LINTS[function.__name__] = function
    return function


# reading


def code_cells(notebook: NotebookNode) -> list[tuple[str, NotebookNode]]:
    """The code cells, each with a name for messages."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(f"code cell {number}", cell) for number, cell in enumerate(cells, start=1)]


def syntax(cell: NotebookNode) -> ast.Module | None:
    """The cell's syntax tree, or None where it is not plain Python (magics, shell commands)."""
    try:
        return compile(
            cell.source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
    except SyntaxError:
        return None


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def public_definitions() -> tuple[set[str], set[str]]:
    """The names of labkit's public functions, and of its public classes."""
    body = [node for path in MODULES for node in ast.parse(path.read_text("utf-8")).body]
    functions = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    return tuple({name for name in names if name[0] != "_"} for names in (functions, classes))


def imported_names(trees: list[ast.Module]) -> set[str]:
    """The names under which these cells import from labkit."""
    return {
        alias.asname or alias.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "labkit"
        for alias in node.names
    }


# lints


@lint
def sequential_counts(notebook: NotebookNode, chapter: str) -> list[str]:
    """Stored outputs come from one run from top to bottom."""
    return [
        f"{place}: execution count {cell.execution_count}, expected {number}"
        for number, (place, cell) in enumerate(code_cells(notebook), start=1)
        if cell.execution_count != number
    ]


@lint
def no_errors(notebook: NotebookNode, chapter: str) -> list[str]:
    return [
        f"{place}: stores the error {output.ename}: {output.evalue}"
        for place, cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error"
    ]


@lint
def no_stderr(notebook: NotebookNode, chapter: str) -> list[str]:
    return [
        f"{place}: stores text from stderr: {output.text[:60]!r}"
        for place, cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


@lint
def checked_cells_print(notebook: NotebookNode, chapter: str) -> list[str]:
    """A cell that nbval is to compare has something to compare with; some cell is compared."""
    checked = [item for item in code_cells(notebook) if has_tag(item[1], "nbval-check-output")]
    found = [] if checked else ["no cell is tagged nbval-check-output"]
    for place, cell in checked:
        texts = [output.get("text", "") for output in cell.outputs]
        texts += [str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
        if not "".join(texts).strip():
            found.append(f"{place}: is to be checked and stores no output")
    return found


@lint
def pictures_have_alternative_text(notebook: NotebookNode, chapter: str) -> list[str]:
    found = []
    for place, cell in code_cells(notebook):
        for output in cell.outputs:
            kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            for kind in kinds:
                alt = output.get("metadata", {}).get(kind, {}).get("alt", "")
                if not (isinstance(alt, str) and alt.strip()):
                    found.append(f"{place}: a picture ({kind}) without alternative text")
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(", cell.source):
            found.append(f"markdown {cell.source[:40]!r}: a picture without alternative text")
    return found


@lint
def one_parameters_cell(notebook: NotebookNode, chapter: str) -> list[str]:
    """One cell of annotated plain values, `profile` among them and "quick" by default."""
    try:
        parameters = read_parameters(notebook.cells, chapter)
    except ParameterError as error:
        return [str(error)]
    if "profile" not in parameters or parameters["profile"].default != "quick":
        return ["the parameters cell lacks the line 'profile: str = \"quick\"'"]
    return []


@lint
def no_shell(notebook: NotebookNode, chapter: str) -> list[str]:
    """Plain Python only: no magics, shell commands, exits or questions to the keyboard."""
    found = []
    for place, cell in code_cells(notebook):
        tree = syntax(cell)
        if tree is None:
            found.append(f"{place}: is not plain Python: {cell.source[:60]!r}")
            continue
        names = [name for name, _ in calls(tree) if name in FORBIDDEN_CALLS]
        found += [f"{place}: calls {name}" for name in names]
    return found


@lint
def no_redefinition(notebook: NotebookNode, chapter: str) -> list[str]:
    """What labkit defines is imported, never written a second time.

    A `def`, a `class` or a named lambda may not take any public name of labkit, and no assignment
    the name of a labkit class or one imported from labkit. A plain variable may: `device`, say.
    """
    functions, classes = public_definitions()
    trees = [(place, syntax(cell)) for place, cell in code_cells(notebook)]
    trees = [(place, tree) for place, tree in trees if tree is not None]
    kept = classes | imported_names([tree for _, tree in trees])
    found = []
    for place, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = {node.name} & (functions | classes)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                names = {ast.unparse(target) for target in node.targets} & functions
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names = {node.id} & kept
            else:
                continue
            found += [f"{place}: redefines {name} of labkit" for name in names]
    return found


@lint
def no_unpickling(notebook: NotebookNode, chapter: str) -> list[str]:
    trees = [(place, syntax(cell)) for place, cell in code_cells(notebook)]
    return [
        f"{place}: calls {name}, which unpickles"
        for place, tree in trees
        if tree is not None
        for name, _ in calls(tree)
        if name in ("torch.load", "joblib.load") or name.startswith(("pickle.", "dill."))
    ]


@lint
def markdown_before_code(notebook: NotebookNode, chapter: str) -> list[str]:
    before = [None, *notebook.cells[:-1]]
    return [
        f"no markdown before the cell {cell.source[:60]!r}"
        for previous, cell in zip(before, notebook.cells, strict=True)
        if cell.cell_type == "code"
        and (previous is None or previous.cell_type != "markdown" or not previous.source.strip())
    ]


@lint
def short_cells(notebook: NotebookNode, chapter: str) -> list[str]:
    """Blank lines are not counted."""
    return [
        f"{place}: has {lines} lines, {MAX_LINES} are allowed"
        for place, cell in code_cells(notebook)
        if (lines := sum(map(bool, map(str.strip, cell.source.splitlines())))) > MAX_LINES
    ]


@lint
def no_empty_cells(notebook: NotebookNode, chapter: str) -> list[str]:
    return [
        f"cell {number} is empty"
        for number, cell in enumerate(notebook.cells, start=1)
        if not cell.source.strip()
    ]


@lint
def last_cell_writes_the_record(notebook: NotebookNode, chapter: str) -> list[str]:
    """The last code cell writes the chapter's record, and no other cell does."""
    cells = code_cells(notebook)
    writers = []
    for place, cell in cells:
        for name, call in calls(syntax(cell) or ast.Module([], [])):
            if name.rpartition(".")[2] == "write_record":
                writers.append(place)
                named = call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value
                if named and named != chapter:
                    return [f"{place}: writes the record of {named}"]
    expected = [cells[-1][0]] if cells else ["the last code cell"]
    return [] if writers == expected else [f"write_record is called in {writers}, not {expected}"]


@lint
def reported_results_are_shown(notebook: NotebookNode, chapter: str) -> list[str]:
    headings = re.findall(r"(?m)^##? (.+)$", markdown(notebook))
    found = []
    if "Reported results" not in headings[-2:]:
        found.append("the last section is not 'Reported results'")
    names = [name for _, c in code_cells(notebook) for name, _ in calls(syntax(c) or ast.Module())]
    if not any(name.rpartition(".")[2] == "show_reported" for name in names):
        found.append("results.show_reported is never called")
    return found


@lint
def questions_have_folded_answers(notebook: NotebookNode, chapter: str) -> list[str]:
    """Answers lie in well-formed <details> elements, each with a summary, and there are some."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = cell.source
            counts = [text.count(tag) for tag in ("<details", "</details>", "<summary>")]
            counts.append(text.count("</summary>"))
            if len(set(counts)) != 1:
                found.append(f"markdown {text[:40]!r}: <details> or <summary> is not closed")
    if "<details" not in markdown(notebook):
        found.append("no question has a folded answer")
    return found


@lint
def no_run_metadata(notebook: NotebookNode, chapter: str) -> list[str]:
    """Nothing of papermill, of jupytext or of one machine is stored."""
    allowed = {"kernelspec", "language_info"}
    found = [f"notebook metadata {name!r}" for name in sorted(set(notebook.metadata) - allowed)]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not named python3")
    for number, cell in enumerate(notebook.cells, start=1):
        extra = {"papermill", "execution", "jupytext"} & set(cell.metadata)
        found += [f"cell {number} has metadata {name!r}" for name in sorted(extra)]
        if has_tag(cell, "injected-parameters"):
            found.append(f"cell {number} was injected by papermill")
    return found


@lint
def nothing_unfinished(notebook: NotebookNode, chapter: str) -> list[str]:
    return [
        f"cell {number} says {match.group()}"
        for number, cell in enumerate(notebook.cells, start=1)
        for match in UNFINISHED.finditer(cell.source)
    ]


def markdown(notebook: NotebookNode) -> str:
    """All markdown of a notebook as one text."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


# the chapters


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("name", LINTS)
def test_chapter(chapter: str, name: str) -> None:
    path = environment.NOTEBOOKS / f"{chapter}.ipynb"
    assert LINTS[name](nbformat.read(path, as_version=4), chapter) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_is_a_valid_notebook(chapter: str) -> None:
    nbformat.validate(nbformat.read(environment.NOTEBOOKS / f"{chapter}.ipynb", as_version=4))


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("profile", environment.PROFILE_NAMES)
def test_settings_fit_the_parameters_cell(chapter: str, profile: str) -> None:
    notebook = nbformat.read(environment.NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    parameters = read_parameters(notebook.cells, chapter)
    path = environment.PROFILES / profile / f"{chapter}.json"
    check(read_settings(path, str(path)), parameters, chapter, str(path))


@pytest.mark.parametrize("profile", environment.PROFILE_NAMES)
def test_every_settings_file_belongs_to_a_chapter(profile: str) -> None:
    stems = {path.stem for path in (environment.PROFILES / profile).iterdir()}
    assert stems == set(CHAPTERS)


# the lints themselves


def sound_notebook() -> NotebookNode:
    """A small notebook that is in order."""
    tagged = {"tags": ["parameters"]}
    checked = {"tags": ["nbval-check-output"]}
    alt = {"image/png": {"alt": "a line that rises"}}
    picture = v4.new_output("display_data", data={"image/png": "iVBORw0KGgo="}, metadata=alt)
    printed = v4.new_output("stream", name="stdout", text="(2, 3)\n")
    answer = "Why?\n\n<details><summary>Answer</summary>\n\nBecause.\n\n</details>"
    cells = [
        v4.new_markdown_cell("# A chapter"),
        v4.new_code_cell("from labkit import results, recurrent"),
        v4.new_markdown_cell("The parameters."),
        v4.new_code_cell('profile: str = "quick"\nseeds: int = 2', metadata=tagged),
        v4.new_markdown_cell("Look at the shape."),
        v4.new_code_cell("print((2, 3))", metadata=checked, outputs=[printed]),
        v4.new_markdown_cell("Look at the slope."),
        v4.new_code_cell("width = 3", outputs=[picture]),
        v4.new_markdown_cell(answer),
        v4.new_markdown_cell("## Reported results"),
        v4.new_code_cell('results.show_reported("00_sample")'),
        v4.new_markdown_cell("The record."),
        v4.new_code_cell('results.write_record("00_sample", profile=profile, settings={})'),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    for number, (_, cell) in enumerate(code_cells(notebook), start=1):
        cell.execution_count = number
    return notebook


def replace(index: int, **values: object) -> Callable[[NotebookNode], None]:
    """A spoiler that sets attributes of one code cell."""

    def spoil(notebook: NotebookNode) -> None:
        code_cells(notebook)[index][1].update(values)

    return spoil


def drop_markdown(text: str) -> Callable[[NotebookNode], None]:
    """A spoiler that removes the markdown cells that hold `text`."""

    def spoil(notebook: NotebookNode) -> None:
        notebook.cells = [
            c for c in notebook.cells if c.cell_type == "code" or text not in c.source
        ]

    return spoil


def add_markdown(text: str) -> Callable[[NotebookNode], None]:
    """A spoiler that puts a markdown cell at the start."""
    return lambda notebook: notebook.cells.insert(0, v4.new_markdown_cell(text))


STDERR = v4.new_output("stream", name="stderr", text="UserWarning: beware")
ERROR = v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
BARE_PICTURE = v4.new_output("display_data", data={"image/png": "iVBORw0KGgo="})
LONG = "\n".join(f"x{n} = {n}" for n in range(MAX_LINES + 1))
AGAIN = "results.write_record('00_sample', profile=profile, settings={})"

SPOILERS = [
    ("sequential_counts", replace(2, execution_count=None)),
    ("sequential_counts", replace(0, execution_count=2)),
    ("no_errors", replace(3, outputs=[ERROR])),
    ("no_stderr", replace(3, outputs=[STDERR])),
    ("checked_cells_print", replace(2, outputs=[])),
    ("checked_cells_print", replace(2, metadata=NotebookNode())),
    ("pictures_have_alternative_text", replace(3, outputs=[BARE_PICTURE])),
    ("pictures_have_alternative_text", add_markdown("![](plot.png)")),
    ("one_parameters_cell", replace(1, metadata=NotebookNode())),
    ("one_parameters_cell", replace(2, metadata={"tags": ["parameters", "nbval-check-output"]})),
    ("one_parameters_cell", replace(1, source='profile: str = "quick"\nseeds = 2')),
    ("one_parameters_cell", replace(1, source='profile: str = "quick"\nseeds: int = 1 + 1')),
    ("one_parameters_cell", replace(1, source='profile: str = "full"')),
    ("no_shell", replace(3, source="!ls")),
    ("no_shell", replace(3, source="%matplotlib inline")),
    ("no_shell", replace(3, source="import sys\nsys.exit(0)")),
    ("no_shell", replace(3, source="name = input()")),
    ("no_redefinition", replace(3, source="def write_record():\n    return None")),
    ("no_redefinition", replace(3, source="class LSTM:\n    pass")),
    ("no_redefinition", replace(3, source="LSTM = max")),
    ("no_redefinition", replace(3, source="summarise = lambda values: sum(values)")),
    ("no_redefinition", replace(3, source="results = 3")),
    ("no_unpickling", replace(3, source='torch.load("model.pt")')),
    ("markdown_before_code", drop_markdown("Look at the slope.")),
    ("short_cells", replace(3, source=LONG)),
    ("no_empty_cells", add_markdown(" ")),
    ("last_cell_writes_the_record", replace(-1, source="x = 1")),
    ("last_cell_writes_the_record", replace(3, source=AGAIN)),
    ("last_cell_writes_the_record", replace(-1, source=AGAIN.replace("00", "01"))),
    ("reported_results_are_shown", replace(4, source="x = 1")),
    ("questions_have_folded_answers", drop_markdown("<details>")),
    ("questions_have_folded_answers", add_markdown("<details><summary>Answer</summary>")),
    ("no_run_metadata", lambda notebook: notebook.metadata.update(papermill={"duration": 1})),
    ("no_run_metadata", lambda notebook: notebook.metadata.pop("kernelspec")),
    ("no_run_metadata", replace(3, metadata={"execution": {"iopub.execute_input": "now"}})),
    ("no_run_metadata", replace(3, metadata={"tags": ["injected-parameters"]})),
    ("nothing_unfinished", add_markdown("TO" + "DO: explain")),
]


def test_a_sound_notebook_passes() -> None:
    notebook = sound_notebook()
    nbformat.validate(notebook)
    assert {name: lint(notebook, "00_sample") for name, lint in LINTS.items()} == {
        name: [] for name in LINTS
    }


@pytest.mark.parametrize("name, spoil", SPOILERS)
def test_a_lint_finds_what_it_is_for(name: str, spoil: Callable[[NotebookNode], None]) -> None:
    notebook = sound_notebook()
    spoil(notebook)
    assert [other for other, lint in LINTS.items() if lint(notebook, "00_sample")] == [name]


def test_every_lint_is_shown_to_fail() -> None:
    assert {name for name, _ in SPOILERS} == set(LINTS)


def test_moving_the_last_section_is_found() -> None:
    notebook = sound_notebook()
    notebook.cells += [v4.new_markdown_cell("## One more"), v4.new_markdown_cell("## And more")]
    assert LINTS["reported_results_are_shown"](notebook, "00_sample")


# what nbval overlooks


@pytest.mark.parametrize(
    "text, sanitised",
    [
        ("<LSTM at 0x7f3a08c1d2e0>", "<LSTM at ADDRESS>"),
        ("process 4711 ended", "process PROCESS ended"),
        ("wrote /home/ada/lab/results/quick/a.json", "wrote PATH"),
        ("took 12.5 s, then 3 minutes and 40 µs", "took DURATION, then DURATION and DURATION"),
        ("loss 2.94443898 after 38 steps", None),
        ("(8, 20, 32) 0.82 ± 0.04 at L=10, 16 seeds", None),
        ("published/lstm/zero/trained/10/test_accuracy 1/3 a / b", None),
        ("data digest 0123456789ab", None),
        ("5.2 MB, 3 more, 2 m, 4 samples", None),
    ],
)
def test_only_what_differs_between_runs_is_sanitised(text: str, sanitised: str | None) -> None:
    rules = (environment.ROOT / "tests" / "nbval_sanitize.cfg").read_text("utf-8")
    result = text
    for regex, replacement in get_sanitize_patterns(rules):
        result = re.sub(regex, replacement, result)
    assert result == (text if sanitised is None else sanitised)


def committed(path: str) -> bytes | None:
    """A file of the last commit, whatever was run since; the file itself where there is no git."""
    git = partial(subprocess.run, cwd=environment.ROOT, capture_output=True)
    if (environment.ROOT / ".git").exists() and git(["git", "rev-parse", "HEAD"]).returncode == 0:
        found = git(["git", "show", f"HEAD:{path}"])
        return None if found.returncode else found.stdout
    file = environment.ROOT / path
    return file.read_bytes() if file.exists() else None


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_stored_outputs_show_the_results_beside_them(
    chapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [committed(f"results/{profile}/{chapter}.json") for profile in ("full", "cpu")]
    record = json.loads(next(filter(None, records)))
    shown: list = []
    monkeypatch.setattr(results, "reported", lambda chapter: {**record, "figures": {}})
    monkeypatch.setattr("IPython.display.display", shown.append)
    results.show_reported(chapter)

    notebook = nbformat.reads(committed(f"notebooks/{chapter}.ipynb").decode(), as_version=4)
    cell = next(c for _, c in code_cells(notebook) if "results.show_reported(" in c.source)
    texts = [o.data["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]
    images = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    stale = f"its outputs show another run: python -m labkit notebooks {chapter}"
    assert [item.data for item in shown] == [texts[0], texts[-1]], stale
    digests = [hashlib.sha256(base64.b64decode(image)).hexdigest() for image in images]
    assert digests == [figure["sha256"] for figure in record["figures"].values()], stale
