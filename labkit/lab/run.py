"""Runs chapters: checks their parameters, executes what is not up to date, publishes, sums up.

An execution is believed only when its notebook shows that every cell ran without error and this
run's record is there: papermill calls a notebook that ended in `sys.exit(0)` completed. A chapter
that fails is reported in one line, publishes nothing, and does not hold up the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from jupyter_client import AsyncKernelManager
from nbformat import NotebookNode
from tqdm import tqdm

from labkit.lab import code, machine, record, report
from labkit.lab.machine import shown
from labkit.lab.notebooks import (
    ChapterError,
    chapters,
    check_cells,
    describe_cell,
    install_kernel,
    one_line,
    read_notebook,
)
from labkit.lab.settings import defaults, resolve

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds between SIGTERM and SIGKILL
LOOK_EVERY = 0.5  # seconds between two looks at the progress file
LOG_EVERY = 60.0  # seconds between two progress lines in a log
STEPS = {  # the next step after errors that no change of a cell mends; {} runs the chapter again
    "TerminatedWorkerError": "close other programs, then {} --workers 1 (kept trainings stay)",
    **dict.fromkeys(("OSError", "PermissionError"), "free some space or mend the folder, then {}"),
    **dict.fromkeys(("DownloadError", "ClusterError"), "{}"),
    "CellTimeoutError": "{} --cell-timeout SECONDS",
}


@dataclass(frozen=True)
class Options:
    """What `python -m labkit run` was asked for."""

    profile: str = "quick"
    given: tuple[str, ...] = ()
    workers: int | None = None
    force: bool = False
    cell_timeout: int | None = None  # seconds


class Manager(AsyncKernelManager):
    """Starts a kernel whose last words before a crash go into a log beside its notebook.

    It leads a process group of its own, so Ctrl-C in a terminal does not reach it.
    """

    process: ClassVar[Popen | None] = None  # of the kernel that was started last

    async def start_kernel(self, **options: Any) -> None:
        with open(Path(os.environ["LABKIT_STAGING"], "kernel.log"), "wb") as log:
            await super().start_kernel(stdout=log, stderr=log, **options)
        Manager.process = self.provisioner.process


def end_kernel(execution: futures.Future) -> None:
    """End the kernel, with all that it started, and so the execution that waits for it."""
    for signum in (signal.SIGTERM, *[signal.SIGKILL] * 60):
        if Manager.process:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
                os.killpg(Manager.process.pid, signum)
        if futures.wait([execution], timeout=GRACE).done:
            return


def raise_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, but no SIGHUP under nohup."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt(signum)

    numbers = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, interrupt)


class Progress(tqdm):
    """One chapter's progress: a bar in a terminal, which a log shows once a minute.

    Trainings append JSON lines to `path` (see `labkit.lab.store`).
    """

    def __init__(self, chapter: str, cells: int, path: Path) -> None:
        path.touch()
        self.index = -1  # of the cell that runs
        self._events, self._fractions = path.open(encoding="utf-8"), {}
        self._terminal = sys.stderr.isatty()
        wait = {} if self._terminal else {"delay": LOG_EVERY, "mininterval": LOG_EVERY}
        form = "{desc}, {elapsed}: cell {n_fmt}/{total_fmt}{postfix}"
        super().__init__(
            desc=chapter, total=cells, bar_format=form, leave=False, miniters=0, **wait
        )

    def cell_started(self, cell: NotebookNode, cell_index: int) -> None:
        self.index = cell_index

    def look(self) -> None:
        """Read what is new and show it; hang up when the terminal was closed.

        The system tells only the leader of the session that, and make does not pass it on.
        """
        if self._terminal and not sys.stderr.isatty():
            os.kill(os.getpid(), signal.SIGHUP)
        for line in self._events:
            with contextlib.suppress(ValueError):  # a line that was cut off by a kill
                event = json.loads(line)
                fractions = self._fractions.setdefault(event["sweep"], {})
                fractions[event["task"]] = event["done"] / max(event["total"], 1)
                total = event["tasks"] - event["stored"]
                text = f"{event['sweep']}: {sum(fractions.values()):.1f} of {total} trainings"
                self.set_postfix_str(text, refresh=False)
        self.update(self.index + 1 - self.n)


def run(names: Sequence[str], options: Options) -> int:
    """Run chapters (all when none is named), print a summary; return the exit code."""
    executions = [Execution(name, options) for name in select(names)]
    status = 0
    install_kernel()
    with lock(options.profile):
        for leftover in (machine.RESULTS / options.profile).glob(".running-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        accepted = [execution for execution in executions if execution.accepts_parameters()]
        if options.given and len(accepted) < len(executions):
            accepted = []  # `--set` is meant for all of them: if one refuses it, nothing runs
        raise_on_signals()
        try:
            for position, execution in enumerate(accepted, start=1):
                print(f"[{position}/{len(accepted)}] {execution.chapter}: ", end="", flush=True)
                execution.bring_up_to_date()
        except KeyboardInterrupt as interruption:
            name, status = signal.Signals(*interruption.args).name, 128 + interruption.args[0]
            print(f"stopped by {name}; the same command goes on from here", file=sys.stderr)
    print(f"\n{'chapter':<20}  {'status':<11}  seconds")
    for e in executions:
        print(f"{e.chapter:<20}  {e.status:<11}  {e.seconds:7.1f}")
    if all(execution.status == "up to date" for execution in executions):
        print("Everything was up to date. To run all the same: make reproduce FORCE=1, or --force")
    elif options.profile == "quick":
        print("Notebooks with their outputs: results/.executed/quick; records: results/quick")
    sys.stdout.flush()
    return status or int(any(execution.status == "failed" for execution in executions))


def select(names: Sequence[str]) -> list[str]:
    """Full chapter names for names, numbers ("2", "02") or file names; all of them for none."""
    known, selected = chapters(), set()
    for name in names or known:
        wanted = Path(name).name.removesuffix(".ipynb")
        matches = {k for k in known if wanted == k or wanted.zfill(2) == k.split("_")[0]}
        if not matches:
            raise ValueError(f"unknown chapter '{name}'. There are {', '.join(known)}")
        selected |= matches
    return sorted(selected)


def lock(name: str) -> contextlib.AbstractContextManager:
    """Hold the only run of a profile; ValueError when another process holds it."""
    path = machine.RESULTS / ".locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run of '{name}' is under way: wait for it or stop it") from None


class Execution:
    """One chapter in one run, how it ended (`status`) and after how many seconds."""

    def __init__(self, chapter: str, options: Options) -> None:
        self.chapter, self.options, self.values = chapter, options, {}
        self.status, self.seconds, self.road = "not run", 0.0, ""
        self.run_id, self.path = uuid.uuid4().hex, machine.notebook(chapter)
        flags = ["--force"] * options.force + [f"--set {text}" for text in options.given]
        self.again = " ".join([record.command(chapter, options.profile), *flags])
        self.staging = machine.RESULTS / options.profile / f".running-{chapter}"
        self.failed = machine.RESULTS / ".failed" / options.profile / chapter
        self.notebook = self.staging / self.path.name

    def accepts_parameters(self) -> bool:
        """Resolve the chapter's parameters; report those that cannot be used."""
        try:
            cells = read_notebook(self.path).cells
            self.values = resolve(self.chapter, cells, self.options.profile, self.options.given)
        except ChapterError as error:
            self._fail(error)
        except ValueError as error:
            step = "correct it and run again; nothing was run"
            self._fail(ChapterError(shown(self.path), str(error), step))
        return self.status != "failed"

    def _next_step(self, error: str) -> str:
        """What to do after an error of this name."""
        step = f"read {shown(self.failed / self.path.name)}, correct the cell, then {self.again}"
        return STEPS[error].format(self.again) if error in STEPS else step

    def _fail(self, error: ChapterError) -> None:
        self.status = "failed"
        print(f"FAILED {error}", file=sys.stderr, flush=True)

    def bring_up_to_date(self) -> None:
        """Run the chapter unless its record is what a run would make."""
        profile = self.options.profile
        if not self.options.force and not report.stale_reasons(self.chapter, profile, self.values):
            self.status = "up to date"
            print(self.status, flush=True)
            return
        print(f"running, profile {profile}", flush=True)
        self.status, start = "interrupted", time.monotonic()
        try:
            self._run()
            self.status = "finished" if profile == "quick" else "published"
        except ChapterError as error:
            self._fail(error)
        finally:
            self.seconds = time.monotonic() - start
        print(f"{self.chapter}: {self.status} after {self.seconds:.1f} s{self.road}", flush=True)

    def _run(self) -> None:
        """Execute, look at what was written, publish; ChapterError where something is wrong."""
        try:
            self.staging.mkdir(parents=True)
            digests = code.chapter_code(self.chapter)
            self._execute()
            check_cells(read_notebook(self.notebook), shown(self.path), self._next_step)
            self._publish(digests)
        except Exception as error:  # whatever a cell's outputs do to papermill: no other chapter's
            with contextlib.suppress(OSError):  # there may be no room for what is left
                shutil.rmtree(self.failed, ignore_errors=True)
                self.failed.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.staging, self.failed)
            if isinstance(error, ChapterError):
                raise
            step = self._next_step("OSError" if isinstance(error, OSError) else "")
            raise ChapterError(shown(self.path), str(error), step) from error
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)

    def _execute(self) -> None:
        import papermill

        for name in ("papermill", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the failure line says it
        variables = machine.kernel_environment() | {
            "LABKIT_ROOT": str(machine.ROOT),
            "LABKIT_CACHE": str(machine.CACHE),
            "LABKIT_STAGING": str(self.staging),
            "LABKIT_RUN_ID": self.run_id,
            "LABKIT_PROGRESS": str(self.staging / "progress"),
            "LABKIT_WORKERS": str(self.options.workers or os.environ.get("LABKIT_WORKERS", "")),
        }
        os.environ |= variables
        source, Manager.process = read_notebook(self.path), None
        as_written = defaults(source.cells)
        changed = {n: value for n, value in self.values.items() if value != as_written[n]}
        cells = len(source.cells) + bool(changed)  # papermill adds one that sets what is changed
        progress = Progress(self.chapter, cells, self.staging / "progress")
        with contextlib.closing(progress), futures.ThreadPoolExecutor(1) as pool:
            execution = pool.submit(
                papermill.execute_notebook,
                source,
                str(self.notebook).replace("{", "{{").replace("}", "}}"),
                parameters=changed,
                kernel_name=machine.KERNEL,
                language="python",
                cwd=str(self.staging),
                progress_bar=False,
                kernel_manager_class=Manager,
                on_cell_start=progress.cell_started,
                execution_timeout=self.options.cell_timeout,
                iopub_timeout=60,
                force_raise_errors=True,
                store_widget_state=False,
            )
            try:
                while not futures.wait([execution], timeout=LOOK_EVERY).done:
                    progress.look()
                execution.result()
            except papermill.exceptions.PapermillExecutionError:
                pass  # the written notebook holds the error
            except (RuntimeError, TimeoutError) as error:  # a dead, mute or stillborn kernel
                raise self._without_kernel(progress.index, error) from error
            finally:
                end_kernel(execution)

    def _without_kernel(self, index: int, error: RuntimeError | TimeoutError) -> ChapterError:
        """What is said of a kernel that did not start, that died, or whose cell took too long."""
        cause, step = one_line(str(error)), self._next_step(type(error).__name__)
        status = Manager.process.poll() if Manager.process else None
        if status is not None and not isinstance(error, TimeoutError):
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            cause = f"the kernel died, {how}"
            if status == -signal.SIGKILL:
                cause += "; often the memory ran out"
                step = self._next_step("TerminatedWorkerError")
        if index < 0:
            step = f"read {shown(self.failed)}/kernel.log; make setup installs the kernel anew"
            return ChapterError(shown(self.path), f"no kernel started: {cause}", step)
        executed = read_notebook(self.notebook)
        if re.search(r"\b(exit|quit)\(\)", executed.cells[index - 1].source):
            index -= 1  # they end the kernel when the next cell is asked for
        return ChapterError(f"{shown(self.path)}, {describe_cell(executed, index)}", cause, step)

    def _publish(self, digests: Mapping[str, str]) -> None:
        """Publish the record of this run; ValueError unless this run wrote a sound one."""
        if not (self.staging / "record.json").exists():
            raise ValueError("it wrote no record: let its last code cell call record.write(...)")
        now = code.chapter_code(self.chapter)
        ran = {n: d if now.get(n) == d else "edited during the run" for n, d in digests.items()}
        values = {name: value for name, value in self.values.items() if name != "profile"}
        place = (self.staging, self.chapter, self.options.profile)
        content = record.publish(*place, self.run_id, values, ran)
        if road := content["provenance"]["road"]:
            self.road = ", road: {name} on {device}, {workers} at once".format(**road)
        executed = machine.RESULTS / ".executed" / self.options.profile / self.notebook.name
        with contextlib.suppress(OSError):  # published already, whatever becomes of this copy
            executed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.notebook, executed)
            shutil.rmtree(self.failed)
