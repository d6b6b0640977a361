"""Runs chapters: checks their parameters, executes what is not up to date, publishes, sums up.

Papermill takes unknown parameters without a word and calls a notebook that ended in `sys.exit(0)`
completed. So the parameters are checked before any kernel starts, and an execution is believed only
when its notebook shows that every cell ran without error and this run's record is there. A chapter
that fails is reported in one line, publishes nothing, and does not hold up the others.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import IO, Any

from filelock import FileLock, Timeout
from jupyter_client import AsyncKernelManager
from nbformat import NotebookNode

from labkit.lab import code, machine, record, report, settings
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

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds between SIGTERM and SIGKILL
LOOK_EVERY = 0.5  # seconds between two looks at the progress file
LOG_EVERY = 60.0  # seconds between two progress lines in a log
RUN_FOLDERS = (".failed", ".executed", ".interactive", "quick", ".locks")


class UsageError(ValueError):
    """A request that cannot be carried out as it was put."""


class Interrupted(Exception):
    """This process was told to stop by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Options:
    """What `python -m labkit run` was asked for."""

    profile: str = "quick"
    given: tuple[str, ...] = ()
    threads: int = 1
    workers: int | None = None
    force: bool = False
    cell_timeout: int | None = None  # seconds


# kernels and signals


class Supervisor:
    """Owns the kernels that run inside the `with` block and the signals that may stop them.

    A kernel leads a process group of its own, so Ctrl-C in a terminal does not reach it. Signals
    are passed on to the whole group, and no process of the group is left behind.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._kernels: list[Popen] = []
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Supervisor:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # under nohup
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.end_kernels()

    def check(self) -> None:
        """Raise Interrupted when a signal has asked for the end."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def end_kernels(self) -> str | None:
        """End what is left of every kernel's group; say how the last kernel died, if it had."""
        cause = None
        for process in self._kernels:
            status = process.poll()
            if status is not None:
                cause = f"by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            deadline = time.monotonic() + GRACE
            while process.poll() is None or _signal_group(process, 0):
                if time.monotonic() > deadline:
                    _signal_group(process, signal.SIGKILL)
                    process.wait()
                    break
                time.sleep(0.02)
        self._kernels.clear()
        return cause

    def manager(self, variables: Mapping[str, str], log: IO[bytes]) -> type[AsyncKernelManager]:
        """A kernel manager: its kernels get `variables` and write what bypasses the notebook,
        such as a crash's last words, to `log`."""
        supervisor = self

        class SupervisedKernelManager(AsyncKernelManager):
            async def start_kernel(self, **options: Any) -> None:
                supervisor.check()
                environment = {**os.environ, **variables}
                await super().start_kernel(env=environment, stdout=log, stderr=log, **options)
                supervisor._kernels.append(self.provisioner.process)
                if supervisor._signum is not None:
                    supervisor._signal_kernels(signal.SIGKILL)

        return SupervisedKernelManager

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """Ask the kernels to end; the client notices their death and the run unwinds from there."""
        if self._signum is not None:
            self._signal_kernels(signal.SIGKILL)
            return
        self._signum = signum
        self._signal_kernels(signal.SIGTERM)
        timer = threading.Timer(GRACE, self._signal_kernels, [signal.SIGKILL])
        timer.daemon = True
        timer.start()

    def _signal_kernels(self, signum: int) -> None:
        for process in list(self._kernels):
            _signal_group(process, signum)


