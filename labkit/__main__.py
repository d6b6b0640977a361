"""The command line: `python -m labkit --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

ROOT = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__" and os.environ.get("PYTHONPATH") not in (None, "", ROOT):
    print("labkit: PYTHONPATH is left out: the lab has its own packages", file=sys.stderr)
    os.environ["PYTHONPATH"] = ROOT  # kernels and workers find labkit there
    os.execv(sys.executable, sys.orig_argv)

import typer  # noqa: E402 (from the lab's own packages)

app = typer.Typer(
    help="Runs the course lab.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    result_callback=lambda status: sys.exit(status or 0),
)
Chapters = Annotated[list[str] | None, typer.Argument(help="02 or its full name; else all")]
Count = Annotated[int | None, typer.Option(min=1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; return its exit status."""
    try:
        app(arguments, prog_name="python -m labkit")
    except SystemExit as end:
        return int(end.code or 0)
    except (ValueError, OSError) as error:
        typer.echo(f"labkit: {error}", err=True)
        return 2 if isinstance(error, ValueError) else 1


@app.command()
def run(
    chapters: Chapters = None,
    profile: Literal["quick", "cpu", "full", "auto"] = "auto",
    given: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE")] = None,
    workers: Count = None,
    force: Annotated[bool, typer.Option("--force", help="also what is up to date")] = False,
    cell_timeout: Annotated[int | None, typer.Option(min=1, metavar="SECONDS")] = None,
    dask: Annotated[str | None, typer.Option(help="a scheduler, as LABKIT_DASK names it")] = None,
) -> int:
    """Run chapters and publish their results; `auto` is full where there is a GPU, else cpu."""
    from labkit.lab import run

    if dask:
        os.environ["LABKIT_DASK"] = dask
    if profile in ("auto", "full"):
        import torch

        gpu = torch.cuda.is_available()
        if profile == "full" and not gpu:
            message = "the profile full will take days; cpu is made for such a machine"
            typer.echo(f"labkit: there is no GPU here: {message}", err=True)
        profile = "full" if gpu or profile == "full" else "cpu"
    settings = tuple(given or ())
    options = run.Options(profile, settings, workers, force, cell_timeout)
    return run.run(chapters or [], options)


@app.command()
def worker(scheduler: str, processes: Count = None) -> None:
    """Train what a Dask scheduler, such as tcp://teacher.example:8786, hands out."""
    from labkit.lab import store

    store.become_worker(scheduler, processes)


@app.command()
def verify(strict: Annotated[bool, typer.Option("--strict")] = False) -> int:
    """Check that results are as written; with --strict, what is stale is an error, too."""
    from labkit.lab import report

    lines = report.verify()
    typer.echo("\n".join(lines) or "every record, figure and page is as written and up to date")
    return int(any(strict or line.startswith("tampered") for line in lines))


@app.command()
def report() -> None:
    """Write results/REPORT.md from the records, the same as data, and what an archive asks."""
    from labkit.lab import machine, report

    typer.echo(f"written: {' '.join(map(machine.shown, report.write()))}")


@app.command()
def notebooks(chapters: Chapters = None) -> int:
    """Run chapters in the profile quick and store their outputs in the notebooks."""
    from labkit.lab import notebooks, run

    names = run.select(chapters or [])
    status = run.run(names, run.Options("quick", force=True))
    for name in names if not status else ():
        notebooks.store_outputs(name)
    return status


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> int:
    """Open JupyterLab on working copies of the chapters; other options are JupyterLab's."""
    from labkit.lab import notebooks

    return notebooks.open_lab(context.args)


@app.command()
def data(
    names: Annotated[list[str] | None, typer.Argument(help="else what `cpu` needs")] = None,
) -> int:
    """Fetch and verify the data sets and models that are downloaded."""
    from labkit.lab import fetch

    return fetch.data(names or [])


@app.command()
def handout() -> None:
    """Make the students' notebooks, without solutions, and the teacher's nbgrader course."""
    from labkit.lab import handout, machine

    names = handout.make(machine.ROOT / "handout")
    print(f"{', '.join(names)}: handout/students and handout/course; see docs/teachers.md")


if __name__ == "__main__":
    sys.exit(main())
