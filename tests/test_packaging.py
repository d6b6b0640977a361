"""What surrounds the code: installation, lock, environment, Makefile, layout and text files."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from labkit.lab import install
from labkit.lab.install import Facts, SetupError, Torch

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCK = (ROOT / install.LOCK).read_text("utf-8")
MODULES = sorted((ROOT / "labkit").glob("*.py"))
CHAPTER_MODULES = {"digit_sum", "gates", "imdb", "bert", "sine"}
TARGETS = {
    "help", "setup", "lab", "reproduce", "run", "report", "verify", "notebooks", "test", "lint",
    "clean", "data", "bench",
}  # fmt: skip
WORK = Path("env/.labkit")


def declared() -> list[str]:
    """Every requirement of pyproject.toml, its extras among them."""
    project = PROJECT["project"]
    return sum(project["optional-dependencies"].values(), project["dependencies"])


def locked() -> dict[str, tuple[Version, int]]:
    """Name -> (version, number of hashes) of every entry in the lock."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", LOCK)[1:]
    found = {}
    for entry in entries:
        name, version = re.match(r"(\S+)==(\S+) \\$", entry, re.MULTILINE).groups()
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)
        found[canonicalize_name(name)] = (Version(version), len(hashes))
    return found


# the lock and the conda environment


def test_the_lock_meets_every_declared_requirement() -> None:
    versions = locked()
    for text in declared() + PROJECT["build-system"]["requires"]:
        requirement = Requirement(text)
        version, _ = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text}, but the lock has {version}"


def test_the_lock_has_a_hash_for_every_entry() -> None:
    assert [name for name, (_, hashes) in locked().items() if not hashes] == []


def test_the_lock_names_no_place_that_packages_come_from() -> None:
    code = "\n".join(line for line in LOCK.splitlines() if not line.startswith("#"))
    assert not re.search(r"https?://|file:|(?m:^\s*--(?!hash)|^-|\s@\s)", code)
    assert "://" not in LOCK


def test_the_lock_is_for_the_cpu() -> None:
    assert str(locked()["torch"][0]) == f"{install.TORCH}+cpu"
    assert [name for name in locked() if re.match("nvidia|cuda|triton|cupy", name)] == []


def test_the_installed_torch_series_is_the_declared_one() -> None:
    torch = next(r for r in map(Requirement, declared()) if r.name == "torch")
    major, minor = map(int, install.TORCH_SERIES.split("."))
    assert str(torch.specifier) == f"<{major}.{minor + 1},>={major}.{minor}"


def test_conda_environment_matches_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    parts = environment["dependencies"]
    (pip,) = (part["pip"] for part in parts if isinstance(part, dict))
    assert sorted(pip) == sorted([*declared(), "--editable ."])

    (python,) = (p for p in parts if isinstance(p, str) and p.startswith("python"))
    low, high = python.removeprefix("python").split(",")  # of the locked series, from where on
    assert low == PROJECT["project"]["requires-python"]
    assert Version(low.removeprefix(">=")).release == install.MINIMUM_PYTHON
    major, minor = install.LOCKED_PLATFORM[0]
    assert high == f"<{major}.{minor + 1}"


# what set-up decides


def facts(**changes: object) -> Facts:
    """The machine that the lock is for, with nothing installed, changed as asked."""
    values = {
        "python": (3, 11),
        "system": "Linux",
        "machine": "x86_64",
        "torch": None,
        "gpu": False,
    }
    return Facts(**(values | changes))


def pip_arguments(given: Facts, choice: str = "auto") -> list[tuple[str, ...]]:
    """The argument lists of a plan, the last one (labkit itself) checked and left out."""
    steps = install.plan(given, choice, WORK, Path("lab")).steps
    assert steps[-1].arguments[-2:] == ("--editable", "lab")
    assert "--no-deps" in steps[-1].arguments
    return [step.arguments for step in steps[:-1]]


REST = ("--no-deps", "--require-hashes", "-r", "env/.labkit/rest.lock")
CPU_LOCK = ("--no-deps", "--require-hashes", "-r", "env/.labkit/torch.lock")
RANGES = ("-r", "env/.labkit/rest.in")
CUDA_TORCH = Torch("2.13.0+cu130", accelerated=True)
CPU_TORCH = Torch("2.13.0+cpu", accelerated=False)


