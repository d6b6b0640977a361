"""Install the lab into the active conda environment or into `.venv`: what `make setup` runs.

It runs before anything is installed, on whatever Python is at hand, so it uses the standard library
alone and only imports what Python 3.8 has. `plan` decides and touches nothing; `main` carries out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = "requirements-cpu.lock"
LOCKED_PLATFORM = ((3, 11), "Linux", "x86_64")
MINIMUM_PYTHON = (3, 11, 4)  # the first 3.11 that unpacks archives safely
TORCH = "2.13.0"
TORCH_SERIES = TORCH.rpartition(".")[0]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CHOICES = ("auto", "cpu", "cuda", "keep")

# Asked of the environment's own interpreter. A torch that is there but broken counts as absent.
FACTS_PROGRAM = """
import json, platform, sys
try:
    import torch
    build = torch.version
    accelerated = any(getattr(build, name, None) for name in ("cuda", "hip", "xpu"))
    found = {"version": torch.__version__, "accelerated": accelerated}
except (ImportError, OSError, AttributeError):
    found = None
print(json.dumps({"python": list(sys.version_info[:2]), "system": platform.system(),
                  "machine": platform.machine(), "torch": found}))
"""

# Everything that pyproject.toml asks for but torch, for a platform that the lock does not cover.
RANGES_PROGRAM = """
import re, sys, tomllib
with open(sys.argv[1], "rb") as file:
    content = tomllib.load(file)
project = content["project"]
wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
wanted += content["build-system"]["requires"]
print("\\n".join(line for line in wanted if re.match(r"[A-Za-z0-9-]+", line).group() != "torch"))
"""


class SetupError(RuntimeError):
    """Set-up cannot go on; the message is one line that says what to do."""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its version, and whether it was built for a GPU."""

    version: str
    accelerated: bool

    @property
    def supported(self) -> bool:
        """Whether the lab is made for this version."""
        return self.version.startswith(TORCH_SERIES + ".")


@dataclass(frozen=True)
class Facts:
    """What decides how the lab is installed."""

    python: tuple[int, int]
    system: str
    machine: str
    torch: Torch | None
    gpu: bool

    @property
    def locked(self) -> bool:
        """Whether the lock file was made for this interpreter and platform."""
        return (self.python, self.system, self.machine) == LOCKED_PLATFORM


@dataclass(frozen=True)
class Step:
    """One `pip install`; `fallback` is tried when pip's own sources do not hold what is asked."""

    title: str
    arguments: tuple[str, ...]
    fallback: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """The pip steps in order, the torch that they lead to ("cpu", "cuda" or "keep"), and notes."""

    torch: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


def plan(facts: Facts, choice: str, work: Path, root: Path = ROOT) -> Plan:
    """Decide what pip installs, from facts alone.

    `work` is the folder that holds the requirement files which `write_requirements` makes.

    Raises:
        SetupError: when the interpreter is too old, or when `choice` cannot be met.
    """
    if facts.python < MINIMUM_PYTHON[:2]:
        raise SetupError(
            f"Python {_dotted(facts.python)} is too old, the lab needs "
            f"{_dotted(MINIMUM_PYTHON)} or newer: install one, or name it with PYTHON=/path/to/it"
        )
    torch, notes = _choose_torch(facts, choice)
    steps = [] if torch == "keep" else [_torch_step(torch, facts, work)]
    if facts.locked:
        arguments = ("--no-deps", "--require-hashes", "-r", str(work / "rest.lock"))
        steps.append(Step("the pinned packages", arguments))
    else:
        notes.append(
            f"{LOCK} is for Python 3.11 on Linux x86-64; "
            f"here (Python {_dotted(facts.python)}, {facts.system} {facts.machine}) "
            "the version ranges of pyproject.toml are installed instead"
        )
        steps.append(Step("the packages", ("-r", str(work / "rest.in"))))
    editable = ("--no-deps", "--no-build-isolation", "--editable", str(root))
    steps.append(Step("labkit itself", editable))
    return Plan(torch, tuple(steps), tuple(notes))


