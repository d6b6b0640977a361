"""Executes the chapters in place with their quick defaults, so that their stored outputs are fresh.

Nothing is injected, so the stored notebook is the author's own. What changes from run to run, time
stamps, widget models, the machine's Python version, is taken out; a second run changes no byte that
the outputs themselves do not change.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from labkit.lab import environment
from labkit.lab.digests import write_atomically
from labkit.lab.execution import ChapterError, check_cells, describe_cell, one_line, read_notebook
from labkit.lab.kernels import Supervisor

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
VOLATILE = ("execution", "papermill", "scrolled", "collapsed")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def refresh(chapter: str, supervisor: Supervisor, threads: int = 1) -> list[str]:
    """Execute one notebook in place; return notes on what was taken out of its outputs.

    A notebook that fails, or that was edited meanwhile, stays as it is, and ChapterError says where
    and why.
    """
    path = environment.NOTEBOOKS / f"{chapter}.ipynb"
    place = f"notebooks/{path.name}"
    next_step = f"correct the cell, then python -m labkit notebooks {chapter}"
    before = _content(path)
    notebook = read_notebook(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None

    _execute(notebook, place, next_step, supervisor, threads)
    check_cells(notebook, place, next_step)
    notes = strip(notebook, place)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        raise ChapterError(place, f"execution counts are {counts}", "remove empty code cells")
    if _content(path) != before:
        raise ChapterError(
            place,
            "it was edited while it ran, so its outputs are not stored",
            f"python -m labkit notebooks {chapter}",
        )
    write_atomically(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())
    return notes


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _execute(
    notebook: NotebookNode, place: str, next_step: str, supervisor: Supervisor, threads: int
) -> None:
    kernel_environment = environment.kernel_environment(threads) | {
        "LABKIT_ROOT": str(environment.ROOT),
        "LABKIT_PROGRESS": os.devnull,
    }
    index = 0

    def started(cell: NotebookNode, cell_index: int) -> None:
        nonlocal index
        index = cell_index

    with tempfile.TemporaryFile() as log:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            kernel_manager_class=supervisor.manager(kernel_environment, log),
            resources={"metadata": {"path": str(environment.NOTEBOOKS)}},
            on_cell_start=started,
            iopub_timeout=60,
            force_raise_errors=True,
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
        )
        client.log.setLevel(logging.CRITICAL)
        try:
            with client.setup_kernel():
                for position, cell in enumerate(notebook.cells):
                    client.execute_cell(cell, position)
        except CellExecutionError:
            pass  # the notebook holds the error
        except (RuntimeError, TimeoutError) as error:
            died = supervisor.end_kernels()
            supervisor.check()
            raise ChapterError(
                f"{place}, {describe_cell(notebook, index)}",
                f"the kernel died, {died}" if died else f"no kernel: {one_line(str(error))}",
                next_step,
            ) from error
        finally:
            supervisor.end_kernels()


def strip(notebook: NotebookNode, place: str) -> list[str]:
    """Take out what changes from run to run, and what was written to stderr; note the latter."""
    notes = []
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python")
    )
    for index, cell in enumerate(notebook.cells):
        for name in VOLATILE:
            cell.metadata.pop(name, None)
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                where = f"{place}, {describe_cell(notebook, index)}"
                notes.append(f"{where}: stderr not stored: {one_line(output.text)}")
                continue
            if output.output_type in ("display_data", "execute_result"):
                output.data.pop(WIDGET_VIEW, None)
            kept.append(output)
        cell.outputs = kept
    return notes


def refresh_all(chapters: Sequence[str], threads: int = 1) -> int:
    """Refresh the named notebooks, print one line for each; return the exit code."""
    from labkit.lab.kernels import Interrupted
    from labkit.lab.runner import lock

    code = 0
    with lock("notebooks"), Supervisor() as supervisor:
        for chapter in chapters:
            try:
                supervisor.check()
                notes = refresh(chapter, supervisor, threads)
            except ChapterError as error:
                print(f"FAILED {error}", flush=True)
                code = 1
            except Interrupted as interruption:
                print(interruption, flush=True)
                return interruption.exit_code
            else:
                print("\n".join([f"{chapter}: refreshed", *notes]), flush=True)
    return code
