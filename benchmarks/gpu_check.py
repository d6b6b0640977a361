"""Checks and times what the lab does on a GPU: `python benchmarks/gpu_check.py [STEP ...]`.

Each step runs in a process of its own and says what it measured or, by name, why it failed; the
next one runs all the same. All of them take seven minutes. gpu.json and GPU.md are written beside
this file, or into `--out`. The exit status is 1 if a step failed, 2 without a GPU. `--rehearse`
takes every step in miniature on the CPU, by Triton's interpreter, and writes only into `--out`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
SECONDS = 465  # for all steps together
LINES = 16  # the last ones of a step that failed
MPS = "nvidia-cuda-mps-control"


class Step(NamedTuple):
    """For how many seconds it may run, what else it needs, whether beside others, or not at all."""

    seconds: int
    needs: str = ""
    beside: bool = False  # it is not timed
    optional: bool = False


STEPS = {
    "facts": Step(60),
    **{f"parity-kernel-{cell}": Step(150, "triton", True) for cell in ("lstm", "srn")},
    "parity-kernel-lstm-ieee": Step(150, "triton", True),  # are the products at fault?
    **{f"parity-graphs-{cell}": Step(150, "", True) for cell in ("lstm", "srn")},
    "protocols": Step(150, "", True),
    **{f"chapter-0{number}": Step(150, "pooch seaborn", True) for number in range(1, 7)},
    "speeds": Step(120, "triton"),
    "study": Step(150),
    "accuracies": Step(120, "scipy"),
    "peer": Step(90, "triton jax", optional=True),
    "sine": Step(90),
    "reviews": Step(100, "pooch"),
    "encoder": Step(120, "pooch transformers"),
    "reviews-mps": Step(60, f"pooch {MPS}", optional=True),
    "encoder-mps": Step(60, f"pooch transformers {MPS}", optional=True),
}
# what every step needs, and all that must be brought where nothing can be fetched
NEEDED = "torch numpy pydantic joblib tqdm safetensors"
ALL = (
    f"{NEEDED} pydantic_core annotated_types typing_inspection scipy sklearn seaborn transformers "
    "tokenizers huggingface_hub pooch platformdirs requests filelock torchtext triton"
)


def missing(names: str) -> list[str]:
    """Which of some packages and programs are not here."""
    return [n for n in names.split() if not (shutil.which(n) if n == MPS else find_spec(n))]


class Run:
    """A step in a process of its own."""

    def __init__(self, name: str, folder: Path, seconds: float, small: bool) -> None:
        self.name, self.began, self.seconds = name, time.monotonic(), seconds
        self.rows, self.log = folder / f"{name}.json", folder / f"{name}.log"
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {
            "PYTHONPATH": os.pathsep.join(path),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "LABKIT_CACHE": str(folder / "cache"),
            "LABKIT_STAGING": str(folder / f"record-{name}"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            **({"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"} if small else {}),
        }
        command = [sys.executable, str(FOLDER / "gpu_steps.py"), name, str(self.rows)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command + ["--rehearse"] * small,
                env=os.environ | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def result(self) -> dict[str, Any]:
        """Wait for its end; print and return what it noted, and how it failed."""
        try:
            status = self.process.wait(max(self.began + self.seconds - time.monotonic(), 1))
            why = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            why = f"it ran longer than {self.seconds:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and whatever it has started
        seconds = time.monotonic() - self.began
        rows = json.loads(self.rows.read_text("utf-8")) if self.rows.exists() else []
        words = self.log.read_text("utf-8", "replace").splitlines()[-LINES:] if why else []
        print(f"{'FAILED' if why else 'ok'}: {self.name}, {seconds:.1f} s", why, flush=True)
        print(*(f"    {in_words(row)}\n" for row in rows), sep="", end="")
        print(*(f"    | {line}\n" for line in words), sep="", end="", flush=True)
        return {"seconds": seconds, "failed": why, "last words": words, "rows": rows}


def in_words(row: dict[str, Any]) -> str:
    """What was noted, in a line."""
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
    verdict = f" ({row['limit']}: {'met' if row['met'] else 'MISSED'})" if row["limit"] else ""
    return f"{row['what']}: {value}{verdict}"


def commit() -> str:
    """Of the checkout, and a digest of labkit's files, for where there is no repository."""
    files = sorted((ROOT / "labkit").rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    git = shutil.which("git") and ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = git and subprocess.run(git, capture_output=True, text=True)
    return f"{(done and done.stdout.strip()) or 'unknown'}, labkit's files {digest[:16]}"


def write(record: dict[str, Any], out: Path) -> None:
    """Write record and page, and their digests beside those of the other files there."""
    lines = ["# The lab on a GPU", "", f"`make gpu-check` writes this page. Commit {commit()}."]
    for name, step in record.items():
        state = f"FAILED, {step['failed']}" if step["failed"] else "ok"
        lines += ["", f"## {name}: {state}, {step['seconds']:.0f} s", ""]
        lines += [f"- {in_words(row)}" for row in step["rows"]]
        lines += ["", "```text", *step["last words"], "```"] if step["failed"] else []
    content = json.dumps({"commit": commit(), "steps": record}, indent=1, ensure_ascii=False)
    texts = {"gpu.json": f"{content}\n", "GPU.md": "\n".join(lines) + "\n"}
    out.mkdir(parents=True, exist_ok=True)
    sums = out / "SHA256SUMS"
    known = sums.read_text("utf-8").splitlines() if sums.exists() else []
    known = [line for line in known if line.split()[-1] not in texts]
    for name, text in texts.items():
        (out / name).write_text(text, "utf-8")
        known.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}")
    sums.write_text("\n".join(known) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the steps in turn, those that are not timed side by side; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--rehearse", action="store_true", help="in miniature, on the CPU")
    parser.add_argument("--out", type=Path, help="a folder for record and page")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.steps if name not in STEPS]:
        parser.error(f"unknown step {unknown[0]}; there are {', '.join(STEPS)}")
    if absent := missing(ALL):
        print(f"gpu-check: not here: {', '.join(absent)}. python -m pip install them, or bring")
    if not options.rehearse and not sees_gpu():
        print("gpu-check: torch sees no GPU here; --rehearse takes every step on the CPU")
        return 2

    began, record, beside = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in options.steps or STEPS:
            step, left = STEPS[name], SECONDS - (time.monotonic() - began)
            lacks = missing(f"{NEEDED} {step.needs}")
            if lacks and (step.optional or options.rehearse):
                print(f"left out: {name}, for there is no {' and no '.join(lacks)}")
                continue
            alone = options.rehearse or not step.beside
            if alone:
                record |= {run.name: run.result() for run in beside}
                beside = []
            seconds = 900 if options.rehearse else min(step.seconds, max(left, 5))
            run = Run(name, Path(folder), seconds, options.rehearse)
            if alone:
                record[name] = run.result()
            else:
                beside.append(run)
        record |= {run.name: run.result() for run in beside}
    if options.out or not options.rehearse:
        write(record, options.out or FOLDER)
    failed = [name for name, step in record.items() if step["failed"]]
    missed = sum(not row["met"] for step in record.values() for row in step["rows"])
    print(f"{len(record)} steps in {time.monotonic() - began:.0f} s, {missed} limits missed")
    print(f"failed: {', '.join(failed)}" if failed else "no step failed")
    return int(bool(failed))


def sees_gpu() -> bool:
    """Whether torch is here and sees a GPU."""
    if not find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
