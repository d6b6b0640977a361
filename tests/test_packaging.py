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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GPU = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")  # depends on the machine, chosen at set-up
PLATFORMS = [
    {"python_version": version, "python_full_version": f"{version}.8", "sys_platform": system}
    for version in ("3.11", "3.12", "3.13")
    for system in ("linux", "darwin")
]


def pins() -> list[tuple[Requirement, int]]:
    """Every entry of the lock, with the number of its hashes."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", LOCK)[1:]
    pattern = r"--hash=sha256:[0-9a-f]{64}\b"
    return [
        (Requirement(entry.split("\\\n")[0]), len(re.findall(pattern, entry))) for entry in entries
    ]


# the lock and the environments


@pytest.mark.parametrize(
    "platform", PLATFORMS, ids=lambda p: f"{p['python_version']}-{p['sys_platform']}"
)
def test_the_lock_pins_every_declared_package_once_on_every_platform(platform: dict) -> None:
    extras = PROJECT["optional-dependencies"]
    versions = {}
    for pin, _ in pins():
        if not pin.marker or pin.marker.evaluate(platform):
            assert versions.setdefault(canonicalize_name(pin.name), pin) is pin
    for wanted in map(Requirement, sum(extras.values(), PROJECT["dependencies"])):
        if wanted.name != "torch":
            (version,) = versions[canonicalize_name(wanted.name)].specifier
            assert version.operator == "=="
            assert wanted.specifier.contains(version.version), wanted


def test_the_lock_has_hashes_and_names_no_place_and_no_gpu() -> None:
    assert [str(pin) for pin, hashes in pins() if not hashes or GPU.match(pin.name)] == []
    assert not re.search(r"://|(?m:^\s*--(?!hash)|^-|\s@\s)", LOCK)
    assert LOCK.splitlines()[1] == "#    make lock"


def test_set_up_installs_a_torch_that_the_project_allows() -> None:
    (version,) = re.findall(r"\btorch==(\S+)", MAKEFILE)
    (torch,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert torch.specifier.contains(version)


def test_every_way_to_install_takes_the_same_pythons_and_extras() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *parts, pip = environment["dependencies"]
    assert {"make", "pip"} < set(parts)
    assert pip == {"pip": ["--editable .[dask,test]"]}
    assert "-e '.[dask,test]'" in MAKEFILE
    (pythons,) = (part.removeprefix("python") for part in parts if part.startswith("python"))
    assert f"'{pythons}'" in MAKEFILE
    assert pythons.startswith(PROJECT["requires-python"])


# make


def make(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run make, away from any make around the tests and from the settings of this machine."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=folder, env=kept | variables, capture_output=True, text=True, timeout=60
    )


def targets() -> set[str]:
    return set(re.search(r"(?m)^\.PHONY: (.*)$", MAKEFILE).group(1).split())


def test_make_alone_lists_every_target_and_setting() -> None:
    listed = make().stdout
    assert set(re.findall(r"(?m)^  ([a-z]+) +[A-Z]", listed)) == targets() - {"install"}
    settings = set(re.findall(r"(?m)^  ([A-Z]+)=", listed))
    used = set(re.findall(r"\$\((?:call on,)?([A-Z]+)\)", MAKEFILE))
    assert settings == used - {"PY", "LABKIT", "ENVIRONMENT", "UV", "STAMP", "MAKE"} - {
        "MAKECMDGOALS", "CURDIR",
    }  # fmt: skip


@pytest.mark.parametrize("target", sorted(targets() - {"help", "clean", "install"}))
def test_every_target_sets_up_first(target: str) -> None:
    assert "labkit-setup" in make("-n", "-j4", target).stdout.splitlines()[0]


def test_make_passes_settings_on() -> None:
    settings = ("PROFILE=cpu", "CHAPTERS=02 03", "THREADS=2", "WORKERS=3", "DASK=tcp://host:8786")
    text = " ".join(make("-n", "reproduce", *settings).stdout.split())
    assert "labkit run 02 03 --profile 'cpu' --threads '2' --workers '3'" in text
    assert "--dask 'tcp://host:8786'" in text


@pytest.mark.parametrize("value", ["1", "yes", "0", "", "no", "false"])
def test_switches_keep_the_convention(value: str) -> None:
    on = value in ("1", "yes")
    assert ("--strict" in make("-n", "verify", f"STRICT={value}").stdout) is on
    assert ("--force" in make("-n", "run", f"FORCE={value}").stdout) is on
    assert ("--force" in make("-n", "run", FORCE=value).stdout) is on


# stands for python and uv: notes its calls, makes what the real one makes, fails where told to
PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >>calls
case "$*" in *"$(cat fail 2>/dev/null || echo nothing)"*) echo 'no space left' >&2; exit 3;; esac
case "$*" in
  '-m venv .cache/uv') mkdir -p .cache/uv/bin; cp python .cache/uv/bin ;;
  '-m pip install'*) echo "$PIP_USER" >pip_user; cp python .cache/uv/bin/uv ;;
  venv*) mkdir -p .venv/bin; cp python .venv/bin ;;
  '-m labkit run wait'*) trap 'echo ended >>calls; exit 143' TERM; while :; do sleep 0.05; done ;;
esac
env | grep -E '^(PYTHONPATH|PYTHONNOUSERSITE|UV_FIND_LINKS|UV_DEFAULT_INDEX)=' >variables; :
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with the Makefile and programs that only note how they were called.

    What is called is written to the file `calls`; `fail` holds the words at which a program fails.
    """
    folder = tmp_path / "a lab's {folder}"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    program = folder / "python"
    program.write_text(PROGRAM, "utf-8")
    program.chmod(0o755)
    return folder


