"""Notebooks read, executed in place, copied for students; the kernel that runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from labkit.lab import machine, notebooks
from labkit.lab.notebooks import ChapterError, read_notebook


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A lab in a folder of its own, for this process."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def notebook(*sources: str, **metadata: object) -> NotebookNode:
    new = nbformat.v4
    cells = [new.new_markdown_cell("# A chapter\n\n## A section")]
    cells += [new.new_code_cell(source) for source in sources]
    for number, cell in enumerate(cells):
        cell.id = f"c{number}"
    return new.new_notebook(cells=cells, metadata=metadata)


def write(root: Path, *sources: str, name: str = "01_toy") -> Path:
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook(*sources), path)
    return path


# reading


def test_copies_and_other_files_are_no_chapters(root):
    for name in ("02_b", "01_a", "01_a-Copy1", "01_a copy", "Untitled", "1_c", "01_a (2)"):
        (root / "notebooks" / f"{name}.ipynb").write_text("{}")
    assert notebooks.chapters() == ("01_a", "02_b")


@pytest.mark.parametrize("minor", [2, 4, 5])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_ids_and_a_byte_order_mark_do_no_harm(root, minor, mark):
    content = notebook("x = 1", kernelspec={"name": "x", "display_name": "X"})
    content.nbformat_minor = minor
    path = root / "notebooks" / "01_toy.ipynb"
    path.write_text(mark + json.dumps(content), "utf-8")
    result = read_notebook(path)
    assert (result.nbformat, result.nbformat_minor) == (4, 5)
    assert [(cell.id, cell.source) for cell in result.cells] == [
        (cell.id, cell.source) for cell in content.cells
    ]
    assert result.metadata.kernelspec.name == "x"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "\x00"],
)
def test_what_is_no_notebook_is_named_with_a_way_on(root, content):
    path = root / "notebooks" / "01_toy.ipynb"
    path.write_text(content)
    message = r"^notebooks/01_toy.ipynb: not a readable notebook: .*set it aside, then: git restore"
    with pytest.raises(ChapterError, match=message):
        read_notebook(path)


# executing in place


def test_a_chapter_is_refreshed_without_what_differs_from_run_to_run(root, capsys):
    warns = "import warnings\nwarnings.warn('beware', stacklevel=1)\nprint(6 * 7)"
    path = write(root, "import os\nprint(os.getcwd())", warns)
    assert notebooks.refresh_all(["01_toy"]) == 0
    first = path.read_bytes()
    assert notebooks.refresh_all(["01_toy"]) == 0
    assert path.read_bytes() == first
    result = read_notebook(path)
    printed = [[output.text for output in cell.outputs] for cell in result.cells[1:]]
    assert printed == [[f"{root / 'notebooks'}\n"], ["42\n"]]
    assert [cell.execution_count for cell in result.cells[1:]] == [1, 2]
    assert result.metadata == {
        "kernelspec": {
            "name": "lstm-course-lab", "display_name": "LSTM course lab", "language": "python",
        },
        "language_info": {"name": "python"},
    }  # fmt: skip
    assert "code cell 2 (`import warnings`" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source, cause",
    [
        ("raise ValueError('no')", "ValueError: no. Next: correct the cell, then"),
        ("import os\nos._exit(3)", "the kernel died"),
        ("from pathlib import Path\nPath('01_toy.ipynb').write_text('{}')", "it was edited while"),
    ],
)
def test_a_chapter_that_fails_stays_as_it_was(root, capsys, source, cause):
    path = write(root, "x = 1", source)
    before = path.read_bytes() if "edited" not in cause else b"{}"
    assert notebooks.refresh_all(["01_toy"]) == 1
    assert path.read_bytes() == before
    message = capsys.readouterr().err
    assert cause in message
    if "edited" not in cause:
        assert "notebooks/01_toy.ipynb, code cell 2 (`" in message
    assert "python -m labkit notebooks 01_toy" in message


# the kernel


def test_nothing_of_a_home_folder_reaches_the_kernel(root, tmp_path_factory):
    """Start-up files of Python and IPython, and packages of the user's site."""
    home = tmp_path_factory.mktemp("home")
    startup = home / ".ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("leaked = 'IPython'")
    (home / "start.py").write_text("leaked = 'Python'")
    path = write(root, "import site\nprint('leaked' in globals(), site.ENABLE_USER_SITE)")
    program = "from labkit.lab import notebooks; notebooks.refresh_all(['01_toy'])"
    variables = {"HOME": str(home), "PYTHONSTARTUP": str(home / "start.py")}
    variables |= {"LABKIT_ROOT": str(root), "IPYTHONDIR": str(home / ".ipython")}
    variables |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(machine.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program], env=variables, check=True, timeout=120)
    assert read_notebook(path).cells[1].outputs[0].text == "False False\n"


