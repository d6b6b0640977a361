"""The command line: `python -m labkit --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.lab import environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; return its exit code."""
    parser = _parser()
    options, options.rest = parser.parse_known_args(arguments)
    if options.rest and options.command is not _lab:
        parser.error(f"unrecognised: {' '.join(options.rest)}")
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment
    try:
        return options.command(options)
    except ModuleNotFoundError as error:
        print(
            f"labkit: {sys.executable} has no {error.name}; run make setup, then use make, or the "
            "Python that setup names",
            file=sys.stderr,
        )
        return 1
    except (ValueError, OSError) as error:
        print(f"labkit: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m labkit", description="Runs the course lab.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_runs(commands)

    verify = _add(commands, "verify", "check that the published results are as written")
    verify.add_argument("--strict", action="store_true", help="stale results are errors too")
    verify.set_defaults(command=_verify)

    report = _add(commands, "report", "write results/REPORT.md from the records")
    report.set_defaults(command=_report)

    compare = _add(commands, "compare", "compare two records or two folders of them")
    compare.add_argument("a", metavar="A", help="a record file, or a folder of records")
    compare.add_argument("b", metavar="B", help="the other file or folder")
    compare.add_argument("--identical", action="store_true", help="no tolerance: bit for bit")
    compare.set_defaults(command=_compare)

    notebooks = _add(commands, "notebooks", "refresh the outputs stored in the notebooks")
    notebooks.add_argument("chapters", nargs="*", metavar="CHAPTER", help="as of run; else all")
    notebooks.set_defaults(command=_notebooks)

    lab = _add(
        commands, "lab", "open JupyterLab; other options, such as --no-browser, are JupyterLab's"
    )
    lab.add_argument("--threads", type=_positive, default=1, help="threads of each process (1)")
    lab.set_defaults(command=_lab)

    data = _add(commands, "data", "fetch and verify the data sets that are downloaded")
    data.add_argument(
        "names", nargs="*", metavar="NAME",
        help="imdb, glove, minilm or bert-base; else all but bert-base",
    )  # fmt: skip
    data.add_argument("--check", action="store_true", help="fetch nothing, hash what is there")
    data.set_defaults(command=_data)

    bench = _add(commands, "bench", "measure how fast the lab is, about 20 minutes")
    bench.add_argument(
        "sections", nargs="*", metavar="SECTION",
        help="ladder, replicas, epoch, growth, start or sweep; else all",
    )  # fmt: skip
    bench.add_argument("--small", action="store_true", help="try everything, write nothing")
    bench.set_defaults(command=_bench)

    clean = _add(commands, "clean", "remove unpublished runs and finished trainings")
    clean.set_defaults(command=_clean)
    return parser


def _add_runs(commands: argparse._SubParsersAction) -> None:
    """The commands that train."""
    run = _add(commands, "run", "run chapters and publish their results")
    run.add_argument("chapters", nargs="*", metavar="CHAPTER", help="02 or its full name; else all")
    run.add_argument(
        "--profile", choices=[*environment.PROFILE_NAMES, "auto"], default="auto",
        help="auto (the default): full where there is a CUDA device, else cpu",
    )  # fmt: skip
    run.add_argument(
        "--set", dest="given", action="append", default=[], metavar="NAME=VALUE",
        help="override one parameter of the cell tagged parameters, may be repeated",
    )  # fmt: skip
    run.add_argument("--threads", type=_positive, default=1, help="threads of each process (1)")
    run.add_argument("--workers", type=_positive, help="trainings at once (one for each core)")
    run.add_argument("--force", action="store_true", help="run also what is up to date")
    run.add_argument(
        "--dask", metavar="ADDRESS",
        help="train on the Dask cluster of this scheduler, as DASK_SCHEDULER=ADDRESS does",
    )  # fmt: skip
    run.set_defaults(command=_run)

    worker = _add(commands, "worker", "train what a Dask scheduler hands out")
    worker.add_argument("scheduler", metavar="ADDRESS", help="such as tcp://teacher.example:8786")
    worker.add_argument(
        "--processes", type=_positive, default=os.cpu_count() or 1,
        help="trainings at once (one for each core)",
    )  # fmt: skip
    worker.set_defaults(command=_worker)


def _add(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    """The parser of a command whose list entry and description are `text`."""
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got '{text}'")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from labkit.lab import runner

    if options.dask:
        os.environ["DASK_SCHEDULER"] = options.dask
    profile = options.profile
    if profile == "auto":
        import torch

        profile = "full" if torch.cuda.is_available() else "cpu"
    return runner.run(
        options.chapters,
        runner.Options(
            profile, tuple(options.given), options.threads, options.workers, options.force
        ),
    )


def _worker(options: argparse.Namespace) -> int:
    from labkit.lab import cluster

    cluster.work(options.scheduler, options.processes)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from labkit.lab import results

    verification = results.verify()
    print(verification.report())
    return int(bool(verification.tampered or (options.strict and verification.stale)))


def _report(options: argparse.Namespace) -> int:
    from labkit.lab import report

    print(f"wrote {report.write()}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from labkit.lab import results

    a, b = _records(Path(options.a)), _records(Path(options.b))
    if len(a) == len(b) == 1:  # two files may have any names
        a, b = ({"record": next(iter(records.values()))} for records in (a, b))
    compare = results.identical if options.identical else results.compare
    differences = [f"{name}: only in one of the two" for name in sorted(a.keys() ^ b.keys())]
    for name in sorted(a.keys() & b.keys()):
        differences += [f"{name}: {difference}" for difference in compare(a[name], b[name])]
    print(f"{len(a.keys() & b.keys())} compared, differences: {len(differences) or 'none'}")
    print("\n".join(differences), end="\n" * bool(differences))
    return int(bool(differences))


def _records(path: Path) -> dict[str, dict]:
    """The record in a file, or those in a folder, by name."""
    from labkit.lab.publication import read_any_record

    if not path.exists():
        raise ValueError(f"there is no {path}")
    files = sorted(path.glob("[0-9]*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"no records in {path}")
    return {file.stem: read_any_record(file) for file in files}


def _notebooks(options: argparse.Namespace) -> int:
    from labkit.lab import refresh, runner

    return refresh.refresh_all(runner.select(options.chapters))


def _lab(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "jupyterlab", str(environment.NOTEBOOKS), *options.rest]
    if os.geteuid() == 0 and "--allow-root" not in command:  # as in a container
        command.append("--allow-root")
    variables = {**os.environ, **environment.kernel_environment(options.threads)}
    os.execve(sys.executable, command, variables)


def _data(options: argparse.Namespace) -> int:
    from labkit.lab import data_command

    return data_command.data(options.names, check=options.check)


def _bench(options: argparse.Namespace) -> int:
    variables = environment.kernel_environment(1)
    if any(os.environ.get(name) != value for name, value in variables.items()):
        # the allocator's settings act from a process' start
        os.execve(sys.executable, [sys.executable, "-m", "labkit", *sys.argv[1:]],
                  os.environ | variables)  # fmt: skip
    from benchmarks import bench

    environment.prepare(device="cpu")
    print(bench.run(options.sections, small=options.small))
    return 0


def _clean(options: argparse.Namespace) -> int:
    from labkit.lab import runner

    runner.clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())