def _signal_group(process: Popen, signum: int) -> bool:
    """Send a signal to a kernel's group; False when the group is gone."""
    try:
        os.killpg(process.pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


# what a person sees


class Display:
    """Draws one chapter's progress: one redrawn line in a terminal, a line a minute in a log.

    Trainings append JSON lines to `file` (see `labkit.lab.store`). A thread reads them; it also
    notices when the terminal of this process is closed, which make does not pass on.
    """

    def __init__(self, chapter: str, file: Path) -> None:
        self.cell = ""
        self._chapter, self._file = chapter, file
        self._fractions: dict[str, float] = {}
        self._sweep, self._title, self._total = "", "", 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Display:
        self._file.write_text("")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        from tqdm import tqdm

        terminal, logged, rest = sys.stderr.isatty(), time.monotonic(), ""
        layout = "{desc} [{elapsed}]"
        bar = tqdm(disable=not terminal, leave=False, dynamic_ncols=True, bar_format=layout)
        with bar, self._file.open(encoding="utf-8") as file, _terminal() as hung_up:
            while not self._stop.wait(LOOK_EVERY):
                if hung_up():
                    os.kill(os.getpid(), signal.SIGHUP)
                    return
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    self._feed(line)
                if terminal:
                    bar.set_description_str(f"{self._chapter}: {self._summary()}", refresh=True)
                elif time.monotonic() - logged >= LOG_EVERY:
                    logged = time.monotonic()
                    print(f"{self._chapter}: {self._summary()}", file=sys.stderr, flush=True)

    def _feed(self, line: str) -> None:
        """Take in one event; a line that was cut off by a kill is passed over."""
        try:
            event = json.loads(line)
            fraction = min(event["done"] / max(event["total"], 1), 1.0)
            sweep, total = event["sweep"], event["tasks"] - event["stored"]
            title = event["task"]
        except (ValueError, KeyError, TypeError):
            return
        if sweep != self._sweep:
            self._sweep, self._total, self._fractions = sweep, total, {}
        self._fractions[title] = fraction
        self._title = f"{title} {event['done']:,.0f}/{event['total']:,.0f}"

    def _summary(self) -> str:
        done = sum(self._fractions.values())
        if done >= max(self._total, len(self._fractions)):
            return self.cell
        return f"{self.cell}, {done:.1f} of {self._total} trainings, {self._title}"


@contextlib.contextmanager
def _terminal() -> Iterator[Any]:
    """A function that tells whether the terminal this process had at the start is closed."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        yield lambda: False
        return
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def hung_up() -> bool:
        try:
            os.tcgetpgrp(descriptor)
        except OSError:
            return not ignored
        return False

    try:
        yield hung_up
    finally:
        os.close(descriptor)


# running


@dataclass
class Outcome:
    """How one chapter ended, and after how many seconds."""

    chapter: str
    status: str = "not run"
    seconds: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)


def run(names: Sequence[str], options: Options) -> int:
    """Run chapters (all when none is named), print a summary; return the exit code."""
    outcomes = [Outcome(name) for name in select(names)]
    status = 0
    install_kernel()
    with lock(options.profile), Supervisor() as supervisor:
        for leftover in (machine.RESULTS / options.profile).glob(".running-*"):
            record.remove(leftover)
        _preflight(outcomes, options)
        refused = [outcome for outcome in outcomes if outcome.status == "failed"]
        try:
            for position, outcome in enumerate(outcomes, start=1):
                if outcome in refused or (options.given and refused):
                    continue  # `--set` is meant for all of them: if one refuses it, nothing runs
                supervisor.check()
                print(f"[{position}/{len(outcomes)}] {outcome.chapter}: ", end="", flush=True)
                _bring_up_to_date(outcome, options, supervisor)
        except Interrupted as interruption:
            print(f"{interruption}; the same command goes on from here", file=sys.stderr)
            status = interruption.exit_code
    width = max(len(outcome.chapter) for outcome in outcomes)
    print(f"\n{'chapter':<{width}}  {'status':<11}  seconds")
    for o in outcomes:
        print(f"{o.chapter:<{width}}  {o.status:<11}  {o.seconds:7.1f}")
    if all(outcome.status == "up to date" for outcome in outcomes):
        print("Everything was up to date. To run all the same: make reproduce FORCE=1, or --force")
    elif options.profile == "quick":
        executed = shown(machine.RESULTS / ".executed" / "quick")
        print(f"Notebooks with their outputs: {executed}; records and figures: results/quick")
    sys.stdout.flush()
    return status or int(any(outcome.status == "failed" for outcome in outcomes))


def select(names: Sequence[str]) -> list[str]:
    """Full chapter names for names, numbers ("2", "02") or file names; all of them for none."""
    known = chapters()
    if not known:
        raise UsageError(f"no chapters in {machine.NOTEBOOKS}")
    selected = set()
    for name in names or known:
        wanted = Path(name).name.removesuffix(".ipynb")
        matches = [k for k in known if wanted == k or wanted.zfill(2) == k.split("_")[0]]
        if not matches:
            close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"unknown chapter '{name}'.{hint} There are {', '.join(known)}")
        selected.update(matches)
    return sorted(selected)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the only run of a profile; UsageError when another process holds it."""
    path = machine.RESULTS / ".locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another run of '{name}' is under way: wait for it or stop it") from None
    except (NotImplementedError, OSError) as error:
        raise UsageError(
            f"{shown(path)} cannot be locked ({error}): put the lab on a disk that knows file locks"
        ) from error
    with held:
        yield


