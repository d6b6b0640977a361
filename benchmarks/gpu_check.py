"""Checks and times what the lab does on a GPU: `python benchmarks/gpu_check.py [STEP ...]`.

Each step runs in a process of its own and says what it measured or, by name, why it failed; the
next one runs all the same. All of them take five minutes. gpu.json and GPU.md are written beside
this file, or into `--out`. The exit status is 1 if a step failed, 2 without a GPU. `--rehearse`
takes every step in miniature on the CPU, by Triton's interpreter, and writes only into `--out`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
LINES = 16  # the last ones of a step that failed


class Step(NamedTuple):
    """For how many seconds it may run, whether beside others, and whether it needs Triton."""

    seconds: int
    beside: bool = False  # it is not timed
    triton: bool = False


STEPS = {
    "facts": Step(60),
    **{f"parity-kernel-{cell}": Step(150, beside=True, triton=True) for cell in ("lstm", "srn")},
    **{f"parity-graphs-{cell}": Step(150, beside=True) for cell in ("lstm", "srn")},
    **{f"chapter-0{number}": Step(150, beside=True) for number in range(1, 7)},
    "speeds": Step(120, triton=True),
    "study": Step(150),
    "sine": Step(90),
}


def take(name: str, folder: Path, small: bool) -> dict[str, Any]:
    """Take a step in a process of its own; print and return what it noted, and how it failed."""
    began, rows, log = time.monotonic(), folder / f"{name}.json", folder / f"{name}.log"
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "LABKIT_CACHE": str(folder / "cache"),
        "LABKIT_STAGING": str(folder / f"record-{name}"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        **({"TRITON_INTERPRET": "1"} if small else {}),
    }
    command = [sys.executable, str(FOLDER / "gpu_steps.py"), name, str(rows)]
    command += ["--rehearse"] * small
    seconds = STEPS[name].seconds * (10 if small else 1)
    options = {"env": os.environ | variables, "stderr": subprocess.STDOUT, "timeout": seconds}
    try:
        with log.open("w") as output:
            status = subprocess.run(command, stdout=output, **options).returncode
        why = f"exit status {status}" if status else ""
    except subprocess.TimeoutExpired:
        why = f"it ran longer than {seconds:.0f} s"
    seconds = time.monotonic() - began
    noted = json.loads(rows.read_text("utf-8")) if rows.exists() else []
    words = log.read_text("utf-8", "replace").splitlines()[-LINES:] if why else []
    lines = [f"{'FAILED' if why else 'ok'}: {name}, {seconds:.1f} s {why}".rstrip()]
    lines += [*(f"    {in_words(row)}" for row in noted), *(f"    | {line}" for line in words)]
    print("\n".join(lines), flush=True)
    return {"seconds": seconds, "failed": why, "last words": words, "rows": noted}


def in_words(row: dict[str, Any]) -> str:
    """What was noted, in a line."""
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
    verdict = f" ({row['limit']}: {'met' if row['met'] else 'MISSED'})" if row["limit"] else ""
    return f"{row['what']}: {value}{verdict}"


def write(record: dict[str, Any], out: Path) -> None:
    """Write record and page, and the digests of all that is measured there."""

    def digest(*paths: Path) -> str:
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()

    made_by = f"labkit's files {digest(*sorted((ROOT / 'labkit').rglob('*.py')))[:16]}"
    lines = ["# The lab on a GPU", "", f"`make gpu-check` writes this page, by {made_by}."]
    for name, step in record.items():
        state = f"FAILED, {step['failed']}" if step["failed"] else "ok"
        lines += ["", f"## {name}: {state}, {step['seconds']:.0f} s", ""]
        lines += [f"- {in_words(row)}" for row in step["rows"]]
        lines += ["", "```text", *step["last words"], "```"] if step["failed"] else []
    content = json.dumps({"made by": made_by, "steps": record}, indent=1, ensure_ascii=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(f"{content}\n", "utf-8")
    (out / "GPU.md").write_text("\n".join(lines) + "\n", "utf-8")
    files = sorted([*out.glob("*.json"), *out.glob("*.md")])
    sums = [f"{digest(path)}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(sums), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the steps in turn, those that are not timed side by side; return the exit status."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--rehearse", action="store_true", help="in miniature, on the CPU")
    parser.add_argument("--out", type=Path, help="a folder for record and page")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU here; --rehearse takes every step on the CPU")
        return 2

    names = options.steps or [*STEPS]
    for name in [name for name in names if STEPS[name].triton and not find_spec("triton")]:
        print(f"left out: {name}, for there is no Triton")
        names.remove(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        step = functools.partial(take, folder=Path(folder), small=options.rehearse)
        beside = [name for name in names if STEPS[name].beside]
        with ThreadPoolExecutor(1 if options.rehearse else len(STEPS)) as pool:
            record = dict(zip(beside, pool.map(step, beside), strict=True))
        record |= {name: step(name) for name in names if name not in beside}
    if options.out or not options.rehearse:
        write(record, options.out or FOLDER)
    failed = [name for name, step in record.items() if step["failed"]]
    missed = sum(not row["met"] for step in record.values() for row in step["rows"])
    print(f"{len(record)} steps, {missed} limits missed")
    print(f"failed: {', '.join(failed)}" if failed else "no step failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
