"""The chapters' notebooks: read, executed in place, and copied for students to work on.

`notebooks/` holds the chapters as their authors stored them. Students work in `work/`, which git
ignores: copies that are renewed when a chapter changes, and never at the cost of what was written.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.lab import code, machine

CHAPTER = re.compile(r"\d\d_\w+")  # JupyterLab names a copy 01_lstm_operator-Copy1
KERNEL_NAME = "LSTM course lab"
VOLATILE = ("execution", "papermill", "scrolled", "collapsed")  # in a cell's metadata


class ChapterError(Exception):
    """A chapter that failed: where (notebook and cell), why, and what to do next."""

    def __init__(self, where: str, cause: str, next_step: str) -> None:
        super().__init__(where, cause, next_step)
        self.where, self.cause, self.next_step = where, one_line(cause), next_step

    def __str__(self) -> str:
        return f"{self.where}: {self.cause.rstrip('.')}. Next: {self.next_step}"


def one_line(text: str) -> str:
    """The first line of a message that is not blank."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


# reading


def chapters() -> tuple[str, ...]:
    """The chapters in order: the stems of notebooks/NN_name.ipynb. Copies are no chapters."""
    stems = (path.stem for path in machine.NOTEBOOKS.glob("*.ipynb"))
    return tuple(sorted(stem for stem in stems if CHAPTER.fullmatch(stem)))


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in a file, upgraded to nbformat 4.5; ChapterError where it cannot be read.

    A byte order mark is passed over, and cell ids that stand in an older minor version are kept.
    """
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        if content["nbformat"] == 4 and any("id" in cell for cell in content["cells"]):
            content["nbformat_minor"] = max(content["nbformat_minor"], 5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing or repeated ids, which are mended here
            notebook = nbformat.convert(nbformat.reader.reads(json.dumps(content)), 4)
            _, notebook = nbformat.validator.normalize(notebook)
            nbformat.validate(notebook)
    except Exception as error:  # whatever a broken file makes of nbformat
        name = f"{path.parent.name}/{path.name}"
        cause = f"not a readable notebook: {one_line(str(error))}"
        raise ChapterError(name, cause, f"set it aside, then: git restore {name}") from error
    return notebook


def _write_notebook(path: Path, notebook: NotebookNode) -> None:
    code.write_atomically(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())


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
    notebook: NotebookNode, place: str, next_step: str, other_steps: Mapping[str, str] | None = None
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
                step = (other_steps or {}).get(output.ename, next_step)
                cause = textwrap.shorten(f"{output.ename}: {output.evalue}", 400, placeholder=" …")
                raise ChapterError(where, cause, step)
        if cell.execution_count is None:
            raise ChapterError(where, "the cell never ran", next_step)


# the kernel


def install_kernel() -> None:
    """Let Jupyter know the lab's kernel, in the folder of this environment.

    The kernel shuts out what a home folder brings along: packages of the user's site, start-up
    files of Python and of IPython. ValueError where Jupyter finds another of the same name first.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    shared = Path(sys.prefix, "share")
    variables = {n: v for n, v in machine.kernel_environment().items() if "THREADS" not in n}
    variables |= {"IPYTHONDIR": str(shared / machine.KERNEL), "PYTHONSTARTUP": ""}
    launcher = ["-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    content = {
        "argv": [sys.executable, *launcher],
        "display_name": KERNEL_NAME,
        "language": "python",
        "metadata": {"debugger": True},
        "env": variables,
    }
    path = shared / "jupyter" / "kernels" / machine.KERNEL / "kernel.json"
    text = json.dumps(content, indent=1).encode()
    if not path.exists() or path.read_bytes() != text:
        code.write_atomically(path, text)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    first = Path(KernelSpecManager().get_kernel_spec(machine.KERNEL).resource_dir)
    if first.resolve() != path.parent.resolve():
        raise ValueError(
            f"{first} hides the lab's kernel: remove that folder, or unset JUPYTER_PATH"
        )


# executing in place


def refresh_all(names: Sequence[str]) -> int:
    """Execute chapters in place, print one line for each; return the exit status."""
    install_kernel()
    status = 0
    for chapter in names:
        try:
            refresh(chapter)
            print(f"{chapter}: refreshed", flush=True)
        except ChapterError as error:
            print(f"FAILED {error}", file=sys.stderr, flush=True)
            status = 1
        except KeyboardInterrupt:
            print(f"stopped; {chapter} is as it was", file=sys.stderr)
            return 130
    return status


