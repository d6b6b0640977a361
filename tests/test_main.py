"""The command line: what it starts, what it prints, what it returns."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from labkit import __main__ as command
from labkit.lab import environment, results, runner
from labkit.lab.publication import RECORD_KEYS


def test_help_imports_nothing_heavy():
    code = """
import sys
from labkit.__main__ import main
try:
    main(["--help"])
except SystemExit as end:
    heavy = {"torch", "numpy", "scipy", "matplotlib", "nbformat", "papermill", "IPython"}
    print(end.code, sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    for name in ("run", "verify", "report", "compare", "notebooks", "lab", "data", "clean"):
        assert f"\n    {name}" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--profile", "huge"], "invalid choice: 'huge'"),
        (["run", "--threads", "0"], "must be a whole number from 1 up, got '0'"),
        (["run", "--workers", "two"], "must be a whole number from 1 up, got 'two'"),
        (["walk"], "invalid choice: 'walk'"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_is_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_chapter_is_named(lab, monkeypatch, capsys):
    lab.add("01_operator")
    monkeypatch.setattr(environment, "NOTEBOOKS", lab.root / "notebooks")
    assert command.main(["run", "01_operatr", "--profile", "quick"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("labkit: unknown chapter '01_operatr'. Did you mean '01_operator'?")
    assert len(message.splitlines()) == 1


def test_chapters_are_found_by_number_name_or_file(lab, monkeypatch):
    for chapter in ("01_operator", "02_sweep", "03_gates"):
        lab.add(chapter)
    monkeypatch.setattr(environment, "NOTEBOOKS", lab.root / "notebooks")
    assert runner.select([]) == ["01_operator", "02_sweep", "03_gates"]
    assert runner.select(["03", "notebooks/01_operator.ipynb", "01"]) == ["01_operator", "03_gates"]
    assert runner.select(["2"]) == ["02_sweep"]


@pytest.mark.parametrize("cuda, profile", [(True, "full"), (False, "cpu")])
def test_auto_takes_full_where_there_is_cuda(monkeypatch, cuda, profile):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    calls = []
    monkeypatch.setattr(runner, "run", lambda *given: calls.append(given) or 0)
    arguments = ["run", "02", "--set", "a=1", "--set", "b=2", "--workers", "3", "--force"]
    assert command.main(arguments) == 0
    assert calls == [(["02"], runner.Options(profile, ("a=1", "b=2"), 1, 3, True))]


@pytest.mark.parametrize(
    "tampered, stale, strict, code",
    [([], [], True, 0), ([], ["x"], False, 0), ([], ["x"], True, 1), (["x"], [], False, 1)],
)
def test_verify_tells_tampered_from_stale(monkeypatch, tampered, stale, strict, code):
    found = SimpleNamespace(tampered=tampered, stale=stale, report=lambda: "report")
    monkeypatch.setattr(results, "verify", lambda: found)
    assert command.main(["verify", *["--strict"] * strict]) == code


RECORD = dict.fromkeys(RECORD_KEYS, 0) | {"measures": {}, "figures": {}, "claims": []}


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"schema": 1, "chapters": {}, "digest": ""}', "lacks chapter, profile"),
        ("{", "is damaged, not JSON"),
        ("\xff", "is damaged, not JSON"),
        ("[1]", "holds no JSON object"),
        (RECORD | {"measures": []}, "is damaged: measures cannot be read"),
        (RECORD | {"measures": {"x": {"n": 1}}}, "is damaged: measure x cannot be read"),
        (RECORD | {"claims": ["a"]}, "is damaged: claim 1 cannot be read"),
    ],
)
def test_compare_names_a_file_that_is_no_record(tmp_path, capsys, content, message):
    path = tmp_path / "manifest.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "latin-1")
    assert command.main(["compare", str(path), str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"labkit: {path} ")
    assert message in lines[0]


def test_compare_takes_files_and_folders(tmp_path, monkeypatch, capsys):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "01_x.json").write_text(json.dumps(RECORD | {"settings": value}))
    (tmp_path / "a" / "02_y.json").write_text(json.dumps(RECORD))
    monkeypatch.setattr(results, "compare", lambda a, b: [] if a == b else ["value: 1 or 2"])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    assert command.main(["compare", a, b]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "1 compared, differences: 2",
        "02_y: only in one of the two",
        "01_x: value: 1 or 2",
    ]
    assert command.main(["compare", a + "/01_x.json", b + "/01_x.json"]) == 1
    assert command.main(["compare", a, a]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 compared, differences: none"
    assert command.main(["compare", a, str(tmp_path)]) == 2
    assert command.main(["compare", a, str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.endswith("none.json\n")


def test_a_python_without_the_packages_is_told_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "labkit.lab.report", None)
    monkeypatch.delattr("labkit.lab.report", raising=False)
    assert command.main(["report"]) == 1
    assert "has no labkit.lab.report; run make setup" in capsys.readouterr().err


@pytest.mark.parametrize("user, extra", [(1000, []), (0, ["--allow-root"])])
def test_lab_opens_jupyterlab_in_the_kernel_environment(monkeypatch, user, extra):
    calls = []
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("os.execve", lambda *given: calls.append(given))
    command.main(["lab", "--threads", "2", "--no-browser", "--port=8890"])
    [(program, arguments, variables)] = calls
    assert program == sys.executable
    assert arguments[1:3] == ["-m", "jupyterlab"]
    assert arguments[3:] == [str(environment.NOTEBOOKS), "--no-browser", "--port=8890", *extra]
    assert variables.items() >= environment.kernel_environment(2).items()