@pytest.mark.parametrize(
    "changes, choice, expected",
    [
        ({}, "auto", [CPU_LOCK, REST]),
        ({"torch": CPU_TORCH}, "auto", [CPU_LOCK, REST]),
        ({"torch": CUDA_TORCH}, "auto", [REST]),
        ({"torch": CUDA_TORCH, "gpu": True}, "auto", [REST]),
        ({"torch": CPU_TORCH, "gpu": True}, "auto", [REST]),
        ({"gpu": True}, "auto", [("torch==2.13.*",), REST]),
        ({"gpu": True}, "cpu", [CPU_LOCK, REST]),
        ({"torch": CPU_TORCH}, "cuda", [("--force-reinstall", "torch==2.13.*"), REST]),
        ({"torch": Torch("2.9.1+cpu", False), "gpu": True}, "keep", [REST]),
        ({"torch": Torch("2.9.1+cpu", False)}, "auto", [CPU_LOCK, REST]),
        ({"python": (3, 13)}, "auto", [("torch==2.13.0+cpu",), RANGES]),
        ({"machine": "aarch64"}, "auto", [("torch==2.13.0+cpu",), RANGES]),
        ({"system": "Darwin", "machine": "arm64"}, "auto", [("torch==2.13.*",), RANGES]),
        ({"python": (3, 12), "torch": CUDA_TORCH}, "auto", [RANGES]),
    ],
)
def test_plan(changes: dict, choice: str, expected: list[tuple[str, ...]]) -> None:
    assert pip_arguments(facts(**changes), choice) == expected


@pytest.mark.parametrize("python", [(3, 11), (3, 12)])
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("version", ["2.13.0", "2.13.2+cu130", "2.13.1+rocm7.1"])
def test_a_torch_for_a_gpu_is_never_replaced(python: tuple, gpu: bool, version: str) -> None:
    given = facts(python=python, gpu=gpu, torch=Torch(version, accelerated=True))
    decided = install.plan(given, "auto", WORK)
    assert decided.torch == "keep"
    assert not any(
        "torch" in argument for step in decided.steps for argument in step.arguments[:-1]
    )
    assert any(version in note for note in decided.notes)


def test_pytorchs_own_index_is_only_a_fallback() -> None:
    first, *others = install.plan(facts(), "auto", WORK).steps
    assert install.TORCH_CPU_INDEX in first.fallback
    assert install.TORCH_CPU_INDEX not in first.arguments
    assert all(step.fallback is None for step in others)


@pytest.mark.parametrize(
    "changes, choice, message",
    [
        ({"python": (3, 10)}, "auto", "Python 3.10 is too old, the lab needs 3.11"),
        ({}, "rocm", "TORCH=rocm is not known: use one of auto, cpu, cuda, keep"),
        ({}, "keep", "no working torch"),
        ({"torch": Torch("2.9.0+cu128", True)}, "auto", "torch 2.9.0.cu128 .* TORCH=keep"),
    ],
)
def test_plan_refuses(changes: dict, choice: str, message: str) -> None:
    with pytest.raises(SetupError, match=message) as caught:
        install.plan(facts(**changes), choice, WORK)
    assert "\n" not in str(caught.value)


def test_split_lock_parts_torch_from_the_rest() -> None:
    torch, rest = install.split_lock(LOCK)
    assert torch.startswith(f"torch=={install.TORCH}+cpu")
    assert torch.count("==") == 1
    assert "torchtext==0.6.0" in rest
    assert not re.search(r"(?m)^torch==", rest)
    assert len(torch) + len(rest) == len(LOCK)


def test_split_lock_wants_one_torch() -> None:
    with pytest.raises(SetupError, match="exactly once"):
        install.split_lock("numpy==2.4.6 \\\n    --hash=sha256:00\n")