def _preflight(outcomes: Sequence[Outcome], options: Options) -> None:
    """Resolve every chapter's parameters; mark and report those that cannot be run."""
    for outcome in outcomes:
        place = f"notebooks/{outcome.chapter}.ipynb"
        try:
            cells = read_notebook(machine.ROOT / place).cells
            outcome.values = settings.resolve(
                outcome.chapter, cells, options.profile, options.given
            )
        except (ChapterError, settings.SettingsError) as error:
            if not isinstance(error, ChapterError):
                error = ChapterError(place, str(error), "correct it and run again; nothing was run")
            outcome.status = "failed"
            print(f"FAILED {error}", file=sys.stderr, flush=True)


def _bring_up_to_date(outcome: Outcome, options: Options, supervisor: Supervisor) -> None:
    chapter, profile = outcome.chapter, options.profile
    if not options.force and not report.stale_reasons(chapter, profile, outcome.values):
        outcome.status = "up to date"
        print(outcome.status, flush=True)
        return
    print(f"running, profile {profile}", flush=True)
    start = time.monotonic()
    outcome.status = "interrupted"
    try:
        Execution(chapter, options, outcome.values).run(supervisor)
        outcome.status = "finished" if profile == "quick" else "published"
    except ChapterError as error:
        outcome.status = "failed"
        print(f"FAILED {error}", file=sys.stderr, flush=True)
    finally:
        outcome.seconds = time.monotonic() - start
    print(f"{chapter}: {outcome.status} after {outcome.seconds:.1f} s", flush=True)


