"""What a teacher hands out and grades: the chapters' exercises as an nbgrader course.

An exercise stands in its chapter once, with its solution, in two cells that their metadata names:
`"labkit": {"exercise": name, "role": "answer"}`, and the check behind it with its `points`.
nbgrader takes the solutions out, and grades what students hand in by running the same checks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit.lab import machine
from labkit.lab.machine import shown
from labkit.lab.notebooks import chapters, read_notebook

CONFIG = """\
c = get_config()
c.CourseDirectory.course_id = "lstm-course-lab"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your code here"}
c.ClearOutput.enabled = False  # students see the chapter's pictures before they run it
"""


def graded(notebook: NotebookNode) -> NotebookNode | None:
    """A chapter with the metadata by which nbgrader knows its exercises; None if it has none."""
    exercises = [cell for cell in notebook.cells if "exercise" in cell.metadata.get("labkit", {})]
    for cell in exercises:
        facts = cell.metadata["labkit"]
        check = facts["role"] == "check"
        facts = {
            "grade_id": facts["exercise"] + ("_check" if check else ""),
            "grade": check,
            "points": facts.get("points", 0),
            "solution": not check,
            "locked": check,
            "task": False,
            "schema_version": 3,
        }
        cell.metadata["nbgrader"] = nbformat.from_dict(facts)
        cell.outputs, cell.execution_count = [], None
    return notebook if exercises else None


def make(folder: Path) -> list[str]:
    """Write the course to `folder`/course and the students' notebooks to `folder`/students.

    Hand-ins that were collected, and their grades, stay. Returns the chapters with exercises;
    ValueError where nbgrader is missing or refuses one.
    """
    course = folder / "course"
    for name in chapters():
        if notebook := graded(read_notebook(machine.notebook(name))):
            source = course / "source" / name / f"{name}.ipynb"
            source.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, source)
    if not course.exists():
        raise ValueError("no chapter has exercises")
    (course / "nbgrader_config.py").write_text(CONFIG)
    names = sorted(path.name for path in (course / "source").iterdir())
    for name in names:
        nbgrader("generate_assignment", name, "--force", course=course)
        released = course / "release" / name / f"{name}.ipynb"
        (folder / "students").mkdir(exist_ok=True)
        shutil.copy(released, folder / "students")
    return names


def nbgrader(*arguments: str, course: Path) -> None:
    """Run nbgrader in a course; ValueError with the end of what it said where it fails."""
    bin_folder = Path(sys.executable).parent  # it calls programs of its environment by name
    path = os.pathsep.join([str(bin_folder), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(
        command, cwd=course, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(
            f"nbgrader {' '.join(arguments)}, in {shown(course)}: {done.stderr[-800:]}"
        )