def test_another_kernel_of_the_same_name_is_noticed(tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / machine.KERNEL
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text('{"argv": ["other"], "display_name": "Other"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(ValueError, match=f"{folder} hides the lab's kernel"):
        notebooks.install_kernel()


# working copies


def edit(path: Path, source: str) -> None:
    content = read_notebook(path)
    content.cells[1].source = source
    nbformat.write(content, path)


def run_and_save(path: Path) -> None:
    """What JupyterLab does to a notebook that was run."""
    content = read_notebook(path)
    content.cells[1].execution_count = 7
    content.cells[1].outputs = [nbformat.v4.new_output("stream", text="other\n")]
    content.metadata["widgets"] = {}
    nbformat.write(content, path)


def test_copies_are_renewed_with_their_chapter_unless_a_student_edited_them(root):
    chapter, copy = write(root, "x = 1"), root / "work" / "01_toy.ipynb"
    original = chapter.read_bytes()
    assert notebooks.make_copies() == []
    assert read_notebook(copy).cells == read_notebook(chapter).cells
    run_and_save(copy)
    saved = copy.read_bytes()
    assert notebooks.make_copies() == []
    assert copy.read_bytes() == saved
    assert chapter.read_bytes() == original

    edit(chapter, "x = 2")
    assert notebooks.make_copies() == []
    assert read_notebook(copy).cells[1].source == "x = 2"
    assert read_notebook(copy).cells[1].outputs == []


@pytest.mark.parametrize("times", [1, 2])
def test_what_a_student_wrote_is_kept_under_a_dated_name(root, times):
    chapter, copy = write(root, "x = 1"), root / "work" / "01_toy.ipynb"
    notebooks.make_copies()
    for n in range(times):
        edit(copy, f"mine = {n}")
        notebooks.make_copies()
        assert read_notebook(copy).cells[1].source == f"mine = {n}"
        edit(chapter, f"x = {n + 2}")
        (message,) = notebooks.make_copies()
        assert read_notebook(copy).cells[1].source == f"x = {n + 2}"
        kept = root / message.split()[-1]
        assert read_notebook(kept).cells[1].source == f"mine = {n}"
    assert len(list(copy.parent.iterdir())) == times + 1


def test_a_copy_that_cannot_be_read_is_kept_too(root):
    write(root, "x = 1")
    notebooks.make_copies()
    copy = root / "work" / "01_toy.ipynb"
    copy.write_text("<<<<<<< HEAD")
    (message,) = notebooks.make_copies()
    assert (root / message.split()[-1]).read_text() == "<<<<<<< HEAD"
    assert read_notebook(copy).cells[1].source == "x = 1"


def test_jupyterlab_opens_at_the_root_on_the_copies(root, monkeypatch):
    write(root, "x = 1")
    started = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("LABKIT_STAGING", "/elsewhere")
    notebooks.open_lab(2, ["--no-browser"])
    ((_, command, variables),) = started
    assert f"--ServerApp.root_dir={root}" in command
    assert {"--LabApp.default_url=/lab/tree/work", "--no-browser"} < set(command)
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["JUPYTER_PREFER_ENV_PATH"] == "1"
    assert "LABKIT_STAGING" not in variables
    assert (root / "work" / "01_toy.ipynb").exists()


def test_git_ignores_the_copies():
    if not (machine.ROOT / ".git").exists():
        pytest.skip("this is no git repository")
    command = ["git", "check-ignore", "work/01_lstm_operator.ipynb"]
    assert subprocess.run(command, cwd=machine.ROOT, check=False).returncode == 0
