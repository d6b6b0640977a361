"""The command line: what it starts, what it says, what it returns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import __main__ as command
from labkit.lab import run, store

HEAVY = {"torch", "numpy", "scipy", "matplotlib", "nbformat", "papermill", "IPython", "pydantic"}


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line; its function `labkit` is the command."""
    line = f"labkit() {{ '{sys.executable}' -m labkit \"$@\"; }}; {line}"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", line], env=inherited | variables, capture_output=True, text=True
    )


def test_help_imports_nothing_heavy():
    done = shell("labkit --help", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not HEAVY & imported


@pytest.mark.parametrize(
    "profile, gpu, taken, warned",
    [("auto", True, "full", False), ("auto", False, "cpu", False), ("full", False, "full", True),
     ("full", True, "full", False), ("cpu", True, "cpu", False)],
)  # fmt: skip
def test_full_is_for_a_gpu_and_warns_without_one(monkeypatch, capsys, profile, gpu, taken, warned):
    calls = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(run, "run", lambda *given: calls.append(given) or 3)
    given = ["--set", "a=1", "--set", "b=2", "--workers", "3", "--force"]
    assert command.main(["run", "02", "--profile", profile, *given, "--cell-timeout", "9"]) == 3
    assert calls == [(["02"], run.Options(taken, ("a=1", "b=2"), 3, True, 9))]
    assert ("there is no GPU here" in capsys.readouterr().err) is warned


def test_clusters_are_named_on_the_command_line(monkeypatch):
    calls = []
    monkeypatch.setenv("LABKIT_DASK", "tcp://old:1")
    monkeypatch.setattr(run, "run", lambda *_: calls.append(os.environ["LABKIT_DASK"]) or 0)
    command.main(["run", "02", "--profile", "quick", "--dask", "tcp://new:8786"])
    monkeypatch.setattr(store, "become_worker", lambda *given: calls.append(given))
    command.main(["worker", "tcp://new:8786", "--processes", "3"])
    assert calls == ["tcp://new:8786", ("tcp://new:8786", 3)]


def test_the_readers_pythonpath_is_left_out_and_said(tmp_path):
    for package in ("numpy", "pydantic", "typer"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('a foreign package')")
    root = Path(command.__file__).parents[1]
    path = f"{tmp_path}:{root}"
    done = shell("cd / && labkit run 99 --profile quick", PYTHONPATH=path)
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert said[0] == "labkit: PYTHONPATH is left out: the lab has its own packages"
    assert said[1].startswith("labkit: unknown chapter '99'. There are 01_")
