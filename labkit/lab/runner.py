"""Runs chapters: checks their parameters, executes what is not up to date, sums up.

Papermill takes unknown parameter names and wrong types without a word, so every chapter is checked
before the first one starts. One that fails is reported in one line, publishes nothing, and does not
hold up the others.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.lab import environment, results
from labkit.lab.execution import ChapterError, Execution, read_notebook
from labkit.lab.kernels import Interrupted, Supervisor
from labkit.lab.parameters import ParameterError, check, parse_given, read_parameters, read_settings
from labkit.lab.publication import VERIFIED_PROFILES, shown

RUN_FOLDERS = (".failed", ".executed", ".interactive", "quick", ".staging")  # its locks go last


class UsageError(ValueError):
    """A request that cannot be carried out as it was put."""


@dataclass(frozen=True)
class Options:
    """What `python -m labkit run` was asked for."""

    profile: str = "quick"
    given: tuple[str, ...] = ()
    threads: int = 1
    workers: int | None = None
    force: bool = False


@dataclass
class Outcome:
    """How one chapter ended, and after how many seconds."""

    chapter: str
    status: str = "not run"
    seconds: float = 0.0


def run(chapters: Sequence[str], options: Options) -> int:
    """Run chapters (all when none is named), print a summary; return the exit code."""
    outcomes = [Outcome(name) for name in select(chapters)]
    code = 0
    with lock(options.profile), Supervisor() as supervisor:
        results.recover(options.profile)
        plans = _preflight(outcomes, options)
        if options.given and len(plans) < len(outcomes):
            plans = {}  # a setting is not for all of them: nothing runs
        try:
            for position, outcome in enumerate(outcomes, start=1):
                if outcome.chapter in plans:
                    supervisor.check()
                    print(f"[{position}/{len(outcomes)}] {outcome.chapter}: ", end="", flush=True)
                    _run_chapter(outcome, plans[outcome.chapter], options, supervisor)
        except Interrupted as interruption:
            again = "the same command again goes on from here"
            print(f"{interruption}; {again}", file=sys.stderr, flush=True)
            code = interruption.exit_code
    print(_summary(outcomes), flush=True)
    if all(outcome.status == "up to date" for outcome in outcomes):
        print("Nothing had to run. To run all the same: make reproduce FORCE=1, or --force")
    elif any(outcome.status == "finished" for outcome in outcomes):
        print(f"These results are not reported. {_where(options.profile)}")
    return code or int(any(outcome.status == "failed" for outcome in outcomes))


def select(chapters: Sequence[str]) -> list[str]:
    """Full chapter names for names, numbers ("02") or notebook file names; all of them for none."""
    known = environment.chapters()
    if not known:
        raise UsageError(f"no chapters in {environment.NOTEBOOKS}")
    names = []
    for given in chapters or known:
        wanted = Path(given).name.removesuffix(".ipynb")
        number = wanted.zfill(2)  # 2 is 02
        found = [name for name in known if wanted == name or number == name.split("_")[0]]
        if not found:
            close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"unknown chapter '{given}'.{hint} Known: {', '.join(known)}")
        names += [name for name in found if name not in names]
    return sorted(names)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the only run of a profile; raise UsageError when another process holds it.

    The lock belongs to the open file, so it ends with this process, however that ends.
    """
    import fcntl

    path = environment.RESULTS / ".staging" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(
                f"another run of '{name}' is under way (process {file.read().strip() or 'unknown'})"
                "; wait for it or stop it, then try again"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _preflight(outcomes: Sequence[Outcome], options: Options) -> dict[str, dict[str, Any]]:
    """The values to inject for each sound chapter; the others are reported and marked as failed."""
    plans = {}
    for outcome in outcomes:
        try:
            plans[outcome.chapter] = plan(outcome.chapter, options)
        except ChapterError as error:
            outcome.status = "failed"
            print(f"FAILED {error}", file=sys.stderr, flush=True)
    return plans


def plan(chapter: str, options: Options) -> dict[str, Any]:
    """The checked values that a run would inject into a chapter; ChapterError when it cannot."""
    place = f"notebooks/{chapter}.ipynb"
    settings_place = f"notebooks/profiles/{options.profile}/{chapter}.json"
    try:
        parameters = read_parameters(
            read_notebook(environment.NOTEBOOKS / f"{chapter}.ipynb").cells, place
        )
        settings = read_settings(
            environment.PROFILES / options.profile / f"{chapter}.json", settings_place
        )
        check(settings, parameters, place, settings_place)
        given = parse_given(options.given, parameters, place)
        if "profile" not in parameters or not parameters["profile"].accepts(options.profile):
            raise ParameterError(
                f"{place}: the parameters cell must have the line 'profile: str = \"quick\"'"
            )
    except ParameterError as error:
        message = str(error).removeprefix(f"{place}: ")
        raise ChapterError(place, message, "correct it and run again; nothing was run") from error
    return {"profile": options.profile, **settings, **given}


def _run_chapter(
    outcome: Outcome, values: dict[str, Any], options: Options, supervisor: Supervisor
) -> None:
    """Bring one chapter up to date and write down how that went."""
    fixed = not (options.force or options.given)
    if fixed and results.up_to_date(outcome.chapter, options.profile):
        outcome.status = "up to date"
        print(outcome.status, flush=True)
        return

    print(f"running, profile {options.profile}", flush=True)
    start = time.monotonic()
    outcome.status = "interrupted"
    try:
        flags = ["--force"] * options.force + [f"--set {text}" for text in options.given]
        Execution(outcome.chapter, options.profile, values, flags).run(
            supervisor, threads=options.threads, workers=options.workers
        )
        outcome.status = "published" if options.profile in VERIFIED_PROFILES else "finished"
    except ChapterError as error:
        outcome.status = "failed"
        print(f"FAILED {error}", file=sys.stderr, flush=True)
    finally:
        outcome.seconds = time.monotonic() - start
    print(f"{outcome.chapter}: {outcome.status} after {outcome.seconds:.1f} s", flush=True)


def _summary(outcomes: Sequence[Outcome]) -> str:
    width = max(len("chapter"), *(len(outcome.chapter) for outcome in outcomes))
    rows = [f"{'chapter':<{width}}  {'status':<11}  seconds"]
    rows += [f"{o.chapter:<{width}}  {o.status:<11}  {o.seconds:7.1f}" for o in outcomes]
    return "\n" + "\n".join(rows)


def _where(profile: str) -> str:
    """Where the results of a profile are to be looked at."""
    executed = shown(environment.RESULTS / ".executed" / profile)
    return f"Notebooks with their outputs: {executed}; records and figures: results/{profile}"


def clean() -> None:
    """Remove what runs leave behind and git ignores: run folders and finished trainings."""
    with contextlib.ExitStack() as stack:
        for name in (*environment.PROFILE_NAMES, "notebooks"):
            stack.enter_context(lock(name))
        for name in environment.PROFILE_NAMES:
            results.recover(name)  # else what is half published would stay so
        folders = [environment.RESULTS / name for name in RUN_FOLDERS]
        for folder in [environment.DATA / "cache", *folders]:
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
                print(f"removed {folder.relative_to(environment.ROOT)}")