class Execution:
    """One execution of one chapter; `run` publishes it or raises ChapterError."""

    def __init__(self, chapter: str, options: Options, values: Mapping[str, Any]) -> None:
        self.chapter, self.options, self.values = chapter, options, dict(values)
        self.run_id = uuid.uuid4().hex
        self.place = f"notebooks/{chapter}.ipynb"
        flags = ["--force"] * options.force + [f"--set {text}" for text in options.given]
        command = ["python -m labkit run", chapter, "--profile", options.profile, *flags]
        self.again = " ".join(command)
        self.staging = machine.RESULTS / options.profile / f".running-{chapter}"
        self.notebook = self.staging / f"{chapter}.ipynb"
        self.log = self.staging / f"{chapter}.log"

    def run(self, supervisor: Supervisor) -> None:
        """Execute, look at what was written, publish; raise Interrupted when told to stop."""
        try:
            self.staging.mkdir(parents=True)
            digests = code.chapter_code(self.chapter)
            self._execute(supervisor)
            supervisor.check()
            self._check_cells()
            self._publish(digests)
        except ChapterError:
            self._keep_failed()
            raise
        except Interrupted:
            raise
        except Exception as error:  # whatever a cell's outputs do to papermill: no other chapter's
            self._keep_failed()
            disk = isinstance(error, OSError)
            step = "mend the folder or free some space" if disk else f"read {self._kept('.ipynb')}"
            raise ChapterError(self.place, str(error), f"{step}, then {self.again}") from error
        finally:
            with contextlib.suppress(OSError):
                record.remove(self.staging)

    def _execute(self, supervisor: Supervisor) -> None:
        import papermill

        for name in ("papermill", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the failure line says it
        variables = machine.kernel_environment(self.options.threads) | {
            "LABKIT_ROOT": str(machine.ROOT),
            "LABKIT_CACHE": str(machine.CACHE),
            "LABKIT_STAGING": str(self.staging),
            "LABKIT_RUN_ID": self.run_id,
            "LABKIT_PROGRESS": str(self.staging / "progress"),
        }
        if self.options.workers:
            variables["LABKIT_WORKERS"] = str(self.options.workers)
        index = -1
        source = read_notebook(machine.ROOT / self.place)
        with (
            Display(self.chapter, self.staging / "progress") as display,
            self.log.open("wb") as log,
        ):

            def started(cell: NotebookNode, cell_index: int) -> None:
                nonlocal index
                index = cell_index
                display.cell = f"cell {cell_index + 1} of {len(source.cells)}"

            try:
                papermill.execute_notebook(
                    source,
                    str(self.notebook).replace("{", "{{").replace("}", "}}"),
                    parameters=self.values,
                    kernel_name=machine.KERNEL,
                    language="python",
                    cwd=str(self.staging),
                    progress_bar=False,
                    kernel_manager_class=supervisor.manager(variables, log),
                    on_cell_start=started,
                    execution_timeout=self.options.cell_timeout,
                    iopub_timeout=60,
                    force_raise_errors=True,
                    store_widget_state=False,
                )
            except papermill.exceptions.PapermillExecutionError:
                pass  # the written notebook holds the error
            except (RuntimeError, TimeoutError) as error:  # a dead, mute or stillborn kernel
                died = supervisor.end_kernels()
                supervisor.check()
                raise self._dead_kernel(source, index, died, error) from error
            finally:
                supervisor.end_kernels()

    def _dead_kernel(
        self, source: NotebookNode, index: int, died: str | None, error: Exception
    ) -> ChapterError:
        if index < 0:
            return ChapterError(
                self.place,
                f"no kernel started: {one_line(str(error))}",
                f"read {self._kept('.log')}; make setup installs the kernel anew",
            )
        executed = read_notebook(self.notebook) if self.notebook.exists() else source
        if re.search(r"\b(exit|quit)\(\)", executed.cells[index - 1].source):
            index -= 1  # they end the kernel when the next cell is asked for
        where = f"{self.place}, {describe_cell(executed, index)}"
        if isinstance(error, TimeoutError):
            cause = f"it ran longer than {self.options.cell_timeout} s"
            return ChapterError(where, cause, f"{self.again} --cell-timeout SECONDS")
        if died == "by SIGKILL":
            cause = "the kernel died, by SIGKILL; often the memory ran out"
            return ChapterError(where, cause, self._smaller())
        cause = f"the kernel died, {died}" if died else f"no kernel: {one_line(str(error))}"
        return ChapterError(where, cause, self._mend())

    def _check_cells(self) -> None:
        other_steps = {
            "TerminatedWorkerError": self._smaller(),  # joblib's, often for its memory
            "OSError": f"free some space or mend the folder, then {self.again}",
            "PermissionError": f"mend the folder's permissions, then {self.again}",
            **dict.fromkeys(("DownloadError", "ClusterError"), self.again),
        }
        check_cells(read_notebook(self.notebook), self.place, self._mend(), other_steps)

    def _publish(self, digests: Mapping[str, str]) -> None:
        """Publish the record of this run; ValueError unless this run wrote a sound one."""
        staged = self.staging / "record.json"
        if not staged.exists():
            raise ValueError("it wrote no record: let its last code cell call record.write(...)")
        if record.read(staged)["run_id"] != self.run_id:
            raise ValueError("its record is not of this run")
        now = code.chapter_code(self.chapter)
        ran = {n: d if now.get(n) == d else "edited during the run" for n, d in digests.items()}
        values = {name: value for name, value in self.values.items() if name != "profile"}
        record.publish(self.staging, self.chapter, self.options.profile, values, ran)
        executed = machine.RESULTS / ".executed" / self.options.profile / self.notebook.name
        with contextlib.suppress(OSError):  # published already, whatever becomes of this copy
            executed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.notebook, executed)
            for suffix in (".ipynb", ".log"):
                (machine.ROOT / self._kept(suffix)).unlink(missing_ok=True)

    def _mend(self) -> str:
        return f"read {self._kept('.ipynb')}, correct the cell, then {self.again}"

    def _smaller(self) -> str:
        return f"close other programs, then {self.again} --workers 1 (finished trainings are kept)"

    def _kept(self, suffix: str) -> str:
        folder = machine.RESULTS / ".failed" / self.options.profile
        return shown(folder / f"{self.chapter}{suffix}")

    def _keep_failed(self) -> None:
        """Keep the broken notebook and what its kernel last said, where there is room for them."""
        for path in (self.notebook, self.log):
            kept = machine.ROOT / self._kept(path.suffix)
            with contextlib.suppress(OSError):
                kept.unlink(missing_ok=True)
                if path.exists() and path.stat().st_size:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, kept)


def clean() -> None:
    """Remove what runs leave behind and git ignores: run folders and finished trainings."""
    with contextlib.ExitStack() as stack:
        for name in machine.PROFILES:
            stack.enter_context(lock(name))
    for folder in [machine.DATA / "cache", *(machine.RESULTS / name for name in RUN_FOLDERS)]:
        if folder.is_dir() and not folder.is_symlink():
            record.remove(folder)
            print(f"removed {shown(folder)}")