def _choose_torch(facts: Facts, choice: str) -> tuple[str, list[str]]:
    """Resolve `choice` to "cpu", "cuda" or "keep", with notes for the user."""
    torch = facts.torch
    if choice not in CHOICES:
        raise SetupError(f"TORCH={choice} is not known: use one of {', '.join(CHOICES)}")
    if choice == "keep" and torch is None:
        raise SetupError("TORCH=keep, but there is no working torch here: use TORCH=cpu or cuda")
    if choice == "keep" and not torch.supported:
        return "keep", [f"torch {torch.version} is kept; the lab is tested with {TORCH_SERIES}"]
    if choice != "auto":
        return choice, []

    if torch is not None and torch.accelerated:
        if not torch.supported:
            raise SetupError(
                f"torch {torch.version} for a GPU is installed here and the lab is made for "
                f"{TORCH_SERIES}: say TORCH=keep to use yours untested, or TORCH=cuda to upgrade it"
            )
        return "keep", [f"torch {torch.version} is kept as it is"]
    if not facts.gpu:
        return "cpu", []
    if torch is not None and torch.supported:
        note = f"torch {torch.version} does not use the GPU of this machine: TORCH=cuda replaces it"
        return "keep", [note]
    return "cuda", []


def _torch_step(torch: str, facts: Facts, work: Path) -> Step:
    """The installation of torch, ahead of everything that depends on it."""
    if torch == "cuda":
        replace = facts.torch is not None and not facts.torch.accelerated
        flags = ("--force-reinstall",) if replace else ()
        return Step("torch for CUDA", (*flags, f"torch=={TORCH_SERIES}.*"))
    if facts.locked:
        arguments = ("--no-deps", "--require-hashes", "-r", str(work / "torch.lock"))
    elif facts.system == "Linux":
        arguments = (f"torch=={TORCH}+cpu",)
    else:
        return Step("torch", (f"torch=={TORCH_SERIES}.*",))
    return Step("torch for the CPU", arguments, (*arguments, "--extra-index-url", TORCH_CPU_INDEX))


def split_lock(text: str) -> tuple[str, str]:
    """Split the text of a lock file into torch's entry and all the others."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    torch = [entry for entry in entries if entry.startswith("torch==")]
    if len(torch) != 1:
        raise SetupError(
            f"{LOCK} must pin torch exactly once: restore the file from the repository"
        )
    return torch[0], "".join(entry for entry in entries if entry is not torch[0])


def environment_folder(environ: Mapping[str, str], root: Path = ROOT) -> Path:
    """The active conda environment, else `.venv`. Conda's own base environment is left alone."""
    prefix = environ.get("CONDA_PREFIX", "")
    if prefix and environ.get("CONDA_DEFAULT_ENV") != "base":
        return Path(prefix)
    return root / ".venv"


def setup_digest(root: Path = ROOT) -> str:
    """SHA-256 of the files that say what is installed."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", LOCK):
        digest.update((root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def is_current(folder: Path, choice: str, root: Path = ROOT) -> bool:
    """Whether an earlier run already put exactly this into the environment at `folder`."""
    try:
        stamp = json.loads((folder / ".labkit" / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = {"digest": setup_digest(root), "root": str(root)}
    if not isinstance(stamp, dict) or any(stamp.get(key) != wanted[key] for key in wanted):
        return False
    chosen = choice in ("auto", "keep", stamp.get("torch"))
    return chosen and (folder / "bin" / "python").exists()


def find_python(named: str | None) -> str:
    """A Python for a new `.venv`: the named one, else 3.11, else the newest that will do."""
    if named:
        names = [named]
    else:
        versions = ["3.11", *(f"3.{minor}" for minor in range(19, 11, -1))]
        names = [f"python{version}" for version in versions] + [sys.executable, "python3"]
    tried = []
    for name in names:
        path = shutil.which(name)
        version = _version_of(path) if path else None
        if version and version >= MINIMUM_PYTHON:
            return path
        if version:
            tried.append(f"{path} is {_dotted(version)}")
    found = f" ({tried[-1]})" if tried else ""
    wanted = f"{named} is no" if named else "there is no"
    raise SetupError(
        f"{wanted} Python {_dotted(MINIMUM_PYTHON)} or newer{found}: "
        "install Python 3.11, or name one with PYTHON=/path/to/it"
    )


def _version_of(path: str) -> tuple[int, int, int] | None:
    program = "import sys; print(*sys.version_info[:3])"
    result = subprocess.run([path, "-c", program], capture_output=True, text=True)
    try:
        major, minor, micro = map(int, result.stdout.split())
    except ValueError:
        return None
    return major, minor, micro


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def make_environment(folder: Path, named: str | None) -> Path:
    """Return the interpreter of the environment at `folder`; make the environment if need be."""
    python = folder / "bin" / "python"
    if folder.name == ".venv":
        version = _version_of(str(python)) if python.exists() else None
        if version and version >= MINIMUM_PYTHON:
            other = shutil.which(named) if named else None
            if other and Path(other).resolve() != python.resolve():
                print(f"setup: {folder} keeps its Python; to make it with {named}, remove it first")
            return python
        base = find_python(named)
        print(f"setup: making {folder} with {base}", flush=True)
        if subprocess.run([base, "-m", "venv", "--clear", str(folder)]).returncode:
            raise SetupError(f"{base} -m venv failed: install its venv module (python3-venv)")
    elif not python.exists():
        raise SetupError(
            f"the conda environment {folder} has no Python: "
            "conda install python=3.11, or conda deactivate"
        )
    return python


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        result = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0 and "GPU" in result.stdout


def gather_facts(python: Path) -> Facts:
    """Ask the environment's interpreter and the machine."""
    result = subprocess.run([python, "-c", FACTS_PROGRAM], capture_output=True, text=True)
    if result.returncode:
        raise SetupError(f"{python} does not run: remove its environment and run make setup again")
    answer = json.loads(result.stdout.splitlines()[-1])
    torch = Torch(**answer["torch"]) if answer["torch"] else None
    return Facts(tuple(answer["python"]), answer["system"], answer["machine"], torch, has_gpu())