def test_environment_folder() -> None:
    assert install.environment_folder({}, Path("lab")) == Path("lab/.venv")
    conda = {"CONDA_PREFIX": "/opt/conda/envs/lstm", "CONDA_DEFAULT_ENV": "lstm"}
    assert install.environment_folder(conda) == Path("/opt/conda/envs/lstm")
    base = {"CONDA_PREFIX": "/opt/conda", "CONDA_DEFAULT_ENV": "base"}
    assert install.environment_folder(base, Path("lab")) == Path("lab/.venv")


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Path, Path]:
    """A root and an environment that an earlier run set up for the CPU."""
    root, folder = tmp_path / "lab", tmp_path / "lab" / ".venv"
    for path in (folder / ".labkit", folder / "bin"):
        path.mkdir(parents=True)
    for name in ("pyproject.toml", install.LOCK):
        (root / name).write_bytes((ROOT / name).read_bytes())
    (folder / "bin" / "python").touch()
    stamp = {"digest": install.setup_digest(root), "root": str(root), "torch": "cpu"}
    (folder / ".labkit" / "stamp.json").write_text(json.dumps(stamp), "utf-8")
    return root, folder


@pytest.mark.parametrize(
    "choice, current", [("auto", True), ("cpu", True), ("keep", True), ("cuda", False)]
)
def test_a_stamp_spares_the_second_run(
    installed: tuple[Path, Path], choice: str, current: bool
) -> None:
    root, folder = installed
    assert install.is_current(folder, choice, root) is current


@pytest.mark.parametrize("name", ["pyproject.toml", install.LOCK])
def test_a_changed_file_outdates_the_stamp(installed: tuple[Path, Path], name: str) -> None:
    root, folder = installed
    (root / name).write_text("# changed\n", "utf-8")
    assert not install.is_current(folder, "auto", root)


def test_a_stamp_of_another_clone_or_a_broken_one_does_not_count(
    installed: tuple[Path, Path], tmp_path: Path
) -> None:
    root, _ = installed
    other = tmp_path / "other"
    root.rename(other)
    assert not install.is_current(other / ".venv", "auto", other)
    (other / ".venv" / ".labkit" / "stamp.json").write_text("{", "utf-8")
    assert not install.is_current(other / ".venv", "auto", other)


def test_a_named_python_that_is_none_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 3 9 7\n", "utf-8")
    program.chmod(0o755)
    with pytest.raises(SetupError, match=r"is no Python 3\.11\.4 or newer \(.*python is 3\.9\.7\)"):
        install.find_python(str(program))
    with pytest.raises(SetupError, match="nowhere is no Python"):
        install.find_python(str(tmp_path / "nowhere"))


def fake_python(folder: Path, script: str) -> Path:
    """An interpreter whose every call runs a shell script."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    return program


def test_a_wrong_torch_leaves_the_installation_as_it_was(tmp_path: Path, monkeypatch) -> None:
    stamp = tmp_path / ".labkit" / "stamp.json"
    stamp.parent.mkdir()
    stamp.write_text("{}")
    monkeypatch.setattr(install, "make_environment", lambda folder, named: Path(sys.executable))
    monkeypatch.setattr(install, "gather_facts", lambda python: facts())
    with pytest.raises(install.SetupError, match="TORCH=gpu is not known"):
        install.install(tmp_path, "gpu", None)
    assert stamp.exists()


def test_an_environment_that_is_there_keeps_its_python(tmp_path: Path, capsys) -> None:
    folder = tmp_path / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    other = fake_python(tmp_path, "exit 0")
    assert install.make_environment(folder, sys.executable) == folder / "bin" / "python"
    assert capsys.readouterr().out == ""
    assert install.make_environment(folder, str(other)) == folder / "bin" / "python"
    assert f"keeps its Python; to make it with {other}, remove it first" in capsys.readouterr().out


def test_the_fallback_is_taken_when_pip_finds_nothing(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    script = f"""echo "$@" >> {log}
case "$*" in *--extra-index-url*) exit 0;; esac
echo 'ERROR: No matching distribution found for torch' >&2; exit 1"""
    step = install.plan(facts(), "cpu", WORK).steps[0]
    install.run_step(fake_python(tmp_path, script), step)
    assert [install.TORCH_CPU_INDEX in line for line in log.read_text().splitlines()] == [
        False,
        True,
    ]


def test_a_failed_step_is_one_line_and_takes_no_fallback(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    pip = fake_python(tmp_path, f"echo x >> {log}; echo 'ERROR: disk full' >&2; exit 3")
    step = install.plan(facts(), "cpu", WORK).steps[0]
    with pytest.raises(SetupError, match=r"torch for the CPU \(exit status 3") as caught:
        install.run_step(pip, step)
    assert "\n" not in str(caught.value)
    assert log.read_text() == "x\n"


def test_install_runs_before_anything_is_installed() -> None:
    """An old Python must reach the sentence that says it is too old."""
    source = (ROOT / "labkit" / "install.py").read_text("utf-8")
    ast.parse(source, feature_version=(3, 8))
    names = {
        node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)
    }
    assert not any(name.startswith("labkit") for name in names)


# make


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Run make in the repository, away from any make around the tests."""
    cleared = {
        "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "QUIET", "CONDA_PREFIX", "PROFILE",
        "CHAPTERS", "THREADS", "WORKERS", "FORCE", "STRICT", "TORCH", "PYTHON", "ENVIRONMENT",
    }  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if name not in cleared}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)


