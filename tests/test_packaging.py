"""What surrounds the code: the lock, the environments, the Makefile, README and docs."""

import os
import re
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.search(r"(?m)^\.PHONY: (.*)$", MAKEFILE).group(1).split())
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GPU = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")  # depends on the machine, chosen at set-up


def pins() -> list[tuple[Requirement, int]]:
    """Every entry of the lock, with the number of its hashes."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", LOCK)[1:]
    pattern = r"--hash=sha256:[0-9a-f]{64}\b"
    return [(Requirement(e.split("\\\n")[0]), len(re.findall(pattern, e))) for e in entries]


# the lock and the environments


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_lock_pins_every_declared_package_once(python: str, system: str) -> None:
    platform = {"python_version": python, "python_full_version": f"{python}.8"}
    versions: dict[str, Requirement] = {}
    for pin, _ in pins():
        if not pin.marker or pin.marker.evaluate(platform | {"sys_platform": system}):
            assert versions.setdefault(canonicalize_name(pin.name), pin) is pin
    extras = PROJECT["optional-dependencies"].values()
    for wanted in map(Requirement, sum(extras, PROJECT["dependencies"])):
        if not GPU.match(wanted.name):
            (version,) = versions[canonicalize_name(wanted.name)].specifier
            assert version.operator == "=="
            assert wanted.specifier.contains(version.version), wanted


def test_the_lock_has_hashes_and_names_no_place_and_no_gpu() -> None:
    assert [str(pin) for pin, hashes in pins() if not hashes or GPU.match(pin.name)] == []
    assert not re.search(r"://|(?m:^\s*--(?!hash)|^-|\s@\s)", LOCK)
    assert LOCK.splitlines()[1] == "#    make lock"


def test_every_way_to_install_takes_the_same_pythons_extras_and_torch() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *parts, pip = environment["dependencies"]
    assert {"make", "pip"} < set(parts)
    assert pip == {"pip": ["--editable .[dask,test]"]}
    assert "'.[dask,test$(addprefix $(comma),$(EXTRAS))]'" in MAKEFILE
    (pythons,) = (part.removeprefix("python") for part in parts if part.startswith("python"))
    assert f"'{pythons}'" in MAKEFILE
    assert pythons.startswith(PROJECT["requires-python"])
    (torch,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert torch.specifier.contains(re.search(r"\btorch==(\S+)", MAKEFILE).group(1))


def test_a_citation_names_what_the_package_does() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"]


# make


def make(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run make, away from any make around the tests and from the settings of this machine."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=folder, env=kept | variables, capture_output=True, text=True, timeout=60
    )


def test_make_passes_settings_on() -> None:
    settings = ("PROFILE=cpu", "CHAPTERS=02 03", "WORKERS=3", "DASK=tcp://host:8786")
    text = " ".join(make("-n", "reproduce", *settings).stdout.split())
    wanted = "--profile 'cpu' --workers '3' --dask 'tcp://host:8786'"
    assert f"labkit run 02 03 {wanted}" in text


@pytest.mark.parametrize("value", ["1", "yes", "0", "", "no", "false"])
def test_switches_keep_the_convention(value: str) -> None:
    on = value in ("1", "yes")
    assert ("--strict" in make("-n", "verify", f"STRICT={value}").stdout) is on
    assert ("--force" in make("-n", "run", FORCE=value).stdout) is on


def test_an_active_conda_environment_is_used_but_not_conda_base() -> None:
    for name, folder in (("lstm", "/opt/lstm"), ("base", ".venv")):
        shown = make("-n", "lint", CONDA_PREFIX="/opt/lstm", CONDA_DEFAULT_ENV=name).stdout
        assert f"'{folder}/bin/python' -m ruff check ." in shown


# stands for python and uv: notes its calls, makes what the real one makes, fails where told to
PROGRAM = """#!/bin/sh
trap 'echo ended >>calls; exit 143' TERM  # first: a test sends it as soon as it sees the call
echo "$(basename "$0") $*" >>calls
case "$*" in *"$(cat fail 2>/dev/null || echo nothing)"*) echo 'no space left' >&2; exit 3;; esac
case "$*" in
  '-m venv .cache/uv') mkdir -p .cache/uv/bin; cp python .cache/uv/bin ;;
  '-m pip install'*) cp python .cache/uv/bin/uv ;;
  venv*) mkdir -p .venv/bin; cp python .venv/bin ;;
  '-m labkit run wait'*) while :; do sleep 0.05; done ;;