def write_requirements(python: Path, work: Path, root: Path = ROOT) -> None:
    """Write the requirement files that the steps of a plan name."""
    work.mkdir(exist_ok=True)
    torch, rest = split_lock((root / LOCK).read_text(encoding="utf-8"))
    command = [python, "-c", RANGES_PROGRAM, root / "pyproject.toml"]
    ranges = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, text in (("torch.lock", torch), ("rest.lock", rest), ("rest.in", ranges)):
        (work / name).write_text(text, encoding="utf-8")


def run_step(python: Path, step: Step) -> None:
    """Run one `pip install`, with its fallback when pip finds no such version.

    What pip writes to stderr is shown only if it fails: with several package sources it warns of
    every package that one of them lacks.
    """
    print(f"setup: installing {step.title}", flush=True)
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--no-input", *quiet]
    result = subprocess.run([*pip, *step.arguments], stderr=subprocess.PIPE, text=True)
    if result.returncode and step.fallback and "No matching distribution" in result.stderr:
        print(f"setup: not in pip's own sources, trying {TORCH_CPU_INDEX}", flush=True)
        result = subprocess.run([*pip, *step.fallback], stderr=subprocess.PIPE, text=True)
    if result.returncode:
        sys.stderr.write(result.stderr)
        raise SetupError(
            f"pip could not install {step.title} (exit status {result.returncode}, "
            "its reason is above): once that is mended, run make setup again"
        )


def install(folder: Path, choice: str, named: str | None, root: Path = ROOT) -> None:
    """Bring the environment at `folder` up to date and leave a stamp in it.

    Raises:
        SetupError: when a step fails; no stamp is left, so the next run starts again.
    """
    python = make_environment(folder, named)
    work = folder / ".labkit"
    stamp = work / "stamp.json"
    decided = plan(gather_facts(python), choice, work, root)  # a wrong choice changes nothing
    stamp.unlink(missing_ok=True)
    for note in decided.notes:
        print(f"setup: {note}", flush=True)
    write_requirements(python, work, root)
    for step in decided.steps:
        run_step(python, step)

    program = "import labkit, torch; print(torch.__version__)"
    check = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=work)
    if check.returncode:
        reason = check.stderr.strip().splitlines()[-1]
        raise SetupError(f"installed, but torch or labkit does not import ({reason})")
    content = {"digest": setup_digest(root), "root": str(root), "torch": decided.torch}
    draft = work / "stamp.json.part"
    draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(draft, stamp)
    print(f"setup: ready in {folder} with torch {check.stdout.strip()}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="labkit/lab/install.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--torch", default="auto", help=f"one of {', '.join(CHOICES)}")
    parser.add_argument("--python", help="the interpreter that a new .venv is made with")
    options = parser.parse_args(arguments)
    folder = environment_folder(os.environ)
    try:
        if not is_current(folder, options.torch):
            install(folder, options.torch, options.python)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; make setup goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