def calls(lab: Path) -> list[str]:
    """The calls since the last look."""
    lines = (lab / "calls").read_text("utf-8").splitlines() if (lab / "calls").exists() else []
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
    assert (lab / "pip_user").read_text() == "0\n"
    assert make_venv == "uv venv --clear --seed --python ./python .venv"
    here = "uv pip install --python .venv/bin/python -c requirements.lock"
    assert re.fullmatch(rf"{here} torch==\S+ --torch-backend auto", torch)
    assert rest == f"{here} -e .[dask,test]"
    assert "--sys-prefix --name lstm-course-lab" in kernel
    assert check.startswith("python -c import labkit, torch")
    lines = first.stdout.splitlines()
    assert lines[-1].startswith("Next: make reproduce")
    assert re.fullmatch(r"setup: \.venv in \d+ s", lines[-2])
    assert all(line.startswith("setup: ") for line in lines[:-1])

    assert setup(lab).stdout.startswith("Next: ")
    assert calls(lab) == []


@pytest.mark.parametrize("change", ["pyproject.toml", "requirements.lock", "folder", "python"])
def test_what_the_environment_was_made_from_outdates_it(lab: Path, change: str) -> None:
    setup(lab)
    calls(lab)
    if change == "folder":
        lab = lab.rename(lab.with_name("other"))
    elif change == "python":  # a dangling link, as after an upgrade of the system's Python
        (lab / ".venv" / "bin" / "python").unlink()
    else:
        (lab / change).write_text("# new\n")
    assert "labkit and all other packages" in setup(lab).stdout


def test_a_named_torch_replaces_the_one_that_is_there(lab: Path) -> None:
    setup(lab)
    calls(lab)
    setup(lab, "TORCH=cu130")
    assert calls(lab)[0].endswith("--torch-backend cu130 --reinstall-package torch")


def test_uv_gets_what_pip_is_told_and_nothing_from_elsewhere(lab: Path) -> None:
    variables = {"PYTHONPATH": "/elsewhere", "PIP_FIND_LINKS": "/a /b", "PIP_INDEX_URL": "x://y"}
    setup(lab, **variables)
    assert sorted((lab / "variables").read_text().splitlines()) == [
        "PYTHONNOUSERSITE=1", "UV_DEFAULT_INDEX=x://y", "UV_FIND_LINKS=/a,/b",
    ]  # fmt: skip
    assert "--torch-backend" not in "".join(calls(lab))  # the folders of wheels decide
    (lab / "requirements.lock").write_text("# new\n")
    setup(lab, UV_FIND_LINKS="/c", **variables)
    assert "UV_FIND_LINKS=/c\n" in (lab / "variables").read_text()


@pytest.mark.parametrize("step", ["-m venv", "-m pip", "venv --clear", "torch==", "-e .", "kernel"])
def test_a_failed_step_is_shown_and_set_up_goes_on_from_there(lab: Path, step: str) -> None:
    (lab / "fail").write_text(step)
    failed = setup(lab)
    assert failed.returncode == 2
    assert "no space left" in failed.stderr
    assert "setup: this step failed, .cache/setup.log has all of it" in failed.stderr
    assert "Next" not in failed.stdout
    (lab / "fail").unlink()
    assert setup(lab).returncode == 0


def test_an_active_conda_environment_is_used_but_not_conda_base(lab: Path) -> None:
    for name, folder in (("lstm", "/opt/lstm"), ("base", ".venv")):
        shown = make("-n", "lint", CONDA_PREFIX="/opt/lstm", CONDA_DEFAULT_ENV=name).stdout
        assert f"'{folder}/bin/python' -m ruff check ." in shown


def test_reproduce_reports_and_verifies_though_a_chapter_failed(lab: Path) -> None:
    """The commands run in order, also under -j, and a failure of one shows in the end."""
    setup(lab)
    calls(lab)
    (lab / "fail").write_text("labkit run")
    assert make("-j4", "reproduce", folder=lab, PYTHON="./python").returncode == 2
    assert [call.split()[3] for call in calls(lab)] == ["run", "report", "verify"]


def test_a_signal_to_make_reaches_the_run(lab: Path) -> None:
    """No shell stands between make and the commands: one would die and leave them running."""
    setup(lab)
    with subprocess.Popen(["make", "run", "CHAPTERS=wait", "PYTHON=./python"], cwd=lab) as process:
        wait_for(lab / "calls", "labkit run wait")
        process.terminate()
        wait_for(lab / "calls", "ended")
    assert process.returncode != 0


def wait_for(path: Path, text: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while text not in path.read_text():
        assert time.monotonic() < end, f"waited in vain for '{text}'"
        time.sleep(0.02)


def test_ci_runs_the_readmes_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").rstrip().endswith("\nmake test")
    assert re.search(r"(?m)^make test\b", PAGES[0].read_text("utf-8"))


# README and docs


def test_the_pages_are_short() -> None:
    assert len(PAGES) <= 5
    assert len(re.findall(r"\w\S*", PAGES[0].read_text("utf-8"))) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`make ([a-z]+)|(?m:^make ([a-z]+))", text)
    assert {first or second for first, second in named} <= targets()