def test_make_alone_lists_every_target() -> None:
    result = make()
    assert result.returncode == 0
    assert result.stdout == make("help").stdout
    listed = set(re.findall(r"(?m)^  ([a-z]+) +[A-Z]", result.stdout))
    phony = re.search(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8")).group(1)
    assert listed == TARGETS == set(phony.split())


@pytest.mark.parametrize("target", sorted(TARGETS - {"help", "clean"}))
def test_every_target_sets_up_first(target: str) -> None:
    lines = make("-n", "-j4", target).stdout.splitlines()
    assert lines[0].startswith("python3 labkit/lab/install.py")


def test_make_passes_settings_on() -> None:
    settings = ("PROFILE=cpu", "CHAPTERS=02 03", "THREADS=2", "WORKERS=3", "FORCE=1")
    text = " ".join(make("-n", "reproduce", *settings).stdout.split())
    wanted = "labkit run 02 03 --profile 'cpu' --threads '2' --workers '3' --force"
    assert wanted in text
    assert "labkit verify --strict" in make("-n", "verify", "STRICT=1").stdout
    chosen = make("-n", "setup", "TORCH=keep", "PYTHON=/opt/python").stdout.split()
    assert chosen[2:] == ["--torch", "'keep'", "--python", "'/opt/python'"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["PROFILE=foo"], "PROFILE=foo is not known; choose quick, cpu, full or auto"),
        (["THREADS=abc"], "THREADS=abc is not a whole number from 1 up"),
        (["WORKERS=0"], "WORKERS=0 is not a whole number from 1 up"),
        (["CHAPTERS=02 99"], "CHAPTERS=99 is not known; there are 01_lstm_operator 02_digit_sum"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(arguments, message) -> None:
    result = make("-n", "reproduce", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_chapters_are_named_as_the_command_line_takes_them() -> None:
    names = "CHAPTERS=2 03 04_imdb_recurrent notebooks/05_bert_finetuning.ipynb"
    assert make("-n", "reproduce", names, "PROFILE=quick").returncode == 0
    assert "tells of cpu and full" in make("-n", "reproduce", "PROFILE=quick").stdout
    assert "Read results/REPORT.md" in make("-n", "reproduce").stdout


def test_an_unknown_target_is_told_where_the_known_ones_are() -> None:
    result = make("tset")
    assert result.returncode == 2
    assert result.stdout == 'There is no target "tset"; make alone lists them\n'


def test_reproduce_reports_and_verifies_though_a_chapter_failed(tmp_path: Path) -> None:
    """The commands run in order, also under -j, and a failure of one shows in the end."""
    log = tmp_path / "calls"
    script = f"""case "$*" in *labkit/lab/install.py*) exit 0;; esac
echo "$3" >> {log}
case "$3" in run) sleep 0.3; exit 1;; esac"""
    (tmp_path / "bin").mkdir()
    python = fake_python(tmp_path / "bin", script)
    overrides = (f"ENVIRONMENT={tmp_path}", f"PYTHON={python}")
    result = make("-j4", "reproduce", *overrides)
    assert result.returncode != 0
    assert log.read_text().split() == ["run", "report", "verify"]
    assert "Read results" not in result.stdout


def test_a_signal_to_make_reaches_the_run(tmp_path: Path) -> None:
    """No shell stands between make and the commands: one would die and leave them running."""
    script = """case "$*" in *labkit/lab/install.py*) exit 0;; esac
trap 'echo ended > "$0.log"; exit 143' TERM
echo started > "$0.log"
while :; do sleep 0.05; done"""
    (tmp_path / "bin").mkdir()
    python = fake_python(tmp_path / "bin", script)
    log = tmp_path / "bin" / "python.log"
    command = ["make", "reproduce", f"ENVIRONMENT={tmp_path}", f"PYTHON={python}"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: log.exists() and log.read_text() == "started\n")
        process.terminate()
        wait_for(lambda: log.read_text() == "ended\n")
    assert process.returncode != 0


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until `condition` holds; fail when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").rstrip().endswith("make test")


# layout and text


def syntax_trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text("utf-8"))


def imports_of(tree: ast.Module) -> set[str]:
    """Dotted names of everything that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def chapter_imports(tree: ast.Module) -> set[str]:
    return imports_of(tree) & {f"labkit.{name}" for name in CHAPTER_MODULES}


def unpickling(tree: ast.Module) -> set[str]:
    """Ways to load a pickle that a module uses."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    found = {name for name in imports_of(tree) if name.partition(".")[0] in modules}
    found |= imports_of(tree) & {"torch.load", "joblib.load"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            allows = any(k.arg == "allow_pickle" for k in node.keywords)
            if allows or name in ("torch.load", "joblib.load") or name.endswith("read_pickle"):
                found.add(name)
    return found


def test_chapter_modules_are_imported_by_notebooks_and_their_own_figures_alone() -> None:
    """And by the benchmark, which times a chapter's sweep."""
    found = {
        path.stem: chapter_imports(tree) - {f"labkit.{path.stem.removeprefix('figures_')}"}
        for path, tree in syntax_trees()
        if path.stem != "bench_cases"
    }
    assert {module: names for module, names in found.items() if names} == {}


def test_nothing_unpickles() -> None:
    found = {path.stem: unpickling(tree) for path, tree in syntax_trees()}
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source, finder",
    [
        ("from labkit import digit_sum", chapter_imports),
        ("def f():\n    import labkit.memory.gates", chapter_imports),
        ("from labkit.sine.study import forecast", chapter_imports),
        ("import pickle", unpickling),
        ("from torch import load", unpickling),
        ("import torch\ntorch.load('x')", unpickling),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", unpickling),
    ],
)
def test_the_finders_find(source: str, finder: Callable[[ast.Module], set[str]]) -> None:
    assert finder(ast.parse(source))
    assert not finder(ast.parse("import torch\nfrom labkit import recurrent\ntorch.save"))


def test_modules_and_functions_stay_small() -> None:
    found = []
    for path, tree in syntax_trees():
        lines = len(path.read_text("utf-8").splitlines())
        if lines > 400:
            found.append(f"{path.name} has {lines} lines, 400 are allowed")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > 50:
                    found.append(f"{path.name}: {node.name} has {length} lines, 50 are allowed")
    assert found == []


def text_files() -> list[Path]:
    """The project's own text files: not what is downloaded, generated or ignored."""
    folders = (".ci", "labkit", "notebooks", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths += [*ROOT.glob("*"), *(ROOT / "data").glob("*"), *(ROOT / "data/digit_sum").rglob("*")]
    paths += [ROOT / ".gitignore", ROOT / ".gitattributes", *(ROOT / "results").glob("*.md")]
    kinds = {"", ".md", ".py", ".toml", ".yml", ".cfg", ".lock", ".json", ".ipynb", ".txt"}
    parts = {"__pycache__", ".ipynb_checkpoints"}
    return [p for p in paths if p.is_file() and p.suffix in kinds and not parts & set(p.parts)]


def test_text_files_are_whole() -> None:
    """UTF-8, LF line ends, a last newline, and no marks of an unfinished merge."""
    marks = re.compile(rb"(?m)^(<{7}|>{7}|\|{7})(\s|$)")
    found = []
    for path in text_files():
        if path.name == ".coverage":
            continue
        content = path.read_bytes()
        content.decode("utf-8")
        if marks.search(content) or b"\r" in content or (content and content[-1:] != b"\n"):
            found.append(str(path.relative_to(ROOT)))
    assert found == []


def test_checksums_in_the_data_readme_are_those_of_the_files() -> None:
    text = (ROOT / "data" / "README.md").read_text("utf-8")
    listed = {name: digest for digest, name in re.findall(r"(?m)^    ([0-9a-f]{64})  (\S+)$", text)}
    files = {
        path.relative_to(ROOT / "data").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / "data" / "digit_sum").rglob("*.txt")
    }
    assert len(files) == 21
    assert listed == files


def test_the_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
