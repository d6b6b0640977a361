"""The command line: `python -m labkit --help`."""

from __future__ import annotations

import argparse
import os
import site
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; return its exit status."""
    _leave_out_foreign_packages()
    try:
        return _carry_out(arguments)
    except ModuleNotFoundError as error:
        print(
            f"labkit: {sys.executable} has no {error.name}: run make setup, then use make, or the "
            "Python that it names",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:  # as in `labkit verify | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("labkit: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"labkit: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _carry_out(arguments: Sequence[str] | None) -> int:
    try:
        parser = _parser()
        options, rest = parser.parse_known_args(arguments)
        if rest and options.command is not _lab:
            parser.error(f"unrecognised: {' '.join(rest)}")
        options.rest = rest
        return options.command(options)
    finally:
        sys.stdout.flush()  # a pipe that was closed meanwhile is noticed here


def _leave_out_foreign_packages() -> None:
    """Take PYTHONPATH out of this process and of those it starts, but for the lab's root."""
    root = str(Path(__file__).resolve().parents[1])
    given = os.environ.pop("PYTHONPATH", "")
    paths = {os.path.abspath(path) for path in given.split(os.pathsep) if path}
    paths -= {root, *site.getsitepackages()}
    if root in map(os.path.abspath, given.split(os.pathsep)):
        os.environ["PYTHONPATH"] = root
    if paths:
        sys.path[:] = [path for path in sys.path if os.path.abspath(path) not in paths]
        print("labkit: PYTHONPATH is left out: the lab has its own packages", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m labkit", description="Runs the course lab.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, command) -> argparse.ArgumentParser:
        described = f"{text[0].upper()}{text[1:]}."
        sub = commands.add_parser(name, help=text, description=described)
        sub.set_defaults(command=command)
        return sub

    _add_run(add("run", "run chapters and publish their results", _run))

    worker = add("worker", "train what a Dask scheduler hands out", _worker)
    worker.add_argument("scheduler", metavar="ADDRESS", help="such as tcp://teacher.example:8786")
    worker.add_argument("--processes", type=_positive, help="trainings at once (one for each core)")

    verify = add("verify", "check that the published results are as written", _verify)
    verify.add_argument("--strict", action="store_true", help="stale results are errors too")

    add("report", "write results/REPORT.md from the records", _report)

    compare = add("compare", "compare two records, or two folders of them", _compare)
    compare.add_argument("a", metavar="A", type=Path, help="a record file, or a folder of records")
    compare.add_argument("b", metavar="B", type=Path, help="the other file or folder")
    compare.add_argument("--identical", action="store_true", help="no tolerance: bit for bit")

    notebooks = add("notebooks", "refresh the outputs stored in the notebooks", _notebooks)
    notebooks.add_argument("chapters", nargs="*", metavar="CHAPTER", help="as of run; else all")

    lab = add("lab", "open JupyterLab on working copies; other options are JupyterLab's", _lab)
    lab.add_argument("--threads", type=_positive, default=1, help="threads of each process (1)")

    data = add("data", "fetch and verify the data sets and models that are downloaded", _data)
    data.add_argument("names", nargs="*", metavar="NAME", help="without any, what `cpu` needs")
    data.add_argument("--check", action="store_true", help="fetch nothing, hash what is there")

    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("chapters", nargs="*", metavar="CHAPTER", help="02 or its full name; else all")
    run.add_argument(
        "--profile", choices=["quick", "cpu", "full", "auto"], default="auto",
        help="auto (the default): full where there is a GPU, else cpu",
    )  # fmt: skip
    run.add_argument(
        "--set", dest="given", action="append", default=[], metavar="NAME=VALUE",
        help="override one parameter of the cell tagged parameters, may be repeated",
    )  # fmt: skip
    run.add_argument("--threads", type=_positive, default=1, help="threads of each process (1)")
    run.add_argument("--workers", type=_positive, help="trainings at once (one for each core)")
    run.add_argument("--force", action="store_true", help="run also what is up to date")
    run.add_argument(
        "--cell-timeout", type=_positive, metavar="SECONDS", help="end a cell that runs longer"
    )
    run.add_argument(
        "--dask", metavar="ADDRESS",
        help="train on the Dask cluster of this scheduler, as LABKIT_DASK=ADDRESS does",
    )  # fmt: skip


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got '{text}'")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from labkit.lab import run

    if options.dask:
        os.environ["LABKIT_DASK"] = options.dask
    profile = options.profile
    if profile in ("auto", "full"):
        import torch

        gpu = torch.cuda.is_available()
        if profile == "full" and not gpu:
            print(
                "labkit: there is no GPU here: the profile full will take days; cpu is made for "
                "such a machine",
                file=sys.stderr,
            )
        profile = "full" if gpu or profile == "full" else "cpu"
    wanted = run.Options(
        profile,
        tuple(options.given),
        options.threads,
        options.workers,
        options.force,
        options.cell_timeout,
    )
    return run.run(options.chapters, wanted)


def _worker(options: argparse.Namespace) -> int:
    from labkit.lab import machine, store

    store.become_worker(options.scheduler, options.processes or machine.cpu_count())
    return 0


def _verify(options: argparse.Namespace) -> int:
    from labkit.lab import report

    verification = report.verify()
    print(verification)
    return int(bool(verification.tampered or (options.strict and verification.stale)))


def _report(options: argparse.Namespace) -> int:
    from labkit.lab import machine, report

    path = machine.shown(report.write())
    print(f"{report.verdicts()}\n\nThe claims and our verdicts; reasons and numbers: {path}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from labkit.lab import record

    a, b = (record.read_all(path) for path in (options.a, options.b))
    if len(a) == len(b) == 1:  # two files may have any names
        a, b = ({"record": next(iter(records.values()))} for records in (a, b))
    differences = [f"{name}: only in one of the two" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        found = record.compare(a[name], b[name], options.identical)
        differences += [f"{name}: {difference}" for difference in found]
    print(f"{len(a.keys() & b.keys())} compared, differences: {len(differences) or 'none'}")
    print("\n".join(differences), end="\n" * bool(differences))
    return int(bool(differences))


def _notebooks(options: argparse.Namespace) -> int:
    from labkit.lab import notebooks, run

    chapters = run.select(options.chapters)
    status = run.run(chapters, run.Options("quick", force=True))
    for chapter in chapters if not status else ():
        notebooks.store_outputs(chapter)
    return status


def _lab(options: argparse.Namespace) -> int:
    from labkit.lab import notebooks

    return notebooks.open_lab(options.threads, options.rest)


def _data(options: argparse.Namespace) -> int:
    from labkit.lab import fetch

    return fetch.data(options.names, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