esac
env | grep -E '^(PYTHONPATH|PYTHONNOUSERSITE|PIP_USER|UV_.*)=' >variables
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with the Makefile and what it reads, and `PROGRAM` in the place of Python."""
    folder = tmp_path / "a lab's {folder}"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "python").write_text(PROGRAM, "utf-8")
    (folder / "python").chmod(0o755)
    return folder


def calls(lab: Path) -> list[str]:
    lines = (lab / "calls").read_text("utf-8").splitlines()
    (lab / "calls").write_text("")
    return lines


def setup(lab: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    variables = {"PATH": "/usr/bin:/bin"} | variables  # without a uv
    return make("setup", "PYTHON=./python", *arguments, folder=lab, **variables)


def test_set_up_brings_uv_and_an_environment_and_the_second_time_does_nothing(lab: Path) -> None:
    first = setup(lab, PIP_USER="1")
    assert first.returncode == 0, first.stderr
    venv, pip, make_venv, torch, rest, kernel, check = calls(lab)
    assert venv == "python -m venv .cache/uv"
    assert pip.startswith("python -m pip install uv")
    assert "PIP_USER=0" in (lab / "variables").read_text()
    assert make_venv == "uv venv --clear --seed --python ./python .venv"
    here = "uv pip install --python .venv/bin/python -c requirements.lock"
    assert re.fullmatch(rf"{here} torch==\S+ --torch-backend auto", torch)
    assert rest == f"{here} -e .[dask,test]"
    assert "install_kernel()" in kernel
    assert "import labkit, torch" in check
    *lines, last = first.stdout.splitlines()
    assert last.startswith("Next: make reproduce")
    assert re.fullmatch(r"setup: done in \d+ s", lines[-1])
    assert all(line.startswith("setup: ") for line in lines)

    assert setup(lab).stdout == last + "\n"
    assert calls(lab) == []


@pytest.mark.parametrize("step", ["-m venv", "torch==", "kernel"])
def test_a_failed_step_is_shown_and_set_up_goes_on_from_there(lab: Path, step: str) -> None:
    (lab / "fail").write_text(step)
    failed = setup(lab)
    assert failed.returncode == 2
    assert "no space left" in failed.stderr
    assert "setup: this step failed, .cache/setup.log has all of it" in failed.stderr
    (lab / "fail").unlink()
    assert setup(lab).returncode == 0
    (lab / "requirements.lock").write_text("# new\n")
    assert "labkit and all other packages" in setup(lab).stdout


def test_reproduce_reports_and_verifies_though_a_chapter_failed(lab: Path) -> None:
    setup(lab)
    calls(lab)
    (lab / "fail").write_text("labkit run")
    assert make("-j4", "reproduce", "PYTHON=./python", folder=lab).returncode == 2
    assert [call.split()[3] for call in calls(lab)] == ["run", "report", "verify"]


def test_a_signal_to_make_reaches_the_run(lab: Path) -> None:
    """No shell stands between make and the commands: one would die and leave them running."""
    setup(lab)
    with subprocess.Popen(["make", "run", "CHAPTERS=wait", "PYTHON=./python"], cwd=lab) as process:
        for text in ("labkit run wait", "ended"):
            end = time.monotonic() + 60
            while text not in (lab / "calls").read_text():
                assert time.monotonic() < end, f"waited in vain for '{text}'"
                time.sleep(0.02)
            process.terminate()
    assert process.returncode != 0


# README and docs


def test_the_pages_are_few_and_short_and_ci_runs_what_they_say() -> None:
    readme = PAGES[0].read_text("utf-8")
    assert len(PAGES) <= 8 and len(readme.split()) <= 900  # noqa: PT018
    assert "\nmake test " in readme
    assert (ROOT / ".ci" / "run").read_text("utf-8").endswith("\nmake test\n")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    paths = re.findall(r"`((?:labkit|notebooks|tests|data/digit_sum|benchmarks)/[^` A-Z]*)`", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in paths if not any(ROOT.glob(path))] == []
    targets = re.findall(r"(?:`|^|&& )make ([a-z-]+)", text, re.MULTILINE)
    assert set(targets) <= TARGETS
