"""The chapters' notebooks: which they are, and how they are read."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.lab import machine

CHAPTER = re.compile(r"\d\d_\w+")  # JupyterLab names a copy 01_lstm_operator-Copy1


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
        return _upgraded(content)
    except Exception as error:  # whatever a broken file makes of nbformat
        name = f"{path.parent.name}/{path.name}"
        raise ChapterError(
            name,
            f"not a readable notebook: {one_line(str(error))}",
            f"set the file aside, then: git restore {name}",
        ) from error


def _upgraded(content: dict[str, Any]) -> NotebookNode:
    if content["nbformat"] == 4 and any("id" in cell for cell in content["cells"]):
        content["nbformat_minor"] = max(content["nbformat_minor"], 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing or repeated ids, which are mended here
        notebook = nbformat.convert(nbformat.reader.reads(json.dumps(content)), 4)
        _, notebook = nbformat.validator.normalize(notebook)
        nbformat.validate(notebook)
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
                advice = (other_steps or {}).get(output.ename, next_step)
                raise ChapterError(
                    where, f"{output.ename}: {' '.join(output.evalue.split())}", advice
                )
        if cell.execution_count is None:
            raise ChapterError(where, "the cell never ran", next_step)
