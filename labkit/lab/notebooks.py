"""The chapters' notebooks: read, stored with their outputs, and copied for students to work on.

`notebooks/` holds the chapters as their authors stored them. Students work in `work/`, which git
ignores: copies that are renewed when a chapter changes, and kept beside the new ones.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
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


def check_cells(notebook: NotebookNode, place: str, next_step: Callable[[str], str]) -> None:
    """Raise ChapterError for the first code cell that failed or never ran.

    `next_step` says what to do after an error of a name.
    """
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        where = f"{place}, {describe_cell(notebook, index)}"
        for output in cell.outputs:
            if output.output_type == "error":
                cause = textwrap.shorten(f"{output.ename}: {output.evalue}", 400, placeholder=" …")
                raise ChapterError(where, cause, next_step(output.ename))
        if cell.execution_count is None:
            raise ChapterError(where, "the cell never ran", next_step(""))


# the kernel


def install_kernel() -> None:
    """Let Jupyter know the lab's kernel, in the folder of this environment.

    The kernel shuts out what a home folder brings along: packages of the user's site, start-up
    files of Python and of IPython.
    """
    from ipykernel.kernelspec import get_kernel_dict

    shared = Path(sys.prefix, "share")
    variables = machine.kernel_environment() | {"PYTHONSTARTUP": ""}
    variables["IPYTHONDIR"] = str(shared / machine.KERNEL)
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


def open_lab(options: Sequence[str]) -> int:
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
    os.execve(sys.executable, command, {**os.environ, **machine.kernel_environment()})


def make_copies() -> list[str]:
    """Copy to work/ each chapter that has changed; return what a student should know.

    Beside each copy lies, hidden, the chapter as it was then. The copy that a newer chapter takes
    the place of, and what was written in it, stays under a dated name.
    """
    messages = []
    for path in map(machine.notebook, chapters()):
        copy = machine.ROOT / "work" / path.relative_to(machine.NOTEBOOKS)
        original = copy.with_name(f".{copy.name}")
        if copy.exists() and original.exists() and original.read_bytes() == path.read_bytes():
            continue
        if copy.exists():
            kept = copy.with_stem(f"{copy.stem}-{datetime.now():%Y-%m-%d-%H%M%S}")
            os.replace(copy, kept)
            messages.append(f"{shown(copy)} is new; what you wrote is in {shown(kept)}")
        for target in (copy, original):
            code.write_atomically(target, path.read_bytes())
    return messages