def refresh(chapter: str) -> None:
    """Execute a chapter with its defaults and store the outputs, without what differs from run to
    run; ChapterError where it fails or was edited meanwhile, and the file stays as it was."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    path, place = machine.NOTEBOOKS / f"{chapter}.ipynb", f"notebooks/{chapter}.ipynb"
    again = f"python -m labkit notebooks {chapter}"
    notebook, before = read_notebook(path), path.read_bytes()
    for cell in notebook.cells:
        for name in VOLATILE:
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    variables = {**os.environ, **machine.kernel_environment(), "LABKIT_PROGRESS": os.devnull}
    options = {"record_timing": False, "store_widget_state": False, "coalesce_streams": True}
    client = NotebookClient(
        notebook, kernel_name=machine.KERNEL, force_raise_errors=True, iopub_timeout=60, **options
    )
    index = 0
    with tempfile.TemporaryFile("w+") as log:
        try:
            with client.setup_kernel(
                env=variables, cwd=str(machine.NOTEBOOKS), stdout=log, stderr=log
            ):
                for index, cell in enumerate(notebook.cells):
                    client.execute_cell(cell, index)
        except CellExecutionError:
            pass  # the notebook holds the error
        except (RuntimeError, TimeoutError) as error:
            log.seek(0)
            words = [one_line(str(error)), *filter(None, map(str.strip, log))]
            where = f"{place}, {describe_cell(notebook, index)}"
            raise ChapterError(where, f"the kernel died: {words[-1]}", again) from error
    check_cells(notebook, place, f"correct the cell, then {again}")
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                print(f"{describe_cell(notebook, index)}: not stored: {one_line(output.text)}")
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    kernel = {"name": machine.KERNEL, "display_name": KERNEL_NAME, "language": "python"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    if path.read_bytes() != before:
        raise ChapterError(place, "it was edited while it ran", again)
    _write_notebook(path, notebook)


# working copies


def open_lab(threads: int, options: Sequence[str]) -> int:
    """Become JupyterLab at the repository's root, on copies of the chapters; does not return."""
    install_kernel()
    for message in make_copies():
        print(message, flush=True)
    command = [
        *(sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={machine.ROOT}"),
        *("--LabApp.default_url=/lab/tree/work", *options),
    ]
    if os.geteuid() == 0 and "--allow-root" not in command:  # as in a container
        command.append("--allow-root")
    variables = {
        n: v for n, v in os.environ.items() if n not in ("LABKIT_STAGING", "LABKIT_RUN_ID")
    }
    os.execve(sys.executable, command, variables | machine.kernel_environment(threads))


def make_copies() -> list[str]:
    """Bring the copies in work/ up to date with the chapters; return what a student should know.

    A copy holds what it was made from. One whose cells were edited, or that cannot be read, keeps
    all its content under a name with the date before a newer one takes its place.
    """
    messages = []
    for chapter in chapters():
        path = machine.NOTEBOOKS / f"{chapter}.ipynb"
        notebook, copy = read_notebook(path), machine.ROOT / "work" / path.name
        made_from = {"chapter": code.sha256(path.read_bytes()), "cells": _cells_digest(notebook)}
        if copy.exists():
            facts, cells = _state(copy)
            if facts.get("chapter") == made_from["chapter"]:
                continue
            if cells not in (facts.get("cells"), made_from["cells"]):
                kept, n = copy.with_stem(f"{chapter}-{date.today()}"), 1
                while kept.exists():
                    kept, n = copy.with_stem(f"{chapter}-{date.today()}-{n + 1}"), n + 1
                os.replace(copy, kept)
                messages.append(f"work/{copy.name} is new; what you wrote is in work/{kept.name}")
        notebook.metadata["labkit"] = made_from
        _write_notebook(copy, notebook)
    return messages


def _state(copy: Path) -> tuple[dict[str, Any], str]:
    """What a copy was made from, and the digest of its cells as they are now."""
    try:
        notebook = read_notebook(copy)
    except ChapterError:
        return {}, ""
    return dict(notebook.metadata.get("labkit", {})), _cells_digest(notebook)


def _cells_digest(notebook: NotebookNode) -> str:
    return code.sha256(code.canonical([[cell.cell_type, cell.source] for cell in notebook.cells]))
