"""One execution of one chapter: into a staging folder, looked at, then published or kept aside.

An execution is believed only when the written notebook shows it: every code cell was counted, none
holds an error, and the record of this very run lies in the staging folder. Papermill's own verdict
does not count: it calls a notebook that ended in `sys.exit(0)` completed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode, ValidationError

from labkit.lab import digests, environment, results
from labkit.lab.kernels import Supervisor
from labkit.lab.parameters import ParameterError, read_parameters
from labkit.lab.progress import Display
from labkit.lab.publication import shown


class ChapterError(Exception):
    """A chapter that failed: where (notebook and cell), why, and what to do next."""

    def __init__(self, where: str, cause: str, next_step: str) -> None:
        super().__init__(where, cause, next_step)
        self.where, self.cause, self.next_step = where, one_line(cause), next_step

    def __str__(self) -> str:
        return f"{self.where}: {self.cause.rstrip('.')}. Next: {self.next_step}"


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in a file; ChapterError when it is missing or not a notebook."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nbformat.warnings.MissingIDFieldWarning)
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise ChapterError(
            f"notebooks/{path.name}",
            f"not a readable notebook: {one_line(str(error))}",
            "restore the file",
        ) from error
    return notebook


class Execution:
    """Executes a chapter with the given values; `run` publishes it or raises ChapterError."""

    def __init__(
        self, chapter: str, profile: str, values: Mapping[str, Any], flags: Sequence[str] = ()
    ) -> None:
        self.chapter, self.profile, self.values = chapter, profile, dict(values)
        self.run_id = uuid.uuid4().hex
        self.place = f"notebooks/{chapter}.ipynb"
        self.again = " ".join(["python -m labkit run", chapter, "--profile", profile, *flags])

        base = environment.RESULTS / ".staging" / profile
        self.staging = base / chapter
        self.notebook = base / f"{chapter}.ipynb"
        self.log = base / f"{chapter}.log"
        self.progress = base / f"{chapter}.progress"

    def run(self, supervisor: Supervisor, *, threads: int = 1, workers: int | None = None) -> None:
        """Execute, look at what was written, publish; raise Interrupted when told to stop."""
        try:
            self._prepare()
            self._execute(supervisor, self._kernel_environment(threads, workers))
            supervisor.check()
            executed = read_notebook(self.notebook)
            other_steps = {
                "TerminatedWorkerError": self._run_smaller(),  # joblib's, often for its memory
                **dict.fromkeys(("DownloadError", "LocalError", "NotThere"), self.again),
            }
            check_cells(executed, self.place, self._read_and_rerun(), other_steps)
            self._check_settings(executed, self._read_record())
            self._publish()
        except ChapterError:
            self._keep()
            raise
        except OSError as error:
            self._keep()
            raise ChapterError(
                self.place,
                f"{type(error).__name__}: {error}",
                f"free some space or mend the folder, then {self.again} (finished trainings are "
                "kept)",
            ) from error
        finally:
            for path in (self.notebook, self.log, self.progress):
                path.unlink(missing_ok=True)

    def _prepare(self) -> None:
        if self.staging.exists():
            shutil.rmtree(self.staging)
        self.staging.mkdir(parents=True)

    def _kernel_environment(self, threads: int, workers: int | None) -> dict[str, str]:
        values = environment.kernel_environment(threads)
        values |= {
            "LABKIT_ROOT": str(environment.ROOT),
            "LABKIT_CACHE": str(environment.CACHE),
            "LABKIT_CODE": json.dumps(digests.code_parts(self.chapter)),
            "LABKIT_STAGING": str(self.staging),
            "LABKIT_RUN_ID": self.run_id,
            "LABKIT_PROGRESS": str(self.progress),
        }
        return values | ({"LABKIT_WORKERS": str(workers)} if workers else {})

    def _execute(self, supervisor: Supervisor, kernel_environment: Mapping[str, str]) -> None:
        import papermill

        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the failure line says it
        index = 0
        with Display(self.chapter, self.progress) as display, self.log.open("wb") as log:

            def started(cell: NotebookNode, cell_index: int) -> None:
                nonlocal index
                index = cell_index
                display.cell = f"cell {cell_index + 1}"

            try:
                papermill.execute_notebook(
                    str(environment.NOTEBOOKS / f"{self.chapter}.ipynb"),
                    str(self.notebook).replace("{", "{{").replace("}", "}}"),
                    parameters=self.values,
                    kernel_name="python3",
                    language="python",
                    cwd=str(self.staging),
                    progress_bar=False,
                    kernel_manager_class=supervisor.manager(kernel_environment, log),
                    on_cell_start=started,
                    iopub_timeout=60,
                    force_raise_errors=True,
                    store_widget_state=False,
                )
            except papermill.exceptions.PapermillExecutionError:
                pass  # the written notebook holds the error
            except (RuntimeError, TimeoutError) as error:  # a dead, mute or stillborn kernel
                died = supervisor.end_kernels()
                supervisor.check()
                raise self._dead_kernel(index, died, error) from error
            finally:
                supervisor.end_kernels()

    def _dead_kernel(self, index: int, died: str | None, error: Exception) -> ChapterError:
        where = f"{self.place}, {describe_cell(read_notebook(self.notebook), index)}"
        how = f"the kernel died, {died}" if died else f"no kernel: {one_line(str(error))}"
        if died == "by SIGKILL":
            return ChapterError(
                where,
                f"{how}; often the memory ran out",
                self._run_smaller(),
            )
        return ChapterError(where, how, self._read_and_rerun())

    def _read_and_rerun(self) -> str:
        return f"read {shown(self._kept('.ipynb'))}, correct the cell, then {self.again}"

    def _run_smaller(self) -> str:
        kept = "finished trainings are kept"
        return f"close other programs, then {self.again} --workers 1 ({kept})"

    def _read_record(self) -> dict[str, Any]:
        """The record in the staging folder; ChapterError unless this run wrote it."""
        path = self.staging / f"{self.chapter}.json"
        next_step = (
            f"let the last code cell call results.write_record({self.chapter!r}, ...), "
            f"then {self.again}"
        )
        try:
            record = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise ChapterError(self.place, "it wrote no record", next_step) from error
        except ValueError as error:
            raise ChapterError(self.place, f"its record is broken: {error}", next_step) from error
        expected = {"chapter": self.chapter, "profile": self.profile, "run_id": self.run_id}
        for name, value in expected.items():
            found = record.get(name) if isinstance(record, dict) else None
            if found != value:
                raise ChapterError(
                    self.place,
                    f"its record has the {name} {found!r}, this run's is {value!r}",
                    next_step,
                )
        return record

    def _check_settings(self, notebook: NotebookNode, record: Mapping[str, Any]) -> None:
        """Raise ChapterError unless the record tells every parameter as the run was given it.

        A list must be there, in whatever order the chapter has brought it.
        """
        try:
            parameters = read_parameters(notebook.cells, self.place)
        except ParameterError as error:  # the cell was edited after the check before the run
            message = str(error).removeprefix(f"{self.place}: ")
            raise ChapterError(self.place, message, self._read_and_rerun()) from error
        given = {name: parameter.default for name, parameter in parameters.items()} | self.values
        recorded = record.get("settings")
        for name, value in given.items():
            if name == "profile":
                continue
            if not isinstance(recorded, dict) or name not in recorded:
                cause = f"its record's settings lack the parameter '{name}'"
            elif not isinstance(value, list) and recorded[name] != value:
                cause = (
                    f"its record's settings say {name} = {recorded[name]!r}, the run had {value!r}"
                )
            else:
                continue
            next_step = f"write every parameter, as it was given, into settings, then {self.again}"
            raise ChapterError(self.place, cause, next_step)

    def _publish(self) -> None:
        try:
            results.publish(self.staging, self.chapter, self.profile)
        except ValueError as error:
            raise ChapterError(self.place, str(error), self._read_and_rerun()) from error
        executed = environment.RESULTS / ".executed" / self.profile / self.notebook.name
        with contextlib.suppress(OSError):  # published already, whatever becomes of this copy
            executed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.notebook, executed)
        for suffix in (".ipynb", ".log"):
            self._kept(suffix).unlink(missing_ok=True)

    def _kept(self, suffix: str) -> Path:
        return environment.RESULTS / ".failed" / self.profile / f"{self.chapter}{suffix}"

    def _keep(self) -> None:
        """Keep the broken notebook and what its kernel last said, where there is room for them."""
        for path in (self.notebook, self.log):
            kept = self._kept(path.suffix)
            try:
                if path.exists() and path.stat().st_size:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, kept)
                else:
                    kept.unlink(missing_ok=True)
            except OSError as error:
                print(f"{shown(kept)} could not be kept: {error.strerror}")


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
                advice, cause = next_step, output.evalue
                if output.ename in (other_steps or {}):
                    # such errors list what was tried, a line each
                    advice, cause = other_steps[output.ename], " ".join(output.evalue.split())
                raise ChapterError(where, f"{output.ename}: {cause}", advice)
        if cell.execution_count is None:
            raise ChapterError(where, "the cell never ran", next_step)


def describe_cell(notebook: NotebookNode, index: int) -> str:
    """A cell by its number among the author's code cells, the heading above and its first line."""
    added = ("injected-parameters", "papermill-error-cell-tag")
    cells = [
        cell
        for cell in notebook.cells[: index + 1]
        if not any(tag in added for tag in cell.metadata.get("tags", []))
    ]
    number = sum(cell.cell_type == "code" for cell in cells)
    lines = [line.strip() for line in notebook.cells[index].source.splitlines() if line.strip()]
    headings = [
        line.lstrip("# ").strip()
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    under = f', under "{headings[-1]}"' if headings else ""
    first = lines[0] if lines else ""
    return f"code cell {number} (`{first[:60]}`{under})"


def one_line(text: str) -> str:
    """The first line of a message that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")
