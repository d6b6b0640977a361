"""The chapters' notebooks: read, stored with their outputs, and copied for students to work on.

`notebooks/` holds the chapters as their authors stored them. Students work in `work/`, which git
ignores: copies that are renewed when a chapter changes, and never at the cost of what was written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit.lab import code, machine
from labkit.lab.machine import shown

CHAPTER = re.compile(r"\d\d[a-z]?_\w+")  # JupyterLab names a copy 01_lstm_operator-Copy1
KERNEL_NAME = "LSTM course lab"
VOLATILE = ("execution", "papermill", "scrolled", "collapsed")  # in a cell's metadata


class ChapterError(ValueError):
    """A chapter that failed: where (notebook and cell), why, and what to do next."""

    def __init__(self, where: str, cause: str, next_step: str) -> None:
        self.where, self.cause, self.next_step = where, one_line(cause), next_step

    def __str__(self) -> str:
        return f"{self.where}: {self.cause.rstrip('.')}. Next: {self.next_step}"


def one_line(text: str) -> str:
    """The first line of a message that is not blank."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


# reading


def chapters() -> tuple[str, ...]:
    """The chapters in order: the stems of notebooks/NN_name.ipynb, and of appendix/NNa_name.ipynb.
    Copies are no chapters."""
    paths = (*machine.NOTEBOOKS.glob("*.ipynb"), *machine.NOTEBOOKS.glob("appendix/*.ipynb"))
    names = (path.stem for path in paths if path == machine.notebook(path.stem))
    return tuple(sorted(name for name in names if CHAPTER.fullmatch(name)))


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in a file, upgraded to nbformat 4.5; ChapterError where it cannot be read."""
    try:
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
    except Exception as error:  # whatever a broken file makes of nbformat
        name = f"{path.parent.name}/{path.name}"
        cause = f"not a readable notebook: {one_line(str(error))}"
        raise ChapterError(name, cause, f"set it aside, then: git restore {name}") from error
    return notebook


def describe_cell(notebook: NotebookNode, index: int) -> str:
    """A cell by its number among the author's code cells, the heading above and its first line."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [c for c in notebook.cells[: index + 1] if not added & set(c.metadata.get("tags", []))]
    number = sum(cell.cell_type == "code" for cell in cells)
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = re.findall(r"(?m)^#+ *(.+?) *$", text)
    under = f', under "{headings[-1]}"' if headings else ""
    return f"code cell {number} (`{one_line(notebook.cells[index].source)[:60]}`{under})"


def check_cells(
    notebook: NotebookNode, place: str, next_step: str, other_steps: Mapping[str, str]
) -> None:
    """Raise ChapterError for the first code cell that failed or never ran.

    `other_steps` are the next steps after errors of some names, which no change of a cell mends.
    """
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        where = f"{place}, {describe_cell(notebook, index)}"
        for output in cell.outputs:
            if output.output_type == "error":
                step = other_steps.get(output.ename, next_step)
                cause = textwrap.shorten(f"{output.ename}: {output.evalue}", 400, placeholder=" …")
                raise ChapterError(where, cause, step)
        if cell.execution_count is None:
            raise ChapterError(where, "the cell never ran", next_step)


# the kernel


def install_kernel() -> None:
    """Let Jupyter know the lab's kernel, in the folder of this environment.

    The kernel shuts out what a home folder brings along: packages of the user's site, start-up
    files of Python and of IPython.
    """
    from ipykernel.kernelspec import get_kernel_dict

    shared = Path(sys.prefix, "share")
    variables = {n: v for n, v in machine.kernel_environment().items() if "THREADS" not in n}
    variables |= {"IPYTHONDIR": str(shared / machine.KERNEL), "PYTHONSTARTUP": ""}
    content = get_kernel_dict(python_arguments=["-Xfrozen_modules=off"])
    content |= {"display_name": KERNEL_NAME, "env": variables}
    path = shared / "jupyter" / "kernels" / machine.KERNEL / "kernel.json"
    text = json.dumps(content, indent=1).encode()
    if not path.exists() or path.read_bytes() != text:
        code.write_atomically(path, text)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")


# storing outputs


def store_outputs(chapter: str) -> None:
    """Store the outputs of the last quick run in a chapter, without what differs from run to run.

    ChapterError where the chapter has been edited since, and the file stays as it was.
    """
    path = machine.notebook(chapter)
    executed = read_notebook(machine.RESULTS / ".executed" / "quick" / path.name)
    notebook = read_notebook(path)
    if [cell.source for cell in executed.cells] != [cell.source for cell in notebook.cells]:
        again = f"python -m labkit notebooks {chapter}"
        raise ChapterError(shown(path), "it was edited since it ran", again)
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        for name in VOLATILE:
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = [output for output in ran.outputs if output.get("name") != "stderr"]
    kernel = {"name": machine.KERNEL, "display_name": KERNEL_NAME, "language": "python"}
    facts = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(facts)
    code.write_atomically(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())


# working copies


def open_lab(threads: int, options: Sequence[str]) -> int:
    """Become JupyterLab at the repository's root, on copies of the chapters; does not return."""
    install_kernel()
    for message in make_copies():
        print(message, flush=True)
    command = [
        *(sys.executable, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={machine.ROOT}",
        "--LabApp.default_url=/lab/tree/work",
        f"--MultiKernelManager.default_kernel_name={machine.KERNEL}",
        *options,
    ]
    if os.geteuid() == 0 and "--allow-root" not in command:  # as in a container
        command.append("--allow-root")
    os.execve(sys.executable, command, {**os.environ, **machine.kernel_environment(threads)})


def make_copies() -> list[str]:
    """Bring the copies in work/ up to date with the chapters; return what a student should know.

    Beside each copy lies, hidden, the chapter as it was then. A copy that was edited since, or that
    cannot be read, is kept under a dated name when a newer chapter takes its place.
    """
    messages = []
    for chapter in chapters():
        path = machine.notebook(chapter)
        copy = machine.ROOT / "work" / path.relative_to(machine.NOTEBOOKS)
        original = copy.with_name(f".{copy.name}")
        if copy.exists():
            same = original.exists() and original.read_bytes() == path.read_bytes()
            cells = _cells(copy)
            if same and cells is not None:
                continue
            if cells is None or cells != _cells(original):
                kept = copy.with_stem(f"{chapter}-{datetime.now():%Y-%m-%d-%H%M%S}")
                os.replace(copy, kept)
                messages.append(f"{shown(copy)} is new; what you wrote is in {shown(kept)}")
        for target in (copy, original):
            code.write_atomically(target, path.read_bytes())
    return messages


def _cells(path: Path) -> list[tuple[str, str]] | None:
    with contextlib.suppress(ChapterError):
        return [(cell.cell_type, cell.source) for cell in read_notebook(path).cells]
