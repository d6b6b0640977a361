"""Notebooks read, executed in place, copied for students; the kernel that runs them."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from labkit.lab import machine, notebooks
from labkit.lab.notebooks import ChapterError, read_notebook


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


@pytest.mark.parametrize("content", ["", '{"cells": 3, "nbformat": 4, "metadata": {}}'])
def test_what_is_no_notebook_is_named_with_a_way_on(root, content):
    path = root / "notebooks" / "01_toy.ipynb"
    path.write_text(content)
    message = r"^notebooks/01_toy.ipynb: not a readable notebook: .*set it aside, then: git restore"
    with pytest.raises(ChapterError, match=message):
        read_notebook(path)


# storing outputs


def test_outputs_are_stored_without_what_differs_from_run_to_run(lab):
    warns = "import warnings\nwarnings.warn('beware', stacklevel=1)\nprint(6 * 7)\n8"
    path = lab.add("01_toy", warns)
    assert lab.run("notebooks", "01").returncode == 0
    first = path.read_bytes()
    assert lab.run("notebooks").returncode == 0
    assert path.read_bytes() == first
    result = read_notebook(path)
    code = [cell for cell in result.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert [output.get("text") for output in code[1].outputs] == ["42\n", None]
    assert code[1].outputs[1].execution_count == 2
    assert [cell.id for cell in result.cells] == [f"cell-{n}" for n in range(4)]
    assert all(cell.metadata.keys() <= {"tags"} for cell in result.cells)
    assert result.metadata == {
        "kernelspec": {
            "name": "lstm-course-lab", "display_name": "LSTM course lab", "language": "python",
        },
        "language_info": {"name": "python"},
    }  # fmt: skip


@pytest.mark.parametrize("source, cause", [("1 / 0", "ZeroDivisionError"), (None, "was edited")])
def test_a_chapter_that_fails_or_was_edited_gets_no_outputs(lab, source, cause):
    path = lab.add("01_toy", source or lab.EDIT)
    done = lab.run("notebooks")
    assert done.returncode
    assert cause in done.stderr
    assert '"outputs": [\n    {' not in path.read_text()


# the kernel


def test_nothing_of_a_home_folder_reaches_the_kernel(lab, tmp_path_factory):
    """Start-up files of Python and IPython, packages of the user's site and of PYTHONPATH."""
    home = tmp_path_factory.mktemp("home")
    startup = home / ".ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("leaked = 'IPython'")
    (home / "start.py").write_text("leaked = 'Python'")
    lab.add(
        "01_toy", "import site\nassert not site.ENABLE_USER_SITE\nassert 'leaked' not in globals()"
    )
    lab.environment |= {"HOME": str(home), "IPYTHONDIR": str(home / ".ipython")}
    (home / "numpy.py").write_text("raise RuntimeError('a foreign package')")
    lab.environment["PYTHONSTARTUP"] = str(home / "start.py")
    lab.environment["PYTHONPATH"] += f":{home}"
    done = lab.run("run", "--profile", "quick")
    assert done.returncode == 0, done.stderr


# working copies


def edit(path: Path, source: str) -> None:
    content = read_notebook(path)
    content.cells[1].source = source
    nbformat.write(content, path)


def test_copies_are_renewed_with_their_chapter_and_what_a_student_wrote_is_kept(root):
    chapter, copy = write(root, "x = 1"), root / "work" / "01_toy.ipynb"
    assert notebooks.make_copies() == []
    assert read_notebook(copy).cells == read_notebook(chapter).cells
    edit(copy, "mine = 1")
    assert notebooks.make_copies() == []
    assert read_notebook(copy).cells[1].source == "mine = 1"
    edit(chapter, "x = 2")
    (message,) = notebooks.make_copies()
    assert read_notebook(copy).cells[1].source == "x = 2"
    assert read_notebook(root / message.split()[-1]).cells[1].source == "mine = 1"
    assert len(list(copy.parent.glob("[!.]*"))) == 2


def test_jupyterlab_begins_with_the_variables_of_a_kernel(root, monkeypatch):
    write(root, "x = 1")
    started = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.delenv("OMP_NUM_THREADS")
    notebooks.open_lab(["--no-browser"])
    ((_, command, variables),) = started
    assert "--no-browser" in command
    assert machine.kernel_environment().items() <= variables.items()
